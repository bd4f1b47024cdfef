package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/bench/internal/table"
)

// arrivals returns what VerifyConnection sees of each client of the fleet.
func (f *fleet) arrivals() []tls.ConnectionState {
	all := make([]tls.ConnectionState, len(f.certs))
	for i, cert := range f.certs {
		all[i] = tls.ConnectionState{Version: tls.VersionTLS13, PeerCertificates: []*x509.Certificate{cert.Leaf},
			VerifiedChains: [][]*x509.Certificate{{cert.Leaf, f.issuer}}}
	}
	return all
}

// checkerTable is two tables: what a known peer costs, by itself and in a handshake.
func checkerTable(w io.Writer, most int) error {
	rows := [][]string{{"known peers", "ns a connection", "allocations", "ns to read the chain first, as crypto/tls does"}}
	var last *knownPeers
	for n := range upTo(most, 1, 1000, 100_000) {
		k, err := newKnownPeers(n)
		if err != nil {
			return err
		}
		defer k.stapler.Close()
		i := 0
		read := func() error {
			i = (i + 7919) % n
			for _, cert := range k.arrivals[i].VerifiedChains[0] {
				if bytes.Count(cert.Raw, []byte{0}) == 0 {
					return errors.New("no certificate")
				}
			}
			return nil
		}
		results, err := measure(rounds, []contender{{"read and check", func() error {
			if err := read(); err != nil {
				return err
			}
			return k.checker.VerifyConnection(k.arrivals[i])
		}}, {"read", read}})
		if err != nil {
			return err
		}
		allocations := testing.AllocsPerRun(1000, func() { _ = k.checker.VerifyConnection(k.arrivals[0]) })
		both, alone := nsPerCall(results[0]), nsPerCall(results[1])
		rows = append(rows, []string{thousands(n), fmt.Sprintf("%.0f", both-alone), fmt.Sprintf("%.0f", allocations), fmt.Sprintf("%.0f", alone)})
		last = k
	}
	table.Print(w, rows)

	base := &tls.Config{Certificates: last.fleet.certs[:1], ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool(last.fleet.issuer)}
	checked := base.Clone()
	checked.VerifyConnection = last.checker.VerifyConnection
	one, err := newKnownPeers(1)
	if err != nil {
		return err
	}
	defer one.stapler.Close()
	oneBase := base.Clone()
	oneBase.ClientCAs = pool(one.fleet.issuer)
	oneChecked := oneBase.Clone()
	oneChecked.VerifyConnection = one.checker.VerifyConnection
	return rateTable(w, []contender{
		{"crypto/tls, " + thousands(len(last.fleet.certs)) + " clients", last.handshakes(base)},
		{"again", last.handshakes(base.Clone())},
		{"with a Checker", last.handshakes(checked)},
		{"crypto/tls, one client", one.handshakes(oneBase)},
		{"with a Checker", one.handshakes(oneChecked)},
	})
}

func pool(root *x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(root)
	return p
}

// knownPeers is a Checker, and clients that it knows.
type knownPeers struct {
	fleet    *fleet
	stapler  *staple.Stapler
	checker  *staple.Checker
	arrivals []tls.ConnectionState
}

func newKnownPeers(n int) (*knownPeers, error) {
	f := newFleet(n, "http://ocsp.example.net")
	k := &knownPeers{fleet: f, arrivals: f.arrivals(), stapler: &staple.Stapler{Fetcher: staple.FetcherFunc(f.fetch)}}
	k.checker = &staple.Checker{Stapler: k.stapler}
	for _, cs := range k.arrivals {
		if err := k.checker.VerifyConnection(cs); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// handshakes returns what makes a handshake with the next client.
func (k *knownPeers) handshakes(config *tls.Config) func() error {
	i := 0
	return func() error {
		i = (i + 7919) % len(k.fleet.certs)
		return mutual(config, &tls.Config{Certificates: k.fleet.certs[i : i+1], InsecureSkipVerify: true})
	}
}

// mutual makes one full handshake of TLS 1.3 with a client's certificate.
func mutual(server, client *tls.Config) error {
	a, b := net.Pipe()
	defer a.Close()
	served := make(chan error, 1)
	go func() {
		defer b.Close()
		s := tls.Server(b, server)
		served <- s.Handshake()
	}()
	c := tls.Client(a, client)
	if err := c.Handshake(); err != nil {
		return err
	}
	go io.Copy(io.Discard, a) // the session ticket
	return <-served
}

const (
	clients      = 10_000
	clientsRetry = time.Second // of a client that was refused
)

// peersTable is how long it takes until all of many different clients are in that come at once, again and again.
func peersTable(w io.Writer, most int) error {
	n := min(clients, most)
	rows := [][]string{{"Concurrency", "cache", fmt.Sprintf("%s clients are in after", thousands(n)), "refused at first", "requests", "most at a time"}}
	for _, c := range []struct {
		concurrency int
		full        bool
	}{{16, false}, {64, false}, {256, false}, {16, true}} {
		f, server, err := newResponder(n, latency)
		if err != nil {
			return err
		}
		row, err := comeAtOnce(f, server, c.concurrency, c.full)
		server.Close()
		if err != nil {
			return err
		}
		rows = append(rows, row)
	}
	table.Print(w, rows)
	return nil
}

func comeAtOnce(f *fleet, server *httptest.Server, concurrency int, full bool) (row []string, err error) {
	cache := staple.NewMemoryCache()
	inner := server.Config.Handler
	var asked, now, peak atomic.Int64
	server.Config.Handler = counting{inner, &asked, &now, &peak}
	name := "empty"
	if full {
		name = "full"
		if err := f.fill(cache); err != nil {
			return nil, err
		}
	}
	stapler := &staple.Stapler{Cache: cache, Concurrency: concurrency}
	defer stapler.Close()
	checker := &staple.Checker{Stapler: stapler}
	var refused atomic.Int64
	var all sync.WaitGroup
	start := time.Now()
	for _, cs := range f.arrivals() {
		all.Go(func() {
			for first := true; checker.VerifyConnection(cs) != nil; first = false {
				if first {
					refused.Add(1)
				}
				time.Sleep(clientsRetry)
			}
		})
	}
	all.Wait()
	took := time.Since(start)
	if !full && asked.Load() < int64(len(f.certs)) {
		return nil, errors.New("somebody came in unasked")
	}
	return []string{fmt.Sprint(concurrency), name, fmt.Sprintf("%.1f s", took.Seconds()), thousands(int(refused.Load())),
		thousands(int(asked.Load())), fmt.Sprint(peak.Load())}, nil
}

// A counting handler counts requests, in all, now, and at most at a time.
type counting struct {
	http.Handler
	asked, now, peak *atomic.Int64
}

func (c counting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.asked.Add(1)
	n := c.now.Add(1)
	defer c.now.Add(-1)
	for p := c.peak.Load(); n > p && !c.peak.CompareAndSwap(p, n); p = c.peak.Load() {
	}
	c.Handler.ServeHTTP(w, r)
}

// fill puts the responses about all certificates into the cache.
func (f *fleet) fill(cache staple.Cache) error {
	s := &staple.Stapler{Cache: cache, Fetcher: staple.FetcherFunc(f.fetch), Concurrency: concurrency}
	if err := addAll(s, f.certs); err != nil {
		return err
	}
	if err := s.Wait(context.Background()); err != nil {
		return err
	}
	return s.Close()
}

// rateTable compares rates with the first contender's in the same round.
func rateTable(w io.Writer, contenders []contender) error {
	rates := make([][]float64, len(contenders))       // a second, in each round
	differences := make([][]float64, len(contenders)) // in percent, to the first contender in the same round
	for range handshakeRounds {
		results, err := measure(1, contenders)
		if err != nil {
			return err
		}
		for i, r := range results {
			rates[i] = append(rates[i], 1e9/nsPerCall(r))
			differences[i] = append(differences[i], 100*(nsPerCall(results[0])/nsPerCall(r)-1))
		}
	}
	rows := [][]string{{"server", "handshakes/s, fastest round", "median round", "difference in the same round: median", "middle half of the rounds"}}
	for i, c := range contenders {
		slices.Sort(rates[i])
		slices.Sort(differences[i])
		row := []string{c.name, fmt.Sprintf("%.0f", rates[i][handshakeRounds-1]), fmt.Sprintf("%.0f", rates[i][handshakeRounds/2]), "", ""}
		if i > 0 {
			d := differences[i]
			row[3] = fmt.Sprintf("%+.1f %%", d[len(d)/2])
			row[4] = fmt.Sprintf("%+.1f to %+.1f %%", d[len(d)/4], d[len(d)*3/4])
		}
		rows = append(rows, row)
	}
	table.Print(w, rows)
	return nil
}
