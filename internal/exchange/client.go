package exchange

import (
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"
)

const maxRedirects = 3

// NewClient returns an HTTP client that is made for this work: with a transport of its
// own, proxies from the environment, and three redirects at most, along which a POST stays
// one. timeout is for connecting and for the TLS handshake, each; a transport goes on with
// them behind a request that has given up, so it should not come before the request's own.
//
// control, unless it is nil, has a say in every address that is connected to; see
// [net.Dialer]. No proxy is used then, which would connect in its place.
func NewClient(timeout time.Duration, control func(network, address string, c syscall.RawConn) error) *http.Client {
	dialer := &net.Dialer{Timeout: timeout, Control: control}
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		TLSHandshakeTimeout:    timeout,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		MaxIdleConns:           100,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
	if control != nil {
		transport.Proxy = nil
	}
	return &http.Client{Transport: transport, CheckRedirect: checkRedirect}
}

func checkRedirect(next *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	u, err := ParseURL(next.URL.String())
	if err != nil {
		return err
	}
	next.URL = u
	if via[len(via)-1].Method == http.MethodPost && next.Method == http.MethodGet && next.Response.StatusCode != http.StatusSeeOther {
		// As browsers do, net/http makes a GET without the request of it. nginx
		// redirects so from a location without its last slash.
		first := via[0]
		if next.Body, err = first.GetBody(); err != nil {
			return err
		}
		next.Method, next.GetBody, next.ContentLength = http.MethodPost, first.GetBody, first.ContentLength
		next.Header.Set("Content-Type", first.Header.Get("Content-Type"))
	}
	return nil
}
