package disk

import (
	"context"
	"errors"
	"io"
	"time"

	"golang.org/x/time/rate"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// scrub reads what nobody reads, at a bounded rate, so that rot is found while
// other copies are intact.
func (s *Store) scrub(ctx context.Context) {
	if s.o.ScrubRate <= 0 {
		return
	}
	limit := rate.NewLimiter(rate.Limit(s.o.ScrubRate), sumChunk)
	for {
		timer := time.NewTimer(s.o.ScrubEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		s.scrubRound(ctx, limit)
	}
}

func (s *Store) scrubRound(ctx context.Context, limit *rate.Limiter) {
	for i := range s.index.shards {
		for _, d := range s.unseen(&s.index.shards[i]) {
			if s.scrubOne(ctx, limit, d); ctx.Err() != nil {
				return
			}
		}
	}
}

// unseen lists the blobs of a shard that were not read since the last round.
func (s *Store) unseen(sh *shard) (ds []digest.Digest) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for k := range sh.lists {
		for at := sh.lists[k].oldest; at != 0; at = sh.node(at).newer {
			if sh.node(at).entry.flags&flagSeen == 0 {
				ds = append(ds, sh.digestLocked(at))
			}
			sh.flagLocked(at, 0, flagSeen)
		}
	}
	return ds
}

// scrubOne reads a blob without counting as its use; a corrupt one is dropped
// on the way.
func (s *Store) scrubOne(ctx context.Context, limit *rate.Limiter, d digest.Digest) {
	e, ok := s.lookup(d, false)
	if !ok {
		return
	}
	var err error
	if e.flags&flagFile == 0 {
		if limit.WaitN(ctx, int(d.Size())) != nil {
			return
		}
		_, err = s.readSmall(d, e)
	} else {
		var r *fileReader
		if r, err = s.openFile(ctx, d, e); err == nil {
			_, err = io.Copy(pacer{ctx, limit}, r)
			r.Close()
		}
	}
	s.m.scrubbed.Add(float64(d.Size()))
	if err != nil && !errors.Is(err, ErrCorrupt) && ctx.Err() == nil {
		s.log.Warn("a blob could not be scrubbed", "digest", d, "err", err)
	}
}

// pacer swallows bytes at a rate.
type pacer struct {
	ctx   context.Context
	limit *rate.Limiter
}

func (p pacer) Write(b []byte) (int, error) {
	return len(b), p.limit.WaitN(p.ctx, len(b))
}
