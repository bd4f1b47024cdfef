package stapletest_test

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"testing"
	"testing/synctest"

	"github.com/go-staple/staple/internal/race"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

var mldsaKeyTypes []stapletest.KeyType // which take Go 1.27

func TestASeedMakesTheSameBytes(t *testing.T) {
	bytesOf := func(t *testing.T, o stapletest.CAOptions) (all [][]byte) {
		synctest.Test(t, func(t *testing.T) {
			ca := stapletest.NewCA(o)
			leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
			other := ca.Leaf(stapletest.LeafOptions{}).Leaf
			require.NotEqual(t, leaf.PublicKey, other.PublicKey)
			require.NotEqual(t, leaf.SerialNumber, other.SerialNumber)
			all = append(all, ca.Root.Raw, ca.Issuer.Raw, leaf.Raw, other.Raw)
			for _, c := range append(stapletest.Forgeries(ca, leaf), stapletest.Oddities(ca, leaf)...) {
				all = append(all, c.DER)
			}
		})
		return all
	}
	keyTypes := []stapletest.KeyType{stapletest.ECDSAP256, stapletest.Ed25519}
	if !race.Enabled { // with which to make RSA keys takes long
		keyTypes = append(keyTypes, stapletest.RSA2048)
	}
	for _, keyType := range append(keyTypes, mldsaKeyTypes...) {
		t.Run(keyType.String(), func(t *testing.T) {
			o := stapletest.CAOptions{KeyType: keyType, Intermediate: true, Seed: "one"}
			first := bytesOf(t, o)
			require.Equal(t, first, bytesOf(t, o))
			o.Seed = "two"
			require.NotEqual(t, first[0], bytesOf(t, o)[0])
		})
	}
}

func TestSeededRSAKeysAreSound(t *testing.T) {
	for keyType, bits := range map[stapletest.KeyType]int{stapletest.RSA2048: 2048, stapletest.RSA3072: 3072} {
		ca := stapletest.NewCA(stapletest.CAOptions{KeyType: keyType, Seed: "sound"})
		require.Equal(t, bits, ca.Root.PublicKey.(*rsa.PublicKey).N.BitLen())
		require.NoError(t, ca.Root.CheckSignatureFrom(ca.Root))
	}
}

func TestALeafsOwnKeyIsNotWrapped(t *testing.T) {
	key := stapletest.NewCA(stapletest.CAOptions{}).Key
	cert := stapletest.NewCA(stapletest.CAOptions{Seed: "one"}).Leaf(stapletest.LeafOptions{Key: key})
	require.Equal(t, crypto.PrivateKey(key), cert.PrivateKey)
	_, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	require.NoError(t, err)
}
