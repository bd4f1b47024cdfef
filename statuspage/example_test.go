package statuspage_test

import (
	"log"
	"net/http"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/statuspage"
)

func ExampleHandler() {
	var stapler staple.Stapler
	defer stapler.Close()
	// ... the server's configuration goes through stapler.TLSConfig ...

	admin := http.NewServeMux()
	admin.Handle("/staples/", &statuspage.Handler{Stapler: &stapler, Refresh: true})
	log.Fatal(http.ListenAndServe("127.0.0.1:8081", admin)) // not where the world comes
}
