package tasks

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/queue"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

// Submit is an Execute call: it joins the task that is under way for the same
// key, or makes one. op is a nonce of the call: submitting again under the same
// nonce joins the same task.
func (c *Core) Submit(now time.Time, w Waiter, op uint64, r *wire.Request) {
	key := r.Key()
	id := operation.Task{Key: key, Owner: c.cfg.Self, Nonce: op}
	t := c.byKey[key]
	if r.DoNotCache || t == nil {
		t = c.byID[id.String()] // when submitted before
	}
	if t != nil {
		c.adoptRequest(t, r)
		c.join(t, waiter{id: w, op: op, as: t.id, priority: r.Priority})
		return
	}
	if err := c.refuse(now, r); err != nil {
		c.emit(Notify{Waiter: w, Update: wire.Update{
			Name: operation.Name{Task: id, Op: op}.String(), Action: r.Action,
			Stage: wire.Completed, QueuedAt: now, Done: true, Err: err,
		}})
		return
	}
	t = c.create(now, id, r.DoNotCache)
	c.adoptRequest(t, r)
	c.join(t, waiter{id: w, op: op, as: t.id, priority: r.Priority})
	c.enqueue(now, t)
	c.flushBids(now)
}

// refuse says why a new task cannot be taken.
func (c *Core) refuse(now time.Time, r *wire.Request) error {
	if p, ok := c.poison[r.Action]; ok && now.Before(p.until) {
		return poisonError(p.workers)
	}
	if c.q.Len()+len(c.held) >= c.cfg.MaxQueued {
		return &wire.Error{Status: codes.ResourceExhausted, Text: fmt.Sprintf("%d actions wait already", c.cfg.MaxQueued)}
	}
	if !c.judging {
		return nil
	}
	return c.judge(now, c.cfg.Rules.Platform(r.Platform))
}

func poisonError(workers string) error {
	return &wire.Error{
		Status: codes.FailedPrecondition,
		Text:   "the action was started " + fmt.Sprint(poisonAt) + " times, and each time its worker was lost: " + workers,
	}
}

// create makes a task that is in no state's collection yet.
func (c *Core) create(now time.Time, id operation.Task, doNotCache bool) *task {
	c.seq++
	t := &task{id: id.String(), key: id.Key}
	t.Item = queue.Item[*task]{Value: t, Seq: c.seq, Arrived: now}
	t.since = now
	c.idle[t] = struct{}{}
	c.byID[t.id] = t
	if !doNotCache && c.byKey[t.key] == nil {
		c.byKey[t.key], t.mergeable = t, true
	}
	c.live++
	return t
}

// adoptRequest gives a task what it needs to be placed.
func (c *Core) adoptRequest(t *task, r *wire.Request) {
	if t.req != nil || t.state == done {
		return
	}
	t.req = r
	t.Principal, t.Invocation, t.Priority = r.Principal, r.Invocation, r.Priority
	t.plat = c.platform(c.cfg.Rules.Platform(r.Platform))
	t.plat.refs++
	t.Platform = t.plat.p.Key()
}

// join adds a waiter, which learns at once how the task stands.
func (c *Core) join(t *task, w waiter) {
	c.emit(Notify{Waiter: w.id, Update: t.update(w)})
	if t.state == done {
		return
	}
	t.waiters = append(t.waiters, w)
	c.waiters[w.id] = t
	delete(c.idle, t)
	if !slices.Contains(t.ops, w.op) {
		t.ops = append(t.ops, w.op)
	}
	c.reprioritize(t)
}

// reprioritize gives the task the priority of its most urgent waiter.
func (c *Core) reprioritize(t *task) {
	if len(t.waiters) == 0 {
		return
	}
	p := t.waiters[0].priority
	for _, w := range t.waiters[1:] {
		p = min(p, w.priority)
	}
	if p == t.Priority {
		return
	}
	if !t.Queued() {
		t.Priority = p
		return
	}
	at := t.Arrived
	c.q.Remove(&t.Item)
	t.Priority = p
	c.q.Push(&t.Item, at)
	c.rebid = true
}

// Attach is a WaitExecution call, or an Execute call (with its request) that
// has been given that name before. It reports false, and has no effect, when no
// task has the name.
func (c *Core) Attach(w Waiter, name operation.Name, r *wire.Request) bool {
	id := name.Task.String()
	t := c.byID[id]
	if t == nil {
		return false
	}
	priority := t.Priority
	if r != nil {
		c.adoptRequest(t, r)
		priority = r.Priority
	}
	c.join(t, waiter{id: w, op: name.Op, as: id, priority: priority})
	return true
}

// Look is how the operation stands, if it is known.
func (c *Core) Look(name operation.Name) (wire.Update, bool) {
	id := name.Task.String()
	t := c.byID[id]
	if t == nil {
		return wire.Update{}, false
	}
	return t.update(waiter{op: name.Op, as: id}), true
}

// List yields how every operation stands that is known here.
func (c *Core) List(yield func(wire.Update) bool) {
	for id, t := range c.byID {
		if id != t.id {
			continue
		}
		for _, op := range t.ops {
			if !yield(t.update(waiter{op: op, as: id})) {
				return
			}
		}
	}
}

// Detach is the end of a waiter's stream. The operation goes on.
func (c *Core) Detach(now time.Time, id Waiter) {
	t := c.waiters[id]
	if t == nil {
		return
	}
	delete(c.waiters, id)
	t.waiters = slices.DeleteFunc(t.waiters, func(w waiter) bool { return w.id == id })
	c.detached(now, t)
}

func (c *Core) detached(now time.Time, t *task) {
	if len(t.waiters) == 0 {
		t.since = now
		c.idle[t] = struct{}{}
		if n := len(t.ops); n > maxDetached {
			t.ops = slices.Delete(t.ops, 0, n-maxDetached)
		}
	}
	c.reprioritize(t)
}

// Cancel is a CancelOperation call: it ends the operation, and with the last
// one the task. It reports false when no such operation is known.
func (c *Core) Cancel(now time.Time, name operation.Name) bool {
	t := c.byID[name.Task.String()]
	if t == nil {
		return false
	}
	if t.state == done {
		return true
	}
	i := slices.Index(t.ops, name.Op)
	if i < 0 && t.req != nil {
		return false // only of a task taken over are operations unknown
	}
	if i >= 0 {
		t.ops = slices.Delete(t.ops, i, i+1)
	}
	canceled := &wire.Error{Status: codes.Canceled, Text: "the operation was cancelled"}
	if len(t.ops) == 0 {
		c.finish(now, t, nil, canceled)
		c.flushBids(now)
		return true
	}
	t.waiters = slices.DeleteFunc(t.waiters, func(w waiter) bool {
		if w.op != name.Op {
			return false
		}
		u := t.update(w)
		u.Stage, u.Done, u.Err = wire.Completed, true, canceled
		c.emit(Notify{Waiter: w.id, Update: u})
		delete(c.waiters, w.id)
		return true
	})
	c.detached(now, t)
	return true
}

// Release lets held tasks start but for those that are still to be held.
func (c *Core) Release(now time.Time) {
	for _, t := range sorted(c.held) {
		delete(c.held, t)
		c.enqueue(now, t)
	}
	c.flushBids(now)
}

// Held yields the keys of the tasks that calls merge with and that wait for
// Release, in order of arrival.
func (c *Core) Held(yield func(operation.Key) bool) {
	for _, t := range sorted(c.held) {
		if t.mergeable && !yield(t.key) {
			return
		}
	}
}

// sorted is the set in order of arrival.
func sorted(set map[*task]struct{}) []*task {
	ts := make([]*task, 0, len(set))
	for t := range set {
		ts = append(ts, t)
	}
	slices.SortFunc(ts, func(a, b *task) int {
		if a.Seq < b.Seq {
			return -1
		}
		return 1
	})
	return ts
}
