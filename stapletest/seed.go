package stapletest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"io"
	"math/big"
	chacha "math/rand/v2"
	"sync"
)

// A seededKey signs without randomness. What is made by the CA that holds it follows from its secret: see
// [CAOptions.Seed].
type seededKey struct {
	crypto.Signer
	secret []byte

	mu   sync.Mutex
	made map[KeyType]int // keys that follow from this one
}

// generate makes a key of type t, which follows from parent's secret if it has one.
func generate(t KeyType, parent crypto.Signer) crypto.Signer {
	p, ok := parent.(*seededKey)
	if !ok {
		return t.generate()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.made == nil {
		p.made = map[KeyType]int{}
	}
	p.made[t]++
	return newSeededKey(t, derive(p.secret, fmt.Sprint(t, " ", p.made[t])))
}

// seedFrom returns a seed for a CA that is made beside the one that holds key, empty if key has none.
func seedFrom(key crypto.Signer, purpose string) string {
	k, ok := key.(*seededKey)
	if !ok {
		return ""
	}
	return string(derive(k.secret, purpose))
}

func derive(secret []byte, purpose string) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(purpose))
	return mac.Sum(nil)
}

// newSeededKey does itself what the generators of package crypto do, because those take no randomness but
// their own, and may change.
func newSeededKey(t KeyType, secret []byte) *seededKey {
	stream := chacha.NewChaCha8([32]byte(derive(secret, "key")))
	var key crypto.Signer
	switch t {
	case ECDSAP256:
		key = seededECDSA(elliptic.P256(), stream)
	case ECDSAP384:
		key = seededECDSA(elliptic.P384(), stream)
	case ECDSAP521:
		key = seededECDSA(elliptic.P521(), stream)
	case RSA2048:
		key = seededRSA(2048, stream)
	case RSA3072:
		key = seededRSA(3072, stream)
	case RSA4096:
		key = seededRSA(4096, stream)
	case Ed25519:
		seed := make([]byte, ed25519.SeedSize)
		stream.Read(seed)
		key = ed25519.NewKeyFromSeed(seed)
	case MLDSA44, MLDSA65, MLDSA87:
		seed := make([]byte, 32)
		stream.Read(seed)
		key = mldsaFrom(t, seed)
	default:
		panic("stapletest: unknown key type " + t.String())
	}
	return &seededKey{Signer: key, secret: secret}
}

func seededECDSA(curve elliptic.Curve, stream io.Reader) *ecdsa.PrivateKey {
	bits := curve.Params().BitSize
	scalar := make([]byte, (bits+7)/8)
	for {
		must(io.ReadFull(stream, scalar))
		scalar[0] >>= len(scalar)*8 - bits
		if key, err := ecdsa.ParseRawPrivateKey(curve, scalar); err == nil {
			return key
		}
	}
}

func seededRSA(bits int, stream io.Reader) *rsa.PrivateKey {
	const e = 65537
	one := big.NewInt(1)
	prime := func() (p, less *big.Int) {
		data := make([]byte, bits/2/8)
		for {
			must(io.ReadFull(stream, data))
			data[0] |= 0xc0 // so that the product has all the bits
			data[len(data)-1] |= 1
			p = new(big.Int).SetBytes(data)
			less = new(big.Int).Sub(p, one)
			if p.ProbablyPrime(20) && new(big.Int).Mod(less, big.NewInt(e)).Sign() != 0 {
				return p, less
			}
		}
	}
	p, pLess := prime()
	q, qLess := prime()
	key := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: e},
		D:         new(big.Int).ModInverse(big.NewInt(e), new(big.Int).Mul(pLess, qLess)),
		Primes:    []*big.Int{p, q},
	}
	key.Precompute()
	must(key, key.Validate())
	return key
}

// Sign takes no randomness: ECDSA does without, by RFC 6979, and ML-DSA, and the salt of RSASSA-PSS is
// all zeros.
func (k *seededKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	switch key := k.Signer.(type) {
	case *ecdsa.PrivateKey:
		return key.Sign(nil, digest, opts)
	case interface { // ML-DSA
		SignDeterministic(message []byte, opts crypto.SignerOpts) ([]byte, error)
	}:
		return key.SignDeterministic(digest, opts)
	}
	return k.Signer.Sign(zeros{}, digest, opts)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
