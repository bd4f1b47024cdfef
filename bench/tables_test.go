package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/go-staple/staple"
)

// cells returns the cells of a table, without the heading, as run prints it.
func cells(t *testing.T, word string, most int) (rows [][]string) {
	var out strings.Builder
	require.NoError(t, run(&out, "1x", most, []string{word}))
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Greater(t, len(lines), 4, out.String())
	for _, line := range lines[4:] {
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, cells)
	}
	return rows
}

// requireCells requires that the rows match the patterns, cell by cell.
func requireCells(t *testing.T, want, rows [][]string) {
	require.Len(t, rows, len(want))
	for i, row := range rows {
		require.Len(t, row, len(want[i]))
		for j, cell := range row {
			require.Regexp(t, regexp.MustCompile("^"+want[i][j]+"$"), cell)
		}
	}
}

func TestAFleetIsWhatItSays(t *testing.T) {
	f := newFleet(20, "http://ocsp.example.net")
	require.Len(t, f.certs, 20)
	require.Len(t, f.staples, 20) // so no name comes twice
	var verifier staple.ResponseVerifier
	for i, cert := range f.certs {
		require.NoError(t, cert.Leaf.VerifyHostname(f.names[i]))
		require.NoError(t, cert.Leaf.CheckSignatureFrom(f.issuer))
		require.Equal(t, []string{"http://ocsp.example.net"}, cert.Leaf.OCSPServer)
		_, _, err := verifier.Verify(f.staples[f.names[i]], cert.Leaf, f.issuer, time.Now())
		require.NoError(t, err)
	}
	require.Equal(t, f.names, newFleet(20, "").names, "the same names each time")
}

func TestTheHelloIsOfTLS13(t *testing.T) {
	hello, err := captureHello()
	require.NoError(t, err)
	require.Equal(t, uint16(tls.VersionTLS13), hello.SupportedVersions[0])
	require.Contains(t, hello.SignatureSchemes, tls.ECDSAWithP256AndSHA256)
	require.NotNil(t, hello.Conn)
	f := newFleet(2, "")
	hello.ServerName = f.names[1]
	require.NoError(t, hello.SupportsCertificate(&f.certs[1]))
	require.Error(t, hello.SupportsCertificate(&f.certs[0]))
}

func TestCheckNoticesWhatIsNotServed(t *testing.T) {
	f := newFleet(3, "")
	hellos := hellosFor(f.names, tls.ClientHelloInfo{})
	stapled := f.stapled()
	require.NoError(t, f.check(bare(f.names, stapled), hellos))
	require.ErrorContains(t, f.check(bare(f.names, f.certs), hellos), "is not stapled")
	require.ErrorContains(t, f.check(bare(f.names[:2], stapled[:2]), hellos), "not the certificate for")
	stapled[0], stapled[2] = stapled[2], stapled[0]
	require.ErrorContains(t, f.check(bare(f.names, stapled), hellos), "not the certificate for")
	stapled[0] = stapled[2]
	stapled[0].OCSPStaple = f.staples[f.names[1]]
	require.ErrorContains(t, f.check(bare(f.names, stapled), hellos), "is not stapled")
}

func TestSelectionsServeStapled(t *testing.T) {
	hello, err := captureHello()
	require.NoError(t, err)
	for _, n := range []int{1, 2, 50} {
		f := newFleet(n, "http://ocsp.example.net")
		all, stop, err := selections(f, hello)
		require.NoError(t, err)
		defer stop()
		for _, s := range all {
			require.NoError(t, f.check(s.get, s.hellos), s.name)
			require.NoError(t, f.check(s.get, hellosFor(f.names, hello)), s.name)
			require.NoError(t, s.contender().call(), s.name)
		}
		var asked []string
		for _, h := range all[0].hellos {
			asked = append(asked, h.ServerName)
		}
		require.ElementsMatch(t, f.names, asked)
		require.Equal(t, all[0].hellos, all[1].hellos)
		require.Equal(t, all[0].hellos, all[2].hellos)
	}
}

func TestASelectionNoticesThatThereIsNone(t *testing.T) {
	f := newFleet(2, "")
	s := selection{"bare", bare(f.names[:1], f.stapled()[:1]), hellosFor(f.names, tls.ClientHelloInfo{}), 1}
	call := s.contender().call
	require.NoError(t, call())
	require.EqualError(t, call(), "no certificate")
}

func TestHandshakesAreStapled(t *testing.T) {
	contenders, stop, err := handshakes()
	require.NoError(t, err)
	defer stop()
	require.Len(t, contenders, 5)
	for _, c := range contenders {
		for range 2 {
			require.NoError(t, c.call(), c.name)
		}
	}
	f := newFleet(1, "")
	require.Error(t, handshake(&tls.Config{Certificates: f.certs}, f.names[0]), "no staple")
	require.Error(t, handshake(&tls.Config{Certificates: f.stapled(), MaxVersion: tls.VersionTLS12}, f.names[0]))
	require.Error(t, handshake(new(tls.Config), f.names[0]))
}

func TestKeepersServeStapled(t *testing.T) {
	hello, err := captureHello()
	require.NoError(t, err)
	f := newFleet(20, "http://ocsp.example.net")
	for _, k := range keepers {
		get, stop, err := k.keep(f, f.certs)
		require.NoError(t, err, k.name)
		require.NoError(t, f.check(get, hellosFor(f.names, hello)), k.name)
		stop()
	}
}

func TestAKeeperMeasuresWhatIsKept(t *testing.T) {
	const size = 1 << 20
	f := newFleet(1, "")
	end := make(chan struct{})
	k := keeper{"", func(f *fleet, certs []tls.Certificate) (getCertificate, func(), error) {
		kept := make([]byte, size)
		stapled := f.stapled()
		for range 3 {
			go func() { <-end }()
		}
		return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			runtime.KeepAlive(kept)
			return &stapled[0], nil
		}, func() { close(end) }, nil
	}}
	heap, goroutines, err := k.measure(f, tls.ClientHelloInfo{})
	require.NoError(t, err)
	require.InDelta(t, size, heap, size/4)
	require.Equal(t, 3, goroutines)
}

func TestFirstsStaple(t *testing.T) {
	f, server, err := newResponder(20, 0)
	require.NoError(t, err)
	defer server.Close()
	for _, c := range f.firsts(5) {
		require.NoError(t, c.call(), c.name)
	}
	f.staples[f.names[3]] = f.staples[f.names[4]] // what the responder says is now another's
	require.ErrorContains(t, f.getAll(func([]byte, int) error { return nil }), "not the response about "+f.names[3])
	require.ErrorContains(t, f.magicAll(5), "is not stapled")
}

func TestFirstsFailWithoutAResponder(t *testing.T) {
	f, server, err := newResponder(1, 0)
	require.NoError(t, err)
	server.Close()
	for _, c := range f.firsts(1) {
		require.Error(t, c.call(), c.name)
	}
}

func TestRestartsStapleAndAskForNothing(t *testing.T) {
	f := newFleet(20, "http://ocsp.example.net")
	dir := t.TempDir()
	files, err := f.cachedIn(dir)
	require.NoError(t, err)
	memory, err := f.cached()
	require.NoError(t, err)
	for _, r := range []*restart{memory, files} {
		all := append(r.all(), r.one()...)
		for _, c := range all {
			require.NoError(t, c.call(), c.name)
		}
		require.NoError(t, r.cache.Delete(t.Context(), keyOf(f.certs[3])))
		require.ErrorIs(t, all[0].call(), staple.ErrCacheMiss)
		require.ErrorContains(t, all[1].call(), "20 of 20 certificates are stapled, after 1 requests")
	}
}

func TestTheResponderTakesGETAndPOSTAndItsTime(t *testing.T) {
	f, server, err := newResponder(2, latency)
	require.NoError(t, err)
	defer server.Close()
	began := time.Now()
	body, err := f.get(server.Client(), 1)
	require.NoError(t, err)
	require.GreaterOrEqual(t, time.Since(began), latency)
	require.Equal(t, f.staples[f.names[1]], body)
	fetcher := &staple.HTTPFetcher{
		Client: server.Client(),
		URLs:   func(*x509.Certificate) []string { return []string{server.URL + "/?"} }, // which makes it use POST
	}
	body, err = fetcher.Fetch(context.Background(), &staple.Request{Leaf: f.certs[0].Leaf, Issuer: f.issuer})
	require.NoError(t, err)
	require.Equal(t, f.staples[f.names[0]], body)
	resp, err := server.Client().Get(server.URL + "/nonsense")
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusBadRequest, resp.StatusCode)
}

func TestParallelCallsWithEachOnce(t *testing.T) {
	calls := make([]int, 100)
	require.NoError(t, parallel(7, len(calls), func(i int) error { calls[i]++; return nil }))
	require.Equal(t, slices.Repeat([]int{1}, len(calls)), calls)
	require.ErrorIs(t, parallel(2, 3, func(i int) error { return context.Canceled }), context.Canceled)
}

func TestRunPrintsTheOtherTables(t *testing.T) {
	const cell, allocs = `[\d,]+ ns, [\d.]+ allocs`, `[\d,]+ ns, [\d.]+ allocs, [\d.]+×`
	requireCells(t, [][]string{
		{"1", cell, allocs, allocs, allocs},
		{"100", cell, allocs, allocs, allocs},
	}, cells(t, "select", 100))

	const percent = `[+-][\d.]+`
	rest := []string{`\d+`, `\d+`, percent + " %", percent + " to " + percent + " %"}
	requireCells(t, [][]string{
		{"static", `\d+`, `\d+`, "", ""},
		append([]string{"static, again"}, rest...),
		append([]string{"staple"}, rest...),
		append([]string{"staple, by GetConfigForClient"}, rest...),
		append([]string{"CertMagic"}, rest...),
	}, cells(t, "handshake", 1))

	bytes := `\d+,\d+ bytes`
	requireCells(t, [][]string{
		{"the issuer signs, its chain is embedded", bytes, `\d+ bytes`, bytes, bytes, `\d+`, `\d+`},
		{"a delegate signs, its chain is embedded", bytes, bytes, bytes, bytes, `\d+`, `\d+`},
		{"a delegate signs, nothing else is embedded", bytes, bytes, bytes, bytes, `\d+`, `\d+`},
	}, cells(t, "trim", 1))

	number := []string{`-?\d+`, `-?\d+`, `\d+`, `\d+`, `-?\d+`, `-?\d+`, `-?\d+`}
	requireCells(t, [][]string{
		append([]string{"map"}, number...),
		append([]string{"staple, Add"}, number...),
		append([]string{`staple, Add and TLSConfig\(nil\)`}, number...),
		append([]string{`staple, TLSConfig\(base\)`}, number...),
		append([]string{"CertMagic"}, number...),
	}, cells(t, "memory", 200))

	const seconds, micros, factor = `[\d.]+ s`, `[\d.]+ µs`, `[\d.]+×`
	var restarts [][]string
	for _, cache := range []string{"memory", "directory"} {
		restarts = append(restarts,
			[]string{"read and judged", cache, seconds, micros, ""},
			[]string{"TLSConfig", cache, seconds, micros, factor},
			[]string{"Add, in parallel", cache, seconds, micros, factor},
			[]string{"read and judged, one by one", cache, seconds, micros, ""},
			[]string{"Add, one by one", cache, seconds, micros, factor})
	}
	requireCells(t, restarts, cells(t, "restart", 20))

	requireCells(t, [][]string{
		{"requests alone", `[\d.]+ s`, ""},
		{"requests and ocsp.ParseResponseForCert", `[\d.]+ s`, `[\d.]+×`},
		{"staple", `[\d.]+ s`, `[\d.]+×`},
		{"CertMagic, scaled from 5", `[\d.]+ s`, `[\d.]+×`},
	}, cells(t, "first", 5))
}

func TestThousands(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 100_000: "100,000", 1_002_003: "1,002,003"} {
		require.Equal(t, want, thousands(n))
	}
}
