package tasks

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

// end undoes bind.
func (c *Core) end(now time.Time, a *attempt) {
	t := a.t
	delete(a.w.attempts, a.ref)
	a.ahead = false
	if a.charged {
		a.charged = false
		c.q.Stop(&t.Item, a.granted, now)
	}
	i := slices.Index(t.attempts, a)
	if i < 0 {
		return
	}
	t.attempts = slices.Delete(t.attempts, i, i+1)
	switch {
	case t.state == done:
	case len(t.attempts) == 0:
		c.busy--
	case !slices.ContainsFunc(t.attempts, func(a *attempt) bool { return a.started }):
		t.state = placed
	}
}

// requeue makes a task wait again when its last attempt came to nothing.
func (c *Core) requeue(now time.Time, t *task) {
	switch {
	case t.state == done || len(t.attempts) > 0 || t.Queued():
	case len(t.lost) >= poisonAt:
		workers := strings.Join(t.lost, ", ")
		if len(c.poison) < maxPoison {
			c.poison[t.key.Action] = poisoned{until: now.Add(poisonFor), workers: workers}
		}
		c.finish(now, t, nil, poisonError(workers))
	case t.req == nil:
		c.vanish(now, t)
	default:
		c.enqueue(now, t)
	}
}

// vanish forgets a task of which no result will be known: its waiters learn
// that it is gone, and may ask anew.
func (c *Core) vanish(now time.Time, t *task) {
	for _, w := range t.waiters {
		delete(c.waiters, w.id)
		c.emit(Notify{Waiter: w.id, Gone: true, Update: wire.Update{Action: t.key.Action}})
	}
	t.waiters = nil
	c.finish(now, t, nil, &wire.Error{Status: codes.Canceled, Text: "the action is no longer wanted"})
	c.forget(t)
}

// forget ends what is left of a task that is done.
func (c *Core) forget(t *task) {
	for _, id := range append(t.aliases, t.id) {
		if c.byID[id] == t {
			delete(c.byID, id)
		}
	}
	c.finishedBytes -= t.weight()
	switch i := slices.Index(c.finished, t); {
	case i == 0:
		c.finished[0] = nil
		c.finished = c.finished[1:]
	case i > 0:
		c.finished = slices.Delete(c.finished, i, i+1)
	}
}

// weight is what a task that is done counts against FinishedBytes.
func (t *task) weight() int { return len(t.final.Response) + 1024 }

// finish gives a task its result, and ends the attempts that are left.
func (c *Core) finish(now time.Time, t *task, response []byte, err error) {
	c.q.Remove(&t.Item)
	if len(t.attempts) > 0 {
		c.busy--
	}
	for _, a := range t.attempts {
		if a.killedAt.IsZero() {
			a.killedAt = now
			c.send(a.w, wire.Kill{Ref: a.ref})
		}
	}
	t.attempts = nil
	t.final = &wire.Update{
		Action: t.key.Action, Stage: wire.Completed, Worker: t.worker, QueuedAt: t.Arrived,
		StartedAt: t.startedAt, Done: true, Response: response, Err: err,
	}
	t.state = done
	for _, w := range t.waiters {
		delete(c.waiters, w.id)
		c.emit(Notify{Waiter: w.id, Update: t.update(w)})
	}
	t.waiters, t.req = nil, nil
	delete(c.idle, t)
	delete(c.held, t)
	if t.mergeable {
		t.mergeable = false
		delete(c.byKey, t.key)
		c.emit(Ended{Key: t.key})
	}
	if t.plat != nil {
		if t.plat.refs--; t.plat.refs == 0 {
			delete(c.platforms, t.plat.p.Key())
		}
		t.plat = nil
	}
	c.live--
	t.expires = now.Add(keepFinished)
	c.finished = append(c.finished, t)
	c.finishedBytes += t.weight()
	for c.finishedBytes > c.cfg.FinishedBytes && len(c.finished) > 1 {
		c.forget(c.finished[0])
	}
}

// Busy reports whether tasks wait for what Tick does.
func (c *Core) Busy() bool { return c.q.Len() > 0 || len(c.fresh) > 0 }

// Tick lets time pass. It is to be called at least every 100 ms while the Core
// is Busy, and every 250 ms while it isn't.
func (c *Core) Tick(now time.Time) {
	for _, t := range c.fresh {
		if t.state == running {
			for _, w := range t.waiters {
				c.emit(Notify{Waiter: w.id, Update: t.update(w)})
			}
		}
	}
	clear(c.fresh)
	c.fresh = c.fresh[:0]
	for _, w := range sortedWorkers(c.all()) {
		c.tickWorker(now, w)
	}
	for _, t := range sorted(c.idle) {
		if now.Sub(t.since) >= abandonAfter {
			c.vanish(now, t)
		}
	}
	for len(c.finished) > 0 && !now.Before(c.finished[0].expires) {
		c.forget(c.finished[0])
	}
	c.useLent(now)
	c.refreshBids(now)
	if now.Before(c.nextSweep) {
		return
	}
	c.nextSweep = now.Add(sweepEvery)
	c.q.Sweep(now)
	for d, p := range c.poison {
		if !now.Before(p.until) {
			delete(c.poison, d)
		}
	}
	for key, p := range c.pools {
		if len(p.workers) == 0 && now.Sub(p.seen) >= poolsSeen {
			delete(c.pools, key)
			for _, pl := range c.platforms {
				delete(pl.fits, p)
			}
		}
	}
	if c.judging {
		c.judgeWaiting(now)
	}
}

// tickWorker holds a worker and its attempts to their deadlines.
func (c *Core) tickWorker(now time.Time, w *worker) {
	if w.session == 0 && now.Sub(w.broken) >= comeBack || now.Sub(w.heard) >= lostAfter {
		c.lose(now, w, false)
		return
	}
	for _, a := range sortedAttempts(w.attempts) {
		switch {
		case !a.killedAt.IsZero():
			if now.Sub(a.killedAt) >= killWithin {
				c.end(now, a)
				c.requeue(now, a.t)
			}
		case !a.started && now.Sub(a.granted) >= startBy,
			a.started && a.t.req != nil && a.t.req.Timeout > 0 && now.Sub(a.granted) >= a.t.req.Timeout+startBy+pastTimeout:
			a.killedAt = now
			c.send(w, wire.Kill{Ref: a.ref})
		}
	}
}

// Awake says that time passed in which this scheduler did not run (it was
// stopped, or its host was): nobody was silent for it.
func (c *Core) Awake(now time.Time) {
	for _, w := range c.workers {
		w.heard = now
		if w.session == 0 {
			w.broken = now
		}
	}
}

// Abandon forgets all live tasks, because another scheduler took them over. It
// returns those who waited on them, with the names they know.
func (c *Core) Abandon(now time.Time) []Orphan {
	var orphans []Orphan
	live := make(map[*task]struct{}, c.live)
	for _, t := range c.byID {
		if t.state != done {
			live[t] = struct{}{}
		}
	}
	for _, t := range sorted(live) {
		orphans = append(orphans, c.abandon(now, t)...)
	}
	return orphans
}

func (c *Core) abandon(now time.Time, t *task) (orphans []Orphan) {
	for _, w := range t.waiters {
		delete(c.waiters, w.id)
		orphans = append(orphans, Orphan{Waiter: w.id, Name: t.update(w).Name})
	}
	t.waiters = nil
	for _, a := range slices.Clone(t.attempts) {
		c.end(now, a)
	}
	c.finish(now, t, nil, nil)
	c.forget(t)
	return orphans
}

// Yield gives up an attempt that turned out to be another scheduler's, and with
// it the task if that was all there was of it. It returns the task's key, and
// those who waited on it.
func (c *Core) Yield(now time.Time, workerID string, ref wire.Ref) (key operation.Key, orphans []Orphan) {
	w := c.workers[workerID]
	if w == nil || w.attempts[ref] == nil {
		return key, nil
	}
	a := w.attempts[ref]
	c.end(now, a)
	if t := a.t; t.state != done && len(t.attempts) == 0 {
		return t.key, c.abandon(now, t)
	}
	return key, nil
}

// YieldHeld gives up a task that has not been released, because another
// scheduler turned out to have it. It returns those who waited on it.
func (c *Core) YieldHeld(now time.Time, key operation.Key) []Orphan {
	if t := c.byKey[key]; t != nil && t.state == held {
		return c.abandon(now, t)
	}
	return nil
}

// Orphan is a waiter whose task was given up here.
type Orphan struct {
	Waiter Waiter
	Name   string
}

// Pool is the workers of one pool, as this scheduler hears them.
type Pool struct {
	Name                        string
	Workers, Executors, Running int
}

// Status is what this scheduler has to do.
type Status struct {
	Queued    int           // wait for a worker
	Placed    int           // are on one, and wait for its executor or their inputs
	Executing int           // run
	Oldest    time.Duration // how long the oldest queued task waits
	Pools     []Pool        // by name
}

// Status describes the state.
func (c *Core) Status(now time.Time) Status {
	s := Status{Queued: c.q.Len() + len(c.held), Placed: c.busy}
	for w := range c.all() {
		for _, a := range w.attempts {
			if a.t.state == running && a == a.t.attempts[len(a.t.attempts)-1] {
				s.Executing++
				s.Placed--
			}
		}
	}
	if at, ok := c.q.Oldest(); ok {
		s.Oldest = now.Sub(at)
	}
	for _, p := range c.sortedPools() {
		i := slices.IndexFunc(s.Pools, func(q Pool) bool { return q.Name == p.profile.Pool() })
		if i < 0 {
			i = len(s.Pools)
			s.Pools = append(s.Pools, Pool{Name: p.profile.Pool()})
		}
		for w := range p.workers {
			s.Pools[i].Workers++
			s.Pools[i].Executors += w.executors
			s.Pools[i].Running += w.running
		}
	}
	slices.SortFunc(s.Pools, func(a, b Pool) int { return strings.Compare(a.Name, b.Name) })
	return s
}
