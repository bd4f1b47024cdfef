package whole

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

func TestWhatIsOldFromTheBeginningAndRenewedInTimeIsNeverExpiring(t *testing.T) {
	const day = 24 * time.Hour
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Period: day, Age: 28 * day, Validity: 28*day + 36*time.Hour})
		c := w.Add(w.Stapler(), w.Leaf())
		for range 20 * 24 {
			time.Sleep(time.Hour)
			require.Equal(t, staple.StateStapled, c.Status().State, "%v left", time.Until(c.Status().Expires))
		}
		synctest.Wait()
		require.NotContains(t, w.Log.Kinds(), staple.EventExpiring)

		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 503})
		left := time.Until(c.Status().Expires)
		require.GreaterOrEqual(t, left, 12*time.Hour)
		time.Sleep(left - 4*time.Hour)
		require.Equal(t, staple.StateExpiring, c.Status().State)
		require.Contains(t, w.Log.Kinds(), staple.EventExpiring)
	})
}

func TestStatusIsReadWithoutAnAllocationAlsoInAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 503})
		c, err := w.Stapler().Add(w.Leaf())
		require.NoError(t, err)
		time.Sleep(time.Minute)
		synctest.Wait()
		st := c.Status()
		require.Equal(t, staple.StateUnstapled, st.State)
		require.Equal(t, st.NextRefresh, st.PausedUntil)
		require.ErrorIs(t, st.Err, st.PauseErr)
		require.Zero(t, testing.AllocsPerRun(100, func() { st = c.Status() }))
	})
}
