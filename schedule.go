package staple

import (
	"container/heap"
	"container/list"
	"context"
	"crypto/x509"
	"errors"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-staple/staple/internal/wall"
)

const (
	// maxSleep bounds the scheduler's sleep, because a timer stands still while
	// the machine is suspended and knows nothing of a clock that is set.
	maxSleep = 30 * time.Second

	// clockJump is how far wall and monotonic clock may drift apart between two
	// looks before the wall clock counts as set, or the machine as suspended.
	clockJump = 5 * time.Second

	// clockSkew is how far in the future a held response may begin after the clock was set.
	clockSkew = 5 * time.Minute

	defaultConcurrency = 16
)

// A class is the urgency of a round.
type class int8

const (
	firstStaple class = iota // nothing valid is held, or somebody waits
	nearEnd
	routine
	classes
)

// A job is the scheduler's part of an entry, guarded by engine.mu.
type job struct {
	host     *host
	due      time.Time // the next round; zero: none
	warn     time.Time // when to look whether the staple is about to end, or has ended; zero: never
	index    int       // in the heap; -1: not there
	class    class     // of the queue it waits in, while queued
	waitsAt  *host     // whose queue it waits in, or in whose turn it has a worker
	queued   bool      // ready, for want of a worker
	busy     bool      // a worker has it
	fetching bool      // it has, and the round has not ended
	again    bool      // another round was asked for while busy
	asked    bool      // the responder asked for the pause
	peek     bool      // the round is only to look into the cache
	urgent   bool      // it cannot wait for its host to recover
	cancel   context.CancelFunc
}

// A host is what the scheduler knows of one responder host, guarded by engine.mu.
// While it fails, it gets one request at a time, with growing pauses, whatever the
// number of certificates; as soon as one succeeds, the rest follow.
type host struct {
	name     string
	entries  int
	inFlight int
	failures int
	since    time.Time // the first of these failures
	until    time.Time // the end of the pause
	ready    [classes][]*entry
	turn     [classes]*list.Element
	logged   [EventReinstated + 1]time.Time // the last line of each kind of event
}

// A schedule decides when rounds run and in which order: a heap of what is due
// later, queues of what is due now, one timer, and a bounded number of workers,
// which exist only while there is work.
type schedule struct {
	concurrency int
	inFlight    int
	later       entryHeap
	hosts       map[string]*host
	paused      []*host            // whose entries have all left
	urgentHost  *host              // stands in for the host of entries that cannot wait for it
	hostWake    time.Time          // when the next pause of a host ends; zero: none is known
	turns       [classes]list.List // hosts that have entries ready, whose turn is next first
	timer       *time.Timer
	armed       bool
	wakes       time.Time // when the timer fires
	lastWall    time.Time
	lastMono    time.Time
}

func (s *schedule) init(concurrency int) {
	s.concurrency = concurrency
	if s.concurrency <= 0 {
		s.concurrency = defaultConcurrency
	}
	s.hosts = make(map[string]*host)
	s.urgentHost = new(host)
}

// hostOf counts one more entry at the host that answers for leaf.
func (s *schedule) hostOf(leaf *x509.Certificate) *host {
	name := ""
	if len(leaf.OCSPServer) > 0 {
		if u, err := url.Parse(leaf.OCSPServer[0]); err == nil {
			name = strings.ToLower(u.Host)
		}
	}
	h := s.hosts[name]
	if h == nil {
		h = &host{name: name}
		s.hosts[name] = h
	}
	h.entries++
	return h
}

// leaveHost counts one entry less. A host that pauses is remembered until its
// pause is over, so that nobody gets round it by adding a certificate anew.
func (s *schedule) leaveHost(e *entry) {
	if e.host.entries--; e.host.entries == 0 {
		s.paused = append(s.paused, e.host)
		s.forgetHosts(wall.Now())
	}
}

func (s *schedule) forgetHosts(now time.Time) {
	s.paused = slices.DeleteFunc(s.paused, func(h *host) bool {
		over := !h.until.After(now)
		if over && h.entries == 0 {
			delete(s.hosts, h.name)
		}
		return over || h.entries > 0
	})
}

// setDue sets when the next round is due: not after the leaf has expired, when e
// becomes one that nobody is asked about.
func (e *entry) setDue(at time.Time) {
	if end := e.leaf.NotAfter.Add(time.Second); at.After(end) {
		at = end
	}
	e.due = at
}

// wake returns when the scheduler must look at e; zero: not at all.
func (e *entry) wake() time.Time {
	switch {
	case e.due.IsZero() || e.queued || e.busy:
		return e.warn
	case e.warn.IsZero() || e.due.Before(e.warn):
		return e.due
	}
	return e.warn
}

// reschedule puts e where its times say, and sees to it that somebody will look.
func (g *engine) reschedule(e *entry) {
	g.place(e)
	g.arm()
}

// place puts e where its times say in the heap. It must follow each change of
// them before the heap is used again.
func (g *engine) place(e *entry) {
	if g.closed || e.gone {
		return
	}
	switch in := !e.wake().IsZero(); {
	case in && e.index >= 0:
		heap.Fix(&g.later, e.index)
	case in:
		heap.Push(&g.later, e)
	case e.index >= 0:
		heap.Remove(&g.later, e.index)
	}
}

func (g *engine) unschedule(e *entry) {
	e.due, e.warn = time.Time{}, time.Time{}
	e.queued = false
	if e.index >= 0 {
		heap.Remove(&g.later, e.index)
	}
	if e.cancel != nil {
		e.cancel()
	}
}

// arm sets the timer for what comes next.
func (g *engine) arm() {
	if g.closed || len(g.entries) == 0 && len(g.paused) == 0 {
		return
	}
	now := wall.Now()
	at := now.Add(maxSleep)
	if len(g.later) > 0 {
		if w := g.later[0].wake(); w.Before(at) {
			at = w
		}
	}
	if !g.hostWake.IsZero() && g.hostWake.Before(at) {
		at = g.hostWake
	}
	if g.armed && !at.Before(g.wakes) && g.wakes.Sub(now) <= maxSleep {
		return
	}
	if g.armed {
		if !g.timer.Stop() {
			return // it is about to look
		}
		g.wg.Done()
	}
	if g.lastMono.IsZero() {
		g.lastWall, g.lastMono = now, time.Now()
	}
	g.armed, g.wakes = true, at
	g.wg.Add(1)
	g.timer = time.AfterFunc(max(at.Sub(now), 0), g.tick)
}

func (g *engine) disarm() {
	if g.armed && g.timer.Stop() {
		g.armed = false
		g.wg.Done()
	}
}

// tick moves what is due from the heap to the queues.
func (g *engine) tick() {
	defer g.wg.Done()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.armed = false
	if g.closed {
		return
	}
	now := wall.Now()
	g.noticeClock(now)
	g.collect()
	g.forget()
	g.forgetHosts(now)
	for len(g.later) > 0 {
		e := g.later[0]
		if e.wake().After(now) {
			break
		}
		if !e.warn.IsZero() && !e.warn.After(now) {
			g.warnOf(e, now)
			if e.queued { // behind a host that fails
				e.urgent = true
				g.enqueue(e, e.urgency(now))
			}
		}
		if !e.due.IsZero() && !e.due.After(now) && !e.queued && !e.busy {
			g.comeDue(e, now)
		}
		g.place(e)
	}
	g.dispatch()
	if !g.hostWake.IsZero() && !g.hostWake.After(now) {
		g.wakeHosts(now)
	}
	g.arm()
}

// comeDue queues e for a round.
func (g *engine) comeDue(e *entry, now time.Time) {
	pause := e.host.until.Sub(now)
	// Before it waits for its host, it looks once whether another process was luckier.
	e.peek = pause > 0 && g.cache != nil && !e.peek && !e.forced
	e.urgent = e.peek || e.forced || pause > e.patience(now)
	g.enqueue(e, e.urgency(now))
}

// enqueue puts e at the end of its host's queue, or moves it to a more urgent one.
func (g *engine) enqueue(e *entry, c class) {
	h := e.turnHost(g)
	if e.queued && e.class <= c && e.waitsAt == h {
		return
	}
	if len(h.ready[c]) > 2*len(g.entries) { // most have left, or moved to another queue
		h.ready[c] = slices.DeleteFunc(h.ready[c], func(e *entry) bool { return !e.waits(h, c) })
	}
	e.queued, e.class, e.waitsAt = true, c, h
	h.ready[c] = append(h.ready[c], e)
	if h.turn[c] == nil {
		h.turn[c] = g.turns[c].PushBack(h)
	}
	g.wakeFor(h)
}

// wakeFor sees to it that somebody looks when the pause of h ends.
func (s *schedule) wakeFor(h *host) {
	if h.failures > 0 && (s.hostWake.IsZero() || h.until.Before(s.hostWake)) {
		s.hostWake = h.until
	}
}

// recovered puts an end to the pause of a host and, if it was in trouble for some
// time, to those of the certificates which failed with it.
func (g *engine) recovered(h *host, now time.Time) {
	outage := h.failures > 0 && now.Sub(h.since) >= hostOutage
	h.failures, h.until = 0, time.Time{}
	if !outage {
		return
	}
	for _, e := range g.later {
		if e.host == h && e.failures > 0 && !e.asked && !e.due.IsZero() {
			if due := now.Add(jitter(hostSpread)); due.Before(e.due) {
				e.due = due
			}
		}
	}
	heap.Init(&g.later)
}

// turnHost returns the host in whose turn e has its own.
func (e *entry) turnHost(g *engine) *host {
	if e.urgent {
		return g.urgentHost
	}
	return e.host
}

// waits reports whether e still waits in a queue that it was put into.
func (e *entry) waits(h *host, c class) bool { return e.queued && e.class == c && e.waitsAt == h }

// mayTake reports whether h may be asked. full tells that no other host has
// anything ready.
func (g *engine) mayTake(h *host, full bool, now time.Time) bool {
	if h.failures > 0 {
		return h.inFlight == 0 && !now.Before(h.until)
	}
	return full || h.inFlight < max(g.concurrency/2, 1)
}

// wakeHosts notes when the next pause of a host with something ready ends.
func (g *engine) wakeHosts(now time.Time) {
	g.hostWake = time.Time{}
	for c := range classes {
		for t := g.turns[c].Front(); t != nil; t = t.Next() {
			if h := t.Value.(*host); h.until.After(now) {
				g.wakeFor(h)
			}
		}
	}
}

// next takes the entry whose turn it is: by class, then host by host, so that a
// host with many waiting does not keep the others from their turn. A host that
// has half of the workers gets no more while another has something ready.
func (g *engine) next() *entry {
	now := wall.Now()
	for _, full := range []bool{false, true} {
		for c := range classes {
			var following *list.Element
			for t := g.turns[c].Front(); t != nil; t = following {
				following = t.Next()
				h := t.Value.(*host)
				if !g.mayTake(h, full, now) {
					continue
				}
				if e := g.take(h, c); e != nil {
					return e
				}
			}
		}
	}
	return nil
}

// take takes the first entry of a host's queue, and gives the turn to the next host.
func (g *engine) take(h *host, c class) *entry {
	var e *entry
	for e == nil && len(h.ready[c]) > 0 {
		head := h.ready[c][0]
		h.ready[c][0] = nil
		h.ready[c] = h.ready[c][1:]
		if head.waits(h, c) {
			e = head
		}
	}
	if len(h.ready[c]) == 0 {
		h.ready[c] = nil
		g.turns[c].Remove(h.turn[c])
		h.turn[c] = nil
	} else {
		g.turns[c].MoveToBack(h.turn[c])
	}
	return e
}

// dispatch starts workers while there are entries ready and places free.
func (g *engine) dispatch() {
	for g.inFlight < g.concurrency && !g.closed {
		e := g.next()
		if e == nil {
			return
		}
		g.begin(e)
		g.inFlight++
		g.wg.Add(1)
		go g.work(e)
	}
}

func (g *engine) begin(e *entry) {
	e.queued, e.busy, e.fetching = false, true, true
	e.waitsAt.inFlight++
	e.lastAttempt = wall.Now()
}

// work runs rounds until there are none ready.
func (g *engine) work(e *entry) {
	defer g.wg.Done()
	for e != nil {
		g.round(e)
		g.mu.Lock()
		e.busy, e.fetching = false, false
		e.waitsAt.inFlight--
		e.urgent = false
		if e.again && !e.gone {
			e.again, e.urgent, e.peek = false, true, false
			g.enqueue(e, firstStaple)
		}
		g.reschedule(e)
		g.inFlight--
		if e = nil; !g.closed {
			if e = g.next(); e != nil {
				g.begin(e)
				g.inFlight++
			}
			g.dispatch()
		}
		g.mu.Unlock()
	}
}

// noticeClock notices that the wall clock was set, or that the machine slept. What
// follows from a response's own times still holds; pauses that were counted from
// the time that it was then do not.
func (g *engine) noticeClock(now time.Time) {
	mono := time.Now()
	drift := now.Sub(g.lastWall) - mono.Sub(g.lastMono)
	g.lastWall, g.lastMono = now, mono
	if drift.Abs() < clockJump {
		return
	}
	for _, h := range g.hosts {
		h.until, h.failures = time.Time{}, 0
	}
	for _, e := range g.entries {
		switch {
		case e.held != nil && e.held.thisUpdate.After(now.Add(clockSkew)):
			e.held = nil // of a time that turned out to be wrong
			e.unstaple()
			e.final, e.due, e.warn = false, now, time.Time{}
		case errors.Is(e.err, errExpired) && unanswerable(e.leaf, now) == nil:
			e.final, e.due = false, now
		case e.due.IsZero():
		case e.failures > 0:
			e.due = now
		case drift < 0:
			e.due = e.due.Add(drift)
		}
		if e.held != nil && (e.warn.IsZero() || now.Before(e.held.end)) {
			g.setWarn(e, now)
		}
		if e.held != nil && now.Before(e.held.end) {
			for _, c := range e.handles {
				if _, stapled := c.current(); !stapled { // a handshake found it ended, by a clock that was wrong
					g.publishTo(c, e.held)
				}
			}
		}
	}
	heap.Init(&g.later)
	for _, e := range g.entries {
		g.place(e)
	}
}

// An entryHeap orders entries by when to look at them.
type entryHeap []*entry

func (h entryHeap) Len() int           { return len(h) }
func (h entryHeap) Less(i, j int) bool { return h[i].wake().Before(h[j].wake()) }
func (h entryHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *entryHeap) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}
func (h *entryHeap) Pop() any {
	old := *h
	n := len(old) - 1
	e := old[n]
	old[n] = nil
	*h = old[:n]
	e.index = -1
	return e
}
