package staple

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"math/big"
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

func TestEventKindString(t *testing.T) {
	for kind, want := range map[EventKind]string{
		EventStapled:          "stapled",
		EventUnchanged:        "unchanged",
		EventFailed:           "failed",
		EventExpiring:         "expiring",
		EventExpired:          "expired",
		EventRevoked:          "revoked",
		EventReinstated:       "reinstated",
		0:                     "EventKind(0)",
		-1:                    "EventKind(-1)",
		EventReinstated + 100: "EventKind(107)",
	} {
		require.Equal(t, want, kind.String())
	}
}

// A lineLog is a log whose lines can be looked at.
type lineLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lineLog) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(lockedWriter{&l.mu, &l.text}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// take returns the lines since it was called last.
func (l *lineLog) take(t *testing.T) (lines []map[string]any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := json.NewDecoder(&l.text)
	for d.More() {
		var line map[string]any
		require.NoError(t, d.Decode(&line))
		lines = append(lines, line)
	}
	l.text.Reset()
	return lines
}

// TestTheLogLineOfEachEvent writes down what an operator may filter by. Each event is one line.
func TestTheLogLineOfEachEvent(t *testing.T) {
	type step struct {
		name    string
		answer  stapletest.Answer
		pass    time.Duration // then Refresh, unless it is negative: then only that time
		event   string
		level   string
		message string
		attrs   []string // besides certificate, event and next
	}
	down := stapletest.Answer{HTTPStatus: 503}
	held := []string{"expires", "responder"}
	failing := []string{"error", "expires", "responder"}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var lines lineLog
		s := w.stapler(func(s *Stapler) { s.Logger = lines.logger() })
		w.responder.Set(nil, down)
		cert := w.leaf()
		c, err := s.Add(cert)
		require.NoError(t, err)
		require.NoError(t, s.Wait(t.Context()))
		for _, tt := range []step{
			{"the first round fails", down, -1, "failed", "WARN", "staple: OCSP response not obtained", []string{"error"}},
			{"stapled", stapletest.Answer{Period: day}, time.Hour, "stapled", "DEBUG", "staple: OCSP response stapled", held},
			{"nothing newer", stapletest.Answer{Period: day}, time.Hour, "unchanged", "DEBUG", "staple: OCSP response unchanged", held},
			{"a refresh fails", down, time.Hour, "failed", "WARN", "staple: OCSP response not obtained", failing},
			{"it fails again", down, time.Hour, "failed", "DEBUG", "staple: OCSP response not obtained", failing},
			{"a quarter is left", down, -6 * day, "expiring", "WARN", "staple: OCSP staple is about to end", failing},
			{"the end", down, -2 * day, "expired", "ERROR", "staple: OCSP staple has ended", failing},
			{"revoked", stapletest.Answer{Status: ocsp.Revoked}, time.Hour, "revoked", "ERROR", "staple: certificate is revoked", held},
			{"a hold is lifted", stapletest.Answer{}, time.Hour, "reinstated", "WARN", "staple: certificate is good again after it was revoked", held},
		} {
			w.responder.Set(nil, tt.answer)
			if tt.pass > 0 {
				lines.take(t)
				w.log.clear()
				_ = c.Refresh(t.Context())
			} else {
				time.Sleep(-tt.pass)
			}
			synctest.Wait()
			all := lines.take(t)
			events := slices.Clone(w.log.events)
			w.log.clear()
			require.Len(t, all, len(events), "one line an event: %s", tt.name)
			i := slices.IndexFunc(events, func(e Event) bool { return e.Kind.String() == tt.event })
			require.GreaterOrEqual(t, i, 0, tt.name)
			line, st := all[i], events[i].Status
			attrs := append([]string{"certificate", "event", "level", "msg", "next", "time"}, tt.attrs...)
			require.ElementsMatch(t, attrs, slices.Collect(maps.Keys(line)), tt.name)
			require.Equal(t, tt.event, line["event"])
			require.Equal(t, tt.level, line["level"], tt.name)
			require.Equal(t, tt.message, line["msg"])
			require.Equal(t, describe(cert.Leaf), line["certificate"])
			requireTime(t, st.NextRefresh, line["next"])
			if line["expires"] != nil {
				requireTime(t, st.Expires, line["expires"])
				require.Equal(t, st.Responder, line["responder"])
			}
			if line["error"] != nil {
				require.Equal(t, events[i].Err.Error(), line["error"])
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
		w := newWorld(t)
		w.responder.Set(nil, stapletest.Answer{Error: ocsp.Unauthorized})
		var told []Event
		s := w.stapler(func(s *Stapler) {
			s.OnEvent = func(e Event) {
				if e.Kind == EventFailed {
					told = append(told, e)
				}
			}
		})
		c, err := s.Add(w.leaf())
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
	for _, validity := range []time.Duration{time.Hour, day, 7 * day, 10 * day} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.responder.Set(nil, stapletest.Answer{Validity: validity})
			type told struct {
				kind  EventKind
				after time.Duration
			}
			var all []told
			start := time.Now()
			s := w.stapler(func(s *Stapler) {
				s.OnEvent = func(e Event) {
					switch e.Kind {
					case EventFailed:
						return
					case EventExpiring, EventExpired:
						require.Error(t, e.Err)
						require.Equal(t, start.Add(validity), e.Status.Expires.Local())
						require.Equal(t, e.Kind == EventExpiring, e.Status.Stapled)
					}
					all = append(all, told{e.Kind, time.Since(start)})
				}
			})
			c := w.add(s, w.leaf())
			w.responder.Set(nil, stapletest.Answer{Error: ocsp.TryLater})
			time.Sleep(validity + day)
			synctest.Wait()
			require.Equal(t, []told{
				{EventStapled, 0},
				{EventExpiring, validity - validity/4},
				{EventExpiring, validity - validity/20},
				{EventExpired, validity},
			}, all)
			w.responder.Reset(nil)
			time.Sleep(2 * time.Hour)
			synctest.Wait()
			requireStaple(t, c, ocsp.Good)
			require.Len(t, all, 5)
			require.Equal(t, EventStapled, all[4].kind)
		})
	}
}

func TestRevokedIsToldOfForEachNewerResponseThatSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := w.add(w.stapler(), w.leaf())
		w.responder.Set(nil, stapletest.Answer{Status: ocsp.Revoked, Period: time.Hour})
		for _, pause := range []time.Duration{2 * time.Hour, time.Second, time.Hour} {
			time.Sleep(pause)
			require.NoError(t, c.Refresh(t.Context()))
		}
		synctest.Wait()
		require.Equal(t, []EventKind{EventStapled, EventRevoked, EventUnchanged, EventRevoked}, w.log.kinds())
		for _, e := range w.log.events[1:] {
			require.True(t, e.Status.Revoked)
			require.False(t, e.Status.Stapled)
			require.NoError(t, e.Err)
		}
	})
}

func TestAnIssuerThatIsNotFoundIsToldOf(t *testing.T) {
	for _, tt := range []struct {
		name  string
		edit  func(s *Stapler)
		again bool // it is looked for again
	}{
		{"nobody can fetch it: once", func(s *Stapler) { s.Fetcher = noIssuer{s.Fetcher} }, false},
		{"somebody can, later perhaps: with the next try", func(*Stapler) {}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				var lines lineLog
				s := w.stapler(func(s *Stapler) { s.Logger = lines.logger() }, tt.edit)
				c, err := s.Add(w.leaf(func(o *stapletest.LeafOptions) {
					o.OmitIssuer, o.IssuerURLs = true, []string{responderURL + "/issuer"}
				}))
				require.NoError(t, err)
				time.Sleep(day)
				synctest.Wait()
				events := w.log.events
				require.Equal(t, tt.again, len(events) > 1)
				for _, e := range events {
					require.Equal(t, EventFailed, e.Kind)
					require.ErrorIs(t, e.Err, ErrNoIssuer)
					require.Equal(t, tt.again, !e.Status.NextRefresh.IsZero())
				}
				require.Equal(t, c.Status(), events[len(events)-1].Status)
				all := lines.take(t)
				require.Len(t, all, len(events))
				for i, line := range all {
					require.Equal(t, i == 0, line["level"] == "WARN", "%s", line)
					require.Equal(t, "failed", line["event"])
					require.Contains(t, line["error"], ErrNoIssuer.Error())
					require.Equal(t, tt.again, line["next"] != nil)
				}
			})
		})
	}
}

// A noIssuer is a Fetcher and no IssuerFetcher.
type noIssuer struct{ f Fetcher }

func (n noIssuer) Fetch(ctx context.Context, req *Request) ([]byte, error) {
	return n.f.Fetch(ctx, req)
}

func TestEventsComeInOrderOneAtATimeAndRefreshingDoesNotWaitForThem(t *testing.T) {
	const certificates, hours = 4, 12
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.responder.Set(nil, stapletest.Answer{Validity: time.Hour, Delay: time.Second})
		var inside atomic.Int32
		events := make(map[*Certificate][]Event)
		s := w.stapler(func(s *Stapler) {
			s.OnEvent = func(e Event) {
				if inside.Add(1) != 1 {
					t.Error("called while another call was running")
				}
				time.Sleep(20 * time.Minute) // four events come in 30
				events[e.Certificate] = append(events[e.Certificate], e)
				inside.Add(-1)
			}
		})
		var all []*Certificate
		for range certificates {
			all = append(all, w.add(s, w.leaf(sameKey(w.ca.Key))))
		}
		for range 4 * hours {
			time.Sleep(15 * time.Minute)
			for _, c := range all {
				st := c.Status()
				require.True(t, st.Stapled)
				require.Less(t, time.Since(st.ThisUpdate), 34*time.Minute)
			}
		}
		sent := len(w.responder.Requests(nil))
		require.NoError(t, s.Close()) // tells what is still to be told
		require.InDelta(t, 2*hours*certificates, sent, 3*certificates)
		n := 0
		for _, c := range all {
			last := Event{}
			for _, e := range events[c] {
				require.Equal(t, EventStapled, e.Kind)
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
func manyCertificates(t testing.TB, n int) *Stapler {
	serial := new(big.Int).SetBytes(bytes.Repeat([]byte{0x5a}, 16))
	template := testCA().Leaf(stapletest.LeafOptions{Serial: serial, OmitIssuer: true}).Leaf
	at := bytes.Index(template.Raw, serial.Bytes())
	require.Positive(t, at)
	s := &Stapler{Fetcher: nobody{}, Logger: slog.New(slog.DiscardHandler)}
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

func (nobody) Fetch(context.Context, *Request) ([]byte, error) {
	return nil, errors.New("asked without an issuer")
}

func (nobody) FetchIssuer(context.Context, *x509.Certificate) ([]*x509.Certificate, error) {
	return nil, ErrNoResponder
}

func TestStatusDoesNotAllocate(t *testing.T) {
	w := newWorld(t)
	stapled := w.add(w.stapler(), w.leaf())
	require.Zero(t, testing.AllocsPerRun(100, func() { stapled.Status() }))

	const certificates = 10_000
	all := slices.Collect(manyCertificates(t, certificates).Certificates())
	require.Len(t, all, certificates)
	require.Zero(t, testing.AllocsPerRun(1, func() {
		for _, c := range all {
			if !errors.Is(c.Status().Err, ErrNoResponder) {
				t.Error(c.Status().Err)
			}
		}
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
