package staple

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/go-staple/staple/internal/hold"
	"github.com/go-staple/staple/internal/issuers"
	"github.com/go-staple/staple/internal/muststaple"
	"github.com/go-staple/staple/internal/name"
	"github.com/go-staple/staple/internal/ocspder"
	"github.com/go-staple/staple/internal/report"
	"github.com/go-staple/staple/internal/schedule"
	"github.com/go-staple/staple/internal/tally"
	"github.com/go-staple/staple/internal/wall"
)

// An entry is what the engine knows of one leaf, however many handles it has.
type entry struct {
	engine    *engine
	key       [sha256.Size]byte // of the leaf's DER
	leaf      *x509.Certificate
	until     int64 // in Unix microseconds: how long handshakes wait for the first round of a Must-Staple certificate, at least
	unstapled atomic.Uint64
	waiting   atomic.Int32 // handshakes that wait for the first round

	issuerKnown atomic.Bool
	plain       atomic.Bool // there has been a handle whose certificates a callback may return
	askable     atomic.Bool // there is somebody to ask, as far as is known
	featured    bool        // it has a TLS feature extension, Must-Staple or malformed

	// What a peer that is known costs is these, as far as visits of item, in one line of the processor's cache.
	answer atomic.Pointer[response] // of a peer: what is held; see nobody
	asking atomic.Bool              // of a peer: somebody waits for the round that is to come or under way
	maxAge atomic.Int64             // of a peer: what is older does not count, by thisUpdate, in microseconds; 0: any counts
	tally  *tally.Tally             // of a peer: its authority's

	// Guarded by engine.mu.
	item       schedule.Item
	handles    []*Certificate // oldest first; none: it is a peer's
	peer       *Certificate   // nil: no Checker asks about it
	issuer     *x509.Certificate
	known      hold.State
	cancel     context.CancelFunc // of the round under way
	gone       bool               // no handle is left
	stored     bool               // the cache has it
	final      bool               // no further rounds: err tells why
	forced     bool               // Refresh was called
	settled    bool               // the first round has ended
	seeking    bool               // it has its turn where its issuer is asked for, not where its responders are
	joined     bool               // by another chain, since issuers were looked for in those there are
	denied     bool               // the responder said no the last time
	told       bool               // the log knows that this peer is revoked
	insisted   uint8              // rounds that asked past the caches, since something newer came
	deferrals  uint8              // in a row, because another process had the lock
	mustStaple bool               // it never changes, and stands here since there is room for it
	rounds     uint32             // ended, or ended by a pause before they began
	failures   int32
	callers    int32 // connections that wait for an answer about it as a peer
	ended      int64 // when the last round did, in Unix microseconds
	err        error
	responder  string
	changed    signal
}

func newEntry(g *engine, leaf *x509.Certificate, key [sha256.Size]byte) *entry {
	must, err := muststaple.Read(leaf)
	e := &entry{engine: g, key: key, leaf: leaf, mustStaple: must, featured: must || err != nil, until: wall.MicroOf(wall.Now().Add(mustStapleFor))}
	e.item.Owner = e
	return e
}

func (e *entry) cacheKey() string { return hex.EncodeToString(e.key[:]) }

// localIssuer returns the issuer if it is known, in a chain, or in
// Stapler.Issuers; else nil.
func (e *entry) localIssuer() *x509.Certificate {
	e.engine.mu.Lock()
	issuer := e.issuer
	e.engine.mu.Unlock()
	if issuer != nil {
		return issuer
	}
	candidates, _ := e.candidates()
	if issuer = issuers.Of(e.leaf, candidates); issuer != nil {
		e.setIssuer(issuer)
	}
	return issuer
}

// candidates returns who may have issued the leaf: the rest of its chains, and Stapler.Issuers. broken is what of the
// chains does not parse.
func (e *entry) candidates() (all []*x509.Certificate, broken []error) {
	g := e.engine
	g.mu.Lock()
	var chains [][][]byte
	for _, c := range e.handles {
		chains = append(chains, c.chain()[1:])
	}
	g.mu.Unlock()
	all, broken = issuers.Candidates(chains)
	return append(all, g.issuers...), broken
}

func (e *entry) setIssuer(issuer *x509.Certificate) {
	e.engine.mu.Lock()
	defer e.engine.mu.Unlock()
	if e.issuer == nil { // once it is known, it is read without the lock
		e.issuer = issuer
		e.issuerKnown.Store(true)
	}
}

// verify has the Verifier judge answer, and caps its end with the leaf's. The result shares no memory with answer, which
// may change meanwhile.
func (e *entry) verify(issuer *x509.Certificate, answer []byte) (*response, error) {
	now := wall.Now()
	r, err := verifyAt(e.engine.verifier, e.leaf, issuer, answer, now)
	switch {
	case err != nil:
		return nil, err
	case !r.Current(wall.MicroOf(now)):
		return nil, &VerifyError{Reason: ReasonExpired, Leaf: e.leaf,
			Err: fmt.Errorf("the response, or the certificate, ended at %s", name.Time(wall.Time(r.End)))}
	}
	return r, nil
}

// take offers r to what is held, with engine.mu held, and shows it to all handles if it is that from now on. It
// returns the kind of event that tells of it, or 0.
func (e *entry) take(r *response, cached bool, now time.Time) EventKind {
	kind := EventStapled
	switch {
	case r.Revoked:
		kind = EventRevoked
	case e.known.Revoked():
		kind = EventReinstated
	}
	offer := e.known.Offer
	if cached {
		offer = e.known.OfferCached
	}
	if !offer(r, wall.MicroOf(now)) {
		return 0
	}
	e.stored, e.insisted = false, 0
	for _, c := range e.handles {
		e.publishTo(c)
	}
	e.engine.peers.show(e)
	return kind
}

// publishTo makes handshakes with c carry what is held, if they may.
func (e *entry) publishTo(c *Certificate) {
	if r := e.known.Held(); r != nil && (!r.Revoked || e.engine.stapleRevoked) && r.Current(wall.Micro()) {
		c.setStaple(r.DER, wall.Time(r.End))
	} else {
		c.unstaple()
	}
}

// unstaple takes the staples of all handles back, with engine.mu held.
func (e *entry) unstaple() {
	for _, c := range e.handles {
		c.unstaple()
	}
	e.engine.peers.show(e)
}

// isStapled reports whether handshakes carry a staple now, with engine.mu held.
func (e *entry) isStapled() bool {
	if len(e.handles) == 0 {
		return false
	}
	_, stapled := e.handles[0].current()
	return stapled
}

// holding is r as the schedule wants to know it. Nobody is told that a staple ends together with
// its certificate, since no successor is wanted.
func (e *entry) holding(r *response) schedule.Held {
	until, end := r.Until, r.End
	if age := e.maxAge.Load(); age > 0 && e.peer != nil {
		until = min(until, r.ThisUpdate+age)
	}
	if len(e.handles) == 0 {
		end = min(end, until)
	}
	return schedule.Held{ThisUpdate: wall.Time(r.ThisUpdate), Until: wall.Time(until), End: wall.Time(end), Revoked: r.Revoked,
		Quiet: r.Revoked && !e.engine.stapleRevoked || r.End < r.Until || len(e.handles) == 0}
}

// adopt takes r, which came from the cache or with the certificate, if it supersedes what is held, and
// schedules by it. engine.mu is held.
func (e *entry) adopt(r *response, stored bool) {
	g := e.engine
	now := g.driver.now()
	if e.gone || g.closed || !r.Supersedes(e.known.Held(), wall.MicroOf(now)) {
		return
	}
	kind := e.take(r, stored, now)
	if e.stored = e.stored || stored; kind == 0 { // what the cache has may undo a revocation, and is not to be overwritten by that
		return
	}
	g.schedule.Hold(&e.item, e.holding(r), now)
	if !e.final && !e.settled {
		next := g.driver.next(e)
		e.settled = next.After(now) || next.IsZero() && e.item.State() == schedule.Scheduled // or not any more: the leaf ends before
	}
	g.notices.emit(e, Event{Kind: kind})
	e.changed.broadcast()
	g.driver.run()
}

// maxCarried bounds the staples that are kept for one certificate while nobody can verify them.
const maxCarried = 4

// Carried is the staples that came with the handles to one leaf and are still to be verified.
type carried struct {
	staples [][]byte       // the last that came
	fresh   []*Certificate // the handles that came since some were shown
	shown   time.Time      // until then the others show one
}

// carry keeps a staple that came with c, a handle to e, with engine.mu held.
func (e *entry) carry(c *Certificate, staple []byte) {
	g := e.engine
	k := g.carried[e]
	if e.gone {
		return
	}
	if k == nil {
		if len(staple) == 0 {
			return
		}
		k = new(carried)
		g.carried[e] = k
	}
	k.fresh = append(k.fresh, c)
	if len(staple) > 0 {
		k.staples = append(k.staples, bytes.Clone(staple))
		k.staples = k.staples[max(len(k.staples)-maxCarried, 0):]
	}
}

// adoptCarried judges the staples that came with the handles. Where the issuer
// is not known, issuer is nil, and the one that ends last is shown as it is, until its end.
func (e *entry) adoptCarried(issuer *x509.Certificate) {
	g := e.engine
	g.mu.Lock()
	k := g.carried[e]
	switch {
	case k == nil:
		g.mu.Unlock()
		return
	case issuer == nil:
		k.show(e)
		g.mu.Unlock()
		return
	}
	delete(g.carried, e)
	g.mu.Unlock()
	var best *response
	var refused error
	defer func() { // also if the Verifier ends the goroutine
		g.mu.Lock()
		defer g.mu.Unlock()
		if best != nil {
			e.adopt(best, false)
		}
		if e.known.Held() == nil {
			e.unstaple()
		}
		if refused != nil && !g.closed {
			g.notices.log(slog.LevelWarn, "the OCSP staple that came with a certificate was refused", e, slog.Any("error", refused))
		}
	}()
	for _, der := range k.staples {
		if r, err := e.verify(issuer, der); err != nil {
			refused = err
		} else if best == nil || r.Newer(best) {
			best = r
		}
	}
}

// show makes handshakes carry what nobody can verify, with engine.mu held.
func (k *carried) show(e *entry) {
	var last []byte
	var end time.Time
	for _, der := range k.staples {
		if of := carriedEnd(der, e.leaf); of.After(end) {
			last, end = der, of
		}
	}
	handles := k.fresh
	k.fresh = nil
	now := wall.Now()
	if e.known.Held() != nil || !now.Before(end) {
		return
	}
	if !now.Before(k.shown) {
		handles, k.shown = e.handles, end
	}
	for _, c := range handles {
		if !c.removed {
			c.setStaple(last, end)
		}
	}
	e.changed.broadcast()
}

// heed deals with a staple that came with a handle which was there already.
func (e *entry) heed(c *Certificate, staple []byte) {
	g := e.engine
	issuer := e.localIssuer()
	if issuer == nil {
		g.mu.Lock()
		e.carry(c, staple)
		g.mu.Unlock()
		e.adoptCarried(nil)
		return
	}
	if r, err := e.verify(issuer, staple); err == nil {
		g.mu.Lock()
		e.adopt(r, false)
		g.mu.Unlock()
	}
}

// carriedEnd returns the end of a response that nobody has verified, by its own
// account and leaf's; zero if it is no response about leaf.
func carriedEnd(der []byte, leaf *x509.Certificate) time.Time {
	if len(der) == 0 {
		return time.Time{}
	}
	end := ocspder.ClaimedEnd(der, leaf, defaultMaxAge)
	if leaf.NotAfter.Before(end) {
		end = leaf.NotAfter
	}
	return end
}

// conclude ends a round: it publishes, schedules the next, and tells whoever waits
// or listens. engine.mu is held.
func (e *entry) conclude(o outcome) {
	g := e.engine
	now := g.driver.now()
	if !o.asked && (e.joined || e.issuer != nil) && errors.Is(o.err, ErrNoIssuer) {
		o = outcome{deferred: true, turns: e.seeking, to: o.to} // another chain has come meanwhile, which may have it
	}
	done := schedule.Outcome{Asked: o.asked || o.sought, By: schedule.SourceOf(o.responder), Until: o.due, Err: o.err}
	if o.deferred || o.err != nil && (e.gone || g.closed) { // the latter was canceled
		if done.Result = schedule.Deferred; o.turns {
			done.Result, done.At = schedule.Elsewhere, o.to
			e.seeking = !e.seeking
		}
		g.schedule.Done(&e.item, done, now)
		return
	}
	if !now.Before(e.leaf.NotAfter) {
		o = outcome{err: errExpired, final: true, asked: o.asked, began: o.began} // meanwhile
	}
	if o.responder != "" {
		e.responder = o.responder
	}
	e.err, e.final = o.err, o.final
	e.deferrals, e.forced = 0, false
	if o.asked {
		e.denied = denies(o.err)
		e.askable.Store(true)
		if ca := e.item.Authority(); ca != issuers.Authority(e.leaf, nil) {
			done.CA = issuers.Authority(e.leaf, e.issuer) // which is another one if the chain lied
		}
	}
	var kind EventKind
	for _, r := range []*response{o.denial, o.response} { // in this order: what says "revoked" casts doubt on the other
		if r == nil {
			continue
		}
		switch k := e.take(r, o.cached, now); {
		case k != 0:
			kind, e.stored = k, o.cached
		case o.asked && r.Revoked:
			e.stored = false // or what the cache has may undo it
		}
	}
	if kind != 0 {
		done.Result, done.Held = schedule.Newer, e.holding(e.known.Held())
	}
	switch {
	case kind != 0:
		e.failures = 0
	case o.err == nil:
		e.failures = 0
		if e.known.Held() != nil { // else it is gone since: the clock was set
			kind = EventUnchanged
		}
		done.Result = schedule.Unchanged
	case errors.Is(o.err, ErrNoResponder):
		e.failures = 0
		e.askable.Store(false)
		done.Result = schedule.Final
		if errors.Is(o.err, errExpired) {
			g.notices.tell(e, report.Gone)
		} else {
			g.notices.tell(e, report.Answered)
		}
		g.notices.log(slog.LevelDebug, "a certificate is not stapled", e, slog.Any("error", o.err))
	default:
		e.failures++
		kind, done.Result = EventFailed, schedule.Failed
		if o.final {
			done.Result = schedule.Final
		}
		if done.Asked {
			done.Answers = faults.Answers(o.err)
		}
		if len(done.Answers) == 0 {
			done.RetryAfter = faults.RetryAfter(o.err)
		}
	}
	g.schedule.Done(&e.item, done, now)
	e.settled, e.ended = true, wall.MicroOf(now)
	e.rounds++
	e.asking.Store(false)
	g.peers.show(e)
	if kind != 0 {
		g.notices.emit(e, o.event(kind))
	}
	e.changed.broadcast()
}

// rest notes that nobody is asked any more, and why, with engine.mu held.
func (e *entry) rest(err error) {
	g := e.engine
	e.err, e.final, e.settled, e.forced, e.failures = err, true, true, false, 0
	e.rounds++
	e.asking.Store(false)
	e.askable.Store(false)
	if errors.Is(err, errExpired) && (len(e.handles) > 0 || !e.known.Revoked()) { // else see peers.expired
		g.storage.outlived(e)
	}
	g.schedule.Rest(&e.item, g.driver.now())
	if errors.Is(err, errExpired) {
		g.notices.tell(e, report.Gone)
	}
	g.peers.show(e)
	g.notices.log(slog.LevelDebug, "a certificate is not stapled", e, slog.Any("error", err))
	e.changed.broadcast()
}

// countUnstapled notes a handshake without a staple.
func (e *entry) countUnstapled() {
	if e.askable.Load() {
		e.unstapled.Add(1)
	}
}

// unstapledHandshake notes a handshake without a staple, and returns the error
// that refuses it where RequireStaple does.
func (e *entry) unstapledHandshake(hello *tls.ClientHelloInfo) error {
	e.countUnstapled()
	if e.mustStaple && e.engine.requireStaple && wantsStaple(hello) {
		return errNoStaple(e.leaf)
	}
	return nil
}

func errNoStaple(leaf *x509.Certificate) error {
	return fmt.Errorf("staple: handshake refused: no valid OCSP response is held for %s, which is Must-Staple", name.Of(leaf))
}
