package choose

import (
	"net/netip"
	"strings"
)

// lower is x509's toLowerCaseASCII.
func lower(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return 'A' <= r && r <= 'Z' }) {
		return string(appendLower(nil, s))
	}
	return s
}

func appendLower(b []byte, s string) []byte {
	b = append(b, s...)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] += 'a' - 'A'
		}
	}
	return b
}

// isHostname is x509's validHostname, for a name without a dot at its end.
func isHostname(name []byte) bool {
	start := true // of a label
	for _, c := range name {
		switch {
		case c == '.' && !start:
			start = true
			continue
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-' && !start:
		default:
			return false
		}
		start = false
	}
	return !start
}

// parseAddress parses what VerifyHostname takes for an address.
func parseAddress(name string) (addr netip.Addr, ok bool) {
	if name == "" {
		return addr, false
	}
	last := name[len(name)-1]
	if (last < '0' || last > '9') && last != ']' && strings.IndexByte(name, ':') < 0 {
		return addr, false // spares a host's name the error
	}
	if len(name) >= 3 && name[0] == '[' && last == ']' {
		name = name[1 : len(name)-1]
	}
	addr, err := netip.ParseAddr(name)
	return addr, err == nil && addr.Zone() == ""
}
