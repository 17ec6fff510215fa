package action

import (
	"bytes"
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// An action's small outputs go to the store in batches while the rest are
// read, as many at a time as bounds the memory that they take.
const (
	batchBytes   = 1 << 20
	batchBlobs   = 1024
	batchesAtOne = 4
)

// uploads stores what an action left.
type uploads struct {
	store Store
	g     *errgroup.Group
	ctx   context.Context //nolint:containedctx // the group's, for as long as it lives

	batch []blob.Blob
	bytes int
	seen  map[digest.Digest]bool
	large map[string]digest.Digest // by path
}

func newUploads(ctx context.Context, store Store) *uploads {
	u := &uploads{store: store, seen: make(map[digest.Digest]bool)}
	u.g, u.ctx = errgroup.WithContext(ctx)
	u.g.SetLimit(batchesAtOne)
	return u
}

// Small implements sandbox.Sink.
func (u *uploads) Small(_ context.Context, d digest.Digest, data []byte) error {
	if u.seen[d] || d.IsEmpty() {
		return nil
	}
	u.seen[d] = true
	if len(data) > blob.SmallSize { // a tree
		u.g.Go(func() error { return u.failed(d, u.store.Put(u.ctx, d, bytes.NewReader(data))) })
		return nil
	}
	u.batch = append(u.batch, blob.Blob{Digest: d, Data: data})
	if u.bytes += len(data); u.bytes >= batchBytes || len(u.batch) >= batchBlobs {
		u.flush()
	}
	return u.ctx.Err()
}

// Large implements sandbox.Sink.
func (u *uploads) Large(_ context.Context, d digest.Digest, path string) error {
	if u.seen[d] {
		return nil
	}
	u.seen[d] = true
	if u.large == nil {
		u.large = make(map[string]digest.Digest)
	}
	u.large[path] = d
	return nil
}

func (u *uploads) flush() {
	if len(u.batch) == 0 {
		return
	}
	batch := u.batch
	u.batch, u.bytes = nil, 0
	u.g.Go(func() error { return u.put(batch) })
}

func (u *uploads) put(batch []blob.Blob) error {
	for i, err := range u.store.PutBatch(u.ctx, batch) {
		if err != nil {
			return u.failed(batch[i].Digest, err)
		}
	}
	return nil
}

func (u *uploads) failed(d digest.Digest, err error) error {
	if err != nil {
		return fmt.Errorf("store output %s: %w", d, err)
	}
	return nil
}

// finish stores what is left and waits until everything is as safe as the
// store makes it. Only now may files be moved away: one may be an output twice.
func (u *uploads) finish() error {
	if len(u.large) == 0 && len(u.batch) > 0 && len(u.seen) == len(u.batch) {
		// The usual few: nothing to do beside it.
		batch := u.batch
		u.batch = nil
		return u.put(batch)
	}
	u.flush()
	for path, d := range u.large {
		u.g.Go(func() error { return u.failed(d, u.store.PutFile(u.ctx, d, path)) })
	}
	return u.g.Wait()
}

// abandon waits for what is under way after something else went wrong.
func (u *uploads) abandon() { _ = u.g.Wait() }
