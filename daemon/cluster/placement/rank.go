package placement

import "cmp"

// The rank order of a partition: by score, but the first R places go to the
// best disk of each zone first, in their order, and then to the best of the
// rest. Two facts make it cheap to keep up to date, and tests hold them:
//   - whoever leaves changes only the partitions where it was tabled;
//   - with a disk more, the tabled ranks are those of the ones tabled before
//     and the new one.

// scored is a disk with its score for some partition.
type scored struct {
	score uint64
	disk  uint16
}

// compare puts the first in rank first. Disks lie sorted by ID, so that equal
// scores are ordered alike everywhere.
func (s scored) compare(o scored) int {
	if c := cmp.Compare(s.score, o.score); c != 0 {
		return c
	}
	return cmp.Compare(s.disk, o.disk)
}

// ranker holds what ranking needs for one partition after the other.
type ranker struct {
	t    *Table
	logs *[1<<logBits + 1]uint64
	top  []scored // the best by score alone, sorted
	zone []scored // the best of each zone
	has  []bool   // whether zone has one
	done []bool   // zones that have their place already
	used []bool   // places of top that are taken
}

func newRanker(t *Table) *ranker {
	return &ranker{
		t: t, logs: logTable(),
		top: make([]scored, 0, t.width+t.nzones+1), used: make([]bool, t.width+t.nzones+1),
		zone: make([]scored, t.nzones), has: make([]bool, t.nzones), done: make([]bool, t.nzones),
	}
}

func (t *Table) rankAll() {
	if t.width == 0 {
		return
	}
	t.ranks = make([]uint16, Partitions*t.width)
	k := newRanker(t)
	for p := range Partitions {
		k.rank(uint16(p))
	}
}

// rank ranks all disks for p.
func (k *ranker) rank(p uint16) {
	t := k.t
	k.top = k.top[:0]
	logs, worst := k.logs, ^uint64(0)
	for i, sc := range t.scorers {
		// Later disks come after earlier ones of the same score.
		if score := sc.score(logs, p); score < worst || len(k.top) < t.width {
			k.insert(scored{score, uint16(i)}, t.width)
			if len(k.top) == t.width {
				worst = k.top[t.width-1].score
			}
		}
	}
	if k.zonesAbove() < min(t.r, t.nzones) {
		k.addZones(p)
	}
	k.choose(t.tabledRanks(p))
}

// zonesAbove counts the zones of top.
func (k *ranker) zonesAbove() (n int) {
	clear(k.done)
	for _, s := range k.top {
		if z := k.t.zones[s.disk]; !k.done[z] {
			k.done[z] = true
			n++
		}
	}
	return n
}

// addZones adds the best of each zone that has none in top: it may own all the
// same. Few partitions need it, unless zones are of very different sizes.
func (k *ranker) addZones(p uint16) {
	t := k.t
	clear(k.has)
	for i, z := range t.zones {
		if k.done[z] {
			continue
		}
		if s := (scored{t.scorers[i].score(k.logs, p), uint16(i)}); !k.has[z] || s.compare(k.zone[z]) < 0 {
			k.zone[z], k.has[z] = s, true
		}
	}
	for z := range k.zone {
		if k.has[z] {
			k.insert(k.zone[z], cap(k.top))
		}
	}
}

// insert puts s into top, which keeps at most limit.
func (k *ranker) insert(s scored, limit int) {
	if len(k.top) < limit {
		k.top = append(k.top, s)
	}
	at := len(k.top) - 1
	for ; at > 0 && s.compare(k.top[at-1]) < 0; at-- {
		k.top[at] = k.top[at-1]
	}
	k.top[at] = s
}

// choose fills ranks from top, zones spread over the first R.
func (k *ranker) choose(ranks []uint16) {
	clear(k.used)
	clear(k.done)
	n, r := 0, min(k.t.r, len(ranks))
	for i := 0; i < len(k.top) && n < r; i++ {
		if z := k.t.zones[k.top[i].disk]; !k.done[z] {
			k.done[z], k.used[i] = true, true
			ranks[n] = k.top[i].disk
			n++
		}
	}
	for i := 0; i < len(k.top) && n < len(ranks); i++ {
		if !k.used[i] {
			ranks[n] = k.top[i].disk
			n++
		}
	}
}

// With is the table of other disks. It scores only those that are new, and
// ranks anew only the partitions where one that has gone was tabled.
func (t *Table) With(disks []Disk) *Table {
	n := layout(disks, t.r)
	if n.id == t.id {
		n.ranks = t.ranks // at most addresses have changed
		return n
	}
	moved, added := n.changes(t)
	// Each added disk costs some ten scores a partition, a new table one for
	// each disk.
	if n.width != t.width || 10*len(added) > len(n.disks) {
		n.rankAll()
		return n
	}
	n.ranks = make([]uint16, Partitions*n.width)
	k := newRanker(n)
	for p := range Partitions {
		k.update(uint16(p), t.tabledRanks(uint16(p)), moved, added)
	}
	return n
}

// changes tells for each disk of old where it stands in t, or -1 where it has
// gone or is placed otherwise now, and which of t's are not in old.
func (t *Table) changes(old *Table) (moved []int32, added []uint16) {
	moved = make([]int32, len(old.disks))
	kept := make([]bool, len(t.disks))
	for i := range old.disks {
		moved[i] = -1
		if j, ok := t.index(old.disks[i].ID); ok && t.disks[j].placed(&old.disks[i]) {
			moved[i], kept[j] = int32(j), true
		}
	}
	for j := range t.disks {
		if !kept[j] {
			added = append(added, uint16(j))
		}
	}
	return moved, added
}

// update ranks p given its ranks in the table before.
func (k *ranker) update(p uint16, old []uint16, moved []int32, added []uint16) {
	t := k.t
	ranks := t.tabledRanks(p)
	for n, i := range old {
		j := moved[i]
		if j < 0 {
			k.rank(p)
			return
		}
		ranks[n] = uint16(j)
	}
	for _, j := range added {
		k.top = k.top[:0]
		for _, i := range ranks {
			k.insert(scored{t.scorers[i].score(k.logs, p), i}, cap(k.top))
		}
		k.insert(scored{t.scorers[j].score(k.logs, p), j}, cap(k.top))
		k.choose(ranks)
	}
}
