// Package pemfiles follows a certificate chain and its key through two PEM files that somebody else renews. [Names.Look]
// is one look at them, which reads regular files alone and no more than a megabyte of each. A [Watch] decides when to look
// and when to believe what is there; it knows no clock, no goroutine and no lock. What becomes of a certificate that
// was taken is for others to decide.
package pemfiles

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/go-staple/staple/internal/dirfile"
)

const most = 1 << 20 // bytes of a file

// Names are those of the file with the chain and the file with the key, which may be one.
type Names struct{ Cert, Key string }

func (n Names) String() string {
	if n.Cert == n.Key {
		return n.Cert
	}
	return n.Cert + " and " + n.Key
}

// A Stamp is what tells without reading that files are others, behind all symbolic links.
type Stamp [2]stamp

type stamp struct {
	info os.FileInfo
	err  string
}

func stampOf(name string) stamp {
	info, err := os.Stat(name)
	if err != nil {
		return stamp{err: err.Error()}
	}
	os.SameFile(info, info) // has Windows look now which file it is, rather than when it is compared
	return stamp{info: info}
}

func (s stamp) is(o stamp) bool {
	if s.info == nil || o.info == nil {
		return s.info == nil && o.info == nil && s.err == o.err
	}
	return s.info.Size() == o.info.Size() && s.info.ModTime().Equal(o.info.ModTime()) && s.info.Mode() == o.info.Mode() &&
		os.SameFile(s.info, o.info)
}

// A Look is what one look has found.
type Look struct {
	Read bool              // the contents too; else they are thought to be the same
	Sum  [sha256.Size]byte // of the contents, or of what hindered reading them

	names     Names
	stamp     Stamp // from before they were read
	cert, key []byte
	err       error
}

var before atomic.Pointer[func(Names)]

// Before has f called before each look, for tests, and returns what ends that.
func Before(f func(Names)) (restore func()) {
	before.Store(&f)
	return func() { before.Store(nil) }
}

// Look looks at the files, and reads them if read is true or they are not those of last.
func (n Names) Look(last Stamp, read bool) Look {
	if f := before.Load(); f != nil {
		(*f)(n)
	}
	l := Look{names: n, stamp: Stamp{stampOf(n.Cert), stampOf(n.Key)}}
	if l.Read = read || !l.stamp[0].is(last[0]) || !l.stamp[1].is(last[1]); !l.Read {
		return l
	}
	ctx := context.Background()
	if l.cert, l.err = dirfile.Read(ctx, n.Cert, most); l.err == nil {
		l.key, l.err = dirfile.Read(ctx, n.Key, most)
	}
	h := sha256.New()
	if l.err != nil {
		h.Write([]byte("error" + l.err.Error()))
	} else {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(l.cert))))
		h.Write(l.cert)
		h.Write(l.key)
	}
	h.Sum(l.Sum[:0])
	return l
}

// Pair returns what was read, as tls.LoadX509KeyPair does. Errors name the files.
func (l *Look) Pair() (tls.Certificate, error) {
	if l.err != nil {
		return tls.Certificate{}, fmt.Errorf("staple: the certificate of %s cannot be read: %w", l.names, l.err)
	}
	pair, err := tls.X509KeyPair(l.cert, l.key)
	switch {
	case err == nil:
	case bytes.Contains(l.key, []byte("ENCRYPTED")):
		err = fmt.Errorf("staple: the certificate of %s cannot be used: the key is encrypted: %w", l.names, err)
	default:
		err = fmt.Errorf("staple: the certificate of %s cannot be used: %w", l.names, err)
	}
	return pair, err
}

// WholePair is Pair, but fails where tls.LoadX509KeyPair would leave out what of a chain is damaged or half written.
func (l *Look) WholePair() (tls.Certificate, error) {
	pair, err := l.Pair()
	if err != nil {
		return pair, err
	}
	blocks := 0
	for block, rest := pem.Decode(l.cert); block != nil; block, rest = pem.Decode(rest) {
		blocks++
	}
	if blocks < bytes.Count(l.cert, []byte("-----BEGIN ")) {
		err = fmt.Errorf("staple: the certificate of %s cannot be used: a PEM block is damaged, or its end is missing", l.names)
	}
	return pair, err
}
