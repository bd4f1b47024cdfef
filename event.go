package staple

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/go-staple/staple/internal/backlog"
	"github.com/go-staple/staple/internal/logline"
	"github.com/go-staple/staple/internal/ocspder"
	"github.com/go-staple/staple/internal/report"
	"github.com/go-staple/staple/internal/wall"
)

// An EventKind tells what an [Event] is about.
type EventKind int

const (
	EventStapled    EventKind = iota + 1 // a newer response was accepted and is stapled from now on, wherever it came from
	EventUnchanged                       // the responder has nothing newer than what is held
	EventFailed                          // a round brought nothing: Err tells why, Status.NextRefresh when the next try is due
	EventExpiring                        // no successor has come, and a quarter of the staple's validity is left; again at a twentieth
	EventExpired                         // the staple has ended, and handshakes go without from now on
	EventRevoked                         // a newer response says that the certificate is revoked; a good staple was dropped
	EventReinstated                      // a newer response says "good" of what was revoked, and is stapled from now on
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

// An Event tells of a change, or of a round that changed nothing.
type Event struct {
	Kind        EventKind
	Certificate *Certificate  // the oldest handle to the leaf
	Status      Status        // just after the event
	Duration    time.Duration // of the round that led to it; 0: none did
	Fetched     bool          // the Fetcher was asked for a response in that round
	Err         error         // of a round that failed
}

// A State says in one word how a [Certificate] stands; the status page, its JSON and the metrics have the same words.
// Expired and revoked come before all others, of which it is the first that fits. In this order, the worst first,
// those before StateWaiting need attention.
type State int

const (
	StateMustStapleMissing State = iota + 1 // "must-staple-missing": Must-Staple and not stapled; clients that honour it refuse the certificate
	StateUnstapled                          // "unstapled": the response held has ended, or none came and a round failed
	StateUnanswered                         // "unanswered": of a peer, the answer held has ended, or none came and a round failed
	StateRevoked                            // "revoked": by the response held, whether that is stapled or not
	StateExpired                            // "expired": the certificate itself
	StateExpiring                           // "expiring": stapled, but a quarter is left, at most, of what was left when the response came, and whoever was asked since then had nothing newer
	StateFailing                            // "failing": stapled, but the last round failed
	StateWaiting                            // "waiting": no response has come yet, and no round has failed
	StateStapled                            // "stapled": handshakes carry a staple
	StateAnswered                           // "answered": of a peer, an answer is held
	StateNoResponder                        // "no-responder": there is nobody to ask, so that it is served as it is
)

func (s State) String() string {
	if s < StateMustStapleMissing || s > StateNoResponder {
		return fmt.Sprintf("State(%d)", int(s))
	}
	return [...]string{"must-staple-missing", "unstapled", "unanswered", "revoked", "expired", "expiring", "failing", "waiting",
		"stapled", "answered", "no-responder"}[s-1]
}

// state returns the State of what has a Status. ending: its staple ends soon, and nothing newer has come though it should have.
func (st *Status) state(ending bool, now time.Time) State {
	nobody := errors.Is(st.Err, ErrNoResponder)
	switch {
	case now.After(st.Leaf.NotAfter):
		return StateExpired
	case st.Revoked:
		return StateRevoked
	case st.Stapled && ending && !nobody:
		return StateExpiring
	case st.Stapled && st.Failures > 0:
		return StateFailing
	case st.Stapled:
		return StateStapled
	case st.Peer && now.Before(st.Expires):
		return StateAnswered
	case st.MustStaple && !st.Peer:
		return StateMustStapleMissing
	case nobody:
		return StateNoResponder
	case st.Err == nil && st.ThisUpdate.IsZero():
		return StateWaiting
	case st.Peer:
		return StateUnanswered
	}
	return StateUnstapled
}

// Status is how a [Certificate] stands at one moment.
type Status struct {
	Leaf                *x509.Certificate
	State               State     // in one word
	MustStaple          bool      // the leaf carries the TLS feature extension of RFC 7633 with status_request
	Stapled             bool      // handshakes carry a staple now
	Revoked             bool      // by the response held, which this outlasts
	RevokedAt           time.Time // when it was, says that response; zero: it is not, or nobody tells
	RevocationReason    int       // of RFC 5280, section 5.3.1, such as ocsp.KeyCompromise
	ThisUpdate          time.Time // of the response held; zero: none is
	Expires             time.Time // the end of the response held; zero: none is
	NextRefresh         time.Time // when it is asked about next, or no sooner than that while PausedUntil is set; zero: not any more
	PausedUntil         time.Time // while requests to its responder fail: when the next one goes out, about any that waits. Zero: it waits for none
	PauseErr            error     // why the last of these failed
	LastAttempt         time.Time // when the last round began; zero: none has
	Responder           string    // the URL that answered last; empty: none has, or the Fetcher does not tell
	Failures            int       // rounds failed since the last success
	UnstapledHandshakes uint64    // handshakes without a staple although the certificate names a responder
	Peer                bool      // a [Checker] asks about it; nobody serves it
	Err                 error     // of the last round; nil if it succeeded
}

// status returns the Status of c, with engine.mu held.
func (c *Certificate) status() Status {
	e, g := c.entry(), c.entry().engine
	_, stapled := c.current()
	st := Status{
		Leaf:                e.leaf,
		MustStaple:          e.mustStaple,
		Stapled:             stapled,
		NextRefresh:         g.driver.next(e),
		LastAttempt:         e.item.Began(),
		Responder:           e.responder,
		Failures:            int(e.failures),
		UnstapledHandshakes: e.unstapled.Load(),
		Peer:                len(e.handles) == 0,
		Err:                 e.err,
	}
	if r := e.known.Held(); r != nil {
		st.Revoked = r.Revoked
		st.ThisUpdate = wall.Time(r.ThisUpdate)
		st.Expires = wall.Time(r.End)
	}
	if st.Revoked {
		said, _ := ocspder.Revoked(e.known.Held().DER, e.leaf)
		st.RevokedAt, st.RevocationReason = said.RevokedAt, said.Reason
	}
	if !g.closed {
		st.PausedUntil, st.PauseErr = e.item.Pause(wall.Now())
	}
	now := wall.Now()
	st.State = st.state(e.item.Ending(now), now)
	return st
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
