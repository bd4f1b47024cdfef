package statuspage

import (
	"testing"
)

func BenchmarkPages(b *testing.B) {
	h := &Handler{Stapler: manyCertificates(b, many())}
	for _, bench := range []struct{ name, target string }{
		{"first", "/"},
		{"last", "/?page=2000"},
		{"search", "/?q=customer-0999"},
		{"search for nothing", "/?q=example+nowhere"},
		{"filter", "/?state=revoked"},
		{"JSON", "/?format=json"},
		{"unknown certificate", "/?cert=0000000000000000000000000000000000000000000000000000000000000000"},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				get(b, h, bench.target)
			}
		})
	}
}
