package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// unusedAfter is when the connections to a node that nobody calls are closed.
const unusedAfter = 10 * time.Minute

// PeersOptions say who calls, and how.
type PeersOptions struct {
	Self string // Member.ID, which handlers see as from
	// Credentials for all connections. Nil means plaintext, and then other
	// addresses than loopback's are refused.
	Credentials credentials.TransportCredentials
	Log         *slog.Logger
	Registerer  prometheus.Registerer // may be nil
}

// Peers keeps connections to the cluster ports of other nodes. A node is dialled
// when first used, dialled again with back-off for as long as it is being used,
// and forgotten after ten minutes in which it was not.
//
// All methods are safe for concurrent use.
type Peers struct {
	o       PeersOptions
	metrics *metrics
	ctx     context.Context //nolint:containedctx // ended by Close; the life of every connection
	cancel  context.CancelFunc
	running sync.WaitGroup
	patience

	mu    sync.RWMutex // guards everything below; never held across I/O
	peers map[string]*peer
}

// NewPeers starts with no connection. Close ends what it keeps.
func NewPeers(o PeersOptions) *Peers {
	ctx, cancel := context.WithCancel(context.Background())
	p := &Peers{
		o:       o,
		metrics: newMetrics(o.Registerer),
		ctx:     ctx,
		cancel:  cancel,
		peers:   make(map[string]*peer),

		patience: defaultPatience,
	}
	p.running.Go(p.forgetUnused)
	return p
}

// Close closes all connections; calls in flight fail.
func (p *Peers) Close() error {
	p.mu.Lock()
	p.cancel()
	peers := p.peers
	p.peers = nil
	p.mu.Unlock()
	for _, q := range peers {
		q.close()
	}
	p.running.Wait()
	return nil
}

// Call makes one small request. It fails at once with codes.Unavailable when
// addr refuses connections or the stream breaks, in which case the request may
// have been carried out or not. Its errors are FromStatus's. ctx's deadline
// travels with the request, and its end cancels the handler.
func (p *Peers) Call(ctx context.Context, addr string, m pb.Method, req, resp proto.Message) error {
	err := p.call(ctx, addr, m, req, resp)
	p.metrics.call(m, err)
	return err
}

func (p *Peers) call(ctx context.Context, addr string, m pb.Method, req, resp proto.Message) error {
	q, err := p.peer(addr)
	if err != nil {
		return err
	}
	s, err := q.live(ctx)
	if err != nil {
		return err
	}
	return s.call(ctx, m, req, resp)
}

// Conn is a connection to addr for streams of bulk data, apart from the one
// that calls travel over. Its calls fail fast, and it dials again by itself. It
// is for use now: ask again for the next stream, as an unused one is closed.
func (p *Peers) Conn(addr string) (*grpc.ClientConn, error) {
	q, err := p.peer(addr)
	if err != nil {
		return nil, err
	}
	return q.bulk, nil
}

// Reachable is false from when a dial to addr failed or its stream of calls
// broke until a dial succeeds again. An address that nobody has called lately
// counts as reachable. It is cheap.
func (p *Peers) Reachable(addr string) bool {
	p.mu.RLock()
	q := p.peers[addr]
	p.mu.RUnlock()
	return q == nil || !q.down.Load()
}

// peer finds or makes the connections to addr.
func (p *Peers) peer(addr string) (*peer, error) {
	now := time.Now().UnixNano()
	p.mu.RLock()
	q := p.peers[addr]
	if q != nil {
		q.used.Store(now)
	}
	p.mu.RUnlock()
	if q != nil {
		return q, nil
	}
	if p.o.Credentials == nil {
		if err := LoopbackOnly(addr); err != nil {
			return nil, err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		return nil, &Error{codes.Unavailable, "this node is shutting down"}
	}
	if q := p.peers[addr]; q != nil {
		q.used.Store(now)
		return q, nil
	}
	q, err := newPeer(p, addr)
	if err != nil {
		return nil, err
	}
	q.used.Store(now)
	p.peers[addr] = q
	return q, nil
}

// forgetUnused closes the connections that nobody uses.
func (p *Peers) forgetUnused() {
	tick := time.NewTicker(unusedAfter / 10)
	defer tick.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case now := <-tick.C:
			for _, q := range p.unused(now.Add(-unusedAfter)) {
				q.close()
			}
		}
	}
}

func (p *Peers) unused(before time.Time) []*peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	var gone []*peer
	for addr, q := range p.peers {
		if q.used.Load() < before.UnixNano() && !q.busy() {
			delete(p.peers, addr)
			gone = append(gone, q)
		}
	}
	return gone
}

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
