package schedule

import (
	"time"

	"github.com/go-staple/staple/internal/wall"
)

// Held is the response that is held for a certificate.
type Held struct {
	ThisUpdate time.Time
	Until      time.Time // its end by itself
	End        time.Time // Until, or the end of the certificate if that is earlier
	Revoked    bool      // it says so
	Quiet      bool      // nobody wants to know that it ends
}

// Due reports whether a successor is wanted already.
func (h Held) Due(now time.Time) bool {
	return !now.Before(h.ThisUpdate.Add(min(h.Until.Sub(h.ThisUpdate)/2, 4*24*time.Hour) / 10 * 9))
}

// held is Held in Unix microseconds.
type held struct {
	start, until int64
	from         int64 // when it came, or start: its moments are parts of what was left then
	end          int64 // 0: nothing is held
	revoked      bool
	quiet        bool
	stage        int8 // how many of the moments in its life have passed
}

const (
	maxAge       = 4 * day     // from thisUpdate to the next request: clients refuse responses of more than 7 to 10 days
	maxUnchanged = day         // between requests that bring nothing newer
	maxRevoked   = hour        // the same about what is revoked
	minPause     = second      // between two rounds of one certificate
	maxMinPause  = 10 * minute // the same while a staple is held: a thousandth of its validity, but not more
	firstBackoff = 10 * second // the most that the first retry waits
	maxBackoff   = hour
	maxBare      = 10 * minute // the most that a retry waits for a first staple, for the first fewRetries
	fewRetries   = 50
	firstTurn    = 5 * second // that a first round waits for its turn during the pause of an authority
)

// moments in the life of a staple, by what is left of it then: the first is a quarter, the second a twentieth of what
// was left when it came, since some responders make responses that are old from the beginning.
const moments = 3

// moment returns the n-th moment in the life of h.
func (h *held) moment(n int8) int64 {
	whole := h.end - h.from
	switch n {
	case 0:
		return h.end - whole/4
	case 1:
		return h.end - whole/20
	}
	return h.end
}

// age counts the moments that have passed, and returns how many there are.
func (h *held) age(now int64) int8 {
	for h.end > 0 && h.stage < moments && h.moment(h.stage) <= now {
		h.stage++
	}
	return h.stage
}

// current reports whether h is a response that has not ended.
func (h *held) current(now int64) bool { return h.end > now }

// minPause returns the least pause between two rounds while h is held.
func (h *held) minPause() int64 { return max(min((h.until-h.start)/1000, maxMinPause), minPause) }

// patience returns how long a certificate can do without a round: half of what is left of its staple, or an
// hour if it has none.
func (h *held) patience(now int64) int64 {
	if !h.current(now) {
		return maxBackoff
	}
	return (h.end - now) / 2
}

// clip returns at, or the end of the staple if that is earlier: what ends is asked about at its end once more.
func (it *Item) clip(at, now int64) int64 {
	switch {
	case !it.held.current(now) || it.held.revoked || at < it.held.end:
		return at
	case it.held.end >= it.expires:
		return far // the certificate ends then
	}
	return it.held.end
}

// refresh returns when to ask for a successor of what is held, which has just come: at half of its validity,
// give or take a tenth of that half so that certificates that came together part, and after maxAge at the latest.
func (it *Item) refresh(now int64, c chance) int64 {
	h := &it.held
	half := (h.until - h.start) / 2
	earliest := min(half, maxAge) / 10 * 9
	latest := min(half+half/10, maxAge)
	at := h.start + earliest + c.jitter(latest-earliest)
	if h.revoked {
		at = min(at, now+maxRevoked-c.jitter(maxRevoked/4))
	}
	return it.clip(max(at, now), now)
}

// unchanged returns when to ask again, now that there is no successor yet.
func (it *Item) unchanged(now int64, c chance) int64 {
	h := &it.held
	switch {
	case h.revoked: // which does not end with its response
		return now + maxRevoked - c.jitter(maxRevoked/4)
	case !h.current(now):
		return now + it.bare(now, c)
	}
	pause := min((h.end-now)/2, maxUnchanged)
	return it.clip(now+max(pause-c.jitter(pause/10), h.minPause()), now)
}

// latest returns when it must be asked about at the latest by the times of what is held, whatever the clock
// said before.
func (it *Item) latest(now int64) int64 {
	h := &it.held
	if h.revoked {
		return now + maxRevoked
	}
	at := h.start + min((h.until-h.start)/20*11, maxAge)
	if at <= now {
		at = now + min(max((h.end-now)/2, h.minPause()), maxUnchanged)
	}
	return it.clip(at, now)
}

// retry returns when to ask again after a round that failed, and through the fault of nobody but it: after
// a pause that grows exponentially, with full jitter, bounded so that several tries remain before the staple
// ends and that a staple which is missing is not missing for long, and as long as the responder asked for.
func (it *Item) retry(retryAfter time.Duration, now int64, c chance) int64 {
	h := &it.held
	var pause int64
	switch {
	case h.revoked:
		pause = max(c.backoff(it.tries, maxRevoked), h.minPause())
	case h.current(now):
		pause = max(c.backoff(it.tries, min(maxBackoff, h.patience(now)/4)), h.minPause())
	case h.end > 0:
		pause = it.bare(now, c)
	case it.tries < fewRetries:
		pause = c.backoff(it.tries, maxBare)
	default:
		pause = c.backoff(it.tries, maxBackoff)
	}
	if asked := retryAfter.Microseconds(); asked > pause {
		pause = max(min(asked+c.jitter(asked/10), h.patience(now)), pause)
	}
	return it.clip(now+pause, now)
}

// bare returns how long to wait for the next round about one whose staple has ended: a round that began before
// that was not the last try yet.
func (it *Item) bare(now int64, c chance) int64 {
	if it.began.at < it.held.end || it.held.end == 0 {
		return minPause
	}
	return c.ladder(now - it.held.end)
}

// A chance returns a random number below n.
type chance func(n int64) int64

// ladder returns how long to wait for the next request about what has been without a staple for so long.
func (c chance) ladder(bare int64) int64 {
	most := hour
	if bare < day {
		most = min(5*minute, 4*second+bare/10)
	}
	return most/2 + c.jitter(most/2)
}

// backoff returns a random duration of at most firstBackoff, doubled with each failure after the first, and at
// most limit.
func (c chance) backoff(failures int32, limit int64) int64 {
	ceiling := limit
	if n := failures - 1; n < 16 && firstBackoff<<max(n, 0) < ceiling {
		ceiling = firstBackoff << max(n, 0)
	}
	return minPause + c.jitter(ceiling-minPause)
}

// jitter returns a random duration below d, and 0 if d is not positive.
func (c chance) jitter(d int64) int64 {
	if d <= 0 {
		return 0
	}
	return c(d)
}

func (h Held) micro() held {
	if h == (Held{}) {
		return held{}
	}
	return held{start: wall.MicroOf(h.ThisUpdate), until: wall.MicroOf(h.Until), end: wall.MicroOf(h.End),
		revoked: h.Revoked, quiet: h.Quiet}
}
