package schedule

// A cohort is the certificates of one route whose staples ended at the same moment. One of them leads: the
// others follow, until it brings something newer and all are asked about, or fails and the next one leads.
type cohort struct {
	route  *route
	end    int64
	leader *Item
	rest   []*Item // and some that have left
}

// join makes it one of the cohort whose staples ended when its own did, and reports whether it leads that.
func (t *tree) join(it *Item) bool {
	r := it.route
	c := r.cohorts[it.held.end]
	if c == nil {
		c = &cohort{route: r, end: it.held.end, leader: it}
		if r.cohorts == nil {
			r.cohorts = make(map[int64]*cohort)
		}
		r.cohorts[c.end] = c
	}
	it.cohort = c
	if c.leader == it {
		return true
	}
	c.rest = append(c.rest, it)
	return false
}

// part takes it out of its cohort, in which the next one leads if it did, and is asked about when it would have been.
func (a *agenda) part(it *Item) {
	c := it.cohort
	it.cohort = nil
	if c == nil || c.leader != it {
		return
	}
	due := a.tree.now
	if it.state == Scheduled {
		due = it.due
	}
	if !a.lead(c, due) {
		delete(c.route.cohorts, c.end)
	}
}

// lead makes the next of c its leader, which is asked about at due or when its own responder wishes, and reports
// whether there is one.
func (a *agenda) lead(c *cohort, due int64) bool {
	for len(c.rest) > 0 {
		it := c.rest[0]
		c.rest[0] = nil
		c.rest = c.rest[1:]
		switch {
		case it.cohort != c:
			continue
		case it.state == Following:
			a.schedule(it, max(due, it.due))
		case it.state == Storing && it.then == Following:
			it.then, it.due = Scheduled, max(due, it.due)
		default:
			continue
		}
		c.leader = it
		return true
	}
	return false
}

// rotate lets another one than it lead c, if there is one, now that it has failed.
func (a *agenda) rotate(it *Item, c *cohort, shared bool) {
	due := a.tree.now
	if !shared {
		due += a.tree.rand.ladder(a.tree.now - c.end)
	}
	if a.lead(c, due) {
		c.rest = append(c.rest, it)
		it.then = Following
	}
}

// release ends c, if there is one: something newer has come, and all the others are asked about.
func (a *agenda) release(c *cohort) {
	if c == nil {
		return
	}
	delete(c.route.cohorts, c.end)
	for _, it := range append(c.rest, c.leader) {
		if it == nil || it.cohort != c {
			continue
		}
		it.cohort = nil
		switch {
		case it.forced: // it goes first anyway, or has been put off
		case it.state == Following, it.state == Scheduled:
			a.wait(it)
		case it.state == Storing:
			it.then = Waiting
		}
	}
}
