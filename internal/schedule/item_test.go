package schedule

import (
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
