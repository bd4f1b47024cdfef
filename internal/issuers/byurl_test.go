package issuers

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/go-staple/staple/internal/bounded"
	"github.com/go-staple/staple/stapletest"
)

const testURL = "http://ca.example/ca.cer"

var errNone = errors.New("nothing there")

// A source counts how often it is asked.
type source struct {
	asked atomic.Int32
	get   func(ctx context.Context) ([]*x509.Certificate, error)
}

func (s *source) certificates(ctx context.Context) ([]*x509.Certificate, error) {
	s.asked.Add(1)
	return s.get(ctx)
}

func has(certs ...*x509.Certificate) *source {
	return &source{get: func(context.Context) ([]*x509.Certificate, error) { return certs, nil }}
}

func TestIssuersAreFetchedOnceForAllLeaves(t *testing.T) {
	var b ByURL
	right := testCA().Issuer
	s := has(testCA().Root, right)
	get := s.get
	var askers sync.WaitGroup
	s.get = func(ctx context.Context) ([]*x509.Certificate, error) {
		askers.Wait() // so that all of them come while it is on its way
		return get(ctx)
	}
	o := stapletest.LeafOptions{Key: testCA().Leaf(stapletest.LeafOptions{}).PrivateKey.(crypto.Signer)}
	leaf := testCA().Leaf(o).Leaf
	require.Empty(t, b.Known(testURL, leaf))
	var wg sync.WaitGroup
	askers.Add(20)
	for range 20 {
		wg.Go(func() {
			askers.Done()
			for range 25 {
				got, err := b.Get(t.Context(), testURL, testCA().Leaf(o).Leaf, s.certificates)
				if err != nil || len(got) != 1 || !got[0].Equal(right) {
					t.Error(got, err)
				}
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, s.asked.Load())
	require.Equal(t, []*x509.Certificate{right}, b.Known(testURL, leaf))
	require.Empty(t, b.Known(testURL+"?", leaf))

	t.Run("another issuer at the same URL", func(t *testing.T) {
		other := stapletest.NewCA(stapletest.CAOptions{}).Leaf(o).Leaf
		require.Empty(t, b.Known(testURL, other))
		got, err := b.Get(t.Context(), testURL, other, s.certificates)
		require.NoError(t, err)
		require.Empty(t, got)
		require.EqualValues(t, 2, s.asked.Load())
		require.Equal(t, []*x509.Certificate{right}, b.Known(testURL, leaf), "what was found is still there")
	})
	t.Run("another URL", func(t *testing.T) {
		got, err := b.Get(t.Context(), testURL+"?", leaf, s.certificates)
		require.NoError(t, err)
		require.Len(t, got, 1)
		require.EqualValues(t, 3, s.asked.Load())
	})
	t.Run("an error is not remembered", func(t *testing.T) {
		var b ByURL
		_, err := b.Get(t.Context(), testURL, leaf, func(context.Context) ([]*x509.Certificate, error) { return nil, errNone })
		require.ErrorIs(t, err, errNone)
		got, err := b.Get(t.Context(), testURL, leaf, s.certificates)
		require.NoError(t, err)
		require.Len(t, got, 1)
	})
}

func TestWhatIsRememberedIsBounded(t *testing.T) {
	var b ByURL
	leaf := testCA().Leaf(stapletest.LeafOptions{}).Leaf
	for i := range bounded.Size + 100 {
		_, err := b.Get(t.Context(), fmt.Sprint(testURL, i), leaf, has(testCA().Issuer).certificates)
		require.NoError(t, err)
	}
	require.Equal(t, bounded.Size, b.found.Len())
	require.Empty(t, b.inFlight)
}

func TestWaitingForAnothersRequest(t *testing.T) {
	leaf := testCA().Leaf(stapletest.LeafOptions{}).Leaf
	hanging := func() (s *source) {
		s = new(source)
		s.get = func(ctx context.Context) ([]*x509.Certificate, error) {
			if s.asked.Load() == 1 {
				ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
				defer cancel()
				<-ctx.Done()
				return nil, errNone
			}
			return []*x509.Certificate{testCA().Issuer}, nil
		}
		return s
	}
	t.Run("a waiter asks itself if the first gave up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var b ByURL
			s := hanging()
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() {
				if _, err := b.Get(ctx, testURL, leaf, s.certificates); err == nil {
					t.Error("should have been cancelled")
				}
			})
			synctest.Wait()
			for range 3 {
				wg.Go(func() {
					if _, err := b.Get(t.Context(), testURL, leaf, s.certificates); err != nil {
						t.Error(err)
					}
				})
			}
			synctest.Wait()
			require.EqualValues(t, 1, s.asked.Load())
			cancel()
			wg.Wait()
			require.EqualValues(t, 2, s.asked.Load())
			require.Empty(t, b.inFlight)
		})
	})
	t.Run("a waiter gives up by itself", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var b ByURL
			s := hanging()
			var wg sync.WaitGroup
			wg.Go(func() { b.Get(t.Context(), testURL, leaf, s.certificates) })
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			_, err := b.Get(ctx, testURL, leaf, s.certificates)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, time.Second, time.Since(began))
			wg.Wait()
		})
	})
	t.Run("a timeout of the request itself is everybody's", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var b ByURL
			s := hanging()
			var wg sync.WaitGroup
			for range 5 {
				wg.Go(func() {
					began := time.Now()
					_, err := b.Get(t.Context(), testURL, leaf, s.certificates)
					if !errors.Is(err, errNone) || time.Since(began) != 10*time.Second {
						t.Error(err, time.Since(began))
					}
				})
			}
			wg.Wait()
			require.EqualValues(t, 1, s.asked.Load())
		})
	})
}
