package main

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestHelpFitsAScreenAndIsNoFailure(t *testing.T) {
	calls := [][]string{{"-h"}, {"--help"}, {"help"}, {"help", "help"}}
	for _, c := range commands {
		calls = append(calls, []string{c.name, "-h"}, []string{c.name, "--help"}, []string{"help", c.name}, []string{c.name, "x", "-h"})
	}
	for _, args := range calls {
		stdout, stderr, exit := program(t, args...)
		require.Equal(t, 0, exit, args)
		require.Empty(t, stderr)
		lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
		require.LessOrEqual(t, len(lines), 24, args)
		for _, line := range lines {
			require.LessOrEqual(t, utf8.RuneCountInString(line), 80, line)
		}
		require.Contains(t, stdout, "\n    staple ", "an example")
	}
}

func TestEveryCommandIsListed(t *testing.T) {
	stdout, _, _ := program(t, "-h")
	for _, c := range commands {
		require.Contains(t, stdout, c.name+" ")
		require.Contains(t, stdout, c.line)
	}
}

func TestMisuseExitsWithThreeAndSaysWhatToDo(t *testing.T) {
	for _, args := range [][]string{
		{}, {"chek"}, {"-x"}, {"help", "chek"}, {"check"}, {"check", "-x", "a"}, {"check", "-json", "-nagios", "a"}, {"check", "-warn", "x", "a"},
		{"check", "-warn", "101%", "a"}, {"check", "-warn", "-1", "a"}, {"check", "-warn", "NaN", "a"}, {"check", "-timeout", "0s", "a"}, {"check", "-timeout", "10", "a"},
		{"check", "-starttls", "ftp", "a"}, {"check", "-ca"}, {"check", "-ca", "none.pem", "a"}, {"check", "-issuer", "none.pem", "a"},
		{"fetch"}, {"fetch", "a", "b"}, {"fetch", "-x"}, {"verify"}, {"verify", "a"}, {"verify", "-cert", "a"}, {"verify", "-cert", "a", "b", "c"},
		{"verify", "-cert", "a", "-at", "tomorrow", "b"}, {"check", "\x1b[2J", "-\x1b[2J"},
	} {
		stdout, stderr, exit := program(t, args...)
		require.Equal(t, 3, exit, args)
		require.Empty(t, stdout, args)
		require.Contains(t, strings.ToLower(stderr), "staple", args)
		requireHarmless(t, stderr)
	}
	_, stderr, _ := program(t, "check", "-starttls", "ftp", "a")
	require.Equal(t, `staple: check: -starttls knows smtp, imap, pop3, ldap, postgres and mysql, not "ftp": staple check -h has examples`+"\n", stderr)
}
