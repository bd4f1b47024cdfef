package whole

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"path"
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

// A town has two CAs, whose responders can be reached at every URL. What is answered goes by the certificate, and so
// does whether a connection is refused.
type town struct {
	*world.World
	neighbour *world.World // of the other CA
	stapler   *staple.Stapler
	override  bool // certificates name no responder, HTTPFetcher.URLs does

	mu      sync.Mutex
	urls    map[string]string // of the responder, by the certificate's serial number
	theirs  map[string]bool   // the certificates of the other CA
	refused map[string]bool   // those about which connections are refused
}

var neighbourCA = sync.OnceValue(func() *stapletest.CA {
	return stapletest.NewCA(stapletest.CAOptions{Name: "neighbour", Intermediate: true})
})

// newTown returns a town in which requests take 50 ms.
func newTown(t *testing.T, override bool) *town {
	c := &town{World: world.New(t), override: override}
	c.urls, c.theirs, c.refused = make(map[string]string), make(map[string]bool), make(map[string]bool)
	c.neighbour = &world.World{T: t, CA: neighbourCA(), Responder: stapletest.NewResponder(neighbourCA()), Log: c.Log}
	c.Responder.Set(nil, stapletest.Answer{Delay: blipRequest})
	c.neighbour.Responder.Set(nil, stapletest.Answer{Delay: blipRequest})
	c.stapler = c.Stapler(func(s *staple.Stapler) {
		f := &staple.HTTPFetcher{Client: &http.Client{Transport: c}}
		if override {
			f.URLs = func(leaf *x509.Certificate) []string {
				c.mu.Lock()
				defer c.mu.Unlock()
				return []string{c.urls[leaf.SerialNumber.String()]}
			}
		}
		s.Fetcher = f
	})
	return c
}

// leaf returns a certificate of a CA, this or the other, that is asked about at a URL.
func (c *town) leaf(theirs bool, url string) tls.Certificate {
	w := c.World
	if theirs {
		w = c.neighbour
	}
	cert := w.Leaf(world.SameKey(blipLeaves()[0].PrivateKey), world.LongLived, at(url), func(o *stapletest.LeafOptions) {
		if c.override {
			o.Responders = nil
		}
	})
	serial := cert.Leaf.SerialNumber.String()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.urls[serial], c.theirs[serial] = url, theirs
	return cert
}

// says sets what is answered about a certificate. A nil Answer refuses the connection.
func (c *town) says(leaf *x509.Certificate, a *stapletest.Answer) {
	c.mu.Lock()
	c.refused[leaf.SerialNumber.String()] = a == nil
	c.mu.Unlock()
	if a != nil {
		b := *a
		b.Delay = blipRequest
		c.responder(leaf.SerialNumber).Set(leaf, b)
	}
}

func (c *town) responder(serial *big.Int) *stapletest.Responder {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.theirs[serial.String()] {
		return c.neighbour.Responder
	}
	return c.Responder
}

func (c *town) RoundTrip(req *http.Request) (*http.Response, error) {
	r, err := question(req)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	refused := c.refused[r.SerialNumber.String()]
	c.mu.Unlock()
	if refused {
		return nil, errRefused
	}
	return c.responder(r.SerialNumber).RoundTrip(req)
}

// question returns what is asked, by GET or POST.
func question(req *http.Request) (*ocsp.Request, error) {
	var der []byte
	if req.Method == http.MethodPost {
		body, err := req.GetBody()
		if err != nil {
			return nil, err
		}
		der, _ = io.ReadAll(body)
	} else {
		text, _ := url.PathUnescape(path.Base(req.URL.EscapedPath()))
		der, _ = base64.StdEncoding.DecodeString(text)
	}
	return ocsp.ParseRequest(der)
}

// add adds a certificate and returns its handle.
func (c *town) add(cert tls.Certificate) *staple.Certificate {
	h, err := c.stapler.Add(cert)
	require.NoError(c.T, err)
	return h
}

// requireStapledWithin adds a certificate that must be stapled soon.
func (c *town) requireStapledWithin(d time.Duration, cert tls.Certificate, why string) *staple.Certificate {
	c.T.Helper()
	start := time.Now()
	h := c.add(cert)
	require.NoError(c.T, h.Wait(world.Soon(c.T)), why)
	require.LessOrEqual(c.T, time.Since(start), d, why)
	return h
}

const (
	ca1 = world.ResponderURL + "/ca1"
	ca2 = world.ResponderURL + "/ca2"
)

// Sixty certificates of one CA get 404, 500,
// internalError or an answer of one byte. Another CA's certificate at the same host waited 1 h 48.
func TestSixtyCertificatesOfOneCADoNotHoldUpAnother(t *testing.T) {
	overrides := []bool{true, false}
	if race.Enabled {
		overrides = overrides[:1]
	}
	for _, override := range overrides {
		for name, answer := range map[string]stapletest.Answer{
			"404":           {HTTPStatus: 404, Body: []byte("not found")},
			"500":           {HTTPStatus: 500, Body: []byte("oops")},
			"internalError": {Error: ocsp.InternalError},
			"one byte":      {Body: []byte("0")},
		} {
			t.Run(fmt.Sprint(name, " override ", override), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := newTown(t, override)
					held := c.requireStapledWithin(time.Second, c.leaf(true, ca1), "before")
					for range 60 {
						cert := c.leaf(false, ca1)
						c.says(cert.Leaf, &answer)
						c.add(cert)
					}
					c.requireStapledWithin(time.Second, c.leaf(true, ca1), "together with them")
					for range 10 {
						time.Sleep(17 * time.Minute)
						c.requireStapledWithin(time.Second, c.leaf(true, ca1), "later")
						c.requireStapledWithin(time.Second, c.leaf(true, ca2), "at another URL")
					}
					for range 8 {
						time.Sleep(world.Day)
						world.RequireStaple(t, held, ocsp.Good)
					}
					for _, e := range c.Log.Events() {
						require.NotEqual(t, staple.EventExpiring, e.Kind)
					}
				})
			})
		}
	}
}

// A new certificate of a healthy CA waited
// five minutes for one that gets 404.
func TestOneCertificateThatGets404DoesNotHoldUpItsNeighbours(t *testing.T) {
	for _, override := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := newTown(t, override)
			bad := c.leaf(false, ca1)
			c.says(bad.Leaf, &stapletest.Answer{HTTPStatus: 404, Body: []byte("not found")})
			c.add(bad)
			for range 30 {
				c.requireStapledWithin(100*time.Millisecond, c.leaf(false, ca1), "a new one")
				time.Sleep(time.Minute)
			}
		})
	}
}

// Retry-After 3600 at /ca1 held up /ca2.
func TestRetryAfterIsAboutTheURLThatSaysSo(t *testing.T) {
	for _, override := range []bool{false, true} {
		for _, status := range []int{429, 503} {
			synctest.Test(t, func(t *testing.T) {
				c := newTown(t, override)
				start := time.Now()
				for range 10 {
					busy := c.leaf(false, ca1)
					c.says(busy.Leaf, &stapletest.Answer{HTTPStatus: status, Header: http.Header{"Retry-After": {"3600"}}})
					c.add(busy)
				}
				time.Sleep(time.Second)
				c.requireStapledWithin(100*time.Millisecond, c.leaf(true, ca2), "another CA at its own URL")
				c.requireStapledWithin(100*time.Millisecond, c.leaf(false, ca2), "the same CA at another URL")
				waits := c.add(c.leaf(false, ca1))
				require.NoError(t, waits.Wait(t.Context()))
				require.GreaterOrEqual(t, time.Since(start), time.Hour)
			})
		}
	}
}

// TestAPauseNeverHoldsUpWhatIsNotItsOwn tells who waits because of what happens to one certificate: others of its CA
// at its URL, others at its URL, others at its host, or nobody.
func TestAPauseNeverHoldsUpWhatIsNotItsOwn(t *testing.T) {
	type scope int
	const (
		itself scope = iota
		itsCA
		itsURL
		itsHost
	)
	later := http.Header{"Retry-After": {"3600"}}
	faults := []struct {
		name   string
		answer *stapletest.Answer // nil: no connection
		times  int                // as many certificates get it
		takes  time.Duration
		waits  scope
	}{
		{"no connection", nil, 1, 0, itsHost},
		{"no first byte", &stapletest.Answer{Hang: true}, 1, 30 * time.Second, itsHost},
		{"429", &stapletest.Answer{HTTPStatus: 429}, 1, 0, itsURL},
		{"429 with Retry-After", &stapletest.Answer{HTTPStatus: 429, Header: later}, 1, 0, itsURL},
		{"503 with Retry-After", &stapletest.Answer{HTTPStatus: 503, Header: later}, 1, 0, itsURL},
		{"503", &stapletest.Answer{HTTPStatus: 503}, 1, 0, itsCA},
		{"500", &stapletest.Answer{HTTPStatus: 500}, 1, 0, itsCA},
		{"tryLater", &stapletest.Answer{Error: ocsp.TryLater}, 1, 0, itsCA},
		{"internalError", &stapletest.Answer{Error: ocsp.InternalError}, 1, 0, itsCA},
		{"garbage", &stapletest.Answer{Body: []byte("<html>")}, 1, 0, itsCA},
		{"404 about eight in a row", &stapletest.Answer{HTTPStatus: 404}, 8, 0, itsCA},
		{"404 about seven in a row", &stapletest.Answer{HTTPStatus: 404}, 7, 0, itself},
		{"404", &stapletest.Answer{HTTPStatus: 404}, 1, 0, itself},
		{"404 with Retry-After", &stapletest.Answer{HTTPStatus: 404, Header: later}, 1, 0, itself},
		{"unauthorized", &stapletest.Answer{Error: ocsp.Unauthorized}, 1, 0, itself},
		{"unknown", &stapletest.Answer{Status: ocsp.Unknown}, 1, 0, itself},
		{"malformedRequest", &stapletest.Answer{Error: ocsp.Malformed}, 1, 0, itself},
		{"a response that has ended", &stapletest.Answer{Age: 8 * world.Day}, 1, 0, itself},
	}
	if race.Enabled {
		faults = faults[:4]
	}
	for _, fault := range faults {
		for _, other := range []struct {
			name   string
			theirs bool
			url    string
			shares scope
		}{
			{"another certificate of the CA at the URL", false, ca1, itsCA},
			{"another CA at the URL", true, ca1, itsURL},
			{"another URL at the host", false, ca2, itsHost},
			{"another host", false, "http://elsewhere.example/ca1", itsHost + 1},
		} {
			for _, held := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, stapled %v", fault.name, other.name, held), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						c := newTown(t, false)
						cert := c.leaf(other.theirs, other.url)
						var bad []*staple.Certificate
						for range fault.times {
							bad = append(bad, c.requireStapledWithin(time.Second, c.leaf(false, ca1), "before"))
						}
						var h *staple.Certificate
						var due time.Time // when it would be asked about
						if held {
							time.Sleep(world.Day)
							h = c.requireStapledWithin(time.Second, cert, "before")
							due = h.Status().NextRefresh
							time.Sleep(time.Until(due) - time.Second - fault.takes)
						}
						c.responder(cert.Leaf.SerialNumber).Reset(cert.Leaf)
						for _, b := range bad {
							c.says(b.Status().Leaf, fault.answer)
							require.Error(t, b.Refresh(t.Context()))
						}
						if !held {
							due = time.Now()
							h = c.add(cert)
						}
						synctest.Wait()
						next := h.Status().NextRefresh
						asked := c.whenAsked(cert.Leaf)
						wait := asked.Sub(due)
						least, most := time.Duration(0), time.Duration(0)
						switch retryAfter := fault.answer != nil && fault.answer.Header != nil; {
						case fault.waits < other.shares:
						case retryAfter && held:
							least, most = time.Hour-time.Second, time.Hour*11/10
						case retryAfter:
							least, most = time.Hour, time.Hour
						case held:
							least, most = time.Second, 5*time.Minute
						case fault.waits == itsCA: // whoever was never asked about goes first
							least, most = time.Millisecond, time.Second
						default:
							least, most = 2*time.Second, 5*time.Second
						}
						require.GreaterOrEqual(t, wait, least)
						require.LessOrEqual(t, wait, most)
						require.WithinDuration(t, asked, next, time.Millisecond, "Status.NextRefresh")
					})
				})
			}
		}
	}
}

// whenAsked returns when somebody is asked about a certificate.
func (c *town) whenAsked(leaf *x509.Certificate) time.Time {
	for {
		if all := c.responder(leaf.SerialNumber).Requests(leaf); len(all) > 0 {
			return all[0].Time
		}
		time.Sleep(time.Second)
	}
}

// CFSSL, from cron, publishes the successor when
// the old response ends, or a few minutes before or after. That was up to 9 min 47 s without a staple in each cycle.
func TestASuccessorThatComesAtTheEndIsStapledAtTheEnd(t *testing.T) {
	cycles := 10
	if race.Enabled || testing.Short() {
		cycles = 3
	}
	for _, validity := range []time.Duration{7 * world.Day, world.Day} {
		for _, late := range []time.Duration{-5 * time.Minute, -time.Minute, 0, time.Minute, 5 * time.Minute} {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				period := validity + late
				w.Responder.Set(nil, stapletest.Answer{Validity: validity, Period: period, Delay: blipRequest})
				c := w.Add(w.Stapler(), w.Leaf(world.LongLived))
				promised := 2 * time.Second // the last try is at the end itself
				if late > 0 {
					promised = 5*time.Second + late/10
				}
				var gaps []time.Duration
				for range cycles {
					st := c.Status()
					published := st.ThisUpdate.Add(period)
					time.Sleep(time.Until(later(published, st.Expires)))
					for c.Status().ThisUpdate.Before(published) {
						time.Sleep(10 * time.Millisecond)
					}
					gap := time.Since(later(published, st.Expires))
					require.LessOrEqual(t, gap, promised, "%v late, of %v", late, validity)
					gaps = append(gaps, gap.Round(10*time.Millisecond))
				}
				t.Logf("published %v after the end, validity %v: unstapled since then for %v", late, validity, gaps)
			})
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// The same with a thousand certificates.
func TestOfThoseThatEndTogetherOneAsks(t *testing.T) {
	const validity, late = world.Day, 5 * time.Minute
	certificates := len(blipLeaves())
	if race.Enabled || testing.Short() {
		certificates = 100
	}
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Validity: validity, Period: validity + late, Delay: blipRequest})
		s := w.Stapler()
		for _, cert := range blipLeaves()[:certificates] {
			w.Add(s, cert)
		}
		var end time.Time
		for c := range s.Certificates() {
			end = c.Status().Expires
		}
		published := end.Add(late)
		time.Sleep(time.Until(published))
		vain := 0
		for _, r := range w.Responder.Requests(nil) {
			if !r.Time.Before(end) {
				vain++
			}
		}
		first := time.Duration(0)
		for c := range s.Certificates() {
			for c.Status().ThisUpdate.Before(published) {
				time.Sleep(10 * time.Millisecond)
			}
			if first == 0 {
				first = time.Since(published)
			}
		}
		last := time.Since(published)
		t.Logf("%d certificates: %d requests in vain in %v, then all within %v", certificates, vain, late, last)
		require.LessOrEqual(t, vain, 130) // GET, GET past the caches, and POST; some thirty times
		require.LessOrEqual(t, last, 5*time.Second+late/10+10*time.Second)
	})
}

// Certificates of such a host were still without a staple
// for up to 8 min 50 s.
func TestAHostThatIsBackAMinuteBeforeTheEndIsAskedInTime(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		for _, validity := range []time.Duration{world.Day, 7 * world.Day} {
			for _, certificates := range []int{1, 100} {
				synctest.Test(t, func(t *testing.T) {
					w := world.New(t)
					w.Responder.Set(nil, stapletest.Answer{Validity: validity, Delay: blipRequest})
					g := &gate{responder: w.Responder, hangs: hangs}
					s := w.Stapler(func(s *staple.Stapler) { s.Fetcher = &staple.HTTPFetcher{Client: &http.Client{Transport: g}} })
					for _, cert := range blipLeaves()[:certificates] {
						w.Add(s, cert)
					}
					g.close()
					var end time.Time
					for c := range s.Certificates() {
						if end.IsZero() {
							end = c.Status().Expires
						}
					}
					time.Sleep(time.Until(end) - time.Minute)
					g.open()
					for time.Until(end) > -time.Minute {
						for c := range s.Certificates() {
							if c.TLS().OCSPStaple == nil {
								require.LessOrEqual(t, time.Since(c.Status().Expires), 2*time.Second, "%v, hangs %v", validity, hangs)
							}
						}
						time.Sleep(100 * time.Millisecond)
					}
				})
			}
		}
	}
}
