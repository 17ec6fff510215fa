package tasks

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/match"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/queue"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

// platform is one that live tasks ask for.
type platform struct {
	p    match.Platform
	refs int // tasks
	fits map[*pool]bool
}

// pool is the workers of one profile.
type pool struct {
	profile *match.Profile
	workers map[*worker]struct{}
	unbid   map[*worker]struct{} // those of them at which no bid stands
	seen    time.Time            // when it last had a worker
}

func (c *Core) platform(p match.Platform) *platform {
	pl := c.platforms[p.Key()]
	if pl == nil {
		pl = &platform{p: p, fits: make(map[*pool]bool)}
		c.platforms[p.Key()] = pl
	}
	return pl
}

func (pl *platform) fit(p *pool) bool {
	f, ok := pl.fits[p]
	if !ok {
		f = pl.p.Fits(p.profile)
		pl.fits[p] = f
	}
	return f
}

// best is the waiting task that the worker is to have next, or nil.
func (c *Core) best(now time.Time, w *worker) *task {
	it := c.q.Best(now,
		func(key string) bool { return c.platforms[key].fit(w.pool) },
		func(it *queue.Item[*task]) bool { return it.Value.avoids(now, w) })
	if it == nil {
		return nil
	}
	return it.Value
}

func (t *task) avoids(now time.Time, w *worker) bool {
	return t.avoid == w.id && now.Before(t.avoidTill)
}

// enqueue makes a task wait, or places it at once when a fitting slot is lent.
func (c *Core) enqueue(now time.Time, t *task) {
	if c.cfg.Hold != nil && c.cfg.Hold(t.key) {
		t.state = held
		c.held[t] = struct{}{}
		return
	}
	t.state = queued
	if w := c.choose(now, t); w != nil {
		c.grantLent(now, t, w)
		return
	}
	c.q.Push(&t.Item, now)
	c.rebid = true
}

// choose picks among the workers that lend a slot the one that has the most
// bytes of the inputs; among those that have as many, as far as possible always
// the same one for the same first output, since that one has most of the inputs
// of the action's last version.
func (c *Core) choose(now time.Time, t *task) *worker {
	var best *worker
	var most int64
	var top uint64
	for w := range c.lenders {
		if !w.usable(now) || !t.plat.fit(w.pool) || t.avoids(now, w) {
			continue
		}
		bytes := t.near(w)
		s := mix(w.hash ^ xxhash.Sum64String(t.req.FirstOutput))
		if best == nil || bytes > most || bytes == most && (s > top || s == top && w.id < best.id) {
			best, most, top = w, bytes, s
		}
	}
	return best
}

// near is how many bytes of the task's inputs the worker is known to have.
func (t *task) near(w *worker) int64 {
	for _, n := range t.req.Near {
		if n.Worker == w.name {
			return n.Bytes
		}
	}
	return 0
}

// mix is a finalizer: each bit of the result depends on all of x.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

func (c *Core) grantLent(now time.Time, t *task, w *worker) {
	n := len(w.lent) - 1
	loan := w.lent[n]
	w.lent = w.lent[:n]
	if n == 0 {
		delete(c.lenders, w)
	}
	c.grant(now, t, w, wire.Offer{Slot: loan.Slot, Seq: loan.Seq}, false)
}

// grant places a waiting task on a worker.
func (c *Core) grant(now time.Time, t *task, w *worker, o wire.Offer, ahead bool) {
	c.q.Remove(&t.Item)
	t.last++
	a := &attempt{t: t, w: w, ref: wire.Ref{Task: t.id, Attempt: t.last}, granted: now, ahead: ahead}
	c.bind(now, a)
	if ahead {
		c.aheads = append(c.aheads, a)
	}
	o.Task = &wire.Task{
		ID: t.id, Attempt: t.last, Instance: t.key.Instance, Action: t.key.Action,
		DoNotCache: t.req.DoNotCache, Metadata: t.req.Metadata, ActionBlob: t.req.ActionBlob,
		CommandBlob: t.req.CommandBlob, RootBlob: t.req.RootBlob, QueuedAt: t.Arrived,
	}
	c.send(w, o)
}

// bind makes the attempt the task's and the worker's.
func (c *Core) bind(now time.Time, a *attempt) {
	t := a.t
	if len(t.attempts) == 0 {
		t.state = placed
		c.busy++
	}
	t.attempts = append(t.attempts, a)
	t.worker = a.w.name
	a.w.attempts[a.ref] = a
	if t.req != nil {
		a.charged = true
		c.q.Start(&t.Item, now)
	}
	if a.started {
		c.start(a)
	}
}

// start notes that the attempt's process runs. Waiters learn of it at the next
// tick: of an action that has ended by then, they are spared it.
func (c *Core) start(a *attempt) {
	a.started, a.ahead = true, false
	if t := a.t; t.state == placed {
		t.state, t.startedAt, t.worker = running, a.at, a.w.name
		c.fresh = append(c.fresh, t)
	}
}

// lend takes a loan: it is used at once, or kept for the next task.
func (c *Core) lend(now time.Time, w *worker, m wire.Lend) {
	w.lent = append(w.lent, m)
	c.lenders[w] = struct{}{}
	if !w.usable(now) {
		return
	}
	t := c.best(now, w)
	c.steal(now, w, t, false)
	if t != nil {
		c.grantLent(now, t, w)
	}
}

// useLent places what waits although slots are lent: tasks that avoided a worker
// for a while, on workers that had been silent for one.
func (c *Core) useLent(now time.Time) {
	if c.q.Len() == 0 {
		return
	}
	for _, w := range sortedWorkers(c.lenders) {
		for len(w.lent) > 0 && w.usable(now) {
			t := c.best(now, w)
			if t == nil {
				break
			}
			c.grantLent(now, t, w)
		}
	}
}

// claim answers the worker that took our bid.
func (c *Core) claim(now time.Time, w *worker, m wire.Claim) {
	t := c.best(now, w)
	c.steal(now, w, t, m.Ahead)
	if t == nil {
		c.unbid(w)
		c.send(w, wire.None{Claim: m.ID})
		return
	}
	c.grant(now, t, w, wire.Offer{Claim: m.ID}, m.Ahead)
}

// steal takes a task back that waits behind another on some worker, when w
// could begin it sooner: w is idle, or it goes through tasks that came later.
// The task returns to its place in the queue, for the next claim.
func (c *Core) steal(now time.Time, w *worker, next *task, ahead bool) {
	if ahead && next == nil {
		return
	}
	c.aheads = slices.DeleteFunc(c.aheads, func(a *attempt) bool { return !a.ahead })
	for _, a := range c.aheads[:min(8, len(c.aheads))] {
		t := a.t
		switch {
		case a.withdrawing || a.w == w || t.plat == nil || !t.plat.fit(w.pool):
		case ahead && now.Sub(a.granted) < stealAfter:
		case next != nil && (t.Priority > next.Priority || t.Seq > next.Seq):
		default:
			a.withdrawing = true
			c.send(a.w, wire.Withdraw{Ref: a.ref})
			return
		}
	}
}

// recall gives a loan back, unless it was used: then the offer is the answer.
func (c *Core) recall(w *worker, m wire.Recall) {
	i := slices.Index(w.lent, wire.Lend(m))
	if i < 0 {
		return
	}
	w.lent = slices.Delete(w.lent, i, i+1)
	if len(w.lent) == 0 {
		delete(c.lenders, w)
	}
	c.send(w, wire.GiveBack(m))
}

// flushBids bids at the workers at which no bid stands, once tasks wait.
func (c *Core) flushBids(now time.Time) {
	if !c.rebid || c.q.Len() == 0 {
		return
	}
	c.rebid = false
	for _, p := range c.sortedPools() {
		if len(p.unbid) == 0 {
			continue
		}
		bid := c.bid(now, p)
		if bid == nil {
			continue
		}
		for _, w := range sortedWorkers(p.unbid) {
			if w.usable(now) && len(w.lent) == 0 {
				c.sendBid(now, w, *bid)
			}
		}
	}
}

// refreshBids renews the standing bids that no longer say what waits.
func (c *Core) refreshBids(now time.Time) {
	if c.q.Len() == 0 {
		return
	}
	c.rebid = true
	c.flushBids(now)
	for _, p := range c.sortedPools() {
		if len(p.unbid) == len(p.workers) {
			continue
		}
		bid := c.bid(now, p)
		if bid == nil {
			continue
		}
		for _, w := range sortedWorkers(p.workers) {
			if w.bid != nil && *w.bid != *bid && w.usable(now) && now.Sub(w.bidAt) >= bidAgain {
				c.sendBid(now, w, *bid)
			}
		}
	}
}

func (c *Core) sendBid(now time.Time, w *worker, b wire.Bid) {
	delete(w.pool.unbid, w)
	w.bid, w.bidAt = &b, now
	c.send(w, b)
}

// unbid notes that no bid stands at the worker.
func (c *Core) unbid(w *worker) {
	w.bid = nil
	w.pool.unbid[w] = struct{}{}
}

// maxWant bounds a bid's Want, which would otherwise change all the time.
const maxWant = 64

// bid is what a bid at the pool's workers says now, nil when nothing there
// waits for them.
func (c *Core) bid(now time.Time, p *pool) *wire.Bid {
	it := c.q.Best(now, func(key string) bool { return c.platforms[key].fit(p) }, nil)
	if it == nil {
		return nil
	}
	want := 0
	for key, n := range c.q.Waiting {
		if c.platforms[key].fit(p) {
			want += n
		}
	}
	return &wire.Bid{Class: c.q.Class(it), Want: uint32(min(want, maxWant))}
}

func (c *Core) sortedPools() []*pool {
	ps := make([]*pool, 0, len(c.pools))
	for _, p := range c.pools {
		if len(p.workers) > 0 {
			ps = append(ps, p)
		}
	}
	slices.SortFunc(ps, func(a, b *pool) int { return strings.Compare(a.profile.Key(), b.profile.Key()) })
	return ps
}

func sortedWorkers(set map[*worker]struct{}) []*worker {
	ws := make([]*worker, 0, len(set))
	for w := range set {
		ws = append(ws, w)
	}
	slices.SortFunc(ws, func(a, b *worker) int { return cmp.Compare(a.id, b.id) })
	return ws
}

// Judge says whether every worker that there should be has been heard, so that
// a platform that fits none can be told from one whose workers are on their way.
func (c *Core) Judge(now time.Time, can bool) {
	changed := can && !c.judging
	c.judging = can
	if changed {
		c.judgeWaiting(now)
	}
}

// judge is why no worker will ever run actions of the platform, or nil.
func (c *Core) judge(now time.Time, p match.Platform) error {
	there := slices.Clone(c.cfg.Declared)
	for _, pl := range c.pools {
		if len(pl.workers) > 0 || now.Sub(pl.seen) < poolsSeen {
			there = append(there, pl.profile)
		}
	}
	slices.SortFunc(there, func(a, b *match.Profile) int { return strings.Compare(a.Key(), b.Key()) })
	if slices.ContainsFunc(there, p.Fits) {
		return nil
	}
	if q, unmet := p.Unmet(there); unmet {
		return &wire.Error{
			Status: codes.FailedPrecondition,
			Text:   fmt.Sprintf("no worker has the platform property %s=%s", q.Name, q.Value),
		}
	}
	return &wire.Error{Status: codes.Unavailable, Text: "there is no worker in the pool " + match.DefaultPool}
}

// judgeWaiting ends the waiting tasks that no worker will ever run.
func (c *Core) judgeWaiting(now time.Time) {
	var hopeless []string
	verdict := make(map[string]error)
	for key := range c.q.Waiting {
		if err := c.judge(now, c.platforms[key].p); err != nil {
			hopeless = append(hopeless, key)
			verdict[key] = err
		}
	}
	if len(hopeless) == 0 {
		return
	}
	waiting := make(map[*task]struct{})
	for _, t := range c.byID {
		if t.state == queued && verdict[t.Platform] != nil {
			waiting[t] = struct{}{}
		}
	}
	for _, t := range sorted(waiting) {
		c.finish(now, t, nil, verdict[t.Platform])
	}
}
