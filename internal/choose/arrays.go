package choose

import (
	"crypto/tls"
	"crypto/x509"
	"runtime"
	"sync"
	"weak"
)

// Arrays chooses among the certificates of configurations that come anew with each
// connection. It keeps an index for as long as the array exists that these have in
// common: the elements of an array must not change once it has been given to Choose.
// The zero value is ready.
type Arrays struct {
	kinds   Kinds
	mu      sync.Mutex
	indexes map[array]*Index[nobody]
}

// Nobody owns a slot of what is an element of an array, by its order.
type nobody struct{}

type array struct {
	first weak.Pointer[tls.Certificate]
	n     int
}

// Len returns how many arrays have an index now.
func (a *Arrays) Len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.indexes)
}

// Choose returns the one among certs that crypto/tls would choose for hello, or nil if
// there are none. tls13 tells whether the server takes TLS 1.3.
func (a *Arrays) Choose(certs []tls.Certificate, hello *tls.ClientHelloInfo, tls13 bool) *tls.Certificate {
	switch len(certs) {
	case 0:
		return nil
	case 1:
		return &certs[0]
	}
	s, _ := a.over(certs).choose(hello, tls13, certs)
	return &certs[s.Order]
}

// over returns the index over certs.
func (a *Arrays) over(certs []tls.Certificate) *Index[nobody] {
	key := array{weak.Make(&certs[0]), len(certs)}
	a.mu.Lock()
	ix := a.indexes[key]
	a.mu.Unlock()
	if ix != nil {
		return ix
	}
	ix = NewFixedIndex[nobody]()
	for i := range certs {
		ix.add(&Slot[nobody]{Order: uint64(i), Kind: a.kinds.Of(&certs[i])}, leafOf(&certs[i]))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.indexes == nil {
		a.indexes = make(map[array]*Index[nobody])
	}
	if a.indexes[key] == nil {
		a.indexes[key] = ix
		runtime.AddCleanup(&certs[0], forget, forgotten{weak.Make(a), key})
	}
	return ix
}

// A forgotten array must lead to nobody who uses it: what a cleanup leads to is kept
// until it runs.
type forgotten struct {
	arrays weak.Pointer[Arrays]
	array
}

func forget(f forgotten) {
	a := f.arrays.Value()
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.indexes, f.array)
}

// leafOf returns the certificate from which crypto/tls takes the names of cert, or nil if
// that does not parse.
func leafOf(cert *tls.Certificate) *x509.Certificate {
	if cert.Leaf != nil || len(cert.Certificate) == 0 {
		return cert.Leaf
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil
	}
	return leaf
}
