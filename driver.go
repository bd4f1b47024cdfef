package staple

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-staple/staple/internal/choose"
	"github.com/go-staple/staple/internal/exchange"
	"github.com/go-staple/staple/internal/name"
	"github.com/go-staple/staple/internal/report"
	"github.com/go-staple/staple/internal/schedule"
	"github.com/go-staple/staple/internal/wall"
)

const (
	// maxSleep bounds the driver's sleep, because a timer stands still while the
	// machine is suspended and knows nothing of a clock that is set.
	maxSleep = 30 * time.Second

	// clockJump is how far wall and monotonic clock may drift apart
	// before the wall clock counts as set, or the machine as suspended.
	clockJump = 5 * time.Second

	preloadTimeout = time.Second // for the cache, before Add and TLSConfig return, and for one look into it then and after
	preloaders     = 32          // looks at a time, or as many as there are processors: the cache may be far away

	defaultConcurrency = 16
)

// A driver gives an engine's schedule the time of day, and its rounds to goroutines: one for each round, which
// exist only while there is work, and one timer. Its methods are called with engine.mu held, but for those that
// a goroutine of its own begins with.
type driver struct {
	engine   *engine
	timer    *time.Timer
	armed    bool
	wakes    time.Time // when the timer fires, by the monotonic clock
	lastWall time.Time // when the clock was looked at first, or found to be set
	lastMono time.Time
	faded    uint64 // choose.Faded when it was looked at last
}

func newSchedule(concurrency int, cache bool) *schedule.Schedule {
	if concurrency <= 0 {
		concurrency = defaultConcurrency
	}
	return schedule.New(concurrency, rand.Int64N, cache)
}

// run does what has become due, and sees to it that somebody looks when the next is. It follows each change of
// the schedule.
func (d *driver) run() {
	g := d.engine
	for now := d.now(); ; {
		notices := g.schedule.Notices()
		for _, n := range notices {
			d.noted(n.Item.Owner.(*entry), n)
		}
		if g.closed {
			break
		}
		if it, task := g.schedule.Next(now); task != schedule.Nothing {
			g.wg.Add(1)
			go d.work(it.Owner.(*entry), task)
		} else if len(notices) == 0 {
			break
		}
	}
	d.arm()
	g.files.stir()
}

// noted does what the schedule has noticed of e, with engine.mu held.
func (d *driver) noted(e *entry, n schedule.Notice) {
	g := d.engine
	switch n.Kind {
	case schedule.StapleEnding:
		g.notices.emit(e, Event{Kind: EventExpiring, Err: e.err})
	case schedule.StapleEnded:
		g.notices.emit(e, Event{Kind: EventExpired, Err: e.err})
	case schedule.Expired:
		e.rest(errExpired)
		g.peers.expired(e)
	case schedule.Paused:
		e.rounds++
		e.asking.Store(false)
		e.changed.broadcast()
		known := e.failures > 0 // that asking about it fails
		if e.settled && len(e.handles) > 0 {
			return
		}
		e.settled = true
		e.err = fmt.Errorf("nobody was asked so far, since requests about others have failed: %w", n.Err)
		if e.seeking {
			e.err = lacksIssuer(e.leaf, fmt.Errorf("%w: %w", ErrNoIssuer, e.err))
		} else {
			e.err = fmt.Errorf("no OCSP response for %s: %w", name.Of(e.leaf), e.err)
		}
		if known && len(e.handles) == 0 {
			return // a peer's: each connection would tell it
		}
		e.failures++
		g.notices.emit(e, Event{Kind: EventFailed, Err: e.err})
	}
}

// work does one round, or looks into the cache alone.
func (d *driver) work(e *entry, task schedule.Task) {
	g := d.engine
	defer g.wg.Done()
	defer func() { // also if a Fetcher ends the goroutine
		g.mu.Lock()
		defer g.mu.Unlock()
		g.schedule.Free(&e.item, d.now())
		d.run()
	}()
	e.round(task)
}

// next returns when e will be asked about; zero: not any more.
func (d *driver) next(e *entry) time.Time {
	now := d.now()
	switch {
	case d.engine.closed:
		return time.Time{}
	case e.item.State() == schedule.Idle && !e.settled && !e.gone:
		return now // once the cache was looked into
	}
	return d.engine.schedule.NextAsk(&e.item, now)
}

// arm sets the timer for what comes next.
func (d *driver) arm() {
	g := d.engine
	next := g.schedule.When()
	if g.closed || len(g.entries) == 0 && next.IsZero() {
		return
	}
	wait := maxSleep
	if now := d.now(); !next.IsZero() {
		wait = min(max(next.Sub(now), 0), maxSleep)
	}
	if g.storage.trouble != 0 {
		wait = min(wait, max(time.Until(g.storage.probed.Add(maxSleep)), 0))
	}
	if t := g.report.When(); !t.IsZero() {
		wait = min(wait, max(time.Until(t), 0))
	}
	wakes := time.Now().Add(wait)
	if d.armed && !wakes.Before(d.wakes) {
		return
	}
	if d.armed {
		if !d.timer.Stop() {
			return // it is about to look
		}
		g.wg.Done()
	}
	d.armed, d.wakes = true, wakes
	g.wg.Add(1)
	d.timer = time.AfterFunc(wait, d.tick)
}

func (d *driver) disarm() {
	if d.armed && d.timer.Stop() {
		d.armed = false
		d.engine.wg.Done()
	}
}

// now returns the time of day, and sees to it that no jump of the clock since the last time goes unnoticed. Whatever
// is told to the schedule is told as of then.
func (d *driver) now() time.Time {
	now, mono := wall.Now(), time.Now()
	drift := now.Sub(d.lastWall) - mono.Sub(d.lastMono)
	if first := d.lastMono.IsZero(); first || drift.Abs() >= clockJump {
		d.lastWall, d.lastMono = now, mono
		if !first {
			d.clockSet(now)
		}
	}
	return now
}

// tick is what the timer does.
func (d *driver) tick() {
	g := d.engine
	defer g.wg.Done()
	g.mu.Lock()
	defer g.mu.Unlock()
	d.armed = false
	if g.closed {
		return
	}
	now := d.now()
	if n := choose.Faded(); n != d.faded {
		d.faded = n
		d.show()
	}
	d.remember(now)
	g.wrapped.collect()
	g.wrapped.forget()
	g.peers.forget()
	g.storage.look()
	for _, line := range g.report.Look(time.Now()) {
		g.notices.logReport(line)
	}
	g.schedule.Look(now)
	d.run()
}

// clockSet does what is to be done when the wall clock was set, or the machine slept. What
// follows from a response's own times still holds; pauses that were counted from
// the time that it was then do not.
func (d *driver) clockSet(now time.Time) {
	g := d.engine
	g.schedule.Step(func(yield func(*schedule.Item) bool) {
		for _, e := range g.entries {
			if !yield(&e.item) {
				return
			}
		}
	}, now)
	doubtful := slices.Collect(maps.Keys(g.early))
	for _, e := range g.entries {
		e.known.ClockSet(wall.MicroOf(now))
		switch r := e.known.Held(); {
		case r != nil && r.ThisUpdate > wall.MicroOf(now):
			doubtful = append(doubtful, e)
		case errors.Is(e.err, errExpired) && unanswerable(e.leaf, now) == nil:
			e.final = false
			g.peers.show(e)
			g.schedule.Start(&e.item, now)
		}
	}
	d.reconsiderAll(doubtful)
	g.storage.storeRest() // what seemed to have expired is to be in the cache
	d.show()
}

// remember reconsiders what lay in the future when the clock was set back, and does no longer.
func (d *driver) remember(now time.Time) {
	var due []*entry
	for e, r := range d.engine.early {
		if r.ThisUpdate <= wall.MicroOf(now) {
			due = append(due, e)
		}
	}
	d.reconsiderAll(due)
}

// reconsiderAll reconsiders all of them in the background.
func (d *driver) reconsiderAll(doubtful []*entry) {
	g := d.engine
	if len(doubtful) == 0 || g.closed {
		return
	}
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		for i := 0; i < len(doubtful) && g.ctx.Err() == nil; i++ {
			d.reconsider(doubtful[i])
		}
	}()
}

// show shows again what a handshake found to have ended, by a clock that was wrong.
func (d *driver) show() {
	g := d.engine
	for c := g.first; c != nil; c = c.next {
		if e := c.entry(); e.known.Held() != nil {
			if _, stapled := c.current(); !stapled {
				e.publishTo(c)
				e.changed.broadcast()
				g.notices.tell(e, report.Unstapled)
			}
		}
	}
	for e, k := range g.carried {
		k.shown = time.Time{}
		k.show(e)
	}
}

// reconsider asks the Verifier again about what is held for e and lies in the future since the clock was set: it is held
// no longer if that refuses it now, and again once that does not.
func (d *driver) reconsider(e *entry) {
	g := d.engine
	issuer := e.localIssuer()
	g.mu.Lock()
	held, early := e.known.Held(), g.early[e]
	g.mu.Unlock()
	if issuer == nil {
		return
	}
	if early != nil {
		r, err := e.verify(issuer, early.DER)
		g.mu.Lock()
		if err == nil || early.ThisUpdate <= wall.Micro() { // else it is still to come
			delete(g.early, e)
		}
		if err == nil {
			e.adopt(r, false)
		}
		g.mu.Unlock()
		if err == nil {
			return
		}
	}
	if held == nil || held.Revoked || held.ThisUpdate <= wall.Micro() { // a revocation is not undone by a clock
		return
	}
	if _, err := e.verify(issuer, held.DER); err == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if e.gone || g.closed || e.known.Held() != held {
		return
	}
	g.early[e] = held
	e.known.Drop()
	e.unstaple()
	e.final = false
	now := d.now()
	g.schedule.Hold(&e.item, schedule.Held{}, now)
	g.schedule.Start(&e.item, now)
	d.run()
}

// A preload looks for the responses of newly registered handles: in what came with
// them first, then in the cache. The first round of each begins after that.
type preload struct {
	*engine
	carrying queue          // those with which something came
	judged   sync.WaitGroup // until that is dealt with
	all      queue

	// Guarded by engine.mu.
	ready []*Certificate // for their first rounds, which begin together: no host is to have all workers
	late  bool           // these have begun, and each of the others begins at once
}

// preload runs a preload in parallel. It returns after preloadTimeout at most: what is
// left goes on in the background.
func (g *engine) preload(handles ...*Certificate) {
	p := &preload{engine: g, all: queue{handles: handles}}
	g.mu.Lock()
	for _, c := range handles {
		if g.carried[c.entry()] != nil {
			p.carrying.handles = append(p.carrying.handles, c)
		}
	}
	workers := min(len(handles), max(preloaders, runtime.GOMAXPROCS(0)))
	if g.closed || g.storage.cache == nil && len(p.carrying.handles) == 0 {
		p.ready, workers = handles, 0
	}
	p.judged.Add(workers)
	g.wg.Add(workers)
	g.mu.Unlock()
	ctx, cancel := context.WithTimeout(g.ctx, preloadTimeout)
	defer cancel()
	done := make(chan struct{}, workers)
	for range workers {
		go func() {
			defer g.wg.Done()
			defer func() { done <- struct{}{} }()
			p.work()
		}()
	}
	for ; workers > 0 && ctx.Err() == nil; workers-- {
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
	g.mu.Lock()
	p.late = true
	g.mu.Unlock()
	g.launch(p.ready...)
}

// work is what each goroutine of p does.
func (p *preload) work() {
	defer func() { p.begin(p.all.rest()...) }() // also if a Cache or Verifier ends the goroutine
	p.judge()
	p.judged.Wait()
	for c := p.all.next(p.ctx); c != nil; c = p.all.next(p.ctx) {
		began := time.Now()
		p.read(c)
		if time.Since(began) >= preloadTimeout {
			return // the cache hangs, and would for each of the rest
		}
	}
}

// judge deals with what came with the handles.
func (p *preload) judge() {
	defer p.judged.Done()
	for c := p.carrying.next(p.ctx); c != nil; c = p.carrying.next(p.ctx) {
		c.entry().adoptCarried(c.entry().localIssuer())
	}
}

// A queue is of handles that are taken from it by several goroutines.
type queue struct {
	handles []*Certificate
	taken   atomic.Int64
}

// next takes one; nil: there is none, or ctx has ended.
func (q *queue) next(ctx context.Context) *Certificate {
	if i := q.taken.Add(1) - 1; i < int64(len(q.handles)) && ctx.Err() == nil {
		return q.handles[i]
	}
	return nil
}

// rest takes all that are left.
func (q *queue) rest() []*Certificate {
	n := int64(len(q.handles))
	return q.handles[min(q.taken.Swap(n), n):]
}

// read looks for the response about c in the cache.
func (p *preload) read(c *Certificate) {
	defer p.begin(c)
	e := c.entry()
	p.mu.Lock()
	gone := e.gone
	p.mu.Unlock()
	if p.storage.cache == nil || gone {
		return
	}
	issuer := e.localIssuer()
	if issuer == nil {
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, preloadTimeout)
	defer cancel()
	r, err := p.storage.load(ctx, e, issuer)
	if ctx.Err() == nil {
		p.storage.report(reading, err)
	}
	if r != nil {
		p.mu.Lock()
		e.adopt(r, true)
		e.stored = e.stored || r == e.known.Held()
		p.mu.Unlock()
	}
	if err == nil {
		p.storage.save(e) // what came with the certificate, if the cache has nothing newer
	}
}

// begin lets the first rounds of handles begin.
func (p *preload) begin(handles ...*Certificate) {
	p.mu.Lock()
	late := p.late
	if !late {
		p.ready = append(p.ready, handles...)
	}
	p.mu.Unlock()
	if late {
		p.launch(handles...)
	}
}

// sources returns who is asked about leaf, as far as is known before, and which of the URLs that are there nobody can ask,
// but for LDAP's. A struct that embeds an HTTPFetcher has the method of that, too; others are found out when they have asked.
func sources(fetcher Fetcher, leaf *x509.Certificate) (at []schedule.Source, unusable []string) {
	var named []exchange.Place
	if f, ok := fetcher.(interface {
		named(*x509.Certificate) []exchange.Place
	}); ok {
		named = f.named(leaf)
	} else {
		named = exchange.Places(leaf.OCSPServer, false)
	}
	for _, p := range named {
		switch scheme, _, _ := strings.Cut(strings.ToLower(p.URL), ":"); {
		case p.Fetchable():
			at = append(at, schedule.SourceOf(p.URL))
		case scheme != "ldap" && scheme != "ldaps":
			unusable = append(unusable, p.URL)
		}
	}
	return at, unusable
}
