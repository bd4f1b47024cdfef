package staplefasthttp_test

import (
	"crypto/tls"
	"log"

	"github.com/valyala/fasthttp"

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

	listener, err := tls.Listen("tcp", ":443", config)
	if err != nil {
		log.Fatal(err)
	}
	log.Print(fasthttp.Serve(listener, func(ctx *fasthttp.RequestCtx) {
		ctx.WriteString("hello")
	}))
}
