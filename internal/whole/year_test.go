package whole

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/mldsa"
	"github.com/go-staple/staple/internal/race"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// The faults of the year are drawn from seeds. The pauses of the Stapler itself are not: they come
// from math/rand/v2, whose global source cannot be seeded. What is asserted here holds for any of them.

// The pauses that the Stapler makes at most, which nobody outside can ask for.
const (
	unstapledPause = 10 * time.Minute // of a certificate without a staple, for the first fifty tries
	failingPause   = time.Hour        // of a certificate, later
	hostPause      = 5 * time.Minute  // of a host that fails
	routinePause   = 4 * world.Day    // from thisUpdate on, of a certificate that lacks nothing
)

// Some handshakes are without a staple though nobody is to blame: the responder is out of reach, or has
// been until a moment ago. A valid response counts as within reach of a handshake
//
//   - at once, without any grace, if the running process was given it by the responder, or its cache had
//     it, intact and readable, when the process began, and nothing newer says "revoked";
//   - or if a request about that certificate would have brought one at any moment of the last reachSoon,
//     all of which the process was running. That is the longest pause of a certificate without a staple
//     (unstapledPause), then, if another certificate's request has just failed, that of the host
//     (hostPause), and a minute for a request that hangs and for the scheduler's sleep;
//   - or of the last reachLate, if that certificate had been out of reach for more than longBreak
//     before, in which time it may use up its first fifty tries, and pauses for failingPause at most; or if
//     the responder asked for a pause, an hour of which is honored; or if the response held says "revoked",
//     with which a certificate need not hurry. That a hold was lifted is found out by the next routine
//     request: after 55% of the validity and routinePause at most, and reachLate.
const (
	reachSoon = unstapledPause + hostPause + time.Minute
	reachLate = failingPause + failingPause/10 + hostPause + time.Minute
	longBreak = 2 * time.Hour
)

// A year is the simulation of one process that is restarted now and then, with its certificates, their
// responders, and what befalls them.
type year struct {
	*world.World
	rand    *rand.Rand // for the schedule
	key     crypto.Signer
	sibling tls.Certificate // of the same CA, with whose key responses are forged
	old     *stapletest.Signer
	cache   *yearCache
	s       *staple.Stapler
	config  *tls.Config
	started time.Time
	events  []yearEvent

	mu     sync.Mutex // guards all below
	pick   *rand.Rand // for answers
	hosts  []*yearHost
	certs  []*yearCert
	byID   map[string]*yearCert
	issued map[[sha256.Size]byte]*issued
	count  yearCount
}

type yearHost struct {
	name  string
	fault *fault
}

type yearCert struct {
	id       string
	class    *yearClass
	host     *yearHost
	cert     tls.Certificate
	handle   *staple.Certificate
	fault    *fault
	revoked  bool
	held     bool      // revoked now, or once
	newest   *issued   // of what the process was given, and found in its cache when it began
	archive  []*issued // what was given before
	out      int       // faults that put it out of reach now
	broken   time.Time // since when it is, or was, with no more than the allowed time in between
	excused  time.Time // until when a handshake may be without a staple
	verified []byte    // the staple that was looked at last
	response *issued   // what it turned out to be
}

func (c *yearCert) leafKey() string { return world.CacheKey(c.cert.Leaf) }

// A yearClass is a kind of certificate, by what its responder answers.
type yearClass struct {
	name     string
	certs    int // in each world
	validity time.Duration
	period   time.Duration
}

func (k *yearClass) answer() stapletest.Answer {
	return stapletest.Answer{Validity: k.validity, Period: k.period}
}

var yearClasses = []*yearClass{
	{name: "1 h", validity: time.Hour, certs: 1},
	{name: "8 h", validity: 8 * time.Hour, certs: 2},
	{name: "1 d", validity: world.Day, certs: 5},
	{name: "no nextUpdate", validity: -1, certs: 4},
	{name: "3 d", validity: 3 * world.Day, certs: 12},
	{name: "7 d", validity: 7 * world.Day, certs: 56},
	{name: "10 d", validity: 10 * world.Day, certs: 40},
	{name: "7 d, the same bytes for 4 d", validity: 7 * world.Day, period: 4 * world.Day, certs: 40},
}

// issued is a response that the CA signed.
type issued struct {
	cert                        *yearCert
	der                         []byte
	thisUpdate, producedAt, end time.Time
	revoked                     bool
}

func (r *issued) newer(old *issued) bool {
	if c := cmp.Or(r.thisUpdate.Compare(old.thisUpdate), r.producedAt.Compare(old.producedAt), r.end.Compare(old.end)); c != 0 {
		return c > 0
	}
	return r.revoked && !old.revoked
}

func (r *issued) String() string {
	if r == nil {
		return "none"
	}
	return fmt.Sprintf("about %s, %s to %s, revoked %v", r.cert.id, r.thisUpdate.Format(time.DateTime), r.end.Format(time.DateTime), r.revoked)
}

type yearEvent struct {
	at time.Time
	do func()
}

// yearCA is that of every other world, if the Go that built this has ML-DSA.
var yearCA = sync.OnceValue(func() *stapletest.CA {
	return stapletest.NewCA(stapletest.CAOptions{KeyType: stapletest.MLDSA44, Intermediate: true})
})

func newYear(t *testing.T, seed uint64, days, hosts int) *year {
	ca := world.CA()
	if mldsa.Supported && seed%2 == 1 {
		ca = yearCA()
	}
	y := &year{World: world.Of(t, ca), rand: rand.New(rand.NewPCG(seed, 2000)),
		pick: rand.New(rand.NewPCG(seed, 2001)), byID: make(map[string]*yearCert),
		issued: make(map[[sha256.Size]byte]*issued)}
	y.count = yearCount{requests: make(map[*yearClass]int), weeks: make(map[*yearClass]float64),
		tenMinutes: make(map[int64]int), events: make(map[staple.EventKind]int), faults: make(map[string]int)}
	y.sibling = y.Leaf(world.LongLived)
	y.key = y.sibling.PrivateKey.(crypto.Signer)
	y.old = y.CA.Delegate(stapletest.DelegateOptions{Key: y.key, NotAfter: time.Now().Add(-time.Minute)})
	y.cache = &yearCache{y: y}
	for i := range hosts {
		y.hosts = append(y.hosts, &yearHost{name: fmt.Sprintf("ocsp%d.example", i)})
	}
	for _, class := range yearClasses {
		for range class.certs {
			end := time.Now().Add(800 * world.Day)
			if i := len(y.certs); i%8 == 1 { // expires meanwhile
				end = time.Now().Add(time.Duration(y.rand.Float64() * float64(days) * float64(world.Day)))
			}
			if class.validity == time.Hour { // takes as long as 160 whose responses are valid for a week
				end = time.Now().Add(time.Duration(days) * world.Day / 4)
			}
			c := &yearCert{class: class, host: y.hosts[y.rand.IntN(hosts)]}
			y.issue(c, strconv.Itoa(len(y.certs)), end)
			y.certs = append(y.certs, c)
		}
	}
	return y
}

// issue gives c a certificate.
func (y *year) issue(c *yearCert, id string, end time.Time) {
	c.id = id
	c.cert = y.Leaf(world.Names("www"+id+".example.com"), world.SameKey(y.key), func(o *stapletest.LeafOptions) {
		o.Responders = []string{"http://" + c.host.name + "/" + id}
		o.NotAfter = end
	})
	y.mu.Lock()
	y.byID[id] = c
	y.mu.Unlock()
	y.set(c)
}

// set makes the responder answer about c as it does when nothing is wrong.
func (y *year) set(c *yearCert) {
	a := c.class.answer()
	if c.revoked {
		a.Status = ocsp.Revoked
	}
	if c.fault != nil && c.fault.kind == "delegate ends early" {
		a.Signer = y.CA.Delegate(stapletest.DelegateOptions{Key: y.key, NotAfter: c.fault.from.Add(c.fault.delay)})
	}
	y.Responder.Set(c.cert.Leaf, a)
}

// start starts the process.
func (y *year) start() {
	y.s = &staple.Stapler{
		Fetcher: &staple.HTTPFetcher{Client: &http.Client{Transport: y}},
		Cache:   y.cache,
		Logger:  slog.New(slog.DiscardHandler),
		OnEvent: func(e staple.Event) {
			y.mu.Lock()
			defer y.mu.Unlock()
			y.count.events[e.Kind]++
		},
	}
	y.config = y.s.TLSConfig(nil)
	y.started = time.Now()
	y.mu.Lock()
	y.count.restarts++
	for _, c := range y.certs {
		c.newest = nil
		data, err := y.cache.MemoryCache.Get(context.Background(), c.leafKey())
		if r := y.issued[sha256.Sum256(data)]; err == nil && !y.cache.failGet && r != nil && r.cert == c && time.Now().Before(r.end) {
			c.newest = r
		}
		c.excuse(y.started.Add(reachSoon))
	}
	y.mu.Unlock()
	for _, c := range y.certs {
		y.add(c)
	}
}

func (y *year) add(c *yearCert) {
	handle, err := y.s.Add(c.cert)
	require.NoError(y.T, err)
	c.handle = handle
}

func (c *yearCert) excuse(until time.Time) {
	if until.After(c.excused) {
		c.excused = until
	}
}

// at has do called later.
func (y *year) at(at time.Time, do func()) {
	i, _ := slices.BinarySearchFunc(y.events, at, func(e yearEvent, at time.Time) int { return e.at.Compare(at) })
	y.events = slices.Insert(y.events, i, yearEvent{at, do})
}

// each calls do every now and then, first after a random part of the mean gap.
func (y *year) each(gap time.Duration, do func() (busy time.Duration)) {
	var again func()
	next := func(after time.Duration) { y.at(time.Now().Add(after), again) }
	again = func() {
		busy := do()
		next(busy + time.Duration((0.3+1.4*y.rand.Float64())*float64(gap)))
	}
	next(time.Duration(y.rand.Float64() * float64(gap)))
}

// restart ends the process and starts another after a while.
func (y *year) restart() {
	require.NoError(y.T, y.s.Close())
	y.countWeeks()
	time.Sleep(y.logUniform(time.Second, 3*time.Hour))
	y.start()
	y.check() // the very first handshakes
}

func (y *year) countWeeks() {
	for _, c := range y.certs {
		y.count.weeks[c.class] += time.Since(y.started).Hours() / (7 * 24)
	}
}

// wrong counts what must not happen, and shows the first few.
func (y *year) wrong(n *int, what string, c *yearCert) {
	if *n++; *n <= 5 {
		st := c.handle.Status()
		st.Leaf = nil
		y.T.Errorf("%s, %s after the start of the process: certificate %s (%s) at %s: %s\n%+v\nresponse %+v\nnewest given %+v\nexcused until %s",
			time.Now().Format(time.DateTime), time.Since(y.started), c.id, c.class.name, c.host.name, what, st,
			c.response.String(), c.newest.String(), c.excused.Format(time.DateTime))
	}
}

// check looks at a handshake with each certificate.
func (y *year) check() {
	synctest.Wait()
	now := time.Now()
	y.mu.Lock()
	defer y.mu.Unlock()
	n := &y.count
	for _, c := range y.certs {
		n.handshakes++
		staple := c.handle.TLS().OCSPStaple
		if staple == nil {
			c.verified, c.response = nil, nil
			switch within := c.newest != nil && now.Before(c.newest.end); {
			case !now.Before(c.cert.Leaf.NotAfter), within && c.newest.revoked:
			case within:
				y.wrong(&n.unstapled, "no staple, though a valid response was obtained", c)
			case c.revoked || c.out > 0 || now.Before(c.excused):
				n.outOfReach++
			default:
				y.wrong(&n.unstapled, "no staple, though the responder is in good health", c)
			}
			continue
		}
		if !bytes.Equal(staple, c.verified) {
			c.verified, c.response = staple, y.issued[sha256.Sum256(staple)]
			p, err := y.judge(staple, c.cert.Leaf)
			if c.response == nil || err != nil || p.Status != ocsp.Good {
				y.wrong(&n.unverified, fmt.Sprint("stapled is what the CA did not sign, or what is not good: ", err), c)
			}
		}
		r := c.response
		if r == nil {
			continue
		}
		if r.cert != c {
			y.wrong(&n.foreign, "stapled is a response about another certificate", c)
		}
		if !now.Before(r.end) {
			y.wrong(&n.expired, "the staple has ended", c)
		}
		if c.newest != nil && c.newest.newer(r) {
			y.wrong(&n.older, "the staple is older than what was obtained", c)
		}
		if c.newest == nil || r.newer(c.newest) {
			c.newest = r // from the cache, where it could not be read at first
		}
	}
}

// handshake makes a real one.
func (y *year) handshake() {
	c := y.certs[y.rand.IntN(len(y.certs))]
	if !time.Now().Before(c.cert.Leaf.NotAfter) {
		return
	}
	client := y.Client(c.cert.Leaf.DNSNames[0])
	client.VerifyConnection = new(staple.ResponseVerifier).VerifyConnection
	state, _, err := world.Connect(y.T, y.config, client)
	require.NoError(y.T, err)
	require.Equal(y.T, c.cert.Leaf.Raw, state.PeerCertificates[0].Raw)
	require.Equal(y.T, c.handle.TLS().OCSPStaple, state.OCSPResponse)
	y.count.real++
}

// renew replaces certificates that have expired for a day.
func (y *year) renew() {
	for i, old := range y.certs {
		if time.Since(old.cert.Leaf.NotAfter) < world.Day || old.class.validity == time.Hour || old.fault != nil || old.host.fault != nil {
			continue
		}
		y.count.renewed++
		c := &yearCert{class: old.class, host: old.host}
		y.issue(c, old.id+"-next", time.Now().Add(800*world.Day))
		c.excuse(time.Now().Add(reachSoon))
		y.mu.Lock()
		y.certs[i] = c
		y.mu.Unlock()
		old.handle.Remove()
		y.add(c)
	}
}

// run lets the days pass.
func (y *year) run(days int) {
	end := time.Now().Add(time.Duration(days) * world.Day)
	y.start()
	y.schedule()
	for hour := 1; time.Now().Before(end); {
		next := time.Now().Truncate(time.Hour).Add(time.Hour)
		for len(y.events) > 0 && y.events[0].at.Before(next) {
			e := y.events[0]
			y.events = y.events[1:]
			if wait := time.Until(e.at); wait > 0 {
				time.Sleep(wait)
			}
			e.do()
		}
		if wait := time.Until(next); wait > 0 {
			time.Sleep(wait)
		}
		y.check()
		if hour++; hour%24 == 0 {
			y.handshake()
			y.renew()
		}
	}
	require.NoError(y.T, y.s.Close())
	y.countWeeks()
}

// TestAYearWithoutABadStaple is the year. It is shorter with the race detector, and STAPLE_YEAR=1 makes
// many of it.
func TestAYearWithoutABadStaple(t *testing.T) {
	t.Parallel()
	worlds, days := 2, 365
	switch {
	case os.Getenv("STAPLE_YEAR") != "":
		worlds = 20
	case race.Enabled || testing.Short():
		days = 30
	}
	var all yearCount
	var mu sync.Mutex
	t.Run("worlds", func(t *testing.T) {
		for seed := range worlds {
			t.Run(strconv.Itoa(seed), func(t *testing.T) {
				t.Parallel()
				// The bubble ends only when no goroutine is left: neither of the last Stapler, nor of those before it.
				synctest.Test(t, func(t *testing.T) {
					y := newYear(t, uint64(seed), days, 8)
					y.run(days)
					y.count.restarts--
					mu.Lock()
					defer mu.Unlock()
					all.add(&y.count)
				})
			})
		}
	})
	if t.Failed() && all.handshakes == 0 {
		return
	}
	t.Log(all.table(worlds, days))
	require.Zero(t, all.expired)
	require.Zero(t, all.older)
	require.Zero(t, all.unverified)
	require.Zero(t, all.foreign)
	require.Zero(t, all.unstapled)

	// That all of it really happened.
	require.Greater(t, all.handshakes, worlds*150*24*days*9/10)
	require.NotZero(t, all.real)
	require.NotZero(t, all.outOfReach)
	require.NotZero(t, all.restarts)
	require.NotZero(t, all.putErrors)
	require.NotZero(t, all.tampered)
	for kind := staple.EventStapled; kind <= staple.EventReinstated; kind++ {
		require.NotZero(t, all.events[kind], kind)
	}
	if days == 365 {
		require.NotZero(t, all.getErrors)
		require.NotZero(t, all.renewed)
		for _, kind := range slices.Concat(hostFaults, certFaults) {
			require.NotZero(t, all.faults[kind], kind)
		}
	}
}
