// Package world is what tests of package staple have in common: a CA with a responder that is reached without
// a socket, Staplers that ask it, and what to require of a certificate.
//
//	w := world.New(t)
//	c := w.Add(w.Stapler(), w.Leaf())
//	world.RequireStaple(t, c, ocsp.Good)
//
// Everything goes through the public API, and works in a synctest bubble and outside of one. The package has no
// tests of its own, and nothing for tests of one part alone: what one file needs stands in that file.
package world

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/wall"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

// Day is 24 hours, in which tests count.
const Day = 24 * time.Hour

// ResponderURL is the responder that leaves name unless they are told otherwise.
const ResponderURL = "http://ocsp.example"

// CA returns the CA of every World. It is made once: keys take time, and synctest bubbles begin all at the same
// moment.
var CA = sync.OnceValue(func() *stapletest.CA {
	return stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
})

// A World is a CA with a responder, and what is needed to make Staplers that ask it.
type World struct {
	T         *testing.T
	CA        *stapletest.CA
	Responder *stapletest.Responder
	Log       *Journal // of the events of all its Staplers
}

// New returns a World whose responder answers "good" to everything.
func New(t *testing.T) *World { return Of(t, CA()) }

// Of returns a World of another CA.
func Of(t *testing.T, ca *stapletest.CA) *World {
	return &World{T: t, CA: ca, Responder: stapletest.NewResponder(ca), Log: new(Journal)}
}

// Stapler returns a Stapler of this world that is closed at the end of the test.
func (w *World) Stapler(edit ...func(*staple.Stapler)) *staple.Stapler {
	s := &staple.Stapler{
		Fetcher: &staple.HTTPFetcher{Client: w.Responder.Client()},
		Logger:  slog.New(slog.DiscardHandler),
		OnEvent: w.Log.Note,
	}
	for _, f := range edit {
		f(s)
	}
	w.T.Cleanup(func() { s.Close() })
	return s
}

// Leaf returns a certificate for www.example.com, with its chain.
func (w *World) Leaf(edit ...func(*stapletest.LeafOptions)) tls.Certificate {
	o := stapletest.LeafOptions{Names: []string{"www.example.com"}, Responders: []string{ResponderURL}}
	for _, f := range edit {
		f(&o)
	}
	return w.CA.Leaf(o)
}

// Many returns n certificates with one key, which live for years.
func (w *World) Many(n int) (certs []tls.Certificate) {
	key := w.Leaf().PrivateKey
	for i := range n {
		certs = append(certs, w.Leaf(Names(fmt.Sprint(i, ".example.com")), SameKey(key), LongLived))
	}
	return certs
}

// MustStaple makes a leaf Must-Staple.
func MustStaple(o *stapletest.LeafOptions) { o.MustStaple = true }

// Names gives a leaf its names.
func Names(names ...string) func(*stapletest.LeafOptions) {
	return func(o *stapletest.LeafOptions) { o.Names = names }
}

// Responders gives a leaf the URLs of its responders.
func Responders(urls ...string) func(*stapletest.LeafOptions) {
	return func(o *stapletest.LeafOptions) { o.Responders = urls }
}

// SameKey gives a leaf a key that there is already, which saves time.
func SameKey(key any) func(*stapletest.LeafOptions) {
	return func(o *stapletest.LeafOptions) { o.Key = key.(crypto.Signer) }
}

// LongLived makes a leaf valid for a thousand days, past and future.
func LongLived(o *stapletest.LeafOptions) {
	o.NotBefore, o.NotAfter = time.Now().Add(-1000*Day), time.Now().Add(1000*Day)
}

// FreshResponse returns a good response about leaf, whatever the world's responder says.
func (w *World) FreshResponse(leaf *x509.Certificate) []byte {
	return stapletest.NewResponder(w.CA).Response(leaf)
}

// Add adds cert and waits until it is stapled.
func (w *World) Add(s *staple.Stapler, cert tls.Certificate) *staple.Certificate {
	c, err := s.Add(cert)
	require.NoError(w.T, err)
	require.NoError(w.T, c.Wait(Soon(w.T)))
	return c
}

// Client returns the configuration of a client that trusts the CA and asks for name.
func (w *World) Client(name string) *tls.Config {
	return &tls.Config{RootCAs: w.CA.Roots(), ServerName: name}
}

// Soon returns a context that ends after twenty seconds of a synctest bubble, and after ten minutes of real time, in
// which nothing takes twenty seconds but on a machine that is busy with something else.
func Soon(t *testing.T) context.Context {
	soon := 10 * time.Minute
	if time.Now().Year() < 2020 { // a bubble's clock starts in 2000
		soon = 20 * time.Second
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	t.Cleanup(cancel)
	return ctx
}

// SetClock moves the wall clock away from the bubble's, until the test ends. It returns what sets by how much.
func SetClock(t *testing.T) func(offset time.Duration) {
	var offset atomic.Int64
	t.Cleanup(wall.Set(func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }))
	return func(d time.Duration) { offset.Store(int64(d)) }
}

// CacheKey returns the key under which a Cache has the response about leaf.
func CacheKey(leaf *x509.Certificate) string {
	sum := sha256.Sum256(leaf.Raw)
	return hex.EncodeToString(sum[:])
}

// NoIssuers is a Fetcher that cannot get at issuers for the time being.
type NoIssuers struct{ staple.Fetcher }

// FetchIssuer fails, and asks for a pause of an hour.
func (NoIssuers) FetchIssuer(context.Context, *x509.Certificate) ([]*x509.Certificate, error) {
	return nil, &staple.HTTPError{URL: "http://ca.example/issuer.der", StatusCode: 503, RetryAfter: time.Hour}
}
