package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// prepare makes the file to link to, or makes sure that it is right.
func (s *Store) prepare(ctx context.Context, d digest.Digest, executable bool) error {
	large := d.Size() > blob.SmallSize
	have, ready := linkFlags(large, executable)
	e, ok := s.lookup(d, false)
	if !ok {
		return s.missing(d)
	}
	if e.flags&have != 0 {
		return s.inspect(ctx, d, e, executable)
	}
	// Room is made by the evictor, which takes locks of names: ask first.
	room := fileBytes(d.Size())
	if err := s.reserve(ctx, room, true); err != nil {
		return err
	}
	made, err := s.make(ctx, d, executable, have|ready)
	if !made {
		s.release(room)
	}
	return err
}

// make writes the file to link to unless somebody did meanwhile.
func (s *Store) make(ctx context.Context, d digest.Digest, executable bool, flags uint16) (bool, error) {
	if d.Size() > blob.SmallSize {
		return s.makeLarge(ctx, d, flags)
	}
	l := s.name(d)
	l.Lock()
	defer l.Unlock()
	e, ok := s.lookup(d, false)
	if !ok {
		return false, s.missing(d)
	}
	if e.flags&flags == flags {
		return false, nil
	}
	data, err := s.readSmallNamed(d, e)
	if err != nil {
		return false, err
	}
	path := s.linkPath(d, false, executable)
	err = s.writeNew(path, data, linkMode(executable))
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.Mkdir(filepath.Dir(path), 0o700); err == nil || errors.Is(err, fs.ErrExist) {
			err = s.writeNew(path, data, linkMode(executable))
		}
	}
	if errors.Is(err, fs.ErrExist) {
		// Left by a process that died; nobody links to it any more.
		if err = os.Remove(path); err == nil {
			err = s.writeNew(path, data, linkMode(executable))
		}
	}
	if err != nil {
		return false, diskError(err)
	}
	if !s.flag(d, flags, 0) {
		os.Remove(path) // evicted meanwhile
		return false, s.missing(d)
	}
	return true, nil
}

// readSmallNamed is readSmall for a caller that holds the lock of d's name,
// and so must not drop a rotten copy itself.
func (s *Store) readSmallNamed(d digest.Digest, e entry) ([]byte, error) {
	for range retries {
		data, err := s.readRecord(d, e, d.Size())
		if errors.Is(err, ErrCorrupt) {
			if s.dropNamed(d, e) {
				s.lost(d, "its record's checksum differs")
			}
			return nil, fmt.Errorf("%s: its record's checksum differs: %w (%w)", d, ErrCorrupt, blob.ErrUnavailable)
		}
		if err == nil || !errors.Is(err, errMoved) {
			return data, err
		}
		var ok bool
		if e, ok = s.lookup(d, false); !ok {
			return nil, s.missing(d)
		}
	}
	return nil, fmt.Errorf("%s: it keeps moving: %w", d, blob.ErrUnavailable)
}

// makeLarge copies a large blob into an executable file.
func (s *Store) makeLarge(ctx context.Context, d digest.Digest, flags uint16) (bool, error) {
	temp, err := s.copyLarge(ctx, d, 0o555)
	if err != nil {
		return false, err
	}
	l := s.name(d)
	l.Lock()
	defer l.Unlock()
	e, ok := s.lookup(d, false)
	if !ok || e.flags&flags == flags {
		os.Remove(temp)
		if !ok {
			return false, s.missing(d)
		}
		return false, nil
	}
	if err := s.rename(temp, s.linkPath(d, true, true)); err != nil {
		os.Remove(temp)
		return false, err
	}
	if !s.flag(d, flags, 0) {
		os.Remove(s.linkPath(d, true, true))
		return false, s.missing(d)
	}
	return true, nil
}

// copyLarge copies a large blob, checking it, to a temporary file.
func (s *Store) copyLarge(ctx context.Context, d digest.Digest, mode uint32) (temp string, err error) {
	r, err := s.Get(ctx, d, 0)
	if err != nil {
		return "", err
	}
	defer r.Close()
	temp = s.tempPath()
	err = s.fault("create")
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	}
	if err != nil {
		return "", diskError(err)
	}
	_, err = io.Copy(onlyWriter{f}, r)
	if err == nil {
		err = s.finishFile(f, temp, mode)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(temp)
		return "", diskError(err)
	}
	return temp, nil
}

// onlyWriter hides ReadFrom, through which bytes would pass unchecked.
type onlyWriter struct{ io.Writer }

// inspect reads a file that this process has not written, once.
func (s *Store) inspect(ctx context.Context, d digest.Digest, e entry, executable bool) error {
	large := d.Size() > blob.SmallSize
	_, ready := linkFlags(large, executable)
	if large && !executable {
		r, err := s.openFile(ctx, d, e)
		if err != nil {
			return err
		}
		defer r.Close()
		if _, err := io.Copy(onlyWriter{io.Discard}, r); err != nil {
			return err
		}
		s.flag(d, ready, 0)
		return nil
	}
	sums, err := s.variantSums(d, e)
	if err != nil {
		return err
	}
	l := s.name(d)
	l.Lock()
	defer l.Unlock()
	right, err := s.sameBytes(ctx, s.linkPath(d, large, executable), sums)
	if err != nil {
		return err
	}
	if right {
		s.flag(d, ready, 0)
		return nil
	}
	s.log.Warn("a file made for linking was damaged", "digest", d)
	s.dropVariant(d, executable) // the loop in Link makes a new one
	return nil
}

// variantSums are the sums that a file made for linking must have.
func (s *Store) variantSums(d digest.Digest, e entry) ([]byte, error) {
	if e.flags&flagFile == 0 {
		return binary.LittleEndian.AppendUint32(nil, e.sum), nil
	}
	sums, _, err := s.sums(d, e)
	return sums, err
}

// sameBytes reports whether the file has these sums. A file that is not there
// has others.
func (s *Store) sameBytes(ctx context.Context, path string, sums []byte) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, diskError(err)
	}
	defer f.Close()
	got, err := s.sumFile(ctx, f)
	if err != nil || len(sums) != 4*len(got) {
		return false, err
	}
	for i, sum := range got {
		if sum != binary.LittleEndian.Uint32(sums[4*i:]) {
			return false, nil
		}
	}
	return true, nil
}

// refresh puts a fresh copy in the place of a file that has as many links as
// the file system allows. The old one lives on in its links.
func (s *Store) refresh(ctx context.Context, d digest.Digest, executable bool) error {
	l := s.name(d)
	if d.Size() <= blob.SmallSize {
		l.Lock()
		defer l.Unlock()
		s.dropVariant(d, executable)
		return nil // the loop in Link makes a new one
	}
	temp, err := s.copyLarge(ctx, d, linkMode(executable))
	if err != nil {
		return err
	}
	l.Lock()
	defer l.Unlock()
	have, _ := linkFlags(true, executable)
	if e, ok := s.lookup(d, false); !ok || e.flags&have == 0 {
		os.Remove(temp)
		return s.missing(d)
	}
	if err := s.rename(temp, s.linkPath(d, true, executable)); err != nil {
		os.Remove(temp)
		return err
	}
	return nil
}

// writeNew makes a read-only file. It needs no temporary name: one that was
// not finished is found out before it is linked to.
func (s *Store) writeNew(path string, data []byte, mode uint32) error {
	if err := s.fault("create"); err != nil {
		return diskError(err)
	}
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return fmt.Errorf("create %s: %w", filepath.Base(path), err)
	}
	f := os.NewFile(uintptr(fd), path)
	if len(data) > 0 {
		_, err = f.Write(data)
	}
	if err == nil && mode&s.umsk != 0 {
		err = unix.Fchmod(fd, mode)
	}
	if err == nil {
		err = unix.UtimesNanoAt(unix.AT_FDCWD, path, fileTimes, 0)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(path)
		return diskError(err)
	}
	return nil
}
