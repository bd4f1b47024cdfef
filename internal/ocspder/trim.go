package ocspder

import (
	"bytes"
	"math/bits"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Trimmed returns a response that says the same as r and is signed alike, and embeds cert, the DER of a certificate as
// [AsSigned] returns it, alone, or none if cert is nil. What is signed stands in it byte for byte, and all around that is
// in strict DER. If r was read from just that, the result shares memory with what it was read from.
func (r *Response) Trimmed(cert []byte) []byte {
	algorithm := identifiers[r.Algorithm]
	var certs, list int // the length of an element's content, here and below
	embedded := 0       // of the whole element with its header
	if cert != nil {
		list = len(cert)
		certs = sizeOf(list)
		embedded = sizeOf(certs)
	}
	signature := 1 + len(r.Signature)
	basic := len(r.TBS) + len(algorithm) + sizeOf(signature) + embedded
	response := sizeOf(basic)
	inner := sizeOf(len(oidOCSPBasic)) + sizeOf(response)
	responseBytes := sizeOf(inner)
	outer := len(derSuccessful) + sizeOf(responseBytes)

	// Read has seen to it that every length is minimal, so nothing else can differ.
	if len(r.raw) == sizeOf(outer) && bytes.Equal(r.identifier, algorithm) && bytes.Equal(r.certs, cert) {
		return r.raw
	}
	b := make([]byte, 0, sizeOf(outer))
	b = appendHeader(b, cbasn1.SEQUENCE, outer)
	b = append(b, derSuccessful...)
	b = appendHeader(b, tag0Constructed, responseBytes)
	b = appendHeader(b, cbasn1.SEQUENCE, inner)
	b = appendHeader(b, cbasn1.OBJECT_IDENTIFIER, len(oidOCSPBasic))
	b = append(b, oidOCSPBasic...)
	b = appendHeader(b, cbasn1.OCTET_STRING, response)
	b = appendHeader(b, cbasn1.SEQUENCE, basic)
	b = append(b, r.TBS...)
	b = append(b, algorithm...)
	b = appendHeader(b, cbasn1.BIT_STRING, signature)
	b = append(b, 0) // unused bits
	b = append(b, r.Signature...)
	if cert != nil {
		b = appendHeader(b, tag0Constructed, certs)
		b = appendHeader(b, cbasn1.SEQUENCE, list)
		b = append(b, cert...)
	}
	return b
}

var derSuccessful = []byte{byte(cbasn1.ENUM), 1, 0}

// AsSigned returns a certificate as its issuer signed it, in strict DER: the first three elements of Certificate, RFC 5280
// s4.1, and nothing after them. Nobody signs what comes after them, nor how the signature's bits are laid out. If der is
// that already, the result is der. The two AlgorithmIdentifiers are not compared: crypto/x509 does that.
func AsSigned(der []byte) ([]byte, error) {
	var certificate, tbs, algorithm cryptobyte.String
	var signature []byte
	input := cryptobyte.String(der)
	if !input.ReadASN1(&certificate, cbasn1.SEQUENCE) || !input.Empty() ||
		!certificate.ReadASN1Element(&tbs, cbasn1.SEQUENCE) ||
		!certificate.ReadASN1Element(&algorithm, cbasn1.SEQUENCE) ||
		!certificate.ReadASN1BitStringAsBytes(&signature) {
		return nil, malformed("a certificate that cannot be given out as it was signed")
	}
	if certificate.Empty() {
		return der, nil
	}
	content := len(tbs) + len(algorithm) + sizeOf(1+len(signature))
	b := appendHeader(make([]byte, 0, sizeOf(content)), cbasn1.SEQUENCE, content)
	b = append(b, tbs...)
	b = append(b, algorithm...)
	b = appendHeader(b, cbasn1.BIT_STRING, 1+len(signature))
	b = append(b, 0)
	return append(b, signature...), nil
}

// An Embedded is an embedded certificate, of which no more has been read than what it says about names and keys.
type Embedded struct {
	DER             []byte
	Issuer, Subject []byte // the Names' DER
	PublicKeyInfo   []byte // the SubjectPublicKeyInfo's DER
}

// Peek reads der. It reports false for what crypto/x509 would not take for a certificate either.
func Peek(der []byte) (e Embedded, ok bool) {
	var tbs, issuer, subject, key cryptobyte.String
	input := cryptobyte.String(der)
	ok = input.ReadASN1(&tbs, cbasn1.SEQUENCE) && tbs.ReadASN1(&tbs, cbasn1.SEQUENCE) &&
		tbs.SkipOptionalASN1(tag0Constructed) && // version
		tbs.SkipASN1(cbasn1.INTEGER) && tbs.SkipASN1(cbasn1.SEQUENCE) && // serialNumber, signature
		tbs.ReadASN1Element(&issuer, cbasn1.SEQUENCE) &&
		tbs.SkipASN1(cbasn1.SEQUENCE) && // validity
		tbs.ReadASN1Element(&subject, cbasn1.SEQUENCE) && tbs.ReadASN1Element(&key, cbasn1.SEQUENCE)
	return Embedded{der, issuer, subject, key}, ok
}

// sizeOf returns the length of an element whose content has length n.
func sizeOf(n int) int {
	if n < 0x80 {
		return 2 + n
	}
	return 2 + (bits.Len(uint(n))+7)/8 + n
}

// appendHeader appends the tag and the length n of an element in DER.
func appendHeader(b []byte, tag cbasn1.Tag, n int) []byte {
	b = append(b, byte(tag))
	if n < 0x80 {
		return append(b, byte(n))
	}
	size := (bits.Len(uint(n)) + 7) / 8
	b = append(b, 0x80|byte(size))
	for ; size > 0; size-- {
		b = append(b, byte(n>>(8*(size-1))))
	}
	return b
}
