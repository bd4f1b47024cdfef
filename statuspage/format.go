package statuspage

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// visible returns what others have written as text that shows what it is: control characters and those
// that are invisible or change the direction of writing are spelled out, as \u202e, and so are marks that
// pile up. What is longer than limit characters is cut.
func visible(s string, limit int) string {
	var b strings.Builder
	marks, n := 0, 0
	for i, r := range s {
		if n++; n > limit {
			b.WriteRune('…')
			break
		}
		if unicode.Is(unicode.M, r) {
			marks++
		} else {
			marks = 0
		}
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD"):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r) && marks <= 2:
			b.WriteRune(r)
		default:
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		}
	}
	return b.String()
}

// A label is a text of others' making, and its beginning.
type label struct{ Text, Title string }

// newLabel returns text cut to limit characters, with more of it as the title if something is lost.
func newLabel(text string, limit int) label {
	l := label{Text: visible(text, limit)}
	if full := visible(text, 1000); full != l.Text {
		l.Title = full
	}
	return l
}

// errorText returns err on one line, without the certificate that it is about.
func errorText(err error, limit int) label {
	if err == nil {
		return label{}
	}
	if inner := errors.Unwrap(err); inner != nil && strings.HasPrefix(err.Error(), "no OCSP response for ") {
		err = inner
	}
	return newLabel(strings.ReplaceAll(strings.ReplaceAll(err.Error(), "\n", "; "), "staple: ", ""), limit)
}

// A moment is a point in time as seen from now.
type moment struct{ t, now time.Time }

func (m moment) IsZero() bool    { return m.t.IsZero() }
func (m moment) Past() bool      { return !m.t.After(m.now) }
func (m moment) RFC3339() string { return m.t.UTC().Format(time.RFC3339) }
func (m moment) Exact() string   { return m.t.UTC().Format("2006-01-02 15:04:05 UTC") }

// Relative returns words such as "in 3 h 20 min" and "2 d ago".
func (m moment) Relative() string {
	switch d := m.t.Sub(m.now).Round(time.Second); {
	case d > 0:
		return "in " + words(d)
	case d < 0:
		return words(-d) + " ago"
	}
	return "now"
}

// words returns d in its two largest units.
func words(d time.Duration) string {
	units := []struct {
		name string
		unit time.Duration
	}{{"y", 365 * 24 * time.Hour}, {"d", 24 * time.Hour}, {"h", time.Hour}, {"min", time.Minute}, {"s", time.Second}}
	for i, u := range units {
		if d < u.unit {
			continue
		}
		text := fmt.Sprintf("%d %s", d/u.unit, u.name)
		if i+1 < len(units) {
			if rest := d % u.unit / units[i+1].unit; rest > 0 {
				text += fmt.Sprintf(" %d %s", rest, units[i+1].name)
			}
		}
		return text
	}
	return "0 s"
}

// thousands returns a whole number as 100,000.
func thousands(n any) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// A bar is a picture of a response's life, from thisUpdate to its end. Its fields are places on it in
// percent.
type bar struct {
	End, Now, Left, Next string // Left is what is between now and the end
	HasNext, Over        bool
}

// newBar returns nil where there is no response. One that has ended is drawn shorter, and now is at the right end.
func newBar(thisUpdate, end, next, now time.Time) *bar {
	if thisUpdate.IsZero() || !end.After(thisUpdate) {
		return nil
	}
	const shortened = 80
	b := &bar{Over: !now.Before(end), HasNext: !next.IsZero()}
	whole := 100.0
	if b.Over {
		whole = shortened
	}
	at := func(t time.Time) float64 {
		if !t.Before(end) {
			return 100
		}
		return whole * max(0, float64(t.Sub(thisUpdate))/float64(end.Sub(thisUpdate)))
	}
	b.End, b.Now, b.Left, b.Next = percent(whole), percent(at(now)), percent(100-at(now)), percent(at(next))
	return b
}

func percent(p float64) string {
	return strconv.FormatFloat(p, 'f', 1, 64) + "%"
}
