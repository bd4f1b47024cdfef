package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-staple/staple/cmd/staple/internal/verdict"
	"github.com/go-staple/staple/internal/exchange"
	"github.com/go-staple/staple/internal/name"
	"golang.org/x/crypto/ocsp"
)

// printable returns s with what a terminal might take for more than text spelled out, as \x1b, and cut to limit characters.
func printable(s string, limit int) string {
	var b strings.Builder
	n := 0
	for i, r := range s {
		if n++; n > limit {
			b.WriteString("...")
			break
		}
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD"):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		}
	}
	return b.String()
}

// forPrograms is what the library's errors say to those who write programs with it.
var forPrograms = strings.NewReplacer("staple: ", "", "\n", "; ",
	" (HTTPFetcher.Client can be given the root to trust)", "",
	" (HTTPFetcher.Client can be given a client certificate, if that is what it wants)", "",
	", which HTTPFetcher.MaxResponseSize sets", "",
	", which is ResponseVerifier.MaxAge,", "")

// plain returns an error as a single line.
func plain(err error) string { return printable(forPrograms.Replace(err.Error()), 1500) }

// terminal reports whether somebody looks at w.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

// colour returns text in the colour of an exit code, where w is a terminal that has colours.
func colour(w io.Writer, exit int, text string) string {
	if !terminal(w) || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return text
	}
	return [...]string{exitWell: "\x1b[32m", exitSoon: "\x1b[33m", exitBroken: "\x1b[31m", exitUnclear: "\x1b[35m"}[exit] + text + "\x1b[0m"
}

var statuses = map[int]string{ocsp.Good: good, ocsp.Revoked: revoked, ocsp.Unknown: unknown}

// write writes a report for people.
func (r *report) write(w io.Writer) {
	fmt.Fprintf(w, "%s: %s\n", printable(r.target, 300), colour(w, r.exit, r.verdict))
	row := func(what, format string, args ...any) {
		fmt.Fprintf(w, "  %-12s %s\n", what, fmt.Sprintf(format, args...))
	}
	leaf := r.chain[0]
	subject, serial := name.Parts(leaf)
	row("certificate", "%s, serial %s", subject, serial)
	must := ""
	if r.must {
		must = "; Must-Staple"
	}
	row("", "valid until %s%s", name.Time(leaf.NotAfter), must)
	switch {
	case r.file && r.staple == nil:
	case r.file:
		row("response", "%s", r.describe(r.staple))
	case r.staple != nil:
		row("stapled", "%s, in %s", r.describe(r.staple), tls.VersionName(r.version))
	case r.stapled:
		row("stapled", "something that cannot be judged, in %s", tls.VersionName(r.version))
	default:
		row("stapled", "nothing, in %s", tls.VersionName(r.version))
	}
	switch {
	case r.file && r.staple != nil:
	case r.said != nil:
		row("responder", "%s: %s", printable(r.responder, 200), r.describe(r.said))
	case r.silent != nil && r.asked:
		row("responder", "%s: nothing of use", printable(r.responder, 200))
	case !hasResponder(leaf):
		row("responder", "none")
	default:
		row("responder", "%s, not asked", printable(r.named(), 200))
	}
	if a := r.shown(); a != nil && a.r != nil {
		forever := ""
		if a.r.NextUpdate.IsZero() {
			forever = "; there is no nextUpdate, and a day is counted"
		}
		row("validity", "%s%s", bar(a.r.ThisUpdate, r.expires(a), r.now), forever)
	}
	for _, m := range r.mentioned {
		row("mentioned", "%s", m)
	}
	if r.wrong != "" {
		row("wrong", "%s", r.wrong)
	}
	if r.todo != "" {
		row("to do", "%s", r.todo)
	}
}

// describe says in a few words what a response says, and by whom it is signed.
func (r *report) describe(a *answer) string {
	switch {
	case a.r == nil:
		return fmt.Sprintf("%d bytes, refused: %s", len(a.der), whyNot(a.err).Reason)
	case a.err != nil:
		return fmt.Sprintf("%s, but %s", statuses[a.r.Status], whyNot(a.err).Reason)
	}
	if a.r.Certificate == nil {
		subject, _ := name.Parts(r.issuer)
		return fmt.Sprintf("%s, signed by the issuer, %s", statuses[a.r.Status], subject)
	}
	subject, _ := name.Parts(a.r.Certificate)
	return fmt.Sprintf("%s, signed by the issuer's delegate, %s", statuses[a.r.Status], subject)
}

// named returns the URL of the first responder.
func (r *report) named() string {
	if len(r.chain) == 0 || len(r.chain[0].OCSPServer) == 0 {
		return ""
	}
	return exchange.Shown(r.chain[0].OCSPServer[0])
}

// bar shows a time that passes, and where in it now is.
func bar(from, to, now time.Time) string {
	const width = 30
	at := width
	if total := to.Sub(from); total > 0 && now.Before(to) {
		at = max(0, int(float64(width)*float64(now.Sub(from))/float64(total)))
	}
	line := strings.Repeat("=", at) + "|" + strings.Repeat("-", width-at)
	return fmt.Sprintf("%s [%s] %s, %s", name.Time(from), line, name.Time(to), remains(to.Sub(now)))
}

// remains says how much time is left, in one unit or two.
func remains(d time.Duration) string {
	form := "%s left"
	if d < 0 {
		d, form = -d, "%s ago"
	}
	days, hours, minutes := d/(24*time.Hour), d/time.Hour, d/time.Minute
	text := ""
	switch {
	case days >= 10:
		text = fmt.Sprintf("%d days", days)
	case days > 0:
		text = fmt.Sprintf("%dd %dh", days, hours%24)
	case hours > 0:
		text = fmt.Sprintf("%dh %dm", hours, minutes%60)
	default:
		text = fmt.Sprintf("%dm", minutes)
	}
	return fmt.Sprintf(form, text)
}

// writeJSON writes a report as one line. All fields are always there.
func (r *report) writeJSON(w io.Writer) {
	v := verdict.Object{Target: printable(r.target, 300), Verdict: r.verdict, Stapled: r.stapled && !r.file, MustStaple: r.must, Reason: r.reason(), Error: r.wrong, Exit: r.exit}
	if len(r.chain) > 0 {
		v.Name, _ = name.Parts(r.chain[0])
		v.Serial = hexadecimal(r.chain[0].SerialNumber)
		v.Responder = printable(r.named(), 200)
	}
	if r.responder != "" {
		v.Responder = printable(r.responder, 200)
	}
	if a := r.shown(); a != nil && a.r != nil {
		v.ThisUpdate = name.Time(a.r.ThisUpdate)
		if !a.r.NextUpdate.IsZero() {
			v.NextUpdate = name.Time(a.r.NextUpdate)
		}
		v.Expires = name.Time(r.expires(a))
		if a.err == nil && r.now.Before(r.expires(a)) {
			v.Status = statuses[a.r.Status]
		}
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
}

// hexadecimal returns a serial number in an even number of lower-case digits.
func hexadecimal(n *big.Int) string {
	sign := ""
	if n.Sign() < 0 {
		sign = "-"
	}
	b := n.Bytes()
	if len(b) == 0 {
		b = []byte{0}
	}
	return fmt.Sprintf("%s%x", sign, b)
}

// writeNagios writes one line about all reports, with how many seconds each response has left.
func writeNagios(w io.Writer, all []*report, warn float64) {
	exit := exitWell
	var bad, data []string
	for _, r := range all {
		exit = verdict.Worse(exit, r.exit)
		target := printable(r.target, 300)
		if r.exit != exitWell {
			bad = append(bad, fmt.Sprintf("%s %s: %s", target, r.verdict, r.wrong))
		}
		if a := r.shown(); a != nil && a.r != nil {
			end := r.expires(a)
			validity := end.Sub(a.r.ThisUpdate)
			label := strings.NewReplacer("'", "", "=", "", "|", "").Replace(target)
			data = append(data, fmt.Sprintf("'%s'=%ds;%d:;0:;0;%d", label, int64(end.Sub(r.now).Seconds()),
				int64(warn*validity.Seconds()), int64(validity.Seconds())))
		}
	}
	said := strings.Join(bad, "; ")
	switch {
	case len(bad) > 0:
	case len(all) == 1 && len(data) == 1:
		said = fmt.Sprintf("%s %s, %s", printable(all[0].target, 300), all[0].verdict, remains(all[0].expires(all[0].shown()).Sub(all[0].now)))
	case len(all) == 1:
		said = fmt.Sprintf("%s %s", printable(all[0].target, 300), all[0].verdict)
	default:
		said = fmt.Sprintf("%d targets", len(all))
	}
	line := "STAPLE " + [...]string{"OK", "WARNING", "CRITICAL", "UNKNOWN"}[exit] + " - " + strings.ReplaceAll(said, "|", "/")
	if len(data) > 0 {
		line += " | " + strings.Join(data, " ")
	}
	fmt.Fprintln(w, line)
}

// A progress tells on a terminal what is waited for, on a line that is overwritten.
type progress struct {
	w  io.Writer // nil: nobody looks
	n  int       // targets that are not done
	mu sync.Mutex
}

func newProgress(w io.Writer, targets int, quiet bool) *progress {
	p := &progress{n: targets}
	if !quiet && terminal(w) {
		p.w = w
	}
	return p
}

const clearLine = "\r\x1b[K"

func (p *progress) say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w != nil {
		fmt.Fprintf(p.w, "%s%d to do: %s ...", clearLine, p.n, printable(fmt.Sprintf(format, args...), 60))
	}
}

// clear clears the line: one more target is done.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n--
	if p.w != nil {
		io.WriteString(p.w, clearLine)
	}
}
