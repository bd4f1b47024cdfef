package schedule

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/go-staple/staple/internal/race"
	"github.com/stretchr/testify/require"
)

// TestAfterAnOutage prints how long after an outage the first and the last staple come.
func TestAfterAnOutage(t *testing.T) {
	seeds := 20
	if race.Enabled {
		seeds = 5
	}
	for _, weather := range []struct {
		name  string
		fault Fault
	}{{"no connection", Host}, {"429", URL}, {"500", CA}} {
		for _, outage := range []time.Duration{time.Second, time.Minute, time.Hour, 6 * time.Hour} {
			for _, n := range []int{1, 16, 100, 1000} {
				var first, last time.Duration
				for seed := range seeds {
					w := newWorld(t, 16)
					w.tree.rand = rand.New(rand.NewPCG(uint64(seed), 0)).Int64N
					w.add(n, "ca", "h/")
					over := w.now.Add(outage)
					w.answer = func(it *Item) (time.Duration, Outcome) {
						if w.now.Before(over) {
							return w.bad(it, 20*time.Millisecond, Answer{Fault: weather.fault})
						}
						return w.good(50 * time.Millisecond)
					}
					w.run(outage+time.Hour, func() bool { return len(w.stapled) > 0 })
					first = max(first, w.now.Sub(over))
					began := w.now
					w.settle(time.Hour)
					last = max(last, w.now.Sub(began))
				}
				t.Logf("%-14s %9v %5d certificates: the first after %8v, the last %8v later", weather.name, outage, n,
					first.Round(time.Millisecond), last.Round(time.Millisecond))
				most := min(5*time.Second+outage/10, 35*time.Second)
				if outage > time.Hour {
					most = 5 * time.Minute
				}
				// A request that began in the outage has still to fail, and the first that does not to come back.
				require.LessOrEqual(t, first, most+70*time.Millisecond)
				require.LessOrEqual(t, last, 10*time.Second)
			}
		}
	}
}

func TestABlipDuringTheStart(t *testing.T) {
	for _, n := range []int{1, 16, 1000} {
		w := newWorld(t, 16)
		w.add(n, "ca", "h/")
		w.answer = func(it *Item) (time.Duration, Outcome) {
			if w.since() < time.Second {
				return w.bad(it, time.Millisecond, Answer{Fault: Host})
			}
			return w.good(50 * time.Millisecond)
		}
		w.settle(time.Minute)
		require.LessOrEqual(t, w.since(), 16*time.Second)
	}
}

func TestTheCertificatesOfAnAuthorityInTroubleHoldUpNoOthers(t *testing.T) {
	for _, tt := range []struct {
		name string
		a    Answer
	}{
		{"404", Answer{Fault: Certificate}},
		{"500", Answer{Fault: CA}},
		{"500, and Retry-After", Answer{Fault: CA, RetryAfter: time.Hour}},
	} {
		for _, n := range []int{1, 16, 60, 200} {
			for _, url := range []string{"h/", "h/ca2"} { // of the healthy authority
				t.Run(fmt.Sprint(tt.name, n, url), func(t *testing.T) {
					w := newWorld(t, 16)
					w.answer = func(it *Item) (time.Duration, Outcome) {
						if it.route.ca == "ca1" {
							return w.bad(it, 50*time.Millisecond, tt.a)
						}
						return w.good(50 * time.Millisecond)
					}
					w.add(n, "ca1", "h/")
					w.run(10*time.Minute, func() bool { return false })
					start := w.now
					w.add(1, "ca2", url)
					w.run(time.Hour, func() bool { return len(w.stapled) > 0 })
					require.LessOrEqual(t, w.now.Sub(start), time.Second)
				})
			}
			t.Run(fmt.Sprint(tt.name, n, " a new one of the same authority"), func(t *testing.T) {
				w := newWorld(t, 16)
				bad := w.add(n, "ca", "h/")
				w.answer = func(it *Item) (time.Duration, Outcome) {
					for _, b := range bad {
						if b == it {
							return w.bad(it, 50*time.Millisecond, tt.a)
						}
					}
					return w.good(50 * time.Millisecond)
				}
				w.run(10*time.Minute, func() bool { return false })
				start := w.now
				w.add(1, "ca", "h/")
				w.run(2*time.Hour, func() bool { return len(w.stapled) > 0 })
				if tt.a.RetryAfter > 0 && n > 16 {
					return // all of them are new, and one can be asked about each hour
				} else if tt.a.RetryAfter > 0 {
					require.LessOrEqual(t, w.now.Sub(start), time.Hour)
				} else {
					require.LessOrEqual(t, w.now.Sub(start), 5*time.Second)
				}
			})
		}
	}
}

func TestASuccessorThatIsPublishedLate(t *testing.T) {
	for _, validity := range []time.Duration{time.Hour, 24 * time.Hour, 7 * 24 * time.Hour} {
		for _, late := range []time.Duration{-5 * time.Minute, -time.Minute, 0, time.Second, time.Minute} {
			for _, n := range []int{1, 100} {
				t.Run(fmt.Sprint(validity, late, n), func(t *testing.T) {
					w := newWorld(t, 16)
					w.add(n, "ca", "h/")
					var ends time.Time
					gap := time.Duration(0)
					w.answer = func(it *Item) (time.Duration, Outcome) {
						delay := 50 * time.Millisecond
						period := w.now.Sub(w.start.Add(late)) / validity
						if w.now.Before(w.start.Add(late)) {
							period = 0
						}
						from := w.start.Add(period * validity)
						ends = from.Add(validity)
						at := w.now.Add(delay)
						h := Held{ThisUpdate: from, Until: ends, End: ends}
						o := Outcome{Result: Newer, Asked: true, Held: h}
						switch {
						case it.held.micro() == h.micro() && at.Before(ends):
							o.Result = Unchanged
						case it.held.micro() == h.micro() || !at.Before(ends):
							_, o = w.bad(it, 0, Answer{Fault: Certificate})
						case it.held.end > 0:
							gap = max(gap, at.Sub(timeOf(it.held.end)))
						}
						return delay, o
					}
					w.run(4*validity, func() bool { return false })
					most := max(late, 0) + 3*time.Second + max(late, 0)/10 + time.Duration(n)*50*time.Millisecond/8
					require.LessOrEqual(t, gap, most)
				})
			}
		}
	}
}

// micro makes held comparable with another one.
func (h held) micro() held { h.stage, h.from = 0, 0; return h }

func TestAResponderThatIsBackOneMinuteBeforeTheEnd(t *testing.T) {
	for _, f := range []Fault{Certificate, CA, URL, Host} {
		for _, back := range []time.Duration{time.Minute, time.Second, 0} {
			for _, validity := range []time.Duration{time.Hour, 24 * time.Hour, 7 * 24 * time.Hour} {
				w := newWorld(t, 16)
				it := w.add(1, "ca", "h/")[0]
				end := w.now.Add(validity)
				w.answer = func(it *Item) (time.Duration, Outcome) {
					switch {
					case w.now == w.start:
						return w.good0(end)
					case w.now.Before(end.Add(-back)):
						return w.bad(it, 50*time.Millisecond, Answer{Fault: f})
					}
					return w.good(50 * time.Millisecond)
				}
				w.run(2*validity, func() bool { return it.held.end > w.start.Add(validity).UnixMicro() })
				require.LessOrEqual(t, w.now.Sub(end), 2*time.Second, "fault %d, back %v before the end of %v", f, back, validity)
			}
		}
	}
}

// good0 is what comes at once and is valid until end.
func (w *world) good0(end time.Time) (time.Duration, Outcome) {
	return 0, Outcome{Result: Newer, Asked: true, Held: Held{ThisUpdate: w.now, Until: end, End: end}}
}

func TestAResponderThatServesEightAtATime(t *testing.T) {
	for _, tt := range []struct {
		name string
		a    Answer
		slow time.Duration
	}{
		{"no answer", Answer{Fault: Host}, 10 * time.Second},
		{"429", Answer{Fault: URL, Busy: true}, 5 * time.Second},
		{"503", Answer{Fault: CA, Busy: true}, 5 * time.Second},
		{"500", Answer{Fault: CA}, 5 * time.Second},
		{"429 at once", Answer{Fault: URL, Busy: true}, time.Millisecond},
		{"503 at once", Answer{Fault: CA, Busy: true}, time.Millisecond},
		{"500 at once", Answer{Fault: CA}, time.Millisecond},
		{"refused at once", Answer{Fault: Host}, time.Millisecond},
	} {
		for _, limit := range []int{1, 2, 3, 5, 8} {
			for _, workers := range []int{16, 64} {
				w := newWorld(t, workers)
				w.add(200, "ca", "h/")
				w.answer = func(it *Item) (time.Duration, Outcome) {
					if w.serving >= limit {
						return w.bad(it, tt.slow, tt.a)
					}
					return w.good(200 * time.Millisecond)
				}
				w.settle(2 * time.Hour)
				if limit == 8 && workers == 16 {
					require.LessOrEqual(t, w.since(), 20*time.Second, tt.name)
				}
				require.LessOrEqual(t, w.since(), 5*time.Minute, tt.name)
				t.Logf("%-16s %d at a time, %2d workers: %v, %d requests", tt.name, limit, workers, w.since().Round(time.Millisecond), w.asked)
			}
		}
	}
}
