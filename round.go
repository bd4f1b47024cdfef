package staple

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/go-staple/staple/internal/ask"
	"github.com/go-staple/staple/internal/exchange"
	"github.com/go-staple/staple/internal/issuers"
	"github.com/go-staple/staple/internal/mldsa"
	"github.com/go-staple/staple/internal/name"
	"github.com/go-staple/staple/internal/schedule"
	"github.com/go-staple/staple/internal/wall"
	"golang.org/x/crypto/ocsp"
)

const (
	fetchTimeout = 30 * time.Second // for one Fetch or FetchIssuer, of a Fetcher that is no HTTPFetcher
	maxInsisted  = 4                // rounds in the last eighth of a staple that ask past the caches
	leaseTTL     = 10 * time.Second // of the lock among processes
	maxDeferrals = 30               // looks at a lock that another process has, a tenth of leaseTTL apart, before going on without
)

// errOlder is wrapped by what Request.Accept returns for an authentic response
// that is older than the one held.
var errOlder = errors.New("older than the response held")

// errUnchanged is what Request.Accept returns for the response held, where a cache may hide a newer one.
var errUnchanged = errors.New("staple: it is the OCSP response held")

// errUnknown is wrapped by the error for a response that says "unknown".
var errUnknown = errors.New("the responder does not know the certificate")

// errOver tells of a certificate whose last round went well.
var errOver = errors.New("the OCSP response held has ended")

// errEnded is what a round ends with that was cut short by somebody else's code.
var errEnded = errors.New("staple: the Fetcher, Verifier or Cache has ended the goroutine that called it (runtime.Goexit, or FailNow in a test)")

var (
	errExpired    = fmt.Errorf("%w: the certificate has expired", ErrNoResponder)
	errSelfSigned = fmt.Errorf("%w: the certificate is self-signed", ErrNoResponder)
)

// An outcome is what came of a round.
type outcome struct {
	response  *response // accepted, or held already; nil: none
	denial    *response // another answer said "revoked"
	err       error
	final     bool // there is no point in another round
	deferred  bool // another process has the lock, or the cache has nothing: not a round, look again at due, or now if that is zero
	due       time.Time
	turns     bool              // to others, whom it asks for the issuer, or to the responders again; deferred is true
	to        []schedule.Source // whom, or would, if the issuer were there
	sought    bool              // the IssuerFetcher was asked, in the issuer's turn
	cached    bool              // response came from the cache
	asked     bool              // the Fetcher was asked for a response
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

// A round asks for a response about one certificate, once: cache, lock, Fetcher.
type round struct {
	*entry
	ctx    context.Context
	issuer *x509.Certificate
	unlock func() // to be called once the outcome is stored, unless it is nil
}

// round does a round and draws the conclusions: publish, then store.
func (e *entry) round(task schedule.Task) {
	g := e.engine
	ctx, cancel := context.WithCancel(g.ctx)
	defer cancel()
	g.mu.Lock()
	if e.gone || g.closed {
		g.mu.Unlock()
		return
	}
	e.cancel = cancel
	g.mu.Unlock()

	r := &round{entry: e, ctx: ctx}
	defer func() {
		if r.unlock != nil {
			r.unlock()
		}
	}()
	r.try(task)
	e.engine.storage.save(e)
}

// try does the I/O of a round and draws the conclusions.
func (r *round) try(task schedule.Task) {
	g := r.engine
	o := outcome{err: errEnded}
	began := time.Now()
	defer func() { // also if the goroutine ends
		o.began = began
		g.mu.Lock()
		defer g.mu.Unlock()
		r.cancel = nil
		r.conclude(o)
		g.driver.run()
	}()
	o = r.attempt(task)
}

// attempt does the I/O of a round.
func (r *round) attempt(task schedule.Task) outcome {
	g := r.engine
	peek := outcome{deferred: true}
	if task == schedule.Peek && r.localIssuer() == nil {
		return peek
	}
	if o := r.findIssuer(); o.err != nil || o.deferred {
		return o
	}
	r.adoptCarried(r.issuer)
	if newer := r.fresher(); newer != nil {
		return outcome{response: newer, cached: true}
	}
	if task == schedule.Peek {
		return peek
	}
	if g.storage.locker != nil {
		var ok bool
		var err error
		r.unlock, ok, err = r.tryLock()
		switch {
		case err != nil:
			r.unlock = nil
		case !ok && r.mayDefer():
			return outcome{deferred: true, due: wall.Now().Add(leaseTTL/20 + rand.N(leaseTTL/10))}
		case ok:
			// Whoever had the lock may have stored a response since the cache was read.
			if newer := r.fresher(); newer != nil {
				return outcome{response: newer, cached: true}
			}
		}
	}
	return r.fetch()
}

// findIssuer finds the issuer. The outcome is that of the round if it has an error or is deferred: the Fetcher is asked in
// a round of its own, which waits for its turn, and for the end of a pause, where issuers are asked for.
func (r *round) findIssuer() (o outcome) {
	if err := unanswerable(r.leaf, wall.Now()); err != nil {
		return outcome{err: err, final: true}
	}
	r.engine.mu.Lock()
	r.joined = false
	seeking := r.seeking
	r.engine.mu.Unlock()
	r.issuer = r.localIssuer()
	if seeking {
		o.to, _ = sources(r.engine.fetcher, r.leaf)
	}
	switch {
	case r.issuer != nil && seeking:
		o.deferred, o.turns = true, true
		return o
	case r.issuer != nil:
		return o
	}
	if needs := mldsa.SignatureNeeds(r.leaf); needs != nil {
		return outcome{err: fmt.Errorf("staple: nobody can tell who issued %s: %w: it has %w", name.Of(r.leaf), ErrNoIssuer, needs), final: true}
	}
	f, ok := r.engine.fetcher.(IssuerFetcher)
	if ok && !seeking {
		known, to, err := knownIssuers(r.engine.fetcher, r.leaf)
		if r.issuer = issuers.Of(r.leaf, known); r.issuer != nil {
			r.setIssuer(r.issuer)
			return o
		}
		if err == nil { // else it is what FetchIssuer says, too
			return outcome{deferred: true, turns: true, to: to}
		}
	}
	if ok {
		o.sought = seeking
		ctx, cancel := context.WithTimeout(r.ctx, r.engine.fetchTimeout)
		defer cancel()
		candidates, err := f.FetchIssuer(ctx, r.leaf)
		o.err = err
		o.final = errors.Is(err, ErrNoResponder) || errors.Is(err, ErrNoIssuer)
		r.issuer = issuers.Of(r.leaf, candidates)
		if err == nil && r.issuer == nil {
			o.err = fmt.Errorf("%w: none of the %d certificates fetched", ErrNoIssuer, len(candidates))
		}
	} else {
		o.err, o.final = ErrNoIssuer, true
	}
	switch {
	case r.issuer != nil:
		r.setIssuer(r.issuer)
		return outcome{deferred: seeking, turns: seeking, to: o.to, sought: o.sought}
	case errors.Is(o.err, ErrNoResponder):
		return outcome{err: o.err, final: true}
	case !errors.Is(o.err, ErrNoIssuer):
		o.err = fmt.Errorf("%w: %w", ErrNoIssuer, o.err)
	}
	candidates, unusable := r.candidates()
	unusable = append(unusable, issuers.Unusable(r.leaf, candidates)...)
	if len(unusable) > 0 {
		o.err = fmt.Errorf("%w: %w", o.err, errors.Join(unusable[:min(len(unusable), 3)]...))
	}
	o.err = lacksIssuer(r.leaf, o.err)
	return o
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

// lacksIssuer returns an error that says what helps where the issuer is not found, which err says.
func lacksIssuer(leaf *x509.Certificate, err error) error {
	return fmt.Errorf("staple: nobody is known who issued %s; put the issuer's certificate into the chain, "+
		"after the leaf, or into Stapler.Issuers: %w", name.Of(leaf), err)
}

// mayDefer reports whether the round may wait once more for the process that has the lock.
// Beyond about three leases, that one fails like those before it, or has not made the
// lock at all.
func (r *round) mayDefer() bool {
	r.engine.mu.Lock()
	defer r.engine.mu.Unlock()
	r.deferrals++
	return r.deferrals <= maxDeferrals
}

// fresher returns the response in the cache if it is newer than the one held, and
// not due itself. One that is newer and due is adopted all the same.
func (r *round) fresher() *response {
	g, e := r.engine, r.entry
	if g.storage.cache == nil {
		return nil
	}
	loadCtx, cancel := context.WithTimeout(r.ctx, storeTimeout)
	defer cancel()
	found, err := g.storage.load(loadCtx, e, r.issuer)
	if r.ctx.Err() == nil {
		g.storage.report(reading, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	held, now := e.known.Held(), wall.Now()
	switch {
	case found != nil && held != nil && found.Same(held):
		held.TakenAs(found) // it may be untrimmed, or trimmed by somebody else
		e.stored = true
		return nil
	case found == nil || !found.Supersedes(held, wall.MicroOf(now)):
		e.stored = false // so that the response held is stored again
		return nil
	case !e.forced && !e.holding(found).Due(now) && (found.Revoked || !e.known.Revoked()):
		return found
	}
	e.adopt(found, true)
	return nil
}

func (r *round) tryLock() (unlock func(), ok bool, err error) {
	ctx, cancel := context.WithTimeout(r.ctx, storeTimeout)
	defer cancel()
	unlock, ok, err = r.engine.storage.locker.TryLock(ctx, r.cacheKey(), leaseTTL)
	if r.ctx.Err() == nil {
		r.engine.storage.report(locking, err)
	}
	return unlock, ok, err
}

// fetch asks the Fetcher.
func (r *round) fetch() outcome {
	a := &acceptor{round: r}
	ctx, cancel := context.WithTimeout(r.ctx, r.engine.fetchTimeout)
	defer cancel()
	req := &Request{Leaf: r.leaf, Issuer: r.issuer, Accept: a.accept}
	req.past, a.insists = r.doubts()
	der, err := r.engine.fetcher.Fetch(ctx, req)
	a.mu.Lock()
	a.insists = false // what the Fetcher made of that is what there is
	a.mu.Unlock()
	if err == nil {
		err = a.accept(der)
	}
	o := outcome{asked: true, responder: req.Responder}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.taken != nil:
		o.response = a.taken
	case a.older != nil && !a.refused && a.held != nil && (a.held.Revoked || a.held.Current(wall.Micro())):
		o.response = a.older // nothing newer is to be had, which is not a failure
	case errors.Is(err, ErrNoResponder):
		o.err, o.final = err, true
	default:
		o.err = fmt.Errorf("no OCSP response for %s: %w", name.Of(r.leaf), err)
	}
	if a.denial != o.response {
		o.denial = a.denial
	}
	return o
}

// doubts returns which caches are to be passed by, since they may have what is not the responder's last word, and whether
// what is held already is not enough. What is revoked for good is asked about once a round: a second answer would be another node's.
func (r *round) doubts() (past ask.Past, insists bool) {
	r.engine.mu.Lock()
	defer r.engine.mu.Unlock()
	held, now := r.known.Held(), wall.Micro()
	switch {
	case r.known.Lasting():
		return ask.AllCaches, false
	case r.forced, r.denied, held != nil && (held.Revoked || !held.Current(now)):
		return ask.HeedfulCaches, true
	case held != nil && now >= held.End-(held.End-held.ThisUpdate)/8 && r.insisted < maxInsisted:
		r.insisted++
		return ask.NoCaches, true
	}
	return ask.NoCaches, false
}

// denies reports whether an answer in err is negative, or of no use in a way that a cache may have kept.
func denies(err error) bool {
	_, said := errors.AsType[ocsp.ResponseError](err)
	_, refused := errors.AsType[*VerifyError](err)
	return said || refused || errors.Is(err, errUnknown)
}

// An acceptor judges the responses that come in one round.
type acceptor struct {
	*round

	mu      sync.Mutex
	insists bool      // what is held already does not do
	held    *response // when the last came
	taken   *response // the newest accepted, or held if nothing newer came
	older   *response // authentic, but older than held
	denial  *response // says that the certificate is revoked still
	refused bool      // another one was, for any other reason
	last    []byte    // what was accepted last
}

// accept is Request.Accept.
func (a *acceptor) accept(der []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last != nil && bytes.Equal(der, a.last) && !a.insists {
		return nil
	}
	g, now := a.engine, wall.Micro()
	g.mu.Lock()
	a.held = a.known.Held()
	g.mu.Unlock()
	if a.held != nil && a.held.Is(der) && a.held.Current(now) {
		a.last = bytes.Clone(der)
		if a.held.Revoked {
			a.denial = a.held
		}
		return a.unchanged()
	}
	r, err := a.verify(a.issuer, der)
	if err == nil && r.Revoked {
		a.denial = r
	}
	same := err == nil && a.held != nil && r.Same(a.held)
	switch {
	case err != nil:
		a.refused = true
		return err
	case !same && !r.Supersedes(a.held, now):
		a.older = r
		return fmt.Errorf("staple: thisUpdate %s: %w, of %s", name.Time(wall.Time(r.ThisUpdate)), errOlder,
			name.Time(wall.Time(a.held.ThisUpdate)))
	}
	a.last = bytes.Clone(der)
	switch {
	case same:
		a.held.TakenAs(r)
		return a.unchanged()
	case a.taken == nil || r.Newer(a.taken):
		a.taken = r
	}
	return nil
}

// unchanged takes what is held for want of something newer.
func (a *acceptor) unchanged() error {
	if a.taken == nil {
		a.taken = a.held
	}
	if a.insists {
		return errUnchanged
	}
	return nil
}

// refresh is Certificate.Refresh.
func (e *entry) refresh(ctx context.Context, c *Certificate) error {
	g := e.engine
	g.mu.Lock()
	if c.removed || g.closed {
		g.mu.Unlock()
		return fmt.Errorf("staple: %s: %w", name.Of(e.leaf), ErrClosed)
	}
	target := e.rounds + 1
	e.forced, e.final = true, false
	g.schedule.Refresh(&e.item, g.driver.now())
	g.driver.run()
	g.mu.Unlock()
	var result error
	err := g.await(ctx, e, func() bool {
		switch {
		case e.rounds >= target:
			result = e.err
		case c.removed || g.closed:
			result = fmt.Errorf("staple: %s: %w", name.Of(e.leaf), ErrClosed)
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

// unanswerable returns an error if nobody could be asked about leaf.
func unanswerable(leaf *x509.Certificate, now time.Time) error {
	switch {
	case now.After(leaf.NotAfter):
		return errExpired
	case bytes.Equal(leaf.RawIssuer, leaf.RawSubject) && issuers.Signed(leaf, leaf):
		return errSelfSigned
	}
	return nil
}
