package whole

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestWhatMayNotBeStapledIsNot(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer stapletest.Answer
	}{
		{"unknown", stapletest.Answer{Status: ocsp.Unknown}},
		{"tryLater", stapletest.Answer{Error: ocsp.TryLater}},
		{"internalError", stapletest.Answer{Error: ocsp.InternalError}},
		{"unauthorized", stapletest.Answer{Error: ocsp.Unauthorized}},
		{"garbage", stapletest.Answer{Body: []byte("<html>It works!</html>")}},
		{"expired", stapletest.Answer{Age: 8 * 24 * time.Hour}},
		{"HTTP 500", stapletest.Answer{HTTPStatus: 500}},
	} {
		for _, held := range []bool{false, true} {
			name := tt.name + " from the beginning"
			if held {
				name = tt.name + " later: the good staple stays until its end"
			}
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := world.New(t)
					s := w.Stapler()
					cert := w.Leaf()
					if !held {
						w.Responder.Set(nil, tt.answer)
						c, err := s.Add(cert)
						require.NoError(t, err)
						require.NoError(t, s.Wait(world.Soon(t)))
						world.RequireNoStaple(t, c)
						require.Error(t, c.Refresh(world.Soon(t)))
						require.Equal(t, 2, c.Status().Failures)
						require.Error(t, c.Status().Err)
						require.ErrorContains(t, c.Status().Err, "CN=www.example.com")
						synctest.Wait()
						require.Equal(t, []staple.EventKind{staple.EventFailed, staple.EventFailed}, w.Log.Kinds())
						w.Responder.Reset(nil)
						time.Sleep(2 * time.Minute)
						require.NoError(t, c.Wait(world.Soon(t)), "it does not recover")
						return
					}
					c := w.Add(s, cert)
					w.Responder.Set(nil, tt.answer)
					for range 6 {
						time.Sleep(27 * time.Hour)
						world.RequireStaple(t, c, ocsp.Good)
					}
					time.Sleep(12 * time.Hour)
					synctest.Wait()
					world.RequireNoStaple(t, c)
					kinds := w.Log.Kinds()
					require.Equal(t, 2, world.Count(kinds, staple.EventExpiring))
					require.Equal(t, 1, world.Count(kinds, staple.EventExpired))
					n := world.Count(kinds, staple.EventFailed)
					require.Greater(t, n, 50, "too few tries in three days and a half")
					require.Less(t, n, 400, "too many tries in three days and a half")
					w.Responder.Reset(nil)
					time.Sleep(time.Hour)
					synctest.Wait()
					world.RequireStaple(t, c, ocsp.Good)
				})
			})
		}
	}
}

func TestARestartInAnOutageStaplesFromTheFirstHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf()
		cache := staple.DirCache(t.TempDir())
		s := w.Stapler(func(s *staple.Stapler) { s.Cache = cache })
		w.Add(s, cert)
		time.Sleep(2 * 24 * time.Hour)
		s.Close()
		w.Responder.Set(nil, stapletest.Answer{Hang: true})
		for _, age := range []time.Duration{0, 4 * 24 * time.Hour} { // before its refresh time, and past it
			time.Sleep(age)
			s := w.Stapler(func(s *staple.Stapler) { s.Cache = cache })
			config := s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}})
			got, err := config.GetCertificate(&tls.ClientHelloInfo{})
			require.NoError(t, err)
			require.NotEmpty(t, got.OCSPStaple)
			synctest.Wait()
			require.Equal(t, age == 0, len(w.Responder.Requests(nil)) == 1)
			s.Close()
		}
	})
}

func TestAnOutageIsNoFloodOfLines(t *testing.T) {
	const certificates, validity = 1000, 26 * time.Hour
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Validity: validity})
		var lines world.Text
		s := w.Stapler(func(s *staple.Stapler) { s.Logger = lines.Logger() })
		var certs []tls.Certificate
		for range certificates {
			certs = append(certs, w.Leaf(world.SameKey(w.CA.Key)))
		}
		config := s.TLSConfig(&tls.Config{Certificates: certs})
		require.NoError(t, s.Wait(t.Context()))
		synctest.Wait()
		lines.TakeLines(t)
		w.Log.Clear()
		w.Responder.Reset(nil)
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 503})
		time.Sleep(world.Day)
		synctest.Wait()

		levels := make(map[string]int)
		for _, line := range lines.TakeLines(t) {
			levels[line["level"].(string)+" "+line["event"].(string)]++
		}
		requests := len(w.Responder.Requests(nil))
		t.Logf("%d certificates, a day's outage: lines %v, %d requests", certificates, levels, requests)
		require.Equal(t, certificates-1, levels["DEBUG expiring"], "what no line has for a beginning")
		require.Equal(t, 2, levels["WARN expiring"], "one at once, and one that counts the others")
		require.Positive(t, levels["WARN failed"])
		require.LessOrEqual(t, levels["WARN expiring"]+levels["WARN failed"], 10)
		for line := range levels {
			require.Contains(t, []string{"WARN failed", "DEBUG failed", "WARN expiring", "DEBUG expiring"}, line)
		}
		expiring := make(map[*staple.Certificate]bool)
		for _, e := range w.Log.Events() {
			if e.Kind == staple.EventExpiring {
				expiring[e.Certificate] = true
			}
		}
		require.Len(t, expiring, certificates)

		w.Responder.Set(nil, stapletest.Answer{Validity: validity})
		time.Sleep(time.Hour)
		synctest.Wait()
		for c := range s.Certificates() {
			require.Greater(t, c.Status().ThisUpdate, time.Now().Add(-time.Hour))
		}
		var ends []string
		for _, line := range lines.TakeLines(t) {
			if line["level"] != "DEBUG" {
				ends = append(ends, fmt.Sprint(line["level"], " ", line["event"]))
				if line["event"] == "stapled" {
					require.EqualValues(t, certificates, line["certificates"])
				}
			}
		}
		require.Equal(t, []string{"INFO answered", "INFO stapled"}, ends)
		require.NotNil(t, config)
	})
}

func TestANewCertificateThatTheResponderDoesNotKnowYetIsStapledSoonAfterItDoes(t *testing.T) {
	for _, answer := range []stapletest.Answer{{Error: ocsp.Unauthorized}, {Status: ocsp.Unknown}} {
		synctest.Test(t, func(t *testing.T) {
			w := world.New(t)
			cert := w.Leaf()
			w.Responder.Set(cert.Leaf, answer)
			c, err := w.Stapler().Add(cert)
			require.NoError(t, err)
			time.Sleep(3 * time.Minute)
			require.GreaterOrEqual(t, c.Status().Failures, 4)
			w.Responder.Reset(nil)
			start := time.Now()
			require.NoError(t, c.Wait(t.Context()))
			require.Less(t, time.Since(start), 11*time.Minute)
		})
	}
}

func TestAfterTheEndOlderResponsesDoNotLeadToARush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Validity: time.Hour})
		cert := w.Leaf()
		w.Add(w.Stapler(), cert)
		old := stapletest.NewResponse(w.CA, cert.Leaf)
		old.Singles[0].ThisUpdate = time.Now().Add(-time.Hour)
		old.Singles[0].NextUpdate = time.Now().Add(30 * world.Day)
		old.Singles[0].Status = ocsp.Revoked // or it would be taken then
		w.Responder.Set(nil, stapletest.Answer{Replay: old.DER()})
		time.Sleep(2 * time.Hour)
		n := len(w.Responder.Requests(nil))
		time.Sleep(time.Hour)
		n = len(w.Responder.Requests(nil)) - n
		require.NotZero(t, n)
		require.Less(t, n, 100)
	})
}

func TestTriesBeforeTheEndDoNotMakeThoseAfterItRarer(t *testing.T) {
	for _, validity := range []time.Duration{time.Hour, world.Day, 7 * world.Day} {
		synctest.Test(t, func(t *testing.T) {
			w := world.New(t)
			w.Responder.Set(nil, stapletest.Answer{Validity: validity})
			c := w.Add(w.Stapler(), w.Leaf())
			w.Responder.Set(nil, stapletest.Answer{Error: ocsp.Unauthorized})
			time.Sleep(validity)
			synctest.Wait()
			require.Greater(t, c.Status().Failures, 50) // more than are patient without a staple
			time.Sleep(time.Minute)
			for range 120 {
				time.Sleep(time.Minute)
				synctest.Wait()
				st := c.Status()
				require.LessOrEqual(t, st.NextRefresh.Sub(st.LastAttempt), 10*time.Minute+time.Second)
			}
		})
	}
}

func TestRetryAfterIsHonored(t *testing.T) {
	for _, tt := range []struct {
		name  string
		held  bool
		asked string
		least time.Duration
		most  time.Duration
	}{
		{"as asked", true, "7200", 2 * time.Hour, 3 * time.Hour},
		{"half of what is left at most", true, "864000", 35 * time.Hour, 48 * time.Hour},
		{"an hour at most without a staple", false, "864000", time.Hour, time.Hour + 2*time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				busy := stapletest.Answer{HTTPStatus: 503, Body: []byte("busy"), Header: http.Header{"Retry-After": {tt.asked}}}
				s := w.Stapler()
				cert := w.Leaf()
				if tt.held {
					c := w.Add(s, cert)
					time.Sleep(time.Until(c.Status().NextRefresh) - time.Minute)
				}
				w.Responder.Set(nil, busy)
				w.Log.Clear()
				c, err := s.Add(cert)
				require.NoError(t, err)
				for len(w.Log.Kinds()) == 0 {
					time.Sleep(time.Second)
				}
				n := len(w.Responder.Requests(nil))
				pause := time.Until(c.Status().NextRefresh)
				require.GreaterOrEqual(t, pause, tt.least-time.Minute)
				require.LessOrEqual(t, pause, tt.most)
				time.Sleep(tt.least - time.Minute)
				require.Len(t, w.Responder.Requests(nil), n)
			})
		})
	}
}

func TestRetryAfterIsHonoredWhileOthersOfTheHostSucceed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler()
		other := w.Add(s, w.Leaf())
		busy := w.Leaf()
		w.Responder.Set(busy.Leaf, stapletest.Answer{HTTPStatus: 429, Header: http.Header{"Retry-After": {"1800"}}})
		_, err := s.Add(busy)
		require.NoError(t, err)
		for range 12 * 12 {
			time.Sleep(5 * time.Minute)
			require.NoError(t, other.Refresh(t.Context()))
		}
		synctest.Wait()
		failed := world.Count(w.Log.Kinds(), staple.EventFailed)
		require.LessOrEqual(t, failed, 25)
		require.GreaterOrEqual(t, failed, 12)
	})
}

func TestTroubleWithAnIssuerDoesNotMakeTheResponderPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler(func(s *staple.Stapler) { s.Fetcher = world.NoIssuers{Fetcher: s.Fetcher} })
		_, err := s.Add(w.Leaf(func(o *stapletest.LeafOptions) { o.OmitIssuer = true }))
		require.NoError(t, err)
		time.Sleep(time.Second)
		start := time.Now()
		w.Add(s, w.Leaf())
		require.Less(t, time.Since(start), 10*time.Second)
	})
}

func TestAPauseIsNotCutShortByAddingAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 503, Header: http.Header{"Retry-After": {"3600"}}})
		s := w.Stapler()
		cert := w.Leaf()
		for range 10 {
			c, err := s.Add(cert)
			require.NoError(t, err)
			time.Sleep(time.Second)
			c.Remove()
		}
		require.LessOrEqual(t, len(w.Responder.Requests(nil)), 3)
	})
}

func TestRefreshIsQuickAlsoWhileTheCacheStoresAndTheHostPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler(func(s *staple.Stapler) { s.Cache = slowFullCache{} })
		c := w.Add(s, w.Leaf())
		time.Sleep(time.Minute)
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 503, Header: http.Header{"Retry-After": {"3600"}}})
		require.Error(t, c.Refresh(world.Soon(t)))
		w.Responder.Reset(nil)
		time.Sleep(time.Second)
		start := time.Now()
		require.NoError(t, c.Refresh(t.Context()))
		require.Less(t, time.Since(start), time.Minute)
	})
}

// A slowFullCache takes its time to find that it has no room.
type slowFullCache struct{ world.BrokenCache }

func (slowFullCache) Get(context.Context, string) ([]byte, error) { return nil, staple.ErrCacheMiss }
func (slowFullCache) Put(context.Context, string, []byte) error {
	time.Sleep(2 * time.Second)
	return world.ErrBroken
}

func TestAfterAnOutageAllWorkersCatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 503})
		s := w.Stapler()
		key := w.Leaf().PrivateKey
		for i := range 200 {
			_, err := s.Add(w.Leaf(world.Names(fmt.Sprint(i, ".example.com")), world.SameKey(key)))
			require.NoError(t, err)
		}
		time.Sleep(20 * time.Minute)
		w.Responder.Set(nil, stapletest.Answer{Delay: time.Second})
		n := len(w.Responder.Requests(nil))
		for len(w.Responder.Requests(nil)) == n {
			time.Sleep(100 * time.Millisecond)
		}
		start := time.Now()
		for c := range s.Certificates() {
			require.NoError(t, c.Wait(t.Context()))
		}
		require.Less(t, time.Since(start), 45*time.Second) // 200 at 16 workers and 1 s, from within half a minute: 12.5 to 42.5 s
	})
}

func TestTheFirstRoundOfAnIssuerThatComesLaterEndsInAPauseToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler(func(s *staple.Stapler) { s.Fetcher = staple.FetcherFunc(s.Fetcher.Fetch) }) // which fetches no issuer
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 429, Header: http.Header{"Retry-After": {"600"}}})
		chain := w.Leaf(world.Names("bare.example.com"))
		bare := chain
		bare.Certificate = chain.Certificate[:1]
		c, err := s.Add(bare)
		require.NoError(t, err)
		require.ErrorIs(t, c.Wait(world.Soon(t)), staple.ErrNoIssuer)
		_, err = s.Add(w.Leaf())
		require.NoError(t, err)
		require.NoError(t, s.Wait(world.Soon(t)))
		c, err = s.Add(chain)
		require.NoError(t, err)
		began := time.Now()
		require.NoError(t, s.Wait(world.Soon(t)))
		require.Less(t, time.Since(began), 6*time.Second)
		require.ErrorContains(t, c.Status().Err, "429")
		time.Sleep(time.Hour)
		require.NotEmpty(t, w.Responder.Requests(c.TLS().Leaf), "it is not asked about")
	})
}
