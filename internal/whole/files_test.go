package whole

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// noticed is how long after a change of its files a certificate that is stapled at once serves, at most.
const noticed = 10 * time.Second

// A mount is where a test has a certificate and its key, in files, and a Stapler that follows them.
type mount struct {
	*world.World
	dir       string
	cert, key string // the files
	log       world.Text
	stapler   *staple.Stapler
	files     *staple.Files
}

// newMount returns a mount whose files have first, which is stapled.
func newMount(w *world.World, first tls.Certificate, edit ...func(*staple.Stapler)) *mount {
	w.T.Helper()
	m := mountOf(w, edit...)
	m.put(first)
	m.follow()
	require.NoError(w.T, m.files.Certificate().Wait(world.Soon(w.T)))
	return m
}

func mountOf(w *world.World, edit ...func(*staple.Stapler)) *mount {
	m := &mount{World: w, dir: w.T.TempDir()}
	m.cert, m.key = filepath.Join(m.dir, "tls.crt"), filepath.Join(m.dir, "tls.key")
	m.stapler = w.Stapler(append(edit, func(s *staple.Stapler) { s.Logger = m.log.Logger() })...)
	return m
}

func (m *mount) follow() {
	m.T.Helper()
	var err error
	m.files, err = m.stapler.AddFiles(m.cert, m.key)
	require.NoError(m.T, err)
}

// put replaces both files, one after the other at the same moment, each at once.
func (m *mount) put(cert tls.Certificate) {
	m.T.Helper()
	m.write(m.cert, chainOf(cert))
	m.write(m.key, keyOf(m.T, cert))
}

// write replaces a file by rename.
func (m *mount) write(name string, data []byte) {
	m.T.Helper()
	require.NoError(m.T, os.WriteFile(name+".new", data, 0o600))
	require.NoError(m.T, os.Rename(name+".new", name))
}

func chainOf(cert tls.Certificate) (chain []byte) {
	for _, der := range cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return chain
}

func keyOf(t *testing.T, cert tls.Certificate) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// serves requires that cert serve, in every way there is, and nothing else be listed.
func (m *mount) serves(cert tls.Certificate, why ...any) {
	m.T.Helper()
	synctest.Wait()
	c := m.files.Certificate()
	require.Equal(m.T, cert.Certificate, c.TLS().Certificate, why...)
	got, err := m.files.GetCertificate(nil)
	require.NoError(m.T, err)
	require.Same(m.T, c.TLS(), got)
	got, err = m.files.GetClientCertificate(nil)
	require.NoError(m.T, err)
	require.Same(m.T, c.TLS(), got)
	got, err = m.stapler.TLSConfig(nil).GetCertificate(&tls.ClientHelloInfo{ServerName: cert.Leaf.DNSNames[0]})
	require.NoError(m.T, err)
	require.Same(m.T, c.TLS(), got)
	listed := 0
	for other := range m.stapler.Certificates() {
		require.Same(m.T, c, other)
		listed++
	}
	require.Equal(m.T, 1, listed)
}

// follows requires that cert serve soon, stapled.
func (m *mount) follows(cert tls.Certificate) {
	m.T.Helper()
	time.Sleep(noticed)
	m.serves(cert)
	world.RequireStaple(m.T, m.files.Certificate(), ocsp.Good)
}

// trouble returns the lines since it was called last that an operator sees.
func (m *mount) trouble() (lines []map[string]any) {
	synctest.Wait()
	for _, line := range m.log.TakeLines(m.T) {
		if line["level"] != "DEBUG" {
			lines = append(lines, line)
		}
	}
	return lines
}

// inBubble runs f in a synctest bubble, with a world.
func inBubble(t *testing.T, f func(t *testing.T, w *world.World)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, world.New(t)) })
}

func TestFilesThatAreRenewed(t *testing.T) {
	pause := func() { time.Sleep(3 * time.Second) }
	for name, way := range map[string]struct {
		begin, renew func(m *mount, cert tls.Certificate) // nil: put
	}{
		"by rename": {},
		"the certificate first": {renew: func(m *mount, cert tls.Certificate) {
			m.write(m.cert, chainOf(cert))
			pause()
			m.write(m.key, keyOf(m.T, cert))
		}},
		"the key first": {renew: func(m *mount, cert tls.Certificate) {
			m.write(m.key, keyOf(m.T, cert))
			pause()
			m.write(m.cert, chainOf(cert))
		}},
		"in place, slowly": {renew: func(m *mount, cert tls.Certificate) {
			for name, data := range map[string][]byte{m.cert: chainOf(cert), m.key: keyOf(m.T, cert)} {
				f, err := os.Create(name)
				require.NoError(m.T, err)
				for part := range bytes.Lines(data) {
					_, err := f.Write(part)
					require.NoError(m.T, err)
					time.Sleep(100 * time.Millisecond)
				}
				require.NoError(m.T, f.Close())
			}
		}},
		"removed, then written": {renew: func(m *mount, cert tls.Certificate) {
			require.NoError(m.T, os.Remove(m.cert))
			require.NoError(m.T, os.Remove(m.key))
			pause()
			m.put(cert)
		}},
		"in one file": {
			begin: func(m *mount, cert tls.Certificate) {
				m.key = m.cert
				m.write(m.cert, append(keyOf(m.T, cert), chainOf(cert)...))
			},
			renew: func(m *mount, cert tls.Certificate) { m.write(m.cert, append(chainOf(cert), keyOf(m.T, cert)...)) }},
		"as certbot does it": {begin: certbot, renew: certbot},
		"as Kubernetes does it": {begin: func(m *mount, cert tls.Certificate) {
			kubernetes(m, cert)
			for _, name := range []string{m.cert, m.key} {
				require.NoError(m.T, os.Symlink(filepath.Join("..data", filepath.Base(name)), name))
			}
		}, renew: kubernetes},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world.World) {
				m := mountOf(w)
				if way.begin == nil {
					way.begin = (*mount).put
				}
				if way.renew == nil {
					way.renew = (*mount).put
				}
				cert := w.Leaf()
				way.begin(m, cert)
				m.follow()
				m.follows(cert)
				for range 3 {
					time.Sleep(70 * time.Minute)
					m.serves(cert)
					cert = w.Leaf()
					way.renew(m, cert)
					m.follows(cert)
				}
				require.Empty(t, m.trouble())
				require.Len(t, w.Log.Events(), 4, "nobody is asked about those that were retired")
			})
		})
	}
}

// certbot writes another version beside those that there are, and relinks the names one after the other, as certbot does.
func certbot(m *mount, cert tls.Certificate) {
	version := fmt.Sprint(cert.Leaf.SerialNumber)
	require.NoError(m.T, os.MkdirAll(filepath.Join(m.dir, "archive"), 0o700))
	for name, data := range map[string][]byte{m.cert: chainOf(cert), m.key: keyOf(m.T, cert)} {
		target := filepath.Join("archive", filepath.Base(name)+version)
		m.write(filepath.Join(m.dir, target), data)
		if err := os.Remove(name); err == nil {
			time.Sleep(500 * time.Millisecond)
		}
		require.NoError(m.T, os.Symlink(target, name))
	}
}

// kubernetes writes a new folder and renames a symbolic link to it over ..data, as the kubelet does with a Secret.
func kubernetes(m *mount, cert tls.Certificate) {
	dir, err := os.MkdirTemp(m.dir, "..2026_")
	require.NoError(m.T, err)
	m.write(filepath.Join(dir, filepath.Base(m.cert)), chainOf(cert))
	m.write(filepath.Join(dir, filepath.Base(m.key)), keyOf(m.T, cert))
	data := filepath.Join(m.dir, "..data")
	old, _ := os.Readlink(data)
	require.NoError(m.T, os.Symlink(filepath.Base(dir), data+"_tmp"))
	require.NoError(m.T, os.Rename(data+"_tmp", data))
	if old != "" {
		require.NoError(m.T, os.RemoveAll(filepath.Join(m.dir, old)))
	}
}

func TestFilesThatAreTouchedChangeNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world.World) {
		cert := w.Leaf()
		m := newMount(w, cert)
		c := m.files.Certificate()
		for range 20 {
			time.Sleep(4 * time.Second)
			m.put(cert)
			at := time.Now().Add(-time.Hour)
			require.NoError(t, os.Chtimes(m.cert, at, at))
		}
		m.follows(cert)
		require.Same(t, c, m.files.Certificate())
		require.Len(t, w.Log.Events(), 1)
		require.Empty(t, m.trouble())
	})
}

// A file system that tells nothing of it, as some network ones, is found out by reading.
func TestContentsThatChangeUnseenAreNoticedWithinFiveMinutes(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world.World) {
		first, second := w.Leaf(), w.Leaf()
		second.PrivateKey = nil
		at := time.Now().Add(-time.Hour)
		put := func(m *mount, cert tls.Certificate, key []byte) {
			data := append(chainOf(cert), key...)
			data = append(data, bytes.Repeat([]byte("\n"), 8000-len(data))...)
			require.NoError(t, os.WriteFile(m.cert, data, 0o600))
			require.NoError(t, os.Chtimes(m.cert, at, at))
		}
		second = w.Leaf(world.SameKey(first.PrivateKey))
		m := mountOf(w)
		m.key = m.cert
		put(m, first, keyOf(t, first))
		m.follow()
		m.follows(first)
		before, err := os.Stat(m.cert)
		require.NoError(t, err)
		time.Sleep(4 * time.Hour)
		put(m, second, keyOf(t, second))
		after, err := os.Stat(m.cert)
		require.NoError(t, err)
		require.True(t, os.SameFile(before, after))
		require.Equal(t, before.ModTime(), after.ModTime())
		require.Equal(t, before.Size(), after.Size())
		time.Sleep(5 * time.Minute)
		m.follows(second)
	})
}

// Whoever reads a chain and a key between two writes may get a pair that fits and is not what was meant.
func TestWhatIsBeingWrittenIsNotServed(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world.World) {
		cert := w.Leaf()
		m := newMount(w, cert)
		short := w.Leaf(world.SameKey(cert.PrivateKey))
		whole := short
		short.Certificate = short.Certificate[:1]
		for range 30 {
			m.put(short)
			time.Sleep(900 * time.Millisecond)
			m.put(cert)
			time.Sleep(900 * time.Millisecond)
			m.serves(cert)
		}
		m.write(m.cert, chainOf(whole)[:len(chainOf(whole))-100])
		time.Sleep(30 * time.Second)
		m.serves(cert)
		m.put(whole)
		m.follows(whole)
	})
}
