// Package quiet keeps a log short: of what befalls many at once, an outage of a host with all the certificates
// that are asked about there, one line a minute is enough. A Limiter says which.
package quiet

import "time"

const (
	pause = time.Minute
	most  = 1024 // pairs that are remembered, before those that may speak again are forgotten
)

// A Limiter remembers who spoke last, of whom and of what kind. The zero value is ready. It is not safe for
// concurrent use, and remembers no more than twice what was allowed within a minute, or a thousand.
type Limiter[K comparable] struct {
	spoke map[pair[K]]time.Time
	sweep int // at so many, those that may speak again are forgotten
}

type pair[K comparable] struct {
	about string
	kind  K
}

// Allow reports whether a line of a kind about somebody may be written now: the last one was a minute ago or
// more. now is best a time with a monotonic reading. Of nobody, which is "", everything may be said.
func (l *Limiter[K]) Allow(about string, kind K, now time.Time) bool {
	if about == "" {
		return true
	}
	p := pair[K]{about, kind}
	if last, ok := l.spoke[p]; ok && now.Sub(last) < pause {
		return false
	}
	if l.spoke == nil {
		l.spoke = make(map[pair[K]]time.Time)
	}
	if len(l.spoke) >= max(l.sweep, most) {
		for p, last := range l.spoke {
			if now.Sub(last) >= pause {
				delete(l.spoke, p)
			}
		}
		l.sweep = 2 * len(l.spoke)
	}
	l.spoke[p] = now
	return true
}
