package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sort"
	"strconv"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// Kind is what an output turned out to be.
type Kind uint8

// The kinds of outputs.
const (
	Missing Kind = iota
	RegularFile
	Directory
	SymbolicLink
)

// Output is something that an action left at a path, or in a directory.
type Output struct {
	Name       string // in a directory; "" at the top
	Kind       Kind
	Digest     digest.Digest // of a file
	Executable bool          // of a file: any x bit is set
	Target     string        // of a symlink
	TargetKind Kind          // of a symlink at the top: Missing, too, when it leads out
	Mtime      time.Time
	Mode       uint32
	Entries    []Output // of a directory, sorted by name
}

// Sink takes the bytes of outputs. It may be told the same file twice.
type Sink interface {
	// Small takes data.
	Small(ctx context.Context, d digest.Digest, data []byte) error
	// Large takes note of a file that stays at path until the Remains are
	// closed. The file belongs to the daemon and has one link: it may be
	// moved away once all outputs have been gathered.
	Large(ctx context.Context, d digest.Digest, path string) error
}

// OutputError says that an output is nothing that can be returned.
type OutputError struct{ Text string }

func (e *OutputError) Error() string { return e.Text }

// maxOutputs bounds what one action may return.
const maxOutputs = 1 << 20

// Gather walks an action's outputs. It is for one goroutine.
type Gather struct {
	r     *Remains
	fn    digest.Function
	sink  Sink
	count int
	buf   []byte
}

// Gather starts to gather outputs, hashing with fn.
func (r *Remains) Gather(fn digest.Function, sink Sink) *Gather {
	return &Gather{r: r, fn: fn, sink: sink}
}

// Path gathers what is at a path below the root, "" being the root itself.
func (g *Gather) Path(ctx context.Context, name string) (Output, error) {
	dir, base := path.Split(name)
	if base == "" { // the root itself
		dir, base = "", "."
	}
	at, err := beneath(g.r.fd, path.Clean("./"+dir), unix.O_PATH|unix.O_DIRECTORY)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return Output{}, nil
	case errors.Is(err, unix.EACCES):
		return Output{}, &OutputError{fmt.Sprintf("output %q lies in a directory that may not be entered", name)}
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ELOOP):
		return Output{}, &OutputError{fmt.Sprintf("output %q leads out of the input root through a symbolic link", name)}
	case err != nil:
		return Output{}, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(at)
	o, err := g.entry(ctx, at, base, name, 0)
	if err == nil && o.Kind == SymbolicLink {
		o.TargetKind = g.targetKind(name)
	}
	o.Name = ""
	return o, err
}

// targetKind looks through a symlink, as long as it stays in the root.
func (g *Gather) targetKind(name string) Kind {
	fd, err := beneath(g.r.fd, name, unix.O_PATH)
	if err != nil {
		return Missing
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return Missing
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return RegularFile
	case unix.S_IFDIR:
		return Directory
	}
	return Missing
}

var typeNames = map[uint32]string{
	unix.S_IFSOCK: "a socket", unix.S_IFIFO: "a FIFO", unix.S_IFBLK: "a block device", unix.S_IFCHR: "a character device",
}

// entry gathers the entry base of the directory at; full is its path for
// messages.
func (g *Gather) entry(ctx context.Context, at int, base, full string, depth int) (Output, error) {
	var st unix.Stat_t
	err := unix.Fstatat(at, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG) {
		return Output{}, nil
	}
	if err != nil {
		return Output{}, &os.PathError{Op: "stat", Path: full, Err: err}
	}
	if g.count++; g.count > maxOutputs {
		return Output{}, &BudgetError{fmt.Sprintf("the outputs have more than %d files and directories", maxOutputs)}
	}
	if !utf8.ValidString(base) {
		return Output{}, &OutputError{fmt.Sprintf("the name of output %q is not UTF-8", full)}
	}
	o := Output{Name: base, Mtime: time.Unix(st.Mtim.Unix()), Mode: st.Mode & 0o7777}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		o.Kind = RegularFile
		o.Executable = st.Mode&0o111 != 0
		o.Digest, err = g.file(ctx, at, base, full)
	case unix.S_IFDIR:
		o.Kind = Directory
		o.Entries, err = g.directory(ctx, at, base, full, depth)
	case unix.S_IFLNK:
		o.Kind = SymbolicLink
		if o.Target, err = readLink(at, base, st.Size); err == nil && !utf8.ValidString(o.Target) {
			err = &OutputError{fmt.Sprintf("the target of output symlink %q is not UTF-8", full)}
		}
	default:
		what := typeNames[st.Mode&unix.S_IFMT]
		err = &OutputError{fmt.Sprintf("output %q is %s, not a file, directory or symbolic link", full, what)}
	}
	return o, err
}

func readLink(at int, base string, size int64) (string, error) {
	b := make([]byte, max(size, 255)+1)
	n, err := unix.Readlinkat(at, base, b)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: base, Err: err}
	}
	return string(b[:n]), nil
}

func (g *Gather) directory(ctx context.Context, at int, base, full string, depth int) ([]Output, error) {
	if depth >= maxDepth {
		return nil, &OutputError{fmt.Sprintf("output %.200q is more than %d directories deep", full, maxDepth)}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fd, err := openDir(at, base)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: full, Err: err}
	}
	d := os.NewFile(uintptr(fd), full)
	defer d.Close()
	var names []string
	for len(names) <= maxOutputs {
		more, err := d.Readdirnames(4096)
		names = append(names, more...)
		if errors.Is(err, io.EOF) || err == nil && len(more) == 0 {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	sort.Strings(names)
	entries := make([]Output, 0, len(names))
	for _, n := range names {
		o, err := g.entry(ctx, fd, n, path.Join(full, n), depth+1)
		if err != nil {
			return nil, err
		}
		if o.Kind != Missing {
			entries = append(entries, o)
		}
	}
	return entries, nil
}

// file reads a file once: hashes it, and hands it on.
func (g *Gather) file(ctx context.Context, at int, base, full string) (digest.Digest, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err := unix.Openat(at, base, flags, 0)
	if errors.Is(err, unix.EACCES) { // shares our uid, and has no r bit
		if err = unix.Fchmodat(at, base, 0o600, 0); err == nil {
			fd, err = unix.Openat(at, base, flags, 0)
		}
	}
	if err != nil {
		return digest.Digest{}, &os.PathError{Op: "open", Path: full, Err: err}
	}
	f := os.NewFile(uintptr(fd), full)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return digest.Digest{}, &os.PathError{Op: "stat", Path: full, Err: err}
	}
	switch o := &g.r.e.sb.o; {
	case st.Size == 0:
		return digest.Empty(g.fn), nil
	case st.Size <= SmallSize:
		data := make([]byte, st.Size)
		if _, err := io.ReadFull(f, data); err != nil {
			return digest.Digest{}, fmt.Errorf("read output %s: %w", full, err)
		}
		d := digest.Of(g.fn, data)
		return d, g.sink.Small(ctx, d, data)
	case st.Size > o.Limits.MaxBytes:
		return digest.Digest{}, &BudgetError{fmt.Sprintf("output %q has %d bytes, the budget on node %s is %d", full, st.Size, o.Node, o.Limits.MaxBytes)}
	}
	return g.large(ctx, f, at, base, &st)
}

// large hashes a file that will be taken as it is, if it is the action's own
// and nobody can write to it any more, or else copied.
func (g *Gather) large(ctx context.Context, f *os.File, at int, base string, st *unix.Stat_t) (digest.Digest, error) {
	h := digest.NewHasher(g.fn)
	var dst io.Writer = h
	var kept string
	if g.takeable(f, st) {
		dir, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(at))
		if err != nil {
			return digest.Digest{}, err
		}
		kept = dir + "/" + base
	} else {
		kept = g.r.e.sb.trash.next(".copy")
		w, err := os.OpenFile(kept, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return digest.Digest{}, err
		}
		defer w.Close()
		g.r.copies = append(g.r.copies, kept)
		dst = io.MultiWriter(h, w)
	}
	if g.buf == nil {
		g.buf = make([]byte, 256<<10)
	}
	if _, err := io.CopyBuffer(dst, readerOf{ctx, f}, g.buf); err != nil {
		return digest.Digest{}, fmt.Errorf("read output %s: %w", base, err)
	}
	d := h.Digest()
	return d, g.sink.Large(ctx, d, kept)
}

// takeable makes a file the daemon's own if nobody but the action has had it.
func (g *Gather) takeable(f *os.File, st *unix.Stat_t) bool {
	if st.Nlink != 1 || int(st.Uid) != g.r.e.uid {
		return false
	}
	if !g.r.e.own {
		return true
	}
	if f.Chown(os.Geteuid(), os.Getegid()) != nil || f.Chmod(os.FileMode(0o444|st.Mode&0o111)) != nil {
		return false
	}
	// A read lease is refused while anybody has the file open for writing: an
	// action may have passed it to a process that outlives it.
	fd := f.Fd()
	if _, err := unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		return !errors.Is(err, unix.EAGAIN)
	}
	_, _ = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK)
	return true
}

// readerOf reads until the context ends, without ReadFrom and WriteTo, which
// would go round CopyBuffer's buffer.
type readerOf struct {
	ctx context.Context
	f   *os.File
}

func (r readerOf) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.f.Read(p)
}
