package staple

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"iter"
	"log/slog"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-staple/staple/internal/hold"
	"github.com/go-staple/staple/internal/issuers"
	"github.com/go-staple/staple/internal/name"
	"github.com/go-staple/staple/internal/ocspder"
	"github.com/go-staple/staple/internal/seen"
	"github.com/go-staple/staple/internal/tally"
	"github.com/go-staple/staple/internal/wall"
)

// Peers returns the handles, without private keys, of the certificates that a [Checker] remembers, in no order.
// [Status.Peer] is set for those that nobody serves. Remove forgets a peer, unless it is revoked.
func (s *Stapler) Peers() iter.Seq[*Certificate] {
	g := s.start()
	return func(yield func(*Certificate) bool) {
		for _, e := range g.peers.table.All() {
			g.mu.Lock()
			c := e.peer
			if c != nil {
				c.dress()
			}
			g.mu.Unlock()
			if c != nil && !yield(c) {
				return
			}
		}
	}
}

// CheckStats is how often [Checker]s have decided about peers with certificates of one CA, since the Stapler's first
// use.
type CheckStats struct {
	CA               string        // the issuer's subject; of the thousand that came first, and "others"
	Passed           uint64        // connections, and calls of Check
	Refused          uint64        // that were revoked, or whose staple is missing or of no use
	Unanswered       uint64        // refused since nobody answered about a certificate of this CA
	PassedUnanswered uint64        // passed all the same: FailOpen
	Waited           uint64        // that waited for an answer
	Waiting          time.Duration // how long these did, together
}

// CheckStats returns the numbers of each CA, in order of name.
func (s *Stapler) CheckStats() []CheckStats {
	g := s.start()
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []CheckStats
	for _, t := range g.peers.tallies.All() {
		all = append(all, CheckStats{CA: t.CA, Passed: t.Passed.Load(), Refused: t.Refused.Load(), Unanswered: t.Failed.Load(),
			PassedUnanswered: t.Opened.Load(), Waited: t.Waits.Load(), Waiting: t.Waited()})
	}
	return all
}

// Peers are what the engine knows of certificates about which Checkers ask.
type peers struct {
	engine  *engine
	table   seen.Table[entry]
	waiting atomic.Int32 // connections

	// Guarded by engine.mu.
	checkers []*checking // with an OnEvent
	tallies  tally.Book
	unsaved  []*entry             // whose staples are to be stored
	over     map[*entry]time.Time // that are revoked, and have expired since, by the clock
}

// What an entry has as answer if there is nobody to ask; since it has expired, by the clock.
var nobody, lapsed = new(hold.Response), new(hold.Response)

func newChecking(c *Checker) *checking {
	g := c.Stapler.start()
	k := &checking{
		peers:         &g.peers,
		failOpen:      c.FailOpen,
		requireStaple: c.RequireStaple,
		leafOnly:      c.LeafOnly,
		timeout:       c.Timeout,
		gone:          new(atomic.Bool),
	}
	if c.MaxResponseAge > 0 {
		k.maxAge = max(c.MaxResponseAge.Microseconds(), 1)
	}
	if k.timeout <= 0 {
		k.timeout = defaultCheckTimeout
	}
	if c.OnEvent != nil {
		k.events = newTeller(g, c.OnEvent)
		g.mu.Lock()
		g.peers.checkers = append(g.peers.checkers, k)
		g.mu.Unlock()
		runtime.AddCleanup(c, func(gone *atomic.Bool) { gone.Store(true) }, k.gone)
	}
	return k
}

// meet returns what is known of a peer's certificate, which is remembered from now on.
func (p *peers) meet(cert, issuer *x509.Certificate) *entry {
	if s := p.table.Recall(cert.Raw, time.Now()); s != nil {
		return s.Handle
	}
	return p.remember(cert, issuer)
}

// visited notes that a peer has come.
func (k *checking) visited(e *entry) {
	if e.item.Asleep() {
		e.asking.Store(true) // before the others of this moment look
	}
	if wake := e.item.Visit() && e.answer.Load() != nil; wake || k.maxAge > 0 { // ask wakes what has no answer
		k.stir(e, wake, k.maxAge)
	}
}

// own returns a copy of a certificate, since one that crypto/tls has read keeps all alive that its peer has sent.
func own(cert *x509.Certificate) *x509.Certificate {
	if c, err := x509.ParseCertificate(bytes.Clone(cert.Raw)); err == nil {
		return c
	}
	return cert // it cannot be: it was parsed before
}

// remember makes a certificate that of a peer.
func (p *peers) remember(cert, issuer *x509.Certificate) *entry {
	g := p.engine
	by := issuer
	cert = own(cert)
	if c, err := issuers.Intern(bytes.Clone(issuer.Raw)); err == nil {
		issuer = c
	}
	key := sha256.Sum256(cert.Raw)
	at, unusable := sources(g.fetcher, cert)
	_, byURL := g.fetcher.(*HTTPFetcher)
	ca := issuers.Authority(cert, issuer)
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.entries[key]
	if e == nil {
		e = newEntry(g, cert, key)
		if e.gone = g.closed; !e.gone {
			g.schedule.SetPeer(&e.item, true, g.driver.now())
			g.enter(e, ca, at, unusable)
		}
	}
	if e.issuer == nil {
		e.issuer = issuer
		e.issuerKnown.Store(true)
		g.found(e, at)
		if errors.Is(e.err, ErrNoIssuer) {
			e.final, e.ended = false, 0
			g.schedule.Start(&e.item, g.driver.now())
			g.driver.run()
		}
	}
	if e.peer == nil {
		e.peer = new(Certificate)
		e.peer.slot.Of = e
		if e.tally == nil {
			e.tally = p.tallies.Of(by)
		}
		if len(e.handles) == 0 && !g.closed {
			if err := unanswerable(cert, wall.Now()); err != nil {
				e.rest(err)
			} else if byURL && len(at) == 0 {
				e.rest(ErrNoResponder)
			}
		}
		_, out := p.table.Put(e.leaf.Raw, e, nil, time.Now())
		if out != nil {
			p.drop(out)
		}
		p.show(e)
	}
	return e
}

// dress makes c, a peer's handle that is to be given to somebody, show its certificate, with engine.mu held.
func (c *Certificate) dress() {
	if e := c.entry(); c.slot.Shown() == nil {
		c.slot.Put(&tls.Certificate{Certificate: [][]byte{e.leaf.Raw, e.issuer.Raw}, Leaf: e.leaf})
	}
}

// stir wakes e if it slept, and sees to it that its answers are not older than maxAge, if that is not 0.
func (p *peers) stir(e *entry, wake bool, maxAge int64) {
	if old := e.maxAge.Load(); !wake && old != 0 && old <= maxAge {
		return
	}
	g := p.engine
	g.mu.Lock()
	defer g.mu.Unlock()
	if e.gone || g.closed {
		return
	}
	now := g.driver.now()
	if old := e.maxAge.Load(); maxAge > 0 && (old == 0 || maxAge < old) {
		e.maxAge.Store(maxAge)
		if r := e.known.Held(); r != nil {
			g.schedule.Hold(&e.item, e.holding(r), now)
		}
	}
	if wake {
		if e.failures > 0 {
			e.asking.Store(false) // what is held will do, since nobody answers
		}
		g.schedule.Wake(&e.item, now)
	}
	g.driver.run()
}

// ask sees to it that somebody is asked about e, and reports whether that is worth waiting for, and the number of the
// round.
func (k *checking) ask(e *entry) (target uint32, wait bool) {
	g := k.engine
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.driver.now()
	until, paused := e.item.Pause(now)
	_, known := k.known(e)
	tooOld := k.maxAge > 0 && e.known.Held() != nil && e.known.Held().ThisUpdate+k.maxAge <= e.ended
	ago := wall.MicroOf(now) - e.ended
	switch {
	case known && !e.asking.Load(), e.gone, g.closed:
		return 0, false
	case e.final:
		k.show(e) // its response may have ended since
		return 0, false
	case (e.failures > 0 || tooOld) && ago >= 0 && ago < patience.Microseconds():
		return 0, false
	case paused != nil && until.After(now):
		return 0, false
	}
	target = e.rounds + 1
	e.asking.Store(true)
	g.schedule.Start(&e.item, now)
	g.driver.run()
	if wait = e.rounds < target; wait {
		e.callers++
	}
	return target, wait
}

// left says that somebody waits no longer. What nobody waits for leaves the queue, where others stand behind it.
func (p *peers) left(open []question) {
	g := p.engine
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, o := range open {
		if o.callers--; o.callers == 0 && o.known.Held() == nil && g.schedule.Leave(&o.item, g.driver.now()) {
			o.asking.Store(false)
		}
	}
}

// saveSoon stores what is held for e, which came with it, in the background, with engine.mu held.
func (p *peers) saveSoon(e *entry) {
	g := p.engine
	if g.storage.cache == nil {
		return
	}
	if p.unsaved = append(p.unsaved, e); len(p.unsaved) > 1 {
		return // somebody is at it
	}
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		g.mu.Lock()
		defer g.mu.Unlock()
		defer func() { p.unsaved = nil }() // what is left is stored after its next round, if the Cache ends the goroutine
		for len(p.unsaved) > 0 {
			e := p.unsaved[0]
			g.mu.Unlock()
			func() {
				defer g.mu.Lock()
				p.recall(e) // another process may know better
				g.storage.save(e)
			}()
			p.unsaved = p.unsaved[1:]
		}
	}()
}

// recall adopts what the cache has about e, if that is newer.
func (p *peers) recall(e *entry) {
	g := p.engine
	if g.storage.cache == nil {
		return
	}
	ctx, cancel := context.WithTimeout(g.ctx, defaultCheckTimeout)
	defer cancel()
	found, err := g.storage.load(ctx, e, e.issuer)
	if ctx.Err() == nil {
		g.storage.report(reading, err)
	}
	if found == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	e.adopt(found, true)
}

// countRefused counts a connection with a certificate of this issuer.
func (p *peers) countRefused(issuer *x509.Certificate) {
	p.engine.mu.Lock()
	defer p.engine.mu.Unlock()
	p.tallies.Of(issuer).Refused.Add(1)
}

// unanswered counts a connection that is refused, or passes, since nobody answers about e, and logs it, once a minute for
// each CA.
func (p *peers) unanswered(v verdict, passes bool) {
	e, n := v.about, &p.engine.notices
	counter, what := &e.tally.Failed, "peers are refused, since nobody answers about their certificates"
	if passes {
		counter, what = &e.tally.Opened, "peers pass although nobody answers about their certificates"
	}
	counter.Add(1)
	p.engine.mu.Lock()
	defer p.engine.mu.Unlock()
	if connections, due := e.tally.Unanswered(time.Now()); due {
		n.say(slog.LevelWarn, what, slog.String("ca", e.tally.CA), slog.Int("connections", connections), slog.Any("error", v.err))
	}
}

// show lets Checkers see what is held of e, with engine.mu held.
func (p *peers) show(e *entry) {
	if e.peer == nil {
		return
	}
	r := e.known.Held()
	if e.final && errors.Is(e.err, ErrNoResponder) && (r == nil || !r.Revoked && !r.Current(wall.Micro())) {
		if r = nobody; errors.Is(e.err, errExpired) {
			r = lapsed
		}
	}
	e.answer.Store(r)
	delete(p.over, e)
	p.table.Stay(e.key, r != nil && r.Revoked)
}

// drop forgets a peer, with engine.mu held.
func (p *peers) drop(e *entry) {
	if e.peer == nil {
		return
	}
	e.peer.removed = true
	e.peer = nil
	e.maxAge.Store(0)
	delete(p.over, e)
	p.table.Remove(e.key, e)
	if len(e.handles) == 0 {
		p.engine.leave(e)
	}
}

// forget forgets the peers that have not come for a day, with engine.mu held.
func (p *peers) forget() {
	for _, e := range p.table.Forget(time.Now()) {
		p.drop(e)
	}
	for e, since := range p.over {
		if time.Since(since) >= seen.Span && wall.Now().After(e.leaf.NotAfter) {
			p.engine.storage.outlived(e)
			p.drop(e)
		}
	}
}

// expired forgets a peer whose certificate has expired, with engine.mu held; one that is revoked a day later, since the
// clock may be wrong.
func (p *peers) expired(e *entry) {
	switch {
	case e.peer == nil || len(e.handles) > 0:
	case e.known.Revoked():
		if p.over == nil {
			p.over = make(map[*entry]time.Time)
		}
		p.over[e] = time.Now()
	default:
		p.drop(e)
	}
}

// tell tells Checkers and the log what has befallen a peer, with engine.mu held.
func (p *peers) tell(e *entry, ev Event) {
	n := &p.engine.notices
	if e.peer == nil {
		return
	}
	if len(e.handles) == 0 {
		level, attrs := slog.LevelDebug, []slog.Attr{slog.String("event", ev.Kind.String())}
		if r := e.known.Held(); r != nil && r.Revoked && ev.Kind == EventRevoked {
			said, _ := ocspder.Revoked(r.DER, e.leaf)
			attrs = append(attrs, slog.Time("revoked_at", said.RevokedAt), slog.String("reason", name.Reason(said.Reason)))
			if !e.told {
				level = slog.LevelInfo
			}
		}
		e.told = e.known.Revoked()
		if ev.Err != nil {
			attrs = append(attrs, slog.Any("error", ev.Err))
		}
		n.log(level, "OCSP response about a peer", e, attrs...)
	}
	p.checkers = slices.DeleteFunc(p.checkers, func(k *checking) bool { return k.gone.Load() })
	if len(p.checkers) == 0 {
		return
	}
	ev.Certificate = e.peer
	e.peer.dress()
	ev.Status = e.peer.status()
	for _, k := range p.checkers {
		k.events.Add(ev, ev.Kind.importance())
	}
}
