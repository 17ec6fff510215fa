// Package near knows which workers are near to an action: which have how many
// bytes of its inputs. It remembers, within bounds, what the trees of inputs
// consist of, and which workers ran actions with them or made them; owners of
// large files are told by placement.
//
// It gives hints. What it says is never needed, may be out of date (a disk
// evicts), and costs no question to any other node: a directory that it has not
// seen counts as nothing until somebody shows it.
package near

import (
	"cmp"
	"encoding/binary"
	"slices"
	"sync"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

// The bounds of what is remembered and of one walk.
const (
	maxParts   = 16       // of a tree, the largest
	maxWorkers = 8        // that are known to have a part, the latest
	maxNear    = 8        // that are told of an action
	maxKnown   = 16 << 10 // parts whose workers are known, twice
	treeBytes  = 8 << 20  // of trees, twice
	maxVisits  = 4096     // of directories, for one action
	maxUnknown = 256      // directories asked for by one action
)

// Part is a part of a tree that workers have or lack as a whole: a file too
// large to be sent around with others, or the small files of one directory.
type Part struct {
	key   uint64 // of the file's or the directory's digest
	Bytes int64
	large bool
}

func keyOf(d digest.Digest) uint64 {
	var hash [digest.MaxHashSize]byte
	return binary.BigEndian.Uint64(d.AppendHash(hash[:0]))
}

// Map is what is known. It is safe for concurrent use.
type Map struct {
	owners func(partition uint16) []string

	mu      sync.Mutex // guards what follows
	trees   aging[digest.Digest, *tree]
	workers aging[uint64, []string]
}

// tree is what lies under a directory: its largest parts, once it is whole.
// Until then parts are its own, and those of dirs are to be added.
type tree struct {
	parts []Part
	dirs  []digest.Digest
}

func (t *tree) weight() int { return 200 + 24*len(t.parts) + 80*len(t.dirs) }

// New makes a Map. Owners names the workers whose disks own a partition.
func New(owners func(partition uint16) []string) *Map {
	m := &Map{owners: owners}
	m.trees = aging[digest.Digest, *tree]{limit: treeBytes, weigh: (*tree).weight}
	m.workers = aging[uint64, []string]{limit: maxKnown, weigh: func([]string) int { return 1 }}
	return m
}

// Add shows a directory to the map.
func (m *Map) Add(d digest.Digest, dir *repb.Directory) {
	t := &tree{}
	var small int64
	for _, f := range dir.GetFiles() {
		fd, err := digest.Parse(d.Function(), f.GetDigest().GetHash(), f.GetDigest().GetSizeBytes())
		switch {
		case err != nil: // whoever stages it will say so
		case fd.Size() > blob.SmallSize:
			t.parts = append(t.parts, Part{key: keyOf(fd), Bytes: fd.Size(), large: true})
		default:
			small += fd.Size()
		}
	}
	if small > 0 {
		t.parts = append(t.parts, Part{key: keyOf(d), Bytes: small})
	}
	t.parts = largest(t.parts)
	for _, sub := range dir.GetDirectories() {
		if sd, err := digest.Parse(d.Function(), sub.GetDigest().GetHash(), sub.GetDigest().GetSizeBytes()); err == nil {
			t.dirs = append(t.dirs, sd)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.trees.put(d, t)
}

// largest keeps the largest parts, each once.
func largest(ps []Part) []Part {
	slices.SortFunc(ps, func(a, b Part) int { return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.key, b.key)) })
	ps = slices.CompactFunc(ps, func(a, b Part) bool { return a.key == b.key })
	return slices.Clip(ps[:min(len(ps), maxParts)])
}

// Parts are the largest parts of the tree under root, as far as its directories
// have been shown, and those that have not been, of which there may be more.
func (m *Map) Parts(root digest.Digest) (parts []Part, unknown []digest.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := walk{m: m, left: maxVisits}
	parts, _ = w.visit(root)
	return parts, w.unknown
}

type walk struct {
	m       *Map
	left    int
	unknown []digest.Digest
}

// visit reports besides whether the parts are all there are.
func (w *walk) visit(d digest.Digest) (parts []Part, whole bool) {
	if w.left--; w.left < 0 {
		return nil, false
	}
	t, ok := w.m.trees.get(d)
	if !ok {
		if len(w.unknown) < maxUnknown && !slices.Contains(w.unknown, d) {
			w.unknown = append(w.unknown, d)
		}
		return nil, false
	}
	if len(t.dirs) == 0 {
		return t.parts, true
	}
	parts, whole = slices.Clone(t.parts), true
	for _, sub := range t.dirs {
		more, ok := w.visit(sub)
		parts, whole = append(parts, more...), whole && ok
	}
	parts = largest(parts)
	if whole {
		w.m.trees.put(d, &tree{parts: parts})
	}
	return parts, whole
}

// Near are the workers that have some of the parts, those with the most bytes
// first.
func (m *Map) Near(parts []Part) []wire.Near {
	m.mu.Lock()
	defer m.mu.Unlock()
	bytes := make(map[string]int64)
	for _, p := range parts {
		known, _ := m.workers.get(p.key)
		for _, w := range known {
			bytes[w] += p.Bytes
		}
		if !p.large {
			continue
		}
		for _, w := range m.owners(uint16(p.key >> 48)) {
			if !slices.Contains(known, w) {
				bytes[w] += p.Bytes
			}
		}
	}
	var near []wire.Near
	for w, n := range bytes {
		near = append(near, wire.Near{Worker: w, Bytes: n})
	}
	slices.SortFunc(near, func(a, b wire.Near) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Worker, b.Worker))
	})
	return near[:min(len(near), maxNear)]
}

// Used says that the worker has run an action with these parts in its inputs.
func (m *Map) Used(worker string, parts []Part) {
	if worker == "" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range parts {
		m.has(worker, p.key)
	}
}

// Made says that the worker has made the result, whose large files it keeps.
func (m *Map) Made(worker string, fn digest.Function, r *repb.ActionResult) {
	if worker == "" {
		return
	}
	for _, f := range r.GetOutputFiles() {
		if f.GetDigest().GetSizeBytes() <= blob.SmallSize {
			continue
		}
		if d, err := digest.Parse(fn, f.Digest.Hash, f.Digest.SizeBytes); err == nil {
			m.mu.Lock()
			m.has(worker, keyOf(d))
			m.mu.Unlock()
		}
	}
}

func (m *Map) has(worker string, key uint64) {
	known, _ := m.workers.get(key)
	if slices.Contains(known, worker) {
		return
	}
	// Not in place: nobody else may see half of it, and old ones go.
	known = append(slices.Clone(known[max(0, len(known)-maxWorkers+1):]), worker)
	m.workers.put(key, known)
}

// aging is a map of two generations: what was not asked for since the limit was
// last reached is gone when it is reached again.
type aging[K comparable, V any] struct {
	limit      int // of the weight of one generation
	weigh      func(V) int
	weight     int // of the young
	young, old map[K]V
}

func (a *aging[K, V]) get(k K) (v V, ok bool) {
	if v, ok = a.young[k]; ok {
		return v, true
	}
	if v, ok = a.old[k]; ok {
		a.put(k, v)
	}
	return v, ok
}

func (a *aging[K, V]) put(k K, v V) {
	if a.young == nil || a.weight >= a.limit {
		a.young, a.old, a.weight = make(map[K]V), a.young, 0
	}
	a.young[k] = v
	a.weight += a.weigh(v)
}
