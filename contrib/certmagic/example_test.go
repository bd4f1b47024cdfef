package staplecertmagic_test

import (
	"context"
	"crypto/x509"
	"log"
	"net/http"

	"github.com/caddyserver/certmagic"

	"github.com/go-staple/staple"
)

func Example() {
	magic := certmagic.NewDefault()
	magic.OCSP.DisableStapling = true
	if err := magic.ManageSync(context.Background(), []string{"www.example.com"}); err != nil {
		log.Fatal(err)
	}
	stapler := staple.Stapler{Cache: staple.DirCache("/var/cache/myserver/ocsp")}
	defer stapler.Close()

	config := magic.TLSConfig()
	config.NextProtos = append([]string{"h2", "http/1.1"}, config.NextProtos...)
	server := &http.Server{Addr: ":443", TLSConfig: stapler.TLSConfig(config)}
	log.Print(server.ListenAndServeTLS("", "")) // no file names: they would bypass the staple
}

// Replace has CertMagic replace a certificate that is revoked.
func Example_revoked() {
	var magic *certmagic.Config
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return magic, nil },
	})
	magic = certmagic.New(cache, certmagic.Config{OCSP: certmagic.OCSPConfig{DisableStapling: true}})

	replace := func(ctx context.Context, leaf *x509.Certificate) error {
		for _, old := range cache.AllMatchingCertificates(leaf.DNSNames[0]) { // among them those with a wildcard
			if !old.Leaf.Equal(leaf) {
				continue
			}
			if err := magic.RenewCertSync(ctx, leaf.DNSNames[0], true); err != nil {
				return err
			}
			if _, err := magic.CacheManagedCertificate(ctx, leaf.DNSNames[0]); err != nil {
				return err
			}
			cache.Remove([]string{old.Hash()})
		}
		return nil
	}
	stapler := staple.Stapler{OnEvent: func(e staple.Event) {
		if leaf := e.Status.Leaf; e.Kind == staple.EventRevoked && len(leaf.DNSNames) > 0 {
			go replace(context.Background(), leaf) // events wait for OnEvent to return
		}
	}}
	defer stapler.Close()
}
