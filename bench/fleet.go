package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync/atomic"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
)

// A fleet is certificates of one authority and with one key, each with a random name, and a response about
// each.
type fleet struct {
	issuer  *x509.Certificate
	names   []string
	certs   []tls.Certificate
	staples map[string][]byte // by name
}

// newFleet returns n certificates that name the responder.
func newFleet(n int, responder string) *fleet {
	random := rand.New(rand.NewPCG(1, 2))
	ca := stapletest.NewCA(stapletest.CAOptions{})
	key := ca.Leaf(stapletest.LeafOptions{}).PrivateKey.(crypto.Signer)
	f := &fleet{issuer: ca.Issuer, names: make([]string, n), certs: make([]tls.Certificate, n), staples: make(map[string][]byte, n)}
	staples := make([][]byte, n)
	for i := range n {
		f.names[i] = fmt.Sprintf("host-%012x.example.net", random.Uint64()>>16)
	}
	_ = parallel(runtime.GOMAXPROCS(0), n, func(i int) error {
		f.certs[i] = ca.Leaf(stapletest.LeafOptions{Names: f.names[i : i+1], Key: key, Responders: []string{responder}})
		staples[i] = stapletest.NewResponse(ca, f.certs[i].Leaf).DER()
		return nil
	})
	for i, name := range f.names {
		f.staples[name] = staples[i]
	}
	return f
}

// parallel calls f with 0 to n-1 in so many goroutines, each of which ends at an error of its own.
func parallel(goroutines, n int, f func(i int) error) error {
	var next atomic.Int64
	ended := make(chan error, goroutines)
	for range goroutines {
		go func() {
			var err error
			for i := int(next.Add(1)) - 1; i < n && err == nil; i = int(next.Add(1)) - 1 {
				err = f(i)
			}
			ended <- err
		}()
	}
	var errs error
	for range goroutines {
		errs = errors.Join(errs, <-ended)
	}
	return errs
}

func addAll(stapler *staple.Stapler, certs []tls.Certificate) error {
	for _, cert := range certs {
		if _, err := stapler.Add(cert); err != nil {
			return err
		}
	}
	return nil
}

// fetch answers at once what the responder would.
func (f *fleet) fetch(_ context.Context, req *staple.Request) ([]byte, error) {
	return f.staples[req.Leaf.DNSNames[0]], nil
}

// check returns an error unless get returns the right certificate for each hello, with the response about it.
func (f *fleet) check(get getCertificate, hellos []tls.ClientHelloInfo) error {
	for i := range hellos {
		name := hellos[i].ServerName
		cert, err := get(&hellos[i])
		switch {
		case err != nil:
			return err
		case cert == nil || cert.Leaf.DNSNames[0] != name:
			return fmt.Errorf("not the certificate for %s", name)
		case !bytes.Equal(cert.OCSPStaple, f.staples[name]):
			return fmt.Errorf("the certificate for %s is not stapled", name)
		}
	}
	return nil
}

// hellosFor returns hello with each of the names.
func hellosFor(names []string, hello tls.ClientHelloInfo) []tls.ClientHelloInfo {
	hellos := make([]tls.ClientHelloInfo, len(names))
	for i, name := range names {
		hellos[i] = hello
		hellos[i].ServerName = strings.Clone(name) // nearby, like one that has just been read
	}
	return hellos
}

type getCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// captureHello returns what a server makes of the hello of crypto/tls's client, which prefers TLS 1.3.
func captureHello() (hello tls.ClientHelloInfo, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return hello, err
	}
	defer listener.Close()
	go func() {
		if conn, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{ServerName: "host.example.net"}); err == nil {
			conn.Close()
		}
	}()
	conn, err := listener.Accept()
	if err != nil {
		return hello, err
	}
	defer conn.Close()
	enough := errors.New("that will do")
	err = tls.Server(conn, &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		hello = *h
		return nil, enough
	}}).Handshake()
	if !errors.Is(err, enough) {
		return hello, fmt.Errorf("no ClientHello: %w", err)
	}
	return hello, nil
}

// newMagic returns a CertMagic with certs. Its storage has their responses, as after a restart, or if f is nil
// none, so that it asks the responder. The logger is the default one, but that it writes to nowhere.
func newMagic(f *fleet, certs []tls.Certificate) (config *certmagic.Config, stop func(), err error) {
	logger := zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(io.Discard), zap.InfoLevel))
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return config, nil },
		Logger:           logger,
	})
	config = certmagic.New(cache, certmagic.Config{Storage: magicStorage{fleet: f}, Logger: logger})
	for _, cert := range certs {
		if _, err := config.CacheUnmanagedTLSCertificate(context.Background(), cert, nil); err != nil {
			cache.Stop()
			return nil, nil, err
		}
	}
	return config, cache.Stop, nil
}

// magicStorage is as much of a [certmagic.Storage] as stapling needs.
type magicStorage struct {
	certmagic.Storage // nil
	fleet             *fleet
}

func (s magicStorage) Load(_ context.Context, key string) ([]byte, error) {
	if s.fleet == nil {
		return nil, fs.ErrNotExist
	}
	name := strings.TrimPrefix(key, "ocsp/")
	name = name[:strings.LastIndexByte(name, '-')] // what follows is a hash
	return bytes.Clone(s.fleet.staples[name]), nil
}

func (magicStorage) Store(context.Context, string, []byte) error { return nil }
