package cluster

import "github.com/hashicorp/memberlist"

// delegate is how memberlist calls back. It holds locks of its own meanwhile,
// so that nothing here calls it.
type delegate Members

// NodeMeta is what gossip carries about this node.
func (d *delegate) NodeMeta(int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.meta
}

// NotifyJoin adds a node; memberlist tells of this one too.
func (d *delegate) NotifyJoin(n *memberlist.Node) { d.learn(n) }

// NotifyUpdate takes a node's new state.
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.learn(n) }

// NotifyLeave forgets a node that died or left.
func (d *delegate) NotifyLeave(n *memberlist.Node) {
	id := n.Name
	if id != d.o.Self.ID {
		d.log.Info("node has gone", "member", id)
	}
	(*Members)(d).update(func(known map[string]Member) { delete(known, id) })
}

func (d *delegate) learn(n *memberlist.Node) {
	id := n.Name
	m, err := unpack(id, n.Meta)
	if err != nil {
		d.log.Warn("node tells what cannot be understood", "member", id, "addr", n.Address(), "err", err)
		(*Members)(d).update(func(known map[string]Member) { delete(known, id) })
		return
	}
	d.log.Debug("node tells of itself", "member", id, "role", m.Role.String(), "state", m.State.String(), "addr", m.Addr)
	(*Members)(d).update(func(known map[string]Member) { known[id] = m })
}

// Nothing but membership is gossiped.

// NotifyMsg takes no messages.
func (d *delegate) NotifyMsg([]byte) {}

// GetBroadcasts has no messages.
func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState has nothing beyond the members.
func (d *delegate) LocalState(bool) []byte { return nil }

// MergeRemoteState takes nothing beyond the members.
func (d *delegate) MergeRemoteState([]byte, bool) {}
