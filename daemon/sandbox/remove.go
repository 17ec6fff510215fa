package sandbox

import (
	"errors"
	"fmt"
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
	dir string // where deep subtrees are moved to
	seq atomic.Uint64
}

// next names something in the remover's directory.
func (r *remover) next(suffix string) string {
	return r.dir + "/" + strconv.FormatUint(r.seq.Add(1), 36) + suffix
}

// remove deletes path, a tree in the remover's directory or elsewhere on its
// file system.
func (r *remover) remove(path string) error {
	work := []string{path}
	for len(work) > 0 {
		p := work[len(work)-1]
		work = work[:len(work)-1]
		deep, err := r.removeShallow(p)
		if err != nil {
			return err
		}
		work = append(work, deep...)
	}
	return nil
}

// removeShallow deletes a tree down to maxDepth. What lay deeper it has moved
// to the paths that it returns.
func (r *remover) removeShallow(path string) (deep []string, err error) {
	err = unix.Unlink(path)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err := unix.Rmdir(path); err == nil {
		return nil, nil
	}
	if err := r.empty(unix.AT_FDCWD, path, 0, &deep); err != nil {
		return nil, fmt.Errorf("empty %s: %w", path, err)
	}
	if err := unix.Rmdir(path); err != nil {
		return nil, &os.PathError{Op: "rmdir", Path: path, Err: err}
	}
	return deep, nil
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

func (r *remover) empty(at int, name string, depth int, deep *[]string) error {
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
		names, _ := d.Readdirnames(1024)
		if len(names) == 0 {
			return nil
		}
		for _, n := range names {
			err := r.drop(fd, n, depth, deep)
			if errors.Is(err, unix.EACCES) && !chmodded {
				chmodded = true
				if err = unix.Fchmod(fd, 0o700); err == nil {
					err = r.drop(fd, n, depth, deep)
				}
			}
			if err != nil {
				return err
			}
		}
	}
}

// drop deletes one entry of the directory at.
func (r *remover) drop(at int, name string, depth int, deep *[]string) error {
	err := unix.Unlinkat(at, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	if unix.Unlinkat(at, name, unix.AT_REMOVEDIR) == nil {
		return nil
	}
	if depth+1 >= maxDepth {
		to := r.next("d")
		if err := unix.Renameat(at, name, unix.AT_FDCWD, to); err != nil {
			return err
		}
		*deep = append(*deep, to)
		return nil
	}
	if err := r.empty(at, name, depth+1, deep); err != nil {
		return err
	}
	return unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
}
