package main

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

var update = flag.Bool("update", false, "write what is made: testdata/catalogue.txt, docs/command.md")

const catalogueFile = "testdata/catalogue.txt"

// TestCheckOfTheCatalogue pins what check says of all that stapletest can do: of a response when it is stapled, and when the
// responder gives it about a file.
func TestCheckOfTheCatalogue(t *testing.T) {
	var got bytes.Buffer
	fmt.Fprint(&got, "# exit, verdict and reason: stapled | given about a file | what it is\n")
	synctest.Test(t, func(t *testing.T) {
		w := newLab(t)
		w.ca = stapletest.NewCA(stapletest.CAOptions{Seed: "catalogue"})
		w.responder = stapletest.NewResponder(w.ca)
		cert := w.leaf()
		file := write(t, "chain.pem", chainPEM(cert))

		// look does both, and requires that people are told.
		look := func(kind, what string, der []byte, answer stapletest.Answer) (stapled, given jsonLine) {
			w.responder.Set(nil, stapletest.Answer{})
			shown := cert
			shown.OCSPStaple = der
			w.serve(shown)
			stapled = w.verdict("host.example")
			w.responder.Set(nil, answer)
			given = w.verdict(file)
			for _, line := range []jsonLine{given, stapled} {
				require.Equal(t, line.Exit != 0, line.Error != "", what)
				requireHarmless(t, line.Error)
				text, _, exit := w.check(line.Target)
				require.Equal(t, line.Exit, exit, what)
				require.Equal(t, exit != 0, strings.Contains(text, "\n  wrong "), text)
				require.Equal(t, exit != 0, strings.Contains(text, "\n  to do "), text)
				w.responder.Set(nil, stapletest.Answer{})
			}
			fmt.Fprintf(&got, "%s | %s | %s: %s\n", column(stapled), column(given), kind, what)
			return stapled, given
		}
		for _, c := range stapletest.Forgeries(w.ca, cert.Leaf) {
			stapled, given := look("forgery", c.Name, c.DER, stapletest.Answer{Replay: append([]byte{}, c.DER...)})
			require.Equal(t, 1, given.Exit, c.Name)
			if len(c.DER) == 0 { // is not to staple
				require.Equal(t, missing, stapled.Verdict, c.Name)
				continue
			}
			require.Equal(t, 2, stapled.Exit, c.Name)
			require.NotEmpty(t, stapled.Reason, c.Name)
			require.Empty(t, stapled.Status, c.Name)
		}
		for _, c := range stapletest.Oddities(w.ca, cert.Leaf) {
			stapled, given := look("oddity", c.Name, c.DER, stapletest.Answer{Replay: c.DER})
			exits := map[int][2]int{ocsp.Good: {0, 0}, ocsp.Revoked: {2, 2}, ocsp.Unknown: {2, 1}}[c.Status]
			if stapled.Verdict == expiring { // some are old
				exits = [2]int{1, 1}
				require.Equal(t, expiring, given.Verdict, c.Name)
			}
			require.Equal(t, exits, [2]int{stapled.Exit, given.Exit}, c.Name)
			require.Equal(t, statuses[c.Status], stapled.Status, c.Name)
			require.Equal(t, statuses[c.Status], given.Status, c.Name)
		}
		for _, b := range behaviours(w.ca) {
			r := stapletest.NewResponder(w.ca)
			r.Set(nil, b.answer)
			look("responder", b.name, r.Response(cert.Leaf), b.answer)
		}
	})
	if *update {
		require.NoError(t, os.WriteFile(catalogueFile, got.Bytes(), 0o644))
	}
	want, err := os.ReadFile(catalogueFile)
	require.NoError(t, err)
	require.Equal(t, string(want), got.String(), "go test ./cmd/staple -run TestCheckOfTheCatalogue -update")
}

func column(line jsonLine) string {
	text := fmt.Sprintf("%d %s", line.Exit, line.Verdict)
	if line.Reason != "" {
		text += ", " + line.Reason
	}
	return fmt.Sprintf("%-32s", text)
}

type behaviour struct {
	name   string
	answer stapletest.Answer
}

// behaviours are those of a responder, one for each field of an Answer at least.
func behaviours(ca *stapletest.CA) []behaviour {
	delegate := ca.Delegate(stapletest.DelegateOptions{})
	stranger := stapletest.NewCA(stapletest.CAOptions{Seed: "stranger"})
	return []behaviour{
		{"good", stapletest.Answer{}},
		{"revoked", stapletest.Answer{Status: ocsp.Revoked}},
		{"revoked, for a reason", stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.CessationOfOperation, RevokedAt: time.Now().Add(-day)}},
		{"on hold", stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.CertificateHold}},
		{"unknown", stapletest.Answer{Status: ocsp.Unknown}},
		{"six days old, of seven", stapletest.Answer{Age: 6 * day}},
		{"eight days old, of seven", stapletest.Answer{Age: 8 * day}},
		{"from the future", stapletest.Answer{Age: -day}},
		{"an hour's validity", stapletest.Answer{Validity: time.Hour}},
		{"no nextUpdate", stapletest.Answer{Validity: -1}},
		{"no nextUpdate, and two days old", stapletest.Answer{Validity: -1, Age: 2 * day}},
		{"kept for a day", stapletest.Answer{Period: day}},
		{"a delegate", stapletest.Answer{Signer: delegate}},
		{"a delegate that is not embedded", stapletest.Answer{Signer: delegate, Embed: []*x509.Certificate{}}},
		{"a delegate by name", stapletest.Answer{Signer: delegate, ByName: true}},
		{"a delegate that may not sign", stapletest.Answer{Signer: ca.Delegate(stapletest.DelegateOptions{NoEKU: true})}},
		{"a delegate that has expired", stapletest.Answer{Signer: ca.Delegate(stapletest.DelegateOptions{NotAfter: time.Now().Add(-time.Minute)})}},
		{"a stranger", stapletest.Answer{Signer: stranger.Signer()}},
		{"a SHA-256 CertID", stapletest.Answer{Hash: crypto.SHA256}},
		{"slow", stapletest.Answer{Delay: 20 * time.Second}},
		{"hangs", stapletest.Answer{Hang: true}},
		{"HTTP status 404", stapletest.Answer{HTTPStatus: 404, Body: []byte("not found")}},
		{"HTTP status 500", stapletest.Answer{HTTPStatus: 500, Body: []byte("oops")}},
		{"HTTP status 503, Retry-After", stapletest.Answer{HTTPStatus: 503, Body: []byte("later"), Header: http.Header{"Retry-After": {"3600"}}}},
		{"a login page", stapletest.Answer{Body: []byte("<html>Log in, please")}},
		{"an empty body", stapletest.Answer{Body: []byte{}}},
		{"malformedRequest", stapletest.Answer{Error: ocsp.Malformed}},
		{"internalError", stapletest.Answer{Error: ocsp.InternalError}},
		{"tryLater", stapletest.Answer{Error: ocsp.TryLater}},
		{"sigRequired", stapletest.Answer{Error: ocsp.SignatureRequired}},
		{"unauthorized", stapletest.Answer{Error: ocsp.Unauthorized}},
		{"about another certificate", stapletest.Answer{Edit: func(r *stapletest.Response) { r.Singles[0].Serial = ca.Issuer.SerialNumber }}},
	}
}
