package dircache_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple/internal/dircache"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

// hexKey returns a key as a Stapler would make it.
func hexKey(name string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(name))) }

// mostRead is the size of the largest file that it takes for a response.
const mostRead = 1 << 20

func TestADirectoryIsForItsOwnerAlone(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("file modes mean little on Windows")
	}
	parent := filepath.Join(t.TempDir(), "parent")
	dir := filepath.Join(parent, "cache")
	key := hexKey("a")
	for range 2 {
		require.NoError(t, dircache.Dir(dir).Put(t.Context(), key, []byte("data")))
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

func TestKeysArePlainNames(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "cache")
	require.NoError(t, os.Mkdir(dir, 0o700))
	cache := dircache.Dir(dir)
	for _, key := range []string{"", ".", "..", "../a", "a/b", "/a", `a\b`, `..\a`, "C:a", "a:b", "a\x00b", "a\nb", "a b", "~",
		".a", world.TempPrefix + "1", "é", "\xff", strings.Repeat("a", 201)} {
		_, err := cache.Get(t.Context(), key)
		require.ErrorContains(t, err, "key", "%q", key)
		require.NotErrorIs(t, err, os.ErrNotExist, "%q", key)
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

func TestContextsAreHonored(t *testing.T) {
	cache := dircache.Dir(t.TempDir())
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

func TestItReadsNothingButFilesOfASensibleSize(t *testing.T) {
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
			cache := dircache.Dir(dir)
			data, err := cache.Get(t.Context(), key) // a pipe must not make it wait
			if tt.want == "" {
				require.NoError(t, err)
				require.Len(t, data, mostRead)
			} else {
				require.ErrorContains(t, err, tt.want)
				require.NotErrorIs(t, err, os.ErrNotExist)
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

func TestItRemovesItsOwnThatEndedAWeekAgo(t *testing.T) {
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

	require.NoError(t, dircache.Dir(dir).Put(t.Context(), hexKey("new"), []byte("data")))
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

func TestItSweepsWithoutOpeningPipes(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, hexKey("pipe"))
	makePipe(t, pipe)
	world.SetAge(t, pipe, 400*24*time.Hour)
	require.NoError(t, dircache.Dir(dir).Put(t.Context(), hexKey("new"), []byte("data")))
	_, err := os.Lstat(pipe)
	require.NoError(t, err)
}

func TestItSweepsOnceADay(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		left := filepath.Join(dir, world.TempPrefix+"1")
		put := func() { require.NoError(t, dircache.Dir(dir).Put(t.Context(), hexKey("a"), []byte("data"))) }
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

func TestALockIsTakenOverOnceItIsOld(t *testing.T) {
	d := dircache.Dir(filepath.Join(t.TempDir(), "new"))
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
	require.ErrorIs(t, err, os.ErrNotExist)

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
