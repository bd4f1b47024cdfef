package staple

import (
	"bytes"
	"container/list"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"sync"
	"time"

	"github.com/go-staple/staple/internal/muststaple"
	"github.com/go-staple/staple/internal/ocspder"
	"github.com/go-staple/staple/internal/wall"
)

const (
	maxSeen       = 1 << 17        // certificates that callbacks returned and that are remembered
	maxNewSeen    = 100            // taken in a second
	forgetSeen    = 24 * time.Hour // without a handshake
	mustStapleFor = 5 * time.Second
	maxWaiting    = 256 // handshakes that wait for one certificate
)

// An identity tells one array of DER from another without reading it. Whoever
// keeps one keeps the array alive too, so that its address is not used again.
type identity struct {
	start *byte
	n     int
}

func identityOf(der []byte) identity {
	if len(der) == 0 {
		return identity{}
	}
	return identity{&der[0], len(der)}
}

func sameBytes(a, b []byte) bool {
	return identityOf(a) == identityOf(b) || bytes.Equal(a, b)
}

// An owner is a wrapped configuration, as far as the engine remembers it: the
// configuration itself must stay collectable.
type owner struct{ _ byte }

// A sighting is a certificate that a callback returned in a handshake.
type sighting struct {
	handle *Certificate
	key    [sha256.Size]byte
	leaf   []byte // the DER last seen, whose identity leads here
	last   time.Time
	until  time.Time // how long handshakes wait for the first round of a Must-Staple certificate
	owners []*owner

	carried []byte // the staple that came with the certificate last, and has been dealt with
}

// A callbackTable remembers the certificates that callbacks return, within bounds
// that a client who makes up names cannot move.
type callbackTable struct {
	mu     sync.Mutex
	recent list.List // of *sighting, the most recent first
	byDER  map[identity]*list.Element
	byHash map[[sha256.Size]byte]*list.Element
	taken  [maxNewSeen]time.Time // when the last new ones were, in a ring
	next   int                   // the oldest of these
}

func (t *callbackTable) init() {
	t.byDER = make(map[identity]*list.Element)
	t.byHash = make(map[[sha256.Size]byte]*list.Element)
}

// recognize returns what is known of a certificate that o's callback returned, and
// makes it known if it is new and there is room. It returns nil if there is not.
func (g *engine) recognize(cert *tls.Certificate, o *owner) *sighting {
	t := &g.seen
	now := time.Now()
	der := cert.Certificate[0]
	t.mu.Lock()
	if el := t.byDER[identityOf(der)]; el != nil {
		defer t.mu.Unlock()
		return t.touch(el, o, now)
	}
	t.mu.Unlock()

	key := sha256.Sum256(der)
	t.mu.Lock()
	if el := t.byHash[key]; el != nil {
		s := el.Value.(*sighting)
		if len(cert.Certificate) <= len(s.handle.chain()) || s.handle.entry.issuerKnown.Load() {
			defer t.mu.Unlock()
			delete(t.byDER, identityOf(s.leaf))
			s.leaf = der
			t.byDER[identityOf(der)] = el
			return t.touch(el, o, now)
		}
		// Its chain may have the issuer that was missing: it counts as new.
		t.remove(el)
		defer g.remove(s.handle)
	}
	if last := t.taken[t.next]; !last.IsZero() && now.Sub(last) < time.Second {
		t.mu.Unlock()
		return nil
	}
	t.taken[t.next] = now
	t.next = (t.next + 1) % len(t.taken)
	t.mu.Unlock()

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
		c.entry.adoptCarried(c.entry.localIssuer())
	}
	g.launch(c)
	s := &sighting{handle: c, key: key, leaf: der, last: now, until: now.Add(mustStapleFor), carried: cert.OCSPStaple}

	t.mu.Lock()
	el := t.byHash[key]
	if el != nil { // another handshake was faster
		defer g.remove(c)
	} else {
		el = t.recent.PushFront(s)
		t.byHash[key] = el
		t.byDER[identityOf(der)] = el
	}
	s = t.touch(el, o, now)
	var old *sighting
	if t.recent.Len() > maxSeen {
		old = t.remove(t.recent.Back())
	}
	t.mu.Unlock()
	if old != nil {
		g.remove(old.handle)
	}
	return s
}

// touch notes that el was seen now, by o.
func (t *callbackTable) touch(el *list.Element, o *owner, now time.Time) *sighting {
	s := el.Value.(*sighting)
	s.last = now
	t.recent.MoveToFront(el)
	if !slices.Contains(s.owners, o) {
		s.owners = append(s.owners, o)
	}
	return s
}

func (t *callbackTable) remove(el *list.Element) *sighting {
	s := t.recent.Remove(el).(*sighting)
	delete(t.byHash, s.key)
	delete(t.byDER, identityOf(s.leaf))
	return s
}

// removeHandle forgets the sighting whose handle is c, if it is still there.
func (t *callbackTable) removeHandle(c *Certificate) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if el := t.byHash[c.entry.key]; el != nil && el.Value.(*sighting).handle == c {
		t.remove(el)
	}
}

func (g *engine) remove(c *Certificate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.drop(c)
}

// forget drops the certificates that no callback has returned for a day, with
// engine.mu held.
func (g *engine) forget() {
	for _, s := range g.seen.removeIf(func(s *sighting) bool { return time.Since(s.last) >= forgetSeen }, true) {
		g.drop(s.handle)
	}
}

// removeIf removes the sightings that meet a condition, the least recent first, up
// to the first that does not if the condition goes with age.
func (t *callbackTable) removeIf(cond func(*sighting) bool, byAge bool) (removed []*sighting) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var prev *list.Element
	for el := t.recent.Back(); el != nil; el = prev {
		prev = el.Prev()
		if cond(el.Value.(*sighting)) {
			removed = append(removed, t.remove(el))
		} else if byAge {
			break
		}
	}
	return removed
}

// disown drops what only the callbacks of owners have returned, with engine.mu held.
func (g *engine) disown(owners []*owner) {
	gone := make(map[*owner]bool, len(owners))
	for _, o := range owners {
		gone[o] = true
	}
	for _, s := range g.seen.removeIf(func(s *sighting) bool {
		s.owners = slices.DeleteFunc(s.owners, func(o *owner) bool { return gone[o] })
		return len(s.owners) == 0
	}, false) {
		g.drop(s.handle)
	}
}

// A releaseList holds the owners whose configurations became unreachable. It is
// filled by the runtime's cleanups, which must not touch channels or timers, and
// emptied by the scheduler.
type releaseList struct {
	mu     sync.Mutex
	owners []*owner
}

func (l *releaseList) add(o *owner) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.owners = append(l.owners, o)
}

// collect drops what was released, with engine.mu held.
func (g *engine) collect() {
	l := &g.released
	l.mu.Lock()
	owners := l.owners
	l.owners = nil
	l.mu.Unlock()
	if len(owners) == 0 {
		return
	}
	for _, o := range owners {
		for _, c := range g.registered[o] {
			g.drop(c)
		}
		delete(g.registered, o)
	}
	g.disown(owners)
}

// serveReturned gives a handshake what a callback of o returned, with the staple
// that is held for it.
func (g *engine) serveReturned(ctx context.Context, cert *tls.Certificate, o *owner, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if cert == nil || len(cert.Certificate) == 0 || len(cert.Certificate[0]) == 0 {
		return cert, nil
	}
	s := g.recognize(cert, o)
	if s == nil {
		return g.serveUnknown(cert, hello)
	}
	c := s.handle
	if current, stapled := c.current(); stapled && identityOf(cert.OCSPStaple) == identityOf(current.OCSPStaple) {
		return cert, nil
	} else if !stapled && g.isPlain(c.entry, cert) {
		return cert, nil // from another wrapper or handle of ours, which has waited, counted and decided
	}
	g.heed(s, cert)
	served, stapled, err := c.entry.serve(ctx, c, hello, s.until, wall.Micro())
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
	return slices.ContainsFunc(e.handles, func(c *Certificate) bool { return cert == c.shown.Load() })
}

// heed deals with a staple that came with a certificate which is known already.
func (g *engine) heed(s *sighting, cert *tls.Certificate) {
	if len(cert.OCSPStaple) == 0 {
		return
	}
	t := &g.seen
	t.mu.Lock()
	if sameBytes(cert.OCSPStaple, s.carried) {
		t.mu.Unlock()
		return
	}
	s.carried = cert.OCSPStaple
	t.mu.Unlock()
	c := s.handle
	e := c.entry
	issuer := e.localIssuer()
	if issuer == nil {
		g.mu.Lock()
		if end := carriedEnd(cert.OCSPStaple, e.leaf); e.held == nil && !end.IsZero() {
			c.setStaple(cert.OCSPStaple, end)
			g.carried[e] = [][]byte{cert.OCSPStaple}
		}
		g.mu.Unlock()
		return
	}
	if r, err := e.verify(issuer, cert.OCSPStaple); err == nil {
		g.mu.Lock()
		e.adopt(r, false)
		g.mu.Unlock()
	}
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
