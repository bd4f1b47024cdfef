package ocspder

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"

	"github.com/go-staple/staple/internal/mldsa"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

type signatureOID struct {
	oid       []byte
	algorithm x509.SignatureAlgorithm
}

// mldsaOIDs returns none if the Go that built this has no ML-DSA.
func mldsaOIDs() (all []signatureOID) {
	if mldsa.Supported {
		for _, o := range mldsa.OIDs {
			all = append(all, signatureOID{o.Content, mldsa.Algorithm(o)})
		}
	}
	return all
}

// The content of the OBJECT IDENTIFIERs that are looked for in DER.
var (
	oidOCSPBasic  = []byte{0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1}                // 1.3.6.1.5.5.7.48.1.1
	oidSCTList    = []byte{0x2b, 6, 1, 4, 1, 0xd6, 0x79, 2, 4, 5}          // 1.3.6.1.4.1.11129.2.4.5
	oidMGF1       = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 8}    // 1.2.840.113549.1.1.8
	oidRSAPSS     = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0a} // 1.2.840.113549.1.1.10
	signatureOIDs = append(mldsaOIDs(), []signatureOID{
		{[]byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2}, x509.ECDSAWithSHA256},
		{[]byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3}, x509.ECDSAWithSHA384},
		{[]byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4}, x509.ECDSAWithSHA512},
		{[]byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1}, x509.ECDSAWithSHA1},
		{[]byte{0x2b, 0x65, 0x70}, x509.PureEd25519},
		{[]byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0b}, x509.SHA256WithRSA},
		{[]byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0c}, x509.SHA384WithRSA},
		{[]byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0d}, x509.SHA512WithRSA},
		{[]byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 5}, x509.SHA1WithRSA},
		{[]byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 4}, x509.MD5WithRSA},
		{[]byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 2}, x509.MD2WithRSA},
	}...)
	hashOIDs = []struct {
		oid  []byte
		hash crypto.Hash
	}{
		{[]byte{0x2b, 0x0e, 3, 2, 0x1a}, crypto.SHA1},
		{[]byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1}, crypto.SHA256},
		{[]byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2}, crypto.SHA384},
		{[]byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3}, crypto.SHA512},
	}
)

// identifiers has the AlgorithmIdentifier of each algorithm that is known, in DER: RFC 4055 s3.1 and s5, RFC 5758 s3, RFC
// 8410 s3, RFC 9881 s2.
var identifiers = func() map[x509.SignatureAlgorithm][]byte {
	all := make(map[x509.SignatureAlgorithm][]byte)
	element := func(tag cbasn1.Tag, parts ...[]byte) []byte {
		content := bytes.Join(parts, nil)
		return append(appendHeader(nil, tag, len(content)), content...)
	}
	identifier := func(oid []byte, parameters ...[]byte) []byte {
		return element(cbasn1.SEQUENCE, element(cbasn1.OBJECT_IDENTIFIER, oid), bytes.Join(parameters, nil))
	}
	for _, known := range signatureOIDs {
		if isRSA(known.oid) {
			all[known.algorithm] = identifier(known.oid, asn1.NullBytes)
		} else {
			all[known.algorithm] = identifier(known.oid)
		}
	}
	for _, known := range hashOIDs {
		hash := identifier(known.oid, asn1.NullBytes)
		if algorithm, ok := pssAlgorithms[known.hash]; ok {
			all[algorithm] = identifier(oidRSAPSS, element(cbasn1.SEQUENCE,
				element(tag0Constructed, hash),
				element(tag1Constructed, identifier(oidMGF1, hash)),
				element(tag2Constructed, element(cbasn1.INTEGER, []byte{byte(known.hash.Size())}))))
		}
	}
	return all
}()

var pssAlgorithms = map[crypto.Hash]x509.SignatureAlgorithm{
	crypto.SHA256: x509.SHA256WithRSAPSS,
	crypto.SHA384: x509.SHA384WithRSAPSS,
	crypto.SHA512: x509.SHA512WithRSAPSS,
}

func isRSA(oid []byte) bool { return bytes.HasPrefix(oid, oidRSAPSS[:len(oidRSAPSS)-1]) }

// readSignatureAlgorithm reads the fields of the AlgorithmIdentifier of a signature. Parameters are as RFC 4055, RFC
// 5758, RFC 8410 and RFC 9881 ask: absent, but for RSA.
func readSignatureAlgorithm(s *cryptobyte.String) (x509.SignatureAlgorithm, error) {
	var oid cryptobyte.String
	if !readOID(s, &oid) {
		return 0, malformed("bad signatureAlgorithm")
	}
	if bytes.Equal(oid, oidRSAPSS) {
		return readPSS(s)
	}
	for _, known := range signatureOIDs {
		if !bytes.Equal(oid, known.oid) {
			continue
		}
		if isRSA(oid) { // RFC 4055 s5: NULL, but absent must be accepted, too
			skipNULL(s)
		}
		if !s.Empty() {
			return 0, malformed("bad signatureAlgorithm: %s with parameters that do not belong there", known.algorithm)
		}
		return known.algorithm, nil
	}
	if name := mldsa.Named(oid); name != "" {
		return 0, unsupported("signed with %s, for which Go 1.27 is needed", name)
	}
	return 0, unsupported("signed with the unknown algorithm %s", dotted(oid))
}

// readPSS reads RSASSA-PSS-params, RFC 4055 s3.1: one hash throughout, a salt of its length.
func readPSS(s *cryptobyte.String) (x509.SignatureAlgorithm, error) {
	var params, wrapped, identifier, mgf cryptobyte.String
	var hash, mgfHash crypto.Hash
	var salt int64
	if !s.ReadASN1(&params, cbasn1.SEQUENCE) || !s.Empty() {
		return 0, malformed("bad parameters of RSASSA-PSS")
	}
	ok := params.ReadASN1(&wrapped, tag0Constructed) && wrapped.ReadASN1(&identifier, cbasn1.SEQUENCE) &&
		wrapped.Empty() && readHash(&identifier, &hash) &&
		params.ReadASN1(&wrapped, tag1Constructed) && wrapped.ReadASN1(&identifier, cbasn1.SEQUENCE) &&
		wrapped.Empty() && identifier.ReadASN1(&mgf, cbasn1.OBJECT_IDENTIFIER) && bytes.Equal(mgf, oidMGF1) &&
		identifier.ReadASN1(&mgf, cbasn1.SEQUENCE) && identifier.Empty() && readHash(&mgf, &mgfHash) &&
		params.ReadASN1(&wrapped, tag2Constructed) && wrapped.ReadASN1Int64WithTag(&salt, cbasn1.INTEGER) &&
		wrapped.Empty() && params.Empty()
	if algorithm, known := pssAlgorithms[hash]; ok && known && hash == mgfHash && salt == int64(hash.Size()) {
		return algorithm, nil
	}
	return 0, unsupported("signed with RSASSA-PSS with other parameters than " +
		"SHA-256, SHA-384 or SHA-512, MGF1 with the same hash, and a salt of that length")
}

// readHash reads the fields of the AlgorithmIdentifier of a hash, whose parameters are absent or NULL
// (RFC 4055 s2.1). A hash that is not supported comes out as 0, whatever its parameters.
func readHash(s *cryptobyte.String, hash *crypto.Hash) bool {
	var oid, ignored cryptobyte.String
	if !readOID(s, &oid) {
		return false
	}
	for _, known := range hashOIDs {
		if bytes.Equal(oid, known.oid) {
			*hash = known.hash
			skipNULL(s)
			return s.Empty()
		}
	}
	var tag cbasn1.Tag
	return s.Empty() || s.ReadAnyASN1(&ignored, &tag) && s.Empty()
}

func skipNULL(s *cryptobyte.String) {
	if bytes.HasPrefix(*s, asn1.NullBytes) {
		s.Skip(len(asn1.NullBytes))
	}
}
