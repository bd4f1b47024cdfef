package whole

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
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
	"github.com/go-staple/staple/internal/world"
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
	startPeer(t, port, nginx, "-p", dir, "-e", "stderr", "-c", writeFile(t, dir, "nginx.conf", []byte(conf)))
	return "http://127.0.0.1:" + port
}

func methodsAsked(responder *stapletest.Responder) (all []string) {
	for _, r := range responder.Requests(nil) {
		all = append(all, r.Method)
	}
	return all
}

func TestNginxAsReverseProxy(t *testing.T) {
	w := world.New(t)
	upstream := testhttp.NewServer(t, w.Responder)
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
				w.Responder.Reset(nil)
				cert := awkwardLeaf(w, server+tt.path)
				req := verifiedRequest(w, cert, server+tt.path)
				_, err := new(staple.HTTPFetcher).Fetch(t.Context(), req)
				require.NoError(t, err)
				require.Equal(t, tt.asks, methodsAsked(w.Responder))
				if tt.asks[0] == "GET" {
					asked := w.Responder.Requests(nil)[0].URL
					require.Equal(t, len(tt.asks) == 1, strings.Contains(asked, "%2F%2F"), asked)
					require.Equal(t, len(tt.asks) > 1 && slashes == "off", strings.Contains(asked[len("http://"):], "//"), asked)
				}
			})
		}
	}
}

func TestNginxAsCache(t *testing.T) {
	w := world.New(t)
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
`, "UPSTREAM", testhttp.NewServer(t, w.Responder)))

	// What the cache keeps, what the staple.Stapler holds, and what the responder has by now.
	expired := stapletest.Answer{Age: 48 * time.Hour, Validity: 24 * time.Hour}
	older := stapletest.Answer{Age: 3 * time.Hour}
	held := stapletest.Answer{Age: 2 * time.Hour}
	fresh := stapletest.Answer{Age: time.Hour}
	setup := func(t *testing.T, path string, kept stapletest.Answer, post bool) *staple.Certificate {
		w.Responder.Reset(nil)
		cert := w.Leaf(world.Responders(server + path))
		w.Responder.Set(nil, kept)
		prime := &staple.Request{Leaf: cert.Leaf, Issuer: w.CA.Issuer}
		_, err := new(staple.HTTPFetcher).Fetch(t.Context(), prime)
		require.NoError(t, err)
		if post {
			der, err := ocsp.CreateRequest(cert.Leaf, w.CA.Issuer, nil)
			require.NoError(t, err)
			resp, err := http.Post(server+path, "application/ocsp-request", bytes.NewReader(der))
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
		}
		w.Responder.Set(nil, held)
		cache := new(staple.MemoryCache)
		require.NoError(t, cache.Put(t.Context(), world.CacheKey(cert.Leaf), w.Responder.Response(cert.Leaf)))
		w.Responder.Reset(nil)
		w.Responder.Set(nil, fresh)
		c := w.Add(w.Stapler(func(s *staple.Stapler) { s.Fetcher, s.Cache = new(staple.HTTPFetcher), cache }), cert)
		requireAge(t, c, held)
		require.Empty(t, methodsAsked(w.Responder))
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
				require.NoError(t, c.Refresh(world.Soon(t)))
				requireAge(t, c, fresh)
				require.Equal(t, tt.asks, methodsAsked(w.Responder))
			})
		}
	}
	t.Run("what no-cache has refreshed is kept for others", func(t *testing.T) {
		c := setup(t, "/bypass/", expired, false)
		require.NoError(t, c.Refresh(world.Soon(t)))
		_, err := new(staple.HTTPFetcher).Fetch(t.Context(), verifiedRequest(w, *c.TLS(), server+"/bypass/"))
		require.NoError(t, err)
		require.Equal(t, []string{"GET"}, methodsAsked(w.Responder))
	})
	t.Run("nothing gets past a cache that has old answers to both; what is held is served on", func(t *testing.T) {
		c := setup(t, "/both/", expired, true)
		err := c.Refresh(world.Soon(t))
		refused, ok := errors.AsType[*staple.VerifyError](err)
		require.True(t, ok, err)
		require.Equal(t, staple.ReasonExpired, refused.Reason)
		requireAge(t, c, held)
		require.Empty(t, methodsAsked(w.Responder))
	})
	t.Run("a cache that mixes up POSTs gives another certificate's response, which is refused", func(t *testing.T) {
		setup(t, "/mixed/", expired, true)
		c := setup(t, "/mixed/", expired, false)
		err := c.Refresh(world.Soon(t))
		require.ErrorContains(t, err, "refused: it is about the certificate with serial")
		requireAge(t, c, held)
		require.Empty(t, methodsAsked(w.Responder))
	})
}

// requireAge requires that c's staple is the one that a was the Answer for, a few seconds ago.
func requireAge(t *testing.T, c *staple.Certificate, a stapletest.Answer) {
	t.Helper()
	require.WithinDuration(t, time.Now().Add(-a.Age), world.RequireStaple(t, c, ocsp.Good).ThisUpdate, 30*time.Minute)
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
	startPeer(t, port, tinyproxy, "-d", "-c", writeFile(t, t.TempDir(), "tinyproxy.conf", []byte(conf)))
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
	if !world.IsChild() { // net/http reads the environment once
		peer.Need(t, "tinyproxy")
		world.RequirePass(t, world.Child(t))
		return
	}
	w := world.New(t)
	const name, address = "ocsp.test", "198.51.100.1"
	proxy := startTinyproxy(t, testhttp.NewServer(t, w.Responder), name, address)
	for _, v := range []string{"HTTP_PROXY", "http_proxy"} {
		t.Setenv(v, proxy)
	}
	cert := awkwardLeaf(w, "http://"+name)

	t.Run("a name that only the proxy knows, by GET and POST", func(t *testing.T) {
		c := w.Add(w.Stapler(overSockets), cert)
		world.RequireStaple(t, c, ocsp.Good)
		requireProxied(t, w.Responder, http.MethodGet, "http://"+name+":80/M")

		_, err := new(staple.HTTPFetcher).Fetch(t.Context(), verifiedRequest(w, cert, "http://"+name+"/path?post"))
		require.NoError(t, err)
		requireProxied(t, w.Responder, http.MethodPost, "http://"+name+":80/path?post")
	})
	t.Run("PublicOnly does not use it", func(t *testing.T) {
		req := verifiedRequest(w, cert, "http://"+address)
		_, err := new(staple.HTTPFetcher).Fetch(t.Context(), req)
		require.NoError(t, err)
		requireProxied(t, w.Responder, http.MethodGet, "http://"+address+":80/M")

		w.Responder.Reset(nil)
		_, err = (&staple.HTTPFetcher{PublicOnly: true}).Fetch(t.Context(), req)
		require.ErrorContains(t, err, address+" is not a globally reachable address")
		require.Empty(t, methodsAsked(w.Responder))
	})
}

func TestTinyproxyFromTheClient(t *testing.T) {
	w := world.New(t)
	responder := testhttp.NewServer(t, w.Responder)
	proxy, err := url.Parse(startTinyproxy(t, ""))
	require.NoError(t, err)
	transport := &http.Transport{Proxy: http.ProxyURL(proxy)}
	t.Cleanup(transport.CloseIdleConnections)
	f := &staple.HTTPFetcher{Client: &http.Client{Transport: transport}}
	cert := awkwardLeaf(w, responder)

	t.Run("GET and POST", func(t *testing.T) {
		_, err := f.Fetch(t.Context(), verifiedRequest(w, cert, responder))
		require.NoError(t, err)
		requireProxied(t, w.Responder, http.MethodGet, responder+"/M")
		_, err = f.Fetch(t.Context(), verifiedRequest(w, cert, responder+"?post"))
		require.NoError(t, err)
		requireProxied(t, w.Responder, http.MethodPost, responder+"/?post")
	})
	t.Run("what it cannot reach is an error with its status", func(t *testing.T) {
		_, err := f.Fetch(t.Context(), verifiedRequest(w, cert, "http://127.0.0.1:"+peer.FreePort(t)))
		failed, ok := errors.AsType[*staple.HTTPError](err)
		require.True(t, ok, err)
		require.Equal(t, http.StatusInternalServerError, failed.StatusCode)
	})
	t.Run("https, by CONNECT", func(t *testing.T) {
		s := httptest.NewTLSServer(w.Responder)
		t.Cleanup(s.Close)
		transport.TLSClientConfig = &tls.Config{RootCAs: s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
		_, err := f.Fetch(t.Context(), verifiedRequest(w, cert, s.URL))
		require.NoError(t, err)
	})
}

// TestAHungHostCostsOthersNothingOnSockets is TestAHungHostCostsOthersNothing without a synctest bubble.
func TestAHungHostCostsOthersNothingOnSockets(t *testing.T) {
	w := world.New(t)
	w.Responder.Set(nil, stapletest.Answer{Delay: 10 * time.Millisecond})
	var hanging, most, answered atomic.Int32
	dead := testhttp.ServeRaw(t, func(conn net.Conn) {
		hanging.Add(1)
		defer hanging.Add(-1)
		testhttp.Hangs(conn)
	})
	live := testhttp.NewServer(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if n := hanging.Load(); answered.Add(1) < 450 && n > most.Load() { // while others wait for their turn here
			most.Store(n)
		}
		w.Responder.ServeHTTP(rw, r)
	}))
	s := w.Stapler(overSockets)
	key := w.Leaf().PrivateKey
	var certs []tls.Certificate
	for i := range 1000 {
		certs = append(certs, w.Leaf(world.Names(fmt.Sprint(i, ".example.com")), world.SameKey(key), world.Responders([]string{dead, live}[i%2])))
	}
	config := s.TLSConfig(&tls.Config{Certificates: certs})
	var served int
	for c := range s.Certificates() {
		if c.Status().Leaf.OCSPServer[0] == live {
			require.NoError(t, c.Wait(world.Soon(t)))
			served++
		}
	}
	require.Equal(t, 500, served)
	t.Logf("while 500 certificates at the live host were stapled, at most %d requests at once hung at the dead one", most.Load())
	require.Positive(t, most.Load())
	require.Less(t, most.Load(), int32(16), "all workers")
	runtime.KeepAlive(config)
}
