package staple_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/exhaustive"
	"github.com/go-staple/staple/internal/mldsa"
	"github.com/go-staple/staple/internal/race"
	"github.com/go-staple/staple/internal/scene"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"
)

func TestOneVerifierForManyGoroutines(t *testing.T) {
	v := new(staple.ResponseVerifier)
	scenes := []scene.Scene{scene.New(), scene.New()}
	var ders [][]byte
	for _, s := range scenes {
		d := s.CA.Delegate(stapletest.DelegateOptions{})
		ders = append(ders, s.SignedBy(d, d.Certificate))
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 20 {
				k := (i + j) % 2
				if _, _, err := verify(scenes[k], v, ders[k]); err != nil {
					t.Error(err)
				}
				if _, _, err := verify(scenes[k], v, ders[1-k]); err == nil {
					t.Error("accepted for another CA's leaf")
				}
			}
		})
	}
	wg.Wait()
}

func TestTheResultIsFilledInAsByXCrypto(t *testing.T) {
	for kind, ca := range scene.Kinds() {
		if kind == "Ed25519" || strings.HasPrefix(kind, "MLDSA") {
			continue // which x/crypto does not know
		}
		leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
		now := time.Now()
		for _, delegated := range []bool{false, true} {
			for _, status := range []int{ocsp.Good, ocsp.Revoked, ocsp.Unknown} {
				t.Run(fmt.Sprintf("%s, delegated %v, status %d", kind, delegated, status), func(t *testing.T) {
					r := stapletest.NewResponse(ca, leaf)
					r.ByName = status == ocsp.Good
					single := &r.Singles[0]
					single.Status, single.RevokedAt, single.Reason = status, now.Add(-scene.Day), ocsp.CessationOfOperation
					single.Hash = []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512}[status]
					single.Extensions = []pkix.Extension{scene.Extension(false, 1, 2, 3), scene.Extension(false, scene.SCTList...)}
					r.Extensions = []pkix.Extension{scene.Extension(false, 1, 2, 3)}
					if delegated {
						r.Signer = ca.Delegate(stapletest.DelegateOptions{})
					}
					der := r.DER()
					want, err := ocsp.ParseResponseForCert(der, leaf, ca.Issuer)
					require.NoError(t, err)
					got, _, err := new(staple.ResponseVerifier).Verify(der, leaf, ca.Issuer, now)
					require.NoError(t, err)
					require.Equal(t, want, got)
					require.NoError(t, ocspSignature(got, ca.Issuer))
				})
			}
		}
	}
}

// ocspSignature checks r as the users of x/crypto do.
func ocspSignature(r *ocsp.Response, issuer *x509.Certificate) error {
	if r.Certificate != nil {
		return r.CheckSignatureFrom(r.Certificate)
	}
	return r.CheckSignatureFrom(issuer)
}

func TestTheCertificateOfTheResult(t *testing.T) {
	s := scene.New()
	d := s.CA.Delegate(stapletest.DelegateOptions{})
	for _, test := range []struct {
		name string
		der  []byte
		want *x509.Certificate
	}{
		{"none if the issuer signs", s.Response(nil), nil},
		{"none if it embeds others", s.SignedBy(s.CA.Signer(), d.Certificate, s.CA.Root), nil},
		{"none if it embeds itself", s.SignedBy(s.CA.Signer(), s.CA.Root, s.CA.Issuer), nil},
		{"the delegate's", s.SignedBy(d, d.Certificate), d.Certificate},
		{"the delegate's behind others", s.SignedBy(d, s.CA.Root, s.CA.Issuer, s.Leaf, d.Certificate), d.Certificate},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, _, err := verify(s, new(staple.ResponseVerifier), test.der)
			require.NoError(t, err)
			if test.want == nil {
				require.Nil(t, r.Certificate)
				return
			}
			require.NotNil(t, r.Certificate)
			require.Equal(t, test.want.Raw, r.Certificate.Raw)
		})
	}
}

// Nothing but what was signed comes out, whatever is done to a byte. In what is trimmed there is no byte that may be
// changed: it has none that nobody signed.
func TestNoCorruptionIsAccepted(t *testing.T) {
	kinds := []stapletest.KeyType{stapletest.ECDSAP256, stapletest.RSA2048, stapletest.Ed25519}
	if mldsa.Supported {
		kinds = append(kinds, stapletest.MLDSA44)
	}
	for _, k := range kinds {
		ca := stapletest.NewCA(stapletest.CAOptions{KeyType: k, Intermediate: true})
		s := scene.Scene{CA: ca, Leaf: ca.Leaf(stapletest.LeafOptions{}).Leaf, Now: time.Now()}
		d := ca.Delegate(stapletest.DelegateOptions{KeyType: k})
		for name, der := range map[string][]byte{
			"direct":    s.Response(nil),
			"delegated": s.SignedBy(d, d.Certificate),
			"embedded":  s.SignedBy(ca.Signer(), ca.Issuer),
			"chain":     s.SignedBy(d, ca.Root, ca.Issuer, d.Certificate),
		} {
			t.Run(k.String()+" "+name, func(t *testing.T) {
				t.Parallel()
				v := new(staple.ResponseVerifier)
				r, _, err := verify(s, v, der)
				require.NoError(t, err)
				trimmed := r.Raw
				require.Equal(t, name == "direct" || name == "delegated", bytes.Equal(der, trimmed))
				corruptions(trimmed, func(what string, corrupt []byte) {
					if _, _, err := verify(s, v, corrupt); err == nil {
						t.Errorf("accepted, when trimmed, %s", what)
					}
				})
				if bytes.Equal(der, trimmed) {
					return
				}
				corruptions(der, func(what string, corrupt []byte) {
					if r, _, err := verify(s, v, corrupt); err == nil && !bytes.Equal(r.Raw, trimmed) {
						t.Errorf("accepted %s", what)
					}
				})
			})
		}
	}
}

// corruptions calls judge with der cut off, and with each of its bytes changed.
func corruptions(der []byte, judge func(what string, corrupt []byte)) {
	for i := range der {
		judge(fmt.Sprintf("when cut off after %d bytes", i), der[:i])
	}
	flips := []byte{0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80}
	switch {
	case exhaustive.Enabled():
		flips = flips[:0]
		for x := 1; x < 256; x++ {
			flips = append(flips, byte(x))
		}
	case race.Enabled || testing.Short():
		flips = []byte{0x01, 0x80}
	}
	for i := range der {
		for _, x := range flips {
			corrupt := bytes.Clone(der)
			corrupt[i] ^= x
			judge(fmt.Sprintf("with byte %d turned from %#02x into %#02x", i, der[i], corrupt[i]), corrupt)
		}
	}
}

// A response of 1 MiB, however nasty, costs a few milliseconds and little memory.
func TestHostileResponsesAreCheap(t *testing.T) {
	const size = 1 << 20
	s := scene.New()
	good := s.Response(nil)
	d := s.CA.Delegate(stapletest.DelegateOptions{})
	repeat := func(der []byte) []byte { return bytes.Repeat(der, size/len(der)) }
	wrap := func(tag byte, content []byte) []byte {
		n := len(content)
		return append([]byte{tag, 0x83, byte(n >> 16), byte(n >> 8), byte(n)}, content...)
	}
	certs := func(der []byte) []byte {
		return s.Response(func(r *stapletest.Response) {
			r.Signer = &stapletest.Signer{Certificate: d.Certificate, Key: s.CA.Key}
			r.Tamper = func(element string, was []byte) []byte {
				if element == "certs" {
					return wrap(0xa0, wrap(0x30, repeat(der)))
				}
				return was
			}
		})
	}
	inside := func(name string, der []byte) []byte {
		return s.Response(func(r *stapletest.Response) {
			tamper := func(element string, was []byte) []byte {
				if element == name {
					return der
				}
				return was
			}
			r.Tamper, r.Singles[0].Tamper = tamper, tamper
		})
	}
	single := func(edit func(*stapletest.Single)) (der []byte) {
		s.Response(func(r *stapletest.Response) {
			edit(&r.Singles[0])
			r.Singles[0].Tamper = func(element string, was []byte) []byte {
				if element == "singleResponse" {
					der = was
				}
				return was
			}
		})
		return der
	}
	forged := stapletest.NewCA(stapletest.CAOptions{})
	forged.Issuer = &x509.Certificate{RawSubject: s.CA.Issuer.RawSubject}
	lookalike := forged.Delegate(stapletest.DelegateOptions{Template: func(c *x509.Certificate) { c.RawSubject = d.Certificate.RawSubject }})
	var many []pkix.Extension
	for i := range 16 {
		many = append(many, scene.Extension(false, 1, 2, 3, i))
	}
	for name, der := range map[string][]byte{
		"empty SEQUENCEs for certificates": certs([]byte{0x30, 0}),
		"the delegate over and over":       certs(d.Certificate.Raw),
		"look-alikes":                      certs(lookalike.Certificate.Raw),
		"siblings":                         certs(s.Leaf.Raw),
		"one huge certificate":             certs(wrap(0x30, make([]byte, size-9))),
		"singles about others":             inside("responses", wrap(0x30, repeat(single(func(s *stapletest.Single) { s.Serial = big.NewInt(1) })))),
		"singles about the leaf":           inside("responses", wrap(0x30, repeat(single(func(*stapletest.Single) {})))),
		"singles with our serial number": inside("responses", wrap(0x30, repeat(single(func(s *stapletest.Single) {
			s.IssuerKeyHash = make([]byte, 20)
		})))),
		"singles with extensions": inside("responses", wrap(0x30, repeat(single(func(s *stapletest.Single) { s.Extensions = many })))),
		"extensions":              inside("responseExtensions", wrap(0xa1, wrap(0x30, repeat([]byte{0x30, 5, 6, 1, 42, 4, 0})))),
		"a huge extension":        inside("singleExtensions", wrap(0xa1, wrap(0x30, wrap(0x30, append([]byte{6, 1, 42}, wrap(4, make([]byte, size))...))))),
		"a huge serial number":    inside("serialNumber", wrap(2, bytes.Repeat([]byte{1}, size))),
		"a huge OID":              inside("hashAlgorithm", wrap(0x30, wrap(6, bytes.Repeat([]byte{0x81}, size)))),
		"a huge response type":    inside("responseType", wrap(6, bytes.Repeat([]byte{1}, size))),
		"a huge responderID":      inside("responderID", wrap(0xa1, wrap(0x30, make([]byte, size)))),
		"a huge time":             inside("thisUpdate", wrap(0x18, make([]byte, size))),
		"a huge signature":        inside("signature", wrap(3, make([]byte, size))),
		"a huge salt":             inside("signatureAlgorithm", wrap(0x30, append([]byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0a}, wrap(0x30, wrap(0xa2, wrap(2, make([]byte, size))))...))),
		"zeros":                   make([]byte, size),
		"all of it trailing":      append(good, make([]byte, size)...),
		"nested SEQUENCEs":        bytes.Repeat([]byte{0x30, 0x80}, size/2),
	} {
		t.Run(name, func(t *testing.T) {
			best := time.Hour
			var before, after runtime.MemStats
			for range 3 {
				runtime.ReadMemStats(&before)
				start := time.Now()
				verify(s, new(staple.ResponseVerifier), der)
				best = min(best, time.Since(start))
				runtime.ReadMemStats(&after)
			}
			allocated := after.TotalAlloc - before.TotalAlloc
			t.Logf("%d bytes: %v, %d bytes allocated", len(der), best, allocated)
			require.Less(t, allocated, uint64(256<<10))
		})
	}
}

var update = flag.Bool("update", false, "make testdata/verify.pem and the corpora in testdata/fuzz anew")

const corpus = "testdata/fuzz/FuzzVerify"

// The corpora are responses of today's stapletest; tomorrow's verifier must judge them in the same way.
func TestCorpus(t *testing.T) {
	if *update {
		updateCorpus(t)
	}
	s, responses := scene.Fixture(t, "testdata")
	accepted, refused := 0, 0
	for name, der := range responses {
		_, _, err := verify(s, new(staple.ResponseVerifier), der)
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
		require.True(t, time.Now().Equal(scene.FixtureTime))
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
	s, responses := scene.Fixture(f, "testdata")
	signed := map[string]bool{}
	v := new(staple.ResponseVerifier)
	for _, der := range responses {
		if r, _, err := verify(s, v, der); err == nil {
			signed[string(r.TBSResponseData)] = true
		}
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		was := bytes.Clone(der)
		r, end, err := verify(s, v, der)
		require.Equal(t, was, der, "the input was changed")
		if err != nil {
			var refusal *staple.VerifyError
			require.ErrorAs(t, err, &refusal)
			refused(t, min(max(refusal.Reason, staple.ReasonMalformed), staple.ReasonUnsupportedAlgorithm), s.Leaf, r, end, err)
			return
		}
		require.True(t, signed[string(r.TBSResponseData)], "a forgery was accepted")
		require.True(t, end.After(scene.FixtureTime))
		require.Zero(t, r.SerialNumber.Cmp(s.Leaf.SerialNumber))
		require.Contains(t, []int{ocsp.Good, ocsp.Revoked, ocsp.Unknown}, r.Status)
		require.LessOrEqual(t, len(r.Raw), len(der)+64) // of an algorithm's parameters that are left out
		again, sameEnd, err := verify(s, v, r.Raw)
		require.NoError(t, err, "what comes out does not verify")
		require.Equal(t, r, again, "no fixed point")
		require.Equal(t, end, sameEnd)
	})
}

// Whatever stands in the list of certificates, and in the parameters of the algorithm, which nobody signs: what comes out
// is the same, verifies, and comes out of itself.
func FuzzTrim(f *testing.F) {
	s, responses := scene.Fixture(f, "testdata")
	type signed struct {
		want      *ocsp.Response
		algorithm []byte // the OID's element
	}
	var all []signed
	fresh := func(der []byte) (*ocsp.Response, error) {
		r, _, err := verify(s, new(staple.ResponseVerifier), der)
		return r, err
	}
	for _, name := range slices.Sorted(maps.Keys(responses)) {
		r, err := fresh(responses[name])
		if err != nil {
			continue
		}
		after := cryptobyte.String(r.Raw[bytes.Index(r.Raw, r.TBSResponseData)+len(r.TBSResponseData):])
		var identifier, oid cryptobyte.String
		require.True(f, after.ReadASN1(&identifier, cbasn1.SEQUENCE) && identifier.ReadASN1Element(&oid, cbasn1.OBJECT_IDENTIFIER))
		n := uint8(len(all))
		all = append(all, signed{r, oid})
		var own []byte
		if r.Certificate != nil {
			own = r.Certificate.Raw
		}
		f.Add(n, own, []byte(identifier))
		f.Add(n, append([]byte{0x30, 0}, own...), []byte{5, 0})
		f.Add(n, slices.Concat(s.Leaf.Raw, own, s.CA.Issuer.Raw), []byte{})
	}
	warm := new(staple.ResponseVerifier)
	f.Fuzz(func(t *testing.T, which uint8, certs, parameters []byte) {
		one := all[int(which)%len(all)]
		element := func(tag cbasn1.Tag, parts ...[]byte) []byte {
			var b cryptobyte.Builder
			b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(slices.Concat(parts...)) })
			return b.BytesOrPanic()
		}
		explicit := cbasn1.Tag(0).Constructed().ContextSpecific()
		der := element(cbasn1.SEQUENCE, []byte{10, 1, 0}, element(explicit, element(cbasn1.SEQUENCE,
			[]byte{6, 9, 0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1}, element(cbasn1.OCTET_STRING, element(cbasn1.SEQUENCE,
				one.want.TBSResponseData,
				element(cbasn1.SEQUENCE, one.algorithm, parameters),
				element(cbasn1.BIT_STRING, []byte{0}, one.want.Signature),
				element(explicit, element(cbasn1.SEQUENCE, certs)))))))
		r, err := fresh(der)
		_, _, known := verify(s, warm, der)
		require.Equal(t, err, known, "a verdict depends on memory")
		if err != nil {
			return
		}
		require.Equal(t, one.want, r)
		again, err := fresh(r.Raw)
		require.NoError(t, err)
		require.Equal(t, r, again, "no fixed point")
	})
}

// BenchmarkVerify compares Verify with the bare check of one signature, by the issuer or by a delegate
// that is remembered.
func BenchmarkVerify(b *testing.B) {
	for _, k := range []stapletest.KeyType{stapletest.ECDSAP256, stapletest.RSA2048} {
		ca := stapletest.NewCA(stapletest.CAOptions{KeyType: k, Intermediate: true})
		s := scene.Scene{CA: ca, Leaf: ca.Leaf(stapletest.LeafOptions{}).Leaf, Now: time.Now()}
		d := ca.Delegate(stapletest.DelegateOptions{KeyType: k})
		for _, kind := range []struct {
			name   string
			der    []byte
			signer *x509.Certificate
		}{
			{"direct", s.Response(nil), ca.Issuer},
			{"delegated", s.SignedBy(d, d.Certificate), d.Certificate},
		} {
			v := new(staple.ResponseVerifier)
			r, _, err := verify(s, v, kind.der)
			require.NoError(b, err)
			b.Run(fmt.Sprintf("%s/%s", k, kind.name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					verify(s, v, kind.der)
				}
			})
			b.Run(fmt.Sprintf("%s/%s/bare", k, kind.name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					kind.signer.CheckSignature(r.SignatureAlgorithm, r.TBSResponseData, r.Signature)
				}
			})
		}
	}
}
