package staple

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-staple/staple/internal/ask"
	"github.com/go-staple/staple/internal/exchange"
	"github.com/go-staple/staple/internal/schedule"
	"golang.org/x/crypto/ocsp"
)

// notAsked is what an HTTPError has, and nothing else, where schedule.NoFault would mean
// that its exported fields tell.
const notAsked schedule.Fault = -1

// sourceOf returns a URL as the schedule has it. Its host has the port, but for the usual one of http: whoever
// listens at one port says nothing of another.
func sourceOf(s string) schedule.Source {
	at := schedule.Source{URL: s}
	if u, err := url.Parse(s); err == nil {
		at.Host = strings.ToLower(u.Host)
		switch {
		case u.Scheme == "http":
			at.Host = strings.TrimSuffix(at.Host, ":80")
		case u.Scheme == "https" && u.Port() == "" && at.Host != "":
			at.Host = strings.TrimSuffix(at.Host, ":") + ":443"
		}
	}
	return at
}

// sources returns who is asked about leaf, as far as is known before, and which of the URLs that are there nobody can ask,
// but for LDAP's. A struct that embeds an HTTPFetcher has the method of that, too; others are found out when they have asked.
func sources(fetcher Fetcher, leaf *x509.Certificate) (at []schedule.Source, unusable []string) {
	var named []place
	if f, ok := fetcher.(interface {
		named(*x509.Certificate) []place
	}); ok {
		named = f.named(leaf)
	} else {
		named = places(leaf.OCSPServer, false)
	}
	for _, p := range named[:min(len(named), maxURLs)] {
		switch scheme, _, _ := strings.Cut(strings.ToLower(p.url), ":"); {
		case p.fetchable():
			at = append(at, sourceOf(p.url))
		case scheme != "ldap" && scheme != "ldaps":
			unusable = append(unusable, p.url)
		}
	}
	return at, unusable
}

// answersIn returns what err, of a Fetch that failed, says of each URL, in
// order: one answer for each *HTTPError in its tree. One inside another is about the same
// URL.
func answersIn(err error) (answers []schedule.Answer) {
	walk(err, func(err error) (into bool) {
		e, ok := err.(*HTTPError)
		if ok {
			answers = append(answers, schedule.Answer{Source: sourceOf(e.URL), Fault: e.whose(), RetryAfter: e.RetryAfter,
				Busy: e.StatusCode == http.StatusTooManyRequests || e.StatusCode == http.StatusServiceUnavailable, Err: e})
		}
		return !ok
	})
	return answers
}

// walk calls visit with each error of a tree, a parent before its children, in the order
// of errors.Is. It leaves out those below an error of which visit returns false.
func walk(err error, visit func(error) (into bool)) {
	if err == nil || !visit(err) {
		return
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		walk(e.Unwrap(), visit)
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			walk(err, visit)
		}
	}
}

// retryAfter returns the longest pause that a responder asked for in err.
func retryAfter(err error) (longest time.Duration) {
	walk(err, func(err error) bool {
		if e, ok := err.(*HTTPError); ok {
			longest = max(longest, e.RetryAfter)
		}
		return true
	})
	return longest
}

// whose returns whose fault e tells of. Of several requests it is the last one's, so far
// as that can be told of an HTTPError by somebody else's Fetcher.
func (e *HTTPError) whose() schedule.Fault {
	switch {
	case errors.Is(e.Err, context.Canceled), e.fault == notAsked:
		return schedule.NoFault
	case e.fault != schedule.NoFault:
		return e.fault
	}
	if inner := answersIn(e.Err); len(inner) > 0 { // e may be a copy, under another URL
		if last := inner[len(inner)-1]; last.Err.(*HTTPError).StatusCode == e.StatusCode {
			return last.Fault
		}
	}
	return faultIn(e.StatusCode != 0, e.StatusCode, e.RetryAfter, e.Err)
}

// faultOf returns whose fault it is that a request failed, notAsked if nobody's.
func faultOf(a ask.Attempt) schedule.Fault {
	switch a.Stage {
	case ask.Unasked:
		return notAsked
	case ask.Refused:
		return schedule.Certificate
	default:
		return faultIn(a.Stage == ask.Answered, a.Status, a.RetryAfter, a.Err)
	}
}

// faultIn returns whose fault err is, of a request to which anything was answered or
// nothing, with this status, 0 if it was no HTTP or a redirect to nowhere.
func faultIn(answered bool, status int, retryAfter time.Duration, err error) schedule.Fault {
	var said, refused schedule.Fault // by the responder; by whoever judges its response
	walk(err, func(err error) bool {
		switch e := err.(type) {
		case ocsp.ResponseError:
			if said = schedule.Certificate; e.Status == ocsp.TryLater || e.Status == ocsp.InternalError {
				said = schedule.CA
			}
		case *VerifyError:
			refused = schedule.Certificate
		}
		switch err {
		case errUnknown, errOlder:
			refused = schedule.Certificate
		case exchange.ErrUnusable:
			refused = schedule.CA
		}
		return true
	})
	switch {
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable && retryAfter > 0:
		return schedule.URL
	case said != schedule.NoFault:
		return said
	case status >= 500:
		return schedule.CA
	case status >= 400:
		return schedule.Certificate
	case refused != schedule.NoFault:
		return refused
	case answered:
		return schedule.CA
	default:
		return schedule.Host
	}
}
