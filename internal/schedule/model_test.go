package schedule

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

var (
	sequences = flag.Int("sequences", 500, "how many sequences of operations TestModel does at least")
	minutes   = flag.Int("minutes", 0, "for how long TestModel goes on with more of them")
	seedFlag  = flag.Uint64("seed", 0, "the only sequence that TestModel does, as it printed it")
)

func TestModel(t *testing.T) {
	first, n := rand.Uint64()>>1, *sequences
	if *seedFlag > 0 {
		first, n, *minutes = *seedFlag, 1, 0
	}
	start, done := time.Now(), 0
	for ; done < n || time.Since(start) < time.Duration(*minutes)*time.Minute; done++ {
		seed := first + uint64(done)
		r := rand.New(rand.NewPCG(seed, 0))
		check(t, newSim(&random{r, 20 + r.IntN(50)<<r.IntN(4)}, seed), fmt.Sprint("-seed ", seed))
	}
	t.Logf("%d sequences", done)
}

// check does the sequence of m, and fails with all that was done in it if something was wrong.
func check(t *testing.T, m *sim, name string) {
	err := func() (err error) {
		defer func() {
			if p := recover(); p != nil && *seedFlag == 0 {
				err = fmt.Errorf("panic: %v", p)
			} else if p != nil {
				panic(p)
			}
		}()
		return m.run()
	}()
	if err != nil {
		t.Fatalf("%s\n%s\n%s: %v", strings.Join(m.log[max(0, len(m.log)-300):], "\n"), time.UnixMicro(m.now).UTC(), name, err)
	}
}
