package publicaddr

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// The registries as of October 2025, row by row. What they leave open, "N/A", is
// here as the doc comment of Reachable has it.
var specialPurposeRows = []struct {
	prefix string
	name   string
	global bool
}{
	{"0.0.0.0/8", "this network", false},
	{"0.0.0.0/32", "this host on this network", false},
	{"10.0.0.0/8", "private use", false},
	{"100.64.0.0/10", "shared address space", false},
	{"127.0.0.0/8", "loopback", false},
	{"169.254.0.0/16", "link-local", false},
	{"172.16.0.0/12", "private use", false},
	{"192.0.0.0/29", "IPv4 service continuity", false},
	{"192.0.0.8/32", "IPv4 dummy address", false},
	{"192.0.0.9/32", "Port Control Protocol anycast", true},
	{"192.0.0.10/32", "TURN anycast", true},
	{"192.0.0.170/32", "NAT64/DNS64 discovery", false},
	{"192.0.0.171/32", "NAT64/DNS64 discovery", false},
	{"192.0.0.128/25", "IETF protocol assignments", false},
	{"192.0.2.0/24", "TEST-NET-1", false},
	{"192.31.196.0/24", "AS112-v4", true},
	{"192.52.193.0/24", "AMT", true},
	{"192.88.99.0/24", "6to4 relay anycast", false},
	{"192.88.99.2/32", "6a44 relay anycast", false},
	{"192.168.0.0/16", "private use", false},
	{"192.175.48.0/24", "direct delegation AS112", true},
	{"198.18.0.0/15", "benchmarking", false},
	{"198.51.100.0/24", "TEST-NET-2", false},
	{"203.0.113.0/24", "TEST-NET-3", false},
	{"224.0.0.0/4", "multicast", false},
	{"240.0.0.0/4", "reserved", false},
	{"255.255.255.255/32", "limited broadcast", false},

	{"::1/128", "loopback", false},
	{"::/128", "unspecified", false},
	{"64:ff9b:1::/48", "local-use NAT64", false},
	{"100::/64", "discard-only", false},
	{"100:0:0:1::/64", "dummy prefix", false},
	{"2001::/32", "Teredo", false},
	{"2001:1::1/128", "Port Control Protocol anycast", true},
	{"2001:1::2/128", "TURN anycast", true},
	{"2001:1::3/128", "DNS-SD SRP anycast", true},
	{"2001:1::4/128", "IETF protocol assignments", false},
	{"2001:2::/48", "benchmarking", false},
	{"2001:3::/32", "AMT", true},
	{"2001:4:112::/48", "AS112-v6", true},
	{"2001:4:113::/48", "IETF protocol assignments", false},
	{"2001:10::/28", "ORCHID", false},
	{"2001:20::/28", "ORCHIDv2", true},
	{"2001:30::/28", "drone remote ID", true},
	{"2001:40::/28", "IETF protocol assignments", false},
	{"2001:100::/24", "IETF protocol assignments", false},
	{"2001:db8::/32", "documentation", false},
	{"2620:4f:8000::/48", "direct delegation AS112", true},
	{"3fff::/20", "documentation", false},
	{"5f00::/16", "segment routing SIDs", false},
	{"fc00::/7", "unique local", false},
	{"fe80::/10", "link-local", false},
	{"fec0::/10", "site-local", false},
	{"ff00::/8", "multicast", false},
	{"200::/7", "outside global unicast", false},
	{"4000::/3", "outside global unicast", false},
	{"e000::/4", "outside global unicast", false},
}

func TestReachableFollowsTheRegistries(t *testing.T) {
	for _, row := range specialPurposeRows {
		p := netip.MustParsePrefix(row.prefix)
		for _, a := range []netip.Addr{p.Addr(), lastAddr(p)} {
			require.Equal(t, row.global, Reachable(a), "%v, %s", a, row.name)
		}
	}
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func TestReachable(t *testing.T) {
	tests := []struct {
		name   string
		addrs  []string
		global bool
	}{
		{"ordinary addresses", []string{
			"1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0",
			"126.255.255.255", "128.0.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0",
			"192.0.3.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255",
			"2000::", "2001:200::1", "2001:db7:ffff::", "2001:db9::", "2003::1", "2606:4700::1111", "2a00:1450::1",
			"3ffe:ffff::", "3fff:1000::", "3fff:ffff::"}, true},
		{"IPv4-mapped", []string{"::ffff:8.8.8.8", "::ffff:192.0.0.9"}, true},
		{"IPv4-mapped, within a special range", []string{"::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0.0.0.0"}, false},
		{"NAT64", []string{"64:ff9b::8.8.8.8"}, true},
		{"NAT64 of a special range", []string{"64:ff9b::127.0.0.1", "64:ff9b::10.1.2.3", "64:ff9b::a9fe:a9fe"}, false},
		{"NAT64 with another prefix", []string{"64:ff9b:1::8.8.8.8", "64:ff9b::1:808:808", "64:ff9b:1:fffe::7f00:1"}, false},
		{"6to4", []string{"2002:808:808::1", "2002:0101:0101:ffff::"}, true},
		{"6to4 of a special range", []string{"2002:7f00:1::1", "2002:a9fe:a9fe::", "2002:c0a8:101::1", "2002:e000:1::"}, false},
		{"IPv4-compatible", []string{"::8.8.8.8"}, true},
		{"IPv4-compatible, within a special range", []string{"::127.0.0.1", "::10.0.0.1", "::2"}, false},
		{"a zone", []string{"fe80::1%lo", "2606:4700::1111%eth0", "::ffff:8.8.8.8%1", "::1%lo"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, a := range tt.addrs {
				require.Equal(t, tt.global, Reachable(netip.MustParseAddr(a)), a)
			}
		})
	}
	t.Run("no address at all", func(t *testing.T) {
		require.False(t, Reachable(netip.Addr{}))
	})
}

func TestControlNamesTheAddress(t *testing.T) {
	require.NoError(t, Control("tcp4", "8.8.8.8:80", nil))
	require.NoError(t, Control("tcp6", "[2606:4700::1111]:443", nil))
	require.ErrorContains(t, Control("tcp4", "127.0.0.1:80", nil), "127.0.0.1 is not a globally reachable address")
	require.ErrorContains(t, Control("tcp6", "[fe80::1%lo]:80", nil), "fe80::1%lo is not a globally reachable address")
	require.Error(t, Control("unix", "/run/socket", nil))
}
