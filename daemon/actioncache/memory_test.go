package actioncache

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func entry(n int, stamp int64, size int) Entry {
	return Entry{Key: key("", n), Stamp: stamp, Writer: "w", Result: bytes.Repeat([]byte{byte(n)}, size)}
}

// TestMemory holds Memory to a naive model: a list in order of use.
func TestMemory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 100 << 10 // some ten of them fit
		m := NewMemory(1 << 20)
		var model []int // the most recently used first
		version := make(map[int]int64)
		ever := make(map[int]bool)
		stamp := int64(0)
		use := func(n int) {
			model = slices.DeleteFunc(model, func(o int) bool { return o == n })
			model = slices.Insert(model, 0, n)
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				n := rapid.IntRange(0, 20).Draw(t, "n")
				stamp++
				m.Put(entry(n, stamp, size))
				use(n)
				version[n], ever[n] = stamp, true
				for cost := int64(len(model)) * (size + 35 + entryCost); cost > 1<<20; cost -= size + 35 + entryCost {
					delete(version, model[len(model)-1])
					model = model[:len(model)-1]
				}
			},
			"look up": func(t *rapid.T) {
				n := rapid.IntRange(0, 25).Draw(t, "n")
				e, found, known := m.Lookup(key("", n))
				if found != (version[n] != 0) || e.Stamp != version[n] {
					t.Fatalf("found %v, stamp %d; want %d", found, e.Stamp, version[n])
				}
				if !found && known && ever[n] {
					t.Fatalf("sure that %d never was, though it was evicted", n)
				}
				if found {
					use(n)
				}
			},
			"": func(t *rapid.T) {
				st := m.Stats()
				if st.Entries != len(model) || st.Bytes > 1<<20 {
					t.Fatalf("%+v with %d entries in the model", st, len(model))
				}
			},
		})
	})
}

func TestMemoryKnowsWhatItNeverHad(t *testing.T) {
	m := NewMemory(1 << 20)
	for n := range 3000 {
		m.Put(entry(n, 1, 1000))
	}
	evicted, unsure := 0, 0
	for n := range 3000 {
		if _, found, known := m.Lookup(key("", n)); !found {
			evicted++
			if known {
				t.Fatalf("sure that %d never was", n)
			}
		}
	}
	for n := range 10000 {
		if _, _, known := m.Lookup(key("other", n)); !known {
			unsure++
		}
	}
	if evicted < 2000 || unsure > 50 {
		t.Fatalf("%d evicted, unsure of %d of 10000 that never were", evicted, unsure)
	}
}

func TestMemoryLoadsOnlyWhatIsYoungerThanWhatItDisplaces(t *testing.T) {
	m := NewMemory(1 << 20)
	n := 0
	for ; m.Stats().Evictions == 0; n++ {
		m.Put(entry(n, 100, 1000))
	}
	if f := m.Floor(); f != 100 {
		t.Fatalf("the floor is %d", f)
	}
	m.Load(entry(n, 50, 1000))
	if _, found, known := m.Lookup(key("", n)); found || known {
		t.Fatalf("an older entry: found %v, known %v", found, known)
	}
	m.Load(entry(n+1, 150, 1000))
	if _, found, _ := m.Lookup(key("", n+1)); !found {
		t.Fatal("a younger entry was not loaded")
	}
	m.Skip(key("", n+2), 10)
	if _, found, known := m.Lookup(key("", n+2)); found || known {
		t.Fatal("sure that a skipped entry is nowhere")
	}
	m.Skip(key("", n+1), 160)
	if _, found, known := m.Lookup(key("", n+1)); found || known {
		t.Fatal("a superseded entry is still served")
	}
}

func TestMemoryListsEverything(t *testing.T) {
	m := NewMemory(64 << 20)
	for n := range 2000 {
		m.Put(Entry{Key: key(fmt.Sprint(n%3), n), Stamp: int64(n), Writer: "w", Result: make([]byte, 100)})
	}
	for _, since := range []int64{0, 1500} {
		seen, pages := make(map[Key]bool), 0
		for after := []byte(nil); ; pages++ {
			es, next := m.List(after, since, 10<<10)
			for _, e := range es {
				if seen[e.Key] || e.Stamp < since {
					t.Fatalf("%v listed twice, or too old", e.Key)
				}
				seen[e.Key] = true
				m.Lookup(e.Key) // use changes no order that matters here
			}
			if next == nil {
				break
			}
			after = next
		}
		if len(seen) != 2000-int(since) || pages < 5 {
			t.Fatalf("%d entries on %d pages", len(seen), pages)
		}
	}
}

func TestMemoryOverhead(t *testing.T) {
	if testing.Short() {
		t.Skip("measures the heap")
	}
	const entries, size = 40_000, 1024 // a size that the allocator doesn't round
	heap := func() uint64 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	before := heap()
	m := NewMemory(1 << 30)
	for n := range entries {
		m.Put(entry(n, int64(n), size))
	}
	spent := heap() - before
	overhead := (int64(spent) - entries*size) / entries
	counted := (m.Stats().Bytes - entries*size) / entries
	t.Logf("%d bytes an entry beyond its result, %d counted", overhead, counted)
	if overhead > 300 || overhead > counted*5/4 {
		t.Errorf("an entry costs %d bytes, %d are counted", overhead, counted)
	}
	runtime.KeepAlive(m)
}

func BenchmarkMemoryLookup(b *testing.B) {
	m := NewMemory(1 << 30)
	for n := range 10000 {
		m.Put(entry(n, 1, 100))
	}
	k := key("", 5)
	for b.Loop() {
		m.Lookup(k)
	}
}
