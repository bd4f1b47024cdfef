package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
)

// demonstrate runs p with everything around it made up: a CA, its responder, a backend, and a directory with
// one certificate.
func demonstrate(ctx context.Context, p *proxy, listener, admin net.Listener, once bool, stdout io.Writer) error {
	dir, err := os.MkdirTemp("", "staple-proxy-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p.certs = filepath.Join(dir, "certs")
	if err := os.Mkdir(p.certs, 0o700); err != nil {
		return err
	}

	ca := stapletest.NewCA(stapletest.CAOptions{Name: "Example CA"})
	responder, err := serveHTTP(stapletest.NewResponder(ca))
	if err != nil {
		return err
	}
	defer responder.Close()
	backend, err := serveHTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "the backend for %s greets %s\n", r.Host, r.Header.Get("X-Forwarded-For"))
	}))
	if err != nil {
		return err
	}
	defer backend.Close()
	p.backends["localhost"] = &url.URL{Scheme: "http", Host: backend.Addr}

	caFile := filepath.Join(dir, "ca.pem")
	caPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root.Raw})
	if err := os.WriteFile(caFile, caPEM, 0o644); err != nil {
		return err
	}
	data, err := encode(ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://" + responder.Addr}}))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(p.certs, "localhost.pem"), data, 0o600); err != nil {
		return err
	}

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	served := make(chan error, 1)
	go func() {
		served <- p.serve(ctx, listener, admin)
		stop()
	}()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	target := "https://localhost:" + port + "/"
	err = request(ctx, target, listener.Addr().String(), ca.Roots(), stdout)
	if once || err != nil {
		stop()
		return errors.Join(err, <-served)
	}
	fmt.Fprintf(stdout, "to try it:\n  curl --cacert %s --cert-status %s\n", shellWord(caFile), target)
	fmt.Fprintf(stdout, "  curl http://%s/\n", admin.Addr())
	fmt.Fprintf(stdout, "and in a browser http://%s/staples/\n", admin.Addr())
	fmt.Fprintf(stdout, "put certificates with their keys into %s, change and remove them\n", p.certs)
	return <-served
}

// request makes one request, of the server at addr, and prints what comes of it. It fails if the handshake
// is not stapled.
func request(ctx context.Context, target, addr string, roots *x509.CertPool, stdout io.Writer) error {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
		TLSClientConfig: &tls.Config{
			RootCAs:          roots,
			VerifyConnection: new(staple.ResponseVerifier).VerifyConnection,
		},
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, "GET", target, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s answers %s: %s", target, resp.Status, body)
	case len(resp.TLS.OCSPResponse) == 0:
		return errors.New("not stapled: the handshake carried no OCSP response")
	}
	fmt.Fprintf(stdout, "%s", body)
	fmt.Fprintf(stdout, "stapled: good, with %d bytes of OCSP response\n", len(resp.TLS.OCSPResponse))
	return nil
}

var plainWord = regexp.MustCompile(`^[\w./:,@%+=-]+$`)

// shellWord returns text as a shell takes it for one word, in quotes if need be.
func shellWord(text string) string {
	if plainWord.MatchString(text) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// encode returns cert's chain and key in PEM.
func encode(cert tls.Certificate) ([]byte, error) {
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for _, der := range cert.Certificate {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: key})
	return b.Bytes(), nil
}

// serveHTTP starts a server on loopback, and sets its Addr.
func serveHTTP(handler http.Handler) (*http.Server, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := &http.Server{Addr: listener.Addr().String(), Handler: handler}
	go server.Serve(listener)
	return server, nil
}
