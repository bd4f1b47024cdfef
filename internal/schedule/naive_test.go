package schedule

import (
	"slices"
	"time"
)

// A naive is the schedule as one would write it without a thought of cost: lists, and a walk over all of them for
// each question. It is told the same as the schedule; where that has a choice (chance, or who leads a cohort), it
// looks whether the choice is a permitted one, and takes it over.
type naive struct {
	s       *Schedule
	share   int
	peeks   bool
	now     int64
	op      int // counts the operations
	entries []*entry
	scopes  map[scope]*trouble
	asked   map[string]int // hosts about whose certificates Refresh asks, and the operation since when it is their turn
	calls   map[string]int // the same of hosts about whose peers somebody waits to ask
	called  bool           // the last round that began was a peer's
	notices []Notice       // that must have come of this operation
	refused []*Item        // peers that must have been told of a pause
	began   bool           // in this operation a pause began
	err     error          // the first fault
}

// An entry is one certificate.
type entry struct {
	it      *Item
	ca      string
	at      []Source
	expires int64
	held    held
	state   State
	then    State
	where   queued
	class   class
	due     int64
	askedAt int64 // when somebody was asked about it last
	began   int64
	beganOp int
	passed  bool // every pause: Refresh was called
	shared  int  // the operation when it failed last through the fault of others
	tries   int
	fails   int
	arrived int   // the operation since when it waits
	since   int64 // the time since when it does
	told    bool
	over    bool
	forced  bool
	peeked  bool
	peer    bool
	dormant bool
	counted bool
	seen    int32
	name    string     // of its route
	ways    [][4]scope // each of its URLs, as all the scopes that must let it through, and the route there
	lone    bool       // it need not follow anybody: others of its cohort brought something newer, or the clock was set
}

// A scope is what can be at fault: a host; with a URL, that; and with an authority, that at the URL. With a
// route, it is one of the routes there, which never is, but has its turn.
type scope struct{ host, url, ca, route string }

// trouble is what is known of a scope.
type trouble struct {
	served   int // the operation when it was asked last
	state    pauseState
	since    int64
	failedAt int64
	failedOp int
	failures int
	part     float64
	until    int64
	gap      int64
	window   int
	ceiling  int
	goodOp   int // the operation when the last request began that succeeded
	refused  []*entry
	unknown  int
	useless  bool
	wanted   int64 // when a staple ended, and nobody was asked since
	lasted   int64 // the outage, when the request began that failed last
}

func newNaive(s *Schedule, peeks bool) *naive {
	return &naive{s: s, share: max(s.workers/2, 1), peeks: peeks, scopes: make(map[scope]*trouble), asked: make(map[string]int),
		calls: make(map[string]int)}
}

func (n *naive) begin(now int64) {
	n.op++
	n.now = now
}

func (n *naive) of(it *Item) *entry {
	for _, e := range n.entries {
		if e.it == it {
			return e
		}
	}
	return nil
}

func (e *entry) takes(sc scope) bool {
	for i := range e.ways {
		w := &e.ways[i]
		if sc == w[0] || sc == w[1] || sc == w[2] || sc == w[3] {
			return true
		}
	}
	return false
}

func (n *naive) trouble(sc scope) *trouble {
	if n.scopes[sc] == nil {
		n.scopes[sc] = new(trouble)
	}
	return n.scopes[sc]
}

func naivelyPaused(n *naive, sc scope) bool { return n.trouble(sc).state == paused }

// naivelyInFlight returns how many requests are under way at sc.
func naivelyInFlight(n *naive, sc scope) (count int) {
	for _, e := range n.entries {
		if via := e.it.via; e.state == Working && via != nil {
			at := naivelyPath(n, e)[3]
			if sc.host == at.host && (sc.url == "" || sc.url == at.url) && (sc.ca == "" || sc.ca == at.ca) &&
				(sc.route == "" || sc.route == at.route) {
				count++
			}
		}
	}
	return count
}

// naivelyWaiting returns who waits beneath sc for the end of its pause or for a worker.
func naivelyWaiting(n *naive, sc scope) (all []*entry) {
	for _, e := range n.entries {
		if e.where == inRoute && e.takes(sc) {
			all = append(all, e)
		}
	}
	return all
}

func naivelyCurrent(n *naive, e *entry) bool { return e.held.end > n.now }

// naivelyUrgency: what was never asked about, what has no staple, the last quarter, the rest; and after all others what has
// no staple and failed three times, even if nobody was asked.
func naivelyUrgency(n *naive, e *entry) class {
	switch {
	case e.held.revoked && naivelyCurrent(n, e):
		return routine
	case e.held.revoked:
		return patient
	case naivelyCurrent(n, e) && n.now < e.held.end-(e.held.end-e.held.from)/4:
		return routine
	case naivelyCurrent(n, e):
		return nearEnd
	case e.fails >= 3:
		return patient
	case e.askedAt == 0:
		return fresh
	}
	return unstapled
}

// naivelyOpens returns when the pause of sc lets a request through, if it is a peer's or not.
func naivelyOpens(n *naive, sc scope, called bool) int64 {
	t := n.trouble(sc)
	at, urgent := t.failedAt+min(max(5*minute, t.lasted/10), hour), far
	bare, anyFresh, ends := false, false, far
	waiting := naivelyWaiting(n, sc)
	for _, e := range waiting {
		switch e.class {
		case fresh, unstapled, patient:
			bare = true
		}
		if e.class != routine {
			urgent = naivelyUrgentlyOpens(t)
		}
		anyFresh = anyFresh || e.class == fresh
		for _, w := range e.ways {
			within := slices.Index(w[:3], sc)
			if within >= 0 && e.held.end > 0 && e.held.stage < moments && // as far as anybody has looked
				!slices.ContainsFunc(w[within+1:3], func(sc scope) bool { return !naivelyAdmits(n, sc, n.now, false) }) {
				ends = min(ends, e.held.end)
			}
		}
	}
	if called {
		bare, urgent = true, naivelyUrgentlyOpens(t)
	}
	if urgent < far {
		at = urgent
	}
	if sc.ca != "" && anyFresh {
		at = min(at, t.failedAt+t.gap)
	}
	if t.wanted != 0 {
		at = min(at, max(t.wanted, t.failedAt+second))
	}
	asked := t.until
	if bare || len(waiting) == 0 {
		asked = min(asked, t.failedAt+hour)
	}
	if ends < far {
		asked = min(asked, t.failedAt+(ends-t.failedAt)/2)
	}
	return max(at, asked)
}

// naivelyUrgentlyOpens returns when it does at the latest while somebody has no staple.
func naivelyUrgentlyOpens(t *trouble) int64 {
	outage := t.lasted
	longest := 4*second + outage/10
	switch {
	case outage >= day:
		longest = hour
	case outage >= hour:
		longest = 5 * minute
	case longest > 30*second:
		longest = 30 * second
	}
	return t.failedAt + int64(t.part*float64(longest))
}

// naivelyAdmits reports whether sc can be asked, about a peer or not.
func naivelyAdmits(n *naive, sc scope, now int64, called bool) bool {
	switch t := n.trouble(sc); t.state {
	case paused:
		return naivelyInFlight(n, sc) == 0 && naivelyOpens(n, sc, called) <= now
	case recovering:
		return naivelyInFlight(n, sc) < t.window
	}
	return true
}

// naivelyBlocked reports whether all URLs of it pause, and whether at one of them that is only its authority.
func naivelyBlocked(n *naive, e *entry) (blocked, authority bool) {
	for _, w := range e.ways {
		switch {
		case naivelyPaused(n, w[0]) || naivelyPaused(n, w[1]):
		case naivelyPaused(n, w[2]):
			authority = true
		default:
			return false, false
		}
	}
	return true, authority
}

// naivelyEnded reports whether its staple has ended, so that one of its cohort is asked about for all.
func naivelyEnded(n *naive, e *entry) bool {
	return e.held.end > 0 && !naivelyCurrent(n, e) && !e.held.revoked
}

// comeDue makes it wait for its turn.
func (n *naive) comeDue(e *entry) {
	blocked, _ := naivelyBlocked(n, e)
	e.dormant = false
	switch {
	case e.forced:
		naivelyQueue(n, e, inAsked)
	case e.peer && naivelyBarred(n, e):
		n.putOff(e, true)
	case e.peer:
		naivelyQueue(n, e, inPeers)
	case naivelyEnded(n, e):
		naivelyQueue(n, e, inRoute) // and settle takes over where it is
		e.lone = false
	case n.peeks && !e.peeked && blocked:
		naivelyQueue(n, e, inPeeks)
	default:
		naivelyQueue(n, e, inRoute)
	}
}

func naivelyQueue(n *naive, e *entry, q queued) {
	e.state, e.where = Waiting, q
	e.arrived, e.since, e.class = n.op, n.now, naivelyUrgency(n, e)
}

func naivelyWithdraw(n *naive, e *entry) { e.where = notQueued }

func naivelySchedule(n *naive, e *entry, due int64) {
	naivelyWithdraw(n, e)
	e.state, e.due = Scheduled, due
}

func (n *naive) add(it *Item, ca string, at []Source, expires int64) {
	e := &entry{it: it, ca: ca, expires: expires, peer: it.peer}
	e.route(at)
	n.entries = append(n.entries, e)
}

// route: each URL counts once, and nobody knows who is asked where there is none.
func (e *entry) route(at []Source) {
	e.at, e.ways, e.name = nil, nil, e.ca
	if len(at) == 0 {
		at = []Source{{}}
	}
	for _, u := range at {
		if !slices.ContainsFunc(e.at, func(o Source) bool { return o.URL == u.URL }) {
			e.at = append(e.at, u)
			e.name += " " + u.URL
		}
	}
	for _, u := range e.at {
		host, url := scope{host: u.Host}, scope{host: u.Host, url: "u" + u.URL}
		ca, route := url, url
		ca.ca, route.ca, route.route = e.ca, e.ca, e.name
		e.ways = append(e.ways, [4]scope{host, url, ca, route})
	}
}

func (n *naive) remove(it *Item) {
	e := n.of(it)
	if e.state != Working && e.state != Storing {
		n.entries = slices.DeleteFunc(n.entries, func(o *entry) bool { return o == e })
	}
	naivelyWithdraw(n, e)
}

func (n *naive) start(e *entry) {
	switch {
	case e.state == Idle, e.state == Scheduled:
		e.over, e.told, e.seen = false, false, visited
		n.comeDue(e)
	case e.state == Storing && e.then == Idle:
		e.over, e.told, e.seen = false, false, visited
		e.then, e.due = Scheduled, n.now
	}
}

// naivelyRest makes nobody be asked about it.
func naivelyRest(n *naive, e *entry) {
	naivelyWithdraw(n, e)
	e.forced, e.dormant = false, false
	if e.state == Storing {
		e.then = Idle
	} else {
		e.state = Idle
	}
}

func (n *naive) hold(e *entry, h Held) {
	old, came := e.held, n.now
	if old.end == 0 {
		came = 0 // it was there before
	}
	naivelyTake(n, e, h, came)
	naivelyFollow(n, e, old, e.name)
	if e.forced && naivelyCurrent(n, e) && !h.Revoked && e.due >= e.held.end {
		e.due = e.held.end
		if e.held.end >= e.expires {
			e.due = far
		}
	}
	switch {
	case e.state == Working, e.forced, e.over, e.state == Idle && e.told && !e.dormant, e.state == Storing && e.then == Idle:
	case e.state == Storing:
		e.then, e.due = Scheduled, naivelyDueIn(n, e, naivelyRefresh(n, e))
	default:
		e.dormant = false
		naivelySchedule(n, e, naivelyDueIn(n, e, naivelyRefresh(n, e)))
	}
}

// naivelyTake makes h what is held, since it came.
func naivelyTake(n *naive, e *entry, h Held, came int64) {
	e.held = held{start: h.ThisUpdate.UnixMicro(), until: h.Until.UnixMicro(), end: h.End.UnixMicro(), revoked: h.Revoked, quiet: h.Quiet}
	e.held.from = min(max(came, e.held.start), e.held.end)
	e.held.stage = naivelyStage(n, e)
	e.tries, e.fails = 0, 0
}

// naivelyStage returns how many of the moments in the life of its staple have passed.
func naivelyStage(n *naive, e *entry) (stage int8) {
	whole := e.held.end - e.held.from
	for _, at := range []int64{e.held.end - whole/4, e.held.end - whole/20, e.held.end} {
		if e.held.end > 0 && at <= n.now {
			stage++
		}
	}
	return stage
}

// naivelyFollow makes all wait who followed one that had old, and took a route.
func naivelyFollow(n *naive, e *entry, old held, route string) {
	for _, o := range n.entries {
		if o == e || o.peer || old.end == 0 || o.held.end != old.end || o.name != route || !naivelyEnded(n, o) || o.lone {
			continue
		}
		switch {
		case o.state == Following, o.state == Scheduled && o.it.state != Scheduled:
			naivelyQueue(n, o, inRoute)
		case o.state == Storing && o.then != Idle && o.it.then == Waiting && !o.forced:
			o.then = Waiting
		}
		o.lone = true
	}
}

func (n *naive) refreshNow(e *entry) {
	if e.forced {
		return
	}
	e.forced = true
	switch e.state {
	case Working:
	case Storing:
		e.then = Waiting
	default:
		n.comeDue(e)
	}
}

// naivelyMove makes it be asked about elsewhere, as if it never was before.
func naivelyMove(n *naive, e *entry, at []Source) {
	e.route(at)
	e.tries, e.fails, e.shared, e.peeked = 0, 0, 0, false
}

// moveNow does so between two rounds.
func (n *naive) moveNow(e *entry, at []Source) {
	switch {
	case e.state == Working:
		return
	case e.state == Storing && e.then != Idle && !e.forced:
		e.then, e.due = Scheduled, n.now
	}
	from, forced := e.at[0].Host, e.where == inAsked
	naivelyWithdraw(n, e)
	if forced && !slices.ContainsFunc(n.entries, func(o *entry) bool { return o.where == inAsked && o.at[0].Host == from }) {
		delete(n.asked, from)
	}
	naivelyMove(n, e, at)
	if e.state != Storing && e.state != Idle {
		n.comeDue(e)
	}
}

// step is the clock being set.
func (n *naive) step() {
	for _, t := range n.scopes {
		t.failedAt = min(t.failedAt, n.now)
		if t.state == paused {
			naivelyRecover(n, t, 1)
		}
	}
	for _, e := range n.entries {
		e.askedAt, e.began = min(e.askedAt, n.now), min(e.began, n.now)
		e.held.from = min(e.held.from, max(n.now, e.held.start))
		e.held.stage = min(e.held.stage, naivelyStage(n, e))
		switch {
		case e.it.gone:
		case e.over && n.now < e.expires:
			e.over = false
			n.start(e)
		case e.state == Following, e.where == inRoute, e.state == Scheduled && e.it.state == Waiting && e.held.end > 0:
			naivelyQueue(n, e, inRoute) // who followed, and who led, need not any more
			e.lone = true
		case e.state == Storing && e.it.then == Waiting && e.held.end > 0 && e.then != Idle:
			e.then = Waiting
		case e.state == Scheduled, e.state == Storing && e.then == Scheduled:
			latest := n.now // without a staple, what was counted from the time that it was then is void
			if e.tries == 0 && e.held.end > 0 && !e.forced {
				latest = max(n.now, e.held.start+min((e.held.until-e.held.start)/20*11, 4*day), n.now+day)
			}
			ends := naivelyCurrent(n, e) && e.held.end >= e.expires // nobody is to be asked any more
			if e.it.due > min(e.due, latest) && !(ends && e.it.due == far) {
				n.fault("item %v is due %v later than before the clock was set", name(e.it, 0), time.Duration(e.it.due-e.due)*time.Microsecond)
			}
			e.due = e.it.due
		}
	}
}
