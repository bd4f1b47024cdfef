package whole

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/testhttp"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// TestAPlainListenerStaples has a server and a client of crypto/tls alone, over TCP.
func TestAPlainListenerStaples(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
	responder := stapletest.NewResponder(ca)
	cert := ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}, MustStaple: true})
	stapler := &staple.Stapler{
		Fetcher:       &staple.HTTPFetcher{Client: responder.Client()},
		Logger:        slog.New(slog.DiscardHandler),
		StapleRevoked: true,
	}
	defer stapler.Close()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}}))
	require.NoError(t, err)
	defer testhttp.Serve(listener, func(conn net.Conn) { _, _ = io.Copy(conn, conn) })()
	ctx := world.Soon(t)
	require.NoError(t, stapler.Wait(ctx))

	visit := func(name string, version uint16) (tls.ConnectionState, error) {
		dialer := tls.Dialer{Config: &tls.Config{
			RootCAs: ca.Roots(), ServerName: name, MaxVersion: version, VerifyConnection: new(staple.ResponseVerifier).VerifyConnection,
		}}
		conn, err := dialer.DialContext(ctx, "tcp", listener.Addr().String())
		if err != nil {
			return tls.ConnectionState{}, err
		}
		defer conn.Close()
		_, err = io.WriteString(conn, "hello")
		require.NoError(t, err)
		echo := make([]byte, 5)
		_, err = io.ReadFull(conn, echo)
		require.NoError(t, err)
		require.Equal(t, "hello", string(echo))
		return conn.(*tls.Conn).ConnectionState(), nil
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, name := range []string{"localhost", net.IPv6loopback.String()} { // an address is not sent as a name
			cs, err := visit(name, version)
			require.NoError(t, err)
			require.Equal(t, version, cs.Version)
			r, _, err := new(staple.ResponseVerifier).Verify(cs.OCSPResponse, cert.Leaf, ca.Issuer, time.Now())
			require.NoError(t, err)
			require.Equal(t, ocsp.Good, r.Status)
		}
	}

	responder.Set(cert.Leaf, stapletest.Answer{Status: ocsp.Revoked})
	for c := range stapler.Certificates() {
		require.NoError(t, c.Refresh(ctx))
	}
	_, err = visit("localhost", tls.VersionTLS13)
	require.ErrorIs(t, err, staple.ErrRevoked)
}
