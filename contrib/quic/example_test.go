package staplequic_test

import (
	"crypto/tls"
	"crypto/x509"
	"log"
	"net/http"
	"os"

	"github.com/quic-go/quic-go/http3"

	"github.com/go-staple/staple"
)

// HTTP/3 on UDP, and HTTP/1 and 2 on TCP beside it, by which clients learn of it.
func Example() {
	cert, err := tls.LoadX509KeyPair("cert.pem", "key.pem")
	if err != nil {
		log.Fatal(err)
	}
	stapler := staple.Stapler{Cache: staple.DirCache("/var/cache/myserver/ocsp")}
	defer stapler.Close()
	config := stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}})

	h3 := &http3.Server{Addr: ":443", Handler: http.DefaultServeMux, TLSConfig: config}
	defer h3.Close()
	go h3.ListenAndServe()

	tcp := &http.Server{Addr: ":443", TLSConfig: config, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h3.SetQUICHeaders(w.Header())
		http.DefaultServeMux.ServeHTTP(w, r)
	})}
	log.Print(tcp.ListenAndServeTLS("", "")) // no file names: they would bypass the staple
}

// Mutual TLS by HTTP/3 that refuses clients that are revoked.
func Example_mutualTLS() {
	cert, err := tls.LoadX509KeyPair("cert.pem", "key.pem")
	if err != nil {
		log.Fatal(err)
	}
	pem, err := os.ReadFile("clients-ca.pem")
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)

	stapler := staple.Stapler{Cache: staple.DirCache("/var/cache/myserver/ocsp")}
	defer stapler.Close()
	checker := staple.Checker{Stapler: &stapler}
	server := &http3.Server{Addr: ":443", Handler: http.DefaultServeMux, TLSConfig: stapler.TLSConfig(&tls.Config{
		Certificates:     []tls.Certificate{cert},
		ClientAuth:       tls.RequireAndVerifyClientCert,
		ClientCAs:        roots,
		VerifyConnection: checker.VerifyConnection,
	})}
	log.Print(server.ListenAndServe())
}
