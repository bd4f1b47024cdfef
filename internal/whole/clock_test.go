package whole

import (
	"context"
	"errors"
	"fmt"
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

func TestAClockThatIsSetAndAMachineThatSlept(t *testing.T) {
	for _, offset := range []time.Duration{8 * world.Day, 300 * world.Day, -3 * time.Hour, -300 * world.Day} {
		t.Run(fmt.Sprint("by ", offset), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var now atomic.Int64 // the responder knows the right time, which the wall clock shows after a sleep
				set := world.SetClock(t)
				w := world.New(t)
				cert := w.Leaf(func(o *stapletest.LeafOptions) {
					o.NotBefore, o.NotAfter = time.Now().Add(-1000*world.Day), time.Now().Add(1000*world.Day)
				})
				w.Responder.Set(nil, stapletest.Answer{Edit: func(r *stapletest.Response) {
					shift := time.Duration(now.Load())
					r.ProducedAt = r.ProducedAt.Add(shift)
					r.Singles[0].ThisUpdate = r.Singles[0].ThisUpdate.Add(shift)
					r.Singles[0].NextUpdate = r.Singles[0].NextUpdate.Add(shift)
				}})
				c := w.Add(w.Stapler(), cert)
				time.Sleep(time.Hour)

				set(offset)
				if offset > 0 {
					now.Store(int64(offset))
					require.Empty(t, c.TLS().OCSPStaple, "an expired response is stapled after a sleep")
				}
				time.Sleep(time.Minute / 2)
				synctest.Wait()
				if offset > 0 {
					require.NotEmpty(t, c.TLS().OCSPStaple, "no recovery")
				}

				// The clock is set right again.
				now.Store(0)
				set(0)
				time.Sleep(time.Minute / 2)
				synctest.Wait()
				st := c.Status()
				require.LessOrEqual(t, time.Until(st.NextRefresh), 4*world.Day)
				require.NotEmpty(t, c.TLS().OCSPStaple)
			})
		})
	}
}

func TestAClockThatWasWrongAtTheStart(t *testing.T) {
	for _, offset := range []time.Duration{400 * world.Day, -400 * world.Day} {
		synctest.Test(t, func(t *testing.T) {
			set := world.SetClock(t)
			set(offset)
			w := world.New(t)
			cert := w.Leaf(func(o *stapletest.LeafOptions) {
				o.NotBefore, o.NotAfter = time.Now().Add(-1000*world.Day), time.Now().Add(1000*world.Day)
			})
			c, err := w.Stapler().Add(cert)
			require.NoError(t, err)
			time.Sleep(2 * world.Day)
			require.Empty(t, c.TLS().OCSPStaple)
			require.Error(t, c.Status().Err)
			set(0)
			time.Sleep(time.Minute / 2)
			synctest.Wait()
			require.NotEmpty(t, c.TLS().OCSPStaple, c.Status().Err)
		})
	}
}

func TestAClockSetBackDuringARoundThatBringsAnOlderResponse(t *testing.T) {
	for _, again := range []bool{false, true} {
		t.Run(fmt.Sprint("offered again after it: ", again), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				set := world.SetClock(t)
				w := world.New(t)
				cert := w.Leaf(world.LongLived)
				old := w.Responder.Response(cert.Leaf)
				time.Sleep(6 * time.Hour)
				newest := w.Responder.Response(cert.Leaf)
				var rounds atomic.Int32
				s := w.Stapler(func(s *staple.Stapler) {
					s.Fetcher = staple.FetcherFunc(func(ctx context.Context, req *staple.Request) ([]byte, error) {
						if rounds.Add(1) == 1 {
							return newest, nil
						}
						err := req.Accept(old)
						time.Sleep(10 * time.Second)
						if again {
							_ = req.Accept(old)
						}
						time.Sleep(10 * time.Second)
						return nil, errors.Join(err, context.DeadlineExceeded)
					})
				})
				c := w.Add(s, cert)
				time.Sleep(55 * time.Second)
				go c.Refresh(t.Context())
				time.Sleep(time.Second)
				set(-5 * time.Hour) // newest is of the future then
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				require.Equal(t, old, c.TLS().OCSPStaple)
			})
		})
	}
}

func TestAClockSetBackUnderAStapleThatHasNoResponder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := world.SetClock(t)
		w := world.New(t)
		cert := w.Leaf(world.LongLived, world.Responders())
		w.Responder.Set(nil, stapletest.Answer{Validity: world.Day})
		cert.OCSPStaple = w.Responder.Response(cert.Leaf)
		c := w.Add(w.Stapler(), cert)
		require.ErrorIs(t, c.Refresh(world.Soon(t)), staple.ErrNoResponder)
		world.RequireStaple(t, c, ocsp.Good)
		set(-2 * time.Hour)
		time.Sleep(time.Minute)
		world.RequireNoStaple(t, c)
		set(0)
		time.Sleep(2 * world.Day)
		synctest.Wait()
		world.RequireNoStaple(t, c)
		require.ErrorIs(t, c.Status().Err, staple.ErrNoResponder)
		require.Empty(t, w.Responder.Requests(nil))
	})
}

func TestAClockThatWasBeyondTheEndOfTheCertificate(t *testing.T) {
	for _, name := range []string{"from the start", "later"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				set := world.SetClock(t)
				w := world.New(t)
				s := w.Stapler()
				cert := w.Leaf(world.LongLived)
				if name == "later" {
					w.Add(s, cert)
				}
				set(2000 * world.Day)
				c, err := s.Add(cert)
				require.NoError(t, err)
				time.Sleep(time.Minute)
				require.Empty(t, c.TLS().OCSPStaple)
				set(0)
				time.Sleep(time.Minute)
				world.RequireStaple(t, c, ocsp.Good)
				time.Sleep(30 * world.Day)
				synctest.Wait()
				world.RequireStaple(t, c, ocsp.Good)
			})
		})
	}
}

func TestAStapleThatEndedWhileTheMachineSleptIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := world.SetClock(t)
		w := world.New(t)
		c := w.Add(w.Stapler(), w.Leaf(world.LongLived))
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		set(8 * world.Day)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		world.RequireNoStaple(t, c)
		require.Equal(t, 1, world.Count(w.Log.Kinds(), staple.EventExpired))
	})
}

func TestAStepOfTheClockDoesNotBringTheNextRequestsForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := world.SetClock(t)
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Period: 5 * world.Day})
		s := w.Stapler()
		key := w.Leaf().PrivateKey
		for i := range 100 {
			_, err := s.Add(w.Leaf(world.LongLived, world.Names(fmt.Sprint(i, ".example.com")), world.SameKey(key)))
			require.NoError(t, err)
		}
		time.Sleep(4*world.Day + 6*time.Hour) // they have been asked about in vain, and are to be again
		n := len(w.Responder.Requests(nil))
		require.Greater(t, n, 100)
		set(6 * time.Second)
		time.Sleep(time.Minute)
		require.Less(t, len(w.Responder.Requests(nil))-n, 10)
	})
}

func TestACertificateThatExpiresDuringARoundIsNotAskedAboutAnyMore(t *testing.T) {
	for name, answer := range map[string]stapletest.Answer{"in vain": {Hang: true}, "good": {Delay: 9 * time.Second}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				s := w.Stapler()
				w.Responder.Set(nil, answer)
				c, err := s.Add(w.Leaf(func(o *stapletest.LeafOptions) { o.NotAfter = time.Now().Add(5 * time.Second) }))
				require.NoError(t, err)
				time.Sleep(time.Minute)
				require.ErrorIs(t, c.Wait(world.Soon(t)), staple.ErrNoResponder)
				st := c.Status()
				require.ErrorIs(t, st.Err, staple.ErrNoResponder)
				require.Zero(t, st.NextRefresh)
				require.Zero(t, st.Failures)
				require.Empty(t, w.Log.Kinds())
				asked := len(w.Responder.Requests(nil))
				time.Sleep(world.Day)
				require.Len(t, w.Responder.Requests(nil), asked)
			})
		})
	}
}
