package stapletest

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ocsp"
)

// A Case is one response of [Forgeries] or [Oddities].
type Case struct {
	Name   string // what it is, as the name of a sub-test
	Why    string // why it must be refused or accepted, with the RFC's section where there is one
	DER    []byte // the response
	Status int    // of an oddity: the status of the certificate that it proves
}

// Forgeries returns responses that a verifier must refuse when it is asked about leaf, which ca issued:
// signed by somebody who may not, about another certificate, out of date, or malformed. They are made
// anew at each call and are to be judged at the present time, within half an hour.
//
// What RFC 6960 leaves to the client's policy, such as a delegated responder without
// id-pkix-ocsp-nocheck, is in neither list.
func Forgeries(ca *CA, leaf *x509.Certificate) []Case {
	c := newCatalog(ca, leaf)
	c.signers()
	c.responderIDs()
	c.certIDs()
	c.times()
	c.criticalExtensions()
	c.signatures()
	c.statuses()
	c.malformed()
	return c.cases
}

// Oddities returns valid responses about leaf, which ca issued, that a verifier must accept although few
// responders produce them. They are made anew at each call and are to be judged at the present time,
// within half an hour.
func Oddities(ca *CA, leaf *x509.Certificate) []Case {
	c := newCatalog(ca, leaf)
	c.validSigners()
	c.validSignatures()
	c.validContents()
	return c.cases
}

// unseededRSAKey is one RSA key for all catalogs, because it takes long to make.
var unseededRSAKey = sync.OnceValue(RSA2048.generate)

func (c *catalog) rsaKey() crypto.Signer {
	if seed := seedFrom(c.ca.Key, "RSA"); seed != "" {
		return newSeededKey(RSA2048, []byte(seed))
	}
	return unseededRSAKey()
}

type catalog struct {
	ca       *CA
	leaf     *x509.Certificate
	delegate *Signer // a rightful one
	other    *CA     // of another name
	twin     *CA     // of the same name, with another key
	now      time.Time
	cases    []Case
}

func newCatalog(ca *CA, leaf *x509.Certificate) *catalog {
	twin := NewCA(CAOptions{Seed: seedFrom(ca.Key, "twin")})
	twin.Issuer = create(&x509.Certificate{
		RawSubject:            ca.Issuer.RawSubject,
		SubjectKeyId:          ca.Issuer.SubjectKeyId,
		NotBefore:             ca.Issuer.NotBefore,
		NotAfter:              ca.Issuer.NotAfter,
		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              ca.Issuer.KeyUsage,
	}, twin.Root, twin.Key.Public(), twin.Key, 0)
	return &catalog{
		ca:       ca,
		leaf:     leaf,
		delegate: ca.Delegate(DelegateOptions{}),
		other:    NewCA(CAOptions{Name: "Another CA", Seed: seedFrom(ca.Key, "another")}),
		twin:     twin,
		now:      time.Now(),
	}
}

// add makes a case of a good response, signed by the CA itself, after edit.
func (c *catalog) add(name, why string, edit func(*Response)) {
	r := NewResponse(c.ca, c.leaf)
	edit(r)
	c.cases = append(c.cases, Case{Name: name, Why: why, DER: r.DER(), Status: ocsp.Good})
}

// raw makes a case of der.
func (c *catalog) raw(name, why string, der []byte) {
	c.cases = append(c.cases, Case{Name: name, Why: why, DER: der})
}

// signedBy makes a case of a good response by signer, who embeds its certificate and then others.
func (c *catalog) signedBy(name, why string, signer *Signer, others ...*x509.Certificate) {
	c.add(name, why, func(r *Response) {
		r.Signer = signer
		r.Certificates = append([]*x509.Certificate{signer.Certificate}, others...)
	})
}

// element makes a case in which one element of the response, or of its only single, is replaced.
func (c *catalog) element(name, why, element string, replace func(der []byte) []byte) {
	c.add(name, why, func(r *Response) {
		tamper := func(e string, der []byte) []byte {
			if e == element {
				return replace(der)
			}
			return der
		}
		r.Tamper, r.Singles[0].Tamper = tamper, tamper
	})
}

// A replacement is what an element is replaced by.
type replacement struct {
	name string
	der  []byte
}

func (c *catalog) signers() {
	const unauthorized = "RFC 6960 s4.2.2.2: neither the issuer nor a delegate of the issuer"
	sibling := c.ca.Leaf(LeafOptions{Names: []string{"sibling.example"}})
	siblingSigner := &Signer{Certificate: sibling.Leaf, Key: sibling.PrivateKey.(crypto.Signer)}
	c.signedBy("signed by a sibling leaf", unauthorized, siblingSigner)
	c.add("signed by a sibling leaf in the name of the issuer", unauthorized, func(r *Response) {
		r.Signer = siblingSigner
		r.ResponderID = c.ca.Issuer
		r.Certificates = []*x509.Certificate{sibling.Leaf}
	})
	c.add("signed by a sibling leaf beside a delegate's certificate", unauthorized, func(r *Response) {
		r.Signer = siblingSigner
		r.ResponderID = c.delegate.Certificate
		r.Certificates = []*x509.Certificate{c.delegate.Certificate, sibling.Leaf}
	})
	c.add("signed by a stranger beside a delegate's certificate", unauthorized, func(r *Response) {
		r.Signer = &Signer{Certificate: c.delegate.Certificate, Key: generate(ECDSAP256, c.ca.Key)}
	})
	c.add("signed by a stranger beside the issuer's certificate", unauthorized, func(r *Response) {
		r.Signer = &Signer{Certificate: c.ca.Issuer, Key: generate(ECDSAP256, c.ca.Key)}
		r.Certificates = []*x509.Certificate{c.ca.Issuer}
	})

	const purpose = "RFC 6960 s4.2.2.2: a delegate carries id-kp-OCSPSigning itself"
	c.signedBy("a delegate without extended key usage", purpose, c.ca.Delegate(DelegateOptions{NoEKU: true}))
	c.signedBy("a delegate with anyExtendedKeyUsage alone", purpose, c.ca.Delegate(DelegateOptions{
		Template: func(t *x509.Certificate) { t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} },
	}))
	c.signedBy("a delegate for servers", purpose, c.ca.Delegate(DelegateOptions{
		Template: func(t *x509.Certificate) { t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
	}))
	c.signedBy("a delegate whose key usage lacks digitalSignature", "RFC 5280 s4.2.1.3",
		c.ca.Delegate(DelegateOptions{KeyUsage: x509.KeyUsageKeyEncipherment}))
	c.signedBy("a delegate with an unknown critical extension", "RFC 5280 s4.2",
		c.ca.Delegate(DelegateOptions{Template: func(t *x509.Certificate) {
			t.ExtraExtensions = append(t.ExtraExtensions, unknownExtension(true))
		}}))

	const validity = "RFC 5280 s6.1.3: the delegate's certificate is not valid now"
	c.signedBy("a delegate that has expired", validity, c.ca.Delegate(DelegateOptions{
		NotBefore: c.now.Add(-30 * day), NotAfter: c.now.Add(-time.Hour),
	}))
	expired := c.ca.Delegate(DelegateOptions{NotBefore: c.now.Add(-30 * day), NotAfter: c.now.Add(-time.Hour)})
	c.add("a delegate that expired after it signed", validity, func(r *Response) {
		r.Signer = expired
		r.ProducedAt = c.now.Add(-2 * day)
		r.Singles[0].ThisUpdate = r.ProducedAt
	})
	c.signedBy("a delegate that is not valid yet", validity, c.ca.Delegate(DelegateOptions{
		NotBefore: c.now.Add(day), NotAfter: c.now.Add(30 * day),
	}))

	c.signedBy("a delegate of another CA", unauthorized, c.other.Delegate(DelegateOptions{}), c.other.Issuer)
	c.signedBy("a delegate of another CA of the same name", unauthorized, c.twin.Delegate(DelegateOptions{}))
	c.signedBy("a delegate of another CA of the same name, which is embedded", unauthorized,
		c.twin.Delegate(DelegateOptions{}), c.twin.Issuer)
	c.signedBy("another CA", unauthorized, c.other.Signer())
	c.signedBy("another CA of the same name", unauthorized, c.twin.Signer())
	c.add("another CA of the same name, not embedded", unauthorized, func(r *Response) {
		r.Signer = c.twin.Signer()
		r.Certificates = []*x509.Certificate{}
	})
	c.add("another CA of the same name, by name", unauthorized, func(r *Response) {
		r.Signer = c.twin.Signer()
		r.ByName = true
	})
	c.signedBy("a look-alike of the issuer, signed by itself", unauthorized, c.lookalike(c.ca.Issuer))
	c.signedBy("a look-alike of a delegate, signed by itself", unauthorized, c.lookalike(c.delegate.Certificate))
	c.signedBy("a look-alike of a delegate, beside the genuine one", unauthorized,
		c.lookalike(c.delegate.Certificate), c.delegate.Certificate)

	const direct = "RFC 6960 s4.2.2.2: issued directly by the CA that the request names"
	sub := c.ca.Leaf(LeafOptions{CommonName: "Subordinate CA", Names: []string{}, Template: makeCA})
	grandchild := (&CA{Issuer: sub.Leaf, Key: sub.PrivateKey.(crypto.Signer)}).Delegate(DelegateOptions{})
	c.signedBy("a grandchild delegate", direct, grandchild, sub.Leaf)
	subDelegate := c.ca.Delegate(DelegateOptions{Template: makeCA})
	grandchild = (&CA{Issuer: subDelegate.Certificate, Key: subDelegate.Key}).Delegate(DelegateOptions{})
	c.signedBy("a delegate of a delegate", direct, grandchild, subDelegate.Certificate)
	if c.ca.Issuer != c.ca.Root && c.ca.RootKey != nil {
		root := &CA{Issuer: c.ca.Root, Key: c.ca.RootKey}
		c.signedBy("the root instead of the intermediate", direct, root.Signer())
		c.signedBy("a delegate of the root", direct, root.Delegate(DelegateOptions{}))
	}

	c.add("a delegate that is not embedded", "RFC 6960 s4.2.2.2: its certificate is unknown", func(r *Response) {
		r.Signer = c.delegate
		r.Certificates = []*x509.Certificate{}
	})
	c.add("a delegate whose certificate was altered", "RFC 5280 s6.1.3: the issuer's signature does not match", func(r *Response) {
		r.Signer = c.delegate
		raw := slices.Clone(c.delegate.Certificate.Raw)
		raw[len(raw)-1] ^= 1
		r.Certificates = []*x509.Certificate{{Raw: raw}}
	})
	c.add("a delegate whose certificate is cut off", "RFC 5280 s4.1: its certificate cannot be read", func(r *Response) {
		r.Signer = c.delegate
		raw := c.delegate.Certificate.Raw
		r.Certificates = []*x509.Certificate{{Raw: raw[:len(raw)-1]}}
	})
	if sha1Algorithm(c.ca.Key) != 0 {
		sha1CA := *c.ca
		sha1CA.SignatureAlgorithm = sha1Algorithm(c.ca.Key)
		c.signedBy("a delegate whose certificate is signed with SHA-1", "RFC 6194: SHA-1 is broken",
			sha1CA.Delegate(DelegateOptions{}))
	}
}

func (c *catalog) responderIDs() {
	const why = "RFC 6960 s4.2.2.3: the responderID must correspond to the key that signed"
	for _, byName := range []bool{false, true} {
		how := " by key"
		if byName {
			how = " by name"
		}
		c.add("responderID of another CA"+how, why, func(r *Response) {
			r.ResponderID, r.ByName = c.other.Issuer, byName
		})
		c.add("responderID of a delegate, signed by the issuer"+how, why, func(r *Response) {
			r.ResponderID, r.ByName = c.delegate.Certificate, byName
			r.Certificates = []*x509.Certificate{c.delegate.Certificate}
		})
		c.add("responderID of the issuer, signed by a delegate"+how, why, func(r *Response) {
			r.Signer = c.delegate
			r.ResponderID, r.ByName = c.ca.Issuer, byName
		})
	}
	const malformed = "RFC 6960 s4.2.1: a Name, or a SHA-1 hash of the key"
	namesake := c.ca.Delegate(DelegateOptions{Template: func(t *x509.Certificate) { t.RawSubject = c.ca.Issuer.RawSubject }})
	c.add("a delegate in the name of the issuer, by name", why+", and it names the issuer", func(r *Response) {
		r.Signer, r.ByName = namesake, true
	})
	c.element("responderID with a SHA-256 hash", malformed, "responderID", func([]byte) []byte {
		return tlv(explicit(2), tlv(tagOctetString, sum(crypto.SHA256, publicKey(c.ca.Issuer))))
	})
	c.element("responderID with an empty hash", malformed, "responderID", func([]byte) []byte {
		return tlv(explicit(2), tlv(tagOctetString))
	})
	c.element("responderID with an empty name", malformed, "responderID", func([]byte) []byte {
		return tlv(explicit(1), tlv(tagSequence))
	})
	c.element("responderID of a third kind", malformed, "responderID", func([]byte) []byte {
		return tlv(explicit(3), tlv(tagOctetString, sum(crypto.SHA1, publicKey(c.ca.Issuer))))
	})
	c.element("no responderID", malformed, "responderID", remove)
}

func (c *catalog) certIDs() {
	const why = "RFC 6960 s3.2 (1): the response must be about the certificate in question"
	single := func(name, why string, edit func(s *Single)) {
		c.add(name, why, func(r *Response) { edit(&r.Singles[0]) })
	}
	otherSerial := new(big.Int).Add(c.leaf.SerialNumber, big.NewInt(1))
	single("another serial number", why, func(s *Single) { s.Serial = otherSerial })
	single("the serial number negated", why, func(s *Single) { s.Serial = new(big.Int).Neg(c.leaf.SerialNumber) })
	single("a serial number that is longer by a byte", why, func(s *Single) {
		s.Serial = new(big.Int).Lsh(c.leaf.SerialNumber, 8)
	})
	single("a huge serial number", why, func(s *Single) { s.Serial = new(big.Int).Lsh(c.leaf.SerialNumber, 1<<16) })
	single("serial number zero", why, func(s *Single) { s.Serial = new(big.Int) })
	for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		with := " with " + hash.String()
		single("issuerNameHash of another CA"+with, why, func(s *Single) {
			s.Hash, s.IssuerNameHash = hash, sum(hash, c.other.Issuer.RawSubject)
		})
		single("issuerKeyHash of another CA"+with, why, func(s *Single) {
			s.Hash, s.IssuerKeyHash = hash, sum(hash, publicKey(c.other.Issuer))
		})
		single("another CA's CertID with the right serial number"+with, why, func(s *Single) {
			s.Hash, s.Issuer = hash, c.other.Issuer
		})
	}
	single("the CertID of another CA of the same name", why, func(s *Single) { s.Issuer = c.twin.Issuer })
	single("SHA-1 hashes said to be SHA-256", why, func(s *Single) {
		s.Hash = crypto.SHA256
		s.IssuerNameHash = sum(crypto.SHA1, c.ca.Issuer.RawSubject)
		s.IssuerKeyHash = sum(crypto.SHA1, publicKey(c.ca.Issuer))
	})
	single("empty hashes", why, func(s *Single) { s.IssuerNameHash, s.IssuerKeyHash = []byte{}, []byte{} })
	single("hashes that are cut off", why, func(s *Single) {
		s.IssuerNameHash = sum(crypto.SHA1, c.ca.Issuer.RawSubject)[:8]
		s.IssuerKeyHash = sum(crypto.SHA1, publicKey(c.ca.Issuer))[:8]
	})
	single("a CertID with MD5", "RFC 6151: MD5 is broken", func(s *Single) { s.Hash = crypto.MD5 })
	c.add("no single response", why, func(r *Response) { r.Singles = nil; r.Certificates = []*x509.Certificate{} })
	c.add("single responses about others alone", why, func(r *Response) {
		first, second := r.Singles[0], r.Singles[0]
		first.Serial, second.Issuer = otherSerial, c.other.Issuer
		r.Singles = []Single{first, second}
		r.Certificates = []*x509.Certificate{}
	})

	const malformed = "RFC 6960 s4.1.1: not a CertID in DER"
	c.element("a serial number that is not minimal", malformed, "serialNumber", func(der []byte) []byte {
		return tlv(tagInteger, []byte{0}, content(der))
	})
	c.element("an empty serial number", malformed, "serialNumber", func([]byte) []byte { return tlv(tagInteger) })
	c.element("no serial number", malformed, "serialNumber", remove)
	c.element("no issuerKeyHash", malformed, "issuerKeyHash", remove)
	c.element("an unknown hash algorithm", malformed, "hashAlgorithm", func([]byte) []byte {
		return tlv(tagSequence, oid(1, 3, 6, 1, 4, 1, 99999, 1), null)
	})
	c.element("a hash algorithm with strange parameters", malformed, "hashAlgorithm", func([]byte) []byte {
		return tlv(tagSequence, oid(1, 3, 14, 3, 2, 26), tlv(tagInteger, []byte{5}))
	})
}

func (c *catalog) times() {
	const why = "RFC 6960 s3.2: not current"
	times := func(name, why string, this, next time.Duration) {
		c.add(name, why, func(r *Response) {
			r.ProducedAt = c.now.Add(min(this, 0))
			r.Singles[0].ThisUpdate = c.now.Add(this)
			r.Singles[0].NextUpdate = c.now.Add(next)
		})
	}
	times("nextUpdate a minute ago", why, -7*day, -time.Minute)
	times("nextUpdate a year ago", why, -372*day, -365*day)
	times("thisUpdate in an hour", why, time.Hour, 7*day)
	times("thisUpdate in a year", why, 365*day, 372*day)
	times("nextUpdate before thisUpdate", why, -time.Minute, -time.Hour)
	times("nextUpdate before a thisUpdate in the future", why, time.Hour, 45*time.Minute)
	c.add("thisUpdate before 1970", why, func(r *Response) {
		r.Singles[0].ThisUpdate = time.Date(1969, 12, 31, 23, 59, 59, 0, time.UTC)
	})
	c.add("producedAt before 1970", why, func(r *Response) { r.ProducedAt = time.Date(1969, 12, 31, 23, 59, 59, 0, time.UTC) })
	c.add("no nextUpdate and thisUpdate a month ago", why, func(r *Response) {
		r.ProducedAt = c.now.Add(-30 * day)
		r.Singles[0].ThisUpdate = r.ProducedAt
		r.Singles[0].NextUpdate = time.Time{}
	})

	const malformed = "RFC 5280 s4.1.2.5.2: GeneralizedTime is in Zulu, with seconds, without a fraction"
	earlier := c.now.UTC().Add(-time.Hour)
	for _, element := range []string{"producedAt", "thisUpdate"} {
		c.element(element+" missing", "RFC 6960 s4.2.1", element, remove)
		for _, t := range []struct{ name, layout string }{
			{"a fraction", "20060102150405.5Z"},
			{"a zero fraction", "20060102150405.0Z"},
			{"an offset", "20060102150405+0000"},
			{"no zone", "20060102150405"},
			{"no seconds", "200601021504Z"},
			{"a small z", "20060102150405z"},
			{"a comma", "20060102150405,5Z"},
			{"a 13th month", "20061302150405Z"},
			{"a 61st second", "20060102150461Z"},
			{"a space", "20060102150405 Z"},
		} {
			c.element(element+" with "+t.name, malformed, element, func([]byte) []byte {
				return tlv(tagGeneralizedTime, []byte(earlier.Format(t.layout)))
			})
		}
		c.element(element+" as UTCTime", malformed, element, func([]byte) []byte {
			return tlv(tagUTCTime, []byte(earlier.Format("060102150405Z")))
		})
	}
	c.element("nextUpdate with a fraction", malformed, "nextUpdate", func([]byte) []byte {
		return tlv(explicit(0), tlv(tagGeneralizedTime, []byte(c.now.UTC().Add(day).Format("20060102150405.5Z"))))
	})
	c.element("nextUpdate empty", malformed, "nextUpdate", func([]byte) []byte { return tlv(explicit(0)) })
}

// unknownExtension returns one that no verifier knows.
func unknownExtension(critical bool) pkix.Extension {
	return pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: critical, Value: null}
}

func (c *catalog) criticalExtensions() {
	const why = "RFC 6960 s4.4: unknown and critical"
	c.add("an unknown critical extension of the response", why, func(r *Response) {
		r.Extensions = []pkix.Extension{unknownExtension(true)}
	})
	c.add("an unknown critical extension of the single response", why, func(r *Response) {
		r.Singles[0].Extensions = []pkix.Extension{unknownExtension(true)}
	})
	const malformed = "RFC 5280 s4.1: not Extensions in DER"
	for _, element := range []string{"responseExtensions", "singleExtensions"} {
		ext := func(parts ...[]byte) []byte {
			parts = append([][]byte{oid(1, 3, 6, 1, 4, 1, 99999, 1)}, parts...)
			return tlv(tagSequence, parts...)
		}
		value := tlv(tagOctetString, null)
		for _, e := range []replacement{
			{"empty", nil},
			{"with a critical flag that is not DER", tlv(tagSequence, ext([]byte{1, 1, 1}, value))},
			{"with the same extension twice", tlv(tagSequence, ext(value), ext(value))},
			{"without a value", tlv(tagSequence, ext())},
			{"without an OID", tlv(tagSequence, tlv(tagSequence, value))},
			{"with trailing bytes", append(tlv(tagSequence, ext(value)), null...)},
			{"with trailing bytes in an extension", tlv(tagSequence, ext(value, null))},
		} {
			c.element(element+" "+e.name, malformed, element, func([]byte) []byte { return tlv(explicit(1), e.der) })
		}
	}
}

func (c *catalog) signatures() {
	const weak = "RFC 6151, RFC 6194: the signature's hash is broken"
	rsaDelegate := c.ca.Delegate(DelegateOptions{Key: c.rsaKey()})
	by := func(name, why string, signer *Signer, algorithm x509.SignatureAlgorithm, identifier []byte) {
		c.add(name, why, func(r *Response) {
			r.Signer = signer
			r.SignatureAlgorithm = algorithm
			if identifier != nil {
				r.Tamper = func(element string, der []byte) []byte {
					if element == "signatureAlgorithm" {
						return identifier
					}
					return der
				}
			}
		})
	}
	by("an RSA signature with SHA-1", weak, rsaDelegate, x509.SHA1WithRSA, nil)
	by("an RSA signature with MD5", weak, rsaDelegate, x509.MD5WithRSA, nil)
	ecDelegate := c.delegate
	by("an ECDSA signature with SHA-1", weak, ecDelegate, x509.ECDSAWithSHA1, nil)
	if algorithm := sha1Algorithm(c.ca.Key); algorithm != 0 {
		by("the issuer's signature with SHA-1", weak, c.ca.Signer(), algorithm, nil)
	}

	const mismatch = "RFC 6960 s3.2 (2): the signature is not of the algorithm that the response names"
	identifier := func(a x509.SignatureAlgorithm) []byte { return signatureAlgorithms[a].identifier }
	by("an RSA signature said to be with SHA-384", mismatch, rsaDelegate, x509.SHA256WithRSA, identifier(x509.SHA384WithRSA))
	by("an RSA signature said to be PSS", mismatch, rsaDelegate, x509.SHA256WithRSA, identifier(x509.SHA256WithRSAPSS))
	by("an RSA signature said to be ECDSA", mismatch, rsaDelegate, x509.SHA256WithRSA, identifier(x509.ECDSAWithSHA256))
	by("an ECDSA signature said to be RSA", mismatch, ecDelegate, x509.ECDSAWithSHA256, identifier(x509.SHA256WithRSA))
	by("an ECDSA signature said to be Ed25519", mismatch, ecDelegate, x509.ECDSAWithSHA256, identifier(x509.PureEd25519))
	by("an ECDSA signature said to be with SHA-384", mismatch, ecDelegate, x509.ECDSAWithSHA256, identifier(x509.ECDSAWithSHA384))

	const parameters = "RFC 4055 s3.1, RFC 5758 s3.2, RFC 8410 s3: the algorithm's parameters"
	strange := tlv(tagInteger, []byte{5})
	by("an RSA signature with strange parameters", parameters, rsaDelegate, x509.SHA256WithRSA,
		tlv(tagSequence, oid(1, 2, 840, 113549, 1, 1, 11), strange))
	by("an ECDSA signature with strange parameters", parameters, ecDelegate, x509.ECDSAWithSHA256,
		tlv(tagSequence, oid(1, 2, 840, 10045, 4, 3, 2), strange))
	by("an Ed25519 signature with NULL parameters", parameters, c.ca.Delegate(DelegateOptions{KeyType: Ed25519}),
		x509.PureEd25519, tlv(tagSequence, oid(1, 3, 101, 112), null))
	pssOID := oid(1, 2, 840, 113549, 1, 1, 10)
	by("a PSS signature without parameters", parameters, rsaDelegate, x509.SHA256WithRSAPSS, tlv(tagSequence, pssOID))
	by("a PSS signature with the default parameters, SHA-1", parameters, rsaDelegate, x509.SHA256WithRSAPSS,
		tlv(tagSequence, pssOID, tlv(tagSequence)))
	by("a PSS signature with MGF1 over another hash", parameters, rsaDelegate, x509.SHA256WithRSAPSS,
		pss(crypto.SHA256, crypto.SHA1, 32))
	by("a PSS signature with another salt length", parameters, rsaDelegate, x509.SHA256WithRSAPSS,
		pss(crypto.SHA256, crypto.SHA256, 20))
	by("a PSS signature with trailing parameters", parameters, rsaDelegate, x509.SHA256WithRSAPSS,
		inside(pss(crypto.SHA256, crypto.SHA256, 32), func(b []byte) []byte { return append(b, null...) }))
	by("an unknown signature algorithm", parameters, ecDelegate, x509.ECDSAWithSHA256,
		tlv(tagSequence, oid(1, 3, 6, 1, 4, 1, 99999, 1)))

	const bad = "RFC 6960 s3.2 (2): not a signature over the response"
	signature := func(name string, replace func(b []byte) []byte) {
		c.element("a signature "+name, bad, "signature", func(der []byte) []byte { return inside(der, replace) })
	}
	signature("that was altered", func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
	signature("that is cut off", func(b []byte) []byte { return b[:len(b)-1] })
	signature("with a trailing byte", func(b []byte) []byte { return append(b, 0) })
	signature("that is empty", func(b []byte) []byte { return b[:1] })
	signature("without a count of unused bits", func(b []byte) []byte { return nil })
	signature("with unused bits", func(b []byte) []byte { b[0] = 1; return b })
	signature("of zeros", func(b []byte) []byte { clear(b); return b })
	c.element("an ECDSA signature of r = s = 0", bad, "signature", func([]byte) []byte {
		zero := tlv(tagInteger, []byte{0})
		return tlv(tagBitString, []byte{0}, tlv(tagSequence, zero, zero))
	})
	c.element("no signature", bad, "signature", remove)
	transplant := func(name string, edit func(*Response)) {
		c.add(name, bad, func(r *Response) {
			var signature []byte
			other := NewResponse(c.ca, c.leaf)
			edit(other)
			other.Tamper = func(element string, der []byte) []byte {
				if element == "signature" {
					signature = der
				}
				return der
			}
			other.DER()
			r.Tamper = func(element string, der []byte) []byte {
				if element == "signature" {
					return signature
				}
				return der
			}
		})
	}
	transplant("the signature of another response", func(r *Response) { r.ProducedAt = c.now.Add(-time.Minute) })
	transplant("revoked turned into good after it was signed", func(r *Response) {
		r.Singles[0].Status, r.Singles[0].RevokedAt = ocsp.Revoked, c.now.Add(-day)
	})
}

func (c *catalog) statuses() {
	const why = "RFC 6960 s4.2.1: an error, or no status at all"
	for _, status := range []ocsp.ResponseStatus{
		ocsp.Malformed, ocsp.InternalError, ocsp.TryLater, ocsp.SignatureRequired, ocsp.Unauthorized,
	} {
		c.raw("error "+status.String(), why, (&Response{Status: status}).DER())
		c.element("error "+status.String()+" with a good response", why, "responseStatus", func([]byte) []byte {
			return tlv(tagEnumerated, []byte{byte(status)})
		})
	}
	for _, e := range []replacement{
		{"responseStatus 4, which is not used", tlv(tagEnumerated, []byte{4})},
		{"responseStatus 7, which is not used", tlv(tagEnumerated, []byte{7})},
		{"responseStatus -1", tlv(tagEnumerated, []byte{0xff})},
		{"responseStatus 256", tlv(tagEnumerated, []byte{1, 0})},
		{"responseStatus not minimal", tlv(tagEnumerated, []byte{0, 0})},
		{"responseStatus empty", tlv(tagEnumerated)},
		{"responseStatus as an INTEGER", tlv(tagInteger, []byte{0})},
		{"responseStatus missing", nil},
	} {
		c.element(e.name, why, "responseStatus", func([]byte) []byte { return e.der })
	}
	c.element("successful without a response", why, "responseBytes", remove)
	c.element("a response of an unknown type", why, "responseType", func([]byte) []byte {
		return oid(1, 3, 6, 1, 5, 5, 7, 48, 1, 99)
	})

	const status = "RFC 6960 s4.2.1: certStatus is one of three choices"
	for _, e := range []replacement{
		{"no certStatus", nil},
		{"two certStatus, good and revoked", append(tlv(implicit(0)), tlv(explicit(1), generalizedTime(c.now))...)},
		{"two certStatus, good and good", append(tlv(implicit(0)), tlv(implicit(0))...)},
		{"a certStatus of a fourth kind", tlv(implicit(3))},
		{"good that is not empty", tlv(implicit(0), []byte{0})},
		{"good that wraps a NULL", tlv(explicit(0), null)},
		{"good as a universal NULL", null},
		{"unknown that is not empty", tlv(implicit(2), []byte{0})},
		{"revoked without a time", tlv(explicit(1))},
		{"revoked at no time", tlv(explicit(1), tlv(tagGeneralizedTime, []byte("yesterday")))},
		{"revoked as a primitive element", tlv(implicit(1), generalizedTime(c.now))},
		{"revoked for an empty reason", tlv(explicit(1), generalizedTime(c.now), tlv(explicit(0)))},
		{"revoked with trailing bytes", tlv(explicit(1), generalizedTime(c.now), null)},
		{"revoked with trailing bytes in its reason", tlv(explicit(1), generalizedTime(c.now), tlv(explicit(0), tlv(tagEnumerated, []byte{1}), null))},
	} {
		c.element(e.name, status, "certStatus", func([]byte) []byte { return e.der })
	}
}

func (c *catalog) malformed() {
	const why = "RFC 6960 s4.2.1: not an OCSP response in DER"
	good := NewResponse(c.ca, c.leaf).DER()
	c.raw("nothing", why, nil)
	c.raw("HTML", why, []byte("<!DOCTYPE html>\n<html><body>Please log in.</body></html>\n"))
	c.raw("zeros", why, make([]byte, len(good)))
	c.raw("a certificate", why, c.ca.Issuer.Raw)
	c.raw("a request", why, must(ocsp.CreateRequest(c.leaf, c.ca.Issuer, nil)))
	c.raw("a response twice", why, slices.Concat(good, good))
	c.raw("a trailing byte", why, append(slices.Clone(good), 0))
	c.raw("the last byte missing", why, good[:len(good)-1])
	c.raw("the second half missing", why, good[:len(good)/2])
	c.raw("the header alone", why, good[:4])
	c.raw("an indefinite length", why, slices.Concat([]byte{tagSequence, 0x80}, content(good), []byte{0, 0}))
	c.raw("a length that is not minimal", why, slices.Concat(
		[]byte{tagSequence, 0x84, 0, 0, byte(len(content(good)) >> 8), byte(len(content(good)))}, content(good)))
	c.raw("a length of four gigabytes", why, slices.Concat([]byte{tagSequence, 0x84, 0xff, 0xff, 0xff, 0xff}, content(good)))
	c.raw("a length of 2^64", why, slices.Concat([]byte{tagSequence, 0x89, 1, 0, 0, 0, 0, 0, 0, 0, 0}, content(good)))
	c.raw("a SET instead of a SEQUENCE", why, slices.Concat([]byte{0x31}, good[1:]))
	c.raw("a tag of the long form", why, slices.Concat([]byte{0x3f, 0x10}, good[1:]))

	const trailing = "RFC 6960 s4.2.1: bytes that belong to nothing"
	more := func(b []byte) []byte { return append(b, null...) }
	for _, element := range []string{
		"ocspResponse", "responseBytes", "response", "basicOCSPResponse", "tbsResponseData", "responderID",
		"producedAt", "responses", "singleResponse", "certID", "hashAlgorithm", "thisUpdate", "nextUpdate",
		"signatureAlgorithm", "certs",
	} {
		c.add("trailing bytes in "+element, trailing, func(r *Response) {
			r.Certificates = []*x509.Certificate{c.ca.Issuer} // so that there are certs
			tamper := func(e string, der []byte) []byte {
				if e == element {
					return inside(der, more)
				}
				return der
			}
			r.Tamper, r.Singles[0].Tamper = tamper, tamper
		})
	}
	c.element("trailing bytes after tbsResponseData", trailing, "tbsResponseData", func(der []byte) []byte {
		return slices.Concat(der, null)
	})
	c.element("tbsResponseData of an indefinite length", why, "tbsResponseData", func(der []byte) []byte {
		return slices.Concat([]byte{tagSequence, 0x80}, content(der), []byte{0, 0})
	})
	c.element("tbsResponseData with a length that is not minimal", why, "tbsResponseData", func(der []byte) []byte {
		n := len(content(der))
		return slices.Concat([]byte{tagSequence, 0x83, 0, byte(n >> 8), byte(n)}, content(der))
	})
	c.element("an OCTET STRING of parts", why, "response", func(der []byte) []byte {
		return tlv(tagOctetString|0x20, der)
	})
	c.element("an empty OCTET STRING", why, "response", func([]byte) []byte { return tlv(tagOctetString) })
	c.element("a certificate that is none", why, "certs", func([]byte) []byte {
		return tlv(explicit(0), tlv(tagSequence, null))
	})

	const version = "RFC 6960 s4.2.1: there is no version but v1"
	for _, e := range []replacement{{"v2", []byte{1}}, {"v3", []byte{2}}, {"-1", []byte{0xff}}} {
		c.element("version "+e.name, version, "version", func([]byte) []byte {
			return tlv(explicit(0), tlv(tagInteger, e.der))
		})
	}
	c.element("version empty", version, "version", func([]byte) []byte { return tlv(explicit(0)) })
	c.element("no responses", why, "responses", remove)
}

func (c *catalog) validSigners() {
	const issuer = "RFC 6960 s4.2.2.2: the issuer signs itself"
	c.signedBy("the issuer, which embeds itself", issuer, c.ca.Signer())
	c.signedBy("the issuer, which embeds itself and its root", issuer, c.ca.Signer(), c.ca.Root)
	c.add("the issuer, which embeds others", issuer, func(r *Response) {
		r.Certificates = []*x509.Certificate{c.other.Issuer, c.delegate.Certificate}
	})
	c.add("the issuer by name", issuer, func(r *Response) { r.ByName = true })

	const delegate = "RFC 6960 s4.2.2.2: a delegate that the issuer named, wherever its certificate stands"
	embed := func(name string, byName bool, certs ...*x509.Certificate) {
		c.add(name, delegate, func(r *Response) {
			r.Signer, r.Certificates, r.ByName = c.delegate, certs, byName
		})
	}
	embed("a delegate by key", false, c.delegate.Certificate)
	embed("a delegate by name", true, c.delegate.Certificate)
	embed("issuer, delegate", false, c.ca.Issuer, c.delegate.Certificate)
	embed("issuer, delegate, by name", true, c.ca.Issuer, c.delegate.Certificate)
	embed("delegate, issuer, root", false, c.delegate.Certificate, c.ca.Issuer, c.ca.Root)
	another := c.ca.Delegate(DelegateOptions{}).Certificate
	embed("another delegate of the same name, delegate", false, another, c.delegate.Certificate)
	embed("another delegate of the same name, delegate, by name", true, another, c.delegate.Certificate)
	embed("delegate twice", false, c.delegate.Certificate, c.delegate.Certificate)
	stranger := c.other.Delegate(DelegateOptions{}).Certificate
	embed("another CA, its delegate, delegate", false, c.other.Issuer, stranger, c.delegate.Certificate)
	expired := c.ca.Delegate(DelegateOptions{Key: c.delegate.Key, NotBefore: c.now.Add(-30 * day), NotAfter: c.now.Add(-day)})
	embed("an expired certificate of the delegate, its current one", false, expired.Certificate, c.delegate.Certificate)
	const unsigned = "RFC 6960 s4.2.1: nobody signs the list of certificates, so that anybody can add to it"
	embedRaw := func(name string, certs ...[]byte) {
		c.element(name, unsigned, "certs", func([]byte) []byte { return tlv(explicit(0), tlv(tagSequence, certs...)) })
	}
	noCertificate := hashAlgorithms[crypto.SHA1]
	embedRaw("the issuer, an empty list of certificates")
	embedRaw("the issuer, what is no certificate", noCertificate)
	delegated := func(name string, certs ...*x509.Certificate) {
		c.add(name, unsigned, func(r *Response) { r.Signer, r.Certificates = c.delegate, certs })
	}
	delegated("what is no certificate, delegate", &x509.Certificate{Raw: noCertificate}, c.delegate.Certificate)
	delegated("delegate, what is no certificate", c.delegate.Certificate, &x509.Certificate{Raw: noCertificate})
	delegated("a delegate's certificate with bytes after its signature", &x509.Certificate{
		Raw: inside(c.delegate.Certificate.Raw, func(b []byte) []byte { return append(b, null...) }),
	})
	var nine []*x509.Certificate
	for _, name := range strings.Fields("one two three four five six seven eight nine") {
		nine = append(nine, c.other.Delegate(DelegateOptions{CommonName: name, Key: c.other.Key}).Certificate)
	}
	delegated("nine strangers, delegate", append(nine, c.delegate.Certificate)...)
	namesake := func(t *x509.Certificate) { t.RawSubject = c.ca.Issuer.RawSubject }
	c.signedBy("a delegate in the name of the issuer, by key", delegate, c.ca.Delegate(DelegateOptions{Template: namesake}))
	for _, t := range []KeyType{ECDSAP384, ECDSAP521, Ed25519} {
		c.signedBy("a delegate with "+t.String(), delegate, c.ca.Delegate(DelegateOptions{KeyType: t}))
	}
	c.signedBy("a delegate with further purposes", delegate, c.ca.Delegate(DelegateOptions{
		Template: func(t *x509.Certificate) {
			t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageOCSPSigning}
			t.KeyUsage |= x509.KeyUsageContentCommitment
		},
	}))
	c.signedBy("a delegate that expires before nextUpdate", delegate, c.ca.Delegate(DelegateOptions{
		NotAfter: c.now.Add(2 * day),
	}))
	renewed := c.ca.Delegate(DelegateOptions{NotBefore: c.now.Add(-time.Minute)})
	c.add("a delegate whose certificate is younger than thisUpdate", delegate, func(r *Response) {
		r.Signer = renewed
		r.Singles[0].ThisUpdate = c.now.Add(-day)
	})
}

func (c *catalog) validSignatures() {
	const why = "RFC 6960 s4.3: an algorithm that is sound"
	by := func(name string, signer *Signer, algorithm x509.SignatureAlgorithm) {
		c.add(name, why, func(r *Response) { r.Signer, r.SignatureAlgorithm = signer, algorithm })
	}
	rsaAlgorithms := []x509.SignatureAlgorithm{
		x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
	}
	ecAlgorithms := []x509.SignatureAlgorithm{x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512}
	rsaDelegate := c.ca.Delegate(DelegateOptions{Key: c.rsaKey()})
	for _, a := range rsaAlgorithms {
		by("a delegate's "+a.String(), rsaDelegate, a)
	}
	for _, a := range ecAlgorithms {
		by("a delegate's "+a.String(), c.delegate, a)
	}
	switch defaultAlgorithm(c.ca.Key.Public()) {
	case x509.SHA256WithRSA:
		for _, a := range rsaAlgorithms {
			by("the issuer's "+a.String(), c.ca.Signer(), a)
		}
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
		for _, a := range ecAlgorithms {
			by("the issuer's "+a.String(), c.ca.Signer(), a)
		}
	}
}

func (c *catalog) validContents() {
	const certID = "RFC 6960 s4.1.1: the CertID's hash algorithm is a matter of its own"
	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		c.add("a CertID with "+hash.String(), certID, func(r *Response) { r.Singles[0].Hash = hash })
	}
	c.element("a CertID whose hash has no parameters", "RFC 4055 s2.1: NULL or absent", "hashAlgorithm",
		func([]byte) []byte { return tlv(tagSequence, oid(1, 3, 14, 3, 2, 26)) })

	const several = "RFC 6960 s4.2.1: one among several"
	otherSerial := new(big.Int).Add(c.leaf.SerialNumber, big.NewInt(1))
	singles := func(name, why string, status int, edit func(own Single) []Single) {
		c.add(name, why, func(r *Response) { r.Singles = edit(r.Singles[0]) })
		c.cases[len(c.cases)-1].Status = status
	}
	singles("another serial number revoked, then ours good", several, ocsp.Good, func(own Single) []Single {
		other := own
		other.Serial, other.Status, other.RevokedAt = otherSerial, ocsp.Revoked, c.now.Add(-day)
		return []Single{other, own}
	})
	singles("ours good, then another that is out of date", several, ocsp.Good, func(own Single) []Single {
		other := own
		other.Serial, other.ThisUpdate, other.NextUpdate = otherSerial, c.now.Add(-30*day), c.now.Add(-20*day)
		return []Single{own, other}
	})
	singles("our serial number at another CA good, then ours revoked", several, ocsp.Revoked, func(own Single) []Single {
		other := own
		other.Issuer = c.other.Issuer
		own.Status, own.RevokedAt = ocsp.Revoked, c.now.Add(-day)
		return []Single{other, own}
	})
	singles("our serial number at another CA revoked, then ours good", several, ocsp.Good, func(own Single) []Single {
		other := own
		other.Issuer, other.Status, other.RevokedAt = c.other.Issuer, ocsp.Revoked, c.now.Add(-day)
		return []Single{other, own}
	})
	singles("ours with SHA-1 and with SHA-256", several, ocsp.Good, func(own Single) []Single {
		other := own
		other.Hash = crypto.SHA256
		return []Single{own, other}
	})
	singles("a hundred others before ours", several, ocsp.Good, func(own Single) []Single {
		var all []Single
		for i := range int64(100) {
			other := own
			other.Serial = new(big.Int).Add(otherSerial, big.NewInt(i))
			all = append(all, other)
		}
		return append(all, own)
	})

	const status = "RFC 6960 s4.2.1"
	single := func(name, why string, status int, edit func(own *Single)) {
		singles(name, why, status, func(own Single) []Single { edit(&own); return []Single{own} })
	}
	single("revoked without a reason", status, ocsp.Revoked, func(s *Single) {
		s.Status, s.RevokedAt = ocsp.Revoked, c.now.Add(-day)
	})
	single("revoked for a reason", status, ocsp.Revoked, func(s *Single) {
		s.Status, s.RevokedAt, s.Reason = ocsp.Revoked, c.now.Add(-day), ocsp.KeyCompromise
	})
	single("on hold", status, ocsp.Revoked, func(s *Single) {
		s.Status, s.RevokedAt, s.Reason = ocsp.Revoked, c.now.Add(-day), ocsp.CertificateHold
	})
	single("unknown", status, ocsp.Unknown, func(s *Single) { s.Status = ocsp.Unknown })

	const current = "RFC 6960 s2.4, s4.2.2.1: current"
	single("no nextUpdate", current, ocsp.Good, func(s *Single) { s.NextUpdate = time.Time{} })
	single("nextUpdate in two hours", current, ocsp.Good, func(s *Single) {
		s.ThisUpdate, s.NextUpdate = c.now.Add(-7*day), c.now.Add(2*time.Hour)
	})
	single("nextUpdate after the leaf expires", current, ocsp.Good, func(s *Single) {
		s.NextUpdate = c.leaf.NotAfter.Add(day)
	})
	c.add("producedAt in an hour", "RFC 6960 s3.2 asks nothing of it", func(r *Response) { r.ProducedAt = c.now.Add(time.Hour) })
	c.add("produced days after thisUpdate", current, func(r *Response) { r.Singles[0].ThisUpdate = c.now.Add(-3 * day) })

	const harmless = "RFC 6960 s4.4: unknown and not critical"
	c.add("an unknown extension of the response", harmless, func(r *Response) {
		r.Extensions = []pkix.Extension{unknownExtension(false)}
	})
	c.add("a nonce that nobody asked for", harmless, func(r *Response) {
		r.Extensions = []pkix.Extension{{
			Id:    asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2},
			Value: tlv(tagOctetString, make([]byte, 32)),
		}}
	})
	single("an unknown extension of the single response", harmless, ocsp.Good, func(s *Single) {
		s.Extensions = []pkix.Extension{unknownExtension(false)}
	})
	c.add("several extensions", harmless, func(r *Response) {
		second := unknownExtension(false)
		second.Id = append(slices.Clone(second.Id), 1)
		r.Extensions = []pkix.Extension{unknownExtension(false), second}
		r.Singles[0].Extensions = r.Extensions
	})
	for _, element := range []string{"responseExtensions", "singleExtensions"} {
		c.element(element+" without one", "RFC 5280 s4.1 wants one or more, but HashiCorp Vault sends none", element,
			func([]byte) []byte { return tlv(explicit(1), tlv(tagSequence)) })
	}
}

// makeCA turns a template into that of a CA.
func makeCA(t *x509.Certificate) {
	t.IsCA = true
	t.KeyUsage |= x509.KeyUsageCertSign
}

// lookalike returns a signer that has all of cert but its key, with which it is signed itself.
func (c *catalog) lookalike(cert *x509.Certificate) *Signer {
	key := generate(ECDSAP256, c.ca.Key)
	template := *cert
	template.SignatureAlgorithm = 0
	parent := &x509.Certificate{RawSubject: cert.RawIssuer, SubjectKeyId: cert.AuthorityKeyId}
	return &Signer{Certificate: create(&template, parent, key.Public(), key, 0), Key: key}
}

// sha1Algorithm returns zero for a key that does not sign with SHA-1.
func sha1Algorithm(key crypto.Signer) x509.SignatureAlgorithm {
	switch defaultAlgorithm(key.Public()) {
	case x509.SHA256WithRSA:
		return x509.SHA1WithRSA
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
		return x509.ECDSAWithSHA1
	}
	return 0
}

// content returns what is inside of the element der.
func content(der []byte) []byte {
	var v asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &v); err != nil || len(rest) > 0 {
		panic("stapletest: not one element")
	}
	return v.Bytes
}

// inside replaces the content of the element der.
func inside(der []byte, replace func(content []byte) []byte) []byte {
	return tlv(der[0], replace(slices.Clone(content(der))))
}

func remove([]byte) []byte { return nil }
