package staple

import (
	"crypto/tls"
	"math"
	"runtime"
	"testing"
	"time"

	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

// The four tests that follow are of functions without a name outside: of when to ask, and of which response is newer.

func TestRefreshTime(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		validity, earliest, latest time.Duration
	}{
		{time.Hour, 27 * time.Minute, 33 * time.Minute},
		{day, 648 * time.Minute, 792 * time.Minute},
		{7 * day, 4536 * time.Minute, 5544 * time.Minute},
		{8 * day, 3*day + 864*time.Minute, 4 * day},
		{10 * day, 3*day + 864*time.Minute, 4 * day},
		{1000 * day, 3*day + 864*time.Minute, 4 * day},
	} {
		var lowest, highest time.Duration = math.MaxInt64, 0
		for range 1000 {
			due := refreshTime(&response{thisUpdate: now, until: now.Add(tt.validity), end: now.Add(tt.validity)}, now).Sub(now)
			lowest, highest = min(lowest, due), max(highest, due)
		}
		require.GreaterOrEqual(t, lowest, tt.earliest, tt.validity)
		require.LessOrEqual(t, highest, tt.latest, tt.validity)
		require.Greater(t, highest-lowest, (tt.latest-tt.earliest)*9/10, "not spread")
	}
}

func TestAfterAnUnchangedResponseTheNextTryComesAfterHalfOfWhatIsLeft(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for left, want := range map[time.Duration]time.Duration{
		6 * day:          day,
		2 * day:          day,
		10 * time.Hour:   5 * time.Hour,
		2 * time.Minute:  604800 * time.Millisecond, // a thousandth of the validity at least
		time.Millisecond: 604800 * time.Millisecond,
	} {
		r := &response{thisUpdate: now.Add(left - 7*day), until: now.Add(left), end: now.Add(left)}
		pause := unchangedTime(r, now).Sub(now)
		require.LessOrEqual(t, pause, want, left)
		require.GreaterOrEqual(t, pause, want*9/10, left)
	}
}

func TestBackoffIsBoundedAfterAnyNumberOfFailures(t *testing.T) {
	for _, failures := range []int{1, 2, 5, 10, 16, 17, 30, 63, 64, 65, 1000, math.MaxInt} {
		for _, limit := range []time.Duration{time.Second, time.Minute, time.Hour, 100 * day} {
			for range 100 {
				pause := backoff(failures, limit)
				require.GreaterOrEqual(t, pause, time.Second)
				require.LessOrEqual(t, pause, max(min(limit, time.Hour), time.Second))
			}
		}
	}
	require.LessOrEqual(t, backoff(1, time.Hour), 10*time.Second)
}

func TestNewerIsLaterThisUpdateThenProducedAtThenEndAndRevokedWinsATie(t *testing.T) {
	at := func(this, produced, end int, revoked bool) *response {
		base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		hour := func(n int) time.Time { return base.Add(time.Duration(n) * time.Hour) }
		return &response{thisUpdate: hour(this), producedAt: hour(produced), end: hour(end), revoked: revoked}
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
	released := func() int {
		l := &s.engine.released
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.owners)
	}
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

// Here since nobody outside can hold the engine's lock.
func TestNoHandshakeWaitsForTheEngine(t *testing.T) {
	w := newWorld(t)
	for name, cert := range map[string]tls.Certificate{
		"stapled":                 w.leaf(),
		"that names no responder": w.leaf(func(o *stapletest.LeafOptions) { o.Responders = []string{} }),
	} {
		for how, base := range map[string]*tls.Config{
			"by a callback": {GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }},
			"of the base":   {Certificates: []tls.Certificate{cert}},
		} {
			t.Run("a certificate "+name+" "+how, func(t *testing.T) {
				s := w.stapler()
				config := s.TLSConfig(base)
				hello := helloOf(t, w.client("www.example.com"))
				_, err := config.GetCertificate(hello)
				require.NoError(t, err)
				_ = s.Wait(soon(t))
				s.engine.mu.Lock()
				defer s.engine.mu.Unlock()
				_, err = config.GetCertificate(hello) // or this is a deadlock
				require.NoError(t, err)
			})
		}
	}
}
