package keep

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/dirfile"
	"github.com/go-staple/staple/internal/issuers"
	"github.com/go-staple/staple/internal/ocspder"
	"github.com/go-staple/staple/internal/wall"
	"golang.org/x/crypto/ocsp"
)

const (
	tempPrefix  = ".staple-"
	tempAge     = time.Hour // then its writer has crashed
	maxResponse = 1 << 20
	firstRetry  = time.Second
	lastRetry   = time.Minute
)

// A response is what lies, or does not, where a response is to be.
type response struct {
	info       os.FileInfo // nil: nothing
	der        []byte      // nil: nobody knows
	isResponse bool        // in form
	end        time.Time   // of one that is known to be good; zero: none is
	foreign    error       // why it is not ours to replace
}

// lie returns what lies at name.
func lie(name string) (r response) {
	info, err := os.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return response{}
	case err != nil:
		return response{foreign: err}
	case info.Mode().Type() == fs.ModeSymlink:
		return response{info: info} // replaced, and never followed
	case !info.Mode().IsRegular():
		return response{info: info, foreign: errNotRegular}
	}
	r.info = info
	r.der, err = dirfile.Read(context.Background(), name, maxResponse)
	switch {
	case info.Size() > maxResponse:
		r.foreign = fmt.Errorf("it has more than %d bytes, and is no response", maxResponse)
	case err == nil && bytes.Contains(r.der, []byte("-----BEGIN ")):
		r.foreign = errors.New("there is PEM in it, and it is no response")
	}
	if err != nil || r.foreign != nil {
		r.der = nil
	}
	r.isResponse = r.der != nil && !ocspder.ClaimedEnd(r.der, nil, time.Hour).IsZero()
	return r
}

// settle makes what lies beside f what should lie there, as far as that can be.
func (k *keeper) settle(f *file) {
	if f.cert == nil {
		return
	}
	now := wall.Now()
	want := f.cert.TLS().OCSPStaple
	st := f.cert.Status()
	f.due = time.Time{}
	switch {
	case want != nil:
		f.grace, f.due = time.Time{}, st.Expires
	case now.Before(f.grace): // for the new chain's
		f.due = f.grace
		k.expect(f.due)
		return
	case st.State == staple.StateWaiting && f.unjudged(now):
		return // once its issuer is found
	}
	switch {
	case want != nil:
		k.offer(f, want)
	case st.Revoked && (f.there.isResponse || f.offered != ""): // no command drops the good one that HAProxy may have
		k.offer(f, f.cert.Response())
	}
	if f.there.info != nil && want != nil && bytes.Equal(f.there.der, want) || f.there.info == nil && want == nil && f.there.foreign == nil {
		f.there.end = f.due
		f.settled()
		k.expect(f.due)
		return
	}
	if err := k.put(f, want); err != nil {
		doing := "a response cannot be written"
		if want == nil {
			doing = "a response that is good no more cannot be removed"
		}
		k.failed(f, doing, err)
		if f.there.end.IsZero() {
			f.there.end = f.goodUntil(now)
		}
		if want != nil && !now.Before(f.there.end) && f.there.info != nil && f.there.foreign == nil {
			_ = k.put(f, nil) // or an earlier one stays beyond its end
		}
		if want != nil || f.there.foreign == nil {
			f.retries++
			again := now.Add(min(firstRetry<<min(f.retries-1, 10), lastRetry))
			for _, t := range []time.Time{again, f.there.end} {
				if f.due.IsZero() || now.Before(t) && t.Before(f.due) {
					f.due = t
				}
			}
		}
	} else {
		f.settled()
		if f.there.end = f.due; want != nil {
			k.log.Info("response written", "file", f.out, "expires", st.Expires)
		} else {
			k.log.Info("response removed", "file", f.out, "state", st.State.String())
		}
	}
	k.expect(f.due)
}

// failed notes what keeps f from being settled, and logs it when it is new.
func (k *keeper) failed(f *file, doing string, err error) {
	err = nameless(err)
	if !k.once && (f.failed == nil || f.failed.Error() != err.Error()) {
		k.log.Warn(doing, "file", f.out, "error", err)
	}
	f.failed = err
}

func (f *file) settled() { f.failed, f.retries = nil, 0 }

// unjudged reports whether what lies beside f may be good, and only its issuer is not known yet.
func (f *file) unjudged(now time.Time) bool {
	if !f.there.isResponse || !now.Before(ocspder.ClaimedEnd(f.there.der, f.leaf, time.Hour)) {
		return false
	}
	return f.issuer() == nil
}

// issuer returns who issued the leaf, by the chain, or nil.
func (f *file) issuer() *x509.Certificate {
	var rest []*x509.Certificate
	for _, der := range f.cert.TLS().Certificate[1:] {
		if c, err := issuers.Intern(der); err == nil {
			rest = append(rest, c)
		}
	}
	return issuers.Of(f.leaf, rest)
}

// goodUntil returns the end of what lies beside f if that is known to be good, or zero.
func (f *file) goodUntil(now time.Time) time.Time {
	issuer := f.issuer()
	if issuer == nil || !f.there.isResponse {
		return time.Time{}
	}
	r, end, err := new(staple.ResponseVerifier).Verify(f.there.der, f.leaf, issuer, now)
	if err != nil || r.Status != ocsp.Good {
		return time.Time{}
	}
	return end
}

// offer has HAProxy told of a response.
func (k *keeper) offer(f *file, der []byte) {
	if k.socket != nil && f.offered != string(der) {
		f.offered = string(der)
		k.socket.add(f.key, f.out, der)
	}
}

// compare sees whether somebody else has changed what lies beside f: it is taken if it is better, and replaced otherwise.
func (k *keeper) compare(f *file) {
	now := time.Now()
	if f.cert == nil || f.failed != nil || now.Before(f.calm) {
		return
	}
	info, err := os.Lstat(f.out)
	same := err != nil && f.there.info == nil ||
		err == nil && f.there.info != nil && os.SameFile(info, f.there.info) && info.Size() == f.there.info.Size() && info.ModTime().Equal(f.there.info.ModTime())
	if same {
		return
	}
	f.undone++ // by another keeper, perhaps, which does the same
	f.calm = now.Add(min(firstRetry<<min(f.undone, 10), lastRetry))
	f.there = lie(f.out)
	k.seeds.set(f.key, f.there.der)
	if c, err := k.stapler.Add(tls.Certificate{Certificate: f.cert.TLS().Certificate}); err == nil {
		f.cert.Remove()
		f.cert = c
	}
	k.settle(f)
}

// put makes der lie beside f; nil: nothing. It follows no symbolic link, and replaces nothing that is not its own.
func (k *keeper) put(f *file, der []byte) (err error) {
	if f.there.foreign != nil {
		f.there = lie(f.out) // it may have gone
	}
	if f.there.foreign != nil {
		if f.there.info == nil {
			return f.there.foreign
		}
		return fmt.Errorf("what lies there is left alone: %w", f.there.foreign)
	}
	dir, base := filepath.Split(f.out)
	root, err := os.OpenRoot(filepath.Clean(dir))
	switch {
	case err != nil && der == nil && errors.Is(err, fs.ErrNotExist):
		f.there = response{}
		return nil
	case err != nil:
		return err
	}
	defer root.Close()
	if der == nil {
		if err = root.Remove(base); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		f.there = response{}
	} else {
		k.sweep(root, dir)
		if err = replace(root, base, der, f.info); err != nil {
			return err
		}
		f.there.info, _ = root.Lstat(base)
		f.there.der, f.there.isResponse = der, true
	}
	if k.runner != nil {
		k.runner.add(f.out)
	}
	return nil
}

// replace puts a file with data in the place of name, with owner and mode of the one that like describes; nil: our own.
func replace(root *os.Root, name string, data []byte, like os.FileInfo) error {
	temp := tempPrefix + rand.Text()
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && like != nil {
		giveTo(f, like)
		err = f.Chmod(like.Mode() & 0o666)
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = root.Rename(temp, name)
	}
	if err != nil {
		_ = root.Remove(temp)
		return err
	}
	if d, err := root.Open("."); err == nil { // so that it lasts
		_ = d.Sync()
		d.Close()
	}
	return nil
}

// sweep removes what a crash has left of replace, once for each folder.
func (k *keeper) sweep(root *os.Root, dir string) {
	if k.swept[dir] {
		return
	}
	k.swept[dir] = true
	d, err := root.Open(".")
	if err != nil {
		return
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, name := range names {
		if random, is := strings.CutPrefix(name, tempPrefix); is && len(random) == len(rand.Text()) {
			if info, err := root.Lstat(name); err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > tempAge {
				_ = root.Remove(name)
			}
		}
	}
}
