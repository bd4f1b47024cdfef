package pemfiles

import (
	"crypto/sha256"
	"time"
)

const (
	Every  = 5 * time.Second // between two looks while nothing changes
	Apart  = time.Second     // between two looks that must agree
	Reread = 5 * time.Minute // between two looks at the contents, which may be others though nothing else tells so
	quiet  = time.Minute     // nobody is told of trouble before that, nor twice within it
	again  = time.Hour       // after which somebody is told once more of the same trouble
)

// A Watch decides when to look at a pair, and which contents to believe: those that two looks have seen, one after the
// other, Apart at least. It begins with NewWatch. All times have a monotonic reading, so that nobody's setting the clock
// matters.
type Watch struct {
	stamp  Stamp             // of the contents read last
	held   [sha256.Size]byte // what was believed last
	seen   [sha256.Size]byte // what the last look saw, if since is set
	since  time.Time         // when that was seen first; zero: the last look saw what was held
	reread time.Time         // when to read again
	next   time.Time
	forced bool

	wrong time.Time // since when there is trouble; zero: there is none
	said  time.Time // when somebody was told of it last; zero: never
	about string    // of what
}

// NewWatch returns a Watch over what l has found and somebody has taken.
func NewWatch(l Look, now time.Time) *Watch {
	return &Watch{stamp: l.stamp, held: l.Sum, next: now.Add(Every), reread: now.Add(Reread)}
}

// Next returns when to look.
func (w *Watch) Next() time.Time { return w.next }

// Force makes a look due now, at the contents. One that is under way is followed by another.
func (w *Watch) Force(now time.Time) { w.forced, w.next = true, now }

// Begin says that a look begins, and returns how to look.
func (w *Watch) Begin(now time.Time) (last Stamp, read bool) {
	read = w.forced || !w.since.IsZero() || !w.wrong.IsZero() || !now.Before(w.reread)
	w.forced = false
	return w.stamp, read
}

// A Verdict says what to make of a look.
type Verdict int

const (
	Unchanged Verdict = iota // there is what was believed last
	Unsettled                // there is something else, which is still to be seen once more
	Changed                  // there is something else, which is believed from now on
)

// Ended says what a look has found.
func (w *Watch) Ended(l Look, now time.Time) (v Verdict) {
	w.next = now.Add(Every)
	if l.Read {
		w.stamp, w.reread = l.stamp, now.Add(Reread)
		v = w.judge(l.Sum, now)
	}
	if w.forced {
		w.next = now
	}
	return v
}

func (w *Watch) judge(sum [sha256.Size]byte, now time.Time) Verdict {
	switch {
	case sum == w.held:
		w.since = time.Time{}
		return Unchanged
	case w.since.IsZero() || sum != w.seen:
		w.seen, w.since = sum, now
	case now.Sub(w.since) >= Apart:
		w.held, w.since = sum, time.Time{}
		return Changed
	}
	w.next = w.since.Add(Apart)
	return Unsettled
}

// A Notice is what somebody is to be told.
type Notice int

const (
	Nothing Notice = iota
	Trouble        // the pair is in trouble
	Over           // it is no more
)

// Note says what is the trouble with the pair after a look, if any, and returns what somebody is to be told: of trouble that
// has lasted for a minute, of another one a minute after that at the earliest, of the same each hour, and of its end. While
// there is trouble, each look reads the contents.
func (w *Watch) Note(trouble error, now time.Time) Notice {
	switch {
	case trouble == nil:
		told := !w.said.IsZero()
		w.wrong, w.said, w.about = time.Time{}, time.Time{}, ""
		if told {
			return Over
		}
		return Nothing
	case w.wrong.IsZero():
		w.wrong = now
		return Nothing
	}
	text := trouble.Error()
	pause := quiet
	if text == w.about {
		pause = again
	}
	if now.Sub(w.wrong) < quiet || !w.said.IsZero() && now.Sub(w.said) < pause {
		return Nothing
	}
	w.said, w.about = now, text
	return Trouble
}

// Lasted returns for how long there has been trouble.
func (w *Watch) Lasted(now time.Time) time.Duration { return now.Sub(w.wrong) }
