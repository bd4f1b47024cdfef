package schedule

import (
	"slices"
	"time"

	"github.com/go-staple/staple/internal/wall"
)

// A Result is how a round ended.
type Result int8

const (
	Newer     Result = iota // something newer is held now
	Unchanged               // there is nothing newer
	Failed
	Deferred  // nobody was asked: it is to be tried again
	Final     // there is nobody to ask
	Elsewhere // it is to be asked about at other URLs, now: see Schedule.Move
)

// An Outcome is what came of a round.
type Outcome struct {
	Result     Result
	Asked      bool          // somebody was asked about the certificate; if Result is Elsewhere, and gave what it takes to go on there
	At         []Source      // where it is to be asked about, if Result is Elsewhere
	CA         string        // the authority of which it turned out to be a certificate; empty: as it was
	Held       Held          // if it is newer
	By         Source        // who answered, if Result is Newer or Unchanged; empty: nobody knows
	Answers    []Answer      // of those that were asked in vain; none: nobody knows who was
	RetryAfter time.Duration // that somebody else asked for
	Until      time.Time     // when to try again, if it was Deferred
	Err        error         // of what failed
}

// Done says what came of the round of it. The worker is free only after Free.
func (s *Schedule) Done(it *Item, o Outcome, now time.Time) {
	s.tree.now = wall.MicroOf(now)
	if it.state != Working {
		return
	}
	s.tree.turns++
	end := it.via
	it.via, it.state, it.then = nil, Storing, Idle
	switch {
	case end != nil:
		if it.counted {
			end.host().visitors.calls--
		}
		s.tree.occupy(end, -1)
	case !it.counted:
		s.peekers--
	}
	if it.counted && o.Result == Deferred {
		it.seen.Store(visited) // for whom it was
	}
	if it.gone {
		return
	}
	if o.Asked && o.Result != Elsewhere {
		it.age = it.began.at
	}
	if o.Result != Deferred && o.Result != Elsewhere {
		it.toldFirst = true
		it.forced, it.peeked = false, false
	}
	c, r, shared, retryAfter := it.route.cohorts[it.held.end], it.route, false, o.RetryAfter
	if o.CA != "" && o.CA != r.ca {
		s.tree.reroute(it, o.CA, r.sources())
	}
	switch o.Result {
	case Newer, Unchanged:
		if o.Asked {
			s.tree.answered(it, o.By)
		}
		it.tries, it.fails, it.shared = 0, 0, 0
	case Failed:
		it.fails++
		if o.Asked {
			shared, retryAfter = s.tree.blame(it, o)
			s.dismiss()
		}
	case Elsewhere:
		if o.Asked && end != nil {
			s.tree.well(end.parent, it)
		}
		s.move(it, o.At)
	}
	it.then = Scheduled
	switch {
	case it.over, o.Result == Final:
		it.then, it.forced = Idle, false
		s.part(it)
		return
	case o.Result == Newer:
		it.hold(o.Held, s.tree.now, s.tree.now)
		if it.due = it.refresh(s.tree.now, s.tree.rand); it.due <= s.tree.now && o.Asked {
			it.due = it.unchanged(s.tree.now, s.tree.rand) // it is what there is: not to be asked for again at once
		}
		it.cohort = nil
		s.release(c)
	case o.Result == Unchanged:
		it.due = it.unchanged(s.tree.now, s.tree.rand)
	case o.Result == Elsewhere:
		it.due = s.tree.now
	case o.Result == Deferred:
		it.due = it.clip(wall.MicroOf(o.Until), s.tree.now)
	case shared:
		it.then = Waiting
	default:
		it.tries++
		it.due = it.retry(retryAfter, s.tree.now, s.tree.rand)
	}
	switch {
	case it.cohort == nil || o.Result == Deferred:
	case it.route != r:
		s.part(it)
	default:
		s.rotate(it, c, shared)
	}
	s.watch(it)
}

// Free says that the worker that had it is free.
func (s *Schedule) Free(it *Item, now time.Time) {
	s.tree.now = wall.MicroOf(now)
	s.working--
	if it.state == Working { // it ended without a word
		s.Done(it, Outcome{Result: Failed}, now)
	}
	it.state = Idle
	if it.counted {
		it.counted = false
		s.tree.calls--
	}
	switch {
	case it.gone:
		s.tree.leave(it.route)
	case it.then == Scheduled:
		s.schedule(it, it.due)
	case it.then == Following:
		it.state = Following
	case it.then == Waiting && it.forced:
		s.comeDue(it)
	case it.then == Waiting && it.peer:
		s.putOff(it, false) // its round has told already
	case it.then == Waiting:
		s.wait(it)
	}
	if !it.gone {
		s.watch(it)
	}
}

// answered notes that by answered, and with something that was taken.
func (t *tree) answered(it *Item, by Source) {
	r := it.route
	if by.URL == "" {
		by.URL = r.urls[0]
	} else if !slices.Contains(r.urls, by.URL) {
		t.reroute(it, r.ca, []Source{by})
		r = it.route
	}
	t.well(r.nodeOf(by.URL, caLevel), it)
}

// well notes that a request about it showed that nothing is wrong with ca, an authority at a URL, and all above it.
func (t *tree) well(ca *node, it *Item) {
	ca.pause.refused = nil
	for n := ca; n != nil; n = n.parent {
		t.succeed(n, it)
	}
}

// blame makes those pause at whose fault a round failed, and reports whether these are others than the
// certificate, and how long that was asked to wait.
func (t *tree) blame(it *Item, o Outcome) (shared bool, retryAfter time.Duration) {
	if len(o.Answers) == 0 {
		o.Answers = []Answer{{Fault: Certificate, Err: o.Err}}
	}
	strays := false // it comes from somewhere else again, where no pause knows how long that has gone on
	for _, a := range o.Answers {
		if !slices.Contains(it.route.urls, a.URL) {
			strays = it.fails > patience
			var at []Source
			for _, a := range o.Answers {
				at = append(at, a.Source)
			}
			t.reroute(it, it.route.ca, at)
			break
		}
	}
	own, failed := false, it.shared
	retryAfter = o.RetryAfter
	for _, a := range o.Answers {
		ca := it.route.nodeOf(a.URL, caLevel)
		url, host := ca.parent, ca.parent.parent
		var at *node
		switch a.Fault {
		case NoFault:
			retryAfter = max(retryAfter, a.RetryAfter)
			continue
		case CA:
			at = ca
		case URL:
			at = url
		case Host:
			at = host
		}
		if at != nil {
			it.shared = t.turns
		}
		if at != nil && !strays && (failed == 0 || at.pause.good <= failed || a.Busy && a.RetryAfter == 0) {
			shared = true
			t.fail(at, a, it.began)
		} else { // its own: others have been lucky since it failed, or it is asked about elsewhere each time
			own = true
			retryAfter = max(retryAfter, a.RetryAfter)
			t.refuse(ca, it, a)
		}
		if a.Fault < Host {
			t.succeed(host, it)
		}
		if a.Fault < URL {
			t.succeed(url, it)
		}
	}
	return shared && !own, retryAfter
}

// move makes it be asked about at other URLs, whose failures say nothing of those before.
func (a *agenda) move(it *Item, at []Source) {
	a.part(it)
	a.tree.reroute(it, it.route.ca, at)
	it.tries, it.fails, it.shared, it.peeked = 0, 0, 0, false
}

// reroute makes it take another route than before.
func (t *tree) reroute(it *Item, ca string, at []Source) {
	old := it.route
	it.route = t.route(ca, at)
	t.leave(old)
}
