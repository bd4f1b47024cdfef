package whole

import (
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/big"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/mldsa"
	"github.com/go-staple/staple/internal/race"
	"github.com/go-staple/staple/internal/wall"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// The faults of the year are drawn from seeds. The pauses of the Stapler itself are not: they come
// from math/rand/v2, whose global source cannot be seeded. What is asserted here holds for any of them.

// A year is the simulation of one process that is restarted now and then, with its certificates, their
// responders, and what befalls them.
type year struct {
	*yearOracle    // what must hold
	*yearResponder // what is answered
	*yearWeather   // what befalls whom, and when

	T       *testing.T
	rand    *rand.Rand // for the schedule
	key     crypto.Signer
	cas     []*authority
	hosts   []*yearHost
	cache   *yearCache
	s       *staple.Stapler // nil while there is no process
	config  *tls.Config
	started time.Time
	end     time.Time
	events  []yearEvent

	wrongUntil time.Time // the clock, or what comes of it

	mu       sync.Mutex // guards all below
	pick     *rand.Rand // for answers
	certs    []*yearCert
	bySerial map[string]*yearCert
	issued   map[[sha256.Size]byte]*issued
	hung     map[*http.Request]time.Time // and when the client gives it up
	count    yearCount
}

// An authority is a CA, and what others have to forge its responses.
type authority struct {
	*world.World
	sibling tls.Certificate // of the same CA, with whose key responses are forged
	old     *stapletest.Signer
}

type yearHost struct {
	scope
	name      string
	places    []*place
	slowUntil time.Time  // when a request last took a while
	between   *yearProxy // nil: nothing is
}

// A place is one CA at one URL of a host.
type place struct {
	scope
	host *yearHost
	at   *scope // the URL's
	url  string
	ca   *authority
}

type yearCert struct {
	id       string
	class    *yearClass
	place    *place
	cert     tls.Certificate
	own      scope // if it pauses alone
	handle   *staple.Certificate
	faults   []*fault
	revoked  bool
	hold     bool      // it can be lifted
	asked    int       // requests
	added    time.Time // to the process, or to the one before
	newest   *issued   // what counts of what the process was given, and found in its cache when it began
	held     bool      // the process was given something
	archive  []*issued // what was given before
	doubtful *issued   // good, after a revocation that is not a hold; counts if another one comes
	doubted  time.Time // when that came
	out      int       // faults that put it out of reach now
	reach    time.Time // since when it is in reach again
	excused  time.Time // until when a handshake may be without a staple
	why      string    // it may
	perhaps  time.Time // until when newest need not count yet
	restored time.Time // when the last fault ended
	verified []byte    // the staple that was looked at last
	response *issued   // what it turned out to be
}

func (c *yearCert) leafKey() string { return world.CacheKey(c.cert.Leaf) }

// A yearClass is a kind of certificate, by what its responder answers.
type yearClass struct {
	name     string
	certs    int // in each world
	validity time.Duration
	period   time.Duration // if longer than validity, its successor comes late
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
	{name: "7 d", validity: 7 * world.Day, certs: 40},
	{name: "10 d", validity: 10 * world.Day, certs: 30},
	{name: "7 d, the same bytes for 4 d", validity: 7 * world.Day, period: 4 * world.Day, certs: 30},
	{name: "3 d, the next 5 min before the end", validity: 3 * world.Day, period: 3*world.Day - 5*time.Minute, certs: 4},
	{name: "3 d, the next 1 min before the end", validity: 3 * world.Day, period: 3*world.Day - time.Minute, certs: 4},
	{name: "3 d, the next at the end", validity: 3 * world.Day, period: 3 * world.Day, certs: 10},
	{name: "1 d, the next 1 min late", validity: world.Day, period: world.Day + time.Minute, certs: 3},
	{name: "3 d, the next 5 min late", validity: 3 * world.Day, period: 3*world.Day + 5*time.Minute, certs: 8},
}

// issued is a response that the CA signed.
type issued struct {
	cert                        *yearCert
	der                         []byte
	thisUpdate, producedAt, end time.Time
	revoked, hold               bool
}

func (r *issued) newer(old *issued) bool {
	if c := cmp.Or(r.thisUpdate.Compare(old.thisUpdate), r.producedAt.Compare(old.producedAt), r.end.Compare(old.end)); c != 0 {
		return c > 0
	}
	return r.revoked && !old.revoked
}

// outlasts reports whether r counts after its end, since it tells of a revocation that is for good.
func (r *issued) outlasts() bool {
	return r.revoked && !r.hold
}

func (r *issued) String() string {
	if r == nil {
		return "none"
	}
	return fmt.Sprintf("about %s, %s to %s, revoked %v, hold %v", r.cert.id, r.thisUpdate.Format(time.DateTime),
		r.end.Format(time.DateTime), r.revoked, r.hold)
}

// yearCA is that of every other world, if the Go that built this has ML-DSA.
var yearCA = sync.OnceValue(func() *stapletest.CA {
	return stapletest.NewCA(stapletest.CAOptions{KeyType: stapletest.MLDSA44, Intermediate: true})
})

// newYear makes a world. Each host has two CAs, at one URL or at two.
func newYear(t *testing.T, seed uint64, days, hosts int) *year {
	y := &year{T: t, rand: rand.New(rand.NewPCG(seed, 2000)), pick: rand.New(rand.NewPCG(seed, 2001)),
		bySerial: make(map[string]*yearCert), issued: make(map[[sha256.Size]byte]*issued), hung: make(map[*http.Request]time.Time),
		end: time.Now().Add(time.Duration(days) * world.Day)}
	y.yearOracle, y.yearResponder, y.yearWeather = &yearOracle{y}, &yearResponder{y}, &yearWeather{y}
	y.count = newYearCount()
	first := world.CA()
	if mldsa.Supported && seed%2 == 1 {
		first = yearCA()
	}
	for _, ca := range []*stapletest.CA{first, neighbourCA()} {
		a := &authority{World: world.Of(t, ca)}
		if y.key == nil {
			y.key = a.Leaf().PrivateKey.(crypto.Signer)
		}
		a.sibling = a.Leaf(world.LongLived, world.SameKey(y.key))
		a.old = ca.Delegate(stapletest.DelegateOptions{Key: y.key, NotAfter: time.Now().Add(-time.Minute)})
		y.cas = append(y.cas, a)
	}
	y.cache = &yearCache{y: y}
	var places []*place
	for i := range hosts {
		h := &yearHost{name: fmt.Sprintf("ocsp%d.example", i)}
		shared := new(scope)
		for j, ca := range y.cas {
			p := &place{host: h, ca: ca, at: shared, url: "http://" + h.name + "/ocsp"}
			if i%2 == 1 {
				p.at, p.url = new(scope), p.url+strconv.Itoa(j)
			}
			h.places = append(h.places, p)
		}
		places = append(places, h.places...)
		y.hosts = append(y.hosts, h)
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
			c := &yearCert{class: class, place: places[y.rand.IntN(len(places))]}
			y.issue(c, strconv.Itoa(len(y.certs)), end)
			y.certs = append(y.certs, c)
		}
	}
	return y
}

// issue gives c a certificate.
func (y *year) issue(c *yearCert, id string, end time.Time) {
	c.id = id
	c.cert = c.place.ca.Leaf(world.Names("www"+id+".example.com"), world.SameKey(y.key), at(c.place.url),
		func(o *stapletest.LeafOptions) { o.NotBefore, o.NotAfter = time.Now().Add(-100*world.Day), end })
	y.mu.Lock()
	y.bySerial[c.cert.Leaf.SerialNumber.String()] = c
	y.mu.Unlock()
	y.set(c)
}

// about returns the certificate with a serial number, with y.mu held.
func (y *year) about(serial *big.Int) *yearCert { return y.bySerial[serial.String()] }

// set makes the responder answer about c as it does when nothing is wrong with the responder.
func (y *year) set(c *yearCert) {
	y.mu.Lock()
	a := c.class.answer()
	if c.revoked {
		a.Status = ocsp.Revoked
		if a.RevocationReason = ocsp.KeyCompromise; c.hold {
			a.RevocationReason = ocsp.CertificateHold
		}
	}
	for _, f := range c.faults {
		if f.kind == "delegate ends early" {
			a.Signer = c.place.ca.CA.Delegate(stapletest.DelegateOptions{Key: y.key, NotAfter: f.from.Add(f.delay)})
		}
	}
	y.mu.Unlock()
	c.place.ca.Responder.Set(c.cert.Leaf, a)
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
	y.mu.Lock()
	y.started = time.Now()
	y.count.restarts++
	for _, c := range y.certs {
		c.newest, c.doubtful, c.held, c.excused, c.why = nil, nil, false, time.Time{}, ""
		data, err := y.cache.MemoryCache.Get(context.Background(), c.leafKey())
		if r := y.issued[sha256.Sum256(data)]; err == nil && !y.cache.failGet && r != nil && r.cert == c && r.current(wall.Now()) {
			c.newest, c.held = r, true
		}
	}
	y.mu.Unlock()
	for _, c := range y.certs {
		y.add(c)
	}
}

// current reports whether r counts by the given clock.
func (r *issued) current(now time.Time) bool {
	return now.Before(r.end) && !r.thisUpdate.After(now.Add(5*time.Minute)) || r.outlasts()
}

func (y *year) add(c *yearCert) {
	y.mu.Lock()
	c.added = time.Now()
	y.mu.Unlock()
	handle, err := y.s.Add(c.cert)
	require.NoError(y.T, err)
	y.mu.Lock()
	c.handle = handle
	y.mu.Unlock()
}

// restart ends the process, and starts another after a while.
func (y *year) restart() { y.restartAfter(y.logUniform(time.Second, 3*time.Hour)) }

func (y *year) restartAfter(d time.Duration) {
	if y.s == nil {
		return
	}
	require.NoError(y.T, y.s.Close())
	y.s = nil
	y.countWeeks()
	y.at(time.Now().Add(d), func() {
		y.start()
		y.check() // the very first handshakes
	})
}

func (y *year) countWeeks() {
	for _, c := range y.certs {
		y.count.weeks[c.class] += time.Since(y.started).Hours() / (7 * 24)
	}
}

// renew replaces certificates that have expired for a day.
func (y *year) renew() {
	for i, old := range y.certs {
		if time.Since(old.cert.Leaf.NotAfter) < world.Day || old.class.validity == time.Hour || len(old.faults) > 0 {
			continue
		}
		y.count.renewed++
		c := &yearCert{class: old.class, place: old.place}
		y.issue(c, old.id+"-next", time.Now().Add(800*world.Day))
		y.mu.Lock()
		y.certs[i] = c
		y.mu.Unlock()
		old.handle.Remove()
		y.add(c)
	}
}

// run lets the days pass.
func (y *year) run() {
	y.start()
	y.schedule()
	for hour := 1; time.Now().Before(y.end); {
		next := time.Now().Truncate(time.Hour).Add(time.Hour)
		for len(y.events) > 0 && y.events[0].at.Before(next) {
			e := y.events[0]
			y.events = y.events[1:]
			time.Sleep(time.Until(e.at))
			e.do()
		}
		time.Sleep(time.Until(next))
		if y.check(); y.s == nil {
			continue
		}
		y.lookAtEnds()
		if hour++; hour%24 == 0 {
			y.handshake()
			y.renew()
		}
	}
	if y.s != nil {
		require.NoError(y.T, y.s.Close())
		y.countWeeks()
	}
}

// TestAYearWithoutABadStaple is the year. By default it is 45 days of one, in two worlds. It is
// shorter with the race detector, and STAPLE_YEAR=1 makes twenty years of it. It is not parallel to other tests, since it
// sets the clock.
func TestAYearWithoutABadStaple(t *testing.T) {
	worlds, days := 2, 45
	switch {
	case os.Getenv("STAPLE_YEAR") != "":
		worlds, days = 20, 365
	case race.Enabled || testing.Short():
		days = 10
	}
	t.Cleanup(wall.Set(yearClock(days)))
	all := newYearCount()
	var mu sync.Mutex
	t.Run("worlds", func(t *testing.T) {
		for seed := range worlds {
			t.Run(strconv.Itoa(seed), func(t *testing.T) {
				t.Parallel()
				// The bubble ends only when no goroutine is left: neither of the last Stapler, nor of those before it.
				synctest.Test(t, func(t *testing.T) {
					y := newYear(t, uint64(seed), days, 8)
					y.run()
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
	require.Zero(t, all.undone)
	require.Zero(t, all.unverified)
	require.Zero(t, all.foreign)
	require.Zero(t, all.unstapled)

	// That all of it really happened.
	require.Greater(t, all.handshakes, worlds*130*24*days)
	require.NotZero(t, all.real)
	require.NotZero(t, all.outOfReach)
	require.NotZero(t, all.restarts)
	require.NotZero(t, all.putErrors)
	require.NotZero(t, all.tampered)
	if days >= 45 {
		for kind := staple.EventStapled; kind <= staple.EventReinstated; kind++ {
			require.NotZero(t, all.events[kind], kind)
		}
		require.NotZero(t, all.getErrors)
		require.NotZero(t, all.renewed)
		var unmet []string // by chance, of those that are short
		for _, kind := range faultKinds() {
			require.NotZero(t, all.faults[kind], kind)
			if all.met[kind] == 0 {
				unmet = append(unmet, kind)
			}
		}
		require.LessOrEqual(t, len(unmet), 2, "%v", unmet)
		require.NotZero(t, all.faults[clockForward])
		require.NotZero(t, all.faults[clockBack])
	}
}

// issuer returns the certificate that c was issued with.
func (c *yearCert) issuer() *x509.Certificate { return c.place.ca.CA.Issuer }
