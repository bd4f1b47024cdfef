package staple

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
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
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

var fetchCA = sync.OnceValue(func() *stapletest.CA {
	return stapletest.NewCA(stapletest.CAOptions{Name: "Fetch CA", Intermediate: true})
})

// fetchRequest returns a request about a new leaf with these responders.
func fetchRequest(responders ...string) *Request {
	leaf := fetchCA().Leaf(stapletest.LeafOptions{Responders: responders}).Leaf
	return &Request{Leaf: leaf, Issuer: fetchCA().Issuer}
}

// acceptFor is an Accept that takes authentic and current responses about req.
func acceptFor(req *Request) func([]byte) error {
	return func(der []byte) error {
		r, err := ocsp.ParseResponseForCert(der, req.Leaf, req.Issuer)
		if err != nil {
			return &VerifyError{Reason: ReasonWrongCertificate, Leaf: req.Leaf, Err: err}
		}
		if time.Now().After(r.NextUpdate) {
			return &VerifyError{Reason: ReasonExpired, Leaf: req.Leaf, Err: errors.New("nextUpdate has passed")}
		}
		return nil
	}
}

// A scripted is a server that answers its nth request with its nth handler, and
// all further ones with the last. It notes what was asked, as in "GET SHA-1" or
// "GET SHA-256 no-cache".
type scripted struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string
}

func newScripted(t *testing.T, handlers ...http.Handler) *scripted {
	s := &scripted{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
	t.Cleanup(s.Close)
	return s
}

func (s *scripted) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

func replies(status int, contentType, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		io.WriteString(w, body)
	})
}

func repliesStatus(status int) http.Handler { return replies(status, "text/plain", "no") }

func repliesOCSP(der []byte) http.Handler {
	return replies(http.StatusOK, "application/ocsp-response", string(der))
}

func newServer(t *testing.T, h http.Handler) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func TestGETFollowsTheRFCs(t *testing.T) {
	var got atomic.Pointer[http.Request]
	var uri atomic.Value
	responder := stapletest.NewResponder(fetchCA())
	server := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got.Store(r)
		uri.Store(r.RequestURI)
		responder.ServeHTTP(w, r)
	}))
	for _, tt := range []struct{ path, prefix string }{
		{"", "/"},
		{"/", "/"},
		{"/ocsp", "/ocsp/"},
		{"/ocsp/", "/ocsp/"},
		{"//", "//"}, // one slash is stripped, no more
		{"/a//b/../c/.", "/a//b/../c/./"},
		{"/a%2Fb/%7e", "/a%2Fb/%7e/"},
		{"#fragment", "/"},
	} {
		t.Run("path "+tt.path, func(t *testing.T) {
			req := fetchRequest(server + tt.path)
			der, err := new(HTTPFetcher).Fetch(t.Context(), req)
			require.NoError(t, err)
			_, err = ocsp.ParseResponseForCert(der, req.Leaf, req.Issuer)
			require.NoError(t, err)
			require.Equal(t, server+tt.path, req.Responder)

			asked, err := ocsp.CreateRequest(req.Leaf, req.Issuer, nil)
			require.NoError(t, err)
			text := strings.NewReplacer("/", "%2F", "+", "%2B", "=", "%3D").Replace(base64.StdEncoding.EncodeToString(asked))
			require.Equal(t, tt.prefix+text, uri.Load())
			r := got.Load()
			require.Equal(t, http.MethodGet, r.Method)
			require.Equal(t, []string{"application/ocsp-response"}, r.Header["Accept"])
			require.Equal(t, []string{"identity"}, r.Header["Accept-Encoding"])
			require.NotContains(t, r.Header, "Content-Type")
			require.NotContains(t, r.Header, "Cache-Control")
		})
	}
	t.Run("slash, plus and equals sign, whatever the serial number", func(t *testing.T) {
		var slash, plus, equals bool
		for i := range 64 {
			serial := new(big.Int).SetBytes(bytes.Repeat([]byte{0x3f, 0xbe, 0xff, byte(i)}, 4))
			req := fetchRequest()
			req.Leaf = fetchCA().Leaf(stapletest.LeafOptions{Responders: []string{server}, Serial: serial}).Leaf
			req.Accept = acceptFor(req)
			_, err := new(HTTPFetcher).Fetch(t.Context(), req)
			require.NoError(t, err)
			require.Equal(t, http.MethodGet, got.Load().Method)
			require.NotContains(t, uri.Load().(string)[1:], "/")
			require.NotContains(t, uri.Load(), "+")
			slash = slash || strings.Contains(uri.Load().(string), "%2F")
			plus = plus || strings.Contains(uri.Load().(string), "%2B")
			equals = equals || strings.Contains(uri.Load().(string), "%3D")
			if slash && plus && equals {
				return
			}
		}
		t.Fatal("no request had all three")
	})
	t.Run("credentials in the URL are not sent", func(t *testing.T) {
		req := fetchRequest(strings.Replace(server, "http://", "http://user:secret@", 1))
		_, err := new(HTTPFetcher).Fetch(t.Context(), req)
		require.NoError(t, err)
		require.Empty(t, got.Load().Header["Authorization"])
	})
}

func TestLongURLsAndQueriesUsePOST(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	server := newServer(t, responder)
	last := func() stapletest.Received {
		all := responder.Requests(nil)
		return all[len(all)-1]
	}
	serial := big.NewInt(1 << 40)
	fetch := func(t *testing.T, url string) {
		leaf := fetchCA().Leaf(stapletest.LeafOptions{Responders: []string{url}, Serial: serial}).Leaf
		_, err := new(HTTPFetcher).Fetch(t.Context(), &Request{Leaf: leaf, Issuer: fetchCA().Issuer})
		require.NoError(t, err)
	}
	fetch(t, server)
	room := 255 - len(last().URL)

	fetch(t, server+"/"+strings.Repeat("a", room-1))
	require.Equal(t, http.MethodGet, last().Method)
	require.Len(t, last().URL, 255)

	fetch(t, server+"/"+strings.Repeat("a", room))
	require.Equal(t, http.MethodPost, last().Method)
	require.Equal(t, server+"/"+strings.Repeat("a", room), last().URL)
	require.Equal(t, []string{"application/ocsp-request"}, last().Header["Content-Type"])
	require.NotContains(t, last().Header, "Idempotency-Key")
	require.Equal(t, []string{"application/ocsp-response"}, last().Header["Accept"])

	fetch(t, server+"/servlet?ca=1&x=%2F")
	require.Equal(t, http.MethodPost, last().Method)
	require.Equal(t, server+"/servlet?ca=1&x=%2F", last().URL)
}

func TestRequestIsAsSmallAsCanBe(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	req := fetchRequest("http://ocsp.example")
	_, err := (&HTTPFetcher{Client: responder.Client()}).Fetch(t.Context(), req)
	require.NoError(t, err)
	asked, err := ocsp.CreateRequest(req.Leaf, req.Issuer, nil) // one certificate, no extensions
	require.NoError(t, err)
	require.Equal(t, asked, responder.Requests(req.Leaf)[0].Raw)
}

func TestIssuerNameHashIsOfTheLeafsEncoding(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	req := fetchRequest("http://ocsp.example")
	reissued := *req.Issuer // of the same key, its name encoded otherwise
	reissued.RawSubject = []byte("another encoding")
	req.Issuer = &reissued
	_, err := (&HTTPFetcher{Client: responder.Client()}).Fetch(t.Context(), req)
	require.NoError(t, err)
}

func TestPOSTWhereGETIsNoUse(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	compressed := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		z.Write(ocsp.TryLaterErrorResponse)
		z.Close()
	})
	tests := []struct {
		name  string
		first http.Handler
		post  bool
		err   string // of the GET, if POST is no better
	}{
		{"400", repliesStatus(400), true, "GET: 400 Bad Request"},
		{"404", repliesStatus(404), true, "GET: 404 Not Found"},
		{"405", repliesStatus(405), true, "GET: 405 Method Not Allowed"},
		{"411", repliesStatus(411), true, "GET: 411 Length Required"},
		{"501", repliesStatus(501), true, "GET: 501 Not Implemented"},
		{"a web page", replies(200, "text/html", "<!DOCTYPE html>"), true,
			`GET: unusable answer: not an OCSP response, Content-Type "text/html", 15 bytes that begin with "<!DOCTYPE html>"`},
		{"an empty body", replies(200, "application/ocsp-response", ""), true, "GET: unusable answer: an empty body"},
		{"too much", replies(200, "text/html", strings.Repeat("x", 70_000)), true, "larger than 65536 bytes"},
		{"a compressed body", compressed, true, `Content-Encoding "gzip", which was not asked for`},
		{"DER that is something else", repliesOCSP([]byte{0x30, 0x03, 0x02, 0x01, 0x00}), true, "not an OCSP response"},
		{"successful, but nothing in it", repliesOCSP([]byte{0x30, 0x03, 0x0a, 0x01, 0x00}), true, "not an OCSP response"},
		{"a response with a trailing byte", repliesOCSP(append(slices.Clone(ocsp.TryLaterErrorResponse), 0)), true, "not an OCSP response"},
		{"403", repliesStatus(403), false, "GET: 403 Forbidden"},
		{"429", repliesStatus(429), false, "GET: 429 Too Many Requests"},
		{"500", repliesStatus(500), false, "GET: 500 Internal Server Error"},
		{"503", repliesStatus(503), false, "GET: 503 Service Unavailable"},
		{"204", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }), false, "GET: 204 No Content"},
		{"tryLater", repliesOCSP(ocsp.TryLaterErrorResponse), false, "GET: ocsp: error from server: try later"},
		{"internalError", repliesOCSP(ocsp.InternalErrorErrorResponse), false, "GET: ocsp: error from server: internal error"},
		{"sigRequired", repliesOCSP(ocsp.SigRequredErrorResponse), false, "GET: ocsp: error from server: signature required"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := []string{"GET SHA-1"}
			if tt.post {
				want = append(want, "POST SHA-1")
			}
			s := newScripted(t, tt.first, responder)
			_, err := new(HTTPFetcher).Fetch(t.Context(), fetchRequest(s.URL))
			require.Equal(t, tt.post, err == nil)
			require.Equal(t, want, s.asked())

			s = newScripted(t, tt.first, repliesStatus(500))
			_, err = new(HTTPFetcher).Fetch(t.Context(), fetchRequest(s.URL))
			require.ErrorContains(t, err, fmt.Sprintf("staple: %q: GET: ", s.URL))
			require.ErrorContains(t, err, tt.err)
			if tt.post {
				require.ErrorContains(t, err, "; POST: 500 Internal Server Error (HTTP status 500)")
			}
		})
	}
}

func TestCertIDHash(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	only := func(known crypto.Hash, otherwise []byte) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rec := httptest.NewRecorder()
			responder.ServeHTTP(rec, r)
			all := responder.Requests(nil)
			if all[len(all)-1].Hash != known {
				repliesOCSP(otherwise).ServeHTTP(w, r)
				return
			}
			w.Write(rec.Body.Bytes())
		})
	}
	tests := []struct {
		name    string
		hash    crypto.Hash
		handler http.Handler
		first   []string
		then    []string
	}{
		{"SHA-1 is the default", 0, responder, []string{"GET SHA-1"}, []string{"GET SHA-1"}},
		{"SHA-256", crypto.SHA256, responder, []string{"GET SHA-256"}, []string{"GET SHA-256"}},
		{"SHA-384", crypto.SHA384, responder, []string{"GET SHA-384"}, []string{"GET SHA-384"}},
		{"SHA-512, which makes the URL too long", crypto.SHA512, responder, []string{"POST SHA-512"}, []string{"POST SHA-512"}},
		{"only SHA-256 is known, else unauthorized", 0, only(crypto.SHA256, ocsp.UnauthorizedErrorResponse),
			[]string{"GET SHA-1", "GET SHA-256"}, []string{"GET SHA-256"}},
		{"only SHA-256 is known, else malformedRequest", 0, only(crypto.SHA256, ocsp.MalformedRequestErrorResponse),
			[]string{"GET SHA-1", "GET SHA-256"}, []string{"GET SHA-256"}},
		{"only SHA-1 is known, else unauthorized", crypto.SHA256, only(crypto.SHA1, ocsp.UnauthorizedErrorResponse),
			[]string{"GET SHA-256", "GET SHA-1"}, []string{"GET SHA-1"}},
		{"only SHA-1 is known, else malformedRequest", crypto.SHA384, only(crypto.SHA1, ocsp.MalformedRequestErrorResponse),
			[]string{"GET SHA-384", "GET SHA-1"}, []string{"GET SHA-1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScripted(t, tt.handler)
			f := &HTTPFetcher{Hash: tt.hash}
			_, err := f.Fetch(t.Context(), fetchRequest(s.URL))
			require.NoError(t, err)
			require.Equal(t, tt.first, s.asked())
			_, err = f.Fetch(t.Context(), fetchRequest(s.URL))
			require.NoError(t, err)
			require.Equal(t, tt.then, s.asked()[len(tt.first):])
		})
	}
	t.Run("neither: the error is the responder's, and nothing is remembered", func(t *testing.T) {
		s := newScripted(t, repliesOCSP(ocsp.UnauthorizedErrorResponse))
		f := &HTTPFetcher{}
		for range 2 {
			_, err := f.Fetch(t.Context(), fetchRequest(s.URL))
			var status ocsp.ResponseError
			require.ErrorAs(t, err, &status)
			require.Equal(t, ocsp.Unauthorized, status.Status)
		}
		require.Equal(t, []string{"GET SHA-1", "GET SHA-256", "GET SHA-1", "GET SHA-256"}, s.asked())
	})
	t.Run("an error status in the body of a 400 counts", func(t *testing.T) {
		s := newScripted(t, replies(400, "application/ocsp-response", string(ocsp.MalformedRequestErrorResponse)),
			replies(400, "application/ocsp-response", string(ocsp.MalformedRequestErrorResponse)), responder)
		_, err := new(HTTPFetcher).Fetch(t.Context(), fetchRequest(s.URL))
		require.NoError(t, err)
		require.Equal(t, []string{"GET SHA-1", "POST SHA-1", "GET SHA-256"}, s.asked())
	})
	t.Run("a path mangled on its way is malformed with either hash: POST", func(t *testing.T) {
		malformed := repliesOCSP(ocsp.MalformedRequestErrorResponse)
		s := newScripted(t, malformed, malformed, responder)
		_, err := new(HTTPFetcher).Fetch(t.Context(), fetchRequest(s.URL))
		require.NoError(t, err)
		require.Equal(t, []string{"GET SHA-1", "GET SHA-256", "POST SHA-1"}, s.asked())
	})
	t.Run("a hash that no CertID has", func(t *testing.T) {
		s := newScripted(t, responder)
		_, err := (&HTTPFetcher{Hash: crypto.MD5}).Fetch(t.Context(), fetchRequest(s.URL))
		require.ErrorIs(t, err, x509.ErrUnsupportedAlgorithm)
		require.ErrorContains(t, err, "CertID hash of MD5")
		require.Empty(t, s.asked())
	})
}

func TestFetchGoesFromURLToURL(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	live := newScripted(t, responder)
	other := fetchRequest("http://ocsp.example")
	dead := newServer(t, repliesStatus(500))
	closed := httptest.NewServer(responder)
	closed.Close()
	for name, first := range map[string]string{
		"dead":                          closed.URL,
		"500":                           dead,
		"garbage with status 200":       newServer(t, replies(200, "application/ocsp-response", "garbage")),
		"an OCSP error":                 newServer(t, repliesOCSP(ocsp.TryLaterErrorResponse)),
		"about another certificate":     newServer(t, repliesOCSP(responder.Response(other.Leaf))),
		"LDAP":                          "ldap://127.0.0.1/cn=ocsp",
		"a file":                        "file:///etc/passwd",
		"no URL":                        "://\x01",
		"no host":                       "http:/path",
		"longer than anybody's":         live.URL + "/" + strings.Repeat("a", 2048),
		"an OCSP error with status 500": newServer(t, replies(500, "application/ocsp-response", string(ocsp.InternalErrorErrorResponse))),
	} {
		t.Run("the first is "+name, func(t *testing.T) {
			req := fetchRequest()
			urls := []string{first, live.URL}
			req.Accept = acceptFor(req)
			f := &HTTPFetcher{URLs: func(*x509.Certificate) []string { return urls }}
			der, err := f.Fetch(t.Context(), req)
			require.NoError(t, err)
			require.NoError(t, req.Accept(der))
			require.Equal(t, live.URL, req.Responder)

			_, err = f.Fetch(t.Context(), req) // live is tried first now
			require.NoError(t, err)
			require.Equal(t, first, urls[0], "the caller's list is left as it is")

			req.Responder = ""
			urls = []string{first, first}
			_, err = f.Fetch(t.Context(), req)
			require.Error(t, err)
			require.Empty(t, req.Responder)
		})
	}

	t.Run("all errors are joined, each names its URL, the longest Retry-After first", func(t *testing.T) {
		busy := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "120")
			w.WriteHeader(503)
		}))
		req := fetchRequest(closed.URL, dead, "ldap://127.0.0.1", busy)
		_, err := new(HTTPFetcher).Fetch(t.Context(), req)
		joined, ok := err.(interface{ Unwrap() []error })
		require.True(t, ok)
		var urls []string
		for _, err := range joined.Unwrap() {
			var e *HTTPError
			require.ErrorAs(t, err, &e)
			require.ErrorContains(t, err, fmt.Sprintf("%q", e.URL))
			urls = append(urls, e.URL)
		}
		require.ElementsMatch(t, req.Leaf.OCSPServer, urls)
		var e *HTTPError
		require.ErrorAs(t, err, &e)
		require.Equal(t, busy, e.URL)
		require.Equal(t, 503, e.StatusCode)
		require.Equal(t, 2*time.Minute, e.RetryAfter)
		require.Empty(t, req.Responder)
	})

	t.Run("what worked last is tried first", func(t *testing.T) {
		a, b := newScripted(t, repliesStatus(500), responder), newScripted(t, responder, repliesStatus(500), responder)
		f := &HTTPFetcher{}
		for i, want := range []struct {
			a, b  int
			which string
		}{
			{1, 1, b.URL}, // a fails
			{2, 2, a.URL}, // b, which is first now, fails
			{3, 2, a.URL},
		} {
			req := fetchRequest(a.URL, b.URL)
			_, err := f.Fetch(t.Context(), req)
			require.NoError(t, err)
			require.Equal(t, want.which, req.Responder, i)
			require.Len(t, a.asked(), want.a, i)
			require.Len(t, b.asked(), want.b, i)
		}
	})

	t.Run("sixteen are asked, no more", func(t *testing.T) {
		s := newScripted(t, repliesStatus(500))
		var urls []string
		for i := range 1000 {
			urls = append(urls, fmt.Sprintf("%s/%d", s.URL, i))
		}
		_, err := new(HTTPFetcher).Fetch(t.Context(), fetchRequest(urls...))
		require.Error(t, err)
		require.Len(t, s.asked(), 16)
	})
}

func TestNobodyToAsk(t *testing.T) {
	noIO := &http.Client{Transport: roundTripperFunc(func(*http.Request) (*http.Response, error) {
		panic("no request should be made")
	})}
	for name, urls := range map[string][]string{
		"no URL":             nil,
		"only LDAP and file": {"ldap://ocsp.example", "file:///etc/passwd", "http:", "ocsp.example"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &HTTPFetcher{Client: noIO}
			req := fetchRequest(urls...)
			_, err := f.Fetch(t.Context(), req)
			require.ErrorIs(t, err, ErrNoResponder)
			_, err = f.FetchIssuer(t.Context(), req.Leaf)
			require.ErrorIs(t, err, ErrNoResponder)
		})
	}
	t.Run("by URLs", func(t *testing.T) {
		f := &HTTPFetcher{Client: noIO, URLs: func(*x509.Certificate) []string { return nil }}
		_, err := f.Fetch(t.Context(), fetchRequest("http://ocsp.example"))
		require.ErrorIs(t, err, ErrNoResponder)
	})
	t.Run("no leaf, no issuer", func(t *testing.T) {
		f := &HTTPFetcher{Client: noIO}
		_, err := f.Fetch(t.Context(), &Request{})
		require.ErrorContains(t, err, "needs a leaf")
		_, err = f.FetchIssuer(t.Context(), nil)
		require.ErrorContains(t, err, "needs a leaf")
		_, err = f.Fetch(t.Context(), &Request{Leaf: fetchRequest("http://ocsp.example").Leaf})
		require.ErrorIs(t, err, ErrNoIssuer)
	})
}

type roundTripperFunc func(*http.Request) (*http.Response, error)

func (f roundTripperFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestURLsReplacesTheCertificatesOwn(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	req := fetchRequest("http://certificate.example")
	f := &HTTPFetcher{Client: responder.Client(), URLs: func(leaf *x509.Certificate) []string {
		require.Same(t, req.Leaf, leaf)
		return []string{"http://override.example/ocsp"}
	}}
	_, err := f.Fetch(t.Context(), req)
	require.NoError(t, err)
	require.Equal(t, "http://override.example/ocsp", req.Responder)
	require.Len(t, responder.Requests(nil), 1)
	require.True(t, strings.HasPrefix(responder.Requests(nil)[0].URL, "http://override.example/ocsp/"))
}

func TestStaleAnswersAreAskedForAgain(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	old := func(req *Request) []byte {
		r := stapletest.NewResponder(fetchCA())
		r.Set(nil, stapletest.Answer{Age: 48 * time.Hour, Validity: 24 * time.Hour})
		return r.Response(req.Leaf)
	}
	older := fmt.Errorf("wrapped: %w", errOlder)
	tests := []struct {
		name    string
		stale   int   // so many answers are old
		reason  error // for which they are refused; nil: they have expired
		asked   []string
		success bool
	}{
		{"fresh", 0, nil, []string{"GET SHA-1"}, true},
		{"past the caches it is fresh", 1, nil, []string{"GET SHA-1", "GET SHA-1 no-cache"}, true},
		{"only POST helps", 2, nil, []string{"GET SHA-1", "GET SHA-1 no-cache", "POST SHA-1"}, true},
		{"nothing helps", 3, nil, []string{"GET SHA-1", "GET SHA-1 no-cache", "POST SHA-1"}, false},
		{"older than the one held, then not", 1, older, []string{"GET SHA-1", "GET SHA-1 no-cache"}, true},
		{"older than the one held", 3, older, []string{"GET SHA-1", "GET SHA-1 no-cache", "POST SHA-1"}, false},
		{"refused for another reason", 1, &VerifyError{Reason: ReasonBadSignature, Err: errors.New("forged")}, []string{"GET SHA-1"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var handlers []http.Handler
			req := fetchRequest()
			stale := old(req)
			for range tt.stale {
				handlers = append(handlers, repliesOCSP(stale))
			}
			s := newScripted(t, append(handlers, responder)...)
			req.Leaf.OCSPServer = []string{s.URL}
			accept := acceptFor(req)
			req.Accept = func(der []byte) error {
				if tt.reason != nil && bytes.Equal(der, stale) {
					return tt.reason
				}
				return accept(der)
			}
			_, err := new(HTTPFetcher).Fetch(t.Context(), req)
			require.Equal(t, tt.asked, s.asked())
			if tt.success {
				require.NoError(t, err)
				return
			}
			if tt.reason != nil {
				require.ErrorIs(t, err, tt.reason)
			} else {
				var refused *VerifyError
				require.ErrorAs(t, err, &refused)
				require.Equal(t, ReasonExpired, refused.Reason)
			}
		})
	}
	t.Run("every error of Accept is in the tree", func(t *testing.T) {
		reasons := []error{errOlder, errOlder, errors.New("third"), errors.New("fourth")}
		all := slices.Clone(reasons)
		s := newScripted(t, responder)
		req := fetchRequest(s.URL, s.URL+"/2")
		req.Accept = func([]byte) error {
			err := all[0]
			all = all[1:]
			return err
		}
		_, err := new(HTTPFetcher).Fetch(t.Context(), req)
		for _, reason := range reasons {
			require.ErrorIs(t, err, reason)
		}
		require.Empty(t, all)
	})
	t.Run("POST still works where the request past the caches fails", func(t *testing.T) {
		req := fetchRequest()
		s := newScripted(t, repliesOCSP(old(req)), repliesStatus(503), responder)
		req.Leaf.OCSPServer = []string{s.URL}
		req.Accept = acceptFor(req)
		_, err := new(HTTPFetcher).Fetch(t.Context(), req)
		require.NoError(t, err)
	})
}

func TestRetryAfter(t *testing.T) {
	for _, tt := range []struct {
		header string
		want   time.Duration
	}{
		{"", 0},
		{"120", 2 * time.Minute},
		{"0", 0},
		{"-5", 0},
		{"1.5", 0},
		{"soon", 0},
		{"86400", 24 * time.Hour},
		{"31536000", maxRetryAfter},
		{"99999999999999999999999999", maxRetryAfter},
		{"Thu, 01 Jan 1970 00:00:00 GMT", 0},
		{"Fri, 31 Dec 9999 23:59:59 GMT", maxRetryAfter},
	} {
		require.Equal(t, tt.want, retryAfterHeader(tt.header), tt.header)
	}
	d := retryAfterHeader(time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
	require.InDelta(t, time.Hour, d, float64(2*time.Second))

	t.Run("what an earlier request to the URL was told counts", func(t *testing.T) {
		s := newScripted(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "60")
			w.WriteHeader(404)
		}), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }))
		_, err := new(HTTPFetcher).Fetch(t.Context(), fetchRequest(s.URL))
		require.Equal(t, []string{"GET SHA-1", "POST SHA-1"}, s.asked()[:2])
		var e *HTTPError
		require.ErrorAs(t, err, &e)
		require.Equal(t, time.Minute, e.RetryAfter)
		require.Equal(t, 404, e.StatusCode)
		require.ErrorIs(t, err, io.EOF)
	})
	for _, status := range []int{429, 503} {
		s := newScripted(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(status)
		}))
		_, err := new(HTTPFetcher).Fetch(t.Context(), fetchRequest(s.URL))
		var e *HTTPError
		require.ErrorAs(t, err, &e)
		require.Equal(t, status, e.StatusCode)
		require.Equal(t, 30*time.Second, e.RetryAfter)
		require.Equal(t, s.URL, e.URL)
		require.ErrorContains(t, err, fmt.Sprintf("(HTTP status %d, retry after 30s)", status))
		require.Equal(t, []string{"GET SHA-1"}, s.asked())
	}
}

func TestHTTPErrorIsOneSafeLine(t *testing.T) {
	for _, tt := range []struct {
		err  HTTPError
		want string
	}{
		{HTTPError{URL: "http://a"}, `staple: "http://a": (no HTTP response)`},
		{HTTPError{URL: "http://a", StatusCode: 503}, `staple: "http://a": (HTTP status 503)`},
		{HTTPError{URL: "http://a", StatusCode: 503, RetryAfter: time.Minute}, `staple: "http://a": (HTTP status 503, retry after 1m0s)`},
		{HTTPError{URL: "http://a", Err: io.EOF}, `staple: "http://a": EOF (no HTTP response)`},
		{HTTPError{URL: "http://a\n\x1b[31m", StatusCode: 200, Err: errors.New("a\nb\x1b[2J\u202e")},
			`staple: "http://a\n\x1b[31m": a` + "\ufffdb\ufffd[2J\ufffd" + ` (HTTP status 200)`},
	} {
		require.Equal(t, tt.want, tt.err.Error())
	}
	long := HTTPError{URL: strings.Repeat("u", 1<<20), Err: errors.New(strings.Repeat("é", 1<<20))}
	require.Less(t, len(long.Error()), 3000)
	require.ErrorIs(t, &HTTPError{Err: io.EOF}, io.EOF)
}

// A hostile is what a server does with a connection, having read a request. It is
// closed afterwards.
type hostile func(conn net.Conn)

func says(text string) hostile { return func(conn net.Conn) { io.WriteString(conn, text) } }

func serveHostile(t *testing.T, h hostile) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		var conns sync.WaitGroup
		defer conns.Wait()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				conn.Read(make([]byte, 4096))
				h(conn)
			})
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return "http://" + l.Addr().String()
}

// countBytes counts what f reads from its connections.
func countBytes(f *HTTPFetcher) *atomic.Int64 {
	n := new(atomic.Int64)
	f.own = f.newClient()
	transport := f.own.Transport.(*http.Transport)
	dial := transport.DialContext
	transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return countingConn{conn, n}, nil
	}
	return n
}

type countingConn struct {
	net.Conn
	n *atomic.Int64
}

func (c countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func TestHostileResponders(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	live := newServer(t, responder)
	valid := string(responder.Response(fetchRequest().Leaf))
	untilClosed := func(conn net.Conn) { io.Copy(io.Discard, conn) }
	const ok = "HTTP/1.1 200 OK\r\nContent-Type: application/ocsp-response\r\n"
	bomb := new(bytes.Buffer)
	z := gzip.NewWriter(bomb)
	z.Write(make([]byte, 10<<20))
	z.Close()
	const hangs = "no complete answer within 3" // and some milliseconds

	tests := []struct {
		name   string
		server hostile
		err    string
		kib    int64 // at most so many are read, over all requests
	}{
		{"hang before the header", untilClosed, hangs, 0},
		{"hang after the header", func(conn net.Conn) { says(ok + "Content-Length: 100\r\n\r\n")(conn); untilClosed(conn) }, hangs, 1},
		{"hang in the header", func(conn net.Conn) { says(ok)(conn); untilClosed(conn) }, hangs, 1},
		{"hang in the body of a 503", func(conn net.Conn) {
			says("HTTP/1.1 503 No\r\nContent-Length: 100\r\n\r\nx")(conn)
			untilClosed(conn)
		}, hangs, 1},
		{"slow drip", func(conn net.Conn) {
			says(ok + "Content-Length: 100000\r\n\r\n")(conn)
			for _, err := conn.Write([]byte("0")); err == nil; _, err = conn.Write([]byte("0")) {
				time.Sleep(5 * time.Millisecond)
			}
		}, hangs, 1},
		{"endless body", func(conn net.Conn) {
			says(ok + "\r\n")(conn)
			for _, err := conn.Write(make([]byte, 4096)); err == nil; _, err = conn.Write(make([]byte, 4096)) {
			}
		}, "larger than 65536 bytes", 2*64 + 16},
		{"endless chunks", func(conn net.Conn) {
			says(ok + "Transfer-Encoding: chunked\r\n\r\n")(conn)
			for _, err := conn.Write([]byte("1\r\nx\r\n")); err == nil; _, err = conn.Write(bytes.Repeat([]byte("1\r\nx\r\n"), 1000)) {
			}
		}, "larger than 65536 bytes", 2*6*64 + 16},
		{"endless header", func(conn net.Conn) {
			says(ok)(conn)
			for _, err := conn.Write([]byte("X: y\r\n")); err == nil; _, err = conn.Write(bytes.Repeat([]byte("X: y\r\n"), 1000)) {
			}
		}, "server response headers exceeded 65536 bytes", 64 + 16},
		{"endless 1xx", func(conn net.Conn) {
			for _, err := conn.Write([]byte("HTTP/1.1 103 Early Hints\r\n\r\n")); err == nil; _, err = conn.Write([]byte("HTTP/1.1 103 Early Hints\r\n\r\n")) {
			}
		}, "server response headers exceeded 65536 bytes", 64 + 16},
		{"RST in mid-body", func(conn net.Conn) {
			says(ok + "Content-Length: 1000\r\n\r\n" + valid[:100])(conn)
			time.Sleep(5 * time.Millisecond)
			conn.(*net.TCPConn).SetLinger(0)
		}, "the body was cut short after 100 bytes: read tcp", 1},
		{"half-sent body", says(ok + "Content-Length: 1000\r\n\r\n" + valid[:100]), "the body was cut short after 100 bytes: unexpected EOF", 1},
		{"half-sent body without a length", says("HTTP/1.0 200 OK\r\n\r\n" + valid[:100]), "not an OCSP response", 1},
		{"empty body", says(ok + "Content-Length: 0\r\n\r\n"), "an empty body", 1},
		{"login page of a captive portal", says("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>log in"), `not an OCSP response, Content-Type "text/html", 12 bytes that begin with "<html>log in"`, 1},
		{"gzip bomb", func(conn net.Conn) {
			fmt.Fprintf(conn, "%sContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n", ok, bomb.Len())
			conn.Write(bomb.Bytes())
		}, `Content-Encoding "gzip"`, 2*12 + 1},
		{"redirect loop", says("HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n"), "more than 3 redirects", 1},
		{"redirect to a file", says("HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"), `redirected to "file:///etc/passwd": not an http or https URL`, 1},
		{"redirect to nowhere", says("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"), "302 Found", 1},
		{"500 with a valid body", says(fmt.Sprintf("HTTP/1.1 500 Oops\r\nContent-Length: %d\r\n\r\n%s", len(valid), valid)), "500 Internal Server Error", 2},
		{"valid response for another certificate", says(fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", ok, len(valid), valid)), "no response matching the supplied certificate", 2},
		{"not HTTP", says("SSH-2.0-OpenSSH_9.9\r\n"), "malformed HTTP response", 1},
		{"control characters in the header", says("HTTP/1.1 200 OK\r\nbad\x1b[2J\x07 line\r\n\r\n"), "malformed MIME header", 1},
		{"closed at once", says(""), "EOF", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			timeout := 5 * time.Second
			if tt.err == hangs {
				timeout = 300 * time.Millisecond
			}
			bad := serveHostile(t, tt.server)
			f := &HTTPFetcher{timeout: timeout}
			read := countBytes(f)
			t.Cleanup(f.closeIdle)
			req := fetchRequest(bad)
			req.Accept = acceptFor(req)
			began := time.Now()
			_, err := f.Fetch(t.Context(), req)
			took := time.Since(began)
			require.ErrorContains(t, err, tt.err)
			require.NotRegexp(t, `[[:cntrl:]]`, err.Error())
			var e *HTTPError
			require.ErrorAs(t, err, &e)
			require.Equal(t, bad, e.URL)
			t.Logf("%-40s %8v %7d bytes: %v", tt.name, took.Round(time.Millisecond), read.Load(), err)
			require.Less(t, took, timeout+2*time.Second)
			require.LessOrEqual(t, read.Load(), tt.kib<<10)

			req.Leaf.OCSPServer = []string{bad, live}
			der, err := f.Fetch(t.Context(), req)
			require.NoError(t, err)
			require.NoError(t, req.Accept(der))
			require.Equal(t, live, req.Responder)
		})
	}
}

func TestUnusualButValidAnswers(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	t.Run("HTTP/1.0 without a length", func(t *testing.T) {
		req := fetchRequest()
		req.Leaf.OCSPServer = []string{serveHostile(t, says("HTTP/1.0 200 OK\r\n\r\n"+string(responder.Response(req.Leaf))))}
		req.Accept = acceptFor(req)
		_, err := new(HTTPFetcher).Fetch(t.Context(), req)
		require.NoError(t, err)
	})
	t.Run("a wrong Content-Type", func(t *testing.T) {
		req := fetchRequest()
		req.Leaf.OCSPServer = []string{newServer(t, replies(200, "text/html", string(responder.Response(req.Leaf))))}
		req.Accept = acceptFor(req)
		_, err := new(HTTPFetcher).Fetch(t.Context(), req)
		require.NoError(t, err)
	})
	t.Run("three redirects, no more", func(t *testing.T) {
		var redirects atomic.Int32
		server := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if len(r.URL.Query()["hop"]) == int(redirects.Load()) {
				require.Empty(t, r.Header["Authorization"])
				responder.ServeHTTP(w, r)
				return
			}
			u := *r.URL
			u.Scheme, u.Host, u.User = "http", r.Host, url.UserPassword("user", "secret")
			u.RawQuery += "&hop=1"
			w.Header().Set("Location", u.String())
			w.WriteHeader(http.StatusFound)
		}))
		redirects.Store(3)
		_, err := new(HTTPFetcher).Fetch(t.Context(), fetchRequest(server))
		require.NoError(t, err)
		redirects.Store(4)
		_, err = new(HTTPFetcher).Fetch(t.Context(), fetchRequest(server))
		require.ErrorContains(t, err, "more than 3 redirects")
	})
	for status, method := range map[int]string{301: "POST", 302: "POST", 303: "GET", 307: "POST", 308: "POST"} {
		t.Run(fmt.Sprintf("a POST redirected with %d becomes a %s", status, method), func(t *testing.T) {
			responder := stapletest.NewResponder(fetchCA())
			mux := http.NewServeMux()
			mux.Handle("/there/", responder)
			mux.Handle("/", http.RedirectHandler("/again", status))
			mux.Handle("/again", http.RedirectHandler("/there/", status))
			_, err := new(HTTPFetcher).Fetch(t.Context(), fetchRequest(newServer(t, mux)+"/?post"))
			require.Equal(t, method == http.MethodPost, err == nil, err)
			got := responder.Requests(nil)[0]
			require.Equal(t, method, got.Method)
			if method == http.MethodPost {
				require.Equal(t, []string{"application/ocsp-request"}, got.Header["Content-Type"])
			}
		})
	}
	t.Run("a kept connection that the server closes without a word", func(t *testing.T) {
		req := fetchRequest()
		der := responder.Response(req.Leaf)
		var conns atomic.Int32
		req.Leaf.OCSPServer = []string{serveHostile(t, func(conn net.Conn) {
			if conns.Add(1) == 1 {
				says("HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n")(conn)
				conn.Read(make([]byte, 4096)) // the POST
				return
			}
			says(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(der), der))(conn)
		})}
		got, err := new(HTTPFetcher).Fetch(t.Context(), req)
		require.NoError(t, err)
		require.Equal(t, der, got)
	})
	for name, onGET := range map[string]http.HandlerFunc{
		"a responder that does not answer a GET": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"a firewall that resets a GET": func(w http.ResponseWriter, _ *http.Request) {
			conn, _, _ := http.NewResponseController(w).Hijack()
			conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var methods []string
			handlers := map[string]http.Handler{http.MethodGet: onGET, http.MethodPost: responder}
			server := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				methods = append(methods, r.Method)
				h := handlers[r.Method]
				mu.Unlock()
				h.ServeHTTP(w, r)
			}))
			f := &HTTPFetcher{timeout: time.Second}
			fetch := func() (failed bool) {
				_, err := f.Fetch(t.Context(), fetchRequest(server))
				return err != nil
			}
			require.True(t, fetch())
			require.False(t, fetch())
			require.False(t, fetch())
			mu.Lock()
			handlers = map[string]http.Handler{http.MethodGet: responder, http.MethodPost: replies(503, "text/plain", "")}
			mu.Unlock()
			require.True(t, fetch())
			require.False(t, fetch())
			require.False(t, fetch())
			mu.Lock()
			defer mu.Unlock()
			require.Equal(t, []string{"GET", "POST", "POST", "POST", "GET", "GET"}, methods)
		})
	}
	t.Run("HTTP/2", func(t *testing.T) {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			require.Equal(t, 2, r.ProtoMajor)
			responder.ServeHTTP(w, r)
		}))
		s.EnableHTTP2 = true
		s.StartTLS()
		t.Cleanup(s.Close)
		f := &HTTPFetcher{}
		f.own = f.newClient()
		f.own.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
		req := fetchRequest(s.URL)
		req.Accept = acceptFor(req)
		_, err := f.Fetch(t.Context(), req)
		require.NoError(t, err)
	})
	t.Run("a response as large as MaxResponseSize, and a byte more", func(t *testing.T) {
		req := fetchRequest("http://ocsp.example")
		responder.Set(req.Leaf, stapletest.Answer{Replay: responder.Response(req.Leaf)})
		size := int64(len(responder.Response(req.Leaf)))
		_, err := (&HTTPFetcher{Client: responder.Client(), MaxResponseSize: size}).Fetch(t.Context(), req)
		require.NoError(t, err)
		_, err = (&HTTPFetcher{Client: responder.Client(), MaxResponseSize: size - 1}).Fetch(t.Context(), req)
		require.ErrorContains(t, err, fmt.Sprintf("larger than %d bytes", size-1))
	})
}

func TestTimeouts(t *testing.T) {
	fetch := func(ctx context.Context, urls ...string) (time.Duration, *Request, error) {
		responder := stapletest.NewResponder(fetchCA())
		f := &HTTPFetcher{Client: &http.Client{Transport: roundTripperFunc(func(r *http.Request) (*http.Response, error) {
			if strings.HasPrefix(r.URL.Host, "hangs") {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return responder.RoundTrip(r)
		})}}
		began := time.Now()
		req := fetchRequest(urls...)
		_, err := f.Fetch(ctx, req)
		return time.Since(began), req, err
	}
	t.Run("ten seconds a request", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			took, _, err := fetch(t.Context(), "http://hangs.example")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, "no complete answer within 10s")
			require.Equal(t, 10*time.Second, took)
		})
	})
	t.Run("thirty seconds in all", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var urls []string
			for i := range 10 {
				urls = append(urls, fmt.Sprintf("http://hangs%d.example", i))
			}
			took, _, err := fetch(t.Context(), urls...)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, 30*time.Second, took)
		})
	})
	t.Run("the last URL is asked whatever the others do", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			took, req, err := fetch(t.Context(), "http://hangs1.example", "http://hangs2.example", "http://hangs3.example",
				"http://hangs4.example", "http://hangs5.example", "http://live.example")
			require.NoError(t, err)
			require.Equal(t, "http://live.example", req.Responder)
			require.Equal(t, 25*time.Second, took)
		})
	})
	t.Run("the caller's deadline", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			took, req, err := fetch(ctx, "http://hangs.example", "http://live.example")
			require.NoError(t, err)
			require.Equal(t, "http://live.example", req.Responder)
			require.Equal(t, 2*time.Second, took)
		})
	})
	t.Run("the caller gives up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			took, _, err := fetch(ctx, "http://hangs1.example", "http://hangs2.example")
			require.ErrorIs(t, err, context.Canceled)
			require.ErrorContains(t, err, `"http://hangs2.example": not asked: context canceled`)
			require.Equal(t, time.Second, took)

			took, _, err = fetch(ctx, "http://live.example")
			require.ErrorIs(t, err, context.Canceled)
			require.Zero(t, took)
		})
	})
}

func TestContextEndsARequestAtAnyPoint(t *testing.T) {
	for name, h := range map[string]hostile{
		"before the header": func(conn net.Conn) { io.Copy(io.Discard, conn) },
		"in the body": func(conn net.Conn) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0")
			io.Copy(io.Discard, conn)
		},
	} {
		t.Run(name, func(t *testing.T) {
			req := fetchRequest(serveHostile(t, h))
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(20*time.Millisecond, cancel)
			began := time.Now()
			_, err := new(HTTPFetcher).Fetch(ctx, req)
			require.ErrorIs(t, err, context.Canceled)
			require.Less(t, time.Since(began), 5*time.Second)
		})
	}
}

func TestTLSHandshakeThatHangs(t *testing.T) {
	// serveHostile waits for its connections: none may linger.
	bad := serveHostile(t, func(conn net.Conn) { io.Copy(io.Discard, conn) })
	f := &HTTPFetcher{timeout: 100 * time.Millisecond}
	began := time.Now()
	_, err := f.Fetch(t.Context(), fetchRequest("https"+strings.TrimPrefix(bad, "http")))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(began), 5*time.Second)
}

func TestFetcherFuncKeepsFailOver(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	live := newServer(t, responder)
	req := fetchRequest(newServer(t, repliesOCSP(responder.Response(fetchRequest().Leaf))), live)
	req.Accept = acceptFor(req)
	var inner HTTPFetcher
	var wrapped Fetcher = FetcherFunc(func(ctx context.Context, r *Request) ([]byte, error) { return inner.Fetch(ctx, r) })
	der, err := wrapped.Fetch(t.Context(), req)
	require.NoError(t, err)
	require.NoError(t, req.Accept(der))
	require.Equal(t, live, req.Responder)
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
	responder := stapletest.NewResponder(fetchCA())
	var uri atomic.Value
	proxy := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		uri.Store(r.RequestURI)
		responder.ServeHTTP(w, r)
	}))
	for _, v := range []string{"HTTP_PROXY", "http_proxy"} {
		t.Setenv(v, proxy)
	}
	req := fetchRequest("http://ocsp.invalid/path")
	_, err := new(HTTPFetcher).Fetch(t.Context(), req)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(uri.Load().(string), "http://ocsp.invalid/path/M"), uri.Load())

	public := &HTTPFetcher{PublicOnly: true}
	require.Nil(t, public.newClient().Transport.(*http.Transport).Proxy)
}

func TestClientIsUsedWhole(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	var hops int
	var body closeRecorder
	client := &http.Client{
		Transport: roundTripperFunc(func(r *http.Request) (*http.Response, error) {
			if r.URL.Host != "h5.example" {
				hops++
				return &http.Response{
					StatusCode: http.StatusFound,
					Header:     http.Header{"Location": {fmt.Sprintf("http://h%d.example%s", hops, r.URL.EscapedPath())}},
					Body:       http.NoBody,
					Request:    r,
				}, nil
			}
			resp, err := responder.RoundTrip(r)
			body.ReadCloser = resp.Body
			resp.Body = &body
			return resp, err
		}),
		CheckRedirect: func(*http.Request, []*http.Request) error { return nil },
	}
	f := &HTTPFetcher{Client: client}
	_, err := f.Fetch(t.Context(), fetchRequest("http://h0.example"))
	require.NoError(t, err)
	require.Equal(t, 5, hops)
	require.Nil(t, f.own)
	require.True(t, body.closed)
}

type closeRecorder struct {
	io.ReadCloser
	closed bool
}

func (c *closeRecorder) Close() error {
	c.closed = true
	return c.ReadCloser.Close()
}

func TestCloseIdle(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	var opened, closed atomic.Int32
	s := httptest.NewUnstartedServer(responder)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			opened.Add(1)
		case http.StateClosed:
			closed.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	t.Run("of its own client", func(t *testing.T) {
		f := &HTTPFetcher{}
		f.closeIdle() // before there is any
		for range 5 {
			_, err := f.Fetch(t.Context(), fetchRequest(s.URL))
			require.NoError(t, err)
		}
		require.EqualValues(t, 1, opened.Load(), "the connection is used again")
		require.Zero(t, closed.Load())
		f.closeIdle()
		require.Eventually(t, func() bool { return closed.Load() == 1 }, 5*time.Second, time.Millisecond)
	})
	t.Run("a Client's are left alone", func(t *testing.T) {
		f := &HTTPFetcher{Client: &http.Client{Transport: &http.Transport{}}}
		defer f.Client.CloseIdleConnections()
		for range 2 {
			_, err := f.Fetch(t.Context(), fetchRequest(s.URL))
			require.NoError(t, err)
			f.closeIdle()
		}
		require.EqualValues(t, 2, opened.Load())
	})
}

func TestPublicOnly(t *testing.T) {
	var asked atomic.Int32
	responder := stapletest.NewResponder(fetchCA())
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.Host == "public.invalid" {
			http.Redirect(w, r, "http://"+w.Header().Get("X"), http.StatusFound)
			return
		}
		responder.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	require.NoError(t, err)
	hosts := []string{"127.0.0.1", "127.255.255.254", "localhost", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]",
		"[::ffff:7f00:1]", "[::127.0.0.1]", "[0:0:0:0:0:0:0:1]", "[::1%25lo]", "[fe80::1%25lo]"}
	for _, host := range hosts {
		t.Run(host, func(t *testing.T) {
			f := &HTTPFetcher{PublicOnly: true}
			u := "http://" + host + ":" + port
			leaf := fetchCA().Leaf(stapletest.LeafOptions{Responders: []string{u}, IssuerURLs: []string{u}}).Leaf
			_, err := f.Fetch(t.Context(), &Request{Leaf: leaf, Issuer: fetchCA().Issuer})
			require.ErrorContains(t, err, "is not a globally reachable address")
			_, err = f.FetchIssuer(t.Context(), leaf)
			require.ErrorContains(t, err, "is not a globally reachable address")
			require.Zero(t, asked.Load())
		})
	}
	t.Run("a redirect does not get round it", func(t *testing.T) {
		redirector := newServer(t, http.RedirectHandler(s.URL, http.StatusFound))
		f := &HTTPFetcher{PublicOnly: true}
		f.own = f.newClient()
		transport := f.own.Transport.(*http.Transport)
		dial := transport.DialContext
		transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == "public.invalid:80" { // as if it were
				return new(net.Dialer).DialContext(ctx, network, strings.TrimPrefix(redirector, "http://"))
			}
			return dial(ctx, network, addr)
		}
		_, err := f.Fetch(t.Context(), fetchRequest("http://public.invalid"))
		require.ErrorContains(t, err, "127.0.0.1 is not a globally reachable address")
		require.Zero(t, asked.Load())
	})
	t.Run("together with a Client", func(t *testing.T) {
		f := &HTTPFetcher{PublicOnly: true, Client: s.Client()}
		req := fetchRequest(s.URL)
		_, err := f.Fetch(t.Context(), req)
		require.ErrorContains(t, err, "PublicOnly cannot be ensured for a Client")
		_, err = f.FetchIssuer(t.Context(), req.Leaf)
		require.ErrorContains(t, err, "PublicOnly cannot be ensured for a Client")
		require.Zero(t, asked.Load())
	})
	t.Run("otherwise all of them are reached", func(t *testing.T) {
		_, err := new(HTTPFetcher).Fetch(t.Context(), fetchRequest("http://localhost:"+port))
		require.NoError(t, err)
		require.NotZero(t, asked.Load())
	})
}

func TestWhatIsRememberedIsBounded(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	key := fetchCA().Leaf(stapletest.LeafOptions{}).PrivateKey.(crypto.Signer)
	der := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: fetchCA().Issuer.Raw})
	f := &HTTPFetcher{Client: &http.Client{Transport: roundTripperFunc(func(r *http.Request) (*http.Response, error) {
		if r.URL.Host == "issuer.example" {
			return &http.Response{StatusCode: 200, Body: io.NopCloser(bytes.NewReader(der))}, nil
		}
		return responder.RoundTrip(r)
	})}}
	for i := range maxRemembered + 100 {
		leaf := fetchCA().Leaf(stapletest.LeafOptions{Key: key,
			Responders: []string{fmt.Sprintf("http://%d.example", i)}, IssuerURLs: []string{fmt.Sprintf("http://issuer.example/%d", i)}}).Leaf
		_, err := f.Fetch(t.Context(), &Request{Leaf: leaf, Issuer: fetchCA().Issuer})
		require.NoError(t, err)
		_, err = f.FetchIssuer(t.Context(), leaf)
		require.NoError(t, err)
	}
	require.Len(t, f.responders, maxRemembered)
	require.Len(t, f.issuers, maxRemembered)
	require.Empty(t, f.inFlight)
}

func TestConcurrentFetches(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	a, b := newServer(t, repliesStatus(500)), newServer(t, responder)
	f := &HTTPFetcher{}
	t.Cleanup(f.closeIdle)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				req := fetchRequest(a, b)
				req.Accept = acceptFor(req)
				_, err := f.Fetch(t.Context(), req)
				if err != nil || req.Responder != b {
					t.Error(req.Responder, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestOpenSSLResponder(t *testing.T) {
	openssl := peer.Need(t, "openssl")
	dir := t.TempDir()
	write := func(name, blockType string, der []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der}), 0o600))
		return path
	}
	key, err := x509.MarshalPKCS8PrivateKey(fetchCA().Key)
	require.NoError(t, err)
	ca := write("ca.pem", "CERTIFICATE", fetchCA().Issuer.Raw)
	keyFile := write("ca.key", "PRIVATE KEY", key)
	known := fetchCA().Leaf(stapletest.LeafOptions{})
	index := filepath.Join(dir, "index.txt")
	serial := fmt.Sprintf("%X", known.Leaf.SerialNumber)
	if len(serial)%2 == 1 {
		serial = "0" + serial
	}
	require.NoError(t, os.WriteFile(index, fmt.Appendf(nil, "V\t491231235959Z\t\t%s\tunknown\t/CN=localhost\n", serial), 0o600))

	cmd := exec.CommandContext(t.Context(), openssl, "ocsp", "-port", "0", "-index", index, "-CA", ca,
		"-rsigner", ca, "-rkey", keyFile, "-ndays", "1")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = cmd.Stdout
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	var seen []byte
	var port []byte
	for port == nil {
		chunk := make([]byte, 1024)
		n, err := out.Read(chunk)
		require.NoError(t, err, "no port in %q", seen)
		seen = append(seen, chunk[:n]...)
		if m := regexp.MustCompile(`ACCEPT \S*:(\d+)[ \n]`).FindSubmatch(seen); m != nil {
			port = m[1]
		}
	}
	go io.Copy(io.Discard, out)
	base := fmt.Sprintf("http://127.0.0.1:%s", port)

	for _, tt := range []struct {
		name string
		url  string
		hash crypto.Hash
	}{
		{"GET", base, 0},
		{"GET, below a path", base + "/", 0},
		{"GET, SHA-256", base, crypto.SHA256},
		{"POST", base + "/?post", 0},
		{"POST, SHA-512", base + "/?post", crypto.SHA512},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leaf := *known.Leaf
			leaf.OCSPServer = []string{tt.url}
			req := &Request{Leaf: &leaf, Issuer: fetchCA().Issuer}
			der, err := (&HTTPFetcher{Hash: tt.hash}).Fetch(t.Context(), req)
			require.NoError(t, err)
			// x/crypto/ocsp does not take the signer's own certificate, which openssl embeds.
			r, err := ocsp.ParseResponse(der, nil)
			require.NoError(t, err)
			require.Equal(t, ocsp.Good, r.Status)
			require.Equal(t, leaf.SerialNumber, r.SerialNumber)
		})
	}
	t.Run("a certificate that it does not know", func(t *testing.T) {
		leaf := fetchCA().Leaf(stapletest.LeafOptions{Responders: []string{base}}).Leaf
		der, err := new(HTTPFetcher).Fetch(t.Context(), &Request{Leaf: leaf, Issuer: fetchCA().Issuer})
		require.NoError(t, err)
		r, err := ocsp.ParseResponse(der, nil)
		require.NoError(t, err)
		require.Equal(t, ocsp.Unknown, r.Status)
	})
}
