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
	"testing"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// A bench has a folder whose scans, and whose time, a test moves by hand.
type bench struct {
	*testing.T
	ca        *stapletest.CA
	responder *stapletest.Responder
	folder    *folder
	log       *lines
	down      func(*staple.Request) bool // asks in vain about these
	now       time.Time
}

const scanEvery = 2 * time.Second

func newBench(t *testing.T, wait time.Duration) *bench {
	b := &bench{T: t, ca: stapletest.NewCA(stapletest.CAOptions{}), log: newLines(), now: time.Now()}
	b.responder = stapletest.NewResponder(b.ca)
	fetcher := &staple.HTTPFetcher{Client: b.responder.Client()}
	b.down = func(*staple.Request) bool { return false }
	log := slog.New(slog.NewTextHandler(b.log, nil))
	stapler := &staple.Stapler{Logger: slog.New(slog.DiscardHandler), Fetcher: staple.FetcherFunc(
		func(ctx context.Context, req *staple.Request) ([]byte, error) {
			if b.down(req) {
				return nil, errors.New("the responder is down")
			}
			return fetcher.Fetch(ctx, req)
		})}
	t.Cleanup(func() { stapler.Close() })
	b.folder = &folder{dir: t.TempDir(), wait: wait, stapler: stapler, log: log, files: make(map[string]*file)}
	return b
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

// scan lets scanEvery pass, and has the folder look at its files and at the first rounds, which it waits for.
func (b *bench) scan(times int) {
	b.Helper()
	for range times {
		b.now = b.now.Add(scanEvery)
		require.NoError(b, b.folder.scan(b.now))
		_ = b.folder.stapler.Wait(b.Context()) // which names those that have no staple
		require.NoError(b, b.Context().Err())
		b.folder.update(b.now)
	}
}

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

func TestCertificatesComeChangeAndGo(t *testing.T) {
	b := newBench(t, time.Hour)
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
	b.scan(2)
	b.serves("www.c.example", &wild, true)
	b.serves("c.example", nil, false)
	b.serves("www.www.c.example", nil, false)
	b.manages(first, wild)

	second := b.leaf(stapletest.LeafOptions{Names: []string{"a.example"}})
	b.put("a.pem", second)
	b.scan(2)
	b.serves("a.example", &second, true)
	b.serves("b.example", nil, false)
	b.manages(second, wild)

	require.NoError(t, os.Remove(filepath.Join(b.folder.dir, "wild.pem")))
	b.scan(2)
	b.serves("www.c.example", nil, false)
	b.manages(second)
	require.Len(t, b.folder.files, 1)

	// A directory that cannot be read is no empty one.
	require.NoError(t, os.Rename(b.folder.dir, b.folder.dir+".away"))
	for range 3 {
		require.Error(t, b.folder.scan(b.now))
		b.folder.update(b.now)
	}
	b.serves("a.example", &second, true)
	require.NoError(t, os.Rename(b.folder.dir+".away", b.folder.dir))
}

func TestWaitsForTheStaple(t *testing.T) {
	const wait = time.Minute
	b := newBench(t, wait)
	old := b.leaf(stapletest.LeafOptions{})
	b.put("a.pem", old)
	b.scan(1)
	b.down = func(*staple.Request) bool { return true }
	b.responder.Reset(nil)
	next := b.leaf(stapletest.LeafOptions{})
	fresh := b.leaf(stapletest.LeafOptions{Names: []string{"fresh.example"}})
	b.put("a.pem", next)
	b.put("fresh.pem", fresh)
	b.scan(1)
	since := b.now // the time from which they wait
	for b.now.Sub(since) < wait-scanEvery {
		b.scan(1)
		b.serves("localhost", &old, true)
		b.serves("fresh.example", nil, false)
	}
	b.manages(old, next, fresh)
	require.Regexp(t, `(?m)^a.pem +serving +until .* localhost *$`, b.listing())
	require.Regexp(t, `(?m)^a.pem +waiting +none +localhost +".*the responder is down"$`, b.listing())
	b.scan(1)
	b.serves("localhost", &next, false)
	b.serves("fresh.example", &fresh, false)
	b.manages(next, fresh)
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
			b := newBench(t, time.Hour)
			old := b.leaf(stapletest.LeafOptions{})
			b.put("a.pem", old)
			b.scan(1)
			next := b.leaf(o.leaf)
			b.responder.Set(next.Leaf, o.answer)
			b.put("a.pem", next)
			b.scan(2)
			b.serves("localhost", &next, false)
			b.manages(next)
			require.Regexp(t, `(?m)^a.pem +serving +`+o.want, b.listing())
		})
	}
}

func TestSuccessorsThatClientsRefuse(t *testing.T) {
	const day = 24 * time.Hour
	for name, test := range map[string]struct {
		leaf stapletest.LeafOptions
		down bool
		mend func(b *bench) // makes it one that clients accept; nil: nothing can
	}{
		"not valid yet": {leaf: stapletest.LeafOptions{NotBefore: time.Now().Add(day), NotAfter: time.Now().Add(90 * day)},
			mend: func(b *bench) { b.now = b.now.Add(day) }},
		"expired": {leaf: stapletest.LeafOptions{NotAfter: time.Now().Add(-time.Minute)}},
		"Must-Staple, while the responder is down": {leaf: stapletest.LeafOptions{MustStaple: true}, down: true,
			mend: func(b *bench) {
				b.down = func(*staple.Request) bool { return false }
				for c := range b.folder.stapler.Certificates() {
					require.NoError(b, c.Refresh(b.Context()))
				}
			}},
	} {
		for _, file := range []string{"a.pem", "b.pem"} { // in its place, and beside it
			t.Run(name+" "+file, func(t *testing.T) {
				b := newBench(t, 10*time.Second)
				old := b.leaf(stapletest.LeafOptions{MustStaple: true, NotBefore: time.Now().Add(-2 * day)})
				b.put("a.pem", old)
				b.scan(1)
				b.down = func(*staple.Request) bool { return test.down }
				next := b.leaf(test.leaf)
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
		}
	}
	t.Run("without a predecessor", func(t *testing.T) {
		b := newBench(t, 10*time.Second)
		b.down = func(*staple.Request) bool { return true }
		must := b.leaf(stapletest.LeafOptions{MustStaple: true})
		expired := b.leaf(stapletest.LeafOptions{Names: []string{"old.example"}, NotAfter: time.Now().Add(-time.Minute)})
		b.put("a.pem", must)
		b.put("b.pem", expired)
		b.scan(7)
		b.serves("localhost", &must, false)
		b.serves("old.example", &expired, false)
	})
}

func TestADirectoryThatIsReplacedByAnEmptyOne(t *testing.T) {
	b := newBench(t, time.Hour)
	cert := b.leaf(stapletest.LeafOptions{})
	b.put("a.pem", cert)
	b.scan(1)
	require.NoError(t, os.Rename(b.folder.dir, b.folder.dir+".away"))
	require.NoError(t, os.Mkdir(b.folder.dir, 0o700)) // as where a volume was mounted
	for range 3 {
		require.ErrorContains(t, b.folder.scan(b.now), "another directory")
		b.folder.update(b.now)
		b.serves("localhost", &cert, true)
	}
	next := b.leaf(stapletest.LeafOptions{})
	b.put("b.pem", next)
	b.scan(2)
	b.serves("localhost", &next, true)
	b.manages(next)
}

// What is being written is not looked at, even if it would do.
func TestLeavesAloneWhatIsBeingWritten(t *testing.T) {
	b := newBench(t, time.Hour)
	old := b.leaf(stapletest.LeafOptions{})
	b.put("a.pem", old)
	b.scan(1)
	next := b.leaf(stapletest.LeafOptions{})
	short := next
	short.Certificate = next.Certificate[:1]
	for range 3 {
		b.put("a.pem", short)
		b.scan(1)
		b.write("a.pem", pemOf(t, next)[:600])
		b.scan(1)
		require.NoError(t, os.Remove(filepath.Join(b.folder.dir, "a.pem")))
		b.scan(1)
		b.serves("localhost", &old, true)
	}
	require.Empty(t, b.log.with("cannot be used"))
	b.put("a.pem", next)
	b.scan(2)
	b.serves("localhost", &next, true)
	require.Len(t, next.Certificate, 2)
	got, err := b.folder.getCertificate(&tls.ClientHelloInfo{ServerName: "localhost"})
	require.NoError(t, err)
	require.Equal(t, next.Certificate, got.Certificate)
}

func TestBrokenFiles(t *testing.T) {
	b := newBench(t, time.Hour)
	other := b.leaf(stapletest.LeafOptions{})
	good := b.leaf(stapletest.LeafOptions{})
	mixed := good
	mixed.PrivateKey = other.PrivateKey
	keyFirst := append(pemOf(t, tls.Certificate{PrivateKey: other.PrivateKey}), pemOf(t, other)...)
	ip := b.leaf(stapletest.LeafOptions{Names: []string{"127.0.0.1"}, CommonName: "x"})
	cases := []struct {
		name, data, want string
	}{
		{"empty", "", "failed to find"},
		{"garbage", strings.Repeat("\x00\xff", 5000), "failed to find"},
		{"the first half", string(pemOf(t, other)[:len(pemOf(t, other))/2]), "damaged"},
		{"without the last line", string(pemOf(t, other)[:len(pemOf(t, other))-10]), "damaged"},
		{"the key, the leaf, and half of the issuer", string(keyFirst[:len(keyFirst)-500]), "damaged"},
		{"another's key", string(pemOf(t, mixed)), "does not match"},
		{"no key", string(pemOf(t, tls.Certificate{Certificate: good.Certificate})), "failed to find"},
		{"no DNS name", string(pemOf(t, ip)), "no DNS name"},
	}
	for _, c := range cases { // among them from the first scan on
		b.write(c.name+".pem", []byte(c.data))
	}
	require.NoError(t, os.Mkdir(filepath.Join(b.folder.dir, "directory.pem"), 0o700))
	require.NoError(t, os.Symlink("nowhere", filepath.Join(b.folder.dir, "dangling.pem")))
	b.put("a.pem", good)
	b.scan(4)
	b.serves("localhost", &good, true)
	b.manages(good)
	for _, c := range cases {
		require.Len(t, b.log.with("file cannot be used", c.name+".pem"), 1, c.name)
		require.Contains(t, b.log.with("file cannot be used", c.name+".pem")[0], c.want, c.name)
	}
	require.Len(t, b.log.with("cannot be used"), len(cases)+1)
	require.Len(t, b.log.with("cannot be used", "directory.pem"), 1)
	require.NotContains(t, b.folder.files, "dangling.pem")

	for i, c := range cases { // in the place of a good one
		b.write("a.pem", []byte(c.data))
		b.scan(4)
		b.serves("localhost", &good, true)
		b.manages(good)
		require.Len(t, b.log.with("file cannot be used", "file=a.pem"), i+1, c.name)
		require.Regexp(t, `(?m)^a.pem +unusable .*`+c.want, b.listing())
	}
	b.put("a.pem", good)
	b.scan(2)
	b.serves("localhost", &good, true)
	b.manages(good)
	require.NotRegexp(t, `(?m)^a.pem +unusable`, b.listing())
}

// Whatever serves a name goes on until its successor is ready, wherever that comes from.
func TestSuccessors(t *testing.T) {
	down := func(b *bench, certs ...tls.Certificate) {
		b.down = func(req *staple.Request) bool {
			return slices.ContainsFunc(certs, func(c tls.Certificate) bool { return c.Leaf.Equal(req.Leaf) })
		}
	}
	remove := func(b *bench, file string) { require.NoError(b, os.Remove(filepath.Join(b.folder.dir, file))) }

	t.Run("from another file, which was not there when the old one went", func(t *testing.T) {
		b := newBench(t, time.Minute)
		old, next := b.leaf(stapletest.LeafOptions{}), b.leaf(stapletest.LeafOptions{})
		down(b, next)
		b.put("a.pem", old)
		b.scan(1)
		remove(b, "a.pem")
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
	t.Run("with a wildcard", func(t *testing.T) {
		b := newBench(t, time.Minute)
		old := b.leaf(stapletest.LeafOptions{Names: []string{"www.example"}})
		next := b.leaf(stapletest.LeafOptions{Names: []string{"*.example"}})
		down(b, next)
		b.put("a.pem", old)
		b.scan(1)
		b.put("a.pem", next)
		b.scan(10)
		b.serves("www.example", &old, true)
		b.scan(30)
		b.serves("www.example", &next, false)
	})
	t.Run("that is succeeded before it was ready", func(t *testing.T) {
		b := newBench(t, time.Minute)
		old, next, last := b.leaf(stapletest.LeafOptions{}), b.leaf(stapletest.LeafOptions{}), b.leaf(stapletest.LeafOptions{})
		down(b, next, last)
		b.put("a.pem", old)
		b.scan(1)
		b.put("a.pem", next)
		b.scan(10)
		b.put("a.pem", last)
		b.scan(10)
		b.serves("localhost", &old, true)
		b.manages(old, last)
		b.scan(30)
		b.serves("localhost", &last, false)
		b.manages(last)
	})
	t.Run("that goes before it was ready", func(t *testing.T) {
		b := newBench(t, time.Minute)
		old, next := b.leaf(stapletest.LeafOptions{}), b.leaf(stapletest.LeafOptions{})
		down(b, next)
		b.put("a.pem", old)
		b.scan(1)
		b.put("a.pem", next)
		b.scan(10)
		remove(b, "a.pem")
		b.scan(2)
		b.serves("localhost", nil, false)
		b.manages()
	})
	t.Run("of two, the one issued last serves and the other stands by", func(t *testing.T) {
		for _, newerFirst := range []bool{false, true} {
			b := newBench(t, time.Minute)
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
			require.Regexp(t, `(?m)^`+files[0]+` +standby`, b.listing())
			remove(b, files[1])
			b.scan(2)
			b.serves("localhost", &older, true)
			b.manages(older)
		}
	})
	t.Run("even if it was issued before", func(t *testing.T) {
		b := newBench(t, time.Minute)
		newer := b.leaf(stapletest.LeafOptions{})
		older := b.leaf(stapletest.LeafOptions{NotBefore: time.Now().Add(-2 * time.Hour)})
		another := b.leaf(stapletest.LeafOptions{Names: []string{"another.example"}})
		down(b, another)
		b.put("a.pem", newer)
		b.scan(1)
		b.put("a.pem", older)
		b.put("b.pem", another) // keeps the newer one in service beside it
		b.scan(2)
		b.manages(newer, older, another)
		b.serves("localhost", &older, true)
	})
}
