// Package breaker decides whether to wait for somebody who has made others wait: a circuit breaker. It goes by slowness
// alone. Whoever fails at once costs nothing, and is asked each time.
//
//	        slow, three in a row          Pause is over
//	closed ───────────────────────► open ───────────────► half-open
//	  ▲                              ▲                      │   │
//	  │                              └──────── slow ────────┘   │
//	  └──────────────────────── quick ──────────────────────────┘
//
// Closed, all calls are made. Open, none is. Half-open, one call has been let through, to see, and no other is. If that
// one is cut short, so that nothing can be said of it, the next is let through. A call that began before it opened, and
// is quick, closes it, too.
//
// The package knows no clock: now is an argument, best with a monotonic reading.
package breaker

import (
	"fmt"
	"time"
)

const (
	// Slow is how long a call may take.
	Slow = 2 * time.Second

	// Enough is how long a call must have had, at least, for its caller to give it up before it counts as slow.
	Enough = 900 * time.Millisecond

	// Pause is how long nobody is asked after calls that were slow.
	Pause = 20 * time.Second

	patience = 3
)

// A State tells whether calls are made.
type State int8

const (
	Closed   State = iota // all are
	Open                  // none is, until a time has come
	HalfOpen              // one is under way, which tells how to go on
)

func (s State) String() string {
	if s < Closed || s > HalfOpen {
		return fmt.Sprintf("State(%d)", int8(s))
	}
	return [...]string{"closed", "open", "half-open"}[s]
}

// A Breaker is closed as its zero value. It is not safe for concurrent use.
type Breaker struct {
	state State
	slow  int       // calls in a row, while it is closed
	until time.Time // for which it is open
}

// State returns where it is.
func (b *Breaker) State() State { return b.state }

// Due reports whether a call is wanted that shows how things are.
func (b *Breaker) Due(now time.Time) bool { return b.state == Open && !now.Before(b.until) }

// Allow reports whether to make a call now. Done must follow if it does.
func (b *Breaker) Allow(now time.Time) bool {
	if b.Due(now) {
		b.state = HalfOpen
		return true
	}
	return b.state == Closed
}

// Done says that a call took so long, and whether it ended because its caller gave it up.
func (b *Breaker) Done(took time.Duration, givenUp bool, now time.Time) {
	switch {
	case givenUp && took < Enough:
		if b.state == HalfOpen {
			b.state, b.until = Open, now
		}
	case !givenUp && took < Slow:
		*b = Breaker{}
	case b.state == HalfOpen:
		b.state, b.until = Open, now.Add(Pause)
	case b.state == Closed:
		if b.slow++; b.slow >= patience {
			*b = Breaker{state: Open, until: now.Add(Pause)}
		}
	}
}
