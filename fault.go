package staple

import (
	"crypto/x509"
	"errors"
	"net/url"
	"strings"

	"github.com/go-staple/staple/internal/schedule"
	"golang.org/x/crypto/ocsp"
)

// sourceOf returns a URL as the schedule has it.
func sourceOf(s string) schedule.Source {
	at := schedule.Source{URL: s}
	if u, err := url.Parse(s); err == nil {
		at.Host = strings.ToLower(u.Host)
	}
	return at
}

// sources returns who is asked about leaf, as far as is known before.
func sources(fetcher Fetcher, leaf *x509.Certificate) (at []schedule.Source) {
	urls := leaf.OCSPServer
	if f, ok := fetcher.(*HTTPFetcher); ok {
		urls, _ = f.responderURLs(leaf)
	}
	for _, u := range urls[:min(len(urls), maxURLs)] {
		if fetchable(u) {
			at = append(at, sourceOf(u))
		}
	}
	return at
}

// answersIn returns what came of each URL that was asked in vain.
func answersIn(err error) (all []schedule.Answer) {
	switch e := err.(type) {
	case *HTTPError:
		a := schedule.Answer{Source: sourceOf(e.URL), RetryAfter: e.RetryAfter, Err: err}
		var status ocsp.ResponseError
		_, refused := errors.AsType[*VerifyError](e.Err)
		switch {
		case errors.As(e.Err, &status):
			a.Fault = schedule.Certificate
			if status.Status == ocsp.TryLater || status.Status == ocsp.InternalError {
				a.Fault = schedule.CA
			}
		case refused || errors.Is(e.Err, errUnknown) || errors.Is(e.Err, errOlder):
			a.Fault = schedule.Certificate
		case e.StatusCode == 0:
			a.Fault = schedule.Host
		case e.StatusCode == 429, e.StatusCode == 503 && e.RetryAfter > 0:
			a.Fault, a.Busy = schedule.URL, true
		case e.StatusCode >= 500, e.StatusCode < 400:
			a.Fault, a.Busy = schedule.CA, e.StatusCode == 503
		default:
			a.Fault = schedule.Certificate
		}
		return []schedule.Answer{a}
	case interface{ Unwrap() error }:
		return answersIn(e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			all = append(all, answersIn(inner)...)
		}
	}
	return all
}
