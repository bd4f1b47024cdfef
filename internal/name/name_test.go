package name

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestOf(t *testing.T) {
	negative := func(n int64) *x509.Certificate { return &x509.Certificate{SerialNumber: big.NewInt(n)} }
	huge := new(big.Int).Lsh(big.NewInt(0x7f), 8*30)
	for _, test := range []struct {
		c    *x509.Certificate
		want string
	}{
		{nil, "no certificate"},
		{&x509.Certificate{}, `"" (serial unknown)`},
		{&x509.Certificate{Subject: pkix.Name{CommonName: "a\x00b"}, SerialNumber: big.NewInt(0)}, `"CN=a\x00b" (serial 00)`},
		{&x509.Certificate{DNSNames: []string{"a.example", "b.example"}, SerialNumber: big.NewInt(0x80)}, `"a.example" (serial 80)`},
		{&x509.Certificate{IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}, SerialNumber: big.NewInt(0x7f01)}, `"192.0.2.1" (serial 7f:01)`},
		{negative(-1), `"" (serial -01)`},
		{negative(-0x80), `"" (serial -80)`},
		{negative(-0x81), `"" (serial -81)`},
		{negative(-0xff), `"" (serial -ff)`},
		{negative(0xff), `"" (serial ff)`},
		{negative(-0x100), `"" (serial -01:00)`},
		{negative(-0x8000), `"" (serial -80:00)`},
		{&x509.Certificate{DNSNames: []string{strings.Repeat("x", 500)}, SerialNumber: huge},
			`"` + strings.Repeat("x", 100) + `" (serial 7f` + strings.Repeat(":00", 19) + `...)`},
	} {
		require.Equal(t, test.want, Of(test.c))
		if test.c != nil {
			subject, serial := Parts(test.c)
			require.Equal(t, test.want, fmt.Sprintf(`"%s" (serial %s)`, subject, serial))
		}
	}
}

func TestReasonsHaveTheNamesOfRFC5280(t *testing.T) {
	require.Equal(t, "keyCompromise", Reason(ocsp.KeyCompromise))
	require.Equal(t, "certificateHold", Reason(ocsp.CertificateHold))
	require.Equal(t, "aACompromise", Reason(ocsp.AACompromise))
	require.Equal(t, "7", Reason(7), "it is not used")
}
