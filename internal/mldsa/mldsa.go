// Package mldsa knows ML-DSA (FIPS 204) in certificates and signatures, RFC 9881, whichever Go it is built with. Only Go
// 1.27 and newer can do something with it: built with those, [Supported] is true, and [Algorithm] and [KeyName] tell what
// crypto/x509 makes of it. Built with others, [SignatureNeeds] and [KeyNeeds] say what is missing.
package mldsa

import (
	"bytes"
	"crypto/x509"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// An OID is that of a parameter set: it names keys and signatures alike.
type OID struct {
	Name    string
	Content []byte // of the OBJECT IDENTIFIER
}

// OIDs are 2.16.840.1.101.3.4.3.17 to 19.
var OIDs = [...]OID{
	{"ML-DSA-44", []byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 3, 17}},
	{"ML-DSA-65", []byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 3, 18}},
	{"ML-DSA-87", []byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 3, 19}},
}

// Is reports whether a is ML-DSA.
func Is(a x509.SignatureAlgorithm) bool {
	for _, o := range OIDs {
		if a != 0 && a == Algorithm(o) {
			return true
		}
	}
	return false
}

// Named returns the name of what the content of an OBJECT IDENTIFIER stands for; empty: something else.
func Named(oid []byte) string {
	for _, o := range OIDs {
		if bytes.Equal(oid, o.Content) {
			return o.Name
		}
	}
	return ""
}

// SignatureNeeds returns an error that says why the signature of a certificate cannot be checked, if that is because of
// the Go that built this; else nil.
func SignatureNeeds(c *x509.Certificate) error {
	var signed cryptobyte.String
	der := cryptobyte.String(c.Raw)
	if !der.ReadASN1(&signed, asn1.SEQUENCE) || !signed.SkipASN1(asn1.SEQUENCE) {
		return nil
	}
	return needs("a signature", signed)
}

// KeyNeeds is SignatureNeeds for the key of a certificate.
func KeyNeeds(c *x509.Certificate) error {
	var key cryptobyte.String
	info := cryptobyte.String(c.RawSubjectPublicKeyInfo)
	if !info.ReadASN1(&key, asn1.SEQUENCE) {
		return nil
	}
	return needs("a key", key)
}

func needs(what string, s cryptobyte.String) error {
	if name := algorithm(s); name != "" && !Supported {
		return fmt.Errorf("%s with %s, for which Go 1.27 is needed", what, name)
	}
	return nil
}

// algorithm returns the name of what the AlgorithmIdentifier at the beginning of s stands for.
func algorithm(s cryptobyte.String) string {
	var identifier, oid cryptobyte.String
	if !s.ReadASN1(&identifier, asn1.SEQUENCE) || !identifier.ReadASN1(&oid, asn1.OBJECT_IDENTIFIER) {
		return ""
	}
	return Named(oid)
}
