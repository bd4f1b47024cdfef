package stapletest_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple/stapletest"
)

// A responder over HTTP, and a certificate that names it. After the second request the certificate is
// revoked.
func Example() {
	ca := stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
	responder := stapletest.NewResponder(ca)
	server := httptest.NewServer(responder)
	defer server.Close()
	cert := ca.Leaf(stapletest.LeafOptions{
		Names:      []string{"www.example.com"},
		Responders: []string{server.URL},
	})

	ask := func() {
		request, err := ocsp.CreateRequest(cert.Leaf, ca.Issuer, nil)
		if err != nil {
			panic(err)
		}
		resp, err := http.Post(cert.Leaf.OCSPServer[0], "application/ocsp-request", bytes.NewReader(request))
		if err != nil {
			panic(err)
		}
		defer resp.Body.Close()
		der, err := io.ReadAll(resp.Body)
		if err != nil {
			panic(err)
		}
		switch r, err := ocsp.ParseResponseForCert(der, cert.Leaf, ca.Issuer); {
		case err != nil:
			fmt.Println(err)
		case r.Status == ocsp.Good:
			fmt.Println("good for", r.NextUpdate.Sub(r.ThisUpdate))
		case r.Status == ocsp.Revoked:
			fmt.Println("revoked")
		}
	}

	ask()
	responder.Set(cert.Leaf, stapletest.Answer{Error: ocsp.TryLater})
	ask()
	responder.Set(cert.Leaf, stapletest.Answer{
		Status: ocsp.Revoked,
		Signer: ca.Delegate(stapletest.DelegateOptions{}),
	})
	ask()
	fmt.Println(len(responder.Requests(cert.Leaf)), "requests")
	// Output:
	// good for 168h0m0s
	// ocsp: error from server: try later
	// revoked
	// 3 requests
}

// A verifier of one's own is run against both lists.
func ExampleForgeries() {
	ca := stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
	leaf := ca.Leaf(stapletest.LeafOptions{}).Leaf
	verify := func(response []byte) error { // not enough
		_, err := ocsp.ParseResponseForCert(response, leaf, ca.Issuer)
		return err
	}

	for _, c := range stapletest.Forgeries(ca, leaf)[:1] {
		if verify(c.DER) == nil {
			fmt.Println("accepts", c.Name)
		}
	}
	for _, c := range stapletest.Oddities(ca, leaf)[:1] {
		if verify(c.DER) != nil {
			fmt.Println("refuses", c.Name)
		}
	}
	// Output:
	// accepts signed by a sibling leaf
	// refuses the issuer, which embeds itself
}
