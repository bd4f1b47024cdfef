package schedule

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// all returns whoever free workers get now.
func (s *script) all() (items []*Item) {
	s.t.Helper()
	for it := s.next(); it != nil; it = s.next() {
		items = append(items, it)
	}
	return items
}

func TestWhatIsAtFaultPausesAndNothingElse(t *testing.T) {
	for _, tt := range []struct {
		fault                            Fault
		sameCA, sameURL, sameHost, other bool // whether others can be asked about: of the same authority, ...
	}{
		{Certificate, true, true, true, true},
		{CA, false, true, true, true},
		{URL, false, false, true, true},
		{Host, false, false, false, true},
	} {
		s := newScript(t, 16)
		it := s.add("ca1", "h1/1")
		require.Equal(t, it, s.next())
		s.fail(it, tt.fault)
		first := it.Outage().ID
		require.Equal(t, tt.fault == Certificate, first == "")
		require.Equal(t, map[Fault]string{CA: "CA at h1/1", URL: "URL h1/1", Host: "host h1"}[tt.fault], it.Outage().Fault)
		s.pass(time.Microsecond)
		sameCA, sameURL := s.add("ca1", "h1/1"), s.add("ca2", "h1/1")
		sameHost, other := s.add("ca2", "h1/2"), s.add("ca2", "h2/1")
		can := s.all()
		for it, want := range map[*Item]bool{sameCA: tt.sameCA, sameURL: tt.sameURL, sameHost: tt.sameHost, other: tt.other} {
			require.Equal(t, want, slices.Contains(can, it), "fault %d", tt.fault)
			outage := first
			if want {
				outage = ""
			}
			require.Equal(t, outage, it.Outage().ID, "fault %d", tt.fault)
		}
		require.Equal(t, map[Fault]int{CA: 2, URL: 3, Host: 4}[tt.fault], it.Outage().Items)
	}
}

func TestEightDifferentCertificatesRefusedInARowPauseTheirAuthority(t *testing.T) {
	for _, tt := range []struct {
		name   string
		rounds string // r: another one is refused; s: the same one; a: another one is accepted; o: another one is unchanged; 5: another one's fails through CA
		pauses bool
	}{
		{"seven", "rrrrrrr", false},
		{"eight", "rrrrrrrr", true},
		{"the same one, again and again", "rssssssssssss", false},
		{"one is accepted among them", "rrrrrrrarrrrrrr", false},
		{"one is unchanged among them", "rrrrrrrorrrrrrr", false},
		{"eight after one that was accepted", "rrrrrrrarrrrrrrr", true},
		{"eight with some twice", "rsrsrrrsrrsr", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript(t, 16)
			var it *Item
			for _, round := range tt.rounds {
				if round == 's' {
					s.Refresh(it, s.now)
				} else {
					it = s.add("ca", "h/")
				}
				require.Equal(t, it, s.next())
				switch round {
				case 'a':
					s.ok(it)
				case 'o':
					s.Hold(it, newer(s.now, time.Hour).Held, s.now)
					s.end(it, Outcome{Result: Unchanged, Asked: true})
				default:
					s.fail(it, Certificate)
				}
			}
			other, another := s.add("ca2", "h/"), s.add("ca", "h2/")
			last := s.add("ca", "h/")
			can := s.all()
			require.Contains(t, can, other)
			require.Contains(t, can, another)
			require.Equal(t, !tt.pauses, slices.Contains(can, last))
		})
	}
}

func TestCertificatesThatFailedThroughTheirAuthorityBeforeCountWhenTheyAreRefused(t *testing.T) {
	s := newScript(t, 1)
	for range 8 {
		s.add("ca", "h/")
	}
	for range 8 {
		it, _ := s.await()
		s.fail(it, CA)
	}
	for range 8 { // it is back, and knows none of them
		it, _ := s.await()
		s.fail(it, Certificate)
	}
	s.add("ca", "h/")
	require.Nil(t, s.next())
}

func TestTenFailuresOfWhichNobodyKnowsWhoWasAskedPauseTheIssuer(t *testing.T) {
	for n := range 12 {
		s := newScript(t, 16)
		it := s.add("ca")
		for range n {
			require.Equal(t, it, s.next())
			s.end(it, Outcome{Result: Failed, Asked: true, Err: errTest})
			s.Refresh(it, s.now)
		}
		other, same := s.add("ca2"), s.add("ca")
		can := s.all()
		require.Contains(t, can, other)
		require.Equal(t, n < 10, slices.Contains(can, same), n)
	}
}

func TestACertificateWaitsOnlyIfAllItsURLsDo(t *testing.T) {
	for _, faults := range [][2]Fault{{Host, NoFault}, {NoFault, Host}, {Host, CA}, {CA, CA}, {URL, Host}, {Certificate, Host}} {
		t.Run(fmt.Sprint(faults), func(t *testing.T) {
			s := newScript(t, 16)
			waits := true
			for i, f := range faults {
				it := s.add("ca", fmt.Sprint("h", i, "/"))
				require.Equal(t, it, s.next())
				s.fail(it, f)
				waits = waits && f >= CA
			}
			it := s.add("ca", "h0/", "h1/")
			require.Equal(t, waits, !slices.Contains(s.all(), it))
		})
	}
}

func TestARetryAfterGoesBeforeEveryOtherNumber(t *testing.T) {
	day := 24 * time.Hour
	for _, tt := range []struct {
		name        string
		asked       time.Duration
		left        time.Duration // until the end of the staple; 0: there is none
		least, most time.Duration
	}{
		{"as asked, give or take a tenth", 30 * time.Minute, 0, 30 * time.Minute, 33 * time.Minute},
		{"an hour at most without a staple", 100 * time.Hour, 0, time.Hour, time.Hour},
		{"half of what is left at most", 100 * time.Hour, 4 * day, 2 * day, 2 * day},
		{"as asked if less than half of what is left", 10 * time.Hour, 4 * day, 10 * time.Hour, 11 * time.Hour},
		{"in the last quarter too", 100 * time.Hour, time.Hour, time.Hour / 2, time.Hour / 2},
		{"not sooner than without it, without a staple", time.Microsecond, 0, 2 * time.Second, 4 * time.Second},
		{"not sooner than without it, with one", time.Second, 4 * day, 5 * time.Minute, 5 * time.Minute},
		{"not sooner than without it, just before the end", time.Hour, 5 * time.Second, 2500 * time.Millisecond, 4 * time.Second},
	} {
		for _, f := range []Fault{CA, URL} {
			t.Run(tt.name, func(t *testing.T) {
				s := newScript(t, 1)
				it := s.add("ca", "h/")
				if tt.left > 0 {
					end := s.now.Add(tt.left)
					s.Hold(it, Held{ThisUpdate: end.Add(-7 * day), Until: end, End: end}, s.now)
					s.pass(0)
				}
				if it.State() != Waiting {
					s.Refresh(it, s.now)
				}
				require.Equal(t, it, s.next())
				s.end(it, s.failed(it, Answer{Fault: f, RetryAfter: tt.asked}))
				got, after := s.await()
				require.Equal(t, it, got)
				require.GreaterOrEqual(t, after, tt.least-time.Microsecond)
				require.LessOrEqual(t, after, tt.most+time.Microsecond)
			})
		}
	}
}

func TestRetryAftersDoNotLeadToARushBeforeTheEnd(t *testing.T) {
	s := newScript(t, 1)
	it, end := s.add("ca", "h/"), s.now.Add(time.Minute)
	s.Hold(it, Held{ThisUpdate: end.Add(-10 * time.Hour), Until: end, End: end}, s.now)
	for s.now.Before(end) {
		s.await()
		s.end(it, s.failed(it, Answer{Fault: URL, RetryAfter: time.Hour}))
	}
	require.LessOrEqual(t, s.asked, 10)
}

func TestARetryAfterIsHeededAlsoByOneThatIsAtFaultItself(t *testing.T) {
	s := newScript(t, 1)
	it, other := s.add("ca", "h/"), s.add("ca", "h/")
	require.Equal(t, it, s.next())
	s.end(it, s.failed(it, Answer{Fault: URL, RetryAfter: time.Hour}))
	s.Refresh(other, s.now)
	require.Equal(t, other, s.next())
	s.ok(other) // others are lucky, though that does not end the pause
	require.Nil(t, s.next())
	s.pass(time.Hour + time.Hour/10)
	require.Equal(t, it, s.next())
	s.end(it, s.failed(it, Answer{Fault: URL, RetryAfter: 30 * time.Minute}))
	require.Equal(t, Scheduled, it.State())
	require.GreaterOrEqual(t, s.NextAsk(it, s.now).Sub(s.now), 30*time.Minute)
}

func TestAnOutageCountsAsOneFailureHoweverManyRequestsWereInFlight(t *testing.T) {
	for _, f := range []Fault{CA, URL, Host} {
		s := newScript(t, 16)
		for range 16 {
			s.add("ca", "h/")
		}
		inFlight := s.all()
		require.Len(t, inFlight, 16)
		for i, it := range inFlight {
			s.fail(it, f)
			if i == 0 {
				s.pass(time.Second)
			}
		}
		_, after := s.await()
		require.LessOrEqual(t, after, 3*time.Second, "counted from the first")
	}
}

func TestWhileSomethingPausesItGetsOneRequestAtATimeAndTheOneThatWaitedLongestFirst(t *testing.T) {
	for _, f := range []Fault{CA, URL, Host} {
		s := newScript(t, 16)
		for range 5 {
			s.add("ca", "h/")
		}
		for _, it := range s.all() {
			s.fail(it, f)
		}
		asked := make(map[*Item]int)
		for i := range 20 {
			it, _ := s.await()
			require.Nil(t, s.next(), "two at a time")
			require.Equal(t, i/5, asked[it], "twice while another one waits")
			asked[it]++
			s.pass(time.Minute)
			require.Nil(t, s.next(), "two at a time")
			s.fail(it, f)
		}
	}
}

func TestHowOftenWhatPausesIsAsked(t *testing.T) {
	day := 24 * time.Hour
	type interval struct{ outage, least, most time.Duration }
	urgent := []interval{ // between half of it and all of it
		{0, 2 * time.Second, 4 * time.Second},
		{time.Minute, 5 * time.Second, 10 * time.Second},
		{10 * time.Minute, 15 * time.Second, 30 * time.Second},
		{59 * time.Minute, 15 * time.Second, 30 * time.Second},
		{61 * time.Minute, 150 * time.Second, 5 * time.Minute},
		{23 * time.Hour, 150 * time.Second, 5 * time.Minute},
		{25 * time.Hour, 30 * time.Minute, time.Hour},
		{100 * time.Hour, 30 * time.Minute, time.Hour},
	}
	for _, tt := range []struct {
		name    string
		elapsed float64 // of the validity; 0: there is no staple
		want    []interval
	}{
		{"without a staple", 0, urgent},
		{"in the last quarter", 0.76, urgent},
		{"otherwise", 0.5, []interval{{0, 5 * time.Minute, 5 * time.Minute}, {time.Hour, 6 * time.Minute, 7 * time.Minute},
			{25 * time.Hour, time.Hour, time.Hour}}},
	} {
		for _, f := range []Fault{CA, URL, Host} {
			t.Run(tt.name, func(t *testing.T) {
				for _, want := range tt.want {
					s := newScript(t, 1)
					it := s.add("ca", "h/")
					if tt.elapsed > 0 {
						start := s.now.Add(-time.Duration(tt.elapsed * float64(1000*day)))
						s.Hold(it, Held{ThisUpdate: start, Until: start.Add(1000 * day), End: start.Add(1000 * day)}, s.now)
						s.pass(0)
					}
					require.Equal(t, it, s.next())
					s.fail(it, f)
					began := s.now
					for {
						_, after := s.await()
						at := s.now.Add(-after).Sub(began)
						s.fail(it, f)
						if at < want.outage {
							continue
						}
						require.GreaterOrEqual(t, after, want.least, "after %v", at)
						require.LessOrEqual(t, after, want.most+(at-want.outage)/10, "after %v", at)
						break
					}
				}
			})
		}
	}
}

func TestInTheLastQuarterOneHurriesForAll(t *testing.T) {
	s := newScript(t, 1)
	calm, urgent := s.add("ca", "h/"), s.add("ca", "h/")
	hold := func(it *Item, validity time.Duration) {
		start := s.now.Add(-validity * 6 / 10)
		s.Hold(it, Held{ThisUpdate: start, Until: start.Add(validity), End: start.Add(validity)}, s.now)
	}
	hold(calm, 1000*time.Hour)
	hold(urgent, time.Hour)
	s.pass(0)
	s.fail(s.next(), Host)
	var gaps []time.Duration
	for start := s.now; s.now.Sub(start) < 24*time.Minute; {
		it, after := s.await()
		gaps = append(gaps, after)
		s.fail(it, Host)
	}
	require.Equal(t, 5*time.Minute, gaps[0])
	require.LessOrEqual(t, gaps[len(gaps)-1], 30*time.Second)
}

// A Fetcher may make up URLs, or choose among many: a pause of each is no pause.
func TestOneThatIsAskedAboutElsewhereEachTimeIsAskedAboutLessAndLessOften(t *testing.T) {
	for _, f := range []Fault{Certificate, CA, URL, Host} {
		t.Run(fmt.Sprint(f), func(t *testing.T) {
			w := newWorld(t, 2)
			var kept int
			w.answer = func(it *Item) (time.Duration, Outcome) {
				url := at(fmt.Sprint("h", w.asked, "/"))
				kept = max(kept, len(w.tree.nodes))
				return time.Second, Outcome{Result: Failed, Asked: true, Answers: []Answer{{Source: url, Fault: f, Err: errTest}}, Err: errTest}
			}
			w.add(1, "ca", "h/")
			w.run(aDay, never)
			require.Greater(t, w.asked, 50)
			require.Less(t, w.asked, 150)
			require.Less(t, kept, 50)
		})
	}
}
