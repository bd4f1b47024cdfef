package staple

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"text/tabwriter"
	"time"

	"github.com/go-staple/staple/internal/race"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// The faults of the year are drawn from seeds. The pauses of the Stapler itself are not: they come
// from math/rand/v2, whose global source cannot be seeded. What is asserted here holds for any of them.

// Some handshakes are without a staple though nobody is to blame: the responder is out of reach, or has
// been until a moment ago. A valid response counts as within reach of a handshake
//
//   - at once, without any grace, if the running process was given it by the responder, or its cache had
//     it, intact and readable, when the process began, and nothing newer says "revoked";
//   - or if a request about that certificate would have brought one at any moment of the last reachSoon,
//     all of which the process was running. That is the longest pause of a certificate without a staple
//     (maxUnstapled), then, if another certificate's request has just failed, that of the host
//     (maxHostPause), and a minute for a request that hangs and for the scheduler's sleep;
//   - or of the last reachLate, if that certificate had been out of reach for more than longBreak
//     before, in which time it may use up its fewRetries, and pauses for maxBackoff at most; or if the
//     responder asked for a pause, an hour of which is honored; or if the response held says "revoked",
//     with which a certificate need not hurry. That a hold was lifted is found out by the next routine
//     request: after 55% of the validity and four days at most, and reachLate.
const (
	reachSoon = maxUnstapled + maxHostPause + time.Minute
	reachLate = maxBackoff + maxBackoff/10 + maxHostPause + time.Minute
	longBreak = 2 * time.Hour
)

// A year is the simulation of one process that is restarted now and then, with its certificates, their
// responders, and what befalls them.
type year struct {
	*world
	rand    *rand.Rand // for the schedule
	key     crypto.Signer
	sibling tls.Certificate // of the same CA, with whose key responses are forged
	old     *stapletest.Signer
	cache   *yearCache
	s       *Stapler
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
	handle   *Certificate
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

func (c *yearCert) leafKey() string { return cacheKeyOf(c.cert.Leaf) }

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
	{name: "1 d", validity: day, certs: 5},
	{name: "no nextUpdate", validity: -1, certs: 4},
	{name: "3 d", validity: 3 * day, certs: 12},
	{name: "7 d", validity: 7 * day, certs: 56},
	{name: "10 d", validity: 10 * day, certs: 40},
	{name: "7 d, the same bytes for 4 d", validity: 7 * day, period: 4 * day, certs: 40},
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

type yearEvent struct {
	at time.Time
	do func()
}

// yearCount is what the table shows.
type yearCount struct {
	handshakes, real                               int
	expired, older, unverified, foreign, unstapled int // must be zero
	outOfReach, restarts, renewed                  int
	requests                                       map[*yearClass]int
	weeks                                          map[*yearClass]float64
	tenMinutes                                     map[int64]int
	events                                         map[EventKind]int
	faults                                         map[string]int // requests that met them
	getErrors, putErrors, tampered                 int
}

// A fault is what befalls a host, or one certificate's responses.
type fault struct {
	kind       string
	from       time.Time
	status     int
	retryAfter string
	delay      time.Duration
}

var hostFaults = []string{"refused", "hung", "HTTP error", "retry later", "tryLater", "internalError", "unauthorized",
	"a login page", "garbage", "empty", "slow", "foreign", "replay", "forged", "expired delegate", "unknown", "future"}

var certFaults = []string{"unauthorized", "unknown", "garbage", "foreign", "replay", "forged", "expired delegate",
	"delegate ends early", "HTTP error", "hung", "future", "truncated"}

var errRefused = errors.New("connection refused")

func (y *year) newFault(kind string) *fault {
	f := &fault{kind: kind, from: time.Now()}
	switch kind {
	case "HTTP error":
		f.status = []int{400, 403, 404, 500, 502, 503, 504}[y.rand.IntN(7)]
	case "retry later":
		f.status, f.retryAfter = 503, strconv.Itoa(60<<y.rand.IntN(10))
	case "slow":
		f.delay = time.Second + time.Duration(y.rand.Int64N(int64(6*time.Second)))
	}
	return f
}

// breaks reports whether f puts responses out of reach.
func (f *fault) breaks() bool { return f.kind != "slow" }

// RoundTrip answers as a responder does, or as one in trouble does.
func (y *year) RoundTrip(req *http.Request) (*http.Response, error) {
	id, _, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/"), "/")
	y.mu.Lock()
	c := y.byID[id]
	f := c.host.fault
	if f == nil {
		f = c.fault
	}
	y.count.requests[c.class]++
	y.count.tenMinutes[time.Now().Unix()/600]++
	kind := ""
	if f != nil {
		kind = f.kind
		y.count.faults[kind]++
	}
	var replay []byte
	if kind == "replay" && len(c.archive) > 0 {
		replay = c.archive[y.pick.IntN(len(c.archive))].der
	}
	other := y.certs[y.pick.IntN(len(y.certs))]
	y.mu.Unlock()

	answer := func(status int, body []byte) (*http.Response, error) {
		y.deliver(c, body)
		header := http.Header{"Content-Type": {"application/ocsp-response"}}
		if f.retryAfter != "" {
			header.Set("Retry-After", f.retryAfter)
		}
		return &http.Response{StatusCode: status, Header: header, ContentLength: int64(len(body)),
			Body: io.NopCloser(bytes.NewReader(body)), Request: req}, nil
	}
	forge := func(edit func(*stapletest.Response)) (*http.Response, error) {
		r := stapletest.NewResponse(y.ca, c.cert.Leaf)
		edit(r)
		return answer(200, r.DER())
	}
	switch kind {
	case "refused":
		return nil, errRefused
	case "hung":
		<-req.Context().Done()
		return nil, context.Cause(req.Context())
	case "slow":
		select {
		case <-time.After(f.delay):
		case <-req.Context().Done():
			return nil, context.Cause(req.Context())
		}
	case "HTTP error", "retry later":
		return answer(f.status, []byte("out of order\n"))
	case "tryLater":
		return answer(200, ocsp.TryLaterErrorResponse)
	case "internalError":
		return answer(200, ocsp.InternalErrorErrorResponse)
	case "unauthorized":
		return answer(200, ocsp.UnauthorizedErrorResponse)
	case "a login page":
		return answer(200, []byte("<!DOCTYPE html><title>Log in</title>"))
	case "garbage":
		return answer(200, bytes.Repeat([]byte{0x30, 0x82, 1}, 100))
	case "empty":
		return answer(200, nil)
	case "truncated":
		der := y.responder.Response(c.cert.Leaf)
		return answer(200, der[:len(der)-3])
	case "foreign":
		if other == c {
			return answer(200, ocsp.UnauthorizedErrorResponse)
		}
		der := y.responder.Response(other.cert.Leaf)
		y.register(other, der)
		return answer(200, der)
	case "replay":
		if replay == nil {
			return answer(404, nil)
		}
		return answer(200, replay)
	case "forged":
		return forge(func(r *stapletest.Response) {
			r.Signer = &stapletest.Signer{Certificate: y.sibling.Leaf, Key: y.key}
		})
	case "expired delegate":
		return forge(func(r *stapletest.Response) { r.Signer = y.old })
	case "unknown":
		return forge(func(r *stapletest.Response) { r.Singles[0].Status = ocsp.Unknown })
	case "future":
		return forge(func(r *stapletest.Response) {
			r.Singles[0].ThisUpdate = r.Singles[0].ThisUpdate.Add(day)
			r.Singles[0].NextUpdate = r.Singles[0].NextUpdate.Add(day)
		})
	}
	resp, err := y.responder.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(bytes.NewReader(body))
	y.register(c, body)
	y.deliver(c, body)
	return resp, err
}

// register notes that the CA has signed der about c. It reads the times with x/crypto/ocsp, so that
// they do not depend on the code under test.
func (y *year) register(c *yearCert, der []byte) {
	hash := sha256.Sum256(der)
	y.mu.Lock()
	known := y.issued[hash] != nil
	y.mu.Unlock()
	if known {
		return
	}
	p, err := ocsp.ParseResponse(der, nil)
	if err != nil {
		return
	}
	end := p.NextUpdate
	if end.IsZero() {
		end = p.ThisUpdate.Add(day)
	}
	if p.Certificate != nil && p.Certificate.NotAfter.Before(end) {
		end = p.Certificate.NotAfter
	}
	if c.cert.Leaf.NotAfter.Before(end) {
		end = c.cert.Leaf.NotAfter
	}
	r := &issued{cert: c, der: der, thisUpdate: p.ThisUpdate, producedAt: p.ProducedAt, end: end, revoked: p.Status == ocsp.Revoked}
	y.mu.Lock()
	defer y.mu.Unlock()
	y.issued[hash] = r
	if c.archive = append(c.archive, r); len(c.archive) > 6 {
		c.archive[0].der = nil
		c.archive = c.archive[1:]
	}
}

// deliver notes that the process gets der as an answer about c.
func (y *year) deliver(c *yearCert, der []byte) {
	hash := sha256.Sum256(der)
	y.mu.Lock()
	defer y.mu.Unlock()
	if r := y.issued[hash]; r != nil && r.cert == c && time.Now().Before(r.end) && (c.newest == nil || r.newer(c.newest)) {
		c.newest = r
	}
}

// A yearCache is a Cache whose disk fails at times.
type yearCache struct {
	MemoryCache
	y                *year
	failGet, failPut bool // guarded by y.mu
}

var errDisk = errors.New("no space left on device")

func (c *yearCache) Get(ctx context.Context, key string) ([]byte, error) {
	c.y.mu.Lock()
	fail := c.failGet
	if fail {
		c.y.count.getErrors++
	}
	c.y.mu.Unlock()
	if fail {
		return nil, errDisk
	}
	return c.MemoryCache.Get(ctx, key)
}

func (c *yearCache) Put(ctx context.Context, key string, data []byte) error {
	c.y.mu.Lock()
	fail := c.failPut
	if fail {
		c.y.count.putErrors++
	}
	c.y.mu.Unlock()
	if fail {
		return errDisk
	}
	return c.MemoryCache.Put(ctx, key, data)
}

func newYear(t *testing.T, seed uint64, days, hosts int) *year {
	y := &year{world: newWorld(t), rand: rand.New(rand.NewPCG(seed, 2000)),
		pick: rand.New(rand.NewPCG(seed, 2001)), byID: make(map[string]*yearCert),
		issued: make(map[[sha256.Size]byte]*issued)}
	y.count = yearCount{requests: make(map[*yearClass]int), weeks: make(map[*yearClass]float64),
		tenMinutes: make(map[int64]int), events: make(map[EventKind]int), faults: make(map[string]int)}
	y.sibling = y.leaf(longLived)
	y.key = y.sibling.PrivateKey.(crypto.Signer)
	y.old = y.ca.Delegate(stapletest.DelegateOptions{Key: y.key, NotAfter: time.Now().Add(-time.Minute)})
	y.cache = &yearCache{y: y}
	for i := range hosts {
		y.hosts = append(y.hosts, &yearHost{name: fmt.Sprintf("ocsp%d.example", i)})
	}
	for _, class := range yearClasses {
		for range class.certs {
			end := time.Now().Add(800 * day)
			if i := len(y.certs); i%8 == 1 { // expires meanwhile
				end = time.Now().Add(time.Duration(y.rand.Float64() * float64(days) * float64(day)))
			}
			if class.validity == time.Hour { // takes as long as 160 whose responses are valid for a week
				end = time.Now().Add(time.Duration(days) * day / 4)
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
	c.cert = y.leaf(names("www"+id+".example.com"), sameKey(y.key), func(o *stapletest.LeafOptions) {
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
		a.Signer = y.ca.Delegate(stapletest.DelegateOptions{Key: y.key, NotAfter: c.fault.from.Add(c.fault.delay)})
	}
	y.responder.Set(c.cert.Leaf, a)
}

// start starts the process.
func (y *year) start() {
	y.s = &Stapler{
		Fetcher: &HTTPFetcher{Client: &http.Client{Transport: y}},
		Cache:   y.cache,
		Logger:  slog.New(slog.DiscardHandler),
		OnEvent: func(e Event) {
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
	require.NoError(y.t, err)
	c.handle = handle
}

func (c *yearCert) excuse(until time.Time) {
	if until.After(c.excused) {
		c.excused = until
	}
}

// breakOff notes that c is out of reach from now on, and restore that one cause of it is gone.
func (c *yearCert) breakOff() {
	if c.out == 0 && (time.Now().After(c.excused) || c.broken.IsZero()) {
		c.broken = time.Now()
	}
	c.out++
}

func (c *yearCert) restore(f *fault) {
	now := time.Now()
	if time.Since(c.broken) > longBreak || f.retryAfter != "" || c.held {
		c.excuse(now.Add(reachLate))
	}
	c.excuse(now.Add(reachSoon))
	c.out--
}

// logUniform returns a random duration between low and high, short ones as often as long ones.
func (y *year) logUniform(low, high time.Duration) time.Duration {
	return time.Duration(float64(low) * math.Exp(y.rand.Float64()*math.Log(float64(high)/float64(low))))
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

// afflict sets a fault, which ends after a while.
func (y *year) afflict(target **fault, f *fault, length time.Duration, hit func(*yearCert) bool) {
	each := func(do func(*yearCert)) {
		for _, c := range y.certs {
			if hit(c) && f.breaks() {
				do(c)
			}
		}
	}
	y.mu.Lock()
	*target = f
	each((*yearCert).breakOff)
	y.mu.Unlock()
	y.at(time.Now().Add(length+reachSoon+time.Second), y.check)
	y.at(time.Now().Add(length+reachLate+time.Second), y.check)
	y.at(time.Now().Add(length), func() {
		y.mu.Lock()
		*target = nil
		each(func(c *yearCert) {
			c.restore(f)
			if f.kind == "delegate ends early" {
				y.set(c)
			}
		})
		y.mu.Unlock()
	})
}

// schedule fills the year with trouble.
func (y *year) schedule() {
	next := 0
	for i, h := range y.hosts {
		rounds := 0
		y.each(20*day, func() time.Duration {
			f := y.newFault(hostFaults[next%len(hostFaults)])
			next++
			length := y.logUniform(2*time.Minute, day)
			if rounds++; rounds == 2 && i == 0 { // longer than most responses live
				length = 6*day + time.Duration(y.rand.Int64N(int64(3*day)))
			}
			y.afflict(&h.fault, f, length, func(c *yearCert) bool { return c.host == h })
			if y.rand.IntN(8) == 0 {
				y.at(time.Now().Add(length/2), y.restart)
			}
			return length
		})
	}
	nextCert := 0
	y.each(16*time.Hour, func() time.Duration {
		c := y.certs[y.rand.IntN(len(y.certs))]
		kind := certFaults[nextCert%len(certFaults)]
		if c.fault != nil || c.revoked {
			return 0
		}
		nextCert++
		f := y.newFault(kind)
		length := y.logUniform(10*time.Minute, 2*day)
		if kind == "delegate ends early" {
			f.delay = length / 2
		}
		y.afflict(&c.fault, f, length, func(hit *yearCert) bool { return hit == c })
		if kind == "delegate ends early" {
			y.set(c)
		}
		return 0
	})
	revocations := 0
	y.each(12*day, func() time.Duration {
		c := y.certs[y.rand.IntN(len(y.certs))]
		if c.revoked || c.fault != nil || c.class.period > 0 { // signed in advance, it would be revoked before it was
			return 0
		}
		y.revoke(c, true)
		if revocations++; revocations%4 != 0 {
			y.at(time.Now().Add(y.logUniform(3*time.Hour, 20*day)), func() { y.revoke(c, false) })
		}
		return 0
	})
	y.each(40*day, func() time.Duration { y.restart(); return 0 })
	y.each(20*day, func() time.Duration {
		length := y.logUniform(time.Hour, 6*day)
		y.setCache(func() { y.cache.failPut = true })
		y.at(time.Now().Add(length), func() { y.setCache(func() { y.cache.failPut = false }) })
		if y.rand.IntN(3) == 0 {
			y.at(time.Now().Add(length-time.Minute), y.restart)
		}
		return length
	})
	y.each(40*day, func() time.Duration {
		length := y.logUniform(10*time.Minute, day)
		y.setCache(func() { y.cache.failGet = true })
		y.at(time.Now().Add(length/2), y.restart)
		y.at(time.Now().Add(length), func() { y.setCache(func() { y.cache.failGet = false }) })
		return length
	})
	y.each(5*day, func() time.Duration {
		for range 12 {
			y.tamper(y.certs[y.rand.IntN(len(y.certs))])
		}
		if y.rand.IntN(10) == 0 {
			y.restart()
		}
		return 0
	})
	y.each(7*day, func() time.Duration { // so that the responder does not remember a year of requests
		y.responder.Reset(nil)
		for _, c := range y.certs {
			y.set(c)
		}
		return 0
	})
}

func (y *year) setCache(f func()) {
	y.mu.Lock()
	defer y.mu.Unlock()
	f()
}

func (y *year) revoke(c *yearCert, revoked bool) {
	y.mu.Lock()
	c.revoked = revoked
	if c.held = true; !revoked {
		c.excuse(time.Now().Add(min(max(c.class.validity, day)*55/100, maxAge) + reachLate))
	}
	y.mu.Unlock()
	y.set(c)
}

// tamper replaces what the cache has about c by something worse.
func (y *year) tamper(c *yearCert) {
	ctx := context.Background()
	data, err := y.cache.MemoryCache.Get(ctx, c.leafKey())
	if err != nil {
		return
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	y.count.tampered++
	switch y.rand.IntN(6) {
	case 0:
		data[y.rand.IntN(len(data))] ^= 1 << y.rand.IntN(8)
	case 1:
		data = data[:y.rand.IntN(len(data))]
	case 2:
		r := stapletest.NewResponse(y.ca, c.cert.Leaf)
		r.Signer = &stapletest.Signer{Certificate: y.sibling.Leaf, Key: y.key}
		data = r.DER()
	case 3:
		other := y.certs[y.rand.IntN(len(y.certs))]
		data, err = y.cache.MemoryCache.Get(ctx, other.leafKey())
		if err != nil {
			return
		}
	case 4:
		y.cache.Delete(ctx, c.leafKey())
		return
	case 5:
		if len(c.archive) == 0 {
			return
		}
		data = c.archive[0].der
	}
	y.cache.MemoryCache.Put(ctx, c.leafKey(), data)
}

// restart ends the process and starts another after a while.
func (y *year) restart() {
	require.NoError(y.t, y.s.Close())
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
		y.t.Errorf("%s, %s after the start of the process: certificate %s (%s) at %s: %s\n%+v\nresponse %+v\nnewest given %+v\nexcused until %s",
			time.Now().Format(time.DateTime), time.Since(y.started), c.id, c.class.name, c.host.name, what, st,
			c.response.String(), c.newest.String(), c.excused.Format(time.DateTime))
	}
}

func (r *issued) String() string {
	if r == nil {
		return "none"
	}
	return fmt.Sprintf("about %s, %s to %s, revoked %v", r.cert.id, r.thisUpdate.Format(time.DateTime), r.end.Format(time.DateTime), r.revoked)
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
			p, err := ocsp.ParseResponseForCert(staple, c.cert.Leaf, y.ca.Issuer)
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
	client := y.client(c.cert.Leaf.DNSNames[0])
	client.VerifyConnection = new(ResponseVerifier).VerifyConnection
	state, _, err := connect(y.t, y.config, client)
	require.NoError(y.t, err)
	require.Equal(y.t, c.cert.Leaf.Raw, state.PeerCertificates[0].Raw)
	require.Equal(y.t, c.handle.TLS().OCSPStaple, state.OCSPResponse)
	y.count.real++
}

// renew replaces certificates that have expired for a day.
func (y *year) renew() {
	for i, old := range y.certs {
		if time.Since(old.cert.Leaf.NotAfter) < day || old.class.validity == time.Hour || old.fault != nil || old.host.fault != nil {
			continue
		}
		y.count.renewed++
		c := &yearCert{class: old.class, host: old.host}
		y.issue(c, old.id+"-next", time.Now().Add(800*day))
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
	end := time.Now().Add(time.Duration(days) * day)
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
	require.NoError(y.t, y.s.Close())
	y.countWeeks()
}

// add adds what other counted.
func (n *yearCount) add(other *yearCount) {
	for _, p := range [][2]*int{
		{&n.handshakes, &other.handshakes}, {&n.real, &other.real}, {&n.expired, &other.expired}, {&n.older, &other.older},
		{&n.unverified, &other.unverified}, {&n.foreign, &other.foreign}, {&n.unstapled, &other.unstapled},
		{&n.outOfReach, &other.outOfReach}, {&n.restarts, &other.restarts}, {&n.renewed, &other.renewed},
		{&n.getErrors, &other.getErrors}, {&n.putErrors, &other.putErrors}, {&n.tampered, &other.tampered},
	} {
		*p[0] += *p[1]
	}
	addTo(&n.requests, other.requests)
	addTo(&n.weeks, other.weeks)
	addTo(&n.tenMinutes, other.tenMinutes)
	addTo(&n.events, other.events)
	addTo(&n.faults, other.faults)
}

func addTo[K comparable, V int | float64](m *map[K]V, other map[K]V) {
	if *m == nil {
		*m = make(map[K]V)
	}
	for k, v := range other {
		(*m)[k] += v
	}
}

func total[K comparable](m map[K]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

// table is the year at a glance.
func (n *yearCount) table(worlds, days int) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(name string, value any) { fmt.Fprintf(w, "%s\t%v\n", name, value) }
	fmt.Fprintf(w, "\n%d worlds, %d days\n", worlds, days)
	row("handshakes checked", n.handshakes)
	row("  real ones", n.real)
	row("  with a staple that has ended", n.expired)
	row("  with a staple older than its predecessor", n.older)
	row("  with a staple that does not verify", n.unverified)
	row("  with another certificate's staple", n.foreign)
	row("  without a staple while one was in reach", n.unstapled)
	row("  without a staple, out of reach or revoked", n.outOfReach)
	row("restarts", n.restarts)
	row("certificates renewed after they had expired", n.renewed)
	row("cache reads, writes that failed", fmt.Sprint(n.getErrors, ", ", n.putErrors))
	row("cache entries corrupted, forged, swapped, lost", n.tampered)
	for kind := EventStapled; kind <= EventReinstated; kind++ {
		row("  events: "+kind.String(), n.events[kind])
	}
	row("requests", total(n.requests))
	for _, kind := range slices.Sorted(maps.Keys(n.faults)) {
		row("  that met: "+kind, n.faults[kind])
	}
	largest := slices.Max(slices.Collect(maps.Values(n.tenMinutes)))
	row("requests in the largest ten minutes, on average", fmt.Sprintf("%d, %.1f", largest, float64(total(n.requests))/(float64(days)*144)))
	fmt.Fprint(w, "requests a certificate and week, faults included\n")
	for _, class := range yearClasses {
		row("  "+class.name, fmt.Sprintf("%.2f", float64(n.requests[class])/n.weeks[class]))
	}
	row("  nginx with four workers", "672")
	w.Flush()
	return b.String()
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
	for kind := EventStapled; kind <= EventReinstated; kind++ {
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

// many makes n certificates with one key.
func (w *world) many(n int) (certs []tls.Certificate) {
	key := w.leaf().PrivateKey
	for i := range n {
		certs = append(certs, w.leaf(names(fmt.Sprint(i, ".example.com")), sameKey(key), longLived))
	}
	return certs
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
		{"fresh responses of 7 days", stapletest.Answer{Validity: 7 * day}, 2.1},
		{"the same bytes for 4 days, of 7 days", stapletest.Answer{Validity: 7 * day, Period: 4 * day}, 3.8},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.responder.Set(nil, tt.answer)
				m := &meter{responder: w.responder}
				s := w.stapler(func(s *Stapler) { s.Fetcher = &HTTPFetcher{Client: &http.Client{Transport: m}} })
				var handles []*Certificate
				for _, cert := range w.many(certs) {
					c, err := s.Add(cert)
					require.NoError(t, err)
					handles = append(handles, c)
					// As by a server that gets its certificates over time: a CA that signs every four days would
					// otherwise be met at the same point of its period by all.
					time.Sleep(time.Hour)
				}
				m.reset()
				for range weeks * 7 {
					time.Sleep(day)
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
// and twice as many are ten standard deviations away. With fewer certificates it is the same of longer
// than ten minutes.
func TestTenThousandLoadedAtOnceDoNotRefreshAtOnce(t *testing.T) {
	t.Parallel()
	n := 10_000
	if race.Enabled || testing.Short() {
		n = 1000
	}
	span := 10 * time.Minute * time.Duration(10_000/n)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := &meter{responder: w.responder}
		cache := NewMemoryCache()
		load := func(certs []tls.Certificate) (*Stapler, *tls.Config) {
			s := &Stapler{
				Fetcher: &HTTPFetcher{Client: &http.Client{Transport: m}},
				Cache:   cache,
				Logger:  slog.New(slog.DiscardHandler),
			}
			return s, s.TLSConfig(&tls.Config{Certificates: certs})
		}
		requireEven := func(what string) {
			t.Helper()
			times := m.reset()
			w.responder.Reset(nil)
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
		certs := w.many(n)
		s, config := load(certs)
		require.NoError(t, s.Wait(t.Context()))
		require.Len(t, m.reset(), n)
		time.Sleep(4 * day)
		synctest.Wait()
		requireEven("the second round")

		m.set(true)
		time.Sleep(2 * day) // not due yet
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
		time.Sleep(4 * day)
		synctest.Wait()
		requireEven("the round after a restart in an outage")
		require.NoError(t, s.Close())
		runtime.KeepAlive(config)
	})
}
