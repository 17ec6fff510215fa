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
