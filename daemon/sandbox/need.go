package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// beneath opens what is at a path below the directory at. Symbolic links on
// the way are followed as long as they stay below it; no path leads out.
func beneath(at int, name string, flags int) (int, error) {
	if name == "" {
		name = "."
	}
	how := &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(at, name, how)
		// EAGAIN: something else was renamed while it looked.
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// makeNeeded makes directories that inputs, even symlinks, may stand in for.
func (e *Executor) makeNeeded(need []string) error {
	if len(need) == 0 {
		return nil
	}
	root, err := unix.Open(e.Root(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: e.Root(), Err: err}
	}
	defer unix.Close(root)
	last := ""
	for _, dir := range need {
		if dir == "" || dir == last {
			continue
		}
		last = dir
		if err := e.makeDirs(root, dir); err != nil {
			return err
		}
	}
	return nil
}

func (e *Executor) makeDirs(root int, dir string) error {
	fd, err := beneath(root, dir, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		return unix.Close(fd)
	}
	if errors.Is(err, unix.ENOENT) {
		if parent := path.Dir(dir); parent != "." {
			if err := e.makeDirs(root, parent); err != nil {
				return err
			}
		}
		err = e.makeLast(root, dir)
	}
	switch {
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ELOOP):
		return &InputError{fmt.Sprintf("directory %q leads out of the input root", dir)}
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENAMETOOLONG):
		return &InputError{fmt.Sprintf("directory %q cannot be made: %v", dir, err)}
	case err != nil:
		return fmt.Errorf("directory %q: %w", dir, err)
	}
	return nil
}

// makeLast makes a directory whose parent exists.
func (e *Executor) makeLast(root int, dir string) error {
	parent, name := path.Split(dir)
	at, err := beneath(root, strings.TrimSuffix(parent, "/"), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	return e.mkdirat(at, name)
}
