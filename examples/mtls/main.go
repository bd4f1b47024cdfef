// Mtls shows mutual TLS that refuses clients whose certificates are revoked, and closes their connections.
//
//	go run ./examples/mtls
//
// It makes a certificate authority, its OCSP responder on loopback, a server and some clients, and tells who came,
// who was refused and why, and how often the responder was asked. The clients are as most are, curl and browsers and Java
// among them: they staple nothing, and know nothing of all this.
//
// What is to be copied is in server.go: an http.Server with a staple.Checker.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
	"golang.org/x/crypto/ocsp"
)

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "mtls:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out := log.New(stdout, "", 0)

	// The authority and its responder, which in real life run elsewhere.
	ca := stapletest.NewCA(stapletest.CAOptions{Name: "Example CA"})
	responder := stapletest.NewResponder(ca)
	responderListener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	responderServer := &http.Server{Handler: responder}
	go responderServer.Serve(responderListener)
	defer responderServer.Close()
	responderURL := "http://" + responderListener.Addr().String()
	issue := func(name string) tls.Certificate {
		return ca.Leaf(stapletest.LeafOptions{Names: []string{name}, Responders: []string{responderURL}})
	}
	revoke := func(cert tls.Certificate) {
		responder.Set(cert.Leaf, stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise})
	}
	asked := func(cert tls.Certificate) {
		out.Printf("   responder: requests about %s: %d", cert.Leaf.Subject.CommonName, len(responder.Requests(cert.Leaf)))
	}

	// The server.
	var stapler staple.Stapler
	defer stapler.Close()
	s := newServer(&stapler, issue("server.example"), ca.Roots(), out)
	s.http.ErrorLog = log.New(io.Discard, "", 0) // would say again why a handshake failed
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- s.serve(serving, listener) }()
	defer func() {
		stop()
		<-served
	}()
	url := "https://" + listener.Addr().String()

	out.Printf("1. alice comes, by ten connections at once")
	alice := issue("alice.example")
	var all sync.WaitGroup
	failed := make([]error, 10)
	for i := range failed {
		all.Go(func() { failed[i] = visit(ctx, newClient(alice, ca.Roots()), url) })
	}
	all.Wait()
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("alice should have been let in: %w", err)
	}
	asked(alice)

	out.Printf("2. mallory comes twice, with a certificate that the CA has revoked")
	mallory := issue("mallory.example")
	revoke(mallory)
	for range 2 {
		err := visit(ctx, newClient(mallory, ca.Roots()), url)
		if err == nil {
			return errors.New("the server let mallory in")
		}
		out.Printf("   mallory: %v", err)
	}
	asked(mallory)

	out.Printf("3. bob comes, and stays connected")
	bob := issue("bob.example")
	client := newClient(bob, ca.Roots())
	stream, err := get(ctx, client, url+"/stream")
	if err != nil {
		return fmt.Errorf("bob should have been let in: %w", err)
	}
	defer stream.Close()
	if _, err := bufio.NewReader(stream).ReadString('\n'); err != nil {
		return err
	}
	out.Printf("   the CA revokes his certificate, and the server asks again")
	revoke(bob)
	for c := range stapler.Peers() { // now, and not when half of the validity of what is held has passed
		if err := c.Refresh(ctx); err != nil {
			return err
		}
	}
	if _, err = io.Copy(io.Discard, stream); err == nil {
		return errors.New("bob's connection should have been cut off")
	}
	out.Printf("   bob: %v", err)
	if err = visit(ctx, client, url); err == nil {
		return errors.New("the server let bob in again")
	}
	out.Printf("   bob: %v", err)
	asked(bob)
	return nil
}

// newClient returns a client with a certificate and connections of its own.
func newClient(cert tls.Certificate, roots *x509.CertPool) *http.Client {
	return &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{
		Certificates:       []tls.Certificate{cert},
		RootCAs:            roots,
		ServerName:         "server.example",
		ClientSessionCache: tls.NewLRUClientSessionCache(0), // a session that is resumed is refused as well
	}}}
}

// visit makes one request, and leaves.
func visit(ctx context.Context, client *http.Client, url string) error {
	defer client.CloseIdleConnections()
	body, err := get(ctx, client, url)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.Copy(io.Discard, body)
	return err
}

func get(ctx context.Context, client *http.Client, url string) (body io.ReadCloser, err error) {
	request, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	return response.Body, nil
}
