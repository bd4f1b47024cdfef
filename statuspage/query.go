package statuspage

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A query is what an address asks for.
type query struct {
	OfPeers   bool   // in place of the certificates that are served
	Words     string // as typed
	state     state
	Filtered  bool // by state
	Page, per int  // from 1
	cert      string
	format    string // "", json or der
	asked     string // what came of a refresh: "", ended or pending
}

func parseQuery(raw string) (query, error) {
	q := query{Page: 1, per: defaultPer}
	v, err := url.ParseQuery(raw)
	if err != nil {
		return q, errors.New("the query cannot be read")
	}
	switch s := v.Get("list"); s {
	case "":
	case "peers":
		q.OfPeers = true
	default:
		return q, errors.New("list is peers")
	}
	q.Words = strings.TrimSpace(v.Get("q"))
	if utf8.RuneCountInString(q.Words) > maxQuery || !utf8.ValidString(q.Words) {
		return q, fmt.Errorf("q is text of %d characters at most", maxQuery)
	}
	if s := v.Get("state"); s != "" {
		if q.state, q.Filtered = stateNamed(s, q.OfPeers); !q.Filtered {
			return q, errors.New("there is no such state")
		}
	}
	number := func(name string, value *int, limit int) error {
		s := v.Get(name)
		if s == "" {
			return nil
		}
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > limit {
			return fmt.Errorf("%s is a number from 1 to %d", name, limit)
		}
		*value = n
		return nil
	}
	if err := errors.Join(number("page", &q.Page, 1_000_000), number("per", &q.per, maxPer)); err != nil {
		return q, err
	}
	if q.cert = strings.ToLower(v.Get("cert")); q.cert != "" && !isSHA256(q.cert) {
		return q, errors.New("cert is a SHA-256 hash in 64 hexadecimal digits")
	}
	switch q.format = v.Get("format"); q.format {
	case "", "json", "der":
	default:
		return q, errors.New("format is json or der")
	}
	switch s := v.Get("asked"); s {
	case "ended", "pending":
		q.asked = s
	}
	return q, nil
}

func isSHA256(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// link returns the relative address of the list that q asks for, at another page.
func (q query) link(page int) string {
	v := url.Values{}
	if q.OfPeers {
		v.Set("list", "peers")
	}
	if q.Words != "" {
		v.Set("q", q.Words)
	}
	if q.Filtered {
		v.Set("state", q.state.String())
	}
	if q.per != defaultPer {
		v.Set("per", strconv.Itoa(q.per))
	}
	if page > 1 {
		v.Set("page", strconv.Itoa(page))
	}
	return "?" + v.Encode()
}

// in returns q with a filter by state, or without.
func (q query) in(s state, filtered bool) query {
	q.state, q.Filtered = s, filtered
	return q
}
