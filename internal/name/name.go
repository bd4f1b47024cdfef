// Package name says in errors and logs which certificate is meant, when, and why: [Of] names a certificate, [Parts] does
// so in two parts, [Serial] shows a serial number, [Time] a moment, [Reason] why a certificate was revoked, [Printable]
// any text. What comes out is printable and of bounded length, whatever went in.
package name

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"math/big"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Of names a certificate: its subject, or else its first name, and its serial number. c may be nil.
func Of(c *x509.Certificate) string {
	if c == nil {
		return "no certificate"
	}
	subject, serial := Parts(c)
	return `"` + subject + `" (serial ` + serial + ")"
}

// Parts returns what Of consists of.
func Parts(c *x509.Certificate) (subject, serial string) {
	subject = c.Subject.String()
	switch {
	case subject != "":
	case len(c.DNSNames) > 0:
		subject = c.DNSNames[0]
	case len(c.IPAddresses) > 0:
		subject = c.IPAddresses[0].String()
	}
	subject = fmt.Sprintf("%.100q", subject)
	serial = "unknown"
	if c.SerialNumber != nil {
		serial = Serial(content(c.SerialNumber))
	}
	return subject[1 : len(subject)-1], serial
}

// Serial returns a serial number, the content of an INTEGER in DER, as certificate viewers show it: 04:a1:3f. A negative
// one, which RFC 5280 s4.1.2.2 forbids, has a minus before it.
func Serial(b []byte) string {
	if len(b) > 0 && b[0] >= 0x80 {
		return "-" + octets(negated(b))
	}
	return octets(b)
}

// octets returns the octets of a number, without a sign, as Serial shows them.
func octets(b []byte) string {
	if len(b) > 1 && b[0] == 0 {
		b = b[1:]
	}
	more := ""
	if len(b) > 20 {
		b, more = b[:20], "..."
	}
	return strings.ReplaceAll(fmt.Sprintf("% x", b), " ", ":") + more
}

// negated returns what has to be added to b, which is negative, to make it zero.
func negated(b []byte) []byte {
	n := new(big.Int).Lsh(big.NewInt(1), uint(8*len(b)))
	return n.Sub(n, new(big.Int).SetBytes(b)).Bytes()
}

// Time returns t in UTC, to the second.
func Time(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// content returns the content of an INTEGER.
func content(n *big.Int) (b []byte) {
	var element cryptobyte.Builder
	element.AddASN1BigInt(n)
	s := cryptobyte.String(element.BytesOrPanic())
	s.ReadASN1Bytes(&b, asn1.INTEGER)
	return b
}

// reasons are those of RFC 5280, section 5.3.1.
var reasons = map[int]string{0: "unspecified", 1: "keyCompromise", 2: "cACompromise", 3: "affiliationChanged", 4: "superseded",
	5: "cessationOfOperation", 6: "certificateHold", 8: "removeFromCRL", 9: "privilegeWithdrawn", 10: "aACompromise"}

// Reason returns the name of a reason for a revocation, or its number if it has none.
func Reason(n int) string { return cmp.Or(reasons[n], fmt.Sprint(n)) }

// Printable returns s, cut after limit bytes, without what a terminal or a log might take for more than text.
func Printable(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return utf8.RuneError
	}, s)
}
