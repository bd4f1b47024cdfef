package staplecertmagic_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
)

const name = "www.example.com"

// An issuer issues certificates of a CA for CertMagic.
type issuer struct {
	ca         *stapletest.CA
	mustStaple bool
}

func (i issuer) IssuerKey() string { return "test" }

func (i issuer) Issue(_ context.Context, request *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	cert := i.ca.Leaf(stapletest.LeafOptions{
		Names: request.DNSNames, Key: publicKey{request.PublicKey}, Responders: []string{"http://ocsp.example"}, MustStaple: i.mustStaple,
	})
	var chain []byte
	for _, der := range cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return &certmagic.IssuedCertificate{Certificate: chain}, nil
}

// A publicKey is the key of a certificate request, as far as issuing needs it.
type publicKey struct{ crypto.PublicKey }

func (k publicKey) Public() crypto.PublicKey { return k.PublicKey }
func (k publicKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("the private key is CertMagic's")
}

// A site is a server whose certificates CertMagic manages.
type site struct {
	ca        *stapletest.CA
	responder *stapletest.Responder
	cache     *certmagic.Cache
	magic     *certmagic.Config
	stapler   *staple.Stapler
	addr      string
}

func newSite(t *testing.T, mustStaple bool) *site {
	s := &site{ca: stapletest.NewCA(stapletest.CAOptions{Intermediate: true})}
	s.responder = stapletest.NewResponder(s.ca)
	s.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return s.magic, nil },
		Logger:           zap.NewNop(),
	})
	t.Cleanup(s.cache.Stop)
	s.magic = certmagic.New(s.cache, certmagic.Config{
		Issuers: []certmagic.Issuer{issuer{s.ca, mustStaple}},
		OCSP:    certmagic.OCSPConfig{DisableStapling: true},
		Storage: &certmagic.FileStorage{Path: t.TempDir()},
		Logger:  zap.NewNop(),
	})
	require.NoError(t, s.magic.ManageSync(t.Context(), []string{name}))
	s.stapler = &staple.Stapler{
		Fetcher: &staple.HTTPFetcher{Client: s.responder.Client()},
		Logger:  slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	t.Cleanup(func() { s.stapler.Close() })
	return s
}

// serve starts the server, after what else is to be set in the stapler.
func (s *site) serve(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s.addr = l.Addr().String()
	config := s.magic.TLSConfig()
	config.NextProtos = append([]string{"h2", "http/1.1"}, config.NextProtos...)
	server := &http.Server{
		TLSConfig: s.stapler.TLSConfig(config),
		Handler:   http.NotFoundHandler(),
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		server.Close()
		require.ErrorIs(t, <-ended, http.ErrServerClosed)
	})
}

// visit makes a handshake with the site. The client verifies a staple, if there is one.
func (s *site) visit(t *testing.T) (leaf *x509.Certificate, stapled []byte, err error) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{
		RootCAs: s.ca.Roots(), ServerName: name, VerifyConnection: new(staple.ResponseVerifier).VerifyConnection,
	}}
	conn, err := dialer.DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	cs := conn.(*tls.Conn).ConnectionState()
	return cs.PeerCertificates[0], cs.OCSPResponse, nil
}

func (s *site) requireGood(t *testing.T, leaf *x509.Certificate, stapled []byte) {
	r, _, err := new(staple.ResponseVerifier).Verify(stapled, leaf, s.ca.Issuer, time.Now())
	require.NoError(t, err)
	require.Equal(t, ocsp.Good, r.Status)
}

// visitUntilStapled returns the certificate with which the site staples.
func (s *site) visitUntilStapled(t *testing.T) (leaf *x509.Certificate) {
	var stapled []byte
	require.Eventually(t, func() bool {
		var err error
		leaf, stapled, err = s.visit(t)
		require.NoError(t, err)
		return len(stapled) > 0
	}, 2*time.Minute, 10*time.Millisecond)
	s.requireGood(t, leaf, stapled)
	return leaf
}

// replace has CertMagic replace the certificate, as in the example.
func (s *site) replace(ctx context.Context, leaf *x509.Certificate) error {
	for _, old := range s.cache.AllMatchingCertificates(leaf.DNSNames[0]) {
		if !old.Leaf.Equal(leaf) {
			continue
		}
		if err := s.magic.RenewCertSync(ctx, leaf.DNSNames[0], true); err != nil {
			return err
		}
		if _, err := s.magic.CacheManagedCertificate(ctx, leaf.DNSNames[0]); err != nil {
			return err
		}
		s.cache.Remove([]string{old.Hash()})
	}
	return nil
}

func TestACertificateAndItsSuccessorAreStapled(t *testing.T) {
	s := newSite(t, false)
	s.serve(t)
	first := s.visitUntilStapled(t)
	require.NoError(t, s.replace(t.Context(), first))
	second := s.visitUntilStapled(t)
	require.NotEqual(t, first.Raw, second.Raw)
	for _, leaf := range []*x509.Certificate{first, second} {
		require.Len(t, s.responder.Requests(leaf), 1, "CertMagic does not ask as well")
	}
}

// The first handshake of all is stapled, since it waits; visit fails without a staple.
func TestMustStaple(t *testing.T) {
	s := newSite(t, true)
	s.serve(t)
	leaf, stapled, err := s.visit(t)
	require.NoError(t, err)
	s.requireGood(t, leaf, stapled)
}

func TestARevokedCertificateIsReplacedOnTheEvent(t *testing.T) {
	s := newSite(t, false)
	replaced := make(chan error, 1)
	s.stapler.OnEvent = func(e staple.Event) {
		if e.Kind == staple.EventRevoked {
			go func() { replaced <- s.replace(context.Background(), e.Status.Leaf) }()
		}
	}
	s.serve(t)
	first := s.visitUntilStapled(t)
	s.responder.Set(first, stapletest.Answer{Status: ocsp.Revoked})
	for c := range s.stapler.Certificates() {
		require.NoError(t, c.Refresh(t.Context()))
	}
	require.NoError(t, <-replaced)
	require.NotEqual(t, first.Raw, s.visitUntilStapled(t).Raw)
}
