package action

import (
	"context"
	"sync"
)

// prefetches are the actions whose inputs are being fetched ahead, or have
// been.
type prefetches struct {
	limit int

	mu    sync.Mutex // guards everything below
	m     map[attempt]*prefetch
	order []*prefetch // oldest first
}

// attempt is what a prefetch is for.
type attempt struct {
	id string
	n  uint32
}

type prefetch struct {
	key    attempt
	cancel context.CancelFunc
	done   chan struct{}
	p      *prepared // after done
	err    error
}

// Prefetch implements worker.Actions. A task that never comes to run is
// forgotten when others have come.
func (a *Actions) Prefetch(ctx context.Context, t *Task) {
	f := &prefetch{key: attempt{t.ID, t.Attempt}, done: make(chan struct{})}
	ctx, f.cancel = context.WithCancel(ctx)
	if !a.ahead.add(f) {
		f.cancel()
		return
	}
	defer close(f.done)
	defer f.cancel()
	f.p, f.err = a.prepare(ctx, t)
}

// add takes f in, unless the same is there.
func (s *prefetches) add(f *prefetch) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m[f.key] != nil {
		return false
	}
	if s.m == nil {
		s.m = make(map[attempt]*prefetch)
	}
	if len(s.order) >= s.limit {
		old := s.order[0]
		s.order = s.order[1:]
		delete(s.m, old.key)
		old.cancel()
	}
	s.m[f.key] = f
	s.order = append(s.order, f)
	return true
}

// take gives out the prefetch for key, if there is one.
func (s *prefetches) take(key attempt) *prefetch {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.m[key]
	if f == nil {
		return nil
	}
	delete(s.m, key)
	for i := range s.order {
		if s.order[i] == f {
			s.order = append(s.order[:i], s.order[i+1:]...)
			break
		}
	}
	return f
}

// prepared prepares t unless that has been done ahead.
func (a *Actions) prepared(ctx context.Context, t *Task) (*prepared, error) {
	if f := a.ahead.take(attempt{t.ID, t.Attempt}); f != nil {
		select {
		case <-f.done:
		case <-ctx.Done():
			f.cancel()
			return nil, ctx.Err()
		}
		// What went wrong then need not go wrong now.
		if f.err == nil {
			return f.p, nil
		}
	}
	return a.prepare(ctx, t)
}
