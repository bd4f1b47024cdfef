// Command api keeps lists of what the modules of this repository export, one file for each module in the folder api, so that a
// change to any of it is seen:
//
//	go run ./api             tells what is different from the lists, and fails if anything is
//	go run ./api -update     writes them
//
// A line is one thing that a program outside can name: a function, a type, a field, a method, a constant with its value, a
// variable. It is listed as the compiler has it, on linux/amd64.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"go/importer"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	update := flag.Bool("update", false, "write the lists")
	flag.Parse()
	changed, err := run(os.Stdout, "..", *update)
	if err != nil {
		fmt.Fprintln(os.Stderr, "api:", err)
		os.Exit(2)
	}
	if changed && !*update {
		fmt.Println("If that is meant: cd bench && go run ./api -update")
		os.Exit(1)
	}
}

// run compares what each module under root exports with its list, or writes that, and prints what is different.
func run(w io.Writer, root string, update bool) (changed bool, err error) {
	dirs, err := modules(root)
	if err != nil {
		return false, err
	}
	lists := map[string]bool{}
	for _, dir := range dirs {
		lines, err := exports(filepath.Join(root, dir))
		if err != nil {
			return false, fmt.Errorf("%s: %w", dir, err)
		}
		if len(lines) == 0 {
			continue
		}
		list := filepath.Join(root, "api", strings.ReplaceAll(dir, "/", "-")+".txt")
		if dir == "." {
			list = filepath.Join(root, "api", "staple.txt")
		}
		lists[list] = true
		old, err := os.ReadFile(list)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		changed = show(w, list, strings.Split(string(old), "\n"), lines) || changed
		if update {
			err := errors.Join(os.MkdirAll(filepath.Dir(list), 0o777), os.WriteFile(list, []byte(strings.Join(lines, "\n")+"\n"), 0o666))
			if err != nil {
				return false, err
			}
		}
	}
	all, err := filepath.Glob(filepath.Join(root, "api", "*.txt"))
	for _, list := range all {
		if lists[list] {
			continue
		}
		changed = true
		fmt.Fprintln(w, list+": there is no such module")
		if update {
			err = errors.Join(err, os.Remove(list))
		}
	}
	return changed, err
}

// modules returns the folders of the modules under root that others may import.
func modules(root string) (dirs []string, err error) {
	contrib, err := filepath.Glob(filepath.Join(root, "contrib", "*", "go.mod"))
	dirs = []string{"."}
	for _, mod := range contrib {
		dir, err := filepath.Rel(root, filepath.Dir(mod))
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, filepath.ToSlash(dir))
	}
	return dirs, err
}

// show prints what is in one list alone, and returns whether anything is.
func show(w io.Writer, name string, old, lines []string) bool {
	var changes []string
	for _, line := range old {
		if line != "" && !slices.Contains(lines, line) {
			changes = append(changes, "- "+line)
		}
	}
	for _, line := range lines {
		if !slices.Contains(old, line) {
			changes = append(changes, "+ "+line)
		}
	}
	if len(changes) > 0 {
		fmt.Fprintf(w, "%s:\n%s\n", name, strings.Join(changes, "\n"))
	}
	return len(changes) > 0
}

// exports returns what the module in dir exports, sorted.
func exports(dir string) (lines []string, err error) {
	cmd := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}}\t{{.Export}}\t{{if not .DepOnly}}{{.Name}}{{end}}", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, stderr.String())
	}
	files := map[string]string{}
	var paths []string
	for line := range strings.Lines(string(out)) {
		part := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		files[part[0]] = part[1]
		if part[2] != "" && part[2] != "main" && !strings.Contains(part[0]+"/", "/internal/") && part[1] != "" {
			paths = append(paths, part[0])
		}
	}
	compiled := importer.ForCompiler(token.NewFileSet(), "gc", func(path string) (io.ReadCloser, error) { return os.Open(files[path]) })
	for _, path := range paths {
		pkg, err := compiled.Import(path)
		if err != nil {
			return nil, err
		}
		for _, line := range of(pkg) {
			lines = append(lines, path+": "+line)
		}
	}
	slices.Sort(lines)
	return lines, nil
}

// of returns what a package exports.
func of(pkg *types.Package) (lines []string) {
	named := func(p *types.Package) string {
		if p == pkg {
			return ""
		}
		return p.Path()
	}
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for _, name := range pkg.Scope().Names() {
		object := pkg.Scope().Lookup(name)
		if !object.Exported() {
			continue
		}
		switch object := object.(type) {
		case *types.Const:
			say("%s = %s", types.ObjectString(object, named), object.Val().ExactString())
		case *types.TypeName:
			if object.IsAlias() {
				say("%s", types.ObjectString(object, named))
				continue
			}
			members(object, named, say)
		default:
			say("%s", types.ObjectString(object, named))
		}
	}
	return lines
}

// members says what a type has.
func members(object *types.TypeName, named types.Qualifier, say func(string, ...any)) {
	unexported := ""
	switch t := object.Type().Underlying().(type) {
	case *types.Struct:
		for field := range t.Fields() {
			if !field.Exported() {
				unexported = ", with unexported fields"
				continue
			}
			embedded := ""
			if field.Embedded() {
				embedded = "embedded "
			}
			say("type %s struct, %s%s %s", object.Name(), embedded, field.Name(), types.TypeString(field.Type(), named))
		}
		say("type %s struct%s", object.Name(), unexported)
	case *types.Interface:
		for method := range t.Methods() {
			if !method.Exported() {
				unexported = ", with unexported methods"
				continue
			}
			say("type %s interface, %s%s", object.Name(), method.Name(), strings.TrimPrefix(types.TypeString(method.Type(), named), "func"))
		}
		say("type %s interface%s", object.Name(), unexported)
		return
	default:
		say("%s", types.ObjectString(object, named))
	}
	values := types.NewMethodSet(object.Type())
	for method := range types.NewMethodSet(types.NewPointer(object.Type())).Methods() {
		f := method.Obj()
		if !f.Exported() {
			continue
		}
		receiver := "*" + object.Name()
		if values.Lookup(f.Pkg(), f.Name()) != nil {
			receiver = object.Name()
		}
		say("method (%s) %s%s", receiver, f.Name(), strings.TrimPrefix(types.TypeString(method.Type(), named), "func"))
	}
}
