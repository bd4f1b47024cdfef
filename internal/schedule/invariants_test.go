package schedule

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// invariants returns what is wrong within s, to which items were added.
func invariants(s *Schedule, items []*Item) error {
	if s.notices != nil || s.tree.told != nil {
		return errors.New("notices are left")
	}
	for _, check := range []func(*Schedule, []*Item) error{checkStates, checkTree, checkStanding, checkPeers, checkCohorts, checkAlarms} {
		if err := check(s, items); err != nil {
			return err
		}
	}
	return nil
}

// checkStates checks that whatever can be asked about is somewhere, and in one place.
func checkStates(s *Schedule, items []*Item) error {
	working, peekers := 0, 0
	for i, it := range items {
		switch {
		case it.gone && it.state != Idle && it.state != Working && it.state != Storing:
			return fmt.Errorf("item %v is gone, and %v", name(it, i), it.state)
		case (it.queued != notQueued) != (it.state == Waiting):
			return fmt.Errorf("item %v is %v, and queued: %d", name(it, i), it.state, it.queued)
		case (it.queued == inAsked) != (it.forced && it.state == Waiting):
			return fmt.Errorf("item %v is queued: %d, Refresh: %v", i, it.queued, it.forced)
		case it.waits != 0 && it.state != Waiting && it.state != Following:
			return fmt.Errorf("item %v is %v, and waits for its turn", name(it, i), it.state)
		case it.via != nil && it.state != Working:
			return fmt.Errorf("item %v is %v at a responder", name(it, i), it.state)
		case it.over && !it.forced && it.state != Idle && it.state != Working && it.state != Storing:
			return fmt.Errorf("item %v is %v although it has expired", name(it, i), it.state)
		case it.state == Idle && it.forced && !it.gone:
			return fmt.Errorf("item %v is idle although Refresh was called", name(it, i))
		}
		if due := it.due; !it.gone && (it.state == Scheduled || it.state == Storing && it.then == Scheduled) {
			h := &it.held
			switch {
			case due == far && (h.end == 0 || h.end < it.expires || h.revoked):
				return fmt.Errorf("item %v is scheduled for never", name(it, i))
			case due != far && h.end > s.tree.now && !h.revoked && due > h.end:
				return fmt.Errorf("item %v is scheduled past the end of its staple", name(it, i))
			}
		}
		if it.state == Working || it.state == Storing {
			working++
		}
		if it.state == Working && it.via == nil && !it.counted {
			peekers++
		}
		if n := count(s.peeking, it); it.queued == inPeeks && n == 0 {
			return fmt.Errorf("item %v is not among those that peek", name(it, i))
		}
	}
	switch {
	case working != s.working || working > s.workers:
		return fmt.Errorf("%d of %d workers work, counted: %d", working, s.workers, s.working)
	case peekers != s.peekers || peekers > int(s.tree.share):
		return fmt.Errorf("%d workers peek, counted: %d", peekers, s.peekers)
	}
	return nil
}

func count[E comparable](in []E, e E) (n int) {
	for _, o := range in {
		if o == e {
			n++
		}
	}
	return n
}

// late reports whether Look has not been called yet although it is time to look at n.
func (n *node) late(now int64) bool { return n.pos[byTime] != 0 && n.at <= now }

// A census is what a walk over the items finds at a node.
type census struct {
	waiting  [classes]int32
	inFlight int32
	kids     int32
	items    map[*Item]bool
}

// checkTree checks that each node counts what is beneath it, and that there are no others.
func checkTree(s *Schedule, items []*Item) error {
	t := &s.tree
	routes := make(map[*route]int32)
	nodes := make(map[*node]*census)
	at := func(n *node) *census {
		if nodes[n] == nil {
			nodes[n] = &census{items: make(map[*Item]bool)}
		}
		return nodes[n]
	}
	for i, it := range items {
		if it.gone && it.state != Working && it.state != Storing {
			if it.pos != [orders]int32{} {
				return fmt.Errorf("item %v is gone, and stands somewhere", name(it, i))
			}
			continue
		}
		routes[it.route]++
		for _, end := range it.route.ends {
			for n := end.parent; n != nil; n = n.parent {
				at(n).items[it] = true
			}
		}
		if it.queued == inRoute {
			for _, end := range it.route.ends {
				for n := end; n != nil; n = n.parent {
					at(n).waiting[it.class]++
				}
			}
		}
		if it.via != nil {
			for n := it.via; n != nil; n = n.parent {
				at(n).inFlight++
			}
		}
	}
	for r, refs := range routes {
		if t.routes[r.key] != r || r.refs != refs || len(r.ends) != len(r.urls) {
			return fmt.Errorf("%d items take route %q, counted: %d", refs, r.key, r.refs)
		}
		for i, end := range r.ends {
			if end.parent.key != (nodeKey{caLevel, r.urls[i], r.ca}) || end.route != r {
				return fmt.Errorf("route %q ends at %v", r.key, end.parent.key)
			}
			at(end)
			at(end.parent).kids++
		}
	}
	if len(routes) != len(t.routes) {
		return fmt.Errorf("%d routes, remembered: %d", len(routes), len(t.routes))
	}
	for k, n := range t.nodes {
		if n.key != k || n.level != k.level {
			return fmt.Errorf("node %v is remembered as %v", n.key, k)
		}
		at(n)
		if n.parent != nil {
			at(n.parent).kids++
		}
	}
	for n, c := range nodes {
		switch {
		case n.level != routeLevel && t.nodes[n.key] != n:
			return fmt.Errorf("node %v is forgotten", n.key)
		case n.level != routeLevel && (n.kids != c.kids || n.parent == nil && n.level != hostLevel):
			return fmt.Errorf("%d nodes beneath %v, counted: %d", c.kids, n.key, n.kids)
		case int(n.items) != len(c.items):
			return fmt.Errorf("%d items beneath %v, counted: %d", len(c.items), n.key, n.items)
		case n.waiting != c.waiting:
			return fmt.Errorf("%v wait beneath %v, counted: %v", c.waiting, n.key, n.waiting)
		case n.inFlight != c.inFlight:
			return fmt.Errorf("%d in flight beneath %v, counted: %d", c.inFlight, n.key, n.inFlight)
		case n.kids == 0 && n.level != routeLevel && (n.pause.state != paused || n.opens(false) <= t.now) && !n.late(t.now):
			return fmt.Errorf("node %v should have been forgotten", n.key)
		}
	}
	return nil
}

// checkHeap checks that h is a heap of want, in any order.
func checkHeap[E interface {
	comparable
	ranked() *rank
}](h heap[E], o order, want map[E]bool) error {
	for i, e := range h {
		switch {
		case !want[e]:
			return fmt.Errorf("order %d: a stranger stands at %d", o, i)
		case e.ranked().pos[o] != int32(i+1):
			return fmt.Errorf("order %d: what stands at %d believes that it stands at %d", o, i+1, e.ranked().pos[o])
		case i > 0 && e.ranked().before(h[(i-1)/2].ranked(), o):
			return fmt.Errorf("order %d: no heap at %d", o, i)
		}
	}
	if len(h) != len(want) {
		return fmt.Errorf("order %d: %d stand there instead of %d", o, len(h), len(want))
	}
	return nil
}

func checkQueue[E interface {
	comparable
	ranked() *rank
}](q *queue[E], want map[E]bool) error {
	for o := range byTime {
		if err := checkHeap(q[o], o, want); err != nil {
			return err
		}
	}
	return nil
}

// checkStanding checks that in each queue stand those who can be asked about, and nobody else.
func checkStanding(s *Schedule, items []*Item) error {
	t := &s.tree
	at := map[*queue[*node]]map[*node]bool{&t.hosts: {}, &t.full: {}}
	all := slices.Collect(maps.Values(t.nodes))
	for _, r := range t.routes {
		all = append(all, r.ends...)
		want := make(map[*Item]bool)
		for _, it := range items {
			if it.route == r && it.queued == inRoute {
				want[it] = true
			}
		}
		if err := checkQueue(&r.items, want); err != nil {
			return fmt.Errorf("route %q: %w", r.key, err)
		}
	}
	for _, n := range all {
		if at[&n.queue] == nil {
			at[&n.queue] = make(map[*node]bool)
		}
		can := n.level == routeLevel && n.route.items.len() > 0 ||
			n.level != routeLevel && n.queue.len() > 0 && n.admits(t.now, false)
		var q *queue[*node]
		if n.late(t.now) {
			continue
		}
		if can {
			q = n.above(t)
			if at[q] == nil {
				at[q] = make(map[*node]bool)
			}
			at[q][n] = true
		}
		if n.in != q {
			return fmt.Errorf("%v can be asked: %v, but it stands elsewhere", n.key, can)
		}
	}
	for q, want := range at {
		if err := checkQueue(q, want); err != nil {
			return err
		}
	}
	asked := make(map[*node]int)
	for _, it := range items {
		if it.queued == inAsked {
			h := it.route.ends[0].host()
			asked[h]++
			if count(h.visitors.asked, it) != 1 || count(t.asked, h) != 1 {
				return errors.New("one that Refresh asks about is not there, or twice")
			}
		}
	}
	if len(asked) != len(t.asked) {
		return fmt.Errorf("Refresh asks at %d hosts instead of %d", len(t.asked), len(asked))
	}
	return nil
}

// checkPeers checks that each peer that waits stands at its host and nowhere else, that each host of theirs has its turn, and
// that they count the workers that they have.
func checkPeers(s *Schedule, items []*Item) error {
	t := &s.tree
	waiting, calls, all := make(map[*node]map[*Item]bool), make(map[*node]int32), int32(0)
	for i, it := range items {
		switch {
		case (it.queued == inPeers) != (it.peer && it.state == Waiting && !it.forced):
			return fmt.Errorf("item %v is queued: %d, a peer: %v, Refresh: %v", name(it, i), it.queued, it.peer, it.forced)
		case it.peer && (it.cohort != nil || it.state == Following || it.waits != 0):
			return fmt.Errorf("item %v waits as if it were served", name(it, i))
		case it.dormant && (!it.peer || it.state != Idle || it.forced || it.gone || it.over || it.seen.Load() == unseen):
			return fmt.Errorf("item %v sleeps, a peer: %v, %v, seen: %d", name(it, i), it.peer, it.state, it.seen.Load())
		case it.counted && it.state != Working && it.state != Storing:
			return fmt.Errorf("item %v is %v, and counted among those that work", name(it, i), it.state)
		}
		if it.queued == inPeers {
			h := it.route.ends[0].host()
			if waiting[h] == nil {
				waiting[h] = make(map[*Item]bool)
			}
			waiting[h][it] = true
		}
		if it.counted {
			all++
			if it.via != nil {
				calls[it.via.host()]++
			}
		}
	}
	if all != t.calls || len(waiting) != len(t.callers) {
		return fmt.Errorf("peers have %d workers and wait at %d hosts, counted: %d, %d", all, len(waiting), t.calls, len(t.callers))
	}
	for _, n := range t.nodes {
		if n.level != hostLevel {
			continue
		}
		if n.visitors.calls != calls[n] || waiting[n] != nil && count(t.callers, n) != 1 {
			return fmt.Errorf("%d requests about peers at %v, counted: %d", calls[n], n.key, n.visitors.calls)
		}
		if err := checkHeap(n.visitors.peers, byClass, waiting[n]); err != nil {
			return fmt.Errorf("peers at %v: %w", n.key, err)
		}
	}
	return nil
}

// checkCohorts checks that whoever follows has somebody to follow.
func checkCohorts(_ *Schedule, items []*Item) error {
	for i, it := range items {
		c := it.cohort
		if c == nil {
			if !it.gone && (it.state == Following || it.state == Storing && it.then == Following) {
				return fmt.Errorf("item %v follows nobody", name(it, i))
			}
			continue
		}
		switch l := c.leader; {
		case it.gone || it.state == Idle:
			return fmt.Errorf("item %v is %v, and in a cohort", name(it, i), it.state)
		case c.route.cohorts[c.end] != c || it.held.end != c.end:
			return fmt.Errorf("item %v is in a cohort that is no more", name(it, i))
		case l == nil || l.cohort != c || l.gone || l.state == Idle || l.state == Following || l.state == Storing && l.then == Following:
			return fmt.Errorf("item %v is in a cohort that nobody leads", name(it, i))
		case l != it && count(c.rest, it) == 0:
			return fmt.Errorf("item %v is %v, and will never lead", name(it, i), it.state)
		case l != it && it.state != Following && !(it.state == Storing && it.then == Following):
			return fmt.Errorf("item %v is %v while another one leads", name(it, i), it.state)
		}
	}
	return nil
}

// checkAlarms checks that somebody will look when it is time.
func checkAlarms(s *Schedule, items []*Item) error {
	t := &s.tree
	want := make(map[*Item]bool)
	for i, it := range items {
		at := far
		if it.state == Scheduled {
			at = it.due
		}
		if (it.state != Idle || it.dormant) && !it.over {
			at = min(at, it.expires)
		}
		if it.waits != 0 {
			at = min(at, it.waits)
		}
		if h := &it.held; h.end > 0 {
			for _, moment := range []int64{h.end - (h.end-h.from)/4, h.end - (h.end-h.from)/20, h.end} {
				if moment > t.now {
					at = min(at, moment)
				}
			}
		}
		if it.gone || at == far {
			continue
		}
		if it.pos[byTime] == 0 || it.at > at {
			return fmt.Errorf("item %v is not looked at when it is time", name(it, i))
		}
		want[it] = true
	}
	for _, it := range s.alarms { // for nothing is no fault
		if it.gone {
			return errors.New("one that is gone is looked at")
		}
		want[it] = true
	}
	if err := checkHeap(s.alarms, byTime, want); err != nil {
		return err
	}
	nodes := make(map[*node]bool)
	for k, n := range t.nodes {
		if n.late(t.now) {
			nodes[n] = true
			continue
		}
		if n.pause.state == paused && n.inFlight == 0 && (n.waiting != [classes]int32{} || n.kids == 0) && n.opens(false) > t.now {
			nodes[n] = true
			if n.pos[byTime] == 0 || n.at != n.opens(false) {
				return fmt.Errorf("node %v is not looked at when its pause lets one through", k)
			}
		}
	}
	for _, n := range t.alarms {
		nodes[n] = true
	}
	return checkHeap(t.alarms, byTime, nodes)
}

// name returns how its owner calls it, or its number.
func name(it *Item, i int) any {
	if it.Owner != nil {
		return it.Owner
	}
	return i
}
