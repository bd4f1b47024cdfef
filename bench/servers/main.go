// Command servers puts a Go server with staple, nginx, Apache httpd, and nginx and HAProxy with the command staple keep
// through the same faults of an OCSP responder, and prints as Markdown what each stapled to a client and how long that
// client waited:
//
//	go run ./servers
//
// It needs Debian's nginx, apache2 and haproxy, which it runs with configurations of its own on loopback; if one is missing,
// its column says so. For every fault each server is started anew, with a new certificate of the same CA and a responder of
// its own, which takes 10 ms for each request. The client, crypto/tls's, connects as soon as the server serves. All
// take the faults side by side.
//
// The server with staple is a process of this program, in which nothing is set but what the package documentation
// begins with and a [staple.DirCache]. It does not wait for its first staple before it listens.
//
// nginx has one worker, because each would ask the responder for itself, and go without a staple at first. By default
// ssl_stapling_verify is off; then it staples the forged response, too. Apache staples a response on for the 300 seconds
// of SSLStaplingResponseTimeSkew after it has expired, and one that says tryLater after that.
//
// With staple keep, servers are started as docs/keep.md says: after staple keep -once, which has five seconds for it. HAProxy
// staples a response until five minutes before its end, so that in the outage that is longer it is given one that lasts five
// minutes more.
//
// The last lines say whether staple did what it promises: no handshake took 50 ms more than the median of its quiet
// ones, and [staple.ResponseVerifier] refuses none. Otherwise, the exit status is 1. That is for a machine with
// nothing else to do. One fault stands below the table and does not count: nobody can staple a Must-Staple certificate
// that is new while the responder hangs, and staple has its first handshakes wait for that, five seconds at most.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-staple/staple/bench/internal/table"
	"github.com/go-staple/staple/stapletest"
)

// tolerance is how much longer than the median of its quiet ones a handshake with staple may take.
const tolerance = 50 * time.Millisecond

// A course says how the handshakes are made.
type course struct {
	later time.Duration // from the second of a fault to the third
	quiet int           // how many make up the quiet median
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer os.RemoveAll(commandDir())
	var err error
	if len(os.Args) == 4 && os.Args[1] == "serve" {
		err = serve(ctx, os.Args[2], os.Args[3])
	} else {
		servers := []server{withStaple, nginx, nginxKeep, haproxyKeep, apache}
		err = run(ctx, os.Stdout, os.Stderr, course{later: 3 * time.Second, quiet: 101}, servers, faults)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "servers:", err)
		stop()
		os.RemoveAll(commandDir())
		os.Exit(1)
	}
}

// A column is what was seen of one server.
type column struct {
	name, version string
	median        time.Duration   // of the quiet handshakes; zero: the server is not installed
	seen          [][]observation // by fault
}

// run prints the table to w, and fails if the first of servers does not do what staple promises.
func run(ctx context.Context, w, stderr io.Writer, c course, servers []server, faults []fault) error {
	columns, err := observe(ctx, stderr, c, servers, faults)
	if err != nil {
		return err
	}
	fmt.Fprintln(w, table.Machine())
	table.Print(w, rows(c, columns, faults))
	fmt.Fprintf(w, `
What was stapled in the first handshake, the second, and a third %g s later; one word if it was the same. In brackets,
how long the first took, and the slowest if that was not the first. ✗: staple.ResponseVerifier refuses the handshake,
and is right to if revoked; how much real clients check differs. nginx: ssl_stapling and ssl_stapling_verify on, one
worker. Apache: SSLUseStapling on, SSLStaplingCache in shared memory. staple: TLSConfig, and a DirCache. With staple keep:
started after staple keep -once, as docs/keep.md says; %s. Otherwise their defaults.

`, c.later.Seconds(), haproxyVersion())
	for i, f := range faults {
		if f.hopeless {
			fmt.Fprintf(w, "Not in the table, since nobody can staple there (%s): %s.\n\n", f.name, everywhere(columns, i))
		}
	}
	return check(w, columns[0], faults)
}

// observe takes the quiet median of each server that is installed, and puts all of them through the faults, side by side.
func observe(ctx context.Context, stderr io.Writer, c course, servers []server, faults []fault) ([]column, error) {
	dir, err := os.MkdirTemp("", "servers")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // some of Apache's processes run as another user
		return nil, err
	}
	ca := stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
	columns := make([]column, len(servers))
	for i, s := range servers {
		columns[i].name = s.name
		columns[i].version, err = s.version()
		if errors.Is(err, exec.ErrNotFound) {
			fmt.Fprintf(stderr, "servers: %s is not installed\n", s.name)
			continue
		}
		if err == nil {
			columns[i].median, err = quietMedian(ctx, s, ca, dir, c.quiet)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for i, s := range servers {
		if columns[i].median == 0 {
			continue
		}
		wg.Go(func() {
			for _, f := range faults {
				seen, err := f.try(ctx, s, ca, dir, 0, 0, c.later)
				if err != nil {
					cancel(fmt.Errorf("%s: %w", s.name, err))
					return
				}
				columns[i].seen = append(columns[i].seen, seen)
			}
		})
	}
	wg.Wait()
	return columns, context.Cause(ctx)
}

func rows(c course, columns []column, faults []fault) [][]string {
	rows := [][]string{{"fault"}, {fmt.Sprintf("quiet, median of %d", c.quiet)}}
	for _, col := range columns {
		rows[0] = append(rows[0], strings.TrimSpace(col.name+" "+col.version))
		cell := "not installed"
		if col.median > 0 {
			cell = "(" + ms(col.median) + ")"
		}
		rows[1] = append(rows[1], cell)
	}
	for i, f := range faults {
		if f.hopeless {
			continue
		}
		row := []string{f.name}
		for _, col := range columns {
			cell := "not installed"
			if col.median > 0 {
				cell = words(col.seen[i])
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	return rows
}

// everywhere describes the handshakes of the i-th fault with each server that is installed.
func everywhere(columns []column, i int) string {
	var all []string
	for _, col := range columns {
		if col.median > 0 {
			all = append(all, col.name+" "+words(col.seen[i]))
		}
	}
	return strings.Join(all, "; ")
}

// words describes the handshakes of one fault.
func words(seen []observation) string {
	var all []string
	alike := true
	slowest := seen[0].took
	for _, o := range seen {
		word := o.word
		if o.refused {
			word += " ✗"
		}
		all = append(all, word)
		alike = alike && word == all[0]
		slowest = max(slowest, o.took)
	}
	if alike {
		all = all[:1]
	}
	took := ms(seen[0].took)
	if slowest := ms(slowest); slowest != took {
		took += ", slowest " + slowest
	}
	return fmt.Sprintf("%s (%s)", strings.Join(all, ", "), took)
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1e3) }

// check prints whether the handshakes of a column are all as staple promises, and fails if not.
func check(w io.Writer, col column, faults []fault) error {
	var slowest time.Duration
	handshakes, refused := 0, 0
	for i, seen := range col.seen {
		if faults[i].hopeless {
			continue
		}
		for _, o := range seen {
			handshakes++
			slowest = max(slowest, o.took)
			if o.refused {
				refused++
			}
		}
	}
	verdict := map[bool]string{true: "ok", false: "NOT OK"}
	fast := slowest-col.median <= tolerance
	fmt.Fprintf(w, "%s: slowest of %d handshakes %s, quiet median %s, %s apart at most: %s\n",
		col.name, handshakes, ms(slowest), ms(col.median), ms(tolerance), verdict[fast])
	fmt.Fprintf(w, "%s: refused by staple.ResponseVerifier: %d of %d: %s\n", col.name, refused, handshakes, verdict[refused == 0])
	if !fast || refused > 0 {
		return fmt.Errorf("%s did not do what it promises", col.name)
	}
	return nil
}
