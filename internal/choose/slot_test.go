package choose

import (
	"crypto/tls"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/go-staple/staple/internal/wall"
	"github.com/stretchr/testify/require"
)

func TestASlotShowsAStapleUntilItsEnd(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	t.Cleanup(wall.Set(func() time.Time { return now }))
	var s Slot[nobody]
	require.Nil(t, s.Shown())
	plain := &tls.Certificate{Certificate: [][]byte{{1}}}
	s.Put(plain)
	requireShown := func(der []byte) {
		t.Helper()
		cert, stapled := s.Current()
		require.Equal(t, der != nil, stapled)
		require.Equal(t, der, cert.OCSPStaple)
		require.Equal(t, plain.Certificate, cert.Certificate)
		require.Same(t, cert, s.Shown())
	}
	requireShown(nil)
	require.Same(t, plain, s.Shown())

	s.Staple([]byte{1}, now.Add(time.Hour))
	requireShown([]byte{1})
	require.Empty(t, plain.OCSPStaple, "what was put stays as it is")
	now = now.Add(time.Hour - time.Microsecond)
	requireShown([]byte{1})
	before := s.Shown()
	now = now.Add(time.Microsecond)
	requireShown(nil)
	require.Equal(t, []byte{1}, before.OCSPStaple, "who has been given it keeps it")
	now = now.Add(-time.Hour)
	requireShown(nil)

	s.Staple([]byte{2}, now.Add(-time.Hour))
	requireShown(nil)
	s.Staple([]byte{3}, now.Add(time.Hour))
	requireShown([]byte{3})
	cert, stapled := s.At(now.Add(2 * time.Hour).UnixMicro()) // the clock was set back since
	require.True(t, stapled)
	require.Equal(t, []byte{3}, cert.OCSPStaple)
	s.Unstaple()
	requireShown(nil)
	shown := s.Shown()
	s.Unstaple()
	require.Same(t, shown, s.Shown())
}

// However the staple changes and ends meanwhile, a handshake gets a certificate as it
// was at some moment.
func TestAStapleThatEndsAndChangesIsNeverSeenHalf(t *testing.T) {
	var s Slot[nobody]
	s.Put(new(tls.Certificate))
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				if cert, stapled := s.Current(); stapled != (cert.OCSPStaple != nil) {
					t.Errorf("stapled %t, and %d bytes", stapled, len(cert.OCSPStaple))
					return
				}
			}
		})
	}
	hence := time.Now().Add(time.Hour)
	for i := range 500000 {
		switch i % 4 {
		case 0:
			s.Staple([]byte{1}, hence)
		case 1:
			s.Staple([]byte{2}, time.Now().Add(time.Duration(i)))
		case 2:
			s.Staple([]byte{3}, hence) // the same end as before
		case 3:
			s.Unstaple()
		}
	}
	stop.Store(true)
	wg.Wait()
}

func TestASlotLeavesRoomInItsCacheLine(t *testing.T) {
	require.LessOrEqual(t, unsafe.Sizeof(Slot[nobody]{}), uintptr(40))
}
