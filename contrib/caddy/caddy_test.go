package staplecaddy

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple/stapletest"
)

// A site is Caddy in this process, on loopback.
type site struct {
	ca        *stapletest.CA
	responder *stapletest.Responder
	asked     *httptest.Server
	server    tls.Certificate
	addr      string
	dir       string
}

func newSite(t *testing.T) *site {
	s := &site{ca: stapletest.NewCA(stapletest.CAOptions{Intermediate: true}), dir: t.TempDir()}
	t.Setenv("XDG_DATA_HOME", s.dir)
	s.responder = stapletest.NewResponder(s.ca)
	s.asked = httptest.NewServer(s.responder)
	t.Cleanup(s.asked.Close)
	s.server = s.ca.Leaf(stapletest.LeafOptions{})
	t.Cleanup(func() { require.NoError(t, caddy.Stop()) })
	return s
}

type object = map[string]any
type list = []any

// config returns the configuration with the options of the verifier, and log as the name of where lines go.
func (s *site) config(t *testing.T, options object, log string) []byte {
	verifier := object{"verifier": "staple"}
	maps.Copy(verifier, options)
	config, err := json.Marshal(object{
		"admin":   object{"disabled": true, "config": object{"persist": false}},
		"logging": object{"logs": object{"default": object{"writer": object{"output": "test", "name": log}, "level": "INFO"}}},
		"storage": object{"module": "file_system", "root": s.dir},
		"apps": object{
			"tls": object{"certificates": object{"load_pem": list{object{"certificate": s.chain(), "key": s.key(t)}}}},
			"http": object{"servers": object{"site": object{
				"listen":          list{"127.0.0.1:0"},
				"protocols":       list{"h1", "h2"},
				"automatic_https": object{"disable": true},
				"routes":          list{object{"handle": list{object{"handler": "static_response", "body": "welcome"}}}},
				"tls_connection_policies": list{object{"client_authentication": object{
					"mode":      "require_and_verify",
					"ca":        object{"provider": "inline", "trusted_ca_certs": list{base64.StdEncoding.EncodeToString(s.ca.Root.Raw)}},
					"verifiers": list{verifier},
				}}},
			}}},
		},
	})
	require.NoError(t, err)
	return config
}

func (s *site) load(t *testing.T, options object) {
	s.run(t, s.config(t, options, t.Name()))
}

// run has Caddy load config, and notes where it listens then.
func (s *site) run(t *testing.T, config []byte) {
	require.NoError(t, caddy.Load(config, true))
	app, err := caddy.ActiveContext().App("http")
	require.NoError(t, err)
	for _, server := range app.(*caddyhttp.App).Servers {
		s.addr = server.Listeners()[0].Addr().String()
	}
}

func (s *site) chain() string {
	var text []byte
	for _, der := range s.server.Certificate {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return string(text)
}

func (s *site) key(t *testing.T) string {
	der, err := x509.MarshalPKCS8PrivateKey(s.server.PrivateKey)
	require.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// client issues a certificate about which the responder says a.
func (s *site) client(a stapletest.Answer) tls.Certificate {
	cert := s.ca.Leaf(stapletest.LeafOptions{Names: []string{"client"}, Responders: []string{s.asked.URL}})
	s.responder.Set(cert.Leaf, a)
	return cert
}

// visit makes a request over a new connection.
func (s *site) visit(cert tls.Certificate, sessions tls.ClientSessionCache) (resumed bool, err error) {
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, s.addr)
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		RootCAs: s.ca.Roots(), Certificates: []tls.Certificate{cert}, ClientSessionCache: sessions,
	}}}
	resp, err := client.Get("https://localhost")
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && string(body) != "welcome" {
		err = fmt.Errorf("status %d, %q", resp.StatusCode, body)
	}
	return resp.TLS.DidResume, err
}

func (s *site) requireWelcome(t *testing.T, cert tls.Certificate) {
	t.Helper()
	_, err := s.visit(cert, nil)
	require.NoError(t, err)
}

func (s *site) requireRefused(t *testing.T, cert tls.Certificate) {
	t.Helper()
	_, err := s.visit(cert, nil)
	require.ErrorContains(t, err, "remote error: tls: bad certificate")
}

func TestOnlyClientsThatAreNotRevokedAreServed(t *testing.T) {
	s := newSite(t)
	s.load(t, nil)
	good := s.client(stapletest.Answer{})
	s.requireWelcome(t, good)
	s.requireRefused(t, s.client(stapletest.Answer{Status: ocsp.Revoked}))
	s.requireRefused(t, s.client(stapletest.Answer{Status: ocsp.Unknown}))
	s.requireWelcome(t, good)
	require.Len(t, s.responder.Requests(good.Leaf), 1)
}

func TestWhileTheResponderIsDown(t *testing.T) {
	for name, test := range map[string]struct {
		options object
		passes  bool
	}{
		"refused":              {},
		"passes, by fail_open": {options: object{"fail_open": true}, passes: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			known, unknown, revoked := s.client(stapletest.Answer{}), s.client(stapletest.Answer{}), s.client(stapletest.Answer{Status: ocsp.Revoked})
			s.load(t, test.options)
			s.requireWelcome(t, known)
			s.requireRefused(t, revoked)
			s.asked.Close()
			s.requireWelcome(t, known)
			s.requireRefused(t, revoked)
			if test.passes {
				s.requireWelcome(t, unknown)
			} else {
				s.requireRefused(t, unknown)
			}
		})
	}
}

// Caddy gives no session tickets where clients authenticate, whatever it is told about them.
func TestARevocationIsNoticedByTheNextConnection(t *testing.T) {
	s := newSite(t)
	s.load(t, object{"cache": "off"})
	cert, sessions := s.client(stapletest.Answer{}), tls.NewLRUClientSessionCache(0)
	for range 2 {
		resumed, err := s.visit(cert, sessions)
		require.NoError(t, err)
		require.False(t, resumed)
	}
	s.responder.Set(cert.Leaf, stapletest.Answer{Status: ocsp.Revoked})
	pool.Range(func(_, value any) bool {
		for c := range value.(*shared).stapler.Peers() {
			if c.Status().Leaf.Equal(cert.Leaf) {
				require.NoError(t, c.Refresh(t.Context()))
			}
		}
		return true
	})
	require.Len(t, s.responder.Requests(cert.Leaf), 2)
	_, err := s.visit(cert, sessions)
	require.ErrorContains(t, err, "remote error: tls: bad certificate")
}

func TestAReloadKeepsWhatIsKnown(t *testing.T) {
	s := newSite(t)
	good, revoked := s.client(stapletest.Answer{}), s.client(stapletest.Answer{Status: ocsp.Revoked})
	for _, options := range []object{nil, nil, {"fail_open": true}, {"timeout": "1s", "leaf_only": true}, {"max_response_age": "1h"}} {
		options = maps.Clone(options)
		if options == nil {
			options = object{}
		}
		options["cache"] = "off"
		s.load(t, options)
		s.requireWelcome(t, good)
		s.requireRefused(t, revoked)
	}
	require.Len(t, s.responder.Requests(good.Leaf), 1)
	require.Len(t, s.responder.Requests(revoked.Leaf), 1)
	users, _ := pool.References(sharing{cache: "off"})
	require.Equal(t, 1, users)

	// One that fails changes nothing.
	err := caddy.Load(s.config(t, object{"cache": "off", "timeout": "-1s"}, t.Name()), true)
	require.ErrorContains(t, err, "tls.client_auth.verifier.staple: invalid configuration: timeout is negative: -1s")
	users, _ = pool.References(sharing{cache: "off"})
	require.Equal(t, 1, users)
	s.requireWelcome(t, good)
	require.Len(t, s.responder.Requests(good.Leaf), 1)

	// Another cache, or other responders, know nothing of it.
	s.load(t, object{"cache": filepath.Join(s.dir, "other")})
	s.requireWelcome(t, good)
	require.Len(t, s.responder.Requests(good.Leaf), 2)
	s.load(t, object{"cache": filepath.Join(s.dir, "a third"), "responders": list{s.asked.URL}, "leaf_only": true})
	s.requireWelcome(t, good)
	require.Len(t, s.responder.Requests(good.Leaf), 3)
}

func TestARestartKeepsWhatIsKnown(t *testing.T) {
	s := newSite(t)
	cert := s.client(stapletest.Answer{})
	for range 2 {
		s.load(t, nil)
		s.requireWelcome(t, cert)
		require.NoError(t, caddy.Stop())
	}
	require.Len(t, s.responder.Requests(cert.Leaf), 1)
	files, err := os.ReadDir(filepath.Join(caddy.AppDataDir(), "staple"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
}

func TestNothingIsLeftBehind(t *testing.T) {
	s := newSite(t)
	for range 2 {
		s.load(t, object{"timeout": "10ms"})
		s.requireRefused(t, s.client(stapletest.Answer{Hang: true}))
	}
	require.NotEmpty(t, waiting(), "it goes on asking")
	require.NoError(t, caddy.Stop())
	require.Empty(t, waiting())
	pool.Range(func(key, _ any) bool {
		t.Errorf("%v is still in use", key)
		return true
	})
}

// waiting returns the stacks of the goroutines of Staplers that wait for something. Others are about to end.
func waiting() (stacks []string) {
	text := make([]byte, 1<<20)
	for stack := range strings.SplitSeq(string(text[:runtime.Stack(text, true)]), "\n\n") {
		state, _, _ := strings.Cut(stack, "\n")
		of := strings.Contains(stack, "github.com/go-staple/staple.") || strings.Contains(stack, "github.com/go-staple/staple/internal/")
		if of && !strings.Contains(state, "[runn") { // running, or runnable
			stacks = append(stacks, stack)
		}
	}
	return stacks
}

func TestLinesGoToTheLogOfTheNewestConfiguration(t *testing.T) {
	s := newSite(t)
	names := []string{"one", "two"}
	for _, name := range names {
		s.run(t, s.config(t, object{"cache": "off"}, name))
		cert := s.client(stapletest.Answer{Status: ocsp.Revoked})
		s.requireRefused(t, cert)
		line := strings.ReplaceAll(fmt.Sprintf("% x", cert.Leaf.SerialNumber.Bytes()), " ", ":")
		require.Eventually(t, func() bool { return strings.Contains(logged(name), line) }, time.Minute, time.Millisecond)
		require.Contains(t, logged(name), `"logger":"tls.client_auth.verifier.staple"`)
		for _, other := range names {
			if other != name {
				require.NotContains(t, logged(other), line)
			}
		}
	}
}

func TestACaddyfile(t *testing.T) {
	s := newSite(t)
	for name, text := range map[string]string{
		"site.pem": s.chain(), "site.key": s.key(t),
		"clients.pem": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.Root.Raw})),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600))
	}
	file := strings.NewReplacer("DIR", s.dir).Replace(`
{
	admin off
	persist_config off
	auto_https off
	storage file_system DIR
	log {
		output test caddyfile
	}
	servers {
		protocols h1 h2
	}
}
https://localhost:9443 {
	bind 127.0.0.1
	tls DIR/site.pem DIR/site.key {
		client_auth {
			mode require_and_verify
			trust_pool file DIR/clients.pem
			verifier staple {
				fail_open
				cache DIR/answers
			}
		}
	}
	respond welcome
}
`)
	config, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(file), map[string]any{"filename": "Caddyfile"})
	require.NoError(t, err)
	for _, warning := range warnings {
		require.Contains(t, warning.Message, "not formatted")
	}
	s.run(t, bytes.ReplaceAll(config, []byte(":9443"), []byte(":0")))
	s.requireWelcome(t, s.client(stapletest.Answer{}))
	s.requireRefused(t, s.client(stapletest.Answer{Status: ocsp.Revoked}))
	s.requireWelcome(t, s.client(stapletest.Answer{Status: ocsp.Unknown}))
	files, err := os.ReadDir(filepath.Join(s.dir, "answers"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
}

func init() { caddy.RegisterModule(new(testWriter)) }

// logs are what Caddy has logged, by the name of the writer.
var (
	logsMu sync.Mutex
	logs   = make(map[string]string)
)

func logged(name string) string {
	logsMu.Lock()
	defer logsMu.Unlock()
	return logs[name]
}

// A testWriter is where Caddy logs.
type testWriter struct {
	Name string `json:"name,omitempty"`
}

func (*testWriter) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.logging.writers.test", New: func() caddy.Module { return new(testWriter) }}
}

func (w *testWriter) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	d.Args(&w.Name)
	return nil
}

func (w *testWriter) String() string                      { return w.Name }
func (w *testWriter) WriterKey() string                   { return "test:" + w.Name }
func (w *testWriter) OpenWriter() (io.WriteCloser, error) { return w, nil }
func (w *testWriter) Close() error                        { return nil }

func (w *testWriter) Write(line []byte) (n int, err error) {
	logsMu.Lock()
	defer logsMu.Unlock()
	logs[w.Name] += string(line)
	return len(line), nil
}
