// Package seen remembers the certificates that the callbacks of TLS configurations
// return, within bounds that a client who makes up names cannot move.
//
// A callback may return the same variable with other content, a copy, or the chain as
// read from its file again, so that a certificate is known by its leaf's DER alone: by
// where that lies in memory, which costs a handshake a look into a map, or else by its
// SHA-256. A [Table] maps it to a handle, of which it knows nothing:
//
//	s, copied := table.Find(der, owner, now)
//	if s == nil && table.Admit(now) {
//		s, out := table.Put(der, handle, owner, now) // and end the care for out
//	}
//
// At most [Most] certificates are remembered, and the one that was seen least recently
// makes room, before those that are to stay (see Stay); at most [MostNew] new ones are admitted in any second; and one that no
// handshake has brought for [Span] is due to be forgotten, see Forget. An [Owner] stands
// for one configuration: what only owners have returned that are gone is forgotten too, see
// Disown and [Released].
//
// A Table reads no clock, starts nothing and calls nobody: its user says what time it is,
// by time.Now with the monotonic reading, and has it forget now and then. It does not
// look into certificates.
package seen

import (
	"bytes"
	"container/list"
	"crypto/sha256"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The bounds of a Table.
const (
	Most    = 1 << 17        // certificates that are remembered
	MostNew = 100            // that are admitted in a second
	Span    = 24 * time.Hour // without a handshake, after which one is forgotten
)

// A Table has what is known of the certificates that callbacks returned. The zero value
// is ready. It may be used by several goroutines at a time.
type Table[T any] struct {
	mu       sync.Mutex
	recent   list.List // of *Sighting[T], the most recent first
	staying  list.List // of those that stay
	byDER    map[identity]*Sighting[T]
	byHash   map[[sha256.Size]byte]*Sighting[T]
	admitted [MostNew]time.Time // when the last new ones were, in a ring
	next     int                // the oldest of these
}

// A Sighting is a certificate that is remembered.
type Sighting[T any] struct {
	Handle *T
	last   time.Time // guarded by the table's lock, as what is below First: it stands here to be found with Handle
	First  time.Time // when it was put into the table

	el     *list.Element // where it is
	key    [sha256.Size]byte
	leaf   []byte // the DER last seen, whose identity leads here
	owners []*Owner
	stays  bool

	staple atomic.Pointer[[]byte] // that came with the certificate last
}

// Carries notes that the certificate came with this staple, and reports whether that is
// news. To come without a staple is none.
func (s *Sighting[T]) Carries(staple []byte) bool {
	last := s.staple.Load()
	if len(staple) == 0 || last != nil && bytes.Equal(staple, *last) {
		return false
	}
	kept := staple // or the argument would be on the heap always
	return s.staple.CompareAndSwap(last, &kept)
}

// An identity tells one array of DER from another without reading it. Whoever keeps one
// keeps the array alive too, so that its address is not used again.
type identity struct {
	start *byte
	n     int
}

func identityOf(der []byte) identity {
	if len(der) == 0 {
		return identity{}
	}
	return identity{&der[0], len(der)}
}

// Len returns how many certificates are remembered.
func (t *Table[T]) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.recent.Len() + t.staying.Len()
}

// All returns the handles of all certificates that are remembered.
func (t *Table[T]) All() (all []*T) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range []*list.List{&t.recent, &t.staying} {
		for el := l.Front(); el != nil; el = el.Next() {
			all = append(all, el.Value.(*Sighting[T]).Handle)
		}
	}
	return all
}

// Stay says whether the certificate whose leaf's DER has this SHA-256 is to stay until it is removed, however many come
// after it and however long no handshake brings it.
func (t *Table[T]) Stay(key [sha256.Size]byte, stays bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.byHash[key]
	if s == nil || s.stays == stays {
		return
	}
	from, to := &t.recent, &t.staying
	if !stays {
		from, to = to, from
	}
	from.Remove(s.el)
	s.stays, s.el = stays, to.PushFront(s)
}

// Find returns what is known of the certificate with this leaf, nil if it is not known,
// and notes that o has returned it now. copied tells that the leaf lies elsewhere in
// memory than when it was last seen, so that the rest of the chain may be another, too.
func (t *Table[T]) Find(leaf []byte, o *Owner, now time.Time) (s *Sighting[T], copied bool) {
	t.mu.Lock()
	if s := t.byDER[identityOf(leaf)]; s != nil {
		defer t.mu.Unlock()
		return t.touch(s, o, now), false
	}
	t.mu.Unlock()

	key := sha256.Sum256(leaf)
	t.mu.Lock()
	defer t.mu.Unlock()
	if s = t.byHash[key]; s == nil {
		return nil, false
	}
	t.touch(s, o, now)
	delete(t.byDER, identityOf(s.leaf))
	s.leaf = leaf
	t.byDER[identityOf(leaf)] = s
	return s, true
}

// Recall is Find for certificates that lie elsewhere each time: what is kept of them is the leaf that Put was given, and
// nothing else leads to what came with this one. When it was seen last is known to the second.
func (t *Table[T]) Recall(leaf []byte, now time.Time) *Sighting[T] {
	key := sha256.Sum256(leaf)
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.byHash[key]
	if s == nil || now.Sub(s.last) < time.Second {
		return s
	}
	return t.touch(s, nil, now)
}

// Admit reports whether there is room for a new certificate now, and takes it.
func (t *Table[T]) Admit(now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if last := t.admitted[t.next]; !last.IsZero() && now.Sub(last) < time.Second {
		return false
	}
	t.admitted[t.next] = now
	t.next = (t.next + 1) % len(t.admitted)
	return true
}

// Put remembers that o has returned the certificate with this leaf now, by the handle
// given; if somebody else was faster, by the other. It returns what is known of the
// certificate afterwards, and the handle that is not kept for it: the one given, or that
// of the certificate seen least recently, or nil.
func (t *Table[T]) Put(leaf []byte, handle *T, o *Owner, now time.Time) (s *Sighting[T], out *T) {
	key := sha256.Sum256(leaf)
	t.mu.Lock()
	defer t.mu.Unlock()
	if s = t.byHash[key]; s != nil {
		return t.touch(s, o, now), handle
	}
	if t.byHash == nil {
		t.byDER = make(map[identity]*Sighting[T])
		t.byHash = make(map[[sha256.Size]byte]*Sighting[T])
	}
	s = &Sighting[T]{Handle: handle, First: now, key: key, leaf: leaf}
	s.el = t.recent.PushFront(s)
	t.byHash[key] = s
	t.byDER[identityOf(leaf)] = s
	t.touch(s, o, now)
	if t.recent.Len()+t.staying.Len() > Most {
		last := t.recent.Back()
		if t.recent.Len() == 1 { // the new one, and no others but such as stay
			last = t.staying.Back()
		}
		out = t.remove(last.Value.(*Sighting[T])).Handle
	}
	return s, out
}

// touch notes that s was seen now, by o.
func (t *Table[T]) touch(s *Sighting[T], o *Owner, now time.Time) *Sighting[T] {
	s.last = now
	t.recent.MoveToFront(s.el) // where it is there
	if !slices.Contains(s.owners, o) {
		s.owners = append(s.owners, o)
	}
	return s
}

// Remove forgets the certificate whose leaf's DER has this SHA-256, if it is known by
// this handle.
func (t *Table[T]) Remove(key [sha256.Size]byte, handle *T) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.byHash[key]; s != nil && s.Handle == handle {
		t.remove(s)
	}
}

func (t *Table[T]) remove(s *Sighting[T]) *Sighting[T] {
	t.recent.Remove(s.el) // from where it is
	t.staying.Remove(s.el)
	delete(t.byHash, s.key)
	delete(t.byDER, identityOf(s.leaf))
	return s
}

// Forget forgets the certificates that no callback has returned for [Span], and returns
// their handles.
func (t *Table[T]) Forget(now time.Time) (gone []*T) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for el := t.recent.Back(); el != nil && now.Sub(el.Value.(*Sighting[T]).last) >= Span; el = t.recent.Back() {
		gone = append(gone, t.remove(el.Value.(*Sighting[T])).Handle)
	}
	return gone
}

// Disown forgets the certificates that only these owners have returned, and returns
// their handles, but for those that stay.
func (t *Table[T]) Disown(owners []*Owner) (gone []*T) {
	left := make(map[*Owner]bool, len(owners))
	for _, o := range owners {
		left[o] = true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var prev *list.Element
	for el := t.recent.Back(); el != nil; el = prev {
		prev = el.Prev()
		s := el.Value.(*Sighting[T])
		s.owners = slices.DeleteFunc(s.owners, func(o *Owner) bool { return left[o] })
		if len(s.owners) == 0 {
			gone = append(gone, t.remove(el.Value.(*Sighting[T])).Handle)
		}
	}
	return gone
}
