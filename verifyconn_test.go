package staple

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

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
	return pkix.Extension{Id: oidTLSFeature, Value: []byte{0x30, 3, 2, 1, 5, 0}}
}

func TestVerifyConnection(t *testing.T) {
	type options struct {
		leaf   stapletest.LeafOptions
		staple func(s scene) []byte // nil: none
	}
	answer := func(edit func(r *stapletest.Response)) func(scene) []byte {
		return func(s scene) []byte { return s.response(edit) }
	}
	good := answer(nil)
	status := func(status int) func(scene) []byte {
		return answer(func(r *stapletest.Response) {
			r.Singles[0].Status, r.Singles[0].RevokedAt = status, time.Now().Add(-time.Hour)
		})
	}
	expired := answer(func(r *stapletest.Response) {
		r.ProducedAt = time.Now().Add(-2 * day)
		r.Singles[0].ThisUpdate = r.ProducedAt
		r.Singles[0].NextUpdate = time.Now().Add(-day)
	})
	forged := func(s scene) []byte { return newScene().response(nil) }
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
		{"revoked fails", options{staple: status(ocsp.Revoked)}, "revoked at", ErrRevoked},
		{"unknown fails", options{staple: status(ocsp.Unknown)}, "does not know the certificate", nil},
		{"expired fails", options{staple: expired}, "nextUpdate was", nil},
		{"forged fails", options{staple: forged}, "refused", nil},
		{"garbage fails", options{staple: func(scene) []byte { return []byte("garbage") }}, "not one OCSPResponse", nil},
		{"an error status fails", options{staple: func(scene) []byte { return ocsp.TryLaterErrorResponse }}, "try later", nil},
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
					cert.OCSPStaple = test.staple(scene{ca: ca, leaf: cert.Leaf})
				}
				var err error
				v := new(ResponseVerifier)

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
					} else if mustStaple(cert.Leaf) {
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
	v := new(ResponseVerifier)
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
	s := newScene()
	cert := s.ca.Leaf(stapletest.LeafOptions{})
	s.leaf = cert.Leaf
	cert.OCSPStaple = s.response(nil)
	_, clientErr, _ := handshake(
		&tls.Config{InsecureSkipVerify: true, VerifyConnection: new(ResponseVerifier).VerifyConnection},
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
					s := scene{ca: ca, leaf: cert.Leaf, now: time.Now()}
					cert.OCSPStaple = s.response(func(r *stapletest.Response) {
						r.Singles[0].NextUpdate = s.now.Add(time.Hour)
						if delegated {
							r.Signer = ca.Delegate(stapletest.DelegateOptions{NotAfter: s.now.Add(time.Minute)})
						}
					})
					v := new(ResponseVerifier)
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

					time.Sleep(3 * day) // long after the staple's end, and its signer's
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
	s := newScene()
	for name, test := range map[string]struct {
		der  []byte
		want string
	}{
		"revoked": {s.response(func(r *stapletest.Response) {
			r.Singles[0].Status, r.Singles[0].RevokedAt = ocsp.Revoked, s.now
		}), "revoked"},
		"forged":          {newScene().response(nil), "refused"},
		"from the future": {s.response(func(r *stapletest.Response) { r.ProducedAt = s.now.Add(day) }), "producedAt"},
		"an unauthorized delegate": {s.response(func(r *stapletest.Response) {
			r.Signer = s.ca.Delegate(stapletest.DelegateOptions{NoEKU: true, NotAfter: s.now.Add(-time.Minute)})
		}), "OCSPSigning"},
		"none": {nil, "Must-Staple"},
	} {
		t.Run(name, func(t *testing.T) {
			leaf := s.leaf
			if test.der == nil {
				leaf = s.ca.Leaf(stapletest.LeafOptions{MustStaple: true}).Leaf
			}
			err := new(ResponseVerifier).VerifyConnection(tls.ConnectionState{
				DidResume:        true,
				PeerCertificates: []*x509.Certificate{leaf},
				VerifiedChains:   [][]*x509.Certificate{{leaf, s.ca.Issuer, s.ca.Root}},
				OCSPResponse:     test.der,
			})
			require.ErrorContains(t, err, test.want)
		})
	}
}

func TestVerifyConnectionWithSeveralChains(t *testing.T) {
	s := newScene()
	other := newScene().ca
	chain := func(certs ...*x509.Certificate) []*x509.Certificate {
		return append([]*x509.Certificate{s.leaf}, certs...)
	}
	revoked := s.response(func(r *stapletest.Response) {
		r.Singles[0].Status, r.Singles[0].RevokedAt = ocsp.Revoked, s.now
	})
	for _, test := range []struct {
		name   string
		staple []byte
		chains [][]*x509.Certificate
		want   string
	}{
		{"one will do", s.response(nil), [][]*x509.Certificate{chain(other.Issuer, other.Root), chain(s.ca.Issuer, s.ca.Root)}, ""},
		{"one will do, in any order", s.response(nil), [][]*x509.Certificate{chain(s.ca.Issuer), chain(other.Issuer)}, ""},
		{"none will not", s.response(nil), [][]*x509.Certificate{chain(other.Issuer), chain(other.Root)}, "another issuer's"},
		{"revoked for one is revoked", revoked, [][]*x509.Certificate{chain(other.Issuer), chain(s.ca.Issuer)}, "revoked"},
		{"the leaf is a trust anchor", s.response(nil), [][]*x509.Certificate{chain()}, ""},
		{"the leaf is a trust anchor in one of them", revoked, [][]*x509.Certificate{chain(), chain(s.ca.Issuer)}, "revoked"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := new(ResponseVerifier).VerifyConnection(tls.ConnectionState{
				PeerCertificates: []*x509.Certificate{s.leaf}, VerifiedChains: test.chains, OCSPResponse: test.staple,
			})
			if test.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, test.want)
			require.ErrorContains(t, err, describe(s.leaf))
		})
	}

	// A leaf that is trusted itself, as crypto/tls presents it.
	cert := s.ca.Leaf(stapletest.LeafOptions{})
	cert.OCSPStaple = scene{ca: s.ca, leaf: cert.Leaf}.response(nil)
	pool := x509.NewCertPool()
	pool.AddCert(cert.Leaf)
	state, clientErr, _ := handshake(
		&tls.Config{RootCAs: pool, ServerName: "localhost", VerifyConnection: new(ResponseVerifier).VerifyConnection},
		&tls.Config{Certificates: []tls.Certificate{cert}})
	require.NoError(t, clientErr)
	require.Len(t, state.VerifiedChains[0], 1)
}

func TestMustStaple(t *testing.T) {
	for _, test := range []struct {
		name      string
		value     []byte
		must, bad bool
	}{
		{"status_request", []byte{0x30, 3, 2, 1, 5}, true, false},
		{"status_request and status_request_v2", []byte{0x30, 6, 2, 1, 5, 2, 1, 17}, true, false},
		{"status_request last", []byte{0x30, 6, 2, 1, 17, 2, 1, 5}, true, false},
		{"status_request_v2 alone", []byte{0x30, 3, 2, 1, 17}, false, false},
		{"a large number", []byte{0x30, 4, 2, 2, 5, 5}, false, false},
		{"none", []byte{0x30, 0}, false, false},
		{"empty", []byte{}, false, true},
		{"trailing bytes", []byte{0x30, 3, 2, 1, 5, 0}, false, true},
		{"trailing bytes in the SEQUENCE", []byte{0x30, 4, 2, 1, 5, 0}, false, true},
		{"cut off", []byte{0x30, 3, 2, 1}, false, true},
		{"no SEQUENCE", []byte{2, 1, 5}, false, true},
		{"not minimal", []byte{0x30, 4, 2, 2, 0, 5}, false, true},
		{"another type", []byte{0x30, 3, 10, 1, 5}, false, true},
		{"negative", []byte{0x30, 6, 2, 1, 5, 2, 1, 0xff}, false, true},
		{"too large", []byte{0x30, 6, 2, 4, 1, 0, 0, 5}, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			ca := stapletest.NewCA(stapletest.CAOptions{})
			leaf := ca.Leaf(stapletest.LeafOptions{
				ExtraExtensions: []pkix.Extension{{Id: oidTLSFeature, Value: test.value}},
			}).Leaf
			require.Equal(t, test.must, mustStaple(leaf))
			_, err := tlsFeatures(leaf)
			require.Equal(t, test.bad, err != nil, "%v", err)
		})
	}
	ca := stapletest.NewCA(stapletest.CAOptions{})
	require.True(t, mustStaple(ca.Leaf(stapletest.LeafOptions{MustStaple: true}).Leaf))
	require.False(t, mustStaple(ca.Leaf(stapletest.LeafOptions{}).Leaf))
	require.False(t, mustStaple(new(x509.Certificate)))
}
