//go:build unix

package clients

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"github.com/go-staple/staple/internal/peer"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A remote is the end of a WebSocket (RFC 6455) over which a browser takes commands in JSON: Firefox
// those of WebDriver BiDi, Chromium those of its DevTools protocol.
type remote struct {
	conn net.Conn
	in   *bufio.Reader
	id   int
}

func dial(address string) (*remote, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		return nil, err
	}
	r := &remote{conn: conn, in: bufio.NewReader(conn)}
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", u.Path, u.Host)
	resp, err := http.ReadResponse(r.in, nil)
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		err = fmt.Errorf("%s: %s", address, resp.Status)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return r, nil
}

// call sends a command and decodes its result, if that is not nil. Events are passed over. The error is
// what the browser says.
func (r *remote) call(method string, params map[string]any, result any) error {
	_ = r.conn.SetDeadline(time.Now().Add(time.Minute))
	r.id++
	if params == nil {
		params = map[string]any{}
	}
	command, err := json.Marshal(map[string]any{"id": r.id, "method": method, "params": params})
	if err != nil {
		return err
	}
	frame := []byte{0x81} // one frame of text, masked, though anybody may see it
	if n := len(command); n < 126 {
		frame = append(frame, 0x80|byte(n))
	} else {
		frame = binary.BigEndian.AppendUint16(append(frame, 0x80|126), uint16(n)) // none is longer
	}
	const mask = 1 // Firefox takes 0 for none
	frame = append(frame, mask, mask, mask, mask)
	for _, b := range command {
		frame = append(frame, b^mask)
	}
	if _, err := r.conn.Write(frame); err != nil {
		return err
	}
	for {
		message, err := r.read()
		if err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
		var answer struct {
			ID      int
			Result  json.RawMessage
			Error   json.RawMessage
			Message string // of BiDi; DevTools have it in Error
		}
		if err := json.Unmarshal(message, &answer); err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
		switch {
		case answer.ID != r.id:
		case answer.Error != nil:
			return fmt.Errorf("%s: %s %s", method, answer.Error, answer.Message)
		case result != nil:
			return json.Unmarshal(answer.Result, result)
		default:
			return nil
		}
	}
}

// read returns the next message.
func (r *remote) read() ([]byte, error) {
	var message []byte
	for {
		var header [2]byte
		if _, err := io.ReadFull(r.in, header[:]); err != nil {
			return nil, err
		}
		length := uint64(header[1])
		if extended := map[byte]int{126: 2, 127: 8}[header[1]]; extended > 0 {
			var buf [8]byte
			if _, err := io.ReadFull(r.in, buf[8-extended:]); err != nil {
				return nil, err
			}
			length = binary.BigEndian.Uint64(buf[:])
		}
		if length > 64<<20 {
			return nil, fmt.Errorf("a frame of %d bytes", length)
		}
		payload := make([]byte, length)
		if _, err := io.ReadFull(r.in, payload); err != nil {
			return nil, err
		}
		switch opcode := header[0] & 0xf; {
		case opcode == 8:
			return nil, io.EOF
		case opcode > 8: // a ping
		default:
			message = append(message, payload...)
			if header[0]&0x80 != 0 {
				return message, nil
			}
		}
	}
}

// start runs a browser until the test ends, and returns the WebSocket address that it prints.
func start(t *testing.T, home, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = environment(home)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	said, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	drained := make(chan struct{})
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-drained // all of its processes have ended
		_ = cmd.Wait()
	})

	address := make(chan string, 1)
	go func() {
		defer close(drained)
		defer close(address)
		var all []string
		for lines := bufio.NewScanner(said); lines.Scan(); {
			all = append(all, lines.Text())
			if _, url, ok := strings.Cut(lines.Text(), " listening on ws://"); ok {
				address <- "ws://" + url
				_, _ = io.Copy(io.Discard, said)
				return
			}
		}
		t.Logf("%s ended:\n%s", program, strings.Join(all, "\n"))
	}()
	select {
	case a, ok := <-address:
		require.True(t, ok, "%s does not listen", program)
		return a
	case <-time.After(time.Minute):
		require.FailNow(t, "no address", program)
		return ""
	}
}

// trust makes an NSS database in dir that trusts the roots, and has the certificates and keys of files in PKCS #12.
func trust(t *testing.T, dir string, roots []string, own ...string) {
	require.NoError(t, os.MkdirAll(dir, 0o700))
	run := func(program string, args ...string) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, peer.Need(t, program), append(args, "-d", "sql:"+dir)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	run("certutil", "-N", "--empty-password")
	for _, root := range roots {
		run("certutil", "-A", "-n", filepath.Base(root), "-t", "C,,", "-i", root)
	}
	for _, p12 := range own {
		run("pk12util", "-i", p12, "-W", password)
	}
}

// keep writes a screenshot, if somebody wants it.
func keep(t *testing.T, name string, png []byte) {
	require.True(t, strings.HasPrefix(string(png), "\x89PNG"), "a screenshot")
	if dir := os.Getenv("STAPLE_SCREENSHOTS"); dir != "" {
		require.NoError(t, os.MkdirAll(dir, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644))
	}
}

// firefoxPrefs send whatever Firefox wants of the world to a proxy that is not there; localhost needs none.
const firefoxPrefs = `
user_pref("network.proxy.type", 1);
user_pref("network.proxy.http", "127.0.0.1");
user_pref("network.proxy.http_port", 9);
user_pref("network.proxy.ssl", "127.0.0.1");
user_pref("network.proxy.ssl_port", 9);
user_pref("network.proxy.failover_direct", false);
user_pref("network.proxy.allow_bypass", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("network.dns.disablePrefetch", true);
user_pref("network.trr.mode", 5);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("security.default_personal_cert", "Select Automatically");
`

// chromiumPrefs have Chromium take the client certificate that it has, where it would ask its user.
const chromiumPrefs = `{"profile": {"content_settings": {"exceptions": {"auto_select_certificate": {
	"https://localhost,*": {"setting": {"filters": [{}]}}}}}}}`

// firefoxPage is the text of a page, when it is there; of an error page when it tells the reason, which
// some do behind a button. Error pages come after the navigation has failed.
const firefoxPage = `(() => {
	if (!document.documentURI.startsWith("about:")) return document.body.innerText;
	const card = document.querySelector("net-error-card")?.shadowRoot;
	const text = card?.querySelector("article")?.innerText ?? "";
	if (text.includes("_ERROR_")) return text;
	if (!card?.querySelector(".advanced-container")) card?.querySelector("#advanced-button")?.click();
	return "";
})()`

var firefoxReason = regexp.MustCompile(`\b(SEC|SSL|MOZILLA_PKIX)_ERROR_\w+`)

func runFirefox(t *testing.T, l *lab) (version string, cells []string) {
	version, load := openFirefox(t, l.roots)
	for _, server := range l.servers {
		text, err := load(server.url(), server.slug())
		cells = append(cells, judge(server.text(), text, err, firefoxReason))
	}
	return version, cells
}

// openFirefox starts Firefox, with the client certificates of the files own. What it shows of a URL, load returns, and the
// error of the navigation; a screenshot is kept under that name.
func openFirefox(t *testing.T, roots []string, own ...string) (version string, load func(url, name string) (text string, err error)) {
	program := peer.Need(t, "firefox-esr")
	home := t.TempDir()
	profile := filepath.Join(home, "profile")
	trust(t, profile, roots, own...)
	require.NoError(t, os.WriteFile(filepath.Join(profile, "user.js"), []byte(firefoxPrefs), 0o600))

	address := start(t, home, program, "--headless", "--no-remote", "--profile", profile, "--remote-debugging-port", "0", "about:blank")
	r, err := dial(address + "/session")
	require.NoError(t, err)
	t.Cleanup(func() { r.conn.Close() })
	var session struct {
		Capabilities struct{ BrowserVersion string }
	}
	require.NoError(t, r.call("session.new", map[string]any{"capabilities": map[string]any{}}, &session))
	return session.Capabilities.BrowserVersion, func(url, name string) (string, error) {
		var tab struct{ Context string }
		require.NoError(t, r.call("browsingContext.create", map[string]any{"type": "tab"}, &tab))
		err := r.call("browsingContext.navigate", map[string]any{"context": tab.Context, "url": url, "wait": "complete"}, nil)
		wait := 2 * time.Minute
		if err != nil && strings.Contains(err.Error(), "NS_ERROR_ABORT") {
			wait = 5 * time.Second // the page stays blank
		}
		var page struct{ Result struct{ Value string } }
		for end := time.Now().Add(wait); page.Result.Value == "" && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
			_ = r.call("script.evaluate", map[string]any{"expression": firefoxPage,
				"target": map[string]any{"context": tab.Context}, "awaitPromise": false}, &page)
		}
		var screenshot struct{ Data []byte }
		require.NoError(t, r.call("browsingContext.captureScreenshot", map[string]any{"context": tab.Context}, &screenshot))
		keep(t, "firefox-"+name, screenshot.Data)
		require.NoError(t, r.call("browsingContext.close", map[string]any{"context": tab.Context}, nil))
		return page.Result.Value, err
	}
}

var chromiumReason = regexp.MustCompile(`net::\w+`)

func runChromium(t *testing.T, l *lab) (version string, cells []string) {
	version, load := openChromium(t, l.roots)
	for _, server := range l.servers {
		text, err := load(server.url(), server.slug())
		cells = append(cells, judge(server.text(), text, err, chromiumReason))
	}
	return version, cells
}

// openChromium is like openFirefox.
func openChromium(t *testing.T, roots []string, own ...string) (version string, load func(url, name string) (text string, err error)) {
	program := peer.Need(t, "chromium")
	home := t.TempDir()
	trust(t, filepath.Join(home, ".pki", "nssdb"), roots, own...)
	profile := filepath.Join(home, "profile")
	require.NoError(t, os.MkdirAll(filepath.Join(profile, "Default"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(profile, "Default", "Preferences"), []byte(chromiumPrefs), 0o600))

	address := start(t, home, program, "--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
		"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost",
		"--remote-debugging-port=0", "--user-data-dir="+profile, "about:blank")
	r, err := dial(address)
	require.NoError(t, err)
	t.Cleanup(func() { r.conn.Close() })
	var browser struct{ Product string }
	require.NoError(t, r.call("Browser.getVersion", nil, &browser))
	pages, _, ok := strings.Cut(address, "/browser/")
	require.True(t, ok, address)
	_, version, _ = strings.Cut(browser.Product, "/")
	return version, func(url, name string) (string, error) {
		var target struct{ TargetID string }
		require.NoError(t, r.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target))
		page, err := dial(pages + "/page/" + target.TargetID)
		require.NoError(t, err)
		defer page.conn.Close()
		var navigated struct{ ErrorText string }
		require.NoError(t, page.call("Page.navigate", map[string]any{"url": url}, &navigated))
		if navigated.ErrorText != "" {
			err = fmt.Errorf("%s", navigated.ErrorText)
		}
		var shown struct{ Result struct{ Value string } }
		for end := time.Now().Add(time.Minute); shown.Result.Value == ""; time.Sleep(50 * time.Millisecond) {
			require.True(t, time.Now().Before(end), "nothing is shown")
			require.NoError(t, page.call("Runtime.evaluate", map[string]any{"expression": "location.href != 'about:blank' && " +
				"document.readyState == 'complete' ? document.body.innerText : ''"}, &shown))
		}
		var screenshot struct{ Data []byte }
		require.NoError(t, page.call("Page.captureScreenshot", nil, &screenshot))
		keep(t, "chromium-"+name, screenshot.Data)
		return shown.Result.Value, err
	}
}

// judge says what a browser did.
func judge(served, text string, err error, reason *regexp.Regexp) string {
	switch {
	case err != nil && reason.MatchString(err.Error()):
		return "refused: " + reason.FindString(err.Error())
	case err != nil:
		return "refused: " + err.Error()
	case text != served:
		return "shows " + text
	default:
		return "loads"
	}
}
