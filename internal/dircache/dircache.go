// Package dircache keeps OCSP responses in a directory that several processes share, one file for each: which names files
// have, which process has the lock for one, and which have no use any more. How files are read and replaced is for package
// dirfile.
//
//	d := dircache.Dir("/var/cache/staple")
//	err := d.Put(ctx, key, der)
//	der, err = d.Get(ctx, key) // os.ErrNotExist: there is none
//	unlock, ok, err := d.TryLock(ctx, key, 10*time.Second)
//
// The names of files under way, and of locks, begin with a dot, which those of responses cannot. It does not look into a
// response but to see whether it has ended long ago, and trusts nothing that it finds.
package dircache

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-staple/staple/internal/dirfile"
	"github.com/go-staple/staple/internal/ocspder"
)

const (
	most       = 1 << 20              // a larger file is no OCSP response
	tempPrefix = ".staple-"           // of files being written
	tempAge    = time.Hour            // then its writer has crashed
	goneAge    = 7 * 24 * time.Hour   // since the response in a file has ended
	revokedAge = 825 * 24 * time.Hour // the same of a revocation, which counts as long as its certificate is valid
	trusted    = 24 * time.Hour       // since thisUpdate, without nextUpdate
	sweepEvery = 24 * time.Hour
)

// A Dir is the name of the directory, which is made by the first Put.
type Dir string

// path returns the name of key's file. Only plain names are keys.
func (d Dir) path(key string) (string, error) {
	if key == "" || len(key) > 200 || key[0] == '.' || strings.ContainsFunc(key, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.+", r))
	}) {
		return "", fmt.Errorf("staple: %q is no key for a DirCache", key)
	}
	return filepath.Join(string(d), key), nil
}

// Get returns the contents of key's file, or an error that is os.ErrNotExist if there is none.
func (d Dir) Get(ctx context.Context, key string) ([]byte, error) {
	name, err := d.path(key)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	return dirfile.Read(ctx, name, most)
}

// Put writes key's file.
func (d Dir) Put(ctx context.Context, key string, data []byte) error {
	name, err := d.path(key)
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case len(data) > most:
		return fmt.Errorf("staple: %d bytes are too many for an OCSP response", len(data))
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	d.sweep(ctx)
	return dirfile.Write(ctx, string(d), tempPrefix, name, data)
}

// Delete removes key's file.
func (d Dir) Delete(ctx context.Context, key string) error {
	name, err := d.path(key)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	if err := dirfile.Remove(ctx, name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// TryLock takes the lock for key, for ttl at most, and reports whether it got it. The lock is a
// file, which names its holder. One that is older than ttl was left by a process
// that crashed, and is taken over; the clocks of the processes must agree on that.
func (d Dir) TryLock(ctx context.Context, key string, ttl time.Duration) (unlock func(), ok bool, err error) {
	if _, err = d.path(key); err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = os.MkdirAll(string(d), 0o700)
	}
	if err != nil {
		return nil, false, err
	}
	name := filepath.Join(string(d), tempPrefix+"lock-"+key)
	if info, err := os.Lstat(name); err == nil && time.Since(info.ModTime()).Abs() > ttl {
		// Renamed, rather than removed, so that of several who see this one succeeds.
		aside := filepath.Join(string(d), tempPrefix+rand.Text())
		if dirfile.Rename(ctx, name, aside) == nil {
			_ = dirfile.Remove(ctx, aside)
		}
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	holder := rand.Text()
	_, err = f.WriteString(holder)
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		_ = dirfile.Remove(ctx, name)
		return nil, false, err
	}
	return func() {
		ctx := context.WithoutCancel(ctx)
		if data, err := dirfile.Read(ctx, name, most); err == nil && string(data) == holder {
			_ = dirfile.Remove(ctx, name)
		}
	}, true, nil
}

// sweeper sweeps the directories of all DirCaches of this process, each once a day.
var sweeper dirfile.Sweeper

// sweep removes what has no use any more, among a few of the files.
func (d Dir) sweep(ctx context.Context) {
	now := time.Now()
	sweeper.Sweep(string(d), now, sweepEvery, func(info os.FileInfo) {
		name, age := filepath.Join(string(d), info.Name()), now.Sub(info.ModTime())
		switch {
		case !info.Mode().IsRegular():
		case strings.HasPrefix(info.Name(), tempPrefix):
			if age > tempAge {
				os.Remove(name)
			}
		case isOurs(info.Name()) && age > goneAge:
			data, _ := dirfile.Read(ctx, name, most)
			if age < revokedAge && ocspder.SaysRevoked(data) {
				return // which outlasts its response
			}
			if end := ocspder.ClaimedEnd(data, nil, trusted); !end.IsZero() && now.Sub(end) > goneAge {
				os.Remove(name)
			}
		}
	})
}

// isOurs reports whether a file's name is one that a Stapler would give it.
func isOurs(name string) bool {
	return len(name) == 64 && strings.Trim(name, "0123456789abcdef") == ""
}
