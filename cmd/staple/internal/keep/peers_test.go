//go:build unix

package keep

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// A town is a folder with a certificate, its responder on loopback, and programs. Its time is real.
type town struct {
	*testing.T
	ca        *stapletest.CA
	responder *stapletest.Responder
	url, dir  string
	cert      tls.Certificate
	address   string // of the server under test
}

func newTown(t *testing.T) *town {
	c := &town{T: t, ca: world.CA(), address: "127.0.0.1:" + peer.FreePort(t)}
	c.responder = stapletest.NewResponder(c.ca)
	server := httptest.NewServer(c.responder)
	t.Cleanup(server.Close)
	c.url = server.URL
	base := os.TempDir()
	if strings.ContainsAny(base, " \t") { // which these servers' configurations would have to quote
		base = "/tmp"
	}
	var err error
	c.dir, err = os.MkdirTemp(base, "keep")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(c.dir) })
	require.NoError(t, os.Chmod(c.dir, 0o755)) // for servers that change who they are
	require.NoError(t, os.Mkdir(c.path("certs"), 0o755))
	c.renew()
	return c
}

func (c *town) path(name string) string { return filepath.Join(c.dir, name) }

// renew writes a new certificate with its key.
func (c *town) renew() {
	c.cert = c.ca.Leaf(stapletest.LeafOptions{Names: []string{"localhost"}, Responders: []string{c.url}})
	data := append(encode(c.cert.Certificate...), keyPEM(c, c.cert)...)
	require.NoError(c, os.WriteFile(c.path("new"), data, 0o644))
	require.NoError(c, os.Rename(c.path("new"), c.path("certs/site.pem")))
}

// A process is a program that was started.
type process struct {
	cmd   *exec.Cmd
	log   *output
	ended chan struct{}
}

func (c *town) program(cmd *exec.Cmd) *process {
	c.Helper()
	p := &process{cmd: cmd, log: new(output), ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	require.NoError(c, cmd.Start())
	go func() {
		defer close(p.ended)
		cmd.Wait()
	}()
	c.Cleanup(func() {
		p.stop()
		if c.Failed() {
			c.Logf("%s: %s", cmd, p.log)
		}
	})
	return p
}

// stop sends SIGTERM, and returns the exit code, and how long that took.
func (p *process) stop() (exit int, took time.Duration) {
	began := time.Now()
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		p.cmd.Process.Kill()
		<-p.ended
	}
	return p.cmd.ProcessState.ExitCode(), time.Since(began)
}

func command(args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), "STAPLE_TEST_KEEP=1", "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	return cmd
}

func (c *town) keep(args ...string) *process { return c.program(command(args...)) }

func (c *town) once(args ...string) (exit int, said string) {
	c.Helper()
	cmd := command(append([]string{"-once"}, args...)...)
	out, err := cmd.CombinedOutput()
	if failed, is := errors.AsType[*exec.ExitError](err); !is {
		require.NoError(c, err)
	} else if failed.ExitCode() < 0 {
		c.Fatalf("%v: %s", err, out)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// eventually requires that f returns no error before long.
func (c *town) eventually(what string, f func() error) {
	c.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	c.Fatalf("%s: %v", what, err)
}

// handshake returns what the server staples about the present certificate: "none", "good", "revoked", or why it is refused.
func (c *town) handshake() (word string, der []byte, err error) {
	ctx, cancel := context.WithTimeout(c.Context(), 10*time.Second)
	defer cancel()
	conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: c.ca.Roots(), ServerName: "localhost"}}).DialContext(ctx, "tcp", c.address)
	if err != nil {
		return "", nil, err
	}
	defer conn.Close()
	cs := conn.(*tls.Conn).ConnectionState()
	if !cs.PeerCertificates[0].Equal(c.cert.Leaf) {
		return "another certificate", nil, nil
	}
	if len(cs.OCSPResponse) == 0 {
		return "none", nil, nil
	}
	r, _, err := new(staple.ResponseVerifier).Verify(cs.OCSPResponse, c.cert.Leaf, c.ca.Issuer, time.Now())
	if err != nil {
		return err.Error(), cs.OCSPResponse, nil
	}
	return map[int]string{ocsp.Good: "good", ocsp.Revoked: "revoked", ocsp.Unknown: "unknown"}[r.Status], cs.OCSPResponse, nil
}

// staples requires that the server staples what word says before long, and until then nothing that is refused.
func (c *town) staples(word string) (der []byte) {
	c.Helper()
	var refused time.Time
	c.eventually("staples "+word, func() error {
		got, response, err := c.handshake()
		if err != nil {
			return err
		}
		switch got {
		case word:
			der = response
			return nil
		case "none", "good", "revoked", "another certificate":
			refused = time.Time{}
		default: // it has just ended, and the server is to be told
			if refused.IsZero() {
				refused = time.Now()
			}
			if time.Since(refused) > 4*time.Second {
				c.Fatalf("for four seconds it was refused: %s", got)
			}
		}
		return fmt.Errorf("it is %s", got)
	})
	return der
}

func (c *town) file(name string) []byte {
	data, err := os.ReadFile(c.path(name))
	require.NoError(c, err)
	return data
}

func (c *town) serves() {
	c.Helper()
	c.eventually("serves", func() error {
		conn, err := net.Dial("tcp", c.address)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

func left(age, left time.Duration) stapletest.Answer {
	return stapletest.Answer{Age: age, Validity: age + left}
}

const haproxyConfig = `
global
	stats socket DIR/sock mode 600 level admin
defaults
	mode http
	timeout client 10s
	timeout server 10s
	timeout connect 10s
frontend site
	bind ADDRESS ssl crt DIR/certs
	http-request return status 200
`

func (c *town) haproxy() *process {
	path := peer.Need(c, "haproxy")
	config := strings.NewReplacer("DIR", c.dir, "ADDRESS", c.address).Replace(haproxyConfig)
	require.NoError(c, os.WriteFile(c.path("haproxy.cfg"), []byte(config), 0o644))
	p := c.program(exec.Command(path, "-f", c.path("haproxy.cfg")))
	c.serves()
	return p
}

// HAProxy staples a response until five minutes before its end.
func TestHAProxyStaplesWhatIsKept(t *testing.T) {
	t.Parallel()
	c := newTown(t)
	socket := c.path("sock")
	c.responder.Set(nil, left(400*time.Second, 800*time.Second))
	exit, said := c.once(c.path("certs"))
	require.Equal(t, well, exit, said)
	server := c.haproxy()
	first := c.staples("good")
	require.Equal(t, c.file("certs/site.pem.ocsp"), first, "from the file at load")

	// Renewed, through the runtime API.
	c.responder.Set(nil, left(390*time.Second, 311*time.Second))
	require.NoError(t, os.Remove(c.path("certs/site.pem.ocsp")))
	keeper := c.keep("-haproxy", socket, c.path("certs"))
	c.eventually("renewed", func() error {
		got := c.staples("good")
		if lies, err := os.ReadFile(c.path("certs/site.pem.ocsp")); err != nil || string(lies) != string(got) {
			return errors.New("not yet")
		}
		return nil
	})
	require.NotEqual(t, first, c.staples("good"))
	exit, took := keeper.stop()
	require.Equal(t, well, exit)
	require.Less(t, took, 2*time.Second)

	// An outage longer than the staple lasts, and its end.
	c.responder.Set(nil, stapletest.Answer{HTTPStatus: 500, Body: []byte("down")})
	exit, _ = c.once("-haproxy", socket, c.path("certs"))
	require.Equal(t, soon, exit)
	c.staples("good")
	c.staples("none")
	c.responder.Set(nil, left(395*time.Second, 310*time.Second))
	exit, said = c.once("-haproxy", socket, c.path("certs"))
	require.Equal(t, well, exit, said)
	require.Equal(t, c.file("certs/site.pem.ocsp"), c.staples("good"))

	// Revoked.
	c.responder.Set(nil, stapletest.Answer{Status: ocsp.Revoked})
	exit, _ = c.once("-haproxy", socket, c.path("certs"))
	require.Equal(t, broken, exit)
	c.staples("revoked")
	server.stop()
	require.NoFileExists(t, c.path("certs/site.pem.ocsp"))
	server = c.haproxy()
	c.staples("none")

	// It takes none for what had none when it was loaded; a file that is empty is enough.
	c.responder.Set(nil, left(100*time.Second, 400*time.Second))
	exit, said = c.once("-haproxy", socket, c.path("certs"))
	require.Equal(t, well, exit)
	require.Contains(t, said, "reload it")
	c.staples("none")
	server.stop()
	require.NoError(t, os.WriteFile(c.path("certs/site.pem.ocsp"), nil, 0o644))
	c.haproxy()
	c.staples("none")
	exit, said = c.once("-haproxy", socket, c.path("certs"))
	require.Equal(t, well, exit, said)
	require.Empty(t, said)
	c.staples("good")
}

const nginxConfig = `USER
daemon off;
pid DIR/nginx.pid;
error_log stderr;
events {}
http {
	access_log off;
	client_body_temp_path DIR/body;
	proxy_temp_path DIR/proxy;
	fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi;
	scgi_temp_path DIR/scgi;
	server {
		listen ADDRESS ssl;
		ssl_certificate DIR/certs/site.pem;
		ssl_certificate_key DIR/certs/site.pem;
		include DIR/certs/site.pem.stapling*;
	}
}
`

// snippets returns the command that writes what the configuration includes.
func (c *town) snippets() string {
	require.NoError(c, os.WriteFile(c.path("stapling.sh"), []byte(example(c, "stapling.sh")), 0o755))
	return fmt.Sprintf("sh '%s' '%s'/certs/*.pem", c.path("stapling.sh"), c.dir)
}

// nginx starts it, and returns the command that has it staple what is kept.
func (c *town) nginx() (reload string) {
	path := peer.Need(c, "nginx")
	user := ""
	if os.Geteuid() == 0 {
		user = "user www-data;"
	}
	config := strings.NewReplacer("USER", user, "DIR", c.dir, "ADDRESS", c.address).Replace(nginxConfig)
	require.NoError(c, os.WriteFile(c.path("nginx.conf"), []byte(config), 0o644))
	server := c.program(exec.Command(path, "-e", "stderr", "-p", c.dir, "-c", c.path("nginx.conf")))
	c.serves()
	c.Cleanup(func() { require.NotContains(c, server.log.String(), "[emerg]") })
	return fmt.Sprintf("%s && '%s' -e stderr -p '%s' -c '%s' -s reload", c.snippets(), path, c.dir, c.path("nginx.conf"))
}

func TestNginxStaplesWhatIsKept(t *testing.T) {
	t.Parallel()
	c := newTown(t)
	c.responder.Set(nil, validity(8*time.Second))
	exit, said := c.once("-exec", c.snippets(), c.path("certs"))
	require.Equal(t, well, exit, said)
	reload := c.nginx()
	first := c.staples("good")
	c.keep("-exec", reload, c.path("certs"))
	c.eventually("renewed", func() error {
		if der := c.staples("good"); string(der) == string(first) {
			return errors.New("the first response still")
		}
		return nil
	})

	// An outage longer than the staple lasts, and its end.
	c.responder.Set(nil, stapletest.Answer{HTTPStatus: 500, Body: []byte("down")})
	c.staples("none")
	require.NoFileExists(t, c.path("certs/site.pem.ocsp"))
	c.responder.Set(nil, validity(8*time.Second))
	c.staples("good")

	// A new certificate.
	c.renew()
	c.staples("good")

	// Revoked, and replaced.
	c.responder.Set(c.cert.Leaf, stapletest.Answer{Status: ocsp.Revoked})
	c.staples("none")
	require.NoFileExists(t, c.path("certs/site.pem.ocsp"))
	c.renew()
	c.staples("good")
}

var outage = flag.Duration("outage", 0, "how long TestAnOutageIsSeenOut has the responder down; half an hour at least")

// A response that outlasts an outage is stapled all through it, by both servers, and a newer one soon after it.
func TestAnOutageIsSeenOut(t *testing.T) {
	if *outage < 30*time.Minute {
		t.Skip("takes longer than -outage, in real time")
	}
	haproxy := func(c *town) (keeper []string) {
		exit, said := c.once(c.path("certs"))
		require.Equal(c, well, exit, said)
		c.haproxy()
		return []string{"-haproxy", c.path("sock")}
	}
	nginx := func(c *town) (keeper []string) {
		exit, said := c.once("-exec", c.snippets(), c.path("certs"))
		require.Equal(c, well, exit, said)
		return []string{"-exec", c.nginx()}
	}
	for name, start := range map[string]func(c *town) (keeper []string){"HAProxy": haproxy, "nginx": nginx} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newTown(t)
			lasts := *outage + 400*time.Second // HAProxy staples nothing in the last five minutes
			c.responder.Set(nil, left(lasts, lasts))
			flags := start(c)
			first := c.staples("good")
			c.responder.Set(nil, stapletest.Answer{HTTPStatus: 503})
			before := len(c.responder.Requests(nil))
			c.keep(append(flags, c.path("certs"))...)
			handshakes, began := 0, time.Now()
			for ; time.Since(began) < *outage; time.Sleep(100 * time.Millisecond) {
				word, der, err := c.handshake()
				require.NoError(t, err)
				require.Equal(t, "good", word, time.Since(began))
				require.Equal(t, first, der)
				handshakes++
			}
			asked := len(c.responder.Requests(nil)) - before
			require.Positive(t, asked)
			c.responder.Reset(nil)
			ended := time.Now()
			for string(c.staples("good")) == string(first) {
				require.Less(t, time.Since(ended), 2*time.Minute)
				time.Sleep(100 * time.Millisecond)
			}
			t.Logf("%d handshakes in %v were stapled, and %d requests made; a new response was stapled %v after",
				handshakes, *outage, asked, time.Since(ended).Round(time.Second))
		})
	}
}

func TestLighttpdStaplesWhatIsKept(t *testing.T) {
	t.Parallel()
	c := newTown(t)
	lighttpd := peer.Need(t, "lighttpd")
	_, port, _ := net.SplitHostPort(c.address)
	config := fmt.Sprintf(`server.modules = ("mod_openssl")
server.document-root = %q
server.bind = "127.0.0.1"
server.port = %s
ssl.engine = "enable"
ssl.pemfile = %q
ssl.stapling-file = %q
`, c.dir, port, c.path("certs/site.pem"), c.path("certs/site.pem.ocsp"))
	require.NoError(t, os.WriteFile(c.path("lighttpd.conf"), []byte(config), 0o644))
	if out, err := exec.Command(lighttpd, "-tt", "-f", c.path("lighttpd.conf")).CombinedOutput(); err != nil {
		peer.Missing(t, "lighttpd with mod_openssl", fmt.Errorf("%w: %s", err, out))
	}
	start := func() *process {
		p := c.program(exec.Command(lighttpd, "-D", "-f", c.path("lighttpd.conf")))
		c.serves()
		return p
	}
	server := start()
	c.staples("none") // it starts without the file
	server.stop()
	exit, said := c.once(c.path("certs"))
	require.Equal(t, well, exit, said)
	start()
	require.Equal(t, c.file("certs/site.pem.ocsp"), c.staples("good"))
}

func TestSIGTERMEndsWithinTwoSecondsWhateverHangs(t *testing.T) {
	t.Parallel()
	c := newTown(t)
	exit, said := c.once(c.path("certs"))
	require.Equal(t, well, exit, said)
	before := c.file("certs/site.pem.ocsp")
	other := c.ca.Leaf(stapletest.LeafOptions{Names: []string{"other"}, Responders: []string{c.url}})
	c.responder.Set(other.Leaf, stapletest.Answer{Hang: true})
	require.NoError(t, os.WriteFile(c.path("certs/other.pem"), encode(other.Certificate...), 0o644))
	deaf, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and never says anything
	require.NoError(t, err)
	defer deaf.Close()
	third := c.ca.Leaf(stapletest.LeafOptions{Names: []string{"third"}, Responders: []string{c.url}})
	require.NoError(t, os.WriteFile(c.path("certs/third.pem"), encode(third.Certificate...), 0o644))
	p := c.keep("-exec", "echo begun; sleep 1000", "-haproxy", deaf.Addr().String(), "-status", "127.0.0.1:0", c.path("certs"))
	c.eventually("the command runs", func() error {
		if !strings.Contains(p.log.String(), "begun") {
			return errors.New("not yet")
		}
		return nil
	})

	// SIGHUP ends nothing, and what lies there is seen at once.
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGHUP))
	c.eventually("the third", func() error { _, err := os.Stat(c.path("certs/third.pem.ocsp")); return err })
	exit, took := p.stop()
	require.Equal(t, well, exit, p.log)
	require.Less(t, took, 2*time.Second)
	require.Equal(t, before, c.file("certs/site.pem.ocsp"), "files stay")
}

func TestTheStatusPage(t *testing.T) {
	t.Parallel()
	c := newTown(t)
	port := peer.FreePort(t)
	c.keep("-status", ":"+port, c.path("certs"))
	page := "http://127.0.0.1:" + port + "/"
	c.eventually("it shows the certificate", func() error {
		status, body, err := fetch("GET", page)
		if err == nil && (status != 200 || !strings.Contains(body, "localhost") || !strings.Contains(body, "stapled")) {
			err = errors.New(body)
		}
		return err
	})
	page += "?cert=" + keyOf(c.cert.Leaf.Raw)
	status, body, err := fetch("GET", page)
	require.NoError(t, err)
	require.Equal(t, 200, status)
	require.NotContains(t, body, `method="post"`)
	status, _, err = fetch("POST", page)
	require.NoError(t, err)
	require.Equal(t, 405, status)
}
