// Package docs holds the pages to what they say: links lead somewhere, Go compiles.
package docs

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// pages returns the Markdown files of the repository, and their text.
func pages(t *testing.T) map[string]string {
	all := map[string]string{}
	require.NoError(t, filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == ".git":
			return fs.SkipDir
		case filepath.Ext(path) == ".md":
			text, err := os.ReadFile(path)
			all[path] = strings.ReplaceAll(string(text), "\r\n", "\n")
			return err
		}
		return nil
	}))
	return all
}

var (
	fence   = regexp.MustCompile("(?ms)^( *)```(\\w*)\n(.*?)^ *```$")
	code    = regexp.MustCompile("`[^`\n]*`")
	link    = regexp.MustCompile(`\[[^\[\]]*\]\(([^()\s]+)\)|\bsrc(?:set)?="([^"]+)"`)
	heading = regexp.MustCompile(`(?m)^#+ +(.*)$`)
)

// anchors returns what can be linked to in a page, as GitHub names it.
func anchors(text string) map[string]bool {
	all := map[string]bool{}
	for _, h := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, h[1])
		for unique, i := name, 1; ; i++ {
			if !all[unique] {
				all[unique] = true
				break
			}
			unique = fmt.Sprintf("%s-%d", name, i)
		}
	}
	return all
}

func TestLinksLeadSomewhere(t *testing.T) {
	all := pages(t)
	require.Contains(t, all, filepath.Join("..", "README.md"))
	links := 0
	for page, text := range all {
		text = code.ReplaceAllString(fence.ReplaceAllString(text, ""), "")
		for _, l := range link.FindAllStringSubmatch(text, -1) {
			to := l[1] + l[2]
			if strings.Contains(to, ":") { // elsewhere
				continue
			}
			links++
			file, anchor, _ := strings.Cut(to, "#")
			target := page
			if file != "" {
				target = filepath.Join(filepath.Dir(page), filepath.FromSlash(file))
			}
			if _, err := os.Stat(target); !assert.NoError(t, err, "%s: %s", page, to) || anchor == "" {
				continue
			}
			assert.True(t, anchors(all[target])[anchor], "%s: %s: no such heading", page, to)
		}
	}
	require.Greater(t, links, 50)
}

// It is read in whole before anybody imports the package.
func TestTheREADMEIsShort(t *testing.T) {
	require.LessOrEqual(t, strings.Count(pages(t)[filepath.Join("..", "README.md")], "\n"), 150)
}

// Whoever wants to know more finds it in these pages.
func TestTheDocumentationOfThePackageIsShort(t *testing.T) {
	out, err := exec.Command("go", "doc", "-all", "..").Output()
	require.NoError(t, err)
	require.LessOrEqual(t, bytes.Count(out, []byte("\n")), 676)
}

func TestEachPageSaysWhomItIsFor(t *testing.T) {
	for page, text := range pages(t) {
		if filepath.Dir(page) == filepath.Join("..", "docs") {
			require.Regexp(t, `^# .*\n\nThis is for `, text, page)
		}
	}
}

// What the Go in the pages is about.
const world = `
var (
	ctx                     context.Context
	stapler                 staple.Stapler
	config                  *tls.Config
	cert, client, renewed   tls.Certificate
	issuer, responder       *x509.Certificate
	roots                   *x509.CertPool
	handler                 http.Handler
	lookUp                  func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	proxy                   *url.URL
	current                 atomic.Pointer[staple.Certificate]
	stapling                *bool
	dir                     string
)
`

// Unused variables are no matter here.
func TestTheGoInThePagesCompiles(t *testing.T) {
	packages := map[string]string{"staple": "github.com/go-staple/staple", "url": "net/url", "tls": "crypto/tls", "x509": "crypto/x509",
		"http": "net/http", "atomic": "sync/atomic", "signal": "os/signal", "filepath": "path/filepath"}
	for _, name := range []string{"context", "errors", "log", "os", "strings", "syscall", "time"} {
		packages[name] = name
	}
	args := []string{"list", "-export", "-deps", "-f", "{{.ImportPath}}={{.Export}}"}
	for _, path := range packages {
		args = append(args, path)
	}
	cmd := exec.Command("go", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, stderr.String())
	exports := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), "=")
		exports[path] = file
	}
	fset := token.NewFileSet()
	compiled := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })

	snippets := 0
	for page, text := range pages(t) {
		if dir := filepath.Dir(page); dir != ".." && dir != filepath.Join("..", "docs") {
			continue
		}
		for _, f := range fence.FindAllStringSubmatch(text, -1) {
			if f[2] != "go" {
				continue
			}
			snippets++
			body := world + "func _() (err error) {\n{\n" + f[3] + "\n}\nreturn nil\n}\n"
			var imports strings.Builder
			for name, path := range packages {
				if regexp.MustCompile(`\b` + name + `\.[A-Z]`).MatchString(body) {
					fmt.Fprintf(&imports, "import %q\n", path)
				}
			}
			file, err := parser.ParseFile(fset, page, "package p\n"+imports.String()+body, 0)
			if !assert.NoError(t, err, f[3]) {
				continue
			}
			conf := types.Config{Importer: compiled, Error: func(err error) {
				assert.True(t, err.(types.Error).Soft, "%v, in %s\n%s", err, page, f[3])
			}}
			conf.Check("p", fset, []*ast.File{file}, nil)
		}
	}
	require.Greater(t, snippets, 10)
}
