package stapleautocert_test

import (
	"log"
	"net/http"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"

	"github.com/go-staple/staple"
)

func Example() {
	manager := &autocert.Manager{
		Prompt:     autocert.AcceptTOS,
		HostPolicy: autocert.HostWhitelist("www.example.com"),
		Cache:      autocert.DirCache("/var/lib/myserver/certs"),
		Client:     &acme.Client{DirectoryURL: "https://acme.example.com/directory"}, // an authority that has a responder
	}
	stapler := staple.Stapler{Cache: staple.DirCache("/var/lib/myserver/ocsp")}
	defer stapler.Close()

	server := &http.Server{Addr: ":443", TLSConfig: stapler.TLSConfig(manager.TLSConfig())}
	log.Print(server.ListenAndServeTLS("", "")) // no file names: they would bypass the staple
}
