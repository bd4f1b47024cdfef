package statuspage

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
)

func decode[T any](t *testing.T, body string) (v T) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(body))
	d.DisallowUnknownFields()
	require.NoError(t, d.Decode(&v), body)
	return v
}

func listOf(t *testing.T, h http.Handler, query string) List {
	t.Helper()
	r, body := get(t, h, "/?format=json&"+query)
	require.Equal(t, http.StatusOK, r.StatusCode, body)
	require.Equal(t, "application/json", r.Header.Get("Content-Type"))
	return decode[List](t, body)
}

func detailOf(t *testing.T, h http.Handler, c *staple.Certificate) Detail {
	t.Helper()
	r, body := get(t, h, "/?format=json&cert="+idOf(c))
	require.Equal(t, http.StatusOK, r.StatusCode, body)
	return decode[Detail](t, body)
}

func idOf(c *staple.Certificate) string {
	sum := sha256.Sum256(c.Status().Leaf.Raw)
	return hex.EncodeToString(sum[:])
}

func namesOf(l List) []string {
	var names []string
	for _, c := range l.Certificates {
		names = append(names, c.Names[0])
	}
	return names
}

func TestTheWorstComesFirst(t *testing.T) {
	w := newWorld(t)
	w.oneOfEach()
	h := &Handler{Stapler: w.stapler}
	l := listOf(t, h, "")
	var got []string
	for _, c := range l.Certificates {
		got = append(got, c.State+" "+c.Names[0])
		require.Equal(t, 1, l.States[c.State])
	}
	require.Equal(t, []string{
		"must-staple-missing pay.example.com",
		"unstapled new.example.com",
		"revoked old.example.com",
		"expired gone.example.com",
		"expiring mail.example.com",
		"failing api.example.com",
		"waiting hang.example.com",
		"stapled www.example.com",
		"no-responder internal.example.com",
	}, got)
	require.Len(t, l.States, len(got))

	_, body := get(t, h, "/")
	at := 0
	for s := range states(false) { // in words, in this order; the chips come before
		table := body[strings.Index(body, "<tbody"):]
		next := strings.Index(table, s.Label()+"</span>")
		require.Greater(t, next, at, s)
		at = next
		require.Contains(t, body, `href="?state=`+s.String()+`"`)
	}
	require.Contains(t, body, "6 of 9 certificates need attention.")
	require.Contains(t, body, "<title>(6) OCSP staples")
}

func TestWithinAStateTheFirstToEndComesFirst(t *testing.T) {
	w := newWorld(t)
	for i, age := range []time.Duration{1, 3, 2, 3} {
		w.add(staplesOf(fmt.Sprintf("n%d.example", i)), stapletest.Answer{Age: age * day / 2})
		w.settle()
	}
	require.Equal(t, []string{"n1.example", "n3.example", "n2.example", "n0.example"}, namesOf(listOf(t, &Handler{Stapler: w.stapler}, "")))
}

func TestAPauseIsShownWithItsReasonAndItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		h := &Handler{Stapler: w.stapler}
		down := stapletest.Answer{Error: ocsp.TryLater}
		at := func(name string) stapletest.LeafOptions {
			return stapletest.LeafOptions{Names: []string{name}, Responders: []string{"http://ocsp.test/"}}
		}
		w.add(at("first.example"), down)
		w.settle()
		second := w.add(at("second.example"), down)
		third := w.add(stapletest.LeafOptions{Names: []string{"third.example"}, Responders: []string{"http://other.test/"}}, stapletest.Answer{})
		time.Sleep(time.Minute)
		synctest.Wait()

		st := second.Status()
		require.True(t, st.PausedUntil.After(time.Now()))
		d := detailOf(t, h, second)
		require.Equal(t, st.PausedUntil.UTC().Truncate(time.Second), d.PausedUntil)
		require.Equal(t, st.PauseErr.Error(), d.PauseError)
		require.Contains(t, d.PauseError, "try later")
		for _, target := range []string{"/", "/?cert=" + idOf(second)} {
			_, body := get(t, h, target)
			require.Regexp(t, `Requests there pause, the next goes out <time [^>]*>(in \d+ s|now)</time>`, body)
		}
		d = detailOf(t, h, third)
		require.Zero(t, d.PausedUntil)
		require.Empty(t, d.PauseError)
		_, body := get(t, h, "/?cert="+idOf(third))
		require.NotContains(t, body, "pause")
	})
}

// TestWhereNobodyIsToBeAskedNoHandshakeCounts is about certificates that name a responder, which somebody has switched off.
func TestWhereNobodyIsToBeAskedNoHandshakeCounts(t *testing.T) {
	for name, fetcher := range map[string]staple.Fetcher{
		"an override that returns nothing": &staple.HTTPFetcher{URLs: func(*x509.Certificate) []string { return nil }},
		"LDAP alone":                       &staple.HTTPFetcher{URLs: func(*x509.Certificate) []string { return []string{"ldap://ldap.test/ocsp"} }},
		"a Fetcher says so": staple.FetcherFunc(func(context.Context, *staple.Request) ([]byte, error) {
			return nil, fmt.Errorf("switched off: %w", staple.ErrNoResponder)
		}),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.stapler.Fetcher = fetcher
			c := w.add(staplesOf("a.example"), stapletest.Answer{})
			w.settle()
			for range 3 {
				c.GetCertificate(nil)
			}
			h := &Handler{Stapler: w.stapler}
			l := listOf(t, h, "")
			require.Equal(t, "no-responder", l.Certificates[0].State)
			require.Zero(t, l.Certificates[0].Unstapled)
			_, body := get(t, h, "/")
			require.Contains(t, body, "Nothing needs attention")
			require.NotContains(t, body, "handshakes without")
		})
	}
}

func TestWhatIsOldFromTheBeginningAndRenewedInTimeIsNeverExpiring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := w.add(staplesOf("a.example"), stapletest.Answer{Period: day, Age: 28 * day, Validity: 28*day + 32*time.Hour})
		h := &Handler{Stapler: w.stapler}
		time.Sleep(time.Minute)
		for range 14 * 24 {
			time.Sleep(time.Hour)
			require.Equal(t, "stapled", detailOf(t, h, c).State, time.Until(c.Status().Expires))
		}
		w.turn(c, unavailable())
		time.Sleep(time.Until(c.Status().Expires.Add(-2 * time.Hour)))
		require.Equal(t, "expiring", detailOf(t, h, c).State)
	})
}

func TestCredentialsOfAURLAreShownNowhere(t *testing.T) {
	const secret = "xyzzy"
	for _, answer := range []stapletest.Answer{{}, {HTTPStatus: 403}, {Error: ocsp.TryLater}} {
		w := newWorld(t)
		urls := []string{"http://aladdin:" + secret + "@ocsp.test/a", "http://" + secret + "@ocsp.test/b"}
		w.stapler.Fetcher = &staple.HTTPFetcher{Client: w.responder.Client(), URLs: func(*x509.Certificate) []string { return urls }}
		c := w.add(stapletest.LeafOptions{Names: []string{"a.example"}, Responders: urls}, answer)
		w.settle()
		h := &Handler{Stapler: w.stapler, Refresh: true}
		id := idOf(c)
		for _, target := range []string{"/", "/?format=json", "/?cert=" + id, "/?cert=" + id + "&format=json"} {
			_, body := get(t, h, target)
			require.Contains(t, body, "ocsp.test/a")
			require.NotContains(t, body, secret)
			require.NotContains(t, body, "aladdin")
		}
		require.Empty(t, listOf(t, h, "q="+secret).Certificates)
		require.Len(t, listOf(t, h, "q=ocsp.test/a").Certificates, 1)
	}
}

func TestSearch(t *testing.T) {
	w := newWorld(t)
	w.add(stapletest.LeafOptions{Names: []string{"www.Example.com", "192.0.2.7", "2001:db8::5"}, CommonName: "The Front Door"}, stapletest.Answer{})
	w.add(stapletest.LeafOptions{Names: []string{"mail.example.org"}, Responders: []string{"http://other.test/ocsp"},
		Template: func(c *x509.Certificate) {
			c.Subject.Organization = []string{"Acme"}
			c.EmailAddresses = []string{"post@acme.test"}
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: "acme.test", Path: "/mail"}}
		}}, stapletest.Answer{Status: ocsp.Revoked})
	w.settle()
	h := &Handler{Stapler: w.stapler}
	all := listOf(t, h, "")
	www := all.Certificates[1]
	require.Equal(t, "www.Example.com", www.Names[0])
	const both, first, second, none = "both", "www", "mail", "none"
	colons := regexp.MustCompile("..").ReplaceAllString(www.Serial[4:12], "$0:")
	for _, test := range []struct{ words, want string }{
		{"", both}, {"example", both}, {"EXAMPLE.com", first}, {"front door", first}, {"door front", first}, {"front mail", none},
		{"192.0.2.7", first}, {"2001:db8::5", first}, {"acme", second}, {"POST@acme", second}, {"spiffe://acme", second},
		{"issuing ca", both}, {"other.test", second}, {"ocsp1.example-ca", first}, {www.Serial, first}, {strings.ToUpper(www.Serial[3:20]), first},
		{colons[:len(colons)-1], first}, {"revoked", second}, {"stapled", first}, {":", first}, {"nonsense", none}, {"%", none}, {"<script>", none},
	} {
		t.Run(test.words, func(t *testing.T) {
			l := listOf(t, h, "q="+url.QueryEscape(test.words))
			got := none
			if len(l.Certificates) == 2 {
				got = both
			} else if len(l.Certificates) == 1 {
				got = strings.Split(l.Certificates[0].Names[0], ".")[0]
			}
			if test.words == ":" { // in the URLs of both
				test.want = both
			}
			require.Equal(t, test.want, got)
			require.Equal(t, 2, l.Total)
			require.Equal(t, len(l.Certificates), l.Matching)
			r, body := get(t, h, "/?q="+url.QueryEscape(test.words))
			require.Equal(t, http.StatusOK, r.StatusCode)
			require.Equal(t, l.Matching, strings.Count(body, `href="?cert=`))
			require.Contains(t, body, `value="`+html.EscapeString(test.words)+`"`)
		})
	}
	require.Equal(t, []string{"mail.example.org"}, namesOf(listOf(t, h, "q=example&state=revoked")))
	require.Empty(t, listOf(t, h, "q=example.com&state=revoked").Certificates)
}

func TestPaging(t *testing.T) {
	s := manyCertificates(t, 230)
	h := &Handler{Stapler: s}
	all := listOf(t, h, "per=1000")
	require.Len(t, all.Certificates, 230)
	seen := map[string]bool{}
	for page := 1; page <= 5; page++ {
		l := listOf(t, h, fmt.Sprint("page=", page))
		require.Equal(t, []int{230, 230, page, 5}, []int{l.Total, l.Matching, l.Page, l.Pages})
		for _, c := range l.Certificates {
			seen[c.ID] = true
		}
	}
	require.Len(t, seen, 230)
	require.Empty(t, listOf(t, h, "page=6").Certificates)

	_, body := get(t, h, "/?page=3&q=customer&state=stapled&per=20")
	for _, link := range []string{"?per=20&q=customer&state=stapled", "?page=2&per=20&q=customer&state=stapled",
		"?page=4&per=20&q=customer&state=stapled", "?page=12&per=20&q=customer&state=stapled"} {
		require.Contains(t, body, `<a href="`+html.EscapeString(link)+`"`)
	}
	require.Contains(t, body, "Page 3 of 12")
	_, body = get(t, h, "/?page=6")
	require.Contains(t, body, "Page 6 is past the last of 5.")
	require.NotContains(t, body, "<table")

	empty := &Handler{Stapler: newWorld(t).stapler}
	_, body = get(t, empty, "/")
	require.Contains(t, body, "There are no certificates yet.")
	require.Equal(t, 1, listOf(t, empty, "").Pages)
}

func TestOneRowForALeafWithSeveralHandles(t *testing.T) {
	w := newWorld(t)
	cert := w.ca.Leaf(stapletest.LeafOptions{Responders: []string{"http://ocsp.test/"}})
	for range 3 {
		_, err := w.stapler.Add(tls.Certificate{Certificate: [][]byte{slices.Clone(cert.Certificate[0]), cert.Certificate[1]}})
		require.NoError(t, err)
	}
	w.settle()
	h := &Handler{Stapler: w.stapler}
	for _, query := range []string{"", "q=localhost", "state=stapled"} {
		l := listOf(t, h, query)
		require.Len(t, l.Certificates, 1)
		require.Equal(t, 3, l.Certificates[0].Handles)
		require.Equal(t, []int{1, 1}, []int{l.Total, l.Matching})
	}
	require.Equal(t, 1, listOf(t, h, "q=nobody").Total)
	_, body := get(t, h, "/")
	require.Contains(t, body, "3 handles")
	c := slices.Collect(w.stapler.Certificates())[1]
	require.Equal(t, 3, detailOf(t, h, c).Handles)
}

func TestDetail(t *testing.T) {
	w := newWorld(t)
	w.stapler.StapleRevoked = true
	delegate := w.ca.Delegate(stapletest.DelegateOptions{CommonName: "Responder 7"})
	revokedAt := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	direct := w.add(staplesOf("direct.example"), stapletest.Answer{Age: time.Hour})
	delegated := w.add(stapletest.LeafOptions{Names: []string{"delegated.example"}, MustStaple: true},
		stapletest.Answer{Status: ocsp.Revoked, RevokedAt: revokedAt, RevocationReason: ocsp.Superseded, Signer: delegate, ByName: true,
			Edit: func(r *stapletest.Response) { // which x/crypto/ocsp does not read
				r.Certificates = []*x509.Certificate{w.ca.Issuer, delegate.Certificate}
			}})
	w.settle()
	h := &Handler{Stapler: w.stapler}

	d := detailOf(t, h, direct)
	st := direct.Status()
	require.Equal(t, idOf(direct), d.ID)
	require.Equal(t, "stapled", d.State)
	require.Equal(t, st.Leaf.SerialNumber.Text(16), d.Serial)
	require.Equal(t, st.Expires.UTC(), d.Expires)
	require.Equal(t, "http://ocsp1.example-ca.test/", d.Responder)
	require.Equal(t, []string{"http://ocsp1.example-ca.test/"}, d.Responders)
	require.Equal(t, st.Leaf.NotAfter, d.NotAfter)
	want := Response{
		Status:             "good",
		ThisUpdate:         st.ThisUpdate.UTC(),
		NextUpdate:         st.Expires.UTC(),
		ProducedAt:         st.ThisUpdate.UTC(),
		ResponderKeyHash:   d.Response.ResponderKeyHash,
		Signer:             "CN=Example Issuing CA 3",
		SignerNotAfter:     w.ca.Issuer.NotAfter,
		SignatureAlgorithm: "ECDSA-SHA256",
		Hash:               "SHA-1",
		Size:               len(direct.TLS().OCSPStaple),
	}
	require.Equal(t, want, *d.Response)
	require.Len(t, d.Response.ResponderKeyHash, 40)

	d = detailOf(t, h, delegated)
	require.Equal(t, "revoked", d.State)
	require.True(t, d.MustStaple)
	want.Status, want.RevokedAt, want.RevocationReason = "revoked", revokedAt, "superseded"
	want.ThisUpdate, want.NextUpdate, want.ProducedAt = d.ThisUpdate, d.Expires, d.ThisUpdate
	want.ResponderKeyHash, want.ResponderName = "", "CN=Responder 7"
	want.Signer, want.SignerNotAfter = "CN=Responder 7", delegate.Certificate.NotAfter
	want.Size = len(delegated.TLS().OCSPStaple)
	require.Equal(t, want, *d.Response)

	_, body := get(t, h, "/?cert="+strings.ToUpper(idOf(delegated)))
	for _, text := range []string{"2026-01-02 03:04:05 UTC", "superseded", "CN=Responder 7", "SHA-1", "Must-Staple", idOf(delegated),
		thousands(want.Size) + " bytes", `href="?cert=` + idOf(delegated) + `&amp;format=der"`} {
		require.Contains(t, body, text)
	}

	r, body := get(t, h, "/?format=der&cert="+idOf(delegated))
	require.Equal(t, "application/ocsp-response", r.Header.Get("Content-Type"))
	require.Equal(t, `attachment; filename="`+idOf(delegated)[:16]+`.ors"`, r.Header.Get("Content-Disposition"))
	require.Equal(t, string(delegated.TLS().OCSPStaple), body)
}

func TestResponsesThatResponseVerifierDoesNotTake(t *testing.T) {
	w := newWorld(t)
	delegate := w.ca.Delegate(stapletest.DelegateOptions{CommonName: "Responder 7"})
	for _, test := range []struct {
		name     string
		response func(leaf *x509.Certificate) []byte
		want     string
	}{
		{"ended", func(leaf *x509.Certificate) []byte {
			r := stapletest.NewResponse(w.ca, leaf)
			r.Signer, r.Singles[0].NextUpdate = delegate, time.Now().Add(-time.Minute)
			return r.DER()
		}, "good CN=Responder 7"},
		{"junk", func(*x509.Certificate) []byte { return []byte("junk") }, " "},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &staple.Stapler{
				Logger: slog.New(slog.DiscardHandler),
				Fetcher: staple.FetcherFunc(func(_ context.Context, req *staple.Request) ([]byte, error) {
					return test.response(req.Leaf), nil
				}),
				Verifier: verifierFunc(func(_ []byte, _, _ *x509.Certificate, now time.Time) (*ocsp.Response, time.Time, error) {
					return new(ocsp.Response), now.Add(time.Hour), nil
				}),
			}
			defer s.Close()
			c, err := s.Add(w.ca.Leaf(staplesOf("a.example")))
			require.NoError(t, err)
			require.NoError(t, c.Wait(t.Context()))
			h := &Handler{Stapler: s}
			r := detailOf(t, h, c).Response
			require.Equal(t, test.want, r.Status+" "+r.Signer)
			require.Equal(t, test.name == "junk", r.Error != "")
			require.Equal(t, len(c.TLS().OCSPStaple), r.Size)
			_, body := get(t, h, "/?cert="+idOf(c))
			require.Equal(t, test.name == "junk", strings.Contains(body, "It cannot be decoded here"))
		})
	}
}

func TestAResponseThatCameWithTheCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cert := w.ca.Leaf(stapletest.LeafOptions{Names: []string{"a.example"}, OmitIssuer: true, Responders: []string{"http://ocsp.test/"}})
		cert.OCSPStaple = w.responder.Response(cert.Leaf)
		c, err := w.stapler.Add(cert)
		require.NoError(t, err)
		synctest.Wait()
		require.Error(t, c.Status().Err, "there is no issuer to ask about")
		h := &Handler{Stapler: w.stapler}
		_, body := get(t, h, "/")
		require.Contains(t, body, "Came with the certificate")
		d := detailOf(t, h, c)
		require.Equal(t, []string{"failing", "good"}, []string{d.State, d.Response.Status})
		require.Zero(t, d.Expires)
	})
}

func TestAResponseThatHasEndedIsStillDecoded(t *testing.T) {
	for name, delegated := range map[string]bool{"direct": false, "delegated": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				delegate := w.ca.Delegate(stapletest.DelegateOptions{CommonName: "Responder 7"})
				want := w.ca.Issuer.Subject.String()
				answer := stapletest.Answer{Age: 6 * day}
				if delegated {
					want = "CN=Responder 7"
					answer.Signer = delegate
					answer.Embed = []*x509.Certificate{w.ca.Issuer, delegate.Certificate} // which x/crypto/ocsp does not read
				}
				c := w.add(staplesOf("a.example"), answer)
				w.settle()
				require.NotEmpty(t, c.TLS().OCSPStaple)
				w.turn(c, unavailable())
				time.Sleep(day + time.Minute)
				require.False(t, c.Status().Stapled)
				d := detailOf(t, &Handler{Stapler: w.stapler}, c)
				require.Equal(t, "unstapled", d.State)
				require.Empty(t, d.Response.Error)
				require.Equal(t, want, d.Response.Signer)
			})
		})
	}
}

func TestTheResponseHeldIsDecodedWhetherStapledOrNot(t *testing.T) {
	w := newWorld(t)
	w.oneOfEach()
	h := &Handler{Stapler: w.stapler}
	for c := range w.stapler.Certificates() {
		st := c.Status()
		d := detailOf(t, h, c)
		held := !st.Expires.IsZero()
		require.Equal(t, held, d.Response != nil, d.State)
		require.True(t, held || !st.Stapled)
		if st.Revoked {
			require.False(t, st.Stapled)
			require.Equal(t, "revoked", d.Response.Status)
		}
		r, body := get(t, h, "/?cert="+d.ID)
		require.Equal(t, http.StatusOK, r.StatusCode)
		require.Contains(t, body, html.EscapeString(func() state { s, _ := stateNamed(d.State, false); return s }().Meaning(false)))
		if r, body := get(t, h, "/?format=der&cert="+d.ID); held {
			require.Equal(t, string(c.Response()), body)
		} else {
			require.Equal(t, http.StatusNotFound, r.StatusCode)
		}
	}
}

func TestJSONFieldsAndTimes(t *testing.T) {
	w := newWorld(t)
	c := w.add(staplesOf("a.example"), good24)
	w.settle()
	keys := func(v any) []string {
		var all []string
		for k := range v.(map[string]any) {
			all = append(all, k)
		}
		slices.Sort(all)
		return all
	}
	h := &Handler{Stapler: w.stapler}
	_, body := get(t, h, "/?format=json")
	list := decode[any](t, body).(map[string]any)
	require.Equal(t, strings.Fields("cas certificates matching page pages peers states time total"), keys(list))
	require.Equal(t, strings.Fields("expires failures handles id issuer lastAttempt mustStaple names nextRefresh notAfter notBefore "+
		"responder responders revoked serial stapled state subject thisUpdate unstapledHandshakes"), keys(list["certificates"].([]any)[0]))
	_, body = get(t, h, "/?format=json&cert="+idOf(c))
	detail := decode[any](t, body).(map[string]any)
	require.Subset(t, keys(detail), []string{"time", "response", "id", "state"})
	require.Equal(t, strings.Fields("hash nextUpdate producedAt responderKeyHash signatureAlgorithm signer signerNotAfter size status thisUpdate"),
		keys(detail["response"]))
	for _, found := range regexp.MustCompile(`"(?:\w+Update|time|expires|\w+At|nextRefresh|lastAttempt|\w*[nN]ot(?:After|Before))": "([^"]*)"`).FindAllStringSubmatch(body, -1) {
		require.Regexp(t, `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$`, found[1])
	}
}

func TestEvilNames(t *testing.T) {
	w := newWorld(t)
	// DNS names are ASCII, and need not be good ones; the rest may be anything.
	names := []string{`<script>alert(1)</script>.example`, `"><img src=x onerror=alert(1)>`, "a\x00b\x1b[31m\r\n.example", `' onmouseover='alert(1)`,
		strings.Repeat("long.", 100) + "example", `javascript:alert(1)`, `{{.}}`}
	raw, err := pkixName("\u202egpj.exe </title>Z" + strings.Repeat("\u0300", 30))
	require.NoError(t, err)
	var certs []*staple.Certificate
	for i, name := range names {
		certs = append(certs, w.add(stapletest.LeafOptions{Names: []string{"placeholder.example"}, Responders: []string{fmt.Sprintf(`http://x%d.test/"><script>alert(2)</script>`, i)},
			Template: func(c *x509.Certificate) { c.DNSNames, c.RawSubject = []string{name}, raw }}, stapletest.Answer{HTTPStatus: 500}))
	}
	many := make([]string, 1000)
	for i := range many {
		many[i] = fmt.Sprintf("san-%d.example", i)
	}
	certs = append(certs, w.add(stapletest.LeafOptions{Names: many}, stapletest.Answer{}))
	certs = append(certs, w.add(stapletest.LeafOptions{Template: func(c *x509.Certificate) {
		c.DNSNames, c.IPAddresses, c.Subject = nil, nil, pkix.Name{}
	}}, stapletest.Answer{}))
	h := &Handler{Stapler: w.stapler, Refresh: true}
	w.settle()

	bodies := []string{}
	_, body := get(t, h, "/")
	bodies = append(bodies, body)
	require.Contains(t, body, `a\x00b\x1b[31m\r\n.example`)
	require.Contains(t, body, `and 999 more: `)
	require.Contains(t, body, `(no name)`)
	require.Contains(t, body, `title="`+strings.Repeat("long.", 100)+"example")
	require.NotContains(t, body, ">"+strings.Repeat("long.", 100))
	for _, c := range certs {
		_, body := get(t, h, "/?cert="+idOf(c))
		bodies = append(bodies, body)
	}
	require.Contains(t, bodies[1], `\u202egpj.exe`)
	require.Contains(t, bodies[1], `\u0300\u0300`)
	require.Contains(t, bodies[8], "san-999.example")
	for _, query := range []string{"/?q=" + url.QueryEscape(`"><script>alert(3)</script>`+"\u202e"), "/?state=" + url.QueryEscape("<script>"),
		"/?cert=" + url.QueryEscape("<script>"), "/%3Cscript%3E"} {
		_, body := get(t, h, query)
		bodies = append(bodies, body)
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.Method, r.Host = "<SCRIPT>", "<script>"
	_, body = ask(t, h, r)
	bodies = append(bodies, body)
	tag := regexp.MustCompile(`<[a-zA-Z!/][^>]*>`)
	bad := regexp.MustCompile("(?i)<script|<img|ZgotmplZ|[\u202a-\u202e\u2066-\u2069\u0000-\u0008\u000b-\u001f]")
	for _, body := range bodies {
		require.True(t, strings.HasPrefix(body, "<!doctype html>"))
		// The search field shows what was typed, and confines it.
		require.Empty(t, bad.FindString(regexp.MustCompile(`type="search" value="[^"]*"`).ReplaceAllString(body, "")))
		require.Equal(t, 1, strings.Count(body, "</title>"))
		for _, found := range tag.FindAllString(body, -1) {
			require.NotRegexp(t, `\son\w+=|\sstyle=|javascript:`, quoted.ReplaceAllString(found, `""`))
		}
	}
	for _, c := range listOf(t, h, "").Certificates { // as they are
		require.True(t, len(c.Names) != 1 || slices.Contains(names, c.Names[0]), c.Names)
	}
}

var quoted = regexp.MustCompile(`"[^"]*"`)

// pkixName returns the DER of a Name with a common name that is UTF-8.
func pkixName(commonName string) ([]byte, error) {
	return asn1.Marshal(pkix.Name{CommonName: commonName}.ToRDNSequence())
}

func TestVisible(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"plain text", "plain text"},
		{"müller.example", "müller.example"},
		{"a\tb\u200bc\u00add\ufeff", `a\tb\u200bc\u00add\ufeff`},
		{"\u2067evil\u2069", `\u2067evil\u2069`},
		{"bad \xff\xfe", `bad \xff\xfe`},
		{"e\u0301\u0301\u0301\u0301x", "e\u0301\u0301" + `\u0301\u0301x`},
		{"0123456789abc", "0123456789…"},
		{"\U000e0041", `\U000e0041`},
	} {
		limit := 100
		if strings.HasPrefix(test.in, "0") {
			limit = 10
		}
		require.Equal(t, test.want, visible(test.in, limit))
	}
}

func TestRelative(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		d    time.Duration
		want string
	}{
		{0, "now"}, {400 * time.Millisecond, "now"}, {time.Second, "in 1 s"}, {-45 * time.Second, "45 s ago"},
		{200 * time.Minute, "in 3 h 20 min"}, {-3 * time.Hour, "3 h ago"}, {3*time.Hour + 30*time.Second, "in 3 h"}, {90 * time.Second, "in 1 min 30 s"},
		{-(2*day + 5*time.Hour + 59*time.Minute), "2 d 5 h ago"}, {800 * day, "in 2 y 70 d"},
	} {
		require.Equal(t, test.want, moment{now.Add(test.d), now}.Relative())
	}
	require.Equal(t, []string{"0", "999", "1,000", "100,000", "1,234,567"},
		[]string{thousands(0), thousands(999), thousands(uint64(1000)), thousands(100_000), thousands(1_234_567)})
}

func TestBar(t *testing.T) {
	now := time.Now()
	at := func(h float64) time.Time { return now.Add(time.Duration(h * float64(time.Hour))) }
	require.Equal(t, &bar{End: "100%", Now: "25.0%", Left: "75.0%", Next: "50.0%", HasNext: true}, fix(newBar(at(-1), at(3), at(1), now)))
	require.Equal(t, &bar{End: "80.0%", Now: "100%", Left: "0.0%", Next: "100%", HasNext: true, Over: true}, fix(newBar(at(-4), at(-1), at(1), now)))
	require.Equal(t, "0.0%", newBar(at(1), at(4), at(2), now).Now)
	require.False(t, newBar(at(-1), at(1), time.Time{}, now).HasNext)
	require.Nil(t, newBar(time.Time{}, time.Time{}, at(1), now))
	require.Nil(t, newBar(at(1), at(1), at(1), now))
}

func fix(b *bar) *bar {
	for _, p := range []*string{&b.End, &b.Now, &b.Left, &b.Next} {
		*p = strings.Replace(*p, "100.0%", "100%", 1)
	}
	return b
}

func TestAnyMountWorks(t *testing.T) {
	w := newWorld(t)
	c := w.add(staplesOf("a.example"), good24)
	w.settle()
	h := &Handler{Stapler: w.stapler}
	for _, test := range []struct {
		pattern, strip  string
		found, notFound []string
	}{
		{"/", "", []string{"/"}, []string{"/favicon.ico", "/a/"}},
		{"/staples/", "", []string{"/staples/"}, []string{"/staples/a", "/staples/a/"}},
		{"/staples/", "/staples", []string{"/staples/"}, []string{"/staples/a"}},
		{"/staples/", "/staples/", []string{"/staples/"}, []string{"/staples/a"}},
		{"/staples", "", []string{"/staples"}, []string{"/staples/"}},
		{"/staples", "/staples", []string{"/staples"}, []string{"/staples/"}},
		{"GET localhost/debug/staples/{$}", "", []string{"/debug/staples/"}, []string{"/debug/staples/a"}},
	} {
		t.Run(test.pattern+" "+test.strip, func(t *testing.T) {
			mux := http.NewServeMux()
			mux.Handle(test.pattern, http.StripPrefix(test.strip, h))
			server := httptest.NewUnstartedServer(mux)
			server.Start()
			defer server.Close()
			base := strings.Replace(server.URL, "127.0.0.1", "localhost", 1)
			status := func(target string) int {
				r, err := server.Client().Get(target)
				require.NoError(t, err)
				r.Body.Close()
				return r.StatusCode
			}
			for _, path := range test.found {
				page, err := url.Parse(base + path)
				require.NoError(t, err)
				require.Equal(t, http.StatusOK, status(page.String()))
				_, body := get(t, h, "/")
				links := regexp.MustCompile(`(?:href|action)="([^"#d][^"]*)"`).FindAllStringSubmatch(body, -1)
				require.NotEmpty(t, links)
				for _, link := range links {
					to, err := page.Parse(html.UnescapeString(link[1]))
					require.NoError(t, err)
					require.Equal(t, path, to.Path)
					require.Equal(t, http.StatusOK, status(to.String()), to)
				}
				require.Equal(t, http.StatusOK, status(base+path+"?cert="+idOf(c)))
			}
			for _, path := range test.notFound {
				require.Equal(t, http.StatusNotFound, status(base+path), path)
			}
		})
	}
}

func TestHeadersMethodsAndErrors(t *testing.T) {
	w := newWorld(t)
	c := w.add(staplesOf("a.example"), good24)
	w.settle()
	id := idOf(c)
	plain, refreshing := &Handler{Stapler: w.stapler}, &Handler{Stapler: w.stapler, Refresh: true}
	other := strings.Repeat("0", 64)
	for _, test := range []struct {
		h              *Handler
		method, target string
		status         int
		allow          string
	}{
		{plain, "GET", "/", 200, ""}, {plain, "HEAD", "/", 200, ""}, {plain, "GET", "/?format=json", 200, ""},
		{plain, "GET", "/?cert=" + id, 200, ""}, {plain, "HEAD", "/?format=der&cert=" + id, 200, ""}, {plain, "GET", "/?unknown=1", 200, ""},
		{plain, "POST", "/", 405, "GET, HEAD"}, {plain, "POST", "/?cert=" + id, 405, "GET, HEAD"}, {plain, "DELETE", "/?cert=" + id, 405, "GET, HEAD"},
		{plain, "OPTIONS", "/", 405, "GET, HEAD"}, {refreshing, "POST", "/", 405, "GET, HEAD"}, {refreshing, "PUT", "/?cert=" + id, 405, "GET, HEAD, POST"},
		{plain, "GET", "/a", 404, ""}, {plain, "GET", "/favicon.ico", 404, ""}, {plain, "GET", "/?cert=" + other, 404, ""},
		{plain, "GET", "/?format=json&cert=" + other, 404, ""}, {refreshing, "POST", "/?cert=" + other, 404, ""},
		{plain, "GET", "/?cert=abc", 400, ""}, {plain, "GET", "/?cert=" + strings.Repeat("g", 64), 400, ""}, {plain, "GET", "/?page=0", 400, ""},
		{plain, "GET", "/?page=x", 400, ""}, {plain, "GET", "/?page=-1&format=json", 400, ""}, {plain, "GET", "/?per=1001", 400, ""},
		{plain, "GET", "/?page=99999999999999999999", 400, ""}, {plain, "GET", "/?state=fine", 400, ""}, {plain, "GET", "/?format=xml", 400, ""},
		{plain, "GET", "/?format=der", 400, ""}, {plain, "GET", "/?q=" + strings.Repeat("a", 257), 400, ""}, {plain, "GET", "/?q=%ff", 400, ""},
		{plain, "GET", "/?q=%zz", 400, ""}, {plain, "GET", "/?a=1;b=2", 400, ""},
	} {
		t.Run(test.method+" "+test.target, func(t *testing.T) {
			r, body := ask(t, test.h, httptest.NewRequest(test.method, test.target, nil))
			require.Equal(t, test.status, r.StatusCode, body)
			require.Equal(t, test.allow, r.Header.Get("Allow"))
			require.Equal(t, "nosniff", r.Header.Get("X-Content-Type-Options"))
			require.Equal(t, "same-origin", r.Header.Get("Referrer-Policy"))
			require.Equal(t, "no-store", r.Header.Get("Cache-Control"))
			csp := r.Header.Get("Content-Security-Policy")
			for _, directive := range []string{"default-src 'none'", "frame-ancestors 'none'", "form-action 'self'", "base-uri 'none'"} {
				require.Contains(t, csp, directive)
			}
			require.NotContains(t, csp, "unsafe")
			require.NotContains(t, csp, "script")
			require.Equal(t, fmt.Sprint(len(body)), r.Header.Get("Content-Length"))
			if strings.Contains(test.target, "format=json") {
				require.Equal(t, "application/json", r.Header.Get("Content-Type"))
				require.True(t, json.Valid([]byte(body)))
				return
			} else if test.status == 200 && strings.Contains(test.target, "format=der") {
				return
			}
			require.Equal(t, "text/html; charset=utf-8", r.Header.Get("Content-Type"))
			_, css, _ := strings.Cut(body, "<style>")
			css, _, found := strings.Cut(css, "</style>")
			require.True(t, found)
			sum := sha256.Sum256([]byte(css))
			require.Contains(t, csp, "style-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'")
		})
	}
}

func TestRefresh(t *testing.T) {
	w := newWorld(t)
	c := w.add(staplesOf("a.example"), good24)
	none := w.add(stapletest.LeafOptions{Names: []string{"b.example"}, Responders: []string{}}, stapletest.Answer{})
	w.settle()
	target := "/?cert=" + idOf(c)
	_, body := get(t, &Handler{Stapler: w.stapler}, target)
	require.NotContains(t, body, "<button>Refresh")
	h := &Handler{Stapler: w.stapler, Refresh: true}
	_, body = get(t, h, target)
	require.Contains(t, body, `<form method="post" action="?cert=`+idOf(c)+`"><button>Refresh now</button></form>`)
	post := func(header ...string) *http.Response {
		r := httptest.NewRequest("POST", target, nil)
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		response, _ := ask(t, h, r)
		return response
	}
	asked := func() int { return len(w.responder.Requests(c.Status().Leaf)) }
	before := asked()
	for _, header := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "http://evil.test"}, {"Origin", "null"}} {
		require.Equal(t, http.StatusForbidden, post(header...).StatusCode, header)
	}
	require.Equal(t, before, asked())
	for _, header := range [][]string{{}, {"Sec-Fetch-Site", "same-origin"}, {"Origin", "http://example.com"}} {
		r := post(header...)
		require.Equal(t, http.StatusSeeOther, r.StatusCode)
		require.Equal(t, target[1:]+"&asked=ended", r.Header.Get("Location"))
		require.Greater(t, asked(), before)
		before = asked()
	}
	_, body = get(t, h, target+"&asked=ended")
	require.Contains(t, body, "The responder was asked")

	w.responder.Set(c.Status().Leaf, unavailable())
	require.Equal(t, target[1:]+"&asked=ended", post().Header.Get("Location"))
	_, body = get(t, h, target+"&asked=ended")
	require.Contains(t, body, "The attempt failed.")
	require.Contains(t, body, "503 Service Unavailable")

	target = "/?cert=" + idOf(none)
	require.Equal(t, http.StatusSeeOther, post().StatusCode)
	_, body = get(t, h, target+"&asked=ended")
	require.Contains(t, body, "There is nobody to ask.")
}

func TestRefreshDoesNotWaitForAResponderThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := w.add(staplesOf("hang.example"), stapletest.Answer{})
		h := &Handler{Stapler: w.stapler, Refresh: true}
		start := time.Now()
		r, _ := ask(t, h, httptest.NewRequest("POST", "/?cert="+idOf(c), nil))
		require.Equal(t, 5*time.Second, time.Since(start))
		require.Equal(t, http.StatusSeeOther, r.StatusCode)
		require.Equal(t, "?cert="+idOf(c)+"&asked=pending", r.Header.Get("Location"))
		_, body := get(t, h, "/?cert="+idOf(c)+"&asked=pending")
		require.Contains(t, body, "The responder has not answered yet.")

		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // the browser leaves
		defer cancel()
		start = time.Now()
		ask(t, h, httptest.NewRequest("POST", "/?cert="+idOf(c), nil).WithContext(ctx))
		require.Equal(t, time.Second, time.Since(start))
	})
}

func TestAClosedStaplerIsShown(t *testing.T) {
	w := newWorld(t)
	c := w.add(staplesOf("a.example"), good24)
	w.settle()
	require.NoError(t, w.stapler.Close())
	h := &Handler{Stapler: w.stapler, Refresh: true}
	_, body := get(t, h, "/")
	require.Contains(t, body, "not asked again")
	r, _ := ask(t, h, httptest.NewRequest("POST", "/?cert="+idOf(c), nil))
	require.Equal(t, http.StatusSeeOther, r.StatusCode)
}

func FuzzQuery(f *testing.F) {
	w := newWorld(f)
	c := w.add(staplesOf("a.example"), good24)
	w.settle()
	h := &Handler{Stapler: w.stapler}
	for _, seed := range []string{"", "q=a&state=stapled&page=2&per=3", "cert=" + idOf(c) + "&format=json", "format=der", "q=%22%3E%3Cscript%3E", "q=00:5a", "list=peers&state=answered&q=a", "asked=pending&cert=" + idOf(c)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.URL.RawQuery = raw
		response, body := ask(t, h, r)
		if response.StatusCode != 200 && response.StatusCode != 400 && response.StatusCode != 404 {
			t.Fatal(response.Status, body)
		}
		if response.Header.Get("Content-Type") != "application/json" && strings.Contains(body, "<script") {
			t.Fatal(body)
		}
		q, err := parseQuery(raw)
		if err != nil || q.cert != "" {
			return
		}
		again, err := parseQuery(strings.TrimPrefix(q.link(q.Page), "?"))
		q.format, q.asked = "", ""
		if err != nil || again != q {
			t.Fatalf("%+v became %+v, %v", q, again, err)
		}
	})
}
