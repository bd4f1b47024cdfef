package staple

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// What follows is internal/world for tests inside of the package, which cannot import that. It goes when they do.

const responderURL = "http://ocsp.example"

// A world is a CA with a responder that is reached without a socket, and what is
// needed to make Staplers that ask it.
type world struct {
	t         *testing.T
	ca        *stapletest.CA
	responder *stapletest.Responder
}

// testCA is made once: keys take time, and synctest bubbles begin all at the same moment.
var testCA = sync.OnceValue(func() *stapletest.CA {
	return stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
})

func newWorld(t *testing.T) *world {
	ca := testCA()
	return &world{t: t, ca: ca, responder: stapletest.NewResponder(ca)}
}

// stapler returns a Stapler of this world that is closed at the end of the test.
func (w *world) stapler(edit ...func(*Stapler)) *Stapler {
	s := &Stapler{
		Fetcher: &HTTPFetcher{Client: w.responder.Client()},
		Logger:  slog.New(slog.NewTextHandler(io.Discard, nil)),
		OnEvent: func(Event) {},
	}
	for _, f := range edit {
		f(s)
	}
	w.t.Cleanup(func() { s.Close() })
	return s
}

func (w *world) leaf(edit ...func(*stapletest.LeafOptions)) tls.Certificate {
	o := stapletest.LeafOptions{Names: []string{"www.example.com"}, Responders: []string{responderURL}}
	for _, f := range edit {
		f(&o)
	}
	return w.ca.Leaf(o)
}

// add adds cert and waits until it is stapled.
func (w *world) add(s *Stapler, cert tls.Certificate) *Certificate {
	c, err := s.Add(cert)
	require.NoError(w.t, err)
	require.NoError(w.t, c.Wait(soon(w.t)))
	return c
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// requireStaple requires that handshakes get a staple of the given status which verifies.
func requireStaple(t *testing.T, c *Certificate, status int) *ocsp.Response {
	t.Helper()
	cert, err := c.GetCertificate(nil)
	require.NoError(t, err)
	require.NotEmpty(t, cert.OCSPStaple, "no staple")
	require.Same(t, cert, c.TLS())
	require.True(t, c.Status().Stapled)
	issuer, err := x509.ParseCertificate(cert.Certificate[1])
	require.NoError(t, err)
	r, _, err := new(ResponseVerifier).Verify(cert.OCSPStaple, cert.Leaf, issuer, time.Now())
	require.NoError(t, err)
	require.Equal(t, status, r.Status)
	return r
}

func cacheKeyOf(leaf *x509.Certificate) string {
	return fmt.Sprintf("%x", sha256.Sum256(leaf.Raw))
}

// connect makes a connection over a pipe and returns what the client, or the
// server, saw.
func connect(t *testing.T, server, client *tls.Config) (clientState, serverState tls.ConnectionState, err error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	s := tls.Server(a, server)
	serverErr := make(chan error, 1)
	go func() {
		err := s.HandshakeContext(t.Context())
		if err != nil {
			a.Close()
		}
		serverErr <- err
	}()
	c := tls.Client(b, client)
	err = c.HandshakeContext(t.Context())
	if err != nil {
		b.Close()
	}
	if e := <-serverErr; e != nil {
		err = errors.Join(err, e)
	}
	return c.ConnectionState(), s.ConnectionState(), err
}

func (w *world) client(name string) *tls.Config {
	return &tls.Config{RootCAs: w.ca.Roots(), ServerName: name}
}

func names(names ...string) func(*stapletest.LeafOptions) {
	return func(o *stapletest.LeafOptions) { o.Names = names }
}

func sameKey(key any) func(*stapletest.LeafOptions) {
	return func(o *stapletest.LeafOptions) { o.Key = key.(crypto.Signer) }
}

const childEnv = "STAPLE_TEST_CHILD"

// child returns a command that runs the present test in another process, where asChild is true.
func child(t *testing.T) *exec.Cmd {
	self, err := os.Executable()
	require.NoError(t, err)
	pattern := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	cmd := exec.CommandContext(t.Context(), self, "-test.run="+pattern)
	cmd.Env = append(os.Environ(), childEnv+"=1",
		"GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE")) // or each takes a second more
	return cmd
}

func asChild() bool { return os.Getenv(childEnv) != "" }
