// Command bench measures what staple costs beside its alternatives, and prints the figures as Markdown:
//
//	go run . verify
//
// verify is the cost of judging a response, with [staple.ResponseVerifier], with golang.org/x/crypto/ocsp
// and the checks that it leaves to its caller, and with the bare signature checks that none can do without.
//
// The contenders take turns, round after round, and the fastest round of each counts: other work on the
// machine can only slow a round down.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
)

const rounds = 20

var tables = map[string]func(io.Writer) error{
	"verify": verifyTable,
}

func main() {
	benchtime := flag.String("benchtime", "100ms", "`time` of one round, or its number of calls as in 100x")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: bench [-benchtime time] table...\ntables: %s\n", words())
		flag.PrintDefaults()
	}
	flag.Parse()
	testing.Init() // after Parse, so that its flags are not among ours
	if err := run(os.Stdout, *benchtime, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(w io.Writer, benchtime string, args []string) error {
	if len(args) == 0 {
		return errors.New("no table given, want some of: " + words())
	}
	for _, word := range args {
		if tables[word] == nil {
			return fmt.Errorf("no table %q, want some of: %s", word, words())
		}
	}
	if err := flag.Set("test.benchtime", benchtime); err != nil {
		return fmt.Errorf("-benchtime %s: %w", benchtime, err)
	}
	fmt.Fprintf(w, "%s/%s, %s, %d cores, %s\n", runtime.GOOS, runtime.GOARCH, cpuModel(), runtime.NumCPU(), runtime.Version())
	for _, word := range args {
		if err := tables[word](w); err != nil {
			return fmt.Errorf("%s: %w", word, err)
		}
	}
	return nil
}

func words() string { return strings.Join(slices.Sorted(maps.Keys(tables)), " ") }

// cpuModel returns the CPU's name where Linux tells it.
func cpuModel() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if key, model, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(model)
		}
	}
	return "unknown CPU"
}

// A contender does the work once that is measured.
type contender struct {
	name string
	call func() error
}

// measure returns the fastest round of each contender. One that returns an error ends it.
func measure(contenders []contender) ([]testing.BenchmarkResult, error) {
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

// printTable prints rows, the first of which is the heading, as a Markdown table.
func printTable(w io.Writer, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	fmt.Fprintln(w)
	for i, row := range rows {
		for j, cell := range row {
			fmt.Fprintf(w, "| %-*s ", widths[j], cell)
		}
		fmt.Fprintln(w, "|")
		if i == 0 {
			for _, width := range widths {
				fmt.Fprintf(w, "| %s ", strings.Repeat("-", width))
			}
			fmt.Fprintln(w, "|")
		}
	}
}
