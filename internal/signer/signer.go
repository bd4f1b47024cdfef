// Package signer finds out who signed an OCSP response, and whether they may sign for the issuer in question, RFC 6960
// s4.2.2.2: the issuer itself, a responder that is trusted locally, or a delegated responder, whose certificate is
// embedded and was issued by the issuer for this purpose. The rules of the choices that RFC 6960 leaves are in the
// documentation of staple.ResponseVerifier.
//
// [Finder.Find] does it. A Finder remembers delegated responders, so that later responses of theirs cost one check of a
// signature instead of two. Whether the response is about the right certificate, and current, is not looked at here.
package signer

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/go-staple/staple/internal/mldsa"
	"github.com/go-staple/staple/internal/name"
	"github.com/go-staple/staple/internal/ocspder"
)

const (
	MaxChecks = 8 // signatures checked for a response, its certificates' included

	maxDelegates    = 1024     // remembered
	maxDelegateSize = 16 << 10 // of an embedded certificate, before it is parsed
)

var (
	oidNoCheck  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5} // id-pkix-ocsp-nocheck
	oidKeyUsage = asn1.ObjectIdentifier{2, 5, 29, 15}

	derOCSPSigning = []byte{6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 9} // id-kp-OCSPSigning
)

// An Error tells why nobody was found, by the most telling of the candidates.
type Error struct {
	Kind Kind
	text string
	err  error // that it wraps, if any
}

// A Kind tells errors apart.
type Kind int

const (
	Unauthorized         Kind = iota + 1 // signed by nobody who may
	BadSignature                         // the signature does not verify with the key that it names
	NotYetValid                          // the signer's certificate is not valid yet
	UnsupportedAlgorithm                 // of the signature or its key: unknown, or too weak
)

func (e *Error) Error() string { return e.text }

func (e *Error) Unwrap() error { return e.err }

// A Finder finds signers. The zero value is ready to use, and safe for concurrent use. It must not be copied after first
// use.
type Finder struct {
	mu        sync.Mutex
	delegates map[[sha256.Size]byte]*x509.Certificate // by delegateKey; authorized, but for the time
}

// A Signer is who signed a response.
type Signer struct {
	Certificate *x509.Certificate
	Embedded    []byte    // its DER as it was signed, if it stands in the response and is not the issuer; else nil
	NotAfter    time.Time // from when on it may no longer sign; zero: the issuer, of whom that is not asked
}

// Find returns who signed r and may do so: the issuer of m, one of local, or a delegated responder of either. One that
// has expired is returned, too, unless there is another: its NotAfter bounds the end. Every error is an [*Error].
//
// What counts is whose key verifies the signature. The responderID, which whoever signs can choose, only tells which
// keys need not be tried. What a Finder remembers saves work, and makes no other difference.
func (f *Finder) Find(r *ocspder.Response, m *ocspder.Match, local []*x509.Certificate, now time.Time) (Signer, error) {
	issuer := m.Issuer
	s := search{response: r, issuer: issuer, now: now}
	if r.Names(issuer, m.IssuerKeyHash()) && s.check(issuer, nil) {
		return Signer{Certificate: issuer}, nil
	}
	for _, c := range local {
		if c != nil && r.Names(c, ocspder.KeyHash(c)) && s.signedBy(c, nil) {
			return s.signer(c, nil), nil
		}
	}
	// Those that may be a delegate come first. The others cannot be one, but tell what is wrong.
	candidates := 0
	for _, likely := range []bool{true, false} {
		for der := range r.Certificates() {
			e, ok := ocspder.Peek(der)
			if likely != (ok && s.vouched(e, local) && bytes.Contains(der, derOCSPSigning)) || ok && !r.NamesEmbedded(e) {
				continue
			}
			if candidates++; candidates > MaxChecks {
				break
			}
			if likely && s.ownName() {
				continue
			}
			for voucher := range s.vouchers(e, local) {
				if c := f.delegate(&s, voucher, der); c != nil && s.signedBy(c, voucher) {
					return s.signer(c, voucher), nil
				}
			}
		}
	}
	switch {
	case s.expired.Certificate != nil:
		return s.expired, nil
	case s.why == nil:
		s.refuse(Unauthorized, "its responderID names %s, which is neither the issuer %s, nor a local or embedded responder",
			r.Responder(), name.Of(issuer))
	}
	return Signer{}, s.why
}

// A search looks for the signer of a response.
type search struct {
	response *ocspder.Response
	issuer   *x509.Certificate
	now      time.Time
	checks   int    // signatures checked, or known to be right
	expired  Signer // signed it, but is no longer valid; of the last such
	why      *Error // the first refusal of a candidate, the most telling
	own      bool   // why tells of a delegate in the issuer's own name
}

// refuse returns false.
func (s *search) refuse(kind Kind, format string, args ...any) bool {
	if s.why == nil {
		s.why = &Error{Kind: kind, text: fmt.Sprintf(format, args...)}
	}
	return false
}

// vouchers returns those who may have issued e as a delegate: the issuer, and CAs among local. Where nobody has the name
// that e tells, it is the issuer, to say what is wrong.
func (s *search) vouchers(e ocspder.Embedded, local []*x509.Certificate) iter.Seq[*x509.Certificate] {
	return func(yield func(*x509.Certificate) bool) {
		named := s.vouched(e, local)
		if (!named || bytes.Equal(e.Issuer, s.issuer.RawSubject)) && !yield(s.issuer) {
			return
		}
		for _, c := range local {
			if vouches(c, e) && !yield(c) {
				return
			}
		}
	}
}

// vouched reports whether e bears the name of somebody who may have issued it as a delegate.
func (s *search) vouched(e ocspder.Embedded, local []*x509.Certificate) bool {
	return bytes.Equal(e.Issuer, s.issuer.RawSubject) ||
		slices.ContainsFunc(local, func(c *x509.Certificate) bool { return vouches(c, e) })
}

// vouches reports whether c, which is trusted locally, is a CA that may have issued e.
func vouches(c *x509.Certificate, e ocspder.Embedded) bool {
	return c != nil && c.BasicConstraintsValid && c.IsCA && bytes.Equal(e.Issuer, c.RawSubject)
}

// ownName reports whether the responderID is the issuer's name. Firefox looks at no delegate then: whether one is meant
// only an embedded certificate's name would tell.
func (s *search) ownName() bool {
	if !bytes.Equal(s.response.ResponderName, s.issuer.RawSubject) {
		return false
	}
	if s.why != nil && !s.own {
		s.own = true
		s.why.text += "; an embedded certificate that bears the issuer's own name is not looked at, since clients do not either"
	}
	return true
}

// signer is c, for whom voucher vouches; nil: it is trusted itself.
func (s *search) signer(c, voucher *x509.Certificate) Signer {
	by := Signer{Certificate: c, Embedded: c.Raw, NotAfter: c.NotAfter}
	if voucher == nil {
		by.Embedded = s.response.Embedded(c)
	} else if voucher != s.issuer && voucher.NotAfter.Before(by.NotAfter) {
		by.NotAfter = voucher.NotAfter
	}
	return by
}

// authorized reports whether c is the certificate of a delegated responder of voucher's, at whatever time.
func (s *search) authorized(c, voucher *x509.Certificate) bool {
	const signing = x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment
	switch {
	case !bytes.Equal(c.RawIssuer, voucher.RawSubject):
		if c.Issuer.String() == voucher.Subject.String() {
			return s.refuse(Unauthorized, "signed by %s, which names its issuer %.100q in another encoding than the issuer %s itself",
				name.Of(c), c.Issuer, name.Of(voucher))
		}
		return s.refuse(Unauthorized, "signed by %s, which was issued by %.100q, not by the issuer %s",
			name.Of(c), c.Issuer, name.Of(voucher))
	case !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning):
		return s.refuse(Unauthorized, "signed by %s, which lacks the extended key usage OCSPSigning", name.Of(c))
	case c.IsCA:
		return s.refuse(Unauthorized, "signed by %s, which is a CA, but not the issuer %s", name.Of(c), name.Of(voucher))
	case hasKeyUsage(c) && c.KeyUsage&signing == 0:
		return s.refuse(Unauthorized, "signed by %s, whose key usage lacks digitalSignature", name.Of(c))
	}
	for _, oid := range c.UnhandledCriticalExtensions {
		if !oid.Equal(oidNoCheck) {
			return s.refuse(Unauthorized, "signed by %s, which has the unknown critical extension %.100s", name.Of(c), oid)
		}
	}
	return s.check(voucher, c)
}

func hasKeyUsage(c *x509.Certificate) bool {
	return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidKeyUsage) })
}

// signedBy reports whether c signed the response, and is valid, as is voucher unless that is nil or the issuer.
func (s *search) signedBy(c, voucher *x509.Certificate) bool {
	for _, c := range []*x509.Certificate{c, voucher} {
		if c != nil && c != s.issuer && s.now.Before(c.NotBefore) {
			return s.refuse(NotYetValid, "signed by %s, which is not valid before %s, and the clock says %s",
				name.Of(c), name.Time(c.NotBefore), name.Time(s.now))
		}
	}
	if !s.check(c, nil) {
		return false
	}
	if by := s.signer(c, voucher); !s.now.Before(by.NotAfter) {
		s.expired = by
		return false
	}
	return true
}

// check reports whether key's key verifies the signature of cert or, if that is nil, of the response.
func (s *search) check(key, cert *x509.Certificate) bool {
	if !s.spend() {
		return false
	}
	var kind Kind
	var err error
	if cert == nil {
		kind, err = checkSignature(key, s.response.Algorithm, s.response.TBS, s.response.Signature)
	} else if kind, err = checkSignature(key, cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature); kind == BadSignature {
		kind = Unauthorized
	}
	if err != nil && kind == UnsupportedAlgorithm {
		if needs := mldsa.KeyNeeds(key); needs != nil {
			err = needs
		} else if cert != nil {
			err = cmp.Or(mldsa.SignatureNeeds(cert), err)
		}
	}
	switch {
	case err == nil:
		return true
	case s.why != nil:
	case kind == UnsupportedAlgorithm && cert == nil:
		s.why = &Error{kind, fmt.Sprintf("its signature is not checked with the key of %s: %v", name.Of(key), err), err}
	case kind == UnsupportedAlgorithm:
		s.why = &Error{kind, fmt.Sprintf("signed by %s, the signature of whose certificate is not checked with the key of the issuer %s: %v",
			name.Of(cert), name.Of(key), err), err}
	case cert == nil:
		s.why = &Error{kind, fmt.Sprintf("its signature does not verify with the key of %s: %v", name.Of(key), err), err}
	default:
		s.why = &Error{kind, fmt.Sprintf("signed by %s, whose certificate does not verify with the key of the issuer %s: %v",
			name.Of(cert), name.Of(key), err), err}
	}
	return false
}

// spend reports whether one more signature may be checked. What is remembered counts as if it were checked, so that a
// verdict never depends on that.
func (s *search) spend() bool {
	if s.checks++; s.checks > MaxChecks {
		return s.refuse(Unauthorized, "no signer found within %d signature checks", MaxChecks)
	}
	return true
}

// delegate returns an embedded certificate if it is a delegate of voucher's, at whatever time; else nil. Its Raw is as
// voucher signed it.
func (f *Finder) delegate(s *search, voucher *x509.Certificate, der []byte) *x509.Certificate {
	key := delegateKey(voucher, der)
	if c := f.recall(key); c != nil {
		if !s.spend() {
			return nil
		}
		return c
	}
	c, err := parseDelegate(der)
	if err != nil {
		s.refuse(Unauthorized, "an embedded certificate of %d bytes is not used: %.200q", len(der), err)
		return nil
	}
	if !s.authorized(c, voucher) {
		return nil
	}
	f.remember(key, c)
	return c
}

// parseDelegate parses an embedded certificate, as it was signed. The result shares no memory with der, for it may be
// remembered.
func parseDelegate(der []byte) (*x509.Certificate, error) {
	if len(der) > maxDelegateSize {
		return nil, fmt.Errorf("larger than %d bytes", maxDelegateSize)
	}
	signed, err := ocspder.AsSigned(der)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(bytes.Clone(signed))
}

// delegateKey is where a delegate of issuer's is remembered. The parts are elements of DER, so they
// cannot run into each other.
func delegateKey(issuer *x509.Certificate, der []byte) (key [sha256.Size]byte) {
	h := sha256.New()
	h.Write(issuer.RawSubject)
	h.Write(issuer.RawSubjectPublicKeyInfo)
	h.Write(der)
	h.Sum(key[:0])
	return key
}

// recall returns nil for what is not remembered.
func (f *Finder) recall(key [sha256.Size]byte) *x509.Certificate {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.delegates[key]
}

func (f *Finder) remember(key [sha256.Size]byte, c *x509.Certificate) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.delegates == nil || len(f.delegates) >= maxDelegates {
		f.delegates = make(map[[sha256.Size]byte]*x509.Certificate)
	}
	f.delegates[key] = c
}
