package staplecertmagic_test

import (
	"context"
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
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return &certmagic.Default, nil },
	})
	magic := certmagic.New(cache, certmagic.Config{OCSP: certmagic.OCSPConfig{DisableStapling: true}})

	replace := func(ctx context.Context, name string) error {
		old := cache.AllMatchingCertificates(name)
		if err := magic.RenewCertSync(ctx, name, true); err != nil {
			return err
		}
		if _, err := magic.CacheManagedCertificate(ctx, name); err != nil {
			return err
		}
		for _, cert := range old {
			cache.Remove([]string{cert.Hash()})
		}
		return nil
	}
	stapler := staple.Stapler{OnEvent: func(e staple.Event) {
		if e.Kind == staple.Revoked {
			go replace(context.Background(), e.Status.Leaf.DNSNames[0]) // events wait for OnEvent to return
		}
	}}
	defer stapler.Close()
}
