package ocspder

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/go-staple/staple/internal/scene"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// read reads what der says about s.Leaf.
func read(s scene.Scene, der []byte) (*Response, *Match, error) {
	match := &Match{Leaf: s.Leaf, Issuer: s.CA.Issuer}
	response, err := Read(der, match.Add)
	if err == nil {
		err = match.Err()
	}
	return response, match, err
}

func refused(t *testing.T, kind Kind, err error) {
	t.Helper()
	var refusal *Error
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, kind, refusal.Kind, "%v", err)
}

// What the catalogs leave open, or are not about. A zero kind: accepted.
func TestRead(t *testing.T) {
	s := scene.New()
	singles := func(edit func(own stapletest.Single) []stapletest.Single) []byte {
		return s.Response(func(r *stapletest.Response) { r.Singles = edit(r.Singles[0]) })
	}
	oneExtension := func(fields ...[]byte) []byte {
		return s.Element("singleExtensions", scene.TLV(0xa1, scene.TLV(0x30, scene.TLV(0x30, fields...)))...)
	}
	producedAt := func(text string) []byte { return s.Element("producedAt", scene.TLV(0x18, []byte(text))...) }
	revoked := func(reason ...byte) []byte {
		return s.Element("certStatus", scene.TLV(0xa1, scene.TLV(0x18, []byte("20240229120000Z")), scene.TLV(0xa0, reason))...)
	}
	unknownHash := stapletest.NewResponse(s.CA, s.Leaf)
	unknownHash.Singles[0].Hash = crypto.SHA512
	unknownHash.Singles[0].Tamper = func(element string, der []byte) []byte {
		if element == "hashAlgorithm" {
			return scene.TLV(0x30, scene.TLV(6, []byte{42}))
		}
		return der
	}
	for _, test := range []struct {
		name string
		der  []byte
		kind Kind
	}{
		{"bytes after the response in responseBytes are refused",
			s.Tamper("response", func(der []byte) []byte { return append(der, derNULL...) }), Malformed},
		{"bytes after the name in responderID are refused",
			s.Element("responderID", scene.TLV(0xa1, s.CA.Issuer.RawSubject, derNULL)...), Malformed},
		{"bytes after the version are refused", s.Element("version", 0xa0, 5, 2, 1, 0, 5, 0), Malformed},
		{"an unknown hash of SHA-512's length is refused", unknownHash.DER(), UnsupportedAlgorithm},
		{"a single with an unknown hash beside ours makes no difference", singles(func(own stapletest.Single) []stapletest.Single {
			return []stapletest.Single{unknownHash.Singles[0], own}
		}), 0},

		{"v1 spelled out is accepted", s.Element("version", 0xa0, 3, 2, 1, 0), 0},
		{"v2 is refused", s.Element("version", 0xa0, 3, 2, 1, 1), Malformed},
		{"v1 that is not minimal is refused", s.Element("version", 0xa0, 4, 2, 2, 0, 0), Malformed},

		{"a critical list of timestamps in the single is accepted", s.Response(func(r *stapletest.Response) {
			r.Singles[0].Extensions = []pkix.Extension{scene.Extension(true, scene.SCTList...)}
		}), 0},
		{"a critical list of timestamps elsewhere is refused", s.Response(func(r *stapletest.Response) {
			r.Extensions = []pkix.Extension{scene.Extension(true, scene.SCTList...)}
		}), Malformed},
		{"an unknown critical extension of another single is refused", singles(func(own stapletest.Single) []stapletest.Single {
			other := own
			other.Serial = big.NewInt(1)
			other.Extensions = []pkix.Extension{scene.Extension(true, 1, 2, 3)}
			return []stapletest.Single{own, other}
		}), Malformed},
		{"sixteen extensions are accepted", s.Response(func(r *stapletest.Response) {
			for i := range 16 {
				r.Extensions = append(r.Extensions, scene.Extension(false, 1, 2, 3, i))
			}
		}), 0},
		{"seventeen extensions are refused", s.Response(func(r *stapletest.Response) {
			for i := range 17 {
				r.Extensions = append(r.Extensions, scene.Extension(false, 1, 2, 3, i))
			}
		}), Malformed},
		{"an empty list of extensions is accepted", s.Element("responseExtensions", scene.TLV(0xa1, scene.TLV(0x30))...), 0},
		{"critical FALSE spelled out is refused", oneExtension(scene.TLV(6, []byte{42}), []byte{1, 1, 0}, scene.TLV(4)), Malformed},
		{"critical left out is accepted", oneExtension(scene.TLV(6, []byte{42}), scene.TLV(4)), 0},
		{"an OID with a huge arc is accepted", oneExtension(scene.TLV(6, []byte{42, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}), scene.TLV(4)), 0},
		{"an OID that is not minimal is refused", oneExtension(scene.TLV(6, []byte{42, 0x80, 1}), scene.TLV(4)), Malformed},
		{"an OID that is cut off is refused", oneExtension(scene.TLV(6, []byte{42, 0x81}), scene.TLV(4)), Malformed},
		{"an empty OID is refused", oneExtension(scene.TLV(6), scene.TLV(4)), Malformed},

		{"February 29 of no leap year is refused", producedAt("20250229120000Z"), Malformed},
		{"February 29 of a leap year is accepted", producedAt("20240229120000Z"), 0},
		{"day 0 is refused", producedAt("20240200120000Z"), Malformed},
		{"month 0 is refused", producedAt("20240001120000Z"), Malformed},
		{"hour 24 is refused", producedAt("20240215240000Z"), Malformed},
		{"minute 60 is refused", producedAt("20240229126000Z"), Malformed},
		{"second 60 is refused", producedAt("20240229120060Z"), Malformed},
		{"a sign in the year is refused", producedAt("+0240229120000Z"), Malformed},

		{"revoked for a reason that is not defined is accepted", revoked(10, 1, 7), 0},
		{"a reason that is not minimal is refused", revoked(10, 2, 0, 1), Malformed},

		{"an ECDSA signature with NULL parameters is refused", s.Element("signatureAlgorithm",
			0x30, 12, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2, 5, 0), Malformed},

		{"an empty list of certificates is accepted", s.Element("certs", 0xa0, 2, 0x30, 0), 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			response, match, err := read(s, test.der)
			if test.kind == 0 {
				require.NoError(t, err)
				require.NoError(t, s.CA.Issuer.CheckSignature(response.Algorithm, response.TBS, response.Signature))
				require.Zero(t, s.Leaf.SerialNumber.Cmp(match.Best.SerialNumber()))
				return
			}
			refused(t, test.kind, err)
		})
	}
}

// What is no matter of reading is read: forgeries that others have to refuse, and all oddities.
func TestCatalogs(t *testing.T) {
	reasons := scene.Reasons()
	for name, ca := range scene.Kinds() {
		t.Run(name, func(t *testing.T) {
			s := scene.Of(ca)
			for _, c := range stapletest.Oddities(s.CA, s.Leaf) {
				response, match, err := read(s, c.DER)
				require.NoError(t, err, c.Name)
				require.Equal(t, c.Status, response.Result(&match.Best).Status, c.Name)
			}
			for _, c := range stapletest.Forgeries(s.CA, s.Leaf) {
				_, _, err := read(s, c.DER)
				refusal, ok := errors.AsType[*Error](err)
				_, unsuccessful := errors.AsType[ocsp.ResponseError](err)
				switch reasons[c.Name] {
				case "":
					if ok {
						require.Equal(t, Malformed, refusal.Kind, c.Name)
					}
				case "unsuccessful":
					require.True(t, unsuccessful, c.Name)
				case "wrong certificate":
					refused(t, WrongCertificate, err)
				case "unsupported algorithm":
					if ok {
						require.Equal(t, UnsupportedAlgorithm, refusal.Kind, c.Name)
					}
				default:
					require.NoError(t, err, c.Name)
				}
			}
		})
	}
}

// Extensions whose OID a pkix.Extension cannot hold are no reason to leave out others.
func TestExtensionsOfTheResult(t *testing.T) {
	s := scene.New()
	response, match, err := read(s, s.Element("singleExtensions",
		scene.TLV(0xa1, scene.TLV(0x30,
			scene.TLV(0x30, scene.TLV(6, []byte{0x2a, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}), scene.TLV(4)),
			scene.TLV(0x30, scene.TLV(6, []byte{0x2a, 3}), scene.TLV(4, derNULL))))...))
	require.NoError(t, err)
	r := response.Result(&match.Best)
	require.Len(t, r.Extensions, 1)
	require.Equal(t, "1.2.3", r.Extensions[0].Id.String())
	require.Equal(t, derNULL, r.Extensions[0].Value)
}

func TestTheResponderIDInErrors(t *testing.T) {
	name := scene.New().CA.Issuer.RawSubject
	for _, test := range []struct {
		r    Response
		want string
	}{
		{Response{ResponderName: name}, `"CN=stapletest CA"`},
		{Response{ResponderName: []byte{0x30, 2, 5, 0}}, `the name 30020500`},
		{Response{ResponderName: make([]byte, 2000)}, `a name too long to tell`},
		{Response{ResponderKeyHash: []byte{1, 0xab}}, `the holder of a key with hash 01ab`},
	} {
		require.Equal(t, test.want, test.r.Responder())
	}
}

func TestEmbedded(t *testing.T) {
	s := scene.New()
	d := s.CA.Delegate(stapletest.DelegateOptions{}).Certificate
	damaged := func(at int) *x509.Certificate {
		raw := bytes.Clone(d.Raw)
		raw[at] ^= 1
		return &x509.Certificate{Raw: raw}
	}
	response := func(certs ...*x509.Certificate) *Response {
		r, _, err := read(s, s.SignedBy(s.CA.Signer(), certs...))
		require.NoError(t, err)
		return r
	}
	for _, test := range []struct {
		name     string
		embedded []*x509.Certificate
		found    bool
	}{
		{"none", nil, false},
		{"others", []*x509.Certificate{s.CA.Root, s.Leaf}, false},
		{"itself", []*x509.Certificate{d}, true},
		{"itself behind others", []*x509.Certificate{s.CA.Root, d}, true},
		{"itself with something after its signature", []*x509.Certificate{{Raw: trailed(d.Raw)}}, true},
		{"itself with another signature", []*x509.Certificate{damaged(len(d.Raw) - 1)}, false},
		{"another with its signature", []*x509.Certificate{damaged(20)}, false},
		{"itself, and with another signature", []*x509.Certificate{d, damaged(len(d.Raw) - 1)}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := response(test.embedded...)
			for _, c := range []*x509.Certificate{d, {Raw: trailed(d.Raw)}} {
				if got := r.Embedded(c); test.found {
					require.Equal(t, d.Raw, got)
				} else {
					require.Nil(t, got)
				}
			}
		})
	}
	require.Nil(t, response(d).Embedded(&x509.Certificate{RawSubject: d.RawSubject})) // of which only the name is known
}

func TestClaimedEnd(t *testing.T) {
	s := scene.New()
	at := func(singles ...stapletest.Single) []byte {
		return s.Response(func(r *stapletest.Response) {
			own := r.Singles[0]
			r.Singles = nil
			for _, one := range singles {
				single := own
				single.ThisUpdate, single.NextUpdate = one.ThisUpdate, one.NextUpdate
				single.Serial = cmp.Or(one.Serial, own.Serial)
				r.Singles = append(r.Singles, single)
			}
		})
	}
	next := func(d time.Duration) stapletest.Single {
		return stapletest.Single{ThisUpdate: s.Now, NextUpdate: s.Now.Add(d)}
	}
	other := next(9 * scene.Day)
	other.Serial = big.NewInt(7)
	const maxAge = time.Hour
	for _, test := range []struct {
		name string
		der  []byte
		leaf *x509.Certificate
		want time.Duration // from now; 0: none
	}{
		{"nextUpdate", at(next(scene.Day)), s.Leaf, scene.Day},
		{"the latest nextUpdate", at(next(scene.Day), next(3*scene.Day), next(2*scene.Day)), s.Leaf, 3 * scene.Day},
		{"without nextUpdate maxAge counts", at(stapletest.Single{ThisUpdate: s.Now}), s.Leaf, maxAge},
		{"other certificates do not count", at(next(scene.Day), other), s.Leaf, scene.Day},
		{"other certificates alone", at(other), s.Leaf, 0},
		{"any certificate", at(next(scene.Day), other), nil, 9 * scene.Day},
		{"no certificate", at(), nil, 0},
		{"no response", []byte("<html>"), nil, 0},
		{"nothing", nil, s.Leaf, 0},
		{"an error status", ocsp.TryLaterErrorResponse, s.Leaf, 0},
		{"something left over", append(at(next(scene.Day)), 0), s.Leaf, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			end := ClaimedEnd(test.der, test.leaf, maxAge)
			if test.want == 0 {
				require.Zero(t, end)
				return
			}
			require.Equal(t, s.Now.Add(test.want).UTC(), end)
		})
	}
}
