package schedule

// An order is one of the ways in which those who wait are sorted.
type order int8

const (
	byClass order = iota // the most urgent first, and among equals whose turn it is
	byAge                // whoever was not asked about for the longest time first
	byEnd                // the staple that ends first
	byTime               // when to look
	orders
)

// A rank is what those who wait are sorted by, and where they stand.
type rank struct {
	class class
	pos   [orders]int32 // in the heap of each order, from one; 0: not there
	turn  uint64        // when it came, or was served last
	age   int64         // when somebody was asked about it last; 0: never
	end   int64         // of the staple; far: there is none
	at    int64         // when to look
}

func (r *rank) ranked() *rank { return r }

func (r *rank) before(s *rank, o order) bool {
	switch {
	case o == byTime:
		return r.at < s.at
	case o == byEnd:
		return r.end < s.end
	case o == byAge && r.age != s.age:
		return r.age < s.age
	case o == byClass && r.class != s.class:
		return r.class < s.class
	}
	return r.turn < s.turn
}

// A heap holds elements in one order.
type heap[E interface{ ranked() *rank }] []E

// put adds e, or moves it to where its rank says now.
func (h *heap[E]) put(e E, o order) {
	r := e.ranked()
	if r.pos[o] == 0 {
		*h = append(*h, e)
		r.pos[o] = int32(len(*h))
	}
	h.sift(int(r.pos[o]-1), o)
}

// drop removes e if it is there.
func (h *heap[E]) drop(e E, o order) {
	r := e.ranked()
	i := int(r.pos[o] - 1)
	if i < 0 {
		return
	}
	last := len(*h) - 1
	h.swap(i, last, o)
	r.pos[o] = 0
	var none E
	(*h)[last] = none
	if *h = (*h)[:last]; i < last {
		h.sift(i, o)
	} else if last == 0 && cap(*h) > 64 {
		*h = nil
	}
}

func (h heap[E]) swap(i, j int, o order) {
	h[i], h[j] = h[j], h[i]
	h[i].ranked().pos[o], h[j].ranked().pos[o] = int32(i+1), int32(j+1)
}

// sift moves the element at i up or down to where it belongs.
func (h heap[E]) sift(i int, o order) {
	for i > 0 {
		up := (i - 1) / 2
		if !h[i].ranked().before(h[up].ranked(), o) {
			break
		}
		h.swap(i, up, o)
		i = up
	}
	for {
		least := i
		for down := 2*i + 1; down <= 2*i+2 && down < len(h); down++ {
			if h[down].ranked().before(h[least].ranked(), o) {
				least = down
			}
		}
		if least == i {
			return
		}
		h.swap(i, least, o)
		i = least
	}
}

// A queue holds those who wait, in each of the orders but that of time.
type queue[E interface{ ranked() *rank }] [byTime]heap[E]

func (q *queue[E]) put(e E) {
	for o := range byTime {
		q[o].put(e, o)
	}
}

func (q *queue[E]) drop(e E) {
	for o := range byTime {
		q[o].drop(e, o)
	}
}

func (q *queue[E]) len() int { return len(q[byClass]) }

// lead makes r the rank of a group to which those in q belong: the best of theirs.
func (q *queue[E]) lead(r *rank) {
	r.class = q[byClass][0].ranked().class
	r.age = q[byAge][0].ranked().age
	r.end = q[byEnd][0].ranked().end
}
