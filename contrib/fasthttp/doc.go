// Package staplefasthttp has no code of its own. It shows, and its tests check, how
// github.com/valyala/fasthttp staples:
//
//	var stapler staple.Stapler
//	defer stapler.Close()
//	config := stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}})
//	listener, err := tls.Listen("tcp", ":443", config)
//	...
//	err = fasthttp.Serve(listener, handler)
//
// The same goes for Serve of a fasthttp.Server. Its ListenAndServeTLS and ServeTLS
// can be used if the wrapped configuration is in Server.TLSConfig and both file
// names are empty:
//
//	server := &fasthttp.Server{Handler: handler, TLSConfig: config}
//	err := server.ListenAndServeTLS(":443", "", "")
//
// With file names they add a certificate of their own to the configuration, which
// crypto/tls serves without a staple to clients that name no server, and to all if
// there is no other. So do, of Server,
//
//   - AppendCert and AppendCertEmbed
//   - ListenAndServeTLSEmbed and ServeTLSEmbed with data that is not empty
//
// and the functions of the package of the same names.
package staplefasthttp
