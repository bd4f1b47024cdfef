package choose

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// certificateFor returns a certificate that names its leaf by DER alone.
func certificateFor(t *testing.T, names ...string) tls.Certificate {
	t.Helper()
	key := testKeys()[0]
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: names, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestArraysChooseAsCryptoTLSDoes(t *testing.T) {
	other := certificateFor(t, "other.example.com")
	misled := certificateFor(t, "chain.example.com")
	misled.Leaf = &x509.Certificate{DNSNames: []string{"leaf.example.com"}, PublicKey: testKeys()[0].Public()}
	rsa := certificateFor(t, "www.example.com")
	rsa.PrivateKey = testKeys()[len(testKeys())-1]
	certs := []tls.Certificate{
		{Certificate: [][]byte{nil}}, {Certificate: [][]byte{{1, 2, 3}}, PrivateKey: testKeys()[0]},
		certificateFor(t, "www.example.com", "*.wild.example.com"), other, misled, certificateFor(t, "www.example.com"), rsa,
	}
	var a Arrays
	for _, n := range []int{0, 1, 2, 3, len(certs)} {
		for _, name := range []string{"www.example.com", "WWW.example.com", "x.wild.example.com", "other.example.com", "chain.example.com", "leaf.example.com", "nobody.example.com", ""} {
			for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
				hello := &tls.ClientHelloInfo{ServerName: name, SupportedVersions: []uint16{version},
					SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
					SupportedCurves: []tls.CurveID{tls.X25519, tls.CurveP256}, SupportedPoints: []uint8{0}}
				var want *tls.Certificate
				for i := n - 1; i >= 0; i-- {
					if i == 0 && want == nil || hello.SupportsCertificate(&certs[i]) == nil {
						want = &certs[i]
					}
				}
				got := a.Choose(certs[:n], hello, true)
				if want == nil {
					require.Nil(t, got)
					continue
				}
				require.Same(t, want, got, "%d certificates, %q, version %x", n, name, version)
			}
		}
	}
	require.Equal(t, 3, a.Len(), "one index for each length above one")
}

func TestArraysThatAreGoneAreForgotten(t *testing.T) {
	certs := []tls.Certificate{certificateFor(t, "first.example.com"), certificateFor(t, "www.example.com")}
	hello := &tls.ClientHelloInfo{ServerName: "www.example.com", SupportedVersions: []uint16{tls.VersionTLS13},
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}}
	a := new(Arrays)
	for range 100 {
		require.Same(t, &certs[1], a.Choose(certs, hello, true))
	}
	require.Equal(t, 1, a.Len())
	for range 1000 {
		again := slices.Clone(certs)
		require.Same(t, &again[1], a.Choose(again, hello, true))
	}
	requireSoon := func(n int) {
		t.Helper()
		require.Eventually(t, func() bool {
			runtime.GC()
			return a.Len() == n
		}, time.Minute, 10*time.Millisecond)
	}
	requireSoon(1)
	runtime.KeepAlive(certs)
	certs = nil
	requireSoon(0)
}
