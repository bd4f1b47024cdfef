package whole

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

var updateDocs = flag.Bool("update", false, "write the tables that tests print into docs")

// An odd answer is what comes of a GET that has no no-cache, unless hash says that it depends on something else.
type oddAnswer struct {
	name    string
	status  int // 0: 200
	body    []byte
	err     error
	hangs   bool
	keeps   bool   // a cache gives it also for GET with no-cache
	hash    string // everything but a request by this hash
	replays bool   // a cache gives what was the answer once, until it has ended
}

var oddAnswers = []oddAnswer{
	{name: "200, an empty body", body: []byte{}},
	{name: "200, a web page", body: []byte("<!DOCTYPE html><title>Log in</title>")},
	{name: "200, DER that is something else", body: []byte{0x30, 3, 2, 1, 0}},
	{name: "204", status: 204}, {name: "301 to nowhere", status: 301}, {name: "304", status: 304},
	{name: "400", status: 400}, {name: "401", status: 401}, {name: "403", status: 403}, {name: "404", status: 404},
	{name: "405", status: 405}, {name: "406", status: 406}, {name: "410", status: 410}, {name: "414", status: 414},
	{name: "415", status: 415}, {name: "422", status: 422}, {name: "429", status: 429}, {name: "431", status: 431},
	{name: "500", status: 500}, {name: "501", status: 501}, {name: "502", status: 502}, {name: "503", status: 503},
	{name: "504", status: 504},
	{name: "no answer", err: io.EOF}, {name: "no answer, until the time is up", hangs: true},
	{name: "malformedRequest", body: ocsp.MalformedRequestErrorResponse, keeps: true},
	{name: "internalError, kept by a cache", body: ocsp.InternalErrorErrorResponse, keeps: true},
	{name: "tryLater, kept by a cache", body: ocsp.TryLaterErrorResponse, keeps: true},
	{name: "sigRequired, kept by a cache", body: ocsp.SigRequredErrorResponse, keeps: true},
	{name: "unauthorized, kept by a cache that heeds no-cache", body: ocsp.UnauthorizedErrorResponse},
	{name: "unauthorized, kept by one that does not", body: ocsp.UnauthorizedErrorResponse, keeps: true},
	{name: "unauthorized, but by SHA-256", body: ocsp.UnauthorizedErrorResponse, hash: "SHA-256"},
	{name: "malformedRequest, but by SHA-256", body: ocsp.MalformedRequestErrorResponse, hash: "SHA-256"},
	{name: "unknown, but by SHA-256", hash: "SHA-256"},
	{name: "what is held, from a cache that heeds no-cache", replays: true},
	{name: "what is held, from one that does not", replays: true, keeps: true},
}

// TestOddAnswers prints docs/asking.md's table.
func TestOddAnswers(t *testing.T) {
	var table strings.Builder
	table.WriteString("| the answer to GET | first round | second round | half a validity later |\n| --- | --- | --- | --- |\n")
	for _, odd := range oddAnswers {
		synctest.Test(t, func(t *testing.T) {
			fmt.Fprintf(&table, "| %s | %s |\n", odd.name, strings.Join(roundsOf(t, odd), " | "))
		})
	}
	t.Log("\n" + table.String())
	const name = "../../docs/asking.md"
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	between := regexp.MustCompile(`(?s)(<!-- TestOddAnswers -->\n\n).*?(<!-- end -->)`)
	require.True(t, between.Match(text))
	want := between.ReplaceAll(text, []byte("${1}"+table.String()+"\n${2}"))
	if *updateDocs {
		require.NoError(t, os.WriteFile(name, want, 0o644))
		return
	}
	require.Equal(t, string(want), string(text), "go test ./internal/whole -run TestOddAnswers -update")
}

// roundsOf returns the requests of the first two rounds, and of the first one after half a validity.
func roundsOf(t *testing.T, odd oddAnswer) (rounds []string) {
	w := world.New(t)
	cert := w.Leaf(world.LongLived)
	var mu sync.Mutex
	var asked []string
	var kept []byte
	transport := roundTripper(func(req *http.Request) (*http.Response, error) {
		good, err := w.Responder.RoundTrip(req)
		require.NoError(t, err)
		all := w.Responder.Requests(nil)
		mu.Lock()
		what := req.Method
		if req.Header.Get("Cache-Control") != "" {
			what += " no-cache"
		}
		if hash := all[len(all)-1].Hash.String(); hash != "SHA-1" {
			what += " by " + hash
		}
		asked = append(asked, what)
		mu.Unlock()
		isOdd := req.Method == http.MethodGet && (odd.keeps || req.Header.Get("Cache-Control") == "")
		if odd.hash != "" {
			isOdd = all[len(all)-1].Hash.String() != odd.hash
		}
		switch {
		case isOdd && odd.replays && kept == nil:
			kept, err = io.ReadAll(good.Body)
			require.NoError(t, err)
		case !isOdd:
			return good, nil
		}
		body := odd.body
		switch {
		case odd.replays:
			body = kept
		case odd.hash != "" && body == nil:
			r := stapletest.NewResponse(w.CA, cert.Leaf)
			r.Singles[0].Status = ocsp.Unknown
			body = r.DER()
		case odd.hangs:
			httptrace.ContextClientTrace(req.Context()).GotConn(httptrace.GotConnInfo{})
			<-req.Context().Done()
			return nil, req.Context().Err()
		case odd.err != nil:
			httptrace.ContextClientTrace(req.Context()).GotConn(httptrace.GotConnInfo{})
			return nil, odd.err
		}
		status := odd.status
		if status == 0 {
			status = 200
		}
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(string(body))), Request: req}, nil
	})
	took := func(what string) {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		rounds = append(rounds, strings.Join(asked, ", ")+what)
		asked = nil
	}
	s := w.Stapler(func(s *staple.Stapler) { s.Fetcher.(*staple.HTTPFetcher).Client = &http.Client{Transport: transport} })
	c, err := s.Add(cert)
	require.NoError(t, err)
	outcome := func() string {
		synctest.Wait()
		if c.Status().Stapled {
			return ": stapled"
		}
		return ": " + strings.TrimSpace(shortReason(c.Status().Err))
	}
	time.Sleep(time.Millisecond)
	for c.Status().LastAttempt.IsZero() || !c.Status().Stapled && c.Status().Failures == 0 {
		time.Sleep(time.Second)
	}
	first := outcome()
	took(first)
	if first == ": stapled" {
		rounds = append(rounds, "")
	} else {
		for failures := c.Status().Failures; !c.Status().Stapled && c.Status().Failures == failures; {
			time.Sleep(time.Second)
			synctest.Wait()
		}
		took(outcome())
	}
	require.True(t, c.Status().Stapled, "%s: %v", odd.name, c.Status().Err)
	w.Log.Clear()
	for since := time.Now(); len(w.Log.Kinds()) == 0; time.Sleep(time.Minute) {
		require.Less(t, time.Since(since), 8*world.Day)
	}
	synctest.Wait()
	took(": " + w.Log.Kinds()[0].String())
	if odd.replays { // it is in the last part of its life that such a cache does harm
		at, end := c.Status().ThisUpdate, c.Status().Expires
		for c.Status().ThisUpdate.Equal(at) && time.Now().Before(end) {
			mu.Lock()
			asked = nil
			mu.Unlock()
			time.Sleep(time.Minute)
			synctest.Wait()
		}
		rounds[2] += "; in the last eighth " + strings.Join(asked, ", ") + ": stapled"
		require.Less(t, time.Until(end), end.Sub(at)/8)
		require.Positive(t, time.Until(end))
	}
	return rounds
}

// shortReason is "refused" for what Accept refused, and nothing otherwise.
func shortReason(err error) string {
	if _, ok := errors.AsType[*staple.VerifyError](err); ok {
		return "refused"
	}
	return "failed"
}
