package schedule

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const aDay = 24 * time.Hour

var anyChance = chance(rand.Int64N)

// holding returns a certificate that holds what is valid from start to end.
func holding(start, end time.Time) *Item {
	it := &Item{expires: end.Add(10_000 * aDay).UnixMicro()}
	it.hold(Held{ThisUpdate: start, Until: end, End: end}, 0, start.UnixMicro())
	return it
}

func TestRefreshTime(t *testing.T) {
	now := time.UnixMicro(epoch)
	for _, tt := range []struct {
		validity, earliest, latest time.Duration
	}{
		{time.Hour, 27 * time.Minute, 33 * time.Minute},
		{aDay, 648 * time.Minute, 792 * time.Minute},
		{7 * aDay, 4536 * time.Minute, 5544 * time.Minute},
		{8 * aDay, 3*aDay + 864*time.Minute, 4 * aDay},
		{10 * aDay, 3*aDay + 864*time.Minute, 4 * aDay},
		{1000 * aDay, 3*aDay + 864*time.Minute, 4 * aDay},
	} {
		var lowest, highest time.Duration = math.MaxInt64, 0
		for range 1000 {
			due := timeOf(holding(now, now.Add(tt.validity)).refresh(epoch, anyChance)).Sub(now)
			lowest, highest = min(lowest, due), max(highest, due)
		}
		require.GreaterOrEqual(t, lowest, tt.earliest, tt.validity)
		require.LessOrEqual(t, highest, tt.latest, tt.validity)
		require.Greater(t, highest-lowest, (tt.latest-tt.earliest)*9/10, "not spread")
	}
}

func TestRefreshTimeOfWhatHasComeLateOrIsRevokedOrHasASignerThatEndsFirst(t *testing.T) {
	now := time.UnixMicro(epoch)
	for _, tt := range []struct {
		name             string
		h                Held
		earliest, latest time.Duration
	}{
		{"past half of its validity", Held{ThisUpdate: now.Add(-5 * aDay), Until: now.Add(2 * aDay), End: now.Add(2 * aDay)}, 0, 0},
		{"revoked", Held{ThisUpdate: now, Until: now.Add(7 * aDay), End: now.Add(7 * aDay), Revoked: true}, 45 * time.Minute, time.Hour},
		{"the certificate ends before it is due", Held{ThisUpdate: now, Until: now.Add(7 * aDay), End: now.Add(time.Hour)},
			1000 * aDay, math.MaxInt64},
		{"of the year one", Held{Until: now.Add(time.Hour), End: now.Add(time.Hour)}, 0, 0},
	} {
		it := &Item{expires: now.Add(7 * aDay).UnixMicro()}
		if tt.latest == math.MaxInt64 {
			it.expires = tt.h.End.UnixMicro()
		}
		it.hold(tt.h, 0, epoch)
		for range 100 {
			due := it.refresh(epoch, anyChance)
			if tt.latest == math.MaxInt64 {
				require.Equal(t, far, due, tt.name)
				continue
			}
			require.GreaterOrEqual(t, timeOf(due).Sub(now), tt.earliest, tt.name)
			require.LessOrEqual(t, timeOf(due).Sub(now), tt.latest, tt.name)
		}
	}
}

func TestAfterAnUnchangedResponseTheNextTryComesAfterHalfOfWhatIsLeft(t *testing.T) {
	now := time.UnixMicro(epoch)
	for left, want := range map[time.Duration]time.Duration{
		6 * aDay:         aDay,
		2 * aDay:         aDay,
		10 * time.Hour:   5 * time.Hour,
		30 * time.Minute: 15 * time.Minute,
		15 * time.Minute: 604800 * time.Millisecond, // a thousandth of the validity at least
	} {
		for range 100 {
			it := holding(now.Add(left-7*aDay), now.Add(left))
			pause := timeOf(it.unchanged(epoch, anyChance)).Sub(now)
			require.LessOrEqual(t, pause, want, left)
			require.GreaterOrEqual(t, pause, want*9/10, left)
		}
	}
	for _, left := range []time.Duration{10 * time.Minute, 2 * time.Minute, time.Second, time.Microsecond} {
		it := holding(now.Add(left-7*aDay), now.Add(left))
		require.Equal(t, now.Add(left), timeOf(it.unchanged(epoch, anyChance)), "the last try comes at the end itself")
	}
}

func TestBackoffIsBoundedAfterAnyNumberOfFailures(t *testing.T) {
	for _, failures := range []int32{1, 2, 5, 10, 16, 17, 30, 63, 64, 65, 1000, math.MaxInt32} {
		for _, limit := range []int64{second, minute, hour, 100 * day} {
			for range 100 {
				pause := anyChance.backoff(failures, limit)
				require.GreaterOrEqual(t, pause, second)
				require.LessOrEqual(t, pause, max(limit, second))
			}
		}
	}
	require.LessOrEqual(t, anyChance.backoff(1, hour), 10*second)
}

func TestRetriesComeOftenEnough(t *testing.T) {
	now := time.UnixMicro(epoch)
	for _, tt := range []struct {
		name  string
		tries int32
		left  time.Duration // of a week; 0: there is no staple
		most  time.Duration
	}{
		{"the first, of a new certificate", 1, 0, 10 * time.Second},
		{"the fifth, of a new certificate", 5, 0, 160 * time.Second},
		{"the fiftieth, of a new certificate", 49, 0, 10 * time.Minute},
		{"of one that the responder will never know", 51, 0, time.Hour},
		{"any, a day before the end", 1000, aDay, time.Hour},
		{"any, two hours before the end", 1000, 2 * time.Hour, 15 * time.Minute},
		{"any, half an hour before the end", 1000, 30 * time.Minute, 605 * time.Second},
		{"any, a minute before the end", 1000, time.Minute, time.Minute},
	} {
		for range 100 {
			it := &Item{expires: far}
			if tt.left > 0 {
				it = holding(now.Add(tt.left-7*aDay), now.Add(tt.left))
			}
			it.tries = tt.tries
			pause := timeOf(it.retry(0, epoch, anyChance)).Sub(now)
			require.LessOrEqual(t, pause, tt.most, tt.name)
			require.GreaterOrEqual(t, pause, time.Second, tt.name)
		}
	}
}

func TestThousandsOfTriesBeforeTheEndDoNotMakeThoseAfterItRarer(t *testing.T) {
	it := holding(time.UnixMicro(epoch), time.UnixMicro(epoch+hour))
	it.began.at = epoch + hour
	for _, tries := range []int32{1, 100, math.MaxInt32} {
		it.tries = tries
		for after, most := range map[int64]int64{0: 4 * second, minute: 10 * second, 40 * minute: 244 * second, 2 * hour: 5 * minute, 2 * day: hour} {
			for range 100 {
				now := epoch + hour + after
				pause := it.retry(0, now, anyChance) - now
				require.LessOrEqual(t, pause, most)
				require.GreaterOrEqual(t, pause, most/2-second)
			}
		}
	}
}

func TestARoundThatBeganBeforeTheEndIsFollowedByALastTry(t *testing.T) {
	for _, result := range []Result{Failed, Unchanged} {
		s := newScript(t, 1)
		it := s.add("ca", "h/")
		require.Equal(t, it, s.next())
		o := newer(s.now, time.Hour)
		s.end(it, o)
		s.pass(time.Hour - time.Millisecond)
		s.Refresh(it, s.now)
		require.Equal(t, it, s.next())
		s.pass(2 * time.Millisecond)
		o = s.failed(it, Answer{Fault: Certificate})
		if result == Unchanged {
			o = Outcome{Result: Unchanged, Asked: true}
		}
		s.end(it, o)
		_, after := s.await()
		require.LessOrEqual(t, after, 2*time.Second)
	}
}

func TestARetryAfterOfACertificateIsHeededAndBounded(t *testing.T) {
	now := time.UnixMicro(epoch)
	for _, tt := range []struct {
		name        string
		left, asked time.Duration
		least, most time.Duration
	}{
		{"as asked", 0, 30 * time.Minute, 30 * time.Minute, 33 * time.Minute},
		{"an hour without a staple", 0, 100 * time.Hour, time.Hour, time.Hour},
		{"half of what is left", 4 * aDay, 100 * aDay, 2 * aDay, 2 * aDay},
		{"shorter than what comes anyway", 4 * aDay, time.Millisecond, 10 * time.Minute, time.Hour},
	} {
		for range 100 {
			it := &Item{expires: far, tries: 1}
			if tt.left > 0 {
				it = holding(now.Add(tt.left-7*aDay), now.Add(tt.left))
			}
			pause := timeOf(it.retry(tt.asked, epoch, anyChance)).Sub(now)
			require.GreaterOrEqual(t, pause, tt.least, tt.name)
			require.LessOrEqual(t, pause, tt.most, tt.name)
		}
	}
}

func TestWhatEndsWithItsCertificateIsNotAskedAboutAtItsEnd(t *testing.T) {
	s := newScript(t, 1)
	it := new(Item)
	s.items = append(s.items, it)
	end := s.now.Add(time.Hour)
	s.Add(it, "ca", []Source{at("h/")}, end)
	s.Start(it, s.now)
	for s.When().Before(end) {
		if it, task := s.Next(s.now); task == Ask {
			s.end(it, Outcome{Result: Newer, Asked: true, Held: Held{ThisUpdate: s.now, Until: s.now.Add(2 * time.Hour), End: end}})
		}
		s.pass(s.When().Sub(s.now))
	}
	require.NotZero(t, it.age)
	require.Zero(t, s.NextAsk(it, s.now))
	require.Equal(t, Scheduled, it.State())
	s.pass(2 * time.Hour)
	require.Equal(t, Idle, it.State())
}

func TestAStepOfTheClockDoesNotBringTheNextRequestsForward(t *testing.T) {
	w := newWorld(t, 16)
	w.answer = func(it *Item) (time.Duration, Outcome) {
		if it.held.current(w.now.UnixMicro()) && w.now.Before(timeOf(it.held.start).Add(5*aDay)) {
			return 0, Outcome{Result: Unchanged, Asked: true}
		}
		return w.good(50 * time.Millisecond)
	}
	w.add(100, "ca", "h/")
	w.run(4*aDay+6*time.Hour, func() bool { return false }) // asked about in vain, and to be again
	n := w.asked
	require.Greater(t, n, 200)
	w.now = w.now.Add(6 * time.Second)
	w.Step(func(yield func(*Item) bool) {
		for _, it := range w.items {
			if !yield(it) {
				return
			}
		}
	}, w.now)
	w.run(time.Minute, func() bool { return false })
	require.Less(t, w.asked-n, 10)
}

func TestThousandsLoadedTogetherAreNotAskedAboutTogether(t *testing.T) {
	w := newWorld(t, 16)
	perMinute := make(map[int]int)
	w.answer = func(it *Item) (time.Duration, Outcome) {
		perMinute[int(w.since()/time.Minute)]++
		return w.good(time.Millisecond)
	}
	w.add(5000, "ca", "h/")
	w.run(6*aDay, func() bool { return false })
	for minute, n := range perMinute {
		if minute > 1 {
			require.Less(t, n, 50, fmt.Sprint("minute ", minute)) // 5,000 over 16.8 hours
		}
	}
}
