package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"

	"github.com/go-staple/staple"
)

// handshakes returns the rows, the first of which is what the others are compared with. The second is the
// first again.
func handshakes() (all []contender, stop func(), err error) {
	f := newFleet(1, "http://ocsp.example.net")
	static := &tls.Config{Certificates: f.stapled()}
	stapler := &staple.Stapler{Fetcher: staple.FetcherFunc(f.fetch)}
	base := &tls.Config{Certificates: f.certs}
	wrapped := stapler.TLSConfig(base)
	returned := stapler.TLSConfig(&tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return base, nil }})
	if err := stapler.Wait(context.Background()); err != nil {
		return nil, nil, err
	}
	magic, stopMagic, err := newMagic(f, f.certs)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range []struct {
		name   string
		config *tls.Config
	}{
		{"static", static},
		{"static, again", static.Clone()},
		{"staple", wrapped},
		{"staple, by GetConfigForClient", returned},
		{"CertMagic", &tls.Config{GetCertificate: magic.GetCertificate}},
	} {
		all = append(all, contender{c.name, func() error { return handshake(c.config, f.names[0]) }})
	}
	return all, func() { stapler.Close(); stopMagic() }, nil
}

// handshake makes one handshake of TLS 1.3. The client keeps no sessions, so that it is a full one, and leaves
// the chain unverified, so as to take little of the time.
func handshake(config *tls.Config, name string) error {
	c, s := net.Pipe()
	defer c.Close()
	served := make(chan error, 1)
	go func() {
		defer s.Close()
		served <- tls.Server(s, config).Handshake()
	}()
	client := tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err := client.Handshake(); err != nil {
		return err
	}
	if err := <-served; err != nil {
		return err
	}
	if state := client.ConnectionState(); state.Version != tls.VersionTLS13 || state.DidResume || len(state.OCSPResponse) == 0 {
		return errors.New("not a full handshake of TLS 1.3 with a staple")
	}
	return nil
}

func handshakeTable(w io.Writer, _ int) error {
	contenders, stop, err := handshakes()
	if err != nil {
		return err
	}
	defer stop()
	return rateTable(w, contenders)
}
