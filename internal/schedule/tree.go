package schedule

import "slices"

// A tree has those who can be asked: hosts, at each host URLs, at each URL the certificate authorities that
// are asked about there, and at each of these the routes that lead to it. What is at fault pauses there, and
// with it all that is beneath: see pause. Whoever may be asked now, and has somebody to be asked about, stands
// in the queue of its parent, and a host in hosts, or in full if it has its share of the workers. So whose turn
// it is stands at the top of each queue, and a change moves those on the way up and nobody else.
type tree struct {
	now    int64 // in Unix microseconds
	rand   chance
	share  int32 // of the workers, that a host may have while others wait
	turns  uint64
	nodes  map[nodeKey]*node
	routes map[string]*route
	hosts  queue[*node]
	full   queue[*node]
	lobby
	shut   []*node     // whose pause may just have shut peers out that wait
	alarms heap[*node] // when a pause lets somebody through
	told   []Notice    // of first rounds that a pause has ended
}

// A level is what a node stands for.
type level int8

const (
	hostLevel level = iota
	urlLevel
	caLevel
	routeLevel // a route, as one of those that lead to a certificate authority at a URL
)

type nodeKey struct {
	level   level
	url, ca string // of a host: its name
}

type node struct {
	rank
	level    level
	key      nodeKey
	parent   *node
	in       *queue[*node] // where it stands; nil: nowhere
	route    *route        // of a routeLevel
	queue    queue[*node]
	waiting  [classes]int32 // beneath
	kids     int32
	items    int32 // that take a route beneath
	inFlight int32
	pause    pause
	visitors *visitors // of a host
}

// A route is what certificates of one authority have in common if they name the same URLs.
type route struct {
	key     string
	ca      string
	urls    []string
	ends    []*node // of its own level, one at each URL
	items   queue[*Item]
	refs    int32
	cohorts map[int64]*cohort
}

// route returns the route of certificates of ca that are asked about at urls.
func (t *tree) route(ca string, urls []Source) *route {
	key, at := ca, []Source(nil)
	for _, u := range urls {
		if !slices.ContainsFunc(at, func(o Source) bool { return o.URL == u.URL }) {
			key += "\x00" + u.URL
			at = append(at, u)
		}
	}
	if len(at) == 0 {
		key, at = ca+"\x00", []Source{{}}
	}
	r := t.routes[key]
	if r == nil {
		r = &route{key: key, ca: ca}
		for _, u := range at {
			r.urls = append(r.urls, u.URL)
			n := t.node(nodeKey{caLevel, u.URL, ca}, u.Host)
			n.kids++
			r.ends = append(r.ends, &node{level: routeLevel, parent: n, route: r})
		}
		t.routes[key] = r
	}
	r.refs++
	r.count(1)
	return r
}

// count says that so many items more take r.
func (r *route) count(d int32) {
	for i, end := range r.ends {
		ca, host := end.parent, end.host()
		ca.items += d
		ca.parent.items += d
		if !slices.ContainsFunc(r.ends[:i], func(o *node) bool { return o.host() == host }) {
			host.items += d
		}
	}
}

func (t *tree) node(k nodeKey, host string) *node {
	n := t.nodes[k]
	if n == nil {
		n = &node{level: k.level, key: k}
		switch k.level {
		case hostLevel:
			n.visitors = new(visitors)
		case urlLevel:
			n.parent = t.node(nodeKey{level: hostLevel, url: host}, host)
		case caLevel:
			n.parent = t.node(nodeKey{level: urlLevel, url: k.url}, host)
		}
		if n.parent != nil {
			n.parent.kids++
		}
		t.nodes[k] = n
	}
	return n
}

// leave says that one item less takes the route.
func (t *tree) leave(r *route) {
	r.count(-1)
	if r.refs--; r.refs > 0 {
		return
	}
	delete(t.routes, r.key)
	for _, end := range r.ends {
		end.parent.kids--
		t.settle(end.parent)
	}
}

// sources returns where those who take r are asked about.
func (r *route) sources() (at []Source) {
	for i, end := range r.ends {
		at = append(at, Source{Host: end.host().key.url, URL: r.urls[i]})
	}
	return at
}

// nodeOf returns the node of a level above the end of r that leads to url, or nil.
func (r *route) nodeOf(url string, l level) *node {
	i := slices.Index(r.urls, url)
	if i < 0 {
		return nil
	}
	n := r.ends[i]
	for n.level != l {
		n = n.parent
	}
	return n
}

// put adds it to those that wait at its route, or moves it to where its rank says.
func (t *tree) put(it *Item) {
	t.turns++
	it.turn = t.turns
	r := it.route
	r.items.put(it)
	t.count(r, it.class, 1)
}

func (t *tree) drop(it *Item) {
	r := it.route
	r.items.drop(it)
	t.count(r, it.class, -1)
}

func (t *tree) count(r *route, c class, d int32) {
	for _, end := range r.ends {
		for n := end; n != nil; n = n.parent {
			n.waiting[c] += d
		}
		t.settle(end)
	}
}

// settle puts n, and all above it, where they belong after a change of n.
func (t *tree) settle(n *node) {
	for ; n != nil; n = n.parent {
		q := n.above(t)
		switch {
		case n.level == routeLevel && n.route.items.len() > 0:
			n.route.items.lead(&n.rank)
		case n.level != routeLevel && n.queue.len() > 0 && n.admits(t.now, false):
			n.queue.lead(&n.rank)
			if n.pause.state == paused && n.pause.failures >= patience {
				n.class = patient
			}
		default:
			q = nil
		}
		if n.in != nil && n.in != q {
			n.in.drop(n)
		}
		if n.in = q; q != nil {
			q.put(n)
		}
		if n.level != routeLevel {
			t.watch(n)
			if n.pause.state == paused && len(t.callers) > 0 && !n.admits(t.now, true) {
				t.shut = append(t.shut, n)
			}
		}
	}
}

// above returns the queue in which n stands while somebody can be asked there.
func (n *node) above(t *tree) *queue[*node] {
	switch {
	case n.level != hostLevel:
		return &n.parent.queue
	case n.inFlight < t.share:
		return &t.hosts
	}
	return &t.full
}

// watch sees to it that somebody looks when the pause of n lets a request through, and forgets n if nothing is beneath it.
func (t *tree) watch(n *node) {
	idle := n.pause.state != paused || n.opens(false) <= t.now
	switch {
	case n.kids == 0 && n.inFlight == 0 && idle:
		t.alarms.drop(n, byTime)
		if t.nodes[n.key] == n {
			delete(t.nodes, n.key)
			if n.parent != nil {
				n.parent.kids-- // and settle comes to it next
			}
		}
	case idle, n.inFlight > 0, n.kids > 0 && n.waiting == [classes]int32{}:
		t.alarms.drop(n, byTime)
	default:
		n.at = n.opens(false)
		t.alarms.put(n, byTime)
	}
}

// next returns whose turn it is among the others, and at which end of its route, or nil.
func (t *tree) next() (*Item, *node) {
	q := &t.hosts
	if q.len() == 0 {
		q = &t.full
	}
	o := byClass
	for q.len() > 0 {
		n := q[o][0]
		if n.pause.state == paused {
			o = byAge // it is to find out whether the pause is over: what was not asked about for long tells most
		}
		if n.level == routeLevel {
			it := n.route.items[o][0]
			t.drop(it)
			return it, n
		}
		q = &n.queue
	}
	return nil, nil
}

// occupy says that a worker has gone to end, or come back from there.
func (t *tree) occupy(end *node, d int32) {
	t.turns++
	for n := end; n != nil; n = n.parent {
		n.inFlight += d
		if d > 0 {
			n.turn = t.turns
		}
	}
	t.settle(end)
}

func (n *node) host() *node {
	for n.parent != nil {
		n = n.parent
	}
	return n
}

// await sees to it that the first round of it ends when what it needs pauses.
func (t *tree) await(it *Item) {
	if it.toldFirst {
		return
	}
	it.waits = t.now + firstTurn
	if t.tell(it) {
		it.waits = 0
		return
	}
	for _, end := range it.route.ends {
		v := end.host().visitors
		if len(v.untold) >= 2*v.swept+32 {
			v.untold = slices.DeleteFunc(v.untold, func(o *Item) bool { return !o.awaits() })
			v.swept = len(v.untold)
		}
		v.untold = append(v.untold, it)
	}
}

// opens returns when the first of the URLs where it is asked about lets a request through, once it waits there; 0: there is
// one that does not pause.
func (it *Item) opens(now int64) int64 {
	first := far
	for _, end := range it.route.ends {
		last := int64(0)
		for n := end.parent; n != nil; n = n.parent {
			if n.pause.state == paused {
				waiting := n.waiting
				if it.queued != inRoute && !it.peer {
					waiting[it.urgency(now)]++
				}
				last = max(last, n.opensFor(waiting, it.peer))
			}
		}
		first = min(first, last)
	}
	return first
}
