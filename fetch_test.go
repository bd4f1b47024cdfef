package staple_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/testhttp"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

var fetchCA = sync.OnceValue(func() *stapletest.CA {
	return stapletest.NewCA(stapletest.CAOptions{Name: "Fetch CA", Intermediate: true})
})

// fetchRequest returns a request about a new leaf with these responders.
func fetchRequest(responders ...string) *staple.Request {
	leaf := fetchCA().Leaf(stapletest.LeafOptions{Responders: responders}).Leaf
	return &staple.Request{Leaf: leaf, Issuer: fetchCA().Issuer}
}

// acceptFor is an Accept that takes authentic and current responses about req.
func acceptFor(req *staple.Request) func([]byte) error {
	return func(der []byte) error {
		r, err := ocsp.ParseResponseForCert(der, req.Leaf, req.Issuer)
		if err != nil {
			return &staple.VerifyError{Reason: staple.ReasonWrongCertificate, Leaf: req.Leaf, Err: err}
		}
		if time.Now().After(r.NextUpdate) {
			return &staple.VerifyError{Reason: staple.ReasonExpired, Leaf: req.Leaf, Err: errors.New("nextUpdate has passed")}
		}
		return nil
	}
}

func TestWhatAResponderIsAsked(t *testing.T) {
	var got atomic.Pointer[http.Request]
	responder := stapletest.NewResponder(fetchCA())
	server := testhttp.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got.Store(r)
		responder.ServeHTTP(w, r)
	}))
	for _, path := range []string{"", "/", "/ocsp", "/ocsp/", "//", "/a//b/../c/.", "/a%2Fb/%7e", "#fragment", "/?post"} {
		t.Run("path "+path, func(t *testing.T) {
			req := fetchRequest(server + path)
			der, err := new(staple.HTTPFetcher).Fetch(t.Context(), req)
			require.NoError(t, err)
			_, err = ocsp.ParseResponseForCert(der, req.Leaf, req.Issuer)
			require.NoError(t, err)
			require.Equal(t, server+path, req.Responder)
		})
	}
	t.Run("credentials in the URL are not sent", func(t *testing.T) {
		req := fetchRequest(strings.Replace(server, "http://", "http://user:secret@", 1))
		_, err := new(staple.HTTPFetcher).Fetch(t.Context(), req)
		require.NoError(t, err)
		require.Empty(t, got.Load().Header["Authorization"])
	})
}

func TestWhatWorkedIsRemembered(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	tests := []struct {
		name        string
		hash        crypto.Hash
		first, then []string
	}{
		{"SHA-1 is the default", 0, []string{"GET SHA-1"}, []string{"GET SHA-1"}},
		{"SHA-384", crypto.SHA384, []string{"GET SHA-384"}, []string{"GET SHA-384"}},
		{"the other hash", 0, []string{"GET SHA-1", "GET SHA-256"}, []string{"GET SHA-256"}},
		{"SHA-1 after all", crypto.SHA512, []string{"POST SHA-512", "GET SHA-1"}, []string{"GET SHA-1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			unauthorized := slices.Repeat([]http.Handler{testhttp.RepliesOCSP(ocsp.UnauthorizedErrorResponse)}, len(tt.first)-1)
			s := testhttp.NewScripted(t, append(unauthorized, responder)...)
			f := &staple.HTTPFetcher{Hash: tt.hash}
			_, err := f.Fetch(t.Context(), fetchRequest(s.URL))
			require.NoError(t, err)
			require.Equal(t, tt.first, s.Asked())
			_, err = f.Fetch(t.Context(), fetchRequest(s.URL))
			require.NoError(t, err)
			require.Equal(t, tt.then, s.Asked()[len(tt.first):])
		})
	}
	t.Run("neither hash works: the error is the responder's, and nothing is remembered", func(t *testing.T) {
		s := testhttp.NewScripted(t, testhttp.RepliesOCSP(ocsp.UnauthorizedErrorResponse))
		f := &staple.HTTPFetcher{}
		for range 2 {
			_, err := f.Fetch(t.Context(), fetchRequest(s.URL))
			var status ocsp.ResponseError
			require.ErrorAs(t, err, &status)
			require.Equal(t, ocsp.Unauthorized, status.Status)
		}
		require.Equal(t, []string{"GET SHA-1", "GET SHA-256", "GET SHA-1", "GET SHA-256"}, s.Asked())
	})
	t.Run("a hash that no CertID has", func(t *testing.T) {
		s := testhttp.NewScripted(t, responder)
		_, err := (&staple.HTTPFetcher{Hash: crypto.MD5}).Fetch(t.Context(), fetchRequest(s.URL))
		require.ErrorIs(t, err, x509.ErrUnsupportedAlgorithm)
		require.ErrorContains(t, err, "CertID hash of MD5")
		require.Empty(t, s.Asked())
	})
	for name, onGET := range map[string]testhttp.Raw{
		"a responder that does not answer a GET": testhttp.Hangs,
		"a firewall that cuts a GET off":         testhttp.Says(""),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var methods []string
				by := map[string]http.RoundTripper{http.MethodGet: pipedClient(t, onGET, nil).Transport, http.MethodPost: responder}
				f := &staple.HTTPFetcher{Client: &http.Client{Transport: testhttp.RoundTripper(func(r *http.Request) (*http.Response, error) {
					methods = append(methods, r.Method)
					return by[r.Method].RoundTrip(r)
				})}}
				fetch := func() (failed bool) {
					_, err := f.Fetch(t.Context(), fetchRequest("http://ocsp.example"))
					return err != nil
				}
				require.True(t, fetch())
				require.False(t, fetch())
				require.False(t, fetch())
				by = map[string]http.RoundTripper{http.MethodGet: responder, http.MethodPost: pipedClient(t,
					testhttp.Says("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"), nil).Transport}
				require.True(t, fetch())
				require.False(t, fetch())
				require.False(t, fetch())
				require.Equal(t, []string{"GET", "POST", "POST", "POST", "GET", "GET"}, methods)
			})
		})
	}
}

func TestFetchGoesFromURLToURL(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	live := testhttp.NewScripted(t, responder)
	other := fetchRequest("http://ocsp.example")
	dead := testhttp.NewServer(t, testhttp.RepliesStatus(500))
	closed := httptest.NewServer(responder)
	closed.Close()
	for name, first := range map[string]string{
		"dead":                          closed.URL,
		"500":                           dead,
		"garbage with status 200":       testhttp.NewServer(t, testhttp.Replies(200, "application/ocsp-response", "garbage")),
		"an OCSP error":                 testhttp.NewServer(t, testhttp.RepliesOCSP(ocsp.TryLaterErrorResponse)),
		"about another certificate":     testhttp.NewServer(t, testhttp.RepliesOCSP(responder.Response(other.Leaf))),
		"LDAP":                          "ldap://127.0.0.1/cn=ocsp",
		"a file":                        "file:///etc/passwd",
		"no URL":                        "://\x01",
		"no host":                       "http:/path",
		"longer than anybody's":         live.URL + "/" + strings.Repeat("a", 2048),
		"an OCSP error with status 500": testhttp.NewServer(t, testhttp.Replies(500, "application/ocsp-response", string(ocsp.InternalErrorErrorResponse))),
	} {
		t.Run("the first is "+name, func(t *testing.T) {
			req := fetchRequest()
			urls := []string{first, live.URL}
			req.Accept = acceptFor(req)
			f := &staple.HTTPFetcher{URLs: func(*x509.Certificate) []string { return urls }}
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
		busy := testhttp.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "120")
			w.WriteHeader(503)
		}))
		req := fetchRequest(closed.URL, dead, "ldap://127.0.0.1", busy)
		_, err := new(staple.HTTPFetcher).Fetch(t.Context(), req)
		joined, ok := err.(interface{ Unwrap() []error })
		require.True(t, ok)
		var urls []string
		for _, err := range joined.Unwrap() {
			var e *staple.HTTPError
			require.ErrorAs(t, err, &e)
			require.ErrorContains(t, err, fmt.Sprintf("%q", e.URL))
			urls = append(urls, e.URL)
		}
		require.ElementsMatch(t, req.Leaf.OCSPServer, urls)
		var e *staple.HTTPError
		require.ErrorAs(t, err, &e)
		require.Equal(t, busy, e.URL)
		require.Equal(t, 503, e.StatusCode)
		require.Equal(t, 2*time.Minute, e.RetryAfter)
		require.Empty(t, req.Responder)
	})

	t.Run("what worked last is tried first", func(t *testing.T) {
		a, b := testhttp.NewScripted(t, testhttp.RepliesStatus(500), responder), testhttp.NewScripted(t, responder, testhttp.RepliesStatus(500), responder)
		f := &staple.HTTPFetcher{}
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
			require.Len(t, a.Asked(), want.a, i)
			require.Len(t, b.Asked(), want.b, i)
		}
	})

	t.Run("sixteen are asked, no more", func(t *testing.T) {
		s := testhttp.NewScripted(t, testhttp.RepliesStatus(500))
		var urls []string
		for i := range 1000 {
			urls = append(urls, fmt.Sprintf("%s/%d", s.URL, i))
		}
		_, err := new(staple.HTTPFetcher).Fetch(t.Context(), fetchRequest(urls...))
		require.Error(t, err)
		require.Len(t, s.Asked(), 16)
	})
}

func TestNobodyToAsk(t *testing.T) {
	noIO := &http.Client{Transport: testhttp.RoundTripper(func(*http.Request) (*http.Response, error) {
		panic("no request should be made")
	})}
	for name, urls := range map[string][]string{
		"no URL":             nil,
		"only LDAP and file": {"ldap://ocsp.example", "file:///etc/passwd", "http:", "ocsp.example"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &staple.HTTPFetcher{Client: noIO}
			req := fetchRequest(urls...)
			_, err := f.Fetch(t.Context(), req)
			require.ErrorIs(t, err, staple.ErrNoResponder)
			_, err = f.FetchIssuer(t.Context(), req.Leaf)
			require.ErrorIs(t, err, staple.ErrNoResponder)
		})
	}
	t.Run("by URLs", func(t *testing.T) {
		f := &staple.HTTPFetcher{Client: noIO, URLs: func(*x509.Certificate) []string { return nil }}
		_, err := f.Fetch(t.Context(), fetchRequest("http://ocsp.example"))
		require.ErrorIs(t, err, staple.ErrNoResponder)
	})
	t.Run("no leaf, no issuer", func(t *testing.T) {
		f := &staple.HTTPFetcher{Client: noIO}
		_, err := f.Fetch(t.Context(), &staple.Request{})
		require.ErrorContains(t, err, "needs a leaf")
		_, err = f.FetchIssuer(t.Context(), nil)
		require.ErrorContains(t, err, "needs a leaf")
		_, err = f.Fetch(t.Context(), &staple.Request{Leaf: fetchRequest("http://ocsp.example").Leaf})
		require.ErrorIs(t, err, staple.ErrNoIssuer)
	})
}

func TestURLsReplacesTheCertificatesOwn(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	req := fetchRequest("http://certificate.example")
	f := &staple.HTTPFetcher{Client: responder.Client(), URLs: func(leaf *x509.Certificate) []string {
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
	refused := func(reason staple.Reason) error {
		return fmt.Errorf("wrapped: %w", &staple.VerifyError{Reason: reason, Err: errors.New("why")})
	}
	older := fmt.Errorf("wrapped: %w", staple.ErrOlder)
	asks := []string{"GET SHA-1", "GET SHA-1 no-cache", "POST SHA-1"}
	for _, tt := range []struct {
		name   string
		reason error
		stale  int      // so many answers are refused for it
		asks   []string // before one is taken, or none is
	}{
		{"an expired one, past the caches it is fresh", refused(staple.ReasonExpired), 1, asks[:2]},
		{"only POST helps", refused(staple.ReasonExpired), 2, asks},
		{"nothing helps", refused(staple.ReasonExpired), 3, asks},
		{"older than the one held, past the caches it is not", older, 1, asks[:2]},
		{"older than the one held, only POST helps", older, 2, asks},
		{"older than the one held", older, 3, asks},
		{"refused for another reason", refused(staple.ReasonBadSignature), 1, asks[:1]},
		{"not valid yet", refused(staple.ReasonNotYetValid), 1, asks[:1]},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := testhttp.NewScripted(t, stapletest.NewResponder(fetchCA()))
			req := fetchRequest(s.URL)
			left := tt.stale
			req.Accept = func([]byte) error {
				if left--; left >= 0 {
					return tt.reason
				}
				return nil
			}
			_, err := new(staple.HTTPFetcher).Fetch(t.Context(), req)
			require.Equal(t, tt.asks, s.Asked())
			if tt.stale < len(tt.asks) {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, tt.reason)
			}
		})
	}
	t.Run("every error of Accept is in the tree", func(t *testing.T) {
		reasons := []error{staple.ErrOlder, staple.ErrOlder, errors.New("third"), errors.New("fourth")}
		all := slices.Clone(reasons)
		s := testhttp.NewScripted(t, stapletest.NewResponder(fetchCA()))
		req := fetchRequest(s.URL, s.URL+"/2")
		req.Accept = func([]byte) error {
			err := all[0]
			all = all[1:]
			return err
		}
		_, err := new(staple.HTTPFetcher).Fetch(t.Context(), req)
		for _, reason := range reasons {
			require.ErrorIs(t, err, reason)
		}
		require.Empty(t, all)
	})
}

func TestRetryAfter(t *testing.T) {
	t.Run("what an earlier request to the URL was told counts", func(t *testing.T) {
		s := testhttp.NewScripted(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "60")
			w.WriteHeader(404)
		}), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }))
		_, err := new(staple.HTTPFetcher).Fetch(t.Context(), fetchRequest(s.URL))
		require.Equal(t, []string{"GET SHA-1", "POST SHA-1"}, s.Asked()[:2])
		var e *staple.HTTPError
		require.ErrorAs(t, err, &e)
		require.Equal(t, time.Minute, e.RetryAfter)
		require.Equal(t, 404, e.StatusCode)
		require.ErrorIs(t, err, io.EOF)
	})
	for _, status := range []int{429, 503} {
		s := testhttp.NewScripted(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(status)
		}))
		_, err := new(staple.HTTPFetcher).Fetch(t.Context(), fetchRequest(s.URL))
		var e *staple.HTTPError
		require.ErrorAs(t, err, &e)
		require.Equal(t, status, e.StatusCode)
		require.Equal(t, 30*time.Second, e.RetryAfter)
		require.Equal(t, s.URL, e.URL)
		require.ErrorContains(t, err, fmt.Sprintf("(HTTP status %d, retry after 30s)", status))
		require.Equal(t, []string{"GET SHA-1"}, s.Asked())
	}
}

func TestHTTPErrorIsOneSafeLine(t *testing.T) {
	for _, tt := range []struct {
		err  staple.HTTPError
		want string
	}{
		{staple.HTTPError{URL: "http://a"}, `staple: "http://a": (no HTTP response)`},
		{staple.HTTPError{URL: "http://a", StatusCode: 503}, `staple: "http://a": (HTTP status 503)`},
		{staple.HTTPError{URL: "http://a", StatusCode: 503, RetryAfter: time.Minute}, `staple: "http://a": (HTTP status 503, retry after 1m0s)`},
		{staple.HTTPError{URL: "http://a", Err: io.EOF}, `staple: "http://a": EOF (no HTTP response)`},
		{staple.HTTPError{URL: "http://a\n\x1b[31m", StatusCode: 200, Err: errors.New("a\nb\x1b[2J\u202e")},
			`staple: "http://a\n\x1b[31m": a` + "\ufffdb\ufffd[2J\ufffd" + ` (HTTP status 200)`},
	} {
		require.Equal(t, tt.want, tt.err.Error())
	}
	long := staple.HTTPError{URL: strings.Repeat("u", 1<<20), Err: errors.New(strings.Repeat("é", 1<<20))}
	require.Less(t, len(long.Error()), 3000)
	require.ErrorIs(t, &staple.HTTPError{Err: io.EOF}, io.EOF)
}

func TestMaxResponseSize(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	req := fetchRequest("http://ocsp.example")
	responder.Set(req.Leaf, stapletest.Answer{Replay: responder.Response(req.Leaf)})
	size := int64(len(responder.Response(req.Leaf)))
	_, err := (&staple.HTTPFetcher{Client: responder.Client(), MaxResponseSize: size}).Fetch(t.Context(), req)
	require.NoError(t, err)
	_, err = (&staple.HTTPFetcher{Client: responder.Client(), MaxResponseSize: size - 1}).Fetch(t.Context(), req)
	require.ErrorContains(t, err, fmt.Sprintf("larger than %d bytes", size-1))
}

func TestFetcherFuncKeepsFailOver(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	live := testhttp.NewServer(t, responder)
	req := fetchRequest(testhttp.NewServer(t, testhttp.RepliesOCSP(responder.Response(fetchRequest().Leaf))), live)
	req.Accept = acceptFor(req)
	var inner staple.HTTPFetcher
	var wrapped staple.Fetcher = staple.FetcherFunc(func(ctx context.Context, r *staple.Request) ([]byte, error) { return inner.Fetch(ctx, r) })
	der, err := wrapped.Fetch(t.Context(), req)
	require.NoError(t, err)
	require.NoError(t, req.Accept(der))
	require.Equal(t, live, req.Responder)
}

func TestConcurrentFetches(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	a, b := testhttp.NewServer(t, testhttp.RepliesStatus(500)), testhttp.NewServer(t, responder)
	f := &staple.HTTPFetcher{}
	t.Cleanup(f.CloseIdleConnections)
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
