package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"google.golang.org/grpc/mem"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// sink is one disk's end of a large write.
type sink interface {
	// write may keep references to data's buffers, never the slice.
	write(data mem.BufferSlice) error
	// finish stores what was written, and says as what.
	finish() outcome
	// close ends a sink that was not finished; after finish it does nothing.
	close()
}

// writer sends one large blob to several disks at once. The slowest sets the
// pace. A disk that fails on the way is left behind, and the one that stands
// in for it fetches the blob from the others in the end.
type writer struct {
	s      *Store
	ctx    context.Context // of the write that the writer is made for
	v      *view
	b      *placing
	sinks  []sink
	on     []int32 // the sinks' disks
	offset int64   // of the next byte
	held   int     // how many owners hold the blob already
}

// openWriter finds disks that take d: its owners, or who stands in for them.
// It begins at offset off, which for a resumed upload is what the first owner
// has; then nobody else is written to.
func (s *Store) openWriter(ctx context.Context, d digest.Digest, upload *pb.UploadKey, off int64) (*writer, error) {
	w := &writer{s: s, ctx: ctx, offset: off}
	wait, cancel := patience(ctx)
	defer cancel()
	for attempt := 0; ; attempt++ {
		changed := s.placement.Changed()
		w.v, w.b = s.view(), &placing{d: d}
		w.open(wait, upload)
		if len(w.sinks) > 0 {
			return w, nil
		}
		again, err := s.settle(w.b)
		if errors.Is(ctx.Err(), context.Canceled) {
			return nil, ctx.Err()
		}
		if !again || off > 0 || pause(wait, attempt, changed) != nil {
			return nil, err
		}
	}
}

// open asks disk after disk until R have taken the blob on.
func (w *writer) open(ctx context.Context, upload *pb.UploadKey) {
	r := w.s.r
	if w.offset > 0 {
		r = 1
	}
	for first := true; ctx.Err() == nil; first = false {
		on := w.b.next(w.v, r-len(w.sinks))
		if len(on) == 0 {
			return
		}
		opened := make([]opened, len(on))
		var wg sync.WaitGroup
		for i, o := range on {
			key := upload
			if !first || i > 0 {
				key = nil // an upload is kept by the first owner alone
			}
			wg.Go(func() { opened[i] = w.s.openSink(w.ctx, w.v, o, w.b, key, w.offset) })
		}
		wg.Wait()
		for i, o := range opened {
			if o.err != nil {
				w.b.note(w.s, w.v, on[i], outcome{err: o.err})
				continue
			}
			if o.held {
				w.held++
			}
			w.sinks, w.on = append(w.sinks, o.sink), append(w.on, on[i])
		}
		if w.offset > 0 {
			return
		}
	}
}

// write sends data to all. The caller keeps its references. The budget is held
// only while data waits to be sent: a client that pauses takes nothing from
// others.
func (w *writer) write(data mem.BufferSlice) error {
	n := int64(data.Len())
	if err := w.s.budget.Acquire(w.ctx, n); err != nil {
		return err
	}
	defer w.s.budget.Release(w.ctx, n)
	if w.offset+n > w.b.d.Size() {
		return fmt.Errorf("store %s: more than its size: %w", w.b.d, blob.ErrMismatch)
	}
	for i := 0; i < len(w.sinks); {
		err := w.sinks[i].write(data)
		if err == nil {
			i++
			continue
		}
		if w.ctx.Err() != nil {
			return w.ctx.Err()
		}
		w.s.log.Debug("disk left behind in a write", "digest", w.b.d, "peer", w.s.addr(w.v, w.on[i]), "err", err)
		w.b.note(w.s, w.v, w.on[i], outcome{err: err})
		w.drop(i)
	}
	w.offset += n
	if len(w.sinks) == 0 {
		_, err := w.s.settle(w.b)
		return err
	}
	return nil
}

func (w *writer) drop(i int) {
	w.sinks[i].close()
	w.sinks = append(w.sinks[:i], w.sinks[i+1:]...)
	w.on = append(w.on[:i], w.on[i+1:]...)
}

// finish has the blob verified and stored by all, and makes up for those that
// were left behind.
func (w *writer) finish() error {
	if w.offset != w.b.d.Size() {
		return fmt.Errorf("store %s: ends after %d bytes: %w", w.b.d, w.offset, blob.ErrMismatch)
	}
	outs := make([]outcome, len(w.sinks))
	var wg sync.WaitGroup
	for i, k := range w.sinks {
		wg.Go(func() { outs[i] = k.finish() })
	}
	wg.Wait()
	w.sinks = nil
	for i, o := range outs {
		w.b.note(w.s, w.v, w.on[i], o)
	}
	if w.b.mismatched() {
		return fmt.Errorf("store %s: %w", w.b.d, w.b.err)
	}
	if len(w.b.holders) == 0 {
		_, err := w.s.settle(w.b)
		if err == nil || errors.Is(err, context.Canceled) {
			err = gaveUp(w.ctx)
		}
		return err
	}
	return w.s.place(w.ctx, w.v, []*placing{w.b}, w.s.pull)[0]
}

// close gives up what was not finished.
func (w *writer) close() {
	for _, k := range w.sinks {
		k.close()
	}
	w.sinks = nil
}
