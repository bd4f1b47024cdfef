// Package publicaddr knows which IP addresses are globally reachable, and keeps a
// [net.Dialer] to them:
//
//	dialer := &net.Dialer{Control: publicaddr.Control}
//
// It is for servers that connect to whatever URL somebody hands them, and must not be
// led into their own network: by a name that resolves to an address of it, or by a
// redirect. It resolves no names, and a proxy, which connects to the address itself,
// gets round it.
package publicaddr

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"
)

// What IANA's IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890, as of
// October 2025) do not call globally reachable, and what lies within it but is.
// Multicast, which the registries leave out, is refused too. Of IPv6, only
// 2000::/3 is ever considered; the ranges outside it need no entry.
var (
	specialPurpose = prefixes(
		"0.0.0.0/8",       // this network
		"10.0.0.0/8",      // private use
		"100.64.0.0/10",   // shared, for carrier-grade NAT
		"127.0.0.0/8",     // loopback
		"169.254.0.0/16",  // link-local
		"172.16.0.0/12",   // private use
		"192.0.0.0/24",    // IETF protocol assignments
		"192.0.2.0/24",    // documentation
		"192.88.99.0/24",  // 6to4 and 6a44 relay anycast, deprecated
		"192.168.0.0/16",  // private use
		"198.18.0.0/15",   // benchmarking
		"198.51.100.0/24", // documentation
		"203.0.113.0/24",  // documentation
		"224.0.0.0/4",     // multicast
		"240.0.0.0/4",     // reserved, and limited broadcast
		"2001::/23",       // IETF protocol assignments, Teredo, benchmarking, ORCHID
		"2001:db8::/32",   // documentation
		"3fff::/20",       // documentation
	)
	specialButReachable = prefixes(
		"192.0.0.9/32",    // Port Control Protocol anycast
		"192.0.0.10/32",   // TURN anycast
		"2001:1::1/128",   // Port Control Protocol anycast
		"2001:1::2/128",   // TURN anycast
		"2001:1::3/128",   // DNS-SD Service Registration Protocol anycast
		"2001:3::/32",     // AMT
		"2001:4:112::/48", // AS112
		"2001:20::/28",    // ORCHIDv2
		"2001:30::/28",    // drone remote identification
	)

	globalUnicast  = netip.MustParsePrefix("2000::/3")
	nat64          = netip.MustParsePrefix("64:ff9b::/96")
	sixToFour      = netip.MustParsePrefix("2002::/16")
	ipv4Compatible = netip.MustParsePrefix("::/96")
)

func prefixes(s ...string) []netip.Prefix {
	p := make([]netip.Prefix, len(s))
	for i := range s {
		p[i] = netip.MustParsePrefix(s[i])
	}
	return p
}

// Reachable reports whether a is an address that anybody on the Internet
// could connect to as well. An IPv4 address inside an IPv6 one (IPv4-mapped,
// IPv4-compatible, NAT64 with the well-known prefix, 6to4) is judged itself.
func Reachable(a netip.Addr) bool {
	if a.Zone() != "" {
		return false
	}
	a = a.Unmap()
	switch b := a.As16(); {
	case a.Is4():
	case nat64.Contains(a), ipv4Compatible.Contains(a):
		a = netip.AddrFrom4([4]byte(b[12:]))
	case sixToFour.Contains(a):
		a = netip.AddrFrom4([4]byte(b[2:]))
	case !globalUnicast.Contains(a):
		return false
	}
	in := func(ranges []netip.Prefix) bool {
		return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	return !in(specialPurpose) || in(specialButReachable)
}

// Control is a [net.Dialer]'s Control that refuses every address which is not
// globally reachable. It runs after name resolution, for each connection.
func Control(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if !Reachable(ap.Addr()) {
		return fmt.Errorf("%v is not a globally reachable address", ap.Addr())
	}
	return nil
}
