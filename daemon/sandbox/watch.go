package sandbox

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watchPeriod is how often a running action's files are looked at. At 2 GB/s
// an action writes 200 MB between two looks.
const watchPeriod = 100 * time.Millisecond

// watch looks after what one running action writes. The kernel can do it only
// with quotas, which few hosts have: so streams are cut, and the root is
// walked from time to time, sooner when the file system's free space shrinks.
type watch struct {
	e    *Executor
	next time.Time // of the next walk, whatever happens
	free int64     // when last walked
}

// walkShare bounds the part of its time that an action's root is walked.
const walkShare = 20

func (w *watch) look() error {
	o, l := &w.e.sb.o, &w.e.sb.o.Limits
	for i := range w.e.out {
		if err := w.e.out[i].limit(l.MaxStream); err != nil {
			w.e.sb.log.Warn("stream cannot be cut", "err", err)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(w.e.sb.dir, &fs); err != nil {
		return nil // nothing is known: nobody is killed for that
	}
	free := int64(fs.Bavail) * fs.Bsize
	now := time.Now()
	scarce := free < l.Reserve
	if now.Before(w.next) && !scarce && w.free-free < l.MaxBytes/8 {
		return nil
	}
	use := usage(w.e.Root(), uint32(w.e.uid), w.e.own)
	w.free, w.next = free, now.Add(max(time.Second, walkShare*time.Since(now)))
	var text string
	switch {
	case use.bytes > l.MaxBytes:
		text = fmt.Sprintf("the action wrote %d bytes, its budget on node %s is %d", use.bytes, o.Node, l.MaxBytes)
	case use.inodes > l.MaxInodes:
		text = fmt.Sprintf("the action made %d files, its budget on node %s is %d", use.inodes, o.Node, l.MaxInodes)
	case scarce && use.bytes > l.Reserve/int64(o.Executors):
		text = fmt.Sprintf("the action wrote %d bytes when node %s had less than its reserve of %d bytes left", use.bytes, o.Node, l.Reserve)
	default:
		return nil
	}
	w.e.sb.metrics.budget.Inc()
	return &BudgetError{text}
}

type used struct{ bytes, inodes int64 }

// usage adds up what an action made below a directory: not the inputs, which
// belong to the daemon or, where it shares its uid, have another link.
func usage(dir string, uid uint32, own bool) used {
	var u used
	fd, err := openDirAt(unix.AT_FDCWD, dir)
	if err != nil {
		return u
	}
	u.walk(fd, dir, uid, own, 0)
	return u
}

func openDirAt(at int, name string) (int, error) {
	return unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// walk counts what it can reach: entries come and go while it does.
func (u *used) walk(fd int, name string, uid uint32, own bool, depth int) {
	d := os.NewFile(uintptr(fd), name)
	defer d.Close()
	for {
		names, err := d.Readdirnames(1024)
		for _, n := range names {
			var st unix.Stat_t
			if unix.Fstatat(fd, n, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue
			}
			dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
			if own && st.Uid != uid || !own && !dir && st.Nlink > 1 {
				continue
			}
			u.inodes++
			u.bytes += st.Blocks * 512
			if dir && depth < maxDepth {
				if sub, err := openDirAt(fd, n); err == nil {
					u.walk(sub, n, uid, own, depth+1)
				}
			}
		}
		if err != nil || len(names) == 0 {
			return
		}
	}
}
