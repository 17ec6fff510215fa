package actioncache

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster/placement"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// network is a cluster in one process: its membership, and the calls between its
// nodes. Calls take a millisecond.
type network struct {
	t         *testing.T
	dir       string
	placement *placement.Placement // all nodes share one: it is slow under the race detector

	end func()

	mu      sync.Mutex // guards everything below
	nodes   map[string]*node
	boots   int64
	changed chan struct{}
	view    *cluster.View
	mute    map[string]bool // addresses that never answer
	side    map[string]int  // of a split; each sees its own only
	views   map[int]*cluster.View
	calls   map[pb.Method]int
}

type node struct {
	*Client
	self cluster.Member
	stop func()
}

func newNetwork(t *testing.T) *network {
	n := &network{
		t: t, dir: t.TempDir(), nodes: make(map[string]*node), changed: make(chan struct{}),
		view: new(cluster.View), mute: make(map[string]bool), calls: make(map[pb.Method]int),
		side: make(map[string]int), views: map[int]*cluster.View{0: new(cluster.View), 1: new(cluster.View)},
	}
	n.placement = placement.New(n, 2, time.Minute, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	var placing sync.WaitGroup
	placing.Go(func() { _ = n.placement.Run(ctx) })
	n.end = func() {
		for name := range n.nodes {
			n.nodes[name].stop()
		}
		cancel()
		placing.Wait()
	}
	return n
}

// View is everyone, for placement: no split here lasts for a minute.
func (n *network) View() *cluster.View {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.view
}

// port is what one node sees of the net.
type port struct {
	*network
	name string
}

func (p port) View() *cluster.View {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.views[p.side[p.name]]
}

func (p port) Reachable(addr string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nodes[addr] != nil && p.side[addr] == p.side[p.name]
}

func (p port) Call(ctx context.Context, addr string, m pb.Method, req, resp proto.Message) error {
	if !p.Reachable(addr) {
		return status.Error(codes.Unavailable, "refused")
	}
	return p.call(ctx, addr, m, req, resp)
}

// split puts nodes on a side of their own.
func (n *network) split(side int, names ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, name := range names {
		n.side[name] = side
	}
	n.announceLocked()
}

func (n *network) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

// announce makes the view that of the nodes that are there.
func (n *network) announceLocked() {
	n.view = new(cluster.View)
	for _, o := range n.nodes {
		n.view.Members = append(n.view.Members, o.self)
	}
	slices.SortFunc(n.view.Members, func(a, b cluster.Member) int { return strings.Compare(a.ID, b.ID) })
	for side := range 2 {
		v := new(cluster.View)
		for _, m := range n.view.Members {
			if n.side[m.Addr] == side {
				v.Members = append(v.Members, m)
			}
		}
		n.views[side] = v
	}
	close(n.changed)
	n.changed = make(chan struct{})
}

// start starts a node: "s..." is a scheduler, "w..." a worker, whose journal
// outlives it.
func (n *network) start(names ...string) {
	for _, name := range names {
		n.mu.Lock()
		n.boots++
		self := cluster.Member{ID: fmt.Sprintf("%s-%d", name, n.boots), Name: name, Boot: n.boots, Addr: name, State: cluster.Ready}
		n.mu.Unlock()
		log := slog.New(slog.DiscardHandler)
		o := Options{Self: self, Members: port{n, name}, Placement: n.placement, Peers: port{n, name}, Log: log}
		if name[0] == 's' {
			o.Self.Role, o.Memory = cluster.Scheduler, NewMemory(8<<20)
		} else {
			o.Self.Role, o.Self.Weight = cluster.Worker, 1
			copy(o.Self.Disk[:], name)
			j, err := OpenJournal(JournalOptions{Dir: n.dir + "/" + name, Log: log})
			if err != nil {
				n.t.Fatal(err)
			}
			o.Journal = j
		}
		x := &node{Client: New(o), self: o.Self}
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { _ = x.Run(ctx) })
		if o.Journal != nil {
			running.Go(func() { _ = o.Journal.Run(ctx) })
		}
		x.stop = func() {
			cancel()
			x.cancel() // killed: nothing on its way arrives
			running.Wait()
			if o.Journal != nil {
				if err := o.Journal.Close(); err != nil {
					n.t.Error(err)
				}
			}
		}
		n.mu.Lock()
		n.nodes[name] = x
		n.announceLocked()
		n.mu.Unlock()
	}
}

// kill ends nodes at once; seen says whether the others know.
func (n *network) kill(seen bool, names ...string) {
	for _, name := range names {
		n.mu.Lock()
		x := n.nodes[name]
		delete(n.nodes, name)
		if seen {
			n.announceLocked()
		}
		n.mu.Unlock()
		x.stop()
	}
}

func (n *network) call(ctx context.Context, addr string, m pb.Method, req, resp proto.Message) error {
	n.mu.Lock()
	x, mute := n.nodes[addr], n.mute[addr]
	n.calls[m]++
	n.mu.Unlock()
	if mute {
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	}
	time.Sleep(time.Millisecond)
	if x == nil {
		return status.Error(codes.Unavailable, "refused")
	}
	answer, err := x.serve(ctx, m, proto.Clone(req))
	if err != nil {
		return err
	}
	proto.Merge(resp, answer)
	return nil
}

// serve is what Register makes of a Mux.
func (x *node) serve(ctx context.Context, m pb.Method, req proto.Message) (proto.Message, error) {
	memory := x.o.Memory != nil
	switch {
	case m == pb.Method_METHOD_AC_GET && memory:
		return x.serveGet(ctx, "", req.(*pb.AcGetRequest))
	case m == pb.Method_METHOD_AC_GET:
		return x.serveJournalGet(ctx, "", req.(*pb.AcGetRequest))
	case m == pb.Method_METHOD_AC_PUT && memory:
		return x.servePut(ctx, "", req.(*pb.AcPutRequest))
	case m == pb.Method_METHOD_AC_APPEND && !memory:
		return x.serveAppend(ctx, "", req.(*pb.AcPutRequest))
	case m == pb.Method_METHOD_AC_LIST && memory:
		return x.serveList(ctx, "", req.(*pb.AcListRequest))
	case m == pb.Method_METHOD_AC_LIST:
		return x.serveJournalList(ctx, "", req.(*pb.AcListRequest))
	}
	return nil, status.Error(codes.Unimplemented, m.String())
}

func (n *network) reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.calls)
}

func (n *network) called(ms ...pb.Method) (sum int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range ms {
		sum += n.calls[m]
	}
	return sum
}

func (n *network) put(by string, k Key, result string) {
	n.t.Helper()
	if err := n.nodes[by].Put(n.t.Context(), k, []byte(result)); err != nil {
		n.t.Fatalf("%s puts: %v", by, err)
	}
}

// wants holds what a node reads; "" is a miss.
func (n *network) wants(by string, k Key, want string) {
	n.t.Helper()
	got, err := n.nodes[by].Get(n.t.Context(), k)
	if want == "" && !blob.IsNotFound(err) || want != "" && err != nil || string(got) != want {
		n.t.Fatalf("%s reads %q, %v; want %q", by, got, err, want)
	}
}

func (n *network) wantSettled(by string, want bool) {
	n.t.Helper()
	x := n.nodes[by]
	if got := x.sure(x.ring()); got != want {
		n.t.Fatalf("%s is settled: %v", by, got)
	}
}

var all = []string{"s1", "s2", "s3", "w1", "w2", "w3"}

// inCluster runs f in a settled cluster of three schedulers and three workers.
func inCluster(t *testing.T, f func(t *testing.T, n *network)) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		defer n.end()
		n.start(all...)
		time.Sleep(5 * time.Second)
		for _, s := range all[:3] {
			n.wantSettled(s, true)
		}
		n.reset()
		f(t, n)
	})
}
