package whole

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/mldsa"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"golang.org/x/crypto/ocsp"
)

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
		r := stapletest.NewResponse(y.CA, c.cert.Leaf)
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
		der := y.Responder.Response(c.cert.Leaf)
		return answer(200, der[:len(der)-3])
	case "foreign":
		if other == c {
			return answer(200, ocsp.UnauthorizedErrorResponse)
		}
		der := y.Responder.Response(other.cert.Leaf)
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
			r.Singles[0].ThisUpdate = r.Singles[0].ThisUpdate.Add(world.Day)
			r.Singles[0].NextUpdate = r.Singles[0].NextUpdate.Add(world.Day)
		})
	}
	resp, err := y.Responder.RoundTrip(req)
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
		end = p.ThisUpdate.Add(world.Day)
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

// judge verifies what is stapled without the code under test: with x/crypto/ocsp, and of ML-DSA, which that does not know,
// with crypto/x509.
func (y *year) judge(der []byte, leaf *x509.Certificate) (*ocsp.Response, error) {
	issuer := y.CA.Issuer
	if mldsa.KeyName(issuer.PublicKey) == "" {
		return ocsp.ParseResponseForCert(der, leaf, issuer)
	}
	p, err := ocsp.ParseResponseForCert(der, leaf, nil)
	switch {
	case err != nil:
	case p.Certificate != nil: // with whose key x/crypto has verified it
		err = p.Certificate.CheckSignatureFrom(issuer)
	default:
		err = issuer.CheckSignature(issuer.SignatureAlgorithm, p.TBSResponseData, p.Signature)
	}
	return p, err
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
	staple.MemoryCache
	y                *year
	failGet, failPut bool // guarded by y.mu
}

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

var errDisk = errors.New("no space left on device")

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
		y.each(20*world.Day, func() time.Duration {
			f := y.newFault(hostFaults[next%len(hostFaults)])
			next++
			length := y.logUniform(2*time.Minute, world.Day)
			if rounds++; rounds == 2 && i == 0 { // longer than most responses live
				length = 6*world.Day + time.Duration(y.rand.Int64N(int64(3*world.Day)))
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
		length := y.logUniform(10*time.Minute, 2*world.Day)
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
	y.each(12*world.Day, func() time.Duration {
		c := y.certs[y.rand.IntN(len(y.certs))]
		if c.revoked || c.fault != nil || c.class.period > 0 { // signed in advance, it would be revoked before it was
			return 0
		}
		y.revoke(c, true)
		if revocations++; revocations%4 != 0 {
			y.at(time.Now().Add(y.logUniform(3*time.Hour, 20*world.Day)), func() { y.revoke(c, false) })
		}
		return 0
	})
	y.each(40*world.Day, func() time.Duration { y.restart(); return 0 })
	y.each(20*world.Day, func() time.Duration {
		length := y.logUniform(time.Hour, 6*world.Day)
		y.setCache(func() { y.cache.failPut = true })
		y.at(time.Now().Add(length), func() { y.setCache(func() { y.cache.failPut = false }) })
		if y.rand.IntN(3) == 0 {
			y.at(time.Now().Add(length-time.Minute), y.restart)
		}
		return length
	})
	y.each(40*world.Day, func() time.Duration {
		length := y.logUniform(10*time.Minute, world.Day)
		y.setCache(func() { y.cache.failGet = true })
		y.at(time.Now().Add(length/2), y.restart)
		y.at(time.Now().Add(length), func() { y.setCache(func() { y.cache.failGet = false }) })
		return length
	})
	y.each(5*world.Day, func() time.Duration {
		for range 12 {
			y.tamper(y.certs[y.rand.IntN(len(y.certs))])
		}
		if y.rand.IntN(10) == 0 {
			y.restart()
		}
		return 0
	})
	y.each(7*world.Day, func() time.Duration { // so that the responder does not remember a year of requests
		y.Responder.Reset(nil)
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
		c.excuse(time.Now().Add(min(max(c.class.validity, world.Day)*55/100, routinePause) + reachLate))
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
		r := stapletest.NewResponse(y.CA, c.cert.Leaf)
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
