package schedule

// A cohort is the certificates of one route whose staples end at the same moment. One of them leads: when it
// brings something newer, all are asked about.
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
		c = &cohort{route: r, end: it.held.end}
		if r.cohorts == nil {
			r.cohorts = make(map[int64]*cohort)
		}
		r.cohorts[c.end] = c
	}
	it.cohort = c
	if c.leader == nil {
		c.leader = it
		return true
	}
	c.rest = append(c.rest, it)
	return false
}

// part takes it out of its cohort, in which another one may lead now.
func (s *Schedule) part(it *Item) {
	c := it.cohort
	if c == nil {
		return
	}
	it.cohort = nil
	if c.leader == it {
		c.leader = nil
		if next := c.lead(); next != nil {
			s.comeDue(next)
		}
	}
}

// lead makes the next of c its leader, and returns that; nil: there is none, and c has ended.
func (c *cohort) lead() *Item {
	for len(c.rest) > 0 {
		it := c.rest[0]
		c.rest = c.rest[1:]
		if it.cohort == c && !it.gone && it.state == Following {
			c.leader = it
			return it
		}
	}
	delete(c.route.cohorts, c.end)
	return nil
}

// release makes those wait whose staples ended at a moment, as that of it did, which has something newer.
func (s *Schedule) release(it *Item, end int64) {
	c := it.route.cohorts[end]
	if c == nil {
		return
	}
	delete(it.route.cohorts, end)
	for _, o := range append(c.rest, c.leader) {
		if o == nil || o.cohort != c {
			continue
		}
		o.cohort = nil
		switch {
		case o == it || o.gone:
		case o.state == Following, o.state == Scheduled:
			s.wait(o)
		case o.state == Storing && o.then == Following:
			o.then = Waiting
		}
	}
}

// rotate lets another one than it lead c, if there is one.
func (s *Schedule) rotate(it *Item, c *cohort, shared bool) {
	next := c.lead()
	if next == nil {
		c.route.cohorts[c.end] = c
		c.leader = it
		return
	}
	c.rest = append(c.rest, it)
	it.then = Following
	if shared {
		s.comeDue(next)
	} else {
		s.schedule(next, max(s.tree.now+s.tree.rand.ladder(s.tree.now-c.end), next.due))
	}
}
