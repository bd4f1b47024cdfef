//go:build !race

package staple

const raceEnabled = false
