package whole

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"os"
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
)

const (
	crashDir      = "STAPLE_TEST_CRASH_DIR"
	issuerFile    = "issuer.der"
	leavesPattern = "leaf-*.der"
)

// lease is for how long a process that has crashed holds up others that share its cache.
const lease = 10 * time.Second

// writeCrashDir writes what a child needs, which reads it with readCrashDir.
func writeCrashDir(t *testing.T, certs []tls.Certificate) (dir string, cache staple.DirCache) {
	dir = t.TempDir()
	for i, cert := range certs {
		name := strings.Replace(leavesPattern, "*", fmt.Sprint(i), 1)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), cert.Certificate[0], 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(dir, issuerFile), cert.Certificate[1], 0o600))
	}
	return dir, staple.DirCache(filepath.Join(dir, "cache"))
}

func readCrashDir(t *testing.T) (certs []tls.Certificate, cache staple.DirCache) {
	dir := os.Getenv(crashDir)
	leaves, err := filepath.Glob(filepath.Join(dir, leavesPattern))
	require.NoError(t, err)
	issuer, err := os.ReadFile(filepath.Join(dir, issuerFile))
	require.NoError(t, err)
	for _, name := range leaves {
		leaf, err := os.ReadFile(name)
		require.NoError(t, err)
		certs = append(certs, tls.Certificate{Certificate: [][]byte{leaf, issuer}})
	}
	return certs, staple.DirCache(filepath.Join(dir, "cache"))
}

// startAndKill starts the present test in another process, waits until that has written n bytes, and
// kills it.
func startAndKill(t *testing.T, dir string, n int) {
	cmd := world.Child(t)
	cmd.Env = append(cmd.Env, crashDir+"="+dir)
	in, err := cmd.StdinPipe() // by which the child learns that its parent is gone
	require.NoError(t, err)
	defer in.Close()
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	text := make([]byte, n)
	read, err := io.ReadFull(out, text)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	require.NoError(t, err, "the child ended: %q", text[:read])
}

func endWithParent() {
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

func tellParent(t *testing.T) {
	_, err := os.Stdout.WriteString(".")
	require.NoError(t, err)
}

// leftIn returns the paths of the locks and temporary files in a cache.
func leftIn(t *testing.T, cache staple.DirCache) (locks, temps []string) {
	left, err := filepath.Glob(filepath.Join(string(cache), world.TempPrefix+"*"))
	require.NoError(t, err)
	for _, name := range left {
		if strings.HasPrefix(filepath.Base(name), world.LockPrefix) {
			locks = append(locks, name)
		} else {
			temps = append(temps, name)
		}
	}
	return locks, temps
}

// TestACacheSurvivesKilledProcesses kills processes that refresh and store without a pause, a few hundred
// in all. Two at a time are at work, each on a cache of its own.
func TestACacheSurvivesKilledProcesses(t *testing.T) {
	if world.IsChild() {
		refreshUntilKilled(t)
		return
	}
	first := time.Now().Add(-10 * world.Day).Truncate(time.Second)
	var answers atomic.Int64
	w := world.New(t)
	w.Responder.Set(nil, stapletest.Answer{Edit: func(r *stapletest.Response) { // each newer than all before
		r.Singles[0].ThisUpdate = first.Add(time.Duration(answers.Add(1)) * time.Second)
		r.Singles[0].NextUpdate = time.Now().Add(time.Hour)
	}})
	server := httptest.NewServer(w.Responder)
	defer server.Close()
	var kills, writing, holding atomic.Int64
	t.Run("cache", func(t *testing.T) {
		for i := range 2 {
			var certs []tls.Certificate
			for range 4 {
				certs = append(certs, w.Leaf(world.SameKey(w.CA.Key), func(o *stapletest.LeafOptions) {
					o.Responders, o.NotBefore = []string{server.URL}, first.Add(-world.Day)
				}))
			}
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				k, w, h := killAgainAndAgain(t, w, certs)
				kills.Add(int64(k))
				writing.Add(int64(w))
				holding.Add(int64(h))
			})
		}
	})
	t.Logf("%d processes killed after %d responses: %d temporary files and %d locks were left",
		kills.Load(), answers.Load(), writing.Load(), holding.Load())
	if !t.Failed() {
		require.Positive(t, writing.Load(), "no process was killed while it wrote")
		require.Positive(t, holding.Load(), "no process was killed while it held a lock")
	}
}

// killAgainAndAgain returns how many processes it killed, and how many temporary files and locks they left.
func killAgainAndAgain(t *testing.T, w *world.World, certs []tls.Certificate) (kills, writing, holding int) {
	const fewest, most = 10, 200 // as many as the time allows
	deadline := time.Now().Add(2500 * time.Millisecond)
	if testing.Short() {
		deadline = time.Now().Add(time.Second)
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	dir, cache := writeCrashDir(t, certs)
	newest := make([]time.Time, len(certs))
	check := func() {
		t.Helper()
		for i, cert := range certs {
			about := fmt.Sprintf("certificate %d after %d kills, seed %d", i, kills, seed)
			der, err := cache.Get(t.Context(), world.CacheKey(cert.Leaf))
			require.NoError(t, err, about)
			r, _, err := new(staple.ResponseVerifier).Verify(der, cert.Leaf, w.CA.Issuer, time.Now())
			require.NoError(t, err, about)
			require.False(t, r.ThisUpdate.Before(newest[i]), "%s: went back from %s to %s", about, newest[i], r.ThisUpdate)
			newest[i] = r.ThisUpdate
		}
	}
	for _, cert := range certs { // the first process may be killed before it has stored anything
		require.NoError(t, cache.Put(t.Context(), world.CacheKey(cert.Leaf), w.Responder.Response(cert.Leaf)))
	}
	check()
	began := newest[0]
	var locks, temps []string
	for ; kills < most && (time.Now().Before(deadline) || kills < fewest); kills++ {
		startAndKill(t, dir, 1+random.IntN(3*len(certs)))
		check()
		before := len(temps)
		locks, temps = leftIn(t, cache)
		holding += len(locks)
		writing += len(temps) - before
		for _, name := range locks { // ten seconds pass
			world.SetAge(t, name, lease+time.Second)
		}
	}
	require.Greater(t, newest[0], began, "nothing was stored in all that time")

	for _, name := range append(locks, temps...) { // an hour passes
		world.SetAge(t, name, time.Hour+time.Minute)
	}
	s := w.Stapler(func(s *staple.Stapler) { s.Cache = cache + "/." }) // not swept by that name yet
	for _, cert := range certs {
		c, err := s.Add(cert)
		require.NoError(t, err)
		require.True(t, c.Status().Stapled, "not stapled from the cache")
		require.NoError(t, c.Refresh(world.Soon(t)))
	}
	require.NoError(t, s.Close())
	check()
	require.Len(t, world.FilesIn(t, string(cache)), len(certs), "leftovers")
	return kills, writing, holding
}

func refreshUntilKilled(t *testing.T) {
	go endWithParent()
	certs, cache := readCrashDir(t)
	s := &staple.Stapler{Cache: cache, Logger: slog.New(slog.DiscardHandler)}
	for _, cert := range certs {
		c, err := s.Add(cert)
		require.NoError(t, err)
		go func() {
			for {
				require.NoError(t, c.Refresh(context.Background()))
				tellParent(t)
			}
		}()
	}
	select {}
}

func TestAHolderOfALockThatIsKilledDelaysNobodyForMoreThanItsLease(t *testing.T) {
	if world.IsChild() {
		go endWithParent()
		certs, cache := readCrashDir(t)
		s := &staple.Stapler{Cache: cache, Fetcher: staple.FetcherFunc(func(ctx context.Context, req *staple.Request) ([]byte, error) {
			tellParent(t) // it has the lock now
			select {}
		})}
		_, err := s.Add(certs[0])
		require.NoError(t, err)
		select {}
	}
	w := world.New(t)
	ends := time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
	begins := time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC) // for the child, and in the bubble
	cert := w.Leaf(func(o *stapletest.LeafOptions) { o.NotBefore, o.NotAfter = begins, ends })
	dir, cache := writeCrashDir(t, []tls.Certificate{cert})
	startAndKill(t, dir, 1)
	locks, temps := leftIn(t, cache)
	require.Len(t, locks, 1)
	require.Empty(t, temps)
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		world.SetAge(t, locks[0], 0) // by the clock of the bubble
		start := time.Now()
		w.Add(w.Stapler(func(s *staple.Stapler) { s.Cache = cache }), cert)
		took := time.Since(start)
		require.Greater(t, took, lease, "the lock was not honored")
		require.Less(t, took, lease+2*time.Second)
		synctest.Wait()
		require.Len(t, w.Responder.Requests(nil), 1)
		require.Equal(t, []string{world.CacheKey(cert.Leaf)}, world.FilesIn(t, string(cache)))
	})
}
