// Package staple keeps the OCSP responses of TLS certificates current, so that
// every handshake of a Go TLS server, client or proxy carries a verified one: OCSP
// stapling, RFC 6066, section 8, and RFC 8446, section 4.4.2.1.
//
// A server needs three lines more than before:
//
//	var stapler staple.Stapler
//	defer stapler.Close()
//	config = stapler.TLSConfig(config)
//
// The zero [Stapler] works. [Stapler.TLSConfig] takes any tls.Config and returns a
// clone that staples and changes nothing else, whether its certificates come from
// Certificates, GetCertificate, GetConfigForClient or GetClientCertificate. To
// look after one certificate without wrapping a configuration, pass it to
// [Stapler.Add], or its files to [Stapler.AddFiles]. The result has a method for
// tls.Config.GetCertificate; that of Add has others to wait for the first response,
// to ask for a new one now, and to see how it stands.
//
// # How it works
//
// A [Fetcher] asks the responder that the certificate names, a [Verifier] decides
// whether to believe the answer, and a [Cache], if there is one, keeps it for the
// next start. The defaults are [HTTPFetcher] and [ResponseVerifier]. Nothing is
// stapled or stored that the Verifier has not accepted, and what comes out of the
// cache is verified again.
//
// This goes on in the background. A handshake takes the staple that is at hand,
// if it has not ended by the wall clock, and waits for neither network nor disk.
// A response is replaced when half of its validity has passed. If that fails, it
// is stapled on until its end, while the responder is asked again and again, with
// growing pauses; after its end, handshakes go on without. One certificate or a
// hundred thousand share one scheduler and a few workers, which [Stapler.Close]
// stops.
//
// A "revoked" answer replaces a good one at once, and nothing is stapled any more,
// unless [Stapler.StapleRevoked] says so. A certificate on hold may be good again at
// once; any other revocation outlasts its response, over restarts too, until two
// different good ones, half an hour apart, undo it. A certificate that names no
// responder, as those of many public authorities do not any more, is served as it is.
//
// What begins and ends goes to [Stapler.Logger] as far as an operator should know, to
// [Stapler.OnEvent] in full, and can be asked for with [Certificate.Status].
//
// # What bypasses it
//
// Two functions add a certificate of their own to a configuration, which crypto/tls
// then serves, without a staple, to clients that name no server, and to all if the
// configuration has no other. Give [net/http.Server.ListenAndServeTLS] and ServeTLS
// empty file names, and the names to [Stapler.AddFiles], which follows the files when
// they are renewed:
//
//	_, err := stapler.AddFiles("cert.pem", "key.pem")
//	...
//	server.TLSConfig = stapler.TLSConfig(nil)
//	err = server.ListenAndServeTLS("", "")
//
// And start a test server on a tls.NewListener of your own rather than with
// [net/http/httptest.Server.StartTLS].
//
// TLS itself sets limits, too. Only the leaf of a chain is stapled. A resumed
// session carries no staple. Clients can staple since TLS 1.3.
//
// # Must-Staple
//
// A certificate with the TLS feature extension of RFC 7633 tells clients to refuse
// it without a staple. Such a certificate should never be served without one: a
// wrapped configuration lets its handshakes wait for the first response, for five
// seconds at most. Before it listens, a server can make sure with [Stapler.Wait] or
// [Certificate.Wait], and a Cache takes it through restarts while the responder is
// down. With [Stapler.RequireStaple], a handshake that would lack the staple
// is refused by the server rather than the client.
//
// # Issuers
//
// The responder is asked about a certificate in terms of its issuer's certificate.
// That is looked for in the chain, in any order, then in [Stapler.Issuers], and then
// at the URL that the certificate gives for it; whichever has the key that verifies
// the leaf's signature is the issuer's. If there is none, [Certificate.Wait] returns
// [ErrNoIssuer], and handshakes go without a staple.
//
// # Cache
//
// Without a [Cache], a restarted server staples nothing until the responder has
// answered, and nothing at all if that is down. [DirCache] is a directory, which
// several processes can share. Any cache made for
// golang.org/x/crypto/acme/autocert works as well. What is cached is a public
// document; it is not trusted, so that write access to the cache gives no way to
// staple anything false.
//
// # Peers
//
// [Checker] refuses peers whose certificates are revoked: clients, which staple nothing
// as a rule, and servers. It asks about whoever comes without a staple:
//
//	checker := staple.Checker{Stapler: &stapler}
//	config.VerifyConnection = checker.VerifyConnection
//
// [ResponseVerifier.VerifyConnection], in the same place, looks at what is stapled and
// asks nobody. It refuses a revoked certificate, and a Must-Staple one without a staple;
// whoever else staples nothing passes.
//
// # Tests
//
// The package stapletest has a certificate authority and an OCSP responder to test
// against, without a network.
package staple
