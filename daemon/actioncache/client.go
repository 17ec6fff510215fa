package actioncache

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster/placement"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

const (
	// Replicas is on how many schedulers each entry lives.
	Replicas = 3
	// askFor bounds a question to one node. An answer that takes longer costs
	// as much as what it saves.
	askFor = time.Second
	// endGrace is how long Run lets entries on their way arrive.
	endGrace = time.Second
)

// Caller asks other nodes; rpc.Peers is one. It fails at once when nobody
// listens at addr.
type Caller interface {
	Call(ctx context.Context, addr string, m pb.Method, req, resp proto.Message) error
	// Reachable is false while addr is known not to answer.
	Reachable(addr string) bool
}

// Members is the membership; cluster.Members is one.
type Members interface {
	View() *cluster.View
	Changed() <-chan struct{}
}

// Placement names the disks of the journals; placement.Placement is one.
type Placement interface {
	Table() *placement.Table
	Changed() <-chan struct{}
}

// Options say who a client is, and whom it knows.
type Options struct {
	Self      cluster.Member
	Members   Members
	Placement Placement
	Peers     Caller
	Memory    *Memory  // a scheduler's, else nil
	Journal   *Journal // a worker's, else nil
	Replicas  int      // schedulers that hold an entry; 0: three
	Log       *slog.Logger
	// Registerer may be nil.
	Registerer prometheus.Registerer
}

// Client is the cluster's action cache, as one node uses it and takes part in
// it. Its methods are safe for concurrent use. It works from the start, and is
// sure of misses only while Run runs.
type Client struct {
	o       Options
	clock   Clock
	log     *slog.Logger
	metrics *metrics
	ringNow atomic.Pointer[ring]
	settled atomic.Pointer[settledFor]
	sending chan struct{} // a slot for each entry on its way to a scheduler

	// What Put leaves behind runs in these until Run ends them.
	ctx     context.Context //nolint:containedctx // the life of what outlives a Put
	cancel  context.CancelFunc
	mu      sync.Mutex // guards everything below; never held across I/O
	ended   bool
	running sync.WaitGroup
	queues  map[cluster.DiskID]*queue
	queued  int64 // bytes in all queues
}

// New makes a client. Run must be called for it to settle, and to end it.
func New(o Options) *Client {
	if o.Replicas <= 0 {
		o.Replicas = Replicas
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Client{
		o: o, log: o.Log.With("part", "action cache"), metrics: newMetrics(o.Registerer, o.Memory),
		sending: make(chan struct{}, maxSending),
		ctx:     ctx, cancel: cancel, queues: make(map[cluster.DiskID]*queue),
	}
}

// Run settles (on a scheduler) until ctx ends, then lets what is on its way
// arrive, for a second at most. No Put succeeds afterwards.
func (c *Client) Run(ctx context.Context) error {
	if c.o.Memory != nil {
		c.settle(ctx)
	} else {
		<-ctx.Done()
	}
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	stop := time.AfterFunc(endGrace, c.cancel)
	defer stop.Stop()
	c.running.Wait()
	c.cancel()
	return nil
}

// start runs f, which must heed c.ctx, unless the client has ended.
func (c *Client) start(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.startLocked(f)
}

func (c *Client) startLocked(f func()) bool {
	if c.ended {
		return false
	}
	c.running.Go(f)
	return true
}

// Get returns the result of k, or of the first of its ancestors that has one.
// Without one it is blob.ErrNotFound; also when nobody could be asked, as a
// lost entry costs no more than an execution. The caller must not change it.
func (c *Client) Get(ctx context.Context, k Key) ([]byte, error) {
	if err := k.check(); err != nil {
		return nil, err
	}
	var by string
	for _, k := range k.line() {
		var e Entry
		var found bool
		e, found, by = c.find(ctx, k)
		if found {
			c.metrics.gets.WithLabelValues("hit", by).Inc()
			return e.Result, nil
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("look up action %s: %w", k.Action, err)
		}
	}
	c.metrics.gets.WithLabelValues("miss", by).Inc()
	return nil, fmt.Errorf("action %s: %w", k.Action, blob.ErrNotFound)
}

// find looks for k itself; by says, for the metrics, who knew.
func (c *Client) find(ctx context.Context, k Key) (e Entry, found bool, by string) {
	r := c.ring()
	owners := r.owners(k, c.o.Replicas)
	others := c.others(r, owners)
	self := c.o.Memory != nil && r.isSelf(owners)
	if self {
		sure := c.sure(r) // before: what arrives meanwhile is found
		e, found, known := c.o.Memory.Lookup(k)
		if found || known && sure {
			return e, found, "memory"
		}
	} else {
		// One owner is enough, if it is sure.
		for len(others) > 0 && ctx.Err() == nil {
			a, err := c.ask(ctx, others[0].Addr, k)
			others = others[1:]
			if err != nil {
				continue
			}
			if a.found || a.sure {
				return a.entry, a.found, "owner"
			}
			break
		}
	}
	a := c.askAll(ctx, k, others)
	if a.found && self {
		c.o.Memory.Put(a.entry)
	}
	if !a.found && !a.sure && !self && c.o.Memory != nil {
		// What this scheduler owned once may be out of date, but was written
		// for k.
		a.entry, a.found, _ = c.o.Memory.Lookup(k)
	}
	return a.entry, a.found, "all"
}

// others are the owners but this node, those that can be reached first.
func (c *Client) others(r *ring, owners []int) []*cluster.Member {
	ms := make([]*cluster.Member, 0, len(owners))
	for _, reachable := range []bool{true, false} {
		for _, i := range owners {
			if i != r.self && c.o.Peers.Reachable(r.members[i].Addr) == reachable {
				ms = append(ms, &r.members[i])
			}
		}
	}
	return ms
}

// answer is what one node knows of a key.
type answer struct {
	entry Entry
	found bool
	sure  bool // it is a scheduler that would know of any entry
}

// askAll asks schedulers and the key's disks at once, and takes the latest of
// their entries: the question that a node asks which cannot be sure.
func (c *Client) askAll(ctx context.Context, k Key, schedulers []*cluster.Member) answer {
	disks := c.o.Placement.Table().Owners(k.Action.Prefix())
	ctx, cancel := context.WithCancel(ctx)
	n := len(schedulers) + len(disks)
	answers := make(chan answer, n)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel() // first
	question := func(ask func() (answer, error)) {
		asking.Go(func() {
			a, err := ask()
			if err != nil {
				a = answer{}
			}
			answers <- a
		})
	}
	for _, m := range schedulers {
		question(func() (answer, error) { return c.ask(ctx, m.Addr, k) })
	}
	for _, d := range disks {
		question(func() (answer, error) {
			a, err := c.askDisk(ctx, d, k)
			a.sure = false // it knows what it holds, not what it should
			return a, err
		})
	}
	var best answer
	for range n {
		a := <-answers
		switch {
		case a.found && best.found:
			best.entry = Merge(best.entry, a.entry)
		case a.found:
			best = a
		}
		if a.sure {
			best.sure = true
			break
		}
	}
	return best
}

func (c *Client) ask(ctx context.Context, addr string, k Key) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	resp := new(pb.AcGetResponse)
	if err := c.o.Peers.Call(ctx, addr, pb.Method_METHOD_AC_GET, &pb.AcGetRequest{Key: keyToProto(k)}, resp); err != nil {
		return answer{}, fmt.Errorf("ask %s for action %s: %w", addr, k.Action, err)
	}
	if resp.GetEntry() == nil {
		return answer{sure: resp.GetSettled()}, nil
	}
	e, err := fromProto(resp.GetEntry())
	if err == nil && e.Key != k {
		err = fmt.Errorf("%w: it is another action's", ErrMalformed)
	}
	if err == nil {
		err = c.clock.Observe(e.Stamp)
	}
	if err != nil {
		c.metrics.refused.Inc()
		return answer{}, fmt.Errorf("entry from %s: %w", addr, err)
	}
	return answer{entry: e, found: true, sure: resp.GetSettled()}, nil
}

func (c *Client) askDisk(ctx context.Context, d placement.Disk, k Key) (answer, error) {
	if c.o.Journal == nil || d.ID != c.o.Self.Disk {
		return c.ask(ctx, d.Addr, k)
	}
	e, found, err := c.o.Journal.Get(k)
	return answer{entry: e, found: found}, err
}
