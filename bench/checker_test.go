package main

import (
	"crypto/tls"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTenThousandClientsAreInOnceEachWasAskedAbout(t *testing.T) {
	const seconds, number = `\d+\.\d s`, `\d+`
	requireCells(t, [][]string{
		{"16", "empty", seconds, number, "[2-9]\\d|1\\d\\d", number},
		{"64", "empty", seconds, number, "[2-9]\\d|1\\d\\d", number},
		{"256", "empty", seconds, number, "[2-9]\\d|1\\d\\d", number},
		{"16", "full", seconds, "0", "0", "0"},
	}, cells(t, "peers", 20))
}

func TestKnownPeersAreCheckedInHandshakes(t *testing.T) {
	k, err := newKnownPeers(3)
	require.NoError(t, err)
	defer k.stapler.Close()
	config := &tls.Config{Certificates: k.fleet.certs[:1], ClientAuth: tls.RequireAnyClientCert, VerifyConnection: k.checker.VerifyConnection}
	require.ErrorContains(t, mutual(config, &tls.Config{Certificates: k.fleet.certs[:1], InsecureSkipVerify: true}), "no verified chain", "it is called")
	config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, pool(k.fleet.issuer)
	for range 5 {
		require.NoError(t, k.handshakes(config)())
	}
}
