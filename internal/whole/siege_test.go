package whole

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/stretchr/testify/require"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestWhatListensAtAnotherPortHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		s := w.Stapler(func(s *staple.Stapler) {
			s.Fetcher = &staple.HTTPFetcher{Client: &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
				if r.URL.Scheme == "https" {
					return nil, errors.New("connection refused")
				}
				return w.Responder.RoundTrip(r)
			})}}
		})
		key := w.Leaf().PrivateKey
		for i := range 200 {
			_, err := s.Add(w.Leaf(world.Names(fmt.Sprint(i, ".example.net")), world.SameKey(key), world.Responders("https://ocsp.example")))
			require.NoError(t, err)
		}
		time.Sleep(time.Minute)
		began := time.Now()
		w.Add(s, w.Leaf())
		require.Less(t, time.Since(began), time.Second)
	})
}
