package replica

import (
	"context"
	"sync"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// What mending may take.
const (
	maxRepairs    = 16 << 10 // blobs remembered
	repairBatch   = 64       // blobs mended at a time
	repairTries   = 20       // then it takes another request to notice
	repairDelay   = time.Second
	repairTimeout = 2 * time.Minute
)

// repairs remembers blobs that lack copies. It is a set, not a log: what is
// noticed twice is mended once.
type repairs struct {
	mu   sync.Mutex // guards m
	m    map[digest.Digest]*ailing
	wake chan struct{}
	// delay is how long what is noticed is left alone first: it is often on its
	// way already.
	delay time.Duration
}

type ailing struct {
	tries int
	due   bool // to be tried now
}

func (q *repairs) init() {
	q.m = make(map[digest.Digest]*ailing)
	q.wake = make(chan struct{}, 1)
	q.delay = repairDelay
}

// add never blocks. When it is full the blob is dropped and counted: the next
// one to ask for it notices again.
func (q *repairs) add(d digest.Digest, m *metrics) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.m[d] != nil {
		return
	}
	if len(q.m) >= maxRepairs {
		m.repairs.WithLabelValues("dropped").Inc()
		return
	}
	q.m[d] = &ailing{due: true}
	m.waiting.Set(float64(len(q.m)))
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take is up to n that are due. They are due again after renew.
func (q *repairs) take(n int) (ds []digest.Digest) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for d, a := range q.m {
		if len(ds) == n {
			break
		}
		if a.due {
			a.due = false
			ds = append(ds, d)
		}
	}
	return ds
}

// renew makes all due.
func (q *repairs) renew() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, a := range q.m {
		a.due = true
	}
}

func (q *repairs) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.m)
}

// done takes d off, or counts a try that changed nothing.
func (q *repairs) done(d digest.Digest, mended bool, m *metrics) {
	q.mu.Lock()
	defer q.mu.Unlock()
	a := q.m[d]
	if a == nil {
		return
	}
	a.tries++
	switch {
	case mended:
		delete(q.m, d)
		m.repairs.WithLabelValues("mended").Inc()
	case a.tries >= repairTries:
		delete(q.m, d)
		m.repairs.WithLabelValues("given_up").Inc()
	}
	m.waiting.Set(float64(len(q.m)))
}

// runRepairs mends until ctx ends. It tries again what did not work when the
// placement changes, or after a while. As long as there are fewer disks than
// copies it waits for the placement alone.
func (s *Store) runRepairs(ctx context.Context) {
	wait := s.repairs.delay
	for {
		changed := s.placement.Changed()
		var again <-chan time.Time
		enough := len(s.view().disks) >= s.r
		if enough && s.repairs.len() > 0 {
			again = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
			s.repairs.renew()
			wait = s.repairs.delay
		case <-s.repairs.wake:
			wait = s.repairs.delay
		case <-again:
			s.repairs.renew()
			wait = min(2*wait, time.Minute)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(s.repairs.delay):
		}
		for ctx.Err() == nil && len(s.view().disks) >= s.r {
			ds := s.repairs.take(repairBatch)
			if len(ds) == 0 {
				break
			}
			s.mend(ctx, ds)
		}
	}
}

// mend has the owners of ds that lack them fetch them from those that don't.
func (s *Store) mend(ctx context.Context, ds []digest.Digest) {
	ctx, cancel := context.WithTimeout(ctx, repairTimeout)
	defer cancel()
	v := s.view()
	a := s.find(ctx, v, ds, false)
	var todo []*placing
	for i, d := range ds {
		h := a.holders[i]
		if h.n == 0 {
			// Nobody has it, or nobody can tell: nothing to mend it from.
			s.repairs.done(d, a.verdict(i, s.w) == missing, s.metrics)
			continue
		}
		b := &placing{d: d}
		for _, on := range h.at[:h.n] {
			b.holders = append(b.holders, s.addr(v, on))
		}
		todo = append(todo, b)
	}
	s.rounds(ctx, v, todo, s.pull)
	for _, b := range todo {
		s.repairs.done(b.d, b.acks >= s.r, s.metrics)
		if b.acks < s.r {
			s.log.Debug("blob not mended", "digest", b.d, "copies", b.acks, "err", b.err)
		}
	}
}
