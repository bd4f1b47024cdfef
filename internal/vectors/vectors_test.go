package vectors

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write what is made")

const file = "../../testdata/vectors/ocsp.json"

func TestTheFileIsWhatIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		made, err := Make()
		require.NoError(t, err)
		require.Less(t, len(made), 1<<20)
		if *update {
			require.NoError(t, os.WriteFile(file, made, 0o666))
		}
		kept, err := os.ReadFile(file)
		require.NoError(t, err)
		require.True(t, string(kept) == string(made), "%s is out of date: go generate ./internal/vectors", file)
	})
}

func TestTheFileFitsItsSchema(t *testing.T) {
	read := func(name string) (v map[string]any) {
		data, err := os.ReadFile(name)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(data, &v))
		return v
	}
	schema := read("../../testdata/vectors/ocsp.schema.json")
	require.NoError(t, fits(schema, schema, read(file)))

	f, err := Read(file)
	require.NoError(t, err)
	for _, g := range f.Groups {
		names := map[string]bool{}
		for _, v := range g.Vectors {
			require.False(t, names[v.Name], v.Name)
			names[v.Name] = true
			require.Equal(t, v.Verdict == Accept, v.Status != "", v.Name)
			require.Equal(t, v.Verdict == Refuse, v.Reason != "", v.Name)
		}
	}
	for name := range seen {
		require.True(t, slices.ContainsFunc(f.Groups[0].Vectors, func(v Vector) bool { return v.Name == name }), name)
	}
}

// fits checks v, as far as the schema of the vectors needs it.
func fits(root, schema map[string]any, v any) error {
	if ref, ok := schema["$ref"].(string); ok {
		def := root["$defs"].(map[string]any)[path.Base(ref)].(map[string]any)
		if err := fits(root, def, v); err != nil {
			return err
		}
	}
	if enum, ok := schema["enum"].([]any); ok && !slices.Contains(enum, v) {
		return fmt.Errorf("%v is none of %v", v, enum)
	}
	switch schema["type"] {
	case "string":
		text, ok := v.(string)
		pattern, _ := schema["pattern"].(string)
		if !ok || !regexp.MustCompile(pattern).MatchString(text) {
			return fmt.Errorf("%v is no %s", v, pattern)
		}
	case "array":
		items, ok := v.([]any)
		if least, _ := schema["minItems"].(float64); !ok || len(items) < int(least) {
			return fmt.Errorf("%v is too short", v)
		}
		for i, item := range items {
			if err := fits(root, schema["items"].(map[string]any), item); err != nil {
				return fmt.Errorf("%d: %w", i, err)
			}
		}
	case "object":
		object, ok := v.(map[string]any)
		if !ok {
			return fmt.Errorf("%v is no object", v)
		}
		for _, name := range schema["required"].([]any) {
			if _, ok := object[name.(string)]; !ok {
				return fmt.Errorf("no %v", name)
			}
		}
		for name, value := range object {
			property, ok := schema["properties"].(map[string]any)[name].(map[string]any)
			if !ok {
				return fmt.Errorf("%s is unknown", name)
			}
			if err := fits(root, property, value); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

func TestSections(t *testing.T) {
	for why, want := range map[string][]string{
		"RFC 6960 s4.2.2.2: the issuer":     {"RFC 6960 s4.2.2.2"},
		"RFC 6960 s3.2 (1): the response":   {"RFC 6960 s3.2 (1)"},
		"RFC 6960 s2.4, s4.2.2.1: current":  {"RFC 6960 s2.4", "RFC 6960 s4.2.2.1"},
		"RFC 4055 s3.1, RFC 8410 s3: other": {"RFC 4055 s3.1", "RFC 8410 s3"},
		"RFC 6151, RFC 6194: broken":        {"RFC 6151", "RFC 6194"},
		"RFC 5280 s4.1 wants one or more":   {"RFC 5280 s4.1"},
		"no RFC":                            {},
	} {
		require.Equal(t, want, sections(why))
	}
}
