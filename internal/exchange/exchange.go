// Package exchange makes HTTP requests within bounds, to servers that may be slow, broken
// or hostile:
//
//	c := exchange.Client{HTTP: exchange.NewClient(20*time.Second, nil), Timeout: 10*time.Second, MaxBody: 64<<10}
//	u, err := exchange.ParseURL(s)
//	r := c.Do(ctx, http.MethodGet, u.String(), nil, http.Header{})
//
// Whatever comes back, [Client.Do] ends after Timeout, has read little more than MaxBody,
// and tells the status, what Retry-After asks for, and in one error what was wrong. It
// knows nothing of what is asked for, decodes nothing, and never asks again by itself but
// as net/http does: along redirects, and where a connection that was kept turns out to be
// closed.
package exchange

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// MaxRetryAfter is the longest time that a Retry-After is taken for.
	MaxRetryAfter = 7 * 24 * time.Hour

	maxURL = 2048
)

var (
	// ErrUnusable is wrapped by the error about an answer with status 200 whose body
	// is not what was asked for.
	ErrUnusable = errors.New("unusable answer")

	// ErrSilent is wrapped by the error about a connection over which no answer came.
	ErrSilent = errors.New("no answer")
)

// ParseURL parses a URL that may be asked: http or https, with a host, and not longer
// than any real one. Credentials and a fragment in it are dropped.
func ParseURL(s string) (*url.URL, error) {
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

// Shown returns a URL as it may be shown to anybody: without credentials, and without white space around it. Of one
// that cannot be asked nobody knows where they end: what may be some is left out.
func Shown(s string) string {
	s = strings.TrimSpace(s)
	if i := strings.LastIndexByte(s, '@'); i >= 0 && !Fetchable(s) {
		scheme, _, ok := strings.Cut(s, ":")
		if !ok || strings.ContainsAny(scheme, "@/") || !strings.HasPrefix(s[len(scheme):], "://") {
			return "..." + s[i+1:]
		}
		return scheme + "://..." + s[i+1:]
	}
	begin := 0
	if i := strings.Index(s, "//"); i >= 0 {
		begin = i + 2
	}
	end := len(s)
	if i := strings.IndexAny(s[begin:], "/?#"); i >= 0 {
		end = begin + i
	}
	if i := strings.LastIndexByte(s[begin:end], '@'); i >= 0 {
		return s[:begin] + s[begin+i+1:]
	}
	return s
}

// Fetchable reports whether [ParseURL] takes a URL.
func Fetchable(s string) bool {
	_, err := ParseURL(s)
	return err == nil
}

// A Client is an HTTP client and the bounds of its exchanges.
type Client struct {
	HTTP    *http.Client
	Timeout time.Duration // of an exchange, its redirects and its body included
	MaxBody int64         // how many bytes of it are read; more is an error
	Bound   string        // what sets MaxBody, for that error; empty: nothing does
	Trust   string        // what sets the roots and certificates of HTTPS, for errors about them; empty: nothing does
	User    *url.Userinfo // credentials, which are sent as RFC 7617 says; nil: none
}

// A Result is what came of an exchange.
type Result struct {
	Status      int           // of the answer; 0: there was none
	RetryAfter  time.Duration // that the answer asks for, MaxRetryAfter at most; 0: nothing
	ContentType string
	Body        []byte // as far as it was read
	Answered    bool   // something was heard of the server, if only the first byte of an answer or a redirect
	Err         error  // nil only if the status is 200 and the body complete, not empty, and not encoded
}

// Unusable returns an error, which wraps [ErrUnusable], about a body that is not what was
// asked for. It quotes the body's beginning.
func (r *Result) Unusable(why string) error {
	return fmt.Errorf("%w: %s, Content-Type %.100q, %d bytes that begin with %.40q",
		ErrUnusable, why, r.ContentType, len(r.Body), r.Body)
}

// Do makes one request, which takes the header over. target is the result of [ParseURL].
func (c Client) Do(ctx context.Context, method, target string, body []byte, header http.Header) (result Result) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	result.Err = c.do(ctx, cancel, method, target, body, header, &result)
	if result.Err != nil && ctx.Err() == context.DeadlineExceeded {
		result.Err = fmt.Errorf("no complete answer within %v: %w", time.Since(began).Round(time.Millisecond), result.Err)
	}
	return result
}

// do fills in everything but result.Err. It calls cancel, of ctx, before it gives an answer up: from Go 1.27 on, net/http
// would read on for a while, so as to use the connection again.
func (c Client) do(ctx context.Context, cancel func(), method, target string, body []byte, header http.Header, result *Result) error {
	var silent, heard atomic.Bool
	trace := &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { silent.Store(true) },
		GotFirstResponseByte: func() {
			silent.Store(false)
			heard.Store(true)
		},
	}
	r, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), method, target, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header = header
	header.Set("Accept-Encoding", "identity") // and the transport decompresses nothing
	if c.User != nil {
		password, _ := c.User.Password()
		r.SetBasicAuth(c.User.Username(), password)
	}
	resp, err := c.client().Do(r)
	if resp != nil {
		result.Status = resp.StatusCode
		result.RetryAfter = retryAfter(resp.Header.Get("Retry-After"))
		result.ContentType = resp.Header.Get("Content-Type")
	}
	result.Answered = resp != nil || heard.Load()
	if err != nil {
		at := target
		if e, ok := errors.AsType[*url.Error](err); ok {
			at, err = e.URL, e.Err // the URL is known, and long
		}
		err = c.advise(bounded(err))
		if silent.Load() {
			err = fmt.Errorf("%w: %w", ErrSilent, err)
		}
		return redirected(target, at, err)
	}
	defer resp.Body.Close()
	defer cancel()
	at := target
	if resp.Request != nil && resp.Request.URL != nil { // else it is a transport that does not say
		at = resp.Request.URL.String()
	}
	return redirected(target, at, c.read(resp, result))
}

// client returns the client to use: with credentials, one that takes them nowhere else. net/http goes by the domain
// alone, and knows neither ports nor that http is no place for what was meant for https.
func (c Client) client() *http.Client {
	if c.User == nil {
		return c.HTTP
	}
	careful := *c.HTTP
	careful.CheckRedirect = func(next *http.Request, via []*http.Request) error {
		if first := via[0].URL; next.URL.Scheme != first.Scheme || next.URL.Host != first.Host {
			next.Header.Del("Authorization")
		}
		switch {
		case c.HTTP.CheckRedirect != nil:
			return c.HTTP.CheckRedirect(next, via)
		case len(via) >= 10: // as net/http has it
			return errors.New("stopped after 10 redirects")
		}
		return nil
	}
	return &careful
}

// maxErrorText bounds what an error quotes of a server's answer: a header may be long, and errors are kept.
const maxErrorText = 500

// bounded returns err, or if its text is too long the beginning of that, and what it was about.
func bounded(err error) error {
	text := err.Error()
	if len(text) <= maxErrorText {
		return err
	}
	short := errors.New(strings.Clone(text[:maxErrorText]) + "...")
	for _, known := range []error{context.Canceled, context.DeadlineExceeded, io.ErrUnexpectedEOF, io.EOF, ErrSilent} {
		if errors.Is(err, known) {
			return fmt.Errorf("%w: %w", known, short)
		}
	}
	return short
}

// advise adds to an error of HTTPS what would help.
func (c Client) advise(err error) error {
	if c.Trust == "" {
		return err
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("%w (%s can be given the root to trust)", err, c.Trust)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" { // so crypto/tls marks an alert
		return fmt.Errorf("%w (%s can be given a client certificate, if that is what it wants)", err, c.Trust)
	}
	return err
}

// redirected adds to an error the URL that failed, unless it is the one that was asked for.
func redirected(target, at string, err error) error {
	if err == nil || at == target || strings.TrimSuffix(at, "/") == target {
		return err
	}
	return fmt.Errorf("redirected to %.200q: %w", Shown(at), err)
}

// read reads the body of an answer. The error is that of Result.
func (c Client) read(resp *http.Response, result *Result) (err error) {
	result.Body, err = io.ReadAll(http.MaxBytesReader(nil, resp.Body, c.MaxBody))
	_, tooLarge := errors.AsType[*http.MaxBytesError](err)
	encoding := resp.Header.Get("Content-Encoding")
	switch {
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	case tooLarge:
		why := fmt.Sprintf("larger than %d bytes", c.MaxBody)
		if c.Bound != "" {
			why += ", which " + c.Bound + " sets"
		}
		return result.Unusable(why)
	case err != nil:
		return fmt.Errorf("the body was cut short after %d bytes: %w", len(result.Body), err)
	case encoding != "" && encoding != "identity":
		return result.Unusable(fmt.Sprintf("Content-Encoding %.40q, which was not asked for", encoding))
	case len(result.Body) == 0:
		return fmt.Errorf("%w: an empty body", ErrUnusable)
	}
	return nil
}

// retryAfter reads what RFC 9110, section 10.2.3, lets a Retry-After field hold: a number
// of seconds, or a date.
func retryAfter(s string) time.Duration {
	var d time.Duration
	if seconds, err := strconv.ParseUint(s, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		d = time.Duration(min(seconds, uint64(MaxRetryAfter/time.Second))) * time.Second
	} else if t, err := http.ParseTime(s); err == nil {
		d = time.Until(t)
	}
	return min(max(d, 0), MaxRetryAfter)
}
