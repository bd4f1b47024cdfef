// Https serves HTTPS with a stapled certificate, and shows what comes of it.
//
// Without flags it makes everything that this takes: a certificate authority, its OCSP responder on
// loopback, and a server certificate. With -cert and -key it serves a certificate from files:
//
//	go run ./examples/https
//	go run ./examples/https -cert fullchain.pem -key privkey.pem -cache /var/cache/ocsp -addr :8443
//
// With -once it exits after one handshake with itself, with code 0 if that was stapled and 1 if not.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/statuspage"
	"golang.org/x/crypto/ocsp"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout); {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "https:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("https", flag.ContinueOnError)
	var (
		certFile   = flags.String("cert", "", "PEM `file` of the certificate chain, leaf first")
		keyFile    = flags.String("key", "", "PEM `file` of its private key")
		issuerFile = flags.String("issuer", "", "PEM `file` of the certificate that issued it, if the chain lacks that")
		cacheDir   = flags.String("cache", "", "`directory` that keeps responses over restarts")
		addr       = flags.String("addr", "127.0.0.1:0", "`host:port` to listen on")
		adminAddr  = flags.String("admin", "127.0.0.1:0", "`host:port` of the status page, for this machine's eyes alone")
		once       = flags.Bool("once", false, "exit after one handshake: 0 if it was stapled, 1 if not")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if (*certFile == "") != (*keyFile == "") {
		return errors.New("-cert and -key go together")
	}
	out := log.New(stdout, "", 0)

	var err error
	var cert tls.Certificate
	client := &tls.Config{InsecureSkipVerify: true} // of files it looks at the staple alone
	caFile := ""
	if *certFile != "" {
		if cert, err = tls.LoadX509KeyPair(*certFile, *keyFile); err != nil {
			return err
		}
	} else {
		d, err := newDemo()
		if err != nil {
			return err
		}
		defer d.close()
		out.Printf("made a CA, its OCSP responder at %s and a certificate for localhost", d.responderURL)
		cert, client, caFile = d.cert, d.client, d.caFile
	}

	var stapler staple.Stapler
	defer stapler.Close()
	if *issuerFile != "" {
		if stapler.Issuers, err = readCertificates(*issuerFile); err != nil {
			return err
		}
	}
	if *cacheDir != "" {
		stapler.Cache = staple.DirCache(*cacheDir)
	}
	c, err := stapler.Add(cert)
	if err != nil {
		return err
	}

	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	server := &http.Server{
		// With no configuration of our own, it serves the certificates that were added.
		TLSConfig: stapler.TLSConfig(nil),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			st := c.Status()
			fmt.Fprintf(w, "stapled: %t, until %s\n", st.Stapled, when(st.Expires))
		}),
	}
	serveErr := make(chan error, 2)
	go func() { serveErr <- server.ServeTLS(listener, "", "") }() // no file names: they would bypass the staple
	defer shutdown(server)

	if !*once {
		adminListener, err := net.Listen("tcp", *adminAddr)
		if err != nil {
			return err
		}
		admin := &http.Server{
			Handler:           &statuspage.Handler{Stapler: &stapler, Refresh: true},
			ReadHeaderTimeout: 10 * time.Second,
		}
		go func() { serveErr <- admin.Serve(adminListener) }()
		defer admin.Close()
		out.Printf("the state of the staple is shown at http://%s/", reachable(adminListener.Addr()))
	}

	target := reachable(listener.Addr())
	err = report(ctx, out, &stapler, c, target, client)
	if *once {
		return err
	}
	if err != nil {
		out.Printf("%v", err)
		if next := c.Status().NextRefresh; !next.IsZero() {
			out.Printf("  it goes on without, and the responder will be asked again at %s", when(next))
		}
	}
	out.Printf("serving https://%s/ until interrupted; to try it:", target)
	if caFile == "" {
		out.Printf("  openssl s_client -connect %s -status </dev/null", target)
	} else {
		out.Printf("  openssl s_client -connect %s -CAfile %s -status </dev/null", target, shellWord(caFile))
		out.Printf("  curl --cacert %s --cert-status https://%s/", shellWord(caFile), target)
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-serveErr:
		return err
	}
}

// report waits for the first response, makes a handshake with the server at addr, and prints what came of
// it. It returns an error if the handshake was not stapled.
func report(ctx context.Context, out *log.Logger, stapler *staple.Stapler, c *staple.Certificate, addr string, client *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	if err := stapler.Wait(ctx); err != nil {
		return fmt.Errorf("not stapled: %w", err)
	}
	st := c.Status()
	switch {
	case st.Revoked:
		return fmt.Errorf("not stapled: %w", staple.ErrRevoked)
	case !st.Stapled:
		return fmt.Errorf("not stapled: %w", st.Err)
	case st.Responder != "":
		out.Printf("asked the responder %s, and verified its response", st.Responder)
	default:
		out.Printf("verified the response in the cache")
	}

	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	tlsConn := tls.Client(conn, client)
	began := time.Now()
	if err := tlsConn.HandshakeContext(ctx); err != nil {
		return err
	}
	took := time.Since(began)
	cs := tlsConn.ConnectionState()
	if len(cs.OCSPResponse) == 0 {
		return errors.New("not stapled: the handshake carried no OCSP response")
	}
	if !bytes.Equal(cs.OCSPResponse, c.TLS().OCSPStaple) {
		return errors.New("not stapled: the handshake carried another OCSP response than the one verified")
	}

	out.Printf("stapled: good")
	out.Printf("  thisUpdate    %s", when(st.ThisUpdate))
	if r, err := ocsp.ParseResponse(cs.OCSPResponse, nil); err == nil {
		out.Printf("  nextUpdate    %s", when(r.NextUpdate))
	}
	out.Printf("  stapled until %s", when(st.Expires))
	out.Printf("  next refresh  %s", when(st.NextRefresh))
	out.Printf("  the handshake took %v with the staple, of %d bytes", took.Round(10*time.Microsecond), len(cs.OCSPResponse))
	return nil
}

// readCertificates returns the certificates in a PEM file.
func readCertificates(name string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s: no PEM certificate in it", name)
	}
	return certs, nil
}

func shutdown(server *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if server.Shutdown(ctx) != nil {
		server.Close()
	}
}

var plainWord = regexp.MustCompile(`^[\w./:,@%+=-]+$`)

// shellWord returns text as a shell takes it for one word, in quotes if need be.
func shellWord(text string) string {
	if plainWord.MatchString(text) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// reachable returns a host and port where a client on this machine reaches addr.
func reachable(addr net.Addr) string {
	tcp := addr.(*net.TCPAddr)
	if tcp.IP.IsUnspecified() {
		return fmt.Sprintf("localhost:%d", tcp.Port)
	}
	return tcp.String()
}

func when(t time.Time) string {
	if t.IsZero() {
		return "none"
	}
	return t.Local().Format("2006-01-02 15:04:05 MST")
}
