package ask

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple/internal/exchange"
	"github.com/go-staple/staple/internal/testhttp"
	"github.com/go-staple/staple/stapletest"
)

func TestCertIDHash(t *testing.T) {
	responder := stapletest.NewResponder(testCA())
	only := func(known crypto.Hash, otherwise []byte) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rec := httptest.NewRecorder()
			responder.ServeHTTP(rec, r)
			all := responder.Requests(nil)
			if all[len(all)-1].Hash != known {
				testhttp.RepliesOCSP(otherwise).ServeHTTP(w, r)
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
		{"SHA-1", crypto.SHA1, responder, []string{"GET SHA-1"}, []string{"GET SHA-1"}},
		{"SHA-256", crypto.SHA256, responder, []string{"GET SHA-256"}, []string{"GET SHA-256"}},
		{"SHA-384", crypto.SHA384, responder, []string{"GET SHA-384"}, []string{"GET SHA-384"}},
		{"SHA-512, which makes the URL too long", crypto.SHA512, responder, []string{"POST SHA-512"}, []string{"POST SHA-512"}},
		{"only SHA-256 is known, else unauthorized", crypto.SHA1, only(crypto.SHA256, ocsp.UnauthorizedErrorResponse),
			[]string{"GET SHA-1", "GET SHA-256"}, []string{"GET SHA-256"}},
		{"only SHA-256 is known, else malformedRequest", crypto.SHA1, only(crypto.SHA256, ocsp.MalformedRequestErrorResponse),
			[]string{"GET SHA-1", "GET SHA-256"}, []string{"GET SHA-256"}},
		{"only SHA-1 is known, else unauthorized", crypto.SHA256, only(crypto.SHA1, ocsp.UnauthorizedErrorResponse),
			[]string{"GET SHA-256", "GET SHA-1"}, []string{"GET SHA-1"}},
		{"only SHA-1 is known, else malformedRequest", crypto.SHA384, only(crypto.SHA1, ocsp.MalformedRequestErrorResponse),
			[]string{"GET SHA-384", "GET SHA-1"}, []string{"GET SHA-1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := testhttp.NewScripted(t, tt.handler)
			response, next, _ := question(t, s.URL).Ask(t.Context(), Way{Hash: tt.hash})
			require.NotNil(t, response)
			require.Equal(t, tt.first, s.Asked())
			response, again, _ := question(t, s.URL).Ask(t.Context(), next)
			require.NotNil(t, response)
			require.Equal(t, tt.then, s.Asked()[len(tt.first):])
			next.posts = again.posts
			require.Equal(t, next, again)
		})
	}
	t.Run("neither: the error is the responder's, and nothing is learnt", func(t *testing.T) {
		s := testhttp.NewScripted(t, testhttp.RepliesOCSP(ocsp.UnauthorizedErrorResponse))
		_, next, failed := question(t, s.URL).Ask(t.Context(), sha1Way)
		require.Equal(t, []string{"GET SHA-1", "GET SHA-256"}, s.Asked())
		require.Equal(t, sha1Way, next)
		require.Len(t, failed, 2)
		for _, a := range failed {
			status, ok := errors.AsType[ocsp.ResponseError](a.Err)
			require.True(t, ok)
			require.Equal(t, ocsp.Unauthorized, status.Status)
		}
	})
	t.Run("an error status in the body of a 400 counts", func(t *testing.T) {
		malformed := testhttp.Replies(400, "application/ocsp-response", string(ocsp.MalformedRequestErrorResponse))
		s := testhttp.NewScripted(t, malformed, malformed, responder)
		response, next, _ := question(t, s.URL).Ask(t.Context(), sha1Way)
		require.NotNil(t, response)
		require.Equal(t, []string{"GET SHA-1", "GET SHA-256", "POST SHA-1"}, s.Asked())
		require.Equal(t, sha1Way, next)
	})
	t.Run("a path mangled on its way is malformed with either hash: POST", func(t *testing.T) {
		malformed := testhttp.RepliesOCSP(ocsp.MalformedRequestErrorResponse)
		s := testhttp.NewScripted(t, malformed, malformed, responder)
		response, next, _ := question(t, s.URL).Ask(t.Context(), sha1Way)
		require.NotNil(t, response)
		require.Equal(t, []string{"GET SHA-1", "GET SHA-256", "POST SHA-1"}, s.Asked())
		require.Equal(t, sha1Way, next)
	})
	t.Run("a hash that no CertID has", func(t *testing.T) {
		s := testhttp.NewScripted(t, responder)
		_, _, failed := question(t, s.URL).Ask(t.Context(), Way{Hash: crypto.MD5})
		require.Len(t, failed, 1)
		require.Equal(t, Unasked, failed[0].Stage)
		require.ErrorIs(t, failed[0].Err, x509.ErrUnsupportedAlgorithm)
		require.ErrorContains(t, failed[0].Err, "CertID hash of MD5")
		require.Empty(t, s.Asked())
	})
}

func TestStaleAnswersAreAskedForAgain(t *testing.T) {
	responder := stapletest.NewResponder(testCA())
	old := stapletest.NewResponder(testCA())
	old.Set(nil, stapletest.Answer{Age: 48 * time.Hour, Validity: 24 * time.Hour})
	past := []string{"GET SHA-1", "GET SHA-1 no-cache"}
	all := append(slices.Clone(past), "POST SHA-1")
	tests := []struct {
		name    string
		stale   int   // so many answers are old
		reason  error // for which they are refused
		asked   []string
		success bool
	}{
		{"fresh", 0, errStale, past[:1], true},
		{"past the caches it is fresh", 1, errStale, past, true},
		{"only POST helps", 2, errStale, all, true},
		{"nothing helps", 3, errStale, all, false},
		{"refused for another reason", 1, errForged, past[:1], false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			handlers := append(slices.Repeat([]http.Handler{old}, tt.stale), responder)
			s := testhttp.NewScripted(t, handlers...)
			q := question(t, s.URL)
			accept := q.Accept
			q.Accept = func(der []byte) error {
				if err := accept(der); err != nil {
					return fmt.Errorf("wrapped: %w", tt.reason)
				}
				return nil
			}
			response, next, failed := q.Ask(t.Context(), sha1Way)
			require.Equal(t, tt.asked, s.Asked())
			require.Equal(t, tt.success, response != nil)
			require.Equal(t, Way{Hash: crypto.SHA1, POST: tt.reason == errForged}, next)
			require.Len(t, failed, tt.stale)
			for i, a := range failed {
				require.Equal(t, Refused, a.Stage)
				require.Equal(t, 200, a.Status)
				require.ErrorIs(t, a.Err, tt.reason)
				require.ErrorContains(t, a.Err, tt.asked[i][:3])
			}
		})
	}
	t.Run("POST still works where the request past the caches fails", func(t *testing.T) {
		s := testhttp.NewScripted(t, old, testhttp.RepliesStatus(503), responder)
		response, _, failed := question(t, s.URL).Ask(t.Context(), sha1Way)
		require.NotNil(t, response)
		require.Equal(t, all, s.Asked())
		require.Equal(t, []string{"GET: past its time", "GET: 503 Service Unavailable"}, errorsOf(failed))
	})
	t.Run("where nothing is stale, once is enough", func(t *testing.T) {
		s := testhttp.NewScripted(t, old)
		q := question(t, s.URL)
		q.Cause = nil
		response, _, _ := q.Ask(t.Context(), sha1Way)
		require.Nil(t, response)
		require.Equal(t, past[:1], s.Asked())
	})
}

func TestWithoutAnAnswerTheOtherMethodIsNext(t *testing.T) {
	post := Way{Hash: crypto.SHA256, POST: true}
	get := Way{Hash: crypto.SHA256}
	reset := func(conn net.Conn) { conn.(*net.TCPConn).SetLinger(0) }
	for _, tt := range []struct {
		name      string
		server    string
		way, next Way
	}{
		{"a GET that is reset", testhttp.ServeRaw(t, reset), get, post},
		{"a POST that is reset", testhttp.ServeRaw(t, reset), post, get},
		{"a GET that is answered with nothing", testhttp.ServeRaw(t, testhttp.Says("")), get, post},
		{"a GET that is answered with an error", testhttp.NewServer(t, testhttp.RepliesStatus(503)), get, post},
		{"a POST that is answered with an error", testhttp.NewServer(t, testhttp.RepliesStatus(503)), post, get},
		{"a POST that works", testhttp.NewServer(t, stapletest.NewResponder(testCA())), post, Way{Hash: crypto.SHA256, POST: true, posts: 1}},
		{"no connection", testhttp.ClosedServer(), get, get},
		{"no connection, for a POST", testhttp.ClosedServer(), post, get},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, next, _ := question(t, tt.server).Ask(t.Context(), tt.way)
			require.Equal(t, tt.next, next)
		})
	}
}

func TestStages(t *testing.T) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name   string
		ctx    context.Context
		server string
		stages []Stage
	}{
		{"no connection", t.Context(), testhttp.ClosedServer(), []Stage{Silent}},
		{"closed without a word", t.Context(), testhttp.ServeRaw(t, testhttp.Says("")), []Stage{Silent}},
		{"not HTTP, twice", t.Context(), testhttp.ServeRaw(t, testhttp.Says("SSH-2.0-OpenSSH_9.9\r\n")), []Stage{Answered, Answered}},
		{"an HTTP error, twice", t.Context(), testhttp.NewServer(t, testhttp.RepliesStatus(404)), []Stage{Answered, Answered}},
		{"cut short, twice", t.Context(), testhttp.ServeRaw(t, testhttp.Says(testhttp.OK+"Content-Length: 9\r\n\r\nx")), []Stage{Answered, Answered}},
		{"refused", t.Context(), testhttp.NewServer(t, testhttp.RepliesOCSP(stapletest.NewResponder(testCA()).Response(
			testCA().Leaf(stapletest.LeafOptions{}).Leaf))), []Stage{Refused}},
		{"the caller has given up", over, testhttp.ServeRaw(t, testhttp.Hangs), []Stage{Unasked}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			response, _, failed := question(t, tt.server).Ask(tt.ctx, sha1Way)
			require.Nil(t, response)
			var stages []Stage
			for _, a := range failed {
				require.Error(t, a.Err)
				stages = append(stages, a.Stage)
			}
			require.Equal(t, tt.stages, stages)
		})
	}
	unanswered := func(t *testing.T) *Question {
		q := question(t, "http://hangs.example")
		q.Client.HTTP.Transport.(*http.Transport).DialContext = testhttp.Piped(t, testhttp.Hangs)
		return q
	}
	t.Run("the caller gives up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			_, _, failed := unanswered(t).Ask(ctx, sha1Way)
			require.Len(t, failed, 1)
			require.Equal(t, Unasked, failed[0].Stage)
			require.ErrorIs(t, failed[0].Err, context.Canceled)
		})
	})
	t.Run("the time is up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, next, failed := unanswered(t).Ask(t.Context(), sha1Way)
			require.Len(t, failed, 1)
			require.Equal(t, Silent, failed[0].Stage)
			require.ErrorIs(t, failed[0].Err, context.DeadlineExceeded)
			require.True(t, next.POST)
		})
	})
	t.Run("what an answer asks for", func(t *testing.T) {
		_, _, failed := question(t, testhttp.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "60")
			w.WriteHeader(503)
		}))).Ask(t.Context(), sha1Way)
		require.Len(t, failed, 1)
		require.Equal(t, time.Minute, failed[0].RetryAfter)
		require.Equal(t, 503, failed[0].Status)
	})
}

func TestUnusualButValidAnswers(t *testing.T) {
	responder := stapletest.NewResponder(testCA())
	ask := func(t *testing.T, server func(der string) string) {
		q := question(t, "http://unknown.example")
		u, err := exchange.ParseURL(server(string(responder.Response(q.Leaf))))
		require.NoError(t, err)
		q.Responder = u
		requireAnswer(t, q)
	}
	t.Run("HTTP/1.0 without a length", func(t *testing.T) {
		ask(t, func(der string) string { return testhttp.ServeRaw(t, testhttp.Says("HTTP/1.0 200 OK\r\n\r\n"+der)) })
	})
	t.Run("a wrong Content-Type", func(t *testing.T) {
		ask(t, func(der string) string { return testhttp.NewServer(t, testhttp.Replies(200, "text/html", der)) })
	})
}
