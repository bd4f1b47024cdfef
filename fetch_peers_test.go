package staple

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"

	"fmt"

	"math/big"
	"net"
	"net/http"


	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// startPeer starts a server and waits until it listens on port. The server ends with the test.
func startPeer(t *testing.T, port, path string, args ...string) {
	t.Helper()
	var said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // and its children end, too
	cmd.WaitDelay = 5 * time.Second
	require.NoError(t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() { <-ended })
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-ended:
			require.FailNow(t, "it ended", "%s: %s", cmd, said.String())
		case <-time.After(5 * time.Millisecond):
		}
	}
	require.FailNow(t, "it does not listen", "%s", cmd)
}

func writeFile(t *testing.T, dir, name string, data []byte) string {
	path := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(path, data, 0o600))
	return path
}

func withResponder(url string) func(*stapletest.LeafOptions) {
	return func(o *stapletest.LeafOptions) { o.Responders = []string{url} }
}

// awkwardLeaf returns a leaf whose serial number makes the base64 text of the OCSP request contain
// "//" and "++".
func (w *world) awkwardLeaf(url string) tls.Certificate {
	for i := range 3 {
		serial := slices.Concat(bytes.Repeat([]byte{1}, i+1), bytes.Repeat([]byte{0xfb, 0xef, 0xbe}, 2), bytes.Repeat([]byte{0xff}, 6))
		cert := w.leaf(withResponder(url), func(o *stapletest.LeafOptions) { o.Serial = new(big.Int).SetBytes(serial) })
		der, err := ocsp.CreateRequest(cert.Leaf, w.ca.Issuer, nil)
		require.NoError(w.t, err)
		base, err := parseURL(url)
		require.NoError(w.t, err)
		if get := getURL(base, der); strings.Contains(get, "%2F%2F") && strings.Contains(get, "%2B%2B") {
			return cert
		}
	}
	require.FailNow(w.t, "no serial number does")
	return tls.Certificate{}
}

// A recorder notes what its Transport was asked and what came back, as in "GET 200".
type recorder struct {
	*http.Transport
	mu   sync.Mutex
	seen []string
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.Transport.RoundTrip(req)
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.seen = append(r.seen, fmt.Sprint(req.Method, " ", resp.StatusCode))
	}
	return resp, err
}

// take returns what was seen since the last call.
func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.seen
	r.seen = nil
	return seen
}

// record lets f, which has no Client, note its requests.
func record(t *testing.T, f *HTTPFetcher) *recorder {
	f.own = f.newClient()
	r := &recorder{Transport: f.own.Transport.(*http.Transport)}
	f.own.Transport = r
	t.Cleanup(f.closeIdle)
	return r
}

// verifiedRequest returns a request about cert, at url, that takes what a Stapler takes.
func (w *world) verifiedRequest(cert tls.Certificate, url string) *Request {
	leaf := *cert.Leaf
	leaf.OCSPServer = []string{url}
	return &Request{Leaf: &leaf, Issuer: w.ca.Issuer, Accept: func(der []byte) error {
		_, _, err := new(ResponseVerifier).Verify(der, &leaf, w.ca.Issuer, time.Now())
		return err
	}}
}

func TestCFSSLResponder(t *testing.T) {
	cfssl := NeedPeer(t, "cfssl")
	w := newWorld(t)
	dir := t.TempDir()
	port := FreePort(t)
	base := "http://127.0.0.1:" + port

	pemFile := func(name, blockType string, der []byte) string {
		return writeFile(t, dir, name, inPEM(blockType, der))
	}
	keyFile := func(name string, key crypto.Signer) string {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		require.NoError(t, err)
		return pemFile(name, "PRIVATE KEY", der)
	}
	ca, caKey := pemFile("ca.pem", "CERTIFICATE", w.ca.Issuer.Raw), keyFile("ca.key", w.ca.Key)
	delegate := w.ca.Delegate(stapletest.DelegateOptions{})
	delegatePEM, delegateKey := pemFile("delegate.pem", "CERTIFICATE", delegate.Certificate.Raw), keyFile("delegate.key", delegate.Key)
	var responses []string
	sign := func(cert tls.Certificate, responder, key string, args ...string) {
		cmd := exec.CommandContext(t.Context(), cfssl, append([]string{"ocspsign", "-ca", ca, "-responder", responder, "-responder-key", key,
			"-cert", pemFile("leaf.pem", "CERTIFICATE", cert.Leaf.Raw)}, args...)...)
		out, err := cmd.Output()
		require.NoError(t, err)
		var signed struct{ OCSPResponse string }
		require.NoError(t, json.Unmarshal(out, &signed))
		responses = append(responses, signed.OCSPResponse)
	}
	leaf := func(serial string) tls.Certificate {
		return w.leaf(withResponder(base), func(o *stapletest.LeafOptions) { o.Serial = new(big.Int).SetBytes([]byte(serial)) })
	}
	plain, delegated, revoked, awkward := leaf("plain"), leaf("delegated"), leaf("revoked"), w.awkwardLeaf(base)
	sign(plain, ca, caKey, "-interval", "48h")
	sign(awkward, ca, caKey)
	sign(delegated, delegatePEM, delegateKey)
	sign(revoked, ca, caKey, "-status", "revoked", "-reason", "1")
	file := writeFile(t, dir, "responses", []byte(strings.Join(responses, "\n")))
	startPeer(t, port, cfssl, "ocspserve", "-port", port, "-responses", file)

	for _, tt := range []struct {
		name   string
		cert   tls.Certificate
		path   string
		hash   crypto.Hash
		seen   []string
		status int
	}{
		{"GET", plain, "", 0, []string{"GET 200"}, ocsp.Good},
		{"POST", plain, "?post", 0, []string{"POST 200"}, ocsp.Good},
		{"a SHA-256 CertID, answered with the SHA-1 one that was signed", plain, "", crypto.SHA256, []string{"GET 200"}, ocsp.Good},
		{"a double slash in the base64 text, which it merges: POST", awkward, "", 0, []string{"GET 301", "GET 400", "POST 200"}, ocsp.Good},
		{"a path, which it takes for base64: POST", plain, "/path", 0, []string{"GET 400", "POST 404"}, ocsp.Good},
		{"a delegated responder", delegated, "", 0, []string{"GET 200"}, ocsp.Good},
		{"revoked", revoked, "", 0, []string{"GET 200"}, ocsp.Revoked},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &HTTPFetcher{Hash: tt.hash}
			requests := record(t, f)
			req := w.verifiedRequest(tt.cert, base+tt.path)
			der, err := f.Fetch(t.Context(), req)
			t.Log(err)
			require.Equal(t, tt.seen, requests.take())
			require.NoError(t, err)
			r, err := ocsp.ParseResponse(der, nil)
			require.NoError(t, err)
			t.Log(r.ThisUpdate, r.NextUpdate, r.ProducedAt, r.IssuerHash, r.Certificate != nil)
			require.Equal(t, tt.status, r.Status)
		})
	}
}
