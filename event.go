package staple

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-staple/staple/internal/backlog"
	"github.com/go-staple/staple/internal/name"
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
	lines   teller[logLine]
	events  teller[Event]
	expired teller[string] // the keys of certificates: what the cache has of them is of no use any more
	silent  bool           // the Stapler is closed, and all was told; engine.mu guards it
}

func (n *notices) init(g *engine) {
	n.lines = teller[logLine]{engine: g, tell: g.write, caughtUp: func(missed int) {
		g.say(slog.LevelWarn, "lines were left out, since the log did not keep up", slog.Int("lines", missed))
	}}
	n.events = teller[Event]{engine: g, tell: g.onEvent, fellBehind: func() {
		g.say(slog.LevelWarn, "OnEvent does not keep up; events are left out until it does, the least important first")
	}, caughtUp: func(missed int) {
		g.say(slog.LevelWarn, "OnEvent keeps up again, after events were left out", slog.Int("events", missed))
	}}
	n.expired = teller[string]{engine: g, tell: g.deleteCached}
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
func (g *engine) emit(e *entry, ev Event) {
	if len(e.handles) == 0 {
		return
	}
	ev.Certificate = e.handles[0]
	ev.Status = ev.Certificate.status()
	how := eventLines[ev.Kind]
	level := how.level
	switch ev.Kind {
	case EventFailed:
		if e.failures > 1 || e.item.Outage() > 1 || !g.mayLog(e, ev.Kind) {
			level = slog.LevelDebug
		}
	case EventExpiring, EventExpired:
		if !g.mayLog(e, ev.Kind) {
			level = slog.LevelDebug
		}
	}
	attrs := []slog.Attr{slog.String("event", ev.Kind.String())}
	if ev.Status.Responder != "" {
		attrs = append(attrs, slog.String("responder", ev.Status.Responder))
	}
	if !ev.Status.Expires.IsZero() {
		attrs = append(attrs, slog.Time("expires", ev.Status.Expires))
	}
	if !ev.Status.NextRefresh.IsZero() {
		attrs = append(attrs, slog.Time("next", ev.Status.NextRefresh))
	}
	if ev.Err != nil {
		attrs = append(attrs, slog.Any("error", ev.Err))
	}
	g.log(level, how.text, e, attrs...)
	if g.onEvent != nil {
		g.notices.events.add(ev, ev.Kind.importance())
	}
}

// eventLines are what the log says of events.
var eventLines = [...]struct {
	level slog.Level
	text  string
}{
	EventStapled:    {slog.LevelDebug, "OCSP response stapled"},
	EventUnchanged:  {slog.LevelDebug, "OCSP response unchanged"},
	EventFailed:     {slog.LevelWarn, "OCSP response not obtained"},
	EventExpiring:   {slog.LevelWarn, "OCSP staple is about to end"},
	EventExpired:    {slog.LevelError, "OCSP staple has ended"},
	EventRevoked:    {slog.LevelError, "certificate is revoked"},
	EventReinstated: {slog.LevelWarn, "certificate is good again after it was revoked"},
}

// mayLog reports whether an event may stand in the log for all to see: one of a kind
// in a minute, since an outage of a host befalls all its certificates. The rest is for
// those who debug, and for OnEvent.
func (g *engine) mayLog(e *entry, k EventKind) bool {
	return g.spoken.Allow(e.item.Host(), k, time.Now())
}

// A logLine is one that waits to be written.
type logLine struct {
	level   slog.Level
	message string
	about   *x509.Certificate // nil: none
	attrs   []slog.Attr
}

// log queues a line about e, with mu held.
func (g *engine) log(level slog.Level, message string, e *entry, attrs ...slog.Attr) {
	g.addLine(logLine{level, "staple: " + message, e.leaf, attrs})
}

// say queues a line about no certificate, with mu held.
func (g *engine) say(level slog.Level, message string, attrs ...slog.Attr) {
	g.addLine(logLine{level, "staple: " + message, nil, attrs})
}

func (g *engine) addLine(l logLine) {
	rank := backlog.Notable
	switch {
	case l.level < slog.LevelInfo:
		rank = backlog.Routine
	case l.level >= slog.LevelError:
		rank = backlog.Grave
	}
	g.notices.lines.add(l, rank)
}

func (g *engine) write(l logLine) {
	ctx := context.Background()
	if !g.logger.Enabled(ctx, l.level) {
		return
	}
	if l.about != nil {
		l.attrs = append([]slog.Attr{slog.String("certificate", name.Of(l.about))}, l.attrs...)
	}
	g.logger.LogAttrs(ctx, l.level, l.message, l.attrs...)
}

// A trouble is what of the cache fails at present, as bits: one line is logged for each
// outage. engine.mu guards it.
type trouble uint8

const (
	reading trouble = 1 << iota
	writing
	locking
)

// reportCache notes how it went this time. mu must not be held.
func (g *engine) reportCache(doing trouble, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.trouble
	if g.trouble &^= doing; err != nil {
		g.trouble |= doing
	}
	switch {
	case was == 0 && err != nil:
		name := map[trouble]string{reading: "reading", writing: "writing", locking: "locking"}[doing]
		g.say(slog.LevelWarn, name+" the OCSP cache fails; stapling goes on without", slog.Any("error", err))
	case was != 0 && g.trouble == 0:
		g.say(slog.LevelInfo, "the OCSP cache works again")
	}
	if was&writing != 0 && g.trouble&writing == 0 {
		g.storeRest()
	}
}
