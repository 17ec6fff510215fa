package home

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/tasks"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

// inherit fences the dead peer at all workers, and waits for what they have.
func (c *Core) inherit(now time.Time, p *peer) {
	in := &inheritance{
		of: p.id, term: p.term, kept: make(map[operation.Key]bool),
		pending: make(map[string]bool), deadline: now.Add(workerLease),
	}
	for key, keeper := range c.kept {
		if keeper == p.id {
			in.kept[key] = true
			delete(c.kept, key)
		}
	}
	for id := range c.workersIn {
		in.pending[id] = true
	}
	for _, id := range slices.Sorted(maps.Keys(c.workers)) {
		if w := c.workers[id]; w.session != 0 {
			in.pending[id] = true
			c.emit(tasks.Send{Worker: id, Session: w.session, Msg: wire.Fence{Node: p.id, Term: p.term}})
		}
	}
	c.inherits = append(c.inherits, in)
	c.settle(now)
}

// inherited reports whether a task of the key may be running for somebody who
// is gone: who comes before us for the key, or had told us that it keeps it.
func (c *Core) inherited(key operation.Key) bool {
	return c.inheriting(key) || slices.ContainsFunc(c.inherits, func(in *inheritance) bool {
		return in.of == ""
	}) || slices.ContainsFunc(c.strays, func(s stray) bool {
		return s.key == key && !s.held.DoNotCache && s.held.State != wire.Finished
	})
}

// inheriting is the part of inherited that is about those that we knew.
func (c *Core) inheriting(key operation.Key) bool {
	return slices.ContainsFunc(c.inherits, func(in *inheritance) bool {
		return in.of != "" && (in.kept[key] || c.outranks(in.of, key))
	})
}

// settle ends the inheritances of which everything is known.
func (c *Core) settle(now time.Time) {
	c.inherits = slices.DeleteFunc(c.inherits, func(in *inheritance) bool {
		return !now.Before(in.deadline) || c.known(now, in)
	})
	for key := range c.tasks.Held {
		if c.alive(c.kept[key]) {
			c.reroute(now, c.tasks.YieldHeld(now, key))
		}
	}
	c.tasks.Release(now)
	for _, k := range slices.SortedFunc(maps.Keys(c.holds), func(a, b *call) int { return cmp.Compare(a.id, b.id) }) {
		if !c.here(now, k) && !c.inherited(k.key) {
			c.move(k, "")
			if k.except != k.from {
				k.except = "" // it may be the home, and the heir, by now
			}
			c.route(now, k)
		}
	}
}

func (c *Core) known(now time.Time, in *inheritance) bool {
	if in.of != "" {
		return len(in.pending) == 0
	}
	// Of before we began: every worker there is has said hello.
	if now.Sub(c.begun) < settleAfter {
		return false
	}
	for id := range c.workersIn {
		if w := c.workers[id]; w == nil || w.session == 0 {
			return false
		}
	}
	return true
}

// WorkerUp is a worker's new stream, opened by its hello. Sessions are numbered
// from 1 and never used again.
func (c *Core) WorkerUp(now time.Time, session uint64, h wire.WorkerHello) {
	c.workers[h.ID] = &worker{session: session, heard: now}
	if c.gone[h.ID] {
		delete(c.gone, h.ID)
		c.workersIn[h.ID] = true
	}
	if h.Executors > 0 { // one that only stores says no more than that it is there
		c.tasks.WorkerUp(now, session, h)
	}
	for _, id := range slices.Sorted(maps.Keys(c.fences)) {
		c.emit(tasks.Send{Worker: h.ID, Session: session, Msg: wire.Fence{Node: id, Term: c.fences[id].term}})
	}
	c.strayed(now, h.ID, h.Attempts)
	c.settle(now)
	c.drain(now)
}

// WorkerDown is the end of that stream.
func (c *Core) WorkerDown(now time.Time, id string, session uint64) {
	if w := c.workers[id]; w != nil && w.session == session {
		w.session = 0
		c.tasks.WorkerDown(now, id, session)
		c.drain(now)
	}
}

// WorkerGone says that the port of a worker that has no stream refuses
// connections: it is dead, and so is what it ran.
func (c *Core) WorkerGone(now time.Time, id string) {
	if w := c.workers[id]; w != nil && w.session != 0 {
		return
	}
	for _, in := range c.inherits {
		delete(in.pending, id)
	}
	delete(c.workers, id)
	if c.workersIn[id] {
		delete(c.workersIn, id)
		c.gone[id] = true
	}
	c.tasks.WorkerGone(now, id)
	c.settle(now)
	c.drain(now)
}

// FromWorker is what a worker said over the stream of that session.
func (c *Core) FromWorker(now time.Time, id string, session uint64, m wire.FromWorker) {
	w := c.workers[id]
	if w == nil || w.session != session {
		return
	}
	w.heard = now
	switch m := m.(type) {
	case wire.WorkerBeat:
		w.hears = hears(now, m.Heard)
	case wire.Fenced:
		if m.Node == c.self {
			c.depose(now, m.Term)
		}
		c.drain(now)
		return
	case wire.Disowned:
		key, orphans := c.tasks.Yield(now, id, m.Ref)
		if len(orphans) > 0 && c.alive(m.Owner) {
			c.kept[key] = m.Owner
		}
		c.reroute(now, orphans)
		c.drain(now)
		return
	case wire.Inventory:
		c.strayed(now, id, m.Attempts)
		for _, in := range c.inherits {
			if in.of == m.Of && in.term <= m.Term {
				delete(in.pending, id)
			}
		}
		c.settle(now)
		c.drain(now)
		return
	}
	c.tasks.FromWorker(now, id, session, m)
	c.drain(now)
}

// strayed looks for attempts of schedulers that are gone.
func (c *Core) strayed(now time.Time, workerID string, held []wire.Held) {
	c.strays = slices.DeleteFunc(c.strays, func(s stray) bool { return s.worker == workerID })
	for _, h := range held {
		if h.Owner == c.self || c.alive(h.Owner) {
			continue
		}
		t, err := operation.ParseTask(h.Task)
		if err != nil {
			continue
		}
		s := stray{worker: workerID, held: h, key: t.Key, since: now}
		if !c.claimStray(now, s) {
			c.strays = append(c.strays, s)
		}
	}
}

// claimStray makes an attempt ours if its owner is dead and we are its heir. It
// reports false while it cannot be told.
func (c *Core) claimStray(now time.Time, s stray) bool {
	owner := s.held.Owner
	if c.alive(owner) {
		return true
	}
	if _, dead := c.fences[owner]; !dead {
		// Never seen, or not since we began: it may be on its way.
		if now.Sub(s.since) < silentAfter || c.schedulers[owner] && now.Sub(s.since) < workerLease || c.heardOf(now, owner) {
			return false
		}
	}
	if !c.heir(s.key) {
		return true
	}
	if s.held.State == wire.Finished {
		if len(c.fetch) < maxFetch {
			c.fetch[s.held.Task] = s
		}
		return true
	}
	c.adopt(now, s)
	return true
}

// heir reports whether an attempt of the key is ours to take over: when we have
// a task of it, or are its home among those that have been here for long enough
// to have known its owner.
func (c *Core) heir(key operation.Key) bool {
	if c.tasks.Owns(key) {
		return true
	}
	nodes := slices.DeleteFunc(slices.Clone(c.nodes), func(id string) bool {
		return id != c.self && c.open && !c.peers[id].open
	})
	return c.home(key, nodes) == c.self
}

func (c *Core) adopt(now time.Time, s stray) bool {
	news := !c.tasks.Owns(s.key)
	ok := c.tasks.Adopt(now, s.worker, s.held)
	if news && c.tasks.Owns(s.key) {
		c.announce(s.key, wire.Keeps{Keys: []operation.Key{s.key}})
	}
	return ok
}

// depose ends our term: somebody who took us for dead took our tasks over. Who
// waits on them is sent there.
func (c *Core) depose(now time.Time, term uint64) {
	if term < c.term {
		return
	}
	c.term = term + 1
	c.open, c.openBy = false, now.Add(openWithin)
	for _, p := range c.peers {
		p.keeps = false
	}
	c.reroute(now, c.tasks.Abandon(now))
	c.emit(Rejoin{})
}

// reroute sends those who waited on tasks that were given up here to where
// these are now.
func (c *Core) reroute(now time.Time, orphans []tasks.Orphan) {
	for _, o := range orphans {
		k := c.calls[uint64(o.Waiter)]
		if k == nil {
			continue
		}
		c.move(k, "")
		if n, err := operation.Parse(o.Name); err == nil {
			k.name, k.named = n, true
		}
		c.route(now, k)
	}
}

// Busy reports whether tasks or calls wait for what Tick does.
func (c *Core) Busy() bool {
	return c.tasks.Busy() || !c.open || len(c.inherits)+len(c.strays)+len(c.holds) > 0
}

// Tick lets time pass. It is to be called at least every 100 ms while the Core
// is Busy, and every 250 ms while it isn't.
func (c *Core) Tick(now time.Time) {
	for _, p := range sortedPeers(c.peers) {
		c.bury(now, p)
		if p.dead && p.in == 0 && p.out == 0 && !c.schedulers[p.id] {
			delete(c.peers, p.id)
		}
	}
	c.tryOpen(now)
	c.strays = slices.DeleteFunc(c.strays, func(s stray) bool { return c.claimStray(now, s) })
	c.settle(now)
	c.tasks.Judge(now, c.judge(now))
	c.tasks.Tick(now)
	maps.DeleteFunc(c.fences, func(id string, f fence) bool { return !now.Before(f.until) && c.peers[id] == nil })
	maps.DeleteFunc(c.fetch, func(_ string, s stray) bool { return now.Sub(s.since) >= fetchFor })
	maps.DeleteFunc(c.workers, func(id string, w *worker) bool {
		return w.session == 0 && !c.workersIn[id] && now.Sub(w.heard) >= workerLease
	})
	c.sayAlive(now)
	c.drain(now)
}

// judge reports whether every worker in view has been heard, so that what none
// of them offers is nowhere.
func (c *Core) judge(now time.Time) bool {
	if now.Sub(c.begun) < judgeAfter {
		return false
	}
	for id := range c.workersIn {
		if c.workers[id] == nil {
			return false
		}
	}
	return true
}

func (c *Core) sayAlive(now time.Time) {
	if now.Sub(c.beatP) >= beatPeers {
		c.beatP = now
		var heard []wire.Heard
		for _, p := range sortedPeers(c.peers) {
			heard = append(heard, wire.Heard{Node: p.id, Ago: now.Sub(p.heard)})
		}
		for _, p := range sortedPeers(c.peers) {
			c.toOwner(p, wire.CallerBeat{Heard: heard})
			c.toCaller(p, p.in, wire.OwnerBeat{})
		}
	}
	if now.Sub(c.beatW) >= beatWorkers {
		c.beatW = now
		for _, id := range slices.Sorted(maps.Keys(c.workers)) {
			if w := c.workers[id]; w.session != 0 {
				c.emit(tasks.Send{Worker: id, Session: w.session, Msg: wire.SchedulerBeat{}})
			}
		}
	}
}

// Awake says that time passed in which this scheduler did not run: nobody was
// silent for it.
func (c *Core) Awake(now time.Time) {
	for _, p := range c.peers {
		p.heard = now
	}
	for _, in := range c.inherits {
		in.deadline = now.Add(workerLease)
	}
	c.tasks.Awake(now)
	c.drain(now)
}
