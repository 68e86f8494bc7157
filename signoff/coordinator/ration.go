package coordinator

import (
	"sync"
	"time"
)

// What people may append: much at once, and little for ever. An entry stays for good,
// everybody folds it, and the order on this disk ends at 8 GiB: without a bound one
// hostile person would fill it within minutes, and with it full nobody could be put
// out. At this pace it takes one of them three months. Notaries and nodes have no say
// in how much they append: the fold takes one tick of a round, two receipts of a use.
const (
	rationBurst = 64 << 20 // bytes
	rationPace  = 64 << 10 // bytes in a minute
)

// rations are what each person may append yet. The zero value is full.
type rations struct {
	burst int64 // rationBurst if 0

	mu   sync.Mutex
	left map[Digest]ration
}

type ration struct {
	bytes int64
	at    time.Time
}

// take takes n bytes of the person's ration, if so many are left.
func (r *rations) take(person Digest, n int, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	burst := r.burst
	if burst == 0 {
		burst = rationBurst
	}
	if r.left == nil {
		r.left = map[Digest]ration{}
	}
	have, known := r.left[person]
	if !known {
		have = ration{burst, now}
	}
	if minutes := int64(now.Sub(have.at) / time.Minute); minutes > 0 {
		have.bytes = min(burst, have.bytes+minutes*rationPace)
		have.at = have.at.Add(time.Duration(minutes) * time.Minute)
	}
	enough := have.bytes >= int64(n)
	if enough {
		have.bytes -= int64(n)
	}
	r.left[person] = have
	return enough
}
