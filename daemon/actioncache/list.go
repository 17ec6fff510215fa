package actioncache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
)

// maxScan bounds what one page of a list reads from the disk.
const maxScan = 8 << 20

// A journal is listed from its oldest segment to its newest, so that what
// compaction moves ahead of the cursor is met there again.
type cursor struct {
	segment uint32
	off     int64
}

func parseCursor(b []byte) (cursor, error) {
	switch len(b) {
	case 0:
		return cursor{}, nil
	case 12:
		return cursor{binary.BigEndian.Uint32(b), int64(binary.BigEndian.Uint64(b[4:]))}, nil
	}
	return cursor{}, fmt.Errorf("%w: cursor", ErrMalformed)
}

func (c cursor) pack() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, c.segment), uint64(c.off))
}

// List returns entries with a stamp of since or later, of about maxBytes; next
// is where the following page starts, nil at the end. An entry that is there
// throughout all pages, and is not overwritten, stands in one at least. Those
// stamped before resultsSince come without results. A page may be empty.
func (j *Journal) List(after []byte, since, resultsSince int64, maxBytes int) (es []Entry, next []byte, err error) {
	at, err := parseCursor(after)
	if err != nil {
		return nil, nil, err
	}
	p := page{j: j, since: since, resultsSince: resultsSince, maxBytes: maxBytes}
	for {
		id, ok := j.segmentFrom(at.segment)
		if !ok {
			return p.entries, nil, nil
		}
		if id != at.segment {
			at = cursor{segment: id}
		}
		done, err := p.segment(&at)
		if err != nil {
			return nil, nil, err
		}
		if !done {
			return p.entries, at.pack(), nil
		}
		at = cursor{segment: id + 1}
	}
}

// page is a page of a list in the making.
type page struct {
	j            *Journal
	since        int64
	resultsSince int64
	maxBytes     int

	entries []Entry
	size    int
	scanned int64
}

// segment goes on with the segment at c, and reports whether it came to its
// end; else the page is full, and c is where the next one starts.
func (p *page) segment(c *cursor) (end bool, err error) {
	for {
		if p.size >= p.maxBytes || p.scanned >= maxScan {
			return false, nil
		}
		chunk, whole, err := p.j.chunk(*c, p.since, int64(p.maxBytes))
		if err != nil {
			return false, err
		}
		if len(chunk) == 0 {
			return true, nil
		}
		start, full := *c, false
		done, _ := scan(chunk, whole, func(r record) {
			if full || r.stamp < p.since || !p.j.holds(start, r) {
				return
			}
			if full = !p.add(r); full {
				c.off = start.off + r.off
			}
		})
		if full {
			return false, nil
		}
		c.off += int64(done)
		p.scanned += int64(len(chunk))
	}
}

// add reports whether r had room.
func (p *page) add(r record) bool {
	cost := len(r.raw)
	e, err := r.entry()
	if err != nil {
		return true // its checksum was right: written by a version that keeps others
	}
	if e.Stamp < p.resultsSince {
		cost -= len(e.Result)
		e.Result = nil
	}
	if p.size > 0 && p.size+cost > p.maxBytes {
		return false
	}
	p.entries = append(p.entries, e)
	p.size += cost
	return true
}

// chunk reads about n bytes of records at c, at least one record; whole says
// that it ends with the segment. At the segment's end, or where nothing is
// young enough, it is empty.
func (j *Journal) chunk(c cursor, since, n int64) (b []byte, whole bool, err error) {
	j.mu.Lock()
	s := j.segments[c.segment]
	var size int64
	if s != nil && s.newest >= since {
		size = s.size
	}
	j.mu.Unlock()
	if c.off < 0 || c.off >= size {
		return nil, true, nil
	}
	rest := size - c.off
	n = min(max(n, recordHead), rest)
	for {
		if b, err = s.read(c.off, n); err != nil {
			if errors.Is(err, os.ErrClosed) {
				return nil, true, nil // dropped: what was alive is further on
			}
			return nil, false, err
		}
		first := min(int64(recordSize(b)), rest)
		if first <= n {
			return b, n == rest, nil
		}
		n = first
	}
}

// holds reports whether the index points to r, found at c.
func (j *Journal) holds(c cursor, r record) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	p, ok := j.index[r.tag]
	return ok && p.segment == c.segment && int64(p.off) == c.off+r.off
}
