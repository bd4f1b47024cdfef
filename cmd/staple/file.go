package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-staple/staple/internal/dirfile"
	"github.com/go-staple/staple/internal/issuers"
)

const maxFile = 4 << 20 // far beyond any chain, and any list of roots

// isFile reports whether a target is the name of a file, rather than of a host.
func isFile(target string) bool {
	if strings.ContainsFunc(target, func(r rune) bool { return r < 0x80 && os.IsPathSeparator(uint8(r)) }) {
		return true
	}
	info, err := os.Stat(target)
	return err == nil && !info.IsDir() // directories are often named for hosts
}

// readFile waits for nobody, and names the file in its errors.
func readFile(ctx context.Context, file string) ([]byte, error) {
	data, err := dirfile.Read(ctx, file, maxFile)
	switch {
	case errors.Is(err, os.ErrNotExist) && strings.Contains(file, "://"):
		return nil, errors.New("there is no such file: of a URL give the host alone")
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%w: run this as somebody who may read it, who needs no key", err)
	case err == nil && len(bytes.TrimSpace(data)) == 0:
		return nil, errors.New("the file is empty")
	}
	return data, err
}

// readChain reads a PEM file whose first certificate is the one that is meant. Others that do not parse are left out.
func readChain(ctx context.Context, file string) (chain []*x509.Certificate, err error) {
	data, err := readFile(ctx, file)
	if err != nil {
		return nil, err
	}
	var others []string
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if bytes.Contains(rest, []byte("-----BEGIN")) {
				return nil, errors.New("a PEM block in it is broken, or has no end: perhaps the file is being written, or was cut short")
			}
			break
		}
		if block.Type != "CERTIFICATE" {
			others = append(others, block.Type)
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err == nil:
			chain = append(chain, cert)
		case chain == nil:
			return nil, fmt.Errorf("its first certificate cannot be read: %w", err)
		}
	}
	switch {
	case chain != nil:
		return chain, nil
	case others != nil:
		return nil, fmt.Errorf("no certificate in it, only %.100q: give the file of the certificate, no key is needed", others)
	}
	if _, err := x509.ParseCertificate(data); err == nil {
		return nil, errors.New("a certificate in DER, not PEM: openssl x509 -inform DER makes PEM of it")
	}
	return nil, errors.New("no certificate in PEM in it")
}

// readCertificates reads certificates in whatever form CAs publish them.
func readCertificates(ctx context.Context, file string) ([]*x509.Certificate, error) {
	if file == "" {
		return nil, nil
	}
	data, err := readFile(ctx, file)
	if err != nil {
		return nil, err
	}
	certs := issuers.Parse(data)
	if len(certs) == 0 {
		return nil, errors.New("no certificate in PEM, DER or PKCS #7 in it")
	}
	return certs, nil
}

// writeFile makes data the contents of a file at once. What is no regular file, as /dev/null, is written to.
func writeFile(ctx context.Context, file string, data []byte) error {
	info, err := os.Stat(file)
	if err == nil && !info.Mode().IsRegular() {
		return os.WriteFile(file, data, 0)
	}
	mode := os.FileMode(0o644) // responses are public
	if err == nil {
		mode = info.Mode().Perm()
		if file, err = filepath.EvalSymlinks(file); err != nil {
			return err
		}
	}
	dir, base := filepath.Split(file)
	f, err := os.CreateTemp(cmp.Or(dir, "."), "."+base+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = cmp.Or(err, f.Chmod(mode), f.Sync())
	if err = cmp.Or(err, f.Close()); err == nil {
		err = dirfile.Rename(ctx, f.Name(), file)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
