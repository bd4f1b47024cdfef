package whole

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestARestartedCheckerHeedsTheCacheBeforeAnOldStaple(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cache := staple.NewMemoryCache()
		with := func(s *staple.Stapler) { s.Cache = cache }
		cert := w.Leaf(world.LongLived)
		w.Responder.Set(nil, stapletest.Answer{Validity: 7 * world.Day})
		old := w.Responder.Response(cert.Leaf) // kept by the thief
		time.Sleep(time.Hour)
		w.Responder.Set(cert.Leaf, stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise, Validity: 7 * world.Day})
		first := w.Stapler(with)
		require.ErrorIs(t, (&staple.Checker{Stapler: first}).VerifyConnection(arrival(w, cert)), staple.ErrRevoked)
		require.NoError(t, first.Close())
		before, _ := cache.Get(t.Context(), world.CacheKey(cert.Leaf))

		checker := &staple.Checker{Stapler: w.Stapler(with)}
		err := checker.VerifyConnection(arrival(w, cert, stapled(old)))
		time.Sleep(time.Second)
		synctest.Wait()
		after, _ := cache.Get(t.Context(), world.CacheKey(cert.Leaf))
		n := 0
		for range 48 {
			if checker.VerifyConnection(arrival(w, cert)) == nil {
				n++
			}
			time.Sleep(time.Hour)
		}
		require.ErrorIs(t, err, staple.ErrRevoked)
		require.Equal(t, before, after)
		require.Zero(t, n)
	})
}

func TestAPeerWhoseMessageIsLargeTakesNoMoreMemory(t *testing.T) {
	for _, junk := range []int{0, 4} {
		memory(t, junk)
	}
}

func memory(t *testing.T, junkN int) {
	w := world.New(t)
	key, _ := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), Subject: pkix.Name{CommonName: "junk"},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: make([]byte, 55000)}}}
	junk, err := x509.CreateCertificate(crand.Reader, tmpl, tmpl, &key.PublicKey, key)
	require.NoError(t, err)
	var junks [][]byte
	for range junkN {
		junks = append(junks, junk)
	}
	checker := &staple.Checker{Stapler: w.Stapler(func(s *staple.Stapler) { s.OnEvent = nil })}
	server := &tls.Config{Certificates: []tls.Certificate{w.Leaf()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.CA.Roots(),
		VerifyConnection: checker.VerifyConnection, SessionTicketsDisabled: true}
	certs := w.Many(101)
	come := func(cert tls.Certificate) {
		cert.Certificate = append(append([][]byte{}, cert.Certificate...), junks...)
		cert.PrivateKey = key // not its own: nothing is proved
		a, b := net.Pipe()
		go func() {
			c := tls.Client(b, &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }})
			c.Handshake()
			c.Read(make([]byte, 1))
			b.Close()
		}()
		s := tls.Server(a, server)
		err := s.Handshake()
		if err == nil {
			t.Error("no error?")
		}
		a.Close()
	}
	heap := func() uint64 {
		var m runtime.MemStats
		for range 3 {
			runtime.GC()
			time.Sleep(50 * time.Millisecond)
		}
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	come(certs[0])
	before := heap()
	for _, c := range certs[1:] {
		come(c)
	}
	each := (int64(heap()) - int64(before)) / 100
	n := 0
	for range checker.Stapler.Peers() {
		n++
	}
	require.Equal(t, 102, n, "the intermediate as well")
	require.Less(t, each, int64(20000))
	runtime.KeepAlive(certs)
}

func TestAServedLeafWithoutIssuerIsAskedAboutOnceAPeerBringsTheIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler()
		cert := w.Leaf()
		bare := cert
		bare.Certificate = bare.Certificate[:1]
		c, err := s.Add(bare)
		require.NoError(t, err)
		require.ErrorIs(t, c.Wait(world.Soon(t)), staple.ErrNoIssuer)
		checker := &staple.Checker{Stapler: s, LeafOnly: true}
		w.Responder.Set(cert.Leaf, stapletest.Answer{Status: ocsp.Revoked})
		for range 3 {
			err = checker.VerifyConnection(arrival(w, cert))
			time.Sleep(time.Hour)
		}
		failOpen := (&staple.Checker{Stapler: s, LeafOnly: true, FailOpen: true}).VerifyConnection(arrival(w, cert))
		require.ErrorIs(t, failOpen, staple.ErrRevoked)
		require.ErrorIs(t, err, staple.ErrRevoked)
	})
}

func TestPeersThatAreForgottenWhileTheyCome(t *testing.T) {
	w := world.New(t)
	s := w.Stapler()
	cert := w.Leaf()
	_, err := s.Add(cert)
	require.NoError(t, err)
	checker := &staple.Checker{Stapler: s, LeafOnly: true}
	end := time.Now().Add(500 * time.Millisecond)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for time.Now().Before(end) {
				checker.VerifyConnection(arrival(w, cert))
			}
		})
	}
	all.Go(func() {
		for time.Now().Before(end) {
			for p := range s.Peers() {
				p.Remove()
			}
		}
	})
	all.Wait()
}

func TestAPeerThatIsForgottenWhileItComesIsRemembered(t *testing.T) {
	w := world.New(t)
	s := w.Stapler()
	checker := &staple.Checker{Stapler: s, LeafOnly: true}
	for i := range 60 {
		cert := w.Leaf()
		var all sync.WaitGroup
		end := time.Now().Add(15 * time.Millisecond)
		for range 8 {
			all.Go(func() {
				for time.Now().Before(end) {
					checker.VerifyConnection(arrival(w, cert))
				}
			})
		}
		all.Go(func() {
			for time.Now().Before(end) {
				for p := range s.Peers() {
					p.Remove()
				}
			}
		})
		all.Wait()
		for range 2 {
			err := checker.VerifyConnection(arrival(w, cert))
			if err != nil {
				t.Fatal("after", i, ":", err, requests(w, cert))
			}
		}
	}
}

func TestMustStapleInAResumedSessionOfTLS12(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		cert := w.Leaf(world.MustStaple, func(o *stapletest.LeafOptions) {
			o.Template = func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
		})
		checker := &staple.Checker{Stapler: w.Stapler(), FailOpen: true, LeafOnly: true}
		require.Error(t, checker.VerifyConnection(arrival(w, cert, inTLS12)))
		require.Error(t, checker.VerifyConnection(arrival(w, cert, inTLS12, resumed)))
	})
}

func TestNobodyWaitsForAnswersThatMakeNoDifference(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		other := stapletest.NewCA(stapletest.CAOptions{})
		cross := other.Leaf(stapletest.LeafOptions{CommonName: "x", Responders: []string{"http://hangs.example"}, Template: func(c *x509.Certificate) {
			c.RawSubject, c.IsCA, c.BasicConstraintsValid, c.KeyUsage = w.CA.Issuer.RawSubject, true, true, x509.KeyUsageCertSign
		}, Key: w.CA.Key}).Leaf
		hangs := func(s *staple.Stapler) {
			ours := s.Fetcher
			s.Fetcher = staple.FetcherFunc(func(ctx context.Context, req *staple.Request) ([]byte, error) {
				if req.Leaf.Equal(cross) {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				return ours.Fetch(ctx, req)
			})
		}
		cert, bad := w.Leaf(), w.Leaf()
		chains := func(cs *tls.ConnectionState) {
			cs.VerifiedChains = [][]*x509.Certificate{{cert.Leaf, cross, other.Root}, {cert.Leaf, w.CA.Issuer, w.CA.Root}}
		}
		checker := &staple.Checker{Stapler: w.Stapler(hangs)}
		require.Zero(t, took(func() { require.NoError(t, checker.VerifyConnection(arrival(w, cert, chains))) }), "the other chain hangs")
		w.Responder.Set(bad.Leaf, stapletest.Answer{Status: ocsp.Revoked})
		checker = &staple.Checker{Stapler: w.Stapler(hangs)}
		d := took(func() {
			require.ErrorIs(t, checker.VerifyConnection(arrival(w, bad, func(cs *tls.ConnectionState) {
				cs.VerifiedChains = [][]*x509.Certificate{{bad.Leaf, cross, other.Root}}
			})), staple.ErrRevoked)
		})
		require.Less(t, d, time.Second)
	})
}

func TestAHoldThatIsReplayedDoesNotLastLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf(world.LongLived)
		w.Responder.Set(nil, stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.CertificateHold, Validity: 7 * world.Day})
		hold := w.Responder.Response(cert.Leaf)
		time.Sleep(world.Day)
		w.Responder.Set(nil, stapletest.Answer{Validity: 7 * world.Day}) // lifted
		checker := &staple.Checker{Stapler: w.Stapler(), LeafOnly: true}
		require.ErrorIs(t, checker.VerifyConnection(arrival(w, cert, stapled(hold))), staple.ErrRevoked)
		start := time.Now()
		for checker.VerifyConnection(arrival(w, cert)) != nil {
			time.Sleep(time.Minute)
		}
		require.Less(t, time.Since(start), 5*time.Minute)
	})
}

func TestAnOutageIsNoEventForEachConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		var j world.Journal
		checker := &staple.Checker{Stapler: w.Stapler(), LeafOnly: true, OnEvent: j.Note}
		checker.VerifyConnection(arrival(w, w.Leaf()))
		cert := w.Leaf()
		for range 1000 {
			require.Error(t, checker.VerifyConnection(arrival(w, cert)))
		}
		synctest.Wait()
		require.Less(t, len(j.Events()), 100)
	})
}

func TestStrangersWhoHaveLeftHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Delay: 50 * time.Millisecond})
		checker := &staple.Checker{Stapler: w.Stapler(), LeafOnly: true, Timeout: time.Second}
		for _, c := range w.Many(3000) {
			go checker.VerifyConnection(arrival(w, c))
		}
		time.Sleep(2 * time.Second) // all of them have left
		synctest.Wait()
		start := time.Now()
		cert := w.Leaf()
		for checker.VerifyConnection(arrival(w, cert)) != nil {
			time.Sleep(time.Millisecond)
		}
		require.Less(t, time.Since(start), time.Second)
	})
}

func TestARevokedOneThatWasServedStaysAsAPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler()
		cert := w.Leaf(world.LongLived)
		w.Responder.Set(nil, stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise})
		c, err := s.Add(cert)
		require.NoError(t, err)
		require.ErrorIs(t, c.Wait(world.Soon(t)), staple.ErrRevoked)
		checker := &staple.Checker{Stapler: s, LeafOnly: true, FailOpen: true}
		require.ErrorIs(t, checker.VerifyConnection(arrival(w, cert)), staple.ErrRevoked)
		c.Remove()
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		time.Sleep(25 * time.Hour)
		require.ErrorIs(t, checker.VerifyConnection(arrival(w, cert)), staple.ErrRevoked)
	})
}

func TestAClockThatWasForwardForgetsNoRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := world.SetClock(t)
		w := world.New(t)
		cache := staple.NewMemoryCache()
		s := w.Stapler(func(s *staple.Stapler) { s.Cache = cache })
		cert := w.Leaf(func(o *stapletest.LeafOptions) { o.NotAfter = time.Now().Add(40 * world.Day) })
		w.Responder.Set(nil, stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise})
		checker := &staple.Checker{Stapler: s, LeafOnly: true, FailOpen: true}
		require.ErrorIs(t, checker.VerifyConnection(arrival(w, cert)), staple.ErrRevoked)
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		set(50 * world.Day)
		time.Sleep(time.Minute)
		set(0)
		time.Sleep(time.Minute)
		_, err := cache.Get(t.Context(), world.CacheKey(cert.Leaf))
		require.NoError(t, err)
		require.ErrorIs(t, checker.VerifyConnection(arrival(w, cert)), staple.ErrRevoked)
	})
}

func TestAnOldStapleDoesNotSaveFromBeingAskedAbout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf(world.LongLived)
		w.Responder.Set(nil, stapletest.Answer{Validity: 20 * time.Hour, Delay: time.Second})
		old := w.Responder.Response(cert.Leaf)
		checker := &staple.Checker{Stapler: w.Stapler()}
		require.NoError(t, checker.VerifyConnection(arrival(w, cert)))
		time.Sleep(12 * time.Hour)
		w.Responder.Set(nil, stapletest.Answer{Status: ocsp.Revoked, Validity: 20 * time.Hour, Delay: time.Second})
		require.ErrorIs(t, checker.VerifyConnection(arrival(w, cert, stapled(old))), staple.ErrRevoked)
	})
}

func TestAClockThatWasForwardLetsNobodyPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := world.SetClock(t)
		w := world.New(t)
		s := w.Stapler()
		cert := w.Leaf(func(o *stapletest.LeafOptions) { o.NotAfter = time.Now().Add(40 * world.Day) })
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		_, err := s.Add(cert)
		require.NoError(t, err)
		checker := &staple.Checker{Stapler: s, LeafOnly: true}
		require.ErrorIs(t, checker.VerifyConnection(arrival(w, cert)), staple.ErrUnanswered)
		set(50 * world.Day)
		time.Sleep(time.Minute)
		set(0)
		passed := 0
		for range 3600 {
			if checker.VerifyConnection(arrival(w, cert)) == nil {
				passed++
			}
			time.Sleep(time.Second)
		}
		require.Zero(t, passed)
	})
}

func TestMaxResponseAgeBelowAMicrosecondIsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf()
		s := w.Stapler()
		checker := &staple.Checker{Stapler: s, LeafOnly: true, MaxResponseAge: 500 * time.Nanosecond}
		w.Responder.Set(nil, stapletest.Answer{Age: time.Hour})
		require.Error(t, checker.VerifyConnection(arrival(w, cert)))
	})
}
