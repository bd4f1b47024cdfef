package stapletest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ocsp"
)

// An Answer is what a [Responder] says about a certificate. The zero Answer is good, signed by the CA
// itself, with thisUpdate now and nextUpdate seven days later.
type Answer struct {
	// Status is ocsp.Good, ocsp.Revoked or ocsp.Unknown.
	Status int

	// RevokedAt and RevocationReason belong to ocsp.Revoked. A zero RevokedAt is an hour before
	// thisUpdate.
	RevokedAt        time.Time
	RevocationReason int

	// Age is how long before now thisUpdate and producedAt lie; negative: after.
	Age time.Duration

	// Validity is the time from thisUpdate to nextUpdate. Zero: seven days; negative: no nextUpdate.
	Validity time.Duration

	// Period, if not zero, is for how long a response is kept: thisUpdate is now cut to a multiple of
	// Period, less Age, and the very same bytes are answered until the next multiple, as by a CA that
	// signs its responses in advance.
	Period time.Duration

	// Signer signs the response; nil: the CA itself.
	Signer *Signer

	// Embed are the certificates embedded, in this order. Nil: the signer's, unless it is the CA.
	// Not nil and empty: none.
	Embed []*x509.Certificate

	// ByName makes the responderID the signer's name rather than its key's hash.
	ByName bool

	// Hash is that of the CertID; zero: the request's.
	Hash crypto.Hash

	// Delay is how long the client waits for the answer.
	Delay time.Duration

	// Hang lets the client wait until it gives up.
	Hang bool

	// HTTPStatus is the HTTP status; zero: 200.
	HTTPStatus int

	// Header is added to the HTTP response, in place of what it would have had of the same names.
	Header http.Header

	// Body, if not nil, is sent instead of an OCSP response. Its Content-Type is what
	// http.DetectContentType says, unless Header has one.
	Body []byte

	// Error, if not zero, is the error status that is answered instead of a status of the certificate,
	// ocsp.TryLater for example.
	Error ocsp.ResponseStatus

	// Replay, if not nil, is answered as it is, as by a CDN that keeps an old response.
	Replay []byte

	// Edit, if set, has the last word on the response before it is signed.
	Edit func(*Response)
}

// A Received is a request that a [Responder] received.
type Received struct {
	Time   time.Time   // when it came
	Method string      // GET, POST, or another
	URL    string      // the whole URL
	Header http.Header // the HTTP header
	Serial *big.Int    // of the certificate asked about; nil: the request was malformed
	Hash   crypto.Hash // of the CertID
	Raw    []byte      // the DER of the OCSP request; nil where there was none

	order int
}

// A Responder answers OCSP requests about the certificates that one CA issued, RFC 6960 appendix A.
// It takes GET, below any path, and POST. About certificates that it was told nothing of it says what
// the zero [Answer] says. It answers "unauthorized" about certificates of others, "malformedRequest" to
// what is no OCSP request, and looks at the first certificate that a request names, no further.
//
// It is an http.Handler, and an http.RoundTripper that needs no socket and starts no goroutine, so that
// it runs inside a testing/synctest bubble. As the latter it answers whatever the URL's host and scheme.
//
// Its methods are safe for concurrent use.
type Responder struct {
	ca     *CA
	hashes map[crypto.Hash][2]string // of the issuer's name and key

	mu       sync.Mutex
	entries  map[string]*entry     // by serial number; "": the default
	received map[string][]Received // by serial number; "": malformed
	order    int
}

// An entry is an Answer with the responses that its Period keeps.
type entry struct {
	answer Answer
	kept   map[keptKey]kept // guarded by Responder.mu
}

type keptKey struct {
	serial string
	hash   crypto.Hash
}

type kept struct {
	start time.Time
	der   []byte
}

// NewResponder returns a Responder for the certificates that ca's Issuer issued.
func NewResponder(ca *CA) *Responder {
	r := &Responder{
		ca:       ca,
		hashes:   make(map[crypto.Hash][2]string),
		entries:  map[string]*entry{"": {}},
		received: make(map[string][]Received),
	}
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		r.hashes[h] = [2]string{string(sum(h, ca.Issuer.RawSubject)), string(sum(h, publicKey(ca.Issuer)))}
	}
	return r
}

// Set says how to answer about leaf from now on; nil: about every certificate that has no Answer of its
// own.
func (r *Responder) Set(leaf *x509.Certificate, a Answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries[key(leaf)] = &entry{answer: a}
}

// Reset forgets the Answer set for leaf and the requests that came about it; nil: all Answers and all
// requests.
func (r *Responder) Reset(leaf *x509.Certificate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if leaf == nil {
		r.entries = map[string]*entry{"": {}}
		clear(r.received)
		return
	}
	delete(r.entries, key(leaf))
	delete(r.received, key(leaf))
}

// Requests returns the requests that came about leaf, in order; nil: all requests, malformed ones
// included.
func (r *Responder) Requests(leaf *x509.Certificate) []Received {
	r.mu.Lock()
	defer r.mu.Unlock()
	if leaf != nil {
		return slices.Clone(r.received[key(leaf)])
	}
	all := slices.Concat(slices.Collect(maps.Values(r.received))...)
	slices.SortFunc(all, func(a, b Received) int { return a.order - b.order })
	return all
}

// Response returns the body of the answer about leaf that a request with a SHA-1 CertID would get now.
// It does not count as a request, and neither Delay nor Hang apply.
func (r *Responder) Response(leaf *x509.Certificate) []byte {
	e := r.entry(key(leaf))
	return e.body(r, leaf.SerialNumber, crypto.SHA1)
}

// Client returns a client whose requests all go to the Responder.
func (r *Responder) Client() *http.Client {
	return &http.Client{Transport: r}
}

// ServeHTTP implements http.Handler.
func (r *Responder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	resp := r.respond(req)
	if resp == nil {
		panic(http.ErrAbortHandler) // the client is gone
	}
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	io.Copy(w, resp.Body)
}

// RoundTrip implements http.RoundTripper.
func (r *Responder) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer req.Body.Close()
	}
	resp := r.respond(req)
	if resp == nil {
		return nil, context.Cause(req.Context())
	}
	return resp, nil
}

// respond returns nil if the request's context ends first.
func (r *Responder) respond(req *http.Request) *http.Response {
	status, header, body := r.answer(req)
	if status == 0 {
		return nil
	}
	header.Set("Content-Length", strconv.Itoa(len(body)))
	return &http.Response{
		Status:        strconv.Itoa(status) + " " + http.StatusText(status),
		StatusCode:    status,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        header,
		Body:          io.NopCloser(bytes.NewReader(body)),
		ContentLength: int64(len(body)),
		Request:       req,
	}
}

const ocspResponseType = "application/ocsp-response"

func (r *Responder) answer(req *http.Request) (status int, header http.Header, body []byte) {
	header = http.Header{"Content-Type": {ocspResponseType}}
	got := Received{Time: time.Now(), Method: req.Method, URL: requestURL(req), Header: req.Header.Clone()}
	var err error
	switch req.Method {
	case http.MethodGet, "":
		got.Method = http.MethodGet
		got.Raw = fromPath(req.URL)
	case http.MethodPost:
		const limit = 64 << 10 // far beyond any request for a few certificates
		if req.Body != nil {
			got.Raw, err = io.ReadAll(io.LimitReader(req.Body, limit+1))
		}
		if err != nil || len(got.Raw) > limit {
			got.Raw = nil
		}
	default:
		r.record("", got)
		header.Set("Allow", "GET, POST")
		header.Set("Content-Type", "text/plain; charset=utf-8")
		return http.StatusMethodNotAllowed, header, []byte("method not allowed\n")
	}
	parsed, err := ocsp.ParseRequest(got.Raw)
	if err != nil {
		r.record("", got)
		return http.StatusOK, header, ocsp.MalformedRequestErrorResponse
	}
	got.Serial, got.Hash = parsed.SerialNumber, parsed.HashAlgorithm
	serial := got.Serial.String()
	r.record(serial, got)
	if r.hashes[got.Hash] != [2]string{string(parsed.IssuerNameHash), string(parsed.IssuerKeyHash)} {
		return http.StatusOK, header, ocsp.UnauthorizedErrorResponse
	}

	e := r.entry(serial)
	ctx := req.Context()
	if e.answer.Hang {
		<-ctx.Done()
		return 0, nil, nil
	}
	if e.answer.Delay > 0 {
		timer := time.NewTimer(e.answer.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return 0, nil, nil
		}
	}
	if ctx.Err() != nil {
		return 0, nil, nil
	}
	body = e.body(r, got.Serial, got.Hash)
	if e.answer.Body != nil {
		header.Set("Content-Type", http.DetectContentType(body))
	}
	maps.Copy(header, e.answer.Header.Clone())
	status = e.answer.HTTPStatus
	if status == 0 {
		status = http.StatusOK
	}
	return status, header, body
}

func (r *Responder) record(serial string, got Received) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.order++
	got.order = r.order
	r.received[serial] = append(r.received[serial], got)
}

func (r *Responder) entry(serial string) *entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.entries[serial]; ok {
		return e
	}
	return r.entries[""]
}

// body returns what is answered about the certificate now.
func (e *entry) body(r *Responder, serial *big.Int, hash crypto.Hash) []byte {
	a := &e.answer
	switch {
	case a.Body != nil:
		return a.Body
	case a.Replay != nil:
		return a.Replay
	}
	if a.Hash != 0 {
		hash = a.Hash
	}
	start := time.Now()
	if a.Period <= 0 {
		return e.response(r.ca, serial, hash, start).DER()
	}
	start = start.Truncate(a.Period)
	k := keptKey{serial.String(), hash}
	r.mu.Lock()
	have := e.kept[k]
	r.mu.Unlock()
	if have.start.Equal(start) && have.der != nil {
		return have.der
	}
	der := e.response(r.ca, serial, hash, start).DER()
	r.mu.Lock()
	defer r.mu.Unlock()
	if have := e.kept[k]; have.start.Equal(start) && have.der != nil {
		return have.der // another request was faster, and its signature differs
	}
	if e.kept == nil {
		e.kept = make(map[keptKey]kept)
	}
	e.kept[k] = kept{start, der}
	return der
}

// response returns the response of which the certificate's status is known at start.
func (e *entry) response(ca *CA, serial *big.Int, hash crypto.Hash, start time.Time) *Response {
	a := &e.answer
	if a.Error != 0 {
		resp := &Response{Status: a.Error}
		if a.Edit != nil {
			a.Edit(resp)
		}
		return resp
	}
	thisUpdate := start.Add(-a.Age).Truncate(time.Second)
	single := Single{
		Issuer:     ca.Issuer,
		Serial:     serial,
		Hash:       hash,
		Status:     a.Status,
		Reason:     a.RevocationReason,
		RevokedAt:  orTime(a.RevokedAt, thisUpdate.Add(-time.Hour)),
		ThisUpdate: thisUpdate,
	}
	switch {
	case a.Validity == 0:
		single.NextUpdate = thisUpdate.Add(7 * day)
	case a.Validity > 0:
		single.NextUpdate = thisUpdate.Add(a.Validity)
	}
	resp := &Response{
		Signer:       a.Signer,
		ByName:       a.ByName,
		ProducedAt:   thisUpdate,
		Singles:      []Single{single},
		Certificates: a.Embed,
	}
	if resp.Signer == nil {
		resp.Signer = ca.Signer()
	}
	if a.Edit != nil {
		a.Edit(resp)
	}
	return resp
}

// key returns the key of leaf in a Responder's maps.
func key(leaf *x509.Certificate) string {
	if leaf == nil {
		return ""
	}
	return leaf.SerialNumber.String()
}

func requestURL(req *http.Request) string {
	if req.URL.Host != "" {
		return req.URL.String()
	}
	scheme := "http://"
	if req.TLS != nil {
		scheme = "https://"
	}
	return scheme + req.Host + req.URL.RequestURI()
}

// fromPath returns the OCSP request in the last segment of u's path, where the base64 text must be
// percent-encoded as RFC 6960 appendix A.1 asks; nil if there is none.
func fromPath(u *url.URL) []byte {
	path := u.EscapedPath()
	text, err := url.PathUnescape(path[strings.LastIndexByte(path, '/')+1:])
	if err != nil {
		return nil
	}
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(der) == 0 {
		return nil
	}
	return der
}
