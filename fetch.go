package staple

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/fips140"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"
)

// A Request asks a [Fetcher] for the OCSP response about one certificate.
type Request struct {
	// Leaf is the certificate asked about, Issuer the one that issued it.
	// Neither is nil in a request that a Stapler makes.
	Leaf, Issuer *x509.Certificate

	// Accept tells whether the Stapler takes a response: whether it is
	// authentic, about Leaf, current, and not older than the one held. If nil,
	// any response will do. A Fetcher with several sources goes on to the next
	// until Accept returns nil; one that ignores Accept stays correct.
	Accept func(response []byte) error

	// Responder is set by a Fetcher that knows it to the URL that answered.
	Responder string
}

// A Fetcher obtains OCSP responses. It must be safe for concurrent use.
type Fetcher interface {
	// Fetch returns the DER-encoded OCSP response about req.Leaf. It need not
	// verify it. An error that wraps [ErrNoResponder] says that there is nobody
	// to ask about this certificate; the Stapler does not ask again.
	Fetch(ctx context.Context, req *Request) ([]byte, error)
}

// FetcherFunc adapts a function to a [Fetcher]. A function that calls another
// Fetcher passes on the same Request, so that Accept and Responder do their work.
type FetcherFunc func(ctx context.Context, req *Request) ([]byte, error)

// Fetch calls f.
func (f FetcherFunc) Fetch(ctx context.Context, req *Request) ([]byte, error) { return f(ctx, req) }

// An IssuerFetcher is a [Fetcher] that can also find the issuer of a
// certificate whose chain lacks it.
type IssuerFetcher interface {
	// FetchIssuer returns candidates for the issuer of leaf, in any order. The
	// caller checks that one of them really signed leaf.
	FetchIssuer(ctx context.Context, leaf *x509.Certificate) ([]*x509.Certificate, error)
}

// An HTTPError reports a responder, or a source of issuers, that could not be
// asked or whose answer was of no use. Where the URL was asked several times, in
// different ways, Err wraps the error of each.
type HTTPError struct {
	URL        string        // as the certificate, or HTTPFetcher.URLs, gives it
	StatusCode int           // of the last answer; 0: there was none
	RetryAfter time.Duration // the longest that an answer asked for, a week at most; 0: nothing
	Err        error         // nil: the status code says it all
}

// Error names the URL, what went wrong, and the status code if there is one. It
// is a single printable line of bounded length, whatever the server sent.
func (e *HTTPError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "staple: %.200q: ", e.URL)
	if e.Err != nil {
		b.WriteString(printable(e.Err.Error(), 2000))
		b.WriteString(" ")
	}
	switch {
	case e.StatusCode == 0:
		b.WriteString("(no HTTP response)")
	case e.RetryAfter > 0:
		fmt.Fprintf(&b, "(HTTP status %d, retry after %v)", e.StatusCode, e.RetryAfter)
	default:
		fmt.Fprintf(&b, "(HTTP status %d)", e.StatusCode)
	}
	return b.String()
}

// Unwrap returns e.Err.
func (e *HTTPError) Unwrap() error { return e.Err }

// printable returns s, cut after limit bytes, without what a terminal or a log
// might take for more than text.
func printable(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return utf8.RuneError
	}, s)
}

// and returns an error that says what e and next say. They are about requests to
// the same URL, next about the later one. e may be nil.
func (e *HTTPError) and(next *HTTPError) *HTTPError {
	if e == nil {
		return next
	}
	return &HTTPError{
		URL:        e.URL,
		StatusCode: cmp.Or(next.StatusCode, e.StatusCode),
		RetryAfter: max(e.RetryAfter, next.RetryAfter),
		Err:        fmt.Errorf("%w; %w", e.Err, next.Err),
	}
}

const (
	defaultMaxResponseSize = 64 << 10
	defaultRequestTimeout  = 10 * time.Second
	requestsPerFetch       = 3 // that may take the whole of their timeout

	maxGETURL     = 255 // RFC 9919, section 6
	maxURL        = 2048
	maxURLs       = 16 // of one certificate
	maxRedirects  = 3
	maxRetryAfter = 7 * 24 * time.Hour
	maxRemembered = 512 // URLs
)

// An HTTPFetcher asks OCSP responders over HTTP, as RFC 9919 (the profile for
// high-volume environments) and RFC 6960, appendix A, have it: with GET while the
// URL that makes is short enough to be cached, with POST otherwise and where GET
// is refused. A responder that leaves a GET without any answer is asked with POST
// the next time, and with GET again if that fails.
//
// A request may take ten seconds, and at most three redirects; Fetch and
// FetchIssuer may take thirty each, divided among the URLs there are.
//
// The zero value is ready to use. The fields must not be changed, and the
// HTTPFetcher not be copied, after first use. It is safe for concurrent use.
type HTTPFetcher struct {
	// Client makes the requests, with its own transport, proxy, redirect policy
	// and cookies. If nil, a client made for this work is used, which takes
	// proxies from the environment as [http.ProxyFromEnvironment] does.
	Client *http.Client

	// Hash is the hash function of the CertID, which names the certificate in
	// the request. If 0, it is SHA-1, which every responder understands; nothing
	// here rests on its strength. A responder that answers malformedRequest or
	// unauthorized is asked again with SHA-1, or with SHA-256 if it was SHA-1,
	// and from then on with what worked.
	Hash crypto.Hash

	// URLs returns the responders to ask about leaf. If nil, they are those in
	// the certificate, leaf.OCSPServer.
	URLs func(leaf *x509.Certificate) []string

	// MaxResponseSize is how many bytes of an answer are read; a larger one is
	// an error. If 0, it is 64 KiB.
	MaxResponseSize int64

	// PublicOnly makes sure that only globally reachable addresses are connected
	// to, those which IANA's special-purpose address registries do not reserve
	// for something else, whatever a name resolves to or a redirect leads to. It
	// is for certificates from people who must not reach the server's own
	// network. No proxy is used. It cannot be ensured for a Client: with both
	// set, Fetch and FetchIssuer return an error.
	PublicOnly bool

	timeout time.Duration // of a request; 0: defaultRequestTimeout

	mu         sync.Mutex
	own        *http.Client // where Client is nil; made at first use
	responders map[string]responder
	successes  int64
	issuers    map[string][]*x509.Certificate // by the URL where they were found
	inFlight   map[string]*issuerRequest
}

// A responder is what is remembered of one, by its URL.
type responder struct {
	hash crypto.Hash // of the CertID in the last request that succeeded
	last int64       // HTTPFetcher.successes then
	post bool        // a GET got no answer since
}

// keep adds an entry to a map that is kept small: at worst, what is forgotten
// costs a further request.
func keep[V any](m *map[string]V, key string, value V) {
	if *m == nil {
		*m = make(map[string]V)
	}
	for k := range *m {
		if len(*m) < maxRemembered {
			break
		}
		delete(*m, k)
	}
	(*m)[key] = value
}

// Fetch implements [Fetcher]. It asks the responders of req.Leaf in turn, the one
// that answered last first, until one gives a response that req.Accept takes, and
// sets req.Responder to its URL. If Accept is nil, it takes whatever has the
// shape of a successful OCSP response. A response that Accept refuses as expired,
// or as older than the one held, is asked for again past the caches between.
// At most sixteen URLs, http and https alone, are asked.
//
// The error wraps [ErrNoResponder] if there is no URL to ask, without any I/O.
// Otherwise it joins an [*HTTPError] for each URL; the errors of Accept are in
// the tree, and so is an [ocsp.ResponseError] where a responder answered with
// one. The HTTPError with the longest RetryAfter comes first.
func (f *HTTPFetcher) Fetch(ctx context.Context, req *Request) ([]byte, error) {
	urls, err := f.responderURLs(req.Leaf)
	if err != nil {
		return nil, err
	}
	if req.Issuer == nil {
		return nil, fmt.Errorf("%w: HTTPFetcher.Fetch needs Request.Issuer", ErrNoIssuer)
	}
	f.mu.Lock()
	slices.SortStableFunc(urls, func(a, b string) int {
		return cmp.Compare(f.responders[b].last, f.responders[a].last)
	})
	f.mu.Unlock()

	var response []byte
	err = f.inTurn(ctx, urls, func(ctx context.Context, u string) (failed *HTTPError) {
		if response, failed = f.ask(ctx, u, req); failed == nil {
			req.Responder = u
		}
		return failed
	})
	return response, err
}

// responderURLs returns a copy of the list of responders to ask about leaf.
func (f *HTTPFetcher) responderURLs(leaf *x509.Certificate) ([]string, error) {
	switch {
	case f.PublicOnly && f.Client != nil:
		return nil, errors.New("staple: HTTPFetcher.PublicOnly cannot be ensured for a Client: set one of them")
	case leaf == nil:
		return nil, errors.New("staple: HTTPFetcher needs a leaf certificate")
	}
	urls := leaf.OCSPServer
	if f.URLs != nil {
		urls = f.URLs(leaf)
	}
	switch {
	case len(urls) == 0:
		return nil, ErrNoResponder
	case !slices.ContainsFunc(urls, fetchable):
		return nil, fmt.Errorf("%w: no http or https URL among %.200q", ErrNoResponder, urls[:min(len(urls), maxURLs)])
	}
	return slices.Clone(urls), nil
}

// parseURL parses a URL that may be asked. Credentials in it are dropped.
func parseURL(s string) (*url.URL, error) {
	if len(s) > maxURL {
		return nil, fmt.Errorf("URL of %d bytes, more than %d", len(s), maxURL)
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, errors.New("not an http or https URL")
	}
	u.User, u.Fragment, u.RawFragment = nil, "", ""
	return u, nil
}

func fetchable(s string) bool {
	_, err := parseURL(s)
	return err == nil
}

// inTurn calls ask with each URL until one succeeds, and joins the errors if none
// does. A URL may use its equal share of the time left, so that those at the end
// of the list are asked however long the first ones take.
func (f *HTTPFetcher) inTurn(ctx context.Context, urls []string, ask func(context.Context, string) *HTTPError) error {
	ctx, cancel := context.WithTimeout(ctx, requestsPerFetch*f.requestTimeout())
	defer cancel()
	deadline, _ := ctx.Deadline()
	urls = urls[:min(len(urls), maxURLs)]
	var failures []*HTTPError
	for i, u := range urls {
		if ctx.Err() != nil {
			failures = append(failures, &HTTPError{URL: u, Err: fmt.Errorf("not asked: %w", ctx.Err())})
			continue
		}
		share, cancel := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(urls)-i))
		failed := ask(share, u)
		cancel()
		if failed == nil {
			return nil
		}
		failures = append(failures, failed)
	}
	slices.SortStableFunc(failures, func(a, b *HTTPError) int { return cmp.Compare(b.RetryAfter, a.RetryAfter) })
	errs := make([]error, len(failures))
	for i, e := range failures {
		errs[i] = e
	}
	return errors.Join(errs...)
}

func (f *HTTPFetcher) requestTimeout() time.Duration { return cmp.Or(f.timeout, defaultRequestTimeout) }

// ask gets a response from one responder, with the other hash function or method
// where that may help.
func (f *HTTPFetcher) ask(ctx context.Context, name string, req *Request) ([]byte, *HTTPError) {
	base, err := parseURL(name)
	if err != nil {
		return nil, &HTTPError{URL: name, Err: err}
	}
	f.mu.Lock()
	known := f.responders[name]
	f.mu.Unlock()
	hash := cmp.Or(known.hash, f.Hash, crypto.SHA1)
	other := crypto.SHA1
	if hash == crypto.SHA1 {
		other = crypto.SHA256
	}

	q := &inquiry{fetcher: f, name: name, base: base, req: req}
	response, failed := q.ask(ctx, hash, !known.post)
	if garbled := answered(failed, ocsp.Malformed); garbled || answered(failed, ocsp.Unauthorized) {
		if response, failed = q.ask(ctx, other, !known.post); failed == nil {
			hash = other
		} else if garbled {
			// Perhaps by a proxy that decodes the path, or merges its slashes.
			response, failed = q.ask(ctx, hash, false)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if failed != nil {
		if post := !known.post && errors.Is(failed.Err, errSilent); post != known.post {
			known.post = post
			keep(&f.responders, name, known)
		}
		return nil, q.failed
	}
	f.successes++
	keep(&f.responders, name, responder{hash, f.successes, known.post})
	return response, nil
}

// An inquiry is a series of requests to one responder about one certificate.
type inquiry struct {
	fetcher *HTTPFetcher
	name    string // of the responder, its URL as given
	base    *url.URL
	req     *Request
	failed  *HTTPError // tells what went wrong with each request so far
}

// ask returns the response to a CertID with the given hash, or what went wrong
// last. It uses GET, if it may, and POST where GET is no use.
func (q *inquiry) ask(ctx context.Context, hash crypto.Hash, get bool) ([]byte, *HTTPError) {
	// The name is the leaf's: RFC 6960, section 4.1.1.
	issuer := &x509.Certificate{RawSubject: q.req.Leaf.RawIssuer, RawSubjectPublicKeyInfo: q.req.Issuer.RawSubjectPublicKeyInfo}
	der, err := createRequest(q.req.Leaf, issuer, hash)
	if err != nil {
		q.failed = q.failed.and(&HTTPError{URL: q.name, Err: fmt.Errorf("making a request with a CertID hash of %v: %w", hash, err)})
		return nil, q.failed
	}
	if target := getURL(q.base, der); get && target != "" {
		response, failed := q.send(ctx, http.MethodGet, target, nil, http.Header{})
		if stale(failed) {
			fresh := http.Header{"Cache-Control": {"no-cache"}}
			if response, failed = q.send(ctx, http.MethodGet, target, nil, fresh); failed == nil {
				return response, nil
			}
		} else if !refusesGET(failed) {
			return response, failed
		}
	}
	return q.send(ctx, http.MethodPost, q.base.String(), der, http.Header{
		"Content-Type":    {"application/ocsp-request"},
		"Idempotency-Key": {}, // not sent; net/http may repeat the request where a connection turns out to be closed
	})
}

// createRequest makes an OCSP request, in FIPS 140-only mode too: see sumSHA1.
func createRequest(leaf, issuer *x509.Certificate, hash crypto.Hash) (der []byte, err error) {
	fips140.WithoutEnforcement(func() { der, err = ocsp.CreateRequest(leaf, issuer, &ocsp.RequestOptions{Hash: hash}) })
	return der, err
}

// getURL returns the URL that asks for request with GET, or "" if there is none:
// if it would be too long, or base has a query, where there is no telling how the
// responder wants the two joined.
func getURL(base *url.URL, request []byte) string {
	u := strings.TrimSuffix(base.String(), "/") + "/" + url.QueryEscape(base64.StdEncoding.EncodeToString(request))
	if len(u) > maxGETURL || base.RawQuery != "" || base.ForceQuery {
		return ""
	}
	return u
}

// send makes one request.
func (q *inquiry) send(ctx context.Context, method, target string, body []byte, header http.Header) ([]byte, *HTTPError) {
	header.Set("Accept", "application/ocsp-response")
	response, contentType, result := q.fetcher.do(ctx, q.name, method, target, body, header)
	switch status, ok := responseStatus(response); {
	case ok && status != ocsp.Success:
		result.Err = ocsp.ResponseError{Status: status}
	case result.Err != nil:
	case !ok:
		result.Err = unusable(response, contentType, "not an OCSP response")
	case q.req.Accept != nil:
		result.Err = q.req.Accept(response)
	}
	if result.Err == nil {
		return response, nil
	}
	result.Err = fmt.Errorf("%s: %w", method, result.Err)
	q.failed = q.failed.and(result)
	return nil, result
}

// responseStatus reads the outermost layer of an OCSP response, and tells whether
// data looks like one.
func responseStatus(data []byte) (ocsp.ResponseStatus, bool) {
	input := cryptobyte.String(data)
	var response cryptobyte.String
	var status int
	ok := input.ReadASN1(&response, cryptobyte_asn1.SEQUENCE) && input.Empty() &&
		response.ReadASN1Enum(&status) && (status == int(ocsp.Success)) == !response.Empty()
	return ocsp.ResponseStatus(status), ok
}

// refusesGET reports whether POST may work better. e may be nil.
func refusesGET(e *HTTPError) bool {
	if e == nil {
		return false
	}
	switch e.StatusCode {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed,
		http.StatusLengthRequired, http.StatusNotImplemented:
		return true
	}
	return errors.Is(e.Err, errUnusableBody)
}

// stale reports whether a cache may have given a response that is past its time.
// e may be nil.
func stale(e *HTTPError) bool {
	if e == nil {
		return false
	}
	refused, ok := errors.AsType[*VerifyError](e.Err)
	return ok && refused.Reason == ReasonExpired || errors.Is(e.Err, errOlder)
}

// answered reports whether the responder answered with an error status of OCSP's.
// e may be nil.
func answered(e *HTTPError, status ocsp.ResponseStatus) bool {
	if e == nil {
		return false
	}
	answer, ok := errors.AsType[ocsp.ResponseError](e.Err)
	return ok && answer.Status == status
}

// errUnusableBody reports an answer with status 200 whose body is not what was
// asked for.
var errUnusableBody = errors.New("unusable answer")

// errSilent reports a connection over which no answer came.
var errSilent = errors.New("no answer")

func unusable(body []byte, contentType, why string) error {
	return fmt.Errorf("%w: %s, Content-Type %.100q, %d bytes that begin with %.40q", errUnusableBody, why, contentType, len(body), body)
}

// do sends a request, and returns the body of the answer and its Content-Type.
// The error in result is nil only if the status is 200, and the body complete.
func (f *HTTPFetcher) do(ctx context.Context, name, method, target string, body []byte, header http.Header) (answer []byte, contentType string, result *HTTPError) {
	result = &HTTPError{URL: name}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, f.requestTimeout())
	defer cancel()
	fail := func(err error) ([]byte, string, *HTTPError) {
		if ctx.Err() == context.DeadlineExceeded {
			err = fmt.Errorf("no complete answer within %v: %w", time.Since(began).Round(time.Millisecond), err)
		}
		result.Err = err
		return answer, contentType, result
	}

	var silent atomic.Bool
	trace := &httptrace.ClientTrace{
		GotConn:              func(httptrace.GotConnInfo) { silent.Store(true) },
		GotFirstResponseByte: func() { silent.Store(false) },
	}
	r, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), method, target, bytes.NewReader(body))
	if err != nil {
		return fail(err)
	}
	r.Header = header
	header.Set("Accept-Encoding", "identity") // and the transport decompresses nothing
	resp, err := f.client().Do(r)
	if resp != nil {
		result.StatusCode = resp.StatusCode
		result.RetryAfter = retryAfterHeader(resp.Header.Get("Retry-After"))
		contentType = resp.Header.Get("Content-Type")
	}
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // the URL is known, and long
		}
		if silent.Load() {
			err = fmt.Errorf("%w: %w", errSilent, err)
		}
		return fail(err)
	}
	defer resp.Body.Close()
	limit := cmp.Or(f.MaxResponseSize, defaultMaxResponseSize)
	answer, err = io.ReadAll(http.MaxBytesReader(nil, resp.Body, limit))
	_, tooLarge := errors.AsType[*http.MaxBytesError](err)
	encoding := resp.Header.Get("Content-Encoding")
	switch {
	case resp.StatusCode != http.StatusOK:
		return fail(fmt.Errorf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode)))
	case tooLarge:
		return fail(unusable(answer, contentType, fmt.Sprintf("larger than %d bytes", limit)))
	case err != nil:
		return fail(fmt.Errorf("the body was cut short after %d bytes: %w", len(answer), err))
	case encoding != "" && encoding != "identity":
		return fail(unusable(answer, contentType, fmt.Sprintf("Content-Encoding %.40q, which was not asked for", encoding)))
	case len(answer) == 0:
		return fail(fmt.Errorf("%w: an empty body", errUnusableBody))
	}
	return answer, contentType, result
}

// retryAfterHeader reads what RFC 9110, section 10.2.3, lets a Retry-After field
// hold: a number of seconds, or a date.
func retryAfterHeader(s string) time.Duration {
	var d time.Duration
	if seconds, err := strconv.ParseUint(s, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		d = time.Duration(min(seconds, uint64(maxRetryAfter/time.Second))) * time.Second
	} else if t, err := http.ParseTime(s); err == nil {
		d = time.Until(t)
	}
	return min(max(d, 0), maxRetryAfter)
}

// client returns the client to use.
func (f *HTTPFetcher) client() *http.Client {
	if f.Client != nil {
		return f.Client
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.own == nil {
		f.own = f.newClient()
	}
	return f.own
}

func (f *HTTPFetcher) newClient() *http.Client {
	// A transport goes on connecting behind a request that has given up. The
	// timeout is for that; it must not come before the request's own.
	timeout := 2 * f.requestTimeout()
	dialer := &net.Dialer{Timeout: timeout}
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		TLSHandshakeTimeout:    timeout,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		MaxIdleConns:           100,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
	if f.PublicOnly {
		dialer.Control = publicOnly
		transport.Proxy = nil
	}
	return &http.Client{Transport: transport, CheckRedirect: checkRedirect}
}

func checkRedirect(next *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	u, err := parseURL(next.URL.String())
	if err != nil {
		return fmt.Errorf("redirected to %.200q: %w", next.URL, err)
	}
	next.URL = u
	if via[len(via)-1].Method == http.MethodPost && next.Method == http.MethodGet && next.Response.StatusCode != http.StatusSeeOther {
		// As browsers do, net/http makes a GET without the request of it. nginx
		// redirects so from a location without its last slash.
		first := via[0]
		if next.Body, err = first.GetBody(); err != nil {
			return err
		}
		next.Method, next.GetBody, next.ContentLength = http.MethodPost, first.GetBody, first.ContentLength
		next.Header.Set("Content-Type", first.Header.Get("Content-Type"))
	}
	return nil
}

// closeIdle closes the connections that are kept for the next request, unless
// they belong to a Client.
func (f *HTTPFetcher) closeIdle() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.own != nil {
		f.own.CloseIdleConnections()
	}
}
