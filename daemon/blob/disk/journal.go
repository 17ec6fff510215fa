package disk

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// journalBuffer bounds what waits to be written while the disk refuses. What
// is beyond it is forgotten: the next start is an unclean one then.
const journalBuffer = 16 << 20

// journal appends what happens to the index. Records are added under the lock
// of the shard that they are about, so that their order is the index's; they
// reach the kernel at the next flush.
type journal struct {
	store *Store

	wmu  sync.Mutex // guards f, size and gen; held while writing
	f    *os.File
	size int64
	gen  uint64

	wake chan struct{} // much waits to be written

	mu   sync.Mutex // guards buf and lost; taken after a shard's and wmu
	buf  []byte
	lost bool // something never reached the file
}

// open starts the journal of a generation.
func (j *journal) open(gen uint64) error {
	f, err := os.OpenFile(j.store.journalPath(gen), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("begin journal: %w", diskError(err))
	}
	if _, err := f.WriteString(indexMagic); err != nil {
		f.Close()
		return fmt.Errorf("begin journal: %w", diskError(err))
	}
	if j.f != nil {
		j.f.Close()
	}
	j.f, j.gen, j.size = f, gen, magicSize
	return nil
}

func (j *journal) add(op uint8, d digest.Digest, e entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.buf) > journalBuffer {
		j.lost = true
		return
	}
	j.buf = appendIndexRecord(j.buf, op, d, e)
	if len(j.buf) > journalBuffer/16 {
		select {
		case j.wake <- struct{}{}:
		default:
		}
	}
}

// flush hands everything added so far to the kernel.
func (j *journal) flush() error {
	j.wmu.Lock()
	defer j.wmu.Unlock()
	return j.flushLocked()
}

func (j *journal) flushLocked() error {
	j.mu.Lock()
	buf := j.buf
	j.buf = nil
	j.mu.Unlock()
	if len(buf) == 0 {
		return nil
	}
	err := j.store.fault("journal")
	if err == nil {
		_, err = j.f.WriteAt(buf, j.size)
	}
	if err == nil && j.store.o.Fsync {
		err = unix.Fdatasync(int(j.f.Fd()))
	}
	if err != nil {
		j.mu.Lock()
		j.buf = append(buf, j.buf...) // in order, for the next attempt
		j.mu.Unlock()
		return fmt.Errorf("write journal: %w", diskError(err))
	}
	j.size += int64(len(buf))
	j.mu.Lock()
	if j.buf == nil && cap(buf) <= 1<<20 {
		j.buf = buf[:0]
	}
	j.mu.Unlock()
	return nil
}

// whole reports whether the files say everything.
func (j *journal) whole() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.lost && len(j.buf) == 0
}

// incomplete reports whether something was forgotten.
func (j *journal) incomplete() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lost
}

// forget says whether the files lack something that only a snapshot can tell.
func (j *journal) forget(lost bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lost = lost
	if lost {
		j.buf = nil
	}
}

func (j *journal) length() int64 {
	j.wmu.Lock()
	defer j.wmu.Unlock()
	return j.size
}

func (j *journal) close() error {
	j.wmu.Lock()
	defer j.wmu.Unlock()
	return j.f.Close()
}

// checkpoint journals what was touched since the last one, so that the order
// of eviction outlives the process, and how far the segments are indexed.
func (s *Store) checkpoint() error {
	now := s.now()
	since := s.lastCheckpoint
	marks := s.marks()
	for i := range s.index.shards {
		sh := &s.index.shards[i]
		sh.mu.Lock()
		for k := range sh.lists {
			// Lists are in order of touch: what is new stands in front. It is
			// written oldest first, the order in which it is read back.
			var at, last uint32
			for at = sh.lists[k].newest; at != 0 && sh.node(at).entry.touch >= since; at = sh.node(at).older {
				last = at
			}
			for at = last; at != 0; at = sh.node(at).newer {
				s.journal.add(opSet, sh.digestLocked(at), sh.node(at).entry)
			}
		}
		sh.mu.Unlock()
		if err := s.journal.flush(); err != nil {
			return err
		}
	}
	if s.journal.incomplete() {
		marks = nil // they would vouch for what was forgotten
	}
	for _, m := range marks {
		s.journal.add(opMark, digest.Digest{}, m)
	}
	if err := s.journal.flush(); err != nil {
		return err
	}
	s.lastCheckpoint = now
	return nil
}

func (s *Store) marks() []entry {
	gs := s.segs.all()
	ms := make([]entry, 0, len(gs))
	for _, g := range gs {
		// The mark of a sealed segment never changes again.
		if g.sealed.Load() && g.marked {
			continue
		}
		g.marked = g.sealed.Load()
		ms = append(ms, entry{place: place{g.number, uint32(g.size.Load())}})
	}
	return ms
}

// snapshot writes the whole index into a new file and lets go of the journals
// that it replaces. It is synced: unlike blobs, the index has no other copy.
func (s *Store) snapshot() (err error) {
	s.journal.wmu.Lock()
	gen := s.journal.gen + 1
	if err := s.journal.flushLocked(); err != nil {
		s.journal.forget(true) // the snapshot will tell it
	}
	err = s.journal.open(gen)
	lost := s.journal.incomplete()
	s.journal.forget(false)
	s.journal.wmu.Unlock()
	if err != nil {
		s.journal.forget(lost)
		return err
	}
	path := s.snapshotPath(gen)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write snapshot: %w", diskError(err))
	}
	defer func() {
		if err != nil {
			s.journal.forget(lost || s.journal.incomplete())
			err = errors.Join(fmt.Errorf("write snapshot: %w", diskError(err)), os.Remove(path+".new"))
		}
	}()
	if err := s.writeSnapshot(f); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	if err := syncDir(s.path(dirIndex)); err != nil {
		return err
	}
	s.dropGenerations(gen)
	return nil
}

func (s *Store) writeSnapshot(f *os.File) error {
	if err := s.fault("snapshot"); err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 256<<10)
	w.WriteString(indexMagic)
	var buf []byte
	for _, g := range s.segs.all() {
		buf = appendIndexRecord(buf, opMark, digest.Digest{}, entry{place: place{g.number, uint32(g.size.Load())}})
	}
	var count uint32
	for i := range s.index.shards {
		sh := &s.index.shards[i]
		sh.mu.Lock()
		for k := range sh.lists {
			for at := sh.lists[k].oldest; at != 0; at = sh.node(at).newer {
				buf = appendIndexRecord(buf, opSet, sh.digestLocked(at), sh.node(at).entry)
				count++
			}
		}
		sh.mu.Unlock()
		if _, err := w.Write(buf); err != nil {
			return err
		}
		buf = buf[:0]
	}
	w.Write(appendIndexRecord(buf, opEnd, digest.Digest{}, entry{sum: count}))
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Sync()
}
