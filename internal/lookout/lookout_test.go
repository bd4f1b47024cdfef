package lookout

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple/internal/crew"
	"github.com/stretchr/testify/require"
)

const every = 5 * time.Second

// A sight is a Post that is due every five seconds, and the times of its looks.
type sight struct {
	Post
	looks int
	due   time.Time
	hangs chan struct{} // until it is closed; nil: it does not
	hung  int           // times that it was told so
	ended bool
}

type scene struct {
	Lookout
	mu     sync.Mutex
	crew   crew.Crew
	rounds int
	most   int // looks at a time
	now    int
}

func newScene() *scene {
	s := new(scene)
	s.Lock, s.Crew = &s.mu, &s.crew
	s.First = func() { s.rounds++ }
	s.Wait = func() time.Duration { return every }
	return s
}

func (s *scene) do(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *scene) add() *sight {
	p := &sight{due: time.Now().Add(every)}
	p.Due = func() time.Time { return p.due }
	p.Look = func() {
		p.looks++
		s.now++
		s.most = max(s.most, s.now)
		hangs := p.hangs
		func() {
			s.mu.Unlock()
			defer s.mu.Lock()
			if hangs != nil {
				<-hangs
			}
		}()
		s.now--
		p.due = time.Now().Add(every)
	}
	p.Hangs = func() { p.hung++ }
	p.Ended = func() { p.ended = true }
	s.do(func() { s.Add(&p.Post) })
	return p
}

func (s *scene) close(t *testing.T) (took time.Duration) {
	began := time.Now()
	var stop func()
	s.do(func() { stop = s.Close(every) })
	s.crew.Wait()
	stop()
	return time.Since(began)
}

func TestAThousandCostOneGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene()
		var all []*sight
		for range 1000 {
			all = append(all, s.add())
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		buf := make([]byte, 1<<20)
		require.NotContains(t, string(buf[:runtime.Stack(buf, true)]), ").round(", "no goroutine while nothing is due")
		require.Equal(t, 1, s.most)
		require.LessOrEqual(t, s.rounds, 14)
		for _, p := range all {
			require.Equal(t, 12, p.looks)
			require.Zero(t, p.hung)
			s.do(func() { s.Remove(&p.Post) })
		}
		require.True(t, s.crew.Idle(), "not even a timer")
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, 12, all[0].looks)
		require.Zero(t, s.close(t))
		require.False(t, all[0].ended)
	})
}

func TestWhatHangsHoldsUpItselfAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene()
		var all []*sight
		for range 20 {
			all = append(all, s.add())
		}
		back := make(chan struct{})
		for _, p := range all[:3] {
			s.do(func() { p.hangs = back })
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		s.do(func() {
			for i, p := range all {
				if i < 3 {
					require.Equal(t, 1, p.looks)
					require.GreaterOrEqual(t, p.hung, 10)
				} else {
					require.GreaterOrEqual(t, p.looks, 11)
					require.Zero(t, p.hung)
				}
			}
			require.Equal(t, 4, s.most)
			for _, p := range all[:3] {
				p.hangs = nil
			}
		})
		close(back)
		time.Sleep(time.Minute)
		synctest.Wait()
		for _, p := range all {
			require.GreaterOrEqual(t, p.looks, 12)
		}
		require.Zero(t, s.close(t))
		require.True(t, all[0].ended)
	})
}

func TestOneThatIsRemovedWhileItHangsLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene()
		p := s.add()
		back := make(chan struct{})
		s.do(func() { p.hangs = back })
		time.Sleep(every)
		synctest.Wait()
		s.do(func() { s.Remove(&p.Post) })
		close(back)
		synctest.Wait()
		require.True(t, s.crew.Idle())
		q := s.add() // and begins anew
		time.Sleep(every)
		synctest.Wait()
		require.Equal(t, 1, q.looks)
		s.close(t)
	})
}

func TestCloseWaitsForALookAndNotForEver(t *testing.T) {
	for hangs, want := range map[time.Duration]time.Duration{time.Second: time.Second, time.Hour: every} {
		synctest.Test(t, func(t *testing.T) {
			s := newScene()
			p, q := s.add(), s.add()
			back := make(chan struct{})
			s.do(func() { p.hangs = back })
			time.Sleep(every)
			synctest.Wait()
			time.AfterFunc(hangs, func() { close(back) })
			require.Equal(t, want, s.close(t))
			looks := q.looks
			time.Sleep(2 * time.Hour) // when it is back, nobody minds
			synctest.Wait()
			require.Equal(t, 1, p.looks)
			require.Equal(t, looks, q.looks)
			require.True(t, s.crew.Idle())
		})
	}
}

func TestALookThatEndsItsGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene()
		p, q := s.add(), s.add()
		look := p.Look
		s.do(func() {
			p.Look = func() {
				look()
				if p.looks < 3 {
					runtime.Goexit()
				}
			}
		})
		time.Sleep(time.Minute)
		synctest.Wait()
		require.GreaterOrEqual(t, p.looks, 9)
		require.GreaterOrEqual(t, q.looks, 9)
		require.Zero(t, s.close(t))
	})
}

func TestOneThatIsDueSoonerAfterArm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene()
		p := s.add()
		time.Sleep(time.Second)
		s.do(func() {
			p.due = time.Now()
			s.Arm()
		})
		synctest.Wait()
		require.Equal(t, 1, p.looks)
		s.close(t)
	})
}
