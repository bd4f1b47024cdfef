package ask

import (
	"context"
	"crypto"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple/internal/testhttp"
	"github.com/go-staple/staple/stapletest"
)

// refusesGET answers POST, and says to a GET what get does.
func refusesGET(get http.Handler) http.Handler {
	responder := stapletest.NewResponder(testCA())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && r.URL.Path != "/elsewhere" {
			get.ServeHTTP(w, r)
			return
		}
		responder.ServeHTTP(w, r)
	})
}

func TestWhateverAGETIsAnsweredPOSTFollowsInTheSameRoundOrTheNextAndIsRemembered(t *testing.T) {
	answers := map[string]http.Handler{
		"an empty body":       testhttp.Replies(200, "application/ocsp-response", ""),
		"a page":              testhttp.Replies(200, "text/html", "<!DOCTYPE html>"),
		"a redirect nowhere":  http.RedirectHandler("ftp://nowhere.example", http.StatusFound),
		"a redirect in rings": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }),
		"a body cut short":    testhttp.Replies(200, "application/ocsp-response", "\x30"),
		"tryLater":            testhttp.RepliesOCSP(ocsp.TryLaterErrorResponse),
		"internalError":       testhttp.RepliesOCSP(ocsp.InternalErrorErrorResponse),
	}
	for status := 201; status < 600; status++ {
		answers[fmt.Sprint("status ", status)] = testhttp.RepliesStatus(status)
	}
	for name, get := range answers {
		t.Run(name, func(t *testing.T) {
			s := testhttp.NewScripted(t, refusesGET(get))
			q := question(t, s.URL)
			response, way, _ := q.Ask(t.Context(), sha1Way)
			if response == nil {
				require.True(t, way.POST)
				response, way, _ = q.Ask(t.Context(), way)
			}
			require.NotNil(t, response)
			n := len(s.Asked())
			for range 5 {
				response, way, _ = q.Ask(t.Context(), way)
				require.NotNil(t, response)
			}
			require.Len(t, s.Asked(), n+5, "one request a round")
		})
	}
}

func TestFromTimeToTimeAGETIsTriedAgain(t *testing.T) {
	for _, status := range []int{405, 500} {
		works := false
		responder := stapletest.NewResponder(testCA())
		s := testhttp.NewScripted(t, refusesGET(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if works {
				responder.ServeHTTP(w, r)
				return
			}
			w.WriteHeader(status)
		})))
		q := question(t, s.URL)
		way := postWay
		rounds := 0
		for range 100 {
			var response []byte
			response, way, _ = q.Ask(t.Context(), way)
			require.NotNil(t, response, "it costs no round")
			rounds++
		}
		require.Len(t, s.Asked(), rounds+rounds/(tryGET+1))
		works = true
		for range tryGET + 1 {
			_, way, _ = q.Ask(t.Context(), way)
		}
		require.Equal(t, sha1Way, way)
	}
}

func TestAFailureThatIsNotPOSTsDoesNotUndoIt(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer http.Handler
		kept   bool
	}{
		{"unauthorized", testhttp.RepliesOCSP(ocsp.UnauthorizedErrorResponse), true},
		{"refused", testhttp.RepliesOCSP(stapletest.NewResponder(testCA()).Response(testCA().Leaf(stapletest.LeafOptions{}).Leaf)), true},
		{"404", testhttp.RepliesStatus(404), false},
		{"503", testhttp.RepliesStatus(503), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := testhttp.NewScripted(t, tt.answer)
			_, way, _ := question(t, s.URL).Ask(t.Context(), postWay)
			require.Equal(t, tt.kept, way.POST)
		})
	}
}

func TestPastTheCaches(t *testing.T) {
	responder := stapletest.NewResponder(testCA())
	unauthorized, tryLater := testhttp.RepliesOCSP(ocsp.UnauthorizedErrorResponse), testhttp.RepliesOCSP(ocsp.TryLaterErrorResponse)
	for _, tt := range []struct {
		name    string
		fresh   bool
		refuse  []error // for which answers are refused, in order
		answers []http.Handler
		asked   []string
	}{
		{"what is new is taken", false, nil, nil, []string{"GET SHA-1"}},
		{"from the beginning, if wanted", true, nil, nil, []string{"GET SHA-1 no-cache"}},
		{"unchanged is asked for again", false, []error{errUnchanged}, nil, []string{"GET SHA-1", "GET SHA-1 no-cache"}},
		{"also with POST, and will do", false, []error{errUnchanged, errUnchanged, errUnchanged}, nil, []string{"GET SHA-1", "GET SHA-1 no-cache", "POST SHA-1"}},
		{"unchanged from the beginning will do", true, []error{errUnchanged, errUnchanged}, nil, []string{"GET SHA-1 no-cache", "POST SHA-1"}},
		{"unchanged will do where POST is refused", true, []error{errUnchanged}, []http.Handler{responder, testhttp.RepliesStatus(405)},
			[]string{"GET SHA-1 no-cache", "POST SHA-1"}},
		{"a negative answer to a GET may come of a cache that knows no no-cache", true, nil, []http.Handler{unauthorized, responder},
			[]string{"GET SHA-1 no-cache", "POST SHA-1"}},
		{"tryLater, too", true, nil, []http.Handler{tryLater, responder}, []string{"GET SHA-1 no-cache", "POST SHA-1"}},
		{"and unknown", true, []error{errUnknown}, nil, []string{"GET SHA-1 no-cache", "POST SHA-1"}},
		{"the other hash is tried past the caches, then", true, nil, []http.Handler{unauthorized, unauthorized, responder},
			[]string{"GET SHA-1 no-cache", "POST SHA-1", "POST SHA-256"}},
		{"unknown is asked with the other hash", false, []error{errUnknown}, nil, []string{"GET SHA-1", "GET SHA-256"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.answers == nil {
				tt.answers = []http.Handler{responder}
			}
			s := testhttp.NewScripted(t, tt.answers...)
			q := question(t, s.URL)
			if tt.fresh {
				q.Past = HeedfulCaches
			}
			n := 0
			q.Accept = func([]byte) error {
				if n++; n <= len(tt.refuse) {
					return tt.refuse[n-1]
				}
				return nil
			}
			response, next, _ := q.Ask(t.Context(), sha1Way)
			require.NotNil(t, response)
			require.Equal(t, tt.asked, s.Asked())
			require.Equal(t, strings.Contains(tt.name, "will do"), q.Unchanged)
			if last := tt.asked[len(tt.asked)-1]; last == "GET SHA-256" || last == "POST SHA-256" {
				require.Equal(t, Way{Hash: crypto.SHA256}, next, "remembered")
			} else {
				require.Equal(t, sha1Way, next)
			}
		})
	}
}

func TestPastAllCaches(t *testing.T) {
	responder := stapletest.NewResponder(testCA())
	for _, tt := range []struct {
		name    string
		way     Way
		answers []http.Handler
		asked   []string
		next    Way
	}{
		{"POST alone, and GET is still the way", sha1Way, []http.Handler{responder}, []string{"POST SHA-1"}, sha1Way},
		{"where that is the way", postWay, []http.Handler{responder}, []string{"POST SHA-1"}, Way{Hash: crypto.SHA1, POST: true, posts: 1}},
		{"unless that is no use", sha1Way, []http.Handler{testhttp.RepliesStatus(405), responder}, []string{"POST SHA-1", "GET SHA-1 no-cache"}, sha1Way},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := testhttp.NewScripted(t, tt.answers...)
			q := question(t, s.URL)
			q.Past = AllCaches
			response, next, _ := q.Ask(t.Context(), tt.way)
			require.NotNil(t, response)
			require.Equal(t, tt.asked, s.Asked())
			require.Equal(t, tt.next, next)
		})
	}
}

func TestWherePOSTIsNoUseGETFollowsAndItsFaultStands(t *testing.T) {
	busy, refused := testhttp.RepliesStatus(500), testhttp.RepliesStatus(405)
	s := testhttp.NewScripted(t, refused, busy)
	_, next, failed := question(t, s.URL).Ask(t.Context(), postWay)
	require.Equal(t, []string{"POST SHA-1", "GET SHA-1"}, s.Asked())
	require.Equal(t, 500, failed[1].Status)
	require.Equal(t, postWay, next)

	s = testhttp.NewScripted(t, testhttp.RepliesOCSP(ocsp.TryLaterErrorResponse), refused)
	q := question(t, s.URL)
	q.Past = HeedfulCaches
	_, _, failed = q.Ask(t.Context(), sha1Way)
	require.Equal(t, []string{"GET SHA-1 no-cache", "POST SHA-1"}, s.Asked())
	require.Equal(t, []Stage{Answered, Unasked}, []Stage{failed[0].Stage, failed[1].Stage})
}

func TestWhatIsRefusedByGETIsAskedForByPOST(t *testing.T) {
	responder := stapletest.NewResponder(testCA())
	foreign := testhttp.RepliesOCSP(responder.Response(testCA().Leaf(stapletest.LeafOptions{}).Leaf))
	s := testhttp.NewScripted(t, refusesGET(foreign))
	q := question(t, s.URL)
	response, next, _ := q.Ask(t.Context(), sha1Way)
	require.Nil(t, response)
	require.Equal(t, postWay, next)
	response, _, _ = q.Ask(t.Context(), next)
	require.NotNil(t, response)
	response, next, _ = q.Ask(t.Context(), Way{Hash: crypto.SHA1, POST: true, posts: tryGET})
	require.NotNil(t, response, "it costs no round")
	require.Equal(t, postWay, next)
}

func TestGivingUpTeachesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	hangs := testhttp.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() }))
	_, next, _ := question(t, hangs).Ask(ctx, sha1Way)
	require.Equal(t, sha1Way, next)
}
