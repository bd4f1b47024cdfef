package staple

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/go-staple/staple/internal/backlog"
	"github.com/go-staple/staple/internal/name"
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
	lines   teller[logLine]
	events  teller[Event]
	expired teller[string] // the keys of certificates: what the cache has of them is of no use any more
	silent  bool           // the Stapler is closed, and all was told; engine.mu guards it
}

func (n *notices) init(g *engine) {
	n.engine = g
	n.lines = teller[logLine]{engine: g, tell: n.write, caughtUp: func(missed int) {
		n.say(slog.LevelWarn, "lines were left out, since the log did not keep up", slog.Int("lines", missed))
	}}
	n.events = teller[Event]{engine: g, tell: g.onEvent, fellBehind: func() {
		n.say(slog.LevelWarn, "OnEvent does not keep up; events are left out until it does, the least important first")
	}, caughtUp: func(missed int) {
		n.say(slog.LevelWarn, "OnEvent keeps up again, after events were left out", slog.Int("events", missed))
	}}
	n.expired = teller[string]{engine: g, tell: g.storage.delete}
}

// untold is how many notices of a kind may wait, at least; twice as many as there are certificates may, too.
const untold = 4096

// A teller calls tell with each of what is added, one after the other and in order, in a goroutine that exists only
// while there is something to tell. engine.mu guards it.
type teller[T any] struct {
	engine     *engine
	tell       func(T)
	fellBehind func()           // is called with mu held when the first is left out; may be nil
	caughtUp   func(missed int) // and when all was told after that
	queue      backlog.Queue[T]
	telling    bool
}

// add queues v, with engine.mu held.
func (t *teller[T]) add(v T, rank backlog.Rank) {
	g := t.engine
	if g.notices.silent {
		return
	}
	was := t.queue.Missed()
	t.queue.Put(v, rank, max(untold, 2*len(g.entries)))
	if was == 0 && t.queue.Missed() > 0 && t.fellBehind != nil {
		t.fellBehind()
	}
	if !t.telling {
		t.telling = true
		g.wg.Add(1)
		go t.run()
	}
}

func (t *teller[T]) run() {
	g := t.engine
	defer g.wg.Done()
	ended := true
	defer func() {
		if ended { // by tell: another goroutine goes on
			g.wg.Add(1)
			go t.run()
		}
	}()
	for v, ok := t.next(); ok; v, ok = t.next() {
		t.tell(v)
	}
	ended = false
}

func (t *teller[T]) next() (v T, ok bool) {
	t.engine.mu.Lock()
	defer t.engine.mu.Unlock()
	v, ok = t.queue.Take()
	if missed := t.queue.Missed(); !ok && missed > 0 {
		t.queue.ForgetMissed()
		if t.caughtUp != nil {
			t.caughtUp(missed)
		}
		v, ok = t.queue.Take()
	}
	t.telling = ok
	return v, ok
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
	how := eventLines[ev.Kind]
	if !n.tell(e, how.kind) {
		n.log(slog.LevelDebug, how.text, e, append([]slog.Attr{slog.String("event", ev.Kind.String())}, attributes(ev.Status, ev.Err)...)...)
	}
	if n.engine.onEvent != nil {
		n.events.add(ev, ev.Kind.importance())
	}
}

// attributes are what a line says of a certificate besides its name.
func attributes(st Status, err error) (attrs []slog.Attr) {
	if st.Responder != "" {
		attrs = append(attrs, slog.String("responder", st.Responder))
	}
	if !st.Expires.IsZero() {
		attrs = append(attrs, slog.Time("expires", st.Expires))
	}
	if !st.NextRefresh.IsZero() {
		attrs = append(attrs, slog.Time("next", st.NextRefresh))
	}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	return attrs
}

// eventLines are what the debug lines of events say, and what they are to those who decide on the others.
var eventLines = [...]struct {
	kind report.Kind
	text string
}{
	EventStapled:    {report.Stapled, "OCSP response stapled"},
	EventUnchanged:  {report.Answered, "OCSP response unchanged"},
	EventFailed:     {report.Failed, reportLines[report.Failed].text},
	EventExpiring:   {report.Expiring, reportLines[report.Expiring].text},
	EventExpired:    {report.Expired, reportLines[report.Expired].text},
	EventRevoked:    {report.Revoked, reportLines[report.Revoked].text},
	EventReinstated: {report.Reinstated, reportLines[report.Reinstated].text},
}

// reportLines are the lines that an operator is to see.
var reportLines = [...]struct {
	level slog.Level
	text  string
}{
	report.Failed:     {slog.LevelWarn, "OCSP response not obtained"},
	report.Answered:   {slog.LevelInfo, "OCSP responses are obtained again"},
	report.Expiring:   {slog.LevelWarn, "OCSP staple is about to end"},
	report.Expired:    {slog.LevelError, "OCSP staple has ended"},
	report.Unstapled:  {slog.LevelError, "Must-Staple certificate has no OCSP staple"},
	report.Stapled:    {slog.LevelInfo, "stapled again"},
	report.Revoked:    {slog.LevelError, "certificate is revoked"},
	report.Reinstated: {slog.LevelWarn, "certificate is good again after it was revoked"},
	report.Gone:       {slog.LevelInfo, "no longer asked about, after trouble"},
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
		said = said || line.Kind == kind && line.About[0] == e && reportLines[kind].level >= slog.LevelWarn
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
	how, e, all := reportLines[line.Kind], line.About[0], len(line.About)+line.More
	l := logLine{level: how.level, message: "staple: " + how.text, about: e.leaf, mustStaple: e.mustStaple,
		attrs: []slog.Attr{slog.String("event", line.Kind.String())}}
	for _, other := range line.About[1:] {
		l.others = append(l.others, other.leaf)
	}
	ended := line.Kind.Ends()
	if ended && all > report.Named {
		l.about, l.others = nil, nil
		if e.responder != "" {
			l.attrs = append(l.attrs, slog.String("responder", e.responder))
		}
	} else if len(e.handles) > 0 {
		st := e.handles[0].status()
		if st.Revoked && !st.RevokedAt.IsZero() {
			l.attrs = append(l.attrs, slog.Time("revoked_at", st.RevokedAt))
		}
		if st.Revoked {
			l.attrs = append(l.attrs, slog.String("reason", name.Reason(st.RevocationReason)))
		}
		err := e.err
		switch {
		case ended:
			err = nil
		case line.Kind != report.Revoked:
			outage := e.item.Outage()
			if outage.ID != "" {
				l.attrs = append(l.attrs, slog.String("fault", outage.Fault))
			}
			if err == nil {
				err = outage.Err
			}
			if line.Kind == report.Failed {
				all = max(all, outage.Items)
			}
		}
		l.attrs = append(l.attrs, attributes(st, err)...)
	}
	if line.Lasted > 0 {
		l.attrs = append(l.attrs, slog.Duration("lasted", line.Lasted.Round(time.Second)))
	}
	if ended || all > 1 {
		l.attrs = append(l.attrs, slog.Int("certificates", all))
	}
	n.addLine(l)
}

// A logLine is one that waits to be written.
type logLine struct {
	level      slog.Level
	message    string
	about      *x509.Certificate // nil: none
	mustStaple bool
	others     []*x509.Certificate
	attrs      []slog.Attr
}

// log queues a line about e, with mu held.
func (n *notices) log(level slog.Level, message string, e *entry, attrs ...slog.Attr) {
	n.addLine(logLine{level: level, message: "staple: " + message, about: e.leaf, mustStaple: e.mustStaple, attrs: attrs})
}

// say queues a line about no certificate, with mu held.
func (n *notices) say(level slog.Level, message string, attrs ...slog.Attr) {
	n.addLine(logLine{level: level, message: "staple: " + message, attrs: attrs})
}

func (n *notices) addLine(l logLine) {
	rank := backlog.Notable
	switch {
	case l.level < slog.LevelInfo:
		rank = backlog.Routine
	case l.level >= slog.LevelError:
		rank = backlog.Grave
	}
	n.lines.add(l, rank)
}

func (n *notices) write(l logLine) {
	ctx := context.Background()
	if !n.engine.logger.Enabled(ctx, l.level) {
		return
	}
	var attrs []slog.Attr
	if l.about != nil {
		subject, serial := name.Parts(l.about)
		attrs = append(attrs, slog.String("name", subject), slog.String("serial", serial))
		if l.mustStaple {
			attrs = append(attrs, slog.Bool("must_staple", true))
		}
	}
	for _, a := range l.attrs {
		if err, ok := a.Value.Any().(error); ok && l.about != nil {
			a.Value = slog.AnyValue(nameless{err, name.Of(l.about)})
		}
		attrs = append(attrs, a)
	}
	if len(l.others) > 0 {
		var names []string
		for _, c := range l.others {
			subject, serial := name.Parts(c)
			names = append(names, subject+" "+serial)
		}
		attrs = append(attrs, slog.String("others", strings.Join(names, ", ")))
	}
	n.engine.logger.LogAttrs(ctx, l.level, l.message, attrs...)
}

// A nameless error does not name the certificate that its line is about once more.
type nameless struct {
	error
	name string
}

func (e nameless) Error() string {
	return strings.ReplaceAll(strings.TrimPrefix(e.error.Error(), "no OCSP response for "+e.name+": "), e.name, "it")
}

func (e nameless) Unwrap() error { return e.error }
