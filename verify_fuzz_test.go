package staple

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

var update = flag.Bool("update", false, "make testdata/verify.pem and the corpora in testdata/fuzz anew")

// fuzzTime is when the corpora were made, by the clock of a synctest bubble.
var fuzzTime = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

const corpus = "testdata/fuzz/FuzzVerify"

// fixture reads the issuer and the leaf that the corpora are about, and their responses.
func fixture(t testing.TB) (s scene, responses map[string][]byte) {
	t.Helper()
	text, err := os.ReadFile("testdata/verify.pem")
	require.NoError(t, err)
	var certs []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		certs = append(certs, c)
	}
	require.Len(t, certs, 2)
	responses = map[string][]byte{}
	files, err := filepath.Glob(corpus + "/*-*")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		line, ok := strings.CutPrefix(string(text), "go test fuzz v1\n[]byte(")
		require.True(t, ok, file)
		der, err := strconv.Unquote(strings.TrimSuffix(line, ")\n"))
		require.NoError(t, err, file)
		responses[filepath.Base(file)] = []byte(der)
	}
	return scene{ca: &stapletest.CA{Issuer: certs[0]}, leaf: certs[1], now: fuzzTime}, responses
}

// The corpora are responses of today's stapletest; tomorrow's verifier must judge them in the same way.
func TestCorpus(t *testing.T) {
	if *update {
		updateCorpus(t)
	}
	s, responses := fixture(t)
	accepted, refused := 0, 0
	for name, der := range responses {
		_, _, err := s.verify(new(ResponseVerifier), der)
		switch kind, _, _ := strings.Cut(name, "-"); kind {
		case "oddity":
			require.NoError(t, err, name)
			accepted++
		case "forgery":
			require.Error(t, err, name)
			refused++
		}
	}
	require.Greater(t, accepted, 10)
	require.Greater(t, refused, 30)
}

func updateCorpus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		require.True(t, time.Now().Equal(fuzzTime))
		ca := stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
		leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
		var certs []byte
		for _, c := range []*x509.Certificate{ca.Issuer, leaf} {
			certs = append(certs, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
		require.NoError(t, os.RemoveAll(corpus))
		require.NoError(t, os.MkdirAll(corpus, 0o777))
		require.NoError(t, os.WriteFile("testdata/verify.pem", certs, 0o666))
		write := func(kind string, cases []stapletest.Case) {
			for i, c := range cases {
				if i%3 != 0 || len(c.DER) > 4096 {
					continue
				}
				name := strings.Map(func(r rune) rune {
					if 'a' <= r && r <= 'z' || '0' <= r && r <= '9' {
						return r
					}
					return '_'
				}, strings.ToLower(c.Name))
				text := fmt.Sprintf("go test fuzz v1\n[]byte(%q)\n", c.DER)
				require.NoError(t, os.WriteFile(filepath.Join(corpus, kind+"-"+name), []byte(text), 0o666))
			}
		}
		write("oddity", stapletest.Oddities(ca, leaf))
		write("forgery", stapletest.Forgeries(ca, leaf))
	})
}

// Nothing is accepted but what the issuer, or its delegate, signed, and nothing panics.
func FuzzVerify(f *testing.F) {
	s, responses := fixture(f)
	signed := map[string]bool{}
	v := new(ResponseVerifier)
	for _, der := range responses {
		if r, _, err := s.verify(v, der); err == nil {
			signed[string(r.TBSResponseData)] = true
		}
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		was := bytes.Clone(der)
		r, end, err := s.verify(v, der)
		require.Equal(t, was, der, "the input was changed")
		if err != nil {
			var refusal *VerifyError
			require.ErrorAs(t, err, &refusal)
			refused(t, min(max(refusal.Reason, ReasonMalformed), ReasonUnsupportedAlgorithm), s.leaf, r, end, err)
			return
		}
		require.True(t, signed[string(r.TBSResponseData)], "a forgery was accepted")
		require.True(t, end.After(fuzzTime))
		require.Zero(t, r.SerialNumber.Cmp(s.leaf.SerialNumber))
		require.Contains(t, []int{ocsp.Good, ocsp.Revoked, ocsp.Unknown}, r.Status)
		require.Equal(t, der, r.Raw)
	})
}

// What is read is one whole response, and no byte more.
func FuzzParseResponse(f *testing.F) {
	_, responses := fixture(f)
	for _, der := range responses {
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		var singles []single
		r, err := readResponse(der, func(s single) { singles = append(singles, s) })
		if err != nil {
			require.Nil(t, r)
			var refusal *VerifyError
			require.ErrorAs(t, err, &refusal)
			require.NotZero(t, refusal.Reason)
			require.Less(t, len(err.Error()), 1000)
			return
		}
		require.True(t, bytes.Contains(der, r.tbs))
		require.True(t, bytes.Contains(der, r.signature))
		require.NotZero(t, r.algorithm)
		require.NotEqual(t, r.responderName == nil, r.responderKeyHash == nil)
		for _, s := range singles {
			require.True(t, bytes.Contains(r.tbs, s.serial))
			require.Equal(t, s.serial, integer(s.serialNumber()))
			form := s.thisUpdate.Format("20060102150405Z")
			require.True(t, bytes.Contains(r.tbs, []byte(form)))
		}
		for _, other := range [][]byte{append(bytes.Clone(der), 0), der[:len(der)-1], der[1:]} {
			_, err := readResponse(other, func(single) {})
			require.Error(t, err)
		}
		for cert := range r.certificates() {
			parseDelegate(cert)
		}
		r.responderID()
	})
}

// Whatever both this package and golang.org/x/crypto/ocsp can read, they read alike.
func FuzzAgainstXCrypto(f *testing.F) {
	s, responses := fixture(f)
	for _, der := range responses {
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		var singles []single
		r, err := readResponse(der, func(s single) { singles = append(singles, s) })
		var status ocsp.ResponseError
		if errors.As(err, &status) {
			_, err := ocsp.ParseResponse(der, nil)
			require.Equal(t, status, err)
		}
		if err != nil || len(singles) != 1 {
			return
		}
		for _, issuer := range []*x509.Certificate{nil, s.ca.Issuer} {
			want, err := ocsp.ParseResponse(der, issuer)
			if err != nil {
				continue
			}
			got := r.response(&singles[0])
			got.Raw, got.Certificate = der, want.Certificate
			require.Zero(t, want.SerialNumber.Cmp(got.SerialNumber))
			got.SerialNumber = want.SerialNumber
			if want.SignatureAlgorithm == 0 {
				got.SignatureAlgorithm = 0 // RSASSA-PSS and Ed25519
			}
			require.Equal(t, want, got)
		}
	})
}
