// Package schedule decides which certificate's responder is asked next, and when to look again. It is a data
// structure and nothing else: now comes in as an argument, chance as a function; there is no goroutine, timer,
// lock or I/O in it, and no logging. Whoever drives it calls one method at a time.
//
// The driver tells what exists ([Schedule.Add], [Schedule.Remove]), what is held for it ([Schedule.Hold]) and
// what is wanted now ([Schedule.Start], [Schedule.Refresh]). It gives a free worker what [Schedule.Next] names,
// and says with [Schedule.Done] what came of that, and with [Schedule.Free] that the worker is back. When the
// time comes that [Schedule.When] names, it calls [Schedule.Look]. What it is to tell others is in
// [Schedule.Notices], to be looked at after each of these.
//
// An Item is one certificate. Its state is one of these, and this is how they follow each other:
//
//	       Start, or Hold                due
//	Idle ────────────────► Scheduled ──────────► Waiting ◄──────────────┐ its leader brought
//	 ▲                        ▲  ▲ │               │  ▲                 │ something newer, or
//	 │ there is nobody        │  │ │ due, and      │  │                 │ it leads itself
//	 │ to ask, or it          │  │ │ another one   │  │                 │
//	 │ has expired            │  │ └───────────────┼──┼──────────► Following
//	 │                        │  │   leads         │  │                 ▲
//	 │          a new one,    │  │ its own fault   │  │                 │
//	 │          or unchanged  │  │ Next, for a     │  │ what it needs   │ another one leads
//	 │                        │  │ free worker     ▼  │ pauses          │
//	 │                        └──┴───────────── Working ──► Storing ────┘
//	 └──────────────────────────────────────────── (Done)     (Free)
//
// Refresh makes any of them Waiting, before all others and past every pause. A peer sleeps, Idle, when it is due, until it
// comes, and does not wait for the end of a pause: see peers.go.
//
// Which of those that wait is next: what was never asked about, then what has lost its staple, then what is in
// the last quarter of it, then peers, then the rest, then what has no staple and failed three times, and host by
// host among equals. Who is at fault for a failure pauses
// (host, URL, or authority at a URL), and it is a tree of these that the items wait in: see tree and pause. When
// an item is due is in plan.go, and how one goes from state to state in agenda.go.
//
// What is asked for need not be the same each time: an item whose issuer is to be found first waits where that is, and
// goes on from there to its responders ([Elsewhere], [Schedule.Move]). Both pause in the same way.
package schedule

import (
	"iter"
	"time"

	"github.com/go-staple/staple/internal/wall"
)

// A Task is what a worker is to do about an Item.
type Task int8

const (
	Nothing Task = iota
	Ask          // a round
	Peek         // look whether another process was luckier, and ask nobody
)

// A NoticeKind is what a Notice is about.
type NoticeKind int8

const (
	StapleEnding NoticeKind = iota // a quarter, or a twentieth is left of what was left when it came
	StapleEnded
	Expired // the certificate itself: it is Idle now
	Paused  // what it needs for its first round pauses: that has ended with Err
)

// A Notice is what others are to be told of an Item.
type Notice struct {
	Item *Item
	Kind NoticeKind
	Err  error
}

// A Schedule is the whole: see the package's documentation.
type Schedule struct {
	agenda
	workers int
	working int
	peekers int // workers that peek
}

// New returns an empty schedule for a number of workers. rand returns a random number below n. peeks tells
// whether it is worth while to look into a cache, once, while those who could be asked pause.
func New(workers int, rand func(n int64) int64, peeks bool) *Schedule {
	return &Schedule{
		agenda: agenda{peeks: peeks, tree: tree{rand: rand, share: int32(max(workers/2, 1)), nodes: make(map[nodeKey]*node),
			routes: make(map[string]*route)}},
		workers: workers,
	}
}

// Add adds it, which is about a certificate of an authority that can be asked about at some URLs, and expires.
func (s *Schedule) Add(it *Item, ca string, at []Source, expires time.Time) {
	it.route = s.tree.route(ca, at)
	it.expires = wall.MicroOf(expires)
	it.rank.end = far
}

// Remove removes it. A worker that has it comes back all the same.
func (s *Schedule) Remove(it *Item, now time.Time) {
	s.tree.now = wall.MicroOf(now)
	if it.gone || it.route == nil {
		return
	}
	s.withdraw(it)
	it.gone = true
	s.alarms.drop(it, byTime)
	if it.state != Working && it.state != Storing {
		it.state = Idle
		s.tree.leave(it.route)
	}
}

// Start makes it due now, if it is Idle or Scheduled. What comes of that is its first round, if there was one or not.
func (s *Schedule) Start(it *Item, now time.Time) {
	s.tree.now = wall.MicroOf(now)
	switch {
	case it.gone:
	case it.state == Idle, it.state == Scheduled:
		it.over, it.toldFirst = false, false
		it.seen.Store(visited)
		s.part(it)
		s.comeDue(it)
	case it.state == Storing && it.then == Idle:
		it.over, it.toldFirst = false, false
		it.seen.Store(visited)
		it.then, it.due = Scheduled, s.tree.now
		s.watch(it)
	}
}

// Rest says that there is nobody to ask about it. It is Idle until Start or Refresh; a round that is under way
// says so itself.
func (s *Schedule) Rest(it *Item, now time.Time) {
	s.tree.now = wall.MicroOf(now)
	if it.state != Working {
		it.toldFirst = true
		s.rest(it)
		s.watch(it)
	}
}

// Hold says that something newer is held now, which did not come of a round, or, with a zero Held, nothing.
func (s *Schedule) Hold(it *Item, h Held, now time.Time) {
	s.tree.now = wall.MicroOf(now)
	if it.gone {
		return
	}
	c := it.route.cohorts[it.held.end]
	came := int64(0)
	if it.held.end > 0 {
		came = s.tree.now
	}
	it.hold(h, came, s.tree.now)
	if it.forced {
		it.due = it.clip(it.due, s.tree.now)
	}
	switch it.state {
	case Idle, Scheduled, Following, Waiting:
		if it.forced || it.over || it.state == Idle && it.toldFirst && !it.dormant {
			break // it waits for what Refresh asked for, or nobody is asked any more
		}
		s.withdraw(it)
		s.schedule(it, it.refresh(s.tree.now, s.tree.rand))
	case Storing:
		if it.then != Idle && !it.forced {
			it.then, it.due = Scheduled, it.refresh(s.tree.now, s.tree.rand)
		}
	}
	it.cohort = nil
	s.watch(it)
	s.release(c)
}

// Refresh makes it due now, before all others and past every pause. A round that is under way will do.
func (s *Schedule) Refresh(it *Item, now time.Time) {
	s.tree.now = wall.MicroOf(now)
	if it.gone || it.forced {
		return
	}
	it.forced = true
	switch it.state {
	case Working:
	case Storing:
		s.part(it)
		it.then = Waiting
	default:
		s.withdraw(it)
		s.comeDue(it)
	}
}

// Move says that it is to be asked about at other URLs, now. What was asked about it before was something else, such as
// for its issuer. Of a round that is under way, Done says so.
func (s *Schedule) Move(it *Item, at []Source, now time.Time) {
	s.tree.now = wall.MicroOf(now)
	switch {
	case it.gone, it.state == Working:
		return
	case it.state == Storing:
		s.move(it, at)
		if it.then != Idle && !it.forced {
			it.then, it.due = Scheduled, s.tree.now
		}
	default:
		dormant := it.dormant
		s.withdraw(it)
		s.move(it, at)
		if it.dormant = dormant; it.state != Idle {
			s.comeDue(it)
		}
	}
	s.watch(it)
}

// When returns when to look again; zero: there is no need to.
func (s *Schedule) When() time.Time {
	at := far
	if len(s.alarms) > 0 {
		at = s.alarms[0].at
	}
	if len(s.tree.alarms) > 0 {
		at = min(at, s.tree.alarms[0].at)
	}
	if at == far {
		return time.Time{}
	}
	return timeOf(at)
}

// Look does what is due.
func (s *Schedule) Look(now time.Time) {
	s.tree.now = wall.MicroOf(now)
	for len(s.tree.alarms) > 0 && s.tree.alarms[0].at <= s.tree.now {
		s.tree.settle(s.tree.alarms[0])
	}
	for len(s.alarms) > 0 && s.alarms[0].at <= s.tree.now {
		s.look(s.alarms[0])
	}
}

// Next returns what a free worker is to do now; Nothing if there is no free worker, or nothing to do. There may be notices
// after either: of peers that a pause lets nobody ask about any more.
func (s *Schedule) Next(now time.Time) (*Item, Task) {
	s.tree.now = wall.MicroOf(now)
	s.dismiss()
	if s.working >= s.workers {
		return nil, Nothing
	}
	task := Ask
	it, end := s.tree.nextAsked(s.tree.share)
	for it == nil && len(s.peeking) > 0 && s.peekers < int(s.tree.share) {
		if first := s.peeking[0]; first.queued == inPeeks && !first.gone {
			it, task = first, Peek
			it.peeked = true
			s.peekers++
		}
		s.peeking = s.peeking[1:]
	}
	if it == nil {
		if it, end = s.nextPeer(); it != nil && end == nil {
			task = Peek
		}
	}
	if it == nil {
		if it, end = s.tree.next(); it == nil {
			return nil, Nothing
		}
	}
	it.state, it.queued, it.via, it.waits = Working, notQueued, end, 0
	it.counted, s.tree.called = it.peer, it.peer
	if it.counted {
		s.tree.calls++
		it.seen.Store(unseen)
	}
	if end != nil {
		s.tree.occupy(end, 1)
		if it.counted {
			end.host().visitors.calls++
		}
	}
	it.began, it.passed = start{s.tree.now, s.tree.turns}, it.forced
	s.working++
	s.watch(it)
	s.dismiss()
	return it, task
}

// Notices returns what there is to tell, and forgets it.
func (s *Schedule) Notices() []Notice {
	all := append(s.notices, s.tree.told...)
	s.notices, s.tree.told = nil, nil
	return all
}

// NextAsk returns when it will be asked about, or not before which time: when it is due, or when the pause of what it needs
// lets a request through, which may be about another one that waits for the same. Zero: not any more.
func (s *Schedule) NextAsk(it *Item, now time.Time) time.Time {
	s.tree.now = wall.MicroOf(now)
	at := s.tree.now
	switch it.stands() {
	case Idle:
		return time.Time{}
	case Scheduled:
		if at = it.due; at == far {
			return time.Time{}
		}
	case Following:
		if c := it.cohort; c != nil && c.leader != nil && c.leader != it && c.leader.state != Following {
			return s.NextAsk(c.leader, now)
		}
	case Working:
		return timeOf(it.began.at)
	}
	if it.forced {
		return timeOf(at)
	}
	if at = it.clip(max(at, it.opens(s.tree.now)), s.tree.now); at == far {
		return time.Time{}
	}
	return timeOf(at)
}

// Step says that the clock was set, or the machine asleep, so that what was counted from the time that it was
// then is void. What follows from the times of what is held stays, and nothing is due later than these say.
func (s *Schedule) Step(items iter.Seq[*Item], now time.Time) {
	s.tree.now = wall.MicroOf(now)
	t := &s.tree
	for _, n := range t.nodes {
		n.pause.failedAt = min(n.pause.failedAt, t.now)
		if n.pause.state == paused {
			t.recover(n, 1)
		}
	}
	for it := range items {
		if it.gone {
			continue
		}
		s.release(it.cohort)
		it.age, it.began.at = min(it.age, t.now), min(it.began.at, t.now)
		h := &it.held
		h.from = min(h.from, max(h.start, t.now))
		for h.stage > 0 && h.moment(h.stage-1) > t.now {
			h.stage--
		}
		state := it.stands()
		switch {
		case it.over && t.now < it.expires:
			it.over = false
			s.Start(it, now)
		case it.queued == inRoute:
			s.withdraw(it)
			s.wait(it)
		case state == Scheduled && (it.forced || it.tries > 0 || h.end == 0):
			it.due = min(it.due, t.now)
		case state == Scheduled:
			it.due = it.clip(min(it.due, max(it.latest(t.now), t.now)), t.now)
		}
		s.watch(it)
	}
	for _, n := range t.nodes {
		t.settle(n)
	}
}
