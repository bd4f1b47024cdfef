package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/exchange"
	"github.com/go-staple/staple/internal/name"
	"golang.org/x/crypto/ocsp"
)

// The verdicts.
const (
	good        = "good"
	revoked     = "revoked"
	unknown     = "unknown"
	missing     = "missing"
	noResponder = "no-responder"
	invalid     = "invalid"
	expired     = "expired"
	expiring    = "expiring"
	trouble     = "trouble"
	unreachable = "unreachable"
)

// A report is what there is to know about a target, and what decide makes of it.
type report struct {
	target string
	file   bool  // of a chain; there is no handshake
	err    error // why there is nothing more

	version   uint16 // of TLS
	chain     []*x509.Certificate
	issuer    *x509.Certificate
	noIssuer  error // why there is none
	must      bool
	untrusted error // by -ca
	mentioned []string
	now       time.Time

	stapled   bool
	staple    *answer
	asked     bool
	said      *answer // what the responder says
	silent    error   // why it says nothing of use
	responder string  // that said it

	verdict     string
	exit        int
	wrong, todo string
}

func (r *report) mention(format string, args ...any) {
	r.mentioned = append(r.mentioned, fmt.Sprintf(format, args...))
}

// conclude sets what decide has found.
func (r *report) conclude(verdict string, exit int, wrong, todo string) {
	r.verdict, r.exit, r.wrong, r.todo = verdict, exit, wrong, todo
}

// decide gives the verdict. warn is how much of the validity must be left.
func (r *report) decide(warn float64) {
	if r.err != nil {
		r.conclude(unreachable, exitUnclear, plain(r.err), "")
		return
	}
	leaf := r.chain[0]
	switch {
	case !r.now.Before(leaf.NotAfter):
		r.conclude(expired, exitBroken, "the certificate itself ended "+name.Time(leaf.NotAfter), "renew it, and see why that was not done in time")
	case r.staple.is(ocsp.Revoked) || r.said.is(ocsp.Revoked):
		r.decideRevoked()
	case r.untrusted != nil:
		r.conclude(invalid, exitBroken, "the certificate does not verify by -ca: "+plain(r.untrusted),
			"see that the host sends the whole chain for the name, and that -ca has its root")
	case r.must && !r.stapled && !r.file:
		r.conclude(missing, exitBroken, "no staple, and the certificate is Must-Staple: clients refuse it"+r.butSilent(), r.getOne()+", or get a certificate without Must-Staple")
	case r.noIssuer != nil:
		r.decideNoIssuer()
	case r.stapled:
		r.decideStaple(warn)
	default:
		r.decideAnswer(warn)
	}
}

// butSilent returns what to add to an error where the responder is in trouble besides.
func (r *report) butSilent() string {
	if r.silent == nil || !r.asked {
		return ""
	}
	return "; nor does its responder help: " + plain(r.silent)
}

// getOne is switchOn where the responder may be to blame.
func (r *report) getOne() string {
	if r.silent != nil && r.asked {
		return r.sendIssuer() + "see that the responder can be reached; if it can, tell the CA"
	}
	return r.switchOn()
}

// switchOn returns what to do about a staple that is missing.
func (r *report) switchOn() string {
	return r.sendIssuer() + "switch stapling on"
}

// sendIssuer returns what to do first where a host sends its certificate alone.
func (r *report) sendIssuer() string {
	if r.noIssuer != nil || r.issuer != nil && !slices.ContainsFunc(r.chain[1:], r.issuer.Equal) {
		return "have the host send the issuer's certificate as well, without which most servers cannot ask the responder; "
	}
	return ""
}

func (r *report) decideRevoked() {
	a := r.shown()
	r.conclude(revoked, exitBroken, fmt.Sprintf("the certificate was revoked %s, reason %s", name.Time(a.r.RevokedAt), name.Reason(a.r.RevocationReason)),
		"put a new certificate, with a new key, in its place")
}

func (r *report) decideNoIssuer() {
	r.conclude(trouble, exitUnclear, plain(r.noIssuer), "give the issuer's certificate with -issuer FILE, and have servers send the whole chain")
}

// decideStaple is decide about what is stapled, and not revoked.
func (r *report) decideStaple(warn float64) {
	what := "the staple"
	if r.file {
		what = "the response"
	}
	switch refused := whyNot(r.staple.err); {
	case refused != nil && refused.Reason == staple.ReasonExpired:
		r.conclude(expired, exitBroken, what+" has ended: "+plain(refused.Err),
			"see that the host reaches its responder and renews what it staples; a restart may help until then")
	case refused != nil:
		r.conclude(invalid, exitBroken, "clients refuse "+what+": "+plain(refused.Err),
			"see where the host has it from; if that is the responder, tell the CA")
	case r.staple.is(ocsp.Unknown):
		r.conclude(unknown, exitBroken, what+" says that the responder does not know the certificate: clients refuse it",
			"staple nothing until the CA knows it; if that takes hours, tell the CA")
	case r.left() < warn && r.said.is(ocsp.Good) && !r.said.r.ThisUpdate.After(r.staple.r.ThisUpdate):
		r.conclude(expiring, exitSoon, "the staple is about to end, and the responder has nothing newer", "if it comes to its end, tell the CA")
	case r.left() < warn:
		r.conclude(expiring, exitSoon, "the staple is about to end"+r.butSilent(), "see that the host reaches its responder, and renews before the last quarter")
	case !r.asked || r.said.is(ocsp.Good):
		r.conclude(good, exitWell, "", "")
	case r.said != nil:
		r.conclude(trouble, exitSoon, "the responder does not know the certificate any more, though it did", "tell the CA, before the staple ends "+name.Time(r.expires(r.staple)))
	default:
		r.conclude(trouble, exitSoon, "the responder gives nothing of use: "+plain(r.silent),
			"see that the host reaches it; if it does, tell the CA, before the staple ends "+name.Time(r.expires(r.staple)))
	}
}

// decideAnswer is decide where nothing is stapled: of a host, or of a file.
func (r *report) decideAnswer(warn float64) {
	refused := whyNot(r.silent)
	_, unsuccessful := errors.AsType[ocsp.ResponseError](r.silent)
	switch {
	case !hasResponder(r.chain[0]):
		r.conclude(noResponder, exitWell, "", "")
	case !r.asked:
		r.conclude(missing, exitSoon, "no staple, though the certificate names a responder", "switch stapling on")
	case r.said.is(ocsp.Unknown):
		r.conclude(unknown, exitSoon, "the responder does not know the certificate", "if it is new, wait an hour; else tell the CA")
	case r.said.is(ocsp.Good) && !r.file:
		r.conclude(missing, exitSoon, "no staple, though the responder gives one", r.switchOn()+"; if it is, see that the host reaches "+exchange.Shown(r.responder))
	case r.said.is(ocsp.Good) && r.left() < warn:
		r.conclude(expiring, exitSoon, "what the responder gives is about to end", "if it comes to its end, tell the CA")
	case r.said.is(ocsp.Good):
		r.conclude(good, exitWell, "", "")
	case refused == nil || unsuccessful:
		r.conclude(trouble, exitSoon, "the responder gives nothing of use: "+plain(r.silent), "see that it can be reached from here; if it can, tell the CA")
	case refused.Reason == staple.ReasonExpired:
		r.conclude(expired, exitSoon, "what the responder gives has ended: "+plain(r.silent), "tell the CA")
	default:
		r.conclude(invalid, exitSoon, "what the responder gives is not to be believed: "+plain(r.silent), "tell the CA; see what is between here and there")
	}
}

// shown returns the response that the verdict is about, or nil.
func (r *report) shown() *answer {
	switch {
	case r.said.is(ocsp.Revoked) && !r.staple.is(ocsp.Revoked):
		return r.said
	case r.stapled:
		return r.staple
	}
	return r.said
}

// expires returns when a response that has been read ends, which is no later than the certificate.
func (r *report) expires(a *answer) time.Time {
	if end := r.chain[0].NotAfter; end.Before(a.end) {
		return end
	}
	return a.end
}

// left returns how much of its validity the response that is shown has left.
func (r *report) left() float64 {
	a := r.shown()
	end := r.expires(a)
	return float64(end.Sub(r.now)) / float64(max(end.Sub(a.r.ThisUpdate), 1))
}

// reason returns why a response was refused, or the certificate revoked.
func (r *report) reason() string {
	if r.verdict == revoked {
		return name.Reason(r.shown().r.RevocationReason)
	}
	for _, err := range []error{r.stapleErr(), r.silent} {
		if refused := whyNot(err); refused != nil {
			return refused.Reason.String()
		}
		if _, ok := errors.AsType[ocsp.ResponseError](err); ok {
			return staple.ReasonUnsuccessful.String()
		}
	}
	return ""
}

func (r *report) stapleErr() error {
	if r.staple == nil {
		return nil
	}
	return r.staple.err
}
