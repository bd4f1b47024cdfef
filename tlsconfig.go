package staple

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"
	"weak"

	"github.com/go-staple/staple/internal/choose"
	"github.com/go-staple/staple/internal/muststaple"
	"github.com/go-staple/staple/internal/seen"
	"github.com/go-staple/staple/internal/wall"
)

const (
	mustStapleFor = 5 * time.Second
	maxWaiting    = 256 // handshakes that wait for one certificate
)

// TLSConfig returns a clone of base that staples, and changes nothing else: for every ClientHello, crypto/tls would
// choose the same certificate from base, of Certificates, GetCertificate, GetConfigForClient and
// GetClientCertificate. If base is nil, or has none of the first three, servers choose among what [Stapler.Add] and
// [Stapler.AddFiles] added, in that order, by the rule of crypto/tls. Certificates is nil in the result: nothing may
// be added there, and MinVersion and MaxVersion must not be changed.
//
// The certificates of base are looked up in the cache before TLSConfig returns, for a second at most. Those that
// callbacks return are registered when they are first seen, by their leaf: 100 new ones a second, 131,072 in all,
// until 24 hours have passed without a handshake. GetConfigForClient must not change the elements of a Certificates
// slice that it has returned. A handshake with a Must-Staple certificate waits for its first response, until five
// seconds after it was first seen; no other one does.
//
// What was registered is released some time after the result and its clones have become unreachable. After Close,
// TLSConfig returns a plain clone.
func (s *Stapler) TLSConfig(base *tls.Config) *tls.Config {
	g := s.start()
	config := base.Clone()
	if config == nil {
		config = new(tls.Config)
	}
	g.mu.Lock()
	g.wrapped.collect()
	closed := g.closed
	g.mu.Unlock()
	if closed {
		return config
	}
	w := &wrapper{engine: g, owner: new(seen.Owner), base: newChooser(config)}
	w.register(config.Certificates)
	if len(config.Certificates) == 0 && config.GetCertificate == nil && config.GetConfigForClient == nil {
		w.base.index = g.addedIndex()
	}
	w.until = time.Now().Add(mustStapleFor)
	w.install(config, w.base)
	if config.GetClientCertificate != nil || len(w.base.slots) > 0 {
		config.GetClientCertificate = w.getClientCertificate
	}
	if config.GetConfigForClient != nil {
		inner := config.GetConfigForClient
		config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := inner(hello)
			if c == nil || err != nil {
				return c, err
			}
			c = c.Clone() // not kept: its session ticket keys may change
			ch := newChooser(c)
			ch.certs = c.Certificates
			w.install(c, ch)
			return c, nil
		}
	}
	// What a cleanup leads to is kept until it runs, and the engine may lead to the
	// result, by way of a callback of the Stapler's.
	runtime.AddCleanup(w, release, released{weak.Make(g), w.owner})
	return config
}

type released struct {
	engine weak.Pointer[engine]
	owner  *seen.Owner
}

func release(r released) {
	if g := r.engine.Value(); g != nil {
		g.wrapped.released.Add(r.owner)
	}
}

// A wrapper is what the callbacks of one configuration that TLSConfig returned
// have in common. It becomes unreachable with them; nothing that the engine keeps
// may lead to it.
type wrapper struct {
	engine *engine
	owner  *seen.Owner
	base   *chooser
	until  time.Time // how long handshakes wait for Must-Staple certificates of base
	empty  sync.Once // a handshake came while nothing was added
}

// A chooser is what a configuration says about certificates.
type chooser struct {
	slots                []*slot              // of Certificates of the base
	certs                []tls.Certificate    // Certificates of a configuration that comes anew with each connection
	index                *choose.Index[entry] // of slots, or of what Add made; nil: there is no choice
	takesTLS13           bool
	nameToCertificate    map[string]*tls.Certificate
	pointed              map[*tls.Certificate]*slot // slots, by what nameToCertificate may point to
	getCertificate       func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	getClientCertificate func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
}

func newChooser(config *tls.Config) *chooser {
	return &chooser{
		takesTLS13:           choose.TakesTLS13(config),
		nameToCertificate:    config.NameToCertificate, //lint:ignore SA1019 whoever still sets it means it
		getCertificate:       config.GetCertificate,
		getClientCertificate: config.GetClientCertificate,
	}
}

// register puts the certificates of the base under the engine's care.
func (w *wrapper) register(certs []tls.Certificate) {
	if len(certs) == 0 {
		return
	}
	var known []*Certificate // those for which that could be done
	g, ch := w.engine, w.base
	ch.slots = make([]*slot, len(certs))
	if ch.nameToCertificate != nil {
		ch.pointed = make(map[*tls.Certificate]*slot, len(certs))
	}
	index := choose.NewFixedIndex[entry]()
	for i := range certs {
		leaf, err := parseLeaf(&certs[i])
		c := newCertificate(&certs[i], leaf)
		switch {
		case err != nil:
			g.mu.Lock()
			g.notices.say(slog.LevelWarn, "a certificate of a tls.Config is not stapled", slog.Int("index", i), slog.Any("error", err))
			g.mu.Unlock()
		case g.register(c, leaf, certs[i].OCSPStaple, false):
			known = append(known, c)
		}
		c.slot.Order, c.slot.Kind = uint64(i), g.kinds.Of(c.slot.Shown())
		index.Add(&c.slot)
		ch.slots[i] = &c.slot
		if ch.pointed != nil {
			ch.pointed[&certs[i]] = &c.slot
		}
	}
	if len(certs) > 1 {
		ch.index = index
	}
	g.mu.Lock()
	g.wrapped.registered[w.owner] = known
	g.mu.Unlock()
	g.preload(known...)
}

// install makes config, whose certificates ch chooses among, staple.
func (w *wrapper) install(config *tls.Config, ch *chooser) {
	config.Certificates = nil
	config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return w.getCertificate(ch, hello)
	}
}

// getCertificate does what crypto/tls does with a Config in Config.getCertificate.
func (w *wrapper) getCertificate(ch *chooser, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if hello == nil {
		hello = new(tls.ClientHelloInfo) // made by hand
	}
	n := len(ch.slots) + len(ch.certs)
	if ch.getCertificate != nil && (n == 0 || hello.ServerName != "") {
		cert, err := ch.getCertificate(hello)
		if err != nil {
			return cert, err
		}
		if cert != nil {
			return w.engine.wrapped.serve(hello.Context(), cert, w.owner, hello)
		}
	}
	now := wall.Micro() // a look at the clock waits for all reads of memory before it
	if n > 1 && ch.nameToCertificate != nil {
		if cert := choose.ByName(ch.nameToCertificate, hello.ServerName); cert != nil {
			if s := ch.pointed[cert]; s != nil {
				return w.serve(s, hello, now)
			}
			return w.engine.wrapped.serve(hello.Context(), cert, w.owner, hello)
		}
	}
	switch {
	case ch.index != nil:
		s, asked := ch.index.Choose(hello, ch.takesTLS13)
		if asked {
			now = wall.Micro()
		}
		if s == nil {
			w.empty.Do(w.sayEmpty)
			return nil, nil
		}
		return w.serve(s, hello, now)
	case len(ch.slots) > 0:
		return w.serve(ch.slots[0], hello, now)
	case len(ch.certs) > 0:
		cert := w.engine.wrapped.arrays.Choose(ch.certs, hello, ch.takesTLS13)
		return w.engine.wrapped.serve(hello.Context(), cert, w.owner, hello)
	}
	return nil, nil // which crypto/tls turns into its own error
}

// sayEmpty warns that there is no certificate at all. Whoever gave ListenAndServeTLS the names of files notices here that they
// bypass the Stapler, if a client names the server: crypto/tls asks for no other, and asks the Stapler first for these
// alone. (To see the rest would take a GetConfigForClient or VerifyConnection, which cost each handshake memory; and
// neither knows which certificate was served.)
func (w *wrapper) sayEmpty() {
	g := w.engine
	g.mu.Lock()
	defer g.mu.Unlock()
	g.notices.say(slog.LevelWarn, "a client has come, and there is no certificate: none was added, by Add or AddFiles, nor has the tls.Config any; "+
		"one that the server got otherwise, such as by file names given to ListenAndServeTLS, is not stapled")
}

// serve serves a certificate of the base, or one that was added.
func (w *wrapper) serve(s *slot, hello *tls.ClientHelloInfo, now int64) (*tls.Certificate, error) {
	if s.Of == nil { // it does not parse
		return s.Shown(), nil
	}
	cert, _, err := s.Of.serve(hello.Context(), s, hello, w.until, now)
	return cert, err
}

// getClientCertificate does what crypto/tls does with a Config in Conn.getClientCertificate.
func (w *wrapper) getClientCertificate(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	var ctx context.Context
	if info != nil {
		ctx = info.Context()
	}
	if get := w.base.getClientCertificate; get != nil {
		cert, err := get(info)
		if err != nil || cert == nil {
			return cert, err
		}
		return w.engine.wrapped.serve(ctx, cert, w.owner, nil)
	}
	for _, s := range w.base.slots {
		cert := s.Shown()
		if info != nil && info.SupportsCertificate(cert) != nil {
			continue
		}
		if s.Of == nil {
			return cert, nil
		}
		cert, _, err := s.Of.serve(ctx, s, nil, w.until, wall.Micro())
		return cert, err
	}
	return new(tls.Certificate), nil
}

// Wrapped is what the engine has of configurations that TLSConfig returned, and of what their callbacks return.
type wrapped struct {
	engine     *engine
	arrays     choose.Arrays
	seen       seen.Table[Certificate]
	released   seen.Released
	registered map[*seen.Owner][]*Certificate // the handles of Certificates of configurations; engine.mu guards it
}

// A sighting is a certificate that a callback returned in a handshake.
type sighting = seen.Sighting[Certificate]

// recognize returns what is known of a certificate that o's callback returned, and
// makes it known if it is new and there is room. It returns nil if there is not.
func (w *wrapped) recognize(cert *tls.Certificate, o *seen.Owner) *sighting {
	g := w.engine
	now := time.Now()
	der := cert.Certificate[0]
	if s, copied := w.seen.Find(der, o, now); s != nil {
		c := s.Handle
		e := c.entry()
		if !copied || len(cert.Certificate) <= len(c.chain()) || e.issuerKnown.Load() {
			return s
		}
		// Its chain may have the issuer that was missing: it counts as new.
		w.seen.Remove(e.key, c)
		defer g.remove(c)
	}
	if !w.seen.Admit(now) {
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
	s, out := w.seen.Put(der, c, o, now)
	s.Carries(cert.OCSPStaple) // which has been dealt with
	if out != nil {
		g.remove(out)
	}
	return s
}

// forget drops the certificates that no callback has returned for a day, with
// engine.mu held.
func (w *wrapped) forget() {
	for _, c := range w.seen.Forget(time.Now()) {
		w.engine.drop(c)
	}
}

// collect drops what only configurations have that became unreachable, with engine.mu held.
func (w *wrapped) collect() {
	g := w.engine
	owners := w.released.Take()
	if len(owners) == 0 {
		return
	}
	for _, o := range owners {
		for _, c := range w.registered[o] {
			g.drop(c)
		}
		delete(w.registered, o)
	}
	for _, c := range w.seen.Disown(owners) {
		g.drop(c)
	}
}

// serve gives a handshake what a callback of o returned, with the staple
// that is held for it.
func (w *wrapped) serve(ctx context.Context, cert *tls.Certificate, o *seen.Owner, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if cert == nil || len(cert.Certificate) == 0 || len(cert.Certificate[0]) == 0 {
		return cert, nil
	}
	s := w.recognize(cert, o)
	if s == nil {
		return w.serveUnknown(cert, hello)
	}
	c := s.Handle
	if current, stapled := c.current(); stapled && bytes.Equal(cert.OCSPStaple, current.OCSPStaple) {
		return cert, nil
	} else if !stapled && w.isPlain(c.entry(), cert) {
		return cert, nil // from another wrapper or handle of ours, which has waited, counted and decided
	}
	if s.Carries(cert.OCSPStaple) {
		c.entry().heed(c, cert.OCSPStaple)
	}
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
func (w *wrapped) isPlain(e *entry, cert *tls.Certificate) bool {
	if !e.plain.Load() {
		return false
	}
	w.engine.mu.Lock()
	defer w.engine.mu.Unlock()
	return slices.ContainsFunc(e.handles, func(c *Certificate) bool { return cert == c.slot.Shown() })
}

// serveUnknown gives a handshake a certificate that is not remembered as it came,
// but for a staple that is past its end.
func (w *wrapped) serveUnknown(cert *tls.Certificate, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	g := w.engine
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

// serve returns what a handshake is given that a wrapped configuration serves: it
// waits for the first round of a Must-Staple certificate, until then at the latest.
// hello is nil on the client's side, where RequireStaple is not enforced.
func (e *entry) serve(ctx context.Context, s *slot, hello *tls.ClientHelloInfo, until time.Time, now int64) (cert *tls.Certificate, stapled bool, err error) {
	cert, stapled = s.At(now)
	if !stapled && e.mustStaple && e.awaitFirst(ctx, s, until) {
		cert, stapled = s.Current()
	}
	switch {
	case stapled:
	case hello == nil:
		e.countUnstapled()
	default:
		if err := e.unstapledHandshake(hello); err != nil {
			return nil, false, err
		}
	}
	return cert, stapled, nil
}

// awaitFirst waits for the first round of e, unless the cache has a staple before that, and reports whether it did.
// ctx may be nil.
func (e *entry) awaitFirst(ctx context.Context, s *slot, until time.Time) bool {
	seen := time.Duration(e.until-wall.Micro()) * time.Microsecond
	left := max(time.Until(until), min(seen, mustStapleFor))
	if left <= 0 {
		return false
	}
	if e.waiting.Add(1) > maxWaiting {
		e.waiting.Add(-1)
		return false
	}
	defer e.waiting.Add(-1)
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	_ = e.engine.await(ctx, e, func() bool {
		_, stapled := s.Current()
		return stapled || e.engine.ended(e)
	})
	return true
}

const extensionStatusRequest = 5 // RFC 6066, section 8

// wantsStaple reports whether the client asked for a staple, or nobody knows: a
// hello that crypto/tls has read tells its extensions, one made by hand may not.
func wantsStaple(hello *tls.ClientHelloInfo) bool {
	return hello == nil || hello.Extensions == nil && hello.Conn == nil || slices.Contains(hello.Extensions, extensionStatusRequest)
}
