package exchange

import (
	"net/url"
	"strings"
)

// MaxPlaces is how many URLs of one certificate can be asked.
const MaxPlaces = 16

// A Place is a URL as it may be shown, and the credentials that go with it.
type Place struct {
	URL   string
	At    *url.URL
	Err   error // why it cannot be asked
	User  *url.Userinfo
	Alone bool // there is no other
}

// Places returns URLs without what they have of credentials, which count only where they are trusted: the first [MaxPlaces]
// that can be asked, and as many that cannot.
func Places(urls []string, trusted bool) (all []Place) {
	room := map[bool]int{true: MaxPlaces, false: MaxPlaces}
	for _, raw := range urls {
		p := Place{URL: Shown(raw)}
		p.At, p.Err = ParseURL(p.URL)
		if trusted {
			if u, err := url.Parse(strings.TrimSpace(raw)); err == nil {
				p.User = u.User
			}
		}
		if ok := p.Fetchable(); room[ok] > 0 {
			room[ok]--
			all = append(all, p)
		}
	}
	return all
}

// Fetchable reports whether it can be asked.
func (p Place) Fetchable() bool { return p.Err == nil }
