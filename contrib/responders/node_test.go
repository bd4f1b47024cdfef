package responders

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/stapletest"
)

// startNode starts the responder of the npm package ocsp. say tells it the status of a certificate.
func startNode(t *testing.T, ca *stapletest.CA, port string) (say func(cert *x509.Certificate, status string)) {
	node := peer.Need(t, "node")
	modules, err := exec.CommandContext(t.Context(), peer.Need(t, "npm"), "root", "-g").Output()
	require.NoError(t, err)
	path := "NODE_PATH=" + strings.TrimSpace(string(modules))
	if _, err := os.Stat(filepath.Join(strings.TrimSpace(string(modules)), "ocsp")); err != nil {
		peer.Missing(t, "the npm package ocsp", err)
	}

	dir := t.TempDir()
	file := func(name, blockType string, der []byte) string {
		name = filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der}), 0o600))
		return name
	}
	key, err := x509.MarshalPKCS8PrivateKey(ca.Key)
	require.NoError(t, err)
	cmd := exec.Command(node, filepath.Join("testdata", "responder.js"), port,
		file("ca.pem", "CERTIFICATE", ca.Issuer.Raw), file("ca.key", "PRIVATE KEY", key))
	cmd.Env = append(os.Environ(), path)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		in.Close() // and it exits
		cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	return func(cert *x509.Certificate, status string) {
		fmt.Fprintf(in, "%x %s\n", cert.SerialNumber, status)
		require.True(t, lines.Scan(), "it ended")
		require.Equal(t, "ok", lines.Text())
	}
}

// The responder leaves a GET without any answer, which the Stapler gives up after ten seconds, to ask by POST next.
// A query in the URL, here an empty one, has it do so at once.
func TestNode(t *testing.T) {
	for name, suffix := range map[string]string{"GET is not answered": "", "POST": "?"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testNode(t, suffix)
		})
	}
}

func testNode(t *testing.T, suffix string) {
	ca := stapletest.NewCA(stapletest.CAOptions{KeyType: stapletest.RSA2048, Intermediate: true}) // it signs with RSA only
	port := peer.FreePort(t)
	cert := ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://127.0.0.1:" + port + "/" + suffix}})
	say := startNode(t, ca, port)
	say(cert.Leaf, "good")

	s := newSite(t, new(staple.Stapler), cert, &tls.Config{RootCAs: ca.Roots()})
	r := s.requireGood(t)
	require.Equal(t, x509.SHA512WithRSA, r.SignatureAlgorithm)
	require.False(t, r.NextUpdate.IsZero())

	if suffix == "" {
		return // or it takes ten seconds more
	}
	say(cert.Leaf, "revoked")
	s.requireRevoked(t)
	r, err := ocsp.ParseResponse(s.handle.TLS().OCSPStaple, nil)
	require.NoError(t, err)
	require.Equal(t, ocsp.KeyCompromise, r.RevocationReason)
}
