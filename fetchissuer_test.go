package staple

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/stapletest"
)

// certsOnly encodes certificates as a certs-only PKCS #7 message.
func certsOnly(certs ...*x509.Certificate) []byte {
	context0 := cryptobyte_asn1.Tag(0).ContextSpecific().Constructed()
	var b cryptobyte.Builder
	b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSignedData)
		b.AddASN1(context0, func(b *cryptobyte.Builder) {
			b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(cryptobyte_asn1.SET, func(*cryptobyte.Builder) {})
				b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1})
				})
				if certs != nil {
					b.AddASN1(context0, func(b *cryptobyte.Builder) {
						for _, c := range certs {
							b.AddBytes(c.Raw)
						}
					})
				}
				b.AddASN1(cryptobyte_asn1.SET, func(*cryptobyte.Builder) {})
			})
		})
	})
	return b.BytesOrPanic()
}

func inPEM(blockType string, ders ...[]byte) []byte {
	var out []byte
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der})...)
	}
	return out
}

func TestParseCertificates(t *testing.T) {
	a, b := fetchCA().Issuer, fetchCA().Root
	withJunk := cryptobyte.NewBuilder(nil) // in the place of a certificate
	withJunk.AddASN1(cryptobyte_asn1.Tag(1).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddBytes(a.Raw) })
	junk := &x509.Certificate{Raw: withJunk.BytesOrPanic()}
	for _, tt := range []struct {
		name string
		data []byte
		want []*x509.Certificate
	}{
		{"DER", a.Raw, []*x509.Certificate{a}},
		{"PEM", inPEM("CERTIFICATE", a.Raw), []*x509.Certificate{a}},
		{"PEM, several", inPEM("CERTIFICATE", a.Raw, b.Raw), []*x509.Certificate{a, b}},
		{"PEM with text around", slices.Concat([]byte("subject: x\n"), inPEM("CERTIFICATE", a.Raw), []byte("\n# end\n")), []*x509.Certificate{a}},
		{"PEM with something else before", append(inPEM("EC PARAMETERS", []byte{5, 0}), inPEM("CERTIFICATE", a.Raw)...), []*x509.Certificate{a}},
		{"PKCS #7", certsOnly(a, b), []*x509.Certificate{a, b}},
		{"PKCS #7 in PEM", inPEM("PKCS7", certsOnly(b, a)), []*x509.Certificate{b, a}},
		{"PKCS #7 and a certificate in PEM", append(inPEM("CMS", certsOnly(b)), inPEM("CERTIFICATE", a.Raw)...), []*x509.Certificate{b, a}},
		{"PKCS #7 with what is no certificate", certsOnly(junk, a), []*x509.Certificate{a}},
		{"PKCS #7 with nothing", certsOnly(), nil},
		{"PKCS #7 of another type", bytes.Replace(certsOnly(a), []byte{0x07, 0x02}, []byte{0x07, 0x06}, 1), nil},
		{"nothing", nil, nil},
		{"DER with a trailing byte", append(slices.Clone(a.Raw), 0), nil},
		{"half a certificate", a.Raw[:len(a.Raw)/2], nil},
		{"half a PKCS #7 message", certsOnly(a)[:100], nil},
		{"PKCS #7 with a trailing byte", append(certsOnly(a), 0), nil},
		{"a web page", []byte("<html>"), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := parseCertificates(tt.data)
			require.Len(t, got, len(tt.want))
			for i := range got {
				require.True(t, got[i].Equal(tt.want[i]))
			}
		})
	}
}

func TestParseCertificatesFromOpenSSL(t *testing.T) {
	openssl := peer.Need(t, "openssl")
	dir := t.TempDir()
	chain := filepath.Join(dir, "chain.pem")
	require.NoError(t, os.WriteFile(chain, inPEM("CERTIFICATE", fetchCA().Issuer.Raw, fetchCA().Root.Raw), 0o600))
	for _, form := range []string{"DER", "PEM"} {
		out, err := exec.CommandContext(t.Context(), openssl, "crl2pkcs7", "-nocrl", "-certfile", chain, "-outform", form).Output()
		require.NoError(t, err)
		got := parseCertificates(out)
		require.Len(t, got, 2, form)
		require.True(t, slices.ContainsFunc(got, fetchCA().Issuer.Equal))
		require.True(t, slices.ContainsFunc(got, fetchCA().Root.Equal))
	}
}

func FuzzParseCertificates(f *testing.F) {
	a := fetchCA().Issuer
	f.Add(a.Raw)
	f.Add(inPEM("CERTIFICATE", a.Raw, a.Raw))
	f.Add(certsOnly(a, a))
	f.Add(inPEM("PKCS7", certsOnly(a)))
	f.Fuzz(func(t *testing.T, data []byte) {
		total := 0
		for _, c := range parseCertificates(data) {
			total += len(c.Raw)
			again, err := x509.ParseCertificate(c.Raw)
			if err != nil || !again.Equal(c) {
				t.Error(err)
			}
		}
		if total > len(data) {
			t.Errorf("%d bytes of certificates from %d bytes", total, len(data))
		}
	})
}

func leafWithIssuerURLs(urls ...string) *x509.Certificate {
	return fetchCA().Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}, IssuerURLs: urls}).Leaf
}

func TestFetchIssuer(t *testing.T) {
	right, wrong := fetchCA().Issuer, fetchCA().Root
	good := newServer(t, replies(200, "application/pkix-cert", string(right.Raw)))
	for name, first := range map[string]string{
		"not there":                  newServer(t, repliesStatus(404)),
		"a web page":                 newServer(t, replies(200, "text/html", "<html>")),
		"empty":                      newServer(t, replies(200, "application/pkix-cert", "")),
		"too large":                  newServer(t, replies(200, "application/pkix-cert", strings.Repeat("x", 70_000))),
		"somebody else":              newServer(t, replies(200, "application/pkix-cert", string(wrong.Raw))),
		"in LDAP":                    "ldap:///CN=CA,DC=example?cACertificate?base",
		"a file":                     "file:///etc/passwd",
		"in a directory of that CA":  newServer(t, http.NotFoundHandler()) + "/ca?x=1",
		"redirected once too often":  newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) })),
		"sent by half":               serveHostile(t, says("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"+string(right.Raw[:100]))),
		"sent by half, unbeknownst":  serveHostile(t, says("HTTP/1.0 200 OK\r\n\r\n"+string(right.Raw[:100]))),
		"with an HTTP error as well": newServer(t, replies(500, "application/pkix-cert", string(right.Raw))),
	} {
		t.Run("the first is "+name, func(t *testing.T) {
			got, err := new(HTTPFetcher).FetchIssuer(t.Context(), leafWithIssuerURLs(first, good))
			require.NoError(t, err)
			require.Len(t, got, 1)
			require.True(t, got[0].Equal(right))

			_, err = new(HTTPFetcher).FetchIssuer(t.Context(), leafWithIssuerURLs(first, "http://127.0.0.1:1/"))
			require.NotErrorIs(t, err, ErrNoIssuer, "it may be there later")
			var e *HTTPError
			require.ErrorAs(t, err, &e)
			require.ErrorContains(t, err, fmt.Sprintf("%q", first))
			require.ErrorContains(t, err, `"http://127.0.0.1:1/": GET: dial`)
		})
	}
	t.Run("only those whose key signed the leaf", func(t *testing.T) {
		reissued := reissue(t, right)
		s := newServer(t, replies(200, "application/pkcs7-mime", string(certsOnly(wrong, right, reissued))))
		got, err := new(HTTPFetcher).FetchIssuer(t.Context(), leafWithIssuerURLs(s))
		require.NoError(t, err)
		require.Len(t, got, 2)
		require.True(t, got[0].Equal(right))
		require.True(t, got[1].Equal(reissued))
	})
	t.Run("an absurdly large key is not even tried", func(t *testing.T) {
		leaf := leafWithIssuerURLs()
		leaf.SignatureAlgorithm = x509.SHA256WithRSA
		n := new(big.Int).Lsh(big.NewInt(1), 1<<18)
		n.Sub(n, big.NewInt(1))
		leaf.Signature = bytes.Repeat([]byte{0x55}, n.BitLen()/8)
		huge := &x509.Certificate{PublicKeyAlgorithm: x509.RSA, PublicKey: &rsa.PublicKey{N: n, E: 1<<31 - 1}}
		require.Empty(t, issuersAmong([]*x509.Certificate{huge}, leaf, 1))
	})
	t.Run("no URL for it", func(t *testing.T) {
		for _, urls := range [][]string{nil, {"ldap:///CN=CA"}} {
			_, err := new(HTTPFetcher).FetchIssuer(t.Context(), leafWithIssuerURLs(urls...))
			require.ErrorIs(t, err, ErrNoIssuer)
			require.ErrorIs(t, err, errNoIssuerURL)
			require.NotErrorIs(t, err, ErrNoResponder)
		}
	})
	t.Run("no responder to ask with it", func(t *testing.T) {
		leaf := fetchCA().Leaf(stapletest.LeafOptions{IssuerURLs: []string{good}}).Leaf
		_, err := new(HTTPFetcher).FetchIssuer(t.Context(), leaf)
		require.ErrorIs(t, err, ErrNoResponder)
		f := &HTTPFetcher{URLs: func(*x509.Certificate) []string { return []string{"http://ocsp.example"} }}
		got, err := f.FetchIssuer(t.Context(), leaf)
		require.NoError(t, err)
		require.Len(t, got, 1)
	})
	t.Run("the request", func(t *testing.T) {
		var got atomic.Pointer[http.Request]
		s := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got.Store(r)
			w.Write(right.Raw)
		}))
		_, err := new(HTTPFetcher).FetchIssuer(t.Context(), leafWithIssuerURLs(strings.Replace(s, "//", "//user:secret@", 1)+"/ca.cer?v=1"))
		require.NoError(t, err)
		r := got.Load()
		require.Equal(t, http.MethodGet, r.Method)
		require.Equal(t, "/ca.cer?v=1", r.RequestURI)
		require.Contains(t, r.Header.Get("Accept"), "application/pkix-cert")
		require.Contains(t, r.Header.Get("Accept"), "application/pkcs7-mime")
		require.Empty(t, r.Header["Authorization"])
	})
}

// reissue returns another certificate for c's key and name.
func reissue(t *testing.T, c *x509.Certificate) *x509.Certificate {
	template := *c
	template.SerialNumber = big.NewInt(4711)
	der, err := x509.CreateCertificate(nil, &template, fetchCA().Root, c.PublicKey, fetchCA().RootKey)
	require.NoError(t, err)
	again, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return again
}

func TestIssuerIsFetchedOnceForAllLeaves(t *testing.T) {
	var requests atomic.Int32
	f := &HTTPFetcher{Client: &http.Client{Transport: roundTripperFunc(func(r *http.Request) (*http.Response, error) {
		requests.Add(1)
		time.Sleep(10 * time.Millisecond)
		return &http.Response{StatusCode: 200, Body: io.NopCloser(bytes.NewReader(fetchCA().Issuer.Raw))}, nil
	})}}
	key := fetchCA().Leaf(stapletest.LeafOptions{}).PrivateKey.(crypto.Signer)
	o := stapletest.LeafOptions{Key: key, Responders: []string{"http://ocsp.example"}, IssuerURLs: []string{"http://ca.example/ca.cer"}}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 25 {
				got, err := f.FetchIssuer(t.Context(), fetchCA().Leaf(o).Leaf)
				if err != nil || len(got) != 1 || !got[0].Equal(fetchCA().Issuer) {
					t.Error(got, err)
				}
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, requests.Load())

	t.Run("even if it came between the look and the request", func(t *testing.T) {
		got, failed := f.issuersAt(t.Context(), "http://ca.example/ca.cer", leafWithIssuerURLs())
		require.Nil(t, failed)
		require.Len(t, got, 1)
		require.EqualValues(t, 1, requests.Load())
	})

	t.Run("whichever of several URLs had it", func(t *testing.T) {
		dead := newScripted(t, repliesStatus(500))
		good := newScripted(t, replies(200, "application/pkix-cert", string(fetchCA().Issuer.Raw)))
		f := &HTTPFetcher{}
		for range 3 {
			_, err := f.FetchIssuer(t.Context(), leafWithIssuerURLs(dead.URL, good.URL))
			require.NoError(t, err)
		}
		require.Len(t, dead.asked(), 1)
		require.Len(t, good.asked(), 1)
	})

	t.Run("another issuer at the same URL", func(t *testing.T) {
		o := o
		other := stapletest.NewCA(stapletest.CAOptions{})
		_, err := f.FetchIssuer(t.Context(), other.Leaf(o).Leaf)
		require.ErrorContains(t, err, "no certificate there has the key that signed the leaf")
		require.EqualValues(t, 2, requests.Load())
		_, err = f.FetchIssuer(t.Context(), fetchCA().Leaf(o).Leaf)
		require.NoError(t, err, "what was kept is still there")
		require.EqualValues(t, 2, requests.Load())
	})
}

func TestWaitingForAnothersIssuerRequest(t *testing.T) {
	leaf := leafWithIssuerURLs("http://ca.example")
	hanging := func(requests *atomic.Int32) *HTTPFetcher {
		return &HTTPFetcher{Client: &http.Client{Transport: roundTripperFunc(func(r *http.Request) (*http.Response, error) {
			if requests.Add(1) == 1 {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return &http.Response{StatusCode: 200, Body: io.NopCloser(bytes.NewReader(fetchCA().Issuer.Raw))}, nil
		})}}
	}
	t.Run("a waiter asks itself if the first gave up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var requests atomic.Int32
			f := hanging(&requests)
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() {
				_, err := f.FetchIssuer(ctx, leaf)
				if err == nil {
					t.Error("should have been cancelled")
				}
			})
			synctest.Wait()
			for range 3 {
				wg.Go(func() {
					if _, err := f.FetchIssuer(t.Context(), leaf); err != nil {
						t.Error(err)
					}
				})
			}
			synctest.Wait()
			require.EqualValues(t, 1, requests.Load())
			cancel()
			wg.Wait()
			require.EqualValues(t, 2, requests.Load())
			require.Empty(t, f.inFlight)
		})
	})
	t.Run("a waiter gives up by itself", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var requests atomic.Int32
			f := hanging(&requests)
			var wg sync.WaitGroup
			wg.Go(func() { f.FetchIssuer(t.Context(), leaf) })
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			_, err := f.FetchIssuer(ctx, leaf)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, time.Second, time.Since(began))
			wg.Wait()
		})
	})
	t.Run("a timeout of the request itself is everybody's", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var requests atomic.Int32
			f := hanging(&requests)
			var wg sync.WaitGroup
			for range 5 {
				wg.Go(func() {
					began := time.Now()
					if _, err := f.FetchIssuer(t.Context(), leaf); err == nil || time.Since(began) != 10*time.Second {
						t.Error(err, time.Since(began))
					}
				})
			}
			wg.Wait()
			require.EqualValues(t, 1, requests.Load())
		})
	})
}
