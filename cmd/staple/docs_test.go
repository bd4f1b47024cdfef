package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/internal/testhttp"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

const docsFile = "../../docs/command.md"

var others = flag.Bool("others", false, "ask testssl.sh and ssl_exporter too, which takes minutes")

// What tests write or check of it.
var (
	consoles  = regexp.MustCompile("(?s)<!-- situation: ([^\n]*) -->\n```console\n(.*?)```\n")
	tables    = regexp.MustCompile("(?s)<!-- comparison -->\n(.*?)<!-- end -->\n")
	scanners  = regexp.MustCompile("(?s)<!-- others -->\n(.*?)<!-- end -->\n")
	jqFilter  = regexp.MustCompile(`(?s)jq -r '\n(.*?)'`)
	jqPrinted = regexp.MustCompile("(?s)<!-- what jq writes -->\n```\n(.*?)```\n")
)

func readDocs(t *testing.T) string {
	text, err := os.ReadFile(docsFile)
	require.NoError(t, err)
	return string(text)
}

// settle writes the text, if -update is set, and requires otherwise that it is what stands there.
func settle(t *testing.T, text string) {
	if *update {
		require.NoError(t, os.WriteFile(docsFile, []byte(text), 0o666))
		return
	}
	require.Equal(t, readDocs(t), text, "go test ./cmd/staple -run TestDocs -update")
}

// situations are what docs/command.md shows commands in. There is always a chain.pem of www.example.com, its leaf.pem, and a
// root.pem and an issuer.pem.
var situations = map[string]func(w *lab, cert tls.Certificate) tls.Certificate{
	"good": func(w *lab, cert tls.Certificate) tls.Certificate {
		return w.stapling(cert, stapletest.Answer{Age: 30 * time.Hour})
	},
	"missing": func(w *lab, cert tls.Certificate) tls.Certificate {
		return cert
	},
	"ended": func(w *lab, cert tls.Certificate) tls.Certificate {
		return w.stapling(cert, stapletest.Answer{Age: 8 * day})
	},
	"revoked": func(w *lab, cert tls.Certificate) tls.Certificate {
		w.responder.Set(cert.Leaf, stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise})
		return w.stapling(cert, stapletest.Answer{Age: 30 * time.Hour})
	},
	"trouble": func(w *lab, cert tls.Certificate) tls.Certificate {
		w.responder.Set(cert.Leaf, stapletest.Answer{HTTPStatus: 502, Body: []byte("bad gateway"), Delay: 1200 * time.Millisecond})
		return w.stapling(cert, stapletest.Answer{Age: 30 * time.Hour})
	},
}

// TestDocs runs the commands in docs/command.md, and requires that they print what stands there.
func TestDocs(t *testing.T) {
	text := readDocs(t)
	require.NotEmpty(t, consoles.FindAllString(text, -1))
	text = consoles.ReplaceAllStringFunc(text, func(block string) (now string) {
		m := consoles.FindStringSubmatch(block)
		t.Run(m[1], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				now = fmt.Sprintf("<!-- situation: %s -->\n```console\n%s```\n", m[1], inSituation(t, m[1], commandsOf(m[2])))
			})
		})
		return now
	})
	settle(t, text)
}

// commandsOf returns the lines of a console that are typed.
func commandsOf(console string) (lines []string) {
	for line := range strings.Lines(console) {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			lines = append(lines, strings.TrimSpace(command))
		}
	}
	return lines
}

func inSituation(t *testing.T, name string, commands []string) string {
	time.Sleep(time.Until(time.Date(2026, 12, 1, 9, 30, 0, 0, time.UTC)))
	require.Contains(t, situations, name)
	w := newLab(t)
	w.ca = stapletest.NewCA(stapletest.CAOptions{Name: "Example CA", Intermediate: true, Seed: "docs/command.md"})
	w.responder = stapletest.NewResponder(w.ca)
	w.responder.Set(nil, stapletest.Answer{Age: 6 * time.Hour, Delay: 23 * time.Millisecond})
	cert := w.leaf(func(o *stapletest.LeafOptions) {
		o.Names, o.Responders = []string{"www.example.com"}, []string{"http://ocsp.example.com"}
		o.NotAfter = time.Now().Add(60 * day).Truncate(time.Hour)
	})
	t.Chdir(t.TempDir())
	for file, data := range map[string][]byte{"chain.pem": chainPEM(cert), "leaf.pem": certPEM(cert.Leaf), "root.pem": certPEM(w.ca.Root), "issuer.pem": certPEM(w.ca.Issuer)} {
		require.NoError(t, os.WriteFile(file, data, 0o600))
	}
	w.hosts["www.example.com:443"] = serving(&tls.Config{Certificates: []tls.Certificate{situations[name](w, cert)}})
	w.hosts["mail.example.com:25"] = script(&tls.Config{Certificates: []tls.Certificate{cert}}, "220 mail.example.com ESMTP\r\n", "EHLO localhost\r\n",
		"250-mail.example.com\r\n250 STARTTLS\r\n", "STARTTLS\r\n", "220 go ahead\r\n")

	var printed strings.Builder
	exit := 0
	for _, command := range commands {
		fmt.Fprintf(&printed, "$ %s\n", command)
		if command == "echo $?" {
			fmt.Fprintln(&printed, exit)
			continue
		}
		args := strings.Fields(command)
		require.Equal(t, "staple", args[0])
		var out bytes.Buffer
		switch args[1] {
		case "check":
			c := checker{newClient: w.newClient}
			c.dial = w.dial
			exit = c.run(t.Context(), args[2:], &out, &out)
		case "fetch":
			exit = fetch(t.Context(), w.newClient(false), args[2:], &out, &out)
		default:
			exit = run(t.Context(), args[1:], &out, &out)
		}
		printed.Write(out.Bytes())
	}
	return printed.String()
}

// TestDocsOfPrometheus has jq do what docs/command.md says.
func TestDocsOfPrometheus(t *testing.T) {
	jq := peer.Need(t, "jq")
	text := readDocs(t)
	filter := jqFilter.FindStringSubmatch(text)
	require.NotNil(t, filter)
	var lines string
	synctest.Test(t, func(t *testing.T) {
		lines = inSituation(t, "good", []string{"staple check -json www.example.com gone.example.com"})
	})
	lines = regexp.MustCompile(`(?m)^[^{].*\n`).ReplaceAllString(lines, "")
	cmd := exec.CommandContext(t.Context(), jq, "-r", filter[1])
	cmd.Stdin = strings.NewReader(lines)
	printed, err := cmd.Output()
	require.NoError(t, err)
	require.Regexp(t, jqPrinted, text)
	settle(t, jqPrinted.ReplaceAllLiteralString(text, "<!-- what jq writes -->\n```\n"+string(printed)+"```\n"))
}

// A comparison is a situation that staple and openssl are shown.
type comparison struct {
	name     string
	staple   func(w *lab, cert tls.Certificate) []byte
	answer   stapletest.Answer
	down     bool // the responder
	mustHave bool // a staple
}

func comparisons() []comparison {
	says := func(a stapletest.Answer) func(*lab, tls.Certificate) []byte {
		return func(w *lab, cert tls.Certificate) []byte { return w.stapling(cert, a).OCSPStaple }
	}
	fresh := says(stapletest.Answer{})
	none := func(*lab, tls.Certificate) []byte { return nil }
	var all []comparison
	add := func(name string, staple func(*lab, tls.Certificate) []byte, edit ...func(*comparison)) {
		c := comparison{name: name, staple: staple}
		for _, e := range edit {
			e(&c)
		}
		all = append(all, c)
	}
	add("good", fresh)
	add("nothing stapled, though the responder answers", none)
	add("Must-Staple, and nothing stapled", none, func(c *comparison) { c.mustHave = true })
	add("a staple that has a day left of seven", says(stapletest.Answer{Age: 6 * day}))
	add("a staple that ended a day ago", says(stapletest.Answer{Age: 8 * day}))
	add("a staple that says revoked", says(stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise}), func(c *comparison) {
		c.answer = stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise}
	})
	add("a good staple, and the responder says revoked", fresh, func(c *comparison) {
		c.answer = stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise}
	})
	add("a staple that says unknown", says(stapletest.Answer{Status: ocsp.Unknown}), func(c *comparison) { c.answer = stapletest.Answer{Status: ocsp.Unknown} })
	add("a staple signed by a stranger", says(stapletest.Answer{Signer: stapletest.NewCA(stapletest.CAOptions{Name: "Stranger"}).Signer()}))
	add("a staple about another certificate", func(w *lab, cert tls.Certificate) []byte {
		return w.stapling(w.leaf(), stapletest.Answer{}).OCSPStaple
	})
	add("a staple that is the error tryLater", says(stapletest.Answer{Error: ocsp.TryLater}))
	add("a good staple, and the responder is down", fresh, func(c *comparison) { c.down = true })
	return all
}

// A comparedHost is there while it is looked at.
type comparedHost struct {
	comparison
	address string // as 127.0.0.1:port
	asked   string // the URL of its responder
	leaf    []byte // PEM
}

// eachCompared starts a host for every comparison, one after another, and the authority's responder.
func eachCompared(t *testing.T, look func(h comparedHost, root []byte)) {
	w := newLab(t)
	w.ca = stapletest.NewCA(stapletest.CAOptions{Name: "Example CA"})
	w.responder = stapletest.NewResponder(w.ca)
	url := testhttp.NewServer(t, w.responder)
	closed := testhttp.ClosedServer()
	for _, c := range comparisons() {
		at := url
		if c.down {
			at = closed
		}
		cert := w.leaf(func(o *stapletest.LeafOptions) {
			o.Names, o.Responders, o.MustStaple = []string{"localhost"}, []string{at}, c.mustHave
		})
		w.responder.Set(cert.Leaf, c.answer)
		shown := cert
		shown.OCSPStaple = c.staple(w, cert)
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		stop := testhttp.Serve(listener, serving(&tls.Config{Certificates: []tls.Certificate{shown}}))
		look(comparedHost{c, listener.Addr().String(), at, certPEM(cert.Leaf)}, certPEM(w.ca.Root))
		stop()
	}
}

// TestDocsOfComparison asks openssl about what staple is asked about, and requires that docs/command.md has what both say.
func TestDocsOfComparison(t *testing.T) {
	openssl := peer.Need(t, "openssl")
	dir := t.TempDir()
	root := filepath.Join(dir, "root.pem")
	table := "| | `staple check -ca root.pem` | `openssl s_client -status -CAfile root.pem` | `openssl ocsp -CAfile root.pem` |\n| --- | --- | --- | --- |\n"
	eachCompared(t, func(h comparedHost, rootPEM []byte) {
		require.NoError(t, os.WriteFile(root, rootPEM, 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "leaf.pem"), h.leaf, 0o600))

		stdout, _, exit := program(t, "check", "-json", "-servername", "localhost", "-ca", root, h.address)
		var line jsonLine
		require.NoError(t, json.Unmarshal([]byte(stdout), &line))
		said := []string{line.Verdict}
		if line.Error != "" {
			said = append(said, line.Error)
		}
		client, clientExit := linesOf(t, dir, openssl, `OCSP response: no response sent|OCSP Response Status: .*|Responder Error: .*|Cert Status: .*|Revocation Reason: .*|Verify return code: .*`,
			"s_client", "-status", "-CAfile", "root.pem", "-servername", "localhost", "-connect", h.address)
		asked, askedExit := linesOf(t, dir, openssl, `Response verify OK|Response Verify Failure|leaf\.pem: .*|Reason: .*|WARNING: .*|Responder Error: .*|Error querying OCSP responder`,
			"ocsp", "-CAfile", "root.pem", "-issuer", "root.pem", "-cert", "leaf.pem", "-url", h.asked)
		table += fmt.Sprintf("| %s | %s | %s | %s |\n", h.name, cell(exit, said), cell(clientExit, client), cell(askedExit, asked))
	})
	text := readDocs(t)
	require.Regexp(t, tables, text)
	settle(t, tables.ReplaceAllLiteralString(text, "<!-- comparison -->\n"+table+"<!-- end -->\n"))
}

// TestDocsOfOthers asks testssl.sh and ssl_exporter about the hosts of TestDocsOfComparison, if -others is set, and requires that
// docs/command.md has what both say. There must be no way out of the machine: testssl.sh asks others than the responder, too.
func TestDocsOfOthers(t *testing.T) {
	if !*others {
		t.Skip("this test takes minutes, and runs with -others")
	}
	testssl, exporter := peer.Need(t, "testssl", "testssl.sh"), peer.Need(t, "ssl_exporter")
	interfaces, err := net.Interfaces()
	require.NoError(t, err)
	for _, i := range interfaces {
		require.NotZero(t, i.Flags&net.FlagLoopback, "not in a network of its own (docs/command.md has the command): there is %s", i.Name)
	}
	dir := t.TempDir()
	table := "| | `testssl.sh -S --phone-out --add-ca root.pem` | `ssl_exporter` |\n| --- | --- | --- |\n"
	eachCompared(t, func(h comparedHost, rootPEM []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "root.pem"), rootPEM, 0o600))
		_, port, err := net.SplitHostPort(h.address)
		require.NoError(t, err)
		lines, exit := linesOf(t, dir, testssl, `OCSP URI .*|OCSP stapling .*|OCSP must staple extension +[^- ].*`,
			"-S", "--phone-out", "--add-ca", filepath.Join(dir, "root.pem"), "--quiet", "--color", "0", "--warnings", "batch", "--nodns", "none", "--ip", "127.0.0.1", "localhost:"+port)
		require.NotEmpty(t, lines, h.name)
		for i, line := range lines {
			lines[i] = regexp.MustCompile(` {2,}`).ReplaceAllLiteralString(line, ": ")
		}
		table += fmt.Sprintf("| %s | %s | %s |\n", h.name, cell(exit, lines), joined(runExporter(t, dir, exporter, h.address)))
	})
	text := readDocs(t)
	require.Regexp(t, scanners, text)
	settle(t, scanners.ReplaceAllLiteralString(text, "<!-- others -->\n"+table+"<!-- end -->\n"))
}

// runExporter returns the metrics that a probe of address gives and that tell of its staple, without the ssl_ they begin with, and
// times as days from now.
func runExporter(t *testing.T, dir, exporter, address string) (lines []string) {
	config := "modules:\n  tcp:\n    prober: tcp\n    tls_config:\n      server_name: localhost\n      ca_file: root.pem\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "exporter.yaml"), []byte(config), 0o600))
	listen := "127.0.0.1:" + peer.FreePort(t)
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, exporter, "--config.file=exporter.yaml", "--web.listen-address="+listen)
	cmd.Dir = dir
	require.NoError(t, cmd.Start())
	defer func() {
		cancel()
		_ = cmd.Wait()
	}()
	var body []byte
	require.Eventually(t, func() bool {
		r, err := http.Get("http://" + listen + "/probe?module=tcp&target=" + url.QueryEscape(address))
		if err != nil {
			return false
		}
		defer r.Body.Close()
		body, err = io.ReadAll(r.Body)
		return err == nil && r.StatusCode == http.StatusOK
	}, 30*time.Second, 100*time.Millisecond)
	for _, name := range []string{"probe_success", "ocsp_response_stapled", "ocsp_response_status", "ocsp_response_next_update"} {
		m := regexp.MustCompile(`(?m)^ssl_` + name + ` (\S+)$`).FindSubmatch(body)
		require.NotNil(t, m, "%s: %s", name, body)
		value := string(m[1])
		if seconds, err := strconv.ParseFloat(value, 64); err == nil && seconds > 1e9 {
			value = fmt.Sprintf("%+dd", time.Until(time.Unix(int64(seconds), 0)).Round(time.Hour)/day)
		}
		lines = append(lines, name+" "+value)
	}
	return lines
}

// changing is what differs from one run to the next.
var changing = []struct {
	what *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`), "…"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "…"},
	{regexp.MustCompile(`serial (\w\w:)+\w\w`), "serial …"},
	{regexp.MustCompile(`\|`), `\|`},
}

func cell(exit int, lines []string) string {
	return joined(append([]string{fmt.Sprintf("exit %d", exit)}, lines...))
}

func joined(lines []string) string {
	var safe []string
	for _, line := range lines {
		for _, c := range changing {
			line = c.what.ReplaceAllLiteralString(line, c.with)
		}
		safe = append(safe, strings.NewReplacer("<", "&lt;", ">", "&gt;").Replace(line))
	}
	return strings.Join(safe, "<br>")
}

// linesOf runs a program in dir, and returns what it prints of lines, each once.
func linesOf(t *testing.T, dir, program, lines string, args ...string) (printed []string, exit int) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	out, _ := cmd.CombinedOutput()
	for _, m := range regexp.MustCompile(`(?m)^\s*(`+lines+`)\s*$`).FindAllStringSubmatch(string(out), -1) {
		if line := strings.TrimSpace(m[1]); !slices.Contains(printed, line) {
			printed = append(printed, line)
		}
	}
	return printed, cmd.ProcessState.ExitCode()
}
