//go:build !go1.27

package stapletest

import (
	"crypto"
	"crypto/x509"
)

func generateMLDSA(t KeyType) crypto.Signer {
	panic("stapletest: a key of type " + t.String() + " needs Go 1.27 or newer")
}

func mldsaAlgorithm(crypto.PublicKey) x509.SignatureAlgorithm { return 0 }
