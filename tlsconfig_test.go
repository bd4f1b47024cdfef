package staple_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestTLSConfigStaplesAndChoosesAsBaseDoes(t *testing.T) {
	w := world.New(t)
	first := w.Leaf(world.Names("first.example.com", "*.wild.example.com"))
	second := w.Leaf(world.Names("second.example.com", "deep.wild.example.com"))
	forRSA := w.Leaf(world.Names("second.example.com"), func(o *stapletest.LeafOptions) { o.KeyType = stapletest.RSA2048 })
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
		s := w.Stapler()
		wrapped := s.TLSConfig(base)
		require.Nil(t, wrapped.Certificates)
		for _, round := range []string{"at first", "later"} { // callbacks' certificates are known the second time
			for clientName, edit := range clients {
				for _, sni := range []string{"", "first.example.com", "FIRST.example.com", "second.example.com", "a.wild.example.com", "deep.wild.example.com", "x", "a.y", "refused.example.com", "none.example"} {
					client := &tls.Config{ServerName: sni, InsecureSkipVerify: true}
					edit(client)
					want, _, wantErr := world.Connect(t, base, client)
					got, _, gotErr := world.Connect(t, wrapped, client)
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
			require.NoError(t, s.Wait(world.Soon(t)))
		}
	}
}

func TestTLSConfigOfNothingServesWhatWasAdded(t *testing.T) {
	w := world.New(t)
	s := w.Stapler()
	config := s.TLSConfig(nil)
	_, _, err := world.Connect(t, config, w.Client("a.example.com"))
	_, _, want := world.Connect(t, &tls.Config{}, w.Client("a.example.com"))
	require.EqualError(t, err, want.Error())

	a, b := w.Leaf(world.Names("a.example.com")), w.Leaf(world.Names("b.example.com"))
	w.Add(s, a)
	second := w.Add(s, b)
	for sni, want := range map[string]tls.Certificate{"a.example.com": a, "b.example.com": b, "c.example.com": a} {
		client := w.Client(sni)
		client.InsecureSkipVerify = true
		got, _, err := world.Connect(t, config, client)
		require.NoError(t, err)
		require.Equal(t, want.Leaf.Raw, got.PeerCertificates[0].Raw)
		require.NotEmpty(t, got.OCSPResponse)
	}
	second.Remove()
	_, _, err = world.Connect(t, config, w.Client("b.example.com"))
	require.ErrorContains(t, err, "not b.example.com")
}

func TestTLSConfigOfEmptyCertificatesServesWhatWasAdded(t *testing.T) {
	w := world.New(t)
	s := w.Stapler()
	c := w.Add(s, w.Leaf())
	config := s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{}})
	got, err := config.GetCertificate(&tls.ClientHelloInfo{})
	require.NoError(t, err)
	require.Same(t, c.TLS(), got)
}

func TestTLSConfigTwiceStaplesOnce(t *testing.T) {
	for _, callback := range []bool{false, true} {
		w := world.New(t)
		s := w.Stapler()
		cert := w.Leaf()
		base := &tls.Config{Certificates: []tls.Certificate{cert}}
		if callback {
			base = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }}
		}
		config := s.TLSConfig(s.TLSConfig(base))
		defer runtime.KeepAlive(config)
		for range 2 {
			_, _, err := world.Connect(t, config, w.Client("www.example.com"))
			require.NoError(t, err)
			require.NoError(t, s.Wait(world.Soon(t)))
		}
		got, _, err := world.Connect(t, config, w.Client("www.example.com"))
		require.NoError(t, err)
		require.NotEmpty(t, got.OCSPResponse)
		require.Len(t, w.Responder.Requests(nil), 1)
	}
}

func TestTLSConfigTwiceWaitsAndCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Hang: true})
		s := w.Stapler()
		config := s.TLSConfig(s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{w.Leaf(world.MustStaple)}}))
		start := time.Now()
		_, err := config.GetCertificate(&tls.ClientHelloInfo{ServerName: "www.example.com"})
		require.NoError(t, err)
		require.Equal(t, 5*time.Second, time.Since(start))
		for c := range s.Certificates() {
			require.EqualValues(t, 1, c.Status().UnstapledHandshakes)
		}

		w.Responder.Set(nil, stapletest.Answer{Error: ocsp.TryLater})
		c, err := s.Add(w.Leaf())
		require.NoError(t, err)
		config = s.TLSConfig(&tls.Config{GetCertificate: c.GetCertificate})
		for range 10 {
			_, err := config.GetCertificate(&tls.ClientHelloInfo{ServerName: "www.example.com"})
			require.NoError(t, err)
		}
		require.EqualValues(t, 10, c.Status().UnstapledHandshakes)
	})
}

func TestClientCertificatesAreStapled(t *testing.T) {
	w := world.New(t)
	s := w.Stapler()
	cert := w.Leaf()
	for name, base := range map[string]*tls.Config{
		"Certificates": {Certificates: []tls.Certificate{cert}},
		"GetClientCertificate": {GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &cert, nil
		}},
	} {
		base.RootCAs, base.ServerName = w.CA.Roots(), "www.example.com"
		wrapped := s.TLSConfig(base)
		_ = s.Wait(world.Soon(t))
		server := &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.CA.Roots()}
		for range 2 {
			_, _, err := world.Connect(t, server, wrapped)
			require.NoError(t, err)
			require.NoError(t, s.Wait(world.Soon(t)))
		}
		_, got, err := world.Connect(t, server, wrapped)
		require.NoError(t, err)
		require.NotEmpty(t, got.OCSPResponse, name)

		// A client without a suitable certificate sends none, as before.
		server.ClientAuth, server.ClientCAs = tls.RequestClientCert, x509.NewCertPool()
		other := stapletest.NewCA(stapletest.CAOptions{Name: "another"})
		server.ClientCAs.AddCert(other.Root)
		_, got, err = world.Connect(t, server, wrapped)
		_, want, wantErr := world.Connect(t, server, base)
		require.Equal(t, wantErr == nil, err == nil)
		require.Equal(t, want.PeerCertificates, got.PeerCertificates)
	}
	require.Nil(t, s.TLSConfig(&tls.Config{}).GetClientCertificate)
}

func TestAMustStapleHandshakeWaitsForTheFirstRoundOnly(t *testing.T) {
	for _, from := range []string{"Certificates", "a callback", "GetConfigForClient", "Add", "a later Add"} {
		t.Run("from "+from, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world.New(t)
				cert := w.Leaf(world.MustStaple)
				s := w.Stapler()
				base := map[string]*tls.Config{
					"Certificates": {Certificates: []tls.Certificate{cert}},
					"a callback": {GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
						return &cert, nil
					}},
					"GetConfigForClient": {GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
						return &tls.Config{Certificates: []tls.Certificate{cert}}, nil
					}},
				}[from]
				add := func(s *staple.Stapler, base *tls.Config) *tls.Config {
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
				w.Responder.Set(nil, stapletest.Answer{Delay: 3 * time.Second})
				config := add(s, base)
				var wg sync.WaitGroup
				for range 10 {
					wg.Go(func() {
						start := time.Now()
						got, _, err := world.Connect(t, config, w.Client("www.example.com"))
						require.NoError(t, err)
						require.NotEmpty(t, got.OCSPResponse)
						require.Equal(t, 3*time.Second, time.Since(start).Round(time.Second))
					})
				}
				wg.Wait()
				require.Len(t, w.Responder.Requests(nil), 1)

				w.Responder.Set(nil, stapletest.Answer{Hang: true})
				s = w.Stapler()
				config = add(s, base)
				for i, want := range []time.Duration{5 * time.Second, 0, 0} {
					start := time.Now()
					got, _, err := world.Connect(t, config, w.Client("www.example.com"))
					require.NoError(t, err)
					require.Empty(t, got.OCSPResponse)
					require.Equal(t, want, time.Since(start).Round(time.Second), "handshake %d", i)
				}

				// An answer that cannot be stapled ends the wait, too.
				w.Responder.Set(nil, stapletest.Answer{Error: ocsp.TryLater, Delay: time.Second})
				s = w.Stapler(func(s *staple.Stapler) { s.RequireStaple = true })
				config = add(s, base)
				start := time.Now()
				_, _, err := world.Connect(t, config, w.Client("www.example.com"))
				require.ErrorContains(t, err, "Must-Staple")
				require.Equal(t, time.Second, time.Since(start).Round(time.Second))
			})
		})
	}
}

func TestNoMoreThan256HandshakesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Hang: true})
		s := w.Stapler()
		config := s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{w.Leaf(world.MustStaple)}})
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
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Hang: true})
		cert, must := w.Leaf(), w.Leaf(world.MustStaple)
		s := w.Stapler()
		start := time.Now()
		for _, base := range []*tls.Config{
			{Certificates: []tls.Certificate{cert}},
			{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }},
		} {
			config := s.TLSConfig(base)
			for range 3 {
				_, _, err := world.Connect(t, config, w.Client("www.example.com"))
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

func TestNoHandshakeWaitsForTheEngine(t *testing.T) {
	w := world.New(t)
	for name, cert := range map[string]tls.Certificate{
		"stapled":                 w.Leaf(),
		"that names no responder": w.Leaf(world.Responders()),
	} {
		for how, base := range map[string]*tls.Config{
			"by a callback": {GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }},
			"of the base":   {Certificates: []tls.Certificate{cert}},
		} {
			t.Run("a certificate "+name+" "+how, func(t *testing.T) {
				s := w.Stapler()
				config := s.TLSConfig(base)
				hello := world.Hello(t, w.Client("www.example.com"))
				_, err := config.GetCertificate(hello)
				require.NoError(t, err)
				_ = s.Wait(world.Soon(t))
				defer s.LockEngine()()
				_, err = config.GetCertificate(hello) // or this is a deadlock
				require.NoError(t, err)
			})
		}
	}
}

func TestAConfigurationThatIsGoneIsNotRefreshed(t *testing.T) {
	w := world.New(t)
	s := w.Stapler()
	cert := w.Leaf()
	kept := s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{w.Leaf(world.Names("kept.example.com"))}})
	gone := s.TLSConfig(&tls.Config{
		Certificates:   []tls.Certificate{w.Leaf(world.Names("gone.example.com"))},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
	})
	clone := gone.Clone()
	_, _, err := world.Connect(t, gone, w.Client("www.example.com"))
	require.NoError(t, err)
	require.NoError(t, s.Wait(world.Soon(t)))
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
	}, time.Minute, 10*time.Millisecond)
	runtime.KeepAlive(kept)
}

func TestConfigurationsThatAreGoneAreForgottenWithoutAnyCertificate(t *testing.T) {
	w := world.New(t)
	s := w.Stapler()
	for range 100 {
		s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }})
	}
	require.Eventually(t, func() bool {
		runtime.GC()
		return s.Released() > 50
	}, time.Minute, 10*time.Millisecond)
	s.TLSConfig(nil)
	require.Less(t, s.Released(), 50)
}

func TestSessionTicketKeysOfGetConfigForClientTakeEffectAtOnce(t *testing.T) {
	w := world.New(t)
	s := w.Stapler()
	inner := &tls.Config{Certificates: []tls.Certificate{w.Leaf()}}
	inner.SetSessionTicketKeys([][32]byte{{1}})
	config := s.TLSConfig(&tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return inner, nil }})
	client := w.Client("www.example.com")
	client.MaxVersion = tls.VersionTLS12
	client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for i, resumed := range []bool{false, true, false} {
		if i == 2 {
			inner.SetSessionTicketKeys([][32]byte{{2}})
		}
		got, _, err := world.Connect(t, config, client)
		require.NoError(t, err)
		require.Equal(t, resumed, got.DidResume, "handshake %d", i)
	}
}

func TestTheWaysAroundAWrappedConfiguration(t *testing.T) {
	w := world.New(t)
	s := w.Stapler()
	cert := w.Leaf(world.Names("127.0.0.1", "example.com"))
	config := s.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}})
	require.NoError(t, s.Wait(world.Soon(t)))
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
