package staple

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// errNoIssuerURL is why ErrNoIssuer is final: asking again would not help.
var errNoIssuerURL = errors.New("the certificate gives no http or https URL for its issuer")

// FetchIssuer implements [IssuerFetcher]. It asks the http and https URLs that
// leaf's Authority Information Access extension gives for its issuer, within the
// same bounds as [HTTPFetcher.Fetch], and understands certificates in DER and
// PEM and in certs-only PKCS #7 messages (RFC 5280, section 4.2.2.1). It returns
// those whose key verifies the signature of leaf, and keeps them for the next
// leaf that names the same URL.
//
// The error wraps [ErrNoResponder] if there is no responder that an issuer would
// help to ask, and [ErrNoIssuer] if leaf names no such URL.
func (f *HTTPFetcher) FetchIssuer(ctx context.Context, leaf *x509.Certificate) ([]*x509.Certificate, error) {
	if _, err := f.responderURLs(leaf); err != nil {
		return nil, err
	}
	urls := leaf.IssuingCertificateURL
	if !slices.ContainsFunc(urls, fetchable) {
		return nil, fmt.Errorf("%w: %w", ErrNoIssuer, errNoIssuerURL)
	}
	for _, u := range urls {
		f.mu.Lock()
		kept := f.issuers[u]
		f.mu.Unlock()
		if found := issuersAmong(kept, leaf, maxSignatureChecks); len(found) > 0 {
			return found, nil
		}
	}

	var found []*x509.Certificate
	err := f.inTurn(ctx, urls, func(ctx context.Context, u string) (failed *HTTPError) {
		found, failed = f.issuersAt(ctx, u, leaf)
		if failed == nil && len(found) == 0 {
			failed = &HTTPError{URL: u, StatusCode: http.StatusOK,
				Err: errors.New("GET: no certificate there has the key that signed the leaf")}
		}
		return failed
	})
	return found, err
}

// An issuerRequest is a request for issuers in flight, which others wait for.
type issuerRequest struct {
	done   chan struct{} // closed once the fields below are set
	certs  []*x509.Certificate
	failed *HTTPError
	void   bool // it says nothing to others, who must ask themselves
}

// issuersAt returns those of the certificates at a URL that issued leaf. Concurrent
// calls for one URL share a request.
func (f *HTTPFetcher) issuersAt(ctx context.Context, u string, leaf *x509.Certificate) ([]*x509.Certificate, *HTTPError) {
	for {
		f.mu.Lock()
		kept := f.issuers[u] // perhaps since FetchIssuer looked
		r, joined := f.inFlight[u]
		if !joined {
			r = &issuerRequest{done: make(chan struct{})}
			if f.inFlight == nil {
				f.inFlight = make(map[string]*issuerRequest)
			}
			f.inFlight[u] = r
		}
		f.mu.Unlock()

		if !joined {
			found := issuersAmong(kept, leaf, maxSignatureChecks)
			if r.void = len(found) > 0; !r.void {
				r.certs, r.failed = f.getCertificates(ctx, u)
				r.void = ctx.Err() != nil
				found = issuersAmong(r.certs, leaf, maxSignatureChecks)
			}
			f.mu.Lock()
			if len(found) > 0 {
				keep(&f.issuers, u, found)
			}
			delete(f.inFlight, u)
			f.mu.Unlock()
			close(r.done)
			return found, r.failed
		}
		select {
		case <-r.done:
			if !r.void {
				return issuersAmong(r.certs, leaf, maxSignatureChecks), r.failed
			}
		case <-ctx.Done():
			return nil, &HTTPError{URL: u, Err: ctx.Err()}
		}
	}
}

func (f *HTTPFetcher) getCertificates(ctx context.Context, u string) ([]*x509.Certificate, *HTTPError) {
	target, err := parseURL(u)
	if err != nil {
		return nil, &HTTPError{URL: u, Err: err}
	}
	header := http.Header{"Accept": {"application/pkix-cert, application/pkcs7-mime, */*;q=0.5"}}
	body, contentType, result := f.do(ctx, u, http.MethodGet, target.String(), nil, header)
	if result.Err == nil {
		certs := parseCertificates(body)
		if len(certs) > 0 {
			return certs, nil
		}
		result.Err = unusable(body, contentType, "no certificate in DER, PEM or PKCS #7")
	}
	result.Err = fmt.Errorf("GET: %w", result.Err)
	return nil, result
}

// parseCertificates reads what a caIssuers URL may lead to: certificates in DER
// or PEM, or a certs-only PKCS #7 message in either. What is no certificate, or
// none that crypto/x509 can read, is left out.
func parseCertificates(data []byte) []*x509.Certificate {
	encoded := [][]byte{data}
	if block, rest := pem.Decode(data); block != nil {
		encoded = nil
		for ; block != nil; block, rest = pem.Decode(rest) {
			encoded = append(encoded, block.Bytes)
		}
	}
	var certs []*x509.Certificate
	for _, der := range encoded {
		for _, der := range pkcs7Certificates(der) {
			if c, err := x509.ParseCertificate(der); err == nil {
				certs = append(certs, c)
			}
		}
	}
	return certs
}

var oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}

// pkcs7Certificates returns the certificates of a PKCS #7 or CMS SignedData in
// DER (RFC 5652, section 5.1), or der itself if it is none. A message made for
// this carries nothing else; if there is a content or a signature, it is ignored.
func pkcs7Certificates(der []byte) [][]byte {
	context0 := cryptobyte_asn1.Tag(0).ContextSpecific().Constructed()
	input := cryptobyte.String(der)
	var info, content, signed, certs cryptobyte.String
	var oid asn1.ObjectIdentifier
	var version int
	if !input.ReadASN1(&info, cryptobyte_asn1.SEQUENCE) || !input.Empty() ||
		!info.ReadASN1ObjectIdentifier(&oid) || !oid.Equal(oidSignedData) ||
		!info.ReadASN1(&content, context0) || !info.Empty() ||
		!content.ReadASN1(&signed, cryptobyte_asn1.SEQUENCE) || !content.Empty() ||
		!signed.ReadASN1Integer(&version) ||
		!signed.SkipASN1(cryptobyte_asn1.SET) || // digestAlgorithms
		!signed.SkipASN1(cryptobyte_asn1.SEQUENCE) || // encapContentInfo
		!signed.ReadOptionalASN1(&certs, nil, context0) {
		return [][]byte{der}
	}
	var list [][]byte
	for !certs.Empty() {
		var c cryptobyte.String
		var tag cryptobyte_asn1.Tag
		if !certs.ReadAnyASN1Element(&c, &tag) {
			break
		}
		list = append(list, c)
	}
	return list
}
