package issuers

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/stapletest"
)

var testCA = sync.OnceValue(func() *stapletest.CA {
	return stapletest.NewCA(stapletest.CAOptions{Name: "Issuers CA", Intermediate: true})
})

// certsOnly encodes certificates as a certs-only PKCS #7 message.
func certsOnly(certs ...*x509.Certificate) []byte {
	context0 := cryptobyte_asn1.Tag(0).ContextSpecific().Constructed()
	var b cryptobyte.Builder
	b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSignedData)
		b.AddASN1(context0, func(b *cryptobyte.Builder) {
			b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(cryptobyte_asn1.SET, func(*cryptobyte.Builder) {})
				b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1})
				})
				if certs != nil {
					b.AddASN1(context0, func(b *cryptobyte.Builder) {
						for _, c := range certs {
							b.AddBytes(c.Raw)
						}
					})
				}
				b.AddASN1(cryptobyte_asn1.SET, func(*cryptobyte.Builder) {})
			})
		})
	})
	return b.BytesOrPanic()
}

func inPEM(blockType string, ders ...[]byte) []byte {
	var out []byte
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der})...)
	}
	return out
}

func TestParse(t *testing.T) {
	a, b := testCA().Issuer, testCA().Root
	withJunk := cryptobyte.NewBuilder(nil) // in the place of a certificate
	withJunk.AddASN1(cryptobyte_asn1.Tag(1).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddBytes(a.Raw) })
	junk := &x509.Certificate{Raw: withJunk.BytesOrPanic()}
	for _, tt := range []struct {
		name string
		data []byte
		want []*x509.Certificate
	}{
		{"DER", a.Raw, []*x509.Certificate{a}},
		{"PEM", inPEM("CERTIFICATE", a.Raw), []*x509.Certificate{a}},
		{"PEM, several", inPEM("CERTIFICATE", a.Raw, b.Raw), []*x509.Certificate{a, b}},
		{"PEM with text around", slices.Concat([]byte("subject: x\n"), inPEM("CERTIFICATE", a.Raw), []byte("\n# end\n")), []*x509.Certificate{a}},
		{"PEM with something else before", append(inPEM("EC PARAMETERS", []byte{5, 0}), inPEM("CERTIFICATE", a.Raw)...), []*x509.Certificate{a}},
		{"PKCS #7", certsOnly(a, b), []*x509.Certificate{a, b}},
		{"PKCS #7 in PEM", inPEM("PKCS7", certsOnly(b, a)), []*x509.Certificate{b, a}},
		{"PKCS #7 and a certificate in PEM", append(inPEM("CMS", certsOnly(b)), inPEM("CERTIFICATE", a.Raw)...), []*x509.Certificate{b, a}},
		{"PKCS #7 with what is no certificate", certsOnly(junk, a), []*x509.Certificate{a}},
		{"PKCS #7 with nothing", certsOnly(), nil},
		{"PKCS #7 of another type", bytes.Replace(certsOnly(a), []byte{0x07, 0x02}, []byte{0x07, 0x06}, 1), nil},
		{"nothing", nil, nil},
		{"DER with a trailing byte", append(slices.Clone(a.Raw), 0), nil},
		{"half a certificate", a.Raw[:len(a.Raw)/2], nil},
		{"half a PKCS #7 message", certsOnly(a)[:100], nil},
		{"PKCS #7 with a trailing byte", append(certsOnly(a), 0), nil},
		{"a web page", []byte("<html>"), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Parse(tt.data)
			require.Len(t, got, len(tt.want))
			for i := range got {
				require.True(t, got[i].Equal(tt.want[i]))
			}
		})
	}
}

func TestParseFromOpenSSL(t *testing.T) {
	openssl := peer.Need(t, "openssl")
	dir := t.TempDir()
	chain := filepath.Join(dir, "chain.pem")
	require.NoError(t, os.WriteFile(chain, inPEM("CERTIFICATE", testCA().Issuer.Raw, testCA().Root.Raw), 0o600))
	for _, form := range []string{"DER", "PEM"} {
		out, err := exec.CommandContext(t.Context(), openssl, "crl2pkcs7", "-nocrl", "-certfile", chain, "-outform", form).Output()
		require.NoError(t, err)
		got := Parse(out)
		require.Len(t, got, 2, form)
		require.True(t, slices.ContainsFunc(got, testCA().Issuer.Equal))
		require.True(t, slices.ContainsFunc(got, testCA().Root.Equal))
	}
}

func FuzzParse(f *testing.F) {
	a := testCA().Issuer
	f.Add(a.Raw)
	f.Add(inPEM("CERTIFICATE", a.Raw, a.Raw))
	f.Add(certsOnly(a, a))
	f.Add(inPEM("PKCS7", certsOnly(a)))
	f.Fuzz(func(t *testing.T, data []byte) {
		total := 0
		for _, c := range Parse(data) {
			total += len(c.Raw)
			again, err := x509.ParseCertificate(c.Raw)
			if err != nil || !again.Equal(c) {
				t.Error(err)
			}
		}
		if total > len(data) {
			t.Errorf("%d bytes of certificates from %d bytes", total, len(data))
		}
	})
}

// reissue returns another certificate for c's key and name.
func reissue(t *testing.T, c *x509.Certificate) *x509.Certificate {
	template := *c
	template.SerialNumber = big.NewInt(4711)
	der, err := x509.CreateCertificate(nil, &template, testCA().Root, c.PublicKey, testCA().RootKey)
	require.NoError(t, err)
	again, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return again
}

func TestAmong(t *testing.T) {
	leaf := testCA().Leaf(stapletest.LeafOptions{}).Leaf
	right, wrong := testCA().Issuer, testCA().Root
	reissued := reissue(t, right)
	renamed := *right
	renamed.RawSubject = []byte("another name")
	stranger := renamed
	stranger.SubjectKeyId = nil
	many := slices.Repeat([]*x509.Certificate{wrong}, MaxChecks)
	namesake := *wrong
	namesake.RawSubject = right.RawSubject
	namesakes := slices.Repeat([]*x509.Certificate{&namesake}, 12)
	for _, tt := range []struct {
		name       string
		candidates []*x509.Certificate
		most       int
		want       []*x509.Certificate
	}{
		{"none", nil, 2, nil},
		{"only others", []*x509.Certificate{wrong, nil, leaf}, 2, nil},
		{"the one that is", []*x509.Certificate{wrong, nil, right}, 2, []*x509.Certificate{right}},
		{"all that are", []*x509.Certificate{right, wrong, reissued}, 2, []*x509.Certificate{right, reissued}},
		{"no more than asked for", []*x509.Certificate{right, reissued}, 1, []*x509.Certificate{right}},
		{"those of the right name first", []*x509.Certificate{&renamed, right}, 2, []*x509.Certificate{right, &renamed}},
		{"the key counts, not the name", []*x509.Certificate{&renamed}, 1, []*x509.Certificate{&renamed}},
		{"behind many of other names", append(slices.Clone(many), right), 1, []*x509.Certificate{right}},
		{"beyond what is checked", append(slices.Clone(many), &stranger), 1, nil},
		{"the last that is checked", append(slices.Clone(many[1:]), &stranger), 1, []*x509.Certificate{&stranger}},
		{"behind twelve of its name, by its key identifier", append(slices.Clone(namesakes), right), 1, []*x509.Certificate{right}},
		{"the same under another name", append(slices.Clone(namesakes), &renamed), 1, []*x509.Certificate{&renamed}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, Among(tt.candidates, leaf, tt.most))
			if tt.want == nil {
				require.Nil(t, Of(leaf, tt.candidates))
			} else {
				require.Same(t, tt.want[0], Of(leaf, tt.candidates))
			}
		})
	}
	t.Run("an absurdly large key is not even tried", func(t *testing.T) {
		leaf := *leaf
		leaf.SignatureAlgorithm = x509.SHA256WithRSA
		n := new(big.Int).Lsh(big.NewInt(1), 1<<18)
		n.Sub(n, big.NewInt(1))
		leaf.Signature = bytes.Repeat([]byte{0x55}, n.BitLen()/8)
		huge := &x509.Certificate{PublicKeyAlgorithm: x509.RSA, PublicKey: &rsa.PublicKey{N: n, E: 1<<31 - 1}}
		require.Empty(t, Among([]*x509.Certificate{huge}, &leaf, 1))
	})
}

func TestIntern(t *testing.T) {
	der := testCA().Issuer.Raw
	c, err := Intern(der)
	require.NoError(t, err)
	require.True(t, c.Equal(testCA().Issuer))
	again, err := Intern(slices.Clone(der))
	require.NoError(t, err)
	require.Same(t, c, again)
	_, err = Intern(der[1:])
	require.Error(t, err)
	runtime.KeepAlive(c)

	t.Run("what nobody uses is forgotten", func(t *testing.T) {
		require.Eventually(t, func() bool {
			runtime.GC()
			interned.Lock()
			defer interned.Unlock()
			return len(interned.certs) == 0
		}, time.Minute, time.Millisecond)
	})
}
