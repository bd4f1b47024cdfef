// Package staplecertmagic has no code of its own. It shows, and its tests check,
// how certificates of github.com/caddyserver/certmagic are stapled by package
// staple rather than by CertMagic, whose own stapling is switched off:
//
//	magic := certmagic.NewDefault()
//	magic.OCSP.DisableStapling = true
//	err := magic.ManageSync(ctx, []string{"www.example.com"})
//	...
//	var stapler staple.Stapler
//	defer stapler.Close()
//	config := magic.TLSConfig()
//	config.NextProtos = append([]string{"h2", "http/1.1"}, config.NextProtos...)
//	server := &http.Server{Addr: ":443", TLSConfig: stapler.TLSConfig(config)}
//	err = server.ListenAndServeTLS("", "")
//
// A certificate is stapled from when it is first served; so is each that CertMagic
// puts in its place later.
//
// # What to know
//
//   - Leave DisableStapling out, and both ask the responder. What CertMagic staples
//     is then verified like a cached response, and the newer one is served.
//   - certmagic.HTTPS, certmagic.Listen and certmagic.TLS make configurations of their
//     own, which package staple does not see.
//   - CertMagic learns from its own stapling that a certificate is revoked, and
//     replaces it. With that off, do so on the event; the example shows how.
//   - The first handshake after a renewal goes without a staple, since the
//     certificate is first seen in it. A Must-Staple one waits for the responder
//     instead, for five seconds at most.
package staplecertmagic
