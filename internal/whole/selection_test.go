package whole

import (
	"crypto"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

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
	synctest.Test(t, func(t *testing.T) {
		setClock := world.SetClock(t)
		w := world.New(t)
		s := w.Stapler()
		asked := func() {}
		cert := w.Leaf()
		cert.PrivateKey = remoteKey{cert.PrivateKey.(crypto.Signer), func() { asked() }}
		config := s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert, w.Leaf(func(o *stapletest.LeafOptions) { o.KeyType = stapletest.RSA2048 })}})
		require.NoError(t, s.Wait(world.Soon(t)))
		client := w.Client("www.example.com")
		client.MaxVersion = tls.VersionTLS12 // so that crypto/tls is asked, and asks for the key
		hello := world.Hello(t, client)
		c := slices.Collect(s.Certificates())[0]
		got, err := config.GetCertificate(hello)
		require.NoError(t, err)
		require.NotEmpty(t, got.OCSPStaple)
		require.Equal(t, c.Response(), got.OCSPStaple)

		ended := time.Until(c.Status().Expires) + time.Second // later, Status would notice
		n := 0
		asked = func() { n++; setClock(ended) }
		got, err = config.GetCertificate(hello)
		require.NoError(t, err)
		require.Equal(t, cert.Certificate, got.Certificate)
		require.Empty(t, got.OCSPStaple)
		require.Equal(t, 2, n, "crypto/tls asks twice for the key of a candidate, and is asked about it once")
	})
}

func TestSelectionDoesNotAllocate(t *testing.T) {
	w := world.New(t)
	s := w.Stapler()
	key := w.Leaf().PrivateKey
	certs := []tls.Certificate{
		w.Leaf(world.Names("first.example.com"), world.SameKey(key)),
		w.Leaf(world.Names("www.example.com", "*.wild.example.com"), func(o *stapletest.LeafOptions) { o.KeyType = stapletest.RSA2048 }),
		w.Leaf(world.Names("www.example.com", "*.wild.example.com", "192.0.2.1"), world.SameKey(key)),
	}
	for _, cert := range certs {
		w.Add(s, cert)
	}
	for _, tt := range []struct {
		name string
		base *tls.Config
	}{
		{"one certificate", &tls.Config{Certificates: certs[2:]}},
		{"names alone", &tls.Config{Certificates: []tls.Certificate{certs[0], w.Leaf(world.SameKey(key))}}},
		{"names, wildcards and kinds of keys", &tls.Config{Certificates: certs}},
		{"what was added", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := s.TLSConfig(tt.base)
			require.NoError(t, s.Wait(world.Soon(t)))
			for _, name := range []string{"www.example.com", "first.example.com", "WWW.example.com", "x.wild.example.com", "192.0.2.1", "nobody.example.com", ""} {
				hello := world.Hello(t, w.Client("www.example.com"))
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
	w := world.New(t)
	s := w.Stapler()
	key := w.Leaf().PrivateKey
	w.Add(s, w.Leaf(world.Names("stays.example.com"), world.SameKey(key)))
	config := s.TLSConfig(nil)
	hello := world.Hello(t, w.Client("stays.example.com"))
	var coming, serving sync.WaitGroup
	var done atomic.Bool
	for i := range 4 {
		own := w.Leaf(world.Names(fmt.Sprintf("n%d.example.com", i), fmt.Sprintf("*.n%d.example.com", i), "shared.example.com"), world.SameKey(key))
		coming.Go(func() {
			for range 1000 {
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
		serving.Go(func() {
			for !done.Load() {
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
	coming.Wait()
	done.Store(true)
	serving.Wait()
	require.Len(t, slices.Collect(s.Certificates()), 1)
}

func TestARenewedCertificateTakesOverWithoutAHandshakeUnstapled(t *testing.T) {
	w := world.New(t)
	s := w.Stapler()
	current := w.Add(s, w.Leaf())
	config := s.TLSConfig(nil)
	client := w.Client("www.example.com")
	for range 5 {
		next := w.Add(s, w.Leaf())
		got, _, err := world.Connect(t, config, client)
		require.NoError(t, err)
		require.Equal(t, current.Status().Leaf.Raw, got.PeerCertificates[0].Raw, "the older of two is served")
		require.NotEmpty(t, got.OCSPResponse)
		current.Remove()
		got, _, err = world.Connect(t, config, client)
		require.NoError(t, err)
		require.Equal(t, next.Status().Leaf.Raw, got.PeerCertificates[0].Raw)
		require.NotEmpty(t, got.OCSPResponse)
		current = next
	}
	require.Len(t, slices.Collect(s.Certificates()), 1)
}
