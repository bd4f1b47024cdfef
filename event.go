package staple

import (
	"context"
	"fmt"
	"log/slog"
	"time"

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

// Notices are what is to be logged and told to OnEvent, in order, by a goroutine
// that exists only while there is something to tell. engine.mu guards them.
type notices struct {
	engine  *engine
	pending []func()
	telling bool
	silent  bool // the Stapler is closed, and all was told
}

// add queues f, with engine.mu held.
func (n *notices) add(f func()) {
	if n.silent {
		return
	}
	n.pending = append(n.pending, f)
	if !n.telling {
		n.telling = true
		n.engine.wg.Add(1)
		go n.tell()
	}
}

func (n *notices) tell() {
	g := n.engine
	defer g.wg.Done()
	for {
		g.mu.Lock()
		batch := n.pending
		n.pending = nil
		n.telling = len(batch) > 0
		g.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		for _, f := range batch {
			f()
		}
	}
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
		g.notices.add(func() { g.onEvent(ev) })
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

// log queues a line about e, with mu held.
func (g *engine) log(level slog.Level, message string, e *entry, attrs ...slog.Attr) {
	g.notices.add(func() {
		if !g.logger.Enabled(context.Background(), level) {
			return
		}
		attrs = append([]slog.Attr{slog.String("certificate", name.Of(e.leaf))}, attrs...)
		g.logger.LogAttrs(context.Background(), level, "staple: "+message, attrs...)
	})
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
		g.notices.add(func() {
			g.logger.Warn("staple: "+name+" the OCSP cache fails; stapling goes on without", slog.Any("error", err))
		})
	case was != 0 && g.trouble == 0:
		g.notices.add(func() { g.logger.Info("staple: the OCSP cache works again") })
	}
}
