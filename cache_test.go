package staple

import (
	"bytes"
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
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// hexKey returns a key as a Stapler would make it.
func hexKey(name string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(name))) }

func TestCaches(t *testing.T) {
	for name, cache := range map[string]Cache{
		"MemoryCache":      new(MemoryCache),
		"NewMemoryCache":   NewMemoryCache(),
		"DirCache":         DirCache(filepath.Join(t.TempDir(), "not", "yet", "made")),
		"DirCache, exists": DirCache(t.TempDir()),
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
			require.ErrorIs(t, err, ErrCacheMiss)
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
			require.ErrorIs(t, err, ErrCacheMiss)
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
	w := newWorld(t)
	cert := w.leaf()
	cache := make(autocertCache)
	var lines strings.Builder
	with := func(s *Stapler) {
		s.Cache = cache
		s.Logger = slog.New(slog.NewTextHandler(&lines, nil))
	}
	s := w.stapler(with)
	w.add(s, cert)
	s.Close()
	require.Contains(t, cache, cacheKeyOf(cert.Leaf))
	require.Empty(t, lines.String(), "a miss is nothing to log")

	w.responder.Set(nil, stapletest.Answer{Hang: true})
	c, err := w.stapler(with).Add(cert)
	require.NoError(t, err)
	requireStaple(t, c, ocsp.Good)
}

// A getCache answers every Get alike.
type getCache struct {
	MemoryCache
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
		{"ErrCacheMiss", &getCache{err: ErrCacheMiss}, false},
		{"ErrCacheMiss, wrapped", &getCache{err: fmt.Errorf("redis: %w", ErrCacheMiss)}, false},
		{"autocert's", &getCache{err: errAutocertMiss}, false},
		{"no data", &getCache{}, false},
		{"empty data", &getCache{data: []byte{}}, false},
		{"another error", &getCache{err: io.ErrUnexpectedEOF}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			var lines strings.Builder
			s := w.stapler(func(s *Stapler) {
				s.Cache = tt.cache
				s.Logger = slog.New(slog.NewTextHandler(&lines, nil))
			})
			requireStaple(t, w.add(s, w.leaf()), ocsp.Good)
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
		w := newWorld(t)
		cert := w.leaf()
		response := w.responder.Response(cert.Leaf)
		// Whichever looks into the cache first, Add or the first round, the other comes later.
		for range 50 {
			s := w.stapler(func(s *Stapler) { s.Cache = &slowerCache{data: response} })
			c, err := s.Add(cert)
			require.NoError(t, err)
			requireStaple(t, c, ocsp.Good)
			time.Sleep(time.Minute)
			s.Close()
		}
		require.Empty(t, w.responder.Requests(nil))
	})
}

// A slowerCache has one response, and takes longer to find it each time.
type slowerCache struct {
	MemoryCache
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
		require.NoError(t, DirCache(dir).Put(t.Context(), key, []byte("data")))
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
	require.Equal(t, []string{key}, filesIn(t, dir))
}

func filesIn(t *testing.T, dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestDirCacheKeysArePlainNames(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "cache")
	require.NoError(t, os.Mkdir(dir, 0o700))
	cache := DirCache(dir)
	for _, key := range []string{"", ".", "..", "../a", "a/b", "/a", `a\b`, `..\a`, "C:a", "a:b", "a\x00b", "a\nb", "a b", "~",
		".a", tempPrefix + "1", "é", "\xff", strings.Repeat("a", 201)} {
		_, err := cache.Get(t.Context(), key)
		require.ErrorContains(t, err, "key", "%q", key)
		require.NotErrorIs(t, err, ErrCacheMiss, "%q", key)
		require.ErrorContains(t, cache.Put(t.Context(), key, []byte("data")), "key", "%q", key)
		require.ErrorContains(t, cache.Delete(t.Context(), key), "key", "%q", key)
	}
	require.Empty(t, filesIn(t, dir))
	require.Equal(t, []string{"cache"}, filesIn(t, root))
	for _, key := range []string{hexKey("a"), "example.com+rsa", "a_b-c", strings.Repeat("a", 200)} {
		require.NoError(t, cache.Put(t.Context(), key, []byte(key)))
		data, err := cache.Get(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, key, string(data))
	}
}

func TestDirCacheHonorsItsContext(t *testing.T) {
	cache := DirCache(t.TempDir())
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
		{"one byte too many", sized(maxCached + 1), "more than", true},
		{"far too large", sized(1 << 40), "more than", true},
		{"as large as may be", sized(maxCached), "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			tt.make(t, filepath.Join(dir, key))
			cache := DirCache(dir)
			data, err := cache.Get(t.Context(), key) // a pipe must not make it wait
			if tt.want == "" {
				require.NoError(t, err)
				require.Len(t, data, maxCached)
			} else {
				require.ErrorContains(t, err, tt.want)
				require.NotErrorIs(t, err, ErrCacheMiss)
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
			require.Equal(t, []string{key}, filesIn(t, dir), "nothing is left behind")
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

func TestDirCacheThatCannotBeWritten(t *testing.T) {
	key := hexKey("a")
	t.Run("a file in place of the directory is an error", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		for _, dir := range []string{file, filepath.Join(file, "cache")} {
			require.Error(t, DirCache(dir).Put(t.Context(), key, []byte("data")))
			_, err := DirCache(dir).Get(t.Context(), key)
			require.Error(t, err)
		}
	})
	t.Run("a read-only directory is an error, and what it holds is served", func(t *testing.T) {
		if runtime.GOOS == "windows" {
			t.Skip("directories cannot be made read-only on Windows")
		}
		if os.Geteuid() == 0 && !asChild() {
			// Root may write anywhere, unless it has no capabilities.
			cmd := child(t)
			cmd.Args = append([]string{"setpriv", "--bounding-set=-all"}, append(cmd.Args, "-test.v")...)
			cmd.Path = peer.Need(t, "setpriv")
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.Contains(t, string(out), "--- PASS: "+t.Name())
			return
		}
		dir := t.TempDir()
		cache := DirCache(dir)
		require.NoError(t, cache.Put(t.Context(), key, []byte("data")))
		require.NoError(t, os.Chmod(dir, 0o500))
		t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
		require.ErrorIs(t, cache.Put(t.Context(), key, []byte("other")), os.ErrPermission)
		require.ErrorIs(t, cache.Put(t.Context(), hexKey("b"), []byte("other")), os.ErrPermission)
		require.ErrorIs(t, cache.Delete(t.Context(), key), os.ErrPermission)
		data, err := cache.Get(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, "data", string(data))
		require.Equal(t, []string{key}, filesIn(t, dir))
	})
}

const childEnv = "STAPLE_TEST_CHILD"

// child returns a command that runs the present test in another process, where asChild is true.
func child(t *testing.T) *exec.Cmd {
	self, err := os.Executable()
	require.NoError(t, err)
	pattern := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	cmd := exec.CommandContext(t.Context(), self, "-test.run="+pattern)
	cmd.Env = append(os.Environ(), childEnv+"=1",
		"GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE")) // or each takes a second more
	return cmd
}

func asChild() bool { return os.Getenv(childEnv) != "" }

// whole returns data that shows whether it is whole; isWhole tells.
func whole(n byte) []byte { return bytes.Repeat([]byte{n}, 1+4000*int(n)) }

func isWhole(data []byte) bool {
	return len(data) > 0 && len(data) == len(whole(0))+4000*int(data[0]) && bytes.Count(data, data[:1]) == len(data)
}

func TestDirCacheReadersSeeWholeFilesAlone(t *testing.T) {
	cache := DirCache(t.TempDir())
	key := hexKey("a")
	require.NoError(t, cache.Put(t.Context(), key, whole(1)))
	var writers, readers sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		readers.Go(func() {
			for last, changes := byte(0), 0; changes < 5 && !t.Failed(); {
				data, err := cache.Get(t.Context(), key)
				if err != nil || !isWhole(data) {
					t.Errorf("torn: %d bytes, %v", len(data), err)
					return
				}
				if data[0] != last {
					last = data[0]
					changes++
				}
			}
		})
	}
	for i := range byte(4) {
		writers.Go(func() {
			for n := i; ; n += 4 {
				if err := cache.Put(t.Context(), key, whole(1+n%60)); err != nil {
					t.Error(err)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	readers.Wait()
	close(done)
	writers.Wait()
	require.Equal(t, []string{key}, filesIn(t, string(cache)))
}

// TestDirCacheSurvivesKilledWriters is two processes that write until they are killed, again and again,
// and a third that reads.
func TestDirCacheSurvivesKilledWriters(t *testing.T) {
	key := hexKey("a")
	if asChild() {
		go func() { // ends with its parent, if not before
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
		for n := byte(100); ; n = max(n+1, 100) {
			require.NoError(t, DirCache(os.Getenv("STAPLE_TEST_DIR")).Put(t.Context(), key, whole(n)))
			_, err := os.Stdout.WriteString(".")
			require.NoError(t, err)
		}
	}

	cache := DirCache(t.TempDir())
	leftovers := func() (names []string) {
		for _, name := range filesIn(t, string(cache)) {
			if name != key {
				require.True(t, strings.HasPrefix(name, tempPrefix), name)
				names = append(names, filepath.Join(string(cache), name))
			}
		}
		return names
	}
	reads := 0
	requireWhole := func() {
		t.Helper()
		data, err := cache.Get(t.Context(), key)
		require.NoError(t, err)
		require.True(t, isWhole(data), "torn: %d bytes", len(data))
		reads++
	}
	// start starts a writer and returns once it has written.
	start := func() (kill func()) {
		cmd := child(t)
		cmd.Env = append(cmd.Env, "STAPLE_TEST_DIR="+string(cache))
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		kill = sync.OnceFunc(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			_ = in.Close()
		})
		t.Cleanup(kill)
		_, err = io.ReadFull(out, make([]byte, 1))
		require.NoError(t, err, "the writer ended")
		go func() { _, _ = io.Copy(io.Discard, out) }()
		return kill
	}

	kill, kills := start(), 0
	for deadline := time.Now().Add(20 * time.Second); ; kills++ {
		for range 20 {
			requireWhole()
		}
		next := start()
		kill()
		requireWhole()
		kill = next
		if len(leftovers()) > 2 { // one of them may be that of the writer at work
			break
		}
		require.True(t, time.Now().Before(deadline), "no writer was killed while it wrote")
	}
	kill()
	requireWhole()
	left := leftovers()
	t.Logf("%d writers killed, %d files left, %d whole reads", kills+1, len(left), reads)

	require.NoError(t, cache.Put(t.Context(), key, whole(1)))
	require.Equal(t, left, leftovers(), "their writers may still be at it")
	for _, name := range left {
		setAge(t, name, 2*time.Hour)
	}
	require.NoError(t, DirCache(string(cache)+"/.").Put(t.Context(), key, whole(2))) // not swept by that name yet
	require.Empty(t, leftovers())
	requireWhole()
}

// setAge makes a file look as if it had been written some time ago.
func setAge(t *testing.T, name string, age time.Duration) {
	at := time.Now().Add(-age)
	require.NoError(t, os.Chtimes(name, at, at))
}

func TestDirCacheRemovesItsOwnThatEndedAWeekAgo(t *testing.T) {
	const day = 24 * time.Hour
	leaf := stapletest.LeafOptions{NotBefore: time.Now().Add(-400 * day)}
	cert, other := testCA().Leaf(leaf).Leaf, testCA().Leaf(leaf).Leaf
	// response returns one that ended some time ago, after ten days; negative: that is still current.
	response := func(ended time.Duration, edit ...func(*stapletest.Response)) string {
		r := stapletest.NewResponse(testCA(), cert)
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

		{"a writer crashed", tempPrefix + "1", "half", 2 * time.Hour, false},
		{"a writer at work", tempPrefix + "2", "half", 10 * time.Minute, true},

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
		{"somebody's, named by its hash, large", hexKey("large"), strings.Repeat("x", maxCached+1), 400 * day, true},
	}
	for _, odd := range stapletest.Oddities(testCA(), cert) {
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
		setAge(t, name, f.age)
	}
	directory := filepath.Join(dir, hexKey("directory"))
	require.NoError(t, os.Mkdir(directory, 0o700))
	setAge(t, directory, 400*day)

	require.NoError(t, DirCache(dir).Put(t.Context(), hexKey("new"), []byte("data")))
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
	setAge(t, pipe, 400*24*time.Hour)
	require.NoError(t, DirCache(dir).Put(t.Context(), hexKey("new"), []byte("data")))
	_, err := os.Lstat(pipe)
	require.NoError(t, err)
}

func TestDirCacheSweepsOnceADay(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		left := filepath.Join(dir, tempPrefix+"1")
		put := func() { require.NoError(t, DirCache(dir).Put(t.Context(), hexKey("a"), []byte("data"))) }
		put()
		require.NoError(t, os.WriteFile(left, []byte("half"), 0o600))
		setAge(t, left, 2*time.Hour)
		time.Sleep(23 * time.Hour)
		put()
		require.FileExists(t, left)
		time.Sleep(time.Hour)
		put()
		require.NoFileExists(t, left)
	})
}
