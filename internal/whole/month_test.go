package whole

import (
	"bytes"
	"crypto"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/race"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// A month is what many hosts do to one process with many certificates. A quarter of the hosts fails in each way, all of
// them now and then.
type month struct {
	t        *testing.T
	w        *world.World
	validity time.Duration

	mu       sync.Mutex
	hosts    []*monthHost
	bySerial map[string]*monthCert
	issued   map[string]time.Time // the ends of responses
	requests int
	allowed  float64 // requests, by how long hosts were away
	hung     map[*http.Request]time.Time

	checked, waiting, outOfReach int
	expired, tooLate             int // must be zero
	goroutines                   int
	gaps                         map[string]gap
}

type monthHost struct {
	scope
	way   string
	fails bool
	certs []*monthCert
}

type monthCert struct {
	host   *monthHost
	handle *staple.Certificate
	end    time.Time // of what was answered last
	staple []byte    // that was seen last
	ends   time.Time
}

var monthWays = []string{"refused", "hung", "503", "useless"}

const monthRequest = 20 * time.Millisecond

// RoundTrip is that of all hosts.
func (m *month) RoundTrip(req *http.Request) (*http.Response, error) {
	q, err := question(req)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.requests++
	c := m.bySerial[q.SerialNumber.String()]
	h := c.host
	fails, useless := h.fails, ocsp.UnauthorizedErrorResponse
	if m.requests%2 == 0 {
		useless = []byte("<html>")
	}
	if fails && h.way == "hung" {
		m.hung[req], _ = req.Context().Deadline()
	}
	m.mu.Unlock()
	answer := func(status int, body []byte) (*http.Response, error) {
		return &http.Response{StatusCode: status, Body: io.NopCloser(bytes.NewReader(body)), Request: req}, nil
	}
	switch {
	case !fails:
	case h.way == "refused":
		return nil, errRefused
	case h.way == "hung":
		<-req.Context().Done()
		m.mu.Lock()
		delete(m.hung, req)
		m.mu.Unlock()
		return nil, req.Context().Err()
	case h.way == "503":
		return answer(503, nil)
	default:
		return answer(200, useless)
	}
	resp, err := m.w.Responder.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	body, _ := io.ReadAll(resp.Body)
	m.mu.Lock()
	if now := time.Now(); !now.Before(c.end) {
		m.lacked(c)
	}
	c.end = time.Now().Truncate(time.Second).Add(m.validity)
	m.issued[string(body)] = c.end
	h.heal()
	m.mu.Unlock()
	return answer(200, body)
}

// weather lets a host fail, and come back, until the month is over.
func (m *month) weather(h *monthHost, r *rand.Rand, end time.Time) {
	for first := true; ; first = false {
		if gap := time.Duration(r.ExpFloat64() * 1.5 * float64(world.Day)); !first || r.IntN(4) > 0 {
			time.Sleep(gap)
		}
		if !time.Now().Before(end) {
			return
		}
		length := time.Duration(float64(time.Second) * math.Exp(r.Float64()*math.Log(2*world.Day.Seconds())))
		m.mu.Lock()
		h.fails = true
		h.begin(&fault{kind: h.way})
		m.mu.Unlock()
		time.Sleep(length)
		m.mu.Lock()
		h.fails = false
		var hung time.Duration
		for _, until := range m.hung {
			hung = max(hung, time.Until(until))
		}
		h.finish(&fault{}, hung)
		// Every two seconds at first, every 15 from the fifth minute on, every 2.5 minutes after an hour; up to five
		// requests in a round, with GET and POST and either hash, and room for chance; and once more at each staple's end.
		m.allowed += 7 * (270 + float64(len(h.certs)) + length.Seconds()/150)
		within, _ := promised(length)
		if d, _ := alone(false, length); h.way == "useless" {
			within = max(within, d)
		}
		m.mu.Unlock()
		time.Sleep(within + hung + time.Second)
		m.look(h)
	}
}

// look looks at handshakes with the certificates of a host.
func (m *month) look(h *monthHost) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for _, c := range h.certs {
		m.checked++
		staple := c.handle.TLS().OCSPStaple
		switch {
		case len(staple) > 0:
			if c.staple == nil || &staple[0] != &c.staple[0] {
				c.staple, c.ends = staple, m.issued[string(staple)]
			}
			if !now.Before(c.ends) {
				m.expired++
			}
		case h.fails:
			m.outOfReach++
		default:
			m.waiting++
			m.lacked(c)
		}
	}
	m.goroutines = max(m.goroutines, runtime.NumGoroutine())
}

// lacked notes that c has lacked a staple until now, though one was in reach.
func (m *month) lacked(c *monthCert) {
	h, now := c.host, time.Now()
	within, why := m.promised(h)
	since := later(later(c.end, bubbleStart), h.ended)
	if now.Sub(since) > within && h.healed.After(since) {
		since, within, why = h.healed, laterOnes, othersAfter
	}
	if h.way == "useless" && !h.ended.IsZero() { // and what has failed alone is asked about alone
		if d, reason := alone(!c.end.IsZero(), h.ended.Sub(h.since)); d > within {
			since, within, why = later(later(c.end, bubbleStart), h.ended), d, reason
		}
	}
	took := now.Sub(since)
	g := m.gaps[why]
	if g.times++; took > g.longest {
		g.longest, g.promised = took, within
	}
	g.closest = max(g.closest, took.Seconds()/within.Seconds())
	m.gaps[why] = g
	if took > within {
		if m.tooLate++; m.tooLate < 5 {
			m.t.Errorf("%v: %v without a staple that is in reach at a host that was %s from %v to %v, promised are %v: %v",
				now, took, h.way, h.since, h.ended, within, why)
		}
	}
}

// promised returns how long certificates of h may be without a staple now.
func (m *month) promised(h *monthHost) (time.Duration, string) {
	outage, ok := h.lasted(bubbleStart)
	if !ok {
		// As many as there are at the start have to be asked about, beside those who hang for thirty seconds and may have all workers.
		return atTheEnd + 33*time.Second + time.Duration(len(m.bySerial))*monthRequest/16, "a staple's end, or the start"
	}
	within, why := promised(outage)
	return within + h.hung, why
}

// TestAMonthOfManyHostsThatFail is 1,000 certificates of twenty hosts for three days, or with STAPLE_MONTH=1 10,000 of
// 200 for a month.
func TestAMonthOfManyHostsThatFail(t *testing.T) {
	hosts, days, validity := 20, 3, world.Day
	switch {
	case os.Getenv("STAPLE_MONTH") != "":
		hosts, days, validity = 200, 30, 5*world.Day
	case race.Enabled || testing.Short():
		hosts, days = 4, 2
	}
	const each = 50
	before := runtime.NumGoroutine()
	began := processorTime()
	synctest.Test(t, func(t *testing.T) {
		m := &month{t: t, w: world.New(t), validity: validity, bySerial: make(map[string]*monthCert), issued: make(map[string]time.Time),
			hung: make(map[*http.Request]time.Time), gaps: make(map[string]gap)}
		m.w.Responder.Set(nil, stapletest.Answer{Validity: validity, Delay: monthRequest})
		s := m.w.Stapler(func(s *staple.Stapler) {
			s.OnEvent = nil
			s.Fetcher = &staple.HTTPFetcher{Client: &http.Client{Transport: m}}
		})
		key := m.w.Leaf().PrivateKey.(crypto.Signer)
		end := time.Now().Add(time.Duration(days) * world.Day)
		var running sync.WaitGroup
		for i := range hosts {
			h := &monthHost{way: monthWays[i%len(monthWays)]}
			m.hosts = append(m.hosts, h)
			for range each {
				cert := m.w.Leaf(world.SameKey(key), world.LongLived, at(fmt.Sprintf("http://ocsp%d.example", i)))
				c := &monthCert{host: h}
				m.mu.Lock()
				m.bySerial[cert.Leaf.SerialNumber.String()] = c
				m.mu.Unlock()
				var err error
				c.handle, err = s.Add(cert)
				require.NoError(t, err)
				h.certs = append(h.certs, c)
			}
		}
		for i, h := range m.hosts {
			running.Go(func() { m.weather(h, rand.New(rand.NewPCG(uint64(i), 30)), end) })
		}
		for time.Now().Before(end) {
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			for _, h := range m.hosts {
				m.look(h)
			}
			if time.Until(end).Truncate(world.Day) == time.Until(end) {
				m.w.Responder.Reset(nil) // which would remember all requests
				m.w.Responder.Set(nil, stapletest.Answer{Validity: validity, Delay: monthRequest})
				m.forget()
			}
		}
		running.Wait()
		require.NoError(t, s.Close())
		allowed := m.allowed + float64(hosts*each)*(1+float64(days)*world.Day.Hours()/(0.45*validity.Hours()))
		t.Logf("%d certificates, %d hosts, %d days: %d handshakes, %d of them without a staple out of reach, %d for as long as is promised; "+
			"%d requests (at most %.0f), %.1f s of processor time, %d goroutines more", hosts*each, hosts, days, m.checked, m.outOfReach,
			m.waiting, m.requests, allowed, processorTime()-began, m.goroutines-before)
		for why, g := range m.gaps {
			t.Logf("without a staple, in reach, because of %s: %d times, %v at the longest, promised %v, closest %.0f%%", why, g.times, g.longest, g.promised, 100*g.closest)
		}
		require.Zero(t, m.expired)
		require.Zero(t, m.tooLate)
		require.NotZero(t, m.outOfReach)
		require.Less(t, float64(m.requests), allowed)
		require.Less(t, m.goroutines-before, hosts+64)
	})
}

// forget forgets responses that have ended.
func (m *month) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for der, end := range m.issued {
		if !time.Now().Before(end.Add(time.Hour)) {
			delete(m.issued, der)
		}
	}
}
