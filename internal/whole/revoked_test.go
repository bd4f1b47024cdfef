package whole

import (
	"context"
	"crypto"
	"crypto/tls"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

var compromised = stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise}

// revoke has the responder say that cert is revoked, and requires that c is.
func revoke(t *testing.T, w *world.World, cert tls.Certificate, c *staple.Certificate, a stapletest.Answer) {
	t.Helper()
	time.Sleep(time.Minute)
	w.Responder.Set(cert.Leaf, a)
	require.NoError(t, c.Refresh(world.Soon(t)))
	requireRevoked(t, c)
}

func requireRevoked(t *testing.T, c *staple.Certificate) {
	t.Helper()
	synctest.Wait()
	world.RequireNoStaple(t, c)
	require.True(t, c.Status().Revoked)
	require.ErrorIs(t, c.Wait(t.Context()), staple.ErrRevoked)
}

func TestALiftedHoldIsStapledWithinTheHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf(world.MustStaple)
		c := w.Add(w.Stapler(), cert)
		revoke(t, w, cert, c, stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.CertificateHold})
		time.Sleep(time.Minute)
		w.Responder.Reset(cert.Leaf)
		time.Sleep(time.Hour)
		synctest.Wait()
		world.RequireStaple(t, c, ocsp.Good)
		require.Equal(t, 1, world.Count(w.Log.Kinds(), staple.EventReinstated))
	})
}

func TestARevocationThatWasAMistakeIsUndoneWithinTwoHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf(world.MustStaple)
		c := w.Add(w.Stapler(), cert)
		revoke(t, w, cert, c, compromised)
		time.Sleep(20 * time.Hour)
		w.Responder.Reset(cert.Leaf)
		require.NoError(t, c.Refresh(world.Soon(t)))
		require.NoError(t, c.Refresh(world.Soon(t)), "a second answer a moment later")
		requireRevoked(t, c)
		time.Sleep(29 * time.Minute)
		requireRevoked(t, c)
		time.Sleep(91 * time.Minute)
		synctest.Wait()
		world.RequireStaple(t, c, ocsp.Good)
		require.Equal(t, 1, world.Count(w.Log.Kinds(), staple.EventReinstated))
	})
}

func TestALaggingNodeDoesNotUndoARevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf()
		c := w.Add(w.Stapler(), cert)
		revoke(t, w, cert, c, compromised)
		for i := range 100 {
			time.Sleep(40 * time.Minute)
			w.Responder.Set(cert.Leaf, compromised)
			if i%2 == 0 {
				w.Responder.Reset(cert.Leaf)
			}
			require.NoError(t, c.Refresh(world.Soon(t)))
			requireRevoked(t, c)
		}
		require.Zero(t, world.Count(w.Log.Kinds(), staple.EventReinstated))
	})
}

func TestARevocationOutlastsItsResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cache := staple.NewMemoryCache()
		withCache := func(s *staple.Stapler) { s.Cache = cache }
		cert := w.Leaf(world.LongLived)
		s := w.Stapler(withCache)
		c := w.Add(s, cert)
		short := compromised
		short.Validity = time.Hour
		revoke(t, w, cert, c, short)
		end := c.Status().Expires

		w.Responder.Set(cert.Leaf, stapletest.Answer{HTTPStatus: 500})
		n := len(w.Responder.Requests(nil))
		time.Sleep(10 * world.Day)
		requireRevoked(t, c)
		require.Equal(t, end, c.Status().Expires)
		require.Less(t, len(w.Responder.Requests(nil))-n, 10*24*5, "nothing is gained by asking more often")

		// After a restart what the cache has counts, though it has ended.
		s.Close()
		s = w.Stapler(withCache)
		c, err := s.Add(cert)
		require.NoError(t, err)
		requireRevoked(t, c)
		require.Equal(t, end, c.Status().Expires)
		at := c.Status()
		require.Equal(t, ocsp.KeyCompromise, at.RevocationReason)
		require.False(t, at.RevokedAt.IsZero())

		// And it yields as it would have without one.
		w.Responder.Reset(cert.Leaf)
		require.NoError(t, c.Refresh(world.Soon(t)))
		requireRevoked(t, c)
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		world.RequireStaple(t, c, ocsp.Good)
	})
}

func TestARevocationPastItsEndIsNotStapled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf(world.LongLived)
		c := w.Add(w.Stapler(func(s *staple.Stapler) { s.StapleRevoked = true }), cert)
		short := compromised
		short.Validity = time.Hour
		w.Responder.Set(cert.Leaf, short)
		time.Sleep(time.Minute)
		require.NoError(t, c.Refresh(world.Soon(t)))
		world.RequireStaple(t, c, ocsp.Revoked)
		w.Responder.Set(cert.Leaf, stapletest.Answer{HTTPStatus: 500})
		time.Sleep(time.Hour)
		requireRevoked(t, c)
	})
}

func TestAClockThatIsSetBackUndoesNoRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := world.SetClock(t)
		w := world.New(t)
		cert := w.Leaf(world.LongLived)
		old := w.Responder.Response(cert.Leaf)
		time.Sleep(6 * time.Hour)
		c := w.Add(w.Stapler(), cert)
		revoke(t, w, cert, c, compromised)
		w.Responder.Set(cert.Leaf, stapletest.Answer{Replay: old})
		set(-3 * time.Hour)
		time.Sleep(2 * time.Hour)
		requireRevoked(t, c)
	})
}

func TestAForgedRevocationInTheCacheRevokesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert, other := w.Leaf(world.LongLived), w.Leaf(world.LongLived)
		forged := func(edit func(*stapletest.Response)) []byte {
			r := stapletest.NewResponse(w.CA, cert.Leaf)
			r.Singles[0].Status = ocsp.Revoked
			r.Singles[0].ThisUpdate, r.Singles[0].NextUpdate = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
			edit(r)
			return r.DER()
		}
		for name, der := range map[string][]byte{
			"by a sibling": forged(func(r *stapletest.Response) {
				r.Signer = &stapletest.Signer{Certificate: other.Leaf, Key: other.PrivateKey.(crypto.Signer)}
			}),
			"of the future": forged(func(r *stapletest.Response) {
				r.Singles[0].ThisUpdate, r.Singles[0].NextUpdate = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
			}),
			"good": forged(func(r *stapletest.Response) { r.Singles[0].Status = ocsp.Good }),
		} {
			cache := staple.NewMemoryCache()
			require.NoError(t, cache.Put(t.Context(), world.CacheKey(cert.Leaf), der))
			w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
			c, err := w.Stapler(func(s *staple.Stapler) { s.Cache = cache }).Add(cert)
			require.NoError(t, err)
			require.False(t, c.Status().Revoked, name)
			require.True(t, c.Status().ThisUpdate.IsZero(), name)
		}
	})
}

func TestAFleetLearnsOfARevocationAndOfItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cache := world.NewLockedCache()
		cert := w.Leaf(world.LongLived)
		var fleet []*staple.Certificate
		for range 3 {
			fleet = append(fleet, w.Add(w.Stapler(func(s *staple.Stapler) { s.Cache = cache }), cert))
		}
		time.Sleep(time.Minute)
		w.Responder.Set(cert.Leaf, compromised)
		require.NoError(t, fleet[0].Refresh(world.Soon(t)))
		requireRevoked(t, fleet[0])
		stored := func() *ocsp.Response {
			der, err := cache.Get(context.Background(), world.CacheKey(cert.Leaf))
			require.NoError(t, err)
			r, err := ocsp.ParseResponse(der, nil)
			require.NoError(t, err)
			return r
		}
		require.Equal(t, ocsp.Revoked, stored().Status)
		for _, c := range fleet[1:] {
			require.NoError(t, c.Refresh(world.Soon(t)))
			requireRevoked(t, c)
		}

		w.Responder.Reset(cert.Leaf)
		time.Sleep(time.Minute)
		require.NoError(t, fleet[0].Refresh(world.Soon(t)))
		require.Equal(t, ocsp.Revoked, stored().Status, "what waits for a second one is not stored")
		time.Sleep(31 * time.Minute)
		require.NoError(t, fleet[0].Refresh(world.Soon(t)))
		synctest.Wait()
		world.RequireStaple(t, fleet[0], ocsp.Good)
		require.Equal(t, ocsp.Good, stored().Status)
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		for _, c := range fleet {
			world.RequireStaple(t, c, ocsp.Good)
		}
		require.Equal(t, ocsp.Good, stored().Status, "nobody has stored the revocation again")
	})
}
