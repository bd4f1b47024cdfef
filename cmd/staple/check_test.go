package main

import (
	"crypto/tls"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple/internal/testhttp"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// TestVerdicts has a row for each sentence about check's exit codes.
func TestVerdicts(t *testing.T) {
	fresh := stapletest.Answer{}
	old := stapletest.Answer{Age: 6 * day}   // of seven
	ended := stapletest.Answer{Age: 8 * day} // of seven
	revokes := stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise}
	unknowns := stapletest.Answer{Status: ocsp.Unknown}
	fails := stapletest.Answer{Error: ocsp.TryLater}
	forgery := func(w *lab) stapletest.Answer {
		return stapletest.Answer{Signer: stapletest.NewCA(stapletest.CAOptions{}).Signer()}
	}
	is := func(a stapletest.Answer) func(*lab) stapletest.Answer {
		return func(*lab) stapletest.Answer { return a }
	}
	noIssuer := func(o *stapletest.LeafOptions) { o.OmitIssuer = true }
	ends := func(o *stapletest.LeafOptions) {
		o.NotBefore, o.NotAfter = time.Now().Add(-9*day), time.Now().Add(-day)
	}

	tests := []struct {
		name    string
		staple  func(*lab) stapletest.Answer // nil: none
		answers func(*lab) stapletest.Answer // of the responder
		leaf    func(*stapletest.LeafOptions)
		args    []string
		file    bool

		verdict, status, reason string
		exit                    int
		says                    string // the error
	}{
		// 0: a good staple, or nobody to ask
		{"a good staple", is(fresh), is(fresh), nil, nil, false, good, good, "", 0, ""},
		{"a good staple, Must-Staple", is(fresh), is(fresh), mustStaple, nil, false, good, good, "", 0, ""},
		{"a good staple, and nobody else asked", is(fresh), is(fails), nil, []string{"-no-ask"}, false, good, good, "", 0, ""},
		{"a good staple of a certificate that names nobody", is(fresh), is(fails), noResponders, nil, false, good, good, "", 0, ""},
		{"nobody to ask", nil, is(fails), noResponders, nil, false, noResponder, "", "", 0, ""},
		{"nobody to ask by HTTP", nil, is(fails), func(o *stapletest.LeafOptions) { o.Responders = []string{"ldap://x/"} }, nil, false, noResponder, "", "", 0, ""},

		// 1: not stapled though it could be, about to end, or the responder is in trouble
		{"no staple", nil, is(fresh), nil, nil, false, missing, good, "", 1, "no staple, though the responder gives one"},
		{"no staple, and nobody asked", nil, is(fresh), nil, []string{"-no-ask"}, false, missing, "", "", 1, "no staple"},
		{"no staple, and the responder is in trouble", nil, is(fails), nil, nil, false, trouble, "", "unsuccessful", 1, "try later"},
		{"no staple, and the responder does not know it", nil, is(unknowns), nil, nil, false, unknown, unknown, "", 1, "does not know"},
		{"about to end", is(old), is(fresh), nil, nil, false, expiring, good, "", 1, "the staple is about to end"},
		{"about to end, and nothing newer", is(old), is(old), nil, nil, false, expiring, good, "", 1, "nothing newer"},
		{"about to end, but for -warn", is(old), is(fresh), nil, []string{"-warn", "10%"}, false, good, good, "", 0, ""},
		{"-warn of more", is(stapletest.Answer{Age: 2 * day}), is(fresh), nil, []string{"-warn=80"}, false, expiring, good, "", 1, ""},
		{"a good staple, and the responder is in trouble", is(fresh), is(fails), nil, nil, false, trouble, good, "unsuccessful", 1, "try later"},
		{"a good staple, and the responder forges", is(fresh), forgery, nil, nil, false, trouble, good, "unauthorized signer", 1, ""},
		{"a good staple, and the responder has forgotten", is(fresh), is(unknowns), nil, nil, false, trouble, good, "", 1, "any more"},

		// 2: revoked, a staple that does not verify or has ended, Must-Staple without
		{"a staple that says revoked", is(revokes), is(revokes), nil, nil, false, revoked, revoked, "keyCompromise", 2, "keyCompromise"},
		{"a staple that says revoked, alone", is(revokes), is(fresh), nil, nil, false, revoked, revoked, "keyCompromise", 2, ""},
		{"a good staple, and the responder says revoked", is(fresh), is(revokes), nil, nil, false, revoked, revoked, "keyCompromise", 2, ""},
		{"no staple, and the responder says revoked", nil, is(revokes), nil, nil, false, revoked, revoked, "keyCompromise", 2, ""},
		{"a staple that does not verify", forgery, is(fresh), nil, nil, false, invalid, "", "unauthorized signer", 2, "clients refuse"},
		{"a staple that is not OCSP", is(stapletest.Answer{Body: []byte("no")}), is(fresh), nil, nil, false, invalid, "", "malformed", 2, ""},
		{"a staple that is an error", is(fails), is(fresh), nil, nil, false, invalid, "", "unsuccessful", 2, "try later"},
		{"a staple from the future", is(stapletest.Answer{Age: -time.Hour}), is(fresh), nil, nil, false, invalid, "", "not yet valid", 2, ""},
		{"a staple that has ended", is(ended), is(fresh), nil, nil, false, expired, "", "expired", 2, "has ended"},
		{"a staple that has ended, and trouble", is(ended), is(fails), nil, nil, false, expired, "", "expired", 2, ""},
		{"a staple that has ended, and a revocation", is(ended), is(revokes), nil, nil, false, revoked, revoked, "keyCompromise", 2, ""},
		{"a staple that says unknown", is(unknowns), is(unknowns), nil, nil, false, unknown, unknown, "", 2, "clients refuse"},
		{"Must-Staple without", nil, is(fresh), mustStaple, nil, false, missing, good, "", 2, "Must-Staple"},
		{"Must-Staple without, and trouble", nil, is(fails), mustStaple, nil, false, missing, "", "unsuccessful", 2, "try later"},
		{"Must-Staple without, and nobody to ask", nil, is(fresh), func(o *stapletest.LeafOptions) { mustStaple(o); noResponders(o) }, nil, false, missing, "", "", 2, ""},
		{"Must-Staple without, and no issuer", nil, is(fresh), func(o *stapletest.LeafOptions) { mustStaple(o); noIssuer(o) }, nil, false, missing, "", "", 2, ""},
		{"an expired certificate", is(fresh), is(fresh), ends, nil, false, expired, "", "", 2, "the certificate itself ended"},
		{"an expired certificate without a staple", nil, is(fresh), ends, nil, false, expired, "", "", 2, "the certificate itself ended"},

		// 3: no issuer found
		{"no issuer", is(fresh), is(fresh), noIssuer, nil, false, trouble, "", "", 3, "issuer"},
		{"no issuer, and nobody asked for it", is(fresh), is(fresh), noIssuer, []string{"-no-ask"}, false, trouble, "", "", 3, "issuer"},
		{"no issuer, but -issuer", is(fresh), is(fresh), noIssuer, []string{"-issuer", "ISSUER"}, false, good, good, "", 0, ""},

		// with -ca a chain or name that does not verify is 2; without it, it is only mentioned
		{"-ca, and it verifies", is(fresh), is(fresh), nil, []string{"-ca", "ROOT"}, false, good, good, "", 0, ""},
		{"-ca with another root", is(fresh), is(fresh), nil, []string{"-ca", "OTHER"}, false, invalid, good, "", 2, "unknown authority"},
		{"-ca, and another name", is(fresh), is(fresh), nil, []string{"-ca", "ROOT", "-servername", "other.example"}, false, invalid, good, "", 2, "other.example"},
		{"-ca, another root, and revoked", is(fresh), is(revokes), nil, []string{"-ca", "OTHER"}, false, revoked, revoked, "keyCompromise", 2, ""},
		{"-ca, another root, and no issuer", nil, is(fresh), noIssuer, []string{"-ca", "OTHER"}, false, invalid, "", "", 2, ""},

		// of a file
		{"file: good", nil, is(fresh), nil, nil, true, good, good, "", 0, ""},
		{"file: Must-Staple", nil, is(fresh), mustStaple, nil, true, good, good, "", 0, ""},
		{"file: nobody to ask", nil, is(fresh), noResponders, nil, true, noResponder, "", "", 0, ""},
		{"file: about to end", nil, is(old), nil, nil, true, expiring, good, "", 1, "about to end"},
		{"file: unknown", nil, is(unknowns), nil, nil, true, unknown, unknown, "", 1, "does not know"},
		{"file: forged", nil, forgery, nil, nil, true, invalid, "", "unauthorized signer", 1, "not to be believed"},
		{"file: ended", nil, is(ended), nil, nil, true, expired, "", "expired", 1, "has ended"},
		{"file: no answer", nil, is(fails), nil, nil, true, trouble, "", "unsuccessful", 1, "try later"},
		{"file: no answer at all", nil, is(stapletest.Answer{Hang: true}), nil, nil, true, trouble, "", "", 1, "no complete answer"},
		{"file: revoked", nil, is(revokes), nil, nil, true, revoked, revoked, "keyCompromise", 2, ""},
		{"file: expired certificate", nil, is(fresh), ends, nil, true, expired, "", "", 2, "itself ended"},
		{"file: no issuer", nil, is(fresh), noIssuer, nil, true, trouble, "", "", 3, "issuer"},
		{"file: no issuer, but -issuer", nil, is(fresh), noIssuer, []string{"-issuer", "ISSUER"}, true, good, good, "", 0, ""},
		{"file: -ca", nil, is(fresh), nil, []string{"-ca", "ROOT"}, true, good, good, "", 0, ""},
		{"file: -ca with another root", nil, is(fresh), nil, []string{"-ca", "OTHER"}, true, invalid, good, "", 2, ""},
		{"file: -ca, and -servername", nil, is(fresh), nil, []string{"-ca", "ROOT", "-servername", "host.example"}, true, good, good, "", 0, ""},
		{"file: -ca, and another name", nil, is(fresh), nil, []string{"-ca", "ROOT", "-servername", "other.example"}, true, invalid, good, "", 2, "other.example"},
		{"file: -no-ask", nil, is(fresh), nil, []string{"-no-ask"}, true, unreachable, "", "", 3, "staple verify"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newLab(t)
				edit := tt.leaf
				if edit == nil {
					edit = func(*stapletest.LeafOptions) {}
				}
				cert := w.leaf(edit)
				if tt.staple != nil {
					cert = w.stapling(cert, tt.staple(w))
				}
				w.responder.Set(cert.Leaf, tt.answers(w))
				target := "host.example"
				if tt.file {
					target = write(t, "chain.pem", chainPEM(cert))
				} else {
					w.serve(cert)
				}
				args := []string{target}
				for _, a := range tt.args {
					switch a {
					case "ROOT":
						a = write(t, "root.pem", certPEM(w.ca.Root))
					case "OTHER":
						a = write(t, "other.pem", certPEM(stapletest.NewCA(stapletest.CAOptions{}).Root))
					case "ISSUER":
						a = write(t, "issuer.der", w.ca.Issuer.Raw)
					}
					args = append(args, a)
				}
				got := w.verdict(args...)
				require.Equal(t, tt.verdict, got.Verdict, "%+v", got)
				require.Equal(t, tt.exit, got.Exit, "%+v", got)
				require.Equal(t, tt.status, got.Status, "%+v", got)
				require.Equal(t, tt.reason, got.Reason, "%+v", got)
				require.Contains(t, got.Error, tt.says)
				require.Equal(t, tt.exit == 0, got.Error == "")
				require.Equal(t, tt.staple != nil, got.Stapled)
				for _, tls12 := range []bool{false, true} {
					if tls12 {
						args = append(args, "-tls12")
					}
					text, stderr, exit := w.check(args...)
					require.Equal(t, tt.exit, exit)
					require.Equal(t, tt.verdict == unreachable, stderr != "", stderr)
					require.Equal(t, tt.verdict != unreachable, strings.HasPrefix(text, target+": "+tt.verdict+"\n"), text)
					if !tt.file {
						require.Equal(t, tls12, strings.Contains(text, ", in TLS 1.2\n"), text)
						require.Equal(t, !tls12, strings.Contains(text, ", in TLS 1.3\n"), text)
					}
				}
			})
		})
	}
}

func TestOfSeveralTargetsTheWorstCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLab(t)
		cert := w.leaf()
		w.hosts["well.example:443"] = serving(&tls.Config{Certificates: []tls.Certificate{w.stapling(cert, stapletest.Answer{})}})
		w.hosts["soon.example:443"] = serving(&tls.Config{Certificates: []tls.Certificate{cert}})
		w.hosts["broken.example:8443"] = serving(&tls.Config{Certificates: []tls.Certificate{w.leaf(mustStaple)}})
		const well, soon, broken, gone = "well.example", "soon.example", "broken.example:8443", "gone.example"
		for _, tt := range []struct {
			targets []string
			exit    int
		}{
			{[]string{well, well}, 0}, {[]string{soon, well}, 1}, {[]string{well, gone, soon}, 3}, {[]string{gone, broken, soon}, 2}, {[]string{broken, gone}, 2},
		} {
			stdout, stderr, exit := w.check(append([]string{"-json"}, tt.targets...)...)
			require.Equal(t, tt.exit, exit, tt.targets)
			lines := strings.Split(strings.TrimSpace(stdout), "\n")
			require.Len(t, lines, len(tt.targets))
			for i, target := range tt.targets {
				require.True(t, strings.HasPrefix(lines[i], `{"target":"`+target+`",`), "in order: %s", lines[i])
			}
			require.Equal(t, strings.Contains(strings.Join(tt.targets, " "), gone), stderr != "", "a target that cannot be reached has a line")

			stdout, _, exit = w.check(append([]string{"-nagios"}, tt.targets...)...)
			require.Equal(t, tt.exit, exit, tt.targets)
			require.Equal(t, 1, strings.Count(stdout, "\n"))
		}
		_, stderr, _ := w.check(gone)
		require.Equal(t, "staple: gone.example: connecting: lookup gone.example:443: no such host: check the name\n", stderr)

		many := make([]string, 100)
		for i := range many {
			many[i] = well
		}
		_, _, exit := w.check(many...)
		require.Equal(t, 0, exit)
	})
}

func TestJSONHasAllFieldsAlways(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLab(t)
		cert := w.stapling(w.leaf(mustStaple), stapletest.Answer{Age: time.Hour})
		w.serve(cert)
		stdout, _, exit := w.check("-json", "host.example")
		require.Equal(t, 0, exit)
		require.Equal(t, `{"target":"host.example","verdict":"good","stapled":true,"must_staple":true,"status":"good",`+
			`"this_update":"1999-12-31T23:00:00Z","next_update":"2000-01-07T23:00:00Z","expires":"2000-01-07T23:00:00Z",`+
			`"responder":"http://ocsp.example","serial":"`+hexadecimal(cert.Leaf.SerialNumber)+`","name":"CN=host.example","reason":"","error":"","exit":0}`+"\n", stdout)

		stdout, _, exit = w.check("-json", "gone.example")
		require.Equal(t, 3, exit)
		require.Equal(t, `{"target":"gone.example","verdict":"unreachable","stapled":false,"must_staple":false,"status":"",`+
			`"this_update":"","next_update":"","expires":"","responder":"","serial":"","name":"","reason":"",`+
			`"error":"connecting: lookup gone.example:443: no such host: check the name","exit":3}`+"\n", stdout)

		cert = w.stapling(w.leaf(func(o *stapletest.LeafOptions) { o.NotAfter = time.Now().Add(6 * day) }), stapletest.Answer{Validity: -1})
		w.serve(cert)
		got := w.verdict("host.example")
		require.Equal(t, "", got.NextUpdate)
		require.Equal(t, "2000-01-02T00:00:00Z", got.Expires, "a day after thisUpdate")
		w.serve(w.stapling(cert, stapletest.Answer{}))
		got = w.verdict("host.example")
		require.Equal(t, "2000-01-08T00:00:00Z", got.NextUpdate)
		require.Equal(t, "2000-01-07T00:00:00Z", got.Expires, "the certificate's end")
	})
}

func TestNagiosGetsOneLineWithPerfdata(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLab(t)
		w.serve(w.stapling(w.leaf(), stapletest.Answer{Age: day}))
		stdout, _, _ := w.check("-nagios", "host.example")
		require.Equal(t, "STAPLE OK - host.example good, 6d 0h left | 'host.example'=518400s;151200:;0:;0;604800\n", stdout)
		w.hosts["old.example:443"] = serving(&tls.Config{Certificates: []tls.Certificate{w.stapling(w.leaf(), stapletest.Answer{Age: 6 * day})}})
		stdout, _, _ = w.check("-nagios", "host.example", "old.example", "gone.example")
		require.Equal(t, "STAPLE UNKNOWN - old.example expiring: the staple is about to end; "+
			"gone.example unreachable: connecting: lookup gone.example:443: no such host: check the name"+
			" | 'host.example'=518400s;151200:;0:;0;604800 'old.example'=86400s;151200:;0:;0;604800\n", stdout)
		stdout, _, _ = w.check("-nagios", "host.example", "host.example")
		require.Contains(t, stdout, "STAPLE OK - 2 targets | ")
		w.serve(w.leaf(noResponders))
		stdout, _, _ = w.check("-nagios", "host.example")
		require.Equal(t, "STAPLE OK - host.example no-responder\n", stdout)
		stdout, _, _ = w.check("-nagios", "a|b.example")
		require.NotContains(t, stdout, "|")
	})
}

func TestWhatAPersonSees(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLab(t)
		cert := w.leaf(mustStaple, func(o *stapletest.LeafOptions) { o.NotAfter = time.Now().Add(30 * day) })
		delegate := w.ca.Delegate(stapletest.DelegateOptions{})
		w.serve(w.stapling(cert, stapletest.Answer{Age: 6 * day, Signer: delegate}))
		stdout, stderr, exit := w.check("-ca", write(t, "root.pem", certPEM(w.ca.Root)), "host.example")
		require.Equal(t, 1, exit)
		require.Empty(t, stderr)
		_, serial, _ := strings.Cut(stdout, "serial ")
		serial, _, _ = strings.Cut(serial, "\n")
		require.Equal(t, `host.example: expiring
  certificate  CN=host.example, serial `+serial+`
               valid until 2000-01-31T00:00:00Z; Must-Staple
  stapled      good, signed by the issuer's delegate, CN=stapletest responder, in TLS 1.3
  responder    http://ocsp.example: good, signed by the issuer, CN=stapletest CA
  validity     1999-12-26T00:00:00Z [=========================|-----] 2000-01-02T00:00:00Z, 1d 0h left
  wrong        the staple is about to end
  to do        see that the host reaches its responder, and renews before the last quarter
`, stdout)
	})
}

func TestWithoutCAWhatDoesNotVerifyIsOnlyMentioned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLab(t)
		w.serve(w.stapling(w.leaf(), stapletest.Answer{}))
		stdout, _, exit := w.check("host.example")
		require.Equal(t, 0, exit)
		require.Contains(t, stdout, "mentioned    not verified, which only -ca FILE makes count: x509: ")
	})
}

func TestRespondersOfAHostAreAskedAtPublicAddressesAloneUnlessItVerifiesByCA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLab(t)
		cert := w.leaf()
		w.serve(cert)
		other := stapletest.NewCA(stapletest.CAOptions{})
		root, otherRoot, chain := write(t, "root.pem", certPEM(w.ca.Root)), write(t, "other.pem", certPEM(other.Root)), write(t, "chain.pem", chainPEM(cert))
		for _, tt := range []struct {
			publicOnly bool
			args       []string
		}{
			{true, []string{"host.example"}},
			{false, []string{"-ca", root, "host.example"}},
			{false, []string{"-ca", root, "-servername", "other.example", "host.example"}},
			{true, []string{"-ca", otherRoot, "host.example"}}, // whoever that is
			{false, []string{chain}},
			{false, []string{"-ca", otherRoot, chain}},
		} {
			w.requests = nil
			w.check(tt.args...)
			require.Equal(t, []bool{tt.publicOnly}, w.requests, tt.args)
		}
	})

	// And so it is by real sockets.
	w := newLab(t)
	url := testhttp.NewServer(t, w.responder)
	cert := w.leaf(func(o *stapletest.LeafOptions) { o.Responders = []string{url} })
	check := func(args ...string) jsonLine {
		w.serve(cert)
		c := checker{newClient: newClient}
		c.dial = w.dial
		return runJSON(t, &c, args...)
	}
	root := write(t, "root.pem", certPEM(w.ca.Root))
	got := check("host.example")
	require.Equal(t, missing, got.Verdict)
	require.Empty(t, got.Status)
	require.Empty(t, w.responder.Requests(nil))
	cert = w.stapling(cert, stapletest.Answer{})
	require.Equal(t, good, check("host.example").Verdict)
	require.Empty(t, w.responder.Requests(nil))
	w.responder.Set(nil, stapletest.Answer{Status: ocsp.Revoked})
	require.Equal(t, revoked, check("-ca", root, "host.example").Verdict)
	require.Len(t, w.responder.Requests(nil), 1)
	require.Equal(t, revoked, check(write(t, "chain.pem", chainPEM(cert))).Verdict, "a file is the operator's own")
}

func TestAHostThatDoesNotSendItsIssuerIsToldTo(t *testing.T) {
	w := newLab(t)
	cert := w.leaf()
	ca := write(t, "ca.pem", certPEM(w.ca.Issuer))
	w.serve(tls.Certificate{Certificate: cert.Certificate[:1], PrivateKey: cert.PrivateKey})
	stdout, _, exit := w.check("-ca", ca, "host.example")
	require.Equal(t, exitSoon, exit)
	require.Contains(t, stdout, "have the host send the issuer's certificate as well")
	w.serve(cert)
	stdout, _, _ = w.check("-ca", ca, "host.example")
	require.NotContains(t, stdout, "issuer's certificate as well")
	require.Contains(t, stdout, "switch stapling on")
}

func TestAResponseWithoutNextUpdateIsSaidToHaveNone(t *testing.T) {
	w := newLab(t)
	cert := w.leaf()
	w.serve(w.stapling(cert, stapletest.Answer{Validity: -1}))
	stdout, _, exit := w.check("-ca", write(t, "ca.pem", certPEM(w.ca.Issuer)), "host.example")
	require.Equal(t, exitWell, exit, stdout)
	require.Contains(t, stdout, "there is no nextUpdate, and a day is counted")
}

func TestAnIssuerIsFoundWhereTheCertificateSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLab(t)
		w.transport = testhttp.RoundTripper(func(r *http.Request) (*http.Response, error) {
			if r.URL.Host == "ca.example" {
				return response(w.ca.Issuer.Raw), nil
			}
			return w.responder.RoundTrip(r)
		})
		cert := w.leaf(func(o *stapletest.LeafOptions) {
			o.OmitIssuer, o.IssuerURLs = true, []string{"http://ca.example/ca.der"}
		})
		w.serve(w.stapling(cert, stapletest.Answer{}))
		require.Equal(t, good, w.verdict("host.example").Verdict)
		require.Equal(t, 3, w.verdict("-no-ask", "host.example").Exit)
		w.ca = &stapletest.CA{Root: w.ca.Issuer, RootKey: w.ca.Key, Issuer: w.ca.Issuer, Key: w.ca.Key}
		require.Equal(t, good, w.verdict("-no-ask", "-ca", write(t, "root.pem", certPEM(w.ca.Root)), "host.example").Verdict, "-ca has it, too")
	})
}

func TestUnknownIsAskedAgainWithTheOtherHash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLab(t)
		w.transport = testhttp.RoundTripper(func(r *http.Request) (*http.Response, error) {
			a := stapletest.Answer{Status: ocsp.Unknown}
			if hashName(r) == "SHA-256 " {
				a.Status = ocsp.Good
			}
			w.responder.Set(nil, a)
			return w.responder.RoundTrip(r)
		})
		w.serve(w.leaf())
		require.Equal(t, missing, w.verdict("host.example").Verdict)
	})
}

func TestVerboseShowsEachRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLab(t)
		cert := w.leaf()
		w.serve(w.stapling(cert, stapletest.Answer{}))
		w.responder.Set(nil, stapletest.Answer{Delay: 30 * time.Millisecond})
		_, stderr, _ := w.check("-v", "host.example")
		require.Regexp(t, `^GET SHA-1 http://ocsp\.example/[A-Za-z0-9%]+: 200, \d+ bytes, 30ms\n$`, stderr)
		w.responder.Set(nil, stapletest.Answer{HTTPStatus: 500, Body: []byte("oops")})
		_, stderr, _ = w.check("-v", "-json", "host.example")
		require.Contains(t, stderr, ": 500, 4 bytes, 0s\n")
		w.transport = testhttp.RoundTripper(func(r *http.Request) (*http.Response, error) { return nil, errors.New("no\x1b[2J way") })
		_, stderr, _ = w.check("-v", "host.example")
		require.Contains(t, stderr, `: no\x1b[2J way, 0s`)
		require.NotContains(t, stderr, "\x1b")
	})
}
