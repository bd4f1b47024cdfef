package stapleprom_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/go-staple/staple"
	stapleprom "github.com/go-staple/staple/contrib/prometheus"
	"github.com/go-staple/staple/stapletest"
)

func Example() {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	responder := stapletest.NewResponder(ca)

	stapler := staple.Stapler{Fetcher: &staple.HTTPFetcher{Client: responder.Client()}}
	defer stapler.Close()
	registry := prometheus.NewRegistry() // or prometheus.DefaultRegisterer
	registry.MustRegister(stapleprom.Attach(&stapler))
	metrics := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	defer metrics.Close()

	cert, err := stapler.Add(ca.Leaf(stapletest.LeafOptions{
		Names:      []string{"www.example.com"},
		Responders: []string{"http://ocsp.example"},
	}))
	if err != nil {
		panic(err)
	}
	if err := cert.Wait(context.Background()); err != nil {
		panic(err)
	}

	resp, err := http.Get(metrics.URL)
	if err != nil {
		panic(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "staple_certificates{") && !strings.HasSuffix(line, " 0\n") {
			fmt.Print(line)
		}
	}
	// Output:
	// staple_certificates{must_staple="false",responder_host="ocsp.example",state="stapled"} 1
}
