package exchange

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
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

// tlsServer returns the URL of a server whose certificate nobody trusts, which may want one of its clients, and what trusts it.
func tlsServer(t *testing.T, wants tls.ClientAuthType) (string, *tls.Config) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Header.Get("Authorization")) }))
	s.TLS = &tls.Config{ClientAuth: wants}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL, s.Client().Transport.(*http.Transport).TLSClientConfig
}

func TestErrorsNameTheURLThatFailedAndWhatWouldHelp(t *testing.T) {
	unknown, _ := tlsServer(t, tls.NoClientCert)
	wanting, trusting := tlsServer(t, tls.RequireAnyClientCert)
	for _, tt := range []struct {
		name   string
		to     string
		trusts *tls.Config
		want   string
	}{
		{"an unknown root", unknown, nil, "certificate signed by unknown authority (HTTPFetcher.Client can be given the root to trust)"},
		{"a client certificate is wanted", wanting, trusting, "(HTTPFetcher.Client can be given a client certificate, if that is what it wants)"},
		{"no answer that is of use", testhttp.NewServer(t, testhttp.RepliesStatus(404)), nil, "404 Not Found"},
		{"a scheme that is not asked", "ftp://user:password@ftp.example/", nil, "not an http or https URL"},
	} {
		for _, redirected := range []bool{false, true} {
			if !redirected && tt.to[:3] == "ftp" {
				continue
			}
			t.Run(fmt.Sprintf("%s, redirected: %v", tt.name, redirected), func(t *testing.T) {
				c, _ := newClient(t)
				c.Trust = "HTTPFetcher.Client"
				c.HTTP.Transport.(*http.Transport).TLSClientConfig = tt.trusts
				target, want := tt.to, tt.want
				if redirected {
					target = testhttp.NewServer(t, http.RedirectHandler(tt.to, http.StatusFound))
					want = fmt.Sprintf("redirected to %q: ", Shown(tt.to))
				}
				r := c.Do(t.Context(), http.MethodGet, target, nil, http.Header{})
				require.ErrorContains(t, r.Err, want)
				require.ErrorContains(t, r.Err, tt.want)
				require.NotContains(t, r.Err.Error(), "password")
				if !redirected {
					require.NotContains(t, r.Err.Error(), "redirected")
				}
			})
		}
	}
}

func TestCredentialsGoWhereTheyBelongAlone(t *testing.T) {
	whatIsSent := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "sent: "+r.Header.Get("Authorization"))
	})
	elsewhere := testhttp.NewServer(t, whatIsSent)
	mux := http.NewServeMux()
	mux.Handle("/here", whatIsSent)
	mux.Handle("/moved", http.RedirectHandler("/here", http.StatusFound))
	mux.Handle("/away", http.RedirectHandler(elsewhere, http.StatusFound))
	server := testhttp.NewServer(t, mux)
	for _, tt := range []struct {
		name, path string
		user       *url.Userinfo
		sent       bool
	}{
		{"none", "/here", nil, false},
		{"at once", "/here", url.UserPassword("user", "password"), true},
		{"behind a redirect to the same server", "/moved", url.UserPassword("user", "password"), true},
		{"not to another one, be it at another port of the same address", "/away", url.UserPassword("user", "password"), false},
	} {
		for _, own := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, by a client of ours: %v", tt.name, own), func(t *testing.T) {
				c, _ := newClient(t)
				c.User = tt.user
				if !own {
					c.HTTP.CheckRedirect = nil
				}
				r := c.Do(t.Context(), http.MethodGet, server+tt.path, nil, http.Header{})
				require.NoError(t, r.Err)
				want := "sent: "
				if tt.sent {
					want += "Basic dXNlcjpwYXNzd29yZA=="
				}
				require.Equal(t, want, string(r.Body))
			})
		}
	}
}

func TestWhatAnErrorQuotesIsBounded(t *testing.T) {
	c, _ := newClient(t)
	long := strings.Repeat("\x01", 10_000)
	for _, answer := range []string{"HTTP/1.1 2" + long + "\r\n\r\n", "HTTP/1.1 302 Found\r\nLocation: http://%" + strings.Repeat("z", 10_000) + "\r\n\r\n"} {
		r := c.Do(t.Context(), http.MethodGet, testhttp.ServeRaw(t, testhttp.Says(answer)), nil, http.Header{})
		require.Error(t, r.Err)
		require.Less(t, len(r.Err.Error()), 1000)
	}
}

func TestShown(t *testing.T) {
	for in, want := range map[string]string{
		"http://ocsp.example/a@b?c@d":              "http://ocsp.example/a@b?c@d",
		" http://user:password@ocsp.example/a\r\n": "http://ocsp.example/a",
		"http://user:p@ss@ocsp.example":            "http://ocsp.example",
		"http://user:pass word@%zz":                "http://...%zz",
		"user:password@ocsp.example/path":          "...ocsp.example/path",
		"//user@ocsp.example?q":                    "...ocsp.example?q",
		"https://user:pa/ss@ocsp.example":          "https://...ocsp.example",
		"https://user:pa#ss@ocsp.example":          "https://...ocsp.example",
		"https://user:pa?ss@ocsp.example":          "https://...ocsp.example",
		"https:///user:password@ocsp.example":      "https://...ocsp.example",
		"mailto:user@example.com":                  "...example.com",
		"":                                         "",
	} {
		require.Equal(t, want, Shown(in), in)
	}
}
