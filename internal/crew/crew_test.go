package crew

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

func TestItMayGrowFromNothingWhileSomebodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Crew
		c.Wait() // for nobody
		require.True(t, c.Idle())
		c.Add(2)
		var waited [3]bool
		for i := range waited {
			go func() { c.Wait(); waited[i] = true }()
		}
		c.Done()
		synctest.Wait()
		require.Equal(t, [3]bool{}, waited)
		require.False(t, c.Idle())
		c.Done()
		c.Add(1)
		synctest.Wait()
		require.Equal(t, [3]bool{true, true, true}, waited, "there was a moment when all had ended")
		c.Done()
		require.True(t, c.Idle())
		require.Panics(t, c.Done)
	})
}

func TestItIsSafeForConcurrentUse(t *testing.T) {
	var c Crew
	for range 1000 {
		c.Add(1)
		go func() {
			c.Add(1)
			c.Done()
			c.Done()
		}()
		go c.Wait()
	}
	c.Wait()
	require.True(t, c.Idle())
}
