// Package bounded has a map that never grows beyond what it is meant to hold. It is for
// what was learnt on the way and can be learnt again: at worst, what is forgotten costs
// a further request.
//
//	var seen bounded.Map[string, time.Time]
//	seen.Put(url, now)
//	last := seen.Get(url)
//
// Which entry goes when it is full is left to chance. It is not a cache: nothing expires,
// and what is used often is not spared.
package bounded

// Size is how many entries a Map has at most.
const Size = 512

// A Map is a map of [Size] entries at most. The zero value is empty and ready to use. It
// is not safe for concurrent use.
type Map[K comparable, V any] struct{ entries map[K]V }

// Get returns the value of a key, or the zero value.
func (m *Map[K, V]) Get(key K) V { return m.entries[key] }

// Put sets the value of a key, in the place of any other where m is full.
func (m *Map[K, V]) Put(key K, value V) {
	if m.entries == nil {
		m.entries = make(map[K]V)
	}
	if _, known := m.entries[key]; !known && len(m.entries) >= Size {
		for k := range m.entries {
			delete(m.entries, k)
			break
		}
	}
	m.entries[key] = value
}

// Len returns how many entries there are.
func (m *Map[K, V]) Len() int { return len(m.entries) }
