package schedule

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// pauseOf returns the pause of an authority at a URL.
func (s *script) pauseOf(ca, url string) *pause {
	return &s.tree.nodes[nodeKey{caLevel, url, ca}].pause
}

func TestWhoFailsAgainAlthoughOthersSucceededSinceIsAtFaultItself(t *testing.T) {
	for _, f := range []Fault{CA, URL, Host} {
		s := newScript(t, 1)
		it, other := s.add("ca", "h/"), s.add("ca", "h/")
		require.Equal(t, it, s.next())
		s.fail(it, f)
		require.Equal(t, Waiting, it.State())
		got, _ := s.await()
		require.Equal(t, other, got)
		s.ok(other)
		require.Equal(t, it, s.next())
		s.fail(it, f)
		require.Equal(t, Scheduled, it.State(), "it is its own fault")
		other = s.add("ca", "h/")
		require.Equal(t, other, s.next(), "and holds up nobody")
		s.ok(other)
	}
}

func TestASuccessThatBeganBeforeAFailureSaysNothingAboutIt(t *testing.T) {
	for _, f := range []Fault{CA, URL, Host} {
		s := newScript(t, 2)
		it, other := s.add("ca", "h/"), s.add("ca", "h/")
		require.Len(t, s.all(), 2)
		s.fail(it, f)
		s.pass(time.Millisecond)
		s.ok(other)
		got, _ := s.await()
		require.Equal(t, it, got)
		s.fail(it, f)
		require.Equal(t, Waiting, it.State())
	}
}

func TestTheFaultOfOneCertificateEndsNoPause(t *testing.T) {
	s := newScript(t, 1)
	it := s.add("ca", "h/")
	require.Equal(t, it, s.next())
	s.fail(it, CA)
	good := s.add("ca", "h/")
	got, _ := s.await()
	require.Equal(t, good, got)
	s.ok(good)
	require.Equal(t, it, s.next())
	s.end(it, Outcome{Result: Deferred, Until: s.now.Add(time.Second)})
	bad := s.add("ca", "h/")
	require.Equal(t, bad, s.next())
	s.fail(bad, CA)
	s.pass(time.Minute)
	require.Equal(t, it, s.next())
	s.fail(it, CA)
	require.Equal(t, Scheduled, it.State(), "it is its own fault")
	require.Equal(t, paused, s.pauseOf("ca", "h/").state)
	require.Equal(t, bad, s.next())
}

func TestARefusalEndsTheTroubleOfItsAuthorityWithAWindowOfOne(t *testing.T) {
	s := newScript(t, 16)
	for range 3 {
		s.add("ca", "h/")
	}
	for _, it := range s.all() {
		s.fail(it, CA)
	}
	it, _ := s.await()
	s.fail(it, Certificate)
	require.Len(t, s.all(), 1)
}

func TestDuringThePauseOfAnAuthorityNewCertificatesGoFirst(t *testing.T) {
	s := newScript(t, 16)
	old := s.add("ca", "h/")
	require.Equal(t, old, s.next())
	s.fail(old, CA)
	var fresh []*Item
	for range 10 {
		fresh = append(fresh, s.add("ca", "h/"))
	}
	gap := time.Second / 8
	for range fresh {
		it, after := s.await()
		require.Contains(t, fresh, it)
		require.Equal(t, gap, after)
		require.Nil(t, s.next(), "two at a time")
		s.fail(it, CA)
		gap = min(2*gap, time.Second)
	}
	it, after := s.await()
	require.Equal(t, old, it, "nobody else is new")
	require.GreaterOrEqual(t, after, 2*time.Second)
}

func TestDuringThePauseOfAHostOrURLNewCertificatesWaitAsWell(t *testing.T) {
	for _, f := range []Fault{URL, Host} {
		s := newScript(t, 16)
		it := s.add("ca", "h/")
		require.Equal(t, it, s.next())
		s.fail(it, f)
		it = s.add("ca", "h/")
		got, after := s.await()
		require.Equal(t, it, got, "what was never asked about tells most")
		require.GreaterOrEqual(t, after, 2*time.Second)
	}
}

func TestAfterAPauseTheNumberInFlightDoublesWithEachSuccess(t *testing.T) {
	for _, f := range []Fault{CA, URL, Host} {
		s := newScript(t, 32)
		for range 200 {
			s.add("ca", "h/")
		}
		for _, it := range s.all() {
			s.fail(it, f)
		}
		it, _ := s.await()
		var inFlight []*Item
		for _, want := range []int{2, 4, 8, 32} { // from the share on, whatever workers there are
			s.ok(it)
			inFlight = append(inFlight, s.all()...)
			require.Len(t, inFlight, want)
			it, inFlight = inFlight[0], inFlight[1:]
		}
	}
}

func TestTheNumberInFlightHalvesWhenAResponderIsBusyAndThenGrowsByOne(t *testing.T) {
	for _, f := range []Fault{CA, URL} {
		s := newScript(t, 64)
		for range 200 {
			s.add("ca", "h/")
		}
		for _, it := range s.all() {
			s.fail(it, f)
		}
		it, _ := s.await()
		var inFlight []*Item
		turn := func(want int) {
			t.Helper()
			inFlight = append(inFlight, s.all()...)
			require.Len(t, inFlight, want)
			it, inFlight = inFlight[0], inFlight[1:]
		}
		s.ok(it)
		turn(2)
		s.ok(it)
		turn(4)
		s.ok(it)
		turn(8)
		s.ok(it)
		turn(16)
		for range 3 { // of those in flight, however many say so
			s.end(it, s.failed(it, Answer{Fault: f, Busy: true}))
			require.Empty(t, s.all())
			it, inFlight = inFlight[0], inFlight[1:]
		}
		for len(inFlight) > 0 {
			s.ok(it)
			it, inFlight = inFlight[0], inFlight[1:]
		}
		s.fail(it, NoFault)
		require.Len(t, s.all(), 8+12, "a success lets one more in")
	}
}

func TestAFirstRoundEndsWhileWhatItNeedsPauses(t *testing.T) {
	down := errors.New("down")
	for _, tt := range []struct {
		fault Fault
		after time.Duration
	}{
		{CA, 5 * time.Second},
		{URL, 0},
		{Host, 0},
	} {
		for _, first := range []bool{false, true} { // whether it came before the pause
			for _, urls := range [][]string{{"h1/"}, {"h1/", "h2/"}, {"h2/", "h1/"}} {
				t.Run(fmt.Sprint(tt.fault, first, urls), func(t *testing.T) {
					s := newScript(t, 2)
					var witnesses []*Item
					for _, url := range urls {
						witnesses = append(witnesses, s.add("ca", url))
						require.NotNil(t, s.next())
					}
					it := new(Item)
					come := func() {
						var at_ []Source
						for _, url := range urls {
							at_ = append(at_, at(url))
						}
						s.Add(it, "ca", at_, s.now.Add(time.Hour))
						s.Start(it, s.now)
					}
					if first {
						come()
					}
					for i, w := range witnesses {
						require.Empty(t, s.Notices(), "one of its URLs does not pause")
						f := tt.fault
						if f == CA && urls[i] == "h2/" {
							f = Host // it can still be asked about where only the authority pauses
						}
						s.Done(w, Outcome{Result: Failed, Asked: true, Err: down, Answers: []Answer{{Source: at(urls[i]), Fault: f, Err: down}}}, s.now)
						// which stays with its worker, so that nobody is asked
					}
					if !first {
						come()
					}
					s.working = s.workers // so that nobody is asked
					if tt.after > 0 {
						s.now = s.now.Add(tt.after - time.Microsecond)
						s.Look(s.now)
						require.Empty(t, s.Notices())
						s.now = s.now.Add(time.Microsecond)
						s.Look(s.now)
					}
					require.Equal(t, []Notice{{Item: it, Kind: Paused, Err: down}}, s.Notices())
					s.now = s.now.Add(time.Minute)
					s.Look(s.now)
					require.Empty(t, s.Notices(), "a second time")
				})
			}
		}
	}
}

func TestNobodyIsToldOfAPauseWhoseFirstRoundHasEnded(t *testing.T) {
	s := newScript(t, 1)
	it := s.add("ca", "h/")
	require.Equal(t, it, s.next())
	for range 5 {
		s.Done(it, s.failed(it, Answer{Fault: Host}), s.now)
		s.Free(it, s.now)
		require.Empty(t, s.Notices())
		it, _ = s.await()
	}
}

func TestRefreshPassesEveryPauseBy(t *testing.T) {
	for _, f := range []Fault{Certificate, CA, URL, Host} {
		s := newScript(t, 4)
		it := s.add("ca", "h/")
		require.Equal(t, it, s.next())
		s.end(it, s.failed(it, Answer{Fault: f, RetryAfter: time.Hour}))
		require.Nil(t, s.next())
		s.Refresh(it, s.now)
		require.Equal(t, it, s.next())
		s.Refresh(it, s.now) // the one under way will do
		s.ok(it)
		require.Nil(t, s.next())
	}
}

func TestRefreshGivesNoHostMoreThanHalfOfTheWorkersAndMakesTheOthersTakeTurns(t *testing.T) {
	for _, workers := range []int{1, 2, 5, 16} {
		s := newScript(t, workers)
		hosts := make(map[*Item]string)
		for i := range 60 {
			host := []string{"h1/", "h2/", "h3/"}[i%3]
			if i >= 30 {
				host = "h1/"
			}
			it := s.add("ca", host)
			hosts[it] = host
			s.Refresh(it, s.now)
		}
		in := func(items []*Item, host string) (n int) {
			for _, it := range items {
				if hosts[it] == host {
					n++
				}
			}
			return n
		}
		inFlight := s.all()
		require.Len(t, inFlight, workers)
		share := max(workers/2, 1)
		for range 100 {
			require.LessOrEqual(t, in(inFlight, "h1/"), share)
			i := slices.IndexFunc(inFlight, func(it *Item) bool { return hosts[it] != "h1/" }) // h1 hangs
			if i < 0 {
				break
			}
			s.ok(inFlight[i])
			inFlight = append(slices.Delete(inFlight, i, i+1), s.all()...)
		}
		require.Equal(t, share, in(inFlight, "h1/"))
		require.Len(t, inFlight, share, "half of the workers are free although nobody else waits")
	}
}
