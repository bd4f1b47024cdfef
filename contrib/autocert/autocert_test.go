package stapleautocert_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
)

const name = "www.example.com"

// mustStaple asks for the TLS feature extension, RFC 7633.
var mustStaple = pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: []byte{0x30, 3, 2, 1, 5}}

// A pebble is Let's Encrypt's ACME server for tests, with a responder, which it lacks. It reaches servers
// for tls-alpn-01 on one port of loopback, whatever their names.
type pebble struct {
	directory string
	client    *http.Client // trusts the ACME server
	roots     *x509.CertPool
	issuer    *x509.Certificate
	responder *stapletest.Responder
}

// startPebble starts one whose certificates are valid for so long.
func startPebble(t *testing.T, tlsPort int, validity time.Duration) *pebble {
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_WFE_NONCEREJECT", "0")
	t.Setenv("PEBBLE_AUTHZREUSE", "0") // so that each certificate takes a challenge
	p := &pebble{roots: x509.NewCertPool()}
	ocspServer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.responder.ServeHTTP(w, r) }))
	t.Cleanup(ocspServer.Close)

	quiet := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	profiles := map[string]ca.Profile{"default": {ValidityPeriod: uint64(validity.Seconds())}}
	authority := ca.New(quiet, store, ocspServer.URL, "rsa", 0, 1, profiles)
	validator := va.New(quiet, 0, tlsPort, false, startDNS(t), store)
	frontend := wfe.New(quiet, store, validator, authority, nil, false, false, 1, 1)
	server := httptest.NewTLSServer(frontend.Handler())
	t.Cleanup(server.Close)

	p.directory, p.client = server.URL+wfe.DirectoryPath, server.Client()
	p.issuer = authority.GetIntermediateCert(0).Cert
	p.roots.AddCert(authority.GetRootCert(0).Cert)
	p.responder = stapletest.NewResponder(&stapletest.CA{Issuer: p.issuer, Key: authority.GetIntermediateKey(0)})
	return p
}

// startDNS starts a DNS server that knows every name to be 127.0.0.1.
func startDNS(t *testing.T) (addr string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := &dns.Server{Listener: l, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, request *dns.Msg) {
		reply := new(dns.Msg).SetReply(request)
		if q := request.Question[0]; q.Qtype == dns.TypeA {
			reply.Answer = append(reply.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET},
				A:   net.IPv4(127, 0, 0, 1),
			})
		}
		_ = w.WriteMsg(reply)
	})}
	ended := make(chan error, 1)
	go func() { ended <- server.ActivateAndServe() }()
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	return l.Addr().String()
}

// A challenge is what one handshake for acme-tls/1 was given by the Manager, and by the wrapped configuration.
type challenge struct{ given, served *tls.Certificate }

// A site is a server whose certificates come from a Manager.
type site struct {
	*pebble
	listener net.Listener
	stapler  *staple.Stapler

	mu         sync.Mutex
	challenges []challenge
}

func newSite(t *testing.T, validity time.Duration, m *autocert.Manager) *site {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &site{
		pebble:   startPebble(t, l.Addr().(*net.TCPAddr).Port, validity),
		listener: l,
		stapler:  &staple.Stapler{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))},
	}
	t.Cleanup(func() { s.stapler.Close() })
	m.Prompt = autocert.AcceptTOS
	m.HostPolicy = autocert.HostWhitelist(name)
	m.Client = &acme.Client{DirectoryURL: s.directory, HTTPClient: s.client}

	given := make(map[*tls.ClientHelloInfo]*tls.Certificate)
	base := m.TLSConfig()
	base.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := m.GetCertificate(hello)
		s.mu.Lock()
		defer s.mu.Unlock()
		given[hello] = cert
		return cert, err
	}
	config := s.stapler.TLSConfig(base)
	wrapped := config.GetCertificate
	config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := wrapped(hello)
		s.mu.Lock()
		defer s.mu.Unlock()
		if slices.Contains(hello.SupportedProtos, acme.ALPNProto) {
			s.challenges = append(s.challenges, challenge{given[hello], cert})
		}
		delete(given, hello)
		return cert, err
	}
	server := &http.Server{
		TLSConfig: config,
		Handler:   http.NotFoundHandler(),
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		server.Close()
		require.ErrorIs(t, <-ended, http.ErrServerClosed)
	})
	return s
}

// visit makes a handshake with the site. The client verifies a staple, if there is one.
func (s *site) visit(t *testing.T) (leaf *x509.Certificate, stapled []byte, err error) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{
		RootCAs: s.roots, ServerName: name, VerifyConnection: new(staple.ResponseVerifier).VerifyConnection,
	}}
	conn, err := dialer.DialContext(ctx, "tcp", s.listener.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	cs := conn.(*tls.Conn).ConnectionState()
	return cs.PeerCertificates[0], cs.OCSPResponse, nil
}

func (s *site) requireGood(t *testing.T, leaf *x509.Certificate, stapled []byte) {
	r, _, err := new(staple.ResponseVerifier).Verify(stapled, leaf, s.issuer, time.Now())
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

func TestACertificateAndItsSuccessorAreStapled(t *testing.T) {
	// Renewed some two to fourteen seconds after it is issued.
	s := newSite(t, 2*time.Minute, &autocert.Manager{RenewBefore: 118 * time.Second})
	first := s.visitUntilStapled(t)
	require.NotEmpty(t, first.OCSPServer)

	require.Eventually(t, func() bool { return !s.visitUntilStapled(t).Equal(first) }, 2*time.Minute, 50*time.Millisecond,
		"the Manager renews it")

	s.mu.Lock()
	defer s.mu.Unlock()
	require.GreaterOrEqual(t, len(s.challenges), 2)
	for _, c := range s.challenges {
		require.NotNil(t, c.given)
		require.Equal(t, c.given.Certificate, c.served.Certificate)
		require.True(t, c.given.PrivateKey == c.served.PrivateKey)
		require.Empty(t, c.served.OCSPStaple)
		leaf, err := x509.ParseCertificate(c.served.Certificate[0])
		require.NoError(t, err)
		require.Empty(t, s.responder.Requests(leaf), "nobody asks about the certificate of a challenge")
	}
}

// The first handshake of all is stapled, since it waits; visit fails without a staple.
func TestMustStaple(t *testing.T) {
	s := newSite(t, 24*time.Hour, &autocert.Manager{ExtraExtensions: []pkix.Extension{mustStaple}})
	leaf, stapled, err := s.visit(t)
	require.NoError(t, err)
	s.requireGood(t, leaf, stapled)
	require.True(t, slices.ContainsFunc(leaf.Extensions, func(e pkix.Extension) bool {
		return e.Id.Equal(mustStaple.Id) && bytes.Equal(e.Value, mustStaple.Value)
	}))
	require.Len(t, s.responder.Requests(leaf), 1)
}

// What the Manager refuses is refused, and its error is the same.
func TestErrorsPassThrough(t *testing.T) {
	m := &autocert.Manager{HostPolicy: autocert.HostWhitelist(name)}
	var s staple.Stapler
	defer s.Close()
	config := s.TLSConfig(m.TLSConfig())
	require.Equal(t, m.TLSConfig().NextProtos, config.NextProtos)
	for _, hello := range []*tls.ClientHelloInfo{
		{},
		{ServerName: "other.example.com"},
		{ServerName: name, SupportedProtos: []string{acme.ALPNProto}}, // no challenge is due
	} {
		_, want := m.GetCertificate(hello)
		require.Error(t, want)
		_, err := config.GetCertificate(hello)
		require.Equal(t, want, err)
	}
}
