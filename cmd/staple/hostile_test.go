package main

import (
	"context"
	"crypto/tls"
	"crypto/x509/pkix"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/go-staple/staple/internal/testhttp"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestHostsThatSpeakNoTLS(t *testing.T) {
	endless := func(what string) testhttp.Raw {
		return func(conn net.Conn) {
			go func() { _, _ = io.Copy(io.Discard, conn) }()
			for _, err := io.WriteString(conn, what); err == nil; _, err = io.WriteString(conn, what) {
			}
		}
	}
	tests := []struct {
		name string
		h    testhttp.Raw
		says string
	}{
		{"hangs", testhttp.Hangs, "TLS handshake: 10s passed: i/o timeout: check name and port, and what is between, or raise -timeout"},
		{"answers in plain text", func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 4096))
			_, _ = io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
		}, "it does not speak TLS there"},
		{"speaks first, in another protocol", func(conn net.Conn) {
			go func() { _, _ = io.Copy(io.Discard, conn) }()
			_, _ = io.WriteString(conn, "220 mx.example ESMTP\r\n")
		}, "it does not speak TLS there"},
		{"closes at once", func(net.Conn) {}, "it closed the connection"},
		{"closes after the hello", func(conn net.Conn) { _, _ = conn.Read(make([]byte, 4096)) }, "it closed the connection"},
		{"sends text without end", endless("220 " + strings.Repeat("x", 1000) + "\r\n"), "it does not speak TLS there"},
		{"sends empty records without end", endless("\x16\x03\x03\x00\x00"), "TLS handshake: "},
		{"sends a message without end", endless("\x16\x03\x03\x40\x00\x0b\xff\xff\xff" + strings.Repeat("x", 0x4000-4)), "TLS handshake: "},
		{"sends alerts without end", endless("\x15\x03\x03\x00\x02\x01\x5a"), "TLS handshake: "},
		{"refuses the name", serving(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("no") }}), "TLS handshake: "},
		{"speaks TLS slowly", func(conn net.Conn) {
			for _, err := conn.Write([]byte{0x16}); err == nil; _, err = conn.Write([]byte{3}) {
				time.Sleep(3 * time.Second)
			}
		}, "10s passed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newLab(t)
				w.hosts["host.example:443"] = tt.h
				began := time.Now()
				got := w.verdict("host.example")
				require.Equal(t, unreachable, got.Verdict)
				require.Equal(t, 3, got.Exit)
				require.Contains(t, got.Error, tt.says)
				require.LessOrEqual(t, time.Since(began), 10*time.Second)
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		c := checker{newClient: newClient}
		c.dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		got := runJSON(t, &c, "host.example")
		require.Contains(t, got.Error, "connecting: 10s passed: i/o timeout: check name and port")
		c.dial = func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		}
		require.Contains(t, runJSON(t, &c, "host.example").Error, "nobody listens there: check the port")
	})
}

func TestAHostThatWantsAClientCertificateIsJudged(t *testing.T) {
	for _, version := range []string{"", "-tls12"} {
		synctest.Test(t, func(t *testing.T) {
			w := newLab(t)
			config := &tls.Config{Certificates: []tls.Certificate{w.stapling(w.leaf(), stapletest.Answer{})}, ClientAuth: tls.RequireAnyClientCert}
			w.hosts["host.example:443"] = serving(config)
			args := strings.Fields(version + " host.example")
			require.Equal(t, good, w.verdict(args...).Verdict)
		})
	}
}

func TestTheOldestTLSIsSpoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLab(t)
		cert := w.stapling(w.leaf(func(o *stapletest.LeafOptions) { o.KeyType = stapletest.RSA2048 }), stapletest.Answer{})
		w.hosts["host.example:443"] = serving(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS10,
			MaxVersion: tls.VersionTLS10, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}})
		require.Equal(t, good, w.verdict("host.example").Verdict)
	})
}

func TestTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLab(t)
		cert := w.stapling(w.leaf(func(o *stapletest.LeafOptions) {
			o.Names = []string{"host.example", "other.example", "2001:db8::1", "192.0.2.1"}
		}), stapletest.Answer{})
		var asked string
		h := serving(&tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			asked = hello.ServerName
			return &cert, nil
		}})
		for _, address := range []string{"host.example:443", "host.example.:443", "host.example:8443", "[2001:db8::1]:443", "[2001:db8::1]:8443", "192.0.2.1:443"} {
			w.hosts[address] = h
		}
		root := write(t, "root.pem", certPEM(w.ca.Root))
		for _, tt := range []struct{ target, name string }{
			{"host.example", "host.example"}, {"host.example:8443", "host.example"}, {"host.example.", "host.example"}, {"host.example:", "host.example"},
			{"2001:db8::1", ""}, {"[2001:db8::1]", ""}, {"[2001:db8::1]:8443", ""}, {"192.0.2.1", ""}, {"192.0.2.1:443", ""},
		} {
			got := w.verdict("-ca", root, tt.target)
			require.Equal(t, good, got.Verdict, "%s: %s", tt.target, got.Error)
			require.Equal(t, tt.name, asked, tt.target)
			require.Equal(t, good, w.verdict("-ca", root, "-servername", "other.example", tt.target).Verdict)
			require.Equal(t, "other.example", asked)
		}
		for _, bad := range []string{"", ":443", "a:b:c", "[::1", "höst.example", "ho st", "a b:443", "\x1b[2J:1"} {
			stdout, stderr, exit := w.check("--", bad)
			require.Equal(t, 3, exit, bad)
			require.Empty(t, stdout)
			require.True(t, strings.HasPrefix(stderr, "staple: "), bad)
			requireHarmless(t, stderr)
		}
		t.Chdir(t.TempDir())
		require.NoError(t, os.Mkdir("host.example", 0o700))
		require.Equal(t, good, w.verdict("host.example").Verdict, "a directory that is named for a host")
		require.NoError(t, os.WriteFile("other.example", chainPEM(cert), 0o600))
		require.False(t, w.verdict("other.example").Stapled, "a file that is named for a host")
		_, stderr, exit := w.check("https://host.example/")
		require.Equal(t, 3, exit)
		require.Contains(t, stderr, "of a URL give the host alone")
	})
}

func requireHarmless(t *testing.T, text string) {
	t.Helper()
	for _, r := range text {
		require.True(t, r == '\n' || unicode.IsPrint(r) && r != unicode.ReplacementChar, "%q in %q", r, text)
	}
}

// TestNothingShownCanDoMoreThanBeText lets a host put what a terminal obeys wherever it can.
func TestNothingShownCanDoMoreThanBeText(t *testing.T) {
	const evil = "\x1b[2J\x07\u202e\u009b1m|\r\nSTAPLE OK"
	for _, answer := range []stapletest.Answer{
		{}, {Body: []byte(evil)}, {HTTPStatus: 500, Body: []byte(evil), Header: http.Header{"Content-Type": {evil}}},
		{Header: http.Header{"Location": {"http://" + evil}}, HTTPStatus: 302}, {Age: 30 * day}, {Error: ocsp.ResponseStatus(5)},
		{Status: ocsp.Revoked, RevocationReason: 99},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newLab(t)
			w.ca = stapletest.NewCA(stapletest.CAOptions{Name: evil})
			w.responder = stapletest.NewResponder(w.ca)
			cert := w.leaf(func(o *stapletest.LeafOptions) {
				o.CommonName, o.Responders = evil, []string{"http://ocsp.example/" + strings.TrimSuffix(evil, "\r\nSTAPLE OK") + "\n", responderURL}
				o.ExtraExtensions = []pkix.Extension{{Id: []int{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: []byte(evil)}}
			})
			w.responder.Set(nil, answer)
			signer := w.ca.Delegate(stapletest.DelegateOptions{CommonName: evil})
			for _, staple := range []stapletest.Answer{{}, answer, {Signer: signer}, {Signer: stapletest.NewCA(stapletest.CAOptions{Name: evil}).Signer()}} {
				w.serve(w.stapling(cert, staple))
				for _, how := range []string{"", "-json", "-nagios", "-v", "-ca"} {
					args := []string{"host.example"}
					switch how {
					case "":
					case "-ca":
						args = append(args, how, write(t, "root.pem", certPEM(newLab(t).ca.Root)))
					default:
						args = append(args, how)
					}
					stdout, stderr, _ := w.check(args...)
					requireHarmless(t, stdout)
					requireHarmless(t, stderr)
					require.NotContains(t, stdout, "\nSTAPLE OK")
					if how == "-nagios" {
						require.LessOrEqual(t, strings.Count(stdout, "|"), 1)
						require.Equal(t, 1, strings.Count(stdout, "\n"))
					}
				}
			}
		})
	}
}

func TestRespondersThatDoWhatNoneShould(t *testing.T) {
	for _, s := range testhttp.HostileServers() {
		t.Run(s.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newLab(t)
				w.transport = &http.Transport{DialContext: testhttp.Piped(t, s.Handle), MaxResponseHeaderBytes: 64 << 10, DisableKeepAlives: true}
				w.serve(w.stapling(w.leaf(), stapletest.Answer{}))
				began := time.Now()
				got := w.verdict("host.example")
				require.Equal(t, trouble, got.Verdict, "%+v", got)
				require.Equal(t, 1, got.Exit)
				require.LessOrEqual(t, time.Since(began), 41*time.Second)
				require.LessOrEqual(t, len(got.Error), 2000)
				requireHarmless(t, got.Error)
			})
		})
	}
}

func TestFilesThatAreNoChain(t *testing.T) {
	w := newLab(t)
	cert := w.leaf()
	chain := string(chainPEM(cert))
	key := string(keyPEM(t, cert))
	huge := filepath.Join(t.TempDir(), "huge.pem")
	f, err := os.Create(huge)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(1<<40))
	require.NoError(t, f.Close())
	tests := []struct{ name, file, says string }{
		{"missing", filepath.Join(t.TempDir(), "none.pem"), "no such file"},
		{"huge", huge, "has more than 4194304 bytes"},
		{"endless", "/dev/zero", "is not a regular file"},
		{"a directory", t.TempDir(), "is not a regular file"},
		{"empty", write(t, "x", nil), "the file is empty"},
		{"the key alone", write(t, "x", []byte(key)), `no certificate in it, only ["PRIVATE KEY"]: give the file of the certificate`},
		{"half a leaf", write(t, "x", []byte(chain[:200])), "has no end"},
		{"half an issuer", write(t, "x", []byte(chain[:len(chain)-50])), "has no end"},
		{"half a key before", write(t, "x", []byte(key[:60]+"\n")), "has no end"},
		{"no certificate", write(t, "x", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")), "its first certificate cannot be read"},
		{"text", write(t, "x", []byte("hello\x1b[2J")), "no certificate in PEM in it"},
		{"DER", write(t, "x", cert.Certificate[0]), "a certificate in DER, not PEM"},
	}
	response := write(t, "x.ocsp", w.responder.Response(cert.Leaf))
	good := write(t, "good.pem", []byte(key+chain))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, args := range [][]string{
				{"check", tt.file}, {"fetch", "-o", filepath.Join(t.TempDir(), "out"), tt.file}, {"verify", "-cert", tt.file, response},
			} {
				stdout, stderr, exit := program(t, args...)
				require.Equal(t, 3, exit, args)
				require.Empty(t, stdout)
				require.True(t, strings.HasPrefix(stderr, "staple: "+tt.file+": "), stderr)
				require.Contains(t, stderr, tt.says)
				require.Equal(t, 1, strings.Count(stderr, "\n"))
				requireHarmless(t, stderr)
			}
			if tt.name == "DER" || strings.HasPrefix(tt.name, "half") {
				return
			}
			for _, args := range [][]string{
				{"check", "-issuer", tt.file, good}, {"check", "-ca", tt.file, good}, {"fetch", "-issuer", tt.file, "-o", filepath.Join(t.TempDir(), "out"), good},
				{"verify", "-cert", good, "-issuer", tt.file, response},
			} {
				_, stderr, exit := program(t, args...)
				require.Equal(t, 3, exit, args)
				require.True(t, strings.HasPrefix(stderr, "staple: "+tt.file+": "), stderr)
			}
		})
	}
	_, stderr, exit := program(t, "verify", "-cert", good, filepath.Join(t.TempDir(), "none"))
	require.Equal(t, 3, exit)
	require.Contains(t, stderr, "no such file")
}
