package differential

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A party is one side of a connection: a configuration and what its callbacks were asked.
type party struct {
	config   *tls.Config
	direct   *tls.Config     // whose callbacks are called by hand
	keys     [][32]byte      // for session tickets, where they are given
	rekey    []func()        // takes those
	fixed    *tls.Config     // what GetConfigForClient returns, if that is always the same
	variable tls.Certificate // what GetCertificate returns the address of
	calls    []string
}

func (p *party) noteHello(callback string, h *tls.ClientHelloInfo) {
	p.calls = append(p.calls, fmt.Sprintf("%s(%q %x %x %v %v %v %q %v %v)", callback, h.ServerName, h.SupportedVersions,
		h.CipherSuites, h.SupportedCurves, h.SupportedPoints, h.SignatureSchemes, h.SupportedProtos, h.Extensions, h.HelloRetryRequest))
}

func (p *party) notePeer(raw [][]byte, chains [][]*x509.Certificate) error {
	p.calls = append(p.calls, fmt.Sprintf("VerifyPeerCertificate(%x, %d chains)", sha256.Sum256(bytes.Join(raw, nil)), len(chains)))
	return nil
}

func (p *party) takeCalls() string {
	calls := strings.Join(p.calls, "\n")
	p.calls = nil
	return calls
}

func (p *party) setKeys(keys ...[32]byte) {
	p.keys = keys
	for _, take := range p.rekey {
		take()
	}
}

// A setting is a part of a configuration.
type setting func(*party, *tls.Config)

// choice draws what a server has for choosing a certificate: Certificates,
// GetCertificate and NameToCertificate.
func (d *draw) choice(b *batch, names *[]string) setting {
	var n int
	switch d.pick("Certificates", "8 none", "8 1", "18 2 to 4", "14 5 to 12", "1 an empty one") {
	case "1":
		n = 1
	case "2 to 4":
		n = 2 + d.IntN(3)
	case "5 to 12":
		n = 5 + d.IntN(8)
	case "an empty one":
		return func(_ *party, c *tls.Config) { c.Certificates = make([]tls.Certificate, 1) }
	}
	certs := d.certificates(b, n, names)
	var callback func(*party) func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	if n == 0 && d.IntN(8) > 0 || d.IntN(4) == 0 {
		d.note("GetCertificate")
		callback = d.getCertificate(b, names)
	}
	byName := d.pick("NameToCertificate", "8 none", "1 some names", "1 built")
	entries := make(map[string]int)
	more := d.certificates(b, 2, names)
	if byName == "some names" && n > 0 {
		for range 6 {
			entries[strings.ToLower(d.name(*names))] = d.IntN(n + 2)
		}
	}
	shared := d.chance(2, "an array of Certificates that is shared")
	return func(p *party, c *tls.Config) {
		if c.Certificates = certs; !shared {
			c.Certificates = slices.Clone(certs)
		}
		if callback != nil {
			c.GetCertificate = callback(p)
		}
		switch byName {
		case "built":
			//lint:ignore SA1019 it is still heeded
			c.BuildNameToCertificate()
		case "some names":
			m := make(map[string]*tls.Certificate)
			for name, i := range entries {
				if m[name] = &more[max(0, i-n)]; i < n {
					m[name] = &c.Certificates[i]
				}
			}
			//lint:ignore SA1019 it is still heeded
			c.NameToCertificate = m
		}
	}
}

// forName returns one of answers for a name, always the same.
func forName[T any](name string, answers []T) T {
	sum := len(name)
	for _, c := range []byte(name) {
		sum = sum*31 + int(c)
	}
	return answers[uint(sum)%uint(len(answers))]
}

var errDrawn = errors.New("drawn by chance")

func (d *draw) getCertificate(b *batch, names *[]string) func(*party) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	certs := d.certificates(b, 4, names)
	var answers []func(*party, *tls.ClientHelloInfo) (*tls.Certificate, error)
	for range 1 + d.IntN(4) {
		mine := &certs[d.IntN(len(certs))]
		switch d.pick("GetCertificate", "10 a certificate", "5 a copy", "5 a variable", "10 nil", "1 an error", "1 both", "1 an empty certificate", "7 what suits") {
		case "a certificate":
			answers = append(answers, func(*party, *tls.ClientHelloInfo) (*tls.Certificate, error) { return mine, nil })
		case "a copy":
			answers = append(answers, func(*party, *tls.ClientHelloInfo) (*tls.Certificate, error) { c := *mine; return &c, nil })
		case "a variable":
			answers = append(answers, func(p *party, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
				p.variable = certs[len(hello.CipherSuites)%len(certs)]
				return &p.variable, nil
			})
		case "nil":
			answers = append(answers, func(*party, *tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil })
		case "an error":
			answers = append(answers, func(*party, *tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errDrawn })
		case "both":
			answers = append(answers, func(*party, *tls.ClientHelloInfo) (*tls.Certificate, error) { return mine, errDrawn })
		case "an empty certificate":
			answers = append(answers, func(*party, *tls.ClientHelloInfo) (*tls.Certificate, error) { return new(tls.Certificate), nil })
		case "what suits":
			answers = append(answers, func(_ *party, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
				for i := range certs {
					if hello.SupportsCertificate(&certs[i]) == nil {
						return &certs[i], nil
					}
				}
				return nil, nil
			})
		}
	}
	return func(p *party) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			p.noteHello("GetCertificate", hello)
			return forName(hello.ServerName, answers)(p, hello)
		}
	}
}

var (
	allSuites = func() (ids []uint16) {
		for _, s := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
			ids = append(ids, s.ID)
		}
		return ids
	}()
	withoutECDHE = []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_128_CBC_SHA}
	withECDSA    = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
	withRSA      = []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA}
)

// parameters draws what servers and clients have in common.
func (d *draw) parameters(who string, quic bool) setting {
	var least, most uint16
	if quic {
		switch d.pick(who+", versions for QUIC", "16 1.3", "1 default", "1 upside down") {
		case "1.3":
			least = tls.VersionTLS13
		case "upside down":
			least, most = tls.VersionTLS13, tls.VersionTLS12
		}
	} else {
		switch d.pick(who+", versions", "20 default", "12 1.0 on", "8 1.2", "1 1.3", "2 1.1 at most", "1 upside down") {
		case "1.0 on":
			least = tls.VersionTLS10
		case "1.2":
			least, most = tls.VersionTLS12, tls.VersionTLS12
		case "1.3":
			least = tls.VersionTLS13
		case "1.1 at most":
			least, most = tls.VersionTLS10, one(d, []uint16{tls.VersionTLS10, tls.VersionTLS11})
		case "upside down":
			least, most = tls.VersionTLS13, tls.VersionTLS12
		}
	}
	var suites []uint16
	switch d.pick(who+", CipherSuites", "20 default", "5 any", "2 without ECDHE", "1 with ECDSA", "1 with RSA") {
	case "any":
		suites = some(d, allSuites)
	case "without ECDHE":
		suites = withoutECDHE
	case "with ECDSA":
		suites = withECDSA
	case "with RSA":
		suites = withRSA
	}
	curves := map[string][]tls.CurveID{
		"P-256 on": {tls.CurveP256, tls.CurveP384, tls.CurveP521}, "P-384 and P-521": {tls.CurveP384, tls.CurveP521},
		"X25519": {tls.X25519}, "X25519 and P-256": {tls.X25519, tls.CurveP256},
		"all but ML-KEM": {tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}, "ML-KEM": {tls.X25519MLKEM768, tls.X25519, tls.CurveP256},
	}[d.pick(who+", CurvePreferences", "16 P-256 on", "4 all but ML-KEM", "1 X25519", "4 X25519 and P-256", "1 P-384 and P-521", "1 default", "1 ML-KEM")]
	protocols := d.pick(who+", NextProtos", "8 none", "6 h2 http/1.1", "2 http/1.1", "1 acme-tls/1")
	if quic {
		protocols = d.pick(who+", NextProtos for QUIC", "12 h3", "4 h3 h3-29", "4 h3-29 h3", "1 h2", "1 none")
	}
	disabled := d.chance(12, who+", SessionTicketsDisabled")
	return func(p *party, c *tls.Config) {
		c.MinVersion, c.MaxVersion, c.CipherSuites, c.CurvePreferences = least, most, suites, curves
		c.NextProtos, c.SessionTicketsDisabled = strings.Fields(strings.TrimPrefix(protocols, "none")), disabled
		c.Time = func() time.Time { return diffNow }
		c.VerifyPeerCertificate = p.notePeer
	}
}

// clientAuth draws what a server asks clients for.
func (d *draw) clientAuth() setting {
	auth := map[string]tls.ClientAuthType{
		"request": tls.RequestClientCert, "require": tls.RequireAnyClientCert, "verify": tls.VerifyClientCertIfGiven, "require and verify": tls.RequireAndVerifyClientCert,
	}[d.pick("ClientAuth", "8 none", "2 request", "1 require", "2 verify", "1 require and verify")]
	authorities := x509.NewCertPool()
	switch d.pick("ClientCAs", "1 none", "3 ours", "1 the other", "3 both") {
	case "ours":
		authorities.AddCert(diffCAs()[0].Root)
		authorities.AddCert(diffCAs()[0].Issuer)
	case "the other":
		authorities.AddCert(diffCAs()[1].Root)
	case "both":
		authorities.AddCert(diffCAs()[0].Root)
		authorities.AddCert(diffCAs()[1].Root)
	}
	return func(_ *party, c *tls.Config) { c.ClientAuth, c.ClientCAs = auth, authorities }
}

func apply(p *party, settings ...setting) *tls.Config {
	c := new(tls.Config)
	for _, set := range settings {
		set(p, c)
	}
	return c
}

func (d *draw) ticketKey() (key [32]byte) {
	for i := range key {
		key[i] = byte(d.Uint32())
	}
	return key
}

// getConfigForClient draws the callback. What it returns may have session ticket keys of its own.
func (d *draw) getConfigForClient(b *batch, quic bool, names *[]string) setting {
	settings := []setting{d.parameters("server", quic), d.clientAuth(), d.choice(b, names)}
	ownKeys := d.chance(2, "GetConfigForClient, session ticket keys of its own")
	setKeys := func(p *party, c *tls.Config) {
		own := slices.Clone(p.keys)
		for i := range own {
			own[i][0]++
		}
		c.SetSessionTicketKeys(own)
	}
	if ownKeys {
		settings = append(settings, setKeys)
	}
	var answers []func(*party, *tls.Config) (*tls.Config, error)
	for range 1 + d.IntN(3) {
		switch d.pick("GetConfigForClient", "4 nil", "1 an error", "8 always the same", "8 a new one", "4 a clone of base") {
		case "nil":
			answers = append(answers, func(*party, *tls.Config) (*tls.Config, error) { return nil, nil })
		case "an error":
			answers = append(answers, func(*party, *tls.Config) (*tls.Config, error) { return nil, errDrawn })
		case "always the same":
			answers = append(answers, func(p *party, _ *tls.Config) (*tls.Config, error) { return p.fixed, nil })
		case "a new one":
			answers = append(answers, func(p *party, _ *tls.Config) (*tls.Config, error) { return apply(p, settings...), nil })
		case "a clone of base":
			answers = append(answers, func(_ *party, base *tls.Config) (*tls.Config, error) { return base.Clone(), nil })
		}
	}
	return func(p *party, c *tls.Config) {
		p.fixed = apply(p, settings...)
		if ownKeys {
			p.rekey = append(p.rekey, func() { setKeys(p, p.fixed) })
		}
		c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			p.noteHello("GetConfigForClient", hello)
			return forName(hello.ServerName+"?", answers)(p, c)
		}
	}
}
