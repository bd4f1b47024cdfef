package ocspder

import (
	"encoding/asn1"
	"math"
	"math/big"
	"testing"

	"github.com/stretchr/testify/require"
)

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
		require.Zero(t, n.Cmp((&Single{Serial: got}).SerialNumber()), "%v", n)
	}
	for _, content := range [][]byte{{}, {0, 0}, {0, 0x7f}, {0xff, 0x80}, {0xff, 0xff}} {
		require.False(t, minimal(content), "%x", content)
	}
}

func TestDotted(t *testing.T) {
	require.Equal(t, "1.2.840.113549", dotted([]byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d}))
	require.Equal(t, "OID(2affffffffff7f)", dotted([]byte{0x2a, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}))
	require.Len(t, dotted(make([]byte, 1<<20)), len("OID()")+64)
}
