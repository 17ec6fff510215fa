package disk

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"github.com/google/renameio/v2"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// What disks tell each other of what they own, partition by partition. Copies
// that are merely cached don't enter.

const (
	partitions    = 1 << 16 // one for each digest.Prefix
	partsPerShard = partitions / shardCount
)

// Print is a fingerprint of what a disk owns in a partition. Disks with equal
// ones own the same blobs there.
type Print struct {
	Count uint32
	Sum   uint64
}

// printLocked counts a node in or out of its partition's print.
func (s *shard) printLocked(n *node, in bool) {
	if n.entry.kind != Owned {
		return
	}
	var b [2 + 8 + inlineHash]byte
	b[0] = byte(n.fn)
	binary.LittleEndian.PutUint64(b[2:], uint64(n.size))
	copy(b[10:], n.hash[:])
	p := &s.prints[binary.BigEndian.Uint16(n.hash[:])%partsPerShard]
	if sum := xxhash.Sum64(b[:]); in {
		p.Count++
		p.Sum += sum
	} else {
		p.Count--
		p.Sum -= sum
	}
}

// Print is the fingerprint of partition p.
func (s *Store) Print(p uint16) Print {
	sh := &s.index.shards[p/partsPerShard]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.prints[p%partsPerShard]
}

// Loaded reports whether the index is read. Before, prints and lists lack what
// has not been read.
func (s *Store) Loaded() bool { return s.loaded.Load() }

// Copy is an owned copy as others learn of it.
type Copy struct {
	Digest digest.Digest
	Touch  uint32 // its last use, Unix seconds
}

// List is the owned copies of the partitions that want holds, from partition
// after on, and the partition that is next, Partitions at the end. It ends after
// some limit copies; a partition is listed whole, as of one moment.
func (s *Store) List(want func(p uint16) bool, after, limit int) (cs []Copy, next int) {
	for next = after; next < partitions && len(cs) < limit; {
		cs, next = s.listShard(cs, want, next, limit)
	}
	return cs, next
}

// listShard lists what the shard of partition from has.
func (s *Store) listShard(cs []Copy, want func(p uint16) bool, from, limit int) (_ []Copy, next int) {
	shardAt := from / partsPerShard
	sh := &s.index.shards[shardAt]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	var wanted [partsPerShard]bool
	total := 0
	for next = from; next < (shardAt+1)*partsPerShard && len(cs)+total < limit; next++ {
		if n := sh.prints[next%partsPerShard].Count; n > 0 && want(uint16(next)) {
			wanted[next%partsPerShard] = true
			total += int(n)
		}
	}
	if total == 0 {
		return cs, next
	}
	cs = slices.Grow(cs, total)
	for at := sh.lists[Owned-1].newest; at != 0 && total > 0; at = sh.node(at).older {
		if n := sh.node(at); wanted[binary.BigEndian.Uint16(n.hash[:])%partsPerShard] {
			cs = append(cs, Copy{sh.digestLocked(at), n.entry.touch})
			total--
		}
	}
	return cs, next
}

// Touched is when the blob was last used, 0 if it is not here.
func (s *Store) Touched(d digest.Digest) uint32 {
	e, _ := s.lookup(d, false)
	return e.touch
}

// Restore stores small blobs as owned copies that were last used when others
// say that they were: being copied is no use. The answers stand in order.
func (s *Store) Restore(ctx context.Context, bs []blob.Blob, touches []uint32) []error {
	was := make([]uint32, len(bs))
	for i, b := range bs {
		was[i] = s.Touched(b.Digest)
	}
	errs := s.PutBatch(ctx, Owned, bs)
	for i, b := range bs {
		if errs[i] == nil {
			s.age(b.Digest, max(was[i], touches[i]))
		}
	}
	return errs
}

// RestoreFrom is Restore for one blob of any size.
func (s *Store) RestoreFrom(ctx context.Context, d digest.Digest, r io.Reader, touch uint32) error {
	was := s.Touched(d)
	err := s.Put(ctx, d, Owned, r)
	if err == nil {
		s.age(d, max(was, touch))
	}
	return err
}

// age sets a copy's last use, unless it was used since it was stored.
func (s *Store) age(d digest.Digest, touch uint32) {
	sh := s.index.shard(d)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if i := s.index.findLocked(sh, d); i != 0 && touch < sh.node(i).entry.touch {
		sh.ageLocked(i, touch)
	}
}

// horizons are the newest uses of evicted owned copies, by partition.
type horizons struct {
	at    [partitions]atomic.Uint32
	dirty atomic.Bool
}

// Horizon is the last use of the most recently used owned copy of partition p
// that this disk has evicted; 0 if it never evicted one. It does not want any
// copy back that was last used then or before.
func (s *Store) Horizon(p uint16) uint32 { return s.horizons.at[p].Load() }

func (s *Store) raiseHorizon(p uint16, touch uint32) {
	h := &s.horizons.at[p]
	for was := h.Load(); was < touch; was = h.Load() {
		if h.CompareAndSwap(was, touch) {
			s.horizons.dirty.Store(true)
			return
		}
	}
}

const (
	horizonsName  = "horizons"
	horizonsMagic = "remexhor1\n\x00\x00\x00\x00\x00\x00"
)

// saveHorizons writes them down if they have changed. What is lost with the last
// minute brings a few old blobs back, which are evicted again.
func (s *Store) saveHorizons() error {
	if !s.horizons.dirty.Swap(false) {
		return nil
	}
	b := make([]byte, 0, magicSize+4*partitions+4)
	b = append(b, horizonsMagic...)
	for i := range s.horizons.at {
		b = binary.LittleEndian.AppendUint32(b, s.horizons.at[i].Load())
	}
	b = binary.LittleEndian.AppendUint32(b, checksum(b))
	if err := renameio.WriteFile(s.path(horizonsName), b, 0o600); err != nil {
		s.horizons.dirty.Store(true)
		return fmt.Errorf("write horizons: %w", diskError(err))
	}
	return nil
}

// forgetHorizons is for a disk that starts empty.
func (s *Store) forgetHorizons() error {
	err := os.Remove(s.path(horizonsName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (s *Store) loadHorizons() error {
	b, err := os.ReadFile(s.path(horizonsName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(b) != magicSize+4*partitions+4 || string(b[:magicSize]) != horizonsMagic ||
		checksum(b[:len(b)-4]) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
		s.log.Warn("the horizons are damaged: old blobs may come back for a while")
		return nil
	}
	for i := range s.horizons.at {
		s.horizons.at[i].Store(binary.LittleEndian.Uint32(b[magicSize+4*i:]))
	}
	return nil
}

// ByLastUse orders copies, the most recently used first.
func ByLastUse(a, b Copy) int {
	return cmp.Or(cmp.Compare(b.Touch, a.Touch), a.Digest.Compare(b.Digest))
}
