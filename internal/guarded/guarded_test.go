package guarded

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A store is slow, and uses its memory again.
type store struct {
	buffer []byte
	takes  time.Duration
	calls  int
	gives  time.Duration // a lock back
}

func (s *store) call(ctx context.Context) error {
	s.calls++
	select {
	case <-time.After(s.takes):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *store) Get(ctx context.Context, key string) ([]byte, error) { return s.buffer, s.call(ctx) }

func (s *store) Put(ctx context.Context, key string, data []byte) error {
	err := s.call(ctx)
	clear(data)
	return err
}

func (s *store) Delete(ctx context.Context, key string) error { return s.call(ctx) }

func (s *store) TryLock(ctx context.Context, key string, ttl time.Duration) (func(), bool, error) {
	return func() { time.Sleep(s.gives) }, true, s.call(ctx)
}

func TestItSharesNoMemoryWithTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{buffer: []byte("one")}
		c := New(s)
		got, err := c.Get(t.Context(), "")
		require.NoError(t, err)
		copy(s.buffer, "two")
		require.Equal(t, "one", string(got))
		given := []byte("given")
		require.NoError(t, c.Put(t.Context(), "", given))
		require.Equal(t, "given", string(given))
	})
}

func TestCallsOfAKindThatHangAreNotMadeForAWhile(t *testing.T) {
	for name, call := range map[string]func(ctx context.Context, c *Cache) error{
		"Get":     func(ctx context.Context, c *Cache) error { _, err := c.Get(ctx, ""); return err },
		"Put":     func(ctx context.Context, c *Cache) error { return c.Put(ctx, "", nil) },
		"Delete":  func(ctx context.Context, c *Cache) error { return c.Delete(ctx, "") },
		"TryLock": func(ctx context.Context, c *Cache) error { _, _, err := c.TryLock(ctx, "", time.Second); return err },
		"unlock": func(ctx context.Context, c *Cache) error {
			unlock, ok, err := c.TryLock(ctx, "", time.Second)
			if ok {
				unlock()
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &store{takes: time.Hour}
				if name == "unlock" {
					s.takes, s.gives = 0, 30*time.Second
				}
				c := New(s)
				require.True(t, c.Locks())
				began, passedBy := time.Now(), 0
				for range 20 {
					ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
					if errors.Is(call(ctx, c), ErrPassedBy) {
						passedBy++
					}
					cancel()
				}
				require.GreaterOrEqual(t, passedBy, 16)
				require.Less(t, time.Since(began), 3*time.Minute)

				s.takes, s.gives = 0, 0
				time.Sleep(time.Minute)
				require.NoError(t, call(t.Context(), c))
				require.NoError(t, call(t.Context(), c))
			})
		})
	}
}
