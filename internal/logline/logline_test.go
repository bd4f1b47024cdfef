package logline

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/go-staple/staple/internal/backlog"
	"github.com/go-staple/staple/internal/report"
	"github.com/go-staple/staple/internal/schedule"
	"github.com/stretchr/testify/require"
)

var at = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

func leaf(serial int64) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: fmt.Sprintf("%d.example", serial)}, SerialNumber: big.NewInt(serial)}
}

func leaves(n int64) (all []*x509.Certificate) {
	for i := range n {
		all = append(all, leaf(i+1))
	}
	return all
}

// written returns what a line looks like, without its time.
func written(l Line, level slog.Level) string {
	var b bytes.Buffer
	l.Write(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})))
	return strings.TrimSpace(b.String())
}

func TestALineNamesItsCertificateOnce(t *testing.T) {
	about := fmt.Errorf(`no OCSP response for "CN=7.example" (serial 07): %w: "CN=7.example" (serial 07) again`, io.EOF)
	l := Line{Level: slog.LevelWarn, Message: "it fails", About: leaf(7), MustStaple: true, Others: leaves(2), Attrs: []slog.Attr{slog.Any("error", about)}}
	require.Equal(t, `level=WARN msg="staple: it fails" name="CN=7.example" serial=07 must_staple=true error="EOF: it again" others="CN=1.example 01, CN=2.example 02"`,
		written(l, slog.LevelWarn))
	require.Empty(t, written(l, slog.LevelError), "the logger takes no such lines")
	l.About, l.Others = nil, nil
	require.Contains(t, written(l, slog.LevelInfo), `error="no OCSP response for`)
	require.ErrorIs(t, nameless{about, "x"}, io.EOF)
}

func TestTheWorseTheLevelTheLongerALineWaits(t *testing.T) {
	for level, want := range map[slog.Level]backlog.Rank{
		slog.LevelDebug: backlog.Routine, slog.LevelInfo: backlog.Notable, slog.LevelWarn: backlog.Notable, slog.LevelError: backlog.Grave,
	} {
		require.Equal(t, want, Line{Level: level}.Rank())
	}
}

func TestEachKindHasItsWords(t *testing.T) {
	seen := make(map[string]bool)
	for k := report.Failed; k <= report.Gone; k++ {
		require.NotEmpty(t, reports[k].text)
		require.False(t, seen[reports[k].text])
		seen[reports[k].text] = true
		require.Equal(t, reports[k].level, Level(k))
		require.NotEmpty(t, Text(k))
	}
}

func TestTheLineOfAnEvent(t *testing.T) {
	held := Held{Responder: "http://ocsp.example", Expires: at, Next: at.Add(-time.Hour), Err: io.EOF}
	require.Equal(t, `level=DEBUG msg="staple: OCSP response unchanged" name="CN=1.example" serial=01 event=unchanged `+
		`responder=http://ocsp.example expires=2026-07-01T12:00:00.000Z next=2026-07-01T11:00:00.000Z error=EOF`,
		written(Event(report.Answered, "unchanged", leaf(1), false, held), slog.LevelDebug))
	require.Equal(t, `level=DEBUG msg="staple: OCSP staple has ended" name="CN=1.example" serial=01 must_staple=true event=expired`,
		written(Event(report.Expired, "expired", leaf(1), true, Held{}), slog.LevelDebug))
}

func TestReports(t *testing.T) {
	outage := schedule.Outage{ID: "x", Fault: "host ocsp.example", Items: 40, Err: io.EOF}
	failed := errors.New("failed")
	for _, tt := range []struct {
		name string
		r    Report
		want string
	}{
		{"one fails alone", Report{Kind: report.Failed, About: leaves(1), All: 1, Held: Held{Err: failed}},
			`level=WARN msg="staple: OCSP response not obtained" name="CN=1.example" serial=01 event=failed error=failed`},
		{"an outage counts those that it hinders, and has an error where the first has none", Report{Kind: report.Failed, About: leaves(2), All: 2, Outage: outage},
			`level=WARN msg="staple: OCSP response not obtained" name="CN=1.example" serial=01 event=failed fault="host ocsp.example" error=EOF certificates=40 others="CN=2.example 02"`},
		{"something else does not count them, though an outage is why", Report{Kind: report.Expired, About: leaves(1), All: 1, Outage: outage, Held: Held{Err: failed, Expires: at}},
			`level=ERROR msg="staple: OCSP staple has ended" name="CN=1.example" serial=01 event=expired fault="host ocsp.example" expires=2026-07-01T12:00:00.000Z error=failed`},
		{"how long it lasts", Report{Kind: report.Unstapled, About: leaves(1), All: 1, MustStaple: true, Lasted: 300*time.Second + time.Millisecond},
			`level=ERROR msg="staple: Must-Staple certificate has no OCSP staple" name="CN=1.example" serial=01 must_staple=true event=unstapled lasted=5m0s`},
		{"revoked, whatever hinders others", Report{Kind: report.Revoked, About: leaves(1), All: 1, Revoked: true, RevokedAt: at, Reason: 1, Outage: outage},
			`level=ERROR msg="staple: certificate is revoked" name="CN=1.example" serial=01 event=revoked revoked_at=2026-07-01T12:00:00.000Z reason=keyCompromise`},
		{"revoked, and nobody tells when", Report{Kind: report.Revoked, About: leaves(1), All: 1, Revoked: true},
			`level=ERROR msg="staple: certificate is revoked" name="CN=1.example" serial=01 event=revoked reason=unspecified`},
		{"an end has no error", Report{Kind: report.Answered, About: leaves(1), All: 1, Held: Held{Err: failed, Responder: "r"}},
			`level=INFO msg="staple: OCSP responses are obtained again" name="CN=1.example" serial=01 event=answered responder=r certificates=1`},
		{"an end of many names none", Report{Kind: report.Answered, About: leaves(10), All: 11, MustStaple: true, Held: Held{Responder: "r", Expires: at}},
			`level=INFO msg="staple: OCSP responses are obtained again" event=answered responder=r certificates=11`},
		{"ten are named", Report{Kind: report.Stapled, About: leaves(2), All: 10},
			`level=INFO msg="staple: stapled again" name="CN=1.example" serial=01 event=stapled certificates=10 others="CN=2.example 02"`},
		{"nobody serves it any more", Report{Kind: report.Gone, About: leaves(1), All: 1, Unserved: true, Held: Held{Responder: "r", Expires: at}},
			`level=INFO msg="staple: no longer asked about, after trouble" name="CN=1.example" serial=01 event=gone certificates=1`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, written(tt.r.Line(), slog.LevelDebug))
		})
	}
}
