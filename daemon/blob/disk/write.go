package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// verify reports whether data is d's blob.
func verify(d digest.Digest, data []byte) error {
	if !d.Function().Computable() {
		return fmt.Errorf("%s: this build cannot hash with %s: %w", d, d.Function(), blob.ErrMismatch)
	}
	if int64(len(data)) != d.Size() || digest.Of(d.Function(), data) != d {
		return fmt.Errorf("%s: %w", d, blob.ErrMismatch)
	}
	return nil
}

// PutBatch stores small blobs; the answers stand in their order. A blob that is
// there already is marked as used, and becomes owned if kind is Owned.
func (s *Store) PutBatch(ctx context.Context, kind Kind, bs []blob.Blob) []error {
	errs := make([]error, len(bs))
	var (
		recs  []*record
		which []int
		need  int64
	)
	for i, b := range bs {
		if errs[i] = ctx.Err(); errs[i] != nil {
			continue
		}
		if errs[i] = verify(b.Digest, b.Data); errs[i] != nil || b.Digest.IsEmpty() || s.renew(b.Digest, kind) {
			continue
		}
		if b.Digest.Size() > blob.SmallSize {
			errs[i] = s.putFile(ctx, b, kind)
			continue
		}
		r := &record{d: b.Digest, what: uint8(kind), sum: checksum(b.Data), data: b.Data}
		r.commit = s.commitRecord
		recs, which = append(recs, r), append(which, i)
		need += recordSize(b.Digest, b.Digest.Size())
	}
	if len(recs) == 0 {
		return errs
	}
	err := s.reserve(ctx, need, false)
	if err == nil {
		err = s.app.append(recs)
		for _, r := range recs {
			if !r.done {
				s.release(recordSize(r.d, int64(len(r.data))))
			}
		}
	}
	for j, r := range recs {
		if !r.done {
			errs[which[j]] = fmt.Errorf("store %s: %w", r.d, err)
		}
	}
	return errs
}

// commitRecord makes a written record known.
func (s *Store) commitRecord(r *record) {
	// Who stored the same blob meanwhile was first; ours is dead weight.
	s.insert(r.d, entry{place: r.at, sum: r.sum, kind: Kind(r.what), flags: flagSeen})
}

func (s *Store) putFile(ctx context.Context, b blob.Blob, kind Kind) error {
	w, err := s.create(ctx, b.Digest, kind)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := w.Write(b.Data); err != nil {
		return err
	}
	return w.Commit()
}

// Put reads r to its end and stores it.
func (s *Store) Put(ctx context.Context, d digest.Digest, kind Kind, r io.Reader) error {
	w, err := s.create(ctx, d, kind)
	if err != nil {
		return err
	}
	defer w.Close()
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(*buf)
		if _, werr := w.Write((*buf)[:n]); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) {
			return w.Commit()
		}
		if err != nil {
			return fmt.Errorf("store %s: %w", d, err)
		}
	}
}

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
	if w.err != nil {
		return 0, w.err
	}
	if w.off+int64(len(p)) > w.d.Size() {
		w.err = fmt.Errorf("store %s: more bytes than its size: %w", w.d, blob.ErrMismatch)
		return 0, w.err
	}
	if w.f == nil {
		w.buf = append(w.buf, p...)
		w.off += int64(len(p))
		return len(p), nil
	}
	err := w.s.fault("write")
	n := 0
	if err == nil {
		n, err = w.f.Write(p)
	}
	w.h.Write(p[:n])
	w.sum.write(p[:n])
	w.off += int64(n)
	if err != nil {
		w.err = fmt.Errorf("store %s: %w", w.d, diskError(err))
	}
	return n, w.err
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

// finishFile gives a file that is about to get its name what blob files have.
func (s *Store) finishFile(f *os.File, path string, mode uint32) error {
	if err := unix.Fchmod(int(f.Fd()), mode); err != nil {
		return diskError(err)
	}
	if s.o.Fsync {
		if err := f.Sync(); err != nil {
			return diskError(err)
		}
	}
	return diskError(unix.UtimesNanoAt(unix.AT_FDCWD, path, fileTimes, 0))
}

// commitFile moves a finished file to its name and makes it known. room is
// what was reserved for it.
func (s *Store) commitFile(d digest.Digest, kind Kind, path string, sums []uint32, room int64) error {
	e := entry{sum: sums[0], kind: kind, flags: flagFile | flagPlainOK | flagSeen}
	if len(sums) > 1 {
		r, err := s.storeSums(d, sums)
		if err != nil {
			s.release(room)
			return fmt.Errorf("store the sums of %s: %w", d, err)
		}
		e.place, e.sum = r.at, r.sum
	}
	unpin := func() {
		if e.place.seg != 0 {
			s.segs.addLive(e.place.seg, -recordBytes(d, e))
		}
		s.release(fileBytes(d.Size()))
	}
	l := s.name(d)
	l.Lock()
	defer l.Unlock()
	if s.renew(d, kind) {
		unpin()
		return nil
	}
	if err := s.rename(path, s.filePath(d)); err != nil {
		unpin()
		return fmt.Errorf("store %s: %w", d, err)
	}
	s.insert(d, e)
	if err := s.journal.flush(); err != nil {
		return fmt.Errorf("store %s: %w", d, err)
	}
	return nil
}

// storeSums appends the record of a large blob's sums. It counts as live from
// the start, before an entry points to it.
func (s *Store) storeSums(d digest.Digest, sums []uint32) (*record, error) {
	data := make([]byte, 0, 4*len(sums))
	for _, sum := range sums {
		data = binary.LittleEndian.AppendUint32(data, sum)
	}
	r := &record{d: d, what: recSums, sum: checksum(data), data: data}
	r.commit = func(r *record) { s.segs.addLive(r.at.seg, recordSize(d, int64(len(data)))) }
	err := s.app.append([]*record{r})
	if r.done {
		err = nil
	}
	return r, err
}

// rename moves a file to its name, making the directory when it is the first
// in there.
func (s *Store) rename(from, to string) error {
	err := s.fault("rename")
	if err == nil {
		err = os.Rename(from, to)
	}
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.Mkdir(filepath.Dir(to), 0o700); err == nil || errors.Is(err, fs.ErrExist) {
			err = os.Rename(from, to)
		}
	}
	if err == nil && s.o.Fsync {
		err = syncDir(filepath.Dir(to))
	}
	return diskError(err)
}

// summer sums a blob up in chunks of sumChunk.
type summer struct {
	done []uint32
	sum  uint32
	n    int
}

func (c *summer) write(p []byte) {
	for len(p) > 0 {
		n := min(len(p), sumChunk-c.n)
		c.sum = crc32.Update(c.sum, castagnoli, p[:n])
		c.n += n
		p = p[n:]
		if c.n == sumChunk {
			c.done = append(c.done, c.sum)
			c.sum, c.n = 0, 0
		}
	}
}

func (c *summer) sums() []uint32 {
	if c.n > 0 || len(c.done) == 0 {
		return append(c.done, c.sum)
	}
	return c.done
}

// Adopt takes the file at path, which the caller has hashed to d, owns and no
// longer writes: a large one is moved into the store and is gone from path, a
// small one is copied. A file that others link to is copied too.
func (s *Store) Adopt(ctx context.Context, d digest.Digest, path string, kind Kind) error {
	if d.IsEmpty() || s.renew(d, kind) {
		return nil
	}
	f, err := openNoFollow(path)
	if err != nil {
		return fmt.Errorf("adopt %s: %w", d, err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("adopt %s: %w", d, diskError(err))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != d.Size() {
		return fmt.Errorf("adopt %s: the file is no such blob: %w", d, blob.ErrMismatch)
	}
	if d.Size() <= blob.SmallSize || st.Nlink != 1 || int(st.Uid) != os.Geteuid() {
		return s.Put(ctx, d, kind, f)
	}
	room := largeBytes(d)
	if err := s.reserve(ctx, room, true); err != nil {
		return fmt.Errorf("adopt %s: %w", d, err)
	}
	sums, err := s.sumFile(ctx, f)
	if err == nil {
		err = s.finishFile(f, path, 0o444)
	}
	if err != nil {
		s.release(room)
		return fmt.Errorf("adopt %s: %w", d, err)
	}
	err = s.commitFile(d, kind, path, sums, room)
	if errors.Is(err, unix.EXDEV) {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("adopt %s: %w", d, diskError(err))
		}
		return s.Put(ctx, d, kind, f)
	}
	return err
}

// sumFile reads a whole file for its sums.
func (s *Store) sumFile(ctx context.Context, f *os.File) ([]uint32, error) {
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	var sum summer
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := f.Read(*buf)
		sum.write((*buf)[:n])
		if errors.Is(err, io.EOF) {
			return sum.sums(), nil
		}
		if err != nil {
			return nil, diskError(err)
		}
	}
}

func openNoFollow(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, diskError(err)
	}
	return f, nil
}
