package admin

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fleet is a cluster without a network.
type fleet struct {
	view  cluster.View
	nodes map[string]*Node // by address; absent: silent
}

func (f *fleet) View() *cluster.View { return &f.view }

func (f *fleet) Call(ctx context.Context, addr string, _ pb.Method, _, resp proto.Message) error {
	if addr == "refused" {
		return errors.New("connection refused")
	}
	n := f.nodes[addr]
	if n == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	r, err := n.Answer(ctx, "test", nil)
	proto.Merge(resp, r)
	return err
}

func (f *fleet) add(m cluster.Member, fill func(*pb.NodeStatus)) *Node {
	m.Addr, m.State = m.ID, cluster.Ready
	n := &Node{Self: func() cluster.Member { return m }, Version: "test", Fill: fill}
	f.view.Members = append(f.view.Members, m)
	f.nodes[m.Addr] = n
	return n
}

func (f *fleet) server(self *Node) *Server {
	return New(Options{
		Self: self.Self().ID, Version: "test", Replicas: 2, Members: f, Peers: f, Local: self,
		Log: slog.New(slog.DiscardHandler),
	})
}

func newFleet() (*fleet, *Node) {
	f := &fleet{nodes: map[string]*Node{}}
	self := f.add(cluster.Member{ID: "s1@1", Name: "s1", Role: cluster.Scheduler}, func(n *pb.NodeStatus) {
		n.Queued, n.Executing, n.OldestQueuedMs = 3, 1, 20
	})
	f.add(cluster.Member{ID: "s2@1", Name: "s2", Role: cluster.Scheduler}, func(n *pb.NodeStatus) {
		n.Queued, n.Executing, n.OldestQueuedMs = 1, 2, 50
	})
	worker := func(n *pb.NodeStatus) {
		n.Executors, n.Running, n.DiskCapacity, n.DiskUsed, n.Blobs = 4, 1, 1000, 10, 5
	}
	f.add(cluster.Member{ID: "w2@1", Name: "w2", Role: cluster.Worker, Pool: "b"}, worker)
	f.add(cluster.Member{ID: "w1@1", Name: "w1", Role: cluster.Worker, Pool: "b"}, worker)
	f.add(cluster.Member{ID: "w3@1", Name: "w3", Role: cluster.Worker, Pool: "a"}, worker)
	return f, self
}

func TestStatusSumsWhatNodesTell(t *testing.T) {
	f, self := newFleet()
	got, err := f.server(self).Status(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range got.Nodes {
		names = append(names, n.Name)
		if !n.Reachable || n.Version != "test" || n.State != "ready" {
			t.Errorf("%s: %v", n.Name, n)
		}
	}
	if diff := cmp.Diff([]string{"s1", "s2", "w3", "w1", "w2"}, names); diff != "" {
		t.Error(diff)
	}
	got.Nodes = nil
	want := &pb.StatusResponse{
		AnsweredBy: "s1@1", Version: "test",
		Pools: []*pb.PoolStatus{
			{Name: "a", Workers: 1, Executors: 4, Running: 1},
			{Name: "b", Workers: 2, Executors: 8, Running: 2},
		},
		Queue:   &pb.QueueStatus{Queued: 4, Executing: 3, OldestQueuedMs: 50},
		Storage: &pb.StorageStatus{Capacity: 3000, Used: 30, Blobs: 15, Replicas: 2, Disks: 3},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestSilentNodeIsListedAsUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, self := newFleet()
		delete(f.nodes, "w1@1")
		f.view.Members[3].Addr = "refused"
		f.nodes["w2@1"].Self = func() cluster.Member { return cluster.Member{ID: "w2@2"} }
		delete(f.nodes, "w3@1")
		began := time.Now()
		got, err := f.server(self).Status(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d != Timeout {
			t.Errorf("took %s", d)
		}
		problems := map[string]string{}
		for _, n := range got.Nodes {
			if !n.Reachable {
				problems[n.Name] = n.Problem
			}
		}
		for name, want := range map[string]string{"w1": "refused", "w2": "w2@2", "w3": "deadline"} {
			if !strings.Contains(problems[name], want) {
				t.Errorf("%s: problem is %q", name, problems[name])
			}
		}
		if got.Storage.Disks != 0 || got.Storage.Capacity != 0 {
			t.Errorf("storage counts disks that did not answer: %v", got.Storage)
		}
	})
}

func TestCallerThatLeavesIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, self := newFleet()
		delete(f.nodes, "w1@1")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := f.server(self).Status(ctx, nil); err == nil {
			t.Error("no error")
		}
		time.Sleep(Timeout) // the survey ends by itself
	})
}
