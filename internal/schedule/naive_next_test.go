package schedule

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// look does what is due.
func (n *naive) look() {
	var aged, due []*entry
	barred, before := make(map[*entry]bool), naivelyPutOffs(n)
	for e := range before {
		barred[e] = naivelyBarred(n, e)
	}
	for _, e := range n.entries {
		if stage := naivelyStage(n, e); stage > e.held.stage && !e.it.gone {
			e.held.stage = stage
			kind := StapleEnding
			if stage == 3 {
				kind = StapleEnded
				if e.state != Idle && !e.over && !e.held.revoked && !e.peer {
					for _, w := range e.ways {
						for _, sc := range w[:3] {
							n.trouble(sc).wanted = n.now
						}
					}
				}
			}
			if !e.held.quiet {
				n.notices = append(n.notices, Notice{Item: e.it, Kind: kind})
			}
			if e.where == inRoute {
				aged = append(aged, e)
			}
		}
	}
	for _, e := range aged {
		n.comeDue(e)
	}
	for _, e := range n.entries {
		switch {
		case e.it.gone:
		case n.now >= e.expires && !e.over && (e.state != Idle || e.dormant):
			e.over = true
			n.notices = append(n.notices, Notice{Item: e.it, Kind: Expired})
			if e.state != Working {
				naivelyRest(n, e)
			}
		case e.state == Scheduled && e.due <= n.now && e.peer && !e.forced:
			due = append(due, e)
		case e.state == Scheduled && e.due <= n.now:
			n.comeDue(e)
		}
	}
	naivelyLookAtPeers(n, due, barred, before)
}

// naivelySettle takes over what the schedule has chosen among those whose staples ended together, and forgets what nobody
// needs to remember.
func naivelySettle(n *naive) {
	for _, e := range n.entries {
		if !naivelyEnded(n, e) || e.forced || e.it.gone || e.peer {
			continue
		}
		real, mine := e.it, e.state
		if mine == Storing && e.then != Idle && real.state == Storing && e.lone == false {
			if real.then == Following || real.then == Scheduled || real.then == Waiting {
				e.then, e.due = real.then, real.due
			}
			continue
		}
		if mine != Waiting && mine != Following && mine != Scheduled {
			continue
		}
		switch {
		case mine == real.state && e.where == real.queued && (mine != Scheduled || e.due == real.due):
		case e.lone:
		case real.state == Following:
			naivelyWithdraw(n, e)
			if mine != Following {
				e.state, e.arrived, e.since = Following, n.op, n.now
			}
		case real.state == Scheduled: // it leads from now on, when the intervals say
			naivelyWithdraw(n, e)
			e.state, e.due = Scheduled, real.due
		case real.state == Waiting:
			if blocked, _ := naivelyBlocked(n, e); real.queued == inPeeks && (!n.peeks || e.peeked || !blocked) {
				n.fault("item %v peeks", name(e.it, 0))
			}
			naivelyQueue(n, e, real.queued)
		}
	}
	for sc := range n.scopes {
		if sc.route != "" {
			continue
		}
		if naivelyNode(n, sc) == nil {
			delete(n.scopes, sc)
		}
	}
	for sc := range n.scopes {
		if sc.route != "" && !slices.ContainsFunc(n.entries, func(e *entry) bool { return e.takes(sc) }) {
			delete(n.scopes, sc)
		}
	}
	naivelyTakeTurns(n, n.asked, inAsked)
	naivelyTakeTurns(n, n.calls, inPeers)
	naivelyBackInTurn(n)
}

// naivelyTakeTurns notes since when it is the turn of the hosts of those that wait in q.
func naivelyTakeTurns(n *naive, since map[string]int, q queued) {
	hosts := make(map[string]bool)
	for _, e := range n.entries {
		if e.where == q {
			hosts[e.at[0].Host] = true
		}
	}
	for h := range hosts {
		if since[h] == 0 {
			since[h] = n.op
		}
	}
	maps.DeleteFunc(since, func(h string, _ int) bool { return !hosts[h] })
}

// naivelyNode returns the schedule's own of sc.
func naivelyNode(n *naive, sc scope) *node {
	key := nodeKey{hostLevel, sc.host, ""}
	if sc.url != "" {
		key = nodeKey{urlLevel, sc.url[1:], ""}
	}
	if sc.ca != "" {
		key = nodeKey{caLevel, sc.url[1:], sc.ca}
	}
	return n.s.tree.nodes[key]
}

// next checks whether it may be next, and makes it so. If the schedule has not looked in time, some that it could
// be are missing.
func (n *naive) next(it *Item, task Task, looked bool) {
	working, peekers := 0, 0
	for _, e := range n.entries {
		if e.state == Working || e.state == Storing {
			working++
		}
		if e.state == Working && e.it.via == nil && e.it != it && !e.counted {
			peekers++
		}
	}
	if task != Nothing && working >= n.s.workers {
		n.fault("more than %d workers", n.s.workers)
		return
	}
	got, before := n.of(it), naivelyPutOffs(n)
	defer func() { naivelyDismiss(n, before) }()
	want, kind := naivelyChoose(n, working, peekers, got)
	switch {
	case task == kind && (task == Nothing || slices.Contains(want, got)):
	case !looked && got != nil && got.where == inPeers: // it may be that somebody more urgent can be asked about
	case !looked && (task == Nothing || task == Ask && got.where == inRoute && naivelyOpen(n, naivelyPath(n, got))):
	default:
		var names []any
		for _, e := range want {
			names = append(names, name(e.it, 0))
		}
		n.fault("next is task %d, which is none of %v with task %d", task, names, kind)
		return
	}
	if task == Nothing {
		return
	}
	e := n.of(it)
	host := e.at[0].Host
	switch e.where {
	case inAsked:
		delete(n.asked, host)
	case inPeers:
		delete(n.calls, host)
	}
	n.called, e.counted = e.peer, e.peer
	if e.peer {
		e.seen = unseen
	}
	naivelyWithdraw(n, e)
	e.state, e.began, e.beganOp, e.passed = Working, n.now, n.op, e.forced
	if task == Peek {
		e.peeked = true
		return
	}
	for _, sc := range naivelyPath(n, e) {
		n.trouble(sc).served = n.op
	}
}

// naivelyOpen reports whether all of these can be asked.
func naivelyOpen(n *naive, scopes []scope) bool {
	return !slices.ContainsFunc(scopes, func(sc scope) bool { return sc.route == "" && !naivelyAdmits(n, sc, n.now, false) })
}

// naivelyPath returns the scopes through which a worker has gone to it.
func naivelyPath(n *naive, e *entry) []scope {
	for i, u := range e.at {
		if ca := e.it.via.parent; u.URL == ca.key.url && ca.key.ca == e.ca {
			return e.ways[i][:]
		}
	}
	n.fault("item %v is asked about elsewhere", name(e.it, 0))
	return e.ways[0][:]
}

// naivelyChoose returns those that may be next, got among them if the schedule's way to it was the right one.
func naivelyChoose(n *naive, working, peekers int, got *entry) (all []*entry, task Task) {
	if working >= n.s.workers {
		return nil, Nothing
	}
	// Refresh: host by host, and no host beyond its share.
	first := 0
	for h, since := range n.asked {
		if naivelyInFlight(n, scope{host: h}) < n.share && (first == 0 || since < first) {
			first = since
		}
	}
	for h, since := range n.asked {
		if since == first && naivelyInFlight(n, scope{host: h}) < n.share {
			var here []*entry
			for _, e := range n.entries {
				if e.where == inAsked && e.at[0].Host == h {
					here = append(here, e)
				}
			}
			all = append(all, earliest(here, func(e *entry) int64 { return int64(e.arrived) })...)
		}
	}
	if len(all) > 0 {
		return all, Ask
	}
	for _, e := range n.entries {
		if e.where == inPeeks && peekers < n.share {
			all = append(all, e)
		}
	}
	if len(all) > 0 {
		return all, Peek
	}
	// The others: a walk down the tree, from the hosts that have less than their share, if there are any.
	served := naivelyServed(n)
	if e, task := naivelyChoosePeers(n, served, got); e != nil {
		return []*entry{e}, task
	}
	var free, full []way
	for _, w := range served {
		if naivelyInFlight(n, w.path[0]) < n.share {
			free = append(free, w)
		} else {
			full = append(full, w)
		}
	}
	ways := free
	if len(free) == 0 {
		ways = full
	}
	if len(ways) == 0 {
		return nil, Nothing
	}
	oldest := false
	for level := range 4 {
		groups := make(map[scope][]way)
		for _, w := range ways {
			groups[w.path[level]] = append(groups[w.path[level]], w)
		}
		var best []scope
		var least [2]int64
		for sc, g := range groups {
			rank := [2]int64{naivelyRank(n, g, level, oldest), int64(n.trouble(sc).served)}
			if c := slices.Compare(rank[:], least[:]); best == nil || c < 0 {
				best, least = []scope{sc}, rank
			} else if c == 0 {
				best = append(best, sc)
			}
		}
		sc := best[0]
		if got != nil && got.it.via != nil {
			if p := naivelyPath(n, got); slices.Contains(best, p[level]) { // among equals, as it likes
				sc = p[level]
			}
		}
		ways = groups[sc]
		oldest = oldest || level < 3 && naivelyPaused(n, sc)
	}
	for _, w := range ways {
		all = append(all, w.e)
	}
	if oldest {
		return earliest(earliest(all, func(e *entry) int64 { return e.askedAt }), func(e *entry) int64 { return int64(e.arrived) }), Ask
	}
	return earliest(earliest(all, func(e *entry) int64 { return int64(e.class) }), func(e *entry) int64 { return int64(e.arrived) }), Ask
}

// A way is a certificate, and how to get at it.
type way struct {
	e    *entry
	path [4]scope
}

// naivelyRank returns how urgent the most urgent of those beneath a scope of a level is, or when the one was asked about
// about which nobody was for the longest time.
func naivelyRank(n *naive, ways []way, level int, oldest bool) int64 {
	best := far
	for _, w := range ways {
		r := int64(w.e.class)
		for _, sc := range w.path[level:3] {
			if t := n.trouble(sc); t.state == paused && t.failures >= 3 {
				r = int64(patient) // others may have something to lose
			}
		}
		if oldest {
			r = w.e.askedAt
		}
		best = min(best, r)
	}
	return best
}

func earliest(all []*entry, by func(*entry) int64) (first []*entry) {
	for _, e := range all {
		switch {
		case len(first) == 0 || by(e) < by(first[0]):
			first = []*entry{e}
		case by(e) == by(first[0]):
			first = append(first, e)
		}
	}
	return first
}

// looked reports whether a schedule has done what is due.
func looked(s *Schedule, now int64) bool {
	at := s.When()
	return at.IsZero() || at.UnixMicro() > now
}

// compare returns how the schedule differs.
func (n *naive) compare(notices []Notice) error {
	defer func() { n.notices, n.refused, n.began = nil, nil, false }()
	naivelySettle(n)
	n.tell(notices)
	if n.err != nil {
		return n.err
	}
	led := make(map[string]any)
	for _, e := range n.entries {
		it := e.it
		switch {
		case it.gone:
			continue
		case it.state != e.state || it.state == Storing && it.then != e.then || it.queued != e.where:
			return fmt.Errorf("item %v is %v, %d, then %v, instead of %v, %d, then %v", name(it, 0), it.state, it.queued, it.then, e.state, e.where, e.then)
		case it.state == Scheduled && it.due != e.due:
			return fmt.Errorf("item %v is due in %v instead of %v", name(it, 0), it.due-n.now, e.due-n.now)
		case it.age != e.askedAt || it.tries != int32(e.tries) || it.fails != int32(e.fails):
			return fmt.Errorf("item %v has other failures", name(it, 0))
		case it.forced != e.forced || it.over != e.over || it.toldFirst != e.told:
			return fmt.Errorf("item %v: Refresh %v, expired %v, told %v", name(it, 0), it.forced, it.over, it.toldFirst)
		case it.queued == inRoute && it.class != e.class:
			return fmt.Errorf("item %v is in class %d instead of %d", name(it, 0), it.class, e.class)
		}
		if it.peer != e.peer || it.dormant != e.dormant || it.seen.Load() != e.seen {
			return fmt.Errorf("item %v is a peer: %v, asleep: %v, seen: %d, instead of %v, %v, %d", name(it, 0), it.peer, it.dormant, it.seen.Load(), e.peer, e.dormant, e.seen)
		}
		if naivelyEnded(n, e) && !e.lone && !e.forced && !e.peer && (e.where == inRoute || it.via != nil && e.began >= e.held.end) {
			key := fmt.Sprint(e.name, e.held.end)
			if led[key] != nil && looked(n.s, n.now) {
				return fmt.Errorf("items %v and %v both ask for all whose staples ended then", name(it, 0), led[key])
			}
			led[key] = name(it, 0)
		}
	}
	for sc, t := range n.scopes {
		if sc.route != "" {
			continue
		}
		p := &naivelyNode(n, sc).pause
		switch {
		case p.state != t.state || p.state == recovering && (p.window != int32(t.window) || p.ceiling != int32(t.ceiling)):
			return fmt.Errorf("%v is %d with a window of %d up to %d, instead of %d, %d, %d", sc, p.state, p.window, p.ceiling, t.state, t.window, t.ceiling)
		case p.state == paused && (p.since != t.since || p.failedAt != t.failedAt || p.failures != int32(t.failures) || p.gap != t.gap):
			return fmt.Errorf("%v has failed otherwise", sc)
		case p.state == paused && looked(n.s, n.now) && naivelyNode(n, sc).opens(false) != naivelyOpens(n, sc, false):
			return fmt.Errorf("%v opens after %v instead of %v, as %+v and %+v", sc, time.Duration(naivelyNode(n, sc).opens(false)-n.now)*time.Microsecond,
				time.Duration(naivelyOpens(n, sc, false)-n.now)*time.Microsecond, *p, *t)
		}
	}
	return n.err
}

// tell checks what others were told.
func (n *naive) tell(notices []Notice) {
	var rest []Notice
	for _, o := range notices {
		if i := slices.Index(n.refused, o.Item); o.Kind == Paused && o.Err != nil && i >= 0 {
			n.refused = slices.Delete(n.refused, i, i+1)
		} else if o.Kind == Paused {
			e := n.of(o.Item)
			follows := e != nil && e.state == Scheduled && naivelyEnded(n, e) && n.began // it did, and leads from now on
			if e == nil || e.told || e.state != Waiting && e.state != Following && !follows || o.Err == nil {
				n.fault("item %v is told of a pause", name(o.Item, 0))
				return
			}
			if blocked, _ := naivelyBlocked(n, e); !blocked && !n.began {
				n.fault("item %v is told of a pause, and nothing that it needs pauses", name(o.Item, 0))
			}
			e.told = true
		} else {
			rest = append(rest, Notice{Item: o.Item, Kind: o.Kind})
		}
	}
	for _, e := range n.entries {
		blocked, authority := naivelyBlocked(n, e)
		if e.told || e.it.gone || e.where != inRoute && e.state != Following || !blocked {
			continue
		}
		if !authority || looked(n.s, n.now) && n.now >= e.since+5*second {
			n.fault("item %v is not told that what it needs pauses", name(e.it, 0))
		}
	}
	for _, it := range n.refused {
		n.fault("item %v is not told that it was put off", name(it, 0))
	}
	for _, want := range n.notices {
		if !slices.Contains(rest, want) {
			n.fault("item %v is not told of %d", name(want.Item, 0), want.Kind)
		}
	}
	if len(rest) != len(n.notices) {
		n.fault("%d notices instead of %d", len(rest), len(n.notices))
	}
}
