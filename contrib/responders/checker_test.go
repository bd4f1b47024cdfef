package responders

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/stapletest"
)

// A registry is a CA, and the files from which the responder that its clients name is to run.
type registry struct {
	ca   *stapletest.CA
	dir  string
	port string
}

func newRegistry(t *testing.T) *registry {
	r := &registry{ca: stapletest.NewCA(stapletest.CAOptions{}), dir: t.TempDir(), port: peer.FreePort(t)}
	key, err := x509.MarshalPKCS8PrivateKey(r.ca.Key)
	require.NoError(t, err)
	r.write(t, "ca.pem", inPEM("CERTIFICATE", r.ca.Issuer.Raw))
	r.write(t, "ca.key", inPEM("PRIVATE KEY", key))
	return r
}

func inPEM(blockType string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der}))
}

func (r *registry) write(t *testing.T, name, text string) {
	require.NoError(t, os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o600))
}

func (r *registry) client() tls.Certificate {
	return r.ca.Leaf(stapletest.LeafOptions{Names: []string{"client.example"}, Responders: []string{"http://127.0.0.1:" + r.port}})
}

// start runs a responder until the test ends or stop is called, and waits until a request about cert is answered. To connect
// and say nothing would be no way to ask: openssl 3.0 then spins until it is killed.
func (r *registry) start(t *testing.T, cert *x509.Certificate, program string, args ...string) (stop func()) {
	request, err := ocsp.CreateRequest(cert, r.ca.Issuer, nil)
	require.NoError(t, err)
	cmd := exec.Command(program, args...)
	cmd.Dir = r.dir
	require.NoError(t, cmd.Start())
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(stop)
	require.Eventually(t, func() bool {
		transport := &http.Transport{DisableKeepAlives: true}
		resp, err := (&http.Client{Transport: transport, Timeout: patience}).Post("http://127.0.0.1:"+r.port, "application/ocsp-request", bytes.NewReader(request))
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	}, patience, 50*time.Millisecond, "%s does not answer", program)
	return stop
}

// startOpenSSL starts `openssl ocsp`, of which a certificate that is not in its index is "unknown".
func startOpenSSL(t *testing.T, r *registry, good, revoked *x509.Certificate) (stop func()) {
	const index = "060102150405Z"
	line := func(status, revokedAt string, cert *x509.Certificate) string {
		return fmt.Sprintf("%s\t%s\t%s\t%X\tunknown\t/CN=client.example\n", status, cert.NotAfter.UTC().Format(index), revokedAt, cert.SerialNumber.Bytes())
	}
	r.write(t, "index.txt", line("V", "", good)+line("R", time.Now().UTC().Add(-time.Hour).Format(index)+",keyCompromise", revoked))
	return r.start(t, good, peer.Need(t, "openssl"), "ocsp", "-index", "index.txt", "-port", r.port, "-CA", "ca.pem", "-rsigner", "ca.pem", "-rkey", "ca.key",
		"-ndays", "1")
}

// startCFSSL starts `cfssl ocspserve`, which answers "unauthorized" about what it has no response for.
func startCFSSL(t *testing.T, r *registry, good, revoked *x509.Certificate) (stop func()) {
	cfssl := peer.Need(t, "cfssl")
	sign := func(cert *x509.Certificate, args ...string) string {
		r.write(t, "client.pem", inPEM("CERTIFICATE", cert.Raw))
		cmd := exec.CommandContext(t.Context(), cfssl, append([]string{"ocspsign", "-ca", "ca.pem", "-responder", "ca.pem", "-responder-key", "ca.key", "-cert", "client.pem"}, args...)...)
		cmd.Dir = r.dir
		out, err := cmd.Output()
		require.NoError(t, err)
		var signed struct{ OCSPResponse string }
		require.NoError(t, json.Unmarshal(out, &signed))
		return signed.OCSPResponse + "\n"
	}
	r.write(t, "responses", sign(good)+sign(revoked, "-status", "revoked", "-reason", "1"))
	return r.start(t, good, cfssl, "ocspserve", "-port", r.port, "-responses", "responses")
}

// A guard is a server with a Checker, whose verdicts come on a channel.
type guard struct {
	addr     string
	roots    *x509.CertPool
	verdicts chan error
}

func newGuard(t *testing.T, r *registry, checker *staple.Checker) *guard {
	g := &guard{roots: r.ca.Roots(), verdicts: make(chan error, 1)}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates:     []tls.Certificate{r.ca.Leaf(stapletest.LeafOptions{})},
		ClientAuth:       tls.RequireAndVerifyClientCert,
		ClientCAs:        r.ca.Roots(),
		VerifyConnection: checker.VerifyConnection,
	})
	require.NoError(t, err)
	g.addr = l.Addr().String()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			g.verdicts <- conn.(*tls.Conn).HandshakeContext(t.Context())
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	return g
}

// admit has a client connect, and returns what the server says.
func (g *guard) admit(t *testing.T, cert tls.Certificate, version uint16) error {
	t.Helper()
	conn, err := net.Dial("tcp", g.addr)
	require.NoError(t, err)
	defer conn.Close()
	client := tls.Client(conn, &tls.Config{RootCAs: g.roots, ServerName: "localhost", Certificates: []tls.Certificate{cert}, MaxVersion: version})
	clientErr := client.HandshakeContext(soon(t))
	select {
	case err := <-g.verdicts:
		if version == tls.VersionTLS12 { // with TLS 1.3 the client is told later
			require.Equal(t, err == nil, clientErr == nil, "the client: %v, the server: %v", clientErr, err)
		}
		return err
	case <-soon(t).Done():
		require.FailNow(t, "no handshake")
		return nil
	}
}

// A tap keeps the methods of requests, and the HTTP statuses.
type tap struct {
	mu   sync.Mutex
	seen []string
}

func (p *tap) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(req)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.seen = append(p.seen, fmt.Sprint(req.Method, " ", resp.StatusCode))
	}
	return resp, err
}

func (p *tap) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := p.seen
	p.seen = nil
	return seen
}

// TestChecker has the responders of others asked about clients.
func TestChecker(t *testing.T) {
	for _, tt := range []struct {
		name    string
		start   func(t *testing.T, r *registry, good, revoked *x509.Certificate) (stop func())
		asked   []string // about one that is good
		unknown string   // what is said where there is no answer
	}{
		{"openssl ocsp", startOpenSSL, []string{"GET 200"}, "the responder does not know the certificate"},
		{"cfssl ocspserve, which refuses every GET", startCFSSL, []string{"GET 400", "POST 200"}, "unauthorized"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				t.Run(tls.VersionName(version), func(t *testing.T) {
					r := newRegistry(t)
					good, revoked, unknown := r.client(), r.client(), r.client()
					stop := tt.start(t, r, good.Leaf, revoked.Leaf)
					requests := new(tap)
					stapler := &staple.Stapler{Fetcher: &staple.HTTPFetcher{Client: &http.Client{Transport: requests}}, Logger: slog.New(slog.DiscardHandler)}
					t.Cleanup(func() { stapler.Close() })
					closed := newGuard(t, r, &staple.Checker{Stapler: stapler, Timeout: patience})
					open := newGuard(t, r, &staple.Checker{Stapler: stapler, Timeout: patience, FailOpen: true})

					require.NoError(t, closed.admit(t, good, version))
					require.Equal(t, tt.asked, requests.take())
					require.NoError(t, closed.admit(t, good, version))
					require.Empty(t, requests.take(), "it is known")

					require.ErrorIs(t, closed.admit(t, revoked, version), staple.ErrRevoked)
					require.ErrorIs(t, open.admit(t, revoked, version), staple.ErrRevoked)

					err := closed.admit(t, unknown, version)
					require.ErrorIs(t, err, staple.ErrUnanswered)
					require.ErrorContains(t, err, tt.unknown)
					require.NoError(t, open.admit(t, unknown, version), "FailOpen")

					stop()
					other := r.client()
					require.ErrorIs(t, closed.admit(t, other, version), staple.ErrUnanswered)
					require.NoError(t, open.admit(t, other, version), "FailOpen")
					require.NoError(t, closed.admit(t, good, version), "what is held still counts")
					require.ErrorIs(t, closed.admit(t, revoked, version), staple.ErrRevoked)
					require.ErrorIs(t, open.admit(t, revoked, version), staple.ErrRevoked)
				})
			}
		})
	}
}
