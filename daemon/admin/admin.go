// Package admin answers operators' questions about the whole cluster: it asks
// every node that is in view for its own state and puts the answers together.
//
// The picture is that of the answering scheduler at that moment. A node that
// does not answer within Timeout is listed as unreachable, with the reason, and
// is never a reason not to answer. It changes nothing in the cluster.
package admin

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// Timeout bounds how long the nodes have for their answers.
const Timeout = 2 * time.Second

// fanOut is how many nodes are asked at a time.
const fanOut = 128

// Members tells who is in the cluster.
type Members interface {
	View() *cluster.View
}

// Caller sends one small request to another node's cluster port.
type Caller interface {
	Call(ctx context.Context, addr string, m pb.Method, req, resp proto.Message) error
}

// Options are what a Server needs; none may be left out.
type Options struct {
	Self     string // this node's Member.ID
	Version  string
	Replicas int
	Members  Members
	Peers    Caller
	Local    *Node // this node's own state
	Log      *slog.Logger
}

// Server implements proto.Admin.
type Server struct {
	pb.UnimplementedAdminServer
	o      Options
	flight singleflight.Group // one survey at a time, however many ask
}

// New makes a Server.
func New(o Options) *Server {
	o.Log = o.Log.With("part", "admin")
	return &Server{o: o}
}

// Register offers the service on s.
func (s *Server) Register(r grpc.ServiceRegistrar) { pb.RegisterAdminServer(r, s) }

// Status describes the cluster. Callers that come while a survey is under way
// share its answer.
func (s *Server) Status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	answer := s.flight.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Timeout)
		defer cancel()
		return s.survey(ctx), nil
	})
	select {
	case r := <-answer:
		return r.Val.(*pb.StatusResponse), nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// survey asks all nodes and sums up.
func (s *Server) survey(ctx context.Context) *pb.StatusResponse {
	members := s.o.Members.View().Members
	nodes := make([]*pb.NodeStatus, len(members))
	var g errgroup.Group
	g.SetLimit(fanOut)
	for i, m := range members {
		g.Go(func() error {
			nodes[i] = s.ask(ctx, m)
			return nil
		})
	}
	_ = g.Wait()
	slices.SortFunc(nodes, func(a, b *pb.NodeStatus) int {
		return cmp.Or(cmp.Compare(a.Role, b.Role), cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Id, b.Id))
	})
	resp := &pb.StatusResponse{AnsweredBy: s.o.Self, Version: s.o.Version, Nodes: nodes}
	sum(resp, s.o.Replicas)
	return resp
}

// ask returns what one node says of itself, or that it does not.
func (s *Server) ask(ctx context.Context, m cluster.Member) *pb.NodeStatus {
	if m.ID == s.o.Self {
		return s.o.Local.status()
	}
	known := Describe(m)
	var resp pb.NodeStatusResponse
	err := s.o.Peers.Call(ctx, m.Addr, pb.Method_METHOD_NODE_STATUS, &pb.NodeStatusRequest{}, &resp)
	if err == nil && resp.Node.GetId() != m.ID {
		// The address is another's by now, or the node has started anew.
		err = fmt.Errorf("%s answers there as %q", m.Addr, resp.Node.GetId())
	}
	if err != nil {
		s.o.Log.Debug("node does not tell its status", "peer", m.ID, "err", err)
		known.Problem = err.Error()
		return known
	}
	resp.Node.Reachable = true
	return resp.Node
}

// sum fills what is the cluster's as a whole.
func sum(r *pb.StatusResponse, replicas int) {
	r.Queue = &pb.QueueStatus{}
	r.Storage = &pb.StorageStatus{Replicas: uint32(replicas)}
	pools := map[string]*pb.PoolStatus{}
	for _, n := range r.Nodes {
		if n.Role == cluster.Scheduler.String() {
			r.Queue.Queued += n.Queued
			r.Queue.Executing += n.Executing
			r.Queue.OldestQueuedMs = max(r.Queue.OldestQueuedMs, n.OldestQueuedMs)
			continue
		}
		p := pools[n.Pool]
		if p == nil {
			p = &pb.PoolStatus{Name: n.Pool}
			pools[n.Pool] = p
			r.Pools = append(r.Pools, p)
		}
		p.Workers++
		p.Executors += n.Executors
		p.Running += n.Running
		if n.Reachable {
			r.Storage.Disks++
		}
		r.Storage.Capacity += n.DiskCapacity
		r.Storage.Used += n.DiskUsed
		r.Storage.Blobs += n.Blobs
		r.Storage.RepairBlobs += n.RepairBlobs
		r.Storage.RepairBytes += n.RepairBytes
		r.Storage.RepairLagMs = max(r.Storage.RepairLagMs, n.RepairLagMs)
		r.Storage.ForeignBlobs += n.ForeignBlobs
		if n.Unsettled > 0 {
			r.Storage.UnsettledDisks++
		}
	}
}

// Node answers for one node, whatever its role.
type Node struct {
	// Self is the node as it announces itself now.
	Self func() cluster.Member
	// Version is of the binary.
	Version string
	// Fill adds what only the node's parts know: the fields of its role.
	// Nil adds nothing.
	Fill func(*pb.NodeStatus)
}

func (n *Node) status() *pb.NodeStatus {
	st := Describe(n.Self())
	st.Version = n.Version
	st.Reachable = true
	if n.Fill != nil {
		n.Fill(st)
	}
	return st
}

// Answer is the handler of METHOD_NODE_STATUS.
func (n *Node) Answer(context.Context, string, *pb.NodeStatusRequest) (*pb.NodeStatusResponse, error) {
	return &pb.NodeStatusResponse{Node: n.status()}, nil
}

// Describe tells of a node what its membership tells.
func Describe(m cluster.Member) *pb.NodeStatus {
	return &pb.NodeStatus{
		Id: m.ID, Name: m.Name, Role: m.Role.String(), Pool: m.Pool, Zone: m.Zone, State: m.State.String(),
		Address: m.Addr, OpsAddress: m.Ops, StartedUnixMs: time.Unix(0, m.Boot).UnixMilli(),
	}
}
