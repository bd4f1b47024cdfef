package staple

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net/http"
	"runtime"
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

func TestANewCertificateThatTheResponderDoesNotKnowYetIsStapledSoonAfterItDoes(t *testing.T) {
	for _, answer := range []stapletest.Answer{{Error: ocsp.Unauthorized}, {Status: ocsp.Unknown}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			cert := w.leaf()
			w.responder.Set(cert.Leaf, answer)
			c, err := w.stapler().Add(cert)
			require.NoError(t, err)
			time.Sleep(3 * time.Minute)
			require.GreaterOrEqual(t, c.Status().Failures, 4)
			w.responder.Reset(nil)
			start := time.Now()
			require.NoError(t, c.Wait(t.Context()))
			require.Less(t, time.Since(start), 11*time.Minute)
		})
	}
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

func TestRetryAfterIsHonored(t *testing.T) {
	for _, tt := range []struct {
		name  string
		held  bool
		asked string
		least time.Duration
		most  time.Duration
	}{
		{"as asked", true, "7200", 2 * time.Hour, 3 * time.Hour},
		{"half of what is left at most", true, "864000", 35 * time.Hour, 48 * time.Hour},
		{"an hour at most without a staple", false, "864000", time.Hour, time.Hour + 2*time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				busy := stapletest.Answer{HTTPStatus: 503, Body: []byte("busy"), Header: http.Header{"Retry-After": {tt.asked}}}
				s := w.stapler()
				cert := w.leaf()
				if tt.held {
					c := w.add(s, cert)
					time.Sleep(time.Until(c.Status().NextRefresh) - time.Minute)
				}
				w.responder.Set(nil, busy)
				w.log.clear()
				c, err := s.Add(cert)
				require.NoError(t, err)
				for len(w.log.kinds()) == 0 {
					time.Sleep(time.Second)
				}
				n := len(w.responder.Requests(nil))
				pause := time.Until(c.Status().NextRefresh)
				require.GreaterOrEqual(t, pause, tt.least-time.Minute)
				require.LessOrEqual(t, pause, tt.most)
				time.Sleep(tt.least - time.Minute)
				require.Len(t, w.responder.Requests(nil), n)
			})
		})
	}
}

// TestAHungHostCostsOthersNothing has a thousand certificates, half of them at a host
// that never answers.
func TestAHungHostCostsOthersNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.stapler()
		key := w.leaf().PrivateKey
		var certs []tls.Certificate
		var live []*Certificate
		for i := range 1000 {
			url := "http://dead.example"
			if i%2 == 1 {
				url = "http://live.example"
			}
			cert := w.leaf(names(fmt.Sprint(i, ".example.com")), sameKey(key), func(o *stapletest.LeafOptions) { o.Responders = []string{url} })
			if i%2 == 0 {
				w.responder.Set(cert.Leaf, stapletest.Answer{Hang: true})
			} else {
				w.responder.Set(cert.Leaf, stapletest.Answer{Delay: 20 * time.Millisecond})
			}
			certs = append(certs, cert)
		}
		config := s.TLSConfig(&tls.Config{Certificates: certs})
		start := time.Now()
		for c := range s.Certificates() {
			if c.Status().Leaf.OCSPServer[0] == "http://live.example" {
				require.NoError(t, c.Wait(t.Context()))
				live = append(live, c)
			}
		}
		require.Len(t, live, 500)
		require.Less(t, time.Since(start), 2*time.Second) // 500 at 8 workers and 20 ms: 1.25 s
		time.Sleep(8 * day)
		for _, c := range live {
			requireStaple(t, c, ocsp.Good)
		}
		require.NotContains(t, w.log.kinds(), EventExpiring)
		runtime.KeepAlive(config)
	})
}

func sameKey(key any) func(*stapletest.LeafOptions) {
	return func(o *stapletest.LeafOptions) { o.Key = key.(crypto.Signer) }
}

func TestOneHostAloneMayHaveAllWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.responder.Set(nil, stapletest.Answer{Delay: time.Second})
		s := w.stapler(func(s *Stapler) { s.Concurrency = 10 })
		key := w.leaf().PrivateKey
		for i := range 100 {
			_, err := s.Add(w.leaf(names(fmt.Sprint(i, ".example.com")), sameKey(key)))
			require.NoError(t, err)
		}
		start := time.Now()
		require.NoError(t, s.Wait(t.Context()))
		require.Equal(t, 10*time.Second, time.Since(start))
	})
}

func TestFirstStaplesComeBeforeThoseNearTheirEndAndThoseBeforeRoutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.stapler(func(s *Stapler) { s.Concurrency = 1 })
		var order []string
		add := func(name string, answer stapletest.Answer) *Certificate {
			cert := w.leaf(names(name))
			w.responder.Set(cert.Leaf, answer)
			return w.add(s, cert)
		}
		routine := add("routine", stapletest.Answer{})
		urgent := add("urgent", stapletest.Answer{Age: 6 * day})
		blocker := add("blocker", stapletest.Answer{})
		w.responder.Set(blocker.Status().Leaf, stapletest.Answer{Delay: 5 * time.Second})
		synctest.Wait()
		w.log.clear()
		g := s.engine
		g.mu.Lock()
		for _, c := range []*Certificate{blocker, routine, urgent} {
			e := c.entry
			g.enqueue(e, e.urgency(wall.Now()))
			g.place(e)
			g.dispatch()
		}
		g.mu.Unlock()
		_, err := s.Add(w.leaf(names("first")))
		require.NoError(t, err)
		time.Sleep(time.Minute)
		synctest.Wait()
		for _, e := range w.log.events {
			order = append(order, e.Status.Leaf.DNSNames[0])
		}
		require.Equal(t, []string{"blocker", "first", "urgent", "routine"}, order)
	})
}

func TestAnotherProcessesResponseIsAdoptedInsteadOfFetching(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cache := NewMemoryCache()
		cert := w.leaf()
		a := w.add(w.stapler(func(s *Stapler) { s.Cache = cache }), cert)
		synctest.Wait() // it publishes first, and then stores
		b := w.add(w.stapler(func(s *Stapler) { s.Cache = cache }), cert)
		require.Len(t, w.responder.Requests(nil), 1)
		time.Sleep(27 * day)
		synctest.Wait()
		requireStaple(t, a, ocsp.Good)
		requireStaple(t, b, ocsp.Good)
		n := len(w.responder.Requests(nil))
		require.LessOrEqual(t, n, 10, "each asked for itself")
		fetched := 0
		for _, e := range w.log.events {
			if e.Fetched {
				fetched++
			}
		}
		require.Equal(t, n, fetched)
		require.Greater(t, len(w.log.events), n)
	})
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

func TestWithALockerOneProcessFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.responder.Set(nil, stapletest.Answer{Delay: 2 * time.Second})
		cache := &lockedCache{MemoryCache: NewMemoryCache(), holder: make(map[string]time.Time)}
		cert := w.leaf()
		var all []*Certificate
		start := time.Now()
		for range 10 {
			c, err := w.stapler(func(s *Stapler) { s.Cache = cache }).Add(cert)
			require.NoError(t, err)
			all = append(all, c)
		}
		for _, c := range all {
			require.NoError(t, c.Wait(soon(t)))
		}
		require.Less(t, time.Since(start), 5*time.Second)
		require.Len(t, w.responder.Requests(nil), 1)
		synctest.Wait()
		require.Empty(t, cache.holder)

		// A holder that has crashed delays nobody for more than its lease; a broken lock nobody at all.
		other := w.leaf()
		_, ok, err := cache.TryLock(t.Context(), cacheKeyOf(other.Leaf), leaseTTL)
		require.NoError(t, err)
		require.True(t, ok)
		start = time.Now()
		w.add(w.stapler(func(s *Stapler) { s.Cache = cache }), other)
		require.Less(t, time.Since(start), 15*time.Second)
		cache.broken = true
		start = time.Now()
		w.add(w.stapler(func(s *Stapler) { s.Cache = cache }), w.leaf())
		require.Equal(t, 2*time.Second, time.Since(start))
	})
}

// Anyone who can write to a shared cache can make such a lock.
func TestALockThatNeverEndsIsNotHeededForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cache := &lockedCache{MemoryCache: NewMemoryCache(), holder: make(map[string]time.Time)}
		cert := w.leaf()
		cache.holder[cacheKeyOf(cert.Leaf)] = time.Now().Add(365 * day)
		start := time.Now()
		c, err := w.stapler(func(s *Stapler) { s.Cache = cache }).Add(cert)
		require.NoError(t, err)
		require.NoError(t, c.Wait(t.Context()))
		require.Less(t, time.Since(start), time.Minute)
		require.Greater(t, time.Since(start), leaseTTL)
		for range 30 {
			time.Sleep(day)
			requireStaple(t, c, ocsp.Good)
		}
		start = time.Now()
		require.NoError(t, c.Refresh(t.Context()))
		require.Less(t, time.Since(start), time.Minute)
	})
}

func TestEveryProcessLearnsThatTheResponderHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.responder.Set(nil, stapletest.Answer{Hang: true})
		cache := &lockedCache{MemoryCache: NewMemoryCache(), holder: make(map[string]time.Time)}
		cert := w.leaf()
		var all []*Certificate
		for range 50 {
			c, err := w.stapler(func(s *Stapler) { s.Cache = cache }).Add(cert)
			require.NoError(t, err)
			all = append(all, c)
		}
		time.Sleep(2 * time.Minute)
		for _, c := range all {
			require.Error(t, c.Status().Err)
		}
	})
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

func TestALockThatAnotherHoldsOccupiesNoWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cache := &lockedCache{MemoryCache: NewMemoryCache(), holder: make(map[string]time.Time)}
		s := w.stapler(func(s *Stapler) { s.Cache, s.Concurrency = cache, 1 })
		held := w.leaf()
		_, _, err := cache.TryLock(t.Context(), cacheKeyOf(held.Leaf), leaseTTL)
		require.NoError(t, err)
		blocked, err := s.Add(held)
		require.NoError(t, err)
		time.Sleep(time.Millisecond)
		start := time.Now()
		w.add(s, w.leaf())
		require.Less(t, time.Since(start), time.Second)
		require.NoError(t, blocked.Refresh(soon(t)))
		requireStaple(t, blocked, ocsp.Good)
	})
}

// setClock moves the wall clock away from the bubble's, until the test ends.
func setClock(t *testing.T) func(offset time.Duration) {
	var offset atomic.Int64
	t.Cleanup(wall.Set(func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }))
	return func(d time.Duration) { offset.Store(int64(d)) }
}

func TestAClockThatIsSetAndAMachineThatSlept(t *testing.T) {
	for _, offset := range []time.Duration{8 * day, 300 * day, -3 * time.Hour, -300 * day} {
		t.Run(fmt.Sprint("by ", offset), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var now atomic.Int64 // the responder knows the right time, which the wall clock shows after a sleep
				set := setClock(t)
				w := newWorld(t)
				cert := w.leaf(func(o *stapletest.LeafOptions) {
					o.NotBefore, o.NotAfter = time.Now().Add(-1000*day), time.Now().Add(1000*day)
				})
				w.responder.Set(nil, stapletest.Answer{Edit: func(r *stapletest.Response) {
					shift := time.Duration(now.Load())
					r.ProducedAt = r.ProducedAt.Add(shift)
					r.Singles[0].ThisUpdate = r.Singles[0].ThisUpdate.Add(shift)
					r.Singles[0].NextUpdate = r.Singles[0].NextUpdate.Add(shift)
				}})
				c := w.add(w.stapler(), cert)
				time.Sleep(time.Hour)

				set(offset)
				if offset > 0 {
					now.Store(int64(offset))
					require.Empty(t, c.TLS().OCSPStaple, "an expired response is stapled after a sleep")
				}
				time.Sleep(time.Minute / 2)
				synctest.Wait()
				if offset > 0 {
					require.NotEmpty(t, c.TLS().OCSPStaple, "no recovery")
				}

				// The clock is set right again.
				now.Store(0)
				set(0)
				time.Sleep(time.Minute / 2)
				synctest.Wait()
				st := c.Status()
				require.LessOrEqual(t, time.Until(st.NextRefresh), 4*day)
				require.NotEmpty(t, c.TLS().OCSPStaple)
			})
		})
	}
}

func TestAClockThatWasWrongAtTheStart(t *testing.T) {
	for _, offset := range []time.Duration{400 * day, -400 * day} {
		synctest.Test(t, func(t *testing.T) {
			set := setClock(t)
			set(offset)
			w := newWorld(t)
			cert := w.leaf(func(o *stapletest.LeafOptions) {
				o.NotBefore, o.NotAfter = time.Now().Add(-1000*day), time.Now().Add(1000*day)
			})
			c, err := w.stapler().Add(cert)
			require.NoError(t, err)
			time.Sleep(2 * day)
			require.Empty(t, c.TLS().OCSPStaple)
			require.Error(t, c.Status().Err)
			set(0)
			time.Sleep(time.Minute / 2)
			synctest.Wait()
			require.NotEmpty(t, c.TLS().OCSPStaple, c.Status().Err)
		})
	}
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

func TestAfterTheEndOlderResponsesDoNotLeadToARush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.responder.Set(nil, stapletest.Answer{Validity: time.Hour})
		cert := w.leaf()
		w.add(w.stapler(), cert)
		old := stapletest.NewResponse(w.ca, cert.Leaf)
		old.Singles[0].ThisUpdate = time.Now().Add(-time.Hour)
		old.Singles[0].NextUpdate = time.Now().Add(30 * day)
		w.responder.Set(nil, stapletest.Answer{Replay: old.DER()})
		time.Sleep(2 * time.Hour)
		n := len(w.responder.Requests(nil))
		time.Sleep(time.Hour)
		n = len(w.responder.Requests(nil)) - n
		require.NotZero(t, n)
		require.Less(t, n, 100)
	})
}

func TestRetryAfterIsHonoredWhileOthersOfTheHostSucceed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.stapler()
		other := w.add(s, w.leaf())
		busy := w.leaf()
		w.responder.Set(busy.Leaf, stapletest.Answer{HTTPStatus: 429, Header: http.Header{"Retry-After": {"1800"}}})
		_, err := s.Add(busy)
		require.NoError(t, err)
		for range 12 * 12 {
			time.Sleep(5 * time.Minute)
			require.NoError(t, other.Refresh(t.Context()))
		}
		synctest.Wait()
		failed := count(w.log.kinds(), EventFailed)
		require.LessOrEqual(t, failed, 25)
		require.GreaterOrEqual(t, failed, 12)
	})
}

// A noIssuerFetcher cannot get at issuers for the time being.
type noIssuerFetcher struct{ Fetcher }

func (noIssuerFetcher) FetchIssuer(context.Context, *x509.Certificate) ([]*x509.Certificate, error) {
	return nil, &HTTPError{URL: "http://ca.example/issuer.der", StatusCode: 503, RetryAfter: time.Hour}
}

func TestTroubleWithAnIssuerDoesNotMakeTheResponderPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.stapler(func(s *Stapler) { s.Fetcher = noIssuerFetcher{s.Fetcher} })
		_, err := s.Add(w.leaf(func(o *stapletest.LeafOptions) { o.OmitIssuer = true }))
		require.NoError(t, err)
		time.Sleep(time.Second)
		start := time.Now()
		w.add(s, w.leaf())
		require.Less(t, time.Since(start), 10*time.Second)
	})
}

func TestAPauseIsNotCutShortByAddingAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.responder.Set(nil, stapletest.Answer{HTTPStatus: 503, Header: http.Header{"Retry-After": {"3600"}}})
		s := w.stapler()
		cert := w.leaf()
		for range 10 {
			c, err := s.Add(cert)
			require.NoError(t, err)
			time.Sleep(time.Second)
			c.Remove()
		}
		require.LessOrEqual(t, len(w.responder.Requests(nil)), 3)
	})
}

func TestCertificatesThatLeaveDoNotPileUpBehindAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.responder.Set(nil, stapletest.Answer{HTTPStatus: 503, Header: http.Header{"Retry-After": {"3600"}}})
		s := w.stapler()
		_, err := s.Add(w.leaf())
		require.NoError(t, err)
		time.Sleep(time.Second)
		other := w.leaf()
		for range 1000 {
			c, err := s.Add(other)
			require.NoError(t, err)
			time.Sleep(time.Millisecond)
			c.Remove()
		}
		g := s.engine
		g.mu.Lock()
		defer g.mu.Unlock()
		waiting := 0
		for _, h := range g.hosts {
			for _, queue := range h.ready {
				waiting += len(queue)
			}
		}
		require.LessOrEqual(t, waiting, 10)
	})
}

func TestAfterAnOutageAllWorkersCatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.responder.Set(nil, stapletest.Answer{HTTPStatus: 503})
		s := w.stapler()
		key := w.leaf().PrivateKey
		for i := range 200 {
			_, err := s.Add(w.leaf(names(fmt.Sprint(i, ".example.com")), sameKey(key)))
			require.NoError(t, err)
		}
		time.Sleep(20 * time.Minute)
		w.responder.Set(nil, stapletest.Answer{Delay: time.Second})
		n := len(w.responder.Requests(nil))
		for len(w.responder.Requests(nil)) == n {
			time.Sleep(100 * time.Millisecond)
		}
		start := time.Now()
		for c := range s.Certificates() {
			require.NoError(t, c.Wait(t.Context()))
		}
		require.Less(t, time.Since(start), 45*time.Second) // 200 at 16 workers and 1 s, from within hostSpread: 12.5 to 42.5 s
	})
}

func TestHostsThatNeverAnswerDoNotStarveACertificateThatHasAStaple(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.stapler(func(s *Stapler) { s.Concurrency = 1 })
		w.responder.Set(nil, stapletest.Answer{Validity: 3 * time.Hour})
		good := w.leaf()
		c := w.add(s, good)
		for i := range 60 {
			dead := w.leaf(sameKey(good.PrivateKey), func(o *stapletest.LeafOptions) {
				o.Responders = []string{fmt.Sprint("http://dead", i, ".example")}
			})
			w.responder.Set(dead.Leaf, stapletest.Answer{Hang: true})
			_, err := s.Add(dead)
			require.NoError(t, err)
		}
		for range 5 * 6 {
			time.Sleep(10 * time.Minute)
			require.NotEmpty(t, c.TLS().OCSPStaple)
		}
		synctest.Wait()
		require.NotContains(t, w.log.kinds(), EventExpiring)
	})
}

func TestRefreshIsQuickAlsoWhileTheCacheStoresAndTheHostPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.stapler(func(s *Stapler) { s.Cache = slowFullCache{} })
		c := w.add(s, w.leaf())
		time.Sleep(time.Minute)
		w.responder.Set(nil, stapletest.Answer{HTTPStatus: 503, Header: http.Header{"Retry-After": {"3600"}}})
		require.Error(t, c.Refresh(soon(t)))
		w.responder.Reset(nil)
		time.Sleep(time.Second)
		start := time.Now()
		require.NoError(t, c.Refresh(t.Context()))
		require.Less(t, time.Since(start), time.Minute)
	})
}

// A slowFullCache takes its time to find that it has no room.
type slowFullCache struct{ brokenCache }

func (slowFullCache) Get(context.Context, string) ([]byte, error) { return nil, ErrCacheMiss }
func (slowFullCache) Put(context.Context, string, []byte) error {
	time.Sleep(2 * time.Second)
	return errBroken
}

func longLived(o *stapletest.LeafOptions) {
	o.NotBefore, o.NotAfter = time.Now().Add(-1000*day), time.Now().Add(1000*day)
}

func TestAClockSetBackDuringARoundThatBringsAnOlderResponse(t *testing.T) {
	for _, again := range []bool{false, true} {
		t.Run(fmt.Sprint("offered again after it: ", again), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				set := setClock(t)
				w := newWorld(t)
				cert := w.leaf(longLived)
				old := w.responder.Response(cert.Leaf)
				time.Sleep(6 * time.Hour)
				newest := w.responder.Response(cert.Leaf)
				var rounds atomic.Int32
				s := w.stapler(func(s *Stapler) {
					s.Fetcher = FetcherFunc(func(ctx context.Context, req *Request) ([]byte, error) {
						if rounds.Add(1) == 1 {
							return newest, nil
						}
						err := req.Accept(old)
						time.Sleep(10 * time.Second)
						if again {
							_ = req.Accept(old)
						}
						time.Sleep(10 * time.Second)
						return nil, errors.Join(err, context.DeadlineExceeded)
					})
				})
				c := w.add(s, cert)
				time.Sleep(55 * time.Second)
				go c.Refresh(t.Context())
				time.Sleep(time.Second)
				set(-5 * time.Hour) // newest is of the future then
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				require.Equal(t, old, c.TLS().OCSPStaple)
			})
		})
	}
}

func TestAClockSetBackUnderAStapleThatHasNoResponder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := setClock(t)
		w := newWorld(t)
		cert := w.leaf(longLived, func(o *stapletest.LeafOptions) { o.Responders = nil })
		w.responder.Set(nil, stapletest.Answer{Validity: day})
		cert.OCSPStaple = w.responder.Response(cert.Leaf)
		c := w.add(w.stapler(), cert)
		require.ErrorIs(t, c.Refresh(soon(t)), ErrNoResponder)
		requireStaple(t, c, ocsp.Good)
		set(-2 * time.Hour)
		time.Sleep(time.Minute)
		requireNoStaple(t, c)
		set(0)
		time.Sleep(2 * day)
		synctest.Wait()
		requireNoStaple(t, c)
		require.ErrorIs(t, c.Status().Err, ErrNoResponder)
		require.Empty(t, w.responder.Requests(nil))
	})
}

func TestAClockThatWasBeyondTheEndOfTheCertificate(t *testing.T) {
	for _, name := range []string{"from the start", "later"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				set := setClock(t)
				w := newWorld(t)
				s := w.stapler()
				cert := w.leaf(longLived)
				if name == "later" {
					w.add(s, cert)
				}
				set(2000 * day)
				c, err := s.Add(cert)
				require.NoError(t, err)
				time.Sleep(time.Minute)
				require.Empty(t, c.TLS().OCSPStaple)
				set(0)
				time.Sleep(time.Minute)
				requireStaple(t, c, ocsp.Good)
				time.Sleep(30 * day)
				synctest.Wait()
				requireStaple(t, c, ocsp.Good)
			})
		})
	}
}

func TestAStapleThatEndedWhileTheMachineSleptIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := setClock(t)
		w := newWorld(t)
		c := w.add(w.stapler(), w.leaf(longLived))
		w.responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		set(8 * day)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		requireNoStaple(t, c)
		require.Equal(t, 1, count(w.log.kinds(), EventExpired))
	})
}

func TestAStepOfTheClockDoesNotBringTheNextRequestsForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := setClock(t)
		w := newWorld(t)
		w.responder.Set(nil, stapletest.Answer{Period: 5 * day})
		s := w.stapler()
		key := w.leaf().PrivateKey
		for i := range 100 {
			_, err := s.Add(w.leaf(longLived, names(fmt.Sprint(i, ".example.com")), sameKey(key)))
			require.NoError(t, err)
		}
		time.Sleep(4*day + 6*time.Hour) // they have been asked about in vain, and are to be again
		n := len(w.responder.Requests(nil))
		require.Greater(t, n, 100)
		set(6 * time.Second)
		time.Sleep(time.Minute)
		require.Less(t, len(w.responder.Requests(nil))-n, 10)
	})
}

func TestTriesBeforeTheEndDoNotMakeThoseAfterItRarer(t *testing.T) {
	for _, validity := range []time.Duration{time.Hour, day, 7 * day} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.responder.Set(nil, stapletest.Answer{Validity: validity})
			c := w.add(w.stapler(), w.leaf())
			w.responder.Set(nil, stapletest.Answer{Error: ocsp.Unauthorized})
			time.Sleep(validity)
			synctest.Wait()
			require.Greater(t, c.Status().Failures, fewRetries)
			time.Sleep(time.Minute)
			for range 120 {
				time.Sleep(time.Minute)
				synctest.Wait()
				st := c.Status()
				require.LessOrEqual(t, st.NextRefresh.Sub(st.LastAttempt), maxUnstapled+time.Second)
			}
		})
	}
}
