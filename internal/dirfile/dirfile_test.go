package dirfile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

const most = 1000

// replace replaces a variable until the test ends.
func replace[T any](t *testing.T, what *T, with T) {
	old := *what
	*what = with
	t.Cleanup(func() { *what = old })
}

var errInUse = errors.New("the process cannot access the file because it is being used by another process")

// somebodyReads makes this system's rules those of one on which whoever reads a file keeps others from replacing and
// removing it, and has somebody read for so many tries. It returns how many of each there were.
func somebodyReads(t *testing.T, times int) (renames, removes *int) {
	renames, removes = new(int), new(int)
	rule := func(n *int, do func() error) error {
		if *n++; *n <= times {
			return errInUse
		}
		return do()
	}
	replace(t, &busy, func(err error) bool { return errors.Is(err, errInUse) })
	replace(t, &rename, func(from, to string) error { return rule(renames, func() error { return os.Rename(from, to) }) })
	replace(t, &remove, func(name string) error { return rule(removes, func() error { return os.Remove(name) }) })
	return renames, removes
}

func TestWhereReadersKeepOthersOutItIsTriedAgain(t *testing.T) {
	for _, tt := range []struct {
		name string
		busy int // tries
		ok   bool
	}{
		{"nobody reads", 0, true},
		{"somebody reads for a moment", 3, true},
		{"somebody reads as long as is waited", tries - 1, true},
		{"somebody does not stop", tries, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			name := filepath.Join(dir, "a")
			require.NoError(t, os.WriteFile(name, []byte("old"), 0o600))
			synctest.Test(t, func(t *testing.T) {
				renames, removes := somebodyReads(t, tt.busy)
				began := time.Now()
				err := Write(t.Context(), dir, ".tmp-", name, []byte("new"))
				require.Equal(t, min(tt.busy+1, tries), *renames)
				want := "new"
				if !tt.ok {
					require.ErrorIs(t, err, errInUse)
					want = "old"
					*removes = 0 // of the temporary file
				} else {
					require.NoError(t, err)
				}
				data, err := Read(t.Context(), name, most)
				require.NoError(t, err)
				require.Equal(t, want, string(data))

				err = Remove(t.Context(), name)
				require.Equal(t, min(tt.busy+1, tries), *removes)
				if tt.ok {
					require.NoError(t, err)
					require.NoFileExists(t, name)
				} else {
					require.ErrorIs(t, err, errInUse)
				}
				require.Less(t, time.Since(began), 2*time.Second)
			})
		})
	}
}

func TestTryingAgainEndsWithTheContext(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a")
	require.NoError(t, os.WriteFile(name, nil, 0o600))
	synctest.Test(t, func(t *testing.T) {
		_, removes := somebodyReads(t, tries)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		began := time.Now()
		require.ErrorIs(t, Remove(ctx, name), errInUse, "what is the matter, rather than that the time is up")
		require.Equal(t, 10*time.Millisecond, time.Since(began))
		require.Less(t, *removes, tries)
	})
}

func TestWhatIsNoMatterOfReadersIsNotTriedAgain(t *testing.T) {
	_, removes := somebodyReads(t, 0)
	require.ErrorIs(t, Remove(t.Context(), filepath.Join(t.TempDir(), "a")), os.ErrNotExist)
	require.Equal(t, 1, *removes)
}

func TestAWriteThatFailsLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	replace(t, &rename, func(string, string) error { return errInUse })
	require.ErrorIs(t, Write(t.Context(), dir, ".tmp-", filepath.Join(dir, "a"), []byte("data")), errInUse)
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, files)
}

func TestReadDoesNotWaitForAPipeThatWasSwappedIn(t *testing.T) {
	mkfifo, err := exec.LookPath("mkfifo")
	if err != nil {
		t.Skip("this system has no mkfifo")
	}
	name := filepath.Join(t.TempDir(), "a")
	require.NoError(t, os.WriteFile(name, []byte("data"), 0o600))
	replace(t, &stat, func(name string) (os.FileInfo, error) {
		info, err := os.Stat(name)
		require.NoError(t, os.Remove(name))
		require.NoError(t, exec.Command(mkfifo, name).Run())
		return info, err
	})
	done := make(chan error, 1)
	go func() {
		_, err := Read(t.Context(), name, most)
		done <- err
	}()
	select {
	case err := <-done:
		require.ErrorContains(t, err, "not a regular file")
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for somebody to write")
	}
}

func TestReadTakesNoMoreThanItMay(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a")
	for size, ok := range map[int]bool{0: true, most: true, most + 1: false} {
		require.NoError(t, os.WriteFile(name, make([]byte, size), 0o600))
		data, err := Read(t.Context(), name, most)
		if ok {
			require.NoError(t, err)
			require.Len(t, data, size)
		} else {
			require.ErrorContains(t, err, "more than")
		}
	}
	t.Run("also if it has grown meanwhile", func(t *testing.T) {
		replace(t, &stat, func(name string) (os.FileInfo, error) {
			require.NoError(t, os.WriteFile(name, make([]byte, most), 0o600))
			info, err := os.Stat(name)
			require.NoError(t, os.WriteFile(name, make([]byte, most+1), 0o600))
			return info, err
		})
		_, err := Read(t.Context(), name, most)
		require.ErrorContains(t, err, "more than")
	})
}

func TestASweepLooksAtAFewFilesAtATimeAndAtEachOnce(t *testing.T) {
	const files = 3*Batch + 7
	dir := t.TempDir()
	for i := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600))
	}
	var s Sweeper
	now := time.Now()
	looked := make(map[string]int)
	sweep := func() (n int) {
		s.Sweep(dir, now, time.Hour, func(info os.FileInfo) {
			n++
			looked[info.Name()]++
			if looked[info.Name()] == 1 && n%2 == 0 { // that files go meanwhile confuses nobody
				require.NoError(t, os.Remove(filepath.Join(dir, info.Name())))
			}
		})
		return n
	}
	var counts []int
	for range 6 {
		counts = append(counts, sweep())
		now = now.Add(time.Minute)
	}
	require.Equal(t, []int{Batch, Batch, Batch, 7, 0, 0}, counts)
	require.Len(t, looked, files)
	for name, n := range looked {
		require.Equal(t, 1, n, name)
	}
	now = now.Add(time.Hour)
	require.Equal(t, Batch, sweep(), "it begins anew")
	now = now.Add(24 * time.Hour)
	require.Equal(t, files-files/2-Batch, sweep(), "it goes on where it was, however long that is ago")
}

func TestASweepOfWhatIsNoDirectory(t *testing.T) {
	var s Sweeper
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, dir := range []string{file, file + ".missing"} {
		for range 2 {
			s.Sweep(dir, time.Now(), 0, func(os.FileInfo) { t.Error("there is nothing") })
		}
	}
}

func TestOneSweepsADirectoryAtATime(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a"), nil, 0o600))
	var s Sweeper
	n := 0
	s.Sweep(dir, time.Now(), 0, func(os.FileInfo) {
		n++
		s.Sweep(dir, time.Now(), 0, func(os.FileInfo) { n++ })
	})
	require.Equal(t, 1, n)
}
