package staple

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/fips140"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ocsp"
)

// A Verifier judges OCSP responses. Everything that reaches a handshake or the cache has passed one,
// whether it came from the network, from the cache or with the certificate.
//
// A Verifier must be safe for concurrent use.
type Verifier interface {
	// Verify decides whether response, in DER, is authentic, about leaf, which issuer issued, and
	// current at now. The status of the result may be ocsp.Good, ocsp.Revoked or ocsp.Unknown: acting
	// on it is the Stapler's job.
	//
	// end is the time from which the response is no longer current. It is never zero where err is nil.
	Verify(response []byte, leaf, issuer *x509.Certificate, now time.Time) (r *ocsp.Response, end time.Time, err error)
}

// A ResponseVerifier verifies OCSP responses as RFC 6960 s3.2 and s4.2.2.2 ask. The zero value is ready
// to use, and safe for concurrent use as long as its fields are left alone. It must not be copied after
// first use.
//
// A response is accepted if all of this holds:
//
//   - It is a basic response, version 1, in DER: nothing is left over, nothing unknown is critical, and
//     no extension comes twice.
//   - It speaks about the leaf: hash of the issuer's name, hash of the issuer's key (SHA-1, SHA-256,
//     SHA-384 or SHA-512) and serial number. What it says about other certificates makes no difference,
//     as long as it is well formed and nothing in it is critical and unknown.
//     If it speaks about the leaf more than once, revoked counts before unknown, unknown before good,
//     and then the latest thisUpdate.
//   - It is signed with RSA (PKCS #1 v1.5 or PSS) or ECDSA (P-256, P-384, P-521), with SHA-256, SHA-384
//     or SHA-512, or with Ed25519. RSA keys above 8192 bits are refused.
//   - The signer is the issuer, that is, the issuer's key; or one of Responders; or a delegated
//     responder, whose certificate is among those embedded. The responderID names this signer, by the
//     very bytes of its name or by the hash of its key. Other certificates may be embedded as well.
//   - now is not before thisUpdate or producedAt, but for ClockSkew, and before the end, which is the
//     earlier of nextUpdate and the NotAfter of a signer other than the issuer.
//
// A delegated responder's certificate must be issued by the issuer itself: it has its name and is signed
// by its key. It must list the extended key usage id-kp-OCSPSigning; its key usage, if any, must include
// digitalSignature or nonRepudiation (RFC 5280 s4.2.1.12); it must be valid at now; and it must not have
// critical extensions that crypto/x509 does not know. Where RFC 6960 leaves the choice:
//
//   - A delegate that is a CA is refused. RFC 6960 is silent, BoringSSL accepts it, mozilla::pkix
//     refuses it on purpose, and what one of the large clients refuses should not be stapled.
//   - A delegate without id-pkix-ocsp-nocheck is accepted, and never checked for revocation itself: RFC
//     6960 s4.2.2.2.1 leaves that to local policy, and neither BoringSSL nor mozilla::pkix checks.
//   - A delegate that has expired since it signed is refused: RFC 6960 s3.2 (4) asks for a signer that is
//     currently authorized, and both clients go by the current time.
//
// Of one response, at most eight signatures are checked, its certificates' included. Delegated
// responders are remembered, so that later responses of theirs cost one check instead of two.
type ResponseVerifier struct {
	// ClockSkew is how far thisUpdate and producedAt may lie in the future. Zero: 5 minutes; negative:
	// not at all. It never applies to the end.
	ClockSkew time.Duration

	// MaxAge is how long a response without nextUpdate counts, from its thisUpdate on. Zero: 24 hours,
	// as clients do. Negative: such a response is refused, as RFC 9919 s5 asks.
	MaxAge time.Duration

	// Responders are trusted to sign for every issuer, RFC 6960 s4.2.2.2 (1). Nothing is asked of them
	// but that they are valid.
	Responders []*x509.Certificate

	mu        sync.Mutex
	delegates map[[sha256.Size]byte]*x509.Certificate // by delegateKey; authorized, but for the time
}

const (
	defaultClockSkew   = 5 * time.Minute
	defaultMaxAge      = 24 * time.Hour
	maxSignatureChecks = 8
	maxDelegates       = 1024     // remembered
	maxDelegateSize    = 16 << 10 // of an embedded certificate, before it is parsed
	maxRSABits         = 8192
)

// A Reason tells why a response was refused.
type Reason int

const (
	ReasonMalformed            Reason = iota + 1 // not a basic OCSP response in strict DER, or one that makes no sense
	ReasonUnsuccessful                           // the responder answered with an error status; Err is an ocsp.ResponseError
	ReasonBadSignature                           // the signature does not verify
	ReasonUnauthorizedSigner                     // not signed by the issuer, nor by a responder that it authorized
	ReasonWrongCertificate                       // no statement about this certificate
	ReasonNotYetValid                            // thisUpdate, producedAt or the signer's NotBefore lies in the future
	ReasonExpired                                // nextUpdate, or the end of the signer's certificate, has passed
	ReasonUnsupportedAlgorithm                   // a signature or hash algorithm that is unknown, or too weak
)

// String returns a few words, such as "bad signature".
func (r Reason) String() string {
	switch r {
	case ReasonMalformed:
		return "malformed"
	case ReasonUnsuccessful:
		return "unsuccessful"
	case ReasonBadSignature:
		return "bad signature"
	case ReasonUnauthorizedSigner:
		return "unauthorized signer"
	case ReasonWrongCertificate:
		return "wrong certificate"
	case ReasonNotYetValid:
		return "not yet valid"
	case ReasonExpired:
		return "expired"
	case ReasonUnsupportedAlgorithm:
		return "unsupported algorithm"
	}
	return fmt.Sprintf("Reason(%d)", int(r))
}

// A VerifyError tells why [ResponseVerifier] refused a response.
type VerifyError struct {
	Reason Reason
	Leaf   *x509.Certificate // the certificate that the response should have been about
	Err    error             // what was seen and what was expected
}

func (e *VerifyError) Error() string {
	return fmt.Sprintf("staple: OCSP response for %s refused: %v", describe(e.Leaf), e.Err)
}

func (e *VerifyError) Unwrap() error { return e.Err }

// refuse makes a VerifyError whose Leaf is still to be set.
func refuse(reason Reason, format string, args ...any) error {
	return &VerifyError{Reason: reason, Err: fmt.Errorf(format, args...)}
}

// Verify implements [Verifier]. Every error is a [*VerifyError], and one about a response with an error
// status wraps its [ocsp.ResponseError].
//
// The result is filled in as ocsp.ParseResponseForCert does, but for Certificate: it is the signer's
// certificate if that was embedded, wherever, and otherwise nil. The result shares memory with response
// and, where they signed it, with issuer and the certificates remembered: do not change it.
func (v *ResponseVerifier) Verify(response []byte, leaf, issuer *x509.Certificate, now time.Time) (r *ocsp.Response, end time.Time, err error) {
	r, end, endOf, err := v.verify(response, leaf, issuer, now)
	if err == nil {
		err = current(end, endOf, now)
	}
	if err != nil {
		return nil, time.Time{}, withLeaf(err, leaf)
	}
	return r, end, nil
}

func current(end time.Time, endOf string, now time.Time) error {
	if now.Before(end) {
		return nil
	}
	return refuse(ReasonExpired, "%s was %s, and the clock says %s", endOf, utc(end), utc(now))
}

func withLeaf(err error, leaf *x509.Certificate) error {
	if refused, ok := err.(*VerifyError); ok {
		refused.Leaf = leaf
	}
	return err
}

// verify is Verify, but for comparing the end with now: endOf says what ends then. Its errors lack the
// leaf.
func (v *ResponseVerifier) verify(response []byte, leaf, issuer *x509.Certificate, now time.Time) (
	r *ocsp.Response, end time.Time, endOf string, err error) {
	fail := func(err error) (*ocsp.Response, time.Time, string, error) { return nil, time.Time{}, "", err }
	if leaf == nil || leaf.SerialNumber == nil {
		return fail(refuse(ReasonWrongCertificate, "no certificate was given to verify it for"))
	}
	if issuer == nil {
		return fail(refuse(ReasonUnauthorizedSigner, "nobody is known who may sign it: %w", ErrNoIssuer))
	}
	m := matcher{leaf: leaf, issuer: issuer, serial: integer(leaf.SerialNumber)}
	basic, err := readResponse(response, m.add)
	if err != nil {
		return fail(err)
	}
	if err := m.err(); err != nil {
		return fail(err)
	}
	signer, err := v.signer(basic, &m, now)
	if err != nil {
		return fail(err)
	}

	s := m.best
	skew := v.ClockSkew
	if skew == 0 {
		skew = defaultClockSkew
	}
	latest := now.Add(max(skew, 0))
	if s.thisUpdate.After(latest) {
		return fail(refuse(ReasonNotYetValid, "thisUpdate is %s, and the clock says %s", utc(s.thisUpdate), utc(now)))
	}
	if basic.producedAt.After(latest) {
		return fail(refuse(ReasonNotYetValid, "producedAt is %s, and the clock says %s", utc(basic.producedAt), utc(now)))
	}
	maxAge := v.MaxAge
	if maxAge == 0 {
		maxAge = defaultMaxAge
	}
	switch {
	case s.hasNextUpdate && s.nextUpdate.Before(s.thisUpdate):
		return fail(refuse(ReasonMalformed, "nextUpdate %s is before thisUpdate %s", utc(s.nextUpdate), utc(s.thisUpdate)))
	case s.hasNextUpdate:
		end, endOf = s.nextUpdate, "nextUpdate"
	case maxAge < 0:
		return fail(refuse(ReasonMalformed, "no nextUpdate, which RFC 9919 s5 demands"))
	default:
		end, endOf = s.thisUpdate.Add(maxAge), "the end of the time to trust it without nextUpdate"
	}
	if signer != issuer && signer.NotAfter.Before(end) {
		end, endOf = signer.NotAfter, "the end of its signer's certificate"
	}
	r = basic.response(&s)
	r.Raw = response
	for der := range basic.certificates() {
		switch {
		case bytes.Equal(der, signer.Raw):
			r.Certificate = signer
		case len(signer.Raw) > 0 && len(signer.Signature) > 0 && // RFC 9925: a trust anchor may be unsigned
			(bytes.Contains(der, signer.RawTBSCertificate) || bytes.Contains(der, signer.Signature)):
			// Nothing signs what is embedded. A client may stumble over it where we do not.
			return fail(refuse(ReasonMalformed, "the embedded copy of its signer's certificate is damaged"))
		}
	}
	return r, end, endOf, nil
}

// A matcher picks the SingleResponse that counts for a leaf.
type matcher struct {
	leaf, issuer *x509.Certificate
	serial       []byte                  // leaf's, the content of the INTEGER
	sums         [crypto.SHA512 + 1]sums // once they are needed

	best  single
	found bool

	near   error  // why one with the leaf's serial number does not match
	others int    // how many have another one
	other  []byte // the first of these
}

type sums struct{ name, key []byte }

// add takes the next SingleResponse.
func (m *matcher) add(s single) {
	if !m.matches(&s) {
		return
	}
	severity := [...]int{ocsp.Good: 0, ocsp.Unknown: 1, ocsp.Revoked: 2}
	if !m.found || cmp.Or(
		cmp.Compare(severity[s.status], severity[m.best.status]),
		s.thisUpdate.Compare(m.best.thisUpdate),
		s.nextUpdate.Compare(m.best.nextUpdate)) > 0 {
		m.best, m.found = s, true
	}
}

func (m *matcher) matches(s *single) bool {
	if !bytes.Equal(s.serial, m.serial) {
		if m.others++; m.others == 1 {
			m.other = s.serial
		}
		return false
	}
	if s.hash != 0 {
		if sums := m.issuerSums(s.hash); bytes.Equal(s.nameHash, sums.name) && bytes.Equal(s.keyHash, sums.key) {
			return true
		}
	}
	if m.near == nil {
		m.near = m.mismatch(s)
	}
	return false
}

// mismatch says why s, with leaf's serial number, does not match.
func (m *matcher) mismatch(s *single) error {
	const same = "it is about a certificate with the same serial number, but "
	if s.hash == 0 {
		return refuse(ReasonUnsupportedAlgorithm, same+"its CertID uses an unknown hash algorithm")
	}
	if sums := m.issuerSums(s.hash); !bytes.Equal(s.nameHash, sums.name) {
		return refuse(ReasonWrongCertificate, same+"another issuer's name: issuerNameHash %.64x, want %x", s.nameHash, sums.name)
	}
	return refuse(ReasonWrongCertificate, same+"another issuer's key: issuerKeyHash %.64x, want %x", s.keyHash, m.issuerSums(s.hash).key)
}

// issuerSums returns the hashes that a CertID of leaf has.
func (m *matcher) issuerSums(h crypto.Hash) sums {
	if m.sums[h].name == nil {
		m.sums[h] = sums{name: sum(h, m.leaf.RawIssuer), key: sum(h, publicKey(m.issuer))}
	}
	return m.sums[h]
}

// err says why nothing was found.
func (m *matcher) err() error {
	switch {
	case m.found:
		return nil
	case m.near != nil:
		return m.near
	case m.others == 0:
		return refuse(ReasonWrongCertificate, "it is about no certificate")
	case m.others == 1:
		return refuse(ReasonWrongCertificate, "it is about the certificate with serial %s", colons(m.other))
	default:
		return refuse(ReasonWrongCertificate, "it is about %d other certificates, the first with serial %s",
			m.others, colons(m.other))
	}
}

// sum hashes data with one of hashOIDs.
func sum(h crypto.Hash, data []byte) []byte {
	switch h {
	case crypto.SHA1:
		return sumSHA1(data)
	case crypto.SHA256:
		s := sha256.Sum256(data)
		return s[:]
	case crypto.SHA384:
		s := sha512.Sum384(data)
		return s[:]
	default:
		s := sha512.Sum512(data)
		return s[:]
	}
}

// sumSHA1 works in FIPS 140-only mode too, which forbids SHA-1: here it names keys and
// certificates, and nothing rests on its strength.
func sumSHA1(data []byte) []byte {
	if fips140.Enforced() {
		var s []byte
		fips140.WithoutEnforcement(func() { s = sumSHA1(data) })
		return s
	}
	s := sha1.Sum(data)
	return s[:]
}

// signer returns who signed r and may do so: issuer, one of v.Responders, or a delegated responder. One
// that has expired is returned, too, unless there is another: its NotAfter bounds the end.
//
// What counts is whose key verifies the signature. The responderID, which whoever signs can choose, only
// tells which keys need not be tried.
func (v *ResponseVerifier) signer(r *basicResponse, m *matcher, now time.Time) (*x509.Certificate, error) {
	issuer := m.issuer
	s := search{basicResponse: r, issuer: issuer, now: now}
	if r.names(issuer, m.issuerSums(crypto.SHA1).key) && s.check(issuer, nil) {
		return issuer, nil
	}
	for _, c := range v.Responders {
		if c != nil && r.names(c, sum(crypto.SHA1, publicKey(c))) && s.signedBy(c) {
			return c, nil
		}
	}
	// Those that may be a delegate come first. The others cannot be one, but tell what is wrong.
	parsed := 0
	for _, likely := range []bool{true, false} {
		for der := range r.certificates() {
			if likely != (bytes.Contains(der, issuer.RawSubject) && bytes.Contains(der, oidOCSPSigning) &&
				bytes.Contains(der, r.responderName)) {
				continue
			}
			key := delegateKey(issuer, der)
			c, known := v.delegate(key)
			if !known {
				if parsed++; parsed > maxSignatureChecks {
					break
				}
				var err error
				if c, err = parseDelegate(der); err != nil {
					s.refuse(ReasonUnauthorizedSigner, "an embedded certificate of %d bytes is not used: %.200q", len(der), err)
					continue
				}
			}
			if !r.names(c, sum(crypto.SHA1, publicKey(c))) {
				continue
			}
			if !known {
				if !s.authorized(c) {
					continue
				}
				v.remember(key, c)
			}
			if s.signedBy(c) {
				return c, nil
			}
		}
	}
	switch {
	case s.expired != nil:
		return s.expired, nil
	case s.why == nil:
		s.refuse(ReasonUnauthorizedSigner, "signed by %s, which is neither the issuer %s, nor a local or embedded responder",
			r.responderID(), describe(issuer))
	}
	return nil, s.why
}

// A search looks for the signer of a response.
type search struct {
	*basicResponse
	issuer  *x509.Certificate
	now     time.Time
	checks  int               // signatures checked
	expired *x509.Certificate // signed it, but is no longer valid
	why     error             // the first refusal of a candidate, the most telling
}

func (s *search) refuse(reason Reason, format string, args ...any) bool {
	if s.why == nil {
		s.why = refuse(reason, format, args...)
	}
	return false
}

// authorized reports whether c is the certificate of a delegated responder of the issuer's, at whatever
// time.
func (s *search) authorized(c *x509.Certificate) bool {
	const unauthorized = ReasonUnauthorizedSigner
	const signing = x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment
	switch {
	case !bytes.Equal(c.RawIssuer, s.issuer.RawSubject):
		return s.refuse(unauthorized, "signed by %s, which was issued by %.100q, not by the issuer %s",
			describe(c), c.Issuer, describe(s.issuer))
	case !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning):
		return s.refuse(unauthorized, "signed by %s, which lacks the extended key usage OCSPSigning", describe(c))
	case c.IsCA:
		return s.refuse(unauthorized, "signed by %s, which is a CA, but not the issuer %s", describe(c), describe(s.issuer))
	case hasKeyUsage(c) && c.KeyUsage&signing == 0:
		return s.refuse(unauthorized, "signed by %s, whose key usage lacks digitalSignature", describe(c))
	}
	for _, oid := range c.UnhandledCriticalExtensions {
		if !oid.Equal(oidNoCheck) {
			return s.refuse(unauthorized, "signed by %s, which has the unknown critical extension %.100s", describe(c), oid)
		}
	}
	return s.check(s.issuer, c)
}

func hasKeyUsage(c *x509.Certificate) bool {
	return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidKeyUsage) })
}

// signedBy reports whether c signed the response, and is valid.
func (s *search) signedBy(c *x509.Certificate) bool {
	if s.now.Before(c.NotBefore) {
		return s.refuse(ReasonNotYetValid, "signed by %s, which is not valid before %s, and the clock says %s",
			describe(c), utc(c.NotBefore), utc(s.now))
	}
	if !s.check(c, nil) {
		return false
	}
	if !s.now.Before(c.NotAfter) {
		s.expired = c
		return false
	}
	return true
}

// check reports whether key's key verifies the signature of cert or, if that is nil, of the response.
func (s *search) check(key, cert *x509.Certificate) bool {
	if s.checks++; s.checks > maxSignatureChecks {
		return s.refuse(ReasonUnauthorizedSigner, "no signer found within %d signature checks", maxSignatureChecks)
	}
	if cert == nil {
		reason, err := checkSignature(key, s.algorithm, s.tbs, s.signature)
		return err == nil || s.refuse(reason, "its signature does not verify with the key of %s: %w", describe(key), err)
	}
	reason, err := checkSignature(key, cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature)
	if reason == ReasonBadSignature {
		reason = ReasonUnauthorizedSigner
	}
	return err == nil || s.refuse(reason, "signed by %s, whose certificate does not verify with the key of the issuer %s: %w",
		describe(cert), describe(key), err)
}

// checkSignature is c.CheckSignature for the algorithms and keys that count.
func checkSignature(c *x509.Certificate, a x509.SignatureAlgorithm, signed, signature []byte) (Reason, error) {
	switch a {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
		x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.PureEd25519:
	default:
		return ReasonUnsupportedAlgorithm, fmt.Errorf("%v is unknown or too weak, want SHA-256, SHA-384, SHA-512 or Ed25519", a)
	}
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n > maxRSABits {
			return ReasonUnsupportedAlgorithm, fmt.Errorf("an RSA key of %d bits, want %d at most", n, maxRSABits)
		}
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P224() {
			return ReasonUnsupportedAlgorithm, errors.New("an ECDSA key on P-224, want P-256, P-384 or P-521")
		}
	case ed25519.PublicKey:
	default:
		return ReasonUnsupportedAlgorithm, errors.New("a key of an unknown kind, want RSA, ECDSA or Ed25519")
	}
	return ReasonBadSignature, c.CheckSignature(a, signed, signature)
}

// parseDelegate parses an embedded certificate. The result shares no memory with der, for it may be
// remembered.
func parseDelegate(der []byte) (*x509.Certificate, error) {
	if len(der) > maxDelegateSize {
		return nil, fmt.Errorf("larger than %d bytes", maxDelegateSize)
	}
	return x509.ParseCertificate(bytes.Clone(der))
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

func (v *ResponseVerifier) delegate(key [sha256.Size]byte) (c *x509.Certificate, known bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	c, known = v.delegates[key]
	return c, known
}

func (v *ResponseVerifier) remember(key [sha256.Size]byte, c *x509.Certificate) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.delegates == nil || len(v.delegates) >= maxDelegates {
		v.delegates = make(map[[sha256.Size]byte]*x509.Certificate)
	}
	v.delegates[key] = c
}

// names reports whether the responderID names c, the SHA-1 hash of whose key is keyHash, RFC 6960
// s4.2.2.3.
func (r *basicResponse) names(c *x509.Certificate, keyHash []byte) bool {
	if r.responderName != nil {
		return bytes.Equal(r.responderName, c.RawSubject)
	}
	return bytes.Equal(r.responderKeyHash, keyHash)
}

// responderID returns the responderID for an error's text.
func (r *basicResponse) responderID() string {
	var name pkix.RDNSequence
	if len(r.responderName) > 1024 {
		return "a name too long to tell"
	} else if _, err := asn1.Unmarshal(r.responderName, &name); err == nil {
		return fmt.Sprintf("%.100q", name)
	} else if r.responderName != nil {
		return fmt.Sprintf("the name %.100x", r.responderName)
	}
	return fmt.Sprintf("the holder of a key with hash %x", r.responderKeyHash)
}

// response returns what s says as x/crypto does.
func (r *basicResponse) response(s *single) *ocsp.Response {
	return &ocsp.Response{
		Status:             s.status,
		SerialNumber:       s.serialNumber(),
		ProducedAt:         r.producedAt,
		ThisUpdate:         s.thisUpdate,
		NextUpdate:         s.nextUpdate,
		RevokedAt:          s.revokedAt,
		RevocationReason:   s.reason,
		TBSResponseData:    r.tbs,
		Signature:          r.signature,
		SignatureAlgorithm: r.algorithm,
		IssuerHash:         s.hash,
		RawResponderName:   r.responderName,
		ResponderKeyHash:   r.responderKeyHash,
		Extensions:         pkixExtensions(s.extensions),
	}
}

// describe names a certificate in errors and logs, in few and printable characters: its subject, or else
// its first name, and its serial number.
func describe(c *x509.Certificate) string {
	if c == nil {
		return "no certificate"
	}
	name := c.Subject.String()
	switch {
	case name != "":
	case len(c.DNSNames) > 0:
		name = c.DNSNames[0]
	case len(c.IPAddresses) > 0:
		name = c.IPAddresses[0].String()
	}
	serial := "unknown"
	if c.SerialNumber != nil {
		serial = colons(integer(c.SerialNumber))
	}
	return fmt.Sprintf("%.100q (serial %s)", name, serial)
}

// colons returns the content of an INTEGER as certificate viewers show it: 04:a1:3f.
func colons(b []byte) string {
	if len(b) > 1 && b[0] == 0 {
		b = b[1:]
	}
	if len(b) > 20 {
		return colons(b[:20]) + "..."
	}
	return strings.ReplaceAll(fmt.Sprintf("% x", b), " ", ":")
}

func utc(t time.Time) string { return t.UTC().Format(time.RFC3339) }
