package ask

import (
	"bytes"
	"compress/gzip"
	"crypto"
	"encoding/base64"
	"errors"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple/internal/exchange"
	"github.com/go-staple/staple/internal/testhttp"
	"github.com/go-staple/staple/stapletest"
)

var testCA = sync.OnceValue(func() *stapletest.CA {
	return stapletest.NewCA(stapletest.CAOptions{Name: "Ask CA", Intermediate: true})
})

var (
	errStale  = errors.New("past its time")
	errForged = errors.New("forged")

	errUnchanged = errors.New("held already")
	errUnknown   = errors.New("unknown")

	sha1Way = Way{Hash: crypto.SHA1}
	postWay = Way{Hash: crypto.SHA1, POST: true}
)

// question returns a question about a new leaf, which takes authentic and current responses.
func question(t *testing.T, responder string) *Question {
	u, err := exchange.ParseURL(responder)
	require.NoError(t, err)
	q := &Question{
		Client:    exchange.Client{HTTP: exchange.NewClient(time.Minute, nil), Timeout: time.Minute, MaxBody: 64 << 10},
		Responder: u,
		Leaf:      testCA().Leaf(stapletest.LeafOptions{}).Leaf,
		Issuer:    testCA().Issuer,
	}
	t.Cleanup(q.Client.HTTP.CloseIdleConnections)
	q.Accept = func(der []byte) error {
		r, err := ocsp.ParseResponseForCert(der, q.Leaf, q.Issuer)
		switch {
		case err != nil:
			return err
		case time.Now().After(r.NextUpdate):
			return errStale
		}
		return nil
	}
	q.Cause = func(err error) Cause {
		switch {
		case errors.Is(err, errStale):
			return Stale
		case errors.Is(err, errUnchanged):
			return Unchanged
		case errors.Is(err, errUnknown):
			return Unknown
		}
		return Other
	}
	return q
}

// requireAnswer requires that q is answered, the first time, in the way that goes by SHA-1.
func requireAnswer(t *testing.T, q *Question) {
	t.Helper()
	response, next, failed := q.Ask(t.Context(), sha1Way)
	require.NotNil(t, response, failed)
	require.Empty(t, failed)
	require.Equal(t, sha1Way, next)
}

func errorsOf(failed []Attempt) (all []string) {
	for _, a := range failed {
		all = append(all, a.Err.Error())
	}
	return all
}

func TestGETFollowsTheRFCs(t *testing.T) {
	var got atomic.Pointer[http.Request]
	responder := stapletest.NewResponder(testCA())
	server := testhttp.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got.Store(r)
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
			q := question(t, server+tt.path)
			requireAnswer(t, q)
			asked, err := ocsp.CreateRequest(q.Leaf, q.Issuer, nil)
			require.NoError(t, err)
			text := strings.NewReplacer("/", "%2F", "+", "%2B", "=", "%3D").Replace(base64.StdEncoding.EncodeToString(asked))
			r := got.Load()
			require.Equal(t, tt.prefix+text, r.RequestURI)
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
			q := question(t, server)
			q.Leaf = testCA().Leaf(stapletest.LeafOptions{Serial: serial}).Leaf
			requireAnswer(t, q)
			uri := got.Load().RequestURI
			require.Equal(t, http.MethodGet, got.Load().Method)
			require.NotContains(t, uri[1:], "/")
			require.NotContains(t, uri, "+")
			slash = slash || strings.Contains(uri, "%2F")
			plus = plus || strings.Contains(uri, "%2B")
			equals = equals || strings.Contains(uri, "%3D")
			if slash && plus && equals {
				return
			}
		}
		t.Fatal("no request had all three")
	})
}

func TestLongURLsAndQueriesUsePOST(t *testing.T) {
	responder := stapletest.NewResponder(testCA())
	server := testhttp.NewServer(t, responder)
	serial := big.NewInt(1 << 40)
	ask := func(t *testing.T, url string) stapletest.Received {
		q := question(t, url)
		q.Leaf = testCA().Leaf(stapletest.LeafOptions{Serial: serial}).Leaf
		requireAnswer(t, q)
		all := responder.Requests(nil)
		return all[len(all)-1]
	}
	room := 255 - len(ask(t, server).URL)

	last := ask(t, server+"/"+strings.Repeat("a", room-1))
	require.Equal(t, http.MethodGet, last.Method)
	require.Len(t, last.URL, 255)

	last = ask(t, server+"/"+strings.Repeat("a", room))
	require.Equal(t, http.MethodPost, last.Method)
	require.Equal(t, server+"/"+strings.Repeat("a", room), last.URL)
	require.Equal(t, []string{"application/ocsp-request"}, last.Header["Content-Type"])
	require.NotContains(t, last.Header, "Idempotency-Key")
	require.Equal(t, []string{"application/ocsp-response"}, last.Header["Accept"])

	last = ask(t, server+"/servlet?ca=1&x=%2F")
	require.Equal(t, http.MethodPost, last.Method)
	require.Equal(t, server+"/servlet?ca=1&x=%2F", last.URL)

	last = ask(t, server+"/servlet?")
	require.Equal(t, http.MethodPost, last.Method)
}

func TestRequestIsAsSmallAsCanBe(t *testing.T) {
	responder := stapletest.NewResponder(testCA())
	q := question(t, testhttp.NewServer(t, responder))
	requireAnswer(t, q)
	asked, err := ocsp.CreateRequest(q.Leaf, q.Issuer, nil) // one certificate, no extensions
	require.NoError(t, err)
	require.Equal(t, asked, responder.Requests(q.Leaf)[0].Raw)
}

func TestIssuerNameHashIsOfTheLeafsEncoding(t *testing.T) {
	q := question(t, testhttp.NewServer(t, stapletest.NewResponder(testCA())))
	q.Accept = nil
	reissued := *q.Issuer // of the same key, its name encoded otherwise
	reissued.RawSubject = []byte("another encoding")
	q.Issuer = &reissued
	requireAnswer(t, q)
}

func TestPOSTWhereGETIsNoUse(t *testing.T) {
	responder := stapletest.NewResponder(testCA())
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
		{"400", testhttp.RepliesStatus(400), true, "GET: 400 Bad Request"},
		{"404", testhttp.RepliesStatus(404), true, "GET: 404 Not Found"},
		{"405", testhttp.RepliesStatus(405), true, "GET: 405 Method Not Allowed"},
		{"411", testhttp.RepliesStatus(411), true, "GET: 411 Length Required"},
		{"501", testhttp.RepliesStatus(501), true, "GET: 501 Not Implemented"},
		{"a web page", testhttp.Replies(200, "text/html", "<!DOCTYPE html>"), true,
			`GET: unusable answer: not an OCSP response, Content-Type "text/html", 15 bytes that begin with "<!DOCTYPE html>"`},
		{"an empty body", testhttp.Replies(200, "application/ocsp-response", ""), true, "GET: unusable answer: an empty body"},
		{"too much", testhttp.Replies(200, "text/html", strings.Repeat("x", 70_000)), true, "larger than 65536 bytes"},
		{"a compressed body", compressed, true, `Content-Encoding "gzip", which was not asked for`},
		{"DER that is something else", testhttp.RepliesOCSP([]byte{0x30, 0x03, 0x02, 0x01, 0x00}), true, "not an OCSP response"},
		{"successful, but nothing in it", testhttp.RepliesOCSP([]byte{0x30, 0x03, 0x0a, 0x01, 0x00}), true, "not an OCSP response"},
		{"a response with a trailing byte", testhttp.RepliesOCSP(append(slices.Clone(ocsp.TryLaterErrorResponse), 0)), true, "not an OCSP response"},
		{"403", testhttp.RepliesStatus(403), true, "GET: 403 Forbidden"},
		{"429", testhttp.RepliesStatus(429), false, "GET: 429 Too Many Requests"},
		{"500", testhttp.RepliesStatus(500), false, "GET: 500 Internal Server Error"},
		{"503", testhttp.RepliesStatus(503), false, "GET: 503 Service Unavailable"},
		{"204", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }), true, "GET: 204 No Content"},
		{"tryLater", testhttp.RepliesOCSP(ocsp.TryLaterErrorResponse), false, "GET: ocsp: error from server: try later"},
		{"internalError", testhttp.RepliesOCSP(ocsp.InternalErrorErrorResponse), false, "GET: ocsp: error from server: internal error"},
		{"sigRequired", testhttp.RepliesOCSP(ocsp.SigRequredErrorResponse), false, "GET: ocsp: error from server: signature required"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := []string{"GET SHA-1"}
			if tt.post {
				want = append(want, "POST SHA-1")
			}
			s := testhttp.NewScripted(t, tt.first, responder)
			response, next, failed := question(t, s.URL).Ask(t.Context(), sha1Way)
			require.Equal(t, tt.post, response != nil)
			require.Equal(t, want, s.Asked())
			require.Len(t, failed, 1)
			require.Equal(t, Answered, failed[0].Stage)
			require.Equal(t, Way{Hash: crypto.SHA1, POST: tt.name != "sigRequired"}, next)

			s = testhttp.NewScripted(t, tt.first, testhttp.RepliesStatus(500))
			_, _, failed = question(t, s.URL).Ask(t.Context(), sha1Way)
			require.Len(t, failed, len(want))
			require.ErrorContains(t, failed[0].Err, "GET: ")
			require.ErrorContains(t, failed[0].Err, tt.err)
			if tt.post {
				require.EqualError(t, failed[1].Err, "POST: 500 Internal Server Error")
				require.Equal(t, 500, failed[1].Status)
			}
		})
	}
}
