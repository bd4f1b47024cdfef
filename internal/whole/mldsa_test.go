package whole

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/mldsa"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

var updateMLDSA = flag.Bool("update-mldsa", false, "make testdata/mldsa.pem anew, with Go 1.27 or newer")

// mldsaTime is when the responses of testdata/mldsa.pem are looked at.
var mldsaTime = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)

// TestMLDSANeedsGo127 looks at responses that were made with Go 1.27: built with that they are verified, built with an
// older Go the error says what is needed.
func TestMLDSANeedsGo127(t *testing.T) {
	file := filepath.FromSlash("../../testdata/mldsa.pem")
	if *updateMLDSA {
		require.NoError(t, os.WriteFile(file, mldsaFixture(), 0o666))
	}
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	certs := map[string]*x509.Certificate{}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		kind := block.Headers["Kind"]
		if block.Type == "CERTIFICATE" {
			certs[kind], err = x509.ParseCertificate(block.Bytes)
			require.NoError(t, err)
			continue
		}
		t.Run(kind, func(t *testing.T) {
			r, _, err := new(staple.ResponseVerifier).Verify(block.Bytes, certs["leaf"], certs["issuer"], mldsaTime)
			if mldsa.Supported {
				require.NoError(t, err)
				require.Equal(t, ocsp.Good, r.Status)
				return
			}
			var refusal *staple.VerifyError
			require.ErrorAs(t, err, &refusal)
			require.Equal(t, staple.ReasonUnsupportedAlgorithm, refusal.Reason)
			require.ErrorContains(t, err, "with ML-DSA-44, for which Go 1.27 is needed")
		})
	}
	require.Len(t, certs, 2)
	if !mldsa.Supported {
		c, err := world.New(t).Stapler().Add(tls.Certificate{Certificate: [][]byte{certs["leaf"].Raw, certs["issuer"].Raw}})
		require.NoError(t, err)
		err = c.Wait(world.Soon(t))
		require.ErrorIs(t, err, staple.ErrNoIssuer)
		require.ErrorContains(t, err, "it has a signature with ML-DSA-44, for which Go 1.27 is needed")
	}
}

func mldsaFixture() (text []byte) {
	ca := stapletest.NewCA(stapletest.CAOptions{KeyType: stapletest.MLDSA44})
	until := mldsaTime.AddDate(20, 0, 0)
	leaf := ca.Leaf(stapletest.LeafOptions{NotBefore: mldsaTime, NotAfter: until}).Leaf
	write := func(label, kind string, der []byte) {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: label, Headers: map[string]string{"Kind": kind}, Bytes: der})...)
	}
	write("CERTIFICATE", "issuer", ca.Issuer.Raw)
	write("CERTIFICATE", "leaf", leaf.Raw)
	delegate := func(t stapletest.KeyType) *stapletest.Signer {
		return ca.Delegate(stapletest.DelegateOptions{KeyType: t, NotBefore: mldsaTime, NotAfter: until})
	}
	for _, by := range []struct {
		kind   string
		signer *stapletest.Signer
	}{
		{"signed by the issuer", ca.Signer()},
		{"signed by a delegate with ECDSA", delegate(stapletest.ECDSAP256)},
		{"signed by a delegate with ML-DSA", delegate(stapletest.MLDSA44)},
	} {
		r := stapletest.NewResponse(ca, leaf)
		r.Signer, r.ProducedAt, r.Singles[0].ThisUpdate, r.Singles[0].NextUpdate = by.signer, mldsaTime, mldsaTime, until
		write("OCSP RESPONSE", by.kind, r.DER())
	}
	return text
}

// TestStapletestWithoutMLDSA says what becomes of its key types when they cannot be made.
func TestStapletestWithoutMLDSA(t *testing.T) {
	if mldsa.Supported {
		t.Skip("they can be made")
	}
	require.PanicsWithValue(t, "stapletest: a key of type MLDSA65 needs Go 1.27 or newer", func() {
		stapletest.NewCA(stapletest.CAOptions{KeyType: stapletest.MLDSA65})
	})
}
