package whole

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"golang.org/x/crypto/ocsp"
)

// A yearResponder is the part of a year that answers requests.
type yearResponder struct{ *year }

// A fault is what befalls the responses about some certificates.
type fault struct {
	kind    string
	from    time.Time
	length  time.Duration
	status  int
	wait    time.Duration // as Retry-After says
	delay   time.Duration
	hits    []*yearCert
	scopes  []*scope    // that pause
	own     bool        // certificates pause alone, too
	alone   []*yearCert // those that do
	room    int         // for requests
	answers map[*yearCert][]byte
}

// Outages put everything at a host, or at one or all of its places, out of reach.
var outages = []string{"refused", "hung", "HTTP error", "retry later", "tryLater", "internalError", "unauthorized",
	"a login page", "garbage", "empty", "too many requests", "foreign", "replay", "forged", "expired delegate", "unknown", "future"}

// Blips are outages of seconds to minutes.
var blips = []string{"blip: refused", "blip: hung", "blip: HTTP error", "blip: retry later", "blip: tryLater"}

// Weather is what a process that asks well need not notice, or not for long.
var weather = []string{"slow", "narrow", "narrow, asks for patience", "a node that lags", "a node that misses revocations",
	"older responses", "a cache between", "neighbours: 404", "neighbours: 500", "neighbours: internalError", "neighbours: one byte"}

// Of one certificate alone.
var certFaults = []string{"unauthorized", "unknown", "garbage", "foreign", "replay", "forged", "expired delegate",
	"delegate ends early", "HTTP error", "hung", "future", "truncated"}

// faultKinds returns all that the year must meet.
func faultKinds() (kinds []string) {
	return append(append(append(append(kinds, outages...), blips...), certFaults...), weather...)
}

var errRefused = errors.New("connection refused")

func (y *yearResponder) newFault(kind string, length time.Duration) *fault {
	f := &fault{kind: kind, from: time.Now(), length: length, answers: make(map[*yearCert][]byte)}
	switch _, of, _ := strings.Cut(kind, ": "); {
	case kind == "HTTP error":
		f.status = []int{400, 403, 404, 500, 502, 503, 504}[y.rand.IntN(7)]
	case of == "HTTP error":
		f.status = []int{500, 502, 503, 504}[y.rand.IntN(4)]
	case kind == "retry later":
		f.status, f.wait = 503, time.Minute<<y.rand.IntN(10)
	case of == "retry later":
		f.status, f.wait = 503, time.Second<<y.rand.IntN(8)
	case kind == "too many requests":
		f.status = 429
		if y.rand.IntN(2) == 0 {
			f.wait = time.Minute << y.rand.IntN(6)
		}
	case kind == "slow":
		f.delay = time.Second + time.Duration(y.rand.Int64N(int64(6*time.Second)))
	case kind == "narrow":
		f.room, f.status = 3, []int{429, 503}[y.rand.IntN(2)]
	case kind == "narrow, asks for patience":
		f.room, f.status, f.wait = 3, []int{429, 503}[y.rand.IntN(2)], 10*time.Second
	case kind == "a node that lags":
		f.delay = y.logUniform(time.Hour, world.Day)
	case kind == "a cache between":
		f.delay = y.logUniform(time.Hour, 12*time.Hour)
	case of == "404":
		f.status = 404
	case of == "500":
		f.status = 500
	}
	return f
}

// what returns the kind of f, whatever it is called.
func (f *fault) what() string {
	if _, of, ok := strings.Cut(f.kind, ": "); ok {
		return of
	}
	return f.kind
}

// breaks reports whether f puts responses out of reach.
func (f *fault) breaks() bool {
	switch f.kind {
	case "slow", "narrow", "narrow, asks for patience", "a node that lags", "a node that misses revocations", "older responses", "a cache between":
		return false
	}
	return true
}

// slack returns how long a certificate may be without a staple because of f, which does not break.
func (f *fault) slack() time.Duration {
	switch f.kind {
	case "slow":
		return 6 * f.delay // three requests at most; one, two, four, and all after an outage
	case "narrow":
		return time.Minute
	case "narrow, asks for patience":
		return time.Minute + time.Duration(len(f.hits)/3+1)*f.wait*11/10
	case "a node that lags", "a node that misses revocations":
		return 10 * time.Second // the next node answers
	}
	return atTheEnd
}

// A level is whose fault it is.
type level int

const (
	certLevel level = iota
	placeLevel
	urlLevel
	hostLevel
)

// level returns whose fault f is.
func (f *fault) level() level {
	switch f.what() {
	case "refused", "hung":
		return hostLevel
	case "retry later", "too many requests":
		return urlLevel
	case "tryLater", "internalError", "a login page", "garbage", "empty", "truncated", "one byte", "500":
		return placeLevel
	case "HTTP error":
		if f.status >= 500 {
			return placeLevel
		}
	case "narrow, asks for patience":
		return urlLevel
	case "narrow":
		return urlLevel
	}
	return certLevel
}

// isOut reports whether it cannot be told about now.
func (c *yearCert) isOut() bool { return c.out > 0 }

// answered is what is said to a request.
type answered struct {
	status int
	wait   time.Duration
	body   []byte
}

// RoundTrip answers as a responder does, or as one in trouble does.
func (y *yearResponder) RoundTrip(req *http.Request) (*http.Response, error) {
	q, err := question(req)
	if err != nil {
		return nil, err
	}
	y.mu.Lock()
	c := y.about(q.SerialNumber)
	between := c.place.host.between
	y.count.requests[c.class]++
	y.count.tenMinutes[time.Now().Unix()/600]++
	y.mu.Unlock()
	a, ok := between.get(req)
	if !ok {
		if a, err = y.answer(c, req); err != nil {
			return nil, err
		}
		between.put(c, req, a)
	} else {
		y.mu.Lock()
		y.count.met["a cache between"]++
		y.mu.Unlock()
	}
	y.deliver(c, a.body)
	header := http.Header{"Content-Type": {"application/ocsp-response"}}
	if a.wait > 0 {
		header.Set("Retry-After", strconv.Itoa(int(a.wait/time.Second)))
	}
	return &http.Response{StatusCode: a.status, Header: header, ContentLength: int64(len(a.body)),
		Body: io.NopCloser(bytes.NewReader(a.body)), Request: req}, nil
}

// answer is what the responder says about c.
func (y *yearResponder) answer(c *yearCert, req *http.Request) (a answered, err error) {
	y.mu.Lock()
	f := new(fault)
	for _, other := range c.faults {
		if f.kind == "" || other.breaks() && !f.breaks() {
			f = other
		}
	}
	if f.kind != "" && f.kind != "a cache between" {
		y.count.met[f.kind]++
	}
	c.asked++
	asked := c.asked
	began := time.Now()
	switch f.what() {
	case "hung", "slow", "narrow", "narrow, asks for patience":
		c.place.host.slowUntil = began
	}
	y.mu.Unlock()
	defer func() {
		y.mu.Lock()
		defer y.mu.Unlock()
		if time.Now().After(began) {
			c.place.host.slowUntil = time.Now()
		}
	}()
	forge := func(edit func(*stapletest.Response)) (answered, error) {
		r := stapletest.NewResponse(c.place.ca.CA, c.cert.Leaf)
		edit(r)
		return answered{200, 0, r.DER()}, nil
	}
	says := func(body []byte) (answered, error) { return answered{200, f.wait, body}, nil }
	switch f.what() {
	case "refused":
		return a, errRefused
	case "hung":
		return a, y.hang(req)
	case "slow":
		if err := pause(req, f.delay); err != nil {
			return a, err
		}
	case "narrow", "narrow, asks for patience":
		y.mu.Lock()
		full := f.room == 0
		if !full {
			f.room--
		}
		y.mu.Unlock()
		if full {
			err := pause(req, time.Second/2)
			return answered{f.status, f.wait, nil}, err
		}
		defer func() {
			y.mu.Lock()
			defer y.mu.Unlock()
			f.room++
		}()
		if err := pause(req, time.Second); err != nil {
			return a, err
		}
	case "HTTP error", "retry later", "too many requests", "404", "500":
		return answered{f.status, f.wait, []byte("out of order\n")}, nil
	case "tryLater":
		return says(ocsp.TryLaterErrorResponse)
	case "internalError":
		return says(ocsp.InternalErrorErrorResponse)
	case "unauthorized":
		return says(ocsp.UnauthorizedErrorResponse)
	case "a login page":
		return says([]byte("<!DOCTYPE html><title>Log in</title>"))
	case "garbage":
		return says(bytes.Repeat([]byte{0x30, 0x82, 1}, 100))
	case "empty":
		return says(nil)
	case "one byte":
		return says([]byte("0"))
	case "truncated":
		der := c.place.ca.Responder.Response(c.cert.Leaf)
		return says(der[:len(der)-3])
	case "foreign":
		y.mu.Lock()
		other := y.certs[y.pick.IntN(len(y.certs))]
		y.mu.Unlock()
		if other == c {
			return says(ocsp.UnauthorizedErrorResponse)
		}
		der := other.place.ca.Responder.Response(other.cert.Leaf)
		y.register(other, der)
		return says(der)
	case "replay":
		if der := y.replay(c); der != nil {
			return says(der)
		}
		return answered{404, 0, nil}, nil
	case "forged":
		return forge(func(r *stapletest.Response) {
			r.Signer = &stapletest.Signer{Certificate: c.place.ca.sibling.Leaf, Key: y.key}
		})
	case "expired delegate":
		return forge(func(r *stapletest.Response) { r.Signer = c.place.ca.old })
	case "unknown":
		return forge(func(r *stapletest.Response) { r.Singles[0].Status = ocsp.Unknown })
	case "future":
		a, err = forge(func(r *stapletest.Response) {
			r.Singles[0].ThisUpdate = r.Singles[0].ThisUpdate.Add(world.Day)
			r.Singles[0].NextUpdate = r.Singles[0].NextUpdate.Add(world.Day)
		})
		y.register(c, a.body) // which counts for a clock that is wrong
		return a, err
	case "a node that lags", "a node that misses revocations", "older responses":
		if der := y.lag(c, f, asked); der != nil {
			return says(der)
		}
	}
	resp, err := c.place.ca.Responder.RoundTrip(req)
	if err != nil {
		return a, err
	}
	a.status = resp.StatusCode
	a.body, err = io.ReadAll(resp.Body)
	y.register(c, a.body)
	return a, err
}

// replay returns one of the last responses about c; nil: there was none.
func (y *yearResponder) replay(c *yearCert) []byte {
	y.mu.Lock()
	defer y.mu.Unlock()
	if len(c.archive) == 0 {
		return nil
	}
	return c.archive[y.pick.IntN(len(c.archive))].der
}

// lag returns what one node of three says about c, which is behind; or all of them, if the CA has gone back to an older
// list. Nil: what the others say.
func (y *yearResponder) lag(c *yearCert, f *fault, asked int) []byte {
	y.mu.Lock()
	revoked, der := c.revoked, f.answers[c]
	y.mu.Unlock()
	older := f.kind == "older responses"
	switch {
	case c.class.period > 0 || c.class.validity < 0 || !older && asked%3 != 0:
		return nil
	case f.kind == "a node that misses revocations":
		if !revoked {
			return nil
		}
		der = nil
	case older && revoked:
		return nil
	}
	if der == nil {
		r := stapletest.NewResponse(c.place.ca.CA, c.cert.Leaf)
		s := &r.Singles[0]
		switch f.kind {
		case "a node that lags":
			s.ThisUpdate = f.from.Add(-f.delay)
		case "older responses":
			s.ThisUpdate = f.from.Add(-12 * time.Hour)
		}
		r.ProducedAt = s.ThisUpdate
		if s.NextUpdate = s.ThisUpdate.Add(c.class.validity); older {
			s.NextUpdate = f.from.Add(f.length + world.Day)
		}
		der = r.DER()
		y.register(c, der)
		y.mu.Lock()
		f.answers[c] = der
		y.mu.Unlock()
	}
	return der
}

// pause lets a request wait.
func pause(req *http.Request, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-req.Context().Done():
		return context.Cause(req.Context())
	}
}

// hang lets a request wait until it is given up.
func (y *yearResponder) hang(req *http.Request) error {
	y.mu.Lock()
	y.hung[req], _ = req.Context().Deadline()
	y.mu.Unlock()
	<-req.Context().Done()
	y.mu.Lock()
	delete(y.hung, req)
	y.mu.Unlock()
	return context.Cause(req.Context())
}

// A yearProxy keeps answers to GET, good ones until nextUpdate and others for hours.
type yearProxy struct {
	negative time.Duration
	kept     map[string]keptAnswer // by URL; guarded by the year's mu
	y        *year
}

type keptAnswer struct {
	answered
	until time.Time
}

// get returns what is kept.
func (p *yearProxy) get(req *http.Request) (answered, bool) {
	if p == nil || req.Method != http.MethodGet || req.Header.Get("Cache-Control") == "no-cache" {
		return answered{}, false
	}
	p.y.mu.Lock()
	defer p.y.mu.Unlock()
	k, ok := p.kept[req.URL.String()]
	return k.answered, ok && time.Now().Before(k.until)
}

// put keeps a, which came to a GET about c.
func (p *yearProxy) put(c *yearCert, req *http.Request, a answered) {
	if p == nil || req.Method != http.MethodGet || a.status != 200 {
		return
	}
	p.y.mu.Lock()
	defer p.y.mu.Unlock()
	now := time.Now()
	r, err := ocsp.ParseResponse(a.body, nil)
	until := now.Add(p.negative)
	if err == nil && r.Status != ocsp.Unknown {
		until = r.NextUpdate
	}
	p.kept[req.URL.String()] = keptAnswer{a, until}
}
