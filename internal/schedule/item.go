package schedule

import (
	"cmp"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/go-staple/staple/internal/wall"
)

// A State tells where an Item is.
type State int8

const (
	Idle      State = iota // it is new, or there is nobody to ask
	Scheduled              // for later
	Waiting                // due: for a worker, or for the end of a pause
	Following              // due, while another one of its route with the same end is asked about
	Working                // a worker has it
	Storing                // its round has ended, and the worker still has it
)

func (s State) String() string {
	if s < Idle || s > Storing {
		return fmt.Sprintf("State(%d)", int8(s))
	}
	return [...]string{"idle", "scheduled", "waiting", "following", "working", "storing"}[s]
}

// A class is how urgent a round is.
type class int8

const (
	fresh     class = iota // it has no staple, and nobody was asked about it so far
	unstapled              // it has no staple
	nearEnd                // a quarter of its staple's validity is left, or less
	routine
	patient // it has no staple, and failed three times or more, or is revoked: others may have something to lose
	classes
)

// A Source is a URL that can be asked, and the host that it is at.
type Source struct{ Host, URL string }

// SourceOf returns the Source of a URL. Its host has the port, but for the usual one of http: whoever listens at one port
// says nothing of another.
func SourceOf(s string) Source {
	at := Source{URL: s}
	if u, err := url.Parse(s); err == nil {
		at.Host = strings.ToLower(u.Host)
		switch {
		case u.Scheme == "http":
			at.Host = strings.TrimSuffix(at.Host, ":80")
		case u.Scheme == "https" && u.Port() == "" && at.Host != "":
			at.Host = strings.TrimSuffix(at.Host, ":") + ":443"
		}
	}
	return at
}

// An Item is a certificate, as far as the schedule is concerned. Its zero value is to be added.
type Item struct {
	Owner any // not looked at

	visits
	rank
	route   *route
	via     *node // the end of the route that a worker has taken; nil: it only peeks, or does not work
	cohort  *cohort
	held    held
	due     int64
	expires int64  // the certificate
	began   start  // its last round
	waits   int64  // until when it waits for its first turn during an authority's pause
	shared  uint64 // the turn when a round of it failed last through the fault of others; 0: none since it succeeded
	tries   int32  // rounds in a row that failed, through its own fault
	fails   int32  // the same through whosever
	state   State
	then    State // what follows Storing
	queued  queued
	forced  bool // Refresh was called
	passed  bool // its last round passed every pause by, because of that
	peeked  bool // since it was due
	over    bool // it has expired
	gone    bool
	peer    bool
	dormant bool // a peer that is asked about when it comes again
	counted bool // as a worker of peers

	toldFirst bool // the first round has ended
}

// A queued tells what an Item that waits stands in.
type queued int8

const (
	notQueued queued = iota
	inRoute
	inAsked
	inPeeks
	inPeers
)

// State returns where it is.
func (it *Item) State() State { return it.state }

// Began returns when its last round began, and zero if there was none.
func (it *Item) Began() time.Time { return timeOf(it.began.at) }

// Authority returns the one of which it is a certificate.
func (it *Item) Authority() string { return it.route.ca }

// Host returns the host that is asked about it; of several the first, and "" if nobody knows.
func (it *Item) Host() string {
	if it.route == nil {
		return ""
	}
	return it.route.ends[0].host().key.url
}

// An Outage is the pause of what an Item needs.
type Outage struct {
	ID    string // the same for all that need the same; "": nothing pauses
	Fault string // who pauses, in words
	Items int    // that can be asked about there, though some of them elsewhere as well
	Err   error  // the last failure
}

// Outage returns the pause that keeps it waiting, or would if it was due.
func (it *Item) Outage() Outage {
	by := it.route.blocks()
	if by == nil {
		return Outage{}
	}
	who := [...]string{hostLevel: "host ", urlLevel: "URL ", caLevel: "CA at "}[by.level] + cmp.Or(by.key.url, "unknown")
	return Outage{fmt.Sprint(by.level, " ", by.key.url, " ", by.key.ca), who, int(by.items), by.pause.err}
}

// Ending reports whether its staple ends soon and nothing newer has come though it should have: a quarter of what was left
// when it came is left, or less, and whoever was asked since then had nothing newer, or cannot be asked.
func (it *Item) Ending(now time.Time) bool {
	h, at := &it.held, wall.MicroOf(now)
	switch first := h.moment(0); {
	case !h.current(at) || h.quiet || at < first:
		return false
	default:
		return it.began.at >= first || it.fails > 0 || it.stands() != Scheduled || it.due <= at
	}
}

// Pause returns the last failure of others for which it waits, and when their pause lets the next request through, which
// may be about another one. Zero: no pause keeps it waiting.
func (it *Item) Pause(now time.Time) (until time.Time, err error) {
	if it.route == nil || it.forced {
		return time.Time{}, nil
	}
	by := it.route.blocks()
	if by == nil {
		return time.Time{}, nil
	}
	opens := it.opens(wall.MicroOf(now))
	switch it.stands() {
	case Idle, Working:
		return time.Time{}, nil
	case Scheduled:
		if it.due >= opens {
			return time.Time{}, nil
		}
	}
	return timeOf(opens), by.pause.err
}

// stands returns where it is, or will be as soon as its worker is free.
func (it *Item) stands() State {
	if it.state == Storing {
		return it.then
	}
	return it.state
}

func timeOf(micro int64) time.Time {
	if micro == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micro)
}

func (it *Item) urgency(now int64) class {
	h := &it.held
	switch {
	case h.revoked && h.current(now):
	case h.revoked:
		return patient
	case !h.current(now) && it.fails >= patience:
		return patient
	case !h.current(now) && it.age == 0:
		return fresh
	case !h.current(now):
		return unstapled
	case now >= h.moment(0):
		return nearEnd
	}
	return routine
}

// hold makes h what is held. It came at the time came; 0: before, nobody knows when.
func (it *Item) hold(h Held, came, now int64) {
	it.held = h.micro()
	it.held.from = min(max(it.held.start, came), it.held.end)
	it.held.age(now)
	it.rank.end = it.held.end
	it.tries, it.fails = 0, 0
}
