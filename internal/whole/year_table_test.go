package whole

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/go-staple/staple"
)

// yearCount is what the table shows.
type yearCount struct {
	handshakes, real                                       int
	expired, older, undone, unverified, foreign, unstapled int // must be zero
	outOfReach, waiting, restarts, renewed                 int
	requests                                               map[*yearClass]int
	weeks                                                  map[*yearClass]float64
	tenMinutes                                             map[int64]int
	events                                                 map[staple.EventKind]int
	faults, met                                            map[string]int // how often, and the requests that met them
	gaps                                                   map[string]gap // by what they are promised for
	getErrors, putErrors, tampered                         int
}

func newYearCount() yearCount {
	return yearCount{requests: make(map[*yearClass]int), weeks: make(map[*yearClass]float64), tenMinutes: make(map[int64]int),
		events: make(map[staple.EventKind]int), faults: make(map[string]int), met: make(map[string]int), gaps: make(map[string]gap)}
}

// add adds what other counted.
func (n *yearCount) add(other *yearCount) {
	for _, p := range [][2]*int{
		{&n.handshakes, &other.handshakes}, {&n.real, &other.real}, {&n.expired, &other.expired}, {&n.older, &other.older},
		{&n.undone, &other.undone}, {&n.waiting, &other.waiting},
		{&n.unverified, &other.unverified}, {&n.foreign, &other.foreign}, {&n.unstapled, &other.unstapled},
		{&n.outOfReach, &other.outOfReach}, {&n.restarts, &other.restarts}, {&n.renewed, &other.renewed},
		{&n.getErrors, &other.getErrors}, {&n.putErrors, &other.putErrors}, {&n.tampered, &other.tampered},
	} {
		*p[0] += *p[1]
	}
	addTo(n.requests, other.requests)
	addTo(n.weeks, other.weeks)
	addTo(n.tenMinutes, other.tenMinutes)
	addTo(n.events, other.events)
	addTo(n.faults, other.faults)
	addTo(n.met, other.met)
	for why, o := range other.gaps {
		g := n.gaps[why]
		g.times += o.times
		g.closest = max(g.closest, o.closest)
		if o.longest >= g.longest {
			g.longest, g.promised = o.longest, o.promised
		}
		n.gaps[why] = g
	}
}

// table is the year at a glance.
func (n *yearCount) table(worlds, days int) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(name string, value any) { fmt.Fprintf(w, "%s\t%v\n", name, value) }
	fmt.Fprintf(w, "\n%d worlds, %d days\n", worlds, days)
	row("handshakes checked", n.handshakes)
	row("  real ones", n.real)
	row("  with a staple that has ended", n.expired)
	row("  with a staple older than its predecessor", n.older)
	row("  with a staple after a revocation, too soon", n.undone)
	row("  with a staple that does not verify", n.unverified)
	row("  with another certificate's staple", n.foreign)
	row("  without a staple while one was in reach", n.unstapled)
	row("  without a staple, in reach for no longer than is promised", n.waiting)
	row("  without a staple, out of reach or revoked", n.outOfReach)
	row("restarts", n.restarts)
	row("certificates renewed after they had expired", n.renewed)
	row("cache reads, writes that failed", fmt.Sprint(n.getErrors, ", ", n.putErrors))
	row("cache entries corrupted, forged, swapped, lost", n.tampered)
	for kind := staple.EventStapled; kind <= staple.EventReinstated; kind++ {
		row("  events: "+kind.String(), n.events[kind])
	}
	row("requests", total(n.requests))
	fmt.Fprint(w, "without a staple while one was in reach\ttimes\tlongest\tpromised then\tclosest\n")
	for _, why := range slices.Sorted(maps.Keys(n.gaps)) {
		g := n.gaps[why]
		fmt.Fprintf(w, "  %s\t%d\t%.1f s\t%.1f s\t%.0f%%\n", why, g.times, g.longest.Seconds(), g.promised.Seconds(), 100*g.closest)
	}
	fmt.Fprint(w, "faults\ttimes\trequests that met them\n")
	for _, kind := range slices.Sorted(maps.Keys(n.faults)) {
		fmt.Fprintf(w, "  %s\t%d\t%d\n", kind, n.faults[kind], n.met[kind])
	}
	largest := slices.Max(slices.Collect(maps.Values(n.tenMinutes)))
	row("requests in the largest ten minutes, on average", fmt.Sprintf("%d, %.1f", largest, float64(total(n.requests))/(float64(days)*144)))
	fmt.Fprint(w, "requests a certificate and week, faults included\n")
	for _, class := range yearClasses {
		row("  "+class.name, fmt.Sprintf("%.2f", float64(n.requests[class])/n.weeks[class]))
	}
	row("  nginx with four workers", "672")
	w.Flush()
	return b.String()
}

func addTo[K comparable, V int | float64](m, other map[K]V) {
	for k, v := range other {
		m[k] += v
	}
}

func total[K comparable](m map[K]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}
