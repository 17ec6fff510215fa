package frontend

import (
	"bytes"
	"context"
	"fmt"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// maxFind is how many digests one FindMissingBlobs may ask about: as many as an
// answer of less than 4 MiB can name. Clients ask about 10,000 at most.
const maxFind = 50_000

// maxBlobs is how many blobs one batch may have, so that an answer that refuses
// every one of them fits into a message. Clients send 4,000 at most.
const maxBlobs = 10_000

type cas struct {
	repb.UnimplementedContentAddressableStorageServer
	*Frontend
}

func (s cas) FindMissingBlobs(ctx context.Context, req *repb.FindMissingBlobsRequest) (*repb.FindMissingBlobsResponse, error) {
	if err := checkInstance(req.InstanceName); err != nil {
		return nil, err
	}
	if len(req.BlobDigests) > maxFind {
		return nil, invalid("blob_digests", "%d digests, of which one request may have %d", len(req.BlobDigests), maxFind)
	}
	if n := proto.Size(req); n > smallAnswer { // which the answer is no larger than
		if err := s.held(ctx).take(int64(n)); err != nil {
			return nil, err
		}
	}
	dec, err := newDecoder(req.DigestFunction)
	if err != nil {
		return nil, err
	}
	ds, err := dec.digests(req.BlobDigests, "blob_digests")
	if err != nil {
		return nil, err
	}
	if len(ds) == 0 {
		return &repb.FindMissingBlobsResponse{}, nil
	}
	missing, err := s.store.Missing(ctx, unique(ds))
	if err != nil {
		return nil, fmt.Errorf("find missing blobs: %w", err)
	}
	resp := &repb.FindMissingBlobsResponse{MissingBlobDigests: make([]*repb.Digest, len(missing))}
	for i, d := range missing {
		resp.MissingBlobDigests[i] = digestProto(d)
	}
	return resp, nil
}

// casDesc is the service with room made for each batch before it is received.
func casDesc() *grpc.ServiceDesc {
	return withRoom(repb.ContentAddressableStorage_ServiceDesc, map[string]int64{"BatchUpdateBlobs": maxBatch})
}

func (s cas) BatchUpdateBlobs(ctx context.Context, req *repb.BatchUpdateBlobsRequest) (*repb.BatchUpdateBlobsResponse, error) {
	if err := checkInstance(req.InstanceName); err != nil {
		return nil, err
	}
	dec, err := newDecoder(req.DigestFunction)
	if err != nil {
		return nil, err
	}
	var total int64
	for _, r := range req.Requests {
		total += int64(len(r.GetData()))
	}
	if total > maxBatch || len(req.Requests) > maxBlobs {
		return nil, invalid("requests", "%d blobs of %d bytes, of which one batch may have %d of %d",
			len(req.Requests), total, maxBlobs, maxBatch)
	}
	resp := &repb.BatchUpdateBlobsResponse{Responses: make([]*repb.BatchUpdateBlobsResponse_Response, len(req.Requests))}
	stored := make([]blob.Blob, 0, len(req.Requests)) // what is well-formed, once each
	at := make(map[digest.Digest]int, len(req.Requests))
	from := make([]int, len(req.Requests)) // where in stored
	for i, r := range req.Requests {
		resp.Responses[i] = &repb.BatchUpdateBlobsResponse_Response{Digest: r.GetDigest()}
		d, err := updateDigest(dec, r, i)
		if err != nil {
			resp.Responses[i].Status, from[i] = toProto(err), -1
			continue
		}
		j, again := at[d]
		if !again {
			j = len(stored)
			at[d] = j
			stored = append(stored, blob.Blob{Digest: d, Data: r.Data})
		}
		from[i] = j
	}
	errs := s.writeAll(ctx, stored)
	for j, err := range errs {
		if err == nil {
			s.recent.add(stored[j])
		}
	}
	for i, j := range from {
		if j >= 0 {
			resp.Responses[i].Status = toProto(errs[j])
		}
	}
	s.metrics.bytesIn.Add(float64(total))
	s.held(ctx).drop()                        // the blobs are stored
	if proto.Size(resp) > maxMessage-margin { // thousands of refusals: the codes must do
		for _, r := range resp.Responses {
			r.Status.Message, r.Status.Details = "", nil
		}
	}
	return resp, nil
}

func updateDigest(dec *decoder, r *repb.BatchUpdateBlobsRequest_Request, i int) (digest.Digest, error) {
	if c := r.GetCompressor(); c != repb.Compressor_IDENTITY {
		return digest.Digest{}, invalid(fmt.Sprintf("requests[%d].compressor", i), "%s is not supported", c)
	}
	d, err := dec.digest(r.GetDigest(), fmt.Sprintf("requests[%d].digest", i))
	if err != nil {
		return digest.Digest{}, err
	}
	if int64(len(r.GetData())) != d.Size() {
		return digest.Digest{}, invalid(fmt.Sprintf("requests[%d].data", i), "%d bytes, where the digest says %d", len(r.GetData()), d.Size())
	}
	return d, nil
}

// writeAll stores blobs that are in memory, small ones in one batch. The
// answers stand in their order.
func (f *Frontend) writeAll(ctx context.Context, bs []blob.Blob) []error {
	errs := make([]error, len(bs))
	var small []blob.Blob
	var at []int
	var g errgroup.Group
	g.SetLimit(parallel)
	for i, b := range bs {
		if len(b.Data) <= blob.SmallSize {
			small, at = append(small, b), append(at, i)
			continue
		}
		g.Go(func() error {
			errs[i] = f.store.Put(ctx, b.Digest, bytes.NewReader(b.Data))
			return nil
		})
	}
	if len(small) > 0 {
		for j, err := range f.store.PutBatch(ctx, small) {
			errs[at[j]] = err
		}
	}
	_ = g.Wait() // each answer has its own error
	return errs
}

func (s cas) BatchReadBlobs(ctx context.Context, req *repb.BatchReadBlobsRequest) (*repb.BatchReadBlobsResponse, error) {
	if err := checkInstance(req.InstanceName); err != nil {
		return nil, err
	}
	dec, err := newDecoder(req.DigestFunction)
	if err != nil {
		return nil, err
	}
	ds, err := dec.digests(req.Digests, "digests")
	if err != nil {
		return nil, err
	}
	ds = unique(ds)
	var total int64
	for _, d := range ds {
		// Sizes are up to 2^63-1 each.
		if total += min(d.Size(), maxBatch+1); total > maxBatch || len(ds) > maxBlobs {
			return nil, invalid("digests", "%d blobs of %d bytes or more, of which one batch may have %d of %d",
				len(ds), total, maxBlobs, maxBatch)
		}
	}
	if err := s.held(ctx).take(total); err != nil {
		return nil, err
	}
	resp := &repb.BatchReadBlobsResponse{Responses: make([]*repb.BatchReadBlobsResponse_Response, len(ds))}
	size := 0
	for i, d := range ds {
		resp.Responses[i] = &repb.BatchReadBlobsResponse_Response{Digest: digestProto(d), Status: toProto(errFull)}
		size += entrySize(resp.Responses[i])
	}
	for i, r := range s.readRecent(ctx, ds) {
		full := resp.Responses[i]
		one := &repb.BatchReadBlobsResponse_Response{Digest: full.Digest, Data: r.Data, Status: toProto(r.Err)}
		if r.Err != nil {
			one.Data = nil
		}
		// Thousands of blobs bring digests that the announced maximum does
		// not count. What does not fit is to be asked for again.
		if n := size + entrySize(one) - entrySize(full); n <= maxMessage {
			resp.Responses[i], size = one, n
			s.metrics.bytesOut.Add(float64(len(one.Data)))
		}
	}
	return resp, nil
}

var errFull = status.Error(codes.ResourceExhausted, "answer full: ask again")

// entrySize is m's size as one element of a list.
func entrySize(m proto.Message) int { return proto.Size(m) + 8 }

func (cas) SplitBlob(context.Context, *repb.SplitBlobRequest) (*repb.SplitBlobResponse, error) {
	return nil, unimplemented("SplitBlob")
}

func (cas) SpliceBlob(context.Context, *repb.SpliceBlobRequest) (*repb.SpliceBlobResponse, error) {
	return nil, unimplemented("SpliceBlob")
}

func (cas) GetChunkMapping(*repb.GetChunkMappingRequest, grpc.ServerStreamingServer[repb.GetChunkMappingResponse]) error {
	return unimplemented("GetChunkMapping")
}

func (cas) RegisterChunkMapping(grpc.ClientStreamingServer[repb.RegisterChunkMappingRequest, repb.RegisterChunkMappingResponse]) error {
	return unimplemented("RegisterChunkMapping")
}
