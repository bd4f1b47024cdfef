package whole

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/mldsa"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// countedConn counts what is written.
type countedConn struct {
	net.Conn
	n *atomic.Int64
}

func (c countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.n.Add(int64(n))
	return n, err
}

// handshakeBytes returns how many bytes a whole handshake takes in either direction, and what the client saw.
func handshakeBytes(t *testing.T, server, client *tls.Config) (toClient, toServer int64, state tls.ConnectionState, err error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	var fromServer, fromClient atomic.Int64
	s := tls.Server(countedConn{a, &fromServer}, server)
	serverErr := make(chan error, 1)
	go func() {
		err := s.HandshakeContext(t.Context())
		a.Close()
		serverErr <- err
	}()
	c := tls.Client(countedConn{b, &fromClient}, client)
	err = c.HandshakeContext(t.Context())
	b.Close()
	if e := <-serverErr; err == nil && e != nil && !errors.Is(e, net.ErrClosed) {
		err = e
	}
	return fromServer.Load(), fromClient.Load(), c.ConnectionState(), err
}

// TestAHandshakeWithEachKindOfKey shows whole handshakes, root to staple with one kind of key, and what they weigh. Those
// with ML-DSA it takes Go 1.27 to show.
func TestAHandshakeWithEachKindOfKey(t *testing.T) {
	kinds := []stapletest.KeyType{stapletest.ECDSAP256, stapletest.RSA2048, stapletest.Ed25519}
	if mldsa.Supported {
		kinds = append(kinds, stapletest.MLDSA44, stapletest.MLDSA65, stapletest.MLDSA87)
	}
	lines := []string{"", "key        staple as it came  trimmed  server sends  client sends"}
	for _, kind := range kinds {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.Of(t, stapletest.NewCA(stapletest.CAOptions{KeyType: kind, Intermediate: true}))
				cert := w.Leaf(world.MustStaple, func(o *stapletest.LeafOptions) { o.KeyType = kind })
				delegate := w.CA.Delegate(stapletest.DelegateOptions{KeyType: kind})
				r := stapletest.NewResponse(w.CA, cert.Leaf)
				r.Signer, r.Certificates = delegate, []*x509.Certificate{delegate.Certificate, w.CA.Issuer, w.CA.Root}
				came := r.DER()
				w.Responder.Set(nil, stapletest.Answer{Replay: came})
				s := w.Stapler()
				stapled := w.Add(s, cert).TLS().OCSPStaple
				require.Less(t, len(stapled), len(came))

				client := w.Client("www.example.com")
				v := new(staple.ResponseVerifier)
				client.VerifyConnection = v.VerifyConnection
				toClient, toServer, state, err := handshakeBytes(t, s.TLSConfig(nil), client)
				require.NoError(t, err)
				require.Equal(t, stapled, state.OCSPResponse)
				require.Greater(t, toClient, int64(len(stapled)+len(cert.Certificate[0])+len(cert.Certificate[1])))
				lines = append(lines, fmt.Sprintf("%-10v %17d %8d %13d %13d", kind, len(came), len(stapled), toClient, toServer))

				_, end, err := v.Verify(stapled, cert.Leaf, w.CA.Issuer, time.Now())
				require.NoError(t, err)
				require.True(t, end.After(time.Now()))

				// Nobody else's signature does.
				other := stapletest.NewCA(stapletest.CAOptions{KeyType: kind, Intermediate: true})
				for name, signer := range map[string]*stapletest.Signer{
					"another CA": other.Signer(), "its delegate": other.Delegate(stapletest.DelegateOptions{KeyType: kind}),
				} {
					r.Signer, r.Certificates = signer, nil
					forged := cert
					forged.OCSPStaple = r.DER()
					_, _, _, err := handshakeBytes(t, &tls.Config{Certificates: []tls.Certificate{forged}}, client)
					var refusal *staple.VerifyError
					require.ErrorAs(t, err, &refusal, name)
				}
				revoked := cert
				r.Signer, r.Singles[0].Status, r.Singles[0].RevokedAt = delegate, ocsp.Revoked, time.Now()
				revoked.OCSPStaple = r.DER()
				_, _, _, err = handshakeBytes(t, &tls.Config{Certificates: []tls.Certificate{revoked}}, client)
				require.ErrorIs(t, err, staple.ErrRevoked)
			})
		})
	}
	t.Log(strings.Join(lines, "\n"))
}
