package placement

import (
	"bytes"
	"maps"
	"slices"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
)

// Core decides which disks are placeable. It is a pure state machine: time and
// views come in, tables come out.
//
//	        seen (starting or ready)           out of the view for deadAfter
//	(none) ─────────────────────────> placed ───────────────────────────────> (none)
//	                                    │
//	                                    └── its member announces draining ──> (none)
//
// A member that comes back within deadAfter, under whatever address, keeps its
// disk's place.
type Core struct {
	deadAfter time.Duration
	table     *Table
	last      time.Time // of the last step
	disks     map[cluster.DiskID]*known
	leaving   map[cluster.DiskID]Disk // of members that drain
	quiet     time.Time               // since when no disk was new; see Quiet
}

type known struct {
	disk   Disk
	absent time.Duration // watched absence so far
}

// settle is how long no new disk must have been seen before a node takes it
// that it knows all: about as long as nodes that start together take to find
// each other.
const settle = 2 * time.Second

// watched is the part of deadAfter that one step may add to an absence. A
// process that was stopped for an hour has not watched anyone be away for an
// hour: it must not drop what has come back meanwhile.
const watched = 10

// NewCore starts with no disks. Each partition gets r owners; a disk out of
// the view is dropped after deadAfter.
func NewCore(r int, deadAfter time.Duration) *Core {
	return &Core{deadAfter: deadAfter, table: NewTable(nil, r), disks: make(map[cluster.DiskID]*known), leaving: make(map[cluster.DiskID]Disk)}
}

// Table is the table of the last step.
func (c *Core) Table() *Table { return c.table }

// Step takes in the view of this moment, and must be called at each change of
// it and at least every tenth of deadAfter. It reports whether the table is
// another one; where only addresses have changed, its ID has not.
func (c *Core) Step(now time.Time, v *cluster.View) (t *Table, changed bool) {
	before := len(c.disks)
	changed = c.advance(now, v)
	c.listen(now, v, before)
	if changed {
		c.table = c.table.With(c.placeable())
		c.table.leaving = sortedDisks(c.leaving)
	}
	return c.table, changed
}

// Quiet is since when no disk was new, while this node was getting to know the
// cluster: it is settled once that is a while ago, and remains so, whoever
// joins. It is zero while there is no disk, and until another node was seen.
func (c *Core) Quiet() time.Time { return c.quiet }

// listen takes down whether the view has brought a disk that was not known.
func (c *Core) listen(now time.Time, v *cluster.View, before int) {
	switch {
	case len(c.disks) == 0:
		c.quiet = time.Time{}
	case c.quiet.IsZero() && len(v.Members) < 2:
	case c.quiet.IsZero(), len(c.disks) > before && now.Sub(c.quiet) < settle:
		c.quiet = now
	}
}

// advance takes in the view, and reports whether what is placeable has changed.
func (c *Core) advance(now time.Time, v *cluster.View) (changed bool) {
	var passed time.Duration
	if !c.last.IsZero() {
		passed = min(max(now.Sub(c.last), 0), c.deadAfter/watched)
	}
	c.last = now

	seen := latest(v)
	for id := range c.leaving {
		if m := seen[id]; m == nil || m.State != cluster.Draining {
			delete(c.leaving, id)
			changed = true
		}
	}
	for id, m := range seen {
		d := Disk{ID: id, Weight: max(m.Weight, 1), Zone: m.Zone, Node: m.ID, Addr: m.Addr}
		if m.State == cluster.Draining {
			changed = changed || c.disks[id] != nil || c.leaving[id] != d
			delete(c.disks, id)
			c.leaving[id] = d
			continue
		}
		k := c.disks[id]
		if k == nil {
			k = new(known)
			c.disks[id] = k
		}
		if k.disk != d {
			k.disk, changed = d, true
		}
		k.absent = 0
	}
	for id, k := range c.disks {
		if _, ok := seen[id]; ok {
			continue
		}
		if k.absent += passed; k.absent >= c.deadAfter {
			delete(c.disks, id)
			changed = true
		}
	}
	return changed
}

func sortedDisks(m map[cluster.DiskID]Disk) []Disk {
	return slices.SortedFunc(maps.Values(m), func(a, b Disk) int { return bytes.Compare(a.ID[:], b.ID[:]) })
}

func (c *Core) placeable() []Disk {
	disks := make([]Disk, 0, len(c.disks))
	for _, k := range c.disks {
		disks = append(disks, k.disk)
	}
	return disks
}

// latest finds the member behind each disk: of two with one disk id, the one
// that started later.
func latest(v *cluster.View) map[cluster.DiskID]*cluster.Member {
	ms := make(map[cluster.DiskID]*cluster.Member)
	for i := range v.Members {
		m := &v.Members[i]
		if m.Role != cluster.Worker || m.Disk == (cluster.DiskID{}) {
			continue
		}
		if o := ms[m.Disk]; o == nil || o.Boot < m.Boot || o.Boot == m.Boot && o.ID < m.ID {
			ms[m.Disk] = m
		}
	}
	return ms
}
