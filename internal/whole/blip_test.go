package whole

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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

// A gate is the only way to a responder. While it is shut, connections are refused, or hang.
type gate struct {
	responder http.RoundTripper

	mu    sync.Mutex
	shut  bool
	hangs bool
	inner map[*http.Request]time.Time // requests that hang, and when the client gives them up at the latest
}

func (g *gate) RoundTrip(req *http.Request) (*http.Response, error) {
	g.mu.Lock()
	shut, hangs := g.shut, g.hangs
	if shut && hangs {
		if g.inner == nil {
			g.inner = make(map[*http.Request]time.Time)
		}
		g.inner[req], _ = req.Context().Deadline()
	}
	g.mu.Unlock()
	switch {
	case !shut:
		return g.responder.RoundTrip(req)
	case !hangs:
		return nil, errRefused
	}
	<-req.Context().Done()
	g.mu.Lock()
	delete(g.inner, req)
	g.mu.Unlock()
	return nil, req.Context().Err()
}

// close shuts the gate.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = true
}

// open opens the gate, and returns for how long the last of those requests still hangs that are in flight.
func (g *gate) open() (hangs time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = false
	for _, end := range g.inner {
		hangs = max(hangs, time.Until(end))
	}
	return hangs
}

// A blip is an outage of one host. It begins when certificates are added that are asked about there; or just after
// they were stapled, and their staples end halfway.
type blip struct {
	outage       time.Duration
	certificates int
	hangs        bool
	stapled      bool
}

// blipRequest is how long a request takes once the host is back.
const blipRequest = 50 * time.Millisecond

// promised returns how long after the recovery the first staple comes at the latest, and the last. A request may
// add to that.
func (b blip) promised() (first, last time.Duration) {
	first = 5 * time.Minute
	if b.outage <= time.Hour {
		first = min(5*time.Second+b.outage/10, 35*time.Second)
	}
	return first, first + 10*time.Second
}

// blipLeaves are certificates for blips, which are made once, and in a bubble: these begin all at one moment.
var blipLeaves = sync.OnceValue(func() []tls.Certificate {
	return (&world.World{CA: world.CA()}).Many(1000)
})

// run returns how long after the recovery the first and the last staple came, and how long the requests that
// were in flight at the recovery went on to hang.
func (b blip) run(t *testing.T) (first, last, hangs time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Delay: blipRequest, Validity: b.outage / 2})
		g := &gate{responder: w.Responder, shut: !b.stapled, hangs: b.hangs}
		var mu sync.Mutex
		var times []time.Time
		s := w.Stapler(func(s *staple.Stapler) {
			s.Fetcher = &staple.HTTPFetcher{Client: &http.Client{Transport: g}}
			s.OnEvent = func(e staple.Event) {
				if e.Kind == staple.EventStapled {
					mu.Lock()
					defer mu.Unlock()
					times = append(times, time.Now())
				}
			}
		})
		for _, cert := range blipLeaves()[:b.certificates] {
			_, err := s.Add(cert)
			require.NoError(t, err)
		}
		if b.stapled {
			require.NoError(t, s.Wait(t.Context()))
			synctest.Wait()
			times = nil
			g.close()
		}
		time.Sleep(b.outage)
		require.Empty(t, times)
		recovery := time.Now()
		w.Responder.Set(nil, stapletest.Answer{Delay: blipRequest})
		hangs = g.open()
		for c := range s.Certificates() {
			require.NoError(t, c.Wait(t.Context()))
		}
		synctest.Wait()
		require.Len(t, times, b.certificates)
		first, last = times[0].Sub(recovery), times[b.certificates-1].Sub(recovery)
	})
	return first, last, hangs
}

// require runs b a number of times, requires what is promised, and returns the worst.
func (b blip) require(t *testing.T, times int) (first, last, hangs time.Duration) {
	soon, all := b.promised()
	for range times {
		f, l, h := b.run(t)
		require.LessOrEqual(t, f, soon+h+blipRequest, "%+v: the first", b)
		require.LessOrEqual(t, l, all+h+blipRequest, "%+v: the last", b)
		first, last, hangs = max(first, f), max(last, l), max(hangs, h)
	}
	return first, last, hangs
}

// TestBlip tells how long after an outage staples are there, beside what is promised. The table that it prints is in
// docs/outages.md.
func TestBlip(t *testing.T) {
	counts := map[int]int{1: 4, 16: 4, 100: 2, 1000: 1} // certificates, and how often that is tried
	switch {
	case exhaustive.Enabled():
		counts = map[int]int{1: 8, 16: 8, 100: 4, 1000: 2}
	case race.Enabled || testing.Short():
		counts = map[int]int{1: 2, 16: 2, 100: 1}
	}
	var text strings.Builder
	const row = "| %-8s | %-6s | %12s | %7s | %8s | %7s | %8s | %6s |\n"
	fmt.Fprintf(&text, row, "the host", "outage", "certificates", "first", "promised", "last", "promised", "hung")
	for i, width := range []int{8, 6, 12, 7, 8, 7, 8, 6} {
		fmt.Fprintf(&text, "| %s%s ", strings.Repeat("-", width-min(i/2, 1)), strings.Repeat(":", min(i/2, 1)))
	}
	text.WriteString("|\n")
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
	for _, hangs := range []bool{false, true} {
		for _, outage := range []time.Duration{time.Second, time.Minute, time.Hour, 6 * time.Hour} {
			for _, certificates := range []int{1, 16, 100, 1000} {
				this := blip{outage: outage, certificates: certificates, hangs: hangs}
				first, last, hung := this.require(t, counts[certificates])
				soon, all := this.promised()
				fault := "refuses"
				if hangs {
					fault = "hangs"
				}
				fmt.Fprintf(&text, row, fault, short(outage), fmt.Sprint(certificates), seconds(first), seconds(soon+hung),
					seconds(last), seconds(all+hung), seconds(hung))
			}
		}
	}
	t.Logf("\n%s", text.String())
}

// short returns d in words.
func short(d time.Duration) string {
	switch {
	case d >= time.Hour:
		return fmt.Sprintf("%.0f h", d.Hours())
	case d >= time.Minute:
		return fmt.Sprintf("%.0f min", d.Minutes())
	}
	return fmt.Sprintf("%.0f s", d.Seconds())
}

// TestAfterAnOutageInWhichStaplesEndedTheyAreBackAsSoon has certificates that were stapled when the outage began.
func TestAfterAnOutageInWhichStaplesEndedTheyAreBackAsSoon(t *testing.T) {
	times := 4
	if race.Enabled || testing.Short() {
		times = 1
	}
	for _, hangs := range []bool{false, true} {
		for _, outage := range []time.Duration{2 * time.Minute, time.Hour, 6 * time.Hour} {
			for _, certificates := range []int{1, 16, 100} {
				blip{outage: outage, certificates: certificates, hangs: hangs, stapled: true}.require(t, times)
			}
		}
	}
}

// Sixteen or more certificates of one host start while
// it is unreachable for one second. They were unstapled for 4.5 to 5 minutes.
func TestAStartWhileTheHostIsAwayForASecond(t *testing.T) {
	for _, certificates := range []int{1, 16, 100, 1000} {
		blip{outage: time.Second, certificates: certificates}.require(t, 1)
	}
}

// A narrow responder serves a number of requests at a time, and refuses the rest, slowly.
type narrow struct {
	responder http.RoundTripper

	mu      sync.Mutex
	room    int
	refused int
}

func (n *narrow) RoundTrip(req *http.Request) (*http.Response, error) {
	n.mu.Lock()
	full := n.room == 0
	if full {
		n.refused++
	} else {
		n.room--
	}
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if !full {
			n.room++
		}
	}()
	if !full {
		return n.responder.RoundTrip(req)
	}
	time.Sleep(2 * time.Second)
	return &http.Response{StatusCode: 503, Body: http.NoBody, Request: req}, nil
}

// One that refuses the rest slowly. 200 certificates took 1 h 40.
func TestAResponderThatServesEightAtATime(t *testing.T) {
	for _, answers := range []time.Duration{blipRequest, time.Second} {
		synctest.Test(t, func(t *testing.T) {
			w := world.New(t)
			w.Responder.Set(nil, stapletest.Answer{Delay: answers})
			n := &narrow{responder: w.Responder, room: 8}
			s := w.Stapler(func(s *staple.Stapler) { s.Fetcher = &staple.HTTPFetcher{Client: &http.Client{Transport: n}} })
			start := time.Now()
			for _, cert := range blipLeaves()[:200] {
				_, err := s.Add(cert)
				require.NoError(t, err)
			}
			for c := range s.Certificates() {
				require.NoError(t, c.Wait(t.Context()))
			}
			took := time.Since(start)
			synctest.Wait()
			t.Logf("200 certificates, an answer takes %v: %v, %d of %d requests refused", answers, took, n.refused,
				n.refused+len(w.Responder.Requests(nil)))
			require.Less(t, took, time.Minute)
			require.LessOrEqual(t, n.refused, 120)
		})
	}
}

// 10,000 certificates with a dead host each took 11 s of
// processor time in ten minutes, 20,000 took 69 s. Hosts that refuse are asked so often that fewer must do, unless
// STAPLE_HOSTS has a number.
func TestTwiceAsManyDeadHostsAreTwiceTheWork(t *testing.T) {
	t.Parallel()
	refusing, hanging := 500, 2000
	if race.Enabled || testing.Short() {
		refusing, hanging = 100, 1000
	}
	if text := os.Getenv("STAPLE_HOSTS"); text != "" {
		n, err := strconv.Atoi(text)
		require.NoError(t, err)
		refusing, hanging = n, n
	}
	var certs []tls.Certificate
	dead := func(t *testing.T, n int, hangs bool) (requests int) {
		synctest.Test(t, func(t *testing.T) {
			w := world.New(t)
			for len(certs) < n {
				url := fmt.Sprint("http://dead", len(certs), ".example")
				certs = append(certs, w.Leaf(world.SameKey(blipLeaves()[0].PrivateKey), world.LongLived, at(url)))
			}
			var asked atomic.Int64
			s := w.Stapler(func(s *staple.Stapler) {
				s.OnEvent = nil
				s.Fetcher = staple.FetcherFunc(func(ctx context.Context, req *staple.Request) ([]byte, error) {
					asked.Add(1)
					if hangs {
						select {
						case <-ctx.Done():
						case <-time.After(10 * time.Second):
						}
					}
					return nil, &staple.HTTPError{URL: req.Leaf.OCSPServer[0], Err: errRefused}
				})
			})
			for _, cert := range certs[:n] {
				_, err := s.Add(cert)
				require.NoError(t, err)
			}
			before := processorTime()
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			requests = int(asked.Load())
			t.Logf("%d dead hosts, hang %v: %d requests in ten minutes, %.1f s of processor time", n, hangs, requests,
				processorTime()-before)
		})
		return requests
	}
	for _, hangs := range []bool{true, false} {
		n, most := refusing, refusing*60
		if hangs {
			n, most = hanging, 16*60+16 // as many as there are workers, each ten seconds
		}
		once, twice := dead(t, n, hangs), dead(t, 2*n, hangs)
		require.GreaterOrEqual(t, once, min(n, 16*60))
		require.LessOrEqual(t, once, most)
		require.LessOrEqual(t, float64(twice), 2.2*float64(once))
	}
}

// at makes a leaf one that names a responder.
func at(url string) func(*stapletest.LeafOptions) {
	return func(o *stapletest.LeafOptions) { o.Responders = []string{url} }
}

// processorTime returns for how many seconds Go code has run, as was estimated when garbage was last collected.
func processorTime() float64 {
	runtime.GC()
	sample := []metrics.Sample{{Name: "/cpu/classes/user:cpu-seconds"}}
	metrics.Read(sample)
	return sample[0].Value.Float64()
}

// After 500 calls of Refresh for a host that
// hangs, Refresh of a healthy one took 15 minutes.
func TestRefreshOfAHealthyHostDoesNotWaitForOneThatHangs(t *testing.T) {
	for _, certificates := range []int{1, 500} {
		synctest.Test(t, func(t *testing.T) {
			w := world.New(t)
			w.Responder.Set(nil, stapletest.Answer{Delay: blipRequest})
			s := w.Stapler()
			var hung []*staple.Certificate
			for _, cert := range blipLeaves()[:certificates] {
				hung = append(hung, w.Add(s, cert))
			}
			healthy := w.Leaf(at("http://healthy.example"))
			w.Responder.Set(healthy.Leaf, stapletest.Answer{Delay: blipRequest})
			c := w.Add(s, healthy)
			w.Responder.Set(nil, stapletest.Answer{Hang: true})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			for i := range 500 {
				go hung[i%certificates].Refresh(ctx)
			}
			synctest.Wait()
			for range 20 {
				start := time.Now()
				require.NoError(t, c.Refresh(t.Context()))
				require.Less(t, time.Since(start), time.Second)
				time.Sleep(7 * time.Second)
			}
			fresh := w.Leaf(at("http://healthy.example"))
			w.Responder.Set(fresh.Leaf, stapletest.Answer{Delay: blipRequest})
			start := time.Now()
			w.Add(s, fresh)
			require.Less(t, time.Since(start), time.Second, "a new one of the healthy host")
		})
	}
}
