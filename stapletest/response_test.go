package stapletest_test

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/stapletest"
)

func TestResponseIsReadByXCrypto(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
	leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
	delegate := ca.Delegate(stapletest.DelegateOptions{})
	now := time.Now().UTC().Truncate(time.Second)
	ext := pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0}}

	t.Run("the response of NewResponse", func(t *testing.T) {
		der := stapletest.NewResponse(ca, leaf).DER()
		r, err := ocsp.ParseResponseForCert(der, leaf, ca.Issuer)
		require.NoError(t, err)
		require.Equal(t, der, r.Raw)
		require.Equal(t, ocsp.Good, r.Status)
		require.Equal(t, leaf.SerialNumber, r.SerialNumber)
		require.Equal(t, crypto.SHA1, r.IssuerHash)
		require.WithinDuration(t, now, r.ThisUpdate, 2*time.Second)
		require.Equal(t, r.ThisUpdate, r.ProducedAt)
		require.Equal(t, 7*24*time.Hour, r.NextUpdate.Sub(r.ThisUpdate))
		require.Nil(t, r.Certificate)
		require.Len(t, r.ResponderKeyHash, 20)
		require.Equal(t, x509.ECDSAWithSHA256, r.SignatureAlgorithm)
	})
	t.Run("every field", func(t *testing.T) {
		r, err := ocsp.ParseResponseForCert((&stapletest.Response{
			Signer:             delegate,
			SignatureAlgorithm: x509.ECDSAWithSHA384,
			ByName:             true,
			ProducedAt:         now.Add(-time.Minute),
			Extensions:         []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 4}, Value: []byte{5, 0}}},
			Singles: []stapletest.Single{{
				Leaf: leaf, Issuer: ca.Issuer, Hash: crypto.SHA384,
				Status: ocsp.Revoked, RevokedAt: now.Add(-time.Hour), Reason: ocsp.KeyCompromise,
				ThisUpdate: now.Add(-2 * time.Minute), NextUpdate: now.Add(time.Hour),
				Extensions: []pkix.Extension{ext},
			}},
		}).DER(), leaf, ca.Issuer)
		require.NoError(t, err)
		require.Equal(t, ocsp.Revoked, r.Status)
		require.Equal(t, now.Add(-time.Hour), r.RevokedAt)
		require.Equal(t, ocsp.KeyCompromise, r.RevocationReason)
		require.Equal(t, crypto.SHA384, r.IssuerHash)
		require.Equal(t, now.Add(-time.Minute), r.ProducedAt)
		require.Equal(t, now.Add(-2*time.Minute), r.ThisUpdate)
		require.Equal(t, now.Add(time.Hour), r.NextUpdate)
		require.Equal(t, delegate.Certificate.Raw, r.Certificate.Raw)
		require.Equal(t, delegate.Certificate.RawSubject, r.RawResponderName)
		require.Equal(t, x509.ECDSAWithSHA384, r.SignatureAlgorithm)
		require.Equal(t, []pkix.Extension{ext}, r.Extensions)
	})
	t.Run("unknown, without nextUpdate", func(t *testing.T) {
		resp := stapletest.NewResponse(ca, leaf)
		resp.Singles[0].Status = ocsp.Unknown
		resp.Singles[0].NextUpdate = time.Time{}
		r, err := ocsp.ParseResponseForCert(resp.DER(), leaf, ca.Issuer)
		require.NoError(t, err)
		require.Equal(t, ocsp.Unknown, r.Status)
		require.Zero(t, r.NextUpdate)
	})
	t.Run("an error", func(t *testing.T) {
		_, err := ocsp.ParseResponse((&stapletest.Response{Status: ocsp.TryLater}).DER(), nil)
		require.Equal(t, ocsp.ResponseError{Status: ocsp.TryLater}, err)
		require.Equal(t, ocsp.TryLaterErrorResponse, (&stapletest.Response{Status: ocsp.TryLater}).DER())
	})
	t.Run("signed by a leaf with the certificates left out", func(t *testing.T) {
		sibling := ca.Leaf(stapletest.LeafOptions{})
		resp := stapletest.NewResponse(ca, leaf)
		resp.Signer = &stapletest.Signer{Certificate: sibling.Leaf, Key: sibling.PrivateKey.(crypto.Signer)}
		resp.Certificates = []*x509.Certificate{}
		r, err := ocsp.ParseResponse(resp.DER(), nil)
		require.NoError(t, err)
		require.Nil(t, r.Certificate)
		require.NoError(t, sibling.Leaf.CheckSignature(r.SignatureAlgorithm, r.TBSResponseData, r.Signature))
	})
}

func TestSignatureAlgorithms(t *testing.T) {
	rsaCA := stapletest.NewCA(stapletest.CAOptions{KeyType: stapletest.RSA2048})
	algorithms := map[stapletest.KeyType][]x509.SignatureAlgorithm{
		stapletest.ECDSAP256: {0, x509.ECDSAWithSHA1, x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512},
		stapletest.ECDSAP384: {0}, stapletest.ECDSAP521: {0},
		stapletest.RSA2048: {0, x509.MD5WithRSA, x509.SHA1WithRSA, x509.SHA256WithRSA, x509.SHA384WithRSA,
			x509.SHA512WithRSA, x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS},
		stapletest.Ed25519: {0, x509.PureEd25519},
	}
	defaults := map[stapletest.KeyType]x509.SignatureAlgorithm{
		stapletest.ECDSAP256: x509.ECDSAWithSHA256, stapletest.ECDSAP384: x509.ECDSAWithSHA384,
		stapletest.ECDSAP521: x509.ECDSAWithSHA512, stapletest.RSA2048: x509.SHA256WithRSA,
		stapletest.Ed25519: x509.PureEd25519,
	}
	for keyType, list := range algorithms {
		delegate := rsaCA.Delegate(stapletest.DelegateOptions{KeyType: keyType})
		for _, algorithm := range list {
			t.Run(keyType.String()+" "+algorithm.String(), func(t *testing.T) {
				var tbs, identifier, signature []byte
				resp := stapletest.NewResponse(rsaCA, rsaCA.Issuer)
				resp.Signer, resp.SignatureAlgorithm = delegate, algorithm
				resp.Tamper = func(element string, der []byte) []byte {
					switch element {
					case "tbsResponseData":
						tbs = der
					case "signatureAlgorithm":
						identifier = der
					case "signature":
						var bits asn1.BitString
						_, err := asn1.Unmarshal(der, &bits)
						require.NoError(t, err)
						signature = bits.Bytes
					}
					return der
				}
				resp.DER()
				if algorithm == 0 {
					algorithm = defaults[keyType]
				}
				err := delegate.Certificate.CheckSignature(algorithm, tbs, signature)
				if algorithm == x509.MD5WithRSA {
					require.ErrorAs(t, err, new(x509.InsecureAlgorithmError))
					return
				}
				require.NoError(t, err)

				// crypto/x509 names the algorithm alike in a certificate that it signs with it.
				signer := &stapletest.CA{Issuer: delegate.Certificate, Key: delegate.Key, SignatureAlgorithm: algorithm}
				c := signer.Leaf(stapletest.LeafOptions{})
				var parts struct{ TBS, Algorithm, Signature asn1.RawValue }
				_, err = asn1.Unmarshal(c.Leaf.Raw, &parts)
				require.NoError(t, err)
				require.Equal(t, parts.Algorithm.FullBytes, identifier)
			})
		}
	}
}

func TestTamperSeesEachElementOnce(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	resp := stapletest.NewResponse(ca, ca.Leaf(stapletest.LeafOptions{}).Leaf)
	want := resp.Singles[0]
	var elements []string
	see := func(element string, der []byte) []byte {
		elements = append(elements, element)
		if len(der) > 0 {
			var v asn1.RawValue
			rest, err := asn1.Unmarshal(der, &v)
			require.NoError(t, err, element)
			require.Empty(t, rest, element)
			for i := range der {
				der[i] = 0xff // what it is given belongs to it
			}
		}
		return nil
	}
	resp.Tamper, resp.Singles[0].Tamper = see, see
	require.Empty(t, resp.DER())
	require.Equal(t, []string{"version", "responderID", "producedAt",
		"hashAlgorithm", "issuerNameHash", "issuerKeyHash", "serialNumber", "certID", "certStatus", "thisUpdate",
		"nextUpdate", "singleExtensions", "singleResponse", "responses", "responseExtensions", "tbsResponseData",
		"signatureAlgorithm", "signature", "certs", "basicOCSPResponse", "responseType", "response", "responseBytes",
		"responseStatus", "ocspResponse"}, elements)

	resp.Tamper, resp.Singles[0].Tamper = nil, nil
	_, err := ocsp.ParseResponseForCert(resp.DER(), want.Leaf, ca.Issuer)
	require.NoError(t, err)
}

func TestLongElementsAreReadBack(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
	for _, n := range []int{0, 1, 100, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x10000, 0x1000000} {
		resp := stapletest.NewResponse(ca, leaf)
		resp.Singles[0].Extensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, n)}}
		r, err := ocsp.ParseResponseForCert(resp.DER(), leaf, ca.Issuer)
		require.NoError(t, err, n)
		require.Len(t, r.Extensions[0].Value, n)
	}
}

func TestImpossibleResponsePanics(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
	for name, edit := range map[string]func(*stapletest.Response){
		"no signer":                 func(r *stapletest.Response) { r.Signer = nil },
		"no serial number":          func(r *stapletest.Response) { r.Singles[0].Leaf = nil },
		"no such hash":              func(r *stapletest.Response) { r.Singles[0].Hash = crypto.SHA3_256 },
		"no such status":            func(r *stapletest.Response) { r.Singles[0].Status = 9 },
		"not the key's algorithm":   func(r *stapletest.Response) { r.SignatureAlgorithm = x509.PureEd25519 },
		"no algorithm of this kind": func(r *stapletest.Response) { r.SignatureAlgorithm = x509.DSAWithSHA256 },
	} {
		resp := stapletest.NewResponse(ca, leaf)
		edit(resp)
		require.Panics(t, func() { resp.DER() }, name)
	}
}

func TestOpenSSLAcceptsOddities(t *testing.T) {
	openssl := peer.Need(t, "openssl")
	declines := map[string]string{ // to verify, not to read
		"another delegate of the same name, delegate, by name":    "it takes the first of that name",
		"an expired certificate of the delegate, its current one": "it takes the first with that key",
		"our serial number at another CA good, then ours revoked": "it wants one issuer in a response",
		"our serial number at another CA revoked, then ours good": "it wants one issuer in a response",
		"a delegate in the name of the issuer, by key":            "it may take it for self-signed",
	}
	unreadable := []string{ // to it, until staple has trimmed them: see contrib/verifiers
		"the issuer, what is no certificate",
		"what is no certificate, delegate",
		"delegate, what is no certificate",
		"a delegate's certificate with bytes after its signature",
	}
	words := map[int]string{ocsp.Good: "good", ocsp.Revoked: "revoked", ocsp.Unknown: "unknown"}
	for _, keyType := range []stapletest.KeyType{stapletest.ECDSAP256, stapletest.RSA2048} {
		dir := t.TempDir()
		file := func(name string, data []byte) string {
			name = filepath.Join(dir, name)
			require.NoError(t, os.WriteFile(name, data, 0o600))
			return name
		}
		cert := func(name string, c *x509.Certificate) string {
			return file(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
		}
		ca := stapletest.NewCA(stapletest.CAOptions{KeyType: keyType})
		leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
		caFile, leafFile := cert("ca.pem", ca.Root), cert("leaf.pem", leaf)
		for _, c := range stapletest.Oddities(ca, leaf) {
			t.Run(keyType.String()+" "+c.Name, func(t *testing.T) {
				if slices.Contains(unreadable, c.Name) {
					out, err := exec.Command(openssl, "ocsp", "-respin", file("response.der", c.DER), "-noverify").CombinedOutput()
					require.Error(t, err)
					require.Contains(t, string(out), "Error parsing response")
					return
				}
				if declines[c.Name] != "" {
					out, err := exec.Command(openssl, "ocsp", "-respin", file("response.der", c.DER), "-noverify").CombinedOutput()
					require.NoError(t, err, "%s", out)
					return
				}
				args := []string{"ocsp", "-respin", file("response.der", c.DER), "-no_nonce", "-CAfile", caFile, "-issuer", caFile}
				if hash, ok := strings.CutPrefix(c.Name, "a CertID with SHA-"); ok {
					args = append(args, "-sha"+hash)
				}
				out, err := exec.Command(openssl, append(args, "-cert", leafFile)...).CombinedOutput()
				require.NoError(t, err, "%s", out)
				require.Contains(t, string(out), "Response verify OK")
				require.Contains(t, string(out), "leaf.pem: "+words[c.Status])
			})
		}
	}
}
