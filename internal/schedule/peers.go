package schedule

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-staple/staple/internal/wall"
)

// Peers are certificates that nobody here serves: somebody comes with one, and is waited for. They stand in queues of
// their own, host by host, beside those of the tree, so that whoever makes many of them keeps nobody else from their
// turn: they have half of the workers at most and one host half of these, and come after the first rounds of others,
// those without a staple, and those near their end. They never wait for the end of a pause, and nobody is asked about
// one that has not come again since it was asked about last: it is asleep then, until it comes.

// What is known of the visits of a peer since it was asked about last.
const (
	unseen int32 = iota
	visited
	asleep // and it was due
)

// A visits tells whether a peer has come. It may be used by several goroutines at a time.
type visits struct{ seen atomic.Int32 }

// Visit notes that the peer has come, and reports whether it is to be woken: see [Schedule.Wake].
func (v *visits) Visit() (wake bool) {
	return v.seen.Load() != visited && v.seen.Swap(visited) == asleep
}

// Peer reports whether it is one.
func (it *Item) Peer() bool { return it.peer }

// SetPeer makes it a peer, or a certificate that is served.
func (s *Schedule) SetPeer(it *Item, peer bool, now time.Time) {
	s.tree.now = wall.MicroOf(now)
	if it.peer == peer {
		return
	}
	waits := it.state == Waiting || it.state == Following
	if it.route != nil && !it.gone {
		s.withdraw(it)
	}
	it.peer = peer
	switch {
	case it.gone, it.route == nil:
	case waits && (it.forced || !peer):
		s.comeDue(it)
	case waits:
		s.doze(it)
	case it.state == Storing && it.then == Following:
		it.then = Waiting
	case !peer && it.dormant:
		s.Wake(it, now)
	}
}

// Wake makes a peer that slept due if that is time.
func (s *Schedule) Wake(it *Item, now time.Time) {
	s.tree.now = wall.MicroOf(now)
	if it.dormant && !it.gone {
		s.comeDue(it)
	}
}

// doze makes a peer that is due sleep, unless it has come again.
func (s *Schedule) doze(it *Item) {
	if !it.seen.CompareAndSwap(unseen, asleep) && it.seen.Load() == visited {
		s.comeDue(it)
		return
	}
	it.state, it.dormant = Idle, true
	s.watch(it)
}

// call puts a peer among those that wait at its host, or puts it off if what it needs pauses.
func (s *Schedule) call(it *Item) {
	if it.opening(s.tree.now) == nil && it.route.blocks() != nil && (!s.peeks || it.peeked) {
		s.putOff(it, true)
		return
	}
	it.queued = inPeers
	h := it.route.ends[0].host()
	if h.visitors.peers = append(h.visitors.peers, it); len(h.visitors.peers) == 1 {
		s.tree.callers = append(s.tree.callers, h)
	}
	s.watch(it)
}

// putOff ends a round of a peer before it began, since what it needs pauses; and tells of it, if that is news.
func (s *Schedule) putOff(it *Item, tell bool) {
	it.state, it.queued = Idle, notQueued
	it.toldFirst, it.peeked = true, false
	for _, end := range it.route.ends {
		for n := end.parent; n != nil; n = n.parent {
			n.pause.called = n.pause.called || n.pause.state == paused
		}
	}
	if by := it.route.blocks(); tell && by != nil {
		s.notices = append(s.notices, Notice{it, Paused, by.pause.err})
	}
	h := &it.held
	if !h.current(s.tree.now) && !h.revoked { // whoever comes next starts it
		s.watch(it)
		return
	}
	wait := min(h.patience(s.tree.now)/4, 5*minute)
	s.schedule(it, it.clip(max(it.route.opens(), s.tree.now)+minPause+s.tree.rand.jitter(wait), s.tree.now))
}

// dismiss puts the peers off that wait where a pause has just begun.
func (s *Schedule) dismiss() {
	for _, h := range s.tree.fallen {
		h.visitors.peers = slices.DeleteFunc(h.visitors.peers, func(it *Item) bool {
			if it.queued != inPeers || it.opening(s.tree.now) != nil || it.route.blocks() == nil || s.peeks && !it.peeked {
				return false
			}
			s.putOff(it, true)
			return true
		})
		if len(h.visitors.peers) == 0 {
			s.tree.callers = slices.DeleteFunc(s.tree.callers, func(o *node) bool { return o == h })
		}
	}
	s.tree.fallen = nil
}

// opening returns an end of its route that a peer may be asked about at now, or nil.
func (it *Item) opening(now int64) *node {
	for _, end := range it.route.ends {
		if end.open(now) {
			return end
		}
	}
	return nil
}

// open reports whether all that is above n may be asked.
func (n *node) open(now int64) bool {
	for n = n.parent; n != nil; n = n.parent {
		if !n.admits(now) {
			return false
		}
	}
	return true
}

// urgent reports whether one that is served is to go before all peers.
func (t *tree) urgent() bool {
	for _, q := range []*queue[*node]{&t.hosts, &t.full} {
		if q.len() > 0 && q[byClass][0].class <= nearEnd {
			return true
		}
	}
	return false
}

// nextPeer returns which peer's turn it is, and at which end of its route, or nil. Without an end, it is to be looked for
// in the cache alone.
func (s *Schedule) nextPeer() (*Item, *node) {
	t := &s.tree
	if t.calls >= t.share {
		return nil, nil
	}
	for i := 0; i < len(t.callers); { // past those at their limit, and there are as many workers at least as of these
		h := t.callers[i]
		it, end := s.nextAt(h)
		if len(h.visitors.peers) == 0 {
			t.callers = append(t.callers[:i], t.callers[i+1:]...)
		} else if it != nil {
			t.callers = append(append(t.callers[:i], t.callers[i+1:]...), h)
		} else {
			i++
		}
		if it != nil {
			return it, end
		}
	}
	return nil, nil
}

// nextAt returns which peer's turn it is at h, and where, or nil.
func (s *Schedule) nextAt(h *node) (*Item, *node) {
	t, v := &s.tree, h.visitors
	for len(v.peers) > 0 {
		it := v.peers[0]
		if it.queued == inPeers && !it.gone && it.route.ends[0].host() == h {
			end := it.opening(t.now)
			switch {
			case end != nil:
				if at := end.host(); at.inFlight >= t.share || at.visitors.calls >= max(t.share/2, 1) {
					return nil, nil
				}
			case it.route.blocks() == nil:
				return nil, nil // it recovers, and others are in flight
			case s.peeks && !it.peeked:
				it.peeked = true
				s.peekers++
			default:
				v.peers[0], v.peers = nil, v.peers[1:]
				s.putOff(it, true)
				continue
			}
			v.peers[0], v.peers = nil, v.peers[1:]
			return it, end
		}
		v.peers[0], v.peers = nil, v.peers[1:] // it has been withdrawn
	}
	v.peers = nil
	return nil, nil
}
