package staple

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"hash/maphash"
	"iter"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"weak"
)

// An index finds the certificate that crypto/tls would choose among many: the first
// that suits the hello, or else the first of all. Reading takes no lock. Only one
// goroutine at a time may change it, which replaces what changes as a whole.
type index struct {
	shards []atomic.Pointer[shard] // a power of two, by the hash of the name
	seed   maphash.Seed
	wild   atomic.Bool // there has been a wildcard
	heads  atomic.Pointer[heads]

	kinds map[*kind]int // how many candidates are of which
}

// A shard has the candidates for each name.
type shard [tables]map[string]match

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
type heads struct {
	first []*Certificate
	sole  *Certificate
}

// A match is the first candidate for a name, and those that come after it.
type match struct {
	*Certificate
	others *[]*Certificate // nil: there are none
}

// A kind is what ClientHelloInfo.SupportsCertificate looks at in a certificate but
// for its names, so that certificates of one kind suit the same hellos.
type kind struct {
	schemes []tls.SignatureScheme // of those probed, the ones that suit in TLS 1.3
}

const (
	changingShards = 1 << 10 // of an index that changes: one of them is copied for each name that comes or goes
	usualHostname  = 255     // to look a longer name up takes an allocation
)

func newIndex(shards int) *index {
	ix := &index{
		shards: make([]atomic.Pointer[shard], shards),
		seed:   maphash.MakeSeed(),
		kinds:  make(map[*kind]int),
	}
	for i := range ix.shards {
		ix.shards[i].Store(new(shard))
	}
	ix.heads.Store(new(heads))
	return ix
}

// choose returns the candidate that crypto/tls would choose for hello, or nil if
// there are none, and whether it had to ask crypto/tls, which can take long. tls13
// tells whether the server takes TLS 1.3. array has the certificates if the
// candidates have no handles.
func (ix *index) choose(hello *tls.ClientHelloInfo, tls13 bool, array []tls.Certificate) (c *Certificate, asked bool) {
	h := ix.heads.Load()
	switch {
	case h.sole != nil:
		return h.sole, false
	case len(h.first) == 0:
		return nil, false
	}
	tls13 = tls13 && prefersTLS13(hello)
	if hello.ServerName == "" {
		for _, c := range h.first {
			if c.suits(hello, tls13, array, &asked) {
				return c, asked
			}
		}
		return h.first[0], asked
	}
	var found [3]match
	only, ok := ix.only(hello.ServerName)
	switch {
	case !ok:
		found = ix.find(hello.ServerName)
	case only.suits(hello, tls13, array, &asked):
		return only.Certificate, asked
	default:
		found[0] = only.rest()
	}
	for {
		var next *match
		for i := range found {
			if m := &found[i]; m.Certificate != nil && (next == nil || m.order < next.order) {
				next = m
			}
		}
		if next == nil {
			return h.first[0], asked
		}
		if next.suits(hello, tls13, array, &asked) {
			return next.Certificate, asked
		}
		*next = next.rest()
	}
}

func newMatch(all []*Certificate) match {
	switch len(all) {
	case 0:
		return match{}
	case 1:
		return match{Certificate: all[0]}
	}
	others := all[1:]
	return match{all[0], &others}
}

func (m match) rest() match { return newMatch(m.later()) }

// later returns the candidates after the first.
func (m match) later() []*Certificate {
	if m.others == nil {
		return nil
	}
	return *m.others
}

// suits reports whether c, one of whose names was asked for, suits hello. What a
// probe has found holds; all else is for crypto/tls to say, which sets asked.
func (c *Certificate) suits(hello *tls.ClientHelloInfo, tls13 bool, array []tls.Certificate, asked *bool) bool {
	if tls13 {
		for _, s := range hello.SignatureSchemes {
			if slices.Contains(c.kind.schemes, s) {
				return true
			}
		}
	}
	*asked = true
	return hello.SupportsCertificate(c.certificate(array)) == nil
}

func (c *Certificate) certificate(array []tls.Certificate) *tls.Certificate {
	if cert := c.shown.Load(); cert != nil {
		return cert
	}
	return &array[c.order]
}

// takesTLS13 reports whether a server with config takes TLS 1.3.
func takesTLS13(config *tls.Config) bool {
	return config.MinVersion <= tls.VersionTLS13 && (config.MaxVersion == 0 || config.MaxVersion >= tls.VersionTLS13)
}

// prefersTLS13 reports whether a server that takes TLS 1.3 is sure to use it for hello.
func prefersTLS13(hello *tls.ClientHelloInfo) bool {
	for _, v := range hello.SupportedVersions {
		switch {
		case v == tls.VersionTLS13:
			return true
		case v&0x0f0f != 0x0a0a: // not one of RFC 8701, which are there to be ignored
			return false
		}
	}
	return false
}

// only returns the candidates for a name that is a key and that nothing else can
// match, being in lower case, no address and in reach of no wildcard.
func (ix *index) only(name string) (m match, ok bool) {
	if !ix.wild.Load() && name[len(name)-1] != '.' {
		m, ok = ix.shardOf(name).Load()[hostnames][name]
	}
	return m, ok
}

// find returns the candidates for a name, by the rules of x509's VerifyHostname.
func (ix *index) find(name string) (found [3]match) {
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

func (ix *index) at(t table, key []byte) match {
	return ix.shardAt(maphash.Bytes(ix.seed, key)).Load()[t][string(key)]
}

func (ix *index) shardOf(key string) *atomic.Pointer[shard] {
	if len(ix.shards) == 1 { // spares the hash
		return &ix.shards[0]
	}
	return ix.shardAt(maphash.String(ix.seed, key))
}

func (ix *index) shardAt(hash uint64) *atomic.Pointer[shard] {
	return &ix.shards[hash&uint64(len(ix.shards)-1)]
}

// add makes c, whose leaf is nil if it does not parse, the last candidate. An index
// that is complete before it is read need not keep those that can never be chosen.
func (ix *index) add(c *Certificate, leaf *x509.Certificate, complete bool) {
	known := ix.kinds[c.kind] > 0
	ix.kinds[c.kind]++
	h := &heads{first: ix.heads.Load().first}
	if !known {
		h.first = append(slices.Clip(h.first), c)
	}
	if len(h.first) == 1 && ix.kinds[c.kind] == 1 {
		h.sole = c
	}
	ix.edit(leaf, complete, func(m match) match { return m.with(c, complete) })
	ix.heads.Store(h)
}

// remove removes c. later are the candidates that come after it, in order.
func (ix *index) remove(c *Certificate, leaf *x509.Certificate, later iter.Seq[*Certificate]) {
	h := &heads{first: ix.heads.Load().first}
	i := slices.Index(h.first, c)
	if i >= 0 {
		h.first = slices.Delete(slices.Clone(h.first), i, i+1)
	}
	if ix.kinds[c.kind]--; ix.kinds[c.kind] == 0 {
		delete(ix.kinds, c.kind)
	} else if i >= 0 {
		for o := range later {
			if o.kind == c.kind {
				h.first = append(h.first, o)
				slices.SortFunc(h.first, func(a, b *Certificate) int { return cmp.Compare(a.order, b.order) })
				break
			}
		}
	}
	if len(h.first) == 1 && ix.kinds[h.first[0].kind] == 1 {
		h.sole = h.first[0]
	}
	ix.heads.Store(h)
	ix.edit(leaf, false, func(m match) match { return m.without(c) })
}

// with returns m and c after it. Of a kind, only the first is ever chosen.
func (m match) with(c *Certificate, firstOfKind bool) match {
	switch {
	case m.Certificate == nil:
		return match{Certificate: c}
	case m.Certificate == c, firstOfKind && m.kind == c.kind:
		return m
	}
	others := m.later()
	if firstOfKind && slices.ContainsFunc(others, func(o *Certificate) bool { return o.kind == c.kind }) ||
		len(others) > 0 && others[len(others)-1] == c { // which has the name twice
		return m
	}
	others = append(others, c) // beyond what readers see
	return match{m.Certificate, &others}
}

func (m match) without(c *Certificate) match {
	all := append([]*Certificate{m.Certificate}, m.later()...)
	return newMatch(slices.DeleteFunc(all, func(o *Certificate) bool { return o == nil || o == c }))
}

// edit changes what there is for each name of leaf.
func (ix *index) edit(leaf *x509.Certificate, inPlace bool, change func(match) match) {
	if leaf == nil {
		return
	}
	for _, ip := range leaf.IPAddresses {
		if len(ip.To16()) > 0 {
			ix.update(addresses, string(ip.To16()), inPlace, change)
		}
	}
	for _, name := range leaf.DNSNames {
		key := lower(name)
		parent, wild := strings.CutPrefix(key, "*.")
		_, address := parseAddress(key)
		switch {
		case wild && isHostname([]byte(parent)):
			ix.wild.Store(true)
			ix.update(wildcards, parent, inPlace, change)
		case address && isHostname([]byte(key)):
			ix.update(hostnames, key+".", inPlace, change) // without the dot, it is an address
		case !address && key != "" && key != ".":
			ix.update(hostnames, key, inPlace, change)
		}
	}
}

func (ix *index) update(t table, key string, inPlace bool, change func(match) match) {
	p := ix.shardOf(key)
	s := *p.Load()
	switch {
	case s[t] == nil:
		s[t] = make(map[string]match)
	case !inPlace:
		s[t] = maps.Clone(s[t])
	}
	if m := change(s[t][key]); m.Certificate != nil {
		s[t][strings.Clone(key)] = m // near to the other keys, as the names in certificates are not
	} else {
		delete(s[t], key)
	}
	p.Store(&s)
}

// lower is x509's toLowerCaseASCII.
func lower(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return 'A' <= r && r <= 'Z' }) {
		return string(appendLower(nil, s))
	}
	return s
}

func appendLower(b []byte, s string) []byte {
	b = append(b, s...)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] += 'a' - 'A'
		}
	}
	return b
}

// isHostname is x509's validHostname, for a name without a dot at its end.
func isHostname(name []byte) bool {
	start := true // of a label
	for _, c := range name {
		switch {
		case c == '.' && !start:
			start = true
			continue
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-' && !start:
		default:
			return false
		}
		start = false
	}
	return !start
}

// parseAddress parses what VerifyHostname takes for an address.
func parseAddress(name string) (addr netip.Addr, ok bool) {
	if name == "" {
		return addr, false
	}
	last := name[len(name)-1]
	if (last < '0' || last > '9') && last != ']' && strings.IndexByte(name, ':') < 0 {
		return addr, false // spares a host's name the error
	}
	if len(name) >= 3 && name[0] == '[' && last == ']' {
		name = name[1 : len(name)-1]
	}
	addr, err := netip.ParseAddr(name)
	return addr, err == nil && addr.Zone() == ""
}

// A kindTable has the kinds that an engine has met.
type kindTable struct {
	mu    sync.Mutex
	known map[kindKey]*kind
}

// A kindKey tells kinds apart that are known well enough.
type kindKey struct {
	key       string
	decrypter bool
	schemes   string // that the certificate is limited to
}

// probedSchemes are those of TLS 1.3 and the older ones that it shares its registry with.
var probedSchemes = []tls.SignatureScheme{
	tls.ECDSAWithP256AndSHA256, tls.PSSWithSHA256, tls.Ed25519, tls.ECDSAWithP384AndSHA384, tls.PSSWithSHA384,
	tls.PSSWithSHA512, tls.ECDSAWithP521AndSHA512, tls.PKCS1WithSHA256, tls.PKCS1WithSHA384, tls.PKCS1WithSHA512,
	tls.PKCS1WithSHA1, tls.ECDSAWithSHA1,
}

// of returns the kind of cert, probing the first of each.
func (t *kindTable) of(cert *tls.Certificate) *kind {
	key, ok := keyOfKind(cert)
	if !ok {
		return probe(cert)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil {
		t.known = make(map[kindKey]*kind)
	}
	if t.known[key] == nil {
		t.known[key] = probe(cert)
	}
	return t.known[key]
}

func keyOfKind(cert *tls.Certificate) (k kindKey, ok bool) {
	if cert.SupportedSignatureAlgorithms != nil {
		k.schemes = fmt.Sprint(cert.SupportedSignatureAlgorithms)
	}
	_, k.decrypter = cert.PrivateKey.(crypto.Decrypter)
	signer, ok := cert.PrivateKey.(crypto.Signer)
	if !ok {
		return k, !k.decrypter
	}
	switch pub := signer.Public().(type) {
	case *rsa.PublicKey:
		k.key = fmt.Sprint("RSA ", pub.Size())
	case ed25519.PublicKey:
		k.key = "Ed25519"
	case *ecdsa.PublicKey:
		switch pub.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			k.key = pub.Curve.Params().Name
		}
	}
	return k, k.key != ""
}

// probe asks crypto/tls what suits cert in TLS 1.3, and so heeds GODEBUG and FIPS 140.
func probe(cert *tls.Certificate) *kind {
	k := new(kind)
	for _, s := range probedSchemes {
		hello := tls.ClientHelloInfo{SupportedVersions: []uint16{tls.VersionTLS13}, SignatureSchemes: []tls.SignatureScheme{s}}
		if hello.SupportsCertificate(cert) == nil {
			k.schemes = append(k.schemes, s)
		}
	}
	return k
}

// arrays are the indexes over the certificates of configurations that come anew
// with each connection, for as long as the array exists that these have in common.
type arrays struct {
	mu      sync.Mutex
	indexes map[array]*index
}

type array struct {
	first weak.Pointer[tls.Certificate]
	n     int
}

// over returns the index over certs, which are two or more.
func (a *arrays) over(certs []tls.Certificate, kinds *kindTable) *index {
	key := array{weak.Make(&certs[0]), len(certs)}
	a.mu.Lock()
	ix := a.indexes[key]
	a.mu.Unlock()
	if ix != nil {
		return ix
	}
	ix = newIndex(1)
	for i := range certs {
		leaf, _ := parseLeaf(&certs[i])
		ix.add(&Certificate{order: uint64(i), kind: kinds.of(&certs[i])}, namesLeaf(&certs[i], leaf), true)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.indexes == nil {
		a.indexes = make(map[array]*index)
	}
	if a.indexes[key] == nil {
		a.indexes[key] = ix
		runtime.AddCleanup(&certs[0], forgetArray, forgotten{weak.Make(a), key})
	}
	return ix
}

type forgotten struct {
	arrays weak.Pointer[arrays] // the engine's, see release
	array
}

func forgetArray(f forgotten) {
	a := f.arrays.Value()
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.indexes, f.array)
}
