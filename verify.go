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

// A Verifier judges OCSP responses: whatever reaches a handshake or the cache, wherever it came from. It must be safe
// for concurrent use.
type Verifier interface {
	// Verify decides whether response, in DER, is authentic, about leaf, which issuer issued, and current at now:
	// Good, Revoked or Unknown. r.Raw, if set, is stapled and stored in place of response, provided that Verify
	// accepts it, too. end is when the response ceases to be current, never zero.
	Verify(response []byte, leaf, issuer *x509.Certificate, now time.Time) (r *ocsp.Response, end time.Time, err error)
}

// A ResponseVerifier verifies OCSP responses as RFC 6960 s3.2 and s4.2.2.2 ask, and where these leave a choice, as
// the strictest of the large clients: docs/verifiers.md has the reasons. The zero value is ready to use. It is safe
// for concurrent use, and must not be changed or copied after first use. A response is accepted if all of this holds:
//
//   - It is a basic response, version 1, in DER: nothing is left over, nothing unknown is critical, and no extension
//     comes twice.
//   - It speaks about the leaf, by hashes of the issuer's name and key (SHA-1, SHA-256, SHA-384 or SHA-512) and serial
//     number. Where it does so more than once, revoked counts before unknown, unknown before good, then the latest thisUpdate.
//   - It is signed with RSA (PKCS #1 v1.5 or PSS, up to 8192 bits) or ECDSA (P-256, P-384, P-521), with SHA-256,
//     SHA-384 or SHA-512, with Ed25519, or, if built with Go 1.27 or newer, with ML-DSA (RFC 9881).
//   - The signer is the issuer's key, one of Responders, or a delegated responder whose certificate is embedded, and
//     the responderID names it, by the bytes of its name or the hash of its key.
//   - now is not before thisUpdate, but for ClockSkew, and before the end: the earlier of nextUpdate and the NotAfter
//     of a signer other than the issuer. thisUpdate and producedAt must not lie before 1970.
//
// A delegated responder must be issued by the issuer itself, by name and signature, list id-kp-OCSPSigning, be no CA,
// not have the issuer's name as responderID, be valid at now, and have no critical extensions that crypto/x509 does
// not know; its key usage, if any, must include digitalSignature or nonRepudiation. It need not have
// id-pkix-ocsp-nocheck.
//
// Of a response, eight signatures at most are checked. The result's Raw is what to staple: it says the same, in
// strict DER throughout, with the signer's certificate alone, or none if the issuer signed. Nobody signs what else
// surrounds the signed parts, and clients may refuse the whole for it.
type ResponseVerifier struct {
	// ClockSkew is how far thisUpdate, never the end, may be off. Zero: 5 minutes in the future; negative: not at
	// all.
	ClockSkew time.Duration

	// MaxAge is how long a response without nextUpdate counts. Zero: 24 hours, as clients do; negative: not at all
	// (RFC 9919 s5).
	MaxAge time.Duration

	// Responders are trusted to sign for every issuer while they are valid, RFC 6960 s4.2.2.2 (1). One that is a CA
	// vouches for delegated responders as an issuer does for its own, so that a responder may renew its certificate.
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

// Verify implements [Verifier]. Every error is a [*VerifyError], which wraps the [ocsp.ResponseError] of a response
// that is one. The result is as [ocsp.ParseResponseForCert] has it, but for Raw, and Certificate, which is the
// signer's if Raw embeds it. It shares memory with response and with what is remembered: do not change it.
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

// VerifyConnection is for [tls.Config.VerifyConnection] and looks at what the peer has stapled. It asks nobody, so
// that whoever staples nothing passes, revoked or not, and that is nearly all clients and many servers: for them
// there is [Checker].
//
// A staple must verify as Verify does, for some verified chain, and say good; if it says revoked, the error wraps
// [ErrRevoked]. Without a staple, a certificate fails that is Must-Staple (RFC 7633), as a client's always does in
// TLS 1.2, which has no staples of clients, or whose TLS feature extension is malformed. A trust anchor is not looked
// at. A connection without a certificate passes, and one without a verified chain fails. In a resumed session, the
// staple is that of the connection that began it, and its end does not matter.
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
