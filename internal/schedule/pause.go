package schedule

import (
	"slices"
	"time"
)

// A Fault is whose failure a request was.
type Fault int8

const (
	NoFault     Fault = iota // nobody's: the URL was not asked
	Certificate              // an answer about this certificate that is of no use
	CA                       // what is behind the URL, for certificates of this authority
	URL                      // whatever is asked for at this URL
	Host                     // nobody answers there
)

// An Answer is what came of asking a URL in vain.
type Answer struct {
	Source
	Fault      Fault
	RetryAfter time.Duration // that it asked for; 0: nothing
	Busy       bool          // it has too much to do at present: HTTP status 429 or 503
	Err        error
}

// A pauseState is how a node stands.
//
//	         a failure                   its turn, a failure
//	open ──────────────► paused ◄──────────────────┐
//	 ▲                    │ ▲ └────────────────────┘
//	 │ the window is      │ │ a failure, but for one that is busy
//	 │ the share          │ │ while the window is more than one
//	 └─── recovering ◄────┘ │
//	       │    ▲  a success│
//	       ├────┴───────────┘
//	       └─ a success: the window doubles; busy: it halves
type pauseState int8

const (
	open       pauseState = iota // as many requests as there are workers
	paused                       // one at a time, at intervals
	recovering                   // as many as the window has room for
)

// A pause is what is known of the failures of one node: of a host, a URL, or an authority at a URL.
type pause struct {
	state    pauseState
	useless  bool    // it began because answers were of no use, not because there were none
	window   int32   // while recovering
	ceiling  int32   // of the window, while it doubles
	failures int32   // in a row, however many requests were in flight
	refused  []*Item // those in a row about which the answer was of no use, as far as they matter
	since    int64   // when the outage began
	failedAt int64   // the last failure that counted
	lasted   int64   // how long the outage had lasted when the request began that failed then
	failed   uint64  // the turn of that failure, or of the last time that the window was halved
	wanted   int64   // when a staple ended, whose last try is still to come; 0: none did
	until    int64   // as the responder asked for; 0: it did not
	good     uint64  // the turn when the last request began that succeeded
	part     float64 // of the interval to wait, drawn when it failed
	gap      int64   // between requests about certificates that nobody was asked about so far
	err      error
}

const (
	second = int64(time.Second / time.Microsecond)
	minute = 60 * second
	hour   = 60 * minute
	day    = 24 * hour
	far    = int64(1)<<62 - 1

	firstGap = second / 16
	maxGap   = second
	patience = 3 // failures in a row, after which others go first

	maxRefusals        = 8  // certificates in a row, until their authority pauses
	maxUnknownRefusals = 10 // failures in a row of an authority that is asked nobody knows where
)

// interval returns the longest time between two requests in an outage that has lasted so long, of something
// that is needed.
func interval(outage int64) int64 {
	switch {
	case outage < hour:
		return min(30*second, 4*second+outage/10)
	case outage < day:
		return 5 * minute
	}
	return hour
}

// comfortable returns the time between two requests in an outage that has lasted so long, while nobody is without a
// staple, or soon will be.
func comfortable(outage int64) int64 { return min(max(5*minute, outage/10), hour) }

// opens returns when a pause lets the next request through, if it is called, that is a peer's, or not.
func (n *node) opens(called bool) int64 { return n.opensFor(n.waiting, called) }

// opensFor returns when it would if so many of each class waited.
func (n *node) opensFor(w [classes]int32, called bool) int64 {
	p := &n.pause
	bare := w[fresh] + w[unstapled] + w[patient]
	at := p.failedAt + comfortable(p.lasted)
	if called || bare+w[nearEnd] > 0 {
		at = p.failedAt + int64(p.part*float64(interval(p.lasted)))
	}
	if n.level == caLevel && w[fresh] > 0 {
		at = min(at, p.failedAt+p.gap)
	}
	if p.wanted != 0 {
		at = min(at, max(p.wanted, p.failedAt+minPause))
	}
	asked := p.until
	if called || bare > 0 || w == [classes]int32{} {
		asked = min(asked, p.failedAt+hour)
	}
	if n.queue.len() > 0 {
		if end := n.queue[byEnd][0].end; end < far {
			asked = min(asked, p.failedAt+(end-p.failedAt)/2)
		}
	}
	return max(at, asked)
}

// admits reports whether n may be asked now, about a peer or not.
func (n *node) admits(now int64, called bool) bool {
	switch n.pause.state {
	case paused:
		return n.inFlight == 0 && n.opens(called) <= now
	case recovering:
		return n.inFlight < n.pause.window
	}
	return true
}

// A start is when a request began.
type start struct {
	at   int64
	turn uint64
}

// fail notes that a request failed, and that it was n's fault.
func (t *tree) fail(n *node, a Answer, began start) {
	p := &n.pause
	if began.turn <= p.failed {
		return // it was in flight, and says nothing that was not known
	}
	if p.state == recovering && a.Busy && a.RetryAfter == 0 && p.window > 1 {
		p.window /= 2
		p.ceiling = p.window
		p.failed = t.turns
		t.settle(n)
		return
	}
	p.until = 0
	if a.RetryAfter > 0 {
		asked := a.RetryAfter.Microseconds()
		p.until = t.now + asked + t.rand(asked/10+1)
	}
	t.pause(n, began.at, false, a.Err)
}

// pause begins a pause of n, or makes it longer.
func (t *tree) pause(n *node, began int64, useless bool, err error) {
	p := &n.pause
	begins := p.state != paused
	if begins {
		p.since, p.failures, p.gap = began, 0, firstGap
		p.window, p.ceiling, p.wanted = 0, t.share, 0
	}
	p.gap = min(2*p.gap, maxGap)
	p.state, p.useless, p.err = paused, useless, err
	p.failures++
	p.failedAt, p.failed = t.now, t.turns
	p.lasted = max(began-p.since, 0)
	if began >= p.wanted {
		p.wanted = 0
	}
	p.part = 0.5 + float64(t.rand(1<<20))/(1<<21)
	t.settle(n)
	if begins {
		h := n.host()
		h.visitors.untold = slices.DeleteFunc(h.visitors.untold, t.tell)
	}
}

// ended notes that a staple of one that takes r has just ended: it is asked about now, unless a Retry-After forbids it.
func (t *tree) ended(r *route) {
	for _, end := range r.ends {
		for n := end.parent; n != nil; n = n.parent {
			n.pause.wanted = t.now
		}
		t.settle(end)
	}
}

// succeed notes that a request about it showed that nothing is wrong with n.
func (t *tree) succeed(n *node, it *Item) {
	began := it.began
	p := &n.pause
	p.good = max(p.good, began.turn)
	switch p.state {
	case paused:
		if p.until > t.now && (it.passed || began.turn <= p.failed) {
			return // it asked others to come later
		}
		t.recover(n, 2)
	case recovering:
		if p.window < p.ceiling {
			p.window = min(2*p.window, p.ceiling)
		} else {
			p.window++
		}
		if p.window >= t.share {
			p.state = open
		}
	default:
		return
	}
	t.settle(n)
}

func (t *tree) recover(n *node, window int32) {
	p := &n.pause
	if p.ceiling == 0 {
		p.ceiling = t.share
	}
	p.state, p.window, p.failures, p.until, p.err = recovering, window, 0, 0, nil
	if window >= t.share {
		p.state = open
	}
}

// refuse notes that n, an authority at a URL, gave no answer about it that is of use, but perhaps another one.
func (t *tree) refuse(n *node, it *Item, a Answer) {
	p := &n.pause
	limit := maxRefusals
	if n.key.url == "" {
		limit = maxUnknownRefusals
	}
	if len(p.refused) < limit && (n.key.url == "" || !slices.Contains(p.refused, it)) {
		p.refused = append(p.refused, it)
	}
	switch {
	case it.began.turn <= p.failed:
	case p.state == paused && !p.useless && a.Fault == Certificate:
		t.recover(n, 1) // it answers again, if not as one would wish
		t.settle(n)
	case len(p.refused) >= limit:
		p.until = 0
		t.pause(n, it.began.at, true, a.Err)
	}
}

// blocks returns the node whose pause keeps those who take r waiting, an authority if that is enough to ask at one
// of its URLs, or nil if one of these does not pause.
func (r *route) blocks() (least *node) {
	for _, end := range r.ends {
		var by *node
		for n := end.parent; n != nil; n = n.parent {
			if n.pause.state == paused {
				by = n
			}
		}
		if by == nil {
			return nil
		}
		if least == nil || by.level > least.level {
			least = by
		}
	}
	return least
}

// tell notes that the first round of it has ended, if a pause keeps it waiting; and reports whether nobody
// need look at it again.
func (t *tree) tell(it *Item) bool {
	if !it.awaits() {
		return true
	}
	by := it.route.blocks()
	if by == nil || by.level == caLevel && t.now < it.waits {
		return false
	}
	it.toldFirst = true
	t.told = append(t.told, Notice{it, Paused, by.pause.err})
	return true
}

// awaits reports whether it waits for its first round, or for another one of its cohort to have it first.
func (it *Item) awaits() bool {
	return !it.toldFirst && (it.queued == inRoute || it.state == Following)
}
