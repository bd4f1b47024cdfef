package breaker

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStateString(t *testing.T) {
	require.Equal(t, []string{"closed", "open", "half-open", "State(3)", "State(-1)"},
		[]string{Closed.String(), Open.String(), HalfOpen.String(), State(3).String(), State(-1).String()})
}

func TestBreaker(t *testing.T) {
	const hangs = 5 * time.Second
	type step struct {
		pass    time.Duration // first
		allowed bool
		took    time.Duration
		givenUp bool
		want    State // then
	}
	slow, quick := step{0, true, hangs, true, Closed}, step{0, true, time.Second, false, Closed}
	opens := step{0, true, hangs, true, Open}
	refused := step{0, false, 0, false, Open}
	probe := func(took time.Duration, givenUp bool, want State) step { return step{Pause, true, took, givenUp, want} }
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"quick ones", []step{quick, quick, quick, quick}},
		{"three slow in a row", []step{slow, slow, opens, refused}},
		{"slow, and not given up", []step{slow, slow, {0, true, Slow, false, Open}}},
		{"just not slow", []step{slow, slow, {0, true, Slow - 1, false, Closed}, slow, slow, opens}},
		{"given up after long enough", []step{slow, slow, {0, true, Enough, true, Open}}},
		{"given up too soon to tell", []step{slow, slow, {0, true, Enough - 1, true, Closed}, opens}},
		{"a quick one between", []step{slow, slow, quick, slow, slow, quick, slow, slow, opens}},
		{"not before the pause is over", []step{slow, slow, opens, {Pause - 1, false, 0, false, Open}, {1, true, 1, false, Closed}, quick}},
		{"a probe that is quick", []step{slow, slow, opens, probe(1, false, Closed), slow, slow, opens}},
		{"a probe that is slow", []step{slow, slow, opens, probe(hangs, true, Open), refused, probe(hangs, false, Open), refused, probe(0, false, Closed)}},
		{"a probe that is cut short", []step{slow, slow, opens, probe(1, true, Open), {0, true, 1, true, Open}, {0, true, 1, false, Closed}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b Breaker
			now := time.Unix(1, 0)
			for i, s := range tt.steps {
				now = now.Add(s.pass)
				require.Equal(t, s.allowed, b.Due(now) || b.State() == Closed, i)
				require.Equal(t, s.allowed, b.Allow(now), i)
				if s.allowed {
					now = now.Add(s.took)
					b.Done(s.took, s.givenUp, now)
				}
				require.Equal(t, s.want, b.State(), i)
			}
		})
	}
}

func TestCallsThatWereUnderWayWhenItOpened(t *testing.T) {
	var b Breaker
	now := time.Unix(1, 0)
	for range 5 {
		require.True(t, b.Allow(now))
	}
	now = now.Add(5 * time.Second)
	for range 3 {
		b.Done(5*time.Second, true, now)
	}
	require.False(t, b.Allow(now))
	b.Done(5*time.Second, true, now.Add(time.Second)) // which does not make the pause longer
	require.True(t, b.Due(now.Add(Pause)))
	b.Done(time.Second, false, now.Add(time.Second))
	require.Equal(t, Closed, b.State(), "it answers")
}

// TestInvariants makes calls at random, many at once, of somebody who hangs from time to time.
func TestInvariants(t *testing.T) {
	type call struct {
		began, ends time.Time
		givenUp     bool
		probe       bool
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var b Breaker
		var calls []call
		now := time.Unix(1, 0)
		lastQuick, lastOpen, inRow := now, time.Time{}, 0
		hangs := false
		for range 400 {
			now = now.Add(time.Duration(r.Int64N(int64(3 * time.Second))))
			slices.SortFunc(calls, func(a, b call) int { return a.ends.Compare(b.ends) })
			for len(calls) > 0 && !calls[0].ends.After(now) {
				c := calls[0]
				calls = calls[1:]
				was := b.State()
				b.Done(c.ends.Sub(c.began), c.givenUp, c.ends)
				switch {
				case !c.givenUp:
					lastQuick, inRow = c.ends, 0
					require.Equal(t, Closed, b.State(), "whoever answers is asked")
				case was == Closed:
					if inRow++; inRow == 3 {
						require.Equal(t, Open, b.State())
						lastOpen, inRow = c.ends, 0
					}
				case c.probe:
					lastOpen = c.ends
				}
			}
			if r.IntN(20) == 0 {
				hangs = !hangs
			}
			was := b.State()
			if !b.Allow(now) {
				require.True(t, lastOpen.After(lastQuick) || lastOpen.Equal(lastQuick), "passed by for no reason")
				if was == Open {
					require.Less(t, now.Sub(lastOpen), Pause)
				}
				continue
			}
			c := call{began: now, ends: now.Add(time.Duration(r.Int64N(int64(Slow)))), probe: was == Open}
			if hangs {
				c.ends, c.givenUp = now.Add(5*time.Second), true
			}
			if c.probe {
				require.GreaterOrEqual(t, now.Sub(lastOpen), Pause)
				require.False(t, slices.ContainsFunc(calls, func(c call) bool { return c.probe }), "one at a time")
			}
			calls = append(calls, c)
		}
	}
}
