package sandbox

import (
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// maxSpares is how many empty directories are kept for each executor.
const maxSpares = 512

// spares are empty directories of actions past, to be used again. ext4 gives a
// new directory no inode that was freed in the last minutes and looks at all of
// those first: making and removing directories for each action would take
// longer the more actions there are.
type spares struct {
	dir   string
	gid   uint32 // of the daemon, which a new directory has where uids are shared
	fresh freshness
	mu    sync.Mutex
	seq   uint64
	of    map[uint32][]string // paths by owner; nil: none is kept
}

// freshness is what tells a directory that has been used from a new one.
type freshness struct {
	size  int64
	flags int // of the inode, as chattr(1) sets them; -1: there are none
	err   error
}

// freshnessOf looks at an open directory. One with extended attributes, which
// may be access rules for what is made in it, is never fresh.
func freshnessOf(fd int) (freshness, unix.Stat_t) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return freshness{err: err}, st
	}
	if n, err := unix.Flistxattr(fd, nil); n > 0 || err != nil && err != unix.ENOTSUP {
		return freshness{err: unix.EEXIST}, st
	}
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		flags = -1
	}
	return freshness{size: st.Size, flags: flags}, st
}

// open makes the directory that holds them and sees what a new one looks like.
func (s *spares) open(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	fd, err := openDir(unix.AT_FDCWD, dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if f, _ := freshnessOf(fd); f.err == nil {
		s.dir, s.gid, s.fresh, s.of = dir, uint32(os.Getegid()), f, make(map[uint32][]string)
	}
	return nil
}

// keep moves an empty directory, open as fd, away from where it is, if it is as
// a new one would be.
func (s *spares) keep(fd, at int, name string) bool {
	f, st := freshnessOf(fd)
	to, ok := s.room(st.Uid)
	if !ok || f != s.fresh || st.Gid != st.Uid && st.Gid != s.gid {
		return false
	}
	if st.Mode&0o7777 != 0o755 && unix.Fchmod(fd, 0o755) != nil {
		return false
	}
	if unix.Renameat(at, name, unix.AT_FDCWD, to) != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of[st.Uid] = append(s.of[st.Uid], to)
	return true
}

// room is a path for one more of an owner's.
func (s *spares) room(owner uint32) (path string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil || len(s.of[owner]) >= maxSpares {
		return "", false
	}
	s.seq++
	return s.dir + "/" + strconv.FormatUint(s.seq, 36), true
}

func (s *spares) take(owner int) (path string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	have := s.of[uint32(owner)]
	if len(have) == 0 {
		return "", false
	}
	path = have[len(have)-1]
	s.of[uint32(owner)] = have[:len(have)-1]
	return path, true
}

// close removes all of them. Nothing is kept or taken any more.
func (s *spares) close() {
	for _, have := range s.of {
		for _, path := range have {
			_ = unix.Rmdir(path)
		}
	}
	if s.of != nil {
		_ = unix.Rmdir(s.dir)
	}
}

// mkdirat makes a directory of the action's own.
func (e *Executor) mkdirat(at int, name string) error {
	if path, ok := e.sb.trash.spares.take(e.uid); ok {
		now := unix.Timespec{Nsec: unix.UTIME_NOW}
		err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{now, now}, 0)
		if err == nil {
			err = unix.Renameat2(unix.AT_FDCWD, path, at, name, unix.RENAME_NOREPLACE)
		}
		if err == nil {
			return nil
		}
		_ = unix.Rmdir(path)
	}
	if err := unix.Mkdirat(at, name, 0o755); err != nil {
		return &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	if e.own {
		if err := unix.Fchownat(at, name, e.uid, e.uid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "chown", Path: name, Err: err}
		}
	}
	if e.sb.umask != 0o022 {
		if err := unix.Fchmodat(at, name, 0o755, 0); err != nil {
			return &os.PathError{Op: "chmod", Path: name, Err: err}
		}
	}
	return nil
}
