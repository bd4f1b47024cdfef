package staple

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"math/big"
	"testing/synctest"

	"context"
	"crypto"
	"crypto/tls"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-staple/staple/internal/exhaustive"
	"github.com/go-staple/staple/internal/seen"
	"github.com/go-staple/staple/internal/wall"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

// helloOf returns the hello that a client sends.
func helloOf(t *testing.T, client *tls.Config) (hello *tls.ClientHelloInfo) {
	t.Helper()
	_, _, err := connect(t, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		hello = h
		return nil, context.Canceled
	}}, client)
	require.Error(t, err)
	return hello
}

// A remoteKey is one that takes its time, in a hardware module or at an agent.
type remoteKey struct {
	crypto.Signer
	asked func()
}

func (k remoteKey) Public() crypto.PublicKey {
	k.asked()
	return k.Signer.Public()
}

func TestAStapleThatEndsWhileTheCertificateIsChosenIsNotServed(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	asked := func() {}
	cert := w.leaf()
	cert.PrivateKey = remoteKey{cert.PrivateKey.(crypto.Signer), func() { asked() }}
	config := s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert, w.leaf(func(o *stapletest.LeafOptions) { o.KeyType = stapletest.RSA2048 })}})
	require.NoError(t, s.Wait(soon(t)))
	client := w.client("www.example.com")
	client.MaxVersion = tls.VersionTLS12 // so that crypto/tls is asked, and asks for the key
	hello := helloOf(t, client)
	c := slices.Collect(s.Certificates())[0]
	c.setStaple([]byte{1}, time.Now().Add(time.Hour))
	got, err := config.GetCertificate(hello)
	require.NoError(t, err)
	require.Equal(t, []byte{1}, got.OCSPStaple)

	now := time.Now()
	t.Cleanup(wall.Set(func() time.Time { return now }))
	n := 0
	asked = func() { n++; now = now.Add(2 * time.Hour) }
	got, err = config.GetCertificate(hello)
	require.NoError(t, err)
	require.Equal(t, cert.Certificate, got.Certificate)
	require.Empty(t, got.OCSPStaple)
	require.Equal(t, 2, n, "crypto/tls asks twice for the key of a candidate, and is asked about it once")
}

func TestSelectionDoesNotAllocate(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	key := w.leaf().PrivateKey
	certs := []tls.Certificate{
		w.leaf(names("first.example.com"), sameKey(key)),
		w.leaf(names("www.example.com", "*.wild.example.com"), func(o *stapletest.LeafOptions) { o.KeyType = stapletest.RSA2048 }),
		w.leaf(names("www.example.com", "*.wild.example.com", "192.0.2.1"), sameKey(key)),
	}
	for _, cert := range certs {
		w.add(s, cert)
	}
	for _, tt := range []struct {
		name string
		base *tls.Config
	}{
		{"one certificate", &tls.Config{Certificates: certs[2:]}},
		{"names alone", &tls.Config{Certificates: []tls.Certificate{certs[0], w.leaf(sameKey(key))}}},
		{"names, wildcards and kinds of keys", &tls.Config{Certificates: certs}},
		{"what was added", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := s.TLSConfig(tt.base)
			require.NoError(t, s.Wait(soon(t)))
			for _, name := range []string{"www.example.com", "first.example.com", "WWW.example.com", "x.wild.example.com", "192.0.2.1", "nobody.example.com", ""} {
				hello := helloOf(t, w.client("www.example.com"))
				hello.ServerName = name
				require.Zero(t, testing.AllocsPerRun(100, func() {
					if cert, err := config.GetCertificate(hello); err != nil || cert == nil || cert.OCSPStaple == nil {
						t.Fatal("no staple")
					}
				}), "%q", name)
			}
		})
	}
}

func TestCertificatesComeAndGoWhileOthersAreServed(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	key := w.leaf().PrivateKey
	w.add(s, w.leaf(names("stays.example.com"), sameKey(key)))
	config := s.TLSConfig(nil)
	hello := helloOf(t, w.client("stays.example.com"))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for i := range 4 {
		own := w.leaf(names(fmt.Sprintf("n%d.example.com", i), fmt.Sprintf("*.n%d.example.com", i), "shared.example.com"), sameKey(key))
		wg.Go(func() {
			for ctx.Err() == nil {
				c, err := s.Add(own)
				require.NoError(t, err)
				for _, name := range own.Leaf.DNSNames[:2] {
					mine := *hello
					mine.ServerName = strings.Replace(name, "*", "x", 1)
					got, err := config.GetCertificate(&mine)
					require.NoError(t, err)
					require.Equal(t, own.Leaf.Raw, got.Leaf.Raw)
				}
				c.Remove()
			}
		})
		wg.Go(func() {
			for ctx.Err() == nil {
				for _, name := range []string{"stays.example.com", "shared.example.com", "x.n1.example.com", ""} {
					any := *hello
					any.ServerName = name
					got, err := config.GetCertificate(&any)
					require.NoError(t, err)
					if got.Leaf.VerifyHostname(name) != nil {
						require.Equal(t, "stays.example.com", got.Leaf.DNSNames[0])
					}
				}
			}
		})
	}
	wg.Wait()
	require.Len(t, slices.Collect(s.Certificates()), 1)
}

func TestARenewedCertificateTakesOverWithoutAHandshakeUnstapled(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	current := w.add(s, w.leaf())
	config := s.TLSConfig(nil)
	client := w.client("www.example.com")
	for range 5 {
		next := w.add(s, w.leaf())
		got, _, err := connect(t, config, client)
		require.NoError(t, err)
		require.Equal(t, current.Status().Leaf.Raw, got.PeerCertificates[0].Raw, "the older of two is served")
		require.NotEmpty(t, got.OCSPResponse)
		current.Remove()
		got, _, err = connect(t, config, client)
		require.NoError(t, err)
		require.Equal(t, next.Status().Leaf.Raw, got.PeerCertificates[0].Raw)
		require.NotEmpty(t, got.OCSPResponse)
		current = next
	}
	require.Len(t, slices.Collect(s.Certificates()), 1)
}

func TestConfigurationsForEachConnectionLeaveNothingBehind(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	key := w.leaf().PrivateKey
	shared := []tls.Certificate{w.leaf(names("first.example.com"), sameKey(key)), w.leaf(sameKey(key))}
	fresh := false
	config := s.TLSConfig(&tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		certs := shared
		if fresh {
			certs = slices.Clone(shared)
		}
		return &tls.Config{Certificates: certs}, nil
	}})
	hello := helloOf(t, w.client("www.example.com"))
	serve := func() {
		inner, err := config.GetConfigForClient(hello)
		require.NoError(t, err)
		got, err := inner.GetCertificate(hello)
		require.NoError(t, err)
		require.Equal(t, shared[1].Leaf.Raw, got.Leaf.Raw)
	}
	indexes := func() int { return s.engine.arrays.Len() }
	for range 100 {
		serve()
	}
	require.Equal(t, 1, indexes())
	fresh = true
	for range 1000 {
		serve()
	}
	require.Eventually(t, func() bool {
		runtime.GC()
		return indexes() == 1
	}, 10*time.Second, 10*time.Millisecond)
	runtime.KeepAlive(shared)
	shared = nil
	require.Eventually(t, func() bool {
		runtime.GC()
		return indexes() == 0
	}, 10*time.Second, 10*time.Millisecond)
	require.Len(t, slices.Collect(s.Certificates()), 1)
	runtime.KeepAlive(config)
}

func TestNoHandshakeWaitsForTheEngine(t *testing.T) {
	w := newWorld(t)
	for name, cert := range map[string]tls.Certificate{
		"stapled":                 w.leaf(),
		"that names no responder": w.leaf(func(o *stapletest.LeafOptions) { o.Responders = []string{} }),
	} {
		for how, base := range map[string]*tls.Config{
			"by a callback": {GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }},
			"of the base":   {Certificates: []tls.Certificate{cert}},
		} {
			t.Run("a certificate "+name+" "+how, func(t *testing.T) {
				s := w.stapler()
				config := s.TLSConfig(base)
				hello := helloOf(t, w.client("www.example.com"))
				_, err := config.GetCertificate(hello)
				require.NoError(t, err)
				_ = s.Wait(soon(t))
				s.engine.mu.Lock()
				defer s.engine.mu.Unlock()
				_, err = config.GetCertificate(hello) // or this is a deadlock
				require.NoError(t, err)
			})
		}
	}
}

func TestAddAndRemoveUnderLoad(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	cert := w.leaf()
	w.add(s, cert)
	config := s.TLSConfig(nil)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				c, err := s.Add(cert)
				require.NoError(t, err)
				require.NotEmpty(t, c.TLS().OCSPStaple)
				c.Remove()
			}
		})
		wg.Go(func() {
			for ctx.Err() == nil {
				got, err := config.GetCertificate(&tls.ClientHelloInfo{ServerName: "www.example.com"})
				require.NoError(t, err)
				require.NotEmpty(t, got.OCSPStaple)
				for c := range s.Certificates() {
					c.Status()
				}
			}
		})
	}
	wg.Wait()
	require.Len(t, w.responder.Requests(nil), 1)
}

func TestGoroutinesDoNotGrowWithCertificates(t *testing.T) {
	w := newWorld(t)
	s := w.stapler(func(s *Stapler) {
		s.OnEvent = nil
		s.Fetcher = FetcherFunc(func(context.Context, *Request) ([]byte, error) { return nil, ErrNoResponder })
	})
	leaf := distinctLeaves(w)
	before := runtime.NumGoroutine()
	for range 2000 {
		_, err := s.Add(tls.Certificate{Certificate: [][]byte{leaf(), w.ca.Issuer.Raw}})
		require.NoError(t, err)
	}
	require.NoError(t, s.Wait(soon(t)))
	for ctx := soon(t); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		require.NoError(t, ctx.Err(), "%d goroutines more", runtime.NumGoroutine()-before)
	}
}

// distinctLeaves returns a function that returns the DER of a leaf that is like no other.
func distinctLeaves(w *world) func() []byte {
	const serial = "\x11\x22\x33\x44\x55\x66\x77\x88"
	template := &x509.Certificate{SerialNumber: new(big.Int).SetBytes([]byte(serial)), DNSNames: []string{"www.example.com"}, OCSPServer: []string{responderURL},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, w.ca.Issuer, w.leaf().Leaf.PublicKey, w.ca.Key)
	require.NoError(w.t, err)
	at := strings.Index(string(der), serial)
	n := uint64(0)
	return func() []byte {
		n++
		der := slices.Clone(der)
		binary.BigEndian.PutUint32(der[at+4:], uint32(n))
		return der
	}
}

func TestAMillionCertificatesThroughACallbackLeaveMemoryBounded(t *testing.T) {
	total, inASecond := 30000, 500
	if exhaustive.Enabled() {
		total = 1000000
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.stapler(func(s *Stapler) {
			s.OnEvent = nil
			s.Fetcher = FetcherFunc(func(context.Context, *Request) ([]byte, error) { return nil, ErrNoResponder })
		})
		leaf := distinctLeaves(w)
		config := s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: [][]byte{leaf(), w.ca.Issuer.Raw}}, nil
		}})
		var hello tls.ClientHelloInfo
		for i := range total {
			cert, err := config.GetCertificate(&hello)
			require.NoError(t, err)
			require.NotNil(t, cert)
			if i%inASecond == inASecond-1 {
				time.Sleep(time.Second)
			}
		}
		synctest.Wait()
		g := s.engine
		g.mu.Lock()
		defer g.mu.Unlock()
		want := min(total*seen.MostNew/inASecond, seen.Most)
		require.Len(t, g.entries, want)
		require.Equal(t, want, g.seen.Len())
		runtime.KeepAlive(config)
	})
}
