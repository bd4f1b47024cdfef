package staple

import (
	"os"
	"os/exec"
	"testing"

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
	w := newWorld(t)
	c := w.add(w.stapler(), w.leaf())
	requireStaple(t, c, ocsp.Good)
}
