package report

import "time"

// A host is one that is asked about certificates in trouble.
type host[K comparable] struct {
	outages map[string]*outage
	records int
	failing int // of these, that are Alone or Shared
	lacking int // of these, that have no staple, or one that is about to end
	slots   [kinds]*slot[K]
	busy    bool
}

// A slot has the lines of one kind about a host.
type slot[K comparable] struct {
	last  time.Time // when one was written
	first time.Time // since when the first of queue waits
	queue []*record[K]
	more  int // certificates that were well again before a line could tell of them
}

// queue asks for a line about r.
func (l *Log[K]) queue(r *record[K], k Kind, now time.Time) {
	if r.queued[k] {
		return
	}
	r.queued[k] = true
	h := r.host
	if h.slots[k] == nil {
		h.slots[k] = new(slot[K])
	}
	s := h.slots[k]
	if k == Gone && len(s.queue) == Named {
		s.more++
		return
	}
	if len(s.queue) == 0 {
		s.first = now
	}
	s.queue = append(s.queue, r)
	if !h.busy {
		h.busy = true
		l.busy = append(l.busy, h)
	}
}

// due returns when a line of a kind may be written.
func (h *host[K]) due(k Kind) time.Time {
	s := h.slots[k]
	at := s.last.Add(Pause)
	if s.last.IsZero() {
		at = time.Time{}
	}
	gathered := k == Answered && h.failing > 0 || k == Stapled && h.lacking > 0 || k == Gone && h.records > 0
	if end := s.first.Add(Pause); gathered && at.Before(end) {
		at = end
	}
	return at
}

// waits reports whether something is to be written about h.
func (h *host[K]) waits() bool {
	for _, s := range h.slots {
		if s != nil && len(s.queue) > 0 {
			return true
		}
	}
	return false
}

// idle reports whether nothing need be known of h any more.
func (h *host[K]) idle(now time.Time) bool {
	if h.records > 0 {
		return false
	}
	for _, s := range h.slots {
		if s == nil {
			continue
		}
		if age := now.Sub(s.last); len(s.queue) > 0 || age < Pause || s.more > 0 && now.Sub(s.first) < forgotten {
			return false
		}
	}
	return true
}

// lines returns what is to be written about h now.
func (l *Log[K]) lines(h *host[K], now time.Time) (all []Line[K]) {
	for k := Failed; k < kinds; k++ {
		if s := h.slots[k]; s == nil || len(s.queue) == 0 {
			continue
		}
		if at := h.due(k); now.Before(at) {
			l.lookAt(at)
			continue
		}
		if line := l.line(h, k, now); len(line.About) > 0 {
			all = append(all, line)
		}
		if len(h.slots[k].queue) > 0 {
			l.lookAt(h.due(k))
		}
	}
	return all
}

// line makes a line of a kind of what waits. It is about nobody if there is nothing left to tell.
func (l *Log[K]) line(h *host[K], k Kind, now time.Time) Line[K] {
	s := h.slots[k]
	line := Line[K]{Kind: k}
	waiting := s.queue
	s.queue = nil
	for _, r := range waiting {
		if r.queued[k] = false; !r.stands(k) {
			if !k.Ends() && !(k == Failed && r.asking == Shared) {
				s.more++
			}
			continue
		}
		switch {
		case len(line.About) < Named:
			if line.About = append(line.About, r.of); k == Unstapled && len(line.About) == 1 {
				line.Lasted = now.Sub(r.lacks)
			}
		case k == Failed || k == Unstapled:
			r.queued[k] = true
			s.queue, s.first = append(s.queue, r), now
			continue
		default:
			line.More++
		}
		line.Lasted = max(line.Lasted, r.lasted[k])
		l.written(r, k)
	}
	if len(line.About) > 0 {
		line.More += s.more
		s.last, s.more = now, 0
	}
	return line
}

// Ends reports whether k is the end of something.
func (k Kind) Ends() bool { return k == Answered || k == Stapled || k == Reinstated || k == Gone }

// stands reports whether what a line of a kind would tell of r is still so.
func (r *record[K]) stands(k Kind) bool {
	switch k {
	case Failed:
		return r.asking == Alone && !r.named || r.asking == Shared && !r.outage.told
	case Answered:
		return r.asking == Again
	case Expiring:
		return r.staple == Ending
	case Expired:
		return r.staple == Bare || r.staple == Missed
	case Unstapled:
		return r.staple == Missed
	case Stapled:
		return r.staple == Back
	case Revoked:
		return r.staple == Withdrawn
	}
	return !r.gone
}

// written notes that a line tells of r.
func (l *Log[K]) written(r *record[K], k Kind) {
	switch k {
	case Failed:
		if r.named = r.asking == Alone; r.asking == Shared {
			r.outage.told = true
		}
	case Expiring, Expired, Unstapled, Revoked:
		r.told = true
	case Answered:
		r.asking = Well
	case Stapled:
		r.staple = Current
	}
	l.settle(r)
}
