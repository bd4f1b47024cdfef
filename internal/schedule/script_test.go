package schedule

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A script drives a schedule step by step.
type script struct {
	t *testing.T
	*Schedule
	now   time.Time
	items []*Item
	asked int
	told  []Notice
}

func newScript(t *testing.T, workers int) *script {
	r := rand.New(rand.NewPCG(1, 2))
	return &script{t: t, Schedule: New(workers, r.Int64N, false), now: time.UnixMicro(epoch)}
}

// at returns the source that a URL without its scheme is at.
func at(url string) Source {
	host, _, _ := strings.Cut(url, "/")
	return Source{Host: host, URL: url}
}

// add adds and starts one of an authority that is asked about at urls.
func (s *script) add(ca string, urls ...string) *Item {
	it := new(Item)
	var sources []Source
	for _, url := range urls {
		sources = append(sources, at(url))
	}
	s.Add(it, ca, sources, s.now.Add(1000*24*time.Hour))
	s.items = append(s.items, it)
	s.Start(it, s.now)
	s.check()
	return it
}

// check checks that all is well within.
func (s *script) check() {
	s.t.Helper()
	s.told = append(s.told, s.Notices()...)
	require.NoError(s.t, invariants(s.Schedule, s.items))
}

// pass lets time pass, and looks when it is time.
func (s *script) pass(d time.Duration) {
	s.t.Helper()
	until := s.now.Add(d)
	for {
		at := s.When()
		if at.IsZero() || at.After(until) {
			break
		}
		if at.After(s.now) {
			s.now = at
		}
		s.Look(s.now)
	}
	s.now = until
	s.check()
}

// next returns what a free worker gets; nil: nothing.
func (s *script) next() *Item {
	s.t.Helper()
	s.Look(s.now)
	it, task := s.Next(s.now)
	s.check()
	if task == Nothing {
		return nil
	}
	require.Equal(s.t, Ask, task)
	s.asked++
	return it
}

// await returns what a free worker gets, and how long that took.
func (s *script) await() (*Item, time.Duration) {
	s.t.Helper()
	start := s.now
	for {
		if it := s.next(); it != nil {
			return it, s.now.Sub(start)
		}
		at := s.When()
		require.False(s.t, at.IsZero(), "nobody will ever be asked")
		s.pass(max(at.Sub(s.now), 0))
	}
}

// end ends a round.
func (s *script) end(it *Item, o Outcome) {
	s.t.Helper()
	s.Done(it, o, s.now)
	s.check()
	s.Free(it, s.now)
	s.check()
}

func newer(now time.Time, validity time.Duration) Outcome {
	end := now.Add(validity)
	return Outcome{Result: Newer, Asked: true, Held: Held{ThisUpdate: now, Until: end, End: end}}
}

// bring brings it, which waits, into a state: with o as what came of its round if that is Storing.
func (s *script) bring(it *Item, state State, o Outcome) {
	s.t.Helper()
	if state != Waiting {
		require.Equal(s.t, it, s.next())
	}
	switch state {
	case Scheduled:
		s.ok(it)
	case Storing:
		s.Done(it, o, s.now)
	}
	require.Equal(s.t, state, it.State())
}

// ok ends a round well: something valid for a week came from one of its URLs, the first by default.
func (s *script) ok(it *Item) {
	s.t.Helper()
	s.end(it, newer(s.now, 7*24*time.Hour))
}

// fail ends a round in vain, because of f at each of its URLs.
func (s *script) fail(it *Item, f Fault) {
	s.t.Helper()
	s.end(it, s.failed(it, Answer{Fault: f}))
}

// failed returns that each of its URLs gave a.
func (s *script) failed(it *Item, a Answer) Outcome {
	o := Outcome{Result: Failed, Asked: true, Err: errTest}
	for i, url := range it.route.urls {
		a.Source, a.Err = Source{it.route.ends[i].host().key.url, url}, errTest
		o.Answers = append(o.Answers, a)
	}
	return o
}
