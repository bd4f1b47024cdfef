package exchange

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/go-staple/staple/internal/testhttp"
)

// newClient returns a client within the usual bounds, whose patience outlasts a busy machine. What it reads from its
// connections is counted in read.
func newClient(t *testing.T) (c Client, read *atomic.Int64) {
	return dialing(t, time.Minute, NewClient(time.Minute, nil).Transport.(*http.Transport).DialContext)
}

// newPiped returns a client as newClient does, for a synctest bubble: its connections are pipes to h, and it has the
// patience that it has in earnest.
func newPiped(t *testing.T, h testhttp.Raw) (c Client, read *atomic.Int64) {
	return dialing(t, 10*time.Second, testhttp.Piped(t, h))
}

type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

func dialing(t *testing.T, timeout time.Duration, dial dialer) (c Client, read *atomic.Int64) {
	c = Client{HTTP: NewClient(2*timeout, nil), Timeout: timeout, MaxBody: 64 << 10}
	t.Cleanup(c.HTTP.CloseIdleConnections)
	read = new(atomic.Int64)
	c.HTTP.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return countingConn{conn, read}, nil
	}
	return c, read
}

type countingConn struct {
	net.Conn
	n *atomic.Int64
}

func (c countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func get(t *testing.T, target string) Result {
	c, _ := newClient(t)
	return c.Do(t.Context(), http.MethodGet, target, nil, http.Header{})
}

func TestParseURL(t *testing.T) {
	for _, tt := range []struct{ url, want string }{
		{"http://ocsp.example", "http://ocsp.example"},
		{"https://ocsp.example:8443/a//b/../c?x=%2F", "https://ocsp.example:8443/a//b/../c?x=%2F"},
		{"HTTP://[::1]/a%2Fb/%7e", "http://[::1]/a%2Fb/%7e"},
		{"http://user:secret@ocsp.example/#part", "http://ocsp.example/"},
		{"http://ocsp.example/" + strings.Repeat("a", 2028), "http://ocsp.example/" + strings.Repeat("a", 2028)},
	} {
		u, err := ParseURL(tt.url)
		require.NoError(t, err)
		require.Equal(t, tt.want, u.String())
		require.True(t, Fetchable(tt.url))
	}
	for url, why := range map[string]string{
		"":                                       "not an http or https URL",
		"ldap:///CN=CA":                          "not an http or https URL",
		"file:///etc/passwd":                     "not an http or https URL",
		"ocsp.example":                           "not an http or https URL",
		"http:":                                  "not an http or https URL",
		"http:/path":                             "not an http or https URL",
		"://\x01":                                "invalid control character",
		"http://ocsp.example/%zz":                "invalid URL escape",
		"http://x/" + string(make([]byte, 2040)): "URL of 2049 bytes, more than 2048",
	} {
		_, err := ParseURL(url)
		require.ErrorContains(t, err, why)
		require.False(t, Fetchable(url))
	}
}

func TestDo(t *testing.T) {
	var got atomic.Pointer[http.Request]
	var sent atomic.Value
	server := testhttp.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got.Store(r)
		sent.Store(string(body))
		w.Header().Set("Content-Type", "text/x")
		w.Header().Set("Retry-After", "7")
		io.WriteString(w, "answer")
	}))
	c, _ := newClient(t)
	r := c.Do(t.Context(), http.MethodPost, server+"/a//b?c", []byte("question"), http.Header{"X-Header": {"y"}})
	require.Equal(t, Result{Status: 200, RetryAfter: 7 * time.Second, ContentType: "text/x", Body: []byte("answer"), Answered: true}, r)
	require.Equal(t, "question", sent.Load())
	require.Equal(t, http.MethodPost, got.Load().Method)
	require.Equal(t, "/a//b?c", got.Load().RequestURI)
	require.Equal(t, []string{"y"}, got.Load().Header["X-Header"])
	require.Equal(t, []string{"identity"}, got.Load().Header["Accept-Encoding"])
}

func TestHostileServers(t *testing.T) {
	const server = "http://hostile.example"
	for _, tt := range testhttp.HostileServers() {
		t.Run(tt.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, read := newPiped(t, tt.Handle)
				want := time.Duration(0)
				if tt.Hangs {
					want, tt.Err = c.Timeout, "no complete answer within 10s"
				}
				began := time.Now()
				r := c.Do(t.Context(), http.MethodGet, server, nil, http.Header{})
				require.Equal(t, want, time.Since(began))
				require.ErrorContains(t, r.Err, tt.Err)
				require.NotContains(t, r.Err.Error(), server, "the URL is known")
				require.LessOrEqual(t, read.Load(), tt.KiB<<10)
				require.LessOrEqual(t, len(r.Body), 64<<10)
				require.Equal(t, read.Load() > 0, r.Answered)
				if r.Status == 0 && !r.Answered {
					require.ErrorIs(t, r.Err, ErrSilent)
				} else {
					require.NotErrorIs(t, r.Err, ErrSilent)
				}
			})
		})
	}
}

func TestAConnectionThatIsResetInMidBody(t *testing.T) {
	c, read := newClient(t)
	half := testhttp.OK + "Content-Length: 1000\r\n\r\n" + string(make([]byte, 100))
	r := c.Do(t.Context(), http.MethodGet, testhttp.ServeRaw(t, func(conn net.Conn) {
		io.WriteString(conn, half)
		for read.Load() < int64(len(half)) { // or the reset might overtake it
			runtime.Gosched()
		}
		conn.(*net.TCPConn).SetLinger(0)
	}), nil, http.Header{})
	require.ErrorContains(t, r.Err, "the body was cut short after 100 bytes: read tcp")
	require.True(t, r.Answered)
}

func TestUnusableAnswers(t *testing.T) {
	compressed := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		z.Write([]byte("answer"))
		z.Close()
	}
	for why, h := range map[string]http.HandlerFunc{
		"unusable answer: an empty body": func(http.ResponseWriter, *http.Request) {},
		"unusable answer: larger than 65536 bytes, Content-Type \"text/x\"": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/x")
			w.Write(make([]byte, 65537))
		},
		"unusable answer: Content-Encoding \"gzip\", which was not asked for": compressed,
	} {
		r := get(t, testhttp.NewServer(t, h))
		require.ErrorIs(t, r.Err, ErrUnusable)
		require.ErrorContains(t, r.Err, why)
		require.Equal(t, 200, r.Status)
	}
	t.Run("a body as large as it may be", func(t *testing.T) {
		r := get(t, testhttp.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, 65536)) })))
		require.NoError(t, r.Err)
		require.Len(t, r.Body, 65536)
	})
	t.Run("a body that is not what was asked for", func(t *testing.T) {
		r := &Result{ContentType: "text/html", Body: []byte("<html>\n")}
		require.ErrorIs(t, r.Unusable("why"), ErrUnusable)
		require.EqualError(t, r.Unusable("why"), `unusable answer: why, Content-Type "text/html", 7 bytes that begin with "<html>\n"`)
	})
	t.Run("another status is no unusable answer, and has its body", func(t *testing.T) {
		r := get(t, testhttp.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(500)
			io.WriteString(w, "sorry")
		})))
		require.EqualError(t, r.Err, "500 Internal Server Error")
		require.Equal(t, "sorry", string(r.Body))
	})
}

func TestRetryAfter(t *testing.T) {
	for _, tt := range []struct {
		header string
		want   time.Duration
	}{
		{"", 0},
		{"120", 2 * time.Minute},
		{"0", 0},
		{"-5", 0},
		{"1.5", 0},
		{"soon", 0},
		{"86400", 24 * time.Hour},
		{"31536000", MaxRetryAfter},
		{"99999999999999999999999999", MaxRetryAfter},
		{"Thu, 01 Jan 1970 00:00:00 GMT", 0},
		{"Fri, 31 Dec 9999 23:59:59 GMT", MaxRetryAfter},
	} {
		require.Equal(t, tt.want, retryAfter(tt.header), tt.header)
	}
	synctest.Test(t, func(t *testing.T) {
		in := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(http.TimeFormat) }
		require.Equal(t, time.Hour, retryAfter(in(time.Hour)))
		require.Zero(t, retryAfter(in(-time.Hour)))
	})
}

func TestTimeout(t *testing.T) {
	hangs := &http.Client{Transport: testhttp.RoundTripper(func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	})}
	for _, tt := range []struct {
		name       string
		parent     time.Duration
		want, text string
	}{
		{"its own", time.Minute, "10s", "no complete answer within 10s: context deadline exceeded"},
		{"the caller's", time.Second, "1s", "no complete answer within 1s: context deadline exceeded"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), tt.parent)
				defer cancel()
				began := time.Now()
				r := Client{HTTP: hangs, Timeout: 10 * time.Second}.Do(ctx, http.MethodGet, "http://a.example", nil, http.Header{})
				require.EqualError(t, r.Err, tt.text)
				require.ErrorIs(t, r.Err, context.DeadlineExceeded)
				require.False(t, r.Answered)
				require.Equal(t, tt.want, time.Since(began).String())
			})
		})
	}
	t.Run("the caller gives up, at any point", func(t *testing.T) {
		for name, h := range map[string]testhttp.Raw{
			"before the header": testhttp.Hangs,
			"in the body": func(conn net.Conn) {
				testhttp.Says("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0")(conn)
				testhttp.Hangs(conn)
			},
		} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c, _ := newPiped(t, h)
					ctx, cancel := context.WithCancel(t.Context())
					time.AfterFunc(time.Second, cancel)
					began := time.Now()
					r := c.Do(ctx, http.MethodGet, "http://hangs.example", nil, http.Header{})
					require.ErrorIs(t, r.Err, context.Canceled)
					require.Equal(t, time.Second, time.Since(began))
				})
			})
		}
	})
	t.Run("a TLS handshake that hangs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { // which waits for its connections: none may linger
			c, _ := newPiped(t, testhttp.Hangs)
			began := time.Now()
			r := c.Do(t.Context(), http.MethodGet, "https://hangs.example", nil, http.Header{})
			require.ErrorIs(t, r.Err, context.DeadlineExceeded)
			require.NotErrorIs(t, r.Err, ErrSilent)
			require.False(t, r.Answered)
			require.Equal(t, c.Timeout, time.Since(began))
		})
	})
}

func TestWhetherAnythingWasHeard(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	for _, tt := range []struct {
		name, url string
		answered  bool
	}{
		{"no connection", closed.URL, false},
		{"no TLS", "https" + strings.TrimPrefix(testhttp.ServeRaw(t, testhttp.Says("HTTP/1.1 200 OK\r\n\r\n")), "http"), false},
		{"not a byte", testhttp.ServeRaw(t, testhttp.Says("")), false},
		{"one byte", testhttp.ServeRaw(t, testhttp.Says("H")), true},
		{"a redirect to where nobody listens",
			testhttp.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, closed.URL, http.StatusFound) })), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := get(t, tt.url)
			require.Error(t, r.Err)
			require.Zero(t, r.Status)
			require.Equal(t, tt.answered, r.Answered)
		})
	}
}

func TestAConnectionThatWasKeptAndIsClosed(t *testing.T) {
	var conns atomic.Int32
	server := testhttp.ServeRaw(t, func(conn net.Conn) {
		if conns.Add(1) == 1 {
			testhttp.Says("HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n")(conn)
			conn.Read(make([]byte, 4096)) // the POST
			return
		}
		testhttp.Says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")(conn)
	})
	c, _ := newClient(t)
	r := c.Do(t.Context(), http.MethodGet, server, nil, http.Header{})
	require.Equal(t, 405, r.Status)
	r = c.Do(t.Context(), http.MethodPost, server, []byte("x"), http.Header{"Idempotency-Key": {}})
	require.NoError(t, r.Err)
	require.Equal(t, "ok", string(r.Body))
}

func TestHTTP10WithoutALength(t *testing.T) {
	r := get(t, testhttp.ServeRaw(t, testhttp.Says("HTTP/1.0 200 OK\r\n\r\nanswer")))
	require.NoError(t, r.Err)
	require.Equal(t, "answer", string(r.Body))
}

func TestRedirects(t *testing.T) {
	t.Run("three, no more, and without credentials", func(t *testing.T) {
		var redirects atomic.Int32
		server := testhttp.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if len(r.URL.Query()["hop"]) == int(redirects.Load()) {
				if r.Header["Authorization"] == nil {
					io.WriteString(w, "there")
				}
				return
			}
			u := *r.URL
			u.Scheme, u.Host, u.User = "http", r.Host, url.UserPassword("user", "secret")
			u.RawQuery += "&hop=1"
			w.Header().Set("Location", u.String())
			w.WriteHeader(http.StatusFound)
		}))
		redirects.Store(3)
		require.Equal(t, "there", string(get(t, server).Body))
		redirects.Store(4)
		require.ErrorContains(t, get(t, server).Err, "more than 3 redirects")
	})
	for status, method := range map[int]string{301: "POST", 302: "POST", 303: "GET", 307: "POST", 308: "POST"} {
		t.Run(fmt.Sprintf("a POST redirected with %d becomes a %s", status, method), func(t *testing.T) {
			mux := http.NewServeMux()
			mux.HandleFunc("/there", func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				fmt.Fprintf(w, "%s %s %s", r.Method, r.Header["Content-Type"], body)
			})
			mux.Handle("/", http.RedirectHandler("/again", status))
			mux.Handle("/again", http.RedirectHandler("/there", status))
			c, _ := newClient(t)
			r := c.Do(t.Context(), http.MethodPost, testhttp.NewServer(t, mux), []byte("body"), http.Header{"Content-Type": {"text/x"}})
			require.NoError(t, r.Err)
			want := "POST [text/x] body"
			if method == http.MethodGet {
				want = "GET [] "
			}
			require.Equal(t, want, string(r.Body))
		})
	}
}

func TestAnswerIsClosed(t *testing.T) {
	body := &testhttp.Body{ReadCloser: io.NopCloser(bytes.NewReader(make([]byte, 1<<20)))}
	c := Client{Timeout: time.Second, MaxBody: 10, HTTP: &http.Client{Transport: testhttp.RoundTripper(func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Body: body}, nil
	})}}
	require.ErrorIs(t, c.Do(t.Context(), http.MethodGet, "http://a.example", nil, http.Header{}).Err, ErrUnusable)
	require.True(t, body.Closed)
}

// Of an answer that is given up, no more is read behind the caller's back.
func TestAnEndlessBodyIsNotReadOn(t *testing.T) {
	for name, header := range map[string]string{"without a length": "\r\n", "with a length": "Content-Length: 200000\r\n\r\n"} {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				var sent atomic.Int64
				ended := make(chan struct{})
				server := testhttp.ServeRaw(t, func(conn net.Conn) {
					defer close(ended)
					_, err := io.WriteString(conn, testhttp.OK+header)
					for n := 0; err == nil; sent.Add(int64(n)) {
						n, err = conn.Write(make([]byte, 1000))
					}
				})
				c, read := newClient(t)
				r := c.Do(t.Context(), http.MethodGet, server, nil, http.Header{})
				require.ErrorIs(t, r.Err, ErrUnusable)
				<-ended // the connection is closed
				require.LessOrEqual(t, read.Load(), int64(72<<10), "of %d bytes sent", sent.Load())
			}
		})
	}
}

func TestWhatSetsTheBoundIsNamed(t *testing.T) {
	server := testhttp.ServeRaw(t, testhttp.Says(testhttp.OK+"Content-Length: 11\r\n\r\nhello world"))
	c, _ := newClient(t)
	c.MaxBody, c.Bound = 10, "Thing.MaxSize"
	require.ErrorContains(t, c.Do(t.Context(), http.MethodGet, server, nil, http.Header{}).Err, "larger than 10 bytes, which Thing.MaxSize sets, ")
}
