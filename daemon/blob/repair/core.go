// Package repair owns what a disk knows of the other disks' contents, as pure
// cores that their shell (package replica) drives with time, tables and
// answers: which partitions the disk is settled in, whom it compares with, what
// it has still to fetch, and in which order.
//
// It promises that Settled is true only while this disk knows of every blob in
// the partition that was acknowledged, and that Adopted is true only once every
// other disk that answers holds this one to be an owner. It does no I/O, and its
// types are not safe for concurrent use.
package repair

import (
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster/placement"
)

// The times of storage.md sections 3 and 4.
const (
	// Reach is how long fewer than half of the witnesses may not have answered
	// before a disk holds itself to have been out of reach.
	Reach = 2 * time.Second
	// Silence is how long a disk must not have been heard before others go on
	// without it. It is longer than Reach, so that who is skipped knows.
	Silence = 3 * time.Second
	// Newcomer is how long what a settled disk knows is in doubt because another
	// disk has joined, which may bring blobs of a split. One that hangs must not
	// keep a whole cluster from telling what is missing.
	Newcomer = 5 * time.Second
	// again is how long an answer that was not what was hoped for is waited on.
	again = 100 * time.Millisecond
)

// MaxWitnesses is how many other disks judge whether a disk is in reach.
const MaxWitnesses = 15

// Core is one disk's knowledge.
//
//	          Table makes it an owner                all others have adopted the
//	          Start, Lost, Doubt                     table, and told what they own
//	(other) ----------------------------> unsettled ------------------------------> settled
//	   ^                                      |                                        |
//	   +--------------------------------------+----------------------------------------+
//	                         Table makes it no owner
type Core struct {
	self    cluster.DiskID
	table   *placement.Table
	placed  bool // self is placeable
	owned   Set
	peers   map[cluster.DiskID]*peer
	clock   uint64             // counts what makes earlier answers worthless
	stamp   [Partitions]uint64 // when each partition was last made to wait
	waiting [Partitions]uint16 // how many peers have still to tell
	unseen  [Partitions]uint16 // how many have still to adopt
	holes   int                // partitions for which some have still to tell
	size    int                // of owned
	in      bool               // in reach, as far as was looked
	judges  []placement.Disk   // see Witnesses
}

// peer is another disk.
type peer struct {
	disk     placement.Disk
	placed   bool      // it is placeable; else it is leaving
	answered time.Time // when the last probe that it answered was sent
	asking   bool
	next     time.Time // not to be asked before
	joined   time.Time // when it came to be known
	waiting  Set       // what it has still to tell of
	brief    Set       // the part of waiting that is only waited for as Newcomer says
	unseen   Set       // where it has not adopted this disk as an owner
	check    Set       // what is to be compared without hurry
}

// New is the core of the disk self. It knows nothing until it is given a table.
func New(self cluster.DiskID) *Core {
	return &Core{self: self, peers: make(map[cluster.DiskID]*peer), in: true}
}

// Table takes in another table. Partitions that this disk newly owns have to
// settle; a disk that was not known has to tell what it brings.
func (c *Core) Table(now time.Time, t *placement.Table) {
	if t == c.table {
		return
	}
	c.table = t
	c.clock++
	_, c.placed = t.Disk(c.self)
	known := make(map[cluster.DiskID]bool, len(t.Disks()))
	take := func(d placement.Disk, placed bool) {
		if d.ID == c.self {
			return
		}
		known[d.ID] = true
		p := c.peers[d.ID]
		if p == nil {
			p = &peer{joined: now, answered: now}
			c.peers[d.ID] = p
			c.owned.All(func(q uint16) bool {
				c.await(p, q)
				return true
			})
			p.brief = p.waiting
		}
		if p.disk.Node != d.Node {
			p.next = time.Time{}
		}
		p.disk, p.placed = d, placed
		if !placed {
			c.adopt(p)
		}
	}
	for _, d := range t.Disks() {
		take(d, true)
	}
	for _, d := range t.Leaving() {
		take(d, false)
	}
	for id, p := range c.peers {
		if !known[id] {
			c.release(p)
			delete(c.peers, id)
		}
	}
	c.judges = witnesses(c.self, t.Disks())
	for i := range Partitions {
		q := uint16(i)
		switch is := t.IsOwner(q, c.self); {
		case is && !c.owned.Has(q):
			c.owned.Add(q)
			c.size++
			c.unsettle(q)
		case !is && c.owned.Has(q):
			c.owned.Remove(q)
			c.size--
			for _, p := range c.peers {
				c.heard(p, q)
				c.adopted(p, q)
				p.check.Remove(q)
			}
		}
	}
}

// unsettle makes all others tell of q anew.
func (c *Core) unsettle(q uint16) {
	for _, p := range c.peers {
		c.await(p, q)
		p.brief.Remove(q)
		if p.placed && !p.unseen.Has(q) {
			p.unseen.Add(q)
			c.unseen[q]++
		}
	}
}

func (c *Core) await(p *peer, q uint16) {
	c.stamp[q] = c.clock
	p.check.Remove(q)
	if !p.waiting.Has(q) {
		p.waiting.Add(q)
		if c.waiting[q]++; c.waiting[q] == 1 {
			c.holes++
		}
	}
}

func (c *Core) heard(p *peer, q uint16) {
	if p.waiting.Has(q) {
		p.waiting.Remove(q)
		c.fewer(q)
	}
}

func (c *Core) fewer(q uint16) {
	if c.waiting[q]--; c.waiting[q] == 0 {
		c.holes--
	}
}

func (c *Core) adopted(p *peer, q uint16) {
	if p.unseen.Has(q) {
		p.unseen.Remove(q)
		c.unseen[q]--
	}
}

// adopt goes on without the peer's having adopted anything.
func (c *Core) adopt(p *peer) {
	unseen := p.unseen
	unseen.All(func(q uint16) bool {
		c.adopted(p, q)
		return true
	})
}

// release counts a peer out that has gone.
func (c *Core) release(p *peer) {
	p.waiting.All(func(q uint16) bool {
		c.fewer(q)
		return true
	})
	p.unseen.All(func(q uint16) bool {
		c.unseen[q]--
		return true
	})
}

// Doubt makes one partition settle again: something may be there that this disk
// does not know of.
func (c *Core) Doubt(q uint16) {
	c.clock++
	if c.owned.Has(q) {
		c.unsettle(q)
	}
}

// lost makes all partitions settle again.
func (c *Core) lost() {
	c.clock++
	c.owned.All(func(q uint16) bool {
		c.unsettle(q)
		return true
	})
	for _, p := range c.peers {
		p.next = time.Time{}
	}
}

// Witnesses are the disks that this one must hear from to be in reach.
func (c *Core) Witnesses() []placement.Disk { return c.judges }

func witnesses(self cluster.DiskID, all []placement.Disk) []placement.Disk {
	others := make([]placement.Disk, 0, len(all))
	ids := make([]string, 0, len(all))
	for _, d := range all {
		if d.ID != self {
			others = append(others, d)
			ids = append(ids, string(d.ID[:]))
		}
	}
	if len(others) <= MaxWitnesses {
		return others
	}
	some := make([]placement.Disk, 0, MaxWitnesses)
	for _, i := range placement.Rendezvous(xxhash.Sum64(self[:]), ids, MaxWitnesses) {
		some = append(some, others[i])
	}
	return some
}

// Answered takes down that a disk has answered what was sent to it at sent; that
// its port refused is an answer too.
func (c *Core) Answered(id cluster.DiskID, sent time.Time) {
	if p := c.peers[id]; p != nil && sent.After(p.answered) {
		p.answered = sent
	}
}

// InReach reports whether at least half of the disks that judge it, itself
// included, have answered lately. The moment they have not, this disk knows
// nothing for certain any more.
func (c *Core) InReach(now time.Time) bool {
	judges, heard := 1, 1
	for _, d := range c.judges {
		judges++
		if now.Sub(c.peers[d.ID].answered) <= Reach {
			heard++
		}
	}
	in := 2*heard >= judges
	if !in && c.in {
		c.lost()
	}
	c.in = in
	return in
}

// Settled reports whether this disk knows all that exists in q. It is looked at
// before each "absent", after InReach.
func (c *Core) Settled(q uint16) bool {
	return c.in && c.placed && c.owned.Has(q) && c.waiting[q] == 0
}

// Adopted reports whether this disk's acknowledgements count in q: all others
// that answer know that it is an owner there.
func (c *Core) Adopted(q uint16) bool { return c.owned.Has(q) && c.unseen[q] == 0 }

// Tick gives up what has been waited for long enough.
func (c *Core) Tick(now time.Time) {
	c.InReach(now)
	for _, p := range c.peers {
		if now.Sub(p.answered) >= Silence {
			c.adopt(p)
		}
		if now.Sub(p.joined) >= Newcomer && !p.brief.IsEmpty() {
			p.brief.All(func(q uint16) bool {
				if p.waiting.Has(q) {
					c.heard(p, q)
					p.check.Add(q)
				}
				return true
			})
			p.brief = Set{}
		}
	}
}

// Check has the partitions of slice, which this disk owns together with others,
// compared with these.
func (c *Core) Check(slice func(q uint16) bool) {
	if c.table == nil {
		return
	}
	var some [8]placement.Disk
	c.owned.All(func(q uint16) bool {
		if !slice(q) {
			return true
		}
		for _, d := range c.table.AppendOwners(some[:0], q) {
			if p := c.peers[d.ID]; p != nil && !p.waiting.Has(q) {
				p.check.Add(q)
			}
		}
		return true
	})
}

// Ask is one question to one disk: what it owns in some partitions.
type Ask struct {
	Disk  placement.Disk
	Parts *Set
	stamp uint64
}

// Asks are the questions to put now, at most one for each disk until its answer
// comes back. An answer is to be awaited for a bounded time.
func (c *Core) Asks(now time.Time) (asks []Ask) {
	for _, p := range c.peers {
		if p.asking || now.Before(p.next) {
			continue
		}
		parts := new(Set)
		for i := range parts {
			parts[i] = p.waiting[i] | p.unseen[i] | p.check[i]
		}
		if parts.IsEmpty() {
			continue
		}
		p.asking = true
		asks = append(asks, Ask{p.disk, parts, c.clock})
	}
	return asks
}

// Told takes in the answer to an Ask: in the partitions of adopted the disk holds
// this one to be an owner, and what it owns in those of told is known here. An
// answer that did not come has neither.
func (c *Core) Told(now time.Time, a Ask, adopted, told *Set) {
	p := c.peers[a.Disk.ID]
	if p == nil {
		return
	}
	p.asking = false
	p.next = now.Add(again)
	if adopted == nil || told == nil {
		return
	}
	a.Parts.All(func(q uint16) bool {
		if c.stamp[q] > a.stamp { // it has come to wait again since
			return true
		}
		if adopted.Has(q) {
			c.adopted(p, q)
		}
		if told.Has(q) {
			p.check.Remove(q)
			// Who does not know this disk as an owner may yet acknowledge a
			// write without it.
			if adopted.Has(q) || !p.placed {
				c.heard(p, q)
			}
		}
		return true
	})
}

// Progress is how many partitions this disk owns, and in how many it is settled.
func (c *Core) Progress() (owned, settled int) {
	if !c.in || !c.placed {
		return c.size, 0
	}
	return c.size, c.size - c.holes
}

// View is the id of the table that the core goes by, 0 before it has one.
func (c *Core) View() uint64 {
	if c.table == nil {
		return 0
	}
	return c.table.ID()
}

// Owns reports whether this disk is an owner of q.
func (c *Core) Owns(q uint16) bool { return c.owned.Has(q) }
