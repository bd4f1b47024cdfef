//go:build unix

package keep

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// TestMain lets the test binary be the command.
func TestMain(m *testing.M) {
	if os.Getenv("STAPLE_TEST_KEEP") == "1" {
		os.Exit(Main(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// An output is what was written, by whomever.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (x *output) Write(p []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.Write(p)
}

func (x *output) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.String()
}

// A scene is a folder with PEM files, and a keeper for it in a bubble.
type scene struct {
	*testing.T
	*world.World
	dir    string
	log    *output
	keeper *keeper
	hangup chan os.Signal
	stop   func() (exit int) // the keeper
}

// play runs f in a bubble.
func play(t *testing.T, f func(s *scene)) {
	world.CA()
	synctest.Test(t, func(t *testing.T) {
		s := &scene{T: t, World: world.New(t), dir: t.TempDir(), log: new(output)}
		defer func() {
			if s.stop != nil {
				s.stop()
			}
		}()
		f(s)
	})
}

// args are arguments, with what begins with a dot and a slash in the folder.
func (s *scene) args(args []string) []string {
	args = append([]string(nil), args...)
	for i, a := range args {
		if a == "." || strings.HasPrefix(a, "./") {
			args[i] = filepath.Join(s.dir, a)
		}
	}
	return args
}

func (s *scene) make(args ...string) *keeper {
	s.Helper()
	o, err := parse(s.args(args))
	require.NoError(s, err)
	return newKeeper(o, &staple.HTTPFetcher{Client: s.Responder.Client()}, s.log)
}

// start starts a keeper, and lets it do what is to be done at once.
func (s *scene) start(args ...string) {
	s.Helper()
	if s.stop != nil {
		s.stop()
	}
	s.keeper, s.hangup = s.make(args...), make(chan os.Signal, 1)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	k, hangup := s.keeper, s.hangup
	go func() { ended <- run(ctx, k, hangup, s.log, s.log) }()
	s.stop = func() int {
		s.stop = nil
		cancel()
		return <-ended
	}
	synctest.Wait()
}

// once runs a keeper once.
func (s *scene) once(args ...string) (exit int, stdout string) {
	s.Helper()
	out := new(output)
	exit = run(context.Background(), s.make(append([]string{"-once"}, args...)...), nil, out, s.log)
	return exit, out.String()
}

// pass lets time pass.
func (s *scene) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (s *scene) path(name string) string { return filepath.Join(s.dir, name) }

func encode(ders ...[]byte) (data []byte) {
	for _, der := range ders {
		data = append(data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return data
}

func keyPEM(t testing.TB, cert tls.Certificate) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// write writes a file as those do who take care: all at once.
func (s *scene) write(name string, data []byte) {
	s.Helper()
	require.NoError(s, os.WriteFile(s.path(name+".new"), data, 0o644))
	require.NoError(s, os.Rename(s.path(name+".new"), s.path(name)))
}

// chain writes a new chain.
func (s *scene) chain(name string, edit ...func(*stapletest.LeafOptions)) *x509.Certificate {
	s.Helper()
	cert := s.Leaf(edit...)
	s.write(name, encode(cert.Certificate...))
	return cert.Leaf
}

func (s *scene) remove(name string) { require.NoError(s, os.Remove(s.path(name))) }

func (s *scene) exists(name string) bool {
	_, err := os.Lstat(s.path(name))
	return err == nil
}

// good requires that a file is a good and current response about leaf, trimmed, and returns it.
func (s *scene) good(name string, leaf *x509.Certificate) (thisUpdate time.Time) {
	s.Helper()
	data, err := os.ReadFile(s.path(name))
	require.NoError(s, err)
	r, _, err := new(staple.ResponseVerifier).Verify(data, leaf, s.CA.Issuer, time.Now())
	require.NoError(s, err)
	require.Equal(s, ocsp.Good, r.Status)
	require.Equal(s, r.Raw, data, "trimmed")
	return r.ThisUpdate
}

// goneWithin requires that a file that was there is removed after no more than d.
func (s *scene) goneWithin(d time.Duration, name string) {
	s.Helper()
	for range d / (100 * time.Millisecond) {
		if !s.exists(name) {
			return
		}
		s.pass(100 * time.Millisecond)
	}
	require.False(s, s.exists(name), "%s is still there", name)
}

// down has the responder fail from now on.
func (s *scene) down() {
	s.Responder.Set(nil, stapletest.Answer{HTTPStatus: 500, Body: []byte("down")})
}

// refresh asks about all certificates now.
func (s *scene) refresh() {
	s.Helper()
	for c := range s.keeper.stapler.Certificates() {
		require.NoError(s, c.Refresh(s.T.Context()))
	}
}

func (s *scene) names() (names []string) {
	entries, err := os.ReadDir(s.dir)
	require.NoError(s, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func validity(d time.Duration) stapletest.Answer { return stapletest.Answer{Validity: d} }

func TestKeepsAResponseBesideEachNameGiven(t *testing.T) {
	play(t, func(s *scene) {
		require.NoError(t, os.MkdirAll(s.path("folder/below"), 0o755))
		require.NoError(t, os.MkdirAll(s.path("elsewhere"), 0o755))
		s.Responder.Set(nil, stapletest.Answer{Embed: []*x509.Certificate{s.CA.Issuer, s.CA.Root}}) // to be trimmed
		a, b := s.chain("a.pem"), s.chain("folder/b.crt")
		c, d := s.chain("elsewhere/c.pem"), s.chain("elsewhere/d.pem")
		s.chain("folder/below/e.pem")
		require.NoError(t, os.Symlink(s.path("elsewhere/c.pem"), s.path("link.pem")))
		require.NoError(t, os.Symlink("../elsewhere/d.pem", s.path("folder/link.pem")))
		s.start("./a.pem", "./link.pem", "./folder")
		s.good("a.pem.ocsp", a)
		s.good("folder/b.crt.ocsp", b)
		s.good("link.pem.ocsp", c)
		s.good("folder/link.pem.ocsp", d)
		require.False(t, s.exists("elsewhere/c.pem.ocsp"))
		require.False(t, s.exists("elsewhere/d.pem.ocsp"))
		require.False(t, s.exists("folder/below/e.pem.ocsp"), "folders are not descended into")
		s.pass(time.Minute)
		require.Equal(t, []string{"a.pem", "a.pem.ocsp", "elsewhere", "folder", "link.pem", "link.pem.ocsp"}, s.names())

		s.start("-suffix", ".der", "./a.pem", "./a.pem.der")
		s.good("a.pem.der", a)
		require.Len(t, s.Responder.Requests(a), 2)
		require.Equal(t, well, s.stop())
		require.True(t, s.exists("a.pem.der"), "files stay")
	})
}

func TestStaysCurrent(t *testing.T) {
	play(t, func(s *scene) {
		s.Responder.Set(nil, validity(10*time.Minute))
		leaf := s.chain("a.pem")
		s.start(".")
		first := s.good("a.pem.ocsp", leaf)
		for range 60 {
			s.pass(time.Minute)
			require.Less(t, time.Since(s.good("a.pem.ocsp", leaf)), 7*time.Minute)
		}
		require.Greater(t, s.good("a.pem.ocsp", leaf), first)
		require.Less(t, len(s.Responder.Requests(leaf)), 16)
	})
}

func TestNothingIsAskedBeforeItIsDue(t *testing.T) {
	play(t, func(s *scene) {
		s.Responder.Set(nil, stapletest.Answer{Validity: time.Hour, Embed: []*x509.Certificate{s.CA.Issuer}})
		a, b := s.chain("a.pem"), s.chain("b.pem")
		require.NoError(t, os.WriteFile(s.path("b.pem.ocsp"), s.Responder.Response(b), 0o644)) // as it came to somebody else
		s.start(".")
		s.good("a.pem.ocsp", a)
		s.good("b.pem.ocsp", b)
		require.Len(t, s.Responder.Requests(nil), 1)
		for range 5 {
			s.pass(time.Minute)
			s.start(".")
			exit, _ := s.once(".")
			require.Equal(t, well, exit)
		}
		require.Len(t, s.Responder.Requests(nil), 1)
		s.pass(30 * time.Minute)
		require.Len(t, s.Responder.Requests(a), 2)
		require.Len(t, s.Responder.Requests(b), 1)
	})
}

func TestTheSameChainInTwoFilesIsAskedAboutOnce(t *testing.T) {
	play(t, func(s *scene) {
		s.Responder.Set(nil, validity(time.Hour))
		cert := s.Leaf()
		s.write("fullchain.pem", encode(cert.Certificate...))
		s.write("cert.pem", encode(cert.Certificate[0]))
		s.start("./cert.pem", "./fullchain.pem", ".")
		s.good("cert.pem.ocsp", cert.Leaf)
		s.good("fullchain.pem.ocsp", cert.Leaf)
		s.pass(40 * time.Minute)
		require.Len(t, s.Responder.Requests(nil), 2)
		s.remove("fullchain.pem")
		s.goneWithin(2*time.Second, "fullchain.pem.ocsp")
		s.pass(time.Hour)
		s.good("cert.pem.ocsp", cert.Leaf)
	})
}

func TestIsRemovedWithinTwoSeconds(t *testing.T) {
	play(t, func(s *scene) {
		s.Responder.Set(nil, validity(10*time.Minute))
		leaf := s.chain("a.pem")
		s.start(".")
		s.down()
		s.pass(time.Until(s.good("a.pem.ocsp", leaf).Add(10*time.Minute - time.Millisecond)))
		s.good("a.pem.ocsp", leaf)
		s.goneWithin(2*time.Second, "a.pem.ocsp")
		s.pass(time.Hour)
		require.False(t, s.exists("a.pem.ocsp"))
		s.Responder.Set(nil, validity(time.Hour))
		s.pass(10 * time.Minute)
		s.good("a.pem.ocsp", leaf)

		s.Responder.Set(leaf, stapletest.Answer{Status: ocsp.Revoked})
		s.refresh()
		s.goneWithin(2*time.Second, "a.pem.ocsp")
		s.pass(time.Millisecond)
		require.Contains(t, s.log.String(), "state=revoked")

		next := s.chain("a.pem")
		s.pass(1300 * time.Millisecond)
		s.good("a.pem.ocsp", next)
		s.remove("a.pem")
		s.goneWithin(2*time.Second, "a.pem.ocsp")
		s.pass(time.Hour)
		require.Empty(t, s.names())

		last := s.chain("a.pem")
		s.pass(2 * time.Second)
		s.good("a.pem.ocsp", last)
		s.down()
		s.chain("a.pem")
		s.goneWithin(2*time.Second, "a.pem.ocsp")
	})
}

// A server that reloads meanwhile is to find the new chain's response.
func TestARenewedChainHasItsResponseWithoutAGap(t *testing.T) {
	play(t, func(s *scene) {
		s.Responder.Set(nil, stapletest.Answer{Delay: 200 * time.Millisecond})
		s.chain("a.pem")
		s.start(".")
		s.pass(2 * time.Second)
		next := s.chain("a.pem")
		for range 200 {
			s.pass(10 * time.Millisecond)
			require.True(t, s.exists("a.pem.ocsp"))
		}
		s.good("a.pem.ocsp", next)
	})
}

func TestWhatLiesThereAndIsNotGoodIsRemoved(t *testing.T) {
	forged := stapletest.NewCA(stapletest.CAOptions{Intermediate: true})
	for name, data := range map[string]func(s *scene, leaf *x509.Certificate) []byte{
		"ended": func(s *scene, leaf *x509.Certificate) []byte {
			return s.answer(leaf, stapletest.Answer{Age: time.Hour, Validity: time.Minute})
		},
		"another's":   func(s *scene, leaf *x509.Certificate) []byte { return s.answer(s.Leaf().Leaf, stapletest.Answer{}) },
		"forged":      func(s *scene, leaf *x509.Certificate) []byte { return stapletest.NewResponse(forged, leaf).DER() },
		"half of one": func(s *scene, leaf *x509.Certificate) []byte { return s.answer(leaf, stapletest.Answer{})[:100] },
		"an error": func(s *scene, leaf *x509.Certificate) []byte {
			return s.answer(leaf, stapletest.Answer{Error: ocsp.TryLater})
		},
		"revoked": func(s *scene, leaf *x509.Certificate) []byte {
			return s.answer(leaf, stapletest.Answer{Status: ocsp.Revoked})
		},
		"unknown": func(s *scene, leaf *x509.Certificate) []byte {
			return s.answer(leaf, stapletest.Answer{Status: ocsp.Unknown})
		},
		"nothing at all": func(s *scene, leaf *x509.Certificate) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(s *scene) {
				leaf := s.chain("a.pem")
				require.NoError(t, os.WriteFile(s.path("a.pem.ocsp"), data(s, leaf), 0o644))
				s.Responder.Set(nil, stapletest.Answer{Hang: true})
				s.start(".")
				require.False(t, s.exists("a.pem.ocsp"))
			})
		})
	}
}

func (s *scene) answer(leaf *x509.Certificate, a stapletest.Answer) []byte {
	r := stapletest.NewResponder(s.CA)
	r.Set(leaf, a)
	return r.Response(leaf)
}

// Where the issuer has to be looked for, what lies there cannot be judged before.
func TestWhatCannotBeJudgedYetStaysAsLongAsThat(t *testing.T) {
	for name, found := range map[string]bool{"and the issuer is found": true, "and the issuer is not found": false} {
		t.Run(name, func(t *testing.T) {
			play(t, func(s *scene) {
				leaf := s.chain("a.pem", func(o *stapletest.LeafOptions) { o.OmitIssuer = true })
				require.NoError(t, os.WriteFile(s.path("a.pem.ocsp"), s.answer(leaf, stapletest.Answer{}), 0o644))
				k := s.make(".")
				k.stapler.Fetcher = slowIssuer{k.stapler.Fetcher, s.CA.Issuer, found}
				ctx, cancel := context.WithCancel(context.Background())
				go run(ctx, k, nil, s.log, s.log)
				defer cancel()
				s.pass(4 * time.Second)
				require.True(t, s.exists("a.pem.ocsp"))
				s.pass(2 * time.Second)
				require.Equal(t, found, s.exists("a.pem.ocsp"))
				require.Empty(t, s.Responder.Requests(nil))
			})
		})
	}
}

type slowIssuer struct {
	staple.Fetcher
	issuer *x509.Certificate
	found  bool
}

func (f slowIssuer) FetchIssuer(context.Context, *x509.Certificate) ([]*x509.Certificate, error) {
	time.Sleep(5 * time.Second)
	if !f.found {
		return nil, staple.ErrNoIssuer
	}
	return []*x509.Certificate{f.issuer}, nil
}

func TestPassesOverWhatIsNoChainOfAServer(t *testing.T) {
	play(t, func(s *scene) {
		cert := s.Leaf()
		chain := encode(cert.Certificate...)
		for name, data := range map[string][]byte{
			"privkey.pem":    keyPEM(t, cert),
			"README":         []byte("nothing to see"),
			"empty.pem":      nil,
			".hidden.pem":    chain,
			"old.pem.ocsp":   []byte("not ours to judge: its chain is gone"),
			"chain.pem.ocsp": chain,
			"ca.pem":         encode(s.CA.Issuer.Raw, s.CA.Root.Raw, cert.Certificate[0]),
			"request.pem":    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte("x")}),
			"huge.bin":       bytes.Repeat(chain, 1<<20/len(chain)),
		} {
			require.NoError(t, os.WriteFile(s.path(name), data, 0o644))
		}
		require.NoError(t, os.Mkdir(s.path("folder.pem"), 0o755))
		require.NoError(t, os.Symlink("folder.pem", s.path("link")))
		require.NoError(t, os.Symlink("nowhere", s.path("dangling.pem")))
		require.NoError(t, os.WriteFile(s.path("folder.pem/a.pem"), chain, 0o644))
		require.NoError(t, syscall.Mkfifo(s.path("pipe.pem"), 0o644))
		before := s.names()
		s.start(".")
		s.pass(time.Minute)
		require.Equal(t, before, s.names())
		require.Empty(t, s.Responder.Requests(nil))
		require.Empty(t, s.log.String())
		exit, _ := s.once(".")
		require.Equal(t, well, exit)
		require.Equal(t, 1, strings.Count(s.log.String(), "there is no chain in this folder"), s.log)
	})
}

func TestFollowsFilesThatComeChangeAndGo(t *testing.T) {
	play(t, func(s *scene) {
		require.NoError(t, os.Mkdir(s.path("certs"), 0o755))
		s.start("./certs", "./later.pem")
		a := s.chain("certs/a.pem")
		later := s.chain("later.pem")
		s.pass(1100 * time.Millisecond)
		s.good("certs/a.pem.ocsp", a)
		s.good("later.pem.ocsp", later)

		// In place, and as other certificates were: a look in between sees half of it.
		cert := s.Leaf()
		data := append(encode(cert.Certificate...), keyPEM(t, cert)...)
		for n := range 4 {
			require.NoError(t, os.WriteFile(s.path("certs/a.pem"), data[:len(data)*n/4], 0o644))
			s.pass(1100 * time.Millisecond)
			require.True(t, s.exists("certs/a.pem.ocsp"))
		}
		require.NoError(t, os.WriteFile(s.path("certs/a.pem"), data, 0o644))
		s.pass(1100 * time.Millisecond)
		s.good("certs/a.pem.ocsp", cert.Leaf)

		// As certbot does: a link that is pointed at another file.
		require.NoError(t, os.Mkdir(s.path("archive"), 0o755))
		first, second := s.chain("archive/1.pem"), s.chain("archive/2.pem")
		require.NoError(t, os.Symlink("../archive/1.pem", s.path("certs/link.pem")))
		s.pass(1100 * time.Millisecond)
		s.good("certs/link.pem.ocsp", first)
		s.remove("certs/link.pem")
		require.NoError(t, os.Symlink("../archive/2.pem", s.path("certs/link.pem")))
		s.pass(1100 * time.Millisecond)
		s.good("certs/link.pem.ocsp", second)

		// As Kubernetes does: the link of a folder is another.
		for _, v := range []string{"v1", "v2"} {
			require.NoError(t, os.Mkdir(s.path(v), 0o755))
		}
		third, fourth := s.chain("v1/tls.crt"), s.chain("v2/tls.crt")
		require.NoError(t, os.Symlink("v1", s.path("data")))
		require.NoError(t, os.Symlink("../data/tls.crt", s.path("certs/tls.crt")))
		s.pass(1100 * time.Millisecond)
		s.good("certs/tls.crt.ocsp", third)
		require.NoError(t, os.Symlink("v2", s.path("data.new")))
		require.NoError(t, os.Rename(s.path("data.new"), s.path("data")))
		s.pass(1100 * time.Millisecond)
		s.good("certs/tls.crt.ocsp", fourth)

		// What is no chain any more.
		s.write("certs/a.pem", keyPEM(t, cert))
		s.goneWithin(2*time.Second, "certs/a.pem.ocsp")
		s.remove("later.pem")
		s.goneWithin(2*time.Second, "later.pem.ocsp")
		s.remove("certs/tls.crt")
		s.goneWithin(2*time.Second, "certs/tls.crt.ocsp")
		n := 0
		for range s.keeper.stapler.Certificates() {
			n++
		}
		require.Equal(t, 1, n)
	})
}

func TestAFolderThatVanishesMayComeBack(t *testing.T) {
	play(t, func(s *scene) {
		require.NoError(t, os.Mkdir(s.path("certs"), 0o755))
		a := s.chain("certs/a.pem")
		s.start("./certs")
		s.good("certs/a.pem.ocsp", a)
		require.NoError(t, os.Rename(s.path("certs"), s.path("away")))
		s.pass(time.Minute)
		require.Equal(t, 1, strings.Count(s.log.String(), "level=WARN"), s.log)
		require.Equal(t, []string{"away"}, s.names())
		require.NoError(t, os.Rename(s.path("away"), s.path("certs")))
		s.pass(1100 * time.Millisecond)
		s.good("certs/a.pem.ocsp", a)
		require.NoError(t, os.RemoveAll(s.path("certs")))
		s.pass(time.Minute)
		require.NoError(t, os.Mkdir(s.path("certs"), 0o755))
		b := s.chain("certs/b.pem")
		s.pass(1100 * time.Millisecond)
		s.good("certs/b.pem.ocsp", b)
	})
}

func TestLooksAtOnceWhenToldTo(t *testing.T) {
	play(t, func(s *scene) {
		s.start(".")
		s.pass(500 * time.Millisecond)
		leaf := s.chain("a.pem")
		require.False(t, s.exists("a.pem.ocsp"))
		s.hangup <- syscall.SIGHUP
		synctest.Wait()
		s.good("a.pem.ocsp", leaf)
	})
}

// A copy that keeps times, of another chain of the same length.
func TestContentsAreReadFromTimeToTime(t *testing.T) {
	play(t, func(s *scene) {
		old := time.Now().Add(-time.Hour)
		first, second := s.Leaf(), s.Leaf()
		size := max(len(encode(first.Certificate...)), len(encode(second.Certificate...))) + 10
		write := func(cert tls.Certificate) {
			data := encode(cert.Certificate...)
			data = append(data, bytes.Repeat([]byte("\n"), size-len(data))...)
			require.NoError(t, os.WriteFile(s.path("a.pem"), data, 0o644))
			require.NoError(t, os.Chtimes(s.path("a.pem"), old, old))
		}
		write(first)
		s.start(".")
		s.pass(10 * time.Second)
		s.good("a.pem.ocsp", first.Leaf)
		write(second)
		s.pass(5*time.Minute + time.Second)
		s.good("a.pem.ocsp", second.Leaf)
		write(first)
		s.hangup <- syscall.SIGHUP
		s.pass(time.Second)
		s.good("a.pem.ocsp", first.Leaf)
	})
}

func TestACacheOutlivesTheFiles(t *testing.T) {
	play(t, func(s *scene) {
		require.NoError(t, os.Mkdir(s.path("certs"), 0o755))
		a, b := s.chain("certs/a.pem"), s.chain("certs/b.pem")
		s.Responder.Set(b, stapletest.Answer{Status: ocsp.Revoked})
		s.start("-cache", "./cache", "./certs")
		s.good("certs/a.pem.ocsp", a)
		s.stop()
		s.remove("certs/a.pem.ocsp")
		good := s.answer(b, stapletest.Answer{Age: time.Minute})
		require.NoError(t, os.WriteFile(s.path("certs/b.pem.ocsp"), good, 0o644))
		s.down()
		s.start("-cache", "./cache", "./certs")
		s.good("certs/a.pem.ocsp", a)
		require.False(t, s.exists("certs/b.pem.ocsp"), "what is revoked stays so")
	})
}
