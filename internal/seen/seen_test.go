package seen

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A handle is what the tests keep for a leaf, whose number it has.
type handle struct{ n int }

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// leafOf returns the DER of a leaf that is like no other, in memory of its own.
func leafOf(n int) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

func keyOf(n int) [sha256.Size]byte { return sha256.Sum256(leafOf(n)) }

// requireWhole requires that t remembers n certificates, each by all that leads to it.
func requireWhole(t *testing.T, table *Table[handle], n int) {
	t.Helper()
	require.Equal(t, n, table.Len())
	require.Equal(t, n, table.recent.Len())
	require.Len(t, table.byDER, n)
	require.Len(t, table.byHash, n)
	last := time.Time{}
	for el := table.recent.Back(); el != nil; el = el.Prev() {
		s := el.Value.(*Sighting[handle])
		require.True(t, el == s.el && s == table.byHash[s.key] && s == table.byDER[identityOf(s.leaf)], "certificate %d", s.Handle.n)
		require.False(t, s.last.Before(last), "out of order")
		require.NotEmpty(t, s.owners)
		last = s.last
	}
}

func numbers(handles []*handle) (n []int) {
	for _, h := range handles {
		n = append(n, h.n)
	}
	return n
}

func TestACertificateIsFoundByWhereItsLeafLiesAndByWhatItIs(t *testing.T) {
	var table Table[handle]
	o := new(Owner)
	leaf := leafOf(1)
	s, copied := table.Find(leaf, o, start)
	require.Nil(t, s)
	require.False(t, copied)
	require.Empty(t, table.Disown([]*Owner{o}), "of an empty table")
	require.Empty(t, table.Forget(start))
	table.Remove(keyOf(1), nil)

	h := &handle{1}
	put, out := table.Put(leaf, h, o, start)
	require.Same(t, h, put.Handle)
	require.Equal(t, start, put.First)
	require.Nil(t, out)
	requireWhole(t, &table, 1)

	again := slices.Clone(leaf)
	for _, step := range []struct {
		leaf   []byte
		copied bool
	}{{leaf, false}, {leaf[:len(leaf):len(leaf)], false}, {again, true}, {again, false}, {leaf, true}, {leaf, false}} {
		s, copied := table.Find(step.leaf, o, start.Add(time.Hour))
		require.Same(t, put, s)
		require.Equal(t, step.copied, copied)
		requireWhole(t, &table, 1)
	}
	require.Equal(t, start, put.First, "it stays")
	s, _ = table.Find(leaf[:len(leaf)-1], o, start)
	require.Nil(t, s, "another leaf at the same place")
	s, _ = table.Find(leafOf(2), o, start)
	require.Nil(t, s)
}

func TestWhoeverPutsACertificateFirstHasIt(t *testing.T) {
	var table Table[handle]
	first, second := &handle{1}, &handle{1}
	o := []*Owner{new(Owner), new(Owner)}
	s, out := table.Put(leafOf(1), first, o[0], start)
	require.Nil(t, out)
	again, out := table.Put(leafOf(1), second, o[1], start.Add(time.Second))
	require.Same(t, s, again)
	require.Same(t, second, out)
	require.Same(t, first, s.Handle)
	requireWhole(t, &table, 1)

	table.Remove(keyOf(1), second)
	requireWhole(t, &table, 1)
	require.Empty(t, table.Disown(o[:1]), "the second owner has seen it, too")
	table.Remove(keyOf(1), first)
	requireWhole(t, &table, 0)
	table.Remove(keyOf(1), first)
	s, out = table.Put(leafOf(1), second, o[1], start)
	require.Same(t, second, s.Handle)
	require.Nil(t, out)
}

func TestTheOneSeenLeastRecentlyMakesRoom(t *testing.T) {
	var table Table[handle]
	o := new(Owner)
	at := func(n int) time.Time { return start.Add(time.Duration(n) * time.Millisecond) }
	kept := leafOf(0)
	for n := range Most {
		leaf := leafOf(n)
		if n == 0 {
			leaf = kept
		}
		_, out := table.Put(leaf, &handle{n}, o, at(n))
		require.Nil(t, out)
	}
	requireWhole(t, &table, Most)
	s, copied := table.Find(kept, o, at(Most))
	require.Equal(t, 0, s.Handle.n)
	require.False(t, copied)
	s, copied = table.Find(leafOf(2), o, at(Most+1))
	require.Equal(t, 2, s.Handle.n)
	require.True(t, copied)
	_, out := table.Put(leafOf(4), &handle{-4}, o, at(Most+2)) // is there, and counts as seen
	require.Equal(t, -4, out.n)
	var gone []int
	for n := Most; n < Most+4; n++ {
		s, out := table.Put(leafOf(n), &handle{n}, o, at(n+3))
		require.Equal(t, n, s.Handle.n)
		gone = append(gone, out.n)
	}
	require.Equal(t, []int{1, 3, 5, 6}, gone)
	requireWhole(t, &table, Most)
}

func TestAHundredNewOnesAreAdmittedInAnySecond(t *testing.T) {
	var table Table[handle]
	for _, step := range []struct {
		at       time.Duration
		asked    int
		admitted int
	}{
		{0, 60, 60},
		{700 * time.Millisecond, 60, 40},
		{time.Second - 1, 60, 0},
		{time.Second, 70, 60}, // the first 60 are a second ago
		{1700*time.Millisecond - 1, 1, 0},
		{1700 * time.Millisecond, 30, 30},
		{1700 * time.Millisecond, 30, 10},
		{time.Hour, 1000, 100},
	} {
		admitted := 0
		for range step.asked {
			if table.Admit(start.Add(step.at)) {
				admitted++
			}
		}
		require.Equal(t, step.admitted, admitted, step.at)
	}
}

func TestWhatIsUnseenForADayIsForgotten(t *testing.T) {
	var table Table[handle]
	o := new(Owner)
	for n := range 4 {
		table.Put(leafOf(n), &handle{n}, o, start.Add(time.Duration(n)*time.Hour))
	}
	table.Find(leafOf(1), o, start.Add(10*time.Hour))
	for _, step := range []struct {
		at   time.Duration
		gone []int
	}{
		{Span - 1, nil},
		{Span, []int{0}},
		{Span, nil},
		{Span + 3*time.Hour, []int{2, 3}},
		{Span + 10*time.Hour - 1, nil},
		{Span + 10*time.Hour, []int{1}},
		{2 * Span, nil},
	} {
		require.Equal(t, step.gone, numbers(table.Forget(start.Add(step.at))), step.at)
	}
	requireWhole(t, &table, 0)
}

func TestWhatOnlyOwnersHaveReturnedThatAreGoneIsForgotten(t *testing.T) {
	var table Table[handle]
	var released Released
	a, b, c := new(Owner), new(Owner), new(Owner)
	for n, owners := range [][]*Owner{{a}, {b}, {a, b}, {c}, {b, a, b, c}} {
		table.Put(leafOf(n), &handle{n}, owners[0], start)
		for _, o := range owners[1:] {
			table.Find(leafOf(n), o, start)
		}
	}
	require.Empty(t, released.Take())
	for _, step := range []struct {
		owners []*Owner
		gone   []int
	}{
		{nil, nil},
		{[]*Owner{new(Owner)}, nil},
		{[]*Owner{a}, []int{0}},
		{[]*Owner{a}, nil},
		{[]*Owner{b, new(Owner)}, []int{1, 2}},
		{[]*Owner{c, a}, []int{3, 4}},
	} {
		for i, o := range step.owners {
			require.Equal(t, i, released.Len())
			released.Add(o)
		}
		require.Equal(t, step.gone, numbers(table.Disown(released.Take())))
		require.Zero(t, released.Len())
		require.Empty(t, released.Take())
	}
	requireWhole(t, &table, 0)
}

func TestAStapleIsNewsOnce(t *testing.T) {
	var table Table[handle]
	s, _ := table.Put(leafOf(1), new(handle), new(Owner), start)
	for i, step := range []struct {
		staple string
		news   bool
	}{{"", false}, {"one", true}, {"one", false}, {"", false}, {"one", false}, {"two", true}, {"one", true}} {
		require.Equal(t, step.news, s.Carries([]byte(step.staple)), "%d: %q", i, step.staple)
	}
	staple := []byte("one")
	require.Zero(t, testing.AllocsPerRun(100, func() { s.Carries(staple) }))
}

func TestFindingDoesNotAllocate(t *testing.T) {
	var table Table[handle]
	o := new(Owner)
	leaf := leafOf(1)
	table.Put(leaf, new(handle), o, start)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if s, copied := table.Find(leaf, o, start); s == nil || copied {
			t.Fatal("not found")
		}
	}))
}

// A naive is a Table of few certificates, for a test to compare with.
type naive struct {
	seen []sighted // the least recent first
}

type sighted struct {
	h      *handle
	last   time.Time
	owners map[*Owner]bool
}

func (m *naive) touch(n int, o *Owner, now time.Time) *handle {
	i := slices.IndexFunc(m.seen, func(s sighted) bool { return s.h.n == n })
	if i < 0 {
		return nil
	}
	s := m.seen[i]
	s.last = now
	s.owners[o] = true
	m.seen = append(slices.Delete(m.seen, i, i+1), s)
	return s.h
}

func (m *naive) removeIf(cond func(sighted) bool) (gone []int) {
	m.seen = slices.DeleteFunc(m.seen, func(s sighted) bool {
		if cond(s) {
			gone = append(gone, s.h.n)
			return true
		}
		return false
	})
	return gone
}

func TestATableIsWhatANaiveOneIs(t *testing.T) {
	r := mathrand.New(mathrand.NewPCG(1, 2))
	var table Table[handle]
	var model naive
	owners := []*Owner{new(Owner), new(Owner), new(Owner)}
	leaves := make(map[int][]byte)
	now := start
	for step := range 20000 {
		now = now.Add(time.Duration(r.Int64N(int64(2 * time.Hour))))
		n, o := r.IntN(20), owners[r.IntN(len(owners))]
		if leaves[n] == nil || r.IntN(4) == 0 {
			leaves[n] = leafOf(n)
		}
		what := fmt.Sprintf("step %d", step)
		switch r.IntN(12) {
		case 0:
			require.Equal(t, model.removeIf(func(s sighted) bool { return now.Sub(s.last) >= Span }), numbers(table.Forget(now)), what)
		case 1:
			gone := owners[:1+r.IntN(2)]
			require.Equal(t, model.removeIf(func(s sighted) bool {
				for _, o := range gone {
					delete(s.owners, o)
				}
				return len(s.owners) == 0
			}), numbers(table.Disown(gone)), what)
		case 2:
			if i := slices.IndexFunc(model.seen, func(s sighted) bool { return s.h.n == n }); i >= 0 {
				table.Remove(keyOf(n), model.seen[i].h)
				model.seen = slices.Delete(model.seen, i, i+1)
			}
		case 3, 4, 5:
			h := &handle{n}
			want := model.touch(n, o, now)
			s, out := table.Put(leaves[n], h, o, now)
			if want == nil {
				model.seen = append(model.seen, sighted{h, now, map[*Owner]bool{o: true}})
				require.Nil(t, out, what)
				require.Same(t, h, s.Handle, what)
			} else {
				require.Same(t, h, out, what)
				require.Same(t, want, s.Handle, what)
			}
		default:
			want := model.touch(n, o, now)
			s, _ := table.Find(leaves[n], o, now)
			require.Equal(t, want == nil, s == nil, what)
			if s != nil {
				require.Same(t, want, s.Handle, what)
			}
		}
		if step%100 == 0 {
			requireWhole(t, &table, len(model.seen))
		}
	}
}

func TestSightingsOfManyAtOnce(t *testing.T) {
	var table Table[handle]
	var released Released
	kept := new(Owner)
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			o := new(Owner)
			for i := range 5000 {
				n := (i*7 + worker) % 50
				leaf := leafOf(n)
				h := &handle{n}
				s, _ := table.Find(leaf, o, start)
				if s == nil && table.Admit(start.Add(time.Duration(i)*time.Second)) {
					s, _ = table.Put(leaf, h, o, start)
				}
				if s != nil {
					s.Carries(leaf)
					table.Find(leaf, kept, start)
				}
				switch {
				case i%100 == worker:
					table.Remove(keyOf(n), h)
				case i%200 == worker+10:
					released.Add(o)
					table.Disown(released.Take())
				}
			}
			released.Add(o)
		})
	}
	wg.Wait()
	n := table.Len()
	require.Positive(t, n)
	requireWhole(t, &table, n)
	require.Empty(t, table.Disown(released.Take()))
	require.Len(t, table.Disown([]*Owner{kept}), n)
	requireWhole(t, &table, 0)
}

func TestThoseThatStayDoSoHoweverManyComeAndHoweverLongTheyDoNot(t *testing.T) {
	var table Table[int]
	start := time.Now()
	der := func(i int) []byte { return binary.BigEndian.AppendUint32(make([]byte, 0, 4), uint32(i)) }
	key := func(i int) [sha256.Size]byte { return sha256.Sum256(der(i)) }
	handles := make([]int, Most+3)
	put := func(i int) *int {
		_, out := table.Put(der(i), &handles[i], nil, start)
		return out
	}
	for i := range 2 {
		require.Nil(t, put(i))
		table.Stay(key(i), true)
	}
	table.Stay(key(Most), true) // nobody knows it
	for i := 2; i < Most; i++ {
		require.Nil(t, put(i))
	}
	require.Equal(t, Most, table.Len())
	require.Equal(t, &handles[2], put(Most), "the first that does not stay")
	require.Len(t, table.All(), Most)

	s, copied := table.Find(der(0), nil, start)
	require.NotNil(t, s)
	require.True(t, copied)
	gone := table.Forget(start.Add(Span))
	require.Len(t, gone, Most-2)
	require.ElementsMatch(t, []*int{&handles[0], &handles[1]}, table.All())

	table.Stay(key(1), false)
	table.Stay(key(1), false)
	require.Len(t, table.Forget(start.Add(Span)), 1)
	table.Remove(key(0), &handles[0])
	require.Zero(t, table.Len())
	require.Nil(t, put(0))
}
