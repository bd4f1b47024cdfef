package staple

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/go-staple/staple/internal/bounded"
	"github.com/go-staple/staple/internal/choose"
	"github.com/go-staple/staple/internal/crew"
	"github.com/go-staple/staple/internal/issuers"
	"github.com/go-staple/staple/internal/name"
	"github.com/go-staple/staple/internal/report"
	"github.com/go-staple/staple/internal/schedule"
	"github.com/go-staple/staple/internal/seen"
	"github.com/go-staple/staple/internal/wall"
)

// An engine is a Stapler at work: its fields as they were at first use, what it
// manages, and the scheduler's state.
type engine struct {
	fetcher       Fetcher
	verifier      Verifier
	issuers       []*x509.Certificate
	logger        *slog.Logger
	onEvent       func(Event)
	fetchTimeout  time.Duration
	requireStaple bool
	stapleRevoked bool

	ctx    context.Context // ends at Close: for fetching
	cancel context.CancelFunc
	store  context.Context // ends five seconds after Close: for storing
	wg     crew.Crew

	mu      sync.Mutex // guards all below, and what entries and handles say it does; never held across I/O or callbacks
	closed  bool
	entries map[[sha256.Size]byte]*entry
	first   *Certificate // the handles, in order of registration
	last    *Certificate
	orders  uint64               // handles that Add has made so far
	added   *choose.Index[entry] // of the handles that Add made; nil: nobody has asked

	carried map[*entry]*carried
	early   map[*entry]*response // what was held and lay in the future when the clock was set back

	storage storage

	schedule *schedule.Schedule
	driver   driver
	notices  notices
	files    watcher

	peers   peers
	wrapped wrapped
	kinds   choose.Kinds

	unusable bounded.Map[string, bool] // URLs that the log has named
	report   report.Log[*entry]
}

func newEngine(s *Stapler) *engine {
	g := &engine{
		fetcher:       s.Fetcher,
		verifier:      s.Verifier,
		issuers:       slices.Clone(s.Issuers),
		logger:        s.Logger,
		onEvent:       s.OnEvent,
		requireStaple: s.RequireStaple,
		stapleRevoked: s.StapleRevoked,
		entries:       make(map[[sha256.Size]byte]*entry),
		carried:       make(map[*entry]*carried),
		early:         make(map[*entry]*response),
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
	g.fetchTimeout = fetchTimeout
	if f, ok := g.fetcher.(interface{ fetchTimeout() time.Duration }); ok {
		g.fetchTimeout = f.fetchTimeout()
	}
	g.storage.init(g, s.Cache)
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.store = context.WithoutCancel(g.ctx)
	g.schedule = newSchedule(s.Concurrency, s.Cache != nil)
	g.driver.engine = g
	g.peers.engine = g
	g.wrapped = wrapped{engine: g, registered: make(map[*seen.Owner][]*Certificate)}
	g.files.init(g)
	g.notices.init(g)
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
		g.driver.disarm()
		defer g.files.Close(storeTimeout)()
		if g.storage.cache != nil {
			g.storage.cache.Forgive()
			g.storage.storeRest()
		}
		for _, e := range g.entries {
			e.changed.broadcast()
		}
	}
	for !g.wg.Idle() {
		g.mu.Unlock()
		g.wg.Wait()
		g.mu.Lock()
	}
	g.notices.silent = true
	g.mu.Unlock()
	if f, ok := g.fetcher.(interface{ CloseIdleConnections() }); ok {
		f.CloseIdleConnections()
	}
}

// add is Stapler.Add. What is hidden has no place yet.
func (g *engine) add(cert tls.Certificate, hidden bool) (*Certificate, error) {
	leaf, err := parseLeaf(&cert)
	if err != nil {
		return nil, err
	}
	cert.Leaf = leaf
	c := newCertificate(&cert, leaf)
	c.hidden = hidden
	c.slot.Kind = g.kinds.Of(c.slot.Shown())
	if !g.register(c, leaf, cert.OCSPStaple, !hidden) {
		return nil, fmt.Errorf("staple: cannot add %s: %w", name.Of(leaf), ErrClosed)
	}
	g.warnOfChain(c)
	g.preload(c)
	return c, nil
}

// register makes c, which has leaf and came with the staple carried, one of the engine's
// handles. It reports whether the engine is open. Rounds begin with launch.
func (g *engine) register(c *Certificate, leaf *x509.Certificate, carried []byte, added bool) bool {
	key := sha256.Sum256(leaf.Raw)
	at, unusable := sources(g.fetcher, leaf)
	ca := issuers.Authority(leaf, issuers.Claimed(leaf, c.chain()[1:], g.issuers))
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wrapped.collect()
	e := g.entries[key]
	if e == nil {
		e = newEntry(g, leaf, key)
	}
	c.slot.Of = e
	if g.closed {
		return false
	}
	if len(e.handles) == 0 {
		if e.peer == nil {
			g.enter(e, ca, at, unusable)
		} else if e.settled = e.known.Held() != nil; e.final { // there is somebody now who waits for its first round
			e.settled = true
		}
		g.schedule.SetPeer(&e.item, false, g.driver.now())
	}
	e.handles = append(e.handles, c)
	c.added = added
	if !c.returned {
		e.plain.Store(true)
	}
	g.link(c, g.last)
	if added {
		g.orders++
		c.slot.Order = g.orders
		if g.added != nil {
			g.added.Add(&c.slot)
		}
	}
	e.carry(c, carried)
	switch {
	case e.known.Held() != nil:
		e.publishTo(c)
	case len(e.handles) == 1:
		if err := unanswerable(leaf, wall.Now()); err != nil {
			e.rest(err)
		}
	case e.issuer == nil && unanswerable(leaf, wall.Now()) == nil:
		e.final, e.joined = false, true // the new chain may have what the others lack
		g.found(e, at)
		e.settled = e.settled && (e.item.State() == schedule.Waiting || e.item.State() == schedule.Following)
	}
	g.driver.run()
	return true
}

// found says that e's issuer is known now, or may be, so that its responders may be asked, with mu held.
func (g *engine) found(e *entry, at []schedule.Source) {
	if e.seeking && e.item.State() != schedule.Working {
		e.seeking = false
		g.schedule.Move(&e.item, at, g.driver.now())
	}
}

// enter makes e one that is asked about, with mu held.
func (g *engine) enter(e *entry, ca string, at []schedule.Source, unusable []string) {
	g.entries[e.key] = e
	e.askable.Store(len(at) > 0)
	g.schedule.Add(&e.item, ca, at, e.leaf.NotAfter)
	for _, u := range unusable {
		if !g.unusable.Get(u) {
			g.unusable.Put(u, true)
			g.notices.log(slog.LevelWarn, "the URL of an OCSP responder is neither http nor https, and nobody asks there", e, slog.String("responder", u))
		}
	}
}

// warnOfChain logs what of a chain does not parse, which clients will not like.
func (g *engine) warnOfChain(c *Certificate) {
	for i, der := range c.chain()[1:] {
		if _, err := issuers.Intern(der); err != nil {
			g.mu.Lock()
			g.notices.log(slog.LevelWarn, "a certificate of a chain does not parse", c.entry(), slog.Int("index", i+1), slog.Any("error", err))
			g.mu.Unlock()
		}
	}
}

// launch schedules the first rounds of newly registered handles.
func (g *engine) launch(handles ...*Certificate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return
	}
	now := g.driver.now()
	for _, c := range handles {
		e := c.entry()
		if !e.settled && !e.final {
			g.schedule.Start(&e.item, now)
		}
		if e.mustStaple && now.Before(e.leaf.NotAfter) {
			g.notices.tell(e, report.Unstapled)
		}
	}
	g.driver.run()
}

// drop removes a handle, and its entry if it was the last, with mu held.
func (g *engine) drop(c *Certificate) {
	e := c.entry()
	if c.removed || e.gone || c == e.peer {
		return
	}
	c.removed = true
	if c.returned {
		g.wrapped.seen.Remove(e.key, c)
	}
	next := c.next
	g.unlink(c)
	if c.added && g.added != nil {
		g.added.Remove(&c.slot, addedFrom(next))
	}
	e.handles = slices.DeleteFunc(e.handles, func(h *Certificate) bool { return h == c })
	if len(e.handles) == 0 {
		delete(g.carried, e)
		g.notices.tell(e, report.Gone)
		if e.peer == nil {
			g.leave(e)
		} else {
			g.schedule.SetPeer(&e.item, true, g.driver.now())
		}
	}
	e.changed.broadcast()
}

// remove is Certificate.Remove.
func (g *engine) remove(c *Certificate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.drop(c)
	if e := c.entry(); c == e.peer && !e.known.Revoked() {
		g.peers.drop(e)
	}
}

// leave ends the care for e, with mu held.
func (g *engine) leave(e *entry) {
	e.gone = true
	delete(g.entries, e.key)
	delete(g.early, e)
	g.schedule.Remove(&e.item, g.driver.now())
	if e.cancel != nil {
		e.cancel()
	}
	e.changed.broadcast()
}

// link puts c after another handle, with mu held; nil: there is none.
func (g *engine) link(c, after *Certificate) {
	c.prev = after
	if after != nil {
		c.next, after.next = after.next, c
	} else {
		g.first = c
	}
	if c.next != nil {
		c.next.prev = c
	} else {
		g.last = c
	}
}

func (g *engine) unlink(c *Certificate) {
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		g.last = c.prev
	}
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		g.first = c.next
	}
	c.next, c.prev = nil, nil
}

// succeed lists next, which was hidden, in the place of old, which it drops; or last, if old was removed. mu is held.
func (g *engine) succeed(old, next *Certificate) {
	g.unlink(next)
	next.hidden, next.added = false, true
	if old.removed {
		g.link(next, g.last)
		g.orders++
		next.slot.Order = g.orders
		if g.added != nil {
			g.added.Add(&next.slot)
		}
		return
	}
	g.link(next, old)
	next.slot.Order = old.slot.Order
	if g.added != nil {
		g.added.Replace(&old.slot, &next.slot, addedFrom(next.next))
	}
	old.added = false
	g.drop(old)
}

// certificates returns the handles of what is served, in order.
func (g *engine) certificates() []*Certificate {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wrapped.collect()
	var all []*Certificate
	for c := g.first; c != nil; c = c.next {
		if !c.hidden {
			all = append(all, c)
		}
	}
	return all
}

// addedIndex returns the index of the handles that Add makes.
func (g *engine) addedIndex() *choose.Index[entry] {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.added == nil {
		g.added = choose.NewIndex[entry]()
		for s := range addedFrom(g.first) {
			g.added.Add(s)
		}
	}
	return g.added
}

// addedFrom returns the slots of the handles that Add made from c on, in order. engine.mu must be held.
func addedFrom(c *Certificate) iter.Seq[*slot] {
	return func(yield func(*slot) bool) {
		for ; c != nil; c = c.next {
			if c.added && !yield(&c.slot) {
				return
			}
		}
	}
}

// await waits until done returns true, which is called with mu held and each time
// that e changes, or until ctx ends, whose error it returns.
func (g *engine) await(ctx context.Context, e *entry, done func() bool) error {
	return g.awaitSignal(ctx, &e.changed, done)
}

func (g *engine) awaitSignal(ctx context.Context, s *signal, done func() bool) error {
	for {
		g.mu.Lock()
		if done() {
			g.mu.Unlock()
			return nil
		}
		changed := s.wait()
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ended reports whether nobody need wait for the first round of e, with mu held.
func (g *engine) ended(e *entry) bool { return e.settled || e.gone || g.closed }

func (g *engine) hasEnded(e *entry) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ended(e)
}

// unlocked calls do while mu, which is held, is not.
func (g *engine) unlocked(do func()) {
	g.mu.Unlock()
	defer g.mu.Lock() // also if do ends the goroutine
	do()
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
