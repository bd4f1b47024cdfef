package staplecaddy

import (
	"context"
	"crypto/x509"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"

	"github.com/go-staple/staple"
)

var pool = caddy.NewUsagePool()

// sharing is what Verifiers have to agree in to share a Stapler.
type sharing struct {
	cache      string
	responders string // with a space between them
}

// A shared Stapler is that of all Verifiers that agree, in one configuration and from one to the next.
type shared struct {
	sharing
	stapler staple.Stapler

	mu    sync.Mutex
	users []*Verifier
}

// join returns the Stapler for v, to leave it later.
func join(v *Verifier, with sharing) (*shared, error) {
	value, _, err := pool.LoadOrNew(with, func() (caddy.Destructor, error) {
		s := &shared{sharing: with}
		s.stapler.Logger = slog.New(relay(s.handler))
		if with.cache != "off" {
			s.stapler.Cache = staple.DirCache(with.cache)
		}
		if responders := strings.Fields(with.responders); len(responders) > 0 {
			s.stapler.Fetcher = &staple.HTTPFetcher{URLs: func(*x509.Certificate) []string { return responders }}
		}
		return s, nil
	})
	if err != nil {
		return nil, err
	}
	s := value.(*shared)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users = append(s.users, v)
	return s, nil
}

func (s *shared) leave(v *Verifier) error {
	_, err := pool.Delete(s.sharing)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users = slices.DeleteFunc(s.users, func(u *Verifier) bool { return u == v })
	return err
}

// Destruct closes the Stapler when the last Verifier has left.
func (s *shared) Destruct() error { return s.stapler.Close() }

// handler returns the newest Verifier's, since the logs of a configuration are closed once another one is loaded.
func (s *shared) handler() slog.Handler {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.users) == 0 {
		return slog.DiscardHandler
	}
	return s.users[len(s.users)-1].log
}

// A relay is a slog.Handler that asks anew for each line who handles it.
type relay func() slog.Handler

func (r relay) Enabled(ctx context.Context, level slog.Level) bool { return r().Enabled(ctx, level) }

func (r relay) Handle(ctx context.Context, record slog.Record) error { return r().Handle(ctx, record) }

func (r relay) WithAttrs(attrs []slog.Attr) slog.Handler {
	return relay(func() slog.Handler { return r().WithAttrs(attrs) })
}

func (r relay) WithGroup(name string) slog.Handler {
	return relay(func() slog.Handler { return r().WithGroup(name) })
}
