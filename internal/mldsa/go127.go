//go:build go1.27

package mldsa

import (
	"crypto/mldsa"
	"crypto/x509"
)

// Supported reports whether the Go that built this has ML-DSA.
const Supported = true

// Algorithm returns crypto/x509's name for the parameter set of an OID in OIDs.
func Algorithm(o OID) x509.SignatureAlgorithm {
	switch o.Name {
	case "ML-DSA-44":
		return x509.MLDSA44
	case "ML-DSA-65":
		return x509.MLDSA65
	default:
		return x509.MLDSA87
	}
}

// KeyName returns the name of the parameter set of a public key; empty: a key of another kind.
func KeyName(public any) string {
	if key, ok := public.(*mldsa.PublicKey); ok {
		return key.Parameters().String()
	}
	return ""
}
