package schedule

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// BenchmarkNext is the next look: Look, Next, Done and Free of one request, with many hosts of one certificate each,
// half of which never answer.
func BenchmarkNext(b *testing.B) {
	for _, hosts := range []int{100, 10_000, 100_000} {
		b.Run(fmt.Sprint(hosts, " hosts"), func(b *testing.B) {
			now := time.UnixMicro(epoch)
			s := New(16, rand.Int64N, false)
			items := make([]Item, hosts)
			dead := make(map[*Item]bool, hosts)
			at := make(map[*Item]Source, hosts)
			for i := range items {
				it := &items[i]
				u := Source{Host: fmt.Sprint("h", i), URL: fmt.Sprint("http://h", i, "/")}
				s.Add(it, "ca", []Source{u}, now.Add(10_000*24*time.Hour))
				s.Start(it, now)
				dead[it], at[it] = i%2 == 0, u
			}
			round := func() {
				for {
					s.Look(now)
					it, task := s.Next(now)
					if task == Nothing { // and When says when there will be somebody
						now = s.When()
						continue
					}
					if dead[it] {
						s.Done(it, Outcome{Result: Failed, Asked: true, Err: errTest,
							Answers: []Answer{{Source: at[it], Fault: Host, Err: errTest}}}, now)
					} else {
						s.Done(it, newer(now, 7*24*time.Hour), now)
					}
					s.Free(it, now)
					s.Notices()
					return
				}
			}
			for range 2 * hosts { // until all have been asked about
				round()
			}
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				round()
			}
		})
	}
}

// BenchmarkWhen is what a look costs with nothing to do, while all hosts pause.
func BenchmarkWhen(b *testing.B) {
	for _, hosts := range []int{100, 10_000, 100_000} {
		b.Run(fmt.Sprint(hosts, " hosts"), func(b *testing.B) {
			now := time.UnixMicro(epoch)
			s := New(16, rand.Int64N, false)
			items := make([]Item, hosts)
			for i := range items {
				s.Add(&items[i], "ca", []Source{{fmt.Sprint("h", i), fmt.Sprint("http://h", i, "/")}}, now.Add(10_000*24*time.Hour))
				s.Start(&items[i], now)
			}
			for it, task := s.Next(now); task != Nothing; it, task = s.Next(now) {
				u := Source{it.route.ends[0].host().key.url, it.route.urls[0]}
				s.Done(it, Outcome{Result: Failed, Asked: true, Answers: []Answer{{Source: u, Fault: Host, Err: errTest}}}, now)
				s.Free(it, now)
			}
			s.Notices()
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				s.Look(now)
				if _, task := s.Next(now); task != Nothing {
					b.Fatal("somebody can be asked")
				}
				s.When()
			}
		})
	}
}
