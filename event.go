package staple

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/go-staple/staple/internal/backlog"
	"github.com/go-staple/staple/internal/logline"
	"github.com/go-staple/staple/internal/report"
	"github.com/go-staple/staple/internal/wall"
)

// An EventKind tells what an [Event] is about.
type EventKind int

const (
	// EventStapled: a response newer than the one held was accepted, and is stapled
	// from now on. It came from the responder, the cache, or with the certificate.
	EventStapled EventKind = iota + 1

	// EventUnchanged: the responder has nothing newer than the response held.
	EventUnchanged

	// EventFailed: a round brought no acceptable response. Err tells why, and
	// Status.NextRefresh when the next try is due. What is stapled stays.
	EventFailed

	// EventExpiring: the staple is about to end and no successor has come. It comes
	// when a quarter of its validity is left, and again at a twentieth.
	EventExpiring

	// EventExpired: the staple has ended, and handshakes go without from now on.
	EventExpired

	// EventRevoked: the issuer has revoked the certificate, according to a response
	// newer than the one held. A good staple was dropped, if there was one.
	EventRevoked

	// EventReinstated: the issuer says "good" of a certificate that it had revoked,
	// in a response newer than that, which is stapled from now on.
	EventReinstated
)

func (k EventKind) String() string {
	switch k {
	case EventStapled:
		return "stapled"
	case EventUnchanged:
		return "unchanged"
	case EventFailed:
		return "failed"
	case EventExpiring:
		return "expiring"
	case EventExpired:
		return "expired"
	case EventRevoked:
		return "revoked"
	case EventReinstated:
		return "reinstated"
	}
	return fmt.Sprintf("EventKind(%d)", int(k))
}

// An Event tells of a change, or of a round that changed nothing. See [Stapler.OnEvent].
type Event struct {
	Kind        EventKind
	Certificate *Certificate  // the oldest handle to the leaf
	Status      Status        // just after the event
	Duration    time.Duration // of the round that led to it; 0: none did
	Fetched     bool          // the Fetcher was asked for a response in that round
	Err         error         // of a round that failed
}

// Notices are what others are to be told, who may take their time: whoever listens to one kind waits for no other kind.
type notices struct {
	engine  *engine
	lines   backlog.Teller[logline.Line]
	events  backlog.Teller[Event]
	expired backlog.Teller[string] // the keys of certificates: what the cache has of them is of no use any more
	silent  bool                   // the Stapler is closed, and all was told; engine.mu guards it
}

func (n *notices) init(g *engine) {
	n.engine = g
	n.lines = newTeller(g, func(l logline.Line) { l.Write(g.logger) })
	n.lines.CaughtUp = func(missed int) {
		n.say(slog.LevelWarn, "lines were left out, since the log did not keep up", slog.Int("lines", missed))
	}
	n.events = newTeller(g, g.onEvent)
	n.events.FellBehind = func() {
		n.say(slog.LevelWarn, "OnEvent does not keep up; events are left out until it does, the least important first")
	}
	n.events.CaughtUp = func(missed int) {
		n.say(slog.LevelWarn, "OnEvent keeps up again, after events were left out", slog.Int("events", missed))
	}
	n.expired = newTeller(g, g.storage.delete)
}

// untold is how many notices of a kind may wait, at least; twice as many as there are certificates may, too.
const untold = 4096

// newTeller returns what tells until all was told after Close. engine.mu guards it.
func newTeller[T any](g *engine, tell func(T)) backlog.Teller[T] {
	return backlog.Teller[T]{Lock: &g.mu, Crew: &g.wg, Tell: tell, Room: func() int {
		if g.notices.silent {
			return 0
		}
		return max(untold, 2*len(g.entries))
	}}
}

// importance is the rank of an event among those that wait for OnEvent.
func (k EventKind) importance() backlog.Rank {
	switch k {
	case EventUnchanged, EventFailed:
		return backlog.Routine
	case EventExpired, EventRevoked, EventReinstated:
		return backlog.Grave
	}
	return backlog.Notable
}

// emit logs ev and hands it to OnEvent, with mu held.
func (n *notices) emit(e *entry, ev Event) {
	n.engine.peers.tell(e, ev)
	if len(e.handles) == 0 {
		return
	}
	ev.Certificate = e.handles[0]
	ev.Status = ev.Certificate.status()
	if kind := reported[ev.Kind]; !n.tell(e, kind) {
		n.add(logline.Event(kind, ev.Kind.String(), e.leaf, e.mustStaple, heldBy(ev.Status, ev.Err)))
	}
	if n.engine.onEvent != nil {
		n.events.Add(ev, ev.Kind.importance())
	}
}

func heldBy(st Status, err error) logline.Held {
	return logline.Held{Responder: st.Responder, Expires: st.Expires, Next: st.NextRefresh, Err: err}
}

// reported is what events are to those who decide on the lines of the log.
var reported = [...]report.Kind{
	EventStapled:    report.Stapled,
	EventUnchanged:  report.Answered,
	EventFailed:     report.Failed,
	EventExpiring:   report.Expiring,
	EventExpired:    report.Expired,
	EventRevoked:    report.Revoked,
	EventReinstated: report.Reinstated,
}

// tell writes what there is to write about e now that something has befallen it, with mu held. It reports whether that
// has a line of its own.
func (n *notices) tell(e *entry, kind report.Kind) (said bool) {
	if len(e.handles) == 0 && kind != report.Gone {
		return false // a peer's: see peers.tell
	}
	ev := report.Event[*entry]{Of: e, Kind: kind, Host: e.item.Host(), MustStaple: e.mustStaple, Stapled: e.isStapled()}
	if kind == report.Failed {
		ev.Outage = e.item.Outage().ID
	}
	for _, line := range n.engine.report.Tell(ev, time.Now()) {
		n.logReport(line)
		said = said || line.Kind == kind && line.About[0] == e && logline.Level(kind) >= slog.LevelWarn
	}
	return said
}

// logReport queues a line that an operator is to see, with mu held.
func (n *notices) logReport(line report.Line[*entry]) {
	if line.Kind == report.Unstapled { // of one that nobody can be asked about, the schedule does not say that it expires
		line.About = slices.DeleteFunc(line.About, func(e *entry) bool {
			over := !wall.Now().Before(e.leaf.NotAfter)
			if over {
				n.tell(e, report.Gone)
			}
			return over
		})
		if len(line.About) == 0 {
			return
		}
	}
	e := line.About[0]
	r := logline.Report{Kind: line.Kind, All: len(line.About) + line.More, MustStaple: e.mustStaple, Lasted: line.Lasted,
		Unserved: len(e.handles) == 0, Held: logline.Held{Responder: e.responder}}
	for _, e := range line.About {
		r.About = append(r.About, e.leaf)
	}
	if !r.Unserved {
		st := e.handles[0].status()
		r.Held = heldBy(st, e.err)
		r.Revoked, r.RevokedAt, r.Reason = st.Revoked, st.RevokedAt, st.RevocationReason
		if !line.Kind.Ends() {
			r.Outage = e.item.Outage()
		}
	}
	n.add(r.Line())
}

// log queues a line about e, with mu held.
func (n *notices) log(level slog.Level, message string, e *entry, attrs ...slog.Attr) {
	n.add(logline.Line{Level: level, Message: message, About: e.leaf, MustStaple: e.mustStaple, Attrs: attrs})
}

// say queues a line about no certificate, with mu held.
func (n *notices) say(level slog.Level, message string, attrs ...slog.Attr) {
	n.add(logline.Line{Level: level, Message: message, Attrs: attrs})
}

func (n *notices) add(l logline.Line) { n.lines.Add(l, l.Rank()) }
