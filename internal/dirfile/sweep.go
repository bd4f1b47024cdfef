package dirfile

import (
	"os"
	"sync"
	"time"
)

// Batch is how many files of a directory are looked at at a time.
const Batch = 256

// A Sweeper looks through directories now and then, a few files each time that it is called, since there may be a
// hundred thousand. While it is at it, it keeps a directory open, so that it goes on where it was. The zero value is
// ready.
type Sweeper struct {
	mu   sync.Mutex
	dirs map[string]*sweep
}

type sweep struct {
	began time.Time
	at    *os.File // where it is; nil: it has been through, or somebody looks
	looks bool
}

// Sweep calls look for the next Batch of what is in dir. Once all of it was looked at, that begins anew when it is so long
// since it last began.
func (s *Sweeper) Sweep(dir string, now time.Time, every time.Duration, look func(os.FileInfo)) {
	at := s.take(dir, now, every)
	if at == nil {
		return
	}
	files, err := at.ReadDir(Batch)
	for _, f := range files {
		if info, err := f.Info(); err == nil {
			look(info)
		}
	}
	if err != nil || len(files) < Batch {
		at.Close()
		at = nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirs[dir].at, s.dirs[dir].looks = at, false
}

// take returns dir, to be read on; nil if there is nothing to do.
func (s *Sweeper) take(dir string, now time.Time, every time.Duration) *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.dirs[dir]
	switch {
	case w == nil:
		if s.dirs == nil {
			s.dirs = make(map[string]*sweep)
		}
		w = new(sweep)
		s.dirs[dir] = w
	case w.looks, w.at == nil && now.Sub(w.began).Abs() < every:
		return nil
	}
	if w.at == nil {
		w.began = now
		if w.at, _ = os.Open(dir); w.at == nil {
			return nil
		}
	}
	at := w.at
	w.at, w.looks = nil, true
	return at
}
