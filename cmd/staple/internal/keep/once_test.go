//go:build unix

package keep

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-staple/staple/cmd/staple/internal/verdict"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

func TestOnceDoesWhatIsDueAndTellsByItsExitCode(t *testing.T) {
	down := stapletest.Answer{HTTPStatus: 500, Body: []byte("down")}
	expired := func(o *stapletest.LeafOptions) {
		o.NotBefore, o.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
	}
	nobody := func(o *stapletest.LeafOptions) { o.Responders = nil }
	for name, test := range map[string]struct {
		leaf    func(*stapletest.LeafOptions)
		before  *stapletest.Answer // what lies there
		answer  stapletest.Answer
		exit    int
		verdict string
		there   bool
		line    string
	}{
		"good":                              {exit: well, verdict: "good", there: true},
		"good, Must-Staple":                 {leaf: world.MustStaple, exit: well, verdict: "good", there: true},
		"good and not due":                  {before: &stapletest.Answer{Age: time.Hour, Validity: 4 * time.Hour}, answer: down, exit: well, verdict: "good", there: true},
		"due and renewed":                   {before: &stapletest.Answer{Age: 3 * time.Hour, Validity: 4 * time.Hour}, exit: well, verdict: "good", there: true},
		"due and the responder is down":     {before: &stapletest.Answer{Age: 150 * time.Minute, Validity: 4 * time.Hour}, answer: down, exit: soon, verdict: "trouble", there: true, line: "not renewed, and good until"},
		"nearly over, and nothing newer":    {before: &stapletest.Answer{Age: 210 * time.Minute, Validity: 4 * time.Hour}, answer: stapletest.Answer{Age: 210 * time.Minute, Validity: 4 * time.Hour}, exit: soon, verdict: "expiring", there: true, line: "nothing newer"},
		"due, and nothing newer":            {before: &stapletest.Answer{Age: 150 * time.Minute, Validity: 4 * time.Hour}, answer: stapletest.Answer{Age: 150 * time.Minute, Validity: 4 * time.Hour}, exit: well, verdict: "good", there: true},
		"ended and the responder is down":   {before: &stapletest.Answer{Age: 5 * time.Hour, Validity: 4 * time.Hour}, answer: down, exit: soon, verdict: "missing", line: "HTTP status 500"},
		"missing":                           {answer: down, exit: soon, verdict: "missing", line: "HTTP status 500"},
		"the responder hangs":               {answer: stapletest.Answer{Hang: true}, exit: soon, verdict: "missing"},
		"forged":                            {answer: stapletest.Answer{Body: []byte("x")}, exit: soon, verdict: "missing"},
		"unknown":                           {answer: stapletest.Answer{Status: ocsp.Unknown}, exit: soon, verdict: "missing"},
		"missing, Must-Staple":              {leaf: world.MustStaple, answer: down, exit: broken, verdict: "missing", line: "Must-Staple without a response"},
		"revoked":                           {before: &stapletest.Answer{Age: 3 * time.Hour, Validity: 4 * time.Hour}, answer: stapletest.Answer{Status: ocsp.Revoked, RevocationReason: ocsp.KeyCompromise}, exit: broken, verdict: "revoked", line: "keyCompromise"},
		"nobody to ask":                     {leaf: nobody, exit: well, verdict: "no-responder"},
		"nobody to ask, Must-Staple":        {leaf: func(o *stapletest.LeafOptions) { nobody(o); o.MustStaple = true }, exit: broken, verdict: "missing", line: "Must-Staple"},
		"the certificate itself is expired": {leaf: expired, exit: soon, verdict: "expired", line: "has expired"},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(s *scene) {
				if test.leaf == nil {
					test.leaf = func(*stapletest.LeafOptions) {}
				}
				leaf := s.chain("a.pem", test.leaf)
				if test.before != nil {
					require.NoError(t, os.WriteFile(s.path("a.pem.ocsp"), s.answer(leaf, *test.before), 0o644))
				}
				s.Responder.Set(nil, test.answer)
				began := time.Now()
				exit, out := s.once("-json", "./a.pem")
				require.LessOrEqual(t, time.Since(began), 40*time.Second)
				require.Equal(t, test.exit, exit, s.log)
				require.Equal(t, test.there, s.exists("a.pem.ocsp"))
				if test.there {
					s.good("a.pem.ocsp", leaf)
				}
				lines := strings.Count(s.log.String(), "\n")
				if exit == well {
					require.Zero(t, lines, "cron sends what is written: %s", s.log)
				} else {
					require.Equal(t, 1, lines, s.log)
					require.Contains(t, s.log.String(), s.path("a.pem"))
					require.Contains(t, s.log.String(), test.line)
				}
				var o map[string]any
				require.NoError(t, json.Unmarshal([]byte(out), &o))
				require.Len(t, o, 14)
				require.Equal(t, test.verdict, o["verdict"])
				require.EqualValues(t, exit, o["exit"])
				require.Equal(t, test.there, o["stapled"])
				require.Equal(t, exit != well, o["error"] != "")
			})
		})
	}
}

func TestOnceTakesTheWorstOfAll(t *testing.T) {
	require.Equal(t, broken, verdict.Worse(broken, untold))
	require.Equal(t, untold, verdict.Worse(soon, untold))
	require.Equal(t, soon, verdict.Worse(soon, well))
	play(t, func(s *scene) {
		a, b := s.chain("a.pem"), s.chain("b.pem")
		s.Responder.Set(b, stapletest.Answer{Status: ocsp.Revoked})
		exit, out := s.once("-json", ".", "./nothing.pem")
		require.Equal(t, broken, exit)
		require.Equal(t, 3, strings.Count(out, "\n"))
		s.good("a.pem.ocsp", a)
		exit, _ = s.once("./a.pem", "./nothing.pem")
		require.Equal(t, untold, exit)
	})
}

func TestOnceRemovesTheResponseOfAFileThatIsGone(t *testing.T) {
	play(t, func(s *scene) {
		s.chain("a.pem")
		exit, _ := s.once("./a.pem")
		require.Equal(t, well, exit)
		s.remove("a.pem")
		require.True(t, s.exists("a.pem.ocsp"))
		exit, _ = s.once("./a.pem")
		require.Equal(t, untold, exit)
		require.False(t, s.exists("a.pem.ocsp"))
		require.NoError(t, os.WriteFile(s.path("b.pem.ocsp"), []byte("no response"), 0o644))
		_, _ = s.once("./b.pem")
		require.True(t, s.exists("b.pem.ocsp"), "not ours")
	})
}

// Each costs one line, and -once ends with 3.
func TestAFileThatIsNamedAndCannotBeUsed(t *testing.T) {
	for name, test := range map[string]struct {
		make func(s *scene)
		line string
	}{
		"missing":          {func(s *scene) {}, "there is no such file"},
		"empty":            {func(s *scene) { s.write("a.pem", nil) }, "no certificate"},
		"text":             {func(s *scene) { s.write("a.pem", []byte("hello\n")) }, "no certificate"},
		"a key alone":      {func(s *scene) { s.write("a.pem", keyPEM(s.T, s.Leaf())) }, "a key and no certificate"},
		"half a key":       {func(s *scene) { s.write("a.pem", keyPEM(s.T, s.Leaf())[:60]) }, "a key and no certificate"},
		"a CA":             {func(s *scene) { s.write("a.pem", encode(s.CA.Issuer.Raw)) }, "is a CA's"},
		"half a chain":     {func(s *scene) { b := encode(s.Leaf().Certificate...); s.write("a.pem", b[:len(b)-100]) }, "damaged"},
		"half a leaf":      {func(s *scene) { s.write("a.pem", encode(s.Leaf().Certificate[0])[:100]) }, "damaged"},
		"no certificate":   {func(s *scene) { s.write("a.pem", encode([]byte("x"))) }, "does not parse"},
		"huge":             {func(s *scene) { s.write("a.pem", make([]byte, maxFile+1)) }, "more than 262144 bytes"},
		"endless":          {func(s *scene) { require.NoError(s, os.Symlink("/dev/zero", s.path("a.pem"))) }, "not a regular file"},
		"a pipe":           {func(s *scene) { require.NoError(s, syscall.Mkfifo(s.path("a.pem"), 0o644)) }, "not a regular file"},
		"a link in a ring": {func(s *scene) { require.NoError(s, os.Symlink("a.pem", s.path("a.pem"))) }, "too many levels"},
		"many beginnings":  {func(s *scene) { s.write("a.pem", bytes.Repeat([]byte("-----BEGIN CERTIFICATE-----\n"), maxFile/28)) }, "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(s *scene) {
				test.make(s)
				exit, _ := s.once("./a.pem")
				require.Equal(t, untold, exit)
				require.Equal(t, 1, strings.Count(s.log.String(), "\n"), s.log)
				require.Contains(t, s.log.String(), test.line)
				require.Contains(t, s.log.String(), s.path("a.pem"))

				s.log = new(output)
				s.start("./a.pem")
				s.pass(10 * time.Minute)
				require.Equal(t, 1, strings.Count(s.log.String(), "\n"), s.log)
				require.Contains(t, s.log.String(), test.line)
				os.Remove(s.path("a.pem"))
				leaf := s.chain("a.pem")
				s.pass(1100 * time.Millisecond)
				s.good("a.pem.ocsp", leaf)
			})
		})
	}
}

func TestAChainThatIsBrokenForAWhileKeepsItsResponse(t *testing.T) {
	play(t, func(s *scene) {
		s.Responder.Set(nil, validity(10*time.Minute))
		cert := s.Leaf()
		data := encode(cert.Certificate...)
		s.write("a.pem", data)
		s.start(".")
		require.NoError(t, os.WriteFile(s.path("a.pem"), data[:len(data)-50], 0o644))
		s.pass(time.Hour)
		s.good("a.pem.ocsp", cert.Leaf)
		require.Equal(t, 1, strings.Count(s.log.String(), "level=WARN"), s.log)
		s.write("a.pem", data)
		s.pass(2 * time.Second)
		require.Contains(t, s.log.String(), "can be used again")
		require.Len(t, s.keeper.files, 1)
	})
}
