package whole

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"
)

// A talker is a world whose responder embeds more than it need, and says the same of a leaf each time.
type talker struct {
	*world.World
	leaf     tls.Certificate
	delegate *stapletest.Signer
	at       time.Time
	der      []byte // what it says
	trimmed  []byte // what a ResponseVerifier makes of it
}

func newTalker(t *testing.T) *talker {
	w := world.New(t)
	k := &talker{World: w, leaf: w.Leaf(), delegate: w.CA.Delegate(stapletest.DelegateOptions{}), at: time.Now()}
	k.der = k.embedding(w.CA.Issuer)
	k.says(k.der)
	r, _, err := new(staple.ResponseVerifier).Verify(k.der, k.leaf.Leaf, w.CA.Issuer, k.at)
	require.NoError(t, err)
	require.Less(t, len(r.Raw), len(k.der))
	k.trimmed = r.Raw
	return k
}

// embedding is the response, behind whose signer others are embedded.
func (k *talker) embedding(others ...*x509.Certificate) []byte {
	r := stapletest.NewResponse(k.CA, k.leaf.Leaf)
	r.Signer, r.ProducedAt, r.Singles[0].ThisUpdate, r.Singles[0].NextUpdate = k.delegate, k.at, k.at, k.at.Add(7*world.Day)
	r.Certificates = append([]*x509.Certificate{k.delegate.Certificate}, others...)
	return r.DER()
}

// says makes the responder say something else.
func (k *talker) says(der []byte) { k.Responder.Set(nil, stapletest.Answer{Replay: der}) }

// A listed is a MemoryCache that counts what is put into it.
type listed struct {
	*staple.MemoryCache
	puts atomic.Int32
}

func (c *listed) Put(ctx context.Context, key string, data []byte) error {
	c.puts.Add(1)
	return c.MemoryCache.Put(ctx, key, data)
}

// A judge is a Verifier that counts its verdicts, and may have something to say about the result.
type judge struct {
	calls atomic.Int32
	edit  func(der []byte, r *ocsp.Response) error
}

func (j *judge) Verify(der []byte, leaf, issuer *x509.Certificate, now time.Time) (*ocsp.Response, time.Time, error) {
	j.calls.Add(1)
	r, end, err := new(staple.ResponseVerifier).Verify(der, leaf, issuer, now)
	if err == nil && j.edit != nil {
		err = j.edit(der, r)
	}
	return r, end, err
}

// What is stapled, stored and shown embeds nobody but its signer.
func TestWhatIsStapledIsTrimmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTalker(t)
		cache := &listed{MemoryCache: staple.NewMemoryCache()}
		c := w.Add(w.Stapler(func(s *staple.Stapler) { s.Cache = cache }), w.leaf)
		synctest.Wait()
		stored, err := cache.Get(t.Context(), world.CacheKey(w.leaf.Leaf))
		require.NoError(t, err)
		require.Equal(t, w.trimmed, stored)
		require.Equal(t, w.trimmed, c.TLS().OCSPStaple)
		require.Equal(t, w.trimmed, c.Response())

		carrying := w.leaf
		carrying.OCSPStaple = w.der
		c, err = w.Stapler().Add(carrying)
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, w.trimmed, c.TLS().OCSPStaple, "one that comes with the certificate")
	})
}

// The same answer costs one verification, whatever is trimmed away from it, and one that says the same is nothing new.
func TestTheSameAnswerIsVerifiedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTalker(t)
		v := new(judge)
		cache := &listed{MemoryCache: staple.NewMemoryCache()}
		s := w.Stapler(func(s *staple.Stapler) { s.Verifier, s.Cache = v, cache })
		c := w.Add(s, w.leaf)
		synctest.Wait()
		stapled := c.TLS().OCSPStaple
		require.EqualValues(t, 2, v.calls.Load(), "the answer, and what is left of it")
		refresh := func(calls int) {
			before := v.calls.Load()
			require.NoError(t, c.Refresh(world.Soon(t)))
			synctest.Wait()
			require.EqualValues(t, calls, v.calls.Load()-before)
			require.Equal(t, stapled, c.TLS().OCSPStaple)
			require.EqualValues(t, 1, cache.puts.Load())
		}
		refresh(0)
		w.says(stapled)
		refresh(0)
		w.says(w.embedding(w.CA.Issuer, w.CA.Root))
		refresh(2)
		refresh(0)
		require.Equal(t, 1, world.Count(w.Log.Kinds(), staple.EventStapled))
	})
}

// An untrimmed response in the cache counts, is stapled trimmed, and stays as it is.
func TestAnUntrimmedResponseInTheCacheCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTalker(t)
		cache := &listed{MemoryCache: staple.NewMemoryCache()}
		require.NoError(t, cache.MemoryCache.Put(t.Context(), world.CacheKey(w.leaf.Leaf), w.der))
		v := new(judge)
		c := w.Add(w.Stapler(func(s *staple.Stapler) { s.Verifier, s.Cache = v, cache }), w.leaf)
		for range 3 {
			synctest.Wait()
			require.Equal(t, w.trimmed, c.TLS().OCSPStaple)
			require.EqualValues(t, 2, v.calls.Load())
			require.Zero(t, cache.puts.Load())
			require.NoError(t, c.Refresh(world.Soon(t)))
		}
		require.Len(t, w.Responder.Requests(nil), 6, "with GET, and with POST as nothing newer came")

		// Nor is it rewritten by one who holds it trimmed already.
		other := &listed{MemoryCache: staple.NewMemoryCache()}
		c = w.Add(w.Stapler(func(s *staple.Stapler) { s.Cache = other }), w.leaf)
		synctest.Wait()
		require.NoError(t, other.MemoryCache.Put(t.Context(), world.CacheKey(w.leaf.Leaf), w.der))
		require.NoError(t, c.Refresh(world.Soon(t)))
		synctest.Wait()
		require.EqualValues(t, 1, other.puts.Load())
		require.Equal(t, w.trimmed, c.TLS().OCSPStaple)
	})
}

// Of another Verifier's result, Raw is stapled if that Verifier accepts it.
func TestTheRawOfAnotherVerifier(t *testing.T) {
	for name, tt := range map[string]struct {
		edit    func(came, trimmed []byte) func(der []byte, r *ocsp.Response) error
		trimmed bool
	}{
		"accepted": {func(_, _ []byte) func([]byte, *ocsp.Response) error { return nil }, true},
		"not set": {func(_, _ []byte) func([]byte, *ocsp.Response) error {
			return func(_ []byte, r *ocsp.Response) error { r.Raw = nil; return nil }
		}, false},
		"refused": {func(came, _ []byte) func([]byte, *ocsp.Response) error {
			return func(der []byte, _ *ocsp.Response) error {
				if !bytes.Equal(der, came) {
					return errors.New("not as it came")
				}
				return nil
			}
		}, false},
		"garbage": {func(_, _ []byte) func([]byte, *ocsp.Response) error {
			return func(_ []byte, r *ocsp.Response) error { r.Raw = []byte("garbage"); return nil }
		}, false},
		"with another status": {func(came, _ []byte) func([]byte, *ocsp.Response) error {
			return func(der []byte, r *ocsp.Response) error {
				if !bytes.Equal(der, came) {
					r.Status = ocsp.Revoked
				}
				return nil
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newTalker(t)
				c := w.Add(w.Stapler(func(s *staple.Stapler) { s.Verifier = &judge{edit: tt.edit(w.der, w.trimmed)} }), w.leaf)
				want := w.der
				if tt.trimmed {
					want = w.trimmed
				}
				require.Equal(t, want, c.TLS().OCSPStaple)
			})
		})
	}
}

// Of a Verifier, the result's memory is its own.
func TestAVerifierMayReuseItsMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTalker(t)
		buffer := make([]byte, len(w.der))
		c := w.Add(w.Stapler(func(s *staple.Stapler) {
			s.Verifier = &judge{edit: func(_ []byte, r *ocsp.Response) error {
				r.Raw = buffer[:copy(buffer, r.Raw)]
				return nil
			}}
		}), w.leaf)
		clear(buffer)
		require.Equal(t, w.trimmed, c.TLS().OCSPStaple)
	})
}

// der is an element of DER.
func der(tag byte, parts ...[]byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(asn1.Tag(tag), func(b *cryptobyte.Builder) { b.AddBytes(slices.Concat(parts...)) })
	return b.BytesOrPanic()
}

// inside is the content of an element.
func inside(element []byte) []byte {
	var content cryptobyte.String
	var tag asn1.Tag
	s := cryptobyte.String(element)
	s.ReadAnyASN1(&content, &tag)
	return content
}

// Whatever nobody signed, and makes clients refuse the whole, ends as the same good staple, also for who is stapled to.
func TestWhatNobodySignedIsTrimmedAway(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{KeyType: stapletest.RSA2048, Intermediate: true})
	leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
	d := ca.Delegate(stapletest.DelegateOptions{})
	for d.Certificate.Signature[0] >= 0x80 { // no bit to spare
		d = ca.Delegate(stapletest.DelegateOptions{})
	}
	own := d.Certificate.Raw
	garbage := der(0x30, []byte("garbage"))
	cut := der(0x30, inside(own)[:100])
	damaged := bytes.Clone(own)
	damaged[len(own)-1] ^= 1
	another := ca.Delegate(stapletest.DelegateOptions{}).Certificate.Raw
	bits := func(unused byte, signature []byte) []byte { return der(0x03, []byte{unused}, signature) }
	signature := bits(0, d.Certificate.Signature)
	body, ok := bytes.CutSuffix(inside(own), signature)
	require.True(t, ok)
	shifted := bytes.Clone(d.Certificate.Signature) // by one bit, which crypto/x509 undoes
	new(big.Int).Lsh(new(big.Int).SetBytes(shifted), 1).FillBytes(shifted)
	c, err := x509.ParseCertificate(der(0x30, body, bits(1, shifted)))
	require.NoError(t, err)
	require.NoError(t, c.CheckSignatureFrom(ca.Issuer))
	algorithm := bytes.LastIndex(body, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11})
	otherwise := bytes.Clone(body)
	otherwise[algorithm+8] = 12

	for _, byName := range []bool{false, true} {
		for _, by := range []*stapletest.Signer{ca.Signer(), d} {
			now := time.Now()
			r := stapletest.NewResponse(ca, leaf)
			r.Signer, r.ByName = by, byName
			good := r.DER()
			var tbs, sig []byte
			r.Tamper = func(name string, der []byte) []byte {
				switch name {
				case "tbsResponseData":
					tbs = der
				case "signature":
					sig = der
				}
				return der
			}
			good = r.DER()
			for _, test := range []struct {
				name      string
				delegated bool
				refused   bool
				certs     [][]byte
			}{
				{"garbage before it", false, false, [][]byte{garbage, own}},
				{"garbage behind it", false, false, [][]byte{own, garbage}},
				{"cut certificates around it", false, false, [][]byte{cut, own, cut}},
				{"more than eight before it", false, false, append(slices.Repeat([][]byte{ca.Root.Raw}, 9), own)},
				{"another delegate of the same name before it", false, false, [][]byte{another, own}},
				{"a damaged copy before it", false, false, [][]byte{damaged, own}},
				{"it comes twice", false, false, [][]byte{own, own}},
				{"bytes after its signature", false, false, [][]byte{der(0x30, inside(own), []byte{5, 0})}},
				{"garbage after its signature", false, false, [][]byte{der(0x30, inside(own), []byte("\xff\x00garbage"))}},
				{"its chain", false, false, [][]byte{own, ca.Issuer.Raw, ca.Root.Raw}},
				{"its signature laid out otherwise", true, true, [][]byte{der(0x30, body, bits(1, shifted))}},
				{"its outer algorithm is another", true, true, [][]byte{der(0x30, otherwise, signature)}},
				{"a damaged copy alone", true, true, [][]byte{damaged}},
			} {
				if test.delegated && by != d {
					continue
				}
				t.Run(fmt.Sprintf("%s, by name %v: %s", by.Certificate.Subject.CommonName, byName, test.name), func(t *testing.T) {
					r.Tamper = func(name string, was []byte) []byte {
						switch name {
						case "tbsResponseData":
							return tbs
						case "signature":
							return sig
						case "certs":
							return der(0xa0, der(0x30, test.certs...))
						}
						return was
					}
					state := tls.ConnectionState{OCSPResponse: r.DER(), PeerCertificates: []*x509.Certificate{leaf},
						VerifiedChains: [][]*x509.Certificate{{leaf, ca.Issuer, ca.Root}}}
					v := new(staple.ResponseVerifier)
					result, _, err := v.Verify(state.OCSPResponse, leaf, ca.Issuer, now)
					if test.refused {
						require.Error(t, err)
						require.Error(t, v.VerifyConnection(state))
						return
					}
					require.NoError(t, err)
					require.Equal(t, good, result.Raw)
					require.NoError(t, v.VerifyConnection(state))
				})
			}
		}
	}
}
