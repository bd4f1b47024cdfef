package staple

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/go-staple/staple/internal/issuers"
	"github.com/go-staple/staple/internal/muststaple"
	"github.com/go-staple/staple/internal/name"
	"github.com/go-staple/staple/internal/schedule"
	"github.com/go-staple/staple/internal/wall"
	"golang.org/x/crypto/ocsp"
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

	// Guarded by engine.mu.
	item       schedule.Item
	handles    []*Certificate // oldest first
	issuer     *x509.Certificate
	held       *response          // the newest accepted, also past its end; nil: none yet
	cancel     context.CancelFunc // of the round under way
	gone       bool               // no handle is left
	stored     bool               // the cache has it
	final      bool               // no further rounds: err tells why
	forced     bool               // Refresh was called
	settled    bool               // the first round has ended
	deferrals  uint8              // in a row, because another process had the lock
	mustStaple bool               // it never changes, and stands here since there is room for it
	rounds     uint32             // ended
	failures   int32
	err        error
	responder  string
	changed    signal
}

// A response is one that the Verifier accepted. It never changes, but for answer. Its times are in Unix microseconds.
type response struct {
	der                    []byte // what is stapled, stored and shown
	thisUpdate, producedAt int64
	until                  int64         // by the Verifier
	end                    int64         // until, or the leaf's NotAfter if that is earlier
	answer                 atomic.Uint32 // hashOf what der was taken from: bytes that came, and need not be verified again
	revoked                bool
}

// newer reports whether r supersedes old.
func (r *response) newer(old *response) bool {
	if c := cmp.Or(
		cmp.Compare(r.thisUpdate, old.thisUpdate),
		cmp.Compare(r.producedAt, old.producedAt),
		cmp.Compare(r.end, old.end),
	); c != 0 {
		return c > 0
	}
	return r.revoked && !old.revoked
}

// same reports whether r and other are equal in times and status.
func (r *response) same(other *response) bool { return !r.newer(other) && !other.newer(r) }

// is reports whether r was taken from an answer, whose hash is given, or is that itself.
func (r *response) is(answer []byte, hash uint32) bool {
	return hash == r.answer.Load() || bytes.Equal(answer, r.der)
}

var seed = maphash.MakeSeed()

// hashOf returns by what an answer is known again. Nobody can aim at it, since nobody knows the seed. If two hash alike
// after all, the later is taken for what is held: it is never stapled.
func hashOf(answer []byte) uint32 { return uint32(maphash.Bytes(seed, answer)) }

// current reports whether r has not ended.
func (r *response) current() bool { return wall.Micro() < r.end }

func newEntry(g *engine, leaf *x509.Certificate, key [sha256.Size]byte) *entry {
	e := &entry{engine: g, key: key, leaf: leaf, mustStaple: muststaple.Is(leaf), until: wall.MicroOf(wall.Now().Add(mustStapleFor))}
	e.item.Owner = e
	return e
}

func (e *entry) cacheKey() string { return hex.EncodeToString(e.key[:]) }

// authority tells the authorities apart that issue certificates: by name and key identifier, which anybody can claim,
// and by the key if issuer is not nil.
func authority(leaf, issuer *x509.Certificate) string {
	h := sha256.New()
	h.Write(leaf.RawIssuer)
	h.Write(leaf.AuthorityKeyId)
	if issuer != nil {
		h.Write(issuer.RawSubjectPublicKeyInfo)
	}
	return string(h.Sum(nil)[:16])
}

// claimedIssuer returns the first certificate with the name of leaf's issuer, in its chain or Stapler.Issuers, or nil.
func (g *engine) claimedIssuer(leaf *x509.Certificate, chain [][]byte) *x509.Certificate {
	for _, der := range chain {
		if c, err := issuers.Intern(der); err == nil && bytes.Equal(c.RawSubject, leaf.RawIssuer) {
			return c
		}
	}
	for _, c := range g.issuers {
		if c != nil && bytes.Equal(c.RawSubject, leaf.RawIssuer) {
			return c
		}
	}
	return nil
}

// localIssuer returns the issuer if it is known, in a chain, or in
// Stapler.Issuers; else nil.
func (e *entry) localIssuer() *x509.Certificate {
	g := e.engine
	g.mu.Lock()
	if issuer := e.issuer; issuer != nil {
		g.mu.Unlock()
		return issuer
	}
	var chains [][][]byte
	for _, c := range e.handles {
		chains = append(chains, c.chain()[1:])
	}
	g.mu.Unlock()
	var candidates []*x509.Certificate
	for _, chain := range chains {
		for _, der := range chain {
			if c, err := issuers.Intern(der); err == nil {
				candidates = append(candidates, c)
			}
		}
	}
	issuer := issuers.Of(e.leaf, append(candidates, g.issuers...))
	if issuer != nil {
		e.setIssuer(issuer)
	}
	return issuer
}

func (e *entry) setIssuer(issuer *x509.Certificate) {
	e.engine.mu.Lock()
	defer e.engine.mu.Unlock()
	e.issuer = issuer
	e.issuerKnown.Store(true)
}

// judge has the Verifier judge answer. It returns what to staple of it, too: the Raw of the result, if the Verifier
// accepts that, or else answer itself.
func (e *entry) judge(issuer *x509.Certificate, answer []byte, now time.Time) (p *ocsp.Response, until time.Time, der []byte, err error) {
	v := e.engine.verifier
	p, until, err = v.Verify(answer, e.leaf, issuer, now)
	switch {
	case err != nil:
		return nil, until, nil, err
	case p == nil:
		return nil, until, nil, errors.New("staple: the Verifier returned neither a response nor an error")
	case len(p.Raw) == 0 || bytes.Equal(p.Raw, answer):
		return p, until, answer, nil
	}
	if _, ok := v.(*ResponseVerifier); ok { // whose Raw says the same
		return p, until, p.Raw, nil
	}
	raw := bytes.Clone(p.Raw)
	again, end, err := v.Verify(raw, e.leaf, issuer, now)
	if err != nil || again == nil || again.Status != p.Status || !again.ThisUpdate.Equal(p.ThisUpdate) {
		return p, until, answer, nil
	}
	return again, end, raw, nil
}

// verify has the Verifier judge answer, and caps its end with the leaf's. The result shares no memory with answer.
func (e *entry) verify(issuer *x509.Certificate, answer []byte) (*response, error) {
	now := wall.Now()
	p, until, der, err := e.judge(issuer, answer, now)
	if err != nil {
		return nil, err
	}
	thisUpdate := p.ThisUpdate
	if thisUpdate.IsZero() {
		thisUpdate = now // of a Verifier that does not say
	}
	if p.Status != ocsp.Good && p.Status != ocsp.Revoked {
		return nil, errUnknown
	}
	r := &response{
		der:        bytes.Clone(der),
		thisUpdate: wall.MicroOf(thisUpdate),
		producedAt: wall.MicroOf(p.ProducedAt),
		until:      wall.MicroOf(until),
		end:        min(wall.MicroOf(until), wall.MicroOf(e.leaf.NotAfter)),
		revoked:    p.Status == ocsp.Revoked,
	}
	r.answer.Store(hashOf(answer))
	if !r.current() {
		return nil, &VerifyError{Reason: ReasonExpired, Leaf: e.leaf,
			Err: fmt.Errorf("the response, or the certificate, ended at %s", name.Time(wall.Time(r.end)))}
	}
	return r, nil
}

// publish makes r the response held, for all handles, with engine.mu held. It returns the kind of event that tells of it.
func (e *entry) publish(r *response) EventKind {
	kind := EventStapled
	switch {
	case r.revoked:
		kind = EventRevoked
	case e.held != nil && e.held.revoked:
		kind = EventReinstated
	}
	e.held = r
	e.stored = false
	for _, c := range e.handles {
		e.publishTo(c)
	}
	return kind
}

func (e *entry) publishTo(c *Certificate) {
	if e.held.revoked && !e.engine.stapleRevoked {
		c.unstaple()
	} else {
		c.setStaple(e.held.der, wall.Time(e.held.end))
	}
}

// unstaple takes the staples of all handles back, with engine.mu held.
func (e *entry) unstaple() {
	for _, c := range e.handles {
		c.unstaple()
	}
}

// holding is r as the schedule wants to know it. Nobody is told that a staple ends together with
// its certificate, since no successor is wanted.
func (e *entry) holding(r *response) schedule.Held {
	return schedule.Held{ThisUpdate: wall.Time(r.thisUpdate), Until: wall.Time(r.until), End: wall.Time(r.end),
		Revoked: r.revoked, Quiet: r.revoked && !e.engine.stapleRevoked || r.end < r.until}
}

// adopt takes r, which came from the cache or with the certificate, if it is newer
// than the response held, and schedules by it. engine.mu is held.
func (e *entry) adopt(r *response, stored bool) {
	g := e.engine
	if e.gone || g.closed || e.held != nil && !r.newer(e.held) {
		return
	}
	kind := e.publish(r)
	e.stored = stored
	now := wall.Now()
	g.schedule.Hold(&e.item, e.holding(r), now)
	if !e.final && !e.settled {
		e.settled = g.driver.next(e).After(now)
	}
	g.emit(e, Event{Kind: kind})
	e.changed.broadcast()
	g.driver.run()
}

// adoptCarried judges the staples that came with the handles. Where the issuer
// is not known, issuer is nil, and they are left alone until their end.
func (e *entry) adoptCarried(issuer *x509.Certificate) {
	g := e.engine
	g.mu.Lock()
	carried := g.carried[e]
	if issuer != nil {
		delete(g.carried, e)
	} else if e.held == nil {
		for _, c := range e.handles {
			for _, der := range carried {
				if end := carriedEnd(der, e.leaf); !end.IsZero() {
					c.setStaple(der, end)
				}
			}
		}
	}
	g.mu.Unlock()
	if len(carried) == 0 || issuer == nil {
		return
	}
	var best *response
	var refused error
	for _, der := range carried {
		if r, err := e.verify(issuer, der); err != nil {
			refused = err
		} else if best == nil || r.newer(best) {
			best = r
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if best != nil {
		e.adopt(best, false)
	}
	if e.held == nil {
		e.unstaple()
	}
	if refused != nil && !g.closed {
		g.log(slog.LevelWarn, "the OCSP staple that came with a certificate was refused", e, slog.Any("error", refused))
	}
}

// conclude ends a round: it publishes, schedules the next, and tells whoever waits
// or listens. engine.mu is held.
func (e *entry) conclude(o outcome) {
	g := e.engine
	now := wall.Now()
	done := schedule.Outcome{Asked: o.asked, By: sourceOf(o.responder), Until: o.due, Err: o.err}
	if o.deferred || o.err != nil && (e.gone || g.closed) { // the latter was canceled
		done.Result = schedule.Deferred
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
		e.askable.Store(true)
		if ca := e.item.Authority(); ca != authority(e.leaf, nil) {
			done.CA = authority(e.leaf, e.issuer) // which is another one if the chain lied
		}
	}
	var kind EventKind
	switch {
	case o.err == nil:
		e.failures = 0
		if kind = EventUnchanged; e.held == nil {
			kind = 0 // what was held is gone since: the clock was set
		}
		done.Result = schedule.Unchanged
		if r := o.response; r != nil && (e.held == nil || r.newer(e.held)) {
			kind = e.publish(r)
			e.stored = o.cached
			done.Result, done.Held = schedule.Newer, e.holding(r)
		}
	case errors.Is(o.err, ErrNoResponder):
		e.failures = 0
		e.askable.Store(false)
		done.Result = schedule.Final
		g.log(slog.LevelDebug, "a certificate is not stapled", e, slog.Any("error", o.err))
	default:
		e.failures++
		kind, done.Result = EventFailed, schedule.Failed
		if o.final {
			done.Result = schedule.Final
		}
		if o.asked {
			done.Answers = answersIn(o.err)
		}
		if len(done.Answers) == 0 {
			done.RetryAfter = retryAfter(o.err)
		}
	}
	g.schedule.Done(&e.item, done, now)
	e.settled = true
	e.rounds++
	if kind != 0 {
		g.emit(e, o.event(kind))
	}
	e.changed.broadcast()
}

// noted does what the schedule has noticed, with engine.mu held.
func (e *entry) noted(n schedule.Notice) {
	g := e.engine
	switch n.Kind {
	case schedule.StapleEnding:
		g.emit(e, Event{Kind: EventExpiring, Err: e.err})
	case schedule.StapleEnded:
		g.emit(e, Event{Kind: EventExpired, Err: e.err})
	case schedule.Expired:
		e.rest(errExpired)
	case schedule.Paused:
		if e.settled {
			return
		}
		e.settled = true
		e.failures++
		e.err = fmt.Errorf("no OCSP response for %s: nobody was asked so far, since requests about others have failed: %w",
			name.Of(e.leaf), n.Err)
		g.emit(e, Event{Kind: EventFailed, Err: e.err})
		e.changed.broadcast()
	}
}

// rest notes that nobody is asked any more, and why, with engine.mu held.
func (e *entry) rest(err error) {
	g := e.engine
	e.err, e.final, e.settled, e.forced, e.failures = err, true, true, false, 0
	e.rounds++
	e.askable.Store(false)
	g.schedule.Rest(&e.item, wall.Now())
	g.log(slog.LevelDebug, "a certificate is not stapled", e, slog.Any("error", err))
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
