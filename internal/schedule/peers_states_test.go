package schedule

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// peerStates brings a peer, or one that is served, into each state.
func peerStates(t *testing.T, peer bool) map[string]func() (*script, *Item) {
	all := make(map[string]func() (*script, *Item))
	state := func(name string, bring func(s *script, it *Item)) {
		all[name] = func() (*script, *Item) {
			s := newScript(t, 4)
			it := new(Item)
			s.SetPeer(it, peer, s.now)
			s.Add(it, "ca", []Source{at("h/")}, s.now.Add(1000*aDay))
			s.items = append(s.items, it)
			bring(s, it)
			s.check()
			return s, it
		}
	}
	round := func(s *script, it *Item) {
		s.Start(it, s.now)
		require.Equal(t, it, s.next())
	}
	state("idle", func(s *script, it *Item) {})
	state("waiting", func(s *script, it *Item) { s.Start(it, s.now) })
	state("waiting by Refresh", func(s *script, it *Item) { s.Refresh(it, s.now) })
	state("working", round)
	state("working by Refresh", func(s *script, it *Item) { round(s, it); s.Refresh(it, s.now) })
	state("scheduled", func(s *script, it *Item) { round(s, it); s.ok(it) })
	state("scheduled for a retry", func(s *script, it *Item) { round(s, it); s.fail(it, Certificate) })
	for name, o := range map[string]Outcome{"newer": newer(time.UnixMicro(epoch), 7*aDay), "deferred": {Result: Deferred, Until: time.UnixMicro(epoch)},
		"failed": {Result: Failed, Asked: true}, "final": {Result: Final}} {
		state("storing, "+name, func(s *script, it *Item) { round(s, it); s.Done(it, o, s.now) })
	}
	state("storing, in a pause", func(s *script, it *Item) { round(s, it); s.Done(it, s.failed(it, Answer{Fault: Host}), s.now) })
	state("storing, and Refresh", func(s *script, it *Item) {
		round(s, it)
		s.Done(it, newer(s.now, 7*aDay), s.now)
		s.Refresh(it, s.now)
	})
	state("in a pause", func(s *script, it *Item) { round(s, it); s.fail(it, Host) })
	state("in a pause, with a response", func(s *script, it *Item) {
		round(s, it)
		s.ok(it)
		s.Start(it, s.now)
		require.Equal(t, it, s.next())
		s.fail(it, Host)
	})
	state("rested", func(s *script, it *Item) { s.Rest(it, s.now) })
	state("expired", func(s *script, it *Item) { s.Start(it, s.now); s.pass(1001 * aDay) })
	state("gone", func(s *script, it *Item) { s.Start(it, s.now); s.Remove(it, s.now) })
	state("gone from a worker", func(s *script, it *Item) { round(s, it); s.Remove(it, s.now) })
	if peer {
		state("asleep", func(s *script, it *Item) { round(s, it); s.ok(it); s.pass(5 * aDay) })
		state("asleep, without a response any more", func(s *script, it *Item) { round(s, it); s.ok(it); s.pass(10 * aDay) })
	} else {
		state("following", func(s *script, it *Item) {
			other := s.add("ca", "h/")
			for _, it := range []*Item{other, it} {
				s.holds(it, 7*aDay, 7*aDay)
			}
			s.pass(0)
			require.Equal(t, Following, it.State())
		})
		state("leading", func(s *script, it *Item) {
			other := s.add("ca", "h/")
			for _, it := range []*Item{it, other} {
				s.holds(it, 7*aDay, 7*aDay)
			}
			s.pass(0)
			require.Equal(t, Following, other.State())
		})
		state("storing, and another one leads", func(s *script, it *Item) {
			other := s.add("ca", "h/")
			for _, it := range []*Item{it, other} {
				s.holds(it, 7*aDay, 7*aDay)
			}
			s.pass(0)
			require.Equal(t, it, s.next())
			s.Done(it, s.failed(it, Answer{Fault: Certificate}), s.now)
			require.Equal(t, Following, it.then)
		})
	}
	return all
}

// nobody reports whether nobody is to be asked about what is in such a state, one that is served neither.
func nobody(name string) bool {
	return slices.Contains([]string{"idle", "rested", "expired", "gone", "gone from a worker", "storing, final"}, name)
}

// settle ends all rounds well until nobody is to be asked any more at present, and reports whether anybody was about it since.
func (s *script) settle(it *Item, d time.Duration) (asked bool) {
	s.t.Helper()
	finish := func() {
		for _, o := range s.items {
			switch o.state {
			case Working:
				s.ok(o)
			case Storing:
				s.Free(o, s.now)
				s.check()
			}
		}
	}
	for end := s.now.Add(d); s.now.Before(end); {
		finish()
		for got := s.next(); got != nil; got = s.next() {
			asked = asked || got == it
			s.ok(got)
		}
		next := s.When()
		if next.IsZero() || next.After(end) {
			next = end
		}
		s.pass(max(next.Sub(s.now), 0))
	}
	return asked
}

func TestAPeerThatIsServedFromNowOnIsAskedAbout(t *testing.T) {
	for name, bring := range peerStates(t, true) {
		s, it := bring()
		began := it.began.at
		s.SetPeer(it, false, s.now)
		s.check()
		s.settle(it, 6*aDay)
		if nobody(name) {
			require.Equal(t, Idle, it.State(), name)
			continue
		}
		require.Equal(t, Scheduled, it.State(), name)
		require.True(t, it.held.current(s.now.UnixMicro()), name)
		require.Greater(t, it.began.at, began, name)
	}
}

func TestOneThatIsServedAndIsAPeerFromNowOnIsAskedAboutOnlyIfItComes(t *testing.T) {
	for _, comes := range []bool{false, true} {
		for name, bring := range peerStates(t, false) {
			s, it := bring()
			busy := it.State() == Working || it.forced || it.stands() == Scheduled && it.held.end == 0 && it.tries == 0
			it.seen.Store(unseen)
			if comes {
				it.Visit()
			}
			s.SetPeer(it, true, s.now)
			s.check()
			asked := s.settle(it, 6*aDay)
			if nobody(name) {
				require.Equal(t, Idle, it.State(), name)
				require.False(t, asked, name)
				continue
			}
			off := slices.Contains([]string{"in a pause", "in a pause, with a response", "storing, in a pause"}, name)
			switch {
			case comes && !off && it.State() != Scheduled:
				require.True(t, asked || busy, name)
			case !comes && !busy:
				require.False(t, asked, name)
			}
			if it.held.end == 0 {
				require.True(t, it.dormant, name)
			}
			s.SetPeer(it, false, s.now) // and back
			s.settle(it, 6*aDay)
			require.Equal(t, Scheduled, it.State(), name)
			require.True(t, it.held.current(s.now.UnixMicro()), name)
		}
	}
}

func TestAPeerThatIsRemovedLeavesNothing(t *testing.T) {
	for name, bring := range peerStates(t, true) {
		s, it := bring()
		s.Remove(it, s.now)
		s.check()
		s.Wake(it, s.now)
		s.SetPeer(it, false, s.now)
		s.Start(it, s.now)
		require.False(t, s.settle(it, 2*time.Hour), name)
		require.Equal(t, Idle, it.State(), name)
		require.Empty(t, s.tree.nodes, name)
		require.Empty(t, s.tree.routes, name)
		require.Zero(t, s.tree.calls, name)
		require.Empty(t, s.tree.callers, name)
	}
}

func TestPeersThatLeaveDoNotPileUp(t *testing.T) {
	s := newScript(t, 4)
	busy := s.peer("ca", "h/")
	require.Equal(t, busy, s.next())
	again := s.peer("ca", "h/")
	for range 10_000 {
		it := &Item{peer: true}
		s.Add(it, "ca", []Source{at("h/")}, s.now.Add(time.Hour))
		s.Start(it, s.now)
		s.Remove(it, s.now)
		s.Hold(again, newer(s.now, aDay).Held, s.now) // and comes again
		s.Start(again, s.now)
	}
	s.check()
	require.Len(t, s.tree.nodes[nodeKey{level: hostLevel, url: "h"}].visitors.peers, 1)
	require.LessOrEqual(t, len(s.alarms), 2)
}

func TestAPeerKeepsItsTurn(t *testing.T) {
	s := newScript(t, 4)
	busy := s.peer("ca", "h/")
	require.Equal(t, busy, s.next())
	var peers []*Item
	for range 4 {
		peers = append(peers, s.peer("ca", "h/"))
	}
	s.holds(peers[0], 0, aDay) // and is last when it comes again
	s.Start(peers[0], s.now)
	s.check()
	for _, i := range []int{1, 2, 3, 0} {
		s.ok(busy)
		busy = s.next()
		require.Equal(t, peers[i], busy, "%d", i)
	}
}

func TestAResponseOfAPeerThatCameOtherwiseCounts(t *testing.T) {
	for name, bring := range peerStates(t, true) {
		s, it := bring()
		before := it.state
		s.holds(it, 0, 7*aDay)
		switch {
		case before == Working, before == Storing, it.forced, nobody(name) && name != "idle":
			require.Equal(t, before, it.State(), name)
		default:
			require.Equal(t, Scheduled, it.State(), name)
			require.GreaterOrEqual(t, it.due, s.now.Add(3*aDay).UnixMicro(), name)
			require.Nil(t, s.next(), name)
			it.seen.Store(unseen)
			s.pass(4 * aDay)
			require.Nil(t, s.next(), name)
			require.False(t, s.comes(it), name)
			require.Equal(t, it, s.next(), name)
		}
	}
}

func TestAPeerAboutWhichThereIsNobodyToAskIsNotWoken(t *testing.T) {
	for name, bring := range peerStates(t, true) {
		s, it := bring()
		if it.State() == Working || it.gone || it.over {
			continue
		}
		s.Rest(it, s.now)
		s.check()
		it.Visit()
		s.Wake(it, s.now)
		s.check()
		require.False(t, s.settle(it, 10*aDay), name)
		require.Equal(t, Idle, it.State(), name)
		s.Start(it, s.now) // until somebody says so
		require.Equal(t, it, s.next(), name)
	}
}

func TestSomebodyWhoStartsAPeerHasCome(t *testing.T) {
	for name, bring := range peerStates(t, true) {
		if !slices.Contains([]string{"idle", "scheduled", "scheduled for a retry", "asleep", "rested", "storing, final"}, name) {
			continue
		}
		s, it := bring()
		s.Start(it, s.now)
		if it.State() == Storing {
			s.Free(it, s.now)
		}
		require.Equal(t, it, s.next(), name)
		s.end(it, Outcome{Result: Deferred, Until: s.now})
		require.Equal(t, it, s.next(), name)
		s.ok(it)
		s.pass(5 * aDay)
		require.Nil(t, s.next(), name)
	}
}

func TestAPeerExpires(t *testing.T) {
	for name, bring := range peerStates(t, true) {
		s, it := bring()
		before := len(s.told)
		s.pass(1001 * aDay)
		for _, o := range s.items {
			if o.state == Working || o.state == Storing {
				s.ok(o)
			}
		}
		require.Equal(t, !nobody(name) || name == "storing, final", slices.ContainsFunc(s.told[before:], func(n Notice) bool { return n.Item == it && n.Kind == Expired }), name)
		it.Visit()
		s.Wake(it, s.now)
		s.check()
		require.Nil(t, s.next(), name)
		require.Equal(t, Idle, it.State(), name)
	}
}

func TestPeersWhileTheClockIsSet(t *testing.T) {
	for _, d := range []time.Duration{-10 * aDay, -time.Hour, time.Hour, 10 * aDay} {
		for name, bring := range peerStates(t, true) {
			s, it := bring()
			s.now = s.now.Add(d)
			s.Step(slices.Values(s.items), s.now)
			s.check()
			s.pass(0)
			if it.gone || nobody(name) {
				continue
			}
			s.settle(it, aDay) // and is there when it comes
			it.Visit()
			s.Wake(it, s.now)
			if it.held.end == 0 || !it.held.current(s.now.UnixMicro()) {
				s.Start(it, s.now)
			}
			s.settle(it, 7*aDay)
			require.True(t, it.state == Scheduled || it.dormant, "%s, %v", name, d)
			require.NotZero(t, it.held.end, "%s, %v", name, d)
		}
	}
	s := newScript(t, 4) // and a pause is over
	it := s.peer("ca", "h/")
	require.Equal(t, it, s.next())
	s.fail(it, Host)
	require.True(t, s.comes(it))
	s.now = s.now.Add(-aDay)
	s.Step(slices.Values(s.items), s.now)
	s.check()
	require.False(t, s.comes(it))
	require.Equal(t, it, s.next())
}
