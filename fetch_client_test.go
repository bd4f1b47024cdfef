package staple_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/bounded"
	"github.com/go-staple/staple/internal/exchange"
	"github.com/go-staple/staple/internal/testhttp"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

func inPEM(ders ...[]byte) (out []byte) {
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

func leafWithIssuerURLs(urls ...string) *x509.Certificate {
	return fetchCA().Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}, IssuerURLs: urls}).Leaf
}

func TestFetchIssuer(t *testing.T) {
	right, wrong := fetchCA().Issuer, fetchCA().Root
	good := testhttp.NewServer(t, testhttp.Replies(200, "application/pkix-cert", string(right.Raw)))
	for name, first := range map[string]string{
		"not there":                  testhttp.NewServer(t, testhttp.RepliesStatus(404)),
		"a web page":                 testhttp.NewServer(t, testhttp.Replies(200, "text/html", "<html>")),
		"empty":                      testhttp.NewServer(t, testhttp.Replies(200, "application/pkix-cert", "")),
		"too large":                  testhttp.NewServer(t, testhttp.Replies(200, "application/pkix-cert", strings.Repeat("x", 70_000))),
		"somebody else":              testhttp.NewServer(t, testhttp.Replies(200, "application/pkix-cert", string(wrong.Raw))),
		"in LDAP":                    "ldap:///CN=CA,DC=example?cACertificate?base",
		"a file":                     "file:///etc/passwd",
		"in a directory of that CA":  testhttp.NewServer(t, http.NotFoundHandler()) + "/ca?x=1",
		"redirected once too often":  testhttp.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) })),
		"sent by half":               testhttp.ServeRaw(t, testhttp.Says("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"+string(right.Raw[:100]))),
		"sent by half, unbeknownst":  testhttp.ServeRaw(t, testhttp.Says("HTTP/1.0 200 OK\r\n\r\n"+string(right.Raw[:100]))),
		"with an HTTP error as well": testhttp.NewServer(t, testhttp.Replies(500, "application/pkix-cert", string(right.Raw))),
	} {
		t.Run("the first is "+name, func(t *testing.T) {
			got, err := new(staple.HTTPFetcher).FetchIssuer(t.Context(), leafWithIssuerURLs(first, good))
			require.NoError(t, err)
			require.Len(t, got, 1)
			require.True(t, got[0].Equal(right))

			_, err = new(staple.HTTPFetcher).FetchIssuer(t.Context(), leafWithIssuerURLs(first, "http://127.0.0.1:1/"))
			require.NotErrorIs(t, err, staple.ErrNoIssuer, "it may be there later")
			var e *staple.HTTPError
			require.ErrorAs(t, err, &e)
			require.ErrorContains(t, err, fmt.Sprintf("%q", first))
			require.ErrorContains(t, err, `"http://127.0.0.1:1/": GET: dial`)
		})
	}
	t.Run("only those whose key signed the leaf", func(t *testing.T) {
		reissued := reissue(t, right)
		s := testhttp.NewServer(t, testhttp.Replies(200, "application/pem-certificate-chain", string(inPEM(wrong.Raw, right.Raw, reissued.Raw))))
		got, err := new(staple.HTTPFetcher).FetchIssuer(t.Context(), leafWithIssuerURLs(s))
		require.NoError(t, err)
		require.Len(t, got, 2)
		require.True(t, got[0].Equal(right))
		require.True(t, got[1].Equal(reissued))
	})
	t.Run("no URL for it", func(t *testing.T) {
		for _, urls := range [][]string{nil, {"ldap:///CN=CA"}} {
			_, err := new(staple.HTTPFetcher).FetchIssuer(t.Context(), leafWithIssuerURLs(urls...))
			require.ErrorIs(t, err, staple.ErrNoIssuer)
			require.ErrorContains(t, err, "the certificate gives no http or https URL for its issuer")
			require.NotErrorIs(t, err, staple.ErrNoResponder)
		}
	})
	t.Run("no responder to ask with it", func(t *testing.T) {
		leaf := fetchCA().Leaf(stapletest.LeafOptions{IssuerURLs: []string{good}}).Leaf
		_, err := new(staple.HTTPFetcher).FetchIssuer(t.Context(), leaf)
		require.ErrorIs(t, err, staple.ErrNoResponder)
		f := &staple.HTTPFetcher{URLs: func(*x509.Certificate) []string { return []string{"http://ocsp.example"} }}
		got, err := f.FetchIssuer(t.Context(), leaf)
		require.NoError(t, err)
		require.Len(t, got, 1)
	})
	t.Run("the request", func(t *testing.T) {
		var got atomic.Pointer[http.Request]
		s := testhttp.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got.Store(r)
			w.Write(right.Raw)
		}))
		_, err := new(staple.HTTPFetcher).FetchIssuer(t.Context(), leafWithIssuerURLs(strings.Replace(s, "//", "//user:secret@", 1)+"/ca.cer?v=1"))
		require.NoError(t, err)
		r := got.Load()
		require.Equal(t, http.MethodGet, r.Method)
		require.Equal(t, "/ca.cer?v=1", r.RequestURI)
		require.Contains(t, r.Header.Get("Accept"), "application/pkix-cert")
		require.Contains(t, r.Header.Get("Accept"), "application/pkcs7-mime")
		require.Empty(t, r.Header["Authorization"])
	})
}

// reissue returns another certificate for c's key and name.
func reissue(t *testing.T, c *x509.Certificate) *x509.Certificate {
	template := *c
	template.SerialNumber = big.NewInt(4711)
	der, err := x509.CreateCertificate(nil, &template, fetchCA().Root, c.PublicKey, fetchCA().RootKey)
	require.NoError(t, err)
	again, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return again
}

func TestIssuerIsFetchedOnceForAllLeaves(t *testing.T) {
	var requests atomic.Int32
	var askers sync.WaitGroup
	f := &staple.HTTPFetcher{Client: &http.Client{Transport: testhttp.RoundTripper(func(r *http.Request) (*http.Response, error) {
		requests.Add(1)
		askers.Wait() // so that all of them come while it is on its way
		return &http.Response{StatusCode: 200, Body: io.NopCloser(bytes.NewReader(fetchCA().Issuer.Raw))}, nil
	})}}
	key := fetchCA().Leaf(stapletest.LeafOptions{}).PrivateKey.(crypto.Signer)
	o := stapletest.LeafOptions{Key: key, Responders: []string{"http://ocsp.example"}, IssuerURLs: []string{"http://ca.example/ca.cer"}}
	var wg sync.WaitGroup
	askers.Add(20)
	for range 20 {
		wg.Go(func() {
			askers.Done()
			for range 25 {
				got, err := f.FetchIssuer(t.Context(), fetchCA().Leaf(o).Leaf)
				if err != nil || len(got) != 1 || !got[0].Equal(fetchCA().Issuer) {
					t.Error(got, err)
				}
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, requests.Load())

	t.Run("whichever of several URLs had it", func(t *testing.T) {
		dead := testhttp.NewScripted(t, testhttp.RepliesStatus(500))
		good := testhttp.NewScripted(t, testhttp.Replies(200, "application/pkix-cert", string(fetchCA().Issuer.Raw)))
		f := &staple.HTTPFetcher{}
		for range 3 {
			_, err := f.FetchIssuer(t.Context(), leafWithIssuerURLs(dead.URL, good.URL))
			require.NoError(t, err)
		}
		require.Len(t, dead.Asked(), 1)
		require.Len(t, good.Asked(), 1)
	})

	t.Run("another issuer at the same URL", func(t *testing.T) {
		o := o
		other := stapletest.NewCA(stapletest.CAOptions{})
		_, err := f.FetchIssuer(t.Context(), other.Leaf(o).Leaf)
		require.ErrorContains(t, err, "no certificate there has the key that signed the leaf")
		require.EqualValues(t, 2, requests.Load())
		_, err = f.FetchIssuer(t.Context(), fetchCA().Leaf(o).Leaf)
		require.NoError(t, err, "what was kept is still there")
		require.EqualValues(t, 2, requests.Load())
	})
}

func TestWaitingForAnothersIssuerRequest(t *testing.T) {
	leaf := leafWithIssuerURLs("http://ca.example")
	hanging := func(requests *atomic.Int32) *staple.HTTPFetcher {
		return &staple.HTTPFetcher{Client: &http.Client{Transport: testhttp.RoundTripper(func(r *http.Request) (*http.Response, error) {
			if requests.Add(1) == 1 {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return &http.Response{StatusCode: 200, Body: io.NopCloser(bytes.NewReader(fetchCA().Issuer.Raw))}, nil
		})}}
	}
	t.Run("a waiter asks itself if the first gave up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var requests atomic.Int32
			f := hanging(&requests)
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() {
				_, err := f.FetchIssuer(ctx, leaf)
				if err == nil {
					t.Error("should have been cancelled")
				}
			})
			synctest.Wait()
			for range 3 {
				wg.Go(func() {
					if _, err := f.FetchIssuer(t.Context(), leaf); err != nil {
						t.Error(err)
					}
				})
			}
			synctest.Wait()
			require.EqualValues(t, 1, requests.Load())
			cancel()
			wg.Wait()
			require.EqualValues(t, 2, requests.Load())
		})
	})
	t.Run("a timeout of the request itself is everybody's", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var requests atomic.Int32
			f := hanging(&requests)
			var wg sync.WaitGroup
			for range 5 {
				wg.Go(func() {
					began := time.Now()
					if _, err := f.FetchIssuer(t.Context(), leaf); err == nil || time.Since(began) != 10*time.Second {
						t.Error(err, time.Since(began))
					}
				})
			}
			wg.Wait()
			require.EqualValues(t, 1, requests.Load())
		})
	})
}

func TestHostileResponders(t *testing.T) {
	const bad, live = "http://hostile.example", "http://live.example"
	responder := stapletest.NewResponder(fetchCA())
	valid := string(responder.Response(fetchRequest().Leaf))
	with := func(header, body string) testhttp.Raw {
		return testhttp.Says(fmt.Sprintf("%s\r\nContent-Length: %d\r\n\r\n%s", header, len(body), body))
	}
	servers := append(testhttp.HostileServers(),
		testhttp.HostileServer{Name: "a response, by half", Err: "the body was cut short after 100 bytes: unexpected EOF",
			Handle: testhttp.Says(testhttp.OK + "Content-Length: 1000\r\n\r\n" + valid[:100])},
		testhttp.HostileServer{Name: "a response, by half, unbeknownst", Err: "not an OCSP response",
			Handle: testhttp.Says("HTTP/1.0 200 OK\r\n\r\n" + valid[:100])},
		testhttp.HostileServer{Name: "login page of a captive portal",
			Err:    `not an OCSP response, Content-Type "text/html", 12 bytes that begin with "<html>log in"`,
			Handle: testhttp.Says("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>log in")},
		testhttp.HostileServer{Name: "500 with a valid body", Err: "500 Internal Server Error", Handle: with("HTTP/1.1 500 Oops", valid)},
		testhttp.HostileServer{Name: "valid response for another certificate",
			Err: "no response matching the supplied certificate", Handle: with("HTTP/1.1 200 OK", valid)})
	for _, tt := range servers {
		t.Run(tt.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &staple.HTTPFetcher{Client: pipedClient(t, tt.Handle, map[string]http.RoundTripper{"live.example": responder})}
				req := fetchRequest(bad)
				req.Accept = acceptFor(req)
				want := time.Duration(0)
				if tt.Hangs {
					want, tt.Err = 30*time.Second, "no complete answer within 30s"
				}
				began := time.Now()
				_, err := f.Fetch(t.Context(), req)
				require.Equal(t, want, time.Since(began))
				require.ErrorContains(t, err, tt.Err)
				require.NotRegexp(t, `[[:cntrl:]]`, err.Error())
				var e *staple.HTTPError
				require.ErrorAs(t, err, &e)
				require.Equal(t, bad, e.URL)

				req.Leaf.OCSPServer = []string{bad, live}
				der, err := f.Fetch(t.Context(), req)
				require.NoError(t, err)
				require.NoError(t, req.Accept(der))
				require.Equal(t, live, req.Responder)
			})
		})
	}
}

// pipedClient returns a client as an HTTPFetcher makes one, but that it has pipes to h where it would have sockets, and
// but for the hosts that something else stands for.
func pipedClient(t *testing.T, h testhttp.Raw, others map[string]http.RoundTripper) *http.Client {
	dial := testhttp.Piped(t, h)
	client := exchange.NewClient(20*time.Second, nil)
	transport := client.Transport.(*http.Transport)
	transport.DialContext = dial
	t.Cleanup(transport.CloseIdleConnections)
	client.Transport = testhttp.RoundTripper(func(r *http.Request) (*http.Response, error) {
		if other := others[r.URL.Host]; other != nil {
			return other.RoundTrip(r)
		}
		return transport.RoundTrip(r)
	})
	return client
}

func TestTimeouts(t *testing.T) {
	fetch := func(ctx context.Context, urls ...string) (time.Duration, *staple.Request, error) {
		responder := stapletest.NewResponder(fetchCA())
		f := &staple.HTTPFetcher{Client: &http.Client{Transport: testhttp.RoundTripper(func(r *http.Request) (*http.Response, error) {
			if strings.HasPrefix(r.URL.Host, "hangs") {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return responder.RoundTrip(r)
		})}}
		began := time.Now()
		req := fetchRequest(urls...)
		_, err := f.Fetch(ctx, req)
		return time.Since(began), req, err
	}
	t.Run("ten seconds a request", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			took, _, err := fetch(t.Context(), "http://hangs1.example", "http://hangs2.example")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, "no complete answer within 10s")
			require.Equal(t, 20*time.Second, took)
		})
	})
	t.Run("an only URL has thirty, so that a slow responder is stapled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			took, _, err := fetch(t.Context(), "http://hangs.example")
			require.ErrorContains(t, err, "no complete answer within 30s")
			require.Equal(t, 30*time.Second, took)
		})
	})
	t.Run("thirty seconds in all", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var urls []string
			for i := range 10 {
				urls = append(urls, fmt.Sprintf("http://hangs%d.example", i))
			}
			took, _, err := fetch(t.Context(), urls...)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, 30*time.Second, took)
		})
	})
	t.Run("the last URL is asked whatever the others do", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			took, req, err := fetch(t.Context(), "http://hangs1.example", "http://hangs2.example", "http://hangs3.example",
				"http://hangs4.example", "http://hangs5.example", "http://live.example")
			require.NoError(t, err)
			require.Equal(t, "http://live.example", req.Responder)
			require.Equal(t, 25*time.Second, took)
		})
	})
	t.Run("the caller's deadline", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			took, req, err := fetch(ctx, "http://hangs.example", "http://live.example")
			require.NoError(t, err)
			require.Equal(t, "http://live.example", req.Responder)
			require.Equal(t, 2*time.Second, took)
		})
	})
	t.Run("the caller gives up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			took, _, err := fetch(ctx, "http://hangs1.example", "http://hangs2.example")
			require.ErrorIs(t, err, context.Canceled)
			require.ErrorContains(t, err, `"http://hangs2.example": not asked: context canceled`)
			require.Equal(t, time.Second, took)

			took, _, err = fetch(ctx, "http://live.example")
			require.ErrorIs(t, err, context.Canceled)
			require.Zero(t, took)
		})
	})
}

func TestClientIsUsedWhole(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	var hops int
	var body testhttp.Body
	client := &http.Client{
		Transport: testhttp.RoundTripper(func(r *http.Request) (*http.Response, error) {
			if r.URL.Host != "h5.example" {
				hops++
				return &http.Response{
					StatusCode: http.StatusFound,
					Header:     http.Header{"Location": {fmt.Sprintf("http://h%d.example%s", hops, r.URL.EscapedPath())}},
					Body:       http.NoBody,
					Request:    r,
				}, nil
			}
			resp, err := responder.RoundTrip(r)
			body.ReadCloser = resp.Body
			resp.Body = &body
			return resp, err
		}),
		CheckRedirect: func(*http.Request, []*http.Request) error { return nil },
	}
	f := &staple.HTTPFetcher{Client: client}
	_, err := f.Fetch(t.Context(), fetchRequest("http://h0.example"))
	require.NoError(t, err)
	require.Equal(t, 5, hops)
	require.False(t, f.MadeClient())
	require.True(t, body.Closed)
}

func TestCloseIdle(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	var opened, closed atomic.Int32
	s := httptest.NewUnstartedServer(responder)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			opened.Add(1)
		case http.StateClosed:
			closed.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	t.Run("of its own client", func(t *testing.T) {
		f := &staple.HTTPFetcher{}
		f.CloseIdleConnections() // before there is any
		for range 5 {
			_, err := f.Fetch(t.Context(), fetchRequest(s.URL))
			require.NoError(t, err)
		}
		require.EqualValues(t, 1, opened.Load(), "the connection is used again")
		require.Zero(t, closed.Load())
		f.CloseIdleConnections()
		require.Eventually(t, func() bool { return closed.Load() == 1 }, time.Minute, time.Millisecond)
	})
	t.Run("a Client's are left alone", func(t *testing.T) {
		f := &staple.HTTPFetcher{Client: &http.Client{Transport: &http.Transport{}}}
		defer f.Client.CloseIdleConnections()
		for range 2 {
			_, err := f.Fetch(t.Context(), fetchRequest(s.URL))
			require.NoError(t, err)
			f.CloseIdleConnections()
		}
		require.EqualValues(t, 2, opened.Load())
	})
}

func TestPublicOnly(t *testing.T) {
	var asked atomic.Int32
	responder := stapletest.NewResponder(fetchCA())
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		responder.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	require.NoError(t, err)
	hosts := []string{"127.0.0.1", "127.255.255.254", "localhost", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]",
		"[::ffff:7f00:1]", "[::127.0.0.1]", "[0:0:0:0:0:0:0:1]", "[::1%25lo]", "[fe80::1%25lo]"}
	for _, host := range hosts {
		t.Run(host, func(t *testing.T) {
			f := &staple.HTTPFetcher{PublicOnly: true}
			u := "http://" + host + ":" + port
			leaf := fetchCA().Leaf(stapletest.LeafOptions{Responders: []string{u}, IssuerURLs: []string{u}}).Leaf
			_, err := f.Fetch(t.Context(), &staple.Request{Leaf: leaf, Issuer: fetchCA().Issuer})
			require.ErrorContains(t, err, "is not a globally reachable address")
			_, err = f.FetchIssuer(t.Context(), leaf)
			require.ErrorContains(t, err, "is not a globally reachable address")
			require.Zero(t, asked.Load())
		})
	}
	t.Run("together with a Client", func(t *testing.T) {
		f := &staple.HTTPFetcher{PublicOnly: true, Client: s.Client()}
		req := fetchRequest(s.URL)
		_, err := f.Fetch(t.Context(), req)
		require.ErrorContains(t, err, "PublicOnly cannot be ensured for a Client")
		_, err = f.FetchIssuer(t.Context(), req.Leaf)
		require.ErrorContains(t, err, "PublicOnly cannot be ensured for a Client")
		require.Zero(t, asked.Load())
	})
	t.Run("otherwise all of them are reached", func(t *testing.T) {
		_, err := new(staple.HTTPFetcher).Fetch(t.Context(), fetchRequest("http://localhost:"+port))
		require.NoError(t, err)
		require.NotZero(t, asked.Load())
	})
}

func TestWhatIsRememberedIsBounded(t *testing.T) {
	responder := stapletest.NewResponder(fetchCA())
	key := fetchCA().Leaf(stapletest.LeafOptions{}).PrivateKey.(crypto.Signer)
	der := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: fetchCA().Issuer.Raw})
	f := &staple.HTTPFetcher{Client: &http.Client{Transport: testhttp.RoundTripper(func(r *http.Request) (*http.Response, error) {
		if r.URL.Host == "issuer.example" {
			return &http.Response{StatusCode: 200, Body: io.NopCloser(bytes.NewReader(der))}, nil
		}
		return responder.RoundTrip(r)
	})}}
	for i := range bounded.Size + 100 {
		leaf := fetchCA().Leaf(stapletest.LeafOptions{Key: key,
			Responders: []string{fmt.Sprintf("http://%d.example", i)}, IssuerURLs: []string{fmt.Sprintf("http://issuer.example/%d", i)}}).Leaf
		_, err := f.Fetch(t.Context(), &staple.Request{Leaf: leaf, Issuer: fetchCA().Issuer})
		require.NoError(t, err)
		_, err = f.FetchIssuer(t.Context(), leaf)
		require.NoError(t, err)
	}
	require.Equal(t, bounded.Size, f.Remembered())
}
