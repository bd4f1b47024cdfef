package stapletest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/fips140"
	_ "crypto/md5"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"math/bits"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"
)

// A Response describes one OCSP response in full, RFC 6960 s4.2.1, well formed or not.
// [NewResponse] returns one that is.
type Response struct {
	// Status is the responseStatus. Any but ocsp.Success makes an error response, which has nothing
	// else to it.
	Status ocsp.ResponseStatus

	// Signer signs the response.
	Signer *Signer

	// SignatureAlgorithm is how; zero: by Signer's key, with SHA-256 or, for P-384 and P-521, the hash
	// of the curve's size. All that crypto/x509 names but DSA and MD2 work, MD5WithRSA and those with
	// SHA-1 included.
	SignatureAlgorithm x509.SignatureAlgorithm

	// ResponderID is the certificate that the responderID names; nil: Signer's.
	ResponderID *x509.Certificate

	// ByName makes the responderID the subject of that certificate rather than the SHA-1 hash of its
	// key.
	ByName bool

	// ProducedAt is when the response was signed; in whole seconds, as all times here.
	ProducedAt time.Time

	// Singles are the statuses of certificates.
	Singles []Single

	// Extensions are the responseExtensions.
	Extensions []pkix.Extension

	// Certificates are embedded in this order. Nil: Signer's, unless it is the Issuer of a Single.
	// Not nil and empty: none. Of each only Raw is looked at.
	Certificates []*x509.Certificate

	// Tamper, if set, may replace each element that is encoded, so as to produce what nothing else
	// here can. It is called with the element's name and its DER, including the tag of an EXPLICIT
	// one, and returns what to write instead. An OPTIONAL element that is absent comes as nil, and nil
	// leaves an element out. The elements are encoded from the inside out, in this order: version,
	// responderID, producedAt, responses, responseExtensions, tbsResponseData, signatureAlgorithm,
	// signature, certs, basicOCSPResponse, responseType, response, responseBytes, responseStatus,
	// ocspResponse. The signature is over what Tamper returns for tbsResponseData.
	Tamper func(element string, der []byte) []byte
}

// A Single is the status of one certificate, a SingleResponse of RFC 6960.
type Single struct {
	// Leaf is the certificate that it is about, and Issuer the one that issued it. Leaf may be nil if
	// Serial is set, and Issuer if both hashes are.
	Leaf, Issuer *x509.Certificate

	// Serial is the serial number; nil: Leaf's.
	Serial *big.Int

	// Hash is the CertID's hash algorithm; zero: SHA-1.
	Hash crypto.Hash

	// IssuerNameHash and IssuerKeyHash; nil: the right ones, by Hash and Issuer.
	IssuerNameHash, IssuerKeyHash []byte

	// Status is ocsp.Good, ocsp.Revoked or ocsp.Unknown.
	Status int

	// RevokedAt and Reason belong to ocsp.Revoked. Reason 0, unspecified, is left out as RFC 5280
	// s5.3.1 asks.
	RevokedAt time.Time
	Reason    int

	// ThisUpdate is when the status was known to be correct.
	ThisUpdate time.Time

	// NextUpdate is when newer information will be available; zero: omitted.
	NextUpdate time.Time

	// Extensions are the singleExtensions.
	Extensions []pkix.Extension

	// Tamper is like that of [Response], for these elements: hashAlgorithm, issuerNameHash,
	// issuerKeyHash, serialNumber, certID, certStatus, thisUpdate, nextUpdate, singleExtensions,
	// singleResponse.
	Tamper func(element string, der []byte) []byte
}

// NewResponse returns a response that says leaf is good: signed by the CA's Issuer, responderID by key,
// a SHA-1 CertID, thisUpdate and producedAt now, nextUpdate in seven days.
func NewResponse(ca *CA, leaf *x509.Certificate) *Response {
	now := time.Now()
	return &Response{
		Signer:     ca.Signer(),
		ProducedAt: now,
		Singles: []Single{{
			Leaf:       leaf,
			Issuer:     ca.Issuer,
			ThisUpdate: now,
			NextUpdate: now.Add(7 * day),
		}},
	}
}

// DER signs and encodes the response. It panics if a field that it needs is nil, and where the
// signer's key cannot sign with the algorithm.
func (r *Response) DER() []byte {
	tamper := r.Tamper
	if tamper == nil {
		tamper = untampered
	}
	var responseBytes []byte
	if r.Status == ocsp.Success {
		basic := tamper("basicOCSPResponse", r.basic(tamper))
		responseType := tamper("responseType", oid(1, 3, 6, 1, 5, 5, 7, 48, 1, 1))
		response := tamper("response", tlv(tagOctetString, basic))
		responseBytes = tlv(explicit(0), tlv(tagSequence, responseType, response))
	}
	responseBytes = tamper("responseBytes", responseBytes)
	status := tamper("responseStatus", tlv(tagEnumerated, []byte{byte(r.Status)}))
	return tamper("ocspResponse", tlv(tagSequence, status, responseBytes))
}

// basic encodes the BasicOCSPResponse.
func (r *Response) basic(tamper func(string, []byte) []byte) []byte {
	version := tamper("version", nil)
	id := r.ResponderID
	if id == nil {
		id = r.Signer.Certificate
	}
	var responderID []byte
	if r.ByName {
		responderID = tlv(explicit(1), id.RawSubject)
	} else {
		hash := sum(crypto.SHA1, publicKey(id))
		responderID = tlv(explicit(2), tlv(tagOctetString, hash[:]))
	}
	responderID = tamper("responderID", responderID)
	producedAt := tamper("producedAt", generalizedTime(r.ProducedAt))
	var singles [][]byte
	embedded := r.Certificates
	delegated := true
	for i := range r.Singles {
		s := &r.Singles[i]
		singles = append(singles, s.der())
		if s.Issuer != nil && bytes.Equal(s.Issuer.Raw, r.Signer.Certificate.Raw) {
			delegated = false
		}
	}
	if embedded == nil && delegated {
		embedded = []*x509.Certificate{r.Signer.Certificate}
	}
	responses := tamper("responses", tlv(tagSequence, singles...))
	exts := tamper("responseExtensions", extensions(r.Extensions))
	tbs := tamper("tbsResponseData", tlv(tagSequence, version, responderID, producedAt, responses, exts))

	algorithm := r.SignatureAlgorithm
	if algorithm == 0 {
		algorithm = defaultAlgorithm(r.Signer.Key.Public())
	}
	identifier := tamper("signatureAlgorithm", slices.Clone(signatureAlgorithms[algorithm].identifier))
	signature := tamper("signature", tlv(tagBitString, []byte{0}, sign(r.Signer.Key, algorithm, tbs)))
	var certs []byte
	if len(embedded) > 0 {
		var raw [][]byte
		for _, c := range embedded {
			raw = append(raw, c.Raw)
		}
		certs = tlv(explicit(0), tlv(tagSequence, raw...))
	}
	return tlv(tagSequence, tbs, identifier, signature, tamper("certs", certs))
}

func (s *Single) der() []byte {
	tamper := s.Tamper
	if tamper == nil {
		tamper = untampered
	}
	hash := s.Hash
	if hash == 0 {
		hash = crypto.SHA1
	}
	name, key := s.IssuerNameHash, s.IssuerKeyHash
	if name == nil {
		name = sum(hash, s.Issuer.RawSubject)
	}
	if key == nil {
		key = sum(hash, publicKey(s.Issuer))
	}
	serial := s.Serial
	if serial == nil {
		serial = s.Leaf.SerialNumber
	}
	identifier, ok := hashAlgorithms[hash]
	if !ok {
		panic("stapletest: no CertID with " + hash.String())
	}
	certID := tamper("certID", tlv(tagSequence,
		tamper("hashAlgorithm", slices.Clone(identifier)),
		tamper("issuerNameHash", tlv(tagOctetString, name)),
		tamper("issuerKeyHash", tlv(tagOctetString, key)),
		tamper("serialNumber", must(asn1.Marshal(serial)))))

	var status []byte
	switch s.Status {
	case ocsp.Good:
		status = tlv(implicit(0))
	case ocsp.Revoked:
		var reason []byte
		if s.Reason != 0 {
			reason = tlv(explicit(0), tlv(tagEnumerated, []byte{byte(s.Reason)}))
		}
		status = tlv(explicit(1), generalizedTime(s.RevokedAt), reason)
	case ocsp.Unknown:
		status = tlv(implicit(2))
	default:
		panic(fmt.Sprintf("stapletest: no certificate status %d", s.Status))
	}
	status = tamper("certStatus", status)
	thisUpdate := tamper("thisUpdate", generalizedTime(s.ThisUpdate))
	var nextUpdate []byte
	if !s.NextUpdate.IsZero() {
		nextUpdate = tlv(explicit(0), generalizedTime(s.NextUpdate))
	}
	nextUpdate = tamper("nextUpdate", nextUpdate)
	exts := tamper("singleExtensions", extensions(s.Extensions))
	return tamper("singleResponse", tlv(tagSequence, certID, status, thisUpdate, nextUpdate, exts))
}

func untampered(_ string, der []byte) []byte { return der }

// The tags of DER that are needed here.
const (
	tagInteger         = 0x02
	tagBitString       = 0x03
	tagOctetString     = 0x04
	tagNull            = 0x05
	tagEnumerated      = 0x0a
	tagUTCTime         = 0x17
	tagGeneralizedTime = 0x18
	tagSequence        = 0x30
	tagContext         = 0x80
)

// implicit returns the primitive context-specific tag number n.
func implicit(n byte) byte { return tagContext | n }

// explicit returns the constructed context-specific tag number n. (IMPLICIT for a SEQUENCE looks the
// same.)
func explicit(n byte) byte { return tagContext | 0x20 | n }

// tlv encodes one element, whose content is the concatenation of parts.
func tlv(tag byte, parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	der := make([]byte, 0, n+6)
	der = append(der, tag)
	if n < 0x80 {
		der = append(der, byte(n))
	} else {
		size := (bits.Len(uint(n)) + 7) / 8
		der = append(der, 0x80|byte(size))
		for ; size > 0; size-- {
			der = append(der, byte(n>>(8*(size-1))))
		}
	}
	for _, p := range parts {
		der = append(der, p...)
	}
	return der
}

func oid(arcs ...int) []byte { return must(asn1.Marshal(asn1.ObjectIdentifier(arcs))) }

func generalizedTime(t time.Time) []byte {
	return tlv(tagGeneralizedTime, t.UTC().AppendFormat(nil, "20060102150405Z"))
}

// extensions encodes them under the tag [1] that they have everywhere in a response.
func extensions(exts []pkix.Extension) []byte {
	if len(exts) == 0 {
		return nil
	}
	return tlv(explicit(1), must(asn1.Marshal(exts)))
}

// sum hashes what names a key or a certificate, with SHA-1 in FIPS 140-only mode too.
func sum(hash crypto.Hash, data []byte) (s []byte) {
	fips140.WithoutEnforcement(func() {
		h := hash.New()
		h.Write(data)
		s = h.Sum(nil)
	})
	return s
}

// publicKey returns what an issuerKeyHash is over: the subjectPublicKey without its tag, length, and
// count of unused bits.
func publicKey(c *x509.Certificate) []byte {
	spki := cryptobyte.String(c.RawSubjectPublicKeyInfo)
	var key []byte
	if !spki.ReadASN1(&spki, cbasn1.SEQUENCE) || !spki.SkipASN1(cbasn1.SEQUENCE) ||
		!spki.ReadASN1BitStringAsBytes(&key) {
		panic("stapletest: certificate without a public key")
	}
	return key
}

var null = tlv(tagNull)

// hashAlgorithms are the AlgorithmIdentifiers of hashes.
var hashAlgorithms = map[crypto.Hash][]byte{
	crypto.MD5:    tlv(tagSequence, oid(1, 2, 840, 113549, 2, 5), null),
	crypto.SHA1:   tlv(tagSequence, oid(1, 3, 14, 3, 2, 26), null),
	crypto.SHA224: tlv(tagSequence, oid(2, 16, 840, 1, 101, 3, 4, 2, 4), null),
	crypto.SHA256: tlv(tagSequence, oid(2, 16, 840, 1, 101, 3, 4, 2, 1), null),
	crypto.SHA384: tlv(tagSequence, oid(2, 16, 840, 1, 101, 3, 4, 2, 2), null),
	crypto.SHA512: tlv(tagSequence, oid(2, 16, 840, 1, 101, 3, 4, 2, 3), null),
}

// A signatureAlgorithm is an algorithm's AlgorithmIdentifier, kind of key, and hash.
type signatureAlgorithm struct {
	identifier []byte
	key        x509.PublicKeyAlgorithm
	hash       crypto.Hash
	pss        bool
}

var signatureAlgorithms = map[x509.SignatureAlgorithm]signatureAlgorithm{
	x509.MD5WithRSA:       {tlv(tagSequence, oid(1, 2, 840, 113549, 1, 1, 4), null), x509.RSA, crypto.MD5, false},
	x509.SHA1WithRSA:      {tlv(tagSequence, oid(1, 2, 840, 113549, 1, 1, 5), null), x509.RSA, crypto.SHA1, false},
	x509.SHA256WithRSA:    {tlv(tagSequence, oid(1, 2, 840, 113549, 1, 1, 11), null), x509.RSA, crypto.SHA256, false},
	x509.SHA384WithRSA:    {tlv(tagSequence, oid(1, 2, 840, 113549, 1, 1, 12), null), x509.RSA, crypto.SHA384, false},
	x509.SHA512WithRSA:    {tlv(tagSequence, oid(1, 2, 840, 113549, 1, 1, 13), null), x509.RSA, crypto.SHA512, false},
	x509.SHA256WithRSAPSS: {pss(crypto.SHA256, crypto.SHA256, 32), x509.RSA, crypto.SHA256, true},
	x509.SHA384WithRSAPSS: {pss(crypto.SHA384, crypto.SHA384, 48), x509.RSA, crypto.SHA384, true},
	x509.SHA512WithRSAPSS: {pss(crypto.SHA512, crypto.SHA512, 64), x509.RSA, crypto.SHA512, true},
	x509.ECDSAWithSHA1:    {tlv(tagSequence, oid(1, 2, 840, 10045, 4, 1)), x509.ECDSA, crypto.SHA1, false},
	x509.ECDSAWithSHA256:  {tlv(tagSequence, oid(1, 2, 840, 10045, 4, 3, 2)), x509.ECDSA, crypto.SHA256, false},
	x509.ECDSAWithSHA384:  {tlv(tagSequence, oid(1, 2, 840, 10045, 4, 3, 3)), x509.ECDSA, crypto.SHA384, false},
	x509.ECDSAWithSHA512:  {tlv(tagSequence, oid(1, 2, 840, 10045, 4, 3, 4)), x509.ECDSA, crypto.SHA512, false},
	x509.PureEd25519:      {tlv(tagSequence, oid(1, 3, 101, 112)), x509.Ed25519, 0, false},
}

// pss returns the AlgorithmIdentifier of RSASSA-PSS, RFC 4055 s3.1.
func pss(hash, mgf crypto.Hash, salt byte) []byte {
	return tlv(tagSequence, oid(1, 2, 840, 113549, 1, 1, 10), tlv(tagSequence,
		tlv(explicit(0), hashAlgorithms[hash]),
		tlv(explicit(1), tlv(tagSequence, oid(1, 2, 840, 113549, 1, 1, 8), hashAlgorithms[mgf])),
		tlv(explicit(2), tlv(tagInteger, []byte{salt}))))
}

func defaultAlgorithm(public crypto.PublicKey) x509.SignatureAlgorithm {
	switch public := public.(type) {
	case *rsa.PublicKey:
		return x509.SHA256WithRSA
	case ed25519.PublicKey:
		return x509.PureEd25519
	case *ecdsa.PublicKey:
		switch public.Curve.Params().BitSize {
		case 384:
			return x509.ECDSAWithSHA384
		case 521:
			return x509.ECDSAWithSHA512
		}
		return x509.ECDSAWithSHA256
	}
	if a := mldsaAlgorithm(public); a != 0 {
		return a
	}
	panic(fmt.Sprintf("stapletest: cannot sign with a %T", public))
}

func sign(key crypto.Signer, algorithm x509.SignatureAlgorithm, message []byte) []byte {
	a, ok := signatureAlgorithms[algorithm]
	usual := defaultAlgorithm(key.Public())
	if !ok || a.key != signatureAlgorithms[usual].key || a.hash == 0 && algorithm != usual {
		panic(fmt.Sprintf("stapletest: cannot sign by %v with a %T", algorithm, key.Public()))
	}
	var opts crypto.SignerOpts = a.hash
	if a.pss {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: a.hash}
	}
	if a.hash != 0 {
		message = sum(a.hash, message)
	}
	return must(key.Sign(rand.Reader, message, opts))
}
