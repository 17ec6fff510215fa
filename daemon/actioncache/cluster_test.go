package actioncache

import (
	"context"
	"errors"
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
			x.Client.cancel() // killed: nothing on its way arrives
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

func TestEverySchedulerReadsWhatAWorkerWrote(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.put("w1", key("", 1), "one")
		for _, s := range all[:3] {
			n.wants(s, key("", 1), "one")
		}
		n.put("s2", key("", 1), "two")
		for _, s := range all[:3] {
			n.wants(s, key("", 1), "two")
		}
		time.Sleep(time.Second)
		holders := 0
		for _, w := range all[3:] {
			if e, found, err := n.nodes[w].o.Journal.Get(key("", 1)); err == nil && found && string(e.Result) == "two" {
				holders++
			}
		}
		if holders != 2 {
			t.Fatalf("%d disks hold the entry", holders)
		}
	})
}

func TestAMissAtASettledOwnerAsksNobody(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.wants("s1", key("", 1), "")
		if c := n.called(pb.Method_METHOD_AC_GET); c != 0 {
			t.Fatalf("%d questions", c)
		}
		n.wants("w1", key("", 1), "") // owns nothing: asks one scheduler
		if c := n.called(pb.Method_METHOD_AC_GET); c != 1 {
			t.Fatalf("%d questions of a worker", c)
		}
	})
}

func TestInstancesAreTenants(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.put("w1", key("a", 1), "of a")
		n.wants("s1", key("a.b.c", 1), "of a")
		n.wants("s1", key("ab", 1), "")
		n.wants("s1", key("", 1), "")
		n.put("w1", key("a.b", 1), "of a.b")
		n.wants("s2", key("a.b.c", 1), "of a.b")
		n.wants("s2", key("a", 1), "of a")
	})
}

func TestASchedulerIsKilled(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.put("w1", key("", 1), "one")
		n.kill(false, "s2") // the others don't know yet
		start := time.Now()
		n.put("w1", key("", 2), "two")
		n.wants("w1", key("", 1), "one")
		n.wants("s3", key("", 2), "two")
		if d := time.Since(start); d > 50*time.Millisecond {
			t.Fatalf("it took %s", d)
		}
		n.start("s2")
		n.wants("s2", key("", 2), "two") // before it has settled: it asks
		time.Sleep(5 * time.Second)
		n.wantSettled("s2", true)
		n.reset()
		n.wants("s2", key("", 1), "one")
		if c := n.called(pb.Method_METHOD_AC_GET); c != 0 {
			t.Fatalf("%d questions by a settled owner", c)
		}
	})
}

func TestASchedulerThatHangsDelaysAPutBy200Milliseconds(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.mu.Lock()
		n.mute["s2"] = true
		n.mu.Unlock()
		start := time.Now()
		n.put("w1", key("", 1), "one")
		if d := time.Since(start); d < putWait || d > putWait+10*time.Millisecond {
			t.Fatalf("it took %s", d)
		}
		n.wants("s1", key("", 1), "one")
		n.wants("s3", key("", 1), "one")
		n.mu.Lock()
		delete(n.mute, "s2")
		n.mu.Unlock()
		time.Sleep(10 * time.Second)
		n.wants("s2", key("", 1), "one") // it got it late
	})
}

func TestAllAgreeAfterASplit(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.put("w1", key("", 0), "before")
		n.split(1, "s3", "w3")
		n.put("w1", key("", 1), "here")
		n.put("w3", key("", 2), "there")
		n.put("w3", key("", 0), "there first")
		time.Sleep(time.Second)
		n.put("s1", key("", 0), "here later")
		time.Sleep(10 * time.Second)
		n.wants("s1", key("", 2), "")
		n.wants("s3", key("", 1), "")
		n.wants("s3", key("", 0), "there first")

		n.split(0, "s3", "w3")
		n.wants("s1", key("", 2), "there") // it isn't sure any more, and asks
		time.Sleep(5 * time.Second)
		for _, s := range all[:3] {
			n.wantSettled(s, true)
			n.wants(s, key("", 0), "here later")
			n.wants(s, key("", 1), "here")
			n.wants(s, key("", 2), "there")
		}
	})
}

func TestWithoutASchedulerAPutFails(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.kill(true, "s1", "s2", "s3")
		if err := n.nodes["w1"].Put(t.Context(), key("", 1), []byte("x")); !errors.Is(err, ErrNoOwner) {
			t.Fatalf("put: %v", err)
		}
		n.wants("w1", key("", 1), "")
	})
}

func TestTheWholeClusterRestartsWarm(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		for i := range 100 {
			n.put(all[i%6], key("", i), fmt.Sprint("result ", i))
		}
		time.Sleep(time.Second)
		n.kill(true, all...)
		time.Sleep(time.Hour)

		n.start(all...)
		time.Sleep(100 * time.Millisecond)
		n.wantSettled("s1", false)
		for i := range 10 {
			n.wants("s1", key("", i), fmt.Sprint("result ", i)) // from the disks
		}
		time.Sleep(5 * time.Second)
		n.reset()
		for _, s := range all[:3] {
			n.wantSettled(s, true)
			for i := range 100 {
				n.wants(s, key("", i), fmt.Sprint("result ", i))
			}
			n.wants(s, key("", 1000), "")
		}
		if c := n.called(pb.Method_METHOD_AC_GET); c != 0 {
			t.Fatalf("%d questions by settled owners", c)
		}
	})
}

func TestARestartWithoutOneDiskFindsEverythingOnTheOthers(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		for i := range 50 {
			n.put("w1", key("", i), fmt.Sprint(i))
		}
		time.Sleep(time.Second)
		n.kill(true, all...)
		n.start("s1", "w1", "w3")
		time.Sleep(5 * time.Second)
		for i := range 50 {
			n.wants("s1", key("", i), fmt.Sprint(i))
		}
	})
}

func TestOwnershipMovesWithTheSchedulers(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.start("s4", "s5", "s6")
		time.Sleep(5 * time.Second)
		for i := range 60 {
			n.put("w1", key("", i), fmt.Sprint(i))
		}
		held := 0
		for _, s := range []string{"s1", "s2", "s3", "s4", "s5", "s6"} {
			held += n.nodes[s].o.Memory.Stats().Entries
			for i := range 60 {
				n.wants(s, key("", i), fmt.Sprint(i))
			}
		}
		if held != 60*Replicas {
			t.Fatalf("%d copies of 60 entries", held)
		}
		// The disks go too, so that only schedulers can tell.
		n.kill(true, "w1", "w2", "w3")
		for _, s := range []string{"s5", "s2", "s4"} {
			n.kill(true, s)
			time.Sleep(5 * time.Second)
		}
		n.reset()
		for _, s := range []string{"s1", "s3", "s6"} {
			for i := range 60 {
				n.wants(s, key("", i), fmt.Sprint(i))
			}
		}
		if c := n.called(pb.Method_METHOD_AC_GET); c != 0 {
			t.Fatalf("%d questions though everyone owns everything", c)
		}
	})
}

func TestAnEvictedEntryIsFoundOnTheDisks(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.put("w1", key("", 1), "old")
		time.Sleep(time.Second)
		for i := range 20 { // 8 MiB of memory
			n.put("w1", key("", 100+i), strings.Repeat("x", 500<<10))
			time.Sleep(100 * time.Millisecond)
		}
		s := n.nodes["s1"]
		if _, found, _ := s.o.Memory.Lookup(key("", 1)); found {
			t.Fatal("it was not evicted")
		}
		n.wantSettled("s1", true)
		n.wants("s1", key("", 1), "old")
	})
}

func TestADiskThatIsAwayGetsItsEntriesLater(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		n.kill(true, "w2")
		for i := range 30 {
			n.put("w1", key("", i), fmt.Sprint(i))
		}
		time.Sleep(5 * time.Second)
		n.start("w2")
		time.Sleep(10 * time.Second)
		table := n.placement.Table()
		for i := range 30 {
			for _, d := range table.Owners(key("", i).Action.Prefix()) {
				if _, found, err := n.nodes[d.Addr].o.Journal.Get(key("", i)); !found || err != nil {
					t.Fatalf("%s lacks entry %d: %v", d.Addr, i, err)
				}
			}
		}
		n.kill(true, "w2")
		for i := range 30 {
			n.put("w1", key("x", i), fmt.Sprint(i))
		}
		time.Sleep(2 * time.Minute) // it has lost its place
		for i := range 30 {
			for _, w := range []string{"w1", "w3"} {
				if _, found, err := n.nodes[w].o.Journal.Get(key("x", i)); !found || err != nil {
					t.Fatalf("%s lacks entry %d, which it got from w2: %v", w, i, err)
				}
			}
		}
	})
}

func TestAStampFarAheadIsRefused(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		e := Entry{Key: key("", 1), Stamp: time.Now().Add(2 * time.Minute).UnixNano(), Writer: "broken", Result: []byte("x")}
		good := Entry{Key: key("", 2), Stamp: time.Now().UnixNano(), Writer: "w", Result: []byte("y")}
		req := &pb.AcPutRequest{Entries: []*pb.AcEntry{toProto(&e), toProto(&good)}}
		if _, err := n.nodes["s1"].servePut(t.Context(), "", req); !errors.Is(err, ErrAhead) {
			t.Fatalf("put: %v", err)
		}
		n.wants("s1", key("", 1), "")
		n.wants("s1", key("", 2), "y")
	})
}

func TestBadInputIsRefused(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		x := n.nodes["s1"]
		if err := x.Put(t.Context(), Key{}, nil); !errors.Is(err, ErrMalformed) {
			t.Errorf("no key: %v", err)
		}
		if _, err := x.Get(t.Context(), key(strings.Repeat("i", 2000), 1)); !errors.Is(err, ErrMalformed) {
			t.Errorf("a long instance: %v", err)
		}
		if err := x.Put(t.Context(), key("", 1), make([]byte, MaxResult+1)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("a large result: %v", err)
		}
		if _, err := x.serveGet(t.Context(), "", &pb.AcGetRequest{Key: &pb.AcKey{Action: []byte{1, 2}}}); !errors.Is(err, ErrMalformed) {
			t.Errorf("a malformed digest: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := n.nodes["w1"].Get(ctx, key("", 1)); !errors.Is(err, context.Canceled) {
			t.Errorf("a caller that has gone: %v", err)
		}
	})
}

func TestJournalsAreFedInBatches(t *testing.T) {
	inCluster(t, func(t *testing.T, n *network) {
		var putting sync.WaitGroup
		for i := range 300 {
			putting.Go(func() { n.put("s1", key("", i), "x") })
		}
		putting.Wait()
		time.Sleep(time.Second)
		if c := n.called(pb.Method_METHOD_AC_APPEND); c > 30 {
			t.Fatalf("%d appends for 300 entries", c)
		}
		x := n.nodes["s1"]
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.queued != 0 || len(x.queues) != 0 {
			t.Fatalf("%d bytes in %d queues at the end", x.queued, len(x.queues))
		}
	})
}
