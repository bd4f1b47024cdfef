package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestRun(t *testing.T) {
	var output bytes.Buffer
	require.NoError(t, run(t.Context(), &output))
	require.Contains(t, output.String(), "stapled after STARTTLS")
}

func TestTheUpgradedConnectionIsStapled(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
	responder := stapletest.NewResponder(ca)
	cert := ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}, MustStaple: true})
	stapler := &staple.Stapler{
		Fetcher:       &staple.HTTPFetcher{Client: responder.Client()},
		Logger:        slog.New(slog.NewTextHandler(io.Discard, nil)),
		StapleRevoked: true,
	}
	defer stapler.Close()
	s, err := startServer("127.0.0.1:0", stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}}))
	require.NoError(t, err)
	defer s.close()
	require.NoError(t, stapler.Wait(t.Context()))

	client := &tls.Config{
		RootCAs: ca.Roots(), ServerName: "localhost", VerifyConnection: new(staple.ResponseVerifier).VerifyConnection,
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := client.Clone()
		config.MaxVersion = version
		cs, err := visit(t.Context(), s.listener.Addr().String(), config)
		require.NoError(t, err)
		require.Equal(t, version, cs.Version)
		r, _, err := new(staple.ResponseVerifier).Verify(cs.OCSPResponse, cert.Leaf, ca.Issuer, time.Now())
		require.NoError(t, err)
		require.Equal(t, ocsp.Good, r.Status)
	}

	responder.Set(cert.Leaf, stapletest.Answer{Status: ocsp.Revoked})
	for c := range stapler.Certificates() {
		require.NoError(t, c.Refresh(t.Context()))
	}
	_, err = visit(t.Context(), s.listener.Addr().String(), client)
	require.ErrorIs(t, err, staple.ErrRevoked)
}

func TestNothingMayFollowSTARTTLSInTheClear(t *testing.T) {
	s, err := startServer("127.0.0.1:0", new(tls.Config))
	require.NoError(t, err)
	defer s.close()
	conn, err := net.Dial("tcp", s.listener.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	fmt.Fprint(conn, "STARTTLS\r\nNOOP\r\n")
	said, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, "220 localhost ready\r\n501 nothing may follow STARTTLS\r\n", string(said))
}
