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
	"slices"
	"sync"
	"sync/atomic"
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
	return getBy(t, transport, addr, http.MethodGet)
}

func getBy(t *testing.T, transport *http3.Transport, addr, method string) (*tls.ConnectionState, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "https://"+addr, nil)
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

// A Checker on either side asks about a peer that staples nothing, and refuses it once it is revoked, also where a session
// is resumed, and before a request in 0-RTT is served.
func TestACheckerRefusesWhoIsRevoked(t *testing.T) {
	for side, server := range map[string]bool{"the client, by the server": true, "the server, by the client": false} {
		t.Run(side, func(t *testing.T) {
			w := newWorld(t)
			cert := w.ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}})
			plain := w.ca.Leaf(stapletest.LeafOptions{})
			checker := &staple.Checker{Stapler: w.stapler}
			var said atomic.Pointer[error] // by the Checker, last
			verify := func(cs tls.ConnectionState) error {
				err := checker.VerifyConnection(cs)
				said.Store(&err)
				return err
			}
			of := &tls.Config{Certificates: []tls.Certificate{plain}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.ca.Roots()}
			with := &tls.Config{Certificates: []tls.Certificate{plain}, RootCAs: w.ca.Roots(), ServerName: "localhost",
				ClientSessionCache: tls.NewLRUClientSessionCache(0)}
			if server {
				of.VerifyConnection, with.Certificates[0] = verify, cert
			} else {
				with.VerifyConnection, of.Certificates[0] = verify, cert
			}
			conn := packetConn(t)
			addr := conn.LocalAddr().String()
			var served atomic.Int32
			s := &http3.Server{TLSConfig: of, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				served.Add(1)
				handler(w, r)
			})}
			serve(t, s, func() error { return s.Serve(conn) })
			// visit makes one request by a connection of its own, in 0-RTT if there is a session to resume.
			visit := func(client *tls.Config) (*tls.ConnectionState, bool, error) {
				var dialed *quic.Conn
				transport := &http3.Transport{TLSClientConfig: client,
					Dial: func(ctx context.Context, addr string, c *tls.Config, q *quic.Config) (*quic.Conn, error) {
						var err error
						dialed, err = quic.DialAddrEarly(ctx, addr, c, q)
						return dialed, err
					}}
				defer transport.Close()
				cs, err := getBy(t, transport, addr, http3.MethodGet0RTT)
				return cs, dialed != nil && dialed.ConnectionState().Used0RTT, err
			}

			cs, _, err := visit(with)
			require.NoError(t, err)
			require.False(t, cs.DidResume)
			require.Empty(t, cs.OCSPResponse)
			require.Eventually(t, func() bool { // the ticket comes a moment later
				cs, early, err := visit(with)
				require.NoError(t, err)
				return cs.DidResume && early
			}, 2*time.Minute, 10*time.Millisecond)
			require.Len(t, w.responder.Requests(cert.Leaf), 1, "nobody is asked twice")

			w.responder.Set(cert.Leaf, stapletest.Answer{Status: ocsp.Revoked, Delay: 100 * time.Millisecond})
			for c := range w.stapler.Peers() {
				c.Remove() // so that it is asked about while it connects
			}
			before := served.Load()
			fresh := with.Clone()
			fresh.ClientSessionCache = nil
			for _, client := range []*tls.Config{with, fresh} {
				said.Store(nil)
				_, _, err := visit(client)
				require.Error(t, err)
				require.ErrorIs(t, *said.Load(), staple.ErrRevoked)
			}
			if server { // a client sends what is in 0-RTT before it hears of the server
				require.Equal(t, before, served.Load(), "no request of theirs is served")
			}
		})
	}
}

// A connection that is open stays open when its client is revoked, unless it is closed at the event.
func TestAConnectionIsClosedByTheEvent(t *testing.T) {
	w := newWorld(t)
	cert := w.ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}})
	var mu sync.Mutex
	open := make(map[*quic.Conn]bool)
	checker := &staple.Checker{Stapler: w.stapler, OnEvent: func(e staple.Event) {
		mu.Lock()
		defer mu.Unlock()
		for conn := range open {
			select {
			case <-conn.HandshakeComplete():
				chain := conn.ConnectionState().TLS.VerifiedChains[0]
				if e.Kind == staple.EventRevoked && slices.ContainsFunc(chain, e.Status.Leaf.Equal) {
					conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "revoked")
				}
			default:
			}
		}
	}}
	config := &tls.Config{Certificates: []tls.Certificate{w.ca.Leaf(stapletest.LeafOptions{})},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.ca.Roots(), VerifyConnection: checker.VerifyConnection}
	conn := packetConn(t)
	s := &http3.Server{TLSConfig: config,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}),
		ConnContext: func(ctx context.Context, c *quic.Conn) context.Context {
			mu.Lock()
			defer mu.Unlock()
			open[c] = true
			context.AfterFunc(c.Context(), func() {
				mu.Lock()
				defer mu.Unlock()
				delete(open, c)
			})
			return ctx
		}}
	serve(t, s, func() error { return s.Serve(conn) })
	transport := &http3.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: w.ca.Roots(), ServerName: "localhost"}}
	defer transport.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, "GET", "https://"+conn.LocalAddr().String(), nil)
	require.NoError(t, err)
	response, err := transport.RoundTrip(request)
	require.NoError(t, err)
	defer response.Body.Close()

	w.responder.Set(cert.Leaf, stapletest.Answer{Status: ocsp.Revoked})
	for c := range w.stapler.Peers() {
		if c.Status().Leaf.Equal(cert.Leaf) {
			require.NoError(t, c.Refresh(t.Context()))
		}
	}
	_, err = io.ReadAll(response.Body)
	require.ErrorContains(t, err, "revoked")
}
