package signer

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-staple/staple/internal/ocspder"
	"github.com/go-staple/staple/internal/scene"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

// find reads what der says about s.Leaf, and looks for who signed it.
func find(s scene.Scene, f *Finder, der []byte, local ...*x509.Certificate) (*x509.Certificate, error) {
	match := ocspder.Match{Leaf: s.Leaf, Issuer: s.CA.Issuer}
	response, err := ocspder.Read(der, match.Add)
	if err == nil {
		err = match.Err()
	}
	if err != nil {
		return nil, err
	}
	by, err := f.Find(response, &match, local, s.Now)
	return by.Certificate, err
}

func refused(t *testing.T, kind Kind, err error) {
	t.Helper()
	var refusal *Error
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, kind, refusal.Kind, "%v", err)
}

// What the catalogs leave open, or are not about. A zero kind: accepted.
func TestDelegates(t *testing.T) {
	s := scene.New()
	delegate := func(edit func(*x509.Certificate)) *stapletest.Signer {
		return s.CA.Delegate(stapletest.DelegateOptions{Template: edit})
	}
	byDelegate := func(edit func(*x509.Certificate)) []byte {
		d := delegate(edit)
		return s.SignedBy(d, d.Certificate)
	}
	noCheck := func(critical bool) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: oidNoCheck, Critical: critical, Value: asn1.NullBytes}}
		}
	}
	for _, test := range []struct {
		name string
		der  []byte
		kind Kind
	}{
		{"a delegate without id-pkix-ocsp-nocheck is accepted", byDelegate(func(c *x509.Certificate) { c.ExtraExtensions = nil }), 0},
		{"a delegate with a critical id-pkix-ocsp-nocheck is accepted", byDelegate(noCheck(true)), 0},
		{"a delegate that is a CA is refused", byDelegate(func(c *x509.Certificate) { c.IsCA = true }), Unauthorized},
		{"a delegate for nonRepudiation alone is accepted",
			byDelegate(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageContentCommitment }), 0},
		{"a delegate for signing certificates alone is refused",
			byDelegate(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign }), Unauthorized},
		{"a delegate without key usage is accepted", byDelegate(func(c *x509.Certificate) { c.KeyUsage = 0 }), 0},
		{"a delegate in the name of the issuer is refused by name",
			s.Response(func(r *stapletest.Response) {
				r.Signer = delegate(func(c *x509.Certificate) { c.RawSubject = s.CA.Issuer.RawSubject })
				r.ByName = true
			}), BadSignature},
		{"a delegate in the name of the issuer is accepted by key",
			byDelegate(func(c *x509.Certificate) { c.RawSubject = s.CA.Issuer.RawSubject }), 0},
		{"a delegate with the issuer's own key and another name is accepted",
			s.Response(func(r *stapletest.Response) {
				r.Signer = s.CA.Delegate(stapletest.DelegateOptions{Key: s.CA.Key})
				r.ByName = true
			}), 0},
		{"a delegate that the issuer's key signed in another name is refused", s.Response(func(r *stapletest.Response) {
			renamed := &stapletest.CA{Issuer: &x509.Certificate{RawSubject: s.CA.Root.RawSubject}, Key: s.CA.Key}
			r.Signer = renamed.Delegate(stapletest.DelegateOptions{})
		}), Unauthorized},
		{"a delegate whose certificate is larger than 16 KiB is refused", byDelegate(func(c *x509.Certificate) {
			c.DNSNames = []string{strings.Repeat("a", 1<<14)}
		}), Unauthorized},
		{"an embedded certificate that does not parse is passed over", func() []byte {
			d := delegate(nil)
			return s.SignedBy(d, &x509.Certificate{Raw: []byte{0x30, 0}}, d.Certificate)
		}(), 0},
		{"another certificate for the issuer's key is accepted", s.SignedBy(s.CA.Signer(), func() *x509.Certificate {
			cross := stapletest.NewCA(stapletest.CAOptions{Name: "Another Root"})
			der, err := x509.CreateCertificate(rand.Reader, s.CA.Issuer, cross.Root, s.CA.Key.Public(), cross.Key)
			require.NoError(t, err)
			return &x509.Certificate{Raw: der}
		}()), 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := find(s, new(Finder), test.der)
			if test.kind == 0 {
				require.NoError(t, err)
				require.True(t, s.Now.Before(c.NotAfter))
				return
			}
			refused(t, test.kind, err)
		})
	}
}

func TestKeysThatAreRefused(t *testing.T) {
	s := scene.New()
	n := new(big.Int).Lsh(big.NewInt(1), 8192)
	huge := &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 65537}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	require.NoError(t, err)

	certificate := func(key crypto.PublicKey) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(2),
			Subject:      pkix.Name{CommonName: "responder"},
			NotBefore:    s.Now.Add(-time.Hour),
			NotAfter:     s.Now.Add(time.Hour),
			ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		}, s.CA.Issuer, key, s.CA.Key)
		require.NoError(t, err)
		c, err := x509.ParseCertificate(der)
		require.NoError(t, err)
		return c
	}
	t.Run("an RSA key of 8193 bits", func(t *testing.T) {
		_, err := find(s, new(Finder), s.Response(func(r *stapletest.Response) {
			key, err := rsa.GenerateKey(rand.Reader, 2048)
			require.NoError(t, err)
			r.Signer = &stapletest.Signer{Certificate: certificate(huge), Key: key}
		}))
		refused(t, UnsupportedAlgorithm, err)
		require.ErrorContains(t, err, "8193 bits")
	})
	t.Run("P-224", func(t *testing.T) {
		_, err := find(s, new(Finder), s.SignedBy(&stapletest.Signer{Certificate: certificate(p224.Public()), Key: p224}, certificate(p224.Public())))
		refused(t, UnsupportedAlgorithm, err)
		require.ErrorContains(t, err, "P-224")
	})
}

// Whoever can put certificates into a response must not be able to make it costly, nor to hide its
// signer among those that cannot be it.
func TestAtMostEightSignatureChecks(t *testing.T) {
	s := scene.New()
	key := s.CA.Delegate(stapletest.DelegateOptions{}).Key
	decoys := func(n int, noEKU bool) (all []*x509.Certificate) {
		for range n {
			all = append(all, s.CA.Delegate(stapletest.DelegateOptions{Key: key, NoEKU: noEKU}).Certificate)
		}
		return all
	}
	signer := s.CA.Delegate(stapletest.DelegateOptions{})
	by := func(certs ...*x509.Certificate) []byte {
		return s.Response(func(r *stapletest.Response) {
			r.Signer, r.ByName, r.Certificates = signer, true, certs
		})
	}
	t.Run("a hundred siblings of the signer's name cost nothing", func(t *testing.T) {
		_, err := find(s, new(Finder), by(append(decoys(100, true), signer.Certificate)...))
		require.NoError(t, err)
	})
	t.Run("the fourth delegate of one name is found", func(t *testing.T) {
		_, err := find(s, new(Finder), by(append(decoys(3, false), signer.Certificate)...))
		require.NoError(t, err)
	})
	t.Run("the fifth is not, for its signature would be the ninth", func(t *testing.T) {
		f := new(Finder)
		_, err := find(s, f, by(append(decoys(4, false), signer.Certificate)...))
		refused(t, BadSignature, err)
		require.Len(t, f.delegates, 4)
	})
	t.Run("no more than eight certificates are parsed", func(t *testing.T) {
		var all []*x509.Certificate
		for range 8 {
			all = append(all, s.CA.Delegate(stapletest.DelegateOptions{IsCA: true}).Certificate)
		}
		_, err := find(s, new(Finder), by(append(all[:7:7], signer.Certificate)...))
		require.NoError(t, err)
		_, err = find(s, new(Finder), by(append(all, signer.Certificate)...))
		refused(t, Unauthorized, err)
	})
	t.Run("certificates with other names and keys are not parsed", func(t *testing.T) {
		var all []*x509.Certificate
		for range 100 {
			all = append(all, s.CA.Delegate(stapletest.DelegateOptions{Key: key, CommonName: "another responder"}).Certificate)
		}
		for _, byName := range []bool{false, true} {
			_, err := find(s, new(Finder), s.Response(func(r *stapletest.Response) {
				r.Signer, r.ByName, r.Certificates = signer, byName, append(all, signer.Certificate)
			}))
			require.NoError(t, err)
		}
	})
}

// What is remembered saves work, and changes no verdict.
func TestVerdictsDoNotDependOnMemory(t *testing.T) {
	s := scene.New()
	key := s.CA.Delegate(stapletest.DelegateOptions{}).Key
	signer := s.CA.Delegate(stapletest.DelegateOptions{})
	twin := stapletest.NewCA(stapletest.CAOptions{})
	twin.Issuer = &x509.Certificate{RawSubject: s.CA.Issuer.RawSubject}
	decoys := map[string]func() *x509.Certificate{
		"rightful delegates":          func() *x509.Certificate { return s.CA.Delegate(stapletest.DelegateOptions{Key: key}).Certificate },
		"delegates without a purpose": func() *x509.Certificate { return s.CA.Delegate(stapletest.DelegateOptions{NoEKU: true}).Certificate },
		"delegates that are CAs":      func() *x509.Certificate { return s.CA.Delegate(stapletest.DelegateOptions{IsCA: true}).Certificate },
		"look-alikes":                 func() *x509.Certificate { return twin.Delegate(stapletest.DelegateOptions{}).Certificate },
		"delegates that are not valid yet": func() *x509.Certificate {
			return s.CA.Delegate(stapletest.DelegateOptions{NotBefore: s.Now.Add(scene.Day)}).Certificate
		},
	}
	for name, decoy := range decoys {
		t.Run(name, func(t *testing.T) {
			warm := new(Finder)
			_, err := find(s, warm, s.SignedBy(signer, signer.Certificate))
			require.NoError(t, err)
			var certs []*x509.Certificate
			for n := range 10 {
				der := s.Response(func(r *stapletest.Response) {
					r.Signer, r.ByName = signer, true
					r.Certificates = append(slices.Clone(certs), signer.Certificate)
				})
				_, fresh := find(s, new(Finder), der)
				for range 2 {
					_, err := find(s, warm, der)
					require.Equal(t, fresh, err, "with %d before the signer", n)
				}
				certs = append(certs, decoy())
			}
		})
	}
}

func TestDelegatesAreRemembered(t *testing.T) {
	s := scene.New()
	signer := s.CA.Delegate(stapletest.DelegateOptions{NotAfter: s.Now.Add(scene.Day)})
	der := s.SignedBy(signer, signer.Certificate)
	f := new(Finder)
	_, err := find(s, f, der)
	require.NoError(t, err)
	require.Len(t, f.delegates, 1)

	t.Run("each for its own issuer", func(t *testing.T) {
		twin := scene.New()
		d := twin.CA.Delegate(stapletest.DelegateOptions{})
		_, err := find(twin, f, der)
		require.Error(t, err)
		_, err = find(twin, f, twin.SignedBy(d, d.Certificate))
		require.NoError(t, err)
		require.Len(t, f.delegates, 2)
	})
	t.Run("not those that are refused", func(t *testing.T) {
		f := new(Finder)
		for _, c := range stapletest.Forgeries(s.CA, s.Leaf) {
			if !strings.Contains(c.Name, "delegate") {
				find(s, f, c.DER)
			}
		}
		for _, c := range f.delegates {
			require.Contains(t, c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning)
			require.NoError(t, c.CheckSignatureFrom(s.CA.Issuer))
		}
	})
	t.Run("in bounded memory", func(t *testing.T) {
		f := new(Finder)
		for i := range 2 * maxDelegates {
			f.remember([32]byte{byte(i), byte(i >> 8)}, signer.Certificate)
			require.LessOrEqual(t, len(f.delegates), maxDelegates)
		}
		require.NotEmpty(t, f.delegates)
	})
}

func TestADelegateWhoseKeyUsageAllowsNothingIsRefused(t *testing.T) {
	s := scene.Of(stapletest.NewCA(stapletest.CAOptions{}))
	d := s.CA.Delegate(stapletest.DelegateOptions{Template: func(c *x509.Certificate) {
		c.KeyUsage = 0
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: oidKeyUsage, Critical: true, Value: []byte{3, 1, 0}})
	}})
	_, err := find(s, new(Finder), s.Response(func(r *stapletest.Response) { r.Signer = d }))
	refused(t, Unauthorized, err)
}

func TestNilAmongLocalRespondersIsPassedOver(t *testing.T) {
	s := scene.New()
	local := stapletest.NewCA(stapletest.CAOptions{Name: "local"})
	c, err := find(s, new(Finder), s.SignedBy(local.Signer()), nil, local.Issuer)
	require.NoError(t, err)
	require.Same(t, local.Issuer, c)
}

// What a Finder makes of a response does not change when it is asked again, with other responses in between.
func TestCatalogs(t *testing.T) {
	reasons := scene.Reasons()
	kinds := map[string]Kind{
		"unauthorized signer": Unauthorized, "bad signature": BadSignature, "unsupported algorithm": UnsupportedAlgorithm,
	}
	for name, ca := range scene.Kinds() {
		t.Run(name, func(t *testing.T) {
			s, f := scene.Of(ca), new(Finder)
			forgeries, oddities := stapletest.Forgeries(s.CA, s.Leaf), stapletest.Oddities(s.CA, s.Leaf)
			for range 2 {
				for _, c := range forgeries {
					if kind := kinds[reasons[c.Name]]; kind != 0 {
						_, err := find(s, f, c.DER)
						if unread, ok := errors.AsType[*ocspder.Error](err); ok {
							require.Equal(t, ocspder.UnsupportedAlgorithm, unread.Kind, c.Name)
						} else {
							refused(t, kind, err)
						}
					}
				}
				for _, c := range oddities {
					_, err := find(s, f, c.DER)
					require.NoError(t, err, c.Name)
				}
			}
		})
	}
}

// A wrapped error is one of crypto/x509's.
func TestErrorsWrap(t *testing.T) {
	s := scene.New()
	_, err := find(s, new(Finder), s.Tamper("signature", func(der []byte) []byte {
		der[len(der)-1] ^= 1
		return der
	}))
	refused(t, BadSignature, err)
	require.ErrorContains(t, err, errors.Unwrap(err).Error())
}

func delegateOf(t *testing.T, ca *stapletest.CA, edit func(*x509.Certificate)) *stapletest.Signer {
	t.Helper()
	return ca.Delegate(stapletest.DelegateOptions{Template: edit})
}

// A CA among the local responders vouches for its delegates, by the rules for an issuer's.
func TestALocalCAVouchesForItsDelegates(t *testing.T) {
	s := scene.New()
	local := stapletest.NewCA(stapletest.CAOptions{Name: "local"})
	twin := stapletest.NewCA(stapletest.CAOptions{Name: "local"})
	namesake := stapletest.NewCA(stapletest.CAOptions{Name: s.CA.Issuer.Subject.CommonName})
	ended := reissued(t, local, func(c *x509.Certificate) { c.NotAfter = s.Now.Add(-time.Hour) })
	future := reissued(t, local, func(c *x509.Certificate) { c.NotBefore = s.Now.Add(time.Hour) })
	early := reissued(t, local, func(c *x509.Certificate) { c.NotAfter = s.Now.Add(time.Hour) })
	noCA := reissued(t, local, func(c *x509.Certificate) { c.IsCA = false })
	for _, test := range []struct {
		name   string
		signer *stapletest.Signer
		local  []*x509.Certificate
		kind   Kind
	}{
		{"a delegate", delegateOf(t, local, nil), []*x509.Certificate{local.Issuer}, 0},
		{"a delegate of the second of one name", delegateOf(t, local, nil), []*x509.Certificate{nil, twin.Issuer, local.Issuer}, 0},
		{"a delegate of a namesake of the issuer", delegateOf(t, namesake, nil), []*x509.Certificate{namesake.Issuer}, 0},
		{"a delegate of the issuer beside a local namesake", delegateOf(t, s.CA, nil), []*x509.Certificate{namesake.Issuer}, 0},
		{"a delegate of another", delegateOf(t, twin, nil), []*x509.Certificate{local.Issuer}, Unauthorized},
		{"nobody is local", delegateOf(t, local, nil), nil, Unauthorized},
		{"a delegate without a purpose", delegateOf(t, local, func(c *x509.Certificate) { c.ExtKeyUsage = nil }),
			[]*x509.Certificate{local.Issuer}, Unauthorized},
		{"a delegate that is a CA", delegateOf(t, local, func(c *x509.Certificate) { c.IsCA = true }),
			[]*x509.Certificate{local.Issuer}, Unauthorized},
		{"a delegate of one that is no CA", delegateOf(t, local, nil), []*x509.Certificate{noCA}, Unauthorized},
		{"a delegate of a CA that is not valid yet", delegateOf(t, local, nil), []*x509.Certificate{future}, NotYetValid},
	} {
		t.Run(test.name, func(t *testing.T) {
			der := s.SignedBy(test.signer, test.signer.Certificate)
			f := new(Finder)
			for range 2 {
				c, err := find(s, f, der, test.local...)
				if test.kind == 0 {
					require.NoError(t, err)
					require.Equal(t, test.signer.Certificate.Raw, c.Raw)
				} else {
					refused(t, test.kind, err)
				}
			}
		})
	}
	t.Run("no longer than it is valid itself", func(t *testing.T) {
		for _, ca := range []*x509.Certificate{early, ended} {
			d := delegateOf(t, local, nil)
			match := ocspder.Match{Leaf: s.Leaf, Issuer: s.CA.Issuer}
			response, err := ocspder.Read(s.SignedBy(d, d.Certificate), match.Add)
			require.NoError(t, err)
			by, err := new(Finder).Find(response, &match, []*x509.Certificate{ca}, s.Now)
			require.NoError(t, err)
			require.Equal(t, ca.NotAfter, by.NotAfter)
		}
	})
}

// reissued is ca's certificate, issued anew for the same key.
func reissued(t *testing.T, ca *stapletest.CA, edit func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := *ca.Issuer
	edit(&template)
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, ca.Key.Public(), ca.Key)
	require.NoError(t, err)
	c, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return c
}

func TestErrorsAreTelling(t *testing.T) {
	s := scene.New()
	reencoded := s.CA.Issuer.RawSubject
	require.Contains(t, string(reencoded), "\x13\rstapletest CA", "a PrintableString")
	reencoded = bytes.Replace(reencoded, []byte("\x13\r"), []byte("\x0c\r"), 1)
	utf8 := (&stapletest.CA{Issuer: &x509.Certificate{RawSubject: reencoded}, Key: s.CA.Key}).Delegate(stapletest.DelegateOptions{})
	namesake := delegateOf(t, s.CA, func(c *x509.Certificate) { c.RawSubject = s.CA.Issuer.RawSubject })
	for _, test := range []struct {
		name, want string
		der        []byte
	}{
		{"an issuer's name in another encoding", "in another encoding than the issuer", s.SignedBy(utf8, utf8.Certificate)},
		{"the responderID alone is wrong", "its responderID names the holder of a key with hash ", s.Response(func(r *stapletest.Response) {
			r.ResponderID = s.Leaf
		})},
		{"the issuer's own name", "; an embedded certificate that bears the issuer's own name is not looked at, since clients do not either",
			s.Response(func(r *stapletest.Response) { r.Signer, r.ByName = namesake, true })},
		{"SHA-1", "its signature is not checked with the key of ", s.Response(func(r *stapletest.Response) {
			r.SignatureAlgorithm = x509.ECDSAWithSHA1
		})},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := find(s, new(Finder), test.der)
			require.ErrorContains(t, err, test.want)
		})
	}
}
