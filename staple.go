// Package staple keeps the OCSP responses of TLS certificates current, so that every handshake of a Go TLS server,
// client or proxy carries a verified one: OCSP stapling, RFC 6066, section 8, and RFC 8446, section 4.4.2.1.
//
// A server needs three lines more than before:
//
//	var stapler staple.Stapler
//	defer stapler.Close()
//	config = stapler.TLSConfig(config)
//
// What to use when:
//
//   - for certificates in files that somebody renews, [Stapler.AddFiles]
//   - for a tls.Config, wherever its certificates come from, [Stapler.TLSConfig]
//   - for one certificate, and to see its [Status], [Stapler.Add]
//   - to serve nobody before it is stapled, [Stapler.Wait]; after a restart, a [Cache]
//   - to refuse peers that are revoked, a [Checker];
//     [ResponseVerifier.VerifyConnection] passes whoever staples nothing
//   - to test any of this without a network, the package stapletest
//
// # How it works
//
// A [Fetcher] asks the responder that the certificate names, a [Verifier] decides whether to believe the answer, and
// a [Cache], if there is one, keeps it for the next start. Nothing is stapled or stored that the Verifier has not
// accepted, and what comes out of the cache is verified again.
//
// This goes on in the background: a handshake takes the staple at hand, and waits for neither network nor disk. A
// response is replaced when half of its validity has passed. If that fails, it is stapled until its end, while the
// responder is asked again, with growing pauses; after its end handshakes go without. A certificate that names no
// responder, as those of many public authorities, is served as it is.
//
// A revocation is noticed when the responder is asked the next time. From then on nothing is stapled, unless
// [Stapler.StapleRevoked] is set. What is on hold may be good again at once; any other revocation outlasts its
// response, and restarts, until two different good ones, half an hour apart, undo it.
//
// # What bypasses it
//
// These add a certificate of their own, which is served without a staple: [net/http/httptest.Server.StartTLS], and with file
// names [net/http.Server.ServeTLS] and ListenAndServeTLS. Give those two empty names, and the names to AddFiles:
//
//	_, err := stapler.AddFiles("cert.pem", "key.pem")
//	...
//	server.TLSConfig = stapler.TLSConfig(nil)
//	err = server.ListenAndServeTLS("", "")
//
// # Must-Staple
//
// A certificate with the TLS feature extension of RFC 7633 tells clients to refuse it without a staple, and some do. So handshakes
// of a wrapped configuration wait for its first response, for five seconds at most. A server had better wait itself before
// it listens, and stop if [Stapler.Wait] returns an error, which says which of them lack a staple, and why.
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
	ErrNoIssuer    = errors.New("staple: issuer not found")                                       // neither in the chain, nor in [Stapler.Issuers], nor to be fetched
	ErrNoResponder = errors.New("staple: no OCSP responder to ask")                               // the certificate names none, has expired, or is self-signed
	ErrRevoked     = errors.New("staple: certificate is revoked")                                 // a verified response says so
	ErrClosed      = errors.New("staple: closed")                                                 // the Stapler is, or the certificate was removed
	ErrUnanswered  = errors.New("staple: no valid OCSP response about the certificate of a peer") // of a [Checker]
	ErrCacheMiss   = errors.New("staple: cache miss")                                             // of a [Cache] that holds nothing for a key
)

// A Stapler keeps the OCSP responses of certificates current. The zero value is ready for use. It is safe for
// concurrent use, and must not be copied. Its fields are read when it is first used, and must not be changed after
// that.
type Stapler struct {
	// Fetcher obtains responses; nil: an [HTTPFetcher] with no options. An [IssuerFetcher] is asked for issuers, too,
	// that are neither in the chain nor in Issuers.
	Fetcher Fetcher

	Verifier Verifier // decides which responses may be stapled; nil: a [ResponseVerifier] with no options

	// Cache keeps responses beyond the process; nil: none, and after a restart nothing is stapled until the responder
	// has answered. If it is a [Locker], of the processes that share it one asks.
	Cache Cache

	// Issuers are authorities' certificates. The issuer of a leaf is the one whose key verifies its signature: of
	// those in the chain, in any order, of these, or of what is found at the URL that the leaf gives for it.
	Issuers []*x509.Certificate

	// Logger receives what an operator should know at Info and above, none of which while nothing fails, and the rest
	// at Debug; nil: slog.Default(). docs/operations.md has all lines. Nothing but Close waits for a handler that
	// blocks.
	Logger *slog.Logger

	// OnEvent, if not nil, is called for each [Event], one at a time, in order, from a goroutine of its own. It may
	// call every method but Close. Only Close waits for it, and later events: 4,096, or twice as many as there are
	// certificates. Of more some are left out, the least important first, and the log tells how many.
	OnEvent func(Event)

	RequireStaple bool // refuses handshakes of servers whose Must-Staple certificate lacks its staple, if the client asked for one
	StapleRevoked bool // staples a "revoked" response, so that clients learn of it; otherwise nothing is, then
	Concurrency   int  // of fetches, 16 if not positive; one host gets half at most while others wait

	once   sync.Once
	engine *engine
}

func (s *Stapler) start() *engine {
	s.once.Do(func() { s.engine = newEngine(s) })
	return s.engine
}

// Add puts a certificate chain, leaf first, under the Stapler's care and returns a handle to it. The first response
// is looked for in cert.OCSPStaple, in the cache, for a second at most, and then, in the background, fetched: see
// [Certificate.Wait]. The same leaf may be added again: it is fetched once. The private key may be nil if the
// certificate is not to be served. Add fails if the chain is empty or its leaf does not parse, and with [ErrClosed]
// after Close. A certificate without a responder or without its issuer is no failure: it is served as it is, and Wait
// tells why.
func (s *Stapler) Add(cert tls.Certificate) (*Certificate, error) {
	return s.start().add(cert, false)
}

// Wait waits until every certificate that is known now has had its first round, in whatever way that ended: stapled,
// failed, or nobody to ask. It returns nil then, even if something is not stapled, unless that is Must-Staple: the
// error names such certificates, ten at most, and says why. If ctx ends first, its error is returned, joined with
// what is missing.
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

// Certificates returns the handles of all certificates under the Stapler's care, in the order in which they came;
// what succeeds another in the same files has its place, once it serves.
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

// Close cancels what is being fetched, stores what was accepted, for five seconds at most, and returns nil when all
// goroutines have ended. Handles and wrapped configurations stay usable and serve the staples they hold until these
// end.
func (s *Stapler) Close() error {
	s.start().close()
	return nil
}

// A Certificate is a handle to a certificate under the care of a [Stapler]. Its methods are safe for concurrent use.
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

// TLS returns the certificate as a handshake would be given it now: stapled while a valid response is held. It is
// shared, must not be changed, and does not follow later responses: give crypto/tls the method GetCertificate.
func (c *Certificate) TLS() *tls.Certificate {
	cert, _ := c.current()
	return cert
}

// GetCertificate is for tls.Config.GetCertificate. It returns what TLS does, whatever hello says, which may be nil,
// and fails only where [Stapler.RequireStaple] says so.
func (c *Certificate) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	cert, stapled := c.current()
	if !stapled {
		if err := c.entry().unstapledHandshake(hello); err != nil {
			return nil, err
		}
	}
	return cert, nil
}

// GetClientCertificate is for tls.Config.GetClientCertificate. It returns what TLS does, whatever info says, which
// may be nil.
func (c *Certificate) GetClientCertificate(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	cert, stapled := c.current()
	if !stapled {
		c.entry().countUnstapled()
	}
	return cert, nil
}

// Wait returns nil once handshakes are stapled, [ErrNoResponder], [ErrRevoked] or [ErrClosed] at once, and
// [ErrNoIssuer] where nobody can fetch one. Other failures are retried; if ctx ends first, its error is returned,
// joined with that of the last round.
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

// Refresh fetches a response now, or joins the fetch in flight, and returns what came of it. That there is nothing
// newer is no error, nor is a revocation. If ctx ends first, its error is returned; the fetch goes on.
func (c *Certificate) Refresh(ctx context.Context) error {
	return c.entry().refresh(ctx, c)
}

// Response returns the newest verified response in DER, trimmed as [ResponseVerifier] says, and nil if there has been
// none. It may have ended, or say "revoked", so that handshakes do not carry it. It must not be changed.
func (c *Certificate) Response() []byte {
	g := c.entry().engine
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := c.entry().known.Held(); r != nil {
		return r.DER
	}
	return nil
}

// Status returns how the certificate stands. It is cheap.
func (c *Certificate) Status() Status {
	g := c.entry().engine
	g.mu.Lock()
	defer g.mu.Unlock()
	return c.status()
}

// Remove ends the care for it; it serves its staple until that ends. Another handle to the same leaf keeps the care
// up.
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
