package whole

import (
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

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
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
	w := world.New(t)
	w.Responder.Set(nil, stapletest.Answer{Delay: 10 * time.Millisecond})
	server := httptest.NewServer(w.Responder)
	defer server.Close()
	dir := t.TempDir()
	for i := range certificates {
		cert := w.Leaf(world.Names(fmt.Sprint(i, ".example.com")), world.SameKey(w.CA.Key), world.Responders(server.URL))
		var chain []byte
		for _, der := range cert.Certificate {
			chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i, ".pem")), chain, 0o600))
	}
	began := time.Now()
	var wg sync.WaitGroup
	for range processes {
		wg.Go(func() {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
			cmd.Env = append(os.Environ(), processDir+"="+dir)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
		})
	}
	wg.Wait()
	asked := make(map[string]bool)
	for _, r := range w.Responder.Requests(nil) {
		// On a machine so busy that somebody has a lock for longer than its lease, others go on without.
		require.True(t, !asked[r.Serial.String()] || r.Time.Sub(began) > lease, "asked twice, though no lock has ended")
		asked[r.Serial.String()] = true
	}
	require.Len(t, asked, certificates)
	left, err := filepath.Glob(filepath.Join(dir, "cache", world.TempPrefix+"*"))
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
	s := &staple.Stapler{Cache: staple.DirCache(filepath.Join(dir, "cache"))}
	defer s.Close()
	config := s.TLSConfig(&tls.Config{Certificates: certs})
	ctx := world.Soon(t)
	require.NoError(t, s.Wait(ctx))
	for c := range s.Certificates() {
		require.NoError(t, c.Wait(ctx))
	}
	require.NotNil(t, config.GetCertificate)
}
