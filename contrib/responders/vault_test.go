package responders

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/builtin/logical/pki"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/go-staple/staple"
)

// A vault is Vault's PKI engine, at /v1/pki/ of a server that does what Vault's own does in front of it.
type vault struct {
	t       *testing.T
	engine  logical.Backend
	storage logical.Storage
	server  *httptest.Server
}

func startVault(t *testing.T) *vault {
	config := logical.TestBackendConfig()
	config.StorageView = new(logical.InmemStorage)
	config.Logger = hclog.NewNullLogger()
	engine, err := pki.Factory(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(func() { engine.Cleanup(t.Context()) })
	require.NoError(t, engine.Initialize(t.Context(), &logical.InitializationRequest{Storage: config.StorageView}))
	v := &vault{t: t, engine: engine, storage: config.StorageView}
	mux := http.NewServeMux() // redirects from a double slash in the base64 text, as Vault does
	mux.HandleFunc("/v1/pki/", v.serve)
	v.server = httptest.NewServer(mux)
	t.Cleanup(v.server.Close)
	return v
}

func (v *vault) serve(w http.ResponseWriter, r *http.Request) {
	operation := logical.Operation(logical.ReadOperation)
	if r.Method == http.MethodPost {
		operation = logical.UpdateOperation
	}
	response, err := v.engine.HandleRequest(r.Context(), &logical.Request{
		Operation: operation, Path: strings.TrimPrefix(r.URL.Path, "/v1/pki/"), Storage: v.storage, HTTPRequest: r,
	})
	if err != nil || response == nil || response.IsError() {
		http.Error(w, "", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", response.Data[logical.HTTPContentType].(string))
	w.WriteHeader(response.Data[logical.HTTPStatusCode].(int))
	w.Write(response.Data[logical.HTTPRawBody].([]byte))
}

// write is `vault write pki/path`.
func (v *vault) write(path string, data map[string]any) map[string]any {
	v.t.Helper()
	response, err := v.engine.HandleRequest(v.t.Context(), &logical.Request{
		Operation: logical.UpdateOperation, Path: path, Data: data, Storage: v.storage, MountPoint: "pki/",
	})
	require.NoError(v.t, err)
	if response == nil {
		return nil
	}
	require.NoError(v.t, response.Error())
	return response.Data
}

func TestVault(t *testing.T) {
	for _, keyType := range []string{"ec", "rsa"} {
		for name, suffix := range map[string]string{"GET": "", "POST": "?"} {
			t.Run(keyType+" "+name, func(t *testing.T) {
				v := startVault(t)
				bits := map[string]int{"ec": 256, "rsa": 2048}[keyType]
				root := v.write("root/generate/internal", map[string]any{
					"common_name": "Vault CA", "key_type": keyType, "key_bits": bits, "ttl": "24h",
				})
				v.write("config/urls", map[string]any{"ocsp_servers": v.server.URL + "/v1/pki/ocsp" + suffix})
				v.write("roles/server", map[string]any{"allow_localhost": true, "allow_bare_domains": true, "key_type": keyType, "key_bits": bits})
				issued := v.write("issue/server", map[string]any{"common_name": "localhost", "ttl": "12h"})
				chain := issued["certificate"].(string) + "\n" + issued["issuing_ca"].(string)
				cert, err := tls.X509KeyPair([]byte(chain), []byte(issued["private_key"].(string)))
				require.NoError(t, err)
				roots := x509.NewCertPool()
				require.True(t, roots.AppendCertsFromPEM([]byte(root["certificate"].(string))))

				s := newSite(t, new(staple.Stapler), cert, &tls.Config{RootCAs: roots})
				r := s.requireGood(t)
				require.False(t, r.NextUpdate.IsZero())
				require.Equal(t, cert.Leaf.OCSPServer[0], s.handle.Status().Responder)

				v.write("revoke", map[string]any{"serial_number": issued["serial_number"]})
				s.requireRevoked(t)
			})
		}
	}
}
