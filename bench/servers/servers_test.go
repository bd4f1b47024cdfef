package main

import (
	"cmp"
	"crypto"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/stapletest"
)

// TestMain lets the test binary be the server with staple, as the command is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		main()
		return
	}
	os.Setenv("GORACE", "atexit_sleep_ms=0") // for the servers, which would take a second each to end
	code := m.Run()
	os.RemoveAll(commandDir())
	os.Exit(code)
}

// observeOne puts one server through all faults, four at a time. The times that come out say nothing: tests run side by side.
func observeOne(t *testing.T, s server) (col column) {
	col.seen = make([][]observation, len(faults))
	var next atomic.Int64
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(faults); i = int(next.Add(1)) - 1 {
				columns, err := observe(t.Context(), t.Output(), course{later: 200 * time.Millisecond, quiet: 3}, []server{s}, faults[i:i+1])
				if assert.NoError(t, err, faults[i].name) {
					col.seen[i] = columns[0].seen[0]
				}
			}
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return col
}

func wordsOf(seen []observation) (words []string) {
	for _, o := range seen {
		words = append(words, o.word)
	}
	return words
}

func TestStapleKeepsItsStapleAndIsNeverRefused(t *testing.T) {
	t.Parallel()
	want := map[string]string{ // the rest: none, none, none
		"quiet":                             "^(none, )*(none|good)(, good)*$",
		"quiet, Must-Staple":                "^good, good, good$",
		"responder down, stapled before":    "^good, good, good$",
		"restart in an outage":              "^good, good, good$",
		"restart in an outage, Must-Staple": "^good, good, good$",
	}
	col := observeOne(t, withStaple)
	for i, f := range faults {
		for _, o := range col.seen[i] {
			require.Equal(t, f.hopeless, o.refused, f.name)
		}
		pattern := want[f.name]
		if pattern == "" {
			pattern = "^none, none, none$"
		}
		require.Regexp(t, pattern, strings.Join(wordsOf(col.seen[i]), ", "), f.name)
		delete(want, f.name)
	}
	require.Empty(t, want)
}

// What docs/measurements.md says of them.
func TestPeersStapleWhatTheTableSays(t *testing.T) {
	const mayCome = "^(none, )*(good(, )?)*$" // depending on who is faster
	wants := map[string]map[string]string{
		nginx.name: { // the rest: none, none, none
			"quiet":                          mayCome,
			"quiet, Must-Staple":             mayCome,
			"responder down, stapled before": "^good, good, good$",
		},
		apache.name: { // the rest: tryLater
			"quiet":                               "^good, good, good$",
			"quiet, Must-Staple":                  "^good, good, good$",
			"responder down, stapled before":      "^good, good, good$",
			"outage longer than the staple lasts": "^expired, expired, expired$",
			"answer: expired":                     "^expired, expired, expired$",
			"answer: for the wrong certificate":   "^wrong certificate, wrong certificate, wrong certificate$",
			"answer: forged by a sibling leaf":    "^forged, forged, forged$",
			"answer: revoked":                     "^revoked, revoked, revoked$",
		},
	}
	rest := map[string]string{
		nginx.name:  "^none, none, none$",
		apache.name: "^tryLater response, tryLater response, tryLater response$",
	}
	for _, s := range []server{nginx, apache} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			if _, err := s.version(); err != nil {
				peer.Missing(t, s.name, err)
			}
			col := observeOne(t, s)
			for i, f := range faults {
				words := strings.Join(wordsOf(col.seen[i]), ", ")
				require.Regexp(t, cmp.Or(wants[s.name][f.name], rest[s.name]), words, f.name)
				for _, o := range col.seen[i] {
					require.Equal(t, o.word != "good" && (o.word != "none" || f.mustStaple), o.refused, "%s: %s", f.name, o.word)
				}
			}
		})
	}
}

// With staple keep, servers staple what is to be had, and nothing else.
func TestServersWithStapleKeepAreNeverRefused(t *testing.T) {
	want := map[string]string{ // the rest: none, none, none
		"quiet":                             "^good, good, good$",
		"quiet, Must-Staple":                "^good, good, good$",
		"responder down, stapled before":    "^good, good, good$",
		"restart in an outage":              "^good, good, good$",
		"restart in an outage, Must-Staple": "^good, good, good$",
	}
	for _, s := range []server{nginxKeep, haproxyKeep} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			if _, err := s.version(); err != nil {
				peer.Missing(t, s.name, err)
			}
			col := observeOne(t, s)
			for i, f := range faults {
				require.Regexp(t, cmp.Or(want[f.name], "^none, none, none$"), strings.Join(wordsOf(col.seen[i]), ", "), f.name)
				for _, o := range col.seen[i] {
					require.Equal(t, f.hopeless, o.refused, f.name)
				}
			}
		})
	}
}

func TestEachStapleHasItsWord(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
	leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
	sibling := ca.Leaf(stapletest.LeafOptions{})
	signer := &stapletest.Signer{Certificate: sibling.Leaf, Key: sibling.PrivateKey.(crypto.Signer)}
	edited := func(edit func(r *stapletest.Response)) []byte {
		r := stapletest.NewResponse(ca, leaf)
		edit(r)
		return r.DER()
	}
	single := func(edit func(s *stapletest.Single)) []byte {
		return edited(func(r *stapletest.Response) { edit(&r.Singles[0]) })
	}
	broken := edited(func(*stapletest.Response) {})
	broken[len(broken)-1]++ // the end of the signature
	for _, tt := range []struct {
		want     string
		response []byte
	}{
		{"none", nil},
		{"good", edited(func(*stapletest.Response) {})},
		{"good", edited(func(r *stapletest.Response) { r.Signer = ca.Delegate(stapletest.DelegateOptions{}) })},
		{"revoked", single(func(s *stapletest.Single) { s.Status = ocsp.Revoked })},
		{"unknown", single(func(s *stapletest.Single) { s.Status = ocsp.Unknown })},
		{"expired", single(func(s *stapletest.Single) {
			s.ThisUpdate, s.NextUpdate = time.Now().Add(-time.Hour), time.Now().Add(-time.Second)
		})},
		{"not yet valid", single(func(s *stapletest.Single) { s.ThisUpdate = time.Now().Add(time.Hour) })},
		{"garbage", []byte("no OCSP response")},
		{"wrong certificate", stapletest.NewResponse(ca, sibling.Leaf).DER()},
		{"forged", edited(func(r *stapletest.Response) { r.Signer = signer })},
		{"forged", broken},
		{"tryLater response", edited(func(r *stapletest.Response) { r.Status = ocsp.TryLater })},
		{"unauthorized response", edited(func(r *stapletest.Response) { r.Status = ocsp.Unauthorized })},
	} {
		require.Equal(t, tt.want, word(tt.response, leaf, ca.Issuer))
	}
}

func TestAServerThatIsMissingHasAColumnThatSaysSo(t *testing.T) {
	t.Parallel()
	missing := server{name: "missing", version: func() (string, error) { return version("no-such-server") }}
	var stderr strings.Builder
	i := slices.IndexFunc(faults, func(f fault) bool { return f.name == "responder down at start" })
	down := faults[i : i+1]
	columns, err := observe(t.Context(), &stderr, course{quiet: 1}, []server{withStaple, missing}, down)
	require.NoError(t, err)
	require.Equal(t, "servers: missing is not installed\n", stderr.String())
	rows := rows(course{quiet: 1}, columns, down)
	require.Equal(t, []string{"fault", "staple", "missing"}, rows[0])
	require.Equal(t, "quiet, median of 1", rows[1][0])
	require.Regexp(t, `^\([0-9.]+ ms\)$`, rows[1][1])
	require.Equal(t, "responder down at start", rows[2][0])
	require.Regexp(t, `^none \([0-9.]+ ms`, rows[2][1])
	require.Equal(t, []string{"not installed", "not installed"}, []string{rows[1][2], rows[2][2]})
}

func TestAHopelessFaultStandsBelowTheTable(t *testing.T) {
	hard := []fault{{name: "hard"}, {name: "hopeless", hopeless: true}}
	seen := []observation{{"none", true, time.Second}}
	columns := []column{{name: "ours", median: 1, seen: [][]observation{seen, seen}}, {name: "missing"}}
	require.Equal(t, [][]string{{"fault", "ours", "missing"}, {"quiet, median of 1", "(0.0 ms)", "not installed"},
		{"hard", "none ✗ (1000.0 ms)", "not installed"}}, rows(course{quiet: 1}, columns, hard))
	require.Equal(t, "ours none ✗ (1000.0 ms)", everywhere(columns, 1))
}

func TestAServerThatDoesNotStartSaysWhy(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	_, err = startProgram(t.Context(), "127.0.0.1:1", self, "serve", t.TempDir(), "127.0.0.1:1")
	require.ErrorContains(t, err, "fullchain.pem: no such file")
	_, err = startProgram(t.Context(), "127.0.0.1:1", "no-such-server")
	require.ErrorIs(t, err, exec.ErrNotFound)
}

func TestCellsAndVerdict(t *testing.T) {
	const ms = time.Millisecond
	same := []observation{{"good", false, 3 * ms}, {"good", false, 2 * ms}, {"good", false, 1 * ms}}
	late := []observation{{"none", false, 1 * ms}, {"none", false, 2 * ms}, {"good", false, 51500 * time.Microsecond}}
	refused := []observation{{"expired", true, 1 * ms}, {"expired", true, 10000 * ms}, {"none", false, 1 * ms}}
	lost := []observation{{"good", false, 1 * ms}, {"none", false, 1 * ms}, {"good", false, 1 * ms}}
	require.Equal(t, "good (3.0 ms)", words(same))
	require.Equal(t, "good, none, good (1.0 ms)", words(lost))
	require.Equal(t, "none, none, good (1.0 ms, slowest 51.5 ms)", words(late))
	require.Equal(t, "expired ✗, expired ✗, none (1.0 ms, slowest 10000.0 ms)", words(refused))

	for _, tt := range []struct {
		seen          [][]observation
		median        time.Duration
		fast, refused string
	}{
		{[][]observation{same, late}, 2 * ms, "slowest of 6 handshakes 51.5 ms, quiet median 2.0 ms, 50.0 ms apart at most: ok", "0 of 6: ok"},
		{[][]observation{same, late}, 1 * ms, "slowest of 6 handshakes 51.5 ms, quiet median 1.0 ms, 50.0 ms apart at most: NOT OK", "0 of 6: ok"},
		{[][]observation{same, refused}, 9990 * ms, "slowest of 6 handshakes 10000.0 ms, quiet median 9990.0 ms, 50.0 ms apart at most: ok", "2 of 6: NOT OK"},
	} {
		var out strings.Builder
		hopeless := append(slices.Clone(tt.seen), refused)
		faults := append(make([]fault, len(tt.seen)), fault{name: "hopeless", hopeless: true})
		err := check(&out, column{name: "ours", median: tt.median, seen: hopeless}, faults)
		require.Equal(t, "ours: "+tt.fast+"\nours: refused by staple.ResponseVerifier: "+tt.refused+"\n", out.String())
		if strings.Contains(out.String(), "NOT OK") {
			require.Error(t, err)
		} else {
			require.NoError(t, err)
		}
	}
}
