package world

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"github.com/go-staple/staple"
	"github.com/stretchr/testify/require"
)

// A Journal keeps the events of a Stapler.
type Journal struct {
	mu     sync.Mutex
	events []staple.Event
}

// Note is for Stapler.OnEvent.
func (j *Journal) Note(e staple.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, e)
}

// Events returns the events so far.
func (j *Journal) Events() []staple.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.events)
}

// Kinds returns the kinds of the events so far.
func (j *Journal) Kinds() (kinds []staple.EventKind) {
	for _, e := range j.Events() {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

// Last returns the last event.
func (j *Journal) Last() staple.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.events[len(j.events)-1]
}

// Clear forgets all events.
func (j *Journal) Clear() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = nil
}

// Count returns how many of kinds are kind.
func Count(kinds []staple.EventKind, kind staple.EventKind) (n int) {
	for _, k := range kinds {
		if k == kind {
			n++
		}
	}
	return n
}

// Text is what was written to it, by several goroutines perhaps, as the lines of a log.
type Text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write adds p.
func (x *Text) Write(p []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.Write(p)
}

// String returns all of it.
func (x *Text) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.String()
}

// Logger returns a logger that writes all its lines to x, in JSON.
func (x *Text) Logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(x, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// TakeLines returns what the Logger wrote since it was called last.
func (x *Text) TakeLines(t *testing.T) (lines []map[string]any) {
	x.mu.Lock()
	defer x.mu.Unlock()
	d := json.NewDecoder(&x.b)
	for d.More() {
		var line map[string]any
		require.NoError(t, d.Decode(&line))
		lines = append(lines, line)
	}
	x.b.Reset()
	return lines
}
