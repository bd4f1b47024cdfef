package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/go-staple/staple"
)

// A server lets in clients with certificates of its CA that are not revoked, and closes the connections of those that are
// revoked later.
type server struct {
	http    *http.Server
	checker *staple.Checker
	out     *log.Logger // says who came, and who was refused and why

	mu   sync.Mutex
	open map[net.Conn][]*x509.Certificate // the chains of clients
}

func newServer(stapler *staple.Stapler, cert tls.Certificate, clientCAs *x509.CertPool, out *log.Logger) *server {
	s := &server{out: out, open: make(map[net.Conn][]*x509.Certificate)}
	s.checker = &staple.Checker{Stapler: stapler, OnEvent: s.onEvent}
	s.http = &http.Server{
		// The Stapler of the Checker staples the server's own certificate, too.
		TLSConfig: stapler.TLSConfig(&tls.Config{
			Certificates:     []tls.Certificate{cert},
			ClientAuth:       tls.RequireAndVerifyClientCert,
			ClientCAs:        clientCAs,
			VerifyConnection: s.verify,
		}),
		ConnState:         s.connState,
		ReadHeaderTimeout: 10 * time.Second, // until then a connection is not in the list
		Handler:           http.HandlerFunc(s.greet),
	}
	return s
}

// serve serves until ctx ends.
func (s *server) serve(ctx context.Context, listener net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { s.http.Close() })()
	go s.watch(ctx)
	return s.http.ServeTLS(listener, "", "") // no file names: they would bypass the staple
}

// verify is called for each connection, also where a session is resumed. Without something to print, it is
// Checker.VerifyConnection alone.
func (s *server) verify(cs tls.ConnectionState) error {
	err := s.checker.VerifyConnection(cs)
	if err != nil {
		s.out.Printf("   server: refused: %v", err)
	}
	return err
}

// greet says hello, and on /stream stays connected until the client goes, or has to.
func (s *server) greet(w http.ResponseWriter, r *http.Request) {
	name := r.TLS.PeerCertificates[0].Subject.CommonName
	s.out.Printf("   server: %s came, by %s", name, r.Proto)
	fmt.Fprintf(w, "hello %s\n", name)
	if r.URL.Path == "/stream" {
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

// connState is for http.Server.ConnState, and keeps a list of the connections that are open.
func (s *server) connState(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateActive: // the handshake is over
		chain := conn.(*tls.Conn).ConnectionState().VerifiedChains[0]
		s.mu.Lock()
		s.open[conn] = chain
		s.mu.Unlock()
		s.check(context.Background(), conn, chain) // the event may have come before it was in the list
	case http.StateClosed, http.StateHijacked:
		s.mu.Lock()
		delete(s.open, conn)
		s.mu.Unlock()
	}
}

// onEvent is for Checker.OnEvent, and closes the connections of whoever is revoked, or whose CA is.
func (s *server) onEvent(e staple.Event) {
	if e.Kind != staple.EventRevoked {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn, chain := range s.open {
		if slices.ContainsFunc(chain, e.Status.Leaf.Equal) {
			s.close(conn, chain)
		}
	}
}

// watch has the clients of open connections asked about as well: the Checker by itself asks about those alone that come
// again. To look once an hour costs no request: these are made when half of a response's validity has passed.
func (s *server) watch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Hour):
		}
		s.mu.Lock()
		open := maps.Clone(s.open)
		s.mu.Unlock()
		for conn, chain := range open {
			s.check(ctx, conn, chain)
		}
	}
}

// check closes conn if its client is known to be revoked. Whoever is unanswered may stay.
func (s *server) check(ctx context.Context, conn net.Conn, chain []*x509.Certificate) {
	if errors.Is(s.checker.Check(ctx, chain), staple.ErrRevoked) {
		s.close(conn, chain)
	}
}

func (s *server) close(conn net.Conn, chain []*x509.Certificate) {
	s.out.Printf("   server: closed a connection of %s, which is revoked", chain[0].Subject.CommonName)
	conn.(*tls.Conn).NetConn().Close() // at once: to say goodbye first could take five seconds
}
