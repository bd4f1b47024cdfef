// Package ask asks one OCSP responder about one certificate, over HTTP, as RFC 9919 (the
// profile for high-volume environments) and RFC 6960, appendix A, have it:
//
//	q := ask.Question{Client: client, Responder: u, Leaf: leaf, Issuer: issuer}
//	response, way, failed := q.Ask(ctx, ask.Way{Hash: crypto.SHA1})
//
// It asks with GET while the URL that makes is short enough to be cached, with POST
// otherwise and where GET is no use; once more with another hash function where the
// responder knows nothing of the certificate by the first; and once more past the caches
// where the answer is stale, or nothing new: GET with no-cache, then POST, which no cache
// keeps. What worked, the [Way], is for the caller to remember.
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

// tryGET is after how many answers to POST a GET is tried again, which costs caches and
// responders less.
const tryGET = 16

// A Way is how to ask a responder: what is worth remembering of it.
type Way struct {
	Hash  crypto.Hash // of the CertID, which names the certificate in the request
	POST  bool        // because GET was no use
	posts uint8       // how often that has worked since
}

// A Cause is why a response was not accepted.
type Cause int8

const (
	Other     Cause = iota
	Stale           // it is past its time, or older than what is held: a cache may have given it
	Unchanged       // it is what is held: past the caches there may be something newer, or it will do
	Unknown         // it says that the responder does not know the certificate
)

// A Question is about one certificate, to one responder.
type Question struct {
	Client       exchange.Client
	Responder    *url.URL // a result of exchange.ParseURL
	Leaf, Issuer *x509.Certificate

	// Accept tells whether a response will do. If nil, any that has the shape of a
	// successful OCSP response does.
	Accept func(response []byte) error

	// Cause tells what an error of Accept's means. If nil, it is Other.
	Cause func(error) Cause

	// Past tells which caches are to be passed by from the beginning.
	Past Past

	// Unchanged is set by Ask: its response is one that Accept refused as Unchanged.
	Unchanged bool
}

// A Past is how far a question goes past the caches between.
type Past int8

const (
	NoCaches      Past = iota // what they have will do, at first
	HeedfulCaches             // those that heed no-cache, and the others where these have nothing of use
	AllCaches                 // by POST, which none keeps, unless that is no use
)

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

	cause Cause
}

// Ask returns a response that q.Accept takes, or that is [Unchanged] where there is nothing
// newer, or nil. failed is what went wrong before, in order. next is the way to go the next
// time: with what worked, and otherwise the other method than now where that may be to
// blame.
func (q *Question) Ask(ctx context.Context, way Way) (response []byte, next Way, failed []Attempt) {
	other := crypto.SHA1
	if way.Hash == crypto.SHA1 {
		other = crypto.SHA256
	}
	i := inquiry{Question: q, probe: way.posts >= tryGET && q.Past < AllCaches}
	q.Unchanged = false
	next = way
	get := (!way.POST || i.probe) && q.Past < AllCaches
	response, last := i.ask(ctx, way.Hash, get)
	if garbled := last.says(ocsp.Malformed); garbled || last.says(ocsp.Unauthorized) || last.isFor(Unknown) {
		if response, last = i.ask(ctx, other, get && !i.useless && !i.denied); last == nil {
			next.Hash = other
		} else if garbled {
			// Perhaps by a proxy that decodes the path, or merges its slashes.
			response, last = i.ask(ctx, way.Hash, false)
		}
	}
	if last != nil && i.unchanged != nil {
		response, last = i.unchanged, nil
		q.Unchanged, i.useless = true, false
	}
	switch {
	case last != nil && i.posted: // kept, if it was the way, or helped as far as to an OCSP response
		next.POST = (way.POST || i.useless) && (last.Stage != Answered && last.Stage != Silent || last.negative())
	case last != nil:
		next.POST, next.posts = last.mayBeForGET(), 0
	case i.useless: // but POST was not
		next.POST, next.posts = true, 0
	case q.Past == AllCaches && !way.POST && i.posted: // that was no choice
	case way.POST && i.posted && !i.probe:
		next.posts++
	default:
		next.POST, next.posts = false, 0
	}
	return response, next, i.failed
}

// An inquiry is a question that is being asked.
type inquiry struct {
	*Question
	probe     bool   // GET is tried again, and is followed by POST in any case
	useless   bool   // GET was no use
	denied    bool   // a GET past the caches had a negative answer
	posted    bool   // the last request was a POST
	unchanged []byte // a response that will do if there is nothing newer
	failed    []Attempt
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
		response, failed := i.get(ctx, target, i.Past > NoCaches)
		cached := failed.isFor(Stale) || failed.isFor(Unchanged)
		if cached && i.Past == NoCaches {
			response, failed = i.get(ctx, target, true)
		}
		switch {
		case failed == nil:
			return response, nil
		case cached:
		case failed.useless(), i.probe:
			i.useless = true
		case i.Past > NoCaches && failed.negative():
			i.denied = true
		default:
			return nil, failed
		}
	}
	i.posted = true
	response, failed := i.send(ctx, http.MethodPost, i.Responder.String(), der, http.Header{
		"Content-Type":    {"application/ocsp-request"},
		"Idempotency-Key": {}, // not sent; net/http may repeat the request where a connection turns out to be closed
	})
	if !failed.useless() {
		return response, failed
	}
	if i.denied { // GET had an answer, and that counts
		i.failed[len(i.failed)-1].Stage = Unasked
	}
	if target := GetURL(i.Responder, der); !get && target != "" && !i.useless && !i.denied {
		i.posted = false
		return i.get(ctx, target, i.Past > NoCaches)
	}
	return response, failed
}

// get makes one GET, past the caches that heed no-cache or not.
func (i *inquiry) get(ctx context.Context, target string, fresh bool) ([]byte, *Attempt) {
	header := http.Header{}
	if fresh {
		header.Set("Cache-Control", "no-cache")
	}
	if i.probe { // which may hang, and then there should be time left
		patient := i.Client
		defer func() { i.Client = patient }()
		i.Client.Timeout /= 3
	}
	return i.send(ctx, http.MethodGet, target, nil, header)
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
	err, cause := r.Err, Other
	switch status, ok := Status(r.Body); {
	case ok && status != ocsp.Success:
		err = ocsp.ResponseError{Status: status}
	case err != nil:
	case !ok:
		err = r.Unusable("not an OCSP response")
	case i.Accept != nil:
		stage = Refused
		if err = i.Accept(r.Body); err != nil && i.Cause != nil {
			cause = i.Cause(err)
		}
	}
	switch {
	case err == nil:
		return r.Body, nil
	case cause == Unchanged:
		i.unchanged = r.Body
	}
	return i.fail(Attempt{stage, r.Status, r.RetryAfter, fmt.Errorf("%s: %w", method, err), cause})
}

// isFor reports whether Accept refused the response for this cause.
func (a *Attempt) isFor(c Cause) bool { return a != nil && a.Stage == Refused && a.cause == c }

// negative reports whether the responder said no, or what is no use, which a cache may have kept.
func (a *Attempt) negative() bool {
	_, ok := errors.AsType[ocsp.ResponseError](a.Err)
	return ok || a.isFor(Unknown) || a.isFor(Other)
}

// useless reports whether the answer to a GET was no answer, so that POST may work better. It is not where the server
// has too much to do.
func (a *Attempt) useless() bool {
	return a != nil && a.Stage == Answered && !a.negative() && !a.mayBeForGET()
}

// mayBeForGET reports whether the other method may work better, but only after a while.
func (a *Attempt) mayBeForGET() bool {
	return a.Stage != Unasked && (a.isFor(Other) || a.Status == http.StatusTooManyRequests || a.Status >= 500 && a.Status != http.StatusNotImplemented ||
		errors.Is(a.Err, exchange.ErrSilent) || a.says(ocsp.TryLater) || a.says(ocsp.InternalError))
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
