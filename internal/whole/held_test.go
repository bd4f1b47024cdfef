package whole

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
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

// A CA that falls back from a delta to its base CRL answers with something older, which may be valid for longer.
func TestAnOlderResponseThatIsStillValidIsStapledWhenTheNewerHasEnded(t *testing.T) {
	for _, from := range []string{"the responder", "the cache"} {
		t.Run("from "+from, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				cache := staple.NewMemoryCache()
				cert := w.Leaf()
				w.Responder.Set(nil, stapletest.Answer{Validity: 10 * world.Day})
				older := w.Responder.Response(cert.Leaf)
				time.Sleep(time.Hour)
				w.Responder.Set(nil, stapletest.Answer{Validity: world.Day})
				c := w.Add(w.Stapler(func(s *staple.Stapler) { s.Cache = cache }), cert)
				newer, end := c.TLS().OCSPStaple, c.Status().Expires
				w.Responder.Set(nil, stapletest.Answer{Replay: older})
				if from == "the cache" {
					w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
				}
				time.Sleep(time.Until(end) - time.Second)
				synctest.Wait()
				if from == "the cache" { // where another process has put it that knows nothing newer
					require.NoError(t, cache.Put(t.Context(), world.CacheKey(cert.Leaf), older))
				}
				require.Equal(t, newer, c.TLS().OCSPStaple, "while it is valid, nothing older is taken")
				w.Log.Clear()
				time.Sleep(4 * time.Second)
				synctest.Wait()
				require.Equal(t, older, c.TLS().OCSPStaple)
				require.NotContains(t, w.Log.Kinds(), staple.EventFailed)
				time.Sleep(5 * world.Day)
				synctest.Wait()
				require.Equal(t, older, c.TLS().OCSPStaple)

				// What is newer is taken again.
				w.Responder.Reset(nil)
				require.NoError(t, c.Refresh(world.Soon(t)))
				require.NotEqual(t, older, c.TLS().OCSPStaple)
			})
		})
	}
}

func TestStaplerWaitEndsSoonAndNamesMustStapleCertificatesWithoutAStaple(t *testing.T) {
	for _, n := range []int{1, 16, 100} {
		t.Run(fmt.Sprint(n, " certificates"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				s := w.Stapler()
				well := w.Leaf(world.Responders("http://well.example"), world.MustStaple, world.Names("well.example.com"))
				mute := w.Leaf(world.Responders(), world.MustStaple, world.Names("mute.example.com"))
				plain := w.Leaf(world.Names("plain.example.com"))
				for _, cert := range []tls.Certificate{well, plain} {
					_, err := s.Add(cert)
					require.NoError(t, err)
				}
				require.NoError(t, s.Wait(world.Soon(t)))
				w.Responder.Set(plain.Leaf, stapletest.Answer{Hang: true})
				for i := range n {
					cert := w.Leaf(world.MustStaple, world.Names(fmt.Sprintf("dead%d.example.com", i)), world.SameKey(well.PrivateKey))
					w.Responder.Set(cert.Leaf, stapletest.Answer{Hang: true})
					_, err := s.Add(cert)
					require.NoError(t, err)
				}
				gone, err := s.Add(mute)
				require.NoError(t, err)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				err = s.Wait(ctx)
				require.NoError(t, ctx.Err(), "a minute was not enough")
				require.ErrorContains(t, err, fmt.Sprintf("%d Must-Staple certificates have no staple", n+1))
				require.ErrorContains(t, err, "CN=dead0.example.com")
				require.ErrorContains(t, err, world.ResponderURL)
				require.NotContains(t, err.Error(), "well.example.com")
				require.NotContains(t, err.Error(), "plain.example.com")
				require.Less(t, len(err.Error()), 20_000)
				if n == 1 {
					require.ErrorIs(t, err, staple.ErrNoResponder)
				}
				gone.Remove()
				require.NotContains(t, s.Wait(ctx).Error(), "mute.example.com")
			})
		})
	}
}

func TestAClockThatIsWrongForAMomentCostsNoStaple(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := world.SetClock(t)
		w := world.New(t)
		cert := w.Leaf(world.LongLived)
		c := w.Add(w.Stapler(), cert)
		second, err := w.Stapler().Add(w.Leaf(world.Responders("http://ocsp.other")))
		require.NoError(t, err)
		for _, offset := range []time.Duration{8 * world.Day, 300 * world.Day, -300 * world.Day} {
			time.Sleep(time.Hour + 7*time.Second)
			set(offset)
			if offset > 0 {
				require.Empty(t, c.TLS().OCSPStaple, "it has ended, by this clock")
			}
			second.TLS()
			set(0)
			time.Sleep(30 * time.Second)
			synctest.Wait()
			world.RequireStaple(t, c, ocsp.Good)
			world.RequireStaple(t, second, ocsp.Good)
		}
	})
}

func TestARoundWhileTheClockIsWrongDoesNotPutOffTheNext(t *testing.T) {
	for _, healthy := range []bool{true, false} {
		for _, offset := range []time.Duration{50 * world.Day, -50 * world.Day} {
			synctest.Test(t, func(t *testing.T) {
				set := world.SetClock(t)
				w := world.New(t)
				cert := w.Leaf(world.LongLived)
				c := w.Add(w.Stapler(), cert)
				time.Sleep(time.Hour + 7*time.Second)
				if !healthy {
					w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 404})
				}
				set(offset)
				require.Error(t, c.Refresh(world.Soon(t)), "by this clock, no response is current")
				set(0)
				w.Responder.Reset(nil)
				time.Sleep(30 * time.Second)
				synctest.Wait()
				require.LessOrEqual(t, time.Until(c.Status().NextRefresh), 4*world.Day)
				world.RequireStaple(t, c, ocsp.Good)
			})
		}
	}
}

// What is dropped when the clock is set back may be all that is to be had when it is right again.
func TestWhatLiesInTheFutureForAWhileIsHeldAgainAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := world.SetClock(t)
		w := world.New(t)
		c := w.Add(w.Stapler(), w.Leaf(world.LongLived))
		newest := c.TLS().OCSPStaple
		time.Sleep(time.Minute)
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500})
		set(-world.Day)
		time.Sleep(31 * time.Second)
		synctest.Wait()
		world.RequireNoStaple(t, c)
		set(0)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		require.Equal(t, newest, c.TLS().OCSPStaple)
	})
}

func TestWhatTheVerifierAcceptsIsNotDroppedWhenTheClockIsSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := world.SetClock(t)
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Age: -20 * time.Minute})
		c := w.Add(w.Stapler(func(s *staple.Stapler) { s.Verifier = &staple.ResponseVerifier{ClockSkew: time.Hour} }), w.Leaf(world.LongLived))
		n := len(w.Responder.Requests(nil))
		time.Sleep(time.Second)
		set(6 * time.Second)
		for range 60 {
			time.Sleep(time.Second)
			synctest.Wait()
			require.NotEmpty(t, c.TLS().OCSPStaple)
		}
		require.Len(t, w.Responder.Requests(nil), n)
	})
}

func TestARefreshThatALockPutsOffSurvivesAnAnswerFromElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cache := world.NewLockedCache()
		cert := w.Leaf()
		s := w.Stapler(func(s *staple.Stapler) { s.Cache = cache })
		c := w.Add(s, cert)
		time.Sleep(time.Hour)
		cache.Hold(world.CacheKey(cert.Leaf), time.Now().Add(10*time.Second))
		var done atomic.Bool
		go func() {
			require.NoError(t, c.Refresh(t.Context()))
			done.Store(true)
		}()
		time.Sleep(2 * time.Second)
		require.False(t, done.Load())
		again := cert
		again.OCSPStaple = w.FreshResponse(cert.Leaf)
		_, err := s.Add(again)
		require.NoError(t, err)
		time.Sleep(20 * time.Second)
		synctest.Wait()
		require.True(t, done.Load())
	})
}

// A slowIssuers is a Fetcher that finds no issuer, and takes its time.
type slowIssuers struct{ staple.Fetcher }

func (slowIssuers) FetchIssuer(context.Context, *x509.Certificate) ([]*x509.Certificate, error) {
	time.Sleep(5 * time.Second)
	return nil, staple.ErrNoIssuer
}

func TestAnIssuerThatComesWhileItIsLookedForElsewhereIsNotMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf()
		bare := tls.Certificate{Certificate: cert.Certificate[:1], PrivateKey: cert.PrivateKey}
		s := w.Stapler(func(s *staple.Stapler) { s.Fetcher = slowIssuers{s.Fetcher} })
		c, err := s.Add(bare)
		require.NoError(t, err)
		time.Sleep(time.Second)
		_, err = s.Add(cert)
		require.NoError(t, err)
		require.NoError(t, c.Wait(world.Soon(t)))
	})
}

func TestStaplesThatNobodyCanVerifyDoNotPileUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf()
		bare := tls.Certificate{Certificate: cert.Certificate[:1], PrivateKey: cert.PrivateKey}
		parsed := 0
		s := w.Stapler(func(s *staple.Stapler) {
			s.Fetcher = world.NoIssuers{Fetcher: s.Fetcher}
			s.Verifier = verifierFunc(func(response []byte, leaf, issuer *x509.Certificate, now time.Time) (*ocsp.Response, time.Time, error) {
				parsed++
				return new(staple.ResponseVerifier).Verify(response, leaf, issuer, now)
			})
		})
		first, err := s.Add(bare)
		require.NoError(t, err)
		woken := make(chan error, 1)
		go func() { woken <- first.Wait(t.Context()) }()
		synctest.Wait()
		require.Empty(t, woken)
		var last *staple.Certificate
		for i := range 200 {
			time.Sleep(time.Second)
			bare.OCSPStaple = w.FreshResponse(cert.Leaf)
			last, err = s.Add(bare)
			require.NoError(t, err)
			require.Equal(t, bare.OCSPStaple, last.TLS().OCSPStaple)
			if i == 0 {
				synctest.Wait()
				require.Len(t, woken, 1, "a second handle brought the staple, and Wait was not woken")
				require.NoError(t, <-woken)
				require.Equal(t, bare.OCSPStaple, first.TLS().OCSPStaple)
			}
		}
		newest := bare.OCSPStaple
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: http.StatusServiceUnavailable}) // or its answer may be as new
		_, err = s.Add(cert)                                                               // with its issuer
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, newest, last.TLS().OCSPStaple)
		require.LessOrEqual(t, parsed, 5, "all of them were kept")
	})
}

func TestAResponderThatOnlyAWrapperKnowsPausesAndCounts(t *testing.T) {
	for name, wrap := range map[string]func(inner *staple.HTTPFetcher) staple.Fetcher{
		"HTTPFetcher.URLs": func(inner *staple.HTTPFetcher) staple.Fetcher { return inner },
		"a FetcherFunc":    func(inner *staple.HTTPFetcher) staple.Fetcher { return staple.FetcherFunc(inner.Fetch) },
		"a struct that embeds it": func(inner *staple.HTTPFetcher) staple.Fetcher {
			return struct{ *staple.HTTPFetcher }{inner}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				var text world.Text
				var asked atomic.Int32
				s := w.Stapler(func(s *staple.Stapler) {
					inner := s.Fetcher.(*staple.HTTPFetcher)
					inner.Client = &http.Client{Transport: roundTripper(func(req *http.Request) (*http.Response, error) {
						asked.Add(1)
						return nil, errRefused
					})}
					inner.URLs = func(*x509.Certificate) []string { return []string{"http://override.example/"} }
					s.Fetcher, s.Logger = wrap(inner), text.Logger()
				})
				var all []*staple.Certificate
				key := w.Leaf().PrivateKey
				for i := range 300 {
					c, err := s.Add(w.Leaf(world.Responders(), world.Names(fmt.Sprint(i, ".example.com")), world.SameKey(key)))
					require.NoError(t, err)
					all = append(all, c)
				}
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				most := int32(75)
				if name == "a FetcherFunc" { // which asks about each before anybody knows whom
					most += 300
				}
				require.LessOrEqual(t, asked.Load(), most)
				require.LessOrEqual(t, strings.Count(text.String(), `"level":"WARN"`), 10)
				_, err := all[200].GetCertificate(nil)
				require.NoError(t, err)
				require.EqualValues(t, 1, all[200].Status().UnstapledHandshakes)
				var failed *staple.HTTPError
				require.True(t, errors.As(all[200].Status().Err, &failed))
				require.Equal(t, "http://override.example/", failed.URL)
			})
		})
	}
}

type verifierFunc func(response []byte, leaf, issuer *x509.Certificate, now time.Time) (*ocsp.Response, time.Time, error)

func (f verifierFunc) Verify(response []byte, leaf, issuer *x509.Certificate, now time.Time) (*ocsp.Response, time.Time, error) {
	return f(response, leaf, issuer, now)
}
