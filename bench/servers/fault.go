package main

import (
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
)

const day = 24 * time.Hour

// A fault is a row of the table.
type fault struct {
	name       string
	mustStaple bool
	hopeless   bool                 // no server can do what staple promises
	begin      func(t *trial) error // returns when the server has just started or, if it is stapled, when the fault is there
}

const (
	latency = 10 * time.Millisecond // of the responder
	hang    = 10 * time.Second      // Apache's SSLStaplingResponderTimeout, and what staple gives a request
)

var faults = []fault{
	{"quiet", false, false, (*trial).start},
	{"quiet, Must-Staple", true, false, (*trial).start},
	{"responder hangs 10 s, then fails", false, false, hanging},
	{"responder hangs 10 s, Must-Staple", true, true, hanging},
	{"responder down at start", false, false, func(t *trial) error {
		t.responderDown()
		return t.start()
	}},
	{"responder down, stapled before", false, false, func(t *trial) error {
		err := t.startStapled()
		t.responderDown()
		return err
	}},
	{"outage longer than the staple lasts", false, false, outlasting},
	{"restart in an outage", false, false, restarted},
	{"restart in an outage, Must-Staple", true, false, restarted},
	{"answer: tryLater", false, false, answering(func(*trial) stapletest.Answer {
		return stapletest.Answer{Error: ocsp.TryLater}
	})},
	{"answer: garbage", false, false, answering(func(*trial) stapletest.Answer {
		return stapletest.Answer{Body: []byte("no OCSP response"), Header: http.Header{"Content-Type": {"application/ocsp-response"}}}
	})},
	{"answer: expired", false, false, answering(func(*trial) stapletest.Answer {
		return stapletest.Answer{Age: 8 * day, Validity: 7 * day}
	})},
	{"answer: for the wrong certificate", false, false, answering(func(t *trial) stapletest.Answer {
		return stapletest.Answer{Replay: stapletest.NewResponse(t.ca, t.ca.Leaf(stapletest.LeafOptions{}).Leaf).DER()}
	})},
	{"answer: forged by a sibling leaf", false, false, answering(func(t *trial) stapletest.Answer {
		sibling := t.ca.Leaf(stapletest.LeafOptions{})
		return stapletest.Answer{Signer: &stapletest.Signer{Certificate: sibling.Leaf, Key: sibling.PrivateKey.(crypto.Signer)}}
	})},
	{"answer: revoked", false, false, answering(func(*trial) stapletest.Answer {
		return stapletest.Answer{Status: ocsp.Revoked}
	})},
}

var hanging = answering(func(*trial) stapletest.Answer {
	return stapletest.Answer{Delay: hang, HTTPStatus: http.StatusGatewayTimeout, Body: []byte("timeout\n")}
})

// answering begins a fault in which the responder has a bad answer from the start on.
func answering(answer func(t *trial) stapletest.Answer) func(t *trial) error {
	return func(t *trial) error {
		t.responder.Set(t.leaf, answer(t))
		return t.start()
	}
}

func restarted(t *trial) error {
	if err := t.startStapled(); err != nil {
		return err
	}
	t.responderDown()
	t.stop()
	return t.start()
}

// outlasting waits until the server has no reason to staple any response that the responder ever gave.
func outlasting(t *trial) error {
	const validity = 10 * time.Second // enough to start and be stapled
	t.responder.Set(t.leaf, stapletest.Answer{Validity: validity + t.server.early})
	if err := t.startStapled(); err != nil {
		return err
	}
	t.responderDown()
	return sleep(t.ctx, validity+2*time.Second)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// A trial is one server and its certificate, with a responder for that alone.
type trial struct {
	ctx           context.Context
	server        server
	dir, address  string
	ca            *stapletest.CA
	leaf          *x509.Certificate
	responder     *stapletest.Responder
	responderDown func()
	stop          func() // the server; nil: it has not been started
}

func newTrial(ctx context.Context, s server, ca *stapletest.CA, dir string, mustStaple bool) (*trial, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	dir, err = os.MkdirTemp(dir, "")
	if err != nil {
		return nil, err
	}
	responder := stapletest.NewResponder(ca)
	listener := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(latency)
		responder.ServeHTTP(w, r)
	}))
	t := &trial{ctx: ctx, server: s, dir: dir, address: l.Addr().String(), ca: ca, responder: responder}
	t.responderDown = func() {
		listener.CloseClientConnections()
		listener.Close()
	}
	cert := ca.Leaf(stapletest.LeafOptions{Responders: []string{listener.URL}, MustStaple: mustStaple})
	t.leaf = cert.Leaf
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err := errors.Join(
		err,
		os.Chmod(dir, 0o755),
		t.write("fullchain.pem", "CERTIFICATE", cert.Certificate...),
		t.write("ca.pem", "CERTIFICATE", ca.Issuer.Raw, ca.Root.Raw),
		t.write("key.pem", "PRIVATE KEY", key),
	); err != nil {
		t.responderDown()
		return nil, err
	}
	return t, nil
}

func (t *trial) write(name, blockType string, ders ...[]byte) error {
	var all []byte
	for _, der := range ders {
		all = append(all, pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der})...)
	}
	return os.WriteFile(filepath.Join(t.dir, name), all, 0o600)
}

func (t *trial) close() {
	if t.stop != nil {
		t.stop()
	}
	t.responderDown()
}

func (t *trial) start() error {
	stop, err := t.server.start(t.ctx, t.dir, t.address)
	t.stop = stop
	return err
}

// startStapled starts the server and returns when it has a good staple.
func (t *trial) startStapled() error {
	if err := t.start(); err != nil {
		return err
	}
	for range 200 {
		if o, err := t.handshake(); err != nil || o.word == "good" {
			return err
		}
		if err := sleep(t.ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return errors.New("no good staple although the responder answers")
}

// An observation is what a client got in one handshake.
type observation struct {
	word    string        // for the staple
	refused bool          // by ResponseVerifier
	took    time.Duration // until the client's handshake was complete, its connection included
}

// handshake makes a full handshake, which fails only if a client that does not look at staples fails.
func (t *trial) handshake() (observation, error) {
	ctx, cancel := context.WithTimeout(t.ctx, time.Minute)
	defer cancel()
	dialer := &tls.Dialer{Config: &tls.Config{RootCAs: t.ca.Roots()}}
	began := time.Now()
	conn, err := dialer.DialContext(ctx, "tcp", t.address)
	took := time.Since(began)
	if err != nil {
		return observation{}, err
	}
	defer conn.Close()
	cs := conn.(*tls.Conn).ConnectionState()
	return observation{
		word:    word(cs.OCSPResponse, t.leaf, t.ca.Issuer),
		refused: new(staple.ResponseVerifier).VerifyConnection(cs) != nil,
		took:    took,
	}, nil
}

// handshakes makes one handshake after each pause.
func (t *trial) handshakes(pauses ...time.Duration) ([]observation, error) {
	var seen []observation
	for _, pause := range pauses {
		if err := sleep(t.ctx, pause); err != nil {
			return nil, err
		}
		o, err := t.handshake()
		if err != nil {
			return nil, err
		}
		seen = append(seen, o)
	}
	return seen, nil
}

// try puts a server through a fault, and makes a handshake after each pause.
func (f fault) try(ctx context.Context, s server, ca *stapletest.CA, dir string, pauses ...time.Duration) ([]observation, error) {
	t, err := newTrial(ctx, s, ca, dir, f.mustStaple)
	if err != nil {
		return nil, err
	}
	defer t.close()
	if err := f.begin(t); err != nil {
		return nil, fmt.Errorf("%s: %w", f.name, err)
	}
	seen, err := t.handshakes(pauses...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.name, err)
	}
	return seen, nil
}

// quietMedian returns how long a handshake takes once the server is stapled and nothing is wrong.
func quietMedian(ctx context.Context, s server, ca *stapletest.CA, dir string, n int) (time.Duration, error) {
	seen, err := fault{"quiet, median", false, false, (*trial).startStapled}.try(ctx, s, ca, dir, make([]time.Duration, n)...)
	if err != nil {
		return 0, err
	}
	slices.SortFunc(seen, func(a, b observation) int { return cmp.Compare(a.took, b.took) })
	return seen[n/2].took, nil
}

// word says what a staple is, in the eyes of a [staple.ResponseVerifier].
func word(response []byte, leaf, issuer *x509.Certificate) string {
	if len(response) == 0 {
		return "none"
	}
	r, _, err := new(staple.ResponseVerifier).Verify(response, leaf, issuer, time.Now())
	if err == nil {
		return map[int]string{ocsp.Good: "good", ocsp.Revoked: "revoked", ocsp.Unknown: "unknown"}[r.Status]
	}
	if status, ok := errors.AsType[ocsp.ResponseError](err); ok {
		return map[ocsp.ResponseStatus]string{
			ocsp.Malformed:         "malformedRequest",
			ocsp.InternalError:     "internalError",
			ocsp.TryLater:          "tryLater",
			ocsp.SignatureRequired: "sigRequired",
			ocsp.Unauthorized:      "unauthorized",
		}[status.Status] + " response"
	}
	refused, _ := errors.AsType[*staple.VerifyError](err)
	switch refused.Reason {
	case staple.ReasonMalformed:
		return "garbage"
	case staple.ReasonBadSignature, staple.ReasonUnauthorizedSigner:
		return "forged"
	default: // expired, wrong certificate and what no fault here leads to
		return refused.Reason.String()
	}
}
