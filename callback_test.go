package staple_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestCallbackCertificatesAreRecognizedByTheirLeaf(t *testing.T) {
	w := world.New(t)
	s := w.Stapler()
	a, b := w.Leaf(), w.Leaf()
	current := a
	config := s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &current, nil }})
	defer runtime.KeepAlive(config)
	check := func(want tls.Certificate) {
		for range 2 {
			_, _, err := world.Connect(t, config, w.Client("www.example.com"))
			require.NoError(t, err)
			require.NoError(t, s.Wait(world.Soon(t)))
		}
		got, _, err := world.Connect(t, config, w.Client("www.example.com"))
		require.NoError(t, err)
		require.Equal(t, want.Leaf.Raw, got.PeerCertificates[0].Raw)
		r, _, err := new(staple.ResponseVerifier).Verify(got.OCSPResponse, want.Leaf, w.CA.Issuer, time.Now())
		require.NoError(t, err)
		require.Equal(t, want.Leaf.SerialNumber, r.SerialNumber)
	}
	check(a)
	current = b // the same variable: its address says nothing
	check(b)
	current = a
	current.Certificate = [][]byte{slices.Clone(a.Certificate[0]), a.Certificate[1]} // read from its file again
	check(a)
	require.Len(t, w.Responder.Requests(nil), 2)
	require.Empty(t, current.OCSPStaple)
	require.Len(t, slices.Collect(s.Certificates()), 2)
}

func TestCallbackCertificatesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		key := w.Leaf().PrivateKey
		var leaves []tls.Certificate
		for i := range 250 {
			leaves = append(leaves, w.Leaf(world.Names("n"+strconv.Itoa(i)+".example.com"), func(o *stapletest.LeafOptions) {
				o.Key = key.(crypto.Signer)
			}))
		}
		s := w.Stapler()
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
		require.Len(t, w.Responder.Requests(nil), 250)
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
		n := len(w.Responder.Requests(nil))
		time.Sleep(30 * 24 * time.Hour)
		require.Len(t, w.Responder.Requests(nil), n)
		require.Empty(t, slices.Collect(s.Certificates()))
	})
}

// A server's struct often holds both the configuration and what the Stapler calls.
func TestAStaplerIsFreedThoughItsFetcherLeadsToItsConfiguration(t *testing.T) {
	w := world.New(t)
	var freed atomic.Int32
	func() {
		var server struct {
			config *tls.Config
			certs  []tls.Certificate
		}
		server.certs = []tls.Certificate{w.Leaf(), w.Leaf(world.Names("second.example.com"))}
		inner := &tls.Config{Certificates: server.certs}
		s := &staple.Stapler{Logger: slog.New(slog.DiscardHandler), Fetcher: staple.FetcherFunc(func(_ context.Context, req *staple.Request) ([]byte, error) {
			runtime.KeepAlive(&server)
			return w.Responder.Response(req.Leaf), nil
		})}
		server.config = s.TLSConfig(&tls.Config{
			Certificates:       slices.Clone(server.certs),
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return inner, nil },
		})
		_, _, err := world.Connect(t, server.config, w.Client("second.example.com"))
		require.NoError(t, err)
		require.NoError(t, s.Wait(world.Soon(t)))
		s.Close()
		runtime.AddCleanup(s, func(int) { freed.Add(1) }, 0)
		runtime.AddCleanup(&server, func(int) { freed.Add(1) }, 0) // to which the Fetcher leads
	}()
	require.Eventually(t, func() bool {
		runtime.GC()
		return freed.Load() == 2
	}, time.Minute, 10*time.Millisecond)
}

func TestAnIssuerThatACallbackBringsLaterIsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		full := w.Leaf()
		bare := full
		bare.Certificate = [][]byte{slices.Clone(full.Certificate[0])}
		current := &bare
		s := w.Stapler()
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
		w := world.New(t)
		cache := staple.NewMemoryCache()
		w.Responder.Set(nil, stapletest.Answer{HTTPStatus: 503, Header: http.Header{"Retry-After": {"3600"}}})
		s := w.Stapler(func(s *staple.Stapler) { s.Cache = cache })
		_, err := s.Add(w.Leaf())
		require.NoError(t, err)
		time.Sleep(time.Second)
		n := len(w.Responder.Requests(nil))

		cert := w.Leaf()
		require.NoError(t, cache.Put(t.Context(), world.CacheKey(cert.Leaf), w.FreshResponse(cert.Leaf))) // as another process
		config := s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }})
		_, err = config.GetCertificate(&tls.ClientHelloInfo{})
		require.NoError(t, err)
		time.Sleep(time.Second)
		got, err := config.GetCertificate(&tls.ClientHelloInfo{})
		require.NoError(t, err)
		require.NotEmpty(t, got.OCSPStaple)
		require.Len(t, w.Responder.Requests(nil), n)
	})
}

func TestAnExpiredCallbackCertificateIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		cert := w.Leaf(func(o *stapletest.LeafOptions) { o.NotAfter = time.Now().Add(-time.Hour) })
		s := w.Stapler()
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
		w := world.New(t)
		key := w.Leaf().PrivateKey
		s := w.Stapler()
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
				next = w.Leaf(world.Names(strconv.Itoa(i)+"."+step.at.String()+".example.com"), world.SameKey(key))
				_, err := config.GetCertificate(&tls.ClientHelloInfo{})
				require.NoError(t, err)
			}
			require.Len(t, slices.Collect(s.Certificates()), step.want, step.at)
		}
	})
}

func TestConfigurationsForEachConnectionLeaveNothingBehind(t *testing.T) {
	w := world.New(t)
	s := w.Stapler()
	key := w.Leaf().PrivateKey
	shared := []tls.Certificate{w.Leaf(world.Names("first.example.com"), world.SameKey(key)), w.Leaf(world.SameKey(key))}
	fresh := false
	config := s.TLSConfig(&tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		certs := shared
		if fresh {
			certs = slices.Clone(shared)
		}
		return &tls.Config{Certificates: certs}, nil
	}})
	hello := world.Hello(t, w.Client("www.example.com"))
	serve := func() {
		inner, err := config.GetConfigForClient(hello)
		require.NoError(t, err)
		got, err := inner.GetCertificate(hello)
		require.NoError(t, err)
		require.Equal(t, shared[1].Leaf.Raw, got.Leaf.Raw)
	}
	for range 100 {
		serve()
	}
	require.Equal(t, 1, s.Indexes())
	fresh = true
	for range 1000 {
		serve()
	}
	require.Eventually(t, func() bool {
		runtime.GC()
		return s.Indexes() == 1
	}, time.Minute, 10*time.Millisecond)
	runtime.KeepAlive(shared)
	shared = nil
	require.Eventually(t, func() bool {
		runtime.GC()
		return s.Indexes() == 0
	}, time.Minute, 10*time.Millisecond)
	require.Len(t, slices.Collect(s.Certificates()), 1)
	runtime.KeepAlive(config)
}

func TestCloseDuringHandshakesThatBringStaples(t *testing.T) {
	w := world.New(t)
	cert := w.Leaf()
	var staples [][]byte // each newer than the one before
	for i := range 11 {
		r := stapletest.NewResponse(w.CA, cert.Leaf)
		r.Singles[0].ThisUpdate = r.Singles[0].ThisUpdate.Add(time.Duration(i-11) * time.Second)
		staples = append(staples, r.DER())
	}
	for range 100 {
		var n atomic.Int32
		s := w.Stapler()
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
		told := len(w.Log.Kinds())
		wg.Wait()
		require.Len(t, w.Log.Kinds(), told, "an event after Close")
	}
}

// TestEverythingAtOnce has several goroutines do what programs do, and then looks whether all that is left is
// refreshed as if nothing had been.
func TestEverythingAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		var calm atomic.Bool
		s := w.Stapler(func(s *staple.Stapler) {
			s.Cache = staple.NewMemoryCache()
			s.OnEvent = func(e staple.Event) {
				if calm.Load() {
					return
				}
				e.Certificate.Status()
				_ = slices.Collect(s.Certificates())
				ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
				defer cancel()
				_ = e.Certificate.Refresh(ctx)
			}
		})
		key := w.Leaf().PrivateKey
		var certs []tls.Certificate
		for i := range 20 {
			certs = append(certs, w.Leaf(world.Names(strconv.Itoa(i)+".example.com"), world.SameKey(key)))
		}
		var wg sync.WaitGroup
		for worker := range 6 {
			wg.Go(func() {
				n := worker
				config := s.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
					cert := certs[n%len(certs)]
					if n%3 == 0 {
						cert.OCSPStaple = w.Responder.Response(cert.Leaf)
					}
					return &cert, nil
				}})
				for ; n < 700; n++ {
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
						ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
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
		calm.Store(true)
		var all []*staple.Certificate
		for _, cert := range certs {
			c, err := s.Add(cert)
			require.NoError(t, err)
			all = append(all, c)
		}
		require.NoError(t, s.Wait(world.Soon(t)))
		for range 5 {
			time.Sleep(4 * world.Day)
			synctest.Wait()
			for _, c := range all {
				world.RequireStaple(t, c, ocsp.Good)
				st := c.Status()
				require.Less(t, time.Since(st.ThisUpdate), 4*world.Day, "nobody looks after a certificate: %v", st.Err)
				require.Greater(t, st.NextRefresh, time.Now())
			}
		}
		require.NoError(t, s.Close())
	})
}

func TestRequireStapleRefusesMustStapleHandshakesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world.New(t)
		w.Responder.Set(nil, stapletest.Answer{Error: ocsp.TryLater})
		s := w.Stapler(func(s *staple.Stapler) { s.RequireStaple = true })
		plain, err := s.Add(w.Leaf())
		require.NoError(t, err)
		must, err := s.Add(w.Leaf(world.MustStaple))
		require.NoError(t, err)
		require.True(t, must.Status().MustStaple)
		require.False(t, plain.Status().MustStaple)
		_, err = plain.GetCertificate(nil)
		require.NoError(t, err)
		for hello, refused := range map[*tls.ClientHelloInfo]bool{
			nil:                              true,
			{}:                               true,
			{Extensions: []uint16{0, 5, 10}}: true,
			{Extensions: []uint16{0, 10}}:    false,
			{Extensions: []uint16{}}:         false,
			{ServerName: "x", Extensions: []uint16{5}}: true,
		} {
			_, err := must.GetCertificate(hello)
			require.Equal(t, refused, err != nil, "%+v", hello)
			if refused {
				require.ErrorContains(t, err, "CN=www.example.com")
			}
		}
		_, err = must.GetClientCertificate(nil)
		require.NoError(t, err)
		require.NotNil(t, must.TLS())
		w.Responder.Reset(nil)
		require.NoError(t, must.Refresh(world.Soon(t)))
		_, err = must.GetCertificate(nil)
		require.NoError(t, err)
	})
}

// A hello without any extension comes from crypto/tls with Extensions nil, as does
// one that was made by hand; only the latter may be of a client that wants a staple.
func TestRequireStapleIsNotForClientsThatAskForNone(t *testing.T) {
	w := world.New(t)
	w.Responder.Set(nil, stapletest.Answer{Error: ocsp.TryLater})
	s := w.Stapler(func(s *staple.Stapler) { s.RequireStaple = true })
	must, err := s.Add(w.Leaf(world.MustStaple, func(o *stapletest.LeafOptions) { o.KeyType = stapletest.RSA2048 }))
	require.NoError(t, err)
	require.ErrorContains(t, s.Wait(world.Soon(t)), "have no staple")
	config := &tls.Config{
		GetCertificate: must.GetCertificate,
		CipherSuites:   []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}, // needs no extension
	}
	const handshake, alert = 22, 21
	for _, tt := range []struct {
		name       string
		extensions []byte
		want       byte // the type of the server's first record
	}{
		{"no extensions at all", nil, handshake},
		{"no extension in the list", []byte{0, 0}, handshake},
		{"extended_master_secret alone", []byte{0, 4, 0, 23, 0, 0}, handshake},
		{"status_request", []byte{0, 9, 0, 5, 0, 5, 1, 0, 0, 0, 0}, alert},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, server := net.Pipe()
			defer client.Close()
			defer server.Close()
			go tls.Server(server, config).HandshakeContext(t.Context())
			hello := slices.Concat([]byte{3, 3}, make([]byte, 32), []byte{0, 0, 2, 0, 0x9c, 1, 0}, tt.extensions)
			hello = slices.Concat([]byte{1, 0, 0, byte(len(hello))}, hello)
			_, err := client.Write(slices.Concat([]byte{handshake, 3, 1, 0, byte(len(hello))}, hello))
			require.NoError(t, err)
			var first [1]byte
			_, err = io.ReadFull(client, first[:])
			require.NoError(t, err)
			require.Equal(t, tt.want, first[0])
		})
	}
	conn, other := net.Pipe()
	defer conn.Close()
	defer other.Close()
	_, err = must.GetCertificate(&tls.ClientHelloInfo{Conn: conn})
	require.NoError(t, err)
	_, err = must.GetCertificate(&tls.ClientHelloInfo{Conn: conn, Extensions: []uint16{0, 5}})
	require.ErrorContains(t, err, "Must-Staple")
	_, err = must.GetCertificate(&tls.ClientHelloInfo{})
	require.ErrorContains(t, err, "Must-Staple")
}
