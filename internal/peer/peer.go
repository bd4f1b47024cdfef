// Package peer finds the programs that tests talk to.
package peer

import (
	"net"
	"os"
	"os/exec"
	"testing"
)

// Need returns the path of a program, by the first of its names that is found. Where it is missing, see
// Missing.
func Need(t testing.TB, names ...string) string {
	t.Helper()
	var missing error
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err == nil {
			return path
		}
		missing = err
	}
	Missing(t, names[0], missing)
	return ""
}

// Missing skips the test, which lacks what it needs, or fails it if STAPLE_REQUIRE_PEERS is 1.
func Missing(t testing.TB, what string, err error) {
	t.Helper()
	if os.Getenv("STAPLE_REQUIRE_PEERS") == "1" {
		t.Fatalf("this test needs %s, and STAPLE_REQUIRE_PEERS is set: %v", what, err)
	}
	t.Skipf("this test needs %s: %v", what, err)
}

// FreePort returns a port of 127.0.0.1 on which nobody listens.
func FreePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
