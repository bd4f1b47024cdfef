// Package differential tests what TLSConfig returns against crypto/tls, with configurations and clients drawn by chance: for
// every ClientHello both must choose the same certificate from the same configuration. It has no more than a sample in
// go test. For more:
//
//	go test ./internal/differential -timeout 0 -run '^TestDifferential$' -pairs 200000 -seed 2
//	go test ./internal/differential -run '^TestDifferential$' -seed 2 -pair 4711 # one pair, to reproduce a finding
//
// The flags must come after the package's path.
package differential
