package whole

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// A rogue is all that a Stapler calls of its user's. One of its parts misbehaves as long as it is told to.
type rogue struct {
	staple.Fetcher
	staple.ResponseVerifier
	*world.LockedCache
	slog.Handler
	note   func(staple.Event)
	part   string
	acts   func()
	left   atomic.Int32 // how often it misbehaves still
	called atomic.Int32
}

// install makes s call r.
func (r *rogue) install(s *staple.Stapler) {
	r.Fetcher, r.note = s.Fetcher, s.OnEvent
	r.LockedCache, r.Handler = world.NewLockedCache(), slog.DiscardHandler
	s.Fetcher = rogueFetcher{r}
	s.Verifier = rogueVerifier{r}
	s.Cache = rogueCache{r}
	s.Logger = slog.New(rogueHandler{r})
	s.OnEvent = func(e staple.Event) {
		r.in("OnEvent")
		r.note(e)
	}
}

func (r *rogue) in(part string) {
	if part == r.part {
		r.called.Add(1)
		if r.left.Add(-1) >= 0 {
			r.acts()
		}
	}
}

type rogueFetcher struct{ *rogue }

func (r rogueFetcher) Fetch(ctx context.Context, req *staple.Request) ([]byte, error) {
	r.in("Fetch")
	return r.Fetcher.Fetch(ctx, req)
}

func (r rogueFetcher) FetchIssuer(ctx context.Context, leaf *x509.Certificate) ([]*x509.Certificate, error) {
	r.in("FetchIssuer")
	return []*x509.Certificate{world.CA().Issuer}, nil
}

type rogueVerifier struct{ *rogue }

func (r rogueVerifier) Verify(der []byte, leaf, issuer *x509.Certificate, now time.Time) (*ocsp.Response, time.Time, error) {
	r.in("Verify")
	return r.ResponseVerifier.Verify(der, leaf, issuer, now)
}

type rogueCache struct{ *rogue }

func (r rogueCache) Get(ctx context.Context, key string) ([]byte, error) {
	r.in("Get")
	return r.LockedCache.Get(ctx, key)
}

func (r rogueCache) Put(ctx context.Context, key string, data []byte) error {
	r.in("Put")
	return r.LockedCache.Put(ctx, key, data)
}

func (r rogueCache) Delete(ctx context.Context, key string) error {
	r.in("Delete")
	return r.LockedCache.Delete(ctx, key)
}

func (r rogueCache) TryLock(ctx context.Context, key string, ttl time.Duration) (func(), bool, error) {
	r.in("TryLock")
	unlock, ok, err := r.LockedCache.TryLock(ctx, key, ttl)
	return func() {
		unlock()
		r.in("unlock")
	}, ok, err
}

type rogueHandler struct{ *rogue }

func (r rogueHandler) Enabled(context.Context, slog.Level) bool {
	r.in("Enabled")
	return true
}

func (r rogueHandler) Handle(context.Context, slog.Record) error {
	r.in("Handle")
	return nil
}

func (r rogueHandler) WithAttrs([]slog.Attr) slog.Handler { return r }
func (r rogueHandler) WithGroup(string) slog.Handler      { return r }

// TestWhoeverEndsTheGoroutineThatCalledItCostsARoundAtMost is about runtime.Goexit, which FailNow of a test calls.
func TestWhoeverEndsTheGoroutineThatCalledItCostsARoundAtMost(t *testing.T) {
	for _, tt := range []struct {
		part  string
		fails bool // the round
	}{
		{"Fetch", true},
		{"FetchIssuer", true},
		{"Verify", true},
		{"Get", true},
		{"TryLock", true},
		{"Put", false},
		{"unlock", false},
		{"OnEvent", false},
		{"Enabled", false},
		{"Handle", false},
	} {
		t.Run(tt.part, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				r := &rogue{part: tt.part, acts: runtime.Goexit}
				s := w.Stapler(r.install, func(s *staple.Stapler) { s.Concurrency = 1 })
				r.left.Store(1000)
				cert := w.Leaf(func(o *stapletest.LeafOptions) { o.OmitIssuer = tt.part == "FetchIssuer" })
				c, err := s.Add(cert)
				require.NoError(t, err)
				began := time.Now()
				require.NoError(t, s.Wait(world.Soon(t)))
				require.Zero(t, time.Since(began), "nobody is woken")
				if !tt.fails {
					require.NoError(t, c.Wait(world.Soon(t)))
				} else {
					world.RequireNoStaple(t, c)
				}
				for range 3 {
					err := c.Refresh(world.Soon(t))
					require.NotErrorIs(t, err, context.DeadlineExceeded, "nobody is woken")
					require.Equal(t, tt.fails, err != nil, "%v", err)
					if tt.fails {
						require.ErrorContains(t, err, "Goexit")
						require.Equal(t, err, c.Status().Err)
						require.False(t, c.Status().NextRefresh.IsZero())
					}
				}
				synctest.Wait()
				require.Positive(t, r.called.Load())
				require.Zero(t, r.Held(), "a lock is not released")
				if tt.part == "OnEvent" {
					require.Empty(t, w.Log.Events())
					require.EqualValues(t, 4, r.called.Load(), "an event is lost, beyond the one")
				} else {
					require.Len(t, w.Log.Events(), 4)
				}

				before := len(w.Log.Events())
				r.left.Store(0)
				time.Sleep(5 * time.Minute)
				require.NotEmpty(t, c.TLS().OCSPStaple)
				require.NoError(t, c.Refresh(world.Soon(t)))
				synctest.Wait()
				require.Greater(t, len(w.Log.Events()), before)
				stored, err := r.LockedCache.Get(t.Context(), world.CacheKey(cert.Leaf))
				require.NoError(t, err)
				require.Equal(t, c.TLS().OCSPStaple, stored)
				require.Zero(t, r.Held())
				require.NoError(t, s.Close())
			})
		})
	}
}

func TestAVerifierThatPanicsInAHandshakeLeavesNothingBehind(t *testing.T) {
	for name, acts := range map[string]func(){"panic": func() { panic("original") }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				r := &rogue{part: "Verify", acts: acts}
				s := w.Stapler(r.install)
				cert := w.Leaf()
				cert.OCSPStaple = w.Responder.Response(cert.Leaf)
				config := s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }})
				r.left.Store(3)
				for range 3 {
					ended := make(chan any)
					go func() { // as net/http does
						defer func() { ended <- recover() }()
						_, _ = config.GetCertificate(&tls.ClientHelloInfo{ServerName: "www.example.com"})
					}()
					if got := <-ended; name == "panic" {
						require.Equal(t, "original", got)
					}
					require.Empty(t, slices.Collect(s.Certificates()), "it is neither kept nor asked about")
				}
				served, err := config.GetCertificate(&tls.ClientHelloInfo{ServerName: "www.example.com"})
				require.NoError(t, err)
				require.Equal(t, cert.OCSPStaple, served.OCSPStaple)
				all := slices.Collect(s.Certificates())
				require.Len(t, all, 1)
				require.NoError(t, all[0].Wait(world.Soon(t)))
				require.NoError(t, s.Wait(world.Soon(t)))
			})
		})
	}
}

func boom() { panic("the original") }

// TestAProgramThatPanicsDiesOfThat lets each part of a Stapler panic, in a process of its own.
func TestAProgramThatPanicsDiesOfThat(t *testing.T) {
	for _, part := range []string{"Fetch", "Verify", "Get", "Put", "TryLock", "unlock", "OnEvent", "Handle"} {
		t.Run(part, func(t *testing.T) {
			t.Parallel()
			if world.IsChild() {
				w := world.New(t)
				r := &rogue{part: part, acts: boom}
				r.left.Store(1)
				c, err := w.Stapler(r.install).Add(w.Leaf())
				require.NoError(t, err)
				_ = c.Wait(world.Soon(t))
				time.Sleep(10 * time.Second) // it is to die before that
				return
			}
			out, err := world.Child(t).CombinedOutput()
			require.Error(t, err)
			require.Contains(t, string(out), "panic: the original")
			require.NotContains(t, string(out), "recovered")
			require.Contains(t, string(out), "whole.boom(", "not its own stack")
		})
	}
}

var errTorn = errors.New("torn")

// A reuser is a Fetcher, a Verifier and a Cache that use one buffer each, again and again.
type reuser struct {
	staple.ResponseVerifier
	staple.MemoryCache
	source     staple.Fetcher
	fetched    []byte
	got        []byte
	raw        []byte
	meanwhile  func() // while Verify is at it
	scribbling bool   // over what Verify is given
	writes     bool   // over what Put is given
}

func scribble(b []byte) {
	for i := range b {
		b[i] = 'x'
	}
}

func (r *reuser) Fetch(ctx context.Context, req *staple.Request) ([]byte, error) {
	der, err := r.source.Fetch(ctx, &staple.Request{Leaf: req.Leaf, Issuer: req.Issuer})
	r.fetched = append(r.fetched[:0], der...)
	return r.fetched, err
}

func (r *reuser) Verify(der []byte, leaf, issuer *x509.Certificate, now time.Time) (*ocsp.Response, time.Time, error) {
	p, end, err := r.ResponseVerifier.Verify(slices.Clone(der), leaf, issuer, now)
	if r.scribbling {
		scribble(der)
	}
	if err != nil {
		return nil, end, errTorn
	}
	if r.meanwhile != nil {
		r.meanwhile()
		p.Raw = nil // so that what came is stapled
		return p, end, nil
	}
	r.raw = append(r.raw[:0], p.Raw...)
	p.Raw = r.raw
	return p, end, nil
}

func (r *reuser) Get(ctx context.Context, key string) ([]byte, error) {
	der, err := r.MemoryCache.Get(ctx, key)
	r.got = append(r.got[:0], der...)
	return r.got, err
}

func (r *reuser) Put(ctx context.Context, key string, data []byte) error {
	err := r.MemoryCache.Put(ctx, key, data)
	if r.writes {
		scribble(data)
	}
	return err
}

func TestWhoeverReusesItsBufferChangesNothingThatIsStapled(t *testing.T) {
	for _, tt := range []struct {
		name string
		with func(w *world.World, r *reuser, s *staple.Stapler, cert *tls.Certificate)
	}{
		{"the Fetcher", func(w *world.World, r *reuser, s *staple.Stapler, cert *tls.Certificate) {
			s.Fetcher, s.Verifier = r, r
			r.meanwhile = func() { scribble(r.fetched) }
		}},
		{"the Cache, what it returns", func(w *world.World, r *reuser, s *staple.Stapler, cert *tls.Certificate) {
			s.Cache, s.Verifier = r, r
			require.NoError(w.T, r.Put(w.T.Context(), world.CacheKey(cert.Leaf), w.Responder.Response(cert.Leaf)))
			r.meanwhile = func() { scribble(r.got) }
		}},
		{"the Cache, what it is given", func(w *world.World, r *reuser, s *staple.Stapler, cert *tls.Certificate) {
			s.Cache, r.writes = r, true
		}},
		{"the Verifier, what it returns", func(w *world.World, r *reuser, s *staple.Stapler, cert *tls.Certificate) {
			s.Verifier = r
		}},
		{"the Verifier, what it is given", func(w *world.World, r *reuser, s *staple.Stapler, cert *tls.Certificate) {
			s.Verifier, r.scribbling = r, true
		}},
		{"whoever brings the certificate", func(w *world.World, r *reuser, s *staple.Stapler, cert *tls.Certificate) {
			s.Verifier = r
			w.Responder.Set(nil, stapletest.Answer{Hang: true})
			cert.OCSPStaple = w.FreshResponse(cert.Leaf)
			r.meanwhile = func() { scribble(cert.OCSPStaple) }
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				r := &reuser{source: &staple.HTTPFetcher{Client: w.Responder.Client()}}
				cert := w.Leaf()
				s := w.Stapler(func(s *staple.Stapler) { tt.with(w, r, s, &cert) })
				c := w.Add(s, cert)
				synctest.Wait()
				first := slices.Clone(c.TLS().OCSPStaple)
				world.RequireStaple(t, c, ocsp.Good)
				r.meanwhile = nil
				r.scribbling, r.writes = false, false
				other := w.Leaf(world.Names("other.example.com"))
				_, err := s.Add(other)
				require.NoError(t, err)
				synctest.Wait()
				scribble(r.fetched)
				scribble(r.got)
				scribble(r.raw)
				require.Equal(t, first, c.TLS().OCSPStaple)
				world.RequireStaple(t, c, ocsp.Good)
			})
		})
	}
	t.Run("whoever brings a certificate of which no issuer is known", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := world.New(t)
			cert := w.Leaf(func(o *stapletest.LeafOptions) { o.OmitIssuer = true })
			given := w.FreshResponse(cert.Leaf)
			cert.OCSPStaple = slices.Clone(given)
			s := w.Stapler(func(s *staple.Stapler) { s.Fetcher = world.NoIssuers{Fetcher: s.Fetcher} })
			c, err := s.Add(cert)
			require.NoError(t, err)
			require.Equal(t, given, c.TLS().OCSPStaple)
			scribble(cert.OCSPStaple)
			require.Equal(t, given, c.TLS().OCSPStaple)

			again := cert
			config := s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &again, nil }})
			again.OCSPStaple = nil
			hello := &tls.ClientHelloInfo{ServerName: "www.example.com"}
			_, err = config.GetCertificate(hello)
			require.NoError(t, err)
			brought := slices.Clone(given)
			again.OCSPStaple = brought
			served, err := config.GetCertificate(hello)
			require.NoError(t, err)
			require.Equal(t, given, served.OCSPStaple)
			scribble(brought)
			again.OCSPStaple = nil
			served, err = config.GetCertificate(hello)
			require.NoError(t, err)
			require.Equal(t, given, served.OCSPStaple)
		})
	})
}
