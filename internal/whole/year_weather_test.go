package whole

import (
	"context"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
)

// A yearWeather is the part of a year that has things happen.
type yearWeather struct{ *year }

type yearEvent struct {
	at time.Time
	do func()
}

// at has do called later.
func (y *yearWeather) at(at time.Time, do func()) {
	i, _ := slices.BinarySearchFunc(y.events, at, func(e yearEvent, at time.Time) int {
		if e.at.After(at) {
			return 1
		}
		return -1
	})
	y.events = slices.Insert(y.events, i, yearEvent{at, do})
}

func (y *yearWeather) in(d time.Duration, do func()) { y.at(time.Now().Add(d), do) }

// each calls do every now and then, first after a random part of the mean gap.
func (y *yearWeather) each(gap time.Duration, do func() (busy time.Duration)) {
	var again func()
	again = func() {
		busy := do()
		y.in(busy+time.Duration((0.3+1.4*y.rand.Float64())*float64(gap)), again)
	}
	y.in(time.Duration(y.rand.Float64()*float64(gap)), again)
}

// turns returns the kinds in turn.
func turns(kinds []string) func() string {
	next := -1
	return func() string {
		next++
		return kinds[next%len(kinds)]
	}
}

// logUniform returns a random duration between low and high, short ones as often as long ones.
func (y *yearWeather) logUniform(low, high time.Duration) time.Duration {
	return time.Duration(float64(low) * math.Exp(y.rand.Float64()*math.Log(float64(high)/float64(low))))
}

// hitting returns f, which is to befall all that do.
func (y *yearWeather) hitting(f *fault, hit func(*yearCert) bool) *fault {
	at := make(map[*place]int)
	for _, c := range y.certs {
		if hit(c) {
			f.hits = append(f.hits, c)
			at[c.place]++
		}
	}
	all := make(map[*place]int)
	for _, c := range y.certs {
		all[c.place]++
	}
	for p, n := range at {
		f.own = f.own || n < all[p] // others there are well
		var s *scope
		switch l := f.level(); {
		case l == hostLevel:
			s = &p.host.scope
		case l == urlLevel:
			s = p.at
		case l == placeLevel, n >= 8: // so many that were refused in a row
			s = &p.scope
		}
		if s != nil && f.breaks() && !slices.Contains(f.scopes, s) {
			f.scopes = append(f.scopes, s)
		}
	}
	f.own = f.own || f.level() == certLevel
	return f
}

// befall begins f, and ends it.
func (y *yearWeather) befall(f *fault) {
	y.mu.Lock()
	y.count.faults[f.kind]++
	for _, c := range f.hits {
		if c.revoked || c.newest != nil && c.newest.revoked {
			c.contradict(f)
		}
		if c.faults = append(c.faults, f); !f.breaks() {
			continue
		}
		c.out++
		failedAlone := f.own
		for _, s := range c.scopes() { // others have been lucky since it failed
			failedAlone = failedAlone || s.good.After(c.restored) && !c.own.good.After(c.restored)
		}
		if failedAlone {
			f.alone = append(f.alone, c)
			c.own.begin(f)
		}
	}
	for _, s := range f.scopes {
		s.begin(f)
	}
	y.mu.Unlock()
	y.in(f.length, func() { y.finish(f) })
}

func (y *yearWeather) finish(f *fault) {
	y.mu.Lock()
	now := time.Now()
	var hung time.Duration
	for _, until := range y.hung {
		hung = max(hung, until.Sub(now))
	}
	for _, s := range f.scopes {
		s.finish(f, hung)
	}
	checks := make(map[time.Time]bool)
	for _, c := range f.hits {
		c.faults = slices.DeleteFunc(c.faults, func(other *fault) bool { return other == f })
		if !f.breaks() {
			c.excuse(now.Add(f.slack()), f.kind)
			continue
		}
		if slices.Contains(f.alone, c) {
			c.own.finish(f, hung)
		}
		c.restored = now
		if c.out--; c.out == 0 {
			c.reach = now
			_, until, _ := y.deadline(c)
			checks[until.Truncate(time.Second).Add(time.Second)] = true
		}
	}
	if f.kind == "a cache between" {
		f.hits[0].place.host.between = nil
	}
	y.mu.Unlock()
	if f.kind == "delegate ends early" {
		y.set(f.hits[0])
	}
	for at := range checks {
		y.at(at, y.check)
	}
}

// schedule fills the year with trouble.
func (y *yearWeather) schedule() {
	y.scheduleClock()
	outage, blip, weather, alone := turns(outages), turns(blips), turns(weather), turns(certFaults)
	for i, h := range y.hosts {
		here := func(c *yearCert) bool { return c.place.host == h }
		at := func(p *place) func(c *yearCert) bool { return func(c *yearCert) bool { return c.place == p } }
		rounds := 0
		y.each(8*world.Day, func() time.Duration {
			length := y.logUniform(2*time.Minute, world.Day)
			if rounds++; rounds == 2 && i == 0 { // longer than most responses live
				length = 6*world.Day + time.Duration(y.rand.Int64N(int64(3*world.Day)))
			}
			f, hit := y.newFault(outage(), length), here
			if f.level() != hostLevel && y.rand.IntN(2) == 0 {
				hit = at(h.places[y.rand.IntN(len(h.places))])
			}
			y.befall(y.hitting(f, hit))
			y.in(length/2, func() { y.refresh(f) })
			if y.rand.IntN(8) == 0 {
				y.in(length/2, y.restart)
			}
			return length
		})
		y.each(world.Day, func() time.Duration {
			kind, length := blip(), y.logUniform(time.Second, 5*time.Minute)
			befall := func() { y.befall(y.hitting(y.newFault(kind, length), here)) }
			switch y.rand.IntN(16) {
			case 0: // the process starts, without the responses that it had
				y.lose(here)
				y.restartAfter(time.Second)
				y.in(time.Second, befall)
			case 1, 2, 3, 4: // some staples end meanwhile
				class := yearClasses[len(yearClasses)-1-y.rand.IntN(5)]
				end := time.Now().Truncate(class.period).Add(class.validity)
				if !end.After(time.Now()) {
					end = end.Add(class.period)
				}
				y.at(end.Add(-length/2), befall)
			case 5, 6: // it comes and goes
				for n := range 5 {
					y.in(time.Duration(2*n)*length, befall)
				}
			default:
				befall()
			}
			return 10 * length
		})
		y.each(8*world.Day, func() time.Duration {
			f := y.newFault(weather(), y.logUniform(10*time.Minute, 3*world.Day))
			hit := here
			switch f.kind {
			case "a cache between":
				f.length *= 2
				y.mu.Lock()
				h.between = &yearProxy{negative: f.delay, kept: make(map[string]keptAnswer), y: y.year}
				y.mu.Unlock()
			case "older responses":
				hit = at(h.places[y.rand.IntN(len(h.places))])
			}
			if f.breaks() { // the neighbours: some or all of one CA, while others are well
				most := y.rand.IntN(3)
				p := h.places[y.rand.IntN(len(h.places))]
				hit = func(c *yearCert) bool { return c.place == p && (most == 0 || y.rand.IntN(3) < most) }
			}
			if y.hitting(f, hit); len(f.hits) == 0 {
				return 0
			}
			y.befall(f)
			y.in(f.length/2, func() { y.refresh(f) })
			if y.rand.IntN(2) == 0 && f.kind != "a cache between" {
				y.in(f.length/2, func() {
					y.lose(here)
					y.restartAfter(time.Second)
				})
			}
			return f.length
		})
	}
	for _, class := range yearClasses {
		if class.period > max(class.validity, 0) {
			y.publishLate(class)
		}
	}
	y.each(8*time.Hour, func() time.Duration {
		c := y.certs[y.rand.IntN(len(y.certs))]
		if slices.ContainsFunc(c.faults, (*fault).breaks) || c.revoked {
			return 0
		}
		f := y.newFault(alone(), y.logUniform(10*time.Minute, 2*world.Day))
		if f.kind == "delegate ends early" {
			f.delay = f.length / 2
		}
		y.befall(y.hitting(f, func(hit *yearCert) bool { return hit == c }))
		if f.kind == "delegate ends early" {
			y.set(c)
		}
		return 0
	})
	y.scheduleRevocations()
	y.scheduleProcess()
}

// refresh has somebody ask about one of those that f befalls, whatever pauses.
func (y *yearWeather) refresh(f *fault) {
	if len(f.hits) > 0 {
		go f.hits[y.rand.IntN(len(f.hits))].handle.Refresh(y.T.Context())
	}
}

// publishLate has the successors of a class's responses come after these have ended, about all at a time.
func (y *yearWeather) publishLate(class *yearClass) {
	late := class.period - class.validity
	var again func()
	again = func() {
		for _, h := range y.hosts {
			for _, p := range h.places {
				f := y.newFault("published late", late)
				if y.hitting(f, func(c *yearCert) bool { return c.place == p && c.class == class }); len(f.hits) > 0 {
					f.own = true
					f.scopes = []*scope{&p.scope}
					y.befall(f)
				}
			}
		}
		y.in(class.period, again)
	}
	end := time.Now().Truncate(class.period).Add(class.validity)
	y.at(end, again)
}

// scheduleRevocations has certificates revoked, on hold for minutes to days, or by mistake, or for good.
func (y *yearWeather) scheduleRevocations() {
	revocations := 0
	y.each(2*world.Day, func() time.Duration {
		c := y.certs[y.rand.IntN(len(y.certs))]
		if c.revoked || c.class.period > 0 { // signed in advance, it would be revoked before it was
			return 0
		}
		revocations++
		c.hold = revocations%2 == 0
		y.revoke(c, true)
		if revocations%8 != 1 {
			y.in(y.logUniform(time.Minute, 10*world.Day), func() { y.revoke(c, false) })
		}
		if revocations%4 != 0 { // it is noticed at once
			y.refresh(&fault{hits: []*yearCert{c}})
		}
		return 0
	})
}

func (y *yearWeather) revoke(c *yearCert, revoked bool) {
	y.mu.Lock()
	if c.revoked = revoked; !revoked {
		c.reach = later(c.reach, time.Now())
	}
	for _, f := range c.faults {
		c.contradict(f)
	}
	y.mu.Unlock()
	y.set(c)
	y.in(holdLifted+time.Second, y.check)
	y.in(rehabilitate+time.Second, y.check)
}

// scheduleProcess has the process restarted, and its cache fail.
func (y *yearWeather) scheduleProcess() {
	y.each(20*world.Day, func() time.Duration { y.restart(); return 0 })
	y.each(15*world.Day, func() time.Duration {
		length := y.logUniform(time.Hour, 6*world.Day)
		y.setCache(func() { y.cache.failPut = true })
		y.in(length, func() { y.setCache(func() { y.cache.failPut = false }) })
		if y.rand.IntN(3) == 0 {
			y.in(length-time.Minute, y.restart)
		}
		return length
	})
	y.each(20*world.Day, func() time.Duration {
		length := y.logUniform(10*time.Minute, world.Day)
		y.setCache(func() { y.cache.failGet = true })
		y.in(length/2, y.restart)
		y.in(length, func() { y.setCache(func() { y.cache.failGet = false }) })
		return length
	})
	y.each(5*world.Day, func() time.Duration {
		for range 12 {
			y.tamper(y.certs[y.rand.IntN(len(y.certs))])
		}
		if y.rand.IntN(10) == 0 {
			y.restart()
		}
		return 0
	})
	y.each(7*world.Day, func() time.Duration { // so that the responders do not remember a year of requests
		for _, ca := range y.cas {
			ca.Responder.Reset(nil)
		}
		for _, c := range y.certs {
			y.set(c)
		}
		return 0
	})
}

func (y *yearWeather) setCache(f func()) {
	y.mu.Lock()
	defer y.mu.Unlock()
	f()
}

// lose deletes what the cache has.
func (y *yearWeather) lose(about func(*yearCert) bool) {
	for _, c := range y.certs {
		if about(c) {
			y.cache.Delete(context.Background(), c.leafKey())
		}
	}
}

// tamper replaces what the cache has about c by something worse.
func (y *yearWeather) tamper(c *yearCert) {
	ctx := context.Background()
	data, err := y.cache.MemoryCache.Get(ctx, c.leafKey())
	if err != nil {
		return
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	y.count.tampered++
	switch y.rand.IntN(6) {
	case 0:
		data[y.rand.IntN(len(data))] ^= 1 << y.rand.IntN(8)
	case 1:
		data = data[:y.rand.IntN(len(data))]
	case 2:
		r := stapletest.NewResponse(c.place.ca.CA, c.cert.Leaf)
		r.Signer = &stapletest.Signer{Certificate: c.place.ca.sibling.Leaf, Key: y.key}
		data = r.DER()
	case 3:
		other := y.certs[y.rand.IntN(len(y.certs))]
		data, err = y.cache.MemoryCache.Get(ctx, other.leafKey())
		if err != nil {
			return
		}
	case 4:
		y.cache.Delete(ctx, c.leafKey())
		return
	case 5:
		if len(c.archive) == 0 {
			return
		}
		data = c.archive[0].der
	}
	y.cache.MemoryCache.Put(ctx, c.leafKey(), data)
}

// contradict excuses c while some nodes of its responder say otherwise than others about a revocation.
func (c *yearCert) contradict(f *fault) {
	if strings.HasPrefix(f.kind, "a node") {
		c.excuse(f.from.Add(f.length+rehabilitate), f.kind)
	}
}
