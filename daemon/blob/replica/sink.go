package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

// The numbers of the fields that travel apart (blob.proto).
const (
	frameData = 2
	chunkData = 1
)

// acceptHeader is how a disk says that it takes a blob on, before it has been
// sent a byte of it: a refusal must find the sender with all bytes in hand.
const (
	acceptHeader = "remex-accept"
	acceptHeld   = "held" // it holds the blob already, as an owner
	acceptSend   = "send"
)

type opened struct {
	sink sink
	held bool
	err  error
}

func (s *Store) openSink(ctx context.Context, v *view, on int32, b *placing, key *pb.UploadKey, off int64) opened {
	if on == v.self {
		return s.openLocalSink(b, off)
	}
	conn, err := s.peers.Conn(v.disks[on].Addr)
	if err != nil {
		return opened{err: unavailable(err)}
	}
	k := &remoteSink{s: s, ctx: ctx, upload: key != nil}
	if k.upload {
		// What was sent is to arrive even if the client goes.
		ctx = context.WithoutCancel(ctx)
	}
	ctx, k.cancel = context.WithCancel(ctx)
	defer k.withRequest()()
	k.watch = s.newWatch(v.disks[on].Addr, k.cancel)
	k.watch.begin(stall)
	held, err := k.open(ctx, conn, b, key, off)
	if err != nil {
		k.close()
		return opened{err: err}
	}
	return opened{sink: k, held: held}
}

// remoteSink is another node's disk.
type remoteSink struct {
	s      *Store
	ctx    context.Context // of the request
	upload bool            // the disk keeps what arrived if the stream breaks
	stream grpc.ClientStreamingClient[pb.WriteFrame, pb.WriteResponse]
	cancel context.CancelFunc
	watch  *watch
	frame  rpc.Bulk
	done   bool // nothing is left to be said
}

// withRequest has a step of an upload end with the request, which its stream
// outlives. The step calls what it returns.
func (k *remoteSink) withRequest() func() bool {
	if !k.upload {
		return func() bool { return true }
	}
	return context.AfterFunc(k.ctx, k.cancel)
}

func (k *remoteSink) open(ctx context.Context, conn *grpc.ClientConn, b *placing, key *pb.UploadKey, off int64) (bool, error) {
	var err error
	if k.stream, err = pb.NewBlobsClient(conn).Write(ctx); err != nil {
		return false, unreached(err)
	}
	h := &pb.WriteFrame_Header{Digest: b.d.Append(nil), Upload: key, Offset: off, Skipped: b.skipped, Refused: b.refused}
	if err := k.stream.Send(&pb.WriteFrame{Header: h}); err != nil {
		return false, k.failure(err)
	}
	md, err := k.stream.Header()
	k.watch.end()
	accept := md.Get(acceptHeader)
	if err != nil || len(accept) == 0 {
		return false, k.failure(io.EOF)
	}
	k.frame.Field = frameData
	return accept[0] == acceptHeld, nil
}

// failure is why the stream broke: gRPC tells the sender only that it did.
func (k *remoteSink) failure(err error) error {
	if errors.Is(err, io.EOF) {
		if err = k.stream.RecvMsg(new(pb.WriteResponse)); err == nil {
			return fmt.Errorf("%w: the disk answered too early", blob.ErrUnavailable)
		}
	}
	err = fromStatus(err)
	if errors.Is(err, blob.ErrFull) || errors.Is(err, blob.ErrMismatch) {
		return err
	}
	return unavailable(err)
}

func (k *remoteSink) write(data mem.BufferSlice) error {
	defer k.withRequest()()
	k.watch.begin(stall)
	defer k.watch.end()
	k.frame.Data = data
	err := k.stream.SendMsg(&k.frame)
	k.frame.Data = nil
	if err != nil {
		k.done = true
		return k.failure(err)
	}
	return nil
}

func (k *remoteSink) finish() outcome {
	defer k.withRequest()()
	defer k.close()
	k.done = true
	// Receiving may lag behind by what flow control lets lie in between.
	k.watch.begin(2 * stall)
	if err := k.stream.Send(&pb.WriteFrame{Finish: true}); err != nil {
		return outcome{err: k.failure(err)}
	}
	resp, err := k.stream.CloseAndRecv()
	if err != nil {
		return outcome{err: k.failure(err)}
	}
	return outcome{ack: resp.GetAck()}
}

// arrival is how long what was sent of an upload may take to arrive.
const arrival = 2 * time.Second

func (k *remoteSink) close() {
	if !k.upload || k.done || k.stream == nil || k.stream.CloseSend() != nil {
		k.watch.end()
		k.cancel()
		return
	}
	k.done = true
	k.watch.begin(arrival)
	k.s.spawn(func() {
		// The answer says that the end has arrived, and that no blob came of it.
		_ = k.stream.RecvMsg(new(pb.WriteResponse))
		k.watch.end()
		k.cancel()
	})
}

// localSink is this node's own disk.
type localSink struct {
	s *Store
	b *placing
	w *disk.Writer
}

func (s *Store) openLocalSink(b *placing, off int64) opened {
	if off > 0 {
		return opened{err: fmt.Errorf("%w: no upload to go on with here", blob.ErrUnavailable)}
	}
	if err := s.keeper.refusal(); err != nil {
		return opened{err: err}
	}
	sk := skipsOf(b.skipped, b.refused)
	kind := s.kindOf(b.d, sk)
	w, err := s.local.Create(b.d, kind)
	if err != nil {
		if errors.Is(err, blob.ErrFull) {
			s.keeper.refuse(b.d)
		}
		return opened{err: err}
	}
	return opened{sink: &localSink{s, b, w}, held: s.vouches(b.d, sk)}
}

func (k *localSink) write(data mem.BufferSlice) error {
	parts := make([][]byte, len(data))
	for i, buf := range data {
		parts[i] = buf.ReadOnlyData()
	}
	return k.w.WriteAll(parts)
}

func (k *localSink) finish() outcome {
	defer k.close()
	if err := k.w.Commit(); err != nil {
		return outcome{err: err}
	}
	return outcome{ack: k.s.ack(k.b.d, skipsOf(k.b.skipped, k.b.refused))}
}

func (k *localSink) close() { k.w.Close() }

// accepted is the header by which a disk takes a blob on.
func accepted(held bool) metadata.MD {
	if held {
		return metadata.Pairs(acceptHeader, acceptHeld)
	}
	return metadata.Pairs(acceptHeader, acceptSend)
}
