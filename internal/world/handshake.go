package world

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/go-staple/staple"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// RequireStaple requires that handshakes get a staple of the given status which verifies. The issuer is next in
// the chain.
func RequireStaple(t *testing.T, c *staple.Certificate, status int) *ocsp.Response {
	t.Helper()
	cert, err := c.GetCertificate(nil)
	require.NoError(t, err)
	require.NotEmpty(t, cert.OCSPStaple, "no staple")
	require.Same(t, cert, c.TLS())
	require.True(t, c.Status().Stapled)
	issuer, err := x509.ParseCertificate(cert.Certificate[1])
	require.NoError(t, err)
	r, _, err := new(staple.ResponseVerifier).Verify(cert.OCSPStaple, cert.Leaf, issuer, time.Now())
	require.NoError(t, err)
	require.Equal(t, status, r.Status)
	return r
}

// RequireNoStaple requires that handshakes get none.
func RequireNoStaple(t *testing.T, c *staple.Certificate) {
	t.Helper()
	require.Empty(t, c.TLS().OCSPStaple)
	require.False(t, c.Status().Stapled)
}

// Connect makes a connection over a pipe and returns what the client, or the server, saw.
func Connect(t *testing.T, server, client *tls.Config) (clientState, serverState tls.ConnectionState, err error) {
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

// Hello returns the hello that a client sends.
func Hello(t *testing.T, client *tls.Config) (hello *tls.ClientHelloInfo) {
	t.Helper()
	_, _, err := Connect(t, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		hello = h
		return nil, context.Canceled
	}}, client)
	require.Error(t, err)
	return hello
}
