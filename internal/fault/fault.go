// Package fault tells whose fault it is that requests failed, from the error that tells of them: a certificate's own, its
// authority's at one URL, a URL's, or a host's, as package schedule has it. An error is a tree, which may come from
// anybody's code, and in which a request to one URL stands as something that a [Reader] recognizes:
//
//	r := fault.Reader{Of: told, Refuses: refuses}
//	answers := r.Answers(err) // what it says of each URL, for schedule.Outcome
//
// Whoever makes requests knows more, and says it with each by [Reader.Attempt] and [Reader.In], in [Told.Fault]. Of
// somebody else's errors, status and error have to do. It asks nobody and remembers nothing.
package fault

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/go-staple/staple/internal/ask"
	"github.com/go-staple/staple/internal/exchange"
	"github.com/go-staple/staple/internal/schedule"
	"golang.org/x/crypto/ocsp"
)

// Unasked is what is said of a request, and nothing else, where schedule.NoFault would mean that nobody has said whose fault
// it is: it was not made, or the caller gave up on it.
const Unasked schedule.Fault = -1

// Told is what an error tells of the requests to one URL.
type Told struct {
	URL        string
	Status     int           // of the last answer; 0: there was none
	RetryAfter time.Duration // the longest that an answer asked for
	Err        error
	Fault      schedule.Fault // of the last request; schedule.NoFault: the fields above say it all
}

// A Reader recognizes errors.
type Reader struct {
	Of      func(error) (t Told, ok bool) // one that tells of a URL, not looking into what it wraps
	Refuses func(error) bool              // one of whoever judges responses, the same
}

// Answers returns what err, of a round that failed, says of each URL, in order: one answer for each error in its tree that
// tells of one. One inside another is about the same URL.
func (r Reader) Answers(err error) (answers []schedule.Answer) {
	walk(err, func(err error) (into bool) {
		t, ok := r.Of(err)
		if ok {
			answers = append(answers, schedule.Answer{Source: schedule.SourceOf(t.URL), Fault: r.whose(t), RetryAfter: t.RetryAfter,
				Busy: t.Status == http.StatusTooManyRequests || t.Status == http.StatusServiceUnavailable, Err: err})
		}
		return !ok
	})
	return answers
}

// walk calls visit with each error of a tree, a parent before its children, in the order
// of errors.Is. It leaves out those below an error of which visit returns false.
func walk(err error, visit func(error) (into bool)) {
	if err == nil || !visit(err) {
		return
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		walk(e.Unwrap(), visit)
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			walk(err, visit)
		}
	}
}

// RetryAfter returns the longest pause that somebody who was asked wants in err.
func (r Reader) RetryAfter(err error) (longest time.Duration) {
	walk(err, func(err error) bool {
		if t, ok := r.Of(err); ok {
			longest = max(longest, t.RetryAfter)
		}
		return true
	})
	return longest
}

// whose returns whose fault t tells of. Of several requests it is the last one's, so far as that can be told of an error
// that somebody else has made.
func (r Reader) whose(t Told) schedule.Fault {
	switch {
	case errors.Is(t.Err, context.Canceled), t.Fault == Unasked:
		return schedule.NoFault
	case t.Fault != schedule.NoFault:
		return t.Fault
	}
	if inner := r.Answers(t.Err); len(inner) > 0 { // t may be of a copy, under another URL
		last := inner[len(inner)-1]
		if of, _ := r.Of(last.Err); of.Status == t.Status {
			return last.Fault
		}
	}
	return r.In(t.Status != 0, t.Status, t.RetryAfter, t.Err)
}

// Attempt returns whose fault it is that a request failed, Unasked if nobody's.
func (r Reader) Attempt(a ask.Attempt) schedule.Fault {
	switch a.Stage {
	case ask.Unasked:
		return Unasked
	case ask.Refused:
		return schedule.Certificate
	default:
		return r.In(a.Stage == ask.Answered, a.Status, a.RetryAfter, a.Err)
	}
}

// In returns whose fault err is, of a request to which anything was answered or
// nothing, with this status, 0 if it was no HTTP or a redirect to nowhere.
func (r Reader) In(answered bool, status int, retryAfter time.Duration, err error) schedule.Fault {
	var said, refused schedule.Fault // by the responder; by whoever judges its response
	walk(err, func(err error) bool {
		if e, ok := err.(ocsp.ResponseError); ok {
			if said = schedule.Certificate; e.Status == ocsp.TryLater || e.Status == ocsp.InternalError {
				said = schedule.CA
			}
		}
		switch {
		case r.Refuses(err):
			refused = schedule.Certificate
		case err == exchange.ErrUnusable:
			refused = schedule.CA
		}
		return true
	})
	switch {
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable && retryAfter > 0:
		return schedule.URL
	case said != schedule.NoFault:
		return said
	case status >= 500:
		return schedule.CA
	case status >= 400:
		return schedule.Certificate
	case refused != schedule.NoFault:
		return refused
	case answered:
		return schedule.CA
	default:
		return schedule.Host
	}
}
