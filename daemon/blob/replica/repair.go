package replica

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/blob/repair"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
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

// mend tells the owners of ds that lack them who has them. They fetch them.
func (s *Store) mend(ctx context.Context, ds []digest.Digest) {
	ctx, cancel := context.WithTimeout(ctx, repairTimeout)
	defer cancel()
	v := s.view()
	a := s.find(ctx, v, ds, question{held: true})
	type errand struct{ owner, holder int32 }
	errands := make(map[errand][]digest.Digest)
	var some [8]int32
	for i, d := range ds {
		h := a.holders[i]
		if h.n == 0 {
			// Nobody has it, or nobody can tell: nothing to mend it from.
			s.repairs.done(d, a.verdict(i) == missing, s.metrics)
			continue
		}
		for _, o := range v.owners(some[:0], d) {
			if slices.Contains(h.at[:h.n], o) {
				continue
			}
			e := errand{o, h.at[0]}
			errands[e] = append(errands[e], d)
		}
	}
	failed := make(map[digest.Digest]bool)
	for e, of := range errands {
		if !s.tell(ctx, v, e.owner, e.holder, of) {
			for _, d := range of {
				failed[d] = true
			}
		}
	}
	for i, d := range ds {
		if a.holders[i].n > 0 {
			s.repairs.done(d, !failed[d], s.metrics)
		}
	}
}

// tell tells one owner who has ds, and reports whether it has understood.
func (s *Store) tell(ctx context.Context, v *view, owner, holder int32, ds []digest.Digest) bool {
	id := v.disks[holder].ID
	if owner == v.self {
		for _, d := range ds {
			s.keeper.note(d, uint32(time.Now().Unix()), id, repair.Usual)
		}
		return true
	}
	req := &pb.ConfirmRequest{Holder: id[:], Digests: digest.Pack(ds)}
	for range ds {
		req.Touches = appendTouches(req.Touches, uint32(time.Now().Unix()))
	}
	var resp pb.ConfirmResponse
	if err := s.peers.Call(ctx, v.disks[owner].Addr, pb.Method_METHOD_BLOB_CONFIRM, req, &resp); err != nil || len(resp.Confirmations) != len(ds) {
		s.log.Debug("owner not told of what it lacks", "peer", v.disks[owner].Node, "err", err)
		return false
	}
	return !slices.Contains(resp.Confirmations, byte(pb.Confirmation_CONFIRMATION_NONE))
}
