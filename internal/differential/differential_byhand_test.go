package differential

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
)

// wantCertificate is crypto/tls's Config.getCertificate, which returns nil where that returns errNoCertificates.
func wantCertificate(c *tls.Config, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c.GetCertificate != nil && (len(c.Certificates) == 0 || len(hello.ServerName) > 0) {
		if cert, err := c.GetCertificate(hello); cert != nil || err != nil {
			return cert, err
		}
	}
	switch len(c.Certificates) {
	case 0:
		return nil, nil
	case 1:
		return &c.Certificates[0], nil
	}
	//lint:ignore SA1019 it is still heeded
	if named := c.NameToCertificate; named != nil {
		name := strings.ToLower(hello.ServerName)
		if cert, ok := named[name]; ok {
			return cert, nil
		}
		if len(name) > 0 {
			parts := strings.Split(name, ".")
			parts[0] = "*"
			if cert, ok := named[strings.Join(parts, ".")]; ok {
				return cert, nil
			}
		}
	}
	for i := range c.Certificates {
		if hello.SupportsCertificate(&c.Certificates[i]) == nil {
			return &c.Certificates[i], nil
		}
	}
	return &c.Certificates[0], nil
}

// wantClientCertificate is crypto/tls's Conn.getClientCertificate.
func wantClientCertificate(c *tls.Config, info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	if c.GetClientCertificate != nil {
		return c.GetClientCertificate(info)
	}
	for i := range c.Certificates {
		if info.SupportsCertificate(&c.Certificates[i]) == nil {
			return &c.Certificates[i], nil
		}
	}
	return new(tls.Certificate), nil
}

func sameKey(a, b crypto.PrivateKey) bool {
	if x, ok := a.(ed25519.PrivateKey); ok {
		return x.Equal(b)
	}
	return a == b
}

// difference tells what but the staple is not the same in two answers of a callback.
func (b *batch) difference(want, got *tls.Certificate, wantErr, gotErr error) string {
	switch {
	case (want == nil) != (got == nil) || fmt.Sprint(wantErr) != fmt.Sprint(gotErr):
		return fmt.Sprintf("\n  %s, %v\n    wrapped: %s, %v", b.describe(want), wantErr, b.describe(got), gotErr)
	case want == nil, wantErr != nil:
		return ""
	case !slices.EqualFunc(want.Certificate, got.Certificate, bytes.Equal), !sameKey(want.PrivateKey, got.PrivateKey),
		!slices.Equal(want.SupportedSignatureAlgorithms, got.SupportedSignatureAlgorithms),
		!slices.EqualFunc(want.SignedCertificateTimestamps, got.SignedCertificateTimestamps, bytes.Equal):
		return fmt.Sprintf("\n  %s\n    wrapped: %s", b.describe(want), b.describe(got))
	case len(got.Certificate) == 0:
		return ""
	}
	return b.staple(got.Certificate[0], got.OCSPStaple, true)
}

func (b *batch) describe(c *tls.Certificate) string {
	if c == nil {
		return "no certificate"
	}
	if len(c.Certificate) > 0 && b.byLeaf[string(c.Certificate[0])] != nil {
		sp := b.byLeaf[string(c.Certificate[0])]
		return fmt.Sprintf("%s %x, key %T, %v", sp.text, sp.Leaf.SerialNumber, c.PrivateKey, c.SupportedSignatureAlgorithms)
	}
	return fmt.Sprintf("a chain of %d, key %T", len(c.Certificate), c.PrivateKey)
}

// staple tells what is wrong with a staple for leaf, and with its absence if one is expected where there can be one.
func (b *batch) staple(leaf, der []byte, expected bool) string {
	sp := b.byLeaf[string(leaf)]
	if sp == nil {
		return ""
	}
	if _, good := sp.expected.Load(string(der)); len(der) > 0 && !good {
		return fmt.Sprintf("\n  a staple of %d bytes that is not for %s", len(der), sp.text)
	}
	if len(der) == 0 && expected && b.warm && sp.staples {
		return "\n  no staple for " + sp.text
	}
	return ""
}

var supportedVersions = [][]uint16{
	{tls.VersionTLS13, tls.VersionTLS12}, {tls.VersionTLS13, tls.VersionTLS12}, {tls.VersionTLS13, tls.VersionTLS12}, {tls.VersionTLS13},
	{0x2a2a, tls.VersionTLS13, tls.VersionTLS12}, {tls.VersionTLS12, 0xfafa, tls.VersionTLS13}, {0x1a1a, tls.VersionTLS12}, {tls.VersionTLS12},
	{tls.VersionTLS12, tls.VersionTLS11, tls.VersionTLS10}, {tls.VersionTLS11, tls.VersionTLS10}, {0x0305, tls.VersionTLS13}, {0x0305}, {0x7a7a}, {0x0a1a, 0}, nil,
}

// byHand draws a hello that has not come through a connection.
func (d *draw) byHand(names []string) *tls.ClientHelloInfo {
	h := &tls.ClientHelloInfo{ServerName: d.name(names), SupportedVersions: one(d, supportedVersions)}
	// Each field is empty now and then, or as clients have it, or anything.
	switch d.IntN(5) {
	case 0, 1:
		h.SignatureSchemes = schemes[:9]
	case 2:
		h.SignatureSchemes = some(d, schemes)
	case 3:
		h.SignatureSchemes = []tls.SignatureScheme{one(d, schemes)}
	}
	switch d.IntN(5) {
	case 0, 1:
		h.CipherSuites = allSuites
	case 2:
		h.CipherSuites = some(d, slices.Concat(allSuites, []uint16{0x1a1a}))
	case 3:
		h.CipherSuites = withoutECDHE
	}
	switch curves := []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521, 0x4a4a}; d.IntN(4) {
	case 0, 1:
		h.SupportedCurves = curves
	case 2:
		h.SupportedCurves = some(d, curves)
	}
	h.SupportedPoints = one(d, [][]uint8{{0}, {0}, {0}, {1, 2}, nil})
	h.SupportedProtos = one(d, [][]string{nil, {"h2"}, {"acme-tls/1"}})
	h.Extensions = one(d, [][]uint16{nil, {0, 5, 10}, {0}})
	return h
}

// compareByHand has the callbacks of a server as it is and as it is wrapped answer the same hello.
func (s *base) compareByHand(b *batch, d *draw) string {
	hello := d.byHand(s.names)
	text := func() string {
		plain, wrapped := s.plain.direct, s.wrapped.direct
		if plain.GetConfigForClient != nil {
			p, err := plain.GetConfigForClient(hello)
			w, wrappedErr := wrapped.GetConfigForClient(hello)
			switch {
			case (p == nil) != (w == nil) || fmt.Sprint(err) != fmt.Sprint(wrappedErr):
				return fmt.Sprintf("\n  GetConfigForClient: %t, %v\n    wrapped: %t, %v", p != nil, err, w != nil, wrappedErr)
			case p != nil:
				plain, wrapped = p, w
			}
		}
		want, wantErr := wantCertificate(plain, hello)
		got, gotErr := wrapped.GetCertificate(hello)
		switch {
		case wantErr != nil:
			d.note("outcome: by hand: an error")
		case want == nil:
			d.note("outcome: by hand: none")
		case len(plain.Certificates) > 1 && want == &plain.Certificates[0]:
			d.note("outcome: by hand: the first certificate")
		case len(plain.Certificates) > 1:
			d.note("outcome: by hand: a certificate for the name")
		}
		if text := b.difference(want, got, wantErr, gotErr); text != "" {
			return text
		}
		if p, w := s.plain.takeCalls(), s.wrapped.takeCalls(); p != w {
			return fmt.Sprintf("\n  callbacks: %s\n    wrapped: %s", p, w)
		}
		return ""
	}()
	if text != "" {
		return fmt.Sprintf("%s\n  hello: %q %x %v %x %v %v", text, hello.ServerName, hello.SupportedVersions, hello.SignatureSchemes, hello.CipherSuites, hello.SupportedCurves, hello.SupportedPoints)
	}
	return ""
}

// compareClientByHand does the same with a server's request for a certificate.
func (v *visit) compareClientByHand(b *batch, d *draw) string {
	plain, wrapped := new(party), new(party)
	p, w := v.first(plain), b.stapler.TLSConfig(v.first(wrapped))
	info := &tls.CertificateRequestInfo{
		Version:          one(d, []uint16{tls.VersionTLS13, tls.VersionTLS12, tls.VersionTLS10}),
		SignatureSchemes: one(d, [][]tls.SignatureScheme{schemes[:9], some(d, schemes)}),
		AcceptableCAs:    one(d, [][][]byte{nil, {diffCAs()[0].Issuer.RawSubject}, {diffCAs()[0].Root.RawSubject}, {diffCAs()[1].Root.RawSubject}, {[]byte("x")}}),
	}
	want, wantErr := wantClientCertificate(p, info)
	got, gotErr := wantClientCertificate(w, info)
	if want != nil && len(want.Certificate) > 0 {
		d.note("outcome: by hand: a client certificate")
	}
	if text := b.difference(want, got, wantErr, gotErr); text != "" {
		return fmt.Sprintf("%s\n  request: %x %v %q", text, info.Version, info.SignatureSchemes, info.AcceptableCAs)
	}
	return ""
}
