package staple

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/go-staple/staple/internal/schedule"
	"github.com/go-staple/staple/internal/wall"
)

const (
	// maxSleep bounds the driver's sleep, because a timer stands still while the
	// machine is suspended and knows nothing of a clock that is set.
	maxSleep = 30 * time.Second

	// clockJump is how far wall and monotonic clock may drift apart between two
	// looks before the wall clock counts as set, or the machine as suspended.
	clockJump = 5 * time.Second

	// clockSkew is how far in the future a held response may begin after the clock was set.
	clockSkew = 5 * time.Minute

	defaultConcurrency = 16
)

// A driver gives an engine's schedule the time of day, and its rounds to goroutines: one for each round, which
// exist only while there is work, and one timer. Its methods are called with engine.mu held, but for those that
// a goroutine of its own begins with.
type driver struct {
	engine   *engine
	timer    *time.Timer
	armed    bool
	wakes    time.Time // when the timer fires
	lastWall time.Time
	lastMono time.Time
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
	for notices := g.schedule.Notices(); len(notices) > 0; notices = g.schedule.Notices() {
		for _, n := range notices {
			n.Item.Owner.(*entry).noted(n)
		}
	}
	for now := wall.Now(); !g.closed; {
		it, task := g.schedule.Next(now)
		if task == schedule.Nothing {
			break
		}
		g.wg.Add(1)
		go d.work(it.Owner.(*entry), task)
	}
	d.arm()
}

// work does one round, or looks into the cache alone.
func (d *driver) work(e *entry, task schedule.Task) {
	g := d.engine
	defer g.wg.Done()
	defer func() { // also if a Fetcher ends the goroutine
		g.mu.Lock()
		defer g.mu.Unlock()
		g.schedule.Free(&e.item, wall.Now())
		d.run()
	}()
	e.round(task)
}

// next returns when e will be asked about; zero: not any more.
func (d *driver) next(e *entry) time.Time {
	if d.engine.closed {
		return time.Time{}
	}
	return d.engine.schedule.NextAsk(&e.item, wall.Now())
}

// arm sets the timer for what comes next.
func (d *driver) arm() {
	g := d.engine
	next := g.schedule.When()
	if g.closed || len(g.entries) == 0 && next.IsZero() {
		return
	}
	now := wall.Now()
	at := now.Add(maxSleep)
	if !next.IsZero() && next.Before(at) {
		at = next
	}
	if d.armed && !at.Before(d.wakes) && d.wakes.Sub(now) <= maxSleep {
		return
	}
	if d.armed {
		if !d.timer.Stop() {
			return // it is about to look
		}
		g.wg.Done()
	}
	if d.lastMono.IsZero() {
		d.lastWall, d.lastMono = now, time.Now()
	}
	d.armed, d.wakes = true, at
	g.wg.Add(1)
	d.timer = time.AfterFunc(max(at.Sub(now), 0), d.tick)
}

func (d *driver) disarm() {
	if d.armed && d.timer.Stop() {
		d.armed = false
		d.engine.wg.Done()
	}
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
	now := wall.Now()
	d.noticeClock(now)
	g.collect()
	g.forget()
	g.schedule.Look(now)
	d.run()
}

// noticeClock notices that the wall clock was set, or that the machine slept. What
// follows from a response's own times still holds; pauses that were counted from
// the time that it was then do not.
func (d *driver) noticeClock(now time.Time) {
	mono := time.Now()
	drift := now.Sub(d.lastWall) - mono.Sub(d.lastMono)
	d.lastWall, d.lastMono = now, mono
	if drift.Abs() < clockJump {
		return
	}
	g := d.engine
	g.schedule.Step(func(yield func(*schedule.Item) bool) {
		for _, e := range g.entries {
			if !yield(&e.item) {
				return
			}
		}
	}, now)
	for _, e := range g.entries {
		switch {
		case e.held != nil && wall.Time(e.held.thisUpdate).After(now.Add(clockSkew)):
			e.held = nil // of a time that turned out to be wrong
			e.unstaple()
			e.final = false
			g.schedule.Hold(&e.item, schedule.Held{}, now)
			g.schedule.Start(&e.item, now)
		case errors.Is(e.err, errExpired) && unanswerable(e.leaf, now) == nil:
			e.final = false
			g.schedule.Start(&e.item, now)
		}
		if e.held != nil && e.held.current() {
			for _, c := range e.handles {
				if _, stapled := c.current(); !stapled { // a handshake found it ended, by a clock that was wrong
					e.publishTo(c)
				}
			}
		}
	}
}
