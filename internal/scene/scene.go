// Package scene is a kit for tests of verification: a [Scene] is a CA, a certificate of it and a time, and makes
// responses about that certificate, good ones and others, down to single elements of their DER. [Fixture] is the scene
// that the corpora in testdata are about, [Reasons] why each of stapletest's forgeries is refused.
package scene

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-staple/staple/internal/mldsa"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

// Day is one.
const Day = 24 * time.Hour

// A Scene is a CA, a leaf of it, and a time.
type Scene struct {
	CA   *stapletest.CA
	Leaf *x509.Certificate
	Now  time.Time
}

// New returns a Scene of its own, with an intermediate, now.
func New() Scene {
	return Of(stapletest.NewCA(stapletest.CAOptions{Intermediate: true}))
}

// Of returns a Scene with a leaf of ca's.
func Of(ca *stapletest.CA) Scene {
	return Scene{CA: ca, Leaf: ca.Leaf(stapletest.LeafOptions{}).Leaf, Now: time.Now().Truncate(time.Second)}
}

// Response is a good one that the CA signed, after edit, which may be nil.
func (s Scene) Response(edit func(r *stapletest.Response)) []byte {
	r := stapletest.NewResponse(s.CA, s.Leaf)
	if edit != nil {
		edit(r)
	}
	return r.DER()
}

// SignedBy is a good response by signer, who embeds certs.
func (s Scene) SignedBy(signer *stapletest.Signer, certs ...*x509.Certificate) []byte {
	return s.Response(func(r *stapletest.Response) {
		r.Signer = signer
		r.Certificates = append([]*x509.Certificate{}, certs...)
	})
}

// Tamper replaces an element of a good response, or of its single.
func (s Scene) Tamper(name string, replace func(der []byte) []byte) []byte {
	return s.Response(func(r *stapletest.Response) {
		tamper := func(element string, der []byte) []byte {
			if element == name {
				return replace(der)
			}
			return der
		}
		r.Tamper, r.Singles[0].Tamper = tamper, tamper
	})
}

// Element replaces an element by der.
func (s Scene) Element(name string, der ...byte) []byte {
	return s.Tamper(name, func([]byte) []byte { return der })
}

// Kinds returns CAs of each kind of key, with and without an intermediate.
func Kinds() map[string]*stapletest.CA {
	all := map[string]*stapletest.CA{}
	for _, k := range []stapletest.KeyType{
		stapletest.ECDSAP256, stapletest.ECDSAP384, stapletest.ECDSAP521, stapletest.RSA2048, stapletest.Ed25519,
		stapletest.MLDSA44, stapletest.MLDSA65, stapletest.MLDSA87,
	} {
		if k >= stapletest.MLDSA44 && !mldsa.Supported {
			break
		}
		all[k.String()] = stapletest.NewCA(stapletest.CAOptions{KeyType: k})
	}
	all["ECDSAP256 intermediate"] = stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
	all["RSA2048 intermediate"] = stapletest.NewCA(stapletest.CAOptions{KeyType: stapletest.RSA2048, Intermediate: true})
	return all
}

// TLV is an element of DER shorter than 128 bytes.
func TLV(tag byte, parts ...[]byte) []byte {
	content := slices.Concat(parts...)
	return append([]byte{tag, byte(len(content))}, content...)
}

// Extension is one with the value NULL.
func Extension(critical bool, arcs ...int) pkix.Extension {
	return pkix.Extension{Id: arcs, Critical: critical, Value: asn1.NullBytes}
}

// SCTList is the OID of the extension with Certificate Transparency's timestamps.
var SCTList = []int{1, 3, 6, 1, 4, 1, 11129, 2, 4, 5}

// FixtureTime is when the corpora were made, by the clock of a synctest bubble.
var FixtureTime = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// Fixture reads the issuer and the leaf that the corpora are about, and their responses, from the testdata of the root.
func Fixture(t testing.TB, testdata string) (s Scene, responses map[string][]byte) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(testdata, "verify.pem"))
	require.NoError(t, err)
	var certs []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		certs = append(certs, c)
	}
	require.Len(t, certs, 2)
	responses = map[string][]byte{}
	files, err := filepath.Glob(filepath.Join(testdata, "fuzz/FuzzVerify/*-*"))
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
	return Scene{CA: &stapletest.CA{Issuer: certs[0]}, Leaf: certs[1], Now: FixtureTime}, responses
}
