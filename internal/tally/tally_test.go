package tally

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func authority(name string) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: name}, RawSubject: []byte(name)}
}

func TestAnAuthorityHasOneTally(t *testing.T) {
	var b Book
	require.Empty(t, b.All())
	one := b.Of(authority("b"))
	require.Equal(t, "CN=b", one.CA)
	require.Same(t, one, b.Of(authority("b")))
	require.NotSame(t, one, b.Of(authority("a")))
	require.Equal(t, []*Tally{b.Of(authority("a")), one}, b.All())
}

func TestThoseThatComeLateShareATally(t *testing.T) {
	var b Book
	for i := range Most {
		require.NotEqual(t, others, b.Of(authority(fmt.Sprint(i))).CA)
	}
	late := b.Of(authority("late"))
	require.Equal(t, others, late.CA)
	require.Same(t, late, b.Of(authority("later")))
	require.NotSame(t, late, b.Of(authority("7")), "those that came first keep theirs")
	require.Len(t, b.All(), Most+1)
}

func TestTheLogNamesAnAuthorityOnceAMinute(t *testing.T) {
	var tally Tally
	now := time.Unix(1e9, 0)
	for _, step := range []struct {
		after time.Duration
		n     int
		due   bool
	}{
		{0, 1, true},
		{0, 0, false},
		{Pause - 1, 0, false},
		{1, 3, true},
		{time.Second, 0, false},
		{time.Hour, 2, true},
		{Pause, 1, true},
	} {
		now = now.Add(step.after)
		n, due := tally.Unanswered(now)
		require.Equal(t, step.due, due)
		require.Equal(t, step.n, n)
	}
}

func TestWaitsAddUp(t *testing.T) {
	var tally Tally
	tally.Wait(time.Second)
	tally.Wait(2 * time.Second)
	require.EqualValues(t, 2, tally.Waits.Load())
	require.Equal(t, 3*time.Second, tally.Waited())
}
