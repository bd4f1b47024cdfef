package report

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A truth is how a certificate of the model fares, as plainly as that can be said.
type truth struct {
	host       string
	mustStaple bool
	alone      time.Time // since when it fails alone; zero: it does not
	ended      time.Time // when it did so last
	bare       time.Time // since when it has no staple
	revoked    bool
	failing    time.Time // when a line said that it fails alone
	missing    time.Time // and that it has no staple
}

// TestWhateverHappensNobodyIsForgottenAndTheLogIsShort draws what happens to the certificates of three hosts.
func TestWhateverHappensNobodyIsForgottenAndTheLogIsShort(t *testing.T) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1))
		var l Log[int]
		var all [40]truth
		for i := range all {
			all[i] = truth{host: fmt.Sprint("host ", i%3), mustStaple: i%4 == 0}
		}
		last := make(map[string]time.Time)
		now := start
		write := func(lines []Line[int]) {
			for _, line := range lines {
				require.NotEmpty(t, line.About)
				require.LessOrEqual(t, len(line.About), Named)
				host := all[line.About[0]].host
				at := fmt.Sprint(host, " ", line.Kind)
				require.GreaterOrEqual(t, now.Sub(last[at]), Pause, "too soon: %s", at)
				last[at] = now
				for i, of := range line.About {
					c := &all[of]
					require.Equal(t, host, c.host)
					require.NotContains(t, line.About[:i], of, "named twice")
					switch line.Kind {
					case Failed:
						c.failing = now
					case Unstapled:
						require.True(t, c.mustStaple)
						require.False(t, c.bare.IsZero(), "it has a staple")
						require.GreaterOrEqual(t, now.Sub(c.bare), Patience)
						c.missing = now
					}
				}
			}
		}
		tell := func(of int, k Kind, outage string) {
			c := &all[of]
			if k == Failed && outage == "" {
				if c.alone.IsZero() && now.Sub(c.ended) > 2*Pause { // else no line may have told of the end yet, nor will
					c.failing = time.Time{}
				}
				if c.alone.IsZero() {
					c.alone = now
				}
			} else if k != Expiring && k != Expired && !c.alone.IsZero() {
				c.alone, c.ended = time.Time{}, now
			}
			if k == Gone {
				c.ended = time.Time{}
			}
			switch k {
			case Stapled, Reinstated:
				c.bare, c.revoked = time.Time{}, false
			case Revoked:
				c.bare, c.revoked = time.Time{}, true
			case Expired, Unstapled, Failed:
				if (k != Failed || c.mustStaple && random.IntN(2) == 0) && c.bare.IsZero() && !c.revoked {
					c.bare, c.missing = now, time.Time{}
				}
			case Gone:
				c.bare, c.revoked = time.Time{}, false
			}
			stapled := c.bare.IsZero() && !c.revoked && k != Gone
			write(l.Tell(Event[int]{Of: of, Kind: k, Host: c.host, Outage: outage, MustStaple: c.mustStaple, Stapled: stapled}, now))
		}
		for range 3000 {
			now = now.Add(time.Duration(random.IntN(30)) * time.Second)
			write(l.Look(now))
			of := random.IntN(len(all))
			c := &all[of]
			switch n := random.IntN(30); {
			case n < 10: // most of the time, nothing
			case n < 18:
				if of%2 == 0 {
					tell(of, Failed, "") // these never suffer from others
				} else {
					tell(of, Failed, c.host+[]string{"", " ca"}[random.IntN(2)])
				}
			case n < 20 && !c.revoked:
				tell(of, Stapled, "")
			case n < 23 && c.bare.IsZero() && !c.revoked:
				tell(of, Answered, "")
			case n == 23 && c.bare.IsZero() && !c.revoked:
				tell(of, Expiring, "")
			case n == 24 && c.bare.IsZero() && !c.revoked:
				tell(of, Expired, "")
			case n == 25:
				tell(of, Revoked, "")
			case n == 26 && c.revoked:
				tell(of, Reinstated, "")
			case n == 27:
				tell(of, Gone, "")
			}
			for i, c := range all {
				if !c.alone.IsZero() && now.Sub(c.alone) > 10*time.Minute {
					require.False(t, c.failing.IsZero(), "seed %d: %d fails alone, and nobody says so", seed, i)
				}
				since := c.bare
				if !c.missing.IsZero() {
					since = c.missing.Add(Reminder - Patience - Pause)
				}
				if c.mustStaple && !c.bare.IsZero() && now.Sub(since) > Patience+4*Pause {
					t.Fatalf("seed %d: %d is Must-Staple, has no staple, and nobody says so", seed, i)
				}
			}
		}
		for i := range all {
			kind := Stapled
			if all[i].revoked {
				kind = Reinstated
			}
			tell(i, kind, "")
		}
		for range 200 {
			now = now.Add(30 * time.Second)
			write(l.Look(now))
		}
		require.Empty(t, l.records, "%v", slices.Sorted(func(yield func(int) bool) {
			for i := range l.records {
				if !yield(i) {
					return
				}
			}
		}))
		require.Empty(t, l.hosts)
		require.True(t, l.When().IsZero())
	}
}
