//go:build !go1.27

package mldsa

import "crypto/x509"

// Supported reports whether the Go that built this has ML-DSA.
const Supported = false

// Algorithm returns nothing.
func Algorithm(OID) x509.SignatureAlgorithm { return 0 }

// KeyName returns nothing.
func KeyName(any) string { return "" }
