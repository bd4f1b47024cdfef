package staple

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
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

const day = 24 * time.Hour

// refused checks that err refuses a response about leaf for reason.
func refused(t *testing.T, reason Reason, leaf *x509.Certificate, r *ocsp.Response, end time.Time, err error) {
	t.Helper()
	var refusal *VerifyError
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, reason, refusal.Reason, "%v", err)
	require.Same(t, leaf, refusal.Leaf)
	require.Nil(t, r)
	require.Zero(t, end)
	require.Less(t, len(err.Error()), 1000)
	require.False(t, strings.ContainsFunc(err.Error(), unicode.IsControl), "%q", err)
}

// kinds are CAs of each kind of key, with and without an intermediate.
func kinds() map[string]*stapletest.CA {
	all := map[string]*stapletest.CA{}
	for _, k := range []stapletest.KeyType{
		stapletest.ECDSAP256, stapletest.ECDSAP384, stapletest.ECDSAP521, stapletest.RSA2048, stapletest.Ed25519,
	} {
		all[k.String()] = stapletest.NewCA(stapletest.CAOptions{KeyType: k})
	}
	all["ECDSAP256 intermediate"] = stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
	all["RSA2048 intermediate"] = stapletest.NewCA(stapletest.CAOptions{KeyType: stapletest.RSA2048, Intermediate: true})
	return all
}

// forgeryReasons has the reason for each of stapletest.Forgeries that is not ReasonMalformed.
var forgeryReasons = map[Reason][]string{
	ReasonUnsuccessful: {
		"error malformed", "error internal error", "error try later", "error signature required", "error unauthorized",
	},
	ReasonBadSignature: {
		"signed by a sibling leaf in the name of the issuer",
		"signed by a sibling leaf beside a delegate's certificate",
		"signed by a stranger beside a delegate's certificate",
		"signed by a stranger beside the issuer's certificate",
		"another CA of the same name, by name",
		"responderID of a delegate, signed by the issuer by key",
		"responderID of a delegate, signed by the issuer by name",
		"responderID of the issuer, signed by a delegate by key",
		"responderID of the issuer, signed by a delegate by name",
		"an RSA signature said to be with SHA-384",
		"an RSA signature said to be PSS",
		"an RSA signature said to be ECDSA",
		"an ECDSA signature said to be RSA",
		"an ECDSA signature said to be Ed25519",
		"an ECDSA signature said to be with SHA-384",
		"a signature that was altered",
		"a signature that is cut off",
		"a signature with a trailing byte",
		"a signature that is empty",
		"a signature of zeros",
		"an ECDSA signature of r = s = 0",
		"the signature of another response",
		"revoked turned into good after it was signed",
	},
	ReasonUnauthorizedSigner: {
		"signed by a sibling leaf",
		"a delegate without extended key usage",
		"a delegate with anyExtendedKeyUsage alone",
		"a delegate for servers",
		"a delegate whose key usage lacks digitalSignature",
		"a delegate with an unknown critical extension",
		"a delegate of another CA",
		"a delegate of another CA of the same name",
		"a delegate of another CA of the same name, which is embedded",
		"another CA",
		"another CA of the same name",
		"another CA of the same name, not embedded",
		"a look-alike of the issuer, signed by itself",
		"a look-alike of a delegate, signed by itself",
		"a look-alike of a delegate, beside the genuine one",
		"a grandchild delegate",
		"a delegate of a delegate",
		"the root instead of the intermediate",
		"a delegate of the root",
		"a delegate that is not embedded",
		"a delegate whose certificate was altered",
		"responderID of another CA by key",
		"responderID of another CA by name",
		"responderID with an empty name",
	},
	ReasonWrongCertificate: {
		"another serial number",
		"the serial number negated",
		"a serial number that is longer by a byte",
		"a huge serial number",
		"serial number zero",
		"issuerNameHash of another CA with SHA-1",
		"issuerNameHash of another CA with SHA-256",
		"issuerKeyHash of another CA with SHA-1",
		"issuerKeyHash of another CA with SHA-256",
		"another CA's CertID with the right serial number with SHA-1",
		"another CA's CertID with the right serial number with SHA-256",
		"the CertID of another CA of the same name",
		"SHA-1 hashes said to be SHA-256",
		"empty hashes",
		"hashes that are cut off",
		"no single response",
		"single responses about others alone",
	},
	ReasonNotYetValid: {
		"a delegate that is not valid yet",
		"thisUpdate in an hour",
		"thisUpdate in a year",
		"nextUpdate before a thisUpdate in the future",
		"producedAt in an hour",
	},
	ReasonExpired: {
		"a delegate that has expired",
		"a delegate that expired after it signed",
		"nextUpdate a minute ago",
		"nextUpdate a year ago",
		"no nextUpdate and thisUpdate a month ago",
	},
	ReasonUnsupportedAlgorithm: {
		"a delegate whose certificate is signed with SHA-1",
		"a CertID with MD5",
		"an unknown hash algorithm",
		"an RSA signature with SHA-1",
		"an RSA signature with MD5",
		"an ECDSA signature with SHA-1",
		"the issuer's signature with SHA-1",
		"a PSS signature with the default parameters, SHA-1",
		"a PSS signature with MGF1 over another hash",
		"a PSS signature with another salt length",
		"an unknown signature algorithm",
	},
}

func TestEveryForgeryIsRefused(t *testing.T) {
	reasons := map[string]Reason{}
	for reason, names := range forgeryReasons {
		for _, name := range names {
			reasons[name] = reason
		}
	}
	seen := map[string]bool{}
	for kind, ca := range kinds() {
		t.Run(kind, func(t *testing.T) {
			leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
			cases, good := stapletest.Forgeries(ca, leaf), stapletest.Oddities(ca, leaf)
			require.NotEmpty(t, cases)
			v := new(ResponseVerifier)
			// Twice, with the good ones in between: what is remembered makes nobody accepted.
			for range 2 {
				for _, c := range cases {
					reason, ok := reasons[c.Name]
					if !ok {
						reason = ReasonMalformed
					}
					seen[c.Name] = true
					t.Run(c.Name, func(t *testing.T) {
						r, end, err := v.Verify(c.DER, leaf, ca.Issuer, time.Now())
						refused(t, reason, leaf, r, end, err)
					})
				}
				for _, c := range good {
					_, _, err := v.Verify(c.DER, leaf, ca.Issuer, time.Now())
					require.NoError(t, err)
				}
			}
		})
	}
	for name := range reasons {
		require.True(t, seen[name], "%q is no forgery", name)
	}
}

func TestEveryOddityIsAccepted(t *testing.T) {
	for kind, ca := range kinds() {
		t.Run(kind, func(t *testing.T) {
			leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
			cases := stapletest.Oddities(ca, leaf)
			require.NotEmpty(t, cases)
			for _, c := range cases {
				t.Run(c.Name, func(t *testing.T) {
					now := time.Now()
					r, end, err := new(ResponseVerifier).Verify(c.DER, leaf, ca.Issuer, now)
					require.NoError(t, err, c.Why)
					require.Equal(t, c.Status, r.Status)
					require.Equal(t, leaf.SerialNumber, r.SerialNumber)
					require.True(t, end.After(now))
				})
			}
		})
	}
}

// Its singleExtensions are an empty list.
func TestVaultsResponsesAreAccepted(t *testing.T) {
	text, err := os.ReadFile("testdata/vault.pem")
	require.NoError(t, err)
	var blocks [][]byte
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		blocks = append(blocks, block.Bytes)
	}
	require.Len(t, blocks, 6)
	for b := range slices.Chunk(blocks, 3) {
		issuer, err := x509.ParseCertificate(b[0])
		require.NoError(t, err)
		leaf, err := x509.ParseCertificate(b[1])
		require.NoError(t, err)
		require.True(t, bytes.Contains(b[2], []byte{0xa1, 2, 0x30, 0}))
		r, _, err := new(ResponseVerifier).Verify(b[2], leaf, issuer, leaf.NotBefore.Add(time.Minute))
		require.NoError(t, err)
		require.Equal(t, ocsp.Good, r.Status)
	}
}

// A scene is a CA, a leaf of it, and a time.
type scene struct {
	ca   *stapletest.CA
	leaf *x509.Certificate
	now  time.Time
}

func newScene() scene {
	ca := stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
	return scene{ca: ca, leaf: ca.Leaf(stapletest.LeafOptions{}).Leaf, now: time.Now().Truncate(time.Second)}
}

// response is a good one that ca signed, after edit.
func (s scene) response(edit func(r *stapletest.Response)) []byte {
	r := stapletest.NewResponse(s.ca, s.leaf)
	if edit != nil {
		edit(r)
	}
	return r.DER()
}

// signedBy is a good response by signer, who embeds certs.
func (s scene) signedBy(signer *stapletest.Signer, certs ...*x509.Certificate) []byte {
	return s.response(func(r *stapletest.Response) {
		r.Signer = signer
		r.Certificates = append([]*x509.Certificate{}, certs...)
	})
}

// tamper replaces an element of a good response, or of its single.
func (s scene) tamper(name string, replace func(der []byte) []byte) []byte {
	return s.response(func(r *stapletest.Response) {
		tamper := func(element string, der []byte) []byte {
			if element == name {
				return replace(der)
			}
			return der
		}
		r.Tamper, r.Singles[0].Tamper = tamper, tamper
	})
}

// element replaces an element by der.
func (s scene) element(name string, der ...byte) []byte {
	return s.tamper(name, func([]byte) []byte { return der })
}

func (s scene) verify(v *ResponseVerifier, der []byte) (*ocsp.Response, time.Time, error) {
	return v.Verify(der, s.leaf, s.ca.Issuer, s.now)
}

func extensionOf(critical bool, arcs ...int) pkix.Extension {
	return pkix.Extension{Id: arcs, Critical: critical, Value: asn1.NullBytes}
}

var sctList = []int{1, 3, 6, 1, 4, 1, 11129, 2, 4, 5}

// What the catalogs leave open, or are not about. A zero reason: accepted.
func TestVerify(t *testing.T) {
	s := newScene()
	delegate := func(edit func(*x509.Certificate)) *stapletest.Signer {
		return s.ca.Delegate(stapletest.DelegateOptions{Template: edit})
	}
	byDelegate := func(edit func(*x509.Certificate)) []byte {
		d := delegate(edit)
		return s.signedBy(d, d.Certificate)
	}
	singles := func(edit func(own stapletest.Single) []stapletest.Single) []byte {
		return s.response(func(r *stapletest.Response) { r.Singles = edit(r.Singles[0]) })
	}
	noCheck := func(critical bool) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: oidNoCheck, Critical: critical, Value: asn1.NullBytes}}
		}
	}
	oneExtension := func(fields ...[]byte) []byte {
		return s.element("singleExtensions", tlv(0xa1, tlv(0x30, tlv(0x30, fields...)))...)
	}
	producedAt := func(text string) []byte { return s.element("producedAt", tlv(0x18, []byte(text))...) }
	revoked := func(reason ...byte) []byte {
		return s.element("certStatus", tlv(0xa1, tlv(0x18, []byte("20240229120000Z")), tlv(0xa0, reason))...)
	}
	unknownHash := stapletest.NewResponse(s.ca, s.leaf)
	unknownHash.Singles[0].Hash = crypto.SHA512
	unknownHash.Singles[0].Tamper = func(element string, der []byte) []byte {
		if element == "hashAlgorithm" {
			return tlv(0x30, tlv(6, []byte{42}))
		}
		return der
	}
	for _, test := range []struct {
		name   string
		der    []byte
		reason Reason
	}{
		{"bytes after the response in responseBytes are refused",
			s.tamper("response", func(der []byte) []byte { return append(der, derNULL...) }), ReasonMalformed},
		{"bytes after the name in responderID are refused",
			s.element("responderID", tlv(0xa1, s.ca.Issuer.RawSubject, derNULL)...), ReasonMalformed},
		{"bytes after the version are refused", s.element("version", 0xa0, 5, 2, 1, 0, 5, 0), ReasonMalformed},
		{"an unknown hash of SHA-512's length is refused", unknownHash.DER(), ReasonUnsupportedAlgorithm},
		{"a single with an unknown hash beside ours makes no difference", singles(func(own stapletest.Single) []stapletest.Single {
			return []stapletest.Single{unknownHash.Singles[0], own}
		}), 0},

		{"v1 spelled out is accepted", s.element("version", 0xa0, 3, 2, 1, 0), 0},
		{"v2 is refused", s.element("version", 0xa0, 3, 2, 1, 1), ReasonMalformed},
		{"v1 that is not minimal is refused", s.element("version", 0xa0, 4, 2, 2, 0, 0), ReasonMalformed},

		{"a critical list of timestamps in the single is accepted", s.response(func(r *stapletest.Response) {
			r.Singles[0].Extensions = []pkix.Extension{extensionOf(true, sctList...)}
		}), 0},
		{"a critical list of timestamps elsewhere is refused", s.response(func(r *stapletest.Response) {
			r.Extensions = []pkix.Extension{extensionOf(true, sctList...)}
		}), ReasonMalformed},
		{"an unknown critical extension of another single is refused", singles(func(own stapletest.Single) []stapletest.Single {
			other := own
			other.Serial = big.NewInt(1)
			other.Extensions = []pkix.Extension{extensionOf(true, 1, 2, 3)}
			return []stapletest.Single{own, other}
		}), ReasonMalformed},
		{"sixteen extensions are accepted", s.response(func(r *stapletest.Response) {
			for i := range 16 {
				r.Extensions = append(r.Extensions, extensionOf(false, 1, 2, 3, i))
			}
		}), 0},
		{"seventeen extensions are refused", s.response(func(r *stapletest.Response) {
			for i := range 17 {
				r.Extensions = append(r.Extensions, extensionOf(false, 1, 2, 3, i))
			}
		}), ReasonMalformed},
		{"an empty list of extensions is accepted", s.element("responseExtensions", tlv(0xa1, tlv(0x30))...), 0},
		{"critical FALSE spelled out is refused", oneExtension(tlv(6, []byte{42}), []byte{1, 1, 0}, tlv(4)), ReasonMalformed},
		{"critical left out is accepted", oneExtension(tlv(6, []byte{42}), tlv(4)), 0},
		{"an OID with a huge arc is accepted", oneExtension(tlv(6, []byte{42, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}), tlv(4)), 0},
		{"an OID that is not minimal is refused", oneExtension(tlv(6, []byte{42, 0x80, 1}), tlv(4)), ReasonMalformed},
		{"an OID that is cut off is refused", oneExtension(tlv(6, []byte{42, 0x81}), tlv(4)), ReasonMalformed},
		{"an empty OID is refused", oneExtension(tlv(6), tlv(4)), ReasonMalformed},

		{"February 29 of no leap year is refused", producedAt("20250229120000Z"), ReasonMalformed},
		{"February 29 of a leap year is accepted", producedAt("20240229120000Z"), 0},
		{"day 0 is refused", producedAt("20240200120000Z"), ReasonMalformed},
		{"month 0 is refused", producedAt("20240001120000Z"), ReasonMalformed},
		{"hour 24 is refused", producedAt("20240215240000Z"), ReasonMalformed},
		{"minute 60 is refused", producedAt("20240229126000Z"), ReasonMalformed},
		{"second 60 is refused", producedAt("20240229120060Z"), ReasonMalformed},
		{"a sign in the year is refused", producedAt("+0240229120000Z"), ReasonMalformed},

		{"revoked for a reason that is not defined is accepted", revoked(10, 1, 7), 0},
		{"a reason that is not minimal is refused", revoked(10, 2, 0, 1), ReasonMalformed},

		{"an ECDSA signature with NULL parameters is refused", s.element("signatureAlgorithm",
			0x30, 12, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2, 5, 0), ReasonMalformed},

		{"a delegate without id-pkix-ocsp-nocheck is accepted", byDelegate(func(c *x509.Certificate) { c.ExtraExtensions = nil }), 0},
		{"a delegate with a critical id-pkix-ocsp-nocheck is accepted", byDelegate(noCheck(true)), 0},
		{"a delegate that is a CA is refused", byDelegate(func(c *x509.Certificate) { c.IsCA = true }), ReasonUnauthorizedSigner},
		{"a delegate for nonRepudiation alone is accepted",
			byDelegate(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageContentCommitment }), 0},
		{"a delegate for signing certificates alone is refused",
			byDelegate(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign }), ReasonUnauthorizedSigner},
		{"a delegate without key usage is accepted", byDelegate(func(c *x509.Certificate) { c.KeyUsage = 0 }), 0},
		{"a delegate in the name of the issuer is accepted",
			s.response(func(r *stapletest.Response) {
				r.Signer = delegate(func(c *x509.Certificate) { c.RawSubject = s.ca.Issuer.RawSubject })
				r.ByName = true
			}), 0},
		{"a delegate with the issuer's own key and another name is accepted",
			s.response(func(r *stapletest.Response) {
				r.Signer = s.ca.Delegate(stapletest.DelegateOptions{Key: s.ca.Key})
				r.ByName = true
			}), 0},
		{"a delegate that the issuer's key signed in another name is refused", s.response(func(r *stapletest.Response) {
			renamed := &stapletest.CA{Issuer: &x509.Certificate{RawSubject: s.ca.Root.RawSubject}, Key: s.ca.Key}
			r.Signer = renamed.Delegate(stapletest.DelegateOptions{})
		}), ReasonUnauthorizedSigner},
		{"a delegate whose certificate is larger than 16 KiB is refused", byDelegate(func(c *x509.Certificate) {
			c.DNSNames = []string{strings.Repeat("a", 1<<14)}
		}), ReasonUnauthorizedSigner},
		{"an embedded certificate that does not parse is passed over", func() []byte {
			d := delegate(nil)
			return s.signedBy(d, &x509.Certificate{Raw: []byte{0x30, 0}}, d.Certificate)
		}(), 0},
		{"an empty list of certificates is accepted", s.element("certs", 0xa0, 2, 0x30, 0), 0},
		{"another certificate for the issuer's key is accepted", s.signedBy(s.ca.Signer(), func() *x509.Certificate {
			cross := stapletest.NewCA(stapletest.CAOptions{Name: "Another Root"})
			der, err := x509.CreateCertificate(rand.Reader, s.ca.Issuer, cross.Root, s.ca.Key.Public(), cross.Key)
			require.NoError(t, err)
			return &x509.Certificate{Raw: der}
		}()), 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, end, err := s.verify(new(ResponseVerifier), test.der)
			if test.reason == 0 {
				require.NoError(t, err)
				require.True(t, end.After(s.now))
				return
			}
			refused(t, test.reason, s.leaf, r, end, err)
		})
	}
}

func TestStatementsThatDisagreeAreNeverGood(t *testing.T) {
	s := newScene()
	type statement struct {
		status int
		age    time.Duration
	}
	statuses := map[int]string{ocsp.Good: "good", ocsp.Revoked: "revoked", ocsp.Unknown: "unknown"}
	for _, test := range []struct {
		want statement
		all  []statement
	}{
		{statement{ocsp.Revoked, 2 * day}, []statement{{ocsp.Good, day}, {ocsp.Revoked, 2 * day}}},
		{statement{ocsp.Revoked, 2 * day}, []statement{{ocsp.Revoked, 2 * day}, {ocsp.Good, day}}},
		{statement{ocsp.Revoked, 2 * day}, []statement{{ocsp.Unknown, day}, {ocsp.Revoked, 2 * day}, {ocsp.Good, day}}},
		{statement{ocsp.Unknown, 2 * day}, []statement{{ocsp.Good, day}, {ocsp.Unknown, 2 * day}}},
		{statement{ocsp.Unknown, 2 * day}, []statement{{ocsp.Unknown, 2 * day}, {ocsp.Good, day}}},
		{statement{ocsp.Good, day}, []statement{{ocsp.Good, 2 * day}, {ocsp.Good, day}, {ocsp.Good, 3 * day}}},
		{statement{ocsp.Revoked, day}, []statement{{ocsp.Revoked, 2 * day}, {ocsp.Revoked, day}}},
	} {
		var name strings.Builder
		for _, one := range test.all {
			fmt.Fprintf(&name, "%s %v old, ", statuses[one.status], one.age)
		}
		t.Run(name.String()+"is "+statuses[test.want.status], func(t *testing.T) {
			r, _, err := s.verify(new(ResponseVerifier), s.response(func(r *stapletest.Response) {
				own := r.Singles[0]
				r.Singles = nil
				for i, one := range test.all {
					own.Status, own.RevokedAt = one.status, s.now
					own.ThisUpdate = s.now.Add(-one.age)
					own.Hash = []crypto.Hash{crypto.SHA1, crypto.SHA256}[i%2]
					r.Singles = append(r.Singles, own)
				}
			}))
			require.NoError(t, err)
			require.Equal(t, test.want.status, r.Status)
			require.Equal(t, s.now.Add(-test.want.age).UTC(), r.ThisUpdate)
		})
	}
	t.Run("of two with one thisUpdate the later nextUpdate counts", func(t *testing.T) {
		for _, order := range [][2]time.Duration{{day, 2 * day}, {2 * day, day}} {
			_, end, err := s.verify(new(ResponseVerifier), s.response(func(r *stapletest.Response) {
				own := r.Singles[0]
				own.NextUpdate = s.now.Add(order[0])
				r.Singles[0].NextUpdate = s.now.Add(order[1])
				r.Singles = append(r.Singles, own)
			}))
			require.NoError(t, err)
			require.Equal(t, s.now.Add(2*day).UTC(), end)
		}
	})
	t.Run("a revocation that has expired is still no good", func(t *testing.T) {
		r, end, err := s.verify(new(ResponseVerifier), s.response(func(r *stapletest.Response) {
			revoked := r.Singles[0]
			revoked.Status, revoked.RevokedAt = ocsp.Revoked, s.now
			revoked.ThisUpdate, revoked.NextUpdate = s.now.Add(-9*day), s.now.Add(-2*day)
			r.Singles = append(r.Singles, revoked)
		}))
		refused(t, ReasonExpired, s.leaf, r, end, err)
	})
}

func TestTimes(t *testing.T) {
	s := newScene()
	const second = time.Second
	zero := time.Duration(0)
	for _, test := range []struct {
		name             string
		v                *ResponseVerifier
		produced, this   time.Duration  // from now
		next             *time.Duration // nil: none
		end              time.Duration
		reason           Reason
		delegateNotAfter *time.Duration
	}{
		{"nextUpdate is the end", &ResponseVerifier{}, -day, -day, new(second), second, 0, nil},
		{"nextUpdate now is past", &ResponseVerifier{}, -day, -day, &zero, 0, ReasonExpired, nil},
		{"ClockSkew does not stretch nextUpdate", &ResponseVerifier{ClockSkew: time.Hour}, -day, -day, new(-second), 0, ReasonExpired, nil},
		{"thisUpdate at the edge of the skew is accepted", &ResponseVerifier{}, 0, 5 * time.Minute, new(day), day, 0, nil},
		{"thisUpdate beyond the skew is refused", &ResponseVerifier{}, 0, 5*time.Minute + second, new(day), 0, ReasonNotYetValid, nil},
		{"producedAt at the edge of the skew is accepted", &ResponseVerifier{}, 5 * time.Minute, 0, new(day), day, 0, nil},
		{"producedAt beyond the skew is refused", &ResponseVerifier{}, 5*time.Minute + second, 0, new(day), 0, ReasonNotYetValid, nil},
		{"ClockSkew widens", &ResponseVerifier{ClockSkew: time.Hour}, time.Hour, time.Hour, new(day), day, 0, nil},
		{"ClockSkew narrows", &ResponseVerifier{ClockSkew: second}, 0, 2 * second, new(day), 0, ReasonNotYetValid, nil},
		{"a negative ClockSkew tolerates nothing", &ResponseVerifier{ClockSkew: -day}, 0, second, new(day), 0, ReasonNotYetValid, nil},
		{"a negative ClockSkew takes nothing away", &ResponseVerifier{ClockSkew: -day}, 0, 0, new(day), day, 0, nil},
		{"nextUpdate before thisUpdate is refused", &ResponseVerifier{}, 0, 2 * second, new(second), 0, ReasonMalformed, nil},
		{"nextUpdate at thisUpdate is accepted until then", &ResponseVerifier{}, 0, second, new(second), second, 0, nil},
		{"without nextUpdate it counts for a day", &ResponseVerifier{}, 0, -day + second, nil, second, 0, nil},
		{"without nextUpdate it ends after a day", &ResponseVerifier{}, 0, -day, nil, 0, ReasonExpired, nil},
		{"MaxAge is that time", &ResponseVerifier{MaxAge: time.Hour}, 0, -time.Hour + second, nil, second, 0, nil},
		{"MaxAge ends it", &ResponseVerifier{MaxAge: time.Hour}, 0, -time.Hour, nil, 0, ReasonExpired, nil},
		{"MaxAge makes no difference to nextUpdate", &ResponseVerifier{MaxAge: time.Hour}, 0, -30 * day, new(day), day, 0, nil},
		{"a negative MaxAge refuses it", &ResponseVerifier{MaxAge: -1}, 0, 0, nil, 0, ReasonMalformed, nil},
		{"a negative MaxAge is about nextUpdate alone", &ResponseVerifier{MaxAge: -1}, 0, 0, new(day), day, 0, nil},
		{"a delegate's NotAfter before nextUpdate is the end", &ResponseVerifier{}, 0, 0, new(2 * day), day, 0, new(day)},
		{"nextUpdate before a delegate's NotAfter is the end", &ResponseVerifier{}, 0, 0, new(day), day, 0, new(2 * day)},
		{"a delegate's NotAfter caps MaxAge as well", &ResponseVerifier{}, 0, 0, nil, time.Hour, 0, new(time.Hour)},
		{"a delegate's NotAfter now is past", &ResponseVerifier{}, -day, -day, new(day), 0, ReasonExpired, &zero},
	} {
		t.Run(test.name, func(t *testing.T) {
			der := s.response(func(r *stapletest.Response) {
				r.ProducedAt = s.now.Add(test.produced)
				r.Singles[0].ThisUpdate = s.now.Add(test.this)
				r.Singles[0].NextUpdate = time.Time{}
				if test.next != nil {
					r.Singles[0].NextUpdate = s.now.Add(*test.next)
				}
				if test.delegateNotAfter != nil {
					r.Signer = s.ca.Delegate(stapletest.DelegateOptions{
						NotBefore: s.now.Add(-10 * day), NotAfter: s.now.Add(*test.delegateNotAfter),
					})
				}
			})
			r, end, err := s.verify(test.v, der)
			if test.reason != 0 {
				refused(t, test.reason, s.leaf, r, end, err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, s.now.Add(test.end).UTC(), end)
			require.Equal(t, end, end.Round(0), "no monotonic reading")

			// It holds for all clocks, to the last second.
			_, _, err = test.v.Verify(der, s.leaf, s.ca.Issuer, end.Add(-1).In(time.FixedZone("", 3600)))
			require.NoError(t, err)
			_, _, err = test.v.Verify(der, s.leaf, s.ca.Issuer, end)
			require.ErrorContains(t, err, "and the clock says")
		})
	}
}

func TestTheIssuersOwnEndDoesNotCount(t *testing.T) {
	s := scene{now: time.Now().Truncate(time.Second)}
	s.ca = stapletest.NewCA(stapletest.CAOptions{NotAfter: s.now.Add(time.Hour)})
	s.leaf = s.ca.Leaf(stapletest.LeafOptions{}).Leaf
	der := s.response(func(r *stapletest.Response) { r.Singles[0].NextUpdate = s.now.Add(day) })
	_, end, err := s.verify(new(ResponseVerifier), der)
	require.NoError(t, err)
	require.Equal(t, s.now.Add(day).UTC(), end)
}

// Of an issuer, only its names and keys are needed.
func TestAnIssuerWithoutACertificate(t *testing.T) {
	s := newScene()
	issuer := &x509.Certificate{
		RawSubject:              s.ca.Issuer.RawSubject,
		RawSubjectPublicKeyInfo: s.ca.Issuer.RawSubjectPublicKeyInfo,
		PublicKey:               s.ca.Issuer.PublicKey,
	}
	r, _, err := new(ResponseVerifier).Verify(s.signedBy(s.ca.Signer(), s.ca.Issuer), s.leaf, issuer, s.now)
	require.NoError(t, err)
	require.Nil(t, r.Certificate)
}

func TestTheDateOfADelegatedSigner(t *testing.T) {
	s := newScene()
	old := s.ca.Delegate(stapletest.DelegateOptions{NotBefore: s.now.Add(-20 * day), NotAfter: s.now.Add(-day)})
	next := s.ca.Delegate(stapletest.DelegateOptions{Key: old.Key, NotBefore: s.now.Add(day)})
	current := s.ca.Delegate(stapletest.DelegateOptions{Key: old.Key, NotBefore: s.now, NotAfter: s.now.Add(day)})
	v := new(ResponseVerifier)

	r, end, err := s.verify(v, s.signedBy(old, old.Certificate, next.Certificate, current.Certificate))
	require.NoError(t, err, "the same key has a certificate that is valid now")
	require.Equal(t, current.Certificate.Raw, r.Certificate.Raw)
	require.Equal(t, current.Certificate.NotAfter, end)

	r, end, err = s.verify(v, s.signedBy(old, old.Certificate, next.Certificate))
	refused(t, ReasonExpired, s.leaf, r, end, err)
	r, end, err = s.verify(v, s.signedBy(old, next.Certificate))
	refused(t, ReasonNotYetValid, s.leaf, r, end, err)
}

func TestLocallyTrustedResponders(t *testing.T) {
	s := newScene()
	other := stapletest.NewCA(stapletest.CAOptions{Name: "Another CA"})
	options := stapletest.DelegateOptions{NoEKU: true, IsCA: true, NotAfter: s.now.Add(day)}
	local := other.Delegate(options)
	trusting := func(all ...*stapletest.Signer) *ResponseVerifier {
		v := new(ResponseVerifier)
		for _, s := range all {
			v.Responders = append(v.Responders, s.Certificate)
		}
		return v
	}
	for _, certs := range [][]*x509.Certificate{nil, {local.Certificate}} {
		for _, byName := range []bool{false, true} {
			t.Run(fmt.Sprintf("embedded %d, by name %v", len(certs), byName), func(t *testing.T) {
				der := s.response(func(r *stapletest.Response) {
					r.Signer, r.ByName = local, byName
					r.Certificates = append([]*x509.Certificate{}, certs...)
				})
				r, end, err := s.verify(trusting(s.ca.Signer(), other.Delegate(options), local), der)
				require.NoError(t, err)
				require.Equal(t, local.Certificate.NotAfter, end)
				if certs == nil {
					require.Nil(t, r.Certificate)
				} else {
					require.Same(t, local.Certificate, r.Certificate)
				}
				r, end, err = s.verify(trusting(other.Signer()), der)
				refused(t, ReasonUnauthorizedSigner, s.leaf, r, end, err)
			})
		}
	}
	t.Run("expired", func(t *testing.T) {
		options.NotBefore, options.NotAfter = s.now.Add(-2*day), s.now.Add(-day)
		expired := other.Delegate(options)
		r, end, err := s.verify(trusting(expired), s.signedBy(expired))
		refused(t, ReasonExpired, s.leaf, r, end, err)
	})
	t.Run("not yet valid", func(t *testing.T) {
		options.NotBefore, options.NotAfter = s.now.Add(day), s.now.Add(2*day)
		early := other.Delegate(options)
		r, end, err := s.verify(trusting(early), s.signedBy(early))
		refused(t, ReasonNotYetValid, s.leaf, r, end, err)
	})
	t.Run("of the same name, but another key", func(t *testing.T) {
		twin := other.Delegate(stapletest.DelegateOptions{})
		r, end, err := s.verify(trusting(twin), s.response(func(r *stapletest.Response) {
			r.Signer, r.ByName, r.Certificates = local, true, []*x509.Certificate{}
		}))
		refused(t, ReasonBadSignature, s.leaf, r, end, err)
	})
}

func TestKeysThatAreRefused(t *testing.T) {
	s := newScene()
	n := new(big.Int).Lsh(big.NewInt(1), 8192)
	huge := &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 65537}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	require.NoError(t, err)

	certificate := func(key crypto.PublicKey) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(2),
			Subject:      pkix.Name{CommonName: "responder"},
			NotBefore:    s.now.Add(-time.Hour),
			NotAfter:     s.now.Add(time.Hour),
			ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		}, s.ca.Issuer, key, s.ca.Key)
		require.NoError(t, err)
		c, err := x509.ParseCertificate(der)
		require.NoError(t, err)
		return c
	}
	t.Run("an RSA key of 8193 bits", func(t *testing.T) {
		r, end, err := s.verify(new(ResponseVerifier), s.response(func(r *stapletest.Response) {
			key, err := rsa.GenerateKey(rand.Reader, 2048)
			require.NoError(t, err)
			r.Signer = &stapletest.Signer{Certificate: certificate(huge), Key: key}
		}))
		refused(t, ReasonUnsupportedAlgorithm, s.leaf, r, end, err)
		require.ErrorContains(t, err, "8193 bits")
	})
	t.Run("P-224", func(t *testing.T) {
		r, end, err := s.verify(new(ResponseVerifier),
			s.signedBy(&stapletest.Signer{Certificate: certificate(p224.Public()), Key: p224}, certificate(p224.Public())))
		refused(t, ReasonUnsupportedAlgorithm, s.leaf, r, end, err)
		require.ErrorContains(t, err, "P-224")
	})
}

// Whoever can put certificates into a response must not be able to make it costly, nor to hide its
// signer among those that cannot be it.
func TestAtMostEightSignatureChecks(t *testing.T) {
	s := newScene()
	key := s.ca.Delegate(stapletest.DelegateOptions{}).Key
	decoys := func(n int, noEKU bool) (all []*x509.Certificate) {
		for range n {
			all = append(all, s.ca.Delegate(stapletest.DelegateOptions{Key: key, NoEKU: noEKU}).Certificate)
		}
		return all
	}
	signer := s.ca.Delegate(stapletest.DelegateOptions{})
	by := func(certs ...*x509.Certificate) []byte {
		return s.response(func(r *stapletest.Response) {
			r.Signer, r.ByName, r.Certificates = signer, true, certs
		})
	}
	t.Run("a hundred siblings of the signer's name cost nothing", func(t *testing.T) {
		_, _, err := s.verify(new(ResponseVerifier), by(append(decoys(100, true), signer.Certificate)...))
		require.NoError(t, err)
	})
	t.Run("the fourth delegate of one name is found", func(t *testing.T) {
		_, _, err := s.verify(new(ResponseVerifier), by(append(decoys(3, false), signer.Certificate)...))
		require.NoError(t, err)
	})
	t.Run("the fifth is not, for its signature would be the ninth", func(t *testing.T) {
		v := new(ResponseVerifier)
		r, end, err := s.verify(v, by(append(decoys(4, false), signer.Certificate)...))
		refused(t, ReasonBadSignature, s.leaf, r, end, err)
		require.Len(t, v.delegates, 4)
	})
	t.Run("no more than eight certificates are parsed", func(t *testing.T) {
		other := stapletest.NewCA(stapletest.CAOptions{})
		other.Issuer = &x509.Certificate{RawSubject: s.ca.Issuer.RawSubject}
		var all []*x509.Certificate
		for range 8 {
			all = append(all, other.Delegate(stapletest.DelegateOptions{CommonName: "other", Template: func(c *x509.Certificate) {
				// It has the responder's name somewhere, or it would not be looked at before the right one.
				c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: signer.Certificate.RawSubject})
			}}).Certificate)
		}
		_, _, err := s.verify(new(ResponseVerifier), by(append(all[:7:7], signer.Certificate)...))
		require.NoError(t, err)
		r, end, err := s.verify(new(ResponseVerifier), by(append(all, signer.Certificate)...))
		refused(t, ReasonUnauthorizedSigner, s.leaf, r, end, err)
	})
}

func TestDelegatesAreRemembered(t *testing.T) {
	s := newScene()
	signer := s.ca.Delegate(stapletest.DelegateOptions{NotAfter: s.now.Add(day)})
	der := s.signedBy(signer, signer.Certificate)
	v := new(ResponseVerifier)
	_, _, err := s.verify(v, der)
	require.NoError(t, err)
	require.Len(t, v.delegates, 1)

	t.Run("and not verified again", func(t *testing.T) {
		issuer := *s.ca.Issuer
		issuer.PublicKey = nil // with which nothing can be verified
		r, end, err := v.Verify(der, s.leaf, &issuer, s.now)
		require.NoError(t, err)
		require.Equal(t, signer.Certificate.NotAfter, end)
		require.Equal(t, signer.Certificate.Raw, r.Certificate.Raw)
		r, end, err = new(ResponseVerifier).Verify(der, s.leaf, &issuer, s.now)
		refused(t, ReasonUnsupportedAlgorithm, s.leaf, r, end, err)
	})
	t.Run("but their dates are looked at each time", func(t *testing.T) {
		r, end, err := v.Verify(der, s.leaf, s.ca.Issuer, s.now.Add(day))
		refused(t, ReasonExpired, s.leaf, r, end, err)
		r, end, err = v.Verify(der, s.leaf, s.ca.Issuer, signer.Certificate.NotBefore.Add(-1))
		refused(t, ReasonNotYetValid, s.leaf, r, end, err)
	})
	t.Run("and so is the responderID", func(t *testing.T) {
		r, end, err := s.verify(v, s.response(func(r *stapletest.Response) {
			r.Signer, r.ResponderID = signer, s.leaf
			r.Certificates = []*x509.Certificate{signer.Certificate}
		}))
		refused(t, ReasonUnauthorizedSigner, s.leaf, r, end, err)
	})
	t.Run("for their issuer alone", func(t *testing.T) {
		twin := newScene() // of the same name
		require.Equal(t, s.ca.Issuer.RawSubject, twin.ca.Issuer.RawSubject)
		r, end, err := twin.verify(v, twin.signedBy(signer, signer.Certificate))
		refused(t, ReasonUnauthorizedSigner, twin.leaf, r, end, err)
	})
	t.Run("in their issuer's name alone", func(t *testing.T) {
		issuer, leaf := *s.ca.Issuer, *s.leaf
		issuer.RawSubject, leaf.RawIssuer = s.ca.Root.RawSubject, s.ca.Root.RawSubject
		r, end, err := v.Verify(s.response(func(r *stapletest.Response) {
			r.Signer, r.Singles[0].Issuer = signer, &issuer
		}), &leaf, &issuer, s.now)
		refused(t, ReasonUnauthorizedSigner, &leaf, r, end, err)
	})
	t.Run("whatever becomes of the response's memory", func(t *testing.T) {
		again := bytes.Clone(der)
		clear(der)
		issuer := *s.ca.Issuer
		issuer.PublicKey = nil
		_, _, err := v.Verify(again, s.leaf, &issuer, s.now)
		require.NoError(t, err)
	})
	t.Run("not those that are refused", func(t *testing.T) {
		v := new(ResponseVerifier)
		for _, c := range stapletest.Forgeries(s.ca, s.leaf) {
			if !strings.Contains(c.Name, "delegate") {
				v.Verify(c.DER, s.leaf, s.ca.Issuer, s.now)
			}
		}
		for _, c := range v.delegates {
			require.Contains(t, c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning)
			require.NoError(t, c.CheckSignatureFrom(s.ca.Issuer))
		}
	})
	t.Run("in bounded memory", func(t *testing.T) {
		v := new(ResponseVerifier)
		for i := range 2 * maxDelegates {
			v.remember([32]byte{byte(i), byte(i >> 8)}, signer.Certificate)
			require.LessOrEqual(t, len(v.delegates), maxDelegates)
		}
		require.NotEmpty(t, v.delegates)
	})
}

func TestOneVerifierForManyGoroutines(t *testing.T) {
	v := new(ResponseVerifier)
	scenes := []scene{newScene(), newScene()}
	var ders [][]byte
	for _, s := range scenes {
		d := s.ca.Delegate(stapletest.DelegateOptions{})
		ders = append(ders, s.signedBy(d, d.Certificate))
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 20 {
				k := (i + j) % 2
				if _, _, err := scenes[k].verify(v, ders[k]); err != nil {
					t.Error(err)
				}
				if _, _, err := scenes[k].verify(v, ders[1-k]); err == nil {
					t.Error("accepted for another CA's leaf")
				}
			}
		})
	}
	wg.Wait()
	require.Len(t, v.delegates, 2)
}

func TestWhatIsMissing(t *testing.T) {
	s := newScene()
	d := s.ca.Delegate(stapletest.DelegateOptions{})
	for _, der := range [][]byte{nil, {}, s.response(nil), s.signedBy(d, d.Certificate)} {
		r, end, err := new(ResponseVerifier).Verify(der, nil, s.ca.Issuer, s.now)
		refused(t, ReasonWrongCertificate, nil, r, end, err)
		r, end, err = new(ResponseVerifier).Verify(der, nil, nil, s.now)
		refused(t, ReasonWrongCertificate, nil, r, end, err)
		r, end, err = new(ResponseVerifier).Verify(der, s.leaf, nil, s.now)
		refused(t, ReasonUnauthorizedSigner, s.leaf, r, end, err)
		require.ErrorIs(t, err, ErrNoIssuer)

		empty := new(x509.Certificate)
		_, _, err = new(ResponseVerifier).Verify(der, empty, s.ca.Issuer, s.now)
		require.Error(t, err)
		_, _, err = new(ResponseVerifier).Verify(der, s.leaf, empty, s.now)
		require.Error(t, err)
		_, _, err = new(ResponseVerifier).Verify(der, s.leaf, s.ca.Issuer, time.Time{})
		require.Error(t, err)
	}
	// An issuer without a key, or whose key cannot be read, hashes to nothing.
	r, end, err := new(ResponseVerifier).Verify(s.response(nil), s.leaf,
		&x509.Certificate{RawSubject: s.ca.Issuer.RawSubject, RawSubjectPublicKeyInfo: []byte{0x30, 0}}, s.now)
	refused(t, ReasonWrongCertificate, s.leaf, r, end, err)
	// One that did not issue the leaf.
	other := newScene()
	r, end, err = new(ResponseVerifier).Verify(s.response(nil), s.leaf, other.ca.Issuer, s.now)
	refused(t, ReasonWrongCertificate, s.leaf, r, end, err)
}

func TestTheResultIsFilledInAsByXCrypto(t *testing.T) {
	for kind, ca := range kinds() {
		if kind == "Ed25519" {
			continue // which x/crypto does not know
		}
		leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
		now := time.Now()
		for _, delegated := range []bool{false, true} {
			for _, status := range []int{ocsp.Good, ocsp.Revoked, ocsp.Unknown} {
				t.Run(fmt.Sprintf("%s, delegated %v, status %d", kind, delegated, status), func(t *testing.T) {
					r := stapletest.NewResponse(ca, leaf)
					r.ByName = status == ocsp.Good
					single := &r.Singles[0]
					single.Status, single.RevokedAt, single.Reason = status, now.Add(-day), ocsp.CessationOfOperation
					single.Hash = []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512}[status]
					single.Extensions = []pkix.Extension{extensionOf(false, 1, 2, 3), extensionOf(false, sctList...)}
					r.Extensions = []pkix.Extension{extensionOf(false, 1, 2, 3)}
					if delegated {
						r.Signer = ca.Delegate(stapletest.DelegateOptions{})
					}
					der := r.DER()
					want, err := ocsp.ParseResponseForCert(der, leaf, ca.Issuer)
					require.NoError(t, err)
					got, _, err := new(ResponseVerifier).Verify(der, leaf, ca.Issuer, now)
					require.NoError(t, err)
					require.Equal(t, want, got)
					require.NoError(t, ocspSignature(got, ca.Issuer))
				})
			}
		}
	}
}

// ocspSignature checks r as the users of x/crypto do.
func ocspSignature(r *ocsp.Response, issuer *x509.Certificate) error {
	if r.Certificate != nil {
		return r.CheckSignatureFrom(r.Certificate)
	}
	return r.CheckSignatureFrom(issuer)
}

func TestTheCertificateOfTheResult(t *testing.T) {
	s := newScene()
	d := s.ca.Delegate(stapletest.DelegateOptions{})
	for _, test := range []struct {
		name string
		der  []byte
		want *x509.Certificate
	}{
		{"none if the issuer signs", s.response(nil), nil},
		{"none if it embeds others", s.signedBy(s.ca.Signer(), d.Certificate, s.ca.Root), nil},
		{"the issuer's if it embeds itself", s.signedBy(s.ca.Signer(), s.ca.Root, s.ca.Issuer), s.ca.Issuer},
		{"the delegate's", s.signedBy(d, d.Certificate), d.Certificate},
		{"the delegate's behind others", s.signedBy(d, s.ca.Root, s.ca.Issuer, s.leaf, d.Certificate), d.Certificate},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, _, err := s.verify(new(ResponseVerifier), test.der)
			require.NoError(t, err)
			if test.want == nil {
				require.Nil(t, r.Certificate)
				return
			}
			require.NotNil(t, r.Certificate)
			require.Equal(t, test.want.Raw, r.Certificate.Raw)
		})
	}
}

func TestErrorsSayWhatWasSeen(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{Name: "Issuing CA"})
	leaf := ca.Leaf(stapletest.LeafOptions{Names: []string{"example.com"}, Serial: big.NewInt(0xa104)}).Leaf
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	s := scene{ca: ca, leaf: leaf, now: now}
	at := func(this, next time.Duration) func(*stapletest.Response) {
		return func(r *stapletest.Response) {
			r.ProducedAt = now
			r.Singles[0].ThisUpdate, r.Singles[0].NextUpdate = now.Add(this), now.Add(next)
		}
	}
	sibling := ca.Leaf(stapletest.LeafOptions{CommonName: "evil\n\x1b[31m", Serial: big.NewInt(7)})
	other := stapletest.NewCA(stapletest.CAOptions{Name: "Another CA"})
	issuer := fmt.Sprintf(`"CN=Issuing CA" (serial %s)`, colons(integer(ca.Issuer.SerialNumber)))
	expired := ca.Delegate(stapletest.DelegateOptions{NotBefore: now.Add(-2 * day), NotAfter: now.Add(-day)})
	for _, test := range []struct {
		name, want string
		der        []byte
	}{
		{"an error status", `ocsp: error from server: try later`, ocsp.TryLaterErrorResponse},
		{"HTML", `not one OCSPResponse in DER: 6 bytes that begin with 3c68746d6c3e`, []byte("<html>")},
		{"expired", `nextUpdate was 2026-11-22T11:00:00Z, and the clock says 2026-11-22T12:00:00Z`, s.response(at(-day, -time.Hour))},
		{"in the future", `thisUpdate is 2026-11-22T13:00:00Z, and the clock says 2026-11-22T12:00:00Z`, s.response(at(time.Hour, day))},
		{"nextUpdate first", `nextUpdate 2026-11-21T12:00:00Z is before thisUpdate 2026-11-22T12:00:00Z`, s.response(at(0, -day))},
		{"a sibling", `signed by "CN=evil\n\x1b[31m" (serial 07), which lacks the extended key usage OCSPSigning`,
			s.signedBy(&stapletest.Signer{Certificate: sibling.Leaf, Key: sibling.PrivateKey.(crypto.Signer)}, sibling.Leaf)},
		{"a stranger by name", `signed by "CN=Another CA", which is neither the issuer ` + issuer + `, nor a local or embedded responder`,
			s.response(func(r *stapletest.Response) {
				r.Signer, r.ByName, r.Certificates = other.Signer(), true, []*x509.Certificate{}
			})},
		{"another serial", `it is about the certificate with serial 07`, s.response(func(r *stapletest.Response) {
			r.Singles[0].Serial = big.NewInt(7)
		})},
		{"other serials", `it is about 2 other certificates, the first with serial 80:00`, s.response(func(r *stapletest.Response) {
			r.Singles[0].Serial = big.NewInt(0x8000)
			r.Singles = append(r.Singles, r.Singles[0])
		})},
		{"SHA-1", `its signature does not verify with the key of ` + issuer + `: ECDSA-SHA1 is unknown or too weak, ` +
			`want SHA-256, SHA-384, SHA-512 or Ed25519`, s.response(func(r *stapletest.Response) {
			r.SignatureAlgorithm = x509.ECDSAWithSHA1
		})},
		{"an expired delegate", `the end of its signer's certificate was 2026-11-21T12:00:00Z, and the clock says 2026-11-22T12:00:00Z`,
			s.response(func(r *stapletest.Response) { at(-day, day)(r); r.Signer = expired })},
		{"a critical extension", `unknown critical extension 1.2.3 in singleExtensions`, s.response(func(r *stapletest.Response) {
			r.Singles[0].Extensions = []pkix.Extension{extensionOf(true, 1, 2, 3)}
		})},
		{"a bad time", `thisUpdate is "2026\n", want YYYYMMDDHHMMSSZ`, s.element("thisUpdate", append([]byte{0x18, 5}, "2026\n"...)...)},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := s.verify(new(ResponseVerifier), test.der)
			require.EqualError(t, err, `staple: OCSP response for "CN=example.com" (serial a1:04) refused: `+test.want)
		})
	}
	var status ocsp.ResponseError
	_, _, err := s.verify(new(ResponseVerifier), ocsp.UnauthorizedErrorResponse)
	require.True(t, errors.As(err, &status))
	require.Equal(t, ocsp.Unauthorized, status.Status)
}

func TestDescribe(t *testing.T) {
	huge := new(big.Int).Lsh(big.NewInt(0x7f), 8*30)
	for _, test := range []struct {
		c    *x509.Certificate
		want string
	}{
		{nil, "no certificate"},
		{&x509.Certificate{}, `"" (serial unknown)`},
		{&x509.Certificate{Subject: pkix.Name{CommonName: "a\x00b"}, SerialNumber: big.NewInt(0)}, `"CN=a\x00b" (serial 00)`},
		{&x509.Certificate{DNSNames: []string{"a.example", "b.example"}, SerialNumber: big.NewInt(0x80)}, `"a.example" (serial 80)`},
		{&x509.Certificate{IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}, SerialNumber: big.NewInt(0x7f01)}, `"192.0.2.1" (serial 7f:01)`},
		{&x509.Certificate{DNSNames: []string{strings.Repeat("x", 500)}, SerialNumber: huge},
			`"` + strings.Repeat("x", 100) + `" (serial 7f` + strings.Repeat(":00", 19) + `...)`},
	} {
		require.Equal(t, test.want, describe(test.c))
	}
}

func TestReasonString(t *testing.T) {
	seen := map[string]bool{}
	for r := ReasonMalformed; r <= ReasonUnsupportedAlgorithm; r++ {
		require.NotContains(t, r.String(), "Reason")
		require.False(t, seen[r.String()])
		seen[r.String()] = true
	}
	require.Equal(t, "Reason(0)", Reason(0).String())
	require.Equal(t, "Reason(9)", Reason(9).String())
}

var exhaustive = flag.Bool("exhaustive", false, "corrupt every byte in all 255 ways, not in three; let a million certificates come, not 30,000")

func TestNoCorruptionIsAccepted(t *testing.T) {
	for _, k := range []stapletest.KeyType{stapletest.ECDSAP256, stapletest.RSA2048, stapletest.Ed25519} {
		ca := stapletest.NewCA(stapletest.CAOptions{KeyType: k, Intermediate: true})
		s := scene{ca: ca, leaf: ca.Leaf(stapletest.LeafOptions{}).Leaf, now: time.Now()}
		d := ca.Delegate(stapletest.DelegateOptions{KeyType: k})
		for name, der := range map[string][]byte{
			k.String() + " direct":    s.response(nil),
			k.String() + " delegated": s.signedBy(d, d.Certificate),
			k.String() + " embedded":  s.signedBy(ca.Signer(), ca.Issuer),
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				v := new(ResponseVerifier)
				_, _, err := s.verify(v, der)
				require.NoError(t, err)
				for i := range der {
					if _, _, err := s.verify(v, der[:i]); err == nil {
						t.Errorf("accepted when cut off after %d bytes", i)
					}
				}
				flips := []byte{0x01, 0x80, 0xff}
				if *exhaustive {
					flips = flips[:0]
					for x := 1; x < 256; x++ {
						flips = append(flips, byte(x))
					}
				}
				corrupt := bytes.Clone(der)
				for i := range corrupt {
					for _, x := range flips {
						corrupt[i] ^= x
						if _, _, err := s.verify(v, corrupt); err == nil {
							t.Errorf("accepted with byte %d turned from %#02x into %#02x", i, der[i], corrupt[i])
						}
						corrupt[i] = der[i]
					}
				}
			})
		}
	}
}

// A response of 1 MiB, however nasty, costs a few milliseconds and little memory.
func TestHostileResponsesAreCheap(t *testing.T) {
	const size = 1 << 20
	s := newScene()
	good := s.response(nil)
	d := s.ca.Delegate(stapletest.DelegateOptions{})
	repeat := func(der []byte) []byte { return bytes.Repeat(der, size/len(der)) }
	wrap := func(tag byte, content []byte) []byte {
		n := len(content)
		return append([]byte{tag, 0x83, byte(n >> 16), byte(n >> 8), byte(n)}, content...)
	}
	certs := func(der []byte) []byte {
		return s.response(func(r *stapletest.Response) {
			r.Signer = &stapletest.Signer{Certificate: d.Certificate, Key: s.ca.Key}
			r.Tamper = func(element string, was []byte) []byte {
				if element == "certs" {
					return wrap(0xa0, wrap(0x30, repeat(der)))
				}
				return was
			}
		})
	}
	inside := func(name string, der []byte) []byte {
		return s.response(func(r *stapletest.Response) {
			tamper := func(element string, was []byte) []byte {
				if element == name {
					return der
				}
				return was
			}
			r.Tamper, r.Singles[0].Tamper = tamper, tamper
		})
	}
	single := func(edit func(*stapletest.Single)) (der []byte) {
		s.response(func(r *stapletest.Response) {
			edit(&r.Singles[0])
			r.Singles[0].Tamper = func(element string, was []byte) []byte {
				if element == "singleResponse" {
					der = was
				}
				return was
			}
		})
		return der
	}
	forged := stapletest.NewCA(stapletest.CAOptions{})
	forged.Issuer = &x509.Certificate{RawSubject: s.ca.Issuer.RawSubject}
	lookalike := forged.Delegate(stapletest.DelegateOptions{Template: func(c *x509.Certificate) { c.RawSubject = d.Certificate.RawSubject }})
	var many []pkix.Extension
	for i := range 16 {
		many = append(many, extensionOf(false, 1, 2, 3, i))
	}
	for name, der := range map[string][]byte{
		"empty SEQUENCEs for certificates": certs([]byte{0x30, 0}),
		"the delegate over and over":       certs(d.Certificate.Raw),
		"look-alikes":                      certs(lookalike.Certificate.Raw),
		"siblings":                         certs(s.leaf.Raw),
		"one huge certificate":             certs(wrap(0x30, make([]byte, size-9))),
		"singles about others":             inside("responses", wrap(0x30, repeat(single(func(s *stapletest.Single) { s.Serial = big.NewInt(1) })))),
		"singles about the leaf":           inside("responses", wrap(0x30, repeat(single(func(*stapletest.Single) {})))),
		"singles with our serial number": inside("responses", wrap(0x30, repeat(single(func(s *stapletest.Single) {
			s.IssuerKeyHash = make([]byte, 20)
		})))),
		"singles with extensions": inside("responses", wrap(0x30, repeat(single(func(s *stapletest.Single) { s.Extensions = many })))),
		"extensions":              inside("responseExtensions", wrap(0xa1, wrap(0x30, repeat([]byte{0x30, 5, 6, 1, 42, 4, 0})))),
		"a huge extension":        inside("singleExtensions", wrap(0xa1, wrap(0x30, wrap(0x30, append([]byte{6, 1, 42}, wrap(4, make([]byte, size))...))))),
		"a huge serial number":    inside("serialNumber", wrap(2, bytes.Repeat([]byte{1}, size))),
		"a huge OID":              inside("hashAlgorithm", wrap(0x30, wrap(6, bytes.Repeat([]byte{0x81}, size)))),
		"a huge response type":    inside("responseType", wrap(6, bytes.Repeat([]byte{1}, size))),
		"a huge responderID":      inside("responderID", wrap(0xa1, wrap(0x30, make([]byte, size)))),
		"a huge time":             inside("thisUpdate", wrap(0x18, make([]byte, size))),
		"a huge signature":        inside("signature", wrap(3, make([]byte, size))),
		"a huge salt":             inside("signatureAlgorithm", wrap(0x30, append(slices.Concat([]byte{6, 9}, oidRSAPSS), wrap(0x30, wrap(0xa2, wrap(2, make([]byte, size))))...))),
		"zeros":                   make([]byte, size),
		"all of it trailing":      append(good, make([]byte, size)...),
		"nested SEQUENCEs":        bytes.Repeat([]byte{0x30, 0x80}, size/2),
	} {
		t.Run(name, func(t *testing.T) {
			best := time.Hour
			var before, after runtime.MemStats
			for range 3 {
				runtime.ReadMemStats(&before)
				start := time.Now()
				s.verify(new(ResponseVerifier), der)
				best = min(best, time.Since(start))
				runtime.ReadMemStats(&after)
			}
			allocated := after.TotalAlloc - before.TotalAlloc
			t.Logf("%d bytes: %v, %d bytes allocated", len(der), best, allocated)
			require.Less(t, allocated, uint64(256<<10))
		})
	}
}

// BenchmarkVerify compares Verify with the bare check of one signature, by the issuer or by a delegate
// that is remembered.
func BenchmarkVerify(b *testing.B) {
	for _, k := range []stapletest.KeyType{stapletest.ECDSAP256, stapletest.RSA2048} {
		ca := stapletest.NewCA(stapletest.CAOptions{KeyType: k, Intermediate: true})
		s := scene{ca: ca, leaf: ca.Leaf(stapletest.LeafOptions{}).Leaf, now: time.Now()}
		d := ca.Delegate(stapletest.DelegateOptions{KeyType: k})
		for _, kind := range []struct {
			name   string
			der    []byte
			signer *x509.Certificate
		}{
			{"direct", s.response(nil), ca.Issuer},
			{"delegated", s.signedBy(d, d.Certificate), d.Certificate},
		} {
			v := new(ResponseVerifier)
			r, _, err := s.verify(v, kind.der)
			require.NoError(b, err)
			b.Run(fmt.Sprintf("%s/%s", k, kind.name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					s.verify(v, kind.der)
				}
			})
			b.Run(fmt.Sprintf("%s/%s/bare", k, kind.name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					kind.signer.CheckSignature(r.SignatureAlgorithm, r.TBSResponseData, r.Signature)
				}
			})
		}
	}
}

func TestADelegateWhoseKeyUsageAllowsNothingIsRefused(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	tc := ca.Leaf(stapletest.LeafOptions{})
	leaf := tc.Leaf
	d := ca.Delegate(stapletest.DelegateOptions{Template: func(c *x509.Certificate) {
		c.KeyUsage = 0
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{3, 1, 0}})
	}})
	r := stapletest.NewResponse(ca, leaf)
	r.Signer = d
	_, _, err := new(ResponseVerifier).Verify(r.DER(), leaf, ca.Issuer, time.Now())
	require.Error(t, err)
}

// RFC 9925.
func TestTheIssuerMayBeAnUnsignedTrustAnchor(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
	var c struct {
		TBS asn1.RawValue
		Alg asn1.RawValue
		Sig asn1.BitString
	}
	_, err := asn1.Unmarshal(ca.Issuer.Raw, &c)
	require.NoError(t, err)
	c.Sig = asn1.BitString{}
	der, err := asn1.Marshal(c)
	require.NoError(t, err)
	anchor, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	r := stapletest.NewResponse(ca, leaf)
	r.Certificates = []*x509.Certificate{ca.Delegate(stapletest.DelegateOptions{}).Certificate}
	_, _, err = new(ResponseVerifier).Verify(r.DER(), leaf, ca.Issuer, time.Now())
	require.NoError(t, err)
	_, _, err = new(ResponseVerifier).Verify(r.DER(), leaf, anchor, time.Now())
	require.NoError(t, err)
}

func TestNilAmongRespondersIsPassedOver(t *testing.T) {
	s := newScene()
	d := stapletest.NewCA(stapletest.CAOptions{Name: "local"})
	der := s.signedBy(d.Signer())
	_, _, err := (&ResponseVerifier{Responders: []*x509.Certificate{nil, d.Issuer}}).Verify(der, s.leaf, s.ca.Issuer, s.now)
	require.NoError(t, err)
}
