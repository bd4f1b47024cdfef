package staplefasthttp_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

type world struct {
	ca        *stapletest.CA
	responder *stapletest.Responder
	cert      tls.Certificate // Must-Staple
	stapler   *staple.Stapler
	config    *tls.Config // wrapped, and stapled
}

func newWorld(t *testing.T) *world {
	w := &world{ca: stapletest.NewCA(stapletest.CAOptions{Intermediate: true})}
	w.responder = stapletest.NewResponder(w.ca)
	w.cert = w.ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}, MustStaple: true})
	w.stapler = &staple.Stapler{Fetcher: &staple.HTTPFetcher{Client: w.responder.Client()}, Logger: quiet, StapleRevoked: true}
	t.Cleanup(func() { w.stapler.Close() })
	w.config = w.stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{w.cert}})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	require.NoError(t, w.stapler.Wait(ctx))
	return w
}

// pem returns the certificate and the key in PEM.
func (w *world) pem(t *testing.T) (cert, key []byte) {
	for _, der := range w.cert.Certificate {
		cert = append(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(w.cert.PrivateKey)
	require.NoError(t, err)
	return cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// files returns the names of files that hold what pem returns.
func (w *world) files(t *testing.T) (certFile, keyFile string) {
	cert, key := w.pem(t)
	certFile, keyFile = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	require.NoError(t, os.WriteFile(certFile, cert, 0o600))
	require.NoError(t, os.WriteFile(keyFile, key, 0o600))
	return certFile, keyFile
}

// serve runs server with f until the test ends.
func serve(t *testing.T, server *fasthttp.Server, f func(net.Listener) error) (addr string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server.Handler = func(ctx *fasthttp.RequestCtx) { ctx.WriteString("hello") }
	server.Logger = fasthttp.Logger(silent{})
	ended := make(chan error, 1)
	go func() { ended <- f(l) }()
	t.Cleanup(func() {
		require.NoError(t, server.Shutdown())
		l.Close() // if it never got to serve
		<-ended
	})
	return l.Addr().String()
}

type silent struct{}

func (silent) Printf(string, ...any) {}

// get makes a request by fasthttp's own client and returns what the server stapled.
func get(t *testing.T, addr string, config *tls.Config) (stapled []byte, err error) {
	verify := config.VerifyConnection
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		stapled = cs.OCSPResponse
		if verify != nil {
			return verify(cs)
		}
		return nil
	}
	client := &fasthttp.HostClient{Addr: addr, IsTLS: true, TLSConfig: config, MaxIdemponentCallAttempts: 1}
	defer client.CloseIdleConnections()
	status, body, err := client.GetTimeout(nil, "https://localhost/", 2*time.Minute)
	if err != nil {
		return nil, err
	}
	require.Equal(t, fasthttp.StatusOK, status)
	require.Equal(t, "hello", string(body))
	return stapled, nil
}

// checking is a client that refuses a server that does not staple.
func (w *world) checking() *tls.Config {
	return &tls.Config{RootCAs: w.ca.Roots(), ServerName: "localhost", VerifyConnection: new(staple.ResponseVerifier).VerifyConnection}
}

func TestWaysThatStaple(t *testing.T) {
	for name, serveTLS := range map[string]func(s *fasthttp.Server, l net.Listener, config *tls.Config) error{
		"Serve of a TLS listener": func(s *fasthttp.Server, l net.Listener, config *tls.Config) error {
			return s.Serve(tls.NewListener(l, config))
		},
		"ServeTLS without file names": func(s *fasthttp.Server, l net.Listener, config *tls.Config) error {
			s.TLSConfig = config
			return s.ServeTLS(l, "", "")
		},
		"ServeTLSEmbed without data": func(s *fasthttp.Server, l net.Listener, config *tls.Config) error {
			s.TLSConfig = config
			return s.ServeTLSEmbed(l, nil, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			server := new(fasthttp.Server)
			addr := serve(t, server, func(l net.Listener) error { return serveTLS(server, l, w.config) })
			der, err := get(t, addr, w.checking())
			require.NoError(t, err)
			r, _, err := new(staple.ResponseVerifier).Verify(der, w.cert.Leaf, w.ca.Issuer, time.Now())
			require.NoError(t, err)
			require.Equal(t, ocsp.Good, r.Status)

			w.responder.Set(w.cert.Leaf, stapletest.Answer{Status: ocsp.Revoked})
			for c := range w.stapler.Certificates() {
				require.NoError(t, c.Refresh(t.Context()))
			}
			_, err = get(t, addr, w.checking())
			require.ErrorIs(t, err, staple.ErrRevoked)
		})
	}
}

// What is documented as the wrong way adds a certificate to the wrapped configuration, which is served
// without a staple to clients that name no server.
func TestWaysAroundTheStaple(t *testing.T) {
	for name, serveTLS := range map[string]func(t *testing.T, w *world, s *fasthttp.Server, l net.Listener) error{
		"ServeTLS with file names": func(t *testing.T, w *world, s *fasthttp.Server, l net.Listener) error {
			certFile, keyFile := w.files(t)
			return s.ServeTLS(l, certFile, keyFile)
		},
		"ServeTLSEmbed with data": func(t *testing.T, w *world, s *fasthttp.Server, l net.Listener) error {
			cert, key := w.pem(t)
			return s.ServeTLSEmbed(l, cert, key)
		},
		"AppendCert": func(t *testing.T, w *world, s *fasthttp.Server, l net.Listener) error {
			certFile, keyFile := w.files(t)
			if err := s.AppendCert(certFile, keyFile); err != nil {
				return err
			}
			return s.ServeTLS(l, "", "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			server := &fasthttp.Server{TLSConfig: w.config}
			addr := serve(t, server, func(l net.Listener) error { return serveTLS(t, w, server, l) })
			der, err := get(t, addr, w.checking())
			require.NoError(t, err)
			require.NotEmpty(t, der, "a client that names the server")
			der, err = get(t, addr, &tls.Config{InsecureSkipVerify: true, ServerName: "127.0.0.1"}) // an address is not sent as a name
			require.NoError(t, err)
			require.Empty(t, der, "a client that does not")
		})
	}
}
