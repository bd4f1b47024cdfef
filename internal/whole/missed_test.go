package whole

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
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

func TestWhatAnotherProcessStoredOfALaggingNodeUndoesNoRevocationByARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cache := staple.NewMemoryCache()
		withCache := func(s *staple.Stapler) { s.Cache = cache }
		cert := w.Leaf(world.LongLived)
		s := w.Stapler(withCache)
		c := w.Add(s, cert)
		daily := compromised
		daily.Period = world.Day
		w.Responder.Set(cert.Leaf, daily)
		time.Sleep(world.Day)
		require.NoError(t, c.Refresh(world.Soon(t)))
		requireRevoked(t, c)
		time.Sleep(time.Minute)
		require.NoError(t, cache.Put(t.Context(), world.CacheKey(cert.Leaf), w.FreshResponse(cert.Leaf)))
		time.Sleep(10 * time.Hour)
		requireRevoked(t, c)
		require.NoError(t, s.Close())
		w.Responder.Set(cert.Leaf, stapletest.Answer{HTTPStatus: 500})
		c, err := w.Stapler(withCache).Add(cert)
		require.NoError(t, err)
		requireRevoked(t, c)
	})
}

func TestACacheAloneUndoesNoRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cache := staple.NewMemoryCache()
		cert := w.Leaf(world.LongLived)
		c := w.Add(w.Stapler(func(s *staple.Stapler) { s.Cache = cache }), cert)
		revoke(t, w, cert, c, compromised)
		time.Sleep(time.Minute)
		require.NoError(t, cache.Put(t.Context(), world.CacheKey(cert.Leaf), w.FreshResponse(cert.Leaf)))
		time.Sleep(time.Minute)
		w.Responder.Reset(cert.Leaf) // a node that lags, once
		require.NoError(t, c.Refresh(world.Soon(t)))
		requireRevoked(t, c)
		w.Responder.Set(cert.Leaf, stapletest.Answer{HTTPStatus: 500})
		time.Sleep(3 * time.Hour)
		requireRevoked(t, c)
	})
}

func TestNodesThatContradictEachOtherUndoNoRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		lags := stapletest.NewResponder(w.CA) // says good for ever
		var both atomic.Bool
		var n atomic.Int32
		transport := roundTripper(func(req *http.Request) (*http.Response, error) {
			if both.Load() && n.Add(1)%2 == 0 {
				return lags.RoundTrip(req)
			}
			return w.Responder.RoundTrip(req)
		})
		cert := w.Leaf(world.LongLived)
		c := w.Add(w.Stapler(func(s *staple.Stapler) { s.Fetcher = &staple.HTTPFetcher{Client: &http.Client{Transport: transport}} }), cert)
		daily := compromised
		daily.Period = world.Day
		time.Sleep(world.Day)
		w.Responder.Set(cert.Leaf, daily)
		require.NoError(t, c.Refresh(world.Soon(t)))
		requireRevoked(t, c)
		both.Store(true)
		time.Sleep(10 * time.Hour)
		requireRevoked(t, c)
	})
}

func TestAFetcherThatOffersBothInOneRoundUndoesNoRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf(world.LongLived)
		var denial atomic.Pointer[[]byte]
		c := w.Add(w.Stapler(func(s *staple.Stapler) {
			s.Fetcher = staple.FetcherFunc(func(ctx context.Context, r *staple.Request) ([]byte, error) {
				if der := denial.Load(); der != nil {
					_ = r.Accept(*der)
				}
				return w.FreshResponse(cert.Leaf), nil
			})
		}), cert)
		time.Sleep(time.Minute)
		r := stapletest.NewResponse(w.CA, cert.Leaf)
		r.Singles[0].Status, r.Singles[0].Reason, r.Singles[0].RevokedAt = ocsp.Revoked, ocsp.KeyCompromise, time.Now()
		der := r.DER()
		denial.Store(&der)
		time.Sleep(time.Second)
		require.NoError(t, c.Refresh(world.Soon(t)))
		time.Sleep(5 * time.Hour)
		requireRevoked(t, c)
	})
}

func TestTwoGoodAnswersAMinuteApartUndoNoRevocationThoughTheClockWasSetForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := world.SetClock(t)
		w := world.New(t)
		cert := w.Leaf(world.LongLived)
		c := w.Add(w.Stapler(), cert)
		revoke(t, w, cert, c, compromised)
		w.Responder.Reset(cert.Leaf)
		time.Sleep(time.Minute)
		require.NoError(t, c.Refresh(world.Soon(t)))
		set(time.Hour)
		time.Sleep(time.Minute)
		require.NoError(t, c.Refresh(world.Soon(t)))
		requireRevoked(t, c)
	})
}

func TestADirCacheKeepsARevocationThatHasEnded(t *testing.T) {
	w := world.New(t)
	cert := w.Leaf(world.LongLived)
	r := stapletest.NewResponse(w.CA, cert.Leaf)
	r.ProducedAt = time.Now().Add(-30 * world.Day)
	r.Singles[0].Status, r.Singles[0].RevokedAt = ocsp.Revoked, time.Now().Add(-31*world.Day)
	r.Singles[0].ThisUpdate, r.Singles[0].NextUpdate = time.Now().Add(-30*world.Day), time.Now().Add(-23*world.Day)
	dir, key := t.TempDir(), world.CacheKey(cert.Leaf)
	file := filepath.Join(dir, key)
	require.NoError(t, os.WriteFile(file, r.DER(), 0o600))
	world.SetAge(t, file, 30*world.Day)
	require.NoError(t, staple.DirCache(dir).Put(t.Context(), "other", []byte("x")))
	require.FileExists(t, file)
}

func TestWaitIsWokenWhenTheClockIsSetRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := world.SetClock(t)
		w := world.New(t)
		c := w.Add(w.Stapler(), w.Leaf(world.LongLived))
		time.Sleep(31 * time.Second)
		set(8 * world.Day)
		woken := make(chan error, 1)
		go func() { woken <- c.Wait(t.Context()) }()
		time.Sleep(time.Second)
		set(0)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		require.Len(t, woken, 1)
		require.NoError(t, <-woken)
	})
}

func TestWhatLiesInTheFutureIsHeldAgainWhenItsTimeComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := world.SetClock(t)
		w := world.New(t)
		c := w.Add(w.Stapler(), w.Leaf(world.LongLived))
		time.Sleep(time.Minute)
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		set(-10 * time.Minute)
		time.Sleep(time.Minute)
		require.Empty(t, c.TLS().OCSPStaple)
		time.Sleep(20 * time.Minute)
		require.NotEmpty(t, c.TLS().OCSPStaple, c.Status().Err)
	})
}

func TestAClockThatWasFarAheadCostsTheCacheNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := world.SetClock(t)
		w := world.New(t)
		cache := staple.NewMemoryCache()
		s := w.Stapler(func(s *staple.Stapler) { s.Cache = cache })
		certs := w.Many(100)
		for _, cert := range certs {
			w.Add(s, cert)
		}
		time.Sleep(time.Hour)
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		set(1100 * world.Day)
		time.Sleep(40 * time.Second)
		set(0)
		time.Sleep(10 * time.Minute)
		for _, cert := range certs {
			_, err := cache.Get(t.Context(), world.CacheKey(cert.Leaf))
			require.NoError(t, err)
		}
	})
}

// A hangingUnlock is a Locker whose locks take long to give back.
type hangingUnlock struct{ *staple.MemoryCache }

func (hangingUnlock) TryLock(context.Context, string, time.Duration) (func(), bool, error) {
	return func() { time.Sleep(30 * time.Second) }, true, nil
}

func TestALockThatTakesLongToGiveBackHoldsUpAFewRounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler(func(s *staple.Stapler) { s.Cache = hangingUnlock{staple.NewMemoryCache()} })
		for _, cert := range w.Many(200) {
			_, err := s.Add(cert)
			require.NoError(t, err)
		}
		began := time.Now()
		require.NoError(t, s.Wait(t.Context()))
		require.Less(t, time.Since(began), time.Minute)
	})
}

func TestWaitAfterAReloadInAnOutageEndsAsSoon(t *testing.T) {
	for _, answer := range []stapletest.Answer{{Hang: true}, {HTTPStatus: 500}} {
		synctest.Test(t, func(t *testing.T) {
			w := world.New(t)
			w.Responder.Set(nil, answer)
			s, certs := w.Stapler(), w.Many(100)
			var kept []*tls.Config
			for range 3 {
				kept = append(kept, s.TLSConfig(&tls.Config{Certificates: certs}))
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				require.NoError(t, s.Wait(ctx))
				cancel()
				time.Sleep(time.Minute)
			}
			require.Len(t, kept, 3)
		})
	}
}

func TestThatNobodyCanBeAskedIsFinalWhateverElseIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		var asked atomic.Int32
		c, err := w.Stapler(func(s *staple.Stapler) {
			s.Fetcher = staple.FetcherFunc(func(ctx context.Context, r *staple.Request) ([]byte, error) {
				asked.Add(1)
				return nil, errors.Join(staple.ErrNoResponder, staple.ErrNoIssuer)
			})
		}).Add(w.Leaf())
		require.NoError(t, err)
		require.ErrorIs(t, c.Wait(world.Soon(t)), staple.ErrNoResponder)
		require.EqualValues(t, 1, asked.Load())
	})
}

// An issuerLater is a Fetcher that is told to come back for the issuer in an hour, after a while.
type issuerLater struct{ staple.Fetcher }

func (issuerLater) FetchIssuer(context.Context, *x509.Certificate) ([]*x509.Certificate, error) {
	time.Sleep(10 * time.Second)
	return nil, &staple.HTTPError{URL: "http://ca.example/issuer.der", StatusCode: 503, RetryAfter: time.Hour}
}

func TestAChainThatComesWhileTheIssuerIsAskedForIsNotKeptWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf()
		s := w.Stapler(func(s *staple.Stapler) { s.Fetcher, s.Cache = issuerLater{s.Fetcher}, staple.NewMemoryCache() })
		_, err := s.Add(tls.Certificate{Certificate: cert.Certificate[:1], PrivateKey: cert.PrivateKey})
		require.NoError(t, err)
		time.Sleep(5 * time.Second)
		c, err := s.Add(cert)
		require.NoError(t, err)
		require.NoError(t, c.Wait(world.Soon(t)))
	})
}

func answerOf(req *http.Request, status int, body []byte) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(string(body))), Request: req}
}

func TestAResponderThatKnowsGETAloneIsBackAsSoonAsOthersAfterAnOutage(t *testing.T) {
	for _, down := range []int{500, 503} {
		synctest.Test(t, func(t *testing.T) {
			w := world.New(t)
			const outage = 10 * time.Minute
			over := time.Now().Add(outage)
			var asked atomic.Int32
			transport := roundTripper(func(req *http.Request) (*http.Response, error) {
				asked.Add(1)
				time.Sleep(50 * time.Millisecond)
				switch {
				case req.Method == http.MethodPost:
					return answerOf(req, 405, nil), nil
				case time.Now().Before(over):
					return answerOf(req, down, nil), nil
				}
				return w.Responder.RoundTrip(req)
			})
			s := w.Stapler(func(s *staple.Stapler) { s.Fetcher.(*staple.HTTPFetcher).Client = &http.Client{Transport: transport} })
			for _, cert := range w.Many(60) {
				_, err := s.Add(cert)
				require.NoError(t, err)
			}
			time.Sleep(time.Until(over) + 45*time.Second)
			synctest.Wait()
			for c := range s.Certificates() {
				require.True(t, c.Status().Stapled, c.Status().Err)
			}
			require.Less(t, asked.Load(), int32(300))
		})
	}
}

func TestOfSeveralURLsOneThatLagsHidesNoRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf(world.Responders("http://lags.example", "http://knows.example"))
		kept := w.Responder.Response(cert.Leaf)
		var mu sync.Mutex
		transport := roundTripper(func(req *http.Request) (*http.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			if req.URL.Host == "lags.example" {
				return answerOf(req, 200, kept), nil
			}
			return w.Responder.RoundTrip(req)
		})
		c := w.Add(w.Stapler(func(s *staple.Stapler) { s.Fetcher.(*staple.HTTPFetcher).Client = &http.Client{Transport: transport} }), cert)
		require.Equal(t, "http://lags.example", c.Status().Responder)
		time.Sleep(time.Hour)
		w.Responder.Set(nil, compromised)
		require.NoError(t, c.Refresh(world.Soon(t)))
		requireRevoked(t, c)
	})
}

func TestACacheThatMixesUpGETsIsPassedByWithPOST(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		foreign := w.FreshResponse(w.Leaf().Leaf)
		transport := roundTripper(func(req *http.Request) (*http.Response, error) {
			if req.Method == http.MethodGet {
				return answerOf(req, 200, foreign), nil
			}
			return w.Responder.RoundTrip(req)
		})
		c := w.Add(w.Stapler(func(s *staple.Stapler) { s.Fetcher.(*staple.HTTPFetcher).Client = &http.Client{Transport: transport} }), w.Leaf())
		world.RequireStaple(t, c, ocsp.Good)
	})
}
