package frontend

import (
	"context"
	"errors"
	"fmt"
	"io"

	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/replica"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

func (s byteStream) write(ss grpc.ServerStream) error {
	in := &incoming{ss: ss}
	first, err := in.recv()
	if errors.Is(err, io.EOF) {
		return invalid(fieldResource, "the stream ended before it named one")
	}
	if err != nil {
		return err
	}
	res, err := parseWrite(first.ResourceName)
	if err != nil {
		return err
	}
	d := res.digest
	in.name, in.size, in.next = first.ResourceName, d.Size(), first.WriteOffset
	if in.next < 0 || in.next > in.size {
		return invalid("write_offset", "%d of a blob of %d bytes", in.next, in.size)
	}
	if err := in.check(first); err != nil {
		return err
	}
	if first.WriteOffset > 0 {
		committed, complete, err := s.uploads.UploadOffset(ss.Context(), res.upload(), d)
		switch {
		case err != nil:
			return fmt.Errorf("resume upload of %s: %w", d, err)
		case complete:
			return ss.SendMsg(&bspb.WriteResponse{CommittedSize: d.Size()})
		case committed != first.WriteOffset:
			return wrongOffset(first.WriteOffset, committed)
		}
	}
	if d.Size() <= blob.SmallSize {
		err = s.writeSmall(ss.Context(), in, d, first)
	} else {
		err = s.writeStream(ss.Context(), in, res, first)
	}
	if err != nil {
		return err
	}
	return ss.SendMsg(&bspb.WriteResponse{CommittedSize: d.Size()})
}

// writeSmall gathers a blob that fits into a batch. Partial uploads of such are
// not kept: first is at offset 0.
func (s byteStream) writeSmall(ctx context.Context, in *incoming, d digest.Digest, first *bspb.WriteRequest) error {
	release, err := s.hold(ctx, d.Size())
	if err != nil {
		return err
	}
	defer release()
	data := first.Data
	for !in.done {
		m, err := in.recv()
		if err == nil {
			err = in.check(m)
		}
		if err = in.ended(err); err != nil {
			return err
		}
		if m != nil {
			data = append(data, m.Data...)
		}
	}
	s.metrics.bytesIn.Add(float64(len(data)))
	b := blob.Blob{Digest: d, Data: data}
	if err := s.store.PutBatch(ctx, []blob.Blob{b})[0]; err != nil {
		return fmt.Errorf("write %s: %w", d, err)
	}
	s.recent.add(b)
	return nil
}

func (s byteStream) writeStream(ctx context.Context, in *incoming, res resource, first *bspb.WriteRequest) error {
	d := res.digest
	up, err := s.uploads.Upload(ctx, res.upload(), d, first.WriteOffset)
	if err != nil {
		return fmt.Errorf("upload %s: %w", d, err)
	}
	defer up.Close() // its errors are Finish's, or those of a stream that is given up
	if up.Complete() {
		return nil // whoever else uploaded it: the client need not go on
	}
	for m := first; ; {
		if err := s.append(ctx, up, m.GetData()); err != nil {
			return fmt.Errorf("upload %s: %w", d, err)
		}
		if in.done {
			break
		}
		if m, err = in.recv(); err == nil {
			err = in.check(m)
		}
		if err = in.ended(err); err != nil {
			return err
		}
	}
	if err := up.Finish(); err != nil {
		return fmt.Errorf("upload %s: %w", d, err)
	}
	return nil
}

// append waits for room in the budget while it holds one message: what the
// client has sent beyond it waits in its own flow-control window.
func (s byteStream) append(ctx context.Context, up Upload, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	release, err := s.hold(ctx, int64(len(p)))
	if err != nil {
		return err
	}
	defer release()
	if err := up.Write(p); err != nil {
		return err
	}
	s.metrics.bytesIn.Add(float64(len(p)))
	return nil
}

// wrongOffset is ABORTED, upon which clients ask for the status of their upload
// and go on from there: a partial upload may be lost through no fault of theirs.
func wrongOffset(got, want int64) error {
	return status.Errorf(codes.Aborted, "write_offset is %d where %d bytes are committed", got, want)
}

// incoming checks the messages of one upload against the protocol.
type incoming struct {
	ss   grpc.ServerStream
	name string // the resource's
	size int64  // of the blob
	next int64  // the offset that the next message must have
	done bool   // no message is to follow
}

func (in *incoming) recv() (*bspb.WriteRequest, error) {
	m := &bspb.WriteRequest{}
	if err := in.ss.RecvMsg(m); err != nil {
		return nil, err
	}
	return m, nil
}

// check accepts m as the next message.
func (in *incoming) check(m *bspb.WriteRequest) error {
	if m.ResourceName != "" && m.ResourceName != in.name {
		return invalid(fieldResource, "%s differs from the first message's", quote(m.ResourceName))
	}
	if m.WriteOffset != in.next {
		return invalid("write_offset", "%d where %d was to follow", m.WriteOffset, in.next)
	}
	if in.next += int64(len(m.Data)); in.next > in.size {
		return invalid("data", "%d bytes or more, where the digest says %d", in.next, in.size)
	}
	if m.FinishWrite {
		return in.finish("finish_write after")
	}
	return nil
}

func (in *incoming) finish(what string) error {
	if in.next < in.size {
		return invalid("finish_write", "%s %d bytes, where the digest says %d", what, in.next, in.size)
	}
	in.done = true
	return nil
}

// ended takes the stream's end for finish_write if all bytes are there, as
// some clients do.
func (in *incoming) ended(err error) error {
	if errors.Is(err, io.EOF) {
		return in.finish("the stream ended after")
	}
	return err
}

// queryWriteStatus answers offset 0 for what is unknown: NOT_FOUND would make
// clients give up, where all they need is to begin again.
func (s byteStream) queryWriteStatus(ctx context.Context, req *bspb.QueryWriteStatusRequest) (*bspb.QueryWriteStatusResponse, error) {
	res, err := parseWrite(req.ResourceName)
	if err != nil {
		return nil, err
	}
	committed, complete, err := s.uploads.UploadOffset(ctx, res.upload(), res.digest)
	if err != nil {
		return nil, fmt.Errorf("status of the upload of %s: %w", res.digest, err)
	}
	return &bspb.QueryWriteStatusResponse{CommittedSize: committed, Complete: complete}, nil
}

// upload names the upload to the store.
func (r resource) upload() replica.UploadKey {
	return replica.UploadKey{Instance: r.instance, UUID: r.uuid}
}
