package choose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	mathrand "math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/go-staple/staple/internal/race"
	"github.com/stretchr/testify/require"
)

// indexed returns an index over leaves that have the given names, which crypto/tls
// is told of by Leaf alone.
func indexed(leaves ...*x509.Certificate) *Index[nobody] {
	ix := NewFixedIndex[nobody]()
	for i, leaf := range leaves {
		ix.Add(slotOf(i, new(Kind), &tls.Certificate{Leaf: leaf}))
	}
	return ix
}

func slotOf(order int, kind *Kind, cert *tls.Certificate) *Slot[nobody] {
	s := &Slot[nobody]{Order: uint64(order), Kind: kind}
	s.Put(cert)
	return s
}

func (m match[T]) orders() (orders []uint64) {
	for ; m.Slot != nil; m = m.rest() {
		orders = append(orders, m.Order)
	}
	return orders
}

// matches returns the positions of what ix finds, in order.
func (ix *Index[T]) matches(name string) (orders []uint64) {
	for _, m := range ix.find(name) {
		orders = append(orders, m.orders()...)
	}
	slices.Sort(orders)
	return orders
}

func requireMatchesAsVerifyHostname(t *testing.T, name string, leaves ...*x509.Certificate) {
	t.Helper()
	var want []uint64
	for i, leaf := range leaves {
		if leaf.VerifyHostname(name) == nil {
			want = append(want, uint64(i))
		}
	}
	require.Equal(t, want, slices.Compact(indexed(leaves...).matches(name)), "%q", name)
}

var (
	oddNames = []string{
		"www.example.com", "WWW.Example.COM", "www.example.com.", "www.example.com..", "*.example.com", "*.EXAMPLE.com",
		"*.example.com.", "*.com", "*", "*.", "**.example.com", "*.*.example.com", "w*.example.com", "www.*.com", "a.b.example.com",
		".example.com", "example.com", "example", "example.", ".", "..", "", " ", "-x.example.com", "x-.example.com", "_x.example.com",
		"a..b", "a\x00b.example.com", "exämple.com", "EXÄMPLE.com", "xn--exmple-cua.com", "192.0.2.1", "192.0.2.1.", "*.0.2.1", "192.0.2",
		"192.0.2.256", "0xc0000201", "192.0.02.1", "[192.0.2.1]", "2001:db8::1", "[2001:db8::1]", "2001:DB8::1", "2001:db8::1%eth0",
		"[2001:db8::1%eth0]", "2001:db8::1%", "2001:DB8::1%25eth0", "192.0.2.1%eth0", "::ffff:192.0.2.1%1", "[::%0]", "www.example.com%eth0", "::ffff:192.0.2.1", "[::ffff:192.0.2.1]", "[]", "[www.example.com]", "www.example.com:443", "ab:cd",
		"*.192.0.2.1", "x.192.0.2.1", "\x80\xff", "a b.example.com", "*.x_y.example.com", "q.x_y.example.com",
		strings.Repeat("a", 300) + ".example.com", strings.Repeat("a.", 130) + "com", "*." + strings.Repeat("b.", 130) + "com",
		"z." + strings.Repeat("b.", 130) + "com",
	}
	oddAddresses = []net.IP{
		nil, {192, 0, 2, 1}, net.ParseIP("192.0.2.1"), net.ParseIP("2001:db8::1"), {1, 2, 3}, net.IPv6zero,
	}
)

func TestAnIndexMatchesNamesAsVerifyHostnameDoes(t *testing.T) {
	var leaves []*x509.Certificate
	for _, name := range oddNames {
		leaves = append(leaves, &x509.Certificate{DNSNames: []string{name}})
		leaves = append(leaves, &x509.Certificate{DNSNames: []string{"other.example", name, strings.ToUpper(name), name}})
	}
	for _, ip := range oddAddresses {
		leaves = append(leaves, &x509.Certificate{IPAddresses: []net.IP{ip, ip}})
	}
	leaves = append(leaves, new(x509.Certificate))
	for _, name := range oddNames[:slices.Index(oddNames, "")] {
		requireMatchesAsVerifyHostname(t, name, leaves...)
	}
	for _, name := range oddNames {
		if name == "" {
			continue // no name is no match for the index
		}
		requireMatchesAsVerifyHostname(t, name, leaves...)
		for _, leaf := range leaves { // without wildcards, the way is another
			requireMatchesAsVerifyHostname(t, name, leaf)
		}
	}
}

func FuzzIndex(f *testing.F) {
	for i, name := range oddNames {
		f.Add(name, oddNames[(i+1)%len(oddNames)], []byte(oddAddresses[i%len(oddAddresses)]), oddNames[(i+2)%len(oddNames)])
	}
	f.Fuzz(func(t *testing.T, a, b string, ip []byte, asked string) {
		if asked == "" {
			return
		}
		requireMatchesAsVerifyHostname(t, asked, &x509.Certificate{DNSNames: []string{a}}, &x509.Certificate{DNSNames: []string{b, a}},
			&x509.Certificate{IPAddresses: []net.IP{ip}, DNSNames: []string{b}})
		requireMatchesAsVerifyHostname(t, asked, &x509.Certificate{DNSNames: []string{a}})
	})
}

// testKeys are one of each kind that certificates have.
var testKeys = sync.OnceValue(func() (keys []crypto.Signer) {
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P224()} {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			panic(err)
		}
		keys = append(keys, k)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return append(keys, ed, rsaKey)
})

// linear is the choice of crypto/tls.
func linear(slots []*Slot[nobody], hello *tls.ClientHelloInfo) *Slot[nobody] {
	for _, s := range slots {
		if hello.SupportsCertificate(s.Shown()) == nil {
			return s
		}
	}
	if len(slots) > 0 {
		return slots[0]
	}
	return nil
}

func TestAnIndexThatChangesChoosesAsCryptoTLSDoes(t *testing.T) {
	steps := 20000
	if race.Enabled {
		steps = 2000
	}
	r := mathrand.New(mathrand.NewPCG(1, 2))
	pick := func(of []string) string { return of[r.IntN(len(of))] }
	sans := []string{"a.example.com", "A.example.com", "b.example.com", "*.example.com", "c.d.example.com", "*.d.example.com", "192.0.2.1", "a.example.com."}
	asked := append(sans[:len(sans):len(sans)], "", "x.example.com", "nobody.example.net", "B.EXAMPLE.com", "x.d.example.com.")
	schemes := append(probedSchemes[:len(probedSchemes):len(probedSchemes)], 0x0a0a)
	var kinds Kinds
	var slots []*Slot[nobody]
	ix := NewIndex[nobody]()
	chosen := map[uint64]bool{}
	for step := range steps {
		switch {
		case r.IntN(3) > 0:
		case len(slots) > 0 && r.IntN(10) < len(slots):
			i := r.IntN(len(slots))
			s := slots[i]
			slots = slices.Delete(slots, i, i+1)
			ix.Remove(s, slices.Values(slots[i:]))
		default:
			leaf := new(x509.Certificate)
			for range r.IntN(4) {
				leaf.DNSNames = append(leaf.DNSNames, pick(sans))
			}
			key := testKeys()[r.IntN(len(testKeys()))]
			leaf.PublicKey = key.Public()
			cert := &tls.Certificate{Leaf: leaf, PrivateKey: key}
			if r.IntN(4) == 0 {
				cert.SupportedSignatureAlgorithms = []tls.SignatureScheme{schemes[r.IntN(len(schemes))]}
			}
			s := slotOf(step, kinds.Of(cert), cert)
			if len(slots) > 0 && r.IntN(3) == 0 {
				i := r.IntN(len(slots))
				old := slots[i]
				s.Order = old.Order
				slots[i] = s
				ix.Replace(old, s, slices.Values(slots[i+1:]))
				break
			}
			slots = append(slots, s)
			ix.Add(s)
		}
		hello := &tls.ClientHelloInfo{ServerName: pick(asked), SupportedVersions: []uint16{0x1a1a, tls.VersionTLS13, tls.VersionTLS12}}
		for range r.IntN(4) {
			hello.SignatureSchemes = append(hello.SignatureSchemes, schemes[r.IntN(len(schemes))])
		}
		if r.IntN(4) == 0 {
			hello.SupportedVersions = []uint16{tls.VersionTLS12}
			hello.CipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}[r.IntN(2):]
			hello.SupportedCurves = []tls.CurveID{tls.X25519, tls.CurveP256}
			hello.SupportedPoints = []uint8{0}
		}
		want := linear(slots, hello)
		got, _ := ix.Choose(hello, true)
		require.Same(t, want, got, "step %d: %+v", step, hello)
		if want != nil {
			chosen[want.Order] = true
		}
	}
	require.Greater(t, len(chosen), steps/30)
	for _, s := range slices.Clone(slots) {
		slots = slots[1:]
		ix.Remove(s, slices.Values(slots))
	}
	require.Empty(t, ix.kinds)
	none, _ := ix.Choose(new(tls.ClientHelloInfo), true)
	require.Nil(t, none)
	for i := range ix.shards {
		for table, m := range ix.shards[i].Load() {
			require.Empty(t, m, "table %d of shard %d", table, i)
		}
	}
}

func TestWhileOneIsReplacedThereIsAlwaysOne(t *testing.T) {
	var kinds Kinds
	key := testKeys()[0]
	next := func(names ...string) *Slot[nobody] {
		cert := &tls.Certificate{Leaf: &x509.Certificate{DNSNames: names, PublicKey: key.Public()}, PrivateKey: key}
		return slotOf(1, kinds.Of(cert), cert)
	}
	ix := NewIndex[nobody]()
	other := next("other.example")
	other.Order = 0
	ix.Add(other)
	s := next("www.example.com")
	ix.Add(s)
	hello := &tls.ClientHelloInfo{ServerName: "www.example.com", SupportedVersions: []uint16{tls.VersionTLS13},
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 1000 {
			o := next([]string{"www.example.com", "*.example.com"}[i%2])
			ix.Replace(s, o, slices.Values([]*Slot[nobody](nil)))
			s = o
		}
	}()
	for n := 0; ; n++ {
		got, _ := ix.Choose(hello, true)
		require.NotSame(t, other, got)
		select {
		case <-done:
			return
		default:
		}
	}
}

// The names of a certificate are spread over memory, and would keep what is around them from being freed.
func TestKeysAreNoPartOfCertificates(t *testing.T) {
	ix := NewIndex[nobody]()
	var leaves []*x509.Certificate
	var slots []*Slot[nobody]
	check := func() {
		t.Helper()
		for key := range ix.shardOf("www.example.com").Load()[hostnames] {
			for _, leaf := range leaves {
				require.NotSame(t, unsafe.StringData(leaf.DNSNames[0]), unsafe.StringData(key))
			}
		}
	}
	for i := range 3 {
		leaves = append(leaves, &x509.Certificate{DNSNames: []string{string([]byte("www.example.com"))}})
		slots = append(slots, slotOf(i, new(Kind), &tls.Certificate{Leaf: leaves[i]}))
		ix.Add(slots[i])
		check()
	}
	ix.Remove(slots[1], slices.Values(slots[2:]))
	check()
	require.Equal(t, []uint64{0, 2}, ix.matches("www.example.com"))
}
