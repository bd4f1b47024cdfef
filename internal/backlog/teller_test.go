package backlog

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/go-staple/staple/internal/crew"
	"github.com/stretchr/testify/require"
)

// A listener is told numbers.
type listener struct {
	Teller[int]
	mu    sync.Mutex
	crew  crew.Crew
	room  int
	heard []string
}

func newListener(tell func(int)) *listener {
	l := &listener{room: 3}
	note := func(format string, args ...any) { l.heard = append(l.heard, fmt.Sprintf(format, args...)) }
	l.Teller = Teller[int]{Lock: &l.mu, Crew: &l.crew, Room: func() int { return l.room }, Tell: func(n int) {
		l.mu.Lock()
		note("%d", n)
		l.mu.Unlock()
		tell(n)
	}, FellBehind: func() { note("behind") }, CaughtUp: func(missed int) { note("missed %d", missed) }}
	return l
}

// add adds numbers at once, the odd ones as Grave.
func (l *listener) add(numbers ...int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range numbers {
		l.Add(n, []Rank{Routine, Grave}[n%2])
	}
}

func TestEachIsToldInOrder(t *testing.T) {
	l := newListener(func(int) {})
	l.add(1, 2, 3)
	l.crew.Wait()
	l.add(4)
	l.crew.Wait()
	require.Equal(t, []string{"1", "2", "3", "4"}, l.heard)
}

func TestWhoeverHangsMissesTheLeastImportantAndLearnsHowMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := make(chan bool)
		l := newListener(func(n int) {
			if n == 0 {
				<-hangs
			}
		})
		l.add(0)
		synctest.Wait()
		l.add(1, 2, 3, 4, 5)
		require.Equal(t, []string{"0", "behind"}, l.heard)
		close(hangs)
		l.crew.Wait()
		require.Equal(t, []string{"0", "behind", "1", "3", "5", "missed 2"}, l.heard)
		l.add(7)
		l.crew.Wait()
		require.Equal(t, []string{"7"}, l.heard[6:], "which is said once")
	})
}

func TestTheOthersAreToldIfTellEndsTheGoroutine(t *testing.T) {
	l := newListener(func(n int) {
		if n == 1 {
			runtime.Goexit()
		}
	})
	l.add(1, 2)
	l.crew.Wait()
	require.Equal(t, []string{"1", "2"}, l.heard)
}

func TestNothingIsToldWhereThereIsNoRoom(t *testing.T) {
	l := newListener(func(int) {})
	l.room = 0
	l.add(1)
	require.True(t, l.crew.Idle())
	require.Empty(t, l.heard)
}
