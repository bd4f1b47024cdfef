// Package tally counts how it went with the peers of each certificate authority, for those who watch and for the log:
//
//	var book tally.Book
//	t := book.Of(issuer)
//	t.Passed.Add(1)
//	if n, due := t.Unanswered(now); due {
//		// a line about n connections
//	}
//
// Anybody may be a peer and name any authority, so there are a thousand tallies at most, and one for all others. It knows
// no clock: now is an argument.
package tally

import (
	"cmp"
	"crypto/x509"
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-staple/staple/internal/name"
)

const (
	// Most is how many authorities are told apart: those that came first.
	Most = 1000

	// Pause is how long the log says nothing of an authority after it did.
	Pause = time.Minute

	others = "others"
)

// A Tally has the numbers of one authority. The counters are safe for concurrent use.
type Tally struct {
	CA      string // its subject
	Passed  atomic.Uint64
	Refused atomic.Uint64 // since they are revoked, or their staple is missing or of no use
	Failed  atomic.Uint64 // refused since nobody answered
	Opened  atomic.Uint64 // passed although nobody answered
	Waits   atomic.Uint64 // connections that waited for an answer
	waited  atomic.Int64

	logged time.Time // when the log named it last
	since  int       // unanswered connections since
}

// Wait counts a connection that waited.
func (t *Tally) Wait(d time.Duration) {
	t.Waits.Add(1)
	t.waited.Add(int64(d))
}

// Waited returns how long connections have waited, together.
func (t *Tally) Waited() time.Duration { return time.Duration(t.waited.Load()) }

// Unanswered notes a connection about whose certificate nobody answered. It reports whether the log is to tell of that now,
// and of how many. It is not safe for concurrent use.
func (t *Tally) Unanswered(now time.Time) (connections int, due bool) {
	if t.since++; !t.logged.IsZero() && now.Sub(t.logged) < Pause {
		return 0, false
	}
	connections = t.since
	t.logged, t.since = now, 0
	return connections, true
}

// A Book has all tallies. The zero value is empty and ready. It is not safe for concurrent use.
type Book struct{ of map[string]*Tally }

// Of returns the tally of an authority, which is known by its subject.
func (b *Book) Of(issuer *x509.Certificate) *Tally {
	key := string(issuer.RawSubject)
	if t := b.of[key]; t != nil {
		return t
	}
	if b.of == nil {
		b.of = make(map[string]*Tally)
	}
	subject, _ := name.Parts(issuer)
	if len(b.of) >= Most {
		key, subject = "", others
	}
	t := b.of[key]
	if t == nil {
		t = &Tally{CA: subject}
		b.of[key] = t
	}
	return t
}

// All returns all tallies, in order of name.
func (b *Book) All() (all []*Tally) {
	for _, t := range b.of {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b *Tally) int { return cmp.Compare(a.CA, b.CA) })
	return all
}
