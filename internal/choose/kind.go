package choose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"fmt"
	"sync"

	"github.com/go-staple/staple/internal/mldsa"
)

// A Kind is what ClientHelloInfo.SupportsCertificate looks at in a certificate but for
// its names, so that certificates of one kind suit the same hellos.
type Kind struct {
	schemes []tls.SignatureScheme // of those probed, the ones that suit in TLS 1.3
}

// Kinds has those that were met, each of which is probed once. The zero value is ready.
type Kinds struct {
	mu    sync.Mutex
	known map[kindKey]*Kind
}

// A kindKey tells kinds apart that are known well enough.
type kindKey struct {
	key       string
	decrypter bool
	schemes   string // that the certificate is limited to
}

// probedSchemes are those of TLS 1.3 and the older ones that it shares its registry with.
var probedSchemes = []tls.SignatureScheme{
	tls.ECDSAWithP256AndSHA256, tls.PSSWithSHA256, tls.Ed25519, tls.ECDSAWithP384AndSHA384, tls.PSSWithSHA384,
	tls.PSSWithSHA512, tls.ECDSAWithP521AndSHA512, tls.PKCS1WithSHA256, tls.PKCS1WithSHA384, tls.PKCS1WithSHA512,
	tls.PKCS1WithSHA1, tls.ECDSAWithSHA1,
	0x0904, 0x0905, 0x0906, // ML-DSA, from Go 1.27 on
}

// Of returns the kind of cert, probing the first of each. It asks cert's key for the
// public one, which can take long where that is far away.
func (t *Kinds) Of(cert *tls.Certificate) *Kind {
	key, ok := keyOfKind(cert)
	if !ok {
		return probe(cert)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil {
		t.known = make(map[kindKey]*Kind)
	}
	if t.known[key] == nil {
		t.known[key] = probe(cert)
	}
	return t.known[key]
}

func keyOfKind(cert *tls.Certificate) (k kindKey, ok bool) {
	if cert.SupportedSignatureAlgorithms != nil {
		k.schemes = fmt.Sprint(cert.SupportedSignatureAlgorithms)
	}
	_, k.decrypter = cert.PrivateKey.(crypto.Decrypter)
	signer, ok := cert.PrivateKey.(crypto.Signer)
	if !ok {
		return k, !k.decrypter
	}
	switch pub := signer.Public().(type) {
	case *rsa.PublicKey:
		k.key = fmt.Sprint("RSA ", pub.Size())
	case ed25519.PublicKey:
		k.key = "Ed25519"
	case *ecdsa.PublicKey:
		switch pub.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			k.key = pub.Curve.Params().Name
		}
	default:
		k.key = mldsa.KeyName(pub)
	}
	return k, k.key != ""
}

// probe asks crypto/tls what suits cert in TLS 1.3, and so heeds GODEBUG and FIPS 140.
func probe(cert *tls.Certificate) *Kind {
	k := new(Kind)
	for _, s := range probedSchemes {
		hello := tls.ClientHelloInfo{SupportedVersions: []uint16{tls.VersionTLS13}, SignatureSchemes: []tls.SignatureScheme{s}}
		if hello.SupportsCertificate(cert) == nil {
			k.schemes = append(k.schemes, s)
		}
	}
	return k
}
