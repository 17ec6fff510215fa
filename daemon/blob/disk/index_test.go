package disk

import (
	"encoding/binary"
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// numbered makes the n-th digest of a function without hashing.
func numbered(fn digest.Function, n uint64) digest.Digest {
	h := make([]byte, fn.HashSize())
	binary.BigEndian.PutUint64(h, n*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint64(h[len(h)-8:], n)
	d, err := digest.New(fn, h, int64(n%100_000))
	if err != nil {
		panic(err)
	}
	return d
}

// model is the index at its simplest: a list, oldest first.
type model []modelEntry

type modelEntry struct {
	d digest.Digest
	e entry
}

func (m model) find(d digest.Digest) int {
	return slices.IndexFunc(m, func(e modelEntry) bool { return e.d == d })
}

func (m *model) touch(i int, now uint32) {
	e := (*m)[i]
	e.e.touch = now
	*m = append(slices.Delete(*m, i, i+1), e)
}

func (m model) kind(k Kind) (ds []digest.Digest) {
	for _, e := range m {
		if e.e.kind == k {
			ds = append(ds, e.d)
		}
	}
	return ds
}

// TestIndexIsAnLRU holds the index against the model, in one shard, where
// digests of all lengths and with equal heads meet.
func TestIndexIsAnLRU(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := newIndex(1, 2)
		sh := &x.shards[0]
		var m model
		now := uint32(1)
		functions := []digest.Function{digest.MD5, digest.SHA256, digest.BLAKE3, digest.SHA512}
		name := rapid.Custom(func(t *rapid.T) digest.Digest {
			fn := rapid.SampledFrom(functions).Draw(t, "function")
			h := make([]byte, fn.HashSize())
			h[15] = byte(rapid.IntRange(0, 20).Draw(t, "hash"))
			h[len(h)-1] = byte(rapid.IntRange(0, 2).Draw(t, "tail"))
			d, _ := digest.New(fn, h, int64(rapid.IntRange(0, 2).Draw(t, "size")))
			return d
		})
		steps := map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				d := name.Draw(t, "digest")
				if m.find(d) >= 0 {
					return
				}
				now++
				e := entry{touch: now, kind: Kind(rapid.IntRange(1, 2).Draw(t, "kind")), flags: uint16(rapid.IntRange(0, 7).Draw(t, "flags"))}
				x.addLocked(sh, d, e, true)
				m = append(m, modelEntry{d, e})
			},
			"add oldest": func(t *rapid.T) {
				d := name.Draw(t, "digest")
				if m.find(d) >= 0 {
					return
				}
				e := entry{kind: Kind(rapid.IntRange(1, 2).Draw(t, "kind"))}
				x.addLocked(sh, d, e, false)
				m = slices.Insert(m, 0, modelEntry{d, e})
			},
			"touch": func(t *rapid.T) {
				d := name.Draw(t, "digest")
				if i := m.find(d); i >= 0 {
					now++
					m.touch(i, now)
					sh.touchLocked(x.findLocked(sh, d), now)
				}
			},
			"remove": func(t *rapid.T) {
				d := name.Draw(t, "digest")
				if i := m.find(d); i >= 0 {
					m = slices.Delete(m, i, i+1)
					x.removeLocked(sh, x.findLocked(sh, d))
				}
			},
			"change kind": func(t *rapid.T) {
				d := name.Draw(t, "digest")
				if i := m.find(d); i >= 0 {
					m[i].e.kind = 3 - m[i].e.kind
					sh.kindLocked(x.findLocked(sh, d), m[i].e.kind)
				}
			},
			"age": func(t *rapid.T) {
				d := name.Draw(t, "digest")
				i := m.find(d)
				if i < 0 {
					return
				}
				e := m[i]
				e.e.touch = uint32(rapid.IntRange(0, int(now)).Draw(t, "touch"))
				m = slices.Delete(m, i, i+1)
				at := 0
				for j := range m {
					if m[j].e.touch <= e.e.touch {
						at = j + 1
					}
				}
				m = slices.Insert(m, at, e)
				sh.ageLocked(x.findLocked(sh, d), e.e.touch)
			},
			"": func(t *rapid.T) { compare(t, x, sh, m) },
		}
		t.Repeat(steps)
	})
}

func compare(t *rapid.T, x *index, sh *shard, m model) {
	var variantsWant int64
	for _, e := range m {
		i := x.findLocked(sh, e.d)
		if i == 0 {
			t.Fatalf("%s is lost", e.d)
		}
		if got := sh.node(i).entry; got != e.e {
			t.Fatalf("%s is %+v, want %+v", e.d, got, e.e)
		}
		variantsWant += variants(e.e.flags)
	}
	if sh.variants != variantsWant {
		t.Fatalf("%d variants, want %d", sh.variants, variantsWant)
	}
	for _, k := range []Kind{Cached, Owned} {
		var got []digest.Digest
		var touches []uint32
		var bytes int64
		for at := sh.lists[k-1].oldest; at != 0; at = sh.node(at).newer {
			got = append(got, sh.digestLocked(at))
			touches = append(touches, sh.node(at).entry.touch)
			bytes += sh.node(at).size
		}
		want := m.kind(k)
		if !slices.IsSorted(touches) || len(got) != len(want) || sh.count[k-1] != int64(len(want)) || sh.bytes[k-1] != bytes {
			t.Fatalf("%s list %v with touches %v, want %v", k, got, touches, want)
		}
		for _, d := range want {
			if !slices.Contains(got, d) {
				t.Fatalf("%s is not in the list of %s", d, k)
			}
		}
	}
}

// TestIndexIsSmall holds the promise of under 200 bytes a blob.
func TestIndexIsSmall(t *testing.T) {
	const n = 200_000
	var before, after runtime.MemStats
	x := newIndex(1, 2)
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range uint64(n) {
		d := numbered(digest.SHA256, i)
		x.addLocked(x.shard(d), d, entry{kind: Owned}, true)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := float64(after.HeapAlloc-before.HeapAlloc) / n
	t.Logf("%.0f bytes a blob", per)
	if per > 130 {
		t.Errorf("the index takes %.0f bytes a blob", per)
	}
	runtime.KeepAlive(x)
}

func BenchmarkPresence(b *testing.B) {
	s := openDisk(b, Options{})
	ds := make([]digest.Digest, 100_000)
	for i := range ds {
		ds[i] = numbered(digest.SHA256, uint64(i))
		s.insert(ds[i], entry{place: place{1, 1}, kind: Owned})
	}
	for b.Loop() {
		s.Presence(ds[:1000], true)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/blob")
}
