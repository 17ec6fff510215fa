package rpc

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
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
	ctx     context.Context // ended by Close; the life of every connection
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
