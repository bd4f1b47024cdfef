package staple

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unsafe"

	"github.com/go-staple/staple/internal/exchange"
	"github.com/go-staple/staple/internal/schedule"
	"github.com/go-staple/staple/internal/testhttp"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// What tests outside of the package need of its inside.

// ErrOlder is for tests.
var ErrOlder = errOlder

// MadeClient reports whether f has a client of its own, for tests.
func (f *HTTPFetcher) MadeClient() bool { return f.own != nil }

// Remembered returns how many responders f remembers, for tests.
func (f *HTTPFetcher) Remembered() int { return f.responders.Len() }

// LockEngine takes the lock of the engine, for tests.
func (s *Stapler) LockEngine() (unlock func()) {
	s.engine.mu.Lock()
	return s.engine.mu.Unlock
}

// Indexes returns how many indexes there are over certificates of configurations that came anew with a connection,
// for tests.
func (s *Stapler) Indexes() int { return s.engine.wrapped.arrays.Len() }

// Released returns how many configurations are gone and not yet forgotten, for tests.
func (s *Stapler) Released() int { return s.engine.wrapped.released.Len() }

func TestARefusedResponseIsTheCertificatesFault(t *testing.T) {
	for _, err := range []error{&VerifyError{Reason: ReasonBadSignature, Err: errors.New("forged")}, errUnknown, errOlder} {
		a := &HTTPError{URL: "http://a.example", StatusCode: 200, Err: fmt.Errorf("GET: %w", err)}
		answers := faults.Answers(errors.Join(io.EOF, a))
		require.Len(t, answers, 1)
		require.Equal(t, schedule.Certificate, answers[0].Fault)
		require.Equal(t, a, answers[0].Err)
	}
}

var faultsCA = sync.OnceValue(func() *stapletest.CA { return stapletest.NewCA(stapletest.CAOptions{Intermediate: true}) })

// faultsOf returns the faults in what Fetch says about a leaf with these responders.
func faultsOf(t *testing.T, ctx context.Context, f *HTTPFetcher, accept func([]byte) error, urls ...string) (all []schedule.Fault) {
	ca := faultsCA()
	leaf := ca.Leaf(stapletest.LeafOptions{Responders: urls}).Leaf
	_, err := f.Fetch(ctx, &Request{Leaf: leaf, Issuer: ca.Issuer, Accept: accept})
	require.Error(t, err)
	for _, a := range faults.Answers(err) {
		require.Contains(t, urls, a.URL)
		all = append(all, a.Fault)
	}
	return all
}

func TestFaultsOfHTTPFetcher(t *testing.T) {
	good := stapletest.NewResponder(faultsCA())
	status := testhttp.RepliesStatus
	says := testhttp.RepliesOCSP
	later := func(status int) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "60")
			w.WriteHeader(status)
		})
	}
	reset := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	raw := func(text string) string { return testhttp.ServeRaw(t, testhttp.Says(text)) }
	page := testhttp.Replies(200, "text/html", "<html>")
	refuses := func([]byte) error { return errors.New("of whatever kind") }
	for _, tt := range []struct {
		name     string
		handlers []http.Handler // in turn
		url      string         // where there is none
		accept   func([]byte) error
		want     schedule.Fault
	}{
		{name: "no connection", url: testhttp.ClosedServer(), want: schedule.Host},
		{name: "no TLS", url: "https" + strings.TrimPrefix(raw("HTTP/1.1 200 OK\r\n\r\n"), "http"), want: schedule.Host},
		{name: "no byte", url: raw(""), want: schedule.Host},
		{name: "no HTTP", url: raw("SSH-2.0-OpenSSH_9.9\r\n"), want: schedule.CA},
		{name: "a header cut short", url: raw(testhttp.OK), want: schedule.CA},
		{name: "a body cut short", url: raw(testhttp.OK + "Content-Length: 9\r\n\r\nx"), want: schedule.CA},
		{name: "a web page", handlers: []http.Handler{page}, want: schedule.CA},
		{name: "a redirect to where nobody listens", want: schedule.CA,
			handlers: []http.Handler{http.RedirectHandler(testhttp.ClosedServer(), http.StatusFound)}},
		{name: "a redirect loop", handlers: []http.Handler{http.RedirectHandler("/", http.StatusFound)}, want: schedule.CA},
		{name: "500", handlers: []http.Handler{status(500)}, want: schedule.CA},
		{name: "501 to GET and POST", handlers: []http.Handler{status(501)}, want: schedule.CA},
		{name: "503", handlers: []http.Handler{status(503)}, want: schedule.CA},
		{name: "503 with Retry-After", handlers: []http.Handler{later(503)}, want: schedule.URL},
		{name: "429", handlers: []http.Handler{status(429)}, want: schedule.URL},
		{name: "404", handlers: []http.Handler{status(404)}, want: schedule.Certificate},
		{name: "tryLater", handlers: []http.Handler{says(ocsp.TryLaterErrorResponse)}, want: schedule.CA},
		{name: "unauthorized", handlers: []http.Handler{says(ocsp.UnauthorizedErrorResponse)}, want: schedule.Certificate},
		{name: "refused", handlers: []http.Handler{good}, accept: refuses, want: schedule.Certificate},

		{name: "GET 404, POST 503", handlers: []http.Handler{status(404), status(503)}, want: schedule.CA},
		{name: "GET 404 with Retry-After, POST 503", handlers: []http.Handler{later(404), status(503)}, want: schedule.CA},
		{name: "GET 404, POST 503 with Retry-After", handlers: []http.Handler{status(404), later(503)}, want: schedule.URL},
		{name: "GET a web page, POST 404", handlers: []http.Handler{page, status(404)}, want: schedule.Certificate},
		{name: "GET 404, POST a web page", handlers: []http.Handler{status(404), page}, want: schedule.CA},
		{name: "GET 404, POST without an answer", handlers: []http.Handler{status(404), reset}, want: schedule.Host},
		{name: "GET a web page, POST refused", handlers: []http.Handler{page, good}, accept: refuses, want: schedule.Certificate},
		{name: "unauthorized with one hash, tryLater with the other", want: schedule.CA,
			handlers: []http.Handler{says(ocsp.UnauthorizedErrorResponse), says(ocsp.TryLaterErrorResponse)}},
		{name: "malformedRequest with both hashes, POST 404", want: schedule.Certificate,
			handlers: []http.Handler{says(ocsp.MalformedRequestErrorResponse), says(ocsp.MalformedRequestErrorResponse), status(404)}},
		{name: "unauthorized with one hash, no answer with the other", want: schedule.Host,
			handlers: []http.Handler{says(ocsp.UnauthorizedErrorResponse), reset}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url := tt.url
			if url == "" {
				url = testhttp.NewScripted(t, tt.handlers...).URL
			}
			f := new(HTTPFetcher)
			t.Cleanup(f.CloseIdleConnections)
			require.Equal(t, []schedule.Fault{tt.want}, faultsOf(t, t.Context(), f, tt.accept, url))
		})
	}
	t.Run("a URL that cannot be asked", func(t *testing.T) {
		url := testhttp.NewServer(t, status(404))
		require.Equal(t, []schedule.Fault{schedule.NoFault, schedule.Certificate}, faultsOf(t, t.Context(), new(HTTPFetcher), nil, "ldap://a.example", url))
	})
	t.Run("a request that cannot be made", func(t *testing.T) {
		require.Equal(t, []schedule.Fault{schedule.NoFault}, faultsOf(t, t.Context(), &HTTPFetcher{Hash: crypto.MD5}, nil, "http://127.0.0.1:1"))
	})
	t.Run("another hash for which none can be made", func(t *testing.T) {
		url := testhttp.NewServer(t, status(500))
		require.Equal(t, []schedule.Fault{schedule.CA}, faultsOf(t, t.Context(), &HTTPFetcher{Hash: crypto.SHA384}, nil, url))
	})

	hangs := &http.Client{Transport: testhttp.RoundTripper(func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, context.Cause(r.Context())
	})}
	t.Run("the caller gives up", func(t *testing.T) {
		for _, cause := range []error{nil, errors.New("for a reason of its own")} {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(time.Second, func() { cancel(cause) })
				require.Equal(t, []schedule.Fault{schedule.NoFault, schedule.NoFault}, faultsOf(t, ctx, &HTTPFetcher{Client: hangs}, nil, "http://a.example", "http://b.example"))
			})
		}
	})
	t.Run("the time is up: the first, a second one that had its share, and one that comes too late", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			require.Equal(t, []schedule.Fault{schedule.Host, schedule.Host}, faultsOf(t, ctx, &HTTPFetcher{Client: hangs}, nil, "http://a.example", "http://b.example"))
			require.Equal(t, []schedule.Fault{schedule.NoFault}, faultsOf(t, ctx, &HTTPFetcher{Client: hangs}, nil, "http://a.example"))
		})
	})
}

func TestFaultOfFetchIssuerWhereTheCallerGivesUp(t *testing.T) {
	f := &HTTPFetcher{Client: &http.Client{Transport: testhttp.RoundTripper(func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, context.Cause(r.Context())
	})}}
	leaf := faultsCA().Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}, IssuerURLs: []string{"http://ca.example"}}).Leaf
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(errors.New("for a reason of its own")) })
		_, err := f.FetchIssuer(ctx, leaf)
		answers := faults.Answers(err)
		require.Len(t, answers, 1)
		require.Equal(t, schedule.NoFault, answers[0].Fault)
	})
}

func TestFaultsOfFetchIssuer(t *testing.T) {
	for _, tt := range []struct {
		name, url string
		want      schedule.Fault
	}{
		{"no connection", testhttp.ClosedServer(), schedule.Host},
		{"404", testhttp.NewServer(t, testhttp.RepliesStatus(404)), schedule.URL},
		{"500", testhttp.NewServer(t, testhttp.RepliesStatus(500)), schedule.URL},
		{"429", testhttp.NewServer(t, testhttp.RepliesStatus(429)), schedule.URL},
		{"a web page", testhttp.NewServer(t, testhttp.Replies(200, "text/html", "<html>")), schedule.URL},
		{"somebody else", testhttp.NewServer(t, testhttp.Replies(200, "application/pkix-cert", string(faultsCA().Root.Raw))), schedule.Certificate},
		{"not HTTP", testhttp.ServeRaw(t, testhttp.Says("SSH-2.0-OpenSSH_9.9\r\n")), schedule.URL},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leaf := faultsCA().Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}, IssuerURLs: []string{tt.url, "ldap:///CN=CA"}}).Leaf
			_, err := new(HTTPFetcher).FetchIssuer(t.Context(), leaf)
			answers := faults.Answers(err)
			require.Len(t, answers, 2)
			require.Equal(t, tt.url, answers[0].URL)
			require.Equal(t, tt.want, answers[0].Fault)
			require.Equal(t, schedule.NoFault, answers[1].Fault)
		})
	}
}

func TestAStateIsTheFirstWordThatFits(t *testing.T) {
	now := time.Now()
	failed := errors.New("failed")
	held := Status{Stapled: true, ThisUpdate: now.Add(-2 * time.Hour), Expires: now.Add(2 * time.Hour)}
	for _, tt := range []struct {
		name   string
		edit   func(*Status)
		ending bool
		want   State
		word   string
	}{
		{"stapled", func(*Status) {}, false, StateStapled, "stapled"},
		{"the last round failed", func(s *Status) { s.Failures, s.Err = 1, failed }, false, StateFailing, "failing"},
		{"it ends soon", func(*Status) {}, true, StateExpiring, "expiring"},
		{"it ends soon, and the last round failed", func(s *Status) { s.Failures, s.Err = 3, failed }, true, StateExpiring, "expiring"},
		{"it ends soon, and nobody is to be asked", func(s *Status) { s.Err = errExpired }, true, StateStapled, "stapled"},
		{"came with the certificate, whose issuer is not known", func(s *Status) { *s = Status{Stapled: true} }, false, StateStapled, "stapled"},
		{"ended", func(s *Status) { s.Stapled, s.Expires = false, now }, false, StateUnstapled, "unstapled"},
		{"no issuer", func(s *Status) { *s = Status{Err: ErrNoIssuer, Failures: 1} }, false, StateUnstapled, "unstapled"},
		{"nothing yet", func(s *Status) { *s = Status{} }, false, StateWaiting, "waiting"},
		{"nobody to ask", func(s *Status) { *s = Status{Err: ErrNoResponder} }, false, StateNoResponder, "no-responder"},
		{"Must-Staple, nothing yet", func(s *Status) { *s = Status{MustStaple: true} }, false, StateMustStapleMissing, "must-staple-missing"},
		{"Must-Staple, nobody to ask", func(s *Status) { *s = Status{MustStaple: true, Err: ErrNoResponder} }, false, StateMustStapleMissing, "must-staple-missing"},
		{"Must-Staple, stapled", func(s *Status) { s.MustStaple = true }, false, StateStapled, "stapled"},
		{"revoked", func(s *Status) { s.Revoked, s.Stapled = true, false }, false, StateRevoked, "revoked"},
		{"revoked, Must-Staple", func(s *Status) { s.Revoked, s.Stapled, s.MustStaple = true, false, true }, false, StateRevoked, "revoked"},
		{"revoked, stapled, and it ends soon", func(s *Status) { s.Revoked = true }, true, StateRevoked, "revoked"},
		{"expired", func(s *Status) {
			*s = Status{Err: errExpired, Leaf: &x509.Certificate{NotAfter: now.Add(-time.Minute)}}
		}, false, StateExpired, "expired"},
		{"expired, and revoked before", func(s *Status) { *s = Status{Revoked: true, Leaf: &x509.Certificate{NotAfter: now.Add(-time.Minute)}} }, false, StateExpired, "expired"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			st := held
			tt.edit(&st)
			if st.Leaf == nil {
				st.Leaf = &x509.Certificate{NotAfter: now.Add(7 * 24 * time.Hour)}
			}
			require.Equal(t, tt.want, st.state(tt.ending, now))
			require.Equal(t, tt.word, tt.want.String())
		})
	}
	require.Equal(t, "State(0)", State(0).String())
	require.Equal(t, "State(12)", (StateNoResponder + 1).String())
}

// What a handshake reads of a handle would lie in two cache lines otherwise.
func TestAHandleTakesOneCacheLine(t *testing.T) {
	require.LessOrEqual(t, unsafe.Sizeof(Certificate{}), uintptr(64))
	require.Zero(t, unsafe.Offsetof(Certificate{}.slot))
}

// FuzzFetch has a responder that says first on the first connection and then on all others, and perhaps goes on saying the
// end of it. Whatever that is, it costs little to read, and what comes of it is a response or a decent error.
func FuzzFetch(f *testing.F) {
	log.SetOutput(io.Discard) // to which net/http tells what comes unasked
	f.Cleanup(func() { log.SetOutput(os.Stderr) })
	ca := faultsCA()
	leaf := ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example/path"}}).Leaf
	der := string(stapletest.NewResponder(ca).Response(leaf))
	sized := func(header, body string) string {
		return fmt.Sprintf("%s\r\nContent-Length: %d\r\n\r\n%s", header, len(body), body)
	}
	good := sized("HTTP/1.1 200 OK", der)
	var compressed bytes.Buffer
	z := gzip.NewWriter(&compressed)
	z.Write([]byte(der))
	z.Close()
	for _, first := range []string{
		good,
		"HTTP/1.0 200 OK\r\n\r\n" + der,
		fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x;a=b\r\n%s\r\n%x\r\n%s\r\n0\r\nX: y\r\n\r\n", 9, der[:9], len(der)-9, der[9:]),
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
		sized("HTTP/1.1 200 OK\r\nContent-Encoding: gzip", compressed.String()),
		sized("HTTP/1.1 200 OK", "<html>\x1b[2J\u202e"),
		sized("HTTP/1.1 200 OK", ""),
		sized("HTTP/1.1 200 OK", string(ocsp.TryLaterErrorResponse)),
		sized("HTTP/1.1 200 OK", string(ocsp.UnauthorizedErrorResponse)),
		sized("HTTP/1.1 400 No", string(ocsp.MalformedRequestErrorResponse)),
		"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + der,
		"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + der,
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n" + der,
		sized("HTTP/1.1 404 Not Found\r\nRetry-After: 60", "no"),
		sized("HTTP/1.1 429 No\r\nRetry-After: 99999999999999999999", ""),
		sized("HTTP/1.1 503 No\r\nRetry-After: Fri, 31 Dec 9999 23:59:59 GMT", ""),
		sized("HTTP/1.1 503 No\r\nRetry-After: -5", ""),
		sized("HTTP/1.1 500 \x1b[31m\r\nContent-Type: a\tb", ""),
		"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n",
		"HTTP/1.1 307 Found\r\nLocation: https://user:secret@elsewhere.example/#x\r\n\r\n",
		"HTTP/1.1 308 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
		"HTTP/1.1 302 Found\r\nLocation: http://[::1%25\u202e]:99999/\r\n\r\n",
		"HTTP/1.1 301 Found\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + good,
		"HTTP/1.1 103 Early Hints\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" + der,
		"HTTP/1.1 200 OK\r\nX: y\r\n",
		"HTTP/1.1 999\r\n\r\n",
		"HTTP/2.0 200 OK\r\n\r\n",
		"SSH-2.0-OpenSSH_9.9\r\n",
		"",
	} {
		f.Add([]byte(first), []byte(good), false)
		f.Add([]byte(first), []byte(first), true)
	}
	f.Fuzz(func(t *testing.T, first, then []byte, endless bool) {
		synctest.Test(t, func(t *testing.T) { // for what hangs
			var connections, read atomic.Int64
			dial := testhttp.Piped(t, func(conn net.Conn) {
				says := then
				if connections.Add(1) == 1 {
					says = first
				}
				_, err := conn.Write(says)
				for end := says[max(0, len(says)-1000):]; endless && len(end) > 0 && err == nil; {
					_, err = conn.Write(bytes.Repeat(end, 1+1000/len(end)))
				}
			})
			client := exchange.NewClient(20*time.Second, nil)
			defer client.CloseIdleConnections()
			client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if _, _, err := net.SplitHostPort(addr); err != nil {
					return nil, err // as any dialer does, and net/http forgets to close what came of it otherwise
				}
				conn, err := dial(ctx, network, addr)
				return countedConn{conn, &read}, err
			}
			response, err := (&HTTPFetcher{Client: client}).Fetch(t.Context(), &Request{Leaf: leaf, Issuer: ca.Issuer})
			// GET and POST with two hashes, each with three redirects.
			require.LessOrEqual(t, connections.Load(), int64(4*4))
			require.LessOrEqual(t, read.Load(), connections.Load()*1<<20)
			if err == nil {
				require.LessOrEqual(t, len(response), defaultMaxResponseSize)
				var outer asn1.RawValue
				rest, err := asn1.Unmarshal(response, &outer)
				require.NoError(t, err)
				require.Empty(t, rest)
				require.Equal(t, asn1.TagSequence, outer.Tag)
				require.True(t, bytes.HasPrefix(outer.Bytes, []byte{asn1.TagEnum, 1, 0}) && len(outer.Bytes) > 3, "%x", response)
				return
			}
			require.Nil(t, response)
			text := err.Error()
			require.True(t, strings.HasPrefix(text, `staple: "http://ocsp.example/path": `), "%q", text)
			require.False(t, strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }), "%q", text)
			require.Less(t, len(text), 7000) // 2000 runes that are replaced by U+FFFD
			answers := faults.Answers(err)
			require.Len(t, answers, 1)
			require.Equal(t, "http://ocsp.example/path", answers[0].URL)
			require.Contains(t, []schedule.Fault{schedule.Host, schedule.CA, schedule.URL, schedule.Certificate}, answers[0].Fault)
			require.GreaterOrEqual(t, answers[0].RetryAfter, time.Duration(0))
			require.LessOrEqual(t, answers[0].RetryAfter, 7*24*time.Hour)
		})
	})
}

// A countedConn counts what is read from it.
type countedConn struct {
	net.Conn
	read *atomic.Int64
}

func (c countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}
