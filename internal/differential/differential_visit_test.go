package differential

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"

	"github.com/go-staple/staple"
	"golang.org/x/crypto/cryptobyte"
)

// A base is a configuration of a server as it is, and as TLSConfig returns it.
type base struct {
	chosen         []string
	quic           bool
	plain, wrapped *party
	names          []string    // that its certificates have
	keys           [2][32]byte // for session tickets, first and later
	ticketsShared  bool        // plain and wrapped take each other's
	added          []*staple.Certificate
}

// close takes back what only this base has.
func (s *base) close() {
	for _, c := range s.added {
		c.Remove()
	}
}

func newBase(b *batch, d *draw) *base {
	s := new(base)
	s.quic = d.chance(5, "QUIC")
	var settings []setting
	if d.chance(20, "no certificates but those added") {
		certs := d.certificates(b, d.IntN(9), &s.names)
		var left []tls.Certificate
		var removed []*staple.Certificate
		for _, c := range certs {
			handle, err := b.stapler.Add(c)
			switch {
			case err != nil: // it does not parse
			case d.chance(5, "added and removed"):
				removed = append(removed, handle)
			default:
				c.Leaf = nil // Add reads the chain
				left = append(left, c)
				s.added = append(s.added, handle)
			}
		}
		for _, handle := range removed {
			handle.Remove()
		}
		s.plain = &party{}
		settings = append(settings, func(p *party, c *tls.Config) {
			if p == s.plain {
				c.Certificates = left
			}
		})
	} else {
		s.plain = &party{}
		settings = append(settings, d.choice(b, &s.names))
	}
	settings = append(settings, d.parameters("server", s.quic), d.clientAuth())
	switch d.pick("server, ECH keys", "2 none", "1 some", "1 a callback") {
	case "some":
		settings = append(settings, func(_ *party, c *tls.Config) {
			keys := diffECH()
			c.EncryptedClientHelloKeys = keys[:1]
		})
	case "a callback":
		settings = append(settings, func(p *party, c *tls.Config) {
			c.GetEncryptedClientHelloKeys = func(hello *tls.ClientHelloInfo) ([]tls.EncryptedClientHelloKey, error) {
				p.noteHello("GetEncryptedClientHelloKeys", hello)
				keys := diffECH()
				return keys[:1], nil
			}
		})
	}
	s.keys = [2][32]byte{d.ticketKey(), d.ticketKey()}
	keysGiven := false
	switch d.pick("server, session ticket keys", "2 its own", "2 SetSessionTicketKeys", "1 SessionTicketKey", "1 WrapSession") {
	case "SetSessionTicketKeys":
		s.ticketsShared, keysGiven = true, true
		settings = append(settings, func(p *party, c *tls.Config) {
			c.SetSessionTicketKeys(p.keys)
			p.rekey = append(p.rekey, func() { c.SetSessionTicketKeys(p.keys) })
		})
	case "SessionTicketKey":
		s.ticketsShared = true
		settings = append(settings, func(_ *party, c *tls.Config) {
			//lint:ignore SA1019 it is still heeded
			c.SessionTicketKey = s.keys[0]
		})
	case "WrapSession":
		settings = append(settings, func(p *party, c *tls.Config) {
			// By the configuration that serves, since a clone has keys of its own.
			c.WrapSession = func(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
				return p.direct.EncryptTicket(cs, ss)
			}
			c.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
				return p.direct.DecryptTicket(ticket, cs)
			}
		})
	}
	if s.added == nil && d.chance(3, "GetConfigForClient") {
		settings = append(settings, d.getConfigForClient(b, s.quic, &s.names))
	}
	s.wrapped = &party{}
	s.plain.setKeys(s.keys[0])
	s.wrapped.setKeys(s.keys[0])
	s.plain.config = apply(s.plain, settings...)
	s.wrapped.config = b.stapler.TLSConfig(apply(s.wrapped, settings...))
	how := d.pick("wrapped", "4 once", "1 twice", "1 and cloned", "1 and returned by GetConfigForClient")
	switch how {
	case "twice":
		s.wrapped.config = b.stapler.TLSConfig(s.wrapped.config)
	case "and cloned":
		s.wrapped.config = s.wrapped.config.Clone()
	}
	for _, p := range []*party{s.plain, s.wrapped} {
		inner := p.config
		p.direct = inner
		if keysGiven {
			p.rekey = append(p.rekey, func() { inner.SetSessionTicketKeys(p.keys) })
		}
		if how == "and returned by GetConfigForClient" {
			p.config = inner.Clone()
			p.config.Certificates, p.config.GetCertificate = nil, nil
			p.config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return inner, nil }
		}
	}
	s.chosen = d.chosen
	return s
}

// name draws what a client may ask for, often one of those given.
func (d *draw) name(names []string) (name string) {
	how := d.pick("name", "12 of a certificate", "1 below a certificate's", "1 beside a certificate's", "2 any", "1 unknown", "2 none", "1 an address", "2 odd", "1 not in ASCII")
	known := d.hostname()
	if len(names) > 0 {
		known = one(d, names)
	}
	switch how {
	case "of a certificate":
		name = known
		if parent, ok := strings.CutPrefix(name, "*."); ok && d.IntN(6) > 0 {
			name = one(d, labels) + "." + parent
		}
	case "below a certificate's":
		name = one(d, labels) + "." + strings.TrimPrefix(known, "*.")
	case "beside a certificate's":
		_, parent, _ := strings.Cut(known, ".")
		name = one(d, labels) + "." + parent
	case "any":
		name = d.hostname()
	case "unknown":
		name = "unknown.example"
	case "an address":
		name = one(d, slices.Concat(addresses, spellings))
	case "odd":
		name = one(d, odd)
	case "not in ASCII":
		name = one(d, unencodable)
	}
	if d.chance(6, "a name in mixed case") {
		name = d.flipCase(name)
	}
	if d.chance(12, "a name with a dot at its end") {
		name += "."
	}
	d.chosen = append(d.chosen, fmt.Sprintf("%q", name))
	return name
}

// A visit is what a client does.
type visit struct {
	chosen        []string
	first, second func(*party) *tls.Config // second: nil if it connects once
	wrapped       bool                     // its configuration goes through TLSConfig where the server's does
	fromPlain     bool                     // it has its ticket from the server as it is
	rotate        string                   // what becomes of the session ticket keys in between, where they are given
	early, events bool                     // of QUIC
}

// meetings has a client connect once or twice to servers, which are one and the same or differ between the connections.
func (v *visit) meetings(b *batch, s *base, wrapped bool) (all []meeting) {
	servers := [2]*party{s.plain, s.plain}
	if wrapped {
		servers = [2]*party{s.wrapped, s.wrapped}
		if v.fromPlain {
			servers[0] = s.plain
		}
	}
	s.plain.setKeys(s.keys[0])
	s.wrapped.setKeys(s.keys[0])
	cache := new(lastSession)
	for i, build := range []func(*party) *tls.Config{v.first, v.second} {
		if build == nil {
			break
		}
		if i == 1 {
			switch v.rotate {
			case "are replaced":
				servers[i].setKeys(s.keys[1])
			case "are rotated":
				servers[i].setKeys(s.keys[1], s.keys[0])
			}
		}
		client := new(party)
		client.config = build(client)
		client.config.ClientSessionCache = cache
		if wrapped && v.wrapped {
			client.config = b.stapler.TLSConfig(client.config)
		}
		if s.quic {
			all = append(all, meetByQUIC(client, servers[i], client.config, v))
		} else {
			all = append(all, meet(client, servers[i], client.config))
		}
	}
	return all
}

func newVisit(b *batch, s *base, d *draw) *visit {
	v := new(visit)
	settings := []setting{d.parameters("client", s.quic)}
	serverName := func(name string) setting { return func(_ *party, c *tls.Config) { c.ServerName = name } }
	settings = append(settings, serverName(d.name(s.names)))
	if !d.chance(20, "the client verifies") {
		settings = append(settings, func(_ *party, c *tls.Config) { c.InsecureSkipVerify = true })
	}
	roots := diffCAs()[0].Roots()
	var names []string
	certs := d.certificates(b, 3, &names)
	ech := d.pick("client, ECH", "12 none", "2 right", "1 a wrong key")
	settings = append(settings, func(_ *party, c *tls.Config) {
		c.RootCAs = roots
		if ech != "none" {
			keys := diffECH()
			config := keys[0].Config
			if ech == "a wrong key" {
				config = keys[1].Config
			}
			var list cryptobyte.Builder
			list.AddUint16LengthPrefixed(func(list *cryptobyte.Builder) { list.AddBytes(config) })
			c.EncryptedClientHelloConfigList = list.BytesOrPanic()
			c.MinVersion, c.MaxVersion = max(c.MinVersion, tls.VersionTLS13), 0
		}
	})
	switch d.pick("client, certificates", "2 none", "1 1", "1 2", "1 3", "1 GetClientCertificate") {
	case "1":
		settings = append(settings, func(_ *party, c *tls.Config) { c.Certificates = certs[:1] })
	case "2":
		settings = append(settings, func(_ *party, c *tls.Config) { c.Certificates = certs[:2] })
	case "3":
		settings = append(settings, func(_ *party, c *tls.Config) { c.Certificates = certs })
	case "GetClientCertificate":
		answer := d.pick("GetClientCertificate", "2 a certificate", "2 a copy", "1 an error", "1 an empty certificate", "4 what suits")
		settings = append(settings, func(p *party, c *tls.Config) {
			c.Certificates = certs[1:] // does not count
			c.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
				p.calls = append(p.calls, fmt.Sprintf("GetClientCertificate(%x %x %v)", info.AcceptableCAs, info.Version, info.SignatureSchemes))
				switch answer {
				case "a certificate":
					return &certs[0], nil
				case "a copy":
					c := certs[0]
					return &c, nil
				case "an error":
					return nil, errDrawn
				case "what suits":
					for i := range certs {
						if info.SupportsCertificate(&certs[i]) == nil {
							return &certs[i], nil
						}
					}
				}
				return new(tls.Certificate), nil
			}
		})
	}
	v.wrapped = d.chance(3, "the client is wrapped too")
	v.first = func(p *party) *tls.Config { return apply(p, settings...) }
	if d.chance(3, "a second connection") || s.quic && d.IntN(2) == 0 {
		var change []setting
		switch d.pick("second connection", "3 the same", "1 another name", "1 other parameters") {
		case "another name":
			change = append(change, serverName(d.name(s.names)))
		case "other parameters":
			change = append(change, d.parameters("client", s.quic))
		}
		v.second = func(p *party) *tls.Config { return apply(p, slices.Concat(settings, change)...) }
		v.rotate = d.pick("session ticket keys, in between", "3 stay", "1 are replaced", "1 are rotated")
		v.fromPlain = s.ticketsShared && d.chance(2, "a ticket of base")
		if s.quic {
			v.early = d.chance(2, "QUIC, early data")
			v.events = d.chance(2, "QUIC, session events")
		}
	}
	v.chosen = d.chosen
	return v
}
