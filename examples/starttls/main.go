// Starttls shows a protocol that begins in the clear and upgrades to TLS: as much of SMTP as that takes.
//
//	go run ./examples/starttls
//
// It makes a certificate authority, its OCSP responder on loopback and a server, connects to it as a mail
// client does, and shows what was stapled. The wrapped configuration goes to tls.Server rather than to a
// listener; nothing else differs. IMAP, LDAP, XMPP and PostgreSQL upgrade in the same way.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/smtp"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
	"golang.org/x/crypto/ocsp"
)

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "starttls:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out := log.New(stdout, "", 0)

	// The authority and its responder, which in real life run elsewhere.
	ca := stapletest.NewCA(stapletest.CAOptions{Name: "Example CA"})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	responder := &http.Server{Handler: stapletest.NewResponder(ca)}
	go responder.Serve(listener)
	defer responder.Close()
	cert := ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://" + listener.Addr().String()}})

	// The server.
	var stapler staple.Stapler
	defer stapler.Close()
	config := stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}})
	if err := stapler.Wait(ctx); err != nil { // optional: until there is a staple, or there will be none so soon
		log.Print(err)
	}
	s, err := startServer("127.0.0.1:0", config)
	if err != nil {
		return err
	}
	defer s.close()

	// The client.
	cs, err := visit(ctx, s.listener.Addr().String(), &tls.Config{
		RootCAs:          ca.Roots(),
		ServerName:       "localhost",
		VerifyConnection: new(staple.ResponseVerifier).VerifyConnection,
	})
	if err != nil {
		return err
	}
	if len(cs.OCSPResponse) == 0 {
		return fmt.Errorf("the server did not staple")
	}
	r, err := ocsp.ParseResponseForCert(cs.OCSPResponse, cert.Leaf, ca.Issuer)
	if err != nil {
		return err
	}
	out.Printf("stapled after STARTTLS: %d bytes, good until %s", len(cs.OCSPResponse), r.NextUpdate.Format(time.RFC3339))
	return nil
}

// A server speaks SMTP as far as STARTTLS needs it, and takes no mail.
type server struct {
	listener net.Listener
	config   *tls.Config
	conns    sync.WaitGroup
}

func startServer(addr string, config *tls.Config) (*server, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	s := &server{listener: listener, config: config}
	s.conns.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.conns.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(10 * time.Second))
				s.talk(conn)
			})
		}
	})
	return s, nil
}

// close returns when all connections have ended.
func (s *server) close() {
	s.listener.Close()
	s.conns.Wait()
}

func (s *server) talk(conn net.Conn) {
	encrypted := false
	r := bufio.NewReader(conn)
	fmt.Fprintf(conn, "220 localhost ready\r\n")
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch verb, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(line)), " "); {
		case verb == "EHLO" && !encrypted:
			fmt.Fprintf(conn, "250-localhost\r\n250 STARTTLS\r\n")
		case verb == "EHLO" || verb == "NOOP":
			fmt.Fprintf(conn, "250 localhost\r\n")
		case verb == "STARTTLS" && !encrypted:
			if r.Buffered() > 0 { // sent in the clear, and would count as if it were encrypted
				fmt.Fprintf(conn, "501 nothing may follow STARTTLS\r\n")
				return
			}
			fmt.Fprintf(conn, "220 go ahead\r\n")
			upgraded := tls.Server(conn, s.config)
			if upgraded.Handshake() != nil {
				return
			}
			encrypted = true
			conn, r = upgraded, bufio.NewReader(upgraded)
		case verb == "QUIT":
			fmt.Fprintf(conn, "221 bye\r\n")
			return
		default:
			fmt.Fprintf(conn, "502 not here\r\n")
		}
	}
}

// visit connects to an SMTP server, upgrades to TLS, and returns what came of it.
func visit(ctx context.Context, addr string, config *tls.Config) (cs tls.ConnectionState, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return cs, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	client, err := smtp.NewClient(conn, config.ServerName)
	if err != nil {
		return cs, err
	}
	if err := client.StartTLS(config); err != nil {
		return cs, err
	}
	cs, _ = client.TLSConnectionState()
	return cs, client.Quit()
}
