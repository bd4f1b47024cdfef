package world

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const childEnv = "STAPLE_TEST_CHILD"

// Child returns a command that runs the present test in another process, where IsChild is true.
func Child(t *testing.T) *exec.Cmd {
	self, err := os.Executable()
	require.NoError(t, err)
	pattern := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	cmd := exec.CommandContext(t.Context(), self, "-test.run="+pattern)
	cmd.Env = append(os.Environ(), childEnv+"=1",
		"GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE")) // or each takes a second more
	return cmd
}

// IsChild reports whether this process was started by Child.
func IsChild() bool { return os.Getenv(childEnv) != "" }
