package keep

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/dirfile"
	"github.com/go-staple/staple/internal/wall"
)

const (
	lookEvery   = time.Second
	againAfter  = 250 * time.Millisecond // what is missing or broken, which may be because somebody replaces it
	unsettled   = 2 * time.Second        // for so long a file may change without another time or size
	rereadAfter = 5 * time.Minute
	renewing    = 700 * time.Millisecond // that the old response may wait for the new one, once the chain is another
	maxFile     = 256 << 10              // a larger one is no chain
)

// A file is one that may have a chain.
type file struct {
	name, out string // out is the response's
	named     bool   // by PATH, and not found in a folder

	info    os.FileInfo // when it was read; nil: it has not been
	readAt  time.Time
	sum     [sha256.Size]byte // of its contents
	missing bool              // the last look saw none
	err     error             // why it has no chain that can be used; nil: it has, or it is none of ours
	errSeen string            // by the last look
	told    string            // what of this was logged
	leaving bool              // its chain is gone, and its response is still to be removed

	// While it has a chain.
	cert *staple.Certificate
	leaf *x509.Certificate
	key  string // what a cache calls the leaf

	there   response
	grace   time.Time // until then the old chain's response may stay
	due     time.Time // when to settle it; zero: when there is news
	failed  error     // why what should be there is not
	retries int       // of that in a row
	undone  int       // how often somebody else has changed what was there
	calm    time.Time // until then that is not looked at
	offered string    // the response that HAProxy was told of
}

// A folder is one of the paths.
type folder struct {
	modTime time.Time
	names   []string // of what is in it and may have a chain
	err     string   // that was logged
	listed  time.Time
}

func hasControl(name string) bool { return strings.ContainsFunc(name, unicode.IsControl) }

// look looks at all files, and returns when to look again.
func (k *keeper) look(ctx context.Context, force bool) (next time.Time) {
	now := time.Now()
	k.found = make(map[string]bool, len(k.files))
	for _, path := range k.paths {
		k.lookAt(filepath.Clean(path), now, force)
	}
	hurry := false
	for name, f := range k.files {
		if ctx.Err() != nil {
			return now
		}
		if !k.found[name] {
			f.err = nil
			if f.cert != nil && !f.missing {
				f.missing, hurry = true, true
			} else if k.forget(f) {
				delete(k.files, name)
			}
			continue
		}
		if k.examine(f, now, force) {
			hurry = true
		}
		k.compare(f)
	}
	if hurry {
		return now.Add(againAfter)
	}
	return time.Now().Add(lookEvery)
}

// lookAt finds the files of a path.
func (k *keeper) lookAt(path string, now time.Time, force bool) {
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		if err == nil || k.folders[path] == nil {
			k.find(path, true)
			return
		}
		d := k.folders[path]
		if errors.Is(err, fs.ErrNotExist) {
			d.names, d.listed = nil, time.Time{} // it may come back
		}
		k.folderFails(path, d, err)
	} else if d := k.folders[path]; d == nil || force || !info.ModTime().Equal(d.modTime) ||
		now.Sub(d.modTime).Abs() < unsettled || now.Sub(d.listed).Abs() > time.Minute {
		if d == nil {
			d = new(folder)
			k.folders[path] = d
		}
		entries, err := os.ReadDir(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			k.folderFails(path, d, err)
		} else {
			d.modTime, d.listed, d.names = info.ModTime(), now, nil
			for _, e := range entries {
				if t := e.Type(); (t.IsRegular() || t == fs.ModeSymlink) && e.Name()[0] != '.' {
					d.names = append(d.names, e.Name())
				}
			}
			if d.err != "" {
				k.log.Info("the folder can be read again", "folder", path)
				d.err = ""
			}
		}
	}
	for _, name := range k.folders[path].names {
		k.find(filepath.Join(path, name), false)
	}
}

func (k *keeper) folderFails(path string, d *folder, err error) {
	if d.err != err.Error() {
		d.err = err.Error()
		k.log.Warn("a folder cannot be read", "folder", path, "error", nameless(err))
	}
}

// find notes that a file is to be looked at.
func (k *keeper) find(name string, named bool) {
	if strings.HasSuffix(name, k.suffix) {
		return
	}
	if k.files[name] == nil {
		k.files[name] = &file{name: name, out: name + k.suffix}
	}
	k.found[name] = true
	k.files[name].named = k.files[name].named || named
}

// examine sees whether the chain in f has changed, and reports whether to look again soon.
func (k *keeper) examine(f *file, now time.Time, force bool) (hurry bool) {
	info, err := os.Stat(f.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		again := !f.missing
		f.missing = true
		if again && !k.once {
			return true
		}
		k.forget(f)
		f.info = nil
		if f.named {
			k.fail(f, fmt.Errorf("there is no such file; a response is kept once there is"))
		}
		return false
	case err == nil && !info.Mode().IsRegular():
		err = errNotRegular
	case err == nil && f.info != nil && !force && f.known() && os.SameFile(info, f.info) && info.Size() == f.info.Size() &&
		info.ModTime().Equal(f.info.ModTime()) && now.Sub(f.readAt).Abs() < rereadAfter && f.readAt.Sub(info.ModTime()) > unsettled:
		f.missing = false
		return false
	}
	f.missing = false
	var data []byte
	if err == nil {
		data, err = dirfile.Read(context.Background(), f.name, maxFile)
	}
	if err != nil {
		f.info = nil // so that it is read again
		if f.named || f.cert != nil || info != nil && info.Mode().IsRegular() && info.Size() <= maxFile {
			return k.fail(f, err)
		}
		return false
	}
	defer clear(data) // there may be a key in it
	sum := sha256.Sum256(data)
	same := f.info != nil && sum == f.sum && f.known()
	f.info, f.readAt, f.sum = info, now, sum
	if same {
		return false
	}
	chain, leaf, err := parseChain(data)
	switch {
	case err == nil && hasControl(f.name):
		err = errors.New("there is a control character in its name: rename it")
	case err == errNone && len(bytes.TrimSpace(data)) > 0, err == errKey, err == errCA:
		if k.forget(f); !f.named {
			err = nil
		}
	}
	if err == nil && leaf != nil {
		if err = k.take(f, chain, leaf); err != nil {
			k.forget(f)
		}
	}
	if err != nil && (f.named || f.cert != nil || err != errNone) {
		return k.fail(f, err)
	}
	f.err, f.errSeen = nil, ""
	if f.told != "" {
		f.told = ""
		k.log.Info("the file can be used again", "file", f.name)
	}
	return false
}

// known reports whether nothing more is to be said of what was read.
func (f *file) known() bool { return f.errSeen == f.told }

// fail notes that f cannot be used as it is: what was taken from it stays. Somebody may just be writing it, so it is logged
// when the next look sees the same, for which fail asks.
func (k *keeper) fail(f *file, err error) (hurry bool) {
	f.err = err
	switch text := err.Error(); {
	case f.errSeen != text:
		f.errSeen = text
		return true
	case f.told != text && !k.once:
		f.told = text
		k.log.Warn("a file cannot be used", "file", f.name, "error", nameless(err))
	}
	return false
}

// nameless returns what an error about a file says without naming it.
func nameless(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

var (
	errNone       = errors.New("there is no certificate in it: give the PEM file of a chain, the server's certificate first")
	errKey        = errors.New("there is a key and no certificate in it: give the PEM file of the chain")
	errCA         = errors.New("the first certificate in it is a CA's: the server's own has to come first")
	errDamaged    = errors.New("a PEM block in it is damaged, or not there to its end")
	errNotRegular = errors.New("not a regular file")
)

// parseChain returns the certificates of a PEM file, of which the first is that of a server.
func parseChain(data []byte) (chain [][]byte, leaf *x509.Certificate, err error) {
	blocks, key := 0, false
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		blocks++
		switch {
		case block.Type == "CERTIFICATE" || block.Type == "X509 CERTIFICATE":
			chain = append(chain, block.Bytes)
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			key = true
			clear(block.Bytes)
		}
	}
	certs := bytes.Contains(data, []byte("-----BEGIN CERTIFICATE-----")) || bytes.Contains(data, []byte("-----BEGIN X509 CERTIFICATE-----"))
	switch {
	case !certs && (key || bytes.Contains(data, []byte("PRIVATE KEY-----"))):
		return nil, nil, errKey
	case !certs:
		return nil, nil, errNone
	case blocks < bytes.Count(data, []byte("-----BEGIN ")) || len(chain) == 0:
		return nil, nil, errDamaged
	}
	leaf, err = x509.ParseCertificate(chain[0])
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("the first certificate in it does not parse: %w", err)
	case leaf.BasicConstraintsValid && leaf.IsCA:
		return nil, nil, errCA
	}
	return chain, leaf, nil
}

// take puts a chain in the place of the one that f had.
func (k *keeper) take(f *file, chain [][]byte, leaf *x509.Certificate) error {
	key, old := keyOf(leaf.Raw), f.cert
	if old == nil {
		f.there = lie(f.out)
	}
	k.seeds.set(key, f.there.der)
	c, err := k.stapler.Add(tls.Certificate{Certificate: chain, Leaf: leaf})
	if err != nil {
		return err
	}
	k.release(f)
	if old != nil && f.key != key {
		f.grace, f.there.end = wall.Now().Add(renewing), time.Time{}
	}
	f.cert, f.leaf, f.key, f.leaving = c, leaf, key, false
	k.keeping[key] = append(k.keeping[key], f)
	k.settle(f)
	return nil
}

// release ends the care for f's chain.
func (k *keeper) release(f *file) {
	if f.cert == nil {
		return
	}
	f.cert.Remove()
	var rest []*file
	for _, other := range k.keeping[f.key] {
		if other != f {
			rest = append(rest, other)
		}
	}
	if k.keeping[f.key] = rest; rest == nil {
		delete(k.keeping, f.key)
		k.seeds.drop(f.key)
	}
	f.cert = nil
}

// forget drops f's chain, and its response: of a file that was named, also one from an earlier time. It reports whether
// that is done with.
func (k *keeper) forget(f *file) (done bool) {
	switch {
	case f.cert != nil:
		k.release(f)
		f.leaving = true
		f.grace, f.due, f.offered = time.Time{}, time.Time{}, ""
	case f.named && f.missing && !f.leaving:
		f.there = lie(f.out)
		f.leaving = f.there.isResponse
	}
	if !f.leaving {
		return true
	}
	if err := k.put(f, nil); err == nil {
		k.log.Info("response removed", "file", f.out, "state", "the chain is gone")
		f.settled()
	} else if f.there.foreign == nil {
		k.failed(f, "the response of a chain that is gone cannot be removed", err)
		return false
	}
	f.leaving = false
	return true
}
