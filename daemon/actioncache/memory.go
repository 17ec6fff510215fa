package actioncache

import (
	"hash/maphash"
	"slices"
	"strings"
	"sync"
)

const (
	// entryCost is what an entry costs beyond its key and result: the struct,
	// and its place in a map. TestMemoryOverhead measures it.
	entryCost = 176
	// buckets split the entries by their digests' first byte, so that a page
	// of a list need not sort them all.
	buckets = 256
	// evictedBits is the size of the filter of evicted keys. With 100,000
	// evicted, one in twenty unknown keys is taken for an evicted one.
	evictedBits = 1 << 21
)

// Memory is a scheduler's part of the action cache: the most recently used
// entries within a byte budget. It is safe for concurrent use.
type Memory struct {
	budget int64
	seed   maphash.Seed

	mu      sync.Mutex // guards everything below
	bytes   int64
	entries int
	buckets [buckets]map[string]*item
	lru     item // its next is the most recently used; a ring
	// evicted has a bit for each key that was ever evicted (others may share
	// it): without it an absence says nothing. Nil while nothing was.
	evicted   []uint64
	evictions int64
}

// item is a cached entry; its memory is what an entry costs.
type item struct {
	key        string // packed
	version    version
	result     []byte
	prev, next *item
}

// NewMemory keeps entries of up to budget bytes, everything counted.
func NewMemory(budget int64) *Memory {
	m := &Memory{budget: max(budget, 1<<20), seed: maphash.MakeSeed()}
	for i := range m.buckets {
		m.buckets[i] = make(map[string]*item)
	}
	m.lru.prev, m.lru.next = &m.lru, &m.lru
	return m
}

func bucketOf(packed string) int { return int(packed[1]) } // 0 is the digest function

func (i *item) cost() int64 { return int64(len(i.key)+len(i.result)) + entryCost }

func (i *item) unlink() { i.prev.next, i.next.prev = i.next, i.prev }

func (m *Memory) pushFrontLocked(i *item) {
	i.prev, i.next = &m.lru, m.lru.next
	i.prev.next, i.next.prev = i, i
}

// Lookup returns the entry of k, and marks it used. Without one, known reports
// whether the memory would hold it if it had ever been put: nothing like it was
// evicted.
func (m *Memory) Lookup(k Key) (e Entry, found, known bool) {
	packed := k.pack()
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.buckets[bucketOf(packed)][packed]
	if i == nil {
		return Entry{}, false, !m.wasEvictedLocked(packed)
	}
	i.unlink()
	m.pushFrontLocked(i)
	return Entry{Key: k, Stamp: i.version.stamp, Writer: i.version.writer.Value(), Result: i.result}, true, true
}

// Put merges e in as just used.
func (m *Memory) Put(e Entry) { m.put(&e, false) }

// Load merges e in as what another node holds. It displaces only what was
// written before e: an old node's list must not wash out what is in use.
func (m *Memory) Load(e Entry) { m.put(&e, true) }

func (m *Memory) put(e *Entry, load bool) {
	packed, v := e.pack(), e.version()
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.buckets[bucketOf(packed)]
	old := b[packed]
	if old != nil {
		if c := v.compare(old.version); c < 0 || c == 0 && string(e.Result) <= string(old.result) {
			return
		}
		m.removeLocked(old)
	}
	i := &item{key: packed, version: v, result: e.Result}
	for i.cost() <= m.budget && m.bytes+i.cost() > m.budget {
		last := m.lru.prev
		if load && old == nil && last.version.compare(v) > 0 {
			break
		}
		m.evictLocked(last)
	}
	if m.bytes+i.cost() > m.budget {
		m.markEvictedLocked(packed)
		return
	}
	b[packed] = i
	m.entries++
	m.bytes += i.cost()
	m.pushFrontLocked(i)
}

// Skip notes that an entry of k exists which the memory does not hold.
func (m *Memory) Skip(k Key, stamp int64) {
	packed := k.pack()
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := m.buckets[bucketOf(packed)][packed]; i != nil {
		if i.version.stamp >= stamp {
			return
		}
		m.removeLocked(i) // superseded by what is elsewhere
	}
	m.markEvictedLocked(packed)
}

// Floor is the stamp below which Load has no room for an entry: 0 while there
// is some for all.
func (m *Memory) Floor() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.entries == 0 || m.bytes+m.budget/64 < m.budget {
		return 0
	}
	return m.lru.prev.version.stamp
}

func (m *Memory) removeLocked(i *item) {
	i.unlink()
	delete(m.buckets[bucketOf(i.key)], i.key)
	m.entries--
	m.bytes -= i.cost()
}

func (m *Memory) evictLocked(i *item) {
	m.removeLocked(i)
	m.markEvictedLocked(i.key)
	m.evictions++
}

func (m *Memory) markEvictedLocked(packed string) {
	if m.evicted == nil {
		m.evicted = make([]uint64, evictedBits/64)
	}
	h := maphash.String(m.seed, packed) % evictedBits
	m.evicted[h/64] |= 1 << (h % 64)
}

func (m *Memory) wasEvictedLocked(packed string) bool {
	if m.evicted == nil {
		return false
	}
	h := maphash.String(m.seed, packed) % evictedBits
	return m.evicted[h/64]&(1<<(h%64)) != 0
}

// List returns entries with a stamp of since or later, in the order of their
// keys from after on, of about maxBytes; next is where the following page
// starts, nil at the end. What is there throughout all pages stands in one.
func (m *Memory) List(after []byte, since int64, maxBytes int) (es []Entry, next []byte) {
	start, from := 0, string(after)
	if len(from) > 1 {
		start = bucketOf(from)
	}
	size := 0
	for n := start; n < buckets; n++ {
		for _, i := range m.bucketAfter(n, from, since) {
			if size >= maxBytes {
				return es, next
			}
			k, err := unpackKey(i.key)
			if err != nil {
				continue // can't be: it was packed here
			}
			es = append(es, Entry{Key: k, Stamp: i.version.stamp, Writer: i.version.writer.Value(), Result: i.result})
			size += int(i.cost())
			next = []byte(i.key)
		}
		from = ""
	}
	return es, nil
}

// bucketAfter copies what of a bucket comes after the packed key from, sorted.
// Items don't change once they are in: only their links do.
func (m *Memory) bucketAfter(n int, from string, since int64) []*item {
	m.mu.Lock()
	var items []*item
	for key, i := range m.buckets[n] {
		if i.version.stamp >= since && key > from {
			items = append(items, i)
		}
	}
	m.mu.Unlock()
	slices.SortFunc(items, func(a, b *item) int { return strings.Compare(a.key, b.key) })
	return items
}

// Stats is how full a Memory is.
type Stats struct {
	Entries   int
	Bytes     int64
	Evictions int64
}

// Stats counts what is there.
func (m *Memory) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Stats{Entries: m.entries, Bytes: m.bytes, Evictions: m.evictions}
}
