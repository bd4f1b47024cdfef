package main

import (
	"bytes"
	"crypto/tls"
	"net/http/httptest"
	"testing"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestRun(t *testing.T) {
	var output bytes.Buffer
	require.NoError(t, run(t.Context(), &output))
	t.Log("\n" + output.String())
	require.Contains(t, output.String(), "hello client.example, your staple is good")
	require.Contains(t, output.String(), "revoked")
	require.Equal(t, 2, bytes.Count(output.Bytes(), []byte("the server refuses it: ")))
}

// The client refuses a server as the server refuses a client.
func TestClientRefusesServer(t *testing.T) {
	for name, o := range map[string]struct {
		stapleRevoked bool
		answer        stapletest.Answer
		want          string
	}{
		"that is revoked and says so":    {true, stapletest.Answer{Status: ocsp.Revoked}, "revoked"},
		"that is revoked and hides it":   {false, stapletest.Answer{Status: ocsp.Revoked}, "staple"},
		"whose responder is out of work": {false, stapletest.Answer{Error: ocsp.TryLater}, "staple"},
	} {
		t.Run(name, func(t *testing.T) {
			ca := stapletest.NewCA(stapletest.CAOptions{})
			responder := stapletest.NewResponder(ca)
			responder.Set(nil, o.answer)
			web := httptest.NewServer(responder)
			defer web.Close()
			cert := ca.Leaf(stapletest.LeafOptions{
				Names: []string{"server.example"}, Responders: []string{web.URL}, MustStaple: true})

			stapler := staple.Stapler{StapleRevoked: o.stapleRevoked}
			defer stapler.Close()
			s, err := startServer(&stapler, cert, ca.Roots())
			require.NoError(t, err)
			defer s.close()
			client := clientConfig(ca.Roots())
			client.Certificates = []tls.Certificate{ca.Leaf(stapletest.LeafOptions{})}
			_, refused, err := s.visit(t.Context(), client)
			require.ErrorContains(t, err, o.want)
			require.Error(t, refused, "the server is told")
			if o.answer.Status == ocsp.Revoked && o.stapleRevoked {
				require.ErrorIs(t, err, staple.ErrRevoked)
			}
		})
	}
}
