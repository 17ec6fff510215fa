package home

import (
	"time"

	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/tasks"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

type kind uint8

const (
	execute kind = iota
	wait
	look
	cancel
)

// call is one that somebody waits on, here or at a peer.
type call struct {
	id   uint64
	kind kind

	// Who made it: from is "" for a local one.
	from    string
	session uint64
	n       uint64

	req    *wire.Request // of execute
	op     uint64        // of execute
	name   operation.Name
	named  bool // name is set
	key    operation.Key
	except string // no home, as far as this call goes
	mine   bool   // its home sent it back to us
	hops   uint32
	tries  int

	at string // the scheduler that has it; "" none
}

func (c *Core) newCall(k *call) *call {
	c.last++
	k.id = c.last
	c.calls[k.id] = k
	if k.from == "" {
		c.local[k.n] = k
	} else {
		c.peers[k.from].theirs[k.n] = k
	}
	return k
}

// Execute is a client's call. Calls are numbered by the caller, op is a nonce.
func (c *Core) Execute(now time.Time, n, op uint64, r *wire.Request) {
	c.route(now, c.newCall(&call{kind: execute, n: n, op: op, req: r, key: r.Key()}))
	c.drain(now)
}

// Wait is a client's WaitExecution.
func (c *Core) Wait(now time.Time, n uint64, name operation.Name) {
	c.route(now, c.newCall(&call{kind: wait, n: n, name: name, named: true, key: name.Key}))
	c.drain(now)
}

// Look is a client's GetOperation.
func (c *Core) Look(now time.Time, n uint64, name operation.Name) {
	c.route(now, c.newCall(&call{kind: look, n: n, name: name, named: true, key: name.Key}))
	c.drain(now)
}

// Cancel is a client's CancelOperation.
func (c *Core) Cancel(now time.Time, n uint64, name operation.Name) {
	c.route(now, c.newCall(&call{kind: cancel, n: n, name: name, named: true, key: name.Key}))
	c.drain(now)
}

// Detach says that nobody reads a local call's replies any more.
func (c *Core) Detach(now time.Time, n uint64) {
	if k := c.local[n]; k != nil {
		c.detach(now, k)
		c.drain(now)
	}
}

func (c *Core) detach(now time.Time, k *call) {
	switch p := c.peers[k.at]; {
	case k.at == c.self:
		c.tasks.Detach(now, tasks.Waiter(k.id))
	case p != nil:
		c.toOwner(p, wire.Detach{Call: k.id})
	}
	c.end(k)
}

// end forgets a call.
func (c *Core) end(k *call) {
	delete(c.calls, k.id)
	delete(c.holds, k)
	if p := c.peers[k.at]; p != nil {
		delete(p.ours, k.id)
	}
	if k.from == "" {
		delete(c.local, k.n)
	} else if p := c.peers[k.from]; p != nil && p.theirs[k.n] == k {
		delete(p.theirs, k.n)
	}
}

// answer passes on how the call's operation stands.
func (c *Core) answer(now time.Time, k *call, u wire.Update, gone bool) {
	if gone && k.kind == execute && k.tries < maxTries {
		// The task went without a result, but we still have the request.
		k.named = false
		c.move(k, "")
		c.route(now, k)
		return
	}
	if gone && k.kind == execute {
		gone, u = false, wire.Update{Action: k.key.Action, Stage: wire.Completed, Done: true, Err: &wire.Error{
			Status: codes.Internal, Text: "the schedulers do not agree on which of them runs the action",
		}}
		u.Name = operation.Name{Task: operation.Task{Key: k.key, Owner: c.self, Nonce: k.op}, Op: k.op}.String()
	}
	if u.Name != "" && k.kind == execute && (!k.named || k.name.String() != u.Name) {
		if n, err := operation.Parse(u.Name); err == nil {
			k.name, k.named = n, true
		}
	}
	switch {
	case k.from == "":
		c.emit(Reply{Call: k.n, Update: u, Gone: gone})
	case gone:
		c.toCaller(c.peers[k.from], k.session, wire.Gone{Call: k.n})
	default:
		c.toCaller(c.peers[k.from], k.session, wire.Answer{Call: k.n, Update: u})
	}
	if gone || u.Done || k.kind == look || k.kind == cancel {
		c.end(k)
	}
}

// move notes who has the call.
func (c *Core) move(k *call, at string) {
	if p := c.peers[k.at]; p != nil {
		delete(p.ours, k.id)
	}
	delete(c.holds, k)
	k.at = at
	if p := c.peers[at]; p != nil {
		p.ours[k.id] = k
	}
}

// alive reports whether a peer can be asked, now or as soon as its stream is
// back.
func (c *Core) alive(id string) bool {
	p := c.peers[id]
	return p != nil && p.home
}

// route finds the scheduler that has the call's task, or is to have it.
func (c *Core) route(now time.Time, k *call) {
	k.tries++
	if k.except == c.self {
		k.except = "" // target sets it again if that still holds
	}
	if k.named && c.here(now, k) {
		return
	}
	if k.named && k.kind != execute {
		if owner := k.name.Owner; owner != c.self && owner != k.from && c.alive(owner) {
			c.forward(k, owner)
			return
		}
	}
	switch to := c.target(k); {
	case to == c.self:
		c.admit(now, k)
	case to == k.from && k.kind == execute:
		c.toCaller(c.peers[k.from], k.session, wire.NotMine{Call: k.n})
		c.end(k)
	case to == k.from:
		c.admit(now, k)
	default:
		c.forward(k, to)
	}
}

// here attaches the call to a task of ours that has the call's name.
func (c *Core) here(now time.Time, k *call) bool {
	id := k.name.Task.String()
	if !c.tasks.Has(id) {
		s, ok := c.fetch[id]
		if !ok {
			return false
		}
		delete(c.fetch, id)
		if !c.adopt(now, s) {
			return false
		}
	}
	c.move(k, c.self)
	switch k.kind {
	case execute, wait:
		c.tasks.Attach(tasks.Waiter(k.id), k.name, k.req)
	case look:
		u, _ := c.tasks.Look(k.name)
		c.answer(now, k, u, false)
	case cancel:
		known := c.tasks.Cancel(now, k.name)
		c.answer(now, k, wire.Update{Name: k.name.String(), Action: k.key.Action}, !known)
	}
	return true
}

// target is who is to have the call's task.
func (c *Core) target(k *call) string {
	if k.mine || k.hops >= maxHops || k.kind == execute && !k.req.DoNotCache && c.tasks.Owns(k.key) {
		return c.self
	}
	if c.inheriting(k.key) && c.heir(k.key) {
		return c.self
	}
	if keeper := c.kept[k.key]; keeper != k.except && c.alive(keeper) {
		return keeper
	}
	nodes := c.nodes
	if k.except != "" {
		nodes = c.without(nodes, k.except)
	}
	to := c.home(k.key, nodes)
	if to != c.self || c.open {
		return to
	}
	// Not yet anybody's home: the key's former one takes it.
	former := c.home(k.key, c.without(nodes, c.self))
	if former == "" || k.except != "" {
		return c.self
	}
	k.except = c.self
	if k.kind == execute {
		c.kept[k.key] = former
	}
	return former
}

// admit takes the call's task on here.
func (c *Core) admit(now time.Time, k *call) {
	inherited := c.inherited(k.key)
	switch {
	case k.named && inherited:
		// Whether it runs, or has a result, is not known yet. Until then it
		// is as good as queued.
		c.move(k, "")
		c.holds[k] = struct{}{}
		if k.kind == wait || k.kind == execute {
			c.answer(now, k, wire.Update{Name: k.name.String(), Action: k.key.Action, Stage: wire.Queued}, false)
		}
	case k.kind == execute:
		c.move(k, c.self)
		news := !c.tasks.Owns(k.key)
		c.tasks.Submit(now, tasks.Waiter(k.id), k.op, k.req)
		if news && c.tasks.Owns(k.key) {
			c.announce(k.key, wire.Keeps{Keys: []operation.Key{k.key}})
		}
	default:
		c.answer(now, k, wire.Update{}, true)
	}
}

// forward gives the call to a peer, now or when its stream is back.
func (c *Core) forward(k *call, to string) {
	c.move(k, to)
	c.sendCall(k)
}

func (c *Core) sendCall(k *call) {
	p := c.peers[k.at]
	name := ""
	if k.named {
		name = k.name.String()
	}
	hops := k.hops + 1
	switch k.kind {
	case execute:
		c.toOwner(p, wire.Submit{Call: k.id, Op: k.op, Name: name, Except: k.except, Hops: hops, Request: k.req})
	case wait:
		c.toOwner(p, wire.Attach{Call: k.id, Name: name, Except: k.except, Hops: hops})
	case look:
		c.toOwner(p, wire.Look{Call: k.id, Name: name, Except: k.except, Hops: hops})
	case cancel:
		c.toOwner(p, wire.Cancel{Call: k.id, Name: name, Except: k.except, Hops: hops})
	}
}
