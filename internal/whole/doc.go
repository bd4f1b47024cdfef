// Package whole tests package staple as a whole, through what it exports: configurations against those of crypto/tls
// (the differential test).
//
// Some tests are samples of what they can be, and have flags for more:
//
//	go test -run '^TestDifferential$' -pairs 200000 -seed 2 ./internal/whole
//	go test -run '^TestDifferential$' -seed 2 -pair 4711 ./internal/whole      # one pair, to reproduce a finding
//
// They stand apart because they take long, and because nothing here may know how the Stapler is made: whatever is
// behind its methods, these tests stay as they are.
package whole
