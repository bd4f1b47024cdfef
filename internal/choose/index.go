package choose

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"hash/maphash"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
)

// An Index finds the certificate that crypto/tls would choose among many: the first
// that suits the hello, or else the first of all. Reading takes no lock. Only one
// goroutine at a time may change it, which replaces what changes as a whole.
type Index[T any] struct {
	fixed  bool                       // once it is read
	shards []atomic.Pointer[shard[T]] // a power of two, by the hash of the name
	seed   maphash.Seed
	wild   atomic.Bool // there has been a wildcard
	heads  atomic.Pointer[heads[T]]

	replaced atomic.Uint64 // times that one was, which takes several steps
	kinds    map[*Kind]int // how many candidates are of which
}

// A shard has the candidates for each name.
type shard[T any] [tables]map[string]match[T]

// A table tells what the keys of a map are.
type table int

const (
	hostnames table = iota // in lower case; an address in text has a dot after it
	wildcards              // what follows "*."
	addresses              // in 16 bytes
	tables
)

// Heads are the candidates for a hello without a name: the first of each kind, and
// the first of all before the others. sole is that one if there is no other.
type heads[T any] struct {
	first []*Slot[T]
	sole  *Slot[T]
}

const (
	changingShards = 1 << 10 // one of them is copied for each name that comes or goes
	usualHostname  = 255     // to look a longer name up takes an allocation
)

// NewIndex returns an index without candidates, which may change while it is read.
func NewIndex[T any]() *Index[T] { return newIndex[T](changingShards) }

// NewFixedIndex returns an index without candidates to which none is added any more
// once it is read, and from which none is removed. It is faster and smaller: it does
// not keep those that can never be chosen.
func NewFixedIndex[T any]() *Index[T] {
	ix := newIndex[T](1)
	ix.fixed = true
	return ix
}

func newIndex[T any](shards int) *Index[T] {
	ix := &Index[T]{
		shards: make([]atomic.Pointer[shard[T]], shards),
		seed:   maphash.MakeSeed(),
		kinds:  make(map[*Kind]int),
	}
	for i := range ix.shards {
		ix.shards[i].Store(new(shard[T]))
	}
	ix.heads.Store(new(heads[T]))
	return ix
}

// Choose returns the candidate that crypto/tls would choose for hello, or nil if there
// are none, and whether it had to ask crypto/tls, which can take long. tls13 tells
// whether the server takes TLS 1.3, see [TakesTLS13].
func (ix *Index[T]) Choose(hello *tls.ClientHelloInfo, tls13 bool) (s *Slot[T], asked bool) {
	return ix.choose(hello, tls13, nil)
}

// choose is Choose. The certificates of slots that show none are in array, by their order.
func (ix *Index[T]) choose(hello *tls.ClientHelloInfo, tls13 bool, array []tls.Certificate) (s *Slot[T], asked bool) {
	h := ix.heads.Load()
	switch {
	case h.sole != nil:
		return h.sole, false
	case len(h.first) == 0:
		return nil, false
	}
	tls13 = tls13 && prefersTLS13(hello)
	if hello.ServerName == "" {
		for _, s := range h.first {
			if s.suits(hello, tls13, array, &asked) {
				return s, asked
			}
		}
		return h.first[0], asked
	}
	replaced := ix.replaced.Load()
	var found [3]match[T]
	only, ok := ix.only(hello.ServerName)
	switch {
	case !ok:
		found = ix.find(hello.ServerName)
	case only.suits(hello, tls13, array, &asked):
		return only.Slot, asked
	default:
		found[0] = only.rest()
	}
	for {
		var next *match[T]
		for i := range found {
			if m := &found[i]; m.Slot != nil && (next == nil || m.Order < next.Order) {
				next = m
			}
		}
		switch {
		case next != nil:
		case ix.replaced.Load() != replaced: // by one whose name stands elsewhere
			return ix.choose(hello, tls13, array)
		default:
			return h.first[0], asked
		}
		if next.suits(hello, tls13, array, &asked) {
			return next.Slot, asked
		}
		*next = next.rest()
	}
}

// suits reports whether s, one of whose names was asked for, suits hello. What a probe
// has found holds; all else is for crypto/tls to say, which sets asked.
func (s *Slot[T]) suits(hello *tls.ClientHelloInfo, tls13 bool, array []tls.Certificate, asked *bool) bool {
	if tls13 {
		for _, scheme := range hello.SignatureSchemes {
			if slices.Contains(s.Kind.schemes, scheme) {
				return true
			}
		}
	}
	*asked = true
	cert := s.Shown()
	if cert == nil {
		cert = &array[s.Order]
	}
	return hello.SupportsCertificate(cert) == nil
}

// only returns the candidates for a name that is a key and that nothing else can
// match, being in lower case, no address and in reach of no wildcard.
func (ix *Index[T]) only(name string) (m match[T], ok bool) {
	if !ix.wild.Load() && name[len(name)-1] != '.' {
		m, ok = ix.shardOf(name).Load()[hostnames][name]
	}
	return m, ok
}

// find returns the candidates for a name, by the rules of x509's VerifyHostname.
func (ix *Index[T]) find(name string) (found [3]match[T]) {
	if ip, ok := parseAddress(name); ok {
		key := ip.As16()
		found[0] = ix.at(addresses, key[:])
		return found
	}
	var buf [usualHostname]byte
	key := appendLower(buf[:0], name)
	found[0] = ix.at(hostnames, key)
	host := key
	if n := len(key) - 1; key[n] == '.' {
		host = key[:n]
	}
	if !isHostname(host) {
		if parent, ok := bytes.CutPrefix(key, []byte("*.")); ok {
			found[1] = ix.at(wildcards, parent) // asked for by the pattern itself
		}
		return found
	}
	if len(host) < len(key) {
		found[1] = ix.at(hostnames, host)
	}
	if _, parent, ok := bytes.Cut(host, []byte(".")); ok {
		found[2] = ix.at(wildcards, parent)
	}
	return found
}

func (ix *Index[T]) at(t table, key []byte) match[T] {
	return ix.shardAt(maphash.Bytes(ix.seed, key)).Load()[t][string(key)]
}

func (ix *Index[T]) shardOf(key string) *atomic.Pointer[shard[T]] {
	if len(ix.shards) == 1 { // spares the hash
		return &ix.shards[0]
	}
	return ix.shardAt(maphash.String(ix.seed, key))
}

func (ix *Index[T]) shardAt(hash uint64) *atomic.Pointer[shard[T]] {
	return &ix.shards[hash&uint64(len(ix.shards)-1)]
}

// Add makes s the last candidate: its Order is above all others'. The names are those
// of the Leaf that it shows; without one, it is a candidate for want of any other alone.
func (ix *Index[T]) Add(s *Slot[T]) { ix.add(s, s.Shown().Leaf) }

func (ix *Index[T]) add(s *Slot[T], leaf *x509.Certificate) {
	known := ix.kinds[s.Kind] > 0
	ix.kinds[s.Kind]++
	h := &heads[T]{first: ix.heads.Load().first}
	if !known {
		h.first = append(slices.Clip(h.first), s)
	}
	if len(h.first) == 1 && ix.kinds[s.Kind] == 1 {
		h.sole = s
	}
	ix.edit(leaf, func(m match[T]) match[T] { return m.with(s, ix.fixed) })
	ix.heads.Store(h)
}

// Remove removes s. later are the candidates that come after it, in order.
func (ix *Index[T]) Remove(s *Slot[T], later iter.Seq[*Slot[T]]) {
	h := &heads[T]{first: ix.heads.Load().first}
	i := slices.Index(h.first, s)
	if i >= 0 {
		h.first = slices.Delete(slices.Clone(h.first), i, i+1)
	}
	if ix.kinds[s.Kind]--; ix.kinds[s.Kind] == 0 {
		delete(ix.kinds, s.Kind)
	} else if i >= 0 {
		for o := range later {
			if o.Kind == s.Kind {
				h.first = append(h.first, o)
				slices.SortFunc(h.first, func(a, b *Slot[T]) int { return cmp.Compare(a.Order, b.Order) })
				break
			}
		}
	}
	if len(h.first) == 1 && ix.kinds[h.first[0].Kind] == 1 {
		h.sole = h.first[0]
	}
	ix.heads.Store(h)
	ix.edit(s.Shown().Leaf, func(m match[T]) match[T] { return m.without(s) })
}

// Replace puts s in the place of old, whose Order it has. Whoever reads meanwhile finds either, and never neither. later
// are the candidates after them, in order.
func (ix *Index[T]) Replace(old, s *Slot[T], later iter.Seq[*Slot[T]]) {
	ix.edit(s.Shown().Leaf, func(m match[T]) match[T] { return m.insert(s) })
	ix.kinds[s.Kind]++
	h := &heads[T]{first: slices.Clone(ix.heads.Load().first)}
	if ix.kinds[old.Kind]--; ix.kinds[old.Kind] == 0 {
		delete(ix.kinds, old.Kind)
	}
	if i := slices.Index(h.first, old); i >= 0 {
		h.first = slices.Delete(h.first, i, i+1)
		if old.Kind != s.Kind && ix.kinds[old.Kind] > 0 {
			for o := range later {
				if o.Kind == old.Kind {
					h.first = append(h.first, o)
					break
				}
			}
		}
	}
	switch i := slices.IndexFunc(h.first, func(o *Slot[T]) bool { return o.Kind == s.Kind }); {
	case i < 0:
		h.first = append(h.first, s)
	case s.Order < h.first[i].Order:
		h.first[i] = s
	}
	slices.SortFunc(h.first, func(a, b *Slot[T]) int { return cmp.Compare(a.Order, b.Order) })
	if len(h.first) == 1 && ix.kinds[s.Kind] == 1 {
		h.sole = s
	}
	ix.heads.Store(h)
	ix.replaced.Add(1)
	ix.edit(old.Shown().Leaf, func(m match[T]) match[T] { return m.without(old) })
}

// edit changes what there is for each name of leaf.
func (ix *Index[T]) edit(leaf *x509.Certificate, change func(match[T]) match[T]) {
	if leaf == nil {
		return
	}
	for _, ip := range leaf.IPAddresses {
		if len(ip.To16()) > 0 {
			ix.update(addresses, string(ip.To16()), change)
		}
	}
	for _, name := range leaf.DNSNames {
		key := lower(name)
		parent, wild := strings.CutPrefix(key, "*.")
		_, address := parseAddress(key)
		switch {
		case wild && isHostname([]byte(parent)):
			ix.wild.Store(true)
			ix.update(wildcards, parent, change)
		case address && isHostname([]byte(key)):
			ix.update(hostnames, key+".", change) // without the dot, it is an address
		case !address && key != "" && key != ".":
			ix.update(hostnames, key, change)
		}
	}
}

func (ix *Index[T]) update(t table, key string, change func(match[T]) match[T]) {
	p := ix.shardOf(key)
	s := *p.Load()
	switch {
	case s[t] == nil:
		s[t] = make(map[string]match[T])
	case !ix.fixed:
		s[t] = maps.Clone(s[t])
	}
	if m := change(s[t][key]); m.Slot != nil {
		s[t][strings.Clone(key)] = m // near to the other keys, as the names in certificates are not
	} else {
		delete(s[t], key)
	}
	p.Store(&s)
}

// A match is the first candidate for a name, and those that come after it.
type match[T any] struct {
	*Slot[T]
	others *[]*Slot[T] // nil: there are none
}

func newMatch[T any](all []*Slot[T]) match[T] {
	switch len(all) {
	case 0:
		return match[T]{}
	case 1:
		return match[T]{Slot: all[0]}
	}
	others := all[1:]
	return match[T]{all[0], &others}
}

func (m match[T]) rest() match[T] { return newMatch(m.later()) }

// later returns the candidates after the first.
func (m match[T]) later() []*Slot[T] {
	if m.others == nil {
		return nil
	}
	return *m.others
}

// with returns m and s after it. Of a kind, only the first is ever chosen.
func (m match[T]) with(s *Slot[T], firstOfKind bool) match[T] {
	switch {
	case m.Slot == nil:
		return match[T]{Slot: s}
	case m.Slot == s, firstOfKind && m.Kind == s.Kind:
		return m
	}
	others := m.later()
	if firstOfKind && slices.ContainsFunc(others, func(o *Slot[T]) bool { return o.Kind == s.Kind }) ||
		len(others) > 0 && others[len(others)-1] == s { // which has the name twice
		return m
	}
	others = append(others, s) // beyond what readers see
	return match[T]{m.Slot, &others}
}

// insert returns m and s in the place that its Order says.
func (m match[T]) insert(s *Slot[T]) match[T] {
	if m.Slot == nil {
		return match[T]{Slot: s}
	}
	all := append([]*Slot[T]{m.Slot}, m.later()...)
	if slices.Contains(all, s) { // which has the name twice
		return m
	}
	i := slices.IndexFunc(all, func(o *Slot[T]) bool { return o.Order >= s.Order })
	if i < 0 {
		i = len(all)
	}
	return newMatch(slices.Insert(all, i, s))
}

func (m match[T]) without(s *Slot[T]) match[T] {
	all := append([]*Slot[T]{m.Slot}, m.later()...)
	return newMatch(slices.DeleteFunc(all, func(o *Slot[T]) bool { return o == nil || o == s }))
}
