package statuspage

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/name"
)

// A detail is what is shown of one certificate.
type detail struct {
	query
	certificate
	der      []byte // of the response that is held, or else stapled unverified; nil: there is none
	response *ocsp.Response
	signer   *x509.Certificate // of the response; nil: not known
	err      error             // why der cannot be read
}

func (h *Handler) detail(c *staple.Certificate, handles int, q query, now time.Time) *detail {
	cert := c.TLS()
	d := &detail{query: q, certificate: newCertificate(c, handles, now), der: c.Response()}
	if d.der == nil {
		d.der = cert.OCSPStaple
	}
	if d.der == nil {
		return d
	}
	var issuers []*x509.Certificate
	for _, der := range cert.Certificate[1:] {
		if issuer, err := x509.ParseCertificate(der); err == nil {
			issuers = append(issuers, issuer)
		}
	}
	issuers = append(issuers, h.Stapler.Issuers...)
	// It was verified when it came. This is to read it, also where x/crypto/ocsp does not, and to tell who signed.
	v, ok := h.Stapler.Verifier.(*staple.ResponseVerifier)
	if !ok {
		v = new(staple.ResponseVerifier)
	}
	at := now
	if !d.Expires.IsZero() && !now.Before(d.Expires) {
		at = d.Expires.Add(-1) // when all that it rests on was valid
	}
	for _, issuer := range issuers {
		if !bytes.Equal(issuer.RawSubject, d.Leaf.RawIssuer) {
			continue
		}
		if r, _, err := v.Verify(d.der, d.Leaf, issuer, at); err == nil {
			d.response, d.signer = r, r.Certificate
			if d.signer == nil && len(v.Responders) == 0 {
				d.signer = issuer
			}
			return d
		}
	}
	if d.response, d.err = ocsp.ParseResponseForCert(d.der, d.Leaf, nil); d.err == nil {
		d.signer = d.response.Certificate
	}
	return d
}

var statusTexts = map[int]string{ocsp.Good: "good", ocsp.Revoked: "revoked", ocsp.Unknown: "unknown"}

// Decoded returns the response as JSON has it, and nil if there is none.
func (d *detail) Decoded() *Response {
	if d.der == nil {
		return nil
	}
	out := &Response{Size: len(d.der)}
	r := d.response
	if r == nil {
		out.Error = d.err.Error()
		return out
	}
	out.Status = statusTexts[r.Status]
	out.ThisUpdate, out.NextUpdate, out.ProducedAt = seconds(r.ThisUpdate), seconds(r.NextUpdate), seconds(r.ProducedAt)
	if r.Status == ocsp.Revoked {
		out.RevokedAt = seconds(r.RevokedAt)
		out.RevocationReason = name.Reason(r.RevocationReason)
	}
	out.ResponderName = nameText(r.RawResponderName)
	out.ResponderKeyHash = hex.EncodeToString(r.ResponderKeyHash)
	if d.signer != nil {
		out.Signer, out.SignerNotAfter = d.signer.Subject.String(), seconds(d.signer.NotAfter)
	}
	out.SignatureAlgorithm = r.SignatureAlgorithm.String()
	if r.IssuerHash != crypto.Hash(0) {
		out.Hash = r.IssuerHash.String()
	}
	return out
}

// nameText returns a Name in DER as text.
func nameText(der []byte) string {
	var name pkix.RDNSequence
	if len(der) == 0 {
		return ""
	} else if _, err := asn1.Unmarshal(der, &name); err != nil {
		return hex.EncodeToString(der)
	}
	return name.String()
}
