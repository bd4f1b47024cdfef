// Package stapletest provides a certificate authority and an OCSP responder for tests, in the spirit
// of net/http/httptest. It needs no testing.TB, so a main can use it, too.
//
//	ca := stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
//	responder := stapletest.NewResponder(ca)
//	cert := ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}})
//	client := responder.Client() // asks the responder without a socket
//
// In a bubble of testing/synctest, where time is what the test makes of it, a week of an outage passes in no time: the
// example Outage is such a test. A [Responder] answers well unless an [Answer] tells it otherwise. A [Response] describes one OCSP
// response down to its bytes, and [Forgeries] and [Oddities] list responses that a verifier must
// refuse and accept.
//
// Functions of this package panic where only a mistake in the test can be the cause: a key that does
// not fit the signature algorithm, a certificate that crypto/x509 does not make.
package stapletest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"net"
	"time"
)

const day = 24 * time.Hour

// A KeyType is the kind of a key that this package makes.
type KeyType int

const (
	ECDSAP256 KeyType = iota // the default
	ECDSAP384
	ECDSAP521
	RSA2048
	RSA3072
	RSA4096
	Ed25519
	MLDSA44 // ML-DSA, FIPS 204: to make such a key takes Go 1.27 or newer, and panics with others
	MLDSA65
	MLDSA87
)

// String returns the name of the constant.
func (t KeyType) String() string {
	names := [...]string{"ECDSAP256", "ECDSAP384", "ECDSAP521", "RSA2048", "RSA3072", "RSA4096", "Ed25519", "MLDSA44", "MLDSA65", "MLDSA87"}
	if t < 0 || int(t) >= len(names) {
		return fmt.Sprintf("KeyType(%d)", int(t))
	}
	return names[t]
}

func (t KeyType) generate() crypto.Signer {
	switch t {
	case ECDSAP256:
		return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	case ECDSAP384:
		return must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	case ECDSAP521:
		return must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	case RSA2048:
		return must(rsa.GenerateKey(rand.Reader, 2048))
	case RSA3072:
		return must(rsa.GenerateKey(rand.Reader, 3072))
	case RSA4096:
		return must(rsa.GenerateKey(rand.Reader, 4096))
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return must(key, err)
	case MLDSA44, MLDSA65, MLDSA87:
		return generateMLDSA(t)
	}
	panic("stapletest: unknown key type " + t.String())
}

// CAOptions says what [NewCA] makes.
type CAOptions struct {
	// Name is the common name of the certificate that issues leaves; empty: "stapletest CA". With an
	// Intermediate, the root's is Name followed by " Root". Two CAs of one name are told apart by
	// their keys alone.
	Name string

	// KeyType is that of every key of the CA.
	KeyType KeyType

	// Intermediate puts an intermediate between the root and the leaves.
	Intermediate bool

	// NotBefore and NotAfter bound the validity of the CA's certificates. Zero: 30 years before and
	// after now, so that a CA made with the real clock is valid in a testing/synctest bubble as well.
	NotBefore, NotAfter time.Time

	// SignatureAlgorithm is that of every certificate which the CA signs, its own included.
	// Zero: crypto/x509 chooses it by the key.
	SignatureAlgorithm x509.SignatureAlgorithm

	// Seed, if it is not empty, makes what the CA makes reproducible, for files of known answers: its keys,
	// those that it makes for leaves and delegates, and their serial numbers follow from Seed and from the
	// order of calls, and what all these keys sign is always signed alike. With a clock that stands still,
	// such as a testing/synctest bubble's, the same calls make the same bytes, [Forgeries] and [Oddities]
	// included. Nothing is secret then. Such a key is of a type that can only sign: set
	// [LeafOptions.Key] where it must be written down.
	Seed string
}

// A CA issues certificates. Its methods are safe for concurrent use as long as its fields are left
// alone. A CA is only its fields: one whose Issuer and Key are replaced issues in that name.
type CA struct {
	Root    *x509.Certificate // the trust anchor
	RootKey crypto.Signer     // Root's key
	Issuer  *x509.Certificate // issues leaves: the intermediate, or Root itself
	Key     crypto.Signer     // Issuer's key

	// SignatureAlgorithm is that of the certificates it signs; zero: by the key.
	SignatureAlgorithm x509.SignatureAlgorithm
}

// NewCA makes a CA with new keys.
func NewCA(o CAOptions) *CA {
	name := o.Name
	if name == "" {
		name = "stapletest CA"
	}
	now := time.Now()
	template := func(name string) *x509.Certificate {
		return &x509.Certificate{
			Subject:               pkix.Name{CommonName: name},
			NotBefore:             orTime(o.NotBefore, now.AddDate(-30, 0, 0)),
			NotAfter:              orTime(o.NotAfter, now.AddDate(30, 0, 0)),
			BasicConstraintsValid: true,
			IsCA:                  true,
			KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		}
	}
	ca := &CA{SignatureAlgorithm: o.SignatureAlgorithm}
	if o.Seed == "" {
		ca.RootKey = o.KeyType.generate()
	} else {
		ca.RootKey = newSeededKey(o.KeyType, derive([]byte(o.Seed), "root"))
	}
	root := template(name)
	if o.Intermediate {
		root.Subject.CommonName += " Root"
	}
	ca.Root = create(root, root, ca.RootKey.Public(), ca.RootKey, o.SignatureAlgorithm)
	ca.Issuer, ca.Key = ca.Root, ca.RootKey
	if o.Intermediate {
		key := generate(o.KeyType, ca.RootKey)
		ca.Issuer = create(template(name), ca.Root, key.Public(), ca.RootKey, o.SignatureAlgorithm)
		ca.Key = key
	}
	return ca
}

// Roots returns a new pool that holds Root alone.
func (ca *CA) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.Root)
	return pool
}

// LeafOptions says what [CA.Leaf] makes.
type LeafOptions struct {
	// Names are DNS names and IP addresses. Nil: "localhost", "127.0.0.1" and "::1".
	Names []string

	// CommonName is the subject's; empty: the first of Names.
	CommonName string

	// KeyType is that of the key, unless Key is set.
	KeyType KeyType

	// Key is used instead of a new one. Thousands of leaves are made faster with one key.
	Key crypto.Signer

	// Responders are the URLs of OCSP responders in the Authority Information Access extension.
	Responders []string

	// IssuerURLs are the caIssuers URLs in the same extension.
	IssuerURLs []string

	// MustStaple adds the TLS feature extension that asks for a staple, RFC 7633.
	MustStaple bool

	// NotBefore and NotAfter bound the validity; zero: an hour ago, 90 days from now.
	NotBefore, NotAfter time.Time

	// Serial is the serial number; nil: a random one.
	Serial *big.Int

	// OmitIssuer leaves the issuer's certificate out of the chain.
	OmitIssuer bool

	// ExtraExtensions are added as they are.
	ExtraExtensions []pkix.Extension

	// Template, if set, has the last word on the certificate before it is signed.
	Template func(*x509.Certificate)
}

// Leaf issues a certificate for servers and clients. The chain is the leaf and the CA's Issuer, also
// where that is the root, unless o.OmitIssuer is set; the Leaf field is set.
func (ca *CA) Leaf(o LeafOptions) tls.Certificate {
	names := o.Names
	if names == nil {
		names = []string{"localhost", "127.0.0.1", "::1"}
	}
	commonName := o.CommonName
	if commonName == "" && len(names) > 0 {
		commonName = names[0]
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          o.Serial,
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             orTime(o.NotBefore, now.Add(-time.Hour)),
		NotAfter:              orTime(o.NotAfter, now.Add(90*day)),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		OCSPServer:            o.Responders,
		IssuingCertificateURL: o.IssuerURLs,
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	if o.MustStaple {
		template.ExtraExtensions = append(template.ExtraExtensions, pkix.Extension{
			Id:    asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24},
			Value: []byte{0x30, 3, 2, 1, 5}, // SEQUENCE { INTEGER status_request }
		})
	}
	template.ExtraExtensions = append(template.ExtraExtensions, o.ExtraExtensions...)
	key := o.Key
	if key == nil {
		key = generate(o.KeyType, ca.Key)
	}
	if o.Template != nil {
		o.Template(template)
	}
	leaf := create(template, ca.Issuer, key.Public(), ca.Key, ca.SignatureAlgorithm)
	chain := [][]byte{leaf.Raw}
	if !o.OmitIssuer {
		chain = append(chain, ca.Issuer.Raw)
	}
	return tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}
}

// A Signer signs OCSP responses: the CA itself, a delegated responder, or somebody who must not.
type Signer struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
}

// Signer returns the CA itself, its Issuer, as the one that signs responses.
func (ca *CA) Signer() *Signer {
	return &Signer{Certificate: ca.Issuer, Key: ca.Key}
}

// DelegateOptions says what [CA.Delegate] makes.
type DelegateOptions struct {
	// CommonName is the subject's; empty: "stapletest responder".
	CommonName string

	// KeyType is that of the key, unless Key is set.
	KeyType KeyType

	// Key is used instead of a new one.
	Key crypto.Signer

	// NotBefore and NotAfter bound the validity; zero: an hour ago, 30 days from now.
	NotBefore, NotAfter time.Time

	// NoEKU leaves out the extended key usage id-kp-OCSPSigning, which RFC 6960 s4.2.2.2 demands.
	NoEKU bool

	// NoNoCheck leaves out the extension id-pkix-ocsp-nocheck, RFC 6960 s4.2.2.2.1.
	NoNoCheck bool

	// IsCA makes it a CA certificate as well.
	IsCA bool

	// KeyUsage is the key usage; zero: digitalSignature.
	KeyUsage x509.KeyUsage

	// Template, if set, has the last word on the certificate before it is signed.
	Template func(*x509.Certificate)
}

// Delegate issues a certificate for a delegated responder, RFC 6960 s4.2.2.2.
func (ca *CA) Delegate(o DelegateOptions) *Signer {
	commonName := o.CommonName
	if commonName == "" {
		commonName = "stapletest responder"
	}
	keyUsage := o.KeyUsage
	if keyUsage == 0 {
		keyUsage = x509.KeyUsageDigitalSignature
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             orTime(o.NotBefore, now.Add(-time.Hour)),
		NotAfter:              orTime(o.NotAfter, now.Add(30*day)),
		BasicConstraintsValid: true,
		IsCA:                  o.IsCA,
		KeyUsage:              keyUsage,
	}
	if !o.NoEKU {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	}
	if !o.NoNoCheck {
		template.ExtraExtensions = []pkix.Extension{{
			Id:    asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5},
			Value: asn1.NullBytes,
		}}
	}
	key := o.Key
	if key == nil {
		key = generate(o.KeyType, ca.Key)
	}
	if o.Template != nil {
		o.Template(template)
	}
	return &Signer{Certificate: create(template, ca.Issuer, key.Public(), ca.Key, ca.SignatureAlgorithm), Key: key}
}

// create signs template. A template that names no serial number gets a random one, or by a seeded key one
// that follows from the rest, and one that names no signature algorithm gets algorithm.
func create(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer,
	algorithm x509.SignatureAlgorithm) *x509.Certificate {
	if template.SignatureAlgorithm == 0 {
		template.SignatureAlgorithm = algorithm
	}
	if template.SerialNumber == nil {
		serial := make([]byte, 16)
		if _, ok := key.(*seededKey); ok {
			template.SerialNumber = big.NewInt(1)
			rest := must(x509.CreateCertificate(rand.Reader, template, parent, public, key))
			copy(serial, sum(crypto.SHA256, rest))
		} else {
			rand.Read(serial)
		}
		serial[0] = serial[0]&0x7f | 0x40 // positive, and always 16 bytes
		template.SerialNumber = new(big.Int).SetBytes(serial)
	}
	der := must(x509.CreateCertificate(rand.Reader, template, parent, public, key))
	return must(x509.ParseCertificate(der))
}

func orTime(t, otherwise time.Time) time.Time {
	if t.IsZero() {
		return otherwise
	}
	return t
}

func must[T any](v T, err error) T {
	if err != nil {
		panic("stapletest: " + err.Error())
	}
	return v
}
