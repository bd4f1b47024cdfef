package statuspage

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"iter"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/exchange"
)

// stateTexts is what is shown of each state, on the page: its meaning is empty where none is ever in it.
var stateTexts = [...]struct{ label, served, peer string }{
	staple.StateMustStapleMissing: {"Must-Staple missing",
		"Handshakes go without a staple, and clients that honour Must-Staple refuse the certificate.", ""},
	staple.StateUnstapled:  {"Not stapled", "Handshakes go without a staple.", ""},
	staple.StateUnanswered: {"Unanswered", "", "There is no valid answer about the peer, which is refused unless FailOpen is set."},
	staple.StateRevoked:    {"Revoked", "The issuer has revoked the certificate.", "The issuer has revoked the certificate, and the peer is refused."},
	staple.StateExpired:    {"Expired", "The certificate itself has expired.", "The certificate itself has expired."},
	staple.StateExpiring: {"Expiring",
		"Handshakes are stapled, but the staple ends soon, and nothing newer has come though it should have.", ""},
	staple.StateFailing:     {"Refresh fails", "Handshakes are stapled, but the last attempt to get a newer response failed.", ""},
	staple.StateWaiting:     {"Waiting", "The first response has not come yet. Until then, handshakes go without.", "The first answer has not come yet."},
	staple.StateStapled:     {"Stapled", "Handshakes are stapled.", ""},
	staple.StateAnswered:    {"Answered", "", "An answer is held, and the peer passes unless that is older than MaxResponseAge."},
	staple.StateNoResponder: {"No responder", "There is nobody to ask, so the certificate is served as it is.", "There is nobody to ask, so the peer passes."},
}

// A state is one of a certificate, as the page shows it.
type state struct{ staple.State }

func (s state) Label() string { return stateTexts[s.State].label }

// Meaning returns what it means of a peer, or of a certificate that is served.
func (s state) Meaning(peer bool) string {
	if peer {
		return stateTexts[s.State].peer
	}
	return stateTexts[s.State].served
}

// states returns the states that peers, or certificates that are served, can be in, the worst first.
func states(peers bool) iter.Seq[state] {
	return func(yield func(state) bool) {
		for s := staple.StateMustStapleMissing; int(s) < len(stateTexts); s++ {
			if (state{s}).Meaning(peers) != "" && !yield(state{s}) {
				return
			}
		}
	}
}

func stateNamed(name string, peers bool) (state, bool) {
	for s := range states(peers) {
		if s.String() == name {
			return s, true
		}
	}
	return state{}, false
}

// A row is a leaf, small because there are many.
type row struct {
	certificate *staple.Certificate // the oldest handle
	end         int64
	order       int32
	handles     int32
	state       state
}

// counts are numbers of certificates, or of peers.
type counts struct {
	Total  int
	states [len(stateTexts)]int
}

func (c *counts) add(s staple.State) {
	c.Total++
	c.states[s]++
}

// A list is a page of certificates, or of peers.
type list struct {
	query
	now time.Time
	counts
	Matching int
	rows     []row // of this page
	cas      []staple.CheckStats
	peers    counts
}

// list finds what q asks for. It looks at every certificate, but formats none.
func (h *Handler) list(q query, now time.Time) *list {
	l := &list{query: q, now: now, cas: h.Stapler.CheckStats()}
	handles := h.Stapler.Certificates()
	if q.OfPeers {
		handles = h.Stapler.Peers()
	} else if len(l.cas) > 0 {
		for c := range h.Stapler.Peers() {
			if st := c.Status(); st.Peer {
				l.peers.add(st.State)
			}
		}
	}
	certificates := slices.Collect(handles)
	seen := make(map[*x509.Certificate]int32, len(certificates)) // the Status of all handles to a leaf has the same Leaf
	rows := make([]row, 0, len(certificates))
	m := newMatcher(q.Words)
	for _, c := range certificates {
		st := c.Status()
		if st.Peer != q.OfPeers {
			continue // a peer that is served as well, or what was removed since
		}
		if i, ok := seen[st.Leaf]; ok {
			if i >= 0 {
				rows[i].handles++
			}
			continue
		}
		s := state{st.State}
		l.add(st.State)
		if q.Filtered && s != q.state || !m.matches(&st, s) {
			seen[st.Leaf] = -1
			continue
		}
		seen[st.Leaf] = int32(len(rows))
		rows = append(rows, row{c, st.Expires.Unix(), int32(len(rows)), 1, s})
	}
	slices.SortFunc(rows, func(a, b row) int {
		return cmp.Or(cmp.Compare(a.state.State, b.state.State), cmp.Compare(a.end, b.end), cmp.Compare(a.order, b.order))
	})
	if q.OfPeers {
		l.peers = l.counts
	}
	l.Matching = len(rows)
	first := min((q.Page-1)*q.per, len(rows))
	l.rows = rows[first:min(first+q.per, len(rows))]
	return l
}

// A matcher tells which certificates a search finds. It remembers what many have in common.
type matcher struct {
	words   []word
	issuers map[string]string // their names in lower case, by DER
	buf     []byte
}

type word struct {
	text   string // in lower case
	serial []byte // the same without colons, if it may be part of a serial number
}

func newMatcher(words string) *matcher {
	m := &matcher{issuers: make(map[string]string)}
	for _, text := range strings.Fields(strings.ToLower(words)) {
		w := word{text: text}
		if digits := strings.ReplaceAll(text, ":", ""); digits != "" && strings.Trim(digits, "0123456789abcdef") == "" {
			w.serial = []byte(digits)
		}
		m.words = append(m.words, w)
	}
	return m
}

func (m *matcher) matches(st *staple.Status, s state) bool {
	for i := range m.words {
		if !m.finds(&m.words[i], st, s) {
			return false
		}
	}
	return true
}

func (m *matcher) finds(w *word, st *staple.Status, s state) bool {
	leaf := st.Leaf
	has := func(text string) bool { return strings.Contains(strings.ToLower(text), w.text) }
	shown := func(url string) bool { return has(exchange.Shown(url)) }
	if slices.ContainsFunc(leaf.DNSNames, has) || has(leaf.Subject.CommonName) {
		return true
	}
	if w.serial != nil && leaf.SerialNumber != nil {
		if m.buf = appendSerial(m.buf[:0], leaf.SerialNumber); bytes.Contains(m.buf, w.serial) {
			return true
		}
	}
	if has(st.Responder) || slices.ContainsFunc(leaf.OCSPServer, shown) || has(s.String()) || has(s.Label()) {
		return true
	}
	issuer, ok := m.issuers[string(leaf.RawIssuer)]
	if !ok {
		issuer = strings.ToLower(leaf.Issuer.String())
		m.issuers[string(leaf.RawIssuer)] = issuer
	}
	if strings.Contains(issuer, w.text) {
		return true
	}
	for _, ip := range leaf.IPAddresses {
		if has(ip.String()) {
			return true
		}
	}
	for _, u := range leaf.URIs {
		if has(u.String()) {
			return true
		}
	}
	return slices.ContainsFunc(leaf.EmailAddresses, has) || len(leaf.Subject.Names) > 1 && has(leaf.Subject.String())
}

// appendSerial appends n in hexadecimal, in whole bytes.
func appendSerial(b []byte, n *big.Int) []byte {
	if (n.BitLen()+3)/4%2 == 1 {
		b = append(b, '0')
	}
	return n.Append(b, 16)
}

// allNames returns what a certificate is good for, as text.
func allNames(leaf *x509.Certificate) []string {
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	for _, u := range leaf.URIs {
		names = append(names, u.String())
	}
	return append(names, leaf.EmailAddresses...)
}
