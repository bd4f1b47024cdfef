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
	"iter"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-staple/staple/internal/wall"
	"golang.org/x/crypto/ocsp"
)

const (
	preloadTimeout = time.Second      // for the cache, before Add and TLSConfig return
	storeTimeout   = 5 * time.Second  // for one call of the cache, and for those that Close waits for
	fetchTimeout   = 30 * time.Second // for one Fetch or FetchIssuer
	leaseTTL       = 10 * time.Second // of the lock among processes
	maxDeferrals   = 30               // looks at a lock that another process has, a tenth of leaseTTL apart, before going on without
)

// An engine is a Stapler at work: its fields as they were at first use, what it
// manages, and the scheduler's state.
type engine struct {
	fetcher       Fetcher
	verifier      Verifier
	cache         Cache
	locker        Locker
	issuers       []*x509.Certificate
	logger        *slog.Logger
	onEvent       func(Event)
	requireStaple bool
	stapleRevoked bool

	ctx    context.Context // ends at Close: for fetching
	cancel context.CancelFunc
	store  context.Context // ends five seconds after Close: for storing
	wg     sync.WaitGroup

	showing sync.Mutex // guards the change of what handshakes are given; no other lock is taken under it

	mu      sync.Mutex // guards all below, and what entries and handles say it does; never held across I/O or callbacks
	closed  bool
	entries map[[sha256.Size]byte]*entry
	first   *Certificate // the handles, in order of registration
	last    *Certificate
	orders  uint64 // handles that Add has made so far
	added   *index // of the handles that Add made; nil: nobody has asked

	registered map[*owner][]*Certificate // the handles of Certificates of configurations

	schedule
	notices

	kinds    kindTable
	arrays   arrays
	seen     callbackTable
	released releaseList

	trouble trouble // of the cache
}

func newEngine(s *Stapler) *engine {
	g := &engine{
		fetcher:       s.Fetcher,
		verifier:      s.Verifier,
		cache:         s.Cache,
		issuers:       slices.Clone(s.Issuers),
		logger:        s.Logger,
		onEvent:       s.OnEvent,
		requireStaple: s.RequireStaple,
		stapleRevoked: s.StapleRevoked,
		entries:       make(map[[sha256.Size]byte]*entry),
		registered:    make(map[*owner][]*Certificate),
	}
	if g.fetcher == nil {
		g.fetcher = new(HTTPFetcher)
	}
	if g.verifier == nil {
		g.verifier = new(ResponseVerifier)
	}
	if g.logger == nil {
		g.logger = slog.Default()
	}
	g.locker, _ = g.cache.(Locker)
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.store = context.WithoutCancel(g.ctx)
	g.schedule.init(s.Concurrency)
	g.seen.init()
	return g
}

func (g *engine) close() {
	g.mu.Lock()
	if !g.closed {
		g.closed = true
		var cancel context.CancelFunc
		g.store, cancel = context.WithTimeout(g.store, storeTimeout)
		defer cancel()
		g.cancel()
		g.disarm()
		for _, e := range g.entries {
			e.due, e.warn = time.Time{}, time.Time{}
			e.changed.broadcast()
		}
	}
	g.mu.Unlock()
	g.wg.Wait()
	g.mu.Lock()
	g.silent = true
	g.mu.Unlock()
	if f, ok := g.fetcher.(*HTTPFetcher); ok {
		f.closeIdle()
	}
}

// An entry is what the engine knows of one leaf, however many handles it has.
type entry struct {
	engine     *engine
	key        [sha256.Size]byte // of the leaf's DER
	leaf       *x509.Certificate
	until      int64 // in Unix microseconds: how long handshakes wait for the first round of a Must-Staple certificate, at least
	unstapled  atomic.Uint64
	waiting    atomic.Int32 // handshakes that wait for the first round
	mustStaple bool

	issuerKnown atomic.Bool
	plain       atomic.Bool // there has been a handle whose certificates a callback may return

	// Guarded by engine.mu.
	handles     []*Certificate // oldest first
	issuer      *x509.Certificate
	carried     [][]byte  // staples that came with the handles and are still to be verified
	held        *response // the newest accepted, also past its end; nil: none yet
	gone        bool      // no handle is left
	stored      bool      // the cache has it
	final       bool      // no further rounds: err tells why
	forced      bool      // Refresh was called
	settled     bool      // the first round has ended
	deferrals   uint8     // in a row, because another process had the lock
	rounds      uint      // ended
	failures    int
	err         error
	responder   string
	lastAttempt time.Time
	changed     signal
	job
}

// A response is one that the Verifier accepted. It never changes.
type response struct {
	der                    []byte
	thisUpdate, producedAt time.Time
	until                  time.Time // by the Verifier
	end                    time.Time // until, or the leaf's NotAfter if that is earlier
	revoked                bool
}

// newer reports whether r supersedes old.
func (r *response) newer(old *response) bool {
	if c := r.thisUpdate.Compare(old.thisUpdate); c != 0 {
		return c > 0
	}
	if c := r.producedAt.Compare(old.producedAt); c != 0 {
		return c > 0
	}
	if c := r.end.Compare(old.end); c != 0 {
		return c > 0
	}
	return r.revoked && !old.revoked
}

// register makes c, which has leaf and came with the staple carried, one of the engine's
// handles. It reports whether the engine is open. Rounds begin with launch.
func (g *engine) register(c *Certificate, leaf *x509.Certificate, carried []byte, added bool) bool {
	key := sha256.Sum256(leaf.Raw)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.collect()
	e := g.entries[key]
	if e == nil {
		e = &entry{engine: g, key: key, leaf: leaf, mustStaple: mustStaple(leaf), until: wall.MicroOf(wall.Now().Add(mustStapleFor))}
		e.index = -1
	}
	c.entry = e
	if g.closed {
		return false
	}
	if len(e.handles) == 0 {
		g.entries[key] = e
		e.host = g.hostOf(leaf)
	}
	e.handles = append(e.handles, c)
	c.added = added
	if !c.returned {
		e.plain.Store(true)
	}
	if c.prev = g.last; c.prev != nil {
		c.prev.next = c
	} else {
		g.first = c
	}
	g.last = c
	if added {
		g.orders++
		c.order = g.orders
		if g.added != nil {
			g.added.add(c, leaf, false)
		}
	}
	if len(carried) > 0 {
		e.carried = append(e.carried, carried)
	}
	switch {
	case e.held != nil:
		g.publishTo(c, e.held)
	case len(e.handles) == 1:
		if err := unanswerable(leaf, wall.Now()); err != nil {
			g.conclude(e, outcome{err: err, final: true})
		}
	case e.issuer == nil:
		g.reconsider(e) // the new chain may have what the others lack
	}
	g.arm()
	return true
}

// reconsider makes launch begin anew with e, for which an issuer was missing.
func (g *engine) reconsider(e *entry) {
	if unanswerable(e.leaf, wall.Now()) == nil {
		e.final, e.settled, e.due = false, false, time.Time{}
		g.place(e)
	}
}

// launch schedules the first rounds of newly registered handles.
func (g *engine) launch(handles ...*Certificate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return
	}
	now := wall.Now()
	for _, c := range handles {
		if e := c.entry; !e.settled && !e.final && e.due.IsZero() {
			e.due = now
			g.place(e)
		}
	}
	g.arm()
}

// drop removes a handle, and its entry if it was the last, with mu held.
func (g *engine) drop(c *Certificate) {
	if c.removed || c.entry.gone {
		return
	}
	c.removed = true
	e := c.entry
	if c.returned {
		g.seen.removeHandle(c)
	}
	next := c.next
	if next != nil {
		next.prev = c.prev
	} else {
		g.last = c.prev
	}
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		g.first = c.next
	}
	c.next, c.prev = nil, nil
	if c.added && g.added != nil {
		g.added.remove(c, e.leaf, addedFrom(next))
	}
	e.handles = slices.DeleteFunc(e.handles, func(h *Certificate) bool { return h == c })
	if len(e.handles) == 0 {
		e.gone = true
		delete(g.entries, e.key)
		g.unschedule(e)
		g.leaveHost(e)
	}
	e.changed.broadcast()
}

func (g *engine) certificates() []*Certificate {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.collect()
	var all []*Certificate
	for c := g.first; c != nil; c = c.next {
		all = append(all, c)
	}
	return all
}

// addedIndex returns the index of the handles that Add makes.
func (g *engine) addedIndex() *index {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.added == nil {
		g.added = newIndex(changingShards)
		for c := range addedFrom(g.first) {
			g.added.add(c, c.entry.leaf, false)
		}
	}
	return g.added
}

// addedFrom returns the handles that Add made from c on, in order. engine.mu must be held.
func addedFrom(c *Certificate) iter.Seq[*Certificate] {
	return func(yield func(*Certificate) bool) {
		for ; c != nil; c = c.next {
			if c.added && !yield(c) {
				return
			}
		}
	}
}

// publish makes r the response held, for all of e's handles, with mu held.
func (g *engine) publish(e *entry, r *response) {
	e.held = r
	e.stored = false
	for _, c := range e.handles {
		g.publishTo(c, r)
	}
}

func (g *engine) publishTo(c *Certificate, r *response) {
	if r.revoked && !g.stapleRevoked {
		c.unstaple()
	} else {
		c.setStaple(r.der, r.end)
	}
}

// unstaple takes the staples of all handles back, with mu held.
func (e *entry) unstaple() {
	for _, c := range e.handles {
		c.unstaple()
	}
}

// preload looks for the responses of newly registered handles: in what came with
// them first, then in the cache; in parallel, and for preloadTimeout at most. What
// it does not get to is left to the first rounds.
func (g *engine) preload(handles []*Certificate) {
	ctx, cancel := context.WithTimeout(g.ctx, preloadTimeout)
	defer cancel()
	g.mu.Lock()
	carrying := slices.DeleteFunc(slices.Clone(handles), func(c *Certificate) bool { return len(c.entry.carried) == 0 })
	g.mu.Unlock()
	g.each(ctx, carrying, func(e *entry) { g.adoptCarried(e, g.localIssuer(e)) })
	if g.cache == nil {
		return
	}
	g.each(ctx, handles, func(e *entry) {
		issuer := g.localIssuer(e)
		if issuer == nil {
			return
		}
		r, err := g.load(ctx, e, issuer)
		if ctx.Err() == nil {
			g.reportCache(reading, err)
		}
		if r != nil {
			g.mu.Lock()
			g.adopt(e, r, true)
			e.stored = e.stored || r == e.held
			g.mu.Unlock()
		}
		if err == nil {
			g.save(e) // what came with the certificate, if the cache has nothing newer
		}
	})
}

// each calls f for the entry of each handle, in parallel. It returns when all calls
// have, or when ctx ends: then no further calls begin.
func (g *engine) each(ctx context.Context, handles []*Certificate, f func(*entry)) {
	g.mu.Lock()
	workers := min(len(handles), 4*runtime.GOMAXPROCS(0))
	if g.closed {
		workers = 0
	}
	g.wg.Add(workers)
	g.mu.Unlock()
	done := make(chan struct{}, workers)
	var next atomic.Int64
	for range workers {
		go func() {
			defer g.wg.Done()
			defer func() { done <- struct{}{} }()
			for i := next.Add(1) - 1; i < int64(len(handles)) && ctx.Err() == nil; i = next.Add(1) - 1 {
				f(handles[i].entry)
			}
		}()
	}
	for range workers {
		select {
		case <-done:
		case <-ctx.Done():
			return
		}
	}
}

// adoptCarried judges the staples that came with the handles of e. Where the issuer
// is not known, issuer is nil, and they are left alone until their end.
func (g *engine) adoptCarried(e *entry, issuer *x509.Certificate) {
	g.mu.Lock()
	carried := e.carried
	if issuer != nil {
		e.carried = nil
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
		if r, err := g.verify(e, issuer, der); err != nil {
			refused = err
		} else if best == nil || r.newer(best) {
			best = r
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if best != nil {
		g.adopt(e, best, false)
	}
	if e.held == nil {
		e.unstaple()
	}
	if refused != nil {
		g.log(slog.LevelWarn, "the OCSP staple that came with a certificate was refused", e, slog.Any("error", refused))
	}
}

// adopt takes r, which came from the cache or with the certificate, if it is newer
// than the response held, and schedules by it. mu is held.
func (g *engine) adopt(e *entry, r *response, stored bool) {
	if e.gone || g.closed || e.held != nil && !r.newer(e.held) {
		return
	}
	old := e.held
	g.publish(e, r)
	e.stored = stored
	now := wall.Now()
	if !e.final {
		e.setDue(refreshTime(r, now))
		e.settled = e.settled || e.due.After(now)
	}
	g.announce(e, r, old, outcome{})
	g.reschedule(e)
	e.changed.broadcast()
}

// load returns the response that the cache has about e, verified, or nil. An error
// is one of the cache's.
func (g *engine) load(ctx context.Context, e *entry, issuer *x509.Certificate) (*response, error) {
	der, err := g.cache.Get(ctx, e.cacheKey())
	if isMiss(err) {
		err = nil
	}
	if err != nil || len(der) == 0 {
		return nil, err
	}
	g.mu.Lock()
	held := e.held
	g.mu.Unlock()
	if held != nil && bytes.Equal(der, held.der) {
		return held, nil
	}
	r, err := g.verify(e, issuer, der)
	if err != nil {
		g.mu.Lock()
		g.log(slog.LevelDebug, "a cached OCSP response was refused", e, slog.Any("error", err))
		g.mu.Unlock()
		return nil, nil
	}
	return r, nil
}

// save writes the response held to the cache, unless it is there.
func (g *engine) save(e *entry) {
	g.mu.Lock()
	r, ctx := e.held, g.store
	stored := e.stored
	g.mu.Unlock()
	if g.cache == nil || r == nil || stored {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	err := g.cache.Put(ctx, e.cacheKey(), r.der)
	g.reportCache(writing, err)
	if err == nil {
		g.mu.Lock()
		if e.held == r {
			e.stored = true
		}
		g.mu.Unlock()
	}
}

func (e *entry) cacheKey() string { return hex.EncodeToString(e.key[:]) }

// verify has the Verifier judge der, and caps its end with the leaf's.
func (g *engine) verify(e *entry, issuer *x509.Certificate, der []byte) (*response, error) {
	now := wall.Now()
	p, until, err := g.verifier.Verify(der, e.leaf, issuer, now)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return nil, errors.New("staple: the Verifier returned neither a response nor an error")
	}
	thisUpdate := p.ThisUpdate
	if thisUpdate.IsZero() {
		thisUpdate = now // of a Verifier that does not say
	}
	if p.Status != ocsp.Good && p.Status != ocsp.Revoked {
		return nil, errUnknown
	}
	r := &response{
		der:        der,
		thisUpdate: thisUpdate.Round(0),
		producedAt: p.ProducedAt.Round(0),
		until:      until.Round(0),
		end:        until.Round(0),
		revoked:    p.Status == ocsp.Revoked,
	}
	if e.leaf.NotAfter.Before(r.end) {
		r.end = e.leaf.NotAfter
	}
	if !now.Before(r.end) {
		return nil, &VerifyError{Reason: ReasonExpired, Leaf: e.leaf,
			Err: fmt.Errorf("the response, or the certificate, ended at %s", r.end.Format(time.RFC3339))}
	}
	return r, nil
}

// await waits until done returns true, which is called with mu held and each time
// that e changes, or until ctx ends, whose error it returns.
func (g *engine) await(ctx context.Context, e *entry, done func() bool) error {
	for {
		g.mu.Lock()
		if done() {
			g.mu.Unlock()
			return nil
		}
		changed := e.changed.wait()
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (g *engine) unsettled() []*entry {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.collect()
	var all []*entry
	for c := g.first; c != nil && !g.closed; c = c.next {
		if !c.entry.settled && c.entry.handles[0] == c {
			all = append(all, c.entry)
		}
	}
	return all
}

// ended reports whether nobody need wait for the first round of e, with mu held.
func (g *engine) ended(e *entry) bool { return e.settled || e.gone || g.closed }

func (g *engine) hasEnded(e *entry) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ended(e)
}

// countUnstapled notes a handshake without a staple.
func (e *entry) countUnstapled() {
	if len(e.leaf.OCSPServer) > 0 {
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
	return fmt.Errorf("staple: handshake refused: no valid OCSP response is held for %s, which is Must-Staple", describe(leaf))
}

// A signal tells any number of waiters that something has changed. Its zero value
// is ready; engine.mu guards it.
type signal struct{ c chan struct{} }

func (s *signal) wait() <-chan struct{} {
	if s.c == nil {
		s.c = make(chan struct{})
	}
	return s.c
}

func (s *signal) broadcast() {
	if s.c != nil {
		close(s.c)
		s.c = nil
	}
}
