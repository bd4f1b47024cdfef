package staple

import (
	"crypto/x509"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/go-staple/staple/internal/choose"
	"github.com/go-staple/staple/internal/exchange"
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
			n.Item.Owner.(*entry).noted(n)
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
	g.collect()
	g.forget()
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
		e.showCarried(k)
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

// knownIssuers returns candidates for the issuer of leaf that fetcher, an IssuerFetcher, knows already, and whom it asks
// for others. An error says that it asks nobody.
func knownIssuers(fetcher Fetcher, leaf *x509.Certificate) (known []*x509.Certificate, at []schedule.Source, err error) {
	urls := exchange.Places(leaf.IssuingCertificateURL, false)
	if f, ok := fetcher.(interface {
		knownIssuers(*x509.Certificate) ([]*x509.Certificate, []exchange.Place, error)
	}); ok {
		known, urls, err = f.knownIssuers(leaf)
	}
	for _, p := range urls {
		if p.Fetchable() {
			at = append(at, schedule.SourceOf(p.URL))
		}
	}
	return known, at, err
}
