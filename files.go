package staple

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/go-staple/staple/internal/lookout"
	"github.com/go-staple/staple/internal/name"
	"github.com/go-staple/staple/internal/pemfiles"
	"github.com/go-staple/staple/internal/wall"
)

// Files is a certificate chain and its key in PEM files that somebody else renews: see [Stapler.AddFiles]. Its
// methods are safe for concurrent use.
type Files struct {
	engine  *engine
	names   pemfiles.Names
	post    lookout.Post
	serving atomic.Pointer[Certificate]

	// Guarded by engine.mu.
	watch   *pemfiles.Watch
	sum     [sha256.Size]byte // of the contents that what serves came from
	next    *successor        // nil: there is none
	err     error             // why what is in the files is not taken; nil: it is
	begun   uint64            // looks
	decided uint64            // the last of them that found what to make of the files
	unsure  time.Time         // since when none did; zero: the last one did
	removed bool
	changed signal
}

// A successor waits for its turn to serve.
type successor struct {
	*Certificate
	sum   [sha256.Size]byte
	since time.Time
}

const successorWaits = 10 * time.Second // for its first staple, at most

var errWriting, errHangs = errors.New("staple: the files change all the time"), errors.New("staple: the file system does not answer")

// AddFiles adds the certificate chain in certFile, the leaf and then who issued it, with the key in keyFile, perhaps
// the same file, as [Stapler.Add] adds what [tls.LoadX509KeyPair] returns, and fails as these do. Until Remove or
// Close it follows the files, however they are renewed: servers with TLSConfig(nil) and the methods of the result
// serve what is in them.
//
// What is new is noticed within ten seconds, or five minutes if size and times of the files are as before. It serves
// once it is stapled; without a staple, if its first round ends so, or after ten seconds; at once, if what it
// replaces has expired or is revoked; never before its NotBefore. What is revoked, or Must-Staple and not stapled,
// does not replace what clients accept; nor do files that are missing, broken or do not fit, which are logged.
func (s *Stapler) AddFiles(certFile, keyFile string) (*Files, error) {
	g := s.start()
	f := &Files{engine: g, names: pemfiles.Names{Cert: certFile, Key: keyFile}}
	seen := f.names.Look(pemfiles.Stamp{}, true)
	pair, err := seen.Pair()
	if err != nil {
		return nil, err
	}
	c, err := g.add(pair, false)
	if err != nil {
		return nil, err
	}
	f.serving.Store(c)
	f.sum, f.watch = seen.Sum, pemfiles.NewWatch(seen, time.Now())
	f.post = lookout.Post{Due: f.watch.Next, Look: f.look, Hangs: func() { f.note(errHangs) }, Ended: f.changed.broadcast}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.files.Add(&f.post)
	return f, nil
}

// Certificate returns the handle to what serves now. Neither it nor its methods follow the files: for a tls.Config,
// use those of Files.
func (f *Files) Certificate() *Certificate { return f.serving.Load() }

// GetCertificate is for tls.Config.GetCertificate: that of what serves now.
func (f *Files) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return f.serving.Load().GetCertificate(hello)
}

// GetClientCertificate is the same for tls.Config.GetClientCertificate.
func (f *Files) GetClientCertificate(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return f.serving.Load().GetClientCertificate(info)
}

// Reload looks at the files now, as on SIGHUP, and waits until what is there serves, a second at least if that is
// new. The error says why it cannot, or not yet. If ctx ends first, that is joined with its error.
func (f *Files) Reload(ctx context.Context) error {
	g := f.engine
	g.mu.Lock()
	look := f.begun + 1
	f.watch.Force(time.Now())
	g.files.Arm()
	g.mu.Unlock()
	var outcome, missing error
	err := g.awaitSignal(ctx, &f.changed, func() bool {
		outcome, missing = nil, nil
		switch {
		case f.removed || g.closed:
			outcome = fmt.Errorf("staple: %s: %w", f.names, ErrClosed)
		case f.decided < look:
			missing = fmt.Errorf("staple: what is in %s is not certain yet", f.names)
		case f.err != nil:
			outcome = f.err
		case f.next != nil:
			if _, outcome = f.mayServe(wall.Now()); outcome == nil {
				missing = errors.Join(fmt.Errorf("staple: the certificate of %s waits for its staple", f.names), f.next.entry().err)
			}
		}
		return missing == nil
	})
	if err != nil {
		return errors.Join(err, missing)
	}
	return outcome
}

// Remove ends the care for the files, and for what serves.
func (f *Files) Remove() {
	g := f.engine
	g.mu.Lock()
	defer g.mu.Unlock()
	f.removed = true
	g.drop(f.serving.Load())
	f.wait(nil)
	f.changed.broadcast()
	g.files.Remove(&f.post)
}

// wait makes next the successor, instead of another one there may be. engine.mu is held.
func (f *Files) wait(next *successor) {
	g := f.engine
	if f.next != nil {
		g.drop(f.next.Certificate)
	}
	if f.next = next; next != nil {
		g.files.waiting[f] = true
	} else {
		delete(g.files.waiting, f)
	}
}

// mayServe reports whether the successor may serve at now. If there is an error, nobody need wait for that. engine.mu is
// held.
func (f *Files) mayServe(now time.Time) (bool, error) {
	c := f.serving.Load()
	old, next := c.entry(), f.next.entry()
	good := !now.Before(old.leaf.NotBefore) && now.Before(old.leaf.NotAfter) && !old.known.Revoked()
	switch {
	case now.Before(next.leaf.NotBefore):
		return false, fmt.Errorf("staple: the certificate of %s is not valid before %s, and serves from then on", f.names, name.Time(next.leaf.NotBefore))
	case !good:
		return true, nil
	case next.known.Revoked():
		return false, fmt.Errorf("staple: the certificate of %s: %w", f.names, ErrRevoked)
	}
	if _, stapled := f.next.current(); stapled {
		return true, nil
	}
	if _, stapled := c.current(); next.mustStaple && (stapled || !old.mustStaple) {
		if next.final { // it never will be
			return false, fmt.Errorf("staple: the certificate of %s is Must-Staple and has no staple: %w", f.names, next.err)
		}
		return false, nil
	}
	return next.settled || time.Since(f.next.since) >= successorWaits, nil
}

// wakes returns how long the successor waits at most until time alone lets it serve, or ends it. engine.mu is held.
func (f *Files) wakes(now time.Time) time.Duration {
	if ok, _ := f.mayServe(now); ok {
		return 0
	}
	wait := pemfiles.Every
	old, next := f.serving.Load().entry().leaf, f.next.entry().leaf
	for _, d := range []time.Duration{successorWaits - time.Since(f.next.since), next.NotBefore.Sub(now), next.NotAfter.Sub(now), old.NotAfter.Sub(now)} {
		if d > 0 {
			wait = min(wait, d)
		}
	}
	return wait
}

// settle has the successor serve if it may, and ends it if it has expired, with engine.mu held.
func (f *Files) settle(now time.Time) {
	g := f.engine
	if leaf := f.next.entry().leaf; !now.Before(leaf.NotAfter) {
		f.wait(nil)
		f.err = f.errExpired(leaf.NotAfter)
	} else if ok, _ := f.mayServe(now); ok {
		old, next := f.serving.Load(), f.next
		f.next, f.sum = nil, next.sum
		f.wait(nil)
		f.serving.Store(next.Certificate)
		g.succeed(old, next.Certificate)
		g.notices.log(slog.LevelDebug, "a certificate has succeeded another", next.entry(), f.attrs()...)
	} else {
		return
	}
	f.changed.broadcast()
	g.driver.run()
}

func (f *Files) errExpired(at time.Time) error {
	return fmt.Errorf("staple: the certificate of %s expired at %s", f.names, name.Time(at))
}

// look looks at the files, with engine.mu held, which it lets go meanwhile.
func (f *Files) look() {
	g := f.engine
	f.begun++
	number := f.begun
	last, read := f.watch.Begin(time.Now())
	var seen pemfiles.Look
	g.unlocked(func() { seen = f.names.Look(last, read) })
	if f.removed || g.closed {
		return
	}
	verdict := f.watch.Ended(seen, time.Now())
	if verdict == pemfiles.Changed {
		f.take(&seen)
	}
	if seen.Read && verdict != pemfiles.Unsettled {
		f.decided = number
	}
	trouble := f.err
	if trouble == nil && f.next != nil && f.next.entry().known.Revoked() {
		_, trouble = f.mayServe(wall.Now())
	}
	switch {
	case verdict != pemfiles.Unsettled:
		f.unsure = time.Time{}
		f.note(trouble)
	case f.unsure.IsZero():
		f.unsure = time.Now()
	case time.Since(f.unsure) > 2*pemfiles.Apart:
		f.note(errWriting)
	}
	f.changed.broadcast()
}

// take does with what is in the files what there is to do, with engine.mu held, which it lets go meanwhile.
func (f *Files) take(seen *pemfiles.Look) {
	g := f.engine
	switch {
	case seen.Sum == f.sum: // again
		f.err = nil
		f.wait(nil)
		return
	case f.next != nil && seen.Sum == f.next.sum: // again
		f.err = nil
		return
	}
	var c *Certificate
	err := errEnded // unless that comes back
	defer func() { f.err = err }()
	g.unlocked(func() { c, err = f.load(seen) })
	switch {
	case err != nil:
	case f.removed || g.closed:
		g.drop(c)
	default:
		f.wait(&successor{c, seen.Sum, time.Now()})
	}
}

// load adds what was seen, hidden.
func (f *Files) load(seen *pemfiles.Look) (*Certificate, error) {
	pair, err := seen.WholePair()
	if err != nil {
		return nil, err
	}
	leaf, err := parseLeaf(&pair)
	if err != nil {
		return nil, err
	}
	if !wall.Now().Before(leaf.NotAfter) {
		return nil, f.errExpired(leaf.NotAfter)
	}
	return f.engine.add(pair, true)
}

// note tells the log of trouble, if it is time, or that it is over, with engine.mu held.
func (f *Files) note(trouble error) {
	now := time.Now()
	lasted := f.watch.Lasted(now).Round(time.Second)
	e := f.serving.Load().entry()
	switch f.watch.Note(trouble, now) {
	case pemfiles.Trouble:
		f.engine.notices.log(slog.LevelWarn, "the files of a certificate cannot be used", e, f.attrs(slog.Any("error", trouble))...)
	case pemfiles.Over:
		f.engine.notices.log(slog.LevelInfo, "the files of a certificate can be used again", e, f.attrs(slog.Duration("lasted", lasted))...)
	}
}

func (f *Files) attrs(more ...slog.Attr) []slog.Attr {
	return append([]slog.Attr{slog.String("file", f.names.Cert), slog.String("key_file", f.names.Key)}, more...)
}

// A watcher has all Files looked at. engine.mu guards it.
type watcher struct {
	lookout.Lookout
	waiting map[*Files]bool // those with a successor
}

func (w *watcher) init(g *engine) {
	w.waiting = make(map[*Files]bool)
	w.Lock, w.Crew = &g.mu, &g.wg
	w.First = func() {
		for f := range w.waiting {
			f.settle(wall.Now())
		}
	}
	w.Wait = func() time.Duration {
		wait := pemfiles.Every // also for successors: the clock may be set
		for f := range w.waiting {
			wait = min(wait, f.wakes(wall.Now()))
		}
		return wait
	}
}

// stir sees whether a successor may serve now that something about certificates has changed, with mu held.
func (w *watcher) stir() {
	for f := range w.waiting {
		f.changed.broadcast()
		if ok, _ := f.mayServe(wall.Now()); ok {
			w.Arm()
		}
	}
}
