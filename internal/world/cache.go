package world

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/go-staple/staple"
	"github.com/stretchr/testify/require"
)

// A LockedCache elects one fetcher, as a cache that processes share would.
type LockedCache struct {
	*staple.MemoryCache
	mu     sync.Mutex
	holder map[string]time.Time
	broken bool
}

// NewLockedCache returns a LockedCache in which nobody holds a lock.
func NewLockedCache() *LockedCache {
	return &LockedCache{MemoryCache: staple.NewMemoryCache(), holder: make(map[string]time.Time)}
}

// TryLock is as staple.Locker says, and fails once the lock is broken.
func (c *LockedCache) TryLock(ctx context.Context, key string, ttl time.Duration) (func(), bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken {
		return nil, false, ErrBroken
	}
	now := time.Now()
	if now.Before(c.holder[key]) {
		return nil, false, nil
	}
	end := now.Add(ttl)
	c.holder[key] = end
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.holder[key].Equal(end) {
			delete(c.holder, key)
		}
	}, true, nil
}

// Hold makes a lock that ends at end, whatever its holder asked for.
func (c *LockedCache) Hold(key string, end time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holder[key] = end
}

// Held returns how many locks there are, those that have ended included.
func (c *LockedCache) Held() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.holder)
}

// Break makes TryLock fail.
func (c *LockedCache) Break() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = true
}

// ErrBroken is what a BrokenCache and a broken lock say.
var ErrBroken = errors.New("no space left on device")

// A BrokenCache always fails, with ErrBroken.
type BrokenCache struct{}

// Get fails.
func (BrokenCache) Get(context.Context, string) ([]byte, error) { return nil, ErrBroken }

// Put fails.
func (BrokenCache) Put(context.Context, string, []byte) error { return ErrBroken }

// Delete fails.
func (BrokenCache) Delete(context.Context, string) error { return ErrBroken }

// What the names of a DirCache's temporary files begin with, and those of its locks among them.
const (
	TempPrefix = ".staple-"
	LockPrefix = TempPrefix + "lock-"
)

// FilesIn returns the names of what is in a directory.
func FilesIn(t *testing.T, dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// SetAge makes a file look as if it had been written some time ago.
func SetAge(t *testing.T, name string, age time.Duration) {
	at := time.Now().Add(-age)
	require.NoError(t, os.Chtimes(name, at, at))
}
