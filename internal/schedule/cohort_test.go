package schedule

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// ended returns a script with n certificates of one route whose staples have just ended, and nobody asked since;
// the first of them leads.
func ended(t *testing.T, n int, urls ...string) (*script, []*Item) {
	s := newScript(t, 16)
	end := s.now.Add(time.Hour)
	for range n {
		it := s.add("ca", urls...)
		require.Equal(t, it, s.next())
		s.end(it, Outcome{Result: Newer, Asked: true, Held: Held{ThisUpdate: s.now, Until: end, End: end}})
	}
	var failed []*Item
	for s.now.Before(end) { // all have failed since
		it, _ := s.await()
		if s.now.Before(end) {
			s.fail(it, Certificate)
			continue
		}
		s.Done(it, Outcome{Result: Deferred, Until: s.now}, s.now)
		s.Free(it, s.now)
		failed = append(failed, it)
	}
	s.pass(0)
	require.Len(t, failed, 1, "one asks for all")
	return s, slices.Clone(s.items)
}

func states(items []*Item) map[State]int {
	of := make(map[State]int)
	for _, it := range items {
		of[it.State()]++
	}
	return of
}

func TestOneAsksForAllWhoseStaplesEndedTogether(t *testing.T) {
	s, items := ended(t, 6, "h/")
	require.Equal(t, map[State]int{Waiting: 1, Following: 5}, states(items))
	led := make(map[*Item]bool)
	for range items { // each failure lets another one lead
		it, after := s.await()
		require.LessOrEqual(t, after, 30*time.Second)
		require.False(t, led[it], "another one has not had its turn")
		led[it] = true
		s.fail(it, Certificate)
	}
	it, _ := s.await()
	s.ok(it)
	require.Equal(t, map[State]int{Scheduled: 1, Waiting: 5}, states(items), "the others follow as soon as it brought something newer")
	for range 5 {
		require.NotNil(t, s.next())
	}
}

func TestWhoWaitedWhenItsStapleEndedFollowsTheOthers(t *testing.T) {
	s := newScript(t, 16)
	end := s.now.Add(time.Hour)
	for range 10 {
		it := s.add("ca", "h/")
		s.Hold(it, Held{ThisUpdate: s.now, Until: end, End: end}, s.now)
	}
	for s.now.Before(end.Add(time.Minute)) {
		it, _ := s.await()
		s.fail(it, Host)
	}
	s.pass(0)
	require.Equal(t, map[State]int{Waiting: 1, Following: 9}, states(s.items))
}

func TestFollowersFollowWhenTheirLeaderIsAnsweredByAnother(t *testing.T) {
	s, items := ended(t, 3, "h/")
	it := s.next()
	o := newer(s.now, time.Hour)
	o.By = at("elsewhere/")
	s.end(it, o)
	require.Equal(t, map[State]int{Scheduled: 1, Waiting: 2}, states(items))
}

func TestALeaderThatIsRefusedByAnotherLeavesTheLeadToTheNext(t *testing.T) {
	s, items := ended(t, 3, "h/")
	it := s.next()
	o := s.failed(it, Answer{Fault: Certificate})
	o.Answers[0].Source = at("elsewhere/")
	s.end(it, o)
	next := s.next()
	require.NotNil(t, next)
	require.NotEqual(t, it, next)
	s.ok(next)
	require.Zero(t, states(items)[Following])
}

func TestALeaderWhoseOutcomeIsStillStoredFollowsTheNext(t *testing.T) {
	for _, removed := range []bool{false, true} {
		s, items := ended(t, 2, "h/")
		first := s.next()
		s.Done(first, s.failed(first, Answer{Fault: Host}), s.now)
		second, _ := s.await()
		require.NotEqual(t, first, second)
		if removed {
			s.Remove(second, s.now)
			s.end(second, Outcome{Result: Final})
		} else {
			s.end(second, s.failed(second, Answer{Fault: Host}))
		}
		s.Free(first, s.now)
		s.check()
		it, _ := s.await()
		require.Equal(t, first, it)
		s.ok(it)
		require.Zero(t, states(items)[Following])
	}
}

func TestALeaderThatLeavesBringsNobodyForward(t *testing.T) {
	for name, leave := range map[string]func(*script, *Item){
		"removed": func(s *script, it *Item) { s.Remove(it, s.now) },
		"refreshed": func(s *script, it *Item) {
			s.Refresh(it, s.now)
			s.end(s.next(), s.failed(it, Answer{Fault: Certificate}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, items := ended(t, 8, "h/")
			for s.now.Sub(timeOf(items[0].held.end)) < 10*time.Minute {
				it, _ := s.await()
				s.fail(it, Certificate)
			}
			require.Equal(t, map[State]int{Scheduled: 1, Following: 7}, states(items))
			for range 3 {
				i := slices.IndexFunc(items, func(it *Item) bool { return it.State() == Scheduled && it.cohort != nil && it.cohort.leader == it })
				due := s.NextAsk(items[i], s.now)
				leave(s, items[i])
				s.check()
				s.pass(0)
				require.Nil(t, s.next())
				items = slices.Delete(items, i, i+1)
				for _, it := range items {
					require.False(t, s.NextAsk(it, s.now).Before(due) && it.cohort != nil, "asked about before its time")
				}
			}
		})
	}
}

func TestRefreshOfOneThatLedDoesNotMakeTwoLead(t *testing.T) {
	s, items := ended(t, 3, "h/")
	first := s.next()
	s.Done(first, s.failed(first, Answer{Fault: Certificate}), s.now)
	s.Refresh(first, s.now)
	s.Free(first, s.now)
	s.check()
	require.Equal(t, first, s.next())
	s.fail(first, Certificate)
	s.pass(10 * time.Second)
	asked := s.next()
	require.NotNil(t, asked)
	require.Nil(t, s.next(), "another one leads as well")
	s.ok(asked)
	require.Zero(t, states(items)[Following])
}

func TestALeaderThatRefreshAsksAboutAndThatIsPutOffGoesFirstAllTheSame(t *testing.T) {
	s, items := ended(t, 3, "h/")
	first := s.next()
	s.Refresh(first, s.now)
	s.end(first, Outcome{Result: Deferred, Until: s.now.Add(time.Second)})
	i := slices.IndexFunc(items, func(it *Item) bool { return it != first })
	s.Hold(items[i], newer(s.now, time.Hour).Held, s.now)
	s.check()
	s.pass(time.Second)
	s.add("ca", "h2/")
	require.Equal(t, first, s.next())
}
