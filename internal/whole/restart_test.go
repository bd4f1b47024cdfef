package whole

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"runtime"
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

const restarted = 500 // certificates: more than are looked for in a farCache in a second

// A farCache is in memory, but takes its time to read.
type farCache struct {
	staple.MemoryCache
	deaf  bool         // to the end of a context
	hangs atomic.Bool  // from now on
	gets  atomic.Int32 // that have begun
	keys  sync.Map     // that were read
}

const farAway = 300 * time.Millisecond

func (c *farCache) Get(ctx context.Context, key string) ([]byte, error) {
	c.gets.Add(1)
	c.keys.Store(key, true)
	if c.deaf {
		ctx = context.WithoutCancel(ctx)
	}
	after := time.After(farAway)
	if c.hangs.Load() {
		after = nil
	}
	select {
	case <-after:
		return c.MemoryCache.Get(ctx, key)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// newFarCache returns one that has a response about each of certs.
func newFarCache(w *world.World, certs []tls.Certificate) *farCache {
	c := new(farCache)
	for _, cert := range certs {
		c.put(w, cert, 0)
	}
	return c
}

// put stores a response about cert that has this age.
func (c *farCache) put(w *world.World, cert tls.Certificate, age time.Duration) {
	r := stapletest.NewResponder(w.CA)
	r.Set(nil, stapletest.Answer{Age: age})
	require.NoError(w.T, c.Put(w.T.Context(), world.CacheKey(cert.Leaf), r.Response(cert.Leaf)))
}

func (c *farCache) wasAskedAbout(leaf *x509.Certificate) bool {
	_, ok := c.keys.Load(world.CacheKey(leaf))
	return ok
}

func withCache(c staple.Cache) func(*staple.Stapler) {
	return func(s *staple.Stapler) { s.Cache = c }
}

// wrap has s look after certs by way of a configuration, which is kept until the test ends.
func wrap(t *testing.T, s *staple.Stapler, certs []tls.Certificate) *tls.Config {
	config := s.TLSConfig(&tls.Config{Certificates: certs})
	t.Cleanup(func() { runtime.KeepAlive(config) })
	return config
}

// ways are those in which certificates come under a Stapler's care.
var ways = []struct {
	name string
	add  func(t *testing.T, s *staple.Stapler, certs []tls.Certificate)
	most time.Duration // until a farCache was read about all that restarted
}{
	{"TLSConfig", func(t *testing.T, s *staple.Stapler, certs []tls.Certificate) { wrap(t, s, certs) }, 5 * time.Second},
	{"Add, in parallel", func(t *testing.T, s *staple.Stapler, certs []tls.Certificate) {
		var wg sync.WaitGroup
		for _, cert := range certs {
			wg.Go(func() { _, _ = s.Add(cert) })
		}
		wg.Wait()
	}, farAway},
	{"Add, in a loop", func(t *testing.T, s *staple.Stapler, certs []tls.Certificate) {
		for _, cert := range certs {
			_, err := s.Add(cert)
			require.NoError(t, err)
		}
	}, restarted * farAway},
}

func requireAllStapled(t *testing.T, s *staple.Stapler, n int) {
	t.Helper()
	all := slices.Collect(s.Certificates())
	require.Len(t, all, n)
	for _, c := range all {
		require.True(t, c.Status().Stapled, c.Status().Err)
	}
}

func TestARestartAsksForNothingThatTheCacheHas(t *testing.T) {
	for _, way := range ways {
		for _, deaf := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, of a cache that heeds contexts: %v", way.name, !deaf), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := world.New(t)
					certs := w.Many(restarted)
					cache := newFarCache(w, certs)
					cache.deaf = deaf
					s := w.Stapler(withCache(cache))
					began := time.Now()
					way.add(t, s, certs)
					require.NoError(t, s.Wait(t.Context()))
					require.LessOrEqual(t, time.Since(began), way.most)
					requireAllStapled(t, s, restarted)
					require.EqualValues(t, restarted, cache.gets.Load(), "more than one look about each")
					time.Sleep(time.Hour)
					require.Empty(t, w.Responder.Requests(nil))
				})
			})
		}
	}
}

func TestARestartAsksForWhatTheCacheLacksAsItIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		certs := w.Many(restarted)
		cache := newFarCache(w, nil)
		for i, cert := range certs {
			if i%10 != 0 {
				cache.put(w, cert, 0)
			}
		}
		s := w.Stapler(withCache(cache))
		began := time.Now()
		wrap(t, s, certs)
		require.Equal(t, time.Second, time.Since(began))
		time.Sleep(time.Second)
		soon := len(w.Responder.Requests(nil))
		require.Greater(t, soon, 5)
		require.Less(t, soon, restarted/10)
		require.NoError(t, s.Wait(t.Context()))
		requireAllStapled(t, s, restarted)
		for i, cert := range certs {
			require.Equal(t, i%10 == 0, len(w.Responder.Requests(cert.Leaf)) == 1)
		}
		require.Len(t, w.Responder.Requests(nil), restarted/10)
	})
}

func TestARestartAsksForNothingThatCameWithTheCertificates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		certs := w.Many(restarted)
		for i := range certs {
			certs[i].OCSPStaple = w.FreshResponse(certs[i].Leaf)
		}
		s := w.Stapler(func(s *staple.Stapler) { s.Verifier = slowVerifier{new(staple.ResponseVerifier)} })
		wrap(t, s, certs)
		require.NoError(t, s.Wait(t.Context()))
		requireAllStapled(t, s, restarted)
		require.Empty(t, w.Responder.Requests(nil))
	})
}

// A slowVerifier takes its time.
type slowVerifier struct{ staple.Verifier }

func (v slowVerifier) Verify(response []byte, leaf, issuer *x509.Certificate, now time.Time) (*ocsp.Response, time.Time, error) {
	time.Sleep(farAway)
	return v.Verifier.Verify(response, leaf, issuer, now)
}

func TestARestartAsksForNoSuccessorThatTheCertificateDoesNotLiveToNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf(func(o *stapletest.LeafOptions) { o.NotAfter = time.Now().Add(world.Day) })
		for range 3 {
			s := w.Stapler(withCache(newFarCache(w, []tls.Certificate{cert})))
			c := w.Add(s, cert)
			require.NoError(t, s.Wait(t.Context()))
			time.Sleep(time.Hour)
			world.RequireStaple(t, c, ocsp.Good)
			require.Zero(t, c.Status().NextRefresh)
			s.Close()
		}
		require.Empty(t, w.Responder.Requests(nil))
	})
}

func TestRoundsBeginThoughTheCacheHangs(t *testing.T) {
	const few = 100
	for _, way := range ways[:2] {
		for _, after := range []time.Duration{0, farAway / 2, 3 * farAway / 2, 5 * farAway} {
			t.Run(fmt.Sprintf("%s, hangs after %s", way.name, after), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := world.New(t)
					certs := w.Many(few)
					cache := newFarCache(w, nil)
					time.AfterFunc(after, func() { cache.hangs.Store(true) })
					s := w.Stapler(withCache(cache))
					began := time.Now()
					way.add(t, s, certs)
					require.LessOrEqual(t, time.Since(began), time.Second)
					time.Sleep(7 * time.Second) // five for the first rounds to give up
					require.NotEmpty(t, w.Responder.Requests(nil))
					time.Sleep(2 * time.Minute) // and for those after them
					requireAllStapled(t, s, few)
				})
			})
		}
	}
}

func TestRoundsBeginThoughTheCacheEndsGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		certs := w.Many(100)
		certs[0].OCSPStaple = w.FreshResponse(certs[0].Leaf)
		s := w.Stapler(withCache(new(fatalCache)))
		wrap(t, s, certs)
		require.NoError(t, s.Wait(t.Context()))
		time.Sleep(time.Minute) // some rounds failed of it, too
		requireAllStapled(t, s, len(certs))
	})
}

// A fatalCache ends the first goroutines that read it, as one does that calls t.FailNow.
type fatalCache struct {
	staple.MemoryCache
	gets atomic.Int32
}

func (c *fatalCache) Get(ctx context.Context, key string) ([]byte, error) {
	if c.gets.Add(1) < 50 {
		runtime.Goexit()
	}
	return c.MemoryCache.Get(ctx, key)
}

func TestCloseEndsARestartInTheMiddle(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := world.New(t)
			certs := w.Many(restarted)
			cache := newFarCache(w, certs)
			cache.deaf = deaf
			s := w.Stapler(withCache(cache))
			wrap(t, s, certs)
			time.Sleep(farAway / 2)
			began, gets := time.Now(), cache.gets.Load()
			require.Less(t, gets, int32(restarted))
			require.NoError(t, s.Close())
			require.LessOrEqual(t, time.Since(began), farAway)
			time.Sleep(time.Minute)
			require.Equal(t, gets, cache.gets.Load())
			require.Empty(t, w.Responder.Requests(nil))
		})
	}
}

func TestWhatIsRemovedInTheMiddleOfARestartIsNotLookedForAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		certs := w.Many(restarted)
		cache := newFarCache(w, certs)
		s := w.Stapler(withCache(cache))
		wrap(t, s, certs)
		all := slices.Collect(s.Certificates())
		gone := all[restarted-100:]
		for _, c := range gone {
			c.Remove()
		}
		require.NoError(t, s.Wait(t.Context()))
		requireAllStapled(t, s, restarted-len(gone))
		for _, c := range gone {
			require.False(t, cache.wasAskedAbout(c.Status().Leaf))
			require.Zero(t, c.Status().NextRefresh)
		}
		require.Empty(t, w.Responder.Requests(nil))
	})
}

func TestInTheMiddleOfARestartAllWillBeAskedAboutAsFarAsIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		certs := w.Many(restarted)
		s := w.Stapler(withCache(newFarCache(w, certs)))
		wrap(t, s, certs)
		stapled := 0
		for c := range s.Certificates() {
			st := c.Status()
			require.False(t, st.NextRefresh.IsZero())
			if st.Stapled {
				stapled++
			}
		}
		require.Greater(t, stapled, 90, "in the first second")
		require.Less(t, stapled, restarted)
	})
}

func TestAHandshakeInTheMiddleOfARestartWaitsForTheCacheAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Hang: true})
		certs := w.Many(restarted)
		cache := newFarCache(w, certs)
		last := w.Leaf(world.MustStaple, world.LongLived)
		cache.put(w, last, 5*world.Day) // so a new one is wanted
		began := time.Now()
		config := wrap(t, w.Stapler(withCache(cache)), append(certs, last))
		require.False(t, cache.wasAskedAbout(last.Leaf))
		client, _, err := world.Connect(t, config, w.Client("www.example.com"))
		require.NoError(t, err)
		require.NotEmpty(t, client.OCSPResponse)
		require.LessOrEqual(t, time.Since(began), 5*time.Second)
	})
}
