package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/go-staple/staple"
)

// A folder keeps the certificates of a directory in service.
type folder struct {
	dir     string
	wait    time.Duration // how long a new certificate waits for its first staple
	stapler *staple.Stapler
	log     *slog.Logger

	inService atomic.Pointer[map[string]*cert] // by host name or wildcard, in lower case; replaced as a whole

	mu    sync.Mutex  // guards what follows
	seen  os.FileInfo // of the directory
	files map[string]*file
	certs []*cert
}

// A file is what was seen of one: hashes of its contents, or of the error from reading it; zero: there is none.
type file struct {
	seen  [sha256.Size]byte // by the last scan
	since time.Time         // when that was new
	used  [sha256.Size]byte // when it was last acted on
	err   error             // what was wrong with it then
}

// A cert is the certificate of a file. A file has several while one succeeds another.
type cert struct {
	*staple.Certificate
	file  string
	names []string // in lower case
	leaf  *x509.Certificate
	must  bool      // Must-Staple
	added time.Time // when its file was first seen to have it
	gone  time.Time // when its file lost it; zero: it has not
	ready bool      // need not wait for its staple any more
}

// getCertificate is for tls.Config.GetCertificate. For want of a certificate, crypto/tls sends the alert
// unrecognized_name.
func (f *folder) getCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := lookup(*f.inService.Load(), hello.ServerName); c != nil {
		return c.GetCertificate(hello)
	}
	return nil, nil
}

// scan looks for files that have come, changed or gone. But for the first time, it acts on what two scans in
// a row have seen the same, and so leaves alone a file that is being written. A file that cannot be used
// counts as one that has not changed. Another directory without files, where a volume was mounted, is an error.
func (f *folder) scan(now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return err
	}
	info, err := os.Stat(f.dir)
	if err != nil {
		return err
	}
	some := false
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".pem" {
			continue
		}
		some = true
		if f.files[e.Name()] == nil {
			f.files[e.Name()] = new(file)
		}
	}
	if f.seen != nil && !some && !os.SameFile(info, f.seen) {
		return fmt.Errorf("%s is another directory than before, without any .pem file", f.dir)
	}
	f.seen = info
	first := f.inService.Load() == nil
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		// Its time and size need not change with its contents, so it is read each time.
		data, err := read(filepath.Join(f.dir, name))
		missing := errors.Is(err, fs.ErrNotExist)
		var sum [sha256.Size]byte
		if err == nil {
			sum = sha256.Sum256(data)
		} else if !missing {
			sum = sha256.Sum256([]byte(err.Error()))
		}
		file := f.files[name]
		quiet := sum == file.seen || first
		if sum != file.seen {
			file.seen, file.since = sum, now
		}
		switch {
		case quiet && missing:
			f.retire(name, now)
			delete(f.files, name)
		case quiet && sum != file.used:
			file.used = sum
			var c *cert
			if err == nil {
				c, err = f.load(data)
			}
			if file.err = err; err != nil {
				f.log.Warn("file cannot be used", "file", name, "error", err)
				continue
			}
			f.retire(name, now)
			c.file, c.added = name, file.since
			f.certs = append(f.certs, c)
		}
	}
	return nil
}

// read reads a regular file. Others might keep it waiting.
func read(name string) ([]byte, error) {
	if info, err := os.Stat(name); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	return os.ReadFile(name)
}

// load puts the certificate in data under the Stapler's care.
func (f *folder) load(data []byte) (*cert, error) {
	blocks := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		blocks++
	}
	if blocks < bytes.Count(data, []byte("-----BEGIN ")) { // X509KeyPair would do without the rest of the chain
		return nil, errors.New("a PEM block is damaged, or its end is missing")
	}
	pair, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, err
	}
	if len(pair.Leaf.DNSNames) == 0 {
		return nil, errors.New("the certificate has no DNS name")
	}
	c, err := f.stapler.Add(pair)
	if err != nil {
		return nil, err
	}
	names := strings.Fields(strings.ToLower(strings.Join(pair.Leaf.DNSNames, " ")))
	return &cert{Certificate: c, names: names, leaf: pair.Leaf, must: c.Status().MustStaple}, nil
}

// retire notes that the file has lost its certificate, with mu held.
func (f *folder) retire(name string, now time.Time) {
	for _, c := range f.certs {
		if c.file == name {
			c.gone = now // anew for one that serves on: what it waits for may be retired here, too
		}
	}
}

// update puts certificates in service, and takes those out that have gone.
func (f *folder) update(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	waiting := now.Add(1) // since when the one that has waited longest does, or a file that scan waits for
	for _, file := range f.files {
		if file.seen != file.used && file.since.Before(waiting) {
			waiting = file.since
		}
	}
	for _, c := range f.certs {
		if c.ready || !c.gone.IsZero() {
			continue
		}
		// There is no point in waiting if nobody can be asked for a staple, nor for that of a revoked
		// certificate, which does not help it (Certificate.Wait returns at once for both). They are
		// served: which certificate a host has is for the directory to say, and the Stapler logs a
		// revocation as an error. And a responder that is down must not keep a certificate out of
		// service until its predecessor has expired: most clients can do without the staple. For those
		// that cannot, see rank.
		st := c.Status()
		c.ready = st.Stapled || st.Revoked || errors.Is(st.Err, staple.ErrNoResponder) || now.Sub(c.added) >= f.wait
		if c.ready {
			f.log.Info("certificate in service", "file", c.file, "names", c.names, "stapled", st.Stapled)
		} else if c.added.Before(waiting) {
			waiting = c.added
		}
	}
	// One that is gone serves on while any waits that came no later, since that may be its successor, from
	// the same file or from another; and while it is of higher rank than its successor.
	table, successors := f.table(now), make(map[string]int) // the highest rank of those that are ready
	for _, c := range f.certs {
		if c.ready && c.gone.IsZero() {
			rank := c.rank(now)
			for _, name := range c.names {
				successors[name] = max(successors[name], rank)
			}
		}
	}
	n := len(f.certs)
	f.certs = slices.DeleteFunc(f.certs, func(c *cert) bool {
		better := func(name string) bool {
			rank := successors[name]
			return table[name] == c && 0 < rank && rank < c.rank(now)
		}
		if c.gone.IsZero() || c.ready && (!waiting.After(c.gone) || slices.ContainsFunc(c.names, better)) {
			return false
		}
		c.Remove() // handshakes that have just chosen it are still served
		f.log.Info("certificate removed", "file", c.file, "names", c.names)
		return true
	})
	if len(f.certs) < n {
		table = f.table(now)
	}
	f.inService.Store(&table)
}

// table returns what serves each name: of the certificates of the highest rank the one issued last, unless
// that is gone and the other came after it.
func (f *folder) table(now time.Time) map[string]*cert {
	table := make(map[string]*cert)
	for _, c := range f.certs {
		if !c.ready {
			continue
		}
		rank := c.rank(now)
		for _, name := range c.names {
			have := table[name]
			if have == nil || rank > have.rank(now) || rank == have.rank(now) &&
				(!have.gone.IsZero() || !c.leaf.NotBefore.Before(have.leaf.NotBefore)) {
				table[name] = c
			}
		}
	}
	return table
}

// rank tells how a client would take c now.
func (c *cert) rank(now time.Time) int {
	switch {
	case now.Before(c.leaf.NotBefore), now.After(c.leaf.NotAfter):
		return 1
	case c.must && len(c.TLS().OCSPStaple) == 0:
		return 2
	}
	return 3
}

// ServeHTTP lists the certificates, and the files that cannot be used, in plain text.
func (f *folder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	list := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer list.Flush() // with mu unlocked, since w may be slow
	f.mu.Lock()
	defer f.mu.Unlock()
	row := func(file, state, staple string, names []string, err error) {
		text := ""
		if err != nil {
			text = fmt.Sprintf("%q", err.Error()) // in one line
		}
		fmt.Fprintf(list, "%s\t%s\t%s\t%s\t%s\n", file, state, staple, strings.Join(names, " "), text)
	}
	row("FILE", "STATE", "STAPLE", []string{"NAMES"}, nil)
	table := *f.inService.Load()
	for _, c := range f.certs {
		state, staple := "waiting", "none"
		if slices.ContainsFunc(c.names, func(name string) bool { return table[name] == c }) {
			state = "serving"
		} else if c.ready {
			state = "standby" // another has its names
		}
		st := c.Status()
		if st.Stapled {
			staple = "until " + st.Expires.UTC().Format(time.RFC3339)
		} else if st.Revoked {
			staple = "revoked"
		}
		row(c.file, state, staple, c.names, st.Err)
	}
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		if err := f.files[name].err; err != nil {
			row(name, "unusable", "", nil, err)
		}
	}
}
