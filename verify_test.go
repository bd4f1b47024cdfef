package staple_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/name"
	"github.com/go-staple/staple/internal/scene"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// refused checks that err refuses a response about leaf for reason.
func refused(t *testing.T, reason staple.Reason, leaf *x509.Certificate, r *ocsp.Response, end time.Time, err error) {
	t.Helper()
	var refusal *staple.VerifyError
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, reason, refusal.Reason, "%v", err)
	require.Same(t, leaf, refusal.Leaf)
	require.Nil(t, r)
	require.Zero(t, end)
	require.Less(t, len(err.Error()), 1000)
	require.False(t, strings.ContainsFunc(err.Error(), unicode.IsControl), "%q", err)
}

func verify(s scene.Scene, v *staple.ResponseVerifier, der []byte) (*ocsp.Response, time.Time, error) {
	return v.Verify(der, s.Leaf, s.CA.Issuer, s.Now)
}

func TestEveryForgeryIsRefused(t *testing.T) {
	reasons := map[string]staple.Reason{}
	for r := staple.ReasonMalformed; r <= staple.ReasonUnsupportedAlgorithm; r++ {
		for name, reason := range scene.Reasons() {
			if reason == r.String() {
				reasons[name] = r
			}
		}
	}
	require.Len(t, reasons, len(scene.Reasons()))
	seen := map[string]bool{}
	for kind, ca := range scene.Kinds() {
		t.Run(kind, func(t *testing.T) {
			leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
			cases, good := stapletest.Forgeries(ca, leaf), stapletest.Oddities(ca, leaf)
			require.NotEmpty(t, cases)
			v := new(staple.ResponseVerifier)
			// Twice, with the good ones in between: what is remembered makes nobody accepted. And half an hour later.
			for _, now := range []time.Time{time.Now(), time.Now().Add(30 * time.Minute)} {
				for _, c := range cases {
					reason, ok := reasons[c.Name]
					if !ok {
						reason = staple.ReasonMalformed
					}
					seen[c.Name] = true
					t.Run(c.Name, func(t *testing.T) {
						r, end, err := v.Verify(c.DER, leaf, ca.Issuer, now)
						refused(t, reason, leaf, r, end, err)
					})
				}
				for _, c := range good {
					_, _, err := v.Verify(c.DER, leaf, ca.Issuer, now)
					require.NoError(t, err, c.Name)
				}
			}
		})
	}
	for name := range reasons {
		require.True(t, seen[name], "%q is no forgery", name)
	}
}

func TestEveryOddityIsAccepted(t *testing.T) {
	for kind, ca := range scene.Kinds() {
		t.Run(kind, func(t *testing.T) {
			leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
			cases := stapletest.Oddities(ca, leaf)
			require.NotEmpty(t, cases)
			for _, c := range cases {
				t.Run(c.Name, func(t *testing.T) {
					now := time.Now()
					r, end, err := new(staple.ResponseVerifier).Verify(c.DER, leaf, ca.Issuer, now)
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
		r, _, err := new(staple.ResponseVerifier).Verify(b[2], leaf, issuer, leaf.NotBefore.Add(time.Minute))
		require.NoError(t, err)
		require.Equal(t, ocsp.Good, r.Status)
	}
}

func TestARevocationThatHasExpiredIsNoGood(t *testing.T) {
	s := scene.New()
	r, end, err := verify(s, new(staple.ResponseVerifier), s.Response(func(r *stapletest.Response) {
		revoked := r.Singles[0]
		revoked.Status, revoked.RevokedAt = ocsp.Revoked, s.Now
		revoked.ThisUpdate, revoked.NextUpdate = s.Now.Add(-9*scene.Day), s.Now.Add(-2*scene.Day)
		r.Singles = append(r.Singles, revoked)
	}))
	refused(t, staple.ReasonExpired, s.Leaf, r, end, err)
}

func TestTimes(t *testing.T) {
	s := scene.New()
	const second = time.Second
	zero := time.Duration(0)
	for _, test := range []struct {
		name             string
		v                *staple.ResponseVerifier
		produced, this   time.Duration  // from now
		next             *time.Duration // nil: none
		end              time.Duration
		reason           staple.Reason
		delegateNotAfter *time.Duration
	}{
		{"nextUpdate is the end", &staple.ResponseVerifier{}, -scene.Day, -scene.Day, new(second), second, 0, nil},
		{"nextUpdate now is past", &staple.ResponseVerifier{}, -scene.Day, -scene.Day, &zero, 0, staple.ReasonExpired, nil},
		{"ClockSkew does not stretch nextUpdate", &staple.ResponseVerifier{ClockSkew: time.Hour}, -scene.Day, -scene.Day, new(-second), 0, staple.ReasonExpired, nil},
		{"thisUpdate at the edge of the skew is accepted", &staple.ResponseVerifier{}, 0, 5 * time.Minute, new(scene.Day), scene.Day, 0, nil},
		{"thisUpdate beyond the skew is refused", &staple.ResponseVerifier{}, 0, 5*time.Minute + second, new(scene.Day), 0, staple.ReasonNotYetValid, nil},
		{"producedAt at the edge of the skew is accepted", &staple.ResponseVerifier{}, 5 * time.Minute, 0, new(scene.Day), scene.Day, 0, nil},
		{"producedAt beyond the skew is accepted, too", &staple.ResponseVerifier{}, 9 * scene.Day, 0, new(scene.Day), scene.Day, 0, nil},
		{"ClockSkew widens", &staple.ResponseVerifier{ClockSkew: time.Hour}, time.Hour, time.Hour, new(scene.Day), scene.Day, 0, nil},
		{"ClockSkew narrows", &staple.ResponseVerifier{ClockSkew: second}, 0, 2 * second, new(scene.Day), 0, staple.ReasonNotYetValid, nil},
		{"a negative ClockSkew tolerates nothing", &staple.ResponseVerifier{ClockSkew: -scene.Day}, 0, second, new(scene.Day), 0, staple.ReasonNotYetValid, nil},
		{"a negative ClockSkew takes nothing away", &staple.ResponseVerifier{ClockSkew: -scene.Day}, 0, 0, new(scene.Day), scene.Day, 0, nil},
		{"nextUpdate before thisUpdate is refused", &staple.ResponseVerifier{}, 0, 2 * second, new(second), 0, staple.ReasonMalformed, nil},
		{"nextUpdate at thisUpdate is accepted until then", &staple.ResponseVerifier{}, 0, second, new(second), second, 0, nil},
		{"without nextUpdate it counts for a day", &staple.ResponseVerifier{}, 0, -scene.Day + second, nil, second, 0, nil},
		{"without nextUpdate it ends after a day", &staple.ResponseVerifier{}, 0, -scene.Day, nil, 0, staple.ReasonExpired, nil},
		{"MaxAge is that time", &staple.ResponseVerifier{MaxAge: time.Hour}, 0, -time.Hour + second, nil, second, 0, nil},
		{"MaxAge ends it", &staple.ResponseVerifier{MaxAge: time.Hour}, 0, -time.Hour, nil, 0, staple.ReasonExpired, nil},
		{"MaxAge makes no difference to nextUpdate", &staple.ResponseVerifier{MaxAge: time.Hour}, 0, -30 * scene.Day, new(scene.Day), scene.Day, 0, nil},
		{"a negative MaxAge refuses it", &staple.ResponseVerifier{MaxAge: -1}, 0, 0, nil, 0, staple.ReasonMalformed, nil},
		{"a negative MaxAge is about nextUpdate alone", &staple.ResponseVerifier{MaxAge: -1}, 0, 0, new(scene.Day), scene.Day, 0, nil},
		{"a delegate's NotAfter before nextUpdate is the end", &staple.ResponseVerifier{}, 0, 0, new(2 * scene.Day), scene.Day, 0, new(scene.Day)},
		{"nextUpdate before a delegate's NotAfter is the end", &staple.ResponseVerifier{}, 0, 0, new(scene.Day), scene.Day, 0, new(2 * scene.Day)},
		{"a delegate's NotAfter caps MaxAge as well", &staple.ResponseVerifier{}, 0, 0, nil, time.Hour, 0, new(time.Hour)},
		{"a delegate's NotAfter now is past", &staple.ResponseVerifier{}, -scene.Day, -scene.Day, new(scene.Day), 0, staple.ReasonExpired, &zero},
	} {
		t.Run(test.name, func(t *testing.T) {
			der := s.Response(func(r *stapletest.Response) {
				r.ProducedAt = s.Now.Add(test.produced)
				r.Singles[0].ThisUpdate = s.Now.Add(test.this)
				r.Singles[0].NextUpdate = time.Time{}
				if test.next != nil {
					r.Singles[0].NextUpdate = s.Now.Add(*test.next)
				}
				if test.delegateNotAfter != nil {
					r.Signer = s.CA.Delegate(stapletest.DelegateOptions{
						NotBefore: s.Now.Add(-10 * scene.Day), NotAfter: s.Now.Add(*test.delegateNotAfter),
					})
				}
			})
			r, end, err := verify(s, test.v, der)
			if test.reason != 0 {
				refused(t, test.reason, s.Leaf, r, end, err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, s.Now.Add(test.end).UTC(), end)
			require.Equal(t, end, end.Round(0), "no monotonic reading")

			// It holds for all clocks, to the last second.
			_, _, err = test.v.Verify(der, s.Leaf, s.CA.Issuer, end.Add(-1).In(time.FixedZone("", 3600)))
			require.NoError(t, err)
			_, _, err = test.v.Verify(der, s.Leaf, s.CA.Issuer, end)
			require.ErrorContains(t, err, "and the clock says")
		})
	}
}

// All times of a response are in UTC, whatever the local zone is.
func TestTimesAreInUTC(t *testing.T) {
	local := time.Local
	defer func() { time.Local = local }()
	time.Local = time.FixedZone("elsewhere", 3*3600)
	s := scene.New()
	r, end, err := verify(s, new(staple.ResponseVerifier), s.Response(func(r *stapletest.Response) {
		r.Singles[0].Status, r.Singles[0].RevokedAt = ocsp.Revoked, s.Now
	}))
	require.NoError(t, err)
	for _, at := range []time.Time{r.ProducedAt, r.ThisUpdate, r.NextUpdate, r.RevokedAt, end} {
		require.Equal(t, time.UTC, at.Location())
	}
}

func TestTheIssuersOwnEndDoesNotCount(t *testing.T) {
	s := scene.Scene{Now: time.Now().Truncate(time.Second)}
	s.CA = stapletest.NewCA(stapletest.CAOptions{NotAfter: s.Now.Add(time.Hour)})
	s.Leaf = s.CA.Leaf(stapletest.LeafOptions{}).Leaf
	der := s.Response(func(r *stapletest.Response) { r.Singles[0].NextUpdate = s.Now.Add(scene.Day) })
	_, end, err := verify(s, new(staple.ResponseVerifier), der)
	require.NoError(t, err)
	require.Equal(t, s.Now.Add(scene.Day).UTC(), end)
}

// Of an issuer, only its names and keys are needed.
func TestAnIssuerWithoutACertificate(t *testing.T) {
	s := scene.New()
	issuer := &x509.Certificate{
		RawSubject:              s.CA.Issuer.RawSubject,
		RawSubjectPublicKeyInfo: s.CA.Issuer.RawSubjectPublicKeyInfo,
		PublicKey:               s.CA.Issuer.PublicKey,
	}
	r, _, err := new(staple.ResponseVerifier).Verify(s.SignedBy(s.CA.Signer(), s.CA.Issuer), s.Leaf, issuer, s.Now)
	require.NoError(t, err)
	require.Nil(t, r.Certificate)
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
	_, _, err = new(staple.ResponseVerifier).Verify(r.DER(), leaf, ca.Issuer, time.Now())
	require.NoError(t, err)
	_, _, err = new(staple.ResponseVerifier).Verify(r.DER(), leaf, anchor, time.Now())
	require.NoError(t, err)
}

func TestTheDateOfADelegatedSigner(t *testing.T) {
	s := scene.New()
	old := s.CA.Delegate(stapletest.DelegateOptions{NotBefore: s.Now.Add(-20 * scene.Day), NotAfter: s.Now.Add(-scene.Day)})
	next := s.CA.Delegate(stapletest.DelegateOptions{Key: old.Key, NotBefore: s.Now.Add(scene.Day)})
	current := s.CA.Delegate(stapletest.DelegateOptions{Key: old.Key, NotBefore: s.Now, NotAfter: s.Now.Add(scene.Day)})
	v := new(staple.ResponseVerifier)

	r, end, err := verify(s, v, s.SignedBy(old, old.Certificate, next.Certificate, current.Certificate))
	require.NoError(t, err, "the same key has a certificate that is valid now")
	require.Equal(t, current.Certificate.Raw, r.Certificate.Raw)
	require.Equal(t, current.Certificate.NotAfter, end)

	r, end, err = verify(s, v, s.SignedBy(old, old.Certificate, next.Certificate))
	refused(t, staple.ReasonExpired, s.Leaf, r, end, err)
	r, end, err = verify(s, v, s.SignedBy(old, next.Certificate))
	refused(t, staple.ReasonNotYetValid, s.Leaf, r, end, err)
}

func TestLocallyTrustedResponders(t *testing.T) {
	s := scene.New()
	other := stapletest.NewCA(stapletest.CAOptions{Name: "Another CA"})
	options := stapletest.DelegateOptions{NoEKU: true, IsCA: true, NotAfter: s.Now.Add(scene.Day)}
	local := other.Delegate(options)
	trusting := func(all ...*stapletest.Signer) *staple.ResponseVerifier {
		v := new(staple.ResponseVerifier)
		for _, s := range all {
			v.Responders = append(v.Responders, s.Certificate)
		}
		return v
	}
	for _, certs := range [][]*x509.Certificate{nil, {local.Certificate}} {
		for _, byName := range []bool{false, true} {
			t.Run(fmt.Sprintf("embedded %d, by name %v", len(certs), byName), func(t *testing.T) {
				der := s.Response(func(r *stapletest.Response) {
					r.Signer, r.ByName = local, byName
					r.Certificates = append([]*x509.Certificate{}, certs...)
				})
				r, end, err := verify(s, trusting(s.CA.Signer(), other.Delegate(options), local), der)
				require.NoError(t, err)
				require.Equal(t, local.Certificate.NotAfter, end)
				if certs == nil {
					require.Nil(t, r.Certificate)
				} else {
					require.Same(t, local.Certificate, r.Certificate)
				}
				r, end, err = verify(s, trusting(other.Signer()), der)
				refused(t, staple.ReasonUnauthorizedSigner, s.Leaf, r, end, err)
			})
		}
	}
	t.Run("expired", func(t *testing.T) {
		options.NotBefore, options.NotAfter = s.Now.Add(-2*scene.Day), s.Now.Add(-scene.Day)
		expired := other.Delegate(options)
		r, end, err := verify(s, trusting(expired), s.SignedBy(expired))
		refused(t, staple.ReasonExpired, s.Leaf, r, end, err)
	})
	t.Run("not yet valid", func(t *testing.T) {
		options.NotBefore, options.NotAfter = s.Now.Add(scene.Day), s.Now.Add(2*scene.Day)
		early := other.Delegate(options)
		r, end, err := verify(s, trusting(early), s.SignedBy(early))
		refused(t, staple.ReasonNotYetValid, s.Leaf, r, end, err)
	})
	t.Run("of the same name, but another key", func(t *testing.T) {
		twin := other.Delegate(stapletest.DelegateOptions{})
		r, end, err := verify(s, trusting(twin), s.Response(func(r *stapletest.Response) {
			r.Signer, r.ByName, r.Certificates = local, true, []*x509.Certificate{}
		}))
		refused(t, staple.ReasonBadSignature, s.Leaf, r, end, err)
	})
}

func TestDelegatesAreRemembered(t *testing.T) {
	s := scene.New()
	signer := s.CA.Delegate(stapletest.DelegateOptions{NotAfter: s.Now.Add(scene.Day)})
	der := s.SignedBy(signer, signer.Certificate)
	v := new(staple.ResponseVerifier)
	_, _, err := verify(s, v, der)
	require.NoError(t, err)

	t.Run("and not verified again", func(t *testing.T) {
		issuer := *s.CA.Issuer
		issuer.PublicKey = nil // with which nothing can be verified
		r, end, err := v.Verify(der, s.Leaf, &issuer, s.Now)
		require.NoError(t, err)
		require.Equal(t, signer.Certificate.NotAfter, end)
		require.Equal(t, signer.Certificate.Raw, r.Certificate.Raw)
		r, end, err = new(staple.ResponseVerifier).Verify(der, s.Leaf, &issuer, s.Now)
		refused(t, staple.ReasonUnsupportedAlgorithm, s.Leaf, r, end, err)
	})
	t.Run("but their dates are looked at each time", func(t *testing.T) {
		r, end, err := v.Verify(der, s.Leaf, s.CA.Issuer, s.Now.Add(scene.Day))
		refused(t, staple.ReasonExpired, s.Leaf, r, end, err)
		r, end, err = v.Verify(der, s.Leaf, s.CA.Issuer, signer.Certificate.NotBefore.Add(-1))
		refused(t, staple.ReasonNotYetValid, s.Leaf, r, end, err)
	})
	t.Run("and so is the responderID", func(t *testing.T) {
		r, end, err := verify(s, v, s.Response(func(r *stapletest.Response) {
			r.Signer, r.ResponderID = signer, s.Leaf
			r.Certificates = []*x509.Certificate{signer.Certificate}
		}))
		refused(t, staple.ReasonUnauthorizedSigner, s.Leaf, r, end, err)
	})
	t.Run("for their issuer alone", func(t *testing.T) {
		twin := scene.New() // of the same name
		require.Equal(t, s.CA.Issuer.RawSubject, twin.CA.Issuer.RawSubject)
		r, end, err := verify(twin, v, twin.SignedBy(signer, signer.Certificate))
		refused(t, staple.ReasonUnauthorizedSigner, twin.Leaf, r, end, err)
	})
	t.Run("in their issuer's name alone", func(t *testing.T) {
		issuer, leaf := *s.CA.Issuer, *s.Leaf
		issuer.RawSubject, leaf.RawIssuer = s.CA.Root.RawSubject, s.CA.Root.RawSubject
		r, end, err := v.Verify(s.Response(func(r *stapletest.Response) {
			r.Signer, r.Singles[0].Issuer = signer, &issuer
		}), &leaf, &issuer, s.Now)
		refused(t, staple.ReasonUnauthorizedSigner, &leaf, r, end, err)
	})
	t.Run("whatever becomes of the response's memory", func(t *testing.T) {
		again := bytes.Clone(der)
		clear(der)
		issuer := *s.CA.Issuer
		issuer.PublicKey = nil
		_, _, err := v.Verify(again, s.Leaf, &issuer, s.Now)
		require.NoError(t, err)
	})
}

func TestWhatIsMissing(t *testing.T) {
	s := scene.New()
	d := s.CA.Delegate(stapletest.DelegateOptions{})
	for _, der := range [][]byte{nil, {}, s.Response(nil), s.SignedBy(d, d.Certificate)} {
		r, end, err := new(staple.ResponseVerifier).Verify(der, nil, s.CA.Issuer, s.Now)
		refused(t, staple.ReasonWrongCertificate, nil, r, end, err)
		r, end, err = new(staple.ResponseVerifier).Verify(der, nil, nil, s.Now)
		refused(t, staple.ReasonWrongCertificate, nil, r, end, err)
		r, end, err = new(staple.ResponseVerifier).Verify(der, s.Leaf, nil, s.Now)
		refused(t, staple.ReasonUnauthorizedSigner, s.Leaf, r, end, err)
		require.ErrorIs(t, err, staple.ErrNoIssuer)

		empty := new(x509.Certificate)
		_, _, err = new(staple.ResponseVerifier).Verify(der, empty, s.CA.Issuer, s.Now)
		require.Error(t, err)
		_, _, err = new(staple.ResponseVerifier).Verify(der, s.Leaf, empty, s.Now)
		require.Error(t, err)
		_, _, err = new(staple.ResponseVerifier).Verify(der, s.Leaf, s.CA.Issuer, time.Time{})
		require.Error(t, err)
	}
	// An issuer without a key, or whose key cannot be read, hashes to nothing.
	r, end, err := new(staple.ResponseVerifier).Verify(s.Response(nil), s.Leaf,
		&x509.Certificate{RawSubject: s.CA.Issuer.RawSubject, RawSubjectPublicKeyInfo: []byte{0x30, 0}}, s.Now)
	refused(t, staple.ReasonWrongCertificate, s.Leaf, r, end, err)
	// One that did not issue the leaf.
	other := scene.New()
	r, end, err = new(staple.ResponseVerifier).Verify(s.Response(nil), s.Leaf, other.CA.Issuer, s.Now)
	refused(t, staple.ReasonWrongCertificate, s.Leaf, r, end, err)
}

func TestErrorsSayWhatWasSeen(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{Name: "Issuing CA"})
	leaf := ca.Leaf(stapletest.LeafOptions{Names: []string{"example.com"}, Serial: big.NewInt(0xa104)}).Leaf
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	s := scene.Scene{CA: ca, Leaf: leaf, Now: now}
	at := func(this, next time.Duration) func(*stapletest.Response) {
		return func(r *stapletest.Response) {
			r.ProducedAt = now
			r.Singles[0].ThisUpdate, r.Singles[0].NextUpdate = now.Add(this), now.Add(next)
		}
	}
	sibling := ca.Leaf(stapletest.LeafOptions{CommonName: "evil\n\x1b[31m", Serial: big.NewInt(7)})
	other := stapletest.NewCA(stapletest.CAOptions{Name: "Another CA"})
	issuer := fmt.Sprintf(`"CN=Issuing CA" (serial %s)`, name.Serial(ca.Issuer.SerialNumber.Bytes()))
	expired := ca.Delegate(stapletest.DelegateOptions{NotBefore: now.Add(-2 * scene.Day), NotAfter: now.Add(-scene.Day)})
	for _, test := range []struct {
		name, want string
		der        []byte
	}{
		{"an error status", `ocsp: error from server: try later`, ocsp.TryLaterErrorResponse},
		{"HTML", `not one OCSPResponse in DER: 6 bytes that begin with 3c68746d6c3e`, []byte("<html>")},
		{"expired", `nextUpdate was 2026-11-22T11:00:00Z, and the clock says 2026-11-22T12:00:00Z`, s.Response(at(-scene.Day, -time.Hour))},
		{"in the future", `thisUpdate is 2026-11-22T13:00:00Z, and the clock says 2026-11-22T12:00:00Z`, s.Response(at(time.Hour, scene.Day))},
		{"1969", `thisUpdate is 1969-11-23T12:00:00Z and producedAt is 2026-11-22T12:00:00Z: no time before 1970 makes sense`,
			s.Response(at(now.AddDate(-57, 0, 1).Sub(now), scene.Day))},
		{"nextUpdate first", `nextUpdate 2026-11-21T12:00:00Z is before thisUpdate 2026-11-22T12:00:00Z`, s.Response(at(0, -scene.Day))},
		{"a sibling", `signed by "CN=evil\n\x1b[31m" (serial 07), which lacks the extended key usage OCSPSigning`,
			s.SignedBy(&stapletest.Signer{Certificate: sibling.Leaf, Key: sibling.PrivateKey.(crypto.Signer)}, sibling.Leaf)},
		{"a stranger by name", `its responderID names "CN=Another CA", which is neither the issuer ` + issuer + `, nor a local or embedded responder`,
			s.Response(func(r *stapletest.Response) {
				r.Signer, r.ByName, r.Certificates = other.Signer(), true, []*x509.Certificate{}
			})},
		{"another serial", `it is about the certificate with serial 07`, s.Response(func(r *stapletest.Response) {
			r.Singles[0].Serial = big.NewInt(7)
		})},
		{"other serials", `it is about 2 other certificates, the first with serial 80:00`, s.Response(func(r *stapletest.Response) {
			r.Singles[0].Serial = big.NewInt(0x8000)
			r.Singles = append(r.Singles, r.Singles[0])
		})},
		{"SHA-1", `its signature is not checked with the key of ` + issuer + `: ECDSA-SHA1 is unknown or too weak, ` +
			`want SHA-256, SHA-384, SHA-512, Ed25519 or ML-DSA`, s.Response(func(r *stapletest.Response) {
			r.SignatureAlgorithm = x509.ECDSAWithSHA1
		})},
		{"an expired delegate", `the end of its signer's certificate was 2026-11-21T12:00:00Z, and the clock says 2026-11-22T12:00:00Z`,
			s.Response(func(r *stapletest.Response) { at(-scene.Day, scene.Day)(r); r.Signer = expired })},
		{"a critical extension", `unknown critical extension 1.2.3 in singleExtensions`, s.Response(func(r *stapletest.Response) {
			r.Singles[0].Extensions = []pkix.Extension{scene.Extension(true, 1, 2, 3)}
		})},
		{"a bad time", `thisUpdate is "2026\n", want YYYYMMDDHHMMSSZ`, s.Element("thisUpdate", append([]byte{0x18, 5}, "2026\n"...)...)},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := verify(s, new(staple.ResponseVerifier), test.der)
			require.EqualError(t, err, `staple: OCSP response for "CN=example.com" (serial a1:04) refused: `+test.want)
		})
	}
	var status ocsp.ResponseError
	_, _, err := verify(s, new(staple.ResponseVerifier), ocsp.UnauthorizedErrorResponse)
	require.True(t, errors.As(err, &status))
	require.Equal(t, ocsp.Unauthorized, status.Status)
}

func TestReasonString(t *testing.T) {
	seen := map[string]bool{}
	for r := staple.ReasonMalformed; r <= staple.ReasonUnsupportedAlgorithm; r++ {
		require.NotContains(t, r.String(), "Reason")
		require.False(t, seen[r.String()])
		seen[r.String()] = true
	}
	require.Equal(t, "Reason(0)", staple.Reason(0).String())
	require.Equal(t, "Reason(9)", staple.Reason(9).String())
}
