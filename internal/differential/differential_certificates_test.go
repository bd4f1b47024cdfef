package differential

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/ocsp"
)

// Keys, authorities and ECH keys are made once.
var (
	diffKeys = sync.OnceValue(func() map[string][]crypto.Signer {
		keys := make(map[string][]crypto.Signer)
		for curve, n := range map[elliptic.Curve]int{elliptic.P256(): 4, elliptic.P384(): 1, elliptic.P521(): 1, elliptic.P224(): 1} {
			for range n {
				key, err := ecdsa.GenerateKey(curve, cryptorand.Reader)
				must(err)
				keys[curve.Params().Name] = append(keys[curve.Params().Name], key)
			}
		}
		for range 4 {
			_, key, err := ed25519.GenerateKey(cryptorand.Reader)
			must(err)
			keys["Ed25519"] = append(keys["Ed25519"], key)
		}
		for _, bits := range []int{1024, 2048} {
			key, err := rsa.GenerateKey(cryptorand.Reader, bits)
			must(err)
			name := fmt.Sprint("RSA ", bits)
			keys[name] = append(keys[name], key)
		}
		return keys
	})
	diffCAs = sync.OnceValue(func() []*stapletest.CA {
		return []*stapletest.CA{
			stapletest.NewCA(stapletest.CAOptions{Name: "differential", Intermediate: true}),
			stapletest.NewCA(stapletest.CAOptions{Name: "other"}),
		}
	})
	diffECH = sync.OnceValue(func() (keys [2]tls.EncryptedClientHelloKey) {
		for i := range keys {
			key, err := ecdh.X25519().GenerateKey(cryptorand.Reader)
			must(err)
			var b cryptobyte.Builder
			b.AddUint16(0xfe0d)
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
				b.AddUint8(uint8(i))
				b.AddUint16(0x20) // DHKEM(X25519, HKDF-SHA256)
				b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(key.PublicKey().Bytes()) })
				b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(1); b.AddUint16(1) }) // HKDF-SHA256, AES-128-GCM
				b.AddUint8(32)
				b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte("a.x")) })
				b.AddUint16(0)
			})
			keys[i] = tls.EncryptedClientHelloKey{Config: b.BytesOrPanic(), PrivateKey: key.Bytes(), SendAsRetry: true}
		}
		return keys
	})
	diffNow = time.Now().Truncate(time.Second) // errors of crypto/x509 tell the time
)

// An opaqueSigner is a key that can sign and nothing else, as one in hardware.
type opaqueSigner struct{ crypto.Signer }

// A specimen is a certificate as it was issued, and what is known of its staples.
type specimen struct {
	tls.Certificate
	text     string
	names    []string
	older    []byte                 // a staple that may have come with it
	fetch    func() ([]byte, error) // asks the responder
	staples  bool                   // the responder gives a good answer
	expected sync.Map               // of string: what may be stapled
}

// A batch has what many pairs have in common.
type batch struct {
	stapler   *staple.Stapler
	specimens []*specimen
	rsa       []*specimen // those with such a key
	byLeaf    map[string]*specimen
	warm      bool // every certificate has its staple
	kept      []*tls.Config
}

func newBatch(t *testing.T, d *draw, warm bool) *batch {
	b := &batch{byLeaf: make(map[string]*specimen), warm: warm}
	for range 40 {
		sp := d.specimen()
		b.specimens = append(b.specimens, sp)
		b.byLeaf[string(sp.Leaf.Raw)] = sp
		if sp.Leaf.PublicKeyAlgorithm == x509.RSA {
			b.rsa = append(b.rsa, sp)
		}
	}
	b.stapler = &staple.Stapler{
		Fetcher: staple.FetcherFunc(func(_ context.Context, req *staple.Request) ([]byte, error) {
			return b.byLeaf[string(req.Leaf.Raw)].fetch()
		}),
		Logger: slog.New(slog.DiscardHandler),
	}
	if b.warm {
		all := new(tls.Config)
		for _, sp := range b.specimens {
			all.Certificates = append(all.Certificates, sp.Certificate)
		}
		// Kept, so that neither the certificates nor that callbacks have returned them is forgotten.
		var shown *tls.Certificate
		callback := b.stapler.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return shown, nil }})
		b.kept = append(b.kept, b.stapler.TLSConfig(all), callback)
		for _, sp := range b.specimens {
			shown = &sp.Certificate
			_, err := callback.GetCertificate(&tls.ClientHelloInfo{})
			must(err)
		}
		soon := world.Soon(t)
		_ = b.stapler.Wait(soon) // some are Must-Staple and have no staple
		must(soon.Err())
	}
	return b
}

var (
	labels = []string{"a", "b", "www", "x-1", "_s", "A"}
	tops   = []string{"x", "x", "Y"}
	long   = strings.Repeat("l", 300)
	odd    = []string{
		"*", "*.*.x", "a.*.x", "w*.x", "*.x.", "a.x.", "*.", "*..x", "-a.x", "a-.x", "a..x", ".x", ".", "..", "x", "x.", "a b.x",
		"a\x00.x", "\x00", "a/b.x", "a.x:443", "[::1]", "[127.0.0.1]", "127.0.0.1.", "1.2.3", "1", "*.0.0.1", "*.127.0.0.1", "*.1",
		"a%b.x", "fe80::1%eth0", "[fe80::1%eth0]", long, long + ".x", "*." + long, strings.Repeat("l", 64) + ".x",
		strings.Repeat("a.", 127) + "x", strings.Repeat("a.", 128) + "x", "*." + strings.Repeat("a.", 127) + "x",
		"*.a_b.x", "xn--bcher-kva.x", "@", "[]", "[", "]", "[a]", "[a.x]", ":", "::", "a:1", "0x7f.1", "127.1", "127.0.0.01", "a.1",
	}
	unencodable = []string{"b\u00fccher.x", "\u00fc", "\xff.x", "A\xff.x", "\u212a.x", "\u0130.x", "*.b\u00fc.x", "a.x\u3002"}
	addresses   = []string{"127.0.0.1", "10.0.0.1", "::1", "2001:db8::1"}
	spellings   = []string{"[::1]", "[127.0.0.1]", "[10.0.0.1]", "::ffff:10.0.0.1", "0:0:0:0:0:0:0:1", "2001:DB8::1", "2001:db8::a", "[2001:db8::a]", "192.0.2.7", "::ffff:7f00:1"}
)

func (d *draw) hostname() string {
	name := one(d, tops)
	for range d.IntN(4) {
		name = one(d, labels) + "." + name
	}
	return name
}

func (d *draw) flipCase(s string) string {
	b := []byte(s)
	for i, c := range b {
		if ('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z') && d.IntN(2) == 0 {
			b[i] ^= 0x20
		}
	}
	return string(b)
}

func (d *draw) specimen() *specimen {
	sp := new(specimen)
	var o stapletest.LeafOptions
	kind := d.pick("key", "28 P-256", "12 Ed25519", "3 P-384", "8 RSA 1024", "3 RSA 2048", "2 P-521", "2 P-224")
	o.Key = one(d, diffKeys()[kind])
	o.Names = []string{}
	var dns []string
	for range max(1, d.IntN(4)) {
		switch d.pick("SAN", "8 a host", "6 a wildcard", "2 mixed case", "2 an address", "2 an address in text", "2 odd", "1 none") {
		case "a host":
			dns = append(dns, strings.ToLower(d.hostname()))
		case "a wildcard":
			dns = append(dns, "*."+d.hostname())
		case "mixed case":
			dns = append(dns, d.flipCase(one(d, []string{"", "*."})+d.hostname()))
		case "an address":
			o.Names = append(o.Names, one(d, addresses))
		case "an address in text":
			dns = append(dns, one(d, append(spellings, addresses...)))
		case "odd":
			dns = append(dns, one(d, odd))
		}
	}
	sp.names = append(slices.Clone(dns), o.Names...)
	o.CommonName = d.hostname()
	o.MustStaple = d.chance(5, "Must-Staple")
	if d.chance(30, "expired") {
		o.NotBefore, o.NotAfter = diffNow.Add(-48*time.Hour), diffNow.Add(-time.Hour)
	}
	ca := diffCAs()[0]
	if d.chance(5, "of another CA") {
		ca = diffCAs()[1]
	}
	answer := d.pick("responder", "6 answers", "1 none", "1 fails", "1 says revoked", "1 says unknown")
	if answer != "none" {
		o.Responders = []string{"http://ocsp.example"}
	}
	o.Template = func(c *x509.Certificate) { c.DNSNames = dns }
	sp.Certificate = ca.Leaf(o)
	sp.text = fmt.Sprintf("%s %q", kind, sp.names)

	good := func(age time.Duration) []byte {
		r := stapletest.NewResponse(ca, sp.Leaf)
		r.ProducedAt = r.ProducedAt.Add(-age)
		r.Singles[0].ThisUpdate = r.Singles[0].ThisUpdate.Add(-age)
		der := r.DER()
		sp.expected.Store(string(der), true)
		return der
	}
	sp.staples = answer == "answers" && o.NotAfter.IsZero()
	if sp.staples || answer == "none" || answer == "fails" {
		sp.older = good(time.Hour)
	}
	sp.fetch = sync.OnceValues(func() ([]byte, error) {
		switch answer {
		case "answers":
			return good(0), nil
		case "none":
			return nil, staple.ErrNoResponder
		case "fails":
			return nil, errors.New("the responder is out of order")
		}
		r := stapletest.NewResponse(ca, sp.Leaf)
		r.Singles[0].Status = ocsp.Unknown
		if answer == "says revoked" {
			r.Singles[0].Status, r.Singles[0].RevokedAt = ocsp.Revoked, diffNow.Add(-time.Hour)
		}
		return r.DER(), nil
	})
	return sp
}

var schemes = []tls.SignatureScheme{
	tls.PSSWithSHA256, tls.ECDSAWithP256AndSHA256, tls.Ed25519, tls.PSSWithSHA384, tls.PSSWithSHA512, tls.PKCS1WithSHA256, tls.PKCS1WithSHA384,
	tls.PKCS1WithSHA512, tls.ECDSAWithP384AndSHA384, tls.ECDSAWithP521AndSHA512, tls.PKCS1WithSHA1, tls.ECDSAWithSHA1, 0x0a0a, 0x0904,
}

// certificate returns sp as a program may have it, and adds its names to those given.
func (d *draw) certificate(b *batch, sp *specimen, names *[]string) tls.Certificate {
	*names = append(*names, sp.names...)
	d.chosen = append(d.chosen, sp.text)
	c := sp.Certificate
	if d.chance(60, "a leaf that does not parse") {
		c.Certificate = [][]byte{sp.Leaf.Raw[:len(sp.Leaf.Raw)-9]}
		if d.IntN(2) == 0 {
			c.Leaf = nil
		}
		return c
	}
	if d.chance(8, "Leaf missing") {
		c.Leaf = nil
	} else if d.chance(20, "Leaf wrong") {
		wrong := one(d, b.specimens)
		c.Leaf = wrong.Leaf
		*names = append(*names, wrong.names...)
	}
	if d.chance(8, "a copy of the DER") {
		c.Certificate = slices.Clone(c.Certificate)
		c.Certificate[0] = bytes.Clone(c.Certificate[0])
	}
	if d.chance(12, "a chain of the leaf alone") {
		c.Certificate = c.Certificate[:1]
	}
	if d.chance(10, "SupportedSignatureAlgorithms") {
		c.SupportedSignatureAlgorithms = some(d, schemes)
	}
	if d.chance(20, "SignedCertificateTimestamps") {
		c.SignedCertificateTimestamps = [][]byte{sp.Leaf.RawSubject}
	}
	_, decrypts := c.PrivateKey.(crypto.Decrypter) // which one in hardware does not
	if d.chance(8, "a key in hardware") || decrypts && d.IntN(2) == 0 {
		c.PrivateKey = &opaqueSigner{c.PrivateKey.(crypto.Signer)}
	} else if d.chance(30, "another's key") {
		c.PrivateKey = one(d, b.specimens).PrivateKey
	} else if d.chance(100, "no key") {
		c.PrivateKey = nil
	}
	if sp.older != nil {
		switch d.pick("a staple that came with the certificate", "6 none", "2 good", "1 garbage", "1 past its end", "1 another's") {
		case "good":
			c.OCSPStaple = sp.older
		case "garbage":
			c.OCSPStaple = []byte("no response")
		case "past its end":
			r := stapletest.NewResponse(diffCAs()[1], sp.Leaf)
			r.Singles[0].NextUpdate = diffNow.Add(-time.Hour)
			r.Singles[0].ThisUpdate = diffNow.Add(-2 * time.Hour)
			c.OCSPStaple = r.DER()
		case "another's":
			c.OCSPStaple = one(d, b.specimens).older
			if bytes.Equal(c.OCSPStaple, sp.older) {
				c.OCSPStaple = nil
			}
		}
	}
	return c
}

func (d *draw) certificates(b *batch, n int, names *[]string) (certs []tls.Certificate) {
	all := b.specimens
	if len(b.rsa) > 0 && d.chance(5, "RSA alone") { // whose kinds are many
		all = b.rsa
	}
	var from []*specimen
	for range n {
		sp := one(d, all)
		if len(from) > 0 && d.chance(6, "the same certificate again") {
			sp = one(d, from)
		}
		from = append(from, sp)
		certs = append(certs, d.certificate(b, sp, names))
	}
	return certs
}
