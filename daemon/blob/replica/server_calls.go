package replica

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

func (s *Server) viewID() uint64 { return s.store.placement.Table().ID() }

func (s *Server) exists(_ context.Context, _ string, req *pb.ExistsRequest) (*pb.ExistsResponse, error) {
	ds, err := digest.Unpack(req.Digests)
	if err != nil {
		return nil, invalid("exists: %v", err)
	}
	return &pb.ExistsResponse{
		Presence: packPresence(s.store.keeper.presence(ds, req.Touch, req.Held)), View: s.viewID(),
	}, nil
}

func (s *Server) get(ctx context.Context, _ string, req *pb.GetRequest) (*pb.GetResponse, error) {
	ds, err := digest.Unpack(req.Digests)
	if err != nil {
		return nil, invalid("get: %v", err)
	}
	for _, d := range ds {
		if d.Size() > blob.SmallSize {
			return nil, invalid("get: %s is not small", d)
		}
	}
	cost := batchCost(ds)
	if cost > maxBatch+blob.SmallSize {
		return nil, invalid("get: %d bytes do not fit a message", cost)
	}
	if err := s.reads.Acquire(ctx, cost); err != nil {
		return nil, err
	}
	defer s.reads.Release(ctx, cost)
	resp := &pb.GetResponse{Blobs: make([]*pb.GetResponse_Blob, len(ds)), View: s.viewID()}
	for i, r := range s.local.GetBatch(ctx, ds) {
		resp.Blobs[i] = &pb.GetResponse_Blob{Data: r.Data, Status: toBlobStatus(r.Err)}
	}
	return resp, nil
}

func (s *Server) put(ctx context.Context, _ string, req *pb.PutRequest) (*pb.PutResponse, error) {
	resp := &pb.PutResponse{Blobs: make([]*pb.PutResponse_Blob, len(req.Blobs)), View: s.viewID()}
	bs := make([]*placing, len(req.Blobs))
	for i, b := range req.Blobs {
		d, err := one(b.Digest)
		if err != nil {
			return nil, err
		}
		if d.Size() > blob.SmallSize {
			return nil, invalid("put: %s is not small", d)
		}
		bs[i] = &placing{d: d, data: b.Data, skipped: req.Skipped, refused: req.Refused}
	}
	out := make([]outcome, len(bs))
	s.store.putHere(ctx, bs, out)
	for i, o := range out {
		resp.Blobs[i] = o.wire()
	}
	return resp, nil
}

func (o outcome) wire() *pb.PutResponse_Blob {
	if o.err != nil {
		return &pb.PutResponse_Blob{Status: toBlobStatus(o.err)}
	}
	return &pb.PutResponse_Blob{Ack: o.ack}
}

// pullsAtOnce bounds what one pull brings at a time.
const pullsAtOnce = 4

func (s *Server) pull(ctx context.Context, _ string, req *pb.PullRequest) (*pb.PullResponse, error) {
	ds, err := digest.Unpack(req.Digests)
	if err != nil {
		return nil, invalid("pull: %v", err)
	}
	if len(ds) > maxDigests {
		return nil, invalid("pull: %d digests are too many", len(ds))
	}
	resp := &pb.PullResponse{Blobs: make([]*pb.PutResponse_Blob, len(ds)), View: s.viewID()}
	var wg sync.WaitGroup
	limit := make(chan struct{}, pullsAtOnce)
	for i, d := range ds {
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			resp.Blobs[i] = s.pullOne(ctx, d, req).wire()
		})
	}
	wg.Wait()
	return resp, nil
}

func (s *Server) pullOne(ctx context.Context, d digest.Digest, req *pb.PullRequest) outcome {
	if err := s.pulls.Acquire(ctx, streamCost); err != nil {
		return outcome{err: err}
	}
	defer s.pulls.Release(ctx, streamCost)
	return s.store.pullHere(ctx, d, req.From, skipsOf(req.Skipped, req.Refused))
}

func (s *Server) upload(ctx context.Context, _ string, req *pb.UploadRequest) (*pb.UploadResponse, error) {
	key, d, err := uploadKey(req.Key)
	if err != nil {
		return nil, err
	}
	if s.local.Presence([]digest.Digest{d}, true)[0] == disk.Present {
		return &pb.UploadResponse{Committed: d.Size(), Complete: true}, nil
	}
	return &pb.UploadResponse{Committed: s.uploads.offset(ctx, key)}, nil
}

func (s *Server) status(context.Context, string, *pb.DiskStatusRequest) (*pb.DiskStatusResponse, error) {
	st, id := s.local.Stats(), s.local.ID()
	return &pb.DiskStatusResponse{
		Disk: id[:], Capacity: st.Capacity, Used: st.Used,
		OwnedBlobs: st.OwnedBlobs, OwnedBytes: st.OwnedBytes,
		CachedBlobs: st.CachedBlobs, CachedBytes: st.CachedBytes,
		Loading: st.Loading, Corrupt: st.Corrupt, Free: st.Free, Full: st.Full,
	}, nil
}

func one(packed []byte) (digest.Digest, error) {
	d, rest, err := digest.Next(packed)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%d bytes behind the digest", len(rest))
	}
	if err != nil {
		return digest.Digest{}, invalid("%v", err)
	}
	return d, nil
}
