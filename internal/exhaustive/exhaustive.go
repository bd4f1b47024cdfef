// Package exhaustive tells tests whether to try all that there is rather than a part: go test -exhaustive.
package exhaustive

import "flag"

var enabled = flag.Bool("exhaustive", false, "corrupt every byte in all 255 ways, not in eight; let a million certificates come, not 30,000")

// Enabled reports whether the flag is set.
func Enabled() bool { return *enabled }
