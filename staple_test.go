package staple_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"sync"
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

func TestAddStaplesAndKeepsCurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler()
		cert := w.Leaf()
		start := time.Now()
		c := w.Add(s, cert)
		first := world.RequireStaple(t, c, ocsp.Good)
		st := c.Status()
		require.Equal(t, cert.Leaf.Raw, st.Leaf.Raw)
		require.Equal(t, first.ThisUpdate, st.ThisUpdate.UTC())
		require.Equal(t, first.NextUpdate, st.Expires.UTC())
		require.Equal(t, world.ResponderURL, st.Responder[:len(world.ResponderURL)])
		require.NoError(t, st.Err)
		require.Zero(t, st.Failures)
		require.WithinRange(t, st.NextRefresh, start.Add(75*time.Hour), start.Add(93*time.Hour))
		require.Equal(t, []byte(nil), cert.OCSPStaple, "the caller's certificate was changed")

		for range 20 { // ten weeks: the twentieth refresh like the first
			time.Sleep(84 * time.Hour)
			synctest.Wait()
			r := world.RequireStaple(t, c, ocsp.Good)
			require.Less(t, time.Since(r.ThisUpdate), 93*time.Hour)
		}
		require.InDelta(t, 21, len(w.Responder.Requests(cert.Leaf)), 2)
		require.NotContains(t, w.Log.Kinds(), staple.EventFailed)
	})
}

func TestBadInput(t *testing.T) {
	w := world.New(t)
	good := w.Leaf()
	brokenLeaf := good
	brokenLeaf.Certificate = [][]byte{good.Certificate[0][:100]}
	brokenLeaf.Leaf = nil
	for _, tt := range []struct {
		name string
		cert tls.Certificate
		want string
	}{
		{"no certificate", tls.Certificate{}, "the certificate chain is empty"},
		{"an empty leaf", tls.Certificate{Certificate: [][]byte{{}}}, "the certificate chain is empty"},
		{"a leaf that does not parse", brokenLeaf, "the leaf of the chain does not parse"},
	} {
		t.Run(tt.name+" is an error from Add, and goes through TLSConfig", func(t *testing.T) {
			s := w.Stapler()
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
		make func(w *world.World) tls.Certificate
	}{
		{"no responder", func(w *world.World) tls.Certificate {
			return w.Leaf(world.Responders())
		}},
		{"no responder and no issuer", func(w *world.World) tls.Certificate {
			return w.Leaf(func(o *stapletest.LeafOptions) { o.Responders = nil; o.OmitIssuer = true })
		}},
		{"expired", func(w *world.World) tls.Certificate {
			return w.Leaf(func(o *stapletest.LeafOptions) { o.NotAfter = time.Now().Add(-time.Second) })
		}},
		{"self-signed", func(w *world.World) tls.Certificate {
			return tls.Certificate{Certificate: [][]byte{w.CA.Root.Raw}, PrivateKey: w.CA.RootKey}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				s := w.Stapler()
				c, err := s.Add(tt.make(w))
				require.NoError(t, err)
				require.ErrorIs(t, c.Wait(world.Soon(t)), staple.ErrNoResponder)
				require.NoError(t, s.Wait(world.Soon(t)))
				require.ErrorIs(t, c.Status().Err, staple.ErrNoResponder)
				world.RequireNoStaple(t, c)
				time.Sleep(30 * 24 * time.Hour)
				require.Empty(t, w.Responder.Requests(nil))
				require.Empty(t, w.Log.Kinds())
				require.Zero(t, c.Status().NextRefresh)
				require.ErrorIs(t, c.Refresh(world.Soon(t)), staple.ErrNoResponder)
			})
		})
	}
}

func TestACertificateThatExpiresIsNotAskedAboutAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf(func(o *stapletest.LeafOptions) { o.NotAfter = time.Now().Add(6 * 24 * time.Hour) })
		c := w.Add(w.Stapler(), cert)
		require.Equal(t, cert.Leaf.NotAfter, c.Status().Expires, "the staple outlives the certificate")
		time.Sleep(6*24*time.Hour - time.Second)
		world.RequireStaple(t, c, ocsp.Good)
		time.Sleep(time.Minute)
		world.RequireNoStaple(t, c)
		require.ErrorIs(t, c.Status().Err, staple.ErrNoResponder)
		n := len(w.Responder.Requests(nil))
		require.LessOrEqual(t, n, 3)
		time.Sleep(30 * 24 * time.Hour)
		require.Len(t, w.Responder.Requests(nil), n)
		require.NotContains(t, w.Log.Kinds(), staple.EventExpired)
		require.NotContains(t, w.Log.Kinds(), staple.EventFailed)
	})
}

func TestTheIssuerIsFound(t *testing.T) {
	other := stapletest.NewCA(stapletest.CAOptions{Name: world.CA().Issuer.Subject.CommonName})
	for _, tt := range []struct {
		name string
		edit func(w *world.World, cert *tls.Certificate, s *staple.Stapler)
		want error
	}{
		{"next in the chain", func(*world.World, *tls.Certificate, *staple.Stapler) {}, nil},
		{"anywhere in the chain", func(w *world.World, cert *tls.Certificate, s *staple.Stapler) {
			cert.Certificate = [][]byte{cert.Certificate[0], w.CA.Root.Raw, other.Root.Raw, cert.Certificate[1]}
		}, nil},
		{"among Issuers", func(w *world.World, cert *tls.Certificate, s *staple.Stapler) {
			cert.Certificate = cert.Certificate[:1]
			s.Issuers = []*x509.Certificate{nil, other.Root, w.CA.Issuer}
		}, nil},
		{"by the Fetcher", func(w *world.World, cert *tls.Certificate, s *staple.Stapler) {
			cert.Certificate = cert.Certificate[:1]
			s.Fetcher = issuerFetcher{s.Fetcher, []*x509.Certificate{other.Root, w.CA.Issuer}}
		}, nil},
		{"not, where the Fetcher finds another of the same name", func(w *world.World, cert *tls.Certificate, s *staple.Stapler) {
			cert.Certificate = cert.Certificate[:1]
			s.Fetcher = issuerFetcher{s.Fetcher, []*x509.Certificate{other.Root}}
		}, context.DeadlineExceeded},
		{"not, where the leaf tells nothing", func(w *world.World, cert *tls.Certificate, s *staple.Stapler) {
			cert.Certificate = cert.Certificate[:1]
		}, staple.ErrNoIssuer},
		{"not, where the Fetcher does not look", func(w *world.World, cert *tls.Certificate, s *staple.Stapler) {
			cert.Certificate = cert.Certificate[:1]
			s.Fetcher = staple.FetcherFunc(s.Fetcher.Fetch)
		}, staple.ErrNoIssuer},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				cert := w.Leaf()
				s := w.Stapler(func(s *staple.Stapler) { tt.edit(w, &cert, s) })
				c, err := s.Add(cert)
				require.NoError(t, err)
				err = c.Wait(world.Soon(t))
				if tt.want == nil {
					require.NoError(t, err)
					requireStaple2(t, w, c)
					return
				}
				require.ErrorIs(t, err, tt.want)
				require.ErrorIs(t, err, staple.ErrNoIssuer)
				require.ErrorContains(t, err, "CN=www.example.com")
				require.ErrorContains(t, err, "put the issuer's certificate into the chain")
				require.Empty(t, w.Responder.Requests(nil))
				world.RequireNoStaple(t, c)
				synctest.Wait()
				require.Equal(t, staple.EventFailed, w.Log.Last().Kind)
			})
		})
	}
}

// requireStaple2 is requireStaple for a chain without issuer.
func requireStaple2(t *testing.T, w *world.World, c *staple.Certificate) {
	t.Helper()
	require.NotEmpty(t, c.TLS().OCSPStaple)
	_, _, err := new(staple.ResponseVerifier).Verify(c.TLS().OCSPStaple, c.TLS().Leaf, w.CA.Issuer, time.Now())
	require.NoError(t, err)
}

type issuerFetcher struct {
	staple.Fetcher
	issuers []*x509.Certificate
}

func (f issuerFetcher) FetchIssuer(context.Context, *x509.Certificate) ([]*x509.Certificate, error) {
	return f.issuers, nil
}

func TestAnIssuerThatASecondAddBringsIsUsedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		full := w.Leaf()
		bare := full
		bare.Certificate = full.Certificate[:1]
		s := w.Stapler(func(s *staple.Stapler) { s.Fetcher = world.NoIssuers{Fetcher: s.Fetcher} })
		first, err := s.Add(bare)
		require.NoError(t, err)
		time.Sleep(time.Minute)
		require.ErrorIs(t, first.Status().Err, staple.ErrNoIssuer)
		start := time.Now()
		world.RequireStaple(t, w.Add(s, full), ocsp.Good)
		require.Less(t, time.Since(start), 10*time.Second)
		requireStaple2(t, w, first)
	})
}

func TestStatusCountsHandshakesWithoutStaple(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Error: ocsp.TryLater})
		s := w.Stapler()
		c, err := s.Add(w.Leaf())
		require.NoError(t, err)
		for range 3 {
			_, err := c.GetCertificate(nil)
			require.NoError(t, err)
		}
		_, err = c.GetClientCertificate(nil)
		require.NoError(t, err)
		c.TLS()
		require.EqualValues(t, 4, c.Status().UnstapledHandshakes)

		silent, err := s.Add(w.Leaf(world.Responders()))
		require.NoError(t, err)
		_, err = silent.GetCertificate(nil)
		require.NoError(t, err)
		require.Zero(t, silent.Status().UnstapledHandshakes)
	})
}

func TestTheSameLeafTwiceIsFetchedOnceAndEventsNameItsOldestHandle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler()
		cert := w.Leaf()
		a := w.Add(s, cert)
		b := w.Add(s, cert)
		require.Len(t, slices.Collect(s.Certificates()), 2)
		synctest.Wait()
		require.Len(t, w.Responder.Requests(nil), 1)
		require.Same(t, a, w.Log.Last().Certificate)
		a.Remove()
		require.ErrorIs(t, a.Refresh(world.Soon(t)), staple.ErrClosed)
		time.Sleep(time.Second)
		require.NoError(t, b.Refresh(world.Soon(t)))
		synctest.Wait()
		require.Same(t, b, w.Log.Last().Certificate)
		require.Equal(t, []*staple.Certificate{b}, slices.Collect(s.Certificates()))
		require.Equal(t, time.Second, b.Status().ThisUpdate.Sub(world.RequireStaple(t, a, ocsp.Good).ThisUpdate), "the removed handle still changes")
		b.Remove()
		b.Remove()
		require.Empty(t, slices.Collect(s.Certificates()))
		time.Sleep(30 * 24 * time.Hour)
		require.Len(t, w.Responder.Requests(nil), 2)
		world.RequireNoStaple(t, a)
	})
}

func TestWaitEndsWithItsContextAndTellsWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Error: ocsp.Unauthorized})
		s := w.Stapler()
		c, err := s.Add(w.Leaf())
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		err = c.Wait(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		var status ocsp.ResponseError
		require.ErrorAs(t, err, &status)
		require.Equal(t, ocsp.Unauthorized, status.Status)

		w.Responder.Set(nil, stapletest.Answer{Hang: true})
		_, err = s.Add(w.Leaf(func(o *stapletest.LeafOptions) { o.Names = []string{"slow.example.com"} }))
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
		w := world.New(t)
		cache := staple.NewMemoryCache()
		s := w.Stapler(func(s *staple.Stapler) { s.Cache = cache })
		cert := w.Leaf()
		c := w.Add(s, cert)
		w.Responder.Set(nil, stapletest.Answer{Hang: true})
		pending, err := s.Add(w.Leaf())
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
		require.ErrorIs(t, <-waited, staple.ErrClosed)
		require.ErrorIs(t, <-waited, staple.ErrClosed)
		world.RequireStaple(t, c, ocsp.Good)
		require.ErrorIs(t, c.Refresh(t.Context()), staple.ErrClosed)
		_, err = s.Add(cert)
		require.ErrorIs(t, err, staple.ErrClosed)
		require.ErrorContains(t, err, "CN=www.example.com")
		base := &tls.Config{Certificates: []tls.Certificate{cert}}
		require.Len(t, s.TLSConfig(base).Certificates, 1, "not a plain clone")
		require.NotSame(t, base, s.TLSConfig(base))
		require.NotNil(t, s.TLSConfig(nil))
		require.NoError(t, s.Wait(t.Context()))
		time.Sleep(8 * 24 * time.Hour)
		world.RequireNoStaple(t, c)
	})
}

func TestNothingHappensAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf()
		s := w.Stapler()
		config := s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c := cert
			return &c, nil
		}})
		_, err := config.GetCertificate(&tls.ClientHelloInfo{})
		require.NoError(t, err)
		require.NoError(t, s.Wait(world.Soon(t)))
		known := slices.Collect(s.Certificates())
		require.Len(t, known, 1)
		require.NoError(t, s.Close())
		w.Log.Clear()
		n := len(w.Responder.Requests(nil))
		time.Sleep(time.Hour)
		cert.OCSPStaple = w.Responder.Response(cert.Leaf) // newer
		_, err = config.GetCertificate(&tls.ClientHelloInfo{})
		require.NoError(t, err)
		time.Sleep(30 * world.Day)
		require.Empty(t, w.Log.Kinds())
		require.Zero(t, known[0].Status().NextRefresh)
		require.Len(t, w.Responder.Requests(nil), n)
	})
}

func TestAcceptedResponsesAreStoredAlsoWhileClosing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf()
		cache := &slowCache{MemoryCache: staple.NewMemoryCache(), delay: 3 * time.Second}
		s := w.Stapler(func(s *staple.Stapler) { s.Cache = cache })
		c, err := s.Add(cert)
		require.NoError(t, err)
		require.NoError(t, c.Wait(world.Soon(t)))
		require.NoError(t, s.Close())
		stored, err := cache.MemoryCache.Get(t.Context(), world.CacheKey(cert.Leaf))
		require.NoError(t, err)
		require.Equal(t, c.TLS().OCSPStaple, stored)

		cache = &slowCache{MemoryCache: staple.NewMemoryCache(), delay: time.Hour}
		s = w.Stapler(func(s *staple.Stapler) { s.Cache = cache })
		c, err = s.Add(cert)
		require.NoError(t, err)
		require.NoError(t, c.Wait(world.Soon(t)))
		start := time.Now()
		require.NoError(t, s.Close())
		require.LessOrEqual(t, time.Since(start), 5*time.Second)
	})
}

// A slowCache takes its time to store, unless ctx ends.
type slowCache struct {
	*staple.MemoryCache
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

func TestTheHandshakePathDoesNotAllocate(t *testing.T) {
	w := world.New(t)
	c := w.Add(w.Stapler(), w.Leaf())
	require.Zero(t, testing.AllocsPerRun(100, func() { c.TLS() }))
	require.Zero(t, testing.AllocsPerRun(100, func() { _, _ = c.GetCertificate(nil) }))
	require.Zero(t, testing.AllocsPerRun(100, func() { _, _ = c.GetClientCertificate(nil) }))
}

func TestAddAndRemoveUnderLoad(t *testing.T) {
	w := world.New(t)
	s := w.Stapler()
	cert := w.Leaf()
	w.Add(s, cert)
	config := s.TLSConfig(nil)
	var adding, looking sync.WaitGroup
	var done atomic.Bool
	for range 4 {
		adding.Go(func() {
			for range 2000 {
				c, err := s.Add(cert)
				require.NoError(t, err)
				require.NotEmpty(t, c.TLS().OCSPStaple)
				c.Remove()
			}
		})
		looking.Go(func() {
			for !done.Load() {
				got, err := config.GetCertificate(&tls.ClientHelloInfo{ServerName: "www.example.com"})
				require.NoError(t, err)
				require.NotEmpty(t, got.OCSPStaple)
				for c := range s.Certificates() {
					c.Status()
				}
			}
		})
	}
	adding.Wait()
	done.Store(true)
	looking.Wait()
	require.Len(t, w.Responder.Requests(nil), 1)
}

func TestTheZeroStapler(t *testing.T) {
	var s staple.Stapler
	require.NoError(t, s.Wait(t.Context()))
	require.Empty(t, slices.Collect(s.Certificates()))
	require.NoError(t, s.Close())
	_, err := s.Add(world.New(t).Leaf())
	require.ErrorIs(t, err, staple.ErrClosed)
}

func TestWhatCryptoTLSLeavesNilDoesNotPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf()
		config := w.Stapler().TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}})
		got, err := config.GetClientCertificate(nil)
		require.NoError(t, err)
		require.Equal(t, cert.Certificate, got.Certificate)
		config = w.Stapler().TLSConfig(&tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }})
		got, err = config.GetClientCertificate(nil)
		require.NoError(t, err)
		require.Equal(t, cert.Certificate, got.Certificate)

		for _, key := range []any{(*ecdsa.PrivateKey)(nil), (*rsa.PrivateKey)(nil), ed25519.PrivateKey(nil), nil} {
			keyless := cert
			keyless.PrivateKey = key
			s := w.Stapler()
			world.RequireStaple(t, w.Add(s, keyless), ocsp.Good)
			for _, config := range []*tls.Config{s.TLSConfig(nil), s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{keyless, keyless}})} {
				_, _, err := world.Connect(t, config, w.Client("www.example.com"))
				require.Error(t, err, "%T", key)
			}
		}
	})
}
