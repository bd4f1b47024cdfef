package whole

import (
	"os"
	"os/exec"
	"testing"

	"github.com/go-staple/staple/internal/world"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// TestFIPS140OnlyMode runs itself in the mode that forbids SHA-1, on which CertIDs and
// responderIDs go on to rest.
func TestFIPS140OnlyMode(t *testing.T) {
	const mode = "fips140=only"
	if os.Getenv("GODEBUG") != mode {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFIPS140OnlyMode$")
		cmd.Env = append(os.Environ(), "GODEBUG="+mode)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return
	}
	w := world.New(t)
	c := w.Add(w.Stapler(), w.Leaf())
	world.RequireStaple(t, c, ocsp.Good)
}
