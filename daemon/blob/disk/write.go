package disk

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// verify reports whether data is d's blob.
func verify(d digest.Digest, data []byte) error {
	if !d.Function().Computable() {
		return fmt.Errorf("%s: this build cannot hash with %s: %w", d, d.Function(), blob.ErrMismatch)
	}
	if int64(len(data)) != d.Size() || digest.Of(d.Function(), data) != d {
		return fmt.Errorf("%s: %w", d, blob.ErrMismatch)
	}
	return nil
}

// PutBatch stores small blobs; the answers stand in their order. A blob that is
// there already is marked as used, and becomes owned if kind is Owned.
func (s *Store) PutBatch(ctx context.Context, kind Kind, bs []blob.Blob) []error {
	errs := make([]error, len(bs))
	var (
		recs  []*record
		which []int
		need  int64
	)
	for i, b := range bs {
		if errs[i] = ctx.Err(); errs[i] != nil {
			continue
		}
		if errs[i] = verify(b.Digest, b.Data); errs[i] != nil || b.Digest.IsEmpty() || s.renew(b.Digest, kind) {
			continue
		}
		if b.Digest.Size() > blob.SmallSize {
			errs[i] = s.putFile(ctx, b, kind)
			continue
		}
		r := &record{d: b.Digest, what: uint8(kind), sum: checksum(b.Data), data: b.Data}
		r.commit = s.commitRecord
		recs, which = append(recs, r), append(which, i)
		need += recordSize(b.Digest, b.Digest.Size())
	}
	if len(recs) == 0 {
		return errs
	}
	err := s.reserve(ctx, need, false)
	if err == nil {
		err = s.app.append(recs)
		for _, r := range recs {
			if !r.done {
				s.release(recordSize(r.d, int64(len(r.data))))
			}
		}
	}
	for j, r := range recs {
		if !r.done {
			errs[which[j]] = fmt.Errorf("store %s: %w", r.d, err)
		}
	}
	return errs
}

// commitRecord makes a written record known.
func (s *Store) commitRecord(r *record) {
	// Who stored the same blob meanwhile was first; ours is dead weight.
	s.insert(r.d, entry{place: r.at, sum: r.sum, kind: Kind(r.what), flags: flagSeen})
}

func (s *Store) putFile(ctx context.Context, b blob.Blob, kind Kind) error {
	w, err := s.create(ctx, b.Digest, kind)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := w.Write(b.Data); err != nil {
		return err
	}
	return w.Commit()
}

// Put reads r to its end and stores it.
func (s *Store) Put(ctx context.Context, d digest.Digest, kind Kind, r io.Reader) error {
	w, err := s.create(ctx, d, kind)
	if err != nil {
		return err
	}
	defer w.Close()
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(*buf)
		if _, werr := w.Write((*buf)[:n]); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) {
			return w.Commit()
		}
		if err != nil {
			return fmt.Errorf("store %s: %w", d, err)
		}
	}
}
