package issuers

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
)

// Authority tells the authorities apart that issue certificates: by name and key identifier, which anybody can claim,
// and by the key if issuer is not nil.
func Authority(leaf, issuer *x509.Certificate) string {
	h := sha256.New()
	h.Write(leaf.RawIssuer)
	h.Write(leaf.AuthorityKeyId)
	if issuer != nil {
		h.Write(issuer.RawSubjectPublicKeyInfo)
	}
	return string(h.Sum(nil)[:16])
}

// Claimed returns the first certificate with the name of leaf's issuer, in its chain or among others, which may be nil, or
// nil. No signature is checked.
func Claimed(leaf *x509.Certificate, chain [][]byte, others []*x509.Certificate) *x509.Certificate {
	for _, der := range chain {
		if c, err := Intern(der); err == nil && bytes.Equal(c.RawSubject, leaf.RawIssuer) {
			return c
		}
	}
	for _, c := range others {
		if c != nil && bytes.Equal(c.RawSubject, leaf.RawIssuer) {
			return c
		}
	}
	return nil
}

// Candidates returns what is in chains, each without its leaf. broken is what of them does not parse.
func Candidates(chains [][][]byte) (all []*x509.Certificate, broken []error) {
	for _, chain := range chains {
		for i, der := range chain {
			if c, err := Intern(der); err == nil {
				all = append(all, c)
			} else {
				broken = append(broken, fmt.Errorf("certificate %d in the chain does not parse: %w", i+1, err))
			}
		}
	}
	return all, broken
}
