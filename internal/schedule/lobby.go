package schedule

import "slices"

// A lobby has the hosts where somebody waits otherwise than in the queues of the tree: whom Refresh asks about, before all
// others, and peers, in turns with them.
type lobby struct {
	asked   []*node // hosts about whose certificates Refresh asks, the next first
	callers []*node // hosts about whose peers somebody waits to ask, the next first
	calls   int32   // workers of peers
	called  bool    // whoever was asked about last is one
}

// visitors are those who come to a host otherwise than through the queues.
type visitors struct {
	asked  []*Item     // by Refresh, the first first
	peers  heap[*Item] // that wait
	calls  int32       // requests about peers in flight
	untold []*Item     // those beneath that wait for their first round, and some that did
	swept  int         // how many were left when the others were taken out
}

// call puts it among the peers that wait at its host.
func (l *lobby) call(it *Item, turn uint64) {
	it.class, it.turn = fresh, turn
	h := it.route.ends[0].host()
	if h.visitors.peers.put(it, byClass); len(h.visitors.peers) == 1 {
		l.callers = append(l.callers, h)
	}
}

func (l *lobby) uncall(it *Item) {
	h := it.route.ends[0].host()
	if h.visitors.peers.drop(it, byClass); len(h.visitors.peers) == 0 {
		l.callers = slices.DeleteFunc(l.callers, func(o *node) bool { return o == h })
	}
}

// nextAsked returns whose turn it is among those that Refresh asks about, and at which end of its route, or nil.
func (l *lobby) nextAsked(share int32) (*Item, *node) {
	for i, h := range l.asked {
		if h.inFlight >= share {
			continue // of these there are two at most
		}
		it := h.visitors.asked[0]
		h.visitors.asked[0] = nil
		h.visitors.asked = h.visitors.asked[1:]
		copy(l.asked[1:], l.asked[:i])
		l.asked = l.asked[1:]
		if len(h.visitors.asked) > 0 {
			l.asked = append(l.asked, h)
		}
		return it, it.route.ends[0]
	}
	return nil, nil
}

// ask puts it before all others of its host: see Schedule.Refresh.
func (l *lobby) ask(it *Item) {
	h := it.route.ends[0].host()
	if h.visitors.asked = append(h.visitors.asked, it); len(h.visitors.asked) == 1 {
		l.asked = append(l.asked, h)
	}
}

func (l *lobby) unask(it *Item) {
	h := it.route.ends[0].host()
	h.visitors.asked = slices.DeleteFunc(h.visitors.asked, func(o *Item) bool { return o == it })
	if len(h.visitors.asked) == 0 {
		l.asked = slices.DeleteFunc(l.asked, func(o *node) bool { return o == h })
	}
}
