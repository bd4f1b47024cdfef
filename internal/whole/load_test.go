package whole

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/exhaustive"
	"github.com/go-staple/staple/internal/race"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

// A meter is a responder that never fails and counts requests.
type meter struct {
	responder *stapletest.Responder
	mu        sync.Mutex
	times     []time.Time
	dead      bool
}

func (m *meter) RoundTrip(req *http.Request) (*http.Response, error) {
	m.mu.Lock()
	m.times = append(m.times, time.Now())
	dead := m.dead
	m.mu.Unlock()
	if dead {
		return nil, errRefused
	}
	return m.responder.RoundTrip(req)
}

func (m *meter) set(dead bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = dead
}

// reset returns the times of the requests since the last reset.
func (m *meter) reset() []time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	times := m.times
	m.times = nil
	return times
}

func TestRequestsAWeek(t *testing.T) {
	t.Parallel()
	certs, weeks := 100, 20
	if race.Enabled || testing.Short() {
		certs = 25
	}
	for _, tt := range []struct {
		name   string
		answer stapletest.Answer
		most   float64 // nginx with four workers: 672, mod_ssl: 168
	}{
		{"fresh responses of 7 days", stapletest.Answer{Validity: 7 * world.Day}, 2.1},
		{"the same bytes for 4 days, of 7 days", stapletest.Answer{Validity: 7 * world.Day, Period: 4 * world.Day}, 3.8},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				w.Responder.Set(nil, tt.answer)
				m := &meter{responder: w.Responder}
				s := w.Stapler(func(s *staple.Stapler) { s.Fetcher = &staple.HTTPFetcher{Client: &http.Client{Transport: m}} })
				var handles []*staple.Certificate
				for _, cert := range w.Many(certs) {
					c, err := s.Add(cert)
					require.NoError(t, err)
					handles = append(handles, c)
					// As by a server that gets its certificates over time: a CA that signs every four days would
					// otherwise be met at the same point of its period by all.
					time.Sleep(time.Hour)
				}
				m.reset()
				for range weeks * 7 {
					time.Sleep(world.Day)
					synctest.Wait()
					for _, c := range handles {
						require.NotNil(t, c.TLS().OCSPStaple)
					}
				}
				average := float64(len(m.reset())) / float64(certs*weeks)
				t.Logf("%s: %.2f requests a certificate and week", tt.name, average)
				require.LessOrEqual(t, average, tt.most)
				require.Greater(t, average, 7.0/4*0.9, "they are not kept current")
			})
		})
	}
}

// TestTenThousandLoadedAtOnceDoNotRefreshAtOnce looks at the second round of many certificates that had
// their first together, and at the round after a restart in an outage, at the end of which all of them
// are fetched together again. The times are even over 17 hours, so in ten minutes there are about 99,
// and twice as many are ten standard deviations away. With fewer certificates, as there are without
// -exhaustive, it is the same of longer than ten minutes.
func TestTenThousandLoadedAtOnceDoNotRefreshAtOnce(t *testing.T) {
	t.Parallel()
	n := 5000
	switch {
	case exhaustive.Enabled():
		n = 10_000
	case race.Enabled || testing.Short():
		n = 1000
	}
	span := 10 * time.Minute * time.Duration(10_000/n)
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		m := &meter{responder: w.Responder}
		cache := staple.NewMemoryCache()
		load := func(certs []tls.Certificate) (*staple.Stapler, *tls.Config) {
			s := &staple.Stapler{
				Fetcher: &staple.HTTPFetcher{Client: &http.Client{Transport: m}},
				Cache:   cache,
				Logger:  slog.New(slog.DiscardHandler),
			}
			return s, s.TLSConfig(&tls.Config{Certificates: certs})
		}
		requireEven := func(what string) {
			t.Helper()
			times := m.reset()
			w.Responder.Reset(nil)
			require.Len(t, times, n, what)
			buckets := make(map[int64]int)
			first, last := times[0], times[0]
			for _, at := range times {
				buckets[at.UnixNano()/int64(span)]++
				if at.Before(first) {
					first = at
				}
				if at.After(last) {
					last = at
				}
			}
			largest := slices.Max(slices.Collect(maps.Values(buckets)))
			average := float64(n) / (float64(last.Sub(first)) / float64(span))
			t.Logf("%s: %d requests in %s, %.1f in %s, %d at most", what, n, last.Sub(first), average, span, largest)
			require.Less(t, float64(largest), 2*average, what)
		}
		certs := w.Many(n)
		s, config := load(certs)
		require.NoError(t, s.Wait(t.Context()))
		require.Len(t, m.reset(), n)
		time.Sleep(4 * world.Day)
		synctest.Wait()
		requireEven("the second round")

		m.set(true)
		time.Sleep(2 * world.Day) // not due yet
		require.NoError(t, s.Close())
		runtime.KeepAlive(config)
		require.Empty(t, m.reset())
		time.Sleep(36 * time.Hour) // past the refresh time of all, but not their end
		s, config = load(certs)
		for c := range s.Certificates() {
			require.NotNil(t, c.TLS().OCSPStaple)
		}
		time.Sleep(12 * time.Hour)
		synctest.Wait()
		require.Less(t, len(m.reset()), n/2, "a host in an outage is asked too often")
		m.set(false)
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Len(t, m.reset(), n, "not all have caught up")
		time.Sleep(4 * world.Day)
		synctest.Wait()
		requireEven("the round after a restart in an outage")
		require.NoError(t, s.Close())
		runtime.KeepAlive(config)
	})
}

func TestThousandsLoadedTogetherDoNotRefreshTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		key := w.Leaf().PrivateKey
		var certs []tls.Certificate
		for i := range 500 {
			certs = append(certs, w.Leaf(world.Names(fmt.Sprint(i, ".example.com")), world.SameKey(key)))
		}
		s := w.Stapler()
		config := s.TLSConfig(&tls.Config{Certificates: certs})
		require.NoError(t, s.Wait(t.Context()))
		w.Responder.Reset(nil)
		time.Sleep(4 * world.Day)
		perHour := make(map[time.Time]int)
		requests := w.Responder.Requests(nil)
		require.InDelta(t, 500, len(requests), 50)
		for _, r := range requests {
			perHour[r.Time.Truncate(time.Hour)]++
		}
		for hour, n := range perHour {
			require.Less(t, n, 70, hour) // 500 in 17 hours: 30
		}
		runtime.KeepAlive(config)
	})
}
