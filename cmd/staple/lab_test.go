package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-staple/staple/internal/testhttp"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

// A lab is an authority, its responder, and hosts, all without sockets.
type lab struct {
	t         *testing.T
	ca        *stapletest.CA
	responder *stapletest.Responder
	hosts     map[string]testhttp.Raw // by host:port
	requests  []bool                  // what was asked of responders: at public addresses alone?
	transport http.RoundTripper       // nil: the responder
	mu        sync.Mutex              // guards requests
}

const responderURL = "http://ocsp.example"

func newLab(t *testing.T) *lab {
	ca := stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
	return &lab{t: t, ca: ca, responder: stapletest.NewResponder(ca), hosts: map[string]testhttp.Raw{}}
}

// leaf makes a certificate for host.example.
func (w *lab) leaf(edit ...func(*stapletest.LeafOptions)) tls.Certificate {
	o := stapletest.LeafOptions{Names: []string{"host.example"}, Responders: []string{responderURL}}
	for _, e := range edit {
		e(&o)
	}
	return w.ca.Leaf(o)
}

func mustStaple(o *stapletest.LeafOptions)   { o.MustStaple = true }
func noResponders(o *stapletest.LeafOptions) { o.Responders = nil }

// stapling returns cert with a response that says a.
func (w *lab) stapling(cert tls.Certificate, a stapletest.Answer) tls.Certificate {
	r := stapletest.NewResponder(w.ca)
	r.Set(nil, a)
	cert.OCSPStaple = r.Response(cert.Leaf)
	return cert
}

// serve lets host.example:443 show cert.
func (w *lab) serve(cert tls.Certificate) {
	w.hosts["host.example:443"] = serving(&tls.Config{Certificates: []tls.Certificate{cert}})
}

func serving(config *tls.Config) testhttp.Raw {
	return func(conn net.Conn) {
		s := tls.Server(conn, config)
		if s.Handshake() == nil {
			_, _ = io.Copy(io.Discard, s)
		}
	}
}

// dial connects to hosts, which live until the client goes.
func (w *lab) dial(ctx context.Context, _, address string) (net.Conn, error) {
	h := w.hosts[address]
	if h == nil {
		return nil, &net.DNSError{Err: "no such host", Name: address, IsNotFound: true}
	}
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		h(server)
	}()
	return client, nil
}

func (w *lab) newClient(publicOnly bool) *http.Client {
	var transport http.RoundTripper = w.responder
	if w.transport != nil {
		transport = w.transport
	}
	return &http.Client{Transport: testhttp.RoundTripper(func(r *http.Request) (*http.Response, error) {
		w.mu.Lock()
		w.requests = append(w.requests, publicOnly)
		w.mu.Unlock()
		return transport.RoundTrip(r)
	})}
}

// check runs the command.
func (w *lab) check(args ...string) (stdout, stderr string, exit int) {
	var out, err bytes.Buffer
	c := checker{newClient: w.newClient}
	c.dial = w.dial
	exit = c.run(w.t.Context(), args, &out, &err)
	return out.String(), err.String(), exit
}

// verdict runs the command on one target, and returns the line of -json.
func (w *lab) verdict(args ...string) (line jsonLine) {
	w.t.Helper()
	stdout, _, exit := w.check(append([]string{"-json"}, args...)...)
	require.NoError(w.t, json.Unmarshal([]byte(stdout), &line), stdout)
	require.Equal(w.t, exit, line.Exit)
	return line
}

// A jsonLine has what others read of -json.
type jsonLine struct {
	Target, Verdict, Status, Responder, Serial, Name, Reason, Error string
	Stapled                                                         bool
	MustStaple                                                      bool   `json:"must_staple"`
	ThisUpdate                                                      string `json:"this_update"`
	NextUpdate                                                      string `json:"next_update"`
	Expires                                                         string
	Exit                                                            int
}

// write writes a file, and returns its name.
func write(t *testing.T, name string, data []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(file, data, 0o600))
	return file
}

// chainPEM returns a chain as in a file.
func chainPEM(cert tls.Certificate) (text []byte) {
	for _, der := range cert.Certificate {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return text
}

func certPEM(certs ...*x509.Certificate) (text []byte) {
	for _, cert := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return text
}

func keyPEM(t *testing.T, cert tls.Certificate) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

const day = 24 * time.Hour

// program runs the command as main does.
func program(t *testing.T, args ...string) (stdout, stderr string, exit int) {
	var out, err bytes.Buffer
	exit = run(t.Context(), args, &out, &err)
	return out.String(), err.String(), exit
}

func runJSON(t *testing.T, c *checker, args ...string) (line jsonLine) {
	t.Helper()
	var out, errs bytes.Buffer
	c.run(t.Context(), append([]string{"-json"}, args...), &out, &errs)
	require.NoError(t, json.Unmarshal(out.Bytes(), &line), out.String())
	return line
}

// response is an answer to an HTTP request.
func response(body []byte) *http.Response {
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body))}
}
