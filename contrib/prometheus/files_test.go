package stapleprom

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/peer"
)

func read(t testing.TB, name string) string {
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	return string(text)
}

// exposition returns one that has every metric, of peers as well, and some hostile names.
func exposition(t *testing.T) (text string) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		everything(t, w)
		hostile(t, w)
		everyPeer(t, w)
		w.settle(t)
		text = w.scrape(t)
	})
	return text
}

func TestPromtoolFindsNothingToSay(t *testing.T) {
	promtool := peer.Need(t, "promtool")
	check := exec.Command(promtool, "check", "metrics")
	check.Stdin = strings.NewReader(exposition(t))
	output, err := check.CombinedOutput()
	require.NoError(t, err, "%s", output)
	require.Empty(t, string(output))
}

func TestAlerts(t *testing.T) {
	promtool := peer.Need(t, "promtool")
	for _, args := range [][]string{{"check", "rules", "alerts.yml"}, {"test", "rules", "alerts_test.yml"}} {
		output, err := exec.Command(promtool, args...).CombinedOutput()
		require.NoError(t, err, "%s", output)
	}
	// Every alert is seen to fire, and not to.
	tests := read(t, "alerts_test.yml")
	alerts := regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(read(t, "alerts.yml"), -1)
	require.NotEmpty(t, alerts)
	for _, alert := range alerts {
		require.Regexp(t, `\n +alertname: `+alert[1]+`\n +exp_alerts:`, tests)
		require.Contains(t, tests, "alertname: "+alert[1]+"}")
	}
}

var (
	names   = regexp.MustCompile(`\bstaple_[a-z_]+\b`)
	typed   = regexp.MustCompile(`(?m)^# TYPE (\w+) (\w+)$`)
	matcher = regexp.MustCompile(`\b(state|must_staple|result|reason)(?:=~?|!~|!=)"([^"$%]+)"`)
)

// exported returns the names of the metrics in an exposition, those of a histogram's parts included if parts is.
func exported(text string, parts bool) map[string]bool {
	all := make(map[string]bool)
	for _, m := range typed.FindAllStringSubmatch(text, -1) {
		all[m[1]] = true
		if m[2] == "histogram" && parts {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				all[m[1]+suffix] = true
			}
		}
	}
	return all
}

// TestFilesNameWhatThereIs finds each metric, and each value of a label, that the rules and the dashboard name in an
// exposition.
func TestFilesNameWhatThereIs(t *testing.T) {
	text := exposition(t)
	for _, file := range []string{"alerts.yml", "alerts_test.yml", "dashboard.json"} {
		content := strings.ReplaceAll(read(t, file), `\"`, `"`)
		used := names.FindAllString(content, -1)
		require.NotEmpty(t, used)
		for _, name := range used {
			require.True(t, exported(text, true)[name], "%s in %s", name, file)
		}
		for _, m := range matcher.FindAllStringSubmatch(content, -1) {
			for value := range strings.SplitSeq(m[2], "|") {
				switch m[1] {
				case "reason":
					require.Contains(t, reasons(), value, file)
				default:
					require.Contains(t, text, fmt.Sprintf(`%s="%s"`, m[1], value), file)
				}
			}
		}
	}
}

// reasons returns all that the source has.
func reasons() []string {
	all := slices.Collect(maps.Values(verifyReasons))
	all = slices.AppendSeq(all, maps.Values(statusReasons))
	return append(all, "no_issuer", "timeout", "dns", "connection", "unusable_answer", "http_3xx", "http_4xx", "http_5xx", "http_other", "other")
}

func TestTheReadmeNamesEveryMetric(t *testing.T) {
	readme := read(t, "README.md")
	listed := make(map[string]bool)
	for _, m := range regexp.MustCompile("(?m)^\\| `(staple_[a-z_]+)`").FindAllStringSubmatch(readme, -1) {
		listed[m[1]] = true
	}
	require.Equal(t, exported(exposition(t), false), listed)
	for _, reason := range reasons() {
		require.Contains(t, readme, "`"+reason+"`")
	}
	for s := staple.StateMustStapleMissing; s <= staple.StateNoResponder; s++ {
		require.Contains(t, readme, "\n| `"+s.String()+"` ")
	}
}

// TestDashboard checks the structure that Grafana expects, and has promtool parse each expression.
func TestDashboard(t *testing.T) {
	var dashboard struct {
		Title         string
		UID           string
		SchemaVersion int
		Templating    struct {
			List []struct{ Name string }
		}
		Panels []struct {
			ID      int
			Type    string
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct {
				RefID string
				Expr  string
			}
		}
	}
	content := read(t, "dashboard.json")
	require.NoError(t, json.Unmarshal([]byte(content), &dashboard))
	require.NotEmpty(t, dashboard.Title)
	require.NotEmpty(t, dashboard.UID)
	require.Positive(t, dashboard.SchemaVersion)
	known := map[string]bool{"__rate_interval": true, "__all": true}
	for _, v := range dashboard.Templating.List {
		known[v.Name] = true
	}
	for _, m := range regexp.MustCompile(`\$\{?(\w+)`).FindAllStringSubmatch(content, -1) {
		require.True(t, known[m[1]], "$%s", m[1])
	}

	ids := make(map[int]bool)
	taken := make(map[[2]int]string)
	rules := "groups:\n  - name: dashboard\n    rules:\n"
	for _, p := range dashboard.Panels {
		require.False(t, ids[p.ID], p.Title)
		ids[p.ID] = true
		require.NotEmpty(t, p.Targets, p.Title)
		require.LessOrEqual(t, p.GridPos.X+p.GridPos.W, 24, p.Title)
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				require.Empty(t, taken[at], "%s overlaps", p.Title)
				taken[at] = p.Title
			}
		}
		for _, target := range p.Targets {
			require.NotEmpty(t, target.Expr, p.Title)
			expr := strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")
			rules += fmt.Sprintf("      - {record: 'panel:%d:%s', expr: %q}\n", p.ID, target.RefID, expr)
		}
	}
	promtool := peer.Need(t, "promtool")
	file := filepath.Join(t.TempDir(), "rules.yml")
	require.NoError(t, os.WriteFile(file, []byte(rules), 0o600))
	output, err := exec.Command(promtool, "check", "rules", file).CombinedOutput()
	require.NoError(t, err, "%s\n%s", output, rules)
}
