package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

// Get implements blob.Getter.
func (s *Store) Get(ctx context.Context, d digest.Digest, off int64) (io.ReadCloser, error) {
	return s.get(ctx, d, off, true)
}

// get is Get; with here unset it leaves this node's own disk alone.
func (s *Store) get(ctx context.Context, d digest.Digest, off int64, here bool) (io.ReadCloser, error) {
	switch {
	case off < 0 || off > d.Size():
		return nil, fmt.Errorf("read %s from %d: %w", d, off, blob.ErrOutOfRange)
	case d.IsEmpty():
		return io.NopCloser(bytes.NewReader(nil)), nil
	case d.Size() <= blob.SmallSize:
		r := s.getSmall1(ctx, d, here)
		if r.Err != nil {
			return nil, r.Err
		}
		return io.NopCloser(bytes.NewReader(r.Data[off:])), nil
	}
	if err := s.budget.Acquire(ctx, streamCost); err != nil {
		return nil, err
	}
	r := &reader{s: s, ctx: ctx, d: d, off: off, here: here}
	if err := r.open(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// source is one disk's copy of a blob.
type source interface {
	io.ReadCloser
	rpc.Chunker
}

// reader streams a large blob, from as many disks as it takes.
type reader struct {
	s    *Store
	ctx  context.Context
	d    digest.Digest
	off  int64 // of the next byte
	here bool  // this node's own disk may be read

	src    source
	v      *view
	queue  []int32 // disks yet to be tried
	tried  bool    // the first queue was made
	local  bool    // src is this node's own disk
	failed bool    // which has failed, and is left alone
	closed bool
}

// open finds a disk that gives the blob from r.off.
func (r *reader) open() error {
	wait, cancel := patience(r.ctx)
	defer cancel()
	for attempt := 0; ; {
		changed := r.s.placement.Changed()
		if !r.tried {
			r.tried = true
			r.v = r.s.view()
			r.queue = r.s.readOrder(r.v, r.d)
			if r.here && r.s.local != nil && r.openHere() {
				return nil
			}
		}
		for len(r.queue) > 0 {
			on := r.queue[0]
			r.queue = r.queue[1:]
			if on == r.v.self {
				switch {
				case r.here && r.openHere():
					return nil
				case !r.here && r.s.held(r.d, r.s.kindHere(r.d)):
					return errHere
				}
				continue
			}
			src, err := r.s.openRemote(r.ctx, r.v.disks[on].Addr, r.d, r.off)
			if err == nil {
				r.src = src
				return nil
			}
			r.s.trouble(r.d, r.v.disks[on].Addr, err)
			if r.ctx.Err() != nil {
				return r.ctx.Err()
			}
		}
		if attempt > 0 {
			r.s.metrics.waits.Inc()
			if pause(wait, attempt, changed) != nil {
				return fmt.Errorf("read %s: %w", r.d, gaveUp(r.ctx))
			}
		}
		attempt++
		r.v = r.s.view()
		on, err := r.s.locate(wait, r.v, r.d)
		if blob.IsNotFound(err) {
			return fmt.Errorf("read %s: %w", r.d, err)
		}
		r.queue = append([]int32(nil), on...)
	}
}

func (r *reader) openHere() bool {
	if r.failed {
		return false
	}
	src, err := r.s.local.Get(r.ctx, r.d, r.off)
	if err != nil {
		r.s.trouble(r.d, r.s.selfAddr, err)
		return false
	}
	r.src, r.local = hereSource{src}, true
	return true
}

// Read goes on from another disk when the one that is read fails.
func (r *reader) Read(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	err = r.step(func() (int, error) {
		n, err = r.src.Read(p)
		return n, err
	})
	return n, err
}

// Chunk implements rpc.Chunker: bytes from another node stay in the buffers
// that they came in.
func (r *reader) Chunk(n int) (data mem.BufferSlice, err error) {
	err = r.step(func() (int, error) {
		data, err = r.src.Chunk(n)
		return data.Len(), err
	})
	return data, err
}

// step has next read from r.src, until it gets something or no disk can go on.
func (r *reader) step(next func() (int, error)) error {
	for r.off < r.d.Size() {
		if r.closed {
			return errors.New("read of a closed blob")
		}
		n, err := next()
		r.off += int64(n)
		if n > 0 {
			return nil
		}
		if err == nil {
			continue
		}
		if r.ctx.Err() != nil {
			return r.ctx.Err()
		}
		r.s.trouble(r.d, "", err)
		r.s.metrics.failovers.Inc()
		r.src.Close()
		r.failed = r.failed || r.local
		r.src, r.local = nil, false
		if err := r.open(); err != nil {
			r.src = failed{err}
			return err
		}
	}
	return io.EOF
}

// failed is what is left to read when no disk can go on.
type failed struct{ err error }

func (f failed) Read([]byte) (int, error)           { return 0, f.err }
func (f failed) Chunk(int) (mem.BufferSlice, error) { return nil, f.err }
func (f failed) Close() error                       { return nil }

// Close ends the stream.
func (r *reader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	r.s.budget.Release(r.ctx, streamCost)
	if r.src == nil {
		return nil
	}
	return r.src.Close()
}

// readOrder is d's owners, first rank first, those within reach before others.
func (s *Store) readOrder(v *view, d digest.Digest) []int32 {
	owners := v.owners(nil, d)
	order := make([]int32, 0, len(owners))
	for _, reachable := range []bool{true, false} {
		for _, on := range owners {
			if (on == v.self || s.peers.Reachable(v.disks[on].Addr)) == reachable {
				order = append(order, on)
			}
		}
	}
	return order
}

// trouble takes note of why a disk did not give a blob. A corrupt copy has been
// dropped by its disk; another takes its place.
func (s *Store) trouble(d digest.Digest, addr string, err error) {
	if errors.Is(err, errCorrupt) || errors.Is(err, disk.ErrCorrupt) {
		s.metrics.corrupt.Inc()
	}
	if !blob.IsNotFound(err) {
		s.log.Debug("blob not read", "digest", d, "peer", addr, "err", err)
	}
}

// hereSource is a blob on this node's own disk.
type hereSource struct{ io.ReadCloser }

func (r hereSource) Chunk(n int) (mem.BufferSlice, error) {
	var b rpc.Bulk
	_, err := b.Fill(r.ReadCloser, n)
	return b.Data, err
}

// remoteSource is the stream of a blob from another node.
type remoteSource struct {
	stream grpc.ServerStreamingClient[pb.Chunk]
	cancel context.CancelFunc
	watch  *watch
	chunk  rpc.Bulk
	next   int // the chunk's current buffer
	off    int // of the next byte in it
}

// openRemote starts to read d from addr. It returns once the first bytes are
// there, so that what the disk lacks is known at once.
func (s *Store) openRemote(ctx context.Context, addr string, d digest.Digest, off int64) (*remoteSource, error) {
	conn, err := s.peers.Conn(addr)
	if err != nil {
		return nil, unavailable(err)
	}
	r := &remoteSource{chunk: rpc.Bulk{Field: chunkData}}
	ctx, r.cancel = context.WithCancel(ctx)
	r.watch = s.newWatch(addr, r.cancel)
	r.watch.begin(stall)
	r.stream, err = pb.NewBlobsClient(conn).Read(ctx, &pb.ReadRequest{Digest: d.Append(nil), Offset: off})
	if err == nil {
		err = r.receive()
	}
	if err != nil && !(errors.Is(err, io.EOF) && off == d.Size()) {
		r.Close()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: %s has no bytes at %s", blob.ErrUnavailable, d, addr)
		}
		return nil, fromStatus(err)
	}
	return r, nil
}

// receive gets the next chunk; io.EOF is the stream's end.
func (r *remoteSource) receive() error {
	r.watch.begin(stall)
	defer r.watch.end()
	r.next, r.off = 0, 0
	return r.stream.RecvMsg(&r.chunk)
}

func (r *remoteSource) Read(p []byte) (int, error) {
	if err := r.more(); err != nil {
		return 0, err
	}
	n := copy(p, r.chunk.Data[r.next].ReadOnlyData()[r.off:])
	r.off += n
	return n, nil
}

// Chunk implements rpc.Chunker.
func (r *remoteSource) Chunk(n int) (mem.BufferSlice, error) {
	if err := r.more(); err != nil {
		return nil, err
	}
	data := make(mem.BufferSlice, 0, len(r.chunk.Data)-r.next)
	for ; n > 0 && r.next < len(r.chunk.Data); r.next, r.off = r.next+1, 0 {
		buf := r.chunk.Data[r.next]
		k := min(n, buf.Len()-r.off)
		data = append(data, buf.Slice(r.off, r.off+k))
		n -= k
		if r.off+k < buf.Len() {
			r.off += k
			break
		}
	}
	return data, nil
}

// more sees to it that the current buffer has bytes left.
func (r *remoteSource) more() error {
	for {
		for ; r.next < len(r.chunk.Data); r.next, r.off = r.next+1, 0 {
			if r.off < r.chunk.Data[r.next].Len() {
				return nil
			}
		}
		if err := r.receive(); err != nil {
			if errors.Is(err, io.EOF) {
				return io.EOF
			}
			return fromStatus(err)
		}
	}
}

func (r *remoteSource) Close() error {
	r.watch.end()
	r.cancel()
	r.chunk.Free()
	return nil
}
