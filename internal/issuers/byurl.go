package issuers

import (
	"context"
	"crypto/x509"
	"sync"

	"github.com/go-staple/staple/internal/bounded"
)

// A ByURL remembers the issuers that were found at URLs, for the next certificate that
// names the same one, and lets those who ask for one URL at the same time share a
// request. The zero value is ready to use, by several goroutines at a time.
type ByURL struct {
	mu       sync.Mutex
	found    bounded.Map[string, []*x509.Certificate]
	inFlight map[string]*request
}

// A request is one in flight, which others wait for.
type request struct {
	done  chan struct{} // closed once the fields below are set
	certs []*x509.Certificate
	err   error
	void  bool // it says nothing to others, who must ask themselves
}

// Known returns those of the issuers remembered of a URL that issued cert.
func (b *ByURL) Known(url string, cert *x509.Certificate) []*x509.Certificate {
	b.mu.Lock()
	found := b.found.Get(url)
	b.mu.Unlock()
	return Among(found, cert, MaxChecks)
}

// Get returns those of the certificates at a URL that issued cert, which may be none. Where
// none is remembered it calls get for what is there, or waits for the get of another call,
// whose error is its own; but not for that of a call whose context ended. Where its own
// context ends while it waits, it returns that one's error.
func (b *ByURL) Get(ctx context.Context, url string, cert *x509.Certificate,
	get func(context.Context) ([]*x509.Certificate, error)) ([]*x509.Certificate, error) {
	for {
		b.mu.Lock()
		known := b.found.Get(url)
		r, joined := b.inFlight[url]
		if !joined {
			r = &request{done: make(chan struct{})}
			if b.inFlight == nil {
				b.inFlight = make(map[string]*request)
			}
			b.inFlight[url] = r
		}
		b.mu.Unlock()

		if !joined {
			finished := false
			defer func() { // also if get ends the goroutine
				if !finished {
					r.void = true
					b.finish(url, r, nil)
				}
			}()
			found := Among(known, cert, MaxChecks)
			if r.void = len(found) > 0; !r.void {
				r.certs, r.err = get(ctx)
				r.void = ctx.Err() != nil
				found = Among(r.certs, cert, MaxChecks)
			}
			finished = true
			b.finish(url, r, found)
			return found, r.err
		}
		select {
		case <-r.done:
			if !r.void {
				return Among(r.certs, cert, MaxChecks), r.err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// finish remembers what was found, and lets those go on who wait for r.
func (b *ByURL) finish(url string, r *request, found []*x509.Certificate) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(found) > 0 {
		b.found.Put(url, found)
	}
	delete(b.inFlight, url)
	close(r.done)
}
