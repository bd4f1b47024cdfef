package ocspder

import (
	"crypto"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/go-staple/staple/internal/scene"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestStatementsThatDisagreeAreNeverGood(t *testing.T) {
	s := scene.New()
	type statement struct {
		status int
		age    time.Duration
	}
	statuses := map[int]string{ocsp.Good: "good", ocsp.Revoked: "revoked", ocsp.Unknown: "unknown"}
	for _, test := range []struct {
		want statement
		all  []statement
	}{
		{statement{ocsp.Revoked, 2 * scene.Day}, []statement{{ocsp.Good, scene.Day}, {ocsp.Revoked, 2 * scene.Day}}},
		{statement{ocsp.Revoked, 2 * scene.Day}, []statement{{ocsp.Revoked, 2 * scene.Day}, {ocsp.Good, scene.Day}}},
		{statement{ocsp.Revoked, 2 * scene.Day}, []statement{{ocsp.Unknown, scene.Day}, {ocsp.Revoked, 2 * scene.Day}, {ocsp.Good, scene.Day}}},
		{statement{ocsp.Unknown, 2 * scene.Day}, []statement{{ocsp.Good, scene.Day}, {ocsp.Unknown, 2 * scene.Day}}},
		{statement{ocsp.Unknown, 2 * scene.Day}, []statement{{ocsp.Unknown, 2 * scene.Day}, {ocsp.Good, scene.Day}}},
		{statement{ocsp.Good, scene.Day}, []statement{{ocsp.Good, 2 * scene.Day}, {ocsp.Good, scene.Day}, {ocsp.Good, 3 * scene.Day}}},
		{statement{ocsp.Revoked, scene.Day}, []statement{{ocsp.Revoked, 2 * scene.Day}, {ocsp.Revoked, scene.Day}}},
	} {
		var name strings.Builder
		for _, one := range test.all {
			fmt.Fprintf(&name, "%s %v old, ", statuses[one.status], one.age)
		}
		t.Run(name.String()+"is "+statuses[test.want.status], func(t *testing.T) {
			_, match, err := read(s, s.Response(func(r *stapletest.Response) {
				own := r.Singles[0]
				r.Singles = nil
				for i, one := range test.all {
					own.Status, own.RevokedAt = one.status, s.Now
					own.ThisUpdate = s.Now.Add(-one.age)
					own.Hash = []crypto.Hash{crypto.SHA1, crypto.SHA256}[i%2]
					r.Singles = append(r.Singles, own)
				}
			}))
			require.NoError(t, err)
			require.Equal(t, test.want.status, match.Best.Status)
			require.Equal(t, s.Now.Add(-test.want.age).UTC(), match.Best.ThisUpdate)
		})
	}
	t.Run("of two with one thisUpdate the later nextUpdate counts", func(t *testing.T) {
		for _, order := range [][2]time.Duration{{scene.Day, 2 * scene.Day}, {2 * scene.Day, scene.Day}} {
			_, match, err := read(s, s.Response(func(r *stapletest.Response) {
				own := r.Singles[0]
				own.NextUpdate = s.Now.Add(order[0])
				r.Singles[0].NextUpdate = s.Now.Add(order[1])
				r.Singles = append(r.Singles, own)
			}))
			require.NoError(t, err)
			require.Equal(t, s.Now.Add(2*scene.Day).UTC(), match.Best.NextUpdate)
		}
	})
}

// A leaf with a negative serial number, which crypto/x509 parses if it is told to, is nothing special.
func TestNegativeSerialNumbers(t *testing.T) {
	s := scene.New()
	leaf := *s.Leaf
	leaf.SerialNumber = big.NewInt(-128)
	s.Leaf = &leaf
	_, match, err := read(s, s.Response(nil))
	require.NoError(t, err)
	require.Equal(t, leaf.SerialNumber, match.Best.SerialNumber())
	leaf.SerialNumber = big.NewInt(128)
	_, _, err = read(s, s.Response(func(r *stapletest.Response) { r.Singles[0].Serial = big.NewInt(-128) }))
	refused(t, WrongCertificate, err)
}
