package replica

import (
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

// Read streams a blob from this disk.
func (s *Server) Read(req *pb.ReadRequest, to grpc.ServerStreamingServer[pb.Chunk]) error {
	d, err := one(req.Digest)
	if err != nil {
		return err
	}
	ctx := to.Context()
	src, err := s.local.Get(ctx, d, req.Offset)
	if err != nil {
		return toStatus(err)
	}
	defer src.Close()
	read := &rpc.Bulk{Field: chunkData}
	defer read.Free()
	for left := d.Size() - req.Offset; ; {
		// What the disk has read is held until all of it is sent.
		if err := s.reads.Acquire(ctx, readAhead); err != nil {
			return toStatus(err)
		}
		n, err := read.Fill(src, int(max(min(left, readAhead), 1)))
		left -= int64(n)
		if err == nil {
			err = send(to, read)
		}
		s.reads.Release(ctx, readAhead)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return toStatus(err)
		}
	}
}

// readAhead is what a disk reads and checks at a time.
const readAhead = 1 << 20

// send sends what was read, in chunks.
func send(to grpc.ServerStream, read *rpc.Bulk) error {
	chunk := &rpc.Bulk{Field: chunkData}
	for read.Len() > 0 {
		chunk.Data = read.Cut(chunkSize)
		err := to.SendMsg(chunk)
		chunk.Free()
		if err != nil {
			return err
		}
	}
	return nil
}

// Write stores a blob on this disk.
func (s *Server) Write(from grpc.ClientStreamingServer[pb.WriteFrame, pb.WriteResponse]) error {
	first, err := from.Recv()
	if err != nil {
		return err
	}
	h := first.GetHeader()
	if h == nil || len(first.Data) > 0 {
		return invalid("write: the first frame is not a header")
	}
	d, err := one(h.Digest)
	if err != nil {
		return err
	}
	in, err := s.begin(from, h, d)
	if err != nil {
		return toStatus(err)
	}
	if in.up != nil {
		return in.serveUpload()
	}
	resp, err := in.receive()
	in.end()
	if err != nil {
		return toStatus(err)
	}
	return from.SendAndClose(resp)
}

// serveUpload receives beside itself, so that it can end while no frame comes:
// a newer stream of the same upload takes over from it.
func (in *incoming) serveUpload() error {
	type result struct {
		resp *pb.WriteResponse
		err  error
	}
	got := make(chan result, 1)
	in.s.receiving.Go(func() {
		resp, err := in.receive()
		in.end()
		got <- result{resp, err}
	})
	select {
	case r := <-got:
		if r.err != nil {
			return toStatus(r.err)
		}
		return in.stream.SendAndClose(r.resp)
	case <-in.up.taken:
		return status.Error(codes.Unavailable, "another stream goes on with this upload")
	}
}

// incoming is a blob that is being written to this disk.
type incoming struct {
	s      *Server
	stream grpc.ClientStreamingServer[pb.WriteFrame, pb.WriteResponse]
	h      *pb.WriteFrame_Header
	d      digest.Digest
	skips  skips
	kind   disk.Kind
	held   bool
	w      *disk.Writer
	skip   int64    // bytes that come again
	parts  [][]byte // of the frame in hand
	up     *parked  // of an upload that may be resumed
	done   bool
}

func (s *Server) begin(stream grpc.ClientStreamingServer[pb.WriteFrame, pb.WriteResponse], h *pb.WriteFrame_Header, d digest.Digest) (*incoming, error) {
	in := &incoming{s: s, stream: stream, h: h, d: d}
	if err := s.store.keeper.refusal(); err != nil {
		return nil, err
	}
	in.skips = skipsOf(h.Skipped, h.Refused)
	in.kind = s.store.kindOf(d, in.skips)
	in.held = s.store.vouches(d, in.skips)
	if h.Upload == nil {
		if h.Offset != 0 {
			return nil, invalid("write: an offset needs an upload")
		}
		var err error
		if in.w, err = s.local.Create(d, in.kind); errors.Is(err, blob.ErrFull) {
			s.store.keeper.refuse(d)
		}
		return in, err
	}
	key, named, err := uploadKey(h.Upload)
	if err != nil {
		return nil, err
	}
	if named != d {
		return nil, invalid("write: the upload is of another blob")
	}
	if in.held && h.Offset > 0 {
		// It was finished, and its end did not reach the client: what it
		// sends from here on is not needed.
		in.done = true
		return in, nil
	}
	in.up, err = s.uploads.attach(stream.Context(), key, in.kind, h.Offset)
	if err != nil {
		return nil, err
	}
	in.w, in.skip = in.up.w, in.up.w.Offset()-h.Offset
	return in, nil
}

// receive takes frames until the blob is whole.
func (in *incoming) receive() (*pb.WriteResponse, error) {
	if err := in.stream.SendHeader(accepted(in.held)); err != nil {
		return nil, err
	}
	head := &pb.WriteFrame{}
	frame := &rpc.Bulk{Head: head, Field: frameData}
	defer frame.Free()
	for {
		proto.Reset(head)
		if err := in.stream.RecvMsg(frame); err != nil {
			if errors.Is(err, io.EOF) {
				err = invalid("write: the stream ends before the blob")
			}
			return nil, err
		}
		if err := in.take(frame); err != nil {
			return nil, err
		}
		if head.Finish {
			return in.finish()
		}
	}
}

func (in *incoming) take(frame *rpc.Bulk) error {
	if in.done {
		return nil
	}
	size := int64(frame.Len())
	if err := in.s.writes.Acquire(in.stream.Context(), size); err != nil {
		return err
	}
	defer in.s.writes.Release(in.stream.Context(), size)
	defer clear(in.parts)
	in.parts = in.parts[:0]
	for _, buf := range frame.Data {
		p := buf.ReadOnlyData()
		n := min(in.skip, int64(len(p)))
		in.skip -= n
		size -= n
		in.parts = append(in.parts, p[n:])
	}
	if in.w.Offset()+size > in.d.Size() {
		in.spoil()
		return blob.ErrMismatch
	}
	if err := in.w.WriteAll(in.parts); err != nil {
		in.spoil()
		return err
	}
	return nil
}

// spoil has an upload begin anew: what has come is of no use.
func (in *incoming) spoil() {
	if in.up != nil {
		in.up.spoilt = true
	}
}

func (in *incoming) finish() (*pb.WriteResponse, error) {
	if !in.done {
		if err := in.w.Commit(); err != nil {
			in.spoil()
			return nil, err
		}
		in.done = true
	}
	return &pb.WriteResponse{Ack: in.s.store.ack(in.d, in.skips), Committed: in.d.Size(), View: in.s.viewID()}, nil
}

// end gives up the writer, or parks what an upload has brought so far.
func (in *incoming) end() {
	switch {
	case in.up != nil:
		in.s.uploads.detach(in.up, in.done)
	case in.w != nil:
		in.w.Close()
	}
}
