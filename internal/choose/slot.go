package choose

import (
	"crypto/tls"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-staple/staple/internal/wall"
)

// A Slot has a certificate and what is stapled to it, which changes while handshakes
// read it: without a lock, as long as neither ends or changes at that moment. Of,
// Order and Kind are set before an [Index] has the slot, and stay.
//
// All that a handshake reads lies together: to begin a cache line with a slot spares it
// misses.
type Slot[T any] struct {
	Order uint64 // among the candidates of an index
	Kind  *Kind
	Of    *T // whose slot it is

	// What handshakes are given until end, in Unix microseconds. end is 0 if that has
	// no staple, and changing while both change, which is done under showing.
	shown atomic.Pointer[tls.Certificate]
	end   atomic.Int64
}

const changing = -1

// showing guards the change of what any slot shows, which is rare and short. No other
// lock is taken under it.
var showing sync.Mutex

var faded atomic.Uint64

// Faded returns how often a handshake found that a staple had ended, with any slot: since then
// that slot shows none, also if the clock was wrong.
func Faded() uint64 { return faded.Load() }

// Put makes cert what handshakes are given, as it is. It is for a slot that nobody reads
// yet, and cert must not change after it. Leaf is set, or the index knows no names.
func (s *Slot[T]) Put(cert *tls.Certificate) { s.shown.Store(cert) }

// Shown returns the certificate as it was shown last, with a staple that may have
// ended, or nil if Put was never called. It never returns the same pointer for two staples.
func (s *Slot[T]) Shown() *tls.Certificate { return s.shown.Load() }

// Staple makes handshakes carry der until end.
func (s *Slot[T]) Staple(der []byte, end time.Time) {
	showing.Lock()
	defer showing.Unlock()
	s.show(der, wall.MicroOf(end))
}

// Unstaple makes handshakes carry no staple.
func (s *Slot[T]) Unstaple() {
	showing.Lock()
	defer showing.Unlock()
	if s.end.Load() != 0 {
		s.show(nil, 0)
	}
}

// show changes what handshakes are given, with showing held.
func (s *Slot[T]) show(der []byte, end int64) {
	cert := *s.shown.Load()
	cert.OCSPStaple = der
	s.end.Store(changing)
	s.shown.Store(&cert)
	s.end.Store(end)
}

// Current returns what a handshake at this moment is given, and whether Staple has
// stapled it.
func (s *Slot[T]) Current() (cert *tls.Certificate, stapled bool) {
	return s.At(wall.Micro())
}

// At is Current for a moment in Unix microseconds that has only just passed.
func (s *Slot[T]) At(now int64) (cert *tls.Certificate, stapled bool) {
	cert = s.shown.Load()
	end := s.end.Load()
	if end != changing && s.shown.Load() == cert { // end is its end: no certificate is shown twice
		if end == 0 {
			return cert, false
		}
		if now < end {
			return cert, true
		}
	}
	return s.settled()
}

// settled is Current for a slot whose staple has just ended, or is just changing.
func (s *Slot[T]) settled() (cert *tls.Certificate, stapled bool) {
	showing.Lock()
	defer showing.Unlock()
	if end := s.end.Load(); end != 0 && wall.Micro() >= end {
		s.show(nil, 0)
		faded.Add(1)
	}
	return s.shown.Load(), s.end.Load() != 0
}
