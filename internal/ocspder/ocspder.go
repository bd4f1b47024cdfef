// Package ocspder reads OCSP responses, RFC 6960 s4.2.1, and tells what they say about a certificate. It believes
// nothing: who signed a response, and whether it is current, is for others to find out.
//
// [Read] takes a response apart, to the last byte, and hands each statement in it, a [Single], to a function. The Add
// of a [Match] is such a function: it picks the statement that counts for one certificate.
//
//	match := ocspder.Match{Leaf: leaf, Issuer: issuer}
//	response, err := ocspder.Read(der, match.Add)
//	if err == nil {
//		err = match.Err()
//	}
//
// Then match.Best is what response says about leaf. All slices are parts of the DER, which must not change meanwhile.
package ocspder

import "fmt"

// An Error tells why a response is of no use. It is what all functions of this package return, but for the
// [golang.org/x/crypto/ocsp.ResponseError] of a responder that answered with an error status.
type Error struct {
	Kind Kind
	text string
}

// A Kind tells errors apart.
type Kind int

const (
	Malformed            Kind = iota + 1 // not a basic OCSP response in strict DER
	WrongCertificate                     // no statement about this certificate
	UnsupportedAlgorithm                 // a signature or hash algorithm that is unknown
)

func (e *Error) Error() string { return e.text }

func malformed(format string, args ...any) error { return refuse(Malformed, format, args...) }

func wrongCertificate(format string, args ...any) error {
	return refuse(WrongCertificate, format, args...)
}

func unsupported(format string, args ...any) error {
	return refuse(UnsupportedAlgorithm, format, args...)
}

func refuse(kind Kind, format string, args ...any) error {
	text := format
	if len(args) > 0 {
		text = fmt.Sprintf(format, args...)
	}
	return &Error{kind, text}
}
