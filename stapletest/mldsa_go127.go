//go:build go1.27

package stapletest

import (
	"crypto"
	"crypto/mldsa"
	"crypto/x509"
)

func init() {
	for last, a := range map[int]x509.SignatureAlgorithm{17: x509.MLDSA44, 18: x509.MLDSA65, 19: x509.MLDSA87} {
		signatureAlgorithms[a] = signatureAlgorithm{tlv(tagSequence, oid(2, 16, 840, 1, 101, 3, 4, 3, last)), x509.MLDSA, 0, false}
	}
}

func generateMLDSA(t KeyType) crypto.Signer {
	return must(mldsa.GenerateKey(map[KeyType]mldsa.Parameters{
		MLDSA44: mldsa.MLDSA44(), MLDSA65: mldsa.MLDSA65(), MLDSA87: mldsa.MLDSA87(),
	}[t]))
}

// mldsaAlgorithm returns zero for a key of another kind.
func mldsaAlgorithm(public crypto.PublicKey) x509.SignatureAlgorithm {
	if key, ok := public.(*mldsa.PublicKey); ok {
		return map[mldsa.Parameters]x509.SignatureAlgorithm{
			mldsa.MLDSA44(): x509.MLDSA44, mldsa.MLDSA65(): x509.MLDSA65, mldsa.MLDSA87(): x509.MLDSA87,
		}[key.Parameters()]
	}
	return 0
}
