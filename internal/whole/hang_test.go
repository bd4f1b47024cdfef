package whole

import (
	"context"
	"crypto/tls"
	"runtime"
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

// A stuckCache answers nothing as long as it is stuck, as a file system over the network may.
type stuckCache struct {
	staple.MemoryCache
	stuck atomic.Bool
	calls atomic.Int32
	gone  atomic.Int32 // what Delete was called for
}

func (c *stuckCache) wait(ctx context.Context) error {
	c.calls.Add(1)
	if c.stuck.Load() {
		<-ctx.Done()
	}
	return ctx.Err()
}

func (c *stuckCache) Get(ctx context.Context, key string) ([]byte, error) {
	if err := c.wait(ctx); err != nil {
		return nil, err
	}
	return c.MemoryCache.Get(ctx, key)
}

func (c *stuckCache) Put(ctx context.Context, key string, data []byte) error {
	if err := c.wait(ctx); err != nil {
		return err
	}
	return c.MemoryCache.Put(ctx, key, data)
}

func (c *stuckCache) Delete(ctx context.Context, key string) error {
	c.gone.Add(1)
	if err := c.wait(ctx); err != nil {
		return err
	}
	return c.MemoryCache.Delete(ctx, key)
}

// A stuckLock is a stuckCache with locks, which are as stuck as it is.
type stuckLock struct{ stuckCache }

func (c *stuckLock) TryLock(ctx context.Context, key string, ttl time.Duration) (func(), bool, error) {
	err := c.wait(ctx)
	return func() {}, err == nil, err
}

func TestACacheThatHangsHoldsUpAFewRoundsAlone(t *testing.T) {
	const certificates = 500
	const timeout = 5 * time.Second // of one call
	lock := new(stuckLock)
	for _, tt := range []struct {
		name  string
		cache staple.Cache
		stuck *stuckCache
		added bool
	}{
		{"a cache", new(stuckCache), nil, false},
		{"a cache, certificates added one by one", new(stuckCache), nil, true},
		{"with a Locker", lock, &lock.stuckCache, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				cache := tt.stuck
				if cache == nil {
					cache = tt.cache.(*stuckCache)
				}
				cache.stuck.Store(true)
				var lines world.Text
				s := w.Stapler(func(s *staple.Stapler) { s.Cache, s.Logger = tt.cache, lines.Logger() })
				certs := w.Many(certificates)
				began := time.Now()
				if tt.added {
					for _, cert := range certs {
						_, err := s.Add(cert)
						require.NoError(t, err)
					}
				} else {
					config := s.TLSConfig(&tls.Config{Certificates: certs})
					defer runtime.KeepAlive(config)
				}
				for c := range s.Certificates() {
					require.NoError(t, c.Wait(t.Context()))
				}
				require.LessOrEqual(t, time.Since(began), 4*timeout)
				time.Sleep(5 * time.Minute)
				synctest.Wait()
				calls := cache.calls.Load()
				time.Sleep(10 * time.Minute)
				require.LessOrEqual(t, cache.calls.Load()-calls, int32(10*3), "it is not passed by")
				trouble := func() (all []string) {
					synctest.Wait()
					for _, line := range lines.TakeLines(t) {
						if msg := line["msg"].(string); strings.Contains(msg, "cache") && line["level"] != "DEBUG" {
							all = append(all, msg)
						}
					}
					return all
				}
				all := trouble()
				require.Len(t, all, 1, "%s", all)
				require.Contains(t, all[0], "the OCSP cache fails")

				cache.stuck.Store(false)
				time.Sleep(40 * time.Second)
				for _, cert := range certs {
					der, err := cache.MemoryCache.Get(t.Context(), world.CacheKey(cert.Leaf))
					require.NoError(t, err, "it is not stored when it can be")
					require.NotEmpty(t, der)
				}
				time.Sleep(4 * world.Day) // until all has been read and locked again
				all = trouble()
				require.Len(t, all, 1, "%s", all)
				require.Contains(t, all[0], "works again")
				require.NoError(t, s.Close())
			})
		})
	}
}

func TestCloseStoresWhatTheCacheDidNotTakeBefore(t *testing.T) {
	for _, tt := range []struct {
		name   string
		mended bool
	}{{"a cache that works again", true}, {"one that hangs on", false}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				cache := new(stuckCache)
				cache.stuck.Store(true)
				s := w.Stapler(func(s *staple.Stapler) { s.Cache = cache })
				certs := w.Many(100)
				config := s.TLSConfig(&tls.Config{Certificates: certs})
				defer runtime.KeepAlive(config)
				require.NoError(t, s.Wait(t.Context()))
				time.Sleep(7 * time.Second)
				cache.stuck.Store(!tt.mended)
				began := time.Now()
				require.NoError(t, s.Close())
				require.LessOrEqual(t, time.Since(began), 5*time.Second)
				for _, cert := range certs {
					_, err := cache.MemoryCache.Get(t.Context(), world.CacheKey(cert.Leaf))
					if tt.mended {
						require.NoError(t, err)
					} else {
						require.ErrorIs(t, err, staple.ErrCacheMiss)
					}
				}
			})
		})
	}
}

func TestACacheThatFailsAtOnceIsAskedEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cache := new(countedFailures)
		s := w.Stapler(func(s *staple.Stapler) { s.Cache = cache })
		c := w.Add(s, w.Leaf())
		for i := range int32(20) {
			require.NoError(t, c.Refresh(t.Context()))
			require.GreaterOrEqual(t, cache.puts.Load(), i)
		}
		world.RequireStaple(t, c, ocsp.Good)
	})
}

type countedFailures struct {
	world.BrokenCache
	puts atomic.Int32
}

func (c *countedFailures) Put(context.Context, string, []byte) error {
	c.puts.Add(1)
	return world.ErrBroken
}

func TestTheResponseOfACertificateThatHasExpiredIsDeletedFromTheCache(t *testing.T) {
	ends := func(d time.Duration) time.Time { return time.Now().Add(d) }
	for _, tt := range []struct {
		name string
		life time.Duration // of the certificate
		use  func(t *testing.T, s *staple.Stapler, cert tls.Certificate)
		want int32 // calls of Delete
	}{
		{"while it is managed", 3 * world.Day, func(t *testing.T, s *staple.Stapler, cert tls.Certificate) {
			for range 2 {
				c, err := s.Add(cert)
				require.NoError(t, err)
				require.NoError(t, c.Wait(t.Context()))
			}
		}, 1},
		{"before it was added", -time.Hour, func(t *testing.T, s *staple.Stapler, cert tls.Certificate) {
			for range 2 {
				_, err := s.Add(cert)
				require.NoError(t, err)
			}
		}, 1},
		{"after it was removed", 3 * world.Day, func(t *testing.T, s *staple.Stapler, cert tls.Certificate) {
			c, err := s.Add(cert)
			require.NoError(t, err)
			require.NoError(t, c.Wait(t.Context()))
			synctest.Wait()
			c.Remove()
		}, 0},
		{"not yet", 30 * world.Day, func(t *testing.T, s *staple.Stapler, cert tls.Certificate) {
			_, err := s.Add(cert)
			require.NoError(t, err)
		}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				cache := new(stuckCache)
				s := w.Stapler(func(s *staple.Stapler) { s.Cache = cache })
				cert := w.Leaf(func(o *stapletest.LeafOptions) { o.NotBefore, o.NotAfter = ends(-30*world.Day), ends(tt.life) })
				key := world.CacheKey(cert.Leaf)
				require.NoError(t, cache.MemoryCache.Put(t.Context(), key, []byte("what was stored before")))
				tt.use(t, s, cert)
				time.Sleep(4 * world.Day)
				synctest.Wait()
				require.Equal(t, tt.want, cache.gone.Load())
				_, err := cache.MemoryCache.Get(t.Context(), key)
				if tt.want > 0 {
					require.ErrorIs(t, err, staple.ErrCacheMiss)
				} else {
					require.NoError(t, err)
				}
				require.NoError(t, s.Close())
				require.Equal(t, tt.want, cache.gone.Load())
			})
		})
	}
}
