// Package keep is the command staple keep: it keeps the OCSP responses of chains in PEM files, each in a file beside its
// chain, for servers that read responses from files.
//
// A [keeper] looks at the files once a second, in one goroutine, which writes the responses too. A [staple.Stapler] asks
// and verifies, without keys. What has changed is handed to others that may take their time: a [runner] runs the command of
// -exec, a [socket] tells HAProxy.
package keep

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/cmd/staple/internal/verdict"
	"github.com/go-staple/staple/internal/ocspder"
	"github.com/go-staple/staple/internal/wall"
	"github.com/go-staple/staple/statuspage"
)

const usage = `usage: staple keep [flags] PATH...

    staple keep -exec 'nginx -s reload' /etc/ssl/sites

Keeps the OCSP response of each chain in NAME.ocsp beside its PEM file NAME,
verified, renewed in time, and removed when it ends, is revoked, or the chain is
gone. PATH is a PEM file, or a folder of them, which may come, change and go.

  -suffix .ocsp    what is added to NAME
  -cache DIR       a folder that keeps responses and revocations, too
  -exec COMMAND    run by sh -c when responses have changed or were removed;
                   STAPLE_FILES has the names of their files, a line each
  -haproxy SOCKET  tell HAProxy of new responses: a path, or host:port
  -status ADDR     serve a status page, on loopback unless ADDR has a host
  -once            for cron: do what is due, and end
  -json            with -once: print an object for each file
  -v               log each request

-once ends with 0 if all is well, with 1 if a response is missing, not renewed
or about to end, with 2 if a certificate is revoked, or Must-Staple without a
response, and with 3 if a file cannot be used. docs/keep.md has more.
`

const (
	well   = verdict.Well
	soon   = verdict.Soon
	broken = verdict.Broken
	untold = verdict.Unclear
)

// within is how long Main takes to return, at most, once its context has ended or SIGTERM has come.
const within = 1500 * time.Millisecond

type options struct {
	paths                                   []string
	suffix, cache, command, haproxy, status string
	once, json, verbose                     bool
}

func parse(args []string) (o options, err error) {
	flags := flag.NewFlagSet("staple keep", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.suffix, "suffix", ".ocsp", "")
	flags.StringVar(&o.cache, "cache", "", "")
	flags.StringVar(&o.command, "exec", "", "")
	flags.StringVar(&o.haproxy, "haproxy", "", "")
	flags.StringVar(&o.status, "status", "", "")
	flags.BoolVar(&o.once, "once", false, "")
	flags.BoolVar(&o.json, "json", false, "")
	flags.BoolVar(&o.verbose, "v", false, "")
	for rest := args; ; { // flags before, among and after paths
		if err := flags.Parse(rest); err != nil {
			return o, err
		}
		left := flags.Args()
		if parsed := len(rest) - len(left); len(left) == 0 || parsed > 0 && rest[parsed-1] == "--" {
			o.paths = append(o.paths, left...)
			break
		}
		o.paths, rest = append(o.paths, left[0]), left[1:]
	}
	if slices.Contains(o.paths, "") {
		return o, errors.New("a PATH is empty")
	}
	switch {
	case len(o.paths) == 0:
		return o, errors.New("no PATH: give PEM files of chains, or folders of them")
	case o.suffix == "" || strings.ContainsAny(o.suffix, `/\`) || hasControl(o.suffix):
		return o, fmt.Errorf("-suffix %q: it must be part of a file's name", o.suffix)
	case o.json && !o.once:
		return o, errors.New("-json goes with -once")
	case o.once && o.status != "":
		return o, errors.New("-status does not go with -once")
	}
	return o, nil
}

// Main is the command, with what follows its name as args. It returns when it has ended: when SIGTERM has come, or ctx
// has ended, or with -once when all is done.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) (exit int) {
	o, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		io.WriteString(stdout, usage)
		return well
	case err != nil:
		fmt.Fprintf(stderr, "staple keep: %v (staple keep -h tells more)\n", err)
		return untold
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	return run(ctx, newKeeper(o, nil, stderr), hangup, stdout, stderr)
}

// run is Main with all that comes from outside as arguments.
func run(ctx context.Context, k *keeper, hangup <-chan os.Signal, stdout, stderr io.Writer) (exit int) {
	if k.status != "" {
		l, err := listen(k.status)
		if err != nil {
			fmt.Fprintf(stderr, "staple keep: -status %s: %v: give a free port, as :8080\n", k.status, err)
			return untold
		}
		server := &http.Server{Handler: local(l.Addr(), &statuspage.Handler{Stapler: k.stapler}), ReadHeaderTimeout: 10 * time.Second,
			WriteTimeout: time.Minute, ErrorLog: slog.NewLogLogger(k.log.Handler(), slog.LevelDebug)}
		go server.Serve(l)
		defer server.Close()
		k.log.Info("the status page is at http://" + l.Addr().String() + "/")
	}
	ended := make(chan int, 1)
	go func() { ended <- k.run(ctx, hangup, stdout) }()
	select {
	case exit = <-ended:
		return exit
	case <-ctx.Done():
	}
	late := time.NewTimer(within)
	defer late.Stop()
	select {
	case exit = <-ended:
	case <-late.C: // a disk or a cache hangs; nothing is left half-written
	}
	return exit
}

// listen listens on loopback unless address has a host.
func listen(address string) (net.Listener, error) {
	if !strings.Contains(address, ":") {
		address = ":" + address
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.Listen("tcp", net.JoinHostPort(host, port))
}

// local is h, which refuses what web pages make a browser on this machine send to a listener on loopback.
func local(at net.Addr, h http.Handler) http.Handler {
	if tcp, ok := at.(*net.TCPAddr); !ok || !tcp.IP.IsLoopback() {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if host != "localhost" && (err != nil || !addr.IsLoopback()) {
			http.Error(w, "this page is for localhost", http.StatusMisdirectedRequest)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// A keeper keeps the responses of all files.
type keeper struct {
	options
	stapler *staple.Stapler
	seeds   *seeds
	log     *slog.Logger
	runner  *runner // nil: there is none
	socket  *socket // nil: there is none

	files   map[string]*file   // all that was looked at, by name
	keeping map[string][]*file // those with a chain, by what a cache calls their leaf
	folders map[string]*folder // among paths
	found   map[string]bool    // the names of files, by the look that is under way
	swept   map[string]bool    // folders without leftovers
	due     time.Time          // when the first of files is; zero: none is

	mu    sync.Mutex
	dirty map[string]bool // of leaves, about which there is something new
	news  chan struct{}   // so that somebody looks at dirty
}

// newKeeper returns a keeper that asks by fetcher; nil: as a Stapler does.
func newKeeper(o options, fetcher staple.Fetcher, stderr io.Writer) *keeper {
	level := slog.LevelInfo
	switch {
	case o.verbose:
		level = slog.LevelDebug
	case o.once: // cron sends what is written
		level = slog.LevelWarn
	}
	k := &keeper{options: o, seeds: newSeeds(o.cache), log: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level})),
		files: make(map[string]*file), keeping: make(map[string][]*file), folders: make(map[string]*folder),
		swept: make(map[string]bool), dirty: make(map[string]bool), news: make(chan struct{}, 1)}
	k.stapler = &staple.Stapler{Fetcher: fetcher, Cache: k.seeds, Logger: k.log, OnEvent: k.note}
	if o.once && !o.verbose {
		k.stapler.Logger = slog.New(slog.DiscardHandler) // each file's line says it
	}
	if o.command != "" {
		k.runner = newRunner(o.command, stderr, k.log)
	}
	if o.haproxy != "" {
		k.socket = newSocket(o.haproxy, k.log)
	}
	return k
}

// note is for the Stapler's events.
func (k *keeper) note(e staple.Event) {
	k.mu.Lock()
	k.dirty[keyOf(e.Status.Leaf.Raw)] = true
	k.mu.Unlock()
	k.wake()
}

func (k *keeper) wake() {
	select {
	case k.news <- struct{}{}:
	default:
	}
}

// run keeps responses until ctx ends, or all is done once. It returns the exit code.
func (k *keeper) run(ctx context.Context, hangup <-chan os.Signal, stdout io.Writer) (exit int) {
	var others sync.WaitGroup
	defer others.Wait()
	defer others.Go(func() { k.stapler.Close() })
	if k.once {
		return k.runOnce(ctx, stdout)
	}
	if k.runner != nil {
		others.Go(func() { k.runner.run(ctx) })
	}
	if k.socket != nil {
		others.Go(func() { k.socket.run(ctx) })
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var looked time.Time
	next := looked
	force := false
	for {
		select {
		case <-ctx.Done():
			return well
		case <-hangup:
			force = true
			if k.socket != nil {
				k.socket.retry()
			}
		case <-timer.C:
		case <-k.news:
		}
		k.settleDue()
		if now := time.Now(); force || !now.Before(next) || now.Before(looked) {
			next = k.look(ctx, force)
			looked, force = now, false
		}
		k.settleDirty()
		wait := time.Until(next)
		if !k.due.IsZero() {
			wait = min(wait, k.due.Sub(wall.Now()))
		}
		timer.Reset(max(wait, time.Millisecond))
	}
}

// settleDue removes what has ended, and tries again what has failed.
func (k *keeper) settleDue() {
	now := wall.Now()
	if k.due.IsZero() || now.Before(k.due) {
		return
	}
	k.due = time.Time{}
	for _, files := range k.keeping {
		for _, f := range files {
			if !f.due.IsZero() && !now.Before(f.due) {
				k.settle(f)
			}
			k.expect(f.due)
		}
	}
}

// expect has settleDue called at t at the latest; zero: nothing is expected.
func (k *keeper) expect(t time.Time) {
	if !t.IsZero() && (k.due.IsZero() || t.Before(k.due)) {
		k.due = t
	}
}

// settleDirty deals with news of the Stapler: with some of them if they are many, since writing takes time.
func (k *keeper) settleDirty() {
	const most = 200 * time.Millisecond
	for began := time.Now(); ; {
		k.mu.Lock()
		key, found := "", false
		for key = range k.dirty {
			delete(k.dirty, key)
			found = true
			break
		}
		k.mu.Unlock()
		if !found {
			return
		}
		for _, f := range k.keeping[key] {
			k.settle(f)
		}
		if time.Since(began) >= most {
			k.wake()
			return
		}
	}
}

// keyOf returns what a cache calls a leaf.
func keyOf(leaf []byte) string {
	sum := sha256.Sum256(leaf)
	return hex.EncodeToString(sum[:])
}

// seeds are the Stapler's cache: what lay beside the PEM files when they were first looked at, until something newer
// comes, and a directory beneath if there is to be one.
type seeds struct {
	under staple.Cache // nil: there is none

	mu   sync.Mutex
	data map[string][]byte
}

func newSeeds(dir string) *seeds {
	s := &seeds{data: make(map[string][]byte)}
	if dir != "" {
		s.under = staple.DirCache(dir)
	}
	return s
}

// set makes der what lies beside a file. Of several files with one leaf, that counts which ends last.
func (s *seeds) set(key string, der []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(der) > 0 && !endsLater(s.data[key], der) {
		s.data[key] = der
	}
}

func (s *seeds) drop(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.data, key)
}

// endsLater reports whether a claims to end later than b.
func endsLater(a, b []byte) bool {
	const maxAge = 24 * time.Hour // that of a ResponseVerifier
	return ocspder.ClaimedEnd(a, nil, maxAge).After(ocspder.ClaimedEnd(b, nil, maxAge))
}

func (s *seeds) Get(ctx context.Context, key string) (der []byte, err error) {
	s.mu.Lock()
	seed := s.data[key]
	s.mu.Unlock()
	err = staple.ErrCacheMiss
	if s.under != nil {
		der, err = s.under.Get(ctx, key)
	}
	if seed == nil || len(der) > 0 && (ocspder.SaysRevoked(der) || endsLater(der, seed)) {
		return der, err
	}
	return append([]byte(nil), seed...), nil
}

func (s *seeds) Put(ctx context.Context, key string, der []byte) error {
	s.drop(key)
	if s.under == nil {
		return nil
	}
	return s.under.Put(ctx, key, der)
}

func (s *seeds) Delete(ctx context.Context, key string) error {
	s.drop(key)
	if s.under == nil {
		return nil
	}
	return s.under.Delete(ctx, key)
}

// TryLock implements [staple.Locker], for keepers that share the directory beneath.
func (s *seeds) TryLock(ctx context.Context, key string, ttl time.Duration) (unlock func(), ok bool, err error) {
	if l, is := s.under.(staple.Locker); is {
		return l.TryLock(ctx, key, ttl)
	}
	return func() {}, true, nil
}
