package actioncache

import (
	"cmp"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster/placement"
)

// ring is the schedulers among which the keys are spread. It goes by names,
// which a restart keeps: who comes back gets the keys that it had.
type ring struct {
	view    *cluster.View // of which it was made
	id      uint64        // a hash of the schedulers' Member.IDs
	members []cluster.Member
	names   []string
	self    int // -1: this node is not among them
}

// ring is that of the present view.
func (c *Client) ring() *ring {
	v := c.o.Members.View()
	r := c.ringNow.Load()
	if r == nil || r.view != v {
		r = newRing(v, c.o.Self.ID)
		c.ringNow.Store(r)
	}
	return r
}

// newRing leaves draining schedulers out, unless there are no others.
func newRing(v *cluster.View, self string) *ring {
	r := &ring{view: v, self: -1}
	all := v.Role(cluster.Scheduler)
	for _, m := range all {
		if m.State != cluster.Draining {
			r.members = append(r.members, m)
		}
	}
	if len(r.members) == 0 {
		r.members = all
	}
	h := xxhash.New()
	for i, m := range r.members {
		if m.ID == self {
			r.self = i
		}
		r.names = append(r.names, cmp.Or(m.Name, m.ID))
		_, _ = h.WriteString(m.ID)
		_, _ = h.Write([]byte{0})
	}
	r.id = h.Sum64()
	return r
}

// owners are the indexes of the n schedulers that hold k.
func (r *ring) owners(k Key, n int) []int {
	return placement.Rendezvous(xxhash.Sum64String(k.pack()), r.names, n)
}

func (r *ring) isSelf(owners []int) bool { return slices.Contains(owners, r.self) }
