package schedule

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/go-staple/staple/internal/race"
)

var (
	sequences = flag.Int("sequences", 2000, "how many sequences of operations TestModel does at least, the same each time; with -race a tenth")
	minutes   = flag.Int("minutes", 0, "for how many minutes it goes on instead with sequences that nobody has seen")
	oneSeed   = flag.Uint64("seed", 0, "the only sequence that it does, as it printed it")
)

// TestModel does random sequences of operations, each both with a schedule and with a naive one. For an hour of it:
//
//	go test -run TestModel -minutes 60 -timeout 2h -v ./internal/schedule
func TestModel(t *testing.T) {
	first, n, long := uint64(1), *sequences, time.Duration(*minutes)*time.Minute
	switch {
	case *oneSeed > 0:
		first, n, long = *oneSeed, 1, 0
	case long > 0:
		first = rand.Uint64() >> 1
	case race.Enabled:
		n /= 10
	}
	start, done, calls := time.Now(), 0, 0
	for ; done < n || time.Since(start) < long; done++ {
		seed := first + uint64(done)
		r := rand.New(rand.NewPCG(seed, 0))
		calls += check(t, newSim(&random{r, 20 + r.IntN(50)<<r.IntN(4)}, seed), fmt.Sprint("-seed ", seed))
	}
	t.Logf("%d sequences, %d calls", done, calls)
}

// FuzzSchedule does the sequence that the bytes make up.
func FuzzSchedule(f *testing.F) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 0))
		data := make([]byte, 250)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		check(t, newSim(&found{data[:min(len(data), 300)]}, 1), "")
	})
}

// check does the sequence of m, fails with all that was done in it if something was wrong, and returns how many
// calls it made.
func check(t *testing.T, m *sim, name string) int {
	err := func() (err error) {
		defer func() {
			if p := recover(); p != nil && *oneSeed == 0 {
				err = fmt.Errorf("panic: %v", p)
			} else if p != nil {
				panic(p)
			}
		}()
		return m.run()
	}()
	if err != nil {
		t.Fatalf("%s\n%s: %v", strings.Join(m.log[max(0, len(m.log)-300):], "\n"), name, err)
	}
	return m.naive.op
}
