package staple_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/muststaple"
	"github.com/go-staple/staple/internal/name"
	"github.com/go-staple/staple/internal/scene"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// A bufferedConn does not wait for its reader, as a pipe does: both sides may send an alert at once.
type bufferedConn struct {
	net.Conn
	out chan []byte
}

func buffer(c net.Conn) bufferedConn {
	b := bufferedConn{c, make(chan []byte, 100)}
	go func() {
		defer c.Close()
		for p := range b.out {
			c.Write(p)
		}
	}()
	return b
}

func (b bufferedConn) Write(p []byte) (int, error) {
	b.out <- bytes.Clone(p)
	return len(p), nil
}

func (b bufferedConn) Close() error {
	close(b.out)
	return nil
}

// handshake connects client and server. It returns the client's view of the connection, and what each of
// them says.
func handshake(client, server *tls.Config) (state tls.ConnectionState, clientErr, serverErr error) {
	clientPipe, serverPipe := net.Pipe()
	c, s := buffer(clientPipe), buffer(serverPipe)
	done := make(chan error)
	go func() {
		defer s.Close()
		conn := tls.Server(s, server)
		_, err := conn.Write([]byte("x"))
		done <- err
	}()
	conn := tls.Client(c, client)
	clientErr = conn.Handshake()
	if clientErr == nil {
		_, clientErr = io.ReadFull(conn, make([]byte, 1)) // takes the session ticket of TLS 1.3 as well
	}
	state = conn.ConnectionState()
	c.Close()
	return state, clientErr, <-done
}

// refusal turns an alert into the error of the side that sent it.
func refusal(verify func(tls.ConnectionState) error, err *error) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		*err = verify(cs)
		return *err
	}
}

func malformedFeature() pkix.Extension {
	return pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: []byte{0x30, 3, 2, 1, 5, 0}}
}

func TestVerifyConnection(t *testing.T) {
	type options struct {
		leaf   stapletest.LeafOptions
		staple func(s scene.Scene) []byte // nil: none
	}
	answer := func(edit func(r *stapletest.Response)) func(scene.Scene) []byte {
		return func(s scene.Scene) []byte { return s.Response(edit) }
	}
	good := answer(nil)
	status := func(status int) func(scene.Scene) []byte {
		return answer(func(r *stapletest.Response) {
			r.Singles[0].Status, r.Singles[0].RevokedAt = status, time.Now().Add(-time.Hour)
		})
	}
	expired := answer(func(r *stapletest.Response) {
		r.ProducedAt = time.Now().Add(-2 * scene.Day)
		r.Singles[0].ThisUpdate = r.ProducedAt
		r.Singles[0].NextUpdate = time.Now().Add(-scene.Day)
	})
	forged := func(s scene.Scene) []byte { return scene.New().Response(nil) }
	must := stapletest.LeafOptions{MustStaple: true}
	broken := stapletest.LeafOptions{ExtraExtensions: []pkix.Extension{malformedFeature()}}
	for _, test := range []struct {
		name string
		options
		want string // of the error; empty: it passes
		is   error
	}{
		{"a good staple passes", options{staple: good}, "", nil},
		{"no staple passes", options{}, "", nil},
		{"a good staple for Must-Staple passes", options{must, good}, "", nil},
		{"Must-Staple without a staple fails", options{leaf: must}, "Must-Staple", nil},
		{"a malformed TLS feature extension without a staple fails", options{leaf: broken}, "TLS feature extension is malformed", nil},
		{"a malformed TLS feature extension with a staple passes", options{broken, good}, "", nil},
		{"revoked fails", options{staple: status(ocsp.Revoked)}, "revoked at", staple.ErrRevoked},
		{"unknown fails", options{staple: status(ocsp.Unknown)}, "does not know the certificate", nil},
		{"expired fails", options{staple: expired}, "nextUpdate was", nil},
		{"forged fails", options{staple: forged}, "refused", nil},
		{"garbage fails", options{staple: func(scene.Scene) []byte { return []byte("garbage") }}, "not one OCSPResponse", nil},
		{"an error status fails", options{staple: func(scene.Scene) []byte { return ocsp.TryLaterErrorResponse }}, "try later", nil},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			check := func(t *testing.T, who string, err error) {
				if test.want == "" {
					require.NoError(t, err, who)
					return
				}
				require.ErrorContains(t, err, test.want, who)
				if test.is != nil {
					require.ErrorIs(t, err, test.is, who)
				}
			}
			t.Run(tls.VersionName(version)+"/"+test.name, func(t *testing.T) {
				ca := stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
				cert := ca.Leaf(test.leaf)
				if test.staple != nil {
					cert.OCSPStaple = test.staple(scene.Scene{CA: ca, Leaf: cert.Leaf})
				}
				var err error
				v := new(staple.ResponseVerifier)

				t.Run("server", func(t *testing.T) {
					handshake(
						&tls.Config{RootCAs: ca.Roots(), ServerName: "localhost", VerifyConnection: refusal(v.VerifyConnection, &err)},
						&tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: version})
					check(t, "the server's certificate", err)
				})
				t.Run("client", func(t *testing.T) {
					err = errors.New("not called")
					handshake(
						&tls.Config{RootCAs: ca.Roots(), ServerName: "localhost", Certificates: []tls.Certificate{cert}},
						&tls.Config{
							Certificates: []tls.Certificate{ca.Leaf(stapletest.LeafOptions{})}, MaxVersion: version,
							ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Roots(),
							VerifyConnection: refusal(v.VerifyConnection, &err),
						})
					if version == tls.VersionTLS13 {
						check(t, "the client's certificate", err)
					} else if muststaple.Is(cert.Leaf) {
						require.ErrorContains(t, err, "Must-Staple", "TLS 1.2 has no room for the staple")
					} else if len(test.leaf.ExtraExtensions) == 0 {
						require.NoError(t, err, "TLS 1.2 has no room for the staple")
					}
				})
			})
		}
	}
}

func TestVerifyConnectionWithoutACertificate(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	v := new(staple.ResponseVerifier)
	require.NoError(t, v.VerifyConnection(tls.ConnectionState{}))
	_, clientErr, serverErr := handshake(
		&tls.Config{RootCAs: ca.Roots(), ServerName: "localhost"},
		&tls.Config{
			Certificates: []tls.Certificate{ca.Leaf(stapletest.LeafOptions{})}, ClientAuth: tls.VerifyClientCertIfGiven,
			ClientCAs: ca.Roots(), VerifyConnection: v.VerifyConnection,
		})
	require.NoError(t, errors.Join(clientErr, serverErr))
}

func TestVerifyConnectionWithoutAVerifiedChain(t *testing.T) {
	s := scene.New()
	cert := s.CA.Leaf(stapletest.LeafOptions{})
	s.Leaf = cert.Leaf
	cert.OCSPStaple = s.Response(nil)
	_, clientErr, _ := handshake(
		&tls.Config{InsecureSkipVerify: true, VerifyConnection: new(staple.ResponseVerifier).VerifyConnection},
		&tls.Config{Certificates: []tls.Certificate{cert}})
	require.ErrorContains(t, clientErr, "no verified chain")
}

func TestVerifyConnectionOfResumedSessions(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, delegated := range []bool{false, true} {
			name := tls.VersionName(version) + map[bool]string{false: ", direct", true: ", delegated"}[delegated]
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ca := stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
					cert := ca.Leaf(stapletest.LeafOptions{MustStaple: true})
					s := scene.Scene{CA: ca, Leaf: cert.Leaf, Now: time.Now()}
					cert.OCSPStaple = s.Response(func(r *stapletest.Response) {
						r.Singles[0].NextUpdate = s.Now.Add(time.Hour)
						if delegated {
							r.Signer = ca.Delegate(stapletest.DelegateOptions{NotAfter: s.Now.Add(time.Minute)})
						}
					})
					v := new(staple.ResponseVerifier)
					var clientErr, serverErr error
					client := &tls.Config{
						RootCAs: ca.Roots(), ServerName: "localhost", Certificates: []tls.Certificate{cert},
						ClientSessionCache: tls.NewLRUClientSessionCache(1),
						VerifyConnection:   refusal(v.VerifyConnection, &clientErr),
					}
					server := &tls.Config{
						Certificates: []tls.Certificate{cert}, MaxVersion: version,
						VerifyConnection: refusal(v.VerifyConnection, &serverErr),
					}
					if version == tls.VersionTLS13 {
						server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, ca.Roots()
					}
					connect := func(resumed bool) {
						t.Helper()
						clientErr, serverErr = errors.New("not called"), errors.New("not called")
						state, _, _ := handshake(client, server)
						require.Equal(t, resumed, state.DidResume)
					}
					connect(false)
					require.NoError(t, errors.Join(clientErr, serverErr))

					time.Sleep(3 * scene.Day) // long after the staple's end, and its signer's
					connect(true)
					require.NoError(t, clientErr)
					require.NoError(t, serverErr)

					// A new session needs a new staple.
					client.ClientSessionCache = nil
					connect(false)
					require.ErrorContains(t, clientErr, "and the clock says")
				})
			})
		}
	}
}

// All but the end is enforced when a session is resumed.
func TestVerifyConnectionOfResumedSessionsRefuses(t *testing.T) {
	s := scene.New()
	for name, test := range map[string]struct {
		der  []byte
		want string
	}{
		"revoked": {s.Response(func(r *stapletest.Response) {
			r.Singles[0].Status, r.Singles[0].RevokedAt = ocsp.Revoked, s.Now
		}), "revoked"},
		"forged":          {scene.New().Response(nil), "refused"},
		"from the future": {s.Response(func(r *stapletest.Response) { r.Singles[0].ThisUpdate = s.Now.Add(scene.Day) }), "thisUpdate"},
		"an unauthorized delegate": {s.Response(func(r *stapletest.Response) {
			r.Signer = s.CA.Delegate(stapletest.DelegateOptions{NoEKU: true, NotAfter: s.Now.Add(-time.Minute)})
		}), "OCSPSigning"},
		"none": {nil, "Must-Staple"},
	} {
		t.Run(name, func(t *testing.T) {
			leaf := s.Leaf
			if test.der == nil {
				leaf = s.CA.Leaf(stapletest.LeafOptions{MustStaple: true}).Leaf
			}
			err := new(staple.ResponseVerifier).VerifyConnection(tls.ConnectionState{
				DidResume:        true,
				PeerCertificates: []*x509.Certificate{leaf},
				VerifiedChains:   [][]*x509.Certificate{{leaf, s.CA.Issuer, s.CA.Root}},
				OCSPResponse:     test.der,
			})
			require.ErrorContains(t, err, test.want)
		})
	}
}

func TestVerifyConnectionWithSeveralChains(t *testing.T) {
	s := scene.New()
	other := scene.New().CA
	chain := func(certs ...*x509.Certificate) []*x509.Certificate {
		return append([]*x509.Certificate{s.Leaf}, certs...)
	}
	revoked := s.Response(func(r *stapletest.Response) {
		r.Singles[0].Status, r.Singles[0].RevokedAt = ocsp.Revoked, s.Now
	})
	for _, test := range []struct {
		name   string
		staple []byte
		chains [][]*x509.Certificate
		want   string
	}{
		{"one will do", s.Response(nil), [][]*x509.Certificate{chain(other.Issuer, other.Root), chain(s.CA.Issuer, s.CA.Root)}, ""},
		{"one will do, in any order", s.Response(nil), [][]*x509.Certificate{chain(s.CA.Issuer), chain(other.Issuer)}, ""},
		{"none will not", s.Response(nil), [][]*x509.Certificate{chain(other.Issuer), chain(other.Root)}, "another issuer's"},
		{"revoked for one is revoked", revoked, [][]*x509.Certificate{chain(other.Issuer), chain(s.CA.Issuer)}, "revoked"},
		{"the leaf is a trust anchor", s.Response(nil), [][]*x509.Certificate{chain()}, ""},
		{"the leaf is a trust anchor in one of them", revoked, [][]*x509.Certificate{chain(), chain(s.CA.Issuer)}, "revoked"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := new(staple.ResponseVerifier).VerifyConnection(tls.ConnectionState{
				PeerCertificates: []*x509.Certificate{s.Leaf}, VerifiedChains: test.chains, OCSPResponse: test.staple,
			})
			if test.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, test.want)
			require.ErrorContains(t, err, name.Of(s.Leaf))
		})
	}

	// A leaf that is trusted itself, as crypto/tls presents it.
	cert := s.CA.Leaf(stapletest.LeafOptions{})
	cert.OCSPStaple = scene.Scene{CA: s.CA, Leaf: cert.Leaf}.Response(nil)
	pool := x509.NewCertPool()
	pool.AddCert(cert.Leaf)
	state, clientErr, _ := handshake(
		&tls.Config{RootCAs: pool, ServerName: "localhost", VerifyConnection: new(staple.ResponseVerifier).VerifyConnection},
		&tls.Config{Certificates: []tls.Certificate{cert}})
	require.NoError(t, clientErr)
	require.Len(t, state.VerifiedChains[0], 1)
}

// TestFIPS140OnlyMode runs itself in the mode that forbids SHA-1, on which CertIDs and
// responderIDs go on to rest.
func TestFIPS140OnlyMode(t *testing.T) {
	const mode = "fips140=only"
	if os.Getenv("GODEBUG") != mode {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFIPS140OnlyMode$")
		cmd.Env = append(os.Environ(), "GODEBUG="+mode)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return
	}
	ca := stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
	s := staple.Stapler{Fetcher: &staple.HTTPFetcher{Client: stapletest.NewResponder(ca).Client()}}
	defer s.Close()
	c, err := s.Add(ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.example"}}))
	require.NoError(t, err)
	require.NoError(t, c.Wait(t.Context()))
	cert, err := c.GetCertificate(nil)
	require.NoError(t, err)
	require.Same(t, cert, c.TLS())
	require.True(t, c.Status().Stapled)
	r, _, err := new(staple.ResponseVerifier).Verify(cert.OCSPStaple, cert.Leaf, ca.Issuer, time.Now())
	require.NoError(t, err)
	require.Equal(t, ocsp.Good, r.Status)
}
