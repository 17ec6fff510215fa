package placement

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func disk(n int, weight uint32, zone string) Disk {
	var id cluster.DiskID
	binary.BigEndian.PutUint64(id[:], mix(uint64(n)+1))
	binary.BigEndian.PutUint64(id[8:], uint64(n))
	return Disk{ID: id, Weight: weight, Zone: zone, Node: fmt.Sprintf("w%d", n), Addr: fmt.Sprintf("127.0.0.1:%d", n)}
}

func disks(n, zones int) []Disk {
	ds := make([]Disk, n)
	for i := range ds {
		ds[i] = disk(i, 16, fmt.Sprintf("z%d", i%zones))
	}
	return ds
}

// drawDisks draws a few disks, rarely enough of them to exceed the tabled ranks.
func drawDisks(t *rapid.T) []Disk {
	ns := rapid.SliceOfNDistinct(rapid.IntRange(0, 500), 1, 16, rapid.ID[int]).Draw(t, "disks")
	zones := rapid.IntRange(1, 5).Draw(t, "zones")
	ds := make([]Disk, len(ns))
	for i, n := range ns {
		ds[i] = disk(n, rapid.SampledFrom([]uint32{1, 16, 17, 160}).Draw(t, "weight"), fmt.Sprintf("z%d", rapid.IntRange(0, zones-1).Draw(t, "zone")))
	}
	return ds
}

// sample is enough partitions for a property of each of them.
var sample = []uint16{0, 1, 2, 255, 256, 4711, 32767, 32768, 50000, 65534, 65535}

// naive is the rank order as rank.go defines it, computed without any of its means.
func naive(t *Table, p uint16) []Disk {
	type s struct {
		score uint64
		d     Disk
	}
	var all []s
	for i, d := range t.Disks() {
		all = append(all, s{t.scorers[i].score(logTable(), p), d})
	}
	slices.SortStableFunc(all, func(a, b s) int {
		switch {
		case a.score < b.score:
			return -1
		case a.score > b.score:
			return 1
		}
		return 0
	})
	var first, rest []Disk
	zones := make(map[string]bool)
	for _, s := range all {
		if !zones[s.d.Zone] && len(first) < t.R() {
			zones[s.d.Zone] = true
			first = append(first, s.d)
		} else {
			rest = append(rest, s.d)
		}
	}
	return append(first, rest...)
}

func TestRankOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ds, r := drawDisks(t), rapid.IntRange(1, 10).Draw(t, "r")
		table := layout(ds, r)
		k := newRanker(table)
		table.ranks = make([]uint16, Partitions*table.width)
		for _, p := range sample {
			k.rank(p)
			if diff := cmp.Diff(naive(table, p), table.Rank(p)); diff != "" {
				t.Fatalf("partition %d (-naive +table):\n%s", p, diff)
			}
			owners := table.Owners(p)
			if len(owners) != min(r, len(ds)) {
				t.Fatalf("%d owners of %d disks with r=%d", len(owners), len(ds), r)
			}
			zones, all := make(map[string]bool), make(map[string]bool)
			for _, d := range owners {
				zones[d.Zone] = true
				if !table.IsOwner(p, d.ID) {
					t.Fatalf("%s is no owner by IsOwner", d.ID)
				}
			}
			for _, d := range ds {
				all[d.Zone] = true
			}
			if len(zones) != min(len(all), len(owners)) {
				t.Fatalf("%d owners stand in %d of %d zones", len(owners), len(zones), len(all))
			}
		}
	})
}

func TestTableIsTheSameWhateverTheOrderOfItsDisks(t *testing.T) {
	ds := disks(12, 3)
	a := NewTable(ds, 2)
	slices.Reverse(ds)
	for i := range ds {
		ds[i].Addr, ds[i].Node = "elsewhere", "other"
	}
	b := NewTable(ds, 2)
	if a.ID() != b.ID() || !slices.Equal(a.ranks, b.ranks) {
		t.Fatal("the order or the addresses of the disks changed the table")
	}
	if b.Disks()[0].Addr != "elsewhere" {
		t.Fatal("the addresses are not the new ones")
	}
}

// TestUpdatedRanksAreThoseOfANewTable changes disks at random, partition by
// partition: the whole of With is TestWithEqualsNewTable's.
func TestUpdatedRanksAreThoseOfANewTable(t *testing.T) {
	ranked := func(t *Table) (*Table, *ranker) {
		k := newRanker(t)
		t.ranks = make([]uint16, Partitions*t.width)
		for _, p := range sample {
			k.rank(p)
		}
		return t, k
	}
	rapid.Check(t, func(t *rapid.T) {
		ds, r := drawDisks(t), rapid.IntRange(1, 4).Draw(t, "r")
		var next []Disk
		for _, d := range ds {
			switch rapid.IntRange(0, 9).Draw(t, "change") {
			case 0: // leaves
			case 1:
				d.Weight *= 2
				next = append(next, d)
			case 2:
				d.Zone = "another"
				next = append(next, d)
			default:
				next = append(next, d)
			}
		}
		for n := range rapid.IntRange(0, 3).Draw(t, "more") {
			next = append(next, disk(1000+n, 16, rapid.SampledFrom([]string{"z0", "z1", "z9"}).Draw(t, "zone")))
		}
		before, _ := ranked(layout(ds, r))
		want, _ := ranked(layout(next, r))
		if before.width != want.width || want.width == 0 {
			t.Skip("With makes a new table")
		}
		got, k := ranked(layout(next, r))
		clear(got.ranks)
		moved, added := got.changes(before)
		for _, p := range sample {
			k.update(p, before.tabledRanks(p), moved, added)
			if !slices.Equal(got.tabledRanks(p), want.tabledRanks(p)) {
				t.Fatalf("partition %d: updated %v, new %v", p, got.tabledRanks(p), want.tabledRanks(p))
			}
		}
	})
}

func TestWithEqualsNewTable(t *testing.T) {
	start := disks(12, 3)
	table := NewTable(start, 3)
	for _, next := range [][]Disk{
		append(slices.Clone(start[1:]), disk(100, 16, "z9")), // incremental
		start[:3], nil, start[:1],
	} {
		table = table.With(next)
		want := NewTable(next, 3)
		if table.ID() != want.ID() || !slices.Equal(table.ranks, want.ranks) {
			t.Fatalf("with %d disks the incremental table differs from a new one", len(next))
		}
	}
}

func TestOnlyAnOwnersDataMovesWhenItComesOrGoes(t *testing.T) {
	ds := disks(20, 1)
	all := NewTable(ds, 2)
	without := all.With(ds[1:])
	for p := range Partitions {
		had := all.IsOwner(uint16(p), ds[0].ID)
		for _, d := range without.Owners(uint16(p)) {
			if !had && !all.IsOwner(uint16(p), d.ID) {
				t.Fatalf("partition %d moved to %s though %s did not own it", p, d.ID, ds[0].ID)
			}
		}
		for _, d := range all.Owners(uint16(p)) {
			if d.ID != ds[0].ID && !without.IsOwner(uint16(p), d.ID) {
				t.Fatalf("partition %d left %s, which is still there", p, d.ID)
			}
		}
	}
}

// load counts the partitions that each disk owns.
func load(t *Table) []float64 {
	n := make([]float64, len(t.disks))
	for p := range Partitions {
		for _, i := range t.tabledRanks(uint16(p))[:t.r] {
			n[i]++
		}
	}
	return n
}

func TestLoadOf1000DisksIsEven(t *testing.T) {
	if underRace {
		t.Skip("the arithmetic is the same without the race detector, and twenty times as fast")
	}
	for _, zones := range []int{1, 3} {
		ns := load(NewTable(disks(1000, zones), 2))
		mean := 2.0 * Partitions / 1000
		var square, worst float64
		for _, n := range ns {
			square += (n - mean) * (n - mean)
			worst = max(worst, math.Abs(n-mean))
		}
		deviation, worst := math.Sqrt(square/1000)/mean, worst/mean
		t.Logf("%d zones: standard deviation %.1f %%, worst %.1f %%", zones, 100*deviation, 100*worst)
		if deviation > 0.10 || worst > 0.35 {
			t.Errorf("%d zones: standard deviation %.3f, worst %.3f", zones, deviation, worst)
		}
	}
}

func TestLoadFollowsWeight(t *testing.T) {
	var ds []Disk
	var sum float64
	for i := range 30 {
		w := []uint32{10, 20, 40}[i%3]
		ds = append(ds, disk(i, w, ""))
		sum += float64(w)
	}
	table := NewTable(ds, 1)
	got := make(map[uint32]float64)
	for i, n := range load(table) {
		got[table.disks[i].Weight] += n
	}
	for w, n := range got {
		want := Partitions * 10 * float64(w) / sum
		if math.Abs(n-want)/want > 0.03 {
			t.Errorf("disks of weight %d have %.0f partitions, want about %.0f", w, n, want)
		}
	}
}

func TestLogarithm(t *testing.T) {
	logs := logTable()
	last := negLog(logs, 0)
	if last > 64<<fraction {
		t.Fatalf("-log2(2^-64) = %d", last)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	us := []uint64{1, 2, 3, 1 << 32, 1<<63 - 1, 1 << 63, math.MaxUint64}
	for range 20000 {
		us = append(us, rng.Uint64()>>rng.UintN(60))
	}
	slices.Sort(us)
	for _, u := range us {
		got := negLog(logs, u)
		if got > last {
			t.Fatalf("-log2 rises at %d", u)
		}
		last = got
		want := 64 - math.Log2(float64(u|1))
		if math.Abs(float64(got)/(1<<fraction)-want) > 1e-6 {
			t.Fatalf("-log2(%d/2^64) = %v, want %v", u, float64(got)/(1<<fraction), want)
		}
	}
}

// TestGolden pins what all nodes of all versions must agree on: a change here
// moves every cluster's data, and needs a new placement version.
func TestGolden(t *testing.T) {
	ds := []Disk{disk(1, 16, "a"), disk(2, 16, "b"), disk(3, 32, "a"), disk(4, 1, "c"), disk(5, 1600, "b"), disk(6, 16, "a"), disk(7, 16, ""), disk(8, 8, "b"), disk(9, 3, "c"), disk(10, 16, "a")}
	table := NewTable(ds, 3)
	sum := crc32.NewIEEE()
	for _, i := range table.ranks {
		sum.Write(binary.BigEndian.AppendUint16(nil, i))
	}
	logs := crc32.NewIEEE()
	for _, l := range logTable() {
		logs.Write(binary.BigEndian.AppendUint64(nil, l))
	}
	got := []uint64{table.ID(), uint64(sum.Sum32()), uint64(logs.Sum32()), table.scorers[0].score(logTable(), 4711)}
	want := []uint64{11413603740276607836, 3765072653, 3472862315, 79293271905603907}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	nodes := []string{"s1", "s2", "s3", "s4", "s5"}
	var ranks [][]int
	for _, key := range []uint64{0, 1, 2, math.MaxUint64, bits.Reverse64(1) + 1} {
		ranks = append(ranks, Rendezvous(key, nodes, 3))
	}
	if diff := cmp.Diff([][]int{{0, 3, 1}, {1, 3, 2}, {2, 4, 1}, {4, 2, 1}, {0, 1, 4}}, ranks); diff != "" {
		t.Errorf("rendezvous (-want +got):\n%s", diff)
	}
}

func TestRendezvous(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z]{1,8}`), 1, 9, rapid.ID[string]).Draw(t, "nodes")
		key, n := rapid.Uint64().Draw(t, "key"), rapid.IntRange(1, 4).Draw(t, "n")
		names := func(nodes []string, is []int) (s []string) {
			for _, i := range is {
				s = append(s, nodes[i])
			}
			return s
		}
		all := names(nodes, Rendezvous(key, nodes, len(nodes)))
		if got := names(nodes, Rendezvous(key, nodes, n)); !slices.Equal(got, all[:min(n, len(all))]) {
			t.Fatalf("the first %d of %q are %q", n, all, got)
		}
		shuffled := rapid.Permutation(nodes).Draw(t, "shuffled")
		if got := names(shuffled, Rendezvous(key, shuffled, len(nodes))); !slices.Equal(got, all) {
			t.Fatalf("another order of nodes gives %q, not %q", got, all)
		}
		gone := rapid.SampledFrom(nodes).Draw(t, "gone")
		rest := slices.DeleteFunc(slices.Clone(nodes), func(s string) bool { return s == gone })
		want := slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == gone })
		if got := names(rest, Rendezvous(key, rest, len(rest))); !slices.Equal(got, want) {
			t.Fatalf("without %s: %q, want %q", gone, got, want)
		}
	})
}

func BenchmarkNewTable1000(b *testing.B) {
	ds := disks(1000, 3)
	for b.Loop() {
		NewTable(ds, 2)
	}
}

func BenchmarkWith1000(b *testing.B) {
	ds := disks(1000, 3)
	full, less := NewTable(ds, 2), NewTable(ds[1:], 2)
	b.Run("leave", func(b *testing.B) {
		for b.Loop() {
			full.With(ds[1:])
		}
	})
	b.Run("join", func(b *testing.B) {
		for b.Loop() {
			less.With(ds)
		}
	})
}

func BenchmarkOwners(b *testing.B) {
	table := NewTable(disks(100, 3), 2)
	var buf [4]Disk
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		table.AppendOwners(buf[:0], uint16(i))
	}
}
