package backlog

import (
	"sync"

	"github.com/go-staple/staple/internal/crew"
)

// A Teller calls Tell with each of what is added, one after the other and in order, in a goroutine that exists only
// while there is something to tell. The fields are set before anything is added, and stay.
type Teller[T any] struct {
	Lock       *sync.Mutex // guards the Teller, and is held when the other functions are called, but not for Tell
	Crew       *crew.Crew  // has its goroutine
	Room       func() int  // how many may wait; 0: nothing is told any more
	Tell       func(T)
	FellBehind func()           // is called when the first is left out; may be nil
	CaughtUp   func(missed int) // and when all was told after that

	queue   Queue[T]
	telling bool
}

// Add adds v.
func (t *Teller[T]) Add(v T, rank Rank) {
	room := t.Room()
	if room == 0 {
		return
	}
	was := t.queue.Missed()
	t.queue.Put(v, rank, room)
	if was == 0 && t.queue.Missed() > 0 && t.FellBehind != nil {
		t.FellBehind()
	}
	if !t.telling {
		t.telling = true
		t.Crew.Add(1)
		go t.run()
	}
}

func (t *Teller[T]) run() {
	defer t.Crew.Done()
	ended := true
	defer func() {
		if ended { // by Tell: another goroutine goes on
			t.Crew.Add(1)
			go t.run()
		}
	}()
	for v, ok := t.next(); ok; v, ok = t.next() {
		t.Tell(v)
	}
	ended = false
}

func (t *Teller[T]) next() (v T, ok bool) {
	t.Lock.Lock()
	defer t.Lock.Unlock()
	v, ok = t.queue.Take()
	if missed := t.queue.Missed(); !ok && missed > 0 {
		t.queue.ForgetMissed()
		if t.CaughtUp != nil {
			t.CaughtUp(missed)
		}
		v, ok = t.queue.Take()
	}
	t.telling = ok
	return v, ok
}
