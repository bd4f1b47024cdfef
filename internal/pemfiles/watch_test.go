package pemfiles

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// looked returns what a look finds that reads these contents; 0: one that does not read.
func looked(contents byte) Look { return Look{Read: contents != 0, Sum: [32]byte{contents}} }

// A step is a look and what comes of it.
type step struct {
	after    time.Duration // when the look ends, since the one before
	force    bool          // before it
	contents byte          // that it reads; 0: it does not
	want     Verdict
	next     time.Duration // until the next one
}

func TestWatch(t *testing.T) {
	const s = time.Second
	for name, steps := range map[string][]step{
		"nothing changes":                       {{5 * s, false, 0, Unchanged, Every}, {5 * s, false, 0, Unchanged, Every}},
		"the same was written again":            {{5 * s, false, 1, Unchanged, Every}},
		"two looks agree":                       {{5 * s, false, 2, Unsettled, s}, {s, false, 2, Changed, Every}, {5 * s, false, 2, Unchanged, Every}},
		"two looks agree too soon":              {{5 * s, false, 2, Unsettled, s}, {s / 4, true, 2, Unsettled, 3 * s / 4}, {3 * s / 4, false, 2, Changed, Every}},
		"it is still being written":             {{5 * s, false, 2, Unsettled, s}, {s, false, 3, Unsettled, s}, {s, false, 3, Changed, Every}},
		"it comes and goes":                     {{5 * s, false, 2, Unsettled, s}, {s, false, 1, Unchanged, Every}, {5 * s, false, 2, Unsettled, s}, {s, false, 2, Changed, Every}},
		"it is back after it had been believed": {{5 * s, false, 2, Unsettled, s}, {s, false, 2, Changed, Every}, {5 * s, false, 1, Unsettled, s}, {s, false, 1, Changed, Every}},
		"somebody cannot wait":                  {{s, true, 2, Unsettled, s}, {s, true, 2, Changed, Every}, {s, true, 2, Unchanged, Every}},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Now()
			w := NewWatch(looked(1), now)
			require.Equal(t, now.Add(Every), w.Next())
			for i, step := range steps {
				now = now.Add(step.after)
				if step.force {
					w.Force(now)
					require.Equal(t, now, w.Next())
				}
				_, read := w.Begin(now)
				if step.force {
					require.True(t, read)
				}
				require.Equal(t, step.want, w.Ended(looked(step.contents), now), "step %d", i)
				require.Equal(t, step.next, w.Next().Sub(now), "step %d", i)
			}
		})
	}
}

func TestTheContentsAreReadEveryFiveMinutes(t *testing.T) {
	now := time.Now()
	w := NewWatch(looked(1), now)
	reads := 0
	for began := now; now.Sub(began) < time.Hour; now = w.Next() {
		_, read := w.Begin(now)
		if read {
			reads++
			w.Ended(looked(1), now)
		} else {
			w.Ended(looked(0), now)
		}
		require.False(t, w.Next().After(now.Add(Every)))
	}
	require.Equal(t, int(time.Hour/Reread)-1, reads)
}

func TestWhoeverCannotWaitDuringALookGetsAnother(t *testing.T) {
	now := time.Now()
	w := NewWatch(looked(1), now)
	w.Begin(now)
	w.Force(now)
	w.Ended(looked(0), now.Add(time.Second))
	require.Equal(t, now.Add(time.Second), w.Next())
	_, read := w.Begin(w.Next())
	require.True(t, read)
	w.Ended(looked(1), w.Next())
	require.Equal(t, now.Add(time.Second+Every), w.Next())
}

func TestWhatIsToldOfTrouble(t *testing.T) {
	one, other := errors.New("one"), errors.New("other")
	type told struct {
		at   time.Duration
		what Notice
	}
	for name, tt := range map[string]struct {
		trouble func(at time.Duration) error
		want    []told
	}{
		"there is none":    {func(time.Duration) error { return nil }, nil},
		"for a moment":     {func(at time.Duration) error { return during(at < 55*time.Second, one) }, nil},
		"again and again":  {func(at time.Duration) error { return during(at%time.Minute < 55*time.Second, one) }, nil},
		"for two minutes":  {func(at time.Duration) error { return during(at < 2*time.Minute, one) }, []told{{time.Minute, Trouble}, {2 * time.Minute, Over}}},
		"for hours":        {func(at time.Duration) error { return one }, []told{{time.Minute, Trouble}, {61 * time.Minute, Trouble}, {121 * time.Minute, Trouble}}},
		"then another":     {func(at time.Duration) error { return map[bool]error{true: one, false: other}[at < 10*time.Minute] }, []told{{time.Minute, Trouble}, {10 * time.Minute, Trouble}, {70 * time.Minute, Trouble}, {130 * time.Minute, Trouble}}},
		"another too soon": {func(at time.Duration) error { return map[bool]error{true: one, false: other}[at < 62*time.Second] }, []told{{time.Minute, Trouble}, {2 * time.Minute, Trouble}, {62 * time.Minute, Trouble}, {122 * time.Minute, Trouble}}},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			w := NewWatch(looked(1), began)
			var got []told
			for at := time.Duration(0); at < 140*time.Minute; at += Every {
				trouble := tt.trouble(at)
				if n := w.Note(trouble, began.Add(at)); n != Nothing {
					got = append(got, told{at, n})
				}
				_, read := w.Begin(began.Add(at))
				require.True(t, read || trouble == nil, "what is in trouble is read each time")
				w.Ended(looked(1), began.Add(at))
			}
			require.Equal(t, tt.want, got)
		})
	}
}

func during(yes bool, err error) error {
	if yes {
		return err
	}
	return nil
}

// A model believes by its history, all of it, what two looks in a row have seen.
func TestAWatchBelievesWhatTwoLooksInARowHaveSeen(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	now := time.Now()
	w := NewWatch(looked(1), now)
	held, file := byte(1), byte(1)
	type sight struct {
		at       time.Time
		contents byte
	}
	var history []sight
	for i := range 100_000 {
		now = now.Add(time.Duration(r.IntN(1500)) * time.Millisecond)
		if r.IntN(3) == 0 {
			file = byte(1 + r.IntN(3))
		}
		if r.IntN(3) == 0 {
			w.Force(now)
		}
		if now.Before(w.Next()) && r.IntN(3) > 0 {
			continue
		}
		w.Begin(now)
		got := w.Ended(looked(file), now)
		history = append(history, sight{now, file})
		want := Unsettled
		if file == held {
			want, history = Unchanged, nil
		}
		for j := len(history) - 1; j >= 0 && history[j].contents == file; j-- {
			if now.Sub(history[j].at) >= Apart {
				want, held, history = Changed, file, nil
				break
			}
		}
		require.Equal(t, want, got, fmt.Sprint("step ", i))
	}
}
