// Package issuers finds who issued a certificate.
//
// [Of] and [Among] pick the issuer from candidates of whatever origin: the rest of a
// chain, a list of CAs, what the certificate's caIssuers URL leads to. A candidate counts
// if its key verifies the certificate's signature, whatever its name; whether it is a CA,
// is valid or leads to anybody who is trusted is for others to say. [Parse] reads
// candidates in the forms that CAs publish them in, [Intern] keeps one parsed certificate
// for all that use it, and [ByURL] remembers where issuers were found.
//
// It makes no request.
package issuers

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"runtime"
	"sync"
	"weak"

	"github.com/go-staple/staple/internal/name"
	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const (
	// MaxChecks is how many signatures are checked to find a certificate's issuers:
	// candidates may be anybody's.
	MaxChecks = 8

	maxRSABits = 8192
)

// Signed reports whether issuer's key verifies the signature of cert. A huge RSA key,
// which nobody uses, would only keep the processor busy.
func Signed(cert, issuer *x509.Certificate) bool {
	if k, ok := issuer.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() > maxRSABits {
		return false
	}
	return issuer.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil
}

// Among returns those candidates whose key verifies the signature of cert, up to most of
// them. Those are tried first whose subject key identifier is the one that cert names, then those of
// the right name, and no more than [MaxChecks] in all. A candidate may be nil.
func Among(candidates []*x509.Certificate, cert *x509.Certificate, most int) (found []*x509.Certificate) {
	checks := 0
	for rank := range ranks {
		for _, c := range candidates {
			if c == nil || rankOf(c, cert) != rank {
				continue
			}
			if checks++; len(found) == most || checks > MaxChecks {
				return found
			}
			if Signed(cert, c) {
				found = append(found, c)
			}
		}
	}
	return found
}

const ranks = 4

// rankOf tells how likely c is to have issued cert, 0 being the likeliest.
func rankOf(c, cert *x509.Certificate) (rank int) {
	if len(cert.AuthorityKeyId) == 0 || !bytes.Equal(c.SubjectKeyId, cert.AuthorityKeyId) {
		rank += 2
	}
	if !bytes.Equal(c.RawSubject, cert.RawIssuer) {
		rank++
	}
	return rank
}

// oidRSASSAPSS is the content of the object identifier of a key that is for RSASSA-PSS alone: RFC 4055, section 1.2.
var oidRSASSAPSS = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a}

// Unusable returns why candidates in the name of cert's issuer cannot be that: because of their key.
func Unusable(cert *x509.Certificate, candidates []*x509.Certificate) (why []error) {
	for _, c := range candidates {
		if c == nil || !bytes.Equal(c.RawSubject, cert.RawIssuer) {
			continue
		}
		k, isRSA := c.PublicKey.(*rsa.PublicKey)
		switch {
		case c.PublicKey == nil && bytes.Contains(c.RawSubjectPublicKeyInfo, oidRSASSAPSS):
			why = append(why, fmt.Errorf("%s has a key of the type id-RSASSA-PSS, which crypto/x509 cannot use", name.Of(c)))
		case c.PublicKey == nil:
			why = append(why, fmt.Errorf("%s has a key of a type that crypto/x509 does not know", name.Of(c)))
		case isRSA && k.N.BitLen() > maxRSABits:
			why = append(why, fmt.Errorf("%s has an RSA key of %d bits, more than %d", name.Of(c), k.N.BitLen(), maxRSABits))
		}
	}
	return why
}

// Of returns the one among candidates that issued cert, or nil.
func Of(cert *x509.Certificate, candidates []*x509.Certificate) *x509.Certificate {
	if found := Among(candidates, cert, 1); len(found) > 0 {
		return found[0]
	}
	return nil
}

// interned holds one certificate of each for the process while somebody uses it: a
// hundred thousand leaves have a handful of issuers.
var interned struct {
	sync.Mutex
	certs map[[sha256.Size]byte]weak.Pointer[x509.Certificate]
}

// Intern parses a certificate, or returns the one that was parsed before, if it is still
// in use. Nobody may change it.
func Intern(der []byte) (*x509.Certificate, error) {
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

// Parse reads what a caIssuers URL may lead to (RFC 5280, section 4.2.2.1): certificates
// in DER or PEM, or a certs-only PKCS #7 message in either. What is no certificate, or
// none that crypto/x509 can read, is left out.
func Parse(data []byte) []*x509.Certificate {
	encoded := [][]byte{data}
	if block, rest := pem.Decode(data); block != nil {
		encoded = nil
		for ; block != nil; block, rest = pem.Decode(rest) {
			encoded = append(encoded, block.Bytes)
		}
	}
	var certs []*x509.Certificate
	for _, der := range encoded {
		for _, der := range pkcs7Certificates(der) {
			if c, err := x509.ParseCertificate(der); err == nil {
				certs = append(certs, c)
			}
		}
	}
	return certs
}

var oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}

// pkcs7Certificates returns the certificates of a PKCS #7 or CMS SignedData in
// DER (RFC 5652, section 5.1), or der itself if it is none. A message made for
// this carries nothing else; if there is a content or a signature, it is ignored.
func pkcs7Certificates(der []byte) [][]byte {
	context0 := cryptobyte_asn1.Tag(0).ContextSpecific().Constructed()
	input := cryptobyte.String(der)
	var info, content, signed, certs cryptobyte.String
	var oid asn1.ObjectIdentifier
	var version int
	if !input.ReadASN1(&info, cryptobyte_asn1.SEQUENCE) || !input.Empty() ||
		!info.ReadASN1ObjectIdentifier(&oid) || !oid.Equal(oidSignedData) ||
		!info.ReadASN1(&content, context0) || !info.Empty() ||
		!content.ReadASN1(&signed, cryptobyte_asn1.SEQUENCE) || !content.Empty() ||
		!signed.ReadASN1Integer(&version) ||
		!signed.SkipASN1(cryptobyte_asn1.SET) || // digestAlgorithms
		!signed.SkipASN1(cryptobyte_asn1.SEQUENCE) || // encapContentInfo
		!signed.ReadOptionalASN1(&certs, nil, context0) {
		return [][]byte{der}
	}
	var list [][]byte
	for !certs.Empty() {
		var c cryptobyte.String
		var tag cryptobyte_asn1.Tag
		if !certs.ReadAnyASN1Element(&c, &tag) {
			break
		}
		list = append(list, c)
	}
	return list
}
