// Proxy is a reverse proxy that terminates TLS with the certificates in a folder, and staples them.
//
//	go run ./examples/proxy -certs /etc/proxy/certs -cache /var/cache/proxy/ocsp -addr :443 \
//		-backend www.example.com=http://10.0.0.5:8080 -backend '*.shop.example=http://10.0.0.6:8080'
//
// Each file NAME.pem in the folder is a certificate chain, leaf first, and its private key; the names that
// it serves are those in the certificate. Files may come, change and go while the proxy runs.
//
// Without -certs it makes everything that this takes: a certificate authority, its OCSP responder and a
// backend on loopback, and a folder with one certificate. With -once it then makes one request, and exits
// with code 0 if the handshake was stapled and 1 if not:
//
//	go run ./examples/proxy -once
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/statuspage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	switch err := run(ctx, os.Args[1:], os.Stdout); {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "proxy:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	p := proxy{backends: make(map[string]*url.URL), log: slog.New(slog.NewTextHandler(stdout, nil))}
	flags := flag.NewFlagSet("proxy", flag.ContinueOnError)
	flags.StringVar(&p.certs, "certs", "", "`directory` of PEM files, each a certificate chain and its key")
	flags.StringVar(&p.cache, "cache", "", "`directory` that keeps OCSP responses over restarts")
	flags.Func("backend", "`host=URL`: where requests for a host, or for *.parent, go; may be repeated", p.addBackend)
	flags.DurationVar(&p.poll, "poll", 2*time.Second, "time between two looks at the directory")
	flags.DurationVar(&p.wait, "wait", 10*time.Second, "how long a new certificate waits for its first staple")
	addr := flags.String("addr", "127.0.0.1:0", "`host:port` to listen on")
	adminAddr := flags.String("admin", "127.0.0.1:0", "`host:port` of the status listing, and of a page about the staples at /staples/, for this machine's eyes alone")
	once := flags.Bool("once", false, "without -certs: exit after one request, 0 if it was stapled, 1 if not")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case p.poll <= 0:
		return errors.New("-poll must be positive")
	case p.certs != "" && *once:
		return errors.New("-once is for the demonstration, without -certs")
	case p.certs != "" && len(p.backends) == 0:
		return errors.New("no -backend")
	}

	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	defer listener.Close()
	admin, err := net.Listen("tcp", *adminAddr)
	if err != nil {
		return err
	}
	defer admin.Close()
	if p.certs == "" {
		return demonstrate(ctx, &p, listener, admin, *once, stdout)
	}
	return p.serve(ctx, listener, admin)
}

// A proxy is the configuration of one, as the flags have it.
type proxy struct {
	certs, cache string
	backends     map[string]*url.URL // by host name in lower case, or "*.parent"
	poll, wait   time.Duration
	log          *slog.Logger
}

func (p *proxy) addBackend(s string) error {
	host, target, _ := strings.Cut(s, "=")
	u, err := url.Parse(target)
	if err != nil {
		return err
	}
	if host == "" || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return errors.New("want host=http://address or host=https://address")
	}
	p.backends[strings.ToLower(host)] = u
	return nil
}

// serve serves until ctx ends, and then lets the requests that run end, for drain at most. Connections that
// were upgraded, as those of WebSockets are, end with the process.
func (p *proxy) serve(ctx context.Context, listener, admin net.Listener) error {
	stapler := &staple.Stapler{Logger: p.log}
	if p.cache != "" {
		stapler.Cache = staple.DirCache(p.cache)
	}
	defer stapler.Close() // last: until then it may be needed
	certs := &folder{dir: p.certs, wait: p.wait, stapler: stapler, log: p.log, files: make(map[string]*file)}
	if err := certs.scan(time.Now()); err != nil {
		return err
	}
	// Of what the cache has, nothing needs to be waited for. For the rest, connections queue in the
	// listener meanwhile: not beyond the first answer or failure, and not for long if there is neither.
	first, cancel := context.WithTimeout(ctx, p.wait)
	if err := stapler.Wait(first); err != nil {
		p.log.Warn("serving before everything is stapled", "error", err)
	}
	cancel()
	certs.update(time.Now())

	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil // backends are reached directly, whatever the environment says
	defer transport.CloseIdleConnections()
	errorLog := slog.NewLogLogger(p.log.Handler(), slog.LevelWarn)
	server := &http.Server{
		Handler:           p.handler(transport, errorLog),
		TLSConfig:         &tls.Config{GetCertificate: certs.getCertificate},
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          errorLog,
	}
	status := http.NewServeMux()
	status.Handle("/{$}", certs)
	status.Handle("/staples/", &statuspage.Handler{Stapler: stapler, Refresh: true})
	adminServer := &http.Server{Handler: status, ReadHeaderTimeout: 10 * time.Second, ErrorLog: errorLog}
	ended := make(chan error, 2)
	go func() { ended <- server.ServeTLS(listener, "", "") }() // no file names: they would bypass the staple
	go func() { ended <- adminServer.Serve(admin) }()
	p.log.Info("serving", "address", listener.Addr(), "admin", "http://"+admin.Addr().String()+"/")

	watching, stopWatching := context.WithCancel(ctx)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		p.watch(watching, certs)
	}()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	stopWatching()
	const drain = 30 * time.Second
	p.log.Info("shutting down")
	last, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	if e := server.Shutdown(last); e != nil {
		server.Close()
		err = errors.Join(err, fmt.Errorf("requests were cut off: %w", e))
	}
	adminServer.Close()
	select {
	case <-stopped:
	case <-last.Done(): // the file system hangs
	}
	return err
}

// watch puts in service what the directory has, until ctx ends.
func (p *proxy) watch(ctx context.Context, certs *folder) {
	ticker := time.NewTicker(p.poll)
	defer ticker.Stop()
	var trouble error
	for {
		select {
		case now := <-ticker.C:
			was := trouble
			if trouble = certs.scan(now); trouble != nil && was == nil {
				p.log.Error("the directory cannot be read; its certificates stay in service", "error", trouble)
			}
			certs.update(now)
		case <-ctx.Done():
			return
		}
	}
}

// handler passes requests on to the backend of the name in the TLS handshake.
func (p *proxy) handler(transport http.RoundTripper, errorLog *log.Logger) http.Handler {
	reverse := &httputil.ReverseProxy{
		Transport: transport,
		ErrorLog:  errorLog,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(lookup(p.backends, r.In.TLS.ServerName))
			r.Out.Host = r.In.Host // the backend sees the host that the client asked for
			r.SetXForwarded()
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Whoever was let in by one certificate may not ask for another's host. Browsers do that with
		// HTTP/2 if one certificate has both names, and make a connection of its own after a 421.
		host := strings.TrimSuffix((&url.URL{Host: r.Host}).Hostname(), ".")
		if !strings.EqualFold(host, r.TLS.ServerName) || lookup(p.backends, host) == nil {
			http.Error(w, "no such host here", http.StatusMisdirectedRequest)
			return
		}
		reverse.ServeHTTP(w, r)
	})
}

// lookup returns what m has for a host name, or for the wildcard that covers it.
func lookup[V any](m map[string]V, host string) V {
	host = strings.ToLower(host)
	v, ok := m[host]
	if _, parent, found := strings.Cut(host, "."); !ok && found {
		v = m["*."+parent]
	}
	return v
}
