package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxDepth is how deep a tree is walked or removed by recursion, which holds a
// descriptor per level; what lies deeper is moved up first.
const maxDepth = 128

// remover deletes directory trees that actions left, whatever they made of
// them. Its directory is on the same file system as the trees.
type remover struct {
	dir    string // where deep subtrees are moved to
	seq    atomic.Uint64
	spares spares
}

// next names something in the remover's directory.
func (r *remover) next(suffix string) string {
	return r.dir + "/" + strconv.FormatUint(r.seq.Add(1), 36) + suffix
}

// remove deletes path, a tree in the remover's directory or elsewhere on its
// file system. Directories are kept as spares if no process can have them open.
func (r *remover) remove(path string, unused bool) error {
	work := []string{path}
	for len(work) > 0 {
		p := work[len(work)-1]
		work = work[:len(work)-1]
		t := removal{remover: r, unused: unused}
		if err := t.removeShallow(p); err != nil {
			return err
		}
		work = append(work, t.deep...)
	}
	return nil
}

// removal is of one tree, down to maxDepth.
type removal struct {
	*remover
	unused bool
	deep   []string // what lay deeper, moved to here
}

func (t *removal) removeShallow(path string) error {
	err := unix.Unlink(path)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err := t.dropDir(unix.AT_FDCWD, path, 0); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// dropEmpty deletes or keeps the directory at path, which no process can have
// open, if nothing is in it.
func (r *remover) dropEmpty(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var entries [128]byte // room for more than "." and ".."
	for read := 0; ; {
		n, err := unix.Getdents(fd, entries[:])
		if err != nil {
			return false
		}
		if n == 0 {
			break
		}
		if read += n; read > 2*24 {
			return false
		}
	}
	t := removal{remover: r, unused: true}
	return t.dispose(fd, unix.AT_FDCWD, path) == nil
}

// dispose keeps or deletes an empty directory that is open as fd.
func (t *removal) dispose(fd, at int, name string) error {
	if t.unused && t.spares.keep(fd, at, name) {
		return nil
	}
	return unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
}

func openDir(at int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(at, name, flags, 0)
	if errors.Is(err, unix.EACCES) {
		// An action that shares our uid may have taken our rights away.
		if err := unix.Fchmodat(at, name, 0o700, 0); err != nil {
			return -1, err
		}
		fd, err = unix.Openat(at, name, flags, 0)
	}
	return fd, err
}

// dropDir deletes or keeps a directory, and deletes what is in it.
func (t *removal) dropDir(at int, name string, depth int) error {
	fd, err := openDir(at, name)
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(fd), name)
	defer d.Close()
	chmodded := false
	for {
		// From the start again after each batch: entries vanish underneath.
		if _, err := d.Seek(0, 0); err != nil {
			return err
		}
		names, err := d.Readdirnames(1024)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if len(names) == 0 {
			return t.dispose(fd, at, name)
		}
		for _, n := range names {
			err := t.drop(fd, n, depth)
			if errors.Is(err, unix.EACCES) && !chmodded {
				chmodded = true
				if err = unix.Fchmod(fd, 0o700); err == nil {
					err = t.drop(fd, n, depth)
				}
			}
			if err != nil {
				return err
			}
		}
	}
}

// drop deletes one entry of the directory at.
func (t *removal) drop(at int, name string, depth int) error {
	err := unix.Unlinkat(at, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	if depth+1 >= maxDepth {
		to := t.next("d")
		if err := unix.Renameat(at, name, unix.AT_FDCWD, to); err != nil {
			return err
		}
		t.deep = append(t.deep, to)
		return nil
	}
	return t.dropDir(at, name, depth+1)
}
