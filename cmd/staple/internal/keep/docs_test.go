package keep

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/go-staple/staple/internal/peer"
	"github.com/stretchr/testify/require"
)

func doc(t *testing.T, name string) string {
	data, err := os.ReadFile(filepath.Join("../../../../docs", name))
	require.NoError(t, err)
	return string(data)
}

// example returns the code block of docs/keep.md that follows a mark.
func example(t testing.TB, mark string) string {
	data, err := os.ReadFile("../../../../docs/keep.md")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(data), "<!-- "+mark+" -->\n```")
	require.True(t, found)
	_, rest, _ = strings.Cut(rest, "\n")
	code, _, _ := strings.Cut(rest, "```")
	return code
}

func TestTheUnitIsOneThatSystemdTakes(t *testing.T) {
	unit := doc(t, "systemd/staple-keep.service")
	start := regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/staple keep (.*)$`).FindStringSubmatch(unit)
	require.NotNil(t, start)
	_, err := parse(strings.Fields(start[1]))
	require.NoError(t, err)

	analyze := peer.Need(t, "systemd-analyze")
	self, err := os.Executable()
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "staple-keep.service")
	unit = strings.ReplaceAll(unit, "/usr/local/bin/staple", strconv.Quote(self))
	require.NoError(t, os.WriteFile(file, []byte(unit), 0o644))
	out, err := exec.Command(analyze, "verify", "--man=no", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NotContains(t, string(out), "staple-keep.service", "%s", out)
}

func TestTheSidecarRunsWhatThereIs(t *testing.T) {
	yaml := doc(t, "kubernetes/sidecar.yaml")
	once := regexp.MustCompile(`timeout 10 staple keep (.*)`).FindStringSubmatch(yaml)
	require.NotNil(t, once)
	o, err := parse(strings.Fields(once[1]))
	require.NoError(t, err)
	require.True(t, o.once)
	_, yaml, found := strings.Cut(yaml, "command: [staple, keep]\n      args:\n")
	require.True(t, found)
	args, scripts, _ := strings.Cut(yaml, "      volumeMounts:")
	var all []string
	for line := range strings.Lines(args) {
		all = append(all, strings.TrimPrefix(strings.TrimSpace(line), "- "))
	}
	o, err = parse(all)
	require.NoError(t, err)
	require.Contains(t, o.command, "stapling.sh")
	require.Equal(t, []string{"/staple"}, o.paths)
	_, scripts, found = strings.Cut(scripts, "stapling.sh: |\n")
	require.True(t, found)

	lines := func(script string) (rest []string) {
		for line := range strings.Lines(script) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				rest = append(rest, line)
			}
		}
		return rest
	}
	require.Equal(t, lines(example(t, "stapling.sh")), lines(scripts))
}

func TestTheDocumentationHasEachFlag(t *testing.T) {
	text := doc(t, "keep.md")
	for _, flag := range regexp.MustCompile(`(?m)^  (-\w+)`).FindAllStringSubmatch(usage, -1) {
		if flag[1] != "-v" {
			require.Contains(t, text, flag[1])
		}
	}
}
