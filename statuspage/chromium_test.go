package statuspage

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"github.com/go-staple/staple/internal/peer"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A browser is a tab of a headless Chromium, driven with the DevTools protocol over two pipes: messages
// in JSON, each ended by a NUL.
type browser struct {
	t       *testing.T
	to      *os.File
	session string
	id      int

	mu       sync.Mutex
	changed  *sync.Cond
	answers  map[int]message
	closed   error
	loads    int      // pages loaded
	requests []string // addresses asked for, but for data:
	troubles []string // on the console
}

type message struct {
	ID     int             `json:"id,omitempty"`
	Method string          `json:"method,omitempty"`
	Params json.RawMessage `json:"params,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error,omitempty"`
	Session string `json:"sessionId,omitempty"`
}

func startBrowser(t *testing.T, flags ...string) *browser {
	path := peer.Need(t, "chromium", "chromium-browser")
	flags = append([]string{"--headless", "--remote-debugging-pipe", "--user-data-dir=" + t.TempDir(), "--disable-gpu",
		"--disable-quic", "--disable-dev-shm-usage", "--no-first-run", "--no-default-browser-check", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars"}, flags...)
	if os.Geteuid() == 0 {
		flags = append(flags, "--no-sandbox")
	}
	in, to, err := os.Pipe()
	require.NoError(t, err)
	from, out, err := os.Pipe()
	require.NoError(t, err)
	cmd := exec.Command(path, flags...)
	cmd.ExtraFiles = []*os.File{in, out} // descriptors 3 and 4
	require.NoError(t, cmd.Start())
	in.Close()
	out.Close()
	b := &browser{t: t, to: to, answers: make(map[int]message)}
	b.changed = sync.NewCond(&b.mu)
	read := make(chan struct{})
	go func() {
		defer close(read)
		b.read(bufio.NewReader(from))
	}()
	t.Cleanup(func() {
		b.session = ""
		b.send("Browser.close", nil)
		exited := make(chan error, 1)
		go func() { exited <- cmd.Wait() }()
		select {
		case <-exited:
		case <-time.After(time.Minute):
			cmd.Process.Kill()
			<-exited
		}
		to.Close()
		from.Close()
		<-read
	})
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		b.call(domain+".enable", nil, nil)
	}
	return b
}

// read takes what Chromium says until it ends.
func (b *browser) read(r *bufio.Reader) {
	for {
		raw, err := r.ReadBytes(0)
		b.mu.Lock()
		if err != nil {
			b.closed = err
			b.changed.Broadcast()
			b.mu.Unlock()
			return
		}
		var m message
		if err := json.Unmarshal(raw[:len(raw)-1], &m); err != nil {
			b.troubles = append(b.troubles, err.Error())
		}
		switch m.Method {
		case "":
			b.answers[m.ID] = m
		case "Page.loadEventFired":
			b.loads++
		case "Network.requestWillBeSent":
			var p struct{ Request struct{ Method, URL string } }
			json.Unmarshal(m.Params, &p)
			if !strings.HasPrefix(p.Request.URL, "data:") {
				b.requests = append(b.requests, p.Request.Method+" "+p.Request.URL)
			}
		case "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded":
			b.troubles = append(b.troubles, m.Method+": "+string(m.Params))
		}
		b.changed.Broadcast()
		b.mu.Unlock()
	}
}

func (b *browser) send(method string, params any) int {
	b.id++
	raw, err := json.Marshal(params)
	require.NoError(b.t, err)
	if params == nil {
		raw = nil
	}
	m, err := json.Marshal(message{ID: b.id, Method: method, Params: raw, Session: b.session})
	require.NoError(b.t, err)
	b.to.Write(append(m, 0)) // its end shows when reading
	return b.id
}

// call has Chromium do something, and stores what it returns in result unless that is nil.
func (b *browser) call(method string, params, result any) {
	b.t.Helper()
	id := b.send(method, params)
	var m message
	b.wait(method, func() (ok bool) {
		m, ok = b.answers[id]
		delete(b.answers, id)
		return ok
	})
	require.Nil(b.t, m.Error, "%s: %+v", method, m.Error)
	if result != nil {
		require.NoError(b.t, json.Unmarshal(m.Result, result))
	}
}

// wait waits until done, for a minute at most.
func (b *browser) wait(what string, done func() bool) {
	b.t.Helper()
	timeout := time.AfterFunc(time.Minute, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.closed = errors.New("a minute has passed")
		b.changed.Broadcast()
	})
	defer timeout.Stop()
	b.mu.Lock()
	for !done() {
		if err := b.closed; err != nil {
			b.mu.Unlock()
			require.NoError(b.t, err, what)
		}
		b.changed.Wait()
	}
	b.mu.Unlock()
}

// eval evaluates an expression in the page and stores its value in result.
func (b *browser) eval(expression string, result any) {
	b.t.Helper()
	var r struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails json.RawMessage
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &r)
	require.Empty(b.t, string(r.ExceptionDetails), expression)
	require.NoError(b.t, json.Unmarshal(r.Result.Value, result), expression)
}

func (b *browser) text(expression string) (s string) {
	b.t.Helper()
	b.eval(expression, &s)
	return s
}

// loading does something that loads a page, and waits for that.
func (b *browser) loading(what string, do func()) {
	b.t.Helper()
	b.mu.Lock()
	before := b.loads
	b.mu.Unlock()
	do()
	b.wait("load of "+what, func() bool { return b.loads > before })
}

func (b *browser) open(url string) {
	b.t.Helper()
	b.loading(url, func() {
		var r struct{ ErrorText string }
		b.call("Page.navigate", map[string]any{"url": url}, &r)
		require.Empty(b.t, r.ErrorText, url)
	})
}

// show sets the size of the window, in CSS pixels, and the colour scheme.
func (b *browser) show(width, height int, scheme string) {
	b.t.Helper()
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height,
		"deviceScaleFactor": 1, "mobile": width < 600}, nil)
	b.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{
		{"name": "prefers-color-scheme", "value": scheme}}}, nil)
}

var keys = map[string]struct {
	code int
	text string
}{"Tab": {9, ""}, "Enter": {13, "\r"}}

func (b *browser) press(key string) {
	b.t.Helper()
	k := keys[key]
	down := map[string]any{"type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": k.code}
	if k.text != "" {
		down["text"] = k.text
	}
	b.call("Input.dispatchKeyEvent", down, nil)
	b.call("Input.dispatchKeyEvent", map[string]any{"type": "keyUp", "key": key, "code": key, "windowsVirtualKeyCode": k.code}, nil)
}

func (b *browser) enter(text string) {
	b.t.Helper()
	b.call("Input.insertText", map[string]any{"text": text}, nil)
}

// screenshot stores a picture of the page, down to maxHeight pixels, in the directory that STAPLE_SCREENSHOTS
// names, or in a temporary one.
func (b *browser) screenshot(name string) {
	b.t.Helper()
	dir := os.Getenv("STAPLE_SCREENSHOTS")
	if dir == "" {
		dir = b.t.TempDir()
	}
	const maxHeight = 4000
	var size struct{ Width, Height float64 }
	b.eval(`({width: innerWidth, height: document.documentElement.scrollHeight})`, &size)
	var shot struct{ Data string }
	b.call("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true, "clip": map[string]any{
		"x": 0, "y": 0, "width": size.Width, "height": min(size.Height, maxHeight), "scale": 1}}, &shot)
	png, err := base64.StdEncoding.DecodeString(shot.Data)
	require.NoError(b.t, err)
	require.NoError(b.t, os.MkdirAll(dir, 0o755))
	require.NoError(b.t, os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644))
}

// quiet asserts that nothing has shown on the console, and that nothing was asked for but these.
func (b *browser) quiet(requests ...string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Empty(b.t, b.troubles)
	require.Equal(b.t, requests, b.requests, fmt.Sprint(b.requests))
	b.requests = nil
}
