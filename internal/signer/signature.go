package signer

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/go-staple/staple/internal/mldsa"
)

// MaxRSABits is the size of the largest RSA key that is used: a larger one would only keep the processor busy.
const MaxRSABits = 8192

// checkSignature is c.CheckSignature for the algorithms and keys that count.
func checkSignature(c *x509.Certificate, a x509.SignatureAlgorithm, signed, signature []byte) (Kind, error) {
	switch a {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
		x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.PureEd25519:
	default:
		if !mldsa.Is(a) {
			return UnsupportedAlgorithm, fmt.Errorf("%v is unknown or too weak, want SHA-256, SHA-384, SHA-512, Ed25519 or ML-DSA", a)
		}
	}
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n > MaxRSABits {
			return UnsupportedAlgorithm, fmt.Errorf("an RSA key of %d bits, want %d at most", n, MaxRSABits)
		}
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P224() {
			return UnsupportedAlgorithm, errors.New("an ECDSA key on P-224, want P-256, P-384 or P-521")
		}
	case ed25519.PublicKey:
	default:
		if mldsa.KeyName(key) == "" {
			return UnsupportedAlgorithm, errors.New("a key of an unknown kind, want RSA, ECDSA, Ed25519 or ML-DSA")
		}
	}
	return BadSignature, c.CheckSignature(a, signed, signature)
}
