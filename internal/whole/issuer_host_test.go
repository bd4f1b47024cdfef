package whole

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

const issuerURL = "http://ca.example/ca.cer"

// An issuerHost is where the certificates of a World find their issuer, and what it does.
type issuerHost struct {
	*world.World
	mu    sync.Mutex
	does  func(req *http.Request) (*http.Response, error)
	asked []time.Time
}

func newIssuerHost(t *testing.T, does func(req *http.Request) (*http.Response, error)) *issuerHost {
	return &issuerHost{World: world.New(t), does: does}
}

func (h *issuerHost) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Hostname() != "ca.example" {
		return h.Responder.RoundTrip(req)
	}
	h.mu.Lock()
	does := h.does
	h.asked = append(h.asked, time.Now())
	h.mu.Unlock()
	return does(req)
}

func (h *issuerHost) set(does func(req *http.Request) (*http.Response, error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.does = does
}

// count returns how many requests there were so far.
func (h *issuerHost) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.asked)
}

func (h *issuerHost) stapler(edit ...func(*staple.Stapler)) *staple.Stapler {
	return h.Stapler(append([]func(*staple.Stapler){func(s *staple.Stapler) {
		s.Fetcher.(*staple.HTTPFetcher).Client = &http.Client{Transport: h}
	}}, edit...)...)
}

func (h *issuerHost) bare(edit ...func(*stapletest.LeafOptions)) tls.Certificate {
	return h.Leaf(append(edit, world.LongLived, func(o *stapletest.LeafOptions) {
		o.OmitIssuer, o.IssuerURLs = true, []string{issuerURL}
	})...)
}

func (h *issuerHost) addMany(s *staple.Stapler, n int) (all []*staple.Certificate) {
	key := h.Leaf().PrivateKey
	for i := range n {
		c, err := s.Add(h.bare(world.SameKey(key), world.Names(fmt.Sprint(i, ".example.com"))))
		require.NoError(h.T, err)
		all = append(all, c)
	}
	return all
}

// back lets the issuer be found again, and returns how long it takes until the first is stapled, and all are.
func (h *issuerHost) back(all []*staple.Certificate) (first, last time.Duration) {
	h.set(h.serve)
	began := time.Now()
	for first == 0 || last == 0 {
		time.Sleep(100 * time.Millisecond)
		n := 0
		for _, c := range all {
			if c.Status().Stapled {
				n++
			}
		}
		since := time.Since(began)
		if first == 0 && n > 0 {
			first = since
		}
		if n == len(all) {
			last = since
		}
		require.Less(h.T, since, time.Hour)
	}
	return first, last
}

// serve serves the issuer.
func (h *issuerHost) serve(req *http.Request) (*http.Response, error) {
	time.Sleep(50 * time.Millisecond)
	return answerOf(req, 200, h.CA.Issuer.Raw), nil
}

func issuerRefused(*http.Request) (*http.Response, error) { return nil, errRefused }

func issuerHangs(req *http.Request) (*http.Response, error) {
	<-req.Context().Done()
	return nil, context.Cause(req.Context())
}

func TestAskingForAnIssuerPausesAsAskingAResponderDoes(t *testing.T) {
	answers := func(status int, body []byte) func(req *http.Request) (*http.Response, error) {
		return func(req *http.Request) (*http.Response, error) { return answerOf(req, status, body), nil }
	}
	for _, tt := range []struct {
		name         string
		does         func(req *http.Request) (*http.Response, error)
		minutes, all int           // requests at most, in the first ten minutes and within an hour
		hangs        time.Duration // that a request takes in vain
	}{
		{"no connection", issuerRefused, 60, 200, 0},
		{"no answer", issuerHangs, 30, 130, 10 * time.Second},
		{"not found", answers(404, nil), 60, 200, 0},
		{"an error", answers(500, nil), 60, 200, 0},
		{"a web page", answers(200, []byte("<html>")), 60, 200, 0},
		{"another CA's", answers(200, stapletest.NewCA(stapletest.CAOptions{}).Root.Raw), 250, 380, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newIssuerHost(t, tt.does)
				s := h.stapler()
				began := time.Now()
				all := h.addMany(s, 200)
				require.NoError(t, s.Wait(world.Soon(t)))
				for _, c := range all {
					st := c.Status()
					require.ErrorIs(t, st.Err, staple.ErrNoIssuer)
					require.ErrorContains(t, st.Err, issuerURL)
					require.ErrorContains(t, st.Err, "put the issuer's certificate into the chain")
				}
				time.Sleep(time.Until(began.Add(10 * time.Minute)))
				minutes := h.count()
				time.Sleep(time.Until(began.Add(59 * time.Minute)))
				t.Logf("%d requests in ten minutes, %d in an hour", minutes, h.count())
				require.LessOrEqual(t, minutes, tt.minutes)
				require.LessOrEqual(t, h.count(), tt.all)
				require.Greater(t, h.count(), 60, "it is to be noticed soon that it is back")
				require.Empty(t, h.Responder.Requests(nil))

				inVain := h.count()
				first, last := h.back(all)
				t.Logf("first after %v, last after %v", first, last)
				require.Less(t, first, 36*time.Second+tt.hangs)
				require.Less(t, last-first, 11*time.Second)
				require.LessOrEqual(t, h.count()-inVain, 2)
			})
		})
	}
}

func TestAnIssuerIsAskedForOnceForAll(t *testing.T) {
	for _, cached := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			h := newIssuerHost(t, nil)
			s := h.stapler(func(s *staple.Stapler) {
				if cached {
					s.Cache = staple.NewMemoryCache()
				}
			})
			h.set(h.serve)
			began := time.Now()
			all := h.addMany(s, 200)
			require.NoError(t, s.Wait(world.Soon(t)))
			require.Less(t, time.Since(began), 5*time.Second)
			for _, c := range all {
				require.True(t, c.Status().Stapled)
			}
			require.Equal(t, 1, h.count())
			require.Len(t, h.Responder.Requests(nil), 200)
			time.Sleep(10 * world.Day)
			require.Equal(t, 1, h.count())
		})
	}
}

func TestAnIssuerThatIsKnownNeedsNobodyToAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newIssuerHost(t, nil)
		h.set(h.serve)
		s := h.stapler()
		h.Add(s, h.bare())
		h.set(issuerRefused)
		other, err := s.Add(stapletest.NewCA(stapletest.CAOptions{}).Leaf(stapletest.LeafOptions{
			Responders: []string{world.ResponderURL}, OmitIssuer: true, IssuerURLs: []string{"http://ca.example/other.cer"}}))
		require.NoError(t, err)
		time.Sleep(time.Minute)
		require.NotZero(t, other.Status().PausedUntil, "the host pauses")
		began := time.Now()
		h.Add(s, h.bare())
		require.Less(t, time.Since(began), time.Second)
	})
}

func TestAChainWithTheIssuerNeedNotWaitForThePauseOfWhoeverHasItOtherwise(t *testing.T) {
	for _, state := range []string{"at first", "later", "with a refresh"} {
		t.Run(state, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newIssuerHost(t, issuerHangs)
				s := h.stapler()
				bare := h.bare()
				all := h.addMany(s, 20)
				c, err := s.Add(bare)
				require.NoError(t, err)
				switch state {
				case "later":
					time.Sleep(2 * time.Hour)
				case "with a refresh":
					time.Sleep(2 * time.Hour)
					for _, c := range append(all, c) {
						go c.Refresh(t.Context())
					}
					time.Sleep(time.Second)
				}
				full := bare
				full.Certificate = append(full.Certificate[:1:1], h.CA.Issuer.Raw)
				_, err = s.Add(full)
				require.NoError(t, err)
				time.Sleep(11 * time.Second) // within which what was under way ends
				world.RequireNoStaple(t, all[0])
				require.True(t, c.Status().Stapled, c.Status().Err)
			})
		})
	}
}

func TestRefreshAsksForTheIssuerInAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newIssuerHost(t, issuerRefused)
		s := h.stapler()
		all := h.addMany(s, 20)
		time.Sleep(3 * time.Hour)
		n := h.count()
		require.ErrorIs(t, all[7].Refresh(t.Context()), staple.ErrNoIssuer)
		require.Equal(t, n+1, h.count())
		h.set(h.serve)
		began := time.Now()
		require.NoError(t, all[7].Refresh(t.Context()))
		require.Less(t, time.Since(began), time.Second)
		require.True(t, all[7].Status().Stapled)
	})
}

func TestAnIssuerAndThenAResponderThatAreDownAreBothWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newIssuerHost(t, issuerRefused)
		h.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		s := h.stapler()
		all := h.addMany(s, 100)
		time.Sleep(10 * time.Minute)
		require.Empty(t, h.Responder.Requests(nil), "it cannot be asked yet")
		h.set(h.serve)
		time.Sleep(10 * time.Minute)
		require.LessOrEqual(t, len(h.Responder.Requests(nil)), 2*200, "each once at first, with GET or POST")
		h.Responder.Reset(nil)
		time.Sleep(46 * time.Second)
		for _, c := range all {
			require.True(t, c.Status().Stapled, c.Status().Err)
		}
	})
}

// A customIssuers is an IssuerFetcher that does not say who was asked.
type customIssuers struct {
	staple.Fetcher
	find func() ([]*x509.Certificate, error)
}

func (f customIssuers) FetchIssuer(context.Context, *x509.Certificate) ([]*x509.Certificate, error) {
	return f.find()
}

func TestAnIssuerFetcherThatDoesNotSayWhomItAskedPausesByTheIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newIssuerHost(t, nil)
		var mu sync.Mutex
		asked, err := 0, errors.New("the directory is away")
		s := h.stapler(func(s *staple.Stapler) {
			s.Fetcher = customIssuers{s.Fetcher, func() ([]*x509.Certificate, error) {
				mu.Lock()
				defer mu.Unlock()
				if asked++; err != nil {
					return nil, err
				}
				return []*x509.Certificate{h.CA.Issuer}, nil
			}}
		})
		all := h.addMany(s, 200)
		time.Sleep(time.Hour)
		mu.Lock()
		t.Logf("asked %d times in an hour", asked)
		require.Less(t, asked, 600)
		err = nil
		mu.Unlock()
		time.Sleep(46 * time.Second)
		for _, c := range all {
			require.True(t, c.Status().Stapled, c.Status().Err)
		}
	})
}

func TestTheLogHasOneLineOfAnIssuerThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newIssuerHost(t, issuerRefused)
		var lines world.Text
		s := h.stapler(func(s *staple.Stapler) { s.Logger = lines.Logger() })
		all := h.addMany(s, 200)
		time.Sleep(30 * time.Minute)
		h.back(all)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		var said []map[string]any
		for _, line := range lines.TakeLines(t) {
			if line["level"] != "DEBUG" {
				said = append(said, line)
			}
		}
		require.Len(t, said, 2)
		begin, end := said[0], said[1]
		require.Equal(t, "failed", begin["event"])
		require.Equal(t, "host ca.example", begin["fault"])
		require.Contains(t, begin["error"], "put the issuer's certificate into the chain")
		require.Contains(t, begin["error"], issuerURL)
		require.Equal(t, "answered", end["event"])
		require.EqualValues(t, 200, end["certificates"])
		require.Greater(t, end["lasted"], float64(30*time.Minute))
	})
}
