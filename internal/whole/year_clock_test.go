package whole

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/go-staple/staple/internal/world"
)

// A clockStep is a time in which the wall clock is wrong.
type clockStep struct {
	from, to time.Time
	by       time.Duration
}

const clockForward, clockBack = "clock set forward", "clock set back"

// bubbleStart is the moment at which all bubbles begin.
var bubbleStart = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// yearSteps returns when the clock is wrong: by seconds to days, for seconds to hours, one time in two between two looks
// of the process at it. It is the same in all worlds, since these share one clock.
func yearSteps(days int) (steps []clockStep) {
	r := rand.New(rand.NewPCG(62, 0))
	between := func(low, high time.Duration) time.Duration {
		return time.Duration(float64(low) * math.Exp(r.Float64()*math.Log(float64(high)/float64(low))))
	}
	end := bubbleStart.Add(time.Duration(days) * world.Day)
	for at := bubbleStart.Add(between(time.Hour, world.Day)); ; at = at.Add(between(12*time.Hour, 5*world.Day)) {
		shortest, longest := 61*time.Second, 6*time.Hour
		if r.IntN(2) == 0 { // between two looks
			shortest, longest = 2*time.Second, 25*time.Second
		}
		s := clockStep{at, at.Add(between(shortest, longest)), between(2*time.Second, 10*world.Day)}
		if r.IntN(2) == 0 {
			s.by = -s.by
		}
		if at = s.to; at.After(end) {
			return steps
		}
		steps = append(steps, s)
	}
}

// yearClock returns the wall clock of the year. It depends on nothing but the time in the bubble, so that worlds can
// share it, and out of bubbles it is right.
func yearClock(days int) func() time.Time {
	steps := yearSteps(days)
	return func() time.Time {
		now := time.Now()
		i, _ := slices.BinarySearchFunc(steps, now, func(s clockStep, now time.Time) int {
			if now.Before(s.to) {
				return 1
			}
			return -1
		})
		if i < len(steps) && !now.Before(steps[i].from) {
			now = now.Add(steps[i].by)
		}
		return now
	}
}

// scheduleClock puts handshakes at the times at which the clock is wrong, during which anything may be missing, but
// nothing that has ended by that clock is stapled. Half a minute later all is as it was.
func (y *yearWeather) scheduleClock() {
	for _, s := range yearSteps(int(y.end.Sub(bubbleStart) / world.Day)) {
		kind := clockForward
		if s.by < 0 {
			kind = clockBack
		}
		y.at(s.from, func() {
			y.mu.Lock()
			y.count.faults[kind]++
			y.wrongUntil = s.to.Add(clockRight)
			y.mu.Unlock()
			y.check()
		})
		y.at(s.from.Add(s.to.Sub(s.from)/2), y.check)
		y.at(s.to, func() {
			y.mu.Lock()
			for _, c := range y.certs {
				c.excuse(y.wrongUntil, kind)
				if c.own.faults > 0 {
					c.held = false // it may have been forgotten
				}
				r, now := c.newest, time.Now()
				switch {
				case r == nil:
				case r.thisUpdate.After(now.Add(5 * time.Minute)): // it was taken by a clock that was wrong
					c.newest, c.held, c.reach = nil, false, later(c.reach, now)
				}
			}
			y.mu.Unlock()
			y.check()
		})
		for _, after := range []time.Duration{time.Second, 5 * time.Second, 10 * time.Second, 20 * time.Second, 31 * time.Second, clockRight + time.Millisecond} {
			y.at(s.to.Add(after), y.check)
		}
	}
}
