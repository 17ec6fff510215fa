// Package placement owns the question where data belongs: which disks, in
// which order, hold each of 2^16 partitions of the digests.
//
// It promises that nodes which know the same disks rank them alike, on every
// architecture; that a disk that comes or goes moves only the data that it
// gets or had; that disks get data in proportion to their weights, zones
// permitting; and that a restart, a pause or a flap of a node moves nothing.
// It says nothing about who can be reached now: that is package rpc's.
package placement

import (
	"bytes"
	"slices"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
)

// Version is the placement version that this package computes.
const Version uint32 = 1

// Partitions is how many partitions there are: one for each digest.Prefix.
const Partitions = 1 << 16

// tabled is how many ranks of each partition are computed ahead.
const tabled = 8

// Disk is one worker's store, as placement sees it. Node and Addr say where it
// is now; they don't enter the ranking.
type Disk struct {
	ID     cluster.DiskID
	Weight uint32 // 0 counts as 1
	Zone   string
	Node   string // Member.ID
	Addr   string // host:port of the node's cluster port
}

// placed reports whether d and e are placed alike.
func (d *Disk) placed(e *Disk) bool {
	return d.ID == e.ID && d.Weight == e.Weight && d.Zone == e.Zone
}

// Table ranks a set of disks for every partition. It is immutable.
type Table struct {
	id      uint64
	r       int
	width   int    // ranks tabled for each partition: max(tabled, r), at most all
	disks   []Disk // by ID
	leaving []Disk // by ID
	scorers []scorer
	zones   []uint16 // of each disk, numbered in order of first appearance
	nzones  int
	ranks   []uint16 // width indexes into disks for each partition
}

// NewTable ranks disks, whose order doesn't matter, with r owners for each
// partition. Of several with one ID the first counts. With 1,000 disks it
// takes some 0.5 s of CPU; With is much cheaper where few have changed.
func NewTable(disks []Disk, r int) *Table {
	t := layout(disks, r)
	t.rankAll()
	return t
}

// layout makes a table without its ranks.
func layout(disks []Disk, r int) *Table {
	t := &Table{r: max(r, 1), disks: slices.Clone(disks)}
	for i := range t.disks {
		t.disks[i].Weight = max(t.disks[i].Weight, 1)
	}
	slices.SortStableFunc(t.disks, func(a, b Disk) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	t.disks = slices.CompactFunc(t.disks, func(a, b Disk) bool { return a.ID == b.ID })
	if len(t.disks) > 1<<16 {
		t.disks = t.disks[:1<<16] // indexes have 16 bits; gossip ends long before
	}
	t.id = hashInputs(t.disks, t.r)
	t.width = min(max(tabled, t.r), len(t.disks))
	t.scorers = make([]scorer, len(t.disks))
	t.zones = make([]uint16, len(t.disks))
	zones := make(map[string]uint16)
	for i, d := range t.disks {
		t.scorers[i] = newScorer(d.ID, d.Weight)
		z, ok := zones[d.Zone]
		if !ok {
			z = uint16(len(zones))
			zones[d.Zone] = z
		}
		t.zones[i] = z
	}
	t.nzones = len(zones)
	return t
}

// ID is a hash of what the table was computed of: tables with one ID rank
// alike. Addresses don't enter.
func (t *Table) ID() uint64 { return t.id }

// R is how many owners a partition has, where there are as many disks.
func (t *Table) R() int { return t.r }

// Disks are the table's disks by ID. The caller must not change them.
func (t *Table) Disks() []Disk { return t.disks }

// Leaving are the disks of members that drain, by ID: they own nothing, and may
// hold what nobody else does. They don't enter the table's ID. The caller must
// not change them.
func (t *Table) Leaving() []Disk { return t.leaving }

// Disk finds a disk by its id.
func (t *Table) Disk(id cluster.DiskID) (Disk, bool) {
	i, ok := t.index(id)
	if !ok {
		return Disk{}, false
	}
	return t.disks[i], true
}

func (t *Table) index(id cluster.DiskID) (int, bool) {
	return slices.BinarySearchFunc(t.disks, id, func(d Disk, id cluster.DiskID) int { return bytes.Compare(d.ID[:], id[:]) })
}

// tabledRanks are the first ranks of p.
func (t *Table) tabledRanks(p uint16) []uint16 {
	at := int(p) * t.width
	return t.ranks[at : at+t.width]
}

// Owners are the first R ranks of partition p, or all disks when they are fewer.
func (t *Table) Owners(p uint16) []Disk { return t.AppendOwners(nil, p) }

// AppendOwners appends p's owners to ds, so that a hot path need not allocate.
func (t *Table) AppendOwners(ds []Disk, p uint16) []Disk {
	n := min(t.r, len(t.disks))
	ds = slices.Grow(ds, n)
	for _, i := range t.tabledRanks(p)[:n] {
		ds = append(ds, t.disks[i])
	}
	return ds
}

// Rank returns all disks in p's rank order, the owners first.
func (t *Table) Rank(p uint16) []Disk {
	ds := make([]Disk, 0, len(t.disks))
	in := make([]bool, len(t.disks))
	for _, i := range t.tabledRanks(p) {
		in[i] = true
		ds = append(ds, t.disks[i])
	}
	if len(ds) == len(t.disks) {
		return ds
	}
	rest := make([]scored, 0, len(t.disks)-len(ds))
	logs := logTable()
	for i := range t.disks {
		if !in[i] {
			rest = append(rest, scored{t.scorers[i].score(logs, p), uint16(i)})
		}
	}
	slices.SortFunc(rest, scored.compare)
	for _, s := range rest {
		ds = append(ds, t.disks[s.disk])
	}
	return ds
}

// IsOwner reports whether the disk id is one of p's owners.
func (t *Table) IsOwner(p uint16, id cluster.DiskID) bool {
	for _, i := range t.tabledRanks(p)[:min(t.r, len(t.disks))] {
		if t.disks[i].ID == id {
			return true
		}
	}
	return false
}
