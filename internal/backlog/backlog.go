// Package backlog keeps what somebody is to be told who may not be listening: in order, and no more of it than there is
// room for. Where there is no more room the least important goes first, and of that the oldest, so that whoever listens
// again at last learns how things stand, and what must not be missed.
//
//	var q backlog.Queue[Event]
//	q.Put(event, backlog.Grave, 4096)
//	event, ok := q.Take()
//	missed := q.Missed()
//
// A [Teller] tells what it keeps to a function that may block, in a goroutine of its own.
package backlog

// A Rank tells how important a value is.
type Rank int

const (
	Routine Rank = iota // the first to go
	Notable
	Grave
	ranks
)

// A Queue has values in the order in which they came, whatever their ranks. The zero value is empty and ready. It is not
// safe for concurrent use.
type Queue[T any] struct {
	of     [ranks]line[T]
	came   uint64 // values put in so far
	missed int
}

// Put puts v in. If there are then more than most, one is left out: the oldest of the lowest rank, which may be v itself.
func (q *Queue[T]) Put(v T, rank Rank, most int) {
	q.came++
	q.of[rank].push(v, q.came)
	for r := Routine; r < ranks && q.Len() > most; {
		if q.of[r].len() == 0 {
			r++
			continue
		}
		q.of[r].pop()
		q.missed++
	}
}

// Take takes the oldest out, and reports whether there was one.
func (q *Queue[T]) Take() (v T, ok bool) {
	var first *line[T]
	for r := range q.of {
		if l := &q.of[r]; l.len() > 0 && (first == nil || l.first() < first.first()) {
			first = l
		}
	}
	if first == nil {
		return v, false
	}
	return first.pop(), true
}

// Len returns how many there are.
func (q *Queue[T]) Len() (n int) {
	for r := range q.of {
		n += q.of[r].len()
	}
	return n
}

// Missed returns how many were left out since ForgetMissed.
func (q *Queue[T]) Missed() int { return q.missed }

// ForgetMissed begins to count anew.
func (q *Queue[T]) ForgetMissed() { q.missed = 0 }

// A line has the values of one rank.
type line[T any] struct {
	all  []numbered[T]
	gone int // of all, from the first on
}

type numbered[T any] struct {
	v T
	n uint64
}

func (l *line[T]) len() int { return len(l.all) - l.gone }

func (l *line[T]) first() uint64 { return l.all[l.gone].n }

func (l *line[T]) push(v T, n uint64) { l.all = append(l.all, numbered[T]{v, n}) }

func (l *line[T]) pop() T {
	v := l.all[l.gone].v
	l.all[l.gone] = numbered[T]{} // nothing is kept alive
	l.gone++
	switch {
	case l.gone == len(l.all):
		*l = line[T]{}
	case l.gone > len(l.all)/2:
		l.all, l.gone = append([]numbered[T](nil), l.all[l.gone:]...), 0
	}
	return v
}
