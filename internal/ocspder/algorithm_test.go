package ocspder

import (
	"crypto"
	"crypto/x509"
	"slices"
	"testing"

	"github.com/go-staple/staple/internal/scene"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/cryptobyte"
)

var (
	derNULL   = []byte{5, 0}
	derSHA1   = scene.TLV(0x30, scene.TLV(6, []byte{0x2b, 0x0e, 3, 2, 0x1a}), derNULL)
	derSHA256 = scene.TLV(0x30, scene.TLV(6, []byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1}), derNULL)
	derSHA384 = scene.TLV(0x30, scene.TLV(6, []byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2}), derNULL)
	derSHA512 = scene.TLV(0x30, scene.TLV(6, []byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3}), derNULL)
)

// pssParameters are RSASSA-PSS-params, and trailing ones.
func pssParameters(hash, mgfHash []byte, salt byte, trailing ...byte) []byte {
	return scene.TLV(0x30, scene.TLV(0xa0, hash), scene.TLV(0xa1, scene.TLV(0x30, scene.TLV(6, oidMGF1), mgfHash)), scene.TLV(0xa2, []byte{2, 1, salt}), trailing)
}

func TestReadSignatureAlgorithm(t *testing.T) {
	rsa := func(last byte) []byte { return scene.TLV(6, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, last}) }
	ecdsa := func(last ...byte) []byte { return scene.TLV(6, []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 4}, last) }
	ed25519 := scene.TLV(6, []byte{0x2b, 0x65, 0x70})
	noNULL := func(hash []byte) []byte { return scene.TLV(0x30, hash[2:len(hash)-2]) }
	const malformed, unsupported = Malformed, UnsupportedAlgorithm
	for _, test := range []struct {
		name   string
		fields [][]byte
		want   x509.SignatureAlgorithm
		kind   Kind
	}{
		{"SHA256-RSA with NULL", [][]byte{rsa(11), derNULL}, x509.SHA256WithRSA, 0},
		{"SHA384-RSA with NULL", [][]byte{rsa(12), derNULL}, x509.SHA384WithRSA, 0},
		{"SHA512-RSA with NULL", [][]byte{rsa(13), derNULL}, x509.SHA512WithRSA, 0},
		{"SHA256-RSA without parameters", [][]byte{rsa(11)}, x509.SHA256WithRSA, 0},
		{"SHA1-RSA", [][]byte{rsa(5), derNULL}, x509.SHA1WithRSA, 0},
		{"MD5-RSA", [][]byte{rsa(4), derNULL}, x509.MD5WithRSA, 0},
		{"MD2-RSA", [][]byte{rsa(2), derNULL}, x509.MD2WithRSA, 0},
		{"SHA256-RSA with NULL twice", [][]byte{rsa(11), derNULL, derNULL}, 0, malformed},
		{"SHA256-RSA with a NULL that is not empty", [][]byte{rsa(11), {5, 1, 0}}, 0, malformed},
		{"SHA256-RSA with a SEQUENCE", [][]byte{rsa(11), {0x30, 0}}, 0, malformed},
		{"ECDSA-SHA256", [][]byte{ecdsa(3, 2)}, x509.ECDSAWithSHA256, 0},
		{"ECDSA-SHA384", [][]byte{ecdsa(3, 3)}, x509.ECDSAWithSHA384, 0},
		{"ECDSA-SHA512", [][]byte{ecdsa(3, 4)}, x509.ECDSAWithSHA512, 0},
		{"ECDSA-SHA1", [][]byte{ecdsa(1)}, x509.ECDSAWithSHA1, 0},
		{"ECDSA-SHA256 with NULL", [][]byte{ecdsa(3, 2), derNULL}, 0, malformed},
		{"ECDSA-SHA224", [][]byte{ecdsa(3, 1)}, 0, unsupported},
		{"Ed25519", [][]byte{ed25519}, x509.PureEd25519, 0},
		{"Ed25519 with NULL", [][]byte{ed25519, derNULL}, 0, malformed},
		{"nothing", nil, 0, malformed},
		{"an empty OID", [][]byte{{6, 0}}, 0, malformed},
		{"PSS with SHA-256", [][]byte{rsa(10), pssParameters(derSHA256, derSHA256, 32)}, x509.SHA256WithRSAPSS, 0},
		{"PSS with SHA-384", [][]byte{rsa(10), pssParameters(derSHA384, derSHA384, 48)}, x509.SHA384WithRSAPSS, 0},
		{"PSS with SHA-512", [][]byte{rsa(10), pssParameters(derSHA512, derSHA512, 64)}, x509.SHA512WithRSAPSS, 0},
		{"PSS whose hashes have no NULL", [][]byte{rsa(10), pssParameters(noNULL(derSHA256), noNULL(derSHA256), 32)}, x509.SHA256WithRSAPSS, 0},
		{"PSS with SHA-1", [][]byte{rsa(10), pssParameters(derSHA1, derSHA1, 20)}, 0, unsupported},
		{"PSS with two hashes", [][]byte{rsa(10), pssParameters(derSHA256, derSHA384, 32)}, 0, unsupported},
		{"PSS with another salt", [][]byte{rsa(10), pssParameters(derSHA256, derSHA256, 48)}, 0, unsupported},
		{"PSS with SHA-384 and another salt", [][]byte{rsa(10), pssParameters(derSHA384, derSHA384, 32)}, 0, unsupported},
		{"PSS with SHA-512 and another salt", [][]byte{rsa(10), pssParameters(derSHA512, derSHA512, 32)}, 0, unsupported},
		{"PSS with the default trailer spelled out", [][]byte{rsa(10), pssParameters(derSHA256, derSHA256, 32, 0xa3, 3, 2, 1, 1)}, 0, unsupported},
		{"PSS with all defaults", [][]byte{rsa(10), {0x30, 0}}, 0, unsupported},
		{"PSS without parameters", [][]byte{rsa(10)}, 0, malformed},
		{"PSS with parameters twice", [][]byte{rsa(10), pssParameters(derSHA256, derSHA256, 32), derNULL}, 0, malformed},
		{"PSS without MGF1", [][]byte{rsa(10), scene.TLV(0x30, scene.TLV(0xa0, derSHA256), scene.TLV(0xa1, scene.TLV(0x30, rsa(9), derSHA256)),
			scene.TLV(0xa2, []byte{2, 1, 32}))}, 0, unsupported},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := cryptobyte.String(slices.Concat(test.fields...))
			got, err := readSignatureAlgorithm(&s)
			require.Equal(t, test.want, got)
			if test.kind == 0 {
				require.NoError(t, err)
				return
			}
			var refusal *Error
			require.ErrorAs(t, err, &refusal)
			require.Equal(t, test.kind, refusal.Kind, "%v", err)
		})
	}
}

func TestReadHash(t *testing.T) {
	for _, test := range []struct {
		name string
		der  []byte
		want crypto.Hash
		bad  bool
	}{
		{"SHA-1", derSHA1, crypto.SHA1, false},
		{"SHA-256", derSHA256, crypto.SHA256, false},
		{"SHA-384", derSHA384, crypto.SHA384, false},
		{"SHA-512", derSHA512, crypto.SHA512, false},
		{"without parameters", scene.TLV(0x30, derSHA1[2:9]), crypto.SHA1, false},
		{"unknown", []byte{0x30, 3, 6, 1, 42}, 0, false},
		{"unknown with parameters", []byte{0x30, 6, 6, 1, 42, 2, 1, 7}, 0, false},
		{"unknown with trailing bytes", []byte{0x30, 7, 6, 1, 42, 5, 0, 5, 0}, 0, true},
		{"unknown with parameters that are cut off", []byte{0x30, 5, 6, 1, 42, 2, 1}, 0, true},
		{"known with other parameters", scene.TLV(0x30, derSHA1[2:9], []byte{2, 1, 7}), crypto.SHA1, true},
		{"without an OID", []byte{0x30, 2, 5, 0}, 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := cryptobyte.String(test.der[2:])
			var got crypto.Hash
			require.Equal(t, !test.bad, readHash(&s, &got))
			require.Equal(t, test.want, got)
		})
	}
}
