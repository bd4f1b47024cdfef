package staple_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"slices"
	"strings"
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

func TestEventKindString(t *testing.T) {
	for kind, want := range map[staple.EventKind]string{
		staple.EventStapled:          "stapled",
		staple.EventUnchanged:        "unchanged",
		staple.EventFailed:           "failed",
		staple.EventExpiring:         "expiring",
		staple.EventExpired:          "expired",
		staple.EventRevoked:          "revoked",
		staple.EventReinstated:       "reinstated",
		0:                            "EventKind(0)",
		-1:                           "EventKind(-1)",
		staple.EventReinstated + 100: "EventKind(107)",
	} {
		require.Equal(t, want, kind.String())
	}
}

// TestTheLogLineOfEachEvent writes down what an operator may filter by. Each event is one line, and each end of trouble
// another one.
func TestTheLogLineOfEachEvent(t *testing.T) {
	type step struct {
		name    string
		answer  stapletest.Answer
		pass    time.Duration // then Refresh, unless it is negative: then only that time
		event   string
		level   string
		message string
		attrs   []string // besides name, serial, must_staple, event and next
		ends    []string // their events, messages and lasted
	}
	down := stapletest.Answer{HTTPStatus: 503}
	held := []string{"expires", "responder"}
	failing := []string{"error", "expires", "responder"}
	blamed := []string{"error", "expires", "responder", "fault"}
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		var lines world.Text
		s := w.Stapler(func(s *staple.Stapler) { s.Logger = lines.Logger() })
		w.Responder.Set(nil, down)
		cert := w.Leaf(world.MustStaple)
		serial := strings.ReplaceAll(fmt.Sprintf("% x", cert.Leaf.SerialNumber.Bytes()), " ", ":")
		c, err := s.Add(cert)
		require.NoError(t, err)
		require.Error(t, s.Wait(t.Context()))
		const again = "answered staple: OCSP responses are obtained again"
		for _, tt := range []step{
			{"the first round fails", down, -1, "failed", "WARN", "staple: OCSP response not obtained", []string{"error", "fault"}, nil},
			{"stapled", stapletest.Answer{Period: world.Day}, time.Hour, "stapled", "DEBUG", "staple: OCSP response stapled", held, []string{again + " 0s"}},
			{"nothing newer", stapletest.Answer{Period: world.Day}, time.Hour, "unchanged", "DEBUG", "staple: OCSP response unchanged", held, nil},
			{"a refresh fails", down, time.Hour, "failed", "WARN", "staple: OCSP response not obtained", failing, nil},
			{"it fails again", down, time.Hour, "failed", "DEBUG", "staple: OCSP response not obtained", failing, nil},
			{"a quarter is left", down, -6 * world.Day, "expiring", "WARN", "staple: OCSP staple is about to end", blamed, nil},
			{"the end", down, -20*time.Hour - time.Minute, "expired", "ERROR", "staple: OCSP staple has ended", blamed, nil},
			{"it is Must-Staple", down, -time.Hour, "unstapled", "ERROR", "staple: Must-Staple certificate has no OCSP staple", append(blamed, "lasted"), nil},
			{"stapled again", stapletest.Answer{}, time.Hour, "stapled", "DEBUG", "staple: OCSP response stapled", held,
				[]string{again + " 167h1m0s", "stapled staple: stapled again 1h1m0s"}},
			{"revoked", stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.CertificateHold}, time.Hour, "revoked", "ERROR", "staple: certificate is revoked",
				append(held, "revoked_at", "reason"), nil},
			{"a hold is lifted", stapletest.Answer{}, time.Hour, "reinstated", "WARN", "staple: certificate is good again after it was revoked",
				append(held, "lasted", "certificates"), nil},
		} {
			w.Responder.Set(nil, tt.answer)
			if tt.pass > 0 {
				lines.TakeLines(t)
				w.Log.Clear()
				_ = c.Refresh(t.Context())
			} else {
				time.Sleep(-tt.pass)
			}
			synctest.Wait()
			var all []map[string]any
			var ends []string
			for _, line := range lines.TakeLines(t) {
				if line["level"] != "INFO" {
					if (line["event"] == "unstapled") == (tt.event == "unstapled") {
						all = append(all, line)
					}
					continue
				}
				require.EqualValues(t, 1, line["certificates"])
				lasted := time.Duration(line["lasted"].(float64))
				ends = append(ends, fmt.Sprint(line["event"], " ", line["msg"], " ", lasted))
			}
			require.Equal(t, tt.ends, ends, tt.name)
			events := w.Log.Events()
			w.Log.Clear()
			i := slices.IndexFunc(all, func(line map[string]any) bool { return line["event"] == tt.event })
			require.GreaterOrEqual(t, i, 0, tt.name)
			line := all[i]
			if tt.event != "unstapled" {
				require.Len(t, all, len(events), "one line an event: %s", tt.name)
				require.Equal(t, tt.event, events[i].Kind.String())
				requireTime(t, events[i].Status.NextRefresh, line["next"])
			}
			attrs := append([]string{"name", "serial", "must_staple", "event", "level", "msg", "next", "time"}, tt.attrs...)
			require.ElementsMatch(t, attrs, slices.Collect(maps.Keys(line)), tt.name)
			require.Equal(t, tt.level, line["level"], tt.name)
			require.Equal(t, tt.message, line["msg"])
			require.Equal(t, "CN=www.example.com", line["name"])
			require.Equal(t, serial, line["serial"])
			require.Equal(t, true, line["must_staple"])
			if line["expires"] != nil && tt.event != "unstapled" {
				requireTime(t, events[i].Status.Expires, line["expires"])
				require.Equal(t, events[i].Status.Responder, line["responder"])
			}
			if line["error"] != nil {
				require.Regexp(t, `^staple: "http://ocsp.example[^"]*": .*\(HTTP status 503\)$`, line["error"], "it says what others say")
			}
			if line["fault"] != nil {
				require.Equal(t, "CA at http://ocsp.example", line["fault"])
			}
			if tt.event == "revoked" {
				requireTime(t, events[i].Status.RevokedAt, line["revoked_at"])
				require.Equal(t, "certificateHold", line["reason"])
			}
			if tt.pass > 0 {
				time.Sleep(tt.pass)
			}
		}
	})
}

func requireTime(t *testing.T, want time.Time, got any) {
	t.Helper()
	parsed, err := time.Parse(time.RFC3339Nano, got.(string))
	require.NoError(t, err)
	require.True(t, parsed.Equal(want), "%s, not %s", got, want)
}

func TestFailedTellsWhenTheNextTryIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Error: ocsp.Unauthorized})
		var told []staple.Event
		s := w.Stapler(func(s *staple.Stapler) {
			s.OnEvent = func(e staple.Event) {
				if e.Kind == staple.EventFailed {
					told = append(told, e)
				}
			}
		})
		c, err := s.Add(w.Leaf())
		require.NoError(t, err)
		next := time.Now()
		for i := range 30 {
			time.Sleep(time.Until(next))
			synctest.Wait()
			require.Len(t, told, i+1, "it was not tried when it was due")
			e := told[i]
			require.Same(t, c, e.Certificate)
			require.Equal(t, c.Status(), e.Status)
			require.Equal(t, i+1, e.Status.Failures)
			require.Equal(t, next, e.Status.LastAttempt)
			require.Equal(t, e.Err, e.Status.Err)
			var status ocsp.ResponseError
			require.ErrorAs(t, e.Err, &status)
			require.Greater(t, e.Status.NextRefresh, next)
			next = e.Status.NextRefresh
		}
	})
}

func TestAStapleWithoutSuccessorIsToldOfTwiceAndItsEndOnce(t *testing.T) {
	for _, validity := range []time.Duration{time.Hour, world.Day, 7 * world.Day, 10 * world.Day} {
		synctest.Test(t, func(t *testing.T) {
			w := world.New(t)
			w.Responder.Set(nil, stapletest.Answer{Validity: validity})
			type told struct {
				kind  staple.EventKind
				after time.Duration
			}
			var all []told
			start := time.Now()
			s := w.Stapler(func(s *staple.Stapler) {
				s.OnEvent = func(e staple.Event) {
					switch e.Kind {
					case staple.EventFailed:
						return
					case staple.EventExpiring, staple.EventExpired:
						require.Error(t, e.Err)
						require.Equal(t, start.Add(validity), e.Status.Expires.Local())
						require.Equal(t, e.Kind == staple.EventExpiring, e.Status.Stapled)
					}
					all = append(all, told{e.Kind, time.Since(start)})
				}
			})
			c := w.Add(s, w.Leaf())
			w.Responder.Set(nil, stapletest.Answer{Error: ocsp.TryLater})
			time.Sleep(validity + world.Day)
			synctest.Wait()
			require.Equal(t, []told{
				{staple.EventStapled, 0},
				{staple.EventExpiring, validity - validity/4},
				{staple.EventExpiring, validity - validity/20},
				{staple.EventExpired, validity},
			}, all)
			w.Responder.Reset(nil)
			time.Sleep(2 * time.Hour)
			synctest.Wait()
			world.RequireStaple(t, c, ocsp.Good)
			require.Len(t, all, 5)
			require.Equal(t, staple.EventStapled, all[4].kind)
		})
	}
}

func TestRevokedIsToldOfForEachNewerResponseThatSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		c := w.Add(w.Stapler(), w.Leaf())
		w.Responder.Set(nil, stapletest.Answer{Status: ocsp.Revoked, Period: 3 * time.Hour})
		for _, pause := range []time.Duration{time.Hour, time.Second} {
			time.Sleep(pause)
			require.NoError(t, c.Refresh(t.Context()))
		}
		synctest.Wait()
		require.Equal(t, []staple.EventKind{staple.EventStapled, staple.EventRevoked, staple.EventUnchanged}, w.Log.Kinds())
		time.Sleep(3 * time.Hour) // within which it is asked about three times at least
		synctest.Wait()
		require.Equal(t, 2, world.Count(w.Log.Kinds(), staple.EventRevoked))
		require.GreaterOrEqual(t, world.Count(w.Log.Kinds(), staple.EventUnchanged), 3)
		for _, e := range w.Log.Events()[1:] {
			require.True(t, e.Status.Revoked)
			require.False(t, e.Status.Stapled)
			require.NoError(t, e.Err)
		}
	})
}

func TestAnIssuerThatIsNotFoundIsToldOf(t *testing.T) {
	for _, tt := range []struct {
		name  string
		edit  func(s *staple.Stapler)
		again bool // it is looked for again
	}{
		{"nobody can fetch it: once", func(s *staple.Stapler) { s.Fetcher = noIssuer{s.Fetcher} }, false},
		{"somebody can, later perhaps: with the next try", func(*staple.Stapler) {}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				var lines world.Text
				s := w.Stapler(func(s *staple.Stapler) { s.Logger = lines.Logger() }, tt.edit)
				c, err := s.Add(w.Leaf(func(o *stapletest.LeafOptions) {
					o.OmitIssuer, o.IssuerURLs = true, []string{world.ResponderURL + "/issuer"}
				}))
				require.NoError(t, err)
				time.Sleep(world.Day)
				synctest.Wait()
				events := w.Log.Events()
				require.Equal(t, tt.again, len(events) > 1)
				for _, e := range events {
					require.Equal(t, staple.EventFailed, e.Kind)
					require.ErrorIs(t, e.Err, staple.ErrNoIssuer)
					require.Equal(t, tt.again, !e.Status.NextRefresh.IsZero())
				}
				require.Equal(t, c.Status(), events[len(events)-1].Status)
				all := lines.TakeLines(t)
				require.Len(t, all, len(events))
				for i, line := range all {
					require.Equal(t, i == 0, line["level"] == "WARN", "%s", line)
					require.Equal(t, "failed", line["event"])
					require.Contains(t, line["error"], staple.ErrNoIssuer.Error())
					require.NotContains(t, line["error"], line["name"])
					require.Equal(t, tt.again, line["next"] != nil)
				}
			})
		})
	}
}

// A noIssuer is a Fetcher and no IssuerFetcher.
type noIssuer struct{ f staple.Fetcher }

func (n noIssuer) Fetch(ctx context.Context, req *staple.Request) ([]byte, error) {
	return n.f.Fetch(ctx, req)
}

func TestEventsComeInOrderOneAtATimeAndRefreshingDoesNotWaitForThem(t *testing.T) {
	const certificates, hours = 4, 12
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Validity: time.Hour, Delay: time.Second})
		var inside atomic.Int32
		events := make(map[*staple.Certificate][]staple.Event)
		s := w.Stapler(func(s *staple.Stapler) {
			s.OnEvent = func(e staple.Event) {
				if inside.Add(1) != 1 {
					t.Error("called while another call was running")
				}
				time.Sleep(20 * time.Minute) // four events come in 30
				events[e.Certificate] = append(events[e.Certificate], e)
				inside.Add(-1)
			}
		})
		var all []*staple.Certificate
		for range certificates {
			all = append(all, w.Add(s, w.Leaf(world.SameKey(w.CA.Key))))
		}
		for range 4 * hours {
			time.Sleep(15 * time.Minute)
			for _, c := range all {
				st := c.Status()
				require.True(t, st.Stapled)
				require.Less(t, time.Since(st.ThisUpdate), 34*time.Minute)
			}
		}
		sent := len(w.Responder.Requests(nil))
		require.NoError(t, s.Close()) // tells what is still to be told
		require.InDelta(t, 2*hours*certificates, sent, 3*certificates)
		n := 0
		for _, c := range all {
			last := staple.Event{}
			for _, e := range events[c] {
				require.Equal(t, staple.EventStapled, e.Kind)
				require.Equal(t, time.Second, e.Duration)
				require.Greater(t, e.Status.ThisUpdate, last.Status.ThisUpdate)
				require.False(t, e.Status.LastAttempt.Before(last.Status.NextRefresh))
				last = e
				n++
			}
		}
		require.InDelta(t, sent, n, certificates, "a round without its event") // Close canceled some
	})
}

// manyCertificates adds n certificates that nobody is asked about, after one round for each.
func manyCertificates(t testing.TB, n int) *staple.Stapler {
	serial := new(big.Int).SetBytes(bytes.Repeat([]byte{0x5a}, 16))
	template := world.CA().Leaf(stapletest.LeafOptions{Serial: serial, OmitIssuer: true}).Leaf
	at := bytes.Index(template.Raw, serial.Bytes())
	require.Positive(t, at)
	s := &staple.Stapler{Fetcher: nobody{}, Logger: slog.New(slog.DiscardHandler)}
	t.Cleanup(func() { s.Close() })
	for i := range n {
		leaf := *template // its signature is now wrong, which nobody looks at
		leaf.Raw = bytes.Clone(template.Raw)
		binary.BigEndian.PutUint64(leaf.Raw[at+8:], uint64(i))
		_, err := s.Add(tls.Certificate{Certificate: [][]byte{leaf.Raw}, Leaf: &leaf})
		require.NoError(t, err)
	}
	require.NoError(t, s.Wait(t.Context()))
	return s
}

// A nobody knows no responder.
type nobody struct{}

func (nobody) Fetch(context.Context, *staple.Request) ([]byte, error) {
	return nil, errors.New("asked without an issuer")
}

func (nobody) FetchIssuer(context.Context, *x509.Certificate) ([]*x509.Certificate, error) {
	return nil, staple.ErrNoResponder
}

func TestStatusDoesNotAllocate(t *testing.T) {
	w := world.New(t)
	stapled := w.Add(w.Stapler(), w.Leaf())
	require.Zero(t, testing.AllocsPerRun(100, func() { stapled.Status() }))

	const certificates = 10_000
	all := slices.Collect(manyCertificates(t, certificates).Certificates())
	require.Len(t, all, certificates)
	i := 0
	require.Zero(t, testing.AllocsPerRun(certificates, func() {
		if err := all[i%certificates].Status().Err; !errors.Is(err, staple.ErrNoResponder) {
			t.Error(err)
		}
		i++
	}))
}

func BenchmarkStatus(b *testing.B) {
	const certificates = 100_000
	s := manyCertificates(b, certificates)
	b.ReportAllocs()
	for b.Loop() {
		for c := range s.Certificates() {
			c.Status()
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/certificates, "ns/certificate")
}

func TestOnEventMayCallEverythingButClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		done := make(chan error, 1)
		var once sync.Once
		s := w.Stapler(func(s *staple.Stapler) {
			s.Concurrency = 1
			s.OnEvent = func(e staple.Event) {
				once.Do(func() {
					time.Sleep(time.Second)
					err := e.Certificate.Refresh(context.Background())
					for c := range s.Certificates() {
						c.Status()
						c.Remove()
					}
					_, _ = s.Add(w.Leaf())
					done <- err
				})
			}
		})
		_, err := s.Add(w.Leaf())
		require.NoError(t, err)
		require.NoError(t, <-done)
		synctest.Wait()
	})
}

func TestAnEventCarriesTheStatusJustAfterIt(t *testing.T) {
	for _, life := range []time.Duration{2 * world.Day, 30 * world.Day} { // before, and after the next refresh
		synctest.Test(t, func(t *testing.T) {
			w := world.New(t)
			c := w.Add(w.Stapler(), w.Leaf(func(o *stapletest.LeafOptions) { o.NotAfter = time.Now().Add(life) }))
			synctest.Wait()
			require.Equal(t, c.Status(), w.Log.Last().Status)
		})
	}
}

func TestALoggerMayAskForTheStatus(t *testing.T) {
	w := world.New(t)
	handler := &nosyHandler{Handler: slog.DiscardHandler}
	s := w.Stapler(func(s *staple.Stapler) { s.Logger = slog.New(handler) })
	c := w.Add(s, w.Leaf())
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
	about atomic.Pointer[staple.Certificate]
	asked atomic.Bool
}

func (h *nosyHandler) Enabled(context.Context, slog.Level) bool {
	if c := h.about.Load(); c != nil {
		c.Status()
		h.asked.Store(true)
	}
	return true
}
