package disk

import (
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// scanSegments finds the records that no index file knows.
func (l *loader) scanSegments(ctx context.Context) error {
	for _, n := range l.s.old {
		g := l.s.segs.acquire(n)
		err := l.scan(ctx, g, int64(max(l.marks[n], magicSize)))
		g.release()
		if err != nil {
			return err
		}
		if err := l.s.journal.flush(); err != nil {
			return err
		}
	}
	return nil
}

// scan reads a segment from an offset. A damaged record is skipped; what
// follows is found by its magic, and believed only because its bytes have the
// digest that it names: a blob may look like records.
func (l *loader) scan(ctx context.Context, g *segment, from int64) error {
	end := g.size.Load()
	const step = 4 << 20
	var buf []byte
	l.astray = false
	for at := from; at < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(step, end-at)
		if int64(cap(buf)) < n {
			buf = make([]byte, n)
		}
		buf = buf[:n]
		if _, err := g.f.ReadAt(buf, at); err != nil && !errors.Is(err, io.EOF) {
			return diskError(err)
		}
		used, want := l.scanBuffer(g, buf, at, at+n == end)
		at += used
		if used == 0 {
			// One record that is longer than the buffer: the sums of a huge
			// file, which its own entry must know.
			at += want
		}
	}
	return nil
}

// scanBuffer takes the records out of b, which lies at off, and returns how
// much of b is done with. When that is nothing, want is the first record's
// length.
func (l *loader) scanBuffer(g *segment, b []byte, off int64, last bool) (used, want int64) {
	at := 0
	for at < len(b) {
		h, ok := parseRecordHeader(b[at:])
		switch {
		case ok && at+h.size+h.n <= len(b):
			if l.found(h, b[at+h.size:at+h.size+h.n], place{g.number, uint32(off) + uint32(at)}) {
				l.astray = false
			}
			if !l.astray {
				at += h.size + h.n
				continue
			}
		case ok && !last && (!l.astray || h.n <= blob.SmallSize):
			return int64(at), int64(h.size + h.n)
		case !ok && !last && len(b)-at < recHeader+digest.MaxHashSize:
			// A header may go on behind the end.
			if at > 0 {
				return int64(at), 0
			}
		}
		// Torn or damaged: on to what may be the next magic. Until a blob is
		// found whole no header is believed: it may be part of a blob.
		l.astray = true
		at++
		if at+4 < len(b) {
			next := bytes.IndexByte(b[at+4:], recMagic)
			if next < 0 {
				if last {
					return int64(len(b)), 0
				}
				at = max(at, len(b)-4)
				return int64(at), 0
			}
			at += next
		}
	}
	return int64(len(b)), 0
}

// found enters a record that no index file knows. It reports whether the
// record is a blob that is right.
func (l *loader) found(h header, data []byte, at place) bool {
	if h.what == recSums {
		return false // the journal tells of files
	}
	kind := Kind(h.what)
	d, err := digest.New(h.fn, h.hash, int64(h.n))
	if err != nil || (kind != Owned && kind != Cached) {
		return false
	}
	if checksum(data) != h.sum || verify(d, data) != nil {
		l.s.m.torn.Inc()
		return false
	}
	if _, dropped := l.dropped[at]; dropped {
		return true
	}
	sh := l.x.shard(d)
	if l.x.findLocked(sh, d) != 0 {
		return true
	}
	e := entry{place: at, sum: h.sum, touch: l.now, kind: kind}
	l.x.addLocked(sh, d, e, true)
	l.s.journal.add(opSet, d, e)
	return true
}
