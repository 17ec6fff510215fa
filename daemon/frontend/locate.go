package frontend

import (
	"context"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/near"
)

// maxDepth bounds how often an action's tree is looked at, each time with what
// was found under it before.
const maxDepth = 64

// locate tells the request which workers have its inputs, as far as that is
// known without asking anybody. It returns the inputs' parts, and directories
// of which more would be known.
func (f *Frontend) locate(r *Request, root digest.Digest) (parts []near.Part, unknown []digest.Digest) {
	for range maxDepth {
		parts, unknown = f.near.Parts(root)
		shown := false
		for _, d := range unknown {
			data, ok := f.recent.get(d)
			if !ok && d == root {
				data, ok = r.RootBlob, r.RootBlob != nil
			}
			shown = ok && f.show(d, data) || shown
		}
		if !shown {
			break
		}
	}
	r.Near = f.near.Near(parts)
	return parts, unknown
}

// show lets the map of inputs see a directory, which reports whether it is one.
func (f *Frontend) show(d digest.Digest, data []byte) bool {
	dir := &repb.Directory{}
	if proto.Unmarshal(data, dir) != nil {
		return false
	}
	f.near.Add(d, dir)
	return true
}

// learn reads directories that locate did not know, and those under them, for
// the actions to come. One call at a time does so: this is worth a little, and
// no more.
func (f *Frontend) learn(ctx context.Context, root digest.Digest, unknown []digest.Digest) {
	if !f.learning.CompareAndSwap(false, true) {
		return
	}
	defer f.learning.Store(false)
	for range maxDepth {
		shown := false
		for rest := unknown; len(rest) > 0; {
			batch := walkNext(rest)
			rest = rest[len(batch):]
			shown = f.learnBatch(ctx, batch) || shown
		}
		if !shown {
			return
		}
		if _, unknown = f.near.Parts(root); len(unknown) == 0 {
			return
		}
	}
}

func (f *Frontend) learnBatch(ctx context.Context, ds []digest.Digest) (shown bool) {
	var size int64
	for _, d := range ds {
		if d.Size() > maxBatch {
			return false // nor will anybody stage it
		}
		size += d.Size()
	}
	release, err := f.hold(ctx, size)
	if err != nil {
		return false
	}
	defer release()
	for i, r := range f.readAll(ctx, ds) {
		shown = r.Err == nil && f.show(ds[i], r.Data) || shown
	}
	return shown
}
