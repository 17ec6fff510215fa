package replica

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// How long a step of a stream may take.
const (
	// stepAsk is when the node is asked whether it is there at all. A frozen
	// process closes no connection.
	stepAsk    = 2 * time.Second
	stepAnswer = 3 * time.Second
	// stall is the end of any step: the node is there, its disk is not.
	stall = 20 * time.Second
)

// watch ends a stream of which a step takes too long. Slowness is no reason: a
// node that answers has until stall.
type watch struct {
	s      *Store
	addr   string
	cancel context.CancelFunc

	mu    sync.Mutex // guards everything below
	timer *time.Timer
	step  int       // number of the step under way
	since time.Time // when it began; zero if none is under way
	limit time.Duration
}

func (s *Store) newWatch(addr string, cancel context.CancelFunc) *watch {
	w := &watch{s: s, addr: addr, cancel: cancel}
	w.timer = time.AfterFunc(stall, w.look)
	w.timer.Stop()
	return w
}

// begin begins a step, which may take at most limit.
func (w *watch) begin(limit time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.step++
	w.since, w.limit = time.Now(), limit
	w.timer.Reset(min(stepAsk, limit))
}

// end ends the step.
func (w *watch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = time.Time{}
	w.timer.Stop()
}

// look is called when a step has taken long.
func (w *watch) look() {
	w.mu.Lock()
	step, since, limit := w.step, w.since, w.limit
	w.mu.Unlock()
	switch {
	case since.IsZero():
	case time.Since(since) >= limit:
		w.cancel()
	default:
		w.s.spawn(func() { w.ask(step) })
	}
}

// ask ends the stream if its node does not answer.
func (w *watch) ask(step int) {
	ctx, cancel := context.WithTimeout(w.s.base, stepAnswer)
	defer cancel()
	err := w.s.peers.Call(ctx, w.addr, pb.Method_METHOD_PING, &pb.Ping{}, &pb.Ping{})
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.since.IsZero() || w.step != step:
	case err != nil:
		w.cancel()
	default:
		w.timer.Reset(min(stepAsk, max(w.limit-time.Since(w.since), 0)))
	}
}

// call is one call that takes a disk's work, of at most limit, and is given up
// before when the disk's node is frozen.
func (s *Store) call(ctx context.Context, limit time.Duration, addr string, m pb.Method, req, resp proto.Message) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	w := s.newWatch(addr, cancel)
	w.begin(limit)
	defer w.end()
	return s.peers.Call(ctx, addr, m, req, resp)
}
