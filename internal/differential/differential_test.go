package differential

import (
	"crypto/tls"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/go-staple/staple/internal/race"
)

var (
	pairs    = flag.Int("pairs", 2000, "how many pairs of handshakes TestDifferential compares")
	seed     = flag.Uint64("seed", 1, "what TestDifferential draws from")
	onlyPair = flag.Int("pair", -1, "have TestDifferential compare only the pair with this number")
)

const (
	hellosPerBase = 4   // pairs that have a base in common, one after the other
	pairsPerBatch = 256 // that have a Stapler and certificates in common
	handMade      = 8   // hellos without a connection for each pair
)

// TestDifferential draws configurations and clients, and has each client connect to the
// configuration as it is and as TLSConfig returns it. Nothing but the staple may differ.
func TestDifferential(t *testing.T) {
	d := &differential{t: t, seen: make(map[string]int)}
	first, end := 0, *pairs
	if race.Enabled && end == 2000 {
		end = 500
	}
	if *onlyPair >= 0 {
		first, end = *onlyPair, *onlyPair+1
	}
	var next atomic.Int64
	next.Store(int64(first / pairsPerBatch))
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				n := int(next.Add(1)) - 1
				if n*pairsPerBatch >= end || d.differences.Load() >= 10 {
					return
				}
				d.batch(n, max(first, n*pairsPerBatch), min(end, (n+1)*pairsPerBatch))
			}
		})
	}
	wg.Wait()

	var table strings.Builder
	for _, what := range slices.Sorted(maps.Keys(d.seen)) {
		fmt.Fprintf(&table, "%9d  %s\n", d.seen[what], what)
	}
	t.Logf("%d pairs, seed %d:\n%s", end-first, *seed, &table)
	if end-first < 2000 || t.Failed() {
		return
	}
	for _, what := range outcomes {
		d.seen["outcome: "+what] += 0
	}
	for what, n := range d.seen {
		if n == 0 {
			t.Errorf("never seen: %s", what)
		}
	}
}

// Outcomes are those that must be among what comes of thousands of pairs.
var outcomes = []string{
	"TLS 1.0", "TLS 1.1", "TLS 1.2", "TLS 1.3", "QUIC", "failed",
	"resumed in TLS 1.2", "resumed in TLS 1.3", "resumed in QUIC", "resumed with a ticket of base", "not resumed",
	"early data accepted", "early data rejected", "ECH accepted", "ECH rejected", "HelloRetryRequest", "a protocol negotiated",
	"a staple", "no staple", "a client certificate", "a client's staple", "no client certificate where one was asked for",
	"client: remote error: tls: certificate required", "client: remote error: tls: handshake failure",
	"client: remote error: tls: internal error", "client: remote error: tls: no application protocol",
	"client: remote error: tls: protocol version not supported", "client: remote error: tls: unknown certificate authority",
	"client: remote error: tls: unrecognized name", "server: remote error: tls: bad certificate",
	"server: remote error: tls: encrypted client hello required", "server: remote error: tls: error decoding message",
	"by hand: a certificate for the name", "by hand: the first certificate", "by hand: none", "by hand: an error", "by hand: a client certificate",
}

// A differential is one run of TestDifferential.
type differential struct {
	t           *testing.T
	differences atomic.Int64

	mu   sync.Mutex
	seen map[string]int
}

// batch compares the pairs from first to end, all of batch n.
func (df *differential) batch(n, first, end int) {
	seen := make(map[string]int)
	b := newBatch(df.t, newDraw("specimens", n, seen), n%4 < 3)
	defer b.stapler.Close()
	defer runtime.KeepAlive(b.kept)
	var s *base
	for k := first; k < end && df.differences.Load() < 10; k++ {
		if s == nil || k%hellosPerBase == 0 {
			if s != nil {
				s.close()
			}
			s = newBase(b, newDraw("base", k/hellosPerBase, seen))
		}
		d := newDraw("visit", k, seen)
		v := newVisit(b, s, d)
		if text := compare(b, s, v, d); text != "" {
			df.differences.Add(1)
			df.t.Errorf("pair %d differs:%s\nbase: %s\nclient: %s\nto reproduce: go test ./internal/whole -run '^TestDifferential$' -seed %d -pair %d",
				k, text, strings.Join(s.chosen, "; "), strings.Join(v.chosen, "; "), *seed, k)
		}
	}
	if s != nil {
		s.close()
	}
	df.mu.Lock()
	defer df.mu.Unlock()
	for what, n := range seen {
		df.seen[what] += n
	}
}

// compare tells how a pair differs.
func compare(b *batch, s *base, v *visit, d *draw) (text string) {
	plain, wrapped := v.meetings(b, s, false), v.meetings(b, s, true)
	for i, want := range plain {
		got := wrapped[i]
		if t := want.client.difference(got.client); t != "" {
			text += fmt.Sprintf("\n connection %d, client:%s", i+1, t)
		}
		if t := want.server.difference(got.server); t != "" {
			text += fmt.Sprintf("\n connection %d, server:%s", i+1, t)
		}
		if cs := got.client.cs; len(cs.PeerCertificates) > 0 && !(v.fromPlain && (i == 0 || cs.DidResume)) {
			text += b.staple(cs.PeerCertificates[0].Raw, cs.OCSPResponse, got.client.Complete && !cs.DidResume)
		}
		if cs := got.server.cs; len(cs.PeerCertificates) > 0 && v.wrapped {
			text += b.staple(cs.PeerCertificates[0].Raw, cs.OCSPResponse, got.server.Complete && cs.Version == tls.VersionTLS13 && !cs.DidResume)
		}
		s.noteOutcome(d, v, i, want, got)
	}
	for range handMade {
		text += s.compareByHand(b, d)
	}
	if v.wrapped {
		text += v.compareClientByHand(b, d)
	}
	return text
}

// noteOutcome notes what came of a connection.
func (s *base) noteOutcome(d *draw, v *visit, i int, m, wrapped meeting) {
	note := func(cond bool, what string) {
		if cond {
			d.note("outcome: " + what)
		}
	}
	note(strings.Contains(m.client.Err, "remote error"), "client: "+m.client.Err)
	note(strings.Contains(m.server.Err, "remote error"), "server: "+m.server.Err)
	note(strings.Contains(m.client.Err, "rejected ECH"), "ECH rejected")
	if m.client.Err != "" || m.server.Err != "" {
		d.note("outcome: failed")
		return
	}
	protocol := tls.VersionName(m.client.Version)
	if s.quic {
		protocol = "QUIC"
	}
	note(true, protocol)
	note(m.client.Resumed, "resumed in "+protocol)
	note(m.client.Resumed && v.fromPlain, "resumed with a ticket of base")
	note(i == 1 && !m.client.Resumed, "not resumed")
	note(m.client.ECH, "ECH accepted")
	note(m.client.Retry, "HelloRetryRequest")
	note(m.client.Protocol != "", "a protocol negotiated")
	note(len(wrapped.client.cs.OCSPResponse) > 0, "a staple")
	note(len(wrapped.client.cs.OCSPResponse) == 0, "no staple")
	note(m.server.Peer != "", "a client certificate")
	note(m.server.Peer != "" && v.wrapped && len(wrapped.server.cs.OCSPResponse) > 0, "a client's staple")
	note(m.server.Peer == "" && s.plain.direct.ClientAuth != tls.NoClientCert, "no client certificate where one was asked for")
	note(strings.Contains(m.server.Calls, "early data accepted"), "early data accepted")
	note(strings.Contains(m.client.Calls, "early data rejected"), "early data rejected")
}

// A draw makes choices by chance and remembers them.
type draw struct {
	*rand.Rand
	seen   map[string]int
	chosen []string
}

func (d *draw) note(what string) {
	d.seen[what]++
	d.chosen = append(d.chosen, what)
}

// chance is true in one of n cases.
func (d *draw) chance(n int, what string) bool {
	d.seen[what] += 0
	if d.IntN(n) > 0 {
		return false
	}
	d.note(what)
	return true
}

// pick chooses an option. Each has its weight in front of it.
func (d *draw) pick(what string, options ...string) (chosen string) {
	sum := 0
	for _, o := range options {
		digits, name, _ := strings.Cut(o, " ")
		weight, err := strconv.Atoi(digits)
		must(err)
		d.seen[what+": "+name] += 0
		if sum += weight; d.IntN(sum) < weight {
			chosen = name
		}
	}
	d.note(what + ": " + chosen)
	return chosen
}

// newDraw returns the source of the n-th of what a purpose needs.
func newDraw(purpose string, n int, seen map[string]int) *draw {
	return &draw{Rand: rand.New(rand.NewPCG(*seed, uint64(purpose[0])<<56|uint64(n))), seen: seen}
}

func one[T any](d *draw, of []T) T { return of[d.IntN(len(of))] }

// some returns a part of what there is, in any order.
func some[T any](d *draw, of []T) []T {
	of = slices.Clone(of)
	d.Shuffle(len(of), func(i, j int) { of[i], of[j] = of[j], of[i] })
	return of[:d.IntN(len(of)+1)]
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
