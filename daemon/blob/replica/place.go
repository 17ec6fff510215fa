package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// outcome is how one disk answered when it was given one blob.
type outcome struct {
	ack pb.Ack
	err error
}

// placing is one blob on its way to its disks: how far down the rank order it
// has come, and who has taken it. It is not safe for concurrent use.
type placing struct {
	d    digest.Digest
	data []byte // of a small blob that is put; otherwise it is pulled

	order  []int32 // the owners, then, once a stand-in is needed, everyone
	all    bool    // order is everyone
	cursor int     // everyone before it was asked

	acks      int
	full      int
	elsewhere int      // took it, but don't hold themselves to be owners
	skipped   [][]byte // ids of those that didn't take it as owners
	refused   [][]byte // those of them that had no room
	holders   []string // addresses of verified copies
	err       error    // the last trouble; final if it is a mismatch
}

// reset begins anew, with the holders known so far.
func (b *placing) reset() {
	*b = placing{d: b.d, data: b.data, holders: b.holders}
}

// next is the disks to ask so that r acknowledgements come together.
func (b *placing) next(v *view, r int) []int32 {
	want := r - b.acks
	if b.order == nil {
		b.order = v.owners(nil, b.d)
	}
	if !b.all && b.cursor+want > len(b.order) {
		b.order, b.all = v.rank(b.d), true
	}
	from := min(b.cursor, len(b.order))
	to := max(from, min(b.cursor+want, len(b.order)))
	b.cursor = to
	return b.order[from:to]
}

// asked reports whether no disk is left to ask.
func (b *placing) asked() bool { return b.all && b.cursor >= len(b.order) }

func (b *placing) mismatched() bool { return errors.Is(b.err, blob.ErrMismatch) }

// note takes down how a disk answered.
func (b *placing) note(s *Store, v *view, on int32, o outcome) {
	if o.err == nil {
		b.holders = append(b.holders, s.addr(v, on))
		if o.ack == pb.Ack_ACK_OWNED {
			b.acks++
			return
		}
		b.elsewhere++
	} else {
		if errors.Is(o.err, blob.ErrFull) {
			b.full++
			id := v.disks[on].ID
			b.refused = append(b.refused, id[:])
		}
		if !b.mismatched() {
			b.err = o.err
		}
		s.metrics.skips.Inc()
	}
	id := v.disks[on].ID
	b.skipped = append(b.skipped, id[:])
}

// deliver gives blobs to one disk. It answers in their order.
type deliver func(ctx context.Context, v *view, on int32, bs []*placing) []outcome

// rounds asks disk after disk until each blob has its r acknowledgements, or
// nobody is left to ask.
func (s *Store) rounds(ctx context.Context, v *view, bs []*placing, give deliver) {
	type delivery struct {
		on  int32
		bs  []*placing
		out []outcome
	}
	for ctx.Err() == nil {
		groups := make(map[int32]*delivery)
		for _, b := range bs {
			if b.mismatched() {
				continue
			}
			for _, on := range b.next(v, s.r) {
				g := groups[on]
				if g == nil {
					g = &delivery{on: on}
					groups[on] = g
				}
				g.bs = append(g.bs, b)
			}
		}
		if len(groups) == 0 {
			return
		}
		var wg sync.WaitGroup
		for _, g := range groups {
			wg.Go(func() { g.out = give(ctx, v, g.on, g.bs) })
		}
		wg.Wait()
		for _, g := range groups {
			for i, b := range g.bs {
				b.note(s, v, g.on, g.out[i])
			}
		}
	}
}

// place brings blobs to their disks, and answers for each in order. What could
// not be settled is tried again while there is time.
func (s *Store) place(ctx context.Context, v *view, bs []*placing, give deliver) []error {
	wait, cancel := patience(ctx)
	defer cancel()
	errs := make([]error, len(bs))
	todo := make([]int, len(bs))
	for i := range bs {
		todo[i] = i
	}
	for attempt := 0; ; attempt++ {
		changed := s.placement.Changed()
		now := make([]*placing, len(todo))
		for j, i := range todo {
			now[j] = bs[i]
		}
		s.rounds(wait, v, now, give)
		left := todo[:0]
		for _, i := range todo {
			again, err := s.settle(bs[i])
			if again {
				left = append(left, i)
			}
			errs[i] = err
		}
		if todo = left; len(todo) == 0 {
			return errs
		}
		s.metrics.waits.Inc()
		if pause(wait, attempt, changed) != nil {
			for _, i := range todo {
				_, errs[i] = s.settle(bs[i])
				if errs[i] != nil && errors.Is(ctx.Err(), context.Canceled) {
					errs[i] = ctx.Err()
				}
			}
			return errs
		}
		for _, i := range todo {
			bs[i].reset()
		}
		v = s.view()
		give = s.givenAgain(give)
	}
}

// givenAgain has those fetch a blob from its holders that the writer may not
// reach itself.
func (s *Store) givenAgain(give deliver) deliver {
	return func(ctx context.Context, v *view, on int32, bs []*placing) []outcome {
		out := make([]outcome, len(bs))
		for _, pulled := range []bool{false, true} {
			var some []*placing
			var at []int
			for i, b := range bs {
				if (len(b.holders) > 0) == pulled {
					some, at = append(some, b), append(at, i)
				}
			}
			if len(some) == 0 {
				continue
			}
			how := give
			if pulled {
				how = s.pull
			}
			for j, o := range how(ctx, v, on, some) {
				out[at[j]] = o
			}
		}
		return out
	}
}

// settle tells what became of a blob when nobody is left to ask, and whether
// it is worth trying again.
func (s *Store) settle(b *placing) (again bool, err error) {
	switch {
	case b.mismatched():
		return false, fmt.Errorf("store %s: %w", b.d, b.err)
	case b.acks >= s.r:
		return false, nil
	case b.acks >= s.w:
		s.Mend(b.d)
		return false, nil
	case b.elsewhere > 0:
		return true, fmt.Errorf("store %s: %d of %d copies, as disks differ about who owns it: %w", b.d, b.acks, s.w, blob.ErrUnavailable)
	case b.acks > 0 && (!b.asked() || !s.settled()):
		return true, fmt.Errorf("store %s: %d of %d copies: %w", b.d, b.acks, s.w, blob.ErrUnavailable)
	case b.acks > 0:
		s.metrics.short.Inc()
		s.Mend(b.d)
		return false, nil
	case b.full > 0 && b.full == len(b.skipped) && b.asked():
		return false, fmt.Errorf("store %s: %w", b.d, b.err)
	case b.err != nil && !errors.Is(b.err, blob.ErrUnavailable):
		return true, fmt.Errorf("store %s: %w", b.d, unavailable(b.err))
	case b.err != nil:
		return true, fmt.Errorf("store %s: %w", b.d, b.err)
	}
	return true, fmt.Errorf("store %s: no disk: %w", b.d, blob.ErrUnavailable)
}

// pull has a disk fetch blobs from those that hold them already.
func (s *Store) pull(ctx context.Context, v *view, on int32, bs []*placing) []outcome {
	out := make([]outcome, len(bs))
	var wg sync.WaitGroup
	limit := make(chan struct{}, 8)
	for i, b := range bs {
		if len(b.holders) == 0 {
			out[i].err = fmt.Errorf("%w: nobody to pull it from", blob.ErrUnavailable)
			continue
		}
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			out[i] = s.pullOne(ctx, v, on, b)
		})
	}
	wg.Wait()
	return out
}

func (s *Store) pullOne(ctx context.Context, v *view, on int32, b *placing) outcome {
	if on == v.self {
		return s.pullHere(ctx, b.d, b.holders, skipsOf(b.skipped, b.refused))
	}
	req := &pb.PullRequest{Digests: digest.Pack([]digest.Digest{b.d}), From: b.holders, Skipped: b.skipped, Refused: b.refused}
	var resp pb.PullResponse
	if err := s.callVia(ctx, transferTimeout(b.d.Size()), v, on, pb.Method_METHOD_BLOB_PULL, req, &resp); err != nil {
		return outcome{err: unreached(err)}
	}
	if len(resp.Blobs) != 1 {
		return outcome{err: fmt.Errorf("%w: %d answers to a pull", blob.ErrUnavailable, len(resp.Blobs))}
	}
	o := answered(resp.Blobs[0])
	if o.err != nil && !errors.Is(o.err, blob.ErrFull) {
		// What a holder gave, or not, is no word on the blob that we were given.
		o.err = unavailable(o.err)
	}
	return o
}

func answered(b *pb.PutResponse_Blob) outcome {
	return outcome{ack: b.GetAck(), err: fromBlobStatus(b.GetStatus())}
}
