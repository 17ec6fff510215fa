package home

import (
	"cmp"
	"slices"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

func (c *Core) peer(id string) *peer {
	p := c.peers[id]
	if p == nil {
		p = &peer{id: id, ours: make(map[uint64]*call), theirs: make(map[uint64]*call)}
		c.peers[id] = p
	}
	return p
}

// PeerUp is our new stream to a peer, which answered our hello. Sessions are
// numbered from 1 and never used again.
func (c *Core) PeerUp(now time.Time, id string, session, term uint64) {
	p := c.peer(id)
	p.out, p.heard, p.refused = session, now, false
	p.term = max(p.term, term)
	if p.term <= c.fences[id].term {
		return // it is told when it calls, and comes back under a new term
	}
	p.dead = false
	if !p.home {
		c.toOwner(p, wire.Keeps{Keys: c.keptFrom(id)})
		p.home = true
		c.rehome()
		// Of what we have not begun, it may know more.
		for key := range c.tasks.Held {
			if c.outranks(id, key) {
				c.reroute(now, c.tasks.YieldHeld(now, key))
			}
		}
	}
	if c.open {
		c.toOwner(p, wire.Opened{})
	}
	for _, k := range sortedCalls(p.ours) {
		c.sendCall(k)
	}
	c.drain(now)
}

// keptFrom is the keys of tasks here whose home the peer would be if only we
// two were left: whoever else comes or goes, it never needs to know more.
func (c *Core) keptFrom(id string) []operation.Key {
	var keys []operation.Key
	for k := range c.tasks.Keys {
		if c.outranks(id, k) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b operation.Key) int {
		return cmp.Or(a.Action.Compare(b.Action), cmp.Compare(a.Scope, b.Scope), cmp.Compare(a.Instance, b.Instance))
	})
	return keys
}

func (c *Core) outranks(id string, key operation.Key) bool {
	return c.home(key, []string{c.self, id}) == id
}

// announce tells the peers that come before us for a key that we have a task of
// it, or have none any more.
func (c *Core) announce(key operation.Key, m wire.ToOwner) {
	if c.home(key, c.nodes) == c.self {
		return
	}
	for _, id := range c.nodes {
		if id != c.self && c.outranks(id, key) {
			c.toOwner(c.peers[id], m)
		}
	}
}

// PeerDown is the end of that stream.
func (c *Core) PeerDown(now time.Time, id string, session uint64) {
	if p := c.peers[id]; p != nil && p.out == session {
		p.out = 0
		c.drain(now)
	}
}

// PeerRefused says that the peer's port refuses connections.
func (c *Core) PeerRefused(now time.Time, id string) {
	if p := c.peers[id]; p != nil && p.out == 0 {
		p.refused = true
		c.bury(now, p)
		c.drain(now)
	}
}

// FromOwner is what a peer said over our stream to it.
func (c *Core) FromOwner(now time.Time, id string, session uint64, m wire.ToCaller) {
	p := c.peers[id]
	if p == nil || p.out != session {
		return
	}
	p.heard = now
	if p.dead {
		return // whatever it says is of a term that is over
	}
	switch m := m.(type) {
	case wire.Answer:
		if k := p.ours[m.Call]; k != nil {
			c.answer(now, k, m.Update, false)
		}
	case wire.Gone:
		if k := p.ours[m.Call]; k != nil {
			c.answer(now, k, wire.Update{}, true)
		}
	case wire.NotMine:
		if k := p.ours[m.Call]; k != nil {
			delete(c.kept, k.key)
			if k.mine = k.except != "" && k.except != id; !k.mine {
				k.except = id
			}
			c.route(now, k)
		}
	case wire.OwnerFenced:
		if m.Node == c.self {
			c.depose(now, m.Term)
		}
	}
	c.drain(now)
}

// CallerUp is a peer's new stream to us. The calls of an earlier one are void.
func (c *Core) CallerUp(now time.Time, session uint64, h wire.CallerHello) {
	p := c.peer(h.ID)
	c.dropTheirs(now, p)
	p.in, p.heard = session, now
	p.term = max(p.term, h.Term)
	if f := c.fences[h.ID]; p.term <= f.term {
		c.toCaller(p, session, wire.OwnerFenced{Node: h.ID, Term: f.term})
	}
	c.drain(now)
}

// CallerDown is the end of that stream.
func (c *Core) CallerDown(now time.Time, id string, session uint64) {
	if p := c.peers[id]; p != nil && p.in == session {
		p.in = 0
		c.dropTheirs(now, p)
		c.drain(now)
	}
}

func (c *Core) dropTheirs(now time.Time, p *peer) {
	for _, k := range sortedCalls(p.theirs) {
		c.detach(now, k)
	}
}

// FromCaller is what a peer said over its stream to us.
func (c *Core) FromCaller(now time.Time, id string, session uint64, m wire.ToOwner) {
	p := c.peers[id]
	if p == nil || p.in != session {
		return
	}
	p.heard = now
	if p.dead {
		// It was only stopped. Once it knows, it asks again.
		c.toCaller(p, session, wire.OwnerFenced{Node: id, Term: c.fences[id].term})
		return
	}
	switch m := m.(type) {
	case wire.CallerBeat:
		p.hears = hears(now, m.Heard)
	case wire.Submit:
		k := &call{
			kind: execute, from: id, session: session, n: m.Call, op: m.Op, req: m.Request,
			key: m.Request.Key(), except: m.Except, hops: m.Hops,
		}
		if n, err := operation.Parse(m.Name); err == nil {
			k.name, k.named = n, true
		}
		if !m.Request.DoNotCache && c.kept[k.key] == id {
			delete(c.kept, k.key) // or it would not ask
		}
		c.route(now, c.newCall(k))
	case wire.Attach:
		c.forwarded(now, p, wait, m)
	case wire.Look:
		c.forwarded(now, p, look, wire.Attach(m))
	case wire.Cancel:
		c.forwarded(now, p, cancel, wire.Attach(m))
	case wire.Detach:
		if k := p.theirs[m.Call]; k != nil {
			c.detach(now, k)
		}
	case wire.Keeps:
		p.keeps = true
		for _, k := range m.Keys {
			c.kept[k] = id
		}
		// What strayed has been taken in.
		c.strays = slices.DeleteFunc(c.strays, func(s stray) bool { return c.kept[s.key] == id })
		c.tryOpen(now)
		c.settle(now)
	case wire.Opened:
		p.open = true
	case wire.Releases:
		for _, k := range m.Keys {
			if c.kept[k] == id {
				delete(c.kept, k)
			}
		}
	}
	c.drain(now)
}

func (c *Core) forwarded(now time.Time, p *peer, kd kind, m wire.Attach) {
	parsed, err := operation.Parse(m.Name)
	if err != nil {
		c.toCaller(p, p.in, wire.Gone{Call: m.Call})
		return
	}
	c.route(now, c.newCall(&call{
		kind: kd, from: p.id, session: p.in, n: m.Call, name: parsed, named: true, key: parsed.Key,
		except: m.Except, hops: m.Hops,
	}))
}

func hears(now time.Time, hs []wire.Heard) map[string]time.Time {
	m := make(map[string]time.Time, len(hs))
	for _, h := range hs {
		m[h.Node] = now.Add(-h.Ago)
	}
	return m
}

// tryOpen makes us a home once every other scheduler has told what it keeps.
func (c *Core) tryOpen(now time.Time) {
	if c.open {
		return
	}
	if now.Before(c.openBy) {
		if now.Sub(c.begun) < settleAfter && len(c.schedulers) == 0 {
			return // the view may not have filled yet
		}
		for id := range c.schedulers {
			if p := c.peers[id]; p == nil || !p.keeps && !p.dead {
				return
			}
		}
	}
	c.open = true
	for _, p := range sortedPeers(c.peers) {
		c.toOwner(p, wire.Opened{})
	}
}

// bury declares a peer dead if it is: its port refuses, or it is silent and
// nobody else hears it either. Its heirs take over.
func (c *Core) bury(now time.Time, p *peer) {
	if p.dead || !p.home {
		return
	}
	refused := p.out == 0 && p.refused
	if !refused && (now.Sub(p.heard) < silentAfter || c.heardOf(now, p.id)) {
		return
	}
	p.dead, p.home, p.keeps, p.open = true, false, false, false
	c.rehome()
	c.fences[p.id] = fence{term: p.term, until: now.Add(fenceFor)}
	c.inherit(now, p)
	c.dropTheirs(now, p)
	for _, k := range sortedCalls(p.ours) {
		c.move(k, "")
		c.route(now, k)
	}
	c.tryOpen(now)
}

// heardOf reports whether a worker or another scheduler hears the peer.
func (c *Core) heardOf(now time.Time, id string) bool {
	recent := func(heard time.Time, hears map[string]time.Time) bool {
		at, ok := hears[id]
		return ok && now.Sub(heard) < workerLease && now.Sub(at) < silentAfter
	}
	for _, w := range c.workers {
		if w.session != 0 && recent(w.heard, w.hears) {
			return true
		}
	}
	for _, p := range c.peers {
		if p.home && recent(p.heard, p.hears) {
			return true
		}
	}
	return false
}
