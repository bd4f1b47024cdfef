package bounded

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMap(t *testing.T) {
	var m Map[int, string]
	require.Empty(t, m.Get(1))
	require.Zero(t, m.Len())
	m.Put(1, "a")
	m.Put(1, "b")
	require.Equal(t, "b", m.Get(1))
	require.Equal(t, 1, m.Len())

	t.Run("it grows no further, and has what came last", func(t *testing.T) {
		for i := range 10 * Size {
			m.Put(i, "c")
			require.LessOrEqual(t, m.Len(), Size)
			require.Equal(t, "c", m.Get(i))
		}
		require.Equal(t, Size, m.Len())
	})
	t.Run("a new value for what is there displaces nothing", func(t *testing.T) {
		before := make(map[int]bool)
		for k := range m.entries {
			before[k] = true
		}
		for k := range before {
			m.Put(k, "d")
		}
		require.Len(t, before, m.Len())
		for k := range before {
			require.Equal(t, "d", m.Get(k))
		}
	})
}
