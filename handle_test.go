package staple

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// What a handshake reads of a handle would lie in two cache lines otherwise.
func TestAHandleTakesOneCacheLine(t *testing.T) {
	require.LessOrEqual(t, unsafe.Sizeof(Certificate{}), uintptr(64))
	require.Zero(t, unsafe.Offsetof(Certificate{}.slot))
}
