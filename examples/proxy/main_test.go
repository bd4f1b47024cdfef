package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

const patience = 5 * time.Minute // for what should take a fraction of a second, unless the machine is very busy

// Lines are what a proxy has logged, and can be waited for.
type lines struct {
	mu      sync.Mutex
	all     []string
	changed chan struct{}
}

func newLines() *lines { return &lines{changed: make(chan struct{})} }

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(p))
	close(l.changed)
	l.changed = make(chan struct{})
	return len(p), nil
}

// with returns the lines that contain all parts.
func (l *lines) with(parts ...string) []string {
	found, _ := l.find(parts)
	return found
}

func (l *lines) find(parts []string) (found []string, changed chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.all {
		matches := true
		for _, part := range parts {
			matches = matches && strings.Contains(line, part)
		}
		if matches {
			found = append(found, line)
		}
	}
	return found, l.changed
}

// await waits until n lines contain all parts, and returns the last of them.
func (l *lines) await(t testing.TB, n int, parts ...string) string {
	t.Helper()
	timeout := time.After(patience)
	for {
		found, changed := l.find(parts)
		if len(found) >= n {
			return found[n-1]
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("%d lines with %q, not %d, in:\n%s", len(found), parts, n, strings.Join(l.with(), ""))
		}
	}
}

func pemOf(t testing.TB, cert tls.Certificate) []byte {
	t.Helper()
	if cert.PrivateKey != nil {
		data, err := encode(cert)
		require.NoError(t, err)
		return data
	}
	cert.PrivateKey = stapletest.NewCA(stapletest.CAOptions{}).Key
	data, err := encode(cert)
	require.NoError(t, err)
	return data[:bytes.Index(data, []byte("-----BEGIN PRIVATE KEY"))]
}

// put writes a file in one go.
func put(t testing.TB, name string, data []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(name+".new", data, 0o600))
	require.NoError(t, os.Rename(name+".new", name))
}

// A world has a CA, its responder, a backend, a folder and a proxy.
type world struct {
	*testing.T
	ca        *stapletest.CA
	responder *stapletest.Responder
	server    *httptest.Server // the responder's
	proxy     proxy
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, ca: stapletest.NewCA(stapletest.CAOptions{})}
	w.responder = stapletest.NewResponder(w.ca)
	w.server = httptest.NewServer(w.responder)
	t.Cleanup(w.server.Close)
	w.proxy = proxy{certs: t.TempDir(), backends: make(map[string]*url.URL), poll: 5 * time.Millisecond, wait: time.Hour}
	return w
}

func (w *world) leaf(names ...string) tls.Certificate {
	return w.ca.Leaf(stapletest.LeafOptions{Names: names, Responders: []string{w.server.URL}})
}

func (w *world) put(file string, cert tls.Certificate) {
	w.Helper()
	put(w, filepath.Join(w.proxy.certs, file), pemOf(w, cert))
}

func (w *world) remove(file string) {
	w.Helper()
	require.NoError(w, os.Remove(filepath.Join(w.proxy.certs, file)))
}

// backend starts one for host.
func (w *world) backend(host string, handler http.HandlerFunc) {
	server := httptest.NewServer(handler)
	w.Cleanup(server.Close)
	require.NoError(w, w.proxy.addBackend(host+"="+server.URL))
}

// A running is a proxy that serves.
type running struct {
	*world
	addr, admin string
	log         *lines
	stop        func() // and waits until it has ended
}

func (w *world) start() *running {
	w.Helper()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(w, err)
		return l
	}
	listener, admin := listen(), listen()
	r := &running{world: w, addr: listener.Addr().String(), admin: admin.Addr().String(), log: newLines()}
	p := w.proxy
	p.log = slog.New(slog.NewTextHandler(r.log, nil))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.serve(ctx, listener, admin) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			require.NoError(w, err)
		case <-time.After(patience):
			w.Error("it does not end")
		}
	})
	w.Cleanup(r.stop)
	return r
}

func (w *world) client(name string) *tls.Config {
	return &tls.Config{
		RootCAs:          w.ca.Roots(),
		ServerName:       name,
		VerifyConnection: new(staple.ResponseVerifier).VerifyConnection,
	}
}

func (r *running) handshake(name string) (tls.ConnectionState, error) {
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: patience}, Config: r.client(name)}
	conn, err := dialer.Dial("tcp", r.addr)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState(), nil
}

// serves requires that a handshake with name bring cert, stapled or not.
func (r *running) serves(name string, cert tls.Certificate, stapled bool) {
	r.Helper()
	cs, err := r.handshake(name)
	require.NoError(r, err)
	require.Equal(r, cert.Leaf.SerialNumber, cs.PeerCertificates[0].SerialNumber)
	require.Equal(r, stapled, len(cs.OCSPResponse) > 0)
}

// unknown requires that a handshake with name fail with the alert unrecognized_name.
func (r *running) unknown(name string) {
	r.Helper()
	_, err := r.handshake(name)
	require.True(r, isUnknown(err), "%v", err)
}

func isUnknown(err error) bool {
	return err != nil && strings.HasSuffix(err.Error(), "tls: unrecognized name")
}

// await waits for a line in the log, and until what it tells of is done.
func (r *running) await(n int, parts ...string) {
	r.Helper()
	r.log.await(r, n, parts...)
	r.listing()
}

func (r *running) listing() string {
	r.Helper()
	resp, err := http.Get("http://" + r.admin + "/")
	require.NoError(r, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(r, err)
	require.Equal(r, http.StatusOK, resp.StatusCode)
	require.Regexp(r, "^text/plain", resp.Header.Get("Content-Type"))
	return string(body)
}

// A visitor makes requests of a proxy.
func (r *running) visitor(name string, http2 bool) *http.Client {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, r.addr)
		},
		TLSClientConfig:   r.client(name),
		ForceAttemptHTTP2: http2,
	}
	r.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

func (r *running) do(client *http.Client, req *http.Request) (*http.Response, string) {
	r.Helper()
	resp, err := client.Do(req)
	require.NoError(r, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(r, err)
	return resp, string(body)
}

func (r *running) get(url string) *http.Request {
	req, err := http.NewRequestWithContext(r.Context(), "GET", url, nil)
	require.NoError(r, err)
	return req
}

func TestRoutesByName(t *testing.T) {
	w := newWorld(t)
	type seen struct {
		Backend, Host, URI string
		Header             http.Header
	}
	for _, host := range []string{"a.example", "*.b.example"} {
		w.backend(host, func(rw http.ResponseWriter, r *http.Request) {
			json.NewEncoder(rw).Encode(seen{host, r.Host, r.RequestURI, r.Header})
		})
	}
	w.put("a.pem", w.leaf("a.example", "orphan.example"))
	w.put("b.pem", w.leaf("*.b.example"))
	r := w.start()
	for _, http2 := range []bool{false, true} {
		for _, c := range []struct{ sni, host, backend string }{
			{"a.example", "a.example", "a.example"},
			{"A.Example", "a.EXAMPLE:443", "a.example"},
			{"a.example", "a.example.", "a.example"},
			{"www.b.example", "www.b.example", "*.b.example"},
		} {
			req := r.get("https://a.example/path%2Fto?q=1&r")
			req.Host = c.host
			req.Header.Set("X-Forwarded-For", "8.8.8.8") // a lie
			req.Header.Set("X-Forwarded-Proto", "http")
			resp, body := r.do(r.visitor(c.sni, http2), req)
			require.Equal(t, http.StatusOK, resp.StatusCode)
			require.Equal(t, http2, resp.ProtoMajor == 2)
			require.NotEmpty(t, resp.TLS.OCSPResponse)
			var got seen
			require.NoError(t, json.Unmarshal([]byte(body), &got))
			require.Equal(t, c.backend, got.Backend)
			require.Equal(t, c.host, got.Host)
			require.Equal(t, "/path%2Fto?q=1&r", got.URI)
			require.Equal(t, []string{"127.0.0.1"}, got.Header["X-Forwarded-For"])
			require.Equal(t, []string{"https"}, got.Header["X-Forwarded-Proto"])
			require.Equal(t, []string{c.host}, got.Header["X-Forwarded-Host"])
		}
		for sni, host := range map[string]string{
			"a.example":      "www.b.example",  // let in by another's certificate
			"www.b.example":  "mail.b.example", // the same certificate: still another connection
			"orphan.example": "orphan.example", // which has no backend
		} {
			req := r.get("https://a.example/")
			req.Host = host
			resp, _ := r.do(r.visitor(sni, http2), req)
			require.Equal(t, http.StatusMisdirectedRequest, resp.StatusCode)
		}
	}
	r.unknown("b.example")
	r.unknown("www.a.example")
	r.unknown("127.0.0.1") // for which a client sends no name
	list := r.listing()
	require.Regexp(t, `(?m)^a.pem +serving +until \d{4}-.*Z +a.example orphan.example *$`, list)
	require.Regexp(t, `(?m)^b.pem +serving +until \d{4}-.*Z +\*.b.example *$`, list)
}

func TestADeadBackendIsABadGateway(t *testing.T) {
	w := newWorld(t)
	dead := httptest.NewServer(nil)
	dead.Close()
	require.NoError(t, w.proxy.addBackend("a.example="+dead.URL))
	w.put("a.pem", w.leaf("a.example"))
	r := w.start()
	resp, _ := r.do(r.visitor("a.example", true), r.get("https://a.example/"))
	require.Equal(t, http.StatusBadGateway, resp.StatusCode)
	r.log.await(t, 1, "level=WARN", "proxy error")
}

// TestNoHandshakeFailsWhileCertificatesComeChangeAndGo has clients at work all the time: of a host whose
// certificate is renewed in its file, of one whose renewed certificates come in other files, and of one that
// comes and goes. The responder takes its time about every new certificate.
func TestNoHandshakeFailsWhileCertificatesComeChangeAndGo(t *testing.T) {
	t.Parallel() // for seconds, it waits until files are looked at
	w := newWorld(t)
	w.backend("renewed.example", func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, "hello") })
	slow := stapletest.Answer{Delay: 30 * time.Millisecond}
	w.responder.Set(nil, slow)
	renewed, moved := w.leaf("renewed.example"), w.leaf("moved.example")
	w.put("renewed.pem", renewed)
	w.put("moved-0.pem", moved)
	r := w.start()
	r.await(2, "certificate in service")

	failed := make(chan error, 8)
	var handshakes, refused atomic.Int64
	done := make(chan struct{})
	var clients sync.WaitGroup
	work := func(f func() error) {
		clients.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := f(); err != nil {
					failed <- err
					return
				}
				handshakes.Add(1)
			}
		})
	}
	stapled := func(name string) error {
		cs, err := r.handshake(name)
		if err == nil && len(cs.OCSPResponse) == 0 {
			err = errors.New("not stapled")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
	for range 2 {
		work(func() error { return stapled("renewed.example") })
		work(func() error { return stapled("moved.example") })
		work(func() error {
			err := stapled("coming.example")
			if isUnknown(err) {
				refused.Add(1)
				return nil
			}
			return err
		})
		work(func() error {
			client := r.visitor("renewed.example", false)
			defer client.CloseIdleConnections()
			resp, err := client.Get("https://renewed.example/")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "hello" {
				return fmt.Errorf("%s: %q, %w", resp.Status, body, err)
			}
			return nil
		})
	}

	for i := range 2 {
		renewed, moved, coming := w.leaf("renewed.example"), w.leaf("moved.example"), w.leaf("coming.example")
		w.put("renewed.pem", renewed)
		w.put(fmt.Sprintf("moved-%d.pem", i+1), moved)
		w.remove(fmt.Sprintf("moved-%d.pem", i))
		w.put("coming.pem", coming)
		w.put("broken.pem", tls.Certificate{Certificate: coming.Certificate, PrivateKey: moved.PrivateKey})
		r.await(i+2, "certificate in service", "file=renewed.pem", "stapled=true")
		r.await(1, "certificate in service", fmt.Sprintf("file=moved-%d.pem", i+1), "stapled=true")
		r.await(i+1, "certificate in service", "file=coming.pem", "stapled=true")
		r.await(1, "certificate removed", fmt.Sprintf("file=moved-%d.pem", i))
		r.await(1, "file cannot be used", "file=broken.pem")
		r.serves("renewed.example", renewed, true)
		r.serves("moved.example", moved, true)
		r.serves("coming.example", coming, true)
		w.remove("coming.pem")
		r.await(i+1, "certificate removed", "file=coming.pem")
		r.unknown("coming.example")
	}
	close(done)
	clients.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
	t.Logf("%d handshakes, %d of them for a name that was not there", handshakes.Load(), refused.Load())
	require.Equal(t, 4, strings.Count(r.listing(), "\n"), "the heading, two certificates, and the broken file:\n%s", r.listing())
}

// A new certificate waits for as long as the responder takes, and its predecessor serves meanwhile.
func TestTheOldCertificateServesUntilTheNewOneIsStapled(t *testing.T) {
	t.Parallel() // for seconds, it waits until files are looked at
	w := newWorld(t)
	answer, asked := make(chan struct{}), make(chan struct{}, 100)
	release := sync.OnceFunc(func() { close(answer) })
	gate := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-answer
		w.responder.ServeHTTP(rw, r)
	}))
	defer gate.Close()
	defer release()
	held := w.ca.Leaf(stapletest.LeafOptions{Names: []string{"a.example"}, Responders: []string{gate.URL}})
	old := w.leaf("a.example")
	w.put("a.pem", old)
	r := w.start()
	r.await(1, "certificate in service", "file=a.pem")
	w.put("a.pem", held)
	<-asked
	r.serves("a.example", old, true)
	release()
	r.await(2, "certificate in service", "file=a.pem", "stapled=true")
	r.serves("a.example", held, true)
}

func TestDeadlineWhenTheResponderIsDown(t *testing.T) {
	t.Parallel() // for seconds, it waits until files are looked at
	w := newWorld(t)
	w.proxy.cache = filepath.Join(t.TempDir(), "cache")
	old := w.leaf("a.example")
	w.put("a.pem", old)
	r := w.start()
	r.await(1, "certificate in service", "file=a.pem", "stapled=true")
	r.stop()
	w.server.Close()
	w.proxy.wait = 200 * time.Millisecond
	r = w.start()
	r.await(1, "certificate in service", "file=a.pem", "stapled=true")
	next := w.leaf("a.example")
	w.put("a.pem", next)
	r.await(2, "certificate in service", "file=a.pem")
	r.await(1, "certificate in service", "file=a.pem", "stapled=false")
	r.serves("a.example", next, false)
	require.Contains(t, r.listing(), "connection refused")
}

// What is broken in the folder stops neither the start nor what serves.
func TestBrokenFilesStopNothing(t *testing.T) {
	t.Parallel() // for seconds, it waits until files are looked at
	w := newWorld(t)
	good := w.leaf("a.example")
	name := filepath.Join(w.proxy.certs, "a.pem")
	put(t, filepath.Join(w.proxy.certs, "b.pem"), []byte("garbage"))
	w.put("a.pem", good)
	r := w.start()
	r.await(1, "file cannot be used", "file=b.pem")
	r.serves("a.example", good, true)
	half := pemOf(t, good)
	require.NoError(t, os.WriteFile(name, half[:len(half)/2], 0o600)) // in place, as a careless program does
	for i := range 3 {                                                // each takes two scans at least
		w.put(fmt.Sprintf("marker-%d.pem", i), w.leaf("marker.example"))
		r.await(1, "certificate in service", fmt.Sprintf("marker-%d.pem", i))
	}
	require.Len(t, r.log.with("file cannot be used", "file=b.pem"), 1)
	r.serves("a.example", good, true)
	next := w.leaf("a.example")
	w.put("a.pem", next)
	r.await(2, "certificate in service", "file=a.pem")
	r.serves("a.example", next, true)
}

func TestAFolderThatDisappearsStopsNothing(t *testing.T) {
	t.Parallel() // for seconds, it waits until files are looked at
	w := newWorld(t)
	good := w.leaf("a.example")
	w.put("a.pem", good)
	r := w.start()
	r.await(1, "certificate in service")
	require.NoError(t, os.Rename(w.proxy.certs, w.proxy.certs+".away"))
	r.await(1, "the directory cannot be read")
	for range 20 { // while it is looked at again and again
		r.serves("a.example", good, true)
	}
	require.NoError(t, os.Rename(w.proxy.certs+".away", w.proxy.certs))
	next := w.leaf("a.example")
	w.put("a.pem", next)
	r.await(2, "certificate in service")
	r.serves("a.example", next, true)
	require.Len(t, r.log.with("the directory cannot be read"), 1)
}

// The first handshake of all is stapled, though the responder is down.
func TestARestartStaplesFromTheCache(t *testing.T) {
	w := newWorld(t)
	w.proxy.cache = filepath.Join(t.TempDir(), "cache")
	a, b := w.leaf("a.example"), w.leaf("b.example")
	w.put("a.pem", a)
	w.put("b.pem", b)
	r := w.start()
	r.await(2, "certificate in service", "stapled=true")
	r.stop()
	w.server.Close()
	r = w.start()
	r.serves("a.example", a, true)
	r.serves("b.example", b, true)
}

// Shutting down refuses new connections, and lets the request that runs end; the staple is there until then.
func TestGracefulShutdown(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("http2=", http2), func(t *testing.T) {
			w := newWorld(t)
			arrived, answer := make(chan struct{}), make(chan struct{})
			release := sync.OnceFunc(func() { close(answer) })
			w.backend("a.example", func(rw http.ResponseWriter, r *http.Request) {
				io.WriteString(rw, "begun, ")
				rw.(http.Flusher).Flush()
				close(arrived)
				<-answer
				io.WriteString(rw, "and ended")
			})
			t.Cleanup(release)
			w.put("a.pem", w.leaf("a.example"))
			r := w.start()
			type result struct {
				body string
				err  error
			}
			got := make(chan result, 1)
			client := r.visitor("a.example", http2)
			go func() {
				resp, err := client.Get("https://a.example/")
				if err != nil {
					got <- result{"", err}
					return
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				got <- result{string(body), err}
			}()
			<-arrived
			stopped := make(chan struct{})
			go func() {
				r.stop()
				close(stopped)
			}()
			require.Eventually(t, func() bool {
				conn, err := net.Dial("tcp", r.addr)
				if err == nil {
					conn.Close()
				}
				return err != nil
			}, patience, 5*time.Millisecond)
			select {
			case <-got:
				t.Fatal("the request was cut off")
			case <-stopped:
				t.Fatal("the proxy has not waited for the request")
			default:
			}
			release()
			require.Equal(t, result{"begun, and ended", nil}, <-got)
			client.CloseIdleConnections()
			<-stopped
		})
	}
}

func TestNoGoroutineIsLeft(t *testing.T) {
	w := newWorld(t)
	w.backend("a.example", func(rw http.ResponseWriter, r *http.Request) {})
	w.put("a.pem", w.leaf("a.example"))
	w.put("b.pem", w.leaf("b.example"))
	hung := w.leaf("hung.example")
	w.responder.Set(hung.Leaf, stapletest.Answer{Hang: true})
	before := runtime.NumGoroutine()
	for range 2 {
		r := w.start()
		r.await(2, "certificate in service")
		w.put("hung.pem", hung)
		client := r.visitor("a.example", true)
		r.do(client, r.get("https://a.example/"))
		client.CloseIdleConnections()
		require.Eventually(t, func() bool { return strings.Contains(r.listing(), "waiting") }, patience, 5*time.Millisecond)
		r.stop()
		w.remove("hung.pem")
	}
	http.DefaultClient.CloseIdleConnections()
	w.server.CloseClientConnections()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if runtime.NumGoroutine() <= before { // not with require.Eventually, which has goroutines of its own
			return
		}
	}
	buf := make([]byte, 1<<20)
	t.Fatalf("%d goroutines, not %d:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
}

func TestOnce(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	out := newLines()
	require.NoError(t, run(t.Context(), []string{"-once"}, out))
	require.NotEmpty(t, out.with("stapled: good"))
	require.NotEmpty(t, out.with("the backend for localhost"))
	left, err := os.ReadDir(os.TempDir())
	require.NoError(t, err)
	require.Empty(t, left, "temporary files are removed")
}

func TestServesUntilInterrupted(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out := newLines()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, nil, out) }()
	m := regexp.MustCompile(`curl (http://\S+)`).FindStringSubmatch(out.await(t, 1, "curl http://"))
	resp, err := http.Get(m[1])
	require.NoError(t, err)
	defer resp.Body.Close()
	list, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Regexp(t, `(?m)^localhost.pem +serving +until`, string(list))
	interrupt()
	require.NoError(t, <-ended)
}

func TestPrintedCommandsCanBePasted(t *testing.T) {
	sh := peer.Need(t, "sh")
	peer.Need(t, "curl")
	odd := filepath.Join(t.TempDir(), "it's a folder; $HOME")
	require.NoError(t, os.Mkdir(odd, 0o700))
	t.Setenv("TMPDIR", odd)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out := newLines()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, nil, out) }()
	out.await(t, 1, "curl http://")
	commands := regexp.MustCompile(`(?m)^  (curl .+)$`).FindAllStringSubmatch(strings.Join(out.with(), ""), -1)
	require.Len(t, commands, 2)
	for _, m := range commands {
		text, err := exec.Command(sh, "-c", m[1]).CombinedOutput()
		require.NoError(t, err, "%s\n%s", m[1], text)
		require.Regexp(t, `the backend for localhost|(?m)^localhost.pem +serving`, string(text))
	}
	interrupt()
	require.NoError(t, <-ended)
}

// The flags reach the proxy.
func TestFlags(t *testing.T) {
	w := newWorld(t)
	backend := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, "hello") }))
	defer backend.Close()
	w.put("a.pem", w.leaf("a.example"))
	w.proxy.cache = filepath.Join(t.TempDir(), "cache")
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out := newLines()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"-certs", w.proxy.certs, "-cache", w.proxy.cache, "-backend", "A.example=" + backend.URL}, out)
	}()
	m := regexp.MustCompile(`address=(\S+) admin=http://(\S+)/`).FindStringSubmatch(out.await(t, 1, "msg=serving"))
	r := &running{world: w, addr: m[1], admin: m[2], log: out}
	resp, body := r.do(r.visitor("a.example", true), r.get("https://a.example/"))
	require.Equal(t, "hello", body)
	require.NotEmpty(t, resp.TLS.OCSPResponse)
	require.Contains(t, r.listing(), "serving")
	page, err := http.Get("http://" + r.admin + "/staples/?format=json")
	require.NoError(t, err)
	list, err := io.ReadAll(page.Body)
	page.Body.Close()
	require.NoError(t, err)
	require.Contains(t, string(list), `"a.example"`)
	http.DefaultClient.CloseIdleConnections()
	interrupt()
	require.NoError(t, <-ended)
	cached, err := os.ReadDir(w.proxy.cache)
	require.NoError(t, err)
	require.Len(t, cached, 1)
}

func TestRefusesToStart(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer busy.Close()
	dir := t.TempDir()
	for name, args := range map[string][]string{
		"no backend":                    {"-certs", dir},
		"a backend without a URL":       {"-backend", "a.example"},
		"a backend without a host":      {"-backend", "=http://127.0.0.1"},
		"a backend of another kind":     {"-backend", "a.example=ftp://127.0.0.1"},
		"a backend that does not parse": {"-backend", "a.example=http://%zz"},
		"a folder that is missing":      {"-certs", dir + ".missing", "-backend", "a.example=http://127.0.0.1"},
		"once with a folder":            {"-once", "-certs", dir, "-backend", "a.example=http://127.0.0.1"},
		"no time between polls":         {"-once", "-poll", "0s"},
		"an address in use":             {"-once", "-addr", busy.Addr().String()},
		"an admin address in use":       {"-once", "-admin", busy.Addr().String()},
		"a surplus argument":            {"serve"},
		"an unknown flag":               {"-nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			require.Error(t, run(ctx, args, newLines()))
			require.NoError(t, ctx.Err())
		})
	}
}
