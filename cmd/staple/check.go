package main

import (
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/cmd/staple/internal/verdict"
	"github.com/go-staple/staple/internal/muststaple"
)

const checkHelp = `staple check [flags] TARGET...       a target is HOST, HOST:PORT or a PEM FILE

    staple check example.com                  what its handshake staples, and
                                              what its responder says now
    staple check -ca root.pem intranet:8443   a private PKI
    staple check -starttls smtp mail.example.com
    staple check chain.pem                    could that be stapled?
    staple check -nagios a.example b.example  one line about all, for monitoring

  -ca FILE       roots: what does not verify by them, chain or name, is broken;
                 of what does, responders at private addresses are asked too
  -issuer FILE   the issuer's certificate, where the chain lacks it
  -starttls P    smtp, imap, pop3, ldap, postgres or mysql
  -servername N  ask for this name, and expect it
  -tls12         speak TLS 1.2
  -no-ask        do not ask responders
  -warn 25%      how much of the validity must be left
  -timeout 10s   for connecting and the handshake
  -json, -nagios output for programs
  -v             show each request
0: a good staple, or nobody to ask. 1: not stapled, about to end, or trouble at
the responder. 2: revoked, refused, ended, or Must-Staple without. 3: unclear.
`

// side is how many targets are looked at side by side.
const side = 8

// A checker is one call of check.
type checker struct {
	dialer
	newClient func(publicOnly bool) *http.Client

	public, any *http.Client
	roots       []*x509.Certificate // nil: the system's, which decide nothing
	issuers     []*x509.Certificate
	noAsk       bool
	warn        share
}

func runCheck(ctx context.Context, args []string, stdout, stderr io.Writer) (exit int) {
	c := checker{newClient: newClient}
	c.dial = new(net.Dialer).DialContext
	return c.run(ctx, args, stdout, stderr)
}

func (c *checker) run(ctx context.Context, args []string, stdout, stderr io.Writer) (exit int) {
	fs := flag.NewFlagSet("check", flag.ContinueOnError)
	ca := fs.String("ca", "", "")
	issuer := fs.String("issuer", "", "")
	fs.StringVar(&c.startTLS, "starttls", "", "")
	fs.StringVar(&c.serverName, "servername", "", "")
	fs.BoolVar(&c.tls12, "tls12", false, "")
	fs.BoolVar(&c.noAsk, "no-ask", false, "")
	c.warn = 0.25
	fs.Var(&c.warn, "warn", "")
	fs.DurationVar(&c.timeout, "timeout", 10*time.Second, "")
	asJSON := fs.Bool("json", false, "")
	asNagios := fs.Bool("nagios", false, "")
	verbose := fs.Bool("v", false, "")
	targets, exit, ok := parse(fs, checkHelp, args, stdout, stderr)
	switch {
	case !ok:
		return exit
	case len(targets) == 0:
		return misused(fs, stderr, "no target given")
	case *asJSON && *asNagios:
		return misused(fs, stderr, "-json and -nagios exclude each other")
	case c.timeout <= 0:
		return misused(fs, stderr, "-timeout %v leaves no time", c.timeout)
	case c.startTLS != "" && protocols[c.startTLS].ask == nil:
		return misused(fs, stderr, "-starttls knows smtp, imap, pop3, ldap, postgres and mysql, not %q", c.startTLS)
	}
	var err error
	if c.roots, err = readCertificates(ctx, *ca); err != nil {
		complain(stderr, *ca, err)
		return exitUnclear
	}
	if c.issuers, err = readCertificates(ctx, *issuer); err != nil {
		complain(stderr, *issuer, err)
		return exitUnclear
	}
	c.public, c.any = c.newClient(true), c.newClient(false)
	if *verbose {
		c.public, c.any = traced(c.public, stderr), traced(c.any, stderr)
	}
	defer c.public.CloseIdleConnections()
	defer c.any.CloseIdleConnections()

	wait := newProgress(stderr, len(targets), *verbose)
	reports := make([]chan *report, len(targets))
	for i := range reports {
		reports[i] = make(chan *report, 1)
	}
	var workers sync.WaitGroup
	defer workers.Wait()
	next := make(chan int)
	for range min(side, len(targets)) {
		workers.Go(func() {
			for i := range next {
				r := c.look(ctx, targets[i], wait)
				r.decide(float64(c.warn))
				reports[i] <- r
			}
		})
	}
	go func() {
		defer close(next)
		for i := range targets {
			next <- i
		}
	}()
	var all []*report
	for i, done := range reports {
		r := <-done
		wait.clear()
		switch {
		case *asJSON:
			r.writeJSON(stdout)
		case !*asNagios && r.verdict != unreachable:
			if i > 0 {
				fmt.Fprintln(stdout)
			}
			r.write(stdout)
		}
		if r.verdict == unreachable {
			complain(stderr, r.target, r.err)
		}
		all = append(all, r)
		exit = verdict.Worse(exit, r.exit)
	}
	if *asNagios {
		writeNagios(stdout, all, float64(c.warn))
	}
	return exit
}

// look finds out what there is to know about a target.
func (c *checker) look(ctx context.Context, target string, wait *progress) (r *report) {
	r = &report{target: target, file: isFile(target)}
	client := c.public
	var der []byte
	var host string
	if r.file {
		client = c.any
		if c.noAsk {
			r.err = errors.New("of a file there is nothing to check with -no-ask but what staple verify does")
			return r
		}
		if r.chain, r.err = readChain(ctx, target); r.err != nil {
			return r
		}
		host = c.serverName
	} else {
		var port string
		if host, port, r.err = c.address(target); r.err != nil {
			return r
		}
		wait.say("connecting to %s", target)
		state, broke, err := c.handshake(ctx, host, port)
		if err != nil {
			r.err = err
			return r
		}
		if broke != nil {
			r.mention("the handshake was broken off after the certificate was shown: %s", plain(broke))
		}
		r.chain, der, host = state.PeerCertificates, state.OCSPResponse, c.name(host)
		r.version = state.Version
	}
	leaf := r.chain[0]
	var malformed error
	if r.must, malformed = muststaple.Read(leaf); malformed != nil {
		r.mention("%s", plain(malformed))
	}
	now := time.Now()
	verified := c.trust(r, host, now)
	candidates := slices.Concat(r.chain[1:], c.issuers, c.roots, verified)
	if c.roots != nil && verified != nil { // so that the URLs are an authority's that is trusted, and not whoever's is there
		client = c.any
	}

	r.stapled, r.now = len(der) > 0, now
	r.asked = !c.noAsk && hasResponder(leaf) && now.Before(leaf.NotAfter)
	if !r.stapled && !r.asked {
		return r
	}
	if c.noAsk {
		client = nil
	}
	wait.say("looking for the issuer of %s", target)
	if r.issuer, r.noIssuer = findIssuer(ctx, client, leaf, candidates); r.noIssuer != nil {
		return r
	}
	if r.stapled {
		r.staple = judge(der, leaf, r.issuer, now)
		if r.staple.err == nil && len(r.staple.r.Raw) < len(der) {
			r.mention("%d bytes of the staple are signed by nobody and need not be there; some clients refuse such", len(der)-len(r.staple.r.Raw))
		}
	}
	if r.asked {
		wait.say("asking the responder of %s", target)
		r.said, r.responder, r.silent = ask(ctx, client, leaf, r.issuer)
		if errors.Is(r.silent, errNotPublic) && !r.file {
			r.asked = false
			r.mention("the responder was not asked: %s", plain(errNotPublic))
		}
	}
	r.now = time.Now()
	return r
}

// trust looks whether the chain and the name verify, and returns what certificates that brought to light.
func (c *checker) trust(r *report, host string, now time.Time) (found []*x509.Certificate) {
	leaf := r.chain[0]
	o := x509.VerifyOptions{Intermediates: x509.NewCertPool(), CurrentTime: now}
	rest := r.chain[1:]
	if r.file { // which may be a client's
		rest, o.KeyUsages = slices.Concat(rest, c.issuers), []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	}
	for _, cert := range rest {
		o.Intermediates.AddCert(cert)
	}
	if c.roots != nil {
		o.Roots = x509.NewCertPool()
		for _, cert := range c.roots {
			o.Roots.AddCert(cert)
		}
	}
	chains, err := leaf.Verify(o)
	for _, chain := range chains {
		found = append(found, chain[1:]...)
	}
	if err == nil && host != "" {
		err = leaf.VerifyHostname(host)
	}
	switch {
	case err == nil:
	case c.roots != nil:
		r.untrusted = err
	default:
		r.mention("not verified, which only -ca FILE makes count: %s", plain(err))
	}
	return found
}

// A share is a flag: a part of a whole, as a percentage.
type share float64

func (s *share) String() string { return fmt.Sprintf("%v%%", float64(*s)*100) }

func (s *share) Set(text string) error {
	p, err := strconv.ParseFloat(strings.TrimSuffix(text, "%"), 64)
	if err != nil || !(p >= 0 && p <= 100) {
		return errors.New("want a percentage such as 25%")
	}
	*s = share(p / 100)
	return nil
}

// whyNot returns why err says that a response was refused, or nil.
func whyNot(err error) (refused *staple.VerifyError) {
	refused, _ = errors.AsType[*staple.VerifyError](err)
	return refused
}
