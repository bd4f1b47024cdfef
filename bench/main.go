// Command bench measures what staple costs beside its alternatives, and prints the figures as Markdown:
//
//	go run .                   all tables
//	go run . select memory     some of them
//
// Command servers, in the directory of that name, compares with nginx and Apache httpd.
//
// checker is what a connection costs whose peer a Checker knows, by itself, in an order in which no cache of the processor
// helps with many. Compared with: to read the peer's certificate alone, which a handshake has just done; and the rate of full TLS 1.3 handshakes with a
// client's certificate, over a pipe, client and server together. Compared with: crypto/tls alone, of as many clients. It is
// there twice, too: see handshake.
//
// first is the time until 10,000 certificates are stapled, 64 requests at a time, by a responder on loopback
// that has its answers signed in advance and takes 20 ms for each. It runs in this process, as does what asks
// it. Compared with: the requests alone. CertMagic asks about one certificate after the other, here about 200.
//
// handshake is the rate of full TLS 1.3 handshakes over a pipe, client and server together. Compared with: a
// configuration with the certificate and its staple fixed. That one is there twice: how far the two are apart
// is the spread, and a difference that is no larger than that is none.
//
// memory is the heap that each of 100,000 certificates takes: in all; and what is left of that beyond the
// parsed leaf with its DER, the response, and the tls.Certificate value. The key, and the issuer in the
// chain, are the same for all and count nowhere. Compared with: a map from the name to the certificate
// with its staple.
//
// peers is the time until 10,000 different clients are in who come at once and whom a Checker does not know, and come again
// a second after they were refused: the responder is that of first.
//
// restart is the time until 100,000 certificates are stapled whose responses are in the cache: in memory, or in files
// that the system has in memory, too. Whoever asks a responder about any fails. Compared with: what has to be done for
// each, in as many goroutines as there are cores, or in one: to read the cache, verify the response, and check the
// issuer's signature of the certificate.
//
// select is the choice of the certificate for a TLS 1.3 hello, as crypto/tls's client sends it. Each certificate
// has one name, and each name is asked for in turn, in a random order that is the same for all. Compared
// with: a map from the name to the certificate and the end of its staple, behind an atomic pointer, and a look
// at the clock. What crypto/tls does with Config.Certificates takes time by the position: four, evenly spread, are asked for.
//
// trim is what a handshake costs with a staple as it came, from a responder that embeds its chain of RSA-2048 as EJBCA
// does, and with the same one trimmed: all bytes of the server in TLS 1.3, without session tickets, and the rate of full
// handshakes over a pipe. A pipe has no round trips: what a flight that does not fit a congestion window costs is not here.
//
// verify is the cost of judging a response, with [staple.ResponseVerifier], with golang.org/x/crypto/ocsp
// and the checks that it leaves to its caller. Compared with: the bare signature checks, which none can do
// without. A response that comes with its signer's chain is trimmed as well.
//
// The contenders take turns, round after round, and the fastest round of each counts: other work on the
// machine can only slow a round down. Whatever is compared serves stapled certificates, or the run fails.
package main

import (
	"flag"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/go-staple/staple/bench/internal/table"
)

const (
	rounds          = 20
	handshakeRounds = 100
)

// tables prints each table, with this many certificates at most.
var tables = map[string]func(w io.Writer, most int) error{
	"checker":   checkerTable,
	"first":     firstTable,
	"handshake": handshakeTable,
	"memory":    memoryTable,
	"peers":     peersTable,
	"restart":   restartTable,
	"select":    selectTable,
	"trim":      trimTable,
	"verify":    verifyTable,
}

func main() {
	benchtime := flag.String("benchtime", "100ms", "`time` of one round, or its number of calls as in 100x")
	most := flag.Int("most", 100_000, "the largest `number` of certificates")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: bench [-benchtime time] [-most number] [table...]\ntables: %s\n", words())
		flag.PrintDefaults()
	}
	flag.Parse()
	testing.Init() // after Parse, so that its flags are not among ours
	if err := run(os.Stdout, *benchtime, *most, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(w io.Writer, benchtime string, most int, args []string) error {
	if len(args) == 0 {
		args = slices.Sorted(maps.Keys(tables))
	}
	if most < 1 {
		return fmt.Errorf("-most %d: want 1 or more", most)
	}
	for _, word := range args {
		if tables[word] == nil {
			return fmt.Errorf("no table %q, want some of: %s", word, words())
		}
	}
	if err := flag.Set("test.benchtime", benchtime); err != nil {
		return fmt.Errorf("-benchtime %s: %w", benchtime, err)
	}
	fmt.Fprintln(w, table.Machine())
	for _, word := range args {
		if err := tables[word](w, most); err != nil {
			return fmt.Errorf("%s: %w", word, err)
		}
	}
	return nil
}

func words() string { return strings.Join(slices.Sorted(maps.Keys(tables)), " ") }

// A contender does the work once that is measured.
type contender struct {
	name string
	call func() error
}

// measure returns the fastest of so many rounds of each contender. One that returns an error ends it.
func measure(rounds int, contenders []contender) ([]testing.BenchmarkResult, error) {
	fastest := make([]testing.BenchmarkResult, len(contenders))
	for round := range rounds {
		for i, c := range contenders {
			var err error
			r := testing.Benchmark(func(b *testing.B) {
				for b.Loop() {
					if err = c.call(); err != nil {
						b.FailNow()
					}
				}
			})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			if round == 0 || nsPerCall(r) < nsPerCall(fastest[i]) {
				fastest[i] = r
			}
		}
	}
	return fastest, nil
}

func nsPerCall(r testing.BenchmarkResult) float64 { return float64(r.T.Nanoseconds()) / float64(r.N) }

// upTo yields those of sizes that are not more than most.
func upTo(most int, sizes ...int) iter.Seq[int] {
	return func(yield func(int) bool) {
		for _, n := range sizes {
			if n <= most && !yield(n) {
				return
			}
		}
	}
}

// thousands returns n with commas.
func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}
