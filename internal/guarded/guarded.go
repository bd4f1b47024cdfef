// Package guarded stands before a cache and its lock that may hang: calls of a kind that do are not made for a while,
// see package breaker, and what is given to the cache, or comes from it, shares no memory with its user.
package guarded

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/go-staple/staple/internal/breaker"
)

// A Store is what is guarded. Its methods are those of staple.Cache.
type Store interface {
	Get(ctx context.Context, key string) ([]byte, error)
	Put(ctx context.Context, key string, data []byte) error
	Delete(ctx context.Context, key string) error
}

// A Locker is a Store with locks. Its method is that of staple.Locker.
type Locker interface {
	TryLock(ctx context.Context, key string, ttl time.Duration) (unlock func(), ok bool, err error)
}

// ErrPassedBy is what a Cache says in the place of a store that hangs.
var ErrPassedBy = errors.New("it takes too long, and is passed by for a while")

// A Cache is a Store, guarded. It is safe for concurrent use if the Store is.
type Cache struct {
	store  Store
	locker Locker // nil: it is none

	mu                            sync.Mutex
	reads, writes, locks, unlocks breaker.Breaker
}

// New returns a Cache that guards store, and its locks if it has any.
func New(store Store) *Cache {
	locker, _ := store.(Locker)
	return &Cache{store: store, locker: locker}
}

// Locks reports whether the Store has locks.
func (c *Cache) Locks() bool { return c.locker != nil }

// Get reads from the Store. The result is the caller's.
func (c *Cache) Get(ctx context.Context, key string) (data []byte, err error) {
	err = c.call(ctx, &c.reads, func() (err error) {
		data, err = c.store.Get(ctx, key)
		data = bytes.Clone(data)
		return err
	})
	return data, err
}

// Put writes a copy of data.
func (c *Cache) Put(ctx context.Context, key string, data []byte) error {
	return c.call(ctx, &c.writes, func() error { return c.store.Put(ctx, key, bytes.Clone(data)) })
}

// Delete deletes from the Store.
func (c *Cache) Delete(ctx context.Context, key string) error {
	return c.call(ctx, &c.writes, func() error { return c.store.Delete(ctx, key) })
}

// TryLock takes a lock of the Store, which must have locks. To give it back slowly counts as slow.
func (c *Cache) TryLock(ctx context.Context, key string, ttl time.Duration) (unlock func(), ok bool, err error) {
	if !c.allows(&c.unlocks) {
		return nil, false, ErrPassedBy
	}
	var back func()
	defer func() {
		if unlock == nil { // there is nothing to give back, which takes no time
			c.done(&c.unlocks, time.Now(), false)
		}
	}()
	err = c.call(ctx, &c.locks, func() (err error) {
		back, ok, err = c.locker.TryLock(ctx, key, ttl)
		return err
	})
	if err != nil || !ok || back == nil {
		return nil, ok, err
	}
	return func() {
		began := time.Now()
		defer func() { c.done(&c.unlocks, began, false) }()
		back()
	}, true, nil
}

// call makes a call, unless those like it hang.
func (c *Cache) call(ctx context.Context, b *breaker.Breaker, f func() error) error {
	if !c.allows(b) {
		return ErrPassedBy
	}
	began, givenUp := time.Now(), true // if f ends the goroutine
	defer func() { c.done(b, began, givenUp) }()
	err := f()
	givenUp = ctx.Err() != nil
	return err
}

func (c *Cache) allows(b *breaker.Breaker) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return b.Allow(time.Now())
}

// done says that a call ended which began then.
func (c *Cache) done(b *breaker.Breaker, began time.Time, givenUp bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	b.Done(now.Sub(began), givenUp, now)
}

// Forgive makes it go on as if no call to write had been slow.
func (c *Cache) Forgive() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes = breaker.Breaker{}
}
