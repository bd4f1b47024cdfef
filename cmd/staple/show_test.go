package main

import (
	"bytes"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/go-staple/staple/cmd/staple/internal/verdict"
	"github.com/stretchr/testify/require"
)

func TestBar(t *testing.T) {
	from := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		now  time.Duration
		want string
	}{
		{-time.Hour, "[|------------------------------] 2026-11-11T00:00:00Z, 10 days left"},
		{0, "[|------------------------------] 2026-11-11T00:00:00Z, 10 days left"},
		{5 * day, "[===============|---------------] 2026-11-11T00:00:00Z, 5d 0h left"},
		{10*day - time.Minute, "[=============================|-] 2026-11-11T00:00:00Z, 1m left"},
		{10 * day, "[==============================|] 2026-11-11T00:00:00Z, 0m left"},
		{11*day + 2*time.Hour, "[==============================|] 2026-11-11T00:00:00Z, 1d 2h ago"},
	} {
		require.Equal(t, "2026-11-01T00:00:00Z "+tt.want, bar(from, from.Add(10*day), from.Add(tt.now)))
	}
	require.Equal(t, "2026-11-01T00:00:00Z [==============================|] 2026-11-01T00:00:00Z, 0m left", bar(from, from, from))
	require.Equal(t, "3h 5m left", remains(3*time.Hour+5*time.Minute))
}

func TestPrintable(t *testing.T) {
	require.Equal(t, `a\x1b[2Jö\u202e\x9b\n�`, printable("a\x1b[2Jö\u202e\x9b\n�", 100))
	require.Equal(t, "aaa...", printable(strings.Repeat("a", 10), 3))
	require.Equal(t, "a; b", plain(errors.Join(errors.New("staple: a"), errors.New("b"))))
}

func TestSerialNumbersAreInHexadecimal(t *testing.T) {
	for n, want := range map[int64]string{0: "00", 1: "01", 255: "ff", 256: "0100", -1: "-01"} {
		require.Equal(t, want, hexadecimal(big.NewInt(n)))
	}
}

func TestWorse(t *testing.T) {
	order := []int{0, 1, 3, 2}
	for i, a := range order {
		for j, b := range order {
			require.Equal(t, order[max(i, j)], verdict.Worse(a, b))
		}
	}
}

func TestOnlyTerminalsHaveColourAndProgress(t *testing.T) {
	var b bytes.Buffer
	require.Equal(t, "good", colour(&b, 0, "good"))
	p := newProgress(&b, 1, false)
	p.say("waiting")
	p.clear()
	require.Empty(t, b.String())
}
