package reapi

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// Input is a file or directory here, and where the command finds it.
type Input struct {
	Local  string
	Remote string // relative, with slashes; "." is the input root itself
}

// ParseInput reads "path" or "path=remote path".
func ParseInput(s string) (Input, error) {
	local, remote, named := strings.Cut(s, "=")
	if !named {
		remote = filepath.ToSlash(filepath.Clean(local))
	}
	in := Input{Local: local, Remote: path.Clean(remote)}
	if local == "" {
		return Input{}, fmt.Errorf("input %q names no file", s)
	}
	if remote == "" || path.IsAbs(in.Remote) || in.Remote == ".." || strings.HasPrefix(in.Remote, "../") {
		return Input{}, fmt.Errorf("input %q is outside of the input root: say where it goes, as in --input %s=%s", s, local, filepath.Base(local))
	}
	return in, nil
}

// dir is a directory of the input root under construction.
type dir struct {
	dirs  map[string]*dir
	files map[string]*repb.FileNode
	links map[string]string
}

func newDir() *dir {
	return &dir{dirs: map[string]*dir{}, files: map[string]*repb.FileNode{}, links: map[string]string{}}
}

// Tree is an input root, ready to be uploaded.
type Tree struct {
	Root    digest.Digest
	Sources []Source // of the files and of the directories
	Files   int
}

// BuildTree reads the inputs and makes an input root of them.
func (c *Client) BuildTree(ctx context.Context, inputs []Input) (*Tree, error) {
	root, t := newDir(), &Tree{}
	for _, in := range inputs {
		if err := c.add(ctx, t, root, in); err != nil {
			return nil, fmt.Errorf("input %s: %w", in.Local, err)
		}
	}
	var err error
	t.Root, err = c.seal(t, root)
	return t, err
}

// add puts one input into the tree. The named path itself is followed when it
// is a symbolic link; those below it stay links.
func (c *Client) add(ctx context.Context, t *Tree, root *dir, in Input) error {
	local, err := filepath.EvalSymlinks(in.Local)
	if err != nil {
		return err
	}
	return filepath.WalkDir(local, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rel, err := filepath.Rel(local, p)
		if err != nil {
			return err
		}
		return c.addOne(t, root, p, path.Join(in.Remote, filepath.ToSlash(rel)), e)
	})
}

func (c *Client) addOne(t *Tree, root *dir, local, remote string, e fs.DirEntry) error {
	if remote == "." {
		if !e.IsDir() {
			return fmt.Errorf("%s is no directory, and cannot be the input root", local)
		}
		return nil
	}
	parent, err := root.sub(path.Dir(remote))
	if err != nil {
		return err
	}
	name := path.Base(remote)
	if e.IsDir() {
		_, err := parent.sub(name)
		return err
	}
	if parent.has(name) {
		return fmt.Errorf("another input is at %s already", remote)
	}
	switch e.Type() {
	case 0:
		info, err := e.Info()
		if err != nil {
			return err
		}
		src, err := c.FromFile(local)
		if err != nil {
			return err
		}
		if !utf8.ValidString(name) {
			return fmt.Errorf("input %q: the API carries only names that are UTF-8", local)
		}
		parent.files[name] = &repb.FileNode{Name: name, Digest: toProto(src.Digest), IsExecutable: info.Mode()&0o111 != 0}
		t.Sources = append(t.Sources, src)
		t.Files++
		return nil
	case fs.ModeSymlink:
		target, err := os.Readlink(local)
		parent.links[name] = target
		return err
	}
	return fmt.Errorf("%s is neither file, directory nor symbolic link", local)
}

func (d *dir) has(name string) bool {
	_, f := d.files[name]
	_, l := d.links[name]
	return f || l || d.dirs[name] != nil
}

// sub finds or makes the directory p below d.
func (d *dir) sub(p string) (*dir, error) {
	if p == "." {
		return d, nil
	}
	for name := range strings.SplitSeq(p, "/") {
		if d.dirs[name] == nil {
			if d.has(name) {
				return nil, fmt.Errorf("another input is at %s already, and is no directory", p)
			}
			d.dirs[name] = newDir()
		}
		d = d.dirs[name]
	}
	return d, nil
}

// seal names a directory, and adds it and those below it to the sources.
func (c *Client) seal(t *Tree, d *dir) (digest.Digest, error) {
	msg := &repb.Directory{}
	for _, name := range slices.Sorted(maps.Keys(d.dirs)) {
		sub, err := c.seal(t, d.dirs[name])
		if err != nil {
			return digest.Digest{}, err
		}
		msg.Directories = append(msg.Directories, &repb.DirectoryNode{Name: name, Digest: toProto(sub)})
	}
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		msg.Files = append(msg.Files, d.files[name])
	}
	for _, name := range slices.Sorted(maps.Keys(d.links)) {
		msg.Symlinks = append(msg.Symlinks, &repb.SymlinkNode{Name: name, Target: d.links[name]})
	}
	src, err := c.marshal(msg)
	if err != nil {
		return digest.Digest{}, err
	}
	t.Sources = append(t.Sources, src)
	return src.Digest, nil
}

// marshal makes a blob of a message, always the same for the same message.
func (c *Client) marshal(m proto.Message) (Source, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return c.FromBytes(b), err
}
