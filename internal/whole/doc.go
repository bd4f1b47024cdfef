// Package whole tests package staple as a whole, through what it exports: a year of outages, garbage and restarts in
// a bubble of simulated time, thousands of certificates at once, and configurations against those of crypto/tls (the
// differential test).
//
// Most of it is a sample of what it can be. For more:
//
//	STAPLE_YEAR=1 go test -v -timeout 0 -run TestAYearWithoutABadStaple ./internal/whole # twenty worlds in place of two
//	go test ./internal/whole -run '^TestDifferential$' -timeout 0 -pairs 200000 -seed 2
//	go test ./internal/whole -run '^TestDifferential$' -seed 2 -pair 4711 # one pair, to reproduce a finding
//
// The flags must come after the package's path. With -short or -race the year is a month, and there are fewer
// certificates.
//
// These tests stand apart because they take long, and because they may know nothing of how the Stapler is made:
// whatever is behind its methods, they stay as they are. What they have in common with the root's tests is in
// internal/world.
package whole
