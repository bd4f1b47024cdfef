package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-staple/staple/internal/testhttp"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestFetch(t *testing.T) {
	const before = "what was there"
	w := newLab(t)
	url := testhttp.NewServer(t, w.responder)
	here := func(o *stapletest.LeafOptions) { o.Responders = []string{url} }
	noIssuer := func(o *stapletest.LeafOptions) { here(o); o.OmitIssuer = true }
	delegate := w.ca.Delegate(stapletest.DelegateOptions{})
	tests := []struct {
		name    string
		answer  stapletest.Answer
		leaf    func(*stapletest.LeafOptions)
		issuer  bool
		exit    int
		written bool
		says    string
	}{
		{"good", stapletest.Answer{}, here, false, 0, true, ""},
		{"good, by a delegate", stapletest.Answer{Signer: delegate}, here, false, 0, true, ""},
		{"good, with -issuer", stapletest.Answer{}, noIssuer, true, 0, true, ""},
		{"revoked", stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.Superseded}, here, false, 2, true, "reason superseded"},
		{"unknown", stapletest.Answer{Status: ocsp.Unknown}, here, false, 1, false, "does not know the certificate"},
		{"forged", stapletest.Answer{Signer: stapletest.NewCA(stapletest.CAOptions{}).Signer()}, here, false, 1, false, "no usable answer"},
		{"ended", stapletest.Answer{Age: 8 * day}, here, false, 1, false, "nextUpdate was"},
		{"try later", stapletest.Answer{Error: ocsp.TryLater}, here, false, 1, false, "try later"},
		{"HTTP 500", stapletest.Answer{HTTPStatus: 500}, here, false, 1, false, "500 Internal Server Error"},
		{"nobody to ask", stapletest.Answer{}, noResponders, false, 3, false, "nobody to ask"},
		{"no issuer", stapletest.Answer{}, noIssuer, false, 3, false, "issuer"},
		{"an expired certificate", stapletest.Answer{}, func(o *stapletest.LeafOptions) {
			here(o)
			o.NotBefore, o.NotAfter = time.Now().Add(-2*day), time.Now().Add(-day)
		}, false, 3, false, "the certificate ended"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cert := w.leaf(tt.leaf)
			w.responder.Set(cert.Leaf, tt.answer)
			chain := write(t, "chain.pem", chainPEM(cert))
			args := []string{"fetch", chain}
			if tt.issuer {
				args = append(args, "-issuer", write(t, "issuer.pem", certPEM(w.ca.Issuer)))
			}
			stdout, stderr, exit := program(t, args...)
			require.Equal(t, tt.exit, exit, stderr)
			require.Equal(t, tt.written, stdout != "")
			require.Equal(t, tt.exit != 0, stderr != "")
			require.Contains(t, stderr, tt.says)
			if tt.written {
				r, err := ocsp.ParseResponseForCert([]byte(stdout), cert.Leaf, w.ca.Issuer)
				require.NoError(t, err)
				require.Equal(t, tt.answer.Status, r.Status)
			}

			out := write(t, "site.ocsp", []byte(before))
			require.NoError(t, os.Chmod(out, 0o640))
			stdout, _, exit = program(t, append(args, "-o", out)...)
			require.Equal(t, tt.exit, exit)
			require.Empty(t, stdout)
			data, err := os.ReadFile(out)
			require.NoError(t, err)
			require.Equal(t, tt.written, string(data) != before, "an existing file stays as it is")
			info, err := os.Stat(out)
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o640), info.Mode())
			require.Len(t, filesIn(t, filepath.Dir(out)), 1)
		})
	}
}

func filesIn(t *testing.T, dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestWhereFetchWrites(t *testing.T) {
	w := newLab(t)
	url := testhttp.NewServer(t, w.responder)
	chain := write(t, "chain.pem", chainPEM(w.leaf(func(o *stapletest.LeafOptions) { o.Responders = []string{url} })))
	dir := t.TempDir()
	t.Chdir(dir)
	_, stderr, exit := program(t, "fetch", "-o", "new.ocsp", chain)
	require.Equal(t, 0, exit, stderr)
	info, err := os.Stat("new.ocsp")
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o644), info.Mode())

	require.NoError(t, os.Mkdir("there", 0o700))
	require.NoError(t, os.WriteFile("there/site.ocsp", []byte("old"), 0o600))
	require.NoError(t, os.Symlink("there/site.ocsp", "link.ocsp"))
	_, _, exit = program(t, "fetch", chain, "-o", "link.ocsp")
	require.Equal(t, 0, exit)
	info, err = os.Lstat("link.ocsp")
	require.NoError(t, err)
	require.Equal(t, os.ModeSymlink, info.Mode().Type(), "a link stays one")
	data, err := os.ReadFile("there/site.ocsp")
	require.NoError(t, err)
	require.NotEqual(t, "old", string(data))

	_, _, exit = program(t, "fetch", "-o", os.DevNull, chain)
	require.Equal(t, 0, exit)
	info, err = os.Stat(os.DevNull)
	require.NoError(t, err)
	require.NotEqual(t, os.FileMode(0), info.Mode()&os.ModeDevice, "a device stays one")

	for _, bad := range []string{dir, "none/site.ocsp"} {
		_, stderr, exit = program(t, "fetch", "-o", bad, chain)
		require.Equal(t, 3, exit)
		require.Contains(t, stderr, "staple: "+bad+": ")
	}
	_, stderr, _ = program(t, "fetch", "-v", "-o", os.DevNull, chain)
	require.Regexp(t, `^GET SHA-1 http://127\.0\.0\.1:.*: 200, \d+ bytes, \S+\n$`, stderr)
	require.ElementsMatch(t, []string{"link.ocsp", "new.ocsp", "there"}, filesIn(t, dir))
}
