package reapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// maxTree bounds the description of an output directory.
const maxTree = 256 << 20

// Copy writes an output that came inline, or else as a digest, to w.
func (c *Client) Copy(ctx context.Context, raw []byte, d *repb.Digest, w io.Writer) error {
	if len(raw) > 0 || d.GetSizeBytes() == 0 {
		_, err := w.Write(raw)
		return err
	}
	dg, err := c.fromProto(d)
	if err != nil {
		return err
	}
	return c.Read(ctx, dg, w)
}

// Fetch writes those outputs of a result that were asked for below root, and
// returns the ones that the command did not make. Nothing is written outside
// of root, whatever the server says.
func (c *Client) Fetch(ctx context.Context, r *repb.ActionResult, wanted []string, root *os.Root) (absent []string, err error) {
	left := map[string]bool{}
	for _, w := range wanted {
		left[path.Clean(w)] = true
	}
	take := func(p string) bool {
		ok := left[p]
		delete(left, p)
		return ok
	}
	for _, f := range r.OutputFiles {
		if take(f.Path) {
			if err := c.fetchFile(ctx, root, f.Path, f.Contents, f.Digest, f.IsExecutable); err != nil {
				return nil, fmt.Errorf("output %s: %w", f.Path, err)
			}
		}
	}
	for _, d := range r.OutputDirectories {
		if take(d.Path) {
			if err := c.fetchTree(ctx, root, d.Path, d.TreeDigest); err != nil {
				return nil, fmt.Errorf("output %s: %w", d.Path, err)
			}
		}
	}
	// Servers fill the new field, the two old ones, or all three.
	for _, ls := range [][]*repb.OutputSymlink{r.OutputSymlinks, r.OutputFileSymlinks, r.OutputDirectorySymlinks} {
		for _, l := range ls {
			if take(l.Path) {
				if err := link(root, l.Path, l.Target); err != nil {
					return nil, fmt.Errorf("output %s: %w", l.Path, err)
				}
			}
		}
	}
	for _, w := range wanted {
		if left[path.Clean(w)] {
			absent = append(absent, w)
		}
	}
	return absent, nil
}

// fetchFile writes a file beside its place and moves it there when it is whole.
func (c *Client) fetchFile(ctx context.Context, root *os.Root, p string, inline []byte, d *repb.Digest, executable bool) (err error) {
	if err := root.MkdirAll(path.Dir(p), 0o777); err != nil {
		return err
	}
	mode := fs.FileMode(0o666)
	if executable {
		mode = 0o777
	}
	part := p + ".remex-part"
	f, err := root.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 64<<10)
	err = errors.Join(c.Copy(ctx, inline, d, w), w.Flush(), f.Close())
	if err == nil {
		err = root.Rename(part, p)
	}
	if err != nil {
		_ = root.Remove(part)
	}
	return err
}

func link(root *os.Root, p, target string) error {
	if err := root.MkdirAll(path.Dir(p), 0o777); err != nil {
		return err
	}
	if info, err := root.Lstat(p); err == nil && !info.IsDir() {
		if err := root.Remove(p); err != nil {
			return err
		}
	}
	return root.Symlink(target, p)
}

// buffer takes no more than its limit.
type buffer struct {
	b     []byte
	limit int
}

func (b *buffer) Write(p []byte) (int, error) {
	if len(b.b)+len(p) > b.limit {
		return 0, fmt.Errorf("larger than %d bytes", b.limit)
	}
	b.b = append(b.b, p...)
	return len(p), nil
}

func (c *Client) fetchTree(ctx context.Context, root *os.Root, p string, d *repb.Digest) error {
	buf := buffer{limit: maxTree}
	if err := c.Copy(ctx, nil, d, &buf); err != nil {
		return err
	}
	var tree repb.Tree
	if err := proto.Unmarshal(buf.b, &tree); err != nil {
		return err
	}
	dirs := map[digest.Digest]*repb.Directory{}
	for _, child := range tree.Children {
		src, err := c.marshal(child)
		if err != nil {
			return err
		}
		dirs[src.Digest] = child
	}
	return c.fetchDir(ctx, root, p, tree.Root, dirs, 0)
}

// maxDepth bounds how deep an output directory may go. A tree cannot hold
// itself, as digests are of its content; but a deep one could fill the stack.
const maxDepth = 1000

func (c *Client) fetchDir(ctx context.Context, root *os.Root, p string, d *repb.Directory, dirs map[digest.Digest]*repb.Directory, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s: more than %d directories deep", p, maxDepth)
	}
	if err := root.MkdirAll(p, 0o777); err != nil {
		return err
	}
	for _, f := range d.GetFiles() {
		if err := checkName(f.Name); err != nil {
			return err
		}
		if err := c.fetchFile(ctx, root, path.Join(p, f.Name), nil, f.Digest, f.IsExecutable); err != nil {
			return err
		}
	}
	for _, l := range d.GetSymlinks() {
		if err := checkName(l.Name); err != nil {
			return err
		}
		if err := link(root, path.Join(p, l.Name), l.Target); err != nil {
			return err
		}
	}
	for _, sub := range d.GetDirectories() {
		if err := checkName(sub.Name); err != nil {
			return err
		}
		dg, err := c.fromProto(sub.Digest)
		if err != nil {
			return err
		}
		child := dirs[dg]
		if child == nil && !dg.IsEmpty() {
			return fmt.Errorf("%s: the tree does not hold %s", path.Join(p, sub.Name), dg)
		}
		if err := c.fetchDir(ctx, root, path.Join(p, sub.Name), child, dirs, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("the server names a file %q", name)
	}
	return nil
}
