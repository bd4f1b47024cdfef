package ocspder

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/fips140"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"

	"github.com/go-staple/staple/internal/name"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"
)

// A Match picks the statement that counts for a certificate. Its CertID has to name the certificate by all its parts:
// hash of the issuer's name, hash of the issuer's key, serial number. Of several such statements revoked counts before
// unknown, unknown before good, and then the latest thisUpdate.
type Match struct {
	Leaf, Issuer *x509.Certificate // what is asked about; the leaf has a serial number

	Best  Single // the statement that counts, once there is one
	found bool

	serial []byte // Leaf's, the content of the INTEGER
	hashes [crypto.SHA512 + 1]certID
	near   error  // why one with the leaf's serial number does not match
	others int    // how many have another one
	other  []byte // the first of these
}

// A certID is the part of a CertID that is about the issuer.
type certID struct{ name, key []byte }

// Add takes the next statement.
func (m *Match) Add(s Single) {
	if !m.matches(&s) {
		return
	}
	severity := [...]int{ocsp.Good: 0, ocsp.Unknown: 1, ocsp.Revoked: 2}
	if !m.found || cmp.Or(
		cmp.Compare(severity[s.Status], severity[m.Best.Status]),
		s.ThisUpdate.Compare(m.Best.ThisUpdate),
		s.NextUpdate.Compare(m.Best.NextUpdate)) > 0 {
		m.Best, m.found = s, true
	}
}

func (m *Match) matches(s *Single) bool {
	if m.serial == nil {
		m.serial = integer(m.Leaf.SerialNumber)
	}
	if !bytes.Equal(s.Serial, m.serial) {
		if m.others++; m.others == 1 {
			m.other = s.Serial
		}
		return false
	}
	if s.Hash != 0 {
		if want := m.certID(s.Hash); bytes.Equal(s.NameHash, want.name) && bytes.Equal(s.KeyHash, want.key) {
			return true
		}
	}
	if m.near == nil {
		m.near = m.mismatch(s)
	}
	return false
}

// mismatch says why s, with the leaf's serial number, does not match.
func (m *Match) mismatch(s *Single) error {
	const same = "it is about a certificate with the same serial number, but "
	if s.Hash == 0 {
		return unsupported(same + "its CertID uses an unknown hash algorithm")
	}
	want := m.certID(s.Hash)
	if !bytes.Equal(s.NameHash, want.name) {
		return wrongCertificate(same+"another issuer's name: issuerNameHash %.64x, want %x", s.NameHash, want.name)
	}
	return wrongCertificate(same+"another issuer's key: issuerKeyHash %.64x, want %x", s.KeyHash, want.key)
}

// Err says why no statement is about the leaf; nil: one is.
func (m *Match) Err() error {
	switch {
	case m.found:
		return nil
	case m.near != nil:
		return m.near
	case m.others == 0:
		return wrongCertificate("it is about no certificate")
	case m.others == 1:
		return wrongCertificate("it is about the certificate with serial %s", name.Serial(m.other))
	default:
		return wrongCertificate("it is about %d other certificates, the first with serial %s", m.others, name.Serial(m.other))
	}
}

// IssuerKeyHash returns KeyHash(m.Issuer), computed once.
func (m *Match) IssuerKeyHash() []byte { return m.certID(crypto.SHA1).key }

func (m *Match) certID(h crypto.Hash) certID {
	if m.hashes[h].name == nil {
		m.hashes[h] = certID{name: sum(h, m.Leaf.RawIssuer), key: sum(h, publicKey(m.Issuer.RawSubjectPublicKeyInfo))}
	}
	return m.hashes[h]
}

// KeyHash returns the hash by which a responderID names c's key, which is always SHA-1.
func KeyHash(c *x509.Certificate) []byte {
	return sum(crypto.SHA1, publicKey(c.RawSubjectPublicKeyInfo))
}

// publicKey returns what hashes of a certificate's key are over: the subjectPublicKey of its SubjectPublicKeyInfo, without
// tag, length and count of unused bits.
func publicKey(info []byte) []byte {
	var key []byte
	s := cryptobyte.String(info)
	if !s.ReadASN1(&s, cbasn1.SEQUENCE) || !s.SkipASN1(cbasn1.SEQUENCE) || !s.ReadASN1BitStringAsBytes(&key) {
		return nil
	}
	return key
}

// sum hashes data with one of hashOIDs.
func sum(h crypto.Hash, data []byte) []byte {
	switch h {
	case crypto.SHA1:
		return sumSHA1(data)
	case crypto.SHA256:
		s := sha256.Sum256(data)
		return s[:]
	case crypto.SHA384:
		s := sha512.Sum384(data)
		return s[:]
	default:
		s := sha512.Sum512(data)
		return s[:]
	}
}

// sumSHA1 works in FIPS 140-only mode too, which forbids SHA-1: here it names keys and certificates, and nothing rests
// on its strength.
func sumSHA1(data []byte) []byte {
	if fips140.Enforced() {
		var s []byte
		fips140.WithoutEnforcement(func() { s = sumSHA1(data) })
		return s
	}
	s := sha1.Sum(data)
	return s[:]
}
