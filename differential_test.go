package staple_test

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
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/ocsp"
)

var (
	pairs    = flag.Int("pairs", 2000, "how many pairs of handshakes TestDifferential compares")
	seed     = flag.Uint64("seed", 1, "what TestDifferential draws from")
	onlyPair = flag.Int("pair", -1, "have TestDifferential compare only the pair with this number")
)

const (
	hellosPerBase = 4   // pairs that have a base in common, one after the other
	pairsPerBatch = 256 // that have a Stapler and certificates in common
	handMade      = 8   // hellos without a connection for each pair
)

// TestDifferential draws configurations and clients, and has each client connect to the
// configuration as it is and as TLSConfig returns it. Nothing but the staple may differ.
func TestDifferential(t *testing.T) {
	d := &differential{t: t, seen: make(map[string]int)}
	first, end := 0, *pairs
	if *onlyPair >= 0 {
		first, end = *onlyPair, *onlyPair+1
	}
	var next atomic.Int64
	next.Store(int64(first / pairsPerBatch))
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				n := int(next.Add(1)) - 1
				if n*pairsPerBatch >= end || d.differences.Load() >= 10 {
					return
				}
				d.batch(n, max(first, n*pairsPerBatch), min(end, (n+1)*pairsPerBatch))
			}
		})
	}
	wg.Wait()

	var table strings.Builder
	for _, what := range slices.Sorted(maps.Keys(d.seen)) {
		fmt.Fprintf(&table, "%9d  %s\n", d.seen[what], what)
	}
	t.Logf("%d pairs, seed %d:\n%s", end-first, *seed, &table)
	if end-first < 2000 || t.Failed() {
		return
	}
	for _, what := range outcomes {
		d.seen["outcome: "+what] += 0
	}
	for what, n := range d.seen {
		if n == 0 {
			t.Errorf("never seen: %s", what)
		}
	}
}

// Outcomes are those that must be among what comes of thousands of pairs.
var outcomes = []string{
	"TLS 1.0", "TLS 1.1", "TLS 1.2", "TLS 1.3", "QUIC", "failed",
	"resumed in TLS 1.2", "resumed in TLS 1.3", "resumed in QUIC", "resumed with a ticket of base", "not resumed",
	"early data accepted", "early data rejected", "ECH accepted", "ECH rejected", "HelloRetryRequest", "a protocol negotiated",
	"a staple", "no staple", "a client certificate", "a client's staple", "no client certificate where one was asked for",
	"client: remote error: tls: certificate required", "client: remote error: tls: handshake failure",
	"client: remote error: tls: internal error", "client: remote error: tls: no application protocol",
	"client: remote error: tls: protocol version not supported", "client: remote error: tls: unknown certificate authority",
	"client: remote error: tls: unrecognized name", "server: remote error: tls: bad certificate",
	"server: remote error: tls: encrypted client hello required", "server: remote error: tls: error decoding message",
	"by hand: a certificate for the name", "by hand: the first certificate", "by hand: none", "by hand: an error", "by hand: a client certificate",
}

// A differential is one run of TestDifferential.
type differential struct {
	t           *testing.T
	differences atomic.Int64

	mu   sync.Mutex
	seen map[string]int
}

// A draw makes choices by chance and remembers them.
type draw struct {
	*rand.Rand
	seen   map[string]int
	chosen []string
}

// newDraw returns the source of the n-th of what a purpose needs.
func newDraw(purpose string, n int, seen map[string]int) *draw {
	return &draw{Rand: rand.New(rand.NewPCG(*seed, uint64(purpose[0])<<56|uint64(n))), seen: seen}
}

func (d *draw) note(what string) {
	d.seen[what]++
	d.chosen = append(d.chosen, what)
}

// chance is true in one of n cases.
func (d *draw) chance(n int, what string) bool {
	d.seen[what] += 0
	if d.IntN(n) > 0 {
		return false
	}
	d.note(what)
	return true
}

// pick chooses an option. Each has its weight in front of it.
func (d *draw) pick(what string, options ...string) (chosen string) {
	sum := 0
	for _, o := range options {
		digits, name, _ := strings.Cut(o, " ")
		weight, err := strconv.Atoi(digits)
		must(err)
		d.seen[what+": "+name] += 0
		if sum += weight; d.IntN(sum) < weight {
			chosen = name
		}
	}
	d.note(what + ": " + chosen)
	return chosen
}

func one[T any](d *draw, of []T) T { return of[d.IntN(len(of))] }

// some returns a part of what there is, in any order.
func some[T any](d *draw, of []T) []T {
	of = slices.Clone(of)
	d.Shuffle(len(of), func(i, j int) { of[i], of[j] = of[j], of[i] })
	return of[:d.IntN(len(of)+1)]
}

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

func must(err error) {
	if err != nil {
		panic(err)
	}
}

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
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		must(b.stapler.Wait(ctx))
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

// A party is one side of a connection: a configuration and what its callbacks were asked.
type party struct {
	config   *tls.Config
	direct   *tls.Config     // whose callbacks are called by hand
	keys     [][32]byte      // for session tickets, where they are given
	rekey    []func()        // takes those
	fixed    *tls.Config     // what GetConfigForClient returns, if that is always the same
	variable tls.Certificate // what GetCertificate returns the address of
	calls    []string
}

func (p *party) noteHello(callback string, h *tls.ClientHelloInfo) {
	p.calls = append(p.calls, fmt.Sprintf("%s(%q %x %x %v %v %v %q %v %v)", callback, h.ServerName, h.SupportedVersions,
		h.CipherSuites, h.SupportedCurves, h.SupportedPoints, h.SignatureSchemes, h.SupportedProtos, h.Extensions, h.HelloRetryRequest))
}

func (p *party) notePeer(raw [][]byte, chains [][]*x509.Certificate) error {
	p.calls = append(p.calls, fmt.Sprintf("VerifyPeerCertificate(%x, %d chains)", sha256.Sum256(bytes.Join(raw, nil)), len(chains)))
	return nil
}

func (p *party) takeCalls() string {
	calls := strings.Join(p.calls, "\n")
	p.calls = nil
	return calls
}

func (p *party) setKeys(keys ...[32]byte) {
	p.keys = keys
	for _, take := range p.rekey {
		take()
	}
}

// A setting is a part of a configuration.
type setting func(*party, *tls.Config)

// choice draws what a server has for choosing a certificate: Certificates,
// GetCertificate and NameToCertificate.
func (d *draw) choice(b *batch, names *[]string) setting {
	var n int
	switch d.pick("Certificates", "8 none", "8 1", "18 2 to 4", "14 5 to 12", "1 an empty one") {
	case "1":
		n = 1
	case "2 to 4":
		n = 2 + d.IntN(3)
	case "5 to 12":
		n = 5 + d.IntN(8)
	case "an empty one":
		return func(_ *party, c *tls.Config) { c.Certificates = make([]tls.Certificate, 1) }
	}
	certs := d.certificates(b, n, names)
	var callback func(*party) func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	if n == 0 && d.IntN(8) > 0 || d.IntN(4) == 0 {
		d.note("GetCertificate")
		callback = d.getCertificate(b, names)
	}
	byName := d.pick("NameToCertificate", "8 none", "1 some names", "1 built")
	entries := make(map[string]int)
	more := d.certificates(b, 2, names)
	if byName == "some names" && n > 0 {
		for range 6 {
			entries[strings.ToLower(d.name(*names))] = d.IntN(n + 2)
		}
	}
	shared := d.chance(2, "an array of Certificates that is shared")
	return func(p *party, c *tls.Config) {
		if c.Certificates = certs; !shared {
			c.Certificates = slices.Clone(certs)
		}
		if callback != nil {
			c.GetCertificate = callback(p)
		}
		switch byName {
		case "built":
			//lint:ignore SA1019 it is still heeded
			c.BuildNameToCertificate()
		case "some names":
			m := make(map[string]*tls.Certificate)
			for name, i := range entries {
				if m[name] = &more[max(0, i-n)]; i < n {
					m[name] = &c.Certificates[i]
				}
			}
			//lint:ignore SA1019 it is still heeded
			c.NameToCertificate = m
		}
	}
}

// forName returns one of answers for a name, always the same.
func forName[T any](name string, answers []T) T {
	sum := len(name)
	for _, c := range []byte(name) {
		sum = sum*31 + int(c)
	}
	return answers[uint(sum)%uint(len(answers))]
}

var errDrawn = errors.New("drawn by chance")

func (d *draw) getCertificate(b *batch, names *[]string) func(*party) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	certs := d.certificates(b, 4, names)
	var answers []func(*party, *tls.ClientHelloInfo) (*tls.Certificate, error)
	for range 1 + d.IntN(4) {
		mine := &certs[d.IntN(len(certs))]
		switch d.pick("GetCertificate", "10 a certificate", "5 a copy", "5 a variable", "10 nil", "1 an error", "1 both", "1 an empty certificate", "7 what suits") {
		case "a certificate":
			answers = append(answers, func(*party, *tls.ClientHelloInfo) (*tls.Certificate, error) { return mine, nil })
		case "a copy":
			answers = append(answers, func(*party, *tls.ClientHelloInfo) (*tls.Certificate, error) { c := *mine; return &c, nil })
		case "a variable":
			answers = append(answers, func(p *party, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
				p.variable = certs[len(hello.CipherSuites)%len(certs)]
				return &p.variable, nil
			})
		case "nil":
			answers = append(answers, func(*party, *tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil })
		case "an error":
			answers = append(answers, func(*party, *tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errDrawn })
		case "both":
			answers = append(answers, func(*party, *tls.ClientHelloInfo) (*tls.Certificate, error) { return mine, errDrawn })
		case "an empty certificate":
			answers = append(answers, func(*party, *tls.ClientHelloInfo) (*tls.Certificate, error) { return new(tls.Certificate), nil })
		case "what suits":
			answers = append(answers, func(_ *party, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
				for i := range certs {
					if hello.SupportsCertificate(&certs[i]) == nil {
						return &certs[i], nil
					}
				}
				return nil, nil
			})
		}
	}
	return func(p *party) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			p.noteHello("GetCertificate", hello)
			return forName(hello.ServerName, answers)(p, hello)
		}
	}
}

var (
	allSuites = func() (ids []uint16) {
		for _, s := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
			ids = append(ids, s.ID)
		}
		return ids
	}()
	withoutECDHE = []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_128_CBC_SHA}
	withECDSA    = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
	withRSA      = []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA}
)

// parameters draws what servers and clients have in common.
func (d *draw) parameters(who string, quic bool) setting {
	var least, most uint16
	if quic {
		switch d.pick(who+", versions for QUIC", "16 1.3", "1 default", "1 upside down") {
		case "1.3":
			least = tls.VersionTLS13
		case "upside down":
			least, most = tls.VersionTLS13, tls.VersionTLS12
		}
	} else {
		switch d.pick(who+", versions", "20 default", "12 1.0 on", "8 1.2", "1 1.3", "2 1.1 at most", "1 upside down") {
		case "1.0 on":
			least = tls.VersionTLS10
		case "1.2":
			least, most = tls.VersionTLS12, tls.VersionTLS12
		case "1.3":
			least = tls.VersionTLS13
		case "1.1 at most":
			least, most = tls.VersionTLS10, one(d, []uint16{tls.VersionTLS10, tls.VersionTLS11})
		case "upside down":
			least, most = tls.VersionTLS13, tls.VersionTLS12
		}
	}
	var suites []uint16
	switch d.pick(who+", CipherSuites", "20 default", "5 any", "2 without ECDHE", "1 with ECDSA", "1 with RSA") {
	case "any":
		suites = some(d, allSuites)
	case "without ECDHE":
		suites = withoutECDHE
	case "with ECDSA":
		suites = withECDSA
	case "with RSA":
		suites = withRSA
	}
	curves := map[string][]tls.CurveID{
		"P-256 on": {tls.CurveP256, tls.CurveP384, tls.CurveP521}, "P-384 and P-521": {tls.CurveP384, tls.CurveP521},
		"X25519": {tls.X25519}, "X25519 and P-256": {tls.X25519, tls.CurveP256},
		"all but ML-KEM": {tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}, "ML-KEM": {tls.X25519MLKEM768, tls.X25519, tls.CurveP256},
	}[d.pick(who+", CurvePreferences", "16 P-256 on", "4 all but ML-KEM", "1 X25519", "4 X25519 and P-256", "1 P-384 and P-521", "1 default", "1 ML-KEM")]
	protocols := d.pick(who+", NextProtos", "8 none", "6 h2 http/1.1", "2 http/1.1", "1 acme-tls/1")
	if quic {
		protocols = d.pick(who+", NextProtos for QUIC", "12 h3", "4 h3 h3-29", "4 h3-29 h3", "1 h2", "1 none")
	}
	disabled := d.chance(12, who+", SessionTicketsDisabled")
	return func(p *party, c *tls.Config) {
		c.MinVersion, c.MaxVersion, c.CipherSuites, c.CurvePreferences = least, most, suites, curves
		c.NextProtos, c.SessionTicketsDisabled = strings.Fields(strings.TrimPrefix(protocols, "none")), disabled
		c.Time = func() time.Time { return diffNow }
		c.VerifyPeerCertificate = p.notePeer
	}
}

// clientAuth draws what a server asks clients for.
func (d *draw) clientAuth() setting {
	auth := map[string]tls.ClientAuthType{
		"request": tls.RequestClientCert, "require": tls.RequireAnyClientCert, "verify": tls.VerifyClientCertIfGiven, "require and verify": tls.RequireAndVerifyClientCert,
	}[d.pick("ClientAuth", "8 none", "2 request", "1 require", "2 verify", "1 require and verify")]
	authorities := x509.NewCertPool()
	switch d.pick("ClientCAs", "1 none", "3 ours", "1 the other", "3 both") {
	case "ours":
		authorities.AddCert(diffCAs()[0].Root)
		authorities.AddCert(diffCAs()[0].Issuer)
	case "the other":
		authorities.AddCert(diffCAs()[1].Root)
	case "both":
		authorities.AddCert(diffCAs()[0].Root)
		authorities.AddCert(diffCAs()[1].Root)
	}
	return func(_ *party, c *tls.Config) { c.ClientAuth, c.ClientCAs = auth, authorities }
}

func apply(p *party, settings ...setting) *tls.Config {
	c := new(tls.Config)
	for _, set := range settings {
		set(p, c)
	}
	return c
}

func (d *draw) ticketKey() (key [32]byte) {
	for i := range key {
		key[i] = byte(d.Uint32())
	}
	return key
}

// getConfigForClient draws the callback. What it returns may have session ticket keys of its own.
func (d *draw) getConfigForClient(b *batch, quic bool, names *[]string) setting {
	settings := []setting{d.parameters("server", quic), d.clientAuth(), d.choice(b, names)}
	ownKeys := d.chance(2, "GetConfigForClient, session ticket keys of its own")
	setKeys := func(p *party, c *tls.Config) {
		own := slices.Clone(p.keys)
		for i := range own {
			own[i][0]++
		}
		c.SetSessionTicketKeys(own)
	}
	if ownKeys {
		settings = append(settings, setKeys)
	}
	var answers []func(*party, *tls.Config) (*tls.Config, error)
	for range 1 + d.IntN(3) {
		switch d.pick("GetConfigForClient", "4 nil", "1 an error", "8 always the same", "8 a new one", "4 a clone of base") {
		case "nil":
			answers = append(answers, func(*party, *tls.Config) (*tls.Config, error) { return nil, nil })
		case "an error":
			answers = append(answers, func(*party, *tls.Config) (*tls.Config, error) { return nil, errDrawn })
		case "always the same":
			answers = append(answers, func(p *party, _ *tls.Config) (*tls.Config, error) { return p.fixed, nil })
		case "a new one":
			answers = append(answers, func(p *party, _ *tls.Config) (*tls.Config, error) { return apply(p, settings...), nil })
		case "a clone of base":
			answers = append(answers, func(_ *party, base *tls.Config) (*tls.Config, error) { return base.Clone(), nil })
		}
	}
	return func(p *party, c *tls.Config) {
		p.fixed = apply(p, settings...)
		if ownKeys {
			p.rekey = append(p.rekey, func() { setKeys(p, p.fixed) })
		}
		c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			p.noteHello("GetConfigForClient", hello)
			return forName(hello.ServerName+"?", answers)(p, c)
		}
	}
}

// A base is a configuration of a server as it is, and as TLSConfig returns it.
type base struct {
	chosen         []string
	quic           bool
	plain, wrapped *party
	names          []string    // that its certificates have
	keys           [2][32]byte // for session tickets, first and later
	ticketsShared  bool        // plain and wrapped take each other's
	added          []*staple.Certificate
}

func newBase(b *batch, d *draw) *base {
	s := new(base)
	s.quic = d.chance(5, "QUIC")
	var settings []setting
	if d.chance(20, "no certificates but those added") {
		certs := d.certificates(b, d.IntN(9), &s.names)
		var left []tls.Certificate
		var removed []*staple.Certificate
		for _, c := range certs {
			handle, err := b.stapler.Add(c)
			switch {
			case err != nil: // it does not parse
			case d.chance(5, "added and removed"):
				removed = append(removed, handle)
			default:
				c.Leaf = nil // Add reads the chain
				left = append(left, c)
				s.added = append(s.added, handle)
			}
		}
		for _, handle := range removed {
			handle.Remove()
		}
		s.plain = &party{}
		settings = append(settings, func(p *party, c *tls.Config) {
			if p == s.plain {
				c.Certificates = left
			}
		})
	} else {
		s.plain = &party{}
		settings = append(settings, d.choice(b, &s.names))
	}
	settings = append(settings, d.parameters("server", s.quic), d.clientAuth())
	switch d.pick("server, ECH keys", "2 none", "1 some", "1 a callback") {
	case "some":
		settings = append(settings, func(_ *party, c *tls.Config) {
			keys := diffECH()
			c.EncryptedClientHelloKeys = keys[:1]
		})
	case "a callback":
		settings = append(settings, func(p *party, c *tls.Config) {
			c.GetEncryptedClientHelloKeys = func(hello *tls.ClientHelloInfo) ([]tls.EncryptedClientHelloKey, error) {
				p.noteHello("GetEncryptedClientHelloKeys", hello)
				keys := diffECH()
				return keys[:1], nil
			}
		})
	}
	s.keys = [2][32]byte{d.ticketKey(), d.ticketKey()}
	keysGiven := false
	switch d.pick("server, session ticket keys", "2 its own", "2 SetSessionTicketKeys", "1 SessionTicketKey", "1 WrapSession") {
	case "SetSessionTicketKeys":
		s.ticketsShared, keysGiven = true, true
		settings = append(settings, func(p *party, c *tls.Config) {
			c.SetSessionTicketKeys(p.keys)
			p.rekey = append(p.rekey, func() { c.SetSessionTicketKeys(p.keys) })
		})
	case "SessionTicketKey":
		s.ticketsShared = true
		settings = append(settings, func(_ *party, c *tls.Config) {
			//lint:ignore SA1019 it is still heeded
			c.SessionTicketKey = s.keys[0]
		})
	case "WrapSession":
		settings = append(settings, func(p *party, c *tls.Config) {
			// By the configuration that serves, since a clone has keys of its own.
			c.WrapSession = func(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
				return p.direct.EncryptTicket(cs, ss)
			}
			c.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
				return p.direct.DecryptTicket(ticket, cs)
			}
		})
	}
	if s.added == nil && d.chance(3, "GetConfigForClient") {
		settings = append(settings, d.getConfigForClient(b, s.quic, &s.names))
	}
	s.wrapped = &party{}
	s.plain.setKeys(s.keys[0])
	s.wrapped.setKeys(s.keys[0])
	s.plain.config = apply(s.plain, settings...)
	s.wrapped.config = b.stapler.TLSConfig(apply(s.wrapped, settings...))
	how := d.pick("wrapped", "4 once", "1 twice", "1 and cloned", "1 and returned by GetConfigForClient")
	switch how {
	case "twice":
		s.wrapped.config = b.stapler.TLSConfig(s.wrapped.config)
	case "and cloned":
		s.wrapped.config = s.wrapped.config.Clone()
	}
	for _, p := range []*party{s.plain, s.wrapped} {
		inner := p.config
		p.direct = inner
		if keysGiven {
			p.rekey = append(p.rekey, func() { inner.SetSessionTicketKeys(p.keys) })
		}
		if how == "and returned by GetConfigForClient" {
			p.config = inner.Clone()
			p.config.Certificates, p.config.GetCertificate = nil, nil
			p.config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return inner, nil }
		}
	}
	s.chosen = d.chosen
	return s
}

// close takes back what only this base has.
func (s *base) close() {
	for _, c := range s.added {
		c.Remove()
	}
}

// name draws what a client may ask for, often one of those given.
func (d *draw) name(names []string) (name string) {
	how := d.pick("name", "12 of a certificate", "1 below a certificate's", "1 beside a certificate's", "2 any", "1 unknown", "2 none", "1 an address", "2 odd", "1 not in ASCII")
	known := d.hostname()
	if len(names) > 0 {
		known = one(d, names)
	}
	switch how {
	case "of a certificate":
		name = known
		if parent, ok := strings.CutPrefix(name, "*."); ok && d.IntN(6) > 0 {
			name = one(d, labels) + "." + parent
		}
	case "below a certificate's":
		name = one(d, labels) + "." + strings.TrimPrefix(known, "*.")
	case "beside a certificate's":
		_, parent, _ := strings.Cut(known, ".")
		name = one(d, labels) + "." + parent
	case "any":
		name = d.hostname()
	case "unknown":
		name = "unknown.example"
	case "an address":
		name = one(d, slices.Concat(addresses, spellings))
	case "odd":
		name = one(d, odd)
	case "not in ASCII":
		name = one(d, unencodable)
	}
	if d.chance(6, "a name in mixed case") {
		name = d.flipCase(name)
	}
	if d.chance(12, "a name with a dot at its end") {
		name += "."
	}
	d.chosen = append(d.chosen, fmt.Sprintf("%q", name))
	return name
}

// A visit is what a client does.
type visit struct {
	chosen        []string
	first, second func(*party) *tls.Config // second: nil if it connects once
	wrapped       bool                     // its configuration goes through TLSConfig where the server's does
	fromPlain     bool                     // it has its ticket from the server as it is
	rotate        string                   // what becomes of the session ticket keys in between, where they are given
	early, events bool                     // of QUIC
}

func newVisit(b *batch, s *base, d *draw) *visit {
	v := new(visit)
	settings := []setting{d.parameters("client", s.quic)}
	serverName := func(name string) setting { return func(_ *party, c *tls.Config) { c.ServerName = name } }
	settings = append(settings, serverName(d.name(s.names)))
	if !d.chance(20, "the client verifies") {
		settings = append(settings, func(_ *party, c *tls.Config) { c.InsecureSkipVerify = true })
	}
	roots := diffCAs()[0].Roots()
	var names []string
	certs := d.certificates(b, 3, &names)
	ech := d.pick("client, ECH", "12 none", "2 right", "1 a wrong key")
	settings = append(settings, func(_ *party, c *tls.Config) {
		c.RootCAs = roots
		if ech != "none" {
			keys := diffECH()
			config := keys[0].Config
			if ech == "a wrong key" {
				config = keys[1].Config
			}
			var list cryptobyte.Builder
			list.AddUint16LengthPrefixed(func(list *cryptobyte.Builder) { list.AddBytes(config) })
			c.EncryptedClientHelloConfigList = list.BytesOrPanic()
			c.MinVersion, c.MaxVersion = max(c.MinVersion, tls.VersionTLS13), 0
		}
	})
	switch d.pick("client, certificates", "2 none", "1 1", "1 2", "1 3", "1 GetClientCertificate") {
	case "1":
		settings = append(settings, func(_ *party, c *tls.Config) { c.Certificates = certs[:1] })
	case "2":
		settings = append(settings, func(_ *party, c *tls.Config) { c.Certificates = certs[:2] })
	case "3":
		settings = append(settings, func(_ *party, c *tls.Config) { c.Certificates = certs })
	case "GetClientCertificate":
		answer := d.pick("GetClientCertificate", "2 a certificate", "2 a copy", "1 an error", "1 an empty certificate", "4 what suits")
		settings = append(settings, func(p *party, c *tls.Config) {
			c.Certificates = certs[1:] // does not count
			c.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
				p.calls = append(p.calls, fmt.Sprintf("GetClientCertificate(%x %x %v)", info.AcceptableCAs, info.Version, info.SignatureSchemes))
				switch answer {
				case "a certificate":
					return &certs[0], nil
				case "a copy":
					c := certs[0]
					return &c, nil
				case "an error":
					return nil, errDrawn
				case "what suits":
					for i := range certs {
						if info.SupportsCertificate(&certs[i]) == nil {
							return &certs[i], nil
						}
					}
				}
				return new(tls.Certificate), nil
			}
		})
	}
	v.wrapped = d.chance(3, "the client is wrapped too")
	v.first = func(p *party) *tls.Config { return apply(p, settings...) }
	if d.chance(3, "a second connection") || s.quic && d.IntN(2) == 0 {
		var change []setting
		switch d.pick("second connection", "3 the same", "1 another name", "1 other parameters") {
		case "another name":
			change = append(change, serverName(d.name(s.names)))
		case "other parameters":
			change = append(change, d.parameters("client", s.quic))
		}
		v.second = func(p *party) *tls.Config { return apply(p, slices.Concat(settings, change)...) }
		v.rotate = d.pick("session ticket keys, in between", "3 stay", "1 are replaced", "1 are rotated")
		v.fromPlain = s.ticketsShared && d.chance(2, "a ticket of base")
		if s.quic {
			v.early = d.chance(2, "QUIC, early data")
			v.events = d.chance(2, "QUIC, session events")
		}
	}
	v.chosen = d.chosen
	return v
}

// A memoryPipe is one direction of a connection. Writing does not wait for the reader,
// and what was written before Close can be read after it, so that what each side
// sees depends on nothing but what the other has sent.
type memoryPipe struct {
	mu     sync.Mutex
	more   sync.Cond
	data   []byte
	closed bool
}

type memoryConn struct{ in, out *memoryPipe }

func memoryConns() (a, b memoryConn) {
	x, y := new(memoryPipe), new(memoryPipe)
	x.more.L, y.more.L = &x.mu, &y.mu
	return memoryConn{x, y}, memoryConn{y, x}
}

func (c memoryConn) Read(p []byte) (int, error) {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	for len(c.in.data) == 0 {
		if c.in.closed {
			return 0, io.EOF
		}
		c.in.more.Wait()
	}
	n := copy(p, c.in.data)
	c.in.data = c.in.data[n:]
	return n, nil
}

func (c memoryConn) Write(p []byte) (int, error) {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.data = append(c.out.data, p...)
	c.out.more.Signal()
	return len(p), nil
}

func (c memoryConn) Close() error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.closed = true
	c.out.more.Signal()
	return nil
}

func (memoryConn) LocalAddr() net.Addr              { return new(net.TCPAddr) }
func (memoryConn) RemoteAddr() net.Addr             { return new(net.TCPAddr) }
func (memoryConn) SetDeadline(time.Time) error      { return nil }
func (memoryConn) SetReadDeadline(time.Time) error  { return nil }
func (memoryConn) SetWriteDeadline(time.Time) error { return nil }

// A lastSession is a cache of one session, whatever server it is for.
type lastSession struct{ session *tls.ClientSessionState }

func (l *lastSession) Get(string) (*tls.ClientSessionState, bool) { return l.session, l.session != nil }
func (l *lastSession) Put(_ string, s *tls.ClientSessionState)    { l.session = s }

// A view is what one side knows of a connection in the end.
type view struct {
	Err                              string
	Complete, Resumed, ECH, Retry    bool
	Version, Suite                   uint16
	Curve                            tls.CurveID
	Protocol, ServerName, Peer, SCTs string
	Chains                           int
	Calls                            string // of the callbacks

	cs tls.ConnectionState
}

func newView(cs tls.ConnectionState, err error, p *party) view {
	v := view{
		Complete: cs.HandshakeComplete, Resumed: cs.DidResume, ECH: cs.ECHAccepted, Retry: cs.HelloRetryRequest,
		Version: cs.Version, Suite: cs.CipherSuite, Curve: cs.CurveID, Protocol: cs.NegotiatedProtocol, ServerName: cs.ServerName,
		SCTs: fmt.Sprintf("%x", cs.SignedCertificateTimestamps), Chains: len(cs.VerifiedChains), Calls: p.takeCalls(), cs: cs,
	}
	for _, c := range cs.PeerCertificates {
		v.Peer += fmt.Sprintf("%x ", sha256.Sum256(c.Raw))
	}
	if err != nil {
		v.Err = err.Error()
	}
	return v
}

// difference tells what is not the same in got.
func (v view) difference(got view) (text string) {
	compare := func(what string, want, got any) {
		if want != got {
			text += fmt.Sprintf("\n  %s: %v\n    wrapped: %v", what, want, got)
		}
	}
	compare("error", v.Err, got.Err)
	compare("complete", v.Complete, got.Complete)
	compare("resumed", v.Resumed, got.Resumed)
	compare("ECH accepted", v.ECH, got.ECH)
	compare("HelloRetryRequest", v.Retry, got.Retry)
	compare("version", v.Version, got.Version)
	compare("cipher suite", v.Suite, got.Suite)
	compare("curve", v.Curve, got.Curve)
	compare("protocol", v.Protocol, got.Protocol)
	compare("server name", v.ServerName, got.ServerName)
	compare("peer's chain", v.Peer, got.Peer)
	compare("verified chains", v.Chains, got.Chains)
	compare("timestamps", v.SCTs, got.SCTs)
	compare("callbacks", v.Calls, got.Calls)
	return text
}

// A meeting is one connection, as each side saw it.
type meeting struct{ client, server view }

func meet(client, server *party, config *tls.Config) meeting {
	a, b := memoryConns()
	c, s := tls.Client(a, config), tls.Server(b, server.config)
	done := make(chan error)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		if err == nil {
			if _, err = s.Read(make([]byte, 1)); err == io.EOF {
				err = nil
			}
		}
		s.Close()
		done <- err
	}()
	err := c.Handshake()
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1)) // takes the session ticket of TLS 1.3 as well
	}
	c.Close()
	serverErr := <-done
	return meeting{newView(c.ConnectionState(), err, client), newView(s.ConnectionState(), serverErr, server)}
}

func meetByQUIC(client, server *party, config *tls.Config, v *visit) meeting {
	parties := [2]*party{client, server}
	conns := [2]*tls.QUICConn{
		tls.QUICClient(&tls.QUICConfig{TLSConfig: config, EnableSessionEvents: v.events}),
		tls.QUICServer(&tls.QUICConfig{TLSConfig: server.config, EnableSessionEvents: v.events}),
	}
	var errs [2]error
	for i, c := range conns {
		defer c.Close()
		c.SetTransportParameters(nil)
		errs[i] = c.Start(context.Background())
	}
	for more := true; more; {
		more = false
		for i, c := range conns {
			if errs[i] != nil {
				continue
			}
			for e := c.NextEvent(); e.Kind != tls.QUICNoEvent; e = c.NextEvent() {
				more = true
				switch e.Kind {
				case tls.QUICErrorEvent:
					errs[i] = e.Err
				case tls.QUICWriteData:
					if errs[1-i] == nil {
						errs[1-i] = conns[1-i].HandleData(e.Level, e.Data)
					}
				case tls.QUICTransportParametersRequired:
					c.SetTransportParameters(nil)
				case tls.QUICStoreSession:
					errs[i] = c.StoreSession(e.SessionState)
				case tls.QUICHandshakeDone:
					if c == conns[1] {
						errs[i] = c.SendSessionTicket(tls.QUICSessionTicketOptions{EarlyData: v.early})
					}
				case tls.QUICRejectedEarlyData:
					parties[i].calls = append(parties[i].calls, "early data rejected")
				case tls.QUICSetReadSecret:
					if e.Level == tls.QUICEncryptionLevelEarly {
						parties[i].calls = append(parties[i].calls, "early data accepted")
					}
				}
			}
		}
	}
	return meeting{newView(conns[0].ConnectionState(), errs[0], client), newView(conns[1].ConnectionState(), errs[1], server)}
}

// meetings has a client connect once or twice to servers, which are one and the same or differ between the connections.
func (v *visit) meetings(b *batch, s *base, wrapped bool) (all []meeting) {
	servers := [2]*party{s.plain, s.plain}
	if wrapped {
		servers = [2]*party{s.wrapped, s.wrapped}
		if v.fromPlain {
			servers[0] = s.plain
		}
	}
	s.plain.setKeys(s.keys[0])
	s.wrapped.setKeys(s.keys[0])
	cache := new(lastSession)
	for i, build := range []func(*party) *tls.Config{v.first, v.second} {
		if build == nil {
			break
		}
		if i == 1 {
			switch v.rotate {
			case "are replaced":
				servers[i].setKeys(s.keys[1])
			case "are rotated":
				servers[i].setKeys(s.keys[1], s.keys[0])
			}
		}
		client := new(party)
		client.config = build(client)
		client.config.ClientSessionCache = cache
		if wrapped && v.wrapped {
			client.config = b.stapler.TLSConfig(client.config)
		}
		if s.quic {
			all = append(all, meetByQUIC(client, servers[i], client.config, v))
		} else {
			all = append(all, meet(client, servers[i], client.config))
		}
	}
	return all
}

// wantCertificate is crypto/tls's Config.getCertificate, which returns nil where that returns errNoCertificates.
func wantCertificate(c *tls.Config, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c.GetCertificate != nil && (len(c.Certificates) == 0 || len(hello.ServerName) > 0) {
		if cert, err := c.GetCertificate(hello); cert != nil || err != nil {
			return cert, err
		}
	}
	switch len(c.Certificates) {
	case 0:
		return nil, nil
	case 1:
		return &c.Certificates[0], nil
	}
	//lint:ignore SA1019 it is still heeded
	if named := c.NameToCertificate; named != nil {
		name := strings.ToLower(hello.ServerName)
		if cert, ok := named[name]; ok {
			return cert, nil
		}
		if len(name) > 0 {
			parts := strings.Split(name, ".")
			parts[0] = "*"
			if cert, ok := named[strings.Join(parts, ".")]; ok {
				return cert, nil
			}
		}
	}
	for i := range c.Certificates {
		if hello.SupportsCertificate(&c.Certificates[i]) == nil {
			return &c.Certificates[i], nil
		}
	}
	return &c.Certificates[0], nil
}

// wantClientCertificate is crypto/tls's Conn.getClientCertificate.
func wantClientCertificate(c *tls.Config, info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	if c.GetClientCertificate != nil {
		return c.GetClientCertificate(info)
	}
	for i := range c.Certificates {
		if info.SupportsCertificate(&c.Certificates[i]) == nil {
			return &c.Certificates[i], nil
		}
	}
	return new(tls.Certificate), nil
}

func sameKey(a, b crypto.PrivateKey) bool {
	if x, ok := a.(ed25519.PrivateKey); ok {
		return x.Equal(b)
	}
	return a == b
}

// difference tells what but the staple is not the same in two answers of a callback.
func (b *batch) difference(want, got *tls.Certificate, wantErr, gotErr error) string {
	switch {
	case (want == nil) != (got == nil) || fmt.Sprint(wantErr) != fmt.Sprint(gotErr):
		return fmt.Sprintf("\n  %s, %v\n    wrapped: %s, %v", b.describe(want), wantErr, b.describe(got), gotErr)
	case want == nil, wantErr != nil:
		return ""
	case !slices.EqualFunc(want.Certificate, got.Certificate, bytes.Equal), !sameKey(want.PrivateKey, got.PrivateKey),
		!slices.Equal(want.SupportedSignatureAlgorithms, got.SupportedSignatureAlgorithms),
		!slices.EqualFunc(want.SignedCertificateTimestamps, got.SignedCertificateTimestamps, bytes.Equal):
		return fmt.Sprintf("\n  %s\n    wrapped: %s", b.describe(want), b.describe(got))
	case len(got.Certificate) == 0:
		return ""
	}
	return b.staple(got.Certificate[0], got.OCSPStaple, true)
}

func (b *batch) describe(c *tls.Certificate) string {
	if c == nil {
		return "no certificate"
	}
	if len(c.Certificate) > 0 && b.byLeaf[string(c.Certificate[0])] != nil {
		sp := b.byLeaf[string(c.Certificate[0])]
		return fmt.Sprintf("%s %x, key %T, %v", sp.text, sp.Leaf.SerialNumber, c.PrivateKey, c.SupportedSignatureAlgorithms)
	}
	return fmt.Sprintf("a chain of %d, key %T", len(c.Certificate), c.PrivateKey)
}

// staple tells what is wrong with a staple for leaf, and with its absence if one is expected where there can be one.
func (b *batch) staple(leaf, der []byte, expected bool) string {
	sp := b.byLeaf[string(leaf)]
	if sp == nil {
		return ""
	}
	if _, good := sp.expected.Load(string(der)); len(der) > 0 && !good {
		return fmt.Sprintf("\n  a staple of %d bytes that is not for %s", len(der), sp.text)
	}
	if len(der) == 0 && expected && b.warm && sp.staples {
		return "\n  no staple for " + sp.text
	}
	return ""
}

var supportedVersions = [][]uint16{
	{tls.VersionTLS13, tls.VersionTLS12}, {tls.VersionTLS13, tls.VersionTLS12}, {tls.VersionTLS13, tls.VersionTLS12}, {tls.VersionTLS13},
	{0x2a2a, tls.VersionTLS13, tls.VersionTLS12}, {tls.VersionTLS12, 0xfafa, tls.VersionTLS13}, {0x1a1a, tls.VersionTLS12}, {tls.VersionTLS12},
	{tls.VersionTLS12, tls.VersionTLS11, tls.VersionTLS10}, {tls.VersionTLS11, tls.VersionTLS10}, {0x0305, tls.VersionTLS13}, {0x0305}, {0x7a7a}, {0x0a1a, 0}, nil,
}

// byHand draws a hello that has not come through a connection.
func (d *draw) byHand(names []string) *tls.ClientHelloInfo {
	h := &tls.ClientHelloInfo{ServerName: d.name(names), SupportedVersions: one(d, supportedVersions)}
	// Each field is empty now and then, or as clients have it, or anything.
	switch d.IntN(5) {
	case 0, 1:
		h.SignatureSchemes = schemes[:9]
	case 2:
		h.SignatureSchemes = some(d, schemes)
	case 3:
		h.SignatureSchemes = []tls.SignatureScheme{one(d, schemes)}
	}
	switch d.IntN(5) {
	case 0, 1:
		h.CipherSuites = allSuites
	case 2:
		h.CipherSuites = some(d, slices.Concat(allSuites, []uint16{0x1a1a}))
	case 3:
		h.CipherSuites = withoutECDHE
	}
	switch curves := []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521, 0x4a4a}; d.IntN(4) {
	case 0, 1:
		h.SupportedCurves = curves
	case 2:
		h.SupportedCurves = some(d, curves)
	}
	h.SupportedPoints = one(d, [][]uint8{{0}, {0}, {0}, {1, 2}, nil})
	h.SupportedProtos = one(d, [][]string{nil, {"h2"}, {"acme-tls/1"}})
	h.Extensions = one(d, [][]uint16{nil, {0, 5, 10}, {0}})
	return h
}

// compareByHand has the callbacks of a server as it is and as it is wrapped answer the same hello.
func (s *base) compareByHand(b *batch, d *draw) string {
	hello := d.byHand(s.names)
	text := func() string {
		plain, wrapped := s.plain.direct, s.wrapped.direct
		if plain.GetConfigForClient != nil {
			p, err := plain.GetConfigForClient(hello)
			w, wrappedErr := wrapped.GetConfigForClient(hello)
			switch {
			case (p == nil) != (w == nil) || fmt.Sprint(err) != fmt.Sprint(wrappedErr):
				return fmt.Sprintf("\n  GetConfigForClient: %t, %v\n    wrapped: %t, %v", p != nil, err, w != nil, wrappedErr)
			case p != nil:
				plain, wrapped = p, w
			}
		}
		want, wantErr := wantCertificate(plain, hello)
		got, gotErr := wrapped.GetCertificate(hello)
		switch {
		case wantErr != nil:
			d.note("outcome: by hand: an error")
		case want == nil:
			d.note("outcome: by hand: none")
		case len(plain.Certificates) > 1 && want == &plain.Certificates[0]:
			d.note("outcome: by hand: the first certificate")
		case len(plain.Certificates) > 1:
			d.note("outcome: by hand: a certificate for the name")
		}
		if text := b.difference(want, got, wantErr, gotErr); text != "" {
			return text
		}
		if p, w := s.plain.takeCalls(), s.wrapped.takeCalls(); p != w {
			return fmt.Sprintf("\n  callbacks: %s\n    wrapped: %s", p, w)
		}
		return ""
	}()
	if text != "" {
		return fmt.Sprintf("%s\n  hello: %q %x %v %x %v %v", text, hello.ServerName, hello.SupportedVersions, hello.SignatureSchemes, hello.CipherSuites, hello.SupportedCurves, hello.SupportedPoints)
	}
	return ""
}

// compareClientByHand does the same with a server's request for a certificate.
func (v *visit) compareClientByHand(b *batch, d *draw) string {
	plain, wrapped := new(party), new(party)
	p, w := v.first(plain), b.stapler.TLSConfig(v.first(wrapped))
	info := &tls.CertificateRequestInfo{
		Version:          one(d, []uint16{tls.VersionTLS13, tls.VersionTLS12, tls.VersionTLS10}),
		SignatureSchemes: one(d, [][]tls.SignatureScheme{schemes[:9], some(d, schemes)}),
		AcceptableCAs:    one(d, [][][]byte{nil, {diffCAs()[0].Issuer.RawSubject}, {diffCAs()[0].Root.RawSubject}, {diffCAs()[1].Root.RawSubject}, {[]byte("x")}}),
	}
	want, wantErr := wantClientCertificate(p, info)
	got, gotErr := wantClientCertificate(w, info)
	if want != nil && len(want.Certificate) > 0 {
		d.note("outcome: by hand: a client certificate")
	}
	if text := b.difference(want, got, wantErr, gotErr); text != "" {
		return fmt.Sprintf("%s\n  request: %x %v %q", text, info.Version, info.SignatureSchemes, info.AcceptableCAs)
	}
	return ""
}

// batch compares the pairs from first to end, all of batch n.
func (df *differential) batch(n, first, end int) {
	seen := make(map[string]int)
	b := newBatch(df.t, newDraw("specimens", n, seen), n%4 < 3)
	defer b.stapler.Close()
	defer runtime.KeepAlive(b.kept)
	var s *base
	for k := first; k < end && df.differences.Load() < 10; k++ {
		if s == nil || k%hellosPerBase == 0 {
			if s != nil {
				s.close()
			}
			s = newBase(b, newDraw("base", k/hellosPerBase, seen))
		}
		d := newDraw("visit", k, seen)
		v := newVisit(b, s, d)
		if text := compare(b, s, v, d); text != "" {
			df.differences.Add(1)
			df.t.Errorf("pair %d differs:%s\nbase: %s\nclient: %s\nto reproduce: go test -run '^TestDifferential$' -seed %d -pair %d .",
				k, text, strings.Join(s.chosen, "; "), strings.Join(v.chosen, "; "), *seed, k)
		}
	}
	if s != nil {
		s.close()
	}
	df.mu.Lock()
	defer df.mu.Unlock()
	for what, n := range seen {
		df.seen[what] += n
	}
}

// compare tells how a pair differs.
func compare(b *batch, s *base, v *visit, d *draw) (text string) {
	plain, wrapped := v.meetings(b, s, false), v.meetings(b, s, true)
	for i, want := range plain {
		got := wrapped[i]
		if t := want.client.difference(got.client); t != "" {
			text += fmt.Sprintf("\n connection %d, client:%s", i+1, t)
		}
		if t := want.server.difference(got.server); t != "" {
			text += fmt.Sprintf("\n connection %d, server:%s", i+1, t)
		}
		if cs := got.client.cs; len(cs.PeerCertificates) > 0 && !(v.fromPlain && (i == 0 || cs.DidResume)) {
			text += b.staple(cs.PeerCertificates[0].Raw, cs.OCSPResponse, got.client.Complete && !cs.DidResume)
		}
		if cs := got.server.cs; len(cs.PeerCertificates) > 0 && v.wrapped {
			text += b.staple(cs.PeerCertificates[0].Raw, cs.OCSPResponse, got.server.Complete && cs.Version == tls.VersionTLS13 && !cs.DidResume)
		}
		s.noteOutcome(d, v, i, want, got)
	}
	for range handMade {
		text += s.compareByHand(b, d)
	}
	if v.wrapped {
		text += v.compareClientByHand(b, d)
	}
	return text
}

// noteOutcome notes what came of a connection.
func (s *base) noteOutcome(d *draw, v *visit, i int, m, wrapped meeting) {
	note := func(cond bool, what string) {
		if cond {
			d.note("outcome: " + what)
		}
	}
	note(strings.Contains(m.client.Err, "remote error"), "client: "+m.client.Err)
	note(strings.Contains(m.server.Err, "remote error"), "server: "+m.server.Err)
	note(strings.Contains(m.client.Err, "rejected ECH"), "ECH rejected")
	if m.client.Err != "" || m.server.Err != "" {
		d.note("outcome: failed")
		return
	}
	protocol := tls.VersionName(m.client.Version)
	if s.quic {
		protocol = "QUIC"
	}
	note(true, protocol)
	note(m.client.Resumed, "resumed in "+protocol)
	note(m.client.Resumed && v.fromPlain, "resumed with a ticket of base")
	note(i == 1 && !m.client.Resumed, "not resumed")
	note(m.client.ECH, "ECH accepted")
	note(m.client.Retry, "HelloRetryRequest")
	note(m.client.Protocol != "", "a protocol negotiated")
	note(len(wrapped.client.cs.OCSPResponse) > 0, "a staple")
	note(len(wrapped.client.cs.OCSPResponse) == 0, "no staple")
	note(m.server.Peer != "", "a client certificate")
	note(m.server.Peer != "" && v.wrapped && len(wrapped.server.cs.OCSPResponse) > 0, "a client's staple")
	note(m.server.Peer == "" && s.plain.direct.ClientAuth != tls.NoClientCert, "no client certificate where one was asked for")
	note(strings.Contains(m.server.Calls, "early data accepted"), "early data accepted")
	note(strings.Contains(m.client.Calls, "early data rejected"), "early data rejected")
}
