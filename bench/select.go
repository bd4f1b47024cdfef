package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/bench/internal/table"
)

// A selection is one cell of the table: a way to choose, and the hellos to choose for.
type selection struct {
	name   string
	get    getCertificate
	hellos []tls.ClientHelloInfo
	batch  int // choices in a call of the contender, which go on where the last call left off
}

func (s selection) contender() contender {
	next := 0
	return contender{s.name, func() error {
		for range s.batch {
			cert, err := s.get(&s.hellos[next])
			if err != nil {
				return err
			}
			if cert == nil {
				return errors.New("no certificate")
			}
			if next++; next == len(s.hellos) {
				next = 0
			}
		}
		return nil
	}}
}

// selections returns the columns for the certificates of f, the first of which is what the others are compared
// with.
func selections(f *fleet, hello tls.ClientHelloInfo) (all []selection, stop func(), err error) {
	names := slices.Clone(f.names)
	rand.New(rand.NewPCG(3, 4)).Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	hellos := hellosFor(names, hello)
	few := make([]string, min(4, len(names))) // evenly spread over the certificates
	for i := range few {
		few[i] = f.names[(2*i+1)*len(f.names)/(2*len(few))]
	}
	fewHellos := hellosFor(few, hello)

	stapler := &staple.Stapler{Fetcher: staple.FetcherFunc(f.fetch)}
	config := stapler.TLSConfig(&tls.Config{Certificates: f.certs})
	if err := stapler.Wait(context.Background()); err != nil {
		return nil, nil, err
	}
	magic, stopMagic, err := newMagic(f, f.certs)
	if err != nil {
		return nil, nil, err
	}
	stapled := f.stapled()
	const batch = 1000
	return []selection{
		{"map and clock", bare(f.names, stapled), hellos, batch},
		{"staple", config.GetCertificate, hellos, batch},
		{"CertMagic", magic.GetCertificate, hellos, batch},
		{"crypto/tls", inOrder(stapled), fewHellos, len(fewHellos)},
	}, func() { stapler.Close(); stopMagic() }, nil
}

// stapled returns the certificates with their staples.
func (f *fleet) stapled() []tls.Certificate {
	certs := make([]tls.Certificate, len(f.certs))
	for i, name := range f.names {
		certs[i] = f.certs[i]
		certs[i].OCSPStaple = f.staples[name]
	}
	return certs
}

// bare looks the name up in a map, and at the clock whether the staple has ended.
func bare(names []string, certs []tls.Certificate) getCertificate {
	type current struct {
		end  time.Time
		cert tls.Certificate
	}
	end := time.Now().Add(24 * time.Hour).Round(0)
	m := make(map[string]*current, len(certs))
	for i, name := range names {
		m[name] = &current{end, certs[i]}
	}
	var p atomic.Pointer[map[string]*current]
	p.Store(&m)
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if c := (*p.Load())[hello.ServerName]; c != nil && time.Now().Before(c.end) {
			return &c.cert, nil
		}
		return nil, nil
	}
}

// inOrder is what crypto/tls does with Config.Certificates, which it does not export.
func inOrder(certs []tls.Certificate) getCertificate {
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if len(certs) == 1 {
			return &certs[0], nil
		}
		for i := range certs {
			if hello.SupportsCertificate(&certs[i]) == nil {
				return &certs[i], nil
			}
		}
		return &certs[0], nil
	}
}

func selectTable(w io.Writer, most int) error {
	hello, err := captureHello()
	if err != nil {
		return err
	}
	var rows [][]string
	for n := range upTo(most, 1, 100, 10_000, 100_000) {
		heading, row, err := selectRow(newFleet(n, "http://ocsp.example.net"), hello)
		if err != nil {
			return fmt.Errorf("%d certificates: %w", n, err)
		}
		if rows == nil {
			rows = append(rows, heading)
		}
		rows = append(rows, row)
	}
	table.Print(w, rows)
	return nil
}

func selectRow(f *fleet, hello tls.ClientHelloInfo) (heading, row []string, err error) {
	all, stop, err := selections(f, hello)
	if err != nil {
		return nil, nil, err
	}
	defer stop()
	var contenders []contender
	for _, s := range all {
		if err := f.check(s.get, s.hellos); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", s.name, err)
		}
		contenders = append(contenders, s.contender())
	}
	rounds := rounds
	if len(f.certs) > 10_000 {
		rounds /= 2 // each begins with a garbage collection
	}
	results, err := measure(rounds, contenders)
	if err != nil {
		return nil, nil, err
	}
	heading, row = []string{"certificates"}, []string{thousands(len(f.certs))}
	floor := nsPerCall(results[0]) / float64(all[0].batch)
	for i, r := range results {
		ns := nsPerCall(r) / float64(all[i].batch)
		allocs := math.Round(10*float64(r.MemAllocs)/float64(r.N*all[i].batch)) / 10
		cell := fmt.Sprintf("%s ns, %v allocs", thousands(int(math.Round(ns))), allocs)
		if i > 0 {
			cell += fmt.Sprintf(", %.2f×", ns/floor)
		}
		heading, row = append(heading, all[i].name), append(row, cell)
	}
	return heading, row, nil
}
