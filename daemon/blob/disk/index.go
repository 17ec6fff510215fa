package disk

import (
	"encoding/binary"
	"math/bits"
	"sync"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// The index maps digests to entries. Nodes lie in slabs without pointers and
// are found through open-addressed tables of slab numbers, so that a blob
// costs about 85 bytes and the garbage collector has nothing to follow.

const (
	shardCount = 64
	slabSize   = 256
	inlineHash = 32 // longer hashes keep their tail aside
)

// Entry flags. The first three are persistent; the others hold for this
// process only.
const (
	flagFile    uint16 = 1 << iota // the blob is a file; its place is that of its sums
	flagPlain                      // a small blob has a 0444 file of its own
	flagExec                       // the blob has a 0555 file of its own
	flagPlainOK                    // the 0444 file was written or read whole by this process
	flagExecOK                     // the same of the 0555 file
	flagSeen                       // read and found right since the scrubber came by

	flagsKept = flagFile | flagPlain | flagExec
)

// place is where a record lies. Segment 0 is nowhere.
type place struct{ seg, off uint32 }

// entry is what the index knows of a blob.
type entry struct {
	place place
	sum   uint32 // crc32c of the bytes, or of the sums when there are any
	touch uint32 // Unix seconds
	kind  Kind
	flags uint16
}

type node struct {
	hash         [inlineHash]byte
	size         int64
	entry        entry
	newer, older uint32 // neighbours in the list of the kind; older links free nodes
	fn           digest.Function
}

type lru struct{ newest, oldest uint32 }

type shard struct {
	mu       sync.Mutex // guards everything below; never held across I/O
	table    []uint32
	slabs    []*[slabSize]node
	tails    map[uint32][digest.MaxHashSize - inlineHash]byte
	top      uint32 // nodes ever used; node 0 never is
	free     uint32
	lists    [2]lru
	count    [2]int64
	bytes    [2]int64
	variants int64 // files of their own, beside flagFile's
	prints   [partsPerShard]Print
}

type index struct {
	seed   [2]uint64 // keeps who can choose hashes from choosing slots
	shards [shardCount]shard
}

func newIndex(a, b uint64) *index {
	x := &index{seed: [2]uint64{a | 1, b | 1}}
	for i := range x.shards {
		x.shards[i].top = 1
	}
	return x
}

func (x *index) shard(d digest.Digest) *shard { return &x.shards[d.Prefix()>>10] }

func (x *index) hash(h *[inlineHash]byte) uint64 {
	hi, lo := bits.Mul64(binary.LittleEndian.Uint64(h[0:])^x.seed[0], binary.LittleEndian.Uint64(h[8:])^x.seed[1])
	return hi ^ lo
}

func (s *shard) node(i uint32) *node { return &s.slabs[i/slabSize][i%slabSize] }

// key splits d's hash into what lies in the node and the tail of long ones.
func key(d digest.Digest) (head [inlineHash]byte, tail [digest.MaxHashSize - inlineHash]byte, long bool) {
	var b [digest.MaxHashSize]byte
	h := d.AppendHash(b[:0])
	copy(head[:], h)
	if len(h) > inlineHash {
		copy(tail[:], h[inlineHash:])
		long = true
	}
	return head, tail, long
}

func (s *shard) digestLocked(i uint32) digest.Digest {
	n := s.node(i)
	size := n.fn.HashSize()
	if size <= inlineHash {
		d, _ := digest.New(n.fn, n.hash[:size], n.size)
		return d
	}
	var b [digest.MaxHashSize]byte
	copy(b[:], n.hash[:])
	t := s.tails[i]
	copy(b[inlineHash:], t[:])
	d, _ := digest.New(n.fn, b[:size], n.size)
	return d
}

// findLocked returns the node of d, or 0.
func (x *index) findLocked(s *shard, d digest.Digest) uint32 {
	if len(s.table) == 0 {
		return 0
	}
	head, tail, long := key(d)
	mask := uint64(len(s.table) - 1)
	for at := x.hash(&head) & mask; ; at = (at + 1) & mask {
		i := s.table[at]
		if i == 0 {
			return 0
		}
		n := s.node(i)
		if n.hash == head && n.size == d.Size() && n.fn == d.Function() && (!long || s.tails[i] == tail) {
			return i
		}
	}
}

// addLocked makes a node for d, which must have none, as the newest or the
// oldest of its kind.
func (x *index) addLocked(s *shard, d digest.Digest, e entry, newest bool) {
	total := s.count[0] + s.count[1]
	if 3*(total+1) > 2*int64(len(s.table)) {
		x.growLocked(s)
	}
	i := s.free
	if i != 0 {
		s.free = s.node(i).older
	} else {
		i = s.top
		s.top++
		if int(i/slabSize) == len(s.slabs) {
			s.slabs = append(s.slabs, new([slabSize]node))
		}
	}
	head, tail, long := key(d)
	*s.node(i) = node{hash: head, size: d.Size(), entry: e, fn: d.Function()}
	if long {
		if s.tails == nil {
			s.tails = make(map[uint32][digest.MaxHashSize - inlineHash]byte)
		}
		s.tails[i] = tail
	}
	s.placeLocked(x, i)
	s.linkLocked(i, newest)
	s.variants += variants(e.flags)
}

func variants(flags uint16) int64 {
	return int64(bits.OnesCount16(flags & (flagPlain | flagExec)))
}

func (s *shard) placeLocked(x *index, i uint32) {
	mask := uint64(len(s.table) - 1)
	at := x.hash(&s.node(i).hash) & mask
	for s.table[at] != 0 {
		at = (at + 1) & mask
	}
	s.table[at] = i
}

func (x *index) growLocked(s *shard) {
	old := s.table
	s.table = make([]uint32, max(16, 2*len(old)))
	for _, i := range old {
		if i != 0 {
			s.placeLocked(x, i)
		}
	}
}

// removeLocked forgets node i.
func (x *index) removeLocked(s *shard, i uint32) {
	s.unlinkLocked(i)
	s.variants -= variants(s.node(i).entry.flags)
	mask := uint64(len(s.table) - 1)
	at := x.hash(&s.node(i).hash) & mask
	for s.table[at] != i {
		at = (at + 1) & mask
	}
	// Close the gap: whoever was pushed past it moves back.
	for next := (at + 1) & mask; s.table[next] != 0; next = (next + 1) & mask {
		home := x.hash(&s.node(s.table[next]).hash) & mask
		if (next-home)&mask >= (next-at)&mask {
			s.table[at] = s.table[next]
			at = next
		}
	}
	s.table[at] = 0
	delete(s.tails, i)
	*s.node(i) = node{older: s.free}
	s.free = i
}

func (s *shard) unlinkLocked(i uint32) {
	n := s.node(i)
	k := n.entry.kind - 1
	l := &s.lists[k]
	s.printLocked(n, false)
	if n.newer != 0 {
		s.node(n.newer).older = n.older
	} else {
		l.newest = n.older
	}
	if n.older != 0 {
		s.node(n.older).newer = n.newer
	} else {
		l.oldest = n.newer
	}
	n.newer, n.older = 0, 0
	s.count[k]--
	s.bytes[k] -= n.size
}

func (s *shard) linkLocked(i uint32, newest bool) {
	n := s.node(i)
	k := n.entry.kind - 1
	l := &s.lists[k]
	s.printLocked(n, true)
	switch {
	case l.newest == 0:
		l.newest, l.oldest = i, i
	case newest:
		n.older = l.newest
		s.node(l.newest).newer = i
		l.newest = i
	default:
		n.newer = l.oldest
		s.node(l.oldest).older = i
		l.oldest = i
	}
	s.count[k]++
	s.bytes[k] += n.size
}

// touchLocked makes i the newest of its kind.
func (s *shard) touchLocked(i, now uint32) {
	n := s.node(i)
	n.entry.touch = now
	if s.lists[n.entry.kind-1].newest == i {
		return
	}
	s.unlinkLocked(i)
	s.linkLocked(i, true)
}

// kindLocked moves i to the list of kind k, keeping the list in order of touch.
func (s *shard) kindLocked(i uint32, k Kind) {
	s.unlinkLocked(i)
	s.node(i).entry.kind = k
	s.sortInLocked(i)
}

// ageLocked gives i another time of last use.
func (s *shard) ageLocked(i, touch uint32) {
	s.unlinkLocked(i)
	s.node(i).entry.touch = touch
	s.sortInLocked(i)
}

// sortInLocked links i where its touch belongs, coming from the nearer end: what
// repair brings is mostly older than all that is there.
func (s *shard) sortInLocked(i uint32) {
	n := s.node(i)
	k := n.entry.kind - 1
	l := &s.lists[k]
	if l.newest == 0 || n.entry.touch >= s.node(l.newest).entry.touch {
		s.linkLocked(i, true)
		return
	}
	first, last := s.node(l.newest).entry.touch, s.node(l.oldest).entry.touch
	if n.entry.touch < last {
		s.linkLocked(i, false)
		return
	}
	at := l.newest // the newest that is not newer than i
	if first-n.entry.touch <= n.entry.touch-last {
		for s.node(at).entry.touch > n.entry.touch {
			at = s.node(at).older
		}
	} else {
		for at = l.oldest; s.node(s.node(at).newer).entry.touch <= n.entry.touch; {
			at = s.node(at).newer
		}
	}
	s.printLocked(n, true)
	n.older, n.newer = at, s.node(at).newer
	s.node(n.newer).older = i
	s.node(at).newer = i
	s.count[k]++
	s.bytes[k] += n.size
}

// flagLocked changes flags and keeps the sum of variants.
func (s *shard) flagLocked(i uint32, set, unset uint16) {
	e := &s.node(i).entry
	s.variants -= variants(e.flags)
	e.flags = e.flags&^unset | set
	s.variants += variants(e.flags)
}
