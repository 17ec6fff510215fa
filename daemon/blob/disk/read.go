package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"google.golang.org/grpc/mem"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

// sumChunk is how many bytes of a file one sum covers: as much as is read and
// checked before any of it leaves.
const sumChunk = 1 << 20

var chunks = sync.Pool{New: func() any { b := make([]byte, sumChunk); return &b }}

// sumsSize is the length of the sums of a file: none when one sum does.
func sumsSize(size int64) int64 {
	if size <= sumChunk {
		return 0
	}
	return (size + sumChunk - 1) / sumChunk * 4
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// retries bounds how often a read starts over because the blob was rewritten
// or replaced under it.
const retries = 4

// errMoved says that the place of an entry is gone: it was rewritten, evicted
// or lost, and the index knows which.
var errMoved = errors.New("the blob is not there any more")

// readRecord reads n bytes of d's record at e's place, and checks them.
func (s *Store) readRecord(d digest.Digest, e entry, n int64) ([]byte, error) {
	g := s.segs.acquire(e.place.seg)
	if g == nil {
		return nil, errMoved
	}
	defer g.release()
	buf := make([]byte, recordSize(d, n))
	if err := s.fault("read"); err != nil {
		return nil, fmt.Errorf("read segment %d: %w", g.number, diskError(err))
	}
	if _, err := g.f.ReadAt(buf, int64(e.place.off)); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read segment %d: %w", g.number, diskError(err))
	}
	data := buf[int64(len(buf))-n:]
	if checksum(data) != e.sum {
		return nil, ErrCorrupt
	}
	return data, nil
}

// readSmall reads a small blob, following it when it moves.
func (s *Store) readSmall(d digest.Digest, e entry) ([]byte, error) {
	for range retries {
		data, err := s.readRecord(d, e, d.Size())
		switch {
		case err == nil:
			if e.flags&flagSeen == 0 {
				s.flag(d, flagSeen, 0)
			}
			return data, nil
		case errors.Is(err, ErrCorrupt):
			return nil, s.rotten(d, e, "its record's checksum differs")
		case !errors.Is(err, errMoved):
			return nil, err
		}
		was := e.place
		var ok bool
		if e, ok = s.lookup(d, false); !ok {
			return nil, s.missing(d)
		}
		if e.flags&flagFile != 0 {
			break
		}
		if e.place == was && s.segs.acquireGone(was.seg) {
			return nil, s.rotten(d, e, "its segment is gone")
		}
	}
	return nil, fmt.Errorf("%s: it keeps moving: %w", d, blob.ErrUnavailable)
}

// acquireGone reports whether a segment is not in the table.
func (t *segments) acquireGone(number uint32) bool {
	g := t.acquire(number)
	if g != nil {
		g.release()
	}
	return g == nil
}

// GetBatch reads whole blobs; it is meant for small ones. The answers stand in
// the order of ds.
func (s *Store) GetBatch(ctx context.Context, ds []digest.Digest) []blob.Result {
	rs := make([]blob.Result, len(ds))
	for i, d := range ds {
		if err := ctx.Err(); err != nil {
			rs[i].Err = err
			continue
		}
		rs[i].Data, rs[i].Err = s.readAll(ctx, d)
	}
	return rs
}

func (s *Store) readAll(ctx context.Context, d digest.Digest) ([]byte, error) {
	if d.IsEmpty() {
		return []byte{}, nil
	}
	e, ok := s.lookup(d, true)
	if !ok {
		return nil, s.missing(d)
	}
	if e.flags&flagFile == 0 {
		return s.readSmall(d, e)
	}
	r, err := s.openFile(ctx, d, e)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data := make([]byte, d.Size())
	_, err = io.ReadFull(r, data)
	return data, err
}

// Get streams the blob from offset off. Each MiB is checked before any of it
// is handed out; the reader holds one at a time. It is an rpc.Chunker, and
// holds nothing once a chunk has taken all of it.
func (s *Store) Get(ctx context.Context, d digest.Digest, off int64) (io.ReadCloser, error) {
	if off < 0 || off > d.Size() {
		return nil, fmt.Errorf("%s from %d: %w", d, off, blob.ErrOutOfRange)
	}
	if d.IsEmpty() {
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	e, ok := s.lookup(d, true)
	if !ok {
		return nil, s.missing(d)
	}
	if e.flags&flagFile == 0 {
		data, err := s.readSmall(d, e)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(bytes.NewReader(data[off:])), nil
	}
	r, err := s.openFile(ctx, d, e)
	if err != nil {
		return nil, err
	}
	r.next = off / sumChunk
	r.skip = int(off % sumChunk)
	return r, nil
}

// openFile opens a large blob for reading from its start.
func (s *Store) openFile(ctx context.Context, d digest.Digest, e entry) (*fileReader, error) {
	sums, e, err := s.sums(d, e)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(s.filePath(d))
	if errors.Is(err, fs.ErrNotExist) {
		// Evicted, replaced, or lost: under its name's lock it holds still.
		l := s.name(d)
		l.Lock()
		f, err = os.Open(s.filePath(d))
		now, ok := s.lookup(d, false)
		l.Unlock()
		if errors.Is(err, fs.ErrNotExist) {
			if !ok {
				return nil, s.missing(d)
			}
			return nil, s.rotten(d, now, "its file is gone")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", d, diskError(err))
	}
	return &fileReader{ctx: ctx, s: s, d: d, e: e, f: f, sums: sums}, nil
}

// sums returns the sums of a large blob, 4 bytes each.
func (s *Store) sums(d digest.Digest, e entry) ([]byte, entry, error) {
	n := sumsSize(d.Size())
	if n == 0 {
		return binary.LittleEndian.AppendUint32(nil, e.sum), e, nil
	}
	for range retries {
		sums, err := s.readRecord(d, e, n)
		switch {
		case err == nil:
			return sums, e, nil
		case errors.Is(err, ErrCorrupt):
			return nil, e, s.rotten(d, e, "the checksum of its sums differs")
		case !errors.Is(err, errMoved):
			return nil, e, err
		}
		was := e.place
		var ok bool
		if e, ok = s.lookup(d, false); !ok {
			return nil, e, s.missing(d)
		}
		if e.place == was && s.segs.acquireGone(was.seg) {
			return nil, e, s.rotten(d, e, "the segment of its sums is gone")
		}
	}
	return nil, e, fmt.Errorf("%s: its sums keep moving: %w", d, blob.ErrUnavailable)
}

// fileReader reads a large blob chunk by chunk, each checked before it leaves.
type fileReader struct {
	ctx  context.Context // of the call that opened it
	s    *Store
	d    digest.Digest
	e    entry
	f    *os.File
	sums []byte
	next int64      // chunk
	skip int        // bytes of the next chunk that nobody asked for
	buf  mem.Buffer // what was read; nil if nothing of it is left
	off  int        // of the next byte in it
	err  error
}

func (r *fileReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.fill(); err != nil {
		return 0, err
	}
	n := copy(p, r.buf.ReadOnlyData()[r.off:])
	r.take(n)
	return n, nil
}

// Chunk hands out what was read without copying it.
func (r *fileReader) Chunk(n int) (mem.BufferSlice, error) {
	if err := r.fill(); err != nil {
		return nil, err
	}
	part := r.buf.Slice(r.off, min(r.off+n, r.buf.Len()))
	r.take(part.Len())
	return mem.BufferSlice{part}, nil
}

// WriteTo hands out whole chunks, without copying them first.
func (r *fileReader) WriteTo(w io.Writer) (n int64, err error) {
	for {
		if err := r.fill(); err != nil {
			return n, ignoreEOF(err)
		}
		m, err := w.Write(r.buf.ReadOnlyData()[r.off:])
		n += int64(m)
		r.take(m)
		if err != nil {
			return n, err
		}
	}
}

// take drops n bytes of what was read.
func (r *fileReader) take(n int) {
	if r.off += n; r.off == r.buf.Len() {
		r.buf.Free()
		r.buf = nil
	}
}

// fill reads and checks the next chunk, if nothing is left of the last.
func (r *fileReader) fill() error {
	if r.err != nil || r.buf != nil {
		return r.err
	}
	r.err = r.fillChunk()
	return r.err
}

func (r *fileReader) fillChunk() error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	at := r.next * sumChunk
	n := min(r.d.Size()-at, sumChunk)
	if n <= 0 {
		if r.e.flags&flagSeen == 0 {
			r.s.flag(r.d, flagSeen, 0)
		}
		return io.EOF
	}
	buf := mem.NewBuffer(rpc.Pool().Get(int(n)), rpc.Pool())
	defer func() {
		if r.buf == nil {
			buf.Free()
		}
	}()
	b := buf.ReadOnlyData() // by nobody else yet
	err := r.s.fault("read")
	if err == nil {
		_, err = r.f.ReadAt(b, at)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %s: %w", r.d, diskError(err))
	}
	if err != nil || checksum(b) != binary.LittleEndian.Uint32(r.sums[4*r.next:]) {
		if !r.current() {
			return fmt.Errorf("%s: an evicted file's checksum differs: %w (%w)", r.d, ErrCorrupt, blob.ErrUnavailable)
		}
		return r.s.rotten(r.d, r.e, "its file's checksum differs")
	}
	r.next++
	r.buf, r.off, r.skip = buf, r.skip, 0
	return nil
}

// current reports whether the file that is read still has the blob's name: one
// that was evicted meanwhile may have a successor, which is not to be blamed.
func (r *fileReader) current() bool {
	mine, err := r.f.Stat()
	if err != nil {
		return true
	}
	theirs, err := os.Lstat(r.s.filePath(r.d))
	return err != nil || os.SameFile(mine, theirs)
}

func (r *fileReader) Close() error {
	if r.buf != nil {
		r.buf.Free()
		r.buf = nil
	}
	if r.err == nil {
		r.err = fs.ErrClosed
	}
	return r.f.Close()
}
