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

// judge applies the rule: any "present" wins; "missing" takes the word of enough
// settled owners, among whom one of the w that acknowledged a write must be.
func judge(holders, sure, r, w int) verdict {
	switch {
	case holders > 0:
		return present
	case r > 0 && sure > r-min(w, r):
		return missing
	}
	return unsure
}

// maxHolders is how many of a blob's holders are remembered.
const maxHolders = 4

// question is what is asked of the disks.
type question struct {
	touch    bool // the blobs are used
	held     bool // only what can be read counts as present
	everyone bool // and not only the owners, even where they can tell
}

// answers is what disks said about some digests.
type answers struct {
	v        *view
	r, w     int // owners of a blob, and how many of them acknowledge it
	settled  bool
	absent   []int32 // "absent" from whomever
	sure     []int32 // from settled owners
	heard    []int32 // owners that answered
	holders  []holders
	held     int // how many digests have a holder
	decided  int // how many have a verdict
	answered int // disks that answered, this one included
	others   int // of those, disks that see another placement
	silent   int // disks that were asked and did not answer
}

type holders struct {
	n  uint8
	at [maxHolders]int32
}

func newAnswers(s *Store, v *view, n int) *answers {
	r := min(s.r, v.placed)
	return &answers{
		v: v, r: r, w: min(s.w, r), settled: s.settled(),
		absent: make([]int32, n), sure: make([]int32, n), heard: make([]int32, n), holders: make([]holders, n),
	}
}

func (a *answers) judge(i int) verdict { return judge(int(a.holders[i].n), int(a.sure[i]), a.r, a.w) }

// verdict is judge's, but for one case: an owner that does not answer may have
// what was written under a placement that those who answered have not heard of.
// Then all that answered must see the placement that this node sees.
func (a *answers) verdict(i int) verdict {
	v := a.judge(i)
	if v == missing && (!a.settled || int(a.heard[i]) < a.r && a.others > 0) {
		return unsure
	}
	return v
}

// nobody reports whether everyone was asked, answered, and lacks digest i.
func (a *answers) nobody(i int) bool {
	return a.settled && a.silent == 0 && a.others == 0 && int(a.absent[i]) == a.answered && a.answered == len(a.v.disks)
}

func (a *answers) note(i, on int32, p disk.Presence, owner bool) {
	before := a.judge(int(i))
	if owner && p != disk.Unknown {
		a.heard[i]++
	}
	switch p {
	case missingHere:
		a.absent[i]++
		a.sure[i]++
	case disk.Absent:
		a.absent[i]++
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
	if before == unsure && a.judge(int(i)) != unsure {
		a.decided++
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
		a := s.find(wait, s.view(), rest, question{touch: true})
		left := rest[:0]
		for i, d := range rest {
			switch a.verdict(i) {
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

// find asks the owners of ds, and then, for what they could not settle, everyone
// else at once. (One after another down the rank order would find out the same
// in as many rounds as there are disks.)
func (s *Store) find(ctx context.Context, v *view, ds []digest.Digest, q question) *answers {
	a := newAnswers(s, v, len(ds))
	owners := make(map[int32][]int32)
	var some [8]int32
	for i, d := range ds {
		for _, o := range v.owners(some[:0], d) {
			owners[o] = append(owners[o], int32(i))
		}
	}
	s.ask(ctx, ds, owners, true, q, a)
	others := make(map[int32][]int32)
	for i, d := range ds {
		// Whoever reads is glad of any copy.
		sure := a.judge(i) == missing && int(a.heard[i]) == a.r && !q.held
		if !q.everyone && (a.holders[i].n > 0 || sure) {
			continue
		}
		own := v.owners(some[:0], d)
		for o := range int32(len(v.disks)) {
			if !slices.Contains(own, o) {
				others[o] = append(others[o], int32(i))
			}
		}
	}
	s.ask(ctx, ds, others, false, q, a)
	return a
}

type reply struct {
	on       int32
	of       []int32
	reached  bool
	presence []byte
	view     uint64
}

// ask puts to each disk the digests asked of it, all disks at once, and notes
// the answers. Once every digest has a verdict it waits only a little for the
// others, which still learn of the use.
func (s *Store) ask(ctx context.Context, ds []digest.Digest, asked map[int32][]int32, owners bool, q question, a *answers) {
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
			s.exists(a.v, on, of[:n], ds, q, replies)
			of = of[n:]
		}
	}
	if of := asked[a.v.self]; len(of) > 0 {
		a.answered++
		for j, p := range s.keeper.presence(pick(ds, of), q.touch, q.held) {
			a.note(of[j], a.v.self, p, owners)
		}
	}
	var enough <-chan time.Time
	for left := batches; left > 0; left-- {
		if enough == nil && a.decided == len(ds) && !q.everyone {
			t := time.NewTimer(touchGrace)
			defer t.Stop()
			enough = t.C
		}
		select {
		case r := <-replies:
			if !r.reached {
				a.silent++
				continue
			}
			a.answered++
			if r.view != a.v.tab.ID() {
				a.others++
			}
			for j, i := range r.of {
				a.note(i, r.on, presenceAt(r.presence, j), owners)
			}
		case <-enough:
			a.silent += left
			return
		case <-ctx.Done():
			a.silent += left
			return
		}
	}
}

// exists asks one disk. It outlives its request: the touches are wanted even
// if nobody waits for the answer any more.
func (s *Store) exists(v *view, on int32, of []int32, ds []digest.Digest, q question, to chan<- reply) {
	req := &pb.ExistsRequest{Digests: digest.Pack(pick(ds, of)), Touch: q.touch, Held: q.held}
	s.spawn(func() {
		ctx, cancel := context.WithTimeout(s.base, askTimeout)
		defer cancel()
		var resp pb.ExistsResponse
		r := reply{on: on, of: of}
		if err := s.reach(ctx, v, on, pb.Method_METHOD_BLOB_EXISTS, req, &resp); err == nil {
			r.reached, r.presence, r.view = true, resp.Presence, resp.View
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
	a := s.find(ctx, v, []digest.Digest{d}, question{held: true})
	switch a.verdict(0) {
	case present:
		return a.holders[0].at[:a.holders[0].n], nil
	case missing:
		return nil, blob.ErrNotFound
	}
	return nil, blob.ErrUnavailable
}
