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
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

func (s byteStream) write(ss grpc.ServerStream) error {
	if err := s.bring(ss.Context()); err != nil {
		return err
	}
	defer s.places.Release(ss.Context(), 1)
	in := s.newIncoming(ss)
	defer in.close()
	err := in.recv()
	if errors.Is(err, io.EOF) {
		return invalid(fieldResource, "the stream ended before it named one")
	}
	if err != nil {
		return err
	}
	first := in.head
	res, err := parseWrite(first.ResourceName)
	if err != nil {
		return err
	}
	d := res.digest
	in.name, in.size, in.next = first.ResourceName, d.Size(), first.WriteOffset
	if in.next < 0 || in.next > in.size {
		return invalid("write_offset", "%d of a blob of %d bytes", in.next, in.size)
	}
	begin := in.next
	if err := in.check(); err != nil {
		return err
	}
	if begin > 0 {
		committed, complete, err := s.uploads.UploadOffset(ss.Context(), res.upload(), d)
		switch {
		case err != nil:
			return fmt.Errorf("resume upload of %s: %w", d, err)
		case complete:
			return ss.SendMsg(&bspb.WriteResponse{CommittedSize: d.Size()})
		case committed != begin:
			return wrongOffset(begin, committed)
		}
	}
	if d.Size() <= blob.SmallSize {
		err = s.writeSmall(ss.Context(), in, d)
	} else {
		err = s.writeStream(ss.Context(), in, res, begin)
	}
	if err != nil {
		return err
	}
	return ss.SendMsg(&bspb.WriteResponse{CommittedSize: d.Size()})
}

// writeSmall gathers a blob that fits into a batch. Partial uploads of such are
// not kept: the first message is at offset 0.
func (s byteStream) writeSmall(ctx context.Context, in *incoming, d digest.Digest) error {
	in.gathered = d.Size()
	in.held.set(in.gathered + int64(in.msg.Len()))
	data := make([]byte, 0, d.Size())
	for {
		for _, part := range in.msg.Data {
			data = append(data, part.ReadOnlyData()...)
		}
		if in.done {
			break
		}
		if err := in.following(); err != nil {
			return err
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

func (s byteStream) writeStream(ctx context.Context, in *incoming, res resource, begin int64) error {
	d := res.digest
	up, err := s.uploads.Upload(ctx, res.upload(), d, begin)
	if err != nil {
		return fmt.Errorf("upload %s: %w", d, err)
	}
	defer up.Close() // its errors are Finish's, or those of a stream that is given up
	if up.Complete() {
		return nil // whoever else uploaded it: the client need not go on
	}
	for {
		if err := s.append(up, in); err != nil {
			return fmt.Errorf("upload %s: %w", d, err)
		}
		if in.done {
			break
		}
		if err := in.following(); err != nil {
			return err
		}
	}
	if err := up.Finish(); err != nil {
		return fmt.Errorf("upload %s: %w", d, err)
	}
	return nil
}

func (s byteStream) append(up Upload, in *incoming) error {
	n := int64(in.msg.Len())
	if n == 0 {
		return nil
	}
	if err := up.Append(in.msg.Data); err != nil {
		return err
	}
	in.msg.Free()
	in.held.drop()
	s.metrics.bytesIn.Add(float64(n))
	return nil
}

// wrongOffset is ABORTED, upon which clients ask for the status of their upload
// and go on from there: a partial upload may be lost through no fault of theirs.
func wrongOffset(got, want int64) error {
	return status.Errorf(codes.Aborted, "write_offset is %d where %d bytes are committed", got, want)
}

// incoming receives the messages of one upload, and checks them against the
// protocol.
type incoming struct {
	ss   grpc.ServerStream
	head *bspb.WriteRequest // the message in hand, without its data
	msg  rpc.Bulk           // all of it
	held held               // for the message in hand, or the next
	room int64              // what the next message is expected to take
	// gathered is what those before it take, which is held until the end.
	gathered int64
	name     string // the resource's
	size     int64  // of the blob
	next     int64  // the offset that the next message must have
	done     bool   // no message is to follow
}

// firstRoom is what a message of an upload is expected to take: those of most
// clients are smaller. One that follows a larger is expected to be like that.
const firstRoom = 256 << 10

func (s byteStream) newIncoming(ss grpc.ServerStream) *incoming {
	in := &incoming{ss: ss, head: &bspb.WriteRequest{}, room: firstRoom}
	in.msg = rpc.Bulk{Head: in.head, Field: writeData}
	in.held = held{b: s.incoming, ctx: ss.Context()}
	return in
}

// recv takes the next message into hand, once there is room for it: until then
// it waits in the client's flow-control window.
func (in *incoming) recv() error {
	in.msg.Free()
	if in.held.n == 0 {
		if in.name != "" { // no message is larger than what is missing
			in.room = max(min(in.room, in.size-in.next), 1)
		}
		if err := in.held.take(in.room); err != nil {
			return err
		}
	}
	err := in.ss.RecvMsg(&in.msg) // which resets the head
	n := int64(in.msg.Len())
	in.room = max(n, firstRoom)
	in.held.set(in.gathered + n)
	return err
}

func (in *incoming) close() {
	in.msg.Free()
	in.held.drop()
}

// following receives and checks the message that follows another, or the
// stream's end in its place.
func (in *incoming) following() error {
	err := in.recv()
	if errors.Is(err, io.EOF) {
		// Some clients end the stream in place of finish_write.
		return in.finish("the stream ended after")
	}
	if err != nil {
		return err
	}
	return in.check()
}

// check accepts the message in hand as the next one.
func (in *incoming) check() error {
	m := in.head
	if m.ResourceName != "" && m.ResourceName != in.name {
		return invalid(fieldResource, "%s differs from the first message's", quote(m.ResourceName))
	}
	if m.WriteOffset != in.next {
		return invalid("write_offset", "%d where %d was to follow", m.WriteOffset, in.next)
	}
	if in.next += int64(in.msg.Len()); in.next > in.size {
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
