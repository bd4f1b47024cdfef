package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/bench/internal/table"
	"github.com/go-staple/staple/stapletest"
)

// A verification is one row of the table: a response, and what it is to be judged for.
type verification struct {
	name         string
	response     []byte
	leaf, issuer *x509.Certificate
	now          time.Time
}

// verifications returns the rows: keys of two kinds, direct and delegated responses of each, trimmed and not.
func verifications() []verification {
	var all []verification
	for _, k := range []struct {
		name string
		kind stapletest.KeyType
	}{{"P-256", stapletest.ECDSAP256}, {"RSA-2048", stapletest.RSA2048}} {
		ca := stapletest.NewCA(stapletest.CAOptions{KeyType: k.kind, Intermediate: true})
		v := verification{leaf: ca.Leaf(stapletest.LeafOptions{}).Leaf, issuer: ca.Issuer, now: time.Now()}
		r := stapletest.NewResponse(ca, v.leaf)
		v.name, v.response = k.name+", direct", r.DER()
		all = append(all, v)
		r.Signer = ca.Delegate(stapletest.DelegateOptions{KeyType: k.kind})
		v.name, v.response = k.name+", delegated", r.DER()
		all = append(all, v)
		r.Certificates = []*x509.Certificate{r.Signer.Certificate, ca.Issuer, ca.Root}
		v.name, v.response = k.name+", delegated, with its chain", r.DER()
		all = append(all, v)
	}
	return all
}

// contenders returns the columns, the first of which is what the others are compared with. Cold is a
// verifier that has seen no delegate yet, warm one that has seen this.
func (v verification) contenders() ([]contender, error) {
	r, err := ocsp.ParseResponseForCert(v.response, v.leaf, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.name, err)
	}
	bare := func() error {
		if r.Certificate == nil {
			return r.CheckSignatureFrom(v.issuer)
		}
		return errors.Join(r.CheckSignatureFrom(r.Certificate), v.issuer.CheckSignature(
			r.Certificate.SignatureAlgorithm, r.Certificate.RawTBSCertificate, r.Certificate.Signature))
	}
	verify := func(verifier *staple.ResponseVerifier) error {
		_, _, err := verifier.Verify(v.response, v.leaf, v.issuer, v.now)
		return err
	}
	warm := new(staple.ResponseVerifier)
	return []contender{
		{"bare signature checks", bare},
		{"x/crypto/ocsp and checks", v.careful},
		{"Verify, cold", func() error { return verify(new(staple.ResponseVerifier)) }},
		{"Verify, warm", func() error { return verify(warm) }},
	}, nil
}

// careful judges the response with x/crypto/ocsp and the checks of the signer and the time that this leaves
// to its caller, as far as its result allows them.
func (v verification) careful() error {
	const skew = 5 * time.Minute
	r, err := ocsp.ParseResponseForCert(v.response, v.leaf, v.issuer)
	if err != nil {
		return err
	}
	if c := r.Certificate; c != nil && !c.Equal(v.issuer) {
		switch {
		case !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning):
			return errors.New("the signer lacks the extended key usage OCSPSigning")
		case v.now.Before(c.NotBefore), v.now.After(c.NotAfter):
			return errors.New("the signer is not valid now")
		}
	}
	switch {
	case r.ThisUpdate.After(v.now.Add(skew)):
		return errors.New("the response is not valid yet")
	case r.NextUpdate.IsZero(), !v.now.Before(r.NextUpdate):
		return errors.New("the response has expired")
	}
	return nil
}

func verifyTable(w io.Writer, _ int) error {
	var rows [][]string
	for _, v := range verifications() {
		contenders, err := v.contenders()
		if err != nil {
			return err
		}
		results, err := measure(rounds, contenders)
		if err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
		heading, row := []string{"response"}, []string{v.name}
		for i, r := range results {
			cell := fmt.Sprintf("%.1f µs, %d allocs", nsPerCall(r)/1e3, r.AllocsPerOp())
			if i > 0 {
				cell += fmt.Sprintf(", %.2f×", nsPerCall(r)/nsPerCall(results[0]))
			}
			heading, row = append(heading, contenders[i].name), append(row, cell)
		}
		if rows == nil {
			rows = append(rows, heading)
		}
		rows = append(rows, row)
	}
	table.Print(w, rows)
	return nil
}
