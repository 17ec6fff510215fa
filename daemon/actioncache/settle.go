package actioncache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

const (
	// pageBytes is asked for at a time, maxListing how many lists are under way
	// at once.
	pageBytes  = 1 << 20
	maxListing = 4
	pageFor    = 10 * time.Second
	// secondPass is how long after the first sight of a node its list is asked
	// for again, of what is new: until then some writers may not have known
	// that they had to write here too.
	secondPass = 3 * time.Second
	passes     = 2
	// lookEvery is how often a settled node looks at its clock, and stopped the
	// gap that says that it was not running.
	lookEvery = 2 * time.Second
	stopped   = 7 * time.Second
)

var (
	errLoading = errors.New("it is still reading its journal")
	errStuck   = errors.New("its list does not go on")
)

// settledFor says for which schedulers and disks this node has had all lists.
type settledFor struct{ ring, table uint64 }

// sure reports whether this scheduler, an owner by r, would know of any entry
// that exists, as far as it has not evicted it.
func (c *Client) sure(r *ring) bool {
	s := c.settled.Load()
	return s != nil && s.ring == r.id && s.table == c.o.Placement.Table().ID()
}

// source is a node that may hold entries of ours.
type source struct {
	addr   string
	passes int       // that are done
	seen   time.Time // first
	busy   bool
	again  time.Time // not before
	pause  time.Duration
}

// settler is a scheduler's way from knowing what it was told to knowing what
// there is.
type settler struct {
	c       *Client
	ring    *ring
	looked  time.Time // last
	sources map[string]*source
	busy    int
	results chan result
}

type result struct {
	source *source
	err    error
}

// settle keeps this node settled until ctx ends.
func (c *Client) settle(ctx context.Context) {
	s := &settler{c: c, sources: make(map[string]*source), results: make(chan result, maxListing)}
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		for ; s.busy > 0; s.busy-- {
			<-s.results
		}
		c.settled.Store(nil)
	}()
	for {
		members, disks := c.o.Members.Changed(), c.o.Placement.Changed()
		wake := time.NewTimer(s.step(ctx))
		select {
		case <-ctx.Done():
			wake.Stop()
			return
		case <-members:
		case <-disks:
		case <-wake.C:
		case r := <-s.results:
			s.done(r)
		}
		wake.Stop()
	}
}

// step starts the lists that are due, says whether this node is settled, and
// returns when to look again at the latest.
func (s *settler) step(ctx context.Context) time.Duration {
	r, table := s.c.ring(), s.c.o.Placement.Table()
	now := time.Now()
	// Who was stopped for seconds may have missed entries that the others gave
	// up sending, without anybody having noticed.
	if s.grown(r) || !s.looked.IsZero() && now.Sub(s.looked) > stopped {
		clear(s.sources)
	}
	s.ring, s.looked = r, now
	present := make(map[string]string)                 // addresses
	for _, m := range r.view.Role(cluster.Scheduler) { // draining ones too
		if m.ID != s.c.o.Self.ID {
			present["scheduler "+m.ID] = m.Addr
		}
	}
	for _, d := range table.Disks() {
		present["disk "+d.ID.String()] = d.Addr
	}
	for id := range s.sources {
		if _, ok := present[id]; !ok {
			delete(s.sources, id)
		}
	}
	settled, wake := true, lookEvery
	for id, addr := range present {
		src := s.sources[id]
		if src == nil {
			src = &source{seen: now}
			s.sources[id] = src
		}
		src.addr = addr
		if src.passes >= passes {
			continue
		}
		settled = false
		due := src.again
		if second := src.seen.Add(secondPass); src.passes > 0 && due.Before(second) {
			due = second
		}
		switch {
		case src.busy || s.busy >= maxListing: // its result wakes us
		case due.After(now):
			wake = min(wake, due.Sub(now))
		default:
			s.start(ctx, src)
		}
	}
	s.conclude(settled, &settledFor{r.id, table.ID()})
	return wake
}

func (s *settler) conclude(settled bool, of *settledFor) {
	if !settled {
		s.c.settled.Store(nil)
		s.c.metrics.settled.Set(0)
		return
	}
	if s.c.settled.Swap(of) == nil {
		st := s.c.o.Memory.Stats()
		s.c.log.Info("action cache settled", "entries", st.Entries, "bytes", st.Bytes)
	}
	s.c.metrics.settled.Set(1)
}

// grown reports whether this node may own keys now that it did not before.
func (s *settler) grown(r *ring) bool {
	if s.ring == nil || s.ring.id == r.id {
		return false
	}
	if s.ring.self < 0 {
		return true
	}
	if len(s.ring.members) <= s.c.o.Replicas {
		return false // it owned all keys
	}
	now := make(map[string]bool, len(r.names))
	for _, n := range r.names {
		now[n] = true
	}
	for _, n := range s.ring.names {
		if !now[n] {
			return true
		}
	}
	return false
}

func (s *settler) start(ctx context.Context, src *source) {
	var since int64
	if src.passes > 0 {
		since = src.seen.Add(-maxAhead).UnixNano()
	}
	src.busy = true
	s.busy++
	addr := src.addr
	go func() { s.results <- result{src, s.c.list(ctx, addr, since)} }()
}

func (s *settler) done(r result) {
	s.busy--
	src := r.source
	src.busy = false
	if r.err == nil {
		src.passes++
		src.pause = 0
		return
	}
	s.c.log.Debug("action cache not listed", "peer", src.addr, "err", r.err)
	src.pause = min(max(2*src.pause, 200*time.Millisecond), 5*time.Second)
	src.again = time.Now().Add(src.pause)
}

// list takes in what the node at addr holds of our keys, page by page.
func (c *Client) list(ctx context.Context, addr string, since int64) error {
	var after []byte
	for {
		req := &pb.AcListRequest{After: after, MaxBytes: pageBytes, Since: since, ResultsSince: c.o.Memory.Floor()}
		resp, err := c.page(ctx, addr, req)
		if err != nil {
			return fmt.Errorf("list action cache of %s: %w", addr, err)
		}
		c.load(resp.GetEntries(), req.GetResultsSince())
		if len(resp.GetNext()) == 0 {
			return nil
		}
		if bytes.Equal(resp.GetNext(), after) {
			return fmt.Errorf("list action cache of %s: %w", addr, errStuck)
		}
		after = resp.GetNext()
	}
}

func (c *Client) page(ctx context.Context, addr string, req *pb.AcListRequest) (*pb.AcListResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, pageFor)
	defer cancel()
	resp := new(pb.AcListResponse)
	if err := c.o.Peers.Call(ctx, addr, pb.Method_METHOD_AC_LIST, req, resp); err != nil {
		return nil, err
	}
	if resp.GetLoading() {
		return nil, errLoading
	}
	return resp, nil
}

// load merges a page of someone's list. Entries stamped before resultsSince
// came without results: all we keep of them is that they exist.
func (c *Client) load(ps []*pb.AcEntry, resultsSince int64) {
	r := c.ring()
	es, _ := c.accept(ps) // what is refused is counted
	for _, e := range es {
		switch {
		case !r.isSelf(r.owners(e.Key, c.o.Replicas)):
		case e.Stamp < resultsSince:
			c.o.Memory.Skip(e.Key, e.Stamp)
		default:
			c.o.Memory.Load(e)
		}
	}
	c.metrics.listed.Add(float64(len(ps)))
}
