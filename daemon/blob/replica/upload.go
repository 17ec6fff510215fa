package replica

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/mem"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

// UploadKey names an upload that may be resumed. With the digest it is unique.
type UploadKey struct {
	Principal string
	Instance  string
	UUID      string
}

func (k UploadKey) wire(d digest.Digest) *pb.UploadKey {
	return &pb.UploadKey{Principal: k.Principal, Instance: k.Instance, Uuid: k.UUID, Digest: d.Append(nil)}
}

// Upload is one blob being uploaded piece by piece. It is not safe for
// concurrent use.
type Upload struct {
	s        *Store
	ctx      context.Context // of the request that carries the upload
	d        digest.Digest
	small    []byte  // what has come of a small blob
	w        *writer // of a large one
	complete bool
}

// Upload begins an upload of d, or goes on with one at offset off, which is
// what UploadOffset said. If this offset is not known (any more) the error is
// blob.ErrUnavailable: the client asks again, and learns 0. The caller calls
// Close in any case.
//
// What has come of a large blob is kept for ten minutes on its first owner.
// Small ones begin anew.
func (s *Store) Upload(ctx context.Context, key UploadKey, d digest.Digest, off int64) (*Upload, error) {
	u := &Upload{s: s, ctx: ctx, d: d}
	switch {
	case off < 0 || off > d.Size():
		return nil, fmt.Errorf("upload %s from %d: %w", d, off, blob.ErrOutOfRange)
	case d.IsEmpty():
		u.complete = true
		return u, nil
	case d.Size() <= blob.SmallSize:
		if off > 0 {
			return nil, fmt.Errorf("upload %s from %d: %w", d, off, blob.ErrUnavailable)
		}
		u.small = make([]byte, 0, d.Size())
		return u, nil
	}
	w, err := s.openWriter(ctx, d, key.wire(d), off)
	if err != nil {
		return nil, err
	}
	u.w = w
	if w.held >= s.w {
		u.complete = true
		w.close()
	}
	return u, nil
}

// Complete reports whether the blob is stored as durably as Finish would have
// it, so that nothing need be written.
func (u *Upload) Complete() bool { return u.complete }

// Offset is how many bytes of the blob have been written.
func (u *Upload) Offset() int64 {
	switch {
	case u.complete:
		return u.d.Size()
	case u.w != nil:
		return u.w.offset
	}
	return int64(len(u.small))
}

// Write takes the next bytes. The caller may use p again. More bytes than the
// blob has are blob.ErrMismatch.
func (u *Upload) Write(p []byte) error {
	for len(p) > 0 {
		n := min(len(p), chunkSize)
		buf := mem.Copy(p[:n], rpc.Pool())
		err := u.Append(mem.BufferSlice{buf})
		buf.Free()
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// Append is Write for bytes that are not to be copied: it takes references of
// its own to data's buffers, and the caller keeps those that it has.
func (u *Upload) Append(data mem.BufferSlice) error {
	n := data.Len()
	switch {
	case u.complete || n == 0:
		return nil
	case u.w != nil:
		return u.w.write(data)
	case int64(len(u.small)+n) > u.d.Size():
		return fmt.Errorf("store %s: more than its size: %w", u.d, blob.ErrMismatch)
	}
	for _, b := range data {
		u.small = append(u.small, b.ReadOnlyData()...)
	}
	return nil
}

// Finish verifies and stores what was written. It is blob.ErrMismatch if that
// is not the blob.
func (u *Upload) Finish() error {
	switch {
	case u.complete:
		return nil
	case u.w == nil:
		return u.s.PutBatch(u.ctx, []blob.Blob{{Digest: u.d, Data: u.small}})[0]
	}
	return u.w.finish()
}

// Close gives up what was not finished; the first owner keeps it for a while.
// It never fails.
func (u *Upload) Close() error {
	if u.w != nil {
		u.w.close()
	}
	return nil
}

// offsetTimeout bounds the question for an offset: not knowing is an answer.
const offsetTimeout = 5 * time.Second

// UploadOffset is how many bytes of an upload need not be sent again, and
// whether the whole blob is stored. What nobody knows is 0.
func (s *Store) UploadOffset(ctx context.Context, key UploadKey, d digest.Digest) (committed int64, complete bool, err error) {
	if d.IsEmpty() {
		return 0, true, nil
	}
	ctx, cancel := context.WithTimeout(ctx, offsetTimeout)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { complete = s.stored(ctx, d) })
	if d.Size() > blob.SmallSize {
		wg.Go(func() { committed = s.askOffset(ctx, key, d) })
	}
	wg.Wait()
	if complete {
		committed = d.Size()
	}
	return committed, complete, nil
}

func (s *Store) askOffset(ctx context.Context, key UploadKey, d digest.Digest) int64 {
	v := s.view()
	owners := v.owners(nil, d)
	if len(owners) == 0 || owners[0] == v.self {
		return 0
	}
	var resp pb.UploadResponse
	req := &pb.UploadRequest{Key: key.wire(d)}
	err := s.peers.Call(ctx, v.disks[owners[0]].Addr, pb.Method_METHOD_BLOB_UPLOAD, req, &resp)
	if err != nil {
		s.log.Debug("offset of an upload not known", "digest", d, "err", err)
		return 0
	}
	return min(max(resp.Committed, 0), d.Size())
}

// stored reports whether d is stored, with all its copies: it makes those that
// an upload was cut off before.
func (s *Store) stored(ctx context.Context, d digest.Digest) bool {
	v := s.view()
	on, err := s.locate(ctx, v, d)
	if err != nil {
		return false
	}
	b := &placing{d: d}
	for _, i := range on {
		b.holders = append(b.holders, s.addr(v, i))
	}
	return s.place(ctx, v, []*placing{b}, s.pull)[0] == nil
}
