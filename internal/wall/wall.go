// Package wall is the wall clock, which decides when a staple ends. The monotonic
// clock stands still while a machine is suspended and knows nothing of a clock that is
// set; in a synctest bubble the two never part, so that tests set this one.
package wall

import "time"

var clock = time.Now

// Now returns the time, without a monotonic reading.
func Now() time.Time { return clock().Round(0) }

// Micro returns the time in Unix microseconds.
func Micro() int64 { return clock().UnixMicro() }

// MicroOf returns t in Unix microseconds, of those after 1970 that there are: 1 at least, and
// the end of time.Time's text form at most.
func MicroOf(t time.Time) int64 {
	const year9999 = 253402300799
	return min(max(t.Unix(), 1), year9999)*1e6 + int64(t.Nanosecond()/1e3)
}

// Time returns the time of MicroOf, in UTC.
func Time(micro int64) time.Time { return time.UnixMicro(micro).UTC() }

// Set makes f the clock, for tests, and returns what puts the system's back. Nobody may read the
// clock meanwhile.
func Set(f func() time.Time) (restore func()) {
	clock = f
	return func() { clock = time.Now }
}
