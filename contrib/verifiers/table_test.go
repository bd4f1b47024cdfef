package verifiers

import (
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/vectors"
)

var update = flag.Bool("update", false, "write docs/verifiers.md and internal/vectors/measured.json")

const (
	doc      = "../../docs/verifiers.md"
	measured = "../../internal/vectors/measured.json"
)

// An answer is what a verifier says of a vector as it came and, where staple accepts it, trimmed.
type answer struct{ came, trimmed string }

// right tells whether said is what the vector says.
func right(v vectors.Vector, said string) bool {
	if v.Verdict == vectors.Accept {
		return said == v.Status || said == signed
	}
	return said != "good" && said != "revoked"
}

// TestVerifiers prints the table.
func TestVerifiers(t *testing.T) {
	file, err := vectors.Read("../../testdata/vectors/ocsp.json")
	require.NoError(t, err)
	trimmed := make([][][]byte, len(file.Groups))
	for i, g := range file.Groups {
		trimmed[i] = trim(t, g)
	}
	all := verifiers()
	answers := make([][][]answer, len(all)) // by verifier, group, vector
	versions := make([]string, len(all))
	t.Run("verifier", func(t *testing.T) {
		for i, v := range all {
			t.Run(strings.Fields(v.program)[0], func(t *testing.T) {
				t.Parallel()
				for j, g := range file.Groups {
					said := v.ask(t, g, trimmed[j])
					answers[i] = append(answers[i], said)
				}
				out, err := exec.Command(v.version[0], v.version[1:]...).Output()
				require.NoError(t, err)
				versions[i] = regexp.MustCompile(`\d+(\.\d+)+`).FindString(string(out))
			})
		}
	})
	text := table(file, all, versions, answers)
	t.Logf("\n%s", text)
	if slices.Contains(versions, "") || t.Failed() {
		return
	}
	kept, err := os.ReadFile(doc)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(kept), begin)
	require.True(t, ok)
	old, after, ok := strings.Cut(rest, end)
	require.True(t, ok)
	if *update {
		require.NoError(t, os.WriteFile(doc, []byte(before+begin+text+end+after), 0o666))
		require.NoError(t, os.WriteFile(measured, measurement(file, all, versions, answers), 0o666))
	} else if head, _, _ := strings.Cut(text, "\n\n"); strings.HasPrefix(old, head) {
		require.Equal(t, old, text, "the table in docs/verifiers.md is out of date: go test -update")
	}
}

const (
	begin = "<!-- go test -update writes what follows -->\n"
	end   = "<!-- up to here -->\n"
)

// trim returns what staple makes of each response, nil where it refuses.
func trim(t *testing.T, g vectors.Group) (all [][]byte) {
	leaf, err := x509.ParseCertificate(g.Leaf)
	require.NoError(t, err)
	issuer, err := x509.ParseCertificate(g.Issuer)
	require.NoError(t, err)
	for _, v := range g.Vectors {
		r, _, err := new(staple.ResponseVerifier).Verify(v.Response, leaf, issuer, g.Time)
		require.Equal(t, v.Verdict == vectors.Accept, err == nil, v.Name)
		if err != nil {
			all = append(all, nil)
			continue
		}
		all = append(all, r.Raw)
	}
	return all
}

// ask returns what v says of all vectors of the group.
func (v verifier) ask(t *testing.T, g vectors.Group, trimmed [][]byte) (all []answer) {
	judge := v.start(t, newLab(t, g))
	said := map[string]string{}
	once := func(response []byte) string {
		if _, ok := said[string(response)]; !ok {
			said[string(response)] = judge(response)
		}
		return said[string(response)]
	}
	for i, vector := range g.Vectors {
		a := answer{came: once(vector.Response)}
		if trimmed[i] != nil {
			a.trimmed = once(trimmed[i])
			if v.exceptions[vector.Name] == "" {
				assert.True(t, right(vector, a.trimmed), "%s, %s, trimmed: %s", g.Name, vector.Name, a.trimmed)
			}
		}
		all = append(all, a)
	}
	return all
}

func table(file *vectors.File, all []verifier, versions []string, answers [][][]answer) string {
	var b strings.Builder
	b.WriteString("| program | version | what it judges |\n| --- | --- | --- |\n")
	for i, v := range all {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", v.program, versions[i], v.what)
	}
	b.WriteString(counts(file, all, answers))
	for _, verdict := range []string{vectors.Accept, vectors.Refuse} {
		for j, g := range file.Groups {
			var rows []string
			for k, vector := range g.Vectors {
				if vector.Verdict != verdict {
					continue
				}
				row := "| " + vector.Name
				for i := range all {
					if answers[i] == nil {
						row += " | "
						continue
					}
					row += " | " + cell(vector, answers[i][j][k])
				}
				rows = append(rows, row+" |\n")
			}
			if len(rows) == 0 {
				continue
			}
			title := "Oddities"
			if verdict == vectors.Refuse {
				title = "Forgeries"
			}
			fmt.Fprintf(&b, "\n### %s, %s\n\n| |", title, g.Name)
			for _, v := range all {
				b.WriteString(" " + strings.Fields(v.program)[0] + " |")
			}
			b.WriteString("\n" + strings.Repeat("| --- ", len(all)+1) + "|\n" + strings.Join(rows, ""))
		}
	}
	b.WriteString(reasons(all))
	return b.String()
}

// counts is a table of how often each verifier says otherwise.
func counts(file *vectors.File, all []verifier, answers [][][]answer) string {
	var b strings.Builder
	b.WriteString("\n| program | oddities not taken, as they came | trimmed | forgeries taken |\n| --- | --- | --- | --- |\n")
	for i, v := range all {
		if answers[i] == nil {
			continue
		}
		var came, trimmed, oddities, taken, forgeries int
		for j, g := range file.Groups {
			for k, vector := range g.Vectors {
				a := answers[i][j][k]
				if vector.Verdict == vectors.Refuse {
					forgeries++
					taken += count(!right(vector, a.came))
					continue
				}
				oddities++
				came += count(!right(vector, a.came))
				trimmed += count(!right(vector, a.trimmed))
			}
		}
		of := fmt.Sprintf("%d of %d", taken, forgeries)
		if v.name == "" {
			of = "not judged"
		}
		fmt.Fprintf(&b, "| %s | %d of %d | %d | %s |\n", v.program, came, oddities, trimmed, of)
	}
	return b.String()
}

func count(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// cell has in bold what is not what the vector says.
func cell(v vectors.Vector, a answer) string {
	word := func(said string) string {
		switch {
		case said == notAsked, said == signed && v.Verdict == vectors.Refuse:
			return said
		case right(v, said):
			return "right"
		}
		return "**" + said + "**"
	}
	came, trimmed := word(a.came), word(a.trimmed)
	switch {
	case v.Verdict == vectors.Refuse || came == trimmed:
		return came
	default:
		return came + ", trimmed: " + trimmed
	}
}

// reasons lists the exceptions.
func reasons(all []verifier) string {
	var b strings.Builder
	b.WriteString("\n### Why some are not taken, even trimmed\n\n")
	for _, v := range all {
		by := map[string][]string{}
		for name, why := range v.exceptions {
			by[why] = append(by[why], name)
		}
		for _, why := range sorted(by) {
			slices.Sort(by[why])
			fmt.Fprintf(&b, "- %s: %s: %s\n", strings.Fields(v.program)[0], strings.Join(by[why], "; "), why)
		}
	}
	return b.String()
}

func sorted[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// measurement is the content of measured.json.
func measurement(file *vectors.File, all []verifier, versions []string, answers [][][]answer) []byte {
	m := vectors.Measurement{Results: map[string]map[string]map[string]string{}}
	for j, g := range file.Groups {
		m.Results[g.Name] = map[string]map[string]string{}
		for k, vector := range g.Vectors {
			by := map[string]string{}
			for i, v := range all {
				switch said := answers[i][j][k].came; {
				case v.name == "" || said == notAsked || v.cannotTell(vector):
				case right(vector, said):
					by[v.name] = vectors.Right
				default:
					by[v.name] = vectors.Wrong
				}
			}
			m.Results[g.Name][vector.Name] = by
		}
	}
	for i, v := range all {
		if v.name != "" {
			m.Verifiers = append(m.Verifiers, vectors.Verifier{Name: v.name, Program: v.program, Version: versions[i]})
		}
	}
	data, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		panic(err)
	}
	return append(data, '\n')
}

// cannotTell tells whether what the program prints does not show what it thinks of the vector.
func (v verifier) cannotTell(vector vectors.Vector) bool {
	return v.name == "nss" && vector.Status == "unknown"
}
