package frontend

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// parallel is how many blobs too large for a batch one call moves at a time.
const parallel = 4

// readAll reads whole blobs, small ones in one batch. The caller bounds their
// sizes and holds the budget for them; the answers stand in the order of ds.
func (f *Frontend) readAll(ctx context.Context, ds []digest.Digest) []blob.Result {
	results := make([]blob.Result, len(ds))
	var small []digest.Digest
	var at []int
	var g errgroup.Group
	g.SetLimit(parallel)
	for i, d := range ds {
		if d.Size() <= blob.SmallSize {
			small, at = append(small, d), append(at, i)
			continue
		}
		g.Go(func() error {
			results[i].Data, results[i].Err = f.readLarge(ctx, d)
			return nil
		})
	}
	if len(small) > 0 {
		for j, r := range f.store.GetBatch(ctx, small) {
			results[at[j]] = r
		}
	}
	_ = g.Wait() // each answer has its own error
	return results
}

// readRecent is readAll for what has mostly just been uploaded, or read.
func (f *Frontend) readRecent(ctx context.Context, ds []digest.Digest) []blob.Result {
	results := make([]blob.Result, len(ds))
	var absent []digest.Digest
	var at []int
	for i, d := range ds {
		if data, ok := f.recent.get(d); ok {
			results[i].Data = data
			continue
		}
		absent, at = append(absent, d), append(at, i)
	}
	if len(absent) == 0 {
		return results
	}
	for j, r := range f.readAll(ctx, absent) {
		if results[at[j]] = r; r.Err == nil {
			f.recent.add(blob.Blob{Digest: absent[j], Data: r.Data})
		}
	}
	return results
}

func (f *Frontend) readLarge(ctx context.Context, d digest.Digest) ([]byte, error) {
	r, err := f.store.Get(ctx, d, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data := make([]byte, d.Size())
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, fmt.Errorf("read %s: %w", d, err)
	}
	return data, nil
}
