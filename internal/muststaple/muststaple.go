// Package muststaple reads the TLS feature extension of RFC 7633, by which a certificate says that it is to be refused
// without a staple: that it is Must-Staple.
package muststaple

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const statusRequest = 5 // RFC 6066, section 8

var oidTLSFeature = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}

// Is reports whether c is Must-Staple. A malformed extension asks for nothing.
func Is(c *x509.Certificate) bool {
	must, _ := Read(c)
	return must
}

// Read reports whether c carries the extension with status_request, or that the extension is malformed. RFC 7633 s4: it
// is a SEQUENCE OF INTEGER with the numbers of TLS extensions.
func Read(c *x509.Certificate) (must bool, err error) {
	for _, e := range c.Extensions {
		if !e.Id.Equal(oidTLSFeature) {
			continue
		}
		var features cryptobyte.String
		s := cryptobyte.String(e.Value)
		ok := s.ReadASN1(&features, cbasn1.SEQUENCE) && s.Empty()
		for ok && !features.Empty() {
			var feature uint16
			ok = features.ReadASN1Integer(&feature)
			must = must || feature == statusRequest
		}
		if !ok {
			return false, fmt.Errorf("the TLS feature extension is malformed: %.32x", e.Value)
		}
	}
	return must, nil
}
