// Package staplequic has no code of its own. It shows, and its tests check, how
// HTTP/3 by github.com/quic-go/quic-go staples, and plain QUIC as well:
//
//	var stapler staple.Stapler
//	defer stapler.Close()
//	config := stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}})
//	server := &http3.Server{Addr: ":443", Handler: handler, TLSConfig: config}
//	err := server.ListenAndServe()
//
// One wrapped configuration serves TCP, too; see the example. ListenAndServe and
// Serve prepare the configuration for HTTP/3 themselves. For a listener of your
// own, wrap first and call http3.ConfigureTLSConfig last, since that sets what the
// protocol needs on a clone:
//
//	listener, err := quic.ListenAddrEarly(addr, http3.ConfigureTLSConfig(config), nil)
//	...
//	err = server.ServeListener(listener)
//
// These load certificates from files into a configuration of their own, which does
// not staple; http3.Server.TLSConfig is ignored there:
//
//   - http3.Server.ListenAndServeTLS
//   - http3.ListenAndServeTLS
//   - http3.ListenAndServeQUIC
//
// A client checks the staple with VerifyConnection in TLSClientConfig of its
// http3.Transport. A resumed connection, 0-RTT included, shows the staple of the
// first one.
//
// A server refuses clients that are revoked, which staple nothing as a rule, with a
// staple.Checker:
//
//	checker := staple.Checker{Stapler: &stapler}
//	config := stapler.TLSConfig(&tls.Config{
//		Certificates:     []tls.Certificate{cert},
//		ClientAuth:       tls.RequireAndVerifyClientCert,
//		ClientCAs:        roots,
//		VerifyConnection: checker.VerifyConnection,
//	})
//
// It decides before a handler sees a request, 0-RTT included. A client can do the same
// with servers, but for what it sends in 0-RTT, which goes out before it hears of the server.
//
// Connections stay open for as long as clients like. To close those of clients that are
// revoked later, keep a list of what http3.Server.ConnContext is given, and call
// CloseWithError when Checker.OnEvent says EventRevoked; examples/mtls in the root has
// this for TCP.
package staplequic
