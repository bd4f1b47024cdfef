package staple

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/go-staple/staple/internal/exhaustive"
	"github.com/go-staple/staple/internal/race"
	"github.com/go-staple/staple/internal/wall"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

// indexed returns an index over leaves that have the given names, which crypto/tls
// is told of by Leaf alone.
func indexed(leaves ...*x509.Certificate) *index {
	ix := newIndex(1)
	for i, leaf := range leaves {
		ix.add(&Certificate{order: uint64(i), kind: new(kind)}, leaf, true)
	}
	return ix
}

func (m match) orders() (orders []uint64) {
	for ; m.Certificate != nil; m = m.rest() {
		orders = append(orders, m.order)
	}
	return orders
}

// matches returns the positions of what ix finds, in order.
func (ix *index) matches(name string) (orders []uint64) {
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
		"[2001:db8::1%eth0]", "::ffff:192.0.2.1", "[::ffff:192.0.2.1]", "[]", "[www.example.com]", "www.example.com:443", "ab:cd",
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
func linear(certs []*Certificate, hello *tls.ClientHelloInfo) *Certificate {
	for _, c := range certs {
		if hello.SupportsCertificate(c.shown.Load()) == nil {
			return c
		}
	}
	if len(certs) > 0 {
		return certs[0]
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
	var kinds kindTable
	var certs []*Certificate
	ix := newIndex(changingShards)
	chosen := map[uint64]bool{}
	for step := range steps {
		switch {
		case r.IntN(3) > 0:
		case len(certs) > 0 && r.IntN(10) < len(certs):
			i := r.IntN(len(certs))
			c := certs[i]
			certs = slices.Delete(certs, i, i+1)
			ix.remove(c, c.shown.Load().Leaf, slices.Values(certs[i:]))
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
			c := &Certificate{order: uint64(step), kind: kinds.of(cert)}
			c.shown.Store(cert)
			certs = append(certs, c)
			ix.add(c, leaf, false)
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
		want := linear(certs, hello)
		got, _ := ix.choose(hello, true, nil)
		require.Same(t, want, got, "step %d: %+v", step, hello)
		if want != nil {
			chosen[want.order] = true
		}
	}
	require.Greater(t, len(chosen), steps/30)
	for _, c := range slices.Clone(certs) {
		certs = certs[1:]
		ix.remove(c, c.shown.Load().Leaf, slices.Values(certs))
	}
	require.Empty(t, ix.kinds)
	none, _ := ix.choose(new(tls.ClientHelloInfo), true, nil)
	require.Nil(t, none)
	for i := range ix.shards {
		for table, m := range ix.shards[i].Load() {
			require.Empty(t, m, "table %d of shard %d", table, i)
		}
	}
}

// helloOf returns the hello that a client sends.
func helloOf(t *testing.T, client *tls.Config) (hello *tls.ClientHelloInfo) {
	t.Helper()
	_, _, err := connect(t, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		hello = h
		return nil, context.Canceled
	}}, client)
	require.Error(t, err)
	return hello
}

// A remoteKey is one that takes its time, in a hardware module or at an agent.
type remoteKey struct {
	crypto.Signer
	asked func()
}

func (k remoteKey) Public() crypto.PublicKey {
	k.asked()
	return k.Signer.Public()
}

func TestAStapleThatEndsWhileTheCertificateIsChosenIsNotServed(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	asked := func() {}
	cert := w.leaf()
	cert.PrivateKey = remoteKey{cert.PrivateKey.(crypto.Signer), func() { asked() }}
	config := s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert, w.leaf(func(o *stapletest.LeafOptions) { o.KeyType = stapletest.RSA2048 })}})
	require.NoError(t, s.Wait(soon(t)))
	client := w.client("www.example.com")
	client.MaxVersion = tls.VersionTLS12 // so that crypto/tls is asked, and asks for the key
	hello := helloOf(t, client)
	c := slices.Collect(s.Certificates())[0]
	c.setStaple([]byte{1}, time.Now().Add(time.Hour))
	got, err := config.GetCertificate(hello)
	require.NoError(t, err)
	require.Equal(t, []byte{1}, got.OCSPStaple)

	now := time.Now()
	t.Cleanup(wall.Set(func() time.Time { return now }))
	n := 0
	asked = func() { n++; now = now.Add(2 * time.Hour) }
	got, err = config.GetCertificate(hello)
	require.NoError(t, err)
	require.Equal(t, cert.Certificate, got.Certificate)
	require.Empty(t, got.OCSPStaple)
	require.Equal(t, 2, n, "crypto/tls asks twice for the key of a candidate, and is asked about it once")
}

// The names of a certificate are spread over memory, and would keep what is around them from being freed.
func TestKeysAreNoPartOfCertificates(t *testing.T) {
	ix := newIndex(1)
	var leaves []*x509.Certificate
	var certs []*Certificate
	check := func() {
		t.Helper()
		for key := range ix.shards[0].Load()[hostnames] {
			for _, leaf := range leaves {
				require.NotSame(t, unsafe.StringData(leaf.DNSNames[0]), unsafe.StringData(key))
			}
		}
	}
	for i := range 3 {
		leaves = append(leaves, &x509.Certificate{DNSNames: []string{string([]byte("www.example.com"))}})
		certs = append(certs, &Certificate{order: uint64(i), kind: new(kind)})
		ix.add(certs[i], leaves[i], false)
		check()
	}
	ix.remove(certs[1], leaves[1], slices.Values(certs[2:]))
	check()
	require.Equal(t, []uint64{0, 2}, ix.matches("www.example.com"))
}

func TestSelectionDoesNotAllocate(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	key := w.leaf().PrivateKey
	certs := []tls.Certificate{
		w.leaf(names("first.example.com"), sameKey(key)),
		w.leaf(names("www.example.com", "*.wild.example.com"), func(o *stapletest.LeafOptions) { o.KeyType = stapletest.RSA2048 }),
		w.leaf(names("www.example.com", "*.wild.example.com", "192.0.2.1"), sameKey(key)),
	}
	for _, cert := range certs {
		w.add(s, cert)
	}
	for _, tt := range []struct {
		name string
		base *tls.Config
	}{
		{"one certificate", &tls.Config{Certificates: certs[2:]}},
		{"names alone", &tls.Config{Certificates: []tls.Certificate{certs[0], w.leaf(sameKey(key))}}},
		{"names, wildcards and kinds of keys", &tls.Config{Certificates: certs}},
		{"what was added", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := s.TLSConfig(tt.base)
			require.NoError(t, s.Wait(soon(t)))
			for _, name := range []string{"www.example.com", "first.example.com", "WWW.example.com", "x.wild.example.com", "192.0.2.1", "nobody.example.com", ""} {
				hello := helloOf(t, w.client("www.example.com"))
				hello.ServerName = name
				require.Zero(t, testing.AllocsPerRun(100, func() {
					if cert, err := config.GetCertificate(hello); err != nil || cert == nil || cert.OCSPStaple == nil {
						t.Fatal("no staple")
					}
				}), "%q", name)
			}
		})
	}
}

// However the staple changes and ends meanwhile, a handshake gets a certificate as it
// was at some moment.
func TestAStapleThatEndsAndChangesIsNeverSeenHalf(t *testing.T) {
	w := newWorld(t)
	c := w.add(w.stapler(), w.leaf())
	c.unstaple()
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				if cert, stapled := c.current(); stapled != (cert.OCSPStaple != nil) {
					t.Errorf("stapled %t, and %d bytes", stapled, len(cert.OCSPStaple))
					return
				}
			}
		})
	}
	hence := time.Now().Add(time.Hour)
	for i := range 500000 {
		switch i % 4 {
		case 0:
			c.setStaple([]byte{1}, hence)
		case 1:
			c.setStaple([]byte{2}, time.Now().Add(time.Duration(i)))
		case 2:
			c.setStaple([]byte{3}, hence) // the same end as before
		case 3:
			c.unstaple()
		}
	}
	stop.Store(true)
	wg.Wait()
}

func TestCertificatesComeAndGoWhileOthersAreServed(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	key := w.leaf().PrivateKey
	w.add(s, w.leaf(names("stays.example.com"), sameKey(key)))
	config := s.TLSConfig(nil)
	hello := helloOf(t, w.client("stays.example.com"))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for i := range 4 {
		own := w.leaf(names(fmt.Sprintf("n%d.example.com", i), fmt.Sprintf("*.n%d.example.com", i), "shared.example.com"), sameKey(key))
		wg.Go(func() {
			for ctx.Err() == nil {
				c, err := s.Add(own)
				require.NoError(t, err)
				for _, name := range own.Leaf.DNSNames[:2] {
					mine := *hello
					mine.ServerName = strings.Replace(name, "*", "x", 1)
					got, err := config.GetCertificate(&mine)
					require.NoError(t, err)
					require.Equal(t, own.Leaf.Raw, got.Leaf.Raw)
				}
				c.Remove()
			}
		})
		wg.Go(func() {
			for ctx.Err() == nil {
				for _, name := range []string{"stays.example.com", "shared.example.com", "x.n1.example.com", ""} {
					any := *hello
					any.ServerName = name
					got, err := config.GetCertificate(&any)
					require.NoError(t, err)
					if got.Leaf.VerifyHostname(name) != nil {
						require.Equal(t, "stays.example.com", got.Leaf.DNSNames[0])
					}
				}
			}
		})
	}
	wg.Wait()
	require.Len(t, slices.Collect(s.Certificates()), 1)
}

func TestARenewedCertificateTakesOverWithoutAHandshakeUnstapled(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	current := w.add(s, w.leaf())
	config := s.TLSConfig(nil)
	client := w.client("www.example.com")
	for range 5 {
		next := w.add(s, w.leaf())
		got, _, err := connect(t, config, client)
		require.NoError(t, err)
		require.Equal(t, current.Status().Leaf.Raw, got.PeerCertificates[0].Raw, "the older of two is served")
		require.NotEmpty(t, got.OCSPResponse)
		current.Remove()
		got, _, err = connect(t, config, client)
		require.NoError(t, err)
		require.Equal(t, next.Status().Leaf.Raw, got.PeerCertificates[0].Raw)
		require.NotEmpty(t, got.OCSPResponse)
		current = next
	}
	require.Len(t, slices.Collect(s.Certificates()), 1)
}

func TestConfigurationsForEachConnectionLeaveNothingBehind(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	key := w.leaf().PrivateKey
	shared := []tls.Certificate{w.leaf(names("first.example.com"), sameKey(key)), w.leaf(sameKey(key))}
	fresh := false
	config := s.TLSConfig(&tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		certs := shared
		if fresh {
			certs = slices.Clone(shared)
		}
		return &tls.Config{Certificates: certs}, nil
	}})
	hello := helloOf(t, w.client("www.example.com"))
	serve := func() {
		inner, err := config.GetConfigForClient(hello)
		require.NoError(t, err)
		got, err := inner.GetCertificate(hello)
		require.NoError(t, err)
		require.Equal(t, shared[1].Leaf.Raw, got.Leaf.Raw)
	}
	indexes := func() int {
		a := &s.engine.arrays
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.indexes)
	}
	for range 100 {
		serve()
	}
	require.Equal(t, 1, indexes())
	fresh = true
	for range 1000 {
		serve()
	}
	require.Eventually(t, func() bool {
		runtime.GC()
		return indexes() == 1
	}, 10*time.Second, 10*time.Millisecond)
	runtime.KeepAlive(shared)
	shared = nil
	require.Eventually(t, func() bool {
		runtime.GC()
		return indexes() == 0
	}, 10*time.Second, 10*time.Millisecond)
	require.Len(t, slices.Collect(s.Certificates()), 1)
	runtime.KeepAlive(config)
}

// distinctLeaves returns a function that returns the DER of a leaf that is like no other.
func distinctLeaves(w *world) func() []byte {
	const serial = "\x11\x22\x33\x44\x55\x66\x77\x88"
	template := &x509.Certificate{SerialNumber: new(big.Int).SetBytes([]byte(serial)), DNSNames: []string{"www.example.com"}, OCSPServer: []string{responderURL},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, w.ca.Issuer, testKeys()[0].Public(), w.ca.Key)
	require.NoError(w.t, err)
	at := strings.Index(string(der), serial)
	n := uint64(0)
	return func() []byte {
		n++
		der := slices.Clone(der)
		binary.BigEndian.PutUint32(der[at+4:], uint32(n))
		return der
	}
}

func TestAMillionCertificatesThroughACallbackLeaveMemoryBounded(t *testing.T) {
	total, inASecond := 30000, 500
	if exhaustive.Enabled() {
		total = 1000000
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.stapler(func(s *Stapler) {
			s.OnEvent = nil
			s.Fetcher = FetcherFunc(func(context.Context, *Request) ([]byte, error) { return nil, ErrNoResponder })
		})
		leaf := distinctLeaves(w)
		config := s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: [][]byte{leaf(), w.ca.Issuer.Raw}}, nil
		}})
		var hello tls.ClientHelloInfo
		for i := range total {
			cert, err := config.GetCertificate(&hello)
			require.NoError(t, err)
			require.NotNil(t, cert)
			if i%inASecond == inASecond-1 {
				time.Sleep(time.Second)
			}
		}
		synctest.Wait()
		g := s.engine
		g.mu.Lock()
		defer g.mu.Unlock()
		want := min(total*maxNewSeen/inASecond, maxSeen)
		require.Len(t, g.entries, want)
		require.Len(t, g.seen.byHash, want)
		require.Len(t, g.seen.byDER, want)
		require.Equal(t, want, g.seen.recent.Len())
		runtime.KeepAlive(config)
	})
}

func TestGoroutinesDoNotGrowWithCertificates(t *testing.T) {
	w := newWorld(t)
	s := w.stapler(func(s *Stapler) {
		s.OnEvent = nil
		s.Fetcher = FetcherFunc(func(context.Context, *Request) ([]byte, error) { return nil, ErrNoResponder })
	})
	leaf := distinctLeaves(w)
	before := runtime.NumGoroutine()
	for range 2000 {
		_, err := s.Add(tls.Certificate{Certificate: [][]byte{leaf(), w.ca.Issuer.Raw}})
		require.NoError(t, err)
	}
	require.NoError(t, s.Wait(soon(t)))
	for ctx := soon(t); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		require.NoError(t, ctx.Err(), "%d goroutines more", runtime.NumGoroutine()-before)
	}
}
