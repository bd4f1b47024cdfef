package staple

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDirCacheLock(t *testing.T) {
	d := DirCache(filepath.Join(t.TempDir(), "new"))
	key := cacheKeyOf(testCA().Issuer)
	unlock, ok, err := d.TryLock(t.Context(), key, time.Minute)
	require.NoError(t, err)
	require.True(t, ok)
	_, ok, err = d.TryLock(t.Context(), key, time.Minute)
	require.NoError(t, err)
	require.False(t, ok, "it is held")
	_, ok, err = d.TryLock(t.Context(), cacheKeyOf(testCA().Root), time.Minute)
	require.NoError(t, err)
	require.True(t, ok, "another key is not")
	_, err = d.Get(t.Context(), key)
	require.ErrorIs(t, err, ErrCacheMiss)

	// A holder that has crashed: the lock is older than its lease.
	time.Sleep(20 * time.Millisecond)
	again, ok, err := d.TryLock(t.Context(), key, 10*time.Millisecond)
	require.NoError(t, err)
	require.True(t, ok)
	unlock() // the first holder was merely slow: the lock is no longer its own
	_, ok, err = d.TryLock(t.Context(), key, time.Minute)
	require.NoError(t, err)
	require.False(t, ok)
	again()
	again()
	unlock, ok, err = d.TryLock(t.Context(), key, time.Minute)
	require.NoError(t, err)
	require.True(t, ok)
	unlock()

	_, _, err = d.TryLock(t.Context(), "../escape", time.Minute)
	require.Error(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err = d.TryLock(ctx, key, time.Minute)
	require.ErrorIs(t, err, context.Canceled)
}
