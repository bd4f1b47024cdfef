package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"runtime"
	"time"
	"unsafe"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/bench/internal/table"
)

// A keeper is one row of the table: it keeps certs, which are of f, with their staples. What it keeps is
// reachable from get until stop is called.
type keeper struct {
	name string
	keep func(f *fleet, certs []tls.Certificate) (get getCertificate, stop func(), err error)
}

var keepers = []keeper{
	{"map", func(f *fleet, certs []tls.Certificate) (getCertificate, func(), error) {
		stapled := make(map[string]*tls.Certificate, len(certs))
		for i := range certs {
			cert, name := certs[i], f.names[i]
			cert.OCSPStaple = bytes.Clone(f.staples[name])
			stapled[name] = &cert
		}
		get := func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) { return stapled[hello.ServerName], nil }
		return get, func() {}, nil
	}},
	{"staple, Add", func(f *fleet, certs []tls.Certificate) (getCertificate, func(), error) {
		stapler := &staple.Stapler{Fetcher: staple.FetcherFunc(f.fetch)}
		if err := addAll(stapler, certs); err != nil {
			return nil, nil, err
		}
		var config *tls.Config // whose index is made when it is checked, and not measured
		get := func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if config == nil {
				config = stapler.TLSConfig(nil)
			}
			return config.GetCertificate(hello)
		}
		return get, func() { stapler.Close() }, stapler.Wait(context.Background())
	}},
	{"staple, Add and TLSConfig(nil)", func(f *fleet, certs []tls.Certificate) (getCertificate, func(), error) {
		stapler := &staple.Stapler{Fetcher: staple.FetcherFunc(f.fetch)}
		if err := addAll(stapler, certs); err != nil {
			return nil, nil, err
		}
		return stapler.TLSConfig(nil).GetCertificate, func() { stapler.Close() }, stapler.Wait(context.Background())
	}},
	{"staple, TLSConfig(base)", func(f *fleet, certs []tls.Certificate) (getCertificate, func(), error) {
		stapler := &staple.Stapler{Fetcher: staple.FetcherFunc(f.fetch)}
		config := stapler.TLSConfig(&tls.Config{Certificates: certs})
		return config.GetCertificate, func() { stapler.Close() }, stapler.Wait(context.Background())
	}},
	{"CertMagic", func(f *fleet, certs []tls.Certificate) (getCertificate, func(), error) {
		config, stop, err := newMagic(f, certs)
		if err != nil {
			return nil, nil, err
		}
		return config.GetCertificate, stop, nil
	}},
}

// measure returns what keeping the certificates of f has added to the heap and to the goroutines.
func (k keeper) measure(f *fleet, hello tls.ClientHelloInfo) (heap, goroutines int, err error) {
	heap, goroutines = heapInUse(), runtime.NumGoroutine()
	get, stop, err := k.keep(f, f.certs)
	if err != nil {
		return 0, 0, err
	}
	defer stop()
	time.Sleep(100 * time.Millisecond) // for goroutines that are about to end
	heap, goroutines = heapInUse()-heap, runtime.NumGoroutine()-goroutines
	err = f.check(get, hellosFor(f.names, hello))
	runtime.KeepAlive(f)
	return heap, goroutines, err
}

func heapInUse() int {
	runtime.GC()
	runtime.GC() // the first leaves what pools and cleanups held
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int(stats.HeapAlloc)
}

// parsedSize returns how much heap the leaves of f take, parsed, with their DER.
func (f *fleet) parsedSize() (int, error) {
	before := heapInUse()
	leaves := make([]*x509.Certificate, len(f.certs))
	for i := range f.certs {
		var err error
		if leaves[i], err = x509.ParseCertificate(bytes.Clone(f.certs[i].Certificate[0])); err != nil {
			return 0, err
		}
	}
	size := heapInUse() - before
	runtime.KeepAlive(leaves)
	return size, nil
}

func memoryTable(w io.Writer, most int) error {
	hello, err := captureHello()
	if err != nil {
		return err
	}
	one, many := newFleet(1, "http://ocsp.example.net"), newFleet(min(most, 100_000), "http://ocsp.example.net")
	parsed, err := many.parsedSize()
	if err != nil {
		return err
	}
	staples := 0
	for _, der := range many.staples {
		staples += cap(bytes.Clone(der))
	}
	n := len(many.certs)
	const value = int(unsafe.Sizeof(tls.Certificate{}))
	rows := [][]string{{"bytes for each of " + thousands(n), "in all", "parsed leaf", "response", "tls.Certificate", "the rest",
		"goroutines for 1", "for " + thousands(n)}}
	for _, k := range keepers {
		_, few, err := k.measure(one, hello)
		if err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		heap, goroutines, err := k.measure(many, hello)
		if err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		row := []string{k.name}
		for _, bytes := range []int{(heap + parsed) / n, parsed / n, staples / n, value, (heap-staples)/n - value} {
			row = append(row, fmt.Sprint(bytes))
		}
		rows = append(rows, append(row, fmt.Sprint(few), fmt.Sprint(goroutines)))
	}
	runtime.KeepAlive(many)
	table.Print(w, rows)
	return nil
}
