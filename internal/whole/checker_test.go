package whole

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
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

// arrival is what a server sees of a client with this certificate, in TLS 1.3.
func arrival(w *world.World, cert tls.Certificate, edit ...func(*tls.ConnectionState)) tls.ConnectionState {
	cs := tls.ConnectionState{
		Version:          tls.VersionTLS13,
		PeerCertificates: []*x509.Certificate{cert.Leaf, w.CA.Issuer},
		VerifiedChains:   [][]*x509.Certificate{{cert.Leaf, w.CA.Issuer, w.CA.Root}},
	}
	for _, e := range edit {
		e(&cs)
	}
	return cs
}

func stapled(der []byte) func(*tls.ConnectionState) {
	return func(cs *tls.ConnectionState) { cs.OCSPResponse = der }
}

func inTLS12(cs *tls.ConnectionState) { cs.Version = tls.VersionTLS12 }

func resumed(cs *tls.ConnectionState) { cs.DidResume = true }

// took returns how long f took.
func took(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

func requests(w *world.World, cert tls.Certificate) int { return len(w.Responder.Requests(cert.Leaf)) }

func TestAPeerPassesOrNotByWhatItsResponderSays(t *testing.T) {
	type answers = stapletest.Answer
	for _, test := range []struct {
		name         string
		answer       answers
		leaf         func(*stapletest.LeafOptions)
		refused      []error // nil: it passes
		failOpenToo  bool    // refused although FailOpen is set
		takes        time.Duration
		withFailOpen time.Duration
	}{
		{name: "good"},
		{name: "revoked", answer: answers{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise}, refused: []error{staple.ErrRevoked}, failOpenToo: true},
		{name: "on hold", answer: answers{Status: ocsp.Revoked, RevocationReason: ocsp.CertificateHold}, refused: []error{staple.ErrRevoked}, failOpenToo: true},
		{name: "unknown", answer: answers{Status: ocsp.Unknown}, refused: []error{staple.ErrUnanswered}},
		{name: "tryLater", answer: answers{Error: ocsp.TryLater}, refused: []error{staple.ErrUnanswered, ocsp.ResponseError{Status: ocsp.TryLater}}},
		{name: "unauthorized", answer: answers{Error: ocsp.Unauthorized}, refused: []error{staple.ErrUnanswered, ocsp.ResponseError{Status: ocsp.Unauthorized}}},
		{name: "no OCSP", answer: answers{HTTPStatus: http.StatusNotFound, Body: []byte("what?")}, refused: []error{staple.ErrUnanswered}},
		{name: "ended already", answer: answers{Age: 48 * time.Hour, Validity: time.Hour}, refused: []error{staple.ErrUnanswered}},
		{name: "hangs", answer: answers{Hang: true}, refused: []error{staple.ErrUnanswered}, takes: 3 * time.Second},
		{name: "slow", answer: answers{Delay: 2 * time.Second}, takes: 2 * time.Second},
		{name: "forged", answer: answers{Signer: stapletest.NewCA(stapletest.CAOptions{}).Signer()}, refused: []error{staple.ErrUnanswered}},
		{name: "nobody to ask", leaf: world.Responders()},
		{name: "nobody to ask but LDAP", leaf: world.Responders("ldap://ocsp.example")},
	} {
		for _, failOpen := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, FailOpen %v", test.name, failOpen), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := world.New(t)
					w.Responder.Set(nil, test.answer)
					var edits []func(*stapletest.LeafOptions)
					if test.leaf != nil {
						edits = append(edits, test.leaf)
					}
					cert := w.Leaf(edits...)
					s := w.Stapler()
					checker := &staple.Checker{Stapler: s, FailOpen: failOpen}
					var err error
					require.Equal(t, test.takes, took(func() { err = checker.VerifyConnection(arrival(w, cert)) }).Truncate(time.Second))
					passes := len(test.refused) == 0 || failOpen && !test.failOpenToo
					again := checker.VerifyConnection(arrival(w, cert))
					for _, err := range []error{err, again, checker.Check(t.Context(), []*x509.Certificate{cert.Leaf, w.CA.Issuer, w.CA.Root})} {
						if passes {
							require.NoError(t, err)
							continue
						}
						for _, want := range test.refused {
							require.ErrorIs(t, err, want)
						}
						require.ErrorContains(t, err, "www.example.com")
					}
					var stats staple.CheckStats
					for _, st := range s.CheckStats() {
						if st.CA == w.CA.Issuer.Subject.String() {
							stats = st
						}
					}
					want := staple.CheckStats{CA: stats.CA, Waited: stats.Waited, Waiting: stats.Waiting}
					switch {
					case len(test.refused) == 0:
						want.Passed = 3
					case test.failOpenToo:
						want.Refused = 3
					case failOpen:
						want.PassedUnanswered = 3
					default:
						want.Unanswered = 3
					}
					require.Equal(t, want, stats)
				})
			})
		}
	}
}

func TestAPeerIsAskedAboutOnceHoweverManyConnectionsWait(t *testing.T) {
	for _, answer := range []stapletest.Answer{{Delay: time.Second}, {Delay: time.Second, Status: ocsp.Revoked}, {Delay: time.Second, HTTPStatus: 500}} {
		synctest.Test(t, func(t *testing.T) {
			w := world.New(t)
			w.Responder.Set(nil, answer)
			cert := w.Leaf()
			checker := &staple.Checker{Stapler: w.Stapler()}
			var all sync.WaitGroup
			failed := make([]error, 1000)
			for i := range failed {
				all.Go(func() { failed[i] = checker.VerifyConnection(arrival(w, cert)) })
			}
			require.Less(t, took(all.Wait), 3*time.Second)
			for _, err := range failed {
				require.Equal(t, answer.Status != ocsp.Good || answer.HTTPStatus != 0, err != nil, err)
			}
			require.LessOrEqual(t, requests(w, cert), 2) // GET, and POST where that is of no use
		})
	}
}

func TestAPeerThatComesOftenNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Delay: time.Second, Validity: 4 * time.Hour})
		cert := w.Leaf(world.LongLived)
		checker := &staple.Checker{Stapler: w.Stapler()}
		require.NoError(t, checker.VerifyConnection(arrival(w, cert)))
		for range 200 {
			time.Sleep(37 * time.Minute)
			require.Zero(t, took(func() { require.NoError(t, checker.VerifyConnection(arrival(w, cert))) }))
		}
		asked := requests(w, cert)
		require.InDelta(t, 200*37/120, asked, 25, "at half of the validity")

		time.Sleep(23 * time.Hour)
		require.LessOrEqual(t, requests(w, cert), asked+1, "nobody is asked about one that does not come")
		require.Len(t, peersOf(checker), 1+1)
		time.Sleep(2 * time.Hour)
		require.Empty(t, peersOf(checker), "unseen for 24 hours, forgotten")
		require.Equal(t, time.Second, took(func() { require.NoError(t, checker.VerifyConnection(arrival(w, cert))) }))
	})
}

// peersOf returns the peers that a Checker's Stapler remembers.
func peersOf(c *staple.Checker) (all []*staple.Certificate) {
	for p := range c.Stapler.Peers() {
		all = append(all, p)
	}
	return all
}

func TestARevocationIsNoticed(t *testing.T) {
	for _, test := range []struct {
		name   string
		maxAge time.Duration
		within time.Duration
	}{
		{"after half of the validity", 0, 4 * world.Day},
		{"after half of MaxResponseAge", 2 * time.Hour, 66 * time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				w.Responder.Set(nil, stapletest.Answer{Validity: 7 * world.Day})
				cert := w.Leaf(world.LongLived)
				var j world.Journal
				checker := &staple.Checker{Stapler: w.Stapler(), MaxResponseAge: test.maxAge, OnEvent: j.Note}
				start := time.Now()
				require.NoError(t, checker.VerifyConnection(arrival(w, cert)))
				w.Responder.Set(nil, stapletest.Answer{Validity: 7 * world.Day, Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise})
				for checker.VerifyConnection(arrival(w, cert)) == nil {
					time.Sleep(time.Minute)
				}
				require.LessOrEqual(t, time.Since(start), test.within)
				require.Greater(t, time.Since(start), test.within/2)
				synctest.Wait()
				require.Equal(t, staple.EventRevoked, j.Last().Kind)
				require.True(t, j.Last().Status.Peer)
				require.True(t, j.Last().Status.Revoked)
				require.Equal(t, cert.Leaf.Raw, j.Last().Status.Leaf.Raw)
				require.Empty(t, w.Log.Kinds(), "Stapler.OnEvent tells of what is served")

				// It stays so when its response has ended, and when it has not come for a month, and nobody forgets it by mistake.
				w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
				time.Sleep(30 * world.Day)
				require.ErrorIs(t, checker.VerifyConnection(arrival(w, cert)), staple.ErrRevoked)
				for _, p := range peersOf(checker) {
					p.Remove()
				}
				require.ErrorIs(t, checker.VerifyConnection(arrival(w, cert)), staple.ErrRevoked)
				require.Len(t, peersOf(checker), 1, "the intermediate has not been looked at again")
			})
		})
	}
}

func TestAPeerOnHoldPassesAgainOnceThatIsLifted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.CertificateHold})
		cert := w.Leaf(world.LongLived)
		checker := &staple.Checker{Stapler: w.Stapler()}
		require.ErrorIs(t, checker.VerifyConnection(arrival(w, cert)), staple.ErrRevoked)
		w.Responder.Set(nil, stapletest.Answer{})
		start := time.Now()
		for checker.VerifyConnection(arrival(w, cert)) != nil {
			time.Sleep(time.Minute)
		}
		require.LessOrEqual(t, time.Since(start), 62*time.Minute)
	})
}

func TestAStapleOfAPeer(t *testing.T) {
	const day = world.Day
	type answers = stapletest.Answer
	good, revoked := answers{}, answers{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise}
	old := answers{Age: day}
	failOpen := func(c *staple.Checker) { c.FailOpen = true }
	requiring := func(c *staple.Checker) { c.RequireStaple, c.FailOpen = true, true }
	freshly := func(c *staple.Checker) { c.MaxResponseAge = time.Hour }
	for _, test := range []struct {
		name     string
		held     *answers // what the responder said before
		staple   answers
		forged   bool
		edit     []func(*tls.ConnectionState)
		set      func(*staple.Checker)
		wants    error // nil: it passes
		mentions string
		asked    int
	}{
		{name: "good: nobody is asked", staple: good},
		{name: "revoked, of which the responder is asked", staple: revoked, wants: staple.ErrRevoked, asked: 1},
		{name: "revoked, FailOpen", staple: revoked, set: failOpen, wants: staple.ErrRevoked, asked: 1},
		{name: "unknown, FailOpen", staple: answers{Status: ocsp.Unknown}, set: failOpen, mentions: "does not know"},
		{name: "forged, FailOpen", forged: true, set: failOpen, mentions: "refused"},
		{name: "ended", staple: answers{Age: 2 * day, Validity: day}, mentions: "nextUpdate"},
		{name: "older than MaxResponseAge", staple: old, set: freshly, mentions: "MaxResponseAge"},
		{name: "good and older than the revocation held", held: &revoked, staple: old, wants: staple.ErrRevoked, asked: 1},
		{name: "good and newer than the revocation held: one peer's word does not undo it", held: &answers{Status: ocsp.Revoked, RevocationReason: 1, Age: day}, staple: good, wants: staple.ErrRevoked, asked: 1},
		{name: "good and newer than the hold held", held: &answers{Status: ocsp.Revoked, RevocationReason: ocsp.CertificateHold, Age: day}, staple: good, asked: 1},
		{name: "revoked and newer than what is held", held: &old, staple: revoked, wants: staple.ErrRevoked, asked: 2},
		{name: "revoked on hold, and older than what is held", held: &good, staple: answers{Status: ocsp.Revoked, RevocationReason: ocsp.CertificateHold, Age: day}, asked: 1},
		{name: "ended, in a resumed session: it is not looked at, and the responder is asked", staple: answers{Age: 2 * day, Validity: day}, edit: []func(*tls.ConnectionState){resumed}, asked: 1},
		{name: "ended, in a resumed session, RequireStaple", staple: answers{Age: 2 * day, Validity: day}, edit: []func(*tls.ConnectionState){resumed},
			set: requiring, mentions: "nextUpdate"},
		{name: "good, in a resumed session, RequireStaple", staple: good, edit: []func(*tls.ConnectionState){resumed}, set: requiring},
		{name: "good, RequireStaple", staple: good, set: requiring},
		{name: "none, RequireStaple", edit: []func(*tls.ConnectionState){stapled(nil)}, set: requiring, mentions: "no staple"},
		{name: "none, in a resumed session, RequireStaple", edit: []func(*tls.ConnectionState){stapled(nil), resumed}, set: requiring, mentions: "no staple"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				cert := w.Leaf(world.LongLived)
				checker := &staple.Checker{Stapler: w.Stapler()}
				if test.set != nil {
					test.set(checker)
				}
				if test.held != nil {
					w.Responder.Set(nil, *test.held)
					_ = (&staple.Checker{Stapler: checker.Stapler}).VerifyConnection(arrival(w, cert))
				}
				if test.forged {
					test.staple.Signer = stapletest.NewCA(stapletest.CAOptions{}).Signer()
				}
				w.Responder.Set(nil, test.staple)
				der := w.Responder.Response(cert.Leaf)
				w.Responder.Set(nil, stapletest.Answer{})
				err := checker.VerifyConnection(arrival(w, cert, append([]func(*tls.ConnectionState){stapled(der)}, test.edit...)...))
				switch {
				case test.wants != nil:
					require.ErrorIs(t, err, test.wants)
				case test.mentions != "":
					require.ErrorContains(t, err, test.mentions)
				default:
					require.NoError(t, err)
				}
				synctest.Wait()
				require.Equal(t, test.asked, requests(w, cert))
			})
		})
	}
}

func TestAStapleOfAPeerIsStoredAndRefreshedLikeAnyOtherAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cache := staple.NewMemoryCache()
		cert := w.Leaf(world.LongLived)
		checker := &staple.Checker{Stapler: w.Stapler(func(s *staple.Stapler) { s.Cache = cache })}
		w.Responder.Set(nil, stapletest.Answer{Validity: 8 * time.Hour})
		come := func() {
			require.NoError(t, checker.VerifyConnection(arrival(w, cert, stapled(w.Responder.Response(cert.Leaf)))))
		}
		come()
		synctest.Wait()
		der, err := cache.Get(t.Context(), world.CacheKey(cert.Leaf))
		require.NoError(t, err)
		require.NotEmpty(t, der)
		first := w.Responder.Response(cert.Leaf)
		time.Sleep(5 * time.Hour)
		require.NoError(t, checker.VerifyConnection(arrival(w, cert, stapled(first)))) // it has come since
		synctest.Wait()
		require.Equal(t, 1, requests(w, cert), "the staple is past its half")
	})
}

func TestMustStapleWithoutAStaple(t *testing.T) {
	const server, client = x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth
	for _, test := range []struct {
		name   string
		usage  []x509.ExtKeyUsage
		edit   func(*tls.ConnectionState)
		answer stapletest.Answer
		passes bool
	}{
		{"TLS 1.3", []x509.ExtKeyUsage{client}, func(*tls.ConnectionState) {}, stapletest.Answer{}, false},
		{"TLS 1.2, a client's", []x509.ExtKeyUsage{client}, inTLS12, stapletest.Answer{}, true},
		{"TLS 1.2, a client's, unanswered although FailOpen is set", []x509.ExtKeyUsage{client}, inTLS12, stapletest.Answer{HTTPStatus: 500}, false},
		{"TLS 1.2, a client's, revoked", []x509.ExtKeyUsage{client}, inTLS12, stapletest.Answer{Status: ocsp.Revoked}, false},
		{"TLS 1.2, a server's", []x509.ExtKeyUsage{server}, inTLS12, stapletest.Answer{}, false},
		{"a resumed session", []x509.ExtKeyUsage{client}, resumed, stapletest.Answer{}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				w.Responder.Set(nil, test.answer)
				cert := w.Leaf(world.MustStaple, func(o *stapletest.LeafOptions) {
					o.Template = func(c *x509.Certificate) { c.ExtKeyUsage = test.usage }
				})
				checker := &staple.Checker{Stapler: w.Stapler(), FailOpen: true}
				err := checker.VerifyConnection(arrival(w, cert, test.edit))
				require.Equal(t, test.passes, err == nil, err)
				require.NoError(t, (&staple.Checker{Stapler: w.Stapler(), FailOpen: true, LeafOnly: true}).VerifyConnection(
					arrival(w, cert, stapled(w.FreshResponse(cert.Leaf)))))
			})
		})
	}
}

func TestBadChains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert, stranger := w.Leaf(), stapletest.NewCA(stapletest.CAOptions{})
		checker := &staple.Checker{Stapler: w.Stapler()}
		for name, chain := range map[string][]*x509.Certificate{
			"empty":      nil,
			"one":        {cert.Leaf},
			"nil":        {cert.Leaf, nil},
			"nil first":  {nil, w.CA.Issuer},
			"unordered":  {w.CA.Issuer, cert.Leaf},
			"a stranger": {cert.Leaf, stranger.Issuer},
			"a gap":      {cert.Leaf, w.CA.Root},
		} {
			require.Error(t, checker.Check(t.Context(), chain), name)
		}
		require.Empty(t, peersOf(checker), "nothing is remembered of them")
		require.Empty(t, w.Responder.Requests(nil))

		require.NoError(t, checker.VerifyConnection(tls.ConnectionState{}), "no certificate")
		require.ErrorContains(t, checker.VerifyConnection(tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert.Leaf}}), "no verified chain")
		root := []*x509.Certificate{w.CA.Root}
		require.NoError(t, checker.VerifyConnection(tls.ConnectionState{PeerCertificates: root, VerifiedChains: [][]*x509.Certificate{root}}), "a trust anchor")
		require.ErrorContains(t, new(staple.Checker).VerifyConnection(arrival(w, cert)), "no Stapler")
		require.ErrorContains(t, new(staple.Checker).Check(t.Context(), arrival(w, cert).VerifiedChains[0]), "no Stapler")
	})
}

func TestOnePassingChainIsEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf()
		// The same name and key, cross-signed: twice by others, whose certificates name a responder.
		other := stapletest.NewCA(stapletest.CAOptions{})
		cross := func(cn string) *x509.Certificate {
			return other.Leaf(stapletest.LeafOptions{CommonName: cn, Responders: []string{world.ResponderURL}, Template: func(c *x509.Certificate) {
				c.RawSubject, c.IsCA, c.BasicConstraintsValid, c.KeyUsage = w.CA.Issuer.RawSubject, true, true, x509.KeyUsageCertSign
			}, Key: w.CA.Key}).Leaf
		}
		first, second := cross("a"), cross("b")
		responder := stapletest.NewResponder(other)
		client := responder.Client()
		s := w.Stapler(func(s *staple.Stapler) {
			ours := s.Fetcher
			s.Fetcher = staple.FetcherFunc(func(ctx context.Context, req *staple.Request) ([]byte, error) {
				if req.Leaf.Equal(first) || req.Leaf.Equal(second) {
					return (&staple.HTTPFetcher{Client: client}).Fetch(ctx, req)
				}
				return ours.Fetch(ctx, req)
			})
		})
		chains := func(cs *tls.ConnectionState) {
			cs.VerifiedChains = [][]*x509.Certificate{{cert.Leaf, first, other.Root}, {cert.Leaf, second, other.Root}}
		}
		responder.Set(first, stapletest.Answer{Status: ocsp.Revoked})
		checker := &staple.Checker{Stapler: s}
		require.NoError(t, checker.VerifyConnection(arrival(w, cert, chains)), "one is revoked, the other is not")
		responder.Set(second, stapletest.Answer{Status: ocsp.Revoked})
		checker = &staple.Checker{Stapler: w.Stapler(func(o *staple.Stapler) { o.Fetcher = s.Fetcher })}
		require.ErrorIs(t, checker.VerifyConnection(arrival(w, cert, chains)), staple.ErrRevoked)
		require.NoError(t, (&staple.Checker{Stapler: checker.Stapler, LeafOnly: true}).VerifyConnection(arrival(w, cert, chains)))
		require.ErrorIs(t, (&staple.Checker{Stapler: checker.Stapler, RequireStaple: true}).VerifyConnection(
			arrival(w, cert, chains, stapled(w.FreshResponse(cert.Leaf)))), staple.ErrRevoked, "intermediates are asked about all the same")
	})
}

func TestAnOutageIsToldAtOnceAndSoonOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Hang: true})
		checker := &staple.Checker{Stapler: w.Stapler()}
		certs := w.Many(200)
		require.Equal(t, 3*time.Second, took(func() { require.Error(t, checker.VerifyConnection(arrival(w, certs[0]))) }))
		time.Sleep(time.Minute)
		start := time.Now()
		slow := 0
		for time.Since(start) < 10*time.Minute {
			for _, cert := range certs {
				if took(func() { require.ErrorIs(t, checker.VerifyConnection(arrival(w, cert)), staple.ErrUnanswered) }) > 0 {
					slow++
				}
			}
			time.Sleep(10 * time.Second)
		}
		require.Less(t, slow, 60, "but for the one that finds out whether it is over")
		require.Less(t, len(w.Responder.Requests(nil)), 100)
		w.Responder.Set(nil, stapletest.Answer{})
		start = time.Now()
		for _, cert := range certs {
			for checker.VerifyConnection(arrival(w, cert)) != nil {
				time.Sleep(time.Second)
			}
		}
		require.LessOrEqual(t, time.Since(start), 70*time.Second)
	})
}

func TestAPeerWhoseRoundFailedIsNotAskedAboutForHalfAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Error: ocsp.Unauthorized})
		cert := w.Leaf()
		checker := &staple.Checker{Stapler: w.Stapler()}
		require.Error(t, checker.VerifyConnection(arrival(w, cert)))
		asked := requests(w, cert)
		for range 9 {
			require.ErrorIs(t, checker.VerifyConnection(arrival(w, cert)), ocsp.ResponseError{Status: ocsp.Unauthorized})
		}
		require.Equal(t, asked, requests(w, cert))
		w.Responder.Set(nil, stapletest.Answer{})
		time.Sleep(31 * time.Second)
		require.NoError(t, checker.VerifyConnection(arrival(w, cert)))
	})
}

func TestAPeerIsKnownFromTheCacheAlsoWhileItsResponderIsDown(t *testing.T) {
	for _, status := range []int{ocsp.Good, ocsp.Revoked} {
		synctest.Test(t, func(t *testing.T) {
			w := world.New(t)
			cache := staple.NewMemoryCache()
			with := func(s *staple.Stapler) { s.Cache = cache }
			known, unknown := w.Leaf(), w.Leaf()
			w.Responder.Set(nil, stapletest.Answer{Status: status})
			first := w.Stapler(with)
			err := (&staple.Checker{Stapler: first}).VerifyConnection(arrival(w, known))
			require.Equal(t, status == ocsp.Revoked, errors.Is(err, staple.ErrRevoked))
			require.NoError(t, first.Close())

			w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
			checker := &staple.Checker{Stapler: w.Stapler(with)}
			require.ErrorIs(t, checker.VerifyConnection(arrival(w, unknown)), staple.ErrUnanswered)
			again := checker.VerifyConnection(arrival(w, known))
			require.Equal(t, status == ocsp.Revoked, errors.Is(again, staple.ErrRevoked), again)
			require.Equal(t, status == ocsp.Good, again == nil)
		})
	}
}

func TestAClosedStaplerAnswersFromWhatItHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		known, revoked, stranger := w.Leaf(), w.Leaf(), w.Leaf()
		w.Responder.Set(revoked.Leaf, stapletest.Answer{Status: ocsp.Revoked})
		s := w.Stapler()
		checker := &staple.Checker{Stapler: s, FailOpen: true}
		require.NoError(t, checker.VerifyConnection(arrival(w, known)))
		require.Error(t, checker.VerifyConnection(arrival(w, revoked)))
		require.NoError(t, s.Close())
		require.NoError(t, checker.VerifyConnection(arrival(w, known)))
		require.ErrorIs(t, checker.VerifyConnection(arrival(w, revoked)), staple.ErrRevoked)
		require.ErrorIs(t, checker.VerifyConnection(arrival(w, stranger)), staple.ErrClosed)
		require.ErrorIs(t, checker.Check(t.Context(), arrival(w, stranger).VerifiedChains[0]), staple.ErrClosed)
		time.Sleep(10 * world.Day)
		require.ErrorIs(t, checker.VerifyConnection(arrival(w, known)), staple.ErrClosed, "what was held has ended")
		require.NoError(t, checker.VerifyConnection(arrival(w, stranger, stapled(w.FreshResponse(stranger.Leaf)))), "a staple of one that is not known")
		require.NoError(t, checker.VerifyConnection(arrival(w, known, stapled(w.FreshResponse(known.Leaf)))), "a staple")
	})
}

func TestWhatIsHeldDecidesWhateverTheContextSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		known, stranger := w.Leaf(), w.Leaf()
		checker := &staple.Checker{Stapler: w.Stapler()}
		ctx, cancel := context.WithCancel(t.Context())
		require.NoError(t, checker.Check(ctx, arrival(w, known).VerifiedChains[0]))
		w.Responder.Set(nil, stapletest.Answer{Hang: true})
		cancel()
		require.NoError(t, checker.Check(ctx, arrival(w, known).VerifiedChains[0]))
		err := checker.Check(ctx, arrival(w, stranger).VerifiedChains[0])
		require.ErrorIs(t, err, staple.ErrUnanswered)
		require.ErrorIs(t, err, context.Canceled)
	})
}
