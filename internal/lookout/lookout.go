// Package lookout looks at many things now and then, each of which may hang: by one goroutine, which exists only while some
// are due, and one timer. Whatever hangs keeps a goroutine to itself, and the others are looked at by another one.
package lookout

import (
	"sync"
	"time"

	"github.com/go-staple/staple/internal/crew"
)

// Patience is how long a look may take before others go on without it.
const Patience = 200 * time.Millisecond

// A Post is what is looked at. Its functions are called with the lock held.
type Post struct {
	Due   func() time.Time
	Look  func() // which lets go of the lock while it waits
	Hangs func() // now and then while Look hangs
	Ended func() // at Close

	looking, gone bool
}

// A Lookout looks at the Posts that were added, each when it is due and one after the other. The fields that are exported
// are set before its methods are called, and stay.
type Lookout struct {
	Lock  *sync.Mutex          // is held when its methods are called
	Crew  *crew.Crew           // has its goroutines and its timer
	First func()               // is called before each round of looks, with the lock held
	Wait  func() time.Duration // until the next round, at most

	posts   map[*Post]bool
	timer   *time.Timer
	armed   bool
	closed  bool
	busy    *looker // nil: nobody looks, but for those that hang
	lookers map[*looker]bool
}

// A looker is a goroutine that looks.
type looker struct {
	at        *Post
	began     time.Time
	abandoned bool // by Close
}

// Add has p looked at.
func (l *Lookout) Add(p *Post) {
	if l.posts == nil {
		l.posts, l.lookers = make(map[*Post]bool), make(map[*looker]bool)
	}
	l.posts[p] = true
	l.Arm()
}

// Remove has p looked at no more.
func (l *Lookout) Remove(p *Post) {
	p.gone = true
	delete(l.posts, p)
	l.Arm()
}

// Close ends all looks. Those that hang are part of the Crew for patience at most, and until stop is called.
func (l *Lookout) Close(patience time.Duration) (stop func()) {
	l.closed = true
	l.Arm()
	for p := range l.posts {
		p.Ended()
	}
	if len(l.lookers) == 0 {
		return func() {}
	}
	timer := time.AfterFunc(patience, func() {
		l.Lock.Lock()
		defer l.Lock.Unlock()
		for me := range l.lookers {
			me.abandoned = true
			l.Crew.Done()
		}
		clear(l.lookers)
	})
	return func() { timer.Stop() }
}

// Arm sets the timer for what comes next. It follows each change of that.
func (l *Lookout) Arm() {
	if l.armed {
		if !l.timer.Stop() {
			return // it is about to look
		}
		l.armed = false
		l.Crew.Done()
	}
	if l.closed || len(l.posts) == 0 {
		return
	}
	wait := l.Wait()
	if l.busy != nil {
		wait = min(wait, Patience)
	} else {
		for p := range l.posts {
			if !p.looking {
				wait = min(wait, time.Until(p.Due()))
			}
		}
	}
	l.armed = true
	l.Crew.Add(1)
	l.timer = time.AfterFunc(wait, l.round)
}

// round is what the timer does.
func (l *Lookout) round() {
	l.Lock.Lock()
	defer l.Lock.Unlock()
	me := new(looker)
	l.armed = false
	defer func() { // also if Look ends the goroutine
		delete(l.lookers, me)
		l.Arm()
		if !me.abandoned {
			l.Crew.Done()
		}
	}()
	if l.closed {
		return
	}
	l.First()
	if l.busy != nil && time.Since(l.busy.began) < Patience {
		return
	}
	l.busy = nil
	for other := range l.lookers {
		if !other.at.gone {
			other.at.Hangs()
		}
	}
	var due []*Post
	for p := range l.posts {
		if !p.looking && time.Until(p.Due()) <= 0 {
			due = append(due, p)
		}
	}
	if len(due) == 0 {
		return
	}
	l.busy, l.lookers[me] = me, true
	for _, p := range due {
		if p.gone || p.looking || l.closed {
			continue
		}
		me.at, me.began = p, time.Now()
		if !l.armed {
			l.Arm()
		}
		l.look(p)
		if l.busy != me {
			return // it hung, and another goes on
		}
	}
	l.busy = nil
}

func (l *Lookout) look(p *Post) {
	p.looking = true
	defer func() { p.looking = false }()
	p.Look()
}
