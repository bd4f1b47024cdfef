package whole

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/peer"
	"github.com/go-staple/staple/internal/pemfiles"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// A breakage is what somebody makes of the files of a mount.
type breakage struct {
	do    func(m *mount)
	names string // the file that errors and the log name, if not both
	loads bool   // tls.LoadX509KeyPair takes it all the same
}

var breakages = map[string]breakage{
	"garbage":              {do: func(m *mount) { m.write(m.cert, bytes.Repeat([]byte{0, 0xff}, 5000)) }},
	"an empty file":        {do: func(m *mount) { m.write(m.key, nil) }},
	"half a chain":         {do: func(m *mount) { m.write(m.cert, half(chainOf(m.Leaf(world.SameKey(m.CA.Key))))) }},
	"half a key":           {do: func(m *mount) { m.write(m.key, half(keyOf(m.T, m.Leaf()))) }},
	"no certificate":       {do: func(m *mount) { m.write(m.cert, keyOf(m.T, m.Leaf())) }},
	"the key alone, twice": {do: func(m *mount) { m.write(m.cert, keyOf(m.T, m.Leaf())); m.write(m.key, keyOf(m.T, m.Leaf())) }},
	"another's key":        {do: func(m *mount) { m.write(m.key, keyOf(m.T, m.Leaf())) }},
	"an encrypted key": {do: func(m *mount) {
		m.write(m.key, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: make([]byte, 100)}))
	}},
	"a huge file":           {do: func(m *mount) { require.NoError(m.T, os.Truncate(m.cert, 1<<40)) }, names: "tls.crt"},
	"a directory":           {do: func(m *mount) { m.remove(m.key); require.NoError(m.T, os.Mkdir(m.key, 0o700)) }, names: "tls.key"},
	"a link to itself":      {do: func(m *mount) { m.remove(m.key); require.NoError(m.T, os.Symlink("tls.key", m.key)) }, names: "tls.key"},
	"a link to nowhere":     {do: func(m *mount) { m.remove(m.cert); require.NoError(m.T, os.Symlink("nowhere", m.cert)) }, names: "tls.crt"},
	"a certificate removed": {do: func(m *mount) { m.remove(m.cert) }, names: "tls.crt"},
	"a key removed":         {do: func(m *mount) { m.remove(m.key) }, names: "tls.key"},
	"the folder removed":    {do: func(m *mount) { require.NoError(m.T, os.Rename(m.dir, m.dir+".away")) }, names: "tls.crt"},
	"a pipe": {do: func(m *mount) {
		m.remove(m.key)
		require.NoError(m.T, exec.Command(peer.Need(m.T, "mkfifo"), m.key).Run())
	}, names: "tls.key"},
	"expired": {do: func(m *mount) {
		m.put(m.Leaf(func(o *stapletest.LeafOptions) {
			o.NotBefore, o.NotAfter = time.Now().Add(-world.Day), time.Now().Add(-time.Hour)
		}))
	}, loads: true},
	"the end of a chain missing": {do: func(m *mount) {
		cert := m.Leaf()
		m.put(cert)
		m.write(m.cert, chainOf(cert)[:len(chainOf(cert))-50])
	}, loads: true},
}

func half(data []byte) []byte { return data[:len(data)/2] }

func (m *mount) remove(name string) { require.NoError(m.T, os.Remove(name)) }

// mend undoes what breakages do to folders, and puts cert.
func (m *mount) mend(cert tls.Certificate) {
	if _, err := os.Stat(m.dir + ".away"); err == nil {
		require.NoError(m.T, os.Rename(m.dir+".away", m.dir))
	}
	for _, name := range []string{m.cert, m.key} {
		_ = os.RemoveAll(name)
	}
	m.put(cert)
}

func TestWhatCannotBeUsedLeavesWhatServes(t *testing.T) {
	for name, b := range breakages {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world.World) {
				cert := w.Leaf()
				m := newMount(w, cert)
				names := func(text string) {
					t.Helper()
					if b.names == "" {
						require.Contains(t, text, m.cert)
						require.Contains(t, text, m.key)
					} else {
						require.Contains(t, text, filepath.Join(m.dir, b.names))
					}
				}
				b.do(m)
				began := time.Now()
				err := m.files.Reload(world.Soon(t))
				require.Error(t, err)
				names(err.Error())
				require.Less(t, time.Since(began), 2*time.Second)
				m.serves(cert)
				require.ErrorContains(t, m.files.Reload(world.Soon(t)), err.Error(), "again")
				time.Sleep(time.Until(began.Add(59 * time.Second)))
				m.serves(cert)
				require.Empty(t, m.trouble(), "quietly for a minute")
				time.Sleep(10 * time.Second)
				lines := m.trouble()
				require.Len(t, lines, 1)
				require.Equal(t, "WARN", lines[0]["level"])
				require.Equal(t, m.cert, lines[0]["file"])
				require.Equal(t, m.key, lines[0]["key_file"])
				names(lines[0]["error"].(string))
				time.Sleep(50 * time.Minute)
				require.Empty(t, m.trouble())
				m.serves(cert)

				next := w.Leaf()
				m.mend(next)
				m.follows(next)
				lines = m.trouble()
				require.Len(t, lines, 1)
				require.Equal(t, "INFO", lines[0]["level"])
				require.Equal(t, m.cert, lines[0]["file"])
				require.NoError(t, m.files.Reload(world.Soon(t)))

				// What vanishes and comes back as it was is not another certificate.
				c := m.files.Certificate()
				m.remove(m.cert)
				time.Sleep(30 * time.Second)
				m.put(next)
				m.follows(next)
				require.Same(t, c, m.files.Certificate())
				require.Empty(t, m.trouble())
			})
		})
	}
}

func TestAddFilesFailsAsLoadX509KeyPairDoes(t *testing.T) {
	for name, b := range breakages {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world.World) {
				m := mountOf(w)
				m.put(w.Leaf())
				b.do(m)
				f, err := m.stapler.AddFiles(m.cert, m.key)
				if name != "a pipe" && name != "a huge file" { // LoadX509KeyPair waits for whoever writes, and reads whatever there is
					_, want := tls.LoadX509KeyPair(m.cert, m.key)
					require.Equal(t, want == nil, err == nil, "%v, not %v", err, want)
					require.Equal(t, b.loads, err == nil)
					if os.IsNotExist(want) {
						require.ErrorIs(t, err, fs.ErrNotExist)
					}
				}
				if err != nil {
					require.Nil(t, f)
					require.ErrorContains(t, err, m.dir)
					for range m.stapler.Certificates() {
						t.Error("a certificate is left")
					}
				}
			})
		})
	}
	t.Run("and as Add does", func(t *testing.T) {
		inBubble(t, func(t *testing.T, w *world.World) {
			m := mountOf(w)
			m.put(w.Leaf())
			require.NoError(t, m.stapler.Close())
			_, err := m.stapler.AddFiles(m.cert, m.key)
			require.ErrorIs(t, err, staple.ErrClosed)
		})
	})
}

func TestFilesThatNobodyMayRead(t *testing.T) {
	if !world.IsChild() {
		if os.Geteuid() == 0 {
			world.RequirePass(t, world.Unprivileged(t))
			return
		}
	}
	inBubble(t, func(t *testing.T, w *world.World) {
		cert, next := w.Leaf(), w.Leaf()
		m := newMount(w, cert)
		m.put(next)
		require.NoError(t, os.Chmod(m.key, 0))
		_, err := m.stapler.AddFiles(m.cert, m.key)
		require.ErrorIs(t, err, fs.ErrPermission)
		require.ErrorContains(t, err, m.key)
		require.ErrorIs(t, m.files.Reload(world.Soon(t)), fs.ErrPermission)
		time.Sleep(2 * time.Minute)
		m.serves(cert)
		require.Len(t, m.trouble(), 1)
		require.NoError(t, os.Chmod(m.key, 0o400))
		m.follows(next)
	})
}

func TestTroubleIsNamedOnceAMinuteAtMost(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world.World) {
		cert := w.Leaf()
		m := newMount(w, cert)
		for i := range 100 { // another trouble each time
			m.write(m.cert, []byte(fmt.Sprint("nothing ", i)))
			if i%2 == 0 {
				m.remove(m.cert)
			}
			time.Sleep(9 * time.Second)
		}
		m.serves(cert)
		n := len(m.trouble())
		require.LessOrEqual(t, n, 15)
		require.GreaterOrEqual(t, n, 5)
	})
}

// blocked makes looks at names hang until what it returns is called.
func blocked(t *testing.T, hangs func(pemfiles.Names) bool) (release func()) {
	back := make(chan struct{})
	restore := pemfiles.Before(func(n pemfiles.Names) {
		if hangs(n) {
			<-back
		}
	})
	release = sync.OnceFunc(func() { close(back) })
	t.Cleanup(func() {
		release()
		synctest.Wait()
		restore()
	})
	return release
}

func TestAFileSystemThatHangsHoldsUpItsPairAlone(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world.World) {
		hung := newMount(w, w.Leaf())
		cert := hung.files.Certificate().TLS()
		other := newMount(w, w.Leaf())
		other.stapler.Close()
		other.stapler = hung.stapler
		other.follow()
		third, err := hung.stapler.AddFiles(other.cert, other.key)
		require.NoError(t, err)
		release := blocked(t, func(n pemfiles.Names) bool { return n.Cert == hung.cert })
		next := w.Leaf()
		hung.put(next)
		time.Sleep(20 * time.Second)
		for range 3 {
			next := w.Leaf()
			other.put(next)
			time.Sleep(noticed)
			require.Equal(t, next.Certificate, other.files.Certificate().TLS().Certificate)
			require.Equal(t, next.Certificate, third.Certificate().TLS().Certificate)
		}
		require.NoError(t, third.Reload(world.Soon(t)))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err = hung.files.Reload(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, hung.cert)
		require.Same(t, cert, hung.files.Certificate().TLS())
		time.Sleep(2 * time.Minute)
		lines := hung.trouble()
		require.Len(t, lines, 1)
		require.Equal(t, hung.cert, lines[0]["file"])
		require.Contains(t, lines[0]["error"], "does not answer")
		release()
		time.Sleep(noticed)
		require.Equal(t, next.Certificate, hung.files.Certificate().TLS().Certificate)
		require.Len(t, hung.trouble(), 1)
	})
}

func TestCloseWaitsFiveSecondsForAFileSystemThatHangs(t *testing.T) {
	for hangs, want := range map[time.Duration]time.Duration{0: 0, 3 * time.Second: 3 * time.Second, time.Hour: 5 * time.Second} {
		inBubble(t, func(t *testing.T, w *world.World) {
			m := newMount(w, w.Leaf())
			if hangs > 0 {
				release := blocked(t, func(pemfiles.Names) bool { return true })
				time.Sleep(6 * time.Second)
				time.AfterFunc(hangs, release)
			}
			reloaded := make(chan error, 1)
			go func() { reloaded <- m.files.Reload(t.Context()) }()
			synctest.Wait()
			began := time.Now()
			require.NoError(t, m.stapler.Close())
			require.Equal(t, want, time.Since(began))
			if err := <-reloaded; hangs > 0 {
				require.ErrorIs(t, err, staple.ErrClosed)
			}
			require.ErrorIs(t, m.files.Reload(t.Context()), staple.ErrClosed)
			m.put(w.Leaf())
			time.Sleep(2 * time.Hour)
			require.NotNil(t, m.files.Certificate().TLS())
		})
	}
}

// filesGoroutines returns how many goroutines look after files.
func filesGoroutines() int {
	buf := make([]byte, 4<<20)
	return strings.Count(string(buf[:runtime.Stack(buf, true)]), "lookout.(*Lookout).round(")
}

func TestAThousandPairsCostOneGoroutine(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world.World) {
		m := newMount(w, w.Leaf(world.LongLived))
		var all []*staple.Files
		for range 999 {
			f, err := m.stapler.AddFiles(m.cert, m.key)
			require.NoError(t, err)
			all = append(all, f)
		}
		looks, most := 0, 0
		var mu sync.Mutex
		restore := pemfiles.Before(func(pemfiles.Names) {
			mu.Lock()
			defer mu.Unlock()
			if looks++; looks%100 == 0 {
				most = max(most, filesGoroutines())
			}
		})
		time.Sleep(20 * time.Second)
		synctest.Wait()
		require.Equal(t, 1, most)
		require.Zero(t, filesGoroutines(), "and none while nothing is due")
		restore()
		next := w.Leaf(world.LongLived)
		m.put(next)
		time.Sleep(noticed)
		for _, f := range all {
			require.Equal(t, next.Certificate, f.Certificate().TLS().Certificate)
			f.Remove()
		}
		require.Len(t, w.Responder.Requests(next.Leaf), 1, "of all with the same certificate")
		m.serves(next)
	})
}

func TestRemoveLeavesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world.World) {
		m := newMount(w, w.Leaf())
		w.Responder.Set(nil, stapletest.Answer{Hang: true})
		next := w.Leaf()
		m.put(next)
		time.Sleep(8 * time.Second) // it waits for its staple
		require.NotEmpty(t, w.Responder.Requests(next.Leaf))
		var looks atomic.Int64
		defer pemfiles.Before(func(pemfiles.Names) { looks.Add(1) })()
		reloaded := make(chan error, 1)
		go func() { reloaded <- m.files.Reload(t.Context()) }()
		synctest.Wait()
		looks.Store(0)
		c := m.files.Certificate()
		m.files.Remove()
		m.files.Remove()
		require.ErrorIs(t, <-reloaded, staple.ErrClosed)
		require.ErrorIs(t, m.files.Reload(t.Context()), staple.ErrClosed)
		require.ErrorIs(t, c.Wait(t.Context()), nil, "as a removed handle, it shows its staple until that ends")
		time.Sleep(time.Hour)
		require.Zero(t, looks.Load())
		for range m.stapler.Certificates() {
			t.Error("a certificate is left")
		}
		world.RequireStaple(t, c, ocsp.Good)
		config := m.stapler.TLSConfig(nil)
		got, err := config.GetCertificate(&tls.ClientHelloInfo{})
		require.NoError(t, err)
		require.Nil(t, got)
	})
}
