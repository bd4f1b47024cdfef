package staple

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-staple/staple/internal/backlog"
	"github.com/go-staple/staple/internal/dircache"
	"github.com/go-staple/staple/internal/guarded"
	"github.com/go-staple/staple/internal/schedule"
	"github.com/go-staple/staple/internal/wall"
)

// A Cache keeps OCSP responses beyond the life of a process, and may be shared by several. The key is the SHA-256
// hash of the leaf's DER in 64 lower-case hexadecimal digits, the value the response's DER. Any cache for
// golang.org/x/crypto/acme/autocert is one. It is not trusted: what it returns is verified like what comes from the
// network, and an error costs a log line, never a staple. It must be safe for concurrent use, and return when ctx
// ends. What it was given, and what it has returned, it may keep and change.
type Cache interface {
	Get(ctx context.Context, key string) ([]byte, error) // or ErrCacheMiss; any other error, and empty data, count as a miss too
	Put(ctx context.Context, key string, data []byte) error
	Delete(ctx context.Context, key string) error // of what has expired; that there is nothing is no error
}

// A Locker is a [Cache] that elects one among the processes that share it, to fetch for all.
type Locker interface {
	// TryLock takes the lock for key, for ttl at most, and reports whether it got it, without waiting. If ok, unlock
	// is not nil and gives it back early, unless somebody else has it by now. An error means that nobody knows: the
	// caller goes on as if it had it.
	TryLock(ctx context.Context, key string, ttl time.Duration) (unlock func(), ok bool, err error)
}

// isMiss recognizes autocert's error too, without importing that package: its text
// is "acme/autocert: certificate cache miss".
func isMiss(err error) bool {
	return errors.Is(err, ErrCacheMiss) || err != nil && strings.HasSuffix(err.Error(), "cache miss")
}

// A MemoryCache is a [Cache] in memory, for tests and for several Staplers in one process. The zero value is empty
// and ready. It is safe for concurrent use.
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

// A DirCache is a [Cache] in a directory that processes of one user may share, and a [Locker], so that one of them
// asks. Each response is a file in DER (openssl ocsp -respin FILE -text shows it), replaced as a whole and synced to
// disk. The directory is made on the first Put, for its owner alone, as are the files. Those that ended a week ago
// are removed by later Puts.
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

// TryLock implements [Locker] by a file, which names its holder. One older than ttl was left by a process that
// crashed: the clocks of the processes must agree on that.
func (d DirCache) TryLock(ctx context.Context, key string, ttl time.Duration) (unlock func(), ok bool, err error) {
	return dircache.Dir(d).TryLock(ctx, key, ttl)
}

const storeTimeout = 5 * time.Second // for one call of the cache, and for those that Close waits for

// A storage is a Cache and Locker at work: what they have of entries, and what of them fails.
type storage struct {
	engine *engine
	cache  *guarded.Cache // nil: there is none
	locker Locker         // nil: there is none

	// Guarded by engine.mu.
	trouble  trouble
	troubled time.Time // since when there is any
	probed   time.Time // when it was looked last whether there still is
	storing  bool      // attend is at it
	kept     []string  // keys of what the cache did not delete
}

func (s *storage) init(g *engine, cache Cache) {
	s.engine = g
	if cache != nil {
		s.cache = guarded.New(cache)
		if s.cache.Locks() {
			s.locker = s.cache
		}
	}
}

// delete deletes what the cache has under key, now or when it works again.
func (s *storage) delete(key string) {
	g := s.engine
	g.mu.Lock()
	ctx := g.store
	g.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	err := s.cache.Delete(ctx, key)
	if err != nil {
		g.mu.Lock()
		if len(s.kept) < untold {
			s.kept = append(s.kept, key)
		}
		g.mu.Unlock()
	}
	s.report(deleting, err)
}

// outlived has what the cache has about e deleted, since that has expired, with mu held.
func (s *storage) outlived(e *entry) {
	if s.cache != nil {
		e.stored = false
		s.engine.notices.expired.Add(e.cacheKey(), backlog.Notable)
	}
}

// storeRest stores what the cache did not take when it came, in the background, with mu held.
func (s *storage) storeRest() { s.attend(0) }

// look sees whether what fails of the cache works again, and stores the rest, in the background, with mu held:
// nobody else may have a use for it for hours.
func (s *storage) look() {
	if s.trouble != 0 && time.Since(s.probed) >= maxSleep {
		s.probed = time.Now()
		s.attend(s.trouble)
	}
}

// attend does what storeRest and look do: failing is what to see about.
func (s *storage) attend(failing trouble) {
	g := s.engine
	if s.cache == nil || s.storing && !g.closed || len(g.entries) == 0 {
		return
	}
	var one *entry
	var rest []*entry
	for _, e := range g.entries {
		one = e
		if s.lacks(e) && e.item.State() != schedule.Working && e.item.State() != schedule.Storing { // whose worker does it
			rest = append(rest, e)
		}
	}
	kept := s.kept
	if len(rest) == 0 && len(kept) == 0 && failing == 0 {
		return
	}
	s.storing, s.kept = true, nil
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		defer func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			s.storing = false
			s.kept = append(s.kept, kept...)
		}()
		for _, e := range rest {
			if !s.save(e) {
				return
			}
		}
		for g.ctx.Err() == nil && len(kept) > 0 {
			key := kept[0]
			kept = kept[1:]
			if s.delete(key); s.failing()&deleting != 0 {
				return
			}
		}
		s.probe(one, s.failing()&failing)
	}()
}

func (s *storage) failing() trouble {
	g := s.engine
	g.mu.Lock()
	defer g.mu.Unlock()
	return s.trouble
}

// probe calls the cache to see whether what fails of it works again: it reads what there is about e, writes the same, and
// takes e's lock for a moment.
func (s *storage) probe(e *entry, failing trouble) {
	g := s.engine
	if failing == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(g.ctx, storeTimeout)
	defer cancel()
	der, err := s.get(ctx, e)
	if g.ctx.Err() != nil {
		return
	}
	if s.report(reading, err); err != nil {
		return
	}
	if failing&writing != 0 {
		if len(der) == 0 {
			g.mu.Lock()
			if held := e.known.Held(); held != nil {
				der = held.DER
			}
			g.mu.Unlock()
		}
		if len(der) > 0 {
			err = s.cache.Put(ctx, e.cacheKey(), der)
			if g.ctx.Err() != nil {
				return
			}
			if s.report(writing, err); err != nil {
				return
			}
		}
	}
	if failing&locking != 0 {
		unlock, _, err := s.locker.TryLock(ctx, e.cacheKey(), time.Second)
		if g.ctx.Err() == nil {
			s.report(locking, err)
		}
		if unlock != nil {
			unlock()
		}
	}
}

// A trouble is what of the cache fails at present, as bits: one line is logged for each
// outage. engine.mu guards it.
type trouble uint8

const (
	reading trouble = 1 << iota
	writing
	deleting
	locking
)

// report notes how it went this time. mu must not be held.
func (s *storage) report(doing trouble, err error) {
	g := s.engine
	g.mu.Lock()
	defer g.mu.Unlock()
	was := s.trouble
	if s.trouble &^= doing; err != nil {
		s.trouble |= doing
	}
	switch {
	case was == 0 && err != nil:
		s.troubled = time.Now()
		s.probed = s.troubled
		name := map[trouble]string{reading: "reading", writing: "writing", deleting: "deleting from", locking: "locking"}[doing]
		g.notices.say(slog.LevelWarn, name+" the OCSP cache fails; stapling goes on without", slog.Any("error", err))
		g.driver.arm()
	case was != 0 && s.trouble == 0:
		g.notices.say(slog.LevelInfo, "the OCSP cache works again", slog.Duration("lasted", time.Since(s.troubled).Round(time.Second)))
	}
	if was&writing != 0 && s.trouble&writing == 0 {
		s.storeRest()
	}
}

// get returns what the cache has about e, which may be nothing.
func (s *storage) get(ctx context.Context, e *entry) ([]byte, error) {
	der, err := s.cache.Get(ctx, e.cacheKey())
	if isMiss(err) {
		return nil, nil
	}
	return der, err
}

// load returns the response that the cache has about e, verified, or nil. An error
// is one of the cache's.
func (s *storage) load(ctx context.Context, e *entry, issuer *x509.Certificate) (*response, error) {
	g := s.engine
	der, err := s.get(ctx, e)
	if err != nil || len(der) == 0 {
		return nil, err
	}
	g.mu.Lock()
	held := e.known.Held()
	g.mu.Unlock()
	if held != nil && held.Is(der) {
		return held, nil
	}
	r, err := e.verify(issuer, der)
	if err == nil {
		return r, nil
	}
	if r = verifyRevoked(g.verifier, e.leaf, issuer, der); r == nil {
		g.mu.Lock()
		g.notices.log(slog.LevelDebug, "a cached OCSP response was refused", e, slog.Any("error", err))
		g.mu.Unlock()
	}
	return r, nil
}

// save writes the response held for e to the cache, unless it is there, and reports whether that is done with.
func (s *storage) save(e *entry) bool {
	g := s.engine
	g.mu.Lock()
	r, ctx := e.known.Held(), g.store
	needed := s.lacks(e)
	g.mu.Unlock()
	if s.cache == nil || !needed {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	err := s.cache.Put(ctx, e.cacheKey(), r.DER)
	if err == nil {
		g.mu.Lock()
		if e.known.Held() == r {
			e.stored = true
		}
		g.mu.Unlock()
	}
	s.report(writing, err)
	return err == nil
}

// lacks reports whether the response held for e should be in the cache and is not, with engine.mu held.
func (s *storage) lacks(e *entry) bool {
	return e.known.Held() != nil && !e.stored && wall.Now().Before(e.leaf.NotAfter)
}
