package staple

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"

	"fmt"
	"io"

	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"

	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// startPeer starts a server and waits until it listens on port. The server ends with the test.
func startPeer(t *testing.T, port, path string, args ...string) {
	t.Helper()
	var said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // and its children end, too
	cmd.WaitDelay = 5 * time.Second
	require.NoError(t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() { <-ended })
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-ended:
			require.FailNow(t, "it ended", "%s: %s", cmd, said.String())
		case <-time.After(5 * time.Millisecond):
		}
	}
	require.FailNow(t, "it does not listen", "%s", cmd)
}

func writeFile(t *testing.T, dir, name string, data []byte) string {
	path := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(path, data, 0o600))
	return path
}

func withResponder(url string) func(*stapletest.LeafOptions) {
	return func(o *stapletest.LeafOptions) { o.Responders = []string{url} }
}

// awkwardLeaf returns a leaf whose serial number makes the base64 text of the OCSP request contain
// "//" and "++".
func (w *world) awkwardLeaf(url string) tls.Certificate {
	for i := range 3 {
		serial := slices.Concat(bytes.Repeat([]byte{1}, i+1), bytes.Repeat([]byte{0xfb, 0xef, 0xbe}, 2), bytes.Repeat([]byte{0xff}, 6))
		cert := w.leaf(withResponder(url), func(o *stapletest.LeafOptions) { o.Serial = new(big.Int).SetBytes(serial) })
		der, err := ocsp.CreateRequest(cert.Leaf, w.ca.Issuer, nil)
		require.NoError(w.t, err)
		base, err := parseURL(url)
		require.NoError(w.t, err)
		if get := getURL(base, der); strings.Contains(get, "%2F%2F") && strings.Contains(get, "%2B%2B") {
			return cert
		}
	}
	require.FailNow(w.t, "no serial number does")
	return tls.Certificate{}
}

// A recorder notes what its Transport was asked and what came back, as in "GET 200".
type recorder struct {
	*http.Transport
	mu   sync.Mutex
	seen []string
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.Transport.RoundTrip(req)
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.seen = append(r.seen, fmt.Sprint(req.Method, " ", resp.StatusCode))
	}
	return resp, err
}

// take returns what was seen since the last call.
func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.seen
	r.seen = nil
	return seen
}

// record lets f, which has no Client, note its requests.
func record(t *testing.T, f *HTTPFetcher) *recorder {
	f.own = f.newClient()
	r := &recorder{Transport: f.own.Transport.(*http.Transport)}
	f.own.Transport = r
	t.Cleanup(f.closeIdle)
	return r
}

// verifiedRequest returns a request about cert, at url, that takes what a Stapler takes.
func (w *world) verifiedRequest(cert tls.Certificate, url string) *Request {
	leaf := *cert.Leaf
	leaf.OCSPServer = []string{url}
	return &Request{Leaf: &leaf, Issuer: w.ca.Issuer, Accept: func(der []byte) error {
		_, _, err := new(ResponseVerifier).Verify(der, &leaf, w.ca.Issuer, time.Now())
		return err
	}}
}

// unredirected leaves out the redirects that CFSSL makes wherever the base64 text, which
// differs from run to run, happens to have a double slash.
func unredirected(seen []string) []string {
	return slices.DeleteFunc(seen, func(s string) bool { return s == "GET 301" })
}

func TestCFSSLResponder(t *testing.T) {
	cfssl := peer.Need(t, "cfssl")
	w := newWorld(t)
	dir := t.TempDir()
	port := peer.FreePort(t)
	base := "http://127.0.0.1:" + port

	pemFile := func(name, blockType string, der []byte) string {
		return writeFile(t, dir, name, inPEM(blockType, der))
	}
	keyFile := func(name string, key crypto.Signer) string {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		require.NoError(t, err)
		return pemFile(name, "PRIVATE KEY", der)
	}
	ca, caKey := pemFile("ca.pem", "CERTIFICATE", w.ca.Issuer.Raw), keyFile("ca.key", w.ca.Key)
	delegate := w.ca.Delegate(stapletest.DelegateOptions{})
	delegatePEM, delegateKey := pemFile("delegate.pem", "CERTIFICATE", delegate.Certificate.Raw), keyFile("delegate.key", delegate.Key)
	var responses []string
	sign := func(cert tls.Certificate, responder, key string, args ...string) {
		cmd := exec.CommandContext(t.Context(), cfssl, append([]string{"ocspsign", "-ca", ca, "-responder", responder, "-responder-key", key,
			"-cert", pemFile("leaf.pem", "CERTIFICATE", cert.Leaf.Raw)}, args...)...)
		out, err := cmd.Output()
		require.NoError(t, err)
		var signed struct{ OCSPResponse string }
		require.NoError(t, json.Unmarshal(out, &signed))
		responses = append(responses, signed.OCSPResponse)
	}
	leaf := func(serial string) tls.Certificate {
		return w.leaf(withResponder(base), func(o *stapletest.LeafOptions) { o.Serial = new(big.Int).SetBytes([]byte(serial)) })
	}
	plain, delegated, revoked, awkward := leaf("plain"), leaf("delegated"), leaf("revoked"), w.awkwardLeaf(base)
	sign(plain, ca, caKey, "-interval", "48h")
	sign(awkward, ca, caKey)
	sign(delegated, delegatePEM, delegateKey)
	sign(revoked, ca, caKey, "-status", "revoked", "-reason", "1")
	file := writeFile(t, dir, "responses", []byte(strings.Join(responses, "\n")))
	startPeer(t, port, cfssl, "ocspserve", "-port", port, "-responses", file)

	refusedGET := []string{"GET 400", "POST 200"} // it takes the slash before the base64 text for a part of it
	for _, tt := range []struct {
		name   string
		cert   tls.Certificate
		path   string
		hash   crypto.Hash
		seen   []string
		status int
	}{
		{"it refuses every GET: POST", plain, "", 0, refusedGET, ocsp.Good},
		{"POST", plain, "?post", 0, refusedGET[1:], ocsp.Good},
		{"POST, whatever the path", plain, "/path/?post", 0, refusedGET[1:], ocsp.Good},
		{"a SHA-256 CertID, answered with the SHA-1 one that was signed", plain, "", crypto.SHA256, refusedGET, ocsp.Good},
		{"it redirects from a double slash in the base64 text: POST", awkward, "", 0, []string{"GET 301", "GET 400", "POST 200"}, ocsp.Good},
		{"signed by a delegated responder", delegated, "", 0, refusedGET, ocsp.Good},
		{"revoked", revoked, "", 0, refusedGET, ocsp.Revoked},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &HTTPFetcher{Hash: tt.hash}
			requests := record(t, f)
			req := w.verifiedRequest(tt.cert, base+tt.path)
			der, err := f.Fetch(t.Context(), req)
			require.NoError(t, err)
			seen := requests.take()
			if tt.cert.Leaf != awkward.Leaf {
				seen = unredirected(seen)
			}
			require.Equal(t, tt.seen, seen)
			require.NoError(t, req.Accept(der))
			r, err := ocsp.ParseResponse(der, nil)
			require.NoError(t, err)
			require.Equal(t, tt.status, r.Status)
			require.Equal(t, crypto.SHA1, r.IssuerHash)
			require.Equal(t, tt.cert.Leaf == delegated.Leaf, r.Certificate != nil, "a delegate's certificate is embedded")
		})
	}
	t.Run("a certificate that it does not know is unauthorized, with either hash", func(t *testing.T) {
		f := new(HTTPFetcher)
		requests := record(t, f)
		_, err := f.Fetch(t.Context(), w.verifiedRequest(leaf("unknown"), base))
		status, ok := errors.AsType[ocsp.ResponseError](err)
		require.True(t, ok, err)
		require.Equal(t, ocsp.Unauthorized, status.Status)
		require.Equal(t, slices.Concat(refusedGET, refusedGET), unredirected(requests.take()))
	})
	t.Run("it looks at the serial number alone: the response for another CA's certificate is refused", func(t *testing.T) {
		other := &world{t: t, ca: fetchCA()}
		cert := other.leaf(func(o *stapletest.LeafOptions) { o.Serial = plain.Leaf.SerialNumber })
		_, err := new(HTTPFetcher).Fetch(t.Context(), other.verifiedRequest(cert, base))
		refused, ok := errors.AsType[*VerifyError](err)
		require.True(t, ok, err)
		require.Equal(t, ReasonWrongCertificate, refused.Reason)
	})
	t.Run("it signs from the full hour and for as long as it is told; the file is read once", func(t *testing.T) {
		c := w.add(w.stapler(func(s *Stapler) { s.Fetcher = new(HTTPFetcher) }), plain)
		r := requireStaple(t, c, ocsp.Good)
		require.Equal(t, r.ThisUpdate.Truncate(time.Hour), r.ThisUpdate)
		require.Equal(t, r.ThisUpdate.Add(48*time.Hour), r.NextUpdate)

		responses = nil
		sign(plain, ca, caKey, "-interval", "96h")
		writeFile(t, dir, "responses", []byte(responses[0]))
		require.NoError(t, c.Refresh(soon(t)))
		require.Equal(t, r.Raw, requireStaple(t, c, ocsp.Good).Raw)
	})
}

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

func methods(responder *stapletest.Responder) (all []string) {
	for _, r := range responder.Requests(nil) {
		all = append(all, r.Method)
	}
	return all
}

func TestNginxAsReverseProxy(t *testing.T) {
	w := newWorld(t)
	upstream := newServer(t, w.responder)
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
				_, err := new(HTTPFetcher).Fetch(t.Context(), req)
				require.NoError(t, err)
				require.Equal(t, tt.asks, methods(w.responder))
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
	w := newWorld(t)
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
`, "UPSTREAM", newServer(t, w.responder)))

	// What the cache keeps, what the Stapler holds, and what the responder has by now.
	expired := stapletest.Answer{Age: 48 * time.Hour, Validity: 24 * time.Hour}
	older := stapletest.Answer{Age: 3 * time.Hour}
	held := stapletest.Answer{Age: 2 * time.Hour}
	fresh := stapletest.Answer{Age: time.Hour}
	setup := func(t *testing.T, path string, kept stapletest.Answer, post bool) *Certificate {
		w.responder.Reset(nil)
		cert := w.leaf(withResponder(server + path))
		w.responder.Set(nil, kept)
		prime := &Request{Leaf: cert.Leaf, Issuer: w.ca.Issuer}
		_, err := new(HTTPFetcher).Fetch(t.Context(), prime)
		require.NoError(t, err)
		if post {
			der, err := ocsp.CreateRequest(cert.Leaf, w.ca.Issuer, nil)
			require.NoError(t, err)
			resp, err := http.Post(server+path, "application/ocsp-request", bytes.NewReader(der))
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
		}
		w.responder.Set(nil, held)
		cache := new(MemoryCache)
		require.NoError(t, cache.Put(t.Context(), cacheKeyOf(cert.Leaf), w.responder.Response(cert.Leaf)))
		w.responder.Reset(nil)
		w.responder.Set(nil, fresh)
		c := w.add(w.stapler(func(s *Stapler) { s.Fetcher, s.Cache = new(HTTPFetcher), cache }), cert)
		requireAge(t, c, held)
		require.Empty(t, methods(w.responder))
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
				require.NoError(t, c.Refresh(soon(t)))
				requireAge(t, c, fresh)
				require.Equal(t, tt.asks, methods(w.responder))
			})
		}
	}
	t.Run("what no-cache has refreshed is kept for others", func(t *testing.T) {
		c := setup(t, "/bypass/", expired, false)
		require.NoError(t, c.Refresh(soon(t)))
		_, err := new(HTTPFetcher).Fetch(t.Context(), w.verifiedRequest(*c.TLS(), server+"/bypass/"))
		require.NoError(t, err)
		require.Equal(t, []string{"GET"}, methods(w.responder))
	})
	t.Run("nothing gets past a cache that has old answers to both; what is held is served on", func(t *testing.T) {
		c := setup(t, "/both/", expired, true)
		err := c.Refresh(soon(t))
		refused, ok := errors.AsType[*VerifyError](err)
		require.True(t, ok, err)
		require.Equal(t, ReasonExpired, refused.Reason)
		requireAge(t, c, held)
		require.Empty(t, methods(w.responder))
	})
	t.Run("a cache that mixes up POSTs gives another certificate's response, which is refused", func(t *testing.T) {
		setup(t, "/mixed/", expired, true)
		c := setup(t, "/mixed/", expired, false)
		err := c.Refresh(soon(t))
		require.ErrorContains(t, err, "refused: it is about the certificate with serial")
		requireAge(t, c, held)
		require.Empty(t, methods(w.responder))
	})
}

// requireAge requires that c's staple is the one that a was the Answer for, a few seconds ago.
func requireAge(t *testing.T, c *Certificate, a stapletest.Answer) {
	t.Helper()
	require.WithinDuration(t, time.Now().Add(-a.Age), requireStaple(t, c, ocsp.Good).ThisUpdate, 30*time.Minute)
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
	if !asChild() { // net/http reads the environment once
		peer.Need(t, "tinyproxy")
		cmd := child(t)
		cmd.Args = append(cmd.Args, "-test.v")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Contains(t, string(out), "--- PASS: "+t.Name())
		return
	}
	w := newWorld(t)
	const name, address = "ocsp.test", "198.51.100.1"
	proxy := startTinyproxy(t, newServer(t, w.responder), name, address)
	for _, v := range []string{"HTTP_PROXY", "http_proxy"} {
		t.Setenv(v, proxy)
	}
	cert := w.awkwardLeaf("http://" + name)

	t.Run("a name that only the proxy knows, by GET and POST", func(t *testing.T) {
		c := w.add(w.stapler(func(s *Stapler) { s.Fetcher = new(HTTPFetcher) }), cert)
		requireStaple(t, c, ocsp.Good)
		requireProxied(t, w.responder, http.MethodGet, "http://"+name+":80/M")

		_, err := new(HTTPFetcher).Fetch(t.Context(), w.verifiedRequest(cert, "http://"+name+"/path?post"))
		require.NoError(t, err)
		requireProxied(t, w.responder, http.MethodPost, "http://"+name+":80/path?post")
	})
	t.Run("PublicOnly does not use it", func(t *testing.T) {
		req := w.verifiedRequest(cert, "http://"+address)
		_, err := new(HTTPFetcher).Fetch(t.Context(), req)
		require.NoError(t, err)
		requireProxied(t, w.responder, http.MethodGet, "http://"+address+":80/M")

		w.responder.Reset(nil)
		_, err = (&HTTPFetcher{PublicOnly: true}).Fetch(t.Context(), req)
		require.ErrorContains(t, err, address+" is not a globally reachable address")
		require.Empty(t, methods(w.responder))
	})
}

func TestTinyproxyFromTheClient(t *testing.T) {
	w := newWorld(t)
	responder := newServer(t, w.responder)
	proxy, err := url.Parse(startTinyproxy(t, ""))
	require.NoError(t, err)
	transport := &http.Transport{Proxy: http.ProxyURL(proxy)}
	t.Cleanup(transport.CloseIdleConnections)
	f := &HTTPFetcher{Client: &http.Client{Transport: transport}}
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
		failed, ok := errors.AsType[*HTTPError](err)
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
	w := newWorld(t)
	w.responder.Set(nil, stapletest.Answer{Delay: 10 * time.Millisecond})
	var hung atomic.Int32
	dead := serveHostile(t, func(conn net.Conn) {
		hung.Add(1)
		_, _ = io.Copy(io.Discard, conn)
	})
	live := newServer(t, w.responder)
	s := w.stapler(func(s *Stapler) { s.Fetcher = new(HTTPFetcher) })
	key := w.leaf().PrivateKey
	var certs []tls.Certificate
	for i := range 1000 {
		certs = append(certs, w.leaf(names(fmt.Sprint(i, ".example.com")), sameKey(key), withResponder([]string{dead, live}[i%2])))
	}
	began := time.Now()
	config := s.TLSConfig(&tls.Config{Certificates: certs})
	var served int
	for c := range s.Certificates() {
		if c.Status().Leaf.OCSPServer[0] == live {
			require.NoError(t, c.Wait(soon(t)))
			served++
		}
	}
	took := time.Since(began)
	require.Equal(t, 500, served)
	t.Logf("500 certificates at the live host took %v, while %d requests hung at the dead one", took, hung.Load())
	require.Less(t, took, defaultRequestTimeout, "nothing waited for the dead host")
	require.Positive(t, hung.Load())
	runtime.KeepAlive(config)
}
