package whole

import (
	"slices"
	"time"

	"github.com/go-staple/staple/internal/world"
)

// Some handshakes are without a staple though nobody is to blame: the responder is out of reach, or has been until a
// moment ago. A valid response counts as within reach of a handshake at once, without any grace, if the running process
// was given it, or its cache had it, intact and readable, when the process began, and nothing newer says "revoked".
// Otherwise the process may be without a staple though a request would bring one, for as long as is promised for what
// happened, and no longer. These are the promises.
const (
	atTheEnd     = 2 * time.Second // a last try comes at the end of a staple, and a first one at the start
	laterOnes    = 10 * time.Second
	holdLifted   = time.Hour + atTheEnd
	rehabilitate = 2*time.Hour + atTheEnd // of a revocation that was a mistake: two rounds
	workersBusy  = 30 * time.Second       // at a start, if slow hosts have all of them
	mostAsked    = time.Hour              // that a Retry-After is kept without a staple

	othersAfter = "the first one was back after an outage"

	clockRight = time.Minute/2 + atTheEnd // for a clock that is set right

	fewTries = 2 * time.Hour // in less there are not fifty of them, after which a first staple takes longer
)

// promised returns how long after the recovery the last staple comes that was held up by an outage.
func promised(outage time.Duration) (time.Duration, string) {
	switch {
	case outage <= time.Hour:
		_, last := blip{outage: outage}.promised()
		return last, "an outage of up to an hour"
	case outage <= world.Day:
		return 5*time.Minute + laterOnes, "an outage of up to a day"
	}
	return time.Hour + laterOnes, "a longer outage"
}

// alone returns the same for a certificate that nobody but itself holds up, of which something was held or not.
func alone(held bool, outage time.Duration) (time.Duration, string) {
	switch {
	case !held && outage < fewTries:
		return 10*time.Minute + atTheEnd, "alone, the first staple, up to two hours"
	case !held:
		return time.Hour + atTheEnd, "alone, the first staple, after that"
	case outage < world.Day:
		return min(5*time.Minute, 4*time.Second+outage/10) + atTheEnd, "alone, after a staple's end, up to a day"
	}
	return time.Hour + atTheEnd, "alone, after a staple's end, after that"
}

// reinstatedWithin returns the same for what r says is revoked.
func (r *issued) reinstatedWithin() (time.Duration, string) {
	if r.hold {
		return holdLifted, "a hold that was lifted"
	}
	return rehabilitate, "a revocation that was a mistake"
}

// A scope is what pauses: a host, a URL, a CA at a URL, or a certificate.
type scope struct {
	faults int       // now
	since  time.Time // when they began; the first of them if nothing good has come in between
	ended  time.Time
	good   time.Time     // when the last response came
	healed time.Time     // when that was the first after faults
	asked  time.Time     // for how long somebody asked to be left alone
	hung   time.Duration // for how long a request hangs
}

func (s *scope) begin(f *fault) {
	now := time.Now()
	if s.faults == 0 && (s.since.IsZero() || s.good.After(s.ended)) {
		s.since = now
	}
	s.faults++
	if f.kind == "hung" {
		s.hung = 30 * time.Second
	}
}

// finish ends a fault. hung is for how long requests go on that are in flight.
func (s *scope) finish(f *fault, hung time.Duration) {
	s.faults--
	s.ended, s.hung = time.Now(), hung
	if d := f.wait; d > 0 {
		s.asked = later(s.asked, time.Now().Add(d+d/10))
	}
}

// heal notes that a response came that is of use.
func (s *scope) heal() {
	now := time.Now()
	if s.faults == 0 && s.ended.After(s.good) {
		s.healed = now
	}
	s.good = now
}

// lasted returns how long an outage has lasted that is not over, as far as a process knows that was started then.
func (s *scope) lasted(started time.Time) (time.Duration, bool) {
	now := time.Now()
	switch {
	case s.faults > 0:
	case s.since.IsZero(), s.good.After(s.ended), started.After(s.ended):
		return 0, false
	default:
		now = s.ended
	}
	return now.Sub(later(s.since, started)), true
}

// scopes returns what c shares with others.
func (c *yearCert) scopes() []*scope {
	return []*scope{&c.place.host.scope, c.place.at, &c.place.scope}
}

// need returns since when c lacks a staple that is in reach.
func (y *yearOracle) need(c *yearCert) time.Time {
	switch {
	case c.newest == nil:
		return later(later(y.started, c.added), c.reach)
	case c.newest.revoked:
		return later(y.started, c.reach)
	}
	return later(c.newest.end, c.reach)
}

// deadline returns since when c, which is in reach, lacks a staple, until when it may, and why. y.mu is held.
func (y *yearOracle) deadline(c *yearCert) (since, until time.Time, why string) {
	within, why := atTheEnd, "a staple's end, or a start"
	most := func(d time.Duration, reason string) {
		if d > within {
			within, why = d, reason
		}
	}
	// Of what pauses there is one request at a time: others that fail still may come first.
	patience := func(same func(*place) bool) time.Duration {
		n := time.Duration(1)
		for _, other := range y.certs {
			if other != c && other.isOut() && same(other.place) {
				n++
			}
		}
		return n
	}
	beneath := []func(*place) bool{
		func(p *place) bool { return p.host == c.place.host },
		func(p *place) bool { return p.at == c.place.at },
		func(p *place) bool { return p == c.place },
	}
	for i, s := range c.scopes() {
		if outage, ok := s.lasted(y.started); ok {
			d, reason := promised(outage)
			most(d*patience(beneath[i])+s.hung, reason)
		}
	}
	if outage, ok := c.own.lasted(y.started); ok {
		d, reason := alone(c.held, outage)
		most(d*patience(beneath[2]), reason)
	}
	for _, f := range c.faults {
		if !f.breaks() {
			most(f.slack(), f.kind)
		}
	}
	need := y.need(c)
	if y.sluggish() && need.Sub(y.started) < time.Minute {
		most(workersBusy, "a start while slow hosts hold all workers")
	}
	asked := mostAsked
	if r := c.newest; r != nil && r.revoked {
		d, reason := r.reinstatedWithin()
		within, why = within+d, reason
		asked = 8 * world.Day // half of what is left of it
	}
	until = need.Add(within)
	latest := func(at time.Time, reason string) {
		if at.After(until) {
			until, why = at, reason
		}
	}
	since = need
	for _, s := range append(c.scopes(), &c.own) {
		if at := s.healed.Add(laterOnes + s.hung + within - atTheEnd); at.After(until) && s.healed.After(need) {
			if until = at; within == atTheEnd {
				since, why = s.healed, othersAfter
			}
		}
		if s.asked.After(need) && s.ended.After(y.started) {
			if at := s.ended.Add(asked); at.Before(s.asked) {
				latest(at.Add(within), "Retry-After")
			} else {
				latest(s.asked.Add(within), "Retry-After")
			}
		}
	}
	latest(c.excused, c.why)
	return since, until, why
}

// sluggish reports whether there is a host at which requests take seconds, or did so half a minute ago. It may have all
// workers as long as nobody else waits, and certificates are added one after the other.
func (y *yearOracle) sluggish() bool {
	return slices.ContainsFunc(y.hosts, func(h *yearHost) bool { return time.Since(h.slowUntil) < workersBusy })
}

// excuse lets c be without a staple.
func (c *yearCert) excuse(until time.Time, why string) {
	if until.After(c.excused) {
		c.excused, c.why = until, why
	}
}

// A gap is how long certificates were without a staple while one was in reach.
type gap struct {
	times    int
	longest  time.Duration
	promised time.Duration // then
	closest  float64       // to what was promised
}

// lacked notes that c has lacked a staple until now, though one was in reach, and reports whether that was too long.
func (y *yearOracle) lacked(c *yearCert, over bool) (tooLong bool, why string) {
	since, until, why := y.deadline(c)
	now := time.Now()
	if over && now.Equal(since) {
		return false, why
	}
	g := y.count.gaps[why]
	if over {
		g.times++
	}
	took, promised := now.Sub(since), until.Sub(since)
	if took >= g.longest {
		g.longest, g.promised = took, promised
	}
	g.closest = max(g.closest, float64(took)/float64(promised))
	y.count.gaps[why] = g
	return now.After(until), why
}
