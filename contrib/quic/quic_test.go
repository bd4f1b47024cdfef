package staplequic_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/stretchr/testify/require"
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
}

func newWorld(t *testing.T) *world {
	w := &world{ca: stapletest.NewCA(stapletest.CAOptions{Intermediate: true})}
	w.responder = stapletest.NewResponder(w.ca)
	w.cert = w.ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}, MustStaple: true})
	w.stapler = &staple.Stapler{Fetcher: &staple.HTTPFetcher{Client: w.responder.Client()}, Logger: quiet, StapleRevoked: true}
	t.Cleanup(func() { w.stapler.Close() })
	return w
}

func (w *world) wait(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	require.NoError(t, w.stapler.Wait(ctx))
}

// get makes one HTTP/3 request on a new connection. The client refuses a server that does not staple.
func (w *world) get(t *testing.T, addr string) (*tls.ConnectionState, error) {
	transport := &http3.Transport{TLSClientConfig: &tls.Config{
		RootCAs: w.ca.Roots(), ServerName: "localhost", VerifyConnection: new(staple.ResponseVerifier).VerifyConnection,
	}}
	defer transport.Close()
	return get(t, transport, addr)
}

func get(t *testing.T, transport *http3.Transport, addr string) (*tls.ConnectionState, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, "GET", "https://"+addr, nil)
	require.NoError(t, err)
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, "HTTP/3.0", string(body))
	return response.TLS, nil
}

func (w *world) requireGood(t *testing.T, cs *tls.ConnectionState) {
	r, _, err := new(staple.ResponseVerifier).Verify(cs.OCSPResponse, w.cert.Leaf, w.ca.Issuer, time.Now())
	require.NoError(t, err)
	require.Equal(t, ocsp.Good, r.Status)
}

var handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) })

func packetConn(t *testing.T) net.PacketConn {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// serve runs server with f until the test ends.
func serve(t *testing.T, server *http3.Server, f func() error) {
	ended := make(chan error, 1)
	go func() { ended <- f() }()
	t.Cleanup(func() {
		server.Close()
		require.ErrorIs(t, <-ended, http.ErrServerClosed)
	})
}

func TestServe(t *testing.T) {
	for name, base := range map[string]func(cert *tls.Certificate) *tls.Config{
		"Certificates": func(cert *tls.Certificate) *tls.Config {
			return &tls.Config{Certificates: []tls.Certificate{*cert}}
		},
		"GetCertificate": func(cert *tls.Certificate) *tls.Config {
			return &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil }}
		},
		"GetConfigForClient": func(cert *tls.Certificate) *tls.Config {
			return &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
				return &tls.Config{Certificates: []tls.Certificate{*cert}}, nil
			}}
		},
		"ConfigureTLSConfig before it is wrapped": func(cert *tls.Certificate) *tls.Config {
			return http3.ConfigureTLSConfig(&tls.Config{Certificates: []tls.Certificate{*cert}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			conn := packetConn(t)
			server := &http3.Server{Handler: handler, TLSConfig: w.stapler.TLSConfig(base(&w.cert))}
			w.wait(t)
			serve(t, server, func() error { return server.Serve(conn) })
			cs, err := w.get(t, conn.LocalAddr().String())
			require.NoError(t, err)
			w.requireGood(t, cs)

			w.responder.Set(w.cert.Leaf, stapletest.Answer{Status: ocsp.Revoked})
			for c := range w.stapler.Certificates() {
				require.NoError(t, c.Refresh(t.Context()))
			}
			_, err = w.get(t, conn.LocalAddr().String())
			require.ErrorContains(t, err, "revoked")
		})
	}
}

func TestServeListener(t *testing.T) {
	w := newWorld(t)
	config := w.stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{w.cert}})
	w.wait(t)
	l, err := quic.ListenEarly(packetConn(t), http3.ConfigureTLSConfig(config), nil)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	server := &http3.Server{Handler: handler}
	serve(t, server, func() error { return server.ServeListener(l) })
	cs, err := w.get(t, l.Addr().String())
	require.NoError(t, err)
	w.requireGood(t, cs)
}

func TestListenAndServeTLSWithFilesDoesNotStaple(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	file := func(name, blockType string, ders ...[]byte) string {
		var b []byte
		for _, der := range ders {
			b = append(b, pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der})...)
		}
		name = filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(name, b, 0o600))
		return name
	}
	key, err := x509.MarshalPKCS8PrivateKey(w.cert.PrivateKey)
	require.NoError(t, err)
	certFile, keyFile := file("cert.pem", "CERTIFICATE", w.cert.Certificate...), file("key.pem", "PRIVATE KEY", key)

	conn := packetConn(t) // so that its address is free
	addr := conn.LocalAddr().String()
	conn.Close()
	server := &http3.Server{Addr: addr, Handler: handler,
		TLSConfig: w.stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{w.cert}})}
	w.wait(t)
	serve(t, server, func() error { return server.ListenAndServeTLS(certFile, keyFile) })
	transport := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: w.ca.Roots(), ServerName: "localhost"}}
	defer transport.Close()
	var cs *tls.ConnectionState
	require.Eventually(t, func() bool { // it listens a moment later
		cs, err = get(t, transport, addr)
		return err == nil
	}, 2*time.Minute, 10*time.Millisecond)
	require.Empty(t, cs.OCSPResponse)
}
