package statuspage

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
)

// meet has a client with this certificate come, about which the responder says a.
func (w *world) meet(checker *staple.Checker, o stapletest.LeafOptions, a stapletest.Answer) error {
	w.hosts++
	if o.Responders == nil {
		o.Responders = []string{fmt.Sprintf("http://ocsp%d.example-ca.test/", w.hosts)}
	}
	cert := w.ca.Leaf(o)
	w.responder.Set(cert.Leaf, a)
	return checker.VerifyConnection(arrival(cert.Leaf, w.ca.Issuer, w.ca.Root))
}

func arrival(chain ...*x509.Certificate) tls.ConnectionState {
	return tls.ConnectionState{Version: tls.VersionTLS13, PeerCertificates: chain[:1], VerifiedChains: [][]*x509.Certificate{chain}}
}

// oneOfEachPeer has a peer in each state come, in the reverse of the order in which they are listed.
func (w *world) oneOfEachPeer() {
	checker := &staple.Checker{Stapler: w.stapler, LeafOnly: true, Timeout: time.Minute}
	require.NoError(w.t, w.meet(checker, stapletest.LeafOptions{Names: []string{"silent.client"}, Responders: []string{}}, stapletest.Answer{}))
	require.NoError(w.t, w.meet(checker, staplesOf("good.client"), stapletest.Answer{Age: 30 * time.Hour}))
	impatient := &staple.Checker{Stapler: w.stapler, LeafOnly: true, Timeout: time.Nanosecond}
	require.ErrorIs(w.t, w.meet(impatient, staplesOf("hang.client"), stapletest.Answer{}), staple.ErrUnanswered)
	require.NoError(w.t, w.meet(checker, stapletest.LeafOptions{Names: []string{"gone.client"}, Responders: []string{},
		NotAfter: time.Now().Add(-time.Second)}, stapletest.Answer{}))
	require.ErrorIs(w.t, w.meet(checker, staplesOf("old.client"), stapletest.Answer{Status: ocsp.Revoked}), staple.ErrRevoked)
	require.ErrorIs(w.t, w.meet(checker, staplesOf("new.client"), unavailable()), staple.ErrUnanswered)
}

// shown returns a page without its head and the icons.
func shown(body string) string {
	_, rest, _ := strings.Cut(body, "<header")
	return rest
}

func peersOf(t *testing.T, h http.Handler, query string) PeerList {
	t.Helper()
	r, body := get(t, h, "/?list=peers&format=json&"+query)
	require.Equal(t, http.StatusOK, r.StatusCode, body)
	return decode[PeerList](t, body)
}

// TestEveryStateHasOneSpelling is about words, colours and icons, and goes by the order of the states.
func TestEveryStateHasOneSpelling(t *testing.T) {
	var served, peers, all []string
	for s := staple.StateMustStapleMissing; !strings.HasPrefix(s.String(), "State("); s++ {
		require.Less(t, int(s), len(stateTexts))
		all = append(all, s.String())
		require.NotEmpty(t, state{s}.Label())
		require.Contains(t, style, ".s-"+s.String())
		require.Contains(t, source, `id="i-`+s.String()+`"`)
		for _, of := range []struct {
			peers bool
			names *[]string
		}{{false, &served}, {true, &peers}} {
			named, ok := stateNamed(s.String(), of.peers)
			require.Equal(t, state{s}.Meaning(of.peers) != "", ok)
			if ok {
				require.Equal(t, s, named.State)
				*of.names = append(*of.names, s.String())
			}
		}
	}
	require.Len(t, all, len(stateTexts)-1)
	require.Equal(t, strings.Fields("must-staple-missing unstapled revoked expired expiring failing waiting stapled no-responder"), served)
	require.Equal(t, strings.Fields("unanswered revoked expired waiting answered no-responder"), peers)
	for _, of := range []struct {
		peers bool
		names []string
	}{{false, served}, {true, peers}} {
		var ranged []string
		for s := range states(of.peers) {
			ranged = append(ranged, s.String())
		}
		require.Equal(t, of.names, ranged)
	}
}

func TestPeersAreListedApartFromWhatIsServed(t *testing.T) {
	w := newWorld(t)
	w.add(staplesOf("www.example.com"), good24)
	w.settle()
	h := &Handler{Stapler: w.stapler}
	_, before := get(t, h, "/")
	require.NotContains(t, before, "eers", "where there is no Checker")
	w.oneOfEachPeer()
	certificates := listOf(t, h, "")

	require.Equal(t, []string{"www.example.com"}, namesOf(certificates))
	require.Equal(t, []int{1, 1, 1}, []int{certificates.Total, certificates.Matching, certificates.States["stapled"]})
	require.Len(t, certificates.States, 9)
	require.NotContains(t, certificates.States, "unanswered")
	require.Empty(t, listOf(t, h, "q=client").Certificates)
	one := map[string]int{"unanswered": 1, "revoked": 1, "expired": 1, "waiting": 1, "answered": 1, "no-responder": 1}
	require.Equal(t, PeerCounts{6, one}, certificates.Peers)
	_, body := get(t, h, "/")
	require.NotContains(t, body, ".client")
	require.Contains(t, body, "Nothing needs attention: 1 certificate.")
	require.Contains(t, body, `<a href="?list=peers" class="chip all">All <b>6</b></a>`)
	require.Regexp(t, `<a href="\?list=peers&amp;state=unanswered" class="chip s-unanswered">.*?Unanswered <b>1</b></a>`, body)

	l := peersOf(t, h, "")
	require.Equal(t, PeerCounts{6, one}, l.PeerCounts)
	var got []string
	for _, c := range l.Peers {
		require.True(t, c.Peer)
		require.False(t, c.Stapled)
		got = append(got, c.State+" "+c.Names[0])
	}
	require.Equal(t, []string{"unanswered new.client", "revoked old.client", "expired gone.client", "waiting hang.client",
		"answered good.client", "no-responder silent.client"}, got)
	require.Contains(t, l.Peers[0].Error, "503")
	good := l.Peers[4]
	require.WithinDuration(t, time.Now().Add(-30*time.Hour), good.ThisUpdate, time.Minute)
	require.Equal(t, good.ThisUpdate.Add(7*day), good.Expires)
	require.Regexp(t, `^http://ocsp\d\.example-ca\.test/$`, good.Responder)

	_, body = get(t, h, "/?list=peers")
	require.NotContains(t, body, "www.example.com")
	require.Contains(t, body, "Nobody answers about 1 of 6 peers.")
	require.Contains(t, body, "<title>(1) OCSP answers about peers")
	require.Contains(t, body, `<a href="?">All certificates</a>`)
	require.Contains(t, body, `as of <time datetime="`+good.ThisUpdate.Format(time.RFC3339)+`" title="`+good.ThisUpdate.Format("2006-01-02 15:04:05 UTC")+`">1 d 6 h ago</time>`)
	require.Regexp(t, `ends <time [^>]*>in 5 d (17|18) h</time>`, body)
	require.Contains(t, body, good.Responder)
	require.Contains(t, body, "503 Service Unavailable")
	require.NotContains(t, body, "Must-Staple")
	require.NotContains(t, shown(body), "apled", "nobody staples a peer's")
	at := 0
	for s := range states(true) {
		table := body[strings.LastIndex(body, "<tbody"):]
		next := strings.Index(table, s.Label()+"</span>")
		require.Greater(t, next, at, s)
		at = next
		require.Contains(t, body, `href="?list=peers&amp;state=`+s.String()+`"`)
	}
}

func TestAPeerThatIsServedAsWellIsAmongTheCertificates(t *testing.T) {
	w := newWorld(t)
	served := w.add(staplesOf("both.example"), good24)
	w.settle()
	checker := &staple.Checker{Stapler: w.stapler, LeafOnly: true}
	require.NoError(t, checker.VerifyConnection(arrival(served.Status().Leaf, w.ca.Issuer, w.ca.Root)))
	h := &Handler{Stapler: w.stapler}
	require.Equal(t, []string{"both.example"}, namesOf(listOf(t, h, "")))
	require.Empty(t, peersOf(t, h, "").Peers)
	require.Zero(t, listOf(t, h, "").Peers.Total)
	_, body := get(t, h, "/?list=peers")
	require.Contains(t, body, "No peer is remembered.")
	require.False(t, detailOf(t, h, served).Peer)

	served.Remove()
	require.Empty(t, listOf(t, h, "").Certificates)
	require.Equal(t, "answered", peersOf(t, h, "").Peers[0].State)
	require.True(t, detailOf(t, h, served).Peer)
}

func TestSearchFilterAndPagesOfPeers(t *testing.T) {
	h := &Handler{Stapler: manyPeers(t, 230)}
	seen := map[string]bool{}
	for page := 1; page <= 5; page++ {
		l := peersOf(t, h, fmt.Sprint("page=", page))
		require.Equal(t, []int{230, 230, page, 5}, []int{l.Total, l.Matching, l.Page, l.Pages})
		for _, c := range l.Peers {
			seen[c.ID] = true
		}
	}
	require.Len(t, seen, 230)
	require.Empty(t, peersOf(t, h, "page=6").Peers)
	require.Empty(t, listOf(t, h, "per=1000").Certificates)

	l := peersOf(t, h, "state=unanswered")
	require.Equal(t, 2, l.Matching)
	require.Len(t, l.Peers, 2)
	require.Equal(t, 1, peersOf(t, h, "q=client-000017").Matching)
	_, body := get(t, h, "/?list=peers&page=3&q=client&state=answered&per=20")
	for _, link := range []string{"?list=peers&per=20&q=client&state=answered", "?list=peers&page=2&per=20&q=client&state=answered",
		"?list=peers&page=4&per=20&q=client&state=answered", "?list=peers&page=12&per=20&q=client&state=answered",
		"?list=peers", "?list=peers&page=3&per=20&q=client&state=answered&format=json"} {
		require.Contains(t, body, `<a href="`+html.EscapeString(link)+`"`)
	}
	require.Contains(t, body, `<input type="hidden" name="list" value="peers">`)
	require.Contains(t, body, "228 peers found")
	for _, wrong := range []string{"list=peers&state=stapled", "state=answered", "state=unanswered", "list=certificates"} {
		r, _ := get(t, h, "/?"+wrong)
		require.Equal(t, http.StatusBadRequest, r.StatusCode, wrong)
	}
}

func TestAPeerThatDoesNotComeIsNotAskedAbout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		h := &Handler{Stapler: w.stapler}
		checker := &staple.Checker{Stapler: w.stapler, LeafOnly: true}
		require.NoError(t, w.meet(checker, staplesOf("a.client"), stapletest.Answer{Age: 72 * time.Hour}))
		for _, step := range []struct {
			in           time.Duration
			list, detail string
		}{
			{0, `next refresh <time [^>]*>in \d+ h`, `<dt>Next attempt</dt><dd><time`},
			{23 * time.Hour, "asked when it comes again", "<dt>Next attempt</dt><dd>when it comes again</dd>"},
		} {
			time.Sleep(step.in)
			synctest.Wait()
			l := peersOf(t, h, "")
			require.Equal(t, "answered", l.Peers[0].State)
			_, body := get(t, h, "/?list=peers")
			require.Regexp(t, step.list, body)
			_, body = get(t, h, "/?cert="+l.Peers[0].ID)
			require.Regexp(t, step.detail, body)
		}
	})
}

func TestDetailOfAPeer(t *testing.T) {
	w := newWorld(t)
	w.oneOfEachPeer()
	h := &Handler{Stapler: w.stapler, Refresh: true}
	for c := range w.stapler.Peers() {
		d := detailOf(t, h, c)
		require.True(t, d.Peer)
		_, body := get(t, h, "/?cert="+d.ID)
		s, ok := stateNamed(d.State, true)
		require.True(t, ok)
		require.Contains(t, body, html.EscapeString(s.Meaning(true)))
		require.Contains(t, body, `<a href="?list=peers">All peers</a>`)
		require.Contains(t, body, "Asking about this peer")
		require.NotContains(t, body, "andshakes")
		require.NotContains(t, shown(body), "tapled")
		require.Equal(t, c.Response() != nil, d.Response != nil)
		if d.State == "answered" {
			require.Equal(t, []string{"good", "CN=Example Issuing CA 3"}, []string{d.Response.Status, d.Response.Signer})
			before := len(w.responder.Requests(c.Status().Leaf))
			r, _ := ask(t, h, httptest.NewRequest("POST", "/?cert="+d.ID, nil))
			require.Equal(t, http.StatusSeeOther, r.StatusCode)
			require.Greater(t, len(w.responder.Requests(c.Status().Leaf)), before)
		}
	}
}

func TestHowConnectionsWereDecidedIsShownForEachCA(t *testing.T) {
	w := newWorld(t)
	w.oneOfEachPeer()
	open := &staple.Checker{Stapler: w.stapler, LeafOnly: true, FailOpen: true}
	require.NoError(t, w.meet(open, staplesOf("late.client"), unavailable()))
	raw, err := pkixName("</td><script>\u202e")
	require.NoError(t, err)
	evil := stapletest.NewCA(stapletest.CAOptions{})
	issuer := *evil.Issuer
	issuer.RawSubject, issuer.Subject.CommonName = raw, "</td><script>\u202e"
	leaf := evil.Leaf(stapletest.LeafOptions{}).Leaf
	require.NoError(t, open.VerifyConnection(arrival(leaf, &issuer)))

	h := &Handler{Stapler: w.stapler}
	stats := w.stapler.CheckStats()
	var want []CA
	for _, s := range stats {
		want = append(want, CA{s.CA, s.Passed, s.Refused, s.Unanswered, s.PassedUnanswered, s.Waited, s.Waiting.Seconds()})
	}
	require.Len(t, want, 2)
	require.Equal(t, want, listOf(t, h, "").CAs)
	require.Equal(t, want, peersOf(t, h, "").CAs)
	var example CA
	for _, c := range want {
		if strings.Contains(c.CA, "Example Issuing CA 3") {
			example = c
		}
	}
	require.Equal(t, []uint64{3, 1, 2, 1}, []uint64{example.Passed, example.Refused, example.Unanswered, example.PassedUnanswered})
	require.Positive(t, example.Waited)

	_, body := get(t, h, "/?list=peers")
	average := time.Duration(example.WaitSeconds / float64(example.Waited) * 1e9).Round(time.Millisecond)
	require.Regexp(t, `Example Issuing CA 3.*?data-what="passed">3</td>.*?data-what="refused">1</td>.*?data-what="unanswered, refused">2</td>`+
		`.*?data-what="unanswered, passed">1</td>.*?data-what="waited">`+fmt.Sprint(example.Waited)+`<span class="note">`+
		regexp.QuoteMeta(average.String())+` on average</span></td>`, body)
	require.NotContains(t, body, "<script")
	require.NotContains(t, body, "\u202e")
}

func TestManyCAsMakeAShortTable(t *testing.T) {
	w := newWorld(t)
	checker := &staple.Checker{Stapler: w.stapler, LeafOnly: true, FailOpen: true, Timeout: time.Minute}
	cert := w.ca.Leaf(stapletest.LeafOptions{Responders: []string{}}).Leaf
	w.responder.Set(cert, unavailable())
	for i := range 30 {
		issuer, leaf := *w.ca.Issuer, *cert
		raw, err := pkixName(fmt.Sprintf("CA %02d", i))
		require.NoError(t, err)
		issuer.RawSubject, issuer.Subject.CommonName = raw, fmt.Sprintf("CA %02d", i)
		leaf.Raw = append(bytes.Clone(leaf.Raw), byte(i))
		if i == 25 {
			leaf.OCSPServer = []string{"http://nobody.test/"}
		}
		require.NoError(t, checker.VerifyConnection(arrival(&leaf, &issuer)))
	}
	h := &Handler{Stapler: w.stapler}
	require.Len(t, peersOf(t, h, "").CAs, 30)
	_, body := get(t, h, "/?list=peers")
	rows := regexp.MustCompile(`<th role="rowheader" scope="row"><bdi[^>]*>([^<]*)</bdi></th>`).FindAllStringSubmatch(body, -1)
	require.Len(t, rows, maxCAs)
	require.Contains(t, rows[0][1], "CA 25", "about which nobody answered")
	require.Contains(t, body, "10 more are in the JSON.")
}

func TestJSONOfPeers(t *testing.T) {
	keys := func(v any) (all []string) {
		for k := range v.(map[string]any) {
			all = append(all, k)
		}
		return all
	}
	w := newWorld(t)
	h := &Handler{Stapler: w.stapler}
	_, body := get(t, h, "/?format=json")
	var list map[string]any
	require.NoError(t, json.Unmarshal([]byte(body), &list))
	require.Equal(t, []any{}, list["cas"], "where there is no Checker")
	w.oneOfEachPeer()
	_, body = get(t, h, "/?list=peers&format=json")
	require.NoError(t, json.Unmarshal([]byte(body), &list))
	var peers map[string]any
	require.NoError(t, json.Unmarshal([]byte(body), &peers))
	require.ElementsMatch(t, strings.Fields("time total states matching page pages peers cas"), keys(peers))
	require.ElementsMatch(t, strings.Fields("ca passed refused unanswered passedUnanswered waited waitSeconds"), keys(peers["cas"].([]any)[0]))
	require.Subset(t, keys(peers["peers"].([]any)[4]), strings.Fields("peer state thisUpdate expires responder"))
}

// manyPeers returns a Stapler that remembers n peers, which are good but for two that are unanswered.
func manyPeers(t testing.TB, n int) *staple.Stapler {
	serial := new(big.Int).SetBytes(bytes.Repeat([]byte{0x5a}, 16))
	ca := stapletest.NewCA(stapletest.CAOptions{Name: "Example Issuing CA 3", KeyType: stapletest.RSA2048})
	cert := ca.Leaf(stapletest.LeafOptions{Serial: serial, Names: []string{"client-000000.example.com"}, Responders: []string{"http://ocsp.example-ca.test/"}})
	at := bytes.Index(cert.Leaf.Raw, serial.Bytes())
	require.Positive(t, at)
	now := time.Now()
	s := &staple.Stapler{
		Logger:      slog.New(slog.DiscardHandler),
		Concurrency: 64,
		Fetcher: staple.FetcherFunc(func(_ context.Context, req *staple.Request) ([]byte, error) {
			req.Responder = "http://ocsp.example-ca.test/"
			if i := binary.BigEndian.Uint64(req.Leaf.Raw[at+8:]); i == 7 || i == 107 {
				return nil, errors.New("the responder does not know it")
			}
			return req.Leaf.Raw[at : at+16], nil
		}),
		Verifier: verifierFunc(func(_ []byte, leaf, _ *x509.Certificate, _ time.Time) (*ocsp.Response, time.Time, error) {
			i := binary.BigEndian.Uint64(leaf.Raw[at+8:])
			r := &ocsp.Response{Status: ocsp.Good, ThisUpdate: now.Add(-time.Duration(i%80) * time.Hour)}
			return r, r.ThisUpdate.Add(7 * day), nil
		}),
	}
	t.Cleanup(func() { s.Close() })
	checker := &staple.Checker{Stapler: s, FailOpen: true, Timeout: time.Minute}
	var wg sync.WaitGroup
	for part := range 16 {
		wg.Go(func() {
			for i := part; i < n; i += 16 {
				leaf := *cert.Leaf
				leaf.Raw = bytes.ReplaceAll(cert.Leaf.Raw, []byte("client-000000"), fmt.Appendf(nil, "client-%06d", i))
				binary.BigEndian.PutUint64(leaf.Raw[at+8:], uint64(i))
				if err := checker.VerifyConnection(arrival(&leaf, ca.Issuer)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	return s
}

func BenchmarkPeers(b *testing.B) {
	h := &Handler{Stapler: manyPeers(b, 131_072)}
	for _, bench := range []struct{ name, target string }{
		{"certificates", "/"},
		{"first", "/?list=peers"},
		{"last", "/?list=peers&page=2000"},
		{"search", "/?list=peers&q=client-0999"},
		{"search for nothing", "/?list=peers&q=example+nowhere"},
		{"JSON", "/?list=peers&format=json"},
		{"unknown certificate", "/?cert=0000000000000000000000000000000000000000000000000000000000000000"},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, body := get(b, h, bench.target)
				b.ReportMetric(float64(len(body)), "bytes/page")
			}
		})
	}
}
