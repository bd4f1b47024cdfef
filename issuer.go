package staple

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"runtime"
	"sync"
	"weak"
)

// interned holds the parsed certificates of chains, one of each for the process
// while somebody uses it: a hundred thousand leaves have a handful of issuers.
var interned struct {
	sync.Mutex
	certs map[[sha256.Size]byte]weak.Pointer[x509.Certificate]
}

// intern parses a certificate, or returns the one that was parsed before.
func intern(der []byte) (*x509.Certificate, error) {
	key := sha256.Sum256(der)
	interned.Lock()
	defer interned.Unlock()
	if c := interned.certs[key].Value(); c != nil {
		return c, nil
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if interned.certs == nil {
		interned.certs = make(map[[sha256.Size]byte]weak.Pointer[x509.Certificate])
	}
	interned.certs[key] = weak.Make(c)
	runtime.AddCleanup(c, func(key [sha256.Size]byte) {
		interned.Lock()
		defer interned.Unlock()
		if interned.certs[key].Value() == nil {
			delete(interned.certs, key)
		}
	}, key)
	return c, nil
}

// signedBy reports whether issuer's key verifies the signature of leaf. A huge RSA
// key, which nobody uses, would only keep the processor busy.
func signedBy(leaf, issuer *x509.Certificate) bool {
	if k, ok := issuer.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() > maxRSABits {
		return false
	}
	return issuer.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature) == nil
}

// issuersAmong returns those candidates whose key verifies the signature of leaf, up
// to most of them. Those of the right name are tried first, and no more than
// maxSignatureChecks in all: a chain may be anybody's.
func issuersAmong(candidates []*x509.Certificate, leaf *x509.Certificate, most int) (found []*x509.Certificate) {
	checks := 0
	for _, named := range []bool{true, false} {
		for _, c := range candidates {
			if c == nil || bytes.Equal(c.RawSubject, leaf.RawIssuer) != named {
				continue
			}
			if checks++; len(found) == most || checks > maxSignatureChecks {
				return found
			}
			if signedBy(leaf, c) {
				found = append(found, c)
			}
		}
	}
	return found
}

// pickIssuer returns the one among candidates that issued leaf, or nil.
func pickIssuer(leaf *x509.Certificate, candidates []*x509.Certificate) *x509.Certificate {
	if found := issuersAmong(candidates, leaf, 1); len(found) > 0 {
		return found[0]
	}
	return nil
}

// localIssuer returns the issuer if it is known, in a chain, or in
// Stapler.Issuers; else nil.
func (e *entry) localIssuer() *x509.Certificate {
	g := e.engine
	g.mu.Lock()
	issuer := e.issuer
	var chains [][][]byte
	for _, c := range e.handles {
		chains = append(chains, c.chain()[1:])
	}
	g.mu.Unlock()
	if issuer != nil {
		return issuer
	}
	var candidates []*x509.Certificate
	for _, chain := range chains {
		for _, der := range chain {
			if c, err := intern(der); err == nil {
				candidates = append(candidates, c)
			}
		}
	}
	issuer = pickIssuer(e.leaf, append(candidates, g.issuers...))
	if issuer != nil {
		e.setIssuer(issuer)
	}
	return issuer
}

func (e *entry) setIssuer(issuer *x509.Certificate) {
	e.engine.mu.Lock()
	defer e.engine.mu.Unlock()
	e.issuer = issuer
	e.issuerKnown.Store(true)
}
