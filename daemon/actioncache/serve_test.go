package actioncache

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster/placement"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

// still is a membership that never changes.
type still struct{ view *cluster.View }

func (s still) View() *cluster.View      { return s.view }
func (s still) Changed() <-chan struct{} { return nil }

// fixed is a placement that never changes.
type fixed struct{ table *placement.Table }

func (f fixed) Table() *placement.Table  { return f.table }
func (f fixed) Changed() <-chan struct{} { return nil }

// TestOverTheWire runs a scheduler and a worker over real connections: what
// cluster_test.go fakes.
func TestOverTheWire(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	s := cluster.Member{ID: "s-1", Name: "s", Role: cluster.Scheduler, State: cluster.Ready}
	w := cluster.Member{ID: "w-1", Name: "w", Role: cluster.Worker, State: cluster.Ready, Disk: cluster.DiskID{1}, Weight: 1}
	listeners := make(map[string]net.Listener)
	for _, m := range []*cluster.Member{&s, &w} {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		m.Addr = l.Addr().String()
		listeners[m.ID] = l
	}
	table := placement.NewTable([]placement.Disk{{ID: w.Disk, Weight: 1, Node: w.ID, Addr: w.Addr}}, 2)
	journal := openJournal(t, t.TempDir())
	defer closeJournal(t, journal)

	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	start := func(self cluster.Member, m *Memory, j *Journal) *Client {
		peers := rpc.NewPeers(rpc.PeersOptions{Self: self.ID, Log: log})
		c := New(Options{
			Self: self, Members: still{&cluster.View{Members: []cluster.Member{s, w}}}, Placement: fixed{table},
			Peers: peers, Memory: m, Journal: j, Log: log,
		})
		mux := rpc.NewMux(log)
		c.Register(mux)
		server := grpc.NewServer(rpc.ClusterServerOptions()...)
		mux.Register(server)
		running.Go(func() { _ = server.Serve(listeners[self.ID]) })
		running.Go(func() {
			_ = c.Run(ctx)
			_ = peers.Close()
			mux.Close()
			server.Stop()
		})
		return c
	}
	scheduler := start(s, NewMemory(1<<20), nil)
	worker := start(w, nil, journal)

	if err := worker.Put(t.Context(), key("a", 1), []byte("result")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Client{worker, scheduler} {
		if got, err := c.Get(t.Context(), key("a.b", 1)); err != nil || string(got) != "result" {
			t.Fatalf("%s reads %q, %v", c.o.Self.ID, got, err)
		}
	}
	if err := scheduler.Put(t.Context(), key("", 2), []byte("another")); err != nil {
		t.Fatal(err)
	}
	wait, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	for {
		if _, found, err := journal.Get(key("", 2)); err != nil || found {
			break
		}
		select {
		case <-wait.Done():
			t.Fatal("the worker's journal never got the scheduler's entry")
		case <-time.After(time.Millisecond):
		}
	}
	es, err := scheduler.page(t.Context(), w.Addr, &pb.AcListRequest{})
	if err != nil || len(es.GetEntries()) != 2 {
		t.Fatalf("the journal lists %v, %v", es, err)
	}
}
