package schedule

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A world is certificates, their responders, and a driver that asks these, in simulated time.
type world struct {
	*Schedule
	t       *testing.T
	now     time.Time
	start   time.Time
	items   []*Item
	flights []flight
	asked   int
	serving int                 // requests in flight that will be answered well
	stapled map[*Item]time.Time // when the first staple came
	answer  func(it *Item) (time.Duration, Outcome)
}

// A flight is a request that is under way.
type flight struct {
	it  *Item
	at  time.Time
	out Outcome
}

func newWorld(t *testing.T, workers int) *world {
	r := rand.New(rand.NewPCG(1, 2))
	start := time.UnixMicro(epoch)
	return &world{t: t, Schedule: New(workers, r.Int64N, false), now: start, start: start,
		stapled: make(map[*Item]time.Time)}
}

// add adds n certificates of an authority that are asked about at url.
func (w *world) add(n int, ca, url string) (items []*Item) {
	for range n {
		it := &Item{Owner: at(url)}
		w.Add(it, ca, []Source{at(url)}, w.now.Add(10_000*time.Hour))
		w.Start(it, w.now)
		items = append(items, it)
	}
	w.items = append(w.items, items...)
	return items
}

func (w *world) since() time.Duration { return w.now.Sub(w.start) }

// run runs until enough is true, or the time has passed.
func (w *world) run(d time.Duration, enough func() bool) {
	w.t.Helper()
	until := w.now.Add(d)
	for !enough() {
		w.Look(w.now)
		for {
			it, task := w.Next(w.now)
			if task == Nothing {
				break
			}
			w.asked++
			delay, out := w.answer(it)
			if out.Result == Newer {
				w.serving++
			}
			w.flights = append(w.flights, flight{it, w.now.Add(delay), out})
		}
		next, first := w.When(), -1
		if next.IsZero() || next.After(until) {
			next = until
		}
		for i, f := range w.flights {
			if !f.at.After(next) && (first < 0 || f.at.Before(w.flights[first].at)) {
				first = i
			}
		}
		if first >= 0 {
			next = w.flights[first].at
		}
		if next.After(w.now) {
			w.now = next
		}
		if first >= 0 {
			f := w.flights[first]
			w.flights = append(w.flights[:first], w.flights[first+1:]...)
			if f.out.Result == Newer {
				w.serving--
			}
			w.Done(f.it, f.out, w.now)
			w.Free(f.it, w.now)
			if f.out.Result == Newer && w.stapled[f.it].IsZero() {
				w.stapled[f.it] = w.now
			}
		} else if !w.now.Before(until) {
			return
		}
		w.Notices()
	}
}

// settle runs until all have a staple, or the time has passed.
func (w *world) settle(d time.Duration) {
	w.t.Helper()
	w.run(d, func() bool { return len(w.stapled) == len(w.items) })
	require.Len(w.t, w.stapled, len(w.items), "have a staple")
}

// good is what comes of a request that takes so long and is answered with what is valid for a week from then on.
func (w *world) good(delay time.Duration) (time.Duration, Outcome) {
	return delay, newer(w.now.Add(delay), 7*24*time.Hour)
}

// bad is what comes of a request that takes so long and fails.
func (w *world) bad(it *Item, delay time.Duration, a Answer) (time.Duration, Outcome) {
	a.Source, a.Err = it.Owner.(Source), errTest
	return delay, Outcome{Result: Failed, Asked: true, Answers: []Answer{a}, Err: errTest}
}
