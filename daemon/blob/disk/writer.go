package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// largeBytes is what a large blob takes: its file, and the record of its sums.
func largeBytes(d digest.Digest) int64 {
	n := fileBytes(d.Size())
	if sums := sumsSize(d.Size()); sums > 0 {
		n += recordSize(d, sums)
	}
	return n
}

// Create begins the upload of a blob. Nothing is stored before Commit. The
// whole room that the blob will take is reserved until Commit or Close.
func (s *Store) Create(d digest.Digest, kind Kind) (*Writer, error) {
	return s.create(context.Background(), d, kind)
}

func (s *Store) create(ctx context.Context, d digest.Digest, kind Kind) (*Writer, error) {
	if !d.Function().Computable() {
		return nil, fmt.Errorf("%s: this build cannot hash with %s: %w", d, d.Function(), blob.ErrMismatch)
	}
	w := &Writer{s: s, d: d, kind: kind}
	if d.Size() <= blob.SmallSize {
		return w, nil
	}
	room := largeBytes(d)
	if err := s.reserve(ctx, room, true); err != nil {
		return nil, fmt.Errorf("store %s: %w", d, err)
	}
	w.room = room
	w.path = s.tempPath()
	err := s.fault("create")
	if err == nil {
		w.f, err = os.OpenFile(w.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	}
	if err != nil {
		s.release(room)
		return nil, fmt.Errorf("store %s: %w", d, diskError(err))
	}
	w.h = digest.NewHasher(d.Function())
	return w, nil
}

// Writer takes the bytes of one blob, in order, and hashes them as they come.
// It is not safe for concurrent use. Small blobs stay in memory until Commit.
type Writer struct {
	s    *Store
	d    digest.Digest
	kind Kind
	room int64
	off  int64
	buf  []byte // of a small blob
	f    *os.File
	path string
	h    *digest.Hasher
	sum  summer
	err  error
}

// Offset is how many bytes were written so far.
func (w *Writer) Offset() int64 { return w.off }

// Write appends p. After an error the Writer is of no more use.
func (w *Writer) Write(p []byte) (int, error) {
	before := w.off
	err := w.WriteAll([][]byte{p})
	return int(w.off - before), err
}

// What the kernel is given at a time: as many pieces as it takes, and bytes
// after which more bring nothing. A MiB at a time was never faster, and now and
// then several times slower where the page cache had to grow.
const (
	maxParts = 1024
	maxWrite = 256 << 10
)

// WriteAll appends all of parts, as one write if it can: the file system takes
// large pieces at a fraction of what small ones cost.
func (w *Writer) WriteAll(parts [][]byte) error {
	if w.err != nil {
		return w.err
	}
	var size int64
	for _, p := range parts {
		size += int64(len(p))
	}
	if w.off+size > w.d.Size() {
		w.err = fmt.Errorf("store %s: more bytes than its size: %w", w.d, blob.ErrMismatch)
		return w.err
	}
	for len(parts) > 0 && w.err == nil {
		n, bytes := 1, len(parts[0])
		for n < min(len(parts), maxParts) && bytes+len(parts[n]) <= maxWrite {
			bytes += len(parts[n])
			n++
		}
		w.err = w.write(parts[:n])
		parts = parts[n:]
	}
	return w.err
}

// write appends at most maxParts parts, and counts in what was written of them.
func (w *Writer) write(parts [][]byte) error {
	if w.f == nil {
		for _, p := range parts {
			w.buf = append(w.buf, p...)
			w.off += int64(len(p))
		}
		return nil
	}
	err := w.s.fault("write")
	n := 0
	if err == nil {
		n, err = writeFile(w.f, parts)
	}
	for _, p := range parts {
		p = p[:min(n, len(p))]
		n -= len(p)
		w.h.Write(p)
		w.sum.write(p)
		w.off += int64(len(p))
	}
	if err != nil {
		return fmt.Errorf("store %s: %w", w.d, diskError(err))
	}
	return nil
}

// writeFile appends parts to f. The kernel may take less at a time than it is
// given; the rest follows piece by piece.
func writeFile(f *os.File, parts [][]byte) (int, error) {
	if len(parts) == 1 {
		return f.Write(parts[0])
	}
	var n int
	for {
		var err error
		if n, err = unix.Writev(int(f.Fd()), parts); err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return 0, err
		}
	}
	done, skip := n, n
	for _, p := range parts {
		k := min(skip, len(p))
		skip -= k
		if k == len(p) {
			continue
		}
		m, err := f.Write(p[k:])
		done += m
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// Commit stores the blob if its bytes are d's, and ErrMismatch otherwise.
func (w *Writer) Commit() error {
	if w.err != nil {
		return w.err
	}
	w.err = w.commit()
	if w.err == nil {
		w.err = errCommitted
		return nil
	}
	return w.err
}

var errCommitted = errors.New("the blob is stored already")

func (w *Writer) commit() error {
	s := w.s
	if w.f == nil {
		if w.off != w.d.Size() {
			return fmt.Errorf("store %s: %d bytes came: %w", w.d, w.off, blob.ErrMismatch)
		}
		return s.PutBatch(context.Background(), w.kind, []blob.Blob{{Digest: w.d, Data: w.buf}})[0]
	}
	if w.off != w.d.Size() || w.h.Digest() != w.d {
		return fmt.Errorf("store %s: %w", w.d, blob.ErrMismatch)
	}
	if err := s.finishFile(w.f, w.path, 0o444); err != nil {
		return fmt.Errorf("store %s: %w", w.d, err)
	}
	room := w.room
	w.room = 0 // whatever becomes of it, commitFile sees to it
	return s.commitFile(w.d, w.kind, w.path, w.sum.sums(), room)
}

// Close gives up what was not committed. It may be called more than once.
func (w *Writer) Close() error {
	if w.err == nil {
		w.err = fs.ErrClosed
	}
	w.buf = nil
	if w.f == nil {
		return nil
	}
	w.f.Close()
	os.Remove(w.path)
	w.s.release(w.room)
	w.f, w.room = nil, 0
	return nil
}
