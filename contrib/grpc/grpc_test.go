package staplegrpc_test

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// A health server keeps what the last client stapled.
type health struct {
	healthpb.UnimplementedHealthServer
	stapled []byte
}

func (h *health) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	p, _ := peer.FromContext(ctx)
	h.stapled = p.AuthInfo.(credentials.TLSInfo).State.OCSPResponse
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

// Watch does not end by itself.
func (h *health) Watch(_ *healthpb.HealthCheckRequest, s grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	if err := s.Send(new(healthpb.HealthCheckResponse)); err != nil {
		return err
	}
	<-s.Context().Done()
	return s.Context().Err()
}

func serve(t *testing.T, h *health, creds credentials.TransportCredentials, o ...grpc.ServerOption) (addr string) {
	server := grpc.NewServer(append(o, grpc.Creds(creds))...)
	healthpb.RegisterHealthServer(server, h)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		require.NoError(t, <-ended)
	})
	return l.Addr().String()
}

// call makes one unary call and returns what the server stapled.
func call(t *testing.T, addr string, client *tls.Config) ([]byte, error) {
	cs, err := state(t, addr, client)
	return cs.OCSPResponse, err
}

// state makes one unary call, by a connection of its own, and returns what the client sees of that.
func state(t *testing.T, addr string, client *tls.Config) (tls.ConnectionState, error) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(client)))
	require.NoError(t, err)
	defer conn.Close()
	var p peer.Peer
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := healthpb.NewHealthClient(conn).Check(ctx, new(healthpb.HealthCheckRequest), grpc.Peer(&p)); err != nil {
		return tls.ConnectionState{}, err
	}
	return p.AuthInfo.(credentials.TLSInfo).State, nil
}

type world struct {
	ca             *stapletest.CA
	responder      *stapletest.Responder
	server, client *tls.Config
	refused        atomic.Pointer[error] // why the server refused a client last
}

// newWorld has Must-Staple certificates on both sides, so that a call succeeds only if both staple.
func newWorld(t *testing.T) (w *world, serverCert, clientCert tls.Certificate) {
	w = &world{ca: stapletest.NewCA(stapletest.CAOptions{Intermediate: true})}
	w.responder = stapletest.NewResponder(w.ca)
	verify := new(staple.ResponseVerifier).VerifyConnection
	w.server = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.ca.Roots(), VerifyConnection: func(cs tls.ConnectionState) error {
		err := verify(cs)
		if err != nil {
			w.refused.Store(&err)
		}
		return err
	}}
	w.client = &tls.Config{RootCAs: w.ca.Roots(), VerifyConnection: verify}
	o := stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}, MustStaple: true}
	return w, w.ca.Leaf(o), w.ca.Leaf(o)
}

func (w *world) stapler(t *testing.T) *staple.Stapler {
	s := &staple.Stapler{Fetcher: &staple.HTTPFetcher{Client: w.responder.Client()}, Logger: quiet, StapleRevoked: true}
	t.Cleanup(func() { s.Close() })
	return s
}

func wait(t *testing.T, s *staple.Stapler) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	require.NoError(t, s.Wait(ctx))
}

func TestBothSidesOfAUnaryCallStaple(t *testing.T) {
	w, serverCert, clientCert := newWorld(t)
	verifier := new(staple.ResponseVerifier)
	h := new(health)
	s := w.stapler(t)
	w.server.Certificates = []tls.Certificate{serverCert}
	w.client.Certificates = []tls.Certificate{clientCert}
	addr := serve(t, h, credentials.NewTLS(s.TLSConfig(w.server)))
	client := s.TLSConfig(w.client)
	wait(t, s)

	stapled, err := call(t, addr, client)
	require.NoError(t, err)
	for leaf, der := range map[*tls.Certificate][]byte{&serverCert: stapled, &clientCert: h.stapled} {
		r, _, err := verifier.Verify(der, leaf.Leaf, w.ca.Issuer, time.Now())
		require.NoError(t, err)
		require.Equal(t, ocsp.Good, r.Status)
	}

	_, err = call(t, addr, w.client)
	require.Equal(t, codes.Unavailable, status.Code(err), "a client that does not staple is refused: %v", err)
	require.ErrorContains(t, *w.refused.Load(), "no staple, and the certificate is Must-Staple")

	w.responder.Set(clientCert.Leaf, stapletest.Answer{Status: ocsp.Revoked})
	for c := range s.Certificates() {
		require.NoError(t, c.Refresh(t.Context()))
	}
	_, err = call(t, addr, client)
	require.Equal(t, codes.Unavailable, status.Code(err), "a client that is revoked is refused: %v", err)
	require.ErrorIs(t, *w.refused.Load(), staple.ErrRevoked)

	w.responder.Set(clientCert.Leaf, stapletest.Answer{})
	w.responder.Set(serverCert.Leaf, stapletest.Answer{Status: ocsp.Revoked})
	for c := range s.Certificates() {
		require.NoError(t, c.Refresh(t.Context()))
	}
	_, err = call(t, addr, client)
	require.ErrorContains(t, err, "revoked", "a server that is revoked is refused")
}

// A server that chooses by client: gRPC clones what the callback returns.
func TestGetConfigForClientIsStapled(t *testing.T) {
	w, serverCert, _ := newWorld(t)
	s := w.stapler(t)
	base := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: []tls.Certificate{serverCert}}, nil
	}}
	addr := serve(t, new(health), credentials.NewTLS(s.TLSConfig(base)))
	require.Eventually(t, func() bool {
		_, err := call(t, addr, w.client)
		return err == nil
	}, 2*time.Minute, 10*time.Millisecond)
}

func TestCredentialsMadeFromACertificateDoNotStaple(t *testing.T) {
	w, serverCert, _ := newWorld(t)
	addr := serve(t, new(health), credentials.NewServerTLSFromCert(&serverCert))
	stapled, err := call(t, addr, &tls.Config{RootCAs: w.ca.Roots()})
	require.NoError(t, err)
	require.Empty(t, stapled)
}

// A Checker on either side asks about a peer that staples nothing, and refuses it once it is revoked, also where a session
// is resumed.
func TestACheckerRefusesWhoIsRevoked(t *testing.T) {
	for side, server := range map[string]bool{"the client, by the server": true, "the server, by the client": false} {
		t.Run(side, func(t *testing.T) {
			ca := stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
			responder := stapletest.NewResponder(ca)
			cert := ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}})
			stapler := &staple.Stapler{Fetcher: &staple.HTTPFetcher{Client: responder.Client()}, Logger: quiet}
			defer stapler.Close()
			checker := &staple.Checker{Stapler: stapler}
			var said atomic.Pointer[error] // by the Checker, last
			verify := func(cs tls.ConnectionState) error {
				err := checker.VerifyConnection(cs)
				said.Store(&err)
				return err
			}
			plain := ca.Leaf(stapletest.LeafOptions{})
			of := &tls.Config{Certificates: []tls.Certificate{plain}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Roots()}
			with := &tls.Config{Certificates: []tls.Certificate{plain}, RootCAs: ca.Roots(), ClientSessionCache: tls.NewLRUClientSessionCache(0)}
			if server {
				of.VerifyConnection, with.Certificates[0] = verify, cert
			} else {
				with.VerifyConnection, of.Certificates[0] = verify, cert
			}
			addr := serve(t, new(health), credentials.NewTLS(of))

			for _, resumes := range []bool{false, true} {
				cs, err := state(t, addr, with)
				require.NoError(t, err)
				require.Equal(t, resumes, cs.DidResume)
				require.Empty(t, cs.OCSPResponse)
			}
			require.Len(t, responder.Requests(cert.Leaf), 1, "nobody is asked twice")

			responder.Set(cert.Leaf, stapletest.Answer{Status: ocsp.Revoked})
			askAgain(t, stapler, cert)
			fresh := with.Clone()
			fresh.ClientSessionCache = nil
			for _, client := range []*tls.Config{with, fresh} {
				said.Store(nil)
				_, err := state(t, addr, client)
				require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
				require.ErrorIs(t, *said.Load(), staple.ErrRevoked)
			}
		})
	}
}

// A connection that is open stays open when its client is revoked. With MaxConnectionAge the client has to come again, and
// with MaxConnectionAgeGrace also where a stream does not end.
func TestMaxConnectionAgeEndsTheStreamsOfWhoIsRevoked(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	responder := stapletest.NewResponder(ca)
	cert := ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}})
	stapler := &staple.Stapler{Fetcher: &staple.HTTPFetcher{Client: responder.Client()}, Logger: quiet}
	defer stapler.Close()
	checker := &staple.Checker{Stapler: stapler}
	config := &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Roots(),
		VerifyConnection: checker.VerifyConnection}
	age := keepalive.ServerParameters{MaxConnectionAge: time.Second, MaxConnectionAgeGrace: time.Millisecond}
	addr := serve(t, new(health), credentials.NewTLS(config), grpc.KeepaliveParams(age))

	client := &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: ca.Roots()}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(client)))
	require.NoError(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var stream grpc.ServerStreamingClient[healthpb.HealthCheckResponse]
	for begun := false; !begun; begun = err == nil { // on a slow machine the age may end first
		require.NoError(t, ctx.Err())
		if stream, err = healthpb.NewHealthClient(conn).Watch(ctx, new(healthpb.HealthCheckRequest)); err == nil {
			_, err = stream.Recv()
		}
	}

	responder.Set(cert.Leaf, stapletest.Answer{Status: ocsp.Revoked})
	askAgain(t, stapler, cert)
	_, err = stream.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
	_, err = healthpb.NewHealthClient(conn).Check(ctx, new(healthpb.HealthCheckRequest))
	require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
}

// askAgain has the Stapler notice what the responder says of a peer now.
func askAgain(t *testing.T, s *staple.Stapler, cert tls.Certificate) {
	for c := range s.Peers() {
		if c.Status().Leaf.Equal(cert.Leaf) {
			require.NoError(t, c.Refresh(t.Context()))
		}
	}
}
