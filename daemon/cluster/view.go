package cluster

import (
	"cmp"
	"slices"
)

// newView sorts what gossip knows, and hides those that a later start has
// replaced: older boots of a name, and of a disk (a disk carried to another
// machine comes back under another name). Their deaths are still to be noticed.
func newView(known map[string]Member) *View {
	ms := make([]Member, 0, len(known))
	for _, m := range known {
		ms = append(ms, m)
	}
	// The latest first, so that whoever comes later is hidden.
	slices.SortFunc(ms, func(a, b Member) int {
		return cmp.Or(cmp.Compare(b.Boot, a.Boot), cmp.Compare(b.ID, a.ID))
	})
	names := make(map[string]bool, len(ms))
	disks := make(map[DiskID]bool, len(ms))
	ms = slices.DeleteFunc(ms, func(m Member) bool {
		old := names[m.Name] || disks[m.Disk]
		names[m.Name] = true
		if m.Disk != (DiskID{}) {
			disks[m.Disk] = true
		}
		return old
	})
	slices.SortFunc(ms, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	return &View{Members: ms}
}

// Replaced tells which member has taken self's place in the view: one of its
// name, or with its disk, that started later.
func (v *View) Replaced(self Member) (by Member, yes bool) {
	for _, m := range v.Members {
		if m.ID == self.ID {
			return Member{}, false
		}
		if m.Name == self.Name || m.Disk == self.Disk && m.Disk != (DiskID{}) {
			by, yes = m, true
		}
	}
	return by, yes
}

func equal(a, b *View) bool { return slices.Equal(a.Members, b.Members) }
