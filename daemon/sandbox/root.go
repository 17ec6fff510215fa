package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// Properties are what a client may ask for beyond a file's bytes and its x bit.
type Properties struct {
	Mtime   time.Time // zero: not asked for
	Mode    uint32    // permission bits
	HasMode bool
}

func (p Properties) none() bool { return p.Mtime.IsZero() && !p.HasMode }

// Tree is a directory of inputs. Its names have been checked; equal
// directories may be the same Tree.
type Tree struct {
	Files      []File
	Symlinks   []Symlink
	Dirs       []Subtree
	Properties Properties
}

// File is an input file.
type File struct {
	Name       string
	Digest     digest.Digest
	Executable bool
	Properties Properties
}

// Symlink is an input symlink, whatever its target.
type Symlink struct {
	Name, Target string
	Properties   Properties
}

// Subtree is a directory in a Tree.
type Subtree struct {
	Name string
	Tree *Tree
}

// InputError says that inputs cannot be laid out as the client described them.
type InputError struct{ Text string }

func (e *InputError) Error() string { return e.Text }

// The bounds of an input root. A tree of few distinct directories can stand
// for one of any size.
const (
	maxInputs    = 1 << 20
	maxInputPath = 3500 // PATH_MAX less room for the exec root's own path
)

// Plan is a Tree checked and unfolded.
type Plan struct {
	dirs  []plannedDir // parents first
	nodes int
}

type plannedDir struct {
	path string // "" or "/a/b"
	tree *Tree
}

// NewPlan unfolds t.
func NewPlan(t *Tree) (*Plan, error) {
	p := &Plan{dirs: []plannedDir{{"", t}}}
	for i := 0; i < len(p.dirs); i++ {
		d := p.dirs[i]
		p.nodes += 1 + len(d.tree.Files) + len(d.tree.Symlinks)
		if p.nodes+len(d.tree.Dirs) > maxInputs {
			return nil, &InputError{fmt.Sprintf("the input root has more than %d files and directories", maxInputs)}
		}
		if len(d.path) > maxInputPath {
			return nil, &InputError{fmt.Sprintf("an input path has more than %d bytes: %.80q...", maxInputPath, d.path[1:])}
		}
		for _, s := range d.tree.Dirs {
			p.dirs = append(p.dirs, plannedDir{d.path + "/" + s.Name, s.Tree})
		}
	}
	return p, nil
}

// Digests are the blobs that the files are made of, each distinct directory's
// once; the empty one is not among them.
func (p *Plan) Digests() []digest.Digest {
	ds := make([]digest.Digest, 0, p.nodes-len(p.dirs))
	seen := make(map[*Tree]bool, len(p.dirs))
	for _, d := range p.dirs {
		if seen[d.tree] {
			continue
		}
		seen[d.tree] = true
		for i := range d.tree.Files {
			if !d.tree.Files[i].Digest.IsEmpty() {
				ds = append(ds, d.tree.Files[i].Digest)
			}
		}
	}
	return ds
}

// Source is where input files come from: the disk of this node.
type Source interface {
	// Link makes dst a hard link to a file with the blob's bytes, which is
	// owned by the daemon and not writable. The blob may be not found.
	Link(ctx context.Context, d digest.Digest, executable bool, dst string) error
	// Get reads the blob from off.
	Get(ctx context.Context, d digest.Digest, off int64) (io.ReadCloser, error)
}

// linkers is how many links are made at a time: the kernel serialises those
// in one directory, and the rest of the node has work to do too.
const linkers = 4

// BuildRoot makes the exec root: the plan's tree, and the directories in need
// (relative to the root, without ".."), which are made where they are missing.
// All directories are the action's own; files are links, read-only for it.
func (e *Executor) BuildRoot(ctx context.Context, p *Plan, src Source, need []string) error {
	if err := e.discardRoot(); err != nil {
		return err
	}
	e.rooted = true
	root := e.Root()
	for _, d := range p.dirs {
		if err := e.mkdirat(unix.AT_FDCWD, root+d.path); err != nil {
			return fmt.Errorf("make an input directory: %w", err)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(linkers)
	for _, d := range p.dirs {
		if len(d.tree.Files)+len(d.tree.Symlinks) == 0 {
			continue
		}
		if len(p.dirs) == 1 {
			if err := e.fill(ctx, src, root, d.tree); err != nil {
				return err
			}
			continue
		}
		g.Go(func() error { return e.fill(gctx, src, root+d.path, d.tree) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := e.makeNeeded(need); err != nil {
		return err
	}
	for _, v := range slices.Backward(p.dirs) {
		if d := v; !d.tree.Properties.none() {
			if err := apply(root+d.path, d.tree.Properties); err != nil {
				return err
			}
		}
	}
	if !e.own {
		return e.remember(p)
	}
	return nil
}

// fill makes a directory's files and symlinks.
func (e *Executor) fill(ctx context.Context, src Source, dir string, t *Tree) error {
	for i := range t.Files {
		f := &t.Files[i]
		dst := dir + "/" + f.Name
		var err error
		switch {
		case !f.Properties.none():
			err = e.copyInput(ctx, src, f, dst)
		case f.Digest.IsEmpty():
			err = emptyFile(dst, f.Executable)
		default:
			err = src.Link(ctx, f.Digest, f.Executable, dst)
		}
		if err != nil {
			return fmt.Errorf("input %s: %w", f.Name, err)
		}
	}
	for _, l := range t.Symlinks {
		dst := dir + "/" + l.Name
		if err := unix.Symlink(l.Target, dst); err != nil {
			return &os.PathError{Op: "symlink", Path: dst, Err: err}
		}
		if e.own {
			if err := unix.Lchown(dst, e.uid, e.uid); err != nil {
				return &os.PathError{Op: "chown", Path: dst, Err: err}
			}
		}
		if !l.Properties.Mtime.IsZero() {
			if err := apply(dst, Properties{Mtime: l.Properties.Mtime}); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

func inputMode(executable bool) os.FileMode {
	if executable {
		return 0o555
	}
	return 0o444
}

func emptyFile(dst string, executable bool) error {
	f, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, inputMode(executable))
	if err != nil {
		return err
	}
	if err := f.Chmod(inputMode(executable)); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// copyInput makes an input with properties: links share theirs.
func (e *Executor) copyInput(ctx context.Context, src Source, f *File, dst string) error {
	r, err := src.Get(ctx, f.Digest, 0)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	if err == nil && e.own {
		err = w.Chown(e.uid, e.uid)
	}
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	p := f.Properties
	if !p.HasMode {
		p.Mode, p.HasMode = uint32(inputMode(f.Executable)), true
	} else if f.Executable {
		p.Mode |= 0o111
	}
	return apply(dst, p)
}

// apply sets properties of something that no action can reach yet.
func apply(path string, p Properties) error {
	if p.HasMode {
		if err := unix.Chmod(path, p.Mode&0o777); err != nil {
			return &os.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	if !p.Mtime.IsZero() {
		t, err := unix.TimeToTimespec(p.Mtime)
		if err != nil {
			return &InputError{fmt.Sprintf("mtime %v is out of range", p.Mtime)}
		}
		ts := []unix.Timespec{t, t}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "utimes", Path: path, Err: err}
		}
	}
	return nil
}

// discardRoot removes the root, if there is one.
func (e *Executor) discardRoot() error {
	if !e.rooted {
		return nil
	}
	e.linked = nil
	to := e.sb.trash.next("")
	if err := os.Rename(e.Root(), to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	e.rooted = false
	e.sb.doom(doomed{path: to})
	return nil
}

// makeDir makes the executor's directory, which its uid alone may pass.
func (e *Executor) makeDir() error {
	if err := os.Mkdir(e.dir, 0o700); err != nil {
		return err
	}
	if !e.own {
		return nil
	}
	if err := os.Chown(e.dir, os.Geteuid(), e.uid); err != nil {
		return err
	}
	return os.Chmod(e.dir, 0o710)
}
