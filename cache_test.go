package staple_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
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

// hexKey returns a key as a Stapler would make it.
func hexKey(name string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(name))) }

func TestCaches(t *testing.T) {
	for name, cache := range map[string]staple.Cache{
		"MemoryCache":      new(staple.MemoryCache),
		"NewMemoryCache":   staple.NewMemoryCache(),
		"DirCache":         staple.DirCache(filepath.Join(t.TempDir(), "not", "yet", "made")),
		"DirCache, exists": staple.DirCache(t.TempDir()),
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			a, b := hexKey("a"), hexKey("b")
			requireData := func(key, want string) {
				t.Helper()
				data, err := cache.Get(ctx, key)
				require.NoError(t, err)
				require.Equal(t, want, string(data))
			}
			_, err := cache.Get(ctx, a)
			require.ErrorIs(t, err, staple.ErrCacheMiss)
			require.NoError(t, cache.Delete(ctx, a), "deleting what is not there")

			given := []byte("one")
			require.NoError(t, cache.Put(ctx, a, given))
			require.NoError(t, cache.Put(ctx, b, []byte("other")))
			given[0] = 'X'
			requireData(a, "one")
			got, err := cache.Get(ctx, a)
			require.NoError(t, err)
			got[0] = 'X'
			requireData(a, "one")

			require.NoError(t, cache.Put(ctx, a, []byte("a longer one")))
			requireData(a, "a longer one")
			require.NoError(t, cache.Put(ctx, a, []byte("1")))
			requireData(a, "1")
			require.NoError(t, cache.Put(ctx, a, nil))
			requireData(a, "")

			require.NoError(t, cache.Delete(ctx, a))
			_, err = cache.Get(ctx, a)
			require.ErrorIs(t, err, staple.ErrCacheMiss)
			requireData(b, "other")
		})
	}
}

// An autocertCache behaves as golang.org/x/crypto/acme/autocert.DirCache does, which cannot be imported
// without a further dependency.
type autocertCache map[string][]byte

var errAutocertMiss = errors.New("acme/autocert: certificate cache miss")

func (c autocertCache) Get(ctx context.Context, key string) ([]byte, error) {
	if data, ok := c[key]; ok {
		return data, nil
	}
	return nil, errAutocertMiss
}

func (c autocertCache) Put(ctx context.Context, key string, data []byte) error {
	c[key] = data
	return nil
}

func (c autocertCache) Delete(ctx context.Context, key string) error {
	delete(c, key)
	return nil
}

func TestAnAutocertCacheWorksAsItIs(t *testing.T) {
	w := world.New(t)
	cert := w.Leaf()
	cache := make(autocertCache)
	var lines strings.Builder
	with := func(s *staple.Stapler) {
		s.Cache = cache
		s.Logger = slog.New(slog.NewTextHandler(&lines, nil))
	}
	s := w.Stapler(with)
	w.Add(s, cert)
	s.Close()
	require.Contains(t, cache, world.CacheKey(cert.Leaf))
	require.Empty(t, lines.String(), "a miss is nothing to log")

	w.Responder.Set(nil, stapletest.Answer{Hang: true})
	c, err := w.Stapler(with).Add(cert)
	require.NoError(t, err)
	world.RequireStaple(t, c, ocsp.Good)
}

// A getCache answers every Get alike.
type getCache struct {
	staple.MemoryCache
	data []byte
	err  error
}

func (c *getCache) Get(context.Context, string) ([]byte, error) { return c.data, c.err }

func TestWhatCountsAsAMiss(t *testing.T) {
	for _, tt := range []struct {
		name   string
		cache  *getCache
		logged bool
	}{
		{"ErrCacheMiss", &getCache{err: staple.ErrCacheMiss}, false},
		{"ErrCacheMiss, wrapped", &getCache{err: fmt.Errorf("redis: %w", staple.ErrCacheMiss)}, false},
		{"autocert's", &getCache{err: errAutocertMiss}, false},
		{"no data", &getCache{}, false},
		{"empty data", &getCache{data: []byte{}}, false},
		{"another error", &getCache{err: io.ErrUnexpectedEOF}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := world.New(t)
			var lines strings.Builder
			s := w.Stapler(func(s *staple.Stapler) {
				s.Cache = tt.cache
				s.Logger = slog.New(slog.NewTextHandler(&lines, nil))
			})
			world.RequireStaple(t, w.Add(s, w.Leaf()), ocsp.Good)
			s.Close()
			require.Equal(t, tt.logged, strings.Contains(lines.String(), "reading the OCSP cache"), lines.String())
			if !tt.logged {
				require.Empty(t, lines.String())
			}
		})
	}
}

func TestACachedResponseThatIsNotDueIsNotAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf()
		response := w.Responder.Response(cert.Leaf)
		// Whichever looks into the cache first, Add or the first round, the other comes later.
		for range 50 {
			s := w.Stapler(func(s *staple.Stapler) { s.Cache = &slowerCache{data: response} })
			c, err := s.Add(cert)
			require.NoError(t, err)
			world.RequireStaple(t, c, ocsp.Good)
			time.Sleep(time.Minute)
			s.Close()
		}
		require.Empty(t, w.Responder.Requests(nil))
	})
}

// A slowerCache has one response, and takes longer to find it each time.
type slowerCache struct {
	staple.MemoryCache
	data  []byte
	calls atomic.Int32
}

func (c *slowerCache) Get(context.Context, string) ([]byte, error) {
	time.Sleep(time.Duration(c.calls.Add(1)) * time.Millisecond)
	return c.data, nil
}
