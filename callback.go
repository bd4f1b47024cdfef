package staple

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"slices"
	"time"

	"github.com/go-staple/staple/internal/muststaple"
	"github.com/go-staple/staple/internal/ocspder"
	"github.com/go-staple/staple/internal/seen"
	"github.com/go-staple/staple/internal/wall"
)

// A sighting is a certificate that a callback returned in a handshake.
type sighting = seen.Sighting[Certificate]

// recognize returns what is known of a certificate that o's callback returned, and
// makes it known if it is new and there is room. It returns nil if there is not.
func (g *engine) recognize(cert *tls.Certificate, o *seen.Owner) *sighting {
	now := time.Now()
	der := cert.Certificate[0]
	if s, copied := g.seen.Find(der, o, now); s != nil {
		c := s.Handle
		e := c.entry()
		if !copied || len(cert.Certificate) <= len(c.chain()) || e.issuerKnown.Load() {
			return s
		}
		// Its chain may have the issuer that was missing: it counts as new.
		g.seen.Remove(e.key, c)
		defer g.remove(c)
	}
	if !g.seen.Admit(now) {
		return nil
	}
	leaf, err := parseLeaf(cert)
	if err != nil {
		return nil
	}
	c := newCertificate(cert, leaf)
	c.returned = true
	if !g.register(c, leaf, cert.OCSPStaple, false) {
		return nil
	}
	if len(cert.OCSPStaple) > 0 {
		judged := false
		defer func() { // also if the Verifier panics, or ends the goroutine: then it comes as new the next time
			if !judged {
				g.remove(c)
			}
		}()
		c.entry().adoptCarried(c.entry().localIssuer())
		judged = true
	}
	g.launch(c)
	s, out := g.seen.Put(der, c, o, now)
	s.Carries(cert.OCSPStaple) // which has been dealt with
	if out != nil {
		g.remove(out)
	}
	return s
}

func (g *engine) remove(c *Certificate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.drop(c)
	if c == c.entry().peer && !c.entry().known.Revoked() {
		g.peers.drop(c)
	}
}

// forget drops the certificates that no callback has returned for a day, with
// engine.mu held.
func (g *engine) forget() {
	for _, c := range g.seen.Forget(time.Now()) {
		g.drop(c)
	}
	for _, c := range g.peers.table.Forget(time.Now()) {
		g.peers.drop(c)
	}
}

// collect drops what only configurations have that became unreachable, with engine.mu held.
func (g *engine) collect() {
	owners := g.released.Take()
	if len(owners) == 0 {
		return
	}
	for _, o := range owners {
		for _, c := range g.registered[o] {
			g.drop(c)
		}
		delete(g.registered, o)
	}
	for _, c := range g.seen.Disown(owners) {
		g.drop(c)
	}
}

// serveReturned gives a handshake what a callback of o returned, with the staple
// that is held for it.
func (g *engine) serveReturned(ctx context.Context, cert *tls.Certificate, o *seen.Owner, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if cert == nil || len(cert.Certificate) == 0 || len(cert.Certificate[0]) == 0 {
		return cert, nil
	}
	s := g.recognize(cert, o)
	if s == nil {
		return g.serveUnknown(cert, hello)
	}
	c := s.Handle
	if current, stapled := c.current(); stapled && bytes.Equal(cert.OCSPStaple, current.OCSPStaple) {
		return cert, nil
	} else if !stapled && g.isPlain(c.entry(), cert) {
		return cert, nil // from another wrapper or handle of ours, which has waited, counted and decided
	}
	g.heed(s, cert)
	served, stapled, err := c.entry().serve(ctx, &c.slot, hello, s.First.Add(mustStapleFor), wall.Micro())
	switch {
	case err != nil:
		return nil, err
	case !stapled && len(cert.OCSPStaple) == 0:
		return cert, nil
	}
	clone := *cert
	clone.OCSPStaple = served.OCSPStaple
	return &clone, nil
}

// isPlain reports whether cert is what a handle of e returns without a staple.
func (g *engine) isPlain(e *entry, cert *tls.Certificate) bool {
	if !e.plain.Load() {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.ContainsFunc(e.handles, func(c *Certificate) bool { return cert == c.slot.Shown() })
}

// heed deals with a staple that came with a certificate which is known already.
func (g *engine) heed(s *sighting, cert *tls.Certificate) {
	if !s.Carries(cert.OCSPStaple) {
		return
	}
	c := s.Handle
	e := c.entry()
	issuer := e.localIssuer()
	if issuer == nil {
		g.mu.Lock()
		g.carry(c, cert.OCSPStaple)
		g.mu.Unlock()
		e.adoptCarried(nil)
		return
	}
	if r, err := e.verify(issuer, cert.OCSPStaple); err == nil {
		g.mu.Lock()
		e.adopt(r, false)
		g.mu.Unlock()
	}
}

// maxCarried bounds the staples that are kept for one certificate while nobody can verify them.
const maxCarried = 4

// Carried is the staples that came with the handles to one leaf and are still to be verified.
type carried struct {
	staples [][]byte       // the last that came
	fresh   []*Certificate // the handles that came since some were shown
	shown   time.Time      // until then the others show one
}

// carry keeps a staple that came with c, with mu held.
func (g *engine) carry(c *Certificate, staple []byte) {
	e := c.entry()
	k := g.carried[e]
	if e.gone {
		return
	}
	if k == nil {
		if len(staple) == 0 {
			return
		}
		k = new(carried)
		g.carried[e] = k
	}
	k.fresh = append(k.fresh, c)
	if len(staple) > 0 {
		k.staples = append(k.staples, bytes.Clone(staple))
		k.staples = k.staples[max(len(k.staples)-maxCarried, 0):]
	}
}

// adoptCarried judges the staples that came with the handles. Where the issuer
// is not known, issuer is nil, and the one that ends last is shown as it is, until its end.
func (e *entry) adoptCarried(issuer *x509.Certificate) {
	g := e.engine
	g.mu.Lock()
	k := g.carried[e]
	switch {
	case k == nil:
		g.mu.Unlock()
		return
	case issuer == nil:
		e.showCarried(k)
		g.mu.Unlock()
		return
	}
	delete(g.carried, e)
	g.mu.Unlock()
	var best *response
	var refused error
	defer func() { // also if the Verifier ends the goroutine
		g.mu.Lock()
		defer g.mu.Unlock()
		if best != nil {
			e.adopt(best, false)
		}
		if e.known.Held() == nil {
			e.unstaple()
		}
		if refused != nil && !g.closed {
			g.notices.log(slog.LevelWarn, "the OCSP staple that came with a certificate was refused", e, slog.Any("error", refused))
		}
	}()
	for _, der := range k.staples {
		if r, err := e.verify(issuer, der); err != nil {
			refused = err
		} else if best == nil || r.Newer(best) {
			best = r
		}
	}
}

// showCarried makes handshakes carry what nobody can verify, with engine.mu held.
func (e *entry) showCarried(k *carried) {
	var last []byte
	var end time.Time
	for _, der := range k.staples {
		if of := carriedEnd(der, e.leaf); of.After(end) {
			last, end = der, of
		}
	}
	handles := k.fresh
	k.fresh = nil
	now := wall.Now()
	if e.known.Held() != nil || !now.Before(end) {
		return
	}
	if !now.Before(k.shown) {
		handles, k.shown = e.handles, end
	}
	for _, c := range handles {
		if !c.removed {
			c.setStaple(last, end)
		}
	}
	e.changed.broadcast()
}

// serveUnknown gives a handshake a certificate that is not remembered as it came,
// but for a staple that is past its end.
func (g *engine) serveUnknown(cert *tls.Certificate, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if len(cert.OCSPStaple) == 0 && !g.requireStaple {
		return cert, nil
	}
	leaf, err := parseLeaf(cert)
	switch {
	case err != nil, wall.Now().Before(carriedEnd(cert.OCSPStaple, leaf)):
		return cert, nil
	case hello != nil && g.requireStaple && muststaple.Is(leaf) && wantsStaple(hello):
		return nil, errNoStaple(leaf)
	}
	clone := *cert
	clone.OCSPStaple = nil
	return &clone, nil
}

// carriedEnd returns the end of a response that nobody has verified, by its own
// account and leaf's; zero if it is no response about leaf.
func carriedEnd(der []byte, leaf *x509.Certificate) time.Time {
	if len(der) == 0 {
		return time.Time{}
	}
	end := ocspder.ClaimedEnd(der, leaf, defaultMaxAge)
	if leaf.NotAfter.Before(end) {
		end = leaf.NotAfter
	}
	return end
}
