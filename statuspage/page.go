package statuspage

import (
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"html/template"
	"slices"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/exchange"
)

//go:embed style.css
var style string

//go:embed page.html
var source string

var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"style":     func() template.CSS { return template.CSS(style) },
	"thousands": thousands,
	"visible":   visible,
}).Parse(source))

// A page is what the templates are given.
type page struct {
	Host    string
	Refresh bool
	Data    any
}

type failure struct {
	Status, Text string
	Home         bool // the list is at this path
}

// A certificate is one that is shown.
type certificate struct {
	staple.Status
	ID      string
	State   state
	Handles int
	now     time.Time
}

func newCertificate(c *staple.Certificate, handles int, now time.Time) certificate {
	sum := sha256.Sum256(c.TLS().Certificate[0])
	out := certificate{Status: c.Status(), ID: hex.EncodeToString(sum[:]), Handles: handles, now: now}
	out.State = state{out.Status.State}
	return out
}

// Serial returns the serial number in hexadecimal.
func (c *certificate) Serial() string {
	if c.Leaf.SerialNumber == nil {
		return ""
	}
	return string(appendSerial(nil, c.Leaf.SerialNumber))
}

func (c *certificate) names() []string {
	names := allNames(c.Leaf)
	if len(names) == 0 {
		names = append(names, c.Leaf.Subject.String())
	}
	if names[0] == "" {
		names[0] = "(no name)"
	}
	return names
}

// Name is the first name, and Others are some more.
func (c *certificate) Name() label { return newLabel(c.names()[0], 80) }

func (c *certificate) Others() label {
	names := c.names()[1:]
	text := ""
	for i, name := range names {
		if i > 0 {
			text += ", "
		}
		if text += name; len(text) > 1000 {
			break
		}
	}
	return newLabel(text, 60)
}

func (c *certificate) OtherCount() int { return len(c.names()) - 1 }

// AllNames are all names, for the page of a certificate.
func (c *certificate) AllNames() []label {
	var all []label
	for _, name := range c.names() {
		all = append(all, newLabel(name, 200))
	}
	return all
}

// IssuerName is what an issuer is called for short.
func (c *certificate) IssuerName() label {
	name := c.Leaf.Issuer.CommonName
	if name == "" {
		name = c.Leaf.Issuer.String()
	}
	l := newLabel(name, 60)
	l.Title = visible(c.Leaf.Issuer.String(), 1000)
	return l
}

// ResponderText is the URL that answered last, or else those in the certificate.
func (c *certificate) ResponderText() label {
	if named := c.Responders(); c.Responder == "" && len(named) > 0 {
		return newLabel(named[0], 80)
	}
	return newLabel(c.Responder, 80)
}

// Responders are the URLs in the certificate, without credentials.
func (c *certificate) Responders() (urls []string) {
	for _, u := range c.Leaf.OCSPServer {
		urls = append(urls, exchange.Shown(u))
	}
	return urls
}

// At returns t as seen when c was looked at.
func (c *certificate) At(t time.Time) moment { return moment{t, c.now} }

func (c *certificate) Time() moment      { return c.At(c.now) }
func (c *certificate) From() moment      { return c.At(c.ThisUpdate) }
func (c *certificate) End() moment       { return c.At(c.Expires) }
func (c *certificate) Next() moment      { return c.At(c.NextRefresh) }
func (c *certificate) Paused() moment    { return c.At(c.PausedUntil) }
func (c *certificate) Last() moment      { return c.At(c.LastAttempt) }
func (c *certificate) NotBefore() moment { return c.At(c.Leaf.NotBefore) }
func (c *certificate) NotAfter() moment  { return c.At(c.Leaf.NotAfter) }

func (c *certificate) Bar() *bar { return newBar(c.ThisUpdate, c.Expires, c.NextRefresh, c.now) }

func (c *certificate) Error(limit int) label { return errorText(c.Err, limit) }

// Pause is why others keep it waiting, if that is not what its own last attempt failed for.
func (c *certificate) Pause(limit int) label {
	if c.Err != nil && errors.Is(c.Err, c.PauseErr) {
		return label{}
	}
	return errorText(c.PauseErr, limit)
}

func (c *certificate) NoResponder() bool { return errors.Is(c.Err, staple.ErrNoResponder) }
func (c *certificate) Retrying() bool {
	return c.Failures > 0 || !c.Stapled && !c.Revoked && c.State.State != staple.StateAnswered
}

// Asleep tells of a peer that it is asked about when it comes next.
func (c *certificate) Asleep() bool {
	return c.Peer && c.NextRefresh.IsZero() && !c.NoResponder() && c.State.State != staple.StateExpired
}

func (f failure) Title() string { return f.Status }

func (d *detail) Title() string { return d.Name().Text }
func (d *detail) Asked() string { return d.asked }

func (l *list) Time() moment       { return moment{l.now, l.now} }
func (l *list) WordsLabel() string { return visible(l.Words, 80) }
func (l *list) Filter() state      { return l.state }
func (l *list) Narrowed() bool     { return l.Words != "" || l.Filtered }
func (l *list) Pages() int         { return max((l.Matching+l.per-1)/l.per, 1) }

// Per is how many are asked for on a page, if not as many as usual.
func (l *list) Per() int {
	if l.per == defaultPer {
		return 0
	}
	return l.per
}

func (l *list) Heading() string {
	if l.OfPeers {
		return "OCSP answers about peers"
	}
	return "OCSP staples"
}

func (l *list) Title() string {
	if n := l.Attention(); n > 0 {
		return "(" + thousands(n) + ") " + l.Heading()
	}
	return l.Heading()
}

// Noun is what n of what is listed are called.
func (l *list) Noun(n int) string {
	noun := "certificate"
	if l.OfPeers {
		noun = "peer"
	}
	if n != 1 {
		noun += "s"
	}
	return noun
}

// Attention returns how many certificates need attention. Of peers these are those that nobody answers about: one that is
// revoked is refused, as it should be.
func (l *list) Attention() int {
	if l.OfPeers {
		return l.states[staple.StateUnanswered]
	}
	n := 0
	for _, count := range l.states[:staple.StateWaiting] {
		n += count
	}
	return n
}

func (l *list) Summary() string {
	certificates := l.Noun(l.Total)
	switch n := l.Attention(); {
	case l.Total == 0 && l.OfPeers:
		return "No peer is remembered."
	case l.Total == 0:
		return "There are no certificates yet."
	case n == 0:
		return "Nothing needs attention: " + thousands(l.Total) + " " + certificates + "."
	case l.OfPeers:
		return "Nobody answers about " + thousands(n) + " of " + thousands(l.Total) + " " + certificates + "."
	case n == 1:
		return "1 of " + thousands(l.Total) + " " + certificates + " needs attention."
	default:
		return thousands(n) + " of " + thousands(l.Total) + " " + certificates + " need attention."
	}
}

// A chip is a link to the certificates in one state, or to all.
type chip struct {
	State        state
	All, Current bool
	Count        int
	Link         string
}

// Chips are those of the states that some certificate is in.
func (l *list) Chips() []chip {
	chips := []chip{{All: true, Current: !l.Filtered, Count: l.Total, Link: l.in(state{}, false).link(1)}}
	for s := range states(l.OfPeers) {
		current := l.Filtered && l.state == s
		if l.states[s.State] > 0 || current {
			chips = append(chips, chip{State: s, Current: current, Count: l.states[s.State], Link: l.in(s, true).link(1)})
		}
	}
	return chips
}

// PeerChips are links to the peers in each state that some are in, on the page of what is served.
func (l *list) PeerChips() []chip {
	if l.OfPeers || len(l.cas) == 0 {
		return nil
	}
	peers := list{query: query{OfPeers: true, Page: 1, per: l.per}, counts: l.peers}
	chips := peers.Chips()
	chips[0].Current = false
	return chips
}

// A ca is what is shown of one.
type ca struct{ staple.CheckStats }

func (c ca) Name() label { return newLabel(c.CA, 80) }

// Average is how long those that waited did.
func (c ca) Average() time.Duration {
	return (c.Waiting / time.Duration(max(c.Waited, 1))).Round(time.Millisecond)
}

const maxCAs = 20

// CAs are those of peers about which nobody answered most often.
func (l *list) CAs() []ca {
	var all []ca
	for _, c := range l.cas {
		all = append(all, ca{c})
	}
	slices.SortStableFunc(all, func(a, b ca) int {
		return cmp.Compare(b.Unanswered+b.PassedUnanswered, a.Unanswered+a.PassedUnanswered)
	})
	return all[:min(len(all), maxCAs)]
}

// MoreCAs is how many others there are.
func (l *list) MoreCAs() int { return max(len(l.cas)-maxCAs, 0) }

func (l *list) Certificates() []*certificate {
	all := make([]*certificate, len(l.rows))
	for i, r := range l.rows {
		c := newCertificate(r.certificate, int(r.handles), l.now)
		all[i] = &c
	}
	return all
}

// First, Previous, Next and Last are links to other pages, empty where there are none.
func (l *list) First() string    { return l.to(1, l.Page > 1) }
func (l *list) Previous() string { return l.to(min(l.Page-1, l.Pages()), l.Page > 1) }
func (l *list) Next() string     { return l.to(l.Page+1, l.Page < l.Pages()) }
func (l *list) Last() string     { return l.to(l.Pages(), l.Page != l.Pages()) }

func (l *list) to(page int, exists bool) string {
	if !exists {
		return ""
	}
	return l.link(page)
}

// AllLink is to all of what is listed.
func (l *list) AllLink() string { return query{OfPeers: l.OfPeers, per: defaultPer}.link(1) }

func (l *list) JSONLink() string {
	link := l.link(l.Page)
	if link != "?" {
		link += "&"
	}
	return link + "format=json"
}
