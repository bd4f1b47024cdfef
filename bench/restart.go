package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/bench/internal/table"
)

// A restart is of a process that finds the responses about all certificates in the cache.
type restart struct {
	*fleet
	name  string // of the cache
	cache staple.Cache
}

// keyOf returns the key of a [staple.Cache] for a certificate.
func keyOf(cert tls.Certificate) string {
	sum := sha256.Sum256(cert.Certificate[0])
	return hex.EncodeToString(sum[:])
}

// cached puts the responses about all certificates into memory.
func (f *fleet) cached() (*restart, error) {
	cache := staple.NewMemoryCache()
	for i, name := range f.names {
		if err := cache.Put(context.Background(), keyOf(f.certs[i]), f.staples[name]); err != nil {
			return nil, err
		}
	}
	return &restart{f, "memory", cache}, nil
}

// cachedIn puts them into the directory, without the syncs of [staple.DirCache].
func (f *fleet) cachedIn(dir string) (*restart, error) {
	return &restart{f, "directory", staple.DirCache(dir)}, parallel(runtime.GOMAXPROCS(0), len(f.certs), func(i int) error {
		return os.WriteFile(filepath.Join(dir, keyOf(f.certs[i])), f.staples[f.names[i]], 0o600)
	})
}

// judgeAll does for each certificate what nobody can do without, in so many goroutines.
func (r *restart) judgeAll(goroutines int) error {
	verifier := new(staple.ResponseVerifier)
	return parallel(goroutines, len(r.certs), func(i int) error {
		der, err := r.cache.Get(context.Background(), keyOf(r.certs[i]))
		if err != nil {
			return err
		}
		leaf := r.certs[i].Leaf
		response, _, err := verifier.Verify(der, leaf, r.issuer, time.Now())
		if err == nil && response.Status != ocsp.Good {
			err = fmt.Errorf("the status of %s is %d", r.names[i], response.Status)
		}
		return errors.Join(err, r.issuer.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature))
	})
}

// stapleAll has a new Stapler staple all certificates, which begin gives it. If it asks about any, that is an error.
func (r *restart) stapleAll(begin func(*staple.Stapler) error) error {
	var requests atomic.Int64
	stapler := &staple.Stapler{Cache: r.cache, Fetcher: staple.FetcherFunc(func(ctx context.Context, req *staple.Request) ([]byte, error) {
		requests.Add(1)
		return r.fetch(ctx, req)
	})}
	defer stapler.Close()
	if err := begin(stapler); err != nil {
		return err
	}
	if err := stapler.Wait(context.Background()); err != nil {
		return err
	}
	stapled := 0
	for c := range stapler.Certificates() {
		if len(c.TLS().OCSPStaple) > 0 {
			stapled++
		}
	}
	if n := requests.Load(); n > 0 || stapled < len(r.certs) {
		return fmt.Errorf("%d of %d certificates are stapled, after %d requests", stapled, len(r.certs), n)
	}
	return nil
}

// all returns the rows on all cores. The first is what the others are compared with.
func (r *restart) all() []contender {
	cores := runtime.GOMAXPROCS(0)
	return []contender{
		{"read and judged", func() error { return r.judgeAll(cores) }},
		{"TLSConfig", func() error {
			var config *tls.Config
			err := r.stapleAll(func(s *staple.Stapler) error {
				config = s.TLSConfig(&tls.Config{Certificates: r.certs})
				return nil
			})
			runtime.KeepAlive(config)
			return err
		}},
		{"Add, in parallel", func() error {
			return r.stapleAll(func(s *staple.Stapler) error {
				return parallel(cores, len(r.certs), func(i int) error {
					_, err := s.Add(r.certs[i])
					return err
				})
			})
		}},
	}
}

// one returns the rows on one core, likewise.
func (r *restart) one() []contender {
	return []contender{
		{"read and judged, one by one", func() error { return r.judgeAll(1) }},
		{"Add, one by one", func() error {
			return r.stapleAll(func(s *staple.Stapler) error { return addAll(s, r.certs) })
		}},
	}
}

func restartTable(w io.Writer, most int) error {
	f := newFleet(min(most, 100_000), "http://ocsp.example.net")
	n := len(f.certs)
	memory, err := f.cached()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "staple-restart-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	files, err := f.cachedIn(dir)
	if err != nil {
		return err
	}
	rows := [][]string{{"", "cache", "time to staple " + thousands(n), "for each", ""}}
	for _, r := range []*restart{memory, files} {
		for _, contenders := range [][]contender{r.all(), r.one()} {
			results, err := measure(2, contenders)
			if err != nil {
				return err
			}
			for i, result := range results {
				ns := nsPerCall(result)
				row := []string{contenders[i].name, r.name, fmt.Sprintf("%.2f s", ns/1e9), fmt.Sprintf("%.1f µs", ns/1e3/float64(n)), ""}
				if i > 0 {
					row[4] = fmt.Sprintf("%.2f×", ns/nsPerCall(results[0]))
				}
				rows = append(rows, row)
			}
		}
	}
	table.Print(w, rows)
	return nil
}
