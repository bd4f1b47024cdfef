package whole

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

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
			if tt.privileged && os.Geteuid() == 0 && !world.IsChild() {
				world.RequirePass(t, world.Unprivileged(t))
				return
			}
			cache := staple.DirCache(filepath.Join(tt.room(t), "cache"))
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				var text world.Text
				lines := func() []string {
					synctest.Wait()
					return strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
				}
				s := w.Stapler(func(s *staple.Stapler) {
					s.Cache = cache
					s.Logger = slog.New(slog.NewTextHandler(&text, nil))
				})
				cert := w.Leaf()
				c := w.Add(s, cert)
				synctest.Wait()
				first := c.TLS().OCSPStaple
				stored := func() []byte {
					der, err := cache.Get(t.Context(), world.CacheKey(cert.Leaf))
					require.NoError(t, err)
					return der
				}
				require.Equal(t, first, stored())

				mend := sync.OnceFunc(tt.broken(t, string(cache)))
				defer mend()
				for range 10 { // longer than a staple lasts
					time.Sleep(world.Day)
					synctest.Wait()
					world.RequireStaple(t, c, ocsp.Good)
				}
				newest := c.TLS().OCSPStaple
				require.NotEqual(t, first, newest)
				other := w.Add(s, w.Leaf(world.Names("other.example.com"))) // one that it holds nothing about
				require.Len(t, lines(), 1, "%s", lines())
				require.Contains(t, lines()[0], "level=WARN")
				require.Contains(t, lines()[0], "stapling goes on")

				mend()
				require.Equal(t, first, stored(), "it has lost the one before")
				require.Equal(t, []string{world.CacheKey(cert.Leaf)}, world.FilesIn(t, string(cache)), "leftovers")
				time.Sleep(4 * world.Day)
				synctest.Wait()
				require.Equal(t, c.TLS().OCSPStaple, stored())
				require.Len(t, world.FilesIn(t, string(cache)), 2)
				world.RequireStaple(t, other, ocsp.Good)
				require.Len(t, lines(), 2, "%s", lines())
				require.Contains(t, lines()[1], "level=INFO")
				require.Contains(t, lines()[1], "works again")
				require.NotContains(t, w.Log.Kinds(), staple.EventFailed)
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

func TestACacheThatFailsCostsOneLineAnOutageAndNoStaple(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		var lines strings.Builder
		s := w.Stapler(func(s *staple.Stapler) {
			s.Cache = world.BrokenCache{}
			s.Logger = slog.New(slog.NewTextHandler(&lines, nil))
		})
		c := w.Add(s, w.Leaf())
		time.Sleep(30 * 24 * time.Hour)
		synctest.Wait()
		world.RequireStaple(t, c, ocsp.Good)
		require.Equal(t, 1, strings.Count(lines.String(), "the OCSP cache fails"), lines.String())
	})
}

func TestForgedStaplesThatCameWithCertificatesAreNotServedWhileTheCacheHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Hang: true})
		key := w.Leaf().PrivateKey
		forger := stapletest.NewCA(stapletest.CAOptions{}).Signer()
		var certs []tls.Certificate
		for i := range 60 { // more than are looked at in parallel
			cert := w.Leaf(world.Names(fmt.Sprint(i, ".example.com")), world.SameKey(key))
			r := stapletest.NewResponse(w.CA, cert.Leaf)
			r.Signer = forger
			cert.OCSPStaple = r.DER()
			certs = append(certs, cert)
		}
		s := w.Stapler(func(s *staple.Stapler) { s.Cache, s.Concurrency = hangingCache{}, 1 })
		config := s.TLSConfig(&tls.Config{Certificates: certs})
		for range 2 {
			require.Len(t, slices.Collect(s.Certificates()), len(certs))
			for c := range s.Certificates() {
				require.Empty(t, c.TLS().OCSPStaple)
			}
			time.Sleep(5 * time.Minute)
		}
		runtime.KeepAlive(config)
	})
}

// A hangingCache answers nothing.
type hangingCache struct{ world.BrokenCache }

func (hangingCache) Get(ctx context.Context, key string) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestACacheThatIsMerelySlowIsNotReported(t *testing.T) {
	for _, tt := range []struct {
		name string
		use  func(t *testing.T, w *world.World, s *staple.Stapler)
	}{
		{"while TLSConfig waits for it", func(t *testing.T, w *world.World, s *staple.Stapler) {
			key := w.Leaf().PrivateKey
			var certs []tls.Certificate
			for i := range 300 { // more than it looks up in a second
				certs = append(certs, w.Leaf(world.Names(fmt.Sprint(i, ".example.com")), world.SameKey(key)))
			}
			config := s.TLSConfig(&tls.Config{Certificates: certs})
			defer runtime.KeepAlive(config)
			require.NoError(t, s.Wait(t.Context()))
			runtime.KeepAlive(config)
		}},
		{"while a certificate is removed", func(t *testing.T, w *world.World, s *staple.Stapler) {
			c := w.Add(s, w.Leaf())
			go c.Refresh(t.Context())
			time.Sleep(100 * time.Millisecond)
			c.Remove()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				var lines world.Text
				s := w.Stapler(func(s *staple.Stapler) {
					s.Cache = new(slowGet)
					s.Logger = slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelWarn}))
				})
				tt.use(t, w, s)
				time.Sleep(time.Minute)
				require.Empty(t, lines.String())
			})
		})
	}
}

// A slowGet takes its time to read, unless ctx ends.
type slowGet struct{ staple.MemoryCache }

func (c *slowGet) Get(ctx context.Context, key string) ([]byte, error) {
	select {
	case <-time.After(300 * time.Millisecond):
		return c.MemoryCache.Get(ctx, key)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
