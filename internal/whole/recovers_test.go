package whole

import (
	"context"
	"strings"
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

// A partlyBroken cache fails in some of its methods, and counts those calls.
type partlyBroken struct {
	*world.LockedCache
	get, put, remove, lock atomic.Bool
	failed                 atomic.Int32
}

func (c *partlyBroken) fails(part *atomic.Bool) error {
	if part.Load() {
		c.failed.Add(1)
		return world.ErrBroken
	}
	return nil
}

func (c *partlyBroken) Get(ctx context.Context, key string) ([]byte, error) {
	if err := c.fails(&c.get); err != nil {
		return nil, err
	}
	return c.LockedCache.Get(ctx, key)
}

func (c *partlyBroken) Put(ctx context.Context, key string, data []byte) error {
	if err := c.fails(&c.put); err != nil {
		return err
	}
	return c.LockedCache.Put(ctx, key, data)
}

func (c *partlyBroken) Delete(ctx context.Context, key string) error {
	if err := c.fails(&c.remove); err != nil {
		return err
	}
	return c.LockedCache.Delete(ctx, key)
}

func (c *partlyBroken) TryLock(ctx context.Context, key string, ttl time.Duration) (func(), bool, error) {
	if err := c.fails(&c.lock); err != nil {
		return nil, false, err
	}
	return c.LockedCache.TryLock(ctx, key, ttl)
}

func TestTheLogSaysThatTheCacheWorksAgainWithinHalfAMinuteAlsoIfNobodyNeedsIt(t *testing.T) {
	for _, tt := range []struct {
		name string
		part func(c *partlyBroken) *atomic.Bool
	}{
		{"reading", func(c *partlyBroken) *atomic.Bool { return &c.get }},
		{"writing", func(c *partlyBroken) *atomic.Bool { return &c.put }},
		{"deleting", func(c *partlyBroken) *atomic.Bool { return &c.remove }},
		{"locking", func(c *partlyBroken) *atomic.Bool { return &c.lock }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				cache := &partlyBroken{LockedCache: world.NewLockedCache()}
				var lines world.Text
				s := w.Stapler(func(s *staple.Stapler) { s.Cache, s.Logger = cache, lines.Logger() })
				c := w.Add(s, w.Leaf())
				short := w.Leaf(func(o *stapletest.LeafOptions) { o.NotAfter = time.Now().Add(time.Hour) })
				w.Add(s, short)
				time.Sleep(time.Hour - time.Second)
				tt.part(cache).Store(true)
				require.NoError(t, c.Refresh(t.Context()))
				time.Sleep(20*time.Minute + 7*time.Second)
				synctest.Wait()
				lasted := 20*time.Minute + 8*time.Second
				require.Positive(t, cache.failed.Load())
				require.LessOrEqual(t, cache.failed.Load(), int32(45), "it is asked too often")
				tt.part(cache).Store(false)
				time.Sleep(30 * time.Second)
				synctest.Wait()
				var all []map[string]any
				for _, line := range lines.TakeLines(t) {
					if strings.Contains(line["msg"].(string), "the OCSP cache") {
						all = append(all, line)
					}
				}
				require.Len(t, all, 2, "%v", all)
				require.Equal(t, "WARN", all[0]["level"])
				require.Equal(t, "staple: the OCSP cache works again", all[1]["msg"])
				require.InDelta(t, lasted, time.Duration(all[1]["lasted"].(float64)), float64(31*time.Second))
				world.RequireStaple(t, c, ocsp.Good)
				der, err := cache.Get(t.Context(), world.CacheKey(c.Status().Leaf))
				require.NoError(t, err)
				require.Equal(t, c.Response(), der)
				_, err = cache.Get(t.Context(), world.CacheKey(short.Leaf))
				require.ErrorIs(t, err, staple.ErrCacheMiss, "what it did not delete is still there")
			})
		})
	}
}

func TestToSeeWhetherTheCacheWorksUndoesNothingThatOthersStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cache := &partlyBroken{LockedCache: world.NewLockedCache()}
		s := w.Stapler(func(s *staple.Stapler) { s.Cache = cache })
		c := w.Add(s, w.Leaf())
		gone := w.Add(s, w.Leaf())
		synctest.Wait() // both are stored
		cache.put.Store(true)
		time.Sleep(time.Second)
		require.NoError(t, gone.Refresh(t.Context()))
		synctest.Wait()
		gone.Remove() // so that nothing is left to store
		newer := w.FreshResponse(c.Status().Leaf)
		require.NoError(t, cache.LockedCache.Put(t.Context(), world.CacheKey(c.Status().Leaf), newer))
		cache.put.Store(false)
		time.Sleep(5 * time.Minute)
		der, err := cache.Get(t.Context(), world.CacheKey(c.Status().Leaf))
		require.NoError(t, err)
		require.Equal(t, newer, der)
	})
}
