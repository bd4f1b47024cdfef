// Package testhttp has HTTP servers for tests: some that follow a script and tell what
// they were asked ([NewScripted]), and some that do what none should: hang, drip, lie about
// lengths, never end ([HostileServers]). A responder that behaves is in package stapletest.
package testhttp

import (
	"bytes"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ocsp"
)

// A Scripted is a server that answers its nth request with its nth handler, and all
// further ones with the last.
type Scripted struct {
	URL string

	mu   sync.Mutex
	seen []string
}

// NewScripted starts a server, which ends with the test.
func NewScripted(t testing.TB, handlers ...http.Handler) *Scripted {
	s := new(Scripted)
	s.URL = NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		der, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(der))
		what := r.Method
		if r.Method == http.MethodGet {
			_, last, _ := strings.Cut(r.URL.Path, "/")
			der, _ = base64.StdEncoding.DecodeString(last)
		}
		if asked, err := ocsp.ParseRequest(der); err == nil {
			what += " " + asked.HashAlgorithm.String()
		}
		if r.Header.Get("Cache-Control") == "no-cache" {
			what += " no-cache"
		}
		s.mu.Lock()
		h := handlers[min(len(s.seen), len(handlers)-1)]
		s.seen = append(s.seen, what)
		s.mu.Unlock()
		h.ServeHTTP(w, r)
	}))
	return s
}

// Asked tells each request, as in "GET SHA-1" or "GET SHA-256 no-cache".
func (s *Scripted) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

// Replies returns a handler that gives one answer to every request.
func Replies(status int, contentType, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		io.WriteString(w, body)
	})
}

// RepliesStatus returns a handler that answers with a status, and a body of no use.
func RepliesStatus(status int) http.Handler { return Replies(status, "text/plain", "no") }

// RepliesOCSP returns a handler that answers with an OCSP response.
func RepliesOCSP(der []byte) http.Handler {
	return Replies(http.StatusOK, "application/ocsp-response", string(der))
}

// NewServer starts a server, which ends with the test, and returns its URL.
func NewServer(t testing.TB, h http.Handler) (url string) {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// ClosedServer returns the URL of a server that has ended.
func ClosedServer() (url string) {
	s := httptest.NewServer(nil)
	s.Close()
	return s.URL
}

// A RoundTripper is a function as an http.RoundTripper: a network without sockets.
type RoundTripper func(*http.Request) (*http.Response, error)

// RoundTrip calls f.
func (f RoundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A Body is that of an answer, and tells whether it was closed.
type Body struct {
	io.ReadCloser
	Closed bool
}

// Close closes it.
func (b *Body) Close() error {
	b.Closed = true
	return b.ReadCloser.Close()
}
