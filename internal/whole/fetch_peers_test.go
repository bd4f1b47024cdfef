package whole

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
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

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/ask"
	"github.com/go-staple/staple/internal/exchange"
	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
)

var otherCA = sync.OnceValue(func() *stapletest.CA {
	return stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
})

// overSockets makes a Stapler fetch as it would without being told how.
func overSockets(s *staple.Stapler) { s.Fetcher = new(staple.HTTPFetcher) }

func inPEM(blockType string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der})
}

// startPeer starts a server and waits until it listens on port. The server ends with the test.
func startPeer(t *testing.T, port, path string, args ...string) {
	t.Helper()
	var said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // and its children end, too
	cmd.WaitDelay = time.Minute
	require.NoError(t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() { <-ended })
	for soon := world.Soon(t); soon.Err() == nil; {
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

// leafWhere returns a leaf with the first of these serial numbers with which the URL of each GET, by a CertID with one of the
// hashes, fits.
func leafWhere(w *world.World, url string, serials [][]byte, hashes []crypto.Hash, fits func(get string) bool) tls.Certificate {
	base, err := exchange.ParseURL(url)
	require.NoError(w.T, err)
	for _, serial := range serials {
		cert := w.Leaf(world.Responders(url), func(o *stapletest.LeafOptions) { o.Serial = new(big.Int).SetBytes(serial) })
		if !slices.ContainsFunc(hashes, func(hash crypto.Hash) bool {
			der, err := ask.Request(cert.Leaf, w.CA.Issuer, hash)
			require.NoError(w.T, err)
			return !fits(ask.GetURL(base, der))
		}) {
			return cert
		}
	}
	require.FailNow(w.T, "no serial number does")
	return tls.Certificate{}
}

// awkwardLeaf returns a leaf whose serial number makes the base64 text of the OCSP request contain
// "//" and "++".
func awkwardLeaf(w *world.World, url string) tls.Certificate {
	var serials [][]byte
	for i := range 3 {
		serials = append(serials, slices.Concat(bytes.Repeat([]byte{1}, i+1), bytes.Repeat([]byte{0xfb, 0xef, 0xbe}, 2), bytes.Repeat([]byte{0xff}, 6)))
	}
	return leafWhere(w, url, serials, []crypto.Hash{crypto.SHA1}, func(get string) bool {
		return strings.Contains(get, "%2F%2F") && strings.Contains(get, "%2B%2B")
	})
}

// smoothLeaf returns a leaf of which no OCSP request has a double slash in its base64 text, from which CFSSL redirects.
// The text differs from run to run.
func smoothLeaf(w *world.World, name, url string) tls.Certificate {
	var serials [][]byte
	for i := range 100 {
		serials = append(serials, fmt.Append(nil, name, i))
	}
	return leafWhere(w, url, serials, []crypto.Hash{crypto.SHA1, crypto.SHA256}, func(get string) bool {
		return !strings.Contains(get, "%2F%2F")
	})
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

// record lets f, the zero value, note its requests, which its Client makes as its own would.
func record(t *testing.T, f *staple.HTTPFetcher) *recorder {
	f.Client = exchange.NewClient(20*time.Second, nil)
	r := &recorder{Transport: f.Client.Transport.(*http.Transport)}
	f.Client.Transport = r
	t.Cleanup(r.CloseIdleConnections)
	return r
}

// verifiedRequest returns a request about cert, at url, that takes what a Stapler takes.
func verifiedRequest(w *world.World, cert tls.Certificate, url string) *staple.Request {
	leaf := *cert.Leaf
	leaf.OCSPServer = []string{url}
	return &staple.Request{Leaf: &leaf, Issuer: w.CA.Issuer, Accept: func(der []byte) error {
		_, _, err := new(staple.ResponseVerifier).Verify(der, &leaf, w.CA.Issuer, time.Now())
		return err
	}}
}

func TestCFSSLResponder(t *testing.T) {
	cfssl := peer.Need(t, "cfssl")
	w := world.New(t)
	dir := t.TempDir()
	port := peer.FreePort(t)
	base := "http://127.0.0.1:" + port

	pemFile := func(name, blockType string, der []byte) string {
		return writeFile(t, dir, name, inPEM(blockType, der))
	}
	keyFile := func(name string, key crypto.Signer) string {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		require.NoError(t, err)
		return pemFile(name, "PRIVATE KEY", der)
	}
	ca, caKey := pemFile("ca.pem", "CERTIFICATE", w.CA.Issuer.Raw), keyFile("ca.key", w.CA.Key)
	delegate := w.CA.Delegate(stapletest.DelegateOptions{})
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
	leaf := func(name string) tls.Certificate { return smoothLeaf(w, name, base) }
	plain, delegated, revoked, awkward := leaf("plain"), leaf("delegated"), leaf("revoked"), awkwardLeaf(w, base)
	sign(plain, ca, caKey, "-interval", "48h")
	sign(awkward, ca, caKey)
	sign(delegated, delegatePEM, delegateKey)
	sign(revoked, ca, caKey, "-status", "revoked", "-reason", "1")
	file := writeFile(t, dir, "responses", []byte(strings.Join(responses, "\n")))
	startPeer(t, port, cfssl, "ocspserve", "-port", port, "-responses", file)

	refusedGET := []string{"GET 400", "POST 200"} // it takes the slash before the base64 text for a part of it
	for _, tt := range []struct {
		name   string
		cert   tls.Certificate
		path   string
		hash   crypto.Hash
		seen   []string
		status int
	}{
		{"it refuses every GET: POST", plain, "", 0, refusedGET, ocsp.Good},
		{"POST", plain, "?post", 0, refusedGET[1:], ocsp.Good},
		{"POST, whatever the path", plain, "/path/?post", 0, refusedGET[1:], ocsp.Good},
		{"a SHA-256 CertID, answered with the SHA-1 one that was signed", plain, "", crypto.SHA256, refusedGET, ocsp.Good},
		{"it redirects from a double slash in the base64 text: POST", awkward, "", 0, []string{"GET 301", "GET 400", "POST 200"}, ocsp.Good},
		{"signed by a delegated responder", delegated, "", 0, refusedGET, ocsp.Good},
		{"revoked", revoked, "", 0, refusedGET, ocsp.Revoked},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &staple.HTTPFetcher{Hash: tt.hash}
			requests := record(t, f)
			req := verifiedRequest(w, tt.cert, base+tt.path)
			der, err := f.Fetch(t.Context(), req)
			require.NoError(t, err)
			require.Equal(t, tt.seen, requests.take())
			require.NoError(t, req.Accept(der))
			r, err := ocsp.ParseResponse(der, nil)
			require.NoError(t, err)
			require.Equal(t, tt.status, r.Status)
			require.Equal(t, crypto.SHA1, r.IssuerHash)
			require.Equal(t, tt.cert.Leaf == delegated.Leaf, r.Certificate != nil, "a delegate's certificate is embedded")
		})
	}
	t.Run("a certificate that it does not know is unauthorized, with either hash", func(t *testing.T) {
		f := new(staple.HTTPFetcher)
		requests := record(t, f)
		_, err := f.Fetch(t.Context(), verifiedRequest(w, leaf("unknown"), base))
		status, ok := errors.AsType[ocsp.ResponseError](err)
		require.True(t, ok, err)
		require.Equal(t, ocsp.Unauthorized, status.Status)
		require.Equal(t, slices.Concat(refusedGET, refusedGET[1:]), requests.take())
	})
	t.Run("it looks at the serial number alone: the response for another CA's certificate is refused", func(t *testing.T) {
		other := &world.World{T: t, CA: otherCA()}
		cert := other.Leaf(func(o *stapletest.LeafOptions) { o.Serial = plain.Leaf.SerialNumber })
		_, err := new(staple.HTTPFetcher).Fetch(t.Context(), verifiedRequest(other, cert, base))
		refused, ok := errors.AsType[*staple.VerifyError](err)
		require.True(t, ok, err)
		require.Equal(t, staple.ReasonWrongCertificate, refused.Reason)
	})
	t.Run("it signs from the full hour and for as long as it is told; the file is read once", func(t *testing.T) {
		c := w.Add(w.Stapler(overSockets), plain)
		r := world.RequireStaple(t, c, ocsp.Good)
		require.Equal(t, r.ThisUpdate.Truncate(time.Hour), r.ThisUpdate)
		require.Equal(t, r.ThisUpdate.Add(48*time.Hour), r.NextUpdate)

		responses = nil
		sign(plain, ca, caKey, "-interval", "96h")
		writeFile(t, dir, "responses", []byte(responses[0]))
		require.NoError(t, c.Refresh(world.Soon(t)))
		require.Equal(t, r.Raw, world.RequireStaple(t, c, ocsp.Good).Raw)
	})
}

func TestOpenSSLResponder(t *testing.T) {
	w := walkthrough{peer.Need(t, "openssl"), t.TempDir()}
	key, err := x509.MarshalPKCS8PrivateKey(otherCA().Key)
	require.NoError(t, err)
	w.write(t, "ca.pem", string(inPEM("CERTIFICATE", otherCA().Issuer.Raw)))
	w.write(t, "ca.key", string(inPEM("PRIVATE KEY", key)))
	known := otherCA().Leaf(stapletest.LeafOptions{})
	serial := fmt.Sprintf("%X", known.Leaf.SerialNumber)
	if len(serial)%2 == 1 {
		serial = "0" + serial
	}
	w.write(t, "index.txt", fmt.Sprintf("V\t491231235959Z\t\t%s\tunknown\t/CN=localhost\n", serial))
	port := peer.FreePort(t)
	w.respond(t, port, "ca", "-ndays", "1")
	base := "http://127.0.0.1:" + port

	for _, tt := range []struct {
		name string
		url  string
		hash crypto.Hash
	}{
		{"GET", base, 0},
		{"GET, below a path", base + "/", 0},
		{"GET, SHA-256", base, crypto.SHA256},
		{"POST", base + "/?post", 0},
		{"POST, SHA-512", base + "/?post", crypto.SHA512},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leaf := *known.Leaf
			leaf.OCSPServer = []string{tt.url}
			req := &staple.Request{Leaf: &leaf, Issuer: otherCA().Issuer}
			der, err := (&staple.HTTPFetcher{Hash: tt.hash}).Fetch(t.Context(), req)
			require.NoError(t, err)
			// x/crypto/ocsp does not take the signer's own certificate, which openssl embeds.
			r, err := ocsp.ParseResponse(der, nil)
			require.NoError(t, err)
			require.Equal(t, ocsp.Good, r.Status)
			require.Equal(t, leaf.SerialNumber, r.SerialNumber)
		})
	}
	t.Run("a certificate that it does not know", func(t *testing.T) {
		leaf := otherCA().Leaf(stapletest.LeafOptions{Responders: []string{base}}).Leaf
		der, err := new(staple.HTTPFetcher).Fetch(t.Context(), &staple.Request{Leaf: leaf, Issuer: otherCA().Issuer})
		require.NoError(t, err)
		r, err := ocsp.ParseResponse(der, nil)
		require.NoError(t, err)
		require.Equal(t, ocsp.Unknown, r.Status)
	})
}
