package ocspder

import (
	"bytes"
	"crypto/x509"
	"slices"
	"testing"

	"github.com/go-staple/staple/internal/scene"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

// element is one of DER, of any length.
func element(tag byte, parts ...[]byte) []byte {
	content := slices.Concat(parts...)
	n := len(content)
	return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, content...)
}

// trailed is a certificate of 256 bytes or more with a NULL after its signature.
func trailed(der []byte) []byte { return element(0x30, der[4:], derNULL) }

func TestTrimmed(t *testing.T) {
	s := scene.Of(stapletest.NewCA(stapletest.CAOptions{KeyType: stapletest.RSA2048}))
	d := s.CA.Delegate(stapletest.DelegateOptions{})
	direct := s.SignedBy(s.CA.Signer())
	delegated := s.SignedBy(d, d.Certificate)
	rsa := func(parameters ...byte) func([]byte) []byte {
		return func([]byte) []byte {
			return scene.TLV(0x30, scene.TLV(6, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11}), parameters)
		}
	}
	for _, test := range []struct {
		name   string
		der    []byte
		cert   []byte
		shared bool
	}{
		{"by the issuer", direct, nil, true},
		{"by a delegate", delegated, d.Certificate.Raw, true},
		{"by the issuer, who embeds itself", s.SignedBy(s.CA.Signer(), s.CA.Issuer), nil, false},
		{"by the issuer, who embeds garbage", s.SignedBy(s.CA.Signer(), &x509.Certificate{Raw: derSHA1}), nil, false},
		{"by a delegate among others", s.SignedBy(d, s.CA.Root, d.Certificate, s.Leaf), d.Certificate.Raw, false},
		{"by a delegate that comes twice", s.SignedBy(d, d.Certificate, d.Certificate), d.Certificate.Raw, false},
		{"by a delegate with something after its signature",
			s.SignedBy(d, &x509.Certificate{Raw: trailed(d.Certificate.Raw)}), d.Certificate.Raw, false},
		{"with an empty list", s.Element("certs", 0xa0, 2, 0x30, 0), nil, false},
		{"whose algorithm lacks NULL", s.Tamper("signatureAlgorithm", rsa()), nil, false},
		{"whose algorithm has NULL", s.Tamper("signatureAlgorithm", rsa(5, 0)), nil, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			was := bytes.Clone(test.der)
			r, singles, err := read(s, test.der)
			require.NoError(t, err)
			got := r.Trimmed(test.cert)
			require.Equal(t, was, test.der)
			require.Equal(t, test.shared, &got[0] == &test.der[0])
			require.True(t, test.shared || cap(got) == len(got))

			again, same, err := read(s, got)
			require.NoError(t, err)
			require.Equal(t, singles, same)
			require.Equal(t, r.TBS, again.TBS)
			require.Equal(t, r.Signature, again.Signature)
			require.Equal(t, r.Algorithm, again.Algorithm)
			require.Equal(t, test.cert, slices.Concat(slices.Collect(again.Certificates())...))
			fixed := again.Trimmed(test.cert)
			require.Same(t, &got[0], &fixed[0], "no fixed point")

			again.raw = nil // so that it is built anew
			require.Equal(t, got, again.Trimmed(test.cert))
		})
	}
}

// Each algorithm is written as stapletest writes it.
func TestIdentifiers(t *testing.T) {
	for name, ca := range scene.Kinds() {
		s := scene.Of(ca)
		for _, c := range stapletest.Oddities(ca, s.Leaf) {
			r, _, err := read(s, c.DER)
			require.NoError(t, err, c.Name)
			require.Equal(t, []byte(r.identifier), identifiers[r.Algorithm], "%s: %s", name, c.Name)
		}
	}
}

func TestAsSigned(t *testing.T) {
	s := scene.New()
	der := s.Leaf.Raw
	got, err := AsSigned(der)
	require.NoError(t, err)
	require.Same(t, &der[0], &got[0])

	for _, more := range [][]byte{derNULL, {0}, bytes.Repeat([]byte{0x30, 0}, 100)} {
		got, err := AsSigned(element(0x30, der[4:], more))
		require.NoError(t, err)
		require.Equal(t, der, got)
	}
	var shifted []byte // a signature's bits may be laid out in several ways
	at := len(der) - len(s.Leaf.Signature) - 1
	require.Zero(t, der[at])
	shifted = bytes.Clone(der)
	shifted[at], shifted[len(der)-1] = 1, der[len(der)-1]&0xfe
	for name, der := range map[string][]byte{
		"nothing": nil, "no certificate": derSHA1, "cut off": der[:len(der)-1], "something after it": append(bytes.Clone(der), 0),
		"unused bits": shifted, "a length that is not minimal": append([]byte{0x30, 0x83, 0, der[2], der[3]}, der[4:]...),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := AsSigned(der)
			refused(t, Malformed, err)
		})
	}
}

func TestPeek(t *testing.T) {
	s := scene.New()
	e, ok := Peek(s.Leaf.Raw)
	require.True(t, ok)
	require.Equal(t, Embedded{s.Leaf.Raw, s.Leaf.RawIssuer, s.Leaf.RawSubject, s.Leaf.RawSubjectPublicKeyInfo}, e)
	for n := range 300 {
		_, ok := Peek(s.Leaf.Raw[:n])
		require.False(t, ok)
	}
	_, ok = Peek(derSHA1)
	require.False(t, ok)
}

func TestSizeOf(t *testing.T) {
	for _, n := range []int{0, 1, 127, 128, 255, 256, 65535, 65536, 1<<24 - 1, 1 << 24} {
		require.Equal(t, sizeOf(n), len(appendHeader(nil, 0x30, n))+n)
	}
}
