package whole

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/stretchr/testify/require"
)

// hexKey returns a key as a Stapler would make it.
func hexKey(name string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(name))) }

func TestDirCacheThatCannotBeWritten(t *testing.T) {
	key := hexKey("a")
	t.Run("a file in place of the directory is an error", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		for _, dir := range []string{file, filepath.Join(file, "cache")} {
			require.Error(t, staple.DirCache(dir).Put(t.Context(), key, []byte("data")))
			_, err := staple.DirCache(dir).Get(t.Context(), key)
			require.Error(t, err)
		}
	})
	t.Run("a read-only directory is an error, and what it holds is served", func(t *testing.T) {
		if runtime.GOOS == "windows" {
			t.Skip("directories cannot be made read-only on Windows")
		}
		if os.Geteuid() == 0 && !world.IsChild() {
			world.RequirePass(t, world.Unprivileged(t))
			return
		}
		dir := t.TempDir()
		cache := staple.DirCache(dir)
		require.NoError(t, cache.Put(t.Context(), key, []byte("data")))
		require.NoError(t, os.Chmod(dir, 0o500))
		t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
		require.ErrorIs(t, cache.Put(t.Context(), key, []byte("other")), os.ErrPermission)
		require.ErrorIs(t, cache.Put(t.Context(), hexKey("b"), []byte("other")), os.ErrPermission)
		require.ErrorIs(t, cache.Delete(t.Context(), key), os.ErrPermission)
		data, err := cache.Get(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, "data", string(data))
		require.Equal(t, []string{key}, world.FilesIn(t, dir))
	})
}

// whole returns data that shows whether it is whole; isWhole tells.
func whole(n byte) []byte { return bytes.Repeat([]byte{n}, 1+4000*int(n)) }

func isWhole(data []byte) bool {
	return len(data) > 0 && len(data) == len(whole(0))+4000*int(data[0]) && bytes.Count(data, data[:1]) == len(data)
}

func TestDirCacheReadersSeeWholeFilesAlone(t *testing.T) {
	cache := staple.DirCache(t.TempDir())
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
	require.Equal(t, []string{key}, world.FilesIn(t, string(cache)))
}

// TestDirCacheSurvivesKilledWriters is two processes that write until they are killed, again and again,
// and a third that reads.
func TestDirCacheSurvivesKilledWriters(t *testing.T) {
	key := hexKey("a")
	if world.IsChild() {
		go func() { // ends with its parent, if not before
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
		for n := byte(100); ; n = max(n+1, 100) {
			require.NoError(t, staple.DirCache(os.Getenv("STAPLE_TEST_DIR")).Put(t.Context(), key, whole(n)))
			_, err := os.Stdout.WriteString(".")
			require.NoError(t, err)
		}
	}

	cache := staple.DirCache(t.TempDir())
	leftovers := func() (names []string) {
		for _, name := range world.FilesIn(t, string(cache)) {
			if name != key {
				require.True(t, strings.HasPrefix(name, world.TempPrefix), name)
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
		cmd := world.Child(t)
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
		world.SetAge(t, name, 2*time.Hour)
	}
	require.NoError(t, staple.DirCache(string(cache)+"/.").Put(t.Context(), key, whole(2))) // not swept by that name yet
	require.Empty(t, leftovers())
	requireWhole()
}

func TestDirCacheSweepsAFewFilesWithEachPut(t *testing.T) {
	const files, most, puts = 2000, 256, 8 // most files are looked at with a Put
	dir := t.TempDir()
	for i := range files {
		name := filepath.Join(dir, world.TempPrefix+fmt.Sprint(i))
		require.NoError(t, os.WriteFile(name, []byte("half"), 0o600))
		world.SetAge(t, name, 2*time.Hour)
	}
	cache := staple.DirCache(dir)
	left := files
	for range puts {
		require.NoError(t, cache.Put(t.Context(), hexKey("a"), []byte("data")))
		now := len(world.FilesIn(t, dir)) - 1
		require.LessOrEqual(t, left-now, most)
		left = now
	}
	require.Zero(t, left, "it does not go on where it was")
}
