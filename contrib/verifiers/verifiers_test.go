package verifiers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/internal/vectors"
)

// A verifier asks a program about responses, of one group and one after the other.
type verifier struct {
	name    string // in the vectors' Others; empty: it judges too little to be there
	program string
	what    string // it does
	version []string
	start   func(t *testing.T, l *lab) func(response []byte) string

	// exceptions tells why it does not take what staple accepts, even trimmed, by the vectors' names.
	exceptions map[string]string
}

// What a verifier says of a response is a status, or
const (
	signed   = "signed" // it judges no more than that
	refused  = "refused"
	notAsked = "-" // it cannot be asked
)

// A lab has the files and the certificate of a group.
type lab struct {
	group               vectors.Group
	dir                 string
	root, issuer, leaf  string // file names
	key                 any
	faketime, faketimed string
}

func newLab(t *testing.T, g vectors.Group) *lab {
	l := &lab{group: g, dir: t.TempDir(), faketime: peer.Need(t, "faketime"), faketimed: g.Time.Format("@2006-01-02 15:04:05")}
	file := func(name string, der []byte) string {
		name = filepath.Join(l.dir, name)
		require.NoError(t, os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
		return name
	}
	l.root, l.issuer, l.leaf = file("root.pem", g.Root), file("issuer.pem", g.Issuer), file("leaf.pem", g.Leaf)
	var err error
	l.key, err = x509.ParsePKCS8PrivateKey(g.LeafKey)
	require.NoError(t, err)
	return l
}

// run returns what a program prints, and its exit status, at the group's time.
func (l *lab) run(t *testing.T, program string, args ...string) (string, int) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.faketime, append([]string{"-f", l.faketimed, program}, args...)...)
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C", "HOME="+l.dir)
	out, err := cmd.CombinedOutput()
	require.NoError(t, ctx.Err(), "%s %s\n%s", program, strings.Join(args, " "), out)
	if _, ok := err.(*exec.ExitError); !ok {
		require.NoError(t, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// staples starts a server of TLS with the group's leaf, and returns its port and what sets its staple.
func (l *lab) staples(t *testing.T) (port string, set func(response []byte)) {
	var staple atomic.Pointer[[]byte]
	config := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return &tls.Certificate{
			Certificate: [][]byte{l.group.Leaf, l.group.Issuer},
			PrivateKey:  l.key,
			OCSPStaple:  *staple.Load(),
		}, nil
	}}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(time.Minute))
				_ = conn.(*tls.Conn).Handshake()
			}()
		}
	}()
	_, port, err = net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)
	return port, func(response []byte) { staple.Store(&response) }
}

// handshakes is a verifier that gets responses stapled. judge tells what it says by what it prints.
func handshakes(program string, args []string, judge func(out string, status int) string) func(*testing.T, *lab) func([]byte) string {
	return func(t *testing.T, l *lab) func([]byte) string {
		path := peer.Need(t, program)
		port, staple := l.staples(t)
		replacements := []string{"PORT", port, "ROOT", l.root}
		if program == "tstclnt" {
			replacements = append(replacements, "DATABASE", l.database(t))
		}
		replacer := strings.NewReplacer(replacements...)
		var filled []string
		for _, arg := range args {
			filled = append(filled, replacer.Replace(arg))
		}
		return func(response []byte) string {
			if len(response) == 0 {
				return notAsked // an empty staple is none
			}
			staple(response)
			return judge(l.run(t, path, filled...))
		}
	}
}

// database returns an NSS database that trusts the root.
func (l *lab) database(t *testing.T) string {
	database := filepath.Join(l.dir, "nss")
	require.NoError(t, os.Mkdir(database, 0o700))
	certutil := peer.Need(t, "certutil")
	for _, args := range [][]string{
		{"-N", "-d", "sql:" + database, "--empty-password"},
		{"-A", "-d", "sql:" + database, "-n", "root", "-t", "C,,", "-i", l.root},
	} {
		out, status := l.run(t, certutil, args...)
		require.Zero(t, status, out)
	}
	return database
}

func openssl(t *testing.T, l *lab) func([]byte) string {
	path := peer.Need(t, "openssl")
	file := filepath.Join(l.dir, "openssl.der")
	status := regexp.MustCompile(`leaf\.pem: (good|revoked|unknown)`)
	return func(response []byte) string {
		require.NoError(t, os.WriteFile(file, response, 0o600))
		// It looks for the CertID that it would ask with, so it must be told the hash.
		for _, hash := range []string{"-sha1", "-sha256", "-sha384", "-sha512"} {
			out, _ := l.run(t, path, "ocsp", "-respin", file, "-no_nonce", "-CAfile", l.root, "-verify_other", l.issuer,
				"-issuer", l.issuer, hash, "-cert", l.leaf)
			if !strings.Contains(out, "Response verify OK") || strings.Contains(out, "WARNING: Status times invalid") {
				return refused
			}
			if match := status.FindStringSubmatch(out); match != nil {
				return match[1]
			}
		}
		return refused
	}
}

func ocsptool(t *testing.T, l *lab) func([]byte) string {
	path := peer.Need(t, "ocsptool")
	var answer atomic.Pointer[[]byte]
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = w.Write(*answer.Load())
	}))
	t.Cleanup(server.Close)
	return func(response []byte) string {
		answer.Store(&response)
		out, code := l.run(t, path, "--ask="+server.URL, "--load-cert="+l.leaf, "--load-issuer="+l.issuer)
		if code != 0 || !strings.Contains(out, "Verifying OCSP Response: Success") {
			return refused
		}
		return signed
	}
}

func verifiers() []verifier {
	const (
		oneIssuer    = "it wants one issuer in all of a response"
		pssHash      = "it does not read the parameters of RSASSA-PSS, and takes the hash for SHA-256"
		firstSingle  = "it looks at the first statement alone"
		unknownGood  = "it takes unknown for no reason to refuse"
		certIDHash   = "it knows CertIDs with SHA-1 and older hashes alone"
		noEd25519    = "it does not know Ed25519"
		noPSS        = "it does not know RSASSA-PSS in a response"
		sameSubject  = "it takes a certificate whose subject is its issuer for self-signed"
		quietUnknown = "the program's exit status is the same for unknown and for what it refuses"
	)
	pss := map[string]string{
		"a delegate's SHA384-RSAPSS": pssHash, "a delegate's SHA512-RSAPSS": pssHash,
		"the issuer's SHA384-RSAPSS": pssHash, "the issuer's SHA512-RSAPSS": pssHash,
	}
	gnutls := maps.Clone(pss)
	for _, name := range []string{
		"another serial number revoked, then ours good",
		"our serial number at another CA good, then ours revoked",
		"our serial number at another CA revoked, then ours good",
		"a hundred others before ours",
	} {
		gnutls[name] = firstSingle
	}
	gnutls["unknown"] = unknownGood
	return []verifier{
		{
			name: "openssl", program: "openssl ocsp", what: "all of it",
			version: []string{"openssl", "version"},
			start:   openssl,
			exceptions: map[string]string{
				"our serial number at another CA good, then ours revoked": oneIssuer,
				"our serial number at another CA revoked, then ours good": oneIssuer,
				"a delegate in the name of the issuer, by key":            sameSubject,
			},
		},
		{
			program: "ocsptool --ask", what: "the signature and who made it, no more",
			version:    []string{"ocsptool", "--version"},
			start:      ocsptool,
			exceptions: pss,
		},
		{
			name: "gnutls", program: "gnutls-cli", what: "a handshake with it stapled",
			version: []string{"gnutls-cli", "--version"},
			start: handshakes("gnutls-cli", []string{"--x509cafile", "ROOT", "-p", "PORT", "localhost"},
				func(out string, status int) string {
					switch {
					case strings.Contains(out, "The certificate is trusted"):
						return "good"
					case strings.Contains(out, "The certificate chain is revoked"):
						return "revoked"
					}
					return refused
				}),
			exceptions: gnutls,
		},
		{
			name: "nss", program: "tstclnt -T -O -F -M 1", what: "a handshake with it stapled",
			version: []string{"dpkg-query", "-W", "libnss3"},
			start: handshakes("tstclnt", []string{"-4", "-h", "localhost", "-p", "PORT", "-d", "sql:DATABASE", "-T", "-O", "-F", "-M", "1"},
				func(out string, status int) string {
					switch status {
					case 0:
						return "good"
					case 3:
						return "revoked"
					}
					return refused
				}),
			exceptions: map[string]string{
				"a CertID with SHA-256":                        certIDHash,
				"a CertID with SHA-384":                        certIDHash,
				"a CertID with SHA-512":                        certIDHash,
				"a delegate with Ed25519":                      noEd25519,
				"a delegate in the name of the issuer, by key": sameSubject,
				"unknown": quietUnknown,
			},
		},
		{
			name: "botan", program: "botan tls_client", what: "a handshake with it stapled",
			version: []string{"botan", "version"},
			start: handshakes("botan", []string{"tls_client", "localhost", "--port=PORT", "--trusted-cas=ROOT", "--skip-system-cert-store"},
				func(out string, status int) string {
					switch {
					case strings.Contains(out, "Valid OCSP response for this server"):
						return "good"
					case strings.Contains(out, "Certificate is revoked"):
						return "revoked"
					case strings.Contains(out, "OCSP bad status"):
						return "unknown"
					}
					return refused
				}),
			exceptions: map[string]string{
				"a delegate with Ed25519":    noEd25519,
				"a delegate's SHA256-RSAPSS": noPSS,
				"a delegate's SHA384-RSAPSS": noPSS,
				"a delegate's SHA512-RSAPSS": noPSS,
				"the issuer's SHA256-RSAPSS": noPSS,
				"the issuer's SHA384-RSAPSS": noPSS,
				"the issuer's SHA512-RSAPSS": noPSS,
			},
		},
	}
}
