package replica

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// verdict is what is known of a blob after the disks were asked.
type verdict uint8

const (
	unsure verdict = iota
	missing
	present
)

// judge applies the rule: any "present" wins; "missing" takes "absent" from all
// disks but those that may be away without the last of w copies being among
// them. A disk that answers, but cannot tell yet, is not away: it is waited for.
func judge(disks, holders, absent, unknown, w int) verdict {
	switch {
	case holders > 0:
		return present
	case disks > 0 && unknown == 0 && disks-absent <= min(w, disks)-1:
		return missing
	}
	return unsure
}

// maxHolders is how many of a blob's holders are remembered.
const maxHolders = 4

// answers is what disks said about some digests.
type answers struct {
	v       *view
	settled bool // this node had heard of all disks, and each had its time to answer
	disks   int  // how many there are: the most that anybody knows
	absent  []int32
	unknown []int32 // from disks that answered, and could not tell
	holders []holders
	held    int // how many digests have a holder
}

type holders struct {
	n  uint8
	at [maxHolders]int32
}

func (a *answers) verdict(i, w int) verdict {
	v := judge(a.disks, int(a.holders[i].n), int(a.absent[i]), int(a.unknown[i]), w)
	if v == missing && !a.settled {
		return unsure
	}
	return v
}

func (a *answers) note(i, on int32, p disk.Presence) {
	switch p {
	case disk.Absent:
		a.absent[i]++
	case disk.Unknown:
		a.unknown[i]++
	case disk.Present:
		h := &a.holders[i]
		if h.n == 0 {
			a.held++
		}
		if h.n < maxHolders {
			h.at[h.n] = on
			h.n++
		}
	}
}

// Missing implements blob.Finder.
func (s *Store) Missing(ctx context.Context, ds []digest.Digest) ([]digest.Digest, error) {
	wait, cancel := patience(ctx)
	defer cancel()
	lost := make(map[digest.Digest]bool)
	rest := withoutEmpty(ds)
	for attempt := 0; len(rest) > 0; attempt++ {
		changed := s.placement.Changed()
		a := s.find(wait, s.view(), rest, true)
		left := rest[:0]
		for i, d := range rest {
			switch a.verdict(i, s.w) {
			case missing:
				lost[d] = true
			case present:
				s.notice(a, i, d)
			default:
				left = append(left, d)
			}
		}
		if rest = left; len(rest) == 0 {
			break
		}
		s.metrics.waits.Inc()
		if pause(wait, attempt, changed) != nil {
			return nil, fmt.Errorf("find %d of %d blobs: %w", len(rest), len(ds), gaveUp(ctx))
		}
	}
	if len(lost) == 0 {
		return nil, nil
	}
	out := make([]digest.Digest, 0, len(lost))
	for _, d := range ds {
		if lost[d] {
			out = append(out, d)
		}
	}
	return out, nil
}

// notice has a blob mended of which an owner said that it lacks it.
func (s *Store) notice(a *answers, i int, d digest.Digest) {
	if a.absent[i] > 0 {
		s.Mend(d)
	}
}

func withoutEmpty(ds []digest.Digest) []digest.Digest {
	out := make([]digest.Digest, 0, len(ds))
	for _, d := range ds {
		if !d.IsEmpty() {
			out = append(out, d)
		}
	}
	return out
}

// find asks the owners of ds, and then, for what none of them has, everyone
// else at once. (One after another down the rank order would find out the same
// in as many rounds as there are disks.)
func (s *Store) find(ctx context.Context, v *view, ds []digest.Digest, touch bool) *answers {
	a := &answers{
		v: v, settled: s.settled(), disks: len(v.disks),
		absent: make([]int32, len(ds)), unknown: make([]int32, len(ds)), holders: make([]holders, len(ds)),
	}
	asked := make(map[int32][]int32)
	var some [8]int32
	for i, d := range ds {
		for _, o := range v.owners(some[:0], d) {
			asked[o] = append(asked[o], int32(i))
		}
	}
	s.ask(ctx, ds, asked, touch, a)
	if a.held == len(ds) {
		return a
	}
	others := make(map[int32][]int32)
	for i, d := range ds {
		if a.holders[i].n > 0 {
			continue
		}
		owners := v.owners(some[:0], d)
		for o := range int32(len(v.disks)) {
			if !slices.Contains(owners, o) {
				others[o] = append(others[o], int32(i))
			}
		}
	}
	s.ask(ctx, ds, others, touch, a)
	if ctx.Err() != nil {
		a.settled = false // a disk that had no time to answer is not away
	}
	return a
}

type reply struct {
	on       int32
	of       []int32
	reached  bool
	presence []byte
	disks    int // that it knows
}

// ask puts to each disk the digests asked of it, all disks at once, and notes
// the answers. Once every digest has a holder it waits only a little for the
// others, which still learn of the use.
func (s *Store) ask(ctx context.Context, ds []digest.Digest, asked map[int32][]int32, touch bool, a *answers) {
	batches := 0
	for on, of := range asked {
		if on != a.v.self {
			batches += (len(of) + maxDigests - 1) / maxDigests
		}
	}
	replies := make(chan reply, batches)
	for on, of := range asked {
		if on == a.v.self {
			continue
		}
		for len(of) > 0 {
			n := min(len(of), maxDigests)
			s.exists(a.v.disks[on].Addr, on, of[:n], ds, touch, replies)
			of = of[n:]
		}
	}
	if of := asked[a.v.self]; len(of) > 0 {
		for j, p := range s.local.Presence(pick(ds, of), touch) {
			a.note(of[j], a.v.self, p)
		}
	}
	var enough <-chan time.Time
	for range batches {
		if enough == nil && a.held == len(ds) {
			t := time.NewTimer(touchGrace)
			defer t.Stop()
			enough = t.C
		}
		select {
		case r := <-replies:
			if !r.reached {
				continue
			}
			// Who knows more disks than this node tells of some that were not
			// asked.
			a.disks = max(a.disks, r.disks)
			for j, i := range r.of {
				a.note(i, r.on, presenceAt(r.presence, j))
			}
		case <-enough:
			return
		case <-ctx.Done():
			return
		}
	}
}

// exists asks one disk. It outlives its request: the touches are wanted even
// if nobody waits for the answer any more.
func (s *Store) exists(addr string, on int32, of []int32, ds []digest.Digest, touch bool, to chan<- reply) {
	req := &pb.ExistsRequest{Digests: digest.Pack(pick(ds, of)), Touch: touch}
	s.spawn(func() {
		ctx, cancel := context.WithTimeout(s.base, askTimeout)
		defer cancel()
		var resp pb.ExistsResponse
		r := reply{on: on, of: of}
		if err := s.peers.Call(ctx, addr, pb.Method_METHOD_BLOB_EXISTS, req, &resp); err == nil {
			r.reached, r.presence, r.disks = true, resp.Presence, int(resp.Disks)
		}
		to <- r
	})
}

func pick(ds []digest.Digest, of []int32) []digest.Digest {
	out := make([]digest.Digest, len(of))
	for j, i := range of {
		out[j] = ds[i]
	}
	return out
}

// locate says where d is: its holders, or blob.ErrNotFound if it is certain
// that nobody has it, or blob.ErrUnavailable if nobody could tell just now.
func (s *Store) locate(ctx context.Context, v *view, d digest.Digest) ([]int32, error) {
	a := s.find(ctx, v, []digest.Digest{d}, false)
	switch a.verdict(0, s.w) {
	case present:
		return a.holders[0].at[:a.holders[0].n], nil
	case missing:
		return nil, blob.ErrNotFound
	}
	return nil, blob.ErrUnavailable
}
