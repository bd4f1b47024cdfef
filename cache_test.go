package staple_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
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

// hexKey returns a key as a Stapler would make it.
func hexKey(name string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(name))) }

// mostRead is the size of the largest file that a DirCache takes for a response.
const mostRead = 1 << 20

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

func TestDirCacheIsForItsOwnerAlone(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("file modes mean little on Windows")
	}
	parent := filepath.Join(t.TempDir(), "parent")
	dir := filepath.Join(parent, "cache")
	key := hexKey("a")
	for range 2 {
		require.NoError(t, staple.DirCache(dir).Put(t.Context(), key, []byte("data")))
		for name, want := range map[string]os.FileMode{
			parent:                  os.ModeDir | 0o700,
			dir:                     os.ModeDir | 0o700,
			filepath.Join(dir, key): 0o600,
		} {
			info, err := os.Lstat(name)
			require.NoError(t, err)
			require.Equal(t, want, info.Mode(), name)
		}
	}
	require.Equal(t, []string{key}, world.FilesIn(t, dir))
}

func TestDirCacheKeysArePlainNames(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "cache")
	require.NoError(t, os.Mkdir(dir, 0o700))
	cache := staple.DirCache(dir)
	for _, key := range []string{"", ".", "..", "../a", "a/b", "/a", `a\b`, `..\a`, "C:a", "a:b", "a\x00b", "a\nb", "a b", "~",
		".a", world.TempPrefix + "1", "é", "\xff", strings.Repeat("a", 201)} {
		_, err := cache.Get(t.Context(), key)
		require.ErrorContains(t, err, "key", "%q", key)
		require.NotErrorIs(t, err, staple.ErrCacheMiss, "%q", key)
		require.ErrorContains(t, cache.Put(t.Context(), key, []byte("data")), "key", "%q", key)
		require.ErrorContains(t, cache.Delete(t.Context(), key), "key", "%q", key)
	}
	require.Empty(t, world.FilesIn(t, dir))
	require.Equal(t, []string{"cache"}, world.FilesIn(t, root))
	for _, key := range []string{hexKey("a"), "example.com+rsa", "a_b-c", strings.Repeat("a", 200)} {
		require.NoError(t, cache.Put(t.Context(), key, []byte(key)))
		data, err := cache.Get(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, key, string(data))
	}
}

func TestDirCacheHonorsItsContext(t *testing.T) {
	cache := staple.DirCache(t.TempDir())
	key := hexKey("a")
	require.NoError(t, cache.Put(t.Context(), key, []byte("data")))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := cache.Get(ctx, key)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, cache.Put(ctx, key, []byte("other")), context.Canceled)
	require.ErrorIs(t, cache.Delete(ctx, key), context.Canceled)
	data, err := cache.Get(t.Context(), key)
	require.NoError(t, err)
	require.Equal(t, "data", string(data))
}

func TestDirCacheReadsNothingButFilesOfASensibleSize(t *testing.T) {
	key := hexKey("a")
	sized := func(size int64) func(*testing.T, string) {
		return func(t *testing.T, name string) {
			require.NoError(t, os.WriteFile(name, nil, 0o600))
			require.NoError(t, os.Truncate(name, size))
		}
	}
	for _, tt := range []struct {
		name    string
		make    func(t *testing.T, name string)
		want    string // of Get's error
		wantPut bool   // that Put works
	}{
		{"a directory", func(t *testing.T, name string) { require.NoError(t, os.Mkdir(name, 0o700)) }, "not a regular file", false},
		{"a pipe", makePipe, "not a regular file", true},
		{"one byte too many", sized(mostRead + 1), "more than", true},
		{"far too large", sized(1 << 40), "more than", true},
		{"as large as may be", sized(mostRead), "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			tt.make(t, filepath.Join(dir, key))
			cache := staple.DirCache(dir)
			data, err := cache.Get(t.Context(), key) // a pipe must not make it wait
			if tt.want == "" {
				require.NoError(t, err)
				require.Len(t, data, mostRead)
			} else {
				require.ErrorContains(t, err, tt.want)
				require.NotErrorIs(t, err, staple.ErrCacheMiss)
			}
			err = cache.Put(t.Context(), key, []byte("data"))
			if !tt.wantPut {
				require.Error(t, err)
			} else {
				require.NoError(t, err)
				data, err = cache.Get(t.Context(), key)
				require.NoError(t, err)
				require.Equal(t, "data", string(data))
			}
			require.Equal(t, []string{key}, world.FilesIn(t, dir), "nothing is left behind")
		})
	}
}

func makePipe(t *testing.T, name string) {
	mkfifo, err := exec.LookPath("mkfifo")
	if err != nil {
		t.Skip("this system has no mkfifo")
	}
	require.NoError(t, exec.Command(mkfifo, name).Run())
}

func TestDirCacheRemovesItsOwnThatEndedAWeekAgo(t *testing.T) {
	const day = 24 * time.Hour
	leaf := stapletest.LeafOptions{NotBefore: time.Now().Add(-400 * day)}
	cert, other := world.CA().Leaf(leaf).Leaf, world.CA().Leaf(leaf).Leaf
	// response returns one that ended some time ago, after ten days; negative: that is still current.
	response := func(ended time.Duration, edit ...func(*stapletest.Response)) string {
		r := stapletest.NewResponse(world.CA(), cert)
		r.ProducedAt = time.Now().Add(-ended - 10*day)
		r.Singles[0].ThisUpdate, r.Singles[0].NextUpdate = r.ProducedAt, time.Now().Add(-ended)
		for _, f := range edit {
			f(r)
		}
		return string(r.DER())
	}
	withOther := func(r *stapletest.Response) {
		s := r.Singles[0]
		s.Leaf = other
		r.Singles = append(r.Singles, s)
	}
	openEnded := func(r *stapletest.Response) { r.Singles[0].NextUpdate = time.Time{} }

	type file struct {
		about, name, data string
		age               time.Duration
		kept              bool
	}
	files := []file{
		{"ended 8 days ago", "", response(8 * day), 9 * day, false},
		{"ended 8 days ago, and was written an hour ago", "", response(8 * day), time.Hour, true},
		{"ended 6 days ago", "", response(6 * day), 9 * day, true},
		{"is current", "", response(-day), 9 * day, true},
		{"two certificates, ended 8 days ago", "", response(8*day, withOther), 9 * day, false},
		{"two certificates, current", "", response(-day, withOther), 9 * day, true},
		{"no nextUpdate, 18 days old", "", response(8*day, openEnded), 18 * day, false},
		{"no nextUpdate, 7 days old", "", response(-3*day, openEnded), 7*day - time.Minute, true},

		{"a writer crashed", world.TempPrefix + "1", "half", 2 * time.Hour, false},
		{"a writer at work", world.TempPrefix + "2", "half", 10 * time.Minute, true},

		{"somebody's", "README", "text", 400 * day, true},
		{"somebody's", ".hidden", "text", 400 * day, true},
		{"somebody's", "acme_account+key", "text", 400 * day, true},
		{"somebody's", "x.com", response(8 * day), 400 * day, true},
		{"somebody's", hexKey("x")[1:], response(8 * day), 400 * day, true},
		{"somebody's", hexKey("x") + "0", response(8 * day), 400 * day, true},
		{"somebody's", hexKey("x") + ".ocsp", response(8 * day), 400 * day, true},
		{"somebody's", strings.ToUpper(hexKey("x")), response(8 * day), 400 * day, true},
		{"somebody's, named by its hash", hexKey("blob"), "no OCSP response", 400 * day, true},
		{"somebody's, named by its hash, empty", hexKey("empty"), "", 400 * day, true},
		{"somebody's, named by its hash, large", hexKey("large"), strings.Repeat("x", mostRead+1), 400 * day, true},
	}
	for _, odd := range stapletest.Oddities(world.CA(), cert) {
		files = append(files, file{"is current: " + odd.Name, "", string(odd.DER), 9 * day, true})
	}

	dir := t.TempDir()
	for i := range files {
		f := &files[i]
		if f.name == "" {
			f.name = hexKey(fmt.Sprint(i))
		}
		name := filepath.Join(dir, f.name)
		require.NoError(t, os.WriteFile(name, []byte(f.data), 0o600))
		world.SetAge(t, name, f.age)
	}
	directory := filepath.Join(dir, hexKey("directory"))
	require.NoError(t, os.Mkdir(directory, 0o700))
	world.SetAge(t, directory, 400*day)

	require.NoError(t, staple.DirCache(dir).Put(t.Context(), hexKey("new"), []byte("data")))
	for _, f := range files {
		t.Run(f.about, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join(dir, f.name))
			if f.kept {
				require.NoError(t, err)
				require.Equal(t, f.data, string(data))
			} else {
				require.ErrorIs(t, err, os.ErrNotExist)
			}
		})
	}
	require.DirExists(t, directory)
}

func TestDirCacheSweepsWithoutOpeningPipes(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, hexKey("pipe"))
	makePipe(t, pipe)
	world.SetAge(t, pipe, 400*24*time.Hour)
	require.NoError(t, staple.DirCache(dir).Put(t.Context(), hexKey("new"), []byte("data")))
	_, err := os.Lstat(pipe)
	require.NoError(t, err)
}

func TestDirCacheSweepsOnceADay(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		left := filepath.Join(dir, world.TempPrefix+"1")
		put := func() { require.NoError(t, staple.DirCache(dir).Put(t.Context(), hexKey("a"), []byte("data"))) }
		put()
		require.NoError(t, os.WriteFile(left, []byte("half"), 0o600))
		world.SetAge(t, left, 2*time.Hour)
		time.Sleep(23 * time.Hour)
		put()
		require.FileExists(t, left)
		time.Sleep(time.Hour)
		put()
		require.NoFileExists(t, left)
	})
}

func TestDirCacheLock(t *testing.T) {
	d := staple.DirCache(filepath.Join(t.TempDir(), "new"))
	key := world.CacheKey(world.CA().Issuer)
	unlock, ok, err := d.TryLock(t.Context(), key, time.Minute)
	require.NoError(t, err)
	require.True(t, ok)
	_, ok, err = d.TryLock(t.Context(), key, time.Minute)
	require.NoError(t, err)
	require.False(t, ok, "it is held")
	_, ok, err = d.TryLock(t.Context(), world.CacheKey(world.CA().Root), time.Minute)
	require.NoError(t, err)
	require.True(t, ok, "another key is not")
	_, err = d.Get(t.Context(), key)
	require.ErrorIs(t, err, staple.ErrCacheMiss)

	// A holder that has crashed: the lock is older than its lease.
	time.Sleep(20 * time.Millisecond)
	again, ok, err := d.TryLock(t.Context(), key, 10*time.Millisecond)
	require.NoError(t, err)
	require.True(t, ok)
	unlock() // the first holder was merely slow: the lock is no longer its own
	_, ok, err = d.TryLock(t.Context(), key, time.Minute)
	require.NoError(t, err)
	require.False(t, ok)
	again()
	again()
	unlock, ok, err = d.TryLock(t.Context(), key, time.Minute)
	require.NoError(t, err)
	require.True(t, ok)
	unlock()

	_, _, err = d.TryLock(t.Context(), "../escape", time.Minute)
	require.Error(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err = d.TryLock(ctx, key, time.Minute)
	require.ErrorIs(t, err, context.Canceled)
}
