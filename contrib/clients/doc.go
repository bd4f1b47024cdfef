// Package clients has tests only. One runs the clients that people really use against servers that staple,
// and says in a table what each was told and what it answered:
//
//	go test -v -run TestClients
//
// Another one gives them client certificates, for servers that have a Checker, and says what they show of being
// refused since the certificate is revoked:
//
//	go test -v -run TestRefused
//
// A client that is not installed is left out; with STAPLE_REQUIRE_PEERS=1 the test fails then. With
// STAPLE_SCREENSHOTS, the name of a directory, it keeps there what the browsers showed.
package clients
