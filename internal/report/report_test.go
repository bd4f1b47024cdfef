package report

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// A step is an event of some certificates, at a time; of none: it is only looked.
type step struct {
	at     time.Duration
	of     string // names, with a space between
	kind   Kind
	outage string
	bare   bool
}

// say returns what is written of lines: "1m0s failed a b +3 lasted 2h0m0s".
func say(now time.Time, lines []Line[string]) (all []string) {
	for _, line := range lines {
		s := fmt.Sprint(now.Sub(start), " ", line.Kind, " ", strings.Join(line.About, " "))
		if line.More > 0 {
			s += fmt.Sprint(" +", line.More)
		}
		if line.Lasted > 0 {
			s += fmt.Sprint(" lasted ", line.Lasted)
		}
		all = append(all, s)
	}
	return all
}

// run tells l of steps, and looks each half a minute between them and for some time after the last, as a driver does.
// A name that ends with ! is that of a Must-Staple certificate; what is before its dot is its host.
func run(l *Log[string], steps []step, more time.Duration) (all []string) {
	now := start
	pass := func(until time.Time) {
		for ; now.Before(until); now = now.Add(30 * time.Second) {
			all = append(all, say(now, l.Look(now))...)
		}
		now = until
		all = append(all, say(now, l.Look(now))...)
	}
	for _, s := range steps {
		pass(start.Add(s.at))
		for of := range strings.FieldsSeq(s.of) {
			host, _, _ := strings.Cut(of, ".")
			all = append(all, say(now, l.Tell(Event[string]{Of: of, Kind: s.kind, Host: host, Outage: s.outage,
				MustStaple: strings.HasSuffix(of, "!"), Stapled: !s.bare}, now))...)
		}
	}
	pass(now.Add(more))
	return all
}

// many returns names of certificates of a host.
func many(host string, n int, mark string) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprint(host, ".", i, mark))
	}
	return strings.Join(all, " ")
}

func TestEveryLineNeededAndNoneTooMuch(t *testing.T) {
	const s, m, h = time.Second, time.Minute, time.Hour
	for _, tt := range []struct {
		name  string
		steps []step
		more  time.Duration
		want  []string
	}{
		{"all is well", []step{{at: 0, of: "h.1 h.2! h.3", kind: Stapled}, {at: h, of: "h.1 h.2! h.3", kind: Answered}}, h, nil},
		{"a new Must-Staple certificate that is stapled soon", []step{
			{at: 0, of: "h.1!", kind: Unstapled, bare: true}, {at: 2 * s, of: "h.1!", kind: Stapled}}, h, nil},
		{"an outage has one line when it begins and one when it ends", []step{
			{at: 0, of: many("h", 40, ""), kind: Failed, outage: "h"},
			{at: h, of: many("h", 40, ""), kind: Failed, outage: "h"},
			{at: 2 * h, of: many("h", 40, ""), kind: Answered}}, h,
			[]string{"0s failed h.0", "2h0m0s answered h.0 h.1 h.2 h.3 h.4 h.5 h.6 h.7 h.8 h.9 +30 lasted 2h0m0s"}},
		{"one that is answered in an outage for a moment does not end it", []step{
			{at: 0, of: "h.1 h.2", kind: Failed, outage: "h"}, {at: 5 * m, of: "h.1", kind: Answered},
			{at: 5*m + s, of: "h.1", kind: Failed, outage: "h"}, {at: h, of: "h.1 h.2", kind: Answered}}, h,
			[]string{"0s failed h.1", "1h0m0s answered h.1 h.2 lasted 1h0m0s"}},
		{"what fails while an outage ends is part of it", []step{
			{at: 0, of: "h.1 h.2", kind: Failed, outage: "h"}, {at: 5 * m, of: "h.1", kind: Answered},
			{at: 5*m + s, of: "h.2", kind: Failed}, {at: 5*m + 2*s, of: "h.2", kind: Stapled}}, h,
			[]string{"0s failed h.1", "5m2s answered h.1 h.2 lasted 5m2s"}},
		{"what fails for longer fails alone, and is named", []step{
			{at: 0, of: "h.1 h.2", kind: Failed, outage: "h"}, {at: 5 * m, of: "h.1", kind: Answered},
			{at: 7 * m, of: "h.2", kind: Failed}, {at: h, of: "h.2", kind: Stapled}}, h,
			[]string{"0s failed h.1", "6m0s answered h.1 lasted 5m0s", "7m0s failed h.2", "1h0m0s answered h.2 lasted 1h0m0s"}},
		{"the second that fails alone is named, too", []step{
			{at: 0, of: "h.1 h.2 h.3", kind: Failed}, {at: s, of: "h.1", kind: Failed}, {at: 3 * h, of: "h.2", kind: Answered}}, h,
			[]string{"0s failed h.1", "1m1s failed h.2 h.3", "3h1m0s answered h.2 lasted 3h0m0s"}},
		{"many that fail alone are named ten a minute", []step{{at: 0, of: many("h", 24, ""), kind: Failed}}, h,
			[]string{"0s failed h.0", "1m0s failed h.1 h.2 h.3 h.4 h.5 h.6 h.7 h.8 h.9 h.10",
				"2m0s failed h.11 h.12 h.13 h.14 h.15 h.16 h.17 h.18 h.19 h.20", "3m0s failed h.21 h.22 h.23"}},
		{"those that were well again before a line could tell are counted by the next", []step{
			{at: 0, of: "h.1 h.2 h.3", kind: Failed}, {at: s, of: "h.2 h.3", kind: Stapled}, {at: 10 * m, of: "h.4", kind: Failed}}, h,
			[]string{"0s failed h.1", "10m0s failed h.4 +2"}},
		{"hosts have lines of their own", []step{{at: 0, of: "g.1 h.1", kind: Failed, outage: "both"},
			{at: m, of: "g.1", kind: Stapled}}, h, []string{"0s failed g.1", "0s failed h.1", "1m0s answered g.1 lasted 1m0s"}},
		{"two outages of a host", []step{{at: 0, of: "h.1", kind: Failed, outage: "ca 1"},
			{at: s, of: "h.2 h.3", kind: Failed, outage: "ca 2"}, {at: h, of: "h.1", kind: Answered}, {at: 2 * h, of: "h.2 h.3", kind: Answered}}, h,
			[]string{"0s failed h.1", "1m1s failed h.2", "1h1m0s answered h.1 lasted 1h0m0s", "2h0m0s answered h.2 h.3 lasted 1h59m59s"}},
		{"staples that end", []step{{at: 0, of: "h.1 h.2 h.3", kind: Expiring}, {at: h, of: "h.1 h.2 h.3", kind: Expired, bare: true},
			{at: h + 10*m, of: "h.1 h.2 h.3", kind: Stapled}}, h,
			[]string{"0s expiring h.1", "1m0s expiring h.2 h.3", "1h0m0s expired h.1", "1h1m0s expired h.2 h.3",
				"1h10m0s stapled h.1 h.2 h.3 lasted 10m0s"}},
		{"an answer with nothing new does not end that a staple ends", []step{{at: 0, of: "h.1", kind: Expiring},
			{at: m, of: "h.1", kind: Answered}, {at: h, of: "h.1", kind: Stapled}}, h,
			[]string{"0s expiring h.1", "1h0m0s stapled h.1 lasted 1h0m0s"}},
		{"a Must-Staple certificate without a staple", []step{
			{at: 0, of: "h.1! h.2", kind: Expired, bare: true}, {at: s, of: "h.1! h.2", kind: Failed, outage: "h", bare: true},
			{at: 2*h + 30*m, of: "h.1! h.2", kind: Stapled}}, h,
			[]string{"0s expired h.1!", "1s failed h.1!", "1m1s expired h.2", "5m1s unstapled h.1! lasted 5m1s", "1h5m1s unstapled h.1! lasted 1h5m1s",
				"2h5m1s unstapled h.1! lasted 2h5m1s", "2h30m0s answered h.1! h.2 lasted 2h29m59s", "2h30m0s stapled h.1! h.2 lasted 2h30m0s"}},
		{"one that names no responder", []step{{at: 0, of: "h.1!", kind: Answered, bare: true}}, 70 * m,
			[]string{"5m0s unstapled h.1! lasted 5m0s", "1h5m0s unstapled h.1! lasted 1h5m0s"}},
		{"many of them are all named", []step{{at: 0, of: many("h", 12, "!"), kind: Unstapled, bare: true}}, 10 * m,
			[]string{"5m0s unstapled h.0! h.1! h.2! h.3! h.4! h.5! h.6! h.7! h.8! h.9! lasted 5m0s", "6m0s unstapled h.10! h.11! lasted 6m0s"}},
		{"one that is stapled after all, by a clock that is right again", []step{{at: 0, of: "h.1!", kind: Expired, bare: true},
			{at: 6 * m, of: "h.1!", kind: Unstapled}}, h,
			[]string{"0s expired h.1!", "5m0s unstapled h.1! lasted 5m0s", "6m0s stapled h.1! lasted 6m0s"}},
		{"revoked, said again and again, and reinstated", []step{{at: 0, of: "h.1! h.2", kind: Revoked, bare: true},
			{at: h, of: "h.1! h.2", kind: Revoked, bare: true}, {at: 2 * h, of: "h.1!", kind: Failed, bare: true},
			{at: 3 * h, of: "h.1!", kind: Reinstated}}, h,
			[]string{"0s revoked h.1!", "1m0s revoked h.2", "2h0m0s failed h.1!", "3h0m0s answered h.1! lasted 1h0m0s",
				"3h0m0s reinstated h.1! lasted 3h0m0s"}},
		{"what is removed in trouble is told of, and asked for no more", []step{{at: 0, of: "h.1! h.2", kind: Failed, outage: "h", bare: true},
			{at: 10 * m, of: "h.1! h.2", kind: Gone, bare: true}}, h,
			[]string{"0s failed h.1!", "5m0s unstapled h.1! lasted 5m0s", "10m0s gone h.1! h.2 lasted 10m0s"}},
		{"who leaves an outage does not end it", []step{{at: 0, of: many("h", 20, ""), kind: Failed, outage: "h"},
			{at: m, of: many("h", 19, ""), kind: Gone}, {at: h, of: "h.19", kind: Answered}}, h,
			[]string{"0s failed h.0", "1h0m0s answered h.19 lasted 1h0m0s"}},
		{"one that is reinstated and removed before a line could tell", []step{{at: 0, of: "h.1 h.2", kind: Revoked},
			{at: h, of: "h.1 h.2", kind: Reinstated}, {at: h + s, of: "h.2", kind: Expiring}, {at: h + 2*s, of: "h.2", kind: Gone}}, h,
			[]string{"0s revoked h.1", "1m0s revoked h.2", "1h0m0s reinstated h.1 lasted 1h0m0s", "1h0m1s expiring h.2", "1h0m2s gone h.2 lasted 1s",
				"1h1m2s reinstated h.2 lasted 1h0m0s"}},
		{"many that are removed are counted", []step{{at: 0, of: many("h", 24, ""), kind: Revoked}, {at: h, of: many("h", 24, ""), kind: Gone}}, h,
			[]string{"0s revoked h.0", "1m0s revoked h.1 h.2 h.3 h.4 h.5 h.6 h.7 h.8 h.9 h.10 +13",
				"1h0m0s gone h.0 h.1 h.2 h.3 h.4 h.5 h.6 h.7 h.8 h.9 +14 lasted 1h0m0s"}},
		{"what is removed in trouble that nobody was told of is not", []step{{at: 0, of: "h.1!", kind: Unstapled, bare: true},
			{at: m, of: "h.1!", kind: Gone, bare: true}}, h, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, run(new(Log[string]), tt.steps, tt.more))
		})
	}
}

func TestKindsHaveNames(t *testing.T) {
	require.Equal(t, "failed", Failed.String())
	require.Equal(t, "gone", Gone.String())
	require.Equal(t, "Kind(0)", Kind(0).String())
	require.Equal(t, "Kind(10)", kinds.String())
}

func TestNothingIsKeptOfWhatIsWell(t *testing.T) {
	var l Log[int]
	e := Event[int]{Kind: Answered, Host: "h", Stapled: true}
	require.Zero(t, testing.AllocsPerRun(1000, func() { l.Tell(e, start); e.Of++ }))
	require.True(t, l.When().IsZero())
	now := start
	for i := range 10_000 {
		now = now.Add(time.Second)
		of := Event[int]{Of: i, Kind: Failed, Host: fmt.Sprint(i), Stapled: true}
		require.Len(t, l.Tell(of, now), 1)
		of.Kind = Stapled
		require.Len(t, l.Tell(of, now), 1)
		l.Look(now)
		require.LessOrEqual(t, len(l.hosts), 200)
	}
	for range 3 {
		now = now.Add(time.Minute)
		l.Look(now)
	}
	require.Empty(t, l.records)
	require.Empty(t, l.hosts)
	require.Empty(t, l.busy)
	require.True(t, l.When().IsZero(), "there is still something to look for")
	require.False(t, slices.ContainsFunc(l.watched, func(r *record[int]) bool { return r != nil }))
}
