package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/bench/internal/table"
)

const (
	latency     = 20 * time.Millisecond
	concurrency = 64
)

// A responder has its answers signed in advance, and takes its time for each request.
type responder struct {
	latency time.Duration
	answers map[certID][]byte // complete before the first request
}

// A certID is what a request names a certificate by.
type certID struct{ issuerName, issuerKey, serial string }

func (r *responder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	var der []byte
	var err error
	if req.Method == http.MethodPost {
		der, err = io.ReadAll(req.Body)
	} else {
		der, err = base64.StdEncoding.DecodeString(strings.TrimPrefix(req.URL.Path, "/"))
	}
	id, idErr := idOf(der)
	answer := r.answers[id]
	if err != nil || idErr != nil || answer == nil {
		http.Error(w, "no answer to this", http.StatusBadRequest)
		return
	}
	time.Sleep(r.latency)
	w.Header().Set("Content-Type", "application/ocsp-response")
	w.Write(answer)
}

func idOf(request []byte) (certID, error) {
	r, err := ocsp.ParseRequest(request)
	if err != nil {
		return certID{}, err
	}
	return certID{string(r.IssuerNameHash), string(r.IssuerKeyHash), string(r.SerialNumber.Bytes())}, nil
}

// newResponder starts a responder, and returns n certificates that it answers for.
func newResponder(n int, latency time.Duration) (f *fleet, server *httptest.Server, err error) {
	r := &responder{latency, make(map[certID][]byte, n)}
	server = httptest.NewServer(r)
	f = newFleet(n, server.URL)
	for i, name := range f.names {
		request, err := ocsp.CreateRequest(f.certs[i].Leaf, f.issuer, nil)
		if err != nil {
			server.Close()
			return nil, nil, err
		}
		id, err := idOf(request)
		if err != nil {
			server.Close()
			return nil, nil, err
		}
		r.answers[id] = f.staples[name]
	}
	return f, server, nil
}

// get asks the responder about certificate i, and for no more than the bytes.
func (f *fleet) get(client *http.Client, i int) ([]byte, error) {
	leaf := f.certs[i].Leaf
	request, err := ocsp.CreateRequest(leaf, f.issuer, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Get(leaf.OCSPServer[0] + "/" + url.QueryEscape(base64.StdEncoding.EncodeToString(request)))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && !bytes.Equal(body, f.staples[f.names[i]]) {
		err = fmt.Errorf("not the response about %s", f.names[i])
	}
	return body, err
}

// getAll asks about all certificates, with all connections that may be needed, and has each response judged.
func (f *fleet) getAll(judge func(body []byte, i int) error) error {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: concurrency}}
	defer client.CloseIdleConnections()
	return parallel(concurrency, len(f.certs), func(i int) error {
		body, err := f.get(client, i)
		if err != nil {
			return err
		}
		return judge(body, i)
	})
}

// stapleAll has a new Stapler staple all certificates.
func (f *fleet) stapleAll() error {
	stapler := &staple.Stapler{Concurrency: concurrency}
	defer stapler.Close()
	if err := addAll(stapler, f.certs); err != nil {
		return err
	}
	if err := stapler.Wait(context.Background()); err != nil {
		return err
	}
	for c := range stapler.Certificates() {
		if len(c.TLS().OCSPStaple) == 0 {
			return fmt.Errorf("%s is not stapled: %w", c.Status().Leaf.DNSNames[0], c.Status().Err)
		}
	}
	return nil
}

// magicAll has a new CertMagic staple the first n certificates.
func (f *fleet) magicAll(n int) error {
	magic, stop, err := newMagic(nil, f.certs[:n])
	if err != nil {
		return err
	}
	defer stop()
	defer http.DefaultClient.CloseIdleConnections()
	return f.check(magic.GetCertificate, hellosFor(f.names[:n], tls.ClientHelloInfo{}))
}

// firsts returns the rows, the first of which is what the others are compared with. CertMagic, which asks
// about one certificate after the other, gets but some of them.
func (f *fleet) firsts(some int) []contender {
	return []contender{
		{"requests alone", func() error { return f.getAll(func([]byte, int) error { return nil }) }},
		{"requests and ocsp.ParseResponseForCert", func() error {
			return f.getAll(func(body []byte, i int) error {
				_, err := ocsp.ParseResponseForCert(body, f.certs[i].Leaf, f.issuer)
				return err
			})
		}},
		{"staple", f.stapleAll},
		{fmt.Sprintf("CertMagic, scaled from %d", some), func() error { return f.magicAll(some) }},
	}
}

func firstTable(w io.Writer, most int) error {
	n := min(most, 10_000)
	f, server, err := newResponder(n, latency)
	if err != nil {
		return err
	}
	defer server.Close()
	some := min(n, 200)
	contenders := f.firsts(some)
	results, err := measure(3, contenders)
	if err != nil {
		return err
	}
	rows := [][]string{{"", "time to staple " + thousands(n), ""}}
	floor := nsPerCall(results[0])
	for i, r := range results {
		ns := nsPerCall(r)
		if i == len(results)-1 {
			ns *= float64(n) / float64(some)
		}
		row := []string{contenders[i].name, fmt.Sprintf("%.2f s", ns/1e9), ""}
		if i > 0 {
			row[2] = fmt.Sprintf("%.2f×", ns/floor)
		}
		rows = append(rows, row)
	}
	table.Print(w, rows)
	return nil
}
