package backlog

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func drain(q *Queue[string]) (all []string) {
	for v, ok := q.Take(); ok; v, ok = q.Take() {
		all = append(all, v)
	}
	return all
}

func TestQueue(t *testing.T) {
	rank := map[byte]Rank{'r': Routine, 'n': Notable, 'g': Grave}
	for _, tt := range []struct {
		name   string
		most   int
		put    []string // the first letter is the rank
		want   []string
		missed int
	}{
		{"nothing", 3, nil, nil, 0},
		{"in order, whatever the rank", 9, []string{"r1", "g2", "n3", "r4", "g5"}, []string{"r1", "g2", "n3", "r4", "g5"}, 0},
		{"as many as there is room for", 3, []string{"r1", "r2", "r3"}, []string{"r1", "r2", "r3"}, 0},
		{"the oldest goes", 3, []string{"r1", "r2", "r3", "r4", "r5"}, []string{"r3", "r4", "r5"}, 2},
		{"the least important goes, though others are older", 3, []string{"g1", "n2", "r3", "n4"}, []string{"g1", "n2", "n4"}, 1},
		{"then the notable", 2, []string{"n1", "g2", "n3", "g4"}, []string{"g2", "g4"}, 2},
		{"one that is less important than all is not kept", 2, []string{"g1", "n2", "r3"}, []string{"g1", "n2"}, 1},
		{"the newest of what is grave stays", 2, []string{"g1", "g2", "g3"}, []string{"g2", "g3"}, 1},
		{"grave alone, in a flood", 2, []string{"g1", "r2", "r3", "r4", "g5", "r6", "n7"}, []string{"g1", "g5"}, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var q Queue[string]
			for _, v := range tt.put {
				q.Put(v, rank[v[0]], tt.most)
			}
			require.Equal(t, len(tt.want), q.Len())
			require.Equal(t, tt.want, drain(&q))
			require.Equal(t, tt.missed, q.Missed())
			q.ForgetMissed()
			require.Zero(t, q.Missed())
			require.Zero(t, q.Len())
		})
	}
}

func TestLessRoomThanBefore(t *testing.T) {
	var q Queue[string]
	for i := range 10 {
		q.Put(fmt.Sprint(i), Notable, 10)
	}
	q.Put("10", Grave, 3)
	require.Equal(t, []string{"8", "9", "10"}, drain(&q))
	require.Equal(t, 8, q.Missed())
}

// TestQueueAgainstASlice puts and takes at random, beside a queue that is looked through each time.
func TestQueueAgainstASlice(t *testing.T) {
	type value struct {
		n    int
		rank Rank
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var q Queue[value]
		var naive []value
		missed, most := 0, 1+r.IntN(20)
		for n := range 300 {
			if r.IntN(3) == 0 {
				v, ok := q.Take()
				require.Equal(t, len(naive) > 0, ok)
				if ok {
					require.Equal(t, naive[0], v)
					naive = naive[1:]
				}
				continue
			}
			v := value{n, Rank(r.IntN(int(ranks)))}
			q.Put(v, v.rank, most)
			if naive = append(naive, v); len(naive) > most {
				least := slices.MinFunc(naive, func(a, b value) int { return int(a.rank - b.rank) })
				naive = slices.Delete(naive, slices.Index(naive, least), slices.Index(naive, least)+1)
				missed++
			}
			require.Equal(t, len(naive), q.Len())
			require.Equal(t, missed, q.Missed())
		}
	}
}

func TestAQueueThatIsDrainedAndFilledDoesNotGrow(t *testing.T) {
	var q Queue[int]
	for i := range 100_000 {
		q.Put(i, Rank(i%int(ranks)), 10)
		if i%3 == 0 {
			q.Take()
		}
	}
	for _, l := range q.of {
		require.LessOrEqual(t, cap(l.all), 64)
	}
}
