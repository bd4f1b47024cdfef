package main

import (
	"crypto/tls"
	"encoding/pem"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
)

// A demo is a certificate with everything that it takes to staple it.
type demo struct {
	cert         tls.Certificate
	client       *tls.Config // trusts the CA, and verifies the staple
	responder    *http.Server
	responderURL string
	caFile       string // the CA's certificate in PEM, in a temporary directory
}

func newDemo() (*demo, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ca := stapletest.NewCA(stapletest.CAOptions{Name: "Example CA"})
	d := &demo{
		responder:    &http.Server{Handler: stapletest.NewResponder(ca)},
		responderURL: "http://" + listener.Addr().String(),
	}
	go d.responder.Serve(listener)
	d.cert = ca.Leaf(stapletest.LeafOptions{Responders: []string{d.responderURL}})
	d.client = &tls.Config{
		RootCAs:          ca.Roots(),
		ServerName:       "localhost",
		VerifyConnection: new(staple.ResponseVerifier).VerifyConnection,
	}
	dir, err := os.MkdirTemp("", "staple-example-")
	if err == nil {
		d.caFile = filepath.Join(dir, "ca.pem")
		err = os.WriteFile(d.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root.Raw}), 0o644)
	}
	if err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *demo) close() {
	d.responder.Close()
	if d.caFile != "" {
		os.RemoveAll(filepath.Dir(d.caFile))
	}
}
