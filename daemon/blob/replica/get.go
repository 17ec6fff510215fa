package replica

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// GetBatch implements blob.Getter. Blobs beyond blob.SmallSize are read too,
// one after another, as long as they would fit a message.
func (s *Store) GetBatch(ctx context.Context, ds []digest.Digest) []blob.Result {
	out := make([]blob.Result, len(ds))
	small := make([]digest.Digest, 0, len(ds))
	at := make([]int, 0, len(ds))
	for i, d := range ds {
		switch {
		case d.IsEmpty():
			out[i].Data = []byte{}
			continue
		case d.Size() > blob.SmallSize:
			out[i] = s.getWhole(ctx, d)
			continue
		}
		small, at = append(small, d), append(at, i)
	}
	g := getting{s: s, ds: small, here: true, sink: func(of []int32, rs []blob.Result) {
		for j, i := range of {
			out[at[i]] = rs[j]
		}
	}}
	g.run(ctx)
	return out
}

func (s *Store) getWhole(ctx context.Context, d digest.Digest) blob.Result {
	if d.Size() > maxBatch+1<<20 {
		return blob.Result{Err: fmt.Errorf("%s is too large for a batch: %w", d, blob.ErrOutOfRange)}
	}
	r, err := s.Get(ctx, d, 0)
	if err != nil {
		return blob.Result{Err: err}
	}
	defer r.Close()
	data := make([]byte, d.Size())
	if _, err := io.ReadFull(r, data); err != nil {
		return blob.Result{Err: err}
	}
	return blob.Result{Data: data}
}

func (s *Store) getSmall1(ctx context.Context, d digest.Digest, here bool) blob.Result {
	var out blob.Result
	g := getting{s: s, ds: []digest.Digest{d}, here: here, sink: func(_ []int32, rs []blob.Result) { out = rs[0] }}
	g.run(ctx)
	return out
}

// errHere is the answer for a blob that was to be read from others, and is on
// this node's disk.
var errHere = errors.New("already here")

const getOverhead = 32

func batchCost(ds []digest.Digest) (n int64) {
	for _, d := range ds {
		n += d.Size() + getOverhead
	}
	return n
}

// getFrom reads small blobs from one node.
func (s *Store) getFrom(ctx context.Context, addr string, ds []digest.Digest) ([]blob.Result, error) {
	var resp pb.GetResponse
	err := s.call(ctx, getTimeout, addr, pb.Method_METHOD_BLOB_GET, &pb.GetRequest{Digests: digest.Pack(ds)}, &resp)
	if err != nil {
		return nil, unreached(err)
	}
	if len(resp.Blobs) != len(ds) {
		return nil, fmt.Errorf("%w: %d answers to %d digests", blob.ErrUnavailable, len(resp.Blobs), len(ds))
	}
	rs := make([]blob.Result, len(ds))
	for i, b := range resp.Blobs {
		if b.GetStatus().GetCode() != uint32(codes.OK) {
			rs[i].Err = fromBlobStatus(b.Status)
			continue
		}
		if int64(len(b.Data)) != ds[i].Size() {
			rs[i].Err = fmt.Errorf("%w: %d bytes instead of %d", blob.ErrUnavailable, len(b.Data), ds[i].Size())
			continue
		}
		rs[i].Data = b.Data
	}
	return rs, nil
}
