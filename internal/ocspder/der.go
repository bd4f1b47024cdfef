package ocspder

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// maxExtensions bounds a list of extensions, and with it the search for doubles.
const maxExtensions = 16

// readExtensions reads the optional [1] EXPLICIT Extensions (RFC 5280 s4.1) and returns the elements
// of the list. None but known may be critical.
func readExtensions(s *cryptobyte.String, name string, known []byte) (cryptobyte.String, error) {
	if !s.PeekASN1Tag(tag1Constructed) {
		return nil, nil
	}
	var wrapped, list cryptobyte.String
	if !s.ReadASN1(&wrapped, tag1Constructed) || !wrapped.ReadASN1(&list, cbasn1.SEQUENCE) ||
		!wrapped.Empty() { // RFC 5280 wants one or more, but HashiCorp Vault sends an empty list
		return nil, malformed("bad %s", name)
	}
	var seen [maxExtensions]cryptobyte.String
	n := 0
	for rest := list; !rest.Empty(); n++ {
		var e extension
		if !e.read(&rest) {
			return nil, malformed("bad %s", name)
		}
		if e.critical && !bytes.Equal(e.oid, known) {
			return nil, malformed("unknown critical extension %s in %s", dotted(e.oid), name)
		}
		if n == maxExtensions {
			return nil, malformed("more than %d extensions in %s", maxExtensions, name)
		}
		for _, other := range seen[:n] {
			if bytes.Equal(e.oid, other) {
				return nil, malformed("extension %s twice in %s", dotted(e.oid), name)
			}
		}
		seen[n] = e.oid
	}
	return list, nil
}

type extension struct {
	oid, value cryptobyte.String
	critical   bool
}

func (e *extension) read(s *cryptobyte.String) bool {
	var one cryptobyte.String
	if !s.ReadASN1(&one, cbasn1.SEQUENCE) || !readOID(&one, &e.oid) {
		return false
	}
	if one.PeekASN1Tag(cbasn1.BOOLEAN) && (!one.ReadASN1Boolean(&e.critical) || !e.critical) {
		return false // FALSE is the default: DER leaves it out
	}
	return one.ReadASN1(&e.value, cbasn1.OCTET_STRING) && one.Empty()
}

// pkixExtensions converts the elements of a list that readExtensions has read. Those whose OID has an
// arc above 2³¹, which a pkix.Extension cannot hold, are left out.
func pkixExtensions(list cryptobyte.String) []pkix.Extension {
	var all []pkix.Extension
	for !list.Empty() {
		var e extension
		if !e.read(&list) {
			break
		}
		if id := objectIdentifier(e.oid); id != nil {
			all = append(all, pkix.Extension{Id: id, Critical: e.critical, Value: e.value})
		}
	}
	return all
}

// readTime reads a GeneralizedTime in the one form that RFC 5280 s4.1.2.5.2 allows. It is several times
// as fast as time.Parse, which matters here, beside a signature with RSA.
func readTime(s *cryptobyte.String, t *time.Time, name string) error {
	const form = "YYYYMMDDHHMMSSZ"
	var content cryptobyte.String
	if !s.ReadASN1(&content, cbasn1.GeneralizedTime) {
		return malformed("bad %s, want a GeneralizedTime", name)
	}
	var n [7]int // of two digits each
	ok := len(content) == len(form) && content[14] == 'Z'
	for i := 0; ok && i < 14; i++ {
		ok = '0' <= content[i] && content[i] <= '9'
		n[i/2] = n[i/2]*10 + int(content[i]-'0')
	}
	month := time.Month(n[2])
	*t = time.Date(n[0]*100+n[1], month, n[3], n[4], n[5], n[6], 0, time.UTC)
	// time.Date takes February 30 for March 1 or 2.
	if !ok || t.Month() != month || n[4] > 23 || n[5] > 59 || n[6] > 59 {
		return malformed("%s is %q, want %s", name, content[:min(len(content), 32)], form)
	}
	return nil
}

// readOID reads the content of an OBJECT IDENTIFIER, with arcs of any size.
func readOID(s, oid *cryptobyte.String) bool {
	if !s.ReadASN1(oid, cbasn1.OBJECT_IDENTIFIER) || oid.Empty() {
		return false
	}
	first := true // of an arc's octets
	for _, b := range *oid {
		if first && b == 0x80 {
			return false
		}
		first = b < 0x80
	}
	return first
}

// minimal reports whether content is that of an INTEGER in DER.
func minimal(content []byte) bool {
	return len(content) == 1 || len(content) > 1 &&
		!(content[0] == 0 && content[1] < 0x80) && !(content[0] == 0xff && content[1] >= 0x80)
}

// integer returns the content of an INTEGER in DER.
func integer(n *big.Int) []byte {
	abs := n
	if n.Sign() < 0 {
		abs = new(big.Int).Not(n)
	}
	b := abs.FillBytes(make([]byte, abs.BitLen()/8+1))
	if n.Sign() < 0 { // two's complement
		for i := range b {
			b[i] = ^b[i]
		}
	}
	return b
}

// SerialNumber converts Serial.
func (p *Single) SerialNumber() *big.Int {
	n := new(big.Int).SetBytes(p.Serial)
	if p.Serial[0] >= 0x80 { // two's complement
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(p.Serial))))
	}
	return n
}

// objectIdentifier converts the content of an OBJECT IDENTIFIER. It returns nil where an arc is too
// large for the result.
func objectIdentifier(content []byte) asn1.ObjectIdentifier {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(content) })
	s := cryptobyte.String(b.BytesOrPanic())
	var id asn1.ObjectIdentifier
	s.ReadASN1ObjectIdentifier(&id)
	return id
}

// dotted returns the content of an OBJECT IDENTIFIER for an error's text.
func dotted(content []byte) string {
	if len(content) <= 32 {
		if id := objectIdentifier(content); id != nil {
			return id.String()
		}
	}
	return fmt.Sprintf("OID(%.32x)", content)
}
