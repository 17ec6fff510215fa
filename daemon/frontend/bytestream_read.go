package frontend

import (
	"context"
	"errors"
	"io"

	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

// readChunk is how many bytes one message of a Read carries: large enough that
// messages cost little beside their bytes. readCost is what a Read that its
// client takes slowly keeps in memory, here and on the worker.
const (
	readChunk = 256 << 10
	readCost  = 1 << 20
)

// The fields of ReadResponse and WriteRequest that hold the data.
const (
	readData  = 10
	writeData = 10
)

func (s byteStream) read(req *bspb.ReadRequest, ss grpc.ServerStream) error {
	ctx := ss.Context()
	res, err := parseRead(req.ResourceName)
	if err != nil {
		return err
	}
	d := res.digest
	if req.ReadLimit < 0 {
		return invalid("read_limit", "%d is negative", req.ReadLimit)
	}
	if req.ReadOffset < 0 || req.ReadOffset > d.Size() {
		return status.Errorf(codes.OutOfRange, "read_offset %d of a blob of %d bytes", req.ReadOffset, d.Size())
	}
	n := d.Size() - req.ReadOffset
	if req.ReadLimit > 0 {
		n = min(n, req.ReadLimit)
	}
	if d.Size() <= blob.SmallSize {
		return s.readSmall(ctx, d, req.ReadOffset, n, ss)
	}
	return s.readStream(ctx, d, req.ReadOffset, n, ss)
}

func (s byteStream) readSmall(ctx context.Context, d digest.Digest, off, n int64, ss grpc.ServerStream) error {
	room := s.answer(ctx)
	if err := room.take(d.Size()); err != nil {
		return err
	}
	defer room.drop() // unless the answer has taken it along
	r := s.readRecent(ctx, []digest.Digest{d})[0]
	if r.Err != nil || n == 0 {
		return r.Err
	}
	s.metrics.bytesOut.Add(float64(n))
	return ss.SendMsg(room.around(&bspb.ReadResponse{Data: r.Data[off : off+n]}))
}

func (s byteStream) readStream(ctx context.Context, d digest.Digest, off, n int64, ss grpc.ServerStream) error {
	room := s.answer(ctx)
	if err := room.take(min(n, readCost)); err != nil {
		return err
	}
	defer room.drop()
	r, err := s.store.Get(ctx, d, off)
	if err != nil {
		return err
	}
	defer r.Close()
	msg := &rpc.Bulk{Field: readData}
	defer msg.Free()
	for n > 0 {
		k, err := msg.Fill(r, int(min(n, readChunk)))
		if err != nil {
			if errors.Is(err, io.EOF) {
				return status.Errorf(codes.Unavailable, "read %s: it ended %d bytes early", d, n)
			}
			return err
		}
		var m any = msg
		if n -= int64(k); n == 0 {
			m = room.around(msg) // what was sent before has left by then
		}
		if err := ss.SendMsg(m); err != nil {
			return err
		}
		s.metrics.bytesOut.Add(float64(k))
	}
	return nil
}
