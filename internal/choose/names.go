package choose

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"strings"
	"sync"
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
	if addr.Zone() != "" && zoned() {
		addr = addr.WithZone("") // which a certificate cannot have
	}
	return addr, err == nil && addr.Zone() == ""
}

// zoned reports whether VerifyHostname takes an address with a zone for the address, as it does from Go 1.27 on.
var zoned = sync.OnceValue(func() bool {
	c := &x509.Certificate{IPAddresses: []net.IP{net.IPv6loopback}}
	return c.VerifyHostname("::1%zone") == nil
})

// ByName is the look-up of the deprecated tls.Config.NameToCertificate; nil: it has nothing for the name.
func ByName(certs map[string]*tls.Certificate, name string) *tls.Certificate {
	name = strings.ToLower(name)
	if cert, ok := certs[name]; ok {
		return cert
	}
	if name == "" {
		return nil
	}
	if _, parent, ok := strings.Cut(name, "."); ok {
		return certs["*."+parent]
	}
	return certs["*"]
}
