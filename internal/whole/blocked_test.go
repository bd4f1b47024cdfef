package whole

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// untold is how many events, and lines, wait for whoever listens, with few certificates: that is in event.go.
const untold = 4096

// A flood is a certificate about which nothing new is to be had, which can be asked for again and again at no cost, and
// one that is revoked.
type flood struct {
	t                *testing.T
	quiet, sensation *staple.Certificate
	fetched          []byte
}

func newFlood(t *testing.T, w *world.World, edit func(*staple.Stapler)) (*flood, *staple.Stapler) {
	f := &flood{t: t}
	revoked := w.Leaf(world.Names("revoked.example.com"))
	s := w.Stapler(func(s *staple.Stapler) {
		web := s.Fetcher
		s.Fetcher = staple.FetcherFunc(func(ctx context.Context, req *staple.Request) ([]byte, error) {
			if f.fetched == nil || req.Leaf.Equal(revoked.Leaf) {
				return web.Fetch(ctx, req)
			}
			return f.fetched, nil
		})
		edit(s)
	})
	f.quiet, f.sensation = w.Add(s, w.Leaf()), w.Add(s, revoked)
	f.fetched = f.quiet.TLS().OCSPStaple
	w.Responder.Set(revoked.Leaf, stapletest.Answer{Status: ocsp.Revoked})
	return f, s
}

func (f *flood) rounds(n int) {
	for i := range n {
		require.NoError(f.t, f.quiet.Refresh(f.t.Context()))
		if i%1000 == 999 {
			synctest.Wait() // or one processor has no turn for whoever listens
		}
	}
}

func TestOnEventThatBlocksHoldsUpNothingElseAndMissesTheLeastImportant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		var lines world.Text
		gate := make(chan struct{})
		var events []staple.Event
		f, s := newFlood(t, w, func(s *staple.Stapler) {
			s.Logger = lines.Logger()
			s.OnEvent = func(e staple.Event) {
				<-gate
				events = append(events, e)
			}
		})
		time.Sleep(time.Second)
		require.NoError(t, f.sensation.Refresh(t.Context()))
		const before, after = 1000, 2 * untold
		f.rounds(before)
		synctest.Wait()
		all := lines.TakeLines(t)
		require.Len(t, all, before+3, "the log waits for OnEvent, or something else is in it")
		f.rounds(after)
		synctest.Wait()
		all = lines.TakeLines(t)
		require.Len(t, all, after+1)
		i := slices.IndexFunc(all, func(line map[string]any) bool { return line["level"] == "WARN" })
		require.GreaterOrEqual(t, i, 0)
		require.Contains(t, all[i]["msg"], "OnEvent does not keep up")

		close(gate)
		synctest.Wait()
		require.InDelta(t, untold, len(events), 1)
		kinds := make(map[*staple.Certificate][]staple.EventKind)
		last := make(map[*staple.Certificate]time.Time)
		for _, e := range events {
			kinds[e.Certificate] = append(kinds[e.Certificate], e.Kind)
			require.False(t, e.Status.LastAttempt.Before(last[e.Certificate]), "out of order")
			last[e.Certificate] = e.Status.LastAttempt
		}
		require.Equal(t, []staple.EventKind{staple.EventStapled, staple.EventRevoked}, kinds[f.sensation])
		require.Equal(t, staple.EventStapled, kinds[f.quiet][0])
		require.Equal(t, f.quiet.Status(), events[len(events)-1].Status, "the last is missing")
		all = lines.TakeLines(t)
		require.Len(t, all, 1)
		require.Contains(t, all[0]["msg"], "OnEvent keeps up again")
		require.EqualValues(t, before+after+3-len(events), all[0]["events"])

		f.rounds(10)
		synctest.Wait()
		require.InDelta(t, untold+10, len(events), 1)
		require.NoError(t, s.Close())
	})
}

// A blockedHandler writes nothing until it may.
type blockedHandler struct {
	slog.Handler
	gate chan struct{}
}

func (h blockedHandler) Handle(ctx context.Context, r slog.Record) error {
	<-h.gate
	return h.Handler.Handle(ctx, r)
}

func TestALogThatBlocksHoldsUpNothingElseAndMissesTheLeastImportant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		var text world.Text
		handler := blockedHandler{text.Logger().Handler(), make(chan struct{})}
		f, s := newFlood(t, w, func(s *staple.Stapler) { s.Logger = slog.New(handler) })
		time.Sleep(time.Second)
		require.NoError(t, f.sensation.Refresh(t.Context()))
		const rounds = 2 * untold
		f.rounds(rounds)
		synctest.Wait()
		require.Len(t, w.Log.Events(), rounds+3, "OnEvent waits for the log")
		close(handler.gate)
		synctest.Wait()
		all := text.TakeLines(t)
		require.InDelta(t, untold+1, len(all), 1)
		require.True(t, slices.ContainsFunc(all, func(line map[string]any) bool { return line["event"] == "revoked" }))
		missed := all[len(all)-1]
		require.Equal(t, "WARN", missed["level"])
		require.EqualValues(t, rounds+3-(len(all)-1), missed["lines"])
		require.NoError(t, s.Close())
	})
}
