package whole

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// A tower is a chain of several intermediates, each with a responder of its own.
func tower(t *testing.T, height int, answer stapletest.Answer) (chain []*x509.Certificate, s *staple.Stapler, asked *atomic.Int64) {
	root := stapletest.NewCA(stapletest.CAOptions{})
	above := root
	chain = []*x509.Certificate{root.Root}
	asked = new(atomic.Int64)
	fetchers := make(map[string]staple.Fetcher)
	for i := range height {
		responder := stapletest.NewResponder(above)
		responder.Set(nil, answer)
		made := above.Leaf(stapletest.LeafOptions{CommonName: fmt.Sprint("level ", i), Responders: []string{fmt.Sprintf("http://ocsp%d.example", i)},
			Template: func(c *x509.Certificate) {
				c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
			}})
		fetchers[made.Leaf.Subject.CommonName] = &staple.HTTPFetcher{Client: responder.Client()}
		next := *above
		next.Issuer, next.Key = made.Leaf, made.PrivateKey.(crypto.Signer)
		above = &next
		chain = append([]*x509.Certificate{made.Leaf}, chain...)
	}
	w := world.New(t)
	s = w.Stapler(func(s *staple.Stapler) {
		s.Fetcher = staple.FetcherFunc(func(ctx context.Context, req *staple.Request) ([]byte, error) {
			asked.Add(1)
			return fetchers[req.Leaf.Subject.CommonName].Fetch(ctx, req)
		})
	})
	return chain, s, asked
}

func TestTheCertificatesOfAChainAreAskedAboutSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain, s, asked := tower(t, 4, stapletest.Answer{Delay: 2 * time.Second})
		checker := &staple.Checker{Stapler: s}
		require.Equal(t, 2*time.Second, took(func() { require.NoError(t, checker.Check(t.Context(), chain)) }))
		require.Equal(t, int64(4), asked.Load())
	})
}

func TestTimeoutIsForAllCertificatesTogether(t *testing.T) {
	for _, timeout := range []time.Duration{0, 500 * time.Millisecond, 7 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			chain, s, _ := tower(t, 4, stapletest.Answer{Hang: true})
			checker := &staple.Checker{Stapler: s, Timeout: timeout}
			want := timeout
			if want == 0 {
				want = 3 * time.Second
			}
			require.Equal(t, want, took(func() { require.ErrorIs(t, checker.Check(t.Context(), chain), staple.ErrUnanswered) }))
		})
	}
}

func TestWhereOnlyOlderAnswersComeThePeerIsUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf(world.LongLived)
		w.Responder.Set(nil, stapletest.Answer{Age: 3 * time.Hour, Validity: world.Day})
		s := w.Stapler()
		strict := &staple.Checker{Stapler: s, MaxResponseAge: time.Hour}
		err := strict.VerifyConnection(arrival(w, cert))
		require.ErrorIs(t, err, staple.ErrUnanswered)
		require.ErrorContains(t, err, "MaxResponseAge")
		asked := requests(w, cert)
		require.Zero(t, took(func() { require.ErrorIs(t, strict.VerifyConnection(arrival(w, cert)), staple.ErrUnanswered) }))
		require.LessOrEqual(t, requests(w, cert), asked+2)
		require.NoError(t, (&staple.Checker{Stapler: s, MaxResponseAge: 4 * time.Hour}).VerifyConnection(arrival(w, cert)), "another Checker takes it")
		require.NoError(t, (&staple.Checker{Stapler: s}).VerifyConnection(arrival(w, cert)))

		w.Responder.Set(nil, stapletest.Answer{Validity: world.Day})
		time.Sleep(time.Minute)
		require.NoError(t, strict.VerifyConnection(arrival(w, cert)))
	})
}

func TestEachCheckerOfAStaplerHearsOfItsPeersWhileItIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler()
		var first, second world.Journal
		a := &staple.Checker{Stapler: s, LeafOnly: true, OnEvent: first.Note}
		b := &staple.Checker{Stapler: s, LeafOnly: true, OnEvent: second.Note}
		require.NoError(t, b.VerifyConnection(arrival(w, w.Leaf())))
		require.NoError(t, a.VerifyConnection(arrival(w, w.Leaf())))
		synctest.Wait()
		require.NotEmpty(t, first.Kinds())
		require.Contains(t, second.Kinds(), staple.EventStapled)
		runtime.KeepAlive(a)
		runtime.KeepAlive(b)
	})
}

func TestWhatConnectionsWaitedIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Delay: 2 * time.Second})
		s := w.Stapler()
		checker := &staple.Checker{Stapler: s, LeafOnly: true}
		for range 3 {
			require.NoError(t, checker.VerifyConnection(arrival(w, w.Leaf())))
		}
		cert := w.Leaf()
		for range 3 {
			require.NoError(t, checker.VerifyConnection(arrival(w, cert)))
		}
		require.Equal(t, []staple.CheckStats{{CA: w.CA.Issuer.Subject.String(), Passed: 6, Waited: 4, Waiting: 8 * time.Second}}, s.CheckStats())
	})
}

func TestAClockThatIsSetCostsNoKnownPeerAnything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := world.SetClock(t)
		w := world.New(t)
		good, bad := w.Leaf(world.LongLived), w.Leaf(world.LongLived)
		w.Responder.Set(bad.Leaf, stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise})
		checker := &staple.Checker{Stapler: w.Stapler()}
		for _, offset := range []time.Duration{0, -3 * world.Day, 0, 5 * world.Day, 0} {
			set(offset)
			time.Sleep(31 * time.Second)
			require.ErrorIs(t, checker.VerifyConnection(arrival(w, bad)), staple.ErrRevoked, offset)
			if offset >= 0 { // else what the responder says lies in the future
				require.NoError(t, checker.VerifyConnection(arrival(w, good)), offset)
			}
		}
	})
}
