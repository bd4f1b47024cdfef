package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// files are a certificate, its key and its issuer on disk, with a responder that runs.
type files struct {
	ca                *stapletest.CA
	leaf              *x509.Certificate
	responder         *stapletest.Responder
	server            *httptest.Server
	cert, key, issuer string
}

func newFiles(t *testing.T, o stapletest.LeafOptions) *files {
	f := &files{ca: stapletest.NewCA(stapletest.CAOptions{Intermediate: true})}
	f.responder = stapletest.NewResponder(f.ca)
	f.server = httptest.NewServer(f.responder)
	t.Cleanup(f.server.Close)
	if o.Responders == nil {
		o.Responders = []string{f.server.URL}
	}
	cert := f.ca.Leaf(o)
	f.leaf = cert.Leaf
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	require.NoError(t, err)
	f.cert = writePEM(t, "cert.pem", "CERTIFICATE", cert.Certificate...)
	f.key = writePEM(t, "key.pem", "PRIVATE KEY", key)
	f.issuer = writePEM(t, "issuer.pem", "CERTIFICATE", f.ca.Issuer.Raw)
	return f
}

func writePEM(t *testing.T, name, blockType string, ders ...[]byte) string {
	var b bytes.Buffer
	for _, der := range ders {
		require.NoError(t, pem.Encode(&b, &pem.Block{Type: blockType, Bytes: der}))
	}
	name = filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(name, b.Bytes(), 0o600))
	return name
}

func runOnce(t *testing.T, args ...string) (output string, err error) {
	var b bytes.Buffer
	err = run(t.Context(), append([]string{"-once"}, args...), &b)
	return b.String(), err
}

func TestOnce(t *testing.T) {
	t.Run("without flags it staples a certificate of its own", func(t *testing.T) {
		t.Setenv("TMPDIR", t.TempDir())
		output, err := runOnce(t)
		require.NoError(t, err)
		require.Contains(t, output, "stapled: good")
		left, err := os.ReadDir(os.TempDir())
		require.NoError(t, err)
		require.Empty(t, left, "temporary files are removed")
	})

	t.Run("a chain and key from files", func(t *testing.T) {
		f := newFiles(t, stapletest.LeafOptions{})
		output, err := runOnce(t, "-cert", f.cert, "-key", f.key)
		require.NoError(t, err)
		require.Contains(t, output, "stapled: good")
		require.Contains(t, output, f.server.URL)
		require.Len(t, f.responder.Requests(f.leaf), 1)
	})

	t.Run("the issuer from a file, where the chain lacks it", func(t *testing.T) {
		f := newFiles(t, stapletest.LeafOptions{OmitIssuer: true})
		output, err := runOnce(t, "-cert", f.cert, "-key", f.key, "-issuer", f.issuer)
		require.NoError(t, err)
		require.Contains(t, output, "stapled: good")
	})

	t.Run("the issuer from the URL in the certificate", func(t *testing.T) {
		var issuer []byte
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(issuer) }))
		defer server.Close()
		f := newFiles(t, stapletest.LeafOptions{OmitIssuer: true, IssuerURLs: []string{server.URL}})
		issuer = f.ca.Issuer.Raw
		output, err := runOnce(t, "-cert", f.cert, "-key", f.key)
		require.NoError(t, err)
		require.Contains(t, output, "stapled: good")
	})

	t.Run("from the cache, when the responder is dead", func(t *testing.T) {
		f := newFiles(t, stapletest.LeafOptions{})
		args := []string{"-cert", f.cert, "-key", f.key, "-cache", filepath.Join(t.TempDir(), "cache")}
		_, err := runOnce(t, args...)
		require.NoError(t, err)
		f.server.Close()
		output, err := runOnce(t, args...)
		require.NoError(t, err)
		require.Contains(t, output, "stapled: good")
		require.Contains(t, output, "in the cache")
	})

	t.Run("a response without nextUpdate", func(t *testing.T) {
		f := newFiles(t, stapletest.LeafOptions{})
		f.responder.Set(nil, stapletest.Answer{Validity: -1})
		output, err := runOnce(t, "-cert", f.cert, "-key", f.key)
		require.NoError(t, err)
		require.Regexp(t, `nextUpdate +none`, output)
	})

	t.Run("an address", func(t *testing.T) {
		output, err := runOnce(t, "-addr", "localhost:0")
		require.NoError(t, err)
		require.Contains(t, output, "stapled: good")
	})
}

func TestOnceFails(t *testing.T) {
	none := []string{}
	t.Run("a dead responder", func(t *testing.T) {
		f := newFiles(t, stapletest.LeafOptions{})
		f.server.Close()
		output, err := runOnce(t, "-cert", f.cert, "-key", f.key)
		require.ErrorContains(t, err, "not stapled")
		require.ErrorContains(t, err, f.server.URL)
		var failed *staple.HTTPError
		require.ErrorAs(t, err, &failed)
		require.NotContains(t, output, "stapled: good")
	})
	t.Run("a responder that does not know the certificate", func(t *testing.T) {
		f := newFiles(t, stapletest.LeafOptions{})
		f.responder.Set(nil, stapletest.Answer{Error: ocsp.Unauthorized})
		_, err := runOnce(t, "-cert", f.cert, "-key", f.key)
		require.ErrorContains(t, err, "unauthorized")
	})
	t.Run("a revoked certificate", func(t *testing.T) {
		f := newFiles(t, stapletest.LeafOptions{})
		f.responder.Set(nil, stapletest.Answer{Status: ocsp.Revoked})
		_, err := runOnce(t, "-cert", f.cert, "-key", f.key)
		require.ErrorIs(t, err, staple.ErrRevoked)
	})
	t.Run("no responder in the certificate", func(t *testing.T) {
		f := newFiles(t, stapletest.LeafOptions{Responders: none})
		_, err := runOnce(t, "-cert", f.cert, "-key", f.key)
		require.ErrorIs(t, err, staple.ErrNoResponder)
	})
	t.Run("no issuer", func(t *testing.T) {
		f := newFiles(t, stapletest.LeafOptions{OmitIssuer: true})
		_, err := runOnce(t, "-cert", f.cert, "-key", f.key)
		require.ErrorIs(t, err, staple.ErrNoIssuer)
		require.ErrorContains(t, err, "localhost")
	})
	t.Run("another CA's issuer", func(t *testing.T) {
		f := newFiles(t, stapletest.LeafOptions{OmitIssuer: true})
		other := newFiles(t, stapletest.LeafOptions{})
		_, err := runOnce(t, "-cert", f.cert, "-key", f.key, "-issuer", other.issuer)
		require.ErrorIs(t, err, staple.ErrNoIssuer)
	})

	f := newFiles(t, stapletest.LeafOptions{})
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer busy.Close()
	for name, args := range map[string][]string{
		"a certificate without a key":      {"-cert", f.cert},
		"a key without a certificate":      {"-key", f.key},
		"a file that is missing":           {"-cert", f.cert + ".missing", "-key", f.key},
		"a key in place of a certificate":  {"-cert", f.key, "-key", f.key},
		"an issuer file without an issuer": {"-cert", f.cert, "-key", f.key, "-issuer", f.key},
		"an issuer that does not parse":    {"-issuer", writePEM(t, "bad.pem", "CERTIFICATE", []byte("no DER"))},
		"an address in use":                {"-addr", busy.Addr().String()},
		"a surplus argument":               {"serve"},
		"an unknown flag":                  {"-nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			output, err := runOnce(t, args...)
			require.Error(t, err)
			require.NotContains(t, output, "stapled: good")
		})
	}
}

// serve runs the program, without flags, until it serves. It returns what was printed till then, and what interrupts it.
func serve(t *testing.T) (output string, stop func()) {
	ctx, interrupt := context.WithCancel(t.Context())
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, nil, w)
		w.Close()
		ended <- err
	}()
	buf := make([]byte, 4096)
	for !regexp.MustCompile(`\n  curl .+\n`).MatchString(output) {
		n, err := r.Read(buf)
		output += string(buf[:n])
		require.NoError(t, err, output)
	}
	go io.Copy(io.Discard, r)
	return output, func() {
		interrupt()
		require.NoError(t, <-ended)
	}
}

func TestServesUntilInterrupted(t *testing.T) {
	output, stop := serve(t)
	m := regexp.MustCompile(`(?s)shown at (\S+)\n.*curl --cacert (.+) --cert-status (\S+)\n`).FindStringSubmatch(output)
	require.NotNil(t, m, "it says where the CA's certificate is, and the URL: %s", output)
	status, caFile, url := m[1], strings.Trim(m[2], "'"), m[3]

	data, err := os.ReadFile(caFile)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(data))
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs:          roots,
		VerifyConnection: new(staple.ResponseVerifier).VerifyConnection,
	}}
	response, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Get(url)
	require.NoError(t, err)
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	transport.CloseIdleConnections()
	require.NoError(t, err)
	require.Contains(t, string(body), "stapled: true")
	require.NotEmpty(t, response.TLS.OCSPResponse)

	response, err = http.Get(status)
	require.NoError(t, err)
	body, err = io.ReadAll(response.Body)
	response.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	require.NoError(t, err)
	require.Contains(t, string(body), "localhost")
	require.Contains(t, string(body), "1 certificate")

	stop()
	require.NoFileExists(t, caFile)
}

func TestPrintedCommandsCanBePasted(t *testing.T) {
	sh := peer.Need(t, "sh")
	odd := filepath.Join(t.TempDir(), "it's a folder; $HOME")
	require.NoError(t, os.Mkdir(odd, 0o700))
	t.Setenv("TMPDIR", odd)
	output, stop := serve(t)
	defer stop()
	commands := regexp.MustCompile(`(?m)^  ((openssl|curl) .+)$`).FindAllStringSubmatch(output, -1)
	require.Len(t, commands, 2)
	for _, m := range commands {
		t.Run(m[2], func(t *testing.T) {
			peer.Need(t, m[2])
			text, err := exec.Command(sh, "-c", m[1]).CombinedOutput()
			require.NoError(t, err, "%s\n%s", m[1], text)
			require.Regexp(t, "Verify return code: 0 \\(ok\\)|stapled: true", string(text))
		})
	}
}

// Without a staple it serves all the same, and says why there is none.
func TestServesWithoutStaple(t *testing.T) {
	f := newFiles(t, stapletest.LeafOptions{})
	f.server.Close()
	ctx, interrupt := context.WithCancel(t.Context())
	r, w := io.Pipe()
	go func() {
		buf := make([]byte, 4096)
		var output strings.Builder
		for {
			n, err := r.Read(buf)
			output.Write(buf[:n])
			if err != nil || strings.Contains(output.String(), "-status") {
				interrupt()
			}
			if err != nil {
				return
			}
		}
	}()
	var output bytes.Buffer
	require.NoError(t, run(ctx, []string{"-cert", f.cert, "-key", f.key}, io.MultiWriter(&output, w)))
	w.Close()
	require.Contains(t, output.String(), "not stapled: ")
	require.Contains(t, output.String(), "asked again at")
}
