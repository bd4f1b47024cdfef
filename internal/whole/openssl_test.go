package whole

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/internal/testhttp"
	"github.com/go-staple/staple/internal/world"
	"github.com/stretchr/testify/require"
)

// What `openssl s_client -status` and `openssl ocsp -text` print.
const (
	successful = "OCSP Response Status: successful"
	good       = "Cert Status: good"
	revoked    = "Cert Status: revoked"
	nextUpdate = "Next Update:"
	noStaple   = "OCSP response: no response sent"
)

// caConfig is what `openssl ca` needs to know.
const caConfig = `
[req]
distinguished_name = name
[name]
[ca]
default_ca = walkthrough
[walkthrough]
certificate = ca.pem
private_key = ca.key
database = index.txt
new_certs_dir = .
rand_serial = yes
default_md = sha256
default_days = 30
unique_subject = no
policy = policy
[policy]
commonName = supplied
`

// A walkthrough is a directory in which openssl is the CA.
type walkthrough struct {
	openssl, dir string
}

func newWalkthrough(t *testing.T) walkthrough {
	w := walkthrough{peer.Need(t, "openssl"), t.TempDir()}
	w.write(t, "ca.cnf", caConfig)
	w.write(t, "index.txt", "")
	w.run(t, "req", "-config", "ca.cnf", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem",
		"-days", "30", "-subj", "/CN=Walkthrough CA", "-addext", "basicConstraints=critical,CA:TRUE",
		"-addext", "keyUsage=critical,keyCertSign,cRLSign")
	return w
}

func (w walkthrough) path(name string) string { return filepath.Join(w.dir, name) }

func (w walkthrough) write(t *testing.T, name, text string) {
	require.NoError(t, os.WriteFile(w.path(name), []byte(text), 0o600))
}

func (w walkthrough) read(t *testing.T, name string) string {
	text, err := os.ReadFile(w.path(name))
	require.NoError(t, err)
	return string(text)
}

// run runs openssl and returns what it printed.
func (w walkthrough) run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(world.Soon(t), w.openssl, args...)
	cmd.Dir = w.dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "openssl %s\n%s", strings.Join(args, " "), out)
	return string(out)
}

// issue makes name.key and name.pem.
func (w walkthrough) issue(t *testing.T, name, subject string, extensions ...string) {
	w.write(t, name+".ext", strings.Join(extensions, "\n"))
	w.run(t, "req", "-config", "ca.cnf", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-keyout", name+".key", "-out", name+".csr", "-subj", subject)
	w.run(t, "ca", "-config", "ca.cnf", "-batch", "-notext", "-in", name+".csr", "-out", name+".pem", "-extfile", name+".ext")
}

// issueServer makes a certificate that names a responder. The chain is in name-chain.pem.
func (w walkthrough) issueServer(t *testing.T, name, responder string) {
	w.issue(t, name, "/CN=localhost", "subjectAltName=DNS:localhost,IP:127.0.0.1", "authorityInfoAccess=OCSP;URI:"+responder)
	w.write(t, name+"-chain.pem", w.read(t, name+".pem")+w.read(t, "ca.pem"))
}

// issueDelegate makes responder.pem, which may sign responses for the CA.
func (w walkthrough) issueDelegate(t *testing.T) {
	w.issue(t, "responder", "/CN=Walkthrough responder", "extendedKeyUsage=OCSPSigning", "keyUsage=digitalSignature", "noCheck=ignored")
}

// respond starts `openssl ocsp` as a responder that signs with signer.key, and waits until it listens.
// Openssl 3.0 notices a change of the index, but answers one more request by the old one: start it last.
func (w walkthrough) respond(t *testing.T, port, signer string, args ...string) (stop func()) {
	cmd := exec.Command(w.openssl, append([]string{"ocsp", "-index", "index.txt", "-port", port,
		"-rsigner", signer + ".pem", "-rkey", signer + ".key", "-CA", "ca.pem"}, args...)...)
	cmd.Dir = w.dir
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = cmd.Stdout
	require.NoError(t, cmd.Start())
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(stop)

	// To connect and say nothing would be no way to ask: openssl 3.0 then spins until it is killed.
	var said []string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "ACCEPT ") {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return stop
		}
		said = append(said, lines.Text())
	}
	require.FailNow(t, "openssl ocsp does not listen", "port %s: %s", port, strings.Join(said, "\n"))
	return nil
}

// serve serves a chain with TLS, stapled by s, and returns its handle and the address.
func (w walkthrough) serve(t *testing.T, s *staple.Stapler, chain, key string) (c *staple.Certificate, addr string, stop func()) {
	s.Logger = slog.New(slog.DiscardHandler)
	cert, err := tls.LoadX509KeyPair(w.path(chain), w.path(key))
	require.NoError(t, err)
	l, err := tls.Listen("tcp", "127.0.0.1:0", s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}}))
	require.NoError(t, err)
	stopServing := testhttp.Serve(l, testhttp.Hangs)
	stop = sync.OnceFunc(func() {
		stopServing()
		s.Close()
	})
	t.Cleanup(stop)
	for handle := range s.Certificates() {
		require.Nil(t, c, "one certificate is served")
		c = handle
	}
	require.NotNil(t, c)
	return c, l.Addr().String(), stop
}

// connect returns what `openssl s_client -status` prints. It verifies the chain.
func (w walkthrough) connect(t *testing.T, addr string, args ...string) string {
	t.Helper()
	return w.run(t, append([]string{"s_client", "-connect", addr, "-status", "-CAfile", "ca.pem", "-verify_return_error"}, args...)...)
}

// TestWalkthrough is Adam Langley's "Setting up Apache with OCSP stapling" of 2009, with this package in
// the place of Apache: openssl is the CA, the responder and the client.
func TestWalkthrough(t *testing.T) {
	w := newWalkthrough(t)
	w.issueDelegate(t)
	for i, tt := range []struct {
		name, signer string
		args         []string
	}{
		{"signed by the CA, no nextUpdate", "ca", nil},
		{"signed by the CA, for a day", "ca", []string{"-ndays", "1"}},
		{"signed by a delegate, no nextUpdate", "responder", nil},
		{"signed by a delegate, for a day", "responder", []string{"-ndays", "1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			port := peer.FreePort(t)
			responder := "http://127.0.0.1:" + port
			server := fmt.Sprintf("server%d", i)
			w.issueServer(t, server, responder)
			stopResponder := w.respond(t, port, tt.signer, tt.args...)
			cache := staple.DirCache(w.path(server + "-cache"))
			stored := w.cacheFile(t, cache, server)
			serve := func() (*staple.Certificate, string, func()) {
				return w.serve(t, &staple.Stapler{Cache: cache}, server+"-chain.pem", server+".key")
			}
			requireGood := func(out string) {
				t.Helper()
				require.Contains(t, out, successful)
				require.Contains(t, out, good)
				require.Equal(t, tt.args != nil, strings.Contains(out, nextUpdate), out)
			}

			c, addr, stopServer := serve()
			require.NoError(t, c.Wait(world.Soon(t)))
			for _, args := range [][]string{{"-tls1_3"}, {"-tls1_2"}, {"-servername", "localhost"}, {"-noservername"}} {
				requireGood(w.connect(t, addr, args...))
			}
			st := c.Status()
			require.Equal(t, responder, st.Responder)
			require.WithinDuration(t, st.ThisUpdate.Add(24*time.Hour), st.Expires, time.Second,
				"a day, as clients count where there is no nextUpdate")
			require.NoError(t, c.Refresh(world.Soon(t)), "a response that is not newer is no failure")

			// What the cache holds, openssl reads, and takes for what it is.
			stopServer()
			requireGood(w.run(t, "ocsp", "-respin", stored, "-text", "-noverify"))
			out := w.run(t, "ocsp", "-respin", stored, "-issuer", "ca.pem", "-cert", server+".pem", "-CAfile", "ca.pem")
			require.Contains(t, out, "Response verify OK")
			require.Contains(t, out, server+".pem: good")

			// The responder is down and the server starts again.
			stopResponder()
			c, addr, stopServer = serve()
			require.True(t, c.Status().Stapled, "before the first handshake")
			requireGood(w.connect(t, addr))
			require.Error(t, c.Refresh(world.Soon(t)))
			require.Equal(t, 1, c.Status().Failures)
			requireGood(w.connect(t, addr))

			// The certificate is revoked.
			w.run(t, "ca", "-config", "ca.cnf", "-revoke", server+".pem")
			stopResponder = w.respond(t, port, tt.signer, tt.args...)
			require.NoError(t, c.Refresh(world.Soon(t)), "a revocation is no failure")
			require.ErrorIs(t, c.Wait(world.Soon(t)), staple.ErrRevoked)
			require.True(t, c.Status().Revoked)
			require.Contains(t, w.connect(t, addr), noStaple)

			// A restart does not undo it.
			stopServer()
			require.Contains(t, w.run(t, "ocsp", "-respin", stored, "-text", "-noverify"), revoked)
			stopResponder()
			c, addr, _ = serve()
			require.Contains(t, w.connect(t, addr), noStaple)
			require.ErrorIs(t, c.Wait(world.Soon(t)), staple.ErrRevoked)
		})
	}
}

// cacheFile returns the name of the file that holds the response about name.pem.
func (w walkthrough) cacheFile(t *testing.T, cache staple.DirCache, name string) string {
	block, _ := pem.Decode([]byte(w.read(t, name+".pem")))
	require.NotNil(t, block)
	sum := sha256.Sum256(block.Bytes)
	return filepath.Join(string(cache), hex.EncodeToString(sum[:]))
}

// TestWalkthroughMistakes has those that the walkthrough warns of.
func TestWalkthroughMistakes(t *testing.T) {
	w := newWalkthrough(t)
	port := peer.FreePort(t)
	w.issueServer(t, "lonely", "http://127.0.0.1:"+port)
	portless := map[string]string{"bare": "http://127.0.0.1", "slash": "http://127.0.0.1/"}
	for name, url := range portless {
		w.issueServer(t, name, url)
	}
	w.respond(t, port, "ca")

	t.Run("without the issuer, the error says which certificate and what to do", func(t *testing.T) {
		c, addr, _ := w.serve(t, new(staple.Stapler), "lonely.pem", "lonely.key")
		err := c.Wait(world.Soon(t))
		require.ErrorIs(t, err, staple.ErrNoIssuer)
		require.ErrorIs(t, c.Status().Err, staple.ErrNoIssuer)
		require.ErrorContains(t, err, "CN=localhost")
		require.ErrorContains(t, err, "put the issuer's certificate into the chain")
		require.ErrorContains(t, err, "Stapler.Issuers")
		require.Contains(t, w.connect(t, addr), noStaple)

		block, _ := pem.Decode([]byte(w.read(t, "ca.pem")))
		issuer, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		c, addr, _ = w.serve(t, &staple.Stapler{Issuers: []*x509.Certificate{issuer}}, "lonely.pem", "lonely.key")
		require.NoError(t, c.Wait(world.Soon(t)))
		require.Contains(t, w.connect(t, addr), good)
	})

	t.Run("a responder URL without a port means port 80", func(t *testing.T) {
		for name, url := range portless {
			transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				if addr != "127.0.0.1:80" {
					return nil, fmt.Errorf("connecting to %s", addr)
				}
				return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
			}}
			t.Cleanup(transport.CloseIdleConnections)
			s := &staple.Stapler{Fetcher: &staple.HTTPFetcher{Client: &http.Client{Transport: transport}}}
			c, addr, _ := w.serve(t, s, name+"-chain.pem", name+".key")
			require.NoError(t, c.Wait(world.Soon(t)), url)
			require.Equal(t, url, c.Status().Responder)
			require.Contains(t, w.connect(t, addr), good)
		}
	})
}
