package responders

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
)

// patience is for what takes a moment.
const patience = time.Minute

// A site serves one certificate, stapled.
type site struct {
	handle *staple.Certificate
	addr   string
	client *tls.Config // verifies the staple
}

// newSite starts one that staples what s gets, a revoked answer included.
func newSite(t *testing.T, s *staple.Stapler, cert tls.Certificate, client *tls.Config) *site {
	s.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	s.StapleRevoked = true
	t.Cleanup(func() { s.Close() })
	l, err := tls.Listen("tcp", "127.0.0.1:0", s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}}))
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).HandshakeContext(context.Background())
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	site := &site{addr: l.Addr().String(), client: client}
	client.ServerName = "localhost"
	client.VerifyConnection = new(staple.ResponseVerifier).VerifyConnection
	for handle := range s.Certificates() {
		site.handle = handle
	}
	return site
}

// visit makes a handshake and returns what was stapled.
func (s *site) visit(t *testing.T) ([]byte, error) {
	conn, err := (&tls.Dialer{Config: s.client}).DialContext(soon(t), "tcp", s.addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().OCSPResponse, nil
}

// requireGood wants a verified staple, in the status and on the wire.
func (s *site) requireGood(t *testing.T) *ocsp.Response {
	require.NoError(t, s.handle.Wait(soon(t)))
	der, err := s.visit(t)
	require.NoError(t, err)
	require.NotEmpty(t, der)
	require.True(t, bytes.Equal(der, s.handle.TLS().OCSPStaple))
	r, err := ocsp.ParseResponse(der, nil)
	require.NoError(t, err)
	require.Equal(t, ocsp.Good, r.Status)
	return r
}

// requireRevoked refreshes, and wants a client to see that the certificate is revoked.
func (s *site) requireRevoked(t *testing.T) {
	require.NoError(t, s.handle.Refresh(soon(t)), "a revocation is no failure")
	require.True(t, s.handle.Status().Revoked)
	_, err := s.visit(t)
	require.ErrorIs(t, err, staple.ErrRevoked)
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}
