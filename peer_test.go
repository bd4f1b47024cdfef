package staple

import (
	"net"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// NeedPeer returns the path of another program that a test needs. Where it is missing, the test is
// skipped, or fails if STAPLE_REQUIRE_PEERS is 1. It is exported for package staple_test, as FreePort is.
func NeedPeer(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
	case os.Getenv("STAPLE_REQUIRE_PEERS") == "1":
		t.Fatalf("this test needs %s, and STAPLE_REQUIRE_PEERS is set: %v", name, err)
	default:
		t.Skipf("this test needs %s: %v", name, err)
	}
	return path
}

// FreePort returns a port of 127.0.0.1 on which nobody listens.
func FreePort(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	return port
}
