// Package crew counts goroutines, so that somebody can wait for the last of them. Unlike a
// sync.WaitGroup, it may grow from nothing while somebody waits.
package crew

import "sync"

// A Crew is a number of goroutines, or timers. The zero value is nobody.
type Crew struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when n is 0; nil: nobody waits
}

// Add says that n more begin.
func (c *Crew) Add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += n
	if c.n < 0 {
		panic("crew: more have ended than began")
	}
	if c.n == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}

// Done says that one has ended.
func (c *Crew) Done() { c.Add(-1) }

// Idle reports whether all have ended.
func (c *Crew) Idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n == 0
}

// Wait waits for a moment when all have ended. Others may have begun since.
func (c *Crew) Wait() {
	c.mu.Lock()
	if c.n == 0 {
		c.mu.Unlock()
		return
	}
	if c.idle == nil {
		c.idle = make(chan struct{})
	}
	idle := c.idle
	c.mu.Unlock()
	<-idle
}
