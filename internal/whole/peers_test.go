package whole

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/race"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestAKnownPeerCostsTwoAllocationsAtMost(t *testing.T) {
	w := world.New(t)
	checker := &staple.Checker{Stapler: w.Stapler()}
	cs := arrival(w, w.Leaf())
	require.NoError(t, checker.VerifyConnection(cs))
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() {
		if checker.VerifyConnection(cs) != nil {
			t.Error("refused")
		}
	}), 2.0)
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() {
		if checker.Check(context.Background(), cs.VerifiedChains[0]) != nil {
			t.Error("refused")
		}
	}), 3.0) // and the list of its one chain
}

func TestAPeerTakesOneKilobyteAtMostBeyondLeafAndResponse(t *testing.T) {
	if race.Enabled {
		t.Skip("the race detector takes memory of its own")
	}
	const many = 20000
	w := world.New(t)
	leaf := distinctLeaves(w)
	response := make([]byte, 300)
	s := w.Stapler(func(s *staple.Stapler) {
		s.OnEvent = nil
		s.Fetcher = staple.FetcherFunc(func(context.Context, *staple.Request) ([]byte, error) { return response, nil })
		s.Verifier = anything{}
	})
	checker := &staple.Checker{Stapler: s}
	parsed := func() *x509.Certificate {
		l, err := x509.ParseCertificate(leaf())
		require.NoError(t, err)
		return l
	}
	heap := func() int {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before := heap()
	leaves := make([]*x509.Certificate, many)
	for i := range leaves {
		leaves[i] = parsed()
	}
	aLeaf := (heap() - before) / many
	runtime.KeepAlive(leaves)
	leaves = nil
	before = heap()
	for range many {
		require.NoError(t, checker.VerifyConnection(arrival(w, tls.Certificate{Leaf: parsed()})))
	}
	each := (heap()-before)/many - aLeaf - len(response) - 100 // a Response
	t.Logf("%d bytes for each", each)
	require.LessOrEqual(t, each, 1024)
	runtime.KeepAlive(checker)
}

// Anything is a Verifier that accepts what comes.
type anything struct{}

func (anything) Verify(der []byte, leaf, issuer *x509.Certificate, now time.Time) (*ocsp.Response, time.Time, error) {
	return &ocsp.Response{Status: ocsp.Good, ThisUpdate: now, Raw: der}, now.Add(time.Hour), nil
}

func TestTheLogHasARevokedPeerOnceForEachRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		bob := w.Leaf()
		var text world.Text
		s := w.Stapler(func(s *staple.Stapler) { s.Logger = text.Logger() })
		checker := &staple.Checker{Stapler: s, MaxResponseAge: 20 * time.Second}
		lines := func(status int, comes int) (said int) {
			w.Responder.Set(bob.Leaf, stapletest.Answer{Status: status, RevocationReason: ocsp.CertificateHold})
			for range comes {
				checker.VerifyConnection(arrival(w, bob))
				time.Sleep(5 * time.Second)
			}
			for _, line := range text.TakeLines(t) {
				if line["event"] == "revoked" && line["level"] == "INFO" {
					said++
				}
			}
			return said
		}
		require.Equal(t, 1, lines(ocsp.Revoked, 50))
		require.Greater(t, len(w.Responder.Requests(bob.Leaf)), 10)
		require.Zero(t, lines(ocsp.Good, 50))
		require.Equal(t, 1, lines(ocsp.Revoked, 50), "again")
	})
}

func TestAResponderThatHangsHoldsUpNoOtherPeerAndNothingServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		hanging := w.Leaf(world.Responders("http://hangs.example"))
		w.Responder.Set(hanging.Leaf, stapletest.Answer{Hang: true})
		s := w.Stapler()
		checker := &staple.Checker{Stapler: s}
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() {
				require.ErrorIs(t, checker.VerifyConnection(arrival(w, hanging)), staple.ErrUnanswered)
			})
		}
		time.Sleep(100 * time.Millisecond)
		for _, cert := range w.Many(50) {
			require.Zero(t, took(func() { require.NoError(t, checker.VerifyConnection(arrival(w, cert))) }))
			c, err := s.Add(w.Leaf())
			require.NoError(t, err)
			require.Zero(t, took(func() { require.NoError(t, c.Wait(world.Soon(t))) }))
		}
		require.NoError(t, s.Wait(world.Soon(t)), "peers do not count")
		require.Less(t, took(all.Wait), 3*time.Second)
	})
}

func TestHostsThatHangLeaveWorkersForWhatIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler()
		checker := &staple.Checker{Stapler: s}
		var all sync.WaitGroup
		for i := range 100 {
			cert := w.Leaf(world.Responders(fmt.Sprintf("http://hangs%d.example", i)))
			w.Responder.Set(cert.Leaf, stapletest.Answer{Hang: true})
			all.Go(func() { checker.VerifyConnection(arrival(w, cert)) })
		}
		synctest.Wait()
		require.Len(t, w.Responder.Requests(nil), 8, "half of the workers")
		c, err := s.Add(w.Leaf())
		require.NoError(t, err)
		require.Zero(t, took(func() { require.NoError(t, c.Wait(world.Soon(t))) }))
		all.Wait()
	})
}

func TestOneHostOfPeersHasAQuarterOfTheWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Delay: time.Second})
		checker := &staple.Checker{Stapler: w.Stapler(func(s *staple.Stapler) { s.Concurrency = 16 })}
		var all sync.WaitGroup
		for _, cert := range w.Many(20) {
			all.Go(func() { checker.VerifyConnection(arrival(w, cert)) })
		}
		synctest.Wait()
		require.Len(t, w.Responder.Requests(nil), 4)
		all.Wait()
	})
}

func TestSoManyConnectionsWaitAndTheNextIsUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Delay: 2 * time.Second})
		checker := &staple.Checker{Stapler: w.Stapler()}
		cs := arrival(w, w.Leaf())
		var all sync.WaitGroup
		for range 4096 {
			all.Go(func() { require.NoError(t, checker.VerifyConnection(cs)) })
		}
		synctest.Wait()
		require.Zero(t, took(func() {
			err := checker.VerifyConnection(cs)
			require.ErrorIs(t, err, staple.ErrUnanswered)
			require.ErrorContains(t, err, "too many")
		}))
		all.Wait()
		require.NoError(t, checker.VerifyConnection(cs))
	})
}

func TestACertificateThatIsServedAndAPeersIsAskedAboutOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf()
		s := w.Stapler()
		var j world.Journal
		checker := &staple.Checker{Stapler: s, LeafOnly: true, OnEvent: j.Note}
		require.NoError(t, checker.VerifyConnection(arrival(w, cert)))
		peers := peersOf(checker)
		require.Len(t, peers, 1)
		require.True(t, peers[0].Status().Peer)
		require.Equal(t, staple.StateAnswered, peers[0].Status().State)
		require.Nil(t, peers[0].TLS().PrivateKey)
		require.NoError(t, peers[0].Wait(t.Context()))

		c, err := s.Add(cert)
		require.NoError(t, err)
		require.NoError(t, c.Wait(world.Soon(t)))
		require.Equal(t, 1, requests(w, cert))
		require.False(t, peers[0].Status().Peer, "it is served as well")
		count := 0
		for range s.Certificates() {
			count++
		}
		require.Equal(t, 1, count)

		require.NoError(t, peers[0].Refresh(t.Context()))
		asked := requests(w, cert)
		require.Greater(t, asked, 1)
		peers[0].Remove()
		require.Empty(t, peersOf(checker))
		world.RequireStaple(t, c, ocsp.Good)
		require.NoError(t, checker.VerifyConnection(arrival(w, cert)))
		c.Remove()
		require.True(t, peersOf(checker)[0].Status().Peer)
		require.NoError(t, checker.VerifyConnection(arrival(w, cert)))
		require.Equal(t, asked, requests(w, cert))
		synctest.Wait()
		require.NotEmpty(t, j.Events())

		// From peer to served while nobody answers: it has its first round.
		other := w.Leaf()
		w.Responder.Set(other.Leaf, stapletest.Answer{HTTPStatus: 404})
		require.Error(t, checker.VerifyConnection(arrival(w, other)))
		w.Responder.Reset(other.Leaf)
		c, err = s.Add(other)
		require.NoError(t, err)
		require.NoError(t, c.Wait(world.Soon(t)))
	})
}

func TestAPeerThatComesRarelyIsAskedAboutBeforeItPasses(t *testing.T) {
	for _, fleet := range []bool{false, true} {
		t.Run(fmt.Sprint("fleet ", fleet), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				cache := staple.NewMemoryCache()
				with := func(s *staple.Stapler) {
					if fleet {
						s.Cache = cache
					}
				}
				cert := w.Leaf(world.LongLived)
				w.Responder.Set(nil, stapletest.Answer{Validity: 20 * time.Hour, Delay: time.Second})
				checker := &staple.Checker{Stapler: w.Stapler(with)}
				require.NoError(t, checker.VerifyConnection(arrival(w, cert)))
				time.Sleep(12 * time.Hour)
				w.Responder.Set(nil, stapletest.Answer{Status: ocsp.Revoked, Validity: 20 * time.Hour, Delay: time.Second})
				if fleet { // another process, which has what the cache has
					checker = &staple.Checker{Stapler: w.Stapler(with)}
				}
				var all sync.WaitGroup
				for range 10 {
					all.Go(func() { require.ErrorIs(t, checker.VerifyConnection(arrival(w, cert)), staple.ErrRevoked) })
				}
				all.Wait()
			})
		})
	}
}

func TestAPeerThatComesRarelyPassesByWhatIsHeldIfNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf(world.LongLived)
		w.Responder.Set(nil, stapletest.Answer{Validity: 20 * time.Hour})
		checker := &staple.Checker{Stapler: w.Stapler()}
		require.NoError(t, checker.VerifyConnection(arrival(w, cert)))
		w.Responder.Set(nil, stapletest.Answer{Hang: true})
		time.Sleep(12 * time.Hour)
		require.Equal(t, 3*time.Second, took(func() { require.NoError(t, checker.VerifyConnection(arrival(w, cert))) }))
		time.Sleep(time.Minute)
		require.Zero(t, took(func() { require.NoError(t, checker.VerifyConnection(arrival(w, cert))) }))
	})
}

func TestAFleetAsksOnceAboutAPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Delay: 500 * time.Millisecond})
		cache := world.NewLockedCache()
		cert := w.Leaf()
		var all sync.WaitGroup
		for range 10 {
			checker := &staple.Checker{Stapler: w.Stapler(func(s *staple.Stapler) { s.Cache = cache })}
			all.Go(func() { require.NoError(t, checker.VerifyConnection(arrival(w, cert))) })
		}
		require.Less(t, took(all.Wait), 3*time.Second)
		require.Equal(t, 1, requests(w, cert))
	})
}

func TestAPeerThatHasExpiredIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise})
		cert := w.Leaf(func(o *stapletest.LeafOptions) { o.NotAfter = time.Now().Add(40 * world.Day) })
		checker := &staple.Checker{Stapler: w.Stapler(), LeafOnly: true}
		require.ErrorIs(t, checker.VerifyConnection(arrival(w, cert)), staple.ErrRevoked)
		time.Sleep(39 * world.Day)
		require.Len(t, peersOf(checker), 1, "revoked, as long as it is valid")
		time.Sleep(3 * world.Day) // a day more, since the clock may be wrong
		require.Empty(t, peersOf(checker))
	})
}

func TestTheLogTellsOfAnUnansweredCAOnceAMinute(t *testing.T) {
	for _, failOpen := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := world.New(t)
			w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
			var log world.Text
			checker := &staple.Checker{Stapler: w.Stapler(func(s *staple.Stapler) { s.Logger = log.Logger() }), FailOpen: failOpen}
			certs := w.Many(20)
			for range 10 {
				for _, cert := range certs {
					require.Equal(t, failOpen, checker.VerifyConnection(arrival(w, cert)) == nil)
				}
				time.Sleep(30 * time.Second)
			}
			lines := 0
			for _, line := range log.TakeLines(t) {
				if line["level"] == "WARN" {
					lines++
					require.Equal(t, w.CA.Issuer.Subject.String(), line["ca"])
					require.NotEmpty(t, line["error"])
				}
			}
			require.Equal(t, 5, lines)
		})
	}
}

func TestHandshakesWithAChecker(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, side := range []string{"server", "client"} {
			t.Run(fmt.Sprintf("%s, %s", tls.VersionName(version), side), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := world.New(t)
					cert := w.Leaf()
					checker := &staple.Checker{Stapler: w.Stapler(), MaxResponseAge: time.Hour}
					server := &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.CA.Roots(),
						MinVersion: version, MaxVersion: version}
					client := w.Client("www.example.com")
					client.Certificates = []tls.Certificate{cert}
					client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
					if side == "server" {
						server.VerifyConnection = checker.VerifyConnection
					} else {
						client.VerifyConnection = checker.VerifyConnection
					}
					try := func() (bool, error) {
						var checked error
						verify := checker.VerifyConnection
						of := server
						if side == "client" {
							of = client
						}
						of.VerifyConnection = func(cs tls.ConnectionState) error { checked = verify(cs); return checked }
						return connect(t, server, client), checked
					}
					_, err := try()
					require.NoError(t, err)
					did, err := try()
					require.NoError(t, err)
					require.True(t, did, "a resumed session")
					w.Responder.Set(nil, stapletest.Answer{Status: ocsp.Revoked})
					time.Sleep(40 * time.Minute)
					_, _ = try() // has it asked about, if it was not asked about in the background
					time.Sleep(30 * time.Minute)
					_, err = try()
					require.ErrorIs(t, err, staple.ErrRevoked, "a revocation is noticed on resumed connections")
				})
			})
		}
	}
}

// connect makes a connection over pipes of which neither side waits for the other to read, reads what the server has to
// say, and reports whether it resumed a session.
func connect(t *testing.T, server, client *tls.Config) (resumed bool) {
	a, b := net.Pipe()
	below, beneath := queued(a), queued(b)
	s, c := tls.Server(below, server), tls.Client(beneath, client)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer below.Close()
		_, _ = s.Write([]byte("x"))
	}()
	_, err := io.ReadFull(c, make([]byte, 1)) // what is before that, the ticket
	resumed = err == nil && c.ConnectionState().DidResume
	beneath.Close()
	<-done
	return resumed
}

// A queued connection does not wait for its reader.
type queuedConn struct {
	net.Conn
	out chan []byte
}

func queued(c net.Conn) queuedConn {
	q := queuedConn{c, make(chan []byte, 100)}
	go func() {
		defer c.Close()
		for p := range q.out {
			_, _ = c.Write(p)
		}
	}()
	return q
}

func (q queuedConn) Write(p []byte) (int, error) {
	q.out <- bytes.Clone(p)
	return len(p), nil
}

func (q queuedConn) Close() error {
	close(q.out)
	return nil
}

func TestACertificateWithFiftyURLs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		var urls []string
		for i := range 50 {
			urls = append(urls, fmt.Sprintf("http://ocsp%d.example", i))
		}
		cert := w.Leaf(world.Responders(urls...))
		w.Responder.Set(cert.Leaf, stapletest.Answer{Hang: true})
		checker := &staple.Checker{Stapler: w.Stapler()}
		for range 100 {
			require.ErrorIs(t, checker.VerifyConnection(arrival(w, cert)), staple.ErrUnanswered)
			time.Sleep(10 * time.Second)
		}
		require.Less(t, len(w.Responder.Requests(nil)), 500)
		require.NoError(t, checker.VerifyConnection(arrival(w, w.Leaf())), "others pass")
	})
}
