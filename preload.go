package staple

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

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
	if g.closed || g.cache == nil && len(p.carrying.handles) == 0 {
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
	if p.cache == nil || gone {
		return
	}
	issuer := e.localIssuer()
	if issuer == nil {
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, preloadTimeout)
	defer cancel()
	r, err := e.load(ctx, issuer)
	if ctx.Err() == nil {
		p.reportCache(reading, err)
	}
	if r != nil {
		p.mu.Lock()
		e.adopt(r, true)
		e.stored = e.stored || r == e.known.Held()
		p.mu.Unlock()
	}
	if err == nil {
		e.save() // what came with the certificate, if the cache has nothing newer
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
