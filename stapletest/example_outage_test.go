package stapletest_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
)

// testOutage is the body of a test, TestOutage, say. In the bubble of synctest a week takes no time, and nothing needs a
// network, since the Responder is an http.RoundTripper.
func testOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := stapletest.NewCA(stapletest.CAOptions{})
		responder := stapletest.NewResponder(ca) // its responses are valid for a week
		stapler := staple.Stapler{Fetcher: &staple.HTTPFetcher{Client: responder.Client()}}
		defer stapler.Close() // or the bubble does not end
		cert, err := stapler.Add(ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}}))
		require.NoError(t, err)
		require.NoError(t, cert.Wait(t.Context()))

		responder.Set(nil, stapletest.Answer{HTTPStatus: http.StatusServiceUnavailable})
		time.Sleep(6 * 24 * time.Hour)
		require.NotEmpty(t, cert.TLS().OCSPStaple, "it lasts for a week")
		require.Equal(t, staple.StateExpiring, cert.Status().State)
		time.Sleep(24 * time.Hour)
		require.Empty(t, cert.TLS().OCSPStaple)

		responder.Reset(nil)
		time.Sleep(2 * time.Hour) // it is asked once an hour by now
		require.NotEmpty(t, cert.TLS().OCSPStaple, "asked again")
	})
}

// A week of an outage, in a test of milliseconds.
func Example_outage() {
	var t *testing.T // from go test
	testOutage(t)
}
