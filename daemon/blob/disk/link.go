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

// Link makes dst a hard link to a read-only file with the blob's bytes, mode
// 0444 or 0555, the process's uid and one constant modification time. dst must
// lie on the store's file system and must not exist. The empty blob is a file
// of dst's own. The first Link to a blob makes the file; a file that outlived
// a restart is read once before it is trusted.
//
// A blob whose file is linked somewhere is not evicted.
func (s *Store) Link(ctx context.Context, d digest.Digest, executable bool, dst string) error {
	if d.IsEmpty() {
		return s.writeNew(dst, nil, linkMode(executable))
	}
	large := d.Size() > blob.SmallSize
	src := s.linkPath(d, large, executable)
	have, ready := linkFlags(large, executable)
	for range retries {
		e, ok := s.lookup(d, true)
		if !ok {
			return s.missing(d)
		}
		if e.flags&(have|ready) != have|ready {
			if err := s.prepare(ctx, d, executable); err != nil {
				return fmt.Errorf("link %s: %w", d, err)
			}
		}
		err := s.fault("link")
		if err == nil {
			err = unix.Linkat(unix.AT_FDCWD, src, unix.AT_FDCWD, dst, 0)
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EMLINK):
			if err := s.refresh(ctx, d, executable); err != nil {
				return fmt.Errorf("link %s: %w", d, err)
			}
		case errors.Is(err, unix.ENOENT):
			// Either it was evicted just now, or dst has no directory.
			if _, serr := os.Lstat(src); serr == nil {
				return fmt.Errorf("link %s to %s: %w", d, dst, fs.ErrNotExist)
			}
			if err := s.gone(d, e, large, executable); err != nil {
				return err
			}
		default:
			return fmt.Errorf("link %s to %s: %w", d, dst, diskError(err))
		}
	}
	return fmt.Errorf("link %s: its file keeps vanishing: %w", d, blob.ErrUnavailable)
}

func linkMode(executable bool) uint32 {
	if executable {
		return 0o555
	}
	return 0o444
}

// linkFlags are the flags that say that the file to link to is there, and that
// it is known to be right.
func linkFlags(large, executable bool) (have, ready uint16) {
	switch {
	case executable:
		return flagExec, flagExecOK
	case large:
		return flagFile, flagPlainOK
	}
	return flagPlain, flagPlainOK
}

// gone sees to a file that the index knows and the directory lacks.
func (s *Store) gone(d digest.Digest, e entry, large, executable bool) error {
	l := s.name(d)
	l.Lock()
	defer l.Unlock()
	if _, err := os.Lstat(s.linkPath(d, large, executable)); err == nil {
		return nil
	}
	if large && !executable {
		if s.dropNamed(d, e) {
			s.lost(d, "its file is gone")
			return fmt.Errorf("%s: its file is gone: %w (%w)", d, ErrCorrupt, blob.ErrUnavailable)
		}
		return nil
	}
	s.dropVariant(d, executable)
	return nil
}

// dropVariant forgets and deletes a file made for linking. The caller holds
// the lock of d's name.
func (s *Store) dropVariant(d digest.Digest, executable bool) {
	have, ready := linkFlags(false, executable)
	e, ok := s.lookup(d, false)
	if !ok || e.flags&have == 0 {
		return
	}
	s.flag(d, 0, have|ready)
	os.Remove(s.linkPath(d, false, executable))
	s.release(fileBytes(d.Size()))
}
