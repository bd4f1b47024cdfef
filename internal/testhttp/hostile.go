package testhttp

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// A Raw handler is what a server does with a connection. The connection is closed afterwards.
type Raw func(conn net.Conn)

// Says returns a handler that sends a text.
func Says(text string) Raw { return func(conn net.Conn) { io.WriteString(conn, text) } }

// Hangs sends nothing until the client has closed the connection.
func Hangs(conn net.Conn) { io.Copy(io.Discard, conn) }

// ServeRaw starts a server whose handler begins when something has been read, and returns its URL.
// At the end of the test it waits until every connection is closed.
func ServeRaw(t testing.TB, h Raw) (url string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(Serve(l, func(conn net.Conn) {
		conn.Read(make([]byte, 4096))
		h(conn)
	}))
	return "http://" + l.Addr().String()
}

// Piped returns a function for http.Transport.DialContext that connects to h, whatever the address, by pipes: unlike
// sockets, they work in a synctest bubble. As with ServeRaw, h begins when something has been read, and at the end of the
// test it waits until every connection is closed.
func Piped(t testing.TB, h Raw) func(ctx context.Context, network, addr string) (net.Conn, error) {
	var conns sync.WaitGroup
	t.Cleanup(conns.Wait)
	return func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		conns.Go(func() {
			defer server.Close()
			server.Read(make([]byte, 4096))
			h(server)
		})
		return client, nil
	}
}

// Serve lets h have every connection that comes to l. Stop closes l, and waits until every
// connection is closed.
func Serve(l net.Listener, h Raw) (stop func()) {
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				h(conn)
			})
		}
	})
	return func() {
		l.Close()
		conns.Wait()
	}
}

// OK begins an answer whose header goes on.
const OK = "HTTP/1.1 200 OK\r\nContent-Type: application/ocsp-response\r\n"

// A HostileServer is one of [HostileServers].
type HostileServer struct {
	Name   string
	Handle Raw
	Hangs  bool   // or is too slow: a client's patience ends first
	Err    string // a part of what the client says, unless the server hangs
	KiB    int64  // at most so many are worth reading, of an answer of 64 KiB at most
}

// HostileServers returns servers of which no client gets an answer. Most begin with a header
// that looks well. Those that are slow are so by the clock: they belong into a synctest bubble, behind [Piped].
func HostileServers() []HostileServer {
	bomb := new(bytes.Buffer)
	z := gzip.NewWriter(bomb)
	z.Write(make([]byte, 10<<20))
	z.Close()
	endlessly := func(header, first, more string) Raw {
		return func(conn net.Conn) {
			for _, err := io.WriteString(conn, header+first); err == nil; _, err = io.WriteString(conn, more) {
			}
		}
	}
	then := func(text string, h Raw) Raw {
		return func(conn net.Conn) {
			io.WriteString(conn, text)
			h(conn)
		}
	}
	thousand := func(s string) string { return string(bytes.Repeat([]byte(s), 1000)) }
	return []HostileServer{
		{"hang before the header", Hangs, true, "", 0},
		{"hang after the header", then(OK+"Content-Length: 100\r\n\r\n", Hangs), true, "", 1},
		{"hang in the header", then(OK, Hangs), true, "", 1},
		{"hang in the body of a 503", then("HTTP/1.1 503 No\r\nContent-Length: 100\r\n\r\nx", Hangs), true, "", 1},
		{"slow drip", then(OK+"Content-Length: 100000\r\n\r\n", func(conn net.Conn) {
			for _, err := conn.Write([]byte("0")); err == nil; _, err = conn.Write([]byte("0")) {
				time.Sleep(5 * time.Millisecond)
			}
		}), true, "", 3},
		{"endless body", endlessly(OK+"\r\n", "", string(make([]byte, 4096))), false, "larger than 65536 bytes", 64 + 8},
		{"endless chunks", endlessly(OK+"Transfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n", thousand("1\r\nx\r\n")), false,
			"larger than 65536 bytes", 6*64 + 8},
		{"endless header", endlessly(OK, "X: y\r\n", thousand("X: y\r\n")), false,
			"server response headers exceeded 65536 bytes", 64 + 16},
		{"endless 1xx", endlessly("", "HTTP/1.1 103 Early Hints\r\n\r\n", "HTTP/1.1 103 Early Hints\r\n\r\n"), false,
			"server response headers exceeded 65536 bytes", 64 + 16},
		{"half-sent body", Says(OK + "Content-Length: 1000\r\n\r\n" + string(make([]byte, 100))), false, "the body was cut short after 100 bytes: unexpected EOF", 1},
		{"empty body", Says(OK + "Content-Length: 0\r\n\r\n"), false, "an empty body", 1},
		{"gzip bomb", Says(fmt.Sprintf("%sContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", OK, bomb.Len(), bomb.Bytes())), false,
			`Content-Encoding "gzip"`, int64(bomb.Len()>>10 + 2)},
		{"redirect loop", Says("HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n"), false, "more than 3 redirects", 1},
		{"redirect to a file", Says("HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"), false,
			`redirected to "file:///etc/passwd": not an http or https URL`, 1},
		{"redirect to nowhere", Says("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"), false, "302 Found", 1},
		{"500 with a body", Says("HTTP/1.1 500 Oops\r\nContent-Length: 1000\r\n\r\n" + string(make([]byte, 1000))), false,
			"500 Internal Server Error", 2},
		{"not HTTP", Says("SSH-2.0-OpenSSH_9.9\r\n"), false, "malformed HTTP response", 1},
		{"control characters in the header", Says("HTTP/1.1 200 OK\r\nbad\x1b[2J\x07 line\r\n\r\n"), false, "malformed MIME header", 1},
		{"closed at once", Says(""), false, "EOF", 0},
	}
}
