package schedule

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAHostIsOnePortOfIt(t *testing.T) {
	for url, host := range map[string]string{
		"http://OCSP.example/a":        "ocsp.example",
		"http://ocsp.example:80/a":     "ocsp.example",
		"http://user@ocsp.example:80/": "ocsp.example",
		"http://ocsp.example:443":      "ocsp.example:443",
		"https://ocsp.example":         "ocsp.example:443",
		"https://ocsp.example:":        "ocsp.example:443",
		"https://ocsp.example:443":     "ocsp.example:443",
		"https://ocsp.example:80":      "ocsp.example:80",
		"http://[2001:db8::80]/":       "[2001:db8::80]",
		"https://[2001:db8::80]/":      "[2001:db8::80]:443",
		"ldap://ocsp.example":          "ocsp.example",
		"https:opaque":                 "",
		"\n":                           "",
		"":                             "",
	} {
		require.Equal(t, Source{Host: host, URL: url}, SourceOf(url), "%q", url)
	}
}
