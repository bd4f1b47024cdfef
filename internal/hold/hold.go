// Package hold decides which of the responses that come about one certificate is held: which
// supersedes which, when an older one will do, and what undoes a revocation. Nothing here looks at a
// clock, a signature or a network: responses have been verified, and now is an argument.
//
// A [State] is what is held for one certificate, and begins with nothing:
//
//	             good                    revoked
//	Nothing ─────────────► Good ───────────────────► Revoked ◄────────────────┐
//	   │                   │  ▲                       │   ▲  │                │
//	   │           newer,  └──┘   newer and good, if  │   │  │ newer and good │ revoked
//	   │   or past its end        it was on hold      │   │  ▼                │
//	   │   an older one           ┌───────────────────┘   │ Doubted ──────────┘
//	   │                          ▼                       │  │
//	   │ revoked                 Good ◄───────────────────┼──┘ another good one, half an
//	   └──────────────────────────────────────────────────┘    hour later at least
//
// RFC 5280, section 5.3.1, lets only the reason certificateHold be lifted. Any other revocation that turns
// into "good" is either the CA's mistake put right, or comes from a node of its responder that lags, which no
// single answer can tell. So what is revoked for good stays so, also when its response has ended, until two
// different responses, half an hour apart, have said otherwise.
package hold

import (
	"bytes"
	"cmp"
	"hash/maphash"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ocsp"
)

// doubtFor is how far apart the two responses are that undo a revocation, in microseconds.
const doubtFor = int64(30 * time.Minute / time.Microsecond)

// A Response is one that was verified. It never changes, but for what it is known by. Its times are in Unix
// microseconds.
type Response struct {
	DER                    []byte // what is stapled, stored and shown
	ThisUpdate, ProducedAt int64
	Until                  int64         // by the Verifier
	End                    int64         // Until, or the leaf's NotAfter if that is earlier
	answer                 atomic.Uint32 // hashOf what DER was taken from: bytes that came, and need not be verified again
	Revoked                bool
	Reason                 int8 // of a revocation: RFC 5280, section 5.3.1
}

// Newer reports whether r is newer than old: by thisUpdate, then producedAt, then end; and revoked wins a tie.
func (r *Response) Newer(old *Response) bool {
	if c := cmp.Or(
		cmp.Compare(r.ThisUpdate, old.ThisUpdate),
		cmp.Compare(r.ProducedAt, old.ProducedAt),
		cmp.Compare(r.End, old.End),
	); c != 0 {
		return c > 0
	}
	return r.Revoked && !old.Revoked
}

// Same reports whether r and other are equal in times and status.
func (r *Response) Same(other *Response) bool { return !r.Newer(other) && !other.Newer(r) }

// Current reports whether r has not ended.
func (r *Response) Current(now int64) bool { return now < r.End }

// Supersedes reports whether r is to be taken where held is held, which may be nil: if it is newer, or held is
// good and has ended and r, good as well, has not. What would undo a revocation supersedes it, too.
func (r *Response) Supersedes(held *Response, now int64) bool {
	return held == nil || r.Newer(held) || !held.Revoked && !r.Revoked && !held.Current(now) && r.Current(now)
}

// Is reports whether r was taken from an answer, or is that itself.
func (r *Response) Is(answer []byte) bool {
	return hashOf(answer) == r.answer.Load() || bytes.Equal(answer, r.DER)
}

// Taken notes that r was taken from answer.
func (r *Response) Taken(answer []byte) { r.answer.Store(hashOf(answer)) }

// TakenAs notes that r was taken from what other was taken from, too.
func (r *Response) TakenAs(other *Response) { r.answer.Store(other.answer.Load()) }

var seed = maphash.MakeSeed()

// hashOf returns by what an answer is known again. Nobody can aim at it, since nobody knows the seed. If two hash alike
// after all, the later is taken for what is held: it is never stapled.
func hashOf(answer []byte) uint32 { return uint32(maphash.Bytes(seed, answer)) }

// A State is what is held for one certificate. The zero value is nothing.
type State struct {
	held  *Response
	doubt *doubt // of a revocation; nil if there is none
}

// A doubt is what is known beside a revocation that is held.
type doubt struct {
	lasting bool // a revocation before it was no hold

	cached *Response // the last good one that came from a cache, which may have it for long

	// Of the good responses since somebody said "revoked" last: the first, and the first that was another one.
	first, other     *Response
	firstAt, otherAt int64 // when they came
}

// Held returns the response that is held, also past its end; nil: none.
func (s *State) Held() *Response { return s.held }

// Revoked reports whether the certificate is revoked, by all that is known.
func (s *State) Revoked() bool { return s.held != nil && s.held.Revoked }

// Lasting reports whether it is revoked for good, so that no single answer says otherwise.
func (s *State) Lasting() bool { return s.Revoked() && s.lasts() }

// Offer says that r has come, and reports whether it is held from now on. It is to be told of what is held
// already or older, too: a node may say "revoked" again.
func (s *State) Offer(r *Response, now int64) (taken bool) {
	switch {
	case s.Revoked() && r.Revoked:
		lasting := s.lasts()
		s.doubt = nil
		if taken = r.Newer(s.held); taken {
			s.held = r
		}
		if lasting != s.lasts() {
			s.doubt = &doubt{lasting: lasting}
		}
		return taken
	case !r.Supersedes(s.held, now):
		return false
	case s.Revoked() && s.lasts() && !s.confirms(r, now):
		return false
	}
	s.held, s.doubt = r, nil
	return true
}

// OfferCached is Offer for a response that came from a cache, where it counts once.
func (s *State) OfferCached(r *Response, now int64) (taken bool) {
	if s.doubt != nil && s.doubt.cached != nil && r.Same(s.doubt.cached) {
		return false
	}
	if taken = s.Offer(r, now); !taken && s.doubt != nil && !r.Revoked {
		s.doubt.cached = r
	}
	return taken
}

// ClockSet says that the clock was set, so that nobody knows how long ago anything came.
func (s *State) ClockSet(now int64) {
	if s.doubt != nil {
		s.doubt.firstAt, s.doubt.otherAt = now, now
	}
}

// lasts reports whether what is held says that the certificate is revoked for good.
func (s *State) lasts() bool {
	return s.held.Reason != ocsp.CertificateHold || s.doubt != nil && s.doubt.lasting
}

// confirms reports whether r, which is good, bears out another one that came before, and keeps it otherwise.
func (s *State) confirms(r *Response, now int64) bool {
	if s.doubt == nil {
		s.doubt = new(doubt)
	}
	d := s.doubt
	d.firstAt, d.otherAt = min(d.firstAt, now), min(d.otherAt, now) // the clock may have been set
	switch {
	case d.first == nil:
		d.first, d.firstAt = r, now
		return false
	case r.Same(d.first):
		return d.other != nil && now-d.otherAt >= doubtFor
	case d.other == nil:
		d.other, d.otherAt = r, now
	}
	return now-d.firstAt >= doubtFor
}

// Drop makes nothing be held.
func (s *State) Drop() { *s = State{} }
