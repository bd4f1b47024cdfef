package schedule

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/go-staple/staple/internal/race"
	"github.com/stretchr/testify/require"
)

// comes is somebody who comes with a peer and, if nothing is held, waits for its round. It reports whether that was put off.
func (s *script) comes(it *Item) bool {
	s.t.Helper()
	before := len(s.told)
	if it.Visit() {
		s.Wake(it, s.now)
	} else if it.held.end == 0 {
		s.Start(it, s.now)
	}
	s.check()
	return s.putOff(it, before)
}

// putOff reports whether it has been told of a pause since so many were told of something.
func (s *script) putOff(it *Item, since int) bool {
	return slices.ContainsFunc(s.told[since:], func(n Notice) bool { return n.Item == it && n.Kind == Paused && n.Err != nil })
}

// peer is somebody who comes with a new one.
func (s *script) peer(ca string, urls ...string) *Item {
	s.t.Helper()
	it := new(Item)
	var sources []Source
	for _, url := range urls {
		sources = append(sources, at(url))
	}
	s.SetPeer(it, true, s.now)
	s.Add(it, ca, sources, s.now.Add(1000*aDay))
	s.items = append(s.items, it)
	s.comes(it)
	return it
}

// holds gives it a response, of whose validity some has elapsed.
func (s *script) holds(it *Item, elapsed, validity time.Duration) *Item {
	s.t.Helper()
	start := s.now.Add(-elapsed)
	s.Hold(it, Held{ThisUpdate: start, Until: start.Add(validity), End: start.Add(validity)}, s.now)
	s.check()
	return it
}

func TestPeersHaveHalfOfTheWorkersAndOneHostHalfOfThat(t *testing.T) {
	for _, tt := range []struct{ workers, all, host int }{{1, 1, 1}, {2, 1, 1}, {3, 1, 1}, {4, 2, 1}, {8, 4, 2}, {16, 8, 4}, {64, 32, 16}} {
		for hosts := range 5 {
			s := newScript(t, tt.workers)
			for i := range 100 {
				for h := range hosts + 1 {
					s.peer("ca", fmt.Sprintf("h%d/%d", h, i%3))
				}
			}
			at := make(map[string]int)
			got := s.all()
			for _, it := range got {
				at[it.Host()]++
			}
			require.Len(t, got, min(tt.all, tt.host*(hosts+1)), "%d workers, %d hosts", tt.workers, hosts+1)
			for h, n := range at {
				require.LessOrEqual(t, n, tt.host, "%d workers, %s of %d hosts", tt.workers, h, hosts+1)
			}
			s.ok(got[0]) // and the next one has its turn
			require.NotNil(t, s.next())
			require.Nil(t, s.next())
		}
	}
}

func TestNoHostHasMoreThanItsShareOfWhatIsServedAndPeersTogether(t *testing.T) {
	s := newScript(t, 16)
	for range 6 {
		s.add("ca", "h/")
	}
	require.Len(t, s.all(), 6)
	for range 10 {
		s.peer("ca", "h/")
	}
	require.Len(t, s.all(), 2)
	other := s.peer("ca", "other/")
	require.Equal(t, []*Item{other}, s.all())
}

func TestPeersComeAfterWhatIsUrgentAndBeforeWhatIsRoutine(t *testing.T) {
	s := newScript(t, 2)
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
	busy := s.add("ca", "busy/")
	s.Refresh(busy, s.now)
	require.Equal(t, busy, s.next())
	first, second := s.peer("ca", "p/"), s.peer("ca", "p/")
	routine := s.holds(s.add("ca", "h2/"), 16*time.Hour, aDay)
	nearEnd := s.holds(s.add("ca", "h3/"), 20*time.Hour, aDay)
	s.pass(0)
	fresh := s.add("ca", "h4/")
	asked := s.peer("ca", "p/")
	s.Refresh(asked, s.now)
	for i, want := range []*Item{asked, fresh, unstapled, nearEnd, first, second, routine, patient} {
		got := s.next()
		require.Equal(t, want, got, "%d", i)
		s.ok(got)
	}
}

func TestWhatIsServedDoesNotWaitForPeers(t *testing.T) {
	for _, workers := range []int{2, 3, 4, 16} {
		s := newScript(t, workers)
		for i := range 100 {
			s.peer("ca", fmt.Sprintf("p%d/", i))
		}
		busy := s.all()
		require.Len(t, busy, workers/2)
		for _, class := range []string{"fresh", "routine"} {
			it := s.add("ca", "served/")
			if class == "routine" {
				s.holds(it, 16*time.Hour, aDay)
			}
			require.Equal(t, it, s.next(), class)
			s.ok(it)
		}
	}
}

// With one worker, peers that never end do not keep from their turn what nobody would call urgent.
func TestASingleWorkerServesInTurnsWithPeers(t *testing.T) {
	s := newScript(t, 1)
	var routine, peers []*Item
	for range 2 {
		routine = append(routine, s.holds(s.add("ca", "h/"), 16*time.Hour, aDay))
	}
	for range 5 {
		peers = append(peers, s.peer("ca", "p/"))
	}
	s.pass(0)
	order := ""
	for it := s.next(); it != nil; it = s.next() {
		if slices.Contains(routine, it) {
			order += "r"
		} else {
			require.Contains(t, peers, it)
			order += "p"
		}
		s.ok(it)
	}
	require.Equal(t, "prprppp", order)
}

func TestThePeersOfOneHostKeepNoOtherHostsFromTheirTurn(t *testing.T) {
	s := newScript(t, 4)
	for range 1000 {
		s.peer("ca", "many/")
	}
	require.Equal(t, "many", s.next().Host())
	for _, h := range []string{"h1", "h2"} {
		one := s.peer("ca", h+"/")
		require.Equal(t, one, s.next())
		s.ok(one)
	}
	first, second := s.peer("ca", "h1/"), s.peer("ca", "h2/")
	require.Equal(t, first, s.next())
	require.Nil(t, s.next(), "the other worker of peers is at the host that has many")
	s.ok(first)
	require.Equal(t, second, s.next())
}

func TestAPeerDoesNotWaitForTheEndOfAPause(t *testing.T) {
	for _, f := range []Fault{CA, URL, Host} {
		s := newScript(t, 8) // one host has two
		peers := []*Item{s.peer("ca", "h/1"), s.peer("ca", "h/1"), s.peer("ca", "h/1"), s.peer("ca", "h/1"), s.peer("ca", "other/")}
		busy := s.all()
		require.Len(t, busy, 3)
		require.Equal(t, "other", busy[1].Host())
		before := len(s.told)
		s.Done(busy[0], s.failed(busy[0], Answer{Fault: f}), s.now)
		s.check()
		for _, it := range peers[2:4] {
			require.True(t, s.putOff(it, before), "one that waits when a pause begins")
			require.Equal(t, Idle, it.State())
		}
		s.Free(busy[0], s.now)
		s.check()
		require.Equal(t, Idle, busy[0].State())
		require.Len(t, s.told, before+2, "its round has told")
		require.True(t, s.comes(busy[0]), "one that comes in the pause")
		require.True(t, s.comes(peers[2]), "one that comes again")
		before = len(s.told)
		s.peer("ca", "h/1")
		require.Len(t, s.told, before+1, "a new one")
		elsewhere := s.peer("ca", "h2/")
		require.Equal(t, elsewhere, s.next())
		require.Nil(t, s.next())
		s.ok(busy[2]) // and the pause is over
		again := s.peer("ca", "h/1")
		require.Equal(t, again, s.next())
	}
}

// A pause may begin where one is asked about second.
func TestAPeerWithTwoHostsDoesNotWaitWhereBothPause(t *testing.T) {
	s := newScript(t, 8)
	first, second := s.peer("ca", "h1/"), s.peer("ca", "h2/")
	require.Len(t, s.all(), 2)
	s.fail(first, Host)
	for range 2 {
		s.peer("ca", "h2/")
	}
	require.Len(t, s.all(), 1)
	both := s.peer("ca", "h1/", "h2/")
	require.Equal(t, Waiting, both.State())
	s.fail(second, Host)
	before := len(s.told)
	require.Nil(t, s.next())
	require.True(t, s.putOff(both, before))
}

func TestAPauseLetsThePeerThroughThatComesThen(t *testing.T) {
	faults := []Fault{CA, URL, Host}
	if race.Enabled {
		faults = faults[:1]
	}
	for _, f := range faults {
		for _, quiet := range []time.Duration{0, 2 * time.Minute} { // until somebody comes
			s := newScript(t, 8)
			began := s.now
			it := s.add("ca", "h/") // that is served
			require.Equal(t, it, s.next())
			s.fail(it, f)
			s.Remove(it, s.now)
			s.pass(quiet)
			it = &Item{peer: true}
			s.Add(it, "ca", []Source{at("h/")}, s.now.Add(1000*aDay))
			s.items = append(s.items, it)
			last, asked := began, 0
			for s.now.Sub(began) < 30*time.Hour {
				step := time.Second
				if s.now.Sub(began) > time.Hour {
					step = time.Minute
				}
				s.pass(step)
				off := s.comes(it)
				got := s.next()
				require.Equal(t, off, got == nil, "it waits, or is not asked about")
				gap, outage := s.now.Sub(last), s.now.Sub(began)
				most := min(30*time.Second, 4*time.Second+outage/10)
				switch {
				case outage > aDay:
					most = time.Hour
				case outage > time.Hour:
					most = 5 * time.Minute
				}
				if got == nil {
					require.LessOrEqual(t, gap, most, "after %v", outage)
					continue
				}
				asked++
				if asked > 1 || quiet == 0 {
					require.GreaterOrEqual(t, gap, 2*time.Second)
				} else {
					require.Equal(t, quiet+step, gap, "nobody has come before")
				}
				other := s.peer("ca", "h/")
				require.Equal(t, Idle, other.State(), "one at a time")
				s.Remove(other, s.now)
				s.fail(it, f)
				last = s.now
			}
			require.Greater(t, asked, 3600/30+23*12)
			s.pass(time.Hour)
			s.comes(it)
			require.Equal(t, it, s.next())
			s.ok(it)
			next := s.peer("ca", "h/")
			require.Equal(t, next, s.next())
		}
	}
}

func TestPeersHeedARetryAfterForAnHour(t *testing.T) {
	s := newScript(t, 8)
	served := s.add("ca", "h/")
	require.Equal(t, served, s.next())
	s.ok(served)
	s.Refresh(served, s.now)
	require.Equal(t, served, s.next())
	s.end(served, s.failed(served, Answer{Fault: URL, RetryAfter: 10 * time.Hour}))
	it := s.peer("ca", "h/")
	require.Equal(t, Idle, it.State())
	s.pass(time.Hour - time.Second)
	require.True(t, s.comes(it))
	s.pass(time.Second)
	require.False(t, s.comes(it))
	require.Equal(t, it, s.next())
	s.ok(it)
	require.Equal(t, served, s.next())
}

// Two have come when a pause lets one through, or somebody who is served comes to be asked about first.
func TestPeersThatWaitWhereAPauseLetsAnotherOneThroughArePutOff(t *testing.T) {
	for _, served := range []bool{false, true} {
		s := newScript(t, 8)
		it := s.peer("ca", "h/")
		require.Equal(t, it, s.next())
		s.fail(it, Host)
		s.pass(time.Minute)
		require.False(t, s.comes(it))
		second := s.peer("ca", "h/")
		require.Equal(t, Waiting, second.State())
		let := it
		if served {
			let = s.add("ca", "h/")
		}
		before := len(s.told)
		require.Equal(t, let, s.next())
		require.True(t, s.putOff(second, before))
		require.Equal(t, served, s.putOff(it, before))
		require.Nil(t, s.next())
	}
}

func TestAPeerLooksIntoTheCacheOnceBeforeItIsPutOff(t *testing.T) {
	s := newScript(t, 16)
	s.Schedule = New(16, rand.New(rand.NewPCG(1, 2)).Int64N, true)
	it := s.peer("ca", "h/")
	require.Equal(t, it, s.next())
	s.fail(it, Host)
	for range 3 {
		before := len(s.told)
		require.False(t, s.comes(it))
		got, task := s.Next(s.now)
		require.Equal(t, it, got)
		require.Equal(t, Peek, task)
		s.check()
		s.end(it, Outcome{Result: Deferred, Until: s.now})
		require.False(t, s.putOff(it, before))
		s.pass(0)
		require.True(t, s.putOff(it, before))
		require.Equal(t, Idle, it.State())
	}
	require.False(t, s.comes(it))
	got, _ := s.Next(s.now)
	require.Equal(t, it, got)
	h := newer(s.now, 7*aDay).Held
	s.end(it, Outcome{Result: Newer, Held: h})
	require.Equal(t, Scheduled, it.State())

	var peers []*Item // have half of the workers for that, and those that are served the others
	for range 20 {
		peers = append(peers, s.peer("ca", "h/"))
		s.add("ca", "h/")
	}
	var tasks []*Item
	for {
		it, task := s.Next(s.now)
		if task == Nothing {
			break
		}
		require.Equal(t, Peek, task)
		s.check()
		tasks = append(tasks, it)
	}
	require.Len(t, tasks, 16)
	n := 0
	for _, it := range tasks {
		if slices.Contains(peers, it) {
			n++
		}
	}
	require.Equal(t, 8, n)
}

// Cache look-ups about peers that hang keep none that is served from looking there.
func TestPeersThatPeekTakeNoPlaceOfThoseThatAreServed(t *testing.T) {
	s := newScript(t, 4)
	s.Schedule = New(4, rand.New(rand.NewPCG(1, 2)).Int64N, true)
	first := s.add("ca", "h/")
	require.Equal(t, first, s.next())
	s.fail(first, Host)
	for range 4 {
		s.peer("ca", "h/")
	}
	for range 2 {
		_, task := s.Next(s.now)
		require.Equal(t, Peek, task)
		s.check()
	}
	served := s.add("ca", "h/")
	it, task := s.Next(s.now)
	require.Equal(t, served, it)
	require.Equal(t, Peek, task)
}

func TestAPeerIsAskedAboutAgainIfItHasCome(t *testing.T) {
	for _, tt := range []struct {
		name  string
		comes string // w: while it is asked about; b: before it is due; a: after it; nothing: never
		asked bool
		wakes bool
	}{
		{"it does not come", "", false, false},
		{"while it is asked about", "w", true, false},
		{"before it is due", "b", true, false},
		{"often", "wbbb", true, false},
		{"after it is due", "a", true, true},
	} {
		for _, o := range []string{"newer", "unchanged", "failed"} {
			s := newScript(t, 4)
			it := s.peer("ca", "h/")
			require.Equal(t, it, s.next())
			if o != "newer" {
				s.ok(it)
				it.Visit()
				got, _ := s.await()
				require.Equal(t, it, got)
			}
			visit := func(when rune) (wake bool) {
				for _, c := range tt.comes {
					if c == when {
						wake = it.Visit() || wake
					}
				}
				return wake
			}
			require.False(t, visit('w'))
			switch o {
			case "newer":
				s.ok(it)
			case "unchanged":
				s.end(it, Outcome{Result: Unchanged, Asked: true})
			case "failed":
				s.fail(it, Certificate)
			}
			require.Equal(t, Scheduled, it.State())
			require.False(t, visit('b'))
			due := timeOf(it.due)
			s.pass(due.Sub(s.now) - time.Microsecond)
			require.Nil(t, s.next())
			s.pass(10 * time.Minute)
			if got := s.next(); tt.asked && !tt.wakes {
				require.Equal(t, it, got, "%s, %s", tt.name, o)
				continue
			} else {
				require.Nil(t, got, "%s, %s", tt.name, o)
				require.Equal(t, Idle, it.State())
				require.Zero(t, s.NextAsk(it, s.now))
			}
			s.pass(aDay)
			require.Nil(t, s.next())
			require.Equal(t, tt.wakes, visit('a'))
			require.Nil(t, s.next(), "before it is woken")
			if tt.wakes {
				s.Wake(it, s.now)
				require.False(t, it.Visit())
				s.check()
				require.Equal(t, it, s.next(), "%s, %s", tt.name, o)
			}
		}
	}
}

func TestARoundOfAPeerThatIsDeferredLeavesItWanted(t *testing.T) {
	s := newScript(t, 4)
	it := s.peer("ca", "h/")
	for range 5 {
		require.Equal(t, it, s.next())
		s.end(it, Outcome{Result: Deferred, Until: s.now.Add(3 * time.Second)})
		s.pass(3*time.Second - time.Microsecond)
		require.Nil(t, s.next())
		s.pass(time.Microsecond)
	}
	require.Equal(t, it, s.next())
	s.ok(it)
	s.pass(5 * aDay)
	require.Nil(t, s.next())
}

func TestRefreshOfAPeerPassesEverythingBy(t *testing.T) {
	for name, prepare := range map[string]func(s *script, it *Item){
		"waiting": func(s *script, it *Item) {},
		"asleep": func(s *script, it *Item) {
			require.Equal(s.t, it, s.next())
			s.ok(it)
			s.pass(5 * aDay)
		},
		"put off": func(s *script, it *Item) {
			require.Equal(s.t, it, s.next())
			s.fail(it, URL)
		},
		"behind others": func(s *script, it *Item) {
			s.Remove(it, s.now)
			for range 10 {
				s.peer("ca", "h/")
			}
			require.Len(s.t, s.all(), 2)
			*it = Item{peer: true}
			s.Add(it, "ca", []Source{at("h/")}, s.now.Add(1000*aDay))
			s.comes(it)
			require.Nil(s.t, s.next())
		},
	} {
		s := newScript(t, 8)
		it := s.peer("ca", "h/")
		prepare(s, it)
		s.Refresh(it, s.now)
		s.check()
		require.Equal(t, it, s.next(), name)
		s.ok(it)
		require.Equal(t, Scheduled, it.State(), name)
	}
}

// Thousands of peers whose responders hang, and that come again and again, cost what is served nothing.
func TestAFloodOfPeersCostsWhatIsServedNothing(t *testing.T) {
	w := newWorld(t, 16)
	w.answer = func(it *Item) (time.Duration, Outcome) {
		if it.peer {
			return w.bad(it, 10*time.Second, Answer{Fault: Certificate})
		}
		return w.good(20 * time.Millisecond)
	}
	for i := range 4000 {
		u := at(fmt.Sprintf("p%d/", i%100))
		it := &Item{Owner: u, peer: true}
		w.Add(it, "ca", []Source{u}, w.now.Add(10_000*time.Hour))
		w.Start(it, w.now)
	}
	w.run(time.Second, never)
	require.Len(t, w.flights, 8)
	w.add(500, "ca", "live/")
	start := w.now
	w.settle(time.Minute)
	require.Less(t, w.now.Sub(start), 1500*time.Millisecond) // at 8 workers and 20 ms
}

func TestAPeerForWhomNobodyWaitsLeavesTheQueue(t *testing.T) {
	s := newScript(t, 1)
	var peers []*Item
	for range 3 {
		it := new(Item)
		s.SetPeer(it, true, s.now)
		s.Add(it, "ca", []Source{at("h/u")}, s.now.Add(1000*24*time.Hour))
		s.items = append(s.items, it)
		it.Visit()
		s.Start(it, s.now)
		peers = append(peers, it)
	}
	require.Equal(t, peers[0], s.next())
	require.False(t, s.Leave(peers[0], s.now), "a worker has it")
	require.True(t, s.Leave(peers[1], s.now))
	require.False(t, s.Leave(peers[1], s.now))
	s.ok(peers[0])
	require.Equal(t, peers[2], s.next())
	s.ok(peers[2])
	require.Nil(t, s.next())
	require.True(t, peers[1].Visit(), "it is to be woken")
	s.Wake(peers[1], s.now)
	require.Equal(t, peers[1], s.next())
	s.ok(peers[1])
}
