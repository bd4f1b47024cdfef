// Staple tells what TLS hosts staple, and gets, judges and keeps OCSP responses.
//
//	staple check example.com
//	staple fetch -o site.ocsp chain.pem
//	staple verify -cert chain.pem site.ocsp
//	staple keep /etc/haproxy/certs
//
// Each command has -h. docs/command.md in the repository has more, and what they print.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/go-staple/staple/cmd/staple/internal/keep"
	"github.com/go-staple/staple/cmd/staple/internal/verdict"
)

const (
	exitWell    = verdict.Well
	exitSoon    = verdict.Soon
	exitBroken  = verdict.Broken
	exitUnclear = verdict.Unclear
)

// A command is one of staple's.
type command struct {
	name, line string // the line tells what it does
	run        func(ctx context.Context, args []string, stdout, stderr io.Writer) (exit int)
}

var commands = []command{
	{"check", "what a host staples, or what its responder says of a PEM file", runCheck},
	{"fetch", "get the response about a certificate, for servers that read files", runFetch},
	{"verify", "what a client would make of a response in a file", runVerify},
	{"keep", "keep responses beside PEM files, for servers that read files", keep.Main},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (exit int) {
	if len(args) == 0 {
		io.WriteString(stderr, usage())
		return exitUnclear
	}
	if i := slices.IndexFunc(commands, func(c command) bool { return c.name == args[0] }); i >= 0 {
		return commands[i].run(ctx, args[1:], stdout, stderr)
	}
	switch args[0] {
	case "help":
		if len(args) > 1 && args[1] != "help" {
			return run(ctx, []string{args[1], "-h"}, stdout, stderr)
		}
		fallthrough
	case "-h", "-help", "--help":
		io.WriteString(stdout, usage())
		return exitWell
	}
	complain(stderr, args[0], errors.New("no such command: staple -h lists them"))
	return exitUnclear
}

func usage() string {
	var b strings.Builder
	b.WriteString(`Staple tells what TLS hosts staple, and gets, judges and keeps OCSP responses.

    staple check example.com                  is it stapled, and for how long?
    staple check -starttls smtp mail.example.com
    staple check chain.pem                    could it be stapled?
    staple fetch -o site.ocsp chain.pem       get what can be
    staple verify -cert chain.pem site.ocsp   would clients take it?
    staple keep /etc/haproxy/certs            keep one beside each chain there

`)
	for _, c := range commands {
		fmt.Fprintf(&b, "    %-8s %s\n", c.name, c.line)
	}
	b.WriteString(`
staple COMMAND -h tells more. Exit codes: 0 well, 1 look at it soon, 2 broken
now, 3 could not tell. No key is ever needed.
`)
	return b.String()
}

// parse parses a command's flags, which may stand before, among and after the arguments, and returns the latter. Where ok
// is false nothing is left to do but to exit.
func parse(fs *flag.FlagSet, help string, args []string, stdout, stderr io.Writer) (rest []string, exit int, ok bool) {
	fs.Init(fs.Name(), flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	for {
		err := fs.Parse(args)
		switch {
		case errors.Is(err, flag.ErrHelp):
			io.WriteString(stdout, help)
			return nil, exitWell, false
		case err != nil:
			return nil, misused(fs, stderr, "%v", err), false
		case fs.NArg() == 0:
			return rest, 0, true
		}
		if parsed := len(args) - fs.NArg(); parsed > 0 && args[parsed-1] == "--" {
			return append(rest, fs.Args()...), 0, true
		}
		rest, args = append(rest, fs.Arg(0)), fs.Args()[1:]
	}
}

// misused complains about how a command was called.
func misused(fs *flag.FlagSet, stderr io.Writer, format string, args ...any) (exit int) {
	complain(stderr, fs.Name(), fmt.Errorf("%s: staple %s -h has examples", fmt.Sprintf(format, args...), fs.Name()))
	return exitUnclear
}

// complain writes a line about what is named.
func complain(stderr io.Writer, what string, err error) {
	fmt.Fprintf(stderr, "staple: %s: %s\n", printable(what, 300), plain(err))
}
