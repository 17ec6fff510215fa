package replica

import (
	"slices"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster/placement"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// view is a placement table with the disks numbered, so that what is gathered
// disk by disk need not be keyed by their ids.
type view struct {
	tab    *placement.Table
	disks  []placement.Disk // the placeable ones, then those that are leaving
	placed int              // how many are placeable
	index  map[cluster.DiskID]int32
	self   int32 // this node's own disk, or -1
}

// view is the current one.
func (s *Store) view() *view {
	tab := s.placement.Table()
	if v := s.views.Load(); v != nil && v.tab == tab {
		return v
	}
	v := &view{tab: tab, disks: slices.Concat(tab.Disks(), tab.Leaving()), placed: len(tab.Disks()), self: -1}
	v.index = make(map[cluster.DiskID]int32, len(v.disks))
	for i, d := range v.disks {
		v.index[d.ID] = int32(i)
	}
	if s.local != nil {
		if i, ok := v.index[s.local.ID()]; ok {
			v.self = i
		}
	}
	s.views.Store(v)
	return v
}

// owners appends the numbers of d's owners, first rank first.
func (v *view) owners(to []int32, d digest.Digest) []int32 {
	var some [8]placement.Disk
	for _, o := range v.tab.AppendOwners(some[:0], d.Prefix()) {
		to = append(to, v.index[o.ID])
	}
	return to
}

// rank is the numbers of all disks in d's rank order.
func (v *view) rank(d digest.Digest) []int32 {
	disks := v.tab.Rank(d.Prefix())
	ranks := make([]int32, len(disks))
	for i, o := range disks {
		ranks[i] = v.index[o.ID]
	}
	return ranks
}

// counts reports whether a copy of d on the disk self is one of d's copies:
// self is an owner, or everyone ranked above it but r-1 was skipped.
func (v *view) counts(d digest.Digest, self cluster.DiskID, r int, skipped func(cluster.DiskID) bool) bool {
	p := d.Prefix()
	if v.tab.IsOwner(p, self) {
		return true
	}
	above := 0
	for _, o := range v.tab.Rank(p) {
		if o.ID == self {
			return true
		}
		if skipped(o.ID) {
			continue
		}
		if above++; above >= r {
			return false
		}
	}
	return false // placement does not know self: it drains, or has yet to join
}

// owned tells whether this node's disk owns d, as placement sees it.
func (s *Store) owned(d digest.Digest) bool {
	return s.local != nil && s.placement.Table().IsOwner(d.Prefix(), s.local.ID())
}

// addr is where the bytes on a disk are asked for.
func (s *Store) addr(v *view, i int32) string {
	if i == v.self {
		return s.selfAddr
	}
	return v.disks[i].Addr
}
