package exchange

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/go-staple/staple/internal/publicaddr"
	"github.com/go-staple/staple/internal/testhttp"
)

func TestHTTP2(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) }))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	c, _ := newClient(t)
	c.HTTP.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
	r := c.Do(t.Context(), http.MethodGet, s.URL, nil, http.Header{})
	require.NoError(t, r.Err)
	require.Equal(t, "HTTP/2.0", string(r.Body))
	require.True(t, r.Answered)
}

func TestConnectionIsUsedAgain(t *testing.T) {
	var opened atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "x") }))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	c, _ := newClient(t)
	for range 5 {
		require.NoError(t, c.Do(t.Context(), http.MethodGet, s.URL, nil, http.Header{}).Err)
	}
	require.EqualValues(t, 1, opened.Load())
}

func TestProxyFromTheEnvironment(t *testing.T) {
	// net/http reads the environment once, so this takes a process of its own.
	if os.Getenv("STAPLE_TEST_PROXY") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestProxyFromTheEnvironment$", "-test.v")
		cmd.Env = append(os.Environ(), "STAPLE_TEST_PROXY=1")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Contains(t, string(out), "--- PASS")
		return
	}
	var uri atomic.Value
	proxy := testhttp.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		uri.Store(r.RequestURI)
		io.WriteString(w, "proxied")
	}))
	for _, v := range []string{"HTTP_PROXY", "http_proxy"} {
		t.Setenv(v, proxy)
	}
	require.Equal(t, "proxied", string(get(t, "http://ocsp.invalid/path").Body))
	require.Equal(t, "http://ocsp.invalid/path", uri.Load())
	require.Nil(t, NewClient(time.Second, publicaddr.Control).Transport.(*http.Transport).Proxy)
}

func TestControl(t *testing.T) {
	var asked atomic.Int32
	server := testhttp.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked.Add(1) }))
	t.Run("it has a say in each connection", func(t *testing.T) {
		refused := errors.New("refused")
		c := Client{HTTP: NewClient(time.Minute, func(string, string, syscall.RawConn) error { return refused }), Timeout: time.Minute}
		require.ErrorIs(t, c.Do(t.Context(), http.MethodGet, server, nil, http.Header{}).Err, refused)
		require.Zero(t, asked.Load())
	})
	t.Run("a redirect does not get round it", func(t *testing.T) {
		redirector := testhttp.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, server, http.StatusFound) }))
		c := Client{HTTP: NewClient(time.Minute, publicaddr.Control), Timeout: time.Minute}
		transport := c.HTTP.Transport.(*http.Transport)
		dial := transport.DialContext
		transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == "public.invalid:80" { // as if it were
				return new(net.Dialer).DialContext(ctx, network, strings.TrimPrefix(redirector, "http://"))
			}
			return dial(ctx, network, addr)
		}
		t.Cleanup(transport.CloseIdleConnections)
		r := c.Do(t.Context(), http.MethodGet, "http://public.invalid", nil, http.Header{})
		require.ErrorContains(t, r.Err, "127.0.0.1 is not a globally reachable address")
		require.Zero(t, asked.Load())
	})
}
