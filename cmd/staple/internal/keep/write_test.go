//go:build linux

package keep

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
)

func TestTheResponseHasOwnerAndModeOfTheTarget(t *testing.T) {
	play(t, func(s *scene) {
		modes := map[string]os.FileMode{"a.pem": 0o640, "b.pem": 0o755, "c.pem": 0o604, "d.pem": 0o600}
		for name, mode := range modes {
			s.chain(name)
			require.NoError(t, os.Chmod(s.path(name), mode))
		}
		require.NoError(t, os.Mkdir(s.path("elsewhere"), 0o755))
		s.chain("elsewhere/e.pem")
		require.NoError(t, os.Chmod(s.path("elsewhere/e.pem"), 0o644|os.ModeSetuid))
		require.NoError(t, os.Symlink("elsewhere/e.pem", s.path("link.pem")))
		owner := os.Geteuid()
		if owner == 0 {
			owner = 12345
			require.NoError(t, os.Chown(s.path("a.pem"), owner, 2345))
			require.NoError(t, os.Chown(s.path("elsewhere/e.pem"), owner, 2345))
		}
		modes["link.pem"] = 0o644
		s.start(".")
		for name, mode := range modes {
			info, err := os.Lstat(s.path(name + ".ocsp"))
			require.NoError(t, err)
			require.Equal(t, mode&0o666, info.Mode(), name)
			if name == "a.pem" || name == "link.pem" {
				require.EqualValues(t, owner, info.Sys().(*syscall.Stat_t).Uid)
			}
		}
	})
}

func TestWritesOnlyItsOwnFiles(t *testing.T) {
	play(t, func(s *scene) {
		victim := s.path("victim")
		require.NoError(t, os.WriteFile(victim, []byte("not ours"), 0o644))
		link, folder, key := s.chain("link.pem"), s.chain("folder.pem"), s.chain("key.pem")
		gone := s.chain("gone.pem")
		huge := s.chain("huge.pem")
		require.NoError(t, os.Symlink("victim", s.path("link.pem.ocsp")))
		require.NoError(t, os.Symlink("victim", s.path("gone.pem.ocsp")))
		require.NoError(t, os.Mkdir(s.path("folder.pem.ocsp"), 0o755))
		require.NoError(t, os.WriteFile(s.path("key.pem.ocsp"), keyPEM(t, s.Leaf()), 0o644))
		require.NoError(t, os.WriteFile(s.path("huge.pem.ocsp"), make([]byte, maxResponse+1), 0o644))
		s.Responder.Set(gone, stapletest.Answer{HTTPStatus: 404, Body: []byte("no")})
		s.start(".")
		s.pass(time.Minute)
		data, err := os.ReadFile(victim)
		require.NoError(t, err)
		require.Equal(t, "not ours", string(data))
		s.good("link.pem.ocsp", link)
		info, err := os.Lstat(s.path("link.pem.ocsp"))
		require.NoError(t, err)
		require.True(t, info.Mode().IsRegular())
		require.False(t, s.exists("gone.pem.ocsp"))
		info, err = os.Lstat(s.path("folder.pem.ocsp"))
		require.NoError(t, err)
		require.True(t, info.IsDir())
		data, err = os.ReadFile(s.path("key.pem.ocsp"))
		require.NoError(t, err)
		require.Contains(t, string(data), "PRIVATE KEY")
		require.Equal(t, 3, strings.Count(s.log.String(), "what lies there is left alone"), s.log)
		exit, _ := s.once(".")
		require.Equal(t, soon, exit)

		// When it goes, the place is ours.
		s.remove("folder.pem.ocsp")
		s.remove("key.pem.ocsp")
		s.remove("huge.pem.ocsp")
		s.pass(2 * time.Minute)
		s.good("folder.pem.ocsp", folder)
		s.good("key.pem.ocsp", key)
		s.good("huge.pem.ocsp", huge)
	})
}

// HAProxy loads every file of a folder that is not hidden.
func TestNothingButTheResponseIsEverSeenInTheFolder(t *testing.T) {
	play(t, func(s *scene) {
		s.chain("a.pem")
		require.NoError(t, os.WriteFile(s.path(".staple-AAAAAAAAAAAAAAAAAAAAAAAAAA"), []byte("left by a crash"), 0o600))
		require.NoError(t, os.Chtimes(s.path(".staple-AAAAAAAAAAAAAAAAAAAAAAAAAA"), time.Now().Add(-2*time.Hour), time.Now().Add(-2*time.Hour)))
		require.NoError(t, os.WriteFile(s.path(".staple-other"), []byte("somebody else's"), 0o600))
		created := watch(t, s.dir)
		s.start(".")
		s.pass(time.Minute)
		require.Equal(t, []string{".staple-other", "a.pem", "a.pem.ocsp"}, s.names())
		names := created()
		require.Len(t, names, 2)
		require.Regexp(t, `^\.staple-[A-Z2-7]{26}$`, names[0])
		require.Equal(t, "a.pem.ocsp", names[1])
	})
}

// watch returns what returns the names that came up in dir meanwhile.
func watch(t *testing.T, dir string) (created func() []string) {
	fd, err := syscall.InotifyInit1(syscall.IN_NONBLOCK | syscall.IN_CLOEXEC)
	require.NoError(t, err)
	t.Cleanup(func() { syscall.Close(fd) })
	_, err = syscall.InotifyAddWatch(fd, dir, syscall.IN_CREATE|syscall.IN_MOVED_TO)
	require.NoError(t, err)
	return func() (names []string) {
		buf := make([]byte, 64<<10)
		n, err := syscall.Read(fd, buf)
		require.NoError(t, err)
		for buf = buf[:n]; len(buf) > 0; {
			e := (*syscall.InotifyEvent)(unsafe.Pointer(&buf[0]))
			name := buf[syscall.SizeofInotifyEvent:][:e.Len]
			names = append(names, string(bytes.TrimRight(name, "\x00")))
			buf = buf[syscall.SizeofInotifyEvent+int(e.Len):]
		}
		return names
	}
}

func TestWhatSomebodyElseChangesIsPutRight(t *testing.T) {
	play(t, func(s *scene) {
		s.Responder.Set(nil, validity(time.Hour))
		leaf := s.chain("a.pem")
		s.start(".")
		s.remove("a.pem.ocsp")
		s.pass(1100 * time.Millisecond)
		s.good("a.pem.ocsp", leaf)
		s.pass(time.Minute)
		require.NoError(t, os.WriteFile(s.path("a.pem.ocsp"), []byte("rubbish"), 0o644))
		s.pass(1100 * time.Millisecond)
		s.good("a.pem.ocsp", leaf)

		// What is better is taken.
		s.pass(2 * time.Minute)
		newer := s.answer(leaf, stapletest.Answer{Validity: time.Hour})
		s.write("a.pem.ocsp", newer)
		s.pass(time.Minute)
		data, err := os.ReadFile(s.path("a.pem.ocsp"))
		require.NoError(t, err)
		require.Equal(t, newer, data)
		require.Len(t, s.Responder.Requests(nil), 1)

		// Nobody quarrels for long.
		created := watch(t, s.dir)
		for range 600 {
			s.write("a.pem.ocsp", s.answer(leaf, stapletest.Answer{Age: 10 * time.Minute, Validity: time.Hour}))
			s.pass(time.Second)
		}
		ours := 0
		for _, name := range created() {
			if strings.HasPrefix(name, tempPrefix) {
				ours++
			}
		}
		require.Less(t, ours, 20)
	})
}

// A disk that is full, or that cannot be written, costs neither a good response that lies there nor the process.
func TestAFullDisk(t *testing.T) {
	play(t, func(s *scene) {
		small := s.path("small")
		require.NoError(t, os.Mkdir(small, 0o755))
		if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=16k"); err != nil {
			t.Skipf("this test needs to mount: %v", err)
		}
		defer syscall.Unmount(small, 0)
		s.Responder.Set(nil, validity(20*time.Minute))
		leaf := s.chain("small/a.pem")
		s.start("./small")
		first := s.good("small/a.pem.ocsp", leaf)
		fill, err := os.Create(filepath.Join(small, "fill"))
		require.NoError(t, err)
		for err == nil {
			_, err = fill.Write(make([]byte, 512))
		}
		fill.Close()
		s.pass(15 * time.Minute)
		require.Equal(t, first, s.good("small/a.pem.ocsp", leaf), "what is there stays")
		require.Equal(t, 1, strings.Count(s.log.String(), "a response cannot be written"), s.log)
		require.Contains(t, s.log.String(), "no space left on device")
		exit, said := s.once("-json", "./small")
		require.Equal(t, soon, exit, "%s %s", said, s.log)
		s.pass(time.Until(first.Add(20*time.Minute - time.Millisecond)))
		s.goneWithin(2*time.Second, "small/a.pem.ocsp")
		s.remove("small/fill")
		s.pass(2 * time.Minute)
		s.good("small/a.pem.ocsp", leaf)
		entries, err := os.ReadDir(small)
		require.NoError(t, err)
		require.Len(t, entries, 2, "nothing is left over")
	})
}

// unprivileged runs the rest of a test in a process that may not write everywhere, and reports whether this is it.
func unprivileged(t *testing.T) bool {
	if world.IsChild() {
		return true
	}
	world.RequirePass(t, world.Unprivileged(t))
	return false
}

func TestAFolderThatCannotBeWritten(t *testing.T) {
	if !unprivileged(t) {
		return
	}
	play(t, func(s *scene) {
		require.NoError(t, os.Mkdir(s.path("certs"), 0o755))
		leaf := s.chain("certs/a.pem")
		require.NoError(t, os.Chmod(s.path("certs"), 0o555))
		defer os.Chmod(s.path("certs"), 0o755)
		exit, _ := s.once("./certs")
		require.Equal(t, soon, exit)
		require.Equal(t, 1, strings.Count(s.log.String(), "\n"), s.log)
		require.Contains(t, s.log.String(), "permission denied")
		s.start("./certs")
		s.pass(time.Minute)
		require.Equal(t, 1, strings.Count(s.log.String(), "a response cannot be written"), s.log)
		require.NoError(t, os.Chmod(s.path("certs"), 0o755))
		s.pass(time.Minute)
		s.good("certs/a.pem.ocsp", leaf)
	})
}

func TestWhatCannotBeReadIsNamed(t *testing.T) {
	if !unprivileged(t) {
		return
	}
	play(t, func(s *scene) {
		require.NoError(t, os.Mkdir(s.path("certs"), 0o755))
		require.NoError(t, os.Mkdir(s.path("locked"), 0o000))
		a, b := s.chain("certs/a.pem"), s.chain("certs/b.pem")
		require.NoError(t, os.Chmod(s.path("certs/b.pem"), 0))
		exit, _ := s.once("./certs", "./locked")
		require.Equal(t, untold, exit)
		require.Equal(t, 2, strings.Count(s.log.String(), "permission denied"), s.log)
		s.good("certs/a.pem.ocsp", a)

		s.log = new(output)
		s.start("./certs", "./locked")
		s.pass(time.Minute)
		require.Equal(t, 2, strings.Count(s.log.String(), "permission denied"), s.log)
		require.NoError(t, os.Chmod(s.path("certs/b.pem"), 0o644))
		s.pass(1100 * time.Millisecond)
		s.good("certs/b.pem.ocsp", b)

		// What cannot be read for a while keeps its response.
		require.NoError(t, os.Chmod(s.path("certs/b.pem"), 0))
		require.NoError(t, os.Chmod(s.path("certs"), 0o111))
		s.pass(10 * time.Minute)
		require.NoError(t, os.Chmod(s.path("certs"), 0o755))
		s.good("certs/b.pem.ocsp", b)
	})
}
