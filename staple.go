// Package staple keeps the OCSP responses of TLS certificates current, so that
// every handshake of a Go TLS server, client or proxy carries a verified one: OCSP
// stapling, RFC 6066, section 8, and RFC 8446, section 4.4.2.1.
//
// A server needs three lines more than before:
//
//	var stapler staple.Stapler
//	defer stapler.Close()
//	config = stapler.TLSConfig(config)
//
// The zero [Stapler] works. [Stapler.TLSConfig] takes any tls.Config and returns a
// clone that staples and changes nothing else, whether its certificates come from
// Certificates, GetCertificate, GetConfigForClient or GetClientCertificate. To
// look after one certificate without wrapping a configuration, pass it to
// [Stapler.Add], or its files to [Stapler.AddFiles]. The result has a method for
// tls.Config.GetCertificate; that of Add has others to wait for the first response,
// to ask for a new one now, and to see how it stands.
//
// # How it works
//
// A [Fetcher] asks the responder that the certificate names, a [Verifier] decides
// whether to believe the answer, and a [Cache], if there is one, keeps it for the
// next start. The defaults are [HTTPFetcher] and [ResponseVerifier]. Nothing is
// stapled or stored that the Verifier has not accepted, and what comes out of the
// cache is verified again.
//
// This goes on in the background. A handshake takes the staple that is at hand,
// if it has not ended by the wall clock, and waits for neither network nor disk.
// A response is replaced when half of its validity has passed. If that fails, it
// is stapled on until its end, while the responder is asked again and again, with
// growing pauses; after its end, handshakes go on without. One certificate or a
// hundred thousand share one scheduler and a few workers, which [Stapler.Close]
// stops.
//
// A "revoked" answer replaces a good one at once, and nothing is stapled any more,
// unless [Stapler.StapleRevoked] says so. A certificate on hold may be good again at
// once; any other revocation outlasts its response, over restarts too, until two
// different good ones, half an hour apart, undo it. A certificate that names no
// responder, as those of many public authorities do not any more, is served as it is.
//
// What begins and ends goes to [Stapler.Logger] as far as an operator should know, to
// [Stapler.OnEvent] in full, and can be asked for with [Certificate.Status].
//
// # What bypasses it
//
// Two functions add a certificate of their own to a configuration, which crypto/tls
// then serves, without a staple, to clients that name no server, and to all if the
// configuration has no other. Give [net/http.Server.ListenAndServeTLS] and ServeTLS
// empty file names, and the names to [Stapler.AddFiles], which follows the files when
// they are renewed:
//
//	_, err := stapler.AddFiles("cert.pem", "key.pem")
//	...
//	server.TLSConfig = stapler.TLSConfig(nil)
//	err = server.ListenAndServeTLS("", "")
//
// And start a test server on a tls.NewListener of your own rather than with
// [net/http/httptest.Server.StartTLS].
//
// TLS itself sets limits, too. Only the leaf of a chain is stapled. A resumed
// session carries no staple. Clients can staple since TLS 1.3.
//
// # Must-Staple
//
// A certificate with the TLS feature extension of RFC 7633 tells clients to refuse
// it without a staple. Such a certificate should never be served without one: a
// wrapped configuration lets its handshakes wait for the first response, for five
// seconds at most. Before it listens, a server can make sure with [Stapler.Wait] or
// [Certificate.Wait], and a Cache takes it through restarts while the responder is
// down. With [Stapler.RequireStaple], a handshake that would lack the staple
// is refused by the server rather than the client.
//
// # Issuers
//
// The responder is asked about a certificate in terms of its issuer's certificate.
// That is looked for in the chain, in any order, then in [Stapler.Issuers], and then
// at the URL that the certificate gives for it; whichever has the key that verifies
// the leaf's signature is the issuer's. If there is none, [Certificate.Wait] returns
// [ErrNoIssuer], and handshakes go without a staple.
//
// # Cache
//
// Without a [Cache], a restarted server staples nothing until the responder has
// answered, and nothing at all if that is down. [DirCache] is a directory, which
// several processes can share. Any cache made for
// golang.org/x/crypto/acme/autocert works as well. What is cached is a public
// document; it is not trusted, so that write access to the cache gives no way to
// staple anything false.
//
// # Peers
//
// [Checker] refuses peers whose certificates are revoked: clients, which staple nothing
// as a rule, and servers. It asks about whoever comes without a staple:
//
//	checker := staple.Checker{Stapler: &stapler}
//	config.VerifyConnection = checker.VerifyConnection
//
// [ResponseVerifier.VerifyConnection], in the same place, looks at what is stapled and
// asks nobody. It refuses a revoked certificate, and a Must-Staple one without a staple;
// whoever else staples nothing passes.
//
// # Tests
//
// The package stapletest has a certificate authority and an OCSP responder to test
// against, without a network.
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

// unsettled returns what has not had its first round.
func (g *engine) unsettled() []*entry {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wrapped.collect()
	var all []*entry
	for c := g.first; c != nil && !g.closed; c = c.next {
		if !c.entry().settled && c.entry().handles[0] == c {
			all = append(all, c.entry())
		}
	}
	return all
}

// lacking returns an error that names the Must-Staple certificates that have no staple, some of
// them if they are many, and nil if there are none.
func (g *engine) lacking() error {
	const named = 10
	g.mu.Lock()
	defer g.mu.Unlock()
	var n int
	var why []error
	counted := make(map[*entry]bool)
	for c := g.first; c != nil; c = c.next {
		e := c.entry()
		if _, stapled := c.current(); stapled || !e.mustStaple || c.hidden || counted[e] {
			continue
		}
		counted[e] = true
		if n++; n > named {
			continue
		}
		err := e.err
		switch {
		case e.known.Revoked():
			err = ErrRevoked
		case err == nil && g.closed:
			err = ErrClosed
		case err == nil:
			err = errOver
		}
		why = append(why, fmt.Errorf("%s: %w", name.Of(e.leaf), err))
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("staple: %d Must-Staple certificates have no staple, such as %w", n, errors.Join(why...))
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
