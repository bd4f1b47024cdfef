// Package choose finds the certificate that a TLS server gives to a client: the one
// that crypto/tls would choose from tls.Config.Certificates, for every ClientHello, in
// the time of a map look-up and without allocation.
//
// crypto/tls asks each certificate in order, with ClientHelloInfo.SupportsCertificate,
// whether it suits the hello, and gives the first if none does. What that looks at are
// the names and a few properties of the key. So an [Index] has the certificates by
// their names, as x509.Certificate.VerifyHostname matches them, and a [Kind] has what
// there is to know of the rest; only where that is not enough for a hello, crypto/tls
// is asked about the few certificates that match by name.
//
//	var kinds choose.Kinds
//	ix := choose.NewIndex[site]()
//	for i, cert := range certs {
//		s := &choose.Slot[site]{Order: uint64(i), Kind: kinds.Of(&cert), Of: sites[i]}
//		s.Put(&cert)
//		ix.Add(s)
//	}
//	s, _ := ix.Choose(hello, choose.TakesTLS13(config))
//	cert, stapled := s.Current()
//
// A [Slot] is a place for one certificate and for the staple that comes, ends and is
// replaced meanwhile. To this package a staple is bytes and a moment from which they
// are not served any more: it knows nothing of OCSP. [Arrays] are for certificates that
// have no slots because their configuration comes anew with each connection.
//
// Whether a certificate is valid, and what becomes of one that has no staple, is for others
// to decide. Nothing here waits, but that some keys, which are asked for their public half,
// are far away.
package choose

import "crypto/tls"

// TakesTLS13 reports whether a server with config takes TLS 1.3.
func TakesTLS13(config *tls.Config) bool {
	return config.MinVersion <= tls.VersionTLS13 && (config.MaxVersion == 0 || config.MaxVersion >= tls.VersionTLS13)
}

// prefersTLS13 reports whether a server that takes TLS 1.3 is sure to use it for hello.
func prefersTLS13(hello *tls.ClientHelloInfo) bool {
	for _, v := range hello.SupportedVersions {
		switch {
		case v == tls.VersionTLS13:
			return true
		case v&0x0f0f != 0x0a0a: // not one of RFC 8701, which are there to be ignored
			return false
		}
	}
	return false
}
