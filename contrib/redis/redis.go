// Package stapleredis shares OCSP responses by way of Redis or Valkey, so that a
// fleet of servers with the same certificates asks the responder once rather than
// once for each server, and a server that is started has its staples at once:
//
//	client := redis.NewClient(&redis.Options{Addr: "localhost:6379"})
//	stapler := &staple.Stapler{Cache: &stapleredis.Cache{Client: client}}
//
// The client is one of github.com/redis/go-redis/v9, and whatever it is set up for
// works: TLS, passwords, Sentinel, a cluster. Reads should go to the primary: a
// replica that lags behind costs requests that another process has just made.
//
// # What is stored
//
// Two keys for each certificate. One has the response's DER, and expires when the
// response ends; the other is there while a process asks the responder. Eviction,
// FLUSHALL or a restart without persistence cost requests, never a staple that is
// held. What is stored is not secret. It is not trusted either, since the Stapler
// verifies what it reads: write access to Redis gives no way to staple anything
// forged, but to put back an old response that has not ended yet. A process that
// starts takes that until it is due.
//
// # When Redis fails
//
// Each process then asks the responder for itself. No call takes longer than
// [Cache.Timeout], whatever the timeouts and retries of the client, and after
// several that failed in a row, calls fail at once, but for one in a second, which may find Redis back
// (see [Cache.Timeout] for clients that get stuck). The Stapler makes a call when a response is due, and while Redis
// fails once in half a minute, and logs one line at the beginning of such an outage and one at its end. README.md has
// what to set, and what happens when.
package stapleredis

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/go-staple/staple"
)

const (
	defaultPrefix   = "staple:"
	defaultTimeout  = 500 * time.Millisecond
	defaultLifetime = 24 * time.Hour // of a response without nextUpdate
	maxResponse     = 1 << 20        // a larger value is no OCSP response
	maxFailures     = 4              // in a row, before calls fail at once
	maxStuck        = 16             // calls that were given up and have not returned
	pause           = time.Second    // from a failure to the next look, after maxFailures
)

var (
	errNoClient = errors.New("stapleredis: Cache.Client is nil")
	errDown     = errors.New("stapleredis: Redis has not answered of late")
)

// A Cache is a [staple.Cache] and a [staple.Locker]. Its fields must not be changed
// once it is in use. It is safe for concurrent use, must not be copied, and leaves
// Client open.
type Cache struct {
	// Client talks to Redis. It is required.
	Client redis.UniversalClient

	// Prefix begins each key; empty: "staple:". All who share responses must use
	// the same.
	Prefix string

	// Timeout bounds each call of a method, retries and connecting included;
	// 0: 500 milliseconds. The context of the call may end it sooner.
	//
	// A client whose ContextTimeoutEnabled is false cannot be interrupted while it
	// reads. A call that is given up then ends on a goroutine of its own, after the
	// client's ReadTimeout; while there are 16 of these, all further calls fail at once.
	// So set ContextTimeoutEnabled.
	Timeout time.Duration

	stuck    atomic.Int32 // calls that were given up and have not returned
	mu       sync.Mutex
	failures int       // in a row
	retry    time.Time // when one may try again, after maxFailures
}

var (
	_ staple.Cache  = (*Cache)(nil)
	_ staple.Locker = (*Cache)(nil)
)

// Get returns the response stored under key, or [staple.ErrCacheMiss] if there is
// none. A value that is larger than a mebibyte is an error, and is not read as a
// whole.
func (c *Cache) Get(ctx context.Context, key string) ([]byte, error) {
	data, err := do(ctx, c, func(ctx context.Context) ([]byte, error) {
		return c.Client.GetRange(ctx, c.name(key), 0, maxResponse).Bytes()
	})
	switch {
	case errors.Is(err, redis.Nil), err == nil && len(data) == 0:
		return nil, staple.ErrCacheMiss
	case err == nil && len(data) > maxResponse:
		return nil, fmt.Errorf("stapleredis: %s has more than %d bytes", c.name(key), maxResponse)
	}
	return data, err
}

// Put stores data, which must be an OCSP response, under key. It expires at the
// response's nextUpdate, or in 24 hours if it has none; at the latest of these if it
// is about several certificates. A response that has ended is not stored, which is no error:
// what was there before stays.
func (c *Cache) Put(ctx context.Context, key string, data []byte) error {
	end, ok := lastUpdate(data, time.Now().Add(defaultLifetime))
	if !ok || len(data) > maxResponse {
		return fmt.Errorf("stapleredis: what is to be stored as %s is no OCSP response", c.name(key))
	}
	lifetime := time.Until(end)
	if lifetime < time.Millisecond { // Redis counts no less
		return nil
	}
	_, err := do(ctx, c, func(ctx context.Context) (string, error) {
		return c.Client.Set(ctx, c.name(key), data, lifetime).Result()
	})
	return err
}

// Delete removes what is stored under key. That there is nothing is no error.
func (c *Cache) Delete(ctx context.Context, key string) error {
	_, err := do(ctx, c, func(ctx context.Context) (int64, error) {
		return c.Client.Del(ctx, c.name(key)).Result()
	})
	return err
}

const (
	// lockScript takes a lock. It may be that of this very call already, which the
	// client repeats where it lost the reply.
	lockScript = `if redis.call("set", KEYS[1], ARGV[1], "nx", "px", ARGV[2]) or redis.call("get", KEYS[1]) == ARGV[1] then return 1 end return 0`

	// unlockScript gives a lock back unless it has passed to another holder.
	unlockScript = `if redis.call("get", KEYS[1]) == ARGV[1] then return redis.call("del", KEYS[1]) end return 0`
)

// TryLock implements [staple.Locker]. The lock is a key that expires after ttl and
// names its holder, so that unlock gives back no other's. unlock works after ctx
// has ended and takes no longer than Timeout; if it fails, the lock ends with ttl.
// Both are scripts, which Redis must let the client run.
func (c *Cache) TryLock(ctx context.Context, key string, ttl time.Duration) (unlock func(), ok bool, err error) {
	name, holder := c.name(key)+":lock", rand.Text()
	ok, err = do(ctx, c, func(ctx context.Context) (bool, error) {
		return c.Client.Eval(ctx, lockScript, []string{name}, holder, max(ttl.Milliseconds(), 1)).Bool()
	})
	if !ok || err != nil {
		return nil, false, err
	}
	return func() {
		_, _ = do(context.WithoutCancel(ctx), c, func(ctx context.Context) (any, error) {
			return c.Client.Eval(ctx, unlockScript, []string{name}, holder).Result()
		})
	}, true, nil
}

func (c *Cache) name(key string) string {
	if c.Prefix == "" {
		return defaultPrefix + key
	}
	return c.Prefix + key
}

// do runs call, and gives it up after Timeout.
func do[T any](ctx context.Context, c *Cache, call func(context.Context) (T, error)) (value T, err error) {
	if c.Client == nil {
		return value, errNoClient
	}
	if err := ctx.Err(); err != nil {
		return value, err
	}
	if !c.admit() {
		return value, errDown
	}
	timeout := c.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	var over atomic.Bool // of call and its caller, one has come to its end
	go func() {
		value, err := call(bounded)
		done <- result{value, err}
		if over.Swap(true) {
			c.stuck.Add(-1)
		}
	}()
	select {
	case r := <-done:
		value, err = r.value, r.err
	case <-bounded.Done():
		err = bounded.Err()
		c.stuck.Add(1)
		if over.Swap(true) {
			c.stuck.Add(-1)
		}
	}
	if ctx.Err() == nil || time.Since(began) >= defaultTimeout { // or it says nothing about Redis
		c.note(err)
	}
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("stapleredis: no answer within %s: %w", timeout, err)
	}
	return value, err
}

// admit reports whether a call may be made.
func (c *Cache) admit() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.stuck.Load() >= maxStuck || c.failures >= maxFailures && now.Before(c.retry) {
		return false
	}
	c.retry = now.Add(pause)
	return true
}

// note notes how a call went. An error that Redis replied shows that it is alive.
func (c *Cache) note(err error) {
	var reply redis.Error
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil || errors.As(err, &reply) {
		c.failures = 0
		return
	}
	c.failures++
	c.retry = time.Now().Add(pause)
}

// lastUpdate returns the latest nextUpdate in an OCSP response, where one that is missing counts as missing, and
// whether der is a response. ocsp.ParseResponse would check a signature, without knowing the issuer, and refuses some
// responses that a Stapler accepts.
func lastUpdate(der []byte, missing time.Time) (latest time.Time, ok bool) {
	explicit0 := asn1.Tag(0).Constructed().ContextSpecific()
	s := cryptobyte.String(der)
	var responderID cryptobyte.String
	var tag asn1.Tag
	ok = s.ReadASN1(&s, asn1.SEQUENCE) && // OCSPResponse
		s.SkipASN1(asn1.ENUM) && s.ReadASN1(&s, explicit0) && s.ReadASN1(&s, asn1.SEQUENCE) &&
		s.SkipASN1(asn1.OBJECT_IDENTIFIER) && s.ReadASN1(&s, asn1.OCTET_STRING) &&
		s.ReadASN1(&s, asn1.SEQUENCE) && // BasicOCSPResponse
		s.ReadASN1(&s, asn1.SEQUENCE) && // ResponseData
		s.SkipOptionalASN1(explicit0) && s.ReadAnyASN1(&responderID, &tag) && s.SkipASN1(asn1.GeneralizedTime) &&
		s.ReadASN1(&s, asn1.SEQUENCE) && !s.Empty()
	for ok && !s.Empty() {
		var single, status, explicit cryptobyte.String
		var this, next time.Time
		var has bool
		ok = s.ReadASN1(&single, asn1.SEQUENCE) && single.SkipASN1(asn1.SEQUENCE) && single.ReadAnyASN1(&status, &tag) &&
			single.ReadASN1GeneralizedTime(&this) && single.ReadOptionalASN1(&explicit, &has, explicit0) &&
			(!has || explicit.ReadASN1GeneralizedTime(&next))
		if !has {
			next = missing
		}
		if next.After(latest) {
			latest = next
		}
	}
	return latest, ok
}
