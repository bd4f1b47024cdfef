package staple

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/go-staple/staple/internal/hold"
	"github.com/go-staple/staple/internal/muststaple"
	"github.com/go-staple/staple/internal/name"
	"github.com/go-staple/staple/internal/ocspder"
	"github.com/go-staple/staple/internal/signer"
	"github.com/go-staple/staple/internal/wall"
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
	// The result's Raw, if set, is what to staple and store in place of response, provided that Verify
	// accepts it, too: see [ResponseVerifier]. Otherwise that is response itself.
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
//     or SHA-512, or with Ed25519. RSA keys above 8192 bits are refused. Built with Go 1.27 or newer, it
//     may be signed with ML-DSA (RFC 9881), too.
//   - The signer is the issuer, that is, the issuer's key; or one of Responders; or a delegated
//     responder, whose certificate is among those embedded. The responderID names this signer, by the
//     very bytes of its name or by the hash of its key. What else is embedded makes no difference.
//   - now is not before thisUpdate, but for ClockSkew, and before the end, which is the earlier of
//     nextUpdate and the NotAfter of a signer other than the issuer. What producedAt says makes no
//     difference, as RFC 6960 s3.2 has it, but like thisUpdate it must not lie before 1970.
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
//   - A delegate that the responderID names by the issuer's own name is refused, since mozilla::pkix
//     takes the issuer for the signer then.
//   - A delegate that has expired since it signed is refused: RFC 6960 s3.2 (4) asks for a signer that is
//     currently authorized, and both clients go by the current time.
//
// Of one response, at most eight signatures are checked, its certificates' included, and as many
// certificates parsed. Delegated responders are remembered, so that later responses of theirs cost one
// check instead of two; no verdict depends on that.
//
// Nobody signs the list of embedded certificates, nor what surrounds the parts that are signed, and what
// somebody put there may make clients refuse the whole. So the result's Raw is trimmed: it says the same,
// is in strict DER throughout, and embeds the signer's certificate alone, exactly as it was signed, or
// none if the issuer signed. It is what to staple. To verify Raw gives the same result, Raw unchanged.
type ResponseVerifier struct {
	// ClockSkew is how far thisUpdate may lie in the future. Zero: 5 minutes; negative: not at all. It
	// never applies to the end.
	ClockSkew time.Duration

	// MaxAge is how long a response without nextUpdate counts, from its thisUpdate on. Zero: 24 hours,
	// as clients do. Negative: such a response is refused, as RFC 9919 s5 asks.
	MaxAge time.Duration

	// Responders are trusted to sign for every issuer, RFC 6960 s4.2.2.2 (1). Nothing is asked of them
	// but that they are valid. One that is a CA vouches for the delegated responders that it issued, by
	// the rules for an issuer's, as long as it is valid itself: so a responder may renew its certificate.
	Responders []*x509.Certificate

	signers signer.Finder
}

const (
	defaultClockSkew = 5 * time.Minute
	defaultMaxAge    = 24 * time.Hour
)

// A Reason tells why a response was refused.
type Reason int

const (
	ReasonMalformed            Reason = iota + 1 // not a basic OCSP response in strict DER, or one that makes no sense
	ReasonUnsuccessful                           // the responder answered with an error status; Err is an ocsp.ResponseError
	ReasonBadSignature                           // the signature does not verify
	ReasonUnauthorizedSigner                     // not signed by the issuer, nor by a responder that it authorized
	ReasonWrongCertificate                       // no statement about this certificate
	ReasonNotYetValid                            // thisUpdate or the signer's NotBefore lies in the future
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
	return fmt.Sprintf("staple: OCSP response for %s refused: %v", name.Of(e.Leaf), e.Err)
}

func (e *VerifyError) Unwrap() error { return e.Err }

// refuse makes a VerifyError whose Leaf is still to be set.
func refuse(reason Reason, format string, args ...any) error {
	return &VerifyError{Reason: reason, Err: fmt.Errorf(format, args...)}
}

// refusal makes a VerifyError, whose Leaf is still to be set, of what reading a response and looking for its signer return.
func refusal(err error) error {
	var reason Reason
	switch e := err.(type) {
	case ocsp.ResponseError:
		reason = ReasonUnsuccessful
	case *ocspder.Error:
		reason = [...]Reason{
			ocspder.Malformed:            ReasonMalformed,
			ocspder.WrongCertificate:     ReasonWrongCertificate,
			ocspder.UnsupportedAlgorithm: ReasonUnsupportedAlgorithm,
		}[e.Kind]
	case *signer.Error:
		reason = [...]Reason{
			signer.Unauthorized:         ReasonUnauthorizedSigner,
			signer.BadSignature:         ReasonBadSignature,
			signer.NotYetValid:          ReasonNotYetValid,
			signer.UnsupportedAlgorithm: ReasonUnsupportedAlgorithm,
		}[e.Kind]
	}
	return &VerifyError{Reason: reason, Err: err}
}

// Verify implements [Verifier]. Every error is a [*VerifyError], and one about a response with an error
// status wraps its [ocsp.ResponseError].
//
// The result is filled in as ocsp.ParseResponseForCert does, but for two fields: Raw is what to staple,
// trimmed as [ResponseVerifier] says, and Certificate is the signer's if Raw embeds it, otherwise nil. The
// result shares memory with response and with certificates that are remembered: do not change it.
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
	return refuse(ReasonExpired, "%s was %s, and the clock says %s", endOf, name.Time(end), name.Time(now))
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
	match := ocspder.Match{Leaf: leaf, Issuer: issuer}
	basic, err := ocspder.Read(response, match.Add)
	if err == nil {
		err = match.Err()
	}
	if err != nil {
		return fail(refusal(err))
	}
	by, err := v.signers.Find(basic, &match, v.Responders, now)
	if err != nil {
		return fail(refusal(err))
	}

	s := &match.Best
	skew := v.ClockSkew
	if skew == 0 {
		skew = defaultClockSkew
	}
	latest := now.Add(max(skew, 0))
	if s.ThisUpdate.After(latest) {
		return fail(refuse(ReasonNotYetValid, "thisUpdate is %s, and the clock says %s", name.Time(s.ThisUpdate), name.Time(now)))
	}
	if s.ThisUpdate.Unix() < 0 || basic.ProducedAt.Unix() < 0 {
		return fail(refuse(ReasonMalformed, "thisUpdate is %s and producedAt is %s: no time before 1970 makes sense",
			name.Time(s.ThisUpdate), name.Time(basic.ProducedAt)))
	}
	maxAge := v.MaxAge
	if maxAge == 0 {
		maxAge = defaultMaxAge
	}
	switch {
	case s.HasNextUpdate && s.NextUpdate.Before(s.ThisUpdate):
		return fail(refuse(ReasonMalformed, "nextUpdate %s is before thisUpdate %s", name.Time(s.NextUpdate), name.Time(s.ThisUpdate)))
	case s.HasNextUpdate:
		endOf = "nextUpdate"
	case maxAge < 0:
		return fail(refuse(ReasonMalformed, "no nextUpdate, which RFC 9919 s5 demands, as does a negative ResponseVerifier.MaxAge"))
	default:
		endOf = "the end of the time to trust it without nextUpdate, which is ResponseVerifier.MaxAge,"
	}
	end = s.End(maxAge)
	if !by.NotAfter.IsZero() && by.NotAfter.Before(end) {
		end, endOf = by.NotAfter, "the end of its signer's certificate"
	}
	r = basic.Result(s)
	r.Raw = basic.Trimmed(by.Embedded)
	if by.Embedded != nil {
		r.Certificate = by.Certificate
	}
	return r, end, endOf, nil
}

// VerifyConnection checks the OCSP response that the peer has stapled, for clients and for servers that
// ask for client certificates. It is meant for [tls.Config.VerifyConnection], and has to run after
// crypto/tls has verified the peer's certificate: a connection with a certificate and without a verified
// chain fails. One without a certificate passes: whether one is needed is up to [tls.Config.ClientAuth].
//
// A staple must verify, as [ResponseVerifier.Verify] does now, for some verified chain, and say that the
// certificate is good. If it says revoked, the error wraps [ErrRevoked]. Without a staple the connection
// passes, unless the certificate is Must-Staple (RFC 7633), or its TLS feature extension is malformed.
// No staple can speak about a certificate that is a trust anchor itself: it is not looked at.
//
// So whoever staples nothing passes, revoked or not, and that is nearly all clients and many servers. For them there
// is [Checker], which asks.
//
// What the peer sent is judged as Verify does: what would be trimmed away makes no difference.
//
// A resumed session keeps the staple of the handshake that began it, so there all is checked again but
// the end.
//
// A client certificate can be stapled in TLS 1.3 alone (RFC 8446 s4.4.2.1). In TLS 1.2 a Must-Staple one
// always fails, and any other always passes.
func (v *ResponseVerifier) VerifyConnection(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return nil
	}
	leaf := cs.PeerCertificates[0]
	if len(cs.VerifiedChains) == 0 {
		return fmt.Errorf("staple: %s: no verified chain, by which alone its staple could be checked", name.Of(leaf))
	}
	if len(cs.OCSPResponse) == 0 {
		must, err := muststaple.Read(leaf)
		if err != nil {
			return fmt.Errorf("staple: %s: no staple, and %w", name.Of(leaf), err)
		}
		if must {
			return fmt.Errorf("staple: %s: no staple, and the certificate is Must-Staple", name.Of(leaf))
		}
		return nil
	}
	var errs []error
	for _, chain := range cs.VerifiedChains {
		if len(chain) < 2 {
			continue
		}
		now := time.Now()
		r, end, endOf, err := v.verify(cs.OCSPResponse, leaf, chain[1], now)
		if err == nil && !cs.DidResume {
			err = current(end, endOf, now)
		}
		if err != nil {
			errs = append(errs, withLeaf(err, leaf))
			continue
		}
		switch r.Status {
		case ocsp.Good:
			return nil
		case ocsp.Revoked:
			return fmt.Errorf("staple: %s: revoked at %s (reason %d): %w", name.Of(leaf), name.Time(r.RevokedAt), r.RevocationReason, ErrRevoked)
		default:
			return fmt.Errorf("staple: %s: the staple says that the responder does not know the certificate", name.Of(leaf))
		}
	}
	return errors.Join(errs...)
}

// A response is one that the Verifier accepted.
type response = hold.Response

// judge has the Verifier judge answer. It returns what to staple of it, too: the Raw of the result, if the Verifier
// accepts that, or else answer itself.
func judge(v Verifier, leaf, issuer *x509.Certificate, answer []byte, now time.Time) (p *ocsp.Response, until time.Time, der []byte, err error) {
	_, ours := v.(*ResponseVerifier)
	given := answer
	if !ours {
		given = bytes.Clone(answer) // it may do with it as it likes
	}
	p, until, err = v.Verify(given, leaf, issuer, now)
	switch {
	case err != nil:
		return nil, until, nil, err
	case p == nil:
		return nil, until, nil, errors.New("staple: the Verifier returned neither a response nor an error")
	case len(p.Raw) == 0 || bytes.Equal(p.Raw, answer):
		return p, until, answer, nil
	case ours: // then Raw says the same
		return p, until, p.Raw, nil
	}
	first, raw := *p, bytes.Clone(p.Raw)
	again, end, err := v.Verify(bytes.Clone(raw), leaf, issuer, now)
	if err != nil || again == nil || again.Status != first.Status || !again.ThisUpdate.Equal(first.ThisUpdate) {
		return &first, until, answer, nil
	}
	return again, end, raw, nil
}

// verifyAt has the Verifier judge answer, as if it was now.
func verifyAt(v Verifier, leaf, issuer *x509.Certificate, answer []byte, now time.Time) (*response, error) {
	answer = bytes.Clone(answer)
	p, until, der, err := judge(v, leaf, issuer, answer, now)
	switch {
	case err != nil:
		return nil, err
	case p.Status != ocsp.Good && p.Status != ocsp.Revoked:
		return nil, errUnknown
	}
	thisUpdate := p.ThisUpdate
	if thisUpdate.IsZero() {
		thisUpdate = now // of a Verifier that does not say
	}
	r := &response{
		DER:        bytes.Clone(der),
		ThisUpdate: wall.MicroOf(thisUpdate),
		ProducedAt: wall.MicroOf(p.ProducedAt),
		Until:      wall.MicroOf(until),
		End:        min(wall.MicroOf(until), wall.MicroOf(leaf.NotAfter)),
	}
	if p.Status == ocsp.Revoked {
		r.Revoked, r.Reason = true, int8(p.RevocationReason)
	}
	r.Taken(answer)
	return r, nil
}

// verifyRevoked returns what the cache has if it is a revocation that was valid at its thisUpdate: that outlasts it. It is
// nil otherwise.
func verifyRevoked(v Verifier, leaf, issuer *x509.Certificate, cached []byte) *response {
	claims, ok := ocspder.Revoked(cached, leaf)
	if now := wall.Now(); !ok || claims.ThisUpdate.After(now) || !now.Before(leaf.NotAfter) {
		return nil
	}
	r, err := verifyAt(v, leaf, issuer, cached, claims.ThisUpdate)
	if err != nil || !r.Revoked {
		return nil
	}
	return r
}
