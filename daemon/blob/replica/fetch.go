package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// MissingError lists the blobs that the cluster does not hold.
type MissingError struct {
	Digests []digest.Digest
}

func (e *MissingError) Error() string {
	if len(e.Digests) == 1 {
		return "blob not found: " + e.Digests[0].String()
	}
	return fmt.Sprintf("%d blobs not found, the first of them %s", len(e.Digests), e.Digests[0])
}

// Code is NotFound.
func (e *MissingError) Code() codes.Code { return codes.NotFound }

// Unwrap makes it a blob.ErrNotFound.
func (e *MissingError) Unwrap() error { return blob.ErrNotFound }

// maxStreams is how many large blobs one Fetch moves at a time.
const maxStreams = 8

// flights are the blobs on their way to this node's disk: actions that start
// together want the same inputs, which then come once.
type flights struct {
	mu sync.Mutex // guards m and each flight's err until its done is closed
	m  map[digest.Digest]*flight
}

type flight struct {
	done chan struct{}
	err  error
}

// errAborted ends a flight whose own Fetch was given up.
var errAborted = errors.New("fetch was given up")

// Fetch brings blobs to this node's disk, as cached copies unless it owns them.
// If the cluster lacks some, the error is a *MissingError that lists all of
// those. Only nodes with a disk have it.
func (s *Store) Fetch(ctx context.Context, ds []digest.Digest) error {
	var lost []digest.Digest
	for need := s.absentHere(ds); len(need) > 0; {
		mine, others := s.flights.claim(need)
		errs := s.bring(ctx, mine)
		s.flights.land(mine, errs, ctx.Err() != nil)
		var trouble error
		tally := func(d digest.Digest, err error) {
			switch {
			case err == nil:
			case blob.IsNotFound(err):
				lost = append(lost, d)
			default:
				trouble = err
			}
		}
		for i, d := range mine {
			tally(d, errs[i])
		}
		need = need[:0]
		for d, f := range others {
			select {
			case <-f.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if errors.Is(f.err, errAborted) {
				need = append(need, d)
				continue
			}
			tally(d, f.err)
		}
		if trouble != nil {
			return fmt.Errorf("fetch: %w", trouble)
		}
	}
	if len(lost) > 0 {
		return &MissingError{lost}
	}
	return nil
}

// absentHere is what of ds has to be brought here, each once.
func (s *Store) absentHere(ds []digest.Digest) []digest.Digest {
	need := make([]digest.Digest, 0, 16)
	var seen map[digest.Digest]bool
	for i, p := range s.local.Presence(ds, true) {
		if d := ds[i]; p != disk.Present && !d.IsEmpty() && !seen[d] {
			if seen == nil {
				seen = make(map[digest.Digest]bool)
			}
			seen[d] = true
			need = append(need, d)
		}
	}
	return need
}

// claim sorts ds into those that the caller has to bring, and must land, and
// those that are on their way already.
func (f *flights) claim(ds []digest.Digest) (mine []digest.Digest, others map[digest.Digest]*flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	mine = make([]digest.Digest, 0, len(ds))
	for _, d := range ds {
		if there := f.m[d]; there != nil {
			if others == nil {
				others = make(map[digest.Digest]*flight)
			}
			others[d] = there
			continue
		}
		f.m[d] = &flight{done: make(chan struct{})}
		mine = append(mine, d)
	}
	return mine, others
}

// land ends the flights of ds. Those that failed because their caller has gone
// are for others to try.
func (f *flights) land(ds []digest.Digest, errs []error, gone bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, d := range ds {
		fl := f.m[d]
		delete(f.m, d)
		if fl.err = errs[i]; fl.err != nil && gone {
			fl.err = errAborted
		}
		close(fl.done)
	}
}

// bring moves blobs here; the errors stand in the order of ds.
func (s *Store) bring(ctx context.Context, ds []digest.Digest) []error {
	errs := make([]error, len(ds))
	var small []digest.Digest
	var at []int
	var g errgroup.Group
	g.SetLimit(maxStreams + 1)
	for i, d := range ds {
		if d.Size() <= blob.SmallSize {
			small, at = append(small, d), append(at, i)
		}
	}
	if len(small) > 0 {
		g.Go(func() error {
			s.bringSmall(ctx, small, func(i int32, err error) { errs[at[i]] = err })
			return nil
		})
	}
	for i, d := range ds {
		if d.Size() > blob.SmallSize {
			g.Go(func() error {
				errs[i] = s.bringLarge(ctx, d)
				return nil
			})
		}
	}
	_ = g.Wait() // nobody returns an error
	return errs
}

func (s *Store) bringLarge(ctx context.Context, d digest.Digest) error {
	r, err := s.get(ctx, d, 0, false)
	if errors.Is(err, errHere) {
		return nil
	}
	if err != nil {
		return err
	}
	defer r.Close()
	err = s.local.Put(ctx, d, s.kindHere(d), r)
	if err == nil {
		s.keeper.drop(d)
	}
	if errors.Is(err, blob.ErrMismatch) {
		// It is the copy that was wrong, not what we were asked.
		err = unavailable(err)
	}
	return err
}

func (s *Store) kindHere(d digest.Digest) disk.Kind {
	if s.owned(d) {
		return disk.Owned
	}
	return disk.Cached
}

// bringSmall stores each batch as it arrives, so that no more than a few are in
// memory.
func (s *Store) bringSmall(ctx context.Context, ds []digest.Digest, failed func(int32, error)) {
	var mu sync.Mutex // guards what failed writes
	g := getting{s: s, ds: ds, sink: func(of []int32, rs []blob.Result) {
		good := map[disk.Kind][]blob.Blob{}
		at := map[disk.Kind][]int32{}
		for j, i := range of {
			if errors.Is(rs[j].Err, errHere) {
				continue
			}
			if rs[j].Err != nil {
				mu.Lock()
				failed(i, rs[j].Err)
				mu.Unlock()
				continue
			}
			k := s.kindHere(ds[i])
			good[k] = append(good[k], blob.Blob{Digest: ds[i], Data: rs[j].Data})
			at[k] = append(at[k], i)
		}
		for k, bs := range good {
			for j, err := range s.local.PutBatch(ctx, k, bs) {
				if errors.Is(err, blob.ErrMismatch) {
					err = unavailable(err)
				}
				mu.Lock()
				failed(at[k][j], err)
				mu.Unlock()
			}
		}
	}}
	g.run(ctx)
}
