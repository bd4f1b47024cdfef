package whole

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// TestAHungHostCostsOthersNothing has a thousand certificates, half of them at a host
// that never answers.
func TestAHungHostCostsOthersNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler()
		key := w.Leaf().PrivateKey
		var certs []tls.Certificate
		var live []*staple.Certificate
		for i := range 1000 {
			url := "http://dead.example"
			if i%2 == 1 {
				url = "http://live.example"
			}
			cert := w.Leaf(world.Names(fmt.Sprint(i, ".example.com")), world.SameKey(key), world.Responders(url))
			if i%2 == 0 {
				w.Responder.Set(cert.Leaf, stapletest.Answer{Hang: true})
			} else {
				w.Responder.Set(cert.Leaf, stapletest.Answer{Delay: 20 * time.Millisecond})
			}
			certs = append(certs, cert)
		}
		config := s.TLSConfig(&tls.Config{Certificates: certs})
		start := time.Now()
		for c := range s.Certificates() {
			if c.Status().Leaf.OCSPServer[0] == "http://live.example" {
				require.NoError(t, c.Wait(t.Context()))
				live = append(live, c)
			}
		}
		require.Len(t, live, 500)
		require.Less(t, time.Since(start), 2*time.Second) // 500 at 8 workers and 20 ms: 1.25 s
		time.Sleep(8 * world.Day)
		for _, c := range live {
			world.RequireStaple(t, c, ocsp.Good)
		}
		require.NotContains(t, w.Log.Kinds(), staple.EventExpiring)
		runtime.KeepAlive(config)
	})
}

func TestOneHostAloneMayHaveAllWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Delay: time.Second})
		s := w.Stapler(func(s *staple.Stapler) { s.Concurrency = 10 })
		key := w.Leaf().PrivateKey
		for i := range 100 {
			_, err := s.Add(w.Leaf(world.Names(fmt.Sprint(i, ".example.com")), world.SameKey(key)))
			require.NoError(t, err)
		}
		start := time.Now()
		require.NoError(t, s.Wait(t.Context()))
		require.Equal(t, 10*time.Second, time.Since(start))
	})
}

func TestHostsThatNeverAnswerDoNotStarveACertificateThatHasAStaple(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler(func(s *staple.Stapler) { s.Concurrency = 1 })
		w.Responder.Set(nil, stapletest.Answer{Validity: 3 * time.Hour})
		good := w.Leaf()
		c := w.Add(s, good)
		for i := range 60 {
			dead := w.Leaf(world.SameKey(good.PrivateKey), func(o *stapletest.LeafOptions) {
				o.Responders = []string{fmt.Sprint("http://dead", i, ".example")}
			})
			w.Responder.Set(dead.Leaf, stapletest.Answer{Hang: true})
			_, err := s.Add(dead)
			require.NoError(t, err)
		}
		for range 5 * 6 {
			time.Sleep(10 * time.Minute)
			require.NotEmpty(t, c.TLS().OCSPStaple)
		}
		synctest.Wait()
		require.NotContains(t, w.Log.Kinds(), staple.EventExpiring)
	})
}

func TestCertificatesThatLeaveDoNotPileUpBehindAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 503, Header: http.Header{"Retry-After": {"3600"}}})
		s := w.Stapler(func(s *staple.Stapler) { s.OnEvent = nil }) // events have the certificates
		_, err := s.Add(w.Leaf())
		require.NoError(t, err)
		time.Sleep(time.Second)
		other := w.Leaf()
		other.Leaf = nil // so that it is parsed anew each time
		var leaves []weak.Pointer[x509.Certificate]
		for range 1000 {
			c, err := s.Add(other)
			require.NoError(t, err)
			leaves = append(leaves, weak.Make(c.Status().Leaf))
			time.Sleep(time.Millisecond)
			c.Remove()
		}
		runtime.GC()
		waiting := 0
		for _, leaf := range leaves {
			if leaf.Value() != nil {
				waiting++
			}
		}
		require.LessOrEqual(t, waiting, 10)
		require.NoError(t, s.Close())
	})
}

func TestFirstStaplesComeBeforeThoseNearTheirEndAndThoseBeforeRoutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler(func(s *staple.Stapler) { s.Concurrency = 1 })
		add := func(name string, answer stapletest.Answer) *staple.Certificate {
			cert := w.Leaf(world.Names(name))
			w.Responder.Set(cert.Leaf, answer)
			c := w.Add(s, cert)
			synctest.Wait()
			w.Responder.Set(cert.Leaf, stapletest.Answer{})
			return c
		}
		// Both are due after half a minute, the one with half of its life before it first.
		old := w.Leaf(world.Names("urgent"))
		w.Responder.Set(old.Leaf, stapletest.Answer{Validity: 7 * 71 * time.Second, Age: 6 * 71 * time.Second})
		old.OCSPStaple = w.Responder.Response(old.Leaf) // which has not come just now, as far as anybody knows
		w.Responder.Set(old.Leaf, stapletest.Answer{Replay: old.OCSPStaple})
		urgent := w.Add(s, old)
		routine := add("routine", stapletest.Answer{Validity: 58 * time.Second})
		blocker := add("blocker", stapletest.Answer{})
		w.Responder.Set(old.Leaf, stapletest.Answer{})
		start := time.Now()
		require.Greater(t, routine.Status().NextRefresh, start.Add(26*time.Second))
		require.Greater(t, urgent.Status().NextRefresh, routine.Status().NextRefresh)
		require.Less(t, urgent.Status().NextRefresh, start.Add(35600*time.Millisecond))
		w.Log.Clear()
		time.Sleep(26 * time.Second)
		w.Responder.Set(blocker.Status().Leaf, stapletest.Answer{Delay: 9800 * time.Millisecond})
		go blocker.Refresh(t.Context())
		time.Sleep(9600 * time.Millisecond)
		_, err := s.Add(w.Leaf(world.Names("first")))
		require.NoError(t, err)
		time.Sleep(time.Minute)
		synctest.Wait()
		var order []string
		for _, e := range w.Log.Events() {
			order = append(order, e.Status.Leaf.DNSNames[0])
		}
		require.Equal(t, []string{"blocker", "first", "urgent", "routine"}, order)
	})
}
