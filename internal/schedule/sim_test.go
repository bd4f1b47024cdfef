package schedule

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// choices make up a sequence of operations: chance, or what a fuzzer has found.
type choices interface {
	upTo(n int) int // below n
	more() bool
}

type random struct {
	*rand.Rand
	left int
}

func (r *random) upTo(n int) int { return r.IntN(n) }
func (r *random) more() bool     { r.left--; return r.left >= 0 }

// found is bytes that a fuzzer has found.
type found struct{ data []byte }

func (f *found) upTo(n int) (choice int) {
	for size := 1; size < n; size *= 256 {
		if len(f.data) > 0 {
			choice = choice<<8 | int(f.data[0])
			f.data = f.data[1:]
		}
	}
	return choice % n
}

func (f *found) more() bool { return len(f.data) > 0 }

// A sim drives a schedule through a sequence of operations in simulated time, and looks after each of them
// whether all is well.
type sim struct {
	choices
	*Schedule
	now     int64
	items   []*Item // that are there
	all     []*Item // and those that are gone, while a worker has them
	working []*Item
	storing []*Item
	tasks   map[*Item]Task
	forever map[*Item]bool // nobody is to be asked about it: Idle for good
	wakes   []*Item        // that are to be woken
	peers   int            // every so manieth is one; 0: none is
	weather map[Source]Fault
	naive   *naive
	log     []string
	err     error // the first fault
}

var errTest = errors.New("test")

const epoch = int64(1767225600) * second // 2026-01-01

func newSim(c choices, seed uint64) *sim {
	m := &sim{choices: c, now: epoch, tasks: make(map[*Item]Task), forever: make(map[*Item]bool),
		weather: make(map[Source]Fault)}
	workers, peeks := []int{1, 2, 3, 5, 16}[c.upTo(5)], c.upTo(3) == 0
	m.Schedule = New(workers, rand.New(rand.NewPCG(seed, 1)).Int64N, peeks)
	m.naive = newNaive(m.Schedule, peeks)
	m.peers = []int{0, 1, 2, 2, 5}[c.upTo(5)]
	m.note("%d workers, they peek: %v", workers, peeks)
	return m
}

func (m *sim) note(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf("%s  "+format, append([]any{time.UnixMicro(m.now).UTC().Format("02 15:04:05.000000")}, args...)...))
}

func (m *sim) at() time.Time { return time.UnixMicro(m.now) }

// brief returns o in a few words.
func brief(o Outcome) string {
	b := []string{[]string{"newer", "unchanged", "failed", "deferred", "final", "elsewhere"}[o.Result]}
	if o.Asked {
		b = append(b, "asked")
	}
	for _, a := range o.Answers {
		b = append(b, fmt.Sprintf("%s %s", a.URL, []string{"none", "certificate", "CA", "URL", "host"}[a.Fault]))
		if a.Busy {
			b = append(b, "busy")
		}
		if a.RetryAfter > 0 {
			b = append(b, "Retry-After "+a.RetryAfter.String())
		}
	}
	if o.RetryAfter > 0 {
		b = append(b, "Retry-After "+o.RetryAfter.String())
	}
	if h := o.Held; !h.End.IsZero() {
		b = append(b, fmt.Sprintf("%s to %s", h.ThisUpdate.UTC().Format("02 15:04:05"), h.End.UTC().Format("02 15:04:05")))
		if h.Revoked {
			b = append(b, "revoked")
		}
	}
	if o.CA != "" {
		b = append(b, "of "+o.CA)
	}
	if o.By.URL != "" {
		b = append(b, "by "+o.By.URL)
	}
	return strings.Join(b, ", ")
}

// number names it in the log.
func (m *sim) number(it *Item) int { return it.Owner.(int) }

// run does a sequence, and returns what was wrong.
func (m *sim) run() error {
	for m.more() && m.err == nil {
		m.operate()
		if m.upTo(8) > 0 {
			m.look()
		}
	}
	m.heal()
	return m.err
}

// do does one call of the schedule, and looks whether all is well.
func (m *sim) do(call func(), naive func(*naive), format string, args ...any) {
	if m.err != nil {
		return
	}
	m.note(format, args...)
	m.naive.begin(m.now)
	call()
	naive(m.naive)
	if m.err = m.naive.compare(m.Notices()); m.err == nil {
		m.err = invariants(m.Schedule, m.all)
	}
	m.all = slices.DeleteFunc(m.all, func(it *Item) bool { return it.gone && it.state == Idle })
}

// look looks if it is time, as a driver does after each operation, if not always at once.
func (m *sim) look() {
	if at := m.When(); m.err == nil && !at.IsZero() && !at.After(m.at()) {
		m.do(func() { m.Look(m.at()) }, (*naive).look, "Look")
		if at := m.When(); m.err == nil && !at.IsZero() && !at.After(m.at()) {
			m.err = fmt.Errorf("no progress: after a look there is to be a look at %v", at)
		}
	}
}

func (m *sim) operate() {
	one := func(of []*Item) *Item {
		if len(of) == 0 {
			return nil
		}
		return of[m.upTo(len(of))]
	}
	switch m.upTo(30) {
	case 0, 1:
		if len(m.items) < 24 {
			m.add()
		}
	case 2:
		if it := one(m.items); it != nil && m.upTo(2) == 0 {
			m.remove(it)
		}
	case 3:
		if it := one(m.items); it != nil {
			m.start(it)
		}
	case 4:
		if it := one(m.items); it != nil {
			m.hold(it, m.held(it))
		}
	case 5:
		if it := one(m.items); it != nil && m.upTo(4) == 0 {
			m.forever[it] = true
			m.do(func() { m.Rest(it, m.at()) }, func(n *naive) {
				if e := n.of(it); e.state != Working {
					e.told = true
					naivelyRest(n, e)
				}
			}, "Rest %d", m.number(it))
		}
	case 6:
		if it := one(m.items); it != nil {
			m.do(func() { m.Refresh(it, m.at()) }, func(n *naive) { n.refreshNow(n.of(it)) }, "Refresh %d", m.number(it))
		}
	case 7:
		m.do(func() { m.Look(m.at()) }, (*naive).look, "Look")
	case 8, 9, 10:
		m.next()
	case 11, 12:
		for m.next() {
		}
	case 13, 14, 15:
		if it := one(m.working); it != nil {
			m.done(it, m.outcome(it))
		}
	case 16, 17:
		if it := one(m.storing); it != nil {
			m.free(it)
		}
	case 18: // all at once
		for len(m.working) > 0 && m.err == nil {
			it := m.working[0]
			m.done(it, m.outcome(it))
			m.free(it)
		}
	case 19, 20:
		if at := m.When(); !at.IsZero() {
			m.now = max(m.now, at.UnixMicro())
			m.note("time passes until it is time to look")
		}
	case 21:
		m.now += []int64{1, 1000, 50_000, second, 5 * second, 20 * second, minute, 10 * minute, hour, 5 * hour, day}[m.upTo(11)]
		m.note("time passes")
	case 22:
		if m.upTo(4) == 0 {
			m.now = max(m.now+[]int64{-5 * day, -day, -hour, -minute, -6 * second, 6 * second, minute, hour, day, 5 * day}[m.upTo(10)], second)
			m.do(func() { m.Step(slices.Values(m.items), m.at()) }, (*naive).step, "the clock is set")
		}
	case 24, 25:
		if it := one(m.items); it != nil && m.peers > 0 {
			m.visit(it)
		}
	case 26:
		for _, it := range m.wakes {
			m.wake(it)
		}
		m.wakes = nil
	case 27:
		if it := one(m.items); it != nil && m.peers > 0 {
			m.setPeer(it, m.upTo(2) == 0)
		}
	case 29:
		if it := one(m.items); it != nil && it.peer {
			m.do(func() { m.Leave(it, m.at()) }, func(n *naive) { naivelyLeave(n, n.of(it)) }, "Leave %d", m.number(it))
		}
	case 23:
		if it := one(m.items); it != nil && !it.peer { // of a peer the issuer is known
			at := m.sources()
			m.do(func() { m.Move(it, at, m.at()) }, func(n *naive) { n.moveNow(n.of(it), at) }, "Move %d to %v", m.number(it), at)
		}
	case 28:
		scope := Source{Host: fmt.Sprint("h", m.upTo(3))}
		m.weather[scope] = Fault(m.upTo(int(Host) + 2))
	}
}

// source returns one of few URLs.
func (m *sim) source() Source {
	i := m.upTo(5)
	return Source{Host: fmt.Sprint("h", i/2), URL: fmt.Sprint("u", i)}
}

// sources returns some of them, or none.
func (m *sim) sources() (at []Source) {
	for range m.upTo(4) {
		if s := m.source(); !slices.Contains(at, s) {
			at = append(at, s)
		}
	}
	return at
}

func (m *sim) add() {
	it := &Item{Owner: len(m.log)}
	at := m.sources()
	ca := fmt.Sprint("ca", m.upTo(3))
	expires := m.now + []int64{hour, 10 * day, 1000 * day, 1000 * day, 1000 * day}[m.upTo(5)]
	peer := m.peers > 0 && m.upTo(m.peers) == 0
	it.peer = peer && m.upTo(2) == 0
	m.items = append(m.items, it)
	m.all = append(m.all, it)
	m.do(func() { m.Add(it, ca, at, time.UnixMicro(expires)) }, func(n *naive) { n.add(it, ca, at, expires) },
		"Add %d %s %v, expires in %v", m.number(it), ca, at, time.Duration(expires-m.now)*time.Microsecond)
	if peer {
		m.setPeer(it, true)
	}
	switch m.upTo(8) {
	case 0: // left alone
	case 1:
		m.hold(it, m.held(it))
		fallthrough
	default:
		m.start(it)
	}
}

func (m *sim) start(it *Item) {
	delete(m.forever, it)
	m.do(func() { m.Start(it, m.at()) }, func(n *naive) { n.start(n.of(it)) }, "Start %d", m.number(it))
}

func (m *sim) setPeer(it *Item, peer bool) {
	m.do(func() { m.SetPeer(it, peer, m.at()) }, func(n *naive) { n.setPeer(n.of(it), peer) }, "SetPeer %d %v", m.number(it), peer)
}

// visit is somebody who comes, and who wakes it if that is to be, at once or later.
func (m *sim) visit(it *Item) {
	wake := false
	m.do(func() { wake = it.Visit() }, func(n *naive) { n.visit(n.of(it), wake) }, "Visit %d", m.number(it))
	switch {
	case wake && m.upTo(4) > 0:
		m.wake(it)
	case wake:
		m.wakes = append(m.wakes, it)
	}
}

func (m *sim) wake(it *Item) {
	if !it.gone {
		m.do(func() { m.Wake(it, m.at()) }, func(n *naive) { n.wake(n.of(it)) }, "Wake %d", m.number(it))
	}
}

func (m *sim) remove(it *Item) {
	m.do(func() { m.Remove(it, m.at()) }, func(n *naive) { n.remove(it) }, "Remove %d", m.number(it))
	m.items = slices.DeleteFunc(m.items, func(o *Item) bool { return o == it })
}

// held returns something to be held; its times are round, so that those of several are the same.
func (m *sim) held(it *Item) Held {
	validity := []int64{10 * second, minute, hour, day, 7 * day, 30 * day}[m.upTo(6)]
	round := max(validity/4, second)
	start := min(m.now/round*round-int64(m.upTo(4))*validity/8, it.expires-second)
	h := Held{ThisUpdate: time.UnixMicro(start), Until: time.UnixMicro(start + validity), Revoked: m.upTo(10) == 0, Quiet: m.upTo(10) == 0}
	h.End = h.Until
	if end := timeOf(it.expires); end.Before(h.End) {
		h.End = end
	}
	return h
}

func (m *sim) hold(it *Item, h Held) {
	m.do(func() { m.Hold(it, h, m.at()) }, func(n *naive) { n.hold(n.of(it), h) }, "Hold %d: %s", m.number(it), brief(Outcome{Held: h}))
}

func (m *sim) next() bool {
	var it *Item
	var task Task
	inTime := looked(m.Schedule, m.now)
	m.do(func() {
		if it, task = m.Next(m.at()); task != Nothing {
			m.note("%d, task %d", m.number(it), task)
		}
	}, func(n *naive) { n.next(it, task, inTime) }, "Next")
	if task == Nothing {
		return false
	}
	m.working = append(m.working, it)
	m.tasks[it] = task
	return m.err == nil
}

func (m *sim) done(it *Item, o Outcome) {
	m.working = slices.DeleteFunc(m.working, func(o *Item) bool { return o == it })
	m.storing = append(m.storing, it)
	if o.Asked && o.Result != Elsewhere && m.number(it)%4 == 0 { // its chain has lied, now and then
		o.CA = fmt.Sprint("ca", m.naive.op/4%3)
	}
	inCohort, via := it.cohort != nil, scope{}
	if it.via != nil {
		via = naivelyPath(m.naive, m.naive.of(it))[2]
	}
	m.do(func() { m.Done(it, o, m.at()) }, func(n *naive) {
		n.done(n.of(it), o, inCohort, via)
		if o.Result == Failed && o.Asked && !it.gone {
			naivelyDismiss(n, nil)
		}
	}, "Done %d: %s", m.number(it), brief(o))
}

func (m *sim) free(it *Item) {
	m.storing = slices.DeleteFunc(m.storing, func(o *Item) bool { return o == it })
	m.do(func() { m.Free(it, m.at()) }, func(n *naive) { n.free(n.of(it)) }, "Free %d", m.number(it))
}

// outcome makes up what came of a round.
func (m *sim) outcome(it *Item) Outcome {
	switch {
	case m.tasks[it] == Peek && m.upTo(4) == 0:
		return Outcome{Result: Newer, Held: m.held(it)}
	case m.tasks[it] == Peek:
		return Outcome{Result: Deferred, Until: m.at()}
	}
	switch m.upTo(12) {
	case 0, 1:
		return Outcome{Result: Newer, Asked: true, Held: m.held(it), By: m.answerer(it)}
	case 2:
		if it.held.current(it.began.at) {
			return Outcome{Result: Unchanged, Asked: true, By: m.answerer(it)}
		}
	case 3:
		return Outcome{Result: Deferred, Until: time.UnixMicro(m.now + int64(m.upTo(2_000_000)))}
	case 4:
		if m.upTo(8) == 0 {
			m.forever[it] = true
			return Outcome{Result: Final, Asked: m.upTo(2) == 0}
		}
		return Outcome{Result: Failed, Err: errTest}
	case 5:
		return Outcome{Result: Elsewhere, Asked: m.upTo(2) == 0, At: m.sources()}
	}
	o := Outcome{Result: Failed, Asked: true, Err: errTest, RetryAfter: m.retryAfter()}
	urls := it.route.urls
	for i, end := range it.route.ends {
		a := Answer{Source: Source{end.host().key.url, urls[i]}, Fault: Fault(m.upTo(int(Host) + 1)), Err: errTest}
		if f := m.weather[Source{Host: a.Source.Host}]; f <= Host && m.upTo(4) > 0 {
			a.Fault = f
		}
		if m.upTo(16) == 0 {
			a.Source = m.source()
		}
		if a.Fault == CA || a.Fault == URL {
			a.Busy = m.upTo(2) == 0
		}
		if a.Fault != NoFault {
			a.RetryAfter = m.retryAfter()
		}
		o.Answers = append(o.Answers, a)
	}
	if m.upTo(16) == 0 {
		o.Answers = nil
	}
	return o
}

func (m *sim) retryAfter() time.Duration {
	if m.upTo(6) > 0 {
		return 0
	}
	return []time.Duration{time.Second, time.Minute, time.Hour, 100 * time.Hour}[m.upTo(4)]
}

// answerer returns one of those who can be asked about it, another one, or nobody that is known.
func (m *sim) answerer(it *Item) Source {
	switch m.upTo(10) {
	case 0:
		return m.source()
	case 1:
		return Source{}
	}
	i := m.upTo(len(it.route.ends))
	return Source{it.route.ends[i].host().key.url, it.route.urls[i]}
}

// heal lets everybody answer well, and looks whether everything is stapled after some hours, and nothing is left
// when all are removed.
func (m *sim) heal() {
	m.note("all is well from now on")
	for _, it := range m.items {
		if it.state == Idle && !m.forever[it] {
			m.start(it)
		}
	}
	for len(m.storing) > 0 {
		m.free(m.storing[0])
	}
	for _, it := range m.items {
		m.visit(it)
	}
	end := m.now + 5*hour
	for looks := 0; m.err == nil && m.now <= end; looks++ {
		m.look()
		for m.next() {
		}
		if looks > 10_000 {
			m.err = errors.New("this does not end")
		}
		if len(m.working) > 0 {
			it := m.working[0]
			m.now += 50_000
			h := Held{ThisUpdate: m.at(), Until: time.UnixMicro(m.now + 7*day), End: time.UnixMicro(min(m.now+7*day, it.expires))}
			m.done(it, Outcome{Result: Newer, Asked: m.tasks[it] == Ask, Held: h})
			m.free(it)
			continue
		}
		next, comes := end+1, false
		if at := m.When(); !at.IsZero() {
			next = min(at.UnixMicro(), next)
		}
		for _, it := range m.items { // those that were put off come again
			comes = comes || it.dormant && !it.held.current(m.now)
		}
		if comes {
			next = min(next, m.now+minute)
		}
		m.now = max(m.now, next)
		for _, it := range m.items {
			if comes && it.dormant && !it.held.current(m.now) {
				m.visit(it)
				m.wake(it)
			}
		}
	}
	for _, it := range m.items {
		if h := &it.held; !m.forever[it] && it.expires > m.now && (h.end <= m.now || it.state != Scheduled && it.state != Waiting && !it.dormant) && m.err == nil {
			m.err = fmt.Errorf("item %d has no staple, and is %v", m.number(it), it.state)
		}
	}
	for len(m.items) > 0 {
		m.remove(m.items[0])
	}
	m.now += hour + 1
	m.look()
	if m.err == nil && (m.tree.calls > 0 || len(m.tree.callers) > 0) {
		m.err = errors.New("peers are left")
	}
	if n, r := len(m.tree.nodes), len(m.tree.routes); n+r > 0 && m.err == nil {
		m.err = fmt.Errorf("%d nodes and %d routes are left", n, r)
	}
}
