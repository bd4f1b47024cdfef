package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const source = `package thing

import "time"

type Base struct{}

func (*Base) Promoted() {}

type Thing struct {
	Base
	Wait time.Duration ` + "`json:\"wait\"`" + `
	hidden int
}

func (Thing) Value() error { return nil }
func (t *Thing) Change(other *Thing, rest ...int) (n int) { return t.hidden }
func (t *Thing) quiet() {}

type Maker interface {
	Make(size int) *Thing
	sealed()
}

type Kind int

const (
	First Kind = iota + 1
	hidden
)

type Alias = Kind

var ErrGone error

func New[T any](t T) *Thing { return nil }
`

func write(t *testing.T, root string, files map[string]string) {
	for name, text := range files {
		name = filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o777))
		require.NoError(t, os.WriteFile(name, []byte(text), 0o666))
	}
}

func TestWhatIsExportedIsListed(t *testing.T) {
	root := t.TempDir()
	write(t, root, map[string]string{
		"go.mod":                  "module example.com/thing\n\ngo 1.26.0\n",
		"thing.go":                source,
		"internal/in/in.go":       "package in\n\nfunc Hidden() {}\n",
		"cmd/tool/main.go":        "package main\n\nfunc Hidden() {}\n\nfunc main() {}\n",
		"contrib/more/go.mod":     "module example.com/thing/contrib/more\n\ngo 1.26.0\n",
		"contrib/more/more.go":    "package more\n\nconst Text = \"a\"\n",
		"contrib/tests/go.mod":    "module example.com/thing/contrib/tests\n\ngo 1.26.0\n",
		"contrib/tests/doc.go":    "package tests\n",
		"contrib/tests/x_test.go": "package tests\n\nfunc Hidden() {}\n",
	})
	var out strings.Builder
	changed, err := run(&out, root, true)
	require.NoError(t, err)
	require.True(t, changed)

	list, err := os.ReadFile(filepath.Join(root, "api", "staple.txt"))
	require.NoError(t, err)
	require.Equal(t, `const First Kind = 1
func New[T any](t T) *Thing
method (*Base) Promoted()
method (*Thing) Change(other *Thing, rest ...int) (n int)
method (*Thing) Promoted()
method (Thing) Value() error
type Alias = Kind
type Base struct
type Kind int
type Maker interface, Make(size int) *Thing
type Maker interface, with unexported methods
type Thing struct, Wait time.Duration
type Thing struct, embedded Base Base
type Thing struct, with unexported fields
var ErrGone error
`, strings.ReplaceAll(string(list), "example.com/thing: ", ""))
	list, err = os.ReadFile(filepath.Join(root, "api", "contrib-more.txt"))
	require.NoError(t, err)
	require.Equal(t, "example.com/thing/contrib/more: const Text untyped string = \"a\"\n", string(list))
	require.NoFileExists(t, filepath.Join(root, "api", "contrib-tests.txt"), "it exports nothing")

	out.Reset()
	changed, err = run(&out, root, false)
	require.NoError(t, err)
	require.False(t, changed)
	require.Empty(t, out.String())
}

func TestAChangeIsShown(t *testing.T) {
	root := t.TempDir()
	write(t, root, map[string]string{
		"go.mod":       "module example.com/thing\n\ngo 1.26.0\n",
		"thing.go":     "package thing\n\nfunc Old(n int) {}\n",
		"api/gone.txt": "",
	})
	var out strings.Builder
	_, err := run(&out, root, true)
	require.NoError(t, err)
	require.Contains(t, out.String(), "gone.txt: there is no such module")
	require.NoFileExists(t, filepath.Join(root, "api", "gone.txt"))

	write(t, root, map[string]string{"thing.go": "package thing\n\nfunc Old(n int64) {}\n\nfunc New() {}\n"})
	for range 2 { // nothing is written
		out.Reset()
		changed, err := run(&out, root, false)
		require.NoError(t, err)
		require.True(t, changed)
		_, changes, _ := strings.Cut(out.String(), "\n")
		require.Equal(t, `- example.com/thing: func Old(n int)
+ example.com/thing: func New()
+ example.com/thing: func Old(n int64)
`, changes)
	}

	write(t, root, map[string]string{"thing.go": "package thing\n\nfunc Old(n unknown) {}\n"})
	_, err = run(&out, root, true)
	require.ErrorContains(t, err, "undefined: unknown")
}
