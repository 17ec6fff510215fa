package disk

import (
	"fmt"
	"os"
	"sync"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// What happens to the index happens here: each change is made, accounted and
// journalled under the lock of the blob's shard.

// recordBytes is the length of the record in a segment that e points to.
func recordBytes(d digest.Digest, e entry) int64 {
	if e.flags&flagFile != 0 {
		return recordSize(d, sumsSize(d.Size()))
	}
	return recordSize(d, d.Size())
}

// lookup returns d's entry, marked as used now if touch is set.
func (s *Store) lookup(d digest.Digest, touch bool) (entry, bool) {
	sh := s.index.shard(d)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i := s.index.findLocked(sh, d)
	if i == 0 {
		return entry{}, false
	}
	if touch {
		sh.touchLocked(i, s.now())
	}
	return sh.node(i).entry, true
}

// missing is the answer for a blob that the index does not know.
func (s *Store) missing(d digest.Digest) error {
	if !s.loaded.Load() {
		return fmt.Errorf("%s: the disk's index is still being read: %w", d, blob.ErrUnavailable)
	}
	return fmt.Errorf("%s: %w", d, blob.ErrNotFound)
}

// insert makes an entry, as the newest. When there is one already it is kept,
// touched, and becomes owned if e is.
func (s *Store) insert(d digest.Digest, e entry) {
	sh := s.index.shard(d)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if i := s.index.findLocked(sh, d); i != 0 {
		s.renewLocked(sh, i, d, e.kind)
		return
	}
	e.touch = s.now()
	s.index.addLocked(sh, d, e, true)
	if e.flags&flagFile != 0 {
		// A record tells of itself when the index is read; a file does not.
		s.journal.add(opSet, d, e)
	} else {
		s.segs.addLive(e.place.seg, recordBytes(d, e))
	}
}

// renewLocked does to an entry what storing its blob again means. It reports
// whether the copy became owned.
func (s *Store) renewLocked(sh *shard, i uint32, d digest.Digest, kind Kind) bool {
	if kind == Owned && sh.node(i).entry.kind == Cached {
		sh.node(i).entry.touch = s.now()
		sh.kindLocked(i, Owned)
		s.journal.add(opSet, d, sh.node(i).entry)
		return true
	}
	sh.touchLocked(i, s.now())
	return false
}

// renew is insert for a blob that is there; it reports whether it is.
func (s *Store) renew(d digest.Digest, kind Kind) bool {
	sh := s.index.shard(d)
	sh.mu.Lock()
	i := s.index.findLocked(sh, d)
	changed := i != 0 && s.renewLocked(sh, i, d, kind)
	sh.mu.Unlock()
	if changed {
		s.flushKind(d)
	}
	return i != 0
}

// flushKind journals a change of kind at once: an owned copy must not come
// back as a cached one.
func (s *Store) flushKind(d digest.Digest) {
	if err := s.journal.flush(); err != nil {
		s.log.Warn("a change of kind is not journalled", "digest", d, "err", err)
	}
}

// move lets d's entry point to another place, if it still points to from.
func (s *Store) move(d digest.Digest, from, to place) bool {
	sh := s.index.shard(d)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i := s.index.findLocked(sh, d)
	if i == 0 || sh.node(i).entry.place != from {
		return false
	}
	e := &sh.node(i).entry
	n := recordBytes(d, *e)
	s.segs.addLive(from.seg, -n)
	s.segs.addLive(to.seg, n)
	e.place = to
	s.journal.add(opSet, d, *e)
	return true
}

// forget removes d's entry if it still lies where e does, and journals that.
// A file stays where it is, even when the record of its sums is moved. The
// caller deletes its files, under the lock of their names, after a flush.
func (s *Store) forget(d digest.Digest, e entry) (entry, bool) {
	sh := s.index.shard(d)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i := s.index.findLocked(sh, d)
	if i == 0 {
		return entry{}, false
	}
	now := sh.node(i).entry
	if now.place != e.place && now.flags&e.flags&flagFile == 0 {
		return entry{}, false
	}
	e = now
	s.index.removeLocked(sh, i)
	s.journal.add(opDrop, d, e)
	if e.place.seg != 0 {
		s.segs.addLive(e.place.seg, -recordBytes(d, e))
	}
	return e, true
}

// flag changes flags of d's entry, if there is one.
func (s *Store) flag(d digest.Digest, set, unset uint16) bool {
	sh := s.index.shard(d)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i := s.index.findLocked(sh, d)
	if i != 0 {
		sh.flagLocked(i, set, unset)
		if (set|unset)&flagsKept != 0 {
			s.journal.add(opSet, d, sh.node(i).entry)
		}
	}
	return i != 0
}

// name returns the lock under which the files of a blob are made and deleted.
// Unlike the index's locks it is held across the calls of the file system that
// do so; no other lock of names is taken meanwhile.
func (s *Store) name(d digest.Digest) *sync.Mutex { return &s.names[d.Prefix()&0xff] }

// drop forgets a blob and deletes its files. It reports whether it was there,
// lying where e does.
func (s *Store) drop(d digest.Digest, e entry) bool {
	l := s.name(d)
	l.Lock()
	defer l.Unlock()
	return s.dropNamed(d, e)
}

// dropNamed is drop for a caller that holds the lock of d's name.
func (s *Store) dropNamed(d digest.Digest, e entry) bool {
	e, ok := s.forget(d, e)
	if !ok || e.flags&flagsKept == 0 {
		return ok
	}
	// The journal learns of it first: a file without an entry is found
	// after a crash, an entry without a file would be a lie until then.
	if err := s.journal.flush(); err != nil {
		s.log.Warn("an eviction is not journalled", "digest", d, "err", err)
	}
	for _, path := range s.files(d, e) {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			s.log.Warn("a file stays", "digest", d, "err", err)
		}
		s.release(fileBytes(d.Size()))
	}
	return true
}

// files are the paths that e's blob occupies as files.
func (s *Store) files(d digest.Digest, e entry) (paths []string) {
	if e.flags&flagFile != 0 {
		paths = append(paths, s.filePath(d))
	}
	if e.flags&flagPlain != 0 {
		paths = append(paths, s.linkPath(d, false, false))
	}
	if e.flags&flagExec != 0 {
		paths = append(paths, s.linkPath(d, false, true))
	}
	return paths
}

// rotten drops a copy whose bytes are wrong or gone, and returns the error to
// answer with.
func (s *Store) rotten(d digest.Digest, e entry, what string) error {
	if s.drop(d, e) {
		s.lost(d, what)
	}
	return fmt.Errorf("%s: %s: %w (%w)", d, what, ErrCorrupt, blob.ErrUnavailable)
}

func (s *Store) lost(d digest.Digest, what string) {
	s.corrupt.Add(1)
	s.m.corrupt.Inc()
	s.log.Error("dropped a corrupt copy", "digest", d, "reason", what)
	if s.o.OnCorrupt != nil {
		s.o.OnCorrupt(d)
	}
}

// Presence tells for each digest whether the disk holds the blob; with touch,
// those that it holds count as used now.
func (s *Store) Presence(ds []digest.Digest, touch bool) []Presence {
	// Looked at first: what the index lacks afterwards it lacked while whole.
	absent := Unknown
	if s.loaded.Load() {
		absent = Absent
	}
	ps := make([]Presence, len(ds))
	for i, d := range ds {
		ps[i] = absent
		if _, ok := s.lookup(d, touch); ok || d.IsEmpty() {
			ps[i] = Present
		}
	}
	return ps
}

// SetKind makes a copy owned or cached; false means that it is not here.
func (s *Store) SetKind(d digest.Digest, kind Kind) bool {
	if d.IsEmpty() {
		return true
	}
	sh := s.index.shard(d)
	sh.mu.Lock()
	i := s.index.findLocked(sh, d)
	changed := i != 0 && sh.node(i).entry.kind != kind
	if changed {
		sh.kindLocked(i, kind)
		s.journal.add(opSet, d, sh.node(i).entry)
	}
	sh.mu.Unlock()
	if changed {
		s.flushKind(d)
	}
	return i != 0
}

// Own makes a copy owned and marks it as used now; false means that it is not
// here.
func (s *Store) Own(d digest.Digest) bool {
	return d.IsEmpty() || s.renew(d, Owned)
}
