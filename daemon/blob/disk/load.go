package disk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// loader reads back what the processes before left behind, into an index of
// its own. The live index takes it over at the end, in one go.
type loader struct {
	s       *Store
	x       *index
	marks   map[uint32]uint32  // up to where a segment's records are in the index files
	dropped map[place]struct{} // places that were dropped, by the journals
	broken  bool               // the index files do not tell everything
	last    time.Time          // the last sign of life
	now     uint32

	ended    bool // the snapshot is whole
	journals int
	astray   bool // the scan of a segment has met damage, and nothing right since
}

// load reads the index.
func (s *Store) load(ctx context.Context) error {
	start := time.Now()
	l := &loader{
		s:       s,
		x:       newIndex(s.index.seed[0], s.index.seed[1]),
		marks:   make(map[uint32]uint32),
		dropped: make(map[place]struct{}),
		now:     s.now(),
	}
	if err := l.openSegments(); err != nil {
		return err
	}
	if err := l.readIndex(ctx); err != nil {
		return err
	}
	if !s.clean {
		s.log.Warn("the disk was not closed cleanly: checking what was written last")
	}
	for _, step := range []func(context.Context) error{l.checkPlaces, l.scanSegments, l.checkFiles, l.checkLinks} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	l.handOver()
	st := s.counts()
	s.log.Info("the index is read", "blobs", st.OwnedBlobs+st.CachedBlobs, "dur", time.Since(start), "clean", s.clean)
	if !s.clean || l.journals > 16 {
		// What was found must not have to be found again.
		if err := s.snapshot(); err != nil {
			s.log.Error("the index is not journalled", "err", err)
		}
	}
	return nil
}

func (l *loader) openSegments() error {
	for _, n := range l.s.old {
		g := &segment{number: n, path: l.s.segmentPath(n)}
		f, err := os.OpenFile(g.path, os.O_RDONLY, 0)
		if err != nil {
			return fmt.Errorf("open segment %d: %w", n, err)
		}
		st, err := f.Stat()
		if err != nil {
			f.Close()
			return fmt.Errorf("open segment %d: %w", n, err)
		}
		g.f = f
		g.size.Store(max(st.Size(), magicSize))
		g.sealed.Store(true)
		l.alive(st.ModTime())
		l.s.segs.add(g)
		l.s.space.used.Add(g.size.Load())
	}
	return nil
}

func (l *loader) alive(t time.Time) {
	if t.After(l.last) {
		l.last = t
	}
}

// readIndex reads the newest snapshot and the journals since.
func (l *loader) readIndex(ctx context.Context) error {
	names, err := readNames(l.s.path(dirIndex))
	if err != nil {
		return err
	}
	var newest uint64
	var journals []uint64
	for _, name := range names {
		what, gen, ok := indexFile(name)
		switch {
		case ok && what == "snapshot":
			newest = max(newest, gen)
		case ok && what == "journal" && gen < l.s.generation:
			journals = append(journals, gen)
		}
	}
	slices.Sort(journals)
	next := max(newest, 1) // snapshots and journals follow each other without a gap
	if newest > 0 {
		whole, err := l.readFile(ctx, l.s.snapshotPath(newest))
		if err != nil {
			return err
		}
		l.broken = !whole || !l.ended
	}
	for _, gen := range journals {
		if gen < newest {
			continue
		}
		whole, err := l.readFile(ctx, l.s.journalPath(gen))
		if err != nil {
			return err
		}
		// The last journal of a process that was killed may end anywhere. What
		// it lacks stands behind the marks that it lacks too.
		l.broken = l.broken || gen != next || (!whole && (l.s.clean || gen+1 != l.s.generation))
		next = gen + 1
		l.journals++
	}
	if l.broken || next != l.s.generation {
		l.s.log.Error("the index is damaged: reading everything")
		l.s.clean = false
		clear(l.marks)
		clear(l.dropped)
	}
	return nil
}

// readFile applies the operations of an index file, up to the first that is
// damaged. It reports whether the file was read to its end.
func (l *loader) readFile(ctx context.Context, path string) (whole bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil {
		l.alive(st.ModTime())
	}
	r := bufio.NewReaderSize(f, 256<<10)
	magic := make([]byte, magicSize)
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != indexMagic {
		return false, nil
	}
	for n := 0; ; n++ {
		if n%4096 == 0 && ctx.Err() != nil {
			return false, ctx.Err()
		}
		b, err := r.Peek(idxHeader + digest.MaxHashSize)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		if len(b) == 0 {
			return true, nil
		}
		op, d, e, size, ok := parseIndexRecord(b)
		if !ok {
			return false, nil
		}
		_, _ = r.Discard(size) // it was peeked at
		l.apply(op, d, e)
	}
}

func (l *loader) apply(op uint8, d digest.Digest, e entry) {
	switch op {
	case opSet:
		e.touch = min(e.touch, l.now) // the clock may have been wrong
		sh := l.x.shard(d)
		if i := l.x.findLocked(sh, d); i != 0 {
			l.x.removeLocked(sh, i)
		}
		l.x.addLocked(sh, d, e, true)
	case opDrop:
		l.dropped[e.place] = struct{}{}
		sh := l.x.shard(d)
		if i := l.x.findLocked(sh, d); i != 0 && sh.node(i).entry.place == e.place {
			l.x.removeLocked(sh, i)
		}
	case opMark:
		l.marks[e.place.seg] = max(l.marks[e.place.seg], e.place.off)
	case opEnd:
		l.ended = true
	}
}

// forget drops an entry whose bytes are not there.
func (l *loader) forget(d digest.Digest) {
	sh := l.x.shard(d)
	if i := l.x.findLocked(sh, d); i != 0 {
		l.x.removeLocked(sh, i)
		l.s.m.torn.Inc()
	}
}

// each calls f for every entry read so far. f may forget the entry.
func (l *loader) each(f func(sh *shard, i uint32, d digest.Digest, e entry)) {
	for k := range l.x.shards {
		sh := &l.x.shards[k]
		for kind := range sh.lists {
			for at := sh.lists[kind].oldest; at != 0; {
				next := sh.node(at).newer
				f(sh, at, sh.digestLocked(at), sh.node(at).entry)
				at = next
			}
		}
	}
}

// handOver gives the live index what was read. What was stored meanwhile is
// newer, and wins.
func (l *loader) handOver() {
	s := l.s
	for k := range l.x.shards {
		read, live := &l.x.shards[k], &s.index.shards[k]
		live.mu.Lock()
		for kind := range read.lists {
			// Newest first, each behind all that are there.
			for at := read.lists[kind].newest; at != 0; at = read.node(at).older {
				l.merge(live, read.digestLocked(at), read.node(at).entry)
			}
		}
		live.mu.Unlock()
		*read = shard{}
	}
	s.loaded.Store(true)
	s.space.kick()
}

func (l *loader) merge(live *shard, d digest.Digest, e entry) {
	s := l.s
	if i := s.index.findLocked(live, d); i != 0 {
		// Its old record is dead weight; its old file was replaced; files
		// made for linking are as good as new ones.
		if e.kind == Owned {
			s.renewLocked(live, i, d, Owned)
		}
		add := e.flags & (flagPlain | flagExec) &^ live.node(i).entry.flags
		live.flagLocked(i, add, 0)
		s.space.used.Add(variants(add) * fileBytes(d.Size()))
		s.journal.add(opSet, d, live.node(i).entry)
		return
	}
	s.index.addLocked(live, d, e, false)
	n := variants(e.flags)
	if e.flags&flagFile != 0 {
		n++
	}
	s.space.used.Add(n * fileBytes(d.Size()))
	if e.place.seg != 0 {
		s.segs.addLive(e.place.seg, recordBytes(d, e))
	}
}

// changed is when a file was last changed: given its name, or linked to. Its
// modification time is the same for all.
func changed(path string) (size int64, at time.Time, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, time.Time{}, err
	}
	return st.Size, time.Unix(st.Ctim.Unix()), nil
}
