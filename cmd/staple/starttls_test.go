package main

import (
	"bufio"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple/internal/testhttp"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

// script is a server that says and expects, in turn, what stands in turns before it speaks TLS.
func script(config *tls.Config, turns ...string) testhttp.Raw {
	return func(conn net.Conn) {
		for i, turn := range turns {
			if turn == "" {
				continue
			}
			if i%2 == 0 {
				if config == nil && i == len(turns)-1 {
					go func() { _, _ = io.Copy(io.Discard, conn) }() // pipes have no buffers
				}
				if _, err := io.WriteString(conn, turn); err != nil {
					return
				}
				continue
			}
			got := make([]byte, len(turn))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != turn {
				fmt.Fprintf(conn, "unexpected %q\r\n", got)
				return
			}
		}
		if config != nil {
			serving(config)(conn)
		}
	}
}

func unhex(s string) string {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return string(b)
}

var (
	ldapRequest = unhex("30 1d 02 01 01 77 18 80 16") + "1.3.6.1.4.1.1466.20037"
	pgRequest   = unhex("00 00 00 08 04 d2 16 2f")
	mysqlHello  = unhex("31 00 00 00 0a") + "8.0.36\x00" + unhex("08 00 00 00") + "saltsalt\x00" + unhex("ff ff ff 02 00 ff c1 15") + strings.Repeat("\x00", 10) + "saltsaltsa"
	mysqlSSL    = unhex("20 00 00 01 00 8a 00 00 00 00 00 01 21") + strings.Repeat("\x00", 23)
)

func TestSTARTTLS(t *testing.T) {
	tests := []struct {
		name, protocol, port string
		turns                []string
		fails                string // what is said of it
	}{
		{"SMTP", "smtp", "25", []string{"220-mx.example\r\n220 ESMTP\r\n", "EHLO localhost\r\n", "250-mx.example\r\n250-SIZE 1\r\n250 starttls\r\n", "STARTTLS\r\n", "220 2.0.0 go on\r\n"}, ""},
		{"SMTP, line feeds alone", "smtp", "25", []string{"220 x\n", "EHLO localhost\r\n", "250-x\n250-STARTTLS\n250 X\n", "STARTTLS\r\n", "220 go\n"}, ""},
		{"SMTP, not offered", "smtp", "25", []string{"220 x\r\n", "EHLO localhost\r\n", "250-STARTTLSX\r\n250 SIZE\r\n"}, "does not offer TLS"},
		{"SMTP, refused", "smtp", "25", []string{"220 x\r\n", "EHLO localhost\r\n", "250 STARTTLS\r\n", "STARTTLS\r\n", "454 not\x1b[2J now\r\n"}, `the server says "454 not\x1b[2J now"`},
		{"SMTP, busy", "smtp", "25", []string{"421 busy\r\n"}, `the server says "421 busy"`},
		{"SMTP, which is HTTP", "smtp", "25", []string{"HTTP/1.1 400 Bad Request\r\n\r\n"}, `the server says "HTTP/1.1 400`},
		{"SMTP without an end", "smtp", "25", []string{strings.Repeat("220-more and more\r\n", 1000)}, "more than 8192 bytes"},
		{"SMTP, one line without an end", "smtp", "25", []string{strings.Repeat("220-more and more", 1000)}, "more than 8192 bytes"},
		{"SMTP that closes", "smtp", "25", []string{"220-x\r\n"}, "closed the connection"},
		{"SMTP that goes on in the clear", "smtp", "25", []string{"220 x\r\n", "EHLO localhost\r\n", "250 STARTTLS\r\n", "STARTTLS\r\n", "220 go\r\n250 injected, and not TLS at all\r\n"}, "what came after STARTTLS is no TLS"},
		{"IMAP", "imap", "143", []string{"* OK [CAPABILITY IMAP4rev1 STARTTLS] hi\r\n", "a STARTTLS\r\n", "* CAPABILITY x\r\na OK begin\r\n"}, ""},
		{"IMAP, refused", "imap", "143", []string{"* OK hi\r\n", "a STARTTLS\r\n", "a NO never\r\n"}, `the server says "a NO never"`},
		{"IMAP, bad", "imap", "143", []string{"* BYE\r\n"}, `the server says "* BYE"`},
		{"IMAP, which is not", "imap", "143", []string{"220 smtp\r\n"}, "which is no IMAP"},
		{"IMAP without an end", "imap", "143", []string{"* OK hi\r\n", "a STARTTLS\r\n", strings.Repeat("* more\r\n", 2000)}, "more than 8192 bytes"},
		{"POP3", "pop3", "110", []string{"+OK hi\r\n", "STLS\r\n", "+OK go\r\n"}, ""},
		{"POP3, refused", "pop3", "110", []string{"+OK hi\r\n", "STLS\r\n", "-ERR no\r\n"}, `the server says "-ERR no"`},
		{"LDAP", "ldap", "389", []string{"", ldapRequest, unhex("30 0c 02 01 01 78 07 0a 01 00 04 00 04 00")}, ""},
		{"LDAP of Active Directory", "ldap", "389", []string{"", ldapRequest, unhex("30 84 00 00 00 10 02 01 01 78 84 00 00 00 07 0a 01 00 04 00 04 00")}, ""},
		{"LDAP, refused", "ldap", "389", []string{"", ldapRequest, unhex("30 0c 02 01 01 78 07 0a 01 34 04 00 04 00")}, "resultCode 52"},
		{"LDAP, something else", "ldap", "389", []string{"", ldapRequest, unhex("30 0c 02 01 01 61 07 0a 01 00 04 00 04 00")}, "no LDAP ExtendedResponse"},
		{"LDAP, too long", "ldap", "389", []string{"", ldapRequest, unhex("30 84 7f ff ff ff")}, "no LDAP"},
		{"LDAP, indefinite", "ldap", "389", []string{"", ldapRequest, unhex("30 80")}, "no LDAP"},
		{"LDAP, a length of many bytes", "ldap", "389", []string{"", ldapRequest, unhex("30 ff ff ff")}, "no LDAP"},
		{"LDAP, empty", "ldap", "389", []string{"", ldapRequest, unhex("30 00")}, "no LDAP ExtendedResponse"},
		{"LDAP, inner lengths that lie", "ldap", "389", []string{"", ldapRequest, unhex("30 05 02 7f 01 78 07")}, "no LDAP ExtendedResponse"},
		{"LDAP, which is not", "ldap", "389", []string{"", ldapRequest, "HTTP/1.1 400 no\r\n"}, "which is no LDAP"},
		{"PostgreSQL", "postgres", "5432", []string{"", pgRequest, "S"}, ""},
		{"PostgreSQL, not offered", "postgres", "5432", []string{"", pgRequest, "N"}, "does not offer TLS"},
		{"PostgreSQL, which is not", "postgres", "5432", []string{"", pgRequest, "HTTP"}, "not PostgreSQL"},
		{"MySQL", "mysql", "3306", []string{mysqlHello, mysqlSSL}, ""},
		{"MySQL, not offered", "mysql", "3306", []string{strings.Replace(mysqlHello, "\xff\xff\xff\x02", "\xff\xf7\xff\x02", 1)}, "does not offer TLS"},
		{"MySQL that blocks us", "mysql", "3306", []string{unhex("0b 00 00 00 ff 6a 04") + "Host 'x'"}, "the server says"},
		{"MySQL, too long", "mysql", "3306", []string{unhex("ff ff ff 00 0a")}, "more than 8192 bytes"},
		{"MySQL, short", "mysql", "3306", []string{unhex("03 00 00 00 0a 38 00")}, "no greeting"},
		{"MySQL, which is not", "mysql", "3306", []string{unhex("10 00 00 00") + strings.Repeat("?", 16)}, "no greeting"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newLab(t)
				cert := w.stapling(w.leaf(), stapletest.Answer{})
				config := &tls.Config{Certificates: []tls.Certificate{cert}}
				if tt.fails != "" {
					config = nil
				}
				w.hosts["host.example:"+tt.port] = script(config, tt.turns...)
				got := w.verdict("-starttls", tt.protocol, "host.example")
				if tt.fails != "" {
					require.Equal(t, unreachable, got.Verdict)
					require.Contains(t, got.Error, tt.fails)
					return
				}
				require.Equal(t, good, got.Verdict, got.Error)
			})
		})
		t.Run(tt.name+" that hangs", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newLab(t)
				for n := range len(tt.turns) { // after each turn
					w.hosts["host.example:"+tt.port] = func(conn net.Conn) {
						script(nil, tt.turns[:n]...)(conn)
						_, _ = io.Copy(io.Discard, bufio.NewReader(conn))
					}
					began := time.Now()
					got := w.verdict("-starttls", tt.protocol, "-timeout", "3s", "host.example")
					require.Equal(t, 3, got.Exit)
					require.LessOrEqual(t, time.Since(began), 3*time.Second)
				}
			})
		})
	}
}
