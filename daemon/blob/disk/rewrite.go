package disk

import (
	"cmp"
	"context"
	"errors"
	"os"
	"slices"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// rewriteFor rewrites segments, those with the most dead bytes first, until no
// more than goal bytes are used, and returns how many.
func (s *Store) rewriteFor(ctx context.Context, goal int64) (n int) {
	for ctx.Err() == nil && s.space.used.Load() > goal {
		g := s.deadest(func(g *segment) bool { return g.dead() > 0 })
		if g == nil || !s.rewrite(ctx, g) {
			return n
		}
		n++
	}
	return n
}

// rewriteSparse rewrites segments of which less than half is alive, and those
// that a restart left small. It reports whether there were any.
func (s *Store) rewriteSparse(ctx context.Context) (found bool) {
	for ctx.Err() == nil {
		g := s.deadest(func(g *segment) bool {
			return g.dead() > (g.size.Load()-magicSize)/2 || g.size.Load() < s.app.limit/8
		})
		if g == nil || !s.rewrite(ctx, g) {
			return found
		}
		found = true
	}
	return found
}

// deadest is the sealed segment with the most dead bytes among those that are
// eligible. The one that is written to is sealed when it is mostly dead.
func (s *Store) deadest(eligible func(*segment) bool) *segment {
	gs := s.segs.all()
	gs = slices.DeleteFunc(gs, func(g *segment) bool {
		if !g.sealed.Load() && g.size.Load() > s.app.limit/2 && g.dead() > g.size.Load()/2 {
			s.app.seal()
		}
		return !g.sealed.Load() || g.stuck || !eligible(g)
	})
	if len(gs) == 0 {
		return nil
	}
	return slices.MaxFunc(gs, func(a, b *segment) int { return cmp.Compare(a.dead(), b.dead()) })
}

type liveRecord struct {
	d digest.Digest
	e entry
}

// rewrite moves what is alive in a segment to the newest one, and deletes it.
func (s *Store) rewrite(ctx context.Context, g *segment) bool {
	live := s.liveIn(g.number)
	for len(live) > 0 {
		if ctx.Err() != nil {
			return false
		}
		n := min(len(live), 256)
		if err := s.moveRecords(live[:n]); err != nil {
			s.log.Warn("a sparse segment is not rewritten", "segment", g.number, "err", err)
			return false
		}
		live = live[n:]
	}
	if err := s.journal.flush(); err != nil {
		s.log.Warn("a sparse segment is not rewritten", "segment", g.number, "err", err)
		return false
	}
	if g.live.Load() != 0 {
		// The sums of a file that is about to get its name. Once is enough to
		// see it: a restart counts anew.
		g.tries++
		g.stuck = g.tries > 16
		return false
	}
	if err := s.app.surpass(g.number); err != nil {
		s.log.Warn("a sparse segment is not deleted", "segment", g.number, "err", err)
		return false
	}
	if err := os.Remove(g.path); err != nil {
		s.log.Warn("a segment stays", "segment", g.number, "err", err)
		g.stuck = true
		return false
	}
	s.segs.remove(g)
	s.release(g.size.Load())
	s.m.rewritten.Inc()
	return true
}

// liveIn lists what the index says lies in a segment, in its order there.
func (s *Store) liveIn(number uint32) (rs []liveRecord) {
	for i := range s.index.shards {
		sh := &s.index.shards[i]
		sh.mu.Lock()
		for k := range sh.lists {
			for at := sh.lists[k].oldest; at != 0; at = sh.node(at).newer {
				if e := sh.node(at).entry; e.place.seg == number {
					rs = append(rs, liveRecord{sh.digestLocked(at), e})
				}
			}
		}
		sh.mu.Unlock()
	}
	slices.SortFunc(rs, func(a, b liveRecord) int { return cmp.Compare(a.e.place.off, b.e.place.off) })
	return rs
}

// moveRecords writes records again. It goes beyond the limit for writes, which
// leaves room for that.
func (s *Store) moveRecords(live []liveRecord) error {
	var recs []*record
	var need int64
	for _, v := range live {
		n, what := v.d.Size(), uint8(v.e.kind)
		if v.e.flags&flagFile != 0 {
			n, what = sumsSize(v.d.Size()), recSums
		}
		data, err := s.readRecord(v.d, v.e, n)
		if errors.Is(err, ErrCorrupt) {
			_ = s.rotten(v.d, v.e, "its record's checksum differs") // for whom would read it
			continue
		}
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return err
		}
		r := &record{d: v.d, what: what, sum: v.e.sum, data: data}
		r.commit = func(r *record) { s.move(v.d, v.e.place, r.at) }
		recs = append(recs, r)
		need += recordSize(v.d, n)
	}
	s.space.used.Add(need)
	err := s.app.append(recs)
	for _, r := range recs {
		if !r.done {
			s.space.used.Add(-recordSize(r.d, int64(len(r.data))))
		}
	}
	return err
}
