//go:build !go1.27

package stapletest

import "crypto"

func mldsaFrom(t KeyType, _ []byte) crypto.Signer { return generateMLDSA(t) }
