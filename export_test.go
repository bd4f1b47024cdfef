package staple

import "time"

// ErrOlder is for tests.
var ErrOlder = errOlder

// SetTimeout sets the timeout of a request, for tests.
func (f *HTTPFetcher) SetTimeout(d time.Duration) { f.timeout = d }

// CloseIdle is closeIdle, for tests.
func (f *HTTPFetcher) CloseIdle() { f.closeIdle() }

// MadeClient reports whether f has a client of its own, for tests.
func (f *HTTPFetcher) MadeClient() bool { return f.own != nil }

// Remembered returns how many responders f remembers, for tests.
func (f *HTTPFetcher) Remembered() int { return f.responders.Len() }
