// Package dirfile reads, replaces and removes small files in a directory that several processes share. Readers see a
// file as it was or as it is, never half of one, and hold it for no longer than it takes to read. Where a system lets
// nobody replace or remove a file that somebody reads, as Windows does, that is tried again, for half a second at most.
//
// A [Sweeper] looks for what has no use any more, a few files at a time.
package dirfile

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"time"
)

const tries = 10 // with pauses between that double, from a millisecond to 256: half a second in all

// What a test has behave as another system's does.
var (
	stat   = os.Stat
	rename = os.Rename
	remove = os.Remove
	busy   = inUse
)

// again calls f until it does not fail because somebody else has the file open, or it has been tried often enough, or
// ctx ends.
func again(ctx context.Context, f func() error) error {
	pause := time.Millisecond
	for i := 1; ; i++ {
		err := f()
		if err == nil || i == tries || !busy(err) {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
		pause *= 2
	}
}

// Rename renames a file, in the place of one that there may be.
func Rename(ctx context.Context, from, to string) error {
	return again(ctx, func() error { return rename(from, to) })
}

// Remove removes a file.
func Remove(ctx context.Context, name string) error {
	return again(ctx, func() error { return remove(name) })
}

// Read returns the contents of a regular file, which are no more than most bytes. It waits for nobody, whatever is in
// the place of the file.
func Read(ctx context.Context, name string, most int64) ([]byte, error) {
	info, err := stat(name)
	if err != nil {
		return nil, err
	}
	if err := readable(name, info, most); err != nil {
		return nil, err
	}
	var f *os.File
	if err := again(ctx, func() (err error) { f, err = open(name); return err }); err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil { // it may be another by now
		return nil, err
	}
	if err := readable(name, info, most); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Grow(int(info.Size()) + bytes.MinRead) // for one read, and one that finds the end
	_, err = b.ReadFrom(io.LimitReader(f, most+1))
	if err == nil && int64(b.Len()) > most {
		err = tooLarge(name, most)
	}
	return b.Bytes(), err
}

func readable(name string, info os.FileInfo, most int64) error {
	switch {
	case !info.Mode().IsRegular():
		return fmt.Errorf("staple: %s is not a regular file", name) // to open a pipe, or to read it, would wait
	case info.Size() > most:
		return tooLarge(name, most)
	}
	return nil
}

func tooLarge(name string, most int64) error {
	return fmt.Errorf("staple: %s has more than %d bytes", name, most)
}

// Write makes data the contents of a file in dir, by way of a temporary one, whose name begins with prefix. All of it is
// on the disk when Write returns.
func Write(ctx context.Context, dir, prefix, name string, data []byte) error {
	f, err := os.CreateTemp(dir, prefix+"*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = Rename(ctx, f.Name(), name)
	}
	if err != nil {
		_ = Remove(ctx, f.Name())
		return err
	}
	syncDir(dir)
	return nil
}

// syncDir makes a rename durable, where the system has a way to: the file is in place already.
func syncDir(name string) {
	if f, err := os.Open(name); err == nil {
		_ = f.Sync()
		f.Close()
	}
}
