//go:build unix

package clients

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// A server serves one certificate, and is one column of the table.
type server struct {
	name       string
	keyType    stapletest.KeyType // of the CA, the delegate and the leaf
	delegated  bool
	revoked    bool
	mustStaple bool
	noURL      bool // the certificate names no responder
	down       bool // the responder that it names is down

	port string
}

func servers() []*server {
	const rsa, ecdsa = stapletest.RSA2048, stapletest.ECDSAP256
	return []*server{
		{name: "good, RSA, direct", keyType: rsa},
		{name: "good, ECDSA, direct", keyType: ecdsa},
		{name: "good, RSA, delegated", keyType: rsa, delegated: true},
		{name: "good, ECDSA, delegated", keyType: ecdsa, delegated: true},
		{name: "Must-Staple, good", keyType: ecdsa, mustStaple: true},
		{name: "none, names no responder", keyType: ecdsa, noURL: true},
		{name: "none, responder down", keyType: ecdsa, down: true},
		{name: "Must-Staple, none", keyType: ecdsa, mustStaple: true, down: true},
		{name: "revoked", keyType: ecdsa, revoked: true},
	}
}

func (s *server) url() string  { return "https://localhost:" + s.port + "/" }
func (s *server) text() string { return served + s.name + "." }
func (s *server) slug() string {
	return strings.ReplaceAll(strings.ReplaceAll(s.name, ",", ""), " ", "-")
}

// answers are what one client is expected to answer to the servers.
type answers struct {
	good     string // the five with a good staple
	noURL    string
	down     string
	mustNone string
	revoked  string
}

func (a answers) to(s *server) string {
	switch {
	case s.revoked:
		return a.revoked
	case s.mustStaple && s.down:
		return a.mustNone
	case s.down:
		return a.down
	case s.noURL:
		return a.noURL
	default:
		return a.good
	}
}

// A lab is the servers and what a client needs to trust them.
type lab struct {
	servers []*server
	roots   []string // the names of PEM files
	bundle  string   // of all
	asked   func() []string
}

// newLab starts the servers. The responder that the certificates name answers nobody, and the Staplers
// have another one: a client that wants to know the status of a certificate has the staple, or nothing.
func newLab(t *testing.T) *lab {
	dir := t.TempDir()
	l := &lab{servers: servers(), bundle: filepath.Join(dir, "roots.pem")}

	var mu sync.Mutex
	var asked []string
	responder := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.UserAgent(), "Go-http-client/") {
			mu.Lock()
			asked = append(asked, strings.Split(r.URL.Path, "/")[1]) // the slug
			mu.Unlock()
		}
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(responder.Close)
	l.asked = func() []string {
		mu.Lock()
		defer mu.Unlock()
		return asked
	}

	type issuer struct {
		ca        *stapletest.CA
		delegate  *stapletest.Signer
		responder *stapletest.Responder
	}
	issuers := make(map[stapletest.KeyType]issuer)
	for _, s := range l.servers {
		i, ok := issuers[s.keyType]
		if !ok {
			i.ca = stapletest.NewCA(stapletest.CAOptions{Name: s.keyType.String() + " CA", KeyType: s.keyType})
			i.delegate = i.ca.Delegate(stapletest.DelegateOptions{KeyType: s.keyType})
			i.responder = stapletest.NewResponder(i.ca)
			issuers[s.keyType] = i
			root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.ca.Root.Raw})
			l.roots = append(l.roots, filepath.Join(dir, s.keyType.String()+".pem"))
			require.NoError(t, os.WriteFile(l.roots[len(l.roots)-1], root, 0o600))
			bundle, err := os.OpenFile(l.bundle, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			require.NoError(t, err)
			_, err = bundle.Write(root)
			require.NoError(t, errors.Join(err, bundle.Close()))
		}
		o := stapletest.LeafOptions{KeyType: s.keyType, MustStaple: s.mustStaple}
		if !s.noURL {
			o.Responders = []string{responder.URL + "/" + s.slug()}
		}
		if s.keyType == stapletest.RSA2048 {
			o.Template = func(leaf *x509.Certificate) { leaf.KeyUsage |= x509.KeyUsageKeyEncipherment } // for NSS
		}
		leaf := i.ca.Leaf(o)
		var answer stapletest.Answer
		if s.delegated {
			answer.Signer = i.delegate
		}
		if s.revoked {
			answer.Status = ocsp.Revoked
		}
		i.responder.Set(leaf.Leaf, answer)

		stapler := &staple.Stapler{StapleRevoked: true, Logger: slog.New(slog.DiscardHandler)}
		if !s.noURL && !s.down {
			stapler.Fetcher = &staple.HTTPFetcher{Client: i.responder.Client()}
		}
		config := stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{leaf}, NextProtos: []string{"h2", "http/1.1"}})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		_ = stapler.Wait(ctx) // which names those that have no staple
		require.NoError(t, ctx.Err())
		for c := range stapler.Certificates() {
			require.Equal(t, stapler.Fetcher != nil, c.Status().Stapled, s.name)
		}
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		_, s.port, err = net.SplitHostPort(listener.Addr().String())
		require.NoError(t, err)
		web := &http.Server{TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0),
			Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, s.text()) })}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = web.ServeTLS(listener, "", "")
		}()
		t.Cleanup(func() {
			web.Close()
			<-ended
			stapler.Close()
		})
	}
	return l
}

// environment is that of a client: nothing of the user's, and no proxy.
func environment(home string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home, "LC_ALL=C.UTF-8"}
}

// run returns what a program prints. The error is that of its exit status.
func run(t *testing.T, program string, args ...string) (string, error) {
	t.Helper()
	return runWith(t, "", program, args...)
}

// runWith has the program read input, and no end of it.
func runWith(t *testing.T, input, program string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = environment(t.TempDir())
	if input != "" {
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		_, err = io.WriteString(in, input)
		require.NoError(t, err)
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, ctx.Err(), "%s %s\n%s", program, strings.Join(args, " "), out)
	return string(out), err
}

// A client answers to each server in turn.
type client struct {
	name string
	run  func(*testing.T, *lab) (version string, cells []string)
	want answers
}

func clients() []client {
	gnutlsWhy := []string{"chain is revoked", "OCSP status is missing", "Cannot find OCSP server URI", "Cannot contact OCSP server"}
	opensslArgs := []string{"s_client", "-status", "-connect", "127.0.0.1:PORT", "-servername", "localhost", "-CAfile", "BUNDLE"}
	opensslTold := []string{"Cert Status: good", "Cert Status: revoked", "no response sent"}
	opensslWant := answers{
		good:     "connects, prints: Cert Status: good",
		noURL:    "connects, prints: no response sent",
		down:     "connects, prints: no response sent",
		mustNone: "connects, prints: no response sent",
		revoked:  "connects, prints: Cert Status: revoked",
	}
	return []client{
		{"openssl s_client -status",
			command("openssl", []string{"openssl", "version"}, opensslArgs, opensslTold, nil), opensslWant},
		{"openssl s_client -status -verify_return_error",
			command("openssl", []string{"openssl", "version"}, append(opensslArgs, "-verify_return_error"), opensslTold, nil), opensslWant},
		{"gnutls-cli",
			command("gnutls-cli", []string{"gnutls-cli", "--version"}, []string{"--x509cafile", "BUNDLE", "-p", "PORT", "localhost"}, nil, gnutlsWhy),
			answers{
				good:     "connects",
				noURL:    "connects",
				down:     "connects",
				mustNone: "refused: OCSP status is missing",
				revoked:  "refused: chain is revoked",
			}},
		{"gnutls-cli --ocsp",
			command("gnutls-cli", []string{"gnutls-cli", "--version"}, []string{"--ocsp", "--x509cafile", "BUNDLE", "-p", "PORT", "localhost"}, nil, gnutlsWhy),
			answers{
				good:     "connects",
				noURL:    "refused: Cannot find OCSP server URI",
				down:     "refused: Cannot contact OCSP server",
				mustNone: "refused: OCSP status is missing",
				revoked:  "refused: chain is revoked",
			}},
		{"wget (GnuTLS)",
			command("wget", []string{"wget", "--version"}, []string{"-nv", "-O", "-", "--ca-certificate=BUNDLE", "https://localhost:PORT/"}, page,
				[]string{"has been revoked", "is not trusted"}),
			answers{
				good:     "loads",
				noURL:    "loads",
				down:     "loads",
				mustNone: "refused: is not trusted",
				revoked:  "refused: has been revoked",
			}},
		{"curl",
			command("curl", []string{"curl", "--version"}, []string{"-sS", "--cacert", "BUNDLE", "https://localhost:PORT/"}, page, nil),
			answers{good: "loads", noURL: "loads", down: "loads", mustNone: "loads", revoked: "loads"}},
		{"curl --cert-status",
			command("curl", []string{"curl", "--version"}, []string{"-sS", "--cert-status", "--cacert", "BUNDLE", "https://localhost:PORT/"}, page,
				[]string{"No OCSP response received", "SSL certificate revocation"}),
			answers{
				good:     "loads",
				noURL:    "refused: No OCSP response received",
				down:     "refused: No OCSP response received",
				mustNone: "refused: No OCSP response received",
				revoked:  "refused: SSL certificate revocation",
			}},
		{"NSS tstclnt -T",
			command("tstclnt", []string{"dpkg-query", "-W", "libnss3-tools"}, []string{"-4", "-h", "localhost", "-p", "PORT", "-d", "sql:DATABASE", "-Q", "-T"},
				[]string{"Received 0 Cert Status items", "Received 1 Cert Status items"}, nil),
			answers{
				good:     "connects, prints: Received 1 Cert Status items",
				noURL:    "connects, prints: Received 0 Cert Status items",
				down:     "connects, prints: Received 0 Cert Status items",
				mustNone: "connects, prints: Received 0 Cert Status items",
				revoked:  "connects, prints: Received 1 Cert Status items",
			}},
		{"NSS tstclnt -T -O -F -M 1 (exit status 2: no status, 3: revoked)",
			command("tstclnt", []string{"dpkg-query", "-W", "libnss3-tools"}, []string{"-4", "-h", "localhost", "-p", "PORT", "-d", "sql:DATABASE", "-T", "-O", "-F", "-M", "1"},
				nil, []string{"exit status 2", "exit status 3"}),
			answers{
				good:     "connects",
				noURL:    "refused: exit status 2",
				down:     "refused: exit status 2",
				mustNone: "refused: exit status 2",
				revoked:  "refused: exit status 3",
			}},
		{"botan tls_client",
			command("botan", []string{"botan", "version"}, []string{"tls_client", "localhost", "--port=PORT", "--trusted-cas=BUNDLE",
				"--skip-system-cert-store"}, []string{"Valid OCSP response", "Certificate is revoked"}, nil),
			answers{
				good:     "connects, prints: Valid OCSP response",
				noURL:    "connects",
				down:     "connects",
				mustNone: "connects",
				revoked:  "connects, prints: Certificate is revoked",
			}},
		{"Java, as it comes", java("default"),
			answers{good: "connects", noURL: "connects", down: "connects", mustNone: "connects", revoked: "connects"}},
		{"Java, PKIXRevocationChecker", java("revocation"),
			answers{
				good:     "connects",
				noURL:    "refused: Certificate does not specify OCSP responder",
				down:     "refused: UNDETERMINED_REVOCATION_STATUS",
				mustNone: "refused: UNDETERMINED_REVOCATION_STATUS",
				revoked:  "refused: REVOKED",
			}},
		{"Firefox ESR", runFirefox,
			answers{
				good:     "loads",
				noURL:    "loads",
				down:     "loads",
				mustNone: "refused: MOZILLA_PKIX_ERROR_REQUIRED_TLS_FEATURE_MISSING",
				revoked:  "refused: SEC_ERROR_REVOKED_CERTIFICATE",
			}},
		{"Chromium", runChromium,
			answers{good: "loads", noURL: "loads", down: "loads", mustNone: "loads", revoked: "refused: net::ERR_CERT_REVOKED"}},
	}
}

// TestClients prints the table. What it must be is in the clients.
func TestClients(t *testing.T) {
	l := newLab(t)
	all := clients()
	rows := make([]string, len(all))
	t.Run("client", func(t *testing.T) {
		for i, c := range all {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				version, cells := c.run(t, l)
				rows[i] = fmt.Sprintf("| %s | %s | %s |\n", c.name, version, strings.Join(cells, " | "))
				require.Len(t, cells, len(l.servers))
				for i, s := range l.servers {
					assert.Equal(t, c.want.to(s), cells[i], s.name)
				}
			})
		}
	})
	head := "| client | version |"
	for _, s := range l.servers {
		head += " " + s.name + " |"
	}
	t.Logf("\n%s\n%s\n%s", head, strings.Repeat("| --- ", len(l.servers)+2)+"|", strings.Join(rows, ""))

	if !t.Failed() && !slices.ContainsFunc(rows, func(row string) bool { return row == "" }) {
		require.Contains(t, l.asked(), "none-responder-down", "GnuTLS and Java ask the responder where there is no staple")
	}
	for _, s := range l.servers {
		if !s.noURL && !s.down {
			require.NotContains(t, l.asked(), s.slug(), "a client that has a staple does not ask the responder")
		}
	}
}

const served = "This page was served with: "

// page is in what a client of HTTP prints if it loads the page.
var page = []string{served}

// command is a client that is started once for each server. In args, BUNDLE, DATABASE and PORT are
// replaced. Its version is the first that the command line version prints. For told and why see verdict.
func command(program string, version, args []string, told, why []string) func(*testing.T, *lab) (string, []string) {
	return func(t *testing.T, l *lab) (string, []string) {
		path := peer.Need(t, program)
		replace := []string{"BUNDLE", l.bundle}
		if program == "tstclnt" {
			database := t.TempDir()
			trust(t, database, l.roots)
			replace = append(replace, "DATABASE", database)
		}
		var cells []string
		for _, s := range l.servers {
			replacer := strings.NewReplacer(append(replace, "PORT", s.port)...)
			var filled []string
			for _, arg := range args {
				filled = append(filled, replacer.Replace(arg))
			}
			out, err := run(t, path, filled...)
			cells = append(cells, verdict(out, err, told, why))
		}
		out, _ := run(t, version[0], version[1:]...)
		return regexp.MustCompile(`\d+(\.\d+)+`).FindString(out), cells
	}
}

// verdict puts what a client did into a few words. It has refused if its exit status is not 0, for the
// first reason of why that is in what it printed or in that status. Otherwise it was told the first of
// told that it printed.
func verdict(out string, err error, told, why []string) string {
	first := func(words []string) string {
		i := slices.IndexFunc(words, func(w string) bool { return strings.Contains(out, w) })
		if i < 0 {
			return ""
		}
		return words[i]
	}
	if err != nil {
		out += err.Error()
		return "refused: " + cmp.Or(first(why), strings.Join(strings.Fields(out), " "))
	}
	switch match := first(told); match {
	case "":
		return "connects"
	case served:
		return "loads"
	default:
		return "connects, prints: " + match
	}
}

// java runs testdata/Client.java, once for all servers.
func java(mode string) func(*testing.T, *lab) (string, []string) {
	return func(t *testing.T, l *lab) (version string, cells []string) {
		peer.Need(t, "javac") // or java runs no source
		args := []string{"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", filepath.Join("testdata", "Client.java"), mode, l.bundle}
		for _, s := range l.servers {
			args = append(args, s.port)
		}
		out, err := run(t, peer.Need(t, "java"), args...)
		require.NoError(t, err, out)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		return lines[0], lines[1:]
	}
}
