package staple_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler()
		cert := w.Leaf()
		c := w.Add(s, cert)
		w.Responder.Set(cert.Leaf, stapletest.Answer{Delay: time.Second})
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { require.NoError(t, c.Refresh(world.Soon(t))) })
		}
		wg.Wait()
		require.Len(t, w.Responder.Requests(cert.Leaf), 2, "ten calls at once make one request")

		old := w.Responder.Response(cert.Leaf)
		time.Sleep(time.Hour)
		w.Responder.Set(cert.Leaf, stapletest.Answer{Replay: old})
		require.NoError(t, c.Refresh(world.Soon(t)))
		require.NoError(t, c.Refresh(world.Soon(t)), "not newer is no error")

		w.Responder.Set(cert.Leaf, stapletest.Answer{Hang: true})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, c.Refresh(ctx), context.DeadlineExceeded)
		world.RequireStaple(t, c, ocsp.Good)
	})
}

func TestTheSameBytesForFourDaysAreNormal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Period: 4 * world.Day})
		cert := w.Leaf()
		c := w.Add(w.Stapler(), cert)
		for range 70 {
			time.Sleep(world.Day)
			synctest.Wait()
			world.RequireStaple(t, c, ocsp.Good)
		}
		kinds := w.Log.Kinds()
		require.Zero(t, world.Count(kinds, staple.EventFailed))
		require.NotZero(t, world.Count(kinds, staple.EventUnchanged))
		require.LessOrEqual(t, len(w.Responder.Requests(nil)), 40)
	})
}

func TestAnOlderResponseIsNeverGoneBackTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf()
		old := w.Responder.Response(cert.Leaf)
		time.Sleep(time.Hour)
		c := w.Add(w.Stapler(), cert)
		newest := c.TLS().OCSPStaple
		w.Responder.Set(nil, stapletest.Answer{Replay: old})
		time.Sleep(6 * world.Day)
		synctest.Wait()
		require.Equal(t, newest, c.TLS().OCSPStaple)
		require.NoError(t, c.Status().Err)
		require.Zero(t, world.Count(w.Log.Kinds(), staple.EventFailed), "an older response is no failure")
		require.Less(t, len(w.Responder.Requests(nil)), 40)
	})
}

func TestRevokedDropsTheGoodStapleAtOnceAndAHoldCanBeLifted(t *testing.T) {
	for _, stapleRevoked := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := world.New(t)
			cache := staple.NewMemoryCache()
			configure := func(s *staple.Stapler) { s.StapleRevoked, s.Cache = stapleRevoked, cache }
			s := w.Stapler(configure)
			cert := w.Leaf()
			c := w.Add(s, cert)
			w.Responder.Set(cert.Leaf, stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.CertificateHold})
			time.Sleep(time.Minute)
			require.NoError(t, c.Refresh(world.Soon(t)))
			check := func(c *staple.Certificate) {
				t.Helper()
				st := c.Status()
				require.True(t, st.Revoked)
				require.NoError(t, st.Err)
				require.False(t, st.NextRefresh.IsZero())
				r, err := ocsp.ParseResponse(c.Response(), nil)
				require.NoError(t, err)
				require.Equal(t, ocsp.CertificateHold, r.RevocationReason)
				if stapleRevoked {
					world.RequireStaple(t, c, ocsp.Revoked)
					require.NoError(t, c.Wait(world.Soon(t)))
				} else {
					world.RequireNoStaple(t, c)
					require.ErrorIs(t, c.Wait(world.Soon(t)), staple.ErrRevoked)
				}
			}
			check(c)
			synctest.Wait()
			require.Equal(t, staple.EventRevoked, w.Log.Last().Kind)

			// A restart does not undo it, not even while the responder replays the good one.
			s.Close()
			w.Responder.Set(cert.Leaf, stapletest.Answer{Age: time.Hour})
			s = w.Stapler(configure)
			c, err := s.Add(cert)
			require.NoError(t, err)
			check(c)
			require.NoError(t, c.Refresh(world.Soon(t)), "only an older response came")
			check(c)

			w.Responder.Reset(cert.Leaf)
			time.Sleep(5 * 24 * time.Hour)
			synctest.Wait()
			world.RequireStaple(t, c, ocsp.Good)
			require.False(t, c.Status().Revoked)
			require.Contains(t, w.Log.Kinds(), staple.EventReinstated)
		})
	}
}

func TestResponseIsTheNewestOneVerifiedAlsoPastItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		c, err := w.Stapler().Add(w.Leaf())
		require.NoError(t, err)
		synctest.Wait()
		require.Nil(t, c.Response())

		w.Responder.Reset(nil)
		require.NoError(t, c.Refresh(world.Soon(t)))
		held := c.Response()
		require.NotEmpty(t, held)
		require.Equal(t, c.TLS().OCSPStaple, held)

		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		time.Sleep(time.Until(c.Status().Expires))
		world.RequireNoStaple(t, c)
		require.Equal(t, held, c.Response())
	})
}

func TestAStapleThatCameWithTheCertificate(t *testing.T) {
	week := 7 * 24 * time.Hour
	for _, tt := range []struct {
		name      string
		carried   func(w *world.World, leaf *x509.Certificate) []byte
		noIssuer  bool
		responder bool
		want      time.Duration // how long it is stapled
	}{
		{name: "good: stapled to its end", carried: func(w *world.World, leaf *x509.Certificate) []byte {
			return w.FreshResponse(leaf)
		}, want: week},
		{name: "forged: not stapled", carried: func(w *world.World, leaf *x509.Certificate) []byte {
			return stapletest.Forgeries(w.CA, leaf)[0].DER
		}},
		{name: "garbage: not stapled", carried: func(w *world.World, leaf *x509.Certificate) []byte { return []byte("garbage") }},
		{name: "garbage, issuer unknown: not stapled", noIssuer: true,
			carried: func(w *world.World, leaf *x509.Certificate) []byte { return []byte("garbage") }},
		{name: "expired: not stapled", carried: func(w *world.World, leaf *x509.Certificate) []byte {
			r := stapletest.NewResponder(w.CA)
			r.Set(nil, stapletest.Answer{Age: week})
			return r.Response(leaf)
		}},
		{name: "expired, issuer unknown: not stapled", noIssuer: true, carried: func(w *world.World, leaf *x509.Certificate) []byte {
			r := stapletest.NewResponder(w.CA)
			r.Set(nil, stapletest.Answer{Age: week})
			return r.Response(leaf)
		}},
		{name: "issuer unknown: left alone until its end", noIssuer: true, carried: func(w *world.World, leaf *x509.Certificate) []byte {
			return w.FreshResponse(leaf)
		}, want: week},
		{name: "older than the responder's: replaced", responder: true, carried: func(w *world.World, leaf *x509.Certificate) []byte {
			r := stapletest.NewResponder(w.CA)
			r.Set(nil, stapletest.Answer{Age: 4 * 24 * time.Hour})
			return r.Response(leaf)
		}, want: 30 * 24 * time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				cert := w.Leaf(func(o *stapletest.LeafOptions) { o.OmitIssuer = tt.noIssuer })
				if !tt.responder {
					w.Responder.Set(nil, stapletest.Answer{Error: ocsp.TryLater})
				}
				cert.OCSPStaple = tt.carried(w, cert.Leaf)
				s := w.Stapler()
				c, err := s.Add(cert)
				require.NoError(t, err)
				if tt.want == 0 {
					require.Empty(t, c.TLS().OCSPStaple)
					return
				}
				require.NotEmpty(t, c.TLS().OCSPStaple)
				require.True(t, c.Status().Stapled)
				if !tt.responder {
					require.Equal(t, cert.OCSPStaple, c.TLS().OCSPStaple)
				}
				time.Sleep(tt.want - time.Second)
				require.NotEmpty(t, c.TLS().OCSPStaple)
				require.Equal(t, tt.responder, string(cert.OCSPStaple) != string(c.TLS().OCSPStaple))
				time.Sleep(time.Second)
				require.Equal(t, tt.responder, len(c.TLS().OCSPStaple) > 0)
			})
		})
	}
}

func TestACarriedStapleDoesNotReplaceANewerResponseInTheCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf()
		cert.OCSPStaple = w.Responder.Response(cert.Leaf)
		time.Sleep(time.Hour)
		w.Responder.Set(nil, stapletest.Answer{Status: ocsp.Revoked})
		revoked := w.Responder.Response(cert.Leaf)
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		cache, key := staple.NewMemoryCache(), world.CacheKey(cert.Leaf)
		require.NoError(t, cache.Put(t.Context(), key, revoked))
		c, err := w.Stapler(func(s *staple.Stapler) { s.Cache = cache }).Add(cert)
		require.NoError(t, err)
		require.True(t, c.Status().Revoked)
		world.RequireNoStaple(t, c)
		synctest.Wait()
		stored, err := cache.Get(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, revoked, stored)

		// One that is newer than what the cache has, or alone, is stored.
		other := w.Leaf()
		w.Responder.Set(nil, stapletest.Answer{Age: time.Hour})
		require.NoError(t, cache.Put(t.Context(), world.CacheKey(other.Leaf), w.Responder.Response(other.Leaf)))
		w.Responder.Reset(nil)
		other.OCSPStaple = w.Responder.Response(other.Leaf)
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		_, err = w.Stapler(func(s *staple.Stapler) { s.Cache = cache }).Add(other)
		require.NoError(t, err)
		stored, err = cache.Get(t.Context(), world.CacheKey(other.Leaf))
		require.NoError(t, err)
		require.Equal(t, other.OCSPStaple, stored)
	})
}

func TestARevocationThatCameWithTheCertificateIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf()
		w.Responder.Set(nil, stapletest.Answer{Status: ocsp.Revoked})
		cert.OCSPStaple = w.Responder.Response(cert.Leaf)
		cache := staple.NewMemoryCache()
		s := w.Stapler(func(s *staple.Stapler) { s.Cache = cache })
		c, err := s.Add(cert)
		require.NoError(t, err)
		require.ErrorIs(t, c.Wait(world.Soon(t)), staple.ErrRevoked)
		time.Sleep(40 * time.Minute) // it is asked about within the hour
		require.NoError(t, s.Close())
		require.Empty(t, w.Responder.Requests(nil))
		stored, err := cache.Get(t.Context(), world.CacheKey(cert.Leaf))
		require.NoError(t, err)
		require.Equal(t, cert.OCSPStaple, stored)
	})
}

func TestCachedBytesAreVerified(t *testing.T) {
	w := world.New(t)
	cert := w.Leaf()
	key := world.CacheKey(cert.Leaf)
	cases := stapletest.Forgeries(w.CA, cert.Leaf)
	require.Greater(t, len(cases), 20)
	w.Responder.Set(nil, stapletest.Answer{Error: ocsp.TryLater})
	for _, forged := range cases {
		cache := staple.NewMemoryCache()
		require.NoError(t, cache.Put(t.Context(), key, forged.DER))
		s := w.Stapler(func(s *staple.Stapler) { s.Cache = cache })
		c, err := s.Add(cert)
		require.NoError(t, err)
		require.Empty(t, c.TLS().OCSPStaple, forged.Name)
		require.NoError(t, s.Wait(world.Soon(t)))
		require.Empty(t, c.TLS().OCSPStaple, forged.Name)

		// The same from the network, while a good one is held: it stays.
		require.NoError(t, cache.Put(t.Context(), key, w.FreshResponse(cert.Leaf)))
		s = w.Stapler(func(s *staple.Stapler) {
			s.Cache = cache
			s.Fetcher = staple.FetcherFunc(func(context.Context, *staple.Request) ([]byte, error) { return forged.DER, nil })
		})
		c, err = s.Add(cert)
		require.NoError(t, err)
		before := c.TLS().OCSPStaple
		require.NotEmpty(t, before)
		_ = c.Refresh(world.Soon(t))
		require.Equal(t, before, c.TLS().OCSPStaple, forged.Name)
		stored, err := cache.Get(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, before, stored, forged.Name)
		s.Close()
	}
}

func TestWhatTheCacheLostIsStoredAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cache := staple.NewMemoryCache()
		c := w.Add(w.Stapler(func(s *staple.Stapler) { s.Cache = cache }), w.Leaf())
		synctest.Wait()
		key := world.CacheKey(c.Status().Leaf)
		require.NoError(t, cache.Delete(t.Context(), key))
		w.Responder.Set(nil, stapletest.Answer{Error: ocsp.TryLater})
		time.Sleep(4 * world.Day)
		synctest.Wait()
		stored, err := cache.Get(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, c.TLS().OCSPStaple, stored)
	})
}

func TestAFetcherThatSaysErrNoResponderIsNotAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		var asked atomic.Int32
		s := w.Stapler(func(s *staple.Stapler) {
			s.Fetcher = staple.FetcherFunc(func(ctx context.Context, req *staple.Request) ([]byte, error) {
				asked.Add(1)
				return nil, fmt.Errorf("nothing for %s: %w", req.Leaf.Subject, staple.ErrNoResponder)
			})
		})
		c, err := s.Add(w.Leaf())
		require.NoError(t, err)
		require.ErrorIs(t, c.Wait(world.Soon(t)), staple.ErrNoResponder)
		time.Sleep(100 * world.Day)
		require.EqualValues(t, 1, asked.Load())
		require.Empty(t, w.Log.Kinds())
	})
}

func TestAFetcherNeedsNoURLInTheCertificate(t *testing.T) {
	w := world.New(t)
	s := w.Stapler(func(s *staple.Stapler) {
		s.Fetcher = staple.FetcherFunc(func(ctx context.Context, req *staple.Request) ([]byte, error) {
			require.Equal(t, w.CA.Issuer.Raw, req.Issuer.Raw)
			req.Responder = "file"
			return w.Responder.Response(req.Leaf), nil
		})
	})
	c := w.Add(s, w.Leaf(world.Responders()))
	world.RequireStaple(t, c, ocsp.Good)
	require.Equal(t, "file", c.Status().Responder)
}

func TestAcceptTellsAFetcherWithSeveralSourcesWhenToGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf()
		older := w.Responder.Response(cert.Leaf)
		time.Sleep(time.Second)
		var offered [][]byte
		var taken []bool
		s := w.Stapler(func(s *staple.Stapler) {
			s.Fetcher = staple.FetcherFunc(func(ctx context.Context, req *staple.Request) (answer []byte, err error) {
				for _, der := range offered {
					err := req.Accept(der)
					taken = append(taken, err == nil)
					if err == nil {
						answer = der
					}
				}
				return answer, nil // all of them were tried, and an empty answer is an error of its own
			})
		})
		newer := w.Responder.Response(cert.Leaf)
		offered = [][]byte{nil, []byte("garbage"), w.Responder.Response(w.Leaf().Leaf), newer, newer, older}
		c := w.Add(s, cert)
		require.Equal(t, []bool{false, false, false, true, true, true}, taken, "older than what was accepted, but not than what is held")
		require.Equal(t, newer, c.TLS().OCSPStaple)
		taken, offered = nil, [][]byte{older, newer}
		require.NoError(t, c.Refresh(world.Soon(t)))
		require.Equal(t, []bool{false, false}, taken, "what is held is not enough for Refresh as long as there may be something newer")
		offered = nil
		require.Error(t, c.Refresh(world.Soon(t)))
		require.Equal(t, newer, c.TLS().OCSPStaple)
	})
}

func TestAnAcceptedResponseCountsEvenIfTheFetcherThenFails(t *testing.T) {
	w := world.New(t)
	s := w.Stapler(func(s *staple.Stapler) {
		s.Fetcher = staple.FetcherFunc(func(ctx context.Context, req *staple.Request) ([]byte, error) {
			if err := req.Accept(w.Responder.Response(req.Leaf)); err != nil {
				return nil, err
			}
			return nil, world.ErrBroken
		})
	})
	world.RequireStaple(t, w.Add(s, w.Leaf()), ocsp.Good)
}

func TestNothingIsVerifiedTwice(t *testing.T) {
	w := world.New(t)
	var calls atomic.Int32
	s := w.Stapler(func(s *staple.Stapler) { s.Verifier = countingVerifier{&calls} })
	c := w.Add(s, w.Leaf())
	require.EqualValues(t, 1, calls.Load())
	w.Responder.Set(nil, stapletest.Answer{Replay: c.TLS().OCSPStaple})
	require.NoError(t, c.Refresh(world.Soon(t)))
	require.EqualValues(t, 1, calls.Load())
}

type countingVerifier struct{ calls *atomic.Int32 }

func (v countingVerifier) Verify(der []byte, leaf, issuer *x509.Certificate, now time.Time) (*ocsp.Response, time.Time, error) {
	v.calls.Add(1)
	return new(staple.ResponseVerifier).Verify(der, leaf, issuer, now)
}

func TestAResponseWithoutThisUpdateIsRefreshedAtHalfOfWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		c := w.Add(w.Stapler(func(s *staple.Stapler) { s.Verifier = tersestVerifier{} }), w.Leaf())
		pause := time.Until(c.Status().NextRefresh)
		require.GreaterOrEqual(t, pause, 27*time.Minute)
		require.LessOrEqual(t, pause, 33*time.Minute)
	})
}

// A tersestVerifier says no more than it must.
type tersestVerifier struct{}

func (tersestVerifier) Verify(_ []byte, _, _ *x509.Certificate, now time.Time) (*ocsp.Response, time.Time, error) {
	return &ocsp.Response{Status: ocsp.Good}, now.Add(time.Hour), nil
}

func TestAVerifierThatReturnsNothingIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler(func(s *staple.Stapler) { s.Verifier = silentVerifier{} })
		c, err := s.Add(w.Leaf())
		require.NoError(t, err)
		require.NoError(t, s.Wait(world.Soon(t)))
		require.ErrorContains(t, c.Status().Err, "neither a response nor an error")
		world.RequireNoStaple(t, c)
	})
}

type silentVerifier struct{}

func (silentVerifier) Verify([]byte, *x509.Certificate, *x509.Certificate, time.Time) (*ocsp.Response, time.Time, error) {
	return nil, time.Now().Add(time.Hour), nil
}
