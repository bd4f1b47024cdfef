package whole

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"math/big"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/exhaustive"
	"github.com/go-staple/staple/internal/world"
	"github.com/stretchr/testify/require"
)

func TestGoroutinesDoNotGrowWithCertificates(t *testing.T) {
	w := world.New(t)
	s := w.Stapler(func(s *staple.Stapler) {
		s.OnEvent = nil
		s.Fetcher = staple.FetcherFunc(func(context.Context, *staple.Request) ([]byte, error) { return nil, staple.ErrNoResponder })
	})
	leaf := distinctLeaves(w)
	before := runtime.NumGoroutine()
	for range 2000 {
		_, err := s.Add(tls.Certificate{Certificate: [][]byte{leaf(), w.CA.Issuer.Raw}})
		require.NoError(t, err)
	}
	require.NoError(t, s.Wait(world.Soon(t)))
	for ctx := world.Soon(t); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		require.NoError(t, ctx.Err(), "%d goroutines more", runtime.NumGoroutine()-before)
	}
}

// distinctLeaves returns a function that returns the DER of a leaf that is like no other.
func distinctLeaves(w *world.World) func() []byte {
	const serial = "\x11\x22\x33\x44\x55\x66\x77\x88"
	template := &x509.Certificate{SerialNumber: new(big.Int).SetBytes([]byte(serial)), DNSNames: []string{"www.example.com"}, OCSPServer: []string{world.ResponderURL},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, w.CA.Issuer, w.Leaf().Leaf.PublicKey, w.CA.Key)
	require.NoError(w.T, err)
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
	const mostNew, most = 100, 131072 // in a second, and in all, as TLSConfig says
	total, inASecond := 30000, 500
	if exhaustive.Enabled() {
		total = 1000000
	}
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler(func(s *staple.Stapler) {
			s.OnEvent = nil
			s.Fetcher = staple.FetcherFunc(func(context.Context, *staple.Request) ([]byte, error) { return nil, staple.ErrNoResponder })
		})
		leaf := distinctLeaves(w)
		came := make([]weak.Pointer[byte], 0, total)
		config := s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			der := leaf()
			came = append(came, weak.Make(&der[0]))
			return &tls.Certificate{Certificate: [][]byte{der, w.CA.Issuer.Raw}}, nil
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
		want := min(total*mostNew/inASecond, most)
		require.Equal(t, want, len(slices.Collect(s.Certificates())))
		time.Sleep(time.Minute) // the runtime keeps some stopped timers, of contexts, until their time has come
		synctest.Wait()
		runtime.GC()
		kept := 0
		for _, der := range came {
			if der.Value() != nil {
				kept++
			}
		}
		require.Equal(t, want, kept, "nothing else leads to a certificate that came")
		runtime.KeepAlive(config)
	})
}
