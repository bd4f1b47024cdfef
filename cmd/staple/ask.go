package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/exchange"
	"github.com/go-staple/staple/internal/issuers"
	"github.com/go-staple/staple/internal/ocspder"
	"github.com/go-staple/staple/internal/publicaddr"
	"golang.org/x/crypto/ocsp"
)

// errNotPublic is why a responder is not asked that a host has named.
var errNotPublic = errors.New("only public addresses are asked, since the host chose the URL, unless its chain verifies by -ca")

// newClient returns a client for responders: publicOnly is for those that a stranger has named.
func newClient(publicOnly bool) *http.Client {
	var control func(network, address string, c syscall.RawConn) error
	if publicOnly {
		control = func(network, address string, c syscall.RawConn) error {
			if err := publicaddr.Control(network, address, c); err != nil {
				return fmt.Errorf("%w: %w", err, errNotPublic)
			}
			return nil
		}
	}
	return exchange.NewClient(40*time.Second, control) // longer than an HTTPFetcher takes
}

var errUnknown = errors.New("the responder does not know the certificate")

// An answer is an OCSP response, as ResponseVerifier judges it.
type answer struct {
	der []byte
	r   *ocsp.Response // also of one that has ended, or is not yet valid, but is right otherwise; else nil
	end time.Time
	err error // why it is refused
}

func judge(der []byte, leaf, issuer *x509.Certificate, now time.Time) *answer {
	v := new(staple.ResponseVerifier)
	a := &answer{der: der}
	if a.r, a.end, a.err = v.Verify(der, leaf, issuer, now); a.err == nil {
		return a
	}
	match := ocspder.Match{Leaf: leaf, Issuer: issuer}
	if _, err := ocspder.Read(der, match.Add); err == nil && match.Err() == nil {
		if r, end, err := v.Verify(der, leaf, issuer, match.Best.ThisUpdate); err == nil {
			a.r, a.end = r, end
		}
	}
	return a
}

// is reports whether a says so, and is to be believed now.
func (a *answer) is(status int) bool { return a != nil && a.err == nil && a.r.Status == status }

// ask asks the responders of leaf. The answer may be unknown; where err is not nil there is none.
func ask(ctx context.Context, client *http.Client, leaf, issuer *x509.Certificate) (a *answer, responder string, err error) {
	for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		var last *answer
		f := staple.HTTPFetcher{Client: client, Hash: hash}
		req := staple.Request{Leaf: leaf, Issuer: issuer, Accept: func(response []byte) error {
			got := judge(bytes.Clone(response), leaf, issuer, time.Now())
			if got.err != nil {
				return got.err
			}
			if last = got; got.is(ocsp.Unknown) { // perhaps it compares with another hash, or another responder knows better
				return errUnknown
			}
			return nil
		}}
		_, err = f.Fetch(ctx, &req)
		if err == nil {
			return last, req.Responder, nil
		}
		if failed, ok := errors.AsType[*staple.HTTPError](err); ok && responder == "" {
			responder = failed.URL
		}
		if last != nil {
			a = last
		}
		if !errors.Is(err, errUnknown) {
			break
		}
	}
	if a != nil {
		return a, responder, nil
	}
	return nil, responder, err
}

// hasResponder reports whether there is somebody to ask about leaf.
func hasResponder(leaf *x509.Certificate) bool {
	for _, u := range leaf.OCSPServer {
		if exchange.Fetchable(strings.TrimSpace(u)) {
			return !selfSigned(leaf)
		}
	}
	return false
}

func selfSigned(leaf *x509.Certificate) bool {
	return bytes.Equal(leaf.RawIssuer, leaf.RawSubject) && issuers.Signed(leaf, leaf)
}

// findIssuer looks for leaf's issuer among candidates and then, if there is a client, where leaf says that it is.
func findIssuer(ctx context.Context, client *http.Client, leaf *x509.Certificate, candidates []*x509.Certificate) (*x509.Certificate, error) {
	if selfSigned(leaf) {
		return leaf, nil
	}
	if issuer := issuers.Of(leaf, candidates); issuer != nil {
		return issuer, nil
	}
	errs := issuers.Unusable(leaf, candidates)
	if client != nil {
		found, err := (&staple.HTTPFetcher{Client: client}).FetchIssuer(ctx, leaf)
		if len(found) > 0 {
			return found[0], nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(append([]error{errors.New("the issuer's certificate is not in the chain, and was not found elsewhere")}, errs...)...)
}

// A tracer writes a line about each request.
type tracer struct {
	to   io.Writer
	next http.RoundTripper
	mu   *sync.Mutex
}

// traced returns a client that writes a line about each request.
func traced(client *http.Client, to io.Writer) *http.Client {
	c := *client
	c.Transport = tracer{to, c.Transport, new(sync.Mutex)}
	return &c
}

func (t tracer) RoundTrip(r *http.Request) (*http.Response, error) {
	began := time.Now()
	line := func(format string, args ...any) {
		what := fmt.Sprintf("%s %s%s: %s, %v", r.Method, hashName(r), exchange.Shown(r.URL.String()), fmt.Sprintf(format, args...),
			time.Since(began).Round(time.Millisecond))
		t.mu.Lock()
		defer t.mu.Unlock()
		fmt.Fprintln(t.to, printable(what, 1000))
	}
	resp, err := t.next.RoundTrip(r)
	if err != nil {
		line("%v", err)
		return nil, err
	}
	body := &counted{ReadCloser: resp.Body}
	body.done = sync.OnceFunc(func() { line("%d, %d bytes", resp.StatusCode, body.n) })
	resp.Body = body
	return resp, nil
}

// CloseIdleConnections is for http.Client.
func (t tracer) CloseIdleConnections() { (&http.Client{Transport: t.next}).CloseIdleConnections() }

// hashName returns the hash of the CertID in a request, and a space, or nothing if it is no OCSP request.
func hashName(r *http.Request) string {
	var der []byte
	if r.Method == http.MethodPost && r.GetBody != nil {
		if body, err := r.GetBody(); err == nil {
			der, _ = io.ReadAll(body)
		}
	} else {
		path := r.URL.EscapedPath()
		text, _ := url.PathUnescape(path[strings.LastIndexByte(path, '/')+1:])
		der, _ = base64.StdEncoding.DecodeString(text)
	}
	if parsed, err := ocsp.ParseRequest(der); err == nil {
		return parsed.HashAlgorithm.String() + " "
	}
	return ""
}

// A counted body tells when it is read or closed.
type counted struct {
	io.ReadCloser
	n    int64
	done func()
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n += int64(n)
	if err != nil {
		c.done()
	}
	return n, err
}

func (c *counted) Close() error {
	c.done()
	return c.ReadCloser.Close()
}
