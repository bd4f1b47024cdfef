package staple

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"iter"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"
)

// A basicResponse is a BasicOCSPResponse, RFC 6960 s4.2.1: read, and not yet believed. Its slices are
// parts of the DER it was read from.
type basicResponse struct {
	tbs              []byte // the element that is signed
	responderName    []byte // responderID byName: the Name's DER
	responderKeyHash []byte // responderID byKey; exactly one of the two is set
	producedAt       time.Time
	algorithm        x509.SignatureAlgorithm
	signature        []byte
	certs            cryptobyte.String // the elements of certs, one after the other
}

// A single is a SingleResponse.
type single struct {
	hash                   crypto.Hash // 0: one that is not supported
	nameHash, keyHash      []byte
	serial                 []byte // content of the INTEGER
	status                 int    // of package ocsp
	revokedAt              time.Time
	reason                 int
	thisUpdate, nextUpdate time.Time
	hasNextUpdate          bool
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

var (
	oidNoCheck  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5} // id-pkix-ocsp-nocheck
	oidKeyUsage = asn1.ObjectIdentifier{2, 5, 29, 15}
)

// The content of the OBJECT IDENTIFIERs that are looked for in DER.
var (
	oidOCSPBasic   = []byte{0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1}                // 1.3.6.1.5.5.7.48.1.1
	oidOCSPSigning = []byte{6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 9}                // 1.3.6.1.5.5.7.3.9, with tag and length
	oidSCTList     = []byte{0x2b, 6, 1, 4, 1, 0xd6, 0x79, 2, 4, 5}          // 1.3.6.1.4.1.11129.2.4.5
	oidMGF1        = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 8}    // 1.2.840.113549.1.1.8
	oidRSAPSS      = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0a} // 1.2.840.113549.1.1.10
	signatureOIDs  = []struct {
		oid       []byte
		algorithm x509.SignatureAlgorithm
	}{
		{[]byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2}, x509.ECDSAWithSHA256},
		{[]byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3}, x509.ECDSAWithSHA384},
		{[]byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4}, x509.ECDSAWithSHA512},
		{[]byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1}, x509.ECDSAWithSHA1},
		{[]byte{0x2b, 0x65, 0x70}, x509.PureEd25519},
		{[]byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0b}, x509.SHA256WithRSA},
		{[]byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0c}, x509.SHA384WithRSA},
		{[]byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0d}, x509.SHA512WithRSA},
		{[]byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 5}, x509.SHA1WithRSA},
		{[]byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 4}, x509.MD5WithRSA},
		{[]byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 2}, x509.MD2WithRSA},
	}
	hashOIDs = []struct {
		oid  []byte
		hash crypto.Hash
	}{
		{[]byte{0x2b, 0x0e, 3, 2, 0x1a}, crypto.SHA1},
		{[]byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1}, crypto.SHA256},
		{[]byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2}, crypto.SHA384},
		{[]byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3}, crypto.SHA512},
	}
)

func malformed(format string, args ...any) error {
	return refuse(ReasonMalformed, format, args...)
}

// readResponse reads an OCSPResponse of the basic type, all of it, and hands each SingleResponse to
// each. It wants DER, but for two things that real responders get wrong and that both BoringSSL's
// pki/ocsp.cc and mozilla::pkix let pass: v1, the default, may be spelled out, and the extension with
// Certificate Transparency's timestamps (RFC 6962 s3.3) may be marked critical. An empty list of
// extensions, which mozilla::pkix lets pass and RFC 5280 s4.1 forbids, is refused.
func readResponse(der []byte, each func(single)) (*basicResponse, error) {
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
		return nil, &VerifyError{Reason: ReasonUnsuccessful, Err: ocsp.ResponseError{Status: s}}
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
	r := &basicResponse{tbs: data}
	data.ReadASN1(&data, cbasn1.SEQUENCE)
	if err := r.readData(&data, each); err != nil {
		return nil, err
	}
	var algorithm cryptobyte.String
	if !basic.ReadASN1(&algorithm, cbasn1.SEQUENCE) {
		return nil, malformed("bad signatureAlgorithm")
	}
	if !basic.ReadASN1BitStringAsBytes(&r.signature) {
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
	if r.algorithm, err = readSignatureAlgorithm(&algorithm); err != nil {
		return nil, err
	}
	return r, nil
}

// readData reads the fields of ResponseData.
func (r *basicResponse) readData(s *cryptobyte.String, each func(single)) error {
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
		r.responderName = wrapped
		if !id.SkipASN1(cbasn1.SEQUENCE) || !id.Empty() {
			return malformed("bad responderID byName")
		}
	case tag2Constructed:
		if !id.ReadASN1Bytes(&r.responderKeyHash, cbasn1.OCTET_STRING) || !id.Empty() ||
			len(r.responderKeyHash) != crypto.SHA1.Size() {
			return malformed("bad responderID byKey, want a SHA-1 hash")
		}
	default:
		return malformed("bad responderID, neither byName nor byKey")
	}
	if err := readTime(s, &r.producedAt, "producedAt"); err != nil {
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
		var parsed single
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
func (p *single) read(s *cryptobyte.String) error {
	var id, status, wrapped cryptobyte.String
	var algorithm cryptobyte.String
	if !s.ReadASN1(&id, cbasn1.SEQUENCE) || !id.ReadASN1(&algorithm, cbasn1.SEQUENCE) ||
		!readHash(&algorithm, &p.hash) ||
		!id.ReadASN1Bytes(&p.nameHash, cbasn1.OCTET_STRING) ||
		!id.ReadASN1Bytes(&p.keyHash, cbasn1.OCTET_STRING) ||
		!id.ReadASN1Bytes(&p.serial, cbasn1.INTEGER) || !minimal(p.serial) || !id.Empty() {
		return malformed("bad CertID")
	}
	var tag cbasn1.Tag
	if !s.ReadAnyASN1(&status, &tag) {
		return malformed("bad certStatus")
	}
	switch tag {
	case statusGood:
		p.status = ocsp.Good
	case statusUnknown:
		p.status = ocsp.Unknown
	case statusRevoked:
		p.status = ocsp.Revoked
		if err := readTime(&status, &p.revokedAt, "revocationTime"); err != nil {
			return err
		}
		// Any reason will do: a reason that nobody knows is no reason to think the certificate good.
		if status.PeekASN1Tag(tag0Constructed) && (!status.ReadASN1(&wrapped, tag0Constructed) ||
			!wrapped.ReadASN1Enum(&p.reason) || !wrapped.Empty()) {
			return malformed("bad revocationReason")
		}
	default:
		return malformed("bad certStatus: none of good, revoked and unknown")
	}
	if !status.Empty() {
		return malformed("certStatus with something in it that does not belong there")
	}
	if err := readTime(s, &p.thisUpdate, "thisUpdate"); err != nil {
		return err
	}
	if s.PeekASN1Tag(tag0Constructed) {
		p.hasNextUpdate = true
		if !s.ReadASN1(&wrapped, tag0Constructed) {
			return malformed("bad nextUpdate")
		}
		if err := readTime(&wrapped, &p.nextUpdate, "nextUpdate"); err != nil {
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

// maxExtensions bounds a list of extensions, and with it the search for doubles.
const maxExtensions = 16

// readExtensions reads the optional [1] EXPLICIT Extensions (RFC 5280 s4.1) and returns the elements
// of the list. None but known may be critical.
func readExtensions(s *cryptobyte.String, name string, known []byte) (cryptobyte.String, error) {
	if !s.PeekASN1Tag(tag1Constructed) {
		return nil, nil
	}
	var wrapped, list cryptobyte.String
	if !s.ReadASN1(&wrapped, tag1Constructed) || !wrapped.ReadASN1(&list, cbasn1.SEQUENCE) ||
		!wrapped.Empty() { // RFC 5280 wants one or more, but HashiCorp Vault sends an empty list
		return nil, malformed("bad %s", name)
	}
	var seen [maxExtensions]cryptobyte.String
	n := 0
	for rest := list; !rest.Empty(); n++ {
		var e extension
		if !e.read(&rest) {
			return nil, malformed("bad %s", name)
		}
		if e.critical && !bytes.Equal(e.oid, known) {
			return nil, malformed("unknown critical extension %s in %s", dotted(e.oid), name)
		}
		if n == maxExtensions {
			return nil, malformed("more than %d extensions in %s", maxExtensions, name)
		}
		for _, other := range seen[:n] {
			if bytes.Equal(e.oid, other) {
				return nil, malformed("extension %s twice in %s", dotted(e.oid), name)
			}
		}
		seen[n] = e.oid
	}
	return list, nil
}

type extension struct {
	oid, value cryptobyte.String
	critical   bool
}

func (e *extension) read(s *cryptobyte.String) bool {
	var one cryptobyte.String
	if !s.ReadASN1(&one, cbasn1.SEQUENCE) || !readOID(&one, &e.oid) {
		return false
	}
	if one.PeekASN1Tag(cbasn1.BOOLEAN) && (!one.ReadASN1Boolean(&e.critical) || !e.critical) {
		return false // FALSE is the default: DER leaves it out
	}
	return one.ReadASN1(&e.value, cbasn1.OCTET_STRING) && one.Empty()
}

// pkixExtensions converts the elements of a list that readExtensions has read. Those whose OID has an
// arc above 2³¹, which a pkix.Extension cannot hold, are left out.
func pkixExtensions(list cryptobyte.String) []pkix.Extension {
	var all []pkix.Extension
	for !list.Empty() {
		var e extension
		if !e.read(&list) {
			break
		}
		if id := objectIdentifier(e.oid); id != nil {
			all = append(all, pkix.Extension{Id: id, Critical: e.critical, Value: e.value})
		}
	}
	return all
}

// readSignatureAlgorithm reads the fields of the AlgorithmIdentifier of a signature. Parameters are as RFC 4055, RFC
// 5758 and RFC 8410 ask: absent, but for RSA.
func readSignatureAlgorithm(s *cryptobyte.String) (x509.SignatureAlgorithm, error) {
	var oid cryptobyte.String
	if !readOID(s, &oid) {
		return 0, malformed("bad signatureAlgorithm")
	}
	if bytes.Equal(oid, oidRSAPSS) {
		return readPSS(s)
	}
	for _, known := range signatureOIDs {
		if !bytes.Equal(oid, known.oid) {
			continue
		}
		if len(oid) == len(oidRSAPSS) { // of RSA, RFC 4055 s5: NULL, but absent must be accepted, too
			skipNULL(s)
		}
		if !s.Empty() {
			return 0, malformed("bad signatureAlgorithm: %s with parameters that do not belong there", known.algorithm)
		}
		return known.algorithm, nil
	}
	return 0, refuse(ReasonUnsupportedAlgorithm, "signed with the unknown algorithm %s", dotted(oid))
}

// readPSS reads RSASSA-PSS-params, RFC 4055 s3.1: one hash throughout, a salt of its length.
func readPSS(s *cryptobyte.String) (x509.SignatureAlgorithm, error) {
	var params, wrapped, identifier, mgf cryptobyte.String
	var hash, mgfHash crypto.Hash
	var salt int64
	if !s.ReadASN1(&params, cbasn1.SEQUENCE) || !s.Empty() {
		return 0, malformed("bad parameters of RSASSA-PSS")
	}
	ok := params.ReadASN1(&wrapped, tag0Constructed) && wrapped.ReadASN1(&identifier, cbasn1.SEQUENCE) &&
		wrapped.Empty() && readHash(&identifier, &hash) &&
		params.ReadASN1(&wrapped, tag1Constructed) && wrapped.ReadASN1(&identifier, cbasn1.SEQUENCE) &&
		wrapped.Empty() && identifier.ReadASN1(&mgf, cbasn1.OBJECT_IDENTIFIER) && bytes.Equal(mgf, oidMGF1) &&
		identifier.ReadASN1(&mgf, cbasn1.SEQUENCE) && identifier.Empty() && readHash(&mgf, &mgfHash) &&
		params.ReadASN1(&wrapped, tag2Constructed) && wrapped.ReadASN1Int64WithTag(&salt, cbasn1.INTEGER) &&
		wrapped.Empty() && params.Empty()
	if ok && hash == mgfHash {
		switch {
		case hash == crypto.SHA256 && salt == 32:
			return x509.SHA256WithRSAPSS, nil
		case hash == crypto.SHA384 && salt == 48:
			return x509.SHA384WithRSAPSS, nil
		case hash == crypto.SHA512 && salt == 64:
			return x509.SHA512WithRSAPSS, nil
		}
	}
	return 0, refuse(ReasonUnsupportedAlgorithm, "signed with RSASSA-PSS with other parameters than "+
		"SHA-256, SHA-384 or SHA-512, MGF1 with the same hash, and a salt of that length")
}

// readHash reads the fields of the AlgorithmIdentifier of a hash, whose parameters are absent or NULL
// (RFC 4055 s2.1). A hash that is not supported comes out as 0, whatever its parameters.
func readHash(s *cryptobyte.String, hash *crypto.Hash) bool {
	var oid, ignored cryptobyte.String
	if !readOID(s, &oid) {
		return false
	}
	for _, known := range hashOIDs {
		if bytes.Equal(oid, known.oid) {
			*hash = known.hash
			skipNULL(s)
			return s.Empty()
		}
	}
	var tag cbasn1.Tag
	return s.Empty() || s.ReadAnyASN1(&ignored, &tag) && s.Empty()
}

func skipNULL(s *cryptobyte.String) {
	if bytes.HasPrefix(*s, asn1.NullBytes) {
		s.Skip(len(asn1.NullBytes))
	}
}

// readTime reads a GeneralizedTime in the one form that RFC 5280 s4.1.2.5.2 allows. It is several times
// as fast as time.Parse, which matters here, beside a signature with RSA.
func readTime(s *cryptobyte.String, t *time.Time, name string) error {
	const form = "YYYYMMDDHHMMSSZ"
	var content cryptobyte.String
	if !s.ReadASN1(&content, cbasn1.GeneralizedTime) {
		return malformed("bad %s, want a GeneralizedTime", name)
	}
	var n [7]int // of two digits each
	ok := len(content) == len(form) && content[14] == 'Z'
	for i := 0; ok && i < 14; i++ {
		ok = '0' <= content[i] && content[i] <= '9'
		n[i/2] = n[i/2]*10 + int(content[i]-'0')
	}
	month := time.Month(n[2])
	*t = time.Date(n[0]*100+n[1], month, n[3], n[4], n[5], n[6], 0, time.UTC)
	// time.Date takes February 30 for March 1 or 2.
	if !ok || t.Month() != month || n[4] > 23 || n[5] > 59 || n[6] > 59 {
		return malformed("%s is %q, want %s", name, content[:min(len(content), 32)], form)
	}
	return nil
}

// readOID reads the content of an OBJECT IDENTIFIER, with arcs of any size.
func readOID(s, oid *cryptobyte.String) bool {
	if !s.ReadASN1(oid, cbasn1.OBJECT_IDENTIFIER) || oid.Empty() {
		return false
	}
	first := true // of an arc's octets
	for _, b := range *oid {
		if first && b == 0x80 {
			return false
		}
		first = b < 0x80
	}
	return first
}

// minimal reports whether content is that of an INTEGER in DER.
func minimal(content []byte) bool {
	return len(content) == 1 || len(content) > 1 &&
		!(content[0] == 0 && content[1] < 0x80) && !(content[0] == 0xff && content[1] >= 0x80)
}

// integer returns the content of an INTEGER in DER.
func integer(n *big.Int) []byte {
	abs := n
	if n.Sign() < 0 {
		abs = new(big.Int).Not(n)
	}
	b := abs.FillBytes(make([]byte, abs.BitLen()/8+1))
	if n.Sign() < 0 { // two's complement
		for i := range b {
			b[i] = ^b[i]
		}
	}
	return b
}

// serialNumber converts serial.
func (p *single) serialNumber() *big.Int {
	n := new(big.Int).SetBytes(p.serial)
	if p.serial[0] >= 0x80 { // two's complement
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(p.serial))))
	}
	return n
}

// objectIdentifier converts the content of an OBJECT IDENTIFIER. It returns nil where an arc is too
// large for the result.
func objectIdentifier(content []byte) asn1.ObjectIdentifier {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(content) })
	s := cryptobyte.String(b.BytesOrPanic())
	var id asn1.ObjectIdentifier
	s.ReadASN1ObjectIdentifier(&id)
	return id
}

// dotted returns the content of an OBJECT IDENTIFIER for an error's text.
func dotted(content []byte) string {
	if len(content) <= 32 {
		if id := objectIdentifier(content); id != nil {
			return id.String()
		}
	}
	return fmt.Sprintf("OID(%.32x)", content)
}

// certificates returns the DER of each embedded certificate.
func (r *basicResponse) certificates() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		var one cryptobyte.String
		for certs := r.certs; certs.ReadASN1Element(&one, cbasn1.SEQUENCE) && yield(one); {
		}
	}
}

// publicKey returns what hashes of a certificate's key are over: its subjectPublicKey without tag,
// length and count of unused bits.
func publicKey(c *x509.Certificate) []byte {
	var key []byte
	s := cryptobyte.String(c.RawSubjectPublicKeyInfo)
	if !s.ReadASN1(&s, cbasn1.SEQUENCE) || !s.SkipASN1(cbasn1.SEQUENCE) || !s.ReadASN1BitStringAsBytes(&key) {
		return nil
	}
	return key
}
