package whole

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/internal/testhttp"
	"github.com/go-staple/staple/stapletest"
)

// startNginx starts nginx with what a server block needs besides the place to listen, and returns its URL.
func startNginx(t *testing.T, block string) string {
	t.Helper()
	nginx := peer.Need(t, "nginx")
	dir, port := t.TempDir(), peer.FreePort(t)
	var user string
	if os.Geteuid() == 0 {
		user = "user root;"
	}
	conf := fmt.Sprintf(`%s
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr;
events {}
http {
	access_log off;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	proxy_cache_path cache keys_zone=ocsp:1m;
	server {
		listen 127.0.0.1:%s;
%s
	}
}
`, user, port, block)
	startPeer(t, port, nginx, "-p", dir, "-e", "stderr", "-c", writePeersFile(t, dir, "nginx.conf", []byte(conf)))
	return "http://127.0.0.1:" + port
}

func methodsAsked(responder *stapletest.Responder) (all []string) {
	for _, r := range responder.Requests(nil) {
		all = append(all, r.Method)
	}
	return all
}

func TestNginxAsReverseProxy(t *testing.T) {
	w := newPeersWorld(t)
	upstream := testhttp.NewServer(t, w.responder)
	locations := strings.ReplaceAll(`
		location / { proxy_pass UPSTREAM; }
		location /whole/ { proxy_pass UPSTREAM; }
		location /part/ { proxy_pass UPSTREAM/; }
		location /variable/ { proxy_pass UPSTREAM$request_uri; }
		location /rewritten/ { rewrite ^/rewritten/(.*)$ /$1 break; proxy_pass UPSTREAM; }
		location /post/ { if ($request_method != POST) { return 405; } proxy_pass UPSTREAM; }
`, "UPSTREAM", upstream)
	unharmed := []string{"GET"}
	decoded := []string{"GET", "GET", "POST"} // malformed with either hash
	for _, slashes := range []string{"on", "off"} {
		server := startNginx(t, "merge_slashes "+slashes+";"+locations)
		for _, tt := range []struct {
			path string
			asks []string // what reaches the responder
		}{
			{"", unharmed},
			{"/", unharmed},
			{"/whole/", unharmed},
			{"/variable/", unharmed},
			{"/part", decoded},  // nginx redirects the POST to the slash
			{"/part/", decoded}, // a proxy_pass with a URI part
			{"/rewritten/", decoded},
			{"/post/", []string{"POST"}},
		} {
			t.Run("merge_slashes "+slashes+", path "+tt.path, func(t *testing.T) {
				w.responder.Reset(nil)
				cert := w.awkwardLeaf(server + tt.path)
				req := w.verifiedRequest(cert, server+tt.path)
				_, err := new(staple.HTTPFetcher).Fetch(t.Context(), req)
				require.NoError(t, err)
				require.Equal(t, tt.asks, methodsAsked(w.responder))
				if tt.asks[0] == "GET" {
					asked := w.responder.Requests(nil)[0].URL
					require.Equal(t, len(tt.asks) == 1, strings.Contains(asked, "%2F%2F"), asked)
					require.Equal(t, len(tt.asks) > 1 && slashes == "off", strings.Contains(asked[len("http://"):], "//"), asked)
				}
			})
		}
	}
}

func TestNginxAsCache(t *testing.T) {
	w := newPeersWorld(t)
	server := startNginx(t, strings.ReplaceAll(`
		proxy_cache ocsp;
		proxy_cache_valid 200 1h;
		location /get/ { proxy_pass UPSTREAM; }
		location /bypass/ {
			if ($http_cache_control = no-cache) { set $fresh 1; }
			proxy_cache_bypass $fresh;
			proxy_pass UPSTREAM;
		}
		location /both/ { proxy_cache_methods GET POST; proxy_cache_key $uri$request_body; proxy_pass UPSTREAM; }
		location /mixed/ { proxy_cache_methods GET POST; proxy_pass UPSTREAM; }
`, "UPSTREAM", testhttp.NewServer(t, w.responder)))

	// What the cache keeps, what the staple.Stapler holds, and what the responder has by now.
	expired := stapletest.Answer{Age: 48 * time.Hour, Validity: 24 * time.Hour}
	older := stapletest.Answer{Age: 3 * time.Hour}
	held := stapletest.Answer{Age: 2 * time.Hour}
	fresh := stapletest.Answer{Age: time.Hour}
	setup := func(t *testing.T, path string, kept stapletest.Answer, post bool) *staple.Certificate {
		w.responder.Reset(nil)
		cert := w.leaf(withPeersResponder(server + path))
		w.responder.Set(nil, kept)
		prime := &staple.Request{Leaf: cert.Leaf, Issuer: w.ca.Issuer}
		_, err := new(staple.HTTPFetcher).Fetch(t.Context(), prime)
		require.NoError(t, err)
		if post {
			der, err := ocsp.CreateRequest(cert.Leaf, w.ca.Issuer, nil)
			require.NoError(t, err)
			resp, err := http.Post(server+path, "application/ocsp-request", bytes.NewReader(der))
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
		}
		w.responder.Set(nil, held)
		cache := new(staple.MemoryCache)
		require.NoError(t, cache.Put(t.Context(), peersCacheKey(cert.Leaf), w.responder.Response(cert.Leaf)))
		w.responder.Reset(nil)
		w.responder.Set(nil, fresh)
		c := w.add(w.stapler(func(s *staple.Stapler) { s.Fetcher, s.Cache = new(staple.HTTPFetcher), cache }), cert)
		requirePeersAge(t, c, held)
		require.Empty(t, methodsAsked(w.responder))
		return c
	}
	for _, tt := range []struct {
		name, path string
		asks       []string // what reaches the responder
	}{
		{"which heeds no-cache", "/bypass/", []string{"GET"}},
		{"which does not", "/get/", []string{"POST"}},
		{"which does not, and caches POST too, by the body", "/both/", []string{"POST"}},
	} {
		for why, kept := range map[string]stapletest.Answer{"an expired response": expired, "one older than the one held": older} {
			t.Run(why+" from a cache "+tt.name, func(t *testing.T) {
				c := setup(t, tt.path, kept, false)
				require.NoError(t, c.Refresh(peersSoon(t)))
				requirePeersAge(t, c, fresh)
				require.Equal(t, tt.asks, methodsAsked(w.responder))
			})
		}
	}
	t.Run("what no-cache has refreshed is kept for others", func(t *testing.T) {
		c := setup(t, "/bypass/", expired, false)
		require.NoError(t, c.Refresh(peersSoon(t)))
		_, err := new(staple.HTTPFetcher).Fetch(t.Context(), w.verifiedRequest(*c.TLS(), server+"/bypass/"))
		require.NoError(t, err)
		require.Equal(t, []string{"GET"}, methodsAsked(w.responder))
	})
	t.Run("nothing gets past a cache that has old answers to both; what is held is served on", func(t *testing.T) {
		c := setup(t, "/both/", expired, true)
		err := c.Refresh(peersSoon(t))
		refused, ok := errors.AsType[*staple.VerifyError](err)
		require.True(t, ok, err)
		require.Equal(t, staple.ReasonExpired, refused.Reason)
		requirePeersAge(t, c, held)
		require.Empty(t, methodsAsked(w.responder))
	})
	t.Run("a cache that mixes up POSTs gives another certificate's response, which is refused", func(t *testing.T) {
		setup(t, "/mixed/", expired, true)
		c := setup(t, "/mixed/", expired, false)
		err := c.Refresh(peersSoon(t))
		require.ErrorContains(t, err, "refused: it is about the certificate with serial")
		requirePeersAge(t, c, held)
		require.Empty(t, methodsAsked(w.responder))
	})
}

// requireAge requires that c's staple is the one that a was the Answer for, a few seconds ago.
func requirePeersAge(t *testing.T, c *staple.Certificate, a stapletest.Answer) {
	t.Helper()
	require.WithinDuration(t, time.Now().Add(-a.Age), requirePeersStaple(t, c, ocsp.Good).ThisUpdate, 30*time.Minute)
}

// startTinyproxy starts a proxy that knows these hosts to be behind upstream, and reaches others itself.
func startTinyproxy(t *testing.T, upstream string, hosts ...string) (proxy string) {
	t.Helper()
	tinyproxy := peer.Need(t, "tinyproxy")
	port := peer.FreePort(t)
	conf := fmt.Sprintf("Port %s\nListen 127.0.0.1\nTimeout 10\nMaxClients 20\nLogLevel Error\n", port)
	for _, host := range hosts {
		conf += fmt.Sprintf("Upstream http %s %q\n", strings.TrimPrefix(upstream, "http://"), host)
	}
	startPeer(t, port, tinyproxy, "-d", "-c", writePeersFile(t, t.TempDir(), "tinyproxy.conf", []byte(conf)))
	return "http://127.0.0.1:" + port
}

// requireProxied requires that the last request to responder came through tinyproxy.
func requireProxied(t *testing.T, responder *stapletest.Responder, method, url string) {
	t.Helper()
	all := responder.Requests(nil)
	require.NotEmpty(t, all)
	last := all[len(all)-1]
	require.Equal(t, method, last.Method)
	require.True(t, strings.HasPrefix(last.URL, url), last.URL)
	require.Contains(t, last.Header.Get("Via"), "tinyproxy")
}

func TestTinyproxyFromTheEnvironment(t *testing.T) {
	const asked = "STAPLE_TEST_TINYPROXY"
	if os.Getenv(asked) == "" { // net/http reads the environment once
		peer.Need(t, "tinyproxy")
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), asked+"=1")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Contains(t, string(out), "--- PASS: "+t.Name())
		return
	}
	w := newPeersWorld(t)
	const name, address = "ocsp.test", "198.51.100.1"
	proxy := startTinyproxy(t, testhttp.NewServer(t, w.responder), name, address)
	for _, v := range []string{"HTTP_PROXY", "http_proxy"} {
		t.Setenv(v, proxy)
	}
	cert := w.awkwardLeaf("http://" + name)

	t.Run("a name that only the proxy knows, by GET and POST", func(t *testing.T) {
		c := w.add(w.stapler(func(s *staple.Stapler) { s.Fetcher = new(staple.HTTPFetcher) }), cert)
		requirePeersStaple(t, c, ocsp.Good)
		requireProxied(t, w.responder, http.MethodGet, "http://"+name+":80/M")

		_, err := new(staple.HTTPFetcher).Fetch(t.Context(), w.verifiedRequest(cert, "http://"+name+"/path?post"))
		require.NoError(t, err)
		requireProxied(t, w.responder, http.MethodPost, "http://"+name+":80/path?post")
	})
	t.Run("PublicOnly does not use it", func(t *testing.T) {
		req := w.verifiedRequest(cert, "http://"+address)
		_, err := new(staple.HTTPFetcher).Fetch(t.Context(), req)
		require.NoError(t, err)
		requireProxied(t, w.responder, http.MethodGet, "http://"+address+":80/M")

		w.responder.Reset(nil)
		_, err = (&staple.HTTPFetcher{PublicOnly: true}).Fetch(t.Context(), req)
		require.ErrorContains(t, err, address+" is not a globally reachable address")
		require.Empty(t, methodsAsked(w.responder))
	})
}

func TestTinyproxyFromTheClient(t *testing.T) {
	w := newPeersWorld(t)
	responder := testhttp.NewServer(t, w.responder)
	proxy, err := url.Parse(startTinyproxy(t, ""))
	require.NoError(t, err)
	transport := &http.Transport{Proxy: http.ProxyURL(proxy)}
	t.Cleanup(transport.CloseIdleConnections)
	f := &staple.HTTPFetcher{Client: &http.Client{Transport: transport}}
	cert := w.awkwardLeaf(responder)

	t.Run("GET and POST", func(t *testing.T) {
		_, err := f.Fetch(t.Context(), w.verifiedRequest(cert, responder))
		require.NoError(t, err)
		requireProxied(t, w.responder, http.MethodGet, responder+"/M")
		_, err = f.Fetch(t.Context(), w.verifiedRequest(cert, responder+"?post"))
		require.NoError(t, err)
		requireProxied(t, w.responder, http.MethodPost, responder+"/?post")
	})
	t.Run("what it cannot reach is an error with its status", func(t *testing.T) {
		_, err := f.Fetch(t.Context(), w.verifiedRequest(cert, "http://127.0.0.1:"+peer.FreePort(t)))
		failed, ok := errors.AsType[*staple.HTTPError](err)
		require.True(t, ok, err)
		require.Equal(t, http.StatusInternalServerError, failed.StatusCode)
	})
	t.Run("https, by CONNECT", func(t *testing.T) {
		s := httptest.NewTLSServer(w.responder)
		t.Cleanup(s.Close)
		transport.TLSClientConfig = &tls.Config{RootCAs: s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
		_, err := f.Fetch(t.Context(), w.verifiedRequest(cert, s.URL))
		require.NoError(t, err)
	})
}

// TestAHungHostCostsOthersNothingOnSockets is TestAHungHostCostsOthersNothing without a synctest bubble.
func TestAHungHostCostsOthersNothingOnSockets(t *testing.T) {
	w := newPeersWorld(t)
	w.responder.Set(nil, stapletest.Answer{Delay: 10 * time.Millisecond})
	var hung atomic.Int32
	dead := testhttp.ServeRaw(t, func(conn net.Conn) {
		hung.Add(1)
		_, _ = io.Copy(io.Discard, conn)
	})
	live := testhttp.NewServer(t, w.responder)
	s := w.stapler(func(s *staple.Stapler) { s.Fetcher = new(staple.HTTPFetcher) })
	key := w.leaf().PrivateKey
	var certs []tls.Certificate
	for i := range 1000 {
		certs = append(certs, w.leaf(func(o *stapletest.LeafOptions) {
			o.Names, o.Key = []string{fmt.Sprint(i, ".example.com")}, key.(crypto.Signer)
		},
			withPeersResponder([]string{dead, live}[i%2])))
	}
	began := time.Now()
	config := s.TLSConfig(&tls.Config{Certificates: certs})
	var served int
	for c := range s.Certificates() {
		if c.Status().Leaf.OCSPServer[0] == live {
			require.NoError(t, c.Wait(peersSoon(t)))
			served++
		}
	}
	took := time.Since(began)
	require.Equal(t, 500, served)
	t.Logf("500 certificates at the live host took %v, while %d requests hung at the dead one", took, hung.Load())
	require.Less(t, took, 10*time.Second, "nothing waited for the dead host")
	require.Positive(t, hung.Load())
	runtime.KeepAlive(config)
}
