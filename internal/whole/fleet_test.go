package whole

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestAnotherProcessesResponseIsAdoptedInsteadOfFetching(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cache := staple.NewMemoryCache()
		cert := w.Leaf()
		a := w.Add(w.Stapler(func(s *staple.Stapler) { s.Cache = cache }), cert)
		synctest.Wait() // it publishes first, and then stores
		b := w.Add(w.Stapler(func(s *staple.Stapler) { s.Cache = cache }), cert)
		require.Len(t, w.Responder.Requests(nil), 1)
		time.Sleep(27 * world.Day)
		synctest.Wait()
		world.RequireStaple(t, a, ocsp.Good)
		world.RequireStaple(t, b, ocsp.Good)
		n := len(w.Responder.Requests(nil))
		require.LessOrEqual(t, n, 10, "each asked for itself")
		fetched := 0
		for _, e := range w.Log.Events() {
			if e.Fetched {
				fetched++
			}
		}
		require.Equal(t, n, fetched)
		require.Greater(t, len(w.Log.Events()), n)
	})
}

func TestWithALockerOneProcessFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Delay: 2 * time.Second})
		cache := world.NewLockedCache()
		cert := w.Leaf()
		var all []*staple.Certificate
		start := time.Now()
		for range 10 {
			c, err := w.Stapler(func(s *staple.Stapler) { s.Cache = cache }).Add(cert)
			require.NoError(t, err)
			all = append(all, c)
		}
		for _, c := range all {
			require.NoError(t, c.Wait(world.Soon(t)))
		}
		require.Less(t, time.Since(start), 5*time.Second)
		require.Len(t, w.Responder.Requests(nil), 1)
		synctest.Wait()
		require.Zero(t, cache.Held())

		// A holder that has crashed delays nobody for more than its lease; a broken lock nobody at all.
		other := w.Leaf()
		_, ok, err := cache.TryLock(t.Context(), world.CacheKey(other.Leaf), lease)
		require.NoError(t, err)
		require.True(t, ok)
		start = time.Now()
		w.Add(w.Stapler(func(s *staple.Stapler) { s.Cache = cache }), other)
		require.Less(t, time.Since(start), 15*time.Second)
		cache.Break()
		start = time.Now()
		w.Add(w.Stapler(func(s *staple.Stapler) { s.Cache = cache }), w.Leaf())
		require.Equal(t, 2*time.Second, time.Since(start))
	})
}

// Anyone who can write to a shared cache can make such a lock.
func TestALockThatNeverEndsIsNotHeededForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cache := world.NewLockedCache()
		cert := w.Leaf()
		cache.Hold(world.CacheKey(cert.Leaf), time.Now().Add(365*world.Day))
		start := time.Now()
		c, err := w.Stapler(func(s *staple.Stapler) { s.Cache = cache }).Add(cert)
		require.NoError(t, err)
		require.NoError(t, c.Wait(t.Context()))
		require.Less(t, time.Since(start), time.Minute)
		require.Greater(t, time.Since(start), lease)
		for range 30 {
			time.Sleep(world.Day)
			world.RequireStaple(t, c, ocsp.Good)
		}
		start = time.Now()
		require.NoError(t, c.Refresh(t.Context()))
		require.Less(t, time.Since(start), time.Minute)
	})
}

func TestEveryProcessLearnsThatTheResponderHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Hang: true})
		cache := world.NewLockedCache()
		cert := w.Leaf()
		var all []*staple.Certificate
		for range 50 {
			c, err := w.Stapler(func(s *staple.Stapler) { s.Cache = cache }).Add(cert)
			require.NoError(t, err)
			all = append(all, c)
		}
		time.Sleep(2 * time.Minute)
		for _, c := range all {
			require.Error(t, c.Status().Err)
		}
	})
}

func TestALockThatAnotherHoldsOccupiesNoWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cache := world.NewLockedCache()
		s := w.Stapler(func(s *staple.Stapler) { s.Cache, s.Concurrency = cache, 1 })
		held := w.Leaf()
		_, _, err := cache.TryLock(t.Context(), world.CacheKey(held.Leaf), lease)
		require.NoError(t, err)
		blocked, err := s.Add(held)
		require.NoError(t, err)
		time.Sleep(time.Millisecond)
		start := time.Now()
		w.Add(s, w.Leaf())
		require.Less(t, time.Since(start), time.Second)
		require.NoError(t, blocked.Refresh(world.Soon(t)))
		world.RequireStaple(t, blocked, ocsp.Good)
	})
}
