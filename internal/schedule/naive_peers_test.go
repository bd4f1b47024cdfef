package schedule

import (
	"cmp"
	"maps"
	"slices"
)

// setPeer makes it a peer, or one that is served.
func (n *naive) setPeer(e *entry, peer bool) {
	if e.peer == peer || e.where == inAsked {
		e.peer = peer
		return
	}
	due := e.state == Waiting || e.state == Following || e.dormant
	e.peer, e.dormant, e.lone = peer, false, true
	naivelyWithdraw(n, e)
	switch {
	case due && peer:
		naivelyDoze(n, e)
	case due:
		n.comeDue(e)
	case e.state == Storing && e.then == Following:
		e.then, e.due = Scheduled, e.it.due
	}
}

// visit is somebody who comes with it.
func (n *naive) visit(e *entry, wake bool) {
	if wake != (e.seen == asleep) {
		n.fault("item %v is to be woken: %v", name(e.it, 0), wake)
	}
	e.seen = visited
}

func (n *naive) wake(e *entry) {
	if e.dormant {
		n.comeDue(e)
	}
}

// naivelyDoze makes a peer that is due sleep, unless it has come since it was asked about last.
func naivelyDoze(n *naive, e *entry) {
	naivelyWithdraw(n, e)
	if e.seen == visited {
		n.comeDue(e)
	} else {
		e.state, e.dormant, e.seen = Idle, true, asleep
	}
}

// naivelyOpening returns where a peer may be asked about, or nil.
func naivelyOpening(n *naive, e *entry) *[4]scope {
	for i, w := range e.ways {
		if !slices.ContainsFunc(w[:3], func(sc scope) bool { return !naivelyAdmits(n, sc, n.now, true) }) {
			return &e.ways[i]
		}
	}
	return nil
}

// naivelyBarred reports whether the round of a peer ends before it has begun.
func naivelyBarred(n *naive, e *entry) bool {
	blocked, _ := naivelyBlocked(n, e)
	return blocked && naivelyOpening(n, e) == nil && (!n.peeks || e.peeked)
}

// naivelyPutOff returns when one is due that is put off, and that has an answer.
func naivelyPutOff(n *naive, e *entry) span {
	opens := far
	for _, w := range e.ways {
		last := n.now
		for _, sc := range w[:3] {
			if naivelyPaused(n, sc) {
				last = max(last, naivelyOpens(n, sc, true))
			}
		}
		opens = min(opens, last)
	}
	patience := hour
	if naivelyCurrent(n, e) {
		patience = (e.held.end - n.now) / 2
	}
	return span{opens + second, opens + second + min(patience/4, 5*minute)}
}

// putOff ends the round of a peer, at once.
func (n *naive) putOff(e *entry, tell bool, spans ...span) {
	naivelyWithdraw(n, e)
	e.told, e.peeked = true, false
	if tell {
		n.refused = append(n.refused, e.it)
	}
	if naivelyCurrent(n, e) || e.held.revoked {
		e.state, e.due = Scheduled, naivelyDueIn(n, e, append(spans, naivelyPutOff(n, e))...)
	} else {
		e.state, e.dormant, e.seen = Idle, true, asleep
	}
}

// naivelyLeave: nobody waits for it any more.
func naivelyLeave(n *naive, e *entry) {
	if e.where == inPeers {
		naivelyWithdraw(n, e)
		e.state, e.dormant, e.seen = Idle, true, asleep
	}
}

// naivelyCallers returns the peers that wait, at each host the first first.
func naivelyCallers(n *naive) map[string][]*entry {
	all := make(map[string][]*entry)
	for _, e := range n.entries {
		if e.where == inPeers {
			all[e.at[0].Host] = append(all[e.at[0].Host], e)
		}
	}
	for _, here := range all {
		slices.SortFunc(here, func(a, b *entry) int { // what came together, as the schedule likes
			return cmp.Or(cmp.Compare(a.arrived, b.arrived), cmp.Compare(a.it.turn, b.it.turn))
		})
	}
	return all
}

// naivelyBackInTurn takes over whether the first of those who wait at a host now came before the last of the others left there, if all
// that was in this operation: if not, it is no longer its turn since then.
func naivelyBackInTurn(n *naive) {
	for h, here := range naivelyCallers(n) {
		if slices.ContainsFunc(here, func(e *entry) bool { return e.arrived != n.op }) {
			continue
		}
		for _, o := range n.s.tree.callers {
			if o.key.url == h {
				break
			}
			if n.calls[o.key.url] > n.calls[h] {
				n.calls[h] = n.op
			}
		}
	}
}

// naivelyCalls returns how many workers peers have, and how many requests about them are under way at a host.
func naivelyCalls(n *naive, host string) (all, here int) {
	for _, e := range n.entries {
		if e.counted {
			all++
			if e.state == Working && e.it.via != nil && naivelyPath(n, e)[0].host == host {
				here++
			}
		}
	}
	return all, here
}

// naivelyChoosePeers returns which peers may be next, and the task; got is preferred, if it is one. served are those others
// that can be asked about.
func naivelyChoosePeers(n *naive, served []way, got *entry) (*entry, Task) {
	if calls, _ := naivelyCalls(n, ""); calls >= n.share || n.called && n.s.workers == 1 && len(served) > 0 {
		return nil, Nothing
	}
	for _, w := range served {
		if naivelyRank(n, []way{w}, 0, false) <= int64(nearEnd) {
			return nil, Nothing
		}
	}
	callers := naivelyCallers(n)
	hosts := slices.SortedFunc(maps.Keys(callers), func(a, b string) int { return cmp.Compare(n.calls[a], n.calls[b]) })
	var first *entry
	var task Task
	for _, h := range hosts {
		if first != nil && n.calls[h] != n.calls[first.at[0].Host] {
			break
		}
		for _, e := range callers[h] {
			blocked, _ := naivelyBlocked(n, e)
			w, t := naivelyOpening(n, e), Peek
			if w != nil {
				t = Ask
				if _, here := naivelyCalls(n, w[0].host); here >= max(n.share/2, 1) || naivelyInFlight(n, w[0]) >= n.share {
					break
				}
			} else if naivelyBarred(n, e) {
				continue // and it is put off
			} else if !blocked {
				break
			}
			if first == nil || e == got {
				first, task = e, t
			}
			break
		}
	}
	return first, task
}

// naivelyServed returns the ways to those that are served and that can be asked about now.
func naivelyServed(n *naive) (all []way) {
	for _, e := range n.entries {
		for _, w := range e.ways {
			if e.where == inRoute && naivelyOpen(n, w[:]) {
				all = append(all, way{e, w})
			}
		}
	}
	return all
}

// naivelyDismiss takes over whom the schedule has put off of those that wait where a pause lets nobody through any more. Those that
// are asked about at several hosts may wait for their turn first.
func naivelyDismiss(n *naive, before map[*entry]span) {
	for _, e := range n.entries {
		if e.where != inPeers || !naivelyBarred(n, e) {
			continue
		}
		several := slices.ContainsFunc(e.at, func(u Source) bool { return u.Host != e.at[0].Host })
		switch left := e.it.queued != inPeers; {
		case left:
			n.putOff(e, true, before[e])
		case !several:
			n.fault("item %v waits in a pause", name(e.it, 0))
		}
	}
}

// naivelyPutOffs returns when those peers would be due that wait and have an answer.
func naivelyPutOffs(n *naive) map[*entry]span {
	all := make(map[*entry]span)
	for _, e := range n.entries {
		if e.peer {
			all[e] = naivelyPutOff(n, e)
		}
	}
	return all
}

// naivelyLookAtPeers does what is due about peers; was is who of them was barred, and when they would have been due, before anybody
// looked at others.
func naivelyLookAtPeers(n *naive, due []*entry, barred map[*entry]bool, before map[*entry]span) {
	for _, e := range due {
		naivelyWithdraw(n, e)
		switch now := naivelyBarred(n, e); {
		case e.seen != visited:
			naivelyDoze(n, e)
		case now && barred[e], (now || barred[e]) && e.it.queued != inPeers:
			hull := naivelyPutOff(n, e)
			hull.from, hull.to = min(hull.from, before[e].from), max(hull.to, before[e].to)
			n.putOff(e, true, hull)
		default:
			naivelyQueue(n, e, inPeers)
		}
	}
}
