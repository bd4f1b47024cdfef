package stapleprom

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
)

const ocspURL = "http://ocsp.example"

// A world is a Stapler that is watched, and the responder that it asks, without a socket.
type world struct {
	ca        *stapletest.CA
	responder *stapletest.Responder
	stapler   *staple.Stapler
	collector *Collector
	registry  *prometheus.Registry
}

func newWorld(t testing.TB) *world {
	w := &world{
		ca:       stapletest.NewCA(stapletest.CAOptions{}),
		stapler:  &staple.Stapler{Logger: slog.New(slog.DiscardHandler)},
		registry: prometheus.NewPedanticRegistry(),
	}
	w.responder = stapletest.NewResponder(w.ca)
	w.stapler.Fetcher = &staple.HTTPFetcher{Client: w.responder.Client()}
	w.collector = Attach(w.stapler)
	w.registry.MustRegister(w.collector)
	t.Cleanup(func() { w.stapler.Close() })
	return w
}

func TestAttachKeepsAnOnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var kinds []staple.EventKind
		w.stapler.OnEvent = func(ev staple.Event) { kinds = append(kinds, ev.Kind) }
		c := Attach(w.stapler)
		w.add(t, stapletest.LeafOptions{Responders: []string{ocspURL}}, stapletest.Answer{})
		w.settle(t)
		require.NoError(t, w.stapler.Close())
		require.Equal(t, []staple.EventKind{staple.EventStapled}, kinds)
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(c)
		families, err := registry.Gather()
		require.NoError(t, err)
		for _, f := range families {
			if f.GetName() == "staple_fetches_total" {
				for _, m := range f.Metric {
					if m.GetCounter().GetValue() == 1 {
						return
					}
				}
			}
		}
		require.Fail(t, "the Collector was told nothing")
	})
}

// add has a new certificate looked after, and the responder give the answer about it, after 50 ms: a round that takes no
// time is none.
func (w *world) add(t testing.TB, o stapletest.LeafOptions, a stapletest.Answer) *staple.Certificate {
	return w.addCert(t, w.ca.Leaf(o), a)
}

// addHolding is add for a certificate that comes with the staple of the answer.
func (w *world) addHolding(t testing.TB, o stapletest.LeafOptions, a stapletest.Answer) *staple.Certificate {
	cert := w.ca.Leaf(o)
	w.responder.Set(cert.Leaf, a)
	cert.OCSPStaple = w.responder.Response(cert.Leaf)
	return w.addCert(t, cert, a)
}

func (w *world) addCert(t testing.TB, cert tls.Certificate, a stapletest.Answer) *staple.Certificate {
	a.Delay = 50 * time.Millisecond
	w.responder.Set(cert.Leaf, a)
	c, err := w.stapler.Add(cert)
	require.NoError(t, err)
	return c
}

// settle waits, in a synctest bubble, for every first round and for the events that tell of it.
func (w *world) settle(t testing.TB) {
	w.stapler.Wait(t.Context()) // its error names the Must-Staple certificates without a staple
	require.NoError(t, t.Context().Err())
	synctest.Wait()
}

// scrape returns the exposition, as Prometheus gets it.
func (w *world) scrape(t testing.TB) string {
	rec := httptest.NewRecorder()
	promhttp.HandlerFor(w.registry, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	require.Equal(t, http.StatusOK, rec.Code, rec.Body)
	return rec.Body.String()
}

// value returns the value of the series in the exposition text, and whether it is there.
func value(t testing.TB, text, series string) (float64, bool) {
	_, after, ok := strings.Cut("\n"+text, "\n"+series+" ")
	if !ok {
		return 0, false
	}
	number, _, _ := strings.Cut(after, "\n")
	v, err := strconv.ParseFloat(number, 64)
	require.NoError(t, err)
	return v, true
}

func requireValue(t testing.TB, want float64, text, series string) {
	t.Helper()
	got, ok := value(t, text, series)
	require.True(t, ok, "%s is not there:\n%s", series, text)
	require.InDelta(t, want, got, 1e-6, series)
}

// everything fills w with certificates in every state, whose responders fail in many ways.
func everything(t testing.TB, w *world) {
	forger := stapletest.NewCA(stapletest.CAOptions{Name: w.ca.Issuer.Subject.CommonName}).Signer()
	leaf := func(serial int64, name, responder string) stapletest.LeafOptions {
		return stapletest.LeafOptions{Names: []string{name}, Serial: big.NewInt(serial), Responders: []string{responder}}
	}
	down := leaf(0xa1, "down.example", "http://OCSP.down.example:8080/path")
	down.MustStaple = true
	none := leaf(0xa2, "none.example", "")
	none.Responders = nil
	gone := leaf(0xa3, "gone.example", ocspURL)
	gone.NotBefore, gone.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-24*time.Hour)
	last := leaf(0xa9, "last.example", ocspURL) // its staple ends with it, so that no newer one is due
	last.NotAfter = time.Now().Add(time.Hour)

	w.add(t, leaf(0xa4, "good.example", ocspURL), stapletest.Answer{})
	w.add(t, down, stapletest.Answer{HTTPStatus: 500})
	w.add(t, leaf(0xa5, "garbage.example", ocspURL), stapletest.Answer{Body: []byte("<html>")})
	w.add(t, leaf(0xa6, "forged.example", ocspURL), stapletest.Answer{Signer: forger})
	w.add(t, none, stapletest.Answer{})
	w.add(t, leaf(0xa7, "revoked.example", ocspURL), stapletest.Answer{Status: ocsp.Revoked})
	w.add(t, gone, stapletest.Answer{})
	w.addHolding(t, leaf(0xa8, "old.example", ocspURL), stapletest.Answer{Age: 50 * time.Minute, Validity: time.Hour})
	w.add(t, last, stapletest.Answer{Age: 6 * 24 * time.Hour})
}

func TestEveryStateIsShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		now := float64(time.Now().Unix())
		everything(t, w)
		w.settle(t)
		require.NoError(t, testutil.GatherAndCompare(w.registry, strings.NewReader(`
# HELP staple_certificate_state 1 for the state that the certificate is in.
# TYPE staple_certificate_state gauge
staple_certificate_state{must_staple="false",name="forged.example",responder_host="ocsp.example",serial="a6",state="unstapled"} 1
staple_certificate_state{must_staple="false",name="garbage.example",responder_host="ocsp.example",serial="a5",state="unstapled"} 1
staple_certificate_state{must_staple="false",name="gone.example",responder_host="ocsp.example",serial="a3",state="expired"} 1
staple_certificate_state{must_staple="false",name="good.example",responder_host="ocsp.example",serial="a4",state="stapled"} 1
staple_certificate_state{must_staple="false",name="last.example",responder_host="ocsp.example",serial="a9",state="stapled"} 1
staple_certificate_state{must_staple="false",name="none.example",responder_host="none",serial="a2",state="no-responder"} 1
staple_certificate_state{must_staple="false",name="old.example",responder_host="ocsp.example",serial="a8",state="expiring"} 1
staple_certificate_state{must_staple="false",name="revoked.example",responder_host="ocsp.example",serial="a7",state="revoked"} 1
staple_certificate_state{must_staple="true",name="down.example",responder_host="ocsp.down.example:8080",serial="a1",state="must-staple-missing"} 1
# HELP staple_certificates Certificates in each state.
# TYPE staple_certificates gauge
staple_certificates{must_staple="false",responder_host="none",state="expired"} 0
staple_certificates{must_staple="false",responder_host="none",state="expiring"} 0
staple_certificates{must_staple="false",responder_host="none",state="failing"} 0
staple_certificates{must_staple="false",responder_host="none",state="must-staple-missing"} 0
staple_certificates{must_staple="false",responder_host="none",state="no-responder"} 1
staple_certificates{must_staple="false",responder_host="none",state="revoked"} 0
staple_certificates{must_staple="false",responder_host="none",state="stapled"} 0
staple_certificates{must_staple="false",responder_host="none",state="unstapled"} 0
staple_certificates{must_staple="false",responder_host="none",state="waiting"} 0
staple_certificates{must_staple="false",responder_host="ocsp.down.example:8080",state="expired"} 0
staple_certificates{must_staple="false",responder_host="ocsp.down.example:8080",state="expiring"} 0
staple_certificates{must_staple="false",responder_host="ocsp.down.example:8080",state="failing"} 0
staple_certificates{must_staple="false",responder_host="ocsp.down.example:8080",state="must-staple-missing"} 0
staple_certificates{must_staple="false",responder_host="ocsp.down.example:8080",state="no-responder"} 0
staple_certificates{must_staple="false",responder_host="ocsp.down.example:8080",state="revoked"} 0
staple_certificates{must_staple="false",responder_host="ocsp.down.example:8080",state="stapled"} 0
staple_certificates{must_staple="false",responder_host="ocsp.down.example:8080",state="unstapled"} 0
staple_certificates{must_staple="false",responder_host="ocsp.down.example:8080",state="waiting"} 0
staple_certificates{must_staple="false",responder_host="ocsp.example",state="expired"} 1
staple_certificates{must_staple="false",responder_host="ocsp.example",state="expiring"} 1
staple_certificates{must_staple="false",responder_host="ocsp.example",state="failing"} 0
staple_certificates{must_staple="false",responder_host="ocsp.example",state="must-staple-missing"} 0
staple_certificates{must_staple="false",responder_host="ocsp.example",state="no-responder"} 0
staple_certificates{must_staple="false",responder_host="ocsp.example",state="revoked"} 1
staple_certificates{must_staple="false",responder_host="ocsp.example",state="stapled"} 2
staple_certificates{must_staple="false",responder_host="ocsp.example",state="unstapled"} 2
staple_certificates{must_staple="false",responder_host="ocsp.example",state="waiting"} 0
staple_certificates{must_staple="true",responder_host="none",state="expired"} 0
staple_certificates{must_staple="true",responder_host="none",state="expiring"} 0
staple_certificates{must_staple="true",responder_host="none",state="failing"} 0
staple_certificates{must_staple="true",responder_host="none",state="must-staple-missing"} 0
staple_certificates{must_staple="true",responder_host="none",state="no-responder"} 0
staple_certificates{must_staple="true",responder_host="none",state="revoked"} 0
staple_certificates{must_staple="true",responder_host="none",state="stapled"} 0
staple_certificates{must_staple="true",responder_host="none",state="unstapled"} 0
staple_certificates{must_staple="true",responder_host="none",state="waiting"} 0
staple_certificates{must_staple="true",responder_host="ocsp.down.example:8080",state="expired"} 0
staple_certificates{must_staple="true",responder_host="ocsp.down.example:8080",state="expiring"} 0
staple_certificates{must_staple="true",responder_host="ocsp.down.example:8080",state="failing"} 0
staple_certificates{must_staple="true",responder_host="ocsp.down.example:8080",state="must-staple-missing"} 1
staple_certificates{must_staple="true",responder_host="ocsp.down.example:8080",state="no-responder"} 0
staple_certificates{must_staple="true",responder_host="ocsp.down.example:8080",state="revoked"} 0
staple_certificates{must_staple="true",responder_host="ocsp.down.example:8080",state="stapled"} 0
staple_certificates{must_staple="true",responder_host="ocsp.down.example:8080",state="unstapled"} 0
staple_certificates{must_staple="true",responder_host="ocsp.down.example:8080",state="waiting"} 0
staple_certificates{must_staple="true",responder_host="ocsp.example",state="expired"} 0
staple_certificates{must_staple="true",responder_host="ocsp.example",state="expiring"} 0
staple_certificates{must_staple="true",responder_host="ocsp.example",state="failing"} 0
staple_certificates{must_staple="true",responder_host="ocsp.example",state="must-staple-missing"} 0
staple_certificates{must_staple="true",responder_host="ocsp.example",state="no-responder"} 0
staple_certificates{must_staple="true",responder_host="ocsp.example",state="revoked"} 0
staple_certificates{must_staple="true",responder_host="ocsp.example",state="stapled"} 0
staple_certificates{must_staple="true",responder_host="ocsp.example",state="unstapled"} 0
staple_certificates{must_staple="true",responder_host="ocsp.example",state="waiting"} 0
# HELP staple_failing_certificates Certificates whose last fetch failed, whether or not a staple is still held.
# TYPE staple_failing_certificates gauge
staple_failing_certificates{responder_host="none"} 0
staple_failing_certificates{responder_host="ocsp.down.example:8080"} 1
staple_failing_certificates{responder_host="ocsp.example"} 2
# HELP staple_fetch_failures_total Fetches that brought no acceptable OCSP response.
# TYPE staple_fetch_failures_total counter
staple_fetch_failures_total{reason="http_5xx",responder_host="ocsp.down.example:8080"} 1
staple_fetch_failures_total{reason="unauthorized_signer",responder_host="ocsp.example"} 1
staple_fetch_failures_total{reason="unusable_answer",responder_host="ocsp.example"} 1
# HELP staple_fetches_total Fetches of an OCSP response that have ended.
# TYPE staple_fetches_total counter
staple_fetches_total{responder_host="none",result="failed"} 0
staple_fetches_total{responder_host="none",result="reinstated"} 0
staple_fetches_total{responder_host="none",result="revoked"} 0
staple_fetches_total{responder_host="none",result="stapled"} 0
staple_fetches_total{responder_host="none",result="unchanged"} 0
staple_fetches_total{responder_host="ocsp.down.example:8080",result="failed"} 1
staple_fetches_total{responder_host="ocsp.down.example:8080",result="reinstated"} 0
staple_fetches_total{responder_host="ocsp.down.example:8080",result="revoked"} 0
staple_fetches_total{responder_host="ocsp.down.example:8080",result="stapled"} 0
staple_fetches_total{responder_host="ocsp.down.example:8080",result="unchanged"} 0
staple_fetches_total{responder_host="ocsp.example",result="failed"} 2
staple_fetches_total{responder_host="ocsp.example",result="reinstated"} 0
staple_fetches_total{responder_host="ocsp.example",result="revoked"} 1
staple_fetches_total{responder_host="ocsp.example",result="stapled"} 2
staple_fetches_total{responder_host="ocsp.example",result="unchanged"} 1
`), "staple_certificate_state", "staple_certificates", "staple_failing_certificates", "staple_fetch_failures_total", "staple_fetches_total"))

		text := w.scrape(t)
		const week = 7 * 24 * 3600
		requireValue(t, now+week, text, `staple_expiry_timestamp_seconds{name="good.example",responder_host="ocsp.example",serial="a4"}`)
		requireValue(t, now+600, text, `staple_expiry_timestamp_seconds{name="old.example",responder_host="ocsp.example",serial="a8"}`)
		requireValue(t, now+3600, text, `staple_expiry_timestamp_seconds{name="last.example",responder_host="ocsp.example",serial="a9"}`)
		requireValue(t, now+600, text, `staple_earliest_expiry_timestamp_seconds{responder_host="ocsp.example"}`)
		for _, absent := range []string{"gone.example", "none.example", "garbage.example", "forged.example", "down.example"} {
			require.NotRegexp(t, `(?m)^staple_expiry_timestamp_seconds\{name="`+absent, text)
		}
		refresh, ok := value(t, text, `staple_next_refresh_timestamp_seconds{name="good.example",responder_host="ocsp.example",serial="a4"}`)
		require.True(t, ok)
		require.InDelta(t, now+week/2, refresh, week/20)
		for _, absent := range []string{"gone.example", "none.example"} {
			require.NotRegexp(t, `(?m)^staple_next_refresh_timestamp_seconds\{name="`+absent, text)
		}
		require.Equal(t, minimum(t, text, "staple_next_refresh_timestamp_seconds", "ocsp.example"),
			minimum(t, text, "staple_earliest_next_refresh_timestamp_seconds", "ocsp.example"))
		require.Equal(t, minimum(t, text, "staple_expiry_timestamp_seconds", "ocsp.example"),
			minimum(t, text, "staple_earliest_expiry_timestamp_seconds", "ocsp.example"))

		// GET and POST to the host that fails, each with its own 50 ms.
		took, _ := value(t, text, `staple_fetch_duration_seconds_sum{responder_host="ocsp.down.example:8080"}`)
		require.Positive(t, took)
		require.Zero(t, int64(took*1e6)%50_000)
		requireValue(t, 1, text, `staple_fetch_duration_seconds_count{responder_host="ocsp.down.example:8080"}`)
		requireValue(t, 6, text, `staple_fetch_duration_seconds_count{responder_host="ocsp.example"}`)
		requireValue(t, 0, text, `staple_fetch_duration_seconds_bucket{responder_host="ocsp.example",le="0.025"}`)

		problems, err := testutil.GatherAndLint(w.registry)
		require.NoError(t, err)
		require.Empty(t, problems)
	})
}

// minimum returns the least value of the series of one metric and host.
func minimum(t testing.TB, text, metric, host string) float64 {
	var all []float64
	for _, m := range regexp.MustCompile(`(?m)^`+metric+`\{[^}]*responder_host="`+host+`"[^}]*\} (.*)$`).FindAllStringSubmatch(text, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		require.NoError(t, err)
		all = append(all, v)
	}
	require.NotEmpty(t, all)
	return slices.Min(all)
}

// TestAStateChangesWithTime follows one certificate through an outage.
func TestAStateChangesWithTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := w.add(t, stapletest.LeafOptions{Responders: []string{ocspURL}, NotAfter: time.Now().Add(9 * 24 * time.Hour)}, stapletest.Answer{})
		w.settle(t)
		w.responder.Set(c.Status().Leaf, stapletest.Answer{HTTPStatus: 503, Delay: 50 * time.Millisecond})
		began := c.Status().ThisUpdate
		for _, step := range []struct {
			after time.Duration
			state string
		}{
			{0, "stapled"},
			{5 * 24 * time.Hour, "failing"},
			{126*time.Hour + time.Minute, "expiring"},
			{168*time.Hour - time.Minute, "expiring"},
			{168*time.Hour + time.Minute, "unstapled"},
			{9*24*time.Hour - time.Minute, "unstapled"},
			{9*24*time.Hour + time.Minute, "expired"},
		} {
			time.Sleep(time.Until(began.Add(step.after)))
			text := w.scrape(t)
			requireValue(t, 1, text, `staple_certificates{must_staple="false",responder_host="ocsp.example",state="`+step.state+`"}`)
			require.Equal(t, 1, strings.Count(text, "\nstaple_certificate_state{"))
			failing := 0.0
			if step.after >= 5*24*time.Hour && step.state != "expired" {
				failing = 1
			}
			require.Equal(t, step.state != "expired", strings.Contains(text, "\nstaple_expiry_timestamp_seconds{"))
			requireValue(t, failing, text, `staple_failing_certificates{responder_host="ocsp.example"}`)
		}
		c.Remove()
		require.NotContains(t, w.scrape(t), "\nstaple_certificate_state{")
	})
}

func TestWhatIsOldFromTheBeginningAndRenewedInTimeIsNeverExpiring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const day = 24 * time.Hour
		w := newWorld(t)
		w.add(t, stapletest.LeafOptions{Responders: []string{ocspURL}}, stapletest.Answer{Period: day, Age: 28 * day, Validity: 28*day + 32*time.Hour})
		w.settle(t)
		for range 14 * 24 {
			time.Sleep(time.Hour)
			requireValue(t, 1, w.scrape(t), `staple_certificates{must_staple="false",responder_host="ocsp.example",state="stapled"}`)
		}
	})
}

// TestWhereNobodyIsToBeAskedNoHandshakeCounts is about certificates that name a responder, which somebody has switched off.
func TestWhereNobodyIsToBeAskedNoHandshakeCounts(t *testing.T) {
	for name, fetcher := range map[string]staple.Fetcher{
		"an override that returns nothing": &staple.HTTPFetcher{URLs: func(*x509.Certificate) []string { return nil }},
		"LDAP alone":                       &staple.HTTPFetcher{URLs: func(*x509.Certificate) []string { return []string{"ldap://ldap.test/ocsp"} }},
		"a Fetcher says so": staple.FetcherFunc(func(context.Context, *staple.Request) ([]byte, error) {
			return nil, fmt.Errorf("switched off: %w", staple.ErrNoResponder)
		}),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.stapler.Fetcher = fetcher
				c := w.add(t, stapletest.LeafOptions{Responders: []string{ocspURL}}, stapletest.Answer{})
				w.settle(t)
				for range 10 {
					time.Sleep(time.Hour)
					c.GetCertificate(nil)
				}
				text := w.scrape(t)
				requireValue(t, 0, text, unstapledSeries)
				requireValue(t, 0, text, `staple_failing_certificates{responder_host="ocsp.example"}`)
				requireValue(t, 1, text, `staple_certificates{must_staple="false",responder_host="ocsp.example",state="no-responder"}`)
			})
		})
	}
}

func TestPausedCertificatesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for range 3 {
			w.add(t, stapletest.LeafOptions{Responders: []string{ocspURL}}, stapletest.Answer{HTTPStatus: 500})
		}
		good := w.add(t, stapletest.LeafOptions{Responders: []string{"http://other.example"}}, stapletest.Answer{})
		w.settle(t)
		time.Sleep(time.Minute)
		text := w.scrape(t)
		requireValue(t, 3, text, `staple_paused_certificates{responder_host="ocsp.example"}`)
		requireValue(t, 0, text, `staple_paused_certificates{responder_host="other.example"}`)
		require.Zero(t, good.Status().PausedUntil)
	})
}

func TestCredentialsOfAURLAreInNoMetric(t *testing.T) {
	const secret = "xyzzy"
	for _, answer := range []stapletest.Answer{{}, {HTTPStatus: 403}, {HTTPStatus: 500}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			urls := []string{"http://aladdin:" + secret + "@ocsp.example/", "http://" + secret + "@ocsp.example/"}
			w.stapler.Fetcher = &staple.HTTPFetcher{Client: w.responder.Client(), URLs: func(*x509.Certificate) []string { return urls }}
			w.add(t, stapletest.LeafOptions{Responders: urls}, answer)
			w.add(t, stapletest.LeafOptions{Responders: urls[1:]}, answer)
			w.settle(t)
			text := w.scrape(t)
			require.Contains(t, text, `responder_host="ocsp.example"`)
			require.NotContains(t, text, secret)
			require.NotContains(t, text, "aladdin")
		})
	}
}

// TestWhatComesFromTheCacheAtTheStartIsNoFetch also shows a limit: what a round finds in the cache is counted as a fetch.
func TestWhatComesFromTheCacheAtTheStartIsNoFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cache := staple.NewMemoryCache()
		first := newWorld(t)
		first.stapler.Cache = cache
		c := first.add(t, stapletest.LeafOptions{Responders: []string{ocspURL}}, stapletest.Answer{})
		first.settle(t)
		requireValue(t, 1, first.scrape(t), `staple_fetches_total{responder_host="ocsp.example",result="stapled"}`)

		second := newWorld(t)
		second.stapler.Cache = cache
		second.ca, second.stapler.Fetcher = first.ca, first.stapler.Fetcher
		_, err := second.stapler.Add(*c.TLS())
		require.NoError(t, err)
		second.settle(t)
		text := second.scrape(t)
		requireValue(t, 1, text, `staple_certificates{must_staple="false",responder_host="ocsp.example",state="stapled"}`)
		requireValue(t, 0, text, `staple_fetches_total{responder_host="ocsp.example",result="stapled"}`)
		requireValue(t, 0, text, `staple_fetch_duration_seconds_count{responder_host="ocsp.example"}`)
	})
}

const unstapledSeries = `staple_unstapled_handshakes_total{responder_host="ocsp.example"}`

// TestUnstapledHandshakesNeverBecomeFewer removes certificates whose handshakes were counted, and adds one of them again.
func TestUnstapledHandshakesNeverBecomeFewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		down := stapletest.Answer{HTTPStatus: 503}
		handshakes := func(c *staple.Certificate, n int) {
			for range n {
				_, err := c.GetCertificate(nil)
				require.NoError(t, err)
			}
		}
		a := w.add(t, stapletest.LeafOptions{Responders: []string{ocspURL}}, down)
		b := w.add(t, stapletest.LeafOptions{Responders: []string{ocspURL}}, down)
		w.settle(t)
		requireValue(t, 0, w.scrape(t), unstapledSeries)
		handshakes(a, 5)
		handshakes(b, 2)
		requireValue(t, 7, w.scrape(t), unstapledSeries)
		requireValue(t, 7, w.scrape(t), unstapledSeries)
		handshakes(b, 1)

		chain := *a.TLS()
		a.Remove()
		requireValue(t, 8, w.scrape(t), unstapledSeries)
		again, err := w.stapler.Add(chain)
		require.NoError(t, err)
		w.settle(t)
		handshakes(again, 2)
		requireValue(t, 10, w.scrape(t), unstapledSeries)

		// Removed and added between two scrapes, with the same parsed leaf.
		again.Remove()
		again, err = w.stapler.Add(chain)
		require.NoError(t, err)
		handshakes(again, 1)
		requireValue(t, 11, w.scrape(t), unstapledSeries)

		again.Remove()
		b.Remove()
		requireValue(t, 11, w.scrape(t), unstapledSeries)
		require.Empty(t, w.collector.leaves)

		// What is not stapled for want of a responder does not count.
		none := w.add(t, stapletest.LeafOptions{}, stapletest.Answer{})
		handshakes(none, 3)
		text := w.scrape(t)
		requireValue(t, 11, text, unstapledSeries)
		requireValue(t, 0, text, `staple_unstapled_handshakes_total{responder_host="none"}`)
	})
}

// TestScrapesAtOnce counts each handshake once, while certificates come and go, and events are told.
func TestScrapesAtOnce(t *testing.T) {
	w := newWorld(t)
	fixed := w.add(t, stapletest.LeafOptions{Responders: []string{ocspURL}}, stapletest.Answer{HTTPStatus: 503})
	require.NoError(t, w.stapler.Wait(t.Context()))
	passing := w.ca.Leaf(stapletest.LeafOptions{Responders: []string{ocspURL}})
	const scrapers, rounds = 3, 30
	var wg sync.WaitGroup
	for range scrapers {
		wg.Go(func() {
			last := 0.0
			for range rounds {
				text := w.scrape(t)
				now, ok := value(t, text, unstapledSeries)
				if !ok || now < last {
					t.Errorf("%v after %v", now, last)
				}
				last = now
			}
		})
	}
	wg.Go(func() {
		for range rounds {
			fixed.GetCertificate(nil)
			c, err := w.stapler.Add(passing)
			if err != nil {
				t.Error(err)
				return
			}
			c.Remove()
		}
	})
	wg.Wait()
	requireValue(t, rounds, w.scrape(t), unstapledSeries)
}

// TestSharedLabels scrapes certificates that no label tells apart, and handles that share a leaf.
func TestSharedLabels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		another := stapletest.NewCA(stapletest.CAOptions{Name: "another"}) // the responder says "unauthorized" about its own
		o := stapletest.LeafOptions{Names: []string{"twin.example"}, Serial: big.NewInt(1), Responders: []string{ocspURL}}
		good := w.add(t, o, stapletest.Answer{})
		for _, cert := range []tls.Certificate{*good.TLS(), another.Leaf(o), w.ca.Leaf(o)} {
			_, err := w.stapler.Add(cert)
			require.NoError(t, err)
		}
		w.settle(t)
		text := w.scrape(t)
		requireValue(t, 2, text, `staple_certificates{must_staple="false",responder_host="ocsp.example",state="stapled"}`)
		requireValue(t, 1, text, `staple_certificates{must_staple="false",responder_host="ocsp.example",state="unstapled"}`)
		requireValue(t, 1, text, `staple_certificate_state{must_staple="false",name="twin.example",responder_host="ocsp.example",serial="1",state="unstapled"}`)
		require.Equal(t, 1, strings.Count(text, "\nstaple_certificate_state{"))
	})
}

func TestTheNumberOfSeriesIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 12
		for _, test := range []struct {
			max, series int
		}{{0, n}, {n, n}, {n - 1, 0}, {-1, 0}} {
			w := newWorld(t)
			w.collector.MaxCertificates = test.max
			for range n {
				w.add(t, stapletest.LeafOptions{Responders: []string{ocspURL}}, stapletest.Answer{})
			}
			w.settle(t)
			text := w.scrape(t)
			for _, metric := range []string{"staple_certificate_state", "staple_expiry_timestamp_seconds", "staple_next_refresh_timestamp_seconds"} {
				require.Equal(t, test.series, strings.Count(text, "\n"+metric+"{"), "%s, MaxCertificates %d", metric, test.max)
			}
			requireValue(t, n, text, `staple_certificates{must_staple="false",responder_host="ocsp.example",state="stapled"}`)
			require.Contains(t, text, "\nstaple_earliest_expiry_timestamp_seconds{")
		}
	})
}

func TestTheNumberOfHostsIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add(t, stapletest.LeafOptions{}, stapletest.Answer{})
		const hosts = maxHosts + 10
		for i := range hosts {
			w.add(t, stapletest.LeafOptions{Responders: []string{fmt.Sprintf("http://%d.example", i)}}, stapletest.Answer{HTTPStatus: 500})
		}
		for _, nonsense := range []string{"http://%zz", "urn:ocsp", "", "http:///path"} {
			w.add(t, stapletest.LeafOptions{Responders: []string{nonsense}}, stapletest.Answer{})
		}
		w.settle(t)
		text := w.scrape(t)
		require.Equal(t, maxHosts+2, strings.Count(text, "\nstaple_failing_certificates{"))
		requireValue(t, hosts-maxHosts, text, `staple_certificates{must_staple="false",responder_host="other",state="unstapled"}`)
		requireValue(t, 3, text, `staple_certificates{must_staple="false",responder_host="other",state="no-responder"}`)
		requireValue(t, hosts-maxHosts, text, `staple_fetches_total{responder_host="other",result="failed"}`)
		requireValue(t, 2, text, `staple_certificates{must_staple="false",responder_host="none",state="no-responder"}`)
		requireValue(t, 1, text, `staple_certificates{must_staple="false",responder_host="0.example",state="unstapled"}`)
	})
}

// hostile are certificates whose names and URLs were made to hurt.
func hostile(t testing.TB, w *world) {
	for _, name := range []string{"\xff\xfe\n\"\\} 1\nfake_metric 2", strings.Repeat("\xff", 5000), strings.Repeat("ü", 3000), "\u202egnp.exe", "\x00"} {
		leaf := *w.ca.Leaf(stapletest.LeafOptions{}).Leaf
		leaf.DNSNames = []string{name}
		leaf.Subject = pkix.Name{}
		leaf.OCSPServer = []string{"http://%ff%fe%0a" + strings.Repeat("%e2%80%ae", 100) + "/", "http://" + strings.Repeat("a", 70_000)}
		leaf.SerialNumber = new(big.Int).Lsh(big.NewInt(-1), 40_000)
		leaf.NotAfter = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
		_, err := w.stapler.Add(tls.Certificate{Certificate: [][]byte{leaf.Raw}, Leaf: &leaf})
		require.NoError(t, err)
	}
}

func TestHostileNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		hostile(t, w)
		w.settle(t)
		text := w.scrape(t)
		require.True(t, utf8.ValidString(text))
		require.NotContains(t, text, "\nfake_metric")
		require.NotContains(t, text, "\u202e")
		for line := range strings.Lines(text) {
			require.Less(t, len(line), 2000)
		}
		require.Equal(t, 5, strings.Count(text, "\nstaple_certificate_state{"), text)
	})
}

func TestCertificateName(t *testing.T) {
	ip := []net.IP{net.IPv6loopback}
	for _, test := range []struct {
		leaf x509.Certificate
		want string
	}{
		{x509.Certificate{DNSNames: []string{"a.example", "b.example"}, Subject: pkix.Name{CommonName: "c"}, IPAddresses: ip}, "a.example"},
		{x509.Certificate{Subject: pkix.Name{CommonName: "c"}, IPAddresses: ip}, "c"},
		{x509.Certificate{IPAddresses: ip}, "::1"},
		{x509.Certificate{}, ""},
	} {
		require.Equal(t, test.want, certificateName(&test.leaf))
	}
}

func TestReasons(t *testing.T) {
	refused := func(r staple.Reason) error { return &staple.VerifyError{Reason: r, Err: errors.New("x")} }
	status := func(s ocsp.ResponseStatus) error { return ocsp.ResponseError{Status: s} }
	answer := func(code int, err error) error { return &staple.HTTPError{URL: ocspURL, StatusCode: code, Err: err} }
	for _, test := range []struct {
		want string
		err  error
	}{
		{"no_issuer", errors.Join(staple.ErrNoIssuer, answer(404, nil))},
		{"malformed", answer(200, refused(staple.ReasonMalformed))},
		{"bad_signature", answer(200, refused(staple.ReasonBadSignature))},
		{"unauthorized_signer", refused(staple.ReasonUnauthorizedSigner)},
		{"wrong_certificate", refused(staple.ReasonWrongCertificate)},
		{"not_yet_valid", refused(staple.ReasonNotYetValid)},
		{"expired", refused(staple.ReasonExpired)},
		{"unsupported_algorithm", refused(staple.ReasonUnsupportedAlgorithm)},
		{"try_later", &staple.VerifyError{Reason: staple.ReasonUnsuccessful, Err: status(ocsp.TryLater)}},
		{"other", refused(1000)},
		{"malformed_request", answer(200, status(ocsp.Malformed))},
		{"internal_error", answer(200, status(ocsp.InternalError))},
		{"try_later", answer(200, status(ocsp.TryLater))},
		{"signature_required", answer(200, status(ocsp.SignatureRequired))},
		{"unauthorized", answer(200, status(ocsp.Unauthorized))},
		{"unusable_answer", answer(200, status(99))},
		{"timeout", answer(0, context.DeadlineExceeded)},
		{"timeout", context.DeadlineExceeded},
		{"dns", answer(0, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host"}})},
		{"connection", answer(0, &net.OpError{Op: "dial", Err: errors.New("connection refused")})},
		{"unusable_answer", answer(200, errors.New("unusable"))},
		{"http_3xx", answer(302, nil)},
		{"http_4xx", answer(429, nil)},
		{"http_5xx", answer(503, nil)},
		{"http_other", answer(999, nil)},
		{"http_other", answer(-1, nil)},
		{"other", errors.New("of a Fetcher of one's own")},
		{"other", nil},
		{"bad_signature", errors.Join(answer(503, nil), answer(0, context.DeadlineExceeded), answer(200, refused(staple.ReasonBadSignature)))},
	} {
		require.Equal(t, test.want, reason(test.err), "%v", test.err)
		if test.err != nil {
			require.Equal(t, test.want, reason(fmt.Errorf("wrapped: %w", test.err)), "%v", test.err)
		}
	}
}

// TestWithoutAStapler scrapes what is not in use yet.
func TestWithoutAStapler(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(new(Collector))
	n, err := testutil.GatherAndCount(registry)
	require.NoError(t, err)
	require.Zero(t, n)

	w := newWorld(t)
	require.Empty(t, w.scrape(t))
	require.NoError(t, w.stapler.Close())
	require.Empty(t, w.scrape(t))
}

// TestOverTheNetwork watches a server whose responder is down, then comes up, with real connections.
func TestOverTheNetwork(t *testing.T) {
	w := newWorld(t)
	var down sync.Mutex
	refuse := true
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		down.Lock()
		defer down.Unlock()
		if refuse {
			panic(http.ErrAbortHandler)
		}
		w.responder.ServeHTTP(rw, r)
	}))
	defer server.Close()
	w.stapler.Fetcher = new(staple.HTTPFetcher)
	c, err := w.stapler.Add(w.ca.Leaf(stapletest.LeafOptions{Names: []string{"localhost"}, Responders: []string{server.URL}, MustStaple: true}))
	require.NoError(t, err)
	require.ErrorContains(t, w.stapler.Wait(t.Context()), "1 Must-Staple certificates have no staple")

	stapled := func() bool {
		listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: c.GetCertificate})
		require.NoError(t, err)
		defer listener.Close()
		served := make(chan error, 1)
		go func() {
			conn, err := listener.Accept()
			if err == nil {
				err = conn.(*tls.Conn).HandshakeContext(t.Context())
				conn.Close()
			}
			served <- err
		}()
		conn, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{RootCAs: w.ca.Roots(), ServerName: "localhost"})
		require.NoError(t, err)
		defer conn.Close()
		require.NoError(t, <-served)
		return len(conn.ConnectionState().OCSPResponse) > 0
	}
	host := strings.TrimPrefix(server.URL, "http://")
	labels := func(state string) string {
		return fmt.Sprintf(`staple_certificates{must_staple="true",responder_host="%s",state="%s"}`, host, state)
	}
	require.False(t, stapled())
	text := w.scrape(t)
	requireValue(t, 1, text, labels("must-staple-missing"))
	requireValue(t, 1, text, fmt.Sprintf(`staple_failing_certificates{responder_host="%s"}`, host))
	requireValue(t, 1, text, fmt.Sprintf(`staple_unstapled_handshakes_total{responder_host="%s"}`, host))

	down.Lock()
	refuse = false
	down.Unlock()
	require.NoError(t, c.Refresh(t.Context()))
	require.True(t, stapled())
	require.NoError(t, w.stapler.Close()) // now all events have been told
	text = w.scrape(t)
	requireValue(t, 1, text, labels("stapled"))
	requireValue(t, 1, text, fmt.Sprintf(`staple_fetches_total{responder_host="%s",result="stapled"}`, host))
	failed, ok := value(t, text, fmt.Sprintf(`staple_fetch_failures_total{reason="connection",responder_host="%s"}`, host))
	require.True(t, ok, text)
	require.GreaterOrEqual(t, failed, 1.0)
	requireValue(t, failed+1, text, fmt.Sprintf(`staple_fetch_duration_seconds_count{responder_host="%s"}`, host))
	requireValue(t, 1, text, fmt.Sprintf(`staple_unstapled_handshakes_total{responder_host="%s"}`, host))
}

// stapledCertificates returns a world with n certificates, each with a staple. For the sake of speed they are signed here,
// and a Verifier takes anything for a response.
func stapledCertificates(tb testing.TB, n int) *world {
	w := newWorld(tb)
	w.ca = stapletest.NewCA(stapletest.CAOptions{KeyType: stapletest.Ed25519})
	key := w.ca.Key.(ed25519.PrivateKey)
	serial := new(big.Int).SetBytes(bytes.Repeat([]byte{0x5a}, 16))
	template := w.ca.Leaf(stapletest.LeafOptions{Names: []string{"www.example.com"}, Responders: []string{ocspURL}, Serial: serial})
	at := bytes.Index(template.Leaf.Raw, serial.Bytes())
	tbs := bytes.Index(template.Leaf.Raw, template.Leaf.RawTBSCertificate)
	require.Positive(tb, at)
	w.stapler.OnEvent = nil // there are more than a hundred thousand
	w.stapler.Fetcher = staple.FetcherFunc(func(context.Context, *staple.Request) ([]byte, error) { return []byte("a response"), nil })
	w.stapler.Verifier = believer{}
	for i := range n {
		leaf := *template.Leaf
		leaf.Raw = bytes.Clone(template.Leaf.Raw)
		binary.BigEndian.PutUint64(leaf.Raw[at+8:], uint64(i))
		leaf.RawTBSCertificate = leaf.Raw[tbs : tbs+len(leaf.RawTBSCertificate)]
		leaf.Signature = ed25519.Sign(key, leaf.RawTBSCertificate)
		copy(leaf.Raw[len(leaf.Raw)-ed25519.SignatureSize:], leaf.Signature)
		leaf.SerialNumber = new(big.Int).SetBytes(leaf.Raw[at : at+16])
		_, err := w.stapler.Add(tls.Certificate{Certificate: [][]byte{leaf.Raw, w.ca.Issuer.Raw}, Leaf: &leaf})
		require.NoError(tb, err)
	}
	require.NoError(tb, w.stapler.Wait(tb.Context()))
	return w
}

// A believer takes anything for a response that is good for a week.
type believer struct{}

func (believer) Verify(_ []byte, _, _ *x509.Certificate, now time.Time) (*ocsp.Response, time.Time, error) {
	return &ocsp.Response{Status: ocsp.Good, ThisUpdate: now}, now.Add(7 * 24 * time.Hour), nil
}

func TestManyCertificatesMakeFewSeries(t *testing.T) {
	const n = 1500
	w := stapledCertificates(t, n)
	text := w.scrape(t)
	requireValue(t, n, text, `staple_certificates{must_staple="false",responder_host="ocsp.example",state="stapled"}`)
	require.Less(t, strings.Count(text, "\n"), 100)

	w.collector.MaxCertificates = n
	text = w.scrape(t)
	require.Equal(t, n, strings.Count(text, "\nstaple_certificate_state{"))
}

// scrapes measures what a scrape costs, and returns what the last one sent.
func (w *world) scrapes(b *testing.B) (sent discard) {
	handler := promhttp.HandlerFor(w.registry, promhttp.HandlerOpts{DisableCompression: true})
	request := httptest.NewRequest("GET", "/metrics", nil)
	b.ReportAllocs()
	for b.Loop() {
		sent = discard{}
		handler.ServeHTTP(&sent, request)
	}
	return sent
}

func BenchmarkCollect(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			sent := stapledCertificates(b, n).scrapes(b)
			b.ReportMetric(float64(sent.bytes), "bytes/scrape")
			b.ReportMetric(float64(sent.lines), "lines/scrape")
		})
	}
}

// A discard is an http.ResponseWriter that counts.
type discard struct{ bytes, lines int }

func (d *discard) Header() http.Header { return http.Header{} }
func (d *discard) WriteHeader(int)     {}
func (d *discard) Write(p []byte) (int, error) {
	d.bytes += len(p)
	d.lines += bytes.Count(p, []byte("\n"))
	return io.Discard.Write(p)
}

func TestCountedGoesByWhoWasReallyAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, answer := range []stapletest.Answer{{}, {HTTPStatus: 500}} {
			w := newWorld(t)
			w.stapler.Fetcher = &staple.HTTPFetcher{Client: w.responder.Client(), URLs: func(*x509.Certificate) []string { return []string{" http://override.example/ "} }}
			w.add(t, stapletest.LeafOptions{}, answer)
			w.settle(t)
			require.Contains(t, w.scrape(t), `staple_certificates{must_staple="false",responder_host="override.example"`)
		}
	})
}
