//go:build unix

package keep

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// ran returns what a command that appends STAPLE_FILES and a line with a dash to a file was told, run by run.
func (s *scene) ran() (runs [][]string) {
	s.Helper()
	data, err := os.ReadFile(s.path("ran"))
	if os.IsNotExist(err) {
		return nil
	}
	require.NoError(s, err)
	for run := range strings.SplitSeq(strings.TrimSuffix(string(data), "-\n"), "-\n") {
		var names []string
		for line := range strings.Lines(run) {
			names = append(names, strings.TrimPrefix(strings.TrimSpace(line), s.dir+"/"))
		}
		runs = append(runs, names)
	}
	return runs
}

func TestTheCommandRunsOnceForTheChangesOfASecond(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip(err)
	}
	play(t, func(s *scene) {
		command := fmt.Sprintf(`{ printf '%%s\n' "$STAPLE_FILES"; echo -; } >>'%s'`, s.path("ran"))
		require.NoError(t, os.Mkdir(s.path("certs"), 0o755))
		a, _ := s.chain("certs/a.pem"), s.chain("certs/b.pem")
		s.start("-exec", command, "./certs")
		require.True(t, s.exists("certs/a.pem.ocsp"))
		require.Empty(t, s.ran())
		s.pass(1500 * time.Millisecond)
		require.Equal(t, [][]string{{"certs/a.pem.ocsp", "certs/b.pem.ocsp"}}, s.ran())
		s.chain("certs/c.pem")
		s.pass(2200 * time.Millisecond)
		require.Equal(t, [][]string{{"certs/c.pem.ocsp"}}, s.ran()[1:])

		// What is removed is told of, too: the chain is gone, or revoked.
		s.Responder.Set(a, stapletest.Answer{Status: ocsp.Revoked})
		s.remove("certs/b.pem")
		s.refresh()
		s.pass(3 * time.Second)
		told := s.ran()[2:]
		require.Contains(t, fmt.Sprint(told), "certs/a.pem.ocsp")
		require.Contains(t, fmt.Sprint(told), "certs/b.pem.ocsp")
		n := len(s.ran())
		s.pass(10 * time.Minute)
		require.Len(t, s.ran(), n, "nothing has changed")

		// What has changed just before the end is told of.
		s.chain("certs/d.pem")
		s.pass(1100 * time.Millisecond)
		require.True(t, s.exists("certs/d.pem.ocsp"))
		require.Len(t, s.ran(), n)
		require.Equal(t, well, s.stop())
		require.Equal(t, [][]string{{"certs/d.pem.ocsp"}}, s.ran()[n:])

		s.chain("certs/e.pem")
		s.chain("certs/f.pem")
		exit, _ := s.once("-exec", command, "./certs")
		require.Equal(t, broken, exit, "one is revoked")
		require.Equal(t, [][]string{{"certs/e.pem.ocsp", "certs/f.pem.ocsp"}}, s.ran()[n+1:])
	})
}

func TestACommandThatFailsOrHangsIsReported(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip(err)
	}
	play(t, func(s *scene) {
		s.chain("a.pem")
		exit, _ := s.once("-exec", "echo trouble; exit 3", "./a.pem")
		require.Equal(t, soon, exit)
		require.Contains(t, s.log.String(), "trouble\n")
		require.Contains(t, s.log.String(), "exit status 3")
	})
	var log output
	r := newRunner("sleep 1000 & echo $!", &log, newKeeper(options{}, nil, &log).log)
	r.add("a.ocsp")
	require.True(t, r.flush(t.Context()), "what a command leaves in the background is waited for by nobody")
	left, err := strconv.Atoi(strings.TrimSpace(log.String()))
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(left, syscall.SIGKILL))
}

// Linux gives a variable 128 KiB.
func TestVeryManyFilesAreToldOfInSeveralRuns(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip(err)
	}
	var log output
	r := newRunner(`printf '%s\n' "$STAPLE_FILES"; echo -`, &log, newKeeper(options{}, nil, &log).log)
	for i := range 5000 {
		r.add(fmt.Sprintf("/a/rather/long/path/to/responses/%04d.example.com/fullchain.pem.ocsp", i))
	}
	require.True(t, r.flush(t.Context()))
	require.Equal(t, 5000, strings.Count(log.String(), "fullchain"))
	require.Equal(t, 4, strings.Count(log.String(), "-\n"))
}

func TestNamesWithControlCharactersAreRefused(t *testing.T) {
	play(t, func(s *scene) {
		s.chain("a\nb.pem")
		s.chain("c\x1b[31m.pem")
		exit, _ := s.once(".")
		require.Equal(t, untold, exit)
		require.Equal(t, 2, strings.Count(s.log.String(), "control character"), s.log)
		require.Equal(t, 2, strings.Count(s.log.String(), "\n"))
		require.NotContains(t, s.log.String(), "\x1b")
		require.Len(t, s.names(), 2)
		require.Empty(t, s.Responder.Requests(nil))
		s.start(".")
		s.pass(time.Minute)
		require.Len(t, s.names(), 2)
	})
}

// A fakeHAProxy answers each connection with reply, and closes it.
type fakeHAProxy struct {
	net.Listener
	mu    sync.Mutex
	reply string
	told  [][]byte
}

func newFakeHAProxy(t *testing.T, network, address string) *fakeHAProxy {
	l, err := net.Listen(network, address)
	require.NoError(t, err)
	f := &fakeHAProxy{Listener: l, reply: "OCSP Response updated!\n\n"}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go f.serve(conn)
		}
	}()
	return f
}

func (f *fakeHAProxy) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	line, _ := r.ReadString('\n')
	payload := ""
	for {
		next, err := r.ReadString('\n')
		if err != nil || next == "\n" {
			break
		}
		payload += strings.TrimSpace(next)
	}
	der, err := base64.StdEncoding.DecodeString(payload)
	f.mu.Lock()
	reply := f.reply
	if line == "set ssl ocsp-response <<\n" && err == nil {
		f.told = append(f.told, der)
	}
	f.mu.Unlock()
	for reply == "endless" {
		if _, err := conn.Write(make([]byte, 1<<10)); err != nil {
			return
		}
	}
	io.WriteString(conn, reply)
}

func (f *fakeHAProxy) answer(reply string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reply = reply
}

func (f *fakeHAProxy) last() (der []byte, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n = len(f.told); n > 0 {
		der = f.told[n-1]
	}
	return der, n
}

func TestHAProxyIsToldOfEachNewResponse(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			address := "127.0.0.1:0"
			if network == "unix" {
				address = filepath.Join(t.TempDir(), "sock")
			}
			f := newFakeHAProxy(t, network, address)
			play(t, func(s *scene) {
				s.Responder.Set(nil, validity(time.Hour))
				leaf := s.chain("a.pem")
				s.start("-haproxy", f.Addr().String(), ".")
				s.pass(time.Second)
				first := s.read("a.pem.ocsp")
				der, n := f.last()
				require.Equal(t, first, der)
				require.Equal(t, 1, n)
				s.pass(45 * time.Minute)
				der, n = f.last()
				require.Equal(t, s.read("a.pem.ocsp"), der)
				require.NotEqual(t, first, der)
				require.Equal(t, 2, n)
				s.start("-haproxy", f.Addr().String(), ".")
				s.pass(time.Second)
				_, n = f.last()
				require.Equal(t, 3, n, "it may have loaded an older one meanwhile")

				// HAProxy has no command to drop one: told that it is revoked, it says so.
				s.Responder.Set(leaf, stapletest.Answer{Status: ocsp.Revoked})
				s.refresh()
				s.pass(time.Second)
				require.False(t, s.exists("a.pem.ocsp"))
				der, _ = f.last()
				r, err := ocsp.ParseResponse(der, s.CA.Issuer)
				require.NoError(t, err)
				require.Equal(t, ocsp.Revoked, r.Status)
				_, n = f.last()
				s.start("-haproxy", f.Addr().String(), ".")
				s.pass(time.Minute)
				_, again := f.last()
				require.Equal(t, n, again, "it has no good one")
			})
		})
	}
}

func (s *scene) read(name string) []byte {
	s.Helper()
	data, err := os.ReadFile(s.path(name))
	require.NoError(s, err)
	return data
}

func TestASocketThatFailsIsReportedAndTriedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	play(t, func(s *scene) {
		leaf := s.chain("a.pem")
		exit, _ := s.once("-haproxy", path, ".")
		require.Equal(t, soon, exit)
		require.Equal(t, 1, strings.Count(s.log.String(), "\n"), s.log)
		s.good("a.pem.ocsp", leaf)
		s.log = new(output)
		s.start("-haproxy", path, ".")
		s.pass(time.Minute)
		require.Equal(t, 1, strings.Count(s.log.String(), "HAProxy cannot be told"), s.log)
		var f *fakeHAProxy
		outside(func() { f = newFakeHAProxy(t, "unix", path) })
		s.pass(6 * time.Second)
		der, _ := f.last()
		require.Equal(t, s.read("a.pem.ocsp"), der)
		require.Contains(t, s.log.String(), "HAProxy can be told again")
		s.stop()

		for reply, want := range map[string]string{
			"":                    "says nothing",
			"Permission denied\n": "level admin",
			"OCSP single response: Certificate ID does not match any certificate or issuer.\n\n": "reload it",
			"OCSP single response: missing nextupdate.\n\n":                                      "HAProxy refuses a response",
			"endless": "HAProxy refuses a response",
		} {
			f.answer(reply)
			s.log = new(output)
			s.start("-haproxy", path, ".")
			s.pass(time.Minute)
			require.Equal(t, 1, strings.Count(s.log.String(), "level=WARN"), s.log)
			require.Contains(t, s.log.String(), want)
			require.Less(t, len(s.log.String()), 2000)
			s.good("a.pem.ocsp", leaf)
		}
	})
}

// outside runs f in a goroutine of no bubble, which channels made in one are not for.
func outside(f func()) {
	jobs <- f
	<-done
}

var jobs, done = make(chan func()), make(chan struct{})

func init() {
	go func() {
		for f := range jobs {
			f()
			done <- struct{}{}
		}
	}()
}

func TestAnAddressWithoutAHostIsOnLoopback(t *testing.T) {
	for address, want := range map[string]string{":0": "127.0.0.1", "0": "127.0.0.1", "localhost:0": "127.0.0.1", "0.0.0.0:0": "0.0.0.0"} {
		l, err := listen(address)
		require.NoError(t, err, address)
		defer l.Close()
		ip := l.Addr().(*net.TCPAddr).IP
		if want == "0.0.0.0" {
			require.True(t, ip.IsUnspecified())
		} else {
			require.True(t, ip.IsLoopback(), address)
		}
	}
	var log output
	require.Equal(t, untold, Main(t.Context(), []string{"-status", "nonsense", "."}, &log, &log))
	require.Equal(t, 1, strings.Count(log.String(), "\n"))
}

func TestTheStatusPageHasNoButtonAndKnowsItsHost(t *testing.T) {
	loopback, other := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {})
	for _, test := range []struct {
		at   net.Addr
		host string
		want int
	}{
		{loopback, "127.0.0.1:8080", 200}, {loopback, "localhost:8080", 200}, {loopback, "localhost", 200}, {loopback, "[::1]:8080", 200},
		{loopback, "attacker.example:8080", 421}, {loopback, "192.0.2.7", 421}, {loopback, "", 421}, {other, "status.example", 200},
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = test.host
		local(test.at, h).ServeHTTP(w, r)
		require.Equal(t, test.want, w.Code, test.host)
	}
}

func TestHelpFitsAScreen(t *testing.T) {
	var out, log output
	require.Equal(t, well, Main(t.Context(), []string{"-h"}, &out, &log))
	require.Empty(t, log.String())
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	require.LessOrEqual(t, len(lines), 24)
	for _, line := range lines {
		require.LessOrEqual(t, len(line), 80)
	}
}

func TestWrongUsageIsOneLine(t *testing.T) {
	for name, args := range map[string][]string{
		"no path":              {},
		"an empty path":        {""},
		"an unknown flag":      {"-nonsense", "."},
		"an empty suffix":      {"-suffix", "", "."},
		"a suffix with a path": {"-suffix", "/../x", "."},
		"a suffix with a line": {"-suffix", "a\nb", "."},
		"json without once":    {"-json", "."},
		"status with once":     {"-once", "-status", ":0", "."},
	} {
		t.Run(name, func(t *testing.T) {
			var out, log output
			require.Equal(t, untold, Main(t.Context(), args, &out, &log))
			require.Empty(t, out.String())
			require.Equal(t, 1, strings.Count(log.String(), "\n"), log.String())
		})
	}
}

func fetch(method, url string) (status int, body string, err error) {
	r, err := http.NewRequest(method, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}
