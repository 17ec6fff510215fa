package actioncache

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
)

// Append keeps those of es that are later than what the journal holds, in one
// write. After an error some of them may not be kept.
func (j *Journal) Append(es []Entry) error {
	j.wmu.Lock()
	defer j.wmu.Unlock()
	var buf []byte
	for i := range es {
		n := len(buf)
		var err error
		if buf, err = appendRecord(buf, &es[i]); err != nil {
			return err
		}
		r, err := checkRecord(buf[n:])
		if err != nil {
			return fmt.Errorf("%w: %w", ErrTooLarge, err)
		}
		if !j.newer(r) {
			buf = buf[:n]
		}
		if len(buf) >= int(j.segmentSize)/2 {
			if err := j.write(buf); err != nil {
				return err
			}
			buf = buf[:0]
		}
	}
	return j.write(buf)
}

// write appends records to the active segment, and makes the index point to
// them. The caller holds wmu.
func (j *Journal) write(records []byte) error {
	if len(records) == 0 {
		return nil
	}
	s, err := j.roll(int64(len(records)))
	if err != nil {
		return err
	}
	// What a failed write left behind is written over by the next.
	off := s.size
	if _, err := s.file.WriteAt(records, off); err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			return fmt.Errorf("append to action journal: %w: %w", blob.ErrFull, err)
		}
		return fmt.Errorf("append to action journal: %w: %w", blob.ErrUnavailable, err)
	}
	j.mu.Lock()
	s.size += int64(len(records))
	j.bytes += int64(len(records))
	j.mu.Unlock()
	scan(records, true, func(r record) {
		r.off += off
		j.point(s, r)
	})
	return nil
}

// roll returns the active segment, a new one where n more bytes don't fit. It
// makes room within the budget: the oldest segment goes first. The caller
// holds wmu.
func (j *Journal) roll(n int64) (*segment, error) {
	j.mu.Lock()
	s, id, closed := j.active, j.nextID, j.closed
	j.mu.Unlock()
	if closed {
		return nil, fmt.Errorf("append to action journal: %w: it is closed", blob.ErrUnavailable)
	}
	if s != nil && s.size+n <= j.segmentSize {
		return s, nil
	}
	for _, old := range j.ids() {
		if j.Stats().Bytes+max(n, j.segmentSize) <= j.budget {
			break
		}
		j.drop(old)
	}
	file, err := os.OpenFile(j.path(id), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start journal segment: %w: %w", blob.ErrUnavailable, err)
	}
	s = &segment{id: id, file: file}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.segments[id], j.active = s, s
	j.nextID++
	return s, nil
}

// drop deletes a segment and what the index finds in it. The caller holds wmu.
func (j *Journal) drop(id uint32) {
	j.mu.Lock()
	s := j.segments[id]
	if s == nil {
		j.mu.Unlock()
		return
	}
	delete(j.segments, id)
	j.bytes -= s.size
	if s.unread {
		j.unread--
	}
	if j.active == s {
		j.active = nil
	}
	if s.live > 0 {
		evicted := 0
		for t, p := range j.index {
			if p.segment == id {
				delete(j.index, t)
				evicted++
			}
		}
		j.metrics.evicted.Add(float64(evicted))
	}
	j.mu.Unlock()
	if err := errors.Join(os.Remove(j.path(id)), s.file.Close()); err != nil {
		j.log.Error("action journal segment not removed", "segment", id, "err", err)
	}
}

// compact rewrites the segments of which less than half is alive, and the
// small ones that restarts leave behind: the oldest first.
func (j *Journal) compact(ctx context.Context) {
	for _, id := range j.ids() {
		if ctx.Err() != nil {
			return
		}
		j.mu.Lock()
		s := j.segments[id]
		sparse := s != nil && s != j.active && !s.unread && s.live < j.segmentSize/2
		j.mu.Unlock()
		if !sparse {
			continue
		}
		if err := j.rewrite(s); err != nil {
			j.log.Error("action journal segment not compacted", "segment", id, "err", err)
			return
		}
		j.metrics.compactions.Inc()
	}
}

// rewrite moves what is alive in s to the active segment, and drops s when that
// is on the disk.
func (j *Journal) rewrite(s *segment) error {
	to, err := j.move(s)
	if err != nil {
		return err
	}
	if to != nil {
		// Closed means dropped meanwhile: the budget was that small.
		if err := to.file.Sync(); err != nil && !errors.Is(err, os.ErrClosed) {
			return fmt.Errorf("sync segment: %w", err)
		}
	}
	j.wmu.Lock()
	defer j.wmu.Unlock()
	j.drop(s.id)
	return nil
}

// move copies s's live records to the active segment, which it returns.
func (j *Journal) move(s *segment) (*segment, error) {
	j.wmu.Lock()
	defer j.wmu.Unlock()
	if j.segment(s.id) == nil {
		return nil, nil //nolint:nilnil // evicted meanwhile
	}
	b, err := s.read(0, s.size)
	if err != nil {
		return nil, err
	}
	var live []byte
	scan(b, true, func(r record) {
		if j.pointsTo(s, r) {
			live = append(live, r.raw...)
		}
	})
	if len(live) == 0 {
		return nil, nil //nolint:nilnil // nothing to move
	}
	to, err := j.roll(int64(len(live)))
	if err != nil {
		return nil, err
	}
	return to, j.relocate(s, to, live)
}

func (j *Journal) pointsTo(s *segment, r record) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	p, ok := j.index[r.tag]
	return ok && p.segment == s.id && int64(p.off) == r.off
}

// relocate appends records to to and makes the index point there instead of to
// from. The caller holds wmu.
func (j *Journal) relocate(from, to *segment, records []byte) error {
	off := to.size
	if _, err := to.file.WriteAt(records, off); err != nil {
		return fmt.Errorf("rewrite segment: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	to.size += int64(len(records))
	j.bytes += int64(len(records))
	scan(records, true, func(r record) {
		p, ok := j.index[r.tag]
		if !ok || p.segment != from.id {
			return // a reader found it corrupt meanwhile, or the budget took it
		}
		from.live -= int64(p.size)
		to.live += int64(p.size)
		to.newest = max(to.newest, r.stamp)
		j.index[r.tag] = place{segment: to.id, off: uint32(off + r.off), size: p.size, stamp: p.stamp}
	})
	return nil
}
