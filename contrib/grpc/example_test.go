package staplegrpc_test

import (
	"crypto/tls"
	"log"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/go-staple/staple"
)

func Example() {
	cert, err := tls.LoadX509KeyPair("cert.pem", "key.pem")
	if err != nil {
		log.Fatal(err)
	}
	stapler := staple.Stapler{Cache: staple.DirCache("/var/cache/myserver/ocsp")}
	defer stapler.Close()
	config := stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}})

	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	listener, err := net.Listen("tcp", ":8443")
	if err != nil {
		log.Fatal(err)
	}
	log.Print(server.Serve(listener))
}

// A client whose certificate is stapled, and who refuses a server that is revoked.
func Example_client() {
	cert, err := tls.LoadX509KeyPair("client.pem", "client-key.pem")
	if err != nil {
		log.Fatal(err)
	}
	var stapler staple.Stapler
	defer stapler.Close()
	config := stapler.TLSConfig(&tls.Config{
		Certificates:     []tls.Certificate{cert},
		VerifyConnection: new(staple.ResponseVerifier).VerifyConnection,
	})

	conn, err := grpc.NewClient("server.example.com:8443", grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
}
