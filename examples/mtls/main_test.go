package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestRun(t *testing.T) {
	var output bytes.Buffer
	require.NoError(t, run(t.Context(), &output))
	t.Log("\n" + output.String())
	require.Equal(t, 10, bytes.Count(output.Bytes(), []byte("server: alice.example came")))
	require.Equal(t, 2, bytes.Count(output.Bytes(), []byte(`server: refused: staple: "CN=mallory.example"`)))
	for _, want := range []string{
		"requests about alice.example: 1\n",
		"keyCompromise",
		"requests about mallory.example: 1\n",
		"server: bob.example came",
		"server: closed a connection of bob.example, which is revoked\n",
		`server: refused: staple: "CN=bob.example"`,
		"requests about bob.example: 2\n", // the second one by Refresh
	} {
		require.Contains(t, output.String(), want)
	}
	require.NotContains(t, output.String(), "mallory.example came")
}

// A world is a server on a listener, and what it takes.
type world struct {
	ca      *stapletest.CA
	stapler *staple.Stapler
	url     string
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	output  lockedBuffer
}

// A lockedBuffer is what a server prints.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// serve starts the server, with clients of ca.
func serve(t *testing.T, ca *stapletest.CA, asks http.RoundTripper, l net.Listener) *world {
	w := &world{ca: ca, dial: new(net.Dialer).DialContext, url: "https://" + l.Addr().String()}
	w.stapler = &staple.Stapler{Fetcher: &staple.HTTPFetcher{Client: &http.Client{Transport: asks}}, Logger: slog.New(slog.DiscardHandler)}
	s := newServer(w.stapler, ca.Leaf(stapletest.LeafOptions{Names: []string{"server.example"}}), ca.Roots(), log.New(&w.output, "", 0))
	s.http.ErrorLog = log.New(io.Discard, "", 0)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		require.ErrorIs(t, <-served, http.ErrServerClosed)
		require.NoError(t, w.stapler.Close())
	})
	return w
}

func listen(t *testing.T) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return l
}

func (w *world) issue(name string) tls.Certificate {
	return w.ca.Leaf(stapletest.LeafOptions{Names: []string{name}, Responders: []string{"http://ocsp.example"}})
}

func (w *world) client(t *testing.T, cert tls.Certificate, http2 bool) *http.Client {
	client := newClient(cert, w.ca.Roots())
	transport := client.Transport.(*http.Transport)
	transport.ForceAttemptHTTP2 = http2
	transport.DialContext = w.dial
	t.Cleanup(client.CloseIdleConnections)
	return client
}

// stream makes a request that does not end before the server ends it, or patience does.
func (w *world) stream(t *testing.T, client *http.Client, patience time.Duration) *bufio.Reader {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	body, err := get(ctx, client, w.url+"/stream")
	require.NoError(t, err)
	t.Cleanup(func() { body.Close() })
	r := bufio.NewReader(body)
	_, err = r.ReadString('\n')
	require.NoError(t, err)
	return r
}

// askAgain has the Stapler notice what the responder says of all peers now.
func (w *world) askAgain(t *testing.T) {
	for c := range w.stapler.Peers() {
		if err := c.Refresh(t.Context()); !errors.Is(err, staple.ErrNoResponder) { // as of the intermediate
			require.NoError(t, err)
		}
	}
}

func TestEachProtocolRefusesAndClosesWhoIsRevoked(t *testing.T) {
	for proto, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2.0": true} {
		t.Run(proto, func(t *testing.T) {
			ca := stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
			responder := stapletest.NewResponder(ca)
			w := serve(t, ca, responder, listen(t))
			alice, bob := w.issue("alice.example"), w.issue("bob.example")

			ofAlice := w.client(t, alice, http2)
			w.stream(t, ofAlice, time.Minute)
			ofBob := w.client(t, bob, http2)
			for _, resumes := range []bool{false, true} {
				request, err := http.NewRequestWithContext(t.Context(), "GET", w.url, nil)
				require.NoError(t, err)
				request.Close = true // or the next one may have its connection
				response, err := ofBob.Do(request)
				require.NoError(t, err)
				response.Body.Close()
				require.Equal(t, proto, response.Proto)
				require.Equal(t, resumes, response.TLS.DidResume)
			}
			stream := w.stream(t, ofBob, time.Minute)

			responder.Set(bob.Leaf, stapletest.Answer{Status: ocsp.Revoked})
			w.askAgain(t)
			_, err := stream.ReadByte()
			require.Error(t, err, "an open connection is closed")
			require.NotErrorIs(t, err, context.DeadlineExceeded)
			require.Contains(t, w.output.String(), "closed a connection of bob.example")
			require.Error(t, visit(t.Context(), ofBob, w.url), "a session that is resumed is refused")
			require.Error(t, visit(t.Context(), w.client(t, bob, http2), w.url), "and a new one")
			refusals := bytes.Count([]byte(w.output.String()), []byte(`refused: staple: "CN=bob.example"`))
			require.GreaterOrEqual(t, refusals, 2, "net/http may have tried again")

			require.NotContains(t, w.output.String(), "closed a connection of alice.example")
			require.Len(t, responder.Requests(bob.Leaf), 2)
			require.NoError(t, visit(t.Context(), ofAlice, w.url))
		})
	}
}

// The event comes after the handshake, and before the first request, with which a connection gets into the list.
func TestARevocationBetweenHandshakeAndRequest(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	responder := stapletest.NewResponder(ca)
	w := serve(t, ca, responder, listen(t))
	bob := w.issue("bob.example")
	config := w.client(t, bob, false).Transport.(*http.Transport).TLSClientConfig.Clone()
	config.MaxVersion = tls.VersionTLS12 // in which the server has decided when the client's handshake is over
	conn, err := tls.Dial("tcp", w.url[len("https://"):], config)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	responder.Set(bob.Leaf, stapletest.Answer{Status: ocsp.Revoked})
	w.askAgain(t)
	_, err = io.WriteString(conn, "GET /stream HTTP/1.1\r\nHost: server.example\r\n\r\n")
	require.NoError(t, err)
	answer, err := io.ReadAll(conn)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	require.Empty(t, answer)
	require.Contains(t, w.output.String(), "closed a connection of bob.example")
}

type router map[string]http.RoundTripper

func (r router) RoundTrip(req *http.Request) (*http.Response, error) {
	return r[req.Host].RoundTrip(req)
}

func TestARevokedIntermediateClosesTheConnectionsOfItsClients(t *testing.T) {
	root := stapletest.NewCA(stapletest.CAOptions{})
	intermediate := root.Leaf(stapletest.LeafOptions{Names: []string{}, CommonName: "Intermediate", Responders: []string{"http://root.example"},
		Template: func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
		}})
	ca := *root
	ca.Issuer, ca.Key = intermediate.Leaf, intermediate.PrivateKey.(crypto.Signer)
	ofRoot, ofCA := stapletest.NewResponder(root), stapletest.NewResponder(&ca)
	w := serve(t, &ca, router{"root.example": ofRoot, "ocsp.example": ofCA}, listen(t))
	stream := w.stream(t, w.client(t, w.issue("bob.example"), true), time.Minute)
	ofRoot.Set(intermediate.Leaf, stapletest.Answer{Status: ocsp.Revoked})
	w.askAgain(t)
	_, err := stream.ReadByte()
	require.Error(t, err)
	require.Contains(t, w.output.String(), "closed a connection of bob.example")
}

// A pipeListener accepts pipes, which work in a synctest bubble.
type pipeListener chan net.Conn

func (l pipeListener) Accept() (net.Conn, error) {
	if conn, ok := <-l; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}
func (l pipeListener) Close() error   { close(l); return nil }
func (l pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443} }

// Whoever is connected, and does not come again, is asked about in the background, and not much later.
func TestAConnectionThatStaysOpenIsClosedAfterHalfOfTheValidity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := stapletest.NewCA(stapletest.CAOptions{})
		responder := stapletest.NewResponder(ca)
		responder.Set(nil, stapletest.Answer{Validity: 2 * 24 * time.Hour})
		listener := make(pipeListener)
		w := serve(t, ca, responder, listener)
		w.dial = func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			listener <- server
			return client, nil
		}
		bob := w.issue("bob.example")
		stream := w.stream(t, w.client(t, bob, false), 20*24*time.Hour)
		time.Sleep(10 * 24 * time.Hour)
		responder.Set(bob.Leaf, stapletest.Answer{Status: ocsp.Revoked})
		began := time.Now()
		_, err := stream.ReadByte()
		require.Error(t, err)
		require.Less(t, time.Since(began), 27*time.Hour) // half of the validity and a tenth of that, and a try that fails
		require.Less(t, len(responder.Requests(bob.Leaf)), 15)
	})
}
