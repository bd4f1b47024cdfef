package seen

import "sync"

// An Owner is a configuration, as far as a [Table] remembers it: the configuration itself
// must stay collectable.
type Owner struct{ _ byte }

// Released holds the owners whose configurations became unreachable. It is filled by
// the runtime's cleanups, which must not touch channels or timers, and emptied by whoever
// has the Table disown them. The zero value is ready.
type Released struct {
	mu     sync.Mutex
	owners []*Owner
}

// Add adds o.
func (r *Released) Add(o *Owner) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.owners = append(r.owners, o)
}

// Take returns the owners and forgets them.
func (r *Released) Take() []*Owner {
	r.mu.Lock()
	defer r.mu.Unlock()
	owners := r.owners
	r.owners = nil
	return owners
}

// Len returns how many Take would return.
func (r *Released) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.owners)
}
