package main

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
	"testing"
	"unsafe"

	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/internal/testhttp"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

// newTerminal returns a terminal, and what shows what is written to it.
func newTerminal(t *testing.T) (tty *os.File, shown func() string) {
	pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		peer.Missing(t, "/dev/ptmx", err)
	}
	t.Cleanup(func() { pty.Close() })
	var unlocked, n int32
	for request, arg := range map[uintptr]*int32{syscall.TIOCSPTLCK: &unlocked, syscall.TIOCGPTN: &n} {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, pty.Fd(), request, uintptr(unsafe.Pointer(arg)))
		require.Zero(t, errno)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { tty.Close() })
	return tty, func() string {
		_, err := tty.WriteString("\x00")
		require.NoError(t, err)
		var all []byte
		for {
			b := make([]byte, 4096)
			n, err := pty.Read(b)
			require.NoError(t, err)
			if all = append(all, b[:n]...); bytes.HasSuffix(all, []byte{0}) {
				return string(all[:len(all)-1])
			}
		}
	}
}

func TestOnATerminal(t *testing.T) {
	w := newLab(t)
	url := testhttp.NewServer(t, w.responder)
	chain := write(t, "chain.pem", chainPEM(w.leaf(func(o *stapletest.LeafOptions) { o.Responders = []string{url} })))
	tty, shown := newTerminal(t)
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")

	require.Equal(t, 0, run(t.Context(), []string{"check", chain}, tty, new(bytes.Buffer)))
	require.Contains(t, shown(), chain+": \x1b[32mgood\x1b[0m\r\n")
	t.Setenv("NO_COLOR", "1")
	require.Equal(t, 0, run(t.Context(), []string{"check", chain}, tty, new(bytes.Buffer)))
	require.NotContains(t, shown(), "\x1b")
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "dumb")
	require.Equal(t, 0, run(t.Context(), []string{"check", chain}, tty, new(bytes.Buffer)))
	require.NotContains(t, shown(), "\x1b")

	var stdout, stderr bytes.Buffer
	require.Equal(t, 0, run(t.Context(), []string{"check", chain}, &stdout, tty))
	require.Regexp(t, "(?s)^\r\x1b\\[K1 to do: .*\r\x1b\\[K1 to do: asking the responder of .*\r\x1b\\[K$", shown(), "progress, and no trace of it")
	require.Equal(t, 0, run(t.Context(), []string{"check", "-v", chain}, &stdout, tty))
	require.NotContains(t, shown(), "to do")

	require.Equal(t, 3, run(t.Context(), []string{"fetch", chain}, tty, &stderr), "a response is binary")
	require.Empty(t, shown())
	require.Contains(t, stderr.String(), "give -o FILE, or redirect the output")
	require.Equal(t, 0, run(t.Context(), []string{"fetch", "-o", os.DevNull, chain}, tty, tty))
	require.Contains(t, shown(), "staple: /dev/null: good until ")

	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer null.Close()
	require.Equal(t, 0, run(t.Context(), []string{"fetch", chain}, null, &stderr), "it is no terminal")
}
