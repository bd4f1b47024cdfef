package world

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/go-staple/staple/internal/peer"
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

// Unprivileged returns a command as Child does, in which root has no capabilities: with them it may write anywhere.
func Unprivileged(t *testing.T) *exec.Cmd {
	cmd := Child(t)
	cmd.Args = append([]string{"setpriv", "--bounding-set=-all"}, cmd.Args...)
	cmd.Path = peer.Need(t, "setpriv")
	return cmd
}

// RequirePass runs a command of Child or Unprivileged, and requires that its test passes and is not skipped.
func RequirePass(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.Args = append(cmd.Args, "-test.v")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: "+t.Name())
}

// IsChild reports whether this process was started by Child.
func IsChild() bool { return os.Getenv(childEnv) != "" }
