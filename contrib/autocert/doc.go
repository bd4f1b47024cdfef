// Package stapleautocert has no code of its own. It shows, and its tests check
// against the ACME server Pebble, how the certificates of
// golang.org/x/crypto/acme/autocert are stapled:
//
//	manager := &autocert.Manager{
//		Prompt:     autocert.AcceptTOS,
//		HostPolicy: autocert.HostWhitelist("www.example.com"),
//		Cache:      autocert.DirCache("/var/lib/myserver/certs"),
//	}
//	stapler := staple.Stapler{Cache: staple.DirCache("/var/lib/myserver/ocsp")}
//	defer stapler.Close()
//	server := &http.Server{Addr: ":443", TLSConfig: stapler.TLSConfig(manager.TLSConfig())}
//	err := server.ListenAndServeTLS("", "")
//
// A certificate is stapled from when it is first served; so is each that the
// Manager gets in its place later. The certificates that answer acme-tls/1
// challenges pass through as they are.
//
// Let's Encrypt's certificates name no responder since 2025, and are served as they
// are. It takes another authority for this to be of use.
//
// # What to know
//
//   - autocert.NewListener and Manager.Listener make a configuration of their own,
//     which does not staple. Use tls.Listen with the wrapped one.
//   - The first handshake after a renewal goes without a staple, since the
//     certificate is first seen in it. Where Manager.ExtraExtensions asks for
//     Must-Staple it waits for the responder instead, for five seconds at most.
//   - The Manager does not replace a certificate that is revoked. To find out, use
//     Stapler.OnEvent; to have it replaced, remove it from Manager.Cache and start
//     again.
//   - One autocert.DirCache for certificates and responses works, too, but holds
//     private keys, which a directory of responses need not.
package stapleautocert
