package muststaple

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"testing"

	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

func TestMustStaple(t *testing.T) {
	for _, test := range []struct {
		name      string
		value     []byte
		must, bad bool
	}{
		{"status_request", []byte{0x30, 3, 2, 1, 5}, true, false},
		{"status_request and status_request_v2", []byte{0x30, 6, 2, 1, 5, 2, 1, 17}, true, false},
		{"status_request last", []byte{0x30, 6, 2, 1, 17, 2, 1, 5}, true, false},
		{"status_request_v2 alone", []byte{0x30, 3, 2, 1, 17}, false, false},
		{"a large number", []byte{0x30, 4, 2, 2, 5, 5}, false, false},
		{"none", []byte{0x30, 0}, false, false},
		{"empty", []byte{}, false, true},
		{"trailing bytes", []byte{0x30, 3, 2, 1, 5, 0}, false, true},
		{"trailing bytes in the SEQUENCE", []byte{0x30, 4, 2, 1, 5, 0}, false, true},
		{"cut off", []byte{0x30, 3, 2, 1}, false, true},
		{"no SEQUENCE", []byte{2, 1, 5}, false, true},
		{"not minimal", []byte{0x30, 4, 2, 2, 0, 5}, false, true},
		{"another type", []byte{0x30, 3, 10, 1, 5}, false, true},
		{"negative", []byte{0x30, 6, 2, 1, 5, 2, 1, 0xff}, false, true},
		{"too large", []byte{0x30, 6, 2, 4, 1, 0, 0, 5}, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			ca := stapletest.NewCA(stapletest.CAOptions{})
			leaf := ca.Leaf(stapletest.LeafOptions{
				ExtraExtensions: []pkix.Extension{{Id: oidTLSFeature, Value: test.value}},
			}).Leaf
			require.Equal(t, test.must, Is(leaf))
			_, err := Read(leaf)
			require.Equal(t, test.bad, err != nil, "%v", err)
		})
	}
	ca := stapletest.NewCA(stapletest.CAOptions{})
	require.True(t, Is(ca.Leaf(stapletest.LeafOptions{MustStaple: true}).Leaf))
	require.False(t, Is(ca.Leaf(stapletest.LeafOptions{}).Leaf))
	require.False(t, Is(new(x509.Certificate)))
}
