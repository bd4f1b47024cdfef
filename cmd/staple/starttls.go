package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
)

// maxTalk is how much a server may say before TLS begins.
const maxTalk = 8 << 10

// A protocol begins in the clear.
type protocol struct {
	port string
	ask  func(t *talk) error // asks for TLS, and returns when the server agrees
}

var protocols = map[string]protocol{
	"smtp": {"25", func(t *talk) error {
		if _, err := t.reply("220"); err != nil {
			return err
		}
		t.say("EHLO localhost\r\n")
		offers, err := t.reply("250")
		if err != nil {
			return err
		}
		if !strings.Contains(strings.ToUpper(offers)+" ", "STARTTLS ") {
			return errNotOffered
		}
		t.say("STARTTLS\r\n")
		_, err = t.reply("220")
		return err
	}},
	"imap": {"143", func(t *talk) error {
		if err := t.until("* OK", "* "); err != nil {
			return err
		}
		t.say("a STARTTLS\r\n")
		return t.until("A OK", "A ")
	}},
	"pop3": {"110", func(t *talk) error {
		if err := t.until("+OK", ""); err != nil {
			return err
		}
		t.say("STLS\r\n")
		return t.until("+OK", "")
	}},
	// RFC 4511, section 4.14: an ExtendedRequest by the name 1.3.6.1.4.1.1466.20037, and an ExtendedResponse
	"ldap": {"389", func(t *talk) error {
		t.say("\x30\x1d\x02\x01\x01\x77\x18\x80\x16" + "1.3.6.1.4.1.1466.20037")
		return ldapAgreed(t)
	}},
	// SSLRequest
	"postgres": {"5432", func(t *talk) error {
		t.say("\x00\x00\x00\x08\x04\xd2\x16\x2f")
		b, err := t.bytes(1)
		switch {
		case err != nil:
			return err
		case b[0] == 'N':
			return errNotOffered
		case b[0] != 'S':
			return fmt.Errorf("the server says %q: not PostgreSQL", b)
		}
		return nil
	}},
	"mysql": {"3306", func(t *talk) error {
		greeting, err := mysqlPacket(t)
		if err != nil {
			return err
		}
		const clientSSL = 0x800
		version, rest, ok := strings.Cut(string(greeting), "\x00")
		switch {
		case strings.HasPrefix(version, "\xff"):
			return fmt.Errorf("the server says %.100q", version)
		case !strings.HasPrefix(version, "\x0a") || !ok || len(rest) < 15: // thread ID, 8 bytes of salt, a zero, capabilities
			return errors.New("no greeting of MySQL's protocol 10")
		case binary.LittleEndian.Uint16([]byte(rest[13:]))&clientSSL == 0:
			return errNotOffered
		}
		// SSLRequest: protocol 4.1, SSL, secure connection; packets of up to 16 MiB; utf8mb3
		t.say("\x20\x00\x00\x01" + "\x00\x8a\x00\x00" + "\x00\x00\x00\x01" + "\x21" + strings.Repeat("\x00", 23))
		return nil
	}},
}

var errNotOffered = errors.New("the server does not offer TLS: enable it there, or check another port")

// upgrade returns when the next byte is TLS's.
func upgrade(conn net.Conn, p protocol) error {
	t := &talk{conn: conn, left: maxTalk}
	err := p.ask(t)
	if err == nil {
		err = t.failed
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the server closed the connection: %w", err)
	}
	return err
}

// A talk reads no further than it must: what follows may be TLS.
type talk struct {
	conn   net.Conn
	left   int
	failed error // to say something
}

func (t *talk) say(text string) {
	if _, err := io.WriteString(t.conn, text); err != nil && t.failed == nil {
		t.failed = err
	}
}

func (t *talk) bytes(n int) ([]byte, error) {
	if t.failed != nil {
		return nil, t.failed
	}
	if t.left -= n; t.left < 0 {
		return nil, fmt.Errorf("the server says more than %d bytes, and nothing that was waited for", maxTalk)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(t.conn, b)
	return b, err
}

func (t *talk) line() (string, error) {
	var line []byte
	for {
		b, err := t.bytes(1)
		if err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return strings.TrimSuffix(string(line), "\r"), nil
		}
		line = append(line, b[0])
	}
}

// reply reads an SMTP reply, of one line or several, and returns what they say. Any other code than the one that is
// wanted is an error.
func (t *talk) reply(code string) (text string, err error) {
	for {
		line, err := t.line()
		if err != nil {
			return "", err
		}
		if !strings.HasPrefix(line, code) {
			return "", fmt.Errorf("the server says %.100q", line)
		}
		text += strings.TrimPrefix(line[len(code):], "-") + " "
		if !strings.HasPrefix(line, code+"-") {
			return text, nil
		}
	}
}

// until reads lines up to one that begins with prefix. One that begins with answer, and not with prefix, is an error.
func (t *talk) until(prefix, answer string) error {
	for {
		line, err := t.line()
		switch upper := strings.ToUpper(line); {
		case err != nil:
			return err
		case strings.HasPrefix(upper, prefix):
			return nil
		case strings.HasPrefix(upper, answer):
			return fmt.Errorf("the server says %.100q", line)
		case !strings.HasPrefix(line, "* "):
			return fmt.Errorf("the server says %.100q, which is no IMAP", line)
		}
	}
}

// ldapAgreed reads an LDAPMessage that is an ExtendedResponse whose resultCode is success. Its lengths need not be DER's:
// Active Directory spends four bytes on each.
func ldapAgreed(t *talk) error {
	message, err := t.bytes(2)
	if err == nil && message[0] != 0x30 {
		return fmt.Errorf("the server says %q, which is no LDAP", message)
	}
	var more []byte
	for more = message; err == nil && len(more) > 0; message = append(message, more...) {
		n, at := berLength(message)
		if n < 0 {
			return errors.New("the server's answer is no LDAP")
		}
		more, err = t.bytes(at + n - len(message))
	}
	if err != nil {
		return err
	}
	_, message, _ = berElement(message)
	_, _, message = berElement(message) // messageID
	tag, message, _ := berElement(message)
	code, result, _ := berElement(message)
	switch {
	case tag != 0x78 || code != 0x0a || len(result) != 1:
		return errors.New("the server's answer is no LDAP ExtendedResponse")
	case result[0] != 0:
		return fmt.Errorf("the server refuses, with LDAP's resultCode %d", result[0])
	}
	return nil
}

// berLength returns how long an element's content is and where it begins, by the beginning of the element: as far as that
// goes, of its length. n is negative where that makes no sense.
func berLength(b []byte) (n, at int) {
	if len(b) < 2 {
		return -1, 0
	}
	if b[1] < 0x80 {
		return int(b[1]), 2
	}
	at = 2 + int(b[1]&0x7f)
	switch {
	case at == 2 || at > 6:
		return -1, 0
	case len(b) < at:
		return 0, at
	}
	for _, c := range b[2:at] {
		if n = n<<8 | int(c); n > maxTalk {
			return -1, 0
		}
	}
	return n, at
}

// berElement splits an element from what follows. All is empty where there is none.
func berElement(b []byte) (tag byte, content, rest []byte) {
	n, at := berLength(b)
	if n < 0 || at+n > len(b) {
		return 0, nil, nil
	}
	return b[0], b[at : at+n], b[at+n:]
}

// mysqlPacket reads a packet: three bytes of length, its number, and the rest.
func mysqlPacket(t *talk) ([]byte, error) {
	head, err := t.bytes(4)
	if err != nil {
		return nil, err
	}
	return t.bytes(int(head[0]) | int(head[1])<<8 | int(head[2])<<16)
}
