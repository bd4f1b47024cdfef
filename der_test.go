package staple

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"math"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/ocsp"
)

// tlv is an element of DER shorter than 128 bytes.
func tlv(tag byte, parts ...[]byte) []byte {
	content := slices.Concat(parts...)
	return append([]byte{tag, byte(len(content))}, content...)
}

var (
	derNULL   = []byte{5, 0}
	derSHA1   = tlv(0x30, tlv(6, []byte{0x2b, 0x0e, 3, 2, 0x1a}), derNULL)
	derSHA256 = tlv(0x30, tlv(6, []byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1}), derNULL)
	derSHA384 = tlv(0x30, tlv(6, []byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2}), derNULL)
	derSHA512 = tlv(0x30, tlv(6, []byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3}), derNULL)
)

// pssParameters are RSASSA-PSS-params, and trailing ones.
func pssParameters(hash, mgfHash []byte, salt byte, trailing ...byte) []byte {
	return tlv(0x30, tlv(0xa0, hash), tlv(0xa1, tlv(0x30, tlv(6, oidMGF1), mgfHash)), tlv(0xa2, []byte{2, 1, salt}), trailing)
}

func TestReadSignatureAlgorithm(t *testing.T) {
	rsa := func(last byte) []byte { return tlv(6, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, last}) }
	ecdsa := func(last ...byte) []byte { return tlv(6, []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 4}, last) }
	ed25519 := tlv(6, []byte{0x2b, 0x65, 0x70})
	noNULL := func(hash []byte) []byte { return tlv(0x30, hash[2:len(hash)-2]) }
	const malformed, unsupported = ReasonMalformed, ReasonUnsupportedAlgorithm
	for _, test := range []struct {
		name   string
		fields [][]byte
		want   x509.SignatureAlgorithm
		reason Reason
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
		{"PSS without MGF1", [][]byte{rsa(10), tlv(0x30, tlv(0xa0, derSHA256), tlv(0xa1, tlv(0x30, rsa(9), derSHA256)),
			tlv(0xa2, []byte{2, 1, 32}))}, 0, unsupported},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := cryptobyte.String(slices.Concat(test.fields...))
			got, err := readSignatureAlgorithm(&s)
			require.Equal(t, test.want, got)
			if test.reason == 0 {
				require.NoError(t, err)
				return
			}
			var refusal *VerifyError
			require.ErrorAs(t, err, &refusal)
			require.Equal(t, test.reason, refusal.Reason, "%v", err)
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
		{"without parameters", tlv(0x30, derSHA1[2:9]), crypto.SHA1, false},
		{"unknown", []byte{0x30, 3, 6, 1, 42}, 0, false},
		{"unknown with parameters", []byte{0x30, 6, 6, 1, 42, 2, 1, 7}, 0, false},
		{"unknown with trailing bytes", []byte{0x30, 7, 6, 1, 42, 5, 0, 5, 0}, 0, true},
		{"unknown with parameters that are cut off", []byte{0x30, 5, 6, 1, 42, 2, 1}, 0, true},
		{"known with other parameters", tlv(0x30, derSHA1[2:9], []byte{2, 1, 7}), crypto.SHA1, true},
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

func TestIntegers(t *testing.T) {
	numbers := []*big.Int{new(big.Int).Lsh(big.NewInt(-1), 200), new(big.Int).Lsh(big.NewInt(255), 200)}
	for n := int64(-70000); n <= 70000; n += 7 {
		numbers = append(numbers, big.NewInt(n))
	}
	for _, n := range []int64{0, 1, 127, 128, 255, 256, 32767, 32768, math.MaxInt64} {
		numbers = append(numbers, big.NewInt(n), big.NewInt(-n), big.NewInt(-n-1))
	}
	for _, n := range numbers {
		want, err := asn1.Marshal(n)
		require.NoError(t, err)
		got := integer(n)
		require.Equal(t, want[2:], got, "%v", n)
		require.True(t, minimal(got))
		require.Zero(t, n.Cmp((&single{serial: got}).serialNumber()), "%v", n)
	}
	for _, content := range [][]byte{{}, {0, 0}, {0, 0x7f}, {0xff, 0x80}, {0xff, 0xff}} {
		require.False(t, minimal(content), "%x", content)
	}
}

// A leaf with a negative serial number, which crypto/x509 parses if it is told to, is nothing special.
func TestNegativeSerialNumbers(t *testing.T) {
	s := newScene()
	leaf := *s.leaf
	leaf.SerialNumber = big.NewInt(-128)
	s.leaf = &leaf
	r, _, err := s.verify(new(ResponseVerifier), s.response(nil))
	require.NoError(t, err)
	require.Equal(t, leaf.SerialNumber, r.SerialNumber)
	leaf.SerialNumber = big.NewInt(128)
	_, _, err = s.verify(new(ResponseVerifier), s.response(func(r *stapletest.Response) { r.Singles[0].Serial = big.NewInt(-128) }))
	require.Error(t, err)
}

func TestTheResponderIDInErrors(t *testing.T) {
	name := newScene().ca.Issuer.RawSubject
	for _, test := range []struct {
		r    basicResponse
		want string
	}{
		{basicResponse{responderName: name}, `"CN=stapletest CA"`},
		{basicResponse{responderName: []byte{0x30, 2, 5, 0}}, `the name 30020500`},
		{basicResponse{responderName: make([]byte, 2000)}, `a name too long to tell`},
		{basicResponse{responderKeyHash: []byte{1, 0xab}}, `the holder of a key with hash 01ab`},
	} {
		require.Equal(t, test.want, test.r.responderID())
	}
}

func TestDotted(t *testing.T) {
	require.Equal(t, "1.2.840.113549", dotted([]byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d}))
	require.Equal(t, "OID(2affffffffff7f)", dotted([]byte{0x2a, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}))
	require.Len(t, dotted(make([]byte, 1<<20)), len("OID()")+64)
}

// Extensions whose OID a pkix.Extension cannot hold are no reason to leave out others.
func TestExtensionsOfTheResult(t *testing.T) {
	s := newScene()
	r, _, err := s.verify(new(ResponseVerifier), s.element("singleExtensions",
		tlv(0xa1, tlv(0x30,
			tlv(0x30, tlv(6, []byte{0x2a, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}), tlv(4)),
			tlv(0x30, tlv(6, []byte{0x2a, 3}), tlv(4, derNULL))))...))
	require.NoError(t, err)
	require.Len(t, r.Extensions, 1)
	require.Equal(t, "1.2.3", r.Extensions[0].Id.String())
	require.Equal(t, derNULL, r.Extensions[0].Value)
}

// All times of a response are in UTC, whatever the local zone is.
func TestTimesAreInUTC(t *testing.T) {
	local := time.Local
	defer func() { time.Local = local }()
	time.Local = time.FixedZone("elsewhere", 3*3600)
	s := newScene()
	r, end, err := s.verify(new(ResponseVerifier), s.response(func(r *stapletest.Response) {
		r.Singles[0].Status, r.Singles[0].RevokedAt = ocsp.Revoked, s.now
	}))
	require.NoError(t, err)
	for _, at := range []time.Time{r.ProducedAt, r.ThisUpdate, r.NextUpdate, r.RevokedAt, end} {
		require.Equal(t, time.UTC, at.Location())
	}
}
