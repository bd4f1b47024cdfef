package stapleredis

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
)

type signer = crypto.Signer

var quiet = slog.New(slog.DiscardHandler)

const (
	processes = 10
	staplers  = 5 // in each
	tooBusy   = "the machine is too busy"

	// What a process of the fleet is told.
	fleetDir     = "STAPLE_TEST_FLEET_DIR"
	fleetRedis   = "STAPLE_TEST_FLEET_REDIS"
	fleetTimeout = "STAPLE_TEST_FLEET_TIMEOUT"

	week = 7 * 24 * time.Hour
)

// Times are those of a fleet's responses. A refresh is due between 9/20 and 11/20 of the validity: soon,
// because they are old when they come, and yet long before the end, and not all at once.
type times struct {
	validity, age time.Duration
	timeout       time.Duration // of the Caches
}

// earliest returns when a refresh may be due, after the response came.
func (t times) earliest() time.Duration { return t.validity*9/20 - t.age }

// A fleet is ten processes with five Staplers each, and a responder for them. A process ends when all its
// staples are valid for days.
type fleet struct {
	t     *testing.T
	redis *server
	ca    *stapletest.CA
	certs []tls.Certificate
	times
	ended sync.WaitGroup

	mu     sync.Mutex
	total  map[string]int       // requests, by serial number
	rounds map[string][]int     // the same for each round
	since  map[string]time.Time // when the last round began
	last   int                  // the number of the round whose responses last for a week; 0: none yet
	failed []string             // what processes that failed have written
	busy   bool                 // one of them says so
}

// startFleet starts ten processes at once on an empty Redis.
func startFleet(t *testing.T, certificates, last int, times times) *fleet {
	f := &fleet{
		t:      t,
		redis:  startRedis(t),
		ca:     testCA(),
		times:  times,
		total:  make(map[string]int),
		rounds: make(map[string][]int),
		since:  make(map[string]time.Time),
		last:   last,
	}
	responder := stapletest.NewResponder(f.ca)
	responder.Set(nil, stapletest.Answer{Edit: f.answer})
	http := httptest.NewServer(responder)
	t.Cleanup(http.Close)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "issuer.der"), f.ca.Issuer.Raw, 0o600))
	for i := range certificates {
		cert := f.ca.Leaf(stapletest.LeafOptions{Key: f.ca.Key, Responders: []string{http.URL}})
		f.certs = append(f.certs, cert)
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprint("leaf-", i, ".der")), cert.Certificate[0], 0o600))
	}
	self, err := os.Executable()
	require.NoError(t, err)
	for range processes {
		f.ended.Go(func() {
			cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestOneProcessOfAFleet$", "-test.v")
			cmd.Env = append(os.Environ(), fleetDir+"="+dir, fleetRedis+"="+f.redis.addr, fleetTimeout+"="+f.timeout.String(),
				"GOMAXPROCS=1", // ten machines share this one
				"GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE")) // or each takes a second more
			out, err := cmd.CombinedOutput()
			f.mu.Lock()
			defer f.mu.Unlock()
			f.busy = f.busy || bytes.Contains(out, []byte(tooBusy))
			if err != nil || !bytes.Contains(out, []byte("--- PASS")) {
				f.failed = append(f.failed, fmt.Sprintf("a process of the fleet: %v\n%s", err, out))
			}
		})
	}
	t.Cleanup(f.ended.Wait)
	return f
}

// answer counts a request and dates its response. Two requests are of one round if the response to the
// first, whose time is cut to a whole second, could not be due when the second came.
func (f *fleet) answer(r *stapletest.Response) {
	single := &r.Singles[0]
	serial, now := single.Serial.String(), time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.total[serial]++
	counts := f.rounds[serial]
	if now.Sub(f.since[serial]) > f.earliest()-time.Second {
		counts = append(counts, 0)
		f.since[serial] = now
	}
	counts[len(counts)-1]++
	f.rounds[serial] = counts
	single.ThisUpdate = now.Add(-f.age).Truncate(time.Second)
	single.NextUpdate = single.ThisUpdate.Add(f.validity)
	r.ProducedAt = single.ThisUpdate
	if f.last > 0 && len(counts) >= f.last {
		single.NextUpdate = single.ThisUpdate.Add(week)
	}
}

// requests returns how many there were for each certificate.
func (f *fleet) requests() (counts []int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, cert := range f.certs {
		counts = append(counts, f.total[cert.Leaf.SerialNumber.String()])
	}
	return counts
}

// waitForRequests waits until there were n more for each certificate.
func (f *fleet) waitForRequests(n int) {
	f.t.Helper()
	before := f.requests()
	require.Eventually(f.t, func() bool {
		for i, count := range f.requests() {
			if count < before[i]+n {
				return false
			}
		}
		return true
	}, 2*patience, 20*time.Millisecond, "%d requests for each certificate since %v", n, before)
}

func cacheKey(leaf *x509.Certificate) string {
	sum := sha256.Sum256(leaf.Raw)
	return hex.EncodeToString(sum[:])
}

// waitForCache waits until Redis has a valid response for each certificate.
func (f *fleet) waitForCache() {
	f.t.Helper()
	require.Eventually(f.t, func() bool {
		for _, cert := range f.certs {
			der, err := f.redis.Get(f.t.Context(), "staple:"+cacheKey(cert.Leaf)).Bytes()
			if err != nil || check(der, cert.Leaf, f.ca.Issuer) != nil {
				return false
			}
		}
		return true
	}, 2*patience, 20*time.Millisecond, "a good response in Redis for each certificate")
}

// check reports what is wrong with a staple, by other means than package staple's.
func check(der []byte, leaf, issuer *x509.Certificate) error {
	r, err := ocsp.ParseResponseForCert(der, leaf, issuer)
	switch now := time.Now(); {
	case err != nil:
		return err
	case r.Certificate != nil:
		return fmt.Errorf("signed by %v", r.Certificate.Subject)
	case r.Status != ocsp.Good:
		return fmt.Errorf("status %d", r.Status)
	case now.Before(r.ThisUpdate), !now.Before(r.NextUpdate):
		return fmt.Errorf("valid from %s to %s", r.ThisUpdate, r.NextUpdate)
	}
	return nil
}

// TestOneProcessOfAFleet is what the tests below start in other processes. It ends when all staples are
// valid for days.
func TestOneProcessOfAFleet(t *testing.T) {
	dir := os.Getenv(fleetDir)
	if dir == "" {
		t.Skip("other tests start it")
	}
	timeout, err := time.ParseDuration(os.Getenv(fleetTimeout))
	require.NoError(t, err)
	der, err := os.ReadFile(filepath.Join(dir, "issuer.der"))
	require.NoError(t, err)
	issuer, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	names, err := filepath.Glob(filepath.Join(dir, "leaf-*.der"))
	require.NoError(t, err)
	var certs []tls.Certificate
	for _, name := range names {
		leaf, err := os.ReadFile(name)
		require.NoError(t, err)
		certs = append(certs, tls.Certificate{Certificate: [][]byte{leaf, der}})
	}
	client := redis.NewClient(&redis.Options{Addr: os.Getenv(fleetRedis), PoolSize: 4})
	defer client.Close()
	var all []*staple.Certificate
	var lost atomic.Int32
	var busy atomic.Bool
	for range staplers {
		s := &staple.Stapler{Cache: &Cache{Client: client, Timeout: timeout}, Logger: quiet, OnEvent: func(e staple.Event) {
			if e.Kind == staple.EventExpired {
				lost.Add(1)
			}
			// A Stapler waits for its cache for five seconds, and the lock is for ten.
			if e.Duration > 4*time.Second && !busy.Swap(true) {
				fmt.Println(tooBusy)
			}
		}}
		defer s.Close()
		for _, cert := range certs {
			c, err := s.Add(cert)
			require.NoError(t, err)
			all = append(all, c)
		}
	}
	seen := make([][]byte, len(all)) // the staple that each had
	ends := make([]time.Time, len(all))
	ctx, cancel := context.WithTimeout(t.Context(), 5*patience)
	defer cancel()
	for lasting := 0; lasting < len(all); time.Sleep(200 * time.Millisecond) {
		require.NoError(t, ctx.Err(), "%d of %d staples are valid for days", lasting, len(all))
		require.Zero(t, lost.Load(), "staples have ended before others came")
		lasting = 0
		for i, c := range all {
			der := c.TLS().OCSPStaple
			switch {
			case der == nil:
				require.False(t, seen[i] != nil, "a staple was lost: %v", c.Status().Err)
				continue
			case !bytes.Equal(der, seen[i]):
				require.NoError(t, check(der, c.Status().Leaf, issuer), "a bad staple")
				r, err := ocsp.ParseResponse(der, nil)
				require.NoError(t, err)
				seen[i], ends[i] = der, r.NextUpdate
			default:
				require.True(t, time.Now().Before(ends[i].Add(time.Second)), "a staple that has ended")
			}
			if time.Until(ends[i]) > week/2 {
				lasting++
			}
		}
	}
}

// TestAFleetMakesOneRequestForEachCertificateAndRound has 50 Staplers in ten processes, and 100 certificates.
// Where calls take so long that Staplers go on without Redis, which are then right to make further requests,
// it begins anew.
func TestAFleetMakesOneRequestForEachCertificateAndRound(t *testing.T) {
	t.Parallel()
	const certificates, rounds = 100, 3
	for try := 1; ; try++ {
		f := startFleet(t, certificates, rounds, times{validity: 80 * time.Second, age: 29 * time.Second, timeout: patience})
		f.ended.Wait()
		for round := range rounds {
			requests, answered := 0, 0
			for _, counts := range f.rounds {
				if round < len(counts) {
					requests += counts[round]
					answered++
				}
			}
			t.Logf("round %d: %d requests for %d certificates in %d Staplers", round+1, requests, answered, processes*staplers)
		}
		exact := len(f.rounds) == certificates
		for _, counts := range f.rounds {
			exact = exact && slices.Equal(counts, []int{1, 1, 1})
		}
		if f.busy && try < 3 && (!exact || len(f.failed) > 0) {
			t.Log(tooBusy)
			continue
		}
		require.Empty(t, f.failed)
		require.True(t, exact, "requests in each round: %v", f.rounds)
		locks, err := f.redis.Keys(t.Context(), "*:lock").Result()
		require.NoError(t, err)
		require.Empty(t, locks)
		return
	}
}

// TestAFleetOutlivesItsRedis kills Redis under a fleet, restarts, empties and poisons it.
func TestAFleetOutlivesItsRedis(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 4, 0, times{validity: 100 * time.Second, age: 41 * time.Second, timeout: 2 * time.Second})
	f.waitForCache()
	f.redis.kill()
	f.waitForRequests(processes * staplers) // each for itself
	t.Logf("Redis dead: %v requests in all", f.requests())

	f.redis.start()
	f.waitForCache()
	t.Logf("Redis back: %v", f.requests())
	require.NoError(t, f.redis.FlushAll(t.Context()).Err())
	f.waitForCache()
	t.Logf("Redis emptied: %v", f.requests())

	stop := f.poison()
	f.waitForRequests(processes) // for what is in Redis is of no use
	t.Logf("Redis poisoned: %v", f.requests())
	stop()
	f.mu.Lock()
	f.last = 1
	f.mu.Unlock()
	f.ended.Wait()
	t.Logf("at the end: %v", f.requests())
	require.Empty(t, f.failed)
	f.waitForCache()
}

// poison fills Redis with values that nobody must staple, again and again.
func (f *fleet) poison() (stop func()) {
	sibling := f.ca.Leaf(stapletest.LeafOptions{})
	about := make([][]any, len(f.certs))
	for i, cert := range f.certs {
		other := stapletest.NewResponse(f.ca, sibling.Leaf)
		forged := stapletest.NewResponse(f.ca, cert.Leaf)
		forged.Signer = &stapletest.Signer{Certificate: sibling.Leaf, Key: sibling.PrivateKey.(crypto.Signer)}
		ended := stapletest.NewResponse(f.ca, cert.Leaf)
		ended.Singles[0].ThisUpdate = time.Now().Add(-2 * time.Hour)
		ended.Singles[0].NextUpdate = time.Now().Add(-time.Hour)
		about[i] = []any{other.DER(), forged.DER(), ended.DER(), "garbage", ""}
		if i == 0 {
			for _, forgery := range stapletest.Forgeries(f.ca, cert.Leaf) {
				about[i] = append(about[i], forgery.DER)
			}
		} else if i == 1 {
			about[i] = append(about[i], bytes.Repeat([]byte{0x30}, 2*maxResponse))
		}
	}
	ctx, cancel := context.WithCancel(f.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			for i, cert := range f.certs {
				name := "staple:" + cacheKey(cert.Leaf)
				if n%10 == 9 { // no string at all
					f.redis.Del(ctx, name)
					f.redis.LPush(ctx, name, "x")
					continue
				}
				f.redis.Set(ctx, name, about[i][n%len(about[i])], 0)
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}
