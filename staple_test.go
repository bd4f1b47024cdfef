package staple

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

const responderURL = "http://ocsp.example"

// A world is a CA with a responder that is reached without a socket, and what is
// needed to make Staplers that ask it.
type world struct {
	t         *testing.T
	ca        *stapletest.CA
	responder *stapletest.Responder
	log       *journal
}

// testCA is made once: keys take time, and synctest bubbles begin all at the same moment.
var testCA = sync.OnceValue(func() *stapletest.CA {
	return stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
})

func newWorld(t *testing.T) *world {
	ca := testCA()
	return &world{t: t, ca: ca, responder: stapletest.NewResponder(ca), log: new(journal)}
}

// stapler returns a Stapler of this world that is closed at the end of the test.
func (w *world) stapler(edit ...func(*Stapler)) *Stapler {
	s := &Stapler{
		Fetcher: &HTTPFetcher{Client: w.responder.Client()},
		Logger:  slog.New(slog.NewTextHandler(io.Discard, nil)),
		OnEvent: w.log.note,
	}
	for _, f := range edit {
		f(s)
	}
	w.t.Cleanup(func() { s.Close() })
	return s
}

func (w *world) leaf(edit ...func(*stapletest.LeafOptions)) tls.Certificate {
	o := stapletest.LeafOptions{Names: []string{"www.example.com"}, Responders: []string{responderURL}}
	for _, f := range edit {
		f(&o)
	}
	return w.ca.Leaf(o)
}

func mustStapleLeaf(o *stapletest.LeafOptions) { o.MustStaple = true }

// add adds cert and waits until it is stapled.
func (w *world) add(s *Stapler, cert tls.Certificate) *Certificate {
	c, err := s.Add(cert)
	require.NoError(w.t, err)
	require.NoError(w.t, c.Wait(soon(w.t)))
	return c
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// A journal keeps the events of a Stapler.
type journal struct {
	mu     sync.Mutex
	events []Event
}

func (j *journal) note(e Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, e)
}

func (j *journal) kinds() (kinds []EventKind) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.events {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

func (j *journal) last() Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.events[len(j.events)-1]
}

func (j *journal) clear() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = nil
}

// requireStaple requires that handshakes get a staple of the given status which verifies.
func requireStaple(t *testing.T, c *Certificate, status int) *ocsp.Response {
	t.Helper()
	cert, err := c.GetCertificate(nil)
	require.NoError(t, err)
	require.NotEmpty(t, cert.OCSPStaple, "no staple")
	require.Same(t, cert, c.TLS())
	require.True(t, c.Status().Stapled)
	issuer, err := x509.ParseCertificate(cert.Certificate[1])
	require.NoError(t, err)
	r, _, err := new(ResponseVerifier).Verify(cert.OCSPStaple, cert.Leaf, issuer, time.Now())
	require.NoError(t, err)
	require.Equal(t, status, r.Status)
	return r
}

func requireNoStaple(t *testing.T, c *Certificate) {
	t.Helper()
	require.Empty(t, c.TLS().OCSPStaple)
	require.False(t, c.Status().Stapled)
}

func TestAddStaplesAndKeepsCurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.stapler()
		cert := w.leaf()
		start := time.Now()
		c := w.add(s, cert)
		first := requireStaple(t, c, ocsp.Good)
		st := c.Status()
		require.Equal(t, cert.Leaf.Raw, st.Leaf.Raw)
		require.Equal(t, first.ThisUpdate, st.ThisUpdate.UTC())
		require.Equal(t, first.NextUpdate, st.Expires.UTC())
		require.Equal(t, responderURL, st.Responder[:len(responderURL)])
		require.NoError(t, st.Err)
		require.Zero(t, st.Failures)
		require.WithinRange(t, st.NextRefresh, start.Add(75*time.Hour), start.Add(93*time.Hour))
		require.Equal(t, []byte(nil), cert.OCSPStaple, "the caller's certificate was changed")

		for range 20 { // ten weeks: the twentieth refresh like the first
			time.Sleep(84 * time.Hour)
			synctest.Wait()
			r := requireStaple(t, c, ocsp.Good)
			require.Less(t, time.Since(r.ThisUpdate), 93*time.Hour)
		}
		require.InDelta(t, 21, len(w.responder.Requests(cert.Leaf)), 2)
		require.NotContains(t, w.log.kinds(), EventFailed)
	})
}

func TestBadInput(t *testing.T) {
	w := newWorld(t)
	good := w.leaf()
	brokenLeaf := good
	brokenLeaf.Certificate = [][]byte{good.Certificate[0][:100]}
	brokenLeaf.Leaf = nil
	brokenChain := good
	brokenChain.Certificate = [][]byte{good.Certificate[0], []byte("garbage")}
	for _, tt := range []struct {
		name string
		cert tls.Certificate
		want string
	}{
		{"no certificate", tls.Certificate{}, "the certificate chain is empty"},
		{"an empty leaf", tls.Certificate{Certificate: [][]byte{{}}}, "the certificate chain is empty"},
		{"a leaf that does not parse", brokenLeaf, "the leaf of the chain does not parse"},
		{"an issuer that does not parse", brokenChain, `certificate 1 in the chain of "CN=www.example.com" (serial`},
	} {
		t.Run(tt.name+" is an error from Add, and goes through TLSConfig", func(t *testing.T) {
			s := w.stapler()
			c, err := s.Add(tt.cert)
			require.ErrorContains(t, err, tt.want)
			require.Nil(t, c)
			require.Empty(t, slices.Collect(s.Certificates()))
			config := s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{tt.cert}})
			got, err := config.GetCertificate(&tls.ClientHelloInfo{})
			require.NoError(t, err)
			require.Equal(t, tt.cert.Certificate, got.Certificate)
		})
	}
}

func TestCertificatesThatNobodyIsAskedAbout(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(w *world) tls.Certificate
	}{
		{"no responder", func(w *world) tls.Certificate {
			return w.leaf(func(o *stapletest.LeafOptions) { o.Responders = nil })
		}},
		{"no responder and no issuer", func(w *world) tls.Certificate {
			return w.leaf(func(o *stapletest.LeafOptions) { o.Responders = nil; o.OmitIssuer = true })
		}},
		{"expired", func(w *world) tls.Certificate {
			return w.leaf(func(o *stapletest.LeafOptions) { o.NotAfter = time.Now().Add(-time.Second) })
		}},
		{"self-signed", func(w *world) tls.Certificate {
			return tls.Certificate{Certificate: [][]byte{w.ca.Root.Raw}, PrivateKey: w.ca.RootKey}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				s := w.stapler()
				c, err := s.Add(tt.make(w))
				require.NoError(t, err)
				require.ErrorIs(t, c.Wait(soon(t)), ErrNoResponder)
				require.NoError(t, s.Wait(soon(t)))
				require.ErrorIs(t, c.Status().Err, ErrNoResponder)
				requireNoStaple(t, c)
				time.Sleep(30 * 24 * time.Hour)
				require.Empty(t, w.responder.Requests(nil))
				require.Empty(t, w.log.kinds())
				require.Zero(t, c.Status().NextRefresh)
				require.ErrorIs(t, c.Refresh(soon(t)), ErrNoResponder)
			})
		})
	}
}

func TestACertificateThatExpiresIsNotAskedAboutAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cert := w.leaf(func(o *stapletest.LeafOptions) { o.NotAfter = time.Now().Add(6 * 24 * time.Hour) })
		c := w.add(w.stapler(), cert)
		require.Equal(t, cert.Leaf.NotAfter, c.Status().Expires, "the staple outlives the certificate")
		time.Sleep(6*24*time.Hour - time.Second)
		requireStaple(t, c, ocsp.Good)
		time.Sleep(time.Minute)
		requireNoStaple(t, c)
		require.ErrorIs(t, c.Status().Err, ErrNoResponder)
		n := len(w.responder.Requests(nil))
		require.LessOrEqual(t, n, 3)
		time.Sleep(30 * 24 * time.Hour)
		require.Len(t, w.responder.Requests(nil), n)
		require.NotContains(t, w.log.kinds(), EventExpired)
		require.NotContains(t, w.log.kinds(), EventFailed)
	})
}

func TestTheIssuerIsFound(t *testing.T) {
	other := stapletest.NewCA(stapletest.CAOptions{Name: testCA().Issuer.Subject.CommonName})
	for _, tt := range []struct {
		name string
		edit func(w *world, cert *tls.Certificate, s *Stapler)
		want error
	}{
		{"next in the chain", func(*world, *tls.Certificate, *Stapler) {}, nil},
		{"anywhere in the chain", func(w *world, cert *tls.Certificate, s *Stapler) {
			cert.Certificate = [][]byte{cert.Certificate[0], w.ca.Root.Raw, other.Root.Raw, cert.Certificate[1]}
		}, nil},
		{"among Issuers", func(w *world, cert *tls.Certificate, s *Stapler) {
			cert.Certificate = cert.Certificate[:1]
			s.Issuers = []*x509.Certificate{nil, other.Root, w.ca.Issuer}
		}, nil},
		{"by the Fetcher", func(w *world, cert *tls.Certificate, s *Stapler) {
			cert.Certificate = cert.Certificate[:1]
			s.Fetcher = issuerFetcher{s.Fetcher, []*x509.Certificate{other.Root, w.ca.Issuer}}
		}, nil},
		{"not, where the Fetcher finds another of the same name", func(w *world, cert *tls.Certificate, s *Stapler) {
			cert.Certificate = cert.Certificate[:1]
			s.Fetcher = issuerFetcher{s.Fetcher, []*x509.Certificate{other.Root}}
		}, context.DeadlineExceeded},
		{"not, where the leaf tells nothing", func(w *world, cert *tls.Certificate, s *Stapler) {
			cert.Certificate = cert.Certificate[:1]
		}, ErrNoIssuer},
		{"not, where the Fetcher does not look", func(w *world, cert *tls.Certificate, s *Stapler) {
			cert.Certificate = cert.Certificate[:1]
			s.Fetcher = FetcherFunc(s.Fetcher.Fetch)
		}, ErrNoIssuer},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				cert := w.leaf()
				s := w.stapler(func(s *Stapler) { tt.edit(w, &cert, s) })
				c, err := s.Add(cert)
				require.NoError(t, err)
				err = c.Wait(soon(t))
				if tt.want == nil {
					require.NoError(t, err)
					requireStaple2(t, w, c)
					return
				}
				require.ErrorIs(t, err, tt.want)
				require.ErrorIs(t, err, ErrNoIssuer)
				require.ErrorContains(t, err, "CN=www.example.com")
				require.ErrorContains(t, err, "put the issuer's certificate into the chain")
				require.Empty(t, w.responder.Requests(nil))
				requireNoStaple(t, c)
				synctest.Wait()
				require.Equal(t, EventFailed, w.log.last().Kind)
			})
		})
	}
}

// requireStaple2 is requireStaple for a chain without issuer.
func requireStaple2(t *testing.T, w *world, c *Certificate) {
	t.Helper()
	require.NotEmpty(t, c.TLS().OCSPStaple)
	_, _, err := new(ResponseVerifier).Verify(c.TLS().OCSPStaple, c.TLS().Leaf, w.ca.Issuer, time.Now())
	require.NoError(t, err)
}

type issuerFetcher struct {
	Fetcher
	issuers []*x509.Certificate
}

func (f issuerFetcher) FetchIssuer(context.Context, *x509.Certificate) ([]*x509.Certificate, error) {
	return f.issuers, nil
}

func count(kinds []EventKind, kind EventKind) (n int) {
	for _, k := range kinds {
		if k == kind {
			n++
		}
	}
	return n
}

func TestRevokedDropsTheGoodStapleAtOnceAndAHoldCanBeLifted(t *testing.T) {
	for _, staple := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			cache := NewMemoryCache()
			configure := func(s *Stapler) { s.StapleRevoked, s.Cache = staple, cache }
			s := w.stapler(configure)
			cert := w.leaf()
			c := w.add(s, cert)
			w.responder.Set(cert.Leaf, stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.CertificateHold})
			time.Sleep(time.Minute)
			require.NoError(t, c.Refresh(soon(t)))
			check := func(c *Certificate) {
				t.Helper()
				st := c.Status()
				require.True(t, st.Revoked)
				require.NoError(t, st.Err)
				require.False(t, st.NextRefresh.IsZero())
				r, err := ocsp.ParseResponse(c.Response(), nil)
				require.NoError(t, err)
				require.Equal(t, ocsp.CertificateHold, r.RevocationReason)
				if staple {
					requireStaple(t, c, ocsp.Revoked)
					require.NoError(t, c.Wait(soon(t)))
				} else {
					requireNoStaple(t, c)
					require.ErrorIs(t, c.Wait(soon(t)), ErrRevoked)
				}
			}
			check(c)
			synctest.Wait()
			require.Equal(t, EventRevoked, w.log.last().Kind)

			// A restart does not undo it, not even while the responder replays the good one.
			s.Close()
			w.responder.Set(cert.Leaf, stapletest.Answer{Age: time.Hour})
			s = w.stapler(configure)
			c, err := s.Add(cert)
			require.NoError(t, err)
			check(c)
			require.NoError(t, c.Refresh(soon(t)), "only an older response came")
			check(c)

			w.responder.Reset(cert.Leaf)
			time.Sleep(5 * 24 * time.Hour)
			synctest.Wait()
			requireStaple(t, c, ocsp.Good)
			require.False(t, c.Status().Revoked)
			require.Contains(t, w.log.kinds(), EventReinstated)
		})
	}
}

func TestResponseIsTheNewestOneVerifiedAlsoPastItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		c, err := w.stapler().Add(w.leaf())
		require.NoError(t, err)
		synctest.Wait()
		require.Nil(t, c.Response())

		w.responder.Reset(nil)
		require.NoError(t, c.Refresh(soon(t)))
		held := c.Response()
		require.NotEmpty(t, held)
		require.Equal(t, c.TLS().OCSPStaple, held)

		w.responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		time.Sleep(time.Until(c.Status().Expires))
		requireNoStaple(t, c)
		require.Equal(t, held, c.Response())
	})
}

func TestCachedBytesAreVerified(t *testing.T) {
	w := newWorld(t)
	cert := w.leaf()
	key := cacheKeyOf(cert.Leaf)
	cases := stapletest.Forgeries(w.ca, cert.Leaf)
	require.Greater(t, len(cases), 20)
	w.responder.Set(nil, stapletest.Answer{Error: ocsp.TryLater})
	for _, forged := range cases {
		cache := NewMemoryCache()
		require.NoError(t, cache.Put(t.Context(), key, forged.DER))
		s := w.stapler(func(s *Stapler) { s.Cache = cache })
		c, err := s.Add(cert)
		require.NoError(t, err)
		require.Empty(t, c.TLS().OCSPStaple, forged.Name)
		require.NoError(t, s.Wait(soon(t)))
		require.Empty(t, c.TLS().OCSPStaple, forged.Name)

		// The same from the network, while a good one is held: it stays.
		require.NoError(t, cache.Put(t.Context(), key, w.responderOf(cert.Leaf)))
		s = w.stapler(func(s *Stapler) {
			s.Cache = cache
			s.Fetcher = FetcherFunc(func(context.Context, *Request) ([]byte, error) { return forged.DER, nil })
		})
		c, err = s.Add(cert)
		require.NoError(t, err)
		before := c.TLS().OCSPStaple
		require.NotEmpty(t, before)
		_ = c.Refresh(soon(t))
		require.Equal(t, before, c.TLS().OCSPStaple, forged.Name)
		stored, err := cache.Get(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, before, stored, forged.Name)
		s.Close()
	}
}

func (w *world) responderOf(leaf *x509.Certificate) []byte {
	return stapletest.NewResponder(w.ca).Response(leaf)
}

func cacheKeyOf(leaf *x509.Certificate) string {
	return (&entry{key: sha256.Sum256(leaf.Raw)}).cacheKey()
}

func TestStatusCountsHandshakesWithoutStaple(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.responder.Set(nil, stapletest.Answer{Error: ocsp.TryLater})
		s := w.stapler()
		c, err := s.Add(w.leaf())
		require.NoError(t, err)
		for range 3 {
			_, err := c.GetCertificate(nil)
			require.NoError(t, err)
		}
		_, err = c.GetClientCertificate(nil)
		require.NoError(t, err)
		c.TLS()
		require.EqualValues(t, 4, c.Status().UnstapledHandshakes)

		silent, err := s.Add(w.leaf(func(o *stapletest.LeafOptions) { o.Responders = nil }))
		require.NoError(t, err)
		_, err = silent.GetCertificate(nil)
		require.NoError(t, err)
		require.Zero(t, silent.Status().UnstapledHandshakes)
	})
}

func TestTheSameLeafTwiceIsFetchedOnceAndEventsNameItsOldestHandle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.stapler()
		cert := w.leaf()
		a := w.add(s, cert)
		b := w.add(s, cert)
		require.Len(t, slices.Collect(s.Certificates()), 2)
		synctest.Wait()
		require.Len(t, w.responder.Requests(nil), 1)
		require.Same(t, a, w.log.last().Certificate)
		a.Remove()
		require.ErrorIs(t, a.Refresh(soon(t)), ErrClosed)
		time.Sleep(time.Second)
		require.NoError(t, b.Refresh(soon(t)))
		synctest.Wait()
		require.Same(t, b, w.log.last().Certificate)
		require.Equal(t, []*Certificate{b}, slices.Collect(s.Certificates()))
		require.Equal(t, time.Second, b.Status().ThisUpdate.Sub(requireStaple(t, a, ocsp.Good).ThisUpdate), "the removed handle still changes")
		b.Remove()
		b.Remove()
		require.Empty(t, slices.Collect(s.Certificates()))
		time.Sleep(30 * 24 * time.Hour)
		require.Len(t, w.responder.Requests(nil), 2)
		requireNoStaple(t, a)
	})
}

func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.stapler()
		cert := w.leaf()
		c := w.add(s, cert)
		w.responder.Set(cert.Leaf, stapletest.Answer{Delay: time.Second})
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { require.NoError(t, c.Refresh(soon(t))) })
		}
		wg.Wait()
		require.Len(t, w.responder.Requests(cert.Leaf), 2, "ten calls at once make one request")

		old := w.responder.Response(cert.Leaf)
		time.Sleep(time.Hour)
		w.responder.Set(cert.Leaf, stapletest.Answer{Replay: old})
		require.NoError(t, c.Refresh(soon(t)))
		require.NoError(t, c.Refresh(soon(t)), "not newer is no error")

		w.responder.Set(cert.Leaf, stapletest.Answer{Hang: true})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, c.Refresh(ctx), context.DeadlineExceeded)
		requireStaple(t, c, ocsp.Good)
	})
}

func TestWaitEndsWithItsContextAndTellsWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.responder.Set(nil, stapletest.Answer{Error: ocsp.Unauthorized})
		s := w.stapler()
		c, err := s.Add(w.leaf())
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		err = c.Wait(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		var status ocsp.ResponseError
		require.ErrorAs(t, err, &status)
		require.Equal(t, ocsp.Unauthorized, status.Status)

		w.responder.Set(nil, stapletest.Answer{Hang: true})
		_, err = s.Add(w.leaf(func(o *stapletest.LeafOptions) { o.Names = []string{"slow.example.com"} }))
		require.NoError(t, err)
		ctx, cancel = context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		err = s.Wait(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "CN=slow.example.com")
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cache := NewMemoryCache()
		s := w.stapler(func(s *Stapler) { s.Cache = cache })
		cert := w.leaf()
		c := w.add(s, cert)
		w.responder.Set(nil, stapletest.Answer{Hang: true})
		pending, err := s.Add(w.leaf())
		require.NoError(t, err)
		synctest.Wait()
		waited := make(chan error, 2)
		go func() { waited <- pending.Wait(context.Background()) }()
		go func() { waited <- pending.Refresh(context.Background()) }()
		synctest.Wait()
		start := time.Now()
		require.NoError(t, s.Close())
		require.NoError(t, s.Close())
		require.Zero(t, time.Since(start))
		require.ErrorIs(t, <-waited, ErrClosed)
		require.ErrorIs(t, <-waited, ErrClosed)
		requireStaple(t, c, ocsp.Good)
		require.ErrorIs(t, c.Refresh(t.Context()), ErrClosed)
		_, err = s.Add(cert)
		require.ErrorIs(t, err, ErrClosed)
		require.ErrorContains(t, err, "CN=www.example.com")
		base := &tls.Config{Certificates: []tls.Certificate{cert}}
		require.Len(t, s.TLSConfig(base).Certificates, 1, "not a plain clone")
		require.NotSame(t, base, s.TLSConfig(base))
		require.NotNil(t, s.TLSConfig(nil))
		require.NoError(t, s.Wait(t.Context()))
		time.Sleep(8 * 24 * time.Hour)
		requireNoStaple(t, c)
	})
}

func TestAcceptedResponsesAreStoredAlsoWhileClosing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cert := w.leaf()
		cache := &slowCache{MemoryCache: NewMemoryCache(), delay: 3 * time.Second}
		s := w.stapler(func(s *Stapler) { s.Cache = cache })
		c, err := s.Add(cert)
		require.NoError(t, err)
		require.NoError(t, c.Wait(soon(t)))
		require.NoError(t, s.Close())
		stored, err := cache.MemoryCache.Get(t.Context(), c.entry.cacheKey())
		require.NoError(t, err)
		require.Equal(t, c.TLS().OCSPStaple, stored)

		cache = &slowCache{MemoryCache: NewMemoryCache(), delay: time.Hour}
		s = w.stapler(func(s *Stapler) { s.Cache = cache })
		c, err = s.Add(cert)
		require.NoError(t, err)
		require.NoError(t, c.Wait(soon(t)))
		start := time.Now()
		require.NoError(t, s.Close())
		require.LessOrEqual(t, time.Since(start), 5*time.Second)
	})
}

// A slowCache takes its time to store, unless ctx ends.
type slowCache struct {
	*MemoryCache
	delay time.Duration
}

func (c *slowCache) Put(ctx context.Context, key string, data []byte) error {
	select {
	case <-time.After(c.delay):
		return c.MemoryCache.Put(ctx, key, data)
	case <-ctx.Done():
		return ctx.Err()
	}
}

type brokenCache struct{}

var errBroken = errors.New("no space left on device")

func (brokenCache) Get(context.Context, string) ([]byte, error) { return nil, errBroken }
func (brokenCache) Put(context.Context, string, []byte) error   { return errBroken }
func (brokenCache) Delete(context.Context, string) error        { return errBroken }

func TestAStapleThatCameWithTheCertificate(t *testing.T) {
	week := 7 * 24 * time.Hour
	for _, tt := range []struct {
		name      string
		carried   func(w *world, leaf *x509.Certificate) []byte
		noIssuer  bool
		responder bool
		want      time.Duration // how long it is stapled
	}{
		{name: "good: stapled to its end", carried: func(w *world, leaf *x509.Certificate) []byte {
			return w.responderOf(leaf)
		}, want: week},
		{name: "forged: not stapled", carried: func(w *world, leaf *x509.Certificate) []byte {
			return stapletest.Forgeries(w.ca, leaf)[0].DER
		}},
		{name: "garbage: not stapled", carried: func(w *world, leaf *x509.Certificate) []byte { return []byte("garbage") }},
		{name: "garbage, issuer unknown: not stapled", noIssuer: true,
			carried: func(w *world, leaf *x509.Certificate) []byte { return []byte("garbage") }},
		{name: "expired: not stapled", carried: func(w *world, leaf *x509.Certificate) []byte {
			r := stapletest.NewResponder(w.ca)
			r.Set(nil, stapletest.Answer{Age: week})
			return r.Response(leaf)
		}},
		{name: "expired, issuer unknown: not stapled", noIssuer: true, carried: func(w *world, leaf *x509.Certificate) []byte {
			r := stapletest.NewResponder(w.ca)
			r.Set(nil, stapletest.Answer{Age: week})
			return r.Response(leaf)
		}},
		{name: "issuer unknown: left alone until its end", noIssuer: true, carried: func(w *world, leaf *x509.Certificate) []byte {
			return w.responderOf(leaf)
		}, want: week},
		{name: "older than the responder's: replaced", responder: true, carried: func(w *world, leaf *x509.Certificate) []byte {
			r := stapletest.NewResponder(w.ca)
			r.Set(nil, stapletest.Answer{Age: 4 * 24 * time.Hour})
			return r.Response(leaf)
		}, want: 30 * 24 * time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				cert := w.leaf(func(o *stapletest.LeafOptions) { o.OmitIssuer = tt.noIssuer })
				if !tt.responder {
					w.responder.Set(nil, stapletest.Answer{Error: ocsp.TryLater})
				}
				cert.OCSPStaple = tt.carried(w, cert.Leaf)
				s := w.stapler()
				c, err := s.Add(cert)
				require.NoError(t, err)
				if tt.want == 0 {
					require.Empty(t, c.TLS().OCSPStaple)
					return
				}
				require.NotEmpty(t, c.TLS().OCSPStaple)
				require.True(t, c.Status().Stapled)
				if !tt.responder {
					require.Equal(t, cert.OCSPStaple, c.TLS().OCSPStaple)
				}
				time.Sleep(tt.want - time.Second)
				require.NotEmpty(t, c.TLS().OCSPStaple)
				require.Equal(t, tt.responder, string(cert.OCSPStaple) != string(c.TLS().OCSPStaple))
				time.Sleep(time.Second)
				require.Equal(t, tt.responder, len(c.TLS().OCSPStaple) > 0)
			})
		})
	}
}

func TestOnEventMayCallEverythingButClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		done := make(chan error, 1)
		var once sync.Once
		s := w.stapler(func(s *Stapler) {
			s.Concurrency = 1
			s.OnEvent = func(e Event) {
				once.Do(func() {
					time.Sleep(time.Second)
					err := e.Certificate.Refresh(context.Background())
					for c := range s.Certificates() {
						c.Status()
						c.Remove()
					}
					_, _ = s.Add(w.leaf())
					done <- err
				})
			}
		})
		_, err := s.Add(w.leaf())
		require.NoError(t, err)
		require.NoError(t, <-done)
		synctest.Wait()
	})
}

func TestTheHandshakePathDoesNotAllocate(t *testing.T) {
	w := newWorld(t)
	c := w.add(w.stapler(), w.leaf())
	require.Zero(t, testing.AllocsPerRun(100, func() { c.TLS() }))
	require.Zero(t, testing.AllocsPerRun(100, func() { _, _ = c.GetCertificate(nil) }))
	require.Zero(t, testing.AllocsPerRun(100, func() { _, _ = c.GetClientCertificate(nil) }))
}

func TestTheZeroStapler(t *testing.T) {
	var s Stapler
	require.NoError(t, s.Wait(t.Context()))
	require.Empty(t, slices.Collect(s.Certificates()))
	require.NoError(t, s.Close())
	_, err := s.Add(newWorld(t).leaf())
	require.ErrorIs(t, err, ErrClosed)
}

func TestRequireStapleRefusesMustStapleHandshakesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.responder.Set(nil, stapletest.Answer{Error: ocsp.TryLater})
		s := w.stapler(func(s *Stapler) { s.RequireStaple = true })
		plain, err := s.Add(w.leaf())
		require.NoError(t, err)
		must, err := s.Add(w.leaf(mustStapleLeaf))
		require.NoError(t, err)
		require.True(t, must.Status().MustStaple)
		require.False(t, plain.Status().MustStaple)
		_, err = plain.GetCertificate(nil)
		require.NoError(t, err)
		for hello, refused := range map[*tls.ClientHelloInfo]bool{
			nil:                              true,
			{}:                               true,
			{Extensions: []uint16{0, 5, 10}}: true,
			{Extensions: []uint16{0, 10}}:    false,
			{Extensions: []uint16{}}:         false,
			{ServerName: "x", Extensions: []uint16{5}}: true,
		} {
			_, err := must.GetCertificate(hello)
			require.Equal(t, refused, err != nil, "%+v", hello)
			if refused {
				require.ErrorContains(t, err, "CN=www.example.com")
			}
		}
		_, err = must.GetClientCertificate(nil)
		require.NoError(t, err)
		require.NotNil(t, must.TLS())
		w.responder.Reset(nil)
		require.NoError(t, must.Refresh(soon(t)))
		_, err = must.GetCertificate(nil)
		require.NoError(t, err)
	})
}

// A hello without any extension comes from crypto/tls with Extensions nil, as does
// one that was made by hand; only the latter may be of a client that wants a staple.
func TestRequireStapleIsNotForClientsThatAskForNone(t *testing.T) {
	w := newWorld(t)
	w.responder.Set(nil, stapletest.Answer{Error: ocsp.TryLater})
	s := w.stapler(func(s *Stapler) { s.RequireStaple = true })
	must, err := s.Add(w.leaf(mustStapleLeaf, func(o *stapletest.LeafOptions) { o.KeyType = stapletest.RSA2048 }))
	require.NoError(t, err)
	require.NoError(t, s.Wait(soon(t)))
	config := &tls.Config{
		GetCertificate: must.GetCertificate,
		CipherSuites:   []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}, // needs no extension
	}
	const handshake, alert = 22, 21
	for _, tt := range []struct {
		name       string
		extensions []byte
		want       byte // the type of the server's first record
	}{
		{"no extensions at all", nil, handshake},
		{"no extension in the list", []byte{0, 0}, handshake},
		{"extended_master_secret alone", []byte{0, 4, 0, 23, 0, 0}, handshake},
		{"status_request", []byte{0, 9, 0, 5, 0, 5, 1, 0, 0, 0, 0}, alert},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, server := net.Pipe()
			defer client.Close()
			defer server.Close()
			go tls.Server(server, config).HandshakeContext(t.Context())
			hello := slices.Concat([]byte{3, 3}, make([]byte, 32), []byte{0, 0, 2, 0, 0x9c, 1, 0}, tt.extensions)
			hello = slices.Concat([]byte{1, 0, 0, byte(len(hello))}, hello)
			_, err := client.Write(slices.Concat([]byte{handshake, 3, 1, 0, byte(len(hello))}, hello))
			require.NoError(t, err)
			var first [1]byte
			_, err = io.ReadFull(client, first[:])
			require.NoError(t, err)
			require.Equal(t, tt.want, first[0])
		})
	}
	conn, other := net.Pipe()
	defer conn.Close()
	defer other.Close()
	_, err = must.GetCertificate(&tls.ClientHelloInfo{Conn: conn})
	require.NoError(t, err)
	_, err = must.GetCertificate(&tls.ClientHelloInfo{Conn: conn, Extensions: []uint16{0, 5}})
	require.ErrorContains(t, err, "Must-Staple")
	_, err = must.GetCertificate(&tls.ClientHelloInfo{})
	require.ErrorContains(t, err, "Must-Staple")
}

func TestAVerifierThatReturnsNothingIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.stapler(func(s *Stapler) { s.Verifier = silentVerifier{} })
		c, err := s.Add(w.leaf())
		require.NoError(t, err)
		require.NoError(t, s.Wait(soon(t)))
		require.ErrorContains(t, c.Status().Err, "neither a response nor an error")
		requireNoStaple(t, c)
	})
}

type silentVerifier struct{}

func (silentVerifier) Verify([]byte, *x509.Certificate, *x509.Certificate, time.Time) (*ocsp.Response, time.Time, error) {
	return nil, time.Now().Add(time.Hour), nil
}

func TestAnIssuerThatASecondAddBringsIsUsedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		full := w.leaf()
		bare := full
		bare.Certificate = full.Certificate[:1]
		s := w.stapler(func(s *Stapler) { s.Fetcher = noIssuerFetcher{s.Fetcher} })
		first, err := s.Add(bare)
		require.NoError(t, err)
		time.Sleep(time.Minute)
		require.ErrorIs(t, first.Status().Err, ErrNoIssuer)
		start := time.Now()
		requireStaple(t, w.add(s, full), ocsp.Good)
		require.Less(t, time.Since(start), 10*time.Second)
		requireStaple2(t, w, first)
	})
}

func TestARevocationThatCameWithTheCertificateIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cert := w.leaf()
		w.responder.Set(nil, stapletest.Answer{Status: ocsp.Revoked})
		cert.OCSPStaple = w.responder.Response(cert.Leaf)
		cache := NewMemoryCache()
		s := w.stapler(func(s *Stapler) { s.Cache = cache })
		c, err := s.Add(cert)
		require.NoError(t, err)
		require.ErrorIs(t, c.Wait(soon(t)), ErrRevoked)
		time.Sleep(time.Hour)
		require.NoError(t, s.Close())
		require.Empty(t, w.responder.Requests(nil))
		stored, err := cache.Get(t.Context(), cacheKeyOf(cert.Leaf))
		require.NoError(t, err)
		require.Equal(t, cert.OCSPStaple, stored)
	})
}

type lockedWriter struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func TestNothingHappensAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cert := w.leaf()
		s := w.stapler()
		config := s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c := cert
			return &c, nil
		}})
		_, err := config.GetCertificate(&tls.ClientHelloInfo{})
		require.NoError(t, err)
		require.NoError(t, s.Wait(soon(t)))
		known := slices.Collect(s.Certificates())
		require.Len(t, known, 1)
		require.NoError(t, s.Close())
		w.log.clear()
		n := len(w.responder.Requests(nil))
		time.Sleep(time.Hour)
		cert.OCSPStaple = w.responder.Response(cert.Leaf) // newer
		_, err = config.GetCertificate(&tls.ClientHelloInfo{})
		require.NoError(t, err)
		time.Sleep(30 * day)
		require.Empty(t, w.log.kinds())
		require.Zero(t, known[0].Status().NextRefresh)
		require.Len(t, w.responder.Requests(nil), n)
	})
}

func TestAnEventCarriesTheStatusJustAfterIt(t *testing.T) {
	for _, life := range []time.Duration{2 * day, 30 * day} { // before, and after the next refresh
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			c := w.add(w.stapler(), w.leaf(func(o *stapletest.LeafOptions) { o.NotAfter = time.Now().Add(life) }))
			synctest.Wait()
			require.Equal(t, c.Status(), w.log.last().Status)
		})
	}
}

func TestALoggerMayAskForTheStatus(t *testing.T) {
	w := newWorld(t)
	handler := &nosyHandler{Handler: slog.DiscardHandler}
	s := w.stapler(func(s *Stapler) { s.Logger = slog.New(handler) })
	c := w.add(s, w.leaf())
	handler.about.Store(c)
	done := make(chan error, 1)
	go func() { done <- c.Refresh(t.Context()) }()
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		t.Fatal("the engine calls the logger with its lock held")
	}
	require.Eventually(t, handler.asked.Load, 10*time.Second, time.Millisecond)
}

type nosyHandler struct {
	slog.Handler
	about atomic.Pointer[Certificate]
	asked atomic.Bool
}

func (h *nosyHandler) Enabled(context.Context, slog.Level) bool {
	if c := h.about.Load(); c != nil {
		c.Status()
		h.asked.Store(true)
	}
	return true
}
