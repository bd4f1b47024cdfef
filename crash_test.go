package staple

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
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

const (
	crashDir      = "STAPLE_TEST_CRASH_DIR"
	issuerFile    = "issuer.der"
	leavesPattern = "leaf-*.der"
)

// writeCrashDir writes what a child needs, which reads it with readCrashDir.
func writeCrashDir(t *testing.T, certs []tls.Certificate) (dir string, cache DirCache) {
	dir = t.TempDir()
	for i, cert := range certs {
		name := strings.Replace(leavesPattern, "*", fmt.Sprint(i), 1)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), cert.Certificate[0], 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(dir, issuerFile), cert.Certificate[1], 0o600))
	}
	return dir, DirCache(filepath.Join(dir, "cache"))
}

func readCrashDir(t *testing.T) (certs []tls.Certificate, cache DirCache) {
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
	return certs, DirCache(filepath.Join(dir, "cache"))
}

// startAndKill starts the present test in another process, waits until that has written n bytes, and
// kills it.
func startAndKill(t *testing.T, dir string, n int) {
	cmd := child(t)
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
func leftIn(t *testing.T, cache DirCache) (locks, temps []string) {
	left, err := filepath.Glob(filepath.Join(string(cache), tempPrefix+"*"))
	require.NoError(t, err)
	for _, name := range left {
		if strings.HasPrefix(filepath.Base(name), tempPrefix+"lock-") {
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
	if asChild() {
		refreshUntilKilled(t)
		return
	}
	first := time.Now().Add(-10 * day).Truncate(time.Second)
	var answers atomic.Int64
	w := newWorld(t)
	w.responder.Set(nil, stapletest.Answer{Edit: func(r *stapletest.Response) { // each newer than all before
		r.Singles[0].ThisUpdate = first.Add(time.Duration(answers.Add(1)) * time.Second)
		r.Singles[0].NextUpdate = time.Now().Add(time.Hour)
	}})
	server := httptest.NewServer(w.responder)
	defer server.Close()
	var kills, writing, holding atomic.Int64
	t.Run("cache", func(t *testing.T) {
		for i := range 2 {
			var certs []tls.Certificate
			for range 4 {
				certs = append(certs, w.leaf(sameKey(w.ca.Key), func(o *stapletest.LeafOptions) {
					o.Responders, o.NotBefore = []string{server.URL}, first.Add(-day)
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
func killAgainAndAgain(t *testing.T, w *world, certs []tls.Certificate) (kills, writing, holding int) {
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
			der, err := cache.Get(t.Context(), cacheKeyOf(cert.Leaf))
			require.NoError(t, err, about)
			r, _, err := new(ResponseVerifier).Verify(der, cert.Leaf, w.ca.Issuer, time.Now())
			require.NoError(t, err, about)
			require.False(t, r.ThisUpdate.Before(newest[i]), "%s: went back from %s to %s", about, newest[i], r.ThisUpdate)
			newest[i] = r.ThisUpdate
		}
	}
	for _, cert := range certs { // the first process may be killed before it has stored anything
		require.NoError(t, cache.Put(t.Context(), cacheKeyOf(cert.Leaf), w.responder.Response(cert.Leaf)))
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
			setAge(t, name, leaseTTL+time.Second)
		}
	}
	require.Greater(t, newest[0], began, "nothing was stored in all that time")

	for _, name := range append(locks, temps...) { // an hour passes
		setAge(t, name, tempAge+time.Minute)
	}
	s := w.stapler(func(s *Stapler) { s.Cache = cache + "/." }) // not swept by that name yet
	for _, cert := range certs {
		c, err := s.Add(cert)
		require.NoError(t, err)
		require.True(t, c.Status().Stapled, "not stapled from the cache")
		require.NoError(t, c.Refresh(soon(t)))
	}
	require.NoError(t, s.Close())
	check()
	require.Len(t, filesIn(t, string(cache)), len(certs), "leftovers")
	return kills, writing, holding
}

func refreshUntilKilled(t *testing.T) {
	go endWithParent()
	certs, cache := readCrashDir(t)
	s := &Stapler{Cache: cache, Logger: slog.New(slog.DiscardHandler)}
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
	if asChild() {
		go endWithParent()
		certs, cache := readCrashDir(t)
		s := &Stapler{Cache: cache, Fetcher: FetcherFunc(func(ctx context.Context, req *Request) ([]byte, error) {
			tellParent(t) // it has the lock now
			select {}
		})}
		_, err := s.Add(certs[0])
		require.NoError(t, err)
		select {}
	}
	w := newWorld(t)
	ends := time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
	begins := time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC) // for the child, and in the bubble
	cert := w.leaf(func(o *stapletest.LeafOptions) { o.NotBefore, o.NotAfter = begins, ends })
	dir, cache := writeCrashDir(t, []tls.Certificate{cert})
	startAndKill(t, dir, 1)
	locks, temps := leftIn(t, cache)
	require.Len(t, locks, 1)
	require.Empty(t, temps)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		setAge(t, locks[0], 0) // by the clock of the bubble
		start := time.Now()
		c := w.add(w.stapler(func(s *Stapler) { s.Cache = cache }), cert)
		took := time.Since(start)
		require.Greater(t, took, leaseTTL, "the lock was not honored")
		require.Less(t, took, leaseTTL+2*time.Second)
		synctest.Wait()
		require.Len(t, w.responder.Requests(nil), 1)
		require.Equal(t, []string{c.entry.cacheKey()}, filesIn(t, string(cache)))
	})
}

// TestAnOutageOfTheCacheCostsALogLineAndNoStaple breaks a DirCache for weeks, and mends it.
func TestAnOutageOfTheCacheCostsALogLineAndNoStaple(t *testing.T) {
	for _, tt := range []struct {
		name       string
		privileged bool // what root may do all the same
		room       func(t *testing.T) string
		broken     func(t *testing.T, dir string) (mend func())
	}{
		{"the disk is full", false, smallDisk, fillDisk},
		{"the directory is read-only", true, (*testing.T).TempDir, chmod(0o500)},
		{"no permission for the directory", true, (*testing.T).TempDir, chmod(0)},
		{"a file is in the place of the directory", false, (*testing.T).TempDir, func(t *testing.T, dir string) func() {
			require.NoError(t, os.Rename(dir, dir+".aside"))
			require.NoError(t, os.WriteFile(dir, nil, 0o600))
			return func() {
				require.NoError(t, os.Remove(dir))
				require.NoError(t, os.Rename(dir+".aside", dir))
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.privileged && runtime.GOOS == "windows" {
				t.Skip("directories cannot be made read-only on Windows")
			}
			if tt.privileged && os.Geteuid() == 0 && !asChild() {
				cmd := child(t)
				cmd.Args = append([]string{"setpriv", "--bounding-set=-all"}, append(cmd.Args, "-test.v")...)
				cmd.Path = peer.Need(t, "setpriv")
				out, err := cmd.CombinedOutput()
				require.NoError(t, err, "%s", out)
				require.Contains(t, string(out), "--- PASS: "+t.Name())
				return
			}
			cache := DirCache(filepath.Join(tt.room(t), "cache"))
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				var mu sync.Mutex
				var text bytes.Buffer
				lines := func() []string {
					synctest.Wait()
					mu.Lock()
					defer mu.Unlock()
					return strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
				}
				s := w.stapler(func(s *Stapler) {
					s.Cache = cache
					s.Logger = slog.New(slog.NewTextHandler(lockedWriter{&mu, &text}, nil))
				})
				cert := w.leaf()
				c := w.add(s, cert)
				synctest.Wait()
				first := c.TLS().OCSPStaple
				stored := func() []byte {
					der, err := cache.Get(t.Context(), c.entry.cacheKey())
					require.NoError(t, err)
					return der
				}
				require.Equal(t, first, stored())

				mend := sync.OnceFunc(tt.broken(t, string(cache)))
				defer mend()
				for range 30 {
					time.Sleep(day)
					synctest.Wait()
					requireStaple(t, c, ocsp.Good)
				}
				newest := c.TLS().OCSPStaple
				require.NotEqual(t, first, newest)
				other := w.add(s, w.leaf(names("other.example.com"))) // one that it holds nothing about
				require.Len(t, lines(), 1, "%s", lines())
				require.Contains(t, lines()[0], "level=WARN")
				require.Contains(t, lines()[0], "stapling goes on")

				mend()
				require.Equal(t, first, stored(), "it has lost the one before")
				require.Equal(t, []string{c.entry.cacheKey()}, filesIn(t, string(cache)), "leftovers")
				time.Sleep(4 * day)
				synctest.Wait()
				require.Equal(t, c.TLS().OCSPStaple, stored())
				require.Len(t, filesIn(t, string(cache)), 2)
				requireStaple(t, other, ocsp.Good)
				require.Len(t, lines(), 2, "%s", lines())
				require.Contains(t, lines()[1], "level=INFO")
				require.Contains(t, lines()[1], "works again")
				require.NotContains(t, w.log.kinds(), EventFailed)
			})
		})
	}
}

func chmod(mode os.FileMode) func(*testing.T, string) func() {
	return func(t *testing.T, dir string) func() {
		require.NoError(t, os.Chmod(dir, mode))
		return func() { require.NoError(t, os.Chmod(dir, 0o700)) }
	}
}

// smallDisk mounts a file system of 64 KiB in memory, for which it takes Linux and root.
func smallDisk(t *testing.T) string {
	dir := t.TempDir()
	out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", dir).CombinedOutput()
	if err != nil {
		if runtime.GOOS == "linux" && os.Geteuid() == 0 && os.Getenv("STAPLE_REQUIRE_PEERS") == "1" {
			t.Fatalf("this test needs to mount a small disk, and STAPLE_REQUIRE_PEERS is set: %v\n%s", err, out)
		}
		t.Skipf("this test needs to mount a small disk: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		out, err := exec.Command("umount", dir).CombinedOutput()
		require.NoError(t, err, "%s", out)
	})
	return dir
}

func fillDisk(t *testing.T, dir string) (mend func()) {
	name := filepath.Join(filepath.Dir(dir), "ballast")
	err := os.WriteFile(name, make([]byte, 1<<20), 0o600)
	require.ErrorContains(t, err, "no space left on device")
	return func() { require.NoError(t, os.Remove(name)) }
}
