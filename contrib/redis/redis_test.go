package stapleredis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/stapletest"
)

const patience = time.Minute // for what comes soon, unless the machine is very busy

// A server is a redis-server of the test's own, without persistence.
type server struct {
	t    *testing.T
	addr string
	args []string
	dial *redis.Options // for the test's own client
	cmd  *exec.Cmd
	*redis.Client
}

// startRedis starts a redis-server with the options, which may say --port.
func startRedis(t *testing.T, options ...string) *server {
	return startRedisWith(t, &redis.Options{}, options...)
}

func startRedisWith(t *testing.T, dial *redis.Options, options ...string) *server {
	path := peer.Need(t, "redis-server")
	port := peer.FreePort(t)
	s := &server{t: t, addr: "127.0.0.1:" + port, dial: dial}
	listen := []string{"--port", port}
	if dial.TLSConfig != nil {
		listen = []string{"--port", "0", "--tls-port", port}
	}
	s.args = append([]string{path, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "", "--appendonly", "no"}, listen...)
	s.args = append(s.args, options...)
	dial.Addr = s.addr
	s.Client = redis.NewClient(dial)
	t.Cleanup(func() { s.Close() })
	t.Cleanup(s.kill)
	s.start()
	return s
}

func (s *server) start() {
	s.cmd = exec.Command(s.args[0], s.args[1:]...)
	require.NoError(s.t, s.cmd.Start())
	require.Eventually(s.t, func() bool { return s.Ping(s.t.Context()).Err() == nil }, patience, 20*time.Millisecond,
		"redis-server does not answer")
}

// kill ends it as a crash would.
func (s *server) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// cache returns a Cache on s that is patient, and has a client of its own as another process would.
func (s *server) cache() *Cache {
	options := *s.dial
	client := redis.NewClient(&options)
	s.t.Cleanup(func() { client.Close() })
	return &Cache{Client: client, Timeout: patience}
}

func testCA() *stapletest.CA { return stapletest.NewCA(stapletest.CAOptions{}) }

func response(ca *stapletest.CA, edit func(*stapletest.Response)) []byte {
	r := stapletest.NewResponse(ca, ca.Leaf(stapletest.LeafOptions{}).Leaf)
	edit(r)
	return r.DER()
}

func TestAValueExpiresWithItsResponse(t *testing.T) {
	s := startRedis(t)
	c := s.cache()
	ca := testCA()
	leaf := ca.Leaf(stapletest.LeafOptions{})
	now := time.Now().Truncate(time.Second)
	check := func(t *testing.T, der []byte, expires time.Time) {
		key := t.Name()
		before := time.Now()
		require.NoError(t, c.Put(t.Context(), key, der))
		left, err := s.PTTL(t.Context(), "staple:"+key).Result()
		require.NoError(t, err)
		require.Positive(t, left)
		after := time.Now()
		if expires.IsZero() {
			expires = before.Add(24 * time.Hour)
		}
		require.WithinDuration(t, expires, after.Add(left), after.Sub(before)+2*time.Millisecond)
		got, err := c.Get(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, der, got)
	}
	for _, tt := range []struct {
		name string
		edit func(*stapletest.Response)
		want time.Time
	}{
		{"a week", func(r *stapletest.Response) { r.Singles[0].NextUpdate = now.Add(7 * 24 * time.Hour) }, now.Add(7 * 24 * time.Hour)},
		{"two minutes", func(r *stapletest.Response) { r.Singles[0].NextUpdate = now.Add(2 * time.Minute) }, now.Add(2 * time.Minute)},
		{"centuries", func(r *stapletest.Response) {
			r.Singles[0].NextUpdate = time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)
		}, time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)},
		{"no nextUpdate", func(r *stapletest.Response) { r.Singles[0].NextUpdate = time.Time{} }, time.Time{}},
		{"delegated", func(r *stapletest.Response) {
			r.Signer = ca.Delegate(stapletest.DelegateOptions{})
			r.Singles[0].NextUpdate = now.Add(time.Hour)
		}, now.Add(time.Hour)},
		{"several certificates", func(r *stapletest.Response) {
			other := r.Singles[0]
			other.Leaf = leaf.Leaf
			r.Singles[0].NextUpdate, other.NextUpdate = now.Add(time.Hour), now.Add(-time.Hour)
			r.Singles = append(r.Singles, other)
		}, now.Add(time.Hour)},
		{"several certificates, one without nextUpdate", func(r *stapletest.Response) {
			other := r.Singles[0]
			other.Leaf = leaf.Leaf
			r.Singles[0].NextUpdate, other.NextUpdate = time.Time{}, now.Add(-time.Hour)
			r.Singles = append(r.Singles, other)
		}, time.Time{}},
	} {
		t.Run(tt.name, func(t *testing.T) { check(t, response(ca, tt.edit), tt.want) })
	}
	// Whatever the default Verifier accepts is stored, and not for longer than that.
	for _, o := range stapletest.Oddities(ca, leaf.Leaf) {
		t.Run(o.Name, func(t *testing.T) {
			r, _, err := new(staple.ResponseVerifier).Verify(o.DER, leaf.Leaf, ca.Issuer, time.Now())
			require.NoError(t, err)
			check(t, o.DER, r.NextUpdate)
		})
	}
}

func TestWhatHasEndedOrIsNoResponseIsNotStored(t *testing.T) {
	s := startRedis(t)
	c := s.cache()
	ca := testCA()
	good := response(ca, func(*stapletest.Response) {})
	require.NoError(t, c.Put(t.Context(), "key", good))
	ended := response(ca, func(r *stapletest.Response) { r.Singles[0].NextUpdate = time.Now().Add(-time.Second) })
	require.NoError(t, c.Put(t.Context(), "key", ended))
	for name, data := range map[string][]byte{
		"nothing":           nil,
		"text":              []byte("-----BEGIN PRIVATE KEY-----"),
		"a certificate":     ca.Issuer.Raw,
		"an error":          (&stapletest.Response{Status: 3}).DER(),
		"half a response":   good[:len(good)/2],
		"no certificate":    response(ca, func(r *stapletest.Response) { r.Singles = nil }),
		"a tag for a time":  response(ca, retag("thisUpdate", 0x04)),
		"a tag for another": response(ca, retag("nextUpdate", 0xa0)),
		"too much": response(ca, func(r *stapletest.Response) {
			for range 4000 {
				r.Certificates = append(r.Certificates, ca.Issuer)
			}
		}),
	} {
		require.Error(t, c.Put(t.Context(), "key", data), name)
	}
	got, err := c.Get(t.Context(), "key")
	require.NoError(t, err)
	require.Equal(t, good, got)
	keys, err := s.Keys(t.Context(), "*").Result()
	require.NoError(t, err)
	require.Equal(t, []string{"staple:key"}, keys)
}

func retag(element string, tag byte) func(*stapletest.Response) {
	return func(r *stapletest.Response) {
		r.Singles[0].Tamper = func(e string, der []byte) []byte {
			if e == element && element == "nextUpdate" {
				der[2] = tag
			} else if e == element {
				der[0] = tag
			}
			return der
		}
	}
}

func TestGetAndDelete(t *testing.T) {
	s := startRedis(t)
	c := s.cache()
	der := response(testCA(), func(*stapletest.Response) {})
	_, err := c.Get(t.Context(), "key")
	require.ErrorIs(t, err, staple.ErrCacheMiss)
	require.NoError(t, c.Delete(t.Context(), "key"))
	require.NoError(t, c.Put(t.Context(), "key", der))
	other := s.cache()
	other.Prefix = "other:"
	_, err = other.Get(t.Context(), "key")
	require.ErrorIs(t, err, staple.ErrCacheMiss, "the prefix parts them")
	require.NoError(t, other.Put(t.Context(), "key", der))
	require.NoError(t, c.Delete(t.Context(), "key"))
	_, err = c.Get(t.Context(), "key")
	require.ErrorIs(t, err, staple.ErrCacheMiss)
	require.EqualValues(t, 1, s.Exists(t.Context(), "other:key").Val())

	require.NoError(t, s.Set(t.Context(), "staple:key", "", 0).Err())
	_, err = c.Get(t.Context(), "key")
	require.ErrorIs(t, err, staple.ErrCacheMiss, "empty data")
	require.NoError(t, s.SetRange(t.Context(), "staple:key", 64<<20, "x").Err())
	data, err := c.Get(t.Context(), "key")
	require.ErrorContains(t, err, "more than")
	require.Nil(t, data)
	require.NoError(t, s.Del(t.Context(), "staple:key").Err())
	require.NoError(t, s.LPush(t.Context(), "staple:key", "x").Err())
	_, err = c.Get(t.Context(), "key")
	require.ErrorContains(t, err, "WRONGTYPE")
	require.NoError(t, c.Put(t.Context(), "key", der), "it is replaced")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.Get(ctx, "key")
	require.ErrorIs(t, err, context.Canceled)
	_, err = new(Cache).Get(t.Context(), "key")
	require.ErrorIs(t, err, errNoClient)
}

func TestALockIsALease(t *testing.T) {
	s := startRedis(t)
	a, b := s.cache(), s.cache()
	ctx, cancel := context.WithCancel(t.Context())
	first, ok, err := a.TryLock(ctx, "key", time.Hour)
	require.NoError(t, err)
	require.True(t, ok)
	_, err = a.Get(ctx, "key")
	require.ErrorIs(t, err, staple.ErrCacheMiss, "a lock is no value")
	left, err := s.PTTL(ctx, "staple:key:lock").Result()
	require.NoError(t, err)
	require.InDelta(t, time.Hour, left, float64(patience))
	for _, c := range []*Cache{a, b} {
		unlock, ok, err := c.TryLock(ctx, "key", time.Hour)
		require.NoError(t, err)
		require.False(t, ok, "it is held")
		require.Nil(t, unlock)
	}
	unlock, ok, err := b.TryLock(ctx, "another", time.Hour)
	require.NoError(t, err)
	require.True(t, ok)
	unlock()

	cancel() // as when the fetch was canceled
	first()
	ctx = t.Context()
	_, ok, err = b.TryLock(ctx, "key", 20*time.Millisecond)
	require.NoError(t, err)
	require.True(t, ok, "it was given back")
	var second func()
	require.Eventually(t, func() bool {
		second, ok, err = a.TryLock(ctx, "key", time.Hour)
		return ok
	}, patience, 5*time.Millisecond, "it has run out")
	require.NoError(t, err)
	first() // who had it before, twice
	_, ok, err = b.TryLock(ctx, "key", time.Hour)
	require.NoError(t, err)
	require.False(t, ok, "a former holder freed the lock of another")
	second()
	require.Zero(t, s.Exists(ctx, "staple:key:lock").Val())
	unlock, ok, err = b.TryLock(ctx, "key", 0)
	require.NoError(t, err)
	require.True(t, ok)
	unlock()
	keys, err := s.Keys(ctx, "*").Result()
	require.NoError(t, err)
	require.Empty(t, keys)
}

// TestALockWhoseReplyIsLostIsHeld breaks the connection after Redis has set the lock: the client repeats
// the command.
func TestALockWhoseReplyIsLostIsHeld(t *testing.T) {
	s := startRedis(t)
	var lost atomic.Bool
	client := redis.NewClient(&redis.Options{Addr: s.addr, Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		return &losingConn{Conn: conn, lost: &lost}, err
	}})
	defer client.Close()
	c := &Cache{Client: client, Timeout: patience}
	unlock, ok, err := c.TryLock(t.Context(), "key", time.Hour)
	require.NoError(t, err)
	require.True(t, lost.Load())
	require.True(t, ok)
	unlock()
	require.Zero(t, s.Exists(t.Context(), "staple:key:lock").Val())
}

type losingConn struct {
	net.Conn
	lost *atomic.Bool
	lose bool
}

func (c *losingConn) Write(b []byte) (int, error) {
	c.lose = strings.Contains(string(b), ":lock") && c.lost.CompareAndSwap(false, true)
	return c.Conn.Write(b)
}

func (c *losingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.lose && err == nil {
		c.Close()
		return 0, io.EOF
	}
	return n, err
}

// A silence is a listener that accepts connections and never answers.
type silence struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func startSilence(t *testing.T) *silence {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &silence{Listener: l}
	t.Cleanup(s.end)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, conn)
			s.mu.Unlock()
		}
	}()
	return s
}

func (s *silence) end() {
	s.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.conns {
		conn.Close()
	}
}

// TestARedisThatDoesNotAnswerDelaysNobodyForLong has clients that would wait for ever, or long.
func TestARedisThatDoesNotAnswerDelaysNobodyForLong(t *testing.T) {
	ca := testCA()
	responder := stapletest.NewResponder(ca)
	key := ca.Leaf(stapletest.LeafOptions{}).PrivateKey
	refused := "127.0.0.1:" + peer.FreePort(t)
	for _, tt := range []struct {
		name   string
		client func(addr string) redis.UniversalClient
	}{
		{"no timeouts", func(addr string) redis.UniversalClient {
			return redis.NewClient(&redis.Options{Addr: addr, ReadTimeout: -1, WriteTimeout: -1, DialTimeout: time.Hour, PoolTimeout: time.Hour})
		}},
		{"an hour, and a pool of one", func(addr string) redis.UniversalClient {
			return redis.NewClient(&redis.Options{Addr: addr, ReadTimeout: time.Hour, PoolTimeout: time.Hour, PoolSize: 1})
		}},
		{"ContextTimeoutEnabled", func(addr string) redis.UniversalClient {
			return redis.NewClient(&redis.Options{Addr: addr, ReadTimeout: time.Hour, ContextTimeoutEnabled: true})
		}},
		{"a cluster", func(addr string) redis.UniversalClient {
			return redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{addr}, ReadTimeout: time.Hour})
		}},
		{"nobody listens", func(string) redis.UniversalClient {
			return redis.NewClient(&redis.Options{Addr: refused, MaxRetries: 100})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			silent := startSilence(t)
			client := tt.client(silent.Addr().String())
			cache := &Cache{Client: client}
			var certs []tls.Certificate
			for range 100 {
				certs = append(certs, ca.Leaf(stapletest.LeafOptions{Key: key.(signer), Responders: []string{"http://ocsp.example"}}))
			}
			s := &staple.Stapler{Cache: cache, Fetcher: &staple.HTTPFetcher{Client: responder.Client()}, Logger: quiet}
			start := time.Now()
			config := s.TLSConfig(&tls.Config{Certificates: certs})
			took := time.Since(start)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			require.NoError(t, s.Wait(ctx))
			all := time.Since(start)
			for c := range s.Certificates() {
				require.True(t, c.Status().Stapled)
			}
			runtime.KeepAlive(config)
			t.Logf("TLSConfig took %s, the last of %d first staples %s, with %d goroutines more than before", took, len(certs), all,
				runtime.NumGoroutine()-before)
			require.Less(t, took, patience)
			require.Less(t, all, patience)

			// Several who try for long leave few goroutines behind.
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					for range 50 {
						_, err := cache.Get(t.Context(), "key")
						require.Error(t, err)
						require.NotErrorIs(t, err, staple.ErrCacheMiss)
					}
				})
			}
			wg.Wait()
			require.LessOrEqual(t, cache.stuck.Load(), int32(maxStuck+20))
			start = time.Now()
			_, err := cache.Get(t.Context(), "key")
			require.Error(t, err)
			require.Less(t, time.Since(start), patience)
			start = time.Now()
			require.NoError(t, s.Close())
			require.Less(t, time.Since(start), patience)
			silent.end()
			require.NoError(t, client.Close())
			require.Eventually(t, func() bool { return cache.stuck.Load() == 0 }, patience, 10*time.Millisecond)
			require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+3 }, patience, 10*time.Millisecond, "goroutines are left")
		})
	}
}

func TestAfterSeveralFailuresCallsFailAtOnceUntilRedisIsBack(t *testing.T) {
	s := startRedis(t)
	c := &Cache{Client: s.cache().Client, Timeout: patience}
	der := response(testCA(), func(*stapletest.Response) {})
	require.NoError(t, c.Put(t.Context(), "key", der))
	unlock, ok, err := c.TryLock(t.Context(), "key", time.Hour)
	require.NoError(t, err)
	require.True(t, ok)
	c.Timeout = 0

	// It is there and does not answer, for five minutes.
	require.NoError(t, s.Do(t.Context(), "client", "pause", 300_000, "all").Err())
	for range maxFailures {
		_, err = c.Get(t.Context(), "key")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "no answer within 500ms")
	}
	require.Eventually(t, func() bool {
		_, err = c.Get(t.Context(), "key")
		return errors.Is(err, errDown)
	}, patience, time.Millisecond)
	unlock() // does not wait for five minutes either

	s.kill()
	s.start()
	require.Eventually(t, func() bool {
		_, err = c.Get(t.Context(), "key")
		return errors.Is(err, staple.ErrCacheMiss)
	}, patience, 10*time.Millisecond, "Redis is back, and empty")
	require.NoError(t, c.Put(t.Context(), "key", der))
}

func TestACallerWhoGivesUpSaysNothingAboutRedis(t *testing.T) {
	silent := startSilence(t)
	client := redis.NewClient(&redis.Options{Addr: silent.Addr().String()})
	defer client.Close()
	c := &Cache{Client: client, Timeout: time.Hour}
	for range 2 * maxFailures {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		_, err := c.Get(ctx, "key")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		cancel()
	}
	require.Zero(t, c.failures)
}

func TestACallThatTookLongCountsThoughItsCallerGaveUp(t *testing.T) {
	silent := startSilence(t)
	client := redis.NewClient(&redis.Options{Addr: silent.Addr().String()})
	defer client.Close()
	c := &Cache{Client: client, Timeout: time.Hour}
	ctx, cancel := context.WithTimeout(t.Context(), defaultTimeout+10*time.Millisecond)
	defer cancel()
	_, err := c.Get(ctx, "key")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, 1, c.failures)
}

func TestARedisThatRepliesWithErrorsIsNotDown(t *testing.T) {
	s := startRedis(t)
	c := s.cache()
	require.NoError(t, s.LPush(t.Context(), "staple:key", "no string").Err())
	for range 2 * maxFailures {
		_, err := c.Get(t.Context(), "key")
		require.ErrorContains(t, err, "WRONGTYPE")
	}
}

func TestACluster(t *testing.T) {
	s := startRedis(t, "--cluster-enabled", "yes", "--cluster-port", peer.FreePort(t), "--cluster-announce-ip", "127.0.0.1")
	require.NoError(t, s.ClusterAddSlotsRange(t.Context(), 0, 16383).Err())
	require.Eventually(t, func() bool {
		return strings.Contains(s.ClusterInfo(t.Context()).Val(), "cluster_state:ok")
	}, patience, 10*time.Millisecond)
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{s.addr}})
	defer client.Close()
	worksAsACache(t, client)
}

func TestTLS(t *testing.T) {
	ca := testCA()
	cert := ca.Leaf(stapletest.LeafOptions{})
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), 0o600))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	config := &tls.Config{RootCAs: ca.Roots()}
	s := startRedisWith(t, &redis.Options{TLSConfig: config}, "--tls-cert-file", certFile, "--tls-key-file", keyFile, "--tls-auth-clients", "no")
	client := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: []string{s.addr}, TLSConfig: config})
	defer client.Close()
	worksAsACache(t, client)
}

func worksAsACache(t *testing.T, client redis.UniversalClient) {
	c := &Cache{Client: client, Timeout: patience}
	der := response(testCA(), func(*stapletest.Response) {})
	for i := range 20 { // in as many slots
		key := fmt.Sprint("key", i)
		_, err := c.Get(t.Context(), key)
		require.ErrorIs(t, err, staple.ErrCacheMiss)
		unlock, ok, err := c.TryLock(t.Context(), key, time.Hour)
		require.NoError(t, err)
		require.True(t, ok)
		require.NoError(t, c.Put(t.Context(), key, der))
		got, err := c.Get(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, der, got)
		_, ok, err = c.TryLock(t.Context(), key, time.Hour)
		require.NoError(t, err)
		require.False(t, ok)
		unlock()
		unlock, ok, err = c.TryLock(t.Context(), key, time.Hour)
		require.NoError(t, err)
		require.True(t, ok)
		unlock()
		require.NoError(t, c.Delete(t.Context(), key))
	}
}
