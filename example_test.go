package staple_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
	"golang.org/x/crypto/ocsp"
)

// A demo has what the examples need: a CA, its responder, a certificate, and a Fetcher that asks the
// responder without a network. Outside of tests, the zero Stapler's Fetcher is the right one.
type demo struct {
	ca        *stapletest.CA
	responder *stapletest.Responder
	cert      tls.Certificate
	fetcher   staple.Fetcher
}

func newDemo() demo {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	responder := stapletest.NewResponder(ca)
	return demo{
		ca:        ca,
		responder: responder,
		cert:      ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}}),
		fetcher:   &staple.HTTPFetcher{Client: responder.Client()},
	}
}

// write writes the certificate's chain and key in PEM.
func (d demo) write(certFile, keyFile string) {
	var chain []byte
	for _, der := range d.cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	key, err := x509.MarshalPKCS8PrivateKey(d.cert.PrivateKey)
	if err != nil {
		log.Fatal(err)
	}
	err = errors.Join(os.WriteFile(certFile, chain, 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
	if err != nil {
		log.Fatal(err)
	}
}

// client is the configuration of a client that trusts the CA.
func (d demo) client() *tls.Config {
	return &tls.Config{RootCAs: d.ca.Roots(), ServerName: "localhost"}
}

// Any TLS listener: wrap its configuration.
func Example() {
	demo := newDemo()
	stapler := staple.Stapler{Fetcher: demo.fetcher}
	defer stapler.Close()
	config := stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{demo.cert}})

	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			conn.(*tls.Conn).Handshake()
			conn.Close()
		}
	}()

	stapler.Wait(context.Background()) // only so that the output is the same each time
	conn, err := tls.Dial("tcp", listener.Addr().String(), demo.client())
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	fmt.Println("stapled:", len(conn.ConnectionState().OCSPResponse) > 0)
	// Output: stapled: true
}

// An http.Server: the file names of ServeTLS and ListenAndServeTLS must be empty, since they would add a
// certificate that is not stapled.
func ExampleStapler_TLSConfig() {
	demo := newDemo()
	stapler := staple.Stapler{Fetcher: demo.fetcher}
	defer stapler.Close()

	server := &http.Server{
		TLSConfig: stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{demo.cert}}),
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go server.ServeTLS(listener, "", "")
	defer server.Close()

	stapler.Wait(context.Background()) // only so that the output is the same each time
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: demo.client()}}
	response, err := client.Get("https://" + listener.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	response.Body.Close()
	fmt.Println("stapled:", len(response.TLS.OCSPResponse) > 0)
	// Output: stapled: true
}

// An http.Server with a certificate in files that somebody else renews.
func ExampleStapler_AddFiles() {
	demo := newDemo()
	dir, err := os.MkdirTemp("", "staple")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	certFile, keyFile := filepath.Join(dir, "fullchain.pem"), filepath.Join(dir, "key.pem")
	demo.write(certFile, keyFile) // as certbot would

	stapler := staple.Stapler{Fetcher: demo.fetcher}
	defer stapler.Close()
	files, err := stapler.AddFiles(certFile, keyFile)
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{TLSConfig: stapler.TLSConfig(nil)}
	_ = server // server.ListenAndServeTLS("", "")

	demo.cert = demo.ca.Leaf(stapletest.LeafOptions{Names: []string{"renewed.example"}, Responders: []string{"http://ocsp.example"}})
	demo.write(certFile, keyFile)
	if err := files.Reload(context.Background()); err != nil { // or wait for ten seconds
		log.Fatal(err)
	}
	st := files.Certificate().Status()
	fmt.Println(st.Leaf.DNSNames, "stapled:", st.Stapled)
	// Output: [renewed.example] stapled: true
}

// One certificate, without wrapping a configuration.
func ExampleStapler_Add() {
	demo := newDemo()
	stapler := staple.Stapler{Fetcher: demo.fetcher}
	defer stapler.Close()

	c, err := stapler.Add(demo.cert)
	if err != nil {
		log.Fatal(err)
	}
	config := &tls.Config{GetCertificate: c.GetCertificate}
	_ = config // for a server

	if err := c.Wait(context.Background()); err != nil {
		log.Fatal(err)
	}
	st := c.Status()
	fmt.Println("stapled:", st.Stapled, "by", st.Responder)
	fmt.Println("for a week:", st.Expires.Sub(st.ThisUpdate) == 7*24*time.Hour)
	// Output:
	// stapled: true by http://ocsp.example
	// for a week: true
}

// A server that listens only once every certificate is stapled, or has shown that it cannot be, or ten
// seconds have passed.
func ExampleStapler_Wait() {
	demo := newDemo()
	stapler := staple.Stapler{Fetcher: demo.fetcher}
	defer stapler.Close()
	plain := demo.ca.Leaf(stapletest.LeafOptions{Names: []string{"plain.example"}}) // names no responder
	config := stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{demo.cert, plain}})

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := stapler.Wait(ctx); err != nil {
		log.Print(err) // says what is missing
	}
	_ = config // listen now

	for c := range stapler.Certificates() {
		st := c.Status()
		fmt.Println(st.Leaf.Subject.CommonName, st.Stapled, st.Err)
	}
	// Output:
	// localhost true <nil>
	// plain.example false staple: no OCSP responder to ask
}

// A Must-Staple certificate at start-up: without its staple the server does not listen. Whoever restarts while the responder is down
// has it from the Cache.
func Example_mustStaple() {
	demo := newDemo()
	cert := demo.ca.Leaf(stapletest.LeafOptions{MustStaple: true, Responders: []string{"http://ocsp.example"}})
	dir, err := os.MkdirTemp("", "staple")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	start := func() error {
		stapler := staple.Stapler{
			Fetcher:       demo.fetcher,
			Cache:         staple.DirCache(dir),
			RequireStaple: true, // what fails later fails here, and not at the clients
			Logger:        slog.New(slog.DiscardHandler),
		}
		defer stapler.Close()
		config := stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}})
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := stapler.Wait(ctx); err != nil {
			return err // which names the certificate, and says why
		}
		_ = config // listen now
		return nil
	}

	demo.responder.Set(nil, stapletest.Answer{HTTPStatus: http.StatusServiceUnavailable})
	fmt.Println("the responder is down, it starts:", start() == nil)
	demo.responder.Reset(nil)
	fmt.Println("the responder is up, it starts:", start() == nil)
	demo.responder.Set(nil, stapletest.Answer{HTTPStatus: http.StatusServiceUnavailable})
	fmt.Println("it is down again, it starts:", start() == nil)
	// Output:
	// the responder is down, it starts: false
	// the responder is up, it starts: true
	// it is down again, it starts: true
}

// A fleet: servers with the same certificate and a Cache that they share, and that is a Locker. One of them asks, and all
// staple the same response. A DirCache is one for the processes of a machine; contrib/redis has one for many machines.
func Example_fleet() {
	demo := newDemo()
	dir, err := os.MkdirTemp("", "staple")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for range 3 { // which are as many processes
		stapler := staple.Stapler{Fetcher: demo.fetcher, Cache: staple.DirCache(dir)}
		defer stapler.Close()
		stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{demo.cert}})
		if err := stapler.Wait(context.Background()); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println("requests:", len(demo.responder.Requests(demo.cert.Leaf)))
	// Output: requests: 1
}

// With a cache, a server that restarts while the responder is down staples from its first handshake on.
func ExampleDirCache() {
	demo := newDemo()
	dir, err := os.MkdirTemp("", "staple")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	down := staple.FetcherFunc(func(context.Context, *staple.Request) ([]byte, error) {
		return nil, errors.New("the responder is down")
	})

	for _, f := range []staple.Fetcher{demo.fetcher, down} {
		stapler := staple.Stapler{Fetcher: f, Cache: staple.DirCache(dir)}
		c, err := stapler.Add(demo.cert)
		if err != nil {
			log.Fatal(err)
		}
		if err := c.Wait(context.Background()); err != nil {
			log.Fatal(err)
		}
		fmt.Println("stapled:", c.Status().Stapled)
		stapler.Close() // has stored the response when it returns
	}
	// Output:
	// stapled: true
	// stapled: true
}

// Push instead of pull: another program keeps the responses in files. The files are read when a refresh
// is due, and at once on Refresh.
func ExampleFetcherFunc() {
	demo := newDemo()
	dir, err := os.MkdirTemp("", "staple")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	fetcher := staple.FetcherFunc(func(ctx context.Context, req *staple.Request) ([]byte, error) {
		return os.ReadFile(filepath.Join(dir, req.Leaf.DNSNames[0]+".ocsp"))
	})

	// The other program.
	if err := os.WriteFile(filepath.Join(dir, "localhost.ocsp"), demo.responder.Response(demo.cert.Leaf), 0o644); err != nil {
		log.Fatal(err)
	}

	stapler := staple.Stapler{Fetcher: fetcher}
	defer stapler.Close()
	c, err := stapler.Add(demo.cert)
	if err != nil {
		log.Fatal(err)
	}
	if err := c.Refresh(context.Background()); err != nil {
		log.Fatal(err)
	}
	fmt.Println("stapled:", c.Status().Stapled)
	// Output: stapled: true
}

// A Fetcher around the default one. It passes on the same Request, so that the HTTPFetcher can go on to
// the next URL until a response is accepted, and say which one answered. (A FetcherFunc is no IssuerFetcher;
// where chains may lack their issuer, use a struct that embeds *HTTPFetcher and has its own Fetch.)
func ExampleFetcherFunc_wrap() {
	demo := newDemo()
	cert := demo.ca.Leaf(stapletest.LeafOptions{Responders: []string{"ldap://ocsp.example", "http://ocsp.example"}})

	var fetches atomic.Int64
	stapler := staple.Stapler{
		Fetcher: staple.FetcherFunc(func(ctx context.Context, req *staple.Request) ([]byte, error) {
			fetches.Add(1)
			return demo.fetcher.Fetch(ctx, req)
		}),
	}
	defer stapler.Close()
	c, err := stapler.Add(cert)
	if err != nil {
		log.Fatal(err)
	}
	if err := c.Wait(context.Background()); err != nil {
		log.Fatal(err)
	}
	fmt.Println(fetches.Load(), "fetch, answered by", c.Status().Responder)
	// Output: 1 fetch, answered by http://ocsp.example
}

// A server of mutual TLS that refuses clients whose certificates are revoked. They staple nothing, and the responder is asked.
func ExampleChecker() {
	demo := newDemo()
	stapler := staple.Stapler{Fetcher: demo.fetcher, Logger: slog.New(slog.DiscardHandler)}
	defer stapler.Close()
	checker := staple.Checker{Stapler: &stapler}
	config := stapler.TLSConfig(&tls.Config{
		Certificates:     []tls.Certificate{demo.cert},
		ClientAuth:       tls.RequireAndVerifyClientCert,
		ClientCAs:        demo.ca.Roots(),
		VerifyConnection: checker.VerifyConnection,
	})

	connect := func(cert tls.Certificate) error {
		client := demo.client()
		client.Certificates = []tls.Certificate{cert}
		a, b := net.Pipe()
		defer b.Close()
		go io.Copy(io.Discard, tls.Client(a, client))
		return tls.Server(b, config).Handshake()
	}
	alice := demo.ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}})
	mallory := demo.ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}})
	demo.responder.Set(mallory.Leaf, stapletest.Answer{Status: ocsp.Revoked})

	fmt.Println("alice:", connect(alice), connect(alice))
	fmt.Println("requests about her:", len(demo.responder.Requests(alice.Leaf)))
	fmt.Println("mallory is revoked:", errors.Is(connect(mallory), staple.ErrRevoked))
	// Output:
	// alice: <nil> <nil>
	// requests about her: 1
	// mallory is revoked: true
}

// A client that refuses a server whose certificate is revoked by its staple, or is Must-Staple and comes
// without one.
func ExampleResponseVerifier_VerifyConnection() {
	demo := newDemo()
	var verifier staple.ResponseVerifier
	client := demo.client()
	client.VerifyConnection = verifier.VerifyConnection

	connect := func() error {
		stapler := staple.Stapler{Fetcher: demo.fetcher, StapleRevoked: true, Logger: slog.New(slog.DiscardHandler)}
		defer stapler.Close()
		config := stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{demo.cert}})
		stapler.Wait(context.Background())

		a, b := net.Pipe()
		defer a.Close()
		go tls.Server(b, config).Handshake()
		return tls.Client(a, client).Handshake()
	}

	fmt.Println("good:", connect())
	demo.responder.Set(nil, stapletest.Answer{Status: ocsp.Revoked})
	fmt.Println("revoked:", errors.Is(connect(), staple.ErrRevoked))
	// Output:
	// good: <nil>
	// revoked: true
}

// Events, for an alert or a counter.
func ExampleStapler_onEvent() {
	demo := newDemo()
	stapler := staple.Stapler{
		Fetcher: demo.fetcher,
		OnEvent: func(e staple.Event) { fmt.Println(e.Kind, e.Status.Leaf.Subject.CommonName, e.Err) },
	}
	c, err := stapler.Add(demo.cert)
	if err != nil {
		log.Fatal(err)
	}
	if err := c.Wait(context.Background()); err != nil {
		log.Fatal(err)
	}
	stapler.Close() // returns after the last event
	// Output: stapled localhost <nil>
}
