// Package ask asks one OCSP responder about one certificate, over HTTP, as RFC 9919 (the
// profile for high-volume environments) and RFC 6960, appendix A, have it:
//
//	q := ask.Question{Client: client, Responder: u, Leaf: leaf, Issuer: issuer}
//	response, way, failed := q.Ask(ctx, ask.Way{Hash: crypto.SHA1})
//
// It asks with GET while the URL that makes is short enough to be cached, with POST
// otherwise and where GET is no use; once more with another hash function where the
// responder knows nothing of the certificate by the first; and once more past the caches
// where the answer is stale. What worked, the [Way], is for the caller to remember.
//
// It verifies nothing: whoever asks says, by Accept, whether a response is any good. It
// knows nothing of a certificate's other responders, and makes no request later.
package ask

import (
	"context"
	"crypto"
	"crypto/fips140"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple/internal/exchange"
)

const maxGETURL = 255 // RFC 9919, section 6

// A Way is how to ask a responder: what is worth remembering of it.
type Way struct {
	Hash crypto.Hash // of the CertID, which names the certificate in the request
	POST bool        // because a GET got no answer at all
}

// A Question is about one certificate, to one responder.
type Question struct {
	Client       exchange.Client
	Responder    *url.URL // a result of exchange.ParseURL
	Leaf, Issuer *x509.Certificate

	// Accept tells whether a response will do. If nil, any that has the shape of a
	// successful OCSP response does.
	Accept func(response []byte) error

	// Stale tells whether an error of Accept's means that a cache may have given a
	// response that is past its time. If nil, none does.
	Stale func(error) bool
}

// A Stage is how far a request got.
type Stage int8

const (
	Unasked  Stage = iota // it was not made, as the time was up or it could not be; or the caller gave up on it
	Silent                // it may have been sent, but not a byte of an answer came
	Answered              // something came of it that is no successful OCSP response
	Refused               // Accept refused the response
)

// An Attempt is a request that failed.
type Attempt struct {
	Stage      Stage
	Status     int           // as exchange.Result has it
	RetryAfter time.Duration // the same
	Err        error         // not nil; an ocsp.ResponseError is in the tree where the responder answered with one
}

// Ask returns a response that q.Accept takes, or nil. failed is what went wrong before, in
// order. next is the way to go the next time: with the hash function that worked, and the
// other method than now if there was no answer.
func (q *Question) Ask(ctx context.Context, way Way) (response []byte, next Way, failed []Attempt) {
	other := crypto.SHA1
	if way.Hash == crypto.SHA1 {
		other = crypto.SHA256
	}
	i := inquiry{Question: q}
	next = way
	response, last := i.ask(ctx, way.Hash, !way.POST)
	if garbled := last.says(ocsp.Malformed); garbled || last.says(ocsp.Unauthorized) {
		if response, last = i.ask(ctx, other, !way.POST); last == nil {
			next.Hash = other
		} else if garbled {
			// Perhaps by a proxy that decodes the path, or merges its slashes.
			response, last = i.ask(ctx, way.Hash, false)
		}
	}
	if last != nil {
		next.POST = !way.POST && errors.Is(last.Err, exchange.ErrSilent)
	}
	return response, next, i.failed
}

// An inquiry is a question that is being asked.
type inquiry struct {
	*Question
	failed []Attempt
}

// fail notes what went wrong.
func (i *inquiry) fail(a Attempt) ([]byte, *Attempt) {
	i.failed = append(i.failed, a)
	return nil, &a
}

// ask returns the response to a CertID with the given hash, or what went wrong last. It
// uses GET, if it may, and POST where GET is no use.
func (i *inquiry) ask(ctx context.Context, hash crypto.Hash, get bool) ([]byte, *Attempt) {
	der, err := Request(i.Leaf, i.Issuer, hash)
	if err != nil {
		return i.fail(Attempt{Err: fmt.Errorf("making a request with a CertID hash of %v: %w", hash, err)})
	}
	if target := GetURL(i.Responder, der); get && target != "" {
		response, failed := i.send(ctx, http.MethodGet, target, nil, http.Header{})
		if i.stale(failed) {
			fresh := http.Header{"Cache-Control": {"no-cache"}}
			if response, failed = i.send(ctx, http.MethodGet, target, nil, fresh); failed == nil {
				return response, nil
			}
		} else if !failed.refusesGET() {
			return response, failed
		}
	}
	return i.send(ctx, http.MethodPost, i.Responder.String(), der, http.Header{
		"Content-Type":    {"application/ocsp-request"},
		"Idempotency-Key": {}, // not sent; net/http may repeat the request where a connection turns out to be closed
	})
}

// send makes one request.
func (i *inquiry) send(ctx context.Context, method, target string, body []byte, header http.Header) ([]byte, *Attempt) {
	header.Set("Accept", "application/ocsp-response")
	stage := Silent
	if ctx.Err() != nil {
		stage = Unasked
	}
	r := i.Client.Do(ctx, method, target, body, header)
	switch {
	case r.Err != nil && ctx.Err() == context.Canceled:
		stage = Unasked
	case r.Answered:
		stage = Answered
	}
	err := r.Err
	switch status, ok := Status(r.Body); {
	case ok && status != ocsp.Success:
		err = ocsp.ResponseError{Status: status}
	case err != nil:
	case !ok:
		err = r.Unusable("not an OCSP response")
	case i.Accept != nil:
		stage = Refused
		err = i.Accept(r.Body)
	}
	if err == nil {
		return r.Body, nil
	}
	return i.fail(Attempt{stage, r.Status, r.RetryAfter, fmt.Errorf("%s: %w", method, err)})
}

// stale reports whether a cache may have given a response that is past its time.
func (i *inquiry) stale(a *Attempt) bool { return a != nil && i.Stale != nil && i.Stale(a.Err) }

// refusesGET reports whether POST may work better.
func (a *Attempt) refusesGET() bool {
	if a == nil {
		return false
	}
	switch a.Status {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed,
		http.StatusLengthRequired, http.StatusNotImplemented:
		return true
	}
	return errors.Is(a.Err, exchange.ErrUnusable)
}

// says reports whether the responder answered with an error status of OCSP's.
func (a *Attempt) says(status ocsp.ResponseStatus) bool {
	if a == nil {
		return false
	}
	answer, ok := errors.AsType[ocsp.ResponseError](a.Err)
	return ok && answer.Status == status
}

// Request makes an OCSP request about leaf, in DER, as small as can be. It works in FIPS
// 140-only mode too, which forbids SHA-1: here it names certificates, and nothing rests on
// its strength.
func Request(leaf, issuer *x509.Certificate, hash crypto.Hash) (der []byte, err error) {
	// The name is the leaf's: RFC 6960, section 4.1.1.
	named := &x509.Certificate{RawSubject: leaf.RawIssuer, RawSubjectPublicKeyInfo: issuer.RawSubjectPublicKeyInfo}
	fips140.WithoutEnforcement(func() { der, err = ocsp.CreateRequest(leaf, named, &ocsp.RequestOptions{Hash: hash}) })
	return der, err
}

// GetURL returns the URL that asks a responder for a request with GET, or "" if there is
// none: if it would be too long, or the responder's has a query, where there is no telling
// how it wants the two joined.
func GetURL(responder *url.URL, request []byte) string {
	u := strings.TrimSuffix(responder.String(), "/") + "/" + url.QueryEscape(base64.StdEncoding.EncodeToString(request))
	if len(u) > maxGETURL || responder.RawQuery != "" || responder.ForceQuery {
		return ""
	}
	return u
}

// Status reads the outermost layer of an OCSP response, and tells whether data looks like
// one.
func Status(data []byte) (ocsp.ResponseStatus, bool) {
	input := cryptobyte.String(data)
	var response cryptobyte.String
	var status int
	ok := input.ReadASN1(&response, cryptobyte_asn1.SEQUENCE) && input.Empty() &&
		response.ReadASN1Enum(&status) && (status == int(ocsp.Success)) == !response.Empty()
	return ocsp.ResponseStatus(status), ok
}
