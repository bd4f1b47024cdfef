package main

import (
	"encoding/json"
	"encoding/pem"
	"testing"
	"time"

	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestVerify(t *testing.T) {
	w := newLab(t)
	cert := w.leaf()
	chain, leaf, issuer := write(t, "chain.pem", chainPEM(cert)), write(t, "leaf.pem", certPEM(cert.Leaf)), write(t, "issuer.pem", certPEM(w.ca.Issuer))
	with := func(a stapletest.Answer) []byte { return w.stapling(cert, a).OCSPStaple }
	at := func(d time.Duration) string { return time.Now().Add(d).Format(time.RFC3339) }
	tests := []struct {
		name, verdict, status, reason string
		exit                          int
		response                      []byte
		args                          []string
	}{
		{"good", good, good, "", 0, with(stapletest.Answer{}), []string{"-cert", chain}},
		{"good, with -issuer", good, good, "", 0, with(stapletest.Answer{}), []string{"-cert", leaf, "-issuer", issuer}},
		{"good, and about to end", good, good, "", 0, with(stapletest.Answer{Age: 7*day - time.Hour}), []string{"-cert", chain}},
		{"good then", good, good, "", 0, with(stapletest.Answer{Age: 8 * day}), []string{"-cert", chain, "-at", at(-2 * day)}},
		{"good, and the certificate has ended", good, "", "", 0, with(stapletest.Answer{Validity: 200 * day}), []string{"-cert", chain, "-at", at(100 * day)}},
		{"in PEM", good, good, "", 0, pem.EncodeToMemory(&pem.Block{Type: "OCSP RESPONSE", Bytes: with(stapletest.Answer{})}), []string{"-cert", chain}},
		{"revoked", revoked, revoked, "keyCompromise", 2, with(stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise}), []string{"-cert", chain}},
		{"unknown", unknown, unknown, "", 2, with(stapletest.Answer{Status: ocsp.Unknown}), []string{"-cert", chain}},
		{"ended", expired, "", "expired", 2, with(stapletest.Answer{Age: 8 * day}), []string{"-cert", chain}},
		{"ended by then", expired, "", "expired", 2, with(stapletest.Answer{}), []string{"-cert", chain, "-at", at(8 * day)}},
		{"not yet", invalid, "", "not yet valid", 2, with(stapletest.Answer{}), []string{"-cert", chain, "-at", at(-day)}},
		{"forged", invalid, "", "unauthorized signer", 2, with(stapletest.Answer{Signer: stapletest.NewCA(stapletest.CAOptions{}).Signer()}), []string{"-cert", chain}},
		{"about another", invalid, "", "wrong certificate", 2, w.stapling(w.leaf(), stapletest.Answer{}).OCSPStaple, []string{"-cert", chain}},
		{"no OCSP", invalid, "", "malformed", 2, []byte("hello"), []string{"-cert", chain}},
		{"an error", invalid, "", "unsuccessful", 2, with(stapletest.Answer{Error: ocsp.TryLater}), []string{"-cert", chain}},
		{"no issuer", trouble, "", "", 3, with(stapletest.Answer{}), []string{"-cert", leaf}},
		{"another issuer", trouble, "", "", 3, with(stapletest.Answer{}), []string{"-cert", leaf, "-issuer", write(t, "x.pem", certPEM(stapletest.NewCA(stapletest.CAOptions{}).Root))}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := write(t, "site.ocsp", tt.response)
			stdout, stderr, exit := program(t, append([]string{"verify", "-json", file}, tt.args...)...)
			require.Empty(t, stderr)
			var got jsonLine
			require.NoError(t, json.Unmarshal([]byte(stdout), &got))
			require.Equal(t, tt.exit, exit, stdout)
			require.Equal(t, []any{tt.exit, tt.verdict, tt.status, tt.reason}, []any{got.Exit, got.Verdict, got.Status, got.Reason}, stdout)
			require.False(t, got.Stapled)
			stdout, stderr, exit = program(t, append([]string{"verify", file}, tt.args...)...)
			require.Equal(t, tt.exit, exit)
			require.Empty(t, stderr)
			require.Contains(t, stdout, file+": "+tt.verdict+"\n")
			require.Contains(t, stdout, tt.reason)
		})
	}
}
