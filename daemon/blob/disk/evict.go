package disk

import (
	"cmp"
	"context"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// lookEvery is how often the file system is asked what is free while nobody
// writes: others fill it too.
const lookEvery = 5 * time.Second

// keepRoom evicts and rewrites in the background, woken by writes.
func (s *Store) keepRoom(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		s.space.look(s)
		found := false
		if s.shortage() > 0 {
			found = s.evict(ctx)
			s.space.look(s)
			if !found {
				s.space.fruitless.Store(time.Now().UnixNano())
			}
		} else {
			s.space.full.Store(false)
		}
		found = s.rewriteSparse(ctx) || found
		s.space.endRound(found)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.space.wake:
		}
	}
}

// shortage is how many bytes must go; at most 0 when nothing must.
func (s *Store) shortage() int64 {
	p := &s.space
	var n int64
	if used := p.used.Load(); used > p.high {
		n = used - p.low
	}
	if free := p.free.Load(); free < p.reserve+p.reserve/8 {
		// Aim above the reserve, so that the next write does not meet it.
		n = max(n, p.reserve+p.reserve/4-free)
	}
	if n == 0 && p.noInode.Load() {
		n = 1
	}
	return n
}

// evict makes room: cached copies go first, then files made for linking, then
// owned copies that are old enough; each in the order of their last use. It
// reports whether it found anything.
func (s *Store) evict(ctx context.Context) bool {
	goal := s.space.used.Load() - s.shortage()
	// Segments give back what is dead in them only when they are rewritten:
	// leaving a little more dead than needed lets the emptiest suffice.
	slack := max(0, min(s.space.low-s.space.live, goal/10))
	inodes := s.space.noInode.Load()
	done := func() bool {
		if inodes {
			s.space.look(s)
			inodes = s.space.noInode.Load()
		}
		return ctx.Err() != nil || !inodes && s.space.used.Load()-s.deadBytes() <= goal-slack
	}
	n := 0
	if inodes {
		n += s.evictVariants(done)
	}
	n += s.evictKind(Cached, s.now(), done)
	if !done() {
		n += s.evictVariants(done)
	}
	if !done() {
		oldest := time.Now().Add(-s.o.MinAge).Unix()
		n += s.evictKind(Owned, uint32(max(oldest, 0)), done)
	}
	if err := s.journal.flush(); err != nil {
		s.log.Warn("evictions are not journalled", "err", err)
	}
	return s.rewriteFor(ctx, goal)+n > 0
}

// deadBytes is what rewriting segments would give back.
func (s *Store) deadBytes() (n int64) {
	for _, g := range s.segs.all() {
		if g.sealed.Load() && !g.stuck {
			n += max(g.dead(), 0)
		}
	}
	return n
}

// evictKind drops copies of a kind, last used at until or before, oldest first,
// and returns how many.
func (s *Store) evictKind(kind Kind, until uint32, done func() bool) (n int) {
	st := s.counts()
	left := st.CachedBlobs
	if kind == Owned {
		left = st.OwnedBlobs
	}
	// A blob in use is touched instead, and would come round for ever.
	for i := range 4*left + 4*shardCount {
		if i%16 == 0 && done() {
			return n
		}
		d, e, ok := s.oldest(kind, int(i))
		if !ok || e.touch > until {
			return n
		}
		if s.inUse(d, e) {
			s.lookup(d, true)
			continue
		}
		if s.drop(d, e) {
			n++
			if kind == Owned {
				s.raiseHorizon(d.Prefix(), e.touch)
			}
			s.m.evicted.WithLabelValues(kind.String()).Inc()
			s.m.evictedBytes.WithLabelValues(kind.String()).Add(float64(d.Size()))
		}
	}
	return n
}

// oldest finds the least recently used copy of a kind. Among those used in one
// second the first shard's wins, beginning with shard from: a fast history on
// a small disk is fair to all shards if from differs.
func (s *Store) oldest(kind Kind, from int) (d digest.Digest, e entry, ok bool) {
	for i := range s.index.shards {
		sh := &s.index.shards[(from+i)%shardCount]
		sh.mu.Lock()
		if at := sh.lists[kind-1].oldest; at != 0 && (!ok || sh.node(at).entry.touch < e.touch) {
			d, e, ok = sh.digestLocked(at), sh.node(at).entry, true
		}
		sh.mu.Unlock()
	}
	return d, e, ok
}

// inUse reports whether something links to a file of the blob: dropping it
// would take it from nobody and free nothing.
func (s *Store) inUse(d digest.Digest, e entry) bool {
	for _, path := range s.files(d, e) {
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil && st.Nlink > 1 {
			return true
		}
	}
	return false
}

// evictVariants drops files made for linking that nothing links to, and returns
// how many.
func (s *Store) evictVariants(done func() bool) (n int) {
	type victim struct {
		d     digest.Digest
		e     entry
		touch uint32
	}
	for i := range s.index.shards {
		sh := &s.index.shards[i]
		var vs []victim
		sh.mu.Lock()
		for k := range sh.lists {
			for at := sh.lists[k].oldest; at != 0 && sh.variants > 0; at = sh.node(at).newer {
				if e := sh.node(at).entry; e.flags&(flagPlain|flagExec) != 0 {
					vs = append(vs, victim{sh.digestLocked(at), e, e.touch})
				}
			}
		}
		sh.mu.Unlock()
		slices.SortFunc(vs, func(a, b victim) int { return cmp.Compare(a.touch, b.touch) })
		for j, v := range vs {
			if j%16 == 0 && done() {
				return n
			}
			for _, executable := range []bool{false, true} {
				only := v.e
				only.flags &= flagPlain
				if executable {
					only.flags = v.e.flags & flagExec
				}
				if only.flags == 0 || s.inUse(v.d, only) {
					continue
				}
				l := s.name(v.d)
				l.Lock()
				s.dropVariant(v.d, executable)
				l.Unlock()
				n++
			}
		}
	}
	return n
}
