package action

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/sandbox"
)

// place enters the output o, found where w was wanted, into the result.
func (c *command) place(ctx context.Context, res *repb.ActionResult, w output, o sandbox.Output, fn digest.Function, u *uploads) error {
	found := o.Kind
	if o.Kind == sandbox.SymbolicLink {
		found = o.TargetKind
	}
	// REAPI: what an old client listed as a file must be none of a directory,
	// nor the other way round. A link that leads nowhere is either.
	if w.kind != sandbox.Missing && found != sandbox.Missing && found != w.kind {
		names := map[sandbox.Kind]string{sandbox.RegularFile: "file", sandbox.Directory: "directory"}
		return &userError{codes.FailedPrecondition, fmt.Sprintf("output %q is a %s, not a %s", w.path, names[found], names[w.kind])}
	}
	switch o.Kind {
	case sandbox.RegularFile:
		res.OutputFiles = append(res.OutputFiles, &repb.OutputFile{
			Path: w.path, Digest: toProto(o.Digest), IsExecutable: o.Executable, NodeProperties: c.properties(&o),
		})
	case sandbox.SymbolicLink:
		l := &repb.OutputSymlink{Path: w.path, Target: o.Target, NodeProperties: c.properties(&o)}
		if c.paths {
			res.OutputSymlinks = append(res.OutputSymlinks, l)
		}
		// For clients of before REAPI 2.1, too.
		if w.kind == sandbox.Directory || found == sandbox.Directory {
			res.OutputDirectorySymlinks = append(res.OutputDirectorySymlinks, l)
		} else {
			res.OutputFileSymlinks = append(res.OutputFileSymlinks, l)
		}
	case sandbox.Directory:
		d, err := c.directory(ctx, w, o, fn, u)
		if err != nil {
			return err
		}
		res.OutputDirectories = append(res.OutputDirectories, d)
	}
	return nil
}

// size bounds what place adds to the result.
func (w output) size(o *sandbox.Output, fn digest.Function) int {
	const fields = 100 // properties, and what goes round everything
	switch o.Kind {
	case sandbox.Missing:
		return 0
	case sandbox.SymbolicLink:
		return 2 * (len(w.path) + len(o.Target) + fields) // it is listed twice
	}
	return len(w.path) + 2*(2*fn.HashSize()) + fields // a directory may have two digests
}

// properties are what the client asked for of a node's.
func (c *command) properties(o *sandbox.Output) *repb.NodeProperties {
	if !c.mtime && !c.mode {
		return nil
	}
	p := &repb.NodeProperties{}
	if c.mtime {
		p.Mtime = timestamppb.New(o.Mtime)
	}
	if c.mode {
		p.UnixMode = wrapperspb.UInt32(o.Mode)
	}
	return p
}

// treeBuilder turns an output directory into messages.
type treeBuilder struct {
	c     *command
	fn    digest.Function
	seen  map[digest.Digest]bool
	order []message // children before their parents, each once
}

type message struct {
	digest digest.Digest
	data   []byte
}

func (c *command) directory(ctx context.Context, w output, o sandbox.Output, fn digest.Function, u *uploads) (*repb.OutputDirectory, error) {
	b := treeBuilder{c: c, fn: fn, seen: make(map[digest.Digest]bool)}
	root, err := b.add(&o)
	if err != nil {
		return nil, err
	}
	out := &repb.OutputDirectory{Path: w.path}
	if c.format != repb.Command_DIRECTORY_ONLY {
		tree := b.tree()
		d := digest.Of(fn, tree)
		if err := u.Small(ctx, d, tree); err != nil {
			return nil, err
		}
		out.TreeDigest, out.IsTopologicallySorted = toProto(d), true
	}
	if c.format == repb.Command_DIRECTORY_ONLY || c.format == repb.Command_TREE_AND_DIRECTORY {
		for _, m := range b.order {
			if err := u.Small(ctx, m.digest, m.data); err != nil {
				return nil, err
			}
		}
		out.RootDirectoryDigest = toProto(root)
	}
	return out, nil
}

// add makes the Directory of o and of all below it. Entries come sorted, so
// equal directories make equal messages.
func (b *treeBuilder) add(o *sandbox.Output) (digest.Digest, error) {
	m := &repb.Directory{NodeProperties: b.c.properties(o)}
	for i := range o.Entries {
		switch e := &o.Entries[i]; e.Kind {
		case sandbox.RegularFile:
			m.Files = append(m.Files, &repb.FileNode{
				Name: e.Name, Digest: toProto(e.Digest), IsExecutable: e.Executable, NodeProperties: b.c.properties(e),
			})
		case sandbox.SymbolicLink:
			m.Symlinks = append(m.Symlinks, &repb.SymlinkNode{Name: e.Name, Target: e.Target, NodeProperties: b.c.properties(e)})
		case sandbox.Directory:
			d, err := b.add(e)
			if err != nil {
				return d, err
			}
			m.Directories = append(m.Directories, &repb.DirectoryNode{Name: e.Name, Digest: toProto(d)})
		}
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return digest.Digest{}, fmt.Errorf("output directory %q: %w", o.Name, err)
	}
	d := digest.Of(b.fn, data)
	if !b.seen[d] {
		b.seen[d] = true
		b.order = append(b.order, message{d, data})
	}
	return d, nil
}

// tree is the Tree message of what was added, its root first and each
// directory before those in it: the reverse of the order in which they were
// finished.
func (b *treeBuilder) tree() []byte {
	var out []byte
	for i, m := range slices.Backward(b.order) {
		tag := byte(2<<3 | 2) // Tree.children
		if i == len(b.order)-1 {
			tag = 1<<3 | 2 // Tree.root
		}
		out = append(out, tag)
		out = binary.AppendUvarint(out, uint64(len(m.data)))
		out = append(out, m.data...)
	}
	return out
}
