package choose

import (
	"crypto/tls"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestByNameIsWhatCryptoTLSDid(t *testing.T) {
	exact, wildcard, any := new(tls.Certificate), new(tls.Certificate), new(tls.Certificate)
	exact.Certificate, wildcard.Certificate = [][]byte{{1}}, [][]byte{{2}}
	certs := map[string]*tls.Certificate{"a.example": exact, "*.example": wildcard, "*": any}
	for name, want := range map[string]*tls.Certificate{
		"a.example":   exact,
		"A.Example":   exact,
		"b.example":   wildcard,
		"c.b.example": nil,
		"localhost":   any,
		"":            nil,
	} {
		require.True(t, want == ByName(certs, name), "%q", name)
	}
	certs[""] = exact
	require.Same(t, exact, ByName(certs, ""))
}
