package main

import (
	"crypto/x509"
	"errors"
	"flag"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/go-staple/staple/stapletest"
)

func TestVerifyContenders(t *testing.T) {
	stranger := stapletest.NewCA(stapletest.CAOptions{}).Issuer
	for _, v := range verifications() {
		contenders, err := v.contenders()
		require.NoError(t, err)
		for _, c := range contenders {
			t.Run(v.name+"/"+c.name, func(t *testing.T) {
				for range 2 {
					require.NoError(t, c.call())
				}
			})
		}
		v.issuer = stranger
		contenders, err = v.contenders()
		require.NoError(t, err)
		for _, c := range contenders {
			t.Run(v.name+"/"+c.name+" refuses another issuer's", func(t *testing.T) {
				require.Error(t, c.call())
			})
		}
	}
}

func TestBareChecksOfADelegatedResponseAreTwo(t *testing.T) {
	v := verifications()[1]
	v.response[len(v.response)-1]++ // the end of the signature of the delegate's certificate
	contenders, err := v.contenders()
	require.NoError(t, err)
	for _, c := range contenders {
		require.Error(t, c.call(), c.name)
	}
}

func TestCarefulRefusesWhatVerifyRefuses(t *testing.T) {
	const day = 24 * time.Hour
	ca := stapletest.NewCA(stapletest.CAOptions{})
	now := time.Now()
	delegate := func(o stapletest.DelegateOptions) func(*stapletest.Response) {
		return func(r *stapletest.Response) { r.Signer = ca.Delegate(o) }
	}
	for _, test := range []struct {
		name string
		edit func(r *stapletest.Response)
		want string // empty: accepted
	}{
		{"direct", func(*stapletest.Response) {}, ""},
		{"direct, issuer embedded", func(r *stapletest.Response) { r.Certificates = []*x509.Certificate{ca.Issuer} }, ""},
		{"delegated", delegate(stapletest.DelegateOptions{}), ""},
		{"a delegate without the EKU", delegate(stapletest.DelegateOptions{NoEKU: true}), "lacks the extended key usage"},
		{"a delegate that has expired", delegate(stapletest.DelegateOptions{NotBefore: now.Add(-2 * day), NotAfter: now.Add(-day)}),
			"the signer is not valid now"},
		{"a delegate of tomorrow", delegate(stapletest.DelegateOptions{NotBefore: now.Add(day)}), "the signer is not valid now"},
		{"thisUpdate in the future", func(r *stapletest.Response) { r.Singles[0].ThisUpdate = now.Add(day) }, "not valid yet"},
		{"producedAt in the future", func(r *stapletest.Response) { r.ProducedAt = now.Add(day) }, ""},
		{"nextUpdate in the past", func(r *stapletest.Response) {
			r.Singles[0].ThisUpdate, r.Singles[0].NextUpdate = now.Add(-2*day), now.Add(-day)
		}, "expired"},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := verification{leaf: ca.Leaf(stapletest.LeafOptions{}).Leaf, issuer: ca.Issuer, now: now}
			r := stapletest.NewResponse(ca, v.leaf)
			test.edit(r)
			v.response = r.DER()
			contenders, err := v.contenders()
			require.NoError(t, err)
			for _, c := range contenders[1:] {
				if err := c.call(); test.want == "" {
					require.NoError(t, err, c.name)
				} else {
					require.Error(t, err, c.name)
				}
			}
			if test.want != "" {
				require.ErrorContains(t, v.careful(), test.want)
			}
		})
	}
}

func TestRunPrintsTheTable(t *testing.T) {
	var out strings.Builder
	require.NoError(t, run(&out, "1x", 1, []string{"verify"}))
	lines := strings.Split(out.String(), "\n")
	require.Len(t, lines, 1+1+8+1, out.String())
	require.Regexp(t, `^\w+/\w+, .+, \d+ cores, go`, lines[0])
	require.Empty(t, lines[1])
	require.Regexp(t, `^\| response +\| bare signature checks +\| x/crypto/ocsp and checks +\| Verify, cold +\| Verify, warm +\|$`, lines[2])
	require.Regexp(t, `^(\| -+ ){5}\|$`, lines[3])
	for i, name := range []string{
		"P-256, direct", "P-256, delegated", "P-256, delegated, with its chain",
		"RSA-2048, direct", "RSA-2048, delegated", "RSA-2048, delegated, with its chain",
	} {
		require.Regexp(t, "^\\| "+regexp.QuoteMeta(name)+` +\| [\d.]+ µs, [1-9]\d* allocs +(\| [\d.]+ µs, [1-9]\d* allocs, [\d.]+× +){3}\|$`, lines[4+i])
	}
}

func TestRunRefusesWhatItCannotPrint(t *testing.T) {
	for _, test := range []struct {
		name, benchtime string
		most            int
		args            []string
		want            string
	}{
		{"an unknown table", "1x", 1, []string{"verify", "nonsense"}, `no table "nonsense", want some of: checker first handshake memory peers restart select trim verify`},
		{"no certificates", "1x", 0, nil, "-most 0: "},
		{"no time", "soon", 1, []string{"verify"}, "-benchtime soon: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out strings.Builder
			require.ErrorContains(t, run(&out, test.benchtime, test.most, test.args), test.want)
			require.Empty(t, out.String())
		})
	}
}

func TestMeasureKeepsTheFastestRoundAndErrors(t *testing.T) {
	require.NoError(t, flag.Set("test.benchtime", "1x"))
	var calls [2]int
	contenders := []contender{
		{"slow but once", func() error {
			if calls[0]++; calls[0] != rounds/2 {
				time.Sleep(10 * time.Millisecond)
			}
			return nil
		}},
		{"slow", func() error { calls[1]++; time.Sleep(10 * time.Millisecond); return nil }},
	}
	results, err := measure(rounds, contenders)
	require.NoError(t, err)
	require.Less(t, nsPerCall(results[0]), 10e6)
	require.GreaterOrEqual(t, nsPerCall(results[1]), 10e6)
	require.Equal(t, [2]int{rounds, rounds}, calls)

	contenders[1].call = func() error { return errors.New("refused") }
	_, err = measure(rounds, contenders)
	require.EqualError(t, err, "slow: refused")
}

// A chain of RSA-2048 costs each handshake more than a kilobyte, whoever signs.
func TestTrimmingSavesAKilobyte(t *testing.T) {
	all, err := flights()
	require.NoError(t, err)
	for _, f := range all[:2] {
		var sent [2]int
		for i, config := range f.servers {
			sent[i], err = flightBytes(config)
			require.NoError(t, err)
		}
		require.Greater(t, sent[0]-sent[1], 1024, f.name)
		require.InDelta(t, len(f.came)-len(f.trimmed), sent[0]-sent[1], 4, "but for signatures of other lengths")
	}
}
