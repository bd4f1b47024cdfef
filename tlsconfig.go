package staple

import (
	"context"
	"crypto/tls"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"time"
)

// TLSConfig returns a clone of base that staples, and changes nothing else: for
// every ClientHello, crypto/tls would choose the same certificate from base. It
// covers base's Certificates, GetCertificate, GetConfigForClient and
// GetClientCertificate. If base is nil, or has none of the first three, servers
// choose among the certificates that were added, in order of [Stapler.Add], by
// the rule of crypto/tls.
//
// Certificates is nil and GetCertificate set in the result, since crypto/tls would
// not call GetCertificate for a client that names no server otherwise. Therefore
// nothing may add certificates to it afterwards: give http.Server's
// ListenAndServeTLS and ServeTLS empty file names, and do not let httptest's
// StartTLS, which adds a certificate of its own, start it. Both would bypass the
// staple.
//
// The certificates of base are looked up in the cache, for a second at most, before
// TLSConfig returns. Those that callbacks return are recognized by their leaf and
// registered when they are first seen: 100 new ones a second at most, 131,072 in
// all; a certificate without a handshake for 24 hours is forgotten.
//
// A handshake with a Must-Staple certificate waits for the first response about it,
// for five seconds at most from when the certificate was first seen. No other
// handshake waits.
//
// What TLSConfig registered is released some time after the result and all its
// clones have become unreachable. After Close, TLSConfig returns a plain clone.
func (s *Stapler) TLSConfig(base *tls.Config) *tls.Config {
	g := s.start()
	config := base.Clone()
	if config == nil {
		config = new(tls.Config)
	}
	if g.isClosed() {
		return config
	}
	w := &wrapper{
		engine: g,
		owner:  new(owner),
		server: newChooser(config),
	}
	w.server.fromAdded = len(config.Certificates) == 0 && config.GetCertificate == nil && config.GetConfigForClient == nil
	w.register(config.Certificates)
	w.until = time.Now().Add(mustStapleFor)
	w.install(config, w.server)
	if config.GetConfigForClient != nil {
		inner := config.GetConfigForClient
		config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := inner(hello)
			if c == nil || err != nil {
				return c, err
			}
			c = c.Clone() // not kept: its session ticket keys may change
			w.install(c, newChooser(c))
			return c, nil
		}
	}
	runtime.AddCleanup(w, func(r release) { g.released.add(r.handles, r.owner) }, release{w.server.handles, w.owner})
	return config
}

type release struct {
	handles []*Certificate
	owner   *owner
}

// A wrapper is what the callbacks of one configuration that TLSConfig returned
// have in common. It becomes unreachable with them; nothing that the engine keeps
// may lead to it.
type wrapper struct {
	engine *engine
	owner  *owner
	server *chooser
	until  time.Time // how long handshakes wait for Must-Staple certificates of base
}

// A chooser is what a configuration says about certificates.
type chooser struct {
	certs                []*tls.Certificate // Certificates
	handles              []*Certificate     // for each of certs; nil where it is not registered
	fromAdded            bool               // there are none, and those added take their place
	nameToCertificate    map[string]*tls.Certificate
	getCertificate       func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	getClientCertificate func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
}

func newChooser(config *tls.Config) *chooser {
	ch := &chooser{
		certs:                make([]*tls.Certificate, len(config.Certificates)),
		nameToCertificate:    config.NameToCertificate, //lint:ignore SA1019 whoever still sets it means it
		getCertificate:       config.GetCertificate,
		getClientCertificate: config.GetClientCertificate,
	}
	for i := range config.Certificates {
		ch.certs[i] = &config.Certificates[i]
	}
	return ch
}

// register puts the certificates of the base under the engine's care.
func (w *wrapper) register(certs []tls.Certificate) {
	g := w.engine
	w.server.handles = make([]*Certificate, len(certs))
	var known []*Certificate
	for i := range certs {
		leaf, err := parseLeaf(&certs[i])
		if err != nil {
			g.logger.LogAttrs(context.Background(), slog.LevelWarn, "staple: a certificate of a tls.Config is not stapled",
				slog.Int("index", i), slog.Any("error", err))
			continue
		}
		c := newCertificate(&certs[i], leaf)
		if g.register(c, certs[i].OCSPStaple, false) {
			w.server.handles[i] = c
			known = append(known, c)
		}
	}
	g.preload(known)
	g.launch(known...)
}

// install makes config, whose certificates ch holds, staple.
func (w *wrapper) install(config *tls.Config, ch *chooser) {
	config.Certificates = nil
	config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return w.getCertificate(ch, hello)
	}
	if ch.getClientCertificate != nil || len(ch.certs) > 0 {
		config.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return w.getClientCertificate(ch, info)
		}
	}
}

// getCertificate does what crypto/tls does with a Config in Config.getCertificate.
func (w *wrapper) getCertificate(ch *chooser, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if hello == nil {
		hello = new(tls.ClientHelloInfo) // made by hand
	}
	if ch.getCertificate != nil && (len(ch.certs) == 0 || hello.ServerName != "") {
		cert, err := ch.getCertificate(hello)
		if err != nil {
			return cert, err
		}
		if cert != nil {
			return w.engine.serveReturned(hello.Context(), cert, w.owner, hello)
		}
	}
	if ch.fromAdded {
		return w.serveAdded(hello)
	}
	if len(ch.certs) == 0 {
		return nil, nil // which crypto/tls turns into its own error
	}
	if len(ch.certs) > 1 && ch.nameToCertificate != nil {
		if cert := byName(ch.nameToCertificate, hello.ServerName); cert != nil {
			if i := slices.Index(ch.certs, cert); i >= 0 {
				return w.serve(hello.Context(), ch, i, hello)
			}
			return w.engine.serveReturned(hello.Context(), cert, w.owner, hello)
		}
	}
	return w.serve(hello.Context(), ch, choose(ch.certs, hello), hello)
}

// byName is the look-up of the deprecated tls.Config.NameToCertificate.
func byName(certs map[string]*tls.Certificate, name string) *tls.Certificate {
	name = strings.ToLower(name)
	if cert, ok := certs[name]; ok {
		return cert
	}
	if name == "" {
		return nil
	}
	if _, parent, ok := strings.Cut(name, "."); ok {
		return certs["*."+parent]
	}
	return certs["*"]
}

// choose returns the index of the first certificate that suits hello, or of the
// first of all.
func choose(certs []*tls.Certificate, hello *tls.ClientHelloInfo) int {
	if len(certs) > 1 {
		for i, cert := range certs {
			if hello.SupportsCertificate(cert) == nil {
				return i
			}
		}
	}
	return 0
}

// serve serves the i-th certificate of a configuration.
func (w *wrapper) serve(ctx context.Context, ch *chooser, i int, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if ch.handles == nil { // of a configuration that GetConfigForClient returned
		return w.engine.serveReturned(ctx, ch.certs[i], w.owner, hello)
	}
	c := ch.handles[i]
	if c == nil {
		return ch.certs[i], nil
	}
	cert, _, err := c.entry.serve(ctx, c, hello, w.until)
	return cert, err
}

// serveAdded serves one of the certificates that Add has put under the engine's care.
func (w *wrapper) serveAdded(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	added := w.engine.addedCertificates()
	if len(added) == 0 {
		return nil, nil
	}
	certs := make([]*tls.Certificate, len(added))
	for i, c := range added {
		certs[i] = &c.plain
	}
	c := added[choose(certs, hello)]
	cert, _, err := c.entry.serve(hello.Context(), c, hello, w.until)
	return cert, err
}

// getClientCertificate does what crypto/tls does with a Config in Conn.getClientCertificate.
func (w *wrapper) getClientCertificate(ch *chooser, info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	if ch.getClientCertificate != nil {
		cert, err := ch.getClientCertificate(info)
		if err != nil || cert == nil {
			return cert, err
		}
		return w.engine.serveReturned(info.Context(), cert, w.owner, nil)
	}
	for i, cert := range ch.certs {
		if info.SupportsCertificate(cert) == nil {
			return w.serve(info.Context(), ch, i, nil)
		}
	}
	return new(tls.Certificate), nil
}

// serve returns what a handshake is given that a wrapped configuration serves: it
// waits for the first round of a Must-Staple certificate, until then at the latest.
// hello is nil on the client's side, where RequireStaple is not enforced.
func (e *entry) serve(ctx context.Context, c *Certificate, hello *tls.ClientHelloInfo, until time.Time) (cert *tls.Certificate, stapled bool, err error) {
	cert, stapled = c.current()
	if !stapled && e.mustStaple && e.awaitFirst(ctx, until) {
		cert, stapled = c.current()
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

// awaitFirst waits for the first round of e, and reports whether it did. ctx may be nil.
func (e *entry) awaitFirst(ctx context.Context, until time.Time) bool {
	left := time.Until(until)
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
	_ = e.engine.await(ctx, e, func() bool { return e.engine.ended(e) })
	return true
}

const extensionStatusRequest = 5 // RFC 6066, section 8

// wantsStaple reports whether the client asked for a staple, or nobody knows: a
// hello that crypto/tls has read tells its extensions, one made by hand may not.
func wantsStaple(hello *tls.ClientHelloInfo) bool {
	return hello == nil || hello.Extensions == nil && hello.Conn == nil || slices.Contains(hello.Extensions, extensionStatusRequest)
}

func (g *engine) isClosed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}
