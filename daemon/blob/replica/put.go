package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

// Put implements blob.Putter.
func (s *Store) Put(ctx context.Context, d digest.Digest, r io.Reader) error {
	if d.Size() <= blob.SmallSize {
		data, err := readSmall(d, r)
		if err != nil {
			return err
		}
		return s.PutBatch(ctx, []blob.Blob{{Digest: d, Data: data}})[0]
	}
	w, err := s.openWriter(ctx, d, nil, 0)
	if err != nil {
		return err
	}
	defer w.close()
	bulk := &rpc.Bulk{}
	defer bulk.Free()
	for {
		_, err := bulk.Fill(r, chunkSize)
		if errors.Is(err, io.EOF) {
			return w.finish()
		}
		if err != nil {
			return fmt.Errorf("read what is to be stored as %s: %w", d, err)
		}
		if err := w.write(bulk.Data); err != nil {
			return err
		}
	}
}

// readSmall reads all of r, which is to have the size that d says.
func readSmall(d digest.Digest, r io.Reader) ([]byte, error) {
	data := make([]byte, d.Size()+1)
	n, err := io.ReadFull(r, data)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("read what is to be stored as %s: %w", d, err)
	}
	if int64(n) != d.Size() {
		return nil, fmt.Errorf("store %s: %w", d, blob.ErrMismatch)
	}
	return data[:n], nil
}

// PutBatch implements blob.Putter. Blobs beyond blob.SmallSize are stored too,
// one after another.
func (s *Store) PutBatch(ctx context.Context, bs []blob.Blob) []error {
	errs := make([]error, len(bs))
	todo := make([]*placing, 0, len(bs))
	at := make([]int, 0, len(bs))
	for i, b := range bs {
		switch {
		case int64(len(b.Data)) != b.Digest.Size():
			errs[i] = fmt.Errorf("store %s: %w", b.Digest, blob.ErrMismatch)
		case b.Digest.IsEmpty():
		case b.Digest.Size() > blob.SmallSize:
			errs[i] = s.Put(ctx, b.Digest, bytes.NewReader(b.Data))
		default:
			todo = append(todo, &placing{d: b.Digest, data: b.Data})
			at = append(at, i)
		}
	}
	if len(todo) == 0 {
		return errs
	}
	for j, err := range s.place(ctx, s.view(), todo, s.put) {
		errs[at[j]] = err
	}
	return errs
}

// putOverhead is what a blob takes in a message beyond its bytes.
const putOverhead = 128

// put gives small blobs to one disk.
func (s *Store) put(ctx context.Context, v *view, on int32, bs []*placing) []outcome {
	out := make([]outcome, len(bs))
	if on == v.self {
		s.putHere(ctx, bs, out)
		return out
	}
	var wg sync.WaitGroup
	for from := 0; from < len(bs); {
		// A message speaks for blobs that skipped the same disks.
		to, size := from, 0
		for to < len(bs) && sameSkips(bs[from], bs[to]) {
			size += len(bs[to].data) + putOverhead
			if to > from && size > maxBatch {
				break
			}
			to++
		}
		part, res := bs[from:to], out[from:to]
		wg.Go(func() { s.putThere(ctx, v.disks[on].Addr, part, res) })
		from = to
	}
	wg.Wait()
	return out
}

func sameSkips(a, b *placing) bool {
	return slices.EqualFunc(a.skipped, b.skipped, bytes.Equal) && slices.EqualFunc(a.refused, b.refused, bytes.Equal)
}

func (s *Store) putThere(ctx context.Context, addr string, bs []*placing, out []outcome) {
	req := &pb.PutRequest{Blobs: make([]*pb.PutRequest_Blob, len(bs)), Skipped: bs[0].skipped, Refused: bs[0].refused}
	for i, b := range bs {
		req.Blobs[i] = &pb.PutRequest_Blob{Digest: b.d.Append(nil), Data: b.data}
	}
	var resp pb.PutResponse
	err := s.call(ctx, putTimeout, addr, pb.Method_METHOD_BLOB_PUT, req, &resp)
	if err == nil && len(resp.Blobs) != len(bs) {
		err = fmt.Errorf("%d answers to %d blobs", len(resp.Blobs), len(bs))
	}
	for i := range out {
		if err != nil {
			out[i].err = unreached(err)
			continue
		}
		out[i] = answered(resp.Blobs[i])
	}
}

// unreached is what a failed call says: of the blobs in it, nothing.
func unreached(err error) error {
	err = fromStatus(err)
	if errors.Is(err, blob.ErrUnavailable) || errors.Is(err, blob.ErrFull) {
		return err
	}
	return unavailable(err)
}

func (s *Store) putHere(ctx context.Context, bs []*placing, out []outcome) {
	sk := make([]skips, len(bs))
	kinds := make([]disk.Kind, len(bs))
	for i, b := range bs {
		if i > 0 && sameSkips(bs[i-1], b) {
			sk[i] = sk[i-1]
		} else {
			sk[i] = skipsOf(b.skipped, b.refused)
		}
		kinds[i] = s.kindOf(b.d, sk[i])
		out[i].err = s.keeper.refusal()
	}
	for _, kind := range []disk.Kind{disk.Owned, disk.Cached} {
		var some []blob.Blob
		var at []int
		for i, b := range bs {
			if kinds[i] == kind && out[i].err == nil {
				some, at = append(some, blob.Blob{Digest: b.d, Data: b.data}), append(at, i)
			}
		}
		if len(some) == 0 {
			continue
		}
		for j, err := range s.local.PutBatch(ctx, kind, some) {
			i := at[j]
			switch {
			case err == nil:
				out[i].ack = s.ack(bs[i].d, sk[i])
			case errors.Is(err, blob.ErrFull):
				s.keeper.refuse(bs[i].d)
			}
			out[i].err = err
		}
	}
}

// PutFile stores the file at path, which the caller has hashed to d, and which
// may be gone afterwards. The copy on this node's own disk is kept even if
// others own the blob: what an action made is what the next one reads. Only
// nodes with a disk have it.
func (s *Store) PutFile(ctx context.Context, d digest.Digest, path string) error {
	if d.IsEmpty() {
		return nil
	}
	if d.Size() <= blob.SmallSize {
		return s.putSmallFile(ctx, d, path)
	}
	kind := s.kindOf(d, skips{})
	if err := s.local.Adopt(ctx, d, path, kind); err != nil {
		f, openErr := os.Open(path)
		if openErr != nil {
			return fmt.Errorf("adopt %s: %w", d, err)
		}
		defer f.Close()
		s.log.Debug("output not adopted", "digest", d, "err", err)
		return s.Put(ctx, d, f)
	}
	// The owners fetch it from here; this disk, if one of them, has it.
	b := &placing{d: d, holders: []string{s.selfAddr}}
	return s.place(ctx, s.view(), []*placing{b}, s.pull)[0]
}

func (s *Store) putSmallFile(ctx context.Context, d digest.Digest, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("store %s: %w", d, err)
	}
	defer f.Close()
	data, err := readSmall(d, f)
	if err != nil {
		return err
	}
	if !s.owned(d) {
		if err := s.local.PutBatch(ctx, disk.Cached, []blob.Blob{{Digest: d, Data: data}})[0]; err != nil {
			s.log.Debug("output not kept as cached", "digest", d, "err", err)
		}
	}
	return s.PutBatch(ctx, []blob.Blob{{Digest: d, Data: data}})[0]
}
