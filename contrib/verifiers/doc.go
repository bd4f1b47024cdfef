// Package verifiers has one test. It shows testdata/vectors, as they are and as staple trims them, to
// verifiers that others wrote, and prints what each says:
//
//	go test -v
//
// The programs are openssl, ocsptool and gnutls-cli, tstclnt of NSS, botan, and faketime, which sets their
// clocks to the vectors' time. One that is not installed is left out; with STAPLE_REQUIRE_PEERS=1 the test
// fails then. With -update, and all of them, it writes the table into docs/verifiers.md, and who is wrong
// into internal/vectors/measured.json; go generate ./internal/vectors is due after that.
package verifiers
