package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/bench/internal/table"
	"github.com/go-staple/staple/stapletest"
)

// A flight is one row of the trim table: what a responder embeds, and servers that staple it as it came and trimmed.
type flight struct {
	name          string
	came, trimmed []byte
	servers       [2]*tls.Config // the same two
}

// flights returns the rows: a CA with RSA-2048 and one intermediate, as EJBCA embeds its chain by default.
func flights() ([]flight, error) {
	ca := stapletest.NewCA(stapletest.CAOptions{KeyType: stapletest.RSA2048, Intermediate: true})
	delegate := ca.Delegate(stapletest.DelegateOptions{KeyType: stapletest.RSA2048})
	cert := ca.Leaf(stapletest.LeafOptions{Names: []string{"www.example.com"}, KeyType: stapletest.RSA2048})
	var all []flight
	for _, f := range []struct {
		name   string
		signer *stapletest.Signer
		certs  []*x509.Certificate
	}{
		{"the issuer signs, its chain is embedded", ca.Signer(), []*x509.Certificate{ca.Issuer, ca.Root}},
		{"a delegate signs, its chain is embedded", delegate, []*x509.Certificate{delegate.Certificate, ca.Issuer, ca.Root}},
		{"a delegate signs, nothing else is embedded", delegate, []*x509.Certificate{delegate.Certificate}},
	} {
		r := stapletest.NewResponse(ca, cert.Leaf)
		r.Signer, r.Certificates = f.signer, f.certs
		one := flight{name: f.name, came: r.DER()}
		result, _, err := new(staple.ResponseVerifier).Verify(one.came, cert.Leaf, ca.Issuer, time.Now())
		if err != nil {
			return nil, err
		}
		one.trimmed = result.Raw
		for i, der := range [][]byte{one.came, one.trimmed} {
			c := cert
			c.OCSPStaple = der
			one.servers[i] = &tls.Config{Certificates: []tls.Certificate{c}, SessionTicketsDisabled: true}
		}
		all = append(all, one)
	}
	return all, nil
}

// written counts what goes into a connection.
type written struct {
	net.Conn
	n int
}

func (w *written) Write(b []byte) (int, error) {
	w.n += len(b)
	return w.Conn.Write(b)
}

// flightBytes returns how long the ServerHello flight of a server without session tickets is: all that it sends.
func flightBytes(config *tls.Config) (int, error) {
	c, s := net.Pipe()
	defer c.Close()
	counted := &written{Conn: s}
	served := make(chan error, 1)
	go func() {
		defer s.Close()
		served <- tls.Server(counted, config).Handshake()
	}()
	client := tls.Client(c, &tls.Config{ServerName: "www.example.com", InsecureSkipVerify: true})
	err := client.Handshake()
	return counted.n, errors.Join(err, <-served)
}

func trimTable(w io.Writer, _ int) error {
	all, err := flights()
	if err != nil {
		return err
	}
	rows := [][]string{{"response", "staple as it came", "trimmed", "ServerHello flight", "trimmed", "handshakes/s", "trimmed"}}
	for _, f := range all {
		var contenders []contender
		var flight [2]int
		for i, config := range f.servers {
			if flight[i], err = flightBytes(config); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			contenders = append(contenders, contender{f.name, func() error { return handshake(config, "www.example.com") }})
		}
		results, err := measure(rounds, contenders)
		if err != nil {
			return err
		}
		bytes := func(n int) string { return thousands(n) + " bytes" }
		row := []string{f.name, bytes(len(f.came)), bytes(len(f.trimmed)), bytes(flight[0]), bytes(flight[1])}
		for _, r := range results {
			row = append(row, fmt.Sprintf("%.0f", 1e9/nsPerCall(r)))
		}
		rows = append(rows, row)
	}
	table.Print(w, rows)
	return nil
}
