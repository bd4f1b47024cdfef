package main

import (
	"context"
	"encoding/pem"
	"flag"
	"io"
	"math"
	"time"

	"github.com/go-staple/staple/internal/muststaple"
	"golang.org/x/crypto/ocsp"
)

const verifyHelp = `staple verify -cert FILE [-issuer FILE] [-at TIME] RESPONSE.der

    staple verify -cert chain.pem site.ocsp   would clients take it?
    staple verify -cert leaf.pem -issuer ca.pem site.ocsp
    staple verify -cert chain.pem -at 2026-12-24T18:00:00Z site.ocsp
                                              and on Christmas Eve?

Judges a response in DER as staple does before it staples it. Nobody is asked.

  -cert FILE     the certificate that it should be about, in PEM; its issuer may
                 follow it
  -issuer FILE   the issuer's certificate, where that file lacks it
  -at TIME       judge it as of then
  -json          output for programs

0: good. 2: refused, revoked or unknown. 3: could not tell.
`

func runVerify(ctx context.Context, args []string, stdout, stderr io.Writer) (exit int) {
	fs := flag.NewFlagSet("verify", flag.ContinueOnError)
	certFile := fs.String("cert", "", "")
	issuerFile := fs.String("issuer", "", "")
	asJSON := fs.Bool("json", false, "")
	now := time.Now()
	fs.Func("at", "", func(text string) (err error) {
		now, err = time.Parse(time.RFC3339, text)
		return err
	})
	files, exit, ok := parse(fs, verifyHelp, args, stdout, stderr)
	switch {
	case !ok:
		return exit
	case *certFile == "":
		return misused(fs, stderr, "-cert is missing: which certificate should it be about?")
	case len(files) != 1:
		return misused(fs, stderr, "give one file of a response, not %d", len(files))
	}
	r := &report{target: files[0], file: true, now: now}
	if about := r.judgeFile(ctx, files[0], *certFile, *issuerFile); r.err != nil {
		complain(stderr, about, r.err)
	}
	switch {
	case r.err != nil:
		r.decide(0)
	case r.noIssuer != nil:
		r.decideNoIssuer()
	case r.staple.is(ocsp.Revoked):
		r.decideRevoked()
	default:
		r.decideStaple(math.Inf(-1))
		r.todo = ""
	}
	switch {
	case *asJSON:
		r.writeJSON(stdout)
	case r.err == nil:
		r.write(stdout)
	}
	return r.exit
}

// judgeFile judges a response as a staple. Where it cannot, it returns the file that is to blame.
func (r *report) judgeFile(ctx context.Context, file, certFile, issuerFile string) (about string) {
	if r.chain, r.err = readChain(ctx, certFile); r.err != nil {
		return certFile
	}
	candidates, err := readCertificates(ctx, issuerFile)
	if err != nil {
		r.err = err
		return issuerFile
	}
	der, err := readFile(ctx, file)
	if err != nil {
		r.err = err
		return file
	}
	r.must = muststaple.Is(r.chain[0])
	if r.issuer, r.noIssuer = findIssuer(ctx, nil, r.chain[0], append(r.chain[1:], candidates...)); r.noIssuer != nil {
		return ""
	}
	if block, _ := pem.Decode(der); block != nil {
		r.mention("the file is in PEM, which servers do not take")
		der = block.Bytes
	}
	r.stapled, r.staple = true, judge(der, r.chain[0], r.issuer, r.now)
	if r.now.After(r.chain[0].NotAfter) {
		r.mention("the certificate itself ends before")
	}
	return ""
}
