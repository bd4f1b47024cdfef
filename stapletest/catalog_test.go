package stapletest_test

import (
	"crypto/x509"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple/stapletest"
)

func TestCatalogsAreWhole(t *testing.T) {
	var names []string
	for _, options := range []stapletest.CAOptions{
		{},
		{KeyType: stapletest.RSA2048, Intermediate: true},
		{KeyType: stapletest.ECDSAP384},
		{KeyType: stapletest.Ed25519, Intermediate: true},
		{Name: "Another CA"},
	} {
		ca := stapletest.NewCA(options)
		leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
		for _, list := range []func(*stapletest.CA, *x509.Certificate) []stapletest.Case{stapletest.Forgeries, stapletest.Oddities} {
			cases := list(ca, leaf)
			require.Greater(t, len(cases), 50)
			seen, bytes := map[string]bool{}, map[string]string{}
			for _, c := range cases {
				require.False(t, seen[c.Name], "%q twice", c.Name)
				seen[c.Name] = true
				require.Empty(t, bytes[string(c.DER)], "%q is the same as another", c.Name)
				bytes[string(c.DER)] = c.Name
				require.NotEmpty(t, c.Why, c.Name)
			}
			if options == (stapletest.CAOptions{}) {
				again := list(ca, leaf)
				for i := range again {
					require.Equal(t, cases[i].Name, again[i].Name, "the order is the same each time")
				}
				names = append(names, cases[0].Name)
			}
		}
	}
	require.Len(t, names, 2)
}

func TestCatalogsAreMadeInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := stapletest.NewCA(stapletest.CAOptions{})
		leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
		require.NotEmpty(t, stapletest.Forgeries(ca, leaf))
		require.NotEmpty(t, stapletest.Oddities(ca, leaf))
	})
}

// What golang.org/x/crypto/ocsp takes for good shows that these forgeries are sound but for what they
// are named after: the signature matches the key that it says, and the rest can be read.
func TestForgeriesThatXCryptoAccepts(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{KeyType: stapletest.RSA2048, Intermediate: true})
	leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
	cases := map[string][]byte{}
	for _, c := range stapletest.Forgeries(ca, leaf) {
		cases[c.Name] = c.DER
	}
	for _, name := range []string{
		"signed by a sibling leaf",
		"signed by a sibling leaf in the name of the issuer",
		"a delegate without extended key usage",
		"a delegate with anyExtendedKeyUsage alone",
		"a delegate for servers",
		"a delegate whose key usage lacks digitalSignature",
		"a delegate with an unknown critical extension",
		"a delegate that has expired",
		"a delegate that expired after it signed",
		"a delegate that is not valid yet",
		"a delegate whose certificate is signed with SHA-1",
		"responderID of another CA by key",
		"responderID of another CA by name",
		"responderID of the issuer, signed by a delegate by key",
		"responderID of the issuer, signed by a delegate by name",
		"issuerNameHash of another CA with SHA-1",
		"issuerKeyHash of another CA with SHA-1",
		"single responses about others alone",
		"nextUpdate a minute ago",
		"thisUpdate in an hour",
		"nextUpdate before thisUpdate",
		"thisUpdate before 1970",
		"producedAt before 1970",
		"no nextUpdate and thisUpdate a month ago",
		"an unknown critical extension of the response",
		"an RSA signature with SHA-1",
		"an ECDSA signature with SHA-1",
		"the issuer's signature with SHA-1",
		"two certStatus, good and revoked",
		"version v2",
	} {
		t.Run(name, func(t *testing.T) {
			require.Contains(t, cases, name)
			r, err := ocsp.ParseResponseForCert(cases[name], leaf, ca.Issuer)
			require.NoError(t, err)
			require.Equal(t, ocsp.Good, r.Status)
			require.Equal(t, leaf.SerialNumber, r.SerialNumber)
		})
	}
}
