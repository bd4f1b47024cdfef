package staple

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-staple/staple/internal/ask"
	"github.com/go-staple/staple/internal/bounded"
	"github.com/go-staple/staple/internal/exchange"
	"github.com/go-staple/staple/internal/fault"
	"github.com/go-staple/staple/internal/issuers"
	"github.com/go-staple/staple/internal/name"
	"github.com/go-staple/staple/internal/publicaddr"
	"github.com/go-staple/staple/internal/schedule"
)

// A Request asks a [Fetcher] for the OCSP response about one certificate.
type Request struct {
	Leaf, Issuer *x509.Certificate // whom it is about, and who issued that; a Stapler sets both

	// Accept, if not nil, tells whether a response is of use: authentic, about Leaf, current, and not older than the
	// one held, or newer where a cache may hide the last word. A Fetcher with several sources tries them until it
	// returns nil, or ignores it.
	Accept func(response []byte) error

	Responder string // the URL that answered; set by a Fetcher that knows it

	past ask.Past // for an HTTPFetcher: which caches to pass by
}

// A Fetcher obtains OCSP responses. It must be safe for concurrent use.
type Fetcher interface {
	// Fetch returns the DER-encoded OCSP response about req.Leaf, and need not verify it. An error that wraps
	// [ErrNoResponder] says that there is nobody to ask about this certificate, and the Stapler does not ask again.
	Fetch(ctx context.Context, req *Request) ([]byte, error)
}

// FetcherFunc adapts a function to a [Fetcher]. To another Fetcher it passes on the same Request, for Accept and
// Responder.
type FetcherFunc func(ctx context.Context, req *Request) ([]byte, error)

// Fetch calls f.
func (f FetcherFunc) Fetch(ctx context.Context, req *Request) ([]byte, error) { return f(ctx, req) }

// An IssuerFetcher also finds the issuer of a certificate whose chain lacks it.
type IssuerFetcher interface {
	// FetchIssuer returns candidates for the issuer of leaf, in any order. The caller checks that one of them really
	// signed leaf. An [HTTPError] says by whose fault it fails, and what pauses.
	FetchIssuer(ctx context.Context, leaf *x509.Certificate) ([]*x509.Certificate, error)
}

// An HTTPError reports a responder, or a source of issuers, that was of no use. If the URL was asked several times,
// Err wraps the error of each.
type HTTPError struct {
	URL        string        // as the certificate, or HTTPFetcher.URLs, gives it, but for credentials
	StatusCode int           // of the last answer; 0: there was none
	RetryAfter time.Duration // the longest that an answer asked for, a week at most; 0: nothing
	Err        error         // nil: the status code says it all

	fault schedule.Fault // of the last request; schedule.NoFault: the fields above say it all
}

// Error returns one printable line of bounded length, whatever the server sent.
func (e *HTTPError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "staple: %.200q: ", e.URL)
	if e.Err != nil {
		b.WriteString(name.Printable(e.Err.Error(), 2000))
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

// faults tells whose fault a failure is, of errors of this package and others.
var faults = fault.Reader{
	Of: func(err error) (fault.Told, bool) {
		e, ok := err.(*HTTPError)
		if !ok {
			return fault.Told{}, false
		}
		return fault.Told{URL: e.URL, Status: e.StatusCode, RetryAfter: e.RetryAfter, Err: e.Err, Fault: e.fault}, true
	},
	Refuses: func(err error) bool {
		_, refused := err.(*VerifyError)
		return refused || err == errUnknown || err == errOlder
	},
}

const (
	defaultMaxResponseSize = 64 << 10
	defaultRequestTimeout  = 10 * time.Second
	requestsPerFetch       = 3 // that may take the whole of their timeout
)

// An HTTPFetcher asks OCSP responders over HTTP, as RFC 9919 (the profile for high-volume environments) and RFC 6960,
// appendix A, have it: with GET while the URL that makes is short enough to be cached, with POST otherwise and where
// GET is no use. What worked is remembered for a URL; docs/asking.md tells what odd answers lead to. Credentials in a
// URL are sent (RFC 7617) where URLs gives it, dropped where the certificate does, and never shown. The zero value is
// ready to use, and safe for concurrent use. It must not be changed or copied after first use.
type HTTPFetcher struct {
	// Client makes the requests, with its own transport, proxy, redirect policy and cookies; nil: one made for this
	// work, which takes proxies from the environment as [http.ProxyFromEnvironment] does.
	Client *http.Client

	// Hash is that of the CertID, which names the certificate in the request; 0: SHA-1, which every responder
	// understands, and on whose strength nothing rests. Where it is no use another one is tried, and kept.
	Hash crypto.Hash

	URLs            func(leaf *x509.Certificate) []string // the responders to ask; nil: those in the certificate
	MaxResponseSize int64                                 // bytes of an answer that are read, 64 KiB if 0; a larger one is an error

	// PublicOnly has only globally reachable addresses connected to, by IANA's special-purpose registries, whatever a
	// name resolves to or a redirect leads to: for certificates from people who must not reach the server's own
	// network. No proxy is used. With a Client as well, which could go anywhere, Fetch and FetchIssuer return an
	// error.
	PublicOnly bool

	// Timeout is how long a request may take, with three redirects at most; not positive: ten seconds. Fetch and
	// FetchIssuer may take three times as long, divided among the URLs; if there is one alone, its request may.
	Timeout time.Duration

	mu         sync.Mutex
	own        *http.Client // where Client is nil; made at first use
	responders bounded.Map[string, responder]
	successes  int64

	issuers issuers.ByURL
}

// A responder is what is remembered of one, by its URL.
type responder struct {
	way  ask.Way // what worked last
	last int64   // HTTPFetcher.successes then
}

// Fetch implements [Fetcher]. It asks sixteen http and https URLs at most, the one that answered last first, until
// req.Accept takes a response (nil: whatever has the shape of a successful one), and sets req.Responder. What Accept
// refuses as expired, or as older than the one held, is asked for again past the caches between.
//
// The error wraps [ErrNoResponder] if there is no URL to ask. Otherwise it joins an [*HTTPError] for each URL, that
// with the longest RetryAfter first; the errors of Accept are in the tree, and an [ocsp.ResponseError] where a
// responder answered with one.
func (f *HTTPFetcher) Fetch(ctx context.Context, req *Request) ([]byte, error) {
	urls, err := f.responderURLs(req.Leaf)
	if err != nil {
		return nil, err
	}
	if req.Issuer == nil {
		return nil, fmt.Errorf("%w: HTTPFetcher.Fetch needs Request.Issuer", ErrNoIssuer)
	}
	f.mu.Lock()
	slices.SortStableFunc(urls, func(a, b exchange.Place) int {
		return cmp.Compare(f.responders.Get(b.URL).last, f.responders.Get(a.URL).last)
	})
	f.mu.Unlock()

	var response []byte
	err = f.inTurn(ctx, urls, func(ctx context.Context, p exchange.Place) *HTTPError {
		got, unchanged, failed := f.ask(ctx, p, req)
		if failed != nil {
			return failed
		}
		if !unchanged || response == nil {
			response, req.Responder = got, p.URL
		}
		if unchanged { // perhaps another one knows better
			return &HTTPError{URL: p.URL, StatusCode: http.StatusOK, Err: errUnchanged, fault: fault.Unasked}
		}
		return nil
	})
	if response != nil {
		return response, nil
	}
	return nil, err
}

// named returns the URLs that are there for leaf, usable or not.
func (f *HTTPFetcher) named(leaf *x509.Certificate) []exchange.Place {
	if f.URLs != nil {
		return exchange.Places(f.URLs(leaf), true)
	}
	return exchange.Places(leaf.OCSPServer, false)
}

// responderURLs returns the responders to ask about leaf.
func (f *HTTPFetcher) responderURLs(leaf *x509.Certificate) ([]exchange.Place, error) {
	switch {
	case f.PublicOnly && f.Client != nil:
		return nil, errors.New("staple: HTTPFetcher.PublicOnly cannot be ensured for a Client: set one of them")
	case leaf == nil:
		return nil, errors.New("staple: HTTPFetcher needs a leaf certificate")
	}
	all := f.named(leaf)
	if len(all) == 0 {
		return nil, ErrNoResponder
	}
	if !slices.ContainsFunc(all, exchange.Place.Fetchable) {
		var shown []string
		for _, p := range all {
			shown = append(shown, p.URL)
		}
		return nil, fmt.Errorf("%w: no http or https URL among %.200q", ErrNoResponder, shown)
	}
	return all, nil
}

// inTurn calls try with each URL until one succeeds, and joins the errors if none
// does. A URL may use its equal share of the time left, so that those at the end
// of the list are asked however long the first ones take.
func (f *HTTPFetcher) inTurn(ctx context.Context, urls []exchange.Place, try func(context.Context, exchange.Place) *HTTPError) error {
	ctx, cancel := context.WithTimeout(ctx, f.fetchTimeout())
	defer cancel()
	deadline, _ := ctx.Deadline()
	left := len(slices.DeleteFunc(slices.Clone(urls), func(p exchange.Place) bool { return !p.Fetchable() }))
	alone := left == 1
	var failures []*HTTPError
	for _, p := range urls {
		if ctx.Err() != nil {
			failures = append(failures, &HTTPError{URL: p.URL, Err: fmt.Errorf("not asked: %w", ctx.Err()), fault: fault.Unasked})
			continue
		}
		share, cancel := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(max(left, 1)))
		if p.Fetchable() {
			left--
		}
		p.Alone = alone
		failed := try(share, p)
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

func (f *HTTPFetcher) requestTimeout() time.Duration {
	return cmp.Or(max(f.Timeout, 0), defaultRequestTimeout)
}

func (f *HTTPFetcher) fetchTimeout() time.Duration { return requestsPerFetch * f.requestTimeout() }

// ask gets a response from one responder, in the way that worked the last time.
// unchanged tells that it is what is held already.
func (f *HTTPFetcher) ask(ctx context.Context, p exchange.Place, req *Request) (response []byte, unchanged bool, failure *HTTPError) {
	if p.Err != nil {
		return nil, false, &HTTPError{URL: p.URL, Err: p.Err, fault: fault.Unasked}
	}
	f.mu.Lock()
	known := f.responders.Get(p.URL)
	f.mu.Unlock()
	way := known.way
	way.Hash = cmp.Or(way.Hash, f.Hash, crypto.SHA1)

	q := &ask.Question{Client: f.client(p), Responder: p.At, Leaf: req.Leaf, Issuer: req.Issuer, Accept: req.Accept, Cause: causeOf, Past: req.past}
	response, next, failed := q.Ask(ctx, way)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case response != nil && !q.Unchanged:
		f.successes++
		f.responders.Put(p.URL, responder{next, f.successes})
	case next != way:
		f.responders.Put(p.URL, responder{next, known.last})
	}
	if response != nil {
		return response, q.Unchanged, nil
	}
	return nil, false, failedAttempts(p.URL, failed)
}

// causeOf tells why Accept refused a response with err.
func causeOf(err error) ask.Cause {
	refused, ok := errors.AsType[*VerifyError](err)
	switch {
	case ok && refused.Reason == ReasonExpired, errors.Is(err, errOlder):
		return ask.Stale
	case errors.Is(err, errUnchanged):
		return ask.Unchanged
	case errors.Is(err, errUnknown):
		return ask.Unknown
	}
	return ask.Other
}

// failedAttempts returns an error that tells of all requests to one URL.
func failedAttempts(name string, failed []ask.Attempt) *HTTPError {
	e := &HTTPError{URL: name, fault: fault.Unasked}
	for _, a := range failed {
		if e.Err == nil {
			e.Err = a.Err
		} else {
			e.Err = fmt.Errorf("%w; %w", e.Err, a.Err)
		}
		e.StatusCode = cmp.Or(a.Status, e.StatusCode)
		e.RetryAfter = max(e.RetryAfter, a.RetryAfter)
		if whose := faults.Attempt(a); whose != fault.Unasked {
			e.fault = whose
		}
	}
	return e
}

// FetchIssuer implements [IssuerFetcher]. It asks the URLs in leaf's Authority Information Access extension, within
// the bounds of Fetch, understands DER, PEM and certs-only PKCS #7 (RFC 5280, section 4.2.2.1), and returns the
// certificates whose key verifies leaf's signature. They are kept for the next leaf that names the same URL. The
// error wraps [ErrNoResponder] if no issuer would help to ask anybody, and [ErrNoIssuer] if leaf names no such URL.
func (f *HTTPFetcher) FetchIssuer(ctx context.Context, leaf *x509.Certificate) ([]*x509.Certificate, error) {
	found, urls, err := f.knownIssuers(leaf)
	if err != nil || len(found) > 0 {
		return found, err
	}
	err = f.inTurn(ctx, urls, func(ctx context.Context, p exchange.Place) *HTTPError {
		u := p.URL
		p.Alone = false // an issuer comes from a file
		var err error
		found, err = f.issuers.Get(ctx, u, leaf, func(ctx context.Context) ([]*x509.Certificate, error) { return f.certificates(ctx, p) })
		failed, ok := errors.AsType[*HTTPError](err)
		switch {
		case ok:
			return failed
		case err != nil:
			return &HTTPError{URL: u, Err: err}
		case len(found) == 0:
			return &HTTPError{URL: u, StatusCode: http.StatusOK, fault: schedule.Certificate,
				Err: errors.New("GET: no certificate there has the key that signed the leaf")}
		}
		return nil
	})
	return found, err
}

// knownIssuers returns those that FetchIssuer returns without asking anybody, or whom it asks.
func (f *HTTPFetcher) knownIssuers(leaf *x509.Certificate) (found []*x509.Certificate, urls []exchange.Place, err error) {
	if _, err := f.responderURLs(leaf); err != nil {
		return nil, nil, err
	}
	urls = exchange.Places(leaf.IssuingCertificateURL, false)
	if !slices.ContainsFunc(urls, exchange.Place.Fetchable) {
		return nil, nil, fmt.Errorf("%w: the certificate gives no http or https URL for its issuer", ErrNoIssuer)
	}
	for _, p := range urls {
		if found = f.issuers.Known(p.URL, leaf); len(found) > 0 {
			break
		}
	}
	return found, urls, nil
}

// certificates returns the certificates at a URL. The error is an *HTTPError.
func (f *HTTPFetcher) certificates(ctx context.Context, p exchange.Place) ([]*x509.Certificate, error) {
	if p.Err != nil {
		return nil, &HTTPError{URL: p.URL, Err: p.Err, fault: fault.Unasked}
	}
	header := http.Header{"Accept": {"application/pkix-cert, application/pkcs7-mime, */*;q=0.5"}}
	r := f.client(p).Do(ctx, http.MethodGet, p.At.String(), nil, header)
	if r.Err == nil {
		if certs := issuers.Parse(r.Body); len(certs) > 0 {
			return certs, nil
		}
		r.Err = r.Unusable("no certificate in DER, PEM or PKCS #7")
	}
	whose := faults.In(r.Answered, r.Status, r.RetryAfter, r.Err)
	switch {
	case ctx.Err() == context.Canceled:
		whose = fault.Unasked
	case whose != schedule.Host:
		whose = schedule.URL // others would get the same file
	}
	err := fmt.Errorf("GET: %w", r.Err)
	return nil, &HTTPError{URL: p.URL, StatusCode: r.Status, RetryAfter: r.RetryAfter, Err: err, fault: whose}
}

// client returns the client to use for what is at p, and its bounds. An only URL has all the time there is.
func (f *HTTPFetcher) client(p exchange.Place) exchange.Client {
	c := exchange.Client{HTTP: f.Client, Timeout: f.requestTimeout(), User: p.User, Trust: "HTTPFetcher.Client",
		MaxBody: cmp.Or(f.MaxResponseSize, defaultMaxResponseSize), Bound: "HTTPFetcher.MaxResponseSize"}
	if p.Alone {
		c.Timeout = f.fetchTimeout()
	}
	if c.HTTP != nil {
		return c
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.own == nil {
		var control func(network, address string, c syscall.RawConn) error
		if f.PublicOnly {
			control = publicOnly
		}
		f.own = exchange.NewClient(f.fetchTimeout()+f.requestTimeout(), control)
	}
	c.HTTP = f.own
	return c
}

// publicOnly is a net.Dialer's Control.
func publicOnly(network, address string, c syscall.RawConn) error {
	if err := publicaddr.Control(network, address, c); err != nil {
		return fmt.Errorf("HTTPFetcher.PublicOnly: %w", err)
	}
	return nil
}

// CloseIdleConnections closes connections that are kept, but not a Client's. Stapler.Close calls any Fetcher's method
// of this name.
func (f *HTTPFetcher) CloseIdleConnections() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.own != nil {
		f.own.CloseIdleConnections()
	}
}
