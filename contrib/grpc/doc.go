// Package staplegrpc has no code of its own. It shows, and its tests check, how
// google.golang.org/grpc staples, on either side:
//
//	var stapler staple.Stapler
//	defer stapler.Close()
//	config := stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}})
//	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
//
// A client that has a certificate staples it in the same way, in TLS 1.3, and
// checks the server's staple with VerifyConnection:
//
//	config := stapler.TLSConfig(&tls.Config{
//		Certificates:     []tls.Certificate{cert},
//		VerifyConnection: new(staple.ResponseVerifier).VerifyConnection,
//	})
//	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(credentials.NewTLS(config)))
//
// A server refuses clients that are revoked, which staple nothing as a rule, with a
// staple.Checker; a client does the same with servers:
//
//	checker := staple.Checker{Stapler: &stapler}
//	config := stapler.TLSConfig(&tls.Config{
//		Certificates:     []tls.Certificate{cert},
//		ClientAuth:       tls.RequireAndVerifyClientCert,
//		ClientCAs:        roots,
//		VerifyConnection: checker.VerifyConnection,
//	})
//
// Connections stay open for as long as clients like, and are not checked again. With
// MaxConnectionAge and MaxConnectionAgeGrace of keepalive.ServerParameters, clients have
// to come again, and streams end.
//
// Wrap the configuration before credentials.NewTLS takes it. These functions make a
// configuration of their own from a certificate or from files, and what they return
// does not staple:
//
//   - credentials.NewServerTLSFromCert
//   - credentials.NewServerTLSFromFile
//
// A handler finds what the client stapled in the peer's AuthInfo, as
// credentials.TLSInfo.State.OCSPResponse.
package staplegrpc
