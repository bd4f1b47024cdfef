package pemfiles

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

// encode returns a chain and its key in PEM.
func encode(t *testing.T, cert tls.Certificate) (chain, key []byte) {
	for _, der := range cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	require.NoError(t, err)
	return chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func write(t *testing.T, name string, data []byte) {
	require.NoError(t, os.WriteFile(name, data, 0o600))
}

func TestAPairIsWhatLoadX509KeyPairReturns(t *testing.T) {
	ca := stapletest.NewCA(stapletest.CAOptions{})
	cert, other := ca.Leaf(stapletest.LeafOptions{}), ca.Leaf(stapletest.LeafOptions{})
	chain, key := encode(t, cert)
	_, otherKey := encode(t, other)
	encrypted := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{1, 2, 3}})
	require.Len(t, cert.Certificate, 2)
	for _, tt := range []struct {
		name       string
		cert, key  []byte
		want       string // of the error; empty: there is none
		incomplete bool   // which WholePair alone minds
	}{
		{"a pair", chain, key, "", false},
		{"all in one", append(bytes.Clone(key), chain...), append(bytes.Clone(chain), key...), "", false},
		{"text between", append([]byte("the leaf\n"), chain...), key, "", false},
		{"empty files", nil, nil, "failed to find any PEM data in certificate input", false},
		{"no certificate", []byte("nothing"), key, "failed to find any PEM data in certificate input", false},
		{"the key alone", key, key, "may have been switched", false},
		{"no key", chain, chain, "failed to find", false},
		{"an empty key", chain, nil, "failed to find any PEM data in key input", false},
		{"another's key", chain, otherKey, "private key does not match public key", false},
		{"an encrypted key", chain, encrypted, "the key is encrypted", false},
		{"half a leaf", chain[:len(chain)/4], key, "failed to find any PEM data in certificate input", false},
		{"half a key", chain, key[:len(key)/2], "failed to find any PEM data in key input", false},
		{"half an issuer", chain[:len(chain)-50], key, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			n := Names{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
			write(t, n.Cert, tt.cert)
			write(t, n.Key, tt.key)
			l := n.Look(Stamp{}, true)
			got, err := l.Pair()
			want, wantErr := tls.LoadX509KeyPair(n.Cert, n.Key)
			_, whole := l.WholePair()
			if tt.want != "" {
				require.Error(t, wantErr)
				require.ErrorContains(t, err, wantErr.Error())
				require.ErrorContains(t, err, tt.want)
				require.ErrorContains(t, err, n.Cert+" and "+n.Key)
				require.Equal(t, err.Error(), whole.Error())
				return
			}
			require.NoError(t, wantErr)
			require.NoError(t, err)
			require.Equal(t, want, got)
			if tt.incomplete {
				require.ErrorContains(t, whole, "damaged")
				require.ErrorContains(t, whole, n.Cert)
			} else {
				require.NoError(t, whole)
			}
		})
	}
}

func TestRegularFilesAloneAreRead(t *testing.T) {
	dir := t.TempDir()
	name := func(s string) string { return filepath.Join(dir, s) }
	write(t, name("good"), []byte("data"))
	write(t, name("large"), nil)
	require.NoError(t, os.Truncate(name("large"), 1<<40))
	require.NoError(t, os.Mkdir(name("directory"), 0o700))
	require.NoError(t, os.Symlink(name("loop"), name("loop")))
	require.NoError(t, os.Symlink(name("nowhere"), name("dangling")))
	if mkfifo, err := exec.LookPath("mkfifo"); err == nil {
		require.NoError(t, exec.Command(mkfifo, name("pipe")).Run())
	} else {
		write(t, name("pipe"), make([]byte, most+1)) // no matter
	}
	for file, want := range map[string]string{"large": "more than", "directory": "not a regular file", "loop": "symbolic links",
		"pipe": "", "dangling": "no such file", "missing": "no such file"} {
		for _, n := range []Names{{name(file), name("good")}, {name("good"), name(file)}, {name(file), name(file)}} {
			l := n.Look(Stamp{}, true)
			_, err := l.Pair()
			require.ErrorContains(t, err, want, file)
			require.ErrorContains(t, err, name(file))
			require.Equal(t, file == "missing" || file == "dangling", errors.Is(err, os.ErrNotExist), file)
			require.Equal(t, l.Sum, n.Looked().Sum, "the same trouble is the same")
		}
	}
}

// Looked is a look that reads.
func (n Names) Looked() Look { return n.Look(Stamp{}, true) }

func TestOtherFilesAreNoticedWithoutReading(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, file, dir string){
		"other size": func(t *testing.T, file, dir string) { write(t, file, []byte("more data")) },
		"another time": func(t *testing.T, file, dir string) {
			require.NoError(t, os.Chtimes(file, time.Time{}, time.Now().Add(-time.Hour)))
		},
		"another mode": func(t *testing.T, file, dir string) { require.NoError(t, os.Chmod(file, 0o400)) },
		"gone":         func(t *testing.T, file, dir string) { require.NoError(t, os.Remove(file)) },
		"a directory": func(t *testing.T, file, dir string) {
			require.NoError(t, os.Remove(file))
			require.NoError(t, os.Mkdir(file, 0o700))
		},
		"another inode": func(t *testing.T, file, dir string) {
			twin(t, file, filepath.Join(dir, "twin"))
			require.NoError(t, os.Rename(filepath.Join(dir, "twin"), file))
		},
		"another link": func(t *testing.T, file, dir string) {
			twin(t, file, filepath.Join(dir, "twin"))
			require.NoError(t, os.Remove(file))
			require.NoError(t, os.Symlink("twin", file))
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, file := range []string{"cert", "key"} {
				dir := t.TempDir()
				n := Names{filepath.Join(dir, "cert"), filepath.Join(dir, "key")}
				write(t, n.Cert, []byte("cert"))
				write(t, n.Key, []byte("key"))
				l := n.Looked()
				again := n.Look(l.stamp, false)
				require.False(t, again.Read)
				change(t, filepath.Join(dir, file), dir)
				again = n.Look(l.stamp, false)
				require.True(t, again.Read)
				require.False(t, n.Look(again.stamp, false).Read)
			}
		})
	}
}

// twin makes a file that looks like another, but for what a file system tells apart by itself.
func twin(t *testing.T, file, name string) {
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	info, err := os.Stat(file)
	require.NoError(t, err)
	write(t, name, data)
	require.NoError(t, os.Chtimes(name, info.ModTime(), info.ModTime()))
}

func TestSumsTellContentsApart(t *testing.T) {
	dir := t.TempDir()
	n := Names{filepath.Join(dir, "cert"), filepath.Join(dir, "key")}
	seen := map[[32]byte]bool{}
	for _, data := range [][2]string{{"", ""}, {"a", ""}, {"", "a"}, {"a", "b"}, {"ab", ""}, {"b", "a"}} {
		write(t, n.Cert, []byte(data[0]))
		write(t, n.Key, []byte(data[1]))
		l := n.Looked()
		require.False(t, seen[l.Sum])
		seen[l.Sum] = true
		require.Equal(t, l.Sum, n.Looked().Sum)
	}
}
