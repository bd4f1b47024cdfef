package staplequic_test

import (
	"crypto/tls"
	"log"
	"net/http"

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
