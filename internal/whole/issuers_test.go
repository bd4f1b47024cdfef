package whole

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestTheIssuerIsFoundAmongTwelveOfItsName(t *testing.T) {
	right := stapletest.NewCA(stapletest.CAOptions{Name: "Twelve", Intermediate: true})
	var namesakes []*x509.Certificate
	for range 12 {
		namesakes = append(namesakes, stapletest.NewCA(stapletest.CAOptions{Name: "Twelve", Intermediate: true}).Issuer)
	}
	for _, where := range []string{"the chain", "Issuers"} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.Of(t, right)
				cert := w.Leaf(func(o *stapletest.LeafOptions) { o.OmitIssuer = true })
				all := append(namesakes[:12:12], right.Issuer)
				s := w.Stapler(func(s *staple.Stapler) {
					if where == "Issuers" {
						s.Issuers = all
					}
				})
				if where == "the chain" {
					for _, c := range all {
						cert.Certificate = append(cert.Certificate, c.Raw)
					}
				}
				c := w.Add(s, cert)
				require.True(t, c.Status().Stapled)
			})
		})
	}
}

// retype returns a certificate whose key is of the type id-RSASSA-PSS in place of rsaEncryption: nobody looks at its signature.
func retype(t *testing.T, c *x509.Certificate) *x509.Certificate {
	plain, pss := []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01}, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a}
	i := bytes.Index(c.Raw, plain)
	require.Positive(t, i)
	der := append(append(bytes.Clone(c.Raw[:i]), pss...), c.Raw[i+len(pss):]...)
	retyped, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	require.Nil(t, retyped.PublicKey)
	return retyped
}

func TestAnIssuerThatIsThereAndCannotBeUsedIsNamedWithTheReason(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{Name: "PSS", KeyType: stapletest.RSA2048})
	pss := retype(t, ca.Issuer)
	negative := bytes.Replace(ca.Issuer.Raw, append([]byte{2, 16}, content(ca.Issuer.SerialNumber)...),
		append([]byte{2, 16, 0x80}, content(ca.Issuer.SerialNumber)[1:]...), 1)
	_, err := x509.ParseCertificate(negative)
	require.ErrorContains(t, err, "negative serial")
	for _, tt := range []struct {
		name  string
		chain [][]byte
		given []*x509.Certificate
		want  string
	}{
		{"a key for RSASSA-PSS, in the chain", [][]byte{pss.Raw}, nil, `"CN=PSS" (serial`},
		{"a key for RSASSA-PSS, in the chain, its type", [][]byte{pss.Raw}, nil, "id-RSASSA-PSS, which crypto/x509 cannot use"},
		{"a key for RSASSA-PSS, in Issuers", nil, []*x509.Certificate{pss}, "id-RSASSA-PSS"},
		{"a negative serial number", [][]byte{negative}, nil, "certificate 1 in the chain does not parse: x509: negative serial number"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.Of(t, ca)
				cert := w.Leaf(func(o *stapletest.LeafOptions) { o.OmitIssuer = true })
				cert.Certificate = append(cert.Certificate, tt.chain...)
				c, err := w.Stapler(func(s *staple.Stapler) { s.Issuers = tt.given }).Add(cert)
				require.NoError(t, err)
				err = c.Wait(world.Soon(t))
				require.ErrorIs(t, err, staple.ErrNoIssuer)
				require.ErrorContains(t, err, tt.want)
			})
		})
	}
}

// content returns a serial number in sixteen octets.
func content(n *big.Int) []byte { return n.FillBytes(make([]byte, 16)) }

func TestAChainWhoseFurtherCertificatesDoNotParseIsStapledAndLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		var text world.Text
		s := w.Stapler(func(s *staple.Stapler) { s.Logger = text.Logger() })
		cert := w.Leaf()
		cert.Certificate = append(cert.Certificate[:2:2], []byte("garbage"))
		world.RequireStaple(t, w.Add(s, cert), ocsp.Good)
		time.Sleep(time.Second)
		var lines []string
		for _, line := range text.TakeLines(t) {
			if line["level"] == "WARN" {
				lines = append(lines, fmt.Sprint(line["msg"], " ", line["index"]))
			}
		}
		require.Equal(t, []string{"staple: a certificate of a chain does not parse 2"}, lines)
		got, err := s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}}).GetCertificate(new(tls.ClientHelloInfo))
		require.NoError(t, err)
		require.Equal(t, cert.Certificate, got.Certificate)
	})
}
