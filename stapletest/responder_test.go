package stapletest_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/stapletest"
)

// request returns an OCSP request about leaf.
func request(t testing.TB, ca *stapletest.CA, leaf *x509.Certificate, hash crypto.Hash) []byte {
	t.Helper()
	der, err := ocsp.CreateRequest(leaf, ca.Issuer, &ocsp.RequestOptions{Hash: hash})
	require.NoError(t, err)
	return der
}

// post asks about leaf with a SHA-1 CertID and returns the answer's body.
func post(t testing.TB, client *http.Client, ca *stapletest.CA, leaf *x509.Certificate) []byte {
	t.Helper()
	resp, err := client.Post("http://ocsp.example", "application/ocsp-request",
		bytes.NewReader(request(t, ca, leaf, crypto.SHA1)))
	require.NoError(t, err)
	return body(t, resp)
}

func body(t testing.TB, resp *http.Response) []byte {
	t.Helper()
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return data
}

func TestTheExampleOfATestPasses(t *testing.T) { testOutage(t) }

func TestResponderAnswersGetAndPost(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
	leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
	r := stapletest.NewResponder(ca)
	server := httptest.NewServer(r)
	defer server.Close()
	for _, transport := range []struct {
		name, url string
		client    *http.Client
	}{
		{"over a socket", server.URL, server.Client()},
		{"without a socket", "https://ocsp.example", r.Client()},
	} {
		for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			t.Run(transport.name+" "+hash.String(), func(t *testing.T) {
				der := request(t, ca, leaf, hash)
				check := func(resp *http.Response, err error) {
					t.Helper()
					require.NoError(t, err)
					require.Equal(t, http.StatusOK, resp.StatusCode)
					require.Equal(t, "application/ocsp-response", resp.Header.Get("Content-Type"))
					data := body(t, resp)
					require.EqualValues(t, len(data), resp.ContentLength)
					parsed, err := ocsp.ParseResponseForCert(data, leaf, ca.Issuer)
					require.NoError(t, err)
					require.Equal(t, ocsp.Good, parsed.Status)
					require.Equal(t, hash, parsed.IssuerHash)
				}
				text := url.PathEscape(base64.StdEncoding.EncodeToString(der))
				check(transport.client.Post(transport.url, "application/ocsp-request", bytes.NewReader(der)))
				check(transport.client.Post(transport.url+"/some/path", "", bytes.NewReader(der)))
				check(transport.client.Get(transport.url + "/" + text))
				check(transport.client.Get(transport.url + "/some/path/" + text + "?a=b"))
			})
		}
	}
}

func TestResponderRefuses(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	other := stapletest.NewCA(stapletest.CAOptions{Name: "Another CA"})
	leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
	good := request(t, ca, leaf, crypto.SHA1)
	base64Good := base64.StdEncoding.EncodeToString(good)
	for _, test := range []struct {
		name, method, path string
		body               []byte
		status             int
		answer             []byte
	}{
		{"a certificate of another issuer", "POST", "", request(t, other, leaf, crypto.SHA1), 200, ocsp.UnauthorizedErrorResponse},
		{"nothing posted", "POST", "", nil, 200, ocsp.MalformedRequestErrorResponse},
		{"garbage posted", "POST", "", []byte("garbage"), 200, ocsp.MalformedRequestErrorResponse},
		{"a request cut off", "POST", "", good[:len(good)-1], 200, ocsp.MalformedRequestErrorResponse},
		{"a request that never ends", "POST", "", bytes.Repeat(good, 2000), 200, ocsp.MalformedRequestErrorResponse},
		{"a path without a request", "GET", "/some/path", nil, 200, ocsp.MalformedRequestErrorResponse},
		{"no path", "GET", "", nil, 200, ocsp.MalformedRequestErrorResponse},
		{"base64 of the URL alphabet", "GET", "/" + base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 30)), nil, 200, ocsp.MalformedRequestErrorResponse},
		{"another method", "PUT", "/" + url.PathEscape(base64Good), good, 405, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := stapletest.NewResponder(ca)
			req, err := http.NewRequest(test.method, "http://ocsp.example"+test.path, bytes.NewReader(test.body))
			require.NoError(t, err)
			resp, err := r.Client().Do(req)
			require.NoError(t, err)
			data := body(t, resp)
			require.Equal(t, test.status, resp.StatusCode)
			if test.answer != nil {
				require.Equal(t, test.answer, data)
			} else {
				require.Equal(t, "GET, POST", resp.Header.Get("Allow"))
			}
			require.Len(t, r.Requests(nil), 1)
			require.Equal(t, test.method, r.Requests(nil)[0].Method)
		})
	}
}

func TestAnswer(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
	delegate := ca.Delegate(stapletest.DelegateOptions{})
	now := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // when each bubble begins
	const day = 24 * time.Hour
	for _, test := range []struct {
		name   string
		answer stapletest.Answer
		check  func(t *testing.T, r *ocsp.Response)
	}{
		{"zero", stapletest.Answer{}, func(t *testing.T, r *ocsp.Response) {
			require.Equal(t, ocsp.Good, r.Status)
			require.True(t, r.ThisUpdate.Equal(now))
			require.True(t, r.ProducedAt.Equal(now))
			require.True(t, r.NextUpdate.Equal(now.Add(7*day)))
			require.Nil(t, r.Certificate)
		}},
		{"revoked", stapletest.Answer{Status: ocsp.Revoked}, func(t *testing.T, r *ocsp.Response) {
			require.Equal(t, ocsp.Revoked, r.Status)
			require.True(t, r.RevokedAt.Equal(now.Add(-time.Hour)))
			require.Equal(t, ocsp.Unspecified, r.RevocationReason)
		}},
		{"revoked at a time for a reason", stapletest.Answer{
			Status: ocsp.Revoked, RevokedAt: now.Add(-day), RevocationReason: ocsp.Superseded,
		}, func(t *testing.T, r *ocsp.Response) {
			require.True(t, r.RevokedAt.Equal(now.Add(-day)))
			require.Equal(t, ocsp.Superseded, r.RevocationReason)
		}},
		{"unknown", stapletest.Answer{Status: ocsp.Unknown}, func(t *testing.T, r *ocsp.Response) {
			require.Equal(t, ocsp.Unknown, r.Status)
		}},
		{"age and validity", stapletest.Answer{Age: time.Hour, Validity: day}, func(t *testing.T, r *ocsp.Response) {
			require.True(t, r.ThisUpdate.Equal(now.Add(-time.Hour)))
			require.True(t, r.ProducedAt.Equal(now.Add(-time.Hour)))
			require.True(t, r.NextUpdate.Equal(now.Add(23*time.Hour)))
		}},
		{"from the future, without an end", stapletest.Answer{Age: -time.Hour, Validity: -1}, func(t *testing.T, r *ocsp.Response) {
			require.True(t, r.ThisUpdate.Equal(now.Add(time.Hour)))
			require.Zero(t, r.NextUpdate)
		}},
		{"a delegate", stapletest.Answer{Signer: delegate}, func(t *testing.T, r *ocsp.Response) {
			require.Equal(t, delegate.Certificate.Raw, r.Certificate.Raw)
			require.Len(t, r.ResponderKeyHash, 20)
		}},
		{"a delegate before another, by name", stapletest.Answer{
			Signer: delegate, ByName: true, Embed: []*x509.Certificate{delegate.Certificate, ca.Issuer},
		}, func(t *testing.T, r *ocsp.Response) {
			require.Equal(t, delegate.Certificate.Raw, r.Certificate.Raw)
			require.Equal(t, delegate.Certificate.RawSubject, r.RawResponderName)
			require.True(t, bytes.Contains(r.Raw, ca.Issuer.Raw))
		}},
		{"another hash", stapletest.Answer{Hash: crypto.SHA512}, func(t *testing.T, r *ocsp.Response) {
			require.Equal(t, crypto.SHA512, r.IssuerHash)
		}},
		{"edited", stapletest.Answer{Edit: func(r *stapletest.Response) {
			r.Singles[0].NextUpdate = now.Add(time.Minute)
		}}, func(t *testing.T, r *ocsp.Response) {
			require.True(t, r.NextUpdate.Equal(now.Add(time.Minute)))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := stapletest.NewResponder(ca)
				r.Set(leaf, test.answer)
				parsed, err := ocsp.ParseResponseForCert(post(t, r.Client(), ca, leaf), leaf, ca.Issuer)
				require.NoError(t, err)
				test.check(t, parsed)
			})
		})
	}

	t.Run("nothing embedded", func(t *testing.T) {
		r := stapletest.NewResponder(ca)
		r.Set(nil, stapletest.Answer{Signer: delegate, Embed: []*x509.Certificate{}})
		require.False(t, bytes.Contains(post(t, r.Client(), ca, leaf), delegate.Certificate.Raw))
	})
	t.Run("an error status", func(t *testing.T) {
		r := stapletest.NewResponder(ca)
		r.Set(nil, stapletest.Answer{Error: ocsp.TryLater})
		require.Equal(t, ocsp.TryLaterErrorResponse, post(t, r.Client(), ca, leaf))
	})
	t.Run("an old response again", func(t *testing.T) {
		r := stapletest.NewResponder(ca)
		old := stapletest.NewResponse(ca, leaf).DER()
		r.Set(nil, stapletest.Answer{Replay: old})
		require.Equal(t, old, post(t, r.Client(), ca, leaf))
	})

	for _, test := range []struct {
		name        string
		answer      stapletest.Answer
		status      int
		contentType string
	}{
		{"a page", stapletest.Answer{HTTPStatus: 503, Body: []byte("<html>Busy"), Header: http.Header{"Retry-After": {"7"}}},
			503, "text/html; charset=utf-8"},
		{"an empty body", stapletest.Answer{Body: []byte{}, Header: http.Header{"Retry-After": {"7"}}},
			200, "text/plain; charset=utf-8"},
		{"a page that claims to be a response", stapletest.Answer{Body: []byte("<html>Busy"),
			Header: http.Header{"Retry-After": {"7"}, "Content-Type": {"application/ocsp-response"}}}, 200, "application/ocsp-response"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := stapletest.NewResponder(ca)
			r.Set(nil, test.answer)
			server := httptest.NewServer(r)
			defer server.Close()
			for _, client := range []*http.Client{server.Client(), r.Client()} {
				resp, err := client.Post(server.URL, "", bytes.NewReader(request(t, ca, leaf, crypto.SHA1)))
				require.NoError(t, err)
				require.Equal(t, test.answer.Body, body(t, resp))
				require.Equal(t, test.status, resp.StatusCode)
				require.Equal(t, "7", resp.Header.Get("Retry-After"))
				require.Equal(t, test.contentType, resp.Header.Get("Content-Type"))
			}
		})
	}
	t.Run("a good response with status 500", func(t *testing.T) {
		r := stapletest.NewResponder(ca)
		r.Set(nil, stapletest.Answer{HTTPStatus: 500})
		resp, err := r.Client().Post("http://ocsp.example", "", bytes.NewReader(request(t, ca, leaf, crypto.SHA1)))
		require.NoError(t, err)
		require.Equal(t, 500, resp.StatusCode)
		_, err = ocsp.ParseResponseForCert(body(t, resp), leaf, ca.Issuer)
		require.NoError(t, err)
	})
}

func TestAnswersOfEachCertificate(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	a, b := ca.Leaf(stapletest.LeafOptions{}).Leaf, ca.Leaf(stapletest.LeafOptions{}).Leaf
	zero := ca.Leaf(stapletest.LeafOptions{Serial: new(big.Int)}).Leaf
	r := stapletest.NewResponder(ca)
	status := func(leaf *x509.Certificate) int {
		parsed, err := ocsp.ParseResponseForCert(post(t, r.Client(), ca, leaf), leaf, ca.Issuer)
		require.NoError(t, err)
		return parsed.Status
	}
	r.Set(a, stapletest.Answer{Status: ocsp.Revoked})
	r.Set(zero, stapletest.Answer{Status: ocsp.Revoked})
	require.Equal(t, []int{ocsp.Revoked, ocsp.Good, ocsp.Revoked}, []int{status(a), status(b), status(zero)})
	r.Set(nil, stapletest.Answer{Status: ocsp.Unknown})
	require.Equal(t, []int{ocsp.Revoked, ocsp.Unknown}, []int{status(a), status(b)})
	r.Reset(a)
	require.Equal(t, []int{ocsp.Unknown, ocsp.Unknown}, []int{status(a), status(b)})
	r.Reset(nil)
	require.Equal(t, []int{ocsp.Good, ocsp.Good, ocsp.Good}, []int{status(a), status(b), status(zero)})
}

func TestRequests(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	a, b := ca.Leaf(stapletest.LeafOptions{}).Leaf, ca.Leaf(stapletest.LeafOptions{}).Leaf
	r := stapletest.NewResponder(ca)
	require.Empty(t, r.Requests(nil))
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ask := func(req *http.Request, err error) {
			require.NoError(t, err)
			time.Sleep(time.Second)
			resp, err := r.Client().Do(req)
			require.NoError(t, err)
			resp.Body.Close()
		}
		aDER, bDER := request(t, ca, a, crypto.SHA1), request(t, ca, b, crypto.SHA256)
		target := "http://one.example/x/" + url.PathEscape(base64.StdEncoding.EncodeToString(aDER))
		ask(http.NewRequest("GET", target, nil))
		post, err := http.NewRequest("POST", "http://two.example/y", bytes.NewReader(bDER))
		post.Header.Set("Cache-Control", "no-cache")
		ask(post, err)
		ask(http.NewRequest("POST", "http://two.example", bytes.NewReader([]byte("garbage"))))
		ask(http.NewRequest("POST", "http://two.example", bytes.NewReader(aDER)))

		all := r.Requests(nil)
		require.Len(t, all, 4)
		for i, got := range all {
			require.True(t, got.Time.Equal(start.Add(time.Duration(i+1)*time.Second)), "in order, and when they came")
		}
		require.Equal(t, "GET", all[0].Method)
		require.Equal(t, target, all[0].URL)
		require.Equal(t, a.SerialNumber, all[0].Serial)
		require.Equal(t, crypto.SHA1, all[0].Hash)
		require.Equal(t, aDER, all[0].Raw)
		require.Equal(t, "POST", all[1].Method)
		require.Equal(t, "http://two.example/y", all[1].URL)
		require.Equal(t, crypto.SHA256, all[1].Hash)
		require.Equal(t, "no-cache", all[1].Header.Get("Cache-Control"))
		require.Nil(t, all[2].Serial)
		require.Equal(t, []byte("garbage"), all[2].Raw)

		require.Equal(t, []stapletest.Received{all[0], all[3]}, r.Requests(a))
		require.Equal(t, []stapletest.Received{all[1]}, r.Requests(b))
		r.Reset(a)
		require.Empty(t, r.Requests(a))
		require.Equal(t, []stapletest.Received{all[1], all[2]}, r.Requests(nil))
		r.Reset(nil)
		require.Empty(t, r.Requests(nil))
	})

	t.Run("over a socket the URL is whole", func(t *testing.T) {
		for _, server := range []*httptest.Server{httptest.NewServer(r), httptest.NewTLSServer(r)} {
			r.Reset(nil)
			_, err := server.Client().Get(server.URL + "/a%2Fb/c%2Bd?q")
			require.NoError(t, err)
			require.Equal(t, server.URL+"/a%2Fb/c%2Bd?q", r.Requests(nil)[0].URL)
			server.Close()
		}
	})
}

func TestPeriodKeepsTheResponse(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	a, b := ca.Leaf(stapletest.LeafOptions{}).Leaf, ca.Leaf(stapletest.LeafOptions{}).Leaf
	synctest.Test(t, func(t *testing.T) {
		r := stapletest.NewResponder(ca)
		r.Set(nil, stapletest.Answer{Period: 4 * time.Hour, Age: time.Hour, Validity: 24 * time.Hour})
		time.Sleep(time.Until(time.Now().Truncate(4 * time.Hour).Add(5 * time.Hour))) // an hour into a period
		first := post(t, r.Client(), ca, a)
		parsed, err := ocsp.ParseResponseForCert(first, a, ca.Issuer)
		require.NoError(t, err)
		require.True(t, parsed.ThisUpdate.Equal(time.Now().Add(-2*time.Hour)))
		require.True(t, parsed.NextUpdate.Equal(time.Now().Add(22*time.Hour)))
		require.NotEqual(t, first, post(t, r.Client(), ca, b))

		time.Sleep(3*time.Hour - time.Nanosecond)
		require.Equal(t, first, post(t, r.Client(), ca, a), "the same bytes until the period is over")
		require.Equal(t, first, r.Response(a))
		time.Sleep(time.Nanosecond)
		second := post(t, r.Client(), ca, a)
		parsed, err = ocsp.ParseResponseForCert(second, a, ca.Issuer)
		require.NoError(t, err)
		require.True(t, parsed.ThisUpdate.Equal(time.Now().Add(-time.Hour)))

		r.Set(nil, stapletest.Answer{Period: 4 * time.Hour, Age: time.Hour, Validity: 24 * time.Hour})
		require.NotEqual(t, second, post(t, r.Client(), ca, a), "an Answer set anew starts anew")
		r.Set(nil, stapletest.Answer{})
		require.NotEqual(t, post(t, r.Client(), ca, a), post(t, r.Client(), ca, a), "signed anew each time without Period")
	})
}

func TestResponderIsSafeForConcurrentUse(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
	r := stapletest.NewResponder(ca)
	r.Set(leaf, stapletest.Answer{Period: 24 * 365 * time.Hour})
	other := ca.Leaf(stapletest.LeafOptions{}).Leaf
	var wg sync.WaitGroup
	answers := make([][]byte, 16)
	for i := range answers {
		wg.Go(func() {
			answers[i] = post(t, r.Client(), ca, leaf)
			post(t, r.Client(), ca, other)
			r.Set(other, stapletest.Answer{Age: time.Duration(i) * time.Hour})
			r.Requests(nil)
			r.Requests(leaf)
			r.Reset(other)
		})
	}
	wg.Wait()
	for _, answer := range answers {
		require.Equal(t, answers[0], answer)
	}
	require.Len(t, r.Requests(leaf), len(answers))
}

func TestResponseDoesNotCountAsARequest(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
	r := stapletest.NewResponder(ca)
	r.Set(leaf, stapletest.Answer{Status: ocsp.Revoked, Hang: true, Delay: time.Hour})
	parsed, err := ocsp.ParseResponseForCert(r.Response(leaf), leaf, ca.Issuer)
	require.NoError(t, err)
	require.Equal(t, ocsp.Revoked, parsed.Status)
	require.Empty(t, r.Requests(nil))
}

func TestDelayAndHangInABubble(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
	for _, test := range []struct {
		name    string
		answer  stapletest.Answer
		timeout time.Duration
		took    time.Duration
		err     error
	}{
		{"a delayed answer", stapletest.Answer{Delay: time.Minute}, time.Hour, time.Minute, nil},
		{"a client that gives up earlier", stapletest.Answer{Delay: time.Hour}, time.Minute, time.Minute, context.DeadlineExceeded},
		{"no answer", stapletest.Answer{Hang: true}, time.Minute, time.Minute, context.DeadlineExceeded},
		{"a client that has given up before", stapletest.Answer{}, -1, 0, context.DeadlineExceeded},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := stapletest.NewResponder(ca)
				r.Set(leaf, test.answer)
				ctx, cancel := context.WithTimeout(t.Context(), test.timeout)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, "POST", "http://ocsp.example",
					bytes.NewReader(request(t, ca, leaf, crypto.SHA1)))
				require.NoError(t, err)
				start := time.Now()
				resp, err := r.RoundTrip(req)
				require.Equal(t, test.took, time.Since(start))
				if test.err != nil {
					require.ErrorIs(t, err, test.err)
					require.Nil(t, resp)
					return
				}
				require.NoError(t, err)
				require.Same(t, req, resp.Request)
				parsed, err := ocsp.ParseResponseForCert(body(t, resp), leaf, ca.Issuer)
				require.NoError(t, err)
				require.True(t, parsed.ThisUpdate.Equal(time.Now()), "the response is made when it is sent")
			})
		})
	}
	t.Run("a client's timeout", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := stapletest.NewResponder(ca)
			r.Set(leaf, stapletest.Answer{Hang: true})
			client := r.Client()
			client.Timeout = time.Minute
			_, err := client.Post("http://ocsp.example", "", bytes.NewReader(request(t, ca, leaf, crypto.SHA1)))
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Len(t, r.Requests(leaf), 1)
		})
	})
}

func TestHangEndsWithTheClientOverASocket(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
	r := stapletest.NewResponder(ca)
	r.Set(leaf, stapletest.Answer{Hang: true})
	server := httptest.NewServer(r)
	defer server.Close() // would block if the handler did not end
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", server.URL, bytes.NewReader(request(t, ca, leaf, crypto.SHA1)))
	require.NoError(t, err)
	_, err = server.Client().Do(req)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestOpenSSLAsksTheResponder(t *testing.T) {
	openssl := peer.Need(t, "openssl")
	ca := stapletest.NewCA(stapletest.CAOptions{})
	leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
	r := stapletest.NewResponder(ca)
	r.Set(leaf, stapletest.Answer{Status: ocsp.Revoked, Signer: ca.Delegate(stapletest.DelegateOptions{})})
	server := httptest.NewServer(r)
	defer server.Close()
	dir := t.TempDir()
	file := func(name string, c *x509.Certificate) string {
		name = filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), 0o600))
		return name
	}
	caFile := file("ca.pem", ca.Root)
	out, err := exec.Command(openssl, "ocsp", "-url", server.URL+"/ocsp", "-CAfile", caFile, "-issuer", caFile,
		"-cert", file("leaf.pem", leaf)).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "Response verify OK")
	require.Contains(t, string(out), "leaf.pem: revoked")
	require.Len(t, r.Requests(leaf), 1)
}

func BenchmarkResponder(b *testing.B) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
	r := stapletest.NewResponder(ca)
	client := r.Client()
	b.ReportAllocs()
	for b.Loop() {
		post(b, client, ca, leaf)
	}
}
