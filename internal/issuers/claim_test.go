package issuers

import (
	"crypto/x509"
	"testing"

	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

func TestAnAuthorityIsKnownByNameAndKeyIdentifierAndByTheKeyIfThatIsThere(t *testing.T) {
	one, other := testCA().Leaf(stapletest.LeafOptions{}).Leaf, testCA().Leaf(stapletest.LeafOptions{}).Leaf
	known := Authority(one, nil)
	require.Equal(t, known, Authority(other, nil))
	require.NotEqual(t, known, Authority(testCA().Issuer, nil))
	require.NotEqual(t, known, Authority(one, testCA().Issuer))
	require.Equal(t, Authority(one, testCA().Issuer), Authority(other, testCA().Issuer))
	require.NotEqual(t, Authority(one, testCA().Issuer), Authority(one, testCA().Root))
	renamed := *one
	renamed.RawIssuer = []byte("another")
	require.NotEqual(t, known, Authority(&renamed, nil))
	rekeyed := *one
	rekeyed.AuthorityKeyId = []byte("another")
	require.NotEqual(t, known, Authority(&rekeyed, nil))
}

func TestClaimedGoesByTheNameAlone(t *testing.T) {
	leaf := testCA().Leaf(stapletest.LeafOptions{}).Leaf
	right, wrong := testCA().Issuer, testCA().Root
	namesake := *wrong
	namesake.RawSubject = right.RawSubject
	require.Nil(t, Claimed(leaf, nil, nil))
	require.Nil(t, Claimed(leaf, [][]byte{wrong.Raw, []byte("broken")}, []*x509.Certificate{nil, wrong}))
	require.True(t, right.Equal(Claimed(leaf, [][]byte{[]byte("broken"), wrong.Raw, right.Raw}, []*x509.Certificate{&namesake})))
	require.Same(t, &namesake, Claimed(leaf, [][]byte{wrong.Raw}, []*x509.Certificate{nil, &namesake, right}))
}

func TestCandidatesAreWhatParses(t *testing.T) {
	all, broken := Candidates([][][]byte{{testCA().Root.Raw, []byte("broken")}, nil, {testCA().Issuer.Raw}})
	require.Len(t, all, 2)
	require.True(t, all[0].Equal(testCA().Root))
	require.True(t, all[1].Equal(testCA().Issuer))
	require.Len(t, broken, 1)
	require.ErrorContains(t, broken[0], "certificate 2 in the chain does not parse")
}
