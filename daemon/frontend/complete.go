package frontend

import (
	"context"
	"fmt"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

// maxTrees bounds the bytes of trees that are read for one result: enough for
// some 400,000 files. A result with more, or with more than a connection's share
// of the budget, is taken for a miss, which costs an execution and no memory.
const maxTrees = 32 << 20

// complete reports whether everything that r names is there, and marks it as
// used: a hit whose blobs are gone would break the build it was meant to help.
func (f *Frontend) complete(ctx context.Context, h *held, fn digest.Function, r *repb.ActionResult) (bool, error) {
	c := collector{dec: &decoder{fn: fn}}
	if err := c.result(r); err != nil {
		return false, nil //nolint:nilerr // a result that names no blobs properly cannot be whole
	}
	var trees, roots []digest.Digest
	var size int64
	for _, dir := range r.OutputDirectories {
		switch {
		case dir.TreeDigest != nil:
			d, err := c.dec.digest(dir.TreeDigest, "tree_digest")
			if err != nil {
				return false, nil //nolint:nilerr // as above
			}
			if size += min(d.Size(), maxTrees+1); size > min(maxTrees, f.answers.Share()) {
				return false, nil
			}
			trees = append(trees, d)
			c.directories = c.directories || dir.RootDirectoryDigest != nil
		case dir.RootDirectoryDigest != nil:
			d, err := c.dec.digest(dir.RootDirectoryDigest, "root_directory_digest")
			if err != nil {
				return false, nil //nolint:nilerr // as above
			}
			roots = append(roots, d)
		}
	}
	if ok, err := f.collectTrees(ctx, h, &c, trees, size); !ok || err != nil {
		return false, err
	}
	for _, root := range roots {
		if ok, err := f.collectDirectories(ctx, h, &c, root); !ok || err != nil {
			return false, err
		}
	}
	if len(c.found) == 0 {
		return true, nil
	}
	missing, err := f.store.Missing(ctx, unique(c.found))
	if err != nil {
		return false, fmt.Errorf("find what a result names: %w", err)
	}
	return len(missing) == 0, nil
}

func (f *Frontend) collectTrees(ctx context.Context, h *held, c *collector, trees []digest.Digest, size int64) (bool, error) {
	if len(trees) == 0 {
		return true, nil
	}
	release, err := f.beside(ctx, h, size)
	if err != nil {
		return false, err
	}
	defer release()
	for i, r := range f.readAll(ctx, trees) {
		if blob.IsNotFound(r.Err) {
			return false, nil
		}
		if r.Err != nil {
			return false, fmt.Errorf("read tree %s: %w", trees[i], r.Err)
		}
		tree := &repb.Tree{}
		if proto.Unmarshal(r.Data, tree) != nil {
			return false, nil
		}
		for _, dir := range append(tree.Children, tree.Root) {
			if c.directory(dir) != nil {
				return false, nil
			}
		}
	}
	return true, nil
}

// collectDirectories collects what lies under a root that was stored as a
// hierarchy, without a Tree.
func (f *Frontend) collectDirectories(ctx context.Context, h *held, c *collector, root digest.Digest) (bool, error) {
	release, err := f.beside(ctx, h, maxMessage)
	if err != nil {
		return false, err
	}
	defer release()
	whole := true
	err = f.walk(ctx, root, func(_ int, d digest.Digest, dir *repb.Directory) error {
		c.found = append(c.found, d)
		if dir == nil || c.directory(dir) != nil {
			whole = false
		}
		return nil
	})
	switch rpc.CodeOf(err) {
	case codes.InvalidArgument, codes.ResourceExhausted: // of the hierarchy, not of the call
		return false, nil
	}
	return whole, err
}

// collector gathers the digests that a result names.
type collector struct {
	dec         *decoder
	directories bool // whether Directory messages are wanted as blobs too
	found       []digest.Digest
}

func (c *collector) add(p *repb.Digest, field string) error {
	d, err := c.dec.digest(p, field)
	if err == nil {
		c.found = append(c.found, d)
	}
	return err
}

// addSet adds p unless it is absent, which it may be.
func (c *collector) addSet(p *repb.Digest, field string) error {
	if p == nil {
		return nil
	}
	return c.add(p, field)
}

// result adds what stands in r itself, and refuses what is malformed.
func (c *collector) result(r *repb.ActionResult) error {
	for i, file := range r.OutputFiles {
		if err := c.add(file.GetDigest(), fmt.Sprintf("action_result.output_files[%d].digest", i)); err != nil {
			return err
		}
	}
	for i, dir := range r.OutputDirectories {
		field := fmt.Sprintf("action_result.output_directories[%d]", i)
		if dir.GetTreeDigest() == nil && dir.GetRootDirectoryDigest() == nil {
			return invalid(field, "has neither tree_digest nor root_directory_digest")
		}
		if err := c.addSet(dir.TreeDigest, field+".tree_digest"); err != nil {
			return err
		}
		if err := c.addSet(dir.RootDirectoryDigest, field+".root_directory_digest"); err != nil {
			return err
		}
	}
	if err := c.addSet(r.StdoutDigest, "action_result.stdout_digest"); err != nil {
		return err
	}
	return c.addSet(r.StderrDigest, "action_result.stderr_digest")
}

func (c *collector) directory(dir *repb.Directory) error {
	for _, file := range dir.GetFiles() {
		if err := c.add(file.GetDigest(), "digest"); err != nil {
			return err
		}
	}
	if !c.directories {
		return nil
	}
	for _, sub := range dir.GetDirectories() {
		if err := c.add(sub.GetDigest(), "digest"); err != nil {
			return err
		}
	}
	return nil
}
