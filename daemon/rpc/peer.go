package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"

	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// peer is one other node.
type peer struct {
	addr  string
	log   *slog.Logger
	calls *grpc.ClientConn
	bulk  *grpc.ClientConn
	stop  context.CancelFunc
	used  atomic.Int64 // Unix nanoseconds
	patience
	down atomic.Bool

	mu      sync.Mutex    // guards everything below
	stream  *stream       // nil unless it works
	err     error         // why the last dial failed; nil unless it did
	settled chan struct{} // closed when stream or err is set; a new one when both are nil
}

func newPeer(p *Peers, addr string) (*peer, error) {
	calls, err := dial(addr, p.o.Credentials, grpc.WithIdleTimeout(0))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	bulk, err := dial(addr, p.o.Credentials, grpc.WithIdleTimeout(unusedAfter/2))
	if err != nil {
		calls.Close()
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	ctx, stop := context.WithCancel(p.ctx)
	q := &peer{
		addr: addr, log: p.o.Log.With("peer", addr), calls: calls, bulk: bulk,
		stop: stop, settled: make(chan struct{}), patience: p.patience,
	}
	p.running.Go(func() { q.run(ctx, p.o.Self, p.metrics) })
	return q, nil
}

func (q *peer) close() {
	q.stop()
	q.bulk.Close()
	q.calls.Close()
}

// busy reports whether streams or calls are under way.
func (q *peer) busy() bool {
	if q.bulk.GetState() != connectivity.Idle {
		return true // gRPC lets it idle when no stream was open for a while
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.stream != nil && len(q.stream.slots) > 0
}

// live returns the stream, waiting for a dial under way but for no other.
func (q *peer) live(ctx context.Context) (*stream, error) {
	q.mu.Lock()
	s, err, settled := q.stream, q.err, q.settled
	q.mu.Unlock()
	if s == nil && err == nil {
		select {
		case <-settled:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		q.mu.Lock()
		s, err = q.stream, q.err
		q.mu.Unlock()
	}
	switch {
	case s != nil:
		return s, nil
	case err != nil:
		return nil, err
	}
	return nil, &Error{codes.Unavailable, fmt.Sprintf("connection to %s broke", q.addr)}
}

// settle records the outcome of a dial.
func (q *peer) settle(s *stream, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.down.Store(s == nil)
	if q.stream == nil && q.err == nil {
		close(q.settled)
	}
	q.stream, q.err = s, err
}

// unsettle makes callers wait for the dial that follows.
func (q *peer) unsettle() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.down.Store(true)
	q.stream, q.err = nil, nil
	q.settled = make(chan struct{})
}

// run dials until there is a stream, works it until it breaks, and so on.
func (q *peer) run(ctx context.Context, self string, m *metrics) {
	const atLeast, atMost = 20 * time.Millisecond, time.Second
	pause := atLeast
	for {
		since := time.Now()
		err := q.serve(ctx, self, m)
		if ctx.Err() != nil {
			q.settle(nil, &Error{codes.Unavailable, fmt.Sprintf("connection to %s is closed", q.addr)})
			return
		}
		m.breaks.Inc()
		q.log.Debug("no stream of calls", "err", err)
		if time.Since(since) > atMost {
			pause = atLeast
		}
		if st := q.calls.GetState(); st == connectivity.TransientFailure {
			q.calls.WaitForStateChange(ctx, st) // gRPC dials again, with its own back-off
			continue
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		pause = min(2*pause, atMost)
	}
}

// serve makes one attempt at a stream, and works it until it breaks.
func (q *peer) serve(ctx context.Context, self string, m *metrics) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	calls, err := pb.NewCallsClient(q.calls).Call(ctx)
	if err != nil {
		q.settle(nil, &Error{codes.Unavailable, fmt.Sprintf("dial %s: %v", q.addr, FromStatus(err))})
		return err
	}
	if err := q.greeted(self, calls, cancel); err != nil {
		q.settle(nil, &Error{codes.Unavailable, fmt.Sprintf("dial %s: %v", q.addr, FromStatus(err))})
		return err
	}
	s := newStream(m)
	q.settle(s, nil)
	m.peers.Inc()
	defer m.peers.Dec()
	var watching sync.WaitGroup
	watching.Go(func() { s.watch(q.patience, cancel, func(ok bool) { q.down.Store(!ok) }) })
	err = s.run(calls)
	watching.Wait()
	q.unsettle()
	return err
}

// greeted waits for the node's first answer, but not for ever.
func (q *peer) greeted(self string, calls grpc.BidiStreamingClient[pb.CallFrame, pb.AnswerFrame], cancel func()) error {
	late := time.AfterFunc(dialTimeout, cancel)
	err := greet(self, calls)
	if !late.Stop() {
		return &Error{codes.Unavailable, fmt.Sprintf("no answer within %v", dialTimeout)}
	}
	return err
}
