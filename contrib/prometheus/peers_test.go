package stapleprom

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
)

func arrival(chain ...*x509.Certificate) tls.ConnectionState {
	return tls.ConnectionState{Version: tls.VersionTLS13, PeerCertificates: chain[:1], VerifiedChains: [][]*x509.Certificate{chain}}
}

// meet has a client come, about which the responder says a after 50 ms.
func (w *world) meet(checker *staple.Checker, o stapletest.LeafOptions, a stapletest.Answer) error {
	cert := w.ca.Leaf(o)
	a.Delay = 50 * time.Millisecond
	w.responder.Set(cert.Leaf, a)
	return checker.VerifyConnection(arrival(cert.Leaf, w.ca.Issuer))
}

// everyPeer has a peer in every state come, and one more that is let in.
func everyPeer(t testing.TB, w *world) {
	at := func(host string) stapletest.LeafOptions { return stapletest.LeafOptions{Responders: []string{host}} }
	checker := &staple.Checker{Stapler: w.stapler}
	require.NoError(t, w.meet(checker, stapletest.LeafOptions{}, stapletest.Answer{}))
	require.NoError(t, w.meet(checker, at("http://peers.example"), stapletest.Answer{}))
	require.NoError(t, w.meet(checker, stapletest.LeafOptions{NotAfter: time.Now().Add(-time.Second)}, stapletest.Answer{}))
	require.ErrorIs(t, w.meet(checker, at("http://peers.example"), stapletest.Answer{Status: ocsp.Revoked}), staple.ErrRevoked)
	require.ErrorIs(t, w.meet(checker, at("http://away.example"), stapletest.Answer{HTTPStatus: 503}), staple.ErrUnanswered)
	open := &staple.Checker{Stapler: w.stapler, FailOpen: true}
	require.NoError(t, w.meet(open, at("http://further.example"), stapletest.Answer{HTTPStatus: 503}))
	hanging := &staple.Checker{Stapler: w.stapler, Timeout: time.Nanosecond}
	require.ErrorIs(t, w.meet(hanging, at("http://hang.example"), stapletest.Answer{}), staple.ErrUnanswered)
}

func TestPeersAreCountedByStateAndConnectionsByCA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add(t, stapletest.LeafOptions{Responders: []string{ocspURL}}, stapletest.Answer{})
		w.settle(t)
		before := w.scrape(t)
		require.NotContains(t, before, "staple_peers", "where there is no Checker")
		require.NotContains(t, before, "staple_check")
		everyPeer(t, w)
		ca := w.stapler.CheckStats()[0].CA
		require.NoError(t, testutil.GatherAndCompare(w.registry, strings.NewReader(strings.ReplaceAll(`
# HELP staple_peers Peers that are remembered and not served, in each state.
# TYPE staple_peers gauge
staple_peers{state="answered"} 1
staple_peers{state="expired"} 1
staple_peers{state="no-responder"} 1
staple_peers{state="revoked"} 1
staple_peers{state="unanswered"} 2
staple_peers{state="waiting"} 1
# HELP staple_check_connections_total Connections that Checkers have decided about.
# TYPE staple_check_connections_total counter
staple_check_connections_total{ca="CA",result="passed"} 3
staple_check_connections_total{ca="CA",result="passed_unanswered"} 1
staple_check_connections_total{ca="CA",result="refused"} 1
staple_check_connections_total{ca="CA",result="unanswered"} 2
# HELP staple_check_waits_total Connections that waited for an answer about the peer.
# TYPE staple_check_waits_total counter
staple_check_waits_total{ca="CA"} 5
`, `ca="CA"`, `ca="`+ca+`"`)), "staple_peers", "staple_check_connections_total", "staple_check_waits_total"))
		text := w.scrape(t)
		waited, ok := value(t, text, `staple_check_wait_seconds_total{ca="`+ca+`"}`)
		require.True(t, ok)
		require.InDelta(t, w.stapler.CheckStats()[0].Waiting.Seconds(), waited, 1e-9)
		require.Greater(t, waited, 0.2, "four of the five waited for 50 ms, at least")

		// What is served stays as it was: peers are in none of its series.
		for line := range strings.Lines(before) {
			if strings.HasPrefix(line, "staple_") && !strings.Contains(line, "_timestamp_") {
				require.Contains(t, text, line)
			}
		}
		require.NotContains(t, text, "peers.example")
		require.Equal(t, 1, strings.Count(text, "\nstaple_certificate_state{"))
		problems, err := testutil.GatherAndLint(w.registry)
		require.NoError(t, err)
		require.Empty(t, problems)
	})
}

// TestEveryStateHasOneSpelling goes by the order of the states: each is one of a peer, of a certificate that is served, or
// of both, and written as it is in staple.State.
func TestEveryStateHasOneSpelling(t *testing.T) {
	text := exposition(t)
	of := func(metric string) (states []string) {
		for s := staple.StateMustStapleMissing; !strings.HasPrefix(s.String(), "State("); s++ {
			if strings.Contains(text, "\n"+metric+`state="`+s.String()+`"}`) {
				states = append(states, s.String())
			}
		}
		require.Len(t, states, strings.Count(text, "\n"+metric+`state="`))
		return states
	}
	require.Equal(t, strings.Fields("must-staple-missing unstapled revoked expired expiring failing waiting stapled no-responder"),
		of(`staple_certificates{must_staple="true",responder_host="ocsp.example",`))
	require.Equal(t, strings.Fields("unanswered revoked expired waiting answered no-responder"), of("staple_peers{"))
}

func TestAPeerThatIsServedAsWellIsCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := w.add(t, stapletest.LeafOptions{Responders: []string{ocspURL}}, stapletest.Answer{})
		w.settle(t)
		checker := &staple.Checker{Stapler: w.stapler}
		require.NoError(t, checker.VerifyConnection(arrival(c.Status().Leaf, w.ca.Issuer)))
		const served = `staple_certificates{must_staple="false",responder_host="ocsp.example",state="stapled"}`
		text := w.scrape(t)
		requireValue(t, 1, text, served)
		requireValue(t, 0, text, `staple_peers{state="answered"}`)
		c.Remove()
		text = w.scrape(t)
		requireValue(t, 0, text, served)
		requireValue(t, 1, text, `staple_peers{state="answered"}`)
	})
}

func TestFetchesAboutPeersAreCountedIfTheCheckerTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tells := range []bool{false, true} {
			w := newWorld(t)
			checker := &staple.Checker{Stapler: w.stapler}
			if tells {
				checker.OnEvent = w.collector.Event
			}
			require.Error(t, w.meet(checker, stapletest.LeafOptions{Responders: []string{ocspURL}}, stapletest.Answer{HTTPStatus: 503}))
			synctest.Wait()
			text := w.scrape(t)
			const failures = `staple_fetch_failures_total{reason="http_5xx",responder_host="ocsp.example"}`
			if tells {
				requireValue(t, 1, text, failures)
				requireValue(t, 0, text, `staple_certificates{must_staple="false",responder_host="ocsp.example",state="unstapled"}`)
			} else {
				require.NotContains(t, text, "staple_fetch_failures_total")
			}
		}
	})
}

func TestTheNumberOfCAsIsBounded(t *testing.T) {
	w := newWorld(t)
	checker := &staple.Checker{Stapler: w.stapler}
	leaf := w.ca.Leaf(stapletest.LeafOptions{}).Leaf
	come := func(i int, name string) {
		issuer, peer := *w.ca.Issuer, *leaf
		issuer.RawSubject, issuer.Subject.CommonName = []byte(fmt.Sprint(i)), name
		peer.Raw = binary.BigEndian.AppendUint64(bytes.Clone(leaf.Raw), uint64(i))
		require.NoError(t, checker.VerifyConnection(arrival(&peer, &issuer)))
	}
	const first = `staple_check_connections_total{ca="CN=CA 0000",result="passed"}`
	come(0, "CA 0000")
	requireValue(t, 1, w.scrape(t), first)
	const cas = 1100 // the Stapler tells a thousand apart
	for i := 1; i < cas; i++ {
		come(i, fmt.Sprintf("CA %04d", i))
	}
	come(0, "CA 0000")
	text := w.scrape(t)
	requireValue(t, 2, text, first)
	require.Equal(t, maxCAs+1, strings.Count(text, "\nstaple_check_waits_total{"))
	requireValue(t, cas-maxCAs, text, `staple_check_connections_total{ca="other",result="passed"}`)
	come(cas, "A CA that came last") // and would be the first by name
	text = w.scrape(t)
	requireValue(t, cas-maxCAs+1, text, `staple_check_connections_total{ca="other",result="passed"}`)
	require.NotContains(t, text, "came last")
}

func TestHostileNamesOfCAs(t *testing.T) {
	w := newWorld(t)
	checker := &staple.Checker{Stapler: w.stapler}
	leaf := w.ca.Leaf(stapletest.LeafOptions{}).Leaf
	for i, name := range []string{"\xff\"\\} 1\nfake_metric 2", strings.Repeat("ü", 3000) + "1", strings.Repeat("ü", 3000) + "2", "\u202egnp.exe", "\u202dgnp.exe", "other", "others"} {
		issuer, peer := *w.ca.Issuer, *leaf
		issuer.RawSubject, issuer.Subject.CommonName = []byte(fmt.Sprint(i)), name
		peer.Raw = append(bytes.Clone(leaf.Raw), byte(i))
		require.NoError(t, checker.VerifyConnection(arrival(&peer, &issuer)))
	}
	text := w.scrape(t) // which fails if two series have the same labels
	require.True(t, utf8.ValidString(text))
	require.NotContains(t, text, "\nfake_metric")
	require.NotContains(t, text, "\u202e")
	for line := range strings.Lines(text) {
		require.Less(t, len(line), 500)
	}
	require.Contains(t, text, `ca="CN=others"`)
}

// peersOf returns a world that remembers n peers.
func peersOf(tb testing.TB, n int) *world {
	w := newWorld(tb)
	w.stapler.Verifier, w.stapler.Concurrency = believer{}, 64
	w.stapler.Fetcher = staple.FetcherFunc(func(context.Context, *staple.Request) ([]byte, error) { return []byte("a response"), nil })
	serial := new(big.Int).SetBytes(bytes.Repeat([]byte{0x5a}, 16))
	template := w.ca.Leaf(stapletest.LeafOptions{Responders: []string{ocspURL}, Serial: serial}).Leaf
	at := bytes.Index(template.Raw, serial.Bytes())
	require.Positive(tb, at)
	checker := &staple.Checker{Stapler: w.stapler, Timeout: time.Minute}
	var wg sync.WaitGroup
	for part := range 16 {
		wg.Go(func() {
			for i := part; i < n; i += 16 {
				leaf := *template
				leaf.Raw = bytes.Clone(template.Raw)
				binary.BigEndian.PutUint64(leaf.Raw[at+8:], uint64(i))
				leaf.SerialNumber = new(big.Int).SetBytes(leaf.Raw[at : at+16])
				if err := checker.VerifyConnection(arrival(&leaf, w.ca.Issuer)); err != nil {
					tb.Error(err)
				}
			}
		})
	}
	wg.Wait()
	return w
}

func TestManyPeersMakeFewSeries(t *testing.T) {
	const n = 1500
	w := peersOf(t, n)
	text := w.scrape(t)
	requireValue(t, n, text, `staple_peers{state="answered"}`)
	require.Less(t, strings.Count(text, "\n"), 40)
}

func BenchmarkCollectPeers(b *testing.B) {
	for _, n := range []int{1000, 131_072} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			sent := peersOf(b, n).scrapes(b)
			b.ReportMetric(float64(sent.lines), "lines/scrape")
		})
	}
}
