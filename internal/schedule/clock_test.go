package schedule

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// set sets the clock.
func (s *script) set(d time.Duration) {
	s.now = s.now.Add(d)
	s.Step(slices.Values(s.items), s.now)
	s.pass(0)
}

func TestAClockThatIsSetBackPutsOffNobodyWithoutAStaple(t *testing.T) {
	for _, state := range []State{Scheduled, Waiting, Working, Storing} {
		for _, f := range []Fault{Certificate, CA, URL, Host} {
			t.Run(state.String(), func(t *testing.T) {
				s := newScript(t, 1)
				it := s.add("ca", "h/")
				require.Equal(t, it, s.next())
				s.fail(it, f)
				switch state {
				case Scheduled, Waiting:
					if (it.State() == Scheduled) != (state == Scheduled) {
						return
					}
				case Working:
					it, _ = s.await()
				case Storing:
					it, _ = s.await()
					s.Done(it, s.failed(it, Answer{Fault: f}), s.now)
				}
				s.set(-24 * time.Hour)
				switch state {
				case Working:
					s.fail(it, f)
				case Storing:
					s.Free(it, s.now)
				}
				_, after := s.await()
				require.LessOrEqual(t, after, 20*time.Second)
			})
		}
	}
}

func TestAnOutageThatBeganBeforeTheClockWasSetBackIsNoRush(t *testing.T) {
	s := newScript(t, 1)
	it := s.add("ca", "h/")
	require.Equal(t, it, s.next())
	s.set(-24 * time.Hour)
	s.fail(it, Host)
	for range 5 {
		_, after := s.await()
		require.GreaterOrEqual(t, after, 2*time.Second)
		s.fail(it, Host)
	}
}

func TestAClockThatWasWrongEndsNoCertificateForGood(t *testing.T) {
	for _, state := range []State{Scheduled, Waiting, Working, Storing} {
		t.Run(state.String(), func(t *testing.T) {
			s := newScript(t, 1)
			it := s.add("ca", "h/")
			s.bring(it, state, newer(s.now, time.Hour))
			s.set(2000 * 24 * time.Hour)
			if state == Working {
				s.Done(it, s.failed(it, Answer{Fault: Host}), s.now)
			}
			s.set(-2000 * 24 * time.Hour)
			if state == Working || state == Storing {
				s.Free(it, s.now)
			}
			got, after := s.await()
			require.Equal(t, it, got)
			require.Less(t, after, 4*24*time.Hour)
			require.Less(t, s.now, timeOf(it.expires))
		})
	}
}

func TestAStapleThatEndsUnnoticedIsUrgentAllTheSame(t *testing.T) {
	s := newScript(t, 1)
	it := s.add("ca", "h/")
	end := s.now.Add(time.Hour)
	s.Hold(it, Held{ThisUpdate: s.now, Until: end, End: end, Quiet: true}, s.now)
	for s.now.Before(end.Add(time.Minute)) {
		_, after := s.await()
		if s.now.After(end.Add(-14 * time.Minute)) {
			require.LessOrEqual(t, after, 30*time.Second)
		}
		s.end(it, s.failed(it, Answer{Fault: Host}))
	}
	require.Empty(t, s.Notices())
}

func TestStartWhileTheRoundThatSaidThatNobodyCanBeAskedIsStored(t *testing.T) {
	s := newScript(t, 1)
	it := s.add("ca", "h/")
	require.Equal(t, it, s.next())
	s.Done(it, Outcome{Result: Final}, s.now)
	s.Start(it, s.now)
	s.Free(it, s.now)
	require.Equal(t, it, s.next())
}

func TestARevokedCertificateWhoseResponseHasEndedWaitsAnHourAtMost(t *testing.T) {
	s := newScript(t, 1)
	it := s.add("ca", "h/")
	require.Equal(t, it, s.next())
	o := newer(s.now, time.Hour)
	o.Held.Revoked = true
	s.end(it, o)
	for range 10 {
		_, after := s.await()
		require.LessOrEqual(t, after, time.Hour)
		s.end(it, s.failed(it, Answer{Fault: URL, RetryAfter: 100 * time.Hour}))
	}
}

func TestAClockThatIsSetBackToBeforeTheEndOfAStapleSchedulesNothingPastThat(t *testing.T) {
	s := newScript(t, 1)
	it := new(Item)
	s.items = append(s.items, it)
	end := s.now.Add(time.Hour)
	s.Add(it, "ca", []Source{at("h/")}, end)
	s.now = end
	s.Hold(it, Held{ThisUpdate: end.Add(-4 * time.Second), Until: end.Add(6 * time.Second), End: end}, s.now)
	s.set(-24 * time.Hour)
	require.Zero(t, s.NextAsk(it, s.now))
}
