package staple

import (
	"crypto/tls"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestNewerIsLaterThisUpdateThenProducedAtThenEndAndRevokedWinsATie(t *testing.T) {
	at := func(this, produced, end int, revoked bool) *response {
		base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		hour := func(n int) time.Time { return base.Add(time.Duration(n) * time.Hour) }
		return &response{thisUpdate: hour(this).UnixMicro(), producedAt: hour(produced).UnixMicro(), end: hour(end).UnixMicro(), revoked: revoked}
	}
	ascending := []*response{
		at(1, 5, 9, true), at(2, 2, 3, false), at(2, 3, 1, true), at(2, 3, 3, false), at(2, 3, 3, true), at(3, 0, 0, false),
	}
	for i, a := range ascending {
		for j, b := range ascending {
			require.Equal(t, i > j, a.newer(b), "%d, %d", i, j)
		}
	}
}

// Here since nothing outside tells that a configuration without certificates is remembered.
func TestConfigurationsThatAreGoneAreForgottenWithoutAnyCertificate(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	released := func() int { return s.engine.released.Len() }
	for range 100 {
		s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }})
	}
	require.Eventually(t, func() bool {
		runtime.GC()
		return released() > 50
	}, 10*time.Second, 10*time.Millisecond)
	s.TLSConfig(nil)
	require.Less(t, released(), 50)
}
