package staple

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"
)

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
		return fmt.Errorf("staple: %s: no verified chain, by which alone its staple could be checked", describe(leaf))
	}
	if len(cs.OCSPResponse) == 0 {
		must, err := tlsFeatures(leaf)
		if err != nil {
			return fmt.Errorf("staple: %s: no staple, and %w", describe(leaf), err)
		}
		if must {
			return fmt.Errorf("staple: %s: no staple, and the certificate is Must-Staple", describe(leaf))
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
			return fmt.Errorf("staple: %s: revoked at %s (reason %d): %w", describe(leaf), utc(r.RevokedAt), r.RevocationReason, ErrRevoked)
		default:
			return fmt.Errorf("staple: %s: the staple says that the responder does not know the certificate", describe(leaf))
		}
	}
	return errors.Join(errs...)
}

var oidTLSFeature = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}

// mustStaple reports whether c carries the TLS feature extension with status_request, RFC 7633. A
// malformed extension asks for nothing.
func mustStaple(c *x509.Certificate) bool {
	must, _ := tlsFeatures(c)
	return must
}

// tlsFeatures reads the TLS feature extension, RFC 7633 s4: a SEQUENCE OF INTEGER with the numbers of TLS
// extensions.
func tlsFeatures(c *x509.Certificate) (statusRequest bool, err error) {
	for _, e := range c.Extensions {
		if !e.Id.Equal(oidTLSFeature) {
			continue
		}
		var features cryptobyte.String
		s := cryptobyte.String(e.Value)
		ok := s.ReadASN1(&features, cbasn1.SEQUENCE) && s.Empty()
		for ok && !features.Empty() {
			var feature uint16
			ok = features.ReadASN1Integer(&feature)
			statusRequest = statusRequest || feature == extensionStatusRequest
		}
		if !ok {
			return false, fmt.Errorf("the TLS feature extension is malformed: %.32x", e.Value)
		}
	}
	return statusRequest, nil
}
