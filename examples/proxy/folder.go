package main

import (
	"crypto/tls"
	"errors"
	"fmt"
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

// A folder keeps the certificates of a directory in service. It looks which files there are; what becomes of each is for the
// Stapler to see.
type folder struct {
	dir     string
	wait    time.Duration // how long the certificate of a new file waits for its first staple
	stapler *staple.Stapler
	log     *slog.Logger

	inService atomic.Pointer[map[string]*file] // by host name or wildcard, in lower case; replaced as a whole

	mu    sync.Mutex  // guards what follows
	seen  os.FileInfo // of the directory
	files map[string]*file
}

// A file is one of the directory.
type file struct {
	name    string
	pair    *staple.Files       // nil: it cannot be used
	err     error               // why
	said    bool                // the log was told of that
	added   time.Time           // when its first certificate was
	gone    time.Time           // since when it is; zero: it is there
	ready   bool                // need not wait for its first staple any more
	serving *staple.Certificate // what the log was told of
}

// getCertificate is for tls.Config.GetCertificate. For want of a certificate, crypto/tls sends the alert
// unrecognized_name.
func (f *folder) getCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if file := lookup(*f.inService.Load(), hello.ServerName); file != nil {
		return file.pair.GetCertificate(hello)
	}
	return nil, nil
}

// scan looks for files that have come or gone. Another directory without files, where a volume was mounted, is an error.
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
	there := make(map[string]bool)
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".pem" {
			there[e.Name()] = true
			if f.files[e.Name()] == nil {
				f.files[e.Name()] = &file{name: e.Name()}
			}
		}
	}
	if f.seen != nil && len(there) == 0 && !os.SameFile(info, f.seen) {
		return fmt.Errorf("%s is another directory than before, without any .pem file", f.dir)
	}
	f.seen = info
	for name, file := range f.files {
		switch {
		case there[name]:
			file.gone = time.Time{}
			if file.pair == nil {
				f.add(file, now)
			}
		case file.pair == nil:
			delete(f.files, name)
		case file.gone.IsZero():
			file.gone = now
		}
	}
	return nil
}

// add puts what is in a file under the Stapler's care, which follows it from then on. If it cannot be used, the log is told when
// that was so twice: somebody may be writing it.
func (f *folder) add(file *file, now time.Time) {
	path := filepath.Join(f.dir, file.name)
	pair, err := f.stapler.AddFiles(path, path)
	if err == nil && len(pair.Certificate().Status().Leaf.DNSNames) == 0 {
		pair.Remove()
		err = errors.New("the certificate has no DNS name")
	}
	switch again := err != nil && file.err != nil && err.Error() == file.err.Error(); {
	case err == nil:
		file.pair, file.added = pair, now
	case !again:
		file.said = false
	case !file.said:
		file.said = true
		f.log.Warn("file cannot be used", "file", file.name, "error", err)
	}
	file.err = err
}

// update puts certificates in service, and takes those out whose files have gone.
func (f *folder) update(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	waiting := false
	for _, file := range f.files {
		if file.pair == nil {
			waiting = waiting || !file.said
			continue
		}
		// There is no point in waiting if nobody can be asked for a staple, nor for that of a revoked certificate, which
		// does not help it. And a responder that is down must not keep a certificate out of service: most clients can do
		// without the staple. What succeeds a certificate in its file, the Stapler puts in service by itself.
		st := file.pair.Certificate().Status()
		file.ready = file.ready || st.Stapled || st.Revoked || errors.Is(st.Err, staple.ErrNoResponder) || now.Sub(file.added) >= f.wait
		waiting = waiting || !file.ready && file.gone.IsZero()
	}
	table := make(map[string]*file)
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		file := f.files[name]
		if file.pair == nil {
			continue
		}
		c := file.pair.Certificate()
		names := c.Status().Leaf.DNSNames
		// Those of files that have gone serve on while any waits, since that may be their successor.
		if gone := !file.gone.IsZero() && now.After(file.gone); gone && !(waiting && file.ready) {
			file.pair.Remove() // handshakes that have just chosen it are still served
			delete(f.files, name)
			f.log.Info("certificate removed", "file", name, "names", names)
			continue
		}
		if !file.ready {
			continue
		}
		if file.serving != c {
			file.serving = c
			f.log.Info("certificate in service", "file", name, "names", names, "stapled", c.Status().Stapled)
		}
		for _, host := range names {
			host = strings.ToLower(host)
			if have := table[host]; have == nil || file.goesBefore(have, now) {
				table[host] = file
			}
		}
	}
	f.inService.Store(&table)
}

// goesBefore reports whether file rather than another serves a name that both have: because a client would sooner take its
// certificate, because the other has gone, or because it was issued later.
func (file *file) goesBefore(other *file, now time.Time) bool {
	st, was := file.pair.Certificate().Status(), other.pair.Certificate().Status()
	switch a, b := rank(st, now), rank(was, now); {
	case a != b:
		return a > b
	case file.gone.IsZero() != other.gone.IsZero():
		return file.gone.IsZero()
	}
	return !st.Leaf.NotBefore.Before(was.Leaf.NotBefore)
}

// rank tells how a client would take a certificate now.
func rank(st staple.Status, now time.Time) int {
	switch {
	case now.Before(st.Leaf.NotBefore), now.After(st.Leaf.NotAfter):
		return 1
	case st.MustStaple && !st.Stapled:
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
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		file := f.files[name]
		if file.pair == nil {
			row(name, "unusable", "", nil, file.err)
			continue
		}
		st := file.pair.Certificate().Status()
		state, staple := "waiting", "none"
		if slices.ContainsFunc(st.Leaf.DNSNames, func(name string) bool { return table[strings.ToLower(name)] == file }) {
			state = "serving"
		} else if file.ready {
			state = "standby" // another has its names
		}
		if st.Stapled {
			staple = "until " + st.Expires.UTC().Format(time.RFC3339)
		} else if st.Revoked {
			staple = "revoked"
		}
		row(name, state, staple, st.Leaf.DNSNames, st.Err)
	}
}
