package quiet

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestOneLineAMinuteOfEachKindAboutEachHost(t *testing.T) {
	var l Limiter[int]
	now := time.Now()
	require.True(t, l.Allow("a", 1, now))
	require.False(t, l.Allow("a", 1, now.Add(time.Minute-1)))
	require.True(t, l.Allow("a", 2, now), "another kind")
	require.True(t, l.Allow("b", 1, now), "another host")
	require.True(t, l.Allow("a", 1, now.Add(time.Minute)))
	require.False(t, l.Allow("a", 1, now.Add(time.Minute)))
	for range 3 {
		require.True(t, l.Allow("", 1, now), "nobody in particular")
	}
}

func TestWhatMaySpeakAgainIsForgotten(t *testing.T) {
	var l Limiter[int]
	now := time.Now()
	for i := range 100 * most {
		now = now.Add(pause / most * 2)
		require.True(t, l.Allow(fmt.Sprint(i), 1, now))
	}
	require.LessOrEqual(t, len(l.spoke), 2*most)
}
