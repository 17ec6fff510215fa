package disk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"strings"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// checkWindow is how long before the last sign of life something may have been
// written and yet not have reached the device: the kernel writes back what is
// older than half a minute.
const checkWindow = 5 * time.Minute

// recent reports whether t lies in the window that an unclean end makes
// doubtful.
func (l *loader) recent(t time.Time) bool {
	return !l.s.clean && t.After(l.last.Add(-checkWindow))
}

// checkPlaces drops entries whose records are not there, and reads those that
// were written last.
func (l *loader) checkPlaces(ctx context.Context) error {
	ends := make(map[uint32]uint32)
	doubtful := make(map[uint32]bool)
	for _, n := range l.s.old {
		g := l.s.segs.acquire(n)
		ends[n] = uint32(min(g.size.Load(), math.MaxUint32))
		st, err := g.f.Stat()
		g.release()
		if err != nil {
			return err
		}
		doubtful[n] = l.recent(st.ModTime())
	}
	l.each(func(_ *shard, _ uint32, d digest.Digest, e entry) {
		switch {
		case ctx.Err() != nil:
		case e.place.seg == 0:
			// A file that needs no record, or an entry that makes no sense.
			if e.flags&flagFile == 0 || sumsSize(d.Size()) > 0 {
				l.forget(d)
			}
		case int64(e.place.off)+recordBytes(d, e) > int64(ends[e.place.seg]):
			l.forget(d)
		case doubtful[e.place.seg]:
			n := d.Size()
			if e.flags&flagFile != 0 {
				n = sumsSize(n)
			}
			if _, err := l.s.readRecord(d, e, n); errors.Is(err, ErrCorrupt) {
				l.forget(d)
			}
		}
	})
	return ctx.Err()
}

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

// flagFound marks, while files are checked, the entries whose file is there.
const flagFound = flagSeen

// checkFiles compares the directory with the entries that are files.
func (l *loader) checkFiles(ctx context.Context) error {
	if l.s.clean {
		return nil
	}
	err := l.eachFile(ctx, dirFiles, func(path, name string) error {
		d, err := parseFileName(name)
		if err != nil {
			l.s.log.Warn("a foreign file lies in the store", "path", path)
			return nil
		}
		sh := l.x.shard(d)
		i := l.x.findLocked(sh, d)
		if i == 0 || sh.node(i).entry.flags&flagFile == 0 {
			return l.orphan(ctx, d, path)
		}
		e := sh.node(i).entry
		size, made, err := birth(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return diskError(err)
		case size != d.Size():
		case !l.recent(made):
			sh.flagLocked(i, flagFound, 0)
			return nil
		default:
			sums, _, err := l.s.variantSums(d, e)
			if err != nil && !errors.Is(err, ErrCorrupt) {
				return err
			}
			if err == nil {
				right, err := l.s.sameBytes(ctx, path, sums)
				if err != nil {
					return err
				}
				if right {
					sh.flagLocked(i, flagFound|flagPlainOK, 0)
					return nil
				}
			}
		}
		return l.discard(d, path)
	})
	if err != nil {
		return err
	}
	l.each(func(sh *shard, i uint32, d digest.Digest, e entry) {
		if e.flags&flagFile != 0 && e.flags&flagFound == 0 {
			l.forget(d)
			return
		}
		sh.flagLocked(i, 0, flagFound)
	})
	return nil
}

// discard deletes a file that nobody may read, unless a blob that was stored
// since the start has taken its name.
func (l *loader) discard(d digest.Digest, path string) error {
	lock := l.s.name(d)
	lock.Lock()
	defer lock.Unlock()
	if _, live := l.s.lookup(d, false); live {
		return nil
	}
	l.s.m.torn.Inc()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return diskError(err)
	}
	return nil
}

// orphan takes a file that no entry knows into the index if its bytes are
// right: the process died between giving it its name and journalling that.
func (l *loader) orphan(ctx context.Context, d digest.Digest, path string) error {
	if _, live := l.s.lookup(d, false); live {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return diskError(err)
	}
	defer f.Close()
	if !d.Function().Computable() || d.Size() <= blob.SmallSize {
		return l.discard(d, path)
	}
	h := digest.NewHasher(d.Function())
	var sum summer
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	for {
		n, err := f.Read(*buf)
		h.Write((*buf)[:n])
		sum.write((*buf)[:n])
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return diskError(err)
		}
	}
	if h.Digest() != d {
		return l.discard(d, path)
	}
	e := entry{sum: sum.sums()[0], touch: l.now, kind: Owned, flags: flagFile | flagPlainOK | flagFound}
	if sums := sum.sums(); len(sums) > 1 {
		l.s.space.used.Add(recordSize(d, sumsSize(d.Size())))
		r, err := l.s.storeSums(d, sums)
		if err != nil {
			return err
		}
		e.place, e.sum = r.at, r.sum
		l.s.segs.addLive(e.place.seg, -recordBytes(d, e)) // counted when handed over
	}
	l.x.addLocked(l.x.shard(d), d, e, true)
	l.s.journal.add(opSet, d, e)
	return nil
}

// checkLinks lets the directory say which files were made for linking. Their
// bytes are read before they are linked to.
func (l *loader) checkLinks(ctx context.Context) error {
	if l.s.clean {
		return nil
	}
	l.each(func(sh *shard, i uint32, _ digest.Digest, _ entry) {
		sh.flagLocked(i, 0, flagPlain|flagExec)
	})
	return l.eachFile(ctx, dirLinks, func(path, name string) error {
		name, executable := strings.CutSuffix(name, ".x")
		d, err := parseFileName(name)
		if err != nil {
			l.s.log.Warn("a foreign file lies in the store", "path", path)
			return nil
		}
		sh := l.x.shard(d)
		i := l.x.findLocked(sh, d)
		size, _, err := birth(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return diskError(err)
		}
		if i == 0 || err != nil || size != d.Size() || (!executable && d.Size() > blob.SmallSize) {
			return l.discard(d, path)
		}
		have, _ := linkFlags(false, executable)
		sh.flagLocked(i, have, 0)
		return nil
	})
}

// eachFile calls f for the files in the fan of a directory.
func (l *loader) eachFile(ctx context.Context, dir string, f func(path, name string) error) error {
	fans, err := readNames(l.s.path(dir))
	if err != nil {
		return diskError(err)
	}
	for _, fan := range fans {
		names, err := readNames(l.s.path(dir, fan))
		if err != nil {
			return diskError(err)
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := f(l.s.path(dir, fan, name), name); err != nil {
				return err
			}
		}
	}
	return nil
}
