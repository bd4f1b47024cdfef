package ocspder

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"iter"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"
)

// A Response is a BasicOCSPResponse: read, and not yet believed.
type Response struct {
	TBS              []byte // the element that is signed
	ResponderName    []byte // responderID byName: the Name's DER
	ResponderKeyHash []byte // responderID byKey; exactly one of the two is set
	ProducedAt       time.Time
	Algorithm        x509.SignatureAlgorithm
	Signature        []byte

	raw        []byte            // all of it
	identifier cryptobyte.String // the AlgorithmIdentifier
	certs      cryptobyte.String // the elements of certs, one after the other
}

// A Single is a SingleResponse: what is said about one certificate.
type Single struct {
	Hash                   crypto.Hash // of the CertID; 0: one that is not supported
	NameHash, KeyHash      []byte
	Serial                 []byte // content of the INTEGER
	Status                 int    // of package ocsp
	RevokedAt              time.Time
	Reason                 int
	ThisUpdate, NextUpdate time.Time
	HasNextUpdate          bool
	extensions             cryptobyte.String // the elements of singleExtensions
}

var (
	tag0Constructed = cbasn1.Tag(0).Constructed().ContextSpecific()
	tag1Constructed = cbasn1.Tag(1).Constructed().ContextSpecific()
	tag2Constructed = cbasn1.Tag(2).Constructed().ContextSpecific()

	statusGood    = cbasn1.Tag(0).ContextSpecific()
	statusRevoked = cbasn1.Tag(1).Constructed().ContextSpecific()
	statusUnknown = cbasn1.Tag(2).ContextSpecific()
)

// Read reads an OCSPResponse of the basic type, all of it, and hands each SingleResponse to each. The error of one with
// an error status is an [ocsp.ResponseError], any other an [*Error].
//
// It wants DER, but for what real responders get wrong. Both BoringSSL's pki/ocsp.cc and mozilla::pkix let pass that v1,
// the default, is spelled out, and that the extension with Certificate Transparency's timestamps (RFC 6962 s3.3) is
// marked critical. An empty list of extensions, which RFC 5280 s4.1 forbids, mozilla::pkix lets pass, BoringSSL does not.
func Read(der []byte, each func(Single)) (*Response, error) {
	var outer, wrapped, inner, response cryptobyte.String
	var status int
	input := cryptobyte.String(der)
	if !input.ReadASN1(&outer, cbasn1.SEQUENCE) || !input.Empty() || !outer.ReadASN1Enum(&status) {
		return nil, malformed("not one OCSPResponse in DER: %d bytes that begin with %.8x", len(der), der)
	}
	switch s := ocsp.ResponseStatus(status); s {
	case ocsp.Success:
	case ocsp.Malformed, ocsp.InternalError, ocsp.TryLater, ocsp.SignatureRequired, ocsp.Unauthorized:
		if !outer.Empty() {
			return nil, malformed("status %q with something after it", s)
		}
		return nil, ocsp.ResponseError{Status: s}
	default:
		return nil, malformed("responseStatus is %d, which RFC 6960 does not define", status)
	}
	if !outer.ReadASN1(&wrapped, tag0Constructed) || !outer.Empty() ||
		!wrapped.ReadASN1(&inner, cbasn1.SEQUENCE) || !wrapped.Empty() {
		return nil, malformed("bad responseBytes")
	}
	var responseType cryptobyte.String
	if !readOID(&inner, &responseType) || !inner.ReadASN1(&response, cbasn1.OCTET_STRING) || !inner.Empty() {
		return nil, malformed("bad responseBytes")
	}
	if !bytes.Equal(responseType, oidOCSPBasic) {
		return nil, malformed("the response type is %s, not id-pkix-ocsp-basic", dotted(responseType))
	}

	var basic, data cryptobyte.String
	if !response.ReadASN1(&basic, cbasn1.SEQUENCE) || !response.Empty() {
		return nil, malformed("bad BasicOCSPResponse")
	}
	if !basic.ReadASN1Element(&data, cbasn1.SEQUENCE) {
		return nil, malformed("bad tbsResponseData")
	}
	r := &Response{TBS: data, raw: der}
	data.ReadASN1(&data, cbasn1.SEQUENCE)
	if err := r.readData(&data, each); err != nil {
		return nil, err
	}
	var algorithm cryptobyte.String
	if !basic.ReadASN1Element(&r.identifier, cbasn1.SEQUENCE) {
		return nil, malformed("bad signatureAlgorithm")
	}
	algorithm = r.identifier
	algorithm.ReadASN1(&algorithm, cbasn1.SEQUENCE)
	if !basic.ReadASN1BitStringAsBytes(&r.Signature) {
		return nil, malformed("bad signature, want a BIT STRING without unused bits")
	}
	if basic.PeekASN1Tag(tag0Constructed) {
		if !basic.ReadASN1(&wrapped, tag0Constructed) ||
			!wrapped.ReadASN1(&r.certs, cbasn1.SEQUENCE) || !wrapped.Empty() {
			return nil, malformed("bad certs")
		}
		for certs := r.certs; !certs.Empty(); {
			if !certs.SkipASN1(cbasn1.SEQUENCE) {
				return nil, malformed("bad certs")
			}
		}
	}
	if !basic.Empty() {
		return nil, malformed("BasicOCSPResponse with something after it")
	}
	var err error
	if r.Algorithm, err = readSignatureAlgorithm(&algorithm); err != nil {
		return nil, err
	}
	return r, nil
}

// readData reads the fields of ResponseData.
func (r *Response) readData(s *cryptobyte.String, each func(Single)) error {
	var wrapped, singles cryptobyte.String
	if s.PeekASN1Tag(tag0Constructed) {
		var version int64
		if !s.ReadASN1(&wrapped, tag0Constructed) ||
			!wrapped.ReadASN1Int64WithTag(&version, cbasn1.INTEGER) || !wrapped.Empty() {
			return malformed("bad version")
		}
		if version != 0 {
			return malformed("version is %d, want 0, which is v1", version)
		}
	}
	var tag cbasn1.Tag
	if !s.ReadAnyASN1(&wrapped, &tag) {
		return malformed("bad responderID")
	}
	id := wrapped
	switch tag {
	case tag1Constructed:
		r.ResponderName = wrapped
		if !id.SkipASN1(cbasn1.SEQUENCE) || !id.Empty() {
			return malformed("bad responderID byName")
		}
	case tag2Constructed:
		if !id.ReadASN1Bytes(&r.ResponderKeyHash, cbasn1.OCTET_STRING) || !id.Empty() ||
			len(r.ResponderKeyHash) != crypto.SHA1.Size() {
			return malformed("bad responderID byKey, want a SHA-1 hash")
		}
	default:
		return malformed("bad responderID, neither byName nor byKey")
	}
	if err := readTime(s, &r.ProducedAt, "producedAt"); err != nil {
		return err
	}
	if !s.ReadASN1(&singles, cbasn1.SEQUENCE) {
		return malformed("bad responses")
	}
	for !singles.Empty() {
		var one cryptobyte.String
		if !singles.ReadASN1(&one, cbasn1.SEQUENCE) {
			return malformed("bad SingleResponse")
		}
		var parsed Single
		if err := parsed.read(&one); err != nil {
			return err
		}
		each(parsed)
	}
	if _, err := readExtensions(s, "responseExtensions", nil); err != nil {
		return err
	}
	if !s.Empty() {
		return malformed("tbsResponseData with something after it")
	}
	return nil
}

// read reads the fields of a SingleResponse.
func (p *Single) read(s *cryptobyte.String) error {
	var id, status, wrapped cryptobyte.String
	var algorithm cryptobyte.String
	if !s.ReadASN1(&id, cbasn1.SEQUENCE) || !id.ReadASN1(&algorithm, cbasn1.SEQUENCE) ||
		!readHash(&algorithm, &p.Hash) ||
		!id.ReadASN1Bytes(&p.NameHash, cbasn1.OCTET_STRING) ||
		!id.ReadASN1Bytes(&p.KeyHash, cbasn1.OCTET_STRING) ||
		!id.ReadASN1Bytes(&p.Serial, cbasn1.INTEGER) || !minimal(p.Serial) || !id.Empty() {
		return malformed("bad CertID")
	}
	var tag cbasn1.Tag
	if !s.ReadAnyASN1(&status, &tag) {
		return malformed("bad certStatus")
	}
	switch tag {
	case statusGood:
		p.Status = ocsp.Good
	case statusUnknown:
		p.Status = ocsp.Unknown
	case statusRevoked:
		p.Status = ocsp.Revoked
		if err := readTime(&status, &p.RevokedAt, "revocationTime"); err != nil {
			return err
		}
		// Any reason will do: a reason that nobody knows is no reason to think the certificate good.
		if status.PeekASN1Tag(tag0Constructed) && (!status.ReadASN1(&wrapped, tag0Constructed) ||
			!wrapped.ReadASN1Enum(&p.Reason) || !wrapped.Empty()) {
			return malformed("bad revocationReason")
		}
	default:
		return malformed("bad certStatus: none of good, revoked and unknown")
	}
	if !status.Empty() {
		return malformed("certStatus with something in it that does not belong there")
	}
	if err := readTime(s, &p.ThisUpdate, "thisUpdate"); err != nil {
		return err
	}
	if s.PeekASN1Tag(tag0Constructed) {
		p.HasNextUpdate = true
		if !s.ReadASN1(&wrapped, tag0Constructed) {
			return malformed("bad nextUpdate")
		}
		if err := readTime(&wrapped, &p.NextUpdate, "nextUpdate"); err != nil {
			return err
		}
		if !wrapped.Empty() {
			return malformed("nextUpdate with something after it")
		}
	}
	var err error
	if p.extensions, err = readExtensions(s, "singleExtensions", oidSCTList); err != nil {
		return err
	}
	if !s.Empty() {
		return malformed("SingleResponse with something after it")
	}
	return nil
}

// Certificates returns the DER of each embedded certificate.
func (r *Response) Certificates() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		var one cryptobyte.String
		for certs := r.certs; certs.ReadASN1Element(&one, cbasn1.SEQUENCE) && yield(one); {
		}
	}
}

// Embedded returns the DER of c as it was signed, if it is embedded, with or without something that nobody signed; else
// nil.
func (r *Response) Embedded(c *x509.Certificate) []byte {
	want, err := AsSigned(c.Raw)
	if err != nil {
		return nil
	}
	for der := range r.Certificates() {
		if signed, err := AsSigned(der); err == nil && bytes.Equal(signed, want) {
			return want
		}
	}
	return nil
}

// Names reports whether the responderID names c, whose [KeyHash] is keyHash, RFC 6960 s4.2.2.3.
func (r *Response) Names(c *x509.Certificate, keyHash []byte) bool {
	if r.ResponderName != nil {
		return bytes.Equal(r.ResponderName, c.RawSubject)
	}
	return bytes.Equal(r.ResponderKeyHash, keyHash)
}

// NamesEmbedded reports whether the responderID names e.
func (r *Response) NamesEmbedded(e Embedded) bool {
	if r.ResponderName != nil {
		return bytes.Equal(r.ResponderName, e.Subject)
	}
	return bytes.Equal(r.ResponderKeyHash, sum(crypto.SHA1, publicKey(e.PublicKeyInfo)))
}

// Responder returns the responderID for an error's text.
func (r *Response) Responder() string {
	var name pkix.RDNSequence
	if len(r.ResponderName) > 1024 {
		return "a name too long to tell"
	} else if _, err := asn1.Unmarshal(r.ResponderName, &name); err == nil {
		return fmt.Sprintf("%.100q", name)
	} else if r.ResponderName != nil {
		return fmt.Sprintf("the name %.100x", r.ResponderName)
	}
	return fmt.Sprintf("the holder of a key with hash %x", r.ResponderKeyHash)
}

// Result returns what s says, a part of r, as x/crypto does, but for Raw and Certificate.
func (r *Response) Result(s *Single) *ocsp.Response {
	return &ocsp.Response{
		Status:             s.Status,
		SerialNumber:       s.SerialNumber(),
		ProducedAt:         r.ProducedAt,
		ThisUpdate:         s.ThisUpdate,
		NextUpdate:         s.NextUpdate,
		RevokedAt:          s.RevokedAt,
		RevocationReason:   s.Reason,
		TBSResponseData:    r.TBS,
		Signature:          r.Signature,
		SignatureAlgorithm: r.Algorithm,
		IssuerHash:         s.Hash,
		RawResponderName:   r.ResponderName,
		ResponderKeyHash:   r.ResponderKeyHash,
		Extensions:         pkixExtensions(s.extensions),
	}
}

// End returns the time from which s is no longer current by its own account: its nextUpdate or, without one, maxAge
// after thisUpdate.
func (s *Single) End(maxAge time.Duration) time.Time {
	if s.HasNextUpdate {
		return s.NextUpdate
	}
	return s.ThisUpdate.Add(maxAge)
}

// ClaimedEnd returns the latest End of what der says about leaf or, if that is nil, about any certificate; zero if
// that is nothing. Nobody has verified it: even another CA's certificate counts if it has leaf's serial number.
func ClaimedEnd(der []byte, leaf *x509.Certificate, maxAge time.Duration) (latest time.Time) {
	_, err := Read(der, func(s Single) {
		if leaf != nil && !bytes.Equal(s.Serial, integer(leaf.SerialNumber)) {
			return
		}
		if end := s.End(maxAge); end.After(latest) {
			latest = end
		}
	})
	if err != nil {
		return time.Time{}
	}
	return latest
}

// Revoked returns what a response that nobody has verified says about leaf, and whether that is "revoked": of several
// statements the one with the latest thisUpdate.
func Revoked(der []byte, leaf *x509.Certificate) (latest Single, ok bool) {
	serial := integer(leaf.SerialNumber)
	_, err := Read(der, func(s Single) {
		if bytes.Equal(s.Serial, serial) && (latest.Serial == nil || s.ThisUpdate.After(latest.ThisUpdate)) {
			latest = s
		}
	})
	return latest, err == nil && latest.Status == ocsp.Revoked && latest.Serial != nil
}

// SaysRevoked reports whether a response that nobody has verified says so of any certificate.
func SaysRevoked(der []byte) (revoked bool) {
	_, err := Read(der, func(s Single) { revoked = revoked || s.Status == ocsp.Revoked })
	return err == nil && revoked
}
