package ocspder

import (
	"bytes"
	"crypto/x509"
	"errors"
	"slices"
	"testing"

	"github.com/go-staple/staple/internal/scene"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// What is read is one whole response, and no byte more.
func FuzzParseResponse(f *testing.F) {
	_, responses := scene.Fixture(f, "../../testdata")
	for _, der := range responses {
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		var singles []Single
		r, err := Read(der, func(s Single) { singles = append(singles, s) })
		if err != nil {
			require.Nil(t, r)
			if _, ok := errors.AsType[ocsp.ResponseError](err); !ok {
				var refusal *Error
				require.ErrorAs(t, err, &refusal)
				require.NotZero(t, refusal.Kind)
			}
			require.Less(t, len(err.Error()), 1000)
			return
		}
		require.True(t, bytes.Contains(der, r.TBS))
		require.True(t, bytes.Contains(der, r.Signature))
		require.NotZero(t, r.Algorithm)
		require.NotEqual(t, r.ResponderName == nil, r.ResponderKeyHash == nil)
		for _, s := range singles {
			require.True(t, bytes.Contains(r.TBS, s.Serial))
			require.Equal(t, s.Serial, integer(s.SerialNumber()))
			form := s.ThisUpdate.Format("20060102150405Z")
			require.True(t, bytes.Contains(r.TBS, []byte(form)))
		}
		for _, other := range [][]byte{append(bytes.Clone(der), 0), der[:len(der)-1], der[1:]} {
			_, err := Read(other, func(Single) {})
			require.Error(t, err)
		}
		for cert := range r.Certificates() {
			require.True(t, bytes.Contains(der, cert))
		}
		r.Responder()
	})
}

// Whatever both this package and golang.org/x/crypto/ocsp can read, they read alike.
func FuzzAgainstXCrypto(f *testing.F) {
	s, responses := scene.Fixture(f, "../../testdata")
	for _, der := range responses {
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		var singles []Single
		r, err := Read(der, func(s Single) { singles = append(singles, s) })
		var status ocsp.ResponseError
		if errors.As(err, &status) {
			_, err := ocsp.ParseResponse(der, nil)
			require.Equal(t, status, err)
		}
		if err != nil || len(singles) != 1 {
			return
		}
		for _, issuer := range []*x509.Certificate{nil, s.CA.Issuer} {
			want, err := ocsp.ParseResponse(der, issuer)
			if err != nil {
				continue
			}
			got := r.Result(&singles[0])
			got.Raw, got.Certificate = der, want.Certificate
			require.Zero(t, want.SerialNumber.Cmp(got.SerialNumber))
			got.SerialNumber = want.SerialNumber
			if want.SignatureAlgorithm == 0 {
				got.SignatureAlgorithm = 0 // RSASSA-PSS and Ed25519
			}
			require.Equal(t, want, got)
		}
	})
}

// What comes out of the trimmer says the same, embeds what it was told to, and is not changed by trimming it again.
func FuzzTrimmed(f *testing.F) {
	s, responses := scene.Fixture(f, "../../testdata")
	for _, der := range responses {
		f.Add(der, []byte(nil))
		f.Add(der, s.Leaf.Raw)
	}
	f.Fuzz(func(t *testing.T, der, cert []byte) {
		cert, err := AsSigned(cert)
		if err != nil {
			cert = nil
		} else if again, err := AsSigned(cert); err != nil || !bytes.Equal(cert, again) {
			t.Errorf("no fixed point of AsSigned: %v", err)
		}
		was := bytes.Clone(der)
		var singles, same []Single
		r, err := Read(der, func(s Single) { singles = append(singles, s) })
		if err != nil {
			return
		}
		trimmed := r.Trimmed(cert)
		require.Equal(t, was, der)
		again, err := Read(trimmed, func(s Single) { same = append(same, s) })
		require.NoError(t, err)
		require.Equal(t, singles, same)
		require.Equal(t, r.TBS, again.TBS)
		require.Equal(t, r.Algorithm, again.Algorithm)
		require.Equal(t, r.Signature, again.Signature)
		var embedded [][]byte
		if cert != nil {
			embedded = append(embedded, cert)
		}
		require.Equal(t, embedded, slices.Collect(again.Certificates()))
		require.Same(t, &trimmed[0], &again.Trimmed(cert)[0], "no fixed point")
		again.raw = nil
		require.Equal(t, trimmed, again.Trimmed(cert))
	})
}
