package staple

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-staple/staple/internal/dircache"
)

// ErrCacheMiss is returned by a [Cache] for a key that it does not hold.
var ErrCacheMiss = errors.New("staple: cache miss")

// A Cache keeps OCSP responses beyond the life of a process, and may be shared by
// several. Its method set is that of golang.org/x/crypto/acme/autocert.Cache, so
// that any of those works here.
//
// The key is the SHA-256 hash of the leaf's DER in 64 lower-case hexadecimal
// digits, the value the response's DER. A Cache is not trusted: what it returns
// is verified like what comes from the network. An error costs a log line, never
// a staple.
//
// A Cache must be safe for concurrent use, and return when ctx ends. One that makes the
// Stapler wait is passed by for a while, and what it has not stored meanwhile is stored
// when it can be. It shares no memory with the Stapler: what it was given it may keep
// and change, and what it has returned, too.
type Cache interface {
	// Get returns the data stored under key, or ErrCacheMiss. Any other error,
	// and empty data, count as a miss too.
	Get(ctx context.Context, key string) ([]byte, error)

	// Put stores data under key, in place of what was there.
	Put(ctx context.Context, key string, data []byte) error

	// Delete removes what is stored under key. That there is nothing is no error. It is
	// called when a certificate under the Stapler's care has expired.
	Delete(ctx context.Context, key string) error
}

// A Locker is a [Cache] that elects one among the processes that share it, so that
// a response is fetched once rather than by each.
type Locker interface {
	// TryLock takes the lock for key, for ttl at most, and reports whether it got
	// it. It does not wait for another holder. If ok is true, unlock gives the
	// lock back early; it must be safe to call after the lock has passed on. An
	// error means that nobody knows: the caller then goes on as if it had the lock.
	TryLock(ctx context.Context, key string, ttl time.Duration) (unlock func(), ok bool, err error)
}

// isMiss recognizes autocert's error too, without importing that package: its text
// is "acme/autocert: certificate cache miss".
func isMiss(err error) bool {
	return errors.Is(err, ErrCacheMiss) || err != nil && strings.HasSuffix(err.Error(), "cache miss")
}

// A MemoryCache is a [Cache] in memory, for tests and for several Staplers in one
// process. The zero value is empty and ready for use. It is safe for concurrent use.
type MemoryCache struct {
	mu   sync.Mutex
	data map[string][]byte
}

// NewMemoryCache returns an empty MemoryCache.
func NewMemoryCache() *MemoryCache { return new(MemoryCache) }

// Get returns a copy of the data stored under key, or ErrCacheMiss.
func (m *MemoryCache) Get(ctx context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	data, ok := m.data[key]
	if !ok {
		return nil, ErrCacheMiss
	}
	return bytes.Clone(data), nil
}

// Put stores a copy of data under key.
func (m *MemoryCache) Put(ctx context.Context, key string, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.data == nil {
		m.data = make(map[string][]byte)
	}
	m.data[key] = bytes.Clone(data)
	return nil
}

// Delete removes what is stored under key.
func (m *MemoryCache) Delete(ctx context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.data, key)
	return nil
}

// A DirCache is a [Cache] in a directory: one file for each response, which holds
// its DER (openssl ocsp -respin FILE -text shows it). The directory is made on
// the first Put, for its owner alone, as are the files. A file is replaced as a
// whole and synced to disk, so that neither a crash nor another process, of
// which several may share the directory, leaves half of one.
//
// It is a [Locker], too, so that of several processes one fetches a response.
//
// Once a day the directory is swept of files of its own making whose response ended
// more than a week ago, and of what a crash has left: each Put looks at a few hundred
// files, until it is through.
type DirCache string

// Get returns the contents of key's file, or ErrCacheMiss if there is none.
func (d DirCache) Get(ctx context.Context, key string) ([]byte, error) {
	data, err := dircache.Dir(d).Get(ctx, key)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrCacheMiss
	}
	return data, err
}

// Put writes key's file.
func (d DirCache) Put(ctx context.Context, key string, data []byte) error {
	return dircache.Dir(d).Put(ctx, key, data)
}

// Delete removes key's file.
func (d DirCache) Delete(ctx context.Context, key string) error {
	return dircache.Dir(d).Delete(ctx, key)
}

// TryLock implements [Locker] for processes that share the directory. The lock is a
// file, which names its holder. One that is older than ttl was left by a process
// that crashed, and is taken over; the clocks of the processes must agree on that.
func (d DirCache) TryLock(ctx context.Context, key string, ttl time.Duration) (unlock func(), ok bool, err error) {
	return dircache.Dir(d).TryLock(ctx, key, ttl)
}
