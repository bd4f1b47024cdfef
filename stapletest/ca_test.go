package stapletest_test

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"math/big"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/go-staple/staple/stapletest"
)

func TestCAIssuesAChainThatVerifies(t *testing.T) {
	types := []stapletest.KeyType{stapletest.ECDSAP256, stapletest.ECDSAP384, stapletest.ECDSAP521,
		stapletest.RSA2048, stapletest.Ed25519}
	for _, keyType := range types {
		for _, intermediate := range []bool{false, true} {
			name := keyType.String()
			if intermediate {
				name += " with an intermediate"
			}
			t.Run(name, func(t *testing.T) {
				ca := stapletest.NewCA(stapletest.CAOptions{KeyType: keyType, Intermediate: intermediate})
				require.Equal(t, intermediate, !ca.Issuer.Equal(ca.Root))
				cert := ca.Leaf(stapletest.LeafOptions{KeyType: keyType})
				require.Len(t, cert.Certificate, 2)
				require.Equal(t, ca.Issuer.Raw, cert.Certificate[1])
				intermediates := x509.NewCertPool()
				intermediates.AddCert(ca.Issuer)
				for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
					chains, err := cert.Leaf.Verify(x509.VerifyOptions{
						DNSName: "localhost", Roots: ca.Roots(), Intermediates: intermediates,
						KeyUsages: []x509.ExtKeyUsage{usage},
					})
					require.NoError(t, err)
					require.Equal(t, ca.Issuer.Raw, chains[0][1].Raw)
				}
				handshake(t, ca, cert)
			})
		}
	}
}

// handshake connects a client that trusts ca to a server that has cert, and the other way round.
func handshake(t *testing.T, ca *stapletest.CA, cert tls.Certificate) {
	t.Helper()
	c, s := net.Pipe()
	defer c.Close()
	defer s.Close()
	failed := make(chan error, 1)
	go func() {
		failed <- tls.Server(s, &tls.Config{
			Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Roots(),
		}).Handshake()
	}()
	client := tls.Client(c, &tls.Config{
		Certificates: []tls.Certificate{cert}, RootCAs: ca.Roots(), ServerName: "localhost",
	})
	require.NoError(t, client.Handshake())
	go client.Read(make([]byte, 1)) // net.Pipe has no buffer for the server's session ticket
	require.NoError(t, <-failed)
}

func TestCAOptions(t *testing.T) {
	from, to := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC), time.Date(2040, 1, 2, 3, 4, 5, 0, time.UTC)
	ca := stapletest.NewCA(stapletest.CAOptions{
		Name: "Some CA", Intermediate: true, NotBefore: from, NotAfter: to,
		KeyType: stapletest.RSA2048, SignatureAlgorithm: x509.SHA384WithRSAPSS,
	})
	require.Equal(t, "Some CA", ca.Issuer.Subject.CommonName)
	require.Equal(t, "Some CA Root", ca.Root.Subject.CommonName)
	leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
	for _, c := range []*x509.Certificate{ca.Root, ca.Issuer, leaf} {
		require.Equal(t, x509.SHA384WithRSAPSS, c.SignatureAlgorithm)
	}
	for _, c := range []*x509.Certificate{ca.Root, ca.Issuer} {
		require.Equal(t, from, c.NotBefore)
		require.Equal(t, to, c.NotAfter)
	}
}

func TestCAMadeWithTheRealClockIsValidInABubble(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	synctest.Test(t, func(t *testing.T) {
		handshake(t, ca, ca.Leaf(stapletest.LeafOptions{}))
	})
}

func TestLeafOptions(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	from, to := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC), time.Date(2040, 1, 2, 3, 4, 5, 0, time.UTC)
	first := ca.Leaf(stapletest.LeafOptions{})
	cert := ca.Leaf(stapletest.LeafOptions{
		Names:      []string{"a.example", "*.b.example", "192.0.2.1"},
		Key:        first.PrivateKey.(crypto.Signer),
		Responders: []string{"http://one.example", "http://two.example/ocsp"},
		IssuerURLs: []string{"http://ca.example/issuer.crt"},
		MustStaple: true, NotBefore: from, NotAfter: to, Serial: big.NewInt(42), OmitIssuer: true,
		Template: func(c *x509.Certificate) { c.Subject.Organization = []string{"Example"} },
	})
	require.Len(t, cert.Certificate, 1)
	leaf := cert.Leaf
	require.Equal(t, first.PrivateKey, cert.PrivateKey)
	require.Equal(t, "CN=a.example,O=Example", leaf.Subject.String())
	require.Equal(t, []string{"a.example", "*.b.example"}, leaf.DNSNames)
	require.True(t, leaf.IPAddresses[0].Equal(net.IPv4(192, 0, 2, 1)))
	require.Equal(t, []string{"http://one.example", "http://two.example/ocsp"}, leaf.OCSPServer)
	require.Equal(t, []string{"http://ca.example/issuer.crt"}, leaf.IssuingCertificateURL)
	require.Equal(t, from, leaf.NotBefore)
	require.Equal(t, to, leaf.NotAfter)
	require.EqualValues(t, 42, leaf.SerialNumber.Int64())
	require.Equal(t, []byte{0x30, 3, 2, 1, 5}, extension(leaf, 1, 3, 6, 1, 5, 5, 7, 1, 24))
	require.Nil(t, extension(first.Leaf, 1, 3, 6, 1, 5, 5, 7, 1, 24))
	require.NotEqual(t, first.Leaf.SerialNumber, ca.Leaf(stapletest.LeafOptions{}).Leaf.SerialNumber)
}

func TestDelegateOptions(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	noCheck := []int{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}

	c := ca.Delegate(stapletest.DelegateOptions{}).Certificate
	require.NoError(t, c.CheckSignatureFrom(ca.Issuer))
	require.Equal(t, []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}, c.ExtKeyUsage)
	require.Equal(t, x509.KeyUsageDigitalSignature, c.KeyUsage)
	require.Equal(t, asn1.NullBytes, extension(c, noCheck...))
	require.False(t, c.IsCA)

	c = ca.Delegate(stapletest.DelegateOptions{
		CommonName: "Odd", NoEKU: true, NoNoCheck: true, IsCA: true, KeyUsage: x509.KeyUsageCRLSign,
		KeyType: stapletest.RSA2048,
	}).Certificate
	require.Equal(t, "Odd", c.Subject.CommonName)
	require.Empty(t, c.ExtKeyUsage)
	require.Equal(t, x509.KeyUsageCRLSign, c.KeyUsage)
	require.Nil(t, extension(c, noCheck...))
	require.True(t, c.IsCA)
	require.Equal(t, x509.RSA, c.PublicKeyAlgorithm)
}

// extension returns the value of an extension, or nil.
func extension(c *x509.Certificate, oid ...int) []byte {
	for _, e := range c.Extensions {
		if e.Id.Equal(oid) {
			return e.Value
		}
	}
	return nil
}
