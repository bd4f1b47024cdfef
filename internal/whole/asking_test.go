package whole

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/testhttp"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestASlowResponderIsStapled(t *testing.T) {
	for _, tt := range []struct{ delay, timeout time.Duration }{
		{12 * time.Second, 0},
		{29 * time.Second, 0},
		{2 * time.Minute, time.Minute},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := world.New(t)
			w.Responder.Set(nil, stapletest.Answer{Delay: tt.delay})
			c, err := w.Stapler(func(s *staple.Stapler) { s.Fetcher.(*staple.HTTPFetcher).Timeout = tt.timeout }).Add(w.Leaf())
			require.NoError(t, err)
			time.Sleep(tt.delay + time.Second)
			world.RequireStaple(t, c, ocsp.Good)
		})
	}
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Hang: true})
		f := &staple.HTTPFetcher{Client: w.Responder.Client(), Timeout: time.Second}
		began := time.Now()
		_, err := f.Fetch(t.Context(), &staple.Request{Leaf: w.Leaf(world.Responders("http://a.example", "http://b.example")).Leaf, Issuer: w.CA.Issuer})
		require.ErrorContains(t, err, "no complete answer within 1s")
		require.Equal(t, 2*time.Second, time.Since(began))
	})
}

// A cachingProxy keeps what a responder answered to a GET, whatever that is, and lets nothing but a POST past it.
type cachingProxy struct {
	inner http.RoundTripper
	heeds bool // no-cache
	kept  map[string]*httptest.ResponseRecorder
	hits  atomic.Int32
}

func (p *cachingProxy) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodGet {
		return p.inner.RoundTrip(req)
	}
	fresh := p.heeds && req.Header.Get("Cache-Control") != ""
	if p.kept[req.URL.String()] == nil || fresh {
		resp, err := p.inner.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		rec := httptest.NewRecorder()
		rec.Code = resp.StatusCode
		if _, err := rec.Body.ReadFrom(resp.Body); err != nil {
			return nil, err
		}
		p.kept[req.URL.String()] = rec
	} else {
		p.hits.Add(1)
	}
	rec := p.kept[req.URL.String()]
	answer := httptest.NewRecorder()
	answer.Header().Set("Content-Type", "application/ocsp-response")
	answer.WriteHeader(rec.Code)
	answer.Body = bytes.NewBuffer(rec.Body.Bytes())
	resp := answer.Result()
	resp.Request = req
	return resp, nil
}

func TestPastCachesThatKeepTooLong(t *testing.T) {
	for _, heeds := range []bool{true, false} {
		behind := func(t *testing.T) (*world.World, *cachingProxy, *staple.Stapler) {
			w := world.New(t)
			proxy := &cachingProxy{inner: w.Responder, heeds: heeds, kept: make(map[string]*httptest.ResponseRecorder)}
			return w, proxy, w.Stapler(func(s *staple.Stapler) {
				s.Fetcher.(*staple.HTTPFetcher).Client = &http.Client{Transport: proxy}
			})
		}
		t.Run(fmt.Sprint("a good answer until its end, no-cache heeded: ", heeds), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, proxy, s := behind(t)
				c := w.Add(s, w.Leaf(world.LongLived))
				for range 5 {
					for range 7*24 - 1 {
						time.Sleep(time.Hour)
						synctest.Wait()
						world.RequireStaple(t, c, ocsp.Good)
					}
				}
				require.NotZero(t, proxy.hits.Load())
				require.Less(t, len(w.Responder.Requests(nil)), 30)
			})
		})
		t.Run(fmt.Sprint("not more than four times a cycle, no-cache heeded: ", heeds), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, _, s := behind(t)
				w.Responder.Set(nil, stapletest.Answer{Period: 7 * world.Day, Validity: 7 * world.Day})
				c := w.Add(s, w.Leaf(world.LongLived))
				time.Sleep(time.Until(c.Status().Expires) - time.Second)
				synctest.Wait()
				posts := 0
				for _, r := range w.Responder.Requests(nil) {
					if r.Method == http.MethodPost {
						posts++
					}
				}
				require.Equal(t, 4, posts)
			})
		})
		for name, denial := range map[string]stapletest.Answer{
			"unauthorized":  {Error: ocsp.Unauthorized},
			"unknown":       {Status: ocsp.Unknown},
			"tryLater":      {Error: ocsp.TryLater},
			"internalError": {Error: ocsp.InternalError},
		} {
			t.Run(fmt.Sprintf("%s, no-cache heeded: %v", name, heeds), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w, _, s := behind(t)
					w.Responder.Set(nil, denial)
					c, err := s.Add(w.Leaf())
					require.NoError(t, err)
					time.Sleep(time.Second)
					w.Responder.Reset(nil)
					time.Sleep(30 * time.Second)
					synctest.Wait()
					world.RequireStaple(t, c, ocsp.Good)
				})
			})
		}
		t.Run(fmt.Sprint("Refresh after a revocation, no-cache heeded: ", heeds), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, _, s := behind(t)
				cert := w.Leaf()
				c := w.Add(s, cert)
				time.Sleep(time.Hour)
				w.Responder.Set(nil, compromised)
				require.NoError(t, c.Refresh(world.Soon(t)))
				requireRevoked(t, c)
				w.Responder.Reset(nil)
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				world.RequireStaple(t, c, ocsp.Good)
			})
		})
	}
}

func TestAResponderThatComparesWithAnotherHashIsAskedWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		unknown := stapletest.NewResponder(w.CA)
		unknown.Set(nil, stapletest.Answer{Status: ocsp.Unknown})
		var requests atomic.Int32
		transport := roundTripper(func(req *http.Request) (*http.Response, error) {
			requests.Add(1)
			asked, err := w.Responder.RoundTrip(req)
			all := w.Responder.Requests(nil)
			if all[len(all)-1].Hash.String() != "SHA-256" {
				return unknown.RoundTrip(req)
			}
			return asked, err
		})
		s := w.Stapler(func(s *staple.Stapler) { s.Fetcher.(*staple.HTTPFetcher).Client = &http.Client{Transport: transport} })
		w.Add(s, w.Leaf())
		require.EqualValues(t, 2, requests.Load())
		w.Add(s, w.Leaf())
		require.EqualValues(t, 3, requests.Load(), "what worked is remembered")
	})
}

// secret is a password that nobody may read.
const secret = "s3cr3t-of-the-responder"

func TestCredentialsAreSentWhereTheyAreTrustedAndShownNowhere(t *testing.T) {
	for name, answer := range map[string]http.Handler{
		"that works":     nil,
		"that fails":     http.NotFoundHandler(),
		"that redirects": http.RedirectHandler("http://user:"+secret+"@elsewhere.invalid/x", http.StatusFound),
		"that loops":     http.RedirectHandler("/again", http.StatusFound),
	} {
		for _, in := range []string{"the certificate", "URLs"} {
			t.Run("a responder "+name+", named by "+in, func(t *testing.T) {
				w := world.New(t)
				var sent atomic.Int32
				server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					user, password, ok := r.BasicAuth()
					if ok {
						sent.Add(1)
						require.Equal(t, "us er", user)
						require.Equal(t, secret, password)
					}
					if answer == nil {
						w.Responder.ServeHTTP(rw, r)
						return
					}
					answer.ServeHTTP(rw, r)
				}))
				t.Cleanup(server.Close)
				with := " http://us%20er:" + secret + "@" + strings.TrimPrefix(server.URL, "http://") + "/path\n"
				var text world.Text
				leaf := w.Leaf(world.Responders(with))
				s := &staple.Stapler{Fetcher: new(staple.HTTPFetcher), Logger: text.Logger(), OnEvent: w.Log.Note}
				if in == "URLs" {
					leaf = w.Leaf(world.Responders())
					s.Fetcher = &staple.HTTPFetcher{URLs: func(*x509.Certificate) []string {
						return []string{with, "http://user:" + secret + "@%zz/", "user:" + secret + "@host"}
					}}
				}
				c, err := s.Add(leaf)
				require.NoError(t, err)
				_ = c.Refresh(t.Context())
				require.NoError(t, s.Close())
				require.Equal(t, in == "URLs", sent.Load() > 0)
				if answer == nil {
					require.Equal(t, server.URL+"/path", c.Status().Responder)
				} else {
					require.ErrorContains(t, c.Status().Err, server.URL+"/path")
				}
				shown := fmt.Sprintf("%s %+v %#v %v", text.String(), c.Status(), c.Status().Err, w.Log.Events())
				require.NotContains(t, shown, secret)
				require.NotContains(t, shown, url.QueryEscape(secret))
			})
		}
	}
}

func TestAURLThatNobodyCanAskIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		var text world.Text
		s := w.Stapler(func(s *staple.Stapler) { s.Logger = text.Logger() })
		world.RequireStaple(t, w.Add(s, w.Leaf(world.Responders(" \thttp://ocsp.example\n"))), ocsp.Good)
		for range 3 {
			_, err := s.Add(w.Leaf(world.Responders("ocsp.example/without/scheme", "ldap://directory.example", "LDAPS://directory.example", "ftp://x.example")))
			require.NoError(t, err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		var named []any
		for _, line := range text.TakeLines(t) {
			if line["level"] == slog.LevelWarn.String() {
				named = append(named, line["responder"])
			}
		}
		require.Equal(t, []any{"ocsp.example/without/scheme", "ftp://x.example"}, named)
	})
}

func TestCloseClosesTheConnectionsOfAnyFetcherThatCan(t *testing.T) {
	w := world.New(t)
	server := httptest.NewUnstartedServer(w.Responder)
	closed := make(chan bool, 1)
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			closed <- true
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	s := &staple.Stapler{Fetcher: struct{ *staple.HTTPFetcher }{new(staple.HTTPFetcher)}, Logger: w.Stapler().Logger}
	c, err := s.Add(w.Leaf(world.Responders(server.URL)))
	require.NoError(t, err)
	require.NoError(t, c.Wait(t.Context()))
	require.NoError(t, s.Close())
	<-closed
}

// nginx keeps whatever has status 200, as long as it is told to, and does not look at what OCSP says.
func TestNginxThatKeepsNegativeAnswers(t *testing.T) {
	w := world.New(t)
	server := startNginx(t, strings.ReplaceAll(`
		proxy_cache ocsp;
		proxy_cache_valid any 1h;
		location / { proxy_pass UPSTREAM; }
`, "UPSTREAM", testhttp.NewServer(t, w.Responder)))
	for name, denial := range map[string]stapletest.Answer{
		"unauthorized":  {Error: ocsp.Unauthorized},
		"unknown":       {Status: ocsp.Unknown},
		"tryLater":      {Error: ocsp.TryLater},
		"internalError": {Error: ocsp.InternalError},
		"404":           {HTTPStatus: 404},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cert := w.Leaf(world.Responders(server))
			w.Responder.Set(cert.Leaf, denial)
			c, err := w.Stapler(func(s *staple.Stapler) { s.Fetcher = new(staple.HTTPFetcher) }).Add(cert)
			require.NoError(t, err)
			first, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for c.Status().Failures == 0 {
				require.NoError(t, first.Err())
				time.Sleep(10 * time.Millisecond)
			}
			world.RequireNoStaple(t, c)
			w.Responder.Reset(cert.Leaf) // the CA knows it now
			require.NoError(t, c.Wait(first))
			world.RequireStaple(t, c, ocsp.Good)
		})
	}
}
