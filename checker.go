package staple

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-staple/staple/internal/backlog"
	"github.com/go-staple/staple/internal/issuers"
	"github.com/go-staple/staple/internal/muststaple"
	"github.com/go-staple/staple/internal/name"
	"github.com/go-staple/staple/internal/ocspder"
	"github.com/go-staple/staple/internal/tally"
	"github.com/go-staple/staple/internal/wall"
)

const (
	defaultCheckTimeout = 3 * time.Second
	maxCallers          = 4096             // connections that wait for an answer
	patience            = 30 * time.Second // after a round that failed, until somebody who comes begins another one
)

// A Checker refuses peers whose certificates are revoked, whether they staple or not: clients, which cannot as a
// rule, and servers that do not.
//
//	checker := staple.Checker{Stapler: &stapler}
//	config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, roots
//	config.VerifyConnection = checker.VerifyConnection
//
// About each certificate of a peer's chain but the trust anchor, the responder that it names is asked, once for
// however many connections wait. The answer is held until it ends, stored in Stapler.Cache, and replaced at half of
// its validity, four days after its thisUpdate at the latest: in the background if the peer has come again meanwhile,
// and otherwise when it comes. So a revocation is noticed by then, unless nobody answers; sooner with MaxResponseAge.
//
// What is revoked is refused with [ErrRevoked] until it has expired or its CA has undone that, over restarts if there
// is a Cache. If nobody answers, or "unknown", that is [ErrUnanswered], unless FailOpen is set. A certificate passes
// that names no responder.
//
// A server asks before its peer has proved to have the key, so all is bounded: requests by half of
// Stapler.Concurrency, half of that at a host; connections that wait by 4,096; certificates that are remembered by
// 131,072, each until it has not come for 24 hours, or longer if revoked. CAs learn, in clear, who your peers are.
// docs/checker.md tells what all this means.
//
// A Checker is safe for concurrent use, and must not be copied.
type Checker struct {
	Stapler *Stapler // asks, with its Fetcher, Verifier, Cache, Logger and Concurrency; not nil. Nothing need be added to it.

	// FailOpen lets a peer pass about whom nobody answers, which is counted ([Stapler.CheckStats]) and logged. Whoever can keep
	// the responder from answering can use a revoked certificate then.
	FailOpen bool

	// Timeout is how long a connection waits for answers about its whole chain; not positive: 3 seconds. Asking goes on after it.
	Timeout time.Duration

	// MaxResponseAge is how old an answer may be, from its thisUpdate on; not positive: it counts until its end. Answers are
	// asked for again at half of it. Where only older ones come, the peer is unanswered.
	MaxResponseAge time.Duration

	RequireStaple bool // a peer that staples nothing is refused (RFC 9190, section 5.4), and nobody is asked about its leaf
	LeafOnly      bool // nobody is asked about intermediates

	// OnEvent, if not nil, is called for each [Event] about a peer of the Stapler, as [Stapler.OnEvent] is for what is
	// served. EventStapled says that a newer answer is held.
	OnEvent func(Event)

	once sync.Once
	run  *checking
}

// A checking is a Checker at work.
type checking struct {
	*peers
	failOpen, requireStaple, leafOnly bool

	timeout time.Duration
	maxAge  int64 // in microseconds; 0: any
	events  backlog.Teller[Event]
	gone    *atomic.Bool // nobody has the Checker any more
}

func (c *Checker) start() (*checking, error) {
	if c.Stapler == nil {
		return nil, errors.New("the Checker has no Stapler")
	}
	c.once.Do(func() { c.run = newChecking(c) })
	return c.run, nil
}

// VerifyConnection is for [tls.Config.VerifyConnection]. It passes a connection without a certificate, and one with a
// verified chain in which nothing is revoked or unanswered; it fails where there is no verified chain.
//
// What the peer staples must verify, as for [ResponseVerifier.VerifyConnection], and counts like any other answer:
// the newer decides. A Must-Staple certificate without a staple fails in TLS 1.3; in TLS 1.2, in which clients cannot
// staple, theirs needs an answer even if FailOpen is set. Resumed sessions are checked, too; their staple, of the
// connection that began them, counts for RequireStaple alone, until its end. After [Stapler.Close], what is not known
// fails with [ErrClosed].
func (c *Checker) VerifyConnection(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return nil
	}
	leaf := cs.PeerCertificates[0]
	k, err := c.start()
	if err == nil && len(cs.VerifiedChains) == 0 {
		err = errors.New("no verified chain, so that nobody knows who issued it")
	}
	if err != nil {
		return fmt.Errorf("staple: %s: %w", name.Of(leaf), err)
	}
	for _, chain := range cs.VerifiedChains {
		if len(chain) < 2 {
			return nil // a trust anchor
		}
	}
	q := inquiry{checking: k}
	if !cs.DidResume || k.requireStaple {
		q.staple = cs.OCSPResponse
	}
	if len(q.staple) == 0 && k.requireStaple {
		k.countRefused(cs.VerifiedChains[0][1])
		return fmt.Errorf("staple: %s: no staple, and Checker.RequireStaple is set", name.Of(leaf))
	}
	q.bare = len(q.staple) == 0 && !(cs.DidResume && len(cs.OCSPResponse) > 0)
	q.resumed, q.version = cs.DidResume, cs.Version
	return q.decide(context.Background(), cs.VerifiedChains)
}

// unstapled decides about a leaf that came without a staple: it is refused, or must have an answer, FailOpen or not, or
// neither.
func (q *inquiry) unstapled(leaf *x509.Certificate) (must bool, err error) {
	must, err = muststaple.Read(leaf)
	cannot := q.version < tls.VersionTLS13 && slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	switch {
	case q.resumed: // the connection that began it was judged
		return must && cannot, nil
	case err != nil:
		return false, fmt.Errorf("no staple, and %w", err)
	case must && !cannot:
		return false, errors.New("no staple, and the certificate is Must-Staple")
	}
	return must, nil
}

// Check is VerifyConnection for a chain that the caller has verified, without a staple: the leaf, its issuer and so
// on, up to the trust anchor, about which nobody is asked. It fails for less than two certificates, and for one that
// is nil or not signed by the next. If ctx ends first, what is held already decides.
// [tls.ConnectionState.VerifiedChains] has such chains.
func (c *Checker) Check(ctx context.Context, chain []*x509.Certificate) error {
	k, err := c.start()
	switch {
	case err != nil:
		return fmt.Errorf("staple: %w", err)
	case len(chain) < 2:
		return fmt.Errorf("staple: a chain to check needs two certificates at least, a leaf and its issuer, and has %d", len(chain))
	case slices.Contains(chain, nil):
		return errors.New("staple: a certificate of the chain to check is nil")
	}
	for i, cert := range chain[:len(chain)-1] {
		if issuer := chain[i+1]; !k.linked(cert, issuer) && !issuers.Signed(cert, issuer) {
			return fmt.Errorf("staple: %s: the certificate after it in the chain, %s, did not sign it", name.Of(cert), name.Of(issuer))
		}
	}
	q := inquiry{checking: k}
	return q.decide(ctx, [][]*x509.Certificate{chain})
}

// linked reports whether issuer is known as cert's.
func (k *checking) linked(cert, issuer *x509.Certificate) bool {
	s := k.table.Recall(cert.Raw, time.Now())
	return s != nil && s.Handle.issuerKnown.Load() && bytes.Equal(s.Handle.issuer.Raw, issuer.Raw)
}

// An inquiry is one connection, or Check.
type inquiry struct {
	*checking
	staple []byte // of the leaf
	must   bool   // the leaf needs an answer, FailOpen or not
	bare   bool   // there is no staple, which a certificate may forbid
	ended  error  // of the context that the caller gave
	full   bool   // as many wait as may

	resumed bool
	version uint16
}

// decide passes the peer if one of its chains does.
func (q *inquiry) decide(ctx context.Context, chains [][]*x509.Certificate) error {
	var open []question
	all := q.verdicts(chains, &open)
	if len(open) > 0 {
		q.await(ctx, open, chains)
		q.left(open)
	}
	if slices.ContainsFunc(all, func(v verdict) bool { return v.err == errOpen }) {
		all = q.verdicts(chains, nil)
	}
	if all == nil {
		return nil
	}
	if i := slices.IndexFunc(all, func(v verdict) bool { return v.unanswered && !v.must }); i >= 0 && q.failOpen {
		q.unanswered(all[i], true)
		return nil
	}
	if i := slices.IndexFunc(all, func(v verdict) bool { return v.unanswered }); i >= 0 {
		q.unanswered(all[i], false)
	} else {
		q.countRefused(chains[0][1])
	}
	if len(all) == 1 {
		return all[0].err
	}
	var errs []error
	for _, v := range all {
		errs = append(errs, v.err)
	}
	return errors.Join(errs...)
}

// verdicts judges chains, and returns nil if one passes.
func (q *inquiry) verdicts(chains [][]*x509.Certificate, open *[]question) (all []verdict) {
	for _, chain := range chains {
		v := q.judge(chain, open)
		if v.err == nil {
			v.of.Passed.Add(1)
			return nil
		}
		all = append(all, v)
	}
	return all
}

// A verdict is about one chain.
type verdict struct {
	err        error
	of         *tally.Tally // the leaf's
	unanswered bool         // and nothing else is wrong
	about      *entry       // which is
	must       bool         // an answer is needed even if FailOpen is set
}

// errOpen is the error of a chain about which answers are to be waited for.
var errOpen = errors.New("staple: nobody has answered yet")

// A question is an entry about which somebody waits for an answer, and the number of the round that brings it.
type question struct {
	*entry
	round uint32
}

// judge judges a chain by what is known now. If open is not nil, what is not known is asked for and added there.
func (q *inquiry) judge(chain []*x509.Certificate, open *[]question) (v verdict) {
	for i, cert := range chain[:q.looked(chain)] {
		e := q.meet(cert, chain[i+1])
		if open != nil {
			q.visited(e)
		}
		if i == 0 {
			v.of = e.tally
		}
		if i == 0 && q.bare && e.featured {
			must, err := q.unstapled(e.leaf)
			if err != nil {
				return verdict{err: fmt.Errorf("staple: %s: %w", name.Of(e.leaf), err)}
			}
			q.must = must
		}
		stapled := false
		if i == 0 && len(q.staple) > 0 {
			var err error
			if stapled, err = q.heed(e, chain[1]); err != nil {
				return verdict{err: err}
			}
		}
		switch r, known := q.known(e); {
		case known && r != nobody && r.Revoked:
			return verdict{err: revokedError(e.leaf, r)}
		case (stapled || known) && (open == nil || r == nobody || !e.asking.Load()):
		case open != nil:
			if round, wait := q.ask(e); wait {
				*open = append(*open, question{e, round})
			}
			v.err = errOpen
		case v.err != nil:
		default:
			why, closed := q.why(e)
			if closed {
				return verdict{err: why}
			}
			v.err = fmt.Errorf("%w: %w", ErrUnanswered, why)
			v.unanswered, v.about, v.must = true, e, i == 0 && q.must
		}
	}
	return v
}

// known returns what is held about e and counts now, for this Checker: nobody, if there is nobody to ask.
func (k *checking) known(e *entry) (r *response, known bool) {
	r = e.answer.Load()
	switch now := wall.Micro(); {
	case r == nil:
		return nil, false
	case r == nobody, r.Revoked:
		return r, true
	case r == lapsed:
		return nobody, now >= wall.MicroOf(e.leaf.NotAfter)
	default:
		return r, r.Current(now) && (k.maxAge == 0 || now < r.ThisUpdate+k.maxAge)
	}
}

// heed judges what the peer has stapled, and has it count like any other answer. It reports whether it says that all is
// well, where nothing else is known.
func (q *inquiry) heed(e *entry, issuer *x509.Certificate) (good bool, err error) {
	if r, known := q.known(e); known && r != nobody && r.Current(wall.Micro()) && r.Is(q.staple) {
		return true, nil
	}
	if e.answer.Load() == nil {
		q.recall(e) // the cache may know what this peer would like to be forgotten
	}
	r, err := e.verify(issuer, q.staple)
	switch {
	case errors.Is(err, errUnknown):
		return false, fmt.Errorf("staple: %s: the staple says that the responder does not know the certificate", name.Of(e.leaf))
	case err != nil:
		return false, err
	case q.maxAge > 0 && wall.Micro() >= r.ThisUpdate+q.maxAge:
		return false, fmt.Errorf("staple: %s: the staple is of %s, and older than Checker.MaxResponseAge", name.Of(e.leaf), name.Time(wall.Time(r.ThisUpdate)))
	}
	g := q.engine
	g.mu.Lock()
	defer g.mu.Unlock()
	held := e.known.Held()
	if !e.known.Lasting() || r.Revoked { // which a peer cannot undo by what it chooses to staple
		e.adopt(r, false)
	}
	if now := g.driver.now(); e.known.Held() == r && !e.gone && !g.closed {
		q.saveSoon(e)
		if !r.Revoked && !e.holding(r).Due(now) {
			e.asking.Store(false)
		} else if r.Revoked {
			g.schedule.Start(&e.item, now) // whoever stapled it may have kept it since that was lifted
			g.driver.run()
		}
	}
	if r.Revoked && (held == nil || r.Newer(held)) {
		return false, revokedError(e.leaf, r)
	}
	return true, nil
}

// await waits until Timeout for answers, or for as many of them as decide.
func (q *inquiry) await(ctx context.Context, open []question, chains [][]*x509.Certificate) {
	if q.waiting.Add(1) > maxCallers {
		q.waiting.Add(-1)
		q.full = true
		return
	}
	defer q.waiting.Add(-1)
	began := time.Now()
	limited, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	ends := reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(limited.Done())}
	for waits := q.changes(open); len(waits) > 0 && !q.decided(chains); waits = q.changes(open) {
		if i, _, _ := reflect.Select(append(waits, ends)); i == len(waits) {
			q.ended = ctx.Err()
			break
		}
	}
	open[0].tally.Wait(time.Since(began))
}

// changes returns what to wait for: a change of each of those that are not answered yet.
func (q *inquiry) changes(open []question) (waits []reflect.SelectCase) {
	g := q.engine
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, o := range open {
		if o.rounds < o.round && !o.gone && !g.closed {
			waits = append(waits, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(o.changed.wait())})
		}
	}
	return waits
}

// decided reports whether further answers make no difference: a chain passes, or none can any more.
func (q *inquiry) decided(chains [][]*x509.Certificate) bool {
	hopeless := true
	for _, chain := range chains {
		revoked, open := false, false
		for i, cert := range chain[:q.looked(chain)] {
			e := q.meet(cert, chain[i+1])
			r, known := q.known(e)
			revoked = revoked || known && r != nobody && r.Revoked
			open = open || r != nobody && (!known || e.asking.Load())
		}
		if !revoked && !open {
			return true
		}
		hopeless = hopeless && revoked
	}
	return hopeless
}

// looked returns how many certificates of a chain are looked at.
func (q *inquiry) looked(chain []*x509.Certificate) int {
	if q.leafOnly {
		return 1
	}
	return len(chain) - 1
}

// why returns why there is no answer about e, and whether that is because the Stapler is closed.
func (q *inquiry) why(e *entry) (err error, closed bool) {
	g := q.engine
	g.mu.Lock()
	defer g.mu.Unlock()
	_, paused := e.item.Pause(g.driver.now())
	held := e.known.Held()
	switch {
	case g.closed:
		return fmt.Errorf("staple: %s: nothing is known of it: %w", name.Of(e.leaf), ErrClosed), true
	case e.err != nil:
		return e.err, false // which names it
	case paused != nil:
		err = fmt.Errorf("nobody is asked at present, since requests have failed: %w", paused)
	case held != nil && held.Current(wall.Micro()):
		err = fmt.Errorf("the newest is of %s, and older than Checker.MaxResponseAge", name.Time(wall.Time(held.ThisUpdate)))
	case q.ended != nil:
		err = q.ended
	case q.full:
		err = errors.New("too many connections wait for an answer")
	default:
		err = fmt.Errorf("none came within the %v of Checker.Timeout", q.timeout)
	}
	return fmt.Errorf("%s: %w", name.Of(e.leaf), err), false
}

func revokedError(leaf *x509.Certificate, r *response) error {
	said, _ := ocspder.Revoked(r.DER, leaf)
	if said.RevokedAt.IsZero() {
		return fmt.Errorf("staple: %s: %w", name.Of(leaf), ErrRevoked)
	}
	return fmt.Errorf("staple: %s: at %s, %s: %w", name.Of(leaf), name.Time(said.RevokedAt), name.Reason(said.Reason), ErrRevoked)
}
