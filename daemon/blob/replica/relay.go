package replica

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

// helpers is how many other nodes are asked to pass a call on.
const helpers = 2

// reach calls a disk, through another node if this one cannot reach it.
func (s *Store) reach(ctx context.Context, v *view, on int32, m pb.Method, req, resp proto.Message) error {
	return s.relayed(ctx, v, on, m, req, resp, s.peers.Call(ctx, v.disks[on].Addr, m, req, resp))
}

// callVia is call, through another node if need be.
func (s *Store) callVia(ctx context.Context, limit time.Duration, v *view, on int32, m pb.Method, req, resp proto.Message) error {
	return s.relayed(ctx, v, on, m, req, resp, s.call(ctx, limit, v.disks[on].Addr, m, req, resp))
}

// relayed asks others to pass on what could not be called.
func (s *Store) relayed(ctx context.Context, v *view, on int32, m pb.Method, req, resp proto.Message, err error) error {
	if err == nil || ctx.Err() != nil || refused(err) {
		return err
	}
	switch rpc.CodeOf(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled: // as it did not answer
	default:
		return err
	}
	body, merr := proto.Marshal(req)
	if merr != nil {
		return err
	}
	asked := 0
	for _, i := range rand.Perm(len(v.disks)) {
		h := int32(i)
		if h == on || h == v.self || !s.peers.Reachable(v.disks[h].Addr) {
			continue
		}
		if asked++; asked > helpers {
			break
		}
		var got pb.RelayResponse
		if s.peers.Call(ctx, v.disks[h].Addr, pb.Method_METHOD_RELAY, &pb.RelayRequest{To: v.disks[on].Addr, Method: uint32(m), Body: body}, &got) == nil {
			s.metrics.relayed.Inc()
			return proto.Unmarshal(got.Body, resp)
		}
	}
	return err
}

// relay calls another disk for a node that cannot.
func (s *Server) relay(ctx context.Context, _ string, req *pb.RelayRequest) (*pb.RelayResponse, error) {
	var in, out proto.Message
	switch m := pb.Method(req.Method); m {
	case pb.Method_METHOD_BLOB_EXISTS:
		in, out = new(pb.ExistsRequest), new(pb.ExistsResponse)
	case pb.Method_METHOD_BLOB_GET:
		in, out = new(pb.GetRequest), new(pb.GetResponse)
	case pb.Method_METHOD_BLOB_PULL:
		in, out = new(pb.PullRequest), new(pb.PullResponse)
	default:
		return nil, invalid("relay: %s is not passed on", m)
	}
	known := false
	for _, d := range s.store.view().disks {
		known = known || d.Addr == req.To
	}
	if !known {
		return nil, invalid("relay: %q is no disk of this cluster", req.To)
	}
	if err := proto.Unmarshal(req.Body, in); err != nil {
		return nil, invalid("relay: %v", err)
	}
	if !s.store.peers.Reachable(req.To) {
		return nil, status.Errorf(codes.Unavailable, "relay: %s is not reached from here either", req.To)
	}
	if err := s.store.peers.Call(ctx, req.To, pb.Method(req.Method), in, out); err != nil {
		return nil, err
	}
	body, err := proto.Marshal(out)
	if err != nil {
		return nil, err
	}
	return &pb.RelayResponse{Body: body}, nil
}
