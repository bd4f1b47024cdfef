package staple

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple/internal/wall"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestRefreshTime(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		validity, earliest, latest time.Duration
	}{
		{time.Hour, 27 * time.Minute, 33 * time.Minute},
		{day, 648 * time.Minute, 792 * time.Minute},
		{7 * day, 4536 * time.Minute, 5544 * time.Minute},
		{8 * day, 3*day + 864*time.Minute, 4 * day},
		{10 * day, 3*day + 864*time.Minute, 4 * day},
		{1000 * day, 3*day + 864*time.Minute, 4 * day},
	} {
		var lowest, highest time.Duration = math.MaxInt64, 0
		for range 1000 {
			due := refreshTime(&response{thisUpdate: now, until: now.Add(tt.validity), end: now.Add(tt.validity)}, now).Sub(now)
			lowest, highest = min(lowest, due), max(highest, due)
		}
		require.GreaterOrEqual(t, lowest, tt.earliest, tt.validity)
		require.LessOrEqual(t, highest, tt.latest, tt.validity)
		require.Greater(t, highest-lowest, (tt.latest-tt.earliest)*9/10, "not spread")
	}
}

func TestAfterAnUnchangedResponseTheNextTryComesAfterHalfOfWhatIsLeft(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for left, want := range map[time.Duration]time.Duration{
		6 * day:          day,
		2 * day:          day,
		10 * time.Hour:   5 * time.Hour,
		2 * time.Minute:  604800 * time.Millisecond, // a thousandth of the validity at least
		time.Millisecond: 604800 * time.Millisecond,
	} {
		r := &response{thisUpdate: now.Add(left - 7*day), until: now.Add(left), end: now.Add(left)}
		pause := unchangedTime(r, now).Sub(now)
		require.LessOrEqual(t, pause, want, left)
		require.GreaterOrEqual(t, pause, want*9/10, left)
	}
}

func TestBackoffIsBoundedAfterAnyNumberOfFailures(t *testing.T) {
	for _, failures := range []int{1, 2, 5, 10, 16, 17, 30, 63, 64, 65, 1000, math.MaxInt} {
		for _, limit := range []time.Duration{time.Second, time.Minute, time.Hour, 100 * day} {
			for range 100 {
				pause := backoff(failures, limit)
				require.GreaterOrEqual(t, pause, time.Second)
				require.LessOrEqual(t, pause, max(min(limit, time.Hour), time.Second))
			}
		}
	}
	require.LessOrEqual(t, backoff(1, time.Hour), 10*time.Second)
}

func TestTheSameBytesForFourDaysAreNormal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.responder.Set(nil, stapletest.Answer{Period: 4 * day})
		cert := w.leaf()
		c := w.add(w.stapler(), cert)
		for range 70 {
			time.Sleep(day)
			synctest.Wait()
			requireStaple(t, c, ocsp.Good)
		}
		kinds := w.log.kinds()
		require.Zero(t, count(kinds, EventFailed))
		require.NotZero(t, count(kinds, EventUnchanged))
		require.LessOrEqual(t, len(w.responder.Requests(nil)), 40)
	})
}

func TestAnOlderResponseIsNeverGoneBackTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cert := w.leaf()
		old := w.responder.Response(cert.Leaf)
		time.Sleep(time.Hour)
		c := w.add(w.stapler(), cert)
		newest := c.TLS().OCSPStaple
		w.responder.Set(nil, stapletest.Answer{Replay: old})
		time.Sleep(6 * day)
		synctest.Wait()
		require.Equal(t, newest, c.TLS().OCSPStaple)
		require.NoError(t, c.Status().Err)
		require.Zero(t, count(w.log.kinds(), EventFailed), "an older response is no failure")
		require.Less(t, len(w.responder.Requests(nil)), 40)
	})
}

func TestNewerIsLaterThisUpdateThenProducedAtThenEndAndRevokedWinsATie(t *testing.T) {
	at := func(this, produced, end int, revoked bool) *response {
		base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		hour := func(n int) time.Time { return base.Add(time.Duration(n) * time.Hour) }
		return &response{thisUpdate: hour(this), producedAt: hour(produced), end: hour(end), revoked: revoked}
	}
	ascending := []*response{
		at(1, 5, 9, true), at(2, 2, 3, false), at(2, 3, 1, true), at(2, 3, 3, false), at(2, 3, 3, true), at(3, 0, 0, false),
	}
	for i, a := range ascending {
		for j, b := range ascending {
			require.Equal(t, i > j, a.newer(b), "%d, %d", i, j)
		}
	}
}

func sameKey(key any) func(*stapletest.LeafOptions) {
	return func(o *stapletest.LeafOptions) { o.Key = key.(crypto.Signer) }
}

func TestWhatTheCacheLostIsStoredAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cache := NewMemoryCache()
		c := w.add(w.stapler(func(s *Stapler) { s.Cache = cache }), w.leaf())
		synctest.Wait()
		key := c.entry.cacheKey()
		require.NoError(t, cache.Delete(t.Context(), key))
		w.responder.Set(nil, stapletest.Answer{Error: ocsp.TryLater})
		time.Sleep(4 * day)
		synctest.Wait()
		stored, err := cache.Get(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, c.TLS().OCSPStaple, stored)
	})
}

// A lockedCache elects one fetcher, as a cache that processes share would.
type lockedCache struct {
	*MemoryCache
	mu     sync.Mutex
	holder map[string]time.Time
	broken bool
}

func (c *lockedCache) TryLock(ctx context.Context, key string, ttl time.Duration) (func(), bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken {
		return nil, false, errBroken
	}
	now := time.Now()
	if now.Before(c.holder[key]) {
		return nil, false, nil
	}
	end := now.Add(ttl)
	c.holder[key] = end
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.holder[key].Equal(end) {
			delete(c.holder, key)
		}
	}, true, nil
}

func TestACarriedStapleDoesNotReplaceANewerResponseInTheCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cert := w.leaf()
		cert.OCSPStaple = w.responder.Response(cert.Leaf)
		time.Sleep(time.Hour)
		w.responder.Set(nil, stapletest.Answer{Status: ocsp.Revoked})
		revoked := w.responder.Response(cert.Leaf)
		w.responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		cache, key := NewMemoryCache(), cacheKeyOf(cert.Leaf)
		require.NoError(t, cache.Put(t.Context(), key, revoked))
		c, err := w.stapler(func(s *Stapler) { s.Cache = cache }).Add(cert)
		require.NoError(t, err)
		require.True(t, c.Status().Revoked)
		requireNoStaple(t, c)
		synctest.Wait()
		stored, err := cache.Get(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, revoked, stored)

		// One that is newer than what the cache has, or alone, is stored.
		other := w.leaf()
		w.responder.Set(nil, stapletest.Answer{Age: time.Hour})
		require.NoError(t, cache.Put(t.Context(), cacheKeyOf(other.Leaf), w.responder.Response(other.Leaf)))
		w.responder.Reset(nil)
		other.OCSPStaple = w.responder.Response(other.Leaf)
		w.responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		_, err = w.stapler(func(s *Stapler) { s.Cache = cache }).Add(other)
		require.NoError(t, err)
		stored, err = cache.Get(t.Context(), cacheKeyOf(other.Leaf))
		require.NoError(t, err)
		require.Equal(t, other.OCSPStaple, stored)
	})
}

// setClock moves the wall clock away from the bubble's, until the test ends.
func setClock(t *testing.T) func(offset time.Duration) {
	var offset atomic.Int64
	t.Cleanup(wall.Set(func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }))
	return func(d time.Duration) { offset.Store(int64(d)) }
}

func TestAFetcherThatSaysErrNoResponderIsNotAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var asked atomic.Int32
		s := w.stapler(func(s *Stapler) {
			s.Fetcher = FetcherFunc(func(ctx context.Context, req *Request) ([]byte, error) {
				asked.Add(1)
				return nil, fmt.Errorf("nothing for %s: %w", req.Leaf.Subject, ErrNoResponder)
			})
		})
		c, err := s.Add(w.leaf())
		require.NoError(t, err)
		require.ErrorIs(t, c.Wait(soon(t)), ErrNoResponder)
		time.Sleep(100 * day)
		require.EqualValues(t, 1, asked.Load())
		require.Empty(t, w.log.kinds())
	})
}

func TestAFetcherNeedsNoURLInTheCertificate(t *testing.T) {
	w := newWorld(t)
	s := w.stapler(func(s *Stapler) {
		s.Fetcher = FetcherFunc(func(ctx context.Context, req *Request) ([]byte, error) {
			require.Equal(t, w.ca.Issuer.Raw, req.Issuer.Raw)
			req.Responder = "file"
			return w.responder.Response(req.Leaf), nil
		})
	})
	c := w.add(s, w.leaf(func(o *stapletest.LeafOptions) { o.Responders = nil }))
	requireStaple(t, c, ocsp.Good)
	require.Equal(t, "file", c.Status().Responder)
}

func TestAcceptTellsAFetcherWithSeveralSourcesWhenToGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cert := w.leaf()
		older := w.responder.Response(cert.Leaf)
		time.Sleep(time.Second)
		var offered [][]byte
		var taken []bool
		s := w.stapler(func(s *Stapler) {
			s.Fetcher = FetcherFunc(func(ctx context.Context, req *Request) (answer []byte, err error) {
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
		newer := w.responder.Response(cert.Leaf)
		offered = [][]byte{nil, []byte("garbage"), w.responder.Response(w.leaf().Leaf), newer, newer, older}
		c := w.add(s, cert)
		require.Equal(t, []bool{false, false, false, true, true, true}, taken, "older than what was accepted, but not than what is held")
		require.Equal(t, newer, c.TLS().OCSPStaple)
		taken, offered = nil, [][]byte{older, newer}
		require.NoError(t, c.Refresh(soon(t)))
		require.Equal(t, []bool{false, true}, taken)
		offered = nil
		require.Error(t, c.Refresh(soon(t)))
		require.Equal(t, newer, c.TLS().OCSPStaple)
	})
}

func TestAnAcceptedResponseCountsEvenIfTheFetcherThenFails(t *testing.T) {
	w := newWorld(t)
	s := w.stapler(func(s *Stapler) {
		s.Fetcher = FetcherFunc(func(ctx context.Context, req *Request) ([]byte, error) {
			if err := req.Accept(w.responder.Response(req.Leaf)); err != nil {
				return nil, err
			}
			return nil, errBroken
		})
	})
	requireStaple(t, w.add(s, w.leaf()), ocsp.Good)
}

func TestNothingIsVerifiedTwice(t *testing.T) {
	w := newWorld(t)
	var calls atomic.Int32
	s := w.stapler(func(s *Stapler) { s.Verifier = countingVerifier{&calls} })
	c := w.add(s, w.leaf())
	require.EqualValues(t, 1, calls.Load())
	w.responder.Set(nil, stapletest.Answer{Replay: c.TLS().OCSPStaple})
	require.NoError(t, c.Refresh(soon(t)))
	require.EqualValues(t, 1, calls.Load())
}

type countingVerifier struct{ calls *atomic.Int32 }

func (v countingVerifier) Verify(der []byte, leaf, issuer *x509.Certificate, now time.Time) (*ocsp.Response, time.Time, error) {
	v.calls.Add(1)
	return new(ResponseVerifier).Verify(der, leaf, issuer, now)
}

func TestAResponseWithoutThisUpdateIsRefreshedAtHalfOfWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := w.add(w.stapler(func(s *Stapler) { s.Verifier = tersestVerifier{} }), w.leaf())
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

// A noIssuerFetcher cannot get at issuers for the time being.
type noIssuerFetcher struct{ Fetcher }

func (noIssuerFetcher) FetchIssuer(context.Context, *x509.Certificate) ([]*x509.Certificate, error) {
	return nil, &HTTPError{URL: "http://ca.example/issuer.der", StatusCode: 503, RetryAfter: time.Hour}
}

func longLived(o *stapletest.LeafOptions) {
	o.NotBefore, o.NotAfter = time.Now().Add(-1000*day), time.Now().Add(1000*day)
}
