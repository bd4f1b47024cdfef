package scene

// Reasons returns the text of the staple.Reason for each of stapletest.Forgeries that is not malformed, by its name.
func Reasons() map[string]string {
	all := map[string]string{}
	for reason, names := range reasons {
		for _, name := range names {
			all[name] = reason
		}
	}
	return all
}

var reasons = map[string][]string{
	"unsuccessful": {
		"error malformed", "error internal error", "error try later", "error signature required", "error unauthorized",
	},
	"bad signature": {
		"signed by a sibling leaf in the name of the issuer",
		"signed by a sibling leaf beside a delegate's certificate",
		"signed by a stranger beside a delegate's certificate",
		"signed by a stranger beside the issuer's certificate",
		"another CA of the same name, by name",
		"responderID of a delegate, signed by the issuer by key",
		"responderID of a delegate, signed by the issuer by name",
		"responderID of the issuer, signed by a delegate by key",
		"responderID of the issuer, signed by a delegate by name",
		"an RSA signature said to be with SHA-384",
		"an RSA signature said to be PSS",
		"an RSA signature said to be ECDSA",
		"an ECDSA signature said to be RSA",
		"an ECDSA signature said to be Ed25519",
		"an ECDSA signature said to be with SHA-384",
		"a signature that was altered",
		"a signature that is cut off",
		"a signature with a trailing byte",
		"a signature that is empty",
		"a signature of zeros",
		"an ECDSA signature of r = s = 0",
		"the signature of another response",
		"revoked turned into good after it was signed",
	},
	"unauthorized signer": {
		"signed by a sibling leaf",
		"a delegate without extended key usage",
		"a delegate with anyExtendedKeyUsage alone",
		"a delegate for servers",
		"a delegate whose key usage lacks digitalSignature",
		"a delegate with an unknown critical extension",
		"a delegate of another CA",
		"a delegate of another CA of the same name",
		"a delegate of another CA of the same name, which is embedded",
		"another CA",
		"another CA of the same name",
		"another CA of the same name, not embedded",
		"a look-alike of the issuer, signed by itself",
		"a look-alike of a delegate, signed by itself",
		"a look-alike of a delegate, beside the genuine one",
		"a grandchild delegate",
		"a delegate of a delegate",
		"the root instead of the intermediate",
		"a delegate of the root",
		"a delegate that is not embedded",
		"a delegate whose certificate was altered",
		"responderID of another CA by key",
		"responderID of another CA by name",
		"responderID with an empty name",
	},
	"wrong certificate": {
		"another serial number",
		"the serial number negated",
		"a serial number that is longer by a byte",
		"a huge serial number",
		"serial number zero",
		"issuerNameHash of another CA with SHA-1",
		"issuerNameHash of another CA with SHA-256",
		"issuerKeyHash of another CA with SHA-1",
		"issuerKeyHash of another CA with SHA-256",
		"another CA's CertID with the right serial number with SHA-1",
		"another CA's CertID with the right serial number with SHA-256",
		"the CertID of another CA of the same name",
		"SHA-1 hashes said to be SHA-256",
		"empty hashes",
		"hashes that are cut off",
		"no single response",
		"single responses about others alone",
	},
	"not yet valid": {
		"a delegate that is not valid yet",
		"thisUpdate in an hour",
		"thisUpdate in a year",
		"nextUpdate before a thisUpdate in the future",
	},
	"expired": {
		"a delegate that has expired",
		"a delegate that expired after it signed",
		"nextUpdate a minute ago",
		"nextUpdate a year ago",
		"no nextUpdate and thisUpdate a month ago",
	},
	"unsupported algorithm": {
		"a delegate whose certificate is signed with SHA-1",
		"a CertID with MD5",
		"an unknown hash algorithm",
		"an RSA signature with SHA-1",
		"an RSA signature with MD5",
		"an ECDSA signature with SHA-1",
		"the issuer's signature with SHA-1",
		"a PSS signature with the default parameters, SHA-1",
		"a PSS signature with MGF1 over another hash",
		"a PSS signature with another salt length",
		"an unknown signature algorithm",
	},
}
