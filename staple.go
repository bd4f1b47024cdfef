package staple

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/go-staple/staple/internal/choose"
	"github.com/go-staple/staple/internal/name"
	"github.com/go-staple/staple/internal/ocspder"
	"github.com/go-staple/staple/internal/wall"
)

var (
	// ErrNoIssuer reports that the certificate which issued a leaf is neither in
	// its chain, nor in [Stapler.Issuers], nor to be had from the Fetcher.
	ErrNoIssuer = errors.New("staple: issuer not found")

	// ErrNoResponder reports that there is nobody to ask about a certificate: it
	// names no responder, has expired, or is self-signed.
	ErrNoResponder = errors.New("staple: no OCSP responder to ask")

	// ErrRevoked reports that the issuer has revoked the certificate.
	ErrRevoked = errors.New("staple: certificate is revoked")

	// ErrClosed reports that the Stapler was closed, or the certificate removed.
	ErrClosed = errors.New("staple: closed")
)

// A Stapler keeps the OCSP responses of certificates current. The zero value is
// ready for use. Its fields are read at the first call of Add, TLSConfig,
// Wait, Certificates or Close, and must not be changed after it.
//
// A Stapler is safe for concurrent use and must not be copied.
type Stapler struct {
	// Fetcher obtains responses. If nil, an [HTTPFetcher] with no options is
	// used. If it is an [IssuerFetcher] too, it is asked for issuers that are
	// found neither in the chain nor in Issuers.
	Fetcher Fetcher

	// Verifier decides which responses may be stapled. If nil, a
	// [ResponseVerifier] with no options is used.
	Verifier Verifier

	// Cache keeps responses beyond the process. If nil, there is none, and after
	// a restart no handshake is stapled until the responder has answered. If it
	// is a [Locker] too, the processes that share it make one request instead of
	// one each.
	Cache Cache

	// Issuers are certificates of authorities, for leaves whose chain lacks the
	// one that issued them.
	Issuers []*x509.Certificate

	// Logger receives what an operator should know of at level Info and above, and the
	// rest at Debug. While nothing fails there is no line at Info. There is a warning
	// when an outage begins, a certificate fails on its own, a staple is about to end,
	// a certificate is good again after it was revoked, or the cache fails; an error
	// when a staple has ended, a certificate is revoked, or a Must-Staple certificate
	// has had no staple for five minutes, and then each hour; and an Info line when any
	// of this has ended. Of each kind there is one line a minute for a responder host at
	// most; the next one names or counts the certificates of those left out.
	// docs/operations.md has all lines and attributes.
	//
	// If nil, slog.Default() is used. Nothing but Close waits for a handler that blocks. Several
	// thousand lines wait for it; then those of the lowest level are left out first, and
	// a line tells how many.
	Logger *slog.Logger

	// OnEvent, if not nil, is called for each [Event]: one call at a time, in
	// order, from a goroutine of its own and with no lock held. It may call
	// every method but Close. Only later events wait for it, and Close. 4,096 events
	// may wait, or twice as many as there are certificates, if that is more; then some
	// are left out: EventUnchanged and EventFailed first, EventExpired, EventRevoked
	// and EventReinstated last, and of these the oldest. The log tells when that
	// begins, and how many they were when OnEvent has caught up.
	OnEvent func(Event)

	// RequireStaple refuses a handshake with a Must-Staple certificate for which
	// no valid staple is held, if the client asked for one. Otherwise such a
	// handshake goes on without, and it is the client that refuses it.
	RequireStaple bool

	// StapleRevoked staples an authentic "revoked" response, so that clients
	// learn of it. Otherwise nothing is stapled to a revoked certificate.
	StapleRevoked bool

	// Concurrency bounds the fetches in flight. If it is not positive, 16 are.
	// One responder host gets at most half of them while others wait.
	Concurrency int

	once   sync.Once
	engine *engine
}

func (s *Stapler) start() *engine {
	s.once.Do(func() { s.engine = newEngine(s) })
	return s.engine
}

// Add puts a certificate chain, leaf first, under the Stapler's care and returns
// a handle to it. The leaf's first response is looked for in the cache, for a
// second at most, before Add returns, and fetched in the background after that;
// [Certificate.Wait] waits for it. A response in cert.OCSPStaple is verified like
// a cached one.
//
// The private key is not used and may be nil if the certificate is not to be
// served. The same leaf may be added again: it is fetched once.
//
// Add fails if the chain is empty or its leaf does not parse, and with [ErrClosed] after
// Close. A certificate without a responder or without its issuer is no failure:
// it is served as it is, and Wait tells why. What else is in the chain and does not parse
// is logged.
func (s *Stapler) Add(cert tls.Certificate) (*Certificate, error) {
	return s.start().add(cert, false)
}

// Wait waits until every certificate that is known now has had its first
// round, in whatever way it ended: stapled, failed, or nobody to ask. It returns nil then, or an
// error that names the Must-Staple certificates which have no staple and says why. If ctx ends
// before that, its error is returned, joined with one that tells what is missing.
func (s *Stapler) Wait(ctx context.Context) error {
	g := s.start()
	pending := g.unsettled()
	for i, e := range pending {
		if err := g.await(ctx, e, func() bool { return g.ended(e) }); err != nil {
			missing := slices.DeleteFunc(pending[i:], func(e *entry) bool { return g.hasEnded(e) })
			if len(missing) == 0 {
				break
			}
			return errors.Join(err, fmt.Errorf("staple: no first OCSP response yet for %s (%d certificates wait)",
				name.Of(missing[0].leaf), len(missing)))
		}
	}
	return g.lacking()
}

// Certificates returns the handles of all certificates under the Stapler's care,
// in the order in which they came: those added, those of configurations that went
// through TLSConfig, and those that their callbacks returned. One that succeeds another
// in the same files has its place, once it serves.
func (s *Stapler) Certificates() iter.Seq[*Certificate] {
	g := s.start()
	return func(yield func(*Certificate) bool) {
		for _, c := range g.certificates() {
			if !yield(c) {
				return
			}
		}
	}
}

// Close stops refreshing: it cancels what is being fetched, stores what was
// accepted already (for five seconds at most), and returns when every goroutine
// of the Stapler has ended. Handles and wrapped configurations stay usable and
// serve the staples they hold until these end. Close always returns nil.
func (s *Stapler) Close() error {
	s.start().close()
	return nil
}

// A Certificate is a handle to a certificate under the care of a [Stapler]. Its
// methods are safe for concurrent use.
type Certificate struct {
	slot slot // first, for one cache line

	// Guarded by engine.mu.
	added      bool // by Add: TLSConfig chooses among these where the base has none
	returned   bool // by a callback
	hidden     bool // it waits for its turn to serve
	removed    bool
	next, prev *Certificate
}

// A slot is what handshakes are given, and whose; of no entry if the certificate does
// not parse.
type slot = choose.Slot[entry]

// newCertificate returns a handle that shows cert without a staple; as it is if leaf,
// which it parses to, is nil.
func newCertificate(cert *tls.Certificate, leaf *x509.Certificate) *Certificate {
	c := new(Certificate)
	plain := *cert
	if v := reflect.ValueOf(plain.PrivateKey); v.IsValid() && (v.Kind() == reflect.Pointer || v.Kind() == reflect.Slice) && v.IsNil() {
		plain.PrivateKey = nil // crypto/tls asks it for its public key
	}
	if leaf != nil {
		plain.OCSPStaple = nil
		if plain.Leaf == nil { // else crypto/tls takes the names from it, even if it is not that of the chain
			plain.Leaf = leaf
		}
	}
	c.slot.Put(&plain)
	return c
}

// answered reports whether c is a peer's about which a good answer is held, with engine.mu held.
func (c *Certificate) answered() bool {
	r := c.entry().known.Held()
	return c == c.entry().peer && r != nil && !r.Revoked && r.Current(wall.Micro())
}

func (c *Certificate) entry() *entry { return c.slot.Of }

func (c *Certificate) chain() [][]byte { return c.slot.Shown().Certificate }

// setStaple makes handshakes carry der until end.
func (c *Certificate) setStaple(der []byte, end time.Time) { c.slot.Staple(der, end) }

// unstaple makes handshakes carry no staple.
func (c *Certificate) unstaple() { c.slot.Unstaple() }

// current returns what a handshake at this moment is given.
func (c *Certificate) current() (cert *tls.Certificate, stapled bool) { return c.slot.Current() }

// TLS returns the certificate as a handshake would be given it now: stapled while
// a valid response is held. The result is shared and must not be changed; it is
// replaced rather than changed when a new response comes, so give crypto/tls the
// method GetCertificate rather than the result. TLS does not wait, and allocates
// once at most for each staple: when that has ended.
func (c *Certificate) TLS() *tls.Certificate {
	cert, _ := c.current()
	return cert
}

// GetCertificate is for tls.Config.GetCertificate. It returns the same as TLS,
// whatever the hello asks for; hello may be nil. It fails only where
// [Stapler.RequireStaple] says so.
func (c *Certificate) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	cert, stapled := c.current()
	if !stapled {
		if err := c.entry().unstapledHandshake(hello); err != nil {
			return nil, err
		}
	}
	return cert, nil
}

// GetClientCertificate is for tls.Config.GetClientCertificate. It returns the
// same as TLS, whatever the server asks for; info may be nil. TLS 1.3 carries the
// staples of clients, TLS 1.2 does not.
func (c *Certificate) GetClientCertificate(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	cert, stapled := c.current()
	if !stapled {
		c.entry().countUnstapled()
	}
	return cert, nil
}

// Wait returns nil once handshakes are stapled. It returns [ErrNoResponder],
// [ErrRevoked] and [ErrClosed] as soon as one of them is the state of affairs, and
// [ErrNoIssuer] if there is nowhere left to look for one. Other failures are
// retried; if ctx ends first, its error is returned, joined with that of the last
// round.
func (c *Certificate) Wait(ctx context.Context) error {
	e, g := c.entry(), c.entry().engine
	var final error
	err := g.await(ctx, e, func() bool {
		_, stapled := c.current()
		switch {
		case stapled, c.answered():
			final = nil
		case c.removed || g.closed:
			final = fmt.Errorf("staple: %s: %w", name.Of(e.leaf), ErrClosed)
		case e.known.Revoked():
			final = fmt.Errorf("staple: %s: %w", name.Of(e.leaf), ErrRevoked)
		case e.final:
			final = e.err
		default:
			return false
		}
		return true
	})
	if err != nil {
		return errors.Join(err, c.Status().Err)
	}
	return final
}

// Refresh fetches a response now, or joins the fetch in flight, and returns what
// came of it. That the responder has nothing newer than the response held is no
// error, nor is a revocation. Refresh returns ctx's error if that ends first; the
// fetch goes on.
func (c *Certificate) Refresh(ctx context.Context) error {
	return c.entry().refresh(ctx, c)
}

// Response returns the newest response in DER that has been verified, trimmed as
// [ResponseVerifier] says. Handshakes do
// not carry it if it has ended, or if it says that the certificate is revoked and
// [Stapler.StapleRevoked] is false. It returns nil if there has been none. The result
// must not be changed.
func (c *Certificate) Response() []byte {
	g := c.entry().engine
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := c.entry().known.Held(); r != nil {
		return r.DER
	}
	return nil
}

// Status returns the present state of the certificate. It is cheap.
func (c *Certificate) Status() Status {
	g := c.entry().engine
	g.mu.Lock()
	defer g.mu.Unlock()
	return c.status()
}

// Remove ends the Stapler's care for the certificate, unless another handle to the
// same leaf remains. What was said of [Stapler.Close] holds for this handle.
func (c *Certificate) Remove() {
	c.entry().engine.remove(c)
}

// A State says in one word how a [Certificate] stands: the status page, its JSON and the metrics have the same words. A
// certificate that has expired is StateExpired, a revoked one StateRevoked, and any other the first of the rest that
// fits. They are in order, the worst first; those before StateWaiting need attention.
type State int

const (
	StateMustStapleMissing State = iota + 1 // "must-staple-missing": Must-Staple and not stapled; clients that honour it refuse the certificate
	StateUnstapled                          // "unstapled": the response held has ended, or none came and a round failed
	StateUnanswered                         // "unanswered": of a peer, the answer held has ended, or none came and a round failed
	StateRevoked                            // "revoked": by the response held, whether that is stapled or not
	StateExpired                            // "expired": the certificate itself
	StateExpiring                           // "expiring": stapled, but a quarter is left, at most, of what was left when the response came, and whoever was asked since then had nothing newer
	StateFailing                            // "failing": stapled, but the last round failed
	StateWaiting                            // "waiting": no response has come yet, and no round has failed
	StateStapled                            // "stapled": handshakes carry a staple
	StateAnswered                           // "answered": of a peer, an answer is held
	StateNoResponder                        // "no-responder": there is nobody to ask, so that it is served as it is
)

func (s State) String() string {
	if s < StateMustStapleMissing || s > StateNoResponder {
		return fmt.Sprintf("State(%d)", int(s))
	}
	return [...]string{"must-staple-missing", "unstapled", "unanswered", "revoked", "expired", "expiring", "failing", "waiting",
		"stapled", "answered", "no-responder"}[s-1]
}

// state returns the State of what has a Status. ending: its staple ends soon, and nothing newer has come though it should have.
func (st *Status) state(ending bool, now time.Time) State {
	nobody := errors.Is(st.Err, ErrNoResponder)
	switch {
	case now.After(st.Leaf.NotAfter):
		return StateExpired
	case st.Revoked:
		return StateRevoked
	case st.Stapled && ending && !nobody:
		return StateExpiring
	case st.Stapled && st.Failures > 0:
		return StateFailing
	case st.Stapled:
		return StateStapled
	case st.Peer && now.Before(st.Expires):
		return StateAnswered
	case st.MustStaple && !st.Peer:
		return StateMustStapleMissing
	case nobody:
		return StateNoResponder
	case st.Err == nil && st.ThisUpdate.IsZero():
		return StateWaiting
	case st.Peer:
		return StateUnanswered
	}
	return StateUnstapled
}

// Status is how a [Certificate] stands at one moment.
type Status struct {
	Leaf                *x509.Certificate
	State               State     // in one word
	MustStaple          bool      // the leaf carries the TLS feature extension of RFC 7633 with status_request
	Stapled             bool      // handshakes carry a staple now
	Revoked             bool      // by the response held, which this outlasts
	RevokedAt           time.Time // when it was, says that response; zero: it is not, or nobody tells
	RevocationReason    int       // of RFC 5280, section 5.3.1, such as ocsp.KeyCompromise
	ThisUpdate          time.Time // of the response held; zero: none is
	Expires             time.Time // the end of the response held; zero: none is
	NextRefresh         time.Time // when the responder is asked next; while PausedUntil is set, not before: see there. Zero: not any more
	PausedUntil         time.Time // when the pause that it waits for lets the next request through, about this certificate or, of many that wait, more likely another one; each that fails begins a new pause. Zero: it waits for none
	PauseErr            error     // the last failure of others, for which it waits
	LastAttempt         time.Time // when the last round began; zero: none has
	Responder           string    // the URL that answered last; empty: none has, or the Fetcher does not tell
	Failures            int       // rounds failed since the last success
	UnstapledHandshakes uint64    // handshakes without a staple although the certificate names a responder
	Peer                bool      // a [Checker] asks about it; nobody serves it
	Err                 error     // of the last round; nil if it succeeded
}

// status returns the Status of c, with engine.mu held.
func (c *Certificate) status() Status {
	e, g := c.entry(), c.entry().engine
	_, stapled := c.current()
	st := Status{
		Leaf:                e.leaf,
		MustStaple:          e.mustStaple,
		Stapled:             stapled,
		NextRefresh:         g.driver.next(e),
		LastAttempt:         e.item.Began(),
		Responder:           e.responder,
		Failures:            int(e.failures),
		UnstapledHandshakes: e.unstapled.Load(),
		Peer:                len(e.handles) == 0,
		Err:                 e.err,
	}
	if r := e.known.Held(); r != nil {
		st.Revoked = r.Revoked
		st.ThisUpdate = wall.Time(r.ThisUpdate)
		st.Expires = wall.Time(r.End)
	}
	if st.Revoked {
		said, _ := ocspder.Revoked(e.known.Held().DER, e.leaf)
		st.RevokedAt, st.RevocationReason = said.RevokedAt, said.Reason
	}
	if !g.closed {
		st.PausedUntil, st.PauseErr = e.item.Pause(wall.Now())
	}
	now := wall.Now()
	st.State = st.state(e.item.Ending(now), now)
	return st
}

// parseLeaf returns the parsed leaf of cert. cert.Leaf is used if it really is
// that of the chain.
func parseLeaf(cert *tls.Certificate) (*x509.Certificate, error) {
	if cert == nil || len(cert.Certificate) == 0 || len(cert.Certificate[0]) == 0 {
		return nil, errors.New("staple: the certificate chain is empty")
	}
	if cert.Leaf != nil && bytes.Equal(cert.Leaf.Raw, cert.Certificate[0]) {
		return cert.Leaf, nil
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("staple: the leaf of the chain does not parse: %w", err)
	}
	return leaf, nil
}
