// Package staplecaddy is a module for Caddy that refuses clients whose certificates are revoked, as a [staple.Checker]
// does. In the Caddyfile, with every option that it has:
//
//	tls {
//		client_auth {
//			mode require_and_verify
//			trust_pool file /etc/caddy/clients.pem
//			verifier staple {
//				fail_open
//				timeout 3s
//				max_response_age 1h
//				leaf_only
//				cache /var/cache/caddy-ocsp
//				responders http://ocsp.internal.example
//			}
//		}
//	}
//
// The README tells how to build Caddy with it, and what to know.
package staplecaddy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddytls"

	"github.com/go-staple/staple"
)

func init() { caddy.RegisterModule(new(Verifier)) }

// A Verifier is the module tls.client_auth.verifier.staple. It asks the OCSP responders about the certificates of clients,
// and refuses one that is revoked or, unless FailOpen is set, about which nobody answers. Caddy has to verify clients
// for that: with a mode of request or require, it refuses all that have a certificate.
//
// A certificate of the TLS feature extension that asks for a staple (Must-Staple, RFC 7633) needs an answer even if
// FailOpen is set. Caddy shows no verifier what a client staples, so that the responder is asked then, too.
type Verifier struct {
	// FailOpen lets a client pass about whom nobody answers.
	FailOpen bool `json:"fail_open,omitempty"`

	// Timeout is how long a handshake waits for answers; 0: 3 seconds.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// MaxResponseAge is how old an answer may be; 0: it counts until its end. A revocation is noticed after half of this
	// time, or half of the validity that the responder gives its answers, four days at most, whichever is less.
	MaxResponseAge caddy.Duration `json:"max_response_age,omitempty"`

	// LeafOnly asks about the client's own certificate, and not about intermediates.
	LeafOnly bool `json:"leaf_only,omitempty"`

	// Cache is the directory that keeps answers over a restart; empty: the folder staple in Caddy's data
	// directory; "off": none.
	Cache string `json:"cache,omitempty"`

	// Responders are asked about every certificate, intermediates included, instead of those that it names.
	Responders []string `json:"responders,omitempty"`

	checker *staple.Checker
	shared  *shared
	log     slog.Handler
}

var (
	_ caddytls.ClientCertificateVerifier = (*Verifier)(nil)
	_ caddyfile.Unmarshaler              = (*Verifier)(nil)
	_ caddy.Provisioner                  = (*Verifier)(nil)
	_ caddy.Validator                    = (*Verifier)(nil)
	_ caddy.CleanerUpper                 = (*Verifier)(nil)
)

// CaddyModule implements [caddy.Module].
func (*Verifier) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "tls.client_auth.verifier.staple", New: func() caddy.Module { return new(Verifier) }}
}

// UnmarshalCaddyfile implements [caddyfile.Unmarshaler]. The package comment has the syntax.
func (v *Verifier) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name of the module
	if d.NextArg() {
		return d.ArgErr()
	}
	for d.NextBlock(0) {
		var err error
		switch option := d.Val(); option {
		case "fail_open":
			v.FailOpen = true
		case "leaf_only":
			v.LeafOnly = true
		case "timeout":
			v.Timeout, err = duration(d)
		case "max_response_age":
			v.MaxResponseAge, err = duration(d)
		case "cache":
			if !d.NextArg() {
				return d.ArgErr()
			}
			v.Cache = d.Val()
		case "responders":
			urls := d.RemainingArgs()
			if len(urls) == 0 {
				return d.ArgErr()
			}
			v.Responders = append(v.Responders, urls...)
		default:
			return d.Errf("verifier staple has no option %q", option)
		}
		if err != nil {
			return err
		}
		if d.NextArg() {
			return d.ArgErr()
		}
	}
	return nil
}

func duration(d *caddyfile.Dispenser) (caddy.Duration, error) {
	option := d.Val()
	if !d.NextArg() {
		return 0, d.ArgErr()
	}
	value, err := caddy.ParseDuration(d.Val())
	if err != nil {
		return 0, d.Errf("%s: %v", option, err)
	}
	return caddy.Duration(value), nil
}

// Provision implements [caddy.Provisioner]. Verifiers that agree in Cache and Responders share what they know, also with
// those of the configuration that is reloaded.
func (v *Verifier) Provision(ctx caddy.Context) error {
	v.log = ctx.Slogger().Handler()
	dir := v.Cache
	if dir == "" {
		dir = filepath.Join(caddy.AppDataDir(), "staple")
	}
	s, err := join(v, sharing{dir, strings.Join(v.Responders, " ")})
	if err != nil {
		return err
	}
	v.shared = s
	v.checker = &staple.Checker{
		Stapler:        &s.stapler,
		FailOpen:       v.FailOpen,
		Timeout:        time.Duration(v.Timeout),
		MaxResponseAge: time.Duration(v.MaxResponseAge),
		LeafOnly:       v.LeafOnly,
	}
	return nil
}

// Validate implements [caddy.Validator].
func (v *Verifier) Validate() error {
	if v.Timeout < 0 {
		return fmt.Errorf("timeout is negative: %v", time.Duration(v.Timeout))
	}
	if v.MaxResponseAge < 0 {
		return fmt.Errorf("max_response_age is negative: %v", time.Duration(v.MaxResponseAge))
	}
	for _, responder := range v.Responders {
		u, err := url.Parse(responder)
		if err != nil {
			return fmt.Errorf("responders: %w", err)
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("responders: %q is not the URL of a responder, such as http://ocsp.example.com", u.Redacted())
		}
	}
	return nil
}

// Cleanup implements [caddy.CleanerUpper].
func (v *Verifier) Cleanup() error {
	if v.shared == nil {
		return nil // Provision failed
	}
	return v.shared.leave(v)
}

// VerifyClientCertificate implements [caddytls.ClientCertificateVerifier].
func (v *Verifier) VerifyClientCertificate(rawCerts [][]byte, verifiedChains [][]*x509.Certificate) error {
	switch {
	case len(rawCerts) == 0:
		return nil // whether one is needed is up to the mode
	case len(verifiedChains) == 0:
		return errors.New("verifier staple: nobody has verified who issued the certificate of the client: client_auth needs " +
			"the mode require_and_verify or verify_if_given")
	}
	return v.checker.VerifyConnection(tls.ConnectionState{
		Version:          tls.VersionTLS12, // in which clients cannot staple, either
		PeerCertificates: verifiedChains[0][:1],
		VerifiedChains:   verifiedChains,
	})
}
