package schedule

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-staple/staple/internal/wall"
)

// Peers are certificates that nobody here serves: somebody comes with one, and is waited for. They stand in queues of
// their own, host by host, beside those of the tree, so that whoever makes many of them keeps nobody else from their
// turn: they have half of the workers at most, in turns with others if there is one, and one host half of these. They come
// after the first rounds of others, those without a staple, and those near their end. None of them waits for the end of a
// pause, but one that comes when the pause lets a request through may have it. And nobody is asked about one that has not
// come again since it was asked about last: it sleeps then, until it comes.

// What is known of the visits of a peer since it was asked about last.
const (
	unseen int32 = iota
	visited
	asleep // it was due since, or put off
)

// A visits tells whether a peer has come. It may be used by several goroutines at a time.
type visits struct{ seen atomic.Int32 }

// Asleep reports whether Visit would have it woken.
func (v *visits) Asleep() bool { return v.seen.Load() == asleep }

// Visit notes that the peer has come, and reports whether it is to be woken: see [Schedule.Wake].
func (v *visits) Visit() (wake bool) {
	return v.seen.Load() != visited && v.seen.Swap(visited) == asleep
}

// SetPeer makes it a peer, or a certificate that is served.
func (s *Schedule) SetPeer(it *Item, peer bool, now time.Time) {
	s.tree.now = wall.MicroOf(now)
	if it.peer == peer {
		return
	}
	it.peer = peer
	if it.gone || it.route == nil || it.queued == inAsked {
		return
	}
	due := it.state == Waiting || it.state == Following || it.dormant
	s.withdraw(it)
	switch {
	case due && peer:
		s.doze(it)
	case due:
		s.comeDue(it)
	case it.state == Storing && it.then == Following:
		it.then = Scheduled // for when it would have led
	}
	s.watch(it)
}

// Wake makes a peer that slept due.
func (s *Schedule) Wake(it *Item, now time.Time) {
	s.tree.now = wall.MicroOf(now)
	if it.dormant {
		s.comeDue(it)
	}
}

// doze makes a peer that is due sleep, unless it has come again.
func (a *agenda) doze(it *Item) {
	if it.seen.CompareAndSwap(unseen, asleep); it.seen.Load() == visited {
		a.comeDue(it)
		return
	}
	it.state, it.dormant = Idle, true
	a.watch(it)
}

// barred reports whether a peer is to be put off, since what it needs pauses, and lets nobody through now.
func (a *agenda) barred(it *Item) bool {
	return it.opening(a.tree.now) == nil && it.route.blocks() != nil && (!a.peeks || it.peeked)
}

// putOff ends a round of a peer before it began, since what it needs pauses, and tells of it if nobody knows yet.
func (a *agenda) putOff(it *Item, tell bool) {
	it.state, it.toldFirst, it.peeked = Idle, true, false
	if tell {
		a.notices = append(a.notices, Notice{it, Paused, it.route.blocks().pause.err})
	}
	h := &it.held
	if !h.current(a.tree.now) && !h.revoked {
		it.seen.Store(asleep) // whoever waited for it is told
		it.dormant = true
		a.watch(it)
		return
	}
	wait := min(h.patience(a.tree.now)/4, 5*minute)
	a.schedule(it, it.clip(max(it.opens(a.tree.now), a.tree.now)+minPause+a.tree.rand.jitter(wait), a.tree.now))
}

// dismiss puts peers off that wait where a pause lets nobody through any more.
func (a *agenda) dismiss() {
	for _, n := range a.tree.shut {
		for _, it := range slices.Clone(n.host().visitors.peers) {
			if a.barred(it) {
				a.withdraw(it)
				a.putOff(it, true)
			}
		}
	}
	a.tree.shut = nil
}

// opening returns an end of its route that a peer may be asked about at now, or nil.
func (it *Item) opening(now int64) *node {
	for _, end := range it.route.ends {
		n := end.parent
		for n != nil && n.admits(now, true) {
			n = n.parent
		}
		if n == nil {
			return end
		}
	}
	return nil
}

// nextPeer returns which peer's turn it is, and at which end of its route, or nil. Without an end, it is to be looked for
// in the cache alone.
func (s *Schedule) nextPeer() (*Item, *node) {
	t := &s.tree
	if len(t.callers) == 0 || t.calls >= t.share {
		return nil, nil
	}
	for _, q := range []*queue[*node]{&t.hosts, &t.full} { // what is served, and is to go before all peers
		if q.len() > 0 && (q[byClass][0].class <= nearEnd || t.called && s.workers == 1) {
			return nil, nil
		}
	}
	for i := 0; i < len(t.callers); { // past those that have all they may
		h := t.callers[i]
		it := h.visitors.peers[0]
		end := it.opening(t.now)
		switch {
		case s.barred(it):
			s.withdraw(it)
			s.putOff(it, true)
		case end != nil && end.host().mayCall(t.share), end == nil && it.route.blocks() != nil:
			t.uncall(it)
			if len(h.visitors.peers) > 0 {
				t.callers = append(slices.Delete(t.callers, i, i+1), h)
			}
			it.peeked = it.peeked || end == nil
			return it, end
		default:
			i++
		}
	}
	return nil, nil
}

// mayCall reports whether h has room for one more request about a peer.
func (h *node) mayCall(share int32) bool {
	return h.inFlight < share && h.visitors.calls < max(share/2, 1)
}

// Leave says that nobody waits for a peer any more, about which nothing is held, and reports whether it waited for its turn. It
// sleeps from then on.
func (s *Schedule) Leave(it *Item, now time.Time) bool {
	s.tree.now = wall.MicroOf(now)
	if it.queued != inPeers {
		return false
	}
	s.withdraw(it)
	it.seen.Store(asleep)
	it.state, it.dormant = Idle, true
	s.watch(it)
	return true
}
