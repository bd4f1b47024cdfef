package whole

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestNoGoroutineSurvivesClose closes a Stapler that is busy in every way there is,
// on real sockets: waiting for responders that answer, hang and refuse connections,
// for an issuer, for the disk, and with events to tell.
func TestNoGoroutineSurvivesClose(t *testing.T) {
	stacks := func() string {
		buf := make([]byte, 1<<20)
		return string(buf[:runtime.Stack(buf, true)])
	}
	w := world.New(t)
	server := httptest.NewServer(w.Responder)
	defer server.Close()
	defer server.CloseClientConnections()
	refused := httptest.NewServer(http.NotFoundHandler())
	refused.Close()
	before := runtime.NumGoroutine()
	for round := range 3 {
		s := &staple.Stapler{
			Cache:   staple.DirCache(t.TempDir()),
			Logger:  w.Stapler().Logger,
			OnEvent: func(staple.Event) { runtime.Gosched() },
		}
		asked := len(w.Responder.Requests(nil))
		var certs []tls.Certificate
		for i := range 60 {
			url := []string{server.URL, refused.URL, server.URL + "/hang"}[i%3]
			cert := w.Leaf(world.Names(fmt.Sprint(i, ".example.com")), world.SameKey(w.CA.Key), func(o *stapletest.LeafOptions) {
				o.Responders, o.MustStaple = []string{url}, i%2 == 0
				o.OmitIssuer, o.IssuerURLs = i%10 == 9, []string{server.URL + "/issuer"}
			})
			if i%3 == 2 {
				w.Responder.Set(cert.Leaf, stapletest.Answer{Hang: true})
			}
			certs = append(certs, cert)
		}
		config := s.TLSConfig(&tls.Config{Certificates: certs[:30], GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &certs[len(hello.ServerName)%60], nil
		}})
		for _, cert := range certs[30:] {
			c, err := s.Add(cert)
			require.NoError(t, err)
			go c.Refresh(t.Context())
		}
		for i := range 40 {
			go config.GetCertificate(&tls.ClientHelloInfo{ServerName: strings.Repeat("x", i)})
		}
		require.Eventually(t, func() bool { return len(w.Responder.Requests(nil)) >= asked+3*round }, time.Minute, time.Millisecond)
		require.NoError(t, s.Close())
		require.Eventually(t, func() bool { // what runs after the last wg.Done is not over at once
			ours := "created by github.com/go-staple/staple"
			return !strings.Contains(strings.ReplaceAll(stacks(), ours+"/internal/whole", ""), ours)
		}, time.Minute, time.Millisecond)
	}
	server.CloseClientConnections()
	// Not with require.Eventually, which has goroutines of its own.
	for ctx := world.Soon(t); runtime.NumGoroutine() > before && ctx.Err() == nil; time.Sleep(time.Millisecond) {
	}
	require.LessOrEqual(t, runtime.NumGoroutine(), before, "%s", stacks())
}

// A certificate that a callback returns first while the Stapler closes may bring what there is a line of the log to write about.
func TestCloseWhileACallbackBringsAStapleThatIsRefused(t *testing.T) {
	w := world.New(t)
	key := w.Leaf().PrivateKey
	var certs []*tls.Certificate
	for i := range 8 {
		cert := w.Leaf(world.Names(fmt.Sprint(i, ".example.com")), world.SameKey(key))
		cert.OCSPStaple = []byte("no response")
		certs = append(certs, &cert)
	}
	for range 200 {
		s := &staple.Stapler{Fetcher: &staple.HTTPFetcher{Client: w.Responder.Client()}, Logger: w.Stapler().Logger}
		config := s.TLSConfig(&tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return certs[len(hello.ServerName)%len(certs)], nil
		}})
		begin := make(chan struct{})
		var handshakes sync.WaitGroup
		for i := range certs {
			handshakes.Go(func() {
				<-begin
				_, err := config.GetCertificate(&tls.ClientHelloInfo{ServerName: strings.Repeat("x", i+1)})
				assert.NoError(t, err)
			})
		}
		close(begin)
		require.NoError(t, s.Close())
		handshakes.Wait()
		require.NoError(t, s.Close())
	}
}
