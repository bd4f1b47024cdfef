package schedule

import (
	"fmt"
	"slices"
	"time"
)

func (n *naive) fault(format string, args ...any) {
	if n.err == nil {
		n.err = fmt.Errorf(format, args...)
	}
}

// A span is when something may be due.
type span struct{ from, to int64 }

func naivelyAfter(n *naive, least, most int64) span { return span{n.now + least, n.now + most} }

// naivelyDueIn takes over when it is due, which has to be within one of some spans, or at the end of its staple if that
// comes first, or never if its certificate ends with that.
func naivelyDueIn(n *naive, e *entry, spans ...span) int64 {
	for i, w := range spans {
		if naivelyCurrent(n, e) && !e.held.revoked {
			last := e.held.end
			if e.held.end >= e.expires {
				last = far
			}
			if w.from >= e.held.end {
				w.from = last
			}
			if w.to >= e.held.end {
				w.to = last
			}
		}
		if e.it.due >= w.from-1 && e.it.due <= w.to+1 {
			return e.it.due
		}
		spans[i] = span{(w.from - n.now) / second, (w.to - n.now) / second}
	}
	n.fault("item %v is due in %d s instead of %v", name(e.it, 0), (e.it.due-n.now)/second, spans)
	return e.it.due
}

// naivelyRefresh: half of the validity, give or take a tenth of it, four days at most; what is revoked within the hour.
func naivelyRefresh(n *naive, e *entry) span {
	half := (e.held.until - e.held.start) / 2
	w := span{max(e.held.start+min(half, 4*day)*9/10, n.now), max(e.held.start+min(half*11/10, 4*day), n.now)}
	w.from -= 10 // it rounds otherwise
	if e.held.revoked {
		w = span{max(min(w.from, n.now+45*minute), n.now), max(min(w.to, n.now+hour), n.now)}
	}
	return w
}

// pause is the least between two rounds while a staple is held.
func (e *entry) pause() int64 { return max(min((e.held.until-e.held.start)/1000, 10*minute), second) }

// naivelyUnchanged: half of what is left, a day at most; what is revoked within the hour, also past its end.
func naivelyUnchanged(n *naive, e *entry) span {
	switch {
	case e.held.revoked:
		return naivelyAfter(n, 45*minute, hour)
	case !naivelyCurrent(n, e):
		return naivelyBare(n, e)
	}
	half := min((e.held.end-n.now)/2, day)
	return naivelyAfter(n, max(half*9/10-1, e.pause()), max(half, e.pause()))
}

// naivelyBare: every few seconds at first, from the end on.
func naivelyBare(n *naive, e *entry) span {
	outage := n.now - e.held.end
	switch {
	case e.held.end == 0 || e.began < e.held.end:
		return naivelyAfter(n, second, second)
	case outage < day:
		most := min(4*second+outage/10, 5*minute)
		return naivelyAfter(n, most/2, most)
	}
	return naivelyAfter(n, hour/2, hour)
}

// naivelyRetry: exponentially, with full jitter, clamped; a longer Retry-After wins, up to half of what is left, or an hour.
func naivelyRetry(n *naive, e *entry, retryAfter time.Duration) span {
	var w span
	growing := min(10*second<<min(e.tries-1, 20), hour)
	patience := hour
	if naivelyCurrent(n, e) {
		patience = (e.held.end - n.now) / 2
	}
	switch {
	case e.held.revoked:
		w = naivelyAfter(n, e.pause(), max(growing, e.pause()))
	case naivelyCurrent(n, e):
		w = naivelyAfter(n, e.pause(), max(min(growing, patience/4), e.pause()))
	case e.held.end > 0:
		w = naivelyBare(n, e)
	case e.tries < 50:
		w = naivelyAfter(n, second, max(min(growing, 10*minute), second))
	default:
		w = naivelyAfter(n, second, growing)
	}
	asked := retryAfter.Microseconds()
	return span{max(w.from, n.now+min(asked, patience)), max(w.to, n.now+min(asked*11/10, patience))}
}

// done is what came of a round, before which it was in a cohort or not, and for which an authority was asked or nobody.
func (n *naive) done(e *entry, o Outcome, inCohort bool, via scope) {
	old, was := e.held, e.name
	e.state, e.then = Storing, Idle
	if e.counted && o.Result == Deferred {
		e.seen = visited // for whom it was
	}
	if e.it.gone {
		return
	}
	if o.Asked && o.Result != Elsewhere {
		e.askedAt = e.began
	}
	if o.Result != Deferred && o.Result != Elsewhere {
		e.told, e.forced, e.peeked = true, false, false
	}
	if o.CA != "" && o.CA != e.ca {
		e.ca = o.CA
		e.route(e.at)
	}
	shared, retryAfter := false, o.RetryAfter
	switch o.Result {
	case Newer, Unchanged:
		if o.Asked {
			naivelyAnswered(n, e, o.By)
		}
		e.tries, e.fails, e.shared = 0, 0, 0
	case Failed:
		e.fails++
		if o.Asked {
			shared, retryAfter = naivelyBlame(n, e, o)
		}
	case Elsewhere:
		if o.Asked && via != (scope{}) {
			naivelyWell(n, e, via)
		}
		naivelyMove(n, e, o.At)
	}
	e.then = Scheduled
	switch {
	case e.over, o.Result == Final:
		e.then, e.forced = Idle, false
		return
	case o.Result == Newer:
		naivelyTake(n, e, o.Held, n.now)
		naivelyFollow(n, e, old, was)
		w := naivelyRefresh(n, e)
		if w.from > n.now || !o.Asked {
			e.due = naivelyDueIn(n, e, w)
		} else { // it is what there is: not to be asked for again at once
			e.due = naivelyDueIn(n, e, span{n.now + 2, w.to}, naivelyUnchanged(n, e))
		}
		return
	case o.Result == Unchanged:
		e.due = naivelyUnchangedDue(n, e, inCohort)
	case o.Result == Elsewhere:
		e.due = n.now
		return
	case o.Result == Deferred:
		until := max(o.Until.UnixMicro(), 1)
		e.due = naivelyDueIn(n, e, span{until, until})
		return
	case shared:
		e.then = Waiting
	default:
		e.tries++
		e.due = e.it.due
		if !inCohort {
			e.due = naivelyDueIn(n, e, naivelyRetry(n, e, retryAfter))
		}
	}
	if inCohort && was == e.name && e.it.then == Following {
		e.then = Following // another one leads
	}
}

func naivelyUnchangedDue(n *naive, e *entry, inCohort bool) int64 {
	if inCohort {
		return e.it.due
	}
	return naivelyDueIn(n, e, naivelyUnchanged(n, e))
}

// naivelyAnswered: whoever answered is well, and its host and URL with it.
func naivelyAnswered(n *naive, e *entry, by Source) {
	if by.URL == "" {
		by = e.at[0]
	} else if i := slices.IndexFunc(e.at, func(u Source) bool { return u.URL == by.URL }); i >= 0 {
		by = e.at[i]
	} else {
		e.route([]Source{by})
	}
	naivelyWell(n, e, scope{by.Host, "u" + by.URL, e.ca, ""})
}

func naivelyWell(n *naive, e *entry, at scope) {
	ca := n.trouble(at)
	ca.refused, ca.unknown = nil, 0
	for _, sc := range []scope{{host: at.host}, {host: at.host, url: at.url}, at} {
		naivelySucceed(n, n.trouble(sc), e)
	}
}

// naivelySucceed: the pause is over, and the number in flight doubles.
func naivelySucceed(n *naive, t *trouble, e *entry) {
	t.goodOp = max(t.goodOp, e.beganOp)
	switch {
	case t.state == paused && t.until > n.now && (e.passed || e.beganOp <= t.failedOp): // it asked others to come later
	case t.state == paused:
		naivelyRecover(n, t, 2)
	case t.state == recovering:
		if t.window < t.ceiling {
			t.window = min(2*t.window, t.ceiling)
		} else {
			t.window++
		}
		if t.window >= n.share {
			t.state = open
		}
	}
}

func naivelyRecover(n *naive, t *trouble, window int) {
	t.state, t.window, t.failures, t.until = recovering, window, 0, 0
	if window >= n.share {
		t.state = open
	}
}

// naivelyFail: one failure, however many requests were in flight.
func naivelyFail(n *naive, t *trouble, e *entry, retryAfter time.Duration, useless bool, real *pause) {
	if t.state != paused {
		t.since, t.failures, t.gap, t.ceiling, t.wanted = e.began, 0, second/16, n.share, 0
		n.began = true
	}
	t.state, t.useless = paused, useless
	t.lasted = max(e.began-t.since, 0)
	if e.began >= t.wanted {
		t.wanted = 0
	}
	t.gap = min(2*t.gap, second)
	t.failures++
	t.failedAt, t.failedOp = n.now, n.op
	if t.part = real.part; t.part < 0.5 || t.part > 1 {
		n.fault("%v of the interval", t.part)
	}
	t.until = 0
	if retryAfter > 0 {
		least := n.now + retryAfter.Microseconds()
		if t.until = real.until; t.until < least || t.until > least+retryAfter.Microseconds()/10+1 {
			n.fault("a pause of %v for a Retry-After of %v", t.until-n.now, retryAfter)
		}
	}
}

// naivelyBlame: each of those at fault pauses alone.
func naivelyBlame(n *naive, e *entry, o Outcome) (shared bool, retryAfter time.Duration) {
	answers := o.Answers
	if len(answers) == 0 {
		answers = []Answer{{Fault: Certificate}}
	}
	var at []Source
	known := true
	for _, a := range answers {
		at = append(at, a.Source)
		known = known && slices.ContainsFunc(e.at, func(u Source) bool { return u.URL == a.URL })
	}
	if !known {
		e.route(at)
	}
	strays := !known && e.fails > 3
	own, failedSo := false, e.shared
	retryAfter = o.RetryAfter
	for _, a := range answers {
		sc := scope{a.Host, "u" + a.URL, e.ca, ""}
		for _, u := range e.at {
			if u.URL == a.URL {
				sc.host = u.Host
			}
		}
		host, url, ca := n.trouble(scope{host: sc.host}), n.trouble(scope{host: sc.host, url: sc.url}), n.trouble(sc)
		var t *trouble
		var key nodeKey
		switch a.Fault {
		case NoFault:
			retryAfter = max(retryAfter, a.RetryAfter)
			continue
		case CA:
			t, key = ca, nodeKey{caLevel, a.URL, e.ca}
		case URL:
			t, key = url, nodeKey{urlLevel, a.URL, ""}
		case Host:
			t, key = host, nodeKey{hostLevel, sc.host, ""}
		}
		switch {
		case t == nil || strays || failedSo > 0 && t.goodOp > failedSo && (!a.Busy || a.RetryAfter > 0):
			own = true
			retryAfter = max(retryAfter, a.RetryAfter)
			naivelyRefuse(n, e, ca, a, &n.s.tree.nodes[nodeKey{caLevel, a.URL, e.ca}].pause)
		case e.beganOp <= t.failedOp: // it was in flight
			shared = true
		case t.state == recovering && a.Busy && a.RetryAfter == 0 && t.window > 1:
			shared = true
			t.window /= 2
			t.ceiling = t.window
			t.failedOp = n.op
		default:
			shared = true
			naivelyFail(n, t, e, a.RetryAfter, false, &n.s.tree.nodes[key].pause)
		}
		if t != nil {
			e.shared = n.op
		}
		if a.Fault < Host {
			naivelySucceed(n, host, e)
		}
		if a.Fault < URL {
			naivelySucceed(n, url, e)
		}
	}
	return shared && !own, retryAfter
}

// naivelyRefuse: eight different ones in a row, or ten failures of which nobody knows who was asked.
func naivelyRefuse(n *naive, e *entry, ca *trouble, a Answer, real *pause) {
	ca.unknown++
	if !slices.Contains(ca.refused, e) {
		ca.refused = append(ca.refused, e)
	}
	many := len(ca.refused) >= 8
	if a.URL == "" {
		many = ca.unknown >= 10
	}
	switch {
	case e.beganOp <= ca.failedOp:
	case ca.state == paused && !ca.useless && a.Fault == Certificate:
		naivelyRecover(n, ca, 1)
	case many:
		naivelyFail(n, ca, e, 0, true, real)
	}
}

func (n *naive) free(e *entry) {
	if e.it.gone {
		n.entries = slices.DeleteFunc(n.entries, func(o *entry) bool { return o == e })
		return
	}
	e.state, e.counted = e.then, false
	switch {
	case e.state == Waiting && e.forced:
		naivelyQueue(n, e, inAsked)
	case e.state == Waiting && e.peer:
		n.putOff(e, false) // its round has told
	case e.state == Waiting:
		naivelyQueue(n, e, inRoute)
		e.lone = e.it.cohort == nil
	}
}
