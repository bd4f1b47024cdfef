package statuspage

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/race"
	"github.com/go-staple/staple/stapletest"
)

const day = 24 * time.Hour

// many is a number of certificates that is large.
func many() int {
	if race.Enabled || testing.Short() {
		return 5_000
	}
	return 100_000
}

// A world is a CA, its responder, and a Stapler that asks it.
type world struct {
	t         testing.TB
	ca        *stapletest.CA
	responder *stapletest.Responder
	stapler   *staple.Stapler
	hosts     int
}

func newWorld(t testing.TB) *world {
	ca := stapletest.NewCA(stapletest.CAOptions{Name: "Example Issuing CA 3", Intermediate: true})
	responder := stapletest.NewResponder(ca)
	fetcher := &staple.HTTPFetcher{Client: responder.Client()}
	closing := make(chan struct{})
	w := &world{t: t, ca: ca, responder: responder, stapler: &staple.Stapler{
		Fetcher: staple.FetcherFunc(func(ctx context.Context, req *staple.Request) ([]byte, error) {
			if hangs(req.Leaf) {
				<-closing
			}
			return fetcher.Fetch(ctx, req)
		}),
		Logger: slog.New(slog.DiscardHandler),
	}}
	t.Cleanup(func() {
		close(closing)
		w.stapler.Close()
	})
	return w
}

// add issues a certificate with a responder host of its own, so that the failures of one do not hold up
// another, about which the responder says a.
func (w *world) add(o stapletest.LeafOptions, a stapletest.Answer) *staple.Certificate {
	w.hosts++
	if o.Responders == nil {
		o.Responders = []string{fmt.Sprintf("http://ocsp%d.example-ca.test/", w.hosts)}
	}
	cert := w.ca.Leaf(o)
	w.responder.Set(cert.Leaf, a)
	c, err := w.stapler.Add(cert)
	require.NoError(w.t, err)
	return c
}

// addHolding is add for a certificate that comes with the staple of an answer, while the responder is not available.
func (w *world) addHolding(o stapletest.LeafOptions, a stapletest.Answer) *staple.Certificate {
	cert := w.ca.Leaf(o)
	w.responder.Set(cert.Leaf, a)
	cert.OCSPStaple = w.responder.Response(cert.Leaf)
	w.responder.Set(cert.Leaf, unavailable())
	c, err := w.stapler.Add(cert)
	require.NoError(w.t, err)
	return c
}

// hangs reports whether the first response for leaf never comes.
func hangs(leaf *x509.Certificate) bool { return strings.HasPrefix(leaf.Subject.CommonName, "hang") }

// settle waits for the first round of all certificates but those that hang.
func (w *world) settle() {
	for c := range w.stapler.Certificates() {
		for st := c.Status(); st.Err == nil && st.ThisUpdate.IsZero() && !hangs(st.Leaf); st = c.Status() {
			time.Sleep(time.Millisecond)
		}
	}
}

func unavailable() stapletest.Answer {
	return stapletest.Answer{HTTPStatus: http.StatusServiceUnavailable}
}

// turn makes the responder say a about c, and c ask it.
func (w *world) turn(c *staple.Certificate, a stapletest.Answer) {
	w.responder.Set(c.Status().Leaf, a)
	c.Refresh(w.t.Context())
}

// oneOfEach adds a certificate in each state, in the reverse of the order in which they are listed.
func (w *world) oneOfEach() {
	names := func(names ...string) stapletest.LeafOptions { return stapletest.LeafOptions{Names: names} }
	w.add(stapletest.LeafOptions{Names: []string{"internal.example.com"}, Responders: []string{}}, stapletest.Answer{})
	w.add(names("www.example.com", "example.com", "static.example.com"), stapletest.Answer{Age: 30 * time.Hour})
	w.add(names("hang.example.com"), stapletest.Answer{})
	failing := w.add(names("api.example.com", "203.0.113.7"), stapletest.Answer{Age: 4 * day})
	mail := names("mail.example.com", "smtp.example.com")
	mail.Responders = []string{"http://ocsp.mail.example-ca.test/"}
	w.addHolding(mail, stapletest.Answer{Age: 6 * day})
	w.add(stapletest.LeafOptions{Names: []string{"gone.example.com"}, NotAfter: time.Now().Add(-time.Hour)}, stapletest.Answer{})
	w.add(names("old.example.com"), stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise,
		RevokedAt: time.Now().Add(-50 * time.Hour)})
	w.add(names("new.example.com"), unavailable())
	w.add(stapletest.LeafOptions{Names: []string{"pay.example.com"}, MustStaple: true}, stapletest.Answer{Error: ocsp.TryLater})
	w.settle()
	w.turn(failing, unavailable())
}

// endsSoon adds a certificate whose staple ends in a moment. On a busy machine it may have ended before it was verified.
func (w *world) endsSoon(o stapletest.LeafOptions) *staple.Certificate {
	for left := 2 * time.Second; ; left *= 2 {
		c := w.add(o, stapletest.Answer{Age: 7*day - left})
		w.settle()
		if !c.Status().Expires.IsZero() {
			return c
		}
		c.Remove()
	}
}

// fifty adds a certificate in each state, and others until there are fifty.
func (w *world) fifty() {
	w.oneOfEach()
	ended := w.endsSoon(stapletest.LeafOptions{Names: []string{"shop.example.com", "www.shop.example.com"}})
	for i := range 40 {
		name := fmt.Sprintf("node-%02d.eu-west.example.net", i+1)
		o := stapletest.LeafOptions{Names: []string{name, fmt.Sprintf("10.20.0.%d", i+1)}, MustStaple: i%7 == 0}
		w.add(o, stapletest.Answer{Age: time.Duration(i) * 2 * time.Hour, Validity: []time.Duration{0, 4 * day, 10 * day}[i%3]})
	}
	w.settle()
	for ended.Status().Stapled {
		time.Sleep(10 * time.Millisecond)
	}
	w.turn(ended, unavailable())
	w.turn(ended, unavailable())
}

// manyCertificates returns a Stapler with n certificates, most of them good: one in 1000 is revoked, one in
// 500 has no staple, one in 50 no responder, and the rest end at various times.
func manyCertificates(t testing.TB, n int) *staple.Stapler {
	serial := new(big.Int).SetBytes(bytes.Repeat([]byte{0x5a}, 16))
	ca := stapletest.NewCA(stapletest.CAOptions{Name: "Example Issuing CA 3", KeyType: stapletest.RSA2048})
	cert := ca.Leaf(stapletest.LeafOptions{Serial: serial, Responders: []string{"http://ocsp.example-ca.test/"}})
	at := bytes.Index(cert.Leaf.Raw, serial.Bytes())
	require.Positive(t, at)
	number := func(leaf *x509.Certificate) int { return int(binary.BigEndian.Uint64(leaf.Raw[at+8:])) }
	now := time.Now()
	s := &staple.Stapler{
		Logger: slog.New(slog.DiscardHandler),
		Fetcher: staple.FetcherFunc(func(_ context.Context, req *staple.Request) ([]byte, error) {
			req.Responder = "http://ocsp.example-ca.test/"
			switch i := number(req.Leaf); {
			case i%500 == 7:
				return nil, errors.New("connection refused")
			case i%50 == 3:
				return nil, staple.ErrNoResponder
			}
			return req.Leaf.Raw[at : at+16], nil
		}),
		Verifier: verifierFunc(func(_ []byte, leaf, _ *x509.Certificate, _ time.Time) (*ocsp.Response, time.Time, error) {
			i := number(leaf)
			r := &ocsp.Response{Status: ocsp.Good, ThisUpdate: now.Add(-time.Duration(i%80) * time.Hour)}
			if i%1000 == 500 {
				r.Status = ocsp.Revoked
			}
			return r, r.ThisUpdate.Add(7 * day), nil
		}),
	}
	t.Cleanup(func() { s.Close() })
	for i := range n {
		leaf := *cert.Leaf // its signature is still that of the first, and so is what it signs
		leaf.Raw = bytes.Clone(cert.Leaf.Raw)
		binary.BigEndian.PutUint64(leaf.Raw[at+8:], uint64(i))
		leaf.SerialNumber = new(big.Int).SetBytes(leaf.Raw[at : at+16])
		leaf.DNSNames = []string{fmt.Sprintf("customer-%06d.example.com", i)}
		leaf.IPAddresses = nil
		_, err := s.Add(tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.Issuer.Raw}, Leaf: &leaf})
		require.NoError(t, err)
	}
	require.NoError(t, s.Wait(t.Context()))
	return s
}

type verifierFunc func(response []byte, leaf, issuer *x509.Certificate, now time.Time) (*ocsp.Response, time.Time, error)

func (f verifierFunc) Verify(response []byte, leaf, issuer *x509.Certificate, now time.Time) (*ocsp.Response, time.Time, error) {
	return f(response, leaf, issuer, now)
}

// get asks h, and returns the answer and its body.
func get(t testing.TB, h http.Handler, target string) (*http.Response, string) {
	t.Helper()
	return ask(t, h, httptest.NewRequest(http.MethodGet, target, nil))
}

func ask(t testing.TB, h http.Handler, r *http.Request) (*http.Response, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	body, err := io.ReadAll(w.Result().Body)
	require.NoError(t, err)
	return w.Result(), string(body)
}

func staplesOf(names ...string) stapletest.LeafOptions { return stapletest.LeafOptions{Names: names} }

var good24 = stapletest.Answer{Age: 24 * time.Hour}

// first returns what is listed first.
func first(t testing.TB, s *staple.Stapler) *certificate {
	l := (&Handler{Stapler: s}).list(query{Page: 1, per: 1}, time.Now())
	require.NotEmpty(t, l.rows)
	return l.Certificates()[0]
}
