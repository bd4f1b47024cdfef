package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"
)

// A dialer makes handshakes with hosts, of which nothing is believed.
type dialer struct {
	dial       func(ctx context.Context, network, address string) (net.Conn, error)
	timeout    time.Duration // of all of it
	startTLS   string        // a name in protocols; empty: TLS from the first byte
	serverName string        // empty: the host
	tls12      bool
}

// address splits a target, and adds the port where it has none.
func (d *dialer) address(target string) (host, port string, err error) {
	host, port, err = net.SplitHostPort(target)
	if err != nil {
		host, port, err = strings.TrimSuffix(strings.TrimPrefix(target, "["), "]"), "", nil
		if _, notAddr := netip.ParseAddr(host); notAddr != nil && strings.ContainsAny(host, ":[]") {
			return "", "", errors.New("not a host, host:port or [address]:port")
		}
	}
	if port == "" {
		port = "443"
		if d.startTLS != "" {
			port = protocols[d.startTLS].port
		}
	}
	switch {
	case host == "":
		return "", "", errors.New("no host in it: give host or host:port")
	case strings.ContainsFunc(host, func(r rune) bool { return r > 0x7e }):
		return "", "", errors.New("the host's name is not ASCII: give it as in the DNS, where it begins with xn--")
	case strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' }):
		return "", "", errors.New("there is white space in the host's name")
	}
	return host, port, nil
}

// name returns the name that the certificate should have.
func (d *dialer) name(host string) string {
	if d.serverName != "" {
		return d.serverName
	}
	return strings.TrimSuffix(host, ".")
}

// handshake returns what the host showed. failed is not nil where it was not enough to go on with; where the host broke
// off after it had shown its certificate, as one does that wants one of its client, broke is.
func (d *dialer) handshake(ctx context.Context, host, port string) (state tls.ConnectionState, broke, failed error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	stage := "connecting"
	err := d.connect(ctx, net.JoinHostPort(host, port), d.name(host), &stage, &state)
	if err == nil {
		return state, nil, nil
	}
	if ctx.Err() == context.DeadlineExceeded {
		err = fmt.Errorf("%v passed: %w", d.timeout, os.ErrDeadlineExceeded)
	}
	err = fmt.Errorf("%s: %w", stage, err)
	if len(state.PeerCertificates) > 0 {
		return state, err, nil
	}
	return state, nil, d.advised(err)
}

func (d *dialer) connect(ctx context.Context, address, name string, stage *string, state *tls.ConnectionState) error {
	conn, err := d.dial(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if d.startTLS != "" {
		*stage = "STARTTLS (" + d.startTLS + ")"
		if err := upgrade(conn, protocols[d.startTLS]); err != nil {
			return err
		}
	}
	*stage = "TLS handshake"
	config := &tls.Config{
		ServerName:         name,
		MinVersion:         tls.VersionTLS10, // whoever looks at an old server sends it no secrets
		InsecureSkipVerify: true,             // it is judged afterwards, and shown whatever comes of that
		VerifyConnection: func(cs tls.ConnectionState) error {
			*state = cs
			return nil
		},
	}
	for _, suite := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		config.CipherSuites = append(config.CipherSuites, suite.ID)
	}
	if d.tls12 {
		config.MaxVersion = tls.VersionTLS12
	}
	c := tls.Client(conn, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	_ = c.Close() // says goodbye
	return nil
}

// advised adds to an error what to do.
func (d *dialer) advised(err error) error {
	advice := ""
	_, notTLS := errors.AsType[tls.RecordHeaderError](err)
	dns, noName := errors.AsType[*net.DNSError](err)
	alert, alerted := errors.AsType[tls.AlertError](err)
	switch {
	case noName && dns.IsNotFound:
		advice = "check the name"
	case noName:
		advice = "check the name and this machine's DNS"
	case errors.Is(err, syscall.ECONNREFUSED):
		advice = "nobody listens there: check the port"
	case errors.Is(err, os.ErrDeadlineExceeded):
		advice = "check name and port, and what is between, or raise -timeout"
	case notTLS && d.startTLS == "":
		advice = "it does not speak TLS there, or not at once: check the port; -starttls is for protocols that begin in the clear"
	case notTLS:
		advice = "what came after STARTTLS is no TLS: look at the server's log"
	case alerted && alert == 112: // unrecognized_name
		advice = "it knows no such name: give one that it knows with -servername"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrClosedPipe), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		advice = "it closed the connection: check the port, and whether it wants a name (-servername) or a STARTTLS"
	default:
		if _, ok := errors.AsType[*net.OpError](err); !ok {
			return err
		}
		advice = "check name and port, and look at the server's log"
	}
	return fmt.Errorf("%w: %s", err, advice)
}
