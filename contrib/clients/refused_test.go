//go:build unix

package clients

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// A gate is a web server that asks for client certificates and has a Checker, and is one column of the table.
type gate struct {
	name    string
	version uint16 // of TLS
	http2   bool

	url, port string
}

// A guard is the gates, and what came to them.
type guard struct {
	ca        *stapletest.CA
	responder *stapletest.Responder
	gates     []*gate
	root      string // the name of a PEM file

	mu       sync.Mutex
	verdicts map[string][]error // what the Checker said, by the name of the client and the URL of the gate
}

func newGuard(t *testing.T) *guard {
	g := &guard{
		ca:       stapletest.NewCA(stapletest.CAOptions{}),
		root:     filepath.Join(t.TempDir(), "root.pem"),
		verdicts: make(map[string][]error),
		gates: []*gate{
			{name: "TLS 1.2", version: tls.VersionTLS12},
			{name: "TLS 1.3", version: tls.VersionTLS13},
			{name: "TLS 1.3, HTTP/2", version: tls.VersionTLS13, http2: true},
		},
	}
	g.responder = stapletest.NewResponder(g.ca)
	writePEM(t, g.root, "CERTIFICATE", g.ca.Root.Raw)
	stapler := &staple.Stapler{Fetcher: &staple.HTTPFetcher{Client: g.responder.Client()}, Logger: slog.New(slog.DiscardHandler)}
	t.Cleanup(func() { stapler.Close() })
	checker := &staple.Checker{Stapler: stapler}
	for _, gate := range g.gates {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, served+gate.name) }))
		s.EnableHTTP2 = gate.http2
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.TLS = &tls.Config{
			Certificates: []tls.Certificate{g.ca.Leaf(stapletest.LeafOptions{})},
			ClientAuth:   tls.RequireAndVerifyClientCert,
			ClientCAs:    g.ca.Roots(),
			MinVersion:   gate.version,
			MaxVersion:   gate.version,
			VerifyConnection: func(cs tls.ConnectionState) error {
				err := checker.VerifyConnection(cs)
				g.mu.Lock()
				defer g.mu.Unlock()
				of := cs.PeerCertificates[0].Subject.CommonName + gate.url
				g.verdicts[of] = append(g.verdicts[of], err)
				return err
			},
		}
		s.StartTLS()
		t.Cleanup(s.Close)
		_, gate.port, _ = strings.Cut(s.Listener.Addr().String(), ":")
		gate.url = "https://localhost:" + gate.port + "/"
	}
	return g
}

func writePEM(t *testing.T, file, blockType string, ders ...[]byte) {
	var text []byte
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der})...)
	}
	require.NoError(t, os.WriteFile(file, text, 0o600))
}

// password is that of the files in PKCS #12.
const password = "staple"

// An identity is a client certificate, and the names of files in which it is.
type identity struct {
	name           string
	cert           tls.Certificate
	chain, key     string
	screenshotName string
}

func (g *guard) identity(t *testing.T, client string, revoked bool) identity {
	slug := regexp.MustCompile(`\W+`).ReplaceAllString(client, "-")
	id := identity{name: client + ", good", screenshotName: "certificate-good"}
	if revoked {
		id = identity{name: client + ", revoked", screenshotName: "certificate-revoked"}
	}
	id.cert = g.ca.Leaf(stapletest.LeafOptions{CommonName: id.name, Names: []string{slug + ".example"}, Responders: []string{"http://ocsp.example"}})
	if revoked {
		g.responder.Set(id.cert.Leaf, stapletest.Answer{Status: ocsp.Revoked})
	}
	dir := t.TempDir()
	id.chain, id.key = filepath.Join(dir, "chain.pem"), filepath.Join(dir, "key.pem")
	writePEM(t, id.chain, "CERTIFICATE", id.cert.Certificate...)
	key, err := x509.MarshalPKCS8PrivateKey(id.cert.PrivateKey)
	require.NoError(t, err)
	writePEM(t, id.key, "PRIVATE KEY", key)
	return id
}

// p12 makes a file in PKCS #12.
func (id identity) p12(t *testing.T) string {
	file := strings.TrimSuffix(id.key, ".pem") + ".p12"
	out, err := run(t, peer.Need(t, "openssl"), "pkcs12", "-export", "-in", id.chain, "-inkey", id.key, "-name", id.name,
		"-passout", "pass:"+password, "-out", file)
	require.NoError(t, err, out)
	return file
}

// tries is how often a client goes to each gate, since it is not always the same that it shows: the alert can be overtaken
// by the end of the connection.
const tries = 10

// A holder is a client with a certificate. It goes to each gate, and returns what it shows there.
type holder struct {
	name string
	run  func(t *testing.T, g *guard, id identity) (version string, shown [][]string)
	want string // what it shows of the alert with TLS 1.2, if it does so reliably
}

func holders() []holder {
	const get = "GET / HTTP/1.0\r\n\r\n"
	return []holder{
		{name: "openssl s_client -quiet", run: holderCommand(`error:\w+:.*?alert bad certificate|.*errno.*`, get, "openssl", "version",
			"s_client", "-quiet", "-connect", "127.0.0.1:PORT", "-servername", "localhost", "-CAfile", "ROOT", "-cert", "CHAIN", "-key", "KEY"),
			want: "error:0A000412:SSL routines:ssl3_read_bytes:sslv3 alert bad certificate"},
		{name: "curl", run: holderCommand(`curl: .*`, "", "curl", "--version",
			"-sS", "--cacert", "ROOT", "--cert", "CHAIN", "--key", "KEY", "https://localhost:PORT/"),
			want: "curl: (35) OpenSSL/3.0.22: error:0A000412:SSL routines::sslv3 alert bad certificate"},
		{name: "gnutls-cli", run: holderCommand(`\*\*\* Received .*`, get, "gnutls-cli", "--version",
			"--x509cafile", "ROOT", "--x509certfile", "CHAIN", "--x509keyfile", "KEY", "-p", "PORT", "localhost"),
			want: "*** Received alert [42]: Certificate is bad"},
		{name: "wget --tries=1 (GnuTLS)", run: holderCommand(`GnuTLS: received .*|Failed writing .*|Read error .*`, "", "wget", "--version",
			"--tries=1", "-O", "-", "--ca-certificate=ROOT", "--certificate=CHAIN", "--private-key=KEY", "https://localhost:PORT/"),
			want: "GnuTLS: received alert [42]: Certificate is bad"},
		{name: "Go, net/http", run: holderGo, want: "remote error: tls: bad certificate"},
		{name: "Java, java.net.http", run: holderJava},
		{name: "Firefox ESR", run: holderBrowser(openFirefox, firefoxReason), want: "Secure Connection Failed, SSL_ERROR_BAD_CERT_ALERT"},
		{name: "Chromium", run: holderBrowser(openChromium, regexp.MustCompile(`\bERR_\w+`)),
			want: "Access to localhost was denied, ERR_BAD_SSL_CLIENT_AUTH_CERT"},
	}
}

// TestRefused prints what clients show whose certificates are revoked. All are refused, for that, and pass with another
// certificate.
func TestRefused(t *testing.T) {
	g := newGuard(t)
	all := holders()
	rows := make([]string, len(all))
	t.Run("client", func(t *testing.T) {
		for i, h := range all {
			t.Run(h.name, func(t *testing.T) {
				t.Parallel()
				good, revoked := g.identity(t, h.name, false), g.identity(t, h.name, true)
				_, shown := h.run(t, g, good)
				for i, gate := range g.gates {
					for _, s := range shown[i] {
						require.Equal(t, "loads", s, gate.name)
					}
					for _, err := range g.said(t, good, gate) {
						require.NoError(t, err, gate.name)
					}
				}

				version, shown := h.run(t, g, revoked)
				row := fmt.Sprintf("| %s | %s | loads |", h.name, version)
				for i, gate := range g.gates {
					require.NotEmpty(t, shown[i], gate.name)
					require.NotContains(t, shown[i], "loads", gate.name)
					if gate.version == tls.VersionTLS12 && h.want != "" {
						assert.Contains(t, shown[i], h.want, gate.name)
					}
					for _, err := range g.said(t, revoked, gate) {
						require.ErrorIs(t, err, staple.ErrRevoked, gate.name)
					}
					row += " " + mostFirst(shown[i]) + " |"
				}
				rows[i] = row + "\n"
			})
		}
	})
	head := "| client | version | good |"
	for _, gate := range g.gates {
		head += " revoked, " + gate.name + " |"
	}
	t.Logf("\n%s\n%s|\n%s", head, strings.Repeat("| --- ", len(g.gates)+3), strings.Join(rows, ""))
}

// TestUnanswered has somebody refused about whom there is no answer, which looks like a revocation to a client.
func TestUnanswered(t *testing.T) {
	g := newGuard(t)
	id := g.identity(t, "unknown", false)
	g.responder.Set(id.cert.Leaf, stapletest.Answer{Status: ocsp.Unknown})
	_, shown := holderGo(t, g, id)
	for i, gate := range g.gates {
		require.NotContains(t, shown[i], "loads", gate.name)
		for _, err := range g.said(t, id, gate) {
			require.ErrorIs(t, err, staple.ErrUnanswered, gate.name)
		}
	}
	require.Contains(t, shown[0], "remote error: tls: bad certificate")
}

// TestForbidden has the handler refuse, with a page that says why.
func TestForbidden(t *testing.T) {
	g := newGuard(t)
	stapler := &staple.Stapler{Fetcher: &staple.HTTPFetcher{Client: g.responder.Client()}, Logger: slog.New(slog.DiscardHandler)}
	defer stapler.Close()
	checker := &staple.Checker{Stapler: stapler}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := checker.Check(r.Context(), r.TLS.VerifiedChains[0]); err != nil {
			http.Error(w, "Your certificate is not accepted: "+err.Error(), http.StatusForbidden)
			return
		}
		fmt.Fprint(w, served)
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{g.ca.Leaf(stapletest.LeafOptions{})}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: g.ca.Roots()}
	s.StartTLS()
	defer s.Close()
	for _, revoked := range []bool{false, true} {
		id := g.identity(t, "forbidden", revoked)
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: g.ca.Roots(), Certificates: []tls.Certificate{id.cert}}}
		resp, err := (&http.Client{Transport: transport}).Get(s.URL)
		require.NoError(t, err)
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		resp.Body.Close()
		transport.CloseIdleConnections()
		require.Equal(t, revoked, resp.StatusCode == http.StatusForbidden)
		require.Equal(t, revoked, strings.Contains(string(text), staple.ErrRevoked.Error()), "%s", text)
	}
}

// said returns what the Checker said of somebody who came to a gate.
func (g *guard) said(t *testing.T, id identity, gate *gate) []error {
	g.mu.Lock()
	defer g.mu.Unlock()
	verdicts := g.verdicts[id.name+gate.url]
	require.NotEmpty(t, verdicts, "%s did not come to %s with its certificate", id.name, gate.name)
	return verdicts
}

// mostFirst lists what is different in all, what is there most often first.
func mostFirst(all []string) string {
	count := make(map[string]int)
	for _, s := range all {
		count[s]++
	}
	different := slices.Compact(slices.Sorted(slices.Values(all)))
	slices.SortStableFunc(different, func(a, b string) int { return cmp.Compare(count[b], count[a]) })
	return strings.Join(different, "; or: ")
}

// holderCommand is a client that is started for each try. In args, ROOT, CHAIN, KEY and PORT are replaced. It shows the
// lines, or parts of them, that match said.
func holderCommand(said, input, program, version string, args ...string) func(*testing.T, *guard, identity) (string, [][]string) {
	lines := regexp.MustCompile(said)
	return func(t *testing.T, g *guard, id identity) (string, [][]string) {
		path := peer.Need(t, program)
		shown := make([][]string, len(g.gates))
		for i, gate := range g.gates {
			replacer := strings.NewReplacer("ROOT", g.root, "CHAIN", id.chain, "KEY", id.key, "PORT", gate.port)
			var filled []string
			for _, arg := range args {
				filled = append(filled, replacer.Replace(arg))
			}
			for range tries {
				out, err := runWith(t, input, path, filled...)
				switch {
				case err == nil && strings.Contains(out, served):
					shown[i] = append(shown[i], "loads")
				case err == nil:
					require.FailNow(t, "it was refused, and its exit status is 0", out)
				default:
					shown[i] = append(shown[i], cmp.Or(strings.Join(lines.FindAllString(out, -1), " "), out+err.Error()))
				}
			}
		}
		out, _ := run(t, path, version)
		return regexp.MustCompile(`\d+(\.\d+)+`).FindString(out), shown
	}
}

func holderGo(t *testing.T, g *guard, id identity) (string, [][]string) {
	shown := make([][]string, len(g.gates))
	for i, gate := range g.gates {
		for range tries {
			transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: g.ca.Roots(), Certificates: []tls.Certificate{id.cert}}}
			resp, err := (&http.Client{Transport: transport}).Get(gate.url)
			if err == nil {
				shown[i] = append(shown[i], "loads")
				resp.Body.Close()
			} else {
				shown[i] = append(shown[i], regexp.MustCompile(`^Get "[^"]*": | 127\.0\.0\.1:\d+->127\.0\.0\.1:\d+`).ReplaceAllString(err.Error(), ""))
			}
			transport.CloseIdleConnections()
		}
	}
	return strings.TrimPrefix(runtime.Version(), "go"), shown
}

func holderJava(t *testing.T, g *guard, id identity) (string, [][]string) {
	peer.Need(t, "javac") // or java runs no source
	args := []string{"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", filepath.Join("testdata", "CertClient.java"), g.root, id.p12(t), password}
	const tries = 5 // of which each may take 5 s
	for range tries {
		for _, gate := range g.gates {
			args = append(args, gate.url)
		}
	}
	out, err := run(t, peer.Need(t, "java"), args...)
	require.NoError(t, err, out)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	require.Len(t, lines, 1+tries*len(g.gates), out)
	shown := make([][]string, len(g.gates))
	for i, line := range lines[1:] {
		if strings.HasPrefix(line, served) {
			line = "loads"
		}
		shown[i%len(g.gates)] = append(shown[i%len(g.gates)], line)
	}
	return lines[0], shown
}

// holderBrowser shows the title of a page and the code on it, if there is one.
func holderBrowser(open func(*testing.T, []string, ...string) (string, func(url, name string) (string, error)), code *regexp.Regexp) func(*testing.T, *guard, identity) (string, [][]string) {
	return func(t *testing.T, g *guard, id identity) (string, [][]string) {
		version, load := open(t, []string{g.root}, id.p12(t))
		shown := make([][]string, len(g.gates))
		for i, gate := range g.gates {
			for range 2 {
				text, err := load(gate.url, id.screenshotName+"-"+strings.NewReplacer(" ", "-", ",", "", "/", "-").Replace(gate.name))
				title, _, _ := strings.Cut(text, "\n")
				switch {
				case err == nil && strings.HasPrefix(text, served):
					shown[i] = append(shown[i], "loads")
				case text == "":
					shown[i] = append(shown[i], "a blank page")
				default:
					shown[i] = append(shown[i], title+", "+code.FindString(text))
				}
			}
		}
		return version, shown
	}
}
