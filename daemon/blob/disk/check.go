package disk

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

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
		size, at, err := changed(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return diskError(err)
		case size != d.Size():
		case !l.recent(at):
			sh.flagLocked(i, flagFound, 0)
			return nil
		default:
			sums, err := l.s.variantSums(d, e)
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
		size, _, err := changed(path)
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
		if errors.Is(err, unix.ENOTDIR) {
			l.s.log.Warn("a foreign file lies in the store", "path", l.s.path(dir, fan))
			continue
		}
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
