// Mtls shows mutual TLS where both sides staple, and each refuses the other without a valid staple.
//
//	go run ./examples/mtls
//
// It makes a certificate authority, its OCSP responder on loopback, a server and a client, lets them
// talk, revokes the client's certificate, and lets them try again.
//
// What makes it tight: all certificates are Must-Staple, so that nobody can hide a revocation by leaving
// the staple out; TLS 1.3, since clients cannot staple before it; no session tickets, since a resumed
// session shows the staple of the first handshake. A staple can be replayed until its end: the validity
// that the CA gives its responses bounds how long a revocation takes.
package main

import (
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
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	responderServer := &http.Server{Handler: responder}
	go responderServer.Serve(listener)
	defer responderServer.Close()
	issue := func(name string) tls.Certificate {
		return ca.Leaf(stapletest.LeafOptions{
			Names:      []string{name},
			Responders: []string{"http://" + listener.Addr().String()},
			MustStaple: true,
		})
	}

	// The server.
	var serverStapler staple.Stapler
	defer serverStapler.Close()
	s, err := startServer(&serverStapler, issue("server.example"), ca.Roots())
	if err != nil {
		return err
	}
	defer s.close()

	// The client.
	clientStapler := staple.Stapler{StapleRevoked: true}
	defer clientStapler.Close()
	clientCert := issue("client.example")
	client := clientConfig(ca.Roots())
	c, err := clientStapler.Add(clientCert)
	if err != nil {
		return err
	}
	client.GetClientCertificate = c.GetClientCertificate
	if err := c.Wait(ctx); err != nil {
		return err
	}

	out.Printf("1. both certificates are good")
	greeting, refused, err := s.visit(ctx, client)
	if err != nil || refused != nil {
		return fmt.Errorf("the good client should have been let in: %w", errors.Join(err, refused))
	}
	out.Printf("   the server says: %s", greeting)

	out.Printf("2. the CA revokes the client's certificate, and the client staples that")
	responder.Set(clientCert.Leaf, stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise})
	if err := c.Refresh(ctx); err != nil { // it would be noticed by itself at the next refresh
		return err
	}
	if err := expectRefusal(ctx, out, s, client); err != nil {
		return err
	}

	out.Printf("3. the client hides the revocation, and staples nothing")
	client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &clientCert, nil }
	return expectRefusal(ctx, out, s, client)
}

// clientConfig is how a client checks the server's certificate and staple.
func clientConfig(roots *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		RootCAs:          roots,
		ServerName:       "server.example",
		VerifyConnection: new(staple.ResponseVerifier).VerifyConnection,
	}
}

// A server greets the clients that it lets in.
type server struct {
	listener net.Listener
	refused  chan error // for each connection: why it was refused, or nil
}

func startServer(stapler *staple.Stapler, cert tls.Certificate, clientCAs *x509.CertPool) (*server, error) {
	config := stapler.TLSConfig(&tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{cert},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              clientCAs,
		SessionTicketsDisabled: true,
		VerifyConnection:       new(staple.ResponseVerifier).VerifyConnection,
	})
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		return nil, err
	}
	s := &server{listener, make(chan error, 1)}
	go func() {
		for {
			conn, err := s.listener.Accept()
			if err != nil {
				return
			}
			s.refused <- greet(conn.(*tls.Conn))
		}
	}()
	return s, nil
}

func (s *server) close() { s.listener.Close() }

// greet returns the error of the handshake.
func greet(conn *tls.Conn) error {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if err := conn.Handshake(); err != nil {
		return err
	}
	name := conn.ConnectionState().PeerCertificates[0].DNSNames[0]
	fmt.Fprintf(conn, "hello %s, your staple is good", name)
	return nil
}

// visit connects to s and returns its greeting, or why s refused the client, or why the client failed.
func (s *server) visit(ctx context.Context, client *tls.Config) (greeting string, refused, err error) {
	conn, err := (&tls.Dialer{Config: client}).DialContext(ctx, "tcp", s.listener.Addr().String())
	if err == nil {
		defer conn.Close()
		var b []byte
		b, err = io.ReadAll(conn) // in TLS 1.3 a client learns only from its first read that it was refused
		greeting = string(b)
	}
	select {
	case refused = <-s.refused:
	case <-ctx.Done():
		err = errors.Join(err, ctx.Err())
	}
	return greeting, refused, err
}

func expectRefusal(ctx context.Context, out *log.Logger, s *server, client *tls.Config) error {
	_, refused, err := s.visit(ctx, client)
	if refused == nil || err == nil {
		return errors.New("the server let in a revoked client")
	}
	out.Printf("   the server refuses it: %v", refused)
	out.Printf("   the client is told: %v", err)
	return nil
}
