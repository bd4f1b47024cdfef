package schedule

// An agenda moves items from one state to the next: it knows what each does when its time comes, and when that is. Whose
// turn it is among those that wait is the tree's business, and workers are the Schedule's.
type agenda struct {
	tree    tree
	peeks   bool
	alarms  heap[*Item]
	peeking []*Item
	notices []Notice
}

// rest makes it Idle, as soon as no worker has it.
func (a *agenda) rest(it *Item) {
	a.withdraw(it)
	it.forced = false
	if it.state == Storing {
		it.then = Idle
	} else {
		it.state = Idle
	}
}

// look does what is due about it.
func (a *agenda) look(it *Item) {
	now := a.tree.now
	h := &it.held
	if stage := h.stage; h.age(now) > stage {
		kind := StapleEnding
		if h.stage == moments {
			kind = StapleEnded
			if it.state != Idle && !it.over && !h.revoked && !it.peer {
				a.tree.ended(it.route)
			}
		}
		if !h.quiet {
			a.notices = append(a.notices, Notice{Item: it, Kind: kind})
		}
		if it.queued == inRoute { // it may have become more urgent, or one of a cohort
			a.withdraw(it)
			a.comeDue(it)
		}
	}
	switch {
	case now >= it.expires && !it.over && (it.state != Idle || it.dormant):
		it.over = true
		a.notices = append(a.notices, Notice{Item: it, Kind: Expired})
		if it.state != Working {
			a.rest(it)
		}
	case it.state == Scheduled && it.due <= now && it.peer && !it.forced:
		a.doze(it)
	case it.state == Scheduled && it.due <= now:
		a.comeDue(it)
	case it.waits != 0 && it.waits <= now:
		a.tree.tell(it)
		it.waits = 0
	}
	a.watch(it)
}

// watch sets when to look at it.
func (a *agenda) watch(it *Item) {
	h := &it.held
	at := far
	if h.end > 0 && h.stage < moments {
		at = h.moment(h.stage)
	}
	if (it.state != Idle || it.dormant) && !it.over {
		at = min(at, it.expires)
	}
	if it.state == Scheduled {
		at = min(at, it.due)
	}
	if it.waits != 0 {
		at = min(at, it.waits)
	}
	if at == far || it.gone {
		a.alarms.drop(it, byTime)
		return
	}
	it.at = at
	a.alarms.put(it, byTime)
}

// schedule makes it due then.
func (a *agenda) schedule(it *Item, due int64) {
	it.state, it.due, it.waits = Scheduled, due, 0
	a.watch(it)
}

// comeDue makes it wait, unless others are to go first.
func (a *agenda) comeDue(it *Item) {
	it.state, it.dormant = Waiting, false
	switch {
	case it.forced:
		it.queued = inAsked
		a.tree.ask(it)
	case it.peer && a.barred(it):
		a.putOff(it, true)
		return
	case it.peer:
		it.queued = inPeers
		a.tree.turns++
		a.tree.call(it, a.tree.turns)
	case it.cohort == nil && it.held.end > 0 && !it.held.current(a.tree.now) && !it.held.revoked && !a.tree.join(it):
		it.state = Following
		a.tree.await(it)
	case a.peeks && !it.peeked && it.route.blocks() != nil:
		it.queued = inPeeks
		a.peeking = append(a.peeking, it)
	default:
		a.wait(it)
		return
	}
	a.watch(it)
}

// wait puts it among those that wait at its route.
func (a *agenda) wait(it *Item) {
	it.state, it.queued = Waiting, inRoute
	it.class = it.urgency(a.tree.now)
	it.rank.end = far
	if it.held.current(a.tree.now) {
		it.rank.end = it.held.end
	}
	a.tree.put(it)
	a.tree.await(it)
	a.watch(it)
}

// withdraw takes it out of whatever it waits in.
func (a *agenda) withdraw(it *Item) {
	switch it.queued {
	case inRoute:
		a.tree.drop(it)
	case inAsked:
		a.tree.unask(it)
	case inPeers:
		a.tree.uncall(it)
	}
	it.queued = notQueued
	it.waits, it.dormant = 0, false
	a.part(it)
}
