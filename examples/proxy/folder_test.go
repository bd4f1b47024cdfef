package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// A bench has a folder in a synctest bubble.
type bench struct {
	*testing.T
	ca        *stapletest.CA
	responder *stapletest.Responder
	folder    *folder
	log       *lines
	down      atomic.Bool // asks in vain
}

const scanEvery = 2 * time.Second

func onBench(t *testing.T, wait time.Duration, f func(b *bench)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{T: t, ca: stapletest.NewCA(stapletest.CAOptions{}), log: newLines()}
		b.responder = stapletest.NewResponder(b.ca)
		fetcher := &staple.HTTPFetcher{Client: b.responder.Client()}
		stapler := &staple.Stapler{Logger: slog.New(slog.DiscardHandler), Fetcher: staple.FetcherFunc(
			func(ctx context.Context, req *staple.Request) ([]byte, error) {
				if b.down.Load() {
					return nil, errors.New("the responder is down")
				}
				return fetcher.Fetch(ctx, req)
			})}
		defer stapler.Close()
		log := slog.New(slog.NewTextHandler(b.log, nil))
		b.folder = &folder{dir: dir, wait: wait, stapler: stapler, log: log, files: make(map[string]*file)}
		f(b)
	})
}

func (b *bench) leaf(o stapletest.LeafOptions) tls.Certificate {
	if o.Responders == nil {
		o.Responders = []string{"http://ocsp.example"}
	}
	return b.ca.Leaf(o)
}

func (b *bench) put(file string, cert tls.Certificate) {
	b.Helper()
	b.write(file, pemOf(b, cert))
}

func (b *bench) write(file string, data []byte) {
	b.Helper()
	put(b, filepath.Join(b.folder.dir, file), data)
}

// scan lets scanEvery pass, and has the folder look at its files.
func (b *bench) scan(times int) {
	b.Helper()
	for range times {
		time.Sleep(scanEvery)
		require.NoError(b, b.folder.scan(time.Now()))
		synctest.Wait()
		b.folder.update(time.Now())
	}
}

const renewed = 7 // scans, after which what a file has now is in service

// serves requires that name be served with cert, or nothing if that is nil, stapled or not.
func (b *bench) serves(name string, cert *tls.Certificate, stapled bool) {
	b.Helper()
	got, err := b.folder.getCertificate(&tls.ClientHelloInfo{ServerName: name})
	require.NoError(b, err)
	if cert == nil {
		require.Nil(b, got)
		return
	}
	require.NotNil(b, got, "nothing serves %s", name)
	require.Equal(b, cert.Leaf.SerialNumber, got.Leaf.SerialNumber)
	require.Equal(b, stapled, len(got.OCSPStaple) > 0)
}

// manages requires that the Stapler look after certs and no others.
func (b *bench) manages(certs ...tls.Certificate) {
	b.Helper()
	var want, got []string
	for _, c := range certs {
		want = append(want, c.Leaf.SerialNumber.String())
	}
	for c := range b.folder.stapler.Certificates() {
		got = append(got, c.Status().Leaf.SerialNumber.String())
	}
	require.ElementsMatch(b, want, got)
}

func (b *bench) listing() string {
	w := httptest.NewRecorder()
	b.folder.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	return w.Body.String()
}

func (b *bench) remove(file string) {
	b.Helper()
	require.NoError(b, os.Remove(filepath.Join(b.folder.dir, file)))
}

func TestCertificatesComeChangeAndGo(t *testing.T) {
	onBench(t, time.Hour, func(b *bench) {
		first := b.leaf(stapletest.LeafOptions{Names: []string{"a.example", "B.example"}})
		b.put("a.pem", first)
		b.scan(1)
		b.serves("a.example", &first, true)
		b.serves("b.EXAMPLE", &first, true)
		b.serves("", nil, false)
		b.serves("c.example", nil, false)

		wild := b.leaf(stapletest.LeafOptions{Names: []string{"*.c.example"}})
		b.put("wild.pem", wild)
		b.put("notes.txt", wild)
		b.scan(1)
		b.serves("www.c.example", &wild, true)
		b.serves("c.example", nil, false)
		b.serves("www.www.c.example", nil, false)
		b.manages(first, wild)

		second := b.leaf(stapletest.LeafOptions{Names: []string{"a.example"}})
		b.put("a.pem", second)
		b.scan(renewed)
		b.serves("a.example", &second, true)
		b.serves("b.example", nil, false)
		b.manages(second, wild)
		require.Len(b, b.log.with("certificate in service", "a.pem"), 2)

		b.remove("wild.pem")
		b.scan(2)
		b.serves("www.c.example", nil, false)
		b.manages(second)
		require.Len(b, b.folder.files, 1)

		// A directory that cannot be read is no empty one.
		require.NoError(b, os.Rename(b.folder.dir, b.folder.dir+".away"))
		for range 3 {
			require.Error(b, b.folder.scan(time.Now()))
			b.folder.update(time.Now())
		}
		b.serves("a.example", &second, true)
		require.NoError(b, os.Rename(b.folder.dir+".away", b.folder.dir))
	})
}

func TestWaitsForTheStaple(t *testing.T) {
	const wait = time.Minute
	onBench(t, wait, func(b *bench) {
		b.down.Store(true)
		fresh := b.leaf(stapletest.LeafOptions{Names: []string{"fresh.example"}})
		b.put("fresh.pem", fresh)
		b.scan(1)
		for range int(wait/scanEvery) - 1 {
			b.scan(1)
			b.serves("fresh.example", nil, false)
		}
		b.manages(fresh)
		require.Regexp(b, `(?m)^fresh.pem +waiting +none +fresh.example +".*the responder is down"$`, b.listing())
		b.scan(1)
		b.serves("fresh.example", &fresh, false)
	})
}

func TestDoesNotWaitInVain(t *testing.T) {
	for name, o := range map[string]struct {
		leaf   stapletest.LeafOptions
		answer stapletest.Answer
		want   string
	}{
		"for one without a responder": {stapletest.LeafOptions{Responders: []string{}}, stapletest.Answer{}, "none"},
		"for a revoked one":           {stapletest.LeafOptions{}, stapletest.Answer{Status: ocsp.Revoked}, "revoked"},
	} {
		t.Run(name, func(t *testing.T) {
			onBench(t, time.Hour, func(b *bench) {
				cert := b.leaf(o.leaf)
				b.responder.Set(cert.Leaf, o.answer)
				b.put("a.pem", cert)
				b.scan(1)
				b.serves("localhost", &cert, false)
				require.Regexp(b, `(?m)^a.pem +serving +`+o.want, b.listing())
			})
		})
	}
}

func TestSuccessorsThatClientsRefuse(t *testing.T) {
	const day = 24 * time.Hour
	for name, test := range map[string]struct {
		from, until time.Duration
		must, down  bool
		mend        func(b *bench) // makes it one that clients accept; nil: nothing can
	}{
		"not valid yet": {from: day, until: 50 * day, mend: func(b *bench) { time.Sleep(day) }},
		"expired":       {from: -day, until: -time.Minute},
		"Must-Staple, while the responder is down": {from: -day, until: 50 * day, must: true, down: true, mend: func(b *bench) {
			b.down.Store(false)
			time.Sleep(10 * time.Minute)
		}},
	} {
		for _, file := range []string{"a.pem", "b.pem"} { // in its place, and beside it
			t.Run(name+" "+file, func(t *testing.T) {
				onBench(t, 10*time.Second, func(b *bench) {
					leaf := func(from, until time.Duration, must bool) tls.Certificate {
						return b.leaf(stapletest.LeafOptions{MustStaple: must, NotBefore: time.Now().Add(from), NotAfter: time.Now().Add(until)})
					}
					old := leaf(-2*day, 50*day, true)
					b.put("a.pem", old)
					b.scan(1)
					b.down.Store(test.down)
					next := leaf(test.from, test.until, test.must)
					b.put(file, next)
					b.scan(20)
					b.serves("localhost", &old, true)
					if test.mend != nil {
						test.mend(b)
						b.scan(2)
						b.serves("localhost", &next, true)
					}
					if file == "b.pem" {
						b.manages(old, next)
					} else if test.mend != nil {
						b.manages(next)
					}
				})
			})
		}
	}
	t.Run("without a predecessor", func(t *testing.T) {
		onBench(t, 10*time.Second, func(b *bench) {
			b.down.Store(true)
			must := b.leaf(stapletest.LeafOptions{MustStaple: true})
			expired := b.leaf(stapletest.LeafOptions{Names: []string{"old.example"}, NotAfter: time.Now().Add(-time.Minute)})
			b.put("a.pem", must)
			b.put("b.pem", expired)
			b.scan(7)
			b.serves("localhost", &must, false)
			b.serves("old.example", &expired, false)
		})
	})
}

func TestADirectoryThatIsReplacedByAnEmptyOne(t *testing.T) {
	onBench(t, time.Hour, func(b *bench) {
		cert := b.leaf(stapletest.LeafOptions{})
		b.put("a.pem", cert)
		b.scan(1)
		require.NoError(b, os.Rename(b.folder.dir, b.folder.dir+".away"))
		require.NoError(b, os.Mkdir(b.folder.dir, 0o700)) // as where a volume was mounted
		for range 3 {
			require.ErrorContains(b, b.folder.scan(time.Now()), "another directory")
			b.folder.update(time.Now())
			b.serves("localhost", &cert, true)
		}
		next := b.leaf(stapletest.LeafOptions{})
		b.put("b.pem", next)
		b.scan(2)
		b.serves("localhost", &next, true)
		b.manages(next)
	})
}

// What is being written changes nothing, even if it would do.
func TestLeavesAloneWhatIsBeingWritten(t *testing.T) {
	onBench(t, time.Hour, func(b *bench) {
		old := b.leaf(stapletest.LeafOptions{})
		b.put("a.pem", old)
		b.scan(1)
		next := b.leaf(stapletest.LeafOptions{})
		for range 3 {
			b.write("a.pem", pemOf(b, next)[:600])
			b.scan(1)
			b.remove("a.pem")
			b.scan(1)
			b.put("a.pem", old)
			b.scan(1)
			b.serves("localhost", &old, true)
		}
		b.write("new.pem", pemOf(b, next)[:600])
		b.scan(1)
		require.Empty(b, b.log.with("cannot be used"))
		b.put("a.pem", next)
		b.scan(renewed)
		b.serves("localhost", &next, true)
		got, err := b.folder.getCertificate(&tls.ClientHelloInfo{ServerName: "localhost"})
		require.NoError(b, err)
		require.Len(b, got.Certificate, 2)
	})
}

func TestBrokenFiles(t *testing.T) {
	onBench(t, time.Hour, func(b *bench) {
		other := b.leaf(stapletest.LeafOptions{})
		good := b.leaf(stapletest.LeafOptions{})
		mixed := good
		mixed.PrivateKey = other.PrivateKey
		ip := b.leaf(stapletest.LeafOptions{Names: []string{"127.0.0.1"}, CommonName: "x"})
		cases := []struct {
			name, data, want string
		}{
			{"empty", "", "failed to find"},
			{"garbage", strings.Repeat("\x00\xff", 5000), "failed to find"},
			{"the first half", string(pemOf(b, other)[:len(pemOf(b, other))/2]), "found a certificate"},
			{"another's key", string(pemOf(b, mixed)), "does not match"},
			{"no key", string(pemOf(b, tls.Certificate{Certificate: good.Certificate})), "failed to find"},
			{"no DNS name", string(pemOf(b, ip)), "no DNS name"},
		}
		for _, c := range cases {
			b.write(c.name+".pem", []byte(c.data))
		}
		require.NoError(b, os.Mkdir(filepath.Join(b.folder.dir, "directory.pem"), 0o700))
		require.NoError(b, os.Symlink("nowhere", filepath.Join(b.folder.dir, "dangling.pem")))
		b.put("a.pem", good)
		b.scan(4)
		b.serves("localhost", &good, true)
		b.manages(good)
		for _, c := range cases {
			require.Len(b, b.log.with("file cannot be used", c.name+".pem"), 1, c.name)
			require.Contains(b, b.log.with("file cannot be used", c.name+".pem")[0], c.want, c.name)
		}
		require.Len(b, b.log.with("cannot be used"), len(cases)+2)
		require.Len(b, b.log.with("cannot be used", "directory.pem"), 1)
		require.Regexp(b, `(?m)^garbage.pem +unusable .*failed to find`, b.listing())

		for _, c := range cases[:len(cases)-1] { // in the place of a good one
			b.write("a.pem", []byte(c.data))
			b.scan(renewed)
			b.serves("localhost", &good, true)
			b.manages(good)
		}
		for _, c := range cases {
			b.put(c.name+".pem", good)
		}
		b.scan(renewed)
		require.NotContains(b, strings.ReplaceAll(b.listing(), "directory.pem", ""), "garbage.pem  unusable")
		require.Len(b, b.log.with("cannot be used"), len(cases)+2)
	})
}

// Whatever serves a name goes on until its successor from another file is ready.
func TestSuccessors(t *testing.T) {
	t.Run("from another file, which was not there when the old one went", func(t *testing.T) {
		onBench(t, time.Minute, func(b *bench) {
			old, next := b.leaf(stapletest.LeafOptions{}), b.leaf(stapletest.LeafOptions{})
			b.put("a.pem", old)
			b.scan(1)
			b.down.Store(true)
			b.remove("a.pem")
			b.scan(1)
			b.put("b.pem", next)
			for range 20 {
				b.scan(1)
				b.serves("localhost", &old, true)
			}
			b.scan(20)
			b.serves("localhost", &next, false)
			b.manages(next)
		})
	})
	t.Run("that goes before it was ready", func(t *testing.T) {
		onBench(t, time.Minute, func(b *bench) {
			next := b.leaf(stapletest.LeafOptions{})
			b.down.Store(true)
			b.put("a.pem", next)
			b.scan(10)
			b.remove("a.pem")
			b.scan(2)
			b.serves("localhost", nil, false)
			b.manages()
		})
	})
	t.Run("of two, the one issued last serves and the other stands by", func(t *testing.T) {
		for _, newerFirst := range []bool{false, true} {
			onBench(t, time.Minute, func(b *bench) {
				older := b.leaf(stapletest.LeafOptions{NotBefore: time.Now().Add(-2 * time.Hour)})
				newer := b.leaf(stapletest.LeafOptions{NotBefore: time.Now().Add(-time.Hour)})
				files := []string{"a.pem", "b.pem"}
				if newerFirst {
					slices.Reverse(files)
				}
				b.put(files[0], older)
				b.put(files[1], newer)
				b.scan(1)
				b.serves("localhost", &newer, true)
				require.Regexp(b, `(?m)^`+files[0]+` +standby`, b.listing())
				b.remove(files[1])
				b.scan(2)
				b.serves("localhost", &older, true)
				b.manages(older)
			})
		}
	})
}
