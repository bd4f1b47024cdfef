package staple

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

// processDir tells a process that the test below starts where its certificates and
// its cache are.
const processDir = "STAPLE_TEST_PROCESS_DIR"

// TestTenProcessesMakeOneRequestForEachCertificate starts ten processes at once on an
// empty DirCache.
func TestTenProcessesMakeOneRequestForEachCertificate(t *testing.T) {
	if dir := os.Getenv(processDir); dir != "" {
		oneOfTen(t, dir)
		return
	}
	const processes, certificates = 10, 200
	w := newWorld(t)
	w.responder.Set(nil, stapletest.Answer{Delay: 10 * time.Millisecond})
	server := httptest.NewServer(w.responder)
	defer server.Close()
	dir := t.TempDir()
	for i := range certificates {
		cert := w.leaf(names(fmt.Sprint(i, ".example.com")), sameKey(w.ca.Key), func(o *stapletest.LeafOptions) { o.Responders = []string{server.URL} })
		var chain []byte
		for _, der := range cert.Certificate {
			chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i, ".pem")), chain, 0o600))
	}
	var wg sync.WaitGroup
	for range processes {
		wg.Go(func() {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=60s")
			cmd.Env = append(os.Environ(), processDir+"="+dir)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
		})
	}
	wg.Wait()
	require.Len(t, w.responder.Requests(nil), certificates)
	left, err := filepath.Glob(filepath.Join(dir, "cache", tempPrefix+"*"))
	require.NoError(t, err)
	require.Empty(t, left, "locks or temporary files are left")
}

func oneOfTen(t *testing.T, dir string) {
	files, err := filepath.Glob(filepath.Join(dir, "*.pem"))
	require.NoError(t, err)
	var certs []tls.Certificate
	for _, name := range files {
		rest, err := os.ReadFile(name)
		require.NoError(t, err)
		var cert tls.Certificate
		for block, rest := pem.Decode(rest); block != nil; block, rest = pem.Decode(rest) {
			cert.Certificate = append(cert.Certificate, block.Bytes)
		}
		certs = append(certs, cert)
	}
	s := &Stapler{Cache: DirCache(filepath.Join(dir, "cache"))}
	defer s.Close()
	config := s.TLSConfig(&tls.Config{Certificates: certs})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
	defer cancel()
	require.NoError(t, s.Wait(ctx))
	for c := range s.Certificates() {
		require.NoError(t, c.Wait(ctx))
	}
	require.NotNil(t, config.GetCertificate)
}

func TestDirCacheLock(t *testing.T) {
	d := DirCache(filepath.Join(t.TempDir(), "new"))
	key := cacheKeyOf(testCA().Issuer)
	unlock, ok, err := d.TryLock(t.Context(), key, time.Minute)
	require.NoError(t, err)
	require.True(t, ok)
	_, ok, err = d.TryLock(t.Context(), key, time.Minute)
	require.NoError(t, err)
	require.False(t, ok, "it is held")
	_, ok, err = d.TryLock(t.Context(), cacheKeyOf(testCA().Root), time.Minute)
	require.NoError(t, err)
	require.True(t, ok, "another key is not")
	_, err = d.Get(t.Context(), key)
	require.ErrorIs(t, err, ErrCacheMiss)

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
