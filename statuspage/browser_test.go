package statuspage

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/race"
	"github.com/go-staple/staple/stapletest"
)

// A site is a server with a status page at /staples/, which notes what it is asked for.
type site struct {
	*httptest.Server
	mu       sync.Mutex
	requests []string
}

func newSite(t *testing.T, h *Handler) *site {
	s := new(site)
	mux := http.NewServeMux()
	mux.Handle("/staples/", http.StripPrefix("/staples", h))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r.Method+" "+r.URL.String())
		s.mu.Unlock()
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *site) page() string { return s.URL + "/staples/" }

// contrast is the least contrast between text and what is behind it, with the text. WCAG 2.2 AA asks for 4.5.
const contrast = `(() => {
	const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
	const parse = color => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
	const luminance = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
	let least = {ratio: 21, text: ""};
	const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	while (walker.nextNode()) {
		const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
		if (!text || !element.checkVisibility()) continue;
		let behind = element;
		while (behind && parse(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
		const [a, b] = [luminance(parse(getComputedStyle(element).color)), luminance(parse(getComputedStyle(behind).backgroundColor))].sort((a, b) => b - a);
		const ratio = (a + .05) / (b + .05);
		if (ratio < least.ratio) least = {ratio, text};
	}
	return least;
})()`

func TestPagesInChromium(t *testing.T) {
	b := startBrowser(t)
	one := newWorld(t)
	one.add(staplesOf("www.example.com"), good24)
	one.settle()
	fifty := newWorld(t)
	fifty.fifty()
	many := many()
	for _, test := range []struct {
		name    string
		stapler *staple.Stapler
	}{
		{"1", one.stapler},
		{"50", fifty.stapler},
		{fmt.Sprint(many), manyCertificates(t, many)},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSite(t, &Handler{Stapler: test.stapler, Refresh: true})
			id := first(t, test.stapler).ID
			b.t = t
			for _, address := range []struct{ name, url string }{{"list", s.page()}, {"certificate", s.page() + "?cert=" + id}} {
				b.look(address.name+"-"+test.name, address.url)
			}
			for _, r := range s.requests {
				require.True(t, strings.HasPrefix(r, "GET /staples/"), r)
			}
		})
	}
}

func TestPeersInChromium(t *testing.T) {
	b := startBrowser(t)
	w := newWorld(t)
	w.fifty()
	w.oneOfEachPeer()
	s := newSite(t, &Handler{Stapler: w.stapler, Refresh: true})
	b.look("list-beside-peers", s.page())
	b.look("list-peers", s.page()+"?list=peers")
	for _, c := range peersOf(t, &Handler{Stapler: w.stapler}, "state=answered").Peers {
		b.look("peer", s.page()+"?cert="+c.ID)
	}
}

// The picture in README.md: STAPLE_SCREENSHOTS="$PWD/docs" go test -run ThePicture ./statuspage.
func TestThePictureInREADMEShowsThePage(t *testing.T) {
	b := startBrowser(t)
	w := newWorld(t)
	names := func(names ...string) stapletest.LeafOptions { return stapletest.LeafOptions{Names: names} }
	w.add(names("www.example.com", "example.com"), stapletest.Answer{Age: 30 * time.Hour})
	mail := names("mail.example.com")
	mail.Responders = []string{"http://ocsp.example-ca.test/"}
	w.turn(w.addHolding(mail, stapletest.Answer{Age: 6 * day}), unavailable())
	w.add(names("old.example.com"), stapletest.Answer{Status: ocsp.Revoked})
	w.add(stapletest.LeafOptions{Names: []string{"pay.example.com"}, MustStaple: true}, stapletest.Answer{Error: ocsp.TryLater})
	w.settle()
	s := newSite(t, &Handler{Stapler: w.stapler})
	for _, scheme := range []string{"light", "dark"} {
		b.show(1180, 500, scheme)
		b.open(s.page())
		b.screenshot("statuspage-" + scheme)
	}
}

// look opens a page in both schemes and three widths: it fits, and its text can be read.
func (b *browser) look(page, url string) {
	t := b.t
	widths := []int{360, 800, 1280}
	if race.Enabled {
		widths = widths[:1]
	}
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range widths {
			name := fmt.Sprintf("%s-%s-%d", page, scheme, width)
			b.show(width, 800, scheme)
			b.open(url)
			var scroll, inner int
			b.eval(`document.scrollingElement.scrollWidth`, &scroll)
			b.eval(`innerWidth`, &inner)
			require.LessOrEqual(t, scroll, inner, name)
			require.Equal(t, width, inner, name)
			var least struct {
				Ratio float64
				Text  string
			}
			b.eval(contrast, &least)
			require.GreaterOrEqual(t, least.Ratio, 4.5, "%s: %q", name, least.Text)
			b.quiet("GET " + url)
			b.screenshot(name)
		}
	}
}

// active describes what has the keyboard, and whether that shows: its outline is at least two pixels wide.
const active = `(() => {
	const e = document.activeElement, s = getComputedStyle(e);
	const shows = e.matches(":focus-visible") && s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 2;
	return e.tagName + " " + (e.name || e.textContent.trim().replace(/\\s+/g, " ")) + (shows ? "" : " (not visible)");
})()`

func TestKeyboardInChromium(t *testing.T) {
	b := startBrowser(t)
	w := newWorld(t)
	w.oneOfEach()
	s := newSite(t, &Handler{Stapler: w.stapler, Refresh: true})
	for _, width := range []int{1280, 360} {
		b.show(width, 800, "light")
		b.open(s.page())
		tab := func(n int) (all []string) {
			for range n {
				b.press("Tab")
				all = append(all, b.text(active))
			}
			return all
		}
		var want []string
		want = append(want, "A All 9")
		for s := range states(false) {
			want = append(want, "A "+s.Label()+" 1")
		}
		want = append(want, "INPUT q", "BUTTON Search", "A pay.example.com", "A new.example.com")
		require.Equal(t, want, tab(len(want)))

		b.loading("the certificate", func() { b.press("Enter") })
		require.Equal(t, "new.example.com", b.text(`document.querySelector("h1").textContent`))
		require.Equal(t, []string{"A All certificates", "BUTTON Refresh now"}, tab(2))
		b.loading("the refreshed certificate", func() { b.press("Enter") })
		require.Equal(t, "The attempt failed.", b.text(`document.querySelector("[role=status]").textContent`))
		require.Contains(t, b.text(`location.search`), "&asked=ended")
		tab(1)
		b.loading("the list", func() { b.press("Enter") })

		tab(len(want) - 3) // to the search
		require.Equal(t, "INPUT q", b.text(active))
		b.enter("mail smtp")
		b.loading("what is found", func() { b.press("Enter") })
		require.Contains(t, b.text(`document.querySelector("[role=status]").textContent`), "1 certificate found for mail smtp")
		require.Equal(t, "mail.example.com", b.text(`[...document.querySelectorAll("tbody th a")].map(a => a.textContent).join()`))
		tab(6)
		b.loading("a state", func() { b.press("Enter") })
		require.Equal(t, "?q=mail+smtp&state=expiring", b.text(`location.search`))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Empty(t, b.troubles)
	require.Empty(t, b.closed)
}

// A page over plain HTTP from elsewhere than localhost gets no Sec-Fetch-Site, so that Origin has to do.
func TestRefreshInChromium(t *testing.T) {
	b := startBrowser(t, "--host-resolver-rules=MAP *.test 127.0.0.1")
	w := newWorld(t)
	c := w.add(staplesOf("www.example.com"), good24)
	w.settle()
	s := newSite(t, &Handler{Stapler: w.stapler, Refresh: true})
	target := "?cert=" + idOf(c)
	page := strings.Replace(s.page(), "127.0.0.1", "status.test", 1) + target
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `<!doctype html><link rel="icon" href="data:,"><iframe src="%s"></iframe><form method="post" action="%[1]s"><button>Win</button></form>`, page)
	}))
	defer evil.Close()
	asked := func() int { return len(w.responder.Requests(c.Status().Leaf)) }
	b.show(1280, 800, "light")
	for _, base := range []string{s.page() + target, page} {
		b.open(base)
		before := asked()
		b.loading("the refreshed certificate", func() {
			b.call("Runtime.evaluate", map[string]any{"expression": `document.querySelector("form button").click()`}, nil)
		})
		require.Greater(t, asked(), before)
		require.Contains(t, b.text(`document.querySelector("[role=status]").textContent`), "The responder was asked")
		b.quiet("GET "+base, "POST "+base, "GET "+base+"&asked=ended")
	}
	before := asked()
	b.open(strings.Replace(evil.URL, "127.0.0.1", "evil.test", 1))
	var framed int
	b.eval(`frames.length`, &framed)
	require.Equal(t, 1, framed)
	b.loading("the refusal", func() {
		b.call("Runtime.evaluate", map[string]any{"expression": `document.querySelector("form button").click()`}, nil)
	})
	require.Equal(t, "Forbidden", b.text(`document.querySelector("h1").textContent`))
	require.Equal(t, before, asked())
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Contains(t, strings.Join(b.troubles, "\n"), "frame-ancestors")
}

func TestEvilNamesInChromium(t *testing.T) {
	b := startBrowser(t)
	w := newWorld(t)
	for i, name := range []string{`<script>document.title="won"</script>`, strings.Repeat("a-very-long-name.", 40) + "example", "\x1b[31mred",
		strings.Repeat("unbroken", 60)} {
		w.add(stapletest.LeafOptions{Names: []string{"placeholder.example"}, Responders: []string{fmt.Sprintf("http://x%d.test/%s", i, strings.Repeat("long", 100))},
			Template: func(c *x509.Certificate) {
				c.DNSNames = []string{name, "second.example"}
				c.RawSubject, _ = pkixName("\u202egpj.exe" + strings.Repeat("x", 300))
			}}, unavailable())
	}
	many := make([]string, 1000)
	for i := range many {
		many[i] = fmt.Sprintf("san-%d.example", i)
	}
	c := w.add(stapletest.LeafOptions{Names: many, MustStaple: true}, good24)
	w.settle()
	s := newSite(t, &Handler{Stapler: w.stapler, Refresh: true})
	for _, address := range []struct{ name, url string }{
		{"list", s.page() + "?q=" + strings.Repeat("W", 200)}, {"list", s.page()},
		{"certificate", s.page() + "?cert=" + first(t, w.stapler).ID}, {"certificate-1000-names", s.page() + "?cert=" + idOf(c)},
	} {
		for _, width := range []int{1280, 800, 360} {
			b.show(width, 800, "light")
			b.open(address.url)
			var scroll int
			b.eval(`document.scrollingElement.scrollWidth`, &scroll)
			require.LessOrEqual(t, scroll, width, address.url)
			require.NotEqual(t, "won", b.text(`document.title`))
			b.quiet("GET " + address.url)
			b.screenshot(fmt.Sprintf("evil-%s-%d", address.name, width))
		}
	}
}
