package whole

import (
	"bytes"
	"crypto/x509"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/vectors"
)

// What testdata/vectors tells others to say of each response is what ResponseVerifier says.
func TestVectors(t *testing.T) {
	file, err := vectors.Read("../../testdata/vectors/ocsp.json")
	require.NoError(t, err)
	require.Len(t, file.Groups, 2)
	for _, g := range file.Groups {
		t.Run(g.Name, func(t *testing.T) {
			leaf, err := x509.ParseCertificate(g.Leaf)
			require.NoError(t, err)
			issuer, err := x509.ParseCertificate(g.Issuer)
			require.NoError(t, err)
			verifier := new(staple.ResponseVerifier)
			for _, v := range g.Vectors {
				t.Run(v.Name, func(t *testing.T) {
					r, end, err := verifier.Verify(bytes.Clone(v.Response), leaf, issuer, g.Time)
					if v.Verdict == vectors.Refuse {
						var refused *staple.VerifyError
						require.True(t, errors.As(err, &refused), "%v", err)
						require.Equal(t, v.Reason, refused.Reason.String(), refused)
						return
					}
					require.Equal(t, vectors.Accept, v.Verdict)
					require.NoError(t, err)
					require.Equal(t, v.Status, vectors.Status(r.Status))
					require.True(t, end.After(g.Time))
				})
			}
		})
	}
}
