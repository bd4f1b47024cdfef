package staple

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// connect makes a connection over a pipe and returns what the client, or the
// server, saw.
func connect(t *testing.T, server, client *tls.Config) (clientState, serverState tls.ConnectionState, err error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	s := tls.Server(a, server)
	serverErr := make(chan error, 1)
	go func() {
		err := s.HandshakeContext(t.Context())
		if err != nil {
			a.Close()
		}
		serverErr <- err
	}()
	c := tls.Client(b, client)
	err = c.HandshakeContext(t.Context())
	if err != nil {
		b.Close()
	}
	if e := <-serverErr; e != nil {
		err = errors.Join(err, e)
	}
	return c.ConnectionState(), s.ConnectionState(), err
}

func (w *world) client(name string) *tls.Config {
	return &tls.Config{RootCAs: w.ca.Roots(), ServerName: name}
}

func names(names ...string) func(*stapletest.LeafOptions) {
	return func(o *stapletest.LeafOptions) { o.Names = names }
}

func TestTLSConfigStaplesAndChoosesAsBaseDoes(t *testing.T) {
	w := newWorld(t)
	first := w.leaf(names("first.example.com", "*.wild.example.com"))
	second := w.leaf(names("second.example.com", "deep.wild.example.com"))
	forRSA := w.leaf(names("second.example.com"), func(o *stapletest.LeafOptions) { o.KeyType = stapletest.RSA2048 })
	all := []tls.Certificate{first, second, forRSA}
	byCallback := func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		switch hello.ServerName {
		case "first.example.com":
			return &second, nil
		case "refused.example.com":
			return nil, errors.New("refused")
		}
		return nil, nil
	}
	configs := map[string]*tls.Config{
		"one certificate":      {Certificates: all[:1]},
		"several certificates": {Certificates: all},
		"a callback":           {GetCertificate: byCallback},
		"both":                 {Certificates: all, GetCertificate: byCallback},
		"NameToCertificate":    {Certificates: all, NameToCertificate: map[string]*tls.Certificate{"x": &all[1], "*.y": &forRSA, "first.example.com": &all[2]}},
		"GetConfigForClient": {Certificates: all, GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			switch hello.ServerName {
			case "first.example.com":
				return &tls.Config{Certificates: all[1:]}, nil
			case "second.example.com":
				return &tls.Config{GetCertificate: byCallback}, nil
			case "refused.example.com":
				return nil, errors.New("refused")
			}
			return nil, nil
		}},
		"nothing": {GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }},
	}
	clients := map[string]func(*tls.Config){
		"TLS 1.3": func(*tls.Config) {},
		"TLS 1.2": func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 },
		"TLS 1.2, RSA only": func(c *tls.Config) {
			c.MaxVersion = tls.VersionTLS12
			c.CipherSuites = []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
		},
	}
	for name, base := range configs {
		s := w.stapler()
		wrapped := s.TLSConfig(base)
		require.Nil(t, wrapped.Certificates)
		for _, round := range []string{"at first", "later"} { // callbacks' certificates are known the second time
			for clientName, edit := range clients {
				for _, sni := range []string{"", "first.example.com", "FIRST.example.com", "second.example.com", "a.wild.example.com", "deep.wild.example.com", "x", "a.y", "refused.example.com", "none.example"} {
					client := &tls.Config{ServerName: sni, InsecureSkipVerify: true}
					edit(client)
					want, _, wantErr := connect(t, base, client)
					got, _, gotErr := connect(t, wrapped, client)
					require.Equal(t, wantErr == nil, gotErr == nil, "%s %s %s %q: %v, %v", name, round, clientName, sni, wantErr, gotErr)
					if wantErr != nil {
						require.Equal(t, wantErr.Error(), gotErr.Error())
						continue
					}
					require.Equal(t, want.PeerCertificates, got.PeerCertificates, "%s %s %s %q", name, round, clientName, sni)
					require.Equal(t, want.Version, got.Version)
					require.Equal(t, want.CipherSuite, got.CipherSuite)
					if round == "later" {
						require.NotEmpty(t, got.OCSPResponse, "%s %s %q", name, clientName, sni)
					}
				}
			}
			require.NoError(t, s.Wait(soon(t)))
		}
	}
}

func TestTLSConfigOfNothingServesWhatWasAdded(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	config := s.TLSConfig(nil)
	_, _, err := connect(t, config, w.client("a.example.com"))
	_, _, want := connect(t, &tls.Config{}, w.client("a.example.com"))
	require.EqualError(t, err, want.Error())

	a, b := w.leaf(names("a.example.com")), w.leaf(names("b.example.com"))
	w.add(s, a)
	second := w.add(s, b)
	for sni, want := range map[string]tls.Certificate{"a.example.com": a, "b.example.com": b, "c.example.com": a} {
		client := w.client(sni)
		client.InsecureSkipVerify = true
		got, _, err := connect(t, config, client)
		require.NoError(t, err)
		require.Equal(t, want.Leaf.Raw, got.PeerCertificates[0].Raw)
		require.NotEmpty(t, got.OCSPResponse)
	}
	second.Remove()
	_, _, err = connect(t, config, w.client("b.example.com"))
	require.ErrorContains(t, err, "not b.example.com")
}

func TestTLSConfigTwiceStaplesOnce(t *testing.T) {
	for _, callback := range []bool{false, true} {
		w := newWorld(t)
		s := w.stapler()
		cert := w.leaf()
		base := &tls.Config{Certificates: []tls.Certificate{cert}}
		if callback {
			base = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }}
		}
		config := s.TLSConfig(s.TLSConfig(base))
		defer runtime.KeepAlive(config)
		for range 2 {
			_, _, err := connect(t, config, w.client("www.example.com"))
			require.NoError(t, err)
			require.NoError(t, s.Wait(soon(t)))
		}
		got, _, err := connect(t, config, w.client("www.example.com"))
		require.NoError(t, err)
		require.NotEmpty(t, got.OCSPResponse)
		require.Len(t, w.responder.Requests(nil), 1)
	}
}

func TestClientCertificatesAreStapled(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	cert := w.leaf()
	for name, base := range map[string]*tls.Config{
		"Certificates": {Certificates: []tls.Certificate{cert}},
		"GetClientCertificate": {GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &cert, nil
		}},
	} {
		base.RootCAs, base.ServerName = w.ca.Roots(), "www.example.com"
		wrapped := s.TLSConfig(base)
		_ = s.Wait(soon(t))
		server := &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.ca.Roots()}
		for range 2 {
			_, _, err := connect(t, server, wrapped)
			require.NoError(t, err)
			require.NoError(t, s.Wait(soon(t)))
		}
		_, got, err := connect(t, server, wrapped)
		require.NoError(t, err)
		require.NotEmpty(t, got.OCSPResponse, name)

		// A client without a suitable certificate sends none, as before.
		server.ClientAuth, server.ClientCAs = tls.RequestClientCert, x509.NewCertPool()
		other := stapletest.NewCA(stapletest.CAOptions{Name: "another"})
		server.ClientCAs.AddCert(other.Root)
		_, got, err = connect(t, server, wrapped)
		_, want, wantErr := connect(t, server, base)
		require.Equal(t, wantErr == nil, err == nil)
		require.Equal(t, want.PeerCertificates, got.PeerCertificates)
	}
	require.Nil(t, s.TLSConfig(&tls.Config{}).GetClientCertificate)
}

func TestAMustStapleHandshakeWaitsForTheFirstRoundOnly(t *testing.T) {
	for _, from := range []string{"Certificates", "a callback", "GetConfigForClient", "Add", "a later Add"} {
		t.Run("from "+from, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				cert := w.leaf(mustStapleLeaf)
				s := w.stapler()
				base := map[string]*tls.Config{
					"Certificates": {Certificates: []tls.Certificate{cert}},
					"a callback": {GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
						return &cert, nil
					}},
					"GetConfigForClient": {GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
						return &tls.Config{Certificates: []tls.Certificate{cert}}, nil
					}},
				}[from]
				add := func(s *Stapler, base *tls.Config) *tls.Config {
					if from == "Add" {
						_, err := s.Add(cert)
						require.NoError(t, err)
					}
					config := s.TLSConfig(base)
					if from == "a later Add" {
						time.Sleep(time.Minute)
						_, err := s.Add(cert)
						require.NoError(t, err)
					}
					return config
				}
				w.responder.Set(nil, stapletest.Answer{Delay: 3 * time.Second})
				config := add(s, base)
				var wg sync.WaitGroup
				for range 10 {
					wg.Go(func() {
						start := time.Now()
						got, _, err := connect(t, config, w.client("www.example.com"))
						require.NoError(t, err)
						require.NotEmpty(t, got.OCSPResponse)
						require.Equal(t, 3*time.Second, time.Since(start).Round(time.Second))
					})
				}
				wg.Wait()
				require.Len(t, w.responder.Requests(nil), 1)

				w.responder.Set(nil, stapletest.Answer{Hang: true})
				s = w.stapler()
				config = add(s, base)
				for i, want := range []time.Duration{5 * time.Second, 0, 0} {
					start := time.Now()
					got, _, err := connect(t, config, w.client("www.example.com"))
					require.NoError(t, err)
					require.Empty(t, got.OCSPResponse)
					require.Equal(t, want, time.Since(start).Round(time.Second), "handshake %d", i)
				}

				// An answer that cannot be stapled ends the wait, too.
				w.responder.Set(nil, stapletest.Answer{Error: ocsp.TryLater, Delay: time.Second})
				s = w.stapler(func(s *Stapler) { s.RequireStaple = true })
				config = add(s, base)
				start := time.Now()
				_, _, err := connect(t, config, w.client("www.example.com"))
				require.ErrorContains(t, err, "Must-Staple")
				require.Equal(t, time.Second, time.Since(start).Round(time.Second))
			})
		})
	}
}

func TestNoMoreThan256HandshakesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.responder.Set(nil, stapletest.Answer{Hang: true})
		s := w.stapler()
		config := s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{w.leaf(mustStapleLeaf)}})
		defer runtime.KeepAlive(config)
		var mu sync.Mutex
		waited := make(map[time.Duration]int)
		var wg sync.WaitGroup
		start := time.Now()
		for range 300 {
			wg.Go(func() {
				_, err := config.GetCertificate(&tls.ClientHelloInfo{})
				require.NoError(t, err)
				mu.Lock()
				defer mu.Unlock()
				waited[time.Since(start)]++
			})
		}
		wg.Wait()
		require.Equal(t, map[time.Duration]int{0: 44, 5 * time.Second: 256}, waited)
	})
}

func TestOrdinaryHandshakesNeverWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.responder.Set(nil, stapletest.Answer{Hang: true})
		cert, must := w.leaf(), w.leaf(mustStapleLeaf)
		s := w.stapler()
		start := time.Now()
		for _, base := range []*tls.Config{
			{Certificates: []tls.Certificate{cert}},
			{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }},
		} {
			config := s.TLSConfig(base)
			for range 3 {
				_, _, err := connect(t, config, w.client("www.example.com"))
				require.NoError(t, err)
			}
		}
		c, err := s.Add(must)
		require.NoError(t, err)
		_, err = c.GetCertificate(&tls.ClientHelloInfo{})
		require.NoError(t, err)
		require.Zero(t, time.Since(start))
	})
}

func TestCallbackCertificatesAreRecognizedByTheirLeaf(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	a, b := w.leaf(), w.leaf()
	current := a
	config := s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &current, nil }})
	defer runtime.KeepAlive(config)
	check := func(want tls.Certificate) {
		for range 2 {
			_, _, err := connect(t, config, w.client("www.example.com"))
			require.NoError(t, err)
			require.NoError(t, s.Wait(soon(t)))
		}
		got, _, err := connect(t, config, w.client("www.example.com"))
		require.NoError(t, err)
		require.Equal(t, want.Leaf.Raw, got.PeerCertificates[0].Raw)
		r, _, err := new(ResponseVerifier).Verify(got.OCSPResponse, want.Leaf, w.ca.Issuer, time.Now())
		require.NoError(t, err)
		require.Equal(t, want.Leaf.SerialNumber, r.SerialNumber)
	}
	check(a)
	current = b // the same variable: its address says nothing
	check(b)
	current = a
	current.Certificate = [][]byte{slices.Clone(a.Certificate[0]), a.Certificate[1]} // read from its file again
	check(a)
	require.Len(t, w.responder.Requests(nil), 2)
	require.Empty(t, current.OCSPStaple)
	require.Len(t, slices.Collect(s.Certificates()), 2)
}

func TestCallbackCertificatesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		key := w.leaf().PrivateKey
		var leaves []tls.Certificate
		for i := range 250 {
			leaves = append(leaves, w.leaf(names("n"+strconv.Itoa(i)+".example.com"), func(o *stapletest.LeafOptions) {
				o.Key = key.(crypto.Signer)
			}))
		}
		s := w.stapler()
		var next *tls.Certificate
		config := s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return next, nil }})
		defer runtime.KeepAlive(config)
		all := func() {
			for i := range leaves {
				next = &leaves[i]
				got, err := config.GetCertificate(&tls.ClientHelloInfo{})
				require.NoError(t, err)
				require.Equal(t, next.Certificate, got.Certificate)
			}
		}
		for second, want := range []int{100, 200, 250, 250} {
			all()
			require.Len(t, slices.Collect(s.Certificates()), want, "second %d", second)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		require.Len(t, w.responder.Requests(nil), 250)
		next = &leaves[7]
		for range 23 {
			time.Sleep(time.Hour)
			_, err := config.GetCertificate(&tls.ClientHelloInfo{})
			require.NoError(t, err)
		}
		require.Len(t, slices.Collect(s.Certificates()), 250)
		time.Sleep(2 * time.Hour)
		left := slices.Collect(s.Certificates())
		require.Len(t, left, 1)
		require.Equal(t, next.Leaf.Raw, left[0].Status().Leaf.Raw)
		n := len(w.responder.Requests(nil))
		time.Sleep(30 * 24 * time.Hour)
		require.Len(t, w.responder.Requests(nil), n)
		require.Empty(t, slices.Collect(s.Certificates()))
	})
}

// A server's struct often holds both the configuration and what the Stapler calls.
func TestAStaplerIsFreedThoughItsFetcherLeadsToItsConfiguration(t *testing.T) {
	w := newWorld(t)
	var freed atomic.Bool
	func() {
		var server struct {
			config *tls.Config
			certs  []tls.Certificate
		}
		server.certs = []tls.Certificate{w.leaf(), w.leaf(names("second.example.com"))}
		inner := &tls.Config{Certificates: server.certs}
		s := &Stapler{Logger: slog.New(slog.DiscardHandler), Fetcher: FetcherFunc(func(_ context.Context, req *Request) ([]byte, error) {
			runtime.KeepAlive(&server)
			return w.responder.Response(req.Leaf), nil
		})}
		server.config = s.TLSConfig(&tls.Config{
			Certificates:       slices.Clone(server.certs),
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return inner, nil },
		})
		_, _, err := connect(t, server.config, w.client("second.example.com"))
		require.NoError(t, err)
		require.NoError(t, s.Wait(soon(t)))
		s.Close()
		runtime.AddCleanup(s.engine, func(int) { freed.Store(true) }, 0)
	}()
	require.Eventually(t, func() bool {
		runtime.GC()
		return freed.Load()
	}, 10*time.Second, 10*time.Millisecond)
}

func TestConfigurationsThatAreGoneAreForgottenWithoutAnyCertificate(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	released := func() int {
		l := &s.engine.released
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.owners)
	}
	for range 100 {
		s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }})
	}
	require.Eventually(t, func() bool {
		runtime.GC()
		return released() > 50
	}, 10*time.Second, 10*time.Millisecond)
	s.TLSConfig(nil)
	require.Less(t, released(), 50)
}

func TestNoHandshakeWaitsForTheEngine(t *testing.T) {
	w := newWorld(t)
	for name, cert := range map[string]tls.Certificate{
		"stapled":                 w.leaf(),
		"that names no responder": w.leaf(func(o *stapletest.LeafOptions) { o.Responders = []string{} }),
	} {
		for how, base := range map[string]*tls.Config{
			"by a callback": {GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }},
			"of the base":   {Certificates: []tls.Certificate{cert}},
		} {
			t.Run("a certificate "+name+" "+how, func(t *testing.T) {
				s := w.stapler()
				config := s.TLSConfig(base)
				hello := helloOf(t, w.client("www.example.com"))
				_, err := config.GetCertificate(hello)
				require.NoError(t, err)
				_ = s.Wait(soon(t))
				s.engine.mu.Lock()
				defer s.engine.mu.Unlock()
				_, err = config.GetCertificate(hello) // or this is a deadlock
				require.NoError(t, err)
			})
		}
	}
}

func TestAConfigurationThatIsGoneIsNotRefreshed(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	cert := w.leaf()
	kept := s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{w.leaf(names("kept.example.com"))}})
	gone := s.TLSConfig(&tls.Config{
		Certificates:   []tls.Certificate{w.leaf(names("gone.example.com"))},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
	})
	clone := gone.Clone()
	_, _, err := connect(t, gone, w.client("www.example.com"))
	require.NoError(t, err)
	require.NoError(t, s.Wait(soon(t)))
	runtime.GC()
	runtime.GC()
	require.Len(t, slices.Collect(s.Certificates()), 3)
	runtime.KeepAlive(gone)
	gone = nil
	runtime.GC()
	runtime.GC()
	require.Len(t, slices.Collect(s.Certificates()), 3, "a clone is left")
	runtime.KeepAlive(clone)
	clone = nil
	require.Eventually(t, func() bool {
		runtime.GC()
		return len(slices.Collect(s.Certificates())) == 1
	}, 10*time.Second, 10*time.Millisecond)
	runtime.KeepAlive(kept)
}

func TestSessionTicketKeysOfGetConfigForClientTakeEffectAtOnce(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	inner := &tls.Config{Certificates: []tls.Certificate{w.leaf()}}
	inner.SetSessionTicketKeys([][32]byte{{1}})
	config := s.TLSConfig(&tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return inner, nil }})
	client := w.client("www.example.com")
	client.MaxVersion = tls.VersionTLS12
	client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for i, resumed := range []bool{false, true, false} {
		if i == 2 {
			inner.SetSessionTicketKeys([][32]byte{{2}})
		}
		got, _, err := connect(t, config, client)
		require.NoError(t, err)
		require.Equal(t, resumed, got.DidResume, "handshake %d", i)
	}
}

func TestTheWaysAroundAWrappedConfiguration(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	cert := w.leaf(names("127.0.0.1", "example.com"))
	config := s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}})
	require.NoError(t, s.Wait(soon(t)))
	seen := func(addr string, roots *x509.CertPool, name string) tls.ConnectionState {
		conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, ServerName: name})
		require.NoError(t, err)
		defer conn.Close()
		return conn.ConnectionState()
	}
	t.Run("httptest's StartTLS adds its own certificate, which clients that name no server get", func(t *testing.T) {
		server := httptest.NewUnstartedServer(http.NotFoundHandler())
		server.TLS = config
		server.StartTLS()
		defer server.Close()
		addr := server.Listener.Addr().String()
		require.NotEqual(t, cert.Leaf.Raw, seen(addr, nil, "").PeerCertificates[0].Raw)
		require.Empty(t, seen(addr, nil, "").OCSPResponse)
		require.NotEmpty(t, seen(addr, nil, "example.com").OCSPResponse)
	})
	t.Run("a listener of one's own staples", func(t *testing.T) {
		l, err := tls.Listen("tcp", "127.0.0.1:0", config)
		require.NoError(t, err)
		server := &http.Server{Handler: http.NotFoundHandler()}
		go server.Serve(l)
		defer server.Close()
		require.NotEmpty(t, seen(l.Addr().String(), nil, "").OCSPResponse)
	})
	for _, files := range []bool{false, true} {
		t.Run("ServeTLS with file names: "+strconv.FormatBool(files), func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			server := &http.Server{Handler: http.NotFoundHandler(), TLSConfig: config}
			certFile, keyFile := "", ""
			if files {
				certFile, keyFile = writePair(t, cert)
			}
			go server.ServeTLS(l, certFile, keyFile)
			defer server.Close()
			require.Equal(t, files, len(seen(l.Addr().String(), nil, "").OCSPResponse) == 0)
			require.NotEmpty(t, seen(l.Addr().String(), nil, "example.com").OCSPResponse)
		})
	}
}

func TestAddAndRemoveUnderLoad(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	cert := w.leaf()
	w.add(s, cert)
	config := s.TLSConfig(nil)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				c, err := s.Add(cert)
				require.NoError(t, err)
				require.NotEmpty(t, c.TLS().OCSPStaple)
				c.Remove()
			}
		})
		wg.Go(func() {
			for ctx.Err() == nil {
				got, err := config.GetCertificate(&tls.ClientHelloInfo{ServerName: "www.example.com"})
				require.NoError(t, err)
				require.NotEmpty(t, got.OCSPStaple)
				for c := range s.Certificates() {
					c.Status()
				}
			}
		})
	}
	wg.Wait()
	require.Len(t, w.responder.Requests(nil), 1)
}

func writePair(t *testing.T, cert tls.Certificate) (certFile, keyFile string) {
	t.Helper()
	dir := t.TempDir()
	var chain []byte
	for _, der := range cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	require.NoError(t, err)
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(certFile, chain, 0o600))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
	return certFile, keyFile
}

func TestTLSConfigTwiceWaitsAndCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.responder.Set(nil, stapletest.Answer{Hang: true})
		s := w.stapler()
		config := s.TLSConfig(s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{w.leaf(mustStapleLeaf)}}))
		start := time.Now()
		_, err := config.GetCertificate(&tls.ClientHelloInfo{ServerName: "www.example.com"})
		require.NoError(t, err)
		require.Equal(t, 5*time.Second, time.Since(start))
		for c := range s.Certificates() {
			require.EqualValues(t, 1, c.Status().UnstapledHandshakes)
		}

		w.responder.Set(nil, stapletest.Answer{Error: ocsp.TryLater})
		c, err := s.Add(w.leaf())
		require.NoError(t, err)
		config = s.TLSConfig(&tls.Config{GetCertificate: c.GetCertificate})
		for range 10 {
			_, err := config.GetCertificate(&tls.ClientHelloInfo{ServerName: "www.example.com"})
			require.NoError(t, err)
		}
		require.EqualValues(t, 10, c.Status().UnstapledHandshakes)
	})
}

func TestTLSConfigOfEmptyCertificatesServesWhatWasAdded(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	c := w.add(s, w.leaf())
	config := s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{}})
	got, err := config.GetCertificate(&tls.ClientHelloInfo{})
	require.NoError(t, err)
	require.Same(t, c.TLS(), got)
}

func TestAnIssuerThatACallbackBringsLaterIsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		full := w.leaf()
		bare := full
		bare.Certificate = [][]byte{slices.Clone(full.Certificate[0])}
		current := &bare
		s := w.stapler()
		config := s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return current, nil }})
		defer runtime.KeepAlive(config)
		handshake := func() []byte {
			got, err := config.GetCertificate(&tls.ClientHelloInfo{})
			require.NoError(t, err)
			return got.OCSPStaple
		}
		require.Empty(t, handshake())
		time.Sleep(time.Minute)
		require.Empty(t, handshake())
		current = &full
		handshake()
		time.Sleep(time.Minute)
		require.NotEmpty(t, handshake())
		require.Len(t, slices.Collect(s.Certificates()), 1)
	})
}

func TestACallbackCertificateWhoseResponseIsCachedNeedNotWaitForTheHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cache := NewMemoryCache()
		w.responder.Set(nil, stapletest.Answer{HTTPStatus: 503, Header: http.Header{"Retry-After": {"3600"}}})
		s := w.stapler(func(s *Stapler) { s.Cache = cache })
		_, err := s.Add(w.leaf())
		require.NoError(t, err)
		time.Sleep(time.Second)
		n := len(w.responder.Requests(nil))

		cert := w.leaf()
		require.NoError(t, cache.Put(t.Context(), cacheKeyOf(cert.Leaf), w.responderOf(cert.Leaf))) // as another process
		config := s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }})
		_, err = config.GetCertificate(&tls.ClientHelloInfo{})
		require.NoError(t, err)
		time.Sleep(time.Second)
		got, err := config.GetCertificate(&tls.ClientHelloInfo{})
		require.NoError(t, err)
		require.NotEmpty(t, got.OCSPStaple)
		require.Len(t, w.responder.Requests(nil), n)
	})
}

func TestAnExpiredCallbackCertificateIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cert := w.leaf(func(o *stapletest.LeafOptions) { o.NotAfter = time.Now().Add(-time.Hour) })
		s := w.stapler()
		config := s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }})
		_, err := config.GetCertificate(&tls.ClientHelloInfo{})
		require.NoError(t, err)
		time.Sleep(23 * time.Hour)
		require.Len(t, slices.Collect(s.Certificates()), 1)
		time.Sleep(2 * time.Hour)
		require.Empty(t, slices.Collect(s.Certificates()))
		runtime.KeepAlive(config)
	})
}

func TestAHundredNewCallbackCertificatesAreTakenInAnySecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		key := w.leaf().PrivateKey
		s := w.stapler()
		var next tls.Certificate
		config := s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &next, nil }})
		defer runtime.KeepAlive(config)
		start := time.Now()
		for _, step := range []struct {
			at   time.Duration
			want int
		}{
			{500 * time.Millisecond, 60},
			{1200 * time.Millisecond, 100},
			{1499 * time.Millisecond, 100},
			{1500 * time.Millisecond, 160}, // the first 60 are a second ago
			{2199 * time.Millisecond, 160},
			{2200 * time.Millisecond, 200},
		} {
			time.Sleep(step.at - time.Since(start))
			for i := range 60 {
				next = w.leaf(names(strconv.Itoa(i)+"."+step.at.String()+".example.com"), sameKey(key))
				_, err := config.GetCertificate(&tls.ClientHelloInfo{})
				require.NoError(t, err)
			}
			require.Len(t, slices.Collect(s.Certificates()), step.want, step.at)
		}
	})
}

func TestCloseDuringHandshakesThatBringStaples(t *testing.T) {
	w := newWorld(t)
	cert := w.leaf()
	var staples [][]byte // each newer than the one before
	for i := range 11 {
		r := stapletest.NewResponse(w.ca, cert.Leaf)
		r.Singles[0].ThisUpdate = r.Singles[0].ThisUpdate.Add(time.Duration(i-11) * time.Second)
		staples = append(staples, r.DER())
	}
	for range 100 {
		var n atomic.Int32
		s := w.stapler()
		config := s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c := cert
			c.OCSPStaple = staples[n.Add(1)-1]
			return &c, nil
		}})
		handshake := func() {
			_, err := config.GetCertificate(&tls.ClientHelloInfo{})
			require.NoError(t, err)
		}
		handshake()
		var wg sync.WaitGroup
		wg.Go(func() {
			for range 10 {
				handshake()
			}
		})
		require.NoError(t, s.Close())
		told := len(w.log.kinds())
		wg.Wait()
		require.Len(t, w.log.kinds(), told, "an event after Close")
	}
}

func TestEverythingAtOnce(t *testing.T) {
	w := newWorld(t)
	s := w.stapler(func(s *Stapler) {
		s.Cache = NewMemoryCache()
		s.OnEvent = func(e Event) {
			e.Certificate.Status()
			_ = slices.Collect(s.Certificates())
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			defer cancel()
			_ = e.Certificate.Refresh(ctx)
		}
	})
	key := w.leaf().PrivateKey
	var certs []tls.Certificate
	for i := range 20 {
		certs = append(certs, w.leaf(names(strconv.Itoa(i)+".example.com"), sameKey(key)))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for worker := range 6 {
		wg.Go(func() {
			n := worker
			config := s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				cert := certs[n%len(certs)]
				if n%3 == 0 {
					cert.OCSPStaple = w.responder.Response(cert.Leaf)
				}
				return &cert, nil
			}})
			for ; ctx.Err() == nil; n++ {
				got, err := config.GetCertificate(&tls.ClientHelloInfo{})
				require.NoError(t, err)
				require.Equal(t, certs[n%len(certs)].Certificate, got.Certificate)
				switch n % 7 {
				case 0:
					c, err := s.Add(certs[n%len(certs)])
					require.NoError(t, err)
					c.Status()
					c.Remove()
				case 1:
					_, err := s.TLSConfig(&tls.Config{Certificates: certs[:3]}).GetCertificate(&tls.ClientHelloInfo{ServerName: "1.example.com"})
					require.NoError(t, err)
				case 2:
					for c := range s.Certificates() {
						if n%5 == 0 {
							c.Remove()
						}
					}
				case 3:
					ctx, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
					_ = s.Wait(ctx)
					cancel()
				case 4:
					if n%50 == 0 {
						runtime.GC()
					}
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, s.Wait(soon(t)))
	g := s.engine
	g.mu.Lock()
	for i, e := range g.later {
		require.Equal(t, i, e.index)
		require.False(t, i > 0 && e.wake().Before(g.later[(i-1)/2].wake()), "the heap is out of order")
	}
	for _, e := range g.entries {
		require.True(t, e.busy || e.queued || !e.due.IsZero(), "nobody looks after a certificate: %v", e.err)
	}
	g.mu.Unlock()
	require.NoError(t, s.Close())
}
