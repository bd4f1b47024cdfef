// Command staple looks after OCSP responses from the command line.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/go-staple/staple/cmd/staple/internal/keep"
)

func main() {
	if len(os.Args) < 2 || os.Args[1] != "keep" {
		fmt.Fprintln(os.Stderr, "usage: staple keep [flags] PATH...")
		os.Exit(3)
	}
	os.Exit(keep.Main(context.Background(), os.Args[2:], os.Stdout, os.Stderr))
}
