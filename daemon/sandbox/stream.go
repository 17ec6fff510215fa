package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// SmallSize is up to how many bytes an output is handed over in memory rather
// than as a file.
const SmallSize = 64 << 10

// Stream is what an action wrote to stdout or stderr: in Data when it is
// small, else in the file at Path, which its taker deletes or takes.
type Stream struct {
	Data      []byte
	Path      string
	Size      int64
	Truncated bool // a part was dropped, and a last line says so
}

// stream is a file that an executor's actions append to. It is kept from
// action to action as long as it can be emptied again and nobody else has it,
// for an action that writes nothing should not cost a file.
type stream struct {
	f    *os.File
	path string
	used bool // an action had it, and it has not been emptied since
	cut  bool
	seq  int
}

// open makes sure that there is a file, which is empty.
func (s *stream) open(e *Executor, i int) error {
	if s.f != nil {
		return nil
	}
	s.seq++
	s.path = e.dir + "/" + [2]string{"stdout", "stderr"}[i] + strconv.Itoa(s.seq)
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_EXCL|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if e.own {
		// So that /dev/stdout can be opened by the action.
		if err := f.Chown(e.uid, e.uid); err != nil {
			f.Close()
			return err
		}
	}
	s.f = f
	return nil
}

// limit cuts off what is beyond max bytes. The writer appends, so the first
// max bytes stay as they were written, and what is written until the next look
// is all the disk that an endless stream takes.
func (s *stream) limit(max int64) error {
	size, err := s.size()
	if err != nil || size <= max {
		return err
	}
	s.cut = true
	return s.f.Truncate(max)
}

func (s *stream) size() (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(s.f.Fd()), &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: s.path, Err: err}
	}
	return st.Size, nil
}

// take hands over what the action wrote. It has ended.
func (s *stream) take(e *Executor) (Stream, error) {
	if s.f == nil {
		return Stream{}, nil
	}
	max := e.sb.o.Limits.MaxStream
	if err := s.limit(max); err != nil {
		return Stream{}, err
	}
	if s.cut {
		e.sb.metrics.truncated.Inc()
		line := fmt.Sprintf("\nremex: what was written beyond %d bytes has been dropped\n", max)
		if _, err := s.f.WriteAt([]byte(line), max); err != nil {
			return Stream{}, err
		}
	}
	size, err := s.size()
	if err != nil {
		return Stream{}, err
	}
	out := Stream{Size: size, Truncated: s.cut}
	switch shared := s.shared(); {
	case size > SmallSize && shared:
		out.Path = e.sb.trash.next(".out")
		err = s.copy(out.Path, size)
	case size > SmallSize:
		out.Path = e.sb.trash.next(".out")
		err = s.move(e, out.Path)
	default:
		out.Data = make([]byte, size)
		if _, err = io.ReadFull(io.NewSectionReader(s.f, 0, size), out.Data); err == nil && !shared {
			err = s.empty(size)
		}
	}
	if err != nil {
		return Stream{}, fmt.Errorf("take %s: %w", s.path, err)
	}
	return out, nil
}

// shared reports whether somebody else has the file open: an action may have
// passed it to a process that outlives it. A write lease is refused then.
func (s *stream) shared() bool {
	fd := s.f.Fd()
	if _, err := unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		return errors.Is(err, unix.EAGAIN)
	}
	_, _ = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK)
	return false
}

// empty makes the file as new.
func (s *stream) empty(size int64) error {
	if size > 0 {
		if err := s.f.Truncate(0); err != nil {
			return err
		}
	}
	s.used, s.cut = false, false
	return nil
}

// move gives the file away, as the daemon's own.
func (s *stream) move(e *Executor, to string) error {
	if err := os.Rename(s.path, to); err != nil {
		return err
	}
	if e.own {
		if err := s.f.Chown(os.Geteuid(), os.Getegid()); err != nil {
			return err
		}
	}
	s.close()
	return nil
}

func (s *stream) copy(to string, size int64) error {
	w, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, io.NewSectionReader(s.f, 0, size))
	return errors.Join(err, w.Close())
}

func (s *stream) close() {
	if s.f != nil {
		s.f.Close()
		s.f = nil
	}
	s.used, s.cut = false, false
}

// discard gets rid of a file that is not empty, or may not stay so: the next
// action has one that no process of this one can write to.
func (s *stream) discard() {
	if s.used {
		_ = os.Remove(s.path)
		s.close()
	}
}

// Hash names what is in the file at Path.
func (s *Stream) Hash(ctx context.Context, fn digest.Function) (digest.Digest, error) {
	f, err := os.OpenFile(s.Path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return digest.Digest{}, err
	}
	defer f.Close()
	h := digest.NewHasher(fn)
	if _, err := io.Copy(h, readerOf{ctx, f}); err != nil {
		return digest.Digest{}, fmt.Errorf("read %s: %w", s.Path, err)
	}
	return h.Digest(), nil
}
