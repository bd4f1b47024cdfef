package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/go-staple/staple/internal/name"
	"golang.org/x/crypto/ocsp"
)

const fetchHelp = `staple fetch [-issuer FILE] [-o FILE] CHAIN.pem

    staple fetch -o site.ocsp chain.pem       for nginx's ssl_stapling_file
    staple fetch chain.pem | openssl ocsp -respin /dev/stdin -text -noverify
    staple fetch -issuer ca.pem -o site.ocsp leaf.pem

Asks the responder that the first certificate names, verifies what it says, and
writes that in DER. An existing file is replaced at once, or stays as it is.

  -issuer FILE   the issuer's certificate, where the chain lacks it and the
                 certificate does not say where it is
  -o FILE        where to write; otherwise to standard output, unless that is a
                 terminal
  -v             show each request

0: good. 1: no usable answer. 2: revoked, and written all the same. 3: nobody to
ask, no issuer, or could not be written.
`

func runFetch(ctx context.Context, args []string, stdout, stderr io.Writer) (exit int) {
	return fetch(ctx, newClient(false), args, stdout, stderr)
}

func fetch(ctx context.Context, client *http.Client, args []string, stdout, stderr io.Writer) (exit int) {
	fs := flag.NewFlagSet("fetch", flag.ContinueOnError)
	issuerFile := fs.String("issuer", "", "")
	out := fs.String("o", "", "")
	verbose := fs.Bool("v", false, "")
	files, exit, ok := parse(fs, fetchHelp, args, stdout, stderr)
	switch {
	case !ok:
		return exit
	case len(files) != 1:
		return misused(fs, stderr, "give one file of a chain, not %d", len(files))
	case *out == "" && terminal(stdout):
		return misused(fs, stderr, "a response is binary: give -o FILE, or redirect the output")
	}
	fail := func(what string, err error, exit int) int {
		complain(stderr, what, err)
		return exit
	}
	chain, err := readChain(ctx, files[0])
	if err != nil {
		return fail(files[0], err, exitUnclear)
	}
	candidates, err := readCertificates(ctx, *issuerFile)
	if err != nil {
		return fail(*issuerFile, err, exitUnclear)
	}
	leaf := chain[0]
	switch {
	case !time.Now().Before(leaf.NotAfter):
		return fail(files[0], fmt.Errorf("the certificate ended %s, and nobody is asked about it: renew it", name.Time(leaf.NotAfter)), exitUnclear)
	case !hasResponder(leaf):
		return fail(files[0], errors.New("nobody to ask: the certificate names no responder, so nothing can be stapled, and nobody misses it"), exitUnclear)
	}
	if *verbose {
		client = traced(client, stderr)
	}
	defer client.CloseIdleConnections()
	wait := newProgress(stderr, 1, *verbose)
	wait.say("asking about %s", files[0])
	issuer, err := findIssuer(ctx, client, leaf, append(chain[1:], candidates...))
	if err != nil {
		wait.clear()
		return fail(files[0], err, exitUnclear)
	}
	a, responder, err := ask(ctx, client, leaf, issuer)
	wait.clear()
	switch {
	case err != nil:
		return fail(files[0], fmt.Errorf("no usable answer: %w: see that the responder can be reached; if it can, tell the CA", err), exitSoon)
	case a.is(ocsp.Unknown):
		return fail(files[0], fmt.Errorf("no usable answer: %s does not know the certificate: if it is new, wait an hour; else tell the CA", responder), exitSoon)
	}
	if *out == "" {
		*out = "standard output"
		_, err = stdout.Write(a.r.Raw)
	} else {
		err = writeFile(ctx, *out, a.r.Raw)
	}
	if err != nil {
		return fail(*out, err, exitUnclear)
	}
	if a.is(ocsp.Revoked) {
		return fail(files[0], fmt.Errorf("revoked %s, reason %s: put a new certificate in its place",
			name.Time(a.r.RevokedAt), name.Reason(a.r.RevocationReason)), exitBroken)
	}
	if terminal(stderr) {
		complain(stderr, *out, fmt.Errorf("good until %s, by %s, %d bytes", name.Time(a.end), responder, len(a.r.Raw)))
	}
	return exitWell
}
