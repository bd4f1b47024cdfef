package whole

import (
	"context"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// What is between these in docs/operations.md is the log of the night.
const (
	nightFile  = "../../docs/operations.md"
	nightBegin = "<!-- go test ./internal/whole -run TestTheLogOfANight -update -->\n```\n"
	nightEnd   = "```\n<!-- end -->\n"
)

// A night is a Stapler with certificates of several CAs, whose log shows times of day.
type night struct {
	*testing.T
	text  world.Text
	cas   []*world.World
	down  []atomic.Bool // their hosts
	cache moodyCache
	s     *staple.Stapler
	certs map[string]*staple.Certificate
}

// A moodyCache fails while it is told to.
type moodyCache struct {
	staple.MemoryCache
	fails atomic.Bool
}

func (c *moodyCache) Get(ctx context.Context, key string) ([]byte, error) {
	if c.fails.Load() {
		return nil, world.ErrBroken
	}
	return c.MemoryCache.Get(ctx, key)
}

func (c *moodyCache) Put(ctx context.Context, key string, data []byte) error {
	if c.fails.Load() {
		return world.ErrBroken
	}
	return c.MemoryCache.Put(ctx, key, data)
}

// newNight makes as many certificates as numbers says of each CA: a00, a01, ..., b00, ..., the fifth of each Must-Staple.
func newNight(t *testing.T, level slog.Level, numbers ...int) *night {
	n := &night{T: t, down: make([]atomic.Bool, len(numbers)), certs: make(map[string]*staple.Certificate)}
	clock := func(_ []string, a slog.Attr) slog.Attr {
		if a.Value.Kind() != slog.KindTime {
			return a
		}
		at := a.Value.Time().UTC()
		if at.Day() == time.Now().UTC().Day() {
			return slog.String(a.Key, at.Format(time.TimeOnly))
		}
		return slog.String(a.Key, at.Format(time.DateTime))
	}
	n.s = &staple.Stapler{
		Fetcher: &staple.HTTPFetcher{Client: &http.Client{Transport: roundTripper(func(req *http.Request) (*http.Response, error) {
			i := int(req.URL.Hostname()[len("ocsp.")] - 'a')
			if n.down[i].Load() {
				return nil, errRefused
			}
			return n.cas[i].Responder.RoundTrip(req)
		})}},
		Cache:  &n.cache,
		Logger: slog.New(slog.NewTextHandler(&n.text, &slog.HandlerOptions{Level: level, ReplaceAttr: clock})),
	}
	t.Cleanup(func() { n.s.Close() })
	for range numbers {
		n.cas = append(n.cas, world.Of(t, stapletest.NewCA(stapletest.CAOptions{Intermediate: true})))
	}
	n.cas[0].Responder.Set(nil, stapletest.Answer{Validity: 3 * time.Hour})
	for i, number := range numbers {
		ca := n.cas[i].CA
		letter := string(rune('a' + i))
		for j := range number {
			name := fmt.Sprintf("%s%02d", letter, j)
			c, err := n.s.Add(n.cas[i].Leaf(world.SameKey(ca.Key), func(o *stapletest.LeafOptions) {
				o.Names = []string{name + ".example.com"}
				o.Responders = []string{"http://ocsp." + letter + ".example"}
				o.Serial = big.NewInt(int64(i+1)<<8 | int64(j))
				o.MustStaple = j == 4
			}))
			require.NoError(t, err)
			n.certs[name] = c
		}
	}
	require.NoError(t, n.s.Wait(t.Context()))
	return n
}

// at waits for a time of the night.
func (n *night) at(hours, minutes int) {
	midnight := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	time.Sleep(time.Until(midnight.Add(time.Duration(hours)*time.Hour + time.Duration(minutes)*time.Minute)))
	synctest.Wait()
}

func (n *night) refresh(name string) {
	_ = n.certs[name].Refresh(n.Context())
	synctest.Wait()
}

// TestTheLogOfANight writes down what an operator finds in the morning.
func TestTheLogOfANight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNight(t, slog.LevelInfo, 20, 10, 10)
		a, b, c := &n.down[0], n.cas[1].Responder, n.cas[2].Responder

		n.at(1, 15)
		a.Store(true) // for two hours
		n.at(3, 15)
		a.Store(false)

		n.at(4, 30)
		for _, name := range []string{"b03", "b07"} {
			b.Set(n.certs[name].Status().Leaf, stapletest.Answer{Error: ocsp.Unauthorized})
			n.refresh(name)
		}
		n.at(5, 10)
		for _, name := range []string{"b03", "b07"} {
			b.Reset(n.certs[name].Status().Leaf)
			n.refresh(name)
		}

		n.at(5, 30)
		c.Set(n.certs["c02"].Status().Leaf, stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise})
		n.refresh("c02")

		n.at(6, 0)
		n.cache.fails.Store(true)
		n.refresh("c08")
		n.at(6, 25)
		n.cache.fails.Store(false)
		n.at(8, 0)
		require.NoError(t, n.s.Close())

		got := n.text.String()
		t.Logf("\n%s", got)
		kept, err := os.ReadFile(nightFile)
		require.NoError(t, err)
		before, rest, ok := strings.Cut(string(kept), nightBegin)
		require.True(t, ok)
		old, after, ok := strings.Cut(rest, nightEnd)
		require.True(t, ok)
		if *updateDocs {
			require.NoError(t, os.WriteFile(nightFile, []byte(before+nightBegin+got+nightEnd+after), 0o666))
			return
		}
		require.Equal(t, alike(old), alike(got), "go test ./internal/whole -run TestTheLogOfANight -update")
		require.Equal(t, strings.Count(old, "\n"), strings.Count(got, "\n"))
	})
}

// byChance is what chance decides of a line, times and which of those that are asked about together is the first; and
// what it is without.
var byChance = []struct{ what, without string }{
	{`\d\d:\d\d:\d\d`, ""},
	{` next=("[^"]*"|\S+)`, ""},
	{` lasted=\S+`, ""},
	{` error="([^"\\]|\\.)*"`, ""},
	{` serial=01:\S+`, ""},
	{`CN=a\d\d\.example\.com( 01:\w\w)?`, "A"},
	{` must_staple=true (event=(failed|expiring|expired))`, " $1"},
	{`(event=answered responder=http://ocsp\.a\.example) certificates=\d+`, "$1"},
}

// alike returns a log without what chance decides.
func alike(log string) string {
	for _, c := range byChance {
		log = regexp.MustCompile(c.what).ReplaceAllString(log, c.without)
	}
	return log
}

func TestAClockThatWasWrongEndsWhatItBegan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := world.SetClock(t)
		n := newNight(t, slog.LevelInfo, 5)
		n.down[0].Store(true)
		set(world.Day)
		time.Sleep(10 * time.Minute)
		set(0)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.True(t, n.certs["a04"].Status().Stapled)
		last := func(event string) int { return strings.LastIndex(n.text.String(), "event="+event) }
		require.Positive(t, last("unstapled"), "%s", n.text.String())
		require.Greater(t, last("stapled"), last("unstapled"), "%s", n.text.String())
		require.NotContains(t, n.text.String()[last("stapled"):], "level=ERROR")
	})
}

func TestAMustStapleCertificateThatCannotBeStapledIsNamedEachHourUntilItIsGone(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(o *stapletest.LeafOptions)
		end  func(c *staple.Certificate)
	}{
		{"it names no responder", world.Responders(), (*staple.Certificate).Remove},
		{"it expires", func(o *stapletest.LeafOptions) {
			o.Responders, o.NotAfter = nil, time.Now().Add(3*time.Hour)
		}, func(*staple.Certificate) { time.Sleep(time.Hour) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNight(t, slog.LevelInfo, 1)
				c, err := n.s.Add(n.cas[0].Leaf(world.MustStaple, tt.edit))
				require.NoError(t, err)
				time.Sleep(2*time.Hour + 30*time.Minute)
				tt.end(c)
				time.Sleep(world.Day)
				synctest.Wait()
				lines := strings.Split(strings.TrimSpace(n.text.String()), "\n")
				require.Len(t, lines, 4, "%s", n.text.String())
				for i, line := range lines[:3] {
					require.Contains(t, line, fmt.Sprintf("time=0%d:05:00 level=ERROR", i))
					require.Contains(t, line, "name=\"CN=www.example.com\"")
					require.Contains(t, line, "must_staple=true event=unstapled")
				}
				require.Contains(t, lines[3], "level=INFO")
				require.Contains(t, lines[3], "event=gone")
			})
		})
	}
}

func TestAWeekWithoutTroubleIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNight(t, slog.LevelInfo, 20, 10, 10)
		for range 7 {
			time.Sleep(world.Day)
			synctest.Wait()
		}
		require.Greater(t, len(n.cas[0].Responder.Requests(nil)), 50)
		require.NotEmpty(t, n.cas[1].Responder.Requests(nil))
		require.NoError(t, n.s.Close())
		require.Empty(t, n.text.String())
	})
}
