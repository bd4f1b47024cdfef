package whole

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestWhatListensAtAnotherPortHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler(func(s *staple.Stapler) {
			s.Fetcher = &staple.HTTPFetcher{Client: &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
				if r.URL.Scheme == "https" {
					return nil, errors.New("connection refused")
				}
				return w.Responder.RoundTrip(r)
			})}}
		})
		key := w.Leaf().PrivateKey
		for i := range 200 {
			_, err := s.Add(w.Leaf(world.Names(fmt.Sprint(i, ".example.net")), world.SameKey(key), world.Responders("https://ocsp.example")))
			require.NoError(t, err)
		}
		time.Sleep(time.Minute)
		began := time.Now()
		w.Add(s, w.Leaf())
		require.Less(t, time.Since(began), time.Second)
	})
}

// impostor returns a CA that has everything in common with ca but its key.
func impostor(t *testing.T, ca *stapletest.CA) *stapletest.CA {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), RawSubject: ca.Issuer.RawSubject, SubjectKeyId: ca.Issuer.SubjectKeyId,
		NotBefore: ca.Issuer.NotBefore, NotAfter: ca.Issuer.NotAfter, IsCA: true, BasicConstraintsValid: true,
	}, ca.Root, key.Public(), ca.RootKey) // whoever signed it does not matter
	require.NoError(t, err)
	issuer, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &stapletest.CA{Root: ca.Root, RootKey: ca.RootKey, Issuer: issuer, Key: key}
}

func TestCertificatesInTheNameOfACADoNotMakeItPause(t *testing.T) {
	for _, configured := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := world.New(t)
			s := w.Stapler(func(s *staple.Stapler) {
				if configured {
					s.Issuers = []*x509.Certificate{nil, w.CA.Issuer}
				}
			})
			key := w.Leaf().PrivateKey
			other := impostor(t, w.CA)
			for i := range 300 {
				leaf := other.Leaf(stapletest.LeafOptions{Names: []string{fmt.Sprint(i, ".example.net")},
					Responders: []string{world.ResponderURL}, Key: key.(crypto.Signer)})
				require.Equal(t, w.CA.Issuer.RawSubject, leaf.Leaf.RawIssuer)
				require.Equal(t, w.CA.Issuer.SubjectKeyId, leaf.Leaf.AuthorityKeyId)
				chain := [][]byte{leaf.Certificate[0], other.Issuer.Raw, w.CA.Issuer.Raw}
				if !configured { // it claims that another one is its issuer than is
					chain[1], chain[2] = chain[2], chain[1]
				}
				leaf.Certificate = chain
				_, err := s.Add(leaf)
				require.NoError(t, err)
			}
			time.Sleep(5 * time.Second)
			for _, edit := range []func(*stapletest.LeafOptions){world.LongLived, func(o *stapletest.LeafOptions) { o.OmitIssuer = configured }} {
				began := time.Now()
				w.Add(s, w.Leaf(edit))
				require.Less(t, time.Since(began), time.Second)
			}
		})
	}
}

// An issuersCounter counts how often it is asked for an issuer.
type issuersCounter struct {
	staple.Fetcher
	asked atomic.Int32
}

func (f *issuersCounter) FetchIssuer(ctx context.Context, leaf *x509.Certificate) ([]*x509.Certificate, error) {
	f.asked.Add(1)
	return nil, context.DeadlineExceeded
}

func TestWhileItsResponderPausesNobodyIsAskedForAnIssuerEither(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 503, Header: http.Header{"Retry-After": {"3600"}}})
		var issuers *issuersCounter
		s := w.Stapler(func(s *staple.Stapler) {
			issuers = &issuersCounter{Fetcher: s.Fetcher}
			s.Fetcher, s.Cache = issuers, staple.NewMemoryCache()
		})
		_, err := s.Add(w.Leaf())
		require.NoError(t, err)
		time.Sleep(time.Second)
		bare, err := s.Add(w.Leaf(func(o *stapletest.LeafOptions) { o.OmitIssuer = true }))
		require.NoError(t, err)
		require.NoError(t, s.Wait(world.Soon(t)))
		time.Sleep(50 * time.Minute)
		require.Zero(t, issuers.asked.Load())
		require.Error(t, bare.Status().Err)
		time.Sleep(20 * time.Minute)
		require.NotZero(t, issuers.asked.Load())
	})
}
