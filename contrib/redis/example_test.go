package stapleredis_test

import (
	"crypto/tls"
	"log"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/go-staple/staple"
	stapleredis "github.com/go-staple/staple/contrib/redis"
)

// Every server of a fleet runs this. One of them asks the responder, the others find
// its answer in Redis.
func Example() {
	client := redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs:     []string{"redis.example.com:6379"}, // several: a cluster
		TLSConfig: &tls.Config{},

		ContextTimeoutEnabled: true, // or a call that is given up goes on until ReadTimeout
		DialerRetries:         1,    // five, the default, take as long as Cache.Timeout
	})
	defer client.Close()

	stapler := &staple.Stapler{Cache: &stapleredis.Cache{Client: client}}
	defer stapler.Close()

	cert, err := tls.LoadX509KeyPair("cert.pem", "key.pem")
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{
		Addr:      ":https",
		TLSConfig: stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}}),
	}
	log.Print(server.ListenAndServeTLS("", ""))
}

// Two fleets can share one Redis, each with keys of its own. Who is far away from
// Redis may wait longer for it.
func ExampleCache() {
	client := redis.NewClient(&redis.Options{Addr: "localhost:6379", ContextTimeoutEnabled: true})
	cache := &stapleredis.Cache{
		Client:  client,
		Prefix:  "staging:staple:",
		Timeout: 2 * time.Second,
	}
	_ = &staple.Stapler{Cache: cache}
}
