package schedule

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func never() bool { return false }

func TestOneHostAloneMayHaveAllWorkers(t *testing.T) {
	w := newWorld(t, 10)
	w.answer = func(*Item) (time.Duration, Outcome) { return w.good(time.Second) }
	w.add(100, "ca", "h/")
	w.settle(time.Minute)
	require.Equal(t, 10*time.Second, w.since())
}

func TestAHungHostCostsOthersNothing(t *testing.T) {
	w := newWorld(t, 16)
	w.answer = func(it *Item) (time.Duration, Outcome) {
		if it.Owner == at("dead/") {
			return w.bad(it, 10*time.Second, Answer{Fault: Host})
		}
		return w.good(20 * time.Millisecond)
	}
	w.add(500, "ca", "dead/")
	live := w.add(500, "ca", "live/")
	w.run(time.Minute, func() bool { return len(w.stapled) == 500 })
	require.Less(t, w.since(), 1500*time.Millisecond) // 500 at 8 workers and 20 ms: 1.25 s
	ended := false
	w.run(8*aDay, func() bool {
		for _, it := range live {
			ended = ended || !it.held.current(w.now.UnixMicro())
		}
		return ended
	})
	require.False(t, ended)
}

func TestWhoIsNext(t *testing.T) {
	s := newScript(t, 1)
	hold := func(it *Item, elapsed, validity time.Duration) *Item {
		start := s.now.Add(-elapsed)
		s.Hold(it, Held{ThisUpdate: start, Until: start.Add(validity), End: start.Add(validity)}, s.now)
		return it
	}
	unstapled := s.add("ca", "h0/")
	require.Equal(t, unstapled, s.next())
	s.fail(unstapled, Certificate)
	s.pass(20 * time.Second)
	patient := s.add("ca", "h1/")
	for range 3 {
		s.Refresh(patient, s.now)
		require.Equal(t, patient, s.next())
		s.fail(patient, Certificate)
	}
	s.pass(time.Minute)
	routine := hold(s.add("ca", "h2/"), 12*time.Hour, aDay)
	nearEnd := hold(s.add("ca", "h3/"), 20*time.Hour, aDay)
	s.pass(0)
	fresh := s.add("ca", "h4/")
	asked := s.add("ca", "h5/")
	s.Refresh(asked, s.now)
	for i, want := range []*Item{asked, fresh, unstapled, nearEnd, routine, patient} {
		got := s.next()
		require.Equal(t, want, got, "%d", i)
		s.ok(got)
	}
}

func TestHostsTakeTurns(t *testing.T) {
	s := newScript(t, 1)
	hosts := make(map[*Item]string)
	for range 10 {
		hosts[s.add("ca", "h1/1")] = "h1"
		hosts[s.add("ca", "h1/2")] = "h1"
	}
	for range 3 {
		hosts[s.add("ca", "h2/")] = "h2"
	}
	order := ""
	for it := s.next(); it != nil; it = s.next() {
		order += hosts[it] + " "
		s.ok(it)
	}
	require.Equal(t, "h1 h2 h1 h2 h1 h2 "[:9], order[:9])
	require.Contains(t, order, "h2 h1 h2 h1 h2")
}

func TestHostsThatNeverAnswerDoNotStarveACertificateThatHasAStaple(t *testing.T) {
	w := newWorld(t, 1)
	good := w.add(1, "ca", "live/")[0]
	w.answer = func(it *Item) (time.Duration, Outcome) {
		if it != good {
			return w.bad(it, 10*time.Second, Answer{Fault: Host})
		}
		return 50 * time.Millisecond, newer(w.now.Add(50*time.Millisecond), 3*time.Hour)
	}
	w.run(time.Minute, func() bool { return len(w.stapled) == 1 })
	for i := range 60 {
		w.add(1, "ca", fmt.Sprint("dead", i, "/"))
	}
	late := false
	w.run(5*time.Hour, func() bool {
		late = late || w.now.UnixMicro() > good.held.moment(0)
		return late
	})
	require.False(t, late, "it was not asked about before its last quarter")
}

func TestAPauseIsNotCutShortByAddingAnew(t *testing.T) {
	for _, f := range []Fault{CA, URL, Host} {
		s := newScript(t, 1)
		for range 10 {
			it := s.add("ca", "h/")
			if it := s.next(); it != nil {
				s.end(it, s.failed(it, Answer{Fault: f, RetryAfter: time.Hour}))
			}
			s.pass(time.Second)
			s.Remove(it, s.now)
			s.check()
		}
		require.Equal(t, 1, s.asked)
		require.NotEmpty(t, s.tree.nodes)
		s.pass(time.Hour)
		require.Empty(t, s.tree.nodes, "remembered although the pause is over")
		require.Empty(t, s.tree.routes)
	}
}

func TestCertificatesThatLeaveDoNotPileUpBehindAPause(t *testing.T) {
	s := newScript(t, 1)
	it := s.add("ca", "h/")
	s.end(s.next(), s.failed(it, Answer{Fault: URL, RetryAfter: time.Hour}))
	for range 10_000 {
		it := new(Item)
		s.Add(it, "ca", []Source{at("h/")}, s.now.Add(time.Hour))
		s.Start(it, s.now)
		s.Notices()
		s.Remove(it, s.now)
	}
	s.check()
	n := s.tree.nodes[nodeKey{level: hostLevel, url: "h"}]
	require.LessOrEqual(t, len(n.visitors.untold), 100)
	require.Len(t, s.alarms, 1)
}

// TestManyThatWaitForTheirFirstRoundsAreAddedInNoTime has many with a staple from the cache that are due at once.
func TestManyThatWaitForTheirFirstRoundsAreAddedInNoTime(t *testing.T) {
	s := newScript(t, 1)
	const n = 100_000
	start := s.now.Add(-5 * aDay)
	items := make([]Item, n)
	for i := range items {
		s.Add(&items[i], "ca", []Source{at("h/")}, s.now.Add(1000*aDay))
		s.Hold(&items[i], Held{ThisUpdate: start, Until: start.Add(7 * aDay), End: start.Add(7 * aDay)}, s.now)
	}
	began := time.Now()
	s.Look(s.now)
	require.Less(t, time.Since(began), 10*time.Second) // 0.1 s; quadratic, it was minutes
}

func TestARetryAfterOfOneIsHeededWhileOthersSucceed(t *testing.T) {
	w := newWorld(t, 16)
	other, busy := w.add(1, "ca", "h/")[0], (*Item)(nil)
	failed := 0
	w.answer = func(it *Item) (time.Duration, Outcome) {
		if it == busy {
			failed++
			return w.bad(it, 50*time.Millisecond, Answer{Fault: URL, Busy: true, RetryAfter: 30 * time.Minute})
		}
		return w.good(50 * time.Millisecond)
	}
	w.settle(time.Minute)
	busy = w.add(1, "ca", "h/")[0]
	for range 12 * 12 {
		w.Refresh(other, w.now)
		w.run(5*time.Minute, never)
	}
	require.LessOrEqual(t, failed, 25)
	require.GreaterOrEqual(t, failed, 12)
}

func TestRefreshOfAHealthyHostWhileAnotherOneHangs(t *testing.T) {
	w := newWorld(t, 16)
	hangs := false
	w.answer = func(it *Item) (time.Duration, Outcome) {
		if hangs && it.Owner == at("hangs/") {
			return w.bad(it, 30*time.Second, Answer{Fault: Host})
		}
		return w.good(50 * time.Millisecond)
	}
	all := w.add(500, "ca", "hangs/")
	healthy := w.add(1, "ca", "healthy/")[0]
	w.settle(time.Minute)
	hangs = true
	for _, it := range all {
		w.Refresh(it, w.now)
	}
	w.run(time.Second, never)
	for range 20 {
		w.run(47*time.Second, never)
		before := w.now
		w.Refresh(healthy, w.now)
		w.run(time.Minute, func() bool { return healthy.held.start > before.UnixMicro() })
		require.LessOrEqual(t, w.now.Sub(before), time.Second)
	}
}

// How many looks ten minutes take, and how many requests.
func TestThousandsOfDeadHosts(t *testing.T) {
	const n = 2_000
	w := newWorld(t, 16)
	w.answer = func(it *Item) (time.Duration, Outcome) {
		return w.bad(it, time.Millisecond, Answer{Fault: Host})
	}
	for i := range n {
		w.add(1, "ca", fmt.Sprint("h", i, "/"))
	}
	began := time.Now()
	w.run(10*time.Minute, never)
	t.Logf("%d requests, %v", w.asked, time.Since(began))
	// Intervals of at most 4 s + a tenth of the time so far, half of that at least.
	require.Less(t, w.asked, 80*n)
	require.Greater(t, w.asked, 20*n)
}

// Nobody is asked about a certificate whose issuer is not to be had, but that costs a worker all the same.
func TestCertificatesWithoutAnIssuerDoNotStarveOneThatHasAStaple(t *testing.T) {
	w := newWorld(t, 2)
	good := w.add(1, "ca", "live/")[0]
	w.answer = func(it *Item) (time.Duration, Outcome) {
		if it != good {
			return 10 * time.Second, Outcome{Result: Failed, Err: errTest}
		}
		return 50 * time.Millisecond, newer(w.now.Add(50*time.Millisecond), aDay)
	}
	w.run(time.Minute, func() bool { return len(w.stapled) == 1 })
	for i := range 1000 {
		w.add(1, "ca", fmt.Sprint("host", i, "/"))
	}
	late := false
	w.run(4*aDay, func() bool {
		late = late || w.now.UnixMicro() > good.held.end
		return late
	})
	require.False(t, late, "its staple ended")
}
