//go:build unix

package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/go-staple/staple/internal/world"
	"github.com/stretchr/testify/require"
)

func TestNobodyWaitsForAFIFO(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	for _, args := range [][]string{{"check", fifo}, {"check", "-ca", fifo, fifo}, {"fetch", "-o", os.DevNull, fifo}, {"verify", "-cert", fifo, fifo}} {
		stdout, stderr, exit := program(t, args...)
		require.Equal(t, 3, exit)
		require.Empty(t, stdout)
		require.Contains(t, stderr, "staple: "+fifo+": "+fifo+" is not a regular file")
	}
}

func TestAFileThatMayNotBeRead(t *testing.T) {
	if !world.IsChild() {
		world.RequirePass(t, world.Unprivileged(t))
		return
	}
	w := newLab(t)
	file := write(t, "chain.pem", chainPEM(w.leaf()))
	require.NoError(t, os.Chmod(file, 0))
	for _, args := range [][]string{{"check", file}, {"fetch", "-o", os.DevNull, file}, {"verify", "-cert", file, file}} {
		_, stderr, exit := program(t, args...)
		require.Equal(t, 3, exit)
		require.Contains(t, stderr, "permission denied: run this as somebody who may read it, who needs no key\n")
	}
}
