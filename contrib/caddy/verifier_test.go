package staplecaddy

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/stapletest"
)

func TestCaddyfile(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want Verifier
		err  string
	}{
		"nothing set":    {text: `staple`},
		"an empty block": {text: "staple {\n}"},
		"every option": {
			text: `staple {
				fail_open
				timeout 5s
				max_response_age 1d
				leaf_only
				cache /x
				responders http://a http://b
				responders http://c
			}`,
			want: Verifier{
				FailOpen: true, Timeout: caddy.Duration(5 * time.Second), MaxResponseAge: caddy.Duration(24 * time.Hour),
				LeafOnly: true, Cache: "/x", Responders: []string{"http://a", "http://b", "http://c"},
			},
		},
		"an argument":       {text: "staple on", err: "wrong argument count"},
		"a flag with one":   {text: "staple {\nfail_open no\n}", err: "wrong argument count"},
		"no duration":       {text: "staple {\ntimeout\n}", err: "wrong argument count"},
		"two durations":     {text: "staple {\ntimeout 1s 2s\n}", err: "wrong argument count"},
		"a strange one":     {text: "staple {\nmax_response_age soon\n}", err: "max_response_age: time: invalid duration"},
		"no directory":      {text: "staple {\ncache\n}", err: "wrong argument count"},
		"two directories":   {text: "staple {\ncache /x /y\n}", err: "wrong argument count"},
		"no responder":      {text: "staple {\nresponders\n}", err: "wrong argument count"},
		"an unknown option": {text: "staple {\nfail_closed\n}", err: `verifier staple has no option "fail_closed"`},
	} {
		t.Run(name, func(t *testing.T) {
			var v Verifier
			err := v.UnmarshalCaddyfile(caddyfile.NewTestDispenser(test.text))
			if test.err != "" {
				require.ErrorContains(t, err, test.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, v)
		})
	}
}

func TestTheExampleAdapts(t *testing.T) {
	text, err := os.ReadFile("Caddyfile")
	require.NoError(t, err)
	config, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt(text, map[string]any{"filename": "Caddyfile"})
	require.NoError(t, err)
	require.Empty(t, warnings)
	require.Contains(t, string(config), `"verifiers":[{"max_response_age":3600000000000,"verifier":"staple"}]`)
}

func TestValidate(t *testing.T) {
	for name, test := range map[string]struct {
		v   Verifier
		err string
	}{
		"nothing set":             {},
		"all is well":             {v: Verifier{Timeout: 1, MaxResponseAge: 1, Responders: []string{"http://a", "https://b:8/c"}}},
		"a negative timeout":      {v: Verifier{Timeout: -1}, err: "timeout is negative: -1ns"},
		"a negative age":          {v: Verifier{MaxResponseAge: -1}, err: "max_response_age is negative: -1ns"},
		"a responder's name":      {v: Verifier{Responders: []string{"ocsp.example"}}, err: `responders: "ocsp.example" is not the URL`},
		"a responder in a file":   {v: Verifier{Responders: []string{"http://a", "file:///x"}}, err: `responders: "file:///x" is not the URL`},
		"a responder that is not": {v: Verifier{Responders: []string{"http://a b"}}, err: "responders: parse"},
		"two in one":              {v: Verifier{Responders: []string{"http://a http://b"}}, err: "responders: parse"},
		"a password":              {v: Verifier{Responders: []string{"ftp://me:secret@a"}}, err: `responders: "ftp://me:xxxxx@a" is not the URL`},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.v.Validate()
			if test.err == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, test.err)
		})
	}
}

// provision provisions v as Caddy does, from JSON.
func provision(t *testing.T, config string) *Verifier {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	t.Cleanup(cancel)
	module, err := ctx.LoadModuleByID("tls.client_auth.verifier.staple", json.RawMessage(config))
	require.NoError(t, err)
	return module.(*Verifier)
}

// A world has a CA whose intermediate names a responder, too.
type world struct {
	ca         *stapletest.CA
	roots      *stapletest.Responder // about the intermediate
	responder  *stapletest.Responder // about clients
	url        string                // of the latter
	leaf       *x509.Certificate
	mustStaple *x509.Certificate
}

func serve(t *testing.T, h http.Handler) (url string) {
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

func newWorld(t *testing.T) *world {
	root := stapletest.NewCA(stapletest.CAOptions{})
	w := &world{roots: stapletest.NewResponder(root)}
	intermediate := root.Leaf(stapletest.LeafOptions{
		CommonName: "intermediate", Responders: []string{serve(t, w.roots)},
		Template: func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
		},
	})
	w.ca = &stapletest.CA{
		Root: root.Root, RootKey: root.RootKey, Issuer: intermediate.Leaf, Key: intermediate.PrivateKey.(crypto.Signer),
	}
	w.responder = stapletest.NewResponder(w.ca)
	w.url = serve(t, w.responder)
	w.leaf = w.ca.Leaf(stapletest.LeafOptions{Responders: []string{w.url}}).Leaf
	w.mustStaple = w.ca.Leaf(stapletest.LeafOptions{Responders: []string{w.url}, MustStaple: true}).Leaf
	return w
}

// verify has v verify a client's certificate after crypto/x509 has.
func (w *world) verify(v *Verifier, leaf *x509.Certificate) error {
	chains := [][]*x509.Certificate{{leaf, w.ca.Issuer, w.ca.Root}}
	return v.VerifyClientCertificate([][]byte{leaf.Raw, w.ca.Issuer.Raw}, chains)
}

func TestWhoPasses(t *testing.T) {
	var (
		good    stapletest.Answer
		revoked = stapletest.Answer{Status: ocsp.Revoked}
		down    = stapletest.Answer{HTTPStatus: http.StatusServiceUnavailable}
		hanging = stapletest.Answer{Hang: true}
		old     = stapletest.Answer{Age: 2 * time.Hour}
	)
	for name, test := range map[string]struct {
		config       string // but for the cache
		leaf, issuer stapletest.Answer
		mustStaple   bool
		wraps        error
		says         string
	}{
		"good":                                    {},
		"revoked":                                 {leaf: revoked, wraps: staple.ErrRevoked},
		"revoked, fail_open":                      {config: `"fail_open": true`, leaf: revoked, wraps: staple.ErrRevoked},
		"down":                                    {leaf: down, wraps: staple.ErrUnanswered, says: "503"},
		"down, fail_open":                         {config: `"fail_open": true`, leaf: down},
		"Must-Staple":                             {mustStaple: true},
		"Must-Staple, revoked":                    {mustStaple: true, leaf: revoked, wraps: staple.ErrRevoked},
		"Must-Staple, down, fail_open":            {config: `"fail_open": true`, mustStaple: true, leaf: down, wraps: staple.ErrUnanswered},
		"hanging":                                 {config: `"timeout": "50ms"`, leaf: hanging, wraps: staple.ErrUnanswered, says: "within the 50ms"},
		"hanging, fail_open":                      {config: `"timeout": "50ms", "fail_open": true`, leaf: hanging},
		"an old answer":                           {leaf: old},
		"an older answer than max_response_age":   {config: `"max_response_age": "1h"`, leaf: old, wraps: staple.ErrUnanswered, says: "older than"},
		"the intermediate is revoked":             {issuer: revoked, wraps: staple.ErrRevoked},
		"the intermediate is revoked, leaf_only":  {config: `"leaf_only": true`, issuer: revoked},
		"the intermediate is unknown, fail_open":  {config: `"fail_open": true`, issuer: stapletest.Answer{Status: ocsp.Unknown}},
		"revoked, and so is the intermediate":     {leaf: revoked, issuer: revoked, wraps: staple.ErrRevoked},
		"good, but the intermediate has nobody":   {issuer: down, wraps: staple.ErrUnanswered},
		"another responder that does not know it": {config: `"responders": ["ELSEWHERE"]`, leaf: good, wraps: staple.ErrUnanswered},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			leaf := w.leaf
			if test.mustStaple {
				leaf = w.mustStaple
			}
			w.responder.Set(leaf, test.leaf)
			w.roots.Set(w.ca.Issuer, test.issuer)
			elsewhere := serve(t, stapletest.NewResponder(stapletest.NewCA(stapletest.CAOptions{})))
			config := strings.ReplaceAll(test.config, "ELSEWHERE", elsewhere)
			if config != "" {
				config += ", "
			}
			v := provision(t, "{"+config+`"cache": "off"}`)
			err := w.verify(v, leaf)
			if test.wraps == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, test.wraps)
			require.ErrorContains(t, err, test.says)
		})
	}
}

func TestRespondersAreAskedInsteadOfThoseOfTheCertificate(t *testing.T) {
	w := newWorld(t)
	other := stapletest.NewResponder(w.ca)
	other.Set(w.leaf, stapletest.Answer{Status: ocsp.Revoked})
	v := provision(t, `{"cache": "off", "leaf_only": true, "responders": ["`+serve(t, other)+`"]}`)
	require.ErrorIs(t, w.verify(v, w.leaf), staple.ErrRevoked)
	require.Empty(t, w.responder.Requests(nil))
}

// One chain that passes is enough, and one that does not leaves the handshake no less time for the next.
func TestAClientWithSeveralChainsPassesByOne(t *testing.T) {
	w := newWorld(t)
	w.roots.Set(w.ca.Issuer, stapletest.Answer{Status: ocsp.Revoked})
	v := provision(t, `{"cache": "off"}`)
	long, short := []*x509.Certificate{w.leaf, w.ca.Issuer, w.ca.Root}, []*x509.Certificate{w.leaf, w.ca.Issuer}
	raw := [][]byte{w.leaf.Raw}
	require.ErrorIs(t, v.VerifyClientCertificate(raw, [][]*x509.Certificate{long}), staple.ErrRevoked)
	require.NoError(t, v.VerifyClientCertificate(raw, [][]*x509.Certificate{long, short}))
}

func TestAClientThatNobodyHasVerifiedIsRefused(t *testing.T) {
	w := newWorld(t)
	v := provision(t, `{"cache": "off", "fail_open": true}`)
	require.ErrorContains(t, v.VerifyClientCertificate([][]byte{w.leaf.Raw}, nil), "require_and_verify")
	require.NoError(t, v.VerifyClientCertificate(nil, nil), "without a certificate the mode decides")
	require.Empty(t, w.responder.Requests(nil))
}
