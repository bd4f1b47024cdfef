// Package logline makes lines of the log: what each says, at which level, and which attributes it has, in which order.
// docs/operations.md has all of them.
//
//	r := logline.Report{Kind: report.Failed, About: []*x509.Certificate{leaf}, All: 1, Held: logline.Held{Err: err}}
//	line := r.Line()
//	line.Write(logger)
//
// When there is a line at all is decided by package report. Whoever makes a line looks at nothing that changes
// afterwards, so that it may wait until the log takes it.
package logline

import (
	"context"
	"crypto/x509"
	"log/slog"
	"strings"
	"time"

	"github.com/go-staple/staple/internal/backlog"
	"github.com/go-staple/staple/internal/name"
	"github.com/go-staple/staple/internal/report"
	"github.com/go-staple/staple/internal/schedule"
)

// reports are the lines that an operator is to see.
var reports = [...]struct {
	level slog.Level
	text  string
}{
	report.Failed:     {slog.LevelWarn, "OCSP response not obtained"},
	report.Answered:   {slog.LevelInfo, "OCSP responses are obtained again"},
	report.Expiring:   {slog.LevelWarn, "OCSP staple is about to end"},
	report.Expired:    {slog.LevelError, "OCSP staple has ended"},
	report.Unstapled:  {slog.LevelError, "Must-Staple certificate has no OCSP staple"},
	report.Stapled:    {slog.LevelInfo, "stapled again"},
	report.Revoked:    {slog.LevelError, "certificate is revoked"},
	report.Reinstated: {slog.LevelWarn, "certificate is good again after it was revoked"},
	report.Gone:       {slog.LevelInfo, "no longer asked about, after trouble"},
}

// Level returns the level of the line of a kind.
func Level(k report.Kind) slog.Level { return reports[k].level }

// Text returns what a line says where the same is told of one certificate, whether it is trouble or not.
func Text(k report.Kind) string {
	switch k {
	case report.Stapled:
		return "OCSP response stapled"
	case report.Answered:
		return "OCSP response unchanged"
	}
	return reports[k].text
}

// A Line is one that is to be written.
type Line struct {
	Level      slog.Level
	Message    string
	About      *x509.Certificate // nil: none
	MustStaple bool
	Others     []*x509.Certificate // besides
	Attrs      []slog.Attr
}

// Rank returns how important it is among those that wait.
func (l Line) Rank() backlog.Rank {
	switch {
	case l.Level < slog.LevelInfo:
		return backlog.Routine
	case l.Level >= slog.LevelError:
		return backlog.Grave
	}
	return backlog.Notable
}

// Write writes it, if the logger takes lines of its level.
func (l Line) Write(logger *slog.Logger) {
	ctx := context.Background()
	if !logger.Enabled(ctx, l.Level) {
		return
	}
	var attrs []slog.Attr
	if l.About != nil {
		subject, serial := name.Parts(l.About)
		attrs = append(attrs, slog.String("name", subject), slog.String("serial", serial))
		if l.MustStaple {
			attrs = append(attrs, slog.Bool("must_staple", true))
		}
	}
	for _, a := range l.Attrs {
		if err, ok := a.Value.Any().(error); ok && l.About != nil {
			a.Value = slog.AnyValue(nameless{err, name.Of(l.About)})
		}
		attrs = append(attrs, a)
	}
	if len(l.Others) > 0 {
		var names []string
		for _, c := range l.Others {
			subject, serial := name.Parts(c)
			names = append(names, subject+" "+serial)
		}
		attrs = append(attrs, slog.String("others", strings.Join(names, ", ")))
	}
	logger.LogAttrs(ctx, l.Level, "staple: "+l.Message, attrs...)
}

// A nameless error does not name the certificate that its line is about once more.
type nameless struct {
	error
	name string
}

func (e nameless) Error() string {
	return strings.ReplaceAll(strings.TrimPrefix(e.error.Error(), "no OCSP response for "+e.name+": "), e.name, "it")
}

func (e nameless) Unwrap() error { return e.error }

// Held is what a line says of how a certificate stands.
type Held struct {
	Responder     string
	Expires, Next time.Time
	Err           error
}

// Attrs returns the attributes that say so.
func (h Held) Attrs() (attrs []slog.Attr) {
	if h.Responder != "" {
		attrs = append(attrs, slog.String("responder", h.Responder))
	}
	if !h.Expires.IsZero() {
		attrs = append(attrs, slog.Time("expires", h.Expires))
	}
	if !h.Next.IsZero() {
		attrs = append(attrs, slog.Time("next", h.Next))
	}
	if h.Err != nil {
		attrs = append(attrs, slog.Any("error", h.Err))
	}
	return attrs
}

// Event returns the debug line of an event, which is called word.
func Event(k report.Kind, word string, about *x509.Certificate, mustStaple bool, held Held) Line {
	return Line{Level: slog.LevelDebug, Message: Text(k), About: about, MustStaple: mustStaple,
		Attrs: append([]slog.Attr{slog.String("event", word)}, held.Attrs()...)}
}

// A Report is a line that an operator is to see.
type Report struct {
	Kind       report.Kind
	About      []*x509.Certificate // those that it names, one at least; the rest of the fields is about the first
	All        int                 // those that it names or counts
	MustStaple bool
	Lasted     time.Duration // 0: it does not say

	Unserved  bool // nobody serves it any more, and the fields below do not count, but for the responder
	Held      Held
	Revoked   bool
	RevokedAt time.Time // zero: nobody tells
	Reason    int
	Outage    schedule.Outage
}

// Line returns the line.
func (r Report) Line() Line {
	l := Line{Level: Level(r.Kind), Message: reports[r.Kind].text, About: r.About[0], MustStaple: r.MustStaple, Others: r.About[1:],
		Attrs: []slog.Attr{slog.String("event", r.Kind.String())}}
	ended := r.Kind.Ends()
	all := r.All
	switch {
	case ended && all > report.Named:
		l.About, l.Others = nil, nil
		l.Attrs = append(l.Attrs, Held{Responder: r.Held.Responder}.Attrs()...)
	case !r.Unserved:
		if r.Revoked && !r.RevokedAt.IsZero() {
			l.Attrs = append(l.Attrs, slog.Time("revoked_at", r.RevokedAt))
		}
		if r.Revoked {
			l.Attrs = append(l.Attrs, slog.String("reason", name.Reason(r.Reason)))
		}
		held := r.Held
		switch {
		case ended:
			held.Err = nil
		case r.Kind != report.Revoked:
			if r.Outage.ID != "" {
				l.Attrs = append(l.Attrs, slog.String("fault", r.Outage.Fault))
			}
			if held.Err == nil {
				held.Err = r.Outage.Err
			}
			if r.Kind == report.Failed {
				all = max(all, r.Outage.Items)
			}
		}
		l.Attrs = append(l.Attrs, held.Attrs()...)
	}
	if r.Lasted > 0 {
		l.Attrs = append(l.Attrs, slog.Duration("lasted", r.Lasted.Round(time.Second)))
	}
	if ended || all > 1 {
		l.Attrs = append(l.Attrs, slog.Int("certificates", all))
	}
	return l
}
