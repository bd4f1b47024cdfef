package staple

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/go-staple/staple/internal/wall"
	"golang.org/x/crypto/ocsp"
)

const (
	maxAge       = 4 * 24 * time.Hour // from thisUpdate to the next refresh: clients refuse responses of more than 7 to 10 days
	maxUnchanged = 24 * time.Hour     // between requests that bring nothing newer
	minPause     = time.Second        // between two rounds of one certificate
	maxMinPause  = 10 * time.Minute   // the same while a staple is held: a thousandth of its validity, but not more
	firstBackoff = 10 * time.Second   // the most that the first retry waits
	maxBackoff   = time.Hour
	maxHostPause = 5 * time.Minute
	maxUnstapled = 10 * time.Minute // the most that a retry waits without a staple, for the first fewRetries, or urgentFor
	fewRetries   = 50
	urgentFor    = 4 * time.Hour    // after the end of a staple
	patientTries = 3                // that go before those of certificates which have a staple
	hostOutage   = time.Minute      // of a host in trouble: when it is over, the certificates that failed are asked about soon
	hostSpread   = 30 * time.Second // over which they are
)

// errOlder is wrapped by what Request.Accept returns for an authentic response
// that is older than the one held.
var errOlder = errors.New("older than the response held")

// errUnknown is wrapped by the error for a response that says "unknown".
var errUnknown = errors.New("the responder does not know the certificate")

// An outcome is what came of a round.
type outcome struct {
	response  *response // accepted; nil: none, or nothing newer
	err       error
	final     bool // there is no point in another round
	deferred  bool // another process has the lock, or the cache has nothing: not a round, look again at due
	due       time.Time
	cached    bool // response came from the cache
	asked     bool // the Fetcher was asked for a response
	responder string
	began     time.Time
}

// event returns the event that tells of o.
func (o outcome) event(kind EventKind) Event {
	ev := Event{Kind: kind, Fetched: o.asked, Err: o.err}
	if !o.began.IsZero() {
		ev.Duration = time.Since(o.began)
	}
	return ev
}

// round asks for a response to e once and draws the conclusions: publish, then store.
func (g *engine) round(e *entry) {
	began := time.Now()
	ctx, cancel := context.WithCancel(g.ctx)
	defer cancel()
	g.mu.Lock()
	if e.gone || g.closed {
		g.mu.Unlock()
		return
	}
	e.cancel = cancel
	peek := e.peek
	g.mu.Unlock()

	o, unlock := g.attempt(ctx, e, peek)
	o.began = began

	g.mu.Lock()
	e.cancel = nil
	e.fetching = false
	g.conclude(e, o)
	g.mu.Unlock()
	g.save(e)
	if unlock != nil {
		unlock()
	}
}

// attempt does the I/O of a round. unlock, unless nil, must be called once the
// outcome is stored. To peek is to look into the cache alone.
func (g *engine) attempt(ctx context.Context, e *entry, peek bool) (o outcome, unlock func()) {
	issuer, final, err := g.findIssuer(ctx, e)
	if err != nil {
		return outcome{err: err, final: final}, nil
	}
	g.adoptCarried(e, issuer)
	if r := g.fresher(ctx, e, issuer); r != nil {
		return outcome{response: r, cached: true}, nil
	}
	if peek {
		return outcome{deferred: true, due: wall.Now()}, nil
	}
	if g.locker != nil {
		unlock, ok, err := g.tryLock(ctx, e)
		switch {
		case err == nil && !ok && g.mayDefer(e):
			return outcome{deferred: true, due: wall.Now().Add(leaseTTL/20 + jitter(leaseTTL/10))}, nil
		case err == nil && ok:
			// Whoever had the lock may have stored a response since the cache was read.
			if r := g.fresher(ctx, e, issuer); r != nil {
				return outcome{response: r, cached: true}, unlock
			}
			return g.fetch(ctx, e, issuer), unlock
		}
	}
	return g.fetch(ctx, e, issuer), nil
}

// mayDefer reports whether e may wait once more for the process that has the lock.
// Beyond about three leases, that one fails like those before it, or has not made the
// lock at all.
func (g *engine) mayDefer(e *entry) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	e.deferrals++
	return e.deferrals <= maxDeferrals
}

// fresher returns the response in the cache if it is newer than the one held, and
// not due itself. One that is newer and due is adopted all the same.
func (g *engine) fresher(ctx context.Context, e *entry, issuer *x509.Certificate) *response {
	if g.cache == nil {
		return nil
	}
	loadCtx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	r, err := g.load(loadCtx, e, issuer)
	if ctx.Err() == nil {
		g.reportCache(reading, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case r != nil && r == e.held:
		e.stored = true
		return nil
	case r == nil || e.held != nil && !r.newer(e.held):
		e.stored = false // so that the response held is stored again
		return nil
	case refreshTime(r, wall.Now()).After(wall.Now()) && !e.forced:
		return r
	}
	g.adopt(e, r, true)
	return nil
}

func (g *engine) tryLock(ctx context.Context, e *entry) (unlock func(), ok bool, err error) {
	lockCtx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	unlock, ok, err = g.locker.TryLock(lockCtx, e.cacheKey(), leaseTTL)
	if ctx.Err() == nil {
		g.reportCache(locking, err)
	}
	return unlock, ok, err
}

// fetch asks the Fetcher.
func (g *engine) fetch(ctx context.Context, e *entry, issuer *x509.Certificate) outcome {
	a := &acceptor{engine: g, entry: e, issuer: issuer}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req := &Request{Leaf: e.leaf, Issuer: issuer, Accept: a.accept}
	der, err := g.fetcher.Fetch(ctx, req)
	if err == nil {
		err = a.accept(der)
	}
	o := outcome{asked: true, responder: req.Responder}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.taken != nil && a.taken != a.held:
		o.response = a.taken
	case a.taken != nil, a.older > 0 && a.refused == 0 && a.held != nil && wall.Now().Before(a.held.end):
		// Nothing newer is to be had, which is not a failure.
	case errors.Is(err, ErrNoResponder):
		o.err, o.final = err, true
	default:
		o.err = fmt.Errorf("no OCSP response for %s: %w", describe(e.leaf), err)
	}
	return o
}

// An acceptor judges the responses that come in one round.
type acceptor struct {
	engine *engine
	entry  *entry
	issuer *x509.Certificate

	mu      sync.Mutex
	held    *response // when the first came
	taken   *response // the newest accepted, or held if nothing newer came
	last    []byte    // the bytes accepted last
	older   int       // authentic, but older than held
	refused int       // for any other reason
}

// accept is Request.Accept.
func (a *acceptor) accept(der []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last != nil && bytes.Equal(der, a.last) {
		return nil
	}
	g, e := a.engine, a.entry
	g.mu.Lock()
	a.held = e.held
	g.mu.Unlock()
	if a.held != nil && bytes.Equal(der, a.held.der) && wall.Now().Before(a.held.end) {
		a.last = a.held.der
		if a.taken == nil {
			a.taken = a.held
		}
		return nil
	}
	r, err := g.verify(e, a.issuer, bytes.Clone(der))
	if err != nil {
		a.refused++
		return err
	}
	if a.held != nil && a.held.newer(r) {
		a.older++
		return fmt.Errorf("staple: thisUpdate %s: %w, of %s", r.thisUpdate.Format(time.RFC3339), errOlder,
			a.held.thisUpdate.Format(time.RFC3339))
	}
	a.last = r.der
	switch {
	case a.held != nil && !r.newer(a.held):
		if a.taken == nil {
			a.taken = a.held
		}
	case a.taken == nil || r.newer(a.taken):
		a.taken = r
	}
	return nil
}

// conclude ends a round: it publishes, schedules the next, and tells whoever waits
// or listens. mu is held.
func (g *engine) conclude(e *entry, o outcome) {
	now := wall.Now()
	if o.deferred {
		if !e.gone && !g.closed {
			e.due = o.due
			g.reschedule(e)
		}
		return
	}
	if o.err != nil && (e.gone || g.closed) {
		return // it was canceled
	}
	if o.responder != "" {
		e.responder = o.responder
	}
	e.err = o.err
	e.final = o.final
	e.deferrals = 0
	e.forced, e.peek = false, false
	switch {
	case o.err == nil:
		e.failures = 0
		if o.asked {
			g.recovered(e.host, now)
		}
		r := o.response
		switch {
		case r != nil && (e.held == nil || r.newer(e.held)):
			old := e.held
			g.publish(e, r)
			e.stored = o.cached
			due := refreshTime(r, now)
			if !due.After(now) {
				due = unchangedTime(r, now) // it is what there is: not to be asked for again at once
			}
			e.setDue(due)
			g.announce(e, r, old, o)
		case e.held != nil:
			e.setDue(unchangedTime(e.held, now))
			g.emit(e, o.event(EventUnchanged))
		default:
			e.due = now.Add(minPause) // what was held is gone since: the clock was set
		}
	case errors.Is(o.err, ErrNoResponder):
		e.failures = 0
		e.due = time.Time{}
		g.log(slog.LevelDebug, "a certificate is not stapled", e, slog.Any("error", o.err))
	default:
		e.failures++
		if o.asked {
			g.hostFailed(e.host, o.err, now)
		}
		e.due = time.Time{}
		if !o.final {
			e.setDue(now.Add(e.backoff(o.err, now)))
		}
		g.emit(e, o.event(EventFailed))
	}
	if g.closed || e.gone {
		e.due = time.Time{}
	}
	e.settled = true
	e.rounds++
	e.changed.broadcast()
	g.reschedule(e)
}

// refresh is Certificate.Refresh.
func (g *engine) refresh(ctx context.Context, c *Certificate) error {
	e := c.entry
	g.mu.Lock()
	if c.removed || g.closed {
		g.mu.Unlock()
		return fmt.Errorf("staple: %s: %w", describe(e.leaf), ErrClosed)
	}
	target := e.rounds + 1
	e.forced = true
	switch {
	case e.fetching:
	case e.busy:
		e.again = true
	default:
		e.final, e.peek = false, false
		e.urgent = true
		g.enqueue(e, firstStaple)
		g.place(e)
		g.dispatch()
	}
	g.mu.Unlock()
	var result error
	err := g.await(ctx, e, func() bool {
		switch {
		case e.rounds >= target:
			result = e.err
		case c.removed || g.closed:
			result = fmt.Errorf("staple: %s: %w", describe(e.leaf), ErrClosed)
		default:
			return false
		}
		return true
	})
	if err != nil {
		return err
	}
	return result
}

var (
	errExpired    = fmt.Errorf("%w: the certificate has expired", ErrNoResponder)
	errSelfSigned = fmt.Errorf("%w: the certificate is self-signed", ErrNoResponder)
)

// unanswerable returns an error if nobody could be asked about leaf.
func unanswerable(leaf *x509.Certificate, now time.Time) error {
	switch {
	case now.After(leaf.NotAfter):
		return errExpired
	case bytes.Equal(leaf.RawIssuer, leaf.RawSubject) && signedBy(leaf, leaf):
		return errSelfSigned
	}
	return nil
}

// refreshTime returns when to ask for a successor of r, which has just come: at
// half of its validity, give or take a tenth of that half so that certificates
// that came together part, and after maxAge at the latest.
func refreshTime(r *response, now time.Time) time.Time {
	half := r.until.Sub(r.thisUpdate) / 2
	earliest := min(half, maxAge) * 9 / 10
	latest := min(half+half/10, maxAge)
	due := r.thisUpdate.Add(earliest + jitter(latest-earliest))
	if !due.After(now) {
		return now
	}
	return due
}

// unchangedTime returns when to ask again for a successor of r, now that there is
// none yet.
func unchangedTime(r *response, now time.Time) time.Time {
	left := r.end.Sub(now)
	pause := min(left/2, maxUnchanged)
	return now.Add(max(pause-jitter(pause/10), r.minPause()))
}

// minPause returns the least pause between two rounds while r is held.
func (r *response) minPause() time.Duration {
	return max(min(r.until.Sub(r.thisUpdate)/1000, maxMinPause), minPause)
}

// urgency returns the class of e's next round. One that has failed repeatedly must
// not keep those from their turn that have something to lose.
func (e *entry) urgency(now time.Time) class {
	switch unstapled := e.held == nil || !now.Before(e.held.end); {
	case e.forced, unstapled && e.failures < patientTries:
		return firstStaple
	case unstapled:
		return routine
	case e.held.end.Sub(now) < e.held.end.Sub(e.held.thisUpdate)/4:
		return nearEnd
	}
	return routine
}

// patience returns how long e can do without a round: half of what is left of its
// staple, or an hour if it has none.
func (e *entry) patience(now time.Time) time.Duration {
	if e.held == nil || !now.Before(e.held.end) {
		return maxBackoff
	}
	return e.held.end.Sub(now) / 2
}

// backoff returns the pause after a failed round: exponential with full jitter,
// bounded so that several tries remain before the staple ends and that a staple
// which is missing is not missing for long, and as long as the responder asked
// for, within patience.
func (e *entry) backoff(err error, now time.Time) time.Duration {
	limit, floor := min(maxBackoff, e.patience(now)/4), minPause
	switch {
	case e.held != nil && now.Before(e.held.end):
		floor = e.held.minPause()
	case e.held != nil && now.Sub(e.held.end) < urgentFor, e.held == nil && e.failures < fewRetries:
		limit = maxUnstapled
	default:
		limit = maxBackoff
	}
	pause := backoff(e.failures, limit)
	e.asked = false
	if asked := retryAfter(err); asked > pause {
		pause = min(asked+jitter(asked/10), e.patience(now))
		e.asked = true
	}
	return max(pause, floor)
}

// backoff returns a random duration of at most firstBackoff, doubled with each
// failure after the first, and at most limit.
func backoff(failures int, limit time.Duration) time.Duration {
	ceiling := min(limit, maxBackoff)
	if n := failures - 1; n < 16 && firstBackoff<<n < ceiling {
		ceiling = firstBackoff << n
	}
	return minPause + jitter(ceiling-minPause)
}

// jitter returns a random duration below d, and 0 if d is not positive.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d)
}

// hostFailed makes a host pause that seems to be in trouble, as opposed to one that
// merely has no good answer about one certificate.
func (g *engine) hostFailed(h *host, err error, now time.Time) {
	if h.name == "" || !hostTrouble(err) {
		return
	}
	if h.failures++; h.failures == 1 {
		h.since = now
	}
	pause := max(backoff(h.failures, maxHostPause), min(retryAfter(err), maxBackoff))
	if until := now.Add(pause); until.After(h.until) {
		h.until = until
	}
	g.wakeFor(h)
}

// hostTrouble reports whether err would be the same for any certificate.
func hostTrouble(err error) bool {
	var status ocsp.ResponseError
	if errors.As(err, &status) {
		return status.Status == ocsp.TryLater || status.Status == ocsp.InternalError
	}
	var refused *VerifyError
	if errors.As(err, &refused) || errors.Is(err, errUnknown) {
		return false
	}
	var failed *HTTPError
	return errors.As(err, &failed) || errors.Is(err, context.DeadlineExceeded)
}

// retryAfter returns the longest pause that a responder asked for in err.
func retryAfter(err error) time.Duration {
	var longest time.Duration
	if e, ok := err.(*HTTPError); ok {
		longest = e.RetryAfter
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			longest = max(longest, retryAfter(inner))
		}
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			longest = max(longest, retryAfter(inner))
		}
	}
	return longest
}
