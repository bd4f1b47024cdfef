//go:build go1.27

package stapletest

import (
	"crypto"
	"crypto/mldsa"
)

func mldsaFrom(t KeyType, seed []byte) crypto.Signer {
	return must(mldsa.NewPrivateKey(map[KeyType]mldsa.Parameters{
		MLDSA44: mldsa.MLDSA44(), MLDSA65: mldsa.MLDSA65(), MLDSA87: mldsa.MLDSA87(),
	}[t], seed))
}
