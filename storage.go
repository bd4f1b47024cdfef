package staple

import (
	"context"
	"crypto/x509"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-staple/staple/internal/guarded"
	"github.com/go-staple/staple/internal/schedule"
	"github.com/go-staple/staple/internal/wall"
)

// A storage is a Cache and Locker at work: what they have of entries, and what of them fails.
type storage struct {
	engine *engine
	cache  *guarded.Cache // nil: there is none
	locker Locker         // nil: there is none

	// Guarded by engine.mu.
	trouble  trouble
	troubled time.Time // since when there is any
	probed   time.Time // when it was looked last whether there still is
	storing  bool      // attend is at it
	kept     []string  // keys of what the cache did not delete
}

func (s *storage) init(g *engine, cache Cache) {
	s.engine = g
	if cache != nil {
		s.cache = guarded.New(cache)
		if s.cache.Locks() {
			s.locker = s.cache
		}
	}
}

// delete deletes what the cache has under key, now or when it works again.
func (s *storage) delete(key string) {
	g := s.engine
	g.mu.Lock()
	ctx := g.store
	g.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	err := s.cache.Delete(ctx, key)
	if err != nil {
		g.mu.Lock()
		if len(s.kept) < untold {
			s.kept = append(s.kept, key)
		}
		g.mu.Unlock()
	}
	s.report(deleting, err)
}

// storeRest stores what the cache did not take when it came, in the background, with mu held.
func (s *storage) storeRest() { s.attend(0) }

// look sees whether what fails of the cache works again, and stores the rest, in the background, with mu held:
// nobody else may have a use for it for hours.
func (s *storage) look() {
	if s.trouble != 0 && time.Since(s.probed) >= maxSleep {
		s.probed = time.Now()
		s.attend(s.trouble)
	}
}

// attend does what storeRest and look do: failing is what to see about.
func (s *storage) attend(failing trouble) {
	g := s.engine
	if s.cache == nil || s.storing && !g.closed || len(g.entries) == 0 {
		return
	}
	var one *entry
	var rest []*entry
	for _, e := range g.entries {
		one = e
		if s.lacks(e) && e.item.State() != schedule.Working && e.item.State() != schedule.Storing { // whose worker does it
			rest = append(rest, e)
		}
	}
	kept := s.kept
	if len(rest) == 0 && len(kept) == 0 && failing == 0 {
		return
	}
	s.storing, s.kept = true, nil
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		defer func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			s.storing = false
			s.kept = append(s.kept, kept...)
		}()
		for _, e := range rest {
			if !s.save(e) {
				return
			}
		}
		for g.ctx.Err() == nil && len(kept) > 0 {
			key := kept[0]
			kept = kept[1:]
			if s.delete(key); s.failing()&deleting != 0 {
				return
			}
		}
		s.probe(one, s.failing()&failing)
	}()
}

func (s *storage) failing() trouble {
	g := s.engine
	g.mu.Lock()
	defer g.mu.Unlock()
	return s.trouble
}

// probe calls the cache to see whether what fails of it works again: it reads what there is about e, writes the same, and
// takes e's lock for a moment.
func (s *storage) probe(e *entry, failing trouble) {
	g := s.engine
	if failing == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(g.ctx, storeTimeout)
	defer cancel()
	der, err := s.get(ctx, e)
	if g.ctx.Err() != nil {
		return
	}
	if s.report(reading, err); err != nil {
		return
	}
	if failing&writing != 0 {
		if len(der) == 0 {
			g.mu.Lock()
			if held := e.known.Held(); held != nil {
				der = held.DER
			}
			g.mu.Unlock()
		}
		if len(der) > 0 {
			err = s.cache.Put(ctx, e.cacheKey(), der)
			if g.ctx.Err() != nil {
				return
			}
			if s.report(writing, err); err != nil {
				return
			}
		}
	}
	if failing&locking != 0 {
		unlock, _, err := s.locker.TryLock(ctx, e.cacheKey(), time.Second)
		if g.ctx.Err() == nil {
			s.report(locking, err)
		}
		if unlock != nil {
			unlock()
		}
	}
}

// A trouble is what of the cache fails at present, as bits: one line is logged for each
// outage. engine.mu guards it.
type trouble uint8

const (
	reading trouble = 1 << iota
	writing
	deleting
	locking
)

// report notes how it went this time. mu must not be held.
func (s *storage) report(doing trouble, err error) {
	g := s.engine
	g.mu.Lock()
	defer g.mu.Unlock()
	was := s.trouble
	if s.trouble &^= doing; err != nil {
		s.trouble |= doing
	}
	switch {
	case was == 0 && err != nil:
		s.troubled = time.Now()
		s.probed = s.troubled
		name := map[trouble]string{reading: "reading", writing: "writing", deleting: "deleting from", locking: "locking"}[doing]
		g.notices.say(slog.LevelWarn, name+" the OCSP cache fails; stapling goes on without", slog.Any("error", err))
		g.driver.arm()
	case was != 0 && s.trouble == 0:
		g.notices.say(slog.LevelInfo, "the OCSP cache works again", slog.Duration("lasted", time.Since(s.troubled).Round(time.Second)))
	}
	if was&writing != 0 && s.trouble&writing == 0 {
		s.storeRest()
	}
}

// get returns what the cache has about e, which may be nothing.
func (s *storage) get(ctx context.Context, e *entry) ([]byte, error) {
	der, err := s.cache.Get(ctx, e.cacheKey())
	if isMiss(err) {
		return nil, nil
	}
	return der, err
}

// load returns the response that the cache has about e, verified, or nil. An error
// is one of the cache's.
func (s *storage) load(ctx context.Context, e *entry, issuer *x509.Certificate) (*response, error) {
	g := s.engine
	der, err := s.get(ctx, e)
	if err != nil || len(der) == 0 {
		return nil, err
	}
	g.mu.Lock()
	held := e.known.Held()
	g.mu.Unlock()
	if held != nil && held.Is(der) {
		return held, nil
	}
	r, err := e.verify(issuer, der)
	if err == nil {
		return r, nil
	}
	if r = verifyRevoked(g.verifier, e.leaf, issuer, der); r == nil {
		g.mu.Lock()
		g.notices.log(slog.LevelDebug, "a cached OCSP response was refused", e, slog.Any("error", err))
		g.mu.Unlock()
	}
	return r, nil
}

// save writes the response held for e to the cache, unless it is there, and reports whether that is done with.
func (s *storage) save(e *entry) bool {
	g := s.engine
	g.mu.Lock()
	r, ctx := e.known.Held(), g.store
	needed := s.lacks(e)
	g.mu.Unlock()
	if s.cache == nil || !needed {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	err := s.cache.Put(ctx, e.cacheKey(), r.DER)
	if err == nil {
		g.mu.Lock()
		if e.known.Held() == r {
			e.stored = true
		}
		g.mu.Unlock()
	}
	s.report(writing, err)
	return err == nil
}

// lacks reports whether the response held for e should be in the cache and is not, with engine.mu held.
func (s *storage) lacks(e *entry) bool {
	return e.known.Held() != nil && !e.stored && wall.Now().Before(e.leaf.NotAfter)
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
