package schedule

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestNobodyIsAskedOnceACertificateHasExpired(t *testing.T) {
	for _, state := range []State{Scheduled, Waiting, Working, Storing} {
		t.Run(state.String(), func(t *testing.T) {
			s := newScript(t, 1)
			it := new(Item)
			s.items = append(s.items, it)
			s.Add(it, "ca", []Source{at("h/")}, s.now.Add(time.Hour))
			s.Start(it, s.now)
			switch state {
			case Scheduled:
				require.Equal(t, it, s.next())
				s.end(it, Outcome{Result: Deferred, Until: s.now.Add(2 * time.Hour)})
			case Working:
				require.Equal(t, it, s.next())
			case Storing:
				require.Equal(t, it, s.next())
				s.Done(it, s.failed(it, Answer{Fault: Host}), s.now)
			}
			require.Equal(t, state, it.State())
			s.now = s.now.Add(time.Hour)
			s.Look(s.now)
			require.Equal(t, []Notice{{Item: it, Kind: Expired}}, s.Notices())
			if state == Working {
				s.Done(it, s.failed(it, Answer{Fault: Host}), s.now)
			}
			if state == Working || state == Storing {
				s.Free(it, s.now)
			}
			require.Equal(t, Idle, it.State())
			s.check()
			require.Zero(t, s.When())
		})
	}
}

func TestRestEndsNoRoundThatIsUnderWay(t *testing.T) {
	for _, state := range []State{Scheduled, Waiting, Working, Storing} {
		t.Run(state.String(), func(t *testing.T) {
			s := newScript(t, 1)
			it := s.add("ca", "h/")
			s.bring(it, state, s.failed(it, Answer{Fault: Certificate}))
			s.Rest(it, s.now)
			s.check()
			if state == Working {
				require.Equal(t, Working, it.State())
				s.end(it, Outcome{Result: Final})
			}
			if state == Storing {
				s.Free(it, s.now)
			}
			require.Equal(t, Idle, it.State())
			s.check()
		})
	}
}

func TestARoundThatIsPutOffIsPutOffForRefreshToo(t *testing.T) {
	s := newScript(t, 1)
	it := s.add("ca", "h/")
	require.Equal(t, it, s.next())
	s.Refresh(it, s.now)
	for range 3 { // another process is at it
		s.end(it, Outcome{Result: Deferred, Until: s.now.Add(time.Second)})
		s.Refresh(it, s.now)
		got, after := s.await()
		require.Equal(t, it, got)
		require.Equal(t, time.Second, after)
	}
	s.Done(it, Outcome{Result: Deferred, Until: s.now.Add(time.Second)}, s.now)
	s.Free(it, s.now)
	s.pass(time.Second)
	s.Done(s.next(), s.failed(it, Answer{Fault: Certificate}), s.now)
	s.Refresh(it, s.now)
	s.Free(it, s.now)
	require.Equal(t, it, s.next(), "this one was asked for after the round had ended")
}

func TestRefreshWhileTheOutcomeOfARoundIsStoredAsksAtOnce(t *testing.T) {
	s := newScript(t, 1)
	it := s.add("ca", "h/")
	require.Equal(t, it, s.next())
	s.Done(it, newer(s.now, time.Hour), s.now)
	s.Refresh(it, s.now)
	s.Free(it, s.now)
	require.Equal(t, it, s.next())
}

func TestHostsThatRefreshFillsKeepNobodyFromTheCache(t *testing.T) {
	s := newScript(t, 4)
	s.peeks = true
	for range 3 {
		s.Refresh(s.add("ca", "hangs/"), s.now)
	}
	require.NotNil(t, s.next())
	require.NotNil(t, s.next())
	down := s.add("ca", "down/")
	require.Equal(t, down, s.next())
	s.fail(down, Host)
	it := s.add("ca", "down/")
	got, task := s.Next(s.now)
	require.Equal(t, it, got)
	require.Equal(t, Peek, task)
}

func TestAStapleEndsSoonByWhatWasLeftWhenItCame(t *testing.T) {
	const hours = time.Hour
	old := func(s *script, left time.Duration) Held { // from the beginning
		return Held{ThisUpdate: s.now.Add(-28 * 24 * hours), Until: s.now.Add(left), End: s.now.Add(left)}
	}
	for _, tt := range []struct {
		name string
		play func(s *script, it *Item)
		want bool
	}{
		{"when it comes", func(s *script, it *Item) {
			s.end(it, Outcome{Result: Newer, Asked: true, Held: old(s, 8*hours)})
		}, false},
		{"when a quarter is left and nobody was asked since", func(s *script, it *Item) {
			s.end(it, Outcome{Result: Newer, Asked: true, Held: old(s, 8*hours)})
			s.pass(5 * hours)
			require.Equal(s.t, it, s.next())
			s.end(it, Outcome{Result: Unchanged, Asked: true, By: at("h/")})
			s.pass(hours)
		}, false},
		{"when the next round is due", func(s *script, it *Item) {
			s.end(it, Outcome{Result: Newer, Asked: true, Held: old(s, 8*hours)})
			s.pass(5 * hours)
			require.Equal(s.t, it, s.next())
			s.end(it, Outcome{Result: Unchanged, Asked: true, By: at("h/")})
			s.pass(2 * hours)
		}, true},
		{"when there was nothing newer in the last quarter", func(s *script, it *Item) {
			s.end(it, Outcome{Result: Newer, Asked: true, Held: old(s, 8*hours)})
			for after := time.Duration(0); after <= 6*hours; {
				it, d := s.await()
				after += d
				s.end(it, Outcome{Result: Unchanged, Asked: true, By: at("h/")})
			}
		}, true},
		{"when the last round failed", func(s *script, it *Item) {
			s.end(it, Outcome{Result: Newer, Asked: true, Held: old(s, 8*hours)})
			it, after := s.await()
			s.fail(it, Certificate)
			s.pass(6*hours - after)
			require.Equal(s.t, 2*hours, timeOf(it.held.end).Sub(s.now))
		}, true},
		{"when it was there before, and nobody knows since when", func(s *script, it *Item) {
			s.end(it, Outcome{Result: Deferred, Until: s.now})
			s.Hold(it, old(s, 8*hours), s.now)
		}, true},
		{"when nobody wants to know", func(s *script, it *Item) {
			h := old(s, 8*hours)
			h.Quiet = true
			s.end(it, Outcome{Result: Newer, Asked: true, Held: h})
			s.pass(7 * hours)
		}, false},
		{"when it has ended", func(s *script, it *Item) {
			s.end(it, Outcome{Result: Newer, Asked: true, Held: old(s, 8*hours)})
			s.pass(9 * hours)
		}, false},
		{"when it came while another one was held", func(s *script, it *Item) {
			s.end(it, Outcome{Result: Newer, Asked: true, Held: old(s, 8*hours)})
			s.pass(hours)
			s.Hold(it, old(s, 9*hours), s.now)
		}, false},
		{"when it came by a clock that was fast", func(s *script, it *Item) {
			s.end(it, Outcome{Result: Newer, Asked: true, Held: newer(s.now.Add(-72*hours), 96*hours).Held})
			s.now = s.now.Add(-72 * hours)
			s.Step(slices.Values(s.items), s.now)
			s.pass(72 * hours)
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript(t, 1)
			it := s.add("ca", "h/")
			require.Equal(t, it, s.next())
			tt.play(s, it)
			require.Equal(t, tt.want, it.Ending(s.now))
		})
	}
}

func TestAPauseHasAReasonAndAnEndForThoseThatItKeepsWaiting(t *testing.T) {
	s := newScript(t, 4)
	held, failed, waits, other := s.add("ca", "h/"), s.add("ca", "h/"), s.add("ca", "h/"), s.add("ca", "other/")
	require.Equal(t, held, s.next())
	s.ok(held)
	free := func(it *Item) {
		t.Helper()
		until, err := it.Pause(s.now)
		require.Zero(t, until)
		require.NoError(t, err)
	}
	for _, it := range s.items {
		free(it)
	}
	for it := s.next(); it != nil; it = s.next() {
		if it == other {
			s.ok(it)
		} else {
			s.fail(it, Host)
		}
	}
	for _, it := range []*Item{failed, waits} {
		until, err := it.Pause(s.now)
		require.True(t, until.After(s.now))
		require.Equal(t, until, s.NextAsk(it, s.now))
		require.ErrorIs(t, err, errTest)
	}
	free(held) // it is due after that
	free(other)
	s.Refresh(failed, s.now)
	free(failed)
	first := s.next()
	require.Equal(t, failed, first)
	free(first)
	s.ok(first)
	free(waits)
	s.Rest(waits, s.now)
	free(waits)
	free(new(Item))
}

func TestWhenItIsAskedNextIsKnownBeforeItsWorkerIsFree(t *testing.T) {
	for _, held := range []bool{false, true} {
		s := newScript(t, 4)
		it := s.add("ca", "h/")
		require.Equal(t, it, s.next())
		most := 5 * time.Second
		if held {
			s.end(it, newer(s.now, time.Hour))
			s.pass(time.Hour / 2 / 10 * 11)
			require.Equal(t, it, s.next())
			most = 5*time.Minute + time.Second
		}
		s.Done(it, s.failed(it, Answer{Fault: Host}), s.now)
		told := s.NextAsk(it, s.now)
		until, _ := it.Pause(s.now)
		require.Equal(t, told, until)
		s.Free(it, s.now)
		require.Equal(t, told, s.NextAsk(it, s.now))
		require.Less(t, told.Sub(s.now), most)
		got, after := s.await()
		require.Equal(t, it, got)
		require.Equal(t, told, s.now, after)
	}
}

// TestMove moves one whose host pauses to another host, in each state.
func TestMove(t *testing.T) {
	for _, state := range []State{Scheduled, Waiting, Working, Storing} {
		t.Run(state.String(), func(t *testing.T) {
			s := newScript(t, 4)
			it := s.add("ca", "h/")
			if state == Waiting {
				require.Equal(t, it, s.next())
				s.fail(it, Host)
			} else {
				s.bring(it, state, s.failed(it, Answer{Source: at("h/"), Fault: Host}))
			}
			s.Move(it, []Source{at("other/")}, s.now)
			s.check()
			switch state {
			case Working:
				s.end(it, Outcome{Result: Elsewhere, At: []Source{at("other/")}})
			case Storing:
				s.Free(it, s.now)
			}
			require.Equal(t, it, s.next())
			require.Equal(t, "other", it.Host())
			s.ok(it)
		})
	}
}

func TestWhoeverGaveWhatItTakesToGoOnElsewhereIsWell(t *testing.T) {
	s := newScript(t, 16)
	for range 100 {
		s.add("ca", "issuers/")
	}
	for _, it := range s.all() {
		s.fail(it, Host)
	}
	it, _ := s.await()
	s.end(it, Outcome{Result: Elsewhere, Asked: true, At: []Source{at("h/")}})
	require.Equal(t, recovering, s.tree.nodes[nodeKey{level: hostLevel, url: "issuers"}].pause.state)
	require.Len(t, s.all(), 3, "two there, and one elsewhere")

	s = newScript(t, 16)
	it = s.add("ca", "h/")
	s.add("ca", "h/")
	require.Equal(t, it, s.next())
	s.fail(it, Host)
	it, _ = s.await()
	s.end(it, Outcome{Result: Elsewhere, At: []Source{at("issuers/")}})
	require.Equal(t, paused, s.tree.nodes[nodeKey{level: hostLevel, url: "h"}].pause.state, "nobody was asked there")
	require.Equal(t, []*Item{it}, s.all()[:1])
}
