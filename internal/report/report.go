// Package report decides what of the trouble with certificates is worth a line in the log: its beginning and its end,
// once for what befalls many, and nobody left unnamed who fails alone. It is a data structure and nothing else: now
// comes in as an argument, best with a monotonic reading; there is no goroutine, timer or lock in it, and no logging.
//
// Whoever writes the log tells it of each Event and writes the lines that it answers with ([Log.Tell]). It looks again
// when the time comes that [Log.When] names ([Log.Look]). A certificate without trouble takes no memory and costs one
// look into a map.
//
// A certificate has two states. One says how asking about it goes:
//
//	          failed, and what it needs pauses
//	Well ──────────────────────────────────────► Shared ──────┐
//	 ▲ ▲ │                                        ▲ │         │
//	 │ │ │ failed alone                           │ ▼         │
//	 │ │ └──────────────────────────────────────► Alone ──────┤
//	 │ │                                                      │ answered
//	 │ └────────────────── no line told of it ────────────────┤
//	 │                                                        ▼
//	 └────────────────── the line is written ────────────── Again
//
// The other one says what handshakes have of it:
//
//	Current ──────► Ending ──────► Bare ──────► Missed   if it is Must-Staple, and has been Bare for five minutes
//	 ▲ ▲ ▲            │             │             │
//	 │ │ │            └─────────────┴──────┬──────┘
//	 │ │ │                                 │ stapled
//	 │ │ └─────── no line told of it ──────┤
//	 │ │                                   ▼
//	 │ └───────── the line is written ── Back
//	 │
//	 └─────────── reinstated ──────────── Withdrawn ◄── any of them, revoked
//
// An outage is what befalls all who need the same, and has one line. Whatever else begins has a line that names the
// certificate. There is one line of a kind a minute for a host at most: those that may not be written wait, and the next
// names ten of them and counts the rest; those that fail alone, and Must-Staple certificates, wait until they are named.
// What ends is gathered for a minute, unless nothing else of the host is in trouble.
package report

import (
	"fmt"
	"slices"
	"time"
)

const (
	// Pause is the least time between two lines of a kind about a host.
	Pause = time.Minute

	// Patience is how long a Must-Staple certificate may be without a staple before a line says so, and Reminder how
	// long until the next one does.
	Patience = 5 * time.Minute
	Reminder = time.Hour

	// Named is how many certificates a line names.
	Named = 10

	forgotten = time.Hour        // what was left out is counted by no line after that
	rest      = 10 * time.Second // between two looks, at least
)

// A Kind is what an Event is about, or a Line.
type Kind int8

const (
	Failed     Kind = iota + 1 // a round, through the fault of others or of the certificate alone
	Answered                   // a round went well; the line: again
	Expiring                   // the staple is about to end
	Expired                    // it has ended
	Unstapled                  // handshakes have no staple, of a new certificate; the line: of a Must-Staple one, for a while
	Stapled                    // something newer is stapled; the line: again
	Revoked                    // by its issuer
	Reinstated                 // after that
	Gone                       // nobody is asked about it any more; the line: and it was in trouble
	kinds
)

func (k Kind) String() string {
	if k < Failed || k >= kinds {
		return fmt.Sprintf("Kind(%d)", int8(k))
	}
	return [...]string{"failed", "answered", "expiring", "expired", "unstapled", "stapled", "revoked", "reinstated", "gone"}[k-1]
}

// An Asking is how asking about a certificate goes.
type Asking int8

const (
	Well   Asking = iota
	Alone         // it fails, and others do not
	Shared        // what it needs pauses
	Again         // it is answered again, which the log is to say
)

// A Staple is what handshakes have of a certificate.
type Staple int8

const (
	Current Staple = iota
	Ending
	Bare
	Missed    // it is Must-Staple, and has been Bare for five minutes
	Withdrawn // it is revoked
	Back      // it is stapled again, which the log is to say
)

// An Event is what befalls a certificate.
type Event[K comparable] struct {
	Of         K
	Kind       Kind
	Host       string // that is asked about it
	Outage     string // of Failed: names what it needs and pauses; "": nothing does
	MustStaple bool
	Stapled    bool // handshakes carry a staple, just after it
}

// A Line is to be written now.
type Line[K comparable] struct {
	Kind   Kind
	About  []K           // those that it names, Named at most
	More   int           // those that it counts besides
	Lasted time.Duration // what has ended, or how long the first has been Unstapled so far
}

// A Log is the whole. The zero value is ready. It is not safe for concurrent use.
type Log[K comparable] struct {
	records map[K]*record[K]
	hosts   map[string]*host[K]
	busy    []*host[K]   // with something that waits to be written
	watched []*record[K] // Must-Staple certificates that were Bare when it was looked last
	next    time.Time    // zero: nothing to look for
}

// A record is a certificate in trouble.
type record[K comparable] struct {
	of     K
	gone   bool // of is nobody any more
	host   *host[K]
	queued [kinds]bool

	asking Asking
	outage *outage // if it is Shared
	failed time.Time
	named  bool // as one that fails

	staple  Staple
	lacks   time.Time // since when
	told    bool      // of its staple
	alarm   time.Time // when a line is due, as it is Must-Staple and Bare; zero: none is
	watched bool

	lasted [kinds]time.Duration // what has ended
}

// An outage befalls all those that need the same.
type outage struct {
	of      string
	since   time.Time
	back    time.Time // when one of them was answered again; zero: none was so far
	told    bool
	victims int
}

// Tell notes e, and returns the lines to write.
func (l *Log[K]) Tell(e Event[K], now time.Time) []Line[K] {
	r := l.records[e.Of]
	if r == nil {
		bare := e.MustStaple && !e.Stapled && (e.Kind == Unstapled || e.Kind == Answered)
		if e.Kind != Failed && e.Kind != Expiring && e.Kind != Expired && e.Kind != Revoked && !bare {
			return nil
		}
		r = l.record(e.Of, e.Host, now)
	}
	h := r.host
	switch e.Kind {
	case Failed:
		l.fails(r, e.Outage, now)
	case Answered, Stapled, Revoked, Reinstated:
		l.answered(r, now)
	}
	switch {
	case e.Kind == Gone:
		l.drop(r, now)
	case e.Kind == Expiring:
		l.lack(r, Ending, Expiring, now)
	case e.Kind == Expired:
		l.lack(r, Bare, Expired, now)
		l.watch(r, e.MustStaple, now)
	case e.Kind == Revoked:
		l.revoke(r, now)
	case e.Kind == Reinstated:
		l.reinstate(r, now)
	case r.staple == Withdrawn:
	case e.Kind == Stapled && e.Stapled, e.Stapled && (r.staple == Bare || r.staple == Missed):
		l.back(r, now)
	case e.MustStaple && !e.Stapled && r.staple != Bare && r.staple != Missed:
		l.lack(r, Bare, 0, now)
		l.watch(r, true, now)
	}
	l.settle(r)
	return l.lines(h, now)
}

// When returns when to look again; zero: there is no need to.
func (l *Log[K]) When() time.Time { return l.next }

// Look does what has become due, and returns the lines to write.
func (l *Log[K]) Look(now time.Time) (lines []Line[K]) {
	if l.next.IsZero() || now.Before(l.next) {
		return nil
	}
	l.next = time.Time{}
	l.remind(now)
	for _, h := range slices.Clone(l.busy) {
		lines = append(lines, l.lines(h, now)...)
	}
	l.busy = slices.DeleteFunc(l.busy, func(h *host[K]) bool {
		h.busy = h.waits()
		return !h.busy
	})
	for name, h := range l.hosts {
		if h.idle(now) {
			delete(l.hosts, name)
		}
	}
	if len(l.hosts) == 0 {
		l.hosts, l.records, l.busy = nil, nil, nil
	} else {
		l.lookAt(now.Add(Pause))
	}
	if soon := now.Add(rest); l.next.Before(soon) && !l.next.IsZero() {
		l.next = soon
	}
	return lines
}

// lookAt sees to it that somebody looks at that time.
func (l *Log[K]) lookAt(t time.Time) {
	if l.next.IsZero() || t.Before(l.next) {
		l.next = t
	}
}

func (l *Log[K]) record(of K, at string, now time.Time) *record[K] {
	if l.records == nil {
		l.records, l.hosts = make(map[K]*record[K]), make(map[string]*host[K])
	}
	h := l.hosts[at]
	if h == nil {
		h = &host[K]{outages: make(map[string]*outage)}
		l.hosts[at] = h
		l.lookAt(now.Add(Pause))
	}
	r := &record[K]{of: of, host: h}
	l.records[of] = r
	h.records++
	return r
}

// settle forgets r if all is well.
func (l *Log[K]) settle(r *record[K]) {
	if r.asking == Well && r.staple == Current && l.records[r.of] == r {
		delete(l.records, r.of)
		r.host.records--
	}
}

// fails notes that asking about r failed, in an outage if it has a name.
func (l *Log[K]) fails(r *record[K], of string, now time.Time) {
	if r.asking == Well {
		r.failed, r.named = now, false
	}
	open := r.asking == Alone || r.asking == Shared
	if o := r.outage; of == "" && o != nil && !o.back.IsZero() && now.Sub(o.back) < Pause {
		return // it is winding down
	}
	if of == "" {
		r.leave()
		r.asking = Alone
		if !r.named {
			l.queue(r, Failed, now)
		}
	} else {
		r.join(of, now)
		r.asking = Shared
		if !r.outage.told {
			l.queue(r, Failed, now)
		}
	}
	if !open {
		r.host.failing++
	}
}

// answered notes that asking about r goes well.
func (l *Log[K]) answered(r *record[K], now time.Time) {
	if r.asking != Alone && r.asking != Shared {
		return
	}
	since, told := r.failed, r.named
	if o := r.outage; o != nil {
		since, told = o.since, told || o.told
		o.back = now
	}
	r.leave()
	r.host.failing--
	if r.asking = Well; told {
		r.asking, r.lasted[Answered] = Again, now.Sub(since)
		l.queue(r, Answered, now)
	}
}

func (r *record[K]) join(of string, now time.Time) {
	if r.outage != nil && r.outage.of == of {
		r.outage.back = time.Time{}
		return
	}
	r.leave()
	o := r.host.outages[of]
	if o == nil {
		o = &outage{of: of, since: now}
		r.host.outages[of] = o
	}
	o.back = time.Time{}
	o.victims++
	r.outage = o
}

func (r *record[K]) leave() {
	if o := r.outage; o != nil {
		if o.victims--; o.victims == 0 {
			delete(r.host.outages, o.of)
		}
		r.outage = nil
	}
}

// lack notes that a staple ends, or is missing, and asks for a line about that unless k is 0.
func (l *Log[K]) lack(r *record[K], s Staple, k Kind, now time.Time) {
	switch r.staple {
	case Withdrawn:
		return
	case Current:
		r.told = false
		r.host.lacking++
	case Back:
		r.host.lacking++
	}
	if r.staple != s {
		r.lacks = now
	}
	r.staple = s
	if k != 0 {
		l.queue(r, k, now)
	}
}

// watch sees to it that a line tells of r, which is Bare, in a while, if it is Must-Staple.
func (l *Log[K]) watch(r *record[K], mustStaple bool, now time.Time) {
	if !mustStaple || r.staple != Bare || !r.alarm.IsZero() {
		return
	}
	r.alarm = now.Add(Patience)
	l.lookAt(r.alarm)
	if !r.watched {
		r.watched = true
		l.watched = append(l.watched, r)
	}
}

// remind asks for lines about those that have been Bare for too long.
func (l *Log[K]) remind(now time.Time) {
	l.watched = slices.DeleteFunc(l.watched, func(r *record[K]) bool {
		if r.watched = !r.alarm.IsZero(); !r.watched {
			return true
		}
		if !now.Before(r.alarm) {
			r.staple = Missed
			for !now.Before(r.alarm) {
				r.alarm = r.alarm.Add(Reminder)
			}
			l.queue(r, Unstapled, now)
		}
		l.lookAt(r.alarm)
		return false
	})
}

// lacksNot notes that r lacks nothing any more, or is revoked.
func (r *record[K]) lacksNot(s Staple) {
	if r.staple == Ending || r.staple == Bare || r.staple == Missed {
		r.host.lacking--
	}
	r.staple, r.alarm = s, time.Time{}
}

// back notes that r is stapled again.
func (l *Log[K]) back(r *record[K], now time.Time) {
	switch {
	case r.staple == Current, r.staple == Back:
	case r.told:
		r.lacksNot(Back)
		r.lasted[Stapled] = now.Sub(r.lacks)
		l.queue(r, Stapled, now)
	default:
		r.lacksNot(Current)
	}
}

func (l *Log[K]) revoke(r *record[K], now time.Time) {
	if r.staple != Withdrawn {
		r.lacksNot(Withdrawn)
		r.lacks, r.told = now, false
		l.queue(r, Revoked, now)
	}
}

func (l *Log[K]) reinstate(r *record[K], now time.Time) {
	if r.staple == Withdrawn {
		r.staple, r.lasted[Reinstated] = Current, now.Sub(r.lacks)
		l.queue(r, Reinstated, now)
	}
}

// drop notes that nobody is asked about r any more. If a line told of its trouble, another one tells of that.
func (l *Log[K]) drop(r *record[K], now time.Time) {
	told := (r.asking == Alone || r.asking == Shared) && (r.named || r.outage != nil && r.outage.told && r.outage.victims == 1)
	since := r.failed
	switch r.staple {
	case Ending, Bare, Missed, Withdrawn:
		if r.told && (!told || r.lacks.Before(since)) {
			told, since = true, r.lacks
		}
	}
	if r.asking == Alone || r.asking == Shared {
		r.host.failing--
	}
	r.leave()
	r.asking = Well
	r.lacksNot(Current)
	var nobody K
	of := r.of
	l.settle(r)
	r.of, r.gone = nobody, true // so that it is not kept by lines that will not be written
	if told {
		l.queue(&record[K]{of: of, host: r.host, lasted: [kinds]time.Duration{Gone: now.Sub(since)}}, Gone, now)
	}
}
